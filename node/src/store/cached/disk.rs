//! Windows as files: the content, then its BLAKE3. A torn or damaged file does not match and is
//! removed, so nothing needs to be synced.
//!
//! Invariants: the files take at most the bytes allowed, and leave [`FREE_BYTES_MIN`] free; the
//! least recently used go first. Failures are logged and otherwise a miss.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use shoal_content::ObjectKey;
use tracing::{debug, warn};

use super::WindowId;
use crate::metrics::gauge;

const HASH_BYTES: usize = 32;
/// Space that the rest of the node needs.
const FREE_BYTES_MIN: u64 = 1024 * 1024 * 1024;
/// Object keys have slashes, file names do not.
const SLASH: &str = "+";

/// See the module's documentation. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Disk(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    bytes_max: u64,
    index: Mutex<Index>,
}

#[derive(Debug, Default)]
struct Index {
    /// In order: whoever writes an object looks for its windows among those of all others.
    files: BTreeMap<WindowId, Entry>,
    /// By last use, the oldest first.
    order: BTreeMap<u64, WindowId>,
    uses: u64,
    bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    bytes: u64,
    used: u64,
}

impl Index {
    fn touch(&mut self, id: WindowId) {
        self.uses += 1;
        if let Some(entry) = self.files.get_mut(&id) {
            self.order.remove(&entry.used);
            entry.used = self.uses;
            self.order.insert(self.uses, id);
        }
    }

    fn insert(&mut self, id: WindowId, bytes: u64) {
        self.remove(id);
        self.uses += 1;
        self.files.insert(id, Entry { bytes, used: self.uses });
        self.order.insert(self.uses, id);
        self.bytes += bytes;
    }

    fn remove(&mut self, id: WindowId) {
        if let Some(entry) = self.files.remove(&id) {
            self.order.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }

    fn windows_of(&self, key: ObjectKey) -> Vec<WindowId> {
        let all = WindowId { key, number: 0 }..=WindowId { key, number: u64::MAX };
        self.files.range(all).map(|(id, _)| *id).collect()
    }

    /// Takes out what must go so that `bytes` more fit into `bytes_max`.
    fn make_room(&mut self, bytes: u64, bytes_max: u64) -> Vec<WindowId> {
        let mut gone = Vec::new();
        while self.bytes + bytes > bytes_max {
            let Some((_, &oldest)) = self.order.first_key_value() else { break };
            self.remove(oldest);
            gone.push(oldest);
        }
        gone
    }
}

impl Disk {
    pub(super) fn open(folder: &Path, bytes_max: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut found = Vec::new();
        for file in fs::read_dir(folder)? {
            let file = file?;
            let metadata = file.metadata()?;
            match file.file_name().to_str().and_then(parse) {
                Some(id) => found.push((metadata.modified()?, id, metadata.len())),
                // Half-written when the node ended, or not ours to serve.
                None => drop(fs::remove_file(file.path())),
            }
        }
        found.sort_unstable();
        let mut index = Index::default();
        found.into_iter().for_each(|(_, id, bytes)| index.insert(id, bytes));
        let gone = index.make_room(0, bytes_max);
        let shared = Shared { folder: folder.into(), bytes_max, index: Mutex::new(index) };
        gone.into_iter().for_each(|id| shared.delete(id));
        Ok(Self(Arc::new(shared)))
    }

    /// A window, if it is here and whole.
    pub(super) async fn read(&self, id: WindowId) -> Option<Bytes> {
        {
            let mut index = self.0.index.lock();
            index.files.get(&id)?;
            index.touch(id);
        }
        let shared = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || shared.read(id)).await.ok().flatten()
    }

    pub(super) async fn write(&self, id: WindowId, bytes: Bytes) {
        let shared = Arc::clone(&self.0);
        // A runtime that shuts down needs no cache.
        let _ = tokio::task::spawn_blocking(move || shared.write(id, &bytes)).await;
    }

