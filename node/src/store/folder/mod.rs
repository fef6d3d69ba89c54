//! Objects as files in a folder.
//!
//! Layout: `objects/KEY` for published objects, `partial/UUID` for what is being written, and
//! `shoal-owner.json`, which says whose they are. Crash order: write the partial file, sync it, rename
//! it to its key, sync the key's folder. A partial file that a crash left behind is removed at the next
//! start once it is old.
//!
//! Invariant: no thread waits for whoever reads or writes an object. There are few (tokio's pool for
//! blocking calls), the cluster's log needs them, too, and a client may stand still for as long as
//! it likes.

mod multipart;
mod owner;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use moka::sync::Cache;
use shoal_content::{ObjectKey, Timestamp};
use shoal_metadata::KeyOwner;
use tracing::instrument;
use uuid::Uuid;

use super::{
    BlobStore, ByteStream, Completion, StoreError, StoredObject, StoredPart, Usage, direct,
};

/// Free space that is never used: the system under the folder needs some to live.
pub const RESERVE_BYTES_DEFAULT: u64 = 64 * 1024 * 1024;
/// A partial file untouched for so long belongs to nobody: uploads expire sooner.
const PARTIAL_AGE_MAX: Duration = Duration::from_secs(48 * 3600);
/// The pieces that a read streams, in bytes; each takes a call to another thread.
const PIECE_BYTES: usize = 512 * 1024;
/// Pieces of one reader that are read, or wait for it: one comes while it is busy with another.
const PIECES_AHEAD: usize = 2;

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct FolderStore {
    objects: PathBuf,
    partial: PathBuf,
    reserve_bytes: u64,
    /// Names the files that it alone writes parts to; another one after each start.
    process: Uuid,
    /// Multipart uploads that began here.
    begun: Cache<Uuid, ()>,
}

impl FolderStore {
    /// Opens the store in `folder`, making what is missing.
    ///
    /// # Errors
    /// Where the folder cannot be made or read.
    pub fn open(folder: &Path, reserve_bytes: u64) -> Result<Self, StoreError> {
        let store = Self {
            objects: folder.join("objects"),
            partial: folder.join("partial"),
            reserve_bytes,
            process: Uuid::new_v4(),
            // Those that other nodes end must not crowd out new ones.
            begun: Cache::builder()
                .max_capacity(multipart::BEGUN_MAX)
                .time_to_live(PARTIAL_AGE_MAX)
                .eviction_policy(moka::policy::EvictionPolicy::lru())
                .build(),
        };
        store.prepare().map_err(|error| StoreError::Folder { doing: "opening it", error })?;
        Ok(store)
    }

