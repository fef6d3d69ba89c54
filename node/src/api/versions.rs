//! Versions of an image: listed, made of others, shown, described, deprecated, removed.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;
use shoal_api::{
    CreateVersion, DeprecateVersion, Page, Pagination, UpdateVersion, Version, VersionDetail,
};
use shoal_content::{Digest, ImageId, TagName, VersionId};
use shoal_metadata::{
    self as metadata, Action, Command, Fault, ImageKind, PutManifest, Read, Refusal, Response,
};
use shoal_raft::ProposeError;
use uuid::Uuid;

use super::caller::Caller;
use super::images::{existing, no_image};
use super::input::{Body, Path, Query, count};
use super::problem::{conflict, missing};
use super::tags::check_new;
use super::window::{Selection, Window};
use super::{numbers, shown, uploads};
use crate::disks::{ARTIFACT_TYPE, DiskFile, DiskManifest, MEDIA_TYPE};
use crate::http::problem::Problem;
use crate::state::App;

/// How often a version is made of another one whose chunks are moved meanwhile.
const ATTEMPTS_MAX: usize = 3;

pub(super) fn no_version(what: impl std::fmt::Display) -> Problem {
    missing("version_not_found", format!("the image has no version {what}"))
}

/// A disk's version by its number, with a `v` before it or without.
pub(super) fn numbered<R: Read>(
    query: metadata::Query<'_, R>,
    image: ImageId,
    text: &str,
) -> Result<Option<metadata::Version>, Fault> {
    if let Some(version) = query.version_by_number(image, text)? {
        return Ok(Some(version));
    }
    match text.strip_prefix('v') {
        Some(number) => query.version_by_number(image, number),
        None => Ok(None),
    }
}

/// By version id, digest, number or tag; by the UUID of an id alone where nothing else is called so.
pub(super) fn version<R: Read>(
    query: metadata::Query<'_, R>,
    image: ImageId,
    wanted: &str,
) -> Result<Option<metadata::Version>, Fault> {
    if wanted.parse::<VersionId>().is_ok() {
        return by_id(query, image, wanted);
    }
    if let Ok(digest) = wanted.parse::<Digest>() {
        return query.version(image, &digest);
    }
    if let Some(version) = query.version_by_number(image, wanted)? {
        return Ok(Some(version));
    }
    let tag = wanted.parse::<TagName>().ok();
    match tag.map(|tag| query.tag(image, &tag)).transpose()?.flatten() {
        Some(digest) => query.version(image, &digest),
        None => match numbered(query, image, wanted)? {
            Some(version) => Ok(Some(version)),
            None => by_id(query, image, wanted),
        },
    }
}

