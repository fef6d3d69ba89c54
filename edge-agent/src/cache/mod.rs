//! The chunk cache on disk: what this host holds, serves to peers and exports from.
//!
//! One folder for each recipe (see `entry`), chunks shared between recipes are copied locally
//! (see `index`), and what was not used for longest leaves first (see `eviction`). What stands there
//! for long is hashed again now and then (see `scrub`).
//!
//! Invariants: nothing is handed out that was not hashed; what is leased or pinned is not evicted;
//! bytes are counted before they are written, at every place of a chunk, so the files never take
//! more than the limits; one process works on the folder, which its owner has locked; whoever asked
//! for it ([`Cache::removals`]) hears of every recipe that leaves, whole or in part.
//! Non-goals: names of images (see `catalogue`), whom to fetch from (the swarm).

mod entry;
mod eviction;
mod held;
mod index;
mod journal;
mod place;
mod relief;
mod room;
mod scrub;
mod space;
mod store;
mod upkeep;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::errno::Errno;
use parking_lot::{Mutex, RwLock};
use shoal_content::{Recipe, RecipeId};
use thiserror::Error;
use tokio::sync::{Notify, mpsc};
use tracing::{info, warn};
use uuid::Uuid;

pub use entry::{Entry, Loaded};
pub use held::Held;
pub use scrub::Scrubbed;
pub use space::Limits;

use crate::config;
use crate::metrics::CacheMetrics;
use index::{ChunkIndex, Place};
use relief::Relief;
use room::EVICTION_STEP_BYTES;
use space::Space;

/// Unsynced chunks wait for a checkpoint no longer than this.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(200);
/// Entries that are found again at once.
const RECOVERED_AT_ONCE: usize = 8;
/// The part of a file's mode that is not its owner's.
const OTHERS: u32 = 0o077;

/// What can go wrong with the cache.
#[derive(Debug, Error)]
pub enum Error {
    #[error("{doing} at {path} failed")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "the cache's disk is full: {missing} bytes are missing beside the reserve, and nothing more can be evicted; free space under {path} or raise cache.max_bytes"
    )]
    Full { missing: u64, path: PathBuf },
    #[error(
        "the image takes {need} bytes in the cache, which may hold no more than {room}; raise cache.max_bytes"
    )]
    TooLarge { need: u64, room: u64 },
    #[error("the recipe cannot be kept: {0}")]
    Unusable(&'static str),
    #[error("recipe {0} is not in the cache")]
    Unknown(RecipeId),
    #[error("recipe {recipe}: {what} in the cache is damaged")]
    Damaged { recipe: RecipeId, what: &'static str },
    #[error("recipe {recipe} lacks {missing} chunks")]
    Incomplete { recipe: RecipeId, missing: u32 },
    #[error("the agent is shutting down")]
    Stopping,
}

impl Error {
    pub(crate) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { missing: 0, path: path.to_owned() }
            }
            _ => Self::Io { doing, path: path.to_owned(), source },
        }
    }

    /// Whether space, once there is some, lets the same call succeed.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }

    /// Whether the cache is too small for it, be it for now or for good.
    pub fn lacks_room(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::TooLarge { .. })
    }

    /// Whether what an entry held is lost, and not only out of this process's reach.
    fn means_loss(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                let gone = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
                gone.contains(&source.kind()) || is_unreadable(source)
            }
            error => error.is_damaged(),
        }
    }

    /// Whether making the entry anew mends it.
    pub fn is_damaged(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }
}

/// A recipe as `shoal-agent list` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    pub recipe: RecipeId,
    pub chunks_held: u32,
    pub chunks_total: u32,
    pub pinned: bool,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    trash: PathBuf,
    /// What earlier processes left in the trash.
    left: Mutex<Vec<PathBuf>>,
    entries: RwLock<HashMap<RecipeId, Arc<Entry>>>,
    /// Which recipe has a slot of the index.
    by_slot: RwLock<HashMap<u32, RecipeId>>,
    /// Held while an entry is made or removed, so that one recipe never has two.
    making: Mutex<()>,
    /// Held while room is looked for and counted as taken.
    admission: Mutex<()>,
    index: Mutex<ChunkIndex>,
    leases: Mutex<HashMap<RecipeId, u32>>,
    slots: AtomicU32,
    used_bytes: AtomicU64,
    space: Space,
    relief: Mutex<Relief>,
    metrics: CacheMetrics,
    /// Who hears of what leaves.
    removals: Mutex<Option<mpsc::UnboundedSender<RecipeId>>>,
    /// When it was last said that checkpoints fail.
    complained: Mutex<Option<Instant>>,
    /// The process ends: what copies or hashes much breaks off.
    stopping: AtomicBool,
    /// Something was written and not under a checkpoint.
    written: Notify,
}

