//! Central storage: immutable objects under the keys of `shoal-content`.
//!
//! Two real implementations, a folder and S3, pass one conformance suite (`conformance`), and so
//! do the cache that stands before S3 and the one that seals what either gets.
//! Invariants: an object is visible under its key only whole and durable; what was written is what
//! is read; nothing is ever changed in place.
//! Non-goals: references and their counts (the metadata's).

mod bucket_usage;
mod cached;
mod conformance;
mod direct;
#[cfg(test)]
pub mod disturbed;
mod error;
mod folder;
mod s3;
pub mod sealed;

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use shoal_content::{ObjectKey, Timestamp};
use shoal_metadata::KeyOwner;
use tracing::warn;

pub use cached::CachedStore;
pub use conformance::{check_conformance, check_owner};
pub use error::StoreError;
pub use folder::{FolderStore, RESERVE_BYTES_DEFAULT};
pub use s3::{S3Settings, S3Store};
pub use sealed::SealedStore;

/// S3 refuses a shorter part, unless it is the last; so every implementation may.
pub const PART_BYTES_MIN: u64 = 5 * 1024 * 1024;
/// The object or file that says whose storage it is: the key of no object.
const OWNER_NAME: &str = "shoal-owner.json";
/// What is longer says nothing of that.
const OWNER_BYTES_MAX: u64 = 4096;
/// The most bytes [`BlobStore::read`] gives at once.
pub const READ_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// One stored part of a multipart upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredPart {
    /// From 1, without a gap.
    pub number: u32,
    /// What storage answered for it.
    pub tag: String,
    /// In bytes.
    pub length: u64,
}

/// An object as a listing shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredObject {
    pub key: ObjectKey,
    /// In bytes, as it lies there: what is sealed is longer than its content, for which ask
    /// [`BlobStore::length`].
    pub length: u64,
    /// When storage got it, by storage's clock.
    pub stored_at: Timestamp,
}

/// How full storage is, as far as it says so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// What cannot be written any more, whoever wrote it.
    pub used_bytes: Option<u64>,
    pub total_bytes: Option<u64>,
}

pub type ByteStream = BoxStream<'static, Result<Bytes, StoreError>>;

/// How a multipart upload came to be an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// Of the parts that were named, by this call.
    Now,
    /// It was one already: by an earlier try whose answer was lost, or by somebody else, of other
    /// parts perhaps. Only its bytes tell.
    Before,
}

/// The specification of a store:
///
/// - What `put` or `complete` has acknowledged survives a crash, and every node that shares the
///   storage reads it at once.
/// - Putting a key again replaces the object whole; readers see the old bytes or the new ones.
/// - A multipart upload is invisible until `complete`; its parts may come in parallel, in any
///   order, and again; `begin`, `put_part` and `complete` may be called on different nodes.
/// - `delete` of what is not there succeeds.
/// - A full disk is [`StoreError::Full`], changes nothing, and passes when there is space again.
#[async_trait]
pub trait BlobStore: Send + Sync + std::fmt::Debug {
    /// Stores a whole object. Where objects are sealed, it is by a key of `under`.
    async fn put(&self, key: ObjectKey, under: &KeyOwner, bytes: Bytes) -> Result<(), StoreError>;

    /// Begins a multipart upload to `key`; the answer names it from now on, and says by which key
    /// it is sealed.
    async fn begin(&self, key: ObjectKey, under: &KeyOwner) -> Result<String, StoreError>;

    /// Stores a part that starts `offset` bytes into the object. All but the last are at least
    /// [`PART_BYTES_MIN`] long.
    async fn put_part(
        &self,
        key: ObjectKey,
        multipart: &str,
        number: u32,
        offset: u64,
        bytes: Bytes,
    ) -> Result<StoredPart, StoreError>;

    /// Publishes the object, made of `parts` in order of their numbers.
    ///
    /// # Errors
    /// [`StoreError::Multipart`] where the upload is unknown, and no object is there either.
    async fn complete(
        &self,
        key: ObjectKey,
        multipart: &str,
        parts: &[StoredPart],
    ) -> Result<Completion, StoreError>;

