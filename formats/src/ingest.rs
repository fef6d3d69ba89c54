//! skeleton
use crate::disk::{Disk, ReadError};
use crate::pack::{PackSink, SinkError};
use shoal_content::{ChunkId, Encoding, Recipe, SourceObject};
use std::ops::ControlFlow;
use thiserror::Error;

/// Bytes an ingest holds at once, beside the recipe it makes (about 150 for each chunk).
pub const INGEST_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Where a chunk that storage has already lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredChunk {
    pub object: SourceObject,
    /// Bytes from the object's start.
    pub at: u64,
    pub encoding: Encoding,
    /// Bytes of content.
    pub length: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IngestProgress {
    /// Guest bytes passed, holes included.
    pub bytes_done: u64,
    /// Guest bytes in all.
    pub bytes_total: u64,
    /// Bytes that are not in holes, so far.
    pub content_bytes: u64,
    /// Content of chunks that neither this disk nor storage had, so far.
    pub new_bytes: u64,
    /// Bytes added to packs so far.
    pub stored_bytes: u64,
}

/// The result.
#[derive(Debug)]
pub struct Ingested<S> {
    pub recipe: Recipe,
    /// The last progress.
    pub totals: IngestProgress,
    /// The packs this ingest made, in the order they were handed over.
    pub packs: Vec<SourceObject>,
    pub sink: S,
}

#[derive(Debug, Error)]
pub enum IngestError {
    #[error("the disk could not be read")]
    Read(#[from] ReadError),
    #[error("a pack could not be stored")]
    Sink(#[source] SinkError),
    #[error("the disk has more content than one recipe can list")]
    TooLarge,
    #[error("compressing failed")]
    Compress(#[source] std::io::Error),
    #[error("the ingest was cancelled")]
    Cancelled,
}

#[derive(Debug)]
pub struct DiskIngest<S> {
    sink: S,
}

impl<S: PackSink> DiskIngest<S> {
    pub fn new(sink: S) -> Self {
        Self { sink }
    }
    /// `known` is asked once for each distinct chunk, in order; `progress` is told about every few MiB and cancels with Break.
    pub fn run(
        self,
        disk: &mut dyn Disk,
        known: &mut dyn FnMut(ChunkId) -> Option<StoredChunk>,
        progress: &mut dyn FnMut(IngestProgress) -> ControlFlow<()>,
    ) -> Result<Ingested<S>, IngestError> {
        let _ = (&self.sink, disk, known, progress);
        todo!()
    }
}
