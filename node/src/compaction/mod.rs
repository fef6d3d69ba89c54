//! Writes anew what little is needed of packs that are mostly garbage, so that these can go.
//!
//! A pack comes with one version of a disk; later ones use some of its chunks, and keep all of it once
//! that version is gone. The leader looks through images that have lost a version longer than the
//! grace period ago (`Table::ThinnedImages`): it lists what their recipes need of such packs, writes
//! that into new packs, lists where it lies in a *placement*, and has the versions refer to those
//! objects instead (`Command::MoveChunks`). Recipes, digests and clients see nothing of that: only
//! whoever reads a pack asks where a chunk lies (`origin`). The packs go the way of all that nothing
//! refers to (see `collection`), after the grace period, so that readers under way end in peace.
//! Images that share packs, since the same disk was uploaded to each, are looked at together once each
//! was looked at by itself (see `shared`).
//!
//! Whoever publishes meanwhile needs no care: a version refers to the packs that its recipe names, so
//! that they stay; where one was marked as being deleted, it is refused, and its disk read anew, with
//! what chunks there are then (see `disks`).
//!
//! Invariants: one image or group at a time, read no faster than the settings say; memory is bounded by
//! [`MEMORY_BYTES_MAX`] beside the recipe that is looked at. What is written is what chunks' ids name,
//! compared before. What is sealed for one project is never put together with another's. It deletes
//! nothing.
//! Non-goals: packs that a delta bundle refers to as well; blobs, which are needed whole.

mod moving;
mod shared;
mod survey;
mod thin;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use shoal_api::CompactionStatus;
use shoal_content::{ImageId, ObjectKey, RecipeError, Timestamp};
use shoal_formats::{ChunkError, PACK_BYTES};
use shoal_metadata::{Command, Fault, SETTLED_IMAGES_MAX};
use shoal_raft::{ProposeError, Raft, ReadError};
use thiserror::Error;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{info, warn};

use self::moving::Pace;
use self::shared::{Group, Memory, Sharing};
use self::survey::{Survey, Surveyed};
use crate::clock;
use crate::http::problem::chain;
use crate::origin::{self, Origin};
use crate::store::{BlobStore, StoreError};

/// Lists of chunks, a pack that is read, the cache that it is read through, and one that is written.
pub const MEMORY_BYTES_MAX: usize = 320 * 1024 * 1024 + 3 * PACK_BYTES;
/// Packs that are moved together.
const PACKS_AT_ONCE: usize = 64;
/// Packs of one image, or of a group, that a dry run counts.
const PACKS_COUNTED_MAX: usize = 1024;
/// Moves of one image, or of a group, before the next one's turn comes.
const ROUNDS_MAX: usize = 1000;
/// Images of one look at the rows.
const PAGE_IMAGES: usize = 1000;

/// When, which and how fast.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Packs of which less is needed, in percent; 0 is none.
    pub below_percent: u8,
    pub bytes_per_second: u64,
    /// An image is left alone for so long after it lost a version.
    pub grace: Duration,
    /// From one look to the next.
    pub interval: Duration,
}

