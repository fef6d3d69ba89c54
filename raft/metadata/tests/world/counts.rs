//! What holds after any sequence of commands: counts agree with a recount, indexes with their rows.

use std::collections::{BTreeMap, BTreeSet};

use shoal_content::{Digest, ObjectKey};
use shoal_metadata::*;

use super::*;

/// Every image, deleted ones too.
fn images(world: &World) -> Vec<Image> {
    let mut images = world.query().images(None, 100).unwrap();
    let deleted = world.query().deleted_images(None, 100).unwrap();
    images.extend(deleted.into_iter().map(|(image, _)| image));
    images
}

/// Every image with its versions, taken from the rows.
fn versions(world: &World) -> Vec<(Image, Version)> {
    let images = images(world);
    let of = |image: &Image| world.query().versions(image.id).unwrap();
    images.iter().flat_map(|image| of(image).into_iter().map(|v| (image.clone(), v))).collect()
}

pub fn check(world: &World) {
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
    let recipes: BTreeSet<_> = versions
        .iter()
        .filter_map(|(image, version)| Some((image.id, version.disk.as_ref()?.recipe)))
        .collect();
    for row in world.query().deltas_after(None, 1000).unwrap() {
        let DeltaKey { image, old, new } = row.key;
        let whole = recipes.contains(&(image, old)) && recipes.contains(&(image, new));
        assert!(whole, "a bundle has lost a version: {row:?}");
        if let DeltaState::Made(bundle) = &row.state {
            for object in &bundle.objects {
                *counts.entry(*object).or_default() += 1;
            }
        }
    }
    for list in check_scans(world, &versions) {
        *counts.entry(list).or_default() += 1;
    }
    for image in images(world) {
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
    check_holders(world);
    check_audiences(world);
    check_order(world);
    check_relocations(world, &versions);
    for (object, _) in world.query().deleting_objects(None, 1000).unwrap() {
        assert_eq!(world.query().object(&object).unwrap(), None, "{object} is used and deleted");
    }
    let listed = world.query().unreferenced_objects(at(u64::MAX), 1000).unwrap();
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), unreferenced);
    check_indexes(world, &versions);
    assert_eq!(drift(world.query()).unwrap(), [], "accounts differ from a recount");
}

/// A recipe has a placement exactly while versions refer to one, which they do to the same.
fn check_relocations(world: &World, versions: &[(Image, Version)]) {
    let mut expected: BTreeMap<RecipeId, Relocation> = BTreeMap::new();
    for disk in versions.iter().filter_map(|(_, version)| version.disk.as_ref()) {
        for object in &disk.objects {
            let ObjectKey::Recipe(placement) = *object else { continue };
            if placement != disk.recipe {
                let none = Relocation { placement, versions: 0 };
                let row = expected.entry(disk.recipe).or_insert(none);
                assert_eq!(row.placement, placement, "{disk:?}");
                row.versions += 1;
            }
        }
    }
    let rows = world.rows.rows().filter(|(table, ..)| *table == Table::Relocations);
    let rows = rows.map(|(_, key, _)| {
        let recipe = RecipeId::from_bytes(key.try_into().unwrap());
        (recipe, world.query().relocation(recipe).unwrap().unwrap())
    });
    assert_eq!(rows.collect::<BTreeMap<_, _>>(), expected);
}

/// Scans have their versions, and those that have not come to an end are known as such; gives the
/// lists that they refer to.
fn check_scans(world: &World, versions: &[(Image, Version)]) -> Vec<ObjectKey> {
    let scans = world.query().scans_after(None, 1000).unwrap();
    for scan in &scans {
        let there = |(image, version): &(Image, Version)| {
            (image.id, &version.digest) == (scan.of.image, &scan.of.digest)
        };
        assert!(versions.iter().any(there), "a scan has lost its version: {scan:?}");
    }
    let open = world.query().open_scans(1000).unwrap();
    assert_eq!(open.len(), scans.iter().filter(|scan| scan.state.is_open()).count());
    scans.into_iter().filter_map(|scan| scan.report?.list).collect()
}

/// Who holds a blob and how many uploads are open stands exactly as the links and sessions say; or
/// not at all, before it is kept.
fn check_holders(world: &World) {
    let kept = world.query().indexes_blobs().unwrap();
    let mut expected = BTreeSet::new();
    for image in images(world) {
        for blob in (0..3).map(digest) {
            if kept && world.query().blob_in(image.id, &blob).unwrap() {
                let project = image.name.project();
                let id = image.id.as_uuid().as_bytes();
                let digest = [&[1], blob.as_bytes()].concat();
                expected.insert([&digest, project.as_str().as_bytes(), &[0], &id[..]].concat());
            }
        }
    }
    let rows = world.rows.rows().filter(|(table, ..)| *table == Table::BlobHolders);
    assert_eq!(rows.map(|(_, key, _)| key.to_vec()).collect::<BTreeSet<_>>(), expected);
    let mut open: BTreeMap<String, u64> = BTreeMap::new();
    for upload in world.query().uploads().unwrap() {
        if kept && matches!(upload.purpose, UploadPurpose::Blob { .. }) {
            *open.entry(upload.owner).or_default() += 1;
        }
    }
    let rows = world.rows.rows().filter(|(table, ..)| *table == Table::OpenUploads);
    assert_eq!(rows.count(), open.len());
    for (owner, open) in open {
        assert_eq!(world.query().open_uploads(&owner).unwrap(), open, "{owner}");
    }
}

