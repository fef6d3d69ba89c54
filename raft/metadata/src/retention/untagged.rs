//! Decides which versions without a tag go.
//!
//! Invariant: what has a tag, was used lately, is listed by an index that stays, is about a version
//! that stays or has something about it that stays, stays. Parents are read from the versions
//! themselves, so that this holds for versions that were pushed before the index of parents was
//! kept.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use shoal_content::{Digest, Timestamp};

use super::judge::{JudgedName, JudgedVersion, NameKind, Reason, Verdict};
use crate::query::Query;
use crate::record::{Reference, Version};
use crate::table::{Fault, Read};

pub(super) fn judge<R: Read>(
    query: Query<'_, R>,
    versions: &BTreeMap<Digest, Version>,
    names: &[JudgedName],
    now: Timestamp,
    quiet_before: Option<Timestamp>,
) -> Result<Vec<JudgedVersion>, Fault> {
    let tags = names.iter().filter(|name| name.kind == NameKind::Tag);
    let (going, staying): (Vec<_>, Vec<_>) = tags.partition(|tag| tag.verdict == Verdict::Goes);
    let digests = |names: Vec<&JudgedName>| -> BTreeSet<Digest> {
        names.into_iter().map(|name| name.used.digest.clone()).collect()
    };
    let (losing, tagged) = (digests(going), digests(staying));
    let mut judged = BTreeMap::new();
    for (digest, version) in versions.iter().filter(|(digest, _)| !tagged.contains(*digest)) {
        let quiet_since = match losing.contains(digest) {
            true => now,
            false => query.quiet_since(version)?,
        };
        let verdict = match quiet_before {
            None => Verdict::Untouched,
            Some(before) if quiet_since > before => Verdict::Stays(Reason::Recent),
            Some(_) => match query.instances_of(version.image, digest, 1)?.pop() {
                Some(instance) => Verdict::Stays(Reason::RunBy(instance)),
                None => Verdict::Goes,
            },
        };
        let (digest, sequence) = (digest.clone(), version.sequence);
        judged.insert(digest.clone(), JudgedVersion { digest, sequence, quiet_since, verdict });
    }
    if quiet_before.is_some() {
        spread(versions, &mut judged);
    }
    let mut judged: Vec<JudgedVersion> = judged.into_values().collect();
    judged.sort_by_key(|version| std::cmp::Reverse(version.sequence));
    Ok(judged)
}

/// Keeps what hangs together with what stays.
fn spread(versions: &BTreeMap<Digest, Version>, judged: &mut BTreeMap<Digest, JudgedVersion>) {
    let mut about: BTreeMap<&Digest, Vec<&Digest>> = BTreeMap::new();
    for version in versions.values() {
        if let Some(subject) = &version.subject {
            about.entry(subject).or_default().push(&version.digest);
        }
    }
    let goes = |judged: &BTreeMap<Digest, JudgedVersion>, digest: &Digest| {
        judged.get(digest).is_some_and(|version| version.verdict == Verdict::Goes)
    };
    let mut staying: VecDeque<&Version> =
        versions.values().filter(|version| !goes(judged, &version.digest)).collect();
    while let Some(version) = staying.pop_front() {
        let own = &version.digest;
        let listed = version.references.iter().filter_map(|reference| match reference {
            Reference::Manifest { digest, .. } => Some((digest, Reason::ListedBy(own.clone()))),
            Reference::Blob { .. } => None,
        });
        let subject = version.subject.iter().map(|one| (one, Reason::SubjectOf(own.clone())));
        let referrers = about.get(own).into_iter().flatten();
        let referrers = referrers.map(|one| (*one, Reason::About(own.clone())));
        for (digest, ground) in listed.chain(subject).chain(referrers) {
            if goes(judged, digest)
                && let (Some(one), Some(row)) = (judged.get_mut(digest), versions.get(digest))
            {
                one.verdict = Verdict::Stays(ground);
                staying.push_back(row);
            }
        }
    }
}
