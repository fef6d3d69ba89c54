//! Carries out what was judged, and notes pulls.
//!
//! Between judgement and command there are pushes. Hence every name is compared with what was
//! judged (version, push, pull), and every version is looked at again: it must have no tag, be
//! quiet, and nothing that stays may need it. What is different is passed over; the next run judges
//! it anew. A policy that changed refuses the whole command.

use std::collections::{BTreeMap, BTreeSet};

use shoal_content::{Digest, ImageId, TagName, Timestamp};

use super::{Step, Stop};
use crate::command::{ImagePulls, Refusal, Response, Retire};
use crate::key;
use crate::record::{Image, Version};
use crate::retention::NameUse;
use crate::table::{Fault, Read, Table};
use crate::transaction::row;

/// The most names and versions that one command drops.
pub const RETIRED_MAX: usize = 500;
/// The most pulls that one command notes.
pub const PULLS_MAX: usize = 5_000;
/// Versions that one command looks at to see whether others need what it drops.
const LOOKS_MAX: usize = 20_000;

impl<R: Read> Step<'_, R> {
    pub(super) fn retire(&mut self, retire: Retire) -> Result<Response, Stop> {
        let Retire { image, revision, judged_at, quiet_before, tags, numbers, untagged } = retire;
        if tags.len() + numbers.len() + untagged.len() > RETIRED_MAX {
            return Err(Refusal::Limit(format!("{RETIRED_MAX} names and versions at once")).into());
        }
        let image = self.live_image(image)?;
        let policy = self.query().policy(&image.name.project())?;
        let policy = policy.filter(|policy| policy.revision == revision);
        let policy = policy.ok_or(Refusal::PolicyChanged)?;
        let immutability = policy.rules.immutability(&image.name);

        let mut gone_tags = BTreeSet::new();
        for (tag, judged) in tags {
            let now = self.query().tag_use(image.id, &tag)?;
            if now.as_ref() == Some(&judged) && !immutability.holds(tag.as_str()) {
                self.drop_tag_at(&image, &tag, &judged.digest, judged_at)?;
                gone_tags.insert(tag);
            }
        }
        let mut gone_versions = BTreeSet::new();
        for (number, judged) in numbers {
            if let Some(version) = self.numbered(&image, &number, &judged)?
                && self.immutable_name(&immutability, &version)?.is_none()
            {
                self.drop_version(&image.name, &version)?;
                gone_versions.insert(version.digest);
            }
        }
        if let Some(quiet_before) = quiet_before {
            let mut looks = Looks { quiet_before, unneeded: BTreeSet::new(), count: 0 };
            for digest in untagged {
                if let Some(version) = self.query().version(image.id, &digest)?
                    && version.disk.is_none()
                    && self.is_unneeded(&version, &mut looks)?
                {
                    self.drop_version(&image.name, &version)?;
                    gone_versions.insert(digest);
                }
            }
        }
        if !gone_tags.is_empty() || !gone_versions.is_empty() {
            self.end_removal(image)?;
        }
        Ok(Response::Retired { tags: gone_tags, versions: gone_versions })
    }

    /// The disk version that `number` names, where it has no tag and is used as it was judged.
    fn numbered(
        &self,
        image: &Image,
        number: &str,
        judged: &NameUse,
    ) -> Result<Option<Version>, Fault> {
        let Some(version) = self.query().version_by_number(image.id, number)? else {
            return Ok(None);
        };
        let pulled_at = self.query().version_pulled_at(image.id, &version.digest)?;
        let now =
            NameUse { digest: version.digest.clone(), pushed_at: version.created_at, pulled_at };
        let same = now == *judged
            && !self.query().is_tagged(image.id, &version.digest)?
            && !self.is_used(image.id, &version.digest)?;
        Ok(Some(version).filter(|_| same))
    }

    /// Whether nothing that stays is reached from the version by going to the indexes that list it,
    /// to what it is about, and to what is about it.
    fn is_unneeded(&self, version: &Version, looks: &mut Looks) -> Result<bool, Stop> {
        let image = version.image;
        let mut seen = BTreeSet::from([version.digest.clone()]);
        let mut left = vec![version.digest.clone()];
        while let Some(digest) = left.pop() {
            if looks.unneeded.contains(&digest) {
                continue;
            }
            // One row at a time: it may be megabytes long. A subject need not be there.
            let Some(version) = self.query().version(image, &digest)? else { continue };
            looks.count += 1;
            let stays = looks.count > LOOKS_MAX
                || self.query().is_tagged(image, &digest)?
                || self.is_used(image, &digest)?
                || self.query().quiet_since(&version)? > looks.quiet_before;
            if stays {
                return Ok(false);
            }
            let referrers = self.query().referrers_after(image, &digest, None, LOOKS_MAX + 1)?;
            if referrers.len() > LOOKS_MAX {
                return Ok(false);
            }
            let parents = self.query().parents(image, &digest)?;
            let next = parents.into_iter().chain(version.subject).chain(referrers);
            left.extend(next.filter(|digest| seen.insert(digest.clone())));
        }
        // Whatever was reached reaches no more than this.
        looks.unneeded.extend(seen);
        Ok(true)
    }

    /// What is gone is passed over; a time never moves back, and none is later than now.
    pub(super) fn note_pulls(
        &mut self,
        pulls: BTreeMap<ImageId, ImagePulls>,
    ) -> Result<Response, Stop> {
        let count: usize = pulls.values().map(|of| of.tags.len() + of.versions.len()).sum();
        if count > PULLS_MAX {
            return Err(Refusal::Limit(format!("{PULLS_MAX} pulls at once")).into());
        }
        self.begin_noting_pulls()?;
        for (image, ImagePulls { tags, versions }) in pulls {
            for (tag, at) in tags {
                if self.query().tag(image, &tag)?.is_some() {
                    self.note_pull(Table::TagPulls, key::tag(image, &tag), at)?;
                }
            }
            for (digest, at) in versions {
                let key = key::image_digest(image, &digest);
                if self.rows.has(Table::Versions, &key)? {
                    self.note_pull(Table::VersionPulls, key, at)?;
                }
            }
        }
        Ok(Response::Done)
    }

    fn note_pull(&mut self, table: Table, key: Vec<u8>, at: Timestamp) -> Result<(), Fault> {
        let at = at.min(self.at);
        let old: Option<Timestamp> = row(&self.rows, table, &key)?;
        if old < Some(at) {
            self.rows.put(table, key, &at);
        }
        Ok(())
    }

    /// Takes a tag away; its version is without tags since `since`, where this was the last.
    pub(super) fn drop_tag_at(
        &mut self,
        image: &Image,
        tag: &TagName,
        digest: &Digest,
        since: Timestamp,
    ) -> Result<(), Fault> {
        self.drop_tag(image.id, &image.name, tag.clone(), digest)?;
        self.mark_untagged(image.id, digest, since)
    }

    pub(super) fn mark_untagged(
        &mut self,
        image: ImageId,
        digest: &Digest,
        since: Timestamp,
    ) -> Result<(), Fault> {
        if !self.query().is_tagged(image, digest)? {
            self.rows.put(Table::UntaggedVersions, key::image_digest(image, digest), &since);
        }
        Ok(())
    }
}

/// What is known of versions that nothing needs, in one command.
struct Looks {
    quiet_before: Timestamp,
    unneeded: BTreeSet<Digest>,
    count: usize,
}
