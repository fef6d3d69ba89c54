//! Images, versions, tags and instances as the API shows them.
//!
//! Non-goal: whether the asker may see them.

use serde::Deserialize;
use shoal_api::{
    Deprecation, Image, Instance, Layer, Tag, Version, VersionDetail, VulnerabilityCounts,
};
use shoal_content::{Digest, ImageId, TagName};
use shoal_metadata::{
    self as metadata, Fault, ImageKind, Query, Read, Reference, ScanKey, ScanState, SeverityCounts,
    VersionNote, Visibility,
};

use crate::clock::rfc3339;

/// Tags shown with an image.
const TAGS_SHOWN_MAX: usize = 1000;
/// Tags that a list looks at; those whose names come after are not shown.
const TAGS_LISTED_MAX: usize = 100_000;
/// Versions shown with an image.
const VERSIONS_SHOWN_MAX: usize = 100;
/// Instances shown with a version.
const INSTANCES_SHOWN_MAX: usize = 100;

pub const ACTIVE: &str = "active";
pub const DEPRECATED: &str = "deprecated";
const PUBLIC: &str = "public";

pub fn kind_name(kind: ImageKind) -> &'static str {
    match kind {
        ImageKind::Disk => "disk",
        ImageKind::Container => "container",
    }
}

/// What people call a version.
pub fn number(version: &metadata::Version) -> String {
    version.disk.as_ref().map_or_else(|| version.sequence.to_string(), |disk| disk.number.clone())
}

/// What a guest sees, or the sum of the layers.
pub fn size(version: &metadata::Version) -> u64 {
    let blobs = || version.references.iter().map(|one| layer(one).size).sum();
    version.disk.as_ref().map_or_else(blobs, |disk| disk.virtual_bytes)
}

fn layer(reference: &Reference) -> Layer {
    let (Reference::Blob { digest, size } | Reference::Manifest { digest, size }) = reference;
    Layer { digest: digest.clone(), size: *size }
}

/// What it takes in storage: a container's layers are stored as they are.
fn compressed(version: &metadata::Version, note: &VersionNote) -> Option<u64> {
    match version.disk {
        Some(_) => note.compressed_bytes,
        None => Some(size(version)),
    }
}

/// Who may pull it without being a member, as its project says.
pub fn visibility<R: Read>(
    query: Query<'_, R>,
    image: &metadata::Image,
) -> Result<&'static str, Fault> {
    Ok(match query.project(&image.name.project())?.map(|project| project.visibility) {
        Some(Visibility::Public) => PUBLIC,
        Some(Visibility::Organization) => "organization",
        Some(Visibility::Private) | None => "private",
    })
}

pub fn status(image: &metadata::Image, is_deleted: bool) -> &'static str {
    match &image.latest {
        _ if is_deleted => "deleted",
        Some(_) => ACTIVE,
        None => "pending",
    }
}

pub fn image<R: Read>(query: Query<'_, R>, row: &metadata::Image) -> Result<Image, Fault> {
    let tags = query.tags(row.id, None, TAGS_SHOWN_MAX)?;
    let tags = tags.into_iter().map(|(name, _)| name).collect();
    image_with(query, row, tags, row.owner.clone())
}

