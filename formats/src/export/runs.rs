//! Which blocks of a disk are allocated, and in which order they stand in the file.
//!
//! Invariant: allocated blocks are ranked in guest order from 0 without a gap, so that the place of
//! each follows from its rank, and its rank is found in logarithmic time.
//! Non-goal: where a format puts rank 0.

use std::ops::Range;

/// Guest blocks in a row that are allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// Number of the first guest block.
    pub guest: u64,
    pub count: u64,
    /// How many allocated blocks stand before it.
    pub rank: u64,
}

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Runs {
    block_bytes: u64,
    runs: Vec<Run>,
}

impl Runs {
    /// `used` gives the guest bytes that have content: ascending, neither empty nor overlapping.
    pub fn new(block_bytes: u64, used: impl Iterator<Item = Range<u64>>) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        for range in used {
            let (start, end) = (range.start / block_bytes, range.end.div_ceil(block_bytes));
            match runs.last_mut() {
                Some(run) if start <= run.guest + run.count => {
                    run.count = run.count.max(end - run.guest);
                }
                last => {
                    let rank = last.map_or(0, |run| run.rank + run.count);
                    runs.push(Run { guest: start, count: end - start, rank });
                }
            }
        }
        Self { block_bytes, runs }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter()
    }

    /// Allocated blocks.
    pub fn blocks(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.rank + run.count)
    }

    /// How many allocated blocks stand before guest block `block`.
    pub fn rank(&self, block: u64) -> u64 {
        let after = self.runs.partition_point(|run| run.guest < block);
        self.runs[..after].last().map_or(0, |run| run.rank + run.count.min(block - run.guest))
    }

    /// The part of the first run that reaches into `blocks`, and so on, cut to `blocks`.
    pub fn within(&self, blocks: Range<u64>) -> impl Iterator<Item = Run> {
        let from = self.runs.partition_point(|run| run.guest + run.count <= blocks.start);
        let Range { start, end } = blocks;
        self.runs[from..].iter().take_while(move |run| run.guest < end).map(move |run| {
            let guest = run.guest.max(start);
            let count = (run.guest + run.count).min(end) - guest;
            Run { guest, count, rank: run.rank + guest - run.guest }
        })
    }

    /// The guest block of rank `rank`, which exists, and how many follow it without a gap.
    pub fn at_rank(&self, rank: u64) -> (u64, u64) {
        let after = self.runs.partition_point(|run| run.rank <= rank);
        let run = self.runs[after - 1];
        (run.guest + rank - run.rank, run.rank + run.count - rank)
    }

    /// The rank of the block that holds guest byte `guest`, the byte's place in it, and the bytes
    /// that follow to the end of its run; `None` where it is not allocated.
    pub fn find(&self, guest: u64) -> Option<(u64, u64, u64)> {
        let block = guest / self.block_bytes;
        let after = self.runs.partition_point(|run| run.guest <= block);
        let run = self.runs[..after].last()?;
        let end = (run.guest + run.count) * self.block_bytes;
        let left = end.checked_sub(guest).filter(|&left| left > 0)?;
        Some((run.rank + block - run.guest, guest % self.block_bytes, left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 65_536;

    #[test]
    fn ranges_that_meet_in_a_block_are_one_run() {
        let used = [0..1, 10..70_000, 131_072..131_073, 400_000..400_001];
        let runs = Runs::new(BLOCK, used.into_iter());
        let expected = [Run { guest: 0, count: 3, rank: 0 }, Run { guest: 6, count: 1, rank: 3 }];
        assert_eq!(runs.iter().copied().collect::<Vec<_>>(), expected);
        assert_eq!(
            (0..8).map(|block| runs.rank(block)).collect::<Vec<_>>(),
            [0, 1, 2, 3, 3, 3, 3, 4]
        );
        let cut: Vec<_> = runs.within(2..7).collect();
        let expected = [Run { guest: 2, count: 1, rank: 2 }, Run { guest: 6, count: 1, rank: 3 }];
        assert_eq!(cut, expected);
        assert_eq!((runs.at_rank(1), runs.at_rank(3)), ((1, 2), (6, 1)));
        assert_eq!(runs.find(2 * BLOCK + 5), Some((2, 5, BLOCK - 5)));
        assert_eq!(runs.find(3 * BLOCK), None);
    }
}
