//! The hosts and the node, each a core with a shell of a few lines, on one clock.
//!
//! Messages take their latency and are handled one by one in order of time; content flows in
//! steps, each a small part of a chunk's time on an empty line, with rates fixed within a step.
//! One connection sends one chunk after the other, as a QUIC connection with unfair streams does.
//!
//! Always checked: a banned peer is never asked, nothing held is asked for, nobody says that it is
//! complete without all, an honest peer is never banned for content.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use shoal_content::{PeerId, RecipeId, Zone};
use shoal_swarm::frames::{self, Frame};
use shoal_swarm::{
    Action, Admission, BanReason, ChunkSet, Contact, Event, Ledger, Member, RequestEnd, RequestId,
    Settings, Swarm, Uploads,
};

use crate::draw::Draw;
use crate::network::{FlowId, LinkId, Network};
use crate::report::{Report, bound};
use crate::scenario::{Conduct, Scenario};

/// Steps in a chunk's time on an empty line.
const STEPS_PER_CHUNK: u32 = 8;
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
    Message(Number, Number, Event),
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
    zone: usize,
    up: LinkId,
    down: LinkId,
    /// Bytes a second, each way.
    line: f64,
    peers: BTreeMap<Number, ()>,
    /// Own requests under way, and whom they were sent to.
    asked: HashMap<RequestId, Number>,
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
    /// Bytes of the first piece that are still to go.
    left: f64,
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
    zone_up: Vec<LinkId>,
    zone_down: Vec<LinkId>,
    streams: Vec<Stream>,
    stream_of: HashMap<(Number, Number), FlowId>,
    queue: BinaryHeap<Reverse<(Duration, u64, usize)>>,
    waiting: Vec<Option<What>>,
    vacant: Vec<usize>,
    serial: u64,
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
    fn new(scenario: Scenario) -> Self {
        let mut network = Network::default();
        let mut draw = Draw::new(scenario.seed);
        let zones = 0..scenario.zones;
        let zone_up = zones.clone().map(|_| network.add_link(scenario.zone_line)).collect();
        let zone_down = zones.map(|_| network.add_link(scenario.zone_line)).collect();
        let step = f64::from(scenario.chunk_bytes) / scenario.line / f64::from(STEPS_PER_CHUNK);
        let mut world = Self {
            now: Duration::ZERO,
            step: Duration::from_secs_f64(step),
            hosts: Vec::new(),
            network,
            zone_up,
            zone_down,
            streams: Vec::new(),
            stream_of: HashMap::new(),
            queue: BinaryHeap::new(),
            waiting: Vec::new(),
            vacant: Vec::new(),
            serial: 0,
            counts: Counts { zones_in: vec![0; scenario.zones], ..Counts::default() },
            unfinished: 0,
            recipe: RecipeId::of(&scenario.seed.to_be_bytes()),
            draw: Draw::new(draw.number()),
            scenario,
        };
        for _ in 0..world.scenario.nodes {
            let node = world.add_host(Conduct::Honest, world.scenario.origin_line, usize::MAX);
            world.hosts[node].uploads = Uploads::of_node();
            world.hosts[node].held = ChunkSet::full(world.scenario.chunks());
        }
        for at in 0..world.scenario.peers {
            world.add_peer(at % world.scenario.zones);
        }
        world.plan_faults();
        world
    }

    fn add_host(&mut self, conduct: Conduct, line: f64, zone: usize) -> Number {
        let at = self.hosts.len();
        let seed = self.draw.number();
        let settings = Settings { me: contact(at).peer, seed, zone: self.label(zone) };
        self.hosts.push(Host {
            core: Swarm::new(settings),
            uploads: Uploads::default(),
            ledger: Ledger::default(),
            held: ChunkSet::empty(self.scenario.chunks()),
            conduct,
            zone,
            up: self.network.add_link(line * (1.0 - self.scenario.loss)),
            down: self.network.add_link(line),
            line,
            peers: BTreeMap::new(),
            asked: HashMap::new(),
            alive: true,
            began: Duration::ZERO,
            finished: None,
            sent: 0,
            wake_at: None,
            paused_until: Duration::ZERO,
        });
        at
    }

    fn is_node(&self, host: Number) -> bool {
        host < self.scenario.nodes
    }

    fn is_far(&self, one: Number, other: Number) -> bool {
        self.hosts[one].zone != self.hosts[other].zone
    }

    /// The label of a zone; none where all are in one.
    fn label(&self, zone: usize) -> Zone {
        let named = self.scenario.zones > 1 && zone < self.scenario.zones;
        let text = if named { format!("here/room-{zone}") } else { String::new() };
        text.parse().unwrap_or_default()
    }

    fn member(&self, host: Number) -> Member {
        Member { contact: contact(host), zone: self.label(self.hosts[host].zone), cache: false }
    }

    fn add_peer(&mut self, zone: usize) -> Number {
        let chance = self.draw.share();
        let s = &self.scenario;
        let kinds = [
            (s.liars, Conduct::Liar),
            (s.stallers, Conduct::Staller),
            (s.free_riders, Conduct::FreeRider),
        ];
        let mut conduct = Conduct::Honest;
        let mut below = 0.0;
        for (share, kind) in kinds {
            if chance >= below && chance < below + share {
                conduct = kind;
            }
            below += share;
        }
        let speed = self.draw.share();
        let line = if speed < s.very_slow {
            s.line / 100.0
        } else if speed < s.very_slow + s.slow {
            s.line / 10.0
        } else {
            s.line
        };
        let wait = s.arrival.mul_f64(self.draw.share());
        let at = self.add_host(conduct, line, zone);
        if conduct == Conduct::Honest || conduct == Conduct::FreeRider {
            self.unfinished += 1;
        }
        self.later(wait, What::Begin(at));
        at
    }

    fn plan_faults(&mut self) {
        let bound = Duration::from_secs_f64(self.bound_of(None));
        if let Some(share) = self.scenario.node_dies_at {
            for node in 0..self.scenario.nodes {
                self.later(bound.mul_f64(share), What::Crash(node));
            }
        }
        if self.scenario.pause > Duration::ZERO {
            for host in 0..self.hosts.len() {
                let wait = self.scenario.pause_every.mul_f64(2.0 * self.draw.share());
                self.later(wait, What::Pause(host));
            }
        }
        for at in self.scenario.nodes..self.hosts.len() {
            if self.draw.share() < self.scenario.churn {
                let wait = bound.mul_f64(self.draw.share());
                self.later(wait, What::Crash(at));
            }
        }
    }

    fn bound_of(&self, host: Option<Number>) -> f64 {
        let gives = |host: &&Host| host.conduct == Conduct::Honest;
        let first = self.hosts.iter().skip(self.scenario.nodes).take(self.scenario.peers);
        let uplinks: f64 = first.filter(gives).map(|host| host.line).sum();
        let down = host.map_or(self.scenario.line, |host| self.hosts[host].line);
        bound(&self.scenario, uplinks, down)
    }

    fn later(&mut self, after: Duration, what: What) {
        self.at(self.now + after, what);
    }

    fn at(&mut self, at: Duration, what: What) {
        let place = self.vacant.pop().unwrap_or_else(|| {
            self.waiting.push(None);
            self.waiting.len() - 1
        });
        self.waiting[place] = Some(what);
        self.serial += 1;
        self.queue.push(Reverse((at, self.serial, place)));
    }

    /// One way from one to the other, with what was lost sent again.
    fn latency(&mut self, one: Number, other: Number) -> Duration {
        let with_node = self.is_node(one) || self.is_node(other);
        let near = !with_node && self.hosts[one].zone == self.hosts[other].zone;
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
            let end = if self.network.active().is_empty() {
                let Some(&Reverse((next, ..))) = self.queue.peek() else { break };
                next.max(self.now)
            } else {
                self.now + self.step
            };
            self.flow(end);
            while let Some(&Reverse((at, _, place))) = self.queue.peek()
                && at <= end
            {
                self.queue.pop();
                self.now = self.now.max(at);
                let what = self.waiting[place].take();
                self.vacant.push(place);
                if let Some(what) = what {
                    self.counts.events += 1;
                    self.happen(what);
                }
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
            return self.at(self.hosts[host].paused_until, what);
        }
        match what {
            What::Tell(to, event) => self.tell(to, event),
            What::Message(from, to, event) => {
                if !self.hosts[to].peers.contains_key(&from) {
                    return;
                }
                if let Event::Frame { frame: Frame::Pass, .. } = event {
                    self.hosts[to].uploads.pass(contact(from).peer);
                    self.invite(to);
                }
                self.tell(to, event);
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
        let (zone, unfinished) = (found.zone, counted && found.finished.is_none());
        if !self.is_node(host) && unfinished {
            self.unfinished -= 1;
        }
        for other in std::mem::take(&mut self.hosts[host].peers).into_keys() {
            self.drop_stream(host, other);
            self.drop_stream(other, host);
            let peer = contact(host).peer;
            self.later(self.scenario.detection, What::Tell(other, Event::Disconnected { peer }));
        }
        if !self.is_node(host) {
            self.add_peer(zone);
        }
    }

    fn drop_stream(&mut self, from: Number, to: Number) {
        if let Some(&flow) = self.stream_of.get(&(from, to)) {
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
            self.at(due, What::Wake(host));
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
        if self.hosts[from].peers.contains_key(&to) {
            let wait = self.latency(from, to);
            self.later(wait, What::Message(from, to, event));
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
        if self.hosts[one].peers.remove(&other).is_some() {
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
        if self.hosts[from].alive && !self.hosts[from].peers.contains_key(&to) {
            self.hosts[from].peers.insert(to, ());
            self.hosts[to].peers.insert(from, ());
            let rtt = self.latency(from, to) * 2;
            for (host, other) in [(from, to), (to, from)] {
                let (member, node) = (self.member(other), self.is_node(other));
                self.tell(host, Event::Connected { member, node, rtt });
            }
        }
    }

    fn asked(
        &mut self,
        from: Number,
        to: Number,
        request: RequestId,
        mut indices: Vec<u32>,
        insists: bool,
    ) {
        if !self.hosts[to].alive || !self.hosts[to].peers.contains_key(&from) {
            return;
        }
        match self.hosts[to].conduct {
            Conduct::Staller => return,
            Conduct::FreeRider => return self.refuse(from, to, request, RequestEnd::Busy),
            Conduct::Liar => {
                self.counts.wasted += u64::from(self.scenario.chunk_bytes);
                let wait = self.latency(to, from);
                if self.hosts[from].asked.remove(&request).is_some() {
                    self.later(wait, What::Message(to, from, Event::Wrong { request }));
                }
                return;
            }
            Conduct::Honest => {}
        }
        let held = indices.iter().take_while(|&&index| self.hosts[to].held.contains(index));
        let count = held.count();
        if count == 0 {
            return self.refuse(from, to, request, RequestEnd::Failed);
        }
        let now = self.now;
        let far = self.is_far(from, to);
        let admission = self.hosts[to].uploads.begin(now, contact(from).peer, far);
        if let Admission::Busy { name_others } = admission {
            if name_others {
                self.name_others(to, from);
            }
            return self.refuse(from, to, request, RequestEnd::Busy);
        }
        indices.truncate(count);
        if self.is_node(to) && self.put_off(from, to, request, &mut indices, insists) {
            return self.end_upload(to, from);
        }
        if self.is_node(to) && self.scenario.storage > Duration::ZERO {
            let wait = self.scenario.storage.mul_f64(self.draw.share());
            return self.later(wait, What::Serve { from, to, request, indices });
        }
        self.send(from, to, request, &indices);
    }

    /// Leaves what this node gave to others, and tells of the rest; whether nothing is left.
    fn put_off(
        &mut self,
        from: Number,
        node: Number,
        request: RequestId,
        indices: &mut Vec<u32>,
        insists: bool,
    ) -> bool {
        let (now, recipe, to) = (self.now, self.recipe, contact(from).peer);
        let ledger = &mut self.hosts[node].ledger;
        let mut others = Vec::new();
        indices.retain(|&index| {
            let given = ledger.give(now, recipe, index, to, insists);
            given.map_err(|by| others.push((index, by))).is_ok()
        });
        let wait = self.latency(node, from);
        self.counts.control += 36 * others.len() as u64;
        for (index, by) in others {
            self.later(wait, What::Message(node, from, Event::Elsewhere { request, index, by }));
        }
        if indices.is_empty() {
            self.hosts[from].asked.remove(&request);
            let end = RequestEnd::Done;
            self.later(wait, What::Message(node, from, Event::Ended { request, end }));
        }
        indices.is_empty()
    }

    fn send(&mut self, from: Number, to: Number, request: RequestId, indices: &[u32]) {
        let wanted = self.hosts[from].asked.contains_key(&request);
        if !self.hosts[to].alive || !self.hosts[to].peers.contains_key(&from) || !wanted {
            for &index in indices {
                self.hosts[to].ledger.take_back(self.recipe, index, contact(from).peer);
            }
            return self.end_upload(to, from);
        }
        let flow = self.stream(to, from);
        let count = indices.len();
        let stream = &mut self.streams[flow as usize];
        if stream.queue.is_empty() {
            stream.left = f64::from(self.scenario.chunk_bytes);
        }
        for (at, &index) in indices.iter().enumerate() {
            stream.queue.push_back(Piece { request, index, last: at + 1 == count });
        }
        self.network.start(flow);
    }

    /// Those who get chunks from here now soon have what others ask for.
    fn name_others(&mut self, busy: Number, to: Number) {
        let served: Vec<Number> = self.hosts[busy].uploads.served().map(number).collect();
        let others = served.into_iter().filter(|&other| other != to).take(NAMED);
        let members: Vec<Member> = others.map(|other| self.member(other)).collect();
        if !members.is_empty() {
            let frame = Frame::Peers { recipe: self.recipe, members };
            let peer = contact(busy).peer;
            self.message(busy, contact(to).peer, Event::Frame { peer, frame });
        }
    }

    fn refuse(&mut self, from: Number, to: Number, request: RequestId, end: RequestEnd) {
        let wait = self.latency(to, from);
        self.hosts[from].asked.remove(&request);
        self.counts.control += 8;
        self.later(wait, What::Message(to, from, Event::Ended { request, end }));
    }

    fn stream(&mut self, from: Number, to: Number) -> FlowId {
        if let Some(&flow) = self.stream_of.get(&(from, to)) {
            return flow;
        }
        let (a, b) = (&self.hosts[from], &self.hosts[to]);
        let mut hops = vec![a.up];
        if a.zone != b.zone {
            hops.extend(self.zone_up.get(a.zone));
            hops.extend(self.zone_down.get(b.zone));
        }
        hops.push(b.down);
        let flow = self.network.add_flow(&hops);
        self.streams.push(Stream { from, to, queue: VecDeque::new(), left: 0.0 });
        self.stream_of.insert((from, to), flow);
        flow
    }

    fn cancel(&mut self, from: Number, to: Number, request: RequestId) {
        let Some(&flow) = self.stream_of.get(&(to, from)) else { return };
        let stream = &mut self.streams[flow as usize];
        let was = stream.queue.len();
        for piece in stream.queue.iter().filter(|piece| piece.request == request) {
            self.hosts[to].ledger.take_back(self.recipe, piece.index, contact(from).peer);
        }
        let whole = f64::from(self.scenario.chunk_bytes);
        if stream.queue.front().is_some_and(|piece| piece.request == request) {
            self.counts.wasted += (whole - stream.left) as u64;
            stream.left = whole;
        }
        stream.queue.retain(|piece| piece.request != request);
        if stream.queue.len() == was {
            return;
        }
        if stream.queue.is_empty() {
            self.network.stop(flow);
        }
        self.end_upload(to, from);
    }

    fn end_upload(&mut self, server: Number, client: Number) {
        self.hosts[server].uploads.end(contact(client).peer);
        self.invite(server);
    }

    fn invite(&mut self, server: Number) {
        while let Some(next) = self.hosts[server].uploads.invite(self.now) {
            let peer = contact(server).peer;
            self.message(server, next, Event::Frame { peer, frame: Frame::Free });
        }
    }

    /// Content flows until `end`.
    fn flow(&mut self, end: Duration) {
        let seconds = (end.saturating_sub(self.now)).as_secs_f64();
        if seconds == 0.0 || self.network.active().is_empty() {
            return;
        }
        self.network.share();
        let whole = f64::from(self.scenario.chunk_bytes);
        let mut sent: Vec<(Number, Number, Piece)> = Vec::new();
        let mut idle = Vec::new();
        for &flow in self.network.active() {
            let mut budget = self.network.rate(flow) * seconds;
            let stream = &mut self.streams[flow as usize];
            while budget >= stream.left
                && let Some(piece) = stream.queue.pop_front()
            {
                budget -= stream.left;
                stream.left = whole;
                sent.push((stream.from, stream.to, piece));
            }
            stream.left -= budget;
            if stream.queue.is_empty() {
                idle.push(flow);
            }
        }
        idle.into_iter().for_each(|flow| self.network.stop(flow));
        for (from, to, piece) in sent {
            self.deliver(end, from, to, piece);
        }
    }

    fn deliver(&mut self, end: Duration, from: Number, to: Number, piece: Piece) {
        let bytes = u64::from(self.scenario.chunk_bytes);
        self.hosts[from].sent += bytes;
        self.hosts[from].uploads.sent(end, bytes);
        if self.is_node(from) {
            self.counts.origin += bytes;
        }
        let zone = self.hosts[to].zone;
        if self.hosts[from].zone != zone {
            self.counts.zones_in[zone] += bytes;
        }
        let Piece { request, index, last } = piece;
        let wait = self.latency(from, to);
        self.at(end + wait, What::Arrive { to, from, request, index, last });
        if last {
            self.end_upload(from, to);
        }
    }

    fn arrive(&mut self, to: Number, from: Number, request: RequestId, index: u32, last: bool) {
        let bytes = self.scenario.chunk_bytes;
        let host = &mut self.hosts[to];
        let awaited = host.asked.get(&request) == Some(&from) && host.alive;
        if !awaited || !host.held.insert(index) {
            self.counts.wasted += u64::from(bytes);
        } else {
            self.counts.useful += u64::from(bytes);
        }
        if awaited {
            self.tell(to, Event::Arrived { request, index, bytes });
            if last && self.hosts[to].asked.remove(&request).is_some() {
                self.tell(to, Event::Ended { request, end: RequestEnd::Done });
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
