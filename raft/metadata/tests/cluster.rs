//! Who belongs to the cluster: administrators, nodes and agents, how they come in, what agents are
//! ordered, and who was expelled; and the certificate that the nodes share. Of each command: what
//! it does where it is accepted, and why it is refused.
//!
//! Non-goal: deployments with a plan; see `deployments`.

mod world;

use shoal_content::NodeId;
use shoal_metadata::*;
use world::*;

#[test]
fn a_cluster_is_founded_once_with_an_administrator() {
    let mut world = World::default();
    let found = |role| Command::Found { cluster: cluster(), admin: user("admin", role) };
    assert_eq!(world.refuses(found(UserRole::User)), Refusal::LastAdmin);
    world.accepts(found(UserRole::Admin));
    assert_eq!(world.query().cluster().unwrap(), Some(cluster()));
    assert_eq!(world.refuses(found(UserRole::Admin)), Refusal::AlreadyFounded);
}

#[test]
fn a_node_keeps_its_id_and_its_key_and_an_id_is_never_used_again() {
    let mut world = World::founded();
    let taken = Refusal::Exists(Subject::Node);
    world.accepts(Command::RegisterNode(node(1)));
    let moved = Node { api_url: "https://elsewhere".into(), joined_at: at(99), ..node(1) };
    world.accepts(Command::RegisterNode(moved));
    let row = world.query().node(NodeId::new(1)).unwrap().unwrap();
    assert_eq!((row.api_url.as_str(), row.joined_at), ("https://elsewhere", at(1)));
    assert_eq!(world.refuses(Command::RegisterNode(Node { peer: peer(9), ..node(1) })), taken);
    assert_eq!(world.refuses(Command::RegisterNode(Node { peer: peer(101), ..node(2) })), taken);
    assert_eq!(world.query().next_node_id().unwrap(), NodeId::new(2));

    world.accepts(Command::RegisterNode(node(2)));
    world.accepts(Command::RemoveNode(NodeId::new(2)));
    let gone = world.refuses(Command::RemoveNode(NodeId::new(2)));
    assert_eq!(gone, Refusal::NotFound(Subject::Node));
    assert_eq!(world.refuses(Command::RegisterNode(node(2))), taken);
    assert_eq!(world.query().next_node_id().unwrap(), NodeId::new(3));
}

#[test]
fn there_is_always_a_node() {
    let mut world = World::founded();
    let remove = |number| Command::RemoveNode(NodeId::new(number));
    for number in [1, 2] {
        world.accepts(Command::RegisterNode(node(number)));
    }
    world.accepts(Command::RaiseLevel { to: 2 });
    world.accepts(remove(1));
    assert_eq!(world.refuses(remove(2)), Refusal::LastNode);
    assert_eq!(world.query().nodes().unwrap(), [node(2)]);
    world.accepts(Command::RegisterNode(node(3)));
    world.accepts(remove(2));
}

#[test]
fn there_is_always_an_administrator() {
    let mut world = World::founded();
    let remove = |name: &str| Command::RemoveUser { name: name.into() };
    assert_eq!(world.refuses(remove("admin")), Refusal::LastAdmin);
    let demoted = Command::PutUser(user("admin", UserRole::User));
    assert_eq!(world.refuses(demoted.clone()), Refusal::LastAdmin);
    assert_eq!(world.refuses(remove("nobody")), Refusal::NotFound(Subject::User));
    world.accepts(Command::PutUser(user("second", UserRole::Admin)));
    world.accepts(demoted);
    world.accepts(remove("admin"));
    assert_eq!(world.refuses(remove("second")), Refusal::LastAdmin);
    assert_eq!(world.query().users().unwrap().len(), 1);
}

#[test]
fn a_token_lets_in_as_many_as_it_says_until_it_expires() {
    let mut world = World::founded();
    world.accepts(Command::CreateJoinToken(token("hosts", JoinRole::Agent, Some(2))));
    let again = Command::CreateJoinToken(token("hosts", JoinRole::Agent, None));
    assert_eq!(world.refuses(again), Refusal::Exists(Subject::JoinToken));
    let enrol = |token: &str, hash, number| Command::EnrolAgent {
        token: token.into(),
        secret_hash: [hash; 32],
        agent: agent(number),
    };
    assert_eq!(world.refuses(enrol("other", 7, 1)), Refusal::JoinToken);
    assert_eq!(world.refuses(enrol("hosts", 8, 1)), Refusal::JoinToken);
    let as_node = Command::AdmitNode { token: "hosts".into(), secret_hash: [7; 32], node: node(1) };
    assert_eq!(world.refuses(as_node), Refusal::JoinToken);
    world.accepts(enrol("hosts", 7, 1));
    let named = Agent { name: "host-1".into(), ..agent(2) };
    let clash = Command::EnrolAgent { token: "hosts".into(), secret_hash: [7; 32], agent: named };
    assert_eq!(world.refuses(clash), Refusal::Exists(Subject::Agent));
    world.accepts(enrol("hosts", 7, 2));
    assert_eq!(world.refuses(enrol("hosts", 7, 3)), Refusal::JoinToken);
    assert_eq!(world.query().agent_by_name("host-2").unwrap(), Some(agent(2)));

    world.accepts(Command::CreateJoinToken(token("late", JoinRole::Agent, None)));
    world.now = 999;
    assert_eq!(world.refuses(enrol("late", 7, 3)), Refusal::JoinToken);
    world.accepts(Command::RevokeJoinToken { id: "late".into() });
    let gone = world.refuses(Command::RevokeJoinToken { id: "late".into() });
    assert_eq!(gone, Refusal::NotFound(Subject::JoinToken));
}

