//! The node as the swarm's origin: recipes and chunks out of central storage.
//!
//! Invariants: a recipe is what its id names and a chunk what its id names, checked on every read
//! from storage; memory is bounded by the named caches and what is being looked up; of many who ask
//! for the same thing at once, one reads it, and waits for none of them: the body of a download
//! stands still when its client does.
//! Non-goals: who may have what (tickets; see `shoal-p2p` and `grant`), writing.

mod grant;
mod limits;
mod peers;
mod places;
mod swarm_store;
mod windows;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use moka::future::Cache;
use moka::policy::EvictionPolicy;
use shoal_content::{Encoding, ObjectKey, RECIPE_BYTES_MAX, Recipe, RecipeError, RecipeId};
use shoal_formats::ChunkError;
use shoal_p2p::{Stored, ZstdFrame};
use shoal_raft::Raft;
use thiserror::Error;
use tokio::sync::Semaphore;
use tracing::Instrument;

pub use grant::{TICKET_TTL, issue_ticket};
pub use limits::keep_limits;
pub use peers::{PeersError, follow_members, serve_peers};
pub use places::Place;
pub use windows::{WINDOW_BYTES, WINDOW_CACHE_BYTES_MAX, Windows};

use crate::store::{BlobStore, StoreError};

/// What cached recipes take together, about; one that takes more by itself is kept all the same, in
/// place of nearly all others: for each of its chunks it would be read anew.
const RECIPE_CACHE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// What cached chunks take together, decoded: for downloads.
const CHUNK_CACHE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The same as they are stored, where that is compressed: for peers.
const FRAME_CACHE_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Chunks that are looked up at once, also for those who have gone; more wait.
const LOOKUPS_MAX: usize = 256;
/// A decoded chunk entry and an extent, in memory.
const CHUNK_ENTRY_BYTES: usize = 80;
const EXTENT_ENTRY_BYTES: usize = 16;

/// Why content could not be had from storage.
#[derive(Debug, Clone, Error)]
pub enum Error {
    #[error(transparent)]
    Store(Arc<StoreError>),
    #[error("recipe {0} is longer than any recipe may be")]
    RecipeTooLong(RecipeId),
    #[error("the object of recipe {0} holds something else")]
    RecipeContent(RecipeId),
    #[error("recipe {id} cannot be read: {error}")]
    Recipe { id: RecipeId, error: RecipeError },
    #[error("recipe {id} has no chunk {index}")]
    NoChunk { id: RecipeId, index: u32 },
    #[error("a chunk in storage is damaged: {0}")]
    Chunk(Arc<ChunkError>),
    #[error("decoding was interrupted")]
    Interrupted,
    #[error("where chunks were moved to cannot be read: {0}")]
    Rows(String),
}

impl Error {
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.is_retryable(),
            Self::Interrupted | Self::Rows(_) => true,
            _ => false,
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// See the module's documentation. Clones share the caches.
#[derive(Debug, Clone)]
pub struct Origin {
    store: Arc<dyn BlobStore>,
    windows: Windows,
    recipes: Cache<RecipeId, Arc<Recipe>>,
    chunks: Cache<(RecipeId, u32), Bytes>,
    /// Of verified chunks.
    frames: Cache<(RecipeId, u32), Stored>,
    lookups: Arc<Semaphore>,
    /// `None` where nothing was ever moved.
    raft: Option<Raft>,
}

impl Origin {
    pub fn new(store: Arc<dyn BlobStore>) -> Self {
        Self::with_recipes(store, RECIPE_CACHE_BYTES_MAX)
    }

    /// With room for so many bytes of recipes.
    fn with_recipes(store: Arc<dyn BlobStore>, room: u64) -> Self {
        let weigh = move |_: &RecipeId, recipe: &Arc<Recipe>| {
            let bytes = recipe.chunks().len() * CHUNK_ENTRY_BYTES
                + recipe.extents().len() * EXTENT_ENTRY_BYTES;
            // So that small ones come and go beside it.
            let counted = (bytes as u64).min(room / 4 * 3);
            u32::try_from(counted).unwrap_or(u32::MAX).max(1)
        };
        // Whoever is asked for often would keep a long one out, which is asked for as often then.
        let recipes = Cache::builder()
            .weigher(weigh)
            .max_capacity(room)
            .eviction_policy(EvictionPolicy::lru())
            .build();
        let chunks = Cache::builder()
            .weigher(|_, chunk: &Bytes| u32::try_from(chunk.len()).unwrap_or(u32::MAX))
            .max_capacity(CHUNK_CACHE_BYTES_MAX)
            .build();
        let frames = Cache::builder()
            .weigher(|_, chunk: &Stored| u32::try_from(chunk.wire_bytes()).unwrap_or(u32::MAX))
            .max_capacity(FRAME_CACHE_BYTES_MAX)
            .build();
        let lookups = Arc::new(Semaphore::new(LOOKUPS_MAX));
        let windows = Windows::new(Arc::clone(&store));
        Self { windows, store, recipes, chunks, frames, lookups, raft: None }
    }

