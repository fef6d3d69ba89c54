//! Which chunks of a recipe somebody holds: one bit for each.
//!
//! Invariant: no index at or past `len` is ever in the set, whatever a peer claims.

use crate::frames::ChunkRange;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChunkSet {
    words: Vec<u64>,
    len: u32,
    count: u32,
}

impl ChunkSet {
    /// None of `len` chunks.
    pub fn empty(len: u32) -> Self {
        Self { words: vec![0; len.div_ceil(64) as usize], len, count: 0 }
    }

    /// All of `len` chunks.
    pub fn full(len: u32) -> Self {
        let mut words = vec![u64::MAX; len.div_ceil(64) as usize];
        if let Some(last) = words.last_mut().filter(|_| !len.is_multiple_of(64)) {
            *last >>= 64 - len % 64;
        }
        Self { words, len, count: len }
    }

    /// How many chunks there could be.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// How many are in the set.
    pub fn count(&self) -> u32 {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn is_full(&self) -> bool {
        self.count == self.len
    }

    pub fn contains(&self, index: u32) -> bool {
        index < self.len && self.words[index as usize / 64] >> (index % 64) & 1 == 1
    }

    /// Whether `index` is new here; one out of range is ignored.
    pub fn insert(&mut self, index: u32) -> bool {
        if index >= self.len || self.contains(index) {
            return false;
        }
        self.words[index as usize / 64] |= 1 << (index % 64);
        self.count += 1;
        true
    }

    /// Whether `index` was here.
    pub fn remove(&mut self, index: u32) -> bool {
        let held = self.contains(index);
        if held {
            self.words[index as usize / 64] &= !(1 << (index % 64));
            self.count -= 1;
        }
        held
    }

    /// The indices in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..).zip(&self.words).flat_map(|(at, &word)| bits(at, word))
    }

    /// The bits, 64 indices a word, the first index lowest.
    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }

    /// The set as ascending runs.
    pub fn ranges(&self) -> Vec<ChunkRange> {
        ChunkRange::gather(self.iter())
    }
}

/// The indices of the bits set in the word at place `at`, ascending.
pub(crate) fn bits(at: u32, mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (bit < 64).then_some(at * 64 + bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_say_what_the_set_holds_and_nothing_past_its_end_enters() {
        let mut set = ChunkSet::empty(130);
        for index in [0, 1, 2, 64, 129, 130, u32::MAX] {
            set.insert(index);
        }
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 1, 2, 64, 129]);
        let runs: Vec<_> = set.ranges().iter().map(|range| (range.start, range.count)).collect();
        assert_eq!(runs, [(0, 3), (64, 1), (129, 1)]);
        assert!(set.remove(64) && !set.remove(64));
        assert_eq!(set.count(), 4);
        let full = ChunkSet::full(130);
        assert!(full.is_full() && full.iter().eq(0..130) && !full.contains(130));
    }
}
