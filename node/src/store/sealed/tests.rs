//! The sealed store over a folder, with keys that a test holds.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::TryStreamExt;
use parking_lot::Mutex;
use shoal_content::{PackId, RecipeId, UploadId};
use shoal_metadata::Secret;
use zeroize::Zeroizing;

use super::*;
use crate::store::{CachedStore, FolderStore, PART_BYTES_MIN, check_conformance, put_once};

const SEGMENT: usize = SEGMENT_BYTES as usize;

/// Keys as the metadata would have them.
#[derive(Debug, Default)]
struct Keys {
    current: Mutex<BTreeMap<KeyOwner, DataKeyId>>,
    found: Mutex<BTreeMap<DataKeyId, FoundKey>>,
    handed: Mutex<BTreeMap<ObjectKey, HandedKey>>,
    /// What others have decided, and this node has not heard of.
    unheard: Mutex<Option<(DataKeyId, FoundKey)>>,
}

impl Keys {
    fn make(&self, owner: &KeyOwner) -> Arc<DataKey> {
        let uuid = Uuid::new_v4();
        let half = *uuid.as_bytes();
        let bytes = [half, half].concat().try_into().unwrap();
        let key =
            Arc::new(DataKey { id: DataKeyId::from_uuid(uuid), bytes: Zeroizing::new(bytes) });
        self.found.lock().insert(key.id, FoundKey::Kept(Arc::clone(&key)));
        self.current.lock().insert(owner.clone(), key.id);
        key
    }

    fn retire(&self, key: &Arc<DataKey>) {
        self.found.lock().insert(key.id, FoundKey::Retired(Arc::clone(key)));
        self.current.lock().retain(|_, id| *id != key.id);
    }

    fn destroy(&self, key: &DataKey) {
        self.found.lock().insert(key.id, FoundKey::Destroyed);
    }

    fn hand_over(&self, object: ObjectKey, held: &Held, to: &DataKey) {
        let sealed = wrap(&to.bytes, &handed_purpose(object), &held.secret.as_bytes()[..]);
        let handed = HandedKey { from: held.from, to: to.id, sealed: Secret(sealed) };
        self.handed.lock().insert(object, handed);
    }
}

#[async_trait]
impl KeySource for Keys {
    async fn current(&self, owner: &KeyOwner) -> Result<Option<Arc<DataKey>>, StoreError> {
        let id = self.current.lock().get(owner).copied();
        Ok(id.and_then(|id| match self.found.lock().get(&id) {
            Some(FoundKey::Kept(key)) => Some(Arc::clone(key)),
            _ => None,
        }))
    }

    async fn catch_up(&self) -> Result<(), StoreError> {
        if let Some((id, found)) = self.unheard.lock().take() {
            self.found.lock().insert(id, found);
        }
        Ok(())
    }

    async fn find(&self, id: DataKeyId) -> Result<FoundKey, StoreError> {
        Ok(self.found.lock().get(&id).cloned().unwrap_or(FoundKey::Unknown))
    }

    async fn handed(&self, object: ObjectKey) -> Result<Option<HandedKey>, StoreError> {
        Ok(self.handed.lock().get(&object).cloned())
    }
}

struct World {
    _folder: tempfile::TempDir,
    plain: Arc<FolderStore>,
    keys: Arc<Keys>,
    store: SealedStore,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let plain = Arc::new(FolderStore::open(folder.path(), 0).unwrap());
        let keys = Arc::new(Keys::default());
        keys.make(&KeyOwner::Cluster);
        let store = SealedStore::new(plain.clone(), plain.clone(), keys.clone());
        Self { _folder: folder, plain, keys, store }
    }

    async fn put(&self, content: &Bytes) -> ObjectKey {
        let key = blob();
        self.store.put(key, &KeyOwner::Cluster, content.clone()).await.unwrap();
        key
    }

    async fn stored(&self, key: ObjectKey) -> Bytes {
        let length = self.plain.length(key).await.unwrap().unwrap();
        read(&*self.plain, key, 0..length).await.unwrap()
    }

    /// Puts bytes into storage that nobody sealed.
    async fn forge(&self, key: ObjectKey, bytes: impl Into<Bytes>) {
        self.plain.put(key, &KeyOwner::Cluster, bytes.into()).await.unwrap();
        self.store.forget(key).await;
    }
}

fn blob() -> ObjectKey {
    ObjectKey::Blob(UploadId::from_uuid(Uuid::new_v4()))
}

