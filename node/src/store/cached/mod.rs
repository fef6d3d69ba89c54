//! Storage behind a bounded cache on this node's own disk: a hundred hosts that pull one layer
//! through a node cost storage one read.
//!
//! An object is read in windows of [`WINDOW_BYTES`]. A window is fetched once, however many ask
//! for it at that time; it stays in memory for a moment, and on disk until others were used more
//! recently.
//!
//! Invariants: only immutable objects are cached, and existence is always asked of storage itself;
//! what the disk gives is checked before it is served; a cache that cannot be read or written
//! costs speed only. A reader holds at most [`WINDOWS_AHEAD`] windows, and past
//! [`READERS_MAX`] readers the next ones are served from storage, uncached. What several wait for
//! goes on by itself: a reader stands still when its client does, and may leave at any time.

mod disk;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use moka::future::Cache;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use shoal_content::{ObjectKey, Timestamp};
use shoal_metadata::KeyOwner;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument;

use crate::metrics::CacheReads;

use super::{BlobStore, ByteStream, Completion, StoreError, StoredObject, StoredPart, Usage};
use disk::Disk;

pub(super) const WINDOW_BYTES: u64 = 2 * 1024 * 1024;
/// Windows that one reader has on their way.
const WINDOWS_AHEAD: usize = 2;
/// Readers that the cache serves at once: at most half a GiB in their hands.
const READERS_MAX: usize = 128;
/// How often the reading of one window may break off and go on.
const BREAKS_MAX: u32 = 2;
const MEMORY_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// What a shorter window counts as: all of them are looked at whenever an object is written.
const ENTRY_BYTES_MIN: u32 = 16 * 1024;
const LENGTHS_MAX: u64 = 100_000;

/// A window of an object, by its number from the object's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct WindowId {
    key: ObjectKey,
    number: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct CachedStore {
    windows: Arc<Windows>,
    readers: Arc<Semaphore>,
}

#[derive(Debug)]
struct Windows {
    inner: Arc<dyn BlobStore>,
    disk: Disk,
    memory: Cache<WindowId, Bytes>,
    lengths: Cache<ObjectKey, u64>,
    sources: Family<[(&'static str, &'static str); 1], Counter>,
    reads: CacheReads,
}

impl CachedStore {
    /// Opens the cache in `folder`, which takes at most `bytes_max`.
    ///
    /// # Errors
    /// Where the folder cannot be made or read.
    pub fn open(
        inner: Arc<dyn BlobStore>,
        folder: &Path,
        bytes_max: u64,
        reads: CacheReads,
        registry: &mut Registry,
    ) -> std::io::Result<Self> {
        let sources = Family::default();
        registry.register(
            "shoal_storage_window_reads",
            "Windows of objects read, by where from: memory, the cache's disk, or storage",
            sources.clone(),
        );
        let weight = |_: &WindowId, bytes: &Bytes| {
            u32::try_from(bytes.len()).unwrap_or(u32::MAX).max(ENTRY_BYTES_MIN)
        };
        let windows = Windows {
            inner,
            disk: Disk::open(folder, bytes_max)?,
            memory: Cache::builder().weigher(weight).max_capacity(MEMORY_BYTES_MAX).build(),
            lengths: Cache::new(LENGTHS_MAX),
            sources,
            reads,
        };
        registry.register_collector(Box::new(windows.disk.clone()));
        Ok(Self { windows: Arc::new(windows), readers: Arc::new(Semaphore::new(READERS_MAX)) })
    }

    async fn drop_all(&self, keys: &[ObjectKey]) {
        for &key in keys {
            self.windows.lengths.invalidate(&key).await;
            let held = self.windows.memory.iter().map(|(id, _)| *id);
            let held: Vec<WindowId> = held.filter(|id| id.key == key).collect();
            for id in held {
                self.windows.memory.invalidate(&id).await;
            }
            self.windows.disk.forget(key).await;
        }
    }
}

/// Whether the bytes under a key are for good.
fn is_cacheable(key: ObjectKey) -> bool {
    match key {
        ObjectKey::Blob(_) | ObjectKey::Pack(_) | ObjectKey::Recipe(_) => true,
        ObjectKey::UploadPart { .. } | ObjectKey::UploadCheckpoint { .. } => false,
    }
}

