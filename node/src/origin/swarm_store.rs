//! The origin as the swarm sees it: a store that has every chunk and takes none.
//!
//! Invariant: whatever storage has a recipe of is served whole; who may have it is checked before,
//! by ticket, in `shoal-p2p`.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use shoal_content::{Recipe, RecipeId};
use shoal_p2p::{ChunkStore, StoreError, Stored};
use shoal_swarm::ChunkSet;

use super::{Error, Origin};

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        Self::failed(error.to_string())
    }
}

fn read_only() -> StoreError {
    StoreError::failed("a node's store is filled by uploads only".to_owned())
}

#[async_trait]
impl ChunkStore for Origin {
    async fn recipe(&self, id: RecipeId) -> Result<Option<Arc<Recipe>>, StoreError> {
        Ok(Self::recipe(self, id).await?)
    }

    async fn held(&self, id: RecipeId) -> Result<ChunkSet, StoreError> {
        let recipe = Self::recipe(self, id).await?;
        Ok(recipe.map(|recipe| ChunkSet::full(recipe.chunks().len() as u32)).unwrap_or_default())
    }

    async fn read(&self, id: RecipeId, index: u32) -> Result<Option<Bytes>, StoreError> {
        let Some(recipe) = Self::recipe(self, id).await? else { return Ok(None) };
        if index as usize >= recipe.chunks().len() {
            return Ok(None);
        }
        Ok(Some(self.chunk(id, &recipe, index).await?))
    }

    async fn read_stored(&self, id: RecipeId, index: u32) -> Result<Option<Stored>, StoreError> {
        let Some(recipe) = Self::recipe(self, id).await? else { return Ok(None) };
        if index as usize >= recipe.chunks().len() {
            return Ok(None);
        }
        Ok(Some(self.stored_chunk(id, &recipe, index).await?))
    }

    async fn open(&self, _id: RecipeId, _recipe: Arc<Recipe>) -> Result<ChunkSet, StoreError> {
        Err(read_only())
    }

    async fn write(&self, _id: RecipeId, _index: u32, _content: Bytes) -> Result<(), StoreError> {
        Err(read_only())
    }

