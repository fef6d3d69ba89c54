//! From a chunk's stored bytes back to its content.
//!
//! Invariant: what is returned is what the chunk's id names; memory is bounded by the chunk's
//! declared length, whatever the stored bytes say.
//! Non-goal: finding or fetching the stored bytes.

use std::io;

use shoal_content::{CHUNK_BYTES_MAX, Chunk, ChunkId, Encoding};
use thiserror::Error;

/// Why stored bytes are not the chunk.
#[derive(Debug, Error)]
pub enum ChunkError {
    #[error("chunk {id} is stored in {expected} bytes, but {found} were given")]
    Length { id: ChunkId, expected: u32, found: usize },
    #[error("chunk {id} does not decompress to its {expected} bytes")]
    Decompress {
        id: ChunkId,
        expected: u32,
        #[source]
        error: Option<io::Error>,
    },
    #[error("the bytes given are not chunk {id}: their hash differs")]
    Hash { id: ChunkId },
}

/// The content of `chunk` from the bytes it is stored as, verified.
///
/// # Errors
/// See [`ChunkError`]; none is worth a retry with the same bytes.
pub fn decode_chunk(chunk: &Chunk, stored: &[u8]) -> Result<Vec<u8>, ChunkError> {
    let Chunk { id, length, .. } = *chunk;
    if stored.len() != chunk.stored() as usize {
        return Err(ChunkError::Length { id, expected: chunk.stored(), found: stored.len() });
    }
    let content = match chunk.encoding {
        Encoding::Raw => stored.to_vec(),
        Encoding::Zstd { .. } => {
            // A recipe from a stranger could name any length; ours never pass the maximum.
            let capacity = length.min(CHUNK_BYTES_MAX) as usize;
            let content = zstd::bulk::decompress(stored, capacity).map_err(|error| {
                ChunkError::Decompress { id, expected: length, error: Some(error) }
            })?;
            if content.len() != length as usize {
                return Err(ChunkError::Decompress { id, expected: length, error: None });
            }
            content
        }
    };
    if id.verifies(&content) { Ok(content) } else { Err(ChunkError::Hash { id }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compressed(content: &[u8]) -> (Chunk, Vec<u8>) {
        let stored = zstd::bulk::compress(content, 3).unwrap();
        let chunk = Chunk {
            id: ChunkId::of(content),
            length: content.len() as u32,
            object: 0,
            at: 0,
            encoding: Encoding::Zstd { stored: stored.len() as u32 },
        };
        (chunk, stored)
    }

    #[test]
    fn gives_back_what_was_compressed() {
        let content = b"shoal".repeat(1000);
        let (chunk, stored) = compressed(&content);
        assert_eq!(decode_chunk(&chunk, &stored).unwrap(), content);
    }

    #[test]
    fn refuses_a_bomb_a_lie_and_a_stump() {
        let (chunk, stored) = compressed(&vec![7; 200_000]);
        let short = Chunk { length: 100_000, ..chunk };
        assert!(matches!(decode_chunk(&short, &stored), Err(ChunkError::Decompress { .. })));
        let long = Chunk { length: 200_001, ..chunk };
        assert!(matches!(decode_chunk(&long, &stored), Err(ChunkError::Decompress { .. })));
        let stump = &stored[..stored.len() - 1];
        assert!(matches!(decode_chunk(&chunk, stump), Err(ChunkError::Length { .. })));
        let other = Chunk { id: ChunkId::of(b"other"), ..chunk };
        assert!(matches!(decode_chunk(&other, &stored), Err(ChunkError::Hash { .. })));
    }
}
