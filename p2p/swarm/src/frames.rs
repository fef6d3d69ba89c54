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

/// The version of all frames; a peer that speaks another is told by the refusal.
pub const VERSION: u8 = 1;
/// The longest frame, in bytes, without its length prefix.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Runs in one frame; a more scattered set takes several.
pub const RANGES_MAX: usize = 4096;
/// Peers named in one frame.
pub const CONTACTS_MAX: usize = 32;
/// Chunks asked for in one request.
pub const RUN_CHUNKS_MAX: usize = 16;

/// A peer and the UDP address at which its QUIC endpoint answers. A hint until a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    pub peer: PeerId,
    pub address: SocketAddr,
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
    Hello { address: SocketAddr, zone: Zone },
    /// "I want this recipe; here is my right to it, and what I have."
    Join { recipe: RecipeId, ticket: Ticket, have: Vec<ChunkRange> },
    /// More chunks that the sender holds and verified.
    Have { recipe: RecipeId, chunks: Vec<ChunkRange> },
    /// Chunks that the sender is fetching from a node.
    Claim { recipe: RecipeId, chunks: Vec<ChunkRange> },
    /// To a tracker: "I can serve this recipe." Asks for nothing.
    Announce { recipe: RecipeId },
    /// From a tracker: some of the swarm's members.
    Peers { recipe: RecipeId, contacts: Vec<Contact> },
    /// "I have left this swarm."
    Leave { recipe: RecipeId },
}

/// The first frame of a request's own stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// These chunks, in this order. Needs a Join on this connection.
    Chunks { recipe: RecipeId, indices: Vec<u32> },
    /// The encoded recipe.
    Recipe { recipe: RecipeId, ticket: Ticket },
}

/// The first byte of an answer. After `Content` come, for each chunk asked for, a big-endian `u32`
/// length and the bytes; for a recipe a `u32` length and its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Content,
    /// All upload slots are taken: ask others, or again later.
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
            Self::Join { have: ranges, .. }
            | Self::Have { chunks: ranges, .. }
            | Self::Claim { chunks: ranges, .. } => ranges.len() <= RANGES_MAX,
            Self::Peers { contacts, .. } => contacts.len() <= CONTACTS_MAX,
            Self::Hello { .. } | Self::Announce { .. } | Self::Leave { .. } => true,
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
        let many = Ask::Chunks { recipe: RecipeId::of(b"r"), indices: vec![0; 17] };
        assert_eq!(encode(&many), Err(FrameError::TooMany));
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
