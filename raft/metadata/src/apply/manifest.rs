//! Versions: manifests come and go here, and with them what they refer to.
//!
//! Invariant: a version and its indexes (id, sequence, number, subject, tags) come and go in one
//! command, and so do its holds on blobs (a container's) and objects (a disk's).

use std::collections::BTreeMap;

use shoal_content::{Digest, ImageId, ProjectName, RepositoryName};

use super::image::Place;
use super::{Step, Stop};
use crate::command::{
    ANNOTATIONS_KEPT_BYTES_MAX, Event, MANIFEST_BYTES_MAX, PutManifest, Refusal, Response, Subject,
};
use crate::key;
use crate::quota::Content;
use crate::record::{
    Disk, DiskUploadState, Image, ImageKind, Reference, Upload, UploadPurpose, Version,
};
use crate::table::{Fault, Read, Table};
use crate::transaction::row;

/// The most tags one manifest is put under at once.
const TAGS_PER_MANIFEST_MAX: usize = 64;

/// The most objects one disk version lives in: 100,000 packs of 32 MiB are 3 TiB.
pub(super) const OBJECTS_PER_VERSION_MAX: usize = 100_000;

/// The most versions of one disk image: one command may let go of all of them (`DeleteImage`).
const DISK_VERSIONS_MAX: usize = 10_000;

/// The most references to objects that the versions of a disk image would have together, if each
/// lived in as many as the one that comes. That command releases them one by one; and a version of
/// content that is there costs its maker one short request, whatever it refers to.
const DISK_REFERENCES_MAX: usize = 2_000_000;

