//! Retention drops what no rule keeps and nothing else.
//!
//! Non-goals: who may change a policy, and what it makes immutable (see `policies`); any sequence
//! of pushes under any policy (see `retention_properties`).

mod world;

use std::collections::BTreeSet;

use shoal_content::Digest;
use shoal_metadata::*;
use world::counts::check;
use world::retention::{DAY_MS, at_day, day, has, image_of, judged, push, retirement, rules, run};
use world::*;

#[test]
fn rules_are_ored_and_what_none_is_for_is_not_touched() {
    let mut world = World::founded();
    for (number, tags) in
        [&["v1"][..], &["v2", "v2-alias"], &["v3"], &["v4", "latest"], &["release-1"]]
            .into_iter()
            .enumerate()
    {
        at_day(&mut world, number as u64 + 1);
        push(&mut world, "a/app", 10 + number as u8, tags);
    }
    world.accepts(set_policy(
        "a",
        rules(vec![rule("v*", Keep::Newest(2)), rule("release-*", Keep::Always)]),
    ));
    let judgement = judged(&world, "a/app");
    let verdict = |text: &str| {
        let name = judgement.names.iter().find(|name| name.name == text).unwrap();
        name.verdict.clone()
    };
    let newest = Reason::Rule { rule: 0, keep: Keep::Newest(2) };
    assert_eq!(verdict("v4"), Verdict::Stays(newest.clone()));
    assert_eq!(verdict("v3"), Verdict::Stays(newest));
    assert_eq!(verdict("v2"), Verdict::Goes);
    assert_eq!(verdict("latest"), Verdict::Untouched);
    let always = Reason::Rule { rule: 1, keep: Keep::Always };
    assert_eq!(verdict("release-1"), Verdict::Stays(always));
    // Nothing was said of untagged versions.
    assert_eq!(run(&mut world, "a/app"), ["latest", "release-1", "v3", "v4"]);
    assert!(has(&world, "a/app", 10));
    assert_eq!(run(&mut world, "a/app").len(), 4, "a second run found more to do");
}

#[test]
fn a_push_of_what_is_there_already_makes_its_tag_new() {
    let mut world = World::founded();
    at_day(&mut world, 1);
    push(&mut world, "a", 10, &["old"]);
    at_day(&mut world, 2);
    push(&mut world, "a", 11, &["new"]);
    at_day(&mut world, 3);
    push(&mut world, "a", 10, &["old"]);
    world.accepts(set_policy("a", rules(vec![rule("**", Keep::Newest(1))])));
    assert_eq!(run(&mut world, "a"), ["old"]);
}

#[test]
fn age_goes_by_the_last_push_and_the_last_pull() {
    let mut world = World::founded();
    at_day(&mut world, 1);
    for (manifest, tag) in [(10, "stale"), (11, "pulled"), (12, "pulled-by-digest")] {
        push(&mut world, "a/b", manifest, &[tag]);
    }
    world.accepts(set_policy("a", rules(vec![rule("**", Keep::PulledWithin { days: 30 })])));
    let image = image_of(&world, "a/b").id;
    at_day(&mut world, 20);
    push(&mut world, "a/b", 13, &["pushed"]);
    // Times from nodes may be late and early; the latest counts, and none is in the future.
    for (days, later) in [(15, 0), (25, 0), (5, 0), (25, day(50))] {
        let when = at(day(days) + later);
        let pulls = ImagePulls {
            tags: [(tag("pulled"), when), (tag("never-there"), when)].into(),
            versions: [(digest(12), when), (digest(99), when)].into(),
        };
        let next = world.now / DAY_MS + 1;
        at_day(&mut world, next);
        world.accepts(Command::NotePulls { pulls: [(image, pulls)].into() });
    }
    let pulled = world.query().tag_use(image, &tag("pulled")).unwrap().unwrap().pulled_at;
    assert_eq!(pulled, Some(at(world.now)));
    at_day(&mut world, 30);
    assert_eq!(run(&mut world, "a/b").len(), 4, "nothing is 30 days old");
    at_day(&mut world, 40);
    assert_eq!(run(&mut world, "a/b"), ["pulled", "pulled-by-digest", "pushed"]);
    at_day(&mut world, 100);
    world.accepts(set_policy("a", rules(vec![rule("**", Keep::PushedWithin { days: 85 })])));
    assert_eq!(run(&mut world, "a/b"), ["pushed"]);
}

