//! Rendezvous hashing: everybody who knows the same members names the same one for a thing.

use shoal_content::{PeerId, RecipeId};

/// SplitMix64's finaliser (Steele, Lea and Flood 2014): spreads every bit over all.
pub(crate) const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

pub(crate) fn word(bytes: &[u8; 32]) -> u64 {
    bytes.chunks_exact(8).fold(0, |sum, part| {
        mix(sum ^ part.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    })
}

/// How much `peer` is the one for chunk `index` of `recipe`; the highest is.
pub(crate) fn weight(peer: PeerId, recipe: RecipeId, index: u32) -> u64 {
    mix(word(peer.as_public_key()) ^ mix(word(recipe.as_bytes()) ^ u64::from(index)))
}

/// `peers` in the order in which they are the ones for `recipe`.
pub fn ranked(recipe: RecipeId, peers: impl IntoIterator<Item = PeerId>) -> Vec<PeerId> {
    let mut all: Vec<PeerId> = peers.into_iter().collect();
    all.sort_by_key(|&peer| (std::cmp::Reverse(weight(peer, recipe, u32::MAX)), peer));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_spread_evenly_and_a_loss_moves_only_the_losers() {
        let peers: Vec<_> = (0..8).map(|n| PeerId::from_public_key([n; 32])).collect();
        let recipe = RecipeId::of(b"r");
        let best = |among: &[PeerId], index| {
            among.iter().copied().max_by_key(|&peer| weight(peer, recipe, index)).unwrap()
        };
        for &peer in &peers {
            let share = (0..8000).filter(|&index| best(&peers, index) == peer).count();
            assert!((800..1200).contains(&share), "{share} of 8000 for one of eight");
        }
        for index in (0..8000).filter(|&index| best(&peers, index) != peers[7]) {
            assert_eq!(best(&peers, index), best(&peers[..7], index));
        }
        assert_eq!(ranked(recipe, peers.clone()).len(), 8);
    }
}
