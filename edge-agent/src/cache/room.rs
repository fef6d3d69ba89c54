//! Room for what comes: counted before it is written, and made by eviction.
//!
//! Invariants: what is counted is what stands, or is about to; an entry gives back what was counted for
//! it, no more and no less; nothing that is leased or pinned goes.
//! Non-goal: which of the others goes first (see `eviction`).

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use shoal_content::{Recipe, RecipeId};
use tracing::{info, warn};

use super::eviction::{self, Candidate};
use super::relief::{Turn, vain_bytes_min};
use super::{Cache, Entry, Error};

/// Made free at once when there is too little, so that eviction does not run for every chunk.
pub(super) const EVICTION_STEP_BYTES: u64 = 64 << 20;

/// Room that is counted as used; what is not settled is given back.
#[derive(Debug)]
pub(super) struct Reserved<'a> {
    cache: &'a Cache,
    bytes: u64,
}

impl Reserved<'_> {
    /// `bytes` were really taken, by `entry`.
    pub(super) fn settle(mut self, entry: &Entry, bytes: u64) {
        let reserved = std::mem::take(&mut self.bytes);
        self.cache.grow(bytes.saturating_sub(reserved));
        self.cache.shrink(reserved.saturating_sub(bytes));
        entry.count_more(bytes);
        if entry.is_removed() {
            // Whoever removed it may not have seen these.
            self.cache.discharge(entry, u64::MAX);
        }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.cache.shrink(self.bytes);
    }
}

impl Cache {
    /// Says before anything is fetched whether all of `recipe` can be kept: everything at every
    /// place, beside what cannot be evicted. Asks the disk for its room.
    pub fn check_room(&self, id: RecipeId, recipe: &Recipe) -> Result<(), Error> {
        let held = self.entry(id).map(|entry| entry.written());
        let (mut whole, mut rest) = (0u64, 0u64);
        for extent in recipe.extents() {
            let length = u64::from(recipe.chunks()[extent.chunk as usize].length);
            whole += length;
            if !held.as_ref().is_some_and(|held| held.contains(extent.chunk)) {
                rest += length;
            }
        }
        let limits = self.limits();
        if rest == 0 {
            return Ok(());
        }
        if whole > limits.high {
            return Err(Error::TooLarge { need: whole, room: limits.high });
        }
        let candidates = self.candidates();
        let others = candidates.iter().filter(|candidate| candidate.recipe != id);
        let evictable: u64 = others.map(|candidate| candidate.bytes).sum();
        let kept = self.used_bytes().saturating_sub(evictable);
        let over = kept.saturating_add(rest).saturating_sub(limits.high);
        let lacking = self.0.space.would_miss(rest)?.saturating_sub(evictable);
        self.fits(over.max(lacking))
    }

    fn fits(&self, missing: u64) -> Result<(), Error> {
        if missing == 0 {
            return Ok(());
        }
        self.0.metrics.full.inc();
        Err(Error::Full { missing, path: self.0.folder.clone() })
    }