    /// Drops multipart uploads that began before `begun_before` and that `named` does not have;
    /// gives their number.
    async fn abort_stale(
        &self,
        begun_before: Timestamp,
        named: &BTreeSet<String>,
    ) -> Result<u64, StoreError>;

    /// Drops a multipart upload and its parts.
    async fn abort(&self, key: ObjectKey, multipart: &str) -> Result<(), StoreError>;

    /// The bytes of `range`, in pieces.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; a range beyond the object's end is [`StoreError::Range`], in the
    /// answer or in the stream.
    async fn get(&self, key: ObjectKey, range: Range<u64>) -> Result<ByteStream, StoreError>;

    /// Where a client without credentials may read the object itself for `ttl`; `None` where
    /// storage has no such address.
    async fn presigned(
        &self,
        _key: ObjectKey,
        _ttl: Duration,
    ) -> Result<Option<String>, StoreError> {
        Ok(None)
    }

    /// An object's length in bytes, if it is there.
    async fn length(&self, key: ObjectKey) -> Result<Option<u64>, StoreError>;

    /// Whether the object is there, and stays readable: nothing that it takes to read it is about
    /// to be destroyed. To be asked before a row begins to name what was there already.
    async fn lasts(&self, key: ObjectKey) -> Result<bool, StoreError>;

    /// Drops what is remembered of the object's bytes, since storage turned out to have others.
    async fn forget(&self, key: ObjectKey);

    async fn delete(&self, keys: &[ObjectKey]) -> Result<(), StoreError>;

    /// Objects whose key text starts with `prefix` and comes after `after`, in byte order, at most
    /// `limit`.
    async fn list(
        &self,
        prefix: &str,
        after: Option<ObjectKey>,
        limit: usize,
    ) -> Result<Vec<StoredObject>, StoreError>;

    /// What [`Self::set_owner`] wrote last: whose storage it is. Never from a cache, nor sealed.
    async fn owner(&self) -> Result<Option<Bytes>, StoreError>;

    /// Writes down whose storage it is, where `over` is what is written there so far; gives whether
    /// it did. Some services do not compare, and an answer may be lost: only [`Self::owner`] tells
    /// what came of it.
    async fn set_owner(&self, over: Option<&Bytes>, owner: Bytes) -> Result<bool, StoreError>;

    /// How full it is; cheap, whatever it holds.
    async fn usage(&self) -> Result<Usage, StoreError>;

    /// Whether storage answers; for readiness.
    async fn probe(&self) -> Result<(), StoreError>;
}

/// Stores an object that is named by its content, where it is not there, is damaged or does not
/// last. One that is there stays as it is: sealed anew it would have other bytes, which readers have
/// in part. It is read for that: whoever stores it again may do so because it could not be used.
///
/// # Errors
/// As [`BlobStore::put`], [`BlobStore::get`] and [`BlobStore::lasts`].
pub async fn put_once(
    store: &dyn BlobStore,
    key: ObjectKey,
    under: &KeyOwner,
    bytes: Bytes,
) -> Result<(), StoreError> {
    let length = bytes.len() as u64;
    if store.length(key).await? == Some(length)
        && store.lasts(key).await?
        && holds(store, key, &bytes).await?
    {
        return Ok(());
    }
    store.put(key, under, bytes).await
}

/// As [`put_once`], and sees that storage gives back what it got.
///
/// # Errors
/// As [`put_once`], and [`StoreError::Unavailable`] where it gives something else.
pub async fn put_and_see(
    store: &dyn BlobStore,
    key: ObjectKey,
    under: &KeyOwner,
    bytes: Bytes,
) -> Result<(), StoreError> {
    put_once(store, key, under, bytes.clone()).await?;
    if holds(store, key, &bytes).await? {
        return Ok(());
    }
    let cause = format!("{key} is not what was stored");
    Err(StoreError::Unavailable { doing: "reading back an object", cause })
}

