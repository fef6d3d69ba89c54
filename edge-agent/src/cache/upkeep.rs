//! What the cache does beside: checkpoints, unloading, making way for others on its disk, what the
//! last process left to do, the end.
//!
//! Invariant: work that breaks off at the end of the process ([`Cache::stop`]) holds nothing that it
//! did not finish; the next start takes it up again.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use shoal_content::RecipeId;
use tracing::warn;

use super::index::Place;
use super::{CHECKPOINT_INTERVAL, Cache, Entry, Error};
use crate::nodes::chain;
use crate::{blocking, config};

/// Entries that keep their recipe in memory and their content open while idle.
const LOADED_ENTRIES_MAX: usize = 256;
/// Chunks of idle loaded recipes, in sum: about 60 bytes of memory each.
const LOADED_CHUNKS_MAX: usize = 2_000_000;
/// While nothing is written, the cache is tended this often.
const QUIET_INTERVAL: Duration = Duration::from_secs(5);
/// It is looked this often whether others need the disk, and what nobody uses any more.
const GIVE_WAY_INTERVAL: Duration = Duration::from_secs(10);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Checkpoints that fail are spoken of once in so long.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

impl Cache {
    /// Tends the cache for as long as it is polled: soon after a write, and else now and then.
    pub async fn keep_tended(self, config: config::Cache) {
        let age = config.max_idle_days.map(|days| DAY * days.get());
        let mut give_way_at = Instant::now();
        loop {
            let (cache, gives_way) = (self.clone(), Instant::now() >= give_way_at);
            let tended = blocking(move || {
                if gives_way {
                    cache.make_room_beside(age);
                }
                cache.tend()
            });
            let Some(has_work) = tended.await else { return };
            if gives_way {
                give_way_at = Instant::now() + GIVE_WAY_INTERVAL;
            }
            if !has_work {
                let quiet = tokio::time::timeout(QUIET_INTERVAL, self.0.written.notified());
                if quiet.await.is_err() {
                    continue;
                }
            }
            tokio::time::sleep(CHECKPOINT_INTERVAL).await;
        }
    }

    fn make_room_beside(&self, age: Option<Duration>) {
        if let Err(error) = self.give_way() {
            warn!(error = chain(&error), "it is not known how full the cache's disk is");
        }
        if let Some(age) = age {
            self.evict_idle(age, SystemTime::now());
        }
    }

    /// One round of what runs beside: checkpoints, times of use, unloading. Blocks on the disk. Says
    /// whether there was anything to checkpoint.
    pub fn tend(&self) -> bool {
        let entries: Vec<_> = self.0.entries.read().values().cloned().collect();
        let mut failed = None;
        let mut has_work = false;
        for entry in &entries {
            let unsynced = entry.has_unsynced();
            has_work |= unsynced;
            let outcome = if unsynced { entry.sync() } else { entry.save_used() };
            if let Err(error) = outcome {
                self.0.space.forget();
                // What could not be synced is held no more.
                self.recount(entry);
                failed = Some((entry.id(), error));
            }
        }
        if let Some((recipe, error)) = failed {
            self.complain(recipe, &error);
        }
        let mut loaded: Vec<_> =
            entries.iter().map(|entry| (entry.unloadable_chunks(), entry)).collect();
        loaded.retain(|(chunks, _)| *chunks > 0);
        loaded.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.used()));
        let mut kept = 0;
        for (at, (chunks, entry)) in loaded.iter().enumerate() {
            kept += chunks;
            if at >= LOADED_ENTRIES_MAX || kept > LOADED_CHUNKS_MAX {
                entry.unload();
            }
        }
        has_work
    }

    /// Says now and then that checkpoints fail: they are tried several times a second, and the log may
    /// stand on the very disk that is full or broken.
    fn complain(&self, recipe: RecipeId, error: &Error) {
        let mut last = self.0.complained.lock();
        if last.is_none_or(|last| last.elapsed() >= COMPLAINT_INTERVAL) {
            *last = Some(Instant::now());
            warn!(%recipe, error = chain(error), "cache checkpoints fail");
        }
    }

    /// Empties the trash of earlier processes, hashes what the last one left unsynced and fills the
    /// index of shared chunks, latest used first. Long and on the disk: for a thread of its own,
    /// after the start. Ends early where the process does.
    pub fn settle(&self) {
        let left = std::mem::take(&mut *self.0.left.lock());
        for path in left {
            if self.is_stopping() {
                return;
            }
            self.clear_away(&path);
        }
        let mut entries: Vec<_> = self.0.entries.read().values().cloned().collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.used()));
        for entry in entries {
            match self.verify(&entry) {
                Ok(0) => {}
                Ok(lost) => warn!(recipe = %entry.id(), lost, "chunks did not survive the restart"),
                Err(Error::Stopping) => return,
                Err(error) => warn!(recipe = %entry.id(), %error, "a cache entry cannot be read"),
            }
            if self.is_stopping() {
                return;
            }
            self.index_chunks(&entry);
        }
    }

    /// Notes the chunks that an entry holds as places to copy from, as far as there is room for more.
    fn index_chunks(&self, entry: &Entry) {
        if self.0.index.lock().is_full() {
            return;
        }
        let was_loaded = entry.is_loaded();
        let Ok(loaded) = entry.load() else { return };
        for chunk in entry.held().iter() {
            let Some(found) = loaded.places.chunk(chunk) else { continue };
            let mut index = self.0.index.lock();
            if index.find(&found.id).is_none() {
                index.insert(&found.id, Place { slot: entry.slot(), chunk });
            }
        }
        drop(loaded);
        // All of them in memory at once would be too many.
        if !was_loaded {
            entry.unload();
        }
    }

    /// Hashes what is in doubt of `entry` since the start, and holds what checks; gives how many
    /// chunks did not. Blocks on the disk.
    ///
    /// # Errors
    /// Also [`Error::Stopping`]; it is all in doubt then as before.
    pub fn verify(&self, entry: &Entry) -> Result<u32, Error> {
        if !entry.has_doubtful() {
            return Ok(0);
        }
        let lost = entry.verify_doubtful(&mut || self.go_on())?;
        self.recount(entry);
        Ok(lost)
    }

    /// From now on nothing more is copied or hashed for long, and what is under way breaks off after
    /// the chunk at hand; all else goes on. For the end of the process.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::Relaxed)
    }

    /// Refuses the next chunk of long work where the process ends.
    pub(super) fn go_on(&self) -> Result<(), Error> {
        if self.is_stopping() { Err(Error::Stopping) } else { Ok(()) }
    }

    /// Checkpoints everything: the last thing before the process ends.
    pub fn sync_all(&self) -> Result<(), Error> {
        let entries: Vec<_> = self.0.entries.read().values().cloned().collect();
        entries.iter().try_for_each(|entry| entry.sync())
    }
}
