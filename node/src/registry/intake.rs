//! A blob on its way in: hashed while it streams, stored under its final key.
//!
//! Bytes are gathered into parts and sent on while the next part fills. What a later request needs
//! and storage does not hold yet – the tail shorter than a part, the hashes' midstates – is a
//! [`Checkpoint`] object, so that any node can go on.
//!
//! Crash order: parts, then the checkpoint, then the command that names it. A crash between leaves
//! the session at its last offset; the client sends the rest again.
//!
//! Invariants: a writer holds two parts at most, and all writers of a node together
//! [`INTAKE_BYTES_MAX`]; whoever comes later waits. Nothing is copied at the end.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use sha2::digest::common::hazmat::{SerializableState, SerializedState};
use sha2::{Digest as _, Sha256, Sha512};
use shoal_content::{Algorithm, Digest, ObjectKey, Recipe, UploadId};
use shoal_formats::BlobCutter;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use crate::store::{self, BlobStore, StoreError, StoredPart};

/// Bytes of one part: above S3's minimum, small enough for many at once.
const PART_BYTES: usize = 8 * 1024 * 1024;
/// What all uploads of a node may hold at once.
pub const INTAKE_BYTES_MAX: usize = 160 * 1024 * 1024;
const WRITERS_MAX: usize = INTAKE_BYTES_MAX / (2 * PART_BYTES);
/// S3's own limit.
const PARTS_MAX: usize = 10_000;
const CHECKPOINT_VERSION: u8 = 1;

#[derive(Debug, Error)]
pub enum IntakeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the blob is longer than {PARTS_MAX} parts")]
    TooLong,
    #[error("the checkpoint of the upload cannot be read")]
    Checkpoint,
    #[error("the node is stopping")]
    Stopping,
}

/// The node's budget for uploads.
#[derive(Debug, Clone)]
pub struct Intake {
    writers: Arc<Semaphore>,
}

impl Default for Intake {
    fn default() -> Self {
        Self { writers: Arc::new(Semaphore::new(WRITERS_MAX)) }
    }
}

impl Intake {
    async fn admit(&self) -> Result<OwnedSemaphorePermit, IntakeError> {
        Arc::clone(&self.writers).acquire_owned().await.map_err(|_| IntakeError::Stopping)
    }
}

/// What is kept between two requests.
#[derive(Serialize, Deserialize)]
struct Checkpoint {
    parts: Vec<StoredPart>,
    tail: Vec<u8>,
    sha256: Vec<u8>,
    sha512: Vec<u8>,
    cutter: Vec<u8>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct BlobWriter {
    store: Arc<dyn BlobStore>,
    upload: UploadId,
    multipart: Option<String>,
    parts: Vec<StoredPart>,
    /// Bytes in `parts` and in the one on its way.
    flushed: u64,
    part_numbers: u32,
    on_its_way: Option<JoinHandle<Result<StoredPart, StoreError>>>,
    buffer: BytesMut,
    sha256: Sha256,
    sha512: Sha512,
    cutter: BlobCutter,
    _admission: OwnedSemaphorePermit,
}

/// A blob whose bytes are all in storage under [`BlobWriter::key`].
#[derive(Debug)]
pub struct Written {
    pub sha256: Digest,
    pub sha512: Digest,
    pub size: u64,
    pub recipe: Recipe,
}

impl Written {
    /// Its digest under the algorithm of `wanted`.
    pub fn digest(&self, algorithm: Algorithm) -> &Digest {
        match algorithm {
            Algorithm::Sha256 => &self.sha256,
            Algorithm::Sha512 => &self.sha512,
        }
    }
}

impl BlobWriter {
    /// A new blob; waits for its turn where many are on their way.
    ///
    /// # Errors
    /// Only where the node is stopping.
    pub async fn begin(
        intake: &Intake,
        store: Arc<dyn BlobStore>,
        upload: UploadId,
    ) -> Result<Self, IntakeError> {
        Ok(Self {
            store,
            upload,
            multipart: None,
            parts: Vec::new(),
            flushed: 0,
            part_numbers: 0,
            on_its_way: None,
            buffer: BytesMut::new(),
            sha256: Sha256::new(),
            sha512: Sha512::new(),
            cutter: BlobCutter::new(),
            _admission: intake.admit().await?,
        })
    }

