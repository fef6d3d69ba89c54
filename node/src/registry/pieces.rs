//! A checkpoint that holds what its request brought, and leaves what earlier ones hold where it is.
//!
//! Layout, version 3 of a checkpoint: the version byte, the lengths of the body and of the end in 4
//! bytes each (little-endian), [`Body`] in postcard, then the tail as far as no earlier checkpoint has
//! it. Its end, the bytes after the blob's last cut, is read by the next request and stored again;
//! what is before is a [`Piece`] from then on, until its part is full. Programs that know no pieces
//! read versions 1 and 2 only (see `checkpoint`).
//!
//! Invariants: a piece is whole chunks, and lies in a checkpoint of the same upload, so that there are
//! few in a tail however little each request brings; what is restored agrees with itself: parts,
//! pieces and end are as long as what was cut, and the tail is shorter than the longest part. What is
//! read back has the hashes that it came with.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use shoal_content::{ChunkId, ObjectKey, UploadId};
use shoal_formats::{BLOB_CHUNK_BYTES, BlobCutter};

use super::checkpoint::BODY_BYTES_MAX;
use super::hash::Hash;
use super::parts::PartSchedule;
use crate::store::{BlobStore, StoreError, StoredPart};

pub const VERSION: u8 = 3;
const HEAD_BYTES: usize = 1 + 2 * size_of::<u32>();
const CHUNK_BYTES: u64 = BLOB_CHUNK_BYTES as u64;
/// Keys of one page, where all that an upload has is deleted.
const PAGE_OBJECTS: usize = 1000;

/// Whether a tail that begins so many bytes into its blob can stay in pieces.
pub fn is_cut_at(start: u64) -> bool {
    start.is_multiple_of(CHUNK_BYTES)
}

/// Bytes of a tail in an earlier checkpoint of the same upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    pub object: ObjectKey,
    start: u64,
    bytes: u64,
}

impl Piece {
    /// Where in the object it is.
    pub fn range(&self) -> Range<u64> {
        self.start..self.start + self.bytes
    }

    /// Whether it is one of that upload's.
    fn is_of(&self, upload: UploadId) -> bool {
        let whole = self.bytes > 0 && self.bytes.is_multiple_of(CHUNK_BYTES);
        whole
            && matches!(self.object, ObjectKey::UploadCheckpoint { upload: of, .. } if of == upload)
    }
}

#[derive(Serialize, Deserialize)]
struct Body {
    parts: Vec<StoredPart>,
    pieces: Vec<Piece>,
    hash: Vec<u8>,
    algorithm: u8,
    /// Without the bytes after the last cut.
    cutter: Vec<u8>,
    /// The BLAKE3 of those bytes.
    end: [u8; 32],
}

/// All of a checkpoint but the bytes that stay in storage.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Of the object.
    length: u64,
    body: Bytes,
    end: Bytes,
}

/// An upload between two requests.
#[derive(Debug)]
pub struct Pieced {
    pub parts: Vec<StoredPart>,
    /// Bytes of `parts`.
    pub flushed: u64,
    /// What comes after the parts, but for the end.
    pub pieces: Vec<Piece>,
    /// Bytes of `pieces`.
    pub in_pieces: u64,
    /// What comes after the pieces.
    pub end: Bytes,
    pub hash: Hash,
    pub cutter: BlobCutter,
}

/// As it is stored, and what of it is worth to be kept in memory. `own` is the tail behind the pieces;
/// `None` where it has not all bytes after the last cut.
pub fn encode(
    parts: &[StoredPart],
    pieces: &[Piece],
    own: &[u8],
    hash: &Hash,
    cutter: &BlobCutter,
) -> Option<(Bytes, Kept)> {
    let end = (cutter.length() % CHUNK_BYTES) as usize;
    let stays = own.len().checked_sub(end)?;
    let (algorithm, hash) = hash.save();
    let mut cuts = cutter.to_bytes();
    cuts.truncate(cuts.len() - end);
    let end = Bytes::copy_from_slice(&own[stays..]);
    let body = Body {
        parts: parts.to_vec(),
        pieces: pieces.to_vec(),
        hash,
        algorithm,
        cutter: cuts,
        end: *ChunkId::of(&end).as_bytes(),
    };
    let body = postcard::to_extend(&body, Vec::new()).ok()?;
    let mut stored = Vec::with_capacity(HEAD_BYTES + body.len() + own.len());
    stored.push(VERSION);
    for length in [body.len(), end.len()] {
        stored.extend_from_slice(&u32::try_from(length).ok()?.to_le_bytes());
    }
    stored.extend_from_slice(&body);
    stored.extend_from_slice(own);
    let kept = Kept { length: stored.len() as u64, body: body.into(), end };
    Some((stored.into(), kept))
}

