//! Images and their tags.
//!
//! Invariants: a name has one image and an image one name; a tag names a version that is there,
//! and the index from versions to tags agrees with it.

use shoal_content::{Digest, ImageId, RepositoryName, TagName};

use super::{Step, Stop};
use crate::catalog::TagAuthors;
use crate::command::{Event, Refusal, Response, Subject};
use crate::key;
use crate::query::Pages;
use crate::record::{Image, ImageKind, ImageProfile};
use crate::table::{Fault, Read, Table};
use crate::transaction::decoded;

/// A repository that something is pushed to, with what its row needs where this makes it.
pub(super) struct Place {
    pub repository: RepositoryName,
    pub image: ImageId,
    pub owner: String,
}

impl<R: Read> Step<'_, R> {
    pub(super) fn image_named(&self, name: &RepositoryName) -> Result<Image, Stop> {
        Ok(self.query().image_by_name(name)?.ok_or(Refusal::NotFound(Subject::Image))?)
    }

    pub(super) fn create_image(
        &mut self,
        id: ImageId,
        name: RepositoryName,
        kind: ImageKind,
        profile: ImageProfile,
        owner: String,
    ) -> Result<Response, Stop> {
        let taken = self.query().image_by_name(&name)?.is_some();
        if taken || self.query().image(id)?.is_some() {
            return Err(Refusal::Exists(Subject::Image).into());
        }
        self.add_image(id, name, kind, profile, owner)?;
        Ok(Response::Image(id))
    }

    fn add_image(
        &mut self,
        id: ImageId,
        name: RepositoryName,
        kind: ImageKind,
        profile: ImageProfile,
        owner: String,
    ) -> Result<(), Stop> {
        self.enter_project(&name, &owner)?;
        Ok(self.put_new_image(id, name, kind, profile, owner)?)
    }

    /// In a project that is there, whoever may push to it.
    pub(super) fn put_new_image(
        &mut self,
        id: ImageId,
        name: RepositoryName,
        kind: ImageKind,
        profile: ImageProfile,
        owner: String,
    ) -> Result<(), Fault> {
        self.rows.put(Table::ImageNames, name.as_str().as_bytes(), &id);
        let image = Image {
            id,
            name,
            kind,
            profile,
            owner,
            created_at: self.at,
            updated_at: self.at,
            next_sequence: 1,
            latest: None,
        };
        self.put_image(&image);
        self.change_image_count(&image, 1)
    }

    pub(super) fn put_image(&mut self, image: &Image) {
        self.rows.put(Table::Images, key::image(image.id), image);
    }

    /// Whether something of `kind` can be pushed there; the image, where it is there already.
    pub(super) fn check_place(
        &self,
        place: &Place,
        kind: ImageKind,
    ) -> Result<Option<Image>, Stop> {
        match self.query().image_by_name(&place.repository)? {
            Some(image) if image.kind != kind => Err(Refusal::WrongKind(image.kind).into()),
            Some(image) => Ok(Some(image)),
            None if self.query().image(place.image)?.is_some() => {
                Err(Refusal::Exists(Subject::Image).into())
            }
            None => Ok(None),
        }
    }

    /// The image of that name, made where it is missing. Checked before.
    pub(super) fn take_place(&mut self, place: Place, kind: ImageKind) -> Result<ImageId, Stop> {
        if let Some(image) = self.query().image_by_name(&place.repository)? {
            return Ok(image.id);
        }
        let Place { repository, image, owner } = place;
        self.add_image(image, repository, kind, ImageProfile::default(), owner)?;
        Ok(image)
    }

    pub(super) fn update_image(
        &mut self,
        id: ImageId,
        profile: ImageProfile,
    ) -> Result<Response, Stop> {
        let mut image = self.live_image(id)?;
        image.profile = profile;
        image.updated_at = self.at;
        self.put_image(&image);
        Ok(Response::Done)
    }

    /// For good, whether it was deleted before or not. Upload sessions to it stay until they expire:
    /// they find it missing.
    pub(super) fn delete_image(&mut self, id: ImageId) -> Result<Response, Stop> {
        let image = self.query().image(id)?.ok_or(Refusal::NotFound(Subject::Image))?;
        self.check_image_goes(&image)?;
        self.check_image_unused(id)?;
        self.drop_all_deltas(id)?;
        self.drop_all_versions(&image)?;
        let prefix = key::image(id);
        let project = image.name.project();
        let mut links = Pages::of(Table::BlobLinks, &prefix);
        while let Some(page) = links.next_page(&self.rows)? {
            for (key, _) in page {
                self.unlink(id, &project, &key::read_digest(&key, prefix.len())?)?;
            }
        }
        self.drop_rights_at(&crate::rights::Place::Image(id))?;
        if self.query().deletion(&image)?.is_none() {
            self.leave_name(&image)?;
        }
        self.drop_image_extras(&image)?;
        self.rows.remove(Table::Images, prefix);
        Ok(Response::Done)
    }

    /// One after another: a row may be megabytes long, and an image may have any number of them.
    fn drop_all_versions(&mut self, image: &Image) -> Result<(), Fault> {
        let mut pages = Pages::of(Table::VersionSequences, &key::image(image.id));
        while let Some(page) = pages.next_page(&self.rows)? {
            for (_, bytes) in page {
                let digest: Digest = decoded(Table::VersionSequences, &bytes)?;
                let missing = Fault::Contradiction("an index names no version");
                let version = self.query().version(image.id, &digest)?.ok_or(missing)?;
                self.drop_version(&image.name, &version)?;
            }
        }
        Ok(())
    }

    pub(super) fn put_tag(
        &mut self,
        repository: &RepositoryName,
        tag: TagName,
        digest: &Digest,
    ) -> Result<Response, Stop> {
        let mut image = self.image_named(repository)?;
        if self.query().version(image.id, digest)?.is_none() {
            return Err(Refusal::NotFound(Subject::Version).into());
        }
        self.check_moves(&image, std::slice::from_ref(&tag), digest)?;
        self.check_meanings(&image, std::slice::from_ref(&tag), digest)?;
        self.follow_latest(&mut image, &tag, digest)?;
        self.move_tag(&image, tag, digest)?;
        image.updated_at = self.at;
        self.put_image(&image);
        Ok(Response::Done)
    }

    pub(super) fn move_tag(
        &mut self,
        image: &Image,
        tag: TagName,
        digest: &Digest,
    ) -> Result<(), Fault> {
        let old = self.query().tag(image.id, &tag)?;
        self.order_tag(image.id, &tag, old.as_ref())?;
        // Pushed again is as good as new.
        self.rows.put(Table::TagPushes, key::tag(image.id, &tag), &self.at);
        self.note_authors(image.id, &tag, old.is_none())?;
        if old.as_ref() == Some(digest) {
            return Ok(());
        }
        if old.is_none() && self.keeps_catalog()? {
            self.rows.put(Table::TagBirths, key::tag(image.id, &tag), &self.at);
        }
        if let Some(old) = old {
            self.rows.remove(Table::VersionTags, key::version_tag(image.id, &old, &tag));
            self.mark_untagged(image.id, &old, self.at)?;
        }
        self.rows.remove(Table::UntaggedVersions, key::image_digest(image.id, digest));
        self.rows.put(Table::Tags, key::tag(image.id, &tag), digest);
        self.rows.mark(Table::VersionTags, key::version_tag(image.id, digest, &tag));
        self.events.push(Event::TagMoved { repository: image.name.clone(), tag });
        Ok(())
    }

    fn note_authors(&mut self, image: ImageId, tag: &TagName, is_new: bool) -> Result<(), Fault> {
        if !self.keeps_catalog()? {
            return Ok(());
        }
        let created_by = match is_new {
            true => self.who.clone(),
            false => self.query().tag_authors(image, tag)?.created_by,
        };
        let authors = TagAuthors { created_by, updated_by: self.who.clone() };
        match authors == TagAuthors::default() {
            true => self.rows.remove(Table::TagAuthors, key::tag(image, tag)),
            false => self.rows.put(Table::TagAuthors, key::tag(image, tag), &authors),
        }
        Ok(())
    }

    pub(super) fn delete_tag(
        &mut self,
        repository: &RepositoryName,
        tag: TagName,
    ) -> Result<Response, Stop> {
        let image = self.image_named(repository)?;
        let old = self.query().tag(image.id, &tag)?.ok_or(Refusal::NotFound(Subject::Tag))?;
        self.check_tag_goes(&image, &tag)?;
        self.drop_tag_at(&image, &tag, &old, self.at)?;
        Ok(Response::Done)
    }

    pub(super) fn drop_tag(
        &mut self,
        image: ImageId,
        repository: &RepositoryName,
        tag: TagName,
        digest: &Digest,
    ) -> Result<(), Fault> {
        self.forget_tag_order(image, &tag, digest)?;
        for table in
            [Table::Tags, Table::TagPushes, Table::TagPulls, Table::TagBirths, Table::TagAuthors]
        {
            self.rows.remove(table, key::tag(image, &tag));
        }
        self.rows.remove(Table::VersionTags, key::version_tag(image, digest, &tag));
        self.events.push(Event::TagMoved { repository: repository.clone(), tag });
        Ok(())
    }
}
