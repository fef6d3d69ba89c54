//! Deletes from storage what no row refers to any more, while pushes go on.
//!
//! Repositories first let go of blobs that no version of theirs has needed for the grace period.
//!
//! Packs and recipes are named by their content, so an upload may want a name again while its bytes
//! are being deleted. Hence this order, for each object:
//!
//! 1. Its count has been zero for [`Timing::grace`]. `SweepObjects` looks again, and marks it as
//!    being deleted: from now on no row can name it.
//! 2. Its bytes are deleted, by a call that begins within [`Timing::window`] of the mark.
//! 3. At [`Timing::forget`] after the mark, when no such call can be under way, it is looked for in
//!    storage. Where it is gone, `ForgetObjects` makes the name free. Where it is there since before
//!    the mark, nobody came to delete it, and the deletion begins anew with another mark. Where it
//!    was stored after the mark, an upload wants it, and stores it after every deletion: the name is
//!    made free, and the object is adopted like any that no row knows, to go after the grace period
//!    unless the upload comes to name it.
//!
//! Whoever publishes looks for the bytes of all objects just before it proposes, and again where
//! [`PUBLISH_WINDOW`] has passed: bytes that were there then cannot be deleted before the command
//! is applied, or the command is refused because of the mark.
//!
//! A crash at any step leaves a mark, which the next leader finds. The times are the nodes' wall
//! clocks; they may differ by minutes without harm, by a quarter of an hour not.
//!
//! What it frees is what storage says of the lengths before it deletes; an object that storage does
//! not tell of is deleted all the same, and counts as nothing.
//!
//! Non-goals: objects that no row ever named (see `scrub`), sessions that expire (see `disks`), packs of
//! which little is needed (see `compaction`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use shoal_api::{CollectionDone, CollectionStatus};
use shoal_content::{Digest, ImageId, ObjectKey, Timestamp};
use shoal_metadata::{Command, Fault, Response};
use shoal_raft::{ProposeError, Raft, ReadError};
use thiserror::Error;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{info, warn};

use crate::clock;
use crate::ownership::{Ownership, OwnershipError};
use crate::store::{BlobStore, StoreError};

/// Within this time of looking for its objects, a publishing command is proposed.
pub const PUBLISH_WINDOW: Duration = Duration::from_secs(5 * 60);
/// Objects of one command, and of one look at the rows.
const BATCH_OBJECTS: usize = 1000;
/// Keys in one call of delete.
const DELETE_KEYS: usize = 500;
const DELETE_TIMEOUT: Duration = Duration::from_secs(30);
/// Objects whose lengths are asked for at once.
const LENGTHS_AT_ONCE: usize = 16;
/// How long storage may take to tell an object's length.
const LENGTH_TIMEOUT: Duration = Duration::from_secs(5);
/// Counting what is due stops here.
const DUE_COUNTED_MAX: usize = 100_000;

/// An object of these that storage does not have, or not for long, if there is one.
///
/// # Errors
/// What storage says.
pub async fn first_missing(
    store: &Arc<dyn BlobStore>,
    objects: &[ObjectKey],
) -> Result<Option<ObjectKey>, StoreError> {
    let looks = objects.iter().copied().map(|object| {
        let store = Arc::clone(store);
        async move { Ok((!store.lasts(object).await?).then_some(object)) }
    });
    let mut looks = futures::stream::iter(looks).buffer_unordered(LENGTHS_AT_ONCE);
    while let Some(looked) = looks.next().await {
        if let Some(missing) = looked? {
            return Ok(Some(missing));
        }
    }
    Ok(None)
}

/// When what is done to an object; see the module's documentation.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// How long an object is kept that nothing refers to.
    pub grace: Duration,
    /// From one look to the next.
    pub interval: Duration,
    pub window: Duration,
    pub forget: Duration,
}

impl Timing {
    /// The window and the time of forgetting leave room for [`PUBLISH_WINDOW`] and for clocks that
    /// differ.
    pub const fn new(grace: Duration, interval: Duration) -> Self {
        let window = Duration::from_secs(2 * 60);
        Self { grace, interval, window, forget: Duration::from_secs(15 * 60) }
    }
}

