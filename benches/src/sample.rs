//! Content to move: incompressible, and the same for the same seed.

/// `length` bytes that follow from `seed` (BLAKE3 in its extendable-output mode).
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
