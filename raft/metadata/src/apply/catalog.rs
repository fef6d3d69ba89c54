//! What is kept beside images, versions and uploads: notes, deprecations, counters; and which
//! version of a disk is the latest.
//!
//! Invariant: a disk image's latest version is the one that its tag `latest` names, since both move
//! in one command. Somebody may delete that tag: then the version stays the latest without it until
//! another one is published, or it goes; with that the tag is there again.

use std::collections::BTreeMap;

use shoal_content::{AccountName, Digest, ImageId, NodeId, TagName, Timestamp, UploadId};

use super::{Step, Stop};
use crate::catalog::{
    Deprecation, DownloadBatch, ImageCounters, ImageDescription, ImageNote, LATEST, UploadNote,
    VersionNote, is_later, latest_of,
};
use crate::command::{PutManifest, Refusal, Response, Subject};
use crate::key;
use crate::query::all_rows;
use crate::record::{DiskUploadState, Image, ImageKind, Upload, UploadPurpose, Version};
use crate::table::{Fault, Read, Table};
use crate::transaction::row;

/// Stars or downloads that one command notes.
pub const COUNTED_MAX: usize = 5_000;
/// Texts of one version or image: what people write, not what programs store.
const NOTE_BYTES_MAX: usize = 64 * 1024;
/// Layers that one file is said to consist of.
const LAYERS_MAX: usize = 1_000;
/// The level from which on these rows are kept.
const CATALOG_LEVEL: u8 = 2;

fn check_text(text: &str) -> Result<(), Refusal> {
    if text.len() > NOTE_BYTES_MAX {
        return Err(Refusal::Limit(format!("{NOTE_BYTES_MAX} bytes of text")));
    }
    Ok(())
}

