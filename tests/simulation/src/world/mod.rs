//! The hosts and the node, each a core with a shell of a few lines, on one clock.
//!
//! Messages take their latency and are handled one by one in order of time; content flows in
//! steps, each a small part of a chunk's time on an empty line, with rates fixed within a step.
//! One connection sends one chunk after the other, as a QUIC connection with unfair streams does.
//!
//! Always checked: a banned peer is never asked, nothing held is asked for, nobody says that it is
//! complete without all, an honest peer is never banned for content.

mod serving;
mod setup;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use shoal_content::{PeerId, RecipeId, Zone};
use shoal_swarm::frames::{self, Frame};
use shoal_swarm::{
    Action, Admission, BanReason, ChunkSet, Contact, Event, Ledger, Member, RequestEnd, RequestId,
    Settings, Swarm, Uploads,
};

use crate::draw::Draw;
use crate::network::{FlowId, LinkId, Network};
use crate::queue::Queue;
use crate::report::{Report, bound};
use crate::scenario::{Conduct, Scenario};

/// Steps in a chunk's time on an empty line.
const STEPS_PER_CHUNK: u32 = 8;
/// Slots of the queue in a step: what is due within one should be near in memory.
const SLOTS_PER_STEP: u32 = 8;
/// From dialling to the first message: the handshake, in round trips.
const DIAL_ROUNDS: u32 = 2;
/// Others that a busy host names.
const NAMED: usize = 4;
/// One frame in so many is encoded to know its bytes.
const SAMPLED: u64 = 16;

type Number = usize;

enum What {
    Tell(Number, Event),
    /// A connection's message: it is lost with the connection.
    Message(Number, Number, Box<Event>),
    Dialled(Number, Number),
    Ask {
        from: Number,
        to: Number,
        request: RequestId,
        indices: Vec<u32>,
        insists: bool,
    },
    Arrive {
        to: Number,
        from: Number,
        request: RequestId,
        index: u32,
        last: bool,
    },
    CancelAt {
        from: Number,
        to: Number,
        request: RequestId,
    },
    Wake(Number),
    Begin(Number),
    Crash(Number),
    Pause(Number),
    /// Storage gave what a node was asked for.
    Serve {
        from: Number,
        to: Number,
        request: RequestId,
        indices: Vec<u32>,
    },
}

impl What {
    /// Whose CPU it takes.
    fn of(&self) -> Option<Number> {
        match *self {
            Self::Tell(host, _)
            | Self::Message(_, host, _)
            | Self::Ask { to: host, .. }
            | Self::Serve { to: host, .. }
            | Self::Arrive { to: host, .. }
            | Self::CancelAt { to: host, .. }
            | Self::Wake(host)
            | Self::Begin(host) => Some(host),
            Self::Dialled(..) | Self::Crash(_) | Self::Pause(_) => None,
        }
    }
}

struct Host {
    core: Swarm,
    uploads: Uploads,
    ledger: Ledger,
    held: ChunkSet,
    conduct: Conduct,
    up: LinkId,
    down: LinkId,
    /// Bytes a second, each way.
    line: f64,
    peers: BTreeSet<Number>,
    /// Own requests under way, and whom they were sent to.
    asked: BTreeMap<RequestId, Number>,
    /// Its connections' ways out.
    streams: BTreeMap<Number, FlowId>,
    alive: bool,
    began: Duration,
    finished: Option<Duration>,
    sent: u64,
    wake_at: Option<Duration>,
    paused_until: Duration,
}

/// One piece of an answer.
#[derive(Debug, Clone, Copy)]
struct Piece {
    request: RequestId,
    index: u32,
    last: bool,
}

struct Stream {
    from: Number,
    to: Number,
    queue: VecDeque<Piece>,
}

#[derive(Default)]
struct Counts {
    origin: u64,
    zones_in: Vec<u64>,
    useful: u64,
    wasted: u64,
    control: u64,
    frames: u64,
    events: u64,
}

