//! Images, versions, tags and instances as the API shows them.
//!
//! Non-goal: whether the asker may see them.

use std::collections::BTreeMap;

use serde::Deserialize;
use shoal_api::{
    Deprecation, Image, Instance, Layer, Tag, Version, VersionDetail, VulnerabilityCounts,
};
use shoal_content::{AccountName, Digest, ImageId, TagName};
use shoal_metadata::{
    self as metadata, Fault, ImageKind, Owner, Query, Read, Reference, ScanKey, ScanState,
    SeverityCounts, TagAuthors, VersionNote, Visibility,
};

use crate::clock::rfc3339;

/// Tags shown with an image.
const TAGS_SHOWN_MAX: usize = 1000;
/// Tags that a list looks at; what comes after is not shown.
pub const TAGS_LISTED_MAX: usize = 100_000;
/// Versions shown with an image.
const VERSIONS_SHOWN_MAX: usize = 100;
/// Manifests of one index whose layers are summed up.
const LISTED_MAX: usize = 64;
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

/// What a guest sees, or the sum of the layers: of an index, those of all that it lists, each once.
pub fn size<R: Read>(query: Query<'_, R>, version: &metadata::Version) -> Result<u64, Fault> {
    if let Some(disk) = &version.disk {
        return Ok(disk.virtual_bytes);
    }
    let (mut blobs, mut left) = (BTreeMap::new(), LISTED_MAX);
    gather(query, version, &mut blobs, &mut left)?;
    Ok(blobs.into_values().fold(0, u64::saturating_add))
}

/// The blobs of a version, and of what it lists, as long as `left` manifests are not over.
fn gather<R: Read>(
    query: Query<'_, R>,
    version: &metadata::Version,
    blobs: &mut BTreeMap<Digest, u64>,
    left: &mut usize,
) -> Result<(), Fault> {
    for reference in &version.references {
        match reference {
            Reference::Blob { digest, size } => {
                blobs.insert(digest.clone(), *size);
            }
            Reference::Manifest { digest, .. } if *left > 0 => {
                *left -= 1;
                if let Some(listed) = query.version(version.image, digest)? {
                    gather(query, &listed, blobs, left)?;
                }
            }
            Reference::Manifest { .. } => {}
        }
    }
    Ok(())
}

fn layer(reference: &Reference) -> Layer {
    let (Reference::Blob { digest, size } | Reference::Manifest { digest, size }) = reference;
    Layer { digest: digest.clone(), size: *size, media_type: None }
}

/// What it takes in storage: a container's layers are stored as they are.
fn compressed(version: &metadata::Version, note: &VersionNote, size: u64) -> Option<u64> {
    match version.disk {
        Some(_) => note.compressed_bytes,
        None => Some(size),
    }
}

/// What an image has of its project.
#[derive(Debug)]
pub struct OfProject {
    /// Who may pull it without being a member.
    pub visibility: &'static str,
    pub organization: Option<AccountName>,
}

