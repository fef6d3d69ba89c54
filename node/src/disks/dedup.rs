//! What storage has already of an image: the chunks of its latest versions.
//!
//! Invariant: at most [`VERSIONS_MAX`] recipes and [`CHUNKS_MAX`] chunks are looked at; a recipe
//! that cannot be read, or an object that storage has lost, costs dedup, never the ingest: what was
//! in it is stored anew. A chunk that was moved is known where it lies now.
//! Non-goal: dedup between images.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use shoal_content::{Chunk, ChunkId, ObjectKey, Recipe, RecipeId};
use shoal_formats::StoredChunk;
use tracing::warn;

use crate::origin::{Origin, Place};
use crate::store::{BlobStore, StoreError};

/// The newest versions that are looked at.
pub const VERSIONS_MAX: usize = 3;
/// About 100 bytes each.
const CHUNKS_MAX: usize = 4_000_000;
/// Objects that storage is asked for at once.
const LOOKS_AT_ONCE: usize = 16;

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
            Ok(Some(recipe)) => match origin.placement(id).await {
                Ok(placement) => extend(&mut known, &recipe, placement.as_deref()),
                Err(error) => warn!(recipe = %id, %error, "where its chunks lie cannot be read"),
            },
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
    Ok(known)
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

fn extend(known: &mut Known, recipe: &Recipe, placement: Option<&Recipe>) {
    for chunk in recipe.chunks() {
        if known.len() >= CHUNKS_MAX {
            return;
        }
        known.entry(chunk.id).or_insert_with(|| {
            let Place { object, chunk } = Place::find(recipe, placement, chunk);
            let Chunk { at, encoding, length, .. } = chunk;
            StoredChunk { object, at, encoding, length }
        });
    }
}