/// By version id, with its prefix or without. What is no id is one that there is not.
pub(super) fn by_id<R: Read>(
    query: metadata::Query<'_, R>,
    image: ImageId,
    text: &str,
) -> Result<Option<metadata::Version>, Fault> {
    let id = text.parse::<VersionId>().or_else(|_| Uuid::try_parse(text).map(VersionId::from_uuid));
    let Ok(id) = id else { return Ok(None) };
    Ok(query.version_by_id(id)?.filter(|version| version.image == image))
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct VersionsQuery {
    #[serde(deserialize_with = "count")]
    page: Option<u64>,
    #[serde(deserialize_with = "count")]
    page_size: Option<u64>,
    /// `active` or `deprecated`.
    status: Option<String>,
}

/// `GET …/versions`: the highest numbers first. A page costs what is on it, and a look at the key of each
/// version before it; of a disk, at those of all, which are some thousands at most. By status, it costs a
/// row of each version, of which no more are held than up to the page's end.
pub async fn list(
    caller: Caller,
    Path(id): Path<ImageId>,
    Query(wanted): Query<VersionsQuery>,
) -> Result<Json<Page<Version>>, Problem> {
    let query = caller.view.query();
    let image = existing(&caller, id, Action::List)?;
    let window = Window::new(wanted.page, wanted.page_size);
    let (digests, pagination) = match wanted.status.filter(|text| !text.is_empty()) {
        Some(status) => with_status(query, &image, window, &status)?,
        None => {
            let total = match query.tally(id)? {
                Some(tally) => tally.versions,
                None => query.versions_by_sequence(id, 0, usize::MAX)?.len() as u64,
            };
            let digests = match usize::try_from(window.skipped()) {
                Ok(skip) if window.skipped() < total => {
                    shown::newest(query, &image, skip, window.size())?
                }
                _ => Vec::new(),
            };
            (digests, window.among(total))
        }
    };
    let rows = digests.iter().map(|digest| shown::indexed(query, id, digest));
    let data = rows.map(|row| shown::version(query, &image, &row?));
    Ok(Json(Page { data: data.collect::<Result<_, Fault>>()?, pagination }))
}

fn with_status<R: Read>(
    query: metadata::Query<'_, R>,
    image: &metadata::Image,
    window: Window,
    status: &str,
) -> Result<(Vec<Digest>, Pagination), Fault> {
    let mut selection = Selection::new(window);
    let mut look = |digest: Digest| -> Result<(), Fault> {
        if shown::version_status(&query.version_note(image.id, &digest)?) == status {
            selection.offer(0, digest);
        }
        Ok(())
    };
    match image.kind {
        ImageKind::Container => query.each_version(image.id, look)?,
        ImageKind::Disk => {
            for digest in query.newest_versions(image.id)? {
                look(digest)?;
            }
        }
    }
    Ok(selection.finish())
}

/// `POST …/versions`: content that is there, under another number.
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    Body(request): Body<CreateVersion>,
) -> Result<(StatusCode, Json<VersionDetail>), Problem> {
    let owner = caller.account()?;
    numbers::check_names(&request.version, &request.tags)?;
    let from = match (&request.manifest_digest, request.from) {
        (Some(digest), _) => digest.to_string(),
        (None, Some(from)) => from,
        (None, None) => {
            let text = "manifest_digest or from says what it is made of";
            return Err(Problem::bad_request("version_missing", text));
        }
    };
    let (image, row) = found(&caller, id, &from, Action::Push)?;
    check_new(caller.view.query(), id, &request.version, &request.tags)?;
    let file = DiskFile::of(&row);
    let Some(disk) = row.disk else {
        let text = "this is a container image; push the manifest under another tag";
        return Err(conflict("not_a_disk", text));
    };
    let note = caller.view.query().version_note(id, &row.digest)?;
    drop(caller);
    let manifest = DiskManifest {
        image: &image.name,
        file,
        recipe: disk.recipe,
        number: &request.version,
        virtual_bytes: disk.virtual_bytes,
        content_bytes: disk.content_bytes,
        source_format: disk.source_format.parse()?,
    };
    let (bytes, digest) = manifest.encode();
    let mut put = PutManifest {
        repository: image.name.clone(),
        image: id,
        version: VersionId::from_uuid(Uuid::now_v7()),
        kind: ImageKind::Disk,
        digest: digest.clone(),
        media_type: MEDIA_TYPE.to_owned(),
        manifest: bytes,
        artifact_type: Some(ARTIFACT_TYPE.to_owned()),
        annotations: manifest.annotations(),
        subject: None,
        references: BTreeSet::new(),
        disk: Some(metadata::Disk { number: request.version.clone(), added_bytes: 0, ..disk }),
        tags: request.tags,
        owner: owner.clone(),
        upload: None,
    };
    // The version that it is made of holds its objects, or the command finds them going.
    let compressed_bytes = note.compressed_bytes.unwrap_or_default();
    let mut attempts = 1;
    let answer = loop {
        let command = Command::PublishDisk { put: put.clone(), compressed_bytes };
        match app.propose(command).await {
            // Its chunks were moved since it was looked at.
            Err(ProposeError::Refused(Refusal::Changed(_))) if attempts < ATTEMPTS_MAX => {
                attempts += 1;
                let now = app.view().await?.query().version(id, &row.digest)?;
                let now = now.and_then(|now| now.disk).ok_or_else(|| no_version(&from))?;
                put.disk = put.disk.map(|disk| metadata::Disk { objects: now.objects, ..disk });
            }
            answer => break answer,
        }
    };
    let answer = answer.map_err(|error| match error {
        ProposeError::Refused(Refusal::Exists(_)) => numbers::number_taken(&request.version),
        error => error.into(),
    })?;
    match answer {
        Response::Version { created: false, .. } => {
            return Err(numbers::number_taken(&request.version));
        }
        Response::Version { id, .. } => app.services.scanner.pushed(id),
        _ => {}
    }
    let (changelog, build_info) = (request.changelog, uploads::build_info(request.build_info));
    if !changelog.is_empty() || !build_info.is_empty() {
        app.propose(Command::DescribeVersion {
            image: id,
            digest: digest.clone(),
            changelog: Some(changelog),
            build_info: Some(build_info),
            by: owner,
        })
        .await?;
    }
    Ok((StatusCode::CREATED, shown_again(&app, id, &digest).await?))
}