/// A handle; clones share one cache.
#[derive(Debug, Clone)]
pub struct Cache(Arc<Inner>);

/// While it lives, its recipe is not evicted.
#[derive(Debug)]
pub struct Lease {
    cache: Cache,
    recipe: RecipeId,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut leases = self.cache.0.leases.lock();
        if let Some(count) = leases.get_mut(&self.recipe) {
            *count -= 1;
            if *count == 0 {
                leases.remove(&self.recipe);
            }
        }
    }
}

impl Cache {
    /// Finds what `folder` holds. The caller has locked it against other processes.
    pub fn open(
        folder: &Path,
        config: &config::Cache,
        metrics: CacheMetrics,
    ) -> Result<Self, Error> {
        let context = |error| Error::io("opening the cache", folder, error);
        let trash = folder.join("trash");
        fs::create_dir_all(&trash).map_err(context)?;
        keep_private(folder);
        let mut left = Vec::new();
        for found in fs::read_dir(&trash).map_err(context)? {
            left.push(found.map_err(context)?.path());
        }
        let mut folders = Vec::new();
        for found in fs::read_dir(folder).map_err(context)? {
            let path = found.map_err(context)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.ends_with(".new") {
                // Half made when the process ended: it held nothing yet.
                fs::remove_dir_all(&path).map_err(context)?;
                continue;
            }
            let Ok(id) = name.parse::<RecipeId>() else { continue };
            folders.push((path, id));
        }
        let mut entries = HashMap::new();
        let mut used_bytes = 0;
        let slots = AtomicU32::new(0);
        for (at, recovered) in recover(&folders, &slots) {
            let (path, id) = &folders[at];
            match recovered {
                Ok(entry) => {
                    used_bytes += entry.counted_bytes();
                    entries.insert(*id, Arc::new(entry));
                }
                Err(error) if error.means_loss() => {
                    warn!(recipe = %id, %error, "a damaged cache entry is removed");
                    let gone = trash.join(format!("{id}-{}", Uuid::new_v4().simple()));
                    fs::rename(path, &gone).map_err(context)?;
                    left.push(gone);
                }
                // Of this process, it may be, and not of the entry.
                Err(error) => return Err(error),
            }
        }
        info!(recipes = entries.len(), bytes = used_bytes, "cache opened");
        let space = Space::new(folder, config)?;
        metrics.bytes.set(used_bytes.cast_signed());
        metrics.recipes.set(entries.len() as i64);
        let by_slot = entries.values().map(|entry| (entry.slot(), entry.id())).collect();
        let inner = Inner {
            folder: folder.to_owned(),
            trash,
            left: Mutex::new(left),
            entries: RwLock::new(entries),
            by_slot: RwLock::new(by_slot),
            making: Mutex::new(()),
            admission: Mutex::new(()),
            index: Mutex::new(ChunkIndex::new(config.index_chunks_max)),
            leases: Mutex::default(),
            slots,
            used_bytes: AtomicU64::new(used_bytes),
            space,
            relief: Mutex::default(),
            metrics,
            removals: Mutex::default(),
            complained: Mutex::default(),
            stopping: AtomicBool::new(false),
            written: Notify::new(),
        };
        Ok(Self(Arc::new(inner)))
    }

    pub fn limits(&self) -> Limits {
        self.0.space.limits()
    }

    /// Bytes that the cache's files take.
    pub fn used_bytes(&self) -> u64 {
        self.0.used_bytes.load(Ordering::Relaxed)
    }

    pub fn metrics(&self) -> &CacheMetrics {
        &self.0.metrics
    }

    /// Brings every recipe that leaves from now on, evicted or removed, or of which chunks do, being
    /// corrupt, to the last who asked. It may be here anew by the time it is heard of.
    pub fn removals(&self) -> mpsc::UnboundedReceiver<RecipeId> {
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.0.removals.lock() = Some(sender);
        receiver
    }