impl Windows {
    async fn length(&self, key: ObjectKey) -> Result<u64, StoreError> {
        let ask = async { self.inner.length(key).await?.ok_or(StoreError::NotFound(key)) };
        self.lengths.try_get_with(key, ask).await.map_err(shared)
    }

    /// A window of an object that is `length` bytes long.
    async fn window(&self, id: WindowId, length: u64) -> Result<Bytes, StoreError> {
        let start = id.number * WINDOW_BYTES;
        let end = length.min(start + WINDOW_BYTES);
        // One of another length is of what lay under the key before.
        let fits = |bytes: &Bytes| bytes.len() as u64 == end - start;
        let fetch = async {
            if let Some(bytes) = self.disk.read(id).await.filter(fits) {
                self.count("disk", &self.reads.hits);
                return Ok(bytes);
            }
            self.count("storage", &self.reads.misses);
            let bytes = self.fetch(id.key, start..end).await?;
            self.disk.write(id, bytes.clone()).await;
            Ok(bytes)
        };
        let entry = self.memory.entry(id).or_try_insert_with(fetch).await.map_err(shared)?;
        if entry.is_fresh() {
            // Else as many windows as the cache's own queue has places wait to be let go.
            self.memory.run_pending_tasks().await;
        } else {
            self.count("memory", &self.reads.hits);
        }
        let window = entry.into_value();
        if !fits(&window) {
            self.memory.invalidate(&id).await;
            return Err(StoreError::Range { key: id.key, start, end });
        }
        Ok(window)
    }

    /// Bytes out of storage. Where they break off, the rest is asked for: whoever reads them has most
    /// likely begun an answer, and could say so only by breaking it off, too. A storage that does not
    /// answer at all was asked again already, by its client.
    async fn fetch(&self, key: ObjectKey, range: Range<u64>) -> Result<Bytes, StoreError> {
        let length = (range.end - range.start) as usize;
        let (mut all, mut breaks) = (BytesMut::with_capacity(length), 0);
        loop {
            let rest = range.start + all.len() as u64..range.end;
            let mut pieces = self.inner.get(key, rest).await?;
            let ended = loop {
                match pieces.next().await {
                    Some(Ok(piece)) => all.extend_from_slice(&piece),
                    Some(Err(error)) => break Err(error),
                    None => break Ok(()),
                }
            };
            match ended {
                Ok(()) if all.len() == length => return Ok(all.freeze()),
                Ok(()) => {
                    return Err(StoreError::Range { key, start: range.start, end: range.end });
                }
                Err(StoreError::Unavailable { .. }) if breaks < BREAKS_MAX => breaks += 1,
                Err(error) => return Err(error),
            }
        }
    }

    fn count(&self, from: &'static str, outcome: &Counter) {
        self.sources.get_or_create(&[("from", from)]).inc();
        outcome.inc();
    }
}

/// Goes on with `work` whether or not its reader does: others wait for the same. The reader's place
/// is taken until then.
async fn detached<T: Send + 'static>(
    place: Arc<OwnedSemaphorePermit>,
    work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    let held = async move {
        let _place = place;
        work.await
    };
    let ended = tokio::spawn(held.in_current_span()).await;
    ended.unwrap_or_else(|error| {
        Err(StoreError::Unavailable { doing: "reading an object", cause: error.to_string() })
    })
}

/// An error that several readers share, as one of them reports it.
fn shared(error: Arc<StoreError>) -> StoreError {
    match &*error {
        StoreError::NotFound(key) => StoreError::NotFound(*key),
        StoreError::Range { key, start, end } => {
            StoreError::Range { key: *key, start: *start, end: *end }
        }
        StoreError::Full(message) => StoreError::Full(message.clone()),
        StoreError::Unavailable { doing, cause } => {
            StoreError::Unavailable { doing, cause: cause.clone() }
        }
        StoreError::Refused { doing, cause } => StoreError::Refused { doing, cause: cause.clone() },
        StoreError::Folder { doing, error } => {
            let error = std::io::Error::new(error.kind(), error.to_string());
            StoreError::Folder { doing, error }
        }
        StoreError::Multipart => StoreError::Multipart,
        StoreError::Sealed(key) => StoreError::Sealed(*key),
        StoreError::Shredded(key) => StoreError::Shredded(*key),
    }
}

