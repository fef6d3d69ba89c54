//! Policies, and what they forbid.
//!
//! Invariants: what an immutable name names is neither moved nor deleted, nor is what it lists or
//! the blobs it refers to, by whatever command; the check stands in the command that would do it.
//! Whoever wants to, changes the policy first.

use shoal_content::{Digest, ProjectName, RepositoryName, TagName};

use super::{Step, Stop};
use crate::command::{Refusal, Response, Subject};
use crate::key;
use crate::query::all_rows;
use crate::record::{Image, Version};
use crate::retention::{Immutability, PULLS_SINCE, Policy, PolicyRules};
use crate::table::{Fault, Read, Table};

/// Indexes above one manifest that are looked at before it is deleted.
const ANCESTORS_MAX: usize = 10_000;

impl<R: Read> Step<'_, R> {
    /// `expected` is the revision that the rules were made from; 0 is none.
    pub(super) fn set_policy(
        &mut self,
        project: ProjectName,
        rules: PolicyRules,
        expected: Option<u64>,
        by: String,
    ) -> Result<Response, Stop> {
        rules.check().map_err(Refusal::Policy)?;
        if self.query().project(&project)?.is_none() {
            return Err(Refusal::NotFound(Subject::Project).into());
        }
        let old = self.query().policy(&project)?;
        let before = old.map_or(0, |old| old.revision);
        if expected.is_some_and(|expected| expected != before) {
            return Err(Refusal::PolicyChanged.into());
        }
        // Begins with the time, so that none comes twice where a policy was removed in between.
        let revision = self.at.as_millis().max(before + 1);
        let key = project.as_str().as_bytes().to_vec();
        let row = Policy { project, rules, revision, updated_at: self.at, updated_by: by };
        self.rows.put(Table::Policies, key, &row);
        self.begin_noting_pulls()?;
        Ok(Response::Policy { revision })
    }

    pub(super) fn remove_policy(&mut self, project: &ProjectName) -> Result<Response, Stop> {
        if self.query().policy(project)?.is_none() {
            return Err(Refusal::NotFound(Subject::Policy).into());
        }
        self.drop_policy(project);
        Ok(Response::Done)
    }

    pub(super) fn drop_policy(&mut self, project: &ProjectName) {
        self.rows.remove(Table::Policies, project.as_str().as_bytes());
    }

    pub(super) fn begin_noting_pulls(&mut self) -> Result<(), Fault> {
        if self.query().pulls_since()?.is_none() {
            self.rows.put(Table::Counts, PULLS_SINCE, &self.at);
        }
        Ok(())
    }

    pub(super) fn immutability(&self, repository: &RepositoryName) -> Result<Immutability, Fault> {
        let policy = self.query().policy(&repository.project())?;
        Ok(policy
            .map_or_else(Immutability::default, |policy| policy.rules.immutability(repository)))
    }

    /// Whether these tags may name `digest` from now on.
    pub(super) fn check_moves(
        &self,
        image: &Image,
        tags: &[TagName],
        digest: &Digest,
    ) -> Result<(), Stop> {
        let immutability = self.immutability(&image.name)?;
        for tag in tags.iter().filter(|tag| immutability.holds(tag.as_str())) {
            if self.query().tag(image.id, tag)?.is_some_and(|old| old != *digest) {
                return Err(refusal(image, tag.as_str()).into());
            }
        }
        Ok(())
    }

    pub(super) fn check_tag_goes(&self, image: &Image, tag: &TagName) -> Result<(), Stop> {
        if self.immutability(&image.name)?.holds(tag.as_str()) {
            return Err(refusal(image, tag.as_str()).into());
        }
        Ok(())
    }

    /// Whether a version may be deleted with its names.
    pub(super) fn check_version_goes(&self, image: &Image, version: &Version) -> Result<(), Stop> {
        let immutability = self.immutability(&image.name)?;
        match self.immutable_name(&immutability, version)? {
            Some(name) => Err(refusal(image, &name).into()),
            None => Ok(()),
        }
    }

    /// An immutable name of the version, or of an index that lists it, however deep.
    pub(super) fn immutable_name(
        &self,
        immutability: &Immutability,
        version: &Version,
    ) -> Result<Option<String>, Stop> {
        if immutability.is_empty() {
            return Ok(None);
        }
        let number = version.disk.as_ref().map(|disk| disk.number.clone());
        if let Some(number) = number.filter(|number| immutability.holds(number)) {
            return Ok(Some(number));
        }
        self.find_upward(version.image, &version.digest, ANCESTORS_MAX, |digest| {
            let tags = self.query().tags_of(version.image, digest)?;
            let tag = tags.into_iter().find(|tag| immutability.holds(tag.as_str()));
            Ok(tag.map(|tag| tag.as_str().to_owned()))
        })
    }

    /// Whether an image may be deleted with all it has.
    pub(super) fn check_image_goes(&self, image: &Image) -> Result<(), Stop> {
        let immutability = self.immutability(&image.name)?;
        if immutability.is_empty() {
            return Ok(());
        }
        let prefix = key::image(image.id);
        for table in [Table::Tags, Table::VersionNumbers] {
            for (key, _) in all_rows(&self.rows, table, &prefix)? {
                let name = key::read_text(&key, prefix.len())?;
                if immutability.holds(name) {
                    return Err(refusal(image, name).into());
                }
            }
        }
        Ok(())
    }

    /// Whether a repository may let go of a blob: not of one that a version needs, where anything
    /// in the repository is immutable.
    pub(super) fn check_blob_goes(&self, image: &Image, digest: &Digest) -> Result<(), Stop> {
        let key = key::image_digest(image.id, digest);
        let needed = self.rows.has(Table::BlobReferences, &key)?;
        if needed && !self.immutability(&image.name)?.is_empty() {
            return Err(Refusal::BlobNeeded(digest.clone()).into());
        }
        Ok(())
    }
}

fn refusal(image: &Image, name: &str) -> Refusal {
    Refusal::Immutable { repository: image.name.clone(), name: name.to_owned() }
}
