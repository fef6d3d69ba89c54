//! Another authority takes the place of the first: announced, then signing, then alone.

mod world;

use shoal_content::NodeId;
use shoal_metadata::*;
use world::*;

fn announce(newest: u32, hurried: bool) -> Command {
    let number = newest + 1;
    Command::StepAuthority(AuthorityStep::Announce {
        newest,
        certificate: format!("certificate {number}"),
        vouched: format!("{number} by {newest}"),
        key: Secret(vec![7, number as u8]),
        hurried,
    })
}

fn sign(number: u32) -> Command {
    Command::StepAuthority(AuthorityStep::Sign { number })
}

fn retire(number: u32) -> Command {
    Command::StepAuthority(AuthorityStep::Retire { number })
}

fn note(of: u8, believes: u32, shows: u32) -> Command {
    let says = NodeAuthority { believes, shows };
    Command::StepAuthority(AuthorityStep::Note { node: NodeId::new(of.into()), says })
}

/// A cluster of so many nodes.
fn with_nodes(nodes: u8) -> World {
    let mut world = World::founded();
    for number in 1..=nodes {
        world.accepts(Command::RegisterNode(node(number)));
    }
    world
}

/// The numbers of the authorities, and for each whether it is believed and has a key.
fn shown(world: &World) -> Vec<(u32, bool, bool)> {
    let all = world.query().authorities().unwrap();
    all.iter().map(|one| (one.number, one.is_believed(), one.key.is_some())).collect()
}

fn signs(world: &World) -> u32 {
    let all = world.query().authorities().unwrap();
    all[signing_authority(&all).unwrap()].number
}

/// The nodes and the time that a rotation waits for.
fn waits(world: &World) -> (Vec<u64>, u64) {
    let next = world.query().authority_next().unwrap().unwrap();
    (next.nodes.iter().map(|node| node.number()).collect(), next.not_before.as_millis())
}

/// A whole rotation of a cluster with one node, in which nobody dawdles.
fn rotate(world: &mut World, newest: u32, hurried: bool) {
    world.accepts(announce(newest, hurried));
    world.accepts(note(1, newest + 1, newest));
    world.now += AUTHORITY_ANNOUNCED_MS;
    world.accepts(sign(newest + 1));
    world.accepts(note(1, newest + 1, newest + 1));
    world.now += AUTHORITY_OVERLAP_MS;
    world.accepts(retire(newest + 1));
}

#[test]
fn a_cluster_begins_with_the_authority_that_it_was_founded_with() {
    assert_eq!(shown(&World::default()), []);
    let world = World::founded();
    assert_eq!(shown(&world), [(0, true, true)]);
    assert_eq!(signs(&world), 0);
    assert_eq!(world.query().authority_next().unwrap(), None);
    let mut nobodys = World::default();
    assert_eq!(nobodys.refuses(announce(0, false)), Refusal::NotFound(Subject::Cluster));
}

#[test]
fn no_step_is_taken_before_every_node_has_said_so_and_time_has_passed() {
    let mut world = with_nodes(2);
    world.accepts(announce(0, false));
    let begun = world.now;
    assert_eq!((shown(&world).len(), signs(&world)), (2, 0), "both are believed, the first signs");
    assert_eq!(waits(&world), (vec![1, 2], begun + AUTHORITY_ANNOUNCED_MS));
    world.accepts(note(1, 1, 0));
    // Long after, and one node was away all the time.
    world.now += 2 * AUTHORITY_ANNOUNCED_MS;
    assert!(matches!(world.refuses(sign(1)), Refusal::InUse { .. }));
    world.accepts(note(2, 1, 0));
    assert_eq!(world.refuses(retire(1)), Refusal::NotFound(Subject::Authority));
    world.accepts(sign(1));
    let since = world.now;
    assert_eq!((signs(&world), shown(&world)), (1, vec![(0, true, true), (1, true, true)]));
    assert_eq!(waits(&world), (vec![1, 2], since + AUTHORITY_OVERLAP_MS));
    world.accepts(note(1, 1, 1));
    world.accepts(note(2, 1, 1));
    // One less than it takes, and then so much.
    world.now = since + AUTHORITY_OVERLAP_MS - 2;
    assert!(matches!(world.refuses(retire(1)), Refusal::InUse { .. }));
    world.accepts(retire(1));
    assert_eq!((signs(&world), shown(&world)), (1, vec![(0, false, false), (1, true, true)]));
    assert_eq!(world.query().authority_next().unwrap(), None);
    let row = world.query().cluster().unwrap().unwrap();
    assert_eq!(row.authority_key, Secret(Vec::new()), "the old key is among the rows yet");
    let places: Vec<_> =
        world.query().secrets().unwrap().into_iter().map(|(place, _)| place).collect();
    assert!(places.contains(&SecretPlace::LaterAuthority(1)), "{places:?}");
    assert!(!places.contains(&SecretPlace::Authority), "{places:?}");
}

#[test]
fn a_node_that_comes_or_goes_meanwhile_is_waited_for_or_not() {
    let mut world = with_nodes(2);
    world.accepts(announce(0, true));
    world.accepts(note(1, 1, 0));
    assert_eq!(waits(&world).0, [2_u64]);
    world.accepts(Command::RemoveNode(NodeId::new(2)));
    assert!(waits(&world).0.is_empty());
    world.accepts(Command::RegisterNode(node(3)));
    assert_eq!(waits(&world).0, [3_u64]);
    world.accepts(note(3, 1, 0));
    world.accepts(sign(1));
    // What was said counts for nothing with the next of that row.
    assert_eq!(world.refuses(note(2, 1, 1)), Refusal::NotFound(Subject::Node));
    assert_eq!(waits(&world).0, [1_u64, 3]);
}