/// Each project is in its audience and in no other, with the images that are there; or none is, before
/// that is kept.
fn check_audiences(world: &World) {
    let query = world.query();
    let count = |table| world.rows.rows().filter(|(of, ..)| *of == table).count();
    let sums = world
        .rows
        .rows()
        .filter(|(table, key, _)| *table == Table::Counts && key.starts_with(b"images-for:"));
    let sums = sums.count();
    if !query.indexes_lists().unwrap() {
        assert_eq!((count(Table::ProjectAudiences), count(Table::OwnerProjects), sums), (0, 0, 0));
        return;
    }
    for table in [Table::ProjectAudiences, Table::OwnerProjects] {
        assert_eq!(count(table), count(Table::Projects), "{table:?}");
    }
    let live = query.images(None, usize::MAX).unwrap();
    let mut expected: BTreeMap<Audience, u64> = BTreeMap::new();
    for project in query.projects(None, usize::MAX).unwrap() {
        let audience = Audience::of(&project);
        let listed = query.projects_for(&audience, "", usize::MAX).unwrap();
        assert!(listed.contains(&project.name), "{project:?}");
        let owned = query.projects_of(&project.owner, "", usize::MAX).unwrap();
        assert!(owned.contains(&project.name), "{project:?}");
        let images = live.iter().filter(|image| image.name.project() == project.name).count();
        assert_eq!(query.images_in(&audience, &project.name).unwrap(), images as u64);
        *expected.entry(audience).or_default() += images as u64;
    }
    expected.retain(|_, images| *images > 0);
    assert_eq!(sums, expected.len());
    for (audience, images) in expected {
        assert_eq!(query.images_for(&audience).unwrap(), images, "{audience:?}");
    }
}

/// Each image has its tags in the order in which they were set, and says how many tags and versions there
/// are; whether that is kept or not, pages are the same.
fn check_order(world: &World) {
    let query = world.query();
    let kept = query.indexes_lists().unwrap();
    let count = |table| world.rows.rows().filter(|(of, ..)| *of == table).count();
    let mut tallied = 0;
    for image in images(world) {
        let mut tags = query.tags(image.id, None, usize::MAX).unwrap();
        let page = |skip| query.tags_by_name(image.id, None, skip, 2).unwrap();
        for (skip, expected) in tags.chunks(2).enumerate().map(|(at, part)| (2 * at, part)) {
            assert_eq!(page(skip), expected);
        }
        let pushed = |tag: &TagName| query.tag_use(image.id, tag).unwrap().unwrap().pushed_at;
        tags.sort_by_key(|(tag, _)| (std::cmp::Reverse(pushed(tag)), tag.clone()));
        let page = |skip, limit| query.tags_by_push(image.id, skip, limit, usize::MAX).unwrap();
        assert_eq!(page(0, usize::MAX), tags);
        assert_eq!(page(1, 1), tags.iter().skip(1).take(1).cloned().collect::<Vec<_>>());
        let versions = query.versions(image.id).unwrap();
        let newest: Vec<Digest> = versions.into_iter().rev().map(|one| one.digest).collect();
        assert_eq!(query.versions_by_sequence(image.id, 0, usize::MAX).unwrap(), newest);
        let tally = ImageTally { tags: tags.len() as u64, versions: newest.len() as u64 };
        assert_eq!(query.tally(image.id).unwrap(), kept.then_some(tally));
        tallied += usize::from(tally != ImageTally::default());
    }
    let expected = if kept { (count(Table::Tags), tallied) } else { (0, 0) };
    assert_eq!((count(Table::TagOrder), count(Table::ImageTallies)), expected);
}

