//! Whether what leaves the cache frees anything on its file system.
//!
//! Blocks that an export shares with the cache (a reflink) stay when the cache's file goes: to evict
//! then would empty the cache, and help nobody. Pure: it is told the time and what the file system says.
//!
//! Invariant: once [`VAIN_MAX`] in a row freed next to nothing, and they were large enough together
//! ([`vain_bytes_min`]), nothing more goes before room appears, or for so long that a further try costs
//! little. One of them may well be shared while the next is not; and of a few small ones, what others write
//! at the same moment hides what came free.

use std::time::{Duration, Instant};

const VAIN_MAX: u32 = 3;
const VAIN_BYTES_MIN: u64 = 64 << 20;
/// Of a small file system, one in so many of its bytes.
const VAIN_DIVISOR: u64 = 64;
/// Some file systems give back what was deleted only with their next commit: Btrfs 30 s later (its
/// mount option `commit`), XFS from the background.
const SETTLE: Duration = Duration::from_secs(45);
/// As long nothing is tried after that.
const REST: Duration = Duration::from_secs(600);

/// How much has to go in vain before it says anything, in bytes, on a file system of `total` bytes.
pub fn vain_bytes_min(total: u64) -> u64 {
    (total / VAIN_DIVISOR).min(VAIN_BYTES_MIN)
}

/// Whether something may be evicted for the file system's sake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Go,
    Wait,
    /// The same; said once, when it begins.
    GiveUp,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Relief {
    /// What went without freeing anything, since something last did.
    vain: Vain,
    state: State,
}

#[derive(Debug, Default, Clone, Copy)]
struct Vain {
    entries: u32,
    /// In bytes, what the cache counted for them.
    counted: u64,
    /// In bytes, what was available before the first of them went.
    before: u64,
}

#[derive(Debug, Default, Clone, Copy)]
enum State {
    #[default]
    Works,
    /// It may come free yet.
    Waits {
        since: Instant,
    },
    Rests {
        until: Instant,
    },
}

impl Relief {
    /// Asked before anything goes, with the bytes that are available.
    pub fn begin(&mut self, now: Instant, available: u64) -> Turn {
        match self.state {
            State::Works => return Turn::Go,
            State::Waits { .. } | State::Rests { .. }
                if is_freed(self.vain.before, available, self.vain.counted) => {}
            State::Waits { since } if now < since + SETTLE => return Turn::Wait,
            State::Waits { .. } => {
                self.state = State::Rests { until: now + REST };
                return Turn::GiveUp;
            }
            State::Rests { until } if now < until => return Turn::Wait,
            State::Rests { .. } => {}
        }
        *self = Self::default();
        Turn::Go
    }

    /// An entry went that was counted with so many bytes; what was available before and after. Whether
    /// the next may go: it may while less than `least` went in vain.
    pub fn went(
        &mut self,
        now: Instant,
        (before, after): (u64, u64),
        counted: u64,
        least: u64,
    ) -> bool {
        if is_freed(before, after, counted) {
            *self = Self::default();
            return true;
        }
        if self.vain.entries == 0 {
            self.vain.before = before;
        }
        self.vain.entries += 1;
        self.vain.counted = self.vain.counted.saturating_add(counted);
        if self.vain.entries < VAIN_MAX || self.vain.counted < least {
            return true;
        }
        self.state = State::Waits { since: now };
        false
    }
}

/// Whether about so much came free. Others write meanwhile, and an export may share a part only.
fn is_freed(before: u64, after: u64, counted: u64) -> bool {
    after.saturating_sub(before) >= counted / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const MOMENT: Duration = Duration::from_secs(1);

    /// Has entries of a GiB each go that free nothing, as many as may.
    fn in_vain(relief: &mut Relief, now: Instant) -> u32 {
        let mut gone = 1;
        while relief.went(now, (5 * GIB, 5 * GIB), GIB, VAIN_BYTES_MIN) {
            gone += 1;
        }
        gone
    }

    #[test]
    fn a_few_that_free_nothing_are_no_reason_to_stop() {
        let (mut relief, now) = (Relief::default(), Instant::now());
        for _ in 0..4 {
            for _ in 1..VAIN_MAX {
                assert!(relief.went(now, (5 * GIB, 5 * GIB), GIB, VAIN_BYTES_MIN));
            }
            assert!(relief.went(now, (5 * GIB, 6 * GIB), GIB, VAIN_BYTES_MIN));
            assert_eq!(relief.begin(now, 6 * GIB), Turn::Go);
        }
    }

    #[test]
    fn small_ones_say_nothing_where_others_write_meanwhile() {
        const SMALL: u64 = 1 << 20;
        let (mut relief, now) = (Relief::default(), Instant::now());
        let least = vain_bytes_min(100 * GIB);
        for _ in 0..least / SMALL - 1 {
            assert!(relief.went(now, (5 * GIB, 5 * GIB - SMALL), SMALL, least));
        }
        assert_eq!(relief.begin(now, 4 * GIB), Turn::Go);
        // Larger ones show that something comes free, or that nothing does.
        assert!(relief.went(now, (4 * GIB, 5 * GIB - SMALL), GIB, least));
        assert!(relief.went(now, (5 * GIB, 5 * GIB), SMALL, least));
        assert!(relief.went(now, (5 * GIB, 5 * GIB), SMALL, least));
        assert!(!relief.went(now, (5 * GIB, 5 * GIB), GIB, least));
        assert_eq!(vain_bytes_min(32 << 20), 512 << 10);
    }

    #[test]
    fn room_that_appears_late_ends_the_rest() {
        let (mut relief, now) = (Relief::default(), Instant::now());
        assert_eq!(in_vain(&mut relief, now), VAIN_MAX);
        let later = now + SETTLE;
        assert_eq!(relief.begin(later, 5 * GIB), Turn::GiveUp);
        assert_eq!(relief.begin(later + MOMENT, 6 * GIB), Turn::Wait);
        assert_eq!(relief.begin(later + MOMENT, 7 * GIB), Turn::Go);
    }

    #[test]
    fn it_stops_where_nothing_comes_free_and_says_so_once() {
        let (mut relief, now) = (Relief::default(), Instant::now());
        assert_eq!(relief.begin(now, 5 * GIB), Turn::Go);
        assert_eq!(in_vain(&mut relief, now), VAIN_MAX);
        assert_eq!(relief.begin(now + MOMENT, 5 * GIB), Turn::Wait);
        let later = now + SETTLE;
        assert_eq!(relief.begin(later, 5 * GIB), Turn::GiveUp);
        assert_eq!(relief.begin(later + MOMENT, 5 * GIB), Turn::Wait);
        assert_eq!(relief.begin(later + REST, 5 * GIB), Turn::Go);
        assert_eq!(in_vain(&mut relief, later + REST), VAIN_MAX);
    }

    #[test]
    fn what_comes_free_with_a_commit_is_seen() {
        let (mut relief, now) = (Relief::default(), Instant::now());
        assert_eq!(in_vain(&mut relief, now), VAIN_MAX);
        assert_eq!(relief.begin(now + MOMENT, 6 * GIB), Turn::Wait);
        assert_eq!(relief.begin(now + 2 * MOMENT, 7 * GIB), Turn::Go);
        assert_eq!(in_vain(&mut relief, now), VAIN_MAX);
    }
}
