//! Randomness that a seed replays, and which seeds to try.

use std::ops::Range;

/// SplitMix64 (Steele, Lea and Flood 2014).
pub struct Draw(pub u64);

impl Draw {
    /// Below `end`, or 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % end.max(1)
    }
}

/// `usual` seeds from 1 on, or what `SHOAL_FUZZ_SEEDS` and `SHOAL_FUZZ_SEED` say.
pub fn seeds(usual: u64) -> Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<u64>().ok());
    let first = number("SHOAL_FUZZ_SEED").unwrap_or(1);
    first..first + number("SHOAL_FUZZ_SEEDS").unwrap_or(usual)
}
