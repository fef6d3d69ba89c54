//! What every [`ChunkStore`] must do; each implementation's tests call [`run`].

use std::sync::Arc;

use bytes::Bytes;
use shoal_content::{
    Chunk, ChunkId, Encoding, Extent, ObjectKey, PackId, Recipe, RecipeId, RecipeKind, SourceObject,
};

use crate::compression::Stored;
use crate::store::ChunkStore;

const CONTENTS: [&[u8]; 3] = [b"first", b"second chunk", b"3"];

/// A disk of three small chunks with a hole, its id and contents.
///
/// # Panics
/// Never, unless shoal-content refuses its own invariants.
pub fn sample() -> (Arc<Recipe>, RecipeId, Vec<Bytes>) {
    let mut at = 0;
    let mut chunks = Vec::new();
    let mut extents = Vec::new();
    for (index, content) in CONTENTS.iter().enumerate() {
        let length = content.len() as u32;
        let id = ChunkId::of(content);
        chunks.push(Chunk { id, length, object: 0, at, encoding: Encoding::Raw });
        extents.push(Extent { offset: at + 4096 * index as u64, chunk: index as u32 });
        at += u64::from(length);
    }
    let objects = vec![SourceObject { key: ObjectKey::Pack(PackId::of(b"sample")), length: at }];
    let recipe = Recipe::new(RecipeKind::Disk, 1 << 20, objects, chunks, extents);
    let recipe = recipe.expect("the sample keeps a recipe's invariants");
    let id = recipe.encode_with_id().0;
    (Arc::new(recipe), id, CONTENTS.iter().map(|content| Bytes::from_static(content)).collect())
}

/// Puts a store that receives through its whole life; it must not know [`sample`] yet.
///
/// # Panics
/// Where the store breaks the trait's promise.
pub async fn run(store: &dyn ChunkStore) {
    let (recipe, id, contents) = sample();
    assert!(store.held(id).await.expect("held of an unknown recipe").is_empty());
    assert_eq!(store.read(id, 0).await.expect("read of an unknown recipe"), None);
    let held = store.open(id, recipe.clone()).await.expect("open");
    assert_eq!((held.len(), held.count()), (3, 0), "a new recipe holds none of its chunks");
    for index in [2, 0] {
        let content = contents[index].clone();
        store.write(id, index as u32, content.clone()).await.expect("write");
        store.write(id, index as u32, content.clone()).await.expect("write again");
        assert_eq!(store.read(id, index as u32).await.expect("read"), Some(content));
    }
    assert_eq!(store.read(id, 1).await.expect("read of a missing chunk"), None);
    let held = store.open(id, recipe.clone()).await.expect("open again");
    assert_eq!(held.iter().collect::<Vec<_>>(), [0, 2], "a second open forgets nothing");
    store.write(id, 1, contents[1].clone()).await.expect("write the last");
    store.complete(id).await.expect("complete");
    store.complete(id).await.expect("complete again");
    assert!(store.held(id).await.expect("held").is_full());
    assert_eq!(store.recipe(id).await.expect("recipe"), Some(recipe));
    for (index, content) in contents.into_iter().enumerate() {
        let stored = match store.read_stored(id, index as u32).await.expect("read as stored") {
            Some(Stored::Zstd(frame)) => Some(frame.content().expect("a frame that is whole")),
            Some(Stored::Raw(content)) => Some(content),
            None => None,
        };
        assert_eq!(stored.as_ref(), Some(&content));
        assert_eq!(store.read(id, index as u32).await.expect("read"), Some(content));
    }
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn the_store_in_memory_conforms() {
        super::run(&crate::MemoryStore::default()).await;
    }
}