fn project(name: &str) -> KeyOwner {
    KeyOwner::Project(name.parse().unwrap())
}

fn content(length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes.into()
}

fn holds(bytes: &[u8], content: &[u8]) -> bool {
    bytes.windows(16).any(|window| window == &content[..16])
}

#[tokio::test]
async fn the_sealed_store_conforms_whether_it_seals_or_not() {
    let world = World::new();
    check_conformance(&world.store).await.unwrap();
    world.keys.current.lock().clear();
    check_conformance(&world.store).await.unwrap();
}

#[tokio::test]
async fn any_range_is_the_contents_own() {
    let world = World::new();
    let content = content(3 * SEGMENT + 100);
    let key = world.put(&content).await;
    assert!(!holds(&world.stored(key).await, &content));
    let length = content.len() as u64;
    assert_eq!(world.store.length(key).await.unwrap(), Some(length));
    let borders =
        [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT, 3 * SEGMENT, content.len()];
    for start in borders {
        for end in borders.into_iter().filter(|end| *end >= start) {
            let got = read(&world.store, key, start as u64..end as u64).await.unwrap();
            assert!(got == content[start..end], "{start}..{end}");
        }
    }
    for beyond in [0..length + 1, length..length + 1, 3 * SEGMENT_BYTES..4 * SEGMENT_BYTES] {
        let refused = read(&world.store, key, beyond).await;
        assert!(matches!(refused, Err(StoreError::Range { .. })), "{refused:?}");
    }
    assert_eq!(world.store.presigned(key, HEAD_TTL).await.unwrap(), None);
}

#[tokio::test]
async fn what_was_stored_as_it_is_stays_readable_whatever_it_looks_like() {
    let world = World::new();
    let content = content(2 * SEGMENT);
    let sealed = world.put(&content).await;
    let bytes = world.stored(sealed).await;
    // It begins like a sealed object, by a key that the cluster never had.
    let other = World::new();
    for bytes in [content.clone(), bytes.clone(), bytes.slice(..20), Bytes::new()] {
        let key = blob();
        other.forge(key, bytes.clone()).await;
        let length = other.store.length(key).await.unwrap().unwrap();
        assert_eq!(read(&other.store, key, 0..length).await.unwrap(), bytes);
        assert!(other.store.lasts(key).await.unwrap());
    }
}

#[tokio::test]
async fn what_was_cut_swapped_or_moved_is_not_given() {
    let world = World::new();
    let content = content(3 * SEGMENT);
    let (key, length) = (world.put(&content).await, content.len() as u64);
    let good = world.stored(key).await;
    let start = HEADER_BYTES as usize;
    let sealed = format::SEALED_SEGMENT_BYTES as usize;

    world.forge(key, good.slice(..start + 2 * sealed)).await;
    assert_eq!(world.store.length(key).await.unwrap(), Some(2 * SEGMENT_BYTES), "it shows");
    let cut = read(&world.store, key, 0..length).await;
    assert!(matches!(cut, Err(StoreError::Range { .. })), "{cut:?}");
    world.forge(key, good.slice(..start + 2 * sealed + 5)).await;
    assert_eq!(world.store.length(key).await.unwrap(), Some(2 * SEGMENT_BYTES));
    assert!(read(&world.store, key, 0..2 * SEGMENT_BYTES).await.unwrap() == content[..2 * SEGMENT]);

    let (first, second) = (&good[start..start + sealed], &good[start + sealed..][..sealed]);
    let swapped = [&good[..start], second, first, &good[start + 2 * sealed..]].concat();
    world.forge(key, swapped).await;
    let swapped = read(&world.store, key, 0..length).await;
    assert!(matches!(swapped, Err(StoreError::Sealed(_))), "{swapped:?}");
    assert!(read(&world.store, key, 2 * SEGMENT_BYTES..length).await.is_ok());

    let elsewhere = blob();
    world.forge(elsewhere, good.clone()).await;
    let moved = read(&world.store, elsewhere, 0..length).await;
    assert!(matches!(moved, Err(StoreError::Sealed(_))), "{moved:?}");
}

