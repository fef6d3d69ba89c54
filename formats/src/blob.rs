//! Cuts an OCI blob into chunks while it streams, so that hosts can send it to each other.
//!
//! A blob is stored as it came, as one object, and its chunks are ranges of that object: cuts are
//! at every [`BLOB_CHUNK_BYTES`], since layers are compressed and share nothing across a boundary.
//!
//! A push may go on at another node after each request, so that the state between two updates has
//! an encoded form; integers are little-endian:
//! ```text
//! magic "SHOALBLB"   8 bytes
//! version            1 byte, 1
//! length             8 bytes: bytes of the blob so far
//! ids                32 bytes for each whole chunk
//! rest               the bytes after the last whole chunk
//! ```
//! Invariant: the recipe depends only on the bytes and the object's key, not on how they were
//! split into updates, encoded or resumed.
//! Non-goal: the blob's own digest, which its receiver computes.

use std::collections::HashMap;

use shoal_content::{
    CHUNK_BYTES_MAX, Chunk, ChunkId, Encoding, Extent, ObjectKey, Recipe, RecipeKind, SourceObject,
};
use thiserror::Error;

/// Bytes between two cuts of a blob.
pub const BLOB_CHUNK_BYTES: usize = CHUNK_BYTES_MAX as usize;
const MAGIC: &[u8; 8] = b"SHOALBLB";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = MAGIC.len() + 1 + 8;
const ID_BYTES: usize = 32;

/// Why bytes are not a cutter's state.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BlobStateError {
    #[error("not the state of a blob's cutter: it does not start with the magic bytes")]
    Magic,
    #[error("a blob cutter's state of version {0} is newer than this program; upgrade it")]
    Version(u8),
    #[error("the state is {found} bytes long, but a blob of {blob} bytes leaves another length")]
    Length { blob: u64, found: usize },
}

/// See the module's documentation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlobCutter {
    ids: Vec<ChunkId>,
    /// Shorter than [`BLOB_CHUNK_BYTES`].
    rest: Vec<u8>,
}

impl BlobCutter {
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes of the blob so far.
    pub fn length(&self) -> u64 {
        (self.ids.len() * BLOB_CHUNK_BYTES + self.rest.len()) as u64
    }

    /// Of the whole chunks so far, in order.
    pub fn ids(&self) -> &[ChunkId] {
        &self.ids
    }

    pub fn update(&mut self, mut bytes: &[u8]) {
        if !self.rest.is_empty() {
            let missing = BLOB_CHUNK_BYTES - self.rest.len();
            let (head, tail) = bytes.split_at(missing.min(bytes.len()));
            self.rest.extend_from_slice(head);
            bytes = tail;
            if self.rest.len() < BLOB_CHUNK_BYTES {
                return;
            }
            self.ids.push(ChunkId::of(&self.rest));
            self.rest.clear();
        }
        let mut whole = bytes.chunks_exact(BLOB_CHUNK_BYTES);
        self.ids.extend(whole.by_ref().map(ChunkId::of));
        self.rest.extend_from_slice(whole.remainder());
    }

    /// The recipe of the blob, which lies as it is in `object`.
    pub fn finish(mut self, object: ObjectKey) -> Recipe {
        let length = self.length();
        if !self.rest.is_empty() {
            self.ids.push(ChunkId::of(&self.rest));
        }
        let objects = vec![SourceObject { key: object, length }];
        let mut known = HashMap::new();
        let mut chunks: Vec<Chunk> = Vec::new();
        let mut extents = Vec::with_capacity(self.ids.len());
        let starts = (0..length).step_by(BLOB_CHUNK_BYTES);
        for (offset, id) in starts.zip(self.ids) {
            let chunk = *known.entry(id).or_insert_with(|| {
                let length = (length - offset).min(BLOB_CHUNK_BYTES as u64) as u32;
                chunks.push(Chunk { id, length, object: 0, at: offset, encoding: Encoding::Raw });
                (chunks.len() - 1) as u32
            });
            extents.push(Extent { offset, chunk });
        }
        Recipe::new(RecipeKind::Blob, length, objects, chunks, extents)
            .expect("a blob cut at a fixed step keeps every rule of recipes")
    }

