//! Bundles between versions: who makes one, what it holds in storage, and when it goes.

mod world;

use shoal_content::{NodeId, ObjectKey};
use shoal_metadata::{
    Command, DELTAS_PER_IMAGE_MAX, DeltaBundle, DeltaKey, DeltaState, Refusal, Subject,
};
use world::counts::check;
use world::*;

fn claim(of: DeltaKey, node: u64, until: u64) -> Command {
    Command::ClaimDelta { of, node: NodeId::new(node), lease_until: at(until) }
}

fn end(of: DeltaKey, node: u64, bundle: Option<DeltaBundle>) -> Command {
    Command::EndDelta { of, node: NodeId::new(node), bundle }
}

/// Image 10 with versions of recipes 1 to 3.
fn world() -> World {
    let mut world = World::founded();
    for manifest in 1..=3 {
        world.accepts(Command::PutManifest(disk("vm", 10, manifest, &[manifest])));
    }
    world
}

fn count(world: &World, number: u8) -> u64 {
    world.query().object(&pack(number)).unwrap().map_or(0, |used| used.count)
}

#[test]
fn one_node_at_a_time_makes_a_bundle() {
    let mut world = world();
    let of = delta_key(10, 1, 2);
    world.accepts(claim(of, 1, 1_000));
    assert_eq!(world.refuses(claim(of, 2, 1_000)), Refusal::Leased);
    world.accepts(claim(of, 1, 2_000));
    assert_eq!(world.refuses(end(of, 2, None)), Refusal::Leased);
    world.accepts(end(of, 1, Some(delta_bundle(7))));
    assert_eq!(count(&world, 7), 1);
    assert_eq!(world.refuses(claim(of, 2, 3_000)), Refusal::Exists(Subject::Delta));
    assert_eq!(world.refuses(end(of, 1, None)), Refusal::Exists(Subject::Delta));
}

#[test]
fn a_lease_that_ran_out_is_taken_over() {
    let mut world = world();
    let of = delta_key(10, 1, 2);
    world.accepts(claim(of, 1, 0));
    world.accepts(claim(of, 2, 1_000));
    assert_eq!(world.refuses(end(of, 1, Some(delta_bundle(7)))), Refusal::Leased);
    assert_eq!(count(&world, 7), 0);
    world.accepts(end(of, 2, None));
    assert_eq!(world.query().delta(&of).unwrap().unwrap().state, DeltaState::Useless);
}

#[test]
fn a_bundle_leads_between_two_versions_of_its_image() {
    let mut world = world();
    world.accepts(Command::PutManifest(disk("other", 11, 4, &[4])));
    for of in [delta_key(10, 1, 4), delta_key(10, 9, 1), delta_key(10, 1, 1), delta_key(11, 1, 2)] {
        assert_eq!(world.refuses(claim(of, 1, 9)), Refusal::NotFound(Subject::Version));
    }
    assert_eq!(world.refuses(claim(delta_key(99, 1, 2), 1, 9)), Refusal::NotFound(Subject::Image));
}

#[test]
fn it_goes_with_either_of_its_versions() {
    for gone in [1, 2] {
        let mut world = world();
        for (of, number) in
            [(delta_key(10, 1, 2), 7), (delta_key(10, 3, 2), 8), (delta_key(10, 1, 3), 9)]
        {
            world.accepts(claim(of, 1, 1_000));
            world.accepts(end(of, 1, Some(delta_bundle(number))));
        }
        world.accepts(Command::DeleteManifest { repository: name("vm"), digest: digest(gone) });
        let left: Vec<_> =
            world.query().deltas(image_id(10)).unwrap().iter().map(|row| row.key).collect();
        let expected = if gone == 1 { delta_key(10, 3, 2) } else { delta_key(10, 1, 3) };
        assert_eq!(left, [expected]);
        assert_eq!(count(&world, 7), 0);
        check(&world);
        world.accepts(Command::DeleteImage { id: image_id(10) });
        assert_eq!(world.query().deltas_after(None, 10).unwrap(), []);
        assert_eq!((count(&world, 8), count(&world, 9)), (0, 0));
    }
}

#[test]
fn it_stays_while_another_version_has_the_same_content() {
    let mut world = world();
    let of = delta_key(10, 1, 2);
    world.accepts(claim(of, 1, 1_000));
    world.accepts(end(of, 1, Some(delta_bundle(7))));
    let mut same = disk("vm", 10, 5, &[1]);
    same.disk.as_mut().unwrap().recipe = recipe(1);
    same.disk.as_mut().unwrap().objects = [pack(1), ObjectKey::Recipe(recipe(1))].into();
    world.accepts(Command::PutManifest(same));
    world.accepts(Command::DeleteManifest { repository: name("vm"), digest: digest(1) });
    assert!(world.query().delta(&of).unwrap().is_some());
    world.accepts(Command::DeleteManifest { repository: name("vm"), digest: digest(5) });
    assert_eq!(world.query().delta(&of).unwrap(), None);
}

#[test]
fn what_nobody_uses_is_dropped_and_what_is_used_stays() {
    let mut world = world();
    let (used, unused) = (delta_key(10, 1, 2), delta_key(10, 2, 3));
    for (of, number) in [(used, 7), (unused, 8)] {
        world.accepts(claim(of, 1, 1_000));
        world.accepts(end(of, 1, Some(delta_bundle(number))));
    }
    world.accepts(Command::NoteDeltaUses { uses: [(used, at(10_000))].into() });
    let deltas = [used, unused].into();
    world.accepts(Command::DropDeltas { deltas, unused_before: at(9_000) });
    assert!(world.query().delta(&used).unwrap().is_some());
    assert_eq!(world.query().delta(&unused).unwrap(), None);
    assert_eq!((count(&world, 7), count(&world, 8)), (1, 0));
}

#[test]
fn an_image_keeps_a_bounded_number_the_last_used_ones() {
    let mut world = World::founded();
    for manifest in 1..=12 {
        world.accepts(Command::PutManifest(disk("vm", 10, manifest, &[manifest])));
    }
    let pairs = (1..=12).flat_map(|old| (1..=12).map(move |new| (old, new)));
    let pairs: Vec<_> = pairs.filter(|(old, new)| old != new).collect();
    for (old, new) in pairs.iter().take(DELTAS_PER_IMAGE_MAX + 1) {
        let of = delta_key(10, *old, *new);
        world.accepts(claim(of, 1, 1_000_000));
        world.accepts(end(of, 1, None));
    }
    assert_eq!(world.query().deltas(image_id(10)).unwrap().len(), DELTAS_PER_IMAGE_MAX);
    let (old, new) = pairs[0];
    assert_eq!(world.query().delta(&delta_key(10, old, new)).unwrap(), None);
}
