//! A small swarm on a virtual clock: the cores, each with a shell of a few lines.
//!
//! Each host has one line each way, which carries one chunk after the other, and may have a disk that
//! holds it up; a message takes its latency. Who is killed says nothing: the others hear of it after [`DETECTION`], as QUIC's idle
//! timeout tells it. A chunk that a request to it was to bring is an orphan from then on, until it
//! is asked of somebody else or is there.
//! Non-goals: lines that flows share, loss, liars; `tests/simulation` has them.

#![allow(dead_code, reason = "each test binary takes what it needs")]

mod serving;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use shoal_content::{PeerId, RecipeId, Zone};
use shoal_swarm::frames::Frame;
use shoal_swarm::{
    Action, BanReason, ChunkSet, Contact, Event, Ledger, Member, RequestId, Settings, Swarm,
    Uploads,
};

use crate::draw::Draw;

pub const CHUNK_BYTES: u32 = 256 * 1024;
/// After so much silence a connection is broken.
pub const DETECTION: Duration = Duration::from_secs(4);
/// Who does not answer for so long is not reached.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
const LATENCY: Duration = Duration::from_micros(100);
/// From dialling to the first message, in latencies.
const HANDSHAKE: u32 = 4;
/// Others that a busy host names.
const NAMED: usize = 4;

pub type Number = usize;

#[derive(Debug, Clone, Copy)]
struct Piece {
    to: Number,
    request: RequestId,
    recipe: RecipeId,
    index: u32,
    last: bool,
}

#[derive(Debug)]
struct Asked {
    of: Number,
    recipe: RecipeId,
    open: Vec<u32>,
    /// What came while a chunk of it is being written.
    behind: VecDeque<Piece>,
    is_writing: bool,
}

/// A disk that takes what comes in turn, and pauses after each so many chunks, as a sync does.
#[derive(Debug, Clone, Copy)]
pub struct Disk {
    pub pauses_after: u64,
    pub pause: Duration,
    written: u64,
    free_at: Duration,
}

impl Disk {
    pub fn pausing(pauses_after: u64, pause: Duration) -> Self {
        Self { pauses_after, pause, written: 0, free_at: Duration::ZERO }
    }

    /// When the next chunk is written.
    fn takes(&mut self, now: Duration) -> Duration {
        self.written += 1;
        let pauses = self.written.is_multiple_of(self.pauses_after);
        self.free_at = self.free_at.max(now) + if pauses { self.pause } else { Duration::ZERO };
        self.free_at
    }
}

pub struct Host {
    pub core: Swarm,
    pub alive: bool,
    /// When each recipe was complete.
    pub done: BTreeMap<RecipeId, Duration>,
    pub bans: Vec<BanReason>,
    /// Chunks that came from nodes.
    pub from_nodes: u64,
    /// Chunks that came though they were there.
    pub doubles: u64,
    /// Without one, what comes is written at once.
    pub disk: Option<Disk>,
    /// It says what it holds, and answers no request.
    pub stalls: bool,
    node: bool,
    zone: Zone,
    uploads: Uploads,
    ledger: Ledger,
    held: BTreeMap<RecipeId, ChunkSet>,
    under_way: BTreeSet<RecipeId>,
    /// Bytes a second, each way.
    line: f64,
    line_in_free: Duration,
    queue: VecDeque<Piece>,
    on_line: Option<Piece>,
    /// With whom, and which connection it is.
    links: BTreeMap<Number, u64>,
    asked: BTreeMap<RequestId, Asked>,
    wake_at: Option<Duration>,
    /// How often it was started: what was meant for an earlier life is lost.
    life: u32,
}

enum What {
    Message { from: Number, to: Number, link: u64, event: Event },
    Dialled { from: Number, to: Number, life: u32, fails: bool },
    Ask { from: Number, to: Number, request: RequestId, indices: Vec<u32>, insists: bool },
    Sent { host: Number, life: u32 },
    Arrive { from: Number, piece: Piece },
    Written { from: Number, life: u32, piece: Piece },
    Cancel { of: Number, from: Number, request: RequestId },
    Broken { host: Number, other: Number, link: u64 },
    Wake(Number),
}

pub struct Lan {
    pub now: Duration,
    pub hosts: Vec<Host>,
    /// How long each orphan took that another neighbour held.
    pub replaced: Vec<Duration>,
    /// The same of those that nobody near held.
    pub brought_anew: Vec<Duration>,
    orphans: BTreeMap<(Number, RecipeId, u32), (Duration, bool)>,
    queue: BTreeMap<(Duration, u64), What>,
    serial: u64,
    nodes: Vec<Number>,
    draw: Draw,
    /// A zone that nothing gets into or out of.
    cut: Option<Zone>,
}

