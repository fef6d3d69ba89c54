//! Questions about policies, and about when names and versions were last pushed and pulled.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_content::{Digest, ImageId, ProjectName, TagName, Timestamp};

use super::Policy;
use crate::key;
use crate::query::Query;
use crate::record::Version;
use crate::table::{Fault, Read, Table};
use crate::transaction::{decoded, row};

/// The entry of [`Table::Counts`] that says since when pulls are noted.
pub(crate) const PULLS_SINCE: &[u8] = b"pulls_since";

/// A name with what retention goes by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameUse {
    pub digest: Digest,
    pub pushed_at: Timestamp,
    /// By the name, or by the digest of the version that it names.
    pub pulled_at: Option<Timestamp>,
}

impl<R: Read> Query<'_, R> {
    pub fn policy(&self, project: &ProjectName) -> Result<Option<Policy>, Fault> {
        row(self.read, Table::Policies, project.as_str().as_bytes())
    }

    /// A page by project, of those after `after`.
    pub fn policies(
        &self,
        after: Option<&ProjectName>,
        limit: usize,
    ) -> Result<Vec<Policy>, Fault> {
        let from = after.map(|name| key::after(name.as_str().as_bytes().to_vec()));
        let rows = self.read.scan(Table::Policies, &from.unwrap_or_default(), b"", limit)?;
        rows.iter().map(|(_, bytes)| decoded(Table::Policies, bytes)).collect()
    }

    /// Since when pulls are noted; `None` before the first one and the first policy.
    pub fn pulls_since(&self) -> Result<Option<Timestamp>, Fault> {
        row(self.read, Table::Counts, PULLS_SINCE)
    }

    /// When the version was last pulled by its digest, or by a name that it had.
    pub fn version_pulled_at(
        &self,
        image: ImageId,
        digest: &Digest,
    ) -> Result<Option<Timestamp>, Fault> {
        row(self.read, Table::VersionPulls, &key::image_digest(image, digest))
    }

    /// What a tag names, and when it was used.
    pub fn tag_use(&self, image: ImageId, tag: &TagName) -> Result<Option<NameUse>, Fault> {
        let Some(digest) = self.tag(image, tag)? else { return Ok(None) };
        let key = key::tag(image, tag);
        let pushed_at = self.pushed_at(image, tag, &digest)?;
        let by_name: Option<Timestamp> = row(self.read, Table::TagPulls, &key)?;
        let pulled_at = by_name.max(self.version_pulled_at(image, &digest)?);
        Ok(Some(NameUse { digest, pushed_at, pulled_at }))
    }

    /// When a tag of that version was last set.
    pub(crate) fn pushed_at(
        &self,
        image: ImageId,
        tag: &TagName,
        digest: &Digest,
    ) -> Result<Timestamp, Fault> {
        match row(self.read, Table::TagPushes, &key::tag(image, tag))? {
            Some(at) => Ok(at),
            None => self.created_at(image, digest),
        }
    }

    fn created_at(&self, image: ImageId, digest: &Digest) -> Result<Timestamp, Fault> {
        let version = self.version(image, digest)?;
        Ok(version.ok_or(Fault::Contradiction("a tag names no version"))?.created_at)
    }

    /// All tags of an image with their uses, in byte order, from whole scans; `None` where there
    /// are more than `limit`.
    pub(crate) fn tag_uses(
        &self,
        image: ImageId,
        limit: usize,
    ) -> Result<Option<Vec<(TagName, NameUse)>>, Fault> {
        let tags = self.tags(image, None, limit.saturating_add(1))?;
        if tags.len() > limit {
            return Ok(None);
        }
        let pushes = self.times(Table::TagPushes, image)?;
        let by_name = self.times(Table::TagPulls, image)?;
        let by_digest = self.times(Table::VersionPulls, image)?;
        let with_use = |(tag, digest): (TagName, Digest)| {
            let key = key::tag(image, &tag);
            let pushed_at = match pushes.get(&key) {
                Some(at) => *at,
                None => self.created_at(image, &digest)?,
            };
            let of_version = by_digest.get(&key::image_digest(image, &digest));
            let pulled_at = by_name.get(&key).max(of_version).copied();
            Ok((tag, NameUse { digest, pushed_at, pulled_at }))
        };
        tags.into_iter().map(with_use).collect::<Result<_, Fault>>().map(Some)
    }

    fn times(&self, table: Table, image: ImageId) -> Result<BTreeMap<Vec<u8>, Timestamp>, Fault> {
        let rows = self.rows(table, &key::image(image))?;
        rows.into_iter().map(|(key, bytes)| Ok((key, decoded(table, &bytes)?))).collect()
    }

    /// All of an image's tags, those that were set last first, and of those of one moment by name. Of more
    /// than `limit`, those are left out whose names come last.
    pub(crate) fn all_tags_by_push(
        &self,
        image: ImageId,
        limit: usize,
    ) -> Result<Vec<(TagName, Digest)>, Fault> {
        let tags = self.tags(image, None, limit)?;
        let pushes = self.times(Table::TagPushes, image)?;
        let mut timed = Vec::with_capacity(tags.len());
        for (tag, digest) in tags {
            let pushed_at = match pushes.get(&key::tag(image, &tag)) {
                Some(at) => *at,
                None => self.created_at(image, &digest)?,
            };
            timed.push((pushed_at, tag, digest));
        }
        timed.sort_by_key(|(pushed_at, ..)| Reverse(*pushed_at));
        Ok(timed.into_iter().map(|(_, tag, digest)| (tag, digest)).collect())
    }

    /// Since when a version without tags has had none, and nobody pushed or pulled it.
    pub fn quiet_since(&self, version: &Version) -> Result<Timestamp, Fault> {
        let key = key::image_digest(version.image, &version.digest);
        let untagged: Option<Timestamp> = row(self.read, Table::UntaggedVersions, &key)?;
        let pulled: Option<Timestamp> = row(self.read, Table::VersionPulls, &key)?;
        let latest = untagged.max(pulled).max(Some(version.created_at));
        Ok(latest.unwrap_or(version.created_at))
    }

    pub(crate) fn is_tagged(&self, image: ImageId, digest: &Digest) -> Result<bool, Fault> {
        let prefix = key::image_digest(image, digest);
        Ok(!self.read.scan(Table::VersionTags, b"", &prefix, 1)?.is_empty())
    }

    /// Whether an index lists a manifest.
    pub fn is_listed(&self, image: ImageId, digest: &Digest) -> Result<bool, Fault> {
        let prefix = key::image_digest(image, digest);
        Ok(!self.read.scan(Table::ManifestParents, &prefix, &prefix, 1)?.is_empty())
    }

    /// The indexes that list a manifest, by digest.
    pub(crate) fn parents(&self, image: ImageId, digest: &Digest) -> Result<Vec<Digest>, Fault> {
        let prefix = key::image_digest(image, digest);
        let rows = self.rows(Table::ManifestParents, &prefix)?;
        rows.iter().map(|(key, _)| key::read_digest(key, prefix.len())).collect()
    }
}
