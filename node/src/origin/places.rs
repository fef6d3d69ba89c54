//! Where the stored bytes of a chunk are: where its recipe says, or where they were moved to.
//!
//! Whoever reads a pack for its chunks asks here. A pack that chunks were moved out of is deleted
//! after the grace period, so that a place that was asked for is good for a while; where its object
//! is gone all the same, the place is asked for once more.
//!
//! Invariant: what is read is compared with the chunk's id, wherever it was found.

use std::sync::Arc;

use bytes::Bytes;
use shoal_content::{Chunk, ObjectKey, Recipe, RecipeId, SourceObject};
use shoal_formats::decode_chunk;
use shoal_raft::Raft;

use super::{Error, Origin, Windows};
use crate::store::StoreError;

/// How often a place is asked for whose object turns out to be gone.
const LOOKS_MAX: usize = 3;

/// A chunk as it is stored, and in which object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub object: SourceObject,
    /// Its index into objects counts for nothing.
    pub chunk: Chunk,
}

impl Place {
    /// Where `recipe` itself says.
    pub fn of(recipe: &Recipe, chunk: &Chunk) -> Self {
        Self { object: recipe.objects()[chunk.object as usize], chunk: *chunk }
    }

    /// Where `placement` says, which lists chunks in the order of their ids; `None` where it does not
    /// have the chunk.
    pub fn moved(placement: &Recipe, chunk: &Chunk) -> Option<Self> {
        let found = placement.chunks().binary_search_by(|one| one.id.cmp(&chunk.id)).ok()?;
        Some(Self::of(placement, &placement.chunks()[found]))
    }

    /// Where the chunk lies, which `recipe` names, and of which `placement` may know more.
    pub fn find(recipe: &Recipe, placement: Option<&Recipe>, chunk: &Chunk) -> Self {
        let moved = placement.and_then(|placement| Self::moved(placement, chunk));
        moved.unwrap_or_else(|| Self::of(recipe, chunk))
    }
}

impl Origin {
    /// With the rows that say what was moved.
    #[must_use]
    pub fn following(mut self, raft: Raft) -> Self {
        self.raft = Some(raft);
        self
    }

    /// Where chunks of the recipe were moved to, if any were.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn placement(&self, id: RecipeId) -> Result<Option<Arc<Recipe>>, Error> {
        let Some(raft) = &self.raft else { return Ok(None) };
        let row = raft.local().query().relocation(id);
        let Some(row) = row.map_err(|fault| Error::Rows(fault.to_string()))? else {
            return Ok(None);
        };
        let missing = StoreError::NotFound(ObjectKey::Recipe(row.placement));
        self.recipe(row.placement).await?.ok_or_else(|| missing.into()).map(Some)
    }

    /// The content of a chunk of the recipe `id`, read through `windows` and verified.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn read_chunk(
        &self,
        windows: &Windows,
        id: RecipeId,
        named: Place,
    ) -> Result<Vec<u8>, Error> {
        self.read_stored(windows, id, named).await.map(|(content, _)| content)
    }

    /// The same, and as what it is stored.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn read_stored(
        &self,
        windows: &Windows,
        id: RecipeId,
        named: Place,
    ) -> Result<(Vec<u8>, Bytes), Error> {
        let mut last: Option<(Place, Error)> = None;
        for _ in 0..LOOKS_MAX {
            let place = match self.placement(id).await {
                Ok(placement) => placement
                    .and_then(|placement| Place::moved(&placement, &named.chunk))
                    .unwrap_or(named),
                // Most chunks were never moved.
                Err(Error::Rows(_)) => named,
                Err(error) if is_gone(&error) => named,
                Err(error) => return Err(error),
            };
            if last.as_ref().is_some_and(|(before, _)| *before == place) {
                break;
            }
            let stored = u64::from(place.chunk.stored());
            match windows.read(place.object, place.chunk.at, stored).await {
                Ok(stored) => {
                    return decode_chunk(&place.chunk, &stored)
                        .map(|content| (content, stored))
                        .map_err(|error| Error::Chunk(Arc::new(error)));
                }
                Err(error) => {
                    let error = Error::Store(error);
                    if !is_gone(&error) {
                        return Err(error);
                    }
                    last = Some((place, error));
                }
            }
        }
        Err(last.map_or(Error::Interrupted, |(_, error)| error))
    }
}

fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Store(error) if matches!(**error, StoreError::NotFound(_)))
}
