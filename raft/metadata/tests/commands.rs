//! Each command: what it does where it is accepted, and why it is refused.

mod world;

use std::collections::BTreeSet;

use shoal_content::{NodeId, ObjectKey};
use shoal_metadata::*;
use world::*;

const CONTAINER: ImageKind = ImageKind::Container;
const DISK: ImageKind = ImageKind::Disk;

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

    world.accepts(Command::RemoveNode(NodeId::new(1)));
    let gone = world.refuses(Command::RemoveNode(NodeId::new(1)));
    assert_eq!(gone, Refusal::NotFound(Subject::Node));
    assert_eq!(world.refuses(Command::RegisterNode(node(1))), taken);
    assert_eq!(world.query().next_node_id().unwrap(), NodeId::new(2));
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
fn images_have_one_name_and_pages_follow_the_names() {
    let mut world = World::founded();
    for (number, repository) in [(1, "b"), (2, "a/x"), (3, "a")] {
        world.accepts(create_image(number, repository, DISK));
    }
    let taken = Refusal::Exists(Subject::Image);
    assert_eq!(world.refuses(create_image(4, "a", DISK)), taken);
    assert_eq!(world.refuses(create_image(1, "c", DISK)), taken);
    let names = |after: Option<&str>, limit| -> Vec<String> {
        let after = after.map(name);
        let images = world.query().images(after.as_ref(), limit).unwrap();
        images.iter().map(|image| image.name.to_string()).collect()
    };
    assert_eq!(names(None, 2), ["a", "a/x"]);
    assert_eq!(names(Some("a"), 9), ["a/x", "b"]);
    assert_eq!(names(Some("a/zzz"), 9), ["b"]);
    assert_eq!(world.query().image_count().unwrap(), 3);

    let profile = ImageProfile { display_name: "A".into(), ..ImageProfile::default() };
    world.accepts(Command::UpdateImage { id: image_id(3), profile: profile.clone() });
    assert_eq!(world.query().image(image_id(3)).unwrap().unwrap().profile, profile);
    let missing = Command::UpdateImage { id: image_id(9), profile };
    assert_eq!(world.refuses(missing), Refusal::NotFound(Subject::Image));
}

#[test]
fn a_blob_lives_while_a_repository_or_a_version_holds_it() {
    let mut world = World::founded();
    let stored = ObjectKey::Blob(upload_id(1));
    let answer = world.accepts(commit_blob("a", 1, 1));
    assert_eq!(answer, Response::Blob { stored });
    // The same content under another object: the first one stays.
    let Command::CommitBlob { upload, digest: of, size, recipe, owner, .. } =
        commit_blob("b", 2, 1)
    else {
        unreachable!()
    };
    let duplicate = Command::CommitBlob {
        upload,
        repository: name("b"),
        digest: of,
        size,
        object: ObjectKey::Blob(upload_id(77)),
        recipe,
        owner,
        image: image_id(2),
    };
    assert_eq!(world.accepts(duplicate), Response::Blob { stored });
    assert_eq!(world.count(&stored), Some(1));
    assert_eq!(world.count(&ObjectKey::Blob(upload_id(77))), None);

    world.accepts(Command::PutManifest(container("a", 1, 10, &[1])));
    let unlink =
        |repository: &str| Command::UnlinkBlob { repository: name(repository), digest: digest(1) };
    world.accepts(unlink("b"));
    world.accepts(unlink("a"));
    assert_eq!(world.refuses(unlink("a")), Refusal::NotFound(Subject::Blob));
    assert_eq!(world.refuses(unlink("c")), Refusal::NotFound(Subject::Image));
    assert!(!world.query().blob_in(image_id(1), &digest(1)).unwrap());
    assert!(world.query().blob(&digest(1)).unwrap().is_some());
    assert_eq!(world.count(&stored), Some(1));

    let delete = Command::DeleteManifest { repository: name("a"), digest: digest(10) };
    world.accepts(delete);
    assert_eq!(world.query().blob(&digest(1)).unwrap(), None);
    assert_eq!(world.count(&stored), Some(0));
    let all = world.query().unreferenced_objects(at(u64::MAX), 9).unwrap();
    assert_eq!(all.len(), 2);
}

