//! One recipe's mesh: whom this peer knows, joins and tells, and what it answers as a tracker.
//!
//! Invariants: a neighbour is joined once for each connection; at most [`KNOWN_MAX`] members of a
//! recipe are remembered, whoever names more.
//! Non-goal: what to ask of whom; see `requests`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_content::{PeerId, RecipeId};

use super::Swarm;
use super::requests::Request;
use crate::download::Download;
use crate::event::Action;
use crate::frames::{ChunkRange, Contact, Frame, RANGES_MAX};
use crate::rendezvous::ranked;

/// Neighbours wanted for one recipe.
const NEIGHBOURS: usize = 10;
/// Members remembered for one recipe.
const KNOWN_MAX: usize = 64;
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(5);
/// Between the tracker's answer and the first request to a node, so that members that start
/// together know each other.
const SETTLE: Duration = Duration::from_millis(150);

/// One recipe here: on its way, or only offered.
#[derive(Debug)]
pub(super) struct Membership {
    pub(super) download: Option<Download>,
    pub(super) known: BTreeMap<PeerId, Contact>,
    pub(super) joined: BTreeSet<PeerId>,
    pub(super) tracker: Option<PeerId>,
    pub(super) announce_at: Duration,
    pub(super) settled_at: Duration,
    pub(super) fresh: Vec<u32>,
}

impl Swarm {
    pub(super) fn know(&mut self, recipe: RecipeId, contact: Contact) {
        let node = self.nodes.iter().any(|node| node.peer == contact.peer);
        if contact.peer == self.settings.me || node {
            return;
        }
        if let Some(membership) = self.memberships.get_mut(&recipe)
            && (membership.known.len() < KNOWN_MAX || membership.known.contains_key(&contact.peer))
        {
            membership.known.insert(contact.peer, contact);
        }
    }

    /// Someone who came by itself is remembered in place of someone who is not there.
    fn know_present(&mut self, recipe: RecipeId, contact: Contact) {
        let Some(membership) = self.memberships.get_mut(&recipe) else { return };
        let known = &mut membership.known;
        if known.len() >= KNOWN_MAX && !known.contains_key(&contact.peer) {
            let absent = known.keys().find(|peer| !self.peers.contains_key(peer)).copied();
            let Some(absent) = absent else { return };
            known.remove(&absent);
        }
        known.insert(contact.peer, contact);
    }

    pub(super) fn joined(&mut self, peer: PeerId, recipe: RecipeId, have: &[ChunkRange]) {
        let Some(contact) = self.peers.get(&peer).map(|peer| peer.contact) else { return };
        if !self.memberships.contains_key(&recipe) {
            return self.track(peer, recipe, contact, true);
        }
        self.know_present(recipe, contact);
        let now = self.now;
        let Some(download) = self.download(recipe) else { return };
        let len = download.have.len();
        download.learn(now, peer, have.iter().flat_map(|range| range.within(len)));
        let mine = download.have.ranges();
        for chunks in mine.chunks(RANGES_MAX) {
            let frame = Frame::Have { recipe, chunks: chunks.to_vec() };
            self.actions.push_back(Action::Send { peer, frame });
        }
        self.claim_to(recipe, &[peer]);
    }

    /// Tells `to` what this peer is fetching from nodes.
    pub(super) fn claim_to(&mut self, recipe: RecipeId, to: &[PeerId]) {
        let from_node = |request: &&Request| {
            request.recipe == recipe && self.peers.get(&request.peer).is_some_and(|peer| peer.node)
        };
        let open = self.requests.values().filter(from_node).flat_map(|request| &request.open);
        let chunks = ChunkRange::gather(open.copied().collect::<BTreeSet<u32>>());
        if chunks.is_empty() {
            return;
        }
        for &peer in to {
            self.send(peer, Frame::Claim { recipe, chunks: chunks.clone() });
        }
    }

    /// The tracker's part: remembers the member, answers it, and tells some others.
    pub(super) fn track(&mut self, peer: PeerId, recipe: RecipeId, contact: Contact, wants: bool) {
        let new = self.tracker.announce(self.now, recipe, contact);
        let salt = self.draw();
        let contacts = self.tracker.some(recipe, peer, salt);
        if new {
            for other in &contacts {
                if self.peers.contains_key(&other.peer) {
                    let frame = Frame::Peers { recipe, contacts: vec![contact] };
                    self.actions.push_back(Action::Send { peer: other.peer, frame });
                }
            }
        }
        if wants {
            self.send(peer, Frame::Peers { recipe, contacts });
        }
    }

