//! Storage whose objects are sealed: what lies in the bucket, and in a node's cache before it, is
//! readable with a data key only.
//!
//! Invariants: an object says itself by which data key it was sealed (see `format`), so what was
//! stored before, or while nothing is sealed, is read as it is; what looks like a sealed object and
//! names a data key that the cluster knows is never given as it is stored. A part is sealed with
//! the key that its upload began with, at whichever node. A reader holds a segment and what storage
//! gives at once.
//!
//! An object that is stored again with other bytes – the same pack, by another project – may be in
//! a cache in part. What does not open is therefore read once more, past what is remembered, before
//! it is called damaged.
//! Non-goals: where keys come from ([`KeySource`]), and their end.

mod format;
mod reading;

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use moka::future::Cache;
use shoal_content::{DataKeyId, ObjectKey, Timestamp};
use shoal_metadata::{HandedKey, KeyOwner};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::warn;
use uuid::Uuid;

use super::{BlobStore, ByteStream, Completion, StoreError, StoredObject, StoredPart, Usage, read};
use format::{HEADER_BYTES, Header, SEGMENT_BYTES, content_bytes, sealed_bytes};
use reading::Reading;

pub use format::{KEY_BYTES, KeyBytes, ObjectSecret, unwrap, wrap};

/// Before the id of a multipart upload that is sealed, and between the data key's and its own.
const SEALED_MULTIPART: &str = "sealed.";
const HEADS_MAX: u64 = 100_000;
/// Until the beginning of an object that may be stored again is looked at again.
const HEAD_TTL: Duration = Duration::from_secs(600);
/// What is longer is sealed aside, so that it holds nobody up, by at most so many at once: while
/// that lasts, it is in memory twice.
const LONG_BYTES: usize = 256 * 1024;
const SEALED_AT_ONCE_MAX: usize = 2;

/// A data key as a source gives it.
#[derive(Debug, Clone)]
pub enum FoundKey {
    Kept(Arc<DataKey>),
    /// It opens what it sealed, until it is destroyed.
    Retired(Arc<DataKey>),
    Destroyed,
    /// The cluster never had it.
    Unknown,
}

pub struct DataKey {
    pub id: DataKeyId,
    pub bytes: KeyBytes,
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataKey({})", self.id)
    }
}

/// Where a sealed store has its keys from: the metadata, or what a test has.
#[async_trait]
pub trait KeySource: Send + Sync + fmt::Debug {
    /// What is stored for `owner` from now on is sealed with this; `None` is not at all.
    async fn current(&self, owner: &KeyOwner) -> Result<Option<Arc<DataKey>>, StoreError>;

    /// Waits until the two below know what was decided anywhere before this was called.
    async fn catch_up(&self) -> Result<(), StoreError>;

    async fn find(&self, id: DataKeyId) -> Result<FoundKey, StoreError>;

    /// An object's own key, where it was handed over.
    async fn handed(&self, object: ObjectKey) -> Result<Option<HandedKey>, StoreError>;
}

/// For what an object's own key is sealed with a data key.
pub fn handed_purpose(object: ObjectKey) -> Vec<u8> {
    format!("handed over: {object}").into_bytes()
}

/// See the module's documentation. Clones are the same one.
#[derive(Debug, Clone)]
pub struct SealedStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    front: Arc<dyn BlobStore>,
    /// Without a cache before it; beginnings are read there.
    behind: Arc<dyn BlobStore>,
    keys: Arc<dyn KeySource>,
    heads: Cache<ObjectKey, Head>,
    head_ttl: Duration,
    sealing: Semaphore,
}

/// What an object begins with, and how long it is in storage.
#[derive(Debug, Clone, Copy)]
struct Head {
    header: Option<Header>,
    stored_bytes: u64,
    read_at: Instant,
}

/// How an object can be read.
#[derive(Debug)]
enum Access {
    AsItIs,
    By {
        secret: ObjectSecret,
        /// Whether no key that it takes is about to be destroyed.
        lasts: bool,
    },
    Shredded,
}

/// An object as the one who hands it over to another key sees it.
#[derive(Debug)]
pub struct Held {
    /// The data key that it was sealed with.
    pub from: DataKeyId,
    pub secret: ObjectSecret,
}

/// What is looked at of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// What it began with a while ago.
    Remembered,
    /// What it begins with in storage: it may have been stored again.
    Anew,
}

impl SealedStore {
    /// `behind` is the storage that `front` is a cache of, or the same.
    pub fn new(
        front: Arc<dyn BlobStore>,
        behind: Arc<dyn BlobStore>,
        keys: Arc<dyn KeySource>,
    ) -> Self {
        Self::remembering(HEAD_TTL, front, behind, keys)
    }

