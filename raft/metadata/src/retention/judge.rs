//! Decides what goes from one repository, and says of everything why.
//!
//! Invariants: a name goes only where a rule is for it, no rule keeps it, and no immutability rule
//! holds it; the same rows, rules and time give the same judgement, so that a dry run says what a
//! run does. Nothing is changed here.
//!
//! Signatures under the tags that cosign and the referrers tag schema use (`sha256-HEX…`) belong
//! to the version that they name: they stay as long as it does, and count as no version.

use std::collections::{BTreeMap, BTreeSet};

use shoal_content::{Digest, ImageId, InstanceName, RepositoryName, TagName, Timestamp};
use thiserror::Error;

use super::query::NameUse;
use super::{Keep, PolicyRules, RetentionRule, days_before, untagged};
use crate::command::Retire;
use crate::query::Query;
use crate::record::{Image, ImageKind, Reference, Version};
use crate::table::{Fault, Read};

/// The most names of one repository: what has more is left alone, and said.
pub const NAMES_JUDGED_MAX: usize = 100_000;
/// The most versions of one repository.
pub const VERSIONS_JUDGED_MAX: usize = 200_000;
/// The most manifests that the indexes of one repository list, together.
const LISTED_JUDGED_MAX: usize = 1_000_000;

/// Why a repository was not judged.
#[derive(Debug, Error)]
pub enum JudgeError {
    #[error("the metadata cannot be read")]
    Fault(#[from] Fault),
    #[error(
        "the repository has more than {NAMES_JUDGED_MAX} names or {VERSIONS_JUDGED_MAX} versions, \
         or its indexes list more than {LISTED_JUDGED_MAX}"
    )]
    TooLarge,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NameKind {
    Tag,
    /// A disk version's own.
    Number,
}

/// Why something stays. Rules are named by their place in the policy, from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The first rule that keeps it.
    Rule {
        rule: usize,
        keep: Keep,
    },
    Immutable {
        rule: usize,
    },
    /// It belongs to that version.
    Attached(Digest),
    /// The number of a version that has a tag that stays.
    Tagged(TagName),
    /// Without a tag, and not for long enough.
    Recent,
    /// An index that stays lists it.
    ListedBy(Digest),
    /// It is about a version that stays, for instance a signature.
    About(Digest),
    /// Something that stays is about it.
    SubjectOf(Digest),
    /// An instance runs it.
    RunBy(InstanceName),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Stays(Reason),
    Goes,
    /// No rule is for it.
    Untouched,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JudgedName {
    pub name: String,
    pub kind: NameKind,
    pub used: NameUse,
    pub verdict: Verdict,
}

/// A version without a tag, once the names that go are gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JudgedVersion {
    pub digest: Digest,
    pub sequence: u64,
    pub quiet_since: Timestamp,
    /// [`Verdict::Untouched`] where the policy says nothing of untagged versions.
    pub verdict: Verdict,
}

/// What was decided about one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    pub image: ImageId,
    pub repository: RepositoryName,
    pub judged_at: Timestamp,
    /// Untagged versions that are quiet since then or longer may go.
    pub quiet_before: Option<Timestamp>,
    /// By name; tags before numbers.
    pub names: Vec<JudgedName>,
    /// The newest first, so that an index goes before what it lists.
    pub untagged: Vec<JudgedVersion>,
}

/// Judges a repository by `rules`, at `now`.
///
/// # Errors
/// Where it is too large to be judged, or the rows cannot be read.
pub fn judge<R: Read>(
    query: Query<'_, R>,
    rules: &PolicyRules,
    image: &Image,
    now: Timestamp,
) -> Result<Judgement, JudgeError> {
    let tags = query.tag_uses(image.id, NAMES_JUDGED_MAX)?.ok_or(JudgeError::TooLarge)?;
    let versions = versions(query, image)?;
    let mut names: Vec<JudgedName> = tags
        .into_iter()
        .map(|(tag, used)| JudgedName {
            name: tag.as_str().to_owned(),
            kind: NameKind::Tag,
            used,
            verdict: Verdict::Untouched,
        })
        .collect();
    names.extend(numbers(query, &versions)?);
    let context = Context {
        now,
        pulls_since: query.pulls_since()?.unwrap_or(now),
        rules: &rules.retention,
        here: rules.retention.iter().map(|rule| rule.selection.has_repository(&image.name)),
    };
    decide_by_rules(&mut names, context, &versions);
    let immutability = rules.immutability(&image.name);
    for name in &mut names {
        if let Some(rule) = immutability.rule(&name.name) {
            name.verdict = Verdict::Stays(Reason::Immutable { rule });
        }
    }
    settle_numbers(query, image.id, &mut names)?;

    let quiet_before = rules.untagged_days.map(|days| days_before(now, days));
    let untagged = match image.kind {
        ImageKind::Container => untagged::judge(query, &versions, &names, now, quiet_before)?,
        // Each has its number, and is judged by that.
        ImageKind::Disk => Vec::new(),
    };
    let (image, repository) = (image.id, image.name.clone());
    Ok(Judgement { image, repository, judged_at: now, quiet_before, names, untagged })
}

