//! A limit on bytes a second: when more may be sent, or asked for.
//!
//! What moved is entered as debt, which the passing time pays off; nothing new is begun before it
//! is paid. So the average keeps the limit, while single chunks come at the speed of the line: a
//! neighbour would take a chunk that trickles for a stall.
//!
//! Invariant: over any time, what is begun is at most the limit's share of it and what was under
//! way at its start.

use std::time::Duration;

/// Each request under way should bring so many bytes a second, so that none takes long.
const BYTES_PER_REQUEST: u64 = 1024 * 1024;
/// Inside one answer nobody waits longer than this: whoever asked would give it up.
const WAIT_MAX: Duration = Duration::from_millis(250);

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Pace {
    bytes_per_second: Option<u64>,
    /// When the debt is paid.
    paid_at: Duration,
}

impl Pace {
    /// `None` is any number. What is owed stays owed, as the new limit has it.
    pub fn limit(&mut self, now: Duration, bytes_per_second: Option<u64>) {
        if bytes_per_second == self.bytes_per_second {
            return;
        }
        let owed = self.debt(now).as_secs_f64() * self.bytes_per_second.unwrap_or(0) as f64;
        let left = bytes_per_second.map_or(0.0, |rate| owed / rate.max(1) as f64);
        self.paid_at = now + Duration::from_secs_f64(left);
        self.bytes_per_second = bytes_per_second;
    }

    pub fn bytes_per_second(&self) -> Option<u64> {
        self.bytes_per_second
    }

    pub fn count(&mut self, now: Duration, bytes: u64) {
        if let Some(rate) = self.bytes_per_second {
            let took = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            self.paid_at = self.paid_at.max(now) + took;
        }
    }

    /// How long until all is paid.
    pub fn debt(&self, now: Duration) -> Duration {
        self.paid_at.saturating_sub(now)
    }

    pub fn is_free(&self, now: Duration) -> bool {
        self.debt(now).is_zero()
    }

    /// When something may be begun again.
    pub fn free_at(&self) -> Duration {
        self.paid_at
    }

    /// How long to wait before the next chunk of what is under way.
    pub fn pause(&self, now: Duration) -> Duration {
        self.debt(now).min(WAIT_MAX)
    }

    /// How many requests may be under way at once.
    pub fn requests_max(&self) -> usize {
        let most =
            |rate: u64| 1 + usize::try_from(rate / BYTES_PER_REQUEST).unwrap_or(usize::MAX - 1);
        self.bytes_per_second.map_or(usize::MAX, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_average_keeps_the_limit() {
        let mut pace = Pace::default();
        pace.count(Duration::ZERO, 1 << 40);
        assert!(pace.is_free(Duration::ZERO), "there is no limit");
        pace.limit(Duration::ZERO, Some(1_000_000));
        let (mut now, mut moved) = (Duration::ZERO, 0);
        while now < 100 * SECOND {
            if pace.is_free(now) {
                pace.count(now, 262_144);
                moved += 262_144;
            }
            now += Duration::from_millis(3);
        }
        assert!((99_000_000..=100_300_000).contains(&moved), "{moved}");
        assert!(pace.pause(now) <= WAIT_MAX);
    }

    #[test]
    fn another_limit_counts_at_once() {
        let mut pace = Pace::default();
        pace.limit(Duration::ZERO, Some(1_000_000));
        pace.count(Duration::ZERO, 8_000_000);
        pace.limit(4 * SECOND, Some(4_000_000));
        assert_eq!(pace.debt(4 * SECOND), SECOND, "4 MB are owed");
        pace.limit(4 * SECOND, None);
        assert!(pace.is_free(4 * SECOND));
        assert_eq!(pace.requests_max(), usize::MAX);
    }
}
