//! Finds the old chunks that new content resembles.
//!
//! A rolling hash over 64 bytes passes through all old content; where its upper bits are zero, it is
//! kept with the chunk it was met in. Content decides which hashes are kept, so the same bytes are
//! found again wherever they stand. The more there is to remember, the fewer are kept.
//!
//! Invariant: at most [`SAMPLES_MAX`] hashes are remembered.

use std::collections::HashMap;

/// Hashes remembered.
const SAMPLES_MAX: usize = 1 << 20;
/// What they take: 17 bytes each in a table that is half full, and half as much while it grows.
pub(super) const TABLE_BYTES_MAX: usize = SAMPLES_MAX * 17 * 3;
/// One hash in so many bytes is kept where all fit, as a power of two.
const RATE_LOG_MIN: u32 = 7;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Samples {
    chunks: HashMap<u64, u32>,
    rate_log: u32,
}

impl Samples {
    /// For old content of so many bytes in all.
    pub fn new(bytes: u64) -> Self {
        let mut rate_log = RATE_LOG_MIN;
        // Twice as few as fit: content that repeats in one way keeps more than its share.
        while bytes >> rate_log > SAMPLES_MAX as u64 / 2 {
            rate_log += 1;
        }
        Self { chunks: HashMap::new(), rate_log }
    }

    pub fn remember(&mut self, chunk: u32, content: &[u8]) {
        let Self { chunks, rate_log } = self;
        sampled(content, *rate_log, |hash| {
            if chunks.len() < SAMPLES_MAX {
                chunks.entry(hash).or_insert(chunk);
            }
        });
    }

    /// How often each old chunk was met in `content`.
    pub fn count(&self, content: &[u8], hits: &mut HashMap<u32, u32>) {
        sampled(content, self.rate_log, |hash| {
            if let Some(chunk) = self.chunks.get(&hash) {
                *hits.entry(*chunk).or_default() += 1;
            }
        });
    }
}

fn sampled(content: &[u8], rate_log: u32, mut take: impl FnMut(u64)) {
    let (mut hash, shift) = (0u64, 64 - rate_log);
    for (at, byte) in content.iter().enumerate() {
        hash = (hash << 1).wrapping_add(GEAR[usize::from(*byte)]);
        if hash >> shift == 0 && at >= 63 {
            take(hash);
        }
    }
}

/// A fixed random number for each byte (splitmix64).
static GEAR: [u64; 256] = {
    let mut table = [0; 256];
    let (mut at, mut state) = (0, 0x5348_4f41_4c44_4c54u64);
    while at < 256 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        table[at] = mixed ^ (mixed >> 31);
        at += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn finds_moved_content_by_the_chunk_it_came_from() {
        let mut samples = Samples::new(2_000_000);
        for chunk in 0..20 {
            samples.remember(chunk, &noise(u64::from(chunk), 100_000));
        }
        let moved = [&noise(99, 5_001)[..], &noise(7, 100_000)[30_000..60_000]].concat();
        let mut hits = HashMap::new();
        samples.count(&moved, &mut hits);
        assert_eq!(hits.keys().copied().collect::<Vec<_>>(), [7]);
        assert!(hits[&7] > 100, "one in 128 bytes is known: {hits:?}");
    }

    #[test]
    fn remembers_no_more_than_it_may() {
        let samples = Samples::new(1 << 40);
        assert!((1u64 << 40) >> samples.rate_log <= SAMPLES_MAX as u64 / 2);
    }
}