    /// The recipe, `None` where storage has no such object.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn recipe(&self, id: RecipeId) -> Result<Option<Arc<Recipe>>, Error> {
        match self.recipes.try_get_with(id, self.load_recipe(id)).await {
            Ok(recipe) => Ok(Some(recipe)),
            Err(error) => match error.as_ref() {
                Error::Store(store) if matches!(**store, StoreError::NotFound(_)) => Ok(None),
                error => Err(error.clone()),
            },
        }
    }

    /// The same, past the cache: for whoever looks at many, each once.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn load_recipe(&self, id: RecipeId) -> Result<Arc<Recipe>, Error> {
        let key = ObjectKey::Recipe(id);
        let length = self.store.length(key).await?.ok_or(StoreError::NotFound(key))?;
        if length > RECIPE_BYTES_MAX as u64 {
            return Err(Error::RecipeTooLong(id));
        }
        let mut encoded = BytesMut::with_capacity(length as usize);
        let mut pieces = self.store.get(key, 0..length).await?;
        while let Some(piece) = pieces.try_next().await? {
            if encoded.len() + piece.len() > length as usize {
                return Err(Error::RecipeTooLong(id));
            }
            encoded.extend_from_slice(&piece);
        }
        let decoded = tokio::task::spawn_blocking(move || {
            if RecipeId::of(&encoded) != id {
                return Err(Error::RecipeContent(id));
            }
            Recipe::decode(&encoded).map_err(|error| Error::Recipe { id, error })
        });
        decoded.await.map_err(|_| Error::Interrupted)?.map(Arc::new)
    }

    /// The content of chunk `index` of `recipe`, whose id is `id`; verified.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn chunk(&self, id: RecipeId, recipe: &Recipe, index: u32) -> Result<Bytes, Error> {
        let chunk = *recipe.chunks().get(index as usize).ok_or(Error::NoChunk { id, index })?;
        let named = Place::of(recipe, &chunk);
        if let Some(content) = self.chunks.get(&(id, index)).await {
            return Ok(content);
        }
        let this = self.clone();
        let read = async move {
            let read = this.read_chunk(&this.windows, id, named).await;
            read.map(Bytes::from)
        };
        self.look_up(self.chunks.clone(), (id, index), read).await
    }

    /// The same as it is stored: a frame out of a pack is verified, and given without being compressed
    /// anew.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stored_chunk(
        &self,
        id: RecipeId,
        recipe: &Recipe,
        index: u32,
    ) -> Result<Stored, Error> {
        let chunk = *recipe.chunks().get(index as usize).ok_or(Error::NoChunk { id, index })?;
        if chunk.encoding == Encoding::Raw {
            return self.chunk(id, recipe, index).await.map(Stored::Raw);
        }
        let named = Place::of(recipe, &chunk);
        if let Some(frame) = self.frames.get(&(id, index)).await {
            return Ok(frame);
        }
        let this = self.clone();
        let read = async move {
            let (content, stored) = this.read_stored(&this.windows, id, named).await?;
            // A slice would keep its whole window in memory until the peer has it. What was moved may
            // be stored otherwise than the recipe says, and is no frame then.
            let frame = ZstdFrame::parse(Bytes::copy_from_slice(&stored), chunk.length);
            Ok(frame.map_or_else(|| Stored::Raw(content.into()), Stored::Zstd))
        };
        self.look_up(self.frames.clone(), (id, index), read).await
    }

    /// What `read` gives, once for all who ask at the same time, and kept in `cache`.
    async fn look_up<T: Clone + Send + Sync + 'static>(
        &self,
        cache: Cache<(RecipeId, u32), T>,
        place: (RecipeId, u32),
        read: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let lookups = Arc::clone(&self.lookups);
        let looked_up = async move {
            // A task's turn: whoever stands still among the askers holds up none of those behind.
            let _place = lookups.acquire_owned().await.map_err(|_| Error::Interrupted)?;
            let read = cache.try_get_with(place, read).await;
            read.map_err(|error: Arc<Error>| error.as_ref().clone())
        };
        // Others wait for it, too, so that it goes on whether or not it is asked for again here.
        let ended = tokio::spawn(looked_up.in_current_span()).await;
        ended.map_err(|_| Error::Interrupted)?
    }
}
