//! The unit of dedup, verification, transfer and caching.

use std::fmt;

use crate::id::IdError;

/// The most content one chunk holds, in bytes.
pub const CHUNK_BYTES_MAX: u32 = 256 * 1024;

/// Names a chunk by the BLAKE3 of its (uncompressed) content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId([u8; 32]);

impl ChunkId {
    /// The id of `content`.
    pub fn of(content: &[u8]) -> Self {
        Self(*blake3::hash(content).as_bytes())
    }

    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether `content` is what this id names.
    pub fn verifies(&self, content: &[u8]) -> bool {
        Self::of(content) == *self
    }
}

crate::id::hex_text!(ChunkId, "a chunk id is 64 hexadecimal digits");
