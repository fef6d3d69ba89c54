//! The cluster's level in a rolling upgrade, and what of a backup comes into a new cluster.

mod world;

use shoal_content::NodeId;
use shoal_metadata::*;
use world::*;

fn knowing(number: u8, command_version: u8) -> Command {
    Command::RegisterNode(Node { command_version, ..node(number) })
}

#[test]
fn the_level_rises_when_every_node_has_come_so_far_and_never_falls() {
    let mut world = World::founded();
    for number in 1..=3 {
        world.accepts(knowing(number, 1));
    }
    assert_eq!(world.query().level().unwrap(), FIRST_LEVEL);
    for number in 1..=3 {
        let refused = world.refuses(Command::RaiseLevel { to: 2 });
        assert_eq!(refused, Refusal::TooOld { node: NodeId::new(number.into()), knows: 1 });
        world.accepts(knowing(number, 2));
    }
    world.accepts(Command::RaiseLevel { to: 2 });
    assert_eq!(world.query().level().unwrap(), 2);
    world.accepts(Command::RaiseLevel { to: 1 });
    assert_eq!(world.query().level().unwrap(), 2);

    // From now on nobody comes in, or back, who knows less.
    let refused = Refusal::TooOld { node: NodeId::new(4), knows: 1 };
    assert_eq!(world.refuses(knowing(4, 1)), refused);
    world.accepts(Command::CreateJoinToken(token("nodes", JoinRole::Node, None)));
    let admit = |command_version| Command::AdmitNode {
        token: "nodes".into(),
        secret_hash: [7; 32],
        node: Node { command_version, ..node(4) },
    };
    assert_eq!(world.refuses(admit(1)), refused);
    world.accepts(admit(2));
    let back = Refusal::TooOld { node: NodeId::new(1), knows: 1 };
    assert_eq!(world.refuses(knowing(1, 1)), back);
    // One that was removed holds nobody up.
    world.accepts(Command::RemoveNode(NodeId::new(4)));
    for number in 1..=3 {
        world.accepts(knowing(number, 3));
    }
    world.accepts(Command::RaiseLevel { to: 3 });
}

#[test]
fn what_a_node_runs_is_noted_until_it_is_removed() {
    let mut world = World::founded();
    let describe = |program: &str| {
        let program = program.to_owned();
        Command::DescribeNode { id: NodeId::new(1), program }
    };
    assert_eq!(world.refuses(describe("0.1.0")), Refusal::NotFound(Subject::Node));
    for number in [1, 2] {
        world.accepts(Command::RegisterNode(node(number)));
    }
    world.accepts(describe("0.1.0"));
    world.accepts(describe("0.2.0"));
    assert!(matches!(world.refuses(describe(&"x".repeat(201))), Refusal::Limit(_)));
    assert_eq!(world.query().program(NodeId::new(1)).unwrap().as_deref(), Some("0.2.0"));
    assert_eq!(world.query().cluster().unwrap(), Some(cluster()));
    world.accepts(Command::RemoveNode(NodeId::new(1)));
    assert_eq!(world.query().program(NodeId::new(1)).unwrap(), None);
}

/// The rows of `old` as a restore brings them along.
fn restored(old: &Memory) -> Memory {
    let mut writes = Writes::new();
    for (table, key, row) in old.rows() {
        match carry(table, key, row).expect("the rows can be read") {
            Carried::AsItIs => writes.insert((table, key.to_vec()), Some(row.to_vec())),
            Carried::Instead { table, key, row } => writes.insert((table, key), Some(row)),
            Carried::Dropped => None,
        };
    }
    let mut new = Memory::default();
    new.commit(writes);
    new
}

#[test]
fn a_restored_cluster_is_the_old_one_with_other_nodes() {
    let mut world = World::founded();
    for number in 1..=3 {
        world.accepts(Command::RegisterNode(node(number)));
    }
    world.accepts(Command::RemoveNode(NodeId::new(3)));
    world.accepts(Command::DescribeNode { id: NodeId::new(1), program: "0.1.0".into() });
    world.accepts(Command::RaiseLevel { to: COMMAND_VERSION });
    world.accepts(Command::CreateJoinToken(token("t", JoinRole::Agent, None)));
    let enrol = |number| Command::EnrolAgent {
        token: "t".into(),
        secret_hash: [7; 32],
        agent: agent(number),
    };
    world.accepts(enrol(1));
    world.accepts(create_image(1, "vm/x", ImageKind::Disk));
    world.accepts(Command::PutManifest(disk("vm/x", 1, 1, &[1])));
    world.accepts(Command::BeginUpload(disk_upload(5, 1, "2.0")));
    world.accepts(commit_blob("a/b", 2, 1));
    let order = |number, peers: &[u8]| Command::CreateDeployment {
        id: deployment_id(number),
        image: name("vm/x"),
        digest: digest(1),
        tag: None,
        hosts: peers.iter().map(|number| peer(*number)).collect(),
        owner: "admin".into(),
    };
    world.accepts(order(1, &[1]));
    world.accepts(Command::OrderScan { of: scan_key(1, 1), id: scan_id(1), by: "admin".into() });

    let new = restored(&world.rows);
    let (before, after) = (world.query(), Query::new(&new));
    assert_eq!(after.cluster().unwrap(), Some(cluster()));
    assert_eq!(after.level().unwrap(), COMMAND_VERSION);
    assert_eq!(after.users().unwrap(), before.users().unwrap());
    assert_eq!(after.agents().unwrap(), before.agents().unwrap());
    assert_eq!(after.images(None, 9).unwrap(), before.images(None, 9).unwrap());
    assert_eq!(after.versions(image_id(1)).unwrap(), before.versions(image_id(1)).unwrap());
    assert_eq!(after.objects_after(None, 9).unwrap(), before.objects_after(None, 9).unwrap());
    assert_eq!(after.blobs_after(None, 9).unwrap(), before.blobs_after(None, 9).unwrap());
    assert!(!after.objects_after(None, 9).unwrap().is_empty());

    assert_eq!(after.nodes().unwrap(), []);
    assert_eq!(after.program(NodeId::new(1)).unwrap(), None);
    assert_eq!(after.next_node_id().unwrap(), NodeId::new(4));
    assert_eq!(after.join_tokens().unwrap(), []);
    assert_eq!(after.uploads().unwrap(), []);
    assert_eq!(after.pending_deployments(peer(1)).unwrap(), []);
    assert_eq!(after.open_scans(9).unwrap(), []);
    let scan = after.scan(&scan_key(1, 1)).unwrap().unwrap();
    assert!(matches!(scan.state, ScanState::Failed { .. }), "{scan:?}");
    let shown = after.deployments(9).unwrap();
    assert_eq!(shown.len(), 1);
    assert!(matches!(shown[0].hosts[&peer(1)], HostState::Failed { .. }));

    // It lives on: the session's expiry is gone with it, and the same upload may begin anew.
    let mut world = World { rows: new, now: 1_000_000 };
    assert_eq!(world.accepts(Command::ExpireUploads { limit: 9 }), Response::Expired(vec![]));
    world.accepts(Command::BeginUpload(disk_upload(5, 1, "2.0")));
    world.accepts(Command::DeleteImage { id: image_id(1) });
    let refused = Refusal::Exists(Subject::Node);
    assert_eq!(world.refuses(Command::RegisterNode(node(1))), refused, "an id is never used again");
    world.accepts(Command::RegisterNode(node(4)));
}
