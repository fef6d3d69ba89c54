//! Writes a disk into a file whose blocks are compressed, on several cores.
//!
//! A compressed file has no length before it is made, so it is no [`Export`](crate::Export): it is
//! made once, front to back, where it is to stay, and its tables are written behind what they map.
//!
//! Invariants: the same guest bytes give the same file, whatever the format they are read from and
//! the number of threads, for as long as [`COMPRESSED_VERSION`] stays; memory is bounded by
//! [`COMPRESS_BYTES_MAX`] beside the reader's, whatever the disk's size; when `write` returns, for
//! whatever reason, its threads have ended.
//! Non-goals: naming, syncing and publishing the file (its owner's); resuming.

mod codec;
mod sink;
mod workers;

use std::fmt;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::str::FromStr;
use std::thread;

use thiserror::Error;

use crate::disk::{Disk, ExtentKind, Format, MapExtent, ReadError};
use crate::export::{ExportProgress, drop_content};
use crate::{qcow2, vmdk};
pub(crate) use codec::Codec;
use codec::PACKED_BYTES_MAX;
pub(crate) use sink::Sink;
use workers::{Block, Workers};

/// Changes when the bytes of any compressed file do: with its layout, and with a version of a
/// compressor that compresses in another way. A test holds the digests.
pub const COMPRESSED_VERSION: u32 = 1;
/// Guest bytes that are compressed on their own: a cluster of qcow2, a grain of VMDK.
pub(crate) const UNIT_BYTES: usize = 64 * 1024;
/// Bytes a writer holds at once, beside what the disk's reader does: jobs before and after,
/// compressors, and tables that are not yet written.
pub const COMPRESS_BYTES_MAX: usize = 96 * 1024 * 1024;
/// Of one thread's.
const COMPRESSOR_BYTES_MAX: usize = 2 * 1024 * 1024;
/// The largest disk, in bytes, and what its tables need: the directory of a VMDK, twice at the end.
const VIRTUAL_BYTES_MAX: u64 = 64 << 40;
const TABLE_BYTES_MAX: usize = 16 * 1024 * 1024;
const _: () = assert!(
    workers::JOBS_MAX * (workers::JOB_BYTES + workers::JOB_BYTES / UNIT_BYTES * PACKED_BYTES_MAX)
        + workers::THREADS_MAX * COMPRESSOR_BYTES_MAX
        + TABLE_BYTES_MAX
        <= COMPRESS_BYTES_MAX
);

/// What a disk can be written as where the file is made at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Compressed {
    /// What every reader of qcow2 knows.
    Qcow2Zlib,
    /// For QEMU from 5.1 on: faster both ways, and no longer.
    Qcow2Zstd,
    /// `streamOptimized`.
    VmdkStream,
}

impl Compressed {
    pub const ALL: [Self; 3] = [Self::Qcow2Zlib, Self::Qcow2Zstd, Self::VmdkStream];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2Zlib => "qcow2-zlib",
            Self::Qcow2Zstd => "qcow2-zstd",
            Self::VmdkStream => "vmdk-stream-zlib",
        }
    }

    pub const fn format(self) -> Format {
        match self {
            Self::Qcow2Zlib | Self::Qcow2Zstd => Format::Qcow2,
            Self::VmdkStream => Format::Vmdk,
        }
    }

    const fn codec(self) -> Codec {
        match self {
            Self::Qcow2Zlib => Codec::Deflate,
            Self::Qcow2Zstd => Codec::Zstd,
            Self::VmdkStream => Codec::Zlib,
        }
    }
}

/// A text that names no compressed file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a compressed disk is written as qcow2-zlib, qcow2-zstd or vmdk-stream-zlib")]
pub struct CompressedError;

impl FromStr for Compressed {
    type Err = CompressedError;

    fn from_str(text: &str) -> Result<Self, CompressedError> {
        let text = text.to_ascii_lowercase();
        Self::ALL.into_iter().find(|target| target.as_str() == text).ok_or(CompressedError)
    }
}

impl fmt::Display for Compressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a compressed file was not written. What it holds then is unspecified.
#[derive(Debug, Error)]
pub enum CompressError {
    #[error("the disk could not be read")]
    Read(#[from] ReadError),
    #[error("the disk is larger than the format can hold")]
    TooLarge,
    #[error("compressing the guest's bytes at {at} failed")]
    Compress {
        /// Guest bytes from the disk's start.
        at: u64,
        #[source]
        error: io::Error,
    },
    #[error("writing the file at {at} failed")]
    Write {
        /// Bytes from the file's start.
        at: u64,
        #[source]
        error: io::Error,
    },
    #[error("the writing was cancelled")]
    Cancelled,
}

/// Puts compressed blocks where a format wants them, and the tables behind.
pub(crate) trait Packer {
    /// `block` counts in units of the guest and ascends from call to call; no block that is all
    /// zero comes. `raw` has the unit's bytes, and zeros behind the disk's end.
    fn put(&mut self, block: u64, raw: &[u8], packed: &[u8]) -> Result<(), CompressError>;

