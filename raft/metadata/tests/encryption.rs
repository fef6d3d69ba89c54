//! Data keys: agreed on by racing nodes, wrapped anew, retired with their project, destroyed once.

mod world;

use shoal_content::ObjectKey;
use shoal_metadata::*;
use world::*;

fn owner(project: &str) -> KeyOwner {
    KeyOwner::Project(project.parse().unwrap())
}

fn note(node: u64, masters: &[&str]) -> Command {
    let masters = masters.iter().map(|id| (*id).to_owned()).collect();
    Command::NoteMasterKeys { node: shoal_content::NodeId::new(node), masters }
}

/// Two nodes that have the master key `m`, and the cluster's own data key, 1.
fn sealing() -> World {
    let mut world = World::founded();
    for number in [1, 2] {
        world.accepts(Command::RegisterNode(node(number)));
        world.accepts(note(u64::from(number), &["m"]));
    }
    world.accepts(make_data_key(KeyOwner::Cluster, 1, None, "m"));
    world
}

fn current(world: &World, project: &str) -> Option<u64> {
    let key = world.query().current_data_key(&owner(project)).unwrap()?;
    Some(key.id.as_uuid().as_u128() as u64)
}

fn state(world: &World, number: u64) -> DataKeyState {
    world.query().data_key(data_key_id(number)).unwrap().unwrap().state
}

fn remove_project(world: &mut World, project: &str) {
    world.accepts(Command::RemoveProject { name: project.parse().unwrap() });
}

#[test]
fn nothing_is_sealed_before_every_node_has_the_master_key() {
    let mut world = World::founded();
    world.accepts(Command::RegisterNode(node(1)));
    world.accepts(Command::RegisterNode(node(2)));
    assert_eq!(
        world.refuses(note(3, &["m"])),
        Refusal::NotFound(Subject::Node),
        "a node that is none"
    );
    world.accepts(note(1, &["m"]));
    let missing = |node| Refusal::MasterKeyMissing {
        node: shoal_content::NodeId::new(node),
        master: "m".to_owned(),
    };
    assert_eq!(world.refuses(make_data_key(KeyOwner::Cluster, 1, None, "m")), missing(2));
    world.accepts(note(2, &["other", "m"]));
    let early = world.refuses(make_data_key(owner("p"), 2, None, "m"));
    assert_eq!(early, Refusal::NotFound(Subject::DataKey), "the cluster's own comes first");
    world.accepts(make_data_key(KeyOwner::Cluster, 1, None, "m"));
    world.accepts(make_data_key(owner("p"), 2, None, "m"));
    assert_eq!(world.query().master_key().unwrap().as_deref(), Some("m"));
    let other = world.refuses(make_data_key(owner("q"), 3, None, "other"));
    assert_eq!(other, Refusal::OtherMasterKey("m".to_owned()));
}

#[test]
fn a_node_that_has_its_master_key_no_more_is_waited_for_again() {
    let mut world = World::founded();
    let second = shoal_content::NodeId::new(2);
    for number in [1, 2] {
        world.accepts(Command::RegisterNode(node(number)));
        world.accepts(note(u64::from(number), &["m"]));
    }
    world.accepts(note(2, &[]));
    assert!(world.query().node_master_keys(second).unwrap().is_empty());
    assert_eq!(world.query().node_without_master("m").unwrap(), Some(second));
    let early = world.refuses(make_data_key(KeyOwner::Cluster, 1, None, "m"));
    assert!(matches!(early, Refusal::MasterKeyMissing { node, .. } if node == second), "{early}");
    world.accepts(note(2, &["m"]));
    world.accepts(make_data_key(KeyOwner::Cluster, 1, None, "m"));
}

#[test]
fn of_two_nodes_that_make_a_key_at_once_one_does() {
    let mut world = sealing();
    world.accepts(make_data_key(owner("p"), 2, None, "m"));
    let late = world.refuses(make_data_key(owner("p"), 3, None, "m"));
    assert_eq!(late, Refusal::Exists(Subject::DataKey));
    assert_eq!(current(&world, "p"), Some(2));
    // The same holds for a rotation, and an id is never used twice.
    world.accepts(make_data_key(owner("p"), 3, Some(2), "m"));
    assert_eq!(
        world.refuses(make_data_key(owner("p"), 4, Some(2), "m")),
        Refusal::Exists(Subject::DataKey)
    );
    assert_eq!(
        world.refuses(make_data_key(owner("q"), 3, None, "m")),
        Refusal::Exists(Subject::DataKey)
    );
    assert_eq!(current(&world, "p"), Some(3));
    assert!(matches!(state(&world, 2), DataKeyState::Kept { .. }), "it opens what it sealed");
}

#[test]
fn another_master_key_wraps_only_what_every_node_can_open() {
    let mut world = sealing();
    world.accepts(make_data_key(owner("p"), 2, None, "m"));
    let wrap = |number: u64| Command::WrapDataKeys {
        master: "new".to_owned(),
        keys: [(data_key_id(number), Secret(vec![9]))].into(),
    };
    world.accepts(note(1, &["m", "new"]));
    assert!(matches!(world.refuses(wrap(1)), Refusal::MasterKeyMissing { .. }));
    // A node that was removed is asked for nothing.
    world.accepts(Command::RemoveNode(shoal_content::NodeId::new(2)));
    world.accepts(wrap(1));
    assert_eq!(world.query().master_key().unwrap().as_deref(), Some("new"));
    world.accepts(wrap(2));
    world.accepts(wrap(77));
    let wrapped = DataKeyState::Kept { master: "new".to_owned(), wrapped: Secret(vec![9]) };
    assert_eq!(state(&world, 2), wrapped);
    let old = world.refuses(make_data_key(owner("q"), 3, None, "m"));
    assert_eq!(old, Refusal::OtherMasterKey("new".to_owned()));
}

