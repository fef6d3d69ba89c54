//! A rolling upgrade, held to what it promises: nobody is made to apply what it does not know, no
//! write is lost, and there is no way back behind the cluster's level.
//!
//! Two programs stand for a release and the next one by the newest command that they apply. The
//! next one's new command is one of today's under the next version's number: an older program reads
//! the number and can do nothing with the rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use shoal_content::{NodeId, Timestamp};
use shoal_metadata::{COMMAND_VERSION, Command, Refusal, encode_command};

use crate::error::ProposeError;
use crate::harness::{
    Authority, Home, Member, create_image, eventually, has_image, leader, register,
};
use crate::propose::propose_encoded;
use crate::raft::Raft;

const OLD: u8 = COMMAND_VERSION;
const NEW: u8 = COMMAND_VERSION + 1;

/// Images of the new command; the load's are below.
const FIRST_NEW: u64 = 1 << 32;

/// Members that run, by their place.
type Running = Arc<RwLock<[Option<Raft>; 3]>>;

/// A client that tries one member after another until its write is acknowledged, as people's
/// commands do; gives the numbers of the images that are.
fn load(running: Running, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<Vec<u64>> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (mut acknowledged, mut turn) = (Vec::new(), 0usize);
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            loop {
                turn += 1;
                let Some(raft) = running.read()[turn % 3].clone() else { continue };
                let at = Timestamp::from_millis(number);
                match runtime.block_on(raft.propose(at, create_image(number))) {
                    // Where it is there already, an answer was lost on the way.
                    Ok(_) | Err(ProposeError::Refused(Refusal::Exists(_))) => break,
                    Err(ProposeError::Unavailable { .. } | ProposeError::Storage(_)) => {}
                    Err(error) => panic!("image {number}: {error}"),
                }
            }
            acknowledged.push(number);
        }
        acknowledged
    })
}

fn start(home: &mut Home, authority: &Authority, version: u8) -> Member {
    home.start_with(authority, |config| config.command_version = version)
}

/// Proposes what only the new program knows.
fn propose_new(member: &Member, number: u64) -> Result<(), ProposeError> {
    let mut bytes = encode_command(&create_image(FIRST_NEW + number));
    bytes[0] = NEW;
    member.run(move |raft| async move {
        let at = Timestamp::from_millis(number);
        propose_encoded(&raft.shared, at, bytes).await.map(drop)
    })
}

#[test]
fn a_rolling_upgrade_under_load_loses_no_write_and_nobody_meets_what_it_does_not_know() {
    let authority = Authority::new();
    let mut homes: Vec<Home> = (1..=3).map(Home::new).collect();
    let mut members: Vec<Member> =
        homes.iter_mut().map(|home| start(home, &authority, OLD)).collect();
    members[0].bootstrap();
    members[0].add(&members[1]);
    members[0].add(&members[2]);
    for id in 1..=3 {
        members[0].propose(register(id, OLD)).unwrap();
    }
    members[0].propose(Command::RaiseLevel { to: OLD }).unwrap();
    let running: Running = Arc::default();
    for (place, member) in members.iter().enumerate() {
        running.write()[place] = Some(member.raft.clone());
    }
    let stop = Arc::new(AtomicBool::new(false));
    let load = load(running.clone(), stop.clone());
    let images = |member: &Member| member.read().query().image_count().unwrap();
    eventually("the load begins", || (images(&members[0]) > 5).then_some(()));

    let level = ProposeError::Unsupported { needs: NEW, oldest: OLD };
    for place in 0..3 {
        // The oldest members are among those that are asked, and among those that lead.
        for member in &members {
            assert_eq!(propose_new(member, 0), Err(level.clone()));
        }
        running.write()[place] = None;
        let stopped = members.remove(place);
        let before = images(&members[0]);
        stopped.stop();
        let member = start(&mut homes[place], &authority, NEW);
        running.write()[place] = Some(member.raft.clone());
        members.insert(place, member);
        let id = place as u64 + 1;
        // Not before all of them can: the row says what a member knows.
        let raised = members[place].propose(Command::RaiseLevel { to: NEW });
        let known = raised.unwrap_err();
        assert!(
            matches!(&known, ProposeError::Refused(Refusal::TooOld { knows, .. }) if *knows == OLD),
            "{known}"
        );
        members[place].propose(register(id, NEW)).unwrap();
        eventually("the load goes on", || (images(&members[place]) > before + 5).then_some(()));
    }

    members[1].propose(Command::RaiseLevel { to: NEW }).unwrap();
    for (number, member) in members.iter().enumerate() {
        propose_new(member, number as u64).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let acknowledged = load.join().unwrap();
    assert!(acknowledged.len() > 15, "{} writes", acknowledged.len());
    for member in &members {
        let view = member.read();
        for number in acknowledged.iter().copied().chain((0..3).map(|new| FIRST_NEW + new)) {
            assert!(has_image(&view, number), "image {number} is lost at {}", member.id);
        }
        assert_eq!(view.query().image_count().unwrap(), acknowledged.len() as u64 + 3);
        assert_eq!(member.metric("shoal_raft_core_restarts_total"), 0.0);
    }

    // There is no way back: neither for a member nor for a new node.
    let follower = (leader(&members) + 1) % 3;
    running.write()[follower] = None;
    members.remove(follower).stop();
    let why = homes[follower].refuses_to_start(&authority, "at level", |config| {
        config.command_version = OLD;
    });
    assert!(why.contains("install the version that ran here before"), "{why}");
    let back = start(&mut homes[follower], &authority, NEW);
    assert!(has_image(&back.read(), FIRST_NEW));
    let refused = back.propose(register(4, OLD));
    let too_old = Refusal::TooOld { node: NodeId::new(4), knows: OLD };
    assert_eq!(refused, Err(ProposeError::Refused(too_old)));
}