pub fn image_with<R: Read, T, O>(
    query: Query<'_, R>,
    row: &metadata::Image,
    tags: Vec<T>,
    owner: O,
) -> Result<Image<T, O>, Fault> {
    let latest = match &row.latest {
        Some(digest) => query.version(row.id, digest)?,
        None => None,
    };
    let compressed_size_bytes = match &latest {
        Some(latest) => compressed(latest, &query.version_note(row.id, &latest.digest)?),
        None => None,
    };
    let (profile, note) = (row.profile.clone(), query.image_note(row.id)?);
    let (counters, deletion) = (query.counters(row.id)?, query.deletion(row)?);
    let visibility = visibility(query, row)?;
    let scan = match &row.latest {
        Some(digest) => query.scan(&ScanKey { image: row.id, digest: digest.clone() })?,
        None => None,
    };
    let report = scan.as_ref().and_then(|scan| scan.report.as_ref());
    Ok(Image {
        id: row.id,
        name: row.name.clone(),
        kind: kind_name(row.kind).to_owned(),
        display_name: profile.display_name,
        description: profile.description,
        image_type: profile.image_type,
        os_type: profile.os_type,
        os_version: profile.os_version,
        architecture: profile.architecture,
        format: profile.format,
        visibility: visibility.to_owned(),
        is_public: visibility == PUBLIC,
        total_size_bytes: latest.as_ref().map_or(0, size),
        compressed_size_bytes,
        status: status(row, deletion.is_some()).to_owned(),
        download_count: counters.downloads,
        star_count: counters.stars,
        scan_status: scan.as_ref().map(|scan| scan_status(&scan.state).to_owned()),
        vulnerabilities: report.map(|report| severities(report.found)),
        last_scan_at: report.map(|report| rfc3339(report.completed_at)),
        latest_version: latest.as_ref().map(number),
        tags,
        labels: profile.labels.into(),
        annotations: note.annotations,
        owner,
        owner_id: row.owner.clone(),
        created_at: rfc3339(row.created_at),
        created_by: row.owner.clone(),
        updated_at: rfc3339(row.updated_at),
        updated_by: note.updated_by,
        deleted_at: deletion.as_ref().map(|deletion| rfc3339(deletion.at)),
        deleted_by: deletion.map(|deletion| deletion.by),
    })
}

pub fn scan_status(state: &ScanState) -> &'static str {
    match state {
        ScanState::Pending => "pending",
        ScanState::Scanning { .. } => "scanning",
        ScanState::Completed => "completed",
        ScanState::Failed { .. } => "failed",
    }
}

pub fn severities(found: SeverityCounts) -> VulnerabilityCounts {
    let SeverityCounts { critical, high, medium, low, unknown } = found;
    VulnerabilityCounts { critical, high, medium, low, unknown }
}

pub fn deprecation(note: &VersionNote) -> Option<Deprecation> {
    note.deprecation.as_ref().map(|deprecation| Deprecation {
        deprecated_at: rfc3339(deprecation.at),
        deprecated_by: deprecation.by.clone(),
        message: deprecation.message.clone(),
    })
}

pub fn version_status(note: &VersionNote) -> String {
    if note.deprecation.is_some() { DEPRECATED } else { ACTIVE }.to_owned()
}

/// A version that an index names.
pub fn indexed<R: Read>(
    query: Query<'_, R>,
    image: ImageId,
    digest: &Digest,
) -> Result<metadata::Version, Fault> {
    query.version(image, digest)?.ok_or(Fault::Contradiction("an index names no version"))
}

/// Those with the highest numbers.
pub fn versions<R: Read>(
    query: Query<'_, R>,
    image: &metadata::Image,
) -> Result<Vec<Version>, Fault> {
    let newest = query.newest_versions(image.id)?.into_iter().take(VERSIONS_SHOWN_MAX);
    newest.map(|digest| version(query, image, &indexed(query, image.id, &digest)?)).collect()
}

pub fn version<R: Read>(
    query: Query<'_, R>,
    image: &metadata::Image,
    row: &metadata::Version,
) -> Result<Version, Fault> {
    let disk = row.disk.as_ref();
    let note = query.version_note(image.id, &row.digest)?;
    Ok(Version {
        id: row.id,
        image_id: Some(image.id),
        version: number(row),
        version_sequence: row.sequence,
        is_latest: image.latest.as_ref() == Some(&row.digest),
        manifest_digest: row.digest.clone(),
        media_type: row.media_type.clone(),
        total_size_bytes: size(row),
        size_bytes: size(row),
        compressed_size_bytes: compressed(row, &note),
        content_size_bytes: disk.map_or(0, |disk| disk.content_bytes),
        added_size_bytes: disk.map_or(0, |disk| disk.added_bytes),
        status: version_status(&note),
        deprecation: deprecation(&note),
        tags: query.tags_of(image.id, &row.digest)?,
        build_info: serde_json::from_str(&note.build_info).ok(),
        download_count: query.version_downloads(image.id, &row.digest)?,
        in_use: !query.instances_of(image.id, &row.digest, 1)?.is_empty(),
        created_at: rfc3339(row.created_at),
        created_by: row.created_by.clone(),
        updated_at: rfc3339(note.updated_at.max(row.created_at)),
        changelog: note.changelog,
        pulled_at: query.version_pulled_at(image.id, &row.digest)?.map(rfc3339),
    })
}

