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
//!    storage. Where it is gone, `ForgetObjects` makes the name free; where it is there, the
//!    deletion begins anew with another mark.
//!
//! Whoever publishes looks for the bytes of all objects just before it proposes, and again where
//! [`PUBLISH_WINDOW`] has passed: bytes that were there then cannot be deleted before the command
//! is applied, or the command is refused because of the mark.
//!
//! A crash at any step leaves a mark, which the next leader finds. The times are the nodes' wall
//! clocks; they may differ by minutes without harm, by a quarter of an hour not.
//!
//! Non-goals: objects that no row ever named (see `scrub`), sessions that expire (see `disks`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use shoal_content::{Digest, ImageId, ObjectKey, Timestamp};
use shoal_metadata::{Command, Fault, Response};
use shoal_raft::{ProposeError, Raft, ReadError};
use thiserror::Error;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{info, warn};

use crate::clock;
use crate::store::{BlobStore, StoreError};

/// Within this time of looking for its objects, a publishing command is proposed.
pub const PUBLISH_WINDOW: Duration = Duration::from_secs(5 * 60);
/// Objects of one command, and of one look at the rows.
const BATCH_OBJECTS: usize = 1000;
/// Keys in one call of delete.
const DELETE_KEYS: usize = 500;
const DELETE_TIMEOUT: Duration = Duration::from_secs(30);

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
}

/// What one look did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Marked, and deleted from storage.
    pub swept: usize,
    /// Found in storage though deleted, and deleted again.
    pub again: usize,
    /// Their names are free.
    pub forgotten: usize,
    /// Blobs that repositories let go of.
    pub unlinked: usize,
}

/// See the module's documentation. Clones count the same.
#[derive(Debug, Clone)]
pub struct Collector {
    raft: Raft,
    store: Arc<dyn BlobStore>,
    timing: Timing,
    swept: Counter,
    failures: Counter,
}

impl Collector {
    pub fn new(
        raft: Raft,
        store: Arc<dyn BlobStore>,
        timing: Timing,
        registry: &mut Registry,
    ) -> Self {
        let (swept, failures) = (Counter::default(), Counter::default());
        registry.register(
            "shoal_collection_objects",
            "Objects deleted because nothing referred to them",
            swept.clone(),
        );
        registry.register(
            "shoal_collection_failures",
            "Looks for unreferenced objects that ended early",
            failures.clone(),
        );
        Self { raft, store, timing, swept, failures }
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
                Ok(Collected { swept, again, forgotten, unlinked }) => {
                    info!(swept, again, forgotten, unlinked, "collected what nobody needs");
                }
                Err(error) => {
                    self.failures.inc();
                    warn!(error = %crate::http::problem::chain(&error), "collection ended early");
                }
            }
        }
    }

    /// One look at everything.
    ///
    /// # Errors
    /// What stopped it; what was done stays done, and the next look goes on.
    pub async fn collect(&self) -> Result<Collected, CollectionError> {
        let mut done = Collected::default();
        self.end_deletions(&mut done).await?;
        self.unlink_loose(&mut done).await?;
        loop {
            let now = clock::now();
            let before = earlier(now, self.timing.grace);
            let candidates: BTreeSet<ObjectKey> = {
                let view = self.raft.read().await?;
                view.query().unreferenced_objects(before, BATCH_OBJECTS)?.into_iter().collect()
            };
            if candidates.is_empty() {
                return Ok(done);
            }
            let sweep = Command::SweepObjects { candidates, unreferenced_before: before };
            let swept = self.mark(now, sweep).await?;
            if swept.is_empty() {
                return Ok(done);
            }
            self.delete(&swept, now).await?;
            done.swept += swept.len();
            self.swept.inc_by(swept.len() as u64);
        }
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
                let unlink = Command::UnlinkLooseBlobs { links, loose_before };
                self.raft.propose(now, unlink).await?;
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
            let (mut gone, mut there) = (BTreeSet::new(), BTreeSet::new());
            for (object, since) in rows {
                let age = Duration::from_millis(now.as_millis().saturating_sub(since.as_millis()));
                if age < self.timing.window {
                    // The node that marked it may not have come to it.
                    self.delete(&[object].into(), since).await?;
                } else if age >= self.timing.forget {
                    match self.store.length(object).await? {
                        None => gone.insert(object),
                        Some(_) => there.insert(object),
                    };
                }
            }
            if !there.is_empty() {
                let now = clock::now();
                let again = self.mark(now, Command::RetryDeletion { objects: there }).await?;
                self.delete(&again, now).await?;
                done.again += again.len();
            }
            if !gone.is_empty() {
                let now = clock::now();
                done.forgotten += gone.len();
                let deleting_before = earlier(now, self.timing.forget);
                // Times are in whole milliseconds, and what is as old as that may go.
                let deleting_before = deleting_before.plus_millis(1);
                let forget = Command::ForgetObjects { objects: gone, deleting_before };
                self.raft.propose(now, forget).await?;
            }
        }
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

    /// Deletes what was marked at `since`, as far as the window allows.
    async fn delete(
        &self,
        objects: &BTreeSet<ObjectKey>,
        since: Timestamp,
    ) -> Result<(), CollectionError> {
        let keys: Vec<ObjectKey> = objects.iter().copied().collect();
        for batch in keys.chunks(DELETE_KEYS) {
            if clock::now() >= since.plus_millis(self.timing.window.as_millis() as u64) {
                // The rest is found when the marks are looked at.
                return Ok(());
            }
            match tokio::time::timeout(DELETE_TIMEOUT, self.store.delete(batch)).await {
                Ok(deleted) => deleted?,
                Err(_) => warn!(objects = batch.len(), "a deletion takes too long; given up"),
            }
        }
        Ok(())
    }
}

fn earlier(at: Timestamp, by: Duration) -> Timestamp {
    Timestamp::from_millis(at.as_millis().saturating_sub(by.as_millis() as u64))
}
