//! What peers say to each other, and its bytes.
//!
//! A frame on a stream is a big-endian `u32` length, then that many bytes: the version, then
//! postcard. [`FRAME_BYTES_MAX`] is checked before anything is allocated. Control frames travel
//! on the connection's one control stream; an [`Ask`] opens a stream of its own, whose answer is
//! one [`Answer`] byte and then the content.
//!
//! Invariant: what [`decode`] lets through is within every limit of this file.
//! Non-goal: whether a ticket is good; the shell checks it.

use core::net::SocketAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shoal_content::{PeerId, RecipeId, Ticket, Zone};
use thiserror::Error;

use crate::chunk_set::ChunkSet;

/// The version of all frames; a peer that speaks another is told by the refusal.
pub const VERSION: u8 = 2;
/// The longest frame, in bytes, without its length prefix.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Runs in one frame; a more scattered set takes several.
pub const RANGES_MAX: usize = 4096;
/// Bytes of a bit map in one frame: so many times eight chunks.
pub const MAP_BYTES_MAX: usize = 32 * 1024;
/// Members named in one list.
pub const MEMBERS_MAX: usize = 32;
/// Chunks asked for in one request.
pub const RUN_CHUNKS_MAX: usize = 16;

/// A peer and the UDP address at which its QUIC endpoint answers. A hint until a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    pub peer: PeerId,
    pub address: SocketAddr,
}

/// A contact, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub contact: Contact,
    pub zone: Zone,
    /// An edge room's cache: preferred by its room.
    pub cache: bool,
}

/// `count` chunks from index `start` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRange {
    pub start: u32,
    pub count: u32,
}

impl ChunkRange {
    /// The indices, cut at `len`.
    pub fn within(self, len: u32) -> std::ops::Range<u32> {
        self.start.min(len)..self.start.saturating_add(self.count).min(len)
    }

    /// Ascending indices as runs.
    pub fn gather(indices: impl IntoIterator<Item = u32>) -> Vec<Self> {
        let mut runs: Vec<Self> = Vec::new();
        for index in indices {
            match runs.last_mut() {
                Some(run) if run.start + run.count == index => run.count += 1,
                _ => runs.push(Self { start: index, count: 1 }),
            }
        }
        runs
    }
}

/// A frame of the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Frame {
    /// First on every control stream.
    Hello { address: SocketAddr, zone: Zone, cache: bool },
    /// "I want this recipe; here is my right to it." What is held follows as Have and Map.
    Join { recipe: RecipeId, ticket: Ticket },
    /// More chunks that the sender holds and verified.
    Have { recipe: RecipeId, chunks: Vec<ChunkRange> },
    /// The same for scattered chunks: bit `n` of byte `m` is chunk `start + 8 m + n`.
    Map { recipe: RecipeId, start: u32, bits: Vec<u8> },
    /// Chunks that the sender is bringing in. After a Join it ends what is told of holdings, even
    /// where there are none.
    Claim { recipe: RecipeId, chunks: Vec<ChunkRange> },
    /// To a tracker: "I can serve this recipe." Asks for nothing.
    Announce { recipe: RecipeId },
    /// Some of the swarm's members: from a tracker, from a neighbour, or from one that is busy.
    Peers { recipe: RecipeId, members: Vec<Member> },
    /// From a tracker to heads: who brings chunks in from the nodes, and who into your room.
    Heads { recipe: RecipeId, whole: Vec<Member>, room: Vec<Member> },
    /// "You were told that I am busy: a slot is yours now, for a short while."
    Free,
    /// "I need none": the answer to Free where nothing is wanted any more.
    Pass,
    /// "I have left this swarm", or "I cannot be your neighbour in it".
    Leave { recipe: RecipeId },
}

impl Frame {
    /// What `set` holds, in frames as small as they come.
    pub fn holdings(recipe: RecipeId, set: &ChunkSet) -> Vec<Self> {
        let runs = set.ranges();
        // A run takes some four bytes.
        if runs.len() * 4 <= set.len() as usize / 8 {
            let part = |chunks: &[ChunkRange]| Self::Have { recipe, chunks: chunks.to_vec() };
            return runs.chunks(RANGES_MAX).map(part).collect();
        }
        let bytes: Vec<u8> = set.words().iter().flat_map(|word| word.to_le_bytes()).collect();
        let parts = (0u32..).step_by(MAP_BYTES_MAX * 8).zip(bytes.chunks(MAP_BYTES_MAX));
        parts.map(|(start, part)| Self::Map { recipe, start, bits: part.to_vec() }).collect()
    }
}

/// The chunks of a Map; whoever takes them cuts at the recipe's end.
pub fn mapped(start: u32, bits: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bits.iter().enumerate().flat_map(move |(at, &byte)| {
        let of_it = (0..8).filter(move |bit| byte >> bit & 1 == 1);
        of_it.filter_map(move |bit| start.checked_add(at as u32 * 8 + bit))
    })
}

/// The first frame of a request's own stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// These chunks, in this order. Needs a Join on this connection.
    ///
    /// A node gives what it gave to another member of late only to one that `insists`.
    Chunks { recipe: RecipeId, indices: Vec<u32>, insists: bool },
    /// The encoded recipe.
    Recipe { recipe: RecipeId, ticket: Ticket },
}

