//! What is done is recorded in the command that does it, and what was tampered with shows.

mod world;

use proptest::prelude::*;
use shoal_content::NodeId;
use shoal_metadata::*;
use world::*;

fn by_alice(command: Command) -> Command {
    Command::Audited { source: audit_source(), command: Box::new(command) }
}

fn all(world: &World) -> Vec<AuditEntry> {
    let page = world.query().audit(&AuditFilter::default(), 10_000, 10_000).unwrap();
    assert_eq!(page.before, None);
    page.entries
}

fn told(world: &World) -> Vec<String> {
    let mut entries = all(world);
    entries.reverse();
    entries.iter().map(|entry| format!("{} {}", entry.note.action, entry.note.target)).collect()
}

fn batch(run: u64, number: u64, phase: AuditPhase, targets: &[&str]) -> Command {
    let notes = targets.iter().map(|target| audit_note("image.pull", target)).collect();
    Command::NoteAudit(AuditBatch {
        node: NodeId::new(1),
        run,
        batch: number,
        phase,
        notes,
        lost: 0,
    })
}

#[test]
fn the_first_and_the_last_of_data_keys_are_recorded() {
    let mut world = World::founded();
    world.accepts(Command::RegisterNode(node(1)));
    let masters = ["m".to_owned()].into();
    world.accepts(Command::NoteMasterKeys { node: NodeId::new(1), masters });
    world.accepts(by_alice(make_data_key(KeyOwner::Cluster, 1, None, "m")));
    world.accepts(Command::CreateProject(project("p", Owner::User("admin".into()))));
    let owner = KeyOwner::Project("p".parse().unwrap());
    world.accepts(by_alice(make_data_key(owner.clone(), 2, None, "m")));
    world.accepts(by_alice(make_data_key(owner, 3, Some(2), "m")));
    world.accepts(Command::RemoveProject { name: "p".parse().unwrap() });
    let (two, three) = (data_key_id(2), data_key_id(3));
    let keys = [two, three].into();
    let retired_before = at(world.now + 1);
    world.accepts(by_alice(Command::DestroyDataKeys { keys, retired_before }));
    let destroyed = format!("data_key.destroy p {two}, p {three}");
    assert_eq!(told(&world), ["encryption.begin m", "data_key.rotate p", &destroyed]);
}

#[test]
fn what_a_deleted_token_was_stays_in_the_trail() {
    let mut world = World::founded();
    world.accepts(Command::RaiseLevel { to: 2 });
    let row = PersonalToken { expires_at: Some(at(9_000)), ..personal_token("admin", 1) };
    world.accepts(by_alice(Command::CreatePersonalToken(row)));
    world.accepts(Command::NoteTokenUses { uses: [([1; 32], at(50))].into() });
    let remove = Command::RemovePersonalToken { user: account("admin"), id: "1".into() };
    world.accepts(by_alice(remove));
    assert_eq!(world.query().personal_token(&[1; 32]).unwrap(), None);
    let of = "admin 1 scopes=repo:read created=1 expires=9000";
    assert_eq!(
        told(&world),
        [
            format!("token.create {of} used=never name=token 1"),
            format!("token.remove {of} used=50 name=token 1"),
        ]
    );
}

#[test]
fn an_entry_is_what_nodes_of_an_earlier_version_make_it_while_there_may_be_some() {
    let mut world = World::founded();
    assert_eq!(world.query().level().unwrap(), FIRST_LEVEL);
    world.accepts(by_alice(Command::CreatePersonalToken(personal_token("admin", 1))));
    let remove = Command::RemovePersonalToken { user: account("admin"), id: "1".into() };
    world.accepts(by_alice(remove));
    assert_eq!(told(&world), ["token.create admin 1", "token.remove admin 1"]);
}

/// A trail of so many entries.
fn trail(count: usize) -> World {
    let mut world = World::founded();
    for number in 0..count {
        world.accepts(batch(1, number as u64, AuditPhase::Goes, &[&format!("a/{number}")]));
    }
    world
}

