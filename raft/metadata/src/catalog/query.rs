//! Questions about what is kept beside images and versions.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use shoal_content::{
    Digest, ImageId, InstanceName, ProjectName, RepositoryName, TagName, Timestamp, UploadId,
    VersionNumber,
};

use super::{
    DeletedImage, ImageCounters, ImageNote, Instance, TagAuthors, UploadNote, VersionNote,
};
use crate::key;
use crate::query::{Query, all_rows};
use crate::record::Image;
use crate::table::{Fault, Read, Table};
use crate::transaction::{decoded, row};

impl<R: Read> Query<'_, R> {
    pub fn image_note(&self, image: ImageId) -> Result<ImageNote, Fault> {
        Ok(row(self.read, Table::ImageNotes, &key::image(image))?.unwrap_or_default())
    }

    /// Whether an image is on its way out for good (see `Command::PurgeImage`).
    pub fn is_purged(&self, image: ImageId) -> Result<bool, Fault> {
        Ok(self.read.get(Table::PurgedImages, &key::image(image))?.is_some())
    }

    /// How and when an image was deleted; `None` while it is not.
    pub fn deletion(&self, image: &Image) -> Result<Option<DeletedImage>, Fault> {
        row(self.read, Table::DeletedImages, &key::deleted_image(&image.name, image.id))
    }

    /// An image that is not deleted.
    pub fn live_image(&self, id: ImageId) -> Result<Option<Image>, Fault> {
        match self.image(id)? {
            Some(image) => Ok(self.deletion(&image)?.is_none().then_some(image)),
            None => Ok(None),
        }
    }

    /// Deleted images by name, after `after`, at most `limit`.
    pub fn deleted_images(
        &self,
        after: Option<(&RepositoryName, ImageId)>,
        limit: usize,
    ) -> Result<Vec<(Image, DeletedImage)>, Fault> {
        let from = after.map(|(name, id)| key::after(key::deleted_image(name, id)));
        let rows = self.read.scan(Table::DeletedImages, &from.unwrap_or_default(), b"", limit)?;
        rows.iter().map(|(_, bytes)| self.deleted(bytes)).collect()
    }

    /// All of a project's.
    pub fn deleted_images_of(
        &self,
        project: &ProjectName,
    ) -> Result<Vec<(Image, DeletedImage)>, Fault> {
        let mut found = Vec::new();
        for prefix in key::deleted_prefixes(project) {
            for (_, bytes) in all_rows(self.read, Table::DeletedImages, &prefix)? {
                found.push(self.deleted(&bytes)?);
            }
        }
        Ok(found)
    }

    fn deleted(&self, bytes: &[u8]) -> Result<(Image, DeletedImage), Fault> {
        let deletion: DeletedImage = decoded(Table::DeletedImages, bytes)?;
        let missing = Fault::Contradiction("a deleted image without its row");
        Ok((self.image(deletion.id)?.ok_or(missing)?, deletion))
    }

    /// The digests of an image's versions in the order of [`newest_first`], by their indexes alone: a
    /// disk's row is long.
    ///
    /// [`newest_first`]: crate::newest_first
    pub fn newest_versions(&self, image: ImageId) -> Result<Vec<Digest>, Fault> {
        let prefix = key::image(image);
        let mut numbers: BTreeMap<Digest, String> = BTreeMap::new();
        for (key, bytes) in self.rows(Table::VersionNumbers, &prefix)? {
            let number = key::read_text(&key, prefix.len())?.to_owned();
            numbers.insert(decoded(Table::VersionNumbers, &bytes)?, number);
        }
        // Those that came last stand first, and stay so among equals.
        let mut digests: Vec<Digest> = self.all(Table::VersionSequences, &prefix)?;
        digests.sort_by_cached_key(|digest| {
            Reverse(numbers.get(digest).and_then(|text| VersionNumber::parse(text)))
        });
        Ok(digests)
    }

    /// The disk version whose number the text is, with a `v` before it or without.
    pub fn digest_numbered(&self, image: ImageId, text: &str) -> Result<Option<Digest>, Fault> {
        let find = |number: &str| -> Result<Option<Digest>, Fault> {
            row(self.read, Table::VersionNumbers, &key::number(image, number))
        };
        match (find(text)?, text.strip_prefix('v')) {
            (None, Some(number)) => find(number),
            (found, _) => Ok(found),
        }
    }

    pub fn version_note(&self, image: ImageId, digest: &Digest) -> Result<VersionNote, Fault> {
        let key = key::image_digest(image, digest);
        Ok(row(self.read, Table::VersionNotes, &key)?.unwrap_or_default())
    }

    pub fn upload_note(&self, upload: UploadId) -> Result<Option<UploadNote>, Fault> {
        row(self.read, Table::UploadNotes, &key::upload(upload))
    }

    pub fn instance(&self, name: &InstanceName) -> Result<Option<Instance>, Fault> {
        row(self.read, Table::Instances, name.as_str().as_bytes())
    }

    /// By name, of those behind the text `after`, at most `limit`.
    pub fn instances(&self, after: &str, limit: usize) -> Result<Vec<Instance>, Fault> {
        self.page(Table::Instances, b"", after.as_bytes(), limit)
    }

    /// How many instances there are.
    pub fn instance_count(&self) -> Result<u64, Fault> {
        Ok(row(self.read, Table::Counts, INSTANCES_COUNT)?.unwrap_or(0))
    }

    /// Names of the instances that run a version, at most `limit`.
    pub fn instances_of(
        &self,
        image: ImageId,
        digest: &Digest,
        limit: usize,
    ) -> Result<Vec<InstanceName>, Fault> {
        let prefix = key::image_digest(image, digest);
        let rows = self.read.scan(Table::VersionInstances, &prefix, &prefix, limit)?;
        rows.iter().map(|(key, _)| instance_name(key, prefix.len())).collect()
    }

    /// Names of the instances that run any version of an image, at most `limit`.
    pub fn instances_of_image(
        &self,
        image: ImageId,
        limit: usize,
    ) -> Result<Vec<InstanceName>, Fault> {
        let prefix = key::image(image);
        let rows = self.read.scan(Table::VersionInstances, &prefix, &prefix, limit)?;
        let names = rows.iter().map(|(key, _)| instance_name(key, key::digest_end(key)?));
        names.collect()
    }

    pub fn counters(&self, image: ImageId) -> Result<ImageCounters, Fault> {
        Ok(row(self.read, Table::ImageCounters, &key::image(image))?.unwrap_or_default())
    }

    pub fn version_downloads(&self, image: ImageId, digest: &Digest) -> Result<u64, Fault> {
        let key = key::image_digest(image, digest);
        Ok(row(self.read, Table::VersionDownloads, &key)?.unwrap_or(0))
    }

    pub fn is_starred(&self, image: ImageId, user: &str) -> Result<bool, Fault> {
        Ok(self.read.get(Table::Stars, &key::star(image, user))?.is_some())
    }

    /// What somebody has starred, at most `limit`.
    pub fn stars_of(&self, user: &str, limit: usize) -> Result<Vec<ImageId>, Fault> {
        let prefix = key::user_stars(user);
        let rows = self.read.scan(Table::UserStars, &prefix, &prefix, limit)?;
        let id = |key: &[u8]| key::read_id(key, prefix.len()).map(ImageId::from_bytes);
        rows.iter().map(|(key, _)| id(key)).collect()
    }

    /// When a tag came to be, as far as that is kept.
    pub fn tag_created_at(
        &self,
        image: ImageId,
        tag: &TagName,
    ) -> Result<Option<Timestamp>, Fault> {
        row(self.read, Table::TagBirths, &key::tag(image, tag))
    }

    /// On whose behalf a tag was set, as far as that is kept.
    pub fn tag_authors(&self, image: ImageId, tag: &TagName) -> Result<TagAuthors, Fault> {
        Ok(row(self.read, Table::TagAuthors, &key::tag(image, tag))?.unwrap_or_default())
    }
}

/// The count under [`Table::Counts`] of all instances.
pub(crate) const INSTANCES_COUNT: &[u8] = b"instances";

fn instance_name(key: &[u8], skip: usize) -> Result<InstanceName, Fault> {
    let text = key::read_text(key, skip)?;
    text.parse().map_err(|_| Fault::Contradiction("a key names no instance"))
}
