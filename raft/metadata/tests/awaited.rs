//! Manifests of other registries, which come before what they refer to.

mod world;

use shoal_metadata::*;
use world::counts::check;
use world::*;

/// A project that manifests may be cached in.
fn caching() -> World {
    let mut world = World::founded();
    world.accepts(Command::CreateProject(project("hub", Owner::User("admin".into()))));
    world
}

fn cached(put: PutManifest) -> Command {
    Command::CacheManifest(PutManifest { owner: "hub".into(), ..put })
}

#[test]
fn a_cached_manifest_refers_to_what_comes_later_from_then_on() {
    let mut world = caching();
    let put = PutManifest { tags: vec![tag("v1")], ..container("hub/app", 1, 10, &[1, 2]) };
    world.accepts(cached(put));
    let version = |world: &World| world.query().version(image_id(1), &digest(10)).unwrap().unwrap();
    assert!(version(&world).references.is_empty());
    assert_eq!(world.query().tag(image_id(1), &tag("v1")).unwrap(), Some(digest(10)));
    assert_eq!(world.query().awaited(image_id(1), &digest(1)).unwrap(), Some(blob_reference(1)));
    assert_eq!(world.query().awaited(image_id(1), &digest(3)).unwrap(), None);

    world.accepts(commit_blob("hub/app", 1, 1));
    assert_eq!(version(&world).references, [blob_reference(1)].into());
    assert_eq!(world.query().awaited(image_id(1), &digest(1)).unwrap(), None);
    // Held by the version, it is not loose.
    assert_eq!(world.query().loose_since(image_id(1), &digest(1)).unwrap(), None);
    check(&world);

    world.accepts(commit_blob("hub/app", 1, 2));
    assert_eq!(version(&world).references.len(), 2);
    assert!(world.query().awaited_by(image_id(1), &digest(10)).unwrap().is_empty());
    check(&world);
}

#[test]
fn an_index_awaits_its_manifests_and_is_forgotten_with_what_it_awaits() {
    let mut world = caching();
    world.accepts(cached(index("hub/app", 1, 20, &[10, 11])));
    world.accepts(cached(container("hub/app", 1, 10, &[1])));
    let listed = world.query().version(image_id(1), &digest(20)).unwrap().unwrap().references;
    assert_eq!(listed, [Reference::Manifest { digest: digest(10), size: 4 }].into());
    assert!(world.query().is_listed(image_id(1), &digest(10)).unwrap());
    check(&world);
    let repository = name("hub/app");
    world.accepts(Command::DeleteManifest { repository, digest: digest(20) });
    assert_eq!(world.query().awaited(image_id(1), &digest(11)).unwrap(), None);
    assert!(world.query().awaited(image_id(1), &digest(1)).unwrap().is_some());
    check(&world);
    world.accepts(Command::DeleteImage { id: image_id(1) });
    assert_eq!(world.query().awaited(image_id(1), &digest(1)).unwrap(), None);
    check(&world);
}

#[test]
fn what_is_cached_again_changes_nothing_but_its_tags() {
    let mut world = caching();
    world.accepts(cached(container("hub/app", 1, 10, &[1])));
    let put = PutManifest { tags: vec![tag("v2")], ..container("hub/app", 1, 10, &[1]) };
    let answer = world.accepts(cached(put));
    assert!(matches!(answer, Response::Version { created: false, .. }), "{answer:?}");
    assert_eq!(world.query().versions(image_id(1)).unwrap().len(), 1);
    assert_eq!(world.query().tag(image_id(1), &tag("v2")).unwrap(), Some(digest(10)));
    check(&world);
}

#[test]
fn a_manifest_is_cached_only_where_there_is_a_project_and_within_its_quota() {
    let mut world = caching();
    let refusal = world.refuses(cached(container("other/app", 1, 10, &[1])));
    assert_eq!(refusal, Refusal::NotFound(Subject::Project));
    let limits = QuotaLimits { max_image_bytes: Some(13), ..QuotaLimits::default() };
    world.accepts(set_quota("project:hub", limits));
    // What is to come counts for the quota of one image.
    let refusal = world.refuses(cached(container("hub/app", 1, 10, &[1])));
    assert!(matches!(refusal, Refusal::Quota(_)), "{refusal:?}");
    world.accepts(cached(container("hub/app", 1, 10, &[])));
    // A blob that is there with another length than is said.
    world.accepts(Command::RemoveQuota { of: "project:hub".parse().unwrap() });
    world.accepts(commit_blob("hub/app", 1, 1));
    let mut lying = container("hub/app", 1, 11, &[]);
    lying.references.insert(Reference::Blob { digest: digest(1), size: 11 });
    assert_eq!(world.refuses(cached(lying)), Refusal::MissingReference(digest(1)));
    check(&world);
}
