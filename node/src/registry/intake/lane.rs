//! Room for uploads, of one kind each: how much there is, and how long it may be kept and waited for.
//!
//! Invariant: what is held never passes what there is.
//! Non-goal: who gives way; see `contention`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::IntakeError;
use crate::registry::contention::{self, Contention};

/// Memory of one kind, in units, and who gives way where it is scarce.
#[derive(Debug, Clone)]
pub(super) struct Lane {
    pub(super) free: Arc<Semaphore>,
    pub(super) contention: Arc<Contention>,
}

pub(super) type Held = contention::Held<OwnedSemaphorePermit>;

impl Lane {
    pub(super) fn new(units: usize, fill_max: Duration, wait_max: Duration) -> Self {
        let free = Arc::new(Semaphore::new(units));
        Self { free, contention: Contention::new(fill_max, wait_max) }
    }

    /// # Errors
    /// [`IntakeError::Crowded`] where others have all of it for too long.
    pub(super) async fn take(&self, units: u32) -> Result<Held, IntakeError> {
        let permit = match Arc::clone(&self.free).try_acquire_many_owned(units) {
            Ok(permit) => permit,
            Err(_) => {
                let turn = Arc::clone(&self.free).acquire_many_owned(units);
                let permit = self.contention.wait(units, turn).await.ok_or(IntakeError::Crowded)?;
                permit.map_err(|_| IntakeError::Stopping)?
            }
        };
        Ok(self.contention.hold(units, permit))
    }
}

/// How long a client may keep room while others wait for it, and how long these wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) fill_max: Duration,
    /// For a long part.
    pub(super) long_fill_max: Duration,
    pub(super) wait_max: Duration,
}

impl Patience {
    /// Who sends 46 KiB/s fills a part in time, so that those behind one line of 4 Mbit/s go on
    /// however many they are. Who had the room at first has lost it long before the wait is over,
    /// also where storage is slow.
    pub(super) const STANDARD: Self = Self {
        fill_max: Duration::from_secs(180),
        long_fill_max: Duration::from_secs(360),
        wait_max: Duration::from_secs(900),
    };

    /// Of what a node fetches itself: nobody could be told to come again.
    pub(super) const UNBOUNDED: Self =
        Self { wait_max: Duration::from_secs(24 * 60 * 60), ..Self::STANDARD };
}
