//! A disk as a file in one of its formats, written on the fly from its chunks.
//!
//! Invariants: the length is exact and known before the first byte; two downloads of one version
//! in one format are equal byte for byte, so the entity tag names recipe and format and ranges can
//! be put together. The bytes themselves: see `disks::export`.

use std::ops::Range;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use shoal_content::{ImageId, RecipeId};
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
use crate::state::App;

/// Changes when the writers' output does.
const WRITERS_VERSION: u32 = 1;

#[derive(Debug, Deserialize, JsonSchema)]
pub struct DownloadQuery {
    format: Option<String>,
}

pub async fn download(
    State(app): State<App>,
    caller: Caller,
    Path((image, wanted)): Path<(ImageId, String)>,
    Query(query): Query<DownloadQuery>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let row = existing(&caller, image, Action::Pull)?;
    let version =
        version(caller.view.query(), image, &wanted)?.ok_or_else(|| no_version(&wanted))?;
    drop(caller);
    // Who only asks how long it is has pulled nothing.
    let pulls = method != Method::HEAD;
    if pulls {
        // A number that is no tag is passed over when this is written down.
        app.services.pulls.note(image, wanted.parse().ok().as_ref(), &version.digest);
        let target = format!("{}:{wanted}@{}", row.name, version.digest);
        app.services.audit.note("image.pull", target, shoal_metadata::AuditResult::Done);
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
    let answer = answer(&app.services.origin, disk.recipe, export, &file, &headers)?;
    if pulls && is_first(&headers, answer.status()) {
        app.services.pulls.count(image, &version.digest);
    }
    Ok(answer)
}

/// Whether this is a download, and not a later piece of one.
fn is_first(headers: &HeaderMap, status: StatusCode) -> bool {
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    match status {
        StatusCode::PARTIAL_CONTENT => range.is_some_and(|range| range.starts_with("bytes=0-")),
        status => status.is_success(),
    }
}

fn answer(
    origin: &Origin,
    recipe: RecipeId,
    export: Export,
    file: &str,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let length = export.len();
    let etag = format!("\"{recipe}-{}-{WRITERS_VERSION}\"", export.target());
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if text(header::IF_NONE_MATCH).is_some_and(|known| known == "*" || known.contains(&etag)) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response());
    }
    let same = text(header::IF_RANGE).is_none_or(|known| known == etag);
    let range = text(header::RANGE).filter(|_| same).map(|range| parse_range(range, length));
    let (status, range) = match range {
        None | Some(Asked::Whole) => (StatusCode::OK, 0..length),
        Some(Asked::Part(range)) => (StatusCode::PARTIAL_CONTENT, range),
        Some(Asked::Outside) => {
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
    noted::note_download();
    let body = Body::from_stream(exported(origin.clone(), recipe, export, range));
    answer
        .body(body)
        .map_err(|_| Problem::bad_request("request_invalid", "the name cannot be sent"))
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Whole,
    Part(Range<u64>),
    Outside,
}

/// What `fuzz` asks of it: a part lies in the file and is not empty.
pub fn check_range(text: &str, length: u64) {
    if let Asked::Part(range) = parse_range(text, length) {
        assert!(range.start < range.end && range.end <= length, "{range:?} of {length}");
    }
}

/// RFC 9110, section 14.2. More than one range, or another unit, is answered by the whole file.
fn parse_range(text: &str, length: u64) -> Asked {
    let Some((from, to)) = text.strip_prefix("bytes=").and_then(|spec| spec.split_once('-')) else {
        return Asked::Whole;
    };
    let (from, to) = (from.trim(), to.trim());
    let range = if from.is_empty() {
        let Ok(last) = to.parse::<u64>() else { return Asked::Whole };
        length.saturating_sub(last)..length
    } else {
        let Ok(from) = from.parse::<u64>() else { return Asked::Whole };
        let end = match to.parse::<u64>() {
            Ok(to) if to < from => return Asked::Whole,
            Ok(to) => to.saturating_add(1).min(length),
            Err(_) if to.is_empty() => length,
            Err(_) => return Asked::Whole,
        };
        from..end
    };
    if range.start < range.end { Asked::Part(range) } else { Asked::Outside }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_http_means_them() {
        assert_eq!(parse_range("bytes=0-9", 100), Asked::Part(0..10));
        assert_eq!(parse_range("bytes=90-", 100), Asked::Part(90..100));
        assert_eq!(parse_range("bytes=-10", 100), Asked::Part(90..100));
        assert_eq!(parse_range("bytes=-1000", 100), Asked::Part(0..100));
        assert_eq!(parse_range("bytes=50-1000", 100), Asked::Part(50..100));
        assert_eq!(parse_range("bytes=100-", 100), Asked::Outside);
        assert_eq!(parse_range("bytes=-0", 100), Asked::Outside);
        for odd in ["bytes=9-1", "bytes=a-b", "chunks=1-2", "bytes=0-1,5-6", ""] {
            assert_eq!(parse_range(odd, 100), Asked::Whole, "{odd}");
        }
    }
}
