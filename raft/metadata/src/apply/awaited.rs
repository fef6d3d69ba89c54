//! Versions whose content comes after them: manifests of other registries that are cached here.
//!
//! A pull asks for the manifest first and for some of what it refers to then. So such a version
//! refers to what is there, and awaits the rest; what comes is referred to in the command that
//! brings it. A version that awaits something is a version like others in all else.
//!
//! Invariants: a version's references are there, whatever it awaits; `AwaitedContents` and
//! `AwaitingVersions` have the same pairs; what a version awaits is not in its references.

use shoal_content::{Digest, ImageId, ProjectName};

use super::manifest::{check_bounds, image_bytes};
use super::{Step, Stop};
use crate::command::{PutManifest, Refusal, Response, Subject};
use crate::key;
use crate::query::all_rows;
use crate::record::{ImageKind, ImageProfile, Reference, Version};
use crate::table::{Fault, Read, Table};
use crate::transaction::{decoded, row};

impl<R: Read> Step<'_, R> {
    pub(super) fn cache_manifest(&mut self, mut put: PutManifest) -> Result<Response, Stop> {
        check_bounds(&put)?;
        if put.kind != ImageKind::Container || put.disk.is_some() || put.upload.is_some() {
            return Err(Refusal::WrongKind(ImageKind::Container).into());
        }
        let project = put.repository.project();
        self.query().project(&project)?.ok_or(Refusal::NotFound(Subject::Project))?;
        let image = self.query().image_by_name(&put.repository)?;
        if let Some(image) = &image
            && image.kind != ImageKind::Container
        {
            return Err(Refusal::WrongKind(image.kind).into());
        }
        let old = match &image {
            Some(image) => self.query().version(image.id, &put.digest)?,
            None => None,
        };
        let taken = self.rows.has(Table::VersionIds, &key::version(put.version))?;
        if old.is_none() && taken {
            return Err(Refusal::Exists(Subject::Version).into());
        }
        match &image {
            Some(image) => self.check_moves(image, &put.tags, &put.digest)?,
            None if self.query().image(put.image)?.is_some() => {
                return Err(Refusal::Exists(Subject::Image).into());
            }
            None => {}
        }
        let awaited = match &image {
            _ if old.is_some() => Vec::new(),
            Some(image) => self.take_awaited(image.id, &mut put)?,
            None => std::mem::take(&mut put.references).into_iter().collect(),
        };
        if old.is_none() {
            let coming = awaited.iter().fold(0, |sum: u64, one| match one {
                Reference::Blob { size, .. } => sum.saturating_add(*size),
                Reference::Manifest { .. } => sum,
            });
            let bytes = image_bytes(&put).saturating_add(coming);
            self.check_image_bytes(&project, &put.owner, bytes)?;
        }

        if self.who.is_empty() {
            self.who.clone_from(&put.owner);
        }
        let id = match &image {
            Some(image) => image.id,
            None => {
                let (name, owner) = (put.repository.clone(), put.owner.clone());
                let kind = ImageKind::Container;
                self.put_new_image(put.image, name, kind, ImageProfile::default(), owner)?;
                put.image
            }
        };
        let missing = Fault::Contradiction("an image just taken is not there");
        let mut image = self.query().image(id)?.ok_or(missing)?;
        let (tags, digest) = (std::mem::take(&mut put.tags), put.digest.clone());
        let (version, created) = match old {
            Some(old) => (old, false),
            None => (self.add_version(&mut image, put)?, true),
        };
        for reference in &awaited {
            let content = reference.digest();
            let key = key::awaited_content(id, content, &digest);
            self.rows.put(Table::AwaitedContents, key, reference);
            let key = key::awaiting_version(id, &digest, content);
            self.rows.mark(Table::AwaitingVersions, key);
        }
        for tag in tags {
            self.move_tag(&image, tag, &digest)?;
        }
        image.updated_at = self.at;
        self.put_image(&image);
        Ok(Response::Version { id: version.id, sequence: version.sequence, created })
    }

    /// Takes what is not there out of the references. A digest that is named with two sizes, or
    /// with another than it has, can only be a mistake.
    fn take_awaited(&self, image: ImageId, put: &mut PutManifest) -> Result<Vec<Reference>, Stop> {
        let mut awaited = Vec::new();
        for reference in std::mem::take(&mut put.references) {
            match self.has_reference(image, &reference)? {
                Some(true) => {
                    put.references.insert(reference);
                }
                Some(false) => {
                    return Err(Refusal::MissingReference(reference.digest().clone()).into());
                }
                None => awaited.push(reference),
            }
        }
        Ok(awaited)
    }

    /// The repository has this blob or manifest now: versions that awaited it refer to it. One that
    /// said another size goes on waiting, for what never comes.
    pub(super) fn arrive(
        &mut self,
        image: ImageId,
        project: &ProjectName,
        content: &Digest,
    ) -> Result<(), Fault> {
        let prefix = key::image_digest(image, content);
        for (key, bytes) in all_rows(&self.rows, Table::AwaitedContents, &prefix)? {
            let reference: Reference = decoded(Table::AwaitedContents, &bytes)?;
            if self.has_reference(image, &reference)? != Some(true) {
                continue;
            }
            let digest = key::read_digest(&key, prefix.len())?;
            let row_key = key::image_digest(image, &digest);
            let missing = Fault::Contradiction("something is awaited by no version");
            let mut version: Version =
                row(&self.rows, Table::Versions, &row_key)?.ok_or(missing)?;
            self.rows.remove(Table::AwaitedContents, key);
            self.rows
                .remove(Table::AwaitingVersions, key::awaiting_version(image, &digest, content));
            self.hold_reference(image, project, &digest, &reference)?;
            version.references.insert(reference);
            self.rows.put(Table::Versions, row_key, &version);
        }
        Ok(())
    }

    /// The version goes.
    pub(super) fn await_no_more(&mut self, image: ImageId, version: &Digest) -> Result<(), Fault> {
        let prefix = key::image_digest(image, version);
        for (key, _) in all_rows(&self.rows, Table::AwaitingVersions, &prefix)? {
            let content = key::read_digest(&key, prefix.len())?;
            self.rows.remove(Table::AwaitingVersions, key);
            self.rows
                .remove(Table::AwaitedContents, key::awaited_content(image, &content, version));
        }
        Ok(())
    }
}
