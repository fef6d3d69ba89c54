//! Blobs: once in storage, linked to every repository that holds them.
//!
//! Invariant: a blob's row lives exactly while something holds it, and `BlobHolds` counts what
//! does: one for each repository's link and one for each version that refers to it. The row holds
//! one on its object and one on its recipe. `LooseBlobs` has exactly the links to which no version
//! of the same repository refers, with the time since when: pushes link before they refer, and what
//! a deleted version leaves may be pushed again in a moment.

use std::collections::BTreeSet;

use shoal_content::{
    Digest, ImageId, ObjectKey, ProjectName, RecipeId, RepositoryName, Timestamp, UploadId,
};

use super::image::Place;
use super::{Step, Stop};
use crate::command::{Event, Refusal, Response, Subject};
use crate::key;
use crate::quota::Content;
use crate::record::{Blob, ImageKind, UploadPurpose};
use crate::table::{Fault, Read, Table};
use crate::transaction::row;

/// The most links one command of collection names.
const LOOSE_LINKS_MAX: usize = 10_000;

impl<R: Read> Step<'_, R> {
    pub(super) fn commit_blob(
        &mut self,
        upload: Option<UploadId>,
        blob: Blob,
        place: Place,
    ) -> Result<Response, Stop> {
        let old = self.query().blob(&blob.digest)?;
        let session = match upload.map(|id| self.blob_session(id, &place.repository)) {
            // Closed by another request with the same object: the client sent it twice.
            Some(Err(Stop::Refused(_))) if self.is_committed(&blob, &place.repository)? => {
                return Ok(Response::Blob { stored: blob.object });
            }
            session => session.transpose()?,
        };
        self.check_place(&place, ImageKind::Container)?;
        if old.is_none() {
            self.check_object(&blob.object)?;
            self.check_object(&ObjectKey::Recipe(blob.recipe))?;
        }

        let project = place.repository.project();
        self.check_image_bytes(&project, &place.owner, blob.size)?;
        if let Some(session) = session {
            self.remove_session(&session)?;
            self.events.push(Event::UploadChanged(session.id));
        }
        let image = self.take_place(place, ImageKind::Container)?;
        let (digest, size) = (blob.digest.clone(), blob.size);
        let stored = match old {
            Some(old) => old.object,
            None => {
                self.rows.put(Table::Blobs, key::digest(&blob.digest), &blob);
                self.hold_object(&blob.object)?;
                self.hold_object(&ObjectKey::Recipe(blob.recipe))?;
                blob.object
            }
        };
        self.link(image, &project, &digest, size)?;
        Ok(Response::Blob { stored })
    }

    fn is_committed(&self, blob: &Blob, repository: &RepositoryName) -> Result<bool, Fault> {
        let query = self.query();
        let same = query.blob(&blob.digest)?.is_some_and(|there| there.object == blob.object);
        match query.image_by_name(repository)? {
            Some(image) if same => query.blob_in(image.id, &blob.digest),
            _ => Ok(false),
        }
    }

    /// A blob that was healed already, or stored anew, stays as it is.
    pub(super) fn heal_blob(
        &mut self,
        digest: &Digest,
        missing: &ObjectKey,
        object: ObjectKey,
        recipe: RecipeId,
    ) -> Result<Response, Stop> {
        let old = self.query().blob(digest)?.ok_or(Refusal::NotFound(Subject::Blob))?;
        if old.object != *missing {
            return Ok(Response::Blob { stored: old.object });
        }
        self.check_object(&object)?;
        self.check_object(&ObjectKey::Recipe(recipe))?;
        let healed = Blob { object, recipe, ..old.clone() };
        self.rows.put(Table::Blobs, key::digest(digest), &healed);
        self.hold_object(&object)?;
        self.hold_object(&ObjectKey::Recipe(recipe))?;
        self.release_object(&old.object)?;
        self.release_object(&ObjectKey::Recipe(old.recipe))?;
        Ok(Response::Blob { stored: object })
    }

    fn blob_session(
        &self,
        id: UploadId,
        wanted: &RepositoryName,
    ) -> Result<crate::record::Upload, Stop> {
        let upload = self.query().upload(id)?.ok_or(Refusal::NotFound(Subject::Upload))?;
        match &upload.purpose {
            UploadPurpose::Blob { repository, .. } if repository == wanted => Ok(upload),
            _ => Err(Refusal::NotFound(Subject::Upload).into()),
        }
    }

    pub(super) fn mount_blob(
        &mut self,
        from: Option<&RepositoryName>,
        place: Place,
        digest: &Digest,
    ) -> Result<Response, Stop> {
        let blob = self.query().blob(digest)?.ok_or(Refusal::NotFound(Subject::Blob))?;
        if let Some(from) = from {
            let image = self.image_named(from)?;
            if !self.query().blob_in(image.id, digest)? {
                return Err(Refusal::NotFound(Subject::Blob).into());
            }
        }
        self.check_place(&place, ImageKind::Container)?;
        let project = place.repository.project();
        self.check_image_bytes(&project, &place.owner, blob.size)?;
        let image = self.take_place(place, ImageKind::Container)?;
        self.link(image, &project, digest, blob.size)?;
        Ok(Response::Blob { stored: blob.object })
    }

    /// Versions that refer to the blob keep it, though the repository no longer shows it.
    pub(super) fn unlink_blob(
        &mut self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Response, Stop> {
        let image = self.image_named(repository)?;
        if !self.query().blob_in(image.id, digest)? {
            return Err(Refusal::NotFound(Subject::Blob).into());
        }
        self.check_blob_goes(&image, digest)?;
        self.unlink(image.id, &repository.project(), digest)?;
        Ok(Response::Done)
    }

    fn link(
        &mut self,
        image: ImageId,
        project: &ProjectName,
        digest: &Digest,
        size: u64,
    ) -> Result<(), Fault> {
        let key = key::image_digest(image, digest);
        if !self.rows.has(Table::BlobReferences, &key)? {
            // Pushed again is as good as new.
            self.rows.put(Table::LooseBlobs, key.clone(), &self.at);
        }
        if !self.rows.has(Table::BlobLinks, &key)? {
            self.rows.mark(Table::BlobLinks, key);
            self.note_holder(image, project, digest)?;
            self.hold_content(project, &Content::Digest(digest.clone()), size)?;
            self.hold_blob(digest)?;
        }
        self.arrive(image, project, digest)
    }

    /// Takes a link that is there away.
    pub(super) fn unlink(
        &mut self,
        image: ImageId,
        project: &ProjectName,
        digest: &Digest,
    ) -> Result<(), Fault> {
        let key = key::image_digest(image, digest);
        self.rows.remove(Table::BlobLinks, key.clone());
        self.rows.remove(Table::LooseBlobs, key);
        self.rows.remove(Table::BlobHolders, key::blob_holder(digest, project, image));
        self.release_content(project, &Content::Digest(digest.clone()))?;
        self.release_blob(digest)
    }

    pub(super) fn unlink_loose(
        &mut self,
        links: &BTreeSet<(ImageId, Digest)>,
        before: Timestamp,
    ) -> Result<Response, Stop> {
        if links.len() > LOOSE_LINKS_MAX {
            return Err(Refusal::Limit(format!("{LOOSE_LINKS_MAX} links at once")).into());
        }
        for (image, digest) in links {
            let key = key::image_digest(*image, digest);
            let since: Option<Timestamp> = row(&self.rows, Table::LooseBlobs, &key)?;
            if since.is_some_and(|since| since < before) {
                let missing = Fault::Contradiction("a link of no image");
                let project = self.query().image(*image)?.ok_or(missing)?.name.project();
                self.unlink(*image, &project, digest)?;
            }
        }
        Ok(Response::Done)
    }

    /// A version of `image` begins to refer to the blob.
    pub(super) fn refer(
        &mut self,
        image: ImageId,
        project: &ProjectName,
        digest: &Digest,
        size: u64,
    ) -> Result<(), Fault> {
        let key = key::image_digest(image, digest);
        let count = row::<u64>(&self.rows, Table::BlobReferences, &key)?.unwrap_or(0) + 1;
        self.rows.remove(Table::LooseBlobs, key.clone());
        self.rows.put(Table::BlobReferences, key, &count);
        self.hold_content(project, &Content::Digest(digest.clone()), size)?;
        self.hold_blob(digest)
    }

    /// A version of `image` ceases to refer to the blob. With the last one the link is loose:
    /// collection lets go of it, since there is no other way for its users to free it.
    pub(super) fn cease(
        &mut self,
        image: ImageId,
        project: &ProjectName,
        digest: &Digest,
    ) -> Result<(), Fault> {
        let key = key::image_digest(image, digest);
        let count = row::<u64>(&self.rows, Table::BlobReferences, &key)?.unwrap_or(0);
        match count {
            0 => return Err(Fault::Contradiction("a referenced blob without a reference")),
            1 => {
                self.rows.remove(Table::BlobReferences, key.clone());
                if self.rows.has(Table::BlobLinks, &key)? {
                    self.rows.put(Table::LooseBlobs, key, &self.at);
                }
            }
            more => self.rows.put(Table::BlobReferences, key, &(more - 1)),
        }
        self.release_content(project, &Content::Digest(digest.clone()))?;
        self.release_blob(digest)
    }

    fn hold_blob(&mut self, digest: &Digest) -> Result<(), Fault> {
        let key = key::digest(digest);
        let holds = row::<u64>(&self.rows, Table::BlobHolds, &key)?.unwrap_or(0);
        self.rows.put(Table::BlobHolds, key, &(holds + 1));
        Ok(())
    }

    fn release_blob(&mut self, digest: &Digest) -> Result<(), Fault> {
        let key = key::digest(digest);
        let holds = row::<u64>(&self.rows, Table::BlobHolds, &key)?.unwrap_or(0);
        if holds > 1 {
            self.rows.put(Table::BlobHolds, key, &(holds - 1));
            return Ok(());
        }
        let missing = Fault::Contradiction("a held blob has no row");
        let blob = self.query().blob(digest)?.ok_or(missing)?;
        self.rows.remove(Table::BlobHolds, key.clone());
        self.rows.remove(Table::Blobs, key);
        self.release_object(&blob.object)?;
        self.release_object(&ObjectKey::Recipe(blob.recipe))
    }
}
