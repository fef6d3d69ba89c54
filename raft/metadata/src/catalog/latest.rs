//! Which version of a disk is the latest: by its number, not by when it came.
//!
//! A repair of an old line (1.0.9 after 2.0.0) is not the latest for having come last. Where one of
//! two numbers has no order (`nightly`), the one that came later is the newer.

use std::cmp::Ordering;

use shoal_content::VersionNumber;

use crate::record::Version;

/// The tag that follows the latest version of a disk.
pub(crate) const LATEST: &str = "latest";

fn number(version: &Version) -> Option<VersionNumber<'_>> {
    VersionNumber::parse(&version.disk.as_ref()?.number)
}

/// The order of two versions of one image.
fn order(one: &Version, other: &Version) -> Ordering {
    let by_number = match (number(one), number(other)) {
        (Some(one), Some(other)) => one.cmp(&other),
        _ => Ordering::Equal,
    };
    by_number.then_with(|| one.sequence.cmp(&other.sequence))
}

/// Whether a version of number `new` that comes now is newer than one of number `old`.
pub(crate) fn is_later(new: &str, old: &str) -> bool {
    match (VersionNumber::parse(new), VersionNumber::parse(old)) {
        (Some(new), Some(old)) => new >= old,
        _ => true,
    }
}

/// Numbers in descending order; those that have none come after, the last one first.
pub fn newest_first(versions: &mut [Version]) {
    versions.sort_by(|one, other| {
        let numbers = number(other).cmp(&number(one));
        numbers.then_with(|| other.sequence.cmp(&one.sequence))
    });
}

/// The one that is the latest of those that are left.
pub(crate) fn latest_of(versions: &[Version]) -> Option<&Version> {
    // A fold: the order is not transitive where numbers without one are among them.
    versions.iter().reduce(|latest, one| if order(one, latest).is_gt() { one } else { latest })
}