    fn prepare(&self) -> io::Result<()> {
        fs::create_dir_all(&self.objects)?;
        fs::create_dir_all(&self.partial)?;
        for entry in fs::read_dir(&self.partial)? {
            let entry = entry?;
            let age = SystemTime::now().duration_since(self.changed(&entry)?);
            if age.is_ok_and(|age| age > PARTIAL_AGE_MAX) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    fn path(&self, key: ObjectKey) -> PathBuf {
        self.objects.join(key.to_string())
    }

    /// When a partial file was last written, or what it belongs to: a multipart upload may go on in
    /// another one.
    fn changed(&self, entry: &fs::DirEntry) -> io::Result<SystemTime> {
        let own = entry.metadata()?.modified()?;
        let name = entry.file_name();
        let upload = self.partial.join(multipart::upload_of(&name.to_string_lossy()));
        let whole = fs::metadata(upload).and_then(|metadata| metadata.modified());
        Ok(whole.map_or(own, |whole| whole.max(own)))
    }

    /// Refuses before the reserve is touched.
    fn ensure_space(&self, wanted: u64) -> Result<(), StoreError> {
        let stat = nix::sys::statvfs::statvfs(&self.partial).map_err(|errno| {
            StoreError::Folder { doing: "asking for free space", error: errno.into() }
        })?;
        let free = stat.blocks_available() * stat.fragment_size();
        if free < wanted.saturating_add(self.reserve_bytes) {
            return Err(self.full());
        }
        Ok(())
    }

    fn full(&self) -> StoreError {
        StoreError::Full(format!(
            "no space left in the storage folder (at least {} MiB are kept free); remove images or give it more space",
            self.reserve_bytes >> 20
        ))
    }

    fn failed(&self, doing: &'static str) -> impl Fn(io::Error) -> StoreError + '_ {
        move |error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => self.full(),
            _ => StoreError::Folder { doing, error },
        }
    }

    /// Syncs `file`, and makes the folder of its key; gives its path.
    fn settle(&self, file: &File, key: ObjectKey) -> io::Result<PathBuf> {
        file.sync_all()?;
        let path = self.path(key);
        make_folder(path.parent().unwrap_or(&self.objects), &self.objects)?;
        Ok(path)
    }

    /// Syncs `partial` and moves it to its key.
    fn publish(&self, partial: &Path, file: &File, key: ObjectKey) -> io::Result<()> {
        let path = self.settle(file, key)?;
        fs::rename(partial, &path)?;
        File::open(path.parent().unwrap_or(&self.objects))?.sync_all()
    }

    fn put_now(&self, key: ObjectKey, bytes: &[u8]) -> Result<(), StoreError> {
        self.ensure_space(bytes.len() as u64)?;
        let partial = self.partial.join(Uuid::new_v4().simple().to_string());
        let written = (|| {
            let file = OpenOptions::new().write(true).create_new(true).open(&partial)?;
            direct::write_at(&partial, &file, bytes, 0)?;
            self.publish(&partial, &file, key)
        })();
        written.map_err(|error| {
            // Nobody knows the name, so nobody misses the file.
            let _ = fs::remove_file(&partial);
            self.failed("writing an object")(error)
        })
    }

    /// Partial files count by their last change: they may be of a `put` under way.
    fn abort_stale_now(
        &self,
        before: Timestamp,
        named: &BTreeSet<String>,
    ) -> Result<u64, StoreError> {
        let failed = self.failed("looking for abandoned uploads");
        let mut dropped = 0;
        for entry in fs::read_dir(&self.partial).map_err(&failed)? {
            let entry = entry.map_err(&failed)?;
            let Ok(changed) = self.changed(&entry) else {
                // It was published or dropped since the folder was read.
                continue;
            };
            let name = entry.file_name();
            let is_named = named.contains(multipart::upload_of(&name.to_string_lossy()));
            if timestamp(changed) < before && !is_named {
                dropped += u64::from(remove(&entry.path()).map_err(&failed)?);
            }
        }
        Ok(dropped)
    }

    fn list_now(
        &self,
        prefix: &str,
        after: Option<ObjectKey>,
        limit: usize,
    ) -> Result<Vec<StoredObject>, StoreError> {
        let failed = self.failed("listing objects");
        let after = after.map(|key| key.to_string()).unwrap_or_default();
        let mut found = Vec::new();
        let mut folders = vec![self.objects.clone()];
        // Depth first with the names of each folder in reverse gives byte order, since no key is
        // another one's folder.
        while let Some(path) = folders.pop() {
            if path.is_dir() {
                let entries = fs::read_dir(&path).map_err(&failed)?;
                let mut names = entries
                    .map(|entry| entry.map(|entry| entry.path()))
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(&failed)?;
                names.sort_unstable_by(|a, b| b.cmp(a));
                // Else each page of a long list would look at all that is before it.
                names.retain(|name| {
                    let text = self.text(name);
                    may_hold(&text, prefix) && may_follow(&text, &after)
                });
                folders.extend(names);
                continue;
            }
            let text = self.text(&path);
            let Ok(key) = text.parse() else { continue };
            if text.starts_with(prefix) && text > after {
                let metadata = match fs::metadata(&path) {
                    // It was deleted since the folder was read.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    metadata => metadata.map_err(&failed)?,
                };
                let stored_at = timestamp(metadata.modified().map_err(&failed)?);
                found.push(StoredObject { key, length: metadata.len(), stored_at });
                if found.len() == limit {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// The key text of a path below `objects`.
    fn text(&self, path: &Path) -> String {
        let below = path.strip_prefix(&self.objects).unwrap_or(path);
        below.to_string_lossy().into_owned()
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.map_err(|error| StoreError::Folder {
            doing: "running a task",
            error: io::Error::other(error),
        })?
    }
}

/// Whether a file or folder named `text` can be, or hold, something that starts with `prefix`.
fn may_hold(text: &str, prefix: &str) -> bool {
    text.starts_with(prefix) || prefix.starts_with(text)
}

/// Whether a file or folder named `text` can be, or hold, something that comes after `after`.
fn may_follow(text: &str, after: &str) -> bool {
    // What is in a folder has `/` behind its name, which `0` follows.
    text.bytes().chain([b'0']).gt(after.bytes())
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(since.as_millis() as u64)
}

/// Whether the file was there until now.
fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        removed => removed.map(|()| true),
    }
}

/// Makes `folder` below `root`, syncing each folder that got a new name.
fn make_folder(folder: &Path, root: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().unwrap_or(root);
    if folder != root {
        make_folder(parent, root)?;
    }
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(parent)?.sync_all()
}

/// The bytes of `range`, of which all are in the file.
fn pieces(file: File, range: Range<u64>) -> impl Stream<Item = io::Result<Bytes>> {
    let (file, end) = (Arc::new(file), range.end);
    let pieces = stream::iter(range.step_by(PIECE_BYTES)).map(move |start| {
        let file = Arc::clone(&file);
        let length = (end - start).min(PIECE_BYTES as u64) as usize;
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; length];
            file.read_exact_at(&mut piece, start).map(|()| Bytes::from(piece))
        });
        async move { read.await.map_err(io::Error::other)? }
    });
    pieces.buffered(PIECES_AHEAD)
}

#[async_trait]
impl BlobStore for FolderStore {
    #[instrument(name = "storage.put", level = "debug", skip_all)]
    async fn put(&self, key: ObjectKey, _: &KeyOwner, bytes: Bytes) -> Result<(), StoreError> {
        self.blocking(move |store| store.put_now(key, &bytes)).await
    }