#[test]
fn a_mount_needs_a_repository_that_holds_the_blob() {
    let mut world = World::founded();
    world.accepts(commit_blob("a", 1, 1));
    let mount = |from: Option<&str>, blob| Command::MountBlob {
        from: from.map(name),
        to: name("b"),
        digest: digest(blob),
        owner: "admin".into(),
        image: image_id(2),
    };
    assert_eq!(world.refuses(mount(None, 2)), Refusal::NotFound(Subject::Blob));
    assert_eq!(world.refuses(mount(Some("c"), 1)), Refusal::NotFound(Subject::Image));
    world.accepts(mount(Some("a"), 1));
    assert!(world.query().blob_in(image_id(2), &digest(1)).unwrap());
    world.accepts(create_image(3, "disk", DISK));
    let onto_disk = Command::MountBlob {
        from: None,
        to: name("disk"),
        digest: digest(1),
        owner: "admin".into(),
        image: image_id(9),
    };
    assert_eq!(world.refuses(onto_disk), Refusal::WrongKind(DISK));
}

#[test]
fn a_manifest_is_taken_with_all_it_refers_to_or_not_at_all() {
    let mut world = World::founded();
    let put = |manifest: PutManifest| Command::PutManifest(manifest);
    let missing = |number| Refusal::MissingReference(digest(number));
    assert_eq!(world.refuses(put(container("a", 1, 10, &[1]))), missing(1));
    world.accepts(commit_blob("a", 1, 1));
    assert_eq!(world.refuses(put(container("a", 1, 10, &[1, 2]))), missing(2));
    let mut wrong_size = container("a", 1, 10, &[]);
    wrong_size.references.insert(Reference::Blob { digest: digest(1), size: 11 });
    assert_eq!(world.refuses(put(wrong_size)), missing(1));
    // Another repository's blob does not count.
    assert_eq!(world.refuses(put(container("b", 2, 10, &[1]))), missing(1));
    let long =
        PutManifest { manifest: vec![0; MANIFEST_BYTES_MAX + 1], ..container("a", 1, 9, &[]) };
    assert_eq!(world.refuses(put(long)), Refusal::ManifestTooLong);
    assert_eq!(world.refuses(put(disk("a", 1, 9, &[]))), Refusal::WrongKind(CONTAINER));

    let tagged = PutManifest { tags: vec![tag("v1")], ..container("a", 1, 10, &[1]) };
    let (id, sequence) = (version_id(10_001), 1);
    let first = world.accepts(put(tagged.clone()));
    assert_eq!(first, Response::Version { id, sequence, created: true });
    let again = PutManifest { version: version_id(5), tags: vec![tag("v2")], ..tagged };
    let second = world.accepts(put(again));
    assert_eq!(second, Response::Version { id, sequence, created: false });
    assert_eq!(world.query().tags_of(image_id(1), &digest(10)).unwrap(), [tag("v1"), tag("v2")]);
    let bytes = world.query().manifest(image_id(1), &digest(10)).unwrap();
    assert_eq!(bytes, Some(vec![10; 4]));
    assert!(world.query().version_by_id(version_id(5)).unwrap().is_none());

    // An index over it, and something about it.
    let mut index = container("a", 1, 11, &[]);
    index.references.insert(Reference::Manifest { digest: digest(10), size: 4 });
    index.subject = Some(digest(10));
    world.accepts(put(index));
    let referrers = world.query().referrers_after(image_id(1), &digest(10), None, 9).unwrap();
    assert_eq!(referrers, [digest(11)]);
    let image = world.query().image(image_id(1)).unwrap().unwrap();
    assert_eq!((image.latest, image.next_sequence), (Some(digest(11)), 3));
    let versions = world.query().versions(image_id(1)).unwrap();
    let order: Vec<u64> = versions.iter().map(|version| version.sequence).collect();
    assert_eq!(order, [1, 2]);

    world.accepts(Command::DeleteManifest { repository: name("a"), digest: digest(11) });
    let image = world.query().image(image_id(1)).unwrap().unwrap();
    assert_eq!(image.latest, Some(digest(10)));
    let gone = Command::DeleteManifest { repository: name("a"), digest: digest(11) };
    assert_eq!(world.refuses(gone), Refusal::NotFound(Subject::Version));
}

#[test]
fn long_annotations_stay_in_the_manifest_alone() {
    let mut world = World::founded();
    for (manifest, bytes, kept) in
        [(10, ANNOTATIONS_KEPT_BYTES_MAX, 1), (11, ANNOTATIONS_KEPT_BYTES_MAX + 1, 0)]
    {
        let annotations = [("k".to_owned(), "v".repeat(bytes - 1))].into();
        let put = PutManifest { annotations, ..container("a", 1, manifest, &[]) };
        world.accepts(Command::PutManifest(put));
        let version = world.query().version(image_id(1), &digest(manifest)).unwrap().unwrap();
        assert_eq!(version.annotations.len(), kept, "{bytes} bytes");
    }
}

