//! The core: events in, actions out.
//!
//! Invariants: nothing is asked of a banned peer; a request that brings nothing for its deadline
//! is cancelled and its chunks are free again; every request ends exactly once here. An event's
//! work does not grow with the number of recipes that are only offered.
//! Non-goals: whether a ticket or a chunk is good; the shell says so with its event.

mod mesh;
mod peers;
mod requests;
mod silence;
mod standby;
mod tables;
mod tracking;
mod waits;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use shoal_content::{PeerId, RecipeId, Zone};

use self::mesh::Membership;
use self::peers::{Ban, Peer, Redial};
use self::requests::Request;
pub use self::tables::Tables;
pub use self::waits::Wait;
use crate::chunk_set::ChunkSet;
use crate::download::Download;
use crate::event::{Action, BanReason, Event, RequestId};
use crate::frames::{Contact, Frame};
use crate::meter::Meter;
use crate::pace::Pace;
use crate::rendezvous::mix;
use crate::tracker::Tracker;

/// While a recipe is on its way, it is looked at in such steps: half a chunk's usual time.
const STEP_MIN: Duration = Duration::from_millis(5);
const STEP_MAX: Duration = Duration::from_millis(50);
/// What is only offered is announced in parts, so that a big cache does not fill a connection.
const OFFERS_AT_ONCE: usize = 128;
const OFFERS_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Debug, Clone)]
pub struct Settings {
    pub me: PeerId,
    pub seed: u64,
    /// Where this peer stands; its room's members are near.
    pub zone: Zone,
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
    /// Those of them that are on their way.
    under_way: BTreeSet<RecipeId>,
    requests: BTreeMap<RequestId, Request>,
    next_request: RequestId,
    /// Peers that said they are busy, and will call.
    waiting: BTreeSet<PeerId>,
    /// Stalls cut since anything arrived: it may be this peer's own line that is slow.
    cuts: u32,
    /// What this peer's line brings.
    meter: Meter,
    /// What it may bring.
    pace: Pace,
    /// It ends soon.
    retiring: bool,
    tracker: Tracker,
    /// When heads that changed are told.
    tell_heads_at: Option<Duration>,
    /// The next time anything is due; never later than it is.
    wake_at: Duration,
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
            under_way: BTreeSet::new(),
            requests: BTreeMap::new(),
            next_request: 0,
            waiting: BTreeSet::new(),
            cuts: 0,
            meter: Meter::default(),
            pace: Pace::default(),
            retiring: false,
            tracker: Tracker::default(),
            tell_heads_at: None,
            wake_at: Duration::MAX,
            actions: VecDeque::new(),
        }
    }

    /// Takes what happened at `now`, the time since the shell's start; never runs backwards.
    pub fn handle(&mut self, now: Duration, event: Event) {
        self.hear(now, event);
        self.look(now);
    }

    /// Takes what happened, of several things of which all are known before time is looked at: what
    /// waits to be heard is not late. [`Self::look`] follows.
    pub fn hear(&mut self, now: Duration, event: Event) {
        self.now = self.now.max(now);
        self.apply(event);
    }

    /// Does what time brings.
    pub fn look(&mut self, now: Duration) {
        self.now = self.now.max(now);
        if self.now >= self.wake_at {
            self.advance();
        }
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        let action = self.actions.pop_front();
        if self.actions.is_empty() {
            // The next ones go where these were, not through all that was ever reserved.
            self.actions.clear();
        }
        action
    }

    /// When [`Event::Tick`] is due if nothing happens before.
    pub fn next_timeout(&self) -> Option<Duration> {
        (self.wake_at != Duration::MAX).then_some(self.wake_at)
    }

    pub fn is_banned(&self, peer: PeerId) -> bool {
        self.bans.get(&peer).is_some_and(|ban| ban.until > self.now)
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Start { recipe, held } => self.start(recipe, Some(held)),
            Event::Seed { recipe } if !self.retiring => self.start(recipe, None),
            Event::Seed { .. } => {}
            Event::Stop { recipe } => self.stop(recipe),
            Event::Demand { recipe, range } => {
                let now = self.now;
                let under_way = self.under_way.contains(&recipe);
                if let Some(download) = self.download(recipe).filter(|_| under_way) {
                    download.demand(now, range);
                    self.ask_all(recipe);
                }
            }
            Event::Nodes(nodes) => {
                self.nodes = nodes;
                self.wake_at = self.now;
            }
            Event::Limit { bytes_per_second } => self.pace.limit(self.now, bytes_per_second),
            Event::Retire => self.retire(),
            Event::Hint { recipe, contact } => self.hint(recipe, contact),
            Event::Connected { member, node, rtt } => self.connected(member, node, rtt),
            Event::Disconnected { peer } => self.disconnected(peer),
            Event::DialFailed { peer } => self.pause_dialling(peer),
            Event::Joined { peer, recipe } => self.joined(peer, recipe),
            Event::Frame { peer, frame } => self.frame(peer, frame),
            Event::BadFrame { peer } => self.ban(peer, BanReason::BadFrame),
            Event::Landed { request, index, bytes } => self.landed(request, index, bytes),
            Event::Arrived { request, index, bytes } => self.arrived(request, index, bytes),
            Event::Elsewhere { request, index, by } => self.elsewhere(request, index, by),
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

    /// The same, only to look at.
    fn peek(&self, recipe: RecipeId) -> Option<&Download> {
        self.memberships.get(&recipe)?.download.as_ref()
    }

    fn send(&mut self, peer: PeerId, frame: Frame) {
        self.actions.push_back(Action::Send { peer, frame });
    }

    fn start(&mut self, recipe: RecipeId, held: Option<ChunkSet>) {
        let now = self.now;
        if held.is_some() {
            self.drop_requests(recipe);
        }
        let membership = self.memberships.entry(recipe).or_insert_with(|| Membership::new(now));
        self.wake_at = now;
        let Some(held) = held else { return };
        // Neighbours of before are asked anew what they hold.
        membership.joined.clear();
        membership.tracker = None;
        membership.standby = None;
        membership.announce_at = now;
        membership.alone_since = now;
        membership.step_at = now;
        if held.is_full() {
            self.under_way.remove(&recipe);
            self.actions.push_back(Action::Complete { recipe });
        } else {
            self.under_way.insert(recipe);
        }
        membership.download = Some(Download::new(now, self.settings.me, recipe, held));
    }

    /// Ends what is asked for a recipe: of a transfer that stops, or that another one replaces.
    fn drop_requests(&mut self, recipe: RecipeId) {
        let of_it =
            |(&id, request): (&RequestId, &Request)| (request.recipe == recipe).then_some(id);
        let open: Vec<RequestId> = self.requests.iter().filter_map(of_it).collect();
        for request in open {
            self.drop_request(request, true);
        }
    }

    fn stop(&mut self, recipe: RecipeId) {
        self.drop_requests(recipe);
        self.under_way.remove(&recipe);
        if let Some(membership) = self.memberships.remove(&recipe) {
            let joined = membership.joined.iter().copied();
            let to: BTreeSet<PeerId> = joined.chain(membership.nodes()).collect();
            for peer in to {
                if self.peers.contains_key(&peer) {
                    self.send(peer, Frame::Leave { recipe });
                }
            }
        }
    }

    /// Leaves the swarms of what is only offered, so that nobody is sent here any more.
    fn retire(&mut self) {
        self.retiring = true;
        let offered = self.memberships.keys().filter(|recipe| !self.under_way.contains(recipe));
        for recipe in offered.copied().collect::<Vec<_>>() {
            self.stop(recipe);
        }
    }

    fn wake_by(&mut self, at: Duration) {
        self.wake_at = self.wake_at.min(at);
    }

    /// What time allows.
    fn advance(&mut self) {
        self.wake_at = Duration::MAX;
        if self.tell_heads_at.is_some_and(|at| at <= self.now) {
            self.tell_heads();
        }
        let due = |membership: &Membership| membership.due();
        let now = self.now;
        let recipes: Vec<RecipeId> = self
            .memberships
            .iter()
            .filter(|(_, membership)| due(membership) <= now)
            .map(|(&recipe, _)| recipe)
            .collect();
        if !self.requests.is_empty() {
            self.cut_stalls();
            let peers = &self.peers;
            self.waiting.retain(|at| peers.get(at).is_some_and(|peer| peer.busy_until > now));
        }
        let mut offers = 0;
        for recipe in recipes {
            let under_way = self.under_way.contains(&recipe);
            offers += usize::from(!under_way);
            if offers > OFFERS_AT_ONCE && !under_way {
                self.put_off_announcing(recipe, OFFERS_INTERVAL);
                self.tell_fresh(recipe);
                continue;
            }
            self.announce(recipe);
            self.tell_fresh(recipe);
            if under_way {
                self.step(recipe);
            } else {
                self.settle(recipe);
            }
        }
        let next = self.memberships.values().map(due).chain(self.tell_heads_at).min();
        self.wake_by(next.unwrap_or(Duration::MAX).max(self.now + Duration::from_micros(100)));
        if next.is_none() {
            self.wake_at = Duration::MAX;
        }
    }

    /// One recipe's own step, where it is due.
    fn step(&mut self, recipe: RecipeId) {
        let now = self.now;
        let Some(membership) = self.memberships.get_mut(&recipe) else { return };
        let Some(download) = membership.download.as_ref().filter(|_| membership.step_at <= now)
        else {
            return;
        };
        membership.step_at = now + (download.usual() / 2).clamp(STEP_MIN, STEP_MAX);
        self.gather_neighbours(recipe);
        self.stand_by(recipe);
        self.hush_heads(recipe);
        self.ask_all(recipe);
        self.hedge(recipe);
        self.relieve(recipe);
    }
}