#[tokio::test]
async fn a_part_is_sealed_with_the_key_that_its_upload_began_with() {
    let world = World::new();
    let owner = project("p");
    let old = world.keys.make(&owner);
    let (key, part) = (blob(), PART_BYTES_MIN as usize);
    let content = content(2 * part + 3);
    let id = world.store.begin(key, &owner).await.unwrap();
    let new = world.keys.make(&owner);
    let mut parts = Vec::new();
    for (number, start) in [(1, 0), (2, part), (3, 2 * part)] {
        let bytes = content.slice(start..content.len().min(start + part));
        // At another node.
        let node = SealedStore::new(world.plain.clone(), world.plain.clone(), world.keys.clone());
        parts.push(node.put_part(key, &id, number, start as u64, bytes).await.unwrap());
    }
    assert_eq!(parts[2].length, 3, "lengths are the content's");
    let named = BTreeSet::from([id.clone()]);
    let later = crate::clock::now().plus_millis(3_600_000);
    assert_eq!(world.store.abort_stale(later, &named).await.unwrap(), 0, "it is named");
    world.store.complete(key, &id, &parts).await.unwrap();
    world.keys.destroy(&new);
    let got: Vec<Bytes> = {
        let stream = world.store.get(key, 0..content.len() as u64).await.unwrap();
        stream.try_collect().await.unwrap()
    };
    assert!(got.concat() == content);
    world.keys.destroy(&old);
    let gone = read(&world.store, key, 0..1).await;
    assert!(matches!(gone, Err(StoreError::Shredded(_))), "{gone:?}");
    let inside = world.store.put_part(key, &id, 1, 5, Bytes::from_static(b"x")).await;
    assert!(inside.is_err());
}

#[tokio::test]
async fn what_was_handed_over_outlives_its_key_and_nothing_else_does() {
    let world = World::new();
    let (first, second) = (project("p"), project("q"));
    let (old, heir) = (world.keys.make(&first), world.keys.make(&second));
    let content = content(SEGMENT + 9);
    let (shared, own) = (blob(), blob());
    for key in [shared, own] {
        world.store.put(key, &first, content.clone()).await.unwrap();
        assert!(world.store.going(key, Look::Anew).await.unwrap().is_none(), "nothing goes yet");
    }
    world.keys.retire(&old);
    for key in [shared, own] {
        assert!(!world.store.lasts(key).await.unwrap());
        assert!(read(&world.store, key, 0..9).await.is_ok(), "it opens until then");
    }
    let held = world.store.going(shared, Look::Anew).await.unwrap().unwrap();
    world.keys.hand_over(shared, &held, &heir);
    assert!(world.store.lasts(shared).await.unwrap());
    assert!(world.store.going(shared, Look::Anew).await.unwrap().is_none());
    world.keys.destroy(&old);
    let length = content.len() as u64;
    assert!(read(&world.store, shared, 0..length).await.unwrap() == content);
    let gone = read(&world.store, own, 0..length).await;
    assert!(matches!(gone, Err(StoreError::Shredded(_))), "{gone:?}");
    assert_eq!(world.store.length(own).await.unwrap(), Some(length), "it is there");
    assert!(world.store.going(own, Look::Anew).await.unwrap().is_none(), "there is no way back");

    // The heir goes, too: the object goes over once more, from what it was sealed with.
    world.keys.retire(&heir);
    assert!(!world.store.lasts(shared).await.unwrap());
    let held = world.store.going(shared, Look::Anew).await.unwrap().unwrap();
    assert_eq!(held.from, old.id);
    let last = world.keys.make(&KeyOwner::Cluster);
    world.keys.hand_over(shared, &held, &last);
    world.keys.destroy(&heir);
    assert!(read(&world.store, shared, 0..length).await.unwrap() == content);
    // What somebody else was given opens nothing here.
    let handed = world.keys.handed.lock()[&shared].clone();
    world.keys.handed.lock().insert(own, handed);
    assert!(read(&world.store, own, 0..length).await.is_err());
}

#[tokio::test]
async fn whether_an_object_lasts_is_not_told_by_old_rows() {
    let world = World::new();
    let owner = project("p");
    let data = world.keys.make(&owner);
    let key = blob();
    world.store.put(key, &owner, content(100)).await.unwrap();
    assert!(world.store.lasts(key).await.unwrap());
    *world.keys.unheard.lock() = Some((data.id, FoundKey::Retired(data.clone())));
    assert!(!world.store.lasts(key).await.unwrap(), "its project was removed at another node");
}