    fn remembering(
        head_ttl: Duration,
        front: Arc<dyn BlobStore>,
        behind: Arc<dyn BlobStore>,
        keys: Arc<dyn KeySource>,
    ) -> Self {
        let heads = Cache::new(HEADS_MAX);
        let sealing = Semaphore::new(SEALED_AT_ONCE_MAX);
        Self { inner: Arc::new(Inner { front, behind, keys, heads, head_ttl, sealing }) }
    }

    /// An object that goes with a data key which is about to be destroyed; `None` where it stays as
    /// it is, or is gone, or is so damaged that it does not open with that key either.
    ///
    /// # Errors
    /// Where storage or the keys do not answer.
    pub async fn going(&self, object: ObjectKey, look: Look) -> Result<Option<Held>, StoreError> {
        let head = match look {
            Look::Remembered => self.inner.head(object).await,
            Look::Anew => self.inner.read_head(object).await,
        };
        let head = match head {
            Err(StoreError::NotFound(_)) => return Ok(None),
            head => head?,
        };
        let Some(header) = head.header else { return Ok(None) };
        Ok(match self.inner.access(object, head).await {
            Ok(Access::By { secret, lasts: false }) => Some(Held { from: header.key, secret }),
            Ok(Access::AsItIs | Access::By { .. } | Access::Shredded) => None,
            Err(error @ StoreError::Sealed(_)) => {
                warn!(%object, %error, "an object cannot be handed over");
                None
            }
            Err(error) => return Err(error),
        })
    }
}

/// Whether it may be remembered what an object begins with. What lies there as it is may be stored
/// again and be sealed then: whoever goes by what it was gives ciphertext as its content.
fn is_remembered(key: ObjectKey, head: Head) -> bool {
    match key {
        // Each has a name of its own, and is stored once.
        ObjectKey::Blob(_) => true,
        ObjectKey::Pack(_) | ObjectKey::Recipe(_) => head.header.is_some(),
        ObjectKey::UploadPart { .. } | ObjectKey::UploadCheckpoint { .. } => false,
    }
}

fn broken(key: ObjectKey) -> StoreError {
    StoreError::Sealed(key)
}

impl Inner {
    async fn head(&self, key: ObjectKey) -> Result<Head, StoreError> {
        let remembered = self.heads.get(&key).await;
        let is_fresh = |head: &Head| {
            matches!(key, ObjectKey::Blob(_)) || head.read_at.elapsed() < self.head_ttl
        };
        if let Some(head) = remembered.filter(is_fresh) {
            return Ok(head);
        }
        match (self.read_head(key).await, remembered) {
            // A cache may have the object. Should it be another one by now, it does not open.
            (Err(StoreError::Unavailable { .. }), Some(head)) => Ok(head),
            (read, _) => read,
        }
    }

    async fn read_head(&self, key: ObjectKey) -> Result<Head, StoreError> {
        let stored = self.behind.length(key).await?.ok_or(StoreError::NotFound(key))?;
        self.read_head_of(key, stored).await
    }

    async fn read_head_of(&self, key: ObjectKey, stored_bytes: u64) -> Result<Head, StoreError> {
        let read_at = Instant::now();
        let header = match stored_bytes >= HEADER_BYTES {
            true => Header::parse(&read(&*self.behind, key, 0..HEADER_BYTES).await?),
            false => None,
        };
        let head = Head { header, stored_bytes, read_at };
        match is_remembered(key, head) {
            true => self.heads.insert(key, head).await,
            false => self.heads.invalidate(&key).await,
        }
        Ok(head)
    }

    /// Drops what is remembered here and in a cache.
    async fn forget(&self, key: ObjectKey) {
        self.heads.invalidate(&key).await;
        self.front.forget(key).await;
    }

    async fn access(&self, key: ObjectKey, head: Head) -> Result<Access, StoreError> {
        let Some(header) = head.header else { return Ok(Access::AsItIs) };
        let access = match self.keys.find(header.key).await? {
            // Something that was stored as it is, and begins so by chance or on purpose.
            FoundKey::Unknown => return Ok(Access::AsItIs),
            FoundKey::Kept(data) => {
                Access::By { secret: ObjectSecret::derive(&data.bytes, key), lasts: true }
            }
            FoundKey::Retired(data) => {
                let lasts = match self.handed(key, header.key).await? {
                    Some((_, lasts)) => lasts,
                    None => false,
                };
                Access::By { secret: ObjectSecret::derive(&data.bytes, key), lasts }
            }
            FoundKey::Destroyed => match self.handed(key, header.key).await? {
                Some((secret, lasts)) => Access::By { secret, lasts },
                None => Access::Shredded,
            },
        };
        match &access {
            Access::By { secret, .. } if !secret.made(&header) => Err(broken(key)),
            _ => Ok(access),
        }
    }

