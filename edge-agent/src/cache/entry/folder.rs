//! The files of an entry: made, found again after a restart, opened when needed, moved away.
//!
//! Invariants: under its own name a folder is whole, since it is made beside and renamed; a recipe
//! is believed only where its bytes are what its id names; pins and the times of the last use
//! outlive the process.
//! Non-goals: what stands in the content file (see `reading`, `writing`); the journal's records.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use parking_lot::Mutex;
use shoal_content::{Recipe, RecipeId};
use tokio::sync::watch;
use tracing::{debug, warn};
use uuid::Uuid;

use super::{CONTENT_FILE, Entry, JOURNAL_FILE, Loaded, PIN_FILE, RECIPE_FILE, SCRUB_FILE, State};
use crate::cache::held::Held;
use crate::cache::journal::{Journal, Replay};
use crate::cache::place::Places;
use crate::cache::{Error, is_unreadable, sync_parent};

/// The time of the last use reaches the disk this long after at most.
const USED_GRAIN_SECS: u64 = 60;

impl Entry {
    /// Makes `folder` and all that belongs in it.
    pub fn create(
        folder: &Path,
        id: RecipeId,
        slot: u32,
        recipe: Arc<Recipe>,
        encoded: &[u8],
    ) -> Result<Self, Error> {
        let places = Places::of(recipe.clone())?;
        let beside = folder.with_extension("new");
        let context = |doing| move |error| Error::io(doing, folder, error);
        if beside.exists() {
            fs::remove_dir_all(&beside).map_err(context("clearing a half-made cache entry"))?;
        }
        let chunks = recipe.chunks().len() as u32;
        let make = || {
            fs::create_dir_all(&beside)?;
            write_synced(&beside.join(RECIPE_FILE), encoded)?;
            let content = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(beside.join(CONTENT_FILE))?;
            content.set_len(recipe.length())?;
            content.sync_all()?;
            Journal::create(&beside.join(JOURNAL_FILE), id, chunks)?;
            fs::rename(&beside, folder)?;
            sync_parent(folder)?;
            Ok(content)
        };
        let content = make().map_err(context("making a cache entry"))?;
        let loaded = Arc::new(Loaded { places, content });
        let now = SystemTime::now();
        let replay = Replay {
            trusted: Held::empty(chunks),
            doubtful: Held::empty(chunks),
            wants_rewrite: false,
        };
        Ok(Self::assemble(folder, id, slot, replay, Some(loaded), now))
    }

    /// Finds an entry again after a restart. Reads the journal only; no content is hashed here
    /// (see [`crate::cache::Cache::verify`]).
    pub fn recover(folder: &Path, id: RecipeId, slot: u32) -> Result<Self, Error> {
        let context = |doing| move |error| Error::io(doing, folder, error);
        let used = fs::metadata(folder.join(RECIPE_FILE))
            .and_then(|metadata| metadata.modified())
            .map_err(context("reading a cache entry"))?;
        let opened = Journal::open(&folder.join(JOURNAL_FILE), id);
        let replay = match opened {
            Ok(Some((_, replay))) => replay,
            // A lost journal costs a hashing of the content, not the content.
            lost => {
                warn!(recipe = %id, ?lost, "the journal cannot be read; all content is hashed");
                let encoded = fs::read(folder.join(RECIPE_FILE))
                    .map_err(context("reading a recipe in the cache"))?;
                let chunks = decode(id, &encoded)?.chunks().len() as u32;
                let (trusted, doubtful) = (Held::empty(chunks), Held::full(chunks));
                Replay { trusted, doubtful, wants_rewrite: true }
            }
        };
        let entry = Self::assemble(folder, id, slot, replay, None, used);
        entry.state.lock().pinned = folder.join(PIN_FILE).exists();
        entry.count_more(entry.disk_bytes());
        Ok(entry)
    }

    fn assemble(
        folder: &Path,
        id: RecipeId,
        slot: u32,
        replay: Replay,
        loaded: Option<Arc<Loaded>>,
        used: SystemTime,
    ) -> Self {
        let state = State {
            held: replay.trusted,
            doubtful: replay.doubtful,
            journal: None,
            unsynced: Vec::new(),
            unsynced_bytes: 0,
            syncing: Vec::new(),
            generation: 0,
            stale: replay.wants_rewrite,
            used,
            used_saved: used,
            pinned: false,
            removed: false,
            writing: Vec::new(),
        };
        Self {
            id,
            slot,
            folder: folder.to_owned(),
            loaded: Mutex::new(loaded),
            state: Mutex::new(state),
            checkpoint: Mutex::new(()),
            changes: watch::Sender::new(0),
            counted: AtomicU64::new(0),
            copied: AtomicU64::new(0),
        }
    }