/// Why a look ended early.
#[derive(Debug, Error)]
pub enum CollectionError {
    #[error("the metadata cannot be read")]
    Read(#[from] ReadError),
    #[error("the metadata cannot be read")]
    Rows(#[from] Fault),
    #[error("the metadata did not take a command")]
    Propose(#[from] ProposeError),
    #[error("storage did not answer")]
    Store(#[from] StoreError),
    #[error("nothing may be deleted from storage")]
    Ownership(#[from] OwnershipError),
}

/// What one look did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Marked, and deleted from storage.
    pub swept: usize,
    /// What was deleted took so much there.
    pub freed_bytes: u64,
    /// Found in storage since before their deletion began, and deleted again.
    pub again: usize,
    /// Their names are free: they are gone, or wanted again.
    pub forgotten: usize,
    /// Blobs that repositories let go of.
    pub unlinked: usize,
}

impl From<Collected> for CollectionDone {
    fn from(done: Collected) -> Self {
        Self {
            deleted: done.swept as u64,
            freed_bytes: done.freed_bytes,
            deleted_again: done.again as u64,
            forgotten: done.forgotten as u64,
            unlinked: done.unlinked as u64,
        }
    }
}

/// See the module's documentation. Clones count the same, and look one after another.
#[derive(Debug, Clone)]
pub struct Collector {
    raft: Raft,
    store: Arc<dyn BlobStore>,
    ownership: Ownership,
    timing: Timing,
    turn: Arc<tokio::sync::Mutex<()>>,
    status: Arc<Mutex<CollectionStatus>>,
    meters: Meters,
}

#[derive(Debug, Clone, Default)]
struct Meters {
    swept: Counter,
    freed_bytes: Counter,
    unlinked: Counter,
    failures: Counter,
    left: Gauge,
}

/// A look that is under way; where it is given up, too, it says that it has ended.
struct Look<'a> {
    collector: &'a Collector,
    _turn: tokio::sync::MutexGuard<'a, ()>,
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        let mut status = self.collector.status.lock();
        status.running = false;
        status.ended_at = Some(clock::rfc3339(clock::now()));
        self.collector.meters.left.set(0);
    }
}

type Lengths = BTreeMap<ObjectKey, u64>;

/// What storage has of an object that was to be deleted.
#[derive(Debug, Clone, Copy)]
enum Standing {
    Gone,
    /// Stored since, for an upload that wants it.
    Anew,
    There,
}

impl Collector {
    pub fn new(
        raft: Raft,
        store: Arc<dyn BlobStore>,
        ownership: Ownership,
        timing: Timing,
        registry: &mut Registry,
    ) -> Self {
        let meters = Meters::default();
        for (name, help, counter) in [
            ("objects", "Objects deleted because nothing referred to them", &meters.swept),
            ("freed_bytes", "What those objects took in storage", &meters.freed_bytes),
            ("unlinked", "Blobs that repositories let go of unused", &meters.unlinked),
            ("failures", "Looks for unreferenced objects that ended early", &meters.failures),
        ] {
            registry.register(format!("shoal_collection_{name}"), help, counter.clone());
        }
        registry.register(
            "shoal_collection_left",
            "Objects that the collection under way at this node has yet to delete",
            meters.left.clone(),
        );
        let (turn, status) = Default::default();
        Self { raft, store, ownership, timing, turn, status, meters }
    }

    /// How far the collection under way at this node is, or what its last one came to.
    pub fn status(&self) -> CollectionStatus {
        self.status.lock().clone()
    }

    /// Looks at every interval while this node leads. Runs until it is dropped.
    pub async fn run(self) {
        let mut ticks = interval_at(Instant::now() + self.timing.interval, self.timing.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if !self.raft.status().is_leader {
                continue;
            }
            match self.collect().await {
                Ok(done) if done == Collected::default() => {}
                Ok(Collected { swept, freed_bytes, again, forgotten, unlinked }) => {
                    info!(
                        swept,
                        freed_bytes, again, forgotten, unlinked, "collected what nobody needs"
                    );
                }
                Err(error) => {
                    warn!(error = %crate::http::problem::chain(&error), "collection ended early");
                }
            }
        }
    }

    /// One look at everything, after the one that is under way.
    ///
    /// # Errors
    /// What stopped it; what was done stays done, and the next look goes on.
    pub async fn collect(&self) -> Result<Collected, CollectionError> {
        let look = Look { _turn: self.turn.lock().await, collector: self };
        let started_at = Some(clock::rfc3339(clock::now()));
        *self.status.lock() =
            CollectionStatus { running: true, started_at, ..CollectionStatus::default() };
        let mut done = Collected::default();
        let outcome = self.look(&mut done).await;
        self.note(&done);
        if let Err(error) = &outcome {
            self.meters.failures.inc();
            self.status.lock().error = Some(crate::http::problem::chain(error));
        }
        drop(look);
        outcome.map(|()| done)
    }

    /// Shows how far it is.
    fn note(&self, done: &Collected) {
        let mut status = self.status.lock();
        let swept = (done.swept as u64).saturating_sub(status.done.deleted);
        status.left = status.left.saturating_sub(swept);
        status.done = (*done).into();
        self.meters.left.set(i64::try_from(status.left).unwrap_or(i64::MAX));
    }

    /// Counts what is due.
    async fn count_due(&self) -> Result<(), CollectionError> {
        let before = earlier(clock::now(), self.timing.grace);
        let view = self.raft.read().await?;
        let due = view.query().unreferenced_objects(before, DUE_COUNTED_MAX)?.len();
        let mut status = self.status.lock();
        (status.due, status.left) = (due as u64, due as u64);
        status.more_due = due == DUE_COUNTED_MAX;
        self.meters.left.set(i64::try_from(due).unwrap_or(i64::MAX));
        Ok(())
    }

    async fn look(&self, done: &mut Collected) -> Result<(), CollectionError> {
        self.ownership.hold().await?;
        self.end_deletions(done).await?;
        self.unlink_loose(done).await?;
        self.count_due().await?;
        loop {
            let before = earlier(clock::now(), self.timing.grace);
            let candidates: BTreeSet<ObjectKey> = {
                let view = self.raft.read().await?;
                view.query().unreferenced_objects(before, BATCH_OBJECTS)?.into_iter().collect()
            };
            if candidates.is_empty() {
                return Ok(());
            }
            self.ownership.hold().await?;
            // Before the mark, since there is not much time after it.
            let lengths = self.lengths(&candidates).await;
            let now = clock::now();
            let sweep = Command::SweepObjects { candidates, unreferenced_before: before };
            let swept = self.mark(now, sweep).await?;
            if swept.is_empty() {
                return Ok(());
            }
            done.freed_bytes += self.delete(&swept, now, &lengths).await?;
            done.swept += swept.len();
            self.meters.swept.inc_by(swept.len() as u64);
            self.note(done);
        }
    }

    /// What storage says of them, as far as it answers.
    async fn lengths(&self, objects: &BTreeSet<ObjectKey>) -> Lengths {
        let length = |object: ObjectKey| async move {
            let asked = tokio::time::timeout(LENGTH_TIMEOUT, self.store.length(object)).await;
            Some((object, asked.ok()?.ok()??))
        };
        let asked = futures::stream::iter(objects.iter().copied().map(length));
        asked.buffer_unordered(LENGTHS_AT_ONCE).filter_map(futures::future::ready).collect().await
    }

    /// Lets repositories let go of blobs that nothing of theirs needs.
    async fn unlink_loose(&self, done: &mut Collected) -> Result<(), CollectionError> {
        let mut after = None;
        loop {
            let view = self.raft.read().await?;
            let rows = view.query().loose_blobs(after.as_ref(), BATCH_OBJECTS)?;
            drop(view);
            let Some((image, digest, _)) = rows.last() else { return Ok(()) };
            after = Some((*image, digest.clone()));
            let now = clock::now();
            let loose_before = earlier(now, self.timing.grace);
            let due = rows.into_iter().filter(|(_, _, since)| *since < loose_before);
            let links: BTreeSet<(ImageId, Digest)> =
                due.map(|(image, digest, _)| (image, digest)).collect();
            if !links.is_empty() {
                done.unlinked += links.len();
                self.meters.unlinked.inc_by(links.len() as u64);
                let unlink = Command::UnlinkLooseBlobs { links, loose_before };
                self.raft.propose(now, unlink).await?;
                self.note(done);
            }
        }
    }

    /// Goes through what is marked: deletes, looks again, forgets.
    async fn end_deletions(&self, done: &mut Collected) -> Result<(), CollectionError> {
        let mut after = None;
        loop {
            let view = self.raft.read().await?;
            let rows = view.query().deleting_objects(after.as_ref(), BATCH_OBJECTS)?;
            drop(view);
            let Some(&(last, _)) = rows.last() else { return Ok(()) };
            after = Some(last);
            let now = clock::now();
            let (mut young, mut old) = (BTreeMap::<_, BTreeSet<_>>::new(), Vec::new());
            for (object, since) in rows {
                let age = Duration::from_millis(now.as_millis().saturating_sub(since.as_millis()));
                if age < self.timing.window {
                    young.entry(since).or_default().insert(object);
                } else if age >= self.timing.forget {
                    old.push((object, since));
                }
            }
            for (since, objects) in young {
                // The node that marked them may not have come to them.
                self.delete(&objects, since, &Lengths::new()).await?;
            }
            let (mut gone, mut there, mut wanted) =
                (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
            let look = |(object, since): (ObjectKey, Timestamp)| async move {
                Ok::<_, CollectionError>((object, self.standing(object, since).await?))
            };
            let mut looks =
                futures::stream::iter(old.into_iter().map(look)).buffer_unordered(LENGTHS_AT_ONCE);
            while let Some(looked) = looks.next().await {
                let (object, standing) = looked?;
                match standing {
                    Standing::Gone => gone.insert(object),
                    Standing::Anew => wanted.insert(object),
                    Standing::There => there.insert(object),
                };
            }
            if !there.is_empty() {
                let now = clock::now();
                let again = self.mark(now, Command::RetryDeletion { objects: there }).await?;
                // Counted when it was deleted first.
                self.delete(&again, now, &Lengths::new()).await?;
                done.again += again.len();
            }
            gone.extend(&wanted);
            if !gone.is_empty() {
                let now = clock::now();
                done.forgotten += gone.len();
                let deleting_before = earlier(now, self.timing.forget);
                // Times are in whole milliseconds, and what is as old as that may go.
                let deleting_before = deleting_before.plus_millis(1);
                let forget = Command::ForgetObjects { objects: gone, deleting_before };
                self.raft.propose(now, forget).await?;
            }
            if !wanted.is_empty() {
                // Should this not come through, the scrub finds what no upload has named by then.
                let adopt = Command::AdoptObjects { objects: wanted };
                self.raft.propose(clock::now(), adopt).await?;
            }
        }
    }

    /// How an object stands whose deletion began at `since`, when that is over.
    async fn standing(
        &self,
        object: ObjectKey,
        since: Timestamp,
    ) -> Result<Standing, CollectionError> {
        if self.store.length(object).await?.is_none() {
            return Ok(Standing::Gone);
        }
        let anew = self.is_stored_anew(object, since).await?;
        Ok(if anew { Standing::Anew } else { Standing::There })
    }

    /// Whether the object was stored after `since`, when its deletion began; or so shortly before
    /// that storage's clock may be behind.
    async fn is_stored_anew(
        &self,
        object: ObjectKey,
        since: Timestamp,
    ) -> Result<bool, CollectionError> {
        let found = self.store.list(&object.to_string(), None, 1).await?;
        let found = found.first().filter(|found| found.key == object);
        Ok(found.is_some_and(|found| found.stored_at > earlier(since, self.timing.window)))
    }

    /// Proposes a command that says what may be deleted.
    async fn mark(
        &self,
        now: Timestamp,
        command: Command,
    ) -> Result<BTreeSet<ObjectKey>, CollectionError> {
        match self.raft.propose(now, command).await? {
            Response::Swept(objects) => Ok(objects),
            _ => Ok(BTreeSet::new()),
        }
    }

    /// Deletes what was marked at `since`, as far as the window allows; gives what that took in
    /// storage, by `lengths`.
    async fn delete(
        &self,
        objects: &BTreeSet<ObjectKey>,
        since: Timestamp,
        lengths: &Lengths,
    ) -> Result<u64, CollectionError> {
        let mut freed = 0;
        let keys: Vec<ObjectKey> = objects.iter().copied().collect();
        for batch in keys.chunks(DELETE_KEYS) {
            self.ownership.hold().await?;
            if clock::now() >= since.plus_millis(self.timing.window.as_millis() as u64) {
                // The rest is found when the marks are looked at.
                break;
            }
            match tokio::time::timeout(DELETE_TIMEOUT, self.store.delete(batch)).await {
                Ok(deleted) => {
                    deleted?;
                    let bytes: u64 = batch.iter().filter_map(|object| lengths.get(object)).sum();
                    self.meters.freed_bytes.inc_by(bytes);
                    freed += bytes;
                }
                Err(_) => warn!(objects = batch.len(), "a deletion takes too long; given up"),
            }
        }
        Ok(freed)
    }
}

fn earlier(at: Timestamp, by: Duration) -> Timestamp {
    Timestamp::from_millis(at.as_millis().saturating_sub(by.as_millis() as u64))
}
