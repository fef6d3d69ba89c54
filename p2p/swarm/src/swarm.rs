//! The core: events in, actions out.
//!
//! Invariants: nothing is asked of a banned peer; a request that brings nothing for its deadline
//! is cancelled and its chunks are free again; every request ends exactly once here.
//! Non-goals: whether a ticket or a chunk is good; the shell says so with its event.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

use shoal_content::{PeerId, RecipeId};

use crate::chunk_set::ChunkSet;
use crate::download::{Download, From, REQUESTS_PER_SOURCE, TAKE_OVER};
use crate::frames::{ChunkRange, Contact, Frame, RANGES_MAX};
use crate::rendezvous::{mix, ranked};
use crate::tracker::Tracker;

/// Neighbours wanted for one recipe.
const NEIGHBOURS: usize = 10;
/// Members remembered for one recipe.
const KNOWN_MAX: usize = 64;
/// While a recipe is on its way, time passes in such steps.
const STEP: Duration = Duration::from_millis(50);
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(5);
/// Between the tracker's answer and the first request to a node, so that members that start
/// together know each other.
const SETTLE: Duration = Duration::from_millis(150);
/// As long a start waits for a tracker at all.
const SETTLE_MAX: Duration = Duration::from_millis(600);
/// A request that brings nothing for so long is cut, or for four times the expected time.
const STALL_PEER: Duration = Duration::from_secs(1);
/// The same for a node, which may have to ask storage.
const STALL_NODE: Duration = Duration::from_secs(4);
const COOLDOWN_MIN: Duration = Duration::from_millis(200);
const COOLDOWN_MAX: Duration = Duration::from_secs(5);
const BAN: Duration = Duration::from_secs(60);
const BAN_DOUBLINGS_MAX: u32 = 6;

/// Names a request until it ends.
pub type RequestId = u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BanReason {
    WrongContent,
    BadFrame,
}

impl BanReason {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WrongContent => "wrong_content",
            Self::BadFrame => "bad_frame",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestEnd {
    Done,
    Busy,
    Failed,
}

/// What happened outside.
#[derive(Debug, Clone)]
pub enum Event {
    /// Fetch a recipe of `held.len()` chunks; the shell holds a ticket for it.
    Start {
        recipe: RecipeId,
        held: ChunkSet,
    },
    /// Tell the tracker that this recipe can be had here.
    Seed {
        recipe: RecipeId,
    },
    Stop {
        recipe: RecipeId,
    },
    Demand {
        recipe: RecipeId,
        range: Range<u32>,
    },
    Nodes(Vec<Contact>),
    /// A member that somebody named.
    Hint {
        recipe: RecipeId,
        contact: Contact,
    },
    Connected {
        contact: Contact,
        node: bool,
    },
    Disconnected {
        peer: PeerId,
    },
    DialFailed {
        peer: PeerId,
    },
    /// A Join whose ticket the shell found good.
    Joined {
        peer: PeerId,
        recipe: RecipeId,
        have: Vec<ChunkRange>,
    },
    Frame {
        peer: PeerId,
        frame: Frame,
    },
    BadFrame {
        peer: PeerId,
    },
    /// Verified and written.
    Arrived {
        request: RequestId,
        index: u32,
        bytes: u32,
    },
    /// The content was not what the chunk's id says.
    Wrong {
        request: RequestId,
    },
    Ended {
        request: RequestId,
        end: RequestEnd,
    },
    /// Time passed.
    Tick,
}

/// What shall happen outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Dial(Contact),
    Close {
        peer: PeerId,
    },
    /// Send a Join with the shell's ticket.
    Join {
        peer: PeerId,
        recipe: RecipeId,
        have: Vec<ChunkRange>,
    },
    Send {
        peer: PeerId,
        frame: Frame,
    },
    Request {
        request: RequestId,
        peer: PeerId,
        recipe: RecipeId,
        indices: Vec<u32>,
    },
    Cancel {
        request: RequestId,
    },
    Ban {
        peer: PeerId,
        reason: BanReason,
        until: Duration,
    },
    Complete {
        recipe: RecipeId,
    },
}

