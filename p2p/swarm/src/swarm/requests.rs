//! Requests for chunks: made, answered, late, and made again elsewhere.
//!
//! A request is as long as its source sends in [`RUN_TIME`] (or four round trips), so that what
//! it brings can be passed on soon. A source that is busy calls when it has a slot.
//!
//! Invariants: every request ends exactly once; one that brings nothing for its deadline is cut
//! and its chunks are free again.

use std::collections::BTreeSet;
use std::time::Duration;

use shoal_content::{PeerId, RecipeId};

use super::mesh::Membership;
use super::peers::Peer;
use super::tracking::ANNOUNCE_AGAIN;
use super::{RequestId, STEP_MIN, Swarm};
use crate::download::{Download, Wanted};
use crate::event::{Action, RequestEnd};
use crate::frames::{ChunkRange, Frame, RUN_CHUNKS_MAX};
use crate::uploads::{SLOTS_MIN, at_once};

/// A request that brings nothing for so long is cut, or for four times the expected time.
const STALL_PEER: Duration = Duration::from_secs(1);
/// The same for a node, which may have to ask storage.
pub(super) const STALL_NODE: Duration = Duration::from_secs(4);
/// Nor is it cut before so many times the usual time of one chunk.
const STALL_CHUNKS: u32 = 3;
/// So many stalls in a row, with nothing arriving at all, double the deadline.
const CUTS_PER_DOUBLING: u32 = 6;
/// A source that is busy and does not call is asked again after so long.
const BUSY_RETRY: Duration = Duration::from_millis(500);
/// What one request brings should take so long, and at least so many round trips.
const RUN_TIME: Duration = Duration::from_millis(2);
const RUN_ROUND_TRIPS: u32 = 4;
/// Requests under way at one source: one is answered while the next travels. With few sources
/// there are more, so that together they are as many.
const REQUESTS_MIN: usize = 2;
const REQUESTS_MAX: usize = 8;
const REQUESTS_ALL: usize = 16;
/// Sources at which this peer waits for a slot.
const WAITING_MAX: usize = 8;
/// What takes so many times as long as usual is late, and is asked of another, too.
pub(super) const LATE: u32 = 2;
const VERY_LATE: u32 = 4;

#[derive(Debug)]
pub(super) struct Request {
    pub(super) peer: PeerId,
    pub(super) recipe: RecipeId,
    pub(super) open: Vec<u32>,
    pub(super) moved_at: Duration,
    /// From a node, or from another room.
    brings_in: bool,
    /// It was late once already.
    hedged: bool,
    /// A chunk of it is here and being written; what is behind it waits for that.
    pub(super) landing: Option<u32>,
}

impl Swarm {
    /// A chunk is here before it is written: nobody else need send it any more.
    pub(super) fn landed(&mut self, id: RequestId, index: u32, bytes: u32) {
        let Some(recipe) = self.land(id, index, bytes) else { return };
        if self.peek(recipe).is_some_and(|download| download.is_doubled(index)) {
            self.cancel_redundant(recipe);
        }
    }

