//! The node that is asked while the tracker is silent.
//!
//! A node that is gone says nothing: its connection breaks seconds later, and until then nobody
//! would bring anything in. Whoever had chunks from it, and waits for more in vain, shows its right
//! to the next node by rank, and asks that one until the tracker is heard of again or is lost.
//!
//! Invariants: a standby is asked only after it answered; who the heads are stays what the tracker
//! said, so that no two nodes give the same chunk to two of them. A node that never brought
//! anything is not silent: storage may take long for the first chunk.

use std::time::Duration;

use shoal_content::{PeerId, RecipeId};

use super::Swarm;
use super::mesh::Membership;
use super::requests::{LATE, STALL_NODE};
use crate::event::Action;
use crate::frames::Frame;
use crate::rendezvous::ranked;

/// A node from which nothing is heard for so long, or for twice a chunk's usual time, is silent.
/// Longer than a host that others keep busy has no turn, and storage takes for a chunk.
pub(super) const SILENCE: Duration = Duration::from_millis(600);

/// See the module's documentation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standby {
    node: PeerId,
    since: Duration,
    /// It knows of this peer's right.
    answered: bool,
}

impl Membership {
    /// The node that chunks are asked of.
    pub(super) fn giver(&self) -> Option<PeerId> {
        self.standby().or(self.tracker)
    }

    /// Nodes that were shown this peer's right, or told of it.
    pub(super) fn nodes(&self) -> impl Iterator<Item = PeerId> {
        let standby = self.standby.map(|standby| standby.node);
        self.tracker.into_iter().chain(standby)
    }

    /// The node that is asked in the tracker's place.
    pub(super) fn standby(&self) -> Option<PeerId> {
        let standby = self.standby.filter(|standby| standby.answered && self.tracker.is_some());
        standby.map(|standby| standby.node)
    }

    pub(super) fn lose_standby(&mut self, node: PeerId) {
        self.standby = self.standby.filter(|standby| standby.node != node);
    }
}

impl Swarm {
    /// Looks for another node where the tracker is silent, and lets it go where it is not.
    pub(super) fn stand_by(&mut self, recipe: RecipeId) {
        let Some(membership) = self.memberships.get(&recipe) else { return };
        let Some(tracker) = membership.tracker else { return };
        if let Some(standby) = membership.standby {
            if self.peers.get(&tracker).is_some_and(|peer| peer.heard_at > standby.since) {
                self.end_standby(recipe);
            }
            return;
        }
        if !self.is_silent(recipe, tracker) {
            return;
        }
        let since = self.now;
        let others = self.nodes.iter().map(|node| node.peer);
        let there = others.filter(|node| *node != tracker && self.peers.contains_key(node));
        let Some(&node) = ranked(recipe, there).first() else { return };
        if let Some(membership) = self.memberships.get_mut(&recipe) {
            membership.standby = Some(Standby { node, since, answered: false });
            self.actions.push_back(Action::Join { peer: node, recipe });
        }
    }

    pub(super) fn end_standby(&mut self, recipe: RecipeId) {
        let Some(membership) = self.memberships.get_mut(&recipe) else { return };
        let Some(standby) = membership.standby.take() else { return };
        if membership.tracker != Some(standby.node) && self.peers.contains_key(&standby.node) {
            self.send(standby.node, Frame::Leave { recipe });
        }
    }

    /// A node that was shown a right said something.
    pub(super) fn standby_answered(&mut self, recipe: RecipeId, from: PeerId) {
        let Some(membership) = self.memberships.get_mut(&recipe) else { return };
        if let Some(standby) = membership.standby.as_mut().filter(|standby| standby.node == from) {
            standby.answered = true;
        }
    }

    /// Whether something was asked of a node that brought chunks before, and nothing is heard.
    fn is_silent(&self, recipe: RecipeId, node: PeerId) -> bool {
        let usual = self.peek(recipe).map_or(Duration::ZERO, |download| download.usual());
        let patience = (usual * LATE).clamp(SILENCE, STALL_NODE);
        let quiet = |since: Duration| self.now > since + patience;
        // What waits for this host's own disk says nothing of the node.
        let mut of_it = self
            .requests
            .values()
            .filter(|one| one.peer == node && one.recipe == recipe && one.landing.is_none());
        self.peers.get(&node).is_some_and(|peer| !peer.brought_at.is_zero() && quiet(peer.heard_at))
            && of_it.any(|one| quiet(one.moved_at))
    }
}
