//! What storage has already of an image: the chunks of its latest versions.
//!
//! Invariant: at most [`VERSIONS_MAX`] recipes and [`CHUNKS_MAX`] chunks are looked at; a recipe
//! that cannot be read, or an object that storage has lost, costs dedup, never the ingest: what was
//! in it is stored anew. So is what lies in an object that is of little use to them otherwise: a new
//! version holds no pack for the sake of a few chunks, and each pack ends with the versions that had
//! most of it.
//! Non-goals: dedup between images; packs of versions that are there, whose recipes do not change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use shoal_content::{ChunkId, Encoding, ObjectKey, Recipe, RecipeId};
use shoal_formats::StoredChunk;
use tracing::warn;

use crate::origin::Origin;
use crate::store::{BlobStore, StoreError};

/// The newest versions that are looked at.
pub const VERSIONS_MAX: usize = 3;
/// About 100 bytes each.
const CHUNKS_MAX: usize = 4_000_000;
/// Objects that storage is asked for at once.
const LOOKS_AT_ONCE: usize = 16;

/// Of an object's bytes, the share that the versions must use; of one that they use less of, a chunk
/// is stored anew. So a byte is stored again for at least ten that can go.
const USE_PERCENT_MIN: u64 = 10;

/// Chunks by id.
pub type Known = HashMap<ChunkId, StoredChunk>;

/// Reads `recipes`, the newest first, and looks for the objects that they name.
///
/// # Errors
/// Where storage does not say whether it has them.
pub async fn known_chunks(
    origin: &Origin,
    store: &Arc<dyn BlobStore>,
    recipes: &[RecipeId],
) -> Result<Known, StoreError> {
    let mut known = Known::new();
    for &id in recipes.iter().take(VERSIONS_MAX) {
        match origin.recipe(id).await {
            Ok(Some(recipe)) => extend(&mut known, &recipe),
            Ok(None) => warn!(recipe = %id, "a version's recipe is not in storage"),
            Err(error) => warn!(recipe = %id, %error, "a version's recipe cannot be read"),
        }
    }
    let objects = known.values().map(|chunk| chunk.object.key).collect();
    let lost = lost(store, objects).await?;
    if !lost.is_empty() {
        warn!(objects = lost.len(), "storage lacks what versions live in; it is stored anew");
        known.retain(|_, chunk| !lost.contains(&chunk.object.key));
    }
    // What was not looked at may be of use, too.
    if known.len() < CHUNKS_MAX {
        leave_sparse(&mut known);
    }
    Ok(known)
}

/// Forgets what lies in objects that are of little use.
fn leave_sparse(known: &mut Known) {
    let mut used: BTreeMap<ObjectKey, u64> = BTreeMap::new();
    for chunk in known.values() {
        let bytes = match chunk.encoding {
            Encoding::Raw => chunk.length,
            Encoding::Zstd { stored } => stored,
        };
        *used.entry(chunk.object.key).or_default() += u64::from(bytes);
    }
    let is_sparse = |chunk: &StoredChunk| {
        let least = chunk.object.length / 100 * USE_PERCENT_MIN;
        used.get(&chunk.object.key).is_none_or(|&used| used < least)
    };
    known.retain(|_, chunk| !is_sparse(chunk));
}

/// Those that storage does not have, or not for long.
async fn lost(
    store: &Arc<dyn BlobStore>,
    objects: BTreeSet<ObjectKey>,
) -> Result<BTreeSet<ObjectKey>, StoreError> {
    let looks = objects.into_iter().map(|object| {
        let store = Arc::clone(store);
        async move { Ok::<_, StoreError>((!store.lasts(object).await?).then_some(object)) }
    });
    let mut looks = futures::stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE);
    let mut lost = BTreeSet::new();
    while let Some(looked) = looks.try_next().await? {
        lost.extend(looked);
    }
    Ok(lost)
}

fn extend(known: &mut Known, recipe: &Recipe) {
    for chunk in recipe.chunks() {
        if known.len() >= CHUNKS_MAX {
            return;
        }
        known.entry(chunk.id).or_insert(StoredChunk {
            object: recipe.objects()[chunk.object as usize],
            at: chunk.at,
            encoding: chunk.encoding,
            length: chunk.length,
        });
    }
}

#[cfg(test)]
mod tests {
    use shoal_content::{PackId, SourceObject};

    use super::*;

    /// A pack's chunks of 1000 bytes each, of which it could hold a hundred.
    fn pack(number: u8, chunks: u8) -> impl Iterator<Item = (ChunkId, StoredChunk)> {
        let object = SourceObject { key: ObjectKey::Pack(PackId::of(&[number])), length: 100_000 };
        (0..chunks).map(move |chunk| {
            let (at, encoding) = (u64::from(chunk) * 1000, Encoding::Zstd { stored: 1000 });
            let stored = StoredChunk { object, at, encoding, length: 65_536 };
            (ChunkId::of(&[number, chunk]), stored)
        })
    }

    #[test]
    fn a_pack_of_which_little_is_used_is_left_to_older_versions() {
        let mut known: Known = pack(1, 9).chain(pack(2, 10)).chain(pack(3, 100)).collect();
        leave_sparse(&mut known);
        assert_eq!(known.len(), 110);
        let sparse = ObjectKey::Pack(PackId::of(&[1]));
        assert!(known.values().all(|chunk| chunk.object.key != sparse));
        // What is left is used as much as before.
        leave_sparse(&mut known);
        assert_eq!(known.len(), 110);
    }
}