#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub me: PeerId,
    pub seed: u64,
}

#[derive(Debug)]
struct Peer {
    contact: Contact,
    node: bool,
    requests: usize,
    /// Bytes a second, smoothed.
    rate: f64,
    cool_until: Duration,
    cooldown: Duration,
}

#[derive(Debug)]
struct Request {
    peer: PeerId,
    recipe: RecipeId,
    open: Vec<u32>,
    moved_at: Duration,
}

/// One recipe here: on its way, or only offered.
#[derive(Debug)]
struct Membership {
    download: Option<Download>,
    known: BTreeMap<PeerId, Contact>,
    joined: BTreeSet<PeerId>,
    tracker: Option<PeerId>,
    announce_at: Duration,
    settled_at: Duration,
    fresh: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Ban {
    until: Duration,
    times: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Redial {
    at: Duration,
    pause: Duration,
    dialling: bool,
}

#[derive(Debug)]
pub struct Swarm {
    settings: Settings,
    now: Duration,
    draws: u64,
    nodes: Vec<Contact>,
    peers: BTreeMap<PeerId, Peer>,
    redials: BTreeMap<PeerId, Redial>,
    bans: BTreeMap<PeerId, Ban>,
    memberships: BTreeMap<RecipeId, Membership>,
    requests: BTreeMap<RequestId, Request>,
    next_request: RequestId,
    tracker: Tracker,
    actions: VecDeque<Action>,
}

impl Swarm {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            now: Duration::ZERO,
            draws: 0,
            nodes: Vec::new(),
            peers: BTreeMap::new(),
            redials: BTreeMap::new(),
            bans: BTreeMap::new(),
            memberships: BTreeMap::new(),
            requests: BTreeMap::new(),
            next_request: 0,
            tracker: Tracker::default(),
            actions: VecDeque::new(),
        }
    }

