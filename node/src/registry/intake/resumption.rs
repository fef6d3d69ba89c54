//! From one request of a session to the next, at any node.
//!
//! A checkpoint holds what its request brought, and names the earlier ones that have the rest of the
//! tail (see `pieces`). That is read when its part is full, or the blob whole: so a request costs
//! storage its own bytes, less than a chunk before them, and the blob's list of chunks, however long the
//! tail is; and each byte is written once more, in its part.
//!
//! Crash order: parts, then the checkpoint, then the command that names it, then what it supersedes is
//! deleted. What is left by a crash between goes with the session, or with the scrub.
//!
//! Invariants: each checkpoint has a key that nobody else ever writes to, so that of two nodes that
//! go on from one point the later one spoils none of the other's tail; nothing is deleted that the
//! session's row leads to.

use std::sync::Arc;

use bytes::BytesMut;
use futures::{StreamExt, TryStreamExt, stream};
use shoal_content::{Algorithm, ObjectKey, UploadId};
use shoal_formats::BLOB_CHUNK_BYTES;
use shoal_metadata::{KeyOwner, Multipart};

use super::{BlobWriter, Intake, IntakeError, SMALL_BYTES, Turn};
use crate::registry::checkpoint::{self, Restored};
use crate::registry::pieces::{self, Pieced};
use crate::store::{self, BlobStore};

/// Pieces that are asked for at once; one after another is read.
const GATHERED_AT_ONCE: usize = 4;

/// How a checkpoint is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// With all of the tail, for nodes that know nothing else.
    Whole,
    Pieces,
}

/// Where a session's last request ended.
#[derive(Debug)]
pub struct Resumed {
    pub checkpoint: ObjectKey,
    pub multipart: Option<Multipart>,
    /// Bytes of the blob that were taken.
    pub offset: u64,
}

/// What a row is to name.
#[derive(Debug)]
pub struct Saved {
    pub checkpoint: ObjectKey,
    pub multipart: Option<Multipart>,
    /// What is to be deleted once it does.
    pub superseded: Vec<ObjectKey>,
}

impl BlobWriter {
    /// Goes on where a session's last request ended, here or on another node.
    ///
    /// # Errors
    /// Where storage or the checkpoint fails.
    pub async fn resume(
        intake: &Intake,
        store: Arc<dyn BlobStore>,
        under: KeyOwner,
        turn: Turn,
        at: Resumed,
    ) -> Result<Self, IntakeError> {
        let Resumed { checkpoint: key, multipart, offset } = at;
        let mut writer = Self::begin(intake, store, under, turn, Algorithm::Sha256);
        writer.multipart = multipart;
        writer.found.push(key);
        writer.room = intake.admit_small().await?;
        let kept = match intake.recent.remove(&key) {
            Some(kept) => Some(kept),
            None => {
                let store = &*writer.store;
                let length = store.length(key).await?.ok_or(IntakeError::Checkpoint)?;
                let beginning = store::read(store, key, 0..length.min(SMALL_BYTES as u64)).await?;
                if beginning.first() != Some(&pieces::VERSION) {
                    writer.read_whole(key, length, offset).await?;
                    return Ok(writer);
                }
                pieces::read(store, key, length, &beginning).await?
            }
        };
        let restored = kept.and_then(|kept| kept.restore(key));
        let restored = restored.filter(|restored| restored.cutter.length() == offset);
        writer.restore_pieced(restored.ok_or(IntakeError::Checkpoint)?)?;
        Ok(writer)
    }

    fn restore_pieced(&mut self, restored: Pieced) -> Result<(), IntakeError> {
        let Pieced { parts, flushed, pieces, in_pieces, end, hash, cutter } = restored;
        self.part_numbers = u32::try_from(parts.len()).map_err(|_| IntakeError::Checkpoint)?;
        if in_pieces + end.len() as u64 >= self.intake.schedule.part_bytes(flushed) {
            return Err(IntakeError::Checkpoint);
        }
        let own = self.found.first().copied();
        let earlier = pieces.iter().map(|piece| piece.object).filter(|key| Some(*key) != own);
        self.found.extend(earlier);
        (self.parts, self.flushed, self.hash, self.cutter) = (parts, flushed, hash, cutter);
        (self.pieces, self.in_pieces) = (pieces, in_pieces as usize);
        self.buffer = BytesMut::from(&end[..]);
        Ok(())
    }

