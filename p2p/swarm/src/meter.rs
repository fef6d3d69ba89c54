//! How fast a line is, as measured by what it carried.

use std::time::Duration;

/// A window ends after so many chunks of the biggest size and so much time, or after the longest
/// time: a few chunks that happen to come together would make a line look faster than it is.
const WINDOW_CHUNKS: u64 = 16;
const WINDOW_MIN: Duration = Duration::from_millis(10);
const WINDOW_MAX: Duration = Duration::from_millis(500);
/// What is left of the best rate after each window, so that it follows a line that got slower.
const FADE: f64 = 0.99;

#[derive(Debug, Default)]
pub(crate) struct Meter {
    began: Duration,
    bytes: u64,
    /// The biggest that was counted.
    most: u64,
    /// Bytes a second, in the best window of late.
    pub(crate) best: f64,
}

impl Meter {
    /// Counts; the rate of the window that ended thereby, if one did.
    pub(crate) fn count(&mut self, now: Duration, bytes: u64) -> Option<f64> {
        let past = now.saturating_sub(self.began);
        let full = self.bytes >= WINDOW_CHUNKS * self.most.max(1) && past >= WINDOW_MIN;
        let ended = (full || past >= WINDOW_MAX).then(|| {
            let rate = self.bytes as f64 / past.as_secs_f64();
            self.best = (self.best * FADE).max(rate);
            (self.began, self.bytes) = (now, 0);
            rate
        });
        self.bytes += bytes;
        self.most = self.most.max(bytes);
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_window_counts_and_fades() {
        let mut meter = Meter::default();
        let mut now = Duration::ZERO;
        for _ in 0..100 {
            now += Duration::from_millis(1);
            meter.count(now, 1_000_000);
        }
        assert!((0.8e9..1.2e9).contains(&meter.best), "{}", meter.best);
        let before = meter.best;
        for _ in 0..200 {
            now += WINDOW_MAX;
            meter.count(now, 100);
        }
        assert!(meter.best < before / 4.0, "{}", meter.best);
    }

    #[test]
    fn big_chunks_that_come_together_make_no_line_faster() {
        let mut meter = Meter::default();
        let chunk: u64 = 4 << 20;
        let ms = Duration::from_millis;
        // Eight in 32 ms, in two bursts.
        for start in (32..3200).step_by(32) {
            for burst in [0, 11] {
                for _ in 0..4 {
                    meter.count(ms(start + burst), chunk);
                }
            }
        }
        let line = chunk as f64 / ms(4).as_secs_f64();
        assert!(meter.best < line * 1.2, "{} of {line}", meter.best);
    }
}