pub fn contact(host: Number) -> Contact {
    let mut key = [0; 32];
    let mut draw = Draw(host as u64);
    key[..8].copy_from_slice(&(host as u64).to_be_bytes());
    for part in key[8..].chunks_exact_mut(8) {
        part.copy_from_slice(&draw.below(u64::MAX).to_be_bytes());
    }
    let address = ([10, (host >> 16) as u8, (host >> 8) as u8, host as u8], 5002).into();
    Contact { peer: PeerId::from_public_key(key), address }
}

pub fn number(peer: PeerId) -> Number {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&peer.as_public_key()[..8]);
    u64::from_be_bytes(bytes) as Number
}

impl Lan {
    /// With so many nodes, which have everything.
    pub fn new(seed: u64, nodes: usize, bytes_per_second: f64) -> Self {
        let mut lan = Self {
            now: Duration::ZERO,
            hosts: Vec::new(),
            replaced: Vec::new(),
            brought_anew: Vec::new(),
            orphans: BTreeMap::new(),
            queue: BTreeMap::new(),
            serial: 0,
            nodes: Vec::new(),
            draw: Draw(seed),
            cut: None,
        };
        for _ in 0..nodes {
            let node = lan.add("", bytes_per_second);
            lan.hosts[node].node = true;
            lan.hosts[node].uploads = Uploads::of_node();
            lan.nodes.push(node);
        }
        lan
    }

    /// A host that has nothing.
    pub fn add(&mut self, zone: &str, bytes_per_second: f64) -> Number {
        let (host, zone) = (self.hosts.len(), zone.parse().unwrap_or_else(|_| Zone::default()));
        let core = self.core(host, &zone);
        self.hosts.push(Host {
            core,
            alive: true,
            done: BTreeMap::new(),
            bans: Vec::new(),
            from_nodes: 0,
            doubles: 0,
            disk: None,
            stalls: false,
            node: false,
            zone,
            uploads: Uploads::default(),
            ledger: Ledger::default(),
            held: BTreeMap::new(),
            under_way: BTreeSet::new(),
            line: bytes_per_second,
            line_in_free: Duration::ZERO,
            queue: VecDeque::new(),
            on_line: None,
            links: BTreeMap::new(),
            asked: BTreeMap::new(),
            wake_at: None,
            life: 0,
        });
        host
    }

    fn core(&mut self, host: Number, zone: &Zone) -> Swarm {
        let seed = self.draw.below(u64::MAX);
        Swarm::new(Settings { me: contact(host).peer, seed, zone: zone.clone() })
    }

    /// Lets `host` fetch what it lacks of a recipe of so many chunks.
    pub fn fetch(&mut self, host: Number, recipe: RecipeId, chunks: u32) {
        let nodes = self.nodes.iter().map(|&node| contact(node)).collect();
        let found = &mut self.hosts[host];
        let held = found.held.entry(recipe).or_insert_with(|| ChunkSet::empty(chunks)).clone();
        found.under_way.insert(recipe);
        self.tell(host, Event::Nodes(nodes));
        self.tell(host, Event::Start { recipe, held });
    }

    /// Lets `host` say that it has all of a recipe.
    pub fn offer(&mut self, host: Number, recipe: RecipeId, chunks: u32) {
        self.hosts[host].held.insert(recipe, ChunkSet::full(chunks));
        self.fetch(host, recipe, chunks);
    }

    /// What `host` holds of it leaves its cache.
    pub fn drop_recipe(&mut self, host: Number, recipe: RecipeId) {
        self.hosts[host].held.remove(&recipe);
        self.hosts[host].under_way.remove(&recipe);
        self.tell(host, Event::Stop { recipe });
    }

    pub fn holds(&self, host: Number, recipe: RecipeId) -> u32 {
        self.hosts[host].held.get(&recipe).map_or(0, ChunkSet::count)
    }

    /// It is gone without a word; what it held stays on its disk.
    pub fn kill(&mut self, host: Number) {
        for other in 0..self.hosts.len() {
            for asked in self.hosts[other].asked.values().filter(|asked| asked.of == host) {
                for &index in &asked.open {
                    let held = self.is_held_by_another(other, host, asked.recipe, index);
                    self.orphans.insert((other, asked.recipe, index), (self.now, held));
                }
            }
        }
        let zone = self.hosts[host].zone.clone();
        let core = self.core(host, &zone);
        let found = &mut self.hosts[host];
        (found.alive, found.core) = (false, core);
        found.life += 1;
        (found.on_line, found.wake_at) = (None, None);
        found.queue.clear();
        found.asked.clear();
        found.under_way.clear();
        found.uploads = if found.node { Uploads::of_node() } else { Uploads::default() };
        found.ledger = Ledger::default();
        for (other, link) in std::mem::take(&mut found.links) {
            self.later(DETECTION, What::Broken { host: other, other: host, link });
        }
        self.orphans.retain(|&(orphaned, ..), _| orphaned != host);
    }

