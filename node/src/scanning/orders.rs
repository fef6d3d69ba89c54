//! Scans that nobody has ordered: of what was just pushed, and of what was scanned long ago.
//!
//! Invariant: fewer than [`OPEN_MAX`] scans are open where one is ordered so, which leaves room for what
//! people order.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use shoal_content::{Digest, RepositoryName, Timestamp, VersionId};
use shoal_metadata::{Fault, Image, Query, Read, ScanKey};
use shoal_raft::{ProposeError, ReadError};
use thiserror::Error;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use super::{Scanner, order, unfit};
use crate::clock;
use crate::http::problem::chain;

/// How often it is looked for what was scanned long ago.
const INTERVAL: Duration = Duration::from_secs(600);
const OPEN_MAX: usize = 500;
/// Rows of one look.
const PAGE_IMAGES: usize = 100;
/// Tags of one image whose versions are scanned again.
const TAGS_MAX: usize = 1000;
const HOUR_MS: u64 = 3_600_000;

/// Why a round was cut short; the next one goes on.
#[derive(Debug, Error)]
pub enum OrderError {
    #[error(transparent)]
    Rows(#[from] Fault),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

impl Scanner {
    /// A version was pushed here.
    pub fn pushed(&self, version: VersionId) {
        if !self.settings().is_some_and(|settings| settings.config.on_push) {
            return;
        }
        let Ok(permit) = Arc::clone(&self.inner.pushes).try_acquire_owned() else { return };
        let this = self.clone();
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = this.order_pushed(version).await {
                let error = chain(&error);
                info!(%version, error, "a version that was pushed is scanned later");
            }
        });
    }

    async fn order_pushed(&self, version: VersionId) -> Result<(), OrderError> {
        let of = {
            let view = self.inner.raft.read().await?;
            let query = view.query();
            let Some(version) = query.version_by_id(version)? else { return Ok(()) };
            if query.open_scans(OPEN_MAX)?.len() >= OPEN_MAX {
                // It is found among those that are due.
                return Ok(());
            }
            // What has no tag is a part of an index that comes later, or attached to another one.
            let tagged = version.disk.is_some()
                || !query.tags_of(version.image, &version.digest)?.is_empty();
            let of = ScanKey { image: version.image, digest: version.digest };
            if !tagged || version.subject.is_some() || unfit(query, &of)?.is_some() {
                return Ok(());
            }
            of
        };
        self.inner.raft.propose(clock::now(), order(of, String::new())).await?;
        Ok(())
    }

    /// On whichever node leads. Runs until it is dropped.
    pub(super) async fn keep_ordering(&self) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if !self.inner.raft.status().is_leader {
                continue;
            }
            match self.order_due(clock::now()).await {
                Ok(0) => {}
                Ok(ordered) => info!(ordered, "versions are scanned again"),
                Err(error) => {
                    warn!(error = chain(&error), "not all scans that are due are ordered")
                }
            }
        }
    }

    /// Orders scans of the latest and of tagged versions that have had none for `every_hours`, as of
    /// `now`; says of how many.
    ///
    /// # Errors
    /// What stopped it.
    pub async fn order_due(&self, now: Timestamp) -> Result<usize, OrderError> {
        let Some(settings) = self.settings() else { return Ok(0) };
        if settings.config.every_hours == 0 {
            return Ok(0);
        }
        let every = u64::from(settings.config.every_hours) * HOUR_MS;
        let before = Timestamp::from_millis(now.as_millis().saturating_sub(every));
        let mut room = {
            let open = self.inner.raft.local().query().open_scans(OPEN_MAX)?.len();
            OPEN_MAX - open
        };
        let (mut after, mut ordered) = (None::<RepositoryName>, 0);
        while room > 0 {
            let (this, from) = (self.clone(), after.take());
            // What is not due has its rows read, too, and nobody else is to wait for that.
            let page = tokio::task::spawn_blocking(move || this.due_after(from.as_ref(), before));
            // Else the node is stopping.
            let Ok(page) = page.await else { break };
            let Some((last, due)) = page? else { break };
            after = Some(last);
            for of in due.into_iter().take(room) {
                match self.inner.raft.propose(clock::now(), order(of, String::new())).await {
                    Ok(_) => (ordered, room) = (ordered + 1, room - 1),
                    // It has gone meanwhile, or too much is open.
                    Err(ProposeError::Refused(refusal)) => {
                        debug!(%refusal, "a scan is not ordered")
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(ordered)
    }

    /// What is due of a page of images, and the last of them; nothing behind the last page.
    fn due_after(
        &self,
        after: Option<&RepositoryName>,
        before: Timestamp,
    ) -> Result<Option<(RepositoryName, Vec<ScanKey>)>, Fault> {
        let view = self.inner.raft.local();
        let page = view.query().images(after, PAGE_IMAGES)?;
        let Some(last) = page.last().map(|image| image.name.clone()) else { return Ok(None) };
        let mut due = Vec::new();
        for image in page {
            due.extend(due_of(view.query(), &image, before)?);
        }
        Ok(Some((last, due)))
    }
}

/// Versions of the image that are in use and have not been scanned since then.
fn due_of<R: Read>(
    query: Query<'_, R>,
    image: &Image,
    before: Timestamp,
) -> Result<Vec<ScanKey>, Fault> {
    let tags = query.tags(image.id, None, TAGS_MAX)?;
    let mut digests: BTreeSet<Digest> = tags.into_iter().map(|(_, digest)| digest).collect();
    digests.extend(image.latest.clone());
    let mut due = Vec::new();
    for digest in digests {
        let of = ScanKey { image: image.id, digest };
        let is_due = match query.scan(&of)? {
            Some(scan) => !scan.state.is_open() && scan.ordered_at <= before,
            None => true,
        };
        if is_due && unfit(query, &of)?.is_none() {
            due.push(of);
        }
    }
    Ok(due)
}
