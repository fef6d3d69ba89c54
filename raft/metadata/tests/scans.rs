//! Scans of versions: ordered once, carried out by one node at a time, and gone with the version.

mod world;

use shoal_content::NodeId;
use shoal_metadata::*;
use world::counts::check;
use world::*;

fn order(manifest: u8, id: u64) -> Command {
    Command::OrderScan { of: scan_key(10, manifest), id: scan_id(id), by: "admin".into() }
}

fn claim(id: u64, node: u64, until: u64, renews: bool) -> Command {
    Command::ClaimScan {
        of: scan_key(10, 1),
        id: scan_id(id),
        node: NodeId::new(node),
        lease_until: at(until),
        renews,
    }
}

fn end(id: u64, node: u64, outcome: ScanOutcome) -> Command {
    Command::EndScan { of: scan_key(10, 1), id: scan_id(id), node: NodeId::new(node), outcome }
}

fn completed(id: u64, list: Option<u8>) -> ScanOutcome {
    ScanOutcome::Completed(scan_report(id, list))
}

fn failed(reason: &str) -> ScanOutcome {
    ScanOutcome::Failed { reason: reason.into() }
}

/// Image 10 with versions 1 to 3.
fn world() -> World {
    let mut world = World::founded();
    for manifest in 1..=3 {
        world.accepts(Command::PutManifest(disk("vm", 10, manifest, &[manifest])));
    }
    world
}

fn scan(world: &World) -> Scan {
    world.query().scan(&scan_key(10, 1)).unwrap().unwrap()
}

fn count(world: &World, number: u8) -> u64 {
    world.query().object(&pack(number)).unwrap().map_or(0, |used| used.count)
}

#[test]
fn what_is_ordered_twice_is_one_order_until_it_has_come_to_an_end() {
    let mut world = world();
    assert_eq!(world.accepts(order(1, 1)), Response::Scan(scan_id(1)));
    assert_eq!(world.accepts(order(1, 2)), Response::Scan(scan_id(1)));
    world.accepts(claim(1, 1, 1_000, false));
    assert_eq!(world.accepts(order(1, 2)), Response::Scan(scan_id(1)));
    world.accepts(end(1, 1, completed(1, None)));
    assert_eq!(world.accepts(order(1, 2)), Response::Scan(scan_id(2)));
    // What was found before is there while it is looked for anew.
    let scan = scan(&world);
    assert_eq!((scan.state, scan.report), (ScanState::Pending, Some(scan_report(1, None))));
    check(&world);
}

#[test]
fn only_versions_that_are_there_are_scanned() {
    let mut world = world();
    assert_eq!(world.refuses(order(9, 1)), Refusal::NotFound(Subject::Version));
    world.accepts(order(1, 1));
    world.accepts(Command::TrashImage { id: image_id(10), by: "admin".into() });
    assert_eq!(world.refuses(order(2, 2)), Refusal::NotFound(Subject::Image));
    assert_eq!(world.refuses(claim(1, 1, 1_000, false)), Refusal::NotFound(Subject::Image));
    check(&world);
    // Meanwhile it is in nobody's way.
    assert_eq!(world.query().open_scans(9).unwrap(), []);
    world.accepts(Command::RestoreImage { id: image_id(10) });
    assert_eq!(world.refuses(claim(1, 1, 1_000, false)), Refusal::NotFound(Subject::Scan));
    assert!(matches!(scan(&world).state, ScanState::Failed { .. }));
    assert_eq!(world.accepts(order(1, 3)), Response::Scan(scan_id(3)));
    world.accepts(claim(3, 1, 1_000, false));
    check(&world);
}

#[test]
fn an_image_that_is_deleted_keeps_nobody_from_having_others_scanned() {
    let mut world = world();
    world.accepts(Command::PutManifest(disk("other", 20, 4, &[4])));
    world.accepts(order(1, 1));
    world.accepts(claim(1, 1, 1_000, false));
    world.accepts(order(2, 2));
    let other = Command::OrderScan { of: scan_key(20, 4), id: scan_id(4), by: "admin".into() };
    world.accepts(other);
    world.accepts(Command::TrashImage { id: image_id(10), by: "admin".into() });
    let open: Vec<_> = world.query().open_scans(9).unwrap().iter().map(|scan| scan.id).collect();
    assert_eq!(open, [scan_id(4)]);
    // The node that is at it has nothing to end.
    assert_eq!(world.refuses(end(1, 1, completed(1, None))), Refusal::NotFound(Subject::Scan));
    check(&world);
}