impl<R: Read> Step<'_, R> {
    pub(super) fn put_manifest(&mut self, put: PutManifest) -> Result<Response, Stop> {
        check_bounds(&put)?;
        let place = Place {
            repository: put.repository.clone(),
            image: put.image,
            owner: put.owner.clone(),
        };
        let image = self.check_place(&place, put.kind)?;
        let session = self.check_disk_session(&put, image.as_ref())?;
        let old = match &image {
            Some(image) => self.query().version(image.id, &put.digest)?,
            None => None,
        };
        if old.is_none() {
            self.check_new_version(&put, image.as_ref())?;
        }
        if let Some(image) = &image {
            self.check_moves(image, &put.tags, &put.digest)?;
            self.check_names_of(image, &put)?;
        }

        if old.is_none() {
            self.check_image_bytes(&place.repository.project(), &place.owner, image_bytes(&put))?;
        }

        if self.who.is_empty() {
            self.who.clone_from(&put.owner);
        }
        let id = self.take_place(place, put.kind)?;
        let missing = Fault::Contradiction("an image just taken is not there");
        let mut image = self.query().image(id)?.ok_or(missing)?;
        let tags = put.tags.clone();
        let digest = put.digest.clone();
        let (version, created) = match old {
            Some(old) => (old, false),
            None => (self.add_version(&mut image, put)?, true),
        };
        for tag in tags {
            self.move_tag(&image, tag, &digest)?;
        }
        if let Some(mut session) = session {
            if let UploadPurpose::Disk { state, .. } = &mut session.purpose {
                *state = DiskUploadState::Published { version: version.id };
            }
            self.release_reservation(session.id)?;
            self.put_session(&session);
            self.events.push(Event::UploadChanged(session.id));
        }
        image.updated_at = self.at;
        self.put_image(&image);
        Ok(Response::Version { id: version.id, sequence: version.sequence, created })
    }

    fn check_disk_session(
        &self,
        put: &PutManifest,
        image: Option<&Image>,
    ) -> Result<Option<Upload>, Stop> {
        let Some(id) = put.upload else { return Ok(None) };
        let upload = self.query().upload(id)?.ok_or(Refusal::NotFound(Subject::Upload))?;
        let UploadPurpose::Disk { image: of, state, .. } = &upload.purpose else {
            return Err(Refusal::UploadState("it is not for a disk".into()).into());
        };
        if image.map(|image| image.id) != Some(*of) {
            return Err(Refusal::NotFound(Subject::Image).into());
        }
        match state {
            DiskUploadState::Ingesting { .. } => Ok(Some(upload)),
            DiskUploadState::Receiving => {
                Err(Refusal::UploadState("nobody has claimed it".into()).into())
            }
            DiskUploadState::Published { .. } => {
                Err(Refusal::UploadState("it is published".into()).into())
            }
            DiskUploadState::Failed { .. } => {
                Err(Refusal::UploadState("it has failed".into()).into())
            }
        }
    }

    fn check_new_version(&self, put: &PutManifest, image: Option<&Image>) -> Result<(), Stop> {
        let taken = Stop::Refused(Refusal::Exists(Subject::Version));
        if self.rows.has(Table::VersionIds, &key::version(put.version))? {
            return Err(taken);
        }
        if let (Some(disk), Some(image)) = (&put.disk, image) {
            self.check_version_count(image, disk)?;
        }
        for reference in &put.references {
            self.check_reference(reference, image)?;
        }
        for object in put.disk.iter().flat_map(|disk| &disk.objects) {
            self.check_object(object)?;
        }
        if let Some(disk) = &put.disk {
            self.check_placement(disk)?;
        }
        if let (Some(disk), Some(image)) = (&put.disk, image)
            && self.rows.has(Table::VersionNumbers, &key::number(image.id, &disk.number))?
        {
            return Err(taken);
        }
        Ok(())
    }

    fn check_version_count(&self, image: &Image, disk: &Disk) -> Result<(), Stop> {
        let objects = disk.objects.len();
        let most = disk_versions_max(objects);
        // No more than this have ever come, so that they are counted of few images only.
        if image.next_sequence <= most as u64 {
            return Ok(());
        }
        let prefix = key::image(image.id);
        let there = self.rows.scan(Table::VersionSequences, &prefix, &prefix, most)?.len();
        if there >= most {
            let text = format!("{most} versions of an image whose disks live in {objects} objects");
            return Err(Refusal::Limit(text).into());
        }
        Ok(())
    }

    fn check_reference(&self, reference: &Reference, image: Option<&Image>) -> Result<(), Stop> {
        let found = match image {
            Some(image) => self.has_reference(image.id, reference)?,
            None => None,
        };
        if found == Some(true) {
            Ok(())
        } else {
            Err(Refusal::MissingReference(reference.digest().clone()).into())
        }
    }

    /// Whether what is referred to has the size that is said; `None` where it is not there.
    pub(super) fn has_reference(
        &self,
        image: ImageId,
        reference: &Reference,
    ) -> Result<Option<bool>, Fault> {
        Ok(match reference {
            Reference::Blob { digest, size } => {
                let linked = self.query().blob_in(image, digest)?;
                let blob = self.query().blob(digest)?.filter(|_| linked);
                blob.map(|blob| blob.size == *size)
            }
            Reference::Manifest { digest, size } => {
                let version = self.query().version(image, digest)?;
                version.map(|version| version.manifest_bytes == *size)
            }
        })
    }

    pub(super) fn add_version(
        &mut self,
        image: &mut Image,
        put: PutManifest,
    ) -> Result<Version, Fault> {
        let version = Version {
            id: put.version,
            image: image.id,
            digest: put.digest,
            media_type: put.media_type,
            artifact_type: put.artifact_type,
            annotations: kept(put.annotations),
            subject: put.subject,
            references: put.references,
            disk: put.disk,
            sequence: image.next_sequence,
            manifest_bytes: put.manifest.len() as u64,
            created_at: self.at,
            created_by: put.owner,
        };
        image.next_sequence += 1;
        image.latest = Some(version.digest.clone());

        let digest = &version.digest;
        let project = image.name.project();
        self.hold_content(&project, &Content::Digest(digest.clone()), version.manifest_bytes)?;
        let key = key::image_digest(image.id, digest);
        self.rows.put(Table::Versions, key.clone(), &version);
        self.rows.put_bytes(Table::Manifests, key, put.manifest);
        let named = (image.id, digest);
        self.rows.put(Table::VersionIds, key::version(version.id), &named);
        let sequence = key::sequence(image.id, version.sequence);
        self.rows.put(Table::VersionSequences, sequence, digest);
        self.tally_version(image.id, 1)?;
        if let Some(subject) = &version.subject {
            self.rows.mark(Table::Referrers, key::referrer(image.id, subject, digest));
        }
        if let Some(disk) = &version.disk {
            self.rows.put(Table::VersionNumbers, key::number(image.id, &disk.number), digest);
            self.hold_content(&project, &Content::Recipe(disk.recipe), disk.content_bytes)?;
            for object in &disk.objects {
                self.hold_object(object)?;
            }
            self.join_relocation(disk)?;
        }
        if let Some((file, _)) = version.file() {
            self.rows.mark(Table::DiskFiles, key::disk_file(image.id, &file, digest));
        }
        for reference in &version.references {
            self.hold_reference(image.id, &project, digest, reference)?;
        }
        // Until a tag is moved to it.
        self.mark_untagged(image.id, digest, self.at)?;
        self.arrive(image.id, &project, digest)?;
        Ok(version)
    }

    /// The version `digest` refers to it from now on.
    pub(super) fn hold_reference(
        &mut self,
        image: ImageId,
        project: &ProjectName,
        digest: &Digest,
        reference: &Reference,
    ) -> Result<(), Fault> {
        match reference {
            Reference::Blob { digest, size } => self.refer(image, project, digest, *size),
            Reference::Manifest { digest: child, .. } => {
                let key = key::manifest_parent(image, child, digest);
                self.rows.mark(Table::ManifestParents, key);
                Ok(())
            }
        }
    }

    /// An index that lists the manifest stays, as the distribution specification allows.
    pub(super) fn delete_manifest(
        &mut self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Response, Stop> {
        let image = self.image_named(repository)?;
        let version = self.query().version(image.id, digest)?;
        let version = version.ok_or(Refusal::NotFound(Subject::Version))?;
        self.check_version_goes(&image, &version)?;
        self.check_version_unused(&image, &version)?;
        self.drop_version(repository, &version)?;
        self.end_removal(image)?;
        Ok(Response::Done)
    }

    /// After versions were dropped: the image's row says what is the latest of those that are left.
    pub(super) fn end_removal(&mut self, mut image: Image) -> Result<(), Fault> {
        let is_there = match &image.latest {
            Some(latest) => self.rows.has(Table::Versions, &key::image_digest(image.id, latest))?,
            None => false,
        };
        if !is_there && image.kind == ImageKind::Disk && self.keeps_catalog()? {
            self.choose_latest(&mut image)?;
        } else if !is_there {
            image.latest = self.newest_version(image.id)?;
        }
        image.updated_at = self.at;
        self.put_image(&image);
        Ok(())
    }

    /// The one that came last.
    pub(super) fn newest_version(&self, image: ImageId) -> Result<Option<Digest>, Fault> {
        let newest = self.rows.scan(Table::VersionSequences, b"", &key::image(image), 1)?;
        match newest.first() {
            Some((key, _)) => row(&self.rows, Table::VersionSequences, key),
            None => Ok(None),
        }
    }

    /// Takes a version away with its tags, indexes and holds; the image's row is the caller's.
    pub(super) fn drop_version(
        &mut self,
        repository: &RepositoryName,
        version: &Version,
    ) -> Result<(), Fault> {
        let (image, digest) = (version.image, &version.digest);
        let project = repository.project();
        self.release_content(&project, &Content::Digest(digest.clone()))?;
        for tag in self.query().tags_of(image, digest)? {
            self.drop_tag(image, repository, tag, digest)?;
        }
        let key = key::image_digest(image, digest);
        for table in [
            Table::Versions,
            Table::VersionPulls,
            Table::UntaggedVersions,
            Table::VersionNotes,
            Table::VersionDownloads,
        ] {
            self.rows.remove(table, key.clone());
        }
        self.rows.remove(Table::Manifests, key);
        self.rows.remove(Table::VersionIds, key::version(version.id));
        self.rows.remove(Table::VersionSequences, key::sequence(image, version.sequence));
        self.tally_version(image, -1)?;
        if let Some(subject) = &version.subject {
            self.rows.remove(Table::Referrers, key::referrer(image, subject, digest));
        }
        if let Some(disk) = &version.disk {
            self.rows.remove(Table::VersionNumbers, key::number(image, &disk.number));
            self.release_content(&project, &Content::Recipe(disk.recipe))?;
            for object in &disk.objects {
                self.release_object(object)?;
            }
            self.leave_relocation(image, disk)?;
            self.drop_deltas_of(image, disk.recipe)?;
        }
        self.drop_scan(image, digest)?;
        if let Some((file, _)) = version.file() {
            self.rows.remove(Table::DiskFiles, key::disk_file(image, &file, digest));
        }
        for reference in &version.references {
            match reference {
                Reference::Blob { digest, .. } => self.cease(image, &project, digest)?,
                Reference::Manifest { digest: child, .. } => {
                    let key = key::manifest_parent(image, child, digest);
                    self.rows.remove(Table::ManifestParents, key);
                }
            }
        }
        self.await_no_more(image, digest)
    }
}