#[test]
fn pulls_count_as_unknown_before_they_were_noted() {
    let mut world = World::founded();
    at_day(&mut world, 1);
    push(&mut world, "a", 10, &["old"]);
    // The cluster knows nothing of pulls before its first policy.
    at_day(&mut world, 100);
    world.accepts(set_policy("a", rules(vec![rule("**", Keep::PulledWithin { days: 10 })])));
    at_day(&mut world, 109);
    assert_eq!(run(&mut world, "a"), ["old"]);
    at_day(&mut world, 111);
    assert!(run(&mut world, "a").is_empty());
}

#[test]
fn untagged_versions_go_when_they_are_quiet_and_nothing_needs_them() {
    let mut world = World::founded();
    at_day(&mut world, 1);
    // An index over two platforms; another one, untagged, over one of them and one of its own.
    for child in [10, 11, 12] {
        push(&mut world, "a/b", child, &[]);
    }
    let kept = PutManifest { tags: vec![tag("v1")], ..index("a/b", 1, 20, &[10, 11]) };
    world.accepts(Command::PutManifest(kept));
    world.accepts(Command::PutManifest(index("a/b", 1, 21, &[11, 12])));
    // A signature of the tagged one, and what the signature's own signer says of it.
    for (manifest, subject) in [(30, 20), (31, 30), (32, 12), (33, 99)] {
        let subject = Some(digest(subject));
        world.accepts(Command::PutManifest(PutManifest {
            subject,
            ..container("a/b", 1, manifest, &[])
        }));
    }
    // It is about nothing tagged, but something tagged is about it.
    push(&mut world, "a/b", 13, &[]);
    let about = PutManifest {
        subject: Some(digest(13)),
        tags: vec![tag("about")],
        ..container("a/b", 1, 34, &[])
    };
    world.accepts(Command::PutManifest(about));
    world.accepts(set_policy("a", PolicyRules { untagged_days: Some(7), ..rules(vec![]) }));
    at_day(&mut world, 7);
    run(&mut world, "a/b");
    assert_eq!(world.query().versions(image_of(&world, "a/b").id).unwrap().len(), 11);
    at_day(&mut world, 9);
    push(&mut world, "a/b", 14, &[]);
    let judgement = judged(&world, "a/b");
    let reason = |manifest: u8| {
        let found = judgement.untagged.iter().find(|one| one.digest == digest(manifest));
        found.unwrap().verdict.clone()
    };
    assert_eq!(reason(10), Verdict::Stays(Reason::ListedBy(digest(20))));
    assert_eq!(reason(30), Verdict::Stays(Reason::About(digest(20))));
    assert_eq!(reason(31), Verdict::Stays(Reason::About(digest(30))));
    assert_eq!(reason(13), Verdict::Stays(Reason::SubjectOf(digest(34))));
    assert_eq!(reason(14), Verdict::Stays(Reason::Recent));
    run(&mut world, "a/b");
    for manifest in [10, 11, 20, 30, 31, 13, 34, 14] {
        assert!(has(&world, "a/b", manifest), "{manifest} is gone");
    }
    for manifest in [12, 21, 32, 33] {
        assert!(!has(&world, "a/b", manifest), "{manifest} stayed");
    }
    // The tag goes; what hung on it was untagged for long, and it itself only now.
    world.accepts(Command::DeleteTag { repository: name("a/b"), tag: tag("v1") });
    run(&mut world, "a/b");
    assert!(has(&world, "a/b", 20) && has(&world, "a/b", 30) && has(&world, "a/b", 10));
    at_day(&mut world, 30);
    run(&mut world, "a/b");
    let left = world.query().versions(image_of(&world, "a/b").id).unwrap();
    let left: BTreeSet<Digest> = left.into_iter().map(|version| version.digest).collect();
    assert_eq!(left, [digest(13), digest(34)].into());
}

#[test]
fn zero_days_take_versions_with_their_last_tag() {
    let mut world = World::founded();
    for manifest in [10, 11] {
        push(&mut world, "a", manifest, &[&format!("v{manifest}")]);
    }
    let retention = vec![rule("**", Keep::Newest(1))];
    world.accepts(set_policy("a", PolicyRules { untagged_days: Some(0), ..rules(retention) }));
    assert_eq!(run(&mut world, "a"), ["v11"]);
    assert!(!has(&world, "a", 10) && has(&world, "a", 11));
}

