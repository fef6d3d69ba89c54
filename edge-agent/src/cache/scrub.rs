//! Reads again what the cache holds, little by little, and drops what has rotted on the disk.
//!
//! An entry is due so long after it was last written or looked through; that is the modification
//! time of a file of its own, so a process that ends in the middle begins that entry anew.
//!
//! Invariants: no more is read in a second than the settings say, but for one step ahead; to be looked
//! through is no use, and keeps nothing from being evicted.
//! Non-goal: fetching what was dropped; whoever wants it next does.

use std::time::{Duration, SystemTime};

use shoal_content::RecipeId;
use tracing::{info, warn};

use super::{Cache, Entry, Error};
use crate::blocking;
use crate::config;

/// About so much is read at once, off the async threads.
const STEP_BYTES: u64 = 1 << 20;
/// It is looked this often whether anything is due.
const LOOK_INTERVAL: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What a look through one entry found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scrubbed {
    pub bytes: u64,
    /// Chunks that were dropped.
    pub corrupt: u64,
}

impl Cache {
    /// Looks through all that is due, again and again, for as long as it is polled.
    pub async fn keep_scrubbing(self, config: config::Cache) {
        if config.scrub_days == 0 {
            return;
        }
        let every = DAY * config.scrub_days;
        let rate = config.scrub_rate.bytes_per_second();
        loop {
            let cache = self.clone();
            let due = blocking(move || cache.due_for_scrub(every, SystemTime::now())).await;
            for recipe in due.unwrap_or_default() {
                match self.scrub(recipe, rate).await {
                    Ok(Scrubbed { corrupt: 0, .. }) => {}
                    Ok(Scrubbed { corrupt, .. }) => warn!(%recipe, corrupt, "rot was found"),
                    Err(Error::Stopping) => return,
                    Err(error) => warn!(%recipe, %error, "a cache entry cannot be looked through"),
                }
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// What was neither written nor looked through for `every`, the longest ago first. Blocks on the
    /// disk. What lies ahead of `now` is due as well: the clock was set back.
    pub fn due_for_scrub(&self, every: Duration, now: SystemTime) -> Vec<RecipeId> {
        let entries: Vec<_> = self.0.entries.read().values().cloned().collect();
        let mut due: Vec<(SystemTime, RecipeId)> = entries
            .iter()
            .map(|entry| (entry.looked_through(), entry.id()))
            .filter(|(last, _)| !now.duration_since(*last).is_ok_and(|since| since < every))
            .collect();
        due.sort_unstable();
        due.into_iter().map(|(_, recipe)| recipe).collect()
    }

    /// Hashes all that is held of one recipe, at every place, `rate` bytes in a second at most.
    ///
    /// # Errors
    /// Where the disk fails in another way than by giving wrong bytes or none, and [`Error::Stopping`].
    pub async fn scrub(&self, recipe: RecipeId, rate: Option<u64>) -> Result<Scrubbed, Error> {
        let mut all = Scrubbed::default();
        let Some(entry) = self.entry(recipe) else { return Ok(all) };
        let was_loaded = entry.is_loaded();
        let mut next = Some(0);
        while let Some(from) = next {
            let (cache, of) = (self.clone(), entry.clone());
            let step = blocking(move || cache.scrub_step(&of, from)).await;
            let (found, on) = step.ok_or(Error::Stopping)??;
            next = on;
            all.bytes += found.bytes;
            all.corrupt += found.corrupt;
            if let Some(rate) = rate.filter(|_| found.bytes > 0) {
                let pause = found.bytes as f64 / rate.max(1) as f64;
                tokio::time::sleep(Duration::from_secs_f64(pause)).await;
            }
        }
        blocking(move || {
            entry.note_looked_through();
            // As many recipes in memory as there are entries would be too many.
            if !was_loaded && entry.unloadable_chunks() > 0 {
                entry.unload();
            }
        })
        .await;
        info!(%recipe, bytes = all.bytes, corrupt = all.corrupt, "looked through a cache entry");
        Ok(all)
    }

    /// Hashes about [`STEP_BYTES`] from chunk `from` on; also gives where to go on, if anywhere.
    fn scrub_step(&self, entry: &Entry, from: u32) -> Result<(Scrubbed, Option<u32>), Error> {
        let (_, count) = entry.count();
        let (mut index, mut found, mut rotten) = (from, Scrubbed::default(), Vec::new());
        while index < count && found.bytes < STEP_BYTES {
            self.go_on()?;
            if entry.contains(index) {
                found.bytes += entry.chunk_bytes(index)?;
                if !entry.is_sound(index)? {
                    rotten.push(index);
                }
            }
            index += 1;
        }
        found.corrupt = rotten.len() as u64;
        // Once for all: whoever offers this to others hears of it.
        self.drop_corrupt(entry, rotten)?;
        self.0.metrics.scrubbed_bytes.inc_by(found.bytes);
        Ok((found, (index < count).then_some(index)))
    }
}
