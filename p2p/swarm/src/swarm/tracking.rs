//! Both ends of tracking: a member's announcements, and a node's answers.
//!
//! Invariant: a transfer goes on when trackers are lost: neighbours are named by neighbours, and
//! heads that nobody replaces are replaced by those who wait too long (see `requests`).

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_content::{PeerId, RecipeId};

use super::Swarm;
use crate::event::Action;
use crate::frames::{Contact, Frame, Member};
use crate::rendezvous::ranked;

const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(5);
/// The same of what is only offered, where no neighbour lacks any of it: the connection's end says
/// that a member is gone.
const OFFER_INTERVAL: Duration = Duration::from_secs(120);
/// An announcement because nothing comes.
pub(super) const ANNOUNCE_AGAIN: Duration = Duration::from_millis(500);
/// So long a node may take to be reached before members do without.
const NODE_PATIENCE: Duration = Duration::from_secs(1);
/// So long the outcome of dialling the first node by rank is waited for: members with different
/// trackers would not know of each other, and each node would send a copy.
const DIAL_OUTCOME: Duration = Duration::from_secs(2);
/// Changes of heads are gathered for so long before they are told.
const HEADS_INTERVAL: Duration = Duration::from_millis(2);

impl Swarm {
    /// Joins (or announces) at the first node by rank that can be reached.
    pub(super) fn announce(&mut self, recipe: RecipeId) {
        let now = self.now;
        let Some(membership) = self.memberships.get_mut(&recipe) else { return };
        if membership.announce_at > now {
            return;
        }
        let interval = if membership.is_lively() { ANNOUNCE_INTERVAL } else { OFFER_INTERVAL };
        membership.announce_at = now + interval;
        let under_way = membership.is_under_way();
        self.gossip(recipe);
        if self.nodes.is_empty() {
            return self.lead_alone(recipe);
        }
        let nodes: BTreeMap<PeerId, Contact> =
            self.nodes.iter().map(|&node| (node.peer, node)).collect();
        let order = ranked(recipe, nodes.keys().copied());
        let tracker = self.first_reachable(recipe, &order);
        // The others stand by, for when this one is lost.
        if under_way || tracker.is_none() {
            nodes.values().for_each(|&node| self.dial(node));
        }
        let Some(membership) = self.memberships.get_mut(&recipe) else { return };
        let before = std::mem::replace(&mut membership.tracker, tracker);
        let Some(tracker) = tracker else {
            // The connection's event, or the failure's, makes it due at once.
            membership.announce_at = now + NODE_PATIENCE;
            let alone = now >= membership.alone_since + NODE_PATIENCE;
            if alone && !order.iter().any(|node| self.peers.contains_key(node)) {
                self.lead_alone(recipe);
            }
            return;
        };
        if let Some(before) = before.filter(|&before| before != tracker) {
            self.send(before, Frame::Leave { recipe });
        }
        if before != Some(tracker) {
            self.end_standby(recipe);
        }
        let Some(membership) = self.memberships.get_mut(&recipe) else { return };
        if std::mem::take(&mut membership.leads_alone)
            && let Some(download) = &mut membership.download
        {
            download.heads.set(now, Vec::new(), Vec::new());
        }
        let action = if under_way {
            Action::Join { peer: tracker, recipe }
        } else {
            Action::Send { peer: tracker, frame: Frame::Announce { recipe } }
        };
        self.actions.push_back(action);
    }

    /// Not now: too much else is announced.
    pub(super) fn put_off_announcing(&mut self, recipe: RecipeId, wait: Duration) {
        let at = self.now + wait;
        if let Some(membership) = self.memberships.get_mut(&recipe) {
            membership.announce_at = membership.announce_at.max(at);
        }
    }

    /// The first of `order` that is connected, unless one before it may be soon.
    fn first_reachable(&self, recipe: RecipeId, order: &[PeerId]) -> Option<PeerId> {
        let since = self.memberships.get(&recipe)?.alone_since;
        for &node in order {
            if self.peers.contains_key(&node) {
                return Some(node);
            }
            let failed = self.redials.get(&node).is_some_and(|redial| !redial.pause.is_zero());
            if !failed && self.now < since + DIAL_OUTCOME {
                return None;
            }
        }
        None
    }