    pub(super) fn frame(&mut self, peer: PeerId, frame: Frame) {
        let Some(contact) = self.peers.get(&peer).map(|peer| peer.contact) else { return };
        let now = self.now;
        match frame {
            Frame::Have { recipe, chunks } => {
                if let Some(download) = self.download(recipe) {
                    let len = download.have.len();
                    download.learn(now, peer, chunks.iter().flat_map(|range| range.within(len)));
                }
            }
            Frame::Claim { recipe, chunks } => {
                if let Some(download) = self.download(recipe) {
                    let len = download.have.len();
                    download.claimed(peer, chunks.iter().flat_map(|range| range.within(len)));
                }
            }
            Frame::Announce { recipe } => self.track(peer, recipe, contact, false),
            Frame::Peers { recipe, contacts } => {
                for contact in contacts {
                    self.know(recipe, contact);
                }
                if let Some(membership) = self.memberships.get_mut(&recipe) {
                    membership.settled_at = membership.settled_at.min(now + SETTLE);
                }
            }
            Frame::Leave { recipe } => {
                self.tracker.leave(recipe, peer);
                if let Some(membership) = self.memberships.get_mut(&recipe) {
                    membership.known.remove(&peer);
                    membership.joined.remove(&peer);
                    if let Some(download) = &mut membership.download {
                        download.lose(peer);
                    }
                }
            }
            // The shell turns these into events of their own.
            Frame::Hello { .. } | Frame::Join { .. } => {}
        }
    }

    /// Joins (or announces) at the first node by rank that is connected; dials better ones.
    pub(super) fn announce(&mut self, recipe: RecipeId) {
        let Some(membership) = self.memberships.get(&recipe) else { return };
        if membership.announce_at > self.now || self.nodes.is_empty() {
            return;
        }
        let nodes: BTreeMap<PeerId, Contact> =
            self.nodes.iter().map(|&node| (node.peer, node)).collect();
        let order = ranked(recipe, nodes.keys().copied());
        let tracker = order.iter().copied().find(|node| self.peers.contains_key(node));
        let Some(tracker) = tracker else {
            nodes.values().for_each(|&node| self.dial(node));
            return;
        };
        let Some(membership) = self.memberships.get_mut(&recipe) else { return };
        membership.announce_at = self.now + ANNOUNCE_INTERVAL;
        membership.tracker = Some(tracker);
        let action = match &membership.download {
            Some(download) if !download.have.is_full() => {
                Action::Join { peer: tracker, recipe, have: Vec::new() }
            }
            _ => Action::Send { peer: tracker, frame: Frame::Announce { recipe } },
        };
        self.actions.push_back(action);
        // The others stand by, for when this one is lost.
        if self.download(recipe).is_some_and(|download| !download.have.is_full()) {
            nodes.values().for_each(|&node| self.dial(node));
        }
    }

    pub(super) fn tell_fresh(&mut self, recipe: RecipeId) {
        let Some(membership) = self.memberships.get_mut(&recipe) else { return };
        if membership.fresh.is_empty() {
            return;
        }
        let mut fresh = std::mem::take(&mut membership.fresh);
        fresh.sort_unstable();
        let sources = membership.download.iter().flat_map(|download| download.sources.keys());
        let to: BTreeSet<PeerId> = sources.chain(&membership.joined).copied().collect();
        let chunks = ChunkRange::gather(fresh);
        for peer in to {
            self.send(peer, Frame::Have { recipe, chunks: chunks.clone() });
        }
    }

    pub(super) fn gather_neighbours(&mut self, recipe: RecipeId) {
        let Some(membership) = self.memberships.get(&recipe) else { return };
        let known: Vec<Contact> = membership.known.values().copied().collect();
        let linked = known.iter().filter(|contact| self.peers.contains_key(&contact.peer)).count();
        let mut room = NEIGHBOURS.saturating_sub(linked);
        for contact in known {
            if !self.peers.contains_key(&contact.peer) {
                if room > 0 {
                    room -= 1;
                    self.dial(contact);
                }
                continue;
            }
            let Some(membership) = self.memberships.get_mut(&recipe) else { return };
            if membership.joined.insert(contact.peer) {
                let have = membership.download.as_ref().map(|d| d.have.ranges());
                let mut have = have.unwrap_or_default();
                // The rest follows as Have, in answer to theirs or when it is told anew.
                let rest = have.split_off(have.len().min(RANGES_MAX));
                self.actions.push_back(Action::Join { peer: contact.peer, recipe, have });
                for chunks in rest.chunks(RANGES_MAX) {
                    self.send(contact.peer, Frame::Have { recipe, chunks: chunks.to_vec() });
                }
            }
        }
    }
}
