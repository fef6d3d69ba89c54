//! Retention drops what no rule keeps and nothing else, and nobody moves what is immutable.

mod world;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use shoal_content::{Digest, ImageId, TagName, Timestamp};
use shoal_metadata::*;
use world::counts::check;
use world::*;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// A day of the tests' own time.
fn day(number: u64) -> u64 {
    number * DAY_MS
}

fn at_day(world: &mut World, number: u64) {
    assert!(world.now < day(number), "time does not go back");
    world.now = day(number);
}

fn rules(retention: Vec<RetentionRule>) -> PolicyRules {
    PolicyRules { automatic: true, retention, ..PolicyRules::default() }
}

fn push(world: &mut World, repository: &str, manifest: u8, tags: &[&str]) {
    let image = repository.bytes().map(u64::from).sum();
    let tags = tags.iter().map(|text| tag(text)).collect();
    let put = PutManifest { tags, ..container(repository, image, manifest, &[]) };
    world.accepts(Command::PutManifest(put));
}

fn image_of(world: &World, repository: &str) -> Image {
    world.query().image_by_name(&name(repository)).unwrap().unwrap()
}

fn judged(world: &World, repository: &str) -> Judgement {
    let image = image_of(world, repository);
    let policy = world.query().policy(&name(repository).project()).unwrap().unwrap();
    judge(world.query(), &policy.rules, &image, at(world.now)).unwrap()
}

fn retirement(world: &World, repository: &str) -> Retire {
    let policy = world.query().policy(&name(repository).project()).unwrap().unwrap();
    judged(world, repository).retire(policy.revision)
}

/// What is left of a repository's tags after a run.
fn run(world: &mut World, repository: &str) -> Vec<String> {
    let retire = retirement(world, repository);
    world.accepts(Command::Retire(retire));
    check(world);
    tags_of(world, repository)
}

fn tags_of(world: &World, repository: &str) -> Vec<String> {
    let image = image_of(world, repository);
    let tags = world.query().tags(image.id, None, 1000).unwrap();
    tags.into_iter().map(|(tag, _)| tag.as_str().to_owned()).collect()
}

fn has(world: &World, repository: &str, manifest: u8) -> bool {
    let image = image_of(world, repository);
    world.query().version(image.id, &digest(manifest)).unwrap().is_some()
}

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

const REPOSITORIES: [&str; 2] = ["p/a", "p/b"];
const TAGS: [&str; 6] = ["v1", "v2", "v3", "rc-1", "latest", "keep"];

/// What happens in the project, each with the days that pass before.
fn event() -> impl Strategy<Value = (u64, Command)> {
    let at = 0usize..2;
    let manifest = 10u8..18;
    let command = prop_oneof![
        6 => (at.clone(), manifest.clone(), prop::option::of(0usize..TAGS.len()), prop::option::of(10u8..18))
            .prop_map(|(at, manifest, text, subject)| {
                let tags = text.iter().map(|text| tag(TAGS[*text])).collect();
                let subject = subject.filter(|subject| *subject != manifest).map(digest);
                let put = container(REPOSITORIES[at], at as u64, manifest, &[]);
                Command::PutManifest(PutManifest { tags, subject, ..put })
            }),
        3 => (at.clone(), 18u8..22, prop::collection::vec(10u8..22, 0..3), prop::option::of(0usize..TAGS.len()))
            .prop_map(|(at, manifest, listed, text)| {
                let tags = text.iter().map(|text| tag(TAGS[*text])).collect();
                let listed: Vec<u8> = listed.into_iter().filter(|one| *one < manifest).collect();
                let put = index(REPOSITORIES[at], at as u64, manifest, &listed);
                Command::PutManifest(PutManifest { tags, ..put })
            }),
        2 => (at.clone(), 10u8..22, 0usize..TAGS.len()).prop_map(|(at, manifest, text)| Command::PutTag {
            repository: name(REPOSITORIES[at]),
            tag: tag(TAGS[text]),
            digest: digest(manifest),
        }),
        1 => (at.clone(), 0usize..TAGS.len()).prop_map(|(at, text)| Command::DeleteTag {
            repository: name(REPOSITORIES[at]),
            tag: tag(TAGS[text]),
        }),
        1 => (at.clone(), 10u8..22).prop_map(|(at, manifest)| Command::DeleteManifest {
            repository: name(REPOSITORIES[at]),
            digest: digest(manifest),
        }),
        2 => (at, 10u8..22, 0usize..TAGS.len()).prop_map(|(at, manifest, text)| {
            let now = world::at(u64::MAX);
            let pulls = ImagePulls {
                tags: [(tag(TAGS[text]), now)].into(),
                versions: [(digest(manifest), now)].into(),
            };
            Command::NotePulls { pulls: [(image_id(at as u64), pulls)].into() }
        }),
    ];
    (0u64..4, command)
}

