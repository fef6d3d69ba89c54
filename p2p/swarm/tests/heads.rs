//! What one core does about heads and neighbours that are silent, late or not there yet, event by
//! event.

use std::collections::BTreeSet;
use std::time::Duration;

use shoal_content::{PeerId, RecipeId};
use shoal_swarm::frames::Frame;
use shoal_swarm::{
    Action, ChunkRange, ChunkSet, Contact, Event, Member, RequestEnd, RequestId, Settings, Swarm,
};

const ME: u8 = 1;
const NODE: u8 = 2;
const MS: Duration = Duration::from_millis(1);

fn member(n: u8) -> Member {
    let contact =
        Contact { peer: PeerId::from_public_key([n; 32]), address: ([10, 0, 0, n], 1).into() };
    Member { contact, zone: "eu/a".parse().unwrap(), cache: false }
}

fn peer(n: u8) -> PeerId {
    member(n).contact.peer
}

fn recipe() -> RecipeId {
    RecipeId::of(b"r")
}

struct Asked {
    request: RequestId,
    of: PeerId,
    indices: Vec<u32>,
}

/// One core that fetches, with a clock of milliseconds.
struct Rig {
    core: Swarm,
    now: Duration,
    asked: Vec<Asked>,
    joined: BTreeSet<PeerId>,
}

impl Rig {
    fn new(chunks: u32) -> Self {
        let zone = "eu/a".parse().unwrap();
        let core = Swarm::new(Settings { me: peer(ME), seed: 7, zone });
        let (asked, joined) = (Vec::new(), BTreeSet::new());
        let mut rig = Self { core, now: MS, asked, joined };
        rig.tell(Event::Nodes(vec![member(NODE).contact]));
        rig.tell(Event::Start { recipe: recipe(), held: ChunkSet::empty(chunks) });
        rig.connect(NODE);
        rig
    }

    fn tell(&mut self, event: Event) {
        self.core.handle(self.now, event);
        while let Some(action) = self.core.poll_action() {
            match action {
                Action::Request { request, peer: of, indices, .. } => {
                    self.asked.push(Asked { request, of, indices });
                }
                Action::Join { peer, .. } => drop(self.joined.insert(peer)),
                _ => {}
            }
        }
    }

    fn connect(&mut self, n: u8) {
        self.tell(Event::Connected { member: member(n), node: n == NODE, rtt: MS / 10 });
    }

    fn frame(&mut self, n: u8, frame: Frame) {
        self.tell(Event::Frame { peer: peer(n), frame });
    }

    fn neighbour(&mut self, n: u8, chunks: Vec<ChunkRange>) {
        self.connect(n);
        self.tell(Event::Joined { peer: peer(n), recipe: recipe() });
        self.frame(n, Frame::Have { recipe: recipe(), chunks });
        self.says(n);
    }

    fn name_heads(&mut self, heads: &[u8]) {
        let heads: Vec<Member> = heads.iter().map(|&n| member(n)).collect();
        self.frame(NODE, Frame::Heads { recipe: recipe(), whole: heads.clone(), room: heads });
    }

    fn says(&mut self, n: u8) {
        self.frame(n, Frame::Claim { recipe: recipe(), chunks: Vec::new() });
    }

    /// A millisecond passes.
    fn wait(&mut self) {
        self.now += MS;
        self.tell(Event::Tick);
    }

    fn bring(&mut self, asked: &Asked) {
        let request = asked.request;
        for &index in &asked.indices {
            self.tell(Event::Arrived { request, index, bytes: 256 * 1024 });
        }
        self.tell(Event::Ended { request, end: RequestEnd::Done });
    }
}

/// What is asked of the node in a tenth of a second where one of two other heads says something
/// every millisecond, and the other one does or does not.
fn asked_of_node(both_speak: bool) -> BTreeSet<u32> {
    let mut rig = Rig::new(64);
    rig.neighbour(3, Vec::new());
    rig.neighbour(4, Vec::new());
    rig.name_heads(&[ME, 3, 4]);
    let mut all = BTreeSet::new();
    for _ in 0..100 {
        rig.wait();
        rig.says(3);
        if both_speak {
            rig.says(4);
        }
        for asked in std::mem::take(&mut rig.asked) {
            assert_eq!(asked.of, peer(NODE), "nobody else has anything");
            all.extend(&asked.indices);
            rig.bring(&asked);
        }
    }
    all
}

#[test]
fn the_duty_of_a_head_that_is_not_heard_falls_to_others_long_before_its_connection_breaks() {
    let (own, more) = (asked_of_node(true), asked_of_node(false));
    assert!(!own.is_empty() && own.is_subset(&more), "{own:?} and {more:?}");
    assert!(more.len() >= own.len() + 8, "{} chunks, and {} with its own", own.len(), more.len());
    assert!(more.len() < 64, "the other one that speaks does its duty");
}

#[test]
fn nobody_takes_over_where_no_head_is_heard() {
    let mut rig = Rig::new(64);
    rig.neighbour(3, Vec::new());
    rig.neighbour(4, Vec::new());
    rig.name_heads(&[ME, 3, 4]);
    (0..100).for_each(|_| rig.wait());
    let own = asked_of_node(true);
    let asked = rig.asked.iter().flat_map(|asked| &asked.indices);
    let beside: Vec<&u32> = asked.filter(|index| !own.contains(index)).collect();
    assert!(beside.is_empty(), "{beside:?} are others'");
}

#[test]
fn who_is_late_is_asked_for_nothing_else_before_it_brings_something() {
    const CHUNKS: u32 = 100_000;
    let (late, quick) = (peer(3), peer(4));
    let all = |start| vec![ChunkRange { start, count: CHUNKS - start }];
    let mut rig = Rig::new(CHUNKS);
    rig.neighbour(3, vec![ChunkRange { start: 0, count: 1 }]);
    rig.neighbour(4, all(1));
    let step = |rig: &mut Rig| {
        rig.wait();
        let mut of_late = Vec::new();
        for asked in std::mem::take(&mut rig.asked) {
            if asked.of == quick { rig.bring(&asked) } else { of_late.push(asked) }
        }
        assert!(of_late.iter().all(|asked| asked.of == late));
        of_late
    };
    let owed: Vec<Asked> = (0..50).flat_map(|_| step(&mut rig)).collect();
    assert!(matches!(&owed[..], [asked] if asked.indices == [0]), "nobody else has the first");
    rig.frame(3, Frame::Have { recipe: recipe(), chunks: all(1) });
    for _ in 0..300 {
        assert!(step(&mut rig).is_empty(), "asked for more at {:?}", rig.now);
    }
    rig.bring(&owed[0]);
    let again = (0..50).any(|_| !step(&mut rig).is_empty());
    assert!(again, "it brought what it owed, and is asked for more");
}

#[test]
fn a_head_that_is_being_dialled_is_not_forgotten_for_those_who_come_by_themselves() {
    let mut rig = Rig::new(64);
    for first in [100, 132] {
        let members = (first..first + 32).map(member).collect();
        rig.frame(NODE, Frame::Peers { recipe: recipe(), members });
    }
    rig.name_heads(&[ME, 3]);
    for n in 10..30 {
        rig.neighbour(n, Vec::new());
    }
    rig.connect(3);
    (0..10).for_each(|_| rig.wait());
    assert!(rig.joined.contains(&peer(3)), "it has all and does not join by itself");
}
