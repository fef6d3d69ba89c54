//! Event sequences that no network would bring, by seed: the core keeps its promises all the same.
//!
//! `SHOAL_FUZZ_SEEDS` says how many seeds to try, from `SHOAL_FUZZ_SEED` on; a failure names its
//! seed. Always checked: nothing panics; nobody banned is asked, dialled or joined; a request is
//! never for what is held or out of range; frames that come out are within their limits; once
//! nothing happens any more, no request stays open.

mod draw;

use std::collections::BTreeMap;
use std::time::Duration;

use draw::{Draw, seeds};
use shoal_content::{PeerId, RecipeId};
use shoal_swarm::frames::{self, Frame};
use shoal_swarm::{
    Action, ChunkRange, ChunkSet, Contact, Event, Member, RequestEnd, RequestId, Settings, Swarm,
};

const SEEDS: u64 = 60;
/// Seeds that found something.
const FOUND: [u64; 1] = [3262];
const EVENTS: usize = 1500;
const PEERS: u64 = 24;
const RECIPES: u64 = 3;
/// Actions that one event may bring: every peer asked, dialled and told about each recipe.
const ACTIONS_MAX: usize = 4096;
/// Longer than any deadline of the core.
const SILENCE: Duration = Duration::from_secs(120);

fn peer(draw: &mut Draw) -> PeerId {
    PeerId::from_public_key([draw.below(PEERS) as u8 + 1; 32])
}

fn contact(draw: &mut Draw) -> Contact {
    let peer = peer(draw);
    Contact { peer, address: ([10, 0, 0, peer.as_public_key()[0]], 1).into() }
}

fn member(draw: &mut Draw) -> Member {
    let zone = ["", "eu", "eu/a", "eu/a/1", "eu/b/1", "us/c"][draw.below(6) as usize];
    Member { contact: contact(draw), zone: zone.parse().unwrap(), cache: draw.below(8) == 0 }
}

fn members(draw: &mut Draw) -> Vec<Member> {
    (0..draw.below(12)).map(|_| member(draw)).collect()
}

fn recipe(draw: &mut Draw) -> RecipeId {
    RecipeId::of(&[draw.below(RECIPES) as u8])
}

fn ranges(draw: &mut Draw) -> Vec<ChunkRange> {
    let range = |draw: &mut Draw| match draw.below(8) {
        0 => ChunkRange { start: u32::MAX - 2, count: u32::MAX },
        1 => ChunkRange { start: 0, count: u32::MAX },
        _ => ChunkRange { start: draw.below(300) as u32, count: draw.below(40) as u32 },
    };
    (0..draw.below(6)).map(|_| range(draw)).collect()
}

fn frame(draw: &mut Draw) -> Frame {
    let recipe = recipe(draw);
    match draw.below(9) {
        0 | 1 => Frame::Have { recipe, chunks: ranges(draw) },
        2 => {
            let start = [0, 64, 299, u32::MAX - 4][draw.below(4) as usize];
            let bits = (0..draw.below(40)).map(|_| draw.below(256) as u8).collect();
            Frame::Map { recipe, start, bits }
        }
        3 => Frame::Claim { recipe, chunks: ranges(draw) },
        4 => Frame::Announce { recipe },
        5 => Frame::Peers { recipe, members: members(draw) },
        6 => Frame::Heads { recipe, whole: members(draw), room: members(draw) },
        7 => Frame::Free,
        _ => Frame::Leave { recipe },
    }
}

struct Fuzz {
    seed: u64,
    draw: Draw,
    core: Swarm,
    now: Duration,
    held: BTreeMap<RecipeId, ChunkSet>,
    open: BTreeMap<RequestId, (RecipeId, Vec<u32>)>,
    asked: u64,
}

impl Fuzz {
    fn new(seed: u64) -> Self {
        let zone = ["", "eu/a/1"][seed as usize % 2].parse().unwrap();
        let me = PeerId::from_public_key([99; 32]);
        Self {
            seed,
            draw: Draw(seed),
            core: Swarm::new(Settings { me, seed, zone }),
            now: Duration::ZERO,
            held: BTreeMap::new(),
            open: BTreeMap::new(),
            asked: 0,
        }
    }

