//! Notes which bundles are in use, and drops those that are not.

use std::collections::BTreeSet;
use std::time::Duration;

use shoal_content::Timestamp;
use shoal_metadata::{Command, DELTAS_AT_ONCE_MAX, DeltaKey};
use shoal_raft::ProposeError;
use thiserror::Error;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{info, warn};

use super::Deltas;
use crate::clock;

const INTERVAL: Duration = Duration::from_secs(60);
const DAY_MS: u64 = 24 * 3600 * 1000;

/// Why a round was cut short; the next one goes on.
#[derive(Debug, Error)]
enum Error {
    #[error(transparent)]
    Rows(#[from] shoal_metadata::Fault),
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

impl Deltas {
    /// Runs until it is dropped.
    pub async fn run(self) {
        let mut ticks = interval_at(Instant::now() + INTERVAL, INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.note_uses().await {
                warn!(%error, "the use of delta bundles could not be noted");
            }
            if let Err(error) = self.expire().await {
                warn!(%error, "unused delta bundles could not be dropped");
            }
        }
    }

    async fn note_uses(&self) -> Result<(), Error> {
        let uses = std::mem::take(&mut *self.inner.uses.lock());
        if uses.is_empty() {
            return Ok(());
        }
        let noted = uses.clone();
        let outcome = self.inner.raft.propose(clock::now(), Command::NoteDeltaUses { uses }).await;
        if outcome.is_err() {
            self.inner.uses.lock().extend(noted);
        }
        outcome?;
        Ok(())
    }

    /// On whichever node leads.
    async fn expire(&self) -> Result<(), Error> {
        let Some(settings) = self.inner.settings.get() else { return Ok(()) };
        if !self.inner.raft.status().is_leader {
            return Ok(());
        }
        let keep_ms = u64::from(settings.config.keep_days).saturating_mul(DAY_MS);
        let unused_before =
            Timestamp::from_millis(clock::now().as_millis().saturating_sub(keep_ms));
        let mut after: Option<DeltaKey> = None;
        loop {
            let rows = {
                let view = self.inner.raft.local();
                view.query().deltas_after(after.as_ref(), DELTAS_AT_ONCE_MAX)?
            };
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some(last.key);
            let unused = rows.iter().filter(|row| row.used_at < unused_before);
            let deltas: BTreeSet<DeltaKey> = unused.map(|row| row.key).collect();
            if deltas.is_empty() {
                continue;
            }
            info!(bundles = deltas.len(), "dropping delta bundles that nobody uses");
            let drop = Command::DropDeltas { deltas, unused_before };
            self.inner.raft.propose(clock::now(), drop).await?;
        }
    }
}
