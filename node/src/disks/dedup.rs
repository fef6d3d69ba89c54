//! What storage has already of an image: the chunks of its latest versions.
//!
//! Invariant: at most [`VERSIONS_MAX`] recipes and [`CHUNKS_MAX`] chunks are looked at; a recipe
//! that cannot be read costs dedup, never the ingest.
//! Non-goal: dedup between images.

use std::collections::HashMap;

use shoal_content::{ChunkId, Recipe, RecipeId};
use shoal_formats::StoredChunk;
use tracing::warn;

use crate::origin::Origin;

/// The newest versions that are looked at.
pub const VERSIONS_MAX: usize = 3;
/// About 100 bytes each.
const CHUNKS_MAX: usize = 4_000_000;

/// Chunks by id.
pub type Known = HashMap<ChunkId, StoredChunk>;

/// Reads `recipes`, the newest first.
pub async fn known_chunks(origin: &Origin, recipes: &[RecipeId]) -> Known {
    let mut known = Known::new();
    for &id in recipes.iter().take(VERSIONS_MAX) {
        match origin.recipe(id).await {
            Ok(Some(recipe)) => extend(&mut known, &recipe),
            Ok(None) => warn!(recipe = %id, "a version's recipe is not in storage"),
            Err(error) => warn!(recipe = %id, %error, "a version's recipe cannot be read"),
        }
    }
    known
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
