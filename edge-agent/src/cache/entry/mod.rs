//! One recipe in the cache: a folder with the encoded recipe, a sparse content file and a journal.
//!
//! Write order of a chunk: content, journal record, memory (see `writing`). Of a checkpoint: see
//! `checkpoint` and `journal`. Of a new entry: everything in a folder beside, synced, then renamed
//! (see `folder`). What was read back is hashed before it leaves; what does not check is dropped
//! and fetched again (see `reading`).
//!
//! All calls block on the disk; the cache keeps them off the async threads.
//! Invariant: a bit in `held` means that the content was written whole and hashed, by whoever
//! handed it in or here.

mod checkpoint;
mod folder;
mod reading;
mod writing;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use shoal_content::RecipeId;
use tokio::sync::watch;

use super::held::Held;
use super::journal::Journal;
use super::place::Places;

const RECIPE_FILE: &str = "recipe";
const CONTENT_FILE: &str = "content";
const JOURNAL_FILE: &str = "journal";
const PIN_FILE: &str = "pinned";
const SCRUB_FILE: &str = "scrubbed";

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
    /// What the cache counts for it, in bytes.
    counted: AtomicU64,
    /// What was copied from other entries since the start, in bytes of content.
    copied: AtomicU64,
}

impl Entry {
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

    pub(in crate::cache) fn is_removed(&self) -> bool {
        self.state.lock().removed
    }

    /// What the cache counts for it, in bytes.
    pub fn counted_bytes(&self) -> u64 {
        self.counted.load(Ordering::Relaxed)
    }

    pub(in crate::cache) fn count_more(&self, bytes: u64) {
        self.counted.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives how many of `bytes` were counted.
    pub(in crate::cache) fn count_less(&self, bytes: u64) -> u64 {
        let less = |counted: u64| Some(counted.saturating_sub(bytes));
        let before = self.counted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        before.unwrap_or(0).min(bytes)
    }

    /// Gives what was counted before.
    pub(in crate::cache) fn count_anew(&self, bytes: u64) -> u64 {
        self.counted.swap(bytes, Ordering::Relaxed)
    }

    /// What was copied from other entries since the start, in bytes of content.
    pub fn copied_bytes(&self) -> u64 {
        self.copied.load(Ordering::Relaxed)
    }

    pub(in crate::cache) fn count_copied(&self, bytes: u64) {
        self.copied.fetch_add(bytes, Ordering::Relaxed);
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

    pub fn touch(&self) {
        self.state.lock().used = SystemTime::now();
    }

    fn bump(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}
