//! Disk images, OCI manifests, and the way from either to chunks and back.
//!
//! A disk in any readable format is opened over a [`ReadAt`] that the caller gives ([`open`]),
//! cut where its content says so ([`Cutter`]), stored in packs ([`DiskIngest`]), and written again
//! in any writable format ([`Export`]), as a compressed file ([`CompressedWriter`]), or straight as a
//! raw one ([`flatten`]). An OCI blob is cut while it streams ([`BlobCutter`]), and [`parse_manifest`] says what a manifest refers to.
//! [`backup`] is the file that a cluster's metadata are backed up in.
//!
//! Invariants: everything here is synchronous and deterministic; nothing opens a path, a socket or
//! a second file, whatever an image names; no count or size in an image is trusted before it has
//! been checked against a named limit or against the bytes that are really there.
//! Non-goals: storage, networking, quotas (see `shoal-node`), the shared words (`shoal-content`).
//!
//! One module for each format; a further format is a reader that implements [`Disk`], a line in
//! `detect`, and a layout for `export`.

mod again;
pub mod backup;
mod blob;
mod bytes;
mod chunk;
mod compressed;
mod cutter;
mod delta;
mod detect;
mod disk;
mod expected;
mod export;
mod filesystem;
mod first;
mod flatten;
mod foreseen;
mod grain;
mod ingest;
mod manifest;
mod mapped;
mod occupied;
mod offset;
mod ova;
mod overlap;
mod pack;
mod pages;
mod qcow2;
mod raw;
mod refusal;
mod source;
mod unpack;
mod vhd;
mod vhdx;
mod vmdk;
mod zero;

pub use blob::{BLOB_CHUNK_BYTES, BlobCutter, BlobStateError};
pub use chunk::{ChunkError, decode_chunk};
pub use compressed::{
    COMPRESS_BYTES_MAX, COMPRESSED_VERSION, CompressError, Compressed, CompressedError,
    CompressedWriter,
};
pub use cutter::{Cut, Cutter};
pub use delta::{
    Applied, DELTA_DECODE_BYTES_MAX, DeltaEnd, DeltaError, DeltaLimits, MadeDelta, ReadChunk,
    ReadOld, Side, WriteNew, apply_delta, fresh_chunks, make_delta,
};
pub use detect::open;
pub use disk::{
    Details, Disk, ExtentKind, Format, FormatError, MapExtent, Qcow2Details, ReadError, Stored,
    StoredExtent,
};
pub use expected::{CONTENT_RUNS_MAX, ContentMap};
pub use export::{
    Adler32, Content, Export, ExportError, ExportProgress, Piece, Pieces, Target, TargetError,
    WRITE_BYTES_MAX, write_file,
};
pub use filesystem::{FileSystem, FoundVolume, Plan, Stretch, StretchKind, survey};
pub use first::read_first;
pub use flatten::{FLATTEN_BYTES_MAX, flatten};
pub use foreseen::ForeseenFile;
pub use grain::Grain;
pub use ingest::{
    DiskIngest, FreeSpace, INGEST_BYTES_MAX, IngestError, IngestProgress, Ingested, StoredChunk,
};
pub use manifest::{
    MANIFEST_BYTES_MAX, ManifestError, ManifestKind, ParsedManifest, REFERENCES_MAX, Reference,
    media_type, parse_manifest,
};
pub use pack::{PACK_BYTES, PackSink, SinkError};
pub use qcow2::{CheckError, References, check_references};
pub use refusal::{Foreign, OpenError, Refusal};
pub use source::ReadAt;
