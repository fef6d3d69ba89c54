//! How long the parts of a blob are, by where they start.
//!
//! S3 takes 10,000 parts, and a part is held in memory until storage has it. So parts are short
//! while the blob is, as nearly all are, and grow with it: by a fixed share of what is stored
//! already, up to a longest one. What a part takes depends only on where it starts, so that any
//! node goes on where another ended.
//!
//! Invariants: the length never falls as the start moves on; a blob of `blob_bytes_max` takes at
//! most [`PARTS_MAX`] parts, if all were cut by this schedule.
//! Non-goals: sending parts, and the memory for them; see `intake`.

use crate::store::PART_BYTES_MIN;

/// S3's own limit.
pub const PARTS_MAX: u32 = 10_000;
/// Lengths grow in steps of this many bytes.
const STEP_BYTES: u64 = 1024 * 1024;

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;
const TIB: u64 = 1024 * GIB;

/// See the module's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartSchedule {
    /// Of the first parts, and of all in a blob that is not long.
    pub first_bytes: u64,
    /// A part is one of so many equal shares of what lies before it, if that is longer.
    pub share: u64,
    /// No part is longer.
    pub longest_bytes: u64,
    pub step_bytes: u64,
    /// The longest blob.
    pub blob_bytes_max: u64,
}

impl PartSchedule {
    /// 8 MiB up to 4 GiB, then growing to 256 MiB at 128 GiB; in all 2 TiB, which is about as much
    /// as the recipe of one blob can list (`shoal_content::RECIPE_BYTES_MAX`).
    pub const STANDARD: Self = Self {
        first_bytes: 8 * MIB,
        share: 512,
        longest_bytes: 256 * MIB,
        step_bytes: STEP_BYTES,
        blob_bytes_max: 2 * TIB,
    };

    /// The length of the part that starts `start` bytes into the blob, if the blob goes on so far.
    pub const fn part_bytes(&self, start: u64) -> u64 {
        let steps = (start / self.share).div_ceil(self.step_bytes);
        let grown = steps.saturating_mul(self.step_bytes);
        if grown <= self.first_bytes {
            self.first_bytes
        } else if grown >= self.longest_bytes {
            self.longest_bytes
        } else {
            grown
        }
    }

    /// Whether the part that starts there is no longer than the first.
    pub const fn is_short(&self, start: u64) -> bool {
        self.part_bytes(start) == self.first_bytes
    }

    /// How many parts a blob of so many bytes takes; at most `most`, after which nobody counts.
    pub const fn parts(&self, blob_bytes: u64, most: u32) -> u32 {
        let (mut start, mut parts) = (0_u64, 0);
        while start < blob_bytes && parts < most {
            start = start.saturating_add(self.part_bytes(start));
            parts += 1;
        }
        parts
    }
}

const _: () = {
    let standard = PartSchedule::STANDARD;
    assert!(standard.first_bytes >= PART_BYTES_MIN, "storage refuses shorter parts");
    assert!(standard.parts(standard.blob_bytes_max, PARTS_MAX + 1) <= PARTS_MAX);
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shoal_content::{CHUNK_BYTES_MAX, RECIPE_BYTES_MAX};

    use super::*;

    /// What S3 takes as one part.
    const S3_PART_BYTES_MAX: u64 = 5 * GIB;
    const STANDARD: PartSchedule = PartSchedule::STANDARD;

    #[test]
    fn parts_are_short_until_the_blob_is_long() {
        for (start, expected) in [
            (0, 8 * MIB),
            (4 * GIB, 8 * MIB),
            (4 * GIB + 512, 9 * MIB),
            (8 * GIB, 16 * MIB),
            (128 * GIB, 256 * MIB),
            (2 * TIB, 256 * MIB),
            (u64::MAX, 256 * MIB),
        ] {
            assert_eq!(STANDARD.part_bytes(start), expected, "at {start}");
        }
        // What went through before this schedule still does, in no more parts.
        assert_eq!(STANDARD.parts(4 * GIB, PARTS_MAX), 512);
        assert!(STANDARD.parts(78 * GIB, PARTS_MAX) < 2_500);
    }

    #[test]
    fn the_longest_blob_takes_no_more_parts_than_storage_does_and_its_recipe_can_be_read() {
        let parts = STANDARD.parts(STANDARD.blob_bytes_max, PARTS_MAX + 1);
        assert!(parts <= PARTS_MAX, "{parts}");
        // The bound is no farther away than it must be: half as much again would not fit.
        let longer = STANDARD.blob_bytes_max / 2 * 3;
        assert!(STANDARD.parts(longer, PARTS_MAX + 1) > PARTS_MAX);
        // 32 bytes of id and at most 12 of numbers for a chunk and the extent it stands in.
        let chunks = STANDARD.blob_bytes_max / u64::from(CHUNK_BYTES_MAX);
        assert!(chunks * 44 <= RECIPE_BYTES_MAX as u64);
    }

    proptest! {
        #[test]
        fn a_part_is_what_storage_takes_and_never_shorter_than_one_before(
            start in 0..STANDARD.blob_bytes_max,
            later in 0..STANDARD.blob_bytes_max,
        ) {
            let (start, later) = (start.min(later), start.max(later));
            let bytes = STANDARD.part_bytes(start);
            prop_assert!((PART_BYTES_MIN..=S3_PART_BYTES_MAX).contains(&bytes));
            prop_assert!(bytes <= STANDARD.longest_bytes);
            prop_assert!(bytes <= STANDARD.part_bytes(later));
        }

        /// From wherever an upload stands on a cut, the rest fits into the parts that are left.
        #[test]
        fn the_rest_fits_from_every_cut(parts in 0..PARTS_MAX) {
            let mut start = 0;
            let mut left = PARTS_MAX;
            for _ in 0..parts {
                start += STANDARD.part_bytes(start);
                left -= 1;
            }
            while start < STANDARD.blob_bytes_max {
                prop_assert!(left > 0, "no part left at {start}");
                start += STANDARD.part_bytes(start);
                left -= 1;
            }
        }
    }
}