    /// A node came, or will not come: it is decided anew where it may be the tracker.
    pub(super) fn node_changed(&mut self, node: PeerId) {
        for (&recipe, membership) in &mut self.memberships {
            let ranks_before = |tracker| ranked(recipe, [node, tracker])[0] == node;
            if membership.tracker.is_none_or(ranks_before) {
                membership.announce_at = self.now;
            }
        }
        self.wake_by(self.now);
    }

    /// Where no node is known or reached, whoever is there shares the duty.
    fn lead_alone(&mut self, recipe: RecipeId) {
        let (now, me) = (self.now, self.settings.me);
        let Some(membership) = self.memberships.get_mut(&recipe) else { return };
        membership.leads_alone = true;
        let Some(download) = &mut membership.download else { return };
        let near = download.sources.iter().filter(|(_, s)| s.near && !s.have.is_full());
        let room: Vec<PeerId> = near.map(|(&peer, _)| peer).chain([me]).collect();
        download.heads.set(now, room.iter().map(|&peer| (peer, true)).collect(), room);
    }

    /// Names some neighbours to one of them.
    fn gossip(&mut self, recipe: RecipeId) {
        let draw = self.draw();
        let Some(download) = self.download(recipe) else { return };
        let count = download.sources.len().max(1);
        let Some(&to) = download.sources.keys().nth(draw as usize % count) else { return };
        let members = self.some_known(recipe, to);
        if !members.is_empty() {
            self.send(to, Frame::Peers { recipe, members });
        }
    }

    /// The tracker's part: remembers the member, answers it, and tells some others.
    pub(super) fn track(&mut self, peer: PeerId, recipe: RecipeId, member: Member, wants: bool) {
        let new = self.tracker.announce(self.now, recipe, member.clone());
        let salt = self.draw();
        let members = self.tracker.some(recipe, peer, salt);
        if new {
            for other in &members {
                let other = other.contact.peer;
                if self.peers.contains_key(&other) {
                    self.send(other, Frame::Peers { recipe, members: vec![member.clone()] });
                }
            }
        }
        if wants {
            self.send(peer, Frame::Peers { recipe, members });
            if let Some((whole, room)) = self.tracker.heads(recipe, peer) {
                self.send(peer, Frame::Heads { recipe, whole, room });
            }
        }
        self.tell_heads_soon();
    }

    pub(super) fn untrack(&mut self, peer: PeerId, recipe: RecipeId) {
        self.tracker.leave(recipe, peer);
        self.tell_heads_soon();
    }

    pub(super) fn tell_heads_soon(&mut self) {
        if self.tracker.has_changes() && self.tell_heads_at.is_none() {
            let at = self.now + HEADS_INTERVAL;
            self.tell_heads_at = Some(at);
            self.wake_by(at);
        }
    }

    pub(super) fn tell_heads(&mut self) {
        self.tell_heads_at = None;
        for (recipe, heads) in self.tracker.changes() {
            for head in
                heads.into_iter().filter(|head| self.peers.contains_key(head)).collect::<Vec<_>>()
            {
                if let Some((whole, room)) = self.tracker.heads(recipe, head) {
                    self.send(head, Frame::Heads { recipe, whole, room });
                }
            }
        }
    }

    /// A tracker says who the heads are; only this recipe's may.
    pub(super) fn heads(
        &mut self,
        from: PeerId,
        recipe: RecipeId,
        whole: Vec<Member>,
        room: Vec<Member>,
    ) {
        let tracker = self.memberships.get(&recipe).and_then(|membership| membership.tracker);
        if tracker != Some(from) {
            return;
        }
        let now = self.now;
        let place = |member: &Member| (member.contact.peer, self.is_near(&member.zone));
        let ids: Vec<(PeerId, bool)> = whole.iter().map(place).collect();
        let near: Vec<PeerId> = room.iter().map(|member| member.contact.peer).collect();
        // Nobody waits for a neighbour that is none.
        let all = ids.iter().map(|&(peer, _)| peer).chain(near.iter().copied());
        let banned: Vec<PeerId> = all.filter(|&peer| self.is_banned(peer)).collect();
        let Some(download) = self.download(recipe) else { return };
        download.heads.set(now, ids, near);
        banned.into_iter().for_each(|peer| download.heads.lose(peer));
        whole.into_iter().chain(room).for_each(|member| self.know_head(recipe, member));
        self.gather_soon(recipe);
        self.ask_nodes(recipe);
    }
}