#[test]
fn tags_move_and_come_in_pages() {
    let mut world = World::founded();
    world.accepts(Command::PutManifest(container("a", 1, 10, &[])));
    world.accepts(Command::PutManifest(container("a", 1, 11, &[])));
    let put = |text: &str, manifest| Command::PutTag {
        repository: name("a"),
        tag: tag(text),
        digest: digest(manifest),
    };
    for text in ["b", "a", "A", "c"] {
        world.accepts(put(text, 10));
    }
    world.accepts(put("b", 11));
    assert_eq!(world.refuses(put("b", 12)), Refusal::NotFound(Subject::Version));
    let page = |after: Option<&str>, limit| -> Vec<String> {
        let tags = world.query().tags(image_id(1), after, limit).unwrap();
        tags.iter().map(|(name, _)| name.to_string()).collect()
    };
    assert_eq!(page(None, 2), ["A", "a"]);
    assert_eq!(page(Some("a"), 9), ["b", "c"]);
    // Between tags lies what is none.
    assert_eq!(page(Some(""), 2), ["A", "a"]);
    assert_eq!(page(Some("b-"), 9), ["c"]);
    assert_eq!(page(Some("~\u{e9}/"), 9), [] as [&str; 0]);
    assert_eq!(world.query().tag(image_id(1), &tag("b")).unwrap(), Some(digest(11)));
    assert_eq!(world.query().tags_of(image_id(1), &digest(11)).unwrap(), [tag("b")]);

    let delete = Command::DeleteTag { repository: name("a"), tag: tag("b") };
    world.accepts(delete.clone());
    assert_eq!(world.refuses(delete), Refusal::NotFound(Subject::Tag));
    // With a version go its tags.
    world.accepts(Command::DeleteManifest { repository: name("a"), digest: digest(10) });
    assert_eq!(world.query().tags(image_id(1), None, 9).unwrap(), []);
}

#[test]
fn of_two_requests_at_one_offset_one_wins() {
    let mut world = World::founded();
    world.accepts(Command::BeginUpload(blob_upload(1, "a")));
    let again = Command::BeginUpload(blob_upload(1, "a"));
    assert_eq!(world.refuses(again), Refusal::Exists(Subject::Upload));
    let advance = |from, to| Command::AdvanceUpload {
        upload: upload_id(1),
        from,
        to,
        checkpoint: None,
        multipart: None,
        expires_at: at(700),
    };
    world.accepts(advance(0, 10));
    assert_eq!(world.refuses(advance(0, 12)), Refusal::OffsetMismatch(10));
    assert!(matches!(world.refuses(advance(10, 9)), Refusal::UploadState(_)));

    let commit = |repository: &str| {
        let mut command = commit_blob(repository, 1, 1);
        if let Command::CommitBlob { upload, .. } = &mut command {
            *upload = Some(upload_id(1));
        }
        command
    };
    assert_eq!(world.refuses(commit("b")), Refusal::NotFound(Subject::Upload));
    world.accepts(commit("a"));
    assert_eq!(world.query().uploads().unwrap(), []);
}

#[test]
fn a_disk_is_received_read_under_a_lease_and_published() {
    let mut world = World::founded();
    let missing = Command::BeginUpload(disk_upload(1, 1, "1.0.20"));
    assert_eq!(world.refuses(missing.clone()), Refusal::NotFound(Subject::Image));
    world.accepts(create_image(1, "vm", DISK));
    world.accepts(missing);
    let out = |part, bytes| Refusal::PartOutOfRange { part, bytes };
    assert_eq!(world.refuses(part(1, 3, 5)), out(3, 5));
    assert_eq!(world.refuses(part(1, 2, 10)), out(2, 10));
    assert_eq!(world.refuses(part(1, u32::MAX, 10)), out(u32::MAX, 10));
    let claim = |node, lease_until| Command::ClaimIngest {
        upload: upload_id(1),
        node: NodeId::new(node),
        lease_until: at(lease_until),
    };
    world.accepts(part(1, 0, 10));
    world.accepts(part(1, 2, 5));
    assert!(matches!(world.refuses(claim(1, 100)), Refusal::UploadState(_)));
    let publish = PutManifest {
        upload: Some(upload_id(1)),
        tags: vec![tag("latest")],
        ..disk("vm", 9, 20, &[1, 2])
    };
    assert!(matches!(
        world.refuses(Command::PutManifest(publish.clone())),
        Refusal::UploadState(_)
    ));
    world.accepts(part(1, 1, 10));
    world.accepts(claim(1, 100));
    assert!(matches!(world.refuses(part(1, 1, 10)), Refusal::UploadState(_)));
    assert_eq!(world.refuses(claim(2, 100)), Refusal::Leased);
    world.accepts(claim(1, 120));
    world.now = 120;
    world.accepts(claim(2, 200));

    let answer = world.accepts(Command::PutManifest(publish));
    let Response::Version { id, created: true, .. } = answer else { panic!("{answer:?}") };
    let session = world.query().upload(upload_id(1)).unwrap().unwrap();
    let UploadPurpose::Disk { state, .. } = session.purpose else { panic!("no disk") };
    assert_eq!(state, DiskUploadState::Published { version: id });
    let found = world.query().version_by_number(image_id(1), "1.0.20").unwrap();
    assert_eq!(found.map(|version| version.id), Some(id));
    assert_eq!((world.count(&pack(1)), world.count(&pack(2))), (Some(1), Some(1)));
    let fail = Command::FailIngest { upload: upload_id(1), reason: "late".into() };
    assert!(matches!(world.refuses(fail), Refusal::UploadState(_)));

    // The number is taken, for a session as for a manifest.
    let again = Command::BeginUpload(disk_upload(2, 1, "1.0.20"));
    assert_eq!(world.refuses(again), Refusal::Exists(Subject::Version));
    let mut other = disk("vm", 9, 21, &[1]);
    if let Some(disk) = &mut other.disk {
        disk.number = "1.0.20".into();
    }
    let refused = world.refuses(Command::PutManifest(other));
    assert_eq!(refused, Refusal::Exists(Subject::Version));
}

