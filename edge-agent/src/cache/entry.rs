//! One recipe in the cache: a folder with the encoded recipe, a sparse content file and a journal.
//!
//! Write order of a chunk: content, journal record, memory. Of a checkpoint: see `journal`. Of a
//! new entry: everything in a folder beside, synced, then renamed. What was read back is hashed
//! before it leaves; what does not check is dropped and fetched again.
//!
//! All calls block on the disk; the cache keeps them off the async threads.
//! Invariant: a bit in `held` means that the content was written whole and hashed, by whoever
//! handed it in or here.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use nix::fcntl::{FallocateFlags, fallocate};
use parking_lot::Mutex;
use shoal_content::{Recipe, RecipeId};
use tokio::sync::watch;
use tracing::warn;
use uuid::Uuid;

use super::held::Held;
use super::journal::{Journal, Replay};
use super::place::Places;
use super::{Error, is_unreadable};

const RECIPE_FILE: &str = "recipe";
const CONTENT_FILE: &str = "content";
const JOURNAL_FILE: &str = "journal";
const PIN_FILE: &str = "pinned";
/// A writer that brings the unsynced bytes past this makes the checkpoint itself.
pub const CHECKPOINT_BYTES: u64 = 8 << 20;
/// A chunk with many places is written in steps of about so many bytes.
const WRITE_STEP_BYTES: u64 = 16 << 20;
/// The time of the last use reaches the disk this long after at most.
const USED_GRAIN_SECS: u64 = 60;

/// What is needed to read and write chunks; dropped when the entry was idle, to bound memory and
/// open files.
#[derive(Debug)]
pub struct Loaded {
    pub places: Places,
    pub content: File,
}

