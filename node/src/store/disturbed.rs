//! A folder store that tests count, hold up and break: what a storage at the other end of a network
//! does by itself.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use shoal_content::{ObjectKey, Timestamp};
use shoal_metadata::KeyOwner;
use tokio::sync::Semaphore;

use super::{
    BlobStore, ByteStream, Completion, FolderStore, StoreError, StoredObject, StoredPart, Usage,
};

/// See the module's documentation.
#[derive(Debug)]
pub struct DisturbedStore {
    inner: FolderStore,
    reads: AtomicU64,
    written_bytes: AtomicU64,
    /// Whoever holds it lets no read begin.
    pub gate: Semaphore,
    /// So many parts fail before one is taken again.
    pub failing_parts: AtomicU64,
    /// So many multipart uploads are not made an object of before one is again.
    pub failing_completions: AtomicU64,
    /// So many looks at whose it is fail before one is answered.
    pub failing_owners: AtomicU64,
    /// So many reads break off halfway before one comes whole again.
    pub breaking_reads: AtomicU64,
}

/// Counts one of those down, if there is one.
fn one_less(left: &AtomicU64) -> bool {
    let fewer = |left: u64| left.checked_sub(1);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok()
}

/// Fails where one of `failing` is left.
fn fail_one_of(failing: &AtomicU64, doing: &'static str) -> Result<(), StoreError> {
    if one_less(failing) {
        return Err(StoreError::Unavailable { doing, cause: "a test has it fail".to_owned() });
    }
    Ok(())
}

impl DisturbedStore {
    pub fn open(folder: &Path) -> Arc<Self> {
        Arc::new(Self {
            inner: FolderStore::open(folder, 0).unwrap(),
            reads: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            gate: Semaphore::new(1),
            failing_parts: AtomicU64::new(0),
            failing_completions: AtomicU64::new(0),
            failing_owners: AtomicU64::new(0),
            breaking_reads: AtomicU64::new(0),
        })
    }

    /// How often bytes were asked for.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Of objects and parts, also where they were not taken.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl BlobStore for DisturbedStore {
    async fn put(&self, key: ObjectKey, under: &KeyOwner, bytes: Bytes) -> Result<(), StoreError> {
        self.written_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.inner.put(key, under, bytes).await
    }

    async fn begin(&self, key: ObjectKey, under: &KeyOwner) -> Result<String, StoreError> {
        self.inner.begin(key, under).await
    }

    async fn put_part(
        &self,
        key: ObjectKey,
        multipart: &str,
        number: u32,
        offset: u64,
        bytes: Bytes,
    ) -> Result<StoredPart, StoreError> {
        self.written_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        fail_one_of(&self.failing_parts, "putting a part")?;
        self.inner.put_part(key, multipart, number, offset, bytes).await
    }

    async fn complete(
        &self,
        key: ObjectKey,
        multipart: &str,
        parts: &[StoredPart],
    ) -> Result<Completion, StoreError> {
        fail_one_of(&self.failing_completions, "completing a multipart upload")?;
        self.inner.complete(key, multipart, parts).await
    }

    async fn abort(&self, key: ObjectKey, multipart: &str) -> Result<(), StoreError> {
        self.inner.abort(key, multipart).await
    }

    async fn abort_stale(
        &self,
        begun_before: Timestamp,
        named: &BTreeSet<String>,
    ) -> Result<u64, StoreError> {
        self.inner.abort_stale(begun_before, named).await
    }

    async fn get(&self, key: ObjectKey, range: Range<u64>) -> Result<ByteStream, StoreError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        drop(self.gate.acquire().await);
        if one_less(&self.breaking_reads) {
            let half = range.start + (range.end - range.start) / 2;
            let begun = self.inner.get(key, range.start..half).await?;
            let cause = "a test has it break off".to_owned();
            let broken = StoreError::Unavailable { doing: "reading an object", cause };
            return Ok(begun.chain(stream::iter([Err(broken)])).boxed());
        }
        self.inner.get(key, range).await
    }

    async fn length(&self, key: ObjectKey) -> Result<Option<u64>, StoreError> {
        self.inner.length(key).await
    }

    async fn lasts(&self, key: ObjectKey) -> Result<bool, StoreError> {
        self.inner.lasts(key).await
    }

    async fn forget(&self, key: ObjectKey) {
        self.inner.forget(key).await;
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<(), StoreError> {
        self.inner.delete(keys).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<ObjectKey>,
        limit: usize,
    ) -> Result<Vec<StoredObject>, StoreError> {
        self.inner.list(prefix, after, limit).await
    }

    async fn owner(&self) -> Result<Option<Bytes>, StoreError> {
        fail_one_of(&self.failing_owners, "reading whose storage it is")?;
        self.inner.owner().await
    }

    async fn set_owner(&self, over: Option<&Bytes>, owner: Bytes) -> Result<bool, StoreError> {
        self.inner.set_owner(over, owner).await
    }

    async fn usage(&self) -> Result<Usage, StoreError> {
        self.inner.usage().await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.inner.probe().await
    }
}