#[test]
fn a_change_is_recorded_with_who_and_what_and_a_refused_one_changes_nothing() {
    let mut world = World::founded();
    world.accepts(by_alice(create_image(1, "shop/app", ImageKind::Container)));
    let refused = world.refuses(by_alice(create_image(2, "shop/app", ImageKind::Container)));
    assert_eq!(refused, Refusal::Exists(Subject::Image));
    // What is named by an id has its name, also where it is gone afterwards.
    world.accepts(by_alice(Command::DeleteImage { id: image_id(1) }));
    // Nobody asked for this.
    world.accepts(create_image(3, "shop/other", ImageKind::Container));
    // Steps on the way are not recorded, and answers are those of the command itself.
    let begun = world.accepts(by_alice(Command::BeginUpload(blob_upload(1, "shop/other"))));
    assert_eq!(begun, Response::Done);
    assert_eq!(told(&world), ["image.create shop/app", "image.delete shop/app"]);
    let entry = &all(&world)[0];
    assert_eq!((entry.number, &entry.note.source), (2, &audit_source()));
    assert_eq!((&entry.note.result, entry.note.at), (&AuditResult::Done, at(4)));
    let twice = by_alice(by_alice(Command::DeleteImage { id: image_id(3) }));
    assert!(matches!(world.refuses(twice), Refusal::Limit(_)));
    assert_eq!(verify(world.query()).unwrap(), (2, vec![]));
}

#[test]
fn long_texts_are_cut_and_do_not_break_the_chain() {
    let mut world = World::founded();
    let note = AuditNote { target: "é".repeat(2000), ..audit_note("image.pull", "") };
    let noted = AuditBatch {
        node: NodeId::new(1),
        run: 1,
        batch: 0,
        phase: AuditPhase::Goes,
        notes: vec![note],
        lost: 0,
    };
    world.accepts(Command::NoteAudit(noted));
    assert_eq!(all(&world)[0].note.target.len(), 512);
    assert_eq!(verify(world.query()).unwrap(), (1, vec![]));
}

#[test]
fn a_node_that_fell_leaves_a_gap_that_is_told() {
    let mut world = World::founded();
    world.accepts(batch(1, 0, AuditPhase::Begins, &["a"]));
    world.accepts(batch(1, 1, AuditPhase::Goes, &["b"]));
    // The answer was lost, and it is sent again.
    world.accepts(batch(1, 1, AuditPhase::Goes, &["b"]));
    world.accepts(batch(1, 2, AuditPhase::Ends, &["c"]));
    world.accepts(batch(2, 0, AuditPhase::Begins, &[]));
    world.accepts(batch(2, 3, AuditPhase::Goes, &["d"]));
    world.accepts(batch(3, 0, AuditPhase::Begins, &["e"]));
    assert_eq!(
        told(&world),
        [
            "audit.begin ",
            "image.pull a",
            "image.pull b",
            "image.pull c",
            "audit.end ",
            "audit.begin ",
            "audit.gap batches 1 to 2",
            "image.pull d",
            "audit.gap the node ended without a word since 7 ms",
            "audit.begin ",
            "image.pull e",
        ]
    );
    // What there was no room for is told, too.
    let lossy = AuditBatch {
        node: NodeId::new(2),
        run: 1,
        batch: 0,
        phase: AuditPhase::Goes,
        notes: vec![],
        lost: 7,
    };
    world.accepts(Command::NoteAudit(lossy));
    assert_eq!((all(&world)[0].note.action.as_str(), all(&world)[0].note.count), ("audit.lost", 7));
    let notes = vec![audit_note("x", "y"); AUDIT_BATCH_MAX + 1];
    let many = AuditBatch {
        node: NodeId::new(3),
        run: 1,
        batch: 0,
        phase: AuditPhase::Goes,
        notes,
        lost: 0,
    };
    assert!(matches!(world.refuses(Command::NoteAudit(many)), Refusal::Limit(_)));
}

