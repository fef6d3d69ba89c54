//! How much of a pack recipes need: the sums, without any reading.
//!
//! What one recipe needs of a pack is needed of it at least, so that most packs are seen to be worth
//! their bytes without a list of their chunks. Of the others the chunks are listed.
//!
//! Invariant: at most [`CHUNKS_MAX`] chunks are listed; packs that have too many are left for another
//! time.

use std::collections::{BTreeMap, BTreeSet};

use shoal_content::{ChunkId, ObjectKey, Recipe};

use crate::origin::Place;

/// Chunks that are listed, about 150 bytes each.
pub const CHUNKS_MAX: usize = 500_000;

/// Whether `needed` of `length` bytes are less than so many of a hundred.
pub fn is_thin(needed: u64, length: u64, percent: u8) -> bool {
    u128::from(needed) * 100 < u128::from(length) * u128::from(percent)
}

/// How much of each pack is needed at least.
#[derive(Debug, Default)]
pub struct Tally {
    packs: BTreeMap<ObjectKey, Tallied>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tallied {
    /// Of the whole pack.
    pub length: u64,
    pub needed_min: u64,
}

impl Tally {
    /// What is in the packs that a recipe needs, with where its chunks were moved to.
    pub fn add(&mut self, recipe: &Recipe, placement: Option<&Recipe>) {
        let mut own: BTreeMap<ObjectKey, Tallied> = BTreeMap::new();
        for chunk in recipe.chunks() {
            let Place { object, chunk } = Place::find(recipe, placement, chunk);
            let none = Tallied { length: object.length, needed_min: 0 };
            own.entry(object.key).or_insert(none).needed_min += u64::from(chunk.stored());
        }
        for (key, tallied) in own {
            let all = self.packs.entry(key).or_insert(tallied);
            all.needed_min = all.needed_min.max(tallied.needed_min);
        }
    }

    /// `None` for a pack of which nothing is needed.
    pub fn of(&self, pack: &ObjectKey) -> Option<Tallied> {
        self.packs.get(pack).copied()
    }
}

/// The chunks of some packs that are needed.
#[derive(Debug, Default)]
pub struct Needed {
    packs: BTreeMap<ObjectKey, Listed>,
    chunks: usize,
}

/// In the order in which they lie there.
type Listed = BTreeMap<(u64, ChunkId), Place>;

impl Needed {
    pub fn of(packs: BTreeSet<ObjectKey>) -> Self {
        let packs = packs.into_iter().map(|pack| (pack, Listed::new())).collect();
        Self { packs, chunks: 0 }
    }

    /// Lists what a recipe needs of these packs.
    pub fn add(&mut self, recipe: &Recipe, placement: Option<&Recipe>) {
        for chunk in recipe.chunks() {
            let place = Place::find(recipe, placement, chunk);
            let Some(listed) = self.packs.get_mut(&place.object.key) else { continue };
            if listed.insert((place.chunk.at, place.chunk.id), place).is_none() {
                self.chunks += 1;
            }
        }
        while self.chunks > CHUNKS_MAX {
            let most = self.packs.iter().max_by_key(|(_, listed)| listed.len());
            let Some(most) = most.map(|(pack, _)| *pack) else { return };
            self.chunks -= self.packs.remove(&most).map_or(0, |listed| listed.len());
        }
    }

    /// Pack by pack.
    pub fn into_packs(self) -> BTreeMap<ObjectKey, Vec<Place>> {
        let places = |listed: Listed| listed.into_values().collect();
        self.packs.into_iter().map(|(pack, listed)| (pack, places(listed))).collect()
    }
}

#[cfg(test)]
mod tests {
    use shoal_content::{Chunk, Encoding, PackId, RecipeKind, SourceObject};

    use super::*;

    const LENGTH: u64 = 1000;

    fn pack(number: u8) -> ObjectKey {
        ObjectKey::Pack(PackId::of(&[number]))
    }

    /// Each chunk is (content, pack, place), and takes a hundred bytes.
    fn recipe(chunks: &[(u8, u8, u64)]) -> Recipe {
        let numbers: BTreeSet<u8> = chunks.iter().map(|(_, pack, _)| *pack).collect();
        let object = |number: &u8| SourceObject { key: pack(*number), length: LENGTH };
        let objects = numbers.iter().map(object).collect();
        let mut chunks: Vec<Chunk> = chunks
            .iter()
            .map(|(content, of, at)| Chunk {
                id: ChunkId::of(&[*content]),
                length: 300,
                object: numbers.iter().position(|number| number == of).unwrap() as u32,
                at: *at,
                encoding: Encoding::Zstd { stored: 100 },
            })
            .collect();
        chunks.sort_by_key(|chunk| chunk.id);
        Recipe::new(RecipeKind::Disk, 0, objects, chunks, vec![]).unwrap()
    }

    #[test]
    fn less_than_the_share_is_thin() {
        assert!(is_thin(499, 1000, 50));
        assert!(!is_thin(500, 1000, 50));
        assert!(is_thin(0, 1, 1));
        assert!(!is_thin(0, 1000, 0));
        assert!(!is_thin(u64::MAX, u64::MAX, 95));
    }

    #[test]
    fn what_one_recipe_needs_is_needed_at_least() {
        let mut tally = Tally::default();
        tally.add(&recipe(&[(1, 1, 0), (2, 1, 100), (3, 2, 0)]), None);
        tally.add(&recipe(&[(2, 1, 100), (4, 2, 100), (5, 2, 200)]), None);
        let needed = |number| tally.of(&pack(number)).map(|tallied| tallied.needed_min);
        assert_eq!([1, 2, 3].map(needed), [Some(200), Some(200), None]);
        assert_eq!(tally.of(&pack(1)).unwrap().length, LENGTH);
    }

    #[test]
    fn chunks_are_listed_once_where_they_lie() {
        let mut needed = Needed::of([pack(1), pack(3)].into());
        let placement = recipe(&[(3, 3, 500)]);
        needed.add(&recipe(&[(2, 1, 100), (1, 1, 0), (3, 2, 0)]), Some(&placement));
        needed.add(&recipe(&[(2, 1, 100), (4, 2, 100)]), None);
        let packs = needed.into_packs();
        let places = |number: u8| -> Vec<u64> {
            packs[&pack(number)].iter().map(|place| place.chunk.at).collect()
        };
        assert_eq!(packs.len(), 2);
        assert_eq!((places(1), places(3)), (vec![0, 100], vec![500]));
    }
}
