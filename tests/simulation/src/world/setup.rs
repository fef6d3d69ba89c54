//! Who is there, on which lines, and what will befall them.

use super::*;

impl World {
    pub(super) fn new(scenario: Scenario) -> Self {
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
            zones: Vec::new(),
            network,
            zone_up,
            zone_down,
            streams: Vec::new(),
            queue: Queue::new(Duration::from_secs_f64(step) / SLOTS_PER_STEP),
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

    pub(super) fn add_host(&mut self, conduct: Conduct, line: f64, zone: usize) -> Number {
        let at = self.hosts.len();
        let seed = self.draw.number();
        let settings = Settings { me: contact(at).peer, seed, zone: self.label(zone) };
        self.zones.push(zone);
        self.hosts.push(Host {
            core: Swarm::new(settings),
            uploads: Uploads::default(),
            ledger: Ledger::default(),
            held: ChunkSet::empty(self.scenario.chunks()),
            conduct,
            up: self.network.add_link(line * (1.0 - self.scenario.loss)),
            down: self.network.add_link(line),
            line,
            peers: BTreeSet::new(),
            asked: BTreeMap::new(),
            streams: BTreeMap::new(),
            alive: true,
            began: Duration::ZERO,
            finished: None,
            sent: 0,
            wake_at: None,
            paused_until: Duration::ZERO,
        });
        at
    }

    pub(super) fn is_node(&self, host: Number) -> bool {
        host < self.scenario.nodes
    }

    pub(super) fn is_far(&self, one: Number, other: Number) -> bool {
        self.zones[one] != self.zones[other]
    }

    /// The label of a zone; none where all are in one.
    pub(super) fn label(&self, zone: usize) -> Zone {
        let named = self.scenario.zones > 1 && zone < self.scenario.zones;
        let text = if named { format!("here/room-{zone}") } else { String::new() };
        text.parse().unwrap_or_default()
    }

    pub(super) fn member(&self, host: Number) -> Member {
        Member { contact: contact(host), zone: self.label(self.zones[host]), cache: false }
    }

    pub(super) fn add_peer(&mut self, zone: usize) -> Number {
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

    pub(super) fn plan_faults(&mut self) {
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

    pub(super) fn bound_of(&self, host: Option<Number>) -> f64 {
        let gives = |host: &&Host| host.conduct == Conduct::Honest;
        let first = self.hosts.iter().skip(self.scenario.nodes).take(self.scenario.peers);
        let uplinks: f64 = first.filter(gives).map(|host| host.line).sum();
        let down = host.map_or(self.scenario.line, |host| self.hosts[host].line);
        bound(&self.scenario, uplinks, down)
    }
}
