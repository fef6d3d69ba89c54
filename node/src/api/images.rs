//! Images and their versions and tags, as people list and change them.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use shoal_api::{
    CreateImage, DiskContent, Image, ImageDetail, MoveTag, Page, Pagination, Resolution, Tag,
    Version,
};
use shoal_content::{
    Digest, ImageId, ImageReference, Labels, Pin, RepositoryName, TagName, UploadId,
};
use shoal_metadata::{
    self as metadata, Action, Command, Fault, ImageKind, ImageProfile, Read, Reference,
    UploadPurpose, Visible, What, Who,
};
use shoal_raft::View;
use uuid::Uuid;

use super::caller::Caller;
use super::input::{Body, Path, Query};
use super::problem::missing;
use crate::clock::{now, rfc3339};
use crate::http::noted;
use crate::http::permit::permit;
use crate::http::problem::Problem;
use crate::state::App;

const PAGE_SIZE_DEFAULT: u64 = 20;
const PAGE_SIZE_MAX: u64 = 500;
/// Rows that one scan of the list takes.
const SCAN_ROWS: usize = 1000;
/// Images that a list looks at; what comes after is not shown.
const IMAGES_LISTED_MAX: usize = 200_000;
/// Tags shown with an image.
const TAGS_SHOWN_MAX: usize = 1000;
/// Of what people say of an image, in bytes.
const TEXT_BYTES_MAX: usize = 255;
const DESCRIPTION_BYTES_MAX: usize = 4096;

type Metadata<'a, R> = metadata::Query<'a, R>;

#[derive(Debug, Deserialize)]
pub struct ListQuery {
    page: Option<u64>,
    page_size: Option<u64>,
    /// A part of the name.
    name: Option<String>,
    /// `disk` or `container`.
    kind: Option<String>,
    /// `name`, `created_at` or `updated_at`; with `-` before it, the other way round.
    sort: Option<String>,
}

impl ListQuery {
    /// What has `part` in its name.
    pub(super) fn named(part: String) -> Self {
        Self { page: None, page_size: None, name: Some(part), kind: None, sort: None }
    }
}

pub async fn list(
    caller: Caller,
    Query(wanted): Query<ListQuery>,
) -> Result<Json<Page<Image>>, Problem> {
    let kind = wanted.kind.as_deref().filter(|text| !text.is_empty()).map(kind_of).transpose()?;
    let sort = wanted.sort.as_deref().unwrap_or("name");
    let (sort, reverse) = sort.strip_prefix('-').map_or((sort, false), |rest| (rest, true));
    if !matches!(sort, "name" | "created_at" | "updated_at") {
        let text = "sort is name, created_at or updated_at, with '-' for descending";
        return Err(Problem::bad_request("sort_invalid", text));
    }
    let query = caller.view.query();
    let mut visible = Visible::new(query, caller.who())?;
    let mut found = Vec::new();
    let mut after: Option<RepositoryName> = None;
    let mut seen = 0;
    loop {
        let rows = query.images(after.as_ref(), SCAN_ROWS)?;
        let last = rows.len() < SCAN_ROWS;
        seen += rows.len();
        after = rows.last().map(|image| image.name.clone());
        for image in rows {
            let named = wanted.name.as_ref().is_none_or(|part| image.name.as_str().contains(part));
            if named && kind.is_none_or(|kind| image.kind == kind) && visible.shows(&image.name)? {
                found.push(image);
            }
        }
        if last || seen >= IMAGES_LISTED_MAX {
            break;
        }
    }
    match sort {
        "created_at" => found.sort_by_key(|image| image.created_at),
        "updated_at" => found.sort_by_key(|image| image.updated_at),
        _ => {}
    }
    if reverse {
        found.reverse();
    }
    let page_size = wanted.page_size.unwrap_or(PAGE_SIZE_DEFAULT).clamp(1, PAGE_SIZE_MAX);
    let page = wanted.page.unwrap_or(1).max(1);
    let total_count = found.len() as u64;
    let skip = (page - 1).saturating_mul(page_size).min(total_count) as usize;
    let shown = found.iter().skip(skip).take(page_size as usize);
    let data = shown.map(|row| image(query, row)).collect::<Result<Vec<_>, Fault>>()?;
    let total_pages = total_count.div_ceil(page_size);
    Ok(Json(Page { data, pagination: Pagination { page, page_size, total_pages, total_count } }))
}

