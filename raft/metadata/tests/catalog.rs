//! Latest versions and rollback, instances, deleting and restoring, notes and counters.

mod world;

use shoal_content::{NodeId, ObjectKey, PackId};
use shoal_metadata::*;
use world::counts::check;
use world::*;

/// A cluster whose nodes all know these commands, with a disk image that has no versions.
fn with_disk() -> World {
    let mut world = World::founded();
    world.accepts(Command::RaiseLevel { to: 2 });
    world.accepts(create_image(1, "zedge/vm", ImageKind::Disk));
    world
}

fn latest(world: &World) -> String {
    let image = world.query().image(image_id(1)).unwrap().unwrap();
    let latest = image.latest.clone().unwrap();
    let tagged = world.query().tag(image.id, &tag("latest")).unwrap();
    assert_eq!(tagged.as_ref(), Some(&latest), "the tag and the image differ");
    let version = world.query().version(image.id, &latest).unwrap().unwrap();
    version.disk.unwrap().number
}

#[test]
fn the_latest_version_is_the_highest_number_and_not_the_last_push() {
    let mut world = with_disk();
    let steps = [
        ("1.0.0", "1.0.0"),
        ("1.2.0", "1.2.0"),
        ("1.10.0-rc.1", "1.10.0-rc.1"),
        ("1.10.0", "1.10.0"),
        // A repair of an old line.
        ("1.0.1", "1.10.0"),
        ("1.9.9", "1.10.0"),
        // No number at all: the one that came last.
        ("nightly", "nightly"),
        ("1.0.2", "1.0.2"),
    ];
    for (at, (number, expected)) in steps.into_iter().enumerate() {
        world.accepts(publish_disk("zedge/vm", 1, 20 + at as u8, number));
        assert_eq!(latest(&world), expected, "after {number}");
    }
    let mut versions = world.query().versions(image_id(1)).unwrap();
    let sequences: Vec<u64> = versions.iter().map(|version| version.sequence).collect();
    assert_eq!(sequences, (1..=8).collect::<Vec<u64>>());
    newest_first(&mut versions);
    let numbers: Vec<&str> =
        versions.iter().map(|version| version.disk.as_ref().unwrap().number.as_str()).collect();
    let expected =
        ["1.10.0", "1.10.0-rc.1", "1.9.9", "1.2.0", "1.0.2", "1.0.1", "1.0.0", "nightly"];
    assert_eq!(numbers, expected);
    let digests: Vec<_> = versions.iter().map(|version| version.digest.clone()).collect();
    assert_eq!(world.query().newest_versions(image_id(1)).unwrap(), digests);
}

#[test]
fn an_image_has_so_many_versions_as_one_command_can_let_go_of() {
    let mut world = with_disk();
    for number in 0..25 {
        world.accepts(publish_disk("zedge/vm", 1, number, &format!("1.0.{number}")));
    }
    // One that lives in as many objects as any may.
    let Command::PublishDisk { mut put, .. } = publish_disk("zedge/vm", 1, 100, "2.0.0") else {
        unreachable!()
    };
    if let Some(disk) = &mut put.disk {
        let packs = (0..100_000u32).map(|n| ObjectKey::Pack(PackId::of(&n.to_be_bytes())));
        disk.objects = packs.collect();
    }
    let large = Command::PublishDisk { put: put.clone(), compressed_bytes: 7 };
    let refusal = world.refuses(large.clone());
    assert!(matches!(&refusal, Refusal::Limit(text) if text.starts_with("20 ")), "{refusal}");
    assert!(matches!(world.refuses(Command::PutManifest(put)), Refusal::Limit(_)));
    world.accepts(publish_disk("zedge/vm", 1, 25, "1.0.25"));
    // Those count that there are, not those that there were.
    for number in 0..7 {
        let (repository, digest) = (name("zedge/vm"), digest(number));
        world.accepts(Command::DeleteManifest { repository, digest });
    }
    let outcome = world.propose(large);
    assert!(outcome.is_ok(), "{:?}", outcome.err());
    assert_eq!(latest(&world), "2.0.0");
    check(&world);
}

