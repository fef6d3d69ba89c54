//! Keeps what lists go by: how many tags and versions an image has, and its tags in the order in which they
//! were set last. With the audiences of projects (see `audience`) that is what [`Command::IndexLists`]
//! writes down in a cluster that was founded before.
//!
//! Invariants: nothing is written before that, so that the rows of such a cluster are the same on every
//! node; an image that has neither tags nor versions has no row here.
//!
//! [`Command::IndexLists`]: crate::Command::IndexLists

use std::collections::BTreeMap;

use shoal_content::{Digest, ImageId, TagName};

use super::{Step, Stop};
use crate::catalog::ImageTally;
use crate::command::Response;
use crate::key;
use crate::query::{LISTS_INDEXED_SINCE, Pages};
use crate::table::{Fault, Read, Table};
use crate::transaction::decoded;

impl<R: Read> Step<'_, R> {
    /// All of it is kept from the first command on.
    pub(super) fn begin_indexing_lists(&mut self) {
        self.rows.put(Table::Counts, LISTS_INDEXED_SINCE, &self.at);
    }

    /// A tag is set now, as the first time or again; before its other rows change. `old` is what it named.
    pub(super) fn order_tag(
        &mut self,
        image: ImageId,
        tag: &TagName,
        old: Option<&Digest>,
    ) -> Result<(), Fault> {
        if !self.query().indexes_lists()? {
            return Ok(());
        }
        match old {
            Some(old) => self.take_out_of_order(image, tag, old)?,
            None => self.change_tally(image, 1, 0)?,
        }
        self.rows.mark(Table::TagOrder, key::tag_order(image, self.at, tag));
        Ok(())
    }

    /// A tag goes; before its other rows do, and the version that it names.
    pub(super) fn forget_tag_order(
        &mut self,
        image: ImageId,
        tag: &TagName,
        digest: &Digest,
    ) -> Result<(), Fault> {
        if !self.query().indexes_lists()? {
            return Ok(());
        }
        self.take_out_of_order(image, tag, digest)?;
        self.change_tally(image, -1, 0)
    }

    fn take_out_of_order(
        &mut self,
        image: ImageId,
        tag: &TagName,
        digest: &Digest,
    ) -> Result<(), Fault> {
        let pushed_at = self.query().pushed_at(image, tag, digest)?;
        self.rows.remove(Table::TagOrder, key::tag_order(image, pushed_at, tag));
        Ok(())
    }

    /// A version comes to be (`by` is 1) or goes (-1).
    pub(super) fn tally_version(&mut self, image: ImageId, by: i8) -> Result<(), Fault> {
        match self.query().indexes_lists()? {
            true => self.change_tally(image, 0, by),
            false => Ok(()),
        }
    }

    fn change_tally(&mut self, image: ImageId, tags: i8, versions: i8) -> Result<(), Fault> {
        let old = self.query().tally(image)?.unwrap_or_default();
        let sum = |old: u64, by: i8| {
            let sum = old.checked_add_signed(by.into());
            sum.ok_or(Fault::Contradiction("fewer tags or versions than none"))
        };
        let tally =
            ImageTally { tags: sum(old.tags, tags)?, versions: sum(old.versions, versions)? };
        self.put_tally(image, tally);
        Ok(())
    }

    fn put_tally(&mut self, image: ImageId, tally: ImageTally) {
        match tally == ImageTally::default() {
            true => self.rows.remove(Table::ImageTallies, key::image(image)),
            false => self.rows.put(Table::ImageTallies, key::image(image), &tally),
        }
    }

    /// It takes as long as there are images, tags and versions; afterwards nothing needs it.
    pub(super) fn index_lists(&mut self) -> Result<Response, Stop> {
        self.begin_indexing_lists();
        self.index_audiences()?;
        for table in [Table::TagOrder, Table::ImageTallies] {
            let mut old = Pages::of(table, b"");
            while let Some(page) = old.next_page(&self.rows)? {
                for (key, _) in page {
                    self.rows.remove(table, key);
                }
            }
        }
        let mut tallies: BTreeMap<ImageId, ImageTally> = BTreeMap::new();
        let mut tags = Pages::of(Table::Tags, b"");
        while let Some(page) = tags.next_page(&self.rows)? {
            for (key, bytes) in page {
                let image = key::read_image(&key)?;
                let tag = key::read_text(&key, key::ID_BYTES)?.parse::<TagName>();
                let tag = tag.map_err(|_| Fault::Contradiction("a key names no tag"))?;
                let digest: Digest = decoded(Table::Tags, &bytes)?;
                let pushed_at = self.query().pushed_at(image, &tag, &digest)?;
                self.rows.mark(Table::TagOrder, key::tag_order(image, pushed_at, &tag));
                tallies.entry(image).or_default().tags += 1;
            }
        }
        let mut versions = Pages::of(Table::VersionSequences, b"");
        while let Some(page) = versions.next_page(&self.rows)? {
            for (key, _) in page {
                tallies.entry(key::read_image(&key)?).or_default().versions += 1;
            }
        }
        for (image, tally) in tallies {
            self.put_tally(image, tally);
        }
        Ok(Response::Done)
    }
}
