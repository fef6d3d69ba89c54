//! What holds after any sequence of commands: counts agree with a recount, indexes with their
//! rows, and the same commands give the same rows.

mod world;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use shoal_content::{Digest, NodeId, ObjectKey};
use shoal_metadata::*;
use world::*;

const CONTAINERS: [&str; 2] = ["a", "b"];
const DISKS: [&str; 2] = ["vm", "vm/x"];

/// Few ids, so that commands meet each other's rows.
fn command() -> impl Strategy<Value = Command> {
    let few = 0u8..3;
    prop_oneof![
        3 => (0usize..2, few.clone()).prop_map(|(at, blob)| {
            commit_blob(CONTAINERS[at], at as u64, blob)
        }),
        1 => (0usize..2, 0usize..2, few.clone()).prop_map(|(from, to, blob)| Command::MountBlob {
            from: Some(name(CONTAINERS[from])),
            to: name(CONTAINERS[to]),
            digest: digest(blob),
            owner: "admin".into(),
            image: image_id(to as u64),
        }),
        1 => (0usize..2, few.clone()).prop_map(|(at, blob)| Command::UnlinkBlob {
            repository: name(CONTAINERS[at]),
            digest: digest(blob),
        }),
        4 => (0usize..2, 10u8..14, prop::collection::vec(0u8..3, 0..3), any::<bool>()).prop_map(
            |(at, manifest, blobs, tagged)| {
                let put = container(CONTAINERS[at], at as u64, manifest, &blobs);
                let tags = if tagged { vec![tag("latest")] } else { vec![] };
                Command::PutManifest(PutManifest { tags, ..put })
            }
        ),
        4 => (0usize..2, 20u8..24, prop::collection::vec(0u8..4, 0..3)).prop_map(
            |(at, manifest, packs)| {
                Command::PutManifest(disk(DISKS[at], 10 + at as u64, manifest, &packs))
            }
        ),
        2 => (0usize..2, 10u8..14).prop_map(|(at, manifest)| Command::DeleteManifest {
            repository: name(CONTAINERS[at]),
            digest: digest(manifest),
        }),
        2 => (0usize..2, 20u8..24).prop_map(|(at, manifest)| Command::DeleteManifest {
            repository: name(DISKS[at]),
            digest: digest(manifest),
        }),
        1 => (0usize..2, 10u8..14).prop_map(|(at, manifest)| Command::PutTag {
            repository: name(CONTAINERS[at]),
            tag: tag("stable"),
            digest: digest(manifest),
        }),
        1 => (0usize..2).prop_map(|at| Command::DeleteTag {
            repository: name(CONTAINERS[at]),
            tag: tag("latest"),
        }),
        1 => prop_oneof![Just(0u64), Just(1), Just(10), Just(11)]
            .prop_map(|number| Command::DeleteImage { id: image_id(number) }),
        1 => (0u8..4, 0u64..60).prop_map(|(number, before)| Command::SweepObjects {
            candidates: [pack(number), ObjectKey::Recipe(recipe(number))].into(),
            unreferenced_before: at(before),
        }),
        1 => (0u64..2, 0u8..3, 0u64..60).prop_map(|(image, blob, before)| {
            Command::UnlinkLooseBlobs {
                links: [(image_id(image), digest(blob))].into(),
                loose_before: at(before),
            }
        }),
        1 => (0u8..4).prop_map(|number| Command::AdoptObjects {
            objects: [pack(number), ObjectKey::Recipe(recipe(number))].into(),
        }),
        1 => (0u8..4).prop_map(|number| Command::RetryDeletion {
            objects: [pack(number), ObjectKey::Recipe(recipe(number))].into(),
        }),
        1 => (0u8..4, 0u64..60).prop_map(|(number, before)| Command::ForgetObjects {
            objects: [pack(number), ObjectKey::Recipe(recipe(number))].into(),
            deleting_before: at(before),
        }),
        1 => (0u64..3).prop_map(|number| Command::BeginUpload(disk_upload(number, 10, "9.9"))),
        1 => (0u64..3, 0u32..4).prop_map(|(number, index)| {
            part(number, index, if index == 2 { 5 } else { 10 })
        }),
        1 => (0u64..3).prop_map(|number| Command::ClaimIngest {
            upload: upload_id(number),
            node: NodeId::new(1),
            lease_until: at(40),
        }),
        1 => Just(Command::ExpireUploads { limit: 1 }),
        1 => (0u64..3).prop_map(|number| Command::AbortUpload { upload: upload_id(number) }),
    ]
}

/// Every image with its versions, taken from the rows.
fn versions(world: &World) -> Vec<(Image, Version)> {
    let images = world.query().images(None, 100).unwrap();
    let of = |image: &Image| world.query().versions(image.id).unwrap();
    images.iter().flat_map(|image| of(image).into_iter().map(|v| (image.clone(), v))).collect()
}

