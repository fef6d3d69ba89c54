//! Images: made, shown, described, deleted, restored; and what a reference means.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;
use shoal_api::{
    CreateImage, DiskContent, Image, ImageDetail, ImageOwner, Resolution, UpdateImage,
};
use shoal_content::{ImageId, ImageReference, Labels, Pin, RepositoryName, TagName, UploadId};
use shoal_metadata::{
    self as metadata, Action, Command, Fault, ImageKind, ImageNote, ImageProfile, UploadPurpose,
    Visibility, What, Who,
};
use shoal_raft::View;
use uuid::Uuid;

use super::caller::Caller;
use super::input::{Body, Path, Query};
use super::problem::missing;
use super::shown::{self, number};
use crate::http::noted;
use crate::http::permit::permit;
use crate::http::problem::Problem;
use crate::state::App;

/// Of what people say of an image, in bytes.
const TEXT_BYTES_MAX: usize = 255;
const DESCRIPTION_BYTES_MAX: usize = 4096;

pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Body(request): Body<CreateImage>,
) -> Result<(StatusCode, Json<Image>), Problem> {
    let visibility = match request.visibility.as_str() {
        "public" => Some(Visibility::Public),
        "organization" => Some(Visibility::Organization),
        "" | "private" => None,
        _ => {
            let text = "visibility is public, organization or private";
            return Err(Problem::bad_request("visibility_invalid", text));
        }
    };
    caller.permit(Action::Push, What::Repository(&request.name))?;
    let owner = caller.account()?;
    let project = request.name.project();
    if app.upstreams.of_project(&project).is_some() {
        let text = format!("{project} holds what is pulled from there; nothing is put into it");
        return Err(Problem::forbidden(text));
    }
    let is_new = caller.view.query().project(&project)?.is_none();
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
        labels: labels(request.labels)?,
    };
    check_texts(&profile)?;
    let note = ImageNote {
        recommended_cpu_cores: request.recommended_cpu_cores,
        recommended_memory_mb: request.recommended_memory_mb,
        recommended_disk_gb: request.recommended_disk_gb,
        annotations: labels(request.annotations)?.into(),
        updated_by: String::new(),
    };
    let (name, kind) = (request.name, ImageKind::Disk);
    // Nodes of an earlier version know the shorter command only.
    app.propose(match note == ImageNote::default() {
        true => Command::CreateImage { id, name, kind, profile, owner },
        false => Command::CreateDescribedImage { id, name, kind, profile, note, owner },
    })
    .await?;
    if let Some(visibility) = visibility.filter(|_| is_new) {
        let (description, owner) = (String::new(), None);
        let open = Command::UpdateProject { name: project, visibility, description, owner };
        app.propose(open).await?;
    }
    let view = app.view().await?;
    let row = view.query().image(id)?.ok_or_else(|| no_image(id))?;
    Ok((StatusCode::CREATED, Json(shown::image(view.query(), &row)?)))
}

fn labels(map: std::collections::BTreeMap<String, String>) -> Result<Labels, Problem> {
    let labels = Labels::try_from(map);
    labels.map_err(|error| Problem::bad_request("labels_invalid", error.to_string()))
}

/// Every listing carries them.
fn check_texts(profile: &ImageProfile) -> Result<(), Problem> {
    let texts = [
        ("display_name", &profile.display_name, TEXT_BYTES_MAX),
        ("description", &profile.description, DESCRIPTION_BYTES_MAX),
        ("image_type", &profile.image_type, TEXT_BYTES_MAX),
        ("os_type", &profile.os_type, TEXT_BYTES_MAX),
        ("os_version", &profile.os_version, TEXT_BYTES_MAX),
        ("architecture", &profile.architecture, TEXT_BYTES_MAX),
        ("format", &profile.format, TEXT_BYTES_MAX),
    ];
    for (name, text, most) in texts {
        if text.len() > most {
            let text = format!("{name} has at most {most} bytes");
            return Err(Problem::bad_request("text_too_long", text));
        }
    }
    Ok(())
}

pub(super) fn no_image(id: impl std::fmt::Display) -> Problem {
    missing("image_not_found", format!("there is no image {id}"))
}