    /// Goes on where a session's last request ended, here or on another node.
    ///
    /// # Errors
    /// Where storage or the checkpoint fails.
    pub async fn resume(
        intake: &Intake,
        store: Arc<dyn BlobStore>,
        upload: UploadId,
        checkpoint: Option<ObjectKey>,
        multipart: Option<String>,
    ) -> Result<Self, IntakeError> {
        let mut writer = Self::begin(intake, store, upload).await?;
        writer.multipart = multipart;
        let Some(key) = checkpoint else { return Ok(writer) };
        let length = writer.store.length(key).await?.ok_or(IntakeError::Checkpoint)?;
        let bytes = store::read(writer.store.as_ref(), key, 0..length).await?;
        writer.restore(&bytes).ok_or(IntakeError::Checkpoint)?;
        Ok(writer)
    }

    fn restore(&mut self, bytes: &[u8]) -> Option<()> {
        let (&version, body) = bytes.split_first()?;
        if version != CHECKPOINT_VERSION {
            return None;
        }
        let checkpoint: Checkpoint = postcard::from_bytes(body).ok()?;
        self.sha256 = restore_hash(&checkpoint.sha256)?;
        self.sha512 = restore_hash(&checkpoint.sha512)?;
        self.cutter = BlobCutter::from_bytes(&checkpoint.cutter).ok()?;
        self.flushed = checkpoint.parts.iter().map(|part| part.length).sum();
        self.part_numbers = u32::try_from(checkpoint.parts.len()).ok()?;
        self.parts = checkpoint.parts;
        self.buffer = BytesMut::from(checkpoint.tail.as_slice());
        Some(())
    }

    pub fn key(&self) -> ObjectKey {
        ObjectKey::Blob(self.upload)
    }

    /// Bytes taken so far.
    pub fn offset(&self) -> u64 {
        self.cutter.length()
    }

    /// Takes the next bytes; waits while storage is slower than the client.
    ///
    /// # Errors
    /// See [`IntakeError`].
    pub async fn write(&mut self, bytes: &Bytes) -> Result<(), IntakeError> {
        self.sha256.update(bytes);
        self.sha512.update(bytes);
        self.cutter.update(bytes);
        self.buffer.extend_from_slice(bytes);
        while self.buffer.len() >= PART_BYTES {
            let part = self.buffer.split_to(PART_BYTES).freeze();
            self.send(part).await?;
        }
        Ok(())
    }

    /// Sends a part on its way, after the one before it has arrived.
    async fn send(&mut self, part: Bytes) -> Result<(), IntakeError> {
        self.settle().await?;
        if self.parts.len() >= PARTS_MAX {
            return Err(IntakeError::TooLong);
        }
        let multipart = match &self.multipart {
            Some(multipart) => multipart.clone(),
            None => self.multipart.insert(self.store.begin(self.key()).await?).clone(),
        };
        self.part_numbers += 1;
        let (store, key) = (Arc::clone(&self.store), self.key());
        let (number, offset) = (self.part_numbers, self.flushed);
        self.flushed += part.len() as u64;
        self.on_its_way = Some(tokio::spawn(async move {
            store.put_part(key, &multipart, number, offset, part).await
        }));
        Ok(())
    }

    async fn settle(&mut self) -> Result<(), IntakeError> {
        if let Some(part) = self.on_its_way.take() {
            self.parts.push(part.await.map_err(|_| IntakeError::Stopping)??);
        }
        Ok(())
    }

    /// Makes what was taken so far safe, for another request to go on; gives the checkpoint's key.
    ///
    /// # Errors
    /// See [`IntakeError`].
    pub async fn checkpoint(mut self) -> Result<(ObjectKey, Option<String>), IntakeError> {
        self.settle().await?;
        let key = ObjectKey::UploadCheckpoint { upload: self.upload, offset: self.offset() };
        let checkpoint = Checkpoint {
            parts: std::mem::take(&mut self.parts),
            tail: self.buffer.to_vec(),
            sha256: self.sha256.serialize().to_vec(),
            sha512: self.sha512.serialize().to_vec(),
            cutter: self.cutter.to_bytes(),
        };
        let mut bytes = vec![CHECKPOINT_VERSION];
        bytes.extend(postcard::to_allocvec(&checkpoint).map_err(|_| IntakeError::Checkpoint)?);
        self.store.put(key, bytes.into()).await?;
        Ok((key, self.multipart))
    }