#[test]
fn sessions_fail_are_aborted_and_expire() {
    let mut world = World::founded();
    world.accepts(create_image(1, "vm", DISK));
    for number in 1..=3 {
        world.accepts(Command::BeginUpload(disk_upload(number, 1, &format!("2.{number}"))));
    }
    world.accepts(Command::FailIngest { upload: upload_id(1), reason: "torn".into() });
    let claim =
        Command::ClaimIngest { upload: upload_id(1), node: NodeId::new(1), lease_until: at(900) };
    assert!(matches!(world.refuses(claim), Refusal::UploadState(_)));
    let abort = Command::AbortUpload { upload: upload_id(2) };
    assert!(matches!(world.accepts(abort.clone()), Response::Aborted(_)));
    assert_eq!(world.refuses(abort), Refusal::NotFound(Subject::Upload));

    world.accepts(part(3, 0, 10));
    world.now = 550;
    let expired = world.accepts(Command::ExpireUploads { limit: 10 });
    let Response::Expired(expired) = expired else { panic!("{expired:?}") };
    assert_eq!(expired.len(), 1);
    assert_eq!(expired[0].id, upload_id(1));
    assert_eq!(world.query().uploads().unwrap().len(), 1);
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
fn only_what_was_unreferenced_long_enough_is_swept() {
    let mut world = World::founded();
    world.accepts(Command::PutManifest(disk("vm", 1, 20, &[1, 2])));
    world.accepts(Command::PutManifest(disk("vm", 1, 21, &[2, 3])));
    world.now = 100;
    world.accepts(Command::DeleteManifest { repository: name("vm"), digest: digest(20) });
    let everything: BTreeSet<ObjectKey> =
        [pack(1), pack(2), pack(3), pack(4), ObjectKey::Recipe(recipe(20))].into();
    let sweep = |before| Command::SweepObjects {
        candidates: everything.clone(),
        unreferenced_before: at(before),
    };
    assert_eq!(world.accepts(sweep(101)), Response::Swept(BTreeSet::new()));
    // One is wanted again in the meantime.
    world.accepts(Command::PutManifest(disk("vm", 1, 22, &[1])));
    let swept = world.accepts(sweep(102));
    assert_eq!(swept, Response::Swept([ObjectKey::Recipe(recipe(20))].into()));
    assert_eq!(world.count(&ObjectKey::Recipe(recipe(20))), None);
    assert_eq!(world.count(&pack(1)), Some(1));
    assert_eq!(world.query().unreferenced_objects(at(u64::MAX), 9).unwrap(), []);
}

#[test]
fn nothing_can_name_an_object_while_its_bytes_are_deleted() {
    let mut world = World::founded();
    world.accepts(Command::PutManifest(disk("vm", 1, 20, &[1])));
    world.accepts(Command::DeleteManifest { repository: name("vm"), digest: digest(20) });
    world.now = 100;
    let gone: BTreeSet<ObjectKey> = [pack(1)].into();
    let sweep = Command::SweepObjects { candidates: gone.clone(), unreferenced_before: at(99) };
    assert_eq!(world.accepts(sweep), Response::Swept(gone.clone()));
    let again = Command::PutManifest(disk("vm", 1, 21, &[1]));
    assert_eq!(world.refuses(again.clone()), Refusal::BeingDeleted(pack(1)));
    // The bytes turned out to be there still, so that the deletion begins anew.
    world.now = 200;
    let retry = Command::RetryDeletion { objects: [pack(1), pack(2)].into() };
    assert_eq!(world.accepts(retry), Response::Swept(gone.clone()));
    let since = world.query().deleting_objects(None, 9).unwrap();
    assert!(since.len() == 1 && since[0].0 == pack(1) && since[0].1 >= at(200), "{since:?}");
    let forget =
        |before| Command::ForgetObjects { objects: gone.clone(), deleting_before: at(before) };
    world.accepts(forget(150));
    assert_eq!(world.refuses(again.clone()), Refusal::BeingDeleted(pack(1)));
    world.accepts(forget(300));
    world.accepts(again);
    assert_eq!(world.count(&pack(1)), Some(1));
}

#[test]
fn an_image_goes_with_all_it_has() {
    let mut world = World::founded();
    world.accepts(commit_blob("a", 1, 1));
    world.accepts(commit_blob("a", 1, 2));
    let tagged = PutManifest { tags: vec![tag("x")], ..container("a", 1, 10, &[1]) };
    world.accepts(Command::PutManifest(tagged));
    world.accepts(Command::DeleteImage { id: image_id(1) });
    let left: BTreeSet<Table> = world.rows.rows().map(|(table, _, _)| table).collect();
    let expected = [
        Table::Cluster,
        Table::Users,
        Table::Objects,
        Table::UnreferencedObjects,
        Table::Counts,
        Table::Projects,
    ];
    assert_eq!(left, expected.into());
    assert_eq!(world.query().image_count().unwrap(), 0);
    let gone = world.refuses(Command::DeleteImage { id: image_id(1) });
    assert_eq!(gone, Refusal::NotFound(Subject::Image));
}

#[test]
fn what_was_found_in_storage_is_counted_once_and_swept_like_the_rest() {
    let mut world = World::founded();
    let objects: BTreeSet<ObjectKey> = [pack(1), pack(2)].into();
    let adopt = || Command::AdoptObjects { objects: objects.clone() };
    world.now = 10;
    assert_eq!(world.accepts(adopt()), Response::Adopted(2));
    world.now = 20;
    assert_eq!(world.accepts(adopt()), Response::Adopted(0));
    world.now = 30;
    let sweep = |before| Command::SweepObjects {
        candidates: objects.clone(),
        unreferenced_before: at(before),
    };
    assert_eq!(world.accepts(sweep(10)), Response::Swept(BTreeSet::new()));
    assert_eq!(world.accepts(sweep(15)), Response::Swept(objects.clone()));
    // While they are deleted, they are nobody's orphans.
    assert_eq!(world.accepts(adopt()), Response::Adopted(0));
}

#[test]
fn a_session_that_is_closed_twice_with_one_object_is_closed_once() {
    let mut world = World::founded();
    let session = blob_upload(1, "a");
    world.accepts(Command::BeginUpload(session.clone()));
    let commit = match commit_blob("a", 1, 1) {
        Command::CommitBlob { repository, digest, size, object, recipe, owner, image, .. } => {
            let upload = Some(session.id);
            Command::CommitBlob { upload, repository, digest, size, object, recipe, owner, image }
        }
        other => other,
    };
    let first = world.accepts(commit.clone());
    assert_eq!(world.accepts(commit.clone()), first);
    let other = match commit {
        Command::CommitBlob { upload, repository, digest, size, recipe, owner, image, .. } => {
            let object = pack(9);
            Command::CommitBlob { upload, repository, digest, size, object, recipe, owner, image }
        }
        other => other,
    };
    assert_eq!(world.refuses(other), Refusal::NotFound(Subject::Upload));
}

#[test]
fn a_blob_that_storage_lost_is_healed_once() {
    let mut world = World::founded();
    let Response::Blob { stored } = world.accepts(commit_blob("a", 1, 1)) else { panic!("none") };
    let heal =
        |object, recipe| Command::HealBlob { digest: digest(1), missing: stored, object, recipe };
    world.accepts(heal(pack(5), recipe(5)));
    assert_eq!((world.count(&pack(5)), world.count(&stored)), (Some(1), Some(0)));
    let again = world.accepts(heal(pack(6), recipe(6)));
    assert_eq!(again, Response::Blob { stored: pack(5) });
    assert_eq!(world.count(&pack(6)), None);
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