#[test]
fn the_number_of_a_disk_is_a_name_and_takes_its_version_along() {
    let mut world = World::founded();
    for manifest in 20..24 {
        let tags = vec![tag("latest")];
        world
            .accepts(Command::PutManifest(PutManifest { tags, ..disk("vm/a", 5, manifest, &[1]) }));
    }
    let put = Command::PutTag { repository: name("vm/a"), tag: tag("gold"), digest: digest(20) };
    world.accepts(put);
    world.accepts(set_policy(
        "vm",
        rules(vec![rule("1.*", Keep::Newest(2)), rule("latest", Keep::Always)]),
    ));
    let judgement = judged(&world, "vm/a");
    let first = judgement.names.iter().find(|name| name.name == "1.0.20").unwrap();
    assert_eq!(first.verdict, Verdict::Stays(Reason::Tagged(tag("gold"))));
    run(&mut world, "vm/a");
    let left: Vec<bool> = (20..24).map(|manifest| has(&world, "vm/a", manifest)).collect();
    assert_eq!(left, [true, false, true, true]);
    assert_eq!(world.count(&pack(1)), Some(3));
}

#[test]
fn a_signature_under_a_tag_stays_as_long_as_what_it_signs() {
    let mut world = World::founded();
    let signature = format!("{}.sig", digest(10).to_string().replace(':', "-"));
    push(&mut world, "a", 10, &["v1"]);
    push(&mut world, "a", 40, &[&signature]);
    push(&mut world, "a", 11, &["v2"]);
    world.accepts(set_policy(
        "a",
        PolicyRules { untagged_days: Some(0), ..rules(vec![rule("**", Keep::Newest(2))]) },
    ));
    assert_eq!(run(&mut world, "a").len(), 3, "a signature counted as a version");
    world.accepts(set_policy(
        "a",
        PolicyRules { untagged_days: Some(0), ..rules(vec![rule("**", Keep::Newest(1))]) },
    ));
    assert_eq!(run(&mut world, "a"), [signature.as_str(), "v2"]);
    assert_eq!(run(&mut world, "a"), ["v2"]);
}

#[test]
fn what_changed_since_it_was_judged_is_passed_over() {
    let mut world = World::founded();
    for (manifest, text) in [(10, "moved"), (11, "again"), (12, "pulled"), (13, "same")] {
        push(&mut world, "a", manifest, &[text]);
    }
    push(&mut world, "a", 14, &[]);
    push(&mut world, "a", 15, &[]);
    push(&mut world, "a", 16, &[]);
    at_day(&mut world, 1);
    push(&mut world, "a", 20, &["newest"]);
    let all = PolicyRules { untagged_days: Some(0), ..rules(vec![rule("**", Keep::Newest(1))]) };
    world.accepts(set_policy("a", all.clone()));
    let retire = retirement(&world, "a");
    assert_eq!((retire.tags.len(), retire.untagged.len()), (4, 7));
    // A push under the tag, the same push again, a pull, a tag, an index, a subject.
    push(&mut world, "a", 21, &["moved"]);
    push(&mut world, "a", 11, &["again"]);
    let image = image_of(&world, "a").id;
    let versions = [(digest(12), at(world.now))].into();
    let pulls = [(image, ImagePulls { versions, ..ImagePulls::default() })].into();
    world.accepts(Command::NotePulls { pulls });
    world.accepts(Command::PutTag { repository: name("a"), tag: tag("t"), digest: digest(14) });
    world.accepts(Command::PutManifest(index("a", 1, 30, &[15])));
    let subject = Some(digest(16));
    world.accepts(Command::PutManifest(PutManifest { subject, ..container("a", 1, 31, &[]) }));
    let answer = world.accepts(Command::Retire(retire.clone()));
    let Response::Retired { tags, versions } = answer else { panic!("{answer:?}") };
    assert_eq!(tags, [tag("same")].into());
    // 10 lost its tag by the push, just now.
    assert_eq!(versions, [digest(13)].into());
    check(&world);

    world.accepts(set_policy("a", all));
    assert_eq!(world.refuses(Command::Retire(retire)), Refusal::PolicyChanged);
}
