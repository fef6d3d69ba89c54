//! Which version of a disk is the latest: by its number, not by when it came.
//!
//! A repair of an old line (1.0.9 after 2.0.0) is not the latest for having come last. Where one of
//! two numbers has no order (`nightly`), the one that came later is the newer.

use shoal_content::{Digest, ImageId, VersionNumber};

use crate::query::Query;
use crate::record::Version;
use crate::table::{Fault, Read};

/// The tag that follows the latest version of a disk.
pub(crate) const LATEST: &str = "latest";

fn number(version: &Version) -> Option<VersionNumber<'_>> {
    VersionNumber::parse(&version.disk.as_ref()?.number)
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

/// The one that is the latest of those that are left: the same as if they had come now, one after
/// another.
pub(crate) fn latest_of<R: Read>(
    query: Query<'_, R>,
    image: ImageId,
) -> Result<Option<Digest>, Fault> {
    let mut latest: Option<Version> = None;
    query.find_version(image, |version| {
        // What came before one without order is older than that, whatever its number.
        let is_unordered = number(&version).is_none();
        if latest.as_ref().is_none_or(|latest| number(&version) > number(latest)) {
            latest = Some(version);
        }
        Ok(is_unordered.then_some(()))
    })?;
    Ok(latest.map(|version| version.digest))
}