#[test]
fn a_tag_of_its_own_makes_an_old_number_the_latest() {
    let mut world = with_disk();
    world.accepts(publish_disk("zedge/vm", 1, 20, "2.0.0"));
    let Command::PublishDisk { mut put, compressed_bytes } =
        publish_disk("zedge/vm", 1, 21, "1.0.0")
    else {
        unreachable!()
    };
    put.tags = vec![tag("latest"), tag("stable")];
    world.accepts(Command::PublishDisk { put, compressed_bytes });
    assert_eq!(latest(&world), "1.0.0");
    let note = world.query().version_note(image_id(1), &digest(21)).unwrap();
    assert_eq!(note.compressed_bytes, Some(7));
}

#[test]
fn a_rollback_moves_the_tag_and_what_is_latest_in_one_step() {
    let mut world = with_disk();
    for (manifest, number) in [(20, "1.0.0"), (21, "1.0.1")] {
        world.accepts(publish_disk("zedge/vm", 1, manifest, number));
    }
    let back = |tag_text: &str, to: u8| Command::Rollback {
        image: image_id(1),
        tag: tag(tag_text),
        to: digest(to),
    };
    world.accepts(back("latest", 20));
    assert_eq!(latest(&world), "1.0.0");
    // The next one is newer than what is the latest now.
    world.accepts(publish_disk("zedge/vm", 1, 22, "1.0.2"));
    assert_eq!(latest(&world), "1.0.2");
    assert_eq!(world.refuses(back("stable", 20)), Refusal::NotFound(Subject::Tag));
    assert_eq!(world.refuses(back("latest", 99)), Refusal::NotFound(Subject::Version));
    let put = |to| Command::PutTag {
        repository: name("zedge/vm"),
        tag: tag("stable"),
        digest: digest(to),
    };
    world.accepts(put(22));
    world.accepts(back("stable", 21));
    assert_eq!(world.query().tag(image_id(1), &tag("stable")).unwrap(), Some(digest(21)));
    assert_eq!(latest(&world), "1.0.2", "another tag moves nothing else");
    // What is immutable cannot be rolled back either.
    let rules =
        PolicyRules { immutable: vec![selection("**", "stable")], ..PolicyRules::default() };
    world.accepts(set_policy("zedge", rules));
    assert!(matches!(world.refuses(back("stable", 20)), Refusal::Immutable { .. }));
    // Once the latest is removed, the highest number is.
    world.accepts(Command::DeleteManifest { repository: name("zedge/vm"), digest: digest(22) });
    assert_eq!(latest(&world), "1.0.1");
}

#[test]
fn the_latest_version_has_its_tag_again_after_either_went() {
    let mut world = with_disk();
    let numbers = ["1.0.0", "2.0.0", "nightly", "1.5.0", "1.4.0"];
    for (at, number) in numbers.into_iter().enumerate() {
        world.accepts(publish_disk("zedge/vm", 1, 20 + at as u8, number));
    }
    assert_eq!(latest(&world), "1.5.0");
    let repository = || name("zedge/vm");
    let delete =
        |manifest| Command::DeleteManifest { repository: repository(), digest: digest(manifest) };
    for (manifest, left) in [(23, "1.4.0"), (24, "nightly"), (22, "2.0.0")] {
        world.accepts(delete(manifest));
        assert_eq!(latest(&world), left);
    }
    // Deleted by hand, the tag is away until something is published, be it an older number.
    let untag = || Command::DeleteTag { repository: repository(), tag: tag("latest") };
    let image = |world: &World| world.query().image(image_id(1)).unwrap().unwrap();
    let named = |world: &World| world.query().tag(image_id(1), &tag("latest")).unwrap();
    world.accepts(untag());
    assert_eq!((image(&world).latest, named(&world)), (Some(digest(21)), None));
    world.accepts(publish_disk("zedge/vm", 1, 30, "1.0.1"));
    assert_eq!(latest(&world), "2.0.0");
    // Or until the version goes that had it.
    world.accepts(untag());
    world.accepts(delete(21));
    assert_eq!(latest(&world), "1.0.1");
    for manifest in [30, 20] {
        world.accepts(delete(manifest));
    }
    assert_eq!((image(&world).latest, named(&world)), (None, None));
    check(&world);
}