    /// Removes all of an object.
    pub(super) async fn forget(&self, key: ObjectKey) {
        let held: Vec<WindowId> = {
            let mut index = self.0.index.lock();
            let held = index.windows_of(key);
            held.iter().for_each(|&id| index.remove(id));
            held
        };
        if held.is_empty() {
            return;
        }
        let shared = Arc::clone(&self.0);
        let remove = move || held.into_iter().for_each(|id| shared.delete(id));
        let _ = tokio::task::spawn_blocking(remove).await;
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.index.lock().bytes
    }
}

impl Collector for Disk {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let shared = &self.0;
        gauge(&mut encoder, "shoal_cache_used_bytes", "Bytes in the cache", Some(self.bytes()))?;
        let help = "Bytes that the cache may take";
        gauge(&mut encoder, "shoal_cache_total_bytes", help, Some(shared.bytes_max))
    }
}

impl Shared {
    fn path(&self, id: WindowId) -> PathBuf {
        self.folder.join(format!("{}.{}", id.key.to_string().replace('/', SLASH), id.number))
    }

    fn read(&self, id: WindowId) -> Option<Bytes> {
        let read = fs::read(self.path(id));
        let whole = read.as_ref().ok().and_then(|bytes| {
            let (content, hash) = bytes.split_at_checked(bytes.len().checked_sub(HASH_BYTES)?)?;
            (blake3::hash(content).as_bytes() == hash).then_some(content.len())
        });
        // Another reader's window may just have taken this one's room.
        if read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return None;
        }
        let (Ok(bytes), Some(length)) = (read, whole) else {
            warn!(key = %id.key, window = id.number, "a cached window is damaged and fetched anew");
            self.index.lock().remove(id);
            self.delete(id);
            return None;
        };
        Some(Bytes::from(bytes).slice(..length))
    }

    fn write(&self, id: WindowId, content: &Bytes) {
        let bytes = (content.len() + HASH_BYTES) as u64;
        let free = nix::sys::statvfs::statvfs(&self.folder)
            .map(|stat| stat.blocks_available() * stat.fragment_size());
        if bytes > self.bytes_max || free.is_ok_and(|free| free < FREE_BYTES_MIN + bytes) {
            return;
        }
        let gone = self.index.lock().make_room(bytes, self.bytes_max);
        gone.into_iter().for_each(|id| self.delete(id));
        let path = self.path(id);
        let beside = path.with_extension(format!("{}-new", id.number));
        let mut whole = Vec::with_capacity(bytes as usize);
        whole.extend_from_slice(content);
        whole.extend_from_slice(blake3::hash(content).as_bytes());
        match fs::write(&beside, whole).and_then(|()| fs::rename(&beside, &path)) {
            Ok(()) => self.index.lock().insert(id, bytes),
            Err(error) => {
                debug!(key = %id.key, window = id.number, %error, "not cached");
                let _ = fs::remove_file(beside);
            }
        }
    }

    fn delete(&self, id: WindowId) {
        if let Err(error) = fs::remove_file(self.path(id))
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(key = %id.key, window = id.number, %error, "a cached window stays on the disk");
        }
    }
}

fn parse(name: &str) -> Option<WindowId> {
    let (key, number) = name.rsplit_once('.')?;
    Some(WindowId { key: key.replace(SLASH, "/").parse().ok()?, number: number.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use shoal_content::{PackId, RecipeId};

    use super::*;

    #[test]
    fn an_object_has_its_own_windows_and_no_others() {
        let keys = [b"a", b"b", b"c"]
            .map(|name| ObjectKey::Pack(PackId::of(name)))
            .into_iter()
            .chain([ObjectKey::Recipe(RecipeId::of(b"a"))]);
        let keys: Vec<ObjectKey> = keys.collect();
        let mut index = Index::default();
        for number in [0, 7, u64::MAX] {
            for &key in &keys {
                index.insert(WindowId { key, number }, 1);
            }
        }
        for &key in &keys {
            let expected = [0, 7, u64::MAX].map(|number| WindowId { key, number });
            assert_eq!(index.windows_of(key), expected);
        }
        index.remove(WindowId { key: keys[1], number: 7 });
        assert_eq!(index.windows_of(keys[1]).len(), 2);
        assert_eq!(index.bytes, 11);
    }
}