/// `GET /api/v1/images/{id}`: also of a deleted one, for who may restore it.
pub async fn show(caller: Caller, Path(id): Path<ImageId>) -> Result<Json<ImageDetail>, Problem> {
    let row = match existing(&caller, id, Action::List) {
        Ok(row) => row,
        Err(problem) => deleted(&caller, id).map_err(|_| problem)?,
    };
    let starred = match caller.person() {
        Ok(user) => caller.view.query().is_starred(id, user)?,
        Err(_) => false,
    };
    Ok(Json(detail(&caller.view, &row, starred)?))
}

fn detail(view: &View, row: &metadata::Image, starred: bool) -> Result<ImageDetail, Fault> {
    let query = view.query();
    let note = query.image_note(row.id)?;
    let owner = ImageOwner { id: row.owner.clone(), name: row.owner.clone() };
    Ok(ImageDetail {
        image: shown::image_with(query, row, shown::tags(query, row)?, owner)?,
        min_cpu_cores: row.profile.min_cpu_cores,
        min_memory_mb: row.profile.min_memory_mb,
        min_disk_gb: row.profile.min_disk_gb,
        recommended_cpu_cores: note.recommended_cpu_cores,
        recommended_memory_mb: note.recommended_memory_mb,
        recommended_disk_gb: note.recommended_disk_gb,
        versions: shown::versions(query, row)?,
        starred,
        updated_by: note.updated_by,
    })
}