struct World {
    scenario: Scenario,
    draw: Draw,
    now: Duration,
    step: Duration,
    hosts: Vec<Host>,
    network: Network,
    /// Each host's zone, apart from the rest of it: every message looks here.
    zones: Vec<usize>,
    zone_up: Vec<LinkId>,
    zone_down: Vec<LinkId>,
    streams: Vec<Stream>,
    queue: Queue<What>,
    counts: Counts,
    unfinished: usize,
    recipe: RecipeId,
}

fn contact(host: Number) -> Contact {
    let mut key = [0; 32];
    let mut draw = Draw::new(host as u64);
    key[..8].copy_from_slice(&(host as u64).to_be_bytes());
    for part in key[8..].chunks_exact_mut(8) {
        part.copy_from_slice(&draw.number().to_be_bytes());
    }
    let address = ([10, (host >> 16) as u8, (host >> 8) as u8, host as u8], 4433).into();
    Contact { peer: PeerId::from_public_key(key), address }
}

fn number(peer: PeerId) -> Number {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&peer.as_public_key()[..8]);
    u64::from_be_bytes(bytes) as usize
}

/// Runs one scenario to its end.
///
/// # Panics
/// With the seed, where a core did what it never may.
pub fn simulate(scenario: Scenario) -> Report {
    let began = Instant::now();
    let mut world = World::new(scenario);
    world.run();
    world.report(began.elapsed())
}

impl World {
    fn later(&mut self, after: Duration, what: What) {
        self.queue.push(self.now + after, what);
    }

    /// One way from one to the other, with what was lost sent again.
    fn latency(&mut self, one: Number, other: Number) -> Duration {
        let with_node = self.is_node(one) || self.is_node(other);
        let near = !with_node && self.zones[one] == self.zones[other];
        let way = if near { self.scenario.latency_near } else { self.scenario.latency_far };
        let mut total = way;
        while self.scenario.loss > 0.0 && self.draw.share() < self.scenario.loss {
            total += way * 3;
        }
        total
    }

    fn run(&mut self) {
        let limit = Duration::from_secs_f64(self.bound_of(None) * self.scenario.limit)
            + Duration::from_secs(20);
        while self.unfinished > 0 && self.now < limit {
            let end = if self.network.is_idle() {
                let Some(next) = self.queue.next_due() else { break };
                next.max(self.now)
            } else {
                self.now + self.step
            };
            self.flow(end);
            while let Some((at, what)) = self.queue.pop(end) {
                self.now = self.now.max(at);
                self.counts.events += 1;
                self.happen(what);
            }
            self.now = end;
        }
    }

    fn happen(&mut self, what: What) {
        if let Some(host) = what.of()
            && self.hosts[host].paused_until > self.now
        {
            if matches!(what, What::Wake(_)) {
                self.hosts[host].wake_at = Some(self.hosts[host].paused_until);
            }
            return self.queue.push(self.hosts[host].paused_until, what);
        }
        match what {
            What::Tell(to, event) => self.tell(to, event),
            What::Message(from, to, event) => {
                if !self.hosts[to].peers.contains(&from) {
                    return;
                }
                if let Event::Frame { frame: Frame::Pass, .. } = *event {
                    self.hosts[to].uploads.pass(contact(from).peer);
                    self.invite(to);
                }
                self.tell(to, *event);
            }
            What::Dialled(from, to) => self.dialled(from, to),
            What::Ask { from, to, request, indices, insists } => {
                self.asked(from, to, request, indices, insists);
            }
            What::Serve { from, to, request, indices } => self.send(from, to, request, &indices),
            What::Arrive { to, from, request, index, last } => {
                self.arrive(to, from, request, index, last);
            }
            What::CancelAt { from, to, request } => self.cancel(from, to, request),
            What::Wake(host) if self.hosts[host].wake_at != Some(self.now) => {}
            What::Wake(host) => {
                self.hosts[host].wake_at = None;
                self.tell(host, Event::Tick);
            }
            What::Begin(host) => self.begin(host),
            What::Crash(host) => self.crash(host),
            What::Pause(host) => {
                self.hosts[host].paused_until =
                    self.now + self.scenario.pause.mul_f64(self.draw.share());
                let wait = self.scenario.pause_every.mul_f64(2.0 * self.draw.share());
                self.later(wait, What::Pause(host));
            }
        }
    }

