//! Images: made, shown, described, deleted, restored; and what a reference means.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;
use shoal_api::{
    CreateImage, DiskContent, Image, ImageDetail, ImageOwner, Resolution, UpdateImage,
};
use shoal_content::{ImageId, ImageReference, Pin, RepositoryName, TagName, UploadId};
use shoal_metadata::{
    self as metadata, Action, Command, Decision, Fault, ImageDescription, ImageNote, Refusal,
    Response, UploadPurpose, What, Who, permission,
};
use shoal_raft::{ProposeError, View};
use uuid::Uuid;

use super::caller::Caller;
use super::input::{Body, Path, Query, flag};
use super::problem::{conflict, missing};
use super::profile::{self, Described};
use super::shown::{self, number};
use super::tagged::{EntityTag, Tagged};
use super::visibility;
use crate::clock::CLOCKS_APART_MS;
use crate::http::noted;
use crate::http::permit::permit;
use crate::http::problem::Problem;
use crate::state::App;
use crate::trash::PURGE_ROWS;

/// How often a description is put together anew with what others change at the same moment.
const UPDATE_ATTEMPTS_MAX: usize = 16;

pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Body(request): Body<CreateImage>,
) -> Result<(StatusCode, Json<Image>), Problem> {
    let wanted = visibility::wanted(&request.visibility, request.is_public)?;
    let organization = visibility::organization(&request.organization_id)?;
    caller.permit(Action::Push, What::Repository(&request.name))?;
    let owner = caller.account()?;
    let project = request.name.project();
    if app.upstreams.of_project(&project).is_some() {
        let text = format!("{project} holds what is pulled from there; nothing is put into it");
        return Err(Problem::forbidden(text));
    }
    let needed = match caller.view.query().project(&project)? {
        Some(found) => {
            visibility::check(&found, wanted)?;
            visibility::check_owner(&found, organization.as_ref())?;
            None
        }
        None => visibility::needed(&caller, &request.name, wanted, organization)?,
    };
    let who = caller.who();
    drop(caller);
    let id = ImageId::from_uuid(Uuid::now_v7());
    let name = request.name.clone();
    let Described { kind, profile, note } = profile::described(request)?;
    if let Some(project) = needed {
        visibility::make(&app, &name, &who, project).await?;
    }
    // Nodes of an earlier version know the shorter command only.
    app.propose(match note == ImageNote::default() {
        true => Command::CreateImage { id, name, kind, profile, owner },
        false => Command::CreateDescribedImage { id, name, kind, profile, note, owner },
    })
    .await?;
    let view = app.view().await?;
    let row = view.query().image(id)?.ok_or_else(|| no_image(id))?;
    Ok((StatusCode::CREATED, Json(shown::image(view.query(), &row)?)))
}

pub(super) fn no_image(id: impl std::fmt::Display) -> Problem {
    missing("image_not_found", format!("there is no image {id}"))
}

/// `GET /api/v1/images/{id}`: also of a deleted one, for who may restore it.
pub async fn show(caller: Caller, Path(id): Path<ImageId>) -> Result<Tagged<ImageDetail>, Problem> {
    let row = match existing(&caller, id, Action::List) {
        Ok(row) => row,
        Err(problem) => deleted(&caller, id).map_err(|_| problem)?,
    };
    Ok(detail(&caller.view, &row, &caller.who())?)
}

/// As `who` sees it, with the tag of what is said of it.
fn detail(view: &View, row: &metadata::Image, who: &Who) -> Result<Tagged<ImageDetail>, Fault> {
    let query = view.query();
    let note = query.image_note(row.id)?;
    let person = match who {
        Who::User { name, .. } => Some(name),
        _ => None,
    };
    let email = email(view, row, who)?;
    let owner = ImageOwner { id: row.owner.clone(), name: row.owner.clone(), email };
    let detail = ImageDetail {
        image: shown::image_with(query, row, shown::tags(query, row)?, owner)?,
        min_cpu_cores: row.profile.min_cpu_cores,
        min_memory_mb: row.profile.min_memory_mb,
        min_disk_gb: row.profile.min_disk_gb,
        recommended_cpu_cores: note.recommended_cpu_cores,
        recommended_memory_mb: note.recommended_memory_mb,
        recommended_disk_gb: note.recommended_disk_gb,
        versions: shown::versions(query, row)?,
        starred: match person {
            Some(user) => query.is_starred(row.id, user)?,
            None => false,
        },
    };
    let description = ImageDescription { profile: row.profile.clone(), note };
    Ok(Tagged(EntityTag::of(&description), detail))
}