#[test]
fn a_node_is_admitted_by_a_token_and_may_lose_the_answer() {
    let mut world = World::founded();
    world.accepts(Command::CreateJoinToken(token("nodes", JoinRole::Node, Some(2))));
    let admit = |number| Command::AdmitNode {
        token: "nodes".into(),
        secret_hash: [7; 32],
        node: node(number),
    };
    world.accepts(admit(2));
    world.accepts(admit(2));
    assert_eq!(world.refuses(admit(3)), Refusal::JoinToken);
    assert_eq!(world.query().nodes().unwrap(), [node(2)]);
}

fn with_agents(numbers: &[u8]) -> World {
    let mut world = World::founded();
    world.accepts(Command::CreateJoinToken(token("hosts", JoinRole::Agent, None)));
    for number in numbers {
        let agent = agent(*number);
        let token = "hosts".into();
        world.accepts(Command::EnrolAgent { token, secret_hash: [7; 32], agent });
    }
    world
}

#[test]
fn a_deployment_is_pending_until_each_host_has_come_to_an_end() {
    let mut world = with_agents(&[1, 2]);
    world.accepts(Command::PutManifest(disk("vm", 1, 20, &[1])));
    let order = |number, repository: &str, hosts: &[u8]| Command::CreateDeployment {
        id: deployment_id(number),
        image: name(repository),
        digest: digest(20),
        tag: None,
        hosts: hosts.iter().copied().map(peer).collect(),
        owner: "admin".into(),
    };
    assert_eq!(world.refuses(order(1, "no", &[1])), Refusal::NotFound(Subject::Image));
    assert_eq!(world.refuses(order(1, "vm", &[1, 3])), Refusal::NotFound(Subject::Agent));
    world.accepts(order(1, "vm", &[1, 2]));
    assert_eq!(world.refuses(order(1, "vm", &[1])), Refusal::Exists(Subject::Deployment));
    world.accepts(order(2, "vm", &[1, 2]));
    let newest: Vec<_> = world.query().deployments(1).unwrap().iter().map(|d| d.id).collect();
    assert_eq!(newest, [deployment_id(2)]);
    assert_eq!(world.query().newest_deployments(1).unwrap(), newest);

    let report =
        |host, state| Command::ReportHost { deployment: deployment_id(1), peer: peer(host), state };
    let done = HostState::Done { bytes_from_peers: 1, bytes_from_nodes: 2, bytes_local: 3 };
    let failed = HostState::Failed { reason: "no space".into() };
    let pending =
        |world: &World, host| world.query().pending_deployments(peer(host)).unwrap().len();
    world.accepts(report(1, HostState::Running));
    assert_eq!(pending(&world, 1), 2);
    world.accepts(report(1, done.clone()));
    assert_eq!(pending(&world, 1), 1);
    world.accepts(report(1, failed.clone()));
    let row = world.query().deployment(deployment_id(1)).unwrap().unwrap();
    assert_eq!(row.hosts[&peer(1)], done);
    // What failed may be tried again.
    world.accepts(report(2, failed));
    assert_eq!(pending(&world, 2), 1);
    world.accepts(report(2, HostState::Running));
    assert_eq!(pending(&world, 2), 2);
    assert_eq!(world.refuses(report(9, done)), Refusal::NotFound(Subject::Agent));

    world.accepts(Command::CancelDeployment { id: deployment_id(1) });
    assert_eq!(pending(&world, 2), 1);
    world.accepts(report(2, HostState::Waiting));
    assert_eq!(pending(&world, 2), 1);
    let cancel = Command::CancelDeployment { id: deployment_id(9) };
    assert_eq!(world.refuses(cancel), Refusal::NotFound(Subject::Deployment));

    world.accepts(Command::RemoveAgent(peer(2)));
    assert_eq!(pending(&world, 2), 0);
    let row = world.query().deployment(deployment_id(2)).unwrap().unwrap();
    assert!(matches!(row.hosts[&peer(2)], HostState::Failed { .. }));
    assert_eq!(world.query().agent_by_name("host-2").unwrap(), None);
    let gone = world.refuses(Command::RemoveAgent(peer(2)));
    assert_eq!(gone, Refusal::NotFound(Subject::Agent));
}