    /// What the object was handed over as, and whether that lasts.
    async fn handed(
        &self,
        key: ObjectKey,
        from: DataKeyId,
    ) -> Result<Option<(ObjectSecret, bool)>, StoreError> {
        let handed = self.keys.handed(key).await?;
        let Some(handed) = handed.filter(|handed| handed.from == from) else { return Ok(None) };
        let (data, lasts) = match self.keys.find(handed.to).await? {
            FoundKey::Kept(data) => (data, true),
            FoundKey::Retired(data) => (data, false),
            FoundKey::Destroyed | FoundKey::Unknown => return Ok(None),
        };
        let secret = unwrap(&data.bytes, &handed_purpose(key), &handed.sealed.0);
        let secret = secret.and_then(|secret| <[u8; KEY_BYTES]>::try_from(&secret[..]).ok());
        let secret = secret.ok_or_else(|| broken(key))?;
        Ok(Some((ObjectSecret::from_bytes(secret.into()), lasts)))
    }

    async fn seal(
        &self,
        object: ObjectKey,
        data: Arc<DataKey>,
        offset: u64,
        content: Bytes,
    ) -> Result<Bytes, StoreError> {
        let long = content.len() > LONG_BYTES;
        let work = move || {
            Bytes::from(ObjectSecret::derive(&data.bytes, object).seal(data.id, offset, &content))
        };
        if !long {
            return Ok(work());
        }
        let stopping = |_| StoreError::Unavailable {
            doing: "sealing an object",
            cause: "the node is stopping".to_owned(),
        };
        let _turn = self.sealing.acquire().await.map_err(|error| stopping(error.to_string()))?;
        tokio::task::spawn_blocking(work).await.map_err(|error| stopping(error.to_string()))
    }
}

/// The data key that a multipart upload began with, and what storage calls it.
fn multipart_key(multipart: &str) -> (Option<DataKeyId>, &str) {
    let sealed = multipart.strip_prefix(SEALED_MULTIPART).and_then(|rest| rest.split_once('.'));
    match sealed.and_then(|(key, own)| Some((Uuid::try_parse(key).ok()?, own))) {
        Some((key, own)) => (Some(DataKeyId::from_uuid(key)), own),
        None => (None, multipart),
    }
}

#[async_trait]
impl BlobStore for SealedStore {
    async fn put(&self, key: ObjectKey, under: &KeyOwner, bytes: Bytes) -> Result<(), StoreError> {
        let inner = &self.inner;
        let stored = match inner.keys.current(under).await? {
            None => bytes,
            Some(data) => inner.seal(key, data, 0, bytes).await?,
        };
        let outcome = inner.front.put(key, under, stored).await;
        inner.heads.invalidate(&key).await;
        outcome
    }

    async fn begin(&self, key: ObjectKey, under: &KeyOwner) -> Result<String, StoreError> {
        let data = self.inner.keys.current(under).await?;
        let own = self.inner.front.begin(key, under).await?;
        Ok(match data {
            None => own,
            Some(data) => format!("{SEALED_MULTIPART}{}.{own}", data.id.as_uuid().simple()),
        })
    }

    async fn put_part(
        &self,
        key: ObjectKey,
        multipart: &str,
        number: u32,
        offset: u64,
        bytes: Bytes,
    ) -> Result<StoredPart, StoreError> {
        let inner = &self.inner;
        let (Some(id), own) = multipart_key(multipart) else {
            return inner.front.put_part(key, multipart, number, offset, bytes).await;
        };
        let data = match inner.keys.find(id).await? {
            FoundKey::Kept(data) | FoundKey::Retired(data) => data,
            FoundKey::Destroyed => return Err(StoreError::Shredded(key)),
            FoundKey::Unknown => return Err(StoreError::Multipart),
        };
        if !offset.is_multiple_of(SEGMENT_BYTES) {
            let cause = format!("a part starts at {offset}, inside a segment");
            return Err(StoreError::Refused { doing: "sealing a part", cause });
        }
        let length = bytes.len() as u64;
        let sealed = inner.seal(key, data, offset, bytes).await?;
        let place = if offset == 0 { 0 } else { HEADER_BYTES + sealed_bytes(offset) };
        let part = inner.front.put_part(key, own, number, place, sealed).await?;
        Ok(StoredPart { length, ..part })
    }