#[tokio::test]
async fn a_damaged_beginning_is_one_objects_trouble() {
    let world = World::new();
    let owner = project("p");
    let data = world.keys.make(&owner);
    let content = content(SEGMENT);
    let key = ObjectKey::Pack(PackId::of(&content));
    put_once(&world.store, key, &owner, content.clone()).await.unwrap();
    // Its key can still be told, and is not the one that made this.
    let mut damaged = world.stored(key).await.to_vec();
    damaged[HEADER_BYTES as usize - 1] ^= 1;
    world.forge(key, damaged.clone()).await;
    assert!(!world.store.lasts(key).await.unwrap());
    put_once(&world.store, key, &owner, content.clone()).await.unwrap();
    assert!(read(&world.store, key, 0..SEGMENT_BYTES).await.unwrap() == content);

    world.forge(key, damaged).await;
    world.keys.retire(&data);
    for look in [Look::Remembered, Look::Anew] {
        assert!(world.store.going(key, look).await.unwrap().is_none());
    }
    world.keys.destroy(&data);
    assert!(world.store.going(key, Look::Anew).await.unwrap().is_none());
}

fn cached(world: &World, folder: &Path) -> SealedStore {
    let cache = CachedStore::open(
        world.plain.clone(),
        folder,
        64 * 1024 * 1024,
        crate::metrics::CacheReads::default(),
        &mut prometheus_client::registry::Registry::default(),
    );
    SealedStore::new(Arc::new(cache.unwrap()), world.plain.clone(), world.keys.clone())
}

#[tokio::test]
async fn a_cache_holds_sealed_bytes_and_one_of_an_older_object_mends_itself() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let here = cached(&world, folder.path());
    let content = content(5 * 1024 * 1024);
    let (key, length) = (ObjectKey::Pack(PackId::of(&content)), content.len() as u64);
    world.store.put(key, &KeyOwner::Cluster, content.clone()).await.unwrap();
    assert!(read(&here, key, 0..100).await.unwrap() == content[..100]);
    for file in std::fs::read_dir(folder.path()).unwrap() {
        assert!(!holds(&std::fs::read(file.unwrap().path()).unwrap(), &content));
    }
    // Another node stores the same pack again, for somebody else; a part of it is cached here.
    let other = project("q");
    world.keys.make(&other);
    world.store.put(key, &other, content.clone()).await.unwrap();
    assert!(read(&here, key, 0..length).await.unwrap() == content);
    assert!(read(&here, key, 0..length).await.unwrap() == content);
}

/// Storage that can be away.
#[derive(Debug)]
struct Away {
    inner: Arc<dyn BlobStore>,
    is_away: Arc<AtomicBool>,
}

impl Away {
    fn there(&self) -> Result<&dyn BlobStore, StoreError> {
        match self.is_away.load(Ordering::Relaxed) {
            false => Ok(&*self.inner),
            true => {
                Err(StoreError::Unavailable { doing: "reading", cause: "it is away".to_owned() })
            }
        }
    }
}

#[async_trait]
impl BlobStore for Away {
    async fn put(&self, key: ObjectKey, under: &KeyOwner, bytes: Bytes) -> Result<(), StoreError> {
        self.there()?.put(key, under, bytes).await
    }

    async fn begin(&self, key: ObjectKey, under: &KeyOwner) -> Result<String, StoreError> {
        self.there()?.begin(key, under).await
    }

    async fn put_part(
        &self,
        key: ObjectKey,
        multipart: &str,
        number: u32,
        offset: u64,
        bytes: Bytes,
    ) -> Result<StoredPart, StoreError> {
        self.there()?.put_part(key, multipart, number, offset, bytes).await
    }

    async fn complete(
        &self,
        key: ObjectKey,
        multipart: &str,
        parts: &[StoredPart],
    ) -> Result<Completion, StoreError> {
        self.there()?.complete(key, multipart, parts).await
    }

    async fn abort_stale(
        &self,
        begun_before: Timestamp,
        named: &BTreeSet<String>,
    ) -> Result<u64, StoreError> {
        self.there()?.abort_stale(begun_before, named).await
    }

    async fn abort(&self, key: ObjectKey, multipart: &str) -> Result<(), StoreError> {
        self.there()?.abort(key, multipart).await
    }

    async fn get(&self, key: ObjectKey, range: Range<u64>) -> Result<ByteStream, StoreError> {
        self.there()?.get(key, range).await
    }

    async fn length(&self, key: ObjectKey) -> Result<Option<u64>, StoreError> {
        self.there()?.length(key).await
    }

    async fn lasts(&self, key: ObjectKey) -> Result<bool, StoreError> {
        self.there()?.lasts(key).await
    }

