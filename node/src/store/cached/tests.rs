//! The cache over a real folder store, with its reads counted.

use std::path::Path;
use std::sync::atomic::Ordering;

use futures::future::try_join_all;
use shoal_content::{PackId, UploadId};
use tokio::time::timeout;
use uuid::Uuid;

use super::*;
use crate::store::disturbed::DisturbedStore;
use crate::store::{check_conformance, read};

const CACHE_BYTES: u64 = 64 * 1024 * 1024;

/// How long somebody waits who should not have to.
const DEADLINE: Duration = Duration::from_secs(20);

fn storage(folder: &Path) -> Arc<DisturbedStore> {
    DisturbedStore::open(&folder.join("storage"))
}

fn cached(folder: &Path, inner: &Arc<DisturbedStore>, bytes_max: u64) -> CachedStore {
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
    assert_eq!(inner.reads(), 4);
    // Across windows, and after a restart.
    let again = cached(folder.path(), &inner, CACHE_BYTES);
    let range = WINDOW_BYTES - 5..2 * WINDOW_BYTES + 5;
    let got = read(&again, key, range.clone()).await.unwrap();
    assert_eq!(got, content.slice(range.start as usize..range.end as usize));
    assert_eq!(inner.reads(), 4);
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
    assert_eq!(inner.reads(), 8);
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
    let before = inner.reads();
    let (last, content) = &objects[3];
    let fresh = cached(folder.path(), &inner, bytes_max);
    read(&fresh, *last, 0..content.len() as u64).await.unwrap();
    assert_eq!(inner.reads(), before, "what was used last is gone");
    fresh.delete(&[*last]).await.unwrap();
    assert!(matches!(fresh.get(*last, 0..1).await, Err(StoreError::NotFound(_))));
}

/// A client that takes no more bytes leaves its reader where it is, at any point.
#[tokio::test]
async fn a_reader_that_stands_still_holds_up_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let inner = storage(folder.path());
    let store = cached(folder.path(), &inner, CACHE_BYTES);
    let (key, content) = object(&store, 3).await;
    let length = content.len() as u64;
    let whole = async |what: &str| {
        let read = timeout(DEADLINE, read(&store, key, 0..length)).await;
        assert!(read.expect(what).unwrap() == content);
    };
    // Polled once, where it has to find out the length.
    let mut first = store.get(key, 0..length);
    assert!(futures::poll!(first.as_mut()).is_pending());
    whole("it waits for whoever asked for the length").await;
    store.forget(key).await;
    // Polled until storage was asked for the first window.
    let shut = inner.gate.acquire().await.unwrap();
    let (before, mut second) = (inner.reads(), store.get(key, 0..length));
    let begun = timeout(DEADLINE, async {
        while inner.reads() == before {
            assert!(futures::poll!(second.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
    });
    begun.await.unwrap();
    drop(shut);
    whole("it waits for whoever reads the same window").await;
    assert_eq!(inner.reads(), before + 4, "the first window was read twice");
}

#[tokio::test]
async fn what_an_object_of_another_length_left_in_the_cache_is_not_given() {
    let folder = tempfile::tempdir().unwrap();
    let inner = storage(folder.path());
    let key = ObjectKey::Pack(PackId::of(b"sealed once, and once not"));
    for (content, from) in [(&b"short"[..], 0), (b"and a longer one", 9), (b"short again", 2)] {
        inner.put(key, &KeyOwner::Cluster, Bytes::from_static(content)).await.unwrap();
        // As after a restart: another node has stored the object, and this one was not told.
        let store = cached(folder.path(), &inner, CACHE_BYTES);
        let got = read(&store, key, from..content.len() as u64).await.unwrap();
        assert_eq!(got, content[from as usize..]);
    }
}

#[tokio::test]
async fn what_breaks_off_goes_on_from_there_but_not_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let inner = storage(folder.path());
    let (key, content) = object(&*inner, 5).await;
    let length = content.len() as u64;
    inner.breaking_reads.store(2, Ordering::Relaxed);
    let store = cached(folder.path(), &inner, CACHE_BYTES);
    assert!(read(&store, key, 0..length).await.unwrap() == content, "other bytes");
    assert_eq!(inner.reads(), 4 + 2);
    store.forget(key).await;
    inner.breaking_reads.store(u64::MAX, Ordering::Relaxed);
    let broken = read(&store, key, 0..length).await.unwrap_err();
    assert!(matches!(broken, StoreError::Unavailable { .. }), "{broken}");
}