/// Whether storage has just these bytes under the key, whatever a cache has.
async fn holds(store: &dyn BlobStore, key: ObjectKey, bytes: &[u8]) -> Result<bool, StoreError> {
    store.forget(key).await;
    let holds = match begins_with(store, key, bytes).await {
        // It is not what its length and its beginning promised, or has gone since.
        Err(
            StoreError::NotFound(_)
            | StoreError::Range { .. }
            | StoreError::Sealed(_)
            | StoreError::Shredded(_),
        ) => false,
        compared => compared?,
    };
    if !holds {
        warn!(%key, "what storage has of an object is not its content, and is stored anew");
    }
    Ok(holds)
}

async fn begins_with(
    store: &dyn BlobStore,
    key: ObjectKey,
    bytes: &[u8],
) -> Result<bool, StoreError> {
    let mut pieces = store.get(key, 0..bytes.len() as u64).await?;
    let mut rest = bytes;
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        match rest.strip_prefix(&piece[..]) {
            Some(behind) => rest = behind,
            None => return Ok(false),
        }
    }
    Ok(rest.is_empty())
}

/// Reads a range of at most [`READ_BYTES_MAX`] into memory.
///
/// # Errors
/// As [`BlobStore::get`], and [`StoreError::Range`] for a range that is too long or was cut short.
pub async fn read(
    store: &dyn BlobStore,
    key: ObjectKey,
    range: Range<u64>,
) -> Result<Bytes, StoreError> {
    let length = range.end.saturating_sub(range.start);
    if length > READ_BYTES_MAX {
        return Err(StoreError::Range { key, start: range.start, end: range.end });
    }
    let mut pieces = store.get(key, range.clone()).await?;
    let mut all = BytesMut::with_capacity(length as usize);
    while let Some(piece) = pieces.next().await {
        all.extend_from_slice(&piece?);
    }
    if all.len() as u64 != length {
        return Err(StoreError::Range { key, start: range.start, end: range.end });
    }
    Ok(all.freeze())
}

#[cfg(test)]
mod tests {

    use prometheus_client::registry::Registry;
    use shoal_content::PackId;

    use super::disturbed::DisturbedStore;
    use super::*;
    use crate::metrics::CacheReads;

    const UNDER: KeyOwner = KeyOwner::Cluster;

    #[tokio::test]
    async fn what_is_stored_again_heals_what_is_damaged_and_leaves_what_is_sound() {
        let folder = tempfile::tempdir().unwrap();
        let storage = DisturbedStore::open(folder.path());
        let (cache, behind) = (folder.path().join("cache"), storage.clone());
        let (reads, mut registry) = (CacheReads::default(), Registry::default());
        let cached = CachedStore::open(behind, &cache, 1 << 20, reads, &mut registry).unwrap();
        let pack: Bytes = (0..700_000).map(|at| (at / 3) as u8).collect::<Vec<_>>().into();
        let (key, length) = (ObjectKey::Pack(PackId::of(&pack)), pack.len() as u64);
        put_once(&cached, key, &UNDER, pack.clone()).await.unwrap();
        assert_eq!(storage.reads(), 0, "what is not there is read");
        // The cache has it as it was.
        read(&cached, key, 0..length).await.unwrap();
        let stored_at = async || storage.list("", None, 2).await.unwrap()[0].stored_at;
        let mut flipped = pack.to_vec();
        flipped[600_000] ^= 1;
        for damaged in [Bytes::from(flipped), pack.slice(1..), Bytes::new()] {
            storage.put(key, &UNDER, damaged).await.unwrap();
            put_once(&cached, key, &UNDER, pack.clone()).await.unwrap();
            assert!(read(&*storage, key, 0..length).await.unwrap() == pack, "it is not healed");
        }
        let before = stored_at().await;
        put_once(&cached, key, &UNDER, pack.clone()).await.unwrap();
        assert_eq!(stored_at().await, before, "it was stored again");
        storage.delete(&[key]).await.unwrap();
        put_once(&cached, key, &UNDER, pack.clone()).await.unwrap();
        assert!(read(&*storage, key, 0..length).await.unwrap() == pack);
    }
}