/// Reads what is needed to go on of an object of `length` bytes, of which the first are there already.
/// `None` where it is no such checkpoint.
///
/// # Errors
/// Where storage fails.
pub async fn read(
    store: &dyn BlobStore,
    key: ObjectKey,
    length: u64,
    beginning: &[u8],
) -> Result<Option<Kept>, StoreError> {
    let Some((body, end)) = ranges(beginning, length) else { return Ok(None) };
    let body = span(store, key, body, beginning).await?;
    let end = span(store, key, end, beginning).await?;
    Ok(Some(Kept { length, body, end }))
}

/// Where the body and the end are in an object of `length` bytes.
fn ranges(beginning: &[u8], length: u64) -> Option<(Range<u64>, Range<u64>)> {
    let rest = beginning.strip_prefix(&[VERSION])?;
    let (body, rest) = rest.split_first_chunk()?;
    let (end, _) = rest.split_first_chunk()?;
    let (body, end) = (u64::from(u32::from_le_bytes(*body)), u64::from(u32::from_le_bytes(*end)));
    let behind = HEAD_BYTES as u64 + body;
    let sound = body <= BODY_BYTES_MAX && end < CHUNK_BYTES && behind + end <= length;
    sound.then(|| (HEAD_BYTES as u64..behind, length - end..length))
}

/// The bytes of `range`, of which some may be in the object's beginning.
async fn span(
    store: &dyn BlobStore,
    key: ObjectKey,
    range: Range<u64>,
    beginning: &[u8],
) -> Result<Bytes, StoreError> {
    let length = (range.end - range.start) as usize;
    let mut all = BytesMut::with_capacity(length);
    let known = range.end.min(beginning.len() as u64);
    all.extend_from_slice(beginning.get(range.start as usize..known as usize).unwrap_or_default());
    if all.len() < length {
        let rest = range.start + all.len() as u64..range.end;
        let mut pieces = store.get(key, rest).await?;
        while let Some(piece) = pieces.next().await {
            all.extend_from_slice(&piece?);
        }
    }
    if all.len() != length {
        return Err(StoreError::Range { key, start: range.start, end: range.end });
    }
    Ok(all.freeze())
}

/// From a whole object. `None` where it is no such checkpoint, or contradicts itself.
pub fn decode(key: ObjectKey, bytes: &[u8]) -> Option<Pieced> {
    let length = bytes.len() as u64;
    let (body, end) = ranges(bytes, length)?;
    let part = |range: Range<u64>| {
        let range = range.start as usize..range.end as usize;
        bytes.get(range).map(Bytes::copy_from_slice)
    };
    Kept { length, body: part(body)?, end: part(end)? }.restore(key)
}

impl Kept {
    /// That it takes in memory.
    pub fn bytes(&self) -> usize {
        self.body.len() + self.end.len()
    }

    /// What lies under `key`; `None` where it contradicts itself.
    pub fn restore(&self, key: ObjectKey) -> Option<Pieced> {
        let ObjectKey::UploadCheckpoint { upload, .. } = key else { return None };
        let body: Body = postcard::from_bytes(&self.body).ok()?;
        let Body { parts, mut pieces, hash, algorithm, cutter, end } = body;
        let hash = Hash::restore(algorithm, &hash)?;
        let cutter = BlobCutter::from_bytes(&[&cutter[..], &self.end[..]].concat()).ok()?;
        let flushed = parts.iter().try_fold(0_u64, |sum, part| sum.checked_add(part.length))?;
        let start = (HEAD_BYTES + self.body.len()) as u64;
        let stays = self.length.checked_sub(start)?.checked_sub(self.end.len() as u64)?;
        if stays > 0 {
            pieces.push(Piece { object: key, start, bytes: stays });
        }
        let mut in_pieces = 0_u64;
        for piece in &pieces {
            piece.start.checked_add(piece.bytes)?;
            in_pieces = in_pieces.checked_add(piece.bytes)?;
        }
        let tail = in_pieces.checked_add(self.end.len() as u64)?;
        let agrees = flushed.checked_add(tail) == Some(cutter.length())
            && tail < PartSchedule::STANDARD.longest_bytes
            && is_cut_at(flushed)
            && pieces.iter().all(|piece| piece.is_of(upload));
        let sound = ChunkId::from_bytes(end).verifies(&self.end);
        let end = self.end.clone();
        (agrees && sound).then_some(Pieced { parts, flushed, pieces, in_pieces, end, hash, cutter })
    }
}