    #[instrument(name = "storage.begin", level = "debug", skip_all)]
    async fn begin(&self, _: ObjectKey, _: &KeyOwner) -> Result<String, StoreError> {
        self.blocking(Self::begin_now).await
    }

    #[instrument(name = "storage.put_part", level = "debug", skip_all)]
    async fn put_part(
        &self,
        _: ObjectKey,
        multipart: &str,
        number: u32,
        offset: u64,
        bytes: Bytes,
    ) -> Result<StoredPart, StoreError> {
        let (multipart, length) = (multipart.to_owned(), bytes.len() as u64);
        let put = self.blocking(move |store| store.put_part_now(&multipart, offset, &bytes));
        Ok(StoredPart { number, tag: put.await?.to_string(), length })
    }

    #[instrument(name = "storage.complete", level = "debug", skip_all)]
    async fn complete(
        &self,
        key: ObjectKey,
        multipart: &str,
        parts: &[StoredPart],
    ) -> Result<Completion, StoreError> {
        let (multipart, parts) = (multipart.to_owned(), parts.to_vec());
        self.blocking(move |store| store.complete_now(key, &multipart, &parts)).await
    }

    async fn abort_stale(
        &self,
        begun_before: Timestamp,
        named: &BTreeSet<String>,
    ) -> Result<u64, StoreError> {
        let named = named.clone();
        self.blocking(move |store| store.abort_stale_now(begun_before, &named)).await
    }

    async fn abort(&self, _: ObjectKey, multipart: &str) -> Result<(), StoreError> {
        let multipart = multipart.to_owned();
        self.blocking(move |store| store.abort_now(&multipart)).await
    }

