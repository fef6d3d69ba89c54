//! Heads of which nothing is heard.
//!
//! A host that is gone says nothing: its connections break seconds later, and until then nobody
//! would bring in what it was to bring in. At 10 Gbit/s the whole may take less. A head says what it
//! has every millisecond in which anything comes; where this peer hears of others and not of it, its
//! duty falls to the others.
//!
//! Invariants: nobody is silent while nobody is heard, since then nothing comes to anybody, or this
//! peer itself had no turn; a head that comes back has its duty again, and the longer it was silent
//! the longer the next silence may be. Nobody is banned, nor disconnected.

use std::time::Duration;

use shoal_content::{PeerId, RecipeId};

use super::Swarm;
use super::standby::SILENCE;

/// A head of which nothing is heard for so long, or for so many times a chunk's usual time, is
/// silent; at most for as long as a node may be.
const SILENCE_MIN: Duration = Duration::from_millis(20);
const SILENCE_CHUNKS: u32 = 8;

impl Swarm {
    /// Leaves the duty of silent heads to the others.
    pub(super) fn hush_heads(&mut self, recipe: RecipeId) {
        let now = self.now;
        let Some(download) = self.peek(recipe).filter(|download| download.heads.has_duty()) else {
            return;
        };
        let neighbour = |peer: &PeerId| {
            let lacks = download.sources.get(peer).is_some_and(|source| !source.have.is_full());
            self.peers.get(peer).filter(|_| lacks).map(|found| (*peer, found.heard_at))
        };
        let heads = download.heads.others();
        let heard: Vec<(PeerId, Duration)> = heads.iter().filter_map(neighbour).collect();
        let Some(last) = heard.iter().map(|&(_, at)| at).max() else { return };
        let last = last.max(download.arrived_at);
        let patience = (download.usual() * SILENCE_CHUNKS).max(download.heads.pause);
        let patience = patience.clamp(SILENCE_MIN, SILENCE);
        let silent: Vec<PeerId> = heard
            .into_iter()
            .filter(|&(_, at)| last > at + patience)
            .map(|(peer, _)| peer)
            .collect();
        if let Some(download) = self.download(recipe) {
            silent.into_iter().for_each(|peer| download.heads.hush(now, peer));
        }
    }
}
