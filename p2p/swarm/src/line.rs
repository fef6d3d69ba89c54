//! Whether a line is so slow that compressing what goes over it is faster than sending it as it is.
//!
//! What is written goes into buffers first, at the speed of memory, so a line shows only over a second.
//! Where little is asked for, a fast one looks slow; compressing costs little there, too.

use std::time::Duration;

/// Below so many bytes a second it is: one core compresses several times as many.
const SLOW_BYTES_PER_SECOND: u64 = 64 * 1024 * 1024;
const WINDOW: Duration = Duration::from_secs(1);
/// Who sends nothing for so long was not asked, or waits for a limit.
const GAP: Duration = Duration::from_secs(2);

/// What leaves by a line.
#[derive(Debug, Default)]
pub(crate) struct Line {
    began: Duration,
    last: Duration,
    bytes: u64,
    slow: bool,
}

impl Line {
    /// As the last whole window had it, and not before the first.
    pub(crate) fn is_slow(&self) -> bool {
        self.slow
    }

    pub(crate) fn count(&mut self, now: Duration, bytes: u64) {
        if now > self.last + GAP {
            (self.began, self.bytes) = (now, 0);
        }
        self.last = now;
        self.bytes += bytes;
        let past = now.saturating_sub(self.began);
        if past >= WINDOW {
            self.slow = is_slow(self.bytes as f64 / past.as_secs_f64());
            (self.began, self.bytes) = (now, 0);
        }
    }
}

pub(crate) fn is_slow(bytes_per_second: f64) -> bool {
    bytes_per_second < SLOW_BYTES_PER_SECOND as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 256 * 1024;

    /// Sends so many chunks, each so long after the one before.
    fn send(line: &mut Line, now: &mut Duration, chunks: usize, each: Duration) {
        for _ in 0..chunks {
            *now += each;
            line.count(*now, CHUNK);
        }
    }

    #[test]
    fn a_slow_line_is_told_from_a_fast_one_and_pauses_say_nothing() {
        let (mut line, mut now) = (Line::default(), Duration::from_secs(100));
        let (at_gigabit, at_50_mbit) = (Duration::from_millis(2), Duration::from_millis(42));
        send(&mut line, &mut now, 20, at_50_mbit);
        assert!(!line.is_slow(), "too little went to tell");
        send(&mut line, &mut now, 40, at_50_mbit);
        assert!(line.is_slow());
        send(&mut line, &mut now, 1_000, at_gigabit);
        assert!(!line.is_slow());
        send(&mut line, &mut now, 10, GAP * 2);
        assert!(!line.is_slow(), "nothing was asked for meanwhile");
        // A megabit: a chunk takes two seconds, and the line is known.
        send(&mut line, &mut now, 4, GAP);
        assert!(line.is_slow());
    }

    #[test]
    fn what_fills_a_buffer_first_says_nothing_for_long() {
        let (mut line, mut now) = (Line::default(), Duration::from_secs(1));
        send(&mut line, &mut now, 400, Duration::ZERO);
        send(&mut line, &mut now, 60, Duration::from_millis(42));
        assert!(line.is_slow());
    }
}
