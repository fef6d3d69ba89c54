//! What an upload's next request needs and storage does not yet hold, as one small object.
//!
//! Layout, version 1: the version byte, then [`Checkpoint`] in postcard. Version 2, for blobs whose
//! parts are long: the version byte, the length of what follows in 4 bytes (little-endian), a
//! [`Checkpoint`] in postcard with an empty tail, then the tail as it is, so that it is read into
//! the part that it is the beginning of. Programs that know no long parts read version 1 only.
//! Version 3 leaves most of the tail in earlier ones (see `pieces`); these two are written as long as
//! there may be nodes that do not know it.
//!
//! Invariant: what is restored agrees with itself: parts and tail are as long as what was cut, and
//! the tail is shorter than the longest part.

use bytes::BytesMut;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use shoal_formats::BlobCutter;

use super::hash::Hash;
use super::parts::{PARTS_MAX, PartSchedule};
use crate::store::{ByteStream, StoreError, StoredPart};

const VERSION: u8 = 1;
const LONG_VERSION: u8 = 2;
/// The version and the length before the body of a long one.
const LONG_HEAD_BYTES: usize = 1 + size_of::<u32>();
/// The longest body: the ids of the longest blob's chunks, and its parts with their tags.
pub const BODY_BYTES_MAX: u64 =
    PartSchedule::STANDARD.blob_bytes_max / 256 / 1024 * 32 + PARTS_MAX as u64 * 256 + 1024 * 1024;

#[derive(Serialize, Deserialize)]
struct Checkpoint {
    parts: Vec<StoredPart>,
    tail: Vec<u8>,
    hash: Vec<u8>,
    algorithm: u8,
    cutter: Vec<u8>,
}

/// An upload between two requests.
#[derive(Debug)]
pub struct Restored {
    pub parts: Vec<StoredPart>,
    /// Bytes of `parts`.
    pub flushed: u64,
    /// Bytes that are in no part.
    pub tail: BytesMut,
    pub hash: Hash,
    pub cutter: BlobCutter,
}

/// As it is stored.
///
/// # Errors
/// None that these types can meet.
pub fn encode(
    parts: &[StoredPart],
    tail: &[u8],
    hash: &Hash,
    cutter: &BlobCutter,
) -> Result<Vec<u8>, postcard::Error> {
    let (algorithm, hash) = hash.save();
    let (parts, tail, cutter) = (parts.to_vec(), tail.to_vec(), cutter.to_bytes());
    postcard::to_extend(&Checkpoint { parts, tail, hash, algorithm, cutter }, vec![VERSION])
}

/// As one with a long tail is stored.
///
/// # Errors
/// None that these types can meet.
pub fn encode_long(
    parts: &[StoredPart],
    tail: &[u8],
    hash: &Hash,
    cutter: &BlobCutter,
) -> Result<Vec<u8>, postcard::Error> {
    let (algorithm, hash) = hash.save();
    let (parts, cutter) = (parts.to_vec(), cutter.to_bytes());
    let body = Checkpoint { parts, tail: Vec::new(), hash, algorithm, cutter };
    let body = postcard::to_extend(&body, Vec::new())?;
    let length = u32::try_from(body.len()).map_err(|_| postcard::Error::SerializeBufferFull)?;
    let mut bytes = Vec::with_capacity(LONG_HEAD_BYTES + body.len() + tail.len());
    bytes.push(LONG_VERSION);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes.extend_from_slice(tail);
    Ok(bytes)
}

/// One of the two.
pub type Encode = fn(&[StoredPart], &[u8], &Hash, &BlobCutter) -> Result<Vec<u8>, postcard::Error>;

/// Reads an object of `length` bytes as it comes; its tail into memory for a part of `part_bytes`.
/// `None` where it is none, contradicts itself, or has a longer tail.
///
/// # Errors
/// Where storage fails.
pub async fn read(
    mut pieces: ByteStream,
    length: u64,
    part_bytes: usize,
) -> Result<Option<Restored>, StoreError> {
    if length > BODY_BYTES_MAX + LONG_HEAD_BYTES as u64 + part_bytes as u64 {
        return Ok(None);
    }
    let mut head = BytesMut::new();
    let mut long = None;
    while let Some(piece) = pieces.next().await {
        let mut piece = piece?;
        if long.is_none() {
            head.extend_from_slice(&piece);
            let Some(body) = long_body(&head) else { continue };
            // From here on, all is the tail.
            piece = head.split_off(LONG_HEAD_BYTES + body).freeze();
            let tail = (length as usize).saturating_sub(LONG_HEAD_BYTES + body);
            if tail >= part_bytes {
                return Ok(None);
            }
            let Some(restored) = decode_body(&head[LONG_HEAD_BYTES..]) else { return Ok(None) };
            head = BytesMut::new();
            long = Some(Restored { tail: BytesMut::with_capacity(part_bytes), ..restored });
        }
        if let Some(long) = &mut long {
            if long.tail.len() + piece.len() >= part_bytes {
                return Ok(None);
            }
            long.tail.extend_from_slice(&piece);
        }
    }
    Ok(match long {
        Some(restored) => restored.agreeing(),
        None => decode(&head),
    })
}

/// How long the body of a long one is, once it is there.
fn long_body(bytes: &[u8]) -> Option<usize> {
    let (&version, rest) = bytes.split_first()?;
    if version != LONG_VERSION {
        return None;
    }
    let (length, rest) = rest.split_first_chunk()?;
    let body = u32::from_le_bytes(*length) as usize;
    (rest.len() >= body).then_some(body)
}

/// `None` where it is none, or contradicts itself.
pub fn decode(bytes: &[u8]) -> Option<Restored> {
    let (&version, body) = bytes.split_first()?;
    match version {
        VERSION => decode_body(body)?.agreeing(),
        LONG_VERSION => {
            let body = long_body(bytes)?;
            let (head, tail) = bytes.split_at(LONG_HEAD_BYTES + body);
            let mut restored = decode_body(&head[LONG_HEAD_BYTES..])?;
            restored.tail.extend_from_slice(tail);
            restored.agreeing()
        }
        _ => None,
    }
}

/// Without a look at whether it agrees with itself.
fn decode_body(body: &[u8]) -> Option<Restored> {
    let Checkpoint { parts, tail, hash, algorithm, cutter } = postcard::from_bytes(body).ok()?;
    let hash = Hash::restore(algorithm, &hash)?;
    let cutter = BlobCutter::from_bytes(&cutter).ok()?;
    let flushed = parts.iter().try_fold(0_u64, |sum, part| sum.checked_add(part.length))?;
    Some(Restored { parts, flushed, tail: tail.as_slice().into(), hash, cutter })
}

impl Restored {
    fn agreeing(self) -> Option<Self> {
        let tail = self.tail.len() as u64;
        let whole = self.flushed.checked_add(tail)?;
        let shorter = tail < PartSchedule::STANDARD.longest_bytes;
        (whole == self.cutter.length() && shorter).then_some(self)
    }
}
