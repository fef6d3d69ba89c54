//! A range of an object, opened segment by segment as it is read.
//!
//! Invariants: nothing is given that was not authenticated; what does not open is read once more,
//! past caches, and then is an error.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use shoal_content::ObjectKey;

use super::format::{
    HEADER_BYTES, ObjectSecret, SEALED_SEGMENT_BYTES, SEGMENT_BYTES, content_bytes,
};
use super::{Access, Inner, broken};
use crate::store::{ByteStream, StoreError};

/// Whether an error may come of what was remembered of an object, or of a cache of it.
pub fn may_be_stale(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::NotFound(_)
            | StoreError::Range { .. }
            | StoreError::Sealed(_)
            | StoreError::Shredded(_)
    )
}

/// See the module's documentation.
pub struct Reading {
    inner: Arc<Inner>,
    key: ObjectKey,
    /// Of the content; not empty.
    range: Range<u64>,
    /// The number of the segment that comes.
    next: u64,
    /// Whether nothing was remembered when it was opened.
    fresh: bool,
    opened: Opened,
}

struct Opened {
    secret: ObjectSecret,
    stored_bytes: u64,
    pieces: ByteStream,
    buffer: BytesMut,
}

impl Reading {
    /// # Errors
    /// As `BlobStore::get`.
    pub async fn open(
        inner: Arc<Inner>,
        key: ObjectKey,
        range: Range<u64>,
        fresh: bool,
    ) -> Result<ByteStream, StoreError> {
        let head = inner.head(key).await?;
        let beyond = StoreError::Range { key, start: range.start, end: range.end };
        let secret = match inner.access(key, head).await? {
            Access::AsItIs => return inner.front.get(key, range).await,
            Access::Shredded => return Err(StoreError::Shredded(key)),
            Access::By { secret, .. } => secret,
        };
        let length = content_bytes(head.stored_bytes);
        if range.start > range.end || range.end > length {
            return Err(beyond);
        }
        if range.is_empty() {
            return Ok(stream::empty().boxed());
        }
        let next = range.start / SEGMENT_BYTES;
        let opened = Opened::begin(&inner, key, secret, head.stored_bytes, next, &range).await?;
        let reading = Self { inner, key, range, next, fresh, opened };
        let pieces = stream::try_unfold(reading, |mut reading| async move {
            let piece = reading.piece().await?;
            Ok(piece.map(|piece| (piece, reading)))
        });
        Ok(pieces.boxed())
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, StoreError> {
        let start = self.next * SEGMENT_BYTES;
        if start >= self.range.end {
            return Ok(None);
        }
        let opened = match self.opened.segment(self.key, self.next).await {
            Err(error) if may_be_stale(&error) && !self.fresh => {
                self.open_again().await?;
                self.opened.segment(self.key, self.next).await?
            }
            opened => opened?,
        };
        self.next += 1;
        let from = self.range.start.saturating_sub(start) as usize;
        let to = (self.range.end - start).min(opened.len() as u64) as usize;
        // The length was asked for, and the segment authenticated: it is as long as it should.
        if from >= to || (to as u64) < (self.range.end - start).min(SEGMENT_BYTES) {
            return Err(broken(self.key));
        }
        Ok(Some(opened.slice(from..to)))
    }

    async fn open_again(&mut self) -> Result<(), StoreError> {
        let (inner, key) = (&self.inner, self.key);
        inner.forget(key).await;
        self.fresh = true;
        let head = inner.head(key).await?;
        let secret = match inner.access(key, head).await? {
            Access::By { secret, .. } => secret,
            Access::Shredded => return Err(StoreError::Shredded(key)),
            // What it began with was something else; who asks again gets this.
            Access::AsItIs => return Err(broken(key)),
        };
        let (stored, range) = (head.stored_bytes, &self.range);
        self.opened = Opened::begin(inner, key, secret, stored, self.next, range).await?;
        Ok(())
    }
}

impl Opened {
    /// Reads from the segment `next` on, up to the one that has the last byte of `range`.
    async fn begin(
        inner: &Inner,
        key: ObjectKey,
        secret: ObjectSecret,
        stored_bytes: u64,
        next: u64,
        range: &Range<u64>,
    ) -> Result<Self, StoreError> {
        let behind = range.end.div_ceil(SEGMENT_BYTES);
        let start = HEADER_BYTES + next * SEALED_SEGMENT_BYTES;
        let end = stored_bytes.min(HEADER_BYTES + behind * SEALED_SEGMENT_BYTES);
        if start >= end {
            return Err(StoreError::Range { key, start: range.start, end: range.end });
        }
        let pieces = inner.front.get(key, start..end).await?;
        Ok(Self { secret, stored_bytes, pieces, buffer: BytesMut::new() })
    }

    async fn segment(&mut self, key: ObjectKey, number: u64) -> Result<Bytes, StoreError> {
        let start = HEADER_BYTES + number * SEALED_SEGMENT_BYTES;
        let wanted = self.stored_bytes.saturating_sub(start).min(SEALED_SEGMENT_BYTES) as usize;
        while self.buffer.len() < wanted {
            match self.pieces.next().await.transpose()? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None => {
                    let end = start + wanted as u64;
                    return Err(StoreError::Range { key, start, end });
                }
            }
        }
        let segment = self.buffer.split_to(wanted);
        self.secret.open(number, segment).map_err(|_| broken(key))
    }
}