#[test]
fn a_latest_that_is_immutable_stays_and_disks_are_published_all_the_same() {
    let mut world = with_disk();
    let immutable = vec![selection("**", "latest")];
    world.accepts(set_policy("zedge", PolicyRules { immutable, ..PolicyRules::default() }));
    for (manifest, number) in [(20, "1.0.0"), (21, "1.0.1")] {
        world.accepts(publish_disk("zedge/vm", 1, manifest, number));
        assert_eq!(latest(&world), "1.0.0");
    }
    // Who asks for the tag is told.
    let Command::PublishDisk { mut put, compressed_bytes } =
        publish_disk("zedge/vm", 1, 22, "1.0.2")
    else {
        unreachable!()
    };
    put.tags = vec![tag("latest")];
    let refused = world.refuses(Command::PublishDisk { put, compressed_bytes });
    assert!(matches!(refused, Refusal::Immutable { .. }), "{refused}");
}

#[test]
fn a_disk_is_published_only_while_who_uploaded_it_may_push() {
    let mut world = with_disk();
    let (ci, alice) = ("robot$zedge+ci", Grantee::User(account("alice")));
    world.accepts(Command::CreateUser(user("alice", UserRole::User)));
    world.accepts(Command::PutRobot(robot(ci, &[Scope::Write])));
    let by = |owner: &str, manifest, number| match publish_disk("zedge/vm", 1, manifest, number) {
        Command::PublishDisk { put, compressed_bytes } => {
            let put = PutManifest { owner: owner.into(), ..put };
            Command::PublishDisk { put, compressed_bytes }
        }
        other => other,
    };
    assert_eq!(world.refuses(by("alice", 20, "1.0.0")), Refusal::NotYours);
    let place = Place::Project("zedge".parse().unwrap());
    let right = Right::Project(ProjectRole::Developer);
    world.accepts(Command::PutRight { place: place.clone(), grantee: alice.clone(), right });
    world.accepts(by("alice", 20, "1.0.0"));
    world.accepts(by(ci, 21, "1.0.1"));
    world.accepts(Command::RemoveRight { place, grantee: alice });
    assert_eq!(world.refuses(by("alice", 22, "1.0.2")), Refusal::NotYours);
    world.accepts(Command::RemoveUser { name: "alice".into() });
    world.accepts(Command::RemoveRobot(ci.parse().unwrap()));
    for owner in ["alice", ci] {
        assert_eq!(world.refuses(by(owner, 22, "1.0.2")), Refusal::NotYours);
    }
    assert_eq!(latest(&world), "1.0.1");
}

/// A disk of that number, with these tags.
fn tagged_disk(manifest: u8, number: &str, tags: &[&str]) -> Command {
    let Command::PublishDisk { mut put, compressed_bytes } =
        publish_disk("zedge/vm", 1, manifest, number)
    else {
        unreachable!()
    };
    put.tags = tags.iter().map(|text| tag(text)).collect();
    Command::PublishDisk { put, compressed_bytes }
}

#[test]
fn the_number_of_one_version_is_no_tag_of_another() {
    let mut world = with_disk();
    world.accepts(tagged_disk(20, "1.0.0", &["1.0.0", "v1.0.0", "2.0.0", "v3.0.0"]));
    let is_ambiguous = |refusal: Refusal, text: &str| {
        let Refusal::InUse { subject: Subject::Tag, by } = refusal else { panic!("{refusal}") };
        assert!(by.starts_with(text), "{by}");
    };
    let refused: [(&str, &[&str], &str); 4] = [
        ("1.0.1", &["stable", "1.0.0"], "1.0.0 is the number"),
        ("1.0.1", &["v1.0.0"], "v1.0.0 is the number"),
        ("2.0.0", &["stable"], "2.0.0 is a tag"),
        ("3.0.0", &[], "v3.0.0 is a tag"),
    ];
    for (number, tags, text) in refused {
        is_ambiguous(world.refuses(tagged_disk(21, number, tags)), text);
    }
    // A tag that comes along moves to it.
    world.accepts(tagged_disk(21, "2.0.0", &["2.0.0"]));
    let put = |text: &str, to| Command::PutTag {
        repository: name("zedge/vm"),
        tag: tag(text),
        digest: digest(to),
    };
    let back = Command::Rollback { image: image_id(1), tag: tag("2.0.0"), to: digest(20) };
    is_ambiguous(world.refuses(back), "2.0.0 is the number");
    is_ambiguous(world.refuses(put("v2.0.0", 20)), "v2.0.0 is the number");
    world.accepts(put("v2.0.0", 21));
    check(&world);
}

