//! How fast a body has to come: slow ones hold memory that other uploads wait for.

use std::time::Duration;

use tokio::time::Instant;

/// A client may be silent for so long in all, and longer as it sends.
const GRACE: Duration = Duration::from_secs(30);
/// No silence is longer than this, whatever was sent before.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// What earns a second of silence, in bytes.
const BYTES_PER_SECOND_MIN: u64 = 16 * 1024;

/// One body's pace. Only the time spent waiting for the client counts.
#[derive(Debug)]
pub struct Pace {
    waited: Duration,
    bytes: u64,
}

/// The body comes too slowly.
#[derive(Debug)]
pub struct TooSlow;

impl Pace {
    pub fn begin() -> Self {
        Self { waited: Duration::ZERO, bytes: 0 }
    }

    pub fn count(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// How long the client may be waited for until all in all it is too slow.
    fn patience(&self) -> Duration {
        let earned = Duration::from_millis(self.bytes * 1000 / BYTES_PER_SECOND_MIN);
        (GRACE + earned).saturating_sub(self.waited).min(SILENCE_MAX)
    }

    /// Waits for the body's next piece.
    ///
    /// # Errors
    /// Where it has taken too long, all in all.
    pub async fn within<T>(&mut self, next: impl Future<Output = T>) -> Result<T, TooSlow> {
        let began = Instant::now();
        let outcome = tokio::time::timeout(self.patience(), next).await;
        self.waited += began.elapsed();
        outcome.map_err(|_| TooSlow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_drips_runs_out_of_patience_and_what_flows_does_not() {
        let after = |waited, bytes| Pace { waited: Duration::from_secs(waited), bytes }.patience();
        assert_eq!(after(0, 0), GRACE);
        assert!(after(30, 30) < Duration::from_millis(10));
        assert_eq!(after(600, 600), Duration::ZERO);
        assert!(after(600, 600 * 20 * 1024) > GRACE);
    }

    #[tokio::test]
    async fn a_body_without_patience_left_is_refused_unless_it_is_there() {
        let mut pace = Pace { waited: GRACE, bytes: 0 };
        assert!(pace.within(std::future::ready(())).await.is_ok());
        assert!(pace.within(std::future::pending::<()>()).await.is_err());
    }
}