    /// Keeps `recipe` from being evicted, whether or not it is here yet.
    pub fn lease(&self, recipe: RecipeId) -> Lease {
        *self.0.leases.lock().entry(recipe).or_default() += 1;
        Lease { cache: self.clone(), recipe }
    }

    pub fn entry(&self, recipe: RecipeId) -> Option<Arc<Entry>> {
        self.0.entries.read().get(&recipe).cloned()
    }

    /// Recipes that are here whole, the last used first.
    pub fn complete(&self) -> Vec<RecipeId> {
        let entries: Vec<_> = self.0.entries.read().values().cloned().collect();
        let mut whole: Vec<_> = entries
            .iter()
            .filter(|entry| entry.is_complete())
            .map(|entry| (std::cmp::Reverse(entry.used()), entry.id()))
            .collect();
        whole.sort_unstable();
        whole.into_iter().map(|(_, id)| id).collect()
    }

    pub fn holdings(&self) -> Vec<Holding> {
        let entries: Vec<_> = self.0.entries.read().values().cloned().collect();
        let mut holdings: Vec<Holding> = entries
            .iter()
            .map(|entry| {
                let (chunks_held, chunks_total) = entry.count();
                let (recipe, pinned) = (entry.id(), entry.is_pinned());
                Holding { recipe, chunks_held, chunks_total, pinned }
            })
            .collect();
        holdings.sort_unstable_by_key(|holding| holding.recipe);
        holdings
    }

    /// The entry for `recipe`, made where there is none, with every chunk that another entry
    /// holds copied over. Blocks on the disk. Of [`Error::Stopping`] remain the chunks copied so far.
    pub fn open_entry(&self, id: RecipeId, recipe: &Arc<Recipe>) -> Result<Arc<Entry>, Error> {
        let _lease = self.lease(id);
        let entry = self.find_or_make(id, recipe)?;
        entry.touch();
        self.verify(&entry)?;
        if !entry.is_complete() {
            let copied = self.copy_shared(&entry)?;
            if copied > 0 {
                info!(recipe = %id, bytes = copied, "copied chunks that other images share");
            }
        }
        Ok(entry)
    }

    fn find_or_make(&self, id: RecipeId, recipe: &Arc<Recipe>) -> Result<Arc<Entry>, Error> {
        let _making = self.0.making.lock();
        let mut pinned = false;
        if let Some(entry) = self.entry(id) {
            match entry.load() {
                Err(error) if error.is_damaged() => {
                    warn!(recipe = %id, %error, "a damaged cache entry is made anew");
                    pinned = entry.is_pinned();
                    self.take_away(&entry)?;
                }
                _ => return Ok(entry),
            }
        }
        let encoded = recipe.encode();
        if RecipeId::of(&encoded) != id {
            return Err(Error::Unusable("its bytes are not what its id names"));
        }
        let reserved = self.admit(encoded.len() as u64)?;
        let slot = self.0.slots.fetch_add(1, Ordering::Relaxed);
        let folder = self.0.folder.join(id.to_string());
        let made = Entry::create(&folder, id, slot, recipe.clone(), &encoded);
        let entry = Arc::new(made.inspect_err(|_| self.0.space.forget())?);
        self.0.by_slot.write().insert(slot, id);
        self.0.entries.write().insert(id, entry.clone());
        reserved.settle(&entry, entry.disk_bytes());
        self.0.metrics.recipes.inc();
        if pinned {
            entry.set_pinned(true)?;
        }
        Ok(entry)
    }

    /// Copies what is held elsewhere, and remembers the rest as places to copy from later.
    fn copy_shared(&self, entry: &Arc<Entry>) -> Result<u64, Error> {
        let loaded = entry.load()?;
        let mut copied = 0;
        for (index, chunk) in (0u32..).zip(loaded.places.recipe().chunks()) {
            self.go_on()?;
            let here = Place { slot: entry.slot(), chunk: index };
            let found = self.0.index.lock().find(&chunk.id);
            if let Some(place) = found.filter(|place| place.slot != here.slot)
                && !entry.contains(index)
                && let Some(source) = self.by_slot(place.slot)
                && let Ok(Some(content)) = self.read_chunk(&source, place.chunk)
                && chunk.id.verifies(&content)
            {
                self.write_chunk(entry, index, &content)?;
                copied += content.len() as u64;
                entry.count_copied(content.len() as u64);
            }
            self.0.index.lock().insert(&chunk.id, here);
        }
        self.0.metrics.bytes_copied.inc_by(copied);
        Ok(copied)
    }