#[test]
fn a_version_that_is_called_latest_holds_up_no_other() {
    let mut world = with_disk();
    world.accepts(publish_disk("zedge/vm", 1, 20, "latest"));
    world.accepts(publish_disk("zedge/vm", 1, 21, "1.0.0"));
    assert_eq!(latest(&world), "1.0.0");
}

#[test]
fn a_version_that_an_instance_runs_stays_and_the_refusal_names_it() {
    let mut world = with_disk();
    for (manifest, number) in [(20, "1.0.0"), (21, "1.0.1")] {
        world.accepts(publish_disk("zedge/vm", 1, manifest, number));
    }
    let register = |text: &str, manifest, replace| Command::RegisterInstance {
        instance: instance(text, 1, manifest),
        replace,
    };
    for number in 0..12 {
        world.accepts(register(&format!("vm-{number:02}"), 20, false));
    }
    assert_eq!(world.refuses(register("vm-00", 20, false)), Refusal::Exists(Subject::Instance));
    assert_eq!(world.refuses(register("vm-99", 77, false)), Refusal::NotFound(Subject::Version));
    let delete = || Command::DeleteManifest { repository: name("zedge/vm"), digest: digest(20) };
    let Refusal::InUse { subject: Subject::Version, by } = world.refuses(delete()) else {
        panic!("not in use")
    };
    assert!(by.contains("vm-00, vm-01") && by.contains("vm-09 and more"), "{by}");
    for command in [
        Command::TrashImage { id: image_id(1), by: "admin".into() },
        Command::DeleteImage { id: image_id(1) },
    ] {
        let refusal = world.refuses(command);
        assert!(matches!(refusal, Refusal::InUse { subject: Subject::Image, .. }), "{refusal}");
    }
    // A policy passes it over, and says why beforehand.
    let rules = PolicyRules { retention: vec![rule("1.*", Keep::Newest(1))], ..Default::default() };
    world.accepts(Command::PutTag {
        repository: name("zedge/vm"),
        tag: tag("latest"),
        digest: digest(21),
    });
    world.accepts(set_policy("zedge", rules.clone()));
    let image = world.query().image(image_id(1)).unwrap().unwrap();
    let judged = judge(world.query(), &rules, &image, at(world.now)).unwrap();
    let number = judged.names.iter().find(|name| name.name == "1.0.0").unwrap();
    let runs = Verdict::Stays(Reason::RunBy(instance_name("vm-00")));
    assert_eq!(number.verdict, runs);
    let mut retire =
        judged.retire(world.query().policy(&image.name.project()).unwrap().unwrap().revision);
    retire.numbers = [("1.0.0".to_owned(), number.used.clone())].into();
    let Response::Retired { versions, .. } = world.accepts(Command::Retire(retire)) else {
        panic!("nothing was retired")
    };
    assert!(versions.is_empty());
    // Once they run something else, it goes.
    for number in 0..12 {
        world.accepts(register(&format!("vm-{number:02}"), 21, true));
    }
    assert!(world.query().instances_of(image_id(1), &digest(20), 5).unwrap().is_empty());
    world.accepts(delete());
    for number in 0..12 {
        let name = instance_name(&format!("vm-{number:02}"));
        world.accepts(Command::RemoveInstance { name });
    }
    world.accepts(Command::TrashImage { id: image_id(1), by: "admin".into() });
    assert_eq!(world.refuses(register("vm-1", 21, false)), Refusal::NotFound(Subject::Image));
    check(&world);
}