    async fn forget(&self, key: ObjectKey) {
        self.inner.forget(key).await;
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<(), StoreError> {
        self.there()?.delete(keys).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<ObjectKey>,
        limit: usize,
    ) -> Result<Vec<StoredObject>, StoreError> {
        self.there()?.list(prefix, after, limit).await
    }

    async fn owner(&self) -> Result<Option<Bytes>, StoreError> {
        self.there()?.owner().await
    }

    async fn set_owner(&self, over: Option<&Bytes>, owner: Bytes) -> Result<bool, StoreError> {
        self.there()?.set_owner(over, owner).await
    }

    async fn usage(&self) -> Result<Usage, StoreError> {
        self.there()?.usage().await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.there()?.probe().await
    }
}

#[tokio::test]
async fn a_cache_serves_on_while_storage_is_away() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let is_away = Arc::new(AtomicBool::new(false));
    let storage = Arc::new(Away { inner: world.plain.clone(), is_away: is_away.clone() });
    let cache = CachedStore::open(
        storage.clone(),
        folder.path(),
        64 * 1024 * 1024,
        crate::metrics::CacheReads::default(),
        &mut prometheus_client::registry::Registry::default(),
    );
    // What it remembers counts for no time at all.
    let front = Arc::new(cache.unwrap());
    let here = SealedStore::remembering(Duration::ZERO, front, storage, world.keys.clone());
    let content = content(SEGMENT + 9);
    let length = content.len() as u64;
    let keys = [blob(), ObjectKey::Pack(PackId::of(&content))];
    for key in keys {
        world.store.put(key, &KeyOwner::Cluster, content.clone()).await.unwrap();
        assert!(read(&here, key, 0..length).await.unwrap() == content);
    }
    is_away.store(true, Ordering::Relaxed);
    for key in keys {
        assert!(read(&here, key, 0..length).await.unwrap() == content);
        assert!(here.length(key).await.is_err(), "whether it is there, storage says");
    }
    let unread = read(&here, blob(), 0..1).await;
    assert!(matches!(unread, Err(StoreError::Unavailable { .. })), "{unread:?}");
}

#[tokio::test]
async fn what_was_there_as_it_is_may_be_sealed_a_moment_later() {
    let world = World::new();
    let content = content(3 * SEGMENT);
    let key = ObjectKey::Pack(PackId::of(&content));
    world.forge(key, content.clone()).await;
    assert!(read(&world.store, key, 0..100).await.unwrap() == content[..100]);
    // Another node stores it again.
    let other = SealedStore::new(world.plain.clone(), world.plain.clone(), world.keys.clone());
    other.put(key, &KeyOwner::Cluster, content.clone()).await.unwrap();
    assert!(read(&world.store, key, 0..100).await.unwrap() == content[..100]);
}

#[tokio::test]
async fn what_is_named_by_its_content_is_stored_once_while_it_lasts() {
    let world = World::new();
    let (first, second) = (project("p"), project("q"));
    let (old, _) = (world.keys.make(&first), world.keys.make(&second));
    let content = content(SEGMENT + 1);
    let key = ObjectKey::Recipe(RecipeId::of(&content));
    put_once(&world.store, key, &first, content.clone()).await.unwrap();
    let stored = world.stored(key).await;
    put_once(&world.store, key, &second, content.clone()).await.unwrap();
    assert!(world.stored(key).await == stored, "it was sealed anew in its place");
    world.keys.retire(&old);
    put_once(&world.store, key, &second, content.clone()).await.unwrap();
    assert!(world.stored(key).await != stored, "it goes with a key that is to be destroyed");
    assert!(world.store.lasts(key).await.unwrap());
    world.forge(key, stored.slice(..100)).await;
    put_once(&world.store, key, &second, content.clone()).await.unwrap();
    assert!(read(&world.store, key, 0..content.len() as u64).await.unwrap() == content);
}

#[tokio::test]
async fn the_same_content_becomes_the_same_bytes_whoever_stores_it_again() {
    let world = World::new();
    let content = content(SEGMENT + 1);
    let key = ObjectKey::Recipe(RecipeId::of(&content));
    world.store.put(key, &KeyOwner::Cluster, content.clone()).await.unwrap();
    let first = world.stored(key).await;
    world.store.put(key, &KeyOwner::Cluster, content.clone()).await.unwrap();
    assert!(world.stored(key).await == first);
}
