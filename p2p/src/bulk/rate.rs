//! Whether so much comes that another way is worth its handshakes. On a slow line the processor
//! has nothing to save, and QUIC alone shares the line as it always did.

use std::time::{Duration, Instant};

/// At least so many bytes a second: more than a line of 100 Mbit/s brings.
const RATE_MIN: f64 = 16.0 * 1024.0 * 1024.0;
/// Over so many bytes, so that what waited in a buffer on the way proves nothing.
const WINDOW_BYTES: u64 = 4 * 1024 * 1024;
/// Who brings nothing for so long was not asked, or waits for a limit.
const GAP: Duration = Duration::from_millis(50);

/// What arrives at this process, from all and by either way.
#[derive(Debug)]
pub(super) struct Rate {
    began: Instant,
    last: Instant,
    bytes: u64,
    high: bool,
}

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, last: now, bytes: 0, high: false }
    }

    /// As the last whole window had it; low before the first.
    pub(super) fn is_high(&self) -> bool {
        self.high
    }

    pub(super) fn count(&mut self, now: Instant, bytes: u64) {
        if now > self.last + GAP {
            (self.began, self.bytes) = (now, 0);
        }
        self.last = now;
        self.bytes += bytes;
        if self.bytes >= WINDOW_BYTES {
            let seconds = (now - self.began).as_secs_f64();
            self.high = self.bytes as f64 >= RATE_MIN * seconds;
            (self.began, self.bytes) = (now, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 256 * 1024;

    /// Has so many chunks come, each so long after the one before.
    fn come(rate: &mut Rate, now: &mut Instant, chunks: usize, each: Duration) {
        for _ in 0..chunks {
            *now += each;
            rate.count(*now, CHUNK);
        }
    }

    #[test]
    fn a_fast_line_is_told_from_a_slow_one_and_pauses_say_nothing() {
        let mut now = Instant::now();
        let mut rate = Rate::new(now);
        let (at_gigabit, at_50_mbit) = (Duration::from_millis(2), Duration::from_millis(42));
        come(&mut rate, &mut now, 8, at_gigabit);
        assert!(!rate.is_high(), "too little came to tell");
        come(&mut rate, &mut now, 16, at_gigabit);
        assert!(rate.is_high());
        come(&mut rate, &mut now, 100, Duration::from_secs(1));
        assert!(rate.is_high(), "nothing was asked for meanwhile");
        come(&mut rate, &mut now, 32, at_50_mbit);
        assert!(!rate.is_high());
        come(&mut rate, &mut now, 100, Duration::from_secs(1));
        assert!(!rate.is_high());
    }
}
