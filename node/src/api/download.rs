//! A disk as a file in one of its formats, written on the fly from its chunks.
//!
//! Invariants: the length is exact and known before the first byte; two downloads of one version
//! in one format are equal byte for byte, so the entity tag names recipe and format and ranges can
//! be put together. The bytes themselves: see `disks::export`.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use shoal_content::{ImageId, Pin, RecipeId, VersionId};
use shoal_formats::{Export, Target};
use shoal_metadata::Action;

use super::caller::Caller;
use super::images::existing;
use super::input::{Path, Query};
use super::problem::{conflict, unavailable};
use super::shown::number;
use super::versions::{no_version, version};
use crate::disks::exported;
use crate::http::noted;
use crate::http::problem::Problem;
use crate::origin::Origin;
use crate::registry::condition;
use crate::registry::range::{Wanted, wanted};
use crate::state::App;

/// Changes when the writers' output does.
const WRITERS_VERSION: u32 = 1;

#[derive(Debug, Deserialize, JsonSchema)]
pub struct DownloadQuery {
    format: Option<String>,
}

pub async fn download(
    State(app): State<App>,
    method: Method,
    caller: Caller,
    Path((image, name)): Path<(ImageId, String)>,
    Query(query): Query<DownloadQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let row = existing(&caller, image, Action::Pull)?;
    let version = version(caller.view.query(), image, &name)?.ok_or_else(|| no_version(&name))?;
    drop(caller);
    // An id says nothing to who reads the log.
    let named: Result<Pin, _> = match name.parse::<VersionId>() {
        Ok(_) => number(&version).parse(),
        Err(_) => name.parse(),
    };
    if let Ok(pin) = named {
        noted::note_pin(&pin);
    }
    let Some(disk) = &version.disk else {
        let text = "this is a container image; pull it with docker, skopeo or podman";
        return Err(conflict("not_a_disk", text));
    };
    let asked = query.format.as_deref().filter(|text| !text.is_empty());
    let target: Target = match asked {
        Some(asked) => asked.parse()?,
        // Nodes of an earlier version kept whatever they were told.
        None => row.profile.format.parse().unwrap_or(Target::Qcow2),
    };
    let recipe = app.services.origin.recipe(disk.recipe).await?.ok_or_else(|| {
        tracing::error!(recipe = %disk.recipe, "a version's recipe is not in storage");
        unavailable("the disk's recipe is not in storage; tell the operator")
    })?;
    let export = tokio::task::spawn_blocking(move || Export::new(target, recipe)).await;
    let export = export.map_err(|_| unavailable("the node is stopping"))??;
    let file = format!(
        "{}-{}.{}",
        row.name.as_str().rsplit('/').next().unwrap_or_default(),
        number(&version),
        target.extension()
    );
    let answer = answer(&app.services.origin, disk.recipe, export, &file, &method, &headers)?;
    // Nothing is pulled by who has it already, or only asks about it.
    if method == Method::GET && answer.status().is_success() {
        // A number that is no tag is passed over when this is written down.
        app.services.pulls.note(image, name.parse().ok().as_ref(), &version.digest);
        let target = format!("{}:{name}@{}", row.name, version.digest);
        app.services.audit.note("image.pull", target, shoal_metadata::AuditResult::Done);
        if is_first(&answer) {
            app.services.pulls.count(image, &version.digest);
        }
    }
    Ok(answer)
}

/// Whether this is a download, and not a later piece of one.
fn is_first(answer: &Response) -> bool {
    let part = answer.headers().get(header::CONTENT_RANGE);
    part.is_none_or(|part| part.as_bytes().starts_with(b"bytes 0-"))
}

fn answer(
    origin: &Origin,
    recipe: RecipeId,
    export: Export,
    file: &str,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let length = export.len();
    let tag = format!("{recipe}-{}-{WRITERS_VERSION}", export.target());
    let etag = format!("\"{tag}\"");
    if condition::has_tagged(headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response());
    }
    // Ranges are defined for GET alone (RFC 9110, 14.2).
    let range = condition::range_of(headers, &etag).filter(|_| *method == Method::GET);
    let (status, range) = match wanted(range, length) {
        Wanted::Whole => (StatusCode::OK, 0..length),
        Wanted::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Wanted::Unsatisfiable => {
            let text = format!("the file has {length} bytes");
            let mut refused =
                Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, "range_not_satisfiable", text)
                    .into_response();
            if let Ok(value) = HeaderValue::from_str(&format!("bytes */{length}")) {
                refused.headers_mut().insert(header::CONTENT_RANGE, value);
            }
            return Ok(refused);
        }
    };
    let mut answer = Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, range.end - range.start)
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::ETAG, etag)
        .header(header::CONTENT_DISPOSITION, format!("attachment; filename=\"{file}\""));
    if status == StatusCode::PARTIAL_CONTENT {
        let shown = format!("bytes {}-{}/{length}", range.start, range.end - 1);
        answer = answer.header(header::CONTENT_RANGE, shown);
    }
    let body = match *method {
        Method::GET => {
            noted::note_download();
            Body::from_stream(exported(origin.clone(), recipe, export, range))
        }
        _ => Body::empty(),
    };
    answer
        .body(body)
        .map_err(|_| Problem::bad_request("request_invalid", "the name cannot be sent"))
}