fn check(world: &World) {
    let versions = versions(world);
    let mut holds: BTreeMap<Digest, u64> = BTreeMap::new();
    let mut counts: BTreeMap<ObjectKey, u64> = BTreeMap::new();
    for (_, version) in &versions {
        for reference in &version.references {
            if let Reference::Blob { digest, .. } = reference {
                *holds.entry(digest.clone()).or_default() += 1;
            }
        }
        for object in version.disk.iter().flat_map(|disk| &disk.objects) {
            *counts.entry(*object).or_default() += 1;
        }
    }
    for image in world.query().images(None, 100).unwrap() {
        for blob in 0..3 {
            if world.query().blob_in(image.id, &digest(blob)).unwrap() {
                *holds.entry(digest(blob)).or_default() += 1;
            }
        }
    }
    for blob in 0..3 {
        let row = world.query().blob(&digest(blob)).unwrap();
        assert_eq!(row.is_some(), holds.contains_key(&digest(blob)), "blob {blob}");
        if let Some(row) = row {
            *counts.entry(row.object).or_default() += 1;
            *counts.entry(ObjectKey::Recipe(row.recipe)).or_default() += 1;
        }
    }
    let mut unreferenced = BTreeSet::new();
    for (table, key, _) in world.rows.rows() {
        if table == Table::Objects {
            let object: ObjectKey = std::str::from_utf8(key).unwrap().parse().unwrap();
            let used = world.query().object(&object).unwrap().unwrap();
            assert_eq!(used.count, counts.remove(&object).unwrap_or(0), "{object}");
            assert_eq!(used.count == 0, used.unreferenced_since.is_some());
            if used.count == 0 {
                unreferenced.insert(object);
            }
        }
    }
    assert_eq!(counts, BTreeMap::new(), "objects in use without a row");
    check_loose(world, &versions);
    for (object, _) in world.query().deleting_objects(None, 1000).unwrap() {
        assert_eq!(world.query().object(&object).unwrap(), None, "{object} is used and deleted");
    }
    let listed = world.query().unreferenced_objects(at(u64::MAX), 1000).unwrap();
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), unreferenced);
    check_indexes(world, &versions);
}

/// A link is loose exactly while no version of its image refers to the blob.
fn check_loose(world: &World, versions: &[(Image, Version)]) {
    let loose: BTreeSet<(shoal_content::ImageId, Digest)> = world
        .query()
        .loose_blobs(None, 1000)
        .unwrap()
        .into_iter()
        .map(|(image, digest, _)| (image, digest))
        .collect();
    for image in world.query().images(None, 100).unwrap() {
        for blob in (0..3).map(digest) {
            let linked = world.query().blob_in(image.id, &blob).unwrap();
            let referred = versions.iter().any(|(of, version)| {
                of.id == image.id
                    && version.references.iter().any(|reference| {
                        matches!(reference, Reference::Blob { digest, .. } if *digest == blob)
                    })
            });
            let key = (image.id, blob);
            assert_eq!(loose.contains(&key), linked && !referred, "{key:?}");
        }
    }
}

fn check_indexes(world: &World, versions: &[(Image, Version)]) {
    let query = world.query();
    assert_eq!(query.image_count().unwrap(), query.images(None, 100).unwrap().len() as u64);
    for (image, version) in versions {
        assert_eq!(query.version_by_id(version.id).unwrap().as_ref(), Some(version));
        assert!(query.manifest(image.id, &version.digest).unwrap().is_some());
        for tag in query.tags_of(image.id, &version.digest).unwrap() {
            assert_eq!(query.tag(image.id, &tag).unwrap().as_ref(), Some(&version.digest));
        }
    }
    for image in query.images(None, 100).unwrap() {
        let newest = query.versions(image.id).unwrap().pop();
        assert_eq!(image.latest, newest.map(|version| version.digest));
        for (tag, digest) in query.tags(image.id, None, 100).unwrap() {
            assert!(query.tags_of(image.id, &digest).unwrap().contains(&tag));
        }
    }
    let expiries = world.rows.rows().filter(|(table, ..)| *table == Table::UploadExpiries);
    assert_eq!(expiries.count(), query.uploads().unwrap().len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn counts_and_indexes_agree_with_the_rows(
        commands in prop::collection::vec(command(), 1..60),
    ) {
        let (mut first, mut second) = (World::founded(), World::founded());
        for command in commands {
            // `World::propose` holds that a refused command wrote nothing.
            let answer = first.propose(command.clone());
            prop_assert_eq!(answer, second.propose(command));
            check(&first);
        }
        prop_assert_eq!(first.rows, second.rows);
    }
}
