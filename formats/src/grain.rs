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

/// At 43 bytes a chunk, 0.7 MiB for each GiB are reached at 60 KiB. Fewer chunks come than are
/// expected here, by a twentieth: some are there twice, and some files have holes.
const CHUNK_BYTES_EXPECTED_MIN: u64 = 58 * 1024;
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
        (32 * 1024) << self.step
    }

    /// So many bytes of small files between metadata make groups without any.
    pub(crate) fn apart_bytes_min(self) -> usize {
        (16 * 1024) << self.step
    }

    /// The finest that keeps the recipe of a disk short.
    pub fn fitting(plan: &Plan) -> Self {
        let mut grains = (0..STEPS).map(|step| Self { step });
        grains.find(|grain| grain.is_expected_to_fit(plan)).unwrap_or(Self { step: STEPS })
    }

    /// Counts the chunks that files and directories make: all else is cut without regard to the
    /// grain.
    fn is_expected_to_fit(self, plan: &Plan) -> bool {
        let (mut chunks, mut bytes) = (0u64, 0u64);
        let mut group = Group::default();
        for stretch in plan.walk() {
            let length = stretch.length;
            let is_owned =
                matches!(stretch.kind, StretchKind::File { .. } | StretchKind::Directory);
            let is_small = length < self.large_bytes_min();
            let is_gap = !is_owned && length >= HOLE_BYTES_MIN;
            if !is_small || is_gap || stretch.at_border {
                chunks += group.end(self);
            }
            if !is_owned {
                continue;
            }
            bytes += length;
            if is_small {
                chunks += group.add(length, stretch.kind == StretchKind::Directory, self);
            } else {
                chunks += length.div_ceil(FILE_CHUNK_BYTES);
            }
        }
        bytes >= chunks * CHUNK_BYTES_EXPECTED_MIN
    }
}

/// A group as the cutter will gather it, as far as lengths decide.
#[derive(Debug, Default)]
struct Group {
    /// Up to the end of the last directory, and behind it.
    metadata_bytes: u64,
    files_bytes: u64,
    /// Stretches since it was long enough.
    more: u32,
}

impl Group {
    /// Gives the chunks that are whole with a further stretch.
    fn add(&mut self, length: u64, is_directory: bool, grain: Grain) -> u64 {
        let mut chunks = self.cut_metadata(grain);
        if is_directory {
            if self.files_bytes >= grain.apart_bytes_min() as u64 {
                chunks += self.end(grain);
            }
            self.metadata_bytes += self.files_bytes + length;
            self.files_bytes = 0;
        } else {
            self.files_bytes += length;
        }
        let is_long = self.metadata_bytes + self.files_bytes >= grain.group_bytes_min() as u64;
        self.more += u32::from(is_long);
        let ends = is_long && is_directory || self.more > GROUP_STRETCHES_MORE;
        if ends { chunks + self.end(grain) } else { chunks }
    }

    fn cut_metadata(&mut self, grain: Grain) -> u64 {
        let cuts = self.metadata_bytes > 0 && self.files_bytes >= grain.apart_bytes_min() as u64;
        if cuts {
            let is_long = self.files_bytes >= grain.group_bytes_min() as u64;
            *self =
                Self { files_bytes: self.files_bytes, more: u32::from(is_long), metadata_bytes: 0 };
        }
        u64::from(cuts)
    }

    /// Nothing where it is empty.
    fn end(&mut self, grain: Grain) -> u64 {
        let chunks = self.cut_metadata(grain);
        let group = std::mem::take(self);
        chunks + u64::from(group.metadata_bytes + group.files_bytes > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(files: impl Iterator<Item = u64>) -> Plan {
        let mut at = 0;
        let pieces = files.map(|length| {
            at += length;
            (at - length, length)
        });
        Plan::of_files(pieces.collect())
    }

    fn grain(files: impl Iterator<Item = u64>) -> Grain {
        Grain::fitting(&plan(files))
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

    #[test]
    fn directories_that_stand_apart_are_counted() {
        let files = || plan([4096, 20 * 1024].into_iter().cycle().take(20_000));
        assert_eq!(Grain::fitting(&files()), Grain::default());
        let grain = Grain::fitting(&files().with_directories_of(4096));
        assert!(grain.apart_bytes_min() > 20 * 1024, "{grain:?}");
    }
}