    /// Publishes the object, unless `accept` does not like what it has become.
    ///
    /// # Errors
    /// See [`IntakeError`]; `Ok(Err(_))` gives back the hashes of what was not accepted, with
    /// nothing published.
    pub async fn finish(
        mut self,
        accept: impl FnOnce(&Written) -> bool,
    ) -> Result<Result<Written, Written>, IntakeError> {
        self.settle().await?;
        let key = self.key();
        let size = self.offset();
        let written = Written {
            sha256: Digest::sha256(self.sha256.clone().finalize().into()),
            sha512: Digest::sha512(self.sha512.clone().finalize().into()),
            size,
            recipe: std::mem::take(&mut self.cutter).finish(key),
        };
        if !accept(&written) {
            return Ok(Err(written));
        }
        let tail = std::mem::take(&mut self.buffer).freeze();
        match self.multipart.take() {
            None => self.store.put(key, tail).await?,
            Some(multipart) => {
                if !tail.is_empty() {
                    self.multipart = Some(multipart.clone());
                    self.send(tail).await?;
                    self.settle().await?;
                }
                self.store.complete(key, &multipart, &self.parts).await?;
            }
        }
        Ok(Ok(written))
    }
}

fn restore_hash<H: SerializableState>(bytes: &[u8]) -> Option<H> {
    let state = SerializedState::<H>::try_from(bytes).ok()?;
    H::deserialize(&state).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::FolderStore;

    fn content(length: usize) -> Bytes {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(b"blob").finalize_xof().fill(&mut bytes);
        bytes.into()
    }

    fn upload() -> UploadId {
        UploadId::from_uuid(uuid::Uuid::new_v4())
    }

    #[tokio::test]
    async fn a_blob_may_come_in_requests_of_any_size() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn BlobStore> = Arc::new(FolderStore::open(folder.path(), 0).unwrap());
        let bytes = content(3 * PART_BYTES + 4321);
        let (intake, upload) = (Intake::default(), upload());
        let (mut checkpoint, mut multipart) = (None, None);
        for piece in [0..10, 10..10, 10..PART_BYTES + 7, PART_BYTES + 7..bytes.len()] {
            let store = Arc::clone(&store);
            let mut writer =
                BlobWriter::resume(&intake, store, upload, checkpoint, multipart).await.unwrap();
            assert_eq!(writer.offset(), piece.start as u64);
            writer.write(&bytes.slice(piece)).await.unwrap();
            let (key, id) = writer.checkpoint().await.unwrap();
            (checkpoint, multipart) = (Some(key), id);
        }
        let writer = BlobWriter::resume(&intake, Arc::clone(&store), upload, checkpoint, multipart);
        let written = writer.await.unwrap().finish(|_| true).await.unwrap().unwrap();
        assert_eq!(written.size, bytes.len() as u64);
        assert_eq!(written.sha256, Digest::sha256(Sha256::digest(&bytes).into()));
        assert_eq!(written.sha512, Digest::sha512(Sha512::digest(&bytes).into()));
        let stored = store::read(store.as_ref(), ObjectKey::Blob(upload), 0..written.size);
        assert!(stored.await.unwrap() == bytes);
        assert_eq!(written.recipe.length(), written.size);
    }

    #[tokio::test]
    async fn what_is_not_accepted_is_not_published() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn BlobStore> = Arc::new(FolderStore::open(folder.path(), 0).unwrap());
        let (intake, upload) = (Intake::default(), upload());
        let mut writer = BlobWriter::begin(&intake, Arc::clone(&store), upload).await.unwrap();
        writer.write(&content(100)).await.unwrap();
        assert!(writer.finish(|_| false).await.unwrap().is_err());
        assert_eq!(store.length(ObjectKey::Blob(upload)).await.unwrap(), None);
    }
}
