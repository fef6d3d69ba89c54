//! The cache over a real folder store, with its reads counted.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::try_join_all;
use shoal_content::UploadId;
use uuid::Uuid;

use super::*;
use crate::store::{FolderStore, check_conformance};

const CACHE_BYTES: u64 = 64 * 1024 * 1024;

/// A folder store that counts how often bytes are read from it.
#[derive(Debug)]
struct Counted {
    inner: FolderStore,
    reads: AtomicU64,
}

#[async_trait]
impl BlobStore for Counted {
    async fn put(&self, key: ObjectKey, under: &KeyOwner, bytes: Bytes) -> Result<(), StoreError> {
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
        self.inner.put_part(key, multipart, number, offset, bytes).await
    }

    async fn complete(
        &self,
        key: ObjectKey,
        multipart: &str,
        parts: &[StoredPart],
    ) -> Result<Completion, StoreError> {
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

    async fn usage(&self) -> Result<Usage, StoreError> {
        self.inner.usage().await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.inner.probe().await
    }
}

fn storage(folder: &Path) -> Arc<Counted> {
    let inner = FolderStore::open(&folder.join("storage"), 0).unwrap();
    Arc::new(Counted { inner, reads: AtomicU64::new(0) })
}

fn cached(folder: &Path, inner: &Arc<Counted>, bytes_max: u64) -> CachedStore {
    let inner = Arc::clone(inner) as Arc<dyn BlobStore>;
    CachedStore::open(
        inner,
        &folder.join("cache"),
        bytes_max,
        CacheReads::default(),
        &mut Registry::default(),
    )
    .unwrap()
}

/// An object of three windows and a bit.
async fn object(store: &dyn BlobStore, seed: u8) -> (ObjectKey, Bytes) {
    let key = ObjectKey::Blob(UploadId::from_uuid(Uuid::new_v4()));
    let length = 3 * WINDOW_BYTES as usize + 77;
    let content: Vec<u8> = (0..length).map(|at| (at / 3) as u8 ^ (at >> 11) as u8 ^ seed).collect();
    let content = Bytes::from(content);
    store.put(key, &KeyOwner::Cluster, content.clone()).await.unwrap();
    (key, content)
}

#[tokio::test]
async fn it_is_a_store_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = cached(folder.path(), &storage(folder.path()), CACHE_BYTES);
    check_conformance(&store).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_readers_at_once_cost_storage_one_read_of_each_window() {
    let folder = tempfile::tempdir().unwrap();
    let inner = storage(folder.path());
    let store = cached(folder.path(), &inner, CACHE_BYTES);
    let (key, content) = object(&store, 1).await;
    let length = content.len() as u64;
    let all = try_join_all((0..50).map(|_| read(&store, key, 0..length))).await.unwrap();
    assert!(all.iter().all(|got| *got == content));
    assert_eq!(inner.reads.load(Ordering::Relaxed), 4);
    // Across windows, and after a restart.
    let again = cached(folder.path(), &inner, CACHE_BYTES);
    let range = WINDOW_BYTES - 5..2 * WINDOW_BYTES + 5;
    let got = read(&again, key, range.clone()).await.unwrap();
    assert_eq!(got, content.slice(range.start as usize..range.end as usize));
    assert_eq!(inner.reads.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn a_damaged_window_is_noticed_and_fetched_anew() {
    let folder = tempfile::tempdir().unwrap();
    let inner = storage(folder.path());
    let (key, content) = object(&*inner, 2).await;
    let length = content.len() as u64;
    read(&cached(folder.path(), &inner, CACHE_BYTES), key, 0..length).await.unwrap();
    for (at, file) in std::fs::read_dir(folder.path().join("cache")).unwrap().enumerate() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        // Some change, some are torn.
        if at % 2 == 0 {
            bytes[20] ^= 1
        } else {
            bytes.truncate(at * 10)
        }
        std::fs::write(&path, bytes).unwrap();
    }
    let store = cached(folder.path(), &inner, CACHE_BYTES);
    assert_eq!(read(&store, key, 0..length).await.unwrap(), content);
    assert_eq!(inner.reads.load(Ordering::Relaxed), 8);
}

#[tokio::test]
async fn it_stays_within_its_bytes_and_keeps_what_was_used_last() {
    let folder = tempfile::tempdir().unwrap();
    let inner = storage(folder.path());
    let bytes_max = 5 * WINDOW_BYTES;
    let mut objects = Vec::new();
    for seed in 0..4 {
        objects.push(object(&*inner, seed).await);
    }
    let store = cached(folder.path(), &inner, bytes_max);
    for (key, content) in &objects {
        read(&store, *key, 0..content.len() as u64).await.unwrap();
        assert!(store.windows.disk.bytes() <= bytes_max);
    }
    let before = inner.reads.load(Ordering::Relaxed);
    let (last, content) = &objects[3];
    let fresh = cached(folder.path(), &inner, bytes_max);
    read(&fresh, *last, 0..content.len() as u64).await.unwrap();
    assert_eq!(inner.reads.load(Ordering::Relaxed), before, "what was used last is gone");
    fresh.delete(&[*last]).await.unwrap();
    assert!(matches!(fresh.get(*last, 0..1).await, Err(StoreError::NotFound(_))));
}