/// Why an image, or all of them, were left.
#[derive(Debug, Error)]
pub enum Error {
    #[error("the metadata cannot be read")]
    View(#[from] ReadError),
    #[error("the metadata cannot be read")]
    Rows(#[from] Fault),
    #[error("the metadata did not take a command")]
    Propose(#[from] ProposeError),
    #[error("storage did not answer")]
    Store(#[from] StoreError),
    #[error("a pack cannot be read: {0}")]
    Read(Arc<StoreError>),
    #[error("a recipe cannot be read")]
    Origin(#[from] origin::Error),
    #[error("a chunk is damaged")]
    Chunk(#[source] ChunkError),
    #[error("the chunks that were moved cannot be listed")]
    Placement(#[from] RecipeError),
    #[error("more of the image was moved than can be listed")]
    TooManyChunks,
    #[error("the work was interrupted")]
    Interrupted,
}

impl Error {
    /// Whether the bytes are not what they should be, and will not be by trying again.
    fn is_damage(&self) -> bool {
        match self {
            Self::Chunk(_) => true,
            Self::Read(error) => matches!(
                **error,
                StoreError::NotFound(_)
                    | StoreError::Range { .. }
                    | StoreError::Sealed(_)
                    | StoreError::Shredded(_)
            ),
            _ => false,
        }
    }

    /// Whether other images would fare the same.
    fn concerns_all(&self) -> bool {
        matches!(self, Self::View(_) | Self::Rows(_) | Self::Propose(_) | Self::Interrupted)
    }
}

/// What one look came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Packs that nothing of the versions lies in any more.
    pub packs: u64,
    /// What was needed of them.
    pub written_bytes: u64,
    /// What storage gets back when they are deleted.
    pub saved_bytes: u64,
}

/// See the module's documentation. Clones count the same, and look one after another.
#[derive(Debug, Clone)]
pub struct Compactor {
    raft: Raft,
    store: Arc<dyn BlobStore>,
    origin: Origin,
    limits: Limits,
    turn: Arc<tokio::sync::Mutex<Memory>>,
    status: Arc<Mutex<CompactionStatus>>,
    meters: Meters,
}

#[derive(Debug, Clone, Default)]
struct Meters {
    packs: Counter,
    written_bytes: Counter,
    saved_bytes: Counter,
    failures: Counter,
}

/// A look that is under way; where it is given up, too, it says that it has ended.
struct Look<'a> {
    compactor: &'a Compactor,
    memory: tokio::sync::MutexGuard<'a, Memory>,
}

/// What became of an image by itself.
#[derive(Debug, Default)]
struct Ended {
    /// Nothing is left to be done of what it alone refers to.
    is_whole: bool,
    /// See [`Surveyed`].
    shared: Vec<(ObjectKey, u64)>,
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        let mut status = self.compactor.status.lock();
        status.running = false;
        status.ended_at = Some(clock::rfc3339(clock::now()));
    }
}

impl Compactor {
    pub fn new(
        raft: Raft,
        store: Arc<dyn BlobStore>,
        origin: Origin,
        limits: Limits,
        registry: &mut Registry,
    ) -> Self {
        let meters = Meters::default();
        for (name, help, counter) in [
            ("packs", "Packs that what is needed was moved out of", &meters.packs),
            ("written_bytes", "What was written anew of those packs", &meters.written_bytes),
            (
                "saved_bytes",
                "What those packs take beyond that, until deleted",
                &meters.saved_bytes,
            ),
            ("failures", "Images whose packs could not be looked at or moved", &meters.failures),
        ] {
            registry.register(format!("shoal_compaction_{name}"), help, counter.clone());
        }
        let (turn, status) = Default::default();
        Self { raft, store, origin, limits, turn, status, meters }
    }

    /// How far the compaction under way at this node is, or what its last one came to.
    pub fn status(&self) -> CompactionStatus {
        self.status.lock().clone()
    }

    /// Looks at every interval while this node leads. Runs until it is dropped.
    pub async fn run(self) {
        let every = self.limits.interval;
        let mut ticks = interval_at(Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.raft.status().is_leader {
                self.compact_and_say(false).await;
            }
        }
    }

    /// Starts a look in the background, unless one is under way.
    pub fn start(&self, dry_run: bool) {
        let mut status = self.status.lock();
        if status.running {
            return;
        }
        *status = begun(dry_run);
        let this = self.clone();
        tokio::spawn(async move { this.compact_and_say(dry_run).await });
    }

    async fn compact_and_say(&self, dry_run: bool) {
        match self.compact(dry_run).await {
            Ok(done) if dry_run || done == Compacted::default() => {}
            Ok(Compacted { packs, written_bytes, saved_bytes }) => {
                info!(packs, written_bytes, saved_bytes, "wrote anew what is needed of packs");
            }
            Err(error) => warn!(error = chain(&error), "compaction ended early"),
        }
    }

    /// One look at all images that lost versions. Where `dry_run`, it says what would be moved, at
    /// least, and changes nothing.
    ///
    /// # Errors
    /// What stopped it; what was done stays done. An image that could not be looked at stops nothing.
    pub async fn compact(&self, dry_run: bool) -> Result<Compacted, Error> {
        let mut look = Look { memory: self.turn.lock().await, compactor: self };
        *self.status.lock() = begun(dry_run);
        let outcome = self.look(dry_run, &mut look.memory).await;
        if let Err(error) = &outcome {
            self.note_failure(error);
        }
        drop(look);
        outcome?;
        let CompactionStatus { packs, written_bytes, saved_bytes, .. } = self.status();
        Ok(Compacted { packs, written_bytes, saved_bytes })
    }

    fn note_failure(&self, error: &Error) {
        self.meters.failures.inc();
        self.status.lock().error = Some(chain(error));
    }

    async fn look(&self, dry_run: bool, memory: &mut Memory) -> Result<(), Error> {
        if self.limits.below_percent == 0 {
            return Ok(());
        }
        let grace = self.limits.grace.as_millis() as u64;
        let due_before = Timestamp::from_millis(clock::now().as_millis().saturating_sub(grace));
        let (mut pace, mut after) = (Pace::new(self.limits.bytes_per_second), None);
        // What is not come upon any more is forgotten.
        let mut remembered = if dry_run { Memory::default() } else { std::mem::take(memory) };
        let mut sharing = Sharing::default();
        loop {
            let view = self.raft.read().await?;
            let page = view.query().thinned_images(after, PAGE_IMAGES)?;
            drop(view);
            let Some(&(last, _)) = page.last() else { break };
            after = Some(last);
            let due: Vec<_> = page.into_iter().filter(|(_, since)| *since < due_before).collect();
            self.status.lock().images_left = due.len() as u64;
            let mut settled = BTreeMap::new();
            for (image, since) in due {
                let is_done = match self.recall(image, since, &mut remembered)? {
                    Some(judged) if judged.is_all() => !memory.keep(image, judged),
                    judged => {
                        let ended = self.compact_alone(image, dry_run, &mut pace).await?;
                        let shares = ended.is_whole && !ended.shared.is_empty();
                        if shares {
                            sharing.add(image, since, ended.shared, judged);
                        }
                        ended.is_whole && !shares
                    }
                };
                if is_done {
                    settled.insert(image, since);
                }
                self.status.lock().images_left -= 1;
            }
            if !dry_run {
                self.settle(settled).await?;
            }
        }
        self.status.lock().images_left = sharing.images() as u64;
        let settled = self.compact_shared(sharing, dry_run, &mut pace, memory).await?;
        self.settle(settled).await?;
        self.status.lock().images_left = 0;
        Ok(())
    }

    /// Says that images are looked through.
    async fn settle(&self, settled: BTreeMap<ImageId, Timestamp>) -> Result<(), Error> {
        let mut settled = settled.into_iter();
        loop {
            let images: BTreeMap<ImageId, Timestamp> =
                settled.by_ref().take(SETTLED_IMAGES_MAX).collect();
            if images.is_empty() {
                return Ok(());
            }
            self.raft.propose(clock::now(), Command::SettleImages { images }).await?;
        }
    }

    /// An image whose packs cannot be looked at or moved is left to the next time, and stops nothing.
    async fn compact_alone(
        &self,
        image: ImageId,
        dry_run: bool,
        pace: &mut Pace,
    ) -> Result<Ended, Error> {
        match self.compact_image(image, dry_run, pace).await {
            // It would be so each time.
            Err(error @ Error::TooManyChunks) => {
                warn!(%image, error = chain(&error), "its packs stay as they are");
                Ok(Ended { is_whole: true, shared: Vec::new() })
            }
            Err(error) if !error.concerns_all() => {
                warn!(%image, error = chain(&error), "its packs cannot be compacted");
                self.note_failure(&error);
                Ok(Ended::default())
            }
            ended => ended,
        }
    }

    async fn compact_image(
        &self,
        image: ImageId,
        dry_run: bool,
        pace: &mut Pace,
    ) -> Result<Ended, Error> {
        // Packs that cannot be read, or turned out to be worth their bytes.
        let mut skipped: BTreeSet<ObjectKey> = BTreeSet::new();
        if dry_run {
            let Surveyed { survey, shared } =
                self.survey(image, &skipped, PACKS_COUNTED_MAX).await?;
            self.note_survey(survey.as_ref());
            return Ok(Ended { is_whole: true, shared });
        }
        let images = BTreeSet::from([image]);
        for _ in 0..ROUNDS_MAX {
            let Surveyed { survey, shared } = self.survey(image, &skipped, PACKS_AT_ONCE).await?;
            let Some(survey) = survey else { return Ok(Ended { is_whole: true, shared }) };
            if !self.compact_survey(&images, survey, &mut skipped, pace).await? {
                break;
            }
        }
        Ok(Ended::default())
    }

    /// Gives whether there is nothing left to be done.
    async fn compact_group(
        &self,
        group: &Group,
        dry_run: bool,
        pace: &mut Pace,
    ) -> Result<bool, Error> {
        let mut skipped: BTreeSet<ObjectKey> = BTreeSet::new();
        if dry_run {
            let survey = self.survey_shared(group, &skipped, PACKS_COUNTED_MAX).await?;
            self.note_survey(survey.as_ref());
            return Ok(true);
        }
        for _ in 0..ROUNDS_MAX {
            let survey = self.survey_shared(group, &skipped, PACKS_AT_ONCE).await?;
            let Some(survey) = survey else { return Ok(true) };
            if !self.compact_survey(&group.images, survey, &mut skipped, pace).await? {
                break;
            }
        }
        Ok(false)
    }

    /// Gives whether what was surveyed was still so; adds what is not to be looked at again.
    async fn compact_survey(
        &self,
        images: &BTreeSet<ImageId>,
        survey: Survey,
        skipped: &mut BTreeSet<ObjectKey>,
        pace: &mut Pace,
    ) -> Result<bool, Error> {
        // Else they would be looked at in place of others, each time.
        skipped.extend(&survey.left);
        if survey.packs.is_empty() {
            return Ok(true);
        }
        let moved = self.move_chunks(images, survey, pace).await?;
        if moved.is_overtaken {
            return Ok(false);
        }
        skipped.extend(&moved.unreadable);
        let saved_bytes = moved.dropped_bytes.saturating_sub(moved.written_bytes);
        self.meters.packs.inc_by(moved.packs);
        self.meters.written_bytes.inc_by(moved.written_bytes);
        self.meters.saved_bytes.inc_by(saved_bytes);
        let mut status = self.status.lock();
        status.packs += moved.packs;
        status.written_bytes += moved.written_bytes;
        status.saved_bytes += saved_bytes;
        Ok(true)
    }

    fn note_survey(&self, survey: Option<&Survey>) {
        let mut status = self.status.lock();
        for pack in survey.into_iter().flat_map(|survey| survey.packs.values()) {
            let needed = pack.needed_bytes();
            status.packs += 1;
            status.written_bytes += needed;
            status.saved_bytes += pack.length.saturating_sub(needed);
        }
    }
}

fn begun(dry_run: bool) -> CompactionStatus {
    let started_at = Some(clock::rfc3339(clock::now()));
    CompactionStatus { running: true, dry_run, started_at, ..CompactionStatus::default() }
}