fn policy() -> impl Strategy<Value = PolicyRules> {
    let tags = || prop::sample::select(vec!["v*", "**", "rc-?", "!v1", "latest", "nothing"]);
    let repositories = || prop::sample::select(vec!["**", "a", "!a"]);
    let keep = prop_oneof![
        (1u32..4).prop_map(Keep::Newest),
        (0u32..20).prop_map(|days| Keep::PushedWithin { days }),
        (0u32..20).prop_map(|days| Keep::PulledWithin { days }),
        Just(Keep::Always),
    ];
    let rule = (repositories(), tags(), keep).prop_map(|(repositories, tags, keep)| {
        RetentionRule { selection: selection(repositories, tags), keep }
    });
    let immutable = (repositories(), prop::sample::select(vec!["keep", "v3"]))
        .prop_map(|(repositories, tags)| selection(repositories, tags));
    (
        prop::collection::vec(rule, 0..4),
        prop::option::of(0u32..10),
        prop::collection::vec(immutable, 0..2),
    )
        .prop_map(|(retention, untagged_days, immutable)| PolicyRules {
            automatic: true,
            retention,
            untagged_days,
            immutable,
        })
}

type State = BTreeMap<TagName, NameUse>;

fn uses(world: &World, image: ImageId) -> State {
    let tags = world.query().tags(image, None, 1000).unwrap();
    tags.into_iter()
        .map(|(tag, _)| (tag.clone(), world.query().tag_use(image, &tag).unwrap().unwrap()))
        .collect()
}

/// Says by itself, from the documentation's words, whether a tag may go.
fn may_go(
    world: &World,
    rules: &PolicyRules,
    image: &Image,
    all: &State,
    wanted: &TagName,
) -> bool {
    let now = world.now;
    let ago = |when: u64| now.saturating_sub(when);
    let here = |of: &Selection, tag: &TagName| {
        let rest = image.name.as_str().strip_prefix("p/").unwrap();
        of.repositories.matches(rest) && of.tags.matches(tag.as_str())
    };
    if rules.immutable.iter().any(|of| here(of, wanted)) {
        return false;
    }
    let since = world.query().pulls_since().unwrap().unwrap().as_millis();
    let used = &all[wanted];
    let keeps = |rule: &RetentionRule| match rule.keep {
        Keep::Always => true,
        Keep::PushedWithin { days } => ago(used.pushed_at.as_millis()) <= day(days.into()),
        Keep::PulledWithin { days } => {
            let pulled = used.pulled_at.map_or(0, |at| at.as_millis());
            ago(pulled.max(used.pushed_at.as_millis()).max(since)) <= day(days.into())
        }
        Keep::Newest(count) => {
            // A version is as new as the newest of its names that the rule is for.
            let mut pushed: BTreeMap<&Digest, Timestamp> = BTreeMap::new();
            for (_, other) in all.iter().filter(|(tag, _)| here(&rule.selection, tag)) {
                let last = pushed.entry(&other.digest).or_default();
                *last = other.pushed_at.max(*last);
            }
            let own = pushed[&used.digest];
            let newer: Vec<_> = pushed.values().filter(|at| **at > own).collect();
            newer.len() < count as usize
        }
    };
    let mut matching =
        rules.retention.iter().filter(|rule| here(&rule.selection, wanted)).peekable();
    matching.peek().is_some() && !matching.any(keeps)
}

