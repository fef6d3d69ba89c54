//! Deleting an image so that it can be restored, and the end of what was kept with it.
//!
//! The end comes in pieces, since an image may have thousands of versions and each command holds every
//! replica up for as long as it takes: the first takes name and hope away, each drops what fits into
//! its bound, and the one that finds nothing more drops the image's own rows.
//!
//! A deleted image loses its name, so that whatever asks by name finds nothing and the name can be
//! used again; its versions, tags and rights stay, and so does what they hold in storage and in the
//! accounts. It comes back only while its name is free.
//!
//! Invariant: an image has either its name's row or a row among the deleted; one that is on its way
//! out has the latter.

use shoal_content::{Digest, ImageId};

use super::{Step, Stop};
use crate::catalog::DeletedImage;
use crate::command::{Event, Refusal, Response, Subject};
use crate::key;
use crate::query::{IMAGES_COUNT, Pages, all_rows};
use crate::record::Image;
use crate::rights::Place;
use crate::table::{Fault, Read, Table};
use crate::transaction::decoded;

/// The most rows that a command which ends an image is to write; one version more may go with it.
const PURGE_ROWS_MAX: usize = 50_000;

impl<R: Read> Step<'_, R> {
    pub(super) fn live_image(&self, id: ImageId) -> Result<Image, Stop> {
        Ok(self.query().live_image(id)?.ok_or(Refusal::NotFound(Subject::Image))?)
    }

    pub(super) fn trash_image(&mut self, id: ImageId, by: String) -> Result<Response, Stop> {
        let image = self.live_image(id)?;
        self.check_image_goes(&image)?;
        self.check_image_unused(id)?;
        self.leave_name(&image)?;
        let deletion = DeletedImage { id, at: self.at, by };
        self.rows.put(Table::DeletedImages, key::deleted_image(&image.name, id), &deletion);
        self.give_up_scans(id)?;
        self.tell_tags(&image)?;
        Ok(Response::Done)
    }

    pub(super) fn restore_image(&mut self, id: ImageId) -> Result<Response, Stop> {
        let missing = Refusal::NotFound(Subject::Image);
        let mut image = self.query().image(id)?.ok_or(missing.clone())?;
        self.query().deletion(&image)?.ok_or(missing.clone())?;
        if self.query().is_purged(id)? {
            return Err(missing.into());
        }
        if self.query().image_by_name(&image.name)?.is_some() {
            return Err(Refusal::Exists(Subject::Image).into());
        }
        self.rows.remove(Table::DeletedImages, key::deleted_image(&image.name, id));
        self.rows.put(Table::ImageNames, image.name.as_str().as_bytes(), &id);
        self.change_image_count(&image, 1)?;
        image.updated_at = self.at;
        self.put_image(&image);
        self.tell_tags(&image)?;
        Ok(Response::Image(id))
    }

    pub(super) fn purge_image(
        &mut self,
        id: ImageId,
        by: String,
        rows_max: u32,
    ) -> Result<Response, Stop> {
        let mut image = self.query().image(id)?.ok_or(Refusal::NotFound(Subject::Image))?;
        if !self.query().is_purged(id)? {
            self.check_image_goes(&image)?;
            self.check_image_unused(id)?;
            if self.query().deletion(&image)?.is_none() {
                self.leave_name(&image)?;
                let deletion = DeletedImage { id, at: self.at, by };
                self.rows.put(Table::DeletedImages, key::deleted_image(&image.name, id), &deletion);
            }
            self.rows.mark(Table::PurgedImages, key::image(id));
            self.drop_all_deltas(id)?;
        }
        let most =
            usize::try_from(rows_max).map_or(PURGE_ROWS_MAX, |most| most.min(PURGE_ROWS_MAX));
        let gone = self.drop_contents(&image, most.max(1))?;
        if gone {
            self.drop_rights_at(&Place::Image(id))?;
            self.drop_image_extras(&image)?;
            self.rows.remove(Table::Images, key::image(id));
        } else {
            image.latest = self.newest_version(id)?;
            self.put_image(&image);
        }
        Ok(Response::Purged { gone })
    }

    /// Drops what an image has any number of, until so many rows were written; says whether all of
    /// that is gone. A command that has written none before drops something.
    fn drop_contents(&mut self, image: &Image, rows_max: usize) -> Result<bool, Fault> {
        let prefix = key::image(image.id);
        let mut versions = Pages::of(Table::VersionSequences, &prefix);
        while let Some(page) = versions.next_page(&self.rows)? {
            for (_, bytes) in page {
                if self.rows.len() >= rows_max {
                    return Ok(false);
                }
                // One after another: a row may be megabytes long.
                let digest: Digest = decoded(Table::VersionSequences, &bytes)?;
                let missing = Fault::Contradiction("an index names no version");
                let version = self.query().version(image.id, &digest)?.ok_or(missing)?;
                self.drop_version(&image.name, &version)?;
            }
        }
        let project = image.name.project();
        let mut links = Pages::of(Table::BlobLinks, &prefix);
        while let Some(page) = links.next_page(&self.rows)? {
            for (key, _) in page {
                if self.rows.len() >= rows_max {
                    return Ok(false);
                }
                self.unlink(image.id, &project, &key::read_digest(&key, prefix.len())?)?;
            }
        }
        let mut stars = Pages::of(Table::Stars, &prefix);
        while let Some(page) = stars.next_page(&self.rows)? {
            for (key, _) in page {
                if self.rows.len() >= rows_max {
                    return Ok(false);
                }
                self.drop_star(image.id, key::read_text(&key, prefix.len())?)?;
            }
        }
        Ok(true)
    }

    /// The image is known by its name no more, and counts no more.
    pub(super) fn leave_name(&mut self, image: &Image) -> Result<(), Fault> {
        self.rows.remove(Table::ImageNames, image.name.as_str().as_bytes());
        self.change_image_count(image, -1)
    }

    pub(super) fn change_image_count(&mut self, image: &Image, by: i8) -> Result<(), Fault> {
        let project = image.name.project();
        self.count_image(&project, by)?;
        self.count_in_audience(&project, by)?;
        let count = self.query().image_count()?;
        let count = count.checked_add_signed(by.into());
        let count = count.ok_or(Fault::Contradiction("fewer images than none"))?;
        self.rows.put(Table::Counts, IMAGES_COUNT, &count);
        Ok(())
    }

    fn tell_tags(&mut self, image: &Image) -> Result<(), Fault> {
        let prefix = key::image(image.id);
        for (key, _) in all_rows(&self.rows, Table::Tags, &prefix)? {
            let tag = key::read_text(&key, prefix.len())?.parse();
            let tag = tag.map_err(|_| Fault::Contradiction("a key names no tag"))?;
            self.events.push(Event::TagMoved { repository: image.name.clone(), tag });
        }
        Ok(())
    }

    /// What was kept beside an image that goes for good.
    pub(super) fn drop_image_extras(&mut self, image: &Image) -> Result<(), Fault> {
        let prefix = key::image(image.id);
        for (key, _) in all_rows(&self.rows, Table::Stars, &prefix)? {
            let user = key::read_text(&key, prefix.len())?.to_owned();
            self.rows.remove(Table::UserStars, key::user_star(&user, image.id));
            self.rows.remove(Table::Stars, key);
        }
        for table in
            [Table::ImageNotes, Table::ImageCounters, Table::PurgedImages, Table::ThinnedImages]
        {
            self.rows.remove(table, prefix);
        }
        self.rows.remove(Table::DeletedImages, key::deleted_image(&image.name, image.id));
        Ok(())
    }
}
