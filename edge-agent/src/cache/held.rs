//! Which chunks of one recipe stand in its content file: one bit a chunk.

/// A set of chunk indices below a fixed count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    words: Vec<u64>,
    count: u32,
    set: u32,
}

impl Held {
    pub fn empty(count: u32) -> Self {
        Self { words: vec![0; (count as usize).div_ceil(64)], count, set: 0 }
    }

    pub fn full(count: u32) -> Self {
        let mut held = Self::empty(count);
        for index in 0..count {
            held.insert(index);
        }
        held
    }

    /// How many chunks the recipe has.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// How many of them are held.
    pub fn len(&self) -> u32 {
        self.set
    }

    pub fn is_empty(&self) -> bool {
        self.set == 0
    }

    pub fn is_complete(&self) -> bool {
        self.set == self.count
    }

    pub fn contains(&self, index: u32) -> bool {
        index < self.count && self.words[index as usize / 64] & (1 << (index % 64)) != 0
    }

    /// Whether it was new. An index past the end is ignored.
    pub fn insert(&mut self, index: u32) -> bool {
        let new = index < self.count && !self.contains(index);
        if new {
            self.words[index as usize / 64] |= 1 << (index % 64);
            self.set += 1;
        }
        new
    }

    /// Whether it was there.
    pub fn remove(&mut self, index: u32) -> bool {
        let there = self.contains(index);
        if there {
            self.words[index as usize / 64] &= !(1 << (index % 64));
            self.set -= 1;
        }
        there
    }

    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.count).filter(|index| self.contains(*index))
    }

    /// The held indices as ascending runs: first index, how many.
    pub fn runs(&self) -> Vec<(u32, u32)> {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for index in self.iter() {
            match runs.last_mut() {
                Some((first, length)) if *first + *length == index => *length += 1,
                _ => runs.push((index, 1)),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_count_and_finds_runs() {
        let mut held = Held::empty(130);
        for index in [0, 1, 2, 64, 129, 129, 130, 500] {
            held.insert(index);
        }
        assert_eq!(held.len(), 5);
        assert_eq!(held.runs(), [(0, 3), (64, 1), (129, 1)]);
        assert!(held.remove(64) && !held.remove(64) && !held.contains(500));
        let full = Held::full(130);
        assert!(full.is_complete() && !held.is_complete());
        assert_eq!(full.runs(), [(0, 130)]);
        assert!(Held::empty(0).is_complete());
    }
}