    /// Takes what happened at `now`, the time since the shell's start; never runs backwards.
    pub fn handle(&mut self, now: Duration, event: Event) {
        self.now = self.now.max(now);
        self.apply(event);
        self.advance();
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Event::Tick`] is due if nothing happens before.
    pub fn next_timeout(&self) -> Option<Duration> {
        let due = |membership: &Membership| match &membership.download {
            Some(download) if !download.have.is_full() => self.now + STEP,
            _ => membership.announce_at.max(self.now + STEP),
        };
        self.memberships.values().map(due).min()
    }

    pub fn is_banned(&self, peer: PeerId) -> bool {
        self.bans.get(&peer).is_some_and(|ban| ban.until > self.now)
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Start { recipe, held } => self.start(recipe, Some(held)),
            Event::Seed { recipe } => self.start(recipe, None),
            Event::Stop { recipe } => self.stop(recipe),
            Event::Demand { recipe, range } => {
                if let Some(download) = self.download(recipe) {
                    download.demand(range);
                }
            }
            Event::Nodes(nodes) => self.nodes = nodes,
            Event::Hint { recipe, contact } => self.know(recipe, contact),
            Event::Connected { contact, node } => self.connected(contact, node),
            Event::Disconnected { peer } => self.disconnected(peer),
            Event::DialFailed { peer } => self.pause_dialling(peer),
            Event::Joined { peer, recipe, have } => self.joined(peer, recipe, &have),
            Event::Frame { peer, frame } => self.frame(peer, frame),
            Event::BadFrame { peer } => self.ban(peer, BanReason::BadFrame),
            Event::Arrived { request, index, bytes } => self.arrived(request, index, bytes),
            Event::Wrong { request } => {
                if let Some(peer) = self.requests.get(&request).map(|request| request.peer) {
                    self.ban(peer, BanReason::WrongContent);
                }
            }
            Event::Ended { request, end } => self.ended(request, end),
            Event::Tick => {}
        }
    }

    fn draw(&mut self) -> u64 {
        self.draws += 1;
        mix(self.settings.seed ^ mix(self.draws))
    }

    fn download(&mut self, recipe: RecipeId) -> Option<&mut Download> {
        self.memberships.get_mut(&recipe)?.download.as_mut()
    }

    fn send(&mut self, peer: PeerId, frame: Frame) {
        self.actions.push_back(Action::Send { peer, frame });
    }

    fn start(&mut self, recipe: RecipeId, held: Option<ChunkSet>) {
        let salt = self.draw();
        let now = self.now;
        let membership = self.memberships.entry(recipe).or_insert_with(|| Membership {
            download: None,
            known: BTreeMap::new(),
            joined: BTreeSet::new(),
            tracker: None,
            announce_at: now,
            settled_at: now,
            fresh: Vec::new(),
        });
        let Some(held) = held else { return };
        if held.is_full() {
            self.actions.push_back(Action::Complete { recipe });
        }
        membership.download = Some(Download::new(now, recipe, held, salt));
        membership.joined.clear();
        membership.tracker = None;
        membership.announce_at = now;
        membership.settled_at = now + SETTLE_MAX;
    }

    fn stop(&mut self, recipe: RecipeId) {
        let of_it =
            |(&id, request): (&RequestId, &Request)| (request.recipe == recipe).then_some(id);
        let open: Vec<RequestId> = self.requests.iter().filter_map(of_it).collect();
        for request in open {
            self.drop_request(request, true);
        }
        if let Some(membership) = self.memberships.remove(&recipe) {
            for peer in membership.joined.into_iter().chain(membership.tracker) {
                if self.peers.contains_key(&peer) {
                    self.send(peer, Frame::Leave { recipe });
                }
            }
        }
    }

    fn know(&mut self, recipe: RecipeId, contact: Contact) {
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

    fn connected(&mut self, contact: Contact, node: bool) {
        if self.is_banned(contact.peer) {
            self.actions.push_back(Action::Close { peer: contact.peer });
            return;
        }
        self.disconnected(contact.peer);
        self.redials.remove(&contact.peer);
        let peer = Peer {
            contact,
            node,
            requests: 0,
            rate: 0.0,
            cool_until: Duration::ZERO,
            cooldown: COOLDOWN_MIN,
        };
        self.peers.insert(contact.peer, peer);
    }

    fn disconnected(&mut self, peer: PeerId) {
        if self.peers.remove(&peer).is_none() {
            return;
        }
        let of_it = |(&id, request): (&RequestId, &Request)| (request.peer == peer).then_some(id);
        let open: Vec<RequestId> = self.requests.iter().filter_map(of_it).collect();
        for request in open {
            self.drop_request(request, true);
        }
        for membership in self.memberships.values_mut() {
            membership.joined.remove(&peer);
            if membership.tracker == Some(peer) {
                membership.tracker = None;
                membership.announce_at = self.now;
            }
            if let Some(download) = &mut membership.download {
                download.lose(peer);
            }
        }
        self.tracker.forget(peer);
        self.pause_dialling(peer);
    }

    fn pause_dialling(&mut self, peer: PeerId) {
        let redial = self.redials.entry(peer).or_default();
        redial.dialling = false;
        redial.pause = (redial.pause * 2).clamp(COOLDOWN_MIN, COOLDOWN_MAX);
        redial.at = self.now + redial.pause;
    }

    fn joined(&mut self, peer: PeerId, recipe: RecipeId, have: &[ChunkRange]) {
        let Some(contact) = self.peers.get(&peer).map(|peer| peer.contact) else { return };
        let Some(membership) = self.memberships.get_mut(&recipe) else {
            return self.track(peer, recipe, contact, true);
        };
        membership.known.insert(peer, contact);
        let Some(download) = &mut membership.download else { return };
        let len = download.have.len();
        download.learn(self.now, peer, have.iter().flat_map(|range| range.within(len)));
        let mine = download.have.ranges();
        for chunks in mine.chunks(RANGES_MAX) {
            let frame = Frame::Have { recipe, chunks: chunks.to_vec() };
            self.actions.push_back(Action::Send { peer, frame });
        }
        self.claim_to(recipe, &[peer]);
    }

    /// Tells `to` what this peer is fetching from nodes.
    fn claim_to(&mut self, recipe: RecipeId, to: &[PeerId]) {
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
    fn track(&mut self, peer: PeerId, recipe: RecipeId, contact: Contact, wants: bool) {
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

    fn frame(&mut self, peer: PeerId, frame: Frame) {
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

    fn arrived(&mut self, id: RequestId, index: u32, bytes: u32) {
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
    fn cancel_redundant(&mut self, recipe: RecipeId) {
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

    fn ended(&mut self, id: RequestId, end: RequestEnd) {
        let Some(request) = self.requests.get(&id) else { return };
        let (peer, unmet) = (request.peer, !request.open.is_empty());
        self.drop_request(id, false);
        if end != RequestEnd::Done || unmet {
            self.cool(peer);
        }
    }

    fn cool(&mut self, peer: PeerId) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.cool_until = self.now + peer.cooldown;
            peer.cooldown = (peer.cooldown * 2).min(COOLDOWN_MAX);
        }
    }

    fn drop_request(&mut self, id: RequestId, cancel: bool) {
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

    fn ban(&mut self, peer: PeerId, reason: BanReason) {
        let now = self.now;
        self.bans.retain(|_, ban| ban.until + BAN * (1 << BAN_DOUBLINGS_MAX) > now);
        let ban = self.bans.entry(peer).or_insert(Ban { until: now, times: 0 });
        ban.until = now + BAN * (1 << ban.times.min(BAN_DOUBLINGS_MAX));
        ban.times += 1;
        let until = ban.until;
        self.disconnected(peer);
        self.actions.push_back(Action::Ban { peer, reason, until });
        self.actions.push_back(Action::Close { peer });
    }

    /// What time and the last event allow.
    fn advance(&mut self) {
        self.cut_stalls();
        let recipes: Vec<RecipeId> = self.memberships.keys().copied().collect();
        for recipe in recipes {
            self.announce(recipe);
            self.tell_fresh(recipe);
            let under_way = self.download(recipe).is_some_and(|download| !download.have.is_full());
            if under_way {
                self.gather_neighbours(recipe);
                self.ask(recipe);
            }
        }
    }

    fn cut_stalls(&mut self) {
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

    fn dial(&mut self, contact: Contact) {
        if self.peers.contains_key(&contact.peer) || self.is_banned(contact.peer) {
            return;
        }
        let redial = self.redials.entry(contact.peer).or_default();
        if !redial.dialling && redial.at <= self.now {
            redial.dialling = true;
            self.actions.push_back(Action::Dial(contact));
        }
    }

    /// Joins (or announces) at the first node by rank that is connected; dials better ones.
    fn announce(&mut self, recipe: RecipeId) {
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

    fn tell_fresh(&mut self, recipe: RecipeId) {
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

    fn gather_neighbours(&mut self, recipe: RecipeId) {
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

    fn ready(&self, peer: PeerId) -> bool {
        self.peers.get(&peer).is_some_and(|found| {
            found.requests < REQUESTS_PER_SOURCE && found.cool_until <= self.now
        })
    }

    fn ask(&mut self, recipe: RecipeId) {
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

    fn ask_one(&mut self, recipe: RecipeId, peer: PeerId, from: From) -> bool {
        let (now, me, draw) = (self.now, self.settings.me, self.draw());
        let Some(download) = self.download(recipe) else { return false };
        let indices = download.choose(now, me, from, draw);
        self.request(recipe, peer, indices, !matches!(from, From::Peer(_)))
    }

    /// The endgame: everything is under way; what is later than twice the expected time is asked
    /// of a second source, and whoever is first cancels the other.
    fn ask_again(&mut self, recipe: RecipeId, peer: PeerId) {
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

    fn request(&mut self, recipe: RecipeId, peer: PeerId, indices: Vec<u32>, claim: bool) -> bool {
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

/// How long one chunk takes from `peer`, from its measured rate.
fn expected(peer: &Peer) -> Duration {
    let bytes = f64::from(shoal_content::CHUNK_BYTES_MAX) * REQUESTS_PER_SOURCE as f64;
    if peer.rate > 0.0 {
        Duration::from_secs_f64((bytes / peer.rate).min(10.0))
    } else {
        STALL_PEER / 4
    }
}
