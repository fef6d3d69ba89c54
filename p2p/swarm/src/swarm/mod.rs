//! The core: events in, actions out.
//!
//! Invariants: nothing is asked of a banned peer; a request that brings nothing for its deadline
//! is cancelled and its chunks are free again; every request ends exactly once here.
//! Non-goals: whether a ticket or a chunk is good; the shell says so with its event.

mod mesh;
mod peers;
mod requests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use shoal_content::{PeerId, RecipeId};

use self::mesh::Membership;
use self::peers::{Ban, Peer, Redial};
use self::requests::Request;
use crate::chunk_set::ChunkSet;
use crate::download::Download;
use crate::event::{Action, BanReason, Event, RequestId};
use crate::frames::{Contact, Frame};
use crate::rendezvous::mix;
use crate::tracker::Tracker;

/// While a recipe is on its way, time passes in such steps.
const STEP: Duration = Duration::from_millis(50);
/// As long a start waits for a tracker at all.
const SETTLE_MAX: Duration = Duration::from_millis(600);

#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub me: PeerId,
    pub seed: u64,
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
}
