//! What holds of retention after any sequence of commands, and with any others between a judgement
//! and its run: what goes may go by the documentation's words, and nothing goes that a tag leads
//! to.

mod world;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use shoal_content::{Digest, ImageId, TagName, Timestamp};
use shoal_metadata::*;
use world::counts::check;
use world::retention::{day, image_of, retirement};
use world::*;

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