    fn event(&mut self) -> Event {
        let draw = &mut self.draw;
        let at = draw.below(self.open.len() as u64) as usize;
        let open = self.open.keys().nth(at).copied();
        match draw.below(24) {
            // As a shell does: it stops what was, then starts anew.
            0 if !self.held.contains_key(&RecipeId::of(&[0])) || draw.below(9) == 0 => {
                let recipe = recipe(draw);
                let len = [0, 1, 63, 64, 300][draw.below(5) as usize];
                let mut held = ChunkSet::empty(len);
                (0..len).filter(|_| draw.below(4) == 0).for_each(|index| {
                    held.insert(index);
                });
                self.step(Event::Stop { recipe });
                self.held.insert(recipe, held.clone());
                Event::Start { recipe, held }
            }
            1 if draw.below(9) == 0 => Event::Stop { recipe: recipe(draw) },
            1 => Event::Seed { recipe: recipe(draw) },
            2 => {
                let start = draw.below(400) as u32;
                let end = start + draw.below(90) as u32;
                Event::Demand { recipe: recipe(draw), range: start..end }
            }
            3 => Event::Nodes((0..3).map(|_| contact(draw)).collect()),
            4 => Event::Hint { recipe: recipe(draw), contact: contact(draw) },
            5..=7 => {
                let (member, node) = (member(draw), draw.below(5) == 0);
                Event::Connected { member, node, rtt: Duration::from_micros(draw.below(90_000)) }
            }
            8 => Event::Disconnected { peer: peer(draw) },
            9 => Event::DialFailed { peer: peer(draw) },
            10 => Event::Joined { peer: peer(draw), recipe: recipe(draw) },
            11..=14 => Event::Frame { peer: peer(draw), frame: frame(draw) },
            15 if draw.below(20) == 0 => Event::BadFrame { peer: peer(draw) },
            16..=18 => match open {
                Some(request) => {
                    let (_, indices) = &self.open[&request];
                    let index = indices[draw.below(indices.len() as u64) as usize];
                    let bytes = draw.below(300_000) as u32;
                    // A shell whose disk is slow says so before.
                    if index % 2 == 0 {
                        self.step(Event::Landed { request, index, bytes });
                    }
                    match self.open.get(&request) {
                        Some((recipe, _)) => {
                            self.held.get_mut(recipe).map(|held| held.insert(index));
                            Event::Arrived { request, index, bytes }
                        }
                        None => Event::Tick,
                    }
                }
                None => Event::Arrived { request: draw.below(99), index: u32::MAX, bytes: 0 },
            },
            21 => {
                // What a shell is told to have elsewhere does not arrive from the same request.
                let open = open.filter(|request| self.open[request].1.len() > 1);
                let asked = open.and_then(|id| Some((id, self.open.get_mut(&id)?.1.pop()?)));
                let (request, index) = asked.unwrap_or((u64::MAX, 7));
                Event::Elsewhere { request, index, by: peer(draw) }
            }
            19 if draw.below(20) == 0 => Event::Wrong { request: open.unwrap_or(u64::MAX) },
            19 | 20 => {
                let request = open.unwrap_or_else(|| u64::MAX - draw.below(9));
                self.open.remove(&request);
                let ends =
                    [RequestEnd::Done, RequestEnd::Busy, RequestEnd::Absent, RequestEnd::Failed];
                Event::Ended { request, end: ends[draw.below(ends.len() as u64) as usize] }
            }
            22 if draw.below(4) == 0 => {
                let bytes_per_second = [None, Some(1), Some(1 << 20)][draw.below(3) as usize];
                Event::Limit { bytes_per_second }
            }
            23 if draw.below(200) == 0 => Event::Retire,
            _ => Event::Tick,
        }
    }

    fn step(&mut self, event: Event) {
        self.core.handle(self.now, event);
        let mut count = 0;
        while let Some(action) = self.core.poll_action() {
            count += 1;
            assert!(count < ACTIONS_MAX, "seed {}: one event brings too much", self.seed);
            self.check(action);
        }
    }

    fn check(&mut self, action: Action) {
        let seed = self.seed;
        let banned = |peer| self.core.is_banned(peer);
        match action {
            Action::Dial(to) => assert!(!banned(to.peer), "seed {seed}: banned and dialled"),
            Action::Join { peer, .. } => assert!(!banned(peer), "seed {seed}: banned and joined"),
            Action::Send { frame, .. } => {
                assert!(frames::encode(&frame).is_ok(), "seed {seed}: {frame:?} is over a limit");
            }
            Action::Request { request, peer, recipe, indices, .. } => {
                assert!(!banned(peer), "seed {seed}: banned and asked");
                let held = &self.held[&recipe];
                let wanted = |&index: &u32| index < held.len() && !held.contains(index);
                assert!(!indices.is_empty(), "seed {seed}: a request for nothing");
                assert!(indices.iter().all(wanted), "seed {seed}: {indices:?} asked for");
                let again = self.open.insert(request, (recipe, indices));
                assert!(again.is_none(), "seed {seed}: request {request} again");
                self.asked += 1;
            }
            Action::Cancel { request } => drop(self.open.remove(&request)),
            Action::Complete { recipe } => {
                assert!(self.held[&recipe].is_full(), "seed {seed}: complete without all");
            }
            Action::Close { .. } | Action::Ban { .. } => {}
        }
    }

    /// Nothing happens any more but that time passes.
    fn fall_silent(&mut self) {
        let old: Vec<RequestId> = self.open.keys().copied().collect();
        let end = self.now + SILENCE;
        while let Some(due) = self.core.next_timeout().filter(|&due| due < end) {
            self.now = self.now.max(due);
            self.step(Event::Tick);
        }
        let left = old.iter().filter(|request| self.open.contains_key(request)).count();
        assert_eq!(left, 0, "seed {}: requests stay open", self.seed);
    }
}

#[test]
fn no_sequence_of_events_makes_the_core_break_a_promise() {
    let mut asked = 0;
    for seed in seeds(SEEDS).chain(FOUND) {
        let mut fuzz = Fuzz::new(seed);
        for _ in 0..EVENTS {
            fuzz.now += Duration::from_micros(fuzz.draw.below(20_000));
            let event = fuzz.event();
            fuzz.step(event);
        }
        fuzz.fall_silent();
        asked += fuzz.asked;
    }
    assert!(asked > 0, "no event brought a request: nothing was tried");
}
