//! What an upload's next request needs and storage does not yet hold, as one small object.
//!
//! Layout: a version byte, then [`Checkpoint`] in postcard. Invariant: what is restored agrees with
//! itself: parts and tail are as long as what was cut, and the tail is shorter than a part.

use serde::{Deserialize, Serialize};
use shoal_formats::BlobCutter;

use super::intake::{Hash, PART_BYTES};
use crate::store::StoredPart;

const VERSION: u8 = 1;

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
    pub tail: Vec<u8>,
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

/// `None` where it is none, or contradicts itself.
pub fn decode(bytes: &[u8]) -> Option<Restored> {
    let (&version, body) = bytes.split_first()?;
    if version != VERSION {
        return None;
    }
    let Checkpoint { parts, tail, hash, algorithm, cutter } = postcard::from_bytes(body).ok()?;
    let hash = Hash::restore(algorithm, &hash)?;
    let cutter = BlobCutter::from_bytes(&cutter).ok()?;
    let flushed = parts.iter().try_fold(0_u64, |sum, part| sum.checked_add(part.length))?;
    let whole = flushed.checked_add(tail.len() as u64)?;
    let agrees = whole == cutter.length() && tail.len() < PART_BYTES;
    agrees.then_some(Restored { parts, flushed, tail, hash, cutter })
}
