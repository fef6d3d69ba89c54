//! Reads objects of central storage in large aligned windows, and keeps the hot ones.
//!
//! A chunk takes some hundred KiB at most, and those that follow each other in a recipe mostly
//! follow each other in a pack: one range request for the window they lie in serves them all, and
//! however many peers ask at once, storage is asked once (single-flight).
//!
//! Invariant: memory is bounded by [`WINDOW_CACHE_BYTES_MAX`] and the windows under way; objects
//! never change, so what is cached is never stale.
//! Non-goal: knowing what the bytes mean.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use moka::future::Cache;
use shoal_content::{ObjectKey, SourceObject};

use crate::store::{self, BlobStore, StoreError};

/// What one range request asks for.
pub const WINDOW_BYTES: u64 = 4 * 1024 * 1024;
/// What the windows that are kept take together.
pub const WINDOW_CACHE_BYTES_MAX: u64 = 192 * 1024 * 1024;

/// See the module's documentation. Clones share the cache.
#[derive(Debug, Clone)]
pub struct Windows {
    store: Arc<dyn BlobStore>,
    cache: Cache<(ObjectKey, u64), Bytes>,
}

impl Windows {
    pub fn new(store: Arc<dyn BlobStore>) -> Self {
        Self::with_capacity(store, WINDOW_CACHE_BYTES_MAX)
    }

    /// A cache of its own, of `bytes`: for a reader whose bytes nobody else wants.
    pub fn with_capacity(store: Arc<dyn BlobStore>, bytes: u64) -> Self {
        let cache = Cache::builder()
            .weigher(|_, window: &Bytes| u32::try_from(window.len()).unwrap_or(u32::MAX))
            .max_capacity(bytes)
            .build();
        Self { store, cache }
    }

    /// Bytes `at..at + length` of `object`. Others wait for what it reads: whoever begins it goes on
    /// with it, or drops it.
    ///
    /// # Errors
    /// What storage says, and [`StoreError::Range`] where they are not all in the object.
    pub async fn read(
        &self,
        object: SourceObject,
        at: u64,
        length: u64,
    ) -> Result<Bytes, Arc<StoreError>> {
        let end = at.saturating_add(length);
        if end > object.length {
            return Err(Arc::new(StoreError::Range { key: object.key, start: at, end }));
        }
        let first = self.window(object, at / WINDOW_BYTES).await?;
        let from = (at % WINDOW_BYTES) as usize;
        if length <= (first.len() - from) as u64 {
            return Ok(first.slice(from..from + length as usize));
        }
        let mut bytes = BytesMut::with_capacity(length as usize);
        bytes.extend_from_slice(&first[from..]);
        while (bytes.len() as u64) < length {
            let missing = length - bytes.len() as u64;
            let next = self.window(object, (at + bytes.len() as u64) / WINDOW_BYTES).await?;
            bytes.extend_from_slice(&next[..missing.min(next.len() as u64) as usize]);
        }
        Ok(bytes.freeze())
    }

    /// The window of that number, which begins before the object's end.
    async fn window(&self, object: SourceObject, number: u64) -> Result<Bytes, Arc<StoreError>> {
        let start = number * WINDOW_BYTES;
        let end = (start + WINDOW_BYTES).min(object.length);
        let read = store::read(self.store.as_ref(), object.key, start..end);
        self.cache.try_get_with((object.key, number), read).await
    }
}