/// What is awaited is not there, is awaited by a version that is, and stands in both tables.
fn check_awaited(world: &World, versions: &[(Image, Version)]) {
    let query = world.query();
    let mut awaited = 0;
    for (image, version) in versions {
        for reference in query.awaited_by(image.id, &version.digest).unwrap() {
            awaited += 1;
            assert!(!version.references.contains(&reference), "{reference:?}");
            assert!(query.awaited(image.id, reference.digest()).unwrap().is_some());
            let there = match &reference {
                Reference::Blob { digest, .. } => query.blob_in(image.id, digest).unwrap(),
                Reference::Manifest { digest, .. } => {
                    query.version(image.id, digest).unwrap().is_some()
                }
            };
            assert!(!there, "{reference:?}");
        }
    }
    for of in [Table::AwaitedContents, Table::AwaitingVersions] {
        assert_eq!(world.rows.rows().filter(|(table, ..)| *table == of).count(), awaited);
    }
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
    for image in images(world) {
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
    check_awaited(world, versions);
    let query = world.query();
    assert_eq!(query.image_count().unwrap(), query.images(None, 100).unwrap().len() as u64);
    for (image, version) in versions {
        assert_eq!(query.version_by_id(version.id).unwrap().as_ref(), Some(version));
        assert!(query.manifest(image.id, &version.digest).unwrap().is_some());
        for tag in query.tags_of(image.id, &version.digest).unwrap() {
            assert_eq!(query.tag(image.id, &tag).unwrap().as_ref(), Some(&version.digest));
        }
    }
    check_retention_rows(world, versions);
    check_catalog(world);
    for image in images(world) {
        let newest = query.versions(image.id).unwrap().pop();
        assert_eq!(image.latest, newest.map(|version| version.digest));
        for (tag, digest) in query.tags(image.id, None, 100).unwrap() {
            assert!(query.tags_of(image.id, &digest).unwrap().contains(&tag));
        }
    }
    let expiries = world.rows.rows().filter(|(table, ..)| *table == Table::UploadExpiries);
    assert_eq!(expiries.count(), query.uploads().unwrap().len());
}

/// What retention goes by: pushes of tags, versions without tags, indexes above manifests.
fn check_retention_rows(world: &World, versions: &[(Image, Version)]) {
    let query = world.query();
    let count = |table| world.rows.rows().filter(|(of, ..)| *of == table).count();
    assert_eq!(count(Table::TagPushes), count(Table::Tags));
    let untagged = |(image, version): &&(Image, Version)| {
        query.tags_of(image.id, &version.digest).unwrap().is_empty()
    };
    assert_eq!(count(Table::UntaggedVersions), versions.iter().filter(untagged).count());
    for (image, version) in versions.iter().filter(untagged) {
        let id = image.id.as_uuid().as_bytes();
        let key = [&id[..], &[1], version.digest.as_bytes()].concat();
        let row = world.rows.get(Table::UntaggedVersions, &key).unwrap();
        assert!(row.is_some(), "{} is not known to be untagged", version.digest);
    }
    let lists = |version: &Version| {
        let manifest = |one: &&Reference| matches!(one, Reference::Manifest { .. });
        version.references.iter().filter(manifest).count()
    };
    let listed: usize = versions.iter().map(|(_, version)| lists(version)).sum();
    assert_eq!(count(Table::ManifestParents), listed);
}

/// Instances have their versions, counters agree with stars, and nothing is kept of what is gone.
fn check_catalog(world: &World) {
    let query = world.query();
    let count = |table| world.rows.rows().filter(|(of, ..)| *of == table).count();
    let instances = query.instances("", 100).unwrap();
    assert_eq!(query.instance_count().unwrap(), instances.len() as u64);
    assert_eq!(count(Table::VersionInstances), instances.len());
    for instance in instances {
        let version = query.version(instance.image, &instance.digest).unwrap();
        assert_eq!(version.map(|version| version.id), Some(instance.version), "{instance:?}");
        let users = query.instances_of(instance.image, &instance.digest, 100).unwrap();
        assert!(users.contains(&instance.name), "{instance:?}");
    }
    let images = images(world);
    let rows = world.rows.rows().filter(|(of, ..)| *of == Table::Images).count();
    assert_eq!(rows, images.len(), "an image is neither there nor deleted");
    let stars: u64 = images.iter().map(|one| query.counters(one.id).unwrap().stars).sum();
    assert_eq!((stars as usize, count(Table::UserStars)), (count(Table::Stars), stars as usize));
    let known = |key: &[u8]| images.iter().any(|one| key.starts_with(one.id.as_uuid().as_bytes()));
    for table in [
        Table::ImageNotes,
        Table::ImageCounters,
        Table::Stars,
        Table::TagBirths,
        Table::TagAuthors,
        Table::ThinnedImages,
    ] {
        assert!(world.rows.rows().filter(|(of, ..)| *of == table).all(|(_, key, _)| known(key)));
    }
    assert!(count(Table::TagAuthors) <= count(Table::Tags));
    assert!(count(Table::Grants) <= count(Table::Rights));
    for table in [Table::VersionNotes, Table::VersionDownloads] {
        for (_, key, _) in world.rows.rows().filter(|(of, ..)| *of == table) {
            assert!(world.rows.get(Table::Versions, key).unwrap().is_some(), "{table:?}");
        }
    }
}
