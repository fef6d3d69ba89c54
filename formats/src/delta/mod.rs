//! What leads from one version of a disk to another: a delta bundle.
//!
//! Holds the content of those chunks of the new version that the old one lacks, compressed with old
//! content as the dictionary, as `zstd --patch-from` does it for whole files. Whoever has the old
//! version rebuilds the new chunks from it, one segment after another:
//! ```text
//! magic "SHOALDLT"   8 bytes
//! version            1 byte, 1
//! old, new           32 bytes each: the ids of the two recipes
//! then segments up to the end, each:
//!   index length     4 bytes, little-endian
//!   frame length     4 bytes, little-endian
//!   index            the old chunks that are the dictionary, then the new chunks that are made
//!   frame            one zstd frame of the new chunks' content, one after another, whose prefix is
//!                    the content of the old chunks, one after another
//! ```
//! Each of the two lists is a count of runs, then for each run how many chunks are left out before
//! it and how many it has; all are LEB128 varints. Both ascend.
//!
//! The dictionary of a segment is chosen by content: a sample of the rolling hashes of the old chunks
//! says which of them a new chunk resembles. Neither disk so has to fit in memory, and files may
//! move as far as they like from one version to the next.
//!
//! Invariants: a bundle can make nothing but the chunks that the new recipe names, each compared
//! with its id before it is handed over; memory is bounded by [`DELTA_DECODE_BYTES_MAX`] where a
//! bundle is read and by [`DeltaLimits::memory_bytes`] where one is made, whatever the disks hold.
//! Non-goals: whether a bundle is worth its bytes to somebody, where it is kept, how it travels.

mod apply;
mod index;
mod make;
mod similar;

use std::io;

use shoal_content::{ChunkId, RecipeId};
use thiserror::Error;

pub use apply::{Applied, ReadOld, WriteNew, apply_delta};
pub use make::{DeltaEnd, MadeDelta, ReadChunk, fresh_chunks, make_delta};

use crate::pack::SinkError;

const MAGIC: &[u8; 8] = b"SHOALDLT";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = MAGIC.len() + 1 + 32 + 32;
const SEGMENT_HEADER_BYTES: usize = 8;

/// The most new content in one segment.
const SEGMENT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The most old content that one segment refers to.
const REFERENCE_BYTES_MAX: usize = 48 * 1024 * 1024;
/// The longest index of a segment: its chunks are few, but may be as short as a sector.
const INDEX_BYTES_MAX: usize = 1024 * 1024;
/// The longest frame: content that does not compress, and what zstd adds to it.
const FRAME_BYTES_MAX: usize = SEGMENT_BYTES_MAX + SEGMENT_BYTES_MAX / 128;
/// What zstd takes to compress a segment, beside the content.
const TABLE_BYTES_MAX: usize = 48 * 1024 * 1024;

/// Bytes that are in memory at most while a bundle is read, beside the two recipes.
pub const DELTA_DECODE_BYTES_MAX: usize =
    REFERENCE_BYTES_MAX + SEGMENT_BYTES_MAX + FRAME_BYTES_MAX + INDEX_BYTES_MAX;

/// How large the parts of a bundle may be that is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaLimits {
    segment_bytes: usize,
    reference_bytes: usize,
}

impl DeltaLimits {
    /// The least memory with which a bundle can be made.
    pub const MEMORY_BYTES_MIN: u64 = 160 * 1024 * 1024;
    /// More changes nothing.
    pub const MEMORY_BYTES_MAX: u64 = (TABLE_BYTES_MAX
        + similar::TABLE_BYTES_MAX
        + crate::pack::PACK_BYTES
        + REFERENCE_BYTES_MAX
        + 2 * SEGMENT_BYTES_MAX) as u64;

    /// What fits in so much memory; what is out of bounds counts as the nearest that is not.
    pub fn within(memory_bytes: u64) -> Self {
        let most = memory_bytes.clamp(Self::MEMORY_BYTES_MIN, Self::MEMORY_BYTES_MAX);
        let fixed = TABLE_BYTES_MAX + similar::TABLE_BYTES_MAX + crate::pack::PACK_BYTES;
        // Content, frame, and three times as much of the old version.
        let segment_bytes = (most as usize - fixed) / 5;
        Self { segment_bytes, reference_bytes: 3 * segment_bytes }
    }

    /// Bytes that are in memory at most while a bundle is made, beside the two recipes (about 150
    /// for each chunk).
    pub const fn memory_bytes(&self) -> u64 {
        let fixed = TABLE_BYTES_MAX + similar::TABLE_BYTES_MAX + crate::pack::PACK_BYTES;
        (fixed + 2 * self.segment_bytes + self.reference_bytes) as u64
    }
}

/// Which of the two versions a chunk is asked of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Old,
    New,
}

/// Why a bundle was not made, or not used to its end.
#[derive(Debug, Error)]
pub enum DeltaError {
    #[error("not a delta bundle: it does not start with the magic bytes")]
    Magic,
    #[error("a delta bundle of version {0} is newer than this program; upgrade it")]
    Version(u8),
    #[error("the bundle leads from recipe {old} to {new}, which was not asked for")]
    Recipes { old: RecipeId, new: RecipeId },
    #[error("segment {segment} of the bundle is malformed: {what}")]
    Malformed { segment: u32, what: &'static str },
    #[error("segment {segment} does not decompress to what it should: {reason}")]
    Decompress { segment: u32, reason: String },
    #[error("the bundle holds something else than chunk {0}")]
    Hash(ChunkId),
    #[error("compressing failed: {0}")]
    Compress(String),
    #[error("the bundle could not be read")]
    Read(#[source] io::Error),
    #[error("a chunk could not be read")]
    Chunk(#[source] SinkError),
    #[error("what came of it could not be stored")]
    Sink(#[source] SinkError),
    #[error("it was cancelled")]
    Cancelled,
}

impl DeltaError {
    /// Whether the bundle itself is to blame, so that it is no use to anybody.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Magic
                | Self::Version(_)
                | Self::Recipes { .. }
                | Self::Malformed { .. }
                | Self::Decompress { .. }
                | Self::Hash(_)
        )
    }
}

#[cfg(test)]
mod tests;