fn kind_of(text: &str) -> Result<ImageKind, Problem> {
    match text {
        "disk" => Ok(ImageKind::Disk),
        "container" => Ok(ImageKind::Container),
        _ => Err(Problem::bad_request("kind_invalid", "kind is disk or container")),
    }
}

fn kind_name(kind: ImageKind) -> &'static str {
    match kind {
        ImageKind::Disk => "disk",
        ImageKind::Container => "container",
    }
}

pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Body(request): Body<CreateImage>,
) -> Result<(StatusCode, Json<Image>), Problem> {
    check_texts(&request)?;
    let labels = Labels::try_from(request.labels)
        .map_err(|error| Problem::bad_request("labels_invalid", error.to_string()))?;
    caller.permit(Action::Push, What::Repository(&request.name))?;
    let owner = caller.account()?;
    drop(caller);
    let id = ImageId::from_uuid(Uuid::now_v7());
    let profile = ImageProfile {
        display_name: request.display_name,
        description: request.description,
        image_type: request.image_type,
        os_type: request.os_type,
        os_version: request.os_version,
        architecture: request.architecture,
        format: if request.format.is_empty() { "qcow2".to_owned() } else { request.format },
        visibility: request.visibility,
        min_cpu_cores: request.min_cpu_cores,
        min_memory_mb: request.min_memory_mb,
        min_disk_gb: request.min_disk_gb,
        labels,
    };
    let (name, kind) = (request.name, ImageKind::Disk);
    app.propose(Command::CreateImage { id, name, kind, profile, owner }).await?;
    let view = app.view().await?;
    let row = view.query().image(id)?.ok_or_else(|| no_image(id))?;
    Ok((StatusCode::CREATED, Json(image(view.query(), &row)?)))
}

/// Every listing carries them.
fn check_texts(request: &CreateImage) -> Result<(), Problem> {
    let texts = [
        ("display_name", &request.display_name, TEXT_BYTES_MAX),
        ("description", &request.description, DESCRIPTION_BYTES_MAX),
        ("image_type", &request.image_type, TEXT_BYTES_MAX),
        ("os_type", &request.os_type, TEXT_BYTES_MAX),
        ("os_version", &request.os_version, TEXT_BYTES_MAX),
        ("architecture", &request.architecture, TEXT_BYTES_MAX),
        ("format", &request.format, TEXT_BYTES_MAX),
        ("visibility", &request.visibility, TEXT_BYTES_MAX),
    ];
    for (name, text, most) in texts {
        if text.len() > most {
            let text = format!("{name} has at most {most} bytes");
            return Err(Problem::bad_request("text_too_long", text));
        }
    }
    Ok(())
}

fn no_image(id: impl std::fmt::Display) -> Problem {
    missing("image_not_found", format!("there is no image {id}"))
}

pub async fn show(caller: Caller, Path(id): Path<ImageId>) -> Result<Json<ImageDetail>, Problem> {
    let query = caller.view.query();
    let row = existing(&caller, id, Action::List)?;
    let rows = query.versions(id)?;
    let versions = rows.iter().map(|one| version(query, &row, one));
    let versions = versions.collect::<Result<Vec<_>, Fault>>()?;
    let numbers: BTreeMap<&Digest, &Version> =
        versions.iter().map(|version| (&version.manifest_digest, version)).collect();
    let tags = query.tags(id, None, TAGS_SHOWN_MAX)?;
    let mut tag_details = Vec::with_capacity(tags.len());
    for (name, digest) in tags {
        let used = query.tag_use(id, &name)?;
        tag_details.push(Tag {
            name,
            version: numbers.get(&digest).map(|one| one.version.clone()).unwrap_or_default(),
            manifest_digest: digest,
            pushed_at: used.as_ref().map(|used| rfc3339(used.pushed_at)).unwrap_or_default(),
            pulled_at: used.and_then(|used| used.pulled_at).map(rfc3339),
        });
    }
    Ok(Json(ImageDetail {
        image: image(query, &row)?,
        min_cpu_cores: row.profile.min_cpu_cores,
        min_memory_mb: row.profile.min_memory_mb,
        min_disk_gb: row.profile.min_disk_gb,
        tag_details,
        versions,
    }))
}