/// The first byte of an answer. Where a connection carries one answer after the other, and not a stream
/// each, the word `u32::MAX` stands behind the last chunk. After `Content` come, for each chunk asked for, a big-endian `u32`
/// length and the bytes, or from a node the length 0 and the id of the member that was given the
/// chunk and will pass it on; where the length's highest bit is set, the rest of it is that of a zstd
/// frame, which follows in place of the bytes. For a recipe a `u32` length and its bytes come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Content,
    /// All upload slots are taken: ask others (Peers names some), Free says when one is yours.
    Busy,
    /// Not held here.
    Absent,
    /// No right to it.
    Forbidden,
}

impl Answer {
    pub const fn byte(self) -> u8 {
        self as u8
    }

    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Content),
            1 => Some(Self::Busy),
            2 => Some(Self::Absent),
            3 => Some(Self::Forbidden),
            _ => None,
        }
    }
}

/// Why bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes is over the limit of {FRAME_BYTES_MAX}")]
    TooLong(usize),
    #[error("the frame's version {0} is not known here; upgrade one side")]
    Version(u8),
    #[error("the frame is malformed")]
    Malformed,
    #[error("the frame lists more than is allowed")]
    TooMany,
}

/// A message with limits of its own.
pub trait Limits {
    fn within_limits(&self) -> bool;
}

impl Limits for Frame {
    fn within_limits(&self) -> bool {
        match self {
            Self::Have { chunks: ranges, .. } | Self::Claim { chunks: ranges, .. } => {
                ranges.len() <= RANGES_MAX
            }
            Self::Map { bits, .. } => bits.len() <= MAP_BYTES_MAX,
            Self::Peers { members, .. } => members.len() <= MEMBERS_MAX,
            Self::Heads { whole, room, .. } => whole.len().max(room.len()) <= MEMBERS_MAX,
            Self::Hello { .. }
            | Self::Join { .. }
            | Self::Announce { .. }
            | Self::Free
            | Self::Pass
            | Self::Leave { .. } => true,
        }
    }
}

impl Limits for Ask {
    fn within_limits(&self) -> bool {
        match self {
            Self::Chunks { indices, .. } => (1..=RUN_CHUNKS_MAX).contains(&indices.len()),
            Self::Recipe { .. } => true,
        }
    }
}

/// The bytes of `message` without the length prefix.
///
/// # Errors
/// Where a limit is passed: a fault of the caller.
pub fn encode<M: Serialize + Limits>(message: &M) -> Result<Vec<u8>, FrameError> {
    if !message.within_limits() {
        return Err(FrameError::TooMany);
    }
    let bytes = postcard::to_extend(message, vec![VERSION]).map_err(|_| FrameError::Malformed)?;
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(bytes.len()));
    }
    Ok(bytes)
}

/// Reads one message that came from a stranger.
///
/// # Errors
/// For anything but exactly one message within the limits.
pub fn decode<M: DeserializeOwned + Limits>(bytes: &[u8]) -> Result<M, FrameError> {
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(bytes.len()));
    }
    let (&version, rest) = bytes.split_first().ok_or(FrameError::Malformed)?;
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    let (message, rest): (M, _) =
        postcard::take_from_bytes(rest).map_err(|_| FrameError::Malformed)?;
    if !rest.is_empty() {
        return Err(FrameError::Malformed);
    }
    if message.within_limits() { Ok(message) } else { Err(FrameError::TooMany) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Frame {
        let chunks = vec![ChunkRange { start: 3, count: 9 }, ChunkRange { start: 40, count: 1 }];
        Frame::Have { recipe: RecipeId::of(b"r"), chunks }
    }

    #[test]
    fn reads_what_it_writes_and_refuses_other_versions() {
        let mut bytes = encode(&sample()).unwrap();
        assert_eq!(decode(&bytes), Ok(sample()));
        bytes[0] = 9;
        assert_eq!(decode::<Frame>(&bytes), Err(FrameError::Version(9)));
        let many = Ask::Chunks { recipe: RecipeId::of(b"r"), indices: vec![0; 17], insists: false };
        assert_eq!(encode(&many), Err(FrameError::TooMany));
    }

    #[test]
    fn holdings_take_the_smaller_form_and_say_the_same() {
        for step in [1, 2, 3, 50] {
            let mut set = ChunkSet::empty(10_001);
            (0..10_001).step_by(step).for_each(|index| assert!(set.insert(index)));
            let mut read = ChunkSet::empty(10_001);
            let mut bytes = 0;
            for frame in Frame::holdings(RecipeId::of(b"r"), &set) {
                bytes += encode(&frame).unwrap().len();
                match frame {
                    Frame::Have { chunks, .. } => {
                        let indices = chunks.iter().flat_map(|range| range.within(10_001));
                        indices.for_each(|index| assert!(read.insert(index)));
                    }
                    Frame::Map { start, bits, .. } => {
                        mapped(start, &bits).for_each(|index| assert!(read.insert(index)));
                    }
                    other => panic!("{other:?} holds nothing"),
                }
            }
            assert_eq!(read, set);
            assert!(bytes <= 1_300, "{bytes} bytes for every {step}th of 10,001 chunks");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            if let Ok(frame) = decode::<Frame>(&bytes) {
                prop_assert!(frame.within_limits());
            }
            if let Ok(ask) = decode::<Ask>(&bytes) {
                prop_assert!(ask.within_limits());
            }
        }

        #[test]
        fn a_bent_frame_never_panics(at in any::<prop::sample::Index>(), value in any::<u8>()) {
            let mut bytes = encode(&sample()).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = value;
            let _ = decode::<Frame>(&bytes);
        }
    }
}