    async fn complete(&self, _id: RecipeId) -> Result<(), StoreError> {
        Err(read_only())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shoal_content::{
        Chunk, ChunkId, Encoding, Extent, ObjectKey, PackId, RecipeKind, SourceObject,
    };
    use shoal_metadata::KeyOwner;
    use tokio::time::timeout;

    use super::super::LOOKUPS_MAX;
    use super::*;
    use crate::store::disturbed::DisturbedStore;
    use crate::store::{self, BlobStore, FolderStore};

    const CHUNKS: u32 = 40;
    const CHUNK_BYTES: usize = 200_000;

    fn content(index: u32) -> Vec<u8> {
        (0..CHUNK_BYTES).map(|at| (at as u32 ^ at as u32 >> 9).wrapping_add(index) as u8).collect()
    }

    /// Forty chunks in one pack of eight MB, every other one compressed: chunks cross windows.
    async fn stored(store: &dyn BlobStore) -> (RecipeId, Recipe) {
        let mut pack = Vec::new();
        let mut chunks = Vec::new();
        for index in 0..CHUNKS {
            let content = content(index);
            let (id, length, at) = (ChunkId::of(&content), CHUNK_BYTES as u32, pack.len() as u64);
            let encoding = if index % 2 == 0 {
                pack.extend_from_slice(&content);
                Encoding::Raw
            } else {
                let stored = zstd::bulk::compress(&content, 1).unwrap();
                pack.extend_from_slice(&stored);
                Encoding::Zstd { stored: stored.len() as u32 }
            };
            chunks.push(Chunk { id, length, object: 0, at, encoding });
        }
        let key = ObjectKey::Pack(PackId::of(&pack));
        let object = SourceObject { key, length: pack.len() as u64 };
        let extent = |chunk| Extent { offset: u64::from(chunk) * CHUNK_BYTES as u64, chunk };
        let extents = (0..CHUNKS).map(extent).collect();
        let length = u64::from(CHUNKS) * CHUNK_BYTES as u64;
        let recipe = Recipe::new(RecipeKind::Disk, length, vec![object], chunks, extents).unwrap();
        let encoded = recipe.encode();
        let id = RecipeId::of(&encoded);
        store.put(key, &KeyOwner::Cluster, pack.into()).await.unwrap();
        store.put(ObjectKey::Recipe(id), &KeyOwner::Cluster, encoded.into()).await.unwrap();
        (id, recipe)
    }

    fn origin() -> (tempfile::TempDir, Arc<dyn BlobStore>, Origin) {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn BlobStore> = Arc::new(FolderStore::open(folder.path(), 0).unwrap());
        let origin = Origin::new(Arc::clone(&store));
        (folder, store, origin)
    }

    #[tokio::test]
    async fn serves_every_chunk_of_what_is_stored_and_takes_none() {
        let (_folder, store, origin) = origin();
        let (id, recipe) = stored(store.as_ref()).await;
        let origin: &dyn ChunkStore = &origin;
        assert_eq!(*origin.recipe(id).await.unwrap().unwrap(), recipe);
        assert!(origin.held(id).await.unwrap().is_full());
        let reads = (0..CHUNKS).rev().map(|index| origin.read(id, index));
        let read = futures::future::try_join_all(reads).await.unwrap();
        for (index, found) in (0..CHUNKS).rev().zip(read) {
            assert!(found.unwrap() == content(index), "chunk {index}");
        }
        assert_eq!(origin.read(id, CHUNKS).await.unwrap(), None);
        let unknown = RecipeId::of(b"unknown");
        assert!(origin.recipe(unknown).await.unwrap().is_none());
        assert_eq!(origin.read(unknown, 0).await.unwrap(), None);
        assert!(origin.write(id, 0, Bytes::from_static(b"x")).await.is_err());
        assert!(origin.open(id, Arc::new(recipe)).await.is_err());
    }

    #[tokio::test]
    async fn gives_compressed_chunks_as_they_lie_in_the_pack() {
        let (_folder, store, origin) = origin();
        let (id, recipe) = stored(store.as_ref()).await;
        let object = recipe.objects()[0];
        let pack = store::read(store.as_ref(), object.key, 0..object.length).await.unwrap();
        let origin: &dyn ChunkStore = &origin;
        // The second time what was verified is at hand.
        for index in (0..CHUNKS).chain(0..CHUNKS) {
            let chunk = recipe.chunks()[index as usize];
            let kept = &pack[chunk.at as usize..][..chunk.stored() as usize];
            match origin.read_stored(id, index).await.unwrap().unwrap() {
                Stored::Raw(content) => {
                    assert_eq!(chunk.encoding, Encoding::Raw);
                    assert!(content == kept, "chunk {index}");
                }
                Stored::Zstd(frame) => {
                    assert_ne!(chunk.encoding, Encoding::Raw);
                    assert!(frame.bytes() == kept, "chunk {index}");
                    assert!(frame.content().unwrap() == content(index), "chunk {index}");
                }
            }
        }
        assert_eq!(origin.read_stored(id, CHUNKS).await.unwrap(), None);
        assert_eq!(origin.read_stored(RecipeId::of(b"unknown"), 0).await.unwrap(), None);
    }

    /// Whoever got it would ban this node.
    #[tokio::test]
    async fn a_frame_that_is_damaged_in_its_pack_is_not_passed_on() {
        let (_folder, store, origin) = origin();
        let (id, recipe) = stored(store.as_ref()).await;
        let object = recipe.objects()[0];
        let pack = store::read(store.as_ref(), object.key, 0..object.length).await.unwrap();
        let mut pack = pack.to_vec();
        let chunk = recipe.chunks()[1];
        pack[(chunk.at + u64::from(chunk.stored()) / 2) as usize] ^= 1;
        store.put(object.key, &KeyOwner::Cluster, pack.into()).await.unwrap();
        let swarm: &dyn ChunkStore = &origin;
        assert!(swarm.read_stored(id, 1).await.is_err());
        assert!(swarm.read_stored(id, 3).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_recipe_that_is_longer_than_all_that_are_kept_is_read_once() {
        let (_folder, store, _) = origin();
        let (id, recipe) = stored(store.as_ref()).await;
        let room = recipe.chunks().len() as u64;
        let origin = Origin::with_recipes(Arc::clone(&store), room);
        let swarm: &dyn ChunkStore = &origin;
        swarm.read(id, 0).await.unwrap();
        origin.recipes.run_pending_tasks().await;
        store.delete(&[ObjectKey::Recipe(id)]).await.unwrap();
        for index in 0..CHUNKS {
            assert!(swarm.read(id, index).await.unwrap().unwrap() == content(index));
        }
    }

    #[tokio::test]
    async fn many_who_ask_cost_storage_one_read_a_window() {
        let (_folder, store, origin) = origin();
        let (id, recipe) = stored(store.as_ref()).await;
        let swarm: &dyn ChunkStore = &origin;
        swarm.read(id, 0).await.unwrap();
        // What lies in the same window is served though the pack is gone from storage.
        store.delete(&[recipe.objects()[0].key]).await.unwrap();
        for index in 1..10 {
            assert!(swarm.read(id, index).await.unwrap().unwrap() == content(index));
        }
        assert!(swarm.read(id, CHUNKS - 1).await.is_err());
    }

    #[tokio::test]
    async fn damage_in_storage_is_not_passed_on() {
        let (_folder, store, origin) = origin();
        let (id, recipe) = stored(store.as_ref()).await;
        let object = recipe.objects()[0];
        store
            .put(object.key, &KeyOwner::Cluster, vec![1; object.length as usize].into())
            .await
            .unwrap();
        let swarm: &dyn ChunkStore = &origin;
        for index in 0..2 {
            assert!(swarm.read(id, index).await.is_err());
            assert!(swarm.read_stored(id, index).await.is_err());
        }
    }

    /// As the body of a download is left when its client takes no more.
    #[tokio::test]
    async fn whoever_stands_still_holds_up_nobody() {
        let deadline = Duration::from_secs(20);
        let folder = tempfile::tempdir().unwrap();
        let store = DisturbedStore::open(folder.path());
        let (id, recipe) = stored(&*store).await;
        let shared: Arc<dyn BlobStore> = store.clone();
        let origin = Origin::new(shared);
        let shut = store.gate.acquire().await.unwrap();
        let mut still: Vec<_> =
            (0..CHUNKS).map(|index| Box::pin(origin.chunk(id, &recipe, index))).collect();
        for one in &mut still {
            assert!(futures::poll!(one.as_mut()).is_pending());
        }
        let begun = async {
            while store.reads() == 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(deadline, begun).await.unwrap();
        drop(shut);
        for index in 0..CHUNKS {
            let read = timeout(deadline, origin.chunk(id, &recipe, index)).await;
            let read = read.expect("it waits for whoever stands still");
            assert!(read.unwrap() == content(index), "chunk {index}");
        }
        drop(still);
        let free = timeout(deadline, origin.lookups.acquire_many(LOOKUPS_MAX as u32)).await;
        assert!(free.is_ok(), "a lookup that has ended takes a place");
    }

    #[tokio::test]
    async fn what_is_at_hand_is_given_however_many_are_looked_up() {
        let (_folder, store, origin) = origin();
        let (id, recipe) = stored(store.as_ref()).await;
        assert!(origin.chunk(id, &recipe, 0).await.unwrap() == content(0));
        let all = origin.lookups.acquire_many(LOOKUPS_MAX as u32).await.unwrap();
        assert!(origin.chunk(id, &recipe, 0).await.unwrap() == content(0));
        let next = origin.chunk(id, &recipe, 1);
        let mut next = std::pin::pin!(next);
        assert!(futures::poll!(next.as_mut()).is_pending(), "it waits for its turn");
        drop(all);
        assert!(next.await.unwrap() == content(1));
    }
}
