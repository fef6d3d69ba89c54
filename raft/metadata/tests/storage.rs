//! Sessions that bring content into storage, and objects that leave it. Of each command: what it
//! does where it is accepted, and why it is refused.
//!
//! Invariant held here: while the bytes of an object are deleted, nothing can name it.

mod world;

use std::collections::BTreeSet;

use shoal_content::{NodeId, ObjectKey};
use shoal_metadata::*;
use world::*;

const DISK: ImageKind = ImageKind::Disk;

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
