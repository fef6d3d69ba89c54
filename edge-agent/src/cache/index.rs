//! Which content file a chunk can be copied from: chunks that images share are fetched once.
//!
//! A hint, never a truth: the key is the first eight bytes of the chunk's id, and whoever copies
//! from a place hashes what was read. Memory is bounded by the number of places; when it is full,
//! new places are not remembered until old ones go.

use std::collections::{HashMap, HashSet};

use shoal_content::ChunkId;

/// A chunk of an entry: the entry's slot (given once, never again) and the chunk's index there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub slot: u32,
    pub chunk: u32,
}

#[derive(Debug)]
pub struct ChunkIndex {
    places: HashMap<u64, Place>,
    max: usize,
}

impl ChunkIndex {
    pub fn new(max: usize) -> Self {
        Self { places: HashMap::new(), max }
    }

    pub fn find(&self, id: &ChunkId) -> Option<Place> {
        self.places.get(&key(id)).copied()
    }

    /// The latest place wins: an older one is the likelier to be evicted.
    pub fn insert(&mut self, id: &ChunkId, place: Place) {
        if self.places.len() < self.max || self.places.contains_key(&key(id)) {
            self.places.insert(key(id), place);
        }
    }

    pub fn is_full(&self) -> bool {
        self.places.len() >= self.max
    }

    /// Looks through all of it, once for all of them.
    pub fn remove_slots(&mut self, slots: &HashSet<u32>) {
        if !slots.is_empty() {
            self.places.retain(|_, place| !slots.contains(&place.slot));
        }
    }
}

fn key(id: &ChunkId) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&id.as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_its_bound_and_forgets_a_slot() {
        let mut index = ChunkIndex::new(2);
        let ids: Vec<ChunkId> = (0u8..3).map(|n| ChunkId::of(&[n])).collect();
        for (slot, id) in (0..).zip(&ids) {
            index.insert(id, Place { slot, chunk: 7 });
        }
        assert!(index.is_full());
        assert_eq!(index.find(&ids[0]), Some(Place { slot: 0, chunk: 7 }));
        assert_eq!(index.find(&ids[2]), None);
        index.insert(&ids[0], Place { slot: 9, chunk: 1 });
        assert_eq!(index.find(&ids[0]), Some(Place { slot: 9, chunk: 1 }));
        index.remove_slots(&HashSet::from([9]));
        assert_eq!(index.find(&ids[0]), None);
        assert!(index.find(&ids[1]).is_some());
    }
}
