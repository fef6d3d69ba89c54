//! The cache as the swarm sees it. The trait's documentation in shoal-p2p is the specification,
//! and its conformance suite runs against this in `edge-agent/tests`.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use shoal_content::{Recipe, RecipeId};
use shoal_p2p::{ChunkSet, ChunkStore, StoreError};
use tracing::warn;

use super::{Cache, Error, Held};

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        if error.is_full() {
            Self::full(error.to_string())
        } else {
            Self::failed(error.to_string())
        }
    }
}

/// Runs `work` off the async threads.
async fn off<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, StoreError> {
    match crate::blocking(work).await {
        Some(outcome) => outcome.map_err(StoreError::from),
        None => Err(StoreError::failed("the agent is shutting down".to_owned())),
    }
}

/// What a damaged entry should know is not known here: it is fetched, and the entry made anew then.
fn known<T>(found: Result<Option<T>, Error>) -> Result<Option<T>, Error> {
    match found {
        Err(error) if error.is_damaged() => {
            warn!(%error, "a cache entry is unusable until its image is fetched again");
            Ok(None)
        }
        found => found,
    }
}

fn chunk_set(held: &Held) -> ChunkSet {
    let mut set = ChunkSet::empty(held.count());
    for index in held.iter() {
        set.insert(index);
    }
    set
}

#[async_trait]
impl ChunkStore for Cache {
    async fn recipe(&self, id: RecipeId) -> Result<Option<Arc<Recipe>>, StoreError> {
        let Some(entry) = self.entry(id) else { return Ok(None) };
        off(move || known(entry.load().map(|loaded| Some(loaded.places.recipe().clone())))).await
    }

    async fn held(&self, id: RecipeId) -> Result<ChunkSet, StoreError> {
        let Some(entry) = self.entry(id) else { return Ok(ChunkSet::empty(0)) };
        let cache = self.clone();
        off(move || {
            cache.verify(&entry)?;
            Ok(chunk_set(&entry.held()))
        })
        .await
    }

    async fn read(&self, id: RecipeId, index: u32) -> Result<Option<Bytes>, StoreError> {
        let Some(entry) = self.entry(id) else { return Ok(None) };
        let cache = self.clone();
        off(move || {
            entry.touch();
            known(cache.read_chunk(&entry, index))
        })
        .await
    }

    async fn open(&self, id: RecipeId, recipe: Arc<Recipe>) -> Result<ChunkSet, StoreError> {
        let cache = self.clone();
        off(move || cache.open_entry(id, &recipe).map(|entry| chunk_set(&entry.held()))).await
    }

    async fn write(&self, id: RecipeId, index: u32, content: Bytes) -> Result<(), StoreError> {
        let entry = self.entry(id).ok_or(Error::Unknown(id))?;
        let cache = self.clone();
        off(move || cache.write_chunk(&entry, index, &content)).await
    }

    async fn complete(&self, id: RecipeId) -> Result<(), StoreError> {
        let entry = self.entry(id).ok_or(Error::Unknown(id))?;
        off(move || entry.complete()).await
    }
}
