//! Images, their blobs, manifests and tags. Of each command: what it does where it is accepted, and
//! why it is refused.
//!
//! Non-goals: what is received before it is published (see `storage`); the catalog beside images
//! (see `catalog`).

mod world;

use std::collections::BTreeSet;

use shoal_content::ObjectKey;
use shoal_metadata::*;
use world::*;

const CONTAINER: ImageKind = ImageKind::Container;
const DISK: ImageKind = ImageKind::Disk;

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
        Table::ProjectAudiences,
        Table::OwnerProjects,
    ];
    assert_eq!(left, expected.into());
    assert_eq!(world.query().image_count().unwrap(), 0);
    let gone = world.refuses(Command::DeleteImage { id: image_id(1) });
    assert_eq!(gone, Refusal::NotFound(Subject::Image));
}

#[test]
fn a_tag_says_who_made_it_and_who_set_it_last() {
    let mut world = World::founded();
    let by = |who: &str, command| Command::Audited {
        source: AuditSource { who: who.into(), ..AuditSource::default() },
        command: Box::new(command),
    };
    let authors = |world: &World| {
        let TagAuthors { created_by, updated_by } =
            world.query().tag_authors(image_id(1), &tag("stable")).unwrap();
        [created_by, updated_by]
    };
    let put = |manifest| Command::PutTag {
        repository: name("vm/x"),
        tag: tag("stable"),
        digest: digest(manifest),
    };
    world.accepts(create_image(1, "vm/x", DISK));
    world.accepts(Command::PutManifest(disk("vm/x", 1, 2, &[1])));
    // A node of before would not know the row.
    world.accepts(by("alice", put(2)));
    assert_eq!(authors(&world), ["", ""]);
    world.accepts(Command::RaiseLevel { to: COMMAND_VERSION });
    world.accepts(by("bob", put(2)));
    assert_eq!(authors(&world), ["", "bob"]);

    let tagged = PutManifest { tags: vec![tag("stable")], ..disk("vm/x", 1, 1, &[1]) };
    let delete = Command::DeleteTag { repository: name("vm/x"), tag: tag("stable") };
    world.accepts(by("bob", delete));
    assert_eq!(authors(&world), ["", ""]);
    world.accepts(by("alice", Command::PutManifest(tagged)));
    assert_eq!(authors(&world), ["alice", "alice"]);
    world.accepts(by("bob", put(2)));
    assert_eq!(authors(&world), ["alice", "bob"]);
    // Said again, it is as new.
    world.accepts(by("carol", put(2)));
    assert_eq!(authors(&world), ["alice", "carol"]);
    world.accepts(Command::DeleteManifest { repository: name("vm/x"), digest: digest(2) });
    assert_eq!(authors(&world), ["", ""]);
}