pub fn version_detail<R: Read>(
    query: Query<'_, R>,
    image: &metadata::Image,
    row: &metadata::Version,
) -> Result<VersionDetail, Fault> {
    let mut instances = query.instances_of(image.id, &row.digest, INSTANCES_SHOWN_MAX + 1)?;
    let more_instances = instances.len() > INSTANCES_SHOWN_MAX;
    instances.truncate(INSTANCES_SHOWN_MAX);
    Ok(VersionDetail {
        version: version(query, image, row)?,
        config_digest: config_digest(query, row)?,
        layers: row.references.iter().map(layer).collect(),
        instances,
        more_instances,
    })
}

/// What manifests say that is looked at here.
#[derive(Deserialize)]
struct Configured {
    config: Option<Configuration>,
}

#[derive(Deserialize)]
struct Configuration {
    digest: Digest,
}

fn config_digest<R: Read>(
    query: Query<'_, R>,
    row: &metadata::Version,
) -> Result<Option<Digest>, Fault> {
    let manifest = query.manifest(row.image, &row.digest)?.unwrap_or_default();
    let said: Option<Configured> = serde_json::from_slice(&manifest).ok();
    Ok(said.and_then(|said| said.config).map(|config| config.digest))
}

pub fn tag<R: Read>(
    query: Query<'_, R>,
    image: &metadata::Image,
    name: TagName,
    digest: &Digest,
) -> Result<Tag, Fault> {
    let row = query.version(image.id, digest)?;
    let used = query.tag_use(image.id, &name)?;
    let set = used.as_ref().map(|used| rfc3339(used.pushed_at)).unwrap_or_default();
    Ok(Tag {
        tag_name: name.to_string(),
        kind: name.kind().as_str().to_owned(),
        image_id: Some(image.id),
        version_id: row.as_ref().map(|row| row.id),
        version: row.as_ref().map(number).unwrap_or_default(),
        manifest_digest: digest.clone(),
        created_at: query.tag_created_at(image.id, &name)?.map(rfc3339),
        updated_at: set.clone(),
        pushed_at: set,
        pulled_at: used.and_then(|used| used.pulled_at).map(rfc3339),
        name,
    })
}

/// Those that were set last come first.
pub fn tag_names<R: Read>(
    query: Query<'_, R>,
    image: ImageId,
) -> Result<Vec<(TagName, Digest)>, Fault> {
    query.tags_by_push(image, TAGS_LISTED_MAX)
}

/// Those that were set last.
pub fn tags<R: Read>(query: Query<'_, R>, image: &metadata::Image) -> Result<Vec<Tag>, Fault> {
    let newest = tag_names(query, image.id)?.into_iter().take(TAGS_SHOWN_MAX);
    newest.map(|(name, digest)| tag(query, image, name, &digest)).collect()
}

/// `None` where the image or version is not there, which no row allows.
pub fn instance<R: Read>(
    query: Query<'_, R>,
    row: metadata::Instance,
) -> Result<Option<Instance>, Fault> {
    let image = query.image(row.image)?;
    let version = query.version(row.image, &row.digest)?;
    let (Some(image), Some(version)) = (image, version) else { return Ok(None) };
    let note = query.version_note(image.id, &row.digest)?;
    Ok(Some(Instance {
        id: row.name,
        image_id: image.id,
        image: image.name,
        image_version_id: row.version,
        version: number(&version),
        image_tag_used: row.tag,
        image_digest: row.digest,
        version_status: version_status(&note),
        deprecation: deprecation(&note),
        registered_by: row.owner,
        registered_at: rfc3339(row.registered_at),
        updated_at: rfc3339(row.updated_at),
    }))
}