    /// Makes sure that `bytes` more fit, by eviction where they do not, and counts them as used.
    pub(super) fn admit(&self, bytes: u64) -> Result<Reserved<'_>, Error> {
        let _one = self.0.admission.lock();
        let limits = self.limits();
        let wanted = self.used_bytes().saturating_add(bytes);
        if wanted > limits.high {
            // Nothing is given up for what would not fit even then.
            let freeable = self.candidates().iter().map(|candidate| candidate.bytes).sum::<u64>();
            self.fits(wanted.saturating_sub(freeable).saturating_sub(limits.high))?;
            self.evict(wanted.saturating_sub(limits.low));
        }
        self.fits(self.used_bytes().saturating_add(bytes).saturating_sub(limits.high))?;
        self.make_room(bytes)?;
        self.grow(bytes);
        Ok(Reserved { cache: self, bytes })
    }

    /// Makes sure that the file system takes `bytes` more, by eviction where it does not.
    pub(super) fn make_room(&self, bytes: u64) -> Result<(), Error> {
        let mut missing = self.0.space.missing(bytes)?;
        if missing > 0 && self.evict_for_disk(missing.saturating_add(EVICTION_STEP_BYTES)) > 0 {
            missing = self.0.space.missing(bytes)?;
        }
        self.fits(missing)
    }

    /// What may be evicted now.
    fn candidates(&self) -> Vec<Candidate> {
        let leases = self.0.leases.lock();
        let entries = self.0.entries.read();
        let free = entries.values().filter(|entry| {
            !leases.contains_key(&entry.id()) && !entry.is_pinned() && !entry.has_doubtful()
        });
        free.map(|entry| Candidate {
            recipe: entry.id(),
            used: entry.used(),
            bytes: entry.counted_bytes(),
        })
        .collect()
    }

    /// Gives way to other data on the disk that needs what is to be left free, and to limits that are
    /// lower than what stands here. Gives what came free, in bytes.
    ///
    /// # Errors
    /// Where the file system does not say how full it is.
    pub fn give_way(&self) -> Result<u64, Error> {
        let _one = self.0.admission.lock();
        let (limits, used) = (self.limits(), self.used_bytes());
        let over = if used > limits.high { self.evict(used - limits.low) } else { 0 };
        let beside = match self.0.space.would_miss(0)? {
            0 => 0,
            missing => self.evict_for_disk(missing.saturating_add(EVICTION_STEP_BYTES)),
        };
        Ok(over + beside)
    }

    /// Removes what nobody used for `age`. Gives what came free, in bytes.
    pub fn evict_idle(&self, age: Duration, now: SystemTime) -> u64 {
        self.remove_all(eviction::idle(self.candidates(), age, now), &mut |_| true)
    }

    /// Frees about `wanted` bytes; gives what came free.
    pub(super) fn evict(&self, wanted: u64) -> u64 {
        let chosen = eviction::choose(self.candidates(), wanted, SystemTime::now());
        self.remove_all(chosen, &mut |_| true)
    }

    /// The same where it is the file system that has too little: no more goes once that has no more for
    /// it (see `relief`). Gives what the cache counts less, in bytes.
    pub(super) fn evict_for_disk(&self, wanted: u64) -> u64 {
        // A file system that does not say how full it is says nothing against it.
        let available = || self.0.space.available().ok();
        let mut before = available();
        let turn = before.map_or(Turn::Go, |room| self.0.relief.lock().begin(Instant::now(), room));
        match turn {
            Turn::Go => {}
            Turn::Wait => return 0,
            Turn::GiveUp => {
                warn!(
                    path = %self.0.folder.display(),
                    "what leaves the cache frees nothing on its disk: exports may share its blocks; for \
                     some minutes nothing more leaves it for others"
                );
                return 0;
            }
        }
        let chosen = eviction::choose(self.candidates(), wanted, SystemTime::now());
        let least = vain_bytes_min(self.0.space.total());
        self.remove_all(chosen, &mut |counted| {
            let after = available();
            let looks = before.zip(after);
            before = after;
            let mut relief = self.0.relief.lock();
            looks.is_none_or(|looks| relief.went(Instant::now(), looks, counted, least))
        })
    }

    /// `goes_on` hears what each was counted with, and says whether the next goes as well.
    fn remove_all(&self, recipes: Vec<RecipeId>, goes_on: &mut dyn FnMut(u64) -> bool) -> u64 {
        let (mut freed, mut slots) = (0, HashSet::new());
        for recipe in recipes {
            let Some(entry) = self.entry(recipe) else { continue };
            let (removed, slot) = (self.remove_if_unleased(&entry), entry.slot());
            // Its content may be open, which keeps the blocks.
            drop(entry);
            match removed {
                Ok(Some(bytes)) => {
                    info!(%recipe, bytes, "evicted from the cache");
                    freed += bytes;
                    slots.insert(slot);
                    self.0.metrics.evictions.inc();
                    if !goes_on(bytes) {
                        break;
                    }
                }
                Ok(None) => {}
                Err(error) => warn!(%recipe, %error, "eviction failed"),
            }
        }
        self.0.index.lock().remove_slots(&slots);
        freed
    }

    /// Removes a recipe that nobody uses. Gives the bytes that came free: 0 where it is in use.
    pub fn remove_unleased(&self, recipe: RecipeId) -> Result<u64, Error> {
        let Some(entry) = self.entry(recipe) else { return Ok(0) };
        let freed = self.remove_if_unleased(&entry)?;
        if freed.is_some() {
            self.0.index.lock().remove_slots(&HashSet::from([entry.slot()]));
        }
        Ok(freed.unwrap_or(0))
    }

    /// The same, but for the index: that holds hints, and looking through it takes long.
    fn remove_if_unleased(&self, entry: &Entry) -> Result<Option<u64>, Error> {
        // Under the lock, so that no lease is taken between the look and the removal.
        let leases = self.0.leases.lock();
        if leases.contains_key(&entry.id()) {
            return Ok(None);
        }
        let (bytes, gone) = self.detach(entry)?;
        drop(leases);
        self.clear_away(&gone);
        Ok(Some(bytes))
    }

    /// Removes an entry that is of no use to anybody, leased or not.
    pub(super) fn take_away(&self, entry: &Entry) -> Result<(), Error> {
        let (_, gone) = self.detach(entry)?;
        self.0.index.lock().remove_slots(&HashSet::from([entry.slot()]));
        self.clear_away(&gone);
        Ok(())
    }

    /// Takes an entry out of everything that knows it, but for the index, and its folder into the
    /// trash: its bytes, and where the folder is now.
    fn detach(&self, entry: &Entry) -> Result<(u64, PathBuf), Error> {
        let gone = entry.remove(&self.0.trash)?;
        self.0.entries.write().remove(&entry.id());
        self.0.by_slot.write().remove(&entry.slot());
        let bytes = self.discharge(entry, u64::MAX);
        self.0.metrics.recipes.dec();
        self.tell_removal(entry);
        Ok((bytes, gone))
    }

    /// Tells who asked that not all is here any more that was.
    pub(super) fn tell_removal(&self, entry: &Entry) {
        if let Some(listener) = &*self.0.removals.lock() {
            // Nobody listens any more when the process ends.
            let _ = listener.send(entry.id());
        }
    }

    /// Deletes something in the trash; what cannot be deleted waits for the next start.
    pub(super) fn clear_away(&self, gone: &Path) {
        if let Err(error) = fs::remove_dir_all(gone) {
            warn!(path = %gone.display(), %error, "the cache's trash cannot be emptied");
        }
        self.0.space.forget();
    }

    /// Counts `bytes` less for `entry`, as far as they were counted; gives how many that is.
    pub(super) fn discharge(&self, entry: &Entry, bytes: u64) -> u64 {
        let counted = entry.count_less(bytes);
        self.shrink(counted);
        counted
    }

    /// Counts for `entry` what its files take, where that may be something else than was counted.
    pub(super) fn recount(&self, entry: &Entry) {
        let now = entry.disk_bytes();
        let before = entry.count_anew(now);
        self.grow(now.saturating_sub(before));
        self.shrink(before.saturating_sub(now));
        if entry.is_removed() {
            self.discharge(entry, u64::MAX);
        }
    }

    fn shrink(&self, bytes: u64) {
        let used = &self.0.used_bytes;
        let _ = used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
            Some(now.saturating_sub(bytes))
        });
        self.0.metrics.bytes.set(self.used_bytes().cast_signed());
    }

    fn grow(&self, bytes: u64) {
        let now = self.0.used_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.0.metrics.bytes.set(now.cast_signed());
    }
}
