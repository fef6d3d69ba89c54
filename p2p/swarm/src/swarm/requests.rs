//! Requests for chunks: made, answered, late, and made again elsewhere.
//!
//! Invariants: every request ends exactly once; one that brings nothing for its deadline is cut
//! and its chunks are free again.

use std::collections::BTreeSet;
use std::time::Duration;

use shoal_content::{PeerId, RecipeId};

use super::peers::COOLDOWN_MIN;
use super::peers::expected;
use super::{RequestId, STEP, Swarm};
use crate::download::{From, REQUESTS_PER_SOURCE, TAKE_OVER};
use crate::event::{Action, RequestEnd};
use crate::frames::{ChunkRange, Frame};

/// A request that brings nothing for so long is cut, or for four times the expected time.
pub(super) const STALL_PEER: Duration = Duration::from_secs(1);
/// The same for a node, which may have to ask storage.
const STALL_NODE: Duration = Duration::from_secs(4);

#[derive(Debug)]
pub(super) struct Request {
    pub(super) peer: PeerId,
    pub(super) recipe: RecipeId,
    pub(super) open: Vec<u32>,
    pub(super) moved_at: Duration,
}

impl Swarm {
    pub(super) fn arrived(&mut self, id: RequestId, index: u32, bytes: u32) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        let took = (self.now - request.moved_at).as_secs_f64().max(1e-4);
        request.moved_at = self.now;
        request.open.retain(|&open| open != index);
        let recipe = request.recipe;
        if let Some(peer) = self.peers.get_mut(&request.peer) {
            let rate = f64::from(bytes) / took;
            peer.rate = if peer.rate == 0.0 { rate } else { peer.rate * 0.8 + rate * 0.2 };
            peer.cooldown = COOLDOWN_MIN;
        }
        let now = self.now;
        let Some(membership) = self.memberships.get_mut(&recipe) else { return };
        let Some(download) = &mut membership.download else { return };
        download.end(&[index]);
        if !download.arrived(now, index) {
            return;
        }
        membership.fresh.push(index);
        if download.have.is_full() {
            self.actions.push_back(Action::Complete { recipe });
        }
        self.cancel_redundant(recipe);
    }

    /// The endgame's losers: requests all of whose chunks came from elsewhere.
    pub(super) fn cancel_redundant(&mut self, recipe: RecipeId) {
        let Some(download) = self.memberships.get(&recipe).and_then(|m| m.download.as_ref()) else {
            return;
        };
        let useless = |request: &Request| {
            request.recipe == recipe
                && !request.open.is_empty()
                && request.open.iter().all(|&index| download.have.contains(index))
        };
        let losers: Vec<RequestId> = self
            .requests
            .iter()
            .filter(|(_, request)| useless(request))
            .map(|(&id, _)| id)
            .collect();
        for request in losers {
            self.drop_request(request, true);
        }
    }

    pub(super) fn ended(&mut self, id: RequestId, end: RequestEnd) {
        let Some(request) = self.requests.get(&id) else { return };
        let (peer, unmet) = (request.peer, !request.open.is_empty());
        self.drop_request(id, false);
        if end != RequestEnd::Done || unmet {
            self.cool(peer);
        }
    }

    pub(super) fn drop_request(&mut self, id: RequestId, cancel: bool) {
        let Some(request) = self.requests.remove(&id) else { return };
        if let Some(peer) = self.peers.get_mut(&request.peer) {
            peer.requests -= 1;
        }
        if let Some(download) = self.download(request.recipe) {
            download.end(&request.open);
        }
        if cancel {
            self.actions.push_back(Action::Cancel { request: id });
        }
    }

    pub(super) fn cut_stalls(&mut self) {
        let stalled = |request: &Request| {
            let Some(peer) = self.peers.get(&request.peer) else { return true };
            let least = if peer.node { STALL_NODE } else { STALL_PEER };
            self.now > request.moved_at + least.max(expected(peer) * 4)
        };
        let late: Vec<(RequestId, PeerId)> = self
            .requests
            .iter()
            .filter(|(_, request)| stalled(request))
            .map(|(&id, request)| (id, request.peer))
            .collect();
        for (request, peer) in late {
            self.drop_request(request, true);
            self.cool(peer);
        }
    }

    pub(super) fn ready(&self, peer: PeerId) -> bool {
        self.peers.get(&peer).is_some_and(|found| {
            found.requests < REQUESTS_PER_SOURCE && found.cool_until <= self.now
        })
    }

    pub(super) fn ask(&mut self, recipe: RecipeId) {
        let Some(membership) = self.memberships.get(&recipe) else { return };
        let Some(download) = &membership.download else { return };
        let mut sources: Vec<PeerId> = download
            .sources
            .keys()
            .filter(|peer| membership.joined.contains(peer))
            .copied()
            .collect();
        let settled = membership.settled_at <= self.now;
        let tracker = membership.tracker;
        let start = self.draw() as usize % sources.len().max(1);
        sources.rotate_left(start);
        for peer in sources {
            while self.ready(peer) && self.ask_one(recipe, peer, From::Peer(peer)) {}
            if self.ready(peer) {
                self.ask_again(recipe, peer);
            }
        }
        let Some(node) = tracker.filter(|_| settled) else { return };
        while self.ready(node) && self.ask_one(recipe, node, From::Node) {}
        let idle = self.download(recipe).is_some_and(|download| download.in_flight() == 0);
        let last = self.download(recipe).map_or(Duration::ZERO, |download| download.progress_at);
        if idle && self.now >= last + TAKE_OVER && self.ready(node) {
            self.ask_one(recipe, node, From::NodeUnasked);
        }
    }

    pub(super) fn ask_one(&mut self, recipe: RecipeId, peer: PeerId, from: From) -> bool {
        let (now, me, draw) = (self.now, self.settings.me, self.draw());
        let Some(download) = self.download(recipe) else { return false };
        let indices = download.choose(now, me, from, draw);
        self.request(recipe, peer, indices, !matches!(from, From::Peer(_)))
    }

    /// The endgame: everything is under way; what is later than twice the expected time is asked
    /// of a second source, and whoever is first cancels the other.
    pub(super) fn ask_again(&mut self, recipe: RecipeId, peer: PeerId) {
        let late = |request: &&Request| {
            request.recipe == recipe
                && request.peer != peer
                && self.peers.get(&request.peer).is_some_and(|found| {
                    self.now > request.moved_at + (expected(found) * 2).max(STEP)
                })
        };
        let late: BTreeSet<u32> =
            self.requests.values().filter(late).flat_map(|request| request.open.clone()).collect();
        let Some(download) = self.download(recipe).filter(|download| download.all_under_way())
        else {
            return;
        };
        let indices = download.choose_again(peer, &late);
        self.request(recipe, peer, indices, false);
    }

    pub(super) fn request(
        &mut self,
        recipe: RecipeId,
        peer: PeerId,
        indices: Vec<u32>,
        claim: bool,
    ) -> bool {
        if indices.is_empty() {
            return false;
        }
        let now = self.now;
        let Some(download) = self.download(recipe) else { return false };
        download.begin(&indices);
        let neighbours: Vec<PeerId> = download.sources.keys().copied().collect();
        self.next_request += 1;
        let id = self.next_request;
        if let Some(found) = self.peers.get_mut(&peer) {
            found.requests += 1;
        }
        let request = Request { peer, recipe, open: indices.clone(), moved_at: now };
        self.requests.insert(id, request);
        if claim {
            let chunks = ChunkRange::gather(indices.iter().copied());
            for to in neighbours {
                self.send(to, Frame::Claim { recipe, chunks: chunks.clone() });
            }
        }
        self.actions.push_back(Action::Request { request: id, peer, recipe, indices });
        true
    }
}