    fn begin(&mut self, host: Number) {
        self.hosts[host].began = self.now;
        let chunks = self.scenario.chunks();
        let claims_all = matches!(self.hosts[host].conduct, Conduct::Liar | Conduct::Staller);
        let held = if claims_all { ChunkSet::full(chunks) } else { ChunkSet::empty(chunks) };
        self.tell(host, Event::Nodes((0..self.scenario.nodes).map(contact).collect()));
        self.tell(host, Event::Start { recipe: self.recipe, held });
    }

    fn crash(&mut self, host: Number) {
        let found = &mut self.hosts[host];
        if !found.alive {
            return;
        }
        found.alive = false;
        let counted = matches!(found.conduct, Conduct::Honest | Conduct::FreeRider);
        let unfinished = counted && found.finished.is_none();
        if !self.is_node(host) && unfinished {
            self.unfinished -= 1;
        }
        for other in std::mem::take(&mut self.hosts[host].peers) {
            self.drop_stream(host, other);
            self.drop_stream(other, host);
            let peer = contact(host).peer;
            self.later(self.scenario.detection, What::Tell(other, Event::Disconnected { peer }));
        }
        if !self.is_node(host) {
            self.add_peer(self.zones[host]);
        }
    }

    fn drop_stream(&mut self, from: Number, to: Number) {
        if let Some(&flow) = self.hosts[from].streams.get(&to) {
            let queue = std::mem::take(&mut self.streams[flow as usize].queue);
            self.network.stop(flow);
            queue.iter().filter(|piece| piece.last).for_each(|_| self.end_upload(from, to));
        }
    }

    fn tell(&mut self, host: Number, event: Event) {
        if !self.hosts[host].alive {
            return;
        }
        if let Event::Disconnected { peer } = &event {
            self.hosts[host].peers.remove(&number(*peer));
            self.hosts[host].uploads.pass(*peer);
            self.hosts[host].ledger.forget(*peer);
        }
        self.hosts[host].core.handle(self.now, event);
        while let Some(action) = self.hosts[host].core.poll_action() {
            self.perform(host, action);
        }
        let due = self.hosts[host].core.next_timeout();
        if let Some(due) = due
            && self.hosts[host].wake_at.is_none_or(|at| due < at)
        {
            let due = due.max(self.now);
            self.hosts[host].wake_at = Some(due);
            self.queue.push(due, What::Wake(host));
        }
    }

    fn message(&mut self, from: Number, to: PeerId, event: Event) {
        let to = number(to);
        if let Event::Frame { frame, .. } = &event {
            self.counts.frames += 1;
            if self.counts.frames.is_multiple_of(SAMPLED) {
                let bytes = frames::encode(frame).map_or(0, |bytes| bytes.len() + 4);
                self.counts.control += bytes as u64 * SAMPLED;
            }
        }
        if self.hosts[from].peers.contains(&to) {
            let wait = self.latency(from, to);
            self.later(wait, What::Message(from, to, Box::new(event)));
        }
    }

    fn perform(&mut self, host: Number, action: Action) {
        let (me, seed) = (contact(host).peer, self.scenario.seed);
        match action {
            Action::Dial(to) => {
                let to = number(to.peer);
                let (least, most) = self.scenario.dial;
                let extra = least + (most - least).mul_f64(self.draw.share());
                let wait = self.latency(host, to) * 2 * DIAL_ROUNDS + extra;
                self.later(wait, What::Dialled(host, to));
            }
            Action::Close { peer } => self.close(host, number(peer)),
            Action::Join { peer, recipe } => {
                self.message(host, peer, Event::Joined { peer: me, recipe });
            }
            Action::Send { peer, frame } => {
                self.message(host, peer, Event::Frame { peer: me, frame });
            }
            Action::Request { request, peer, indices, insists, .. } => {
                let asker = &mut self.hosts[host];
                assert!(!asker.core.is_banned(peer), "seed {seed}: a banned peer is asked");
                let held = indices.iter().any(|&index| asker.held.contains(index));
                assert!(!held, "seed {seed}: what is held is asked for");
                let to = number(peer);
                asker.asked.insert(request, to);
                self.counts.control += 48 + 3 * indices.len() as u64;
                let wait = self.latency(host, to);
                self.later(wait, What::Ask { from: host, to, request, indices, insists });
            }
            Action::Cancel { request } => {
                if let Some(to) = self.hosts[host].asked.remove(&request) {
                    let wait = self.latency(host, to);
                    self.later(wait, What::CancelAt { from: host, to, request });
                }
            }
            Action::Ban { peer, reason, .. } => {
                let honest = self.hosts[number(peer)].conduct == Conduct::Honest;
                let wrong = reason == BanReason::WrongContent;
                assert!(!(honest && wrong), "seed {seed}: an honest peer is banned");
            }
            Action::Complete { .. } => self.complete(host),
        }
    }