    async fn complete(
        &self,
        key: ObjectKey,
        multipart: &str,
        parts: &[StoredPart],
    ) -> Result<Completion, StoreError> {
        let inner = &self.inner;
        let (Some(_), own) = multipart_key(multipart) else {
            return inner.front.complete(key, multipart, parts).await;
        };
        let (mut stored, mut offset) = (Vec::with_capacity(parts.len()), 0_u64);
        for part in parts {
            if !offset.is_multiple_of(SEGMENT_BYTES) {
                return Err(StoreError::Multipart);
            }
            let header = if offset == 0 { HEADER_BYTES } else { 0 };
            let length = header + sealed_bytes(part.length);
            stored.push(StoredPart { length, ..part.clone() });
            offset += part.length;
        }
        let outcome = inner.front.complete(key, own, &stored).await;
        inner.heads.invalidate(&key).await;
        outcome
    }

    async fn abort_stale(
        &self,
        begun_before: Timestamp,
        named: &BTreeSet<String>,
    ) -> Result<u64, StoreError> {
        let named = named.iter().map(|id| multipart_key(id).1.to_owned()).collect();
        self.inner.front.abort_stale(begun_before, &named).await
    }

    async fn abort(&self, key: ObjectKey, multipart: &str) -> Result<(), StoreError> {
        self.inner.front.abort(key, multipart_key(multipart).1).await
    }

    async fn get(&self, key: ObjectKey, range: Range<u64>) -> Result<ByteStream, StoreError> {
        let remembered = self.inner.heads.contains_key(&key);
        let opened = Reading::open(Arc::clone(&self.inner), key, range.clone(), false).await;
        match opened {
            // A cache remembers lengths for itself.
            Err(error)
                if matches!(error, StoreError::Range { .. })
                    || (remembered && reading::may_be_stale(&error)) =>
            {
                self.inner.forget(key).await;
                Reading::open(Arc::clone(&self.inner), key, range, true).await
            }
            opened => opened,
        }
    }

    /// `None` for what is sealed: whoever reads there has no key.
    async fn presigned(&self, key: ObjectKey, ttl: Duration) -> Result<Option<String>, StoreError> {
        let head = match self.inner.head(key).await {
            Err(StoreError::NotFound(_)) => return Ok(None),
            head => head?,
        };
        match self.inner.access(key, head).await? {
            Access::AsItIs => self.inner.front.presigned(key, ttl).await,
            Access::By { .. } | Access::Shredded => Ok(None),
        }
    }

    /// Of what was shredded, too: it is there.
    async fn length(&self, key: ObjectKey) -> Result<Option<u64>, StoreError> {
        let inner = &self.inner;
        let Some(stored) = inner.behind.length(key).await? else { return Ok(None) };
        let head = match inner.heads.get(&key).await {
            Some(head) if head.stored_bytes == stored => head,
            _ => inner.read_head_of(key, stored).await?,
        };
        let Some(header) = head.header else { return Ok(Some(stored)) };
        match inner.keys.find(header.key).await? {
            FoundKey::Unknown => Ok(Some(stored)),
            _ => Ok(Some(content_bytes(stored))),
        }
    }

    async fn lasts(&self, key: ObjectKey) -> Result<bool, StoreError> {
        let inner = &self.inner;
        let head = match inner.read_head(key).await {
            Err(StoreError::NotFound(_)) => return Ok(false),
            head => head?,
        };
        if head.header.is_some() {
            inner.keys.catch_up().await?;
        }
        match inner.access(key, head).await {
            Ok(Access::AsItIs) => Ok(true),
            Ok(Access::By { lasts, .. }) => Ok(lasts),
            // Whoever has its content stores it again.
            Ok(Access::Shredded) | Err(StoreError::Sealed(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn forget(&self, key: ObjectKey) {
        self.inner.forget(key).await;
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<(), StoreError> {
        let outcome = self.inner.front.delete(keys).await;
        for key in keys {
            self.inner.heads.invalidate(key).await;
        }
        outcome
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<ObjectKey>,
        limit: usize,
    ) -> Result<Vec<StoredObject>, StoreError> {
        self.inner.front.list(prefix, after, limit).await
    }

    async fn owner(&self) -> Result<Option<Bytes>, StoreError> {
        self.inner.behind.owner().await
    }

    async fn set_owner(&self, over: Option<&Bytes>, owner: Bytes) -> Result<bool, StoreError> {
        self.inner.behind.set_owner(over, owner).await
    }

    async fn usage(&self) -> Result<Usage, StoreError> {
        self.inner.front.usage().await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.inner.front.probe().await
    }
}

#[cfg(test)]
mod tests;