#[test]
fn one_node_at_a_time_scans_and_another_takes_over_whose_lease_ran_out() {
    let mut world = world();
    world.accepts(order(1, 1));
    assert_eq!(world.refuses(claim(1, 1, 1_000, true)), Refusal::Leased);
    world.accepts(claim(1, 1, 1_000, false));
    world.accepts(claim(1, 1, 2_000, true));
    assert_eq!(world.refuses(claim(1, 2, 1_000, false)), Refusal::Leased);
    assert_eq!(world.refuses(end(1, 2, completed(1, None))), Refusal::Leased);
    assert_eq!(world.refuses(end(2, 1, completed(1, None))), Refusal::NotFound(Subject::Scan));

    world.now = 3_000;
    world.accepts(claim(1, 2, 4_000, false));
    let state = ScanState::Scanning { node: NodeId::new(2), lease_until: at(4_000), attempt: 2 };
    assert_eq!(scan(&world).state, state);
    // Who lost it neither renews nor ends it.
    assert_eq!(world.refuses(claim(1, 1, 9_000, true)), Refusal::Leased);
    assert_eq!(world.refuses(end(1, 1, completed(1, None))), Refusal::Leased);
    world.accepts(end(1, 2, completed(1, None)));
    assert_eq!(world.query().open_scans(9).unwrap(), []);
}

#[test]
fn the_first_that_was_ordered_comes_first() {
    let mut world = world();
    for (manifest, id) in [(3, 1), (1, 2), (2, 3)] {
        world.accepts(order(manifest, id));
    }
    let ids: Vec<_> = world.query().open_scans(2).unwrap().iter().map(|scan| scan.id).collect();
    assert_eq!(ids, [scan_id(1), scan_id(2)]);
}

#[test]
fn a_list_is_held_as_long_as_its_report_is_the_last() {
    let mut world = world();
    // The second and third have found the same.
    for (id, list) in [(1, Some(7)), (2, Some(8)), (3, Some(8))] {
        world.accepts(order(1, id));
        world.accepts(claim(id, 1, 1_000_000, false));
        world.accepts(end(id, 1, completed(id, list)));
        check(&world);
    }
    assert_eq!((count(&world, 7), count(&world, 8)), (0, 1));
    world.accepts(order(1, 4));
    world.accepts(claim(4, 1, 1_000_000, false));
    world.accepts(end(4, 1, failed("timed_out")));
    assert_eq!((count(&world, 8), scan(&world).report), (1, Some(scan_report(3, Some(8)))));
    assert!(
        matches!(scan(&world).state, ScanState::Failed { reason, .. } if reason == "timed_out")
    );
    world.accepts(order(1, 5));
    world.accepts(claim(5, 1, 1_000_000, false));
    world.accepts(end(5, 1, completed(5, None)));
    assert_eq!(count(&world, 8), 0);
    check(&world);
}

#[test]
fn a_list_that_is_being_deleted_is_not_referred_to() {
    let mut world = world();
    world.accepts(Command::AdoptObjects { objects: [pack(7)].into() });
    world.now = 1_000;
    let sweep =
        Command::SweepObjects { candidates: [pack(7)].into(), unreferenced_before: at(900) };
    world.accepts(sweep);
    world.accepts(order(1, 1));
    world.accepts(claim(1, 1, 1_000_000, false));
    let refused = world.refuses(end(1, 1, completed(1, Some(7))));
    assert_eq!(refused, Refusal::BeingDeleted(pack(7)));
    assert!(scan(&world).state.is_open());
}

#[test]
fn a_scan_goes_with_its_version_and_with_the_image() {
    for open in [false, true] {
        let mut world = world();
        world.accepts(order(1, 1));
        world.accepts(claim(1, 1, 1_000_000, false));
        world.accepts(end(1, 1, completed(1, Some(7))));
        world.accepts(order(2, 2));
        if open {
            world.accepts(order(1, 3));
        }
        world.accepts(Command::DeleteManifest { repository: name("vm"), digest: digest(1) });
        assert_eq!(world.query().scans_of(&digest(1), 9).unwrap(), []);
        assert_eq!((count(&world, 7), world.query().open_scans(9).unwrap().len()), (0, 1));
        check(&world);
        let purge = Command::PurgeImage { id: image_id(10), by: "o".into(), rows_max: 10_000 };
        assert_eq!(world.accepts(purge), Response::Purged { gone: true });
        assert_eq!(world.query().scans_after(None, 9).unwrap(), []);
        check(&world);
    }
}

#[test]
fn texts_and_orders_are_bounded() {
    let mut world = world();
    world.accepts(order(1, 1));
    world.accepts(claim(1, 1, 1_000_000, false));
    let long = failed(&"x".repeat(SCAN_REASON_BYTES_MAX + 1));
    assert!(matches!(world.refuses(end(1, 1, long)), Refusal::Limit(_)));
    let report = ScanReport { scanner: "x".repeat(SCANNER_BYTES_MAX + 1), ..scan_report(1, None) };
    let long = ScanOutcome::Completed(report);
    assert!(matches!(world.refuses(end(1, 1, long)), Refusal::Limit(_)));
    world.accepts(end(1, 1, failed(&"x".repeat(SCAN_REASON_BYTES_MAX))));
}

#[test]
fn what_somebody_orders_is_in_the_audit_trail_and_what_comes_by_itself_is_not() {
    let mut world = world();
    for (id, by) in [(1, "admin"), (2, "")] {
        let of = scan_key(10, id as u8);
        let command = Command::OrderScan { of, id: scan_id(id), by: by.into() };
        let expected = (!by.is_empty()).then(|| ("image.scan", format!("vm@{}", digest(1))));
        assert_eq!(audited(world.query(), &command).unwrap(), expected);
        world.accepts(command);
    }
}