    #[instrument(name = "storage.get", level = "debug", skip_all)]
    async fn get(&self, key: ObjectKey, range: Range<u64>) -> Result<ByteStream, StoreError> {
        let (start, end) = (range.start, range.end);
        let file = self
            .blocking(move |store| {
                let file = File::open(store.path(key)).map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => StoreError::NotFound(key),
                    _ => StoreError::Folder { doing: "opening an object", error },
                })?;
                let metadata = file.metadata().map_err(store.failed("opening an object"))?;
                if start > end || end > metadata.len() {
                    return Err(StoreError::Range { key, start, end });
                }
                Ok(file)
            })
            .await?;
        let wrap = |error| StoreError::Folder { doing: "reading an object", error };
        Ok(pieces(file, range).map(move |piece| piece.map_err(wrap)).boxed())
    }

    #[instrument(name = "storage.length", level = "debug", skip_all)]
    async fn length(&self, key: ObjectKey) -> Result<Option<u64>, StoreError> {
        self.blocking(move |store| match fs::metadata(store.path(key)) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(store.failed("looking an object up")(error)),
        })
        .await
    }

    async fn lasts(&self, key: ObjectKey) -> Result<bool, StoreError> {
        Ok(self.length(key).await?.is_some())
    }

    async fn forget(&self, _: ObjectKey) {}

    #[instrument(name = "storage.delete", level = "debug", skip_all)]
    async fn delete(&self, keys: &[ObjectKey]) -> Result<(), StoreError> {
        let keys = keys.to_vec();
        self.blocking(move |store| {
            for key in keys {
                remove(&store.path(key)).map_err(store.failed("deleting an object"))?;
            }
            Ok(())
        })
        .await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<ObjectKey>,
        limit: usize,
    ) -> Result<Vec<StoredObject>, StoreError> {
        let prefix = prefix.to_owned();
        self.blocking(move |store| store.list_now(&prefix, after, limit)).await
    }

    async fn owner(&self) -> Result<Option<Bytes>, StoreError> {
        self.blocking(Self::owner_now).await
    }

    async fn set_owner(&self, over: Option<&Bytes>, owner: Bytes) -> Result<bool, StoreError> {
        let over = over.cloned();
        self.blocking(move |store| store.set_owner_now(over.as_ref(), &owner)).await
    }

    /// As `df` says it: the folder's file system may hold other things, too.
    async fn usage(&self) -> Result<Usage, StoreError> {
        self.blocking(|store| {
            let stat = nix::sys::statvfs::statvfs(&store.objects).map_err(|errno| {
                StoreError::Folder { doing: "asking for its size", error: errno.into() }
            })?;
            let used = (stat.blocks() - stat.blocks_free()) * stat.fragment_size();
            let available = stat.blocks_available() * stat.fragment_size();
            Ok(Usage { used_bytes: Some(used), total_bytes: Some(used + available) })
        })
        .await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.blocking(|store| {
            fs::metadata(&store.objects).map(drop).map_err(store.failed("looking at it"))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::super::{check_conformance, check_owner};
    use super::*;

    #[tokio::test]
    async fn the_folder_store_conforms() {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore::open(folder.path(), 0).unwrap();
        check_conformance(&store).await.unwrap();
        check_owner(&store).await.unwrap();
        assert!(store.list("", None, 1).await.unwrap().is_empty(), "the owner is an object");
        assert_eq!(fs::read_dir(folder.path().join("partial")).unwrap().count(), 0);
    }

    #[test]
    fn a_page_leaves_out_what_lies_before_it() {
        for (text, after) in [
            ("blobs", ""),
            ("blobs/01", "blobs/01/b"),
            ("blobs/01/b", "blobs/01/a"),
            ("blobs/02", "blobs/01/b"),
            ("packs", "blobs/01/b"),
            // `-` comes before the slash.
            ("a", "a-b"),
        ] {
            assert!(may_follow(text, after), "{text} after {after}");
        }
        for (text, after) in [
            ("blobs/00", "blobs/01/b"),
            ("blobs/01/a", "blobs/01/b"),
            ("blobs", "packs/00/a"),
            ("a", "a0"),
        ] {
            assert!(!may_follow(text, after), "{text} after {after}");
        }
    }

    #[tokio::test]
    async fn pages_of_a_list_are_the_whole_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore::open(folder.path(), 0).unwrap();
        let pack = |number: u8| ObjectKey::Pack(shoal_content::PackId::of(&[number]));
        let recipe = |number: u8| ObjectKey::Recipe(shoal_content::RecipeId::of(&[number]));
        let mut keys: Vec<ObjectKey> = (0..40).flat_map(|at| [pack(at), recipe(at)]).collect();
        for key in &keys {
            store.put(*key, &KeyOwner::Cluster, Bytes::from_static(b"x")).await.unwrap();
        }
        keys.sort_unstable_by_key(ToString::to_string);
        for size in [1, 3, 80, 100] {
            let (mut found, mut after) = (Vec::new(), None);
            loop {
                let page = store.list("", after, size).await.unwrap();
                let Some(last) = page.last() else { break };
                after = Some(last.key);
                found.extend(page.iter().map(|object| object.key));
            }
            assert_eq!(found, keys, "{size} at once");
        }
    }

    #[tokio::test]
    async fn the_reserve_is_never_touched() {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore::open(folder.path(), u64::MAX / 2).unwrap();
        let key = ObjectKey::Pack(shoal_content::PackId::of(b"x"));
        let error = store.put(key, &KeyOwner::Cluster, Bytes::from_static(b"x")).await.unwrap_err();
        assert!(error.is_full(), "{error}");
        assert_eq!(store.length(key).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_multipart_name_is_no_path() {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore::open(folder.path(), 0).unwrap();
        let key = ObjectKey::Pack(shoal_content::PackId::of(b"x"));
        let error = store.abort(key, "../objects").await.unwrap_err();
        assert!(matches!(error, StoreError::Multipart));
    }
    /// As clients leave them that take nothing more; the pool has no more threads than this one.
    #[test]
    fn readers_that_stand_still_hold_no_thread() {
        const LENGTH: usize = 8 << 20;
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().max_blocking_threads(2).build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let store = FolderStore::open(folder.path(), 0).unwrap();
            let content: Bytes = (0..LENGTH).map(|at| (at / 5) as u8).collect::<Vec<_>>().into();
            let key = ObjectKey::Pack(shoal_content::PackId::of(&content));
            store.put(key, &KeyOwner::Cluster, content.clone()).await.unwrap();
            let mut readers = Vec::new();
            for _ in 0..8 {
                let begun = async {
                    let mut pieces = store.get(key, 0..LENGTH as u64).await.unwrap();
                    (pieces.next().await.unwrap().unwrap(), pieces)
                };
                let begun = tokio::time::timeout(Duration::from_secs(20), begun).await;
                readers.push(begun.expect("a reader waits for those that stand still"));
            }
            for (first, pieces) in readers {
                let rest: Vec<Bytes> = pieces.map(Result::unwrap).collect().await;
                assert!([&first[..], &rest.concat()[..]].concat() == content);
            }
        });
    }
}