    /// A checkpoint of `length` bytes that has all of the tail.
    async fn read_whole(
        &mut self,
        key: ObjectKey,
        length: u64,
        offset: u64,
    ) -> Result<(), IntakeError> {
        if length > SMALL_BYTES as u64 {
            // The part began before the offset, and so is no longer than this.
            self.room = self.intake.admit_part(offset).await?;
        }
        let content = self.store.get(key, 0..length).await?;
        let read = checkpoint::read(content, length, self.room.bytes).await?;
        let restored = read.filter(|restored| restored.cutter.length() == offset);
        let Restored { parts, flushed, tail, hash, cutter } =
            restored.ok_or(IntakeError::Checkpoint)?;
        self.part_numbers = u32::try_from(parts.len()).map_err(|_| IntakeError::Checkpoint)?;
        if tail.len() as u64 >= self.intake.schedule.part_bytes(flushed) {
            return Err(IntakeError::Checkpoint);
        }
        (self.parts, self.flushed, self.hash, self.cutter) = (parts, flushed, hash, cutter);
        self.buffer = tail;
        if self.room.bytes > SMALL_BYTES {
            self.buffer.reserve(self.room.bytes - self.buffer.len());
        }
        Ok(())
    }

    /// What its session had in storage when it went on, beside parts: to be deleted once the session
    /// has ended.
    pub fn found(&self) -> &[ObjectKey] {
        &self.found
    }

    /// Makes what was taken so far of that session safe, for another request to go on, which is told
    /// its key by a row. Where there will be no such row, drop the writer, and the parts are dropped
    /// too; else call [`BlobWriter::named`].
    ///
    /// # Errors
    /// See [`IntakeError`].
    pub async fn checkpoint(&mut self, of: UploadId, form: Form) -> Result<Saved, IntakeError> {
        self.settle().await?;
        let in_pieces = form == Form::Pieces && pieces::is_cut_at(self.flushed);
        if !in_pieces {
            self.gather(0).await?;
        }
        let key = ObjectKey::UploadCheckpoint { upload: of, number: rand::random() };
        let short = self.intake.schedule.is_short(self.flushed);
        let _copy = match short {
            true => None,
            false => Some(self.intake.copies.take(1).await?),
        };
        let (parts, tail) = (&self.parts[..], &self.buffer[..]);
        let stored = if in_pieces {
            let encoded = pieces::encode(parts, &self.pieces, tail, &self.hash, &self.cutter);
            let (stored, kept) = encoded.ok_or(IntakeError::Checkpoint)?;
            self.kept = Some((key, kept));
            stored
        } else {
            let encode: checkpoint::Encode =
                if short { checkpoint::encode } else { checkpoint::encode_long };
            let encoded = encode(parts, tail, &self.hash, &self.cutter);
            encoded.map_err(|_| IntakeError::Checkpoint)?.into()
        };
        self.store.put(key, &self.under, stored).await?;
        let needed = |key: &&ObjectKey| self.pieces.iter().any(|piece| piece.object == **key);
        let superseded = self.found.iter().filter(|key| !needed(key)).copied().collect();
        Ok(Saved { checkpoint: key, multipart: self.multipart.clone(), superseded })
    }

    /// A row names the last checkpoint, and the multipart upload, now.
    pub fn named(mut self) {
        self.unnamed = false;
        if let Some((key, kept)) = self.kept.take() {
            self.intake.recent.insert(key, kept);
        }
    }

    /// Memory for as much as there is room for: what is read of the pieces later comes before what is
    /// there, without a copy.
    pub(super) fn lay_out(&mut self) {
        if self.pieces.is_empty() {
            self.buffer.reserve(self.room.bytes - self.buffer.len());
            return;
        }
        let mut whole = BytesMut::with_capacity(self.room.bytes);
        let mut behind = whole.split_off(self.in_pieces);
        behind.extend_from_slice(&self.buffer);
        (self.front, self.buffer) = (whole, behind);
    }

    /// Reads the pieces, where so many bytes more are to come before anything is sent. What fails
    /// leaves things as they are.
    pub(super) async fn gather(&mut self, more: usize) -> Result<(), IntakeError> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        self.make_room(self.in_pieces + self.buffer.len() + more).await?;
        if self.front.capacity() < self.in_pieces {
            self.lay_out();
        }
        self.front.clear();
        let store = Arc::clone(&self.store);
        let opened = stream::iter(self.pieces.clone()).map(move |piece| {
            let store = Arc::clone(&store);
            async move { store.get(piece.object, piece.range()).await }
        });
        let mut content = opened.buffered(GATHERED_AT_ONCE).try_flatten().boxed();
        while let Some(bytes) = content.try_next().await? {
            if bytes.len() > self.in_pieces - self.front.len() {
                return Err(IntakeError::Checkpoint);
            }
            self.front.extend_from_slice(&bytes);
        }
        let ids = self.cutter.ids().iter().skip(self.flushed as usize / BLOB_CHUNK_BYTES);
        let mut chunks = self.front.chunks(BLOB_CHUNK_BYTES).zip(ids);
        if self.front.len() != self.in_pieces || !chunks.all(|(chunk, id)| id.verifies(chunk)) {
            return Err(IntakeError::Checkpoint);
        }
        self.front.unsplit(std::mem::take(&mut self.buffer));
        self.buffer = std::mem::take(&mut self.front);
        (self.pieces, self.in_pieces) = (Vec::new(), 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