    pub fn revive(&mut self, host: Number) {
        self.hosts[host].alive = true;
    }

    /// It closes its connections and is gone.
    pub fn leave(&mut self, host: Number) {
        let others: Vec<Number> = self.hosts[host].links.keys().copied().collect();
        others.into_iter().for_each(|other| self.close(host, other));
        self.kill(host);
    }

    /// Nothing gets into or out of `zone` any more.
    pub fn cut(&mut self, zone: &str) {
        self.cut = zone.parse().ok();
        for host in 0..self.hosts.len() {
            let links: Vec<(Number, u64)> =
                self.hosts[host].links.iter().map(|(&other, &link)| (other, link)).collect();
            for (other, link) in links {
                if !self.reach(host, other) {
                    self.later(DETECTION, What::Broken { host, other, link });
                }
            }
        }
    }

    pub fn mend(&mut self) {
        self.cut = None;
    }

    fn reach(&self, one: Number, other: Number) -> bool {
        let inside = |host: Number| self.cut.as_ref() == Some(&self.hosts[host].zone);
        self.hosts[one].alive && self.hosts[other].alive && inside(one) == inside(other)
    }

    fn later(&mut self, wait: Duration, what: What) {
        self.serial += 1;
        self.queue.insert((self.now + wait, self.serial), what);
    }

    /// Goes on until `end`, or until `stop`.
    pub fn run_until(&mut self, end: Duration, mut stop: impl FnMut(&Self) -> bool) {
        while !stop(self) {
            match self.queue.first_key_value() {
                Some((&(at, _), _)) if at <= end => {}
                _ => {
                    self.now = self.now.max(end);
                    return;
                }
            }
            if let Some(((at, _), what)) = self.queue.pop_first() {
                self.now = at;
                self.happen(what);
            }
        }
    }