/// By digest, and without what judging does not need: all of them are held at once, and one alone
/// may be megabytes long.
fn versions<R: Read>(
    query: Query<'_, R>,
    image: &Image,
) -> Result<BTreeMap<Digest, Version>, JudgeError> {
    let (mut versions, mut listed) = (BTreeMap::new(), 0);
    let too_large = query.find_version(image.id, |mut version| {
        version.annotations.clear();
        version.artifact_type = None;
        version.references.retain(|reference| matches!(reference, Reference::Manifest { .. }));
        if let Some(disk) = &mut version.disk {
            disk.objects.clear();
        }
        listed += version.references.len();
        versions.insert(version.digest.clone(), version);
        let too_large = versions.len() > VERSIONS_JUDGED_MAX || listed > LISTED_JUDGED_MAX;
        Ok(too_large.then_some(JudgeError::TooLarge))
    })?;
    match too_large {
        Some(error) => Err(error),
        None => Ok(versions),
    }
}

fn numbers<R: Read>(
    query: Query<'_, R>,
    versions: &BTreeMap<Digest, Version>,
) -> Result<Vec<JudgedName>, Fault> {
    let mut numbers = Vec::new();
    for version in versions.values() {
        let Some(disk) = &version.disk else { continue };
        let pulled_at = query.version_pulled_at(version.image, &version.digest)?;
        let digest = version.digest.clone();
        let used = NameUse { digest, pushed_at: version.created_at, pulled_at };
        let (name, verdict) = (disk.number.clone(), Verdict::Untouched);
        numbers.push(JudgedName { name, kind: NameKind::Number, used, verdict });
    }
    numbers.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(numbers)
}

/// What rules are tried with.
struct Context<'a, H> {
    now: Timestamp,
    pulls_since: Timestamp,
    rules: &'a [RetentionRule],
    /// For each rule, whether it is for this repository.
    here: H,
}

fn decide_by_rules(
    names: &mut [JudgedName],
    context: Context<'_, impl Iterator<Item = bool>>,
    versions: &BTreeMap<Digest, Version>,
) {
    let Context { now, pulls_since, rules, here } = context;
    let mut is_attached = vec![false; names.len()];
    for (at, name) in names.iter_mut().enumerate() {
        let subject = Some(name.kind).filter(|kind| *kind == NameKind::Tag);
        let subject = subject.and_then(|_| subject_of(&name.name));
        if let Some(subject) = subject.filter(|subject| versions.contains_key(subject)) {
            name.verdict = Verdict::Stays(Reason::Attached(subject));
            is_attached[at] = true;
        }
    }
    for (place, (rule, _)) in rules.iter().zip(here).enumerate().filter(|(_, (_, here))| *here) {
        let matching: Vec<usize> = (0..names.len())
            .filter(|at| !is_attached[*at] && rule.selection.tags.matches(&names[*at].name))
            .collect();
        let newest = match rule.keep {
            Keep::Newest(count) => newest(names, &matching, count),
            _ => BTreeSet::new(),
        };
        for at in matching {
            let JudgedName { used, verdict, .. } = &mut names[at];
            if matches!(verdict, Verdict::Stays(_)) {
                continue;
            }
            let kept = match rule.keep {
                Keep::Always => true,
                Keep::Newest(_) => newest.contains(&used.digest),
                Keep::PushedWithin { days } => used.pushed_at >= days_before(now, days),
                Keep::PulledWithin { days } => {
                    let pulled = used.pulled_at.unwrap_or_default();
                    pulled.max(used.pushed_at).max(pulls_since) >= days_before(now, days)
                }
            };
            *verdict = if kept {
                Verdict::Stays(Reason::Rule { rule: place, keep: rule.keep })
            } else {
                Verdict::Goes
            };
        }
    }
}