#[test]
fn of_two_rotations_at_once_there_is_one() {
    let mut world = with_nodes(1);
    assert_eq!(world.refuses(announce(1, false)), Refusal::Exists(Subject::Authority));
    world.accepts(announce(0, false));
    for newest in [0, 1] {
        assert_eq!(world.refuses(announce(newest, true)), Refusal::Exists(Subject::Authority));
    }
    assert_eq!(world.refuses(sign(2)), Refusal::NotFound(Subject::Authority));
}

#[test]
fn who_hurries_waits_for_the_nodes_alone_and_ends_the_join_tokens_of_before() {
    let mut world = with_nodes(1);
    world.accepts(announce(0, false));
    let hurry = |number| Command::StepAuthority(AuthorityStep::Hurry { number });
    assert_eq!(world.refuses(hurry(0)), Refusal::NotFound(Subject::Authority));
    world.accepts(hurry(1));
    assert!(matches!(world.refuses(sign(1)), Refusal::InUse { .. }));
    world.accepts(note(1, 1, 0));
    let made = |id: &str, at_ms| JoinToken {
        created_at: at(at_ms),
        expires_at: at(u64::MAX),
        ..token(id, JoinRole::Agent, None)
    };
    let (before, now) = (world.now, world.now + 3);
    world.accepts(Command::CreateJoinToken(made("before", before)));
    world.accepts(sign(1));
    world.accepts(Command::CreateJoinToken(made("after", now)));
    world.accepts(note(1, 1, 1));
    world.accepts(retire(1));
    let left: Vec<_> =
        world.query().join_tokens().unwrap().into_iter().map(|token| token.id).collect();
    assert_eq!(left, ["after"]);
    let first = &world.query().authorities().unwrap()[0];
    assert!(matches!(first.state, AuthorityState::Retired { distrusted: true, .. }));
    assert_eq!(world.refuses(hurry(1)), Refusal::NotFound(Subject::Authority));
}

#[test]
fn join_tokens_outlive_a_rotation_that_is_not_hurried() {
    let mut world = with_nodes(1);
    let token = JoinToken { expires_at: at(u64::MAX), ..token("t", JoinRole::Agent, None) };
    world.accepts(Command::CreateJoinToken(token));
    rotate(&mut world, 0, false);
    assert_eq!(world.query().join_tokens().unwrap().len(), 1);
}

#[test]
fn how_many_stay_and_how_long_they_are_is_bounded() {
    let mut world = with_nodes(1);
    for newest in 0..5 {
        rotate(&mut world, newest, newest % 2 == 0);
    }
    let kept = [(2, false, false), (3, false, false), (4, false, false), (5, true, true)];
    assert_eq!(shown(&world), kept);
    let long = Command::StepAuthority(AuthorityStep::Announce {
        newest: 5,
        certificate: "x".repeat(AUTHORITY_BYTES_MAX + 1),
        vouched: String::new(),
        key: Secret(Vec::new()),
        hurried: false,
    });
    assert!(matches!(world.refuses(long), Refusal::Limit(_)));
}

#[test]
fn keys_of_both_are_sealed_where_they_are() {
    let mut world = with_nodes(1);
    world.accepts(announce(0, false));
    let sealed = |of: &[u8], by: u8| SealedSecret {
        of: *blake3::hash(of).as_bytes(),
        sealed: Secret(vec![by; 9]),
    };
    let secrets = [
        (SecretPlace::Authority, sealed(&cluster().authority_key.0, 1)),
        (SecretPlace::LaterAuthority(1), sealed(&[7, 1], 2)),
        // Of another key than the one that is there.
        (SecretPlace::LaterAuthority(2), sealed(&[7, 1], 3)),
    ];
    world.accepts(Command::SealSecrets { secrets: secrets.into() });
    let all = world.query().authorities().unwrap();
    let keys: Vec<_> = all.into_iter().map(|one| one.key.unwrap().0).collect();
    assert_eq!(keys, [vec![1_u8; 9], vec![2_u8; 9]]);
}

#[test]
fn a_restored_cluster_goes_on_with_a_rotation_and_its_old_nodes_hold_up_nothing() {
    let mut world = with_nodes(1);
    world.accepts(announce(0, true));
    world.accepts(note(1, 1, 0));
    let mut writes = Writes::new();
    for (table, key, row) in world.rows.rows() {
        match carry(table, key, row).unwrap() {
            Carried::AsItIs => writes.insert((table, key.to_vec()), Some(row.to_vec())),
            Carried::Instead { table, key, row } => writes.insert((table, key), Some(row)),
            Carried::Dropped => None,
        };
    }
    let mut new = World { now: world.now, ..World::default() };
    new.rows.commit(writes);
    assert_eq!(shown(&new), shown(&world));
    new.accepts(Command::RegisterNode(node(2)));
    assert_eq!(new.query().node_authority(NodeId::new(1)).unwrap(), NodeAuthority::default());
    assert_eq!(waits(&new).0, [2_u64]);
    new.accepts(note(2, 1, 0));
    new.accepts(sign(1));
}

#[test]
fn a_rotation_stands_in_the_trail() {
    let world = World::founded();
    let named = |command| audited(world.query(), &command).unwrap();
    assert_eq!(named(announce(0, false)), Some(("authority.rotate", "1".to_owned())));
    assert_eq!(named(announce(0, true)), Some(("authority.distrust", "1".to_owned())));
    let hurry = Command::StepAuthority(AuthorityStep::Hurry { number: 1 });
    assert_eq!(named(hurry), Some(("authority.distrust", "1".to_owned())));
    assert_eq!(named(sign(1)), None);
}