#[derive(Debug)]
struct State {
    held: Held,
    /// Journalled but not synced when the process last ended: to be hashed.
    doubtful: Held,
    journal: Option<Journal>,
    /// Held, but not yet under a checkpoint.
    unsynced: Vec<u32>,
    unsynced_bytes: u64,
    /// What the checkpoint now being made will cover.
    syncing: Vec<u32>,
    /// Counts rewrites of the journal: record numbers from before one mean nothing after it.
    generation: u64,
    /// The journal no longer matches `held`; it is written anew before anything else.
    stale: bool,
    used: SystemTime,
    used_saved: SystemTime,
    pinned: bool,
    removed: bool,
    /// Calls of [`Entry::write`] under way, by chunk.
    writing: Vec<u32>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Entry {
    id: RecipeId,
    slot: u32,
    folder: PathBuf,
    loaded: Mutex<Option<Arc<Loaded>>>,
    state: Mutex<State>,
    /// One checkpoint at a time.
    checkpoint: Mutex<()>,
    /// Counts changes of `held`, for those who wait for a chunk.
    changes: watch::Sender<u64>,
}

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
            super::sync_parent(folder)?;
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
    /// (see [`super::Cache::verify`]).
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
        }
    }

    pub fn id(&self) -> RecipeId {
        self.id
    }

    pub fn slot(&self) -> u32 {
        self.slot
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn used(&self) -> SystemTime {
        self.state.lock().used
    }

    pub fn is_pinned(&self) -> bool {
        self.state.lock().pinned
    }

    pub fn is_complete(&self) -> bool {
        self.state.lock().held.is_complete()
    }

    /// Whether [`Entry::sync`] has anything to do.
    pub fn has_unsynced(&self) -> bool {
        let state = self.state.lock();
        !state.unsynced.is_empty() || state.stale
    }

    pub fn has_doubtful(&self) -> bool {
        !self.state.lock().doubtful.is_empty()
    }

    pub fn contains(&self, index: u32) -> bool {
        self.state.lock().held.contains(index)
    }

    pub fn held(&self) -> Held {
        self.state.lock().held.clone()
    }

    /// What stands in the content file, whether or not it was hashed since the start.
    pub fn written(&self) -> Held {
        let state = self.state.lock();
        let mut written = state.held.clone();
        for index in state.doubtful.iter() {
            written.insert(index);
        }
        written
    }

    /// Chunks held and chunks in all.
    pub fn count(&self) -> (u32, u32) {
        let state = self.state.lock();
        (state.held.len(), state.held.count())
    }

    /// Sees every change of what is held.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Bytes its files take on the disk.
    pub fn disk_bytes(&self) -> u64 {
        let blocks = |name| fs::metadata(self.folder.join(name)).map_or(0, |m| m.blocks() * 512);
        blocks(RECIPE_FILE) + blocks(CONTENT_FILE) + blocks(JOURNAL_FILE)
    }

    pub fn touch(&self) {
        self.state.lock().used = SystemTime::now();
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

    /// Hashes what was journalled after the last checkpoint before the process ended, and holds
    /// what checks. Gives how many chunks did not. `go_on` is asked before each; where it refuses,
    /// nothing has changed.
    pub(super) fn verify_doubtful(
        &self,
        go_on: &mut dyn FnMut() -> Result<(), Error>,
    ) -> Result<u32, Error> {
        let _one = self.checkpoint.lock();
        let doubtful = self.state.lock().doubtful.clone();
        if doubtful.is_empty() {
            return Ok(0);
        }
        let loaded = self.load()?;
        let mut good = Vec::new();
        for index in doubtful.iter() {
            go_on()?;
            // Every place of it, since an export copies from each.
            if self.read_verified(&loaded, index, usize::MAX)?.is_some() {
                good.push(index);
            }
        }
        if !good.is_empty() {
            // Trusted from now on, so it has to be on the disk first.
            let path = self.folder.join(CONTENT_FILE);
            let synced = loaded.content.sync_data();
            synced.map_err(|e| Error::io("syncing cached content", &path, e))?;
        }
        let mut state = self.state.lock();
        for index in &good {
            state.held.insert(*index);
        }
        state.doubtful = Held::empty(doubtful.count());
        state.stale = true;
        drop(state);
        self.bump();
        Ok(doubtful.len() - good.len() as u32)
    }

    /// The content of chunk `index`; `None` where it is not held, or was and did not check.
    pub fn read(&self, index: u32) -> Result<Option<Bytes>, Error> {
        if !self.contains(index) {
            return Ok(None);
        }
        let loaded = self.load()?;
        let content = self.read_verified(&loaded, index, 1)?;
        if content.is_none() {
            warn!(recipe = %self.id, chunk = index, "cached content does not check; dropped");
            self.drop_chunk(index)?;
        }
        Ok(content)
    }

    /// Reads a chunk at its first `places` places; `None` where one of them does not check, or the
    /// disk does not give it back.
    fn read_verified(
        &self,
        loaded: &Loaded,
        index: u32,
        places: usize,
    ) -> Result<Option<Bytes>, Error> {
        let Some(chunk) = loaded.places.chunk(index) else { return Ok(None) };
        let mut buffer = vec![0; chunk.length as usize];
        for offset in loaded.places.offsets(index).iter().take(places) {
            match loaded.content.read_exact_at(&mut buffer, *offset) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
                Err(error) if is_unreadable(&error) => {
                    warn!(recipe = %self.id, chunk = index, %error, "cached content is unreadable");
                    return Ok(None);
                }
                Err(error) => {
                    let path = self.folder.join(CONTENT_FILE);
                    return Err(Error::io("reading cached content", &path, error));
                }
            }
            if !chunk.id.verifies(&buffer) {
                return Ok(None);
            }
        }
        Ok(Some(Bytes::from(buffer)))
    }

    /// What chunk `index` takes in the content file, at all of its places.
    pub fn chunk_bytes(&self, index: u32) -> Result<u64, Error> {
        Ok(self.load()?.places.bytes(index))
    }

    /// Takes a chunk that the caller has verified. Gives the bytes that it took on the disk: 0
    /// where it was there already. A chunk can have so many places that it fills a disk, so it is
    /// written in steps; `step` hears the bytes of each but the first and may refuse it.
    pub fn write(
        &self,
        index: u32,
        content: &[u8],
        step: &mut dyn FnMut(u64) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let loaded = self.load()?;
        let length = loaded.places.chunk(index).map(|chunk| chunk.length as usize);
        if length != Some(content.len()) {
            return Err(Error::Unusable(
                "a chunk's content has another length than the recipe says",
            ));
        }
        {
            let mut state = self.state.lock();
            if state.held.contains(index) {
                return Ok(0);
            }
            state.writing.push(index);
        }
        let written = self.write_places(&loaded, index, content, step);
        let mut state = self.state.lock();
        if let Some(at) = state.writing.iter().position(|other| *other == index) {
            state.writing.swap_remove(at);
        }
        let bytes = loaded.places.bytes(index);
        let noted = written.and_then(|()| self.note_written(&mut state, index, bytes));
        if !matches!(noted, Ok(true)) {
            self.release(&state, &loaded, index);
            return noted.map(|_| 0);
        }
        let due = state.unsynced_bytes >= CHECKPOINT_BYTES;
        drop(state);
        self.bump();
        if due {
            self.sync()?;
        }
        Ok(bytes)
    }

    /// Whether it was not held before.
    fn note_written(&self, state: &mut State, index: u32, bytes: u64) -> Result<bool, Error> {
        if state.removed {
            return Err(Error::Unknown(self.id));
        }
        let path = self.folder.join(JOURNAL_FILE);
        self.journal(state)?
            .append_written(index)
            .map_err(|e| Error::io("writing to the cache's journal", &path, e))?;
        if !state.held.insert(index) {
            return Ok(false);
        }
        state.unsynced.push(index);
        state.unsynced_bytes += bytes;
        state.used = SystemTime::now();
        Ok(true)
    }

    fn write_places(
        &self,
        loaded: &Loaded,
        index: u32,
        content: &[u8],
        step: &mut dyn FnMut(u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let path = self.folder.join(CONTENT_FILE);
        let at_once = (WRITE_STEP_BYTES / (content.len() as u64).max(1)).max(1) as usize;
        for (number, offsets) in loaded.places.offsets(index).chunks(at_once).enumerate() {
            if number > 0 {
                step(content.len() as u64 * offsets.len() as u64)?;
            }
            for offset in offsets {
                loaded
                    .content
                    .write_all_at(content, *offset)
                    .map_err(|e| Error::io("writing to the cache", &path, e))?;
            }
        }
        Ok(())
    }

    /// Gives the blocks of a chunk that is not held back to the file system, where that can; where
    /// not, the next write of the chunk uses them.
    fn release(&self, state: &State, loaded: &Loaded, index: u32) {
        if state.held.contains(index) || state.writing.contains(&index) {
            return;
        }
        let length = loaded.places.chunk(index).map_or(0, |chunk| chunk.length);
        let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        for offset in loaded.places.offsets(index) {
            let (at, length) = (offset.cast_signed(), i64::from(length));
            if fallocate(&loaded.content, how, at, length).is_err() {
                return;
            }
        }
    }

    /// Makes a checkpoint where anything is not under one.
    pub fn sync(&self) -> Result<(), Error> {
        let _one = self.checkpoint.lock();
        let (covered, generation) = {
            let mut state = self.state.lock();
            if state.removed || (state.unsynced.is_empty() && !state.stale) {
                return Ok(());
            }
            if state.unsynced.is_empty() {
                // What was verified after a restart, or failed to be noted before.
                return self.journal(&mut state).map(drop);
            }
            let covered = self.journal(&mut state)?.records();
            state.unsynced_bytes = 0;
            state.syncing = std::mem::take(&mut state.unsynced);
            (covered, state.generation)
        };
        let synced = self.load().and_then(|loaded| {
            let path = self.folder.join(CONTENT_FILE);
            let done = loaded.content.sync_data();
            done.map_err(|e| Error::io("syncing cached content", &path, e))
        });
        let path = self.folder.join(JOURNAL_FILE);
        let appended = {
            let mut state = self.state.lock();
            let syncing = std::mem::take(&mut state.syncing);
            if let Err(error) = synced {
                // The kernel reports lost pages once and then forgets them: none of what it was
                // asked to sync counts any more.
                for index in &syncing {
                    state.held.remove(*index);
                }
                state.stale = true;
                drop(state);
                self.bump();
                return Err(error);
            }
            state.stale |= state.generation != generation;
            let rewritten = state.stale;
            let journal = self.journal(&mut state)?;
            // A rewrite trusts and syncs what is held; there is nothing left to say.
            if rewritten {
                return Ok(());
            }
            journal.append_checkpoint(covered).and_then(|()| journal.syncer())
        };
        appended.and_then(|journal| journal.sync_data()).map_err(|error| {
            // The content is safe, only the word for it is not: written anew next time.
            self.state.lock().stale = true;
            Error::io("syncing the cache's journal", &path, error)
        })
    }

    /// All chunks are there: makes that durable and the journal short.
    pub fn complete(&self) -> Result<(), Error> {
        self.sync()?;
        let mut state = self.state.lock();
        if !state.held.is_complete() {
            let missing = state.held.count() - state.held.len();
            return Err(Error::Incomplete { recipe: self.id, missing });
        }
        if state.journal.is_none() && !state.stale {
            return Ok(());
        }
        state.stale = true;
        self.journal(&mut state)?;
        // A complete entry needs no open journal; dropping a chunk opens it again.
        state.journal = None;
        Ok(())
    }

    /// Forgets chunk `index`, so that it is fetched again.
    pub fn drop_chunk(&self, index: u32) -> Result<(), Error> {
        let loaded = self.load()?;
        let mut state = self.state.lock();
        if !state.held.remove(index) {
            return Ok(());
        }
        let path = self.folder.join(JOURNAL_FILE);
        let dropped = self.journal(&mut state).and_then(|j| {
            j.append_dropped(index).map_err(|e| Error::io("dropping a chunk", &path, e))
        });
        state.stale |= dropped.is_err();
        // Before the hole is there: whoever copies the content sees that it was not let be.
        self.bump();
        self.release(&state, &loaded, index);
        dropped
    }

    pub fn set_pinned(&self, pinned: bool) -> Result<(), Error> {
        let path = self.folder.join(PIN_FILE);
        let done = if pinned { write_synced(&path, b"") } else { remove_if_there(&path) };
        done.and_then(|()| super::sync_parent(&path))
            .map_err(|e| Error::io("pinning a cache entry", &path, e))?;
        self.state.lock().pinned = pinned;
        Ok(())
    }

    /// Brings the time of the last use to the disk, as the modification time of the recipe file.
    pub fn save_used(&self) -> Result<(), Error> {
        let used = {
            let state = self.state.lock();
            let since = state.used.duration_since(state.used_saved).unwrap_or_default();
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

    /// The open journal, written anew first where it does not match what is held.
    fn journal<'a>(&self, state: &'a mut State) -> Result<&'a mut Journal, Error> {
        let path = self.folder.join(JOURNAL_FILE);
        if state.journal.is_none() || state.stale {
            // Only what is certainly synced may stand under the new journal's checkpoint.
            let mut certain = state.held.clone();
            let unsynced = state.unsynced.iter().chain(&state.syncing).copied();
            let uncertain: Vec<u32> = unsynced.chain(state.doubtful.iter()).collect();
            for index in &uncertain {
                certain.remove(*index);
            }
            let rewritten = Journal::rewrite(&path, self.id, &certain).and_then(|mut journal| {
                uncertain.iter().try_for_each(|index| journal.append_written(*index))?;
                Ok(journal)
            });
            let journal =
                rewritten.map_err(|e| Error::io("writing the cache's journal", &path, e))?;
            state.journal = Some(journal);
            state.generation += 1;
            state.stale = false;
        }
        state.journal.as_mut().ok_or(Error::Unknown(self.id))
    }

    fn bump(&self) {
        self.changes.send_modify(|count| *count += 1);
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