pub fn of_project<R: Read>(
    query: Query<'_, R>,
    image: &metadata::Image,
) -> Result<OfProject, Fault> {
    let project = query.project(&image.name.project())?;
    let visibility = match project.as_ref().map(|project| project.visibility) {
        Some(Visibility::Public) => PUBLIC,
        Some(Visibility::Organization) => "organization",
        Some(Visibility::Private) | None => "private",
    };
    let organization = match project.map(|project| project.owner) {
        Some(Owner::Organization(name)) => Some(name),
        Some(Owner::User(_)) | None => None,
    };
    Ok(OfProject { visibility, organization })
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
    let total_size_bytes = latest.as_ref().map_or(Ok(0), |latest| size(query, latest))?;
    let compressed_size_bytes = match &latest {
        Some(latest) => {
            let note = query.version_note(row.id, &latest.digest)?;
            compressed(latest, &note, total_size_bytes)
        }
        None => None,
    };
    let (profile, note) = (row.profile.clone(), query.image_note(row.id)?);
    let (counters, deletion) = (query.counters(row.id)?, query.deletion(row)?);
    let OfProject { visibility, organization } = of_project(query, row)?;
    let scan = match &row.latest {
        Some(digest) => query.scan(&ScanKey { image: row.id, digest: digest.clone() })?,
        None => None,
    };
    let report = scan.as_ref().and_then(|scan| scan.report.as_ref());
    let vulnerabilities = report.map(|report| severities(report.found));
    let counts = vulnerabilities.unwrap_or_default();
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
        total_size_bytes,
        compressed_size_bytes,
        status: status(row, deletion.is_some()).to_owned(),
        download_count: counters.downloads,
        star_count: counters.stars,
        scan_status: scan.as_ref().map(|scan| scan_status(&scan.state).to_owned()),
        vulnerabilities,
        vulnerabilities_critical: counts.critical,
        vulnerabilities_high: counts.high,
        vulnerabilities_medium: counts.medium,
        vulnerabilities_low: counts.low,
        last_scan_at: report.map(|report| rfc3339(report.completed_at)),
        latest_version: latest.as_ref().map(number),
        tags,
        labels: profile.labels.into(),
        annotations: note.annotations,
        owner,
        owner_id: row.owner.clone(),
        organization_id: organization.map(|name| name.to_string()),
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

/// Digests of versions, those with the highest numbers first: so many behind the first `skip`. Containers
/// have no numbers, and may have any number of versions.
pub fn newest<R: Read>(
    query: Query<'_, R>,
    image: &metadata::Image,
    skip: usize,
    limit: usize,
) -> Result<Vec<Digest>, Fault> {
    match image.kind {
        ImageKind::Container => query.versions_by_sequence(image.id, skip, limit),
        ImageKind::Disk => {
            let all = query.newest_versions(image.id)?;
            Ok(all.into_iter().skip(skip).take(limit).collect())
        }
    }
}

/// Those with the highest numbers.
pub fn versions<R: Read>(
    query: Query<'_, R>,
    image: &metadata::Image,
) -> Result<Vec<Version>, Fault> {
    let newest = newest(query, image, 0, VERSIONS_SHOWN_MAX)?.into_iter();
    newest.map(|digest| version(query, image, &indexed(query, image.id, &digest)?)).collect()
}

pub fn version<R: Read>(
    query: Query<'_, R>,
    image: &metadata::Image,
    row: &metadata::Version,
) -> Result<Version, Fault> {
    let disk = row.disk.as_ref();
    let (note, size) = (query.version_note(image.id, &row.digest)?, size(query, row)?);
    Ok(Version {
        id: row.id,
        image_id: Some(image.id),
        version: number(row),
        version_sequence: row.sequence,
        is_latest: image.latest.as_ref() == Some(&row.digest),
        manifest_digest: row.digest.clone(),
        media_type: row.media_type.clone(),
        total_size_bytes: size,
        size_bytes: size,
        compressed_size_bytes: compressed(row, &note, size),
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
        updated_by: note.updated_by,
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
    let (config_digest, layers) = pieces(query, row)?;
    Ok(VersionDetail {
        version: version(query, image, row)?,
        config_digest,
        layers,
        instances,
        more_instances,
    })
}

/// What manifests say that is looked at here.
#[derive(Deserialize)]
struct Said {
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    /// Of an index.
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: Digest,
    size: u64,
    media_type: Option<String>,
}

/// The configuration, and what else a version consists of. A disk that is not pulled as a file has a
/// layer without content in its manifest, which is none of it.
fn pieces<R: Read>(
    query: Query<'_, R>,
    row: &metadata::Version,
) -> Result<(Option<Digest>, Vec<Layer>), Fault> {
    let manifest = query.manifest(row.image, &row.digest)?.unwrap_or_default();
    let Ok(said) = serde_json::from_slice::<Said>(&manifest) else {
        return Ok((None, row.references.iter().map(layer).collect()));
    };
    let is_empty = row.disk.is_some() && row.file().is_none();
    let described = said.layers.into_iter().chain(said.manifests).filter(|_| !is_empty);
    let layers =
        described.map(|Descriptor { digest, size, media_type }| Layer { digest, size, media_type });
    Ok((said.config.map(|config| config.digest), layers.collect()))
}

pub fn tag<R: Read>(
    query: Query<'_, R>,
    image: &metadata::Image,
    name: TagName,
    digest: &Digest,
) -> Result<Tag, Fault> {
    let row = query.version(image.id, digest)?;
    let used = query.tag_use(image.id, &name)?;
    let TagAuthors { created_by, updated_by } = query.tag_authors(image.id, &name)?;
    let set = used.as_ref().map(|used| rfc3339(used.pushed_at)).unwrap_or_default();
    Ok(Tag {
        tag_name: name.to_string(),
        kind: name.kind().as_str().to_owned(),
        image_id: Some(image.id),
        version_id: row.as_ref().map(|row| row.id),
        image_version_id: row.as_ref().map(|row| row.id),
        version: row.as_ref().map(number).unwrap_or_default(),
        manifest_digest: digest.clone(),
        created_at: query.tag_created_at(image.id, &name)?.map(rfc3339),
        created_by,
        updated_at: set.clone(),
        updated_by,
        pushed_at: set,
        pulled_at: used.and_then(|used| used.pulled_at).map(rfc3339),
        name,
    })
}

/// Those that were set last.
pub fn tags<R: Read>(query: Query<'_, R>, image: &metadata::Image) -> Result<Vec<Tag>, Fault> {
    let newest = query.tags_by_push(image.id, 0, TAGS_SHOWN_MAX, TAGS_LISTED_MAX)?.into_iter();
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