#[test]
fn a_removed_project_takes_its_keys_along() {
    let mut world = sealing();
    world.accepts(Command::CreateProject(project("p", Owner::User("admin".into()))));
    world.accepts(make_data_key(owner("p"), 2, None, "m"));
    world.accepts(make_data_key(owner("p"), 3, Some(2), "m"));
    world.accepts(make_data_key(owner("q"), 4, None, "m"));
    remove_project(&mut world, "p");
    let since = world.now;
    for number in [2, 3] {
        assert!(
            matches!(state(&world, number), DataKeyState::Retired { since: at, .. } if at.as_millis() == since)
        );
    }
    assert!(matches!(state(&world, 4), DataKeyState::Kept { .. }), "another project's");
    assert_eq!(current(&world, "p"), None);
    world.accepts(make_data_key(owner("p"), 5, None, "m"));

    let all = [1, 2, 4, 5, 77].map(data_key_id).into();
    world.accepts(Command::DestroyDataKeys { keys: all, retired_before: at(since) });
    assert!(matches!(state(&world, 2), DataKeyState::Retired { .. }), "not yet");
    let all: std::collections::BTreeSet<_> = [1, 2, 4, 5].map(data_key_id).into();
    let destroy = Command::DestroyDataKeys { keys: all, retired_before: at(since + 1) };
    world.accepts(destroy.clone());
    let destroyed = DataKeyState::Destroyed { at: at(world.now) };
    assert_eq!(state(&world, 2), destroyed);
    assert!(matches!(state(&world, 3), DataKeyState::Retired { .. }), "it was not named");
    for number in [1, 4, 5] {
        assert!(matches!(state(&world, number), DataKeyState::Kept { .. }));
    }
    // Nothing brings it back.
    world.accepts(destroy);
    world.accepts(Command::WrapDataKeys {
        master: "m".to_owned(),
        keys: [(data_key_id(2), Secret(vec![9]))].into(),
    });
    assert_eq!(state(&world, 2), destroyed);
}

#[test]
fn only_what_is_in_use_goes_over_and_only_to_a_key_that_stays() {
    let mut world = sealing();
    world.accepts(Command::CreateProject(project("p", Owner::User("admin".into()))));
    world.accepts(make_data_key(owner("p"), 2, None, "m"));
    world.accepts(make_data_key(owner("q"), 3, None, "m"));
    remove_project(&mut world, "p");
    world.accepts(create_image(1, "q/b", ImageKind::Container));
    world.accepts(commit_blob("q/b", 1, 1));
    let blob = world.query().blob(&digest(1)).unwrap().unwrap().object;
    let unknown = ObjectKey::Blob(upload_id(99));
    let handed = |world: &World, object| world.query().handed_key(&object).unwrap();

    world.accepts(hand_over(&[blob], 3, 2));
    assert_eq!(handed(&world, blob), None, "to a key that goes");
    world.accepts(make_data_key(owner("nobody"), 4, None, "m"));
    world.accepts(hand_over(&[blob], 2, 4));
    assert_eq!(handed(&world, blob), None, "to a key of a project that is not there");
    world.accepts(hand_over(&[blob, unknown], 2, 3));
    assert_eq!(handed(&world, blob).unwrap().to, data_key_id(3));
    assert_eq!(handed(&world, unknown), None);

    // It goes with the object.
    world.accepts(Command::UnlinkBlob { repository: name("q/b"), digest: digest(1) });
    let before = at(world.now + 1);
    world.accepts(Command::SweepObjects { candidates: [blob].into(), unreferenced_before: before });
    assert_eq!(handed(&world, blob), None);
}

#[test]
fn how_much_one_command_brings_is_bounded() {
    let mut world = sealing();
    let long = Command::MakeDataKey {
        owner: owner("p"),
        id: data_key_id(2),
        replaces: None,
        master: "m".to_owned(),
        wrapped: Secret(vec![0; DATA_KEY_BYTES_MAX + 1]),
    };
    assert!(matches!(world.refuses(long), Refusal::Limit(_)));
    let many = (0..=KEY_BATCH_MAX as u64).map(data_key_id).collect();
    let many = Command::DestroyDataKeys { keys: many, retired_before: at(1) };
    assert!(matches!(world.refuses(many), Refusal::Limit(_)));
    world.accepts(make_data_key(owner("p"), 1000, None, "m"));
    let most = DATA_KEYS_PER_OWNER_MAX as u64;
    for number in 1001..1000 + most {
        world.accepts(make_data_key(owner("p"), number, Some(number - 1), "m"));
    }
    let last = make_data_key(owner("p"), 5000, Some(999 + most), "m");
    assert!(matches!(world.refuses(last), Refusal::Limit(_)));
}