    /// Bytes its files take on the disk.
    pub fn disk_bytes(&self) -> u64 {
        let blocks = |name| fs::metadata(self.folder.join(name)).map_or(0, |m| m.blocks() * 512);
        blocks(RECIPE_FILE) + blocks(CONTENT_FILE) + blocks(JOURNAL_FILE)
    }

    /// Loads the recipe and opens the content, where that was not done yet.
    pub fn load(&self) -> Result<Arc<Loaded>, Error> {
        let mut slot = self.loaded.lock();
        if let Some(loaded) = slot.as_ref() {
            return Ok(loaded.clone());
        }
        let path = self.folder.join(RECIPE_FILE);
        let lost = |what| Error::Damaged { recipe: self.id, what };
        let encoded = fs::read(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => lost("its recipe"),
            _ if is_unreadable(&error) => lost("its recipe"),
            _ => Error::io("reading a recipe", &path, error),
        })?;
        let recipe = decode(self.id, &encoded)?;
        if recipe.chunks().len() as u32 != self.state.lock().held.count() {
            return Err(lost("its journal"));
        }
        let path = self.folder.join(CONTENT_FILE);
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        let content = opened.map_err(|error| match error.kind() {
            ErrorKind::NotFound => lost("its content"),
            _ => Error::io("opening cached content", &path, error),
        })?;
        let loaded = Arc::new(Loaded { places: Places::of(Arc::new(recipe))?, content });
        *slot = Some(loaded.clone());
        Ok(loaded)
    }

    pub fn is_loaded(&self) -> bool {
        self.loaded.lock().is_some()
    }

    /// Chunks of the loaded recipe, 0 where nothing is loaded or it is in use.
    pub fn unloadable_chunks(&self) -> usize {
        let slot = self.loaded.lock();
        let idle = slot.as_ref().filter(|loaded| Arc::strong_count(loaded) == 1);
        idle.map_or(0, |loaded| loaded.places.recipe().chunks().len().max(1))
    }

    pub fn unload(&self) {
        if !self.has_unsynced() {
            *self.loaded.lock() = None;
        }
    }

    pub fn set_pinned(&self, pinned: bool) -> Result<(), Error> {
        let path = self.folder.join(PIN_FILE);
        let done = if pinned { write_synced(&path, b"") } else { remove_if_there(&path) };
        done.and_then(|()| sync_parent(&path))
            .map_err(|e| Error::io("pinning a cache entry", &path, e))?;
        self.state.lock().pinned = pinned;
        Ok(())
    }

    /// Brings the time of the last use to the disk, as the modification time of the recipe file.
    pub fn save_used(&self) -> Result<(), Error> {
        let used = {
            let state = self.state.lock();
            // The clock may have been set back.
            let since = state.used.duration_since(state.used_saved);
            let since = since.unwrap_or_else(|error| error.duration());
            if state.removed || since.as_secs() < USED_GRAIN_SECS {
                return Ok(());
            }
            state.used
        };
        let path = self.folder.join(RECIPE_FILE);
        OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_modified(used))
            .map_err(|e| Error::io("noting a cache entry's use", &path, e))?;
        self.state.lock().used_saved = used;
        Ok(())
    }

    /// When it was last written or looked through as a whole.
    pub fn looked_through(&self) -> SystemTime {
        let changed = |name| fs::metadata(self.folder.join(name)).and_then(|file| file.modified());
        let last = [SCRUB_FILE, CONTENT_FILE].into_iter().filter_map(|name| changed(name).ok());
        last.max().unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Remembers that it was looked through now.
    pub fn note_looked_through(&self) {
        let made = File::create(self.folder.join(SCRUB_FILE));
        let noted = made.and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = noted {
            // It may be gone, or its disk full; then it is looked through again.
            debug!(recipe = %self.id, %error, "a look through the cache is not remembered");
        }
    }

    /// Moves the entry out of the way, into `trash`; later calls on it fail or do nothing. Whoever
    /// still has the content open keeps what is open.
    pub fn remove(&self, trash: &Path) -> Result<PathBuf, Error> {
        let _one = self.checkpoint.lock();
        let mut state = self.state.lock();
        // A name that no earlier process can have left there.
        let target = trash.join(format!("{}-{}", self.id, Uuid::new_v4().simple()));
        fs::rename(&self.folder, &target)
            .map_err(|e| Error::io("removing a cache entry", &self.folder, e))?;
        state.removed = true;
        state.unsynced.clear();
        state.held = Held::empty(state.held.count());
        drop(state);
        self.bump();
        Ok(target)
    }
}

fn decode(id: RecipeId, encoded: &[u8]) -> Result<Recipe, Error> {
    let damaged = Error::Damaged { recipe: id, what: "its recipe" };
    if RecipeId::of(encoded) != id {
        return Err(damaged);
    }
    Recipe::decode(encoded).map_err(|_| damaged)
}

fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let file = File::create(path)?;
    file.write_all_at(bytes, 0)?;
    file.sync_all()
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
