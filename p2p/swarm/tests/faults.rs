//! Crashes and slow peers over real cores, replayed by seed; a failing run prints its seed.
//!
//! Each uplink sends one chunk at a time; every message takes one latency. Always checked: no
//! banned peer is asked, and nothing that is held. Non-goals: tickets, hashing, packet loss.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_content::{PeerId, RecipeId};
use shoal_swarm::{Action, ChunkSet, Contact, Event, RequestEnd, RequestId, Settings, Swarm};

const CHUNKS: u32 = 200;
const CHUNK_BYTES: u32 = 256 * 1024;
const LATENCY: Duration = Duration::from_millis(2);
const CHUNK_TIME: Duration = Duration::from_millis(4);
const LIMIT: Duration = Duration::from_secs(60);
const SEEDS: u64 = 4;
const HOSTS: usize = 9;
/// Index of the node among the hosts.
const NODE: usize = 0;

enum What {
    Tell(usize, Event),
    Dialled(usize, usize),
    Serve(usize, RequestId),
    Served(usize, RequestId),
}

struct Host {
    core: Swarm,
    held: ChunkSet,
    links: BTreeSet<usize>,
    alive: bool,
    complete: bool,
    chunk_time: Duration,
    free_at: Duration,
}

struct World {
    seed: u64,
    now: Duration,
    hosts: Vec<Host>,
    queue: BTreeMap<(Duration, u64), What>,
    requests: BTreeMap<(usize, RequestId), (usize, Vec<u32>)>,
    serial: u64,
}

fn contact(host: usize) -> Contact {
    let address = ([10, 0, 0, host as u8], 4433).into();
    Contact { peer: PeerId::from_public_key([host as u8; 32]), address }
}

fn number(peer: PeerId) -> usize {
    usize::from(peer.as_public_key()[0])
}

impl World {
    fn new(seed: u64) -> Self {
        let host = |at: usize| Host {
            core: Swarm::new(Settings { me: contact(at).peer, seed: seed * 1000 + at as u64 }),
            held: if at == NODE { ChunkSet::full(CHUNKS) } else { ChunkSet::empty(CHUNKS) },
            links: BTreeSet::new(),
            alive: true,
            complete: at == NODE,
            chunk_time: CHUNK_TIME,
            free_at: Duration::ZERO,
        };
        let hosts = (0..HOSTS).map(host).collect();
        let (queue, requests) = Default::default();
        let mut world = Self { seed, now: Duration::ZERO, hosts, queue, requests, serial: 0 };
        for host in 1..HOSTS {
            world.tell(host, Event::Nodes(vec![contact(NODE)]));
            let held = ChunkSet::empty(CHUNKS);
            world.tell(host, Event::Start { recipe: RecipeId::of(b"r"), held });
        }
        world
    }

    fn later(&mut self, after: Duration, what: What) {
        self.serial += 1;
        self.queue.insert((self.now + after, self.serial), what);
    }

    fn tell(&mut self, host: usize, event: Event) {
        if self.hosts[host].alive {
            self.hosts[host].core.handle(self.now, event);
            while let Some(action) = self.hosts[host].core.poll_action() {
                self.perform(host, action);
            }
        }
    }

    fn unlink(&mut self, one: usize, other: usize) {
        if self.hosts[one].links.remove(&other) {
            self.hosts[other].links.remove(&one);
            for (to, lost) in [(one, other), (other, one)] {
                let lost = Event::Disconnected { peer: contact(lost).peer };
                self.later(LATENCY, What::Tell(to, lost));
            }
        }
    }

    fn perform(&mut self, host: usize, action: Action) {
        let (me, seed) = (contact(host).peer, self.seed);
        let (to, event) = match action {
            Action::Dial(to) => {
                return self.later(LATENCY * 2, What::Dialled(host, number(to.peer)));
            }
            Action::Close { peer } => return self.unlink(host, number(peer)),
            Action::Join { peer, recipe, have } => (peer, Event::Joined { peer: me, recipe, have }),
            Action::Send { peer, frame } => (peer, Event::Frame { peer: me, frame }),
            Action::Request { request, peer, indices, .. } => {
                let asker = &self.hosts[host];
                assert!(!asker.core.is_banned(peer), "seed {seed}: a banned peer is asked");
                let held = indices.iter().any(|&index| asker.held.contains(index));
                assert!(!held, "seed {seed}: what is held is asked for");
                self.requests.insert((host, request), (number(peer), indices));
                return self.later(LATENCY, What::Serve(host, request));
            }
            Action::Cancel { request } => {
                self.requests.remove(&(host, request));
                return;
            }
            Action::Ban { peer, .. } => panic!("seed {seed}: honest {peer} is banned"),
            Action::Complete { .. } => {
                self.hosts[host].complete = true;
                return;
            }
        };
        if self.hosts[host].links.contains(&number(to)) {
            self.later(LATENCY, What::Tell(number(to), event));
        }
    }