pub async fn delete(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
) -> Result<StatusCode, Problem> {
    let row = existing(&caller, id, Action::Delete)?;
    caller.account()?;
    let sessions = sessions_to(&caller, &row)?;
    drop(caller);
    // What is still being uploaded to it would be found to have no image, a day later perhaps.
    for upload in sessions {
        app.services.disks.abort(upload).await?;
    }
    app.propose(Command::DeleteImage { id }).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn sessions_to(caller: &Caller, image: &metadata::Image) -> Result<Vec<UploadId>, Problem> {
    let sessions = caller.view.query().uploads()?.into_iter();
    let of_image = sessions.filter(|session| match &session.purpose {
        UploadPurpose::Blob { repository, .. } => *repository == image.name,
        UploadPurpose::Disk { image: of, .. } => *of == image.id,
    });
    Ok(of_image.map(|session| session.id).collect())
}

pub async fn versions(
    caller: Caller,
    Path(id): Path<ImageId>,
) -> Result<Json<Vec<Version>>, Problem> {
    let query = caller.view.query();
    let row = existing(&caller, id, Action::List)?;
    let rows = query.versions(id)?;
    let versions = rows.iter().map(|one| version(query, &row, one));
    Ok(Json(versions.collect::<Result<_, Fault>>()?))
}

pub async fn put_tag(
    State(app): State<App>,
    caller: Caller,
    Path((id, tag)): Path<(ImageId, TagName)>,
    Body(request): Body<MoveTag>,
) -> Result<Json<Tag>, Problem> {
    caller.account()?;
    let query = caller.view.query();
    let row = existing(&caller, id, Action::Push)?;
    let found = query.version_by_id(request.version_id)?.filter(|version| version.image == id);
    let found = found.ok_or_else(|| no_version(request.version_id))?;
    let digest = found.digest.clone();
    let put = Command::PutTag { repository: row.name.clone(), tag: tag.clone(), digest };
    app.propose(put).await?;
    Ok(Json(Tag {
        name: tag,
        version: number(&found),
        manifest_digest: found.digest,
        pushed_at: rfc3339(now()),
        pulled_at: None,
    }))
}

pub async fn delete_tag(
    State(app): State<App>,
    caller: Caller,
    Path((id, tag)): Path<(ImageId, TagName)>,
) -> Result<StatusCode, Problem> {
    caller.account()?;
    let row = existing(&caller, id, Action::Delete)?;
    app.propose(Command::DeleteTag { repository: row.name, tag }).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn no_version(what: impl std::fmt::Display) -> Problem {
    missing("version_not_found", format!("the image has no version {what}"))
}

#[derive(Debug, Deserialize)]
pub struct ResolveQuery {
    reference: String,
}

pub async fn resolve(
    caller: Caller,
    Query(wanted): Query<ResolveQuery>,
) -> Result<Json<Resolution>, Problem> {
    let reference: ImageReference = wanted
        .reference
        .parse()
        .map_err(|error| Problem::bad_request("reference_invalid", format!("{error}")))?;
    let (image, version) = resolved(&caller.view, &caller.who(), &reference, Action::Pull)?;
    let disk = version.disk.as_ref().map(|disk| DiskContent {
        recipe: disk.recipe,
        virtual_size_bytes: disk.virtual_bytes,
        content_size_bytes: disk.content_bytes,
        source_format: disk.source_format.clone(),
    });
    Ok(Json(Resolution {
        image_id: image.id,
        image: image.name,
        kind: kind_name(image.kind).to_owned(),
        version_id: version.id,
        version: number(&version),
        manifest_digest: version.digest,
        media_type: version.media_type,
        disk,
    }))
}

/// An image by its id, where the caller may do that with it.
pub(super) fn existing(
    caller: &Caller,
    id: ImageId,
    action: Action,
) -> Result<metadata::Image, Problem> {
    let image = caller.view.query().image(id)?.ok_or_else(|| no_image(id))?;
    noted::note_image(image.id, image.name.as_str());
    match caller.permit(action, What::Repository(&image.name)) {
        // In the words for an id that there is not: the name is not to be learnt either.
        Err(problem) if problem.status == StatusCode::NOT_FOUND => Err(no_image(id)),
        Err(problem) => Err(problem),
        Ok(()) => Ok(image),
    }
}

/// The version that a reference means now. A tag's text may also be a disk's version number.
pub(super) fn resolved(
    view: &View,
    who: &Who,
    reference: &ImageReference,
    action: Action,
) -> Result<(metadata::Image, metadata::Version), Problem> {
    permit(view, who, action, What::Repository(&reference.name))?;
    let query = view.query();
    let image = query.image_by_name(&reference.name)?.ok_or_else(|| no_image(&reference.name))?;
    noted::note_image(image.id, image.name.as_str());
    let found = match &reference.pin {
        Pin::Digest(digest) => query.version(image.id, digest)?,
        Pin::Tag(tag) => match query.tag(image.id, tag)? {
            Some(digest) => query.version(image.id, &digest)?,
            None => query.version_by_number(image.id, tag.as_str())?,
        },
    };
    let gone = || {
        let text = format!("there is no {reference}");
        match reference.pin {
            Pin::Tag(_) => missing("tag_not_found", text),
            Pin::Digest(_) => missing("version_not_found", text),
        }
    };
    Ok((image, found.ok_or_else(gone)?))
}

/// What people call a version.
pub(super) fn number(version: &metadata::Version) -> String {
    version.disk.as_ref().map_or_else(|| version.sequence.to_string(), |disk| disk.number.clone())
}

pub(super) fn kind_text(image: &metadata::Image) -> String {
    kind_name(image.kind).to_owned()
}

fn size(version: &metadata::Version) -> u64 {
    let blob = |reference: &Reference| match reference {
        Reference::Blob { size, .. } | Reference::Manifest { size, .. } => *size,
    };
    let blobs = || version.references.iter().map(blob).sum();
    version.disk.as_ref().map_or_else(blobs, |disk| disk.virtual_bytes)
}

fn image<R: Read>(query: Metadata<'_, R>, row: &metadata::Image) -> Result<Image, Fault> {
    let latest = match &row.latest {
        Some(digest) => query.version(row.id, digest)?,
        None => None,
    };
    let tags = query.tags(row.id, None, TAGS_SHOWN_MAX)?;
    let profile = row.profile.clone();
    Ok(Image {
        id: row.id,
        name: row.name.clone(),
        kind: kind_text(row),
        display_name: profile.display_name,
        description: profile.description,
        image_type: profile.image_type,
        os_type: profile.os_type,
        os_version: profile.os_version,
        architecture: profile.architecture,
        format: profile.format,
        visibility: profile.visibility,
        total_size_bytes: latest.as_ref().map_or(0, size),
        status: if latest.is_some() { "active" } else { "pending" }.to_owned(),
        latest_version: latest.as_ref().map(number),
        tags: tags.into_iter().map(|(name, _)| name).collect(),
        labels: profile.labels.into(),
        owner: row.owner.clone(),
        created_at: rfc3339(row.created_at),
        updated_at: rfc3339(row.updated_at),
    })
}

fn version<R: Read>(
    query: Metadata<'_, R>,
    image: &metadata::Image,
    row: &metadata::Version,
) -> Result<Version, Fault> {
    let disk = row.disk.as_ref();
    Ok(Version {
        id: row.id,
        version: number(row),
        version_sequence: row.sequence,
        is_latest: image.latest.as_ref() == Some(&row.digest),
        manifest_digest: row.digest.clone(),
        media_type: row.media_type.clone(),
        total_size_bytes: size(row),
        content_size_bytes: disk.map_or(0, |disk| disk.content_bytes),
        added_size_bytes: disk.map_or(0, |disk| disk.added_bytes),
        status: "active".to_owned(),
        tags: query.tags_of(image.id, &row.digest)?,
        created_at: rfc3339(row.created_at),
        created_by: row.created_by.clone(),
        pulled_at: query.version_pulled_at(image.id, &row.digest)?.map(rfc3339),
    })
}