    /// What its sender had to do is done; the disk's time is not its own. Gives the recipe, where the
    /// chunk is one that the request was to bring.
    fn land(&mut self, id: RequestId, index: u32, bytes: u32) -> Option<RecipeId> {
        let now = self.now;
        let request = self.requests.get_mut(&id)?;
        if request.landing.is_some() || !request.open.contains(&index) {
            return None;
        }
        let took = (now - request.moved_at).as_secs_f64();
        let (recipe, from, asked_at) = (request.recipe, request.peer, request.moved_at);
        let brought_in = request.brings_in;
        request.landing = Some(index);
        request.moved_at = now;
        let was_late = std::mem::take(&mut request.hedged);
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.owes -= usize::from(was_late);
            // The connection brought others before: this one did not take all the time.
            peer.brought(bytes, now - asked_at.max(peer.brought_at));
            (peer.brought_at, peer.heard_at) = (now, now);
            peer.praise();
        }
        self.cuts = 0;
        let download = self.download(recipe)?;
        download.measure(took, bytes, brought_in);
        download.landed(index);
        download.heads.hear(now, from);
        Some(recipe)
    }

    pub(super) fn arrived(&mut self, id: RequestId, index: u32, bytes: u32) {
        let now = self.now;
        if self.requests.get(&id).is_some_and(|request| request.landing.is_none()) {
            self.land(id, index, bytes);
        }
        let Some(request) = self.requests.get_mut(&id) else { return };
        let (recipe, from) = (request.recipe, request.peer);
        let Some(place) = request.open.iter().position(|&open| open == index) else { return };
        request.open.remove(place);
        request.landing = request.landing.filter(|&landing| landing != index);
        request.moved_at = now;
        let Some(membership) = self.memberships.get_mut(&recipe) else { return };
        let Some(download) = &mut membership.download else { return };
        let doubled = download.is_doubled(index);
        self.meter.count(now, u64::from(bytes));
        self.pace.count(now, u64::from(bytes));
        download.end(&[index]);
        if !download.arrived(now, from, index) {
            return;
        }
        download.heads.arrived(index);
        membership.fresh.push(index);
        if download.have.is_full() {
            membership.announce_at = now;
            self.under_way.remove(&recipe);
            self.actions.push_back(Action::Complete { recipe });
            self.wake_by(now);
        }
        let full = !self.under_way.contains(&recipe);
        self.tell_fresh(recipe);
        if doubled || full {
            self.cancel_redundant(recipe);
        }
    }

    /// The node gave it to somebody else.
    pub(super) fn elsewhere(&mut self, id: RequestId, index: u32, by: PeerId) {
        let now = self.now;
        let Some(request) = self.requests.get_mut(&id) else { return };
        let (recipe, from) = (request.recipe, request.peer);
        let Some(place) = request.open.iter().position(|&open| open == index) else { return };
        request.open.remove(place);
        request.moved_at = now;
        let was_late = std::mem::take(&mut request.hedged);
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.owes -= usize::from(was_late);
        peer.heard_at = now;
        let node = peer.node;
        let Some(download) = self.download(recipe) else { return };
        download.end(&[index]);
        if node {
            download.put_off(now, index, by);
        }
    }

    /// Ends requests all of whose chunks came from elsewhere.
    fn cancel_redundant(&mut self, recipe: RecipeId) {
        let Some(download) = self.peek(recipe) else { return };
        let of_it = self.requests.values().filter(|request| request.recipe == recipe);
        let landing: BTreeSet<u32> = of_it.filter_map(|request| request.landing).collect();
        let is_held = |index: &u32| download.have.contains(*index);
        let is_here = |index: &u32| is_held(index) || landing.contains(index);
        let useless = |request: &Request| {
            let open = &request.open;
            let all_here = request.landing.is_none() && open.iter().all(is_here);
            request.recipe == recipe && !open.is_empty() && (all_here || open.iter().all(is_held))
        };
        let losers = self.requests.iter().filter(|(_, request)| useless(request));
        let losers: Vec<(RequestId, PeerId)> = losers.map(|(&id, r)| (id, r.peer)).collect();
        for (request, peer) in losers {
            self.drop_request(request, true);
            self.ask(recipe, peer);
        }
    }

    pub(super) fn ended(&mut self, id: RequestId, end: RequestEnd) {
        let Some(request) = self.requests.get(&id) else { return };
        let (peer, recipe, unmet) = (request.peer, request.recipe, !request.open.is_empty());
        if let Some(found) = self.peers.get_mut(&peer) {
            found.heard_at = self.now;
        }
        let freed = self.drop_request(id, false);
        let source = self.download(recipe).and_then(|download| download.sources.get(&peer));
        let near = source.is_some_and(|source| source.near);
        match end {
            RequestEnd::Busy => {
                let now = self.now;
                if let Some(download) = self.download(recipe) {
                    download.refused(now, peer);
                }
                if let Some(found) = self.peers.get_mut(&peer) {
                    found.busy_until = self.now + BUSY_RETRY;
                    if near {
                        self.waiting.insert(peer);
                    }
                }
            }
            RequestEnd::Done if !unmet => return self.ask(recipe, peer),
            // It dropped what it held, as caches do, and is asked again once it says that it has
            // some. That counts against nobody but a node, which holds everything.
            RequestEnd::Absent if self.peers.get(&peer).is_some_and(|peer| !peer.node) => {
                if let Some(download) = self.download(recipe) {
                    download.lose(peer);
                }
            }
            RequestEnd::Done | RequestEnd::Absent | RequestEnd::Failed => self.cool(peer),
        }
        if freed {
            self.ask_all(recipe);
        }
    }

    /// Whether chunks are free again.
    pub(super) fn drop_request(&mut self, id: RequestId, cancel: bool) -> bool {
        let Some(request) = self.requests.remove(&id) else { return false };
        if let Some(peer) = self.peers.get_mut(&request.peer) {
            peer.requests -= 1;
            peer.owes -= usize::from(request.hedged);
        }
        if cancel {
            self.actions.push_back(Action::Cancel { request: id });
        }
        self.download(request.recipe).is_some_and(|download| download.end(&request.open))
    }

    pub(super) fn cut_stalls(&mut self) {
        let stalled = |request: &Request| {
            if request.landing.is_some() {
                return false;
            }
            let Some(peer) = self.peers.get(&request.peer) else { return true };
            let least = if peer.node { STALL_NODE } else { STALL_PEER };
            let least = least * (1 << (self.cuts / CUTS_PER_DOUBLING).min(4));
            let chunks = request.open.len() as f64 * self.chunk_bytes(request.recipe);
            // Where chunks take long from everybody, this peer's own line is slow.
            let usual = self.usual(request.recipe) * STALL_CHUNKS;
            self.now > request.moved_at + least.max(expected(peer, chunks) * 4).max(usual)
        };
        let late: Vec<(RequestId, PeerId, RecipeId, Duration)> = self
            .requests
            .iter()
            .filter(|(_, request)| stalled(request))
            .map(|(&id, request)| (id, request.peer, request.recipe, request.moved_at))
            .collect();
        self.cuts = self.cuts.saturating_add(late.len() as u32);
        for &(request, peer, _, since) in &late {
            self.drop_request(request, true);
            self.stalled(peer, since);
        }
        // Only now is it known whom not to ask.
        let recipes: BTreeSet<RecipeId> =
            late.into_iter().map(|(_, _, recipe, _)| recipe).collect();
        recipes.into_iter().for_each(|recipe| self.ask_all(recipe));
    }

    fn chunk_bytes(&self, recipe: RecipeId) -> f64 {
        self.peek(recipe).map_or(1.0, |download| download.chunk_bytes)
    }

    /// The usual time of a chunk, or nothing before the first.
    fn usual(&self, recipe: RecipeId) -> Duration {
        let known = self.peek(recipe).filter(|download| download.usual > 0.0);
        known.map_or(Duration::ZERO, Download::usual)
    }

    /// It calls: a slot is free here.
    pub(super) fn freed(&mut self, peer: PeerId) {
        let Some(found) = self.peers.get_mut(&peer) else { return };
        let (before, node) = (found.requests, found.node);
        found.busy_until = Duration::ZERO;
        self.waiting.remove(&peer);
        for recipe in self.under_way.iter().copied().collect::<Vec<_>>() {
            if node { self.ask_nodes(recipe) } else { self.ask(recipe, peer) }
        }
        if self.peers.get(&peer).is_some_and(|found| found.requests <= before) {
            self.send(peer, Frame::Pass);
        }
    }

    fn is_ready(&self, peer: PeerId, most: usize) -> bool {
        self.peers.get(&peer).is_some_and(|found| {
            found.requests < most
                && found.owes == 0
                && found.cool_until.max(found.busy_until) <= self.now
        })
    }

    /// Chunks that one request to `peer` should have.
    fn run(&self, recipe: RecipeId, peer: PeerId) -> usize {
        let Some(found) = self.peers.get(&peer) else { return 1 };
        let time = RUN_TIME.max(found.rtt * RUN_ROUND_TRIPS).as_secs_f64();
        let chunks = found.rate() * time / self.chunk_bytes(recipe);
        (chunks as usize).clamp(1, RUN_CHUNKS_MAX)
    }

    /// Asks one neighbour for all that it should be asked for now.
    pub(super) fn ask(&mut self, recipe: RecipeId, peer: PeerId) {
        let Some(membership) = self.memberships.get(&recipe) else { return };
        let Some(download) = membership.download.as_ref().filter(|_| membership.is_under_way())
        else {
            return;
        };
        let Some(source) = download.sources.get(&peer) else {
            if self.peers.get(&peer).is_some_and(|peer| peer.node) {
                self.ask_nodes(recipe);
            }
            return;
        };
        // Most are busy, so that is looked at first.
        let most = requests_at_once(download);
        if !self.is_ready(peer, most) || !membership.joined.contains(&peer) {
            return;
        }
        if source.near && self.is_full(download.usual() * LATE) {
            return;
        }
        self.ask_source(recipe, peer, Some(peer), most, false);
    }

    /// Whether as many requests are under way in the room as the line takes at once. More would
    /// only make each slower, and take slots from those who have fewer. What is late does not count;
    /// nor does what is brought in: many wait for the same few lines, so that it trickles.
    fn is_full(&self, patience: Duration) -> bool {
        let most = at_once(SLOTS_MIN, &self.meter);
        if self.waiting.len() >= WAITING_MAX {
            return true;
        }
        if self.requests.len() < most {
            return false;
        }
        let counts = |request: &&Request| {
            let late = request.landing.is_none() && self.now > request.moved_at + patience;
            !request.brings_in && !late
        };
        self.requests.values().filter(counts).nth(most - 1).is_some()
    }

    /// Whether a limit lets another request be made. Where not, the next step looks again.
    fn may_ask(&self) -> bool {
        self.pace.is_free(self.now) && self.requests.len() < self.pace.requests_max()
    }

    fn ask_source(
        &mut self,
        recipe: RecipeId,
        peer: PeerId,
        source: Option<PeerId>,
        most: usize,
        relief: bool,
    ) -> bool {
        let mut asked = false;
        while self.is_ready(peer, most) && self.may_ask() {
            let (now, draw, run) = (self.now, self.draw(), self.run(recipe, peer));
            let Some(download) = self.download(recipe) else { break };
            let far = source.is_none_or(|id| download.sources.get(&id).is_some_and(|s| !s.near));
            let indices = download.choose(now, Wanted { source, run, draw, relief });
            if indices.is_empty() {
                break;
            }
            self.request(recipe, peer, indices, far);
            asked = true;
            if relief {
                break;
            }
        }
        asked
    }

    pub(super) fn ask_nodes(&mut self, recipe: RecipeId) {
        let Some(membership) = self.memberships.get(&recipe) else { return };
        let Some(download) = membership.download.as_ref().filter(|_| membership.is_under_way())
        else {
            return;
        };
        let most = if download.sources.len() < REQUESTS_MAX { REQUESTS_MAX } else { REQUESTS_MIN };
        if let Some(node) = membership.giver() {
            self.ask_source(recipe, node, None, most, false);
        }
    }

    pub(super) fn ask_all(&mut self, recipe: RecipeId) {
        let draw = self.draw();
        let Some(download) = self.peek(recipe) else { return };
        let (count, most) = (download.sources.len(), requests_at_once(download));
        let start = draw as usize % count.max(1);
        let all = || download.sources.keys().copied();
        let turn = all().skip(start).chain(all().take(start));
        // What one is asked for makes no other one ready.
        let ready: Vec<PeerId> = turn.filter(|&peer| self.is_ready(peer, most)).collect();
        for peer in ready {
            self.ask(recipe, peer);
        }
        self.ask_nodes(recipe);
    }

    /// What is later than twice the usual time, where nothing else is left to ask for, may be
    /// asked of another source; whoever is first cancels the other. Before that only what is very
    /// late, since a source in the mesh may just be busy. Who is late is asked for nothing else
    /// before it brings something: one that is gone would be asked for what is late once more. What is
    /// behind something else that its sender brings gets as long once more, and what this host's own
    /// disk holds up is not late: it would come twice.
    pub(super) fn hedge(&mut self, recipe: RecipeId) {
        let now = self.now;
        let Some(membership) = self.memberships.get(&recipe) else { return };
        let silent = membership.tracker.filter(|_| membership.standby().is_some());
        let Some(download) = &membership.download else { return };
        let times = if download.all_under_way() { LATE } else { VERY_LATE };
        let patience = (download.usual() * times).max(STEP_MIN);
        let mut late: Vec<u32> = Vec::new();
        let mut slow: Vec<PeerId> = Vec::new();
        for request in self.requests.values_mut() {
            let brought_at = self.peers.get(&request.peer).map_or(now, |peer| peer.brought_at);
            // Its sender is at work for this peer: it gets as long once more.
            let at_work = brought_at.min(request.moved_at + patience);
            let waits_since = request.moved_at.max(at_work);
            if request.recipe != recipe
                || request.landing.is_some()
                || now <= waits_since + patience
            {
                continue;
            }
            let node = self.peers.get(&request.peer).is_some_and(|peer| peer.node);
            if node && silent != Some(request.peer) {
                // It is slow where storage is: to ask for a second copy would make it no quicker.
                let held = request.open.iter().filter(|&&index| download.is_held_near(index));
                late.extend(held);
                continue;
            }
            late.extend(&request.open);
            if !std::mem::replace(&mut request.hedged, true) {
                slow.push(request.peer);
                if let Some(peer) = self.peers.get_mut(&request.peer) {
                    peer.owes += 1;
                }
            }
        }
        if let Some(download) = self.download(recipe).filter(|_| !late.is_empty()) {
            late.sort_unstable();
            download.release(&late);
            slow.into_iter().for_each(|peer| download.doubt(peer));
            self.ask_all(recipe);
        }
    }

    /// Nothing comes at all: the tracker may know more, and somebody has to bring something in.
    pub(super) fn relieve(&mut self, recipe: RecipeId) {
        let now = self.now;
        let Some(membership) = self.memberships.get_mut(&recipe) else { return };
        let Some(download) = &mut membership.download else { return };
        if !download.is_starving(now) {
            return;
        }
        // One try for each time of patience.
        download.progress_at = now;
        membership.announce_at = membership.announce_at.min(now + ANNOUNCE_AGAIN);
        let far = download.sources.iter().filter(|(_, source)| !source.near);
        let far: Vec<PeerId> = far.map(|(&peer, _)| peer).collect();
        for peer in far {
            if self.ask_source(recipe, peer, Some(peer), REQUESTS_MIN, true) {
                return;
            }
        }
        if let Some(node) = self.memberships.get(&recipe).and_then(Membership::giver) {
            self.ask_source(recipe, node, None, REQUESTS_MIN, true);
        }
    }

    /// Ends what a new neighbour is told: a head hears what this peer is bringing in at the moment.
    pub(super) fn claim_to(&mut self, recipe: RecipeId, to: PeerId) {
        let Some(download) = self.peek(recipe) else { return };
        let head = download.heads.contains(to);
        let brings_in = |request: &&Request| {
            head && request.recipe == recipe
                && download.sources.get(&request.peer).is_none_or(|source| !source.near)
        };
        let open = self.requests.values().filter(brings_in).flat_map(|request| &request.open);
        let chunks = ChunkRange::gather(open.copied().collect::<BTreeSet<u32>>());
        self.send(to, Frame::Claim { recipe, chunks });
    }

    fn request(&mut self, recipe: RecipeId, peer: PeerId, indices: Vec<u32>, brings_in: bool) {
        let now = self.now;
        let Some(download) = self.download(recipe) else { return };
        download.begin(&indices);
        let insists = download.is_put_off(&indices);
        let heads = match (brings_in, download.sources.contains_key(&peer)) {
            (false, _) => Vec::new(),
            (true, true) => download.heads.others_in_room(),
            (true, false) if download.must_claim(&indices) => download.heads.others(),
            (true, false) => Vec::new(),
        };
        self.next_request += 1;
        let id = self.next_request;
        if let Some(found) = self.peers.get_mut(&peer) {
            found.requests += 1;
        }
        let open = indices.clone();
        let request =
            Request { peer, recipe, open, moved_at: now, brings_in, hedged: false, landing: None };
        self.requests.insert(id, request);
        let chunks = ChunkRange::gather(indices.iter().copied());
        for to in heads.into_iter().filter(|to| self.peers.contains_key(to)).collect::<Vec<_>>() {
            self.send(to, Frame::Claim { recipe, chunks: chunks.clone() });
        }
        self.actions.push_back(Action::Request { request: id, peer, recipe, indices, insists });
    }
}

/// Requests under way at one source at most.
fn requests_at_once(download: &Download) -> usize {
    (REQUESTS_ALL / download.sources.len().max(1)).clamp(REQUESTS_MIN, REQUESTS_MAX)
}

/// How long `bytes` take from `peer`, from its measured rate.
fn expected(peer: &Peer, bytes: f64) -> Duration {
    if peer.rate() > 0.0 {
        Duration::from_secs_f64((bytes / peer.rate()).min(10.0))
    } else {
        STALL_PEER / 4
    }
}