/// Deletes what lies between the requests of an upload that has ended, of which its row named one
/// object at most.
///
/// # Errors
/// Where storage fails; what stays is found by the scrub.
pub async fn delete_all(
    store: &dyn BlobStore,
    upload: UploadId,
    checkpoint: Option<ObjectKey>,
) -> Result<(), StoreError> {
    let Some(checkpoint) = checkpoint else { return Ok(()) };
    let (folder, mut after) = (ObjectKey::of_upload(upload), None);
    // Programs before named it otherwise.
    let mut found = vec![checkpoint];
    loop {
        let page = store.list(&folder, after, PAGE_OBJECTS).await?;
        after = page.last().map(|object| object.key);
        found.extend(page.iter().map(|object| object.key).filter(|key| *key != checkpoint));
        store.delete(&found).await?;
        if page.len() < PAGE_OBJECTS {
            return Ok(());
        }
        found.clear();
    }
}

#[cfg(test)]
mod tests {
    use shoal_content::Algorithm;
    use uuid::Uuid;

    use super::*;

    fn key(number: u64) -> ObjectKey {
        ObjectKey::UploadCheckpoint { upload: UploadId::from_uuid(Uuid::from_u128(5)), number }
    }

    /// Two chunks in an earlier one, and one of its own, with seven bytes behind.
    fn stored(earlier: ObjectKey, bytes: u64) -> Bytes {
        let content = vec![7; 3 * BLOB_CHUNK_BYTES + 7];
        let (mut hash, mut cutter) = (Hash::new(Algorithm::Sha256), BlobCutter::new());
        hash.update(&content);
        cutter.update(&content);
        let pieces = [Piece { object: earlier, start: 20, bytes }];
        let own = &content[2 * BLOB_CHUNK_BYTES..];
        encode(&[], &pieces, own, &hash, &cutter).unwrap().0
    }

    #[test]
    fn what_stays_is_whole_chunks_and_what_is_behind_them_is_the_end() {
        let stored = stored(key(1), 2 * CHUNK_BYTES);
        let restored = decode(key(2), &stored).unwrap();
        assert_eq!(restored.in_pieces, 3 * CHUNK_BYTES);
        assert_eq!((restored.flushed, restored.end.len()), (0, 7));
        let [first, own] = restored.pieces[..] else { panic!("{:?}", restored.pieces) };
        assert_eq!((first.object, first.range()), (key(1), 20..20 + 2 * CHUNK_BYTES));
        let behind = stored.len() as u64 - 7;
        assert_eq!((own.object, own.range()), (key(2), behind - CHUNK_BYTES..behind));
    }

    #[test]
    fn what_contradicts_itself_or_lies_elsewhere_is_refused() {
        let sound = stored(key(1), 2 * CHUNK_BYTES);
        let other = UploadId::from_uuid(Uuid::from_u128(6));
        let foreign = ObjectKey::UploadCheckpoint { upload: other, number: 1 };
        for (earlier, bytes) in [
            (foreign, 2 * CHUNK_BYTES),
            (ObjectKey::Blob(other), 2 * CHUNK_BYTES),
            (key(1), CHUNK_BYTES),
            (key(1), 2 * CHUNK_BYTES - 1),
            (key(1), u64::MAX),
        ] {
            assert!(decode(key(2), &stored(earlier, bytes)).is_none(), "{bytes} of {earlier}");
        }
        assert!(decode(ObjectKey::Blob(other), &sound).is_none());
        assert!(decode(key(2), &sound[..sound.len() - 1]).is_none());
        assert!(decode(key(2), &sound[..HEAD_BYTES - 1]).is_none());
        assert!(decode(key(2), &[&sound[..], b"x"].concat()).is_none());
    }
}