#[test]
fn who_is_expelled_is_known_until_its_certificate_ends_or_it_is_let_in_again() {
    let mut world = World::founded();
    world.accepts(Command::CreateJoinToken(token("t", JoinRole::Agent, None)));
    for number in 1..=3 {
        let agent = agent(number);
        world.accepts(Command::EnrolAgent { token: "t".into(), secret_hash: [7; 32], agent });
    }
    let expel = |number, until| Command::ExpelAgent { peer: peer(number), until: at(until) };
    let expelled = |world: &World| -> Vec<shoal_content::PeerId> {
        world.query().expelled(at(world.now)).unwrap().into_iter().collect()
    };
    world.accepts(expel(1, 500));
    world.accepts(expel(2, 10_000));
    assert_eq!(expelled(&world), [peer(1), peer(2)]);
    assert_eq!(world.query().agent(peer(1)).unwrap(), None);
    assert_eq!(world.refuses(expel(1, 500)), Refusal::NotFound(Subject::Agent));
    world.now = 600;
    world.accepts(expel(3, 10_000));
    assert_eq!(expelled(&world), [peer(2), peer(3)], "a certificate has ended");
    let agent = agent(2);
    world.accepts(Command::EnrolAgent { token: "t".into(), secret_hash: [7; 32], agent });
    assert_eq!(expelled(&world), [peer(3)]);
    // A node, too, until its machine joins anew.
    let away = Node { peer: peer(9), ..node(9) };
    world.accepts(Command::RegisterNode(node(1)));
    world.accepts(Command::RegisterNode(away.clone()));
    world.accepts(Command::RemoveNode(away.id));
    assert_eq!(expelled(&world), [peer(3), peer(9)]);
    world.accepts(Command::RegisterNode(Node { id: NodeId::new(10), ..away }));
    assert_eq!(expelled(&world), [peer(3)]);
}

#[test]
fn of_too_many_who_were_expelled_those_are_forgotten_whose_certificates_end_first() {
    let mut world = World::founded();
    let token = JoinToken { expires_at: at(1_000_000), ..token("t", JoinRole::Agent, None) };
    world.accepts(Command::CreateJoinToken(token));
    let numbered = |number: usize| {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        shoal_content::PeerId::from_public_key(bytes)
    };
    for number in 0..EXPELLED_MAX + 2 {
        let agent = Agent { peer: numbered(number), ..agent(1) };
        world.accepts(Command::EnrolAgent { token: "t".into(), secret_hash: [7; 32], agent });
        // The later it was removed, the earlier its certificate ends.
        let until = at((2 * EXPELLED_MAX - number) as u64);
        world.accepts(Command::ExpelAgent { peer: numbered(number), until });
    }
    let kept = world.query().expelled(at(0)).unwrap();
    assert_eq!(kept.len(), EXPELLED_MAX);
    for (number, there) in [(0, true), (EXPELLED_MAX - 2, true), (EXPELLED_MAX - 1, false)] {
        assert_eq!(kept.contains(&numbered(number)), there, "{number}");
    }
    assert!(kept.contains(&numbered(EXPELLED_MAX + 1)), "the last one is on it, whenever it ends");
}

#[test]
fn the_nodes_share_what_an_acme_order_takes_and_its_certificate() {
    let mut world = World::founded();
    let account =
        AcmeAccount { directory_url: "https://acme/dir".into(), credentials: Secret(vec![1]) };
    world.accepts(Command::PutAcmeAccount(account.clone()));
    let answers = |token: &str| [(token.to_owned(), format!("{token}.key"))].into();
    world.accepts(Command::PutAcmeChallenges { answers: answers("t1") });
    world.accepts(Command::PutAcmeChallenges { answers: answers("t2") });
    assert_eq!(world.query().acme_account().unwrap(), Some(account));
    assert_eq!(world.query().acme_challenge("t1").unwrap(), None);
    assert_eq!(world.query().acme_challenge("t2").unwrap().as_deref(), Some("t2.key"));
    world.accepts(Command::PutAcmeChallenges { answers: [].into() });
    assert_eq!(world.query().acme_challenge("t2").unwrap(), None);

    let certificate = HttpCertificate {
        names: vec!["shoal.example".into()],
        chain: "chain".into(),
        key: Secret(vec![2]),
        valid_from: at(1),
        valid_until: at(100),
    };
    world.accepts(Command::PutHttpCertificate(certificate.clone()));
    let long = HttpCertificate { chain: "c".repeat(1 << 20), ..certificate.clone() };
    let refused = world.refuses(Command::PutHttpCertificate(long));
    assert!(matches!(refused, Refusal::Limit(_)), "{refused:?}");
    assert_eq!(world.query().http_certificate().unwrap(), Some(certificate));
    // The cluster's own row is where it was.
    assert!(world.query().cluster().unwrap().is_some());
}