    /// The rest of the tables; gives the file's length.
    fn finish(&mut self) -> Result<u64, CompressError>;
}

/// See the module's documentation.
#[derive(Debug, Clone, Copy)]
pub struct CompressedWriter {
    target: Compressed,
    threads: NonZeroUsize,
}

impl CompressedWriter {
    /// With a thread for each core.
    pub fn new(target: Compressed) -> Self {
        let threads = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self { target, threads }
    }

    /// As many threads that compress, up to 16. The bytes do not depend on it.
    #[must_use]
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = threads;
        self
    }

    /// Reads `disk` to its end and replaces what is in `file`, which is written anywhere but not
    /// read; gives the file's length. `progress` is told of the guest's bytes about every 512 KiB of
    /// content, and stops it by [`ControlFlow::Break`].
    ///
    /// # Errors
    /// See [`CompressError`].
    pub fn write(
        &self,
        disk: &mut dyn Disk,
        file: &File,
        progress: &mut dyn FnMut(ExportProgress) -> ControlFlow<()>,
    ) -> Result<u64, CompressError> {
        if disk.virtual_bytes() > VIRTUAL_BYTES_MAX {
            return Err(CompressError::TooLarge);
        }
        drop_content(file).map_err(|error| CompressError::Write { at: 0, error })?;
        let sink = Sink::new(file);
        let length = disk.virtual_bytes();
        let mut packer: Box<dyn Packer + '_> = match self.target {
            Compressed::Qcow2Zlib => Box::new(qcow2::Packer::new(length, false, sink)),
            Compressed::Qcow2Zstd => Box::new(qcow2::Packer::new(length, true, sink)),
            Compressed::VmdkStream => Box::new(vmdk::StreamPacker::new(length, sink)),
        };
        self.pack(disk, &mut *packer, progress)?;
        let end = packer.finish()?;
        file.set_len(end).map_err(|error| CompressError::Write { at: end, error })?;
        Ok(end)
    }

    /// This thread reads ahead and writes; what is between is the workers'.
    fn pack(
        &self,
        disk: &mut dyn Disk,
        packer: &mut dyn Packer,
        progress: &mut dyn FnMut(ExportProgress) -> ControlFlow<()>,
    ) -> Result<(), CompressError> {
        let mut guest = Guest { disk, extent: None, at: 0 };
        let mut state =
            ExportProgress { bytes_total: guest.disk.virtual_bytes(), ..ExportProgress::default() };
        thread::scope(|scope| {
            let mut workers = Workers::start(scope, self.threads, self.target.codec());
            loop {
                while workers.has_room() {
                    let mut buffer = workers.buffer();
                    let Some(at) = guest.fill(&mut buffer)? else { break };
                    workers.begin(at, buffer);
                }
                let Some(job) = workers.next() else { break };
                for block in job.blocks() {
                    let Block { number, raw, packed } = block?;
                    state.content_done += raw.len() as u64;
                    packer.put(number, raw, packed)?;
                }
                state.bytes_done = (job.at + job.raw.len() as u64).min(state.bytes_total);
                workers.give_back(job);
                if progress(state).is_break() {
                    return Err(CompressError::Cancelled);
                }
            }
            Ok(())
        })
    }
}

/// Reads a disk front to back in whole units, and passes over holes.
struct Guest<'a> {
    disk: &'a mut dyn Disk,
    extent: Option<MapExtent>,
    /// A multiple of [`UNIT_BYTES`].
    at: u64,
}

impl Guest<'_> {
    /// Fills `buffer` with the next units that are not holes, at most [`workers::JOB_BYTES`] of
    /// them; gives where they start, or `None` at the disk's end.
    fn fill(&mut self, buffer: &mut Vec<u8>) -> Result<Option<u64>, ReadError> {
        const UNIT: u64 = UNIT_BYTES as u64;
        let length = self.disk.virtual_bytes();
        while self.at < length {
            let extent = self.extent()?;
            let end = extent.offset + extent.length;
            if extent.kind == ExtentKind::Zero {
                let whole = if end == length { length } else { end - end % UNIT };
                if whole > self.at {
                    self.at = whole;
                    continue;
                }
            }
            let at = self.at;
            let ahead = end.next_multiple_of(UNIT) - at;
            let ahead = ahead.min(workers::JOB_BYTES as u64);
            let there = ahead.min(length - at) as usize;
            buffer.resize(ahead as usize, 0);
            self.disk.read(at, &mut buffer[..there])?;
            buffer[there..].fill(0);
            self.at += ahead;
            return Ok(Some(at));
        }
        Ok(None)
    }

    /// The one that `at` is in.
    fn extent(&mut self) -> Result<MapExtent, ReadError> {
        match self.extent {
            Some(extent) if self.at < extent.offset + extent.length => Ok(extent),
            _ => Ok(*self.extent.insert(self.disk.next_extent(self.at)?)),
        }
    }
}
