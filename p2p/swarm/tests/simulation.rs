//! Eight cores and a node in one process, replayed by seed: a cold swarm with one liar.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_content::{PeerId, RecipeId};
use shoal_swarm::{Action, ChunkSet, Contact, Event, RequestEnd, Settings, Swarm};

const CHUNKS: u32 = 400;
const NODE: usize = 0;
const LIAR: usize = 8;
const STEP: Duration = Duration::from_millis(5);
const END: Duration = Duration::from_secs(60);

fn contact(at: usize) -> Contact {
    let peer = PeerId::from_public_key([at as u8 + 1; 32]);
    Contact { peer, address: ([10, 0, 0, at as u8 + 1], 7000).into() }
}

fn at(peer: PeerId) -> usize {
    usize::from(peer.as_public_key()[0]) - 1
}

struct World {
    cores: Vec<Swarm>,
    queue: BTreeMap<(Duration, u64), (usize, Event)>,
    sent: u64,
    cancelled: BTreeSet<(usize, u64)>,
    complete: BTreeSet<usize>,
    banned: BTreeSet<PeerId>,
    from_node: u32,
}

impl World {
    fn later(&mut self, when: Duration, who: usize, event: Event) {
        self.sent += 1;
        self.queue.insert((when, self.sent), (who, event));
    }

    fn act(&mut self, now: Duration, me: usize) {
        while let Some(action) = self.cores[me].poll_action() {
            let soon = now + Duration::from_millis(1);
            match action {
                Action::Dial(to) => {
                    let other = at(to.peer);
                    self.later(soon, me, Event::Connected { contact: to, node: other == NODE });
                    let node = me == NODE;
                    self.later(soon, other, Event::Connected { contact: contact(me), node });
                }
                Action::Join { peer, recipe, have } => {
                    let joined = Event::Joined { peer: contact(me).peer, recipe, have };
                    self.later(soon, at(peer), joined);
                }
                Action::Send { peer, frame } => {
                    let frame = Event::Frame { peer: contact(me).peer, frame };
                    self.later(soon, at(peer), frame);
                }
                Action::Request { request, peer, indices, .. } => {
                    self.answer(now, me, request, at(peer), &indices);
                }
                Action::Cancel { request } => {
                    self.cancelled.insert((me, request));
                }
                Action::Close { peer } => {
                    self.later(soon, at(peer), Event::Disconnected { peer: contact(me).peer });
                }
                Action::Ban { peer, .. } => {
                    self.banned.insert(peer);
                }
                Action::Complete { .. } => {
                    self.complete.insert(me);
                }
            }
        }
    }

    fn answer(&mut self, now: Duration, me: usize, request: u64, from: usize, indices: &[u32]) {
        let mut when = now;
        for &index in indices {
            when += Duration::from_millis(3);
            if from == LIAR {
                return self.later(when, me, Event::Wrong { request });
            }
            self.from_node += u32::from(from == NODE);
            self.later(when, me, Event::Arrived { request, index, bytes: 262_144 });
        }
        self.later(when, me, Event::Ended { request, end: RequestEnd::Done });
    }
}

fn simulate(seed: u64) -> World {
    let core = |at| Swarm::new(Settings { me: contact(at).peer, seed: seed ^ at as u64 });
    let mut world = World {
        cores: (0..=LIAR).map(core).collect(),
        queue: BTreeMap::new(),
        sent: 0,
        cancelled: BTreeSet::new(),
        complete: BTreeSet::new(),
        banned: BTreeSet::new(),
        from_node: 0,
    };
    let recipe = RecipeId::of(b"recipe");
    for who in 1..=LIAR {
        let held = if who == LIAR { ChunkSet::full(CHUNKS) } else { ChunkSet::empty(CHUNKS) };
        world.later(Duration::ZERO, who, Event::Nodes(vec![contact(NODE)]));
        world.later(Duration::from_millis(who as u64), who, Event::Start { recipe, held });
    }
    let mut now = Duration::ZERO;
    while now < END && world.complete.len() < LIAR {
        now += STEP;
        while world.queue.first_key_value().is_some_and(|(&(when, _), _)| when <= now) {
            let Some(((when, _), (who, event))) = world.queue.pop_first() else { break };
            let dropped = match &event {
                Event::Arrived { request, .. }
                | Event::Wrong { request }
                | Event::Ended { request, .. } => world.cancelled.contains(&(who, *request)),
                _ => false,
            };
            if !dropped {
                world.cores[who].handle(when, event);
                world.act(when, who);
            }
        }
        for who in 0..=LIAR {
            if world.cores[who].next_timeout().is_some_and(|due| due <= now) {
                world.cores[who].handle(now, Event::Tick);
                world.act(now, who);
            }
        }
    }
    world
}

#[test]
fn all_complete_each_chunk_leaves_the_node_about_once_and_the_liar_is_banned() {
    for seed in 0..8 {
        let world = simulate(seed);
        assert_eq!(world.complete.len(), LIAR, "seed {seed}: only {:?}", world.complete);
        let copies = f64::from(world.from_node) / f64::from(CHUNKS);
        assert!((1.0..1.3).contains(&copies), "seed {seed}: {copies} copies left the node");
        assert_eq!(world.banned, BTreeSet::from([contact(LIAR).peer]), "seed {seed}");
    }
}