    pub fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time, |_| false);
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Message { from, to, link, event } => {
                if self.hosts[to].links.get(&from) == Some(&link) && self.reach(from, to) {
                    self.hear(to, from, event);
                }
            }
            What::Dialled { from, to, life, fails } if self.hosts[from].life == life => {
                self.dialled(from, to, fails);
            }
            What::Dialled { .. } => {}
            What::Ask { from, to, request, indices, insists } => {
                if self.hosts[to].links.contains_key(&from) && self.reach(from, to) {
                    self.serve(from, to, request, indices, insists);
                }
            }
            What::Sent { host, life } if self.hosts[host].life == life => self.sent(host),
            What::Sent { .. } => {}
            What::Arrive { from, piece } => self.arrive(from, piece),
            What::Written { from, life, piece } if self.hosts[piece.to].life == life => {
                self.written(from, piece);
            }
            What::Written { .. } => {}
            What::Cancel { of, from, request } => self.cancelled(of, from, request),
            What::Broken { host, other, link } => {
                if self.hosts[host].links.get(&other) == Some(&link) {
                    self.unlink(host, other);
                }
            }
            What::Wake(host) if self.hosts[host].wake_at == Some(self.now) => {
                self.hosts[host].wake_at = None;
                self.tell(host, Event::Tick);
            }
            What::Wake(_) => {}
        }
    }

    pub fn tell(&mut self, host: Number, event: Event) {
        if !self.hosts[host].alive {
            return;
        }
        self.hosts[host].core.handle(self.now, event);
        while let Some(action) = self.hosts[host].core.poll_action() {
            self.perform(host, action);
        }
        let Some(due) = self.hosts[host].core.next_timeout() else { return };
        let due = due.max(self.now);
        if self.hosts[host].wake_at.is_none_or(|at| due < at) {
            self.hosts[host].wake_at = Some(due);
            self.later(due - self.now, What::Wake(host));
        }
    }

    fn message(&mut self, from: Number, to: Number, event: Event) {
        if let Some(&link) = self.hosts[from].links.get(&to) {
            self.later(LATENCY, What::Message { from, to, link, event });
        }
    }

    fn send(&mut self, from: Number, to: Number, frame: Frame) {
        self.message(from, to, Event::Frame { peer: contact(from).peer, frame });
    }

    fn perform(&mut self, host: Number, action: Action) {
        match action {
            Action::Dial(to) => {
                let (to, life) = (number(to.peer), self.hosts[host].life);
                let fails = !self.reach(host, to);
                let wait = if fails { DIAL_TIMEOUT } else { LATENCY * HANDSHAKE };
                self.later(wait, What::Dialled { from: host, to, life, fails });
            }
            Action::Close { peer } => self.close(host, number(peer)),
            Action::Join { peer, recipe } => {
                let me = contact(host).peer;
                self.message(host, number(peer), Event::Joined { peer: me, recipe });
            }
            Action::Send { peer, frame } => self.send(host, number(peer), frame),
            Action::Request { request, peer, recipe, indices, insists } => {
                let of = number(peer);
                let held = &self.hosts[host].held[&recipe];
                assert!(
                    !indices.iter().any(|&index| held.contains(index)),
                    "what is held is asked for"
                );
                for &index in &indices {
                    self.is_replaced(host, recipe, index);
                }
                let (open, behind) = (indices.clone(), VecDeque::new());
                let asked = Asked { of, recipe, open, behind, is_writing: false };
                self.hosts[host].asked.insert(request, asked);
                let ask = What::Ask { from: host, to: of, request, indices, insists };
                self.later(LATENCY, ask);
            }
            Action::Cancel { request } => {
                if let Some(asked) = self.hosts[host].asked.remove(&request) {
                    let cancel = What::Cancel { of: asked.of, from: host, request };
                    self.later(LATENCY, cancel);
                }
            }
            Action::Ban { reason, .. } => self.hosts[host].bans.push(reason),
            Action::Complete { recipe } => {
                let now = self.now;
                let found = &mut self.hosts[host];
                assert!(found.held[&recipe].is_full(), "complete without all");
                found.under_way.remove(&recipe);
                found.done.entry(recipe).or_insert(now);
            }
        }
    }

    /// Whether a neighbour of `host` other than `but` holds the chunk.
    fn is_held_by_another(&self, host: Number, but: Number, recipe: RecipeId, index: u32) -> bool {
        let others = self.hosts[host].links.keys().filter(|&&other| other != but);
        others.map(|&other| &self.hosts[other]).any(|other| {
            other.alive && other.held.get(&recipe).is_some_and(|held| held.contains(index))
        })
    }

    fn is_replaced(&mut self, host: Number, recipe: RecipeId, index: u32) {
        if let Some((since, held)) = self.orphans.remove(&(host, recipe, index)) {
            let took = self.now - since;
            if held { self.replaced.push(took) } else { self.brought_anew.push(took) }
        }
    }

    /// Orphans that nobody has cared for yet.
    pub fn orphans(&self) -> usize {
        self.orphans.len()
    }

    fn dialled(&mut self, from: Number, to: Number, fails: bool) {
        let banned = |one: Number, other| self.hosts[one].core.is_banned(contact(other).peer);
        if fails || !self.reach(from, to) || banned(to, from) {
            return self.tell(from, Event::DialFailed { peer: contact(to).peer });
        }
        self.serial += 1;
        let link = self.serial;
        for (host, other) in [(from, to), (to, from)] {
            self.forget_uploads(host, other);
            self.hosts[host].links.insert(other, link);
            let member = self.member(other);
            let node = self.hosts[other].node;
            self.tell(host, Event::Connected { member, node, rtt: LATENCY * 2 });
        }
    }

    fn member(&self, host: Number) -> Member {
        Member { contact: contact(host), zone: self.hosts[host].zone.clone(), cache: false }
    }

    fn close(&mut self, one: Number, other: Number) {
        if let Some(&link) = self.hosts[one].links.get(&other) {
            self.later(LATENCY, What::Broken { host: other, other: one, link });
            self.unlink(one, other);
        }
    }

    fn unlink(&mut self, host: Number, other: Number) {
        self.hosts[host].links.remove(&other);
        self.forget_uploads(host, other);
        let peer = contact(other).peer;
        self.hosts[host].asked.retain(|_, asked| asked.of != other);
        self.tell(host, Event::Disconnected { peer });
        self.invite(host);
    }

    fn forget_uploads(&mut self, host: Number, other: Number) {
        let found = &mut self.hosts[host];
        let peer = contact(other).peer;
        let ends = found.queue.iter().filter(|piece| piece.to == other && piece.last).count();
        found.queue.retain(|piece| piece.to != other);
        (0..ends).for_each(|_| found.uploads.end(peer));
        found.uploads.pass(peer);
        found.ledger.forget(peer);
    }

    fn hear(&mut self, host: Number, from: Number, event: Event) {
        match event {
            Event::Frame { frame: Frame::Pass, .. } => {
                self.hosts[host].uploads.pass(contact(from).peer);
                return self.invite(host);
            }
            Event::Joined { recipe, .. } => {
                let found = &self.hosts[host];
                if !found.node && !found.under_way.contains(&recipe) {
                    let held = found.held.get(&recipe).cloned().unwrap_or_default();
                    for frame in Frame::holdings(recipe, &held) {
                        self.send(host, from, frame);
                    }
                    self.send(host, from, Frame::Claim { recipe, chunks: Vec::new() });
                }
            }
            Event::Ended { request, .. } => drop(self.hosts[host].asked.remove(&request)),
            _ => {}
        }
        self.tell(host, event);
    }
}
