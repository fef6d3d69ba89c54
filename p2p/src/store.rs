//! Where chunks are kept, as the swarm needs it; agents and nodes implement it.
//!
//! Non-goal: verification. What is written was verified; what is read is verified by whoever
//! receives it.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use shoal_content::{Recipe, RecipeId};
use shoal_swarm::ChunkSet;
use thiserror::Error;

use crate::compression::Stored;

/// Why a store did not do its part.
#[derive(Debug, Clone, Error)]
pub enum StoreError {
    #[error("the storage is full: {0}")]
    Full(String),
    #[error("the storage failed: {0}")]
    Failed(String),
}

impl StoreError {
    pub fn full(why: String) -> Self {
        Self::Full(why)
    }

    pub fn failed(why: String) -> Self {
        Self::Failed(why)
    }

    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full(_))
    }
}

/// See the module's documentation. A recipe must be opened before a chunk of it is written; a
/// chunk once written is held and read as written; writing it again changes nothing.
#[async_trait]
pub trait ChunkStore: Send + Sync {
    /// The recipe, where this process can serve any of it.
    async fn recipe(&self, id: RecipeId) -> Result<Option<Arc<Recipe>>, StoreError>;
    /// What is verified here; the empty set of none for an unknown recipe.
    async fn held(&self, id: RecipeId) -> Result<ChunkSet, StoreError>;
    /// One chunk's content, uncompressed; `None` where it is not held.
    async fn read(&self, id: RecipeId, index: u32) -> Result<Option<Bytes>, StoreError>;
    /// The same as it is stored, for a store that has it compressed: a frame whose content is right,
    /// since whoever gives another is banned.
    async fn read_stored(&self, id: RecipeId, index: u32) -> Result<Option<Stored>, StoreError> {
        Ok(self.read(id, index).await?.map(Stored::Raw))
    }
    /// Prepares to receive and says what is here already; may be called again.
    async fn open(&self, id: RecipeId, recipe: Arc<Recipe>) -> Result<ChunkSet, StoreError>;
    /// Keeps a verified chunk.
    async fn write(&self, id: RecipeId, index: u32, content: Bytes) -> Result<(), StoreError>;
    /// Every chunk is there: sync, then publish. May be called again.
    async fn complete(&self, id: RecipeId) -> Result<(), StoreError>;
}

#[derive(Debug)]
struct Kept {
    recipe: Arc<Recipe>,
    chunks: HashMap<u32, Bytes>,
    held: ChunkSet,
}

/// A store in memory, for processes that keep nothing: tests and benchmarks.
#[derive(Debug, Default)]
pub struct MemoryStore {
    kept: Mutex<HashMap<RecipeId, Kept>>,
}

#[async_trait]
impl ChunkStore for MemoryStore {
    async fn recipe(&self, id: RecipeId) -> Result<Option<Arc<Recipe>>, StoreError> {
        Ok(self.kept.lock().get(&id).map(|kept| kept.recipe.clone()))
    }

    async fn held(&self, id: RecipeId) -> Result<ChunkSet, StoreError> {
        Ok(self.kept.lock().get(&id).map(|kept| kept.held.clone()).unwrap_or_default())
    }

    async fn read(&self, id: RecipeId, index: u32) -> Result<Option<Bytes>, StoreError> {
        Ok(self.kept.lock().get(&id).and_then(|kept| kept.chunks.get(&index).cloned()))
    }

    async fn open(&self, id: RecipeId, recipe: Arc<Recipe>) -> Result<ChunkSet, StoreError> {
        let held = ChunkSet::empty(recipe.chunks().len() as u32);
        let mut all = self.kept.lock();
        let kept = all.entry(id).or_insert(Kept { recipe, chunks: HashMap::new(), held });
        Ok(kept.held.clone())
    }

    async fn write(&self, id: RecipeId, index: u32, content: Bytes) -> Result<(), StoreError> {
        let mut all = self.kept.lock();
        let kept = all.get_mut(&id);
        let kept = kept.ok_or_else(|| StoreError::failed(format!("{id} is not open")))?;
        if kept.held.insert(index) {
            kept.chunks.insert(index, content);
        }
        Ok(())
    }

    async fn complete(&self, id: RecipeId) -> Result<(), StoreError> {
        match self.kept.lock().get(&id) {
            Some(kept) if kept.held.is_full() => Ok(()),
            _ => Err(StoreError::failed(format!("{id} lacks chunks"))),
        }
    }
}
