//! Objects as files in a folder.
//!
//! Layout: `objects/KEY` for published objects, `partial/UUID` for what is being written. Crash
//! order: write the partial file, sync it, rename it to its key, sync the key's folder. A partial
//! file that a crash left behind is removed at the next start once it is old.
//!
//! A multipart upload is one partial file that parts are written into at their offsets, so that
//! completing it copies nothing.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
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
/// The pieces that a read streams, in bytes.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces read ahead of a slow reader.
const PIECES_AHEAD_MAX: usize = 4;

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct FolderStore {
    objects: PathBuf,
    partial: PathBuf,
    reserve_bytes: u64,
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
        };
        store.prepare().map_err(|error| StoreError::Folder { doing: "opening it", error })?;
        Ok(store)
    }

    fn prepare(&self) -> io::Result<()> {
        fs::create_dir_all(&self.objects)?;
        fs::create_dir_all(&self.partial)?;
        for entry in fs::read_dir(&self.partial)? {
            let entry = entry?;
            let age = SystemTime::now().duration_since(entry.metadata()?.modified()?);
            if age.is_ok_and(|age| age > PARTIAL_AGE_MAX) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn path(&self, key: ObjectKey) -> PathBuf {
        self.objects.join(key.to_string())
    }

    fn partial_path(&self, multipart: &str) -> Result<PathBuf, StoreError> {
        // The name comes back from the metadata, but a path is never made of unchecked text.
        let id = Uuid::try_parse(multipart).map_err(|_| StoreError::Multipart)?;
        Ok(self.partial.join(id.simple().to_string()))
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

    /// Syncs `partial` and moves it to its key.
    fn publish(&self, partial: &Path, file: &File, key: ObjectKey) -> io::Result<()> {
        file.sync_all()?;
        let path = self.path(key);
        let folder = path.parent().unwrap_or(&self.objects);
        make_folder(folder, &self.objects)?;
        fs::rename(partial, &path)?;
        File::open(folder)?.sync_all()
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

    fn put_part_now(&self, multipart: &str, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.ensure_space(bytes.len() as u64)?;
        let path = self.partial_path(multipart)?;
        let file = OpenOptions::new().write(true).open(&path).map_err(missing_multipart)?;
        direct::write_at(&path, &file, bytes, offset).map_err(self.failed("writing a part"))?;
        // A part is acknowledged to the metadata, so it must be there after a crash.
        file.sync_data().map_err(self.failed("syncing a part"))
    }

    fn complete_now(
        &self,
        key: ObjectKey,
        multipart: &str,
        length: u64,
    ) -> Result<Completion, StoreError> {
        let path = self.partial_path(multipart)?;
        let file = match OpenOptions::new().write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.path(key).exists() => {
                return Ok(Completion::Before);
            }
            opened => opened.map_err(missing_multipart)?,
        };
        let failed = self.failed("publishing an object");
        let metadata = file.metadata().map_err(&failed)?;
        if metadata.len() < length {
            return Err(StoreError::Multipart);
        }
        // A part that was sent again, shorter, may have left bytes behind the end.
        file.set_len(length).map_err(&failed)?;
        self.publish(&path, &file, key).map_err(failed)?;
        Ok(Completion::Now)
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
            let Ok(changed) = entry.metadata().and_then(|metadata| metadata.modified()) else {
                // It was published or dropped since the folder was read.
                continue;
            };
            let name = entry.file_name().to_string_lossy().into_owned();
            if timestamp(changed) < before && !named.contains(&name) {
                match fs::remove_file(entry.path()) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    removed => {
                        removed.map_err(&failed)?;
                        dropped += 1;
                    }
                }
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
                names.retain(|name| may_hold(&self.text(name), prefix));
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

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(since.as_millis() as u64)
}

fn missing_multipart(error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::NotFound => StoreError::Multipart,
        _ => StoreError::Folder { doing: "opening a multipart upload", error },
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

/// Reads `range` in pieces and hands them to `send` until it is told to stop.
fn stream(mut file: File, range: Range<u64>, send: impl Fn(io::Result<Bytes>) -> bool) {
    let mut left = range.end - range.start;
    if let Err(error) = file.seek(SeekFrom::Start(range.start)) {
        send(Err(error));
        return;
    }
    while left > 0 {
        let mut piece = vec![0; left.min(PIECE_BYTES as u64) as usize];
        let read = file.read_exact(&mut piece).map(|()| Bytes::from(piece));
        left -= left.min(PIECE_BYTES as u64);
        let ended = read.is_err();
        if !send(read) || ended {
            return;
        }
    }
}

#[async_trait]
impl BlobStore for FolderStore {
    #[instrument(name = "storage.put", level = "debug", skip_all)]
    async fn put(&self, key: ObjectKey, _: &KeyOwner, bytes: Bytes) -> Result<(), StoreError> {
        self.blocking(move |store| store.put_now(key, &bytes)).await
    }

    #[instrument(name = "storage.begin", level = "debug", skip_all)]
    async fn begin(&self, _: ObjectKey, _: &KeyOwner) -> Result<String, StoreError> {
        self.blocking(|store| {
            store.ensure_space(0)?;
            let id = Uuid::new_v4().simple().to_string();
            let created = File::create_new(store.partial.join(&id)).and_then(|file| {
                file.sync_all()?;
                File::open(&store.partial)?.sync_all()
            });
            created.map_err(store.failed("beginning a multipart upload"))?;
            Ok(id)
        })
        .await
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
        self.blocking(move |store| store.put_part_now(&multipart, offset, &bytes)).await?;
        Ok(StoredPart { number, tag: format!("{offset}"), length })
    }

    #[instrument(name = "storage.complete", level = "debug", skip_all)]
    async fn complete(
        &self,
        key: ObjectKey,
        multipart: &str,
        parts: &[StoredPart],
    ) -> Result<Completion, StoreError> {
        let mut end = 0;
        for part in parts {
            // The tag is the part's offset: parts must follow each other without a gap.
            if part.tag.parse() != Ok(end) {
                return Err(StoreError::Multipart);
            }
            end += part.length;
        }
        let multipart = multipart.to_owned();
        self.blocking(move |store| store.complete_now(key, &multipart, end)).await
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
        self.blocking(move |store| match fs::remove_file(store.partial_path(&multipart)?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(store.failed("aborting a multipart upload")(error))
            }
            _ => Ok(()),
        })
        .await
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
        let (sender, receiver) = tokio::sync::mpsc::channel(PIECES_AHEAD_MAX);
        tokio::task::spawn_blocking(move || {
            stream(file, range, |piece| sender.blocking_send(piece).is_ok());
        });
        let pieces = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let wrap = |error| StoreError::Folder { doing: "reading an object", error };
        Ok(pieces.map(move |piece| piece.map_err(wrap)).boxed())
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
                match fs::remove_file(store.path(key)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(store.failed("deleting an object")(error));
                    }
                    _ => {}
                }
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
    use super::super::check_conformance;
    use super::*;

    #[tokio::test]
    async fn the_folder_store_conforms() {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore::open(folder.path(), 0).unwrap();
        check_conformance(&store).await.unwrap();
        assert_eq!(fs::read_dir(folder.path().join("partial")).unwrap().count(), 0);
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
}
