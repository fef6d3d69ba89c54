//! Whether storage answers: asked seldom, however often `/ready` is, which anyone may ask.
//!
//! Invariant: at most one probe is under way. Whoever asks meanwhile waits for it, and its outcome
//! holds for [`OUTCOME_TTL`].

use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::time::timeout;
use tracing::warn;

use super::problem::chain;
use crate::store::StoreError;

/// How long storage is waited for before a node says that it is not ready.
pub const READY_TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter than anyone's interval between two looks at a node.
const OUTCOME_TTL: Duration = Duration::from_secs(1);

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Readiness {
    /// When the last probe ended, and whether storage answered.
    last: Mutex<Option<(Instant, bool)>>,
}

impl Readiness {
    /// Whether storage answers `probe`, or has answered another one a moment ago.
    pub async fn storage_answers(
        &self,
        probe: impl Future<Output = Result<(), StoreError>>,
    ) -> bool {
        let mut last = self.last.lock().await;
        if let Some((at, answers)) = *last
            && at.elapsed() < OUTCOME_TTL
        {
            return answers;
        }
        let failed = match timeout(READY_TIMEOUT, probe).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(chain(&error)),
            Err(_) => Some(format!("no answer in {} s", READY_TIMEOUT.as_secs())),
        };
        let answers = failed.is_none();
        // Anyone may ask: what exactly is wrong is the operator's to know.
        if let Some(error) = failed {
            warn!(error, "storage is not ready");
        }
        *last = Some((Instant::now(), answers));
        answers
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::future::join_all;

    use super::*;

    #[tokio::test]
    async fn of_many_who_ask_at_once_one_probes_and_later_another() {
        let (readiness, probes) = (&Readiness::default(), &AtomicU32::new(0));
        let ask = |_| {
            readiness.storage_answers(async move {
                probes.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                Ok(())
            })
        };
        assert_eq!(join_all((0..8).map(ask)).await, [true; 8]);
        assert_eq!(probes.load(Ordering::Relaxed), 1);
        let earlier = Instant::now().checked_sub(OUTCOME_TTL).expect("the system runs for a while");
        *readiness.last.lock().await = Some((earlier, true));
        assert!(ask(8).await);
        assert_eq!(probes.load(Ordering::Relaxed), 2);
    }
}