#[async_trait]
impl BlobStore for CachedStore {
    async fn put(&self, key: ObjectKey, under: &KeyOwner, bytes: Bytes) -> Result<(), StoreError> {
        let outcome = self.windows.inner.put(key, under, bytes).await;
        self.drop_all(&[key]).await;
        outcome
    }

    async fn begin(&self, key: ObjectKey, under: &KeyOwner) -> Result<String, StoreError> {
        self.windows.inner.begin(key, under).await
    }

    async fn put_part(
        &self,
        key: ObjectKey,
        multipart: &str,
        number: u32,
        offset: u64,
        bytes: Bytes,
    ) -> Result<StoredPart, StoreError> {
        self.windows.inner.put_part(key, multipart, number, offset, bytes).await
    }

    async fn complete(
        &self,
        key: ObjectKey,
        multipart: &str,
        parts: &[StoredPart],
    ) -> Result<Completion, StoreError> {
        let outcome = self.windows.inner.complete(key, multipart, parts).await;
        self.drop_all(&[key]).await;
        outcome
    }

    async fn abort_stale(
        &self,
        begun_before: Timestamp,
        named: &BTreeSet<String>,
    ) -> Result<u64, StoreError> {
        self.windows.inner.abort_stale(begun_before, named).await
    }

    async fn presigned(&self, key: ObjectKey, ttl: Duration) -> Result<Option<String>, StoreError> {
        self.windows.inner.presigned(key, ttl).await
    }

    async fn abort(&self, key: ObjectKey, multipart: &str) -> Result<(), StoreError> {
        self.windows.inner.abort(key, multipart).await
    }

    async fn get(&self, key: ObjectKey, range: Range<u64>) -> Result<ByteStream, StoreError> {
        let place = Arc::clone(&self.readers).try_acquire_owned();
        let (Ok(place), true) = (place, is_cacheable(key) && !range.is_empty()) else {
            return self.windows.inner.get(key, range).await;
        };
        let (place, windows) = (Arc::new(place), Arc::clone(&self.windows));
        let length = async move { windows.length(key).await };
        let length = detached(Arc::clone(&place), length).await?;
        if range.end > length {
            return Err(StoreError::Range { key, start: range.start, end: range.end });
        }
        let numbers = range.start / WINDOW_BYTES..=(range.end - 1) / WINDOW_BYTES;
        let windows = Arc::clone(&self.windows);
        // The reader's place is its own until it has all, or goes.
        let pieces = stream::iter(numbers).map(move |number| {
            let (place, windows, range) = (Arc::clone(&place), Arc::clone(&windows), range.clone());
            async move {
                let id = WindowId { key, number };
                let window = async move { windows.window(id, length).await };
                let window = detached(place, window).await?;
                let start = number * WINDOW_BYTES;
                let from = range.start.saturating_sub(start) as usize;
                let to = (range.end - start).min(window.len() as u64) as usize;
                Ok(window.slice(from..to))
            }
        });
        let mut pieces = pieces.buffered(WINDOWS_AHEAD).boxed();
        // Read before the answer begins, so that what is missing is said in place of it.
        let first = pieces.next().await.transpose()?;
        Ok(stream::iter(first.map(Ok)).chain(pieces).boxed())
    }

    async fn length(&self, key: ObjectKey) -> Result<Option<u64>, StoreError> {
        self.windows.inner.length(key).await
    }

    async fn lasts(&self, key: ObjectKey) -> Result<bool, StoreError> {
        self.windows.inner.lasts(key).await
    }

    async fn forget(&self, key: ObjectKey) {
        self.drop_all(&[key]).await;
        self.windows.inner.forget(key).await;
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<(), StoreError> {
        let outcome = self.windows.inner.delete(keys).await;
        self.drop_all(keys).await;
        outcome
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<ObjectKey>,
        limit: usize,
    ) -> Result<Vec<StoredObject>, StoreError> {
        self.windows.inner.list(prefix, after, limit).await
    }

    async fn owner(&self) -> Result<Option<Bytes>, StoreError> {
        self.windows.inner.owner().await
    }

    async fn set_owner(&self, over: Option<&Bytes>, owner: Bytes) -> Result<bool, StoreError> {
        self.windows.inner.set_owner(over, owner).await
    }

    async fn usage(&self) -> Result<Usage, StoreError> {
        self.windows.inner.usage().await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.windows.inner.probe().await
    }
}

#[cfg(test)]
mod tests;
