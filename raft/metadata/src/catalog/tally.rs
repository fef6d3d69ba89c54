//! Pages of an image's tags and versions, and how many there are, without a look at all of them.
//!
//! Each costs what is on it, and a look at the key of each row before it. In a cluster that does not keep
//! what this goes by (see [`Query::indexes_lists`]) there is no tally.

use serde::{Deserialize, Serialize};
use shoal_content::{Digest, ImageId, TagName};

use crate::key;
use crate::query::{Pages, Query, SCAN_ROWS};
use crate::table::{Fault, Read, Rows, Table};
use crate::transaction::{decoded, row};

/// How much an image has of what lists show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageTally {
    pub tags: u64,
    pub versions: u64,
}

impl<R: Read> Query<'_, R> {
    /// `None` where that is not kept.
    pub fn tally(&self, image: ImageId) -> Result<Option<ImageTally>, Fault> {
        if !self.indexes_lists()? {
            return Ok(None);
        }
        let tally = row(self.read, Table::ImageTallies, &key::image(image))?;
        Ok(Some(tally.unwrap_or_default()))
    }

    /// An image's tags, those that were set last first, and of those of one moment by name: at most
    /// `limit` of those behind the first `skip`. Where that order is not kept, it costs all tags; of more
    /// than `all_max`, those are left out then whose names come last.
    pub fn tags_by_push(
        &self,
        image: ImageId,
        skip: usize,
        limit: usize,
        all_max: usize,
    ) -> Result<Vec<(TagName, Digest)>, Fault> {
        if !self.indexes_lists()? {
            let all = self.all_tags_by_push(image, all_max)?;
            return Ok(all.into_iter().skip(skip).take(limit).collect());
        }
        let prefix = key::image(image);
        let rows = self.part(Table::TagOrder, &prefix, &prefix, skip, limit)?;
        rows.iter()
            .map(|(key, _)| {
                let tag = key::read_text(key, prefix.len() + key::TIME_BYTES)?.parse::<TagName>();
                let tag = tag.map_err(|_| Fault::Contradiction("a key names no tag"))?;
                let digest = self.tag(image, &tag)?;
                Ok((tag, digest.ok_or(Fault::Contradiction("an index names no tag"))?))
            })
            .collect()
    }

    /// An image's tags by name, of those behind `after`: at most `limit` of those behind the first `skip`.
    pub fn tags_by_name(
        &self,
        image: ImageId,
        after: Option<&TagName>,
        skip: usize,
        limit: usize,
    ) -> Result<Vec<(TagName, Digest)>, Fault> {
        let prefix = key::image(image);
        let from = after.map(|after| key::after(key::tag(image, after)));
        let from = from.as_deref().unwrap_or(&prefix);
        let rows = self.part(Table::Tags, from, &prefix, skip, limit)?;
        rows.iter()
            .map(|(key, bytes)| {
                let tag = key::read_text(key, prefix.len())?.parse::<TagName>();
                let tag = tag.map_err(|_| Fault::Contradiction("a key names no tag"))?;
                Ok((tag, decoded(Table::Tags, bytes)?))
            })
            .collect()
    }

    /// Digests of an image's versions, the one that came last first: at most `limit` of those behind the
    /// first `skip`.
    pub fn versions_by_sequence(
        &self,
        image: ImageId,
        skip: usize,
        limit: usize,
    ) -> Result<Vec<Digest>, Fault> {
        let prefix = key::image(image);
        let rows = self.part(Table::VersionSequences, &prefix, &prefix, skip, limit)?;
        rows.iter().map(|(_, bytes)| decoded(Table::VersionSequences, bytes)).collect()
    }

    /// Gives the digests of an image's versions to `take`, the one that came last first.
    ///
    /// # Errors
    /// Where the rows cannot be read, and those of `take`.
    pub fn each_version(
        &self,
        image: ImageId,
        mut take: impl FnMut(Digest) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut pages = Pages::of(Table::VersionSequences, &key::image(image));
        while let Some(page) = pages.next_page(self.read)? {
            for (_, bytes) in page {
                take(decoded(Table::VersionSequences, &bytes)?)?;
            }
        }
        Ok(())
    }

    /// Rows under a prefix, taken in bounded scans.
    fn part(
        &self,
        table: Table,
        from: &[u8],
        prefix: &[u8],
        mut skip: usize,
        limit: usize,
    ) -> Result<Rows, Fault> {
        let (mut rows, mut from) = (Rows::new(), from.to_vec());
        while rows.len() < limit {
            let wanted = skip.saturating_add(limit - rows.len()).min(SCAN_ROWS);
            let mut page = self.read.scan(table, &from, prefix, wanted)?;
            let ended = page.len() < wanted;
            if let Some((last, _)) = page.last() {
                from = key::after(last.clone());
            }
            let passed = skip.min(page.len());
            page.drain(..passed);
            skip -= passed;
            rows.extend(page);
            if ended {
                break;
            }
        }
        Ok(rows)
    }
}