/// The image and one of its versions, where the caller may do that.
fn found(
    caller: &Caller,
    id: ImageId,
    wanted: &str,
    action: Action,
) -> Result<(metadata::Image, metadata::Version), Problem> {
    let image = existing(caller, id, action)?;
    let row = version(caller.view.query(), id, wanted)?.ok_or_else(|| no_version(wanted))?;
    Ok((image, row))
}

async fn shown_again(
    app: &App,
    image: ImageId,
    digest: &Digest,
) -> Result<Json<VersionDetail>, Problem> {
    let view = app.view().await?;
    let query = view.query();
    let image = query.image(image)?.ok_or_else(|| no_image(image))?;
    let row = query.version(image.id, digest)?.ok_or_else(|| no_version(digest))?;
    Ok(Json(shown::version_detail(query, &image, &row)?))
}

/// `GET …/versions/{version}`.
pub async fn show(
    caller: Caller,
    Path((id, wanted)): Path<(ImageId, String)>,
) -> Result<Json<VersionDetail>, Problem> {
    let (image, row) = found(&caller, id, &wanted, Action::List)?;
    Ok(Json(shown::version_detail(caller.view.query(), &image, &row)?))
}

/// `PUT …/versions/{version}`.
pub async fn update(
    State(app): State<App>,
    caller: Caller,
    Path((id, wanted)): Path<(ImageId, String)>,
    Body(request): Body<UpdateVersion>,
) -> Result<Json<VersionDetail>, Problem> {
    let by = caller.account()?;
    let (image, row) = found(&caller, id, &wanted, Action::Push)?;
    drop(caller);
    let UpdateVersion { changelog, build_info } = request;
    let build_info = build_info.map(|info| serde_json::Value::Object(info).to_string());
    let (image, digest) = (image.id, row.digest);
    let describe =
        Command::DescribeVersion { image, digest: digest.clone(), changelog, build_info, by };
    app.propose(describe).await?;
    shown_again(&app, image, &digest).await
}

/// `POST …/versions/{version}/deprecate`: the answer says which instances run it.
pub async fn deprecate(
    State(app): State<App>,
    caller: Caller,
    Path((id, wanted)): Path<(ImageId, String)>,
    request: Option<Body<DeprecateVersion>>,
) -> Result<Json<VersionDetail>, Problem> {
    let Body(request) = request.unwrap_or(Body(DeprecateVersion::default()));
    set_deprecation(&app, caller, id, &wanted, Some(request.message)).await
}

/// `DELETE …/versions/{version}/deprecate`: it may be used again.
pub async fn undeprecate(
    State(app): State<App>,
    caller: Caller,
    Path((id, wanted)): Path<(ImageId, String)>,
) -> Result<Json<VersionDetail>, Problem> {
    set_deprecation(&app, caller, id, &wanted, None).await
}

async fn set_deprecation(
    app: &App,
    caller: Caller,
    id: ImageId,
    wanted: &str,
    message: Option<String>,
) -> Result<Json<VersionDetail>, Problem> {
    let by = caller.account()?;
    let (image, row) = found(&caller, id, wanted, Action::Push)?;
    drop(caller);
    let (image, digest) = (image.id, row.digest);
    app.propose(Command::DeprecateVersion { image, digest: digest.clone(), message, by }).await?;
    shown_again(app, image, &digest).await
}

/// `DELETE …/versions/{version}`, with its tags.
pub async fn delete(
    State(app): State<App>,
    caller: Caller,
    Path((id, wanted)): Path<(ImageId, String)>,
) -> Result<StatusCode, Problem> {
    caller.account()?;
    let (image, row) = found(&caller, id, &wanted, Action::Delete)?;
    drop(caller);
    let (repository, digest) = (image.name, row.digest);
    app.propose(Command::DeleteManifest { repository, digest }).await?;
    Ok(StatusCode::NO_CONTENT)
}