    fn complete(&mut self, host: Number) {
        let found = &mut self.hosts[host];
        if !matches!(found.conduct, Conduct::Honest | Conduct::FreeRider) {
            return;
        }
        assert!(found.held.is_full(), "seed {}: complete without all", self.scenario.seed);
        if found.finished.replace(self.now).is_none() {
            self.unfinished -= 1;
        }
    }

    fn close(&mut self, one: Number, other: Number) {
        if self.hosts[one].peers.remove(&other) {
            self.hosts[other].peers.remove(&one);
            self.drop_stream(one, other);
            self.drop_stream(other, one);
            for (to, lost) in [(one, other), (other, one)] {
                let wait = self.latency(one, other);
                let peer = contact(lost).peer;
                self.later(wait, What::Tell(to, Event::Disconnected { peer }));
            }
        }
    }

    fn dialled(&mut self, from: Number, to: Number) {
        if !self.hosts[to].alive || self.hosts[to].core.is_banned(contact(from).peer) {
            return self.tell(from, Event::DialFailed { peer: contact(to).peer });
        }
        if self.hosts[from].alive && !self.hosts[from].peers.contains(&to) {
            self.hosts[from].peers.insert(to);
            self.hosts[to].peers.insert(from);
            let rtt = self.latency(from, to) * 2;
            for (host, other) in [(from, to), (to, from)] {
                let (member, node) = (self.member(other), self.is_node(other));
                self.tell(host, Event::Connected { member, node, rtt });
            }
        }
    }

    fn report(self, wall: Duration) -> Report {
        let mut ratios = Vec::new();
        for (at, host) in self.hosts.iter().enumerate().skip(self.scenario.nodes) {
            if host.conduct == Conduct::Honest
                && let Some(finished) = host.finished
            {
                let took = (finished - host.began).as_secs_f64();
                ratios.push(took / self.bound_of(Some(at)));
            }
        }
        ratios.sort_by(f64::total_cmp);
        let full =
            |host: &&Host| host.conduct == Conduct::Honest && host.line == self.scenario.line;
        let sent: Vec<f64> = self
            .hosts
            .iter()
            .skip(self.scenario.nodes)
            .filter(full)
            .map(|host| host.sent as f64)
            .collect();
        let (sum, squares) = (sent.iter().sum::<f64>(), sent.iter().map(|x| x * x).sum::<f64>());
        let bytes = self.scenario.bytes as f64;
        let copies: Vec<f64> =
            self.counts.zones_in.iter().map(|&count| count as f64 / bytes).collect();
        Report {
            scenario: self.scenario.name,
            seed: self.scenario.seed,
            peers: self.scenario.peers,
            unfinished: self.unfinished,
            bound: Duration::from_secs_f64(self.bound_of(None)),
            ratios,
            origin_copies: self.counts.origin as f64 / bytes,
            zone_copies: (
                copies.iter().sum::<f64>() / copies.len() as f64,
                copies.iter().copied().fold(0.0, f64::max),
            ),
            waste: self.counts.wasted as f64 / self.counts.useful.max(1) as f64,
            fairness: sum * sum / (sent.len() as f64 * squares).max(1.0),
            control: self.counts.control as f64 / self.counts.useful.max(1) as f64,
            events: self.counts.events,
            wall,
        }
    }
}