    /// See the module's documentation for the layout.
    pub fn to_bytes(&self) -> Vec<u8> {
        let length = HEADER_BYTES + self.ids.len() * ID_BYTES + self.rest.len();
        let mut out = Vec::with_capacity(length);
        out.extend_from_slice(MAGIC);
        out.push(VERSION);
        out.extend_from_slice(&self.length().to_le_bytes());
        for id in &self.ids {
            out.extend_from_slice(id.as_bytes());
        }
        out.extend_from_slice(&self.rest);
        out
    }

    /// # Errors
    /// Where `bytes` are not what [`to_bytes`](Self::to_bytes) gives.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BlobStateError> {
        let after_magic = bytes.strip_prefix(MAGIC).ok_or(BlobStateError::Magic)?;
        let (&version, fields) = after_magic.split_first().ok_or(BlobStateError::Magic)?;
        if version != VERSION {
            return Err(BlobStateError::Version(version));
        }
        let (length, body) = fields.split_first_chunk().ok_or(BlobStateError::Magic)?;
        let blob = u64::from_le_bytes(*length);
        let wrong = || BlobStateError::Length { blob, found: bytes.len() };
        let rest = (blob % BLOB_CHUNK_BYTES as u64) as usize;
        let ids = usize::try_from(blob / BLOB_CHUNK_BYTES as u64).map_err(|_| wrong())?;
        let expected = ids.checked_mul(ID_BYTES).and_then(|ids| ids.checked_add(rest));
        if expected != Some(body.len()) {
            return Err(wrong());
        }
        let (ids, rest) = body.split_at(ids * ID_BYTES);
        let ids = ids.as_chunks::<ID_BYTES>().0.iter().map(|id| ChunkId::from_bytes(*id));
        Ok(Self { ids: ids.collect(), rest: rest.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shoal_content::PackId;

    use super::*;

    fn key() -> ObjectKey {
        ObjectKey::Pack(PackId::of(b"any key"))
    }

    fn content(length: usize) -> Vec<u8> {
        (0..length).map(|at| ((at / 7) ^ (at >> 11)) as u8).collect()
    }

    #[test]
    fn an_empty_blob_has_a_recipe() {
        let recipe = BlobCutter::new().finish(key());
        assert_eq!((recipe.length(), recipe.chunks().len()), (0, 0));
        assert_eq!(Recipe::decode(&recipe.encode()), Ok(recipe));
    }

    #[test]
    fn chunks_lie_where_they_lie_in_the_blob_and_equal_ones_stand_once() {
        let mut bytes = content(BLOB_CHUNK_BYTES);
        bytes.extend_from_within(..);
        bytes.extend_from_slice(b"tail");
        let mut cutter = BlobCutter::new();
        cutter.update(&bytes);
        let recipe = cutter.finish(key());
        assert_eq!(recipe.extents().len(), 3);
        assert_eq!(recipe.chunks().len(), 2);
        for chunk in recipe.chunks() {
            let at = chunk.at as usize;
            assert!(chunk.id.verifies(&bytes[at..at + chunk.length as usize]));
        }
    }

    #[test]
    fn refuses_a_state_that_it_did_not_write() {
        let mut cutter = BlobCutter::new();
        cutter.update(&content(BLOB_CHUNK_BYTES + 5));
        let mut state = cutter.to_bytes();
        assert_eq!(BlobCutter::from_bytes(&state), Ok(cutter));
        assert_eq!(BlobCutter::from_bytes(b"SHOAL"), Err(BlobStateError::Magic));
        state.pop();
        assert!(matches!(BlobCutter::from_bytes(&state), Err(BlobStateError::Length { .. })));
        state[16] = 0xff;
        assert!(matches!(BlobCutter::from_bytes(&state), Err(BlobStateError::Length { .. })));
        state[8] = 9;
        assert_eq!(BlobCutter::from_bytes(&state), Err(BlobStateError::Version(9)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn splits_and_resumption_change_nothing(
            length in 0..900_000usize,
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..5),
        ) {
            let bytes = content(length);
            let mut whole = BlobCutter::new();
            whole.update(&bytes);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(length + 1)).collect();
            cuts.sort_unstable();
            cuts.push(length);
            let (mut cutter, mut from) = (BlobCutter::new(), 0);
            for cut in cuts {
                cutter = BlobCutter::from_bytes(&cutter.to_bytes()).unwrap();
                cutter.update(&bytes[from..cut]);
                from = cut;
            }
            prop_assert_eq!(cutter.length(), length as u64);
            prop_assert_eq!(cutter.finish(key()), whole.finish(key()));
        }
    }
}