    fn serve(&mut self, from: usize, request: RequestId) {
        let Some((server, indices)) = self.requests.get(&(from, request)) else { return };
        let (server, next) = (*server, indices.first().copied());
        if !self.hosts[server].links.contains(&from) {
            return;
        }
        if !next.is_some_and(|index| self.hosts[server].held.contains(index)) {
            let end = if next.is_none() { RequestEnd::Done } else { RequestEnd::Failed };
            self.requests.remove(&(from, request));
            return self.later(LATENCY, What::Tell(from, Event::Ended { request, end }));
        }
        let host = &mut self.hosts[server];
        host.free_at = host.free_at.max(self.now) + host.chunk_time;
        let wait = host.free_at - self.now;
        self.later(wait, What::Served(from, request));
    }

    fn served(&mut self, from: usize, request: RequestId) {
        let Some((server, indices)) = self.requests.get_mut(&(from, request)) else { return };
        let index = indices.remove(0);
        if self.hosts[*server].links.contains(&from) {
            self.hosts[from].held.insert(index);
            self.tell(from, Event::Arrived { request, index, bytes: CHUNK_BYTES });
            self.serve(from, request);
        }
    }

    fn dialled(&mut self, from: usize, to: usize) {
        if !self.hosts[to].alive {
            return self.tell(from, Event::DialFailed { peer: contact(to).peer });
        }
        if self.hosts[from].alive && self.hosts[from].links.insert(to) {
            self.hosts[to].links.insert(from);
            self.tell(from, Event::Connected { contact: contact(to), node: to == NODE });
            self.tell(to, Event::Connected { contact: contact(from), node: from == NODE });
        }
    }

    fn crash(&mut self, host: usize) {
        self.hosts[host].alive = false;
        for other in self.hosts[host].links.clone() {
            self.unlink(other, host);
        }
    }

    fn step(&mut self) {
        let timers = self.hosts.iter().enumerate().filter(|(_, host)| host.alive);
        let timer = timers.filter_map(|(at, host)| Some((host.core.next_timeout()?, at))).min();
        let due = self.queue.keys().next().map_or(Duration::MAX, |&(at, _)| at);
        if let Some((at, host)) = timer.filter(|&(at, _)| at < due) {
            self.now = self.now.max(at);
            return self.tell(host, Event::Tick);
        }
        let next = self.queue.pop_first();
        let ((at, _), what) = next.unwrap_or_else(|| panic!("seed {}: silence", self.seed));
        self.now = self.now.max(at);
        match what {
            What::Tell(to, event) => self.tell(to, event),
            What::Dialled(from, to) => self.dialled(from, to),
            What::Serve(from, request) => self.serve(from, request),
            What::Served(from, request) => self.served(from, request),
        }
    }

    fn run_until(&mut self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            self.step();
            let held: Vec<u32> = self.hosts.iter().map(|host| host.held.count()).collect();
            assert!(self.now < LIMIT, "seed {}: stuck with {held:?}", self.seed);
        }
    }

    fn complete(&mut self) {
        self.run_until(|world| world.hosts.iter().all(|host| !host.alive || host.complete));
        let whole = self.hosts.iter().all(|host| !host.alive || host.held.is_full());
        assert!(whole, "seed {}: complete without all", self.seed);
    }
}

#[test]
fn completes_after_the_node_dies_with_one_copy_spread() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        world.run_until(|world| {
            let held = |index| world.hosts[1..].iter().any(|host| host.held.contains(index));
            (0..CHUNKS).all(held)
        });
        world.crash(NODE);
        world.complete();
    }
}

#[test]
fn a_crash_and_a_slow_peer_hold_nobody_up() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        world.hosts[6].chunk_time = CHUNK_TIME * 200;
        world.run_until(|world| world.hosts[2].held.count() > CHUNKS / 2);
        world.crash(2);
        world.complete();
    }
}
