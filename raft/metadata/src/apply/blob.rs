//! Blobs: once in storage, linked to every repository that holds them.
//!
//! Invariant: a blob's row lives exactly while something holds it, and `BlobHolds` counts what
//! does: one for each repository's link and one for each version that refers to it. The row holds
//! one on its object and one on its recipe.

use shoal_content::{Digest, ImageId, ObjectKey, RepositoryName, UploadId};

use super::image::Place;
use super::{Step, Stop};
use crate::command::{Event, Refusal, Response, Subject};
use crate::key;
use crate::record::{Blob, ImageKind, UploadPurpose};
use crate::table::{Fault, Read, Table};
use crate::transaction::row;

impl<R: Read> Step<'_, R> {
    pub(super) fn commit_blob(
        &mut self,
        upload: Option<UploadId>,
        blob: Blob,
        place: Place,
    ) -> Result<Response, Stop> {
        let session = match upload {
            Some(id) => Some(self.blob_session(id, &place.repository)?),
            None => None,
        };
        let old = self.query().blob(&blob.digest)?;
        self.check_place(&place, ImageKind::Container)?;
        if old.is_none() {
            self.check_object(&blob.object)?;
            self.check_object(&ObjectKey::Recipe(blob.recipe))?;
        }

        if let Some(session) = session {
            self.remove_session(&session);
            self.events.push(Event::UploadChanged(session.id));
        }
        let image = self.take_place(place, ImageKind::Container)?;
        let stored = match old {
            Some(old) => old.object,
            None => {
                self.rows.put(Table::Blobs, key::digest(&blob.digest), &blob);
                self.hold_object(&blob.object)?;
                self.hold_object(&ObjectKey::Recipe(blob.recipe))?;
                blob.object
            }
        };
        self.link(image, &blob.digest)?;
        Ok(Response::Blob { stored })
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
        let image = self.take_place(place, ImageKind::Container)?;
        self.link(image, digest)?;
        Ok(Response::Blob { stored: blob.object })
    }

    /// Versions that refer to the blob keep it, though the repository no longer shows it.
    pub(super) fn unlink_blob(
        &mut self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Response, Stop> {
        let image = self.image_named(repository)?.id;
        if !self.query().blob_in(image, digest)? {
            return Err(Refusal::NotFound(Subject::Blob).into());
        }
        self.unlink(image, digest)?;
        Ok(Response::Done)
    }

    fn link(&mut self, image: ImageId, digest: &Digest) -> Result<(), Fault> {
        let key = key::image_digest(image, digest);
        if !self.rows.has(Table::BlobLinks, &key)? {
            self.rows.mark(Table::BlobLinks, key);
            self.hold_blob(digest)?;
        }
        Ok(())
    }

    /// Takes a link that is there away.
    pub(super) fn unlink(&mut self, image: ImageId, digest: &Digest) -> Result<(), Fault> {
        self.rows.remove(Table::BlobLinks, key::image_digest(image, digest));
        self.release_blob(digest)
    }

    /// A version of `image` begins to refer to the blob.
    pub(super) fn refer(&mut self, image: ImageId, digest: &Digest) -> Result<(), Fault> {
        let key = key::image_digest(image, digest);
        let count = row::<u64>(&self.rows, Table::BlobReferences, &key)?.unwrap_or(0) + 1;
        self.rows.put(Table::BlobReferences, key, &count);
        self.hold_blob(digest)
    }

    /// A version of `image` ceases to refer to the blob. With the last one the repository lets go
    /// of the blob altogether: there is no other way for its users to free it.
    pub(super) fn cease(&mut self, image: ImageId, digest: &Digest) -> Result<(), Fault> {
        let key = key::image_digest(image, digest);
        let count = row::<u64>(&self.rows, Table::BlobReferences, &key)?.unwrap_or(0);
        match count {
            0 => return Err(Fault::Contradiction("a referenced blob without a reference")),
            1 => {
                self.rows.remove(Table::BlobReferences, key.clone());
                if self.rows.has(Table::BlobLinks, &key)? {
                    self.unlink(image, digest)?;
                }
            }
            more => self.rows.put(Table::BlobReferences, key, &(more - 1)),
        }
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
