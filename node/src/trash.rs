//! Ends deleted images for good once they were kept long enough.
//!
//! Invariant: only the leader looks, and looks again right before each command: the command itself
//! ends an image whether it is deleted or not, and one that was restored meanwhile stays. (A restore
//! in the moment between that look and the command still loses.) What cannot go – its project has
//! made it immutable since – stays, and is tried again at the next look. An image goes in pieces, of
//! a command each; what somebody else began and did not come to the end of is ended here, too.

use std::time::Duration;

use shoal_content::ImageId;
use shoal_metadata::{AuditSource, Command, DeletedImage, Refusal, Response};
use shoal_raft::{ProposeError, Raft, ReadError};
use thiserror::Error;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{info, warn};

use crate::clock;
use crate::http::problem::chain;

/// Images that one look reads at once.
const SCAN_ROWS: usize = 500;
/// Rows that one command is to write of an image's end: those of some hundred versions.
pub const PURGE_ROWS: u32 = 5_000;

#[derive(Debug, Error)]
pub enum Error {
    #[error("the metadata cannot be read")]
    Read(#[from] ReadError),
    #[error("the metadata cannot be read")]
    Rows(#[from] shoal_metadata::Fault),
    #[error("the metadata did not take a command")]
    Propose(#[from] ProposeError),
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Trash {
    raft: Raft,
    keep: Duration,
    interval: Duration,
}

impl Trash {
    pub fn new(raft: Raft, keep: Duration, interval: Duration) -> Self {
        Self { raft, keep, interval }
    }

    /// Looks at every interval while this node leads. Runs until it is dropped.
    pub async fn run(self) {
        let mut ticks = interval_at(Instant::now() + self.interval, self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if !self.raft.status().is_leader {
                continue;
            }
            match self.empty().await {
                Ok(0) => {}
                Ok(images) => info!(images, "deleted images are gone for good"),
                Err(error) => {
                    warn!(error = chain(&error), "deleted images stay for now");
                }
            }
        }
    }

    /// Ends what is due; says how many.
    ///
    /// # Errors
    /// Where the metadata do not answer.
    pub async fn empty(&self) -> Result<usize, Error> {
        self.end(self.due().await?).await
    }

    /// What was deleted long enough ago, or is on its way out already.
    ///
    /// # Errors
    /// Where the metadata do not answer.
    pub async fn due(&self) -> Result<Vec<ImageId>, Error> {
        let view = self.raft.read().await?;
        let (mut due, mut after) = (Vec::new(), None);
        loop {
            let from = after.as_ref().map(|(name, id)| (name, *id));
            let rows = view.query().deleted_images(from, SCAN_ROWS)?;
            let last = rows.len() < SCAN_ROWS;
            after = rows.last().map(|(image, _)| (image.name.clone(), image.id));
            for (image, deletion) in rows {
                if self.is_old(&deletion) || view.query().is_purged(image.id)? {
                    due.push(image.id);
                }
            }
            if last {
                return Ok(due);
            }
        }
    }

    fn is_old(&self, deletion: &DeletedImage) -> bool {
        let before = clock::now().as_millis().saturating_sub(self.keep.as_millis() as u64);
        deletion.at.as_millis() <= before
    }

    /// Whether it is deleted, and was long enough ago, as of now.
    async fn is_due(&self, id: ImageId) -> Result<bool, Error> {
        let view = self.raft.read().await?;
        let Some(image) = view.query().image(id)? else { return Ok(false) };
        if view.query().is_purged(id)? {
            return Ok(true);
        }
        Ok(view.query().deletion(&image)?.is_some_and(|deletion| self.is_old(&deletion)))
    }

    /// Ends those of the images that are due still; says how many.
    ///
    /// # Errors
    /// Where the metadata do not answer.
    pub async fn end(&self, images: Vec<ImageId>) -> Result<usize, Error> {
        let mut gone = 0;
        for id in images {
            if !self.is_due(id).await? {
                continue;
            }
            match self.end_one(id).await {
                // Whoever began it may have ended it, too.
                Ok(()) | Err(ProposeError::Refused(Refusal::NotFound(_))) => gone += 1,
                Err(ProposeError::Refused(refusal)) => {
                    info!(image = %id, %refusal, "a deleted image stays");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(gone)
    }

    async fn end_one(&self, id: ImageId) -> Result<(), ProposeError> {
        let who = "cluster";
        loop {
            let source = AuditSource { who: who.to_owned(), ..AuditSource::default() };
            let piece = Command::PurgeImage { id, by: who.to_owned(), rows_max: PURGE_ROWS };
            let command = Command::Audited { source, command: Box::new(piece) };
            let answer = self.raft.propose(clock::now(), command).await?;
            if answer != (Response::Purged { gone: false }) {
                return Ok(());
            }
        }
    }
}