/// The owner's, for itself and for who looks after the project.
fn email(view: &View, row: &metadata::Image, who: &Who) -> Result<Option<String>, Fault> {
    let query = view.query();
    let is_own = matches!(who, Who::User { name, .. } if *name == row.owner);
    let may = is_own || {
        let what = What::Repository(&row.name);
        matches!(permission(query, who, Action::Audit, what)?, Decision::Allowed(_))
    };
    // The name may be another account's by now.
    let made = row.created_at.plus_millis(CLOCKS_APART_MS);
    if may && query.was_there(&row.owner, made)? { query.email(&row.owner) } else { Ok(None) }
}

/// `PUT /api/v1/images/{id}`. The command says all that is said of the image, and from what: where
/// somebody else was quicker, the change is made of what that one said – or refused, where it was
/// for what `If-Match` names.
pub async fn update(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    headers: HeaderMap,
    Body(request): Body<UpdateImage>,
) -> Result<Tagged<ImageDetail>, Problem> {
    let by = caller.account()?;
    let mut row = existing(&caller, id, Action::Push)?;
    check_name(&row, request.name.as_deref())?;
    let wanted = request.visibility.as_deref().unwrap_or_default();
    let wanted = visibility::wanted(wanted, request.is_public)?;
    let organization = request.organization_id.as_deref().unwrap_or_default();
    let organization = visibility::organization(organization)?;
    let changed = visibility::change(&app, &caller, &row, wanted, organization.as_ref())?;
    let mut note = caller.view.query().image_note(id)?;
    let who = caller.who();
    drop(caller);
    for _ in 0..UPDATE_ATTEMPTS_MAX {
        let from = ImageDescription { profile: row.profile, note };
        EntityTag::of(&from).check(&headers)?;
        let to = profile::changed(row.kind, from.clone(), request.clone(), by.clone())?;
        let (from, to) = (Box::new(from), Box::new(to));
        let answer = app.propose(Command::RedescribeImage { id, from, to }).await;
        let view = app.view().await?;
        row = view.query().live_image(id)?.ok_or_else(|| no_image(id))?;
        match answer {
            Err(ProposeError::Refused(Refusal::Changed(_))) => {
                note = view.query().image_note(id)?
            }
            Err(error) => return Err(error.into()),
            Ok(_) => {
                let Some(visibility) = changed else { return Ok(detail(&view, &row, &who)?) };
                drop(view);
                visibility::set(&app, &row, visibility).await?;
                return Ok(detail(&app.view().await?, &row, &who)?);
            }
        }
    }
    Err(conflict("changed", format!("{id} is changed by others all the time; try again")))
}

/// What was shown may be sent back; another name is none that it can get.
fn check_name(image: &metadata::Image, name: Option<&str>) -> Result<(), Problem> {
    match name.filter(|name| !name.is_empty() && *name != image.name.as_str()) {
        None => Ok(()),
        Some(_) => {
            let text = format!(
                "an image keeps its name, which it is pulled by; make another one, and delete {}",
                image.name
            );
            Err(conflict("name_fixed", text))
        }
    }
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DeleteQuery {
    #[serde(deserialize_with = "flag")]
    purge: Option<bool>,
}

/// `DELETE /api/v1/images/{id}`: it can be restored for a while; with `?purge=true` it is gone for
/// good, whether it was deleted before or not.
pub async fn delete(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    Query(DeleteQuery { purge }): Query<DeleteQuery>,
) -> Result<StatusCode, Problem> {
    let purge = purge.unwrap_or(false);
    let row = match existing(&caller, id, Action::Delete) {
        Err(problem) if purge => deleted(&caller, id).map_err(|_| problem)?,
        row => row?,
    };
    let by = caller.account()?;
    let sessions = sessions_to(&caller, &row)?;
    drop(caller);
    if purge {
        end_for_good(&app, id, by).await?;
    } else {
        app.propose(Command::TrashImage { id, by }).await?;
    }
    // What is still being uploaded to it would be found to have no image, a day later perhaps.
    for upload in sessions {
        app.services.disks.abort(upload).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Piece by piece. Should this node not come to the end of it, the leader does (see `trash`).
async fn end_for_good(app: &App, id: ImageId, by: String) -> Result<(), Problem> {
    let mut begun = false;
    loop {
        let piece = Command::PurgeImage { id, by: by.clone(), rows_max: PURGE_ROWS };
        match app.propose(piece).await {
            Ok(Response::Purged { gone: false }) => begun = true,
            Ok(_) => return Ok(()),
            // The leader was quicker.
            Err(ProposeError::Refused(Refusal::NotFound(_))) if begun => return Ok(()),
            // Nodes of an earlier version know only how to do it at once.
            Err(ProposeError::Unsupported { .. }) => {
                app.propose(Command::DeleteImage { id }).await?;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
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
    noted::note_pin(&reference.pin);
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
