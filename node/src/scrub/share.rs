//! How much of one kind of content a scrub reads, to compare it with its names.
//!
//! Invariant: what is read is a share each time, on average, and every object is read at some time,
//! however long: one that is longer than a share is read when its turn comes, and the next scrubs pay
//! for it, up to [`OWED_SHARES_MAX`] of them. A node that begins to lead owes nothing.

/// After so many scrubs that read nothing, a debt is forgotten: what is short must not wait longer.
const OWED_SHARES_MAX: u64 = 16;

/// See the module's documentation.
#[derive(Debug)]
pub struct Share {
    /// Of one scrub.
    bytes: u64,
    /// Of the scrub that is under way.
    left: u64,
    /// By scrubs to come.
    owed: u64,
}

impl Share {
    pub fn new(bytes: u64) -> Self {
        Self { bytes, left: 0, owed: 0 }
    }

    /// When a scrub begins.
    pub fn refill(&mut self) {
        let paid = self.owed.min(self.bytes);
        self.owed -= paid;
        self.left = self.bytes - paid;
    }

    /// Whether an object of `bytes` is to be read now; then it counts.
    pub fn takes(&mut self, bytes: u64) -> bool {
        if bytes <= self.left {
            self.left -= bytes;
            return true;
        }
        // What fits into a whole share is read when it comes first.
        if self.left == 0 || bytes <= self.bytes {
            return false;
        }
        self.owed = (bytes - self.left).min(self.bytes.saturating_mul(OWED_SHARES_MAX));
        self.left = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of `sizes` a scrub reads that comes to them in this order.
    fn read(share: &mut Share, sizes: &[u64]) -> Vec<u64> {
        share.refill();
        sizes.iter().copied().filter(|bytes| share.takes(*bytes)).collect()
    }

    #[test]
    fn what_is_longer_than_a_share_is_read_and_paid_for() {
        let mut share = Share::new(100);
        assert_eq!(read(&mut share, &[60, 50, 40, 1]), [60, 40], "as much as there is");
        assert_eq!(read(&mut share, &[60, 350, 1, 900]), [60, 350]);
        for _ in 0..3 {
            assert_eq!(read(&mut share, &[1, 60, 350]), [0; 0], "310 are owed");
        }
        assert_eq!(read(&mut share, &[91, 90]), [90], "the last 10 are paid");
        assert_eq!(read(&mut share, &[100]), [100], "nothing is owed");
    }

    #[test]
    fn a_debt_is_forgotten_in_the_end() {
        let mut share = Share::new(100);
        assert_eq!(read(&mut share, &[u64::MAX]), [u64::MAX]);
        for _ in 0..OWED_SHARES_MAX {
            assert_eq!(read(&mut share, &[1]), [0; 0]);
        }
        assert_eq!(read(&mut share, &[1]), [1]);
    }

    #[test]
    fn who_wants_nothing_read_has_nothing_read() {
        assert_eq!(read(&mut Share::new(0), &[1, 350]), [0; 0]);
    }
}