#[test]
fn a_search_finds_pages_of_what_it_asks_for() {
    let mut world = World::founded();
    for number in 0..30 {
        let action = if number % 3 == 0 { "image.delete" } else { "image.pull" };
        let mut note = audit_note(action, &format!("shop/{number}"));
        note.at = at(1000 + number);
        note.source.who = if number % 2 == 0 { "alice" } else { "bob" }.to_owned();
        if number == 9 {
            note.result = AuditResult::Refused("no".into());
        }
        let (node, notes) = (NodeId::new(1), vec![note]);
        let batch =
            AuditBatch { node, run: 1, batch: number, phase: AuditPhase::Goes, notes, lost: 0 };
        world.accepts(Command::NoteAudit(batch));
    }
    let count = |filter: &AuditFilter| world.query().audit(filter, 100, 100).unwrap().entries.len();
    let text = |text: &str| Some(text.to_owned());
    let none = AuditFilter::default();
    assert_eq!(count(&AuditFilter { who: text("bob"), ..none.clone() }), 15);
    assert_eq!(count(&AuditFilter { action: text("image.delete"), ..none.clone() }), 10);
    assert_eq!(count(&AuditFilter { action: text("image"), ..none.clone() }), 30);
    assert_eq!(count(&AuditFilter { action: text("ima"), ..none.clone() }), 0);
    assert_eq!(count(&AuditFilter { target: text("shop/1"), ..none.clone() }), 11);
    assert_eq!(count(&AuditFilter { refused: Some(true), ..none.clone() }), 1);
    let (since, until) = (Some(at(1010)), Some(at(1020)));
    assert_eq!(count(&AuditFilter { since, until, ..none.clone() }), 10);
    // Page by page it is the same, the newest first; also where few are looked at at once.
    let mut filter = AuditFilter { who: text("alice"), ..none };
    let mut found = Vec::new();
    loop {
        let page = world.query().audit(&filter, 4, 5).unwrap();
        found.extend(page.entries.iter().map(|entry| entry.number));
        filter.before = page.before;
        if page.before.is_none() {
            break;
        }
    }
    assert_eq!(found, (1..=30).rev().filter(|number| number % 2 == 1).collect::<Vec<u64>>());
}

#[test]
fn old_entries_go_to_storage_and_the_chain_goes_on() {
    let mut world = trail(10);
    let old = world.query().oldest_audit(4).unwrap();
    let archive = AuditArchive {
        first: 1,
        last: 4,
        from: old[0].note.at,
        until: old[3].note.at,
        object: pack(9),
        bytes: 100,
        before: [0; 32],
        head: old[3].hash,
    };
    for wrong in [
        AuditArchive { first: 2, ..archive.clone() },
        AuditArchive { last: 11, ..archive.clone() },
        AuditArchive { last: 3, ..archive.clone() },
        AuditArchive { before: [1; 32], ..archive.clone() },
    ] {
        assert!(matches!(world.refuses(Command::ArchiveAudit(wrong)), Refusal::UploadState(_)));
    }
    world.accepts(Command::ArchiveAudit(archive.clone()));
    assert!(matches!(world.refuses(Command::ArchiveAudit(archive)), Refusal::UploadState(_)));
    assert_eq!(all(&world).len(), 6);
    assert_eq!(world.query().first_audit().unwrap(), 5);
    assert_eq!(world.count(&pack(9)), Some(1), "the object is not kept");
    world.accepts(batch(1, 10, AuditPhase::Goes, &["later"]));
    assert_eq!(verify(world.query()).unwrap(), (7, vec![]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_changed_in_the_trail_shows(
        count in 2usize..12, place in 0usize..12, kind in 0u8..4, byte in 0usize..80,
    ) {
        let mut world = trail(count);
        prop_assert_eq!(verify(world.query()).unwrap(), (count as u64, vec![]));
        let number = (place % count) as u64 + 1;
        let key = |number: u64| (Table::AuditEntries, (u64::MAX - number).to_be_bytes().to_vec());
        let row = |number: u64| {
            let (table, key) = key(number);
            world.rows.get(table, &key).unwrap()
        };
        let writes: Writes = match kind {
            0 => [(key(number), None)].into(),
            1 => {
                let mut bytes = row(number).unwrap();
                // Not the version of the row's form.
                let at = 1 + byte % (bytes.len() - 1);
                bytes[at] ^= 1;
                [(key(number), Some(bytes))].into()
            }
            2 => {
                let other = number % count as u64 + 1;
                [(key(number), row(other)), (key(other), row(number))].into()
            }
            _ => [((Table::Counts, b"audit-head".to_vec()), Some(encode_row(&[7u8; 32])))].into(),
        };
        world.rows.commit(writes);
        // A row that cannot be read any more shows, too.
        let found = verify(world.query());
        prop_assert!(found.is_err() || found.is_ok_and(|(_, flaws)| !flaws.is_empty()));
    }
}