impl<R: Read> Step<'_, R> {
    /// Whether every node keeps these rows: what commands that are older do here, they do only then.
    pub(super) fn keeps_catalog(&self) -> Result<bool, Fault> {
        Ok(self.query().level()? >= CATALOG_LEVEL)
    }

    pub(super) fn put_image_note(&mut self, id: ImageId, note: ImageNote) -> Result<(), Stop> {
        let texts = note.annotations.iter().map(|(key, value)| key.len() + value.len());
        if texts.sum::<usize>() > NOTE_BYTES_MAX {
            return Err(Refusal::Limit(format!("{NOTE_BYTES_MAX} bytes of annotations")).into());
        }
        self.rows.put(Table::ImageNotes, key::image(id), &note);
        Ok(())
    }

    pub(super) fn redescribe_image(
        &mut self,
        id: ImageId,
        from: &ImageDescription,
        to: ImageDescription,
    ) -> Result<Response, Stop> {
        let profile = self.live_image(id)?.profile;
        let now = ImageDescription { profile, note: self.query().image_note(id)? };
        if now != *from {
            return Err(Refusal::Changed(Subject::Image).into());
        }
        self.update_image(id, to.profile)?;
        self.put_image_note(id, to.note)?;
        Ok(Response::Done)
    }

    pub(super) fn begin_described_upload(
        &mut self,
        upload: &Upload,
        note: &UploadNote,
    ) -> Result<Response, Stop> {
        check_text(&note.changelog)?;
        check_text(&note.build_info)?;
        check_text(note.import.as_ref().map_or("", |import| &import.url))?;
        if note.layers.len() > LAYERS_MAX {
            return Err(Refusal::Limit(format!("{LAYERS_MAX} layers")).into());
        }
        self.begin_upload(upload)?;
        self.rows.put(Table::UploadNotes, key::upload(upload.id), note);
        Ok(Response::Done)
    }

    pub(super) fn claim_import(
        &mut self,
        id: UploadId,
        by: NodeId,
        until: Timestamp,
    ) -> Result<Response, Stop> {
        let missing = Refusal::NotFound(Subject::Upload);
        let upload = self.query().upload(id)?.ok_or(missing.clone())?;
        let mut note = self.query().upload_note(id)?.ok_or(missing)?;
        let receiving =
            matches!(upload.purpose, UploadPurpose::Disk { state: DiskUploadState::Receiving, .. });
        let import = note.import.as_mut().filter(|_| receiving);
        let import =
            import.ok_or_else(|| Refusal::UploadState("there is nothing to get".to_owned()))?;
        if import.node != by && import.lease_until > self.at {
            return Err(Refusal::Leased.into());
        }
        (import.node, import.lease_until) = (by, until);
        self.rows.put(Table::UploadNotes, key::upload(id), &note);
        Ok(Response::Done)
    }

    pub(super) fn publish_disk(
        &mut self,
        mut put: PutManifest,
        compressed_bytes: u64,
    ) -> Result<Response, Stop> {
        let Some(number) = put.disk.as_ref().map(|disk| disk.number.clone()) else {
            return Err(Refusal::WrongKind(ImageKind::Container).into());
        };
        // Whoever began the upload had the right then; reading the disk may have taken hours.
        self.check_pusher(&put.repository, &put.owner)?;
        let before = self.query().image_by_name(&put.repository)?.and_then(|image| image.latest);
        let is_asked_for = put.tags.iter().any(|tag| tag.as_str() == LATEST);
        let becomes_latest = is_asked_for || self.is_latest_by_number(&put, &number)?;
        if becomes_latest && !is_asked_for {
            put.tags.push(latest_tag()?);
        }
        let (repository, digest) = (put.repository.clone(), put.digest.clone());
        let (upload, owner) = (put.upload, put.owner.clone());
        let response = self.put_manifest(put)?;
        let mut image = self.image_named(&repository)?;
        image.latest = if becomes_latest { Some(digest.clone()) } else { before };
        self.put_image(&image);
        if let Some(latest) = &image.latest
            && self.query().tag(image.id, &latest_tag()?)?.is_none()
        {
            self.move_tag(&image, latest_tag()?, latest)?;
        }
        if matches!(response, Response::Version { created: true, .. }) {
            let said = match upload {
                Some(upload) => self.query().upload_note(upload)?.unwrap_or_default(),
                None => UploadNote::default(),
            };
            let note = VersionNote {
                changelog: said.changelog,
                build_info: said.build_info,
                compressed_bytes: Some(compressed_bytes),
                deprecation: None,
                updated_at: self.at,
                updated_by: owner,
            };
            self.rows.put(Table::VersionNotes, key::image_digest(image.id, &digest), &note);
        }
        Ok(response)
    }

    /// Whether a disk that is published now is the latest by its number. It is not where that would
    /// move the tag `latest` although a policy holds it where it is: nobody has asked for it.
    fn is_latest_by_number(&self, put: &PutManifest, number: &str) -> Result<bool, Fault> {
        let Some(image) = self.query().image_by_name(&put.repository)? else { return Ok(true) };
        let Some(latest) = &image.latest else { return Ok(true) };
        let named = self.query().tag(image.id, &latest_tag()?)?;
        if named.is_some_and(|named| named != put.digest)
            && self.immutability(&image.name)?.holds(LATEST)
        {
            return Ok(false);
        }
        let latest = self.query().version(image.id, latest)?;
        let old = latest.as_ref().and_then(|version| version.disk.as_ref());
        Ok(old.is_none_or(|old| is_later(number, &old.number)))
    }

    /// After the latest version of a disk went: the highest number of those that are left gets its
    /// tag.
    pub(super) fn choose_latest(&mut self, image: &mut Image) -> Result<(), Fault> {
        let tag = latest_tag()?;
        if let Some(named) = self.query().tag(image.id, &tag)? {
            image.latest = Some(named);
            return Ok(());
        }
        image.latest = latest_of(self.query(), image.id)?;
        if let Some(latest) = image.latest.clone() {
            self.move_tag(image, tag, &latest)?;
        }
        Ok(())
    }

    /// After a tag was moved by hand.
    pub(super) fn follow_latest(
        &self,
        image: &mut Image,
        tag: &TagName,
        digest: &Digest,
    ) -> Result<(), Fault> {
        if tag.as_str() == LATEST && image.kind == ImageKind::Disk && self.keeps_catalog()? {
            image.latest = Some(digest.clone());
        }
        Ok(())
    }

    pub(super) fn roll_back(
        &mut self,
        image: ImageId,
        tag: TagName,
        to: Digest,
    ) -> Result<Response, Stop> {
        let mut image = self.live_image(image)?;
        self.existing_version(&image, &to)?;
        let is_latest = tag.as_str() == LATEST;
        if !is_latest && self.query().tag(image.id, &tag)?.is_none() {
            return Err(Refusal::NotFound(Subject::Tag).into());
        }
        self.check_moves(&image, std::slice::from_ref(&tag), &to)?;
        self.check_meanings(&image, std::slice::from_ref(&tag), &to)?;
        self.move_tag(&image, tag, &to)?;
        if is_latest {
            image.latest = Some(to);
        }
        image.updated_at = self.at;
        self.put_image(&image);
        Ok(Response::Done)
    }

    /// Each text means one version, wherever it is looked up: the number of one is no tag of another.
    /// `latest` is a tag by itself, and moves whatever versions are called.
    pub(super) fn check_meanings(
        &self,
        image: &Image,
        tags: &[TagName],
        digest: &Digest,
    ) -> Result<(), Stop> {
        if !self.keeps_catalog()? {
            return Ok(());
        }
        for tag in tags.iter().filter(|tag| tag.as_str() != LATEST) {
            let other = self.query().digest_numbered(image.id, tag.as_str())?;
            if other.is_some_and(|other| other != *digest) {
                return Err(ambiguous(format!("{tag} is the number of another version")));
            }
        }
        Ok(())
    }

    /// The same for the names of a disk that comes: its tags move to it, its number must not be
    /// another version's tag.
    pub(super) fn check_names_of(&self, image: &Image, put: &PutManifest) -> Result<(), Stop> {
        let Some(disk) = &put.disk else { return Ok(()) };
        self.check_meanings(image, &put.tags, &put.digest)?;
        if !self.keeps_catalog()? {
            return Ok(());
        }
        for text in [disk.number.clone(), format!("v{}", disk.number)] {
            let Ok(tag) = text.parse::<TagName>() else { continue };
            let other = self.query().tag(image.id, &tag)?.filter(|_| !put.tags.contains(&tag));
            if other.is_some_and(|other| other != put.digest) {
                return Err(ambiguous(format!("{tag} is a tag of another version")));
            }
        }
        Ok(())
    }

    fn existing_version(&self, image: &Image, digest: &Digest) -> Result<Version, Stop> {
        let version = self.query().version(image.id, digest)?;
        Ok(version.ok_or(Refusal::NotFound(Subject::Version))?)
    }

    fn change_note(
        &mut self,
        image: ImageId,
        digest: &Digest,
        by: String,
        change: impl FnOnce(&mut VersionNote),
    ) -> Result<Response, Stop> {
        let image = self.live_image(image)?;
        self.existing_version(&image, digest)?;
        let mut note = self.query().version_note(image.id, digest)?;
        change(&mut note);
        (note.updated_at, note.updated_by) = (self.at, by);
        self.rows.put(Table::VersionNotes, key::image_digest(image.id, digest), &note);
        Ok(Response::Done)
    }

    pub(super) fn describe_version(
        &mut self,
        image: ImageId,
        digest: &Digest,
        changelog: Option<String>,
        build_info: Option<String>,
        by: String,
    ) -> Result<Response, Stop> {
        for text in changelog.iter().chain(&build_info) {
            check_text(text)?;
        }
        self.change_note(image, digest, by, |note| {
            note.changelog = changelog.unwrap_or_else(|| note.changelog.clone());
            note.build_info = build_info.unwrap_or_else(|| note.build_info.clone());
        })
    }

    pub(super) fn deprecate_version(
        &mut self,
        image: ImageId,
        digest: &Digest,
        message: Option<String>,
        by: String,
    ) -> Result<Response, Stop> {
        check_text(message.as_deref().unwrap_or_default())?;
        let at = self.at;
        self.change_note(image, digest, by.clone(), |note| {
            note.deprecation = message.map(|message| Deprecation { at, by, message });
        })
    }

    /// Stars of people who are gone, and of what is gone, are passed over.
    pub(super) fn note_stars(
        &mut self,
        stars: BTreeMap<(String, ImageId), bool>,
    ) -> Result<Response, Stop> {
        if stars.len() > COUNTED_MAX {
            return Err(Refusal::Limit(format!("{COUNTED_MAX} stars at once")).into());
        }
        for ((user, image), starred) in stars {
            let there = self.query().user(&user)?.is_some()
                && user.parse::<AccountName>().is_ok()
                && self.query().live_image(image)?.is_some();
            if !there || self.query().is_starred(image, &user)? == starred {
                continue;
            }
            if starred {
                self.rows.put(Table::Stars, key::star(image, &user), &self.at);
                self.rows.mark(Table::UserStars, key::user_star(&user, image));
                self.change_stars(image, 1)?;
            } else {
                self.drop_star(image, &user)?;
            }
        }
        Ok(Response::Done)
    }

    pub(super) fn drop_star(&mut self, image: ImageId, user: &str) -> Result<(), Fault> {
        self.rows.remove(Table::Stars, key::star(image, user));
        self.rows.remove(Table::UserStars, key::user_star(user, image));
        self.change_stars(image, -1)
    }

    fn change_stars(&mut self, image: ImageId, by: i64) -> Result<(), Fault> {
        let old = self.query().counters(image)?;
        let stars = old.stars.checked_add_signed(by);
        let stars = stars.ok_or(Fault::Contradiction("fewer stars than none"))?;
        let counters = ImageCounters { stars, ..old };
        self.rows.put(Table::ImageCounters, key::image(image), &counters);
        Ok(())
    }

    /// Whoever gets the name later has starred nothing.
    pub(super) fn drop_stars_of(&mut self, user: &str) -> Result<(), Fault> {
        let prefix = key::user_stars(user);
        for (key, _) in all_rows(&self.rows, Table::UserStars, &prefix)? {
            let image = ImageId::from_bytes(key::read_id(&key, prefix.len())?);
            self.drop_star(image, user)?;
        }
        Ok(())
    }

    /// A batch that came already counts no second time: its node did not hear the answer.
    pub(super) fn note_downloads(&mut self, batch: DownloadBatch) -> Result<Response, Stop> {
        let DownloadBatch { node, run, batch: number, downloads } = batch;
        if downloads.values().map(BTreeMap::len).sum::<usize>() > COUNTED_MAX {
            return Err(Refusal::Limit(format!("{COUNTED_MAX} versions at once")).into());
        }
        let last: Option<(u64, u64)> = row(&self.rows, Table::DownloadRuns, &key::node(node))?;
        if last.is_some_and(|last| last >= (run, number)) {
            return Ok(Response::Done);
        }
        self.rows.put(Table::DownloadRuns, key::node(node), &(run, number));
        for (image, versions) in downloads {
            if self.query().image(image)?.is_none() {
                continue;
            }
            let mut counters = self.query().counters(image)?;
            for (digest, count) in versions {
                counters.downloads = counters.downloads.saturating_add(count);
                let key = key::image_digest(image, &digest);
                if self.rows.has(Table::Versions, &key)? {
                    let old = self.query().version_downloads(image, &digest)?;
                    self.rows.put(Table::VersionDownloads, key, &old.saturating_add(count));
                }
            }
            self.rows.put(Table::ImageCounters, key::image(image), &counters);
        }
        Ok(Response::Done)
    }
}

fn ambiguous(by: String) -> Stop {
    Refusal::InUse { subject: Subject::Tag, by }.into()
}

fn latest_tag() -> Result<TagName, Fault> {
    LATEST.parse().map_err(|_| Fault::Contradiction("'latest' is a tag"))
}
