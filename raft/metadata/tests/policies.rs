//! A project's policy: nobody moves what it makes immutable, it is bounded, and two who change it
//! at once do not undo each other's work.
//!
//! Non-goal: what its rules keep; see `retention`.

mod world;

use std::collections::BTreeMap;

use shoal_metadata::*;
use world::counts::check;
use world::retention::{at_day, has, image_of, push, rules, run};
use world::*;

#[test]
fn an_immutable_tag_is_neither_moved_nor_deleted_by_any_command() {
    let mut world = World::founded();
    world.accepts(commit_blob("a/b", 1, 1));
    world.accepts(Command::PutManifest(PutManifest {
        tags: vec![tag("child")],
        ..container("a/b", 1, 10, &[1])
    }));
    let of = PutManifest { tags: vec![tag("v1"), tag("other")], ..index("a/b", 1, 20, &[10]) };
    world.accepts(Command::PutManifest(of.clone()));
    push(&mut world, "a/b", 11, &[]);
    push(&mut world, "a/c", 12, &["v1"]);
    let immutable = vec![selection("b", "v*")];
    world.accepts(set_policy(
        "a",
        PolicyRules {
            immutable,
            untagged_days: Some(0),
            ..rules(vec![rule("**", Keep::PushedWithin { days: 0 })])
        },
    ));
    let refused = Refusal::Immutable { repository: name("a/b"), name: "v1".into() };
    let (repository, v1) = (name("a/b"), tag("v1"));
    let moved =
        PutManifest { tags: vec![tag("fresh"), v1.clone()], ..container("a/b", 1, 13, &[]) };
    for command in [
        Command::PutManifest(moved),
        Command::PutTag { repository: repository.clone(), tag: v1.clone(), digest: digest(11) },
        Command::DeleteTag { repository: repository.clone(), tag: v1.clone() },
        Command::DeleteManifest { repository: repository.clone(), digest: digest(20) },
        // What the index lists.
        Command::DeleteManifest { repository: repository.clone(), digest: digest(10) },
        Command::DeleteImage { id: image_of(&world, "a/b").id },
    ] {
        assert_eq!(world.refuses(command), refused);
    }
    let unlink = Command::UnlinkBlob { repository: repository.clone(), digest: digest(1) };
    assert_eq!(world.refuses(unlink), Refusal::BlobNeeded(digest(1)));
    // The same again, and a new name, are no change.
    world.accepts(Command::PutManifest(of));
    world.accepts(Command::PutTag {
        repository: repository.clone(),
        tag: tag("v2"),
        digest: digest(11),
    });
    at_day(&mut world, 10);
    assert_eq!(run(&mut world, "a/b"), ["v1", "v2"]);
    assert!(has(&world, "a/b", 10) && has(&world, "a/b", 20) && has(&world, "a/b", 11));
    // The rule is for the other repository only.
    push(&mut world, "a/c", 13, &["v1"]);
    world.accepts(Command::RemovePolicy { project: "a".parse().unwrap() });
    world.accepts(Command::DeleteManifest { repository, digest: digest(20) });
    check(&world);
}

#[test]
fn policies_are_bounded_and_changed_by_compare_and_set() {
    let mut world = World::founded();
    let project = || "a".parse().unwrap();
    let missing = Refusal::NotFound(Subject::Project);
    assert_eq!(world.refuses(set_policy("a", rules(vec![]))), missing);
    push(&mut world, "a", 10, &["v1"]);
    for (bad, error) in [
        (rules(vec![rule("*", Keep::Always); RULES_MAX + 1]), PolicyError::Rules),
        (rules(vec![rule("*", Keep::Newest(0))]), PolicyError::Newest),
        (rules(vec![rule("*", Keep::PushedWithin { days: DAYS_MAX + 1 })]), PolicyError::Days),
    ] {
        assert_eq!(world.refuses(set_policy("a", bad)), Refusal::Policy(error));
    }
    let set = |expected| Command::SetPolicy {
        project: project(),
        rules: rules(vec![]),
        expected: Some(expected),
        by: "admin".into(),
    };
    assert_eq!(world.refuses(set(7)), Refusal::PolicyChanged);
    let Response::Policy { revision } = world.accepts(set(0)) else { panic!() };
    assert_eq!(world.refuses(set(0)), Refusal::PolicyChanged);
    let Response::Policy { revision: next } = world.accepts(set(revision)) else { panic!() };
    world.accepts(Command::RemovePolicy { project: project() });
    let gone = Refusal::NotFound(Subject::Policy);
    assert_eq!(world.refuses(Command::RemovePolicy { project: project() }), gone);
    let Response::Policy { revision: again } = world.accepts(set(0)) else { panic!() };
    assert!(revision < next && next < again, "{revision} {next} {again}");
    let tags = (0..=RETIRED_MAX).map(|number| (number.to_string(), judged_use())).collect();
    let image = image_of(&world, "a").id;
    let too_much = Retire {
        image,
        revision: again,
        judged_at: at(1),
        quiet_before: None,
        tags: BTreeMap::new(),
        numbers: tags,
        untagged: Vec::new(),
    };
    assert!(matches!(world.refuses(Command::Retire(too_much)), Refusal::Limit(_)));
    // A project takes its policy along.
    world.accepts(Command::DeleteImage { id: image });
    world.accepts(Command::RemoveProject { name: project() });
    assert_eq!(world.query().policy(&project()).unwrap(), None);
}

fn judged_use() -> NameUse {
    NameUse { digest: digest(1), pushed_at: at(1), pulled_at: None }
}
