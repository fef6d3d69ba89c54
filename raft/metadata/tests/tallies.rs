//! Pages of an image's tags and versions, and how many there are: what they cost, and how a cluster begins
//! that did not keep what they go by.

mod world;

use shoal_metadata::*;
use world::counting::Counting;
use world::*;

const PAGE: usize = 100;

/// A container with so many tags, each set in a moment of its own, and three versions.
fn tagged(tags: usize) -> World {
    let mut world = World::founded();
    for manifest in 1..=3 {
        world.accepts(Command::PutManifest(container("p/a", 1, manifest, &[])));
    }
    for at in 0..tags {
        let (repository, tag) = (name("p/a"), tag(&format!("v{at:06}")));
        world.accepts(Command::PutTag { repository, tag, digest: digest(1) });
    }
    world
}

#[test]
fn a_page_of_tags_costs_what_is_on_it_in_either_order() {
    let mut costs = Vec::new();
    for tags in [1_000, 20_000] {
        let world = tagged(tags);
        let counting = Counting::of(&world.rows);
        let query = Query::new(&counting);
        let id = image_id(1);
        let tally = ImageTally { tags: tags as u64, versions: 3 };
        assert_eq!(query.tally(id).unwrap(), Some(tally));
        let newest = query.tags_by_push(id, 0, PAGE, tags).unwrap();
        assert_eq!(newest.len(), PAGE);
        assert_eq!(newest[0].0, tag(&format!("v{:06}", tags - 1)));
        let after = tag("v000499");
        let behind = query.tags_by_name(id, Some(&after), 0, PAGE).unwrap();
        assert_eq!((behind.len(), &behind[0].0), (PAGE, &tag("v000500")));
        assert_eq!(query.versions_by_sequence(id, 1, 1).unwrap(), [digest(2)]);
        costs.push(counting.read.get());
    }
    assert_eq!(costs[0], costs[1]);
    assert!(costs[1] <= 3 * PAGE + 30, "{costs:?}");
}

#[test]
fn a_page_by_its_number_costs_a_key_for_each_tag_before_it() {
    let world = tagged(2_000);
    let counting = Counting::of(&world.rows);
    let found = Query::new(&counting).tags_by_push(image_id(1), 1_500, PAGE, 2_000).unwrap();
    assert_eq!(found[0].0, tag("v000499"));
    let read = counting.read.get();
    assert!(read <= 1_500 + 2 * PAGE + 10, "{read} rows were read");
}

fn is_in(table: Table) -> impl Fn(&(Table, &[u8], &[u8])) -> bool {
    move |(of, ..)| *of == table
}

/// One that kept neither the order of tags nor, earlier still, when they were pushed.
#[test]
fn a_cluster_that_kept_no_order_begins_with_what_is_there() {
    let mut world = tagged(5);
    let mut writes = Writes::new();
    for table in [
        Table::TagPushes,
        Table::TagOrder,
        Table::ImageTallies,
        Table::ProjectAudiences,
        Table::OwnerProjects,
    ] {
        let rows = world.rows.rows().filter(is_in(table));
        writes.extend(rows.map(|(table, key, _)| ((table, key.to_vec()), None)));
    }
    let counts = world.rows.rows().filter(|(table, key, _)| {
        let of_lists = [&b"lists-kept-since"[..], b"images-for:"];
        *table == Table::Counts && of_lists.iter().any(|prefix| key.starts_with(prefix))
    });
    writes.extend(counts.map(|(table, key, _)| ((table, key.to_vec()), None)));
    world.rows.commit(writes);

    let (id, of) = (image_id(1), |at: u64| tag(&format!("v{at:06}")));
    let names = |world: &World| {
        let found = world.query().tags_by_push(id, 0, 9, 9).unwrap();
        found.into_iter().map(|(tag, _)| tag).collect::<Vec<_>>()
    };
    let by_name: Vec<_> = (0..5).map(of).collect();
    assert_eq!((names(&world), world.query().tally(id).unwrap()), (by_name.clone(), None));
    for _ in 0..2 {
        world.accepts(Command::IndexLists);
        assert_eq!(names(&world), by_name);
        let tally = ImageTally { tags: 5, versions: 3 };
        assert_eq!(world.query().tally(id).unwrap(), Some(tally));
    }
    let put = |at, manifest| Command::PutTag {
        repository: name("p/a"),
        tag: of(at),
        digest: digest(manifest),
    };
    world.accepts(put(3, 2));
    world.accepts(put(1, 1));
    assert_eq!(names(&world), [1, 3, 0, 2, 4].map(of));
    world.accepts(Command::DeleteTag { repository: name("p/a"), tag: of(3) });
    world.accepts(Command::DeleteManifest { repository: name("p/a"), digest: digest(1) });
    assert!(names(&world).is_empty());
    let tally = ImageTally { tags: 0, versions: 2 };
    assert_eq!(world.query().tally(id).unwrap(), Some(tally));
    world.accepts(Command::DeleteImage { id });
    for table in [Table::TagOrder, Table::ImageTallies] {
        assert_eq!(world.rows.rows().filter(is_in(table)).count(), 0);
    }
}
