//! Pushes on days of the tests' own time, and what a run of retention makes of them.

use super::counts::check;
use super::*;

pub const DAY_MS: u64 = 24 * 3600 * 1000;

/// A day of the tests' own time.
pub fn day(number: u64) -> u64 {
    number * DAY_MS
}

pub fn at_day(world: &mut World, number: u64) {
    assert!(world.now < day(number), "time does not go back");
    world.now = day(number);
}

pub fn rules(retention: Vec<RetentionRule>) -> PolicyRules {
    PolicyRules { automatic: true, retention, ..PolicyRules::default() }
}

pub fn push(world: &mut World, repository: &str, manifest: u8, tags: &[&str]) {
    let image = repository.bytes().map(u64::from).sum();
    let tags = tags.iter().map(|text| tag(text)).collect();
    let put = PutManifest { tags, ..container(repository, image, manifest, &[]) };
    world.accepts(Command::PutManifest(put));
}

pub fn image_of(world: &World, repository: &str) -> Image {
    world.query().image_by_name(&name(repository)).unwrap().unwrap()
}

pub fn judged(world: &World, repository: &str) -> Judgement {
    let image = image_of(world, repository);
    let policy = world.query().policy(&name(repository).project()).unwrap().unwrap();
    judge(world.query(), &policy.rules, &image, at(world.now)).unwrap()
}

pub fn retirement(world: &World, repository: &str) -> Retire {
    let policy = world.query().policy(&name(repository).project()).unwrap().unwrap();
    judged(world, repository).retire(policy.revision)
}

/// What is left of a repository's tags after a run.
pub fn run(world: &mut World, repository: &str) -> Vec<String> {
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

pub fn has(world: &World, repository: &str, manifest: u8) -> bool {
    let image = image_of(world, repository);
    world.query().version(image.id, &digest(manifest)).unwrap().is_some()
}