/// What of these versions tags lead to, by lists and subjects, either way round for those.
fn needed(versions: &[Version], tags: &State) -> BTreeSet<Digest> {
    // What is not there holds nothing together.
    let there: BTreeSet<&Digest> = versions.iter().map(|version| &version.digest).collect();
    let mut needed: BTreeSet<Digest> = tags.values().map(|used| used.digest.clone()).collect();
    loop {
        let before = needed.len();
        for version in versions {
            let listed = version.references.iter().filter_map(|reference| match reference {
                Reference::Manifest { digest, .. } => Some(digest.clone()),
                Reference::Blob { .. } => None,
            });
            if needed.contains(&version.digest) {
                needed.extend(listed.filter(|one| there.contains(one)));
                needed.extend(version.subject.iter().filter(|one| there.contains(one)).cloned());
            }
            if version.subject.as_ref().is_some_and(|subject| needed.contains(subject)) {
                needed.insert(version.digest.clone());
            }
        }
        if needed.len() == before {
            return needed;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_run_drops_only_what_no_rule_keeps_whatever_is_pushed_meanwhile(
        before in prop::collection::vec(event(), 5..40),
        policy in policy(),
        between in prop::collection::vec(event(), 0..4),
        at_once in 1usize..6,
    ) {
        let mut world = World::founded();
        for (at, repository) in REPOSITORIES.into_iter().enumerate() {
            world.accepts(Command::PutManifest(container(repository, at as u64, 9, &[])));
        }
        for (days, command) in before {
            world.now += day(days);
            let _ = world.propose(command);
        }
        world.accepts(set_policy("p", policy.clone()));
        world.now += day(3);
        for repository in REPOSITORIES {
            let image = image_of(&world, repository);
            let judged_state = uses(&world, image.id);
            let retire = retirement(&world, repository);
            for tag in judged_state.keys() {
                let goes = retire.tags.contains_key(tag);
                prop_assert_eq!(goes, may_go(&world, &policy, &image, &judged_state, tag), "{}", tag);
            }
            for (_, command) in &between {
                let _ = world.propose(command.clone());
            }
            check(&world);
            let state = uses(&world, image.id);
            let immutability = policy.immutability(&image.name);
            for batch in retire.batches(at_once) {
                let versions = world.query().versions(image.id).unwrap();
                world.accepts(Command::Retire(batch));
                check(&world);
                let left = uses(&world, image.id);
                for (tag, used) in &state {
                    let stays = left.get(tag) == Some(used);
                    let changed = judged_state.get(tag) != Some(used);
                    let may = retire.tags.contains_key(tag);
                    prop_assert!(stays || (may && !changed), "{} went", tag);
                    prop_assert!(stays || !immutability.holds(tag.as_str()));
                }
                // Whatever the moment, nothing goes that a tag leads to.
                let needed = needed(&versions, &left);
                for version in versions.iter().filter(|one| needed.contains(&one.digest)) {
                    let row = world.query().version(image.id, &version.digest).unwrap();
                    prop_assert!(row.is_some(), "{} is needed", version.digest);
                }
                let after = world.query().versions(image.id).unwrap().len();
                prop_assert!(after == versions.len() || policy.untagged_days.is_some());
            }
            // Nothing is left that the judgement still finds, but what changed just now.
            if between.is_empty() {
                let again = retirement(&world, repository);
                prop_assert!(again.tags.is_empty(), "{:?}", again);
            }
        }
    }
}
