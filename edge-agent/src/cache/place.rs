//! Where each chunk of a recipe stands in its content file.
//!
//! Invariant: every chunk has at least one place; a recipe with a chunk that stands nowhere is
//! refused, since it could never be kept.

use std::sync::Arc;

use shoal_content::{Chunk, Recipe};

use super::Error;

/// The inverse of a recipe's extents.
#[derive(Debug)]
pub struct Places {
    recipe: Arc<Recipe>,
    /// Where each chunk's offsets start in `offsets`; one more than there are chunks.
    starts: Vec<u32>,
    /// Content offsets in bytes, grouped by chunk, ascending within each.
    offsets: Vec<u64>,
}

impl Places {
    pub fn of(recipe: Arc<Recipe>) -> Result<Self, Error> {
        let chunks = recipe.chunks().len();
        if u32::try_from(chunks).is_err() || u32::try_from(recipe.extents().len()).is_err() {
            return Err(Error::Unusable("it has more chunks than an index can count"));
        }
        let mut starts = vec![0u32; chunks + 1];
        for extent in recipe.extents() {
            starts[extent.chunk as usize + 1] += 1;
        }
        if starts[1..].contains(&0) {
            return Err(Error::Unusable("it lists a chunk that stands nowhere in the content"));
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        let mut next = starts.clone();
        let mut offsets = vec![0; recipe.extents().len()];
        for extent in recipe.extents() {
            let slot = &mut next[extent.chunk as usize];
            offsets[*slot as usize] = extent.offset;
            *slot += 1;
        }
        Ok(Self { recipe, starts, offsets })
    }

    pub fn recipe(&self) -> &Arc<Recipe> {
        &self.recipe
    }

    pub fn chunk(&self, index: u32) -> Option<&Chunk> {
        self.recipe.chunks().get(index as usize)
    }

    /// What chunk `index` takes at all of its places, in bytes; 0 past the last.
    pub fn bytes(&self, index: u32) -> u64 {
        let length = self.chunk(index).map_or(0, |chunk| u64::from(chunk.length));
        length * self.offsets(index).len() as u64
    }

    /// All offsets of chunk `index`; empty past the last.
    pub fn offsets(&self, index: u32) -> &[u64] {
        let at = index as usize;
        let (Some(start), Some(end)) = (self.starts.get(at), self.starts.get(at + 1)) else {
            return &[];
        };
        &self.offsets[*start as usize..*end as usize]
    }
}

#[cfg(test)]
mod tests {
    use shoal_content::{ChunkId, Encoding, Extent, ObjectKey, PackId, RecipeKind, SourceObject};

    use super::*;

    #[test]
    fn a_chunk_may_stand_at_several_places_but_not_at_none() {
        let key = ObjectKey::Pack(PackId::of(b"p"));
        let chunk = |n: u8| Chunk {
            id: ChunkId::of(&[n]),
            length: 10,
            object: 0,
            at: 0,
            encoding: Encoding::Raw,
        };
        let build = |extents: &[(u64, u32)]| {
            let extents =
                extents.iter().map(|(offset, chunk)| Extent { offset: *offset, chunk: *chunk });
            let objects = vec![SourceObject { key, length: 100 }];
            let chunks = vec![chunk(1), chunk(2)];
            let recipe = Recipe::new(RecipeKind::Disk, 100, objects, chunks, extents.collect());
            Places::of(Arc::new(recipe.unwrap()))
        };
        let places = build(&[(0, 1), (20, 0), (40, 1)]).unwrap();
        assert_eq!(places.offsets(0), [20]);
        assert_eq!(places.offsets(1), [0, 40]);
        assert_eq!(places.offsets(2), [] as [u64; 0]);
        assert!(build(&[(0, 1)]).is_err());
    }
}