#[test]
fn what_an_index_in_use_lists_stays_too() {
    let mut world = with_disk();
    world.accepts(commit_blob("a", 5, 1));
    world.accepts(Command::PutManifest(container("a", 5, 10, &[1])));
    world.accepts(Command::PutManifest(index("a", 5, 11, &[10])));
    world.accepts(Command::RegisterInstance { instance: instance("vm", 5, 11), replace: false });
    let delete =
        |manifest| Command::DeleteManifest { repository: name("a"), digest: digest(manifest) };
    for manifest in [10, 11] {
        assert!(matches!(world.refuses(delete(manifest)), Refusal::InUse { .. }), "{manifest}");
    }
    world.accepts(Command::RemoveInstance { name: instance_name("vm") });
    world.accepts(delete(10));
    check(&world);
}

#[test]
fn every_image_and_version_is_found_page_by_page_in_the_trash_too() {
    let mut world = with_disk();
    world.accepts(publish_disk("zedge/vm", 1, 20, "1.0.0"));
    world.accepts(publish_disk("zedge/vm", 1, 21, "1.0.1"));
    world.accepts(create_image(2, "zedge/other", ImageKind::Container));
    world.accepts(Command::TrashImage { id: image_id(1), by: "admin".into() });
    let query = world.query();
    let first = query.images_by_id(None, 1).unwrap().remove(0).id;
    let second = query.images_by_id(Some(first), 5).unwrap().remove(0).id;
    assert_eq!((first, second), (image_id(1), image_id(2)));
    assert!(query.images_by_id(Some(second), 5).unwrap().is_empty());
    let (mut before, mut found) = (None, Vec::new());
    while let Some(version) = query.versions_before(image_id(1), before, 1).unwrap().pop() {
        before = Some(version.sequence);
        found.push(version.digest);
    }
    let all: Vec<_> =
        query.versions(image_id(1)).unwrap().into_iter().rev().map(|one| one.digest).collect();
    assert!(found == all && found.len() == 2, "{found:?}");
}

#[test]
fn a_deleted_image_comes_back_with_all_it_had() {
    let mut world = with_disk();
    world.accepts(publish_disk("zedge/vm", 1, 20, "1.0.0"));
    let before = world.query().image(image_id(1)).unwrap().unwrap();
    let held = world.query().account(&"project:zedge".parse::<Payer>().unwrap()).unwrap();
    let trash = || Command::TrashImage { id: image_id(1), by: "alice".into() };
    world.accepts(trash());
    check(&world);
    assert_eq!(world.query().image_by_name(&name("zedge/vm")).unwrap(), None);
    assert_eq!(world.query().live_image(image_id(1)).unwrap(), None);
    let deleted = world.query().deletion(&before).unwrap().unwrap();
    assert_eq!(deleted.by, "alice");
    let now = world.query().account(&"project:zedge".parse::<Payer>().unwrap()).unwrap();
    assert_eq!((now.bytes, now.images + 1), (held.bytes, held.images));
    let missing = Refusal::NotFound(Subject::Image);
    assert_eq!(world.refuses(trash()), missing);
    assert_eq!(world.refuses(Command::BeginUpload(disk_upload(1, 1, "9"))), missing);
    let remove = Command::RemoveProject { name: "zedge".parse().unwrap() };
    assert!(matches!(world.refuses(remove.clone()), Refusal::InUse { .. }));

    // The name is free, and while another image has it this one stays away.
    world.accepts(create_image(2, "zedge/vm", ImageKind::Disk));
    let restore = || Command::RestoreImage { id: image_id(1) };
    assert_eq!(world.refuses(restore()), Refusal::Exists(Subject::Image));
    world.accepts(Command::DeleteImage { id: image_id(2) });
    world.accepts(restore());
    check(&world);
    assert_eq!(world.refuses(restore()), missing);
    let after = world.query().image_by_name(&name("zedge/vm")).unwrap().unwrap();
    assert_eq!(Image { updated_at: before.updated_at, ..after }, before);
    assert_eq!(latest(&world), "1.0.0");

    // Gone for good.
    world.accepts(trash());
    world.accepts(Command::DeleteImage { id: image_id(1) });
    check(&world);
    assert_eq!(world.refuses(restore()), missing);
    assert_eq!(world.count(&pack(1)), Some(0));
    world.accepts(remove);
}