    fn by_slot(&self, slot: u32) -> Option<Arc<Entry>> {
        let recipe = self.0.by_slot.read().get(&slot).copied()?;
        self.entry(recipe).filter(|entry| entry.slot() == slot)
    }

    /// Reads a chunk, hashed. Blocks on the disk.
    pub fn read_chunk(&self, entry: &Entry, index: u32) -> Result<Option<Bytes>, Error> {
        let was_held = entry.contains(index);
        let content = entry.read(index)?;
        if was_held && content.is_none() {
            self.0.metrics.corrupt.inc();
            self.tell_removal(entry);
            self.discharge(entry, entry.chunk_bytes(index)?);
        }
        Ok(content)
    }

    /// Forgets chunks whose content was found to be wrong, so that they are fetched again.
    pub fn drop_corrupt(
        &self,
        entry: &Entry,
        chunks: impl IntoIterator<Item = u32>,
    ) -> Result<(), Error> {
        let mut lost = false;
        let dropped: Result<(), Error> = chunks.into_iter().try_for_each(|index| {
            if !entry.contains(index) {
                return Ok(());
            }
            warn!(recipe = %entry.id(), chunk = index, "cached content does not check; dropped");
            lost = true;
            entry.drop_chunk(index)?;
            self.0.metrics.corrupt.inc();
            self.discharge(entry, entry.chunk_bytes(index)?);
            Ok(())
        });
        if lost {
            self.tell_removal(entry);
        }
        dropped
    }

    /// Takes a verified chunk. Blocks on the disk.
    pub fn write_chunk(&self, entry: &Entry, index: u32, content: &[u8]) -> Result<(), Error> {
        if entry.contains(index) {
            return Ok(());
        }
        let reserved = self.admit(entry.chunk_bytes(index)?)?;
        match entry.write(index, content, &mut |bytes| self.make_room(bytes)) {
            Ok(bytes) => {
                reserved.settle(entry, bytes);
                self.0.written.notify_one();
                Ok(())
            }
            Err(error) => {
                self.0.space.forget();
                if !error.is_full() {
                    return Err(error);
                }
                // The file system was fuller than it said. Room made now serves the next try.
                self.0.metrics.full.inc();
                self.evict_for_disk(EVICTION_STEP_BYTES);
                Err(error)
            }
        }
    }
}

/// Finds entries again, several at once: with thousands of them it is the disk that is waited for.
/// Gives each with its place among `folders`.
fn recover(
    folders: &[(PathBuf, RecipeId)],
    slots: &AtomicU32,
) -> Vec<(usize, Result<Entry, Error>)> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut recovered = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((path, id)) = folders.get(at) else { return recovered };
            let slot = slots.fetch_add(1, Ordering::Relaxed);
            recovered.push((at, Entry::recover(path, *id, slot)));
        }
    };
    std::thread::scope(|scope| {
        let threads = RECOVERED_AT_ONCE.min(folders.len());
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        ended.flat_map(|ended| ended.unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

/// What is in it is for those whom a node lets have it, not for whoever has a login on this host.
fn keep_private(folder: &Path) {
    let keep = || -> io::Result<()> {
        let mode = fs::metadata(folder)?.permissions().mode();
        match mode & OTHERS {
            0 => Ok(()),
            _ => fs::set_permissions(folder, fs::Permissions::from_mode(mode & !OTHERS & 0o7777)),
        }
    };
    if let Err(error) = keep() {
        warn!(path = %folder.display(), %error, "others on this host may read the cache");
    }
}

/// Whether the disk does not give back what was written to it. That is as good as wrong bytes: what
/// is lost is fetched again.
pub(crate) fn is_unreadable(error: &io::Error) -> bool {
    // The others are those of file systems and disks that know more.
    let lost = [Errno::EIO, Errno::EUCLEAN, Errno::EBADMSG, Errno::ENODATA];
    error.raw_os_error().is_some_and(|number| lost.contains(&Errno::from_raw(number)))
}

/// Makes a rename or a new file in `path`'s folder durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
