//! Upload slots: how many requests are answered at once, and how many of one peer's.
//!
//! Invariant: a refusal is said at once (Busy); nobody queues here.

use std::collections::BTreeMap;

use shoal_content::PeerId;

/// Requests answered at once.
pub const UPLOADS_MAX: usize = 64;
/// Of them for one peer.
pub const UPLOADS_PER_PEER_MAX: usize = 8;

#[derive(Debug, Default)]
pub struct Uploads {
    by_peer: BTreeMap<PeerId, usize>,
    total: usize,
}

impl Uploads {
    /// Takes a slot for `peer`, or says that there is none.
    pub fn begin(&mut self, peer: PeerId) -> bool {
        let mine = self.by_peer.get(&peer).copied().unwrap_or(0);
        if self.total >= UPLOADS_MAX || mine >= UPLOADS_PER_PEER_MAX {
            return false;
        }
        self.by_peer.insert(peer, mine + 1);
        self.total += 1;
        true
    }

    /// Gives back a slot that [`Self::begin`] gave.
    pub fn end(&mut self, peer: PeerId) {
        if let Some(mine) = self.by_peer.get_mut(&peer) {
            *mine -= 1;
            self.total -= 1;
            if *mine == 0 {
                self.by_peer.remove(&peer);
            }
        }
    }

    pub fn total(&self) -> usize {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_cannot_take_all_slots() {
        let mut uploads = Uploads::default();
        let peer = |n| PeerId::from_public_key([n; 32]);
        let taken = (0..100).filter(|_| uploads.begin(peer(1))).count();
        assert_eq!(taken, UPLOADS_PER_PEER_MAX);
        assert!(uploads.begin(peer(2)));
        uploads.end(peer(1));
        assert!(uploads.begin(peer(1)));
        assert_eq!(uploads.total(), UPLOADS_PER_PEER_MAX + 1);
    }
}