#[test]
fn an_image_is_described_anew_only_from_what_was_said_of_it() {
    let mut world = with_disk();
    let said = |text: &str| {
        let profile = ImageProfile { description: text.into(), ..ImageProfile::default() };
        let note = ImageNote { updated_by: text.into(), ..ImageNote::default() };
        Box::new(ImageDescription { profile, note })
    };
    let profile = world.query().image(image_id(1)).unwrap().unwrap().profile;
    let first = Box::new(ImageDescription { profile, note: ImageNote::default() });
    let change = |from, to| Command::RedescribeImage { id: image_id(1), from, to };
    world.accepts(change(first.clone(), said("a")));
    let changed = Refusal::Changed(Subject::Image);
    assert_eq!(world.refuses(change(first.clone(), said("b"))), changed);
    world.accepts(change(said("a"), said("b")));
    assert_eq!(world.refuses(change(said("a"), said("c"))), changed);
    assert_eq!(world.query().image(image_id(1)).unwrap().unwrap().profile, said("b").profile);
    assert_eq!(world.query().image_note(image_id(1)).unwrap(), said("b").note);
    world.accepts(Command::TrashImage { id: image_id(1), by: "admin".into() });
    assert_eq!(world.refuses(change(said("b"), first)), Refusal::NotFound(Subject::Image));
}

#[test]
fn a_version_carries_what_its_upload_said_and_is_deprecated_with_a_message() {
    let mut world = with_disk();
    let note = UploadNote {
        changelog: "first".into(),
        build_info: "{\"builder\":\"jenkins\"}".into(),
        ..UploadNote::default()
    };
    let upload = disk_upload(1, 1, "1.0.0");
    world.accepts(Command::BeginDescribedUpload { upload, note });
    for (index, bytes) in [(0, 10), (1, 10), (2, 5)] {
        world.accepts(part(1, index, bytes));
    }
    let (node, lease_until) = (NodeId::new(1), at(500));
    world.accepts(Command::ClaimIngest { upload: upload_id(1), node, lease_until });
    let Command::PublishDisk { mut put, compressed_bytes } =
        publish_disk("zedge/vm", 1, 20, "1.0.0")
    else {
        unreachable!()
    };
    put.upload = Some(upload_id(1));
    world.accepts(Command::PublishDisk { put, compressed_bytes });
    let note = |world: &World| world.query().version_note(image_id(1), &digest(20)).unwrap();
    assert_eq!(note(&world).changelog, "first");
    assert_eq!(note(&world).build_info, "{\"builder\":\"jenkins\"}");
    let deprecate = |message: Option<&str>| Command::DeprecateVersion {
        image: image_id(1),
        digest: digest(20),
        message: message.map(str::to_owned),
        by: "alice".into(),
    };
    world.accepts(deprecate(Some("take 1.0.1")));
    let deprecation = note(&world).deprecation.unwrap();
    assert_eq!((deprecation.message.as_str(), deprecation.by.as_str()), ("take 1.0.1", "alice"));
    world.accepts(Command::DescribeVersion {
        image: image_id(1),
        digest: digest(20),
        changelog: Some("second".into()),
        build_info: None,
        by: "alice".into(),
    });
    assert!(note(&world).deprecation.is_some(), "a changelog takes nothing else away");
    assert_eq!(note(&world).changelog, "second");
    world.accepts(deprecate(None));
    assert_eq!(note(&world).deprecation, None);
    let long = "x".repeat(65 * 1024);
    assert!(matches!(world.refuses(deprecate(Some(&long))), Refusal::Limit(_)));
    // The session takes its note along.
    assert!(world.query().upload_note(upload_id(1)).unwrap().is_some());
    world.now = 1000;
    world.accepts(Command::ExpireUploads { limit: 10 });
    assert_eq!(world.query().upload_note(upload_id(1)).unwrap(), None);
    check(&world);
}

