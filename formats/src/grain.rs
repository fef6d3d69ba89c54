//! How fine a disk is cut, so that its recipe stays short.
//!
//! Small files that each make a chunk dedup best, and cost 44 bytes of recipe each. A disk of many
//! small files is cut more coarsely: the grain is the finest of four whose chunks are expected to
//! be [`CHUNK_BYTES_EXPECTED_MIN`] long on average, which keeps a recipe below 0.7 MiB for each GiB
//! of content.
//!
//! Invariant: the grain depends on where files lie and nothing else, and in steps of two, so that
//! two versions of a disk almost always have the same.
//! Non-goal: content; what it adds or takes is left to the margin.

use crate::filesystem::{Plan, StretchKind};

/// At 44 bytes a chunk, 0.7 MiB for each GiB are reached at 61 KiB; holes in files take some.
const CHUNK_BYTES_EXPECTED_MIN: u64 = 60 * 1024;
/// Measured on Debian's trees: chunks of large files, remainders included.
const FILE_CHUNK_BYTES: u64 = 120 * 1024;
/// Stretches of a group after it is long enough, on average.
const GROUP_STRETCHES_MORE: u32 = 2;
/// As the cutter: a longer stretch of zeros ends a group.
const HOLE_BYTES_MIN: u64 = 32 * 1024;
const STEPS: u32 = 3;

/// See the module's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Grain {
    /// Each doubles the lengths.
    step: u32,
}

impl Grain {
    /// A shorter stretch joins a group.
    pub(crate) fn large_bytes_min(self) -> u64 {
        (24 * 1024) << self.step
    }

    /// A group does not end by itself before it is so long.
    pub(crate) fn group_bytes_min(self) -> usize {
        (20 * 1024) << self.step
    }

    /// The finest that keeps the recipe of a disk short.
    pub fn fitting(plan: &Plan) -> Self {
        let mut grains = (0..STEPS).map(|step| Self { step });
        grains.find(|grain| grain.is_expected_to_fit(plan)).unwrap_or(Self { step: STEPS })
    }

    /// Counts the chunks that files make: what is not a file's is cut without regard to the grain.
    fn is_expected_to_fit(self, plan: &Plan) -> bool {
        let (mut chunks, mut bytes) = (0u64, 0u64);
        let (mut group, mut more) = (0u64, 0);
        for stretch in plan.walk() {
            let is_file = matches!(stretch.kind, StretchKind::File { .. });
            let is_small = stretch.length < self.large_bytes_min();
            let is_gap = !is_file && stretch.length >= HOLE_BYTES_MIN;
            if group > 0 && (!is_small || is_gap || stretch.at_border) {
                (chunks, group, more) = (chunks + 1, 0, 0);
            }
            if !is_file {
                continue;
            }
            bytes += stretch.length;
            if !is_small {
                chunks += stretch.length.div_ceil(FILE_CHUNK_BYTES);
                continue;
            }
            group += stretch.length;
            if group >= self.group_bytes_min() as u64 {
                more += 1;
            }
            if more > GROUP_STRETCHES_MORE {
                (chunks, group, more) = (chunks + 1, 0, 0);
            }
        }
        bytes >= chunks * CHUNK_BYTES_EXPECTED_MIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grain(files: impl Iterator<Item = u64>) -> Grain {
        let mut at = 0;
        let pieces = files.map(|length| {
            at += length;
            (at - length, length)
        });
        Grain::fitting(&Plan::of_files(pieces.collect()))
    }

    #[test]
    fn many_small_files_are_cut_more_coarsely() {
        let large = grain((0..100).map(|_| 1 << 20));
        assert_eq!(large, Grain::default());
        let small = grain((0..10_000).map(|_| 8192));
        assert!(small.group_bytes_min() > large.group_bytes_min(), "{small:?}");
        let middling = grain((0..10_000).map(|_| 32 * 1024));
        assert!(middling.large_bytes_min() > 32 * 1024, "{middling:?}");
    }
}
