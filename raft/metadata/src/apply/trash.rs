//! Deleting an image so that it can be restored, and the end of what was kept with it.
//!
//! A deleted image loses its name, so that whatever asks by name finds nothing and the name can be
//! used again; its versions, tags and rights stay, and so does what they hold in storage and in the
//! accounts. It comes back only while its name is free.
//!
//! Invariant: an image has either its name's row or a row among the deleted.

use shoal_content::ImageId;

use super::{Step, Stop};
use crate::catalog::DeletedImage;
use crate::command::{Event, Refusal, Response, Subject};
use crate::key;
use crate::query::{IMAGES_COUNT, all_rows};
use crate::record::Image;
use crate::table::{Fault, Read, Table};

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
        self.tell_tags(&image)?;
        Ok(Response::Done)
    }

    pub(super) fn restore_image(&mut self, id: ImageId) -> Result<Response, Stop> {
        let missing = Refusal::NotFound(Subject::Image);
        let mut image = self.query().image(id)?.ok_or(missing.clone())?;
        self.query().deletion(&image)?.ok_or(missing)?;
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

    /// The image is known by its name no more, and counts no more.
    pub(super) fn leave_name(&mut self, image: &Image) -> Result<(), Fault> {
        self.rows.remove(Table::ImageNames, image.name.as_str().as_bytes());
        self.change_image_count(image, -1)
    }

    pub(super) fn change_image_count(&mut self, image: &Image, by: i8) -> Result<(), Fault> {
        self.count_image(&image.name.project(), by)?;
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
        for table in [Table::ImageNotes, Table::ImageCounters] {
            self.rows.remove(table, prefix);
        }
        self.rows.remove(Table::DeletedImages, key::deleted_image(&image.name, image.id));
        Ok(())
    }
}
