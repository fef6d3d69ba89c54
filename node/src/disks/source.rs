//! The parts of an upload, read as the one file that they are.
//!
//! Used from blocking threads only: a read waits for storage. Invariant: parts do not change once
//! an ingest holds the lease; memory is bounded by [`SOURCE_CACHE_BYTES_MAX`].

use std::io;
use std::sync::Arc;

use shoal_content::{ObjectKey, SourceObject, UploadId};
use shoal_formats::ReadAt;
use tokio::runtime::Handle;

use crate::origin::{WINDOW_BYTES, Windows};
use crate::store::BlobStore;

/// What one ingest keeps of the uploaded file.
pub const SOURCE_CACHE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// See the module's documentation.
#[derive(Debug)]
pub struct PartsSource {
    upload: UploadId,
    total_bytes: u64,
    part_bytes: u64,
    windows: Windows,
    runtime: Handle,
}

impl PartsSource {
    /// `part_bytes` is at least 1.
    pub fn new(
        store: Arc<dyn BlobStore>,
        runtime: Handle,
        upload: UploadId,
        total_bytes: u64,
        part_bytes: u64,
    ) -> Self {
        let windows = Windows::with_capacity(store, SOURCE_CACHE_BYTES_MAX);
        Self { upload, total_bytes, part_bytes, windows, runtime }
    }

    fn part(&self, number: u64) -> io::Result<SourceObject> {
        let part = u32::try_from(number).map_err(|_| io::ErrorKind::InvalidInput)?;
        let length = self.part_bytes.min(self.total_bytes - number * self.part_bytes);
        Ok(SourceObject { key: ObjectKey::UploadPart { upload: self.upload, part }, length })
    }
}

impl ReadAt for PartsSource {
    fn len(&self) -> u64 {
        self.total_bytes
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= self.total_bytes);
        if end.is_none() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let (part, inside) = (self.part(at / self.part_bytes)?, at % self.part_bytes);
            // One window at a time: a long read is not held in memory twice.
            let count = (part.length - inside).min(rest.len() as u64).min(WINDOW_BYTES);
            let read = self.windows.read(part, inside, count);
            let bytes = self.runtime.block_on(read).map_err(io::Error::other)?;
            let (filled, after) = rest.split_at_mut(bytes.len());
            filled.copy_from_slice(&bytes);
            (at, rest) = (at + count, after);
        }
        Ok(())
    }
}