/// The most versions of an image where one comes that lives in so many objects.
fn disk_versions_max(objects: usize) -> usize {
    DISK_VERSIONS_MAX.min(DISK_REFERENCES_MAX / objects.max(1))
}

/// Of a manifest's annotations, what its version's row has.
fn kept(annotations: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > ANNOTATIONS_KEPT_BYTES_MAX { BTreeMap::new() } else { annotations }
}

/// What a quota of single images goes by. What an index lists was looked at when it was pushed.
pub(super) fn image_bytes(put: &PutManifest) -> u64 {
    let blobs = put.references.iter().map(|reference| match reference {
        Reference::Blob { size, .. } => *size,
        Reference::Manifest { .. } => 0,
    });
    let disk = put.disk.iter().map(|disk| disk.content_bytes);
    let own = put.manifest.len() as u64;
    blobs.chain(disk).fold(own, u64::saturating_add)
}

pub(super) fn check_bounds(put: &PutManifest) -> Result<(), Refusal> {
    if put.manifest.len() > MANIFEST_BYTES_MAX {
        return Err(Refusal::ManifestTooLong);
    }
    if put.tags.len() > TAGS_PER_MANIFEST_MAX {
        return Err(Refusal::Limit(format!("{TAGS_PER_MANIFEST_MAX} tags at once")));
    }
    let objects = put.disk.as_ref().map_or(0, |disk| disk.objects.len());
    if objects > OBJECTS_PER_VERSION_MAX {
        return Err(Refusal::Limit(format!("{OBJECTS_PER_VERSION_MAX} objects of one version")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_objects_a_disk_lives_in_the_fewer_versions_there_may_be() {
        let most = [0, 1, 200, 201, 2_000, OBJECTS_PER_VERSION_MAX].map(disk_versions_max);
        assert_eq!(most, [10_000, 10_000, 10_000, 9_950, 1_000, 20]);
    }
}