#[test]
fn downloads_and_stars_count_once() {
    let mut world = with_disk();
    world.accepts(publish_disk("zedge/vm", 1, 20, "1.0.0"));
    world.accepts(Command::CreateUser(user("alice", UserRole::User)));
    let noted = |run, batch, count| {
        Command::NoteDownloads(DownloadBatch {
            node: NodeId::new(1),
            run,
            batch,
            // One of them is of a version that is gone.
            downloads: [(image_id(1), [(digest(20), count), (digest(99), 1)].into())].into(),
        })
    };
    let downloads = |world: &World| world.query().counters(image_id(1)).unwrap().downloads;
    for (run, batch, total) in [(5, 0, 4), (5, 0, 4), (5, 1, 8), (4, 9, 8), (6, 0, 12)] {
        world.accepts(noted(run, batch, 3));
        assert_eq!(downloads(&world), total, "run {run}, batch {batch}");
    }
    assert_eq!(world.query().version_downloads(image_id(1), &digest(20)).unwrap(), 9);
    let star = |user: &str, is| Command::NoteStars {
        stars: [((user.to_owned(), image_id(1)), is)].into(),
    };
    let stars = |world: &World| world.query().counters(image_id(1)).unwrap().stars;
    for (user, is, total) in
        [("alice", true, 1), ("alice", true, 1), ("admin", true, 2), ("nobody", true, 2)]
    {
        world.accepts(star(user, is));
        assert_eq!(stars(&world), total, "{user}");
    }
    assert_eq!(world.query().stars_of("alice", 5).unwrap(), [image_id(1)]);
    world.accepts(star("admin", false));
    world.accepts(Command::RemoveUser { name: "alice".into() });
    assert_eq!(stars(&world), 0);
    assert_eq!(downloads(&world), 12);
    world.accepts(star("admin", true));
    world.accepts(Command::DeleteImage { id: image_id(1) });
    check(&world);
}

#[test]
fn one_node_at_a_time_gets_a_file_from_elsewhere() {
    let mut world = with_disk();
    let node = NodeId::new;
    let import =
        Import { url: "https://h/f".into(), validator: None, node: node(1), lease_until: at(20) };
    let note = UploadNote { import: Some(import), ..UploadNote::default() };
    world.accepts(Command::BeginDescribedUpload { upload: disk_upload(1, 1, "1"), note });
    let claim = |by, until| Command::ClaimImport {
        upload: upload_id(1),
        node: node(by),
        lease_until: at(until),
    };
    assert_eq!(world.refuses(claim(2, 40)), Refusal::Leased);
    world.accepts(claim(1, 30));
    world.now = 30;
    world.accepts(claim(2, 60));
    assert_eq!(world.refuses(claim(1, 70)), Refusal::Leased);
    let fail = Command::FailIngest { upload: upload_id(1), reason: "gone".into() };
    world.accepts(fail);
    assert!(matches!(world.refuses(claim(2, 70)), Refusal::UploadState(_)));
    world.accepts(Command::BeginUpload(disk_upload(2, 1, "2")));
    let nothing = Command::ClaimImport { upload: upload_id(2), node: node(1), lease_until: at(90) };
    assert_eq!(world.refuses(nothing), Refusal::NotFound(Subject::Upload));
}

#[test]
fn a_disk_is_found_by_the_file_it_is_pulled_as_until_its_last_version_goes() {
    let mut world = with_disk();
    let file = digest(99);
    for (manifest, number) in [(20, "1.0.0"), (21, "1.0.1")] {
        let Command::PublishDisk { mut put, compressed_bytes } =
            publish_disk("zedge/vm", 1, manifest, number)
        else {
            unreachable!("a disk is published so");
        };
        put.annotations.insert(FILE_DIGEST.into(), file.to_string());
        put.annotations.insert(FILE_BYTES.into(), "512".into());
        world.accepts(Command::PublishDisk { put, compressed_bytes });
    }
    let found = world.query().disk_of_file(image_id(1), &file).unwrap().unwrap();
    assert_eq!(found.file(), Some((file.clone(), 512)));
    assert_eq!(world.query().disk_of_file(image_id(1), &digest(98)).unwrap(), None);
    for (manifest, left) in [(20, true), (21, false)] {
        world.accepts(Command::DeleteManifest {
            repository: name("zedge/vm"),
            digest: digest(manifest),
        });
        let found = world.query().disk_of_file(image_id(1), &file).unwrap();
        assert_eq!(found.is_some(), left, "after {manifest}");
    }
}