/// The `count` versions that were last pushed under one of these names.
fn newest(names: &[JudgedName], matching: &[usize], count: u32) -> BTreeSet<Digest> {
    let mut order: Vec<&JudgedName> = matching.iter().map(|at| &names[*at]).collect();
    order.sort_by(|a, b| b.used.pushed_at.cmp(&a.used.pushed_at).then_with(|| a.name.cmp(&b.name)));
    let mut found = BTreeSet::new();
    for name in order {
        if found.len() as u64 >= u64::from(count) {
            break;
        }
        found.insert(name.used.digest.clone());
    }
    found
}

/// A number cannot go while a tag that stays names its version, or an instance runs it.
fn settle_numbers<R: Read>(
    query: Query<'_, R>,
    image: ImageId,
    names: &mut [JudgedName],
) -> Result<(), Fault> {
    let mut tagged: BTreeMap<Digest, String> = BTreeMap::new();
    for name in names.iter() {
        if name.kind == NameKind::Tag && name.verdict != Verdict::Goes {
            tagged.entry(name.used.digest.clone()).or_insert_with(|| name.name.clone());
        }
    }
    let goes =
        |name: &&mut JudgedName| name.kind == NameKind::Number && name.verdict == Verdict::Goes;
    for name in names.iter_mut().filter(goes) {
        let digest = &name.used.digest;
        if let Some(Ok(tag)) = tagged.get(digest).map(|tag| tag.parse()) {
            name.verdict = Verdict::Stays(Reason::Tagged(tag));
        } else if let Some(instance) = query.instances_of(image, digest, 1)?.pop() {
            name.verdict = Verdict::Stays(Reason::RunBy(instance));
        }
    }
    Ok(())
}

/// The version that a tag such as `sha256-HEX.sig` belongs to (OCI distribution-spec, "Referrers
/// Tag Schema"; cosign's `.sig`, `.att` and `.sbom`).
fn subject_of(tag: &str) -> Option<Digest> {
    let (algorithm, rest) = tag.split_once('-')?;
    let hex = rest.split('.').next().unwrap_or(rest);
    format!("{algorithm}:{hex}").parse().ok()
}

impl Judgement {
    /// The command's content that carries it out; it may be too much for one command.
    pub fn retire(&self, revision: u64) -> Retire {
        let mut retire = Retire {
            image: self.image,
            revision,
            judged_at: self.judged_at,
            quiet_before: self.quiet_before,
            tags: BTreeMap::new(),
            numbers: BTreeMap::new(),
            untagged: Vec::new(),
        };
        for JudgedName { name, kind, used, .. } in
            self.names.iter().filter(|name| name.verdict == Verdict::Goes)
        {
            match (kind, name.parse()) {
                (NameKind::Tag, Ok(tag)) => {
                    retire.tags.insert(tag, used.clone());
                }
                _ => {
                    retire.numbers.insert(name.clone(), used.clone());
                }
            }
        }
        let untagged = self.untagged.iter().filter(|version| version.verdict == Verdict::Goes);
        retire.untagged.extend(untagged.map(|version| version.digest.clone()));
        retire
    }
}

impl Retire {
    /// The same in pieces of at most `limit`: tags first, and an index before what it lists.
    pub fn batches(&self, limit: usize) -> Vec<Self> {
        let limit = limit.max(1);
        let empty = Self {
            tags: BTreeMap::new(),
            numbers: BTreeMap::new(),
            untagged: Vec::new(),
            ..self.clone()
        };
        let mut batches = vec![empty.clone()];
        let mut room = limit;
        let mut place = |batches: &mut Vec<Self>, put: &mut dyn FnMut(&mut Self)| {
            if room == 0 {
                batches.push(empty.clone());
                room = limit;
            }
            if let Some(last) = batches.last_mut() {
                put(last);
                room -= 1;
            }
        };
        for (tag, used) in &self.tags {
            place(&mut batches, &mut |batch| {
                batch.tags.insert(tag.clone(), used.clone());
            });
        }
        for (number, used) in &self.numbers {
            place(&mut batches, &mut |batch| {
                batch.numbers.insert(number.clone(), used.clone());
            });
        }
        for digest in &self.untagged {
            place(&mut batches, &mut |batch| batch.untagged.push(digest.clone()));
        }
        batches.retain(|batch| !batch.is_empty());
        batches
    }

    pub fn is_empty(&self) -> bool {
        self.tags.is_empty() && self.numbers.is_empty() && self.untagged.is_empty()
    }
}