/// `PUT /api/v1/images/{id}`.
pub async fn update(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    Body(request): Body<UpdateImage>,
) -> Result<Json<ImageDetail>, Problem> {
    let by = caller.account()?;
    let row = existing(&caller, id, Action::Push)?;
    let note = caller.view.query().image_note(id)?;
    drop(caller);
    let old = row.profile;
    let profile = ImageProfile {
        display_name: request.display_name.unwrap_or(old.display_name),
        description: request.description.unwrap_or(old.description),
        image_type: request.image_type.unwrap_or(old.image_type),
        os_type: request.os_type.unwrap_or(old.os_type),
        os_version: request.os_version.unwrap_or(old.os_version),
        architecture: request.architecture.unwrap_or(old.architecture),
        format: request.format.unwrap_or(old.format),
        visibility: old.visibility,
        min_cpu_cores: request.min_cpu_cores.unwrap_or(old.min_cpu_cores),
        min_memory_mb: request.min_memory_mb.unwrap_or(old.min_memory_mb),
        min_disk_gb: request.min_disk_gb.unwrap_or(old.min_disk_gb),
        labels: request.labels.map(labels).transpose()?.unwrap_or(old.labels),
    };
    check_texts(&profile)?;
    let cores = request.recommended_cpu_cores.unwrap_or(note.recommended_cpu_cores);
    let annotations = request.annotations.map(labels).transpose()?;
    let note = ImageNote {
        recommended_cpu_cores: cores,
        recommended_memory_mb: request.recommended_memory_mb.unwrap_or(note.recommended_memory_mb),
        recommended_disk_gb: request.recommended_disk_gb.unwrap_or(note.recommended_disk_gb),
        annotations: annotations.map_or(note.annotations, Into::into),
        updated_by: by,
    };
    app.propose(Command::DescribeImage { id, profile, note }).await?;
    let view = app.view().await?;
    let row = view.query().image(id)?.ok_or_else(|| no_image(id))?;
    Ok(Json(detail(&view, &row, false)?))
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DeleteQuery {
    purge: bool,
}

/// `DELETE /api/v1/images/{id}`: it can be restored for a while; with `?purge=true` it is gone for
/// good, whether it was deleted before or not.
pub async fn delete(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    Query(DeleteQuery { purge }): Query<DeleteQuery>,
) -> Result<StatusCode, Problem> {
    let row = match existing(&caller, id, Action::Delete) {
        Err(problem) if purge => deleted(&caller, id).map_err(|_| problem)?,
        row => row?,
    };
    let by = caller.account()?;
    let sessions = sessions_to(&caller, &row)?;
    drop(caller);
    let delete = if purge { Command::DeleteImage { id } } else { Command::TrashImage { id, by } };
    app.propose(delete).await?;
    // What is still being uploaded to it would be found to have no image, a day later perhaps.
    for upload in sessions {
        app.services.disks.abort(upload).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /api/v1/images/{id}/restore`.
pub async fn restore(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
) -> Result<Json<Image>, Problem> {
    deleted(&caller, id)?;
    caller.account()?;
    drop(caller);
    app.propose(Command::RestoreImage { id }).await?;
    let view = app.view().await?;
    let row = view.query().image(id)?.ok_or_else(|| no_image(id))?;
    Ok(Json(shown::image(view.query(), &row)?))
}

fn sessions_to(caller: &Caller, image: &metadata::Image) -> Result<Vec<UploadId>, Problem> {
    let sessions = caller.view.query().uploads()?.into_iter();
    let of_image = sessions.filter(|session| match &session.purpose {
        UploadPurpose::Blob { repository, .. } => *repository == image.name,
        UploadPurpose::Disk { image: of, .. } => *of == image.id,
    });
    Ok(of_image.map(|session| session.id).collect())
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ResolveQuery {
    /// `NAME:TAG` or `NAME@DIGEST`.
    reference: Option<String>,
    /// In place of that.
    name: Option<RepositoryName>,
    tag: Option<TagName>,
}

pub async fn resolve(
    caller: Caller,
    Query(wanted): Query<ResolveQuery>,
) -> Result<Json<Resolution>, Problem> {
    let text = match wanted {
        ResolveQuery { reference: Some(reference), .. } => reference,
        ResolveQuery { name: Some(name), tag: Some(tag), .. } => format!("{name}:{tag}"),
        ResolveQuery { name: Some(name), .. } => format!("{name}:latest"),
        _ => String::new(),
    };
    let reference: ImageReference = text
        .parse()
        .map_err(|error| Problem::bad_request("reference_invalid", format!("{error}")))?;
    let query = caller.view.query();
    let (image, version) = resolved(&caller.view, &caller.who(), &reference, Action::Pull)?;
    let tag = match reference.pin {
        Pin::Tag(tag) if query.tag(image.id, &tag)?.is_some() => Some(tag),
        _ => None,
    };
    let note = query.version_note(image.id, &version.digest)?;
    let disk = version.disk.as_ref().map(|disk| DiskContent {
        recipe: disk.recipe,
        virtual_size_bytes: disk.virtual_bytes,
        content_size_bytes: disk.content_bytes,
        source_format: disk.source_format.clone(),
    });
    Ok(Json(Resolution {
        image_id: image.id,
        image: image.name,
        kind: shown::kind_name(image.kind).to_owned(),
        version_id: version.id,
        version: number(&version),
        manifest_digest: version.digest,
        media_type: version.media_type,
        tag,
        status: shown::version_status(&note),
        deprecation: shown::deprecation(&note),
        disk,
    }))
}

/// An image by its id, where the caller may do that with it.
pub(super) fn existing(
    caller: &Caller,
    id: ImageId,
    action: Action,
) -> Result<metadata::Image, Problem> {
    let image = caller.view.query().live_image(id)?.ok_or_else(|| no_image(id))?;
    let name = image.name.clone();
    permitted(caller, image, action, What::Repository(&name))
}

/// An image that was deleted and that the caller may restore: by its right in the project, since the
/// name may be another image's by now, with other grants.
fn deleted(caller: &Caller, id: ImageId) -> Result<metadata::Image, Problem> {
    let query = caller.view.query();
    let image = query.image(id)?.ok_or_else(|| no_image(id))?;
    if query.deletion(&image)?.is_none() {
        return Err(no_image(id));
    }
    let project = image.name.project();
    permitted(caller, image, Action::Delete, What::Project(&project))
}

fn permitted(
    caller: &Caller,
    image: metadata::Image,
    action: Action,
    what: What<'_>,
) -> Result<metadata::Image, Problem> {
    noted::note_image(image.id, image.name.as_str());
    match caller.permit(action, what) {
        // In the words for an id that there is not: the name is not to be learnt either.
        Err(problem) if problem.status == StatusCode::NOT_FOUND => Err(no_image(image.id)),
        Err(problem) => Err(problem),
        Ok(()) => Ok(image),
    }
}

/// The version that a reference means now. A tag's text may also be a disk's version number, with a
/// `v` before it or without.
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
            None => super::versions::numbered(query, image.id, tag.as_str())?,
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
