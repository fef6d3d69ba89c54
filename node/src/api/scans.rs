//! Scans for vulnerabilities: ordered, and what they have found.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;
use shoal_api::{Pagination, ScanOrdered, Vulnerability, VulnerabilityReport};
use shoal_content::{Digest, ImageId};
use shoal_metadata::{self as metadata, Action, Response, Scan, ScanKey, ScanState, What};

use super::caller::Caller;
use super::images::existing;
use super::input::{Path, Query, count};
use super::problem::{conflict, missing, unavailable};
use super::shown::{number, scan_status, severities};
use super::versions::{no_version, version};
use super::window::Window;
use crate::clock::rfc3339;
use crate::http::problem::Problem;
use crate::scanning::{self, ListError};
use crate::state::App;

/// Repositories with a digest that are looked at for one that the asker may see.
const HOLDERS_MAX: usize = 100;
const SEVERITIES: [&str; 5] = ["CRITICAL", "HIGH", "MEDIUM", "LOW", "UNKNOWN"];

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ScanQuery {
    /// An id, a number, a digest or a tag; the latest version where missing.
    version: Option<String>,
}

/// `POST /api/v1/images/{image}/scan`.
pub async fn order(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    Query(ScanQuery { version: wanted }): Query<ScanQuery>,
) -> Result<(StatusCode, Json<ScanOrdered>), Problem> {
    let by = caller.account()?;
    let (_, row) = found(&caller, id, wanted.as_deref(), Action::Push)?;
    if !app.services.scanner.is_on() {
        let text = "this node scans nothing; its operator names a scanner in [scanner] command";
        return Err(conflict("scanner_disabled", text));
    }
    let of = ScanKey { image: id, digest: row.digest.clone() };
    if let Some(unfit) = scanning::unfit(caller.view.query(), &of)? {
        return Err(conflict("not_scannable", unfit.to_string()));
    }
    drop(caller);
    let Response::Scan(scan_id) = app.propose(scanning::order(of.clone(), by)).await? else {
        return Err(unavailable("the order was answered with something else; try again"));
    };
    let view = app.view().await?;
    let scan = view.query().scan(&of)?.filter(|scan| scan.id == scan_id);
    let status = scan.map_or("pending", |scan| scan_status(&scan.state));
    let message = match status {
        "pending" => "the scan is ordered; a node takes it as soon as one is free",
        _ => "the scan is under way",
    };
    let ordered = ScanOrdered {
        scan_id,
        status: status.to_owned(),
        message: message.to_owned(),
        image_id: id,
        version: number(&row),
        manifest_digest: row.digest,
    };
    Ok((StatusCode::ACCEPTED, Json(ordered)))
}

/// The image and the version that is meant.
fn found(
    caller: &Caller,
    id: ImageId,
    wanted: Option<&str>,
    action: Action,
) -> Result<(metadata::Image, metadata::Version), Problem> {
    let image = existing(caller, id, action)?;
    let query = caller.view.query();
    let row = match (wanted.filter(|text| !text.is_empty()), &image.latest) {
        (Some(wanted), _) => version(query, id, wanted)?.ok_or_else(|| no_version(wanted))?,
        (None, Some(latest)) => query.version(id, latest)?.ok_or_else(|| no_version(latest))?,
        (None, None) => {
            return Err(missing("version_not_found", "the image has no version yet"));
        }
    };
    Ok((image, row))
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct VulnerabilitiesQuery {
    /// An id, a number, a digest or a tag; the latest version where missing.
    version: Option<String>,
    /// `critical,high,…`: those alone. The summary is of all.
    severity: Option<String>,
    #[serde(deserialize_with = "count")]
    page: Option<u64>,
    #[serde(deserialize_with = "count")]
    page_size: Option<u64>,
}

/// `GET /api/v1/images/{image}/vulnerabilities`.
pub async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    Query(wanted): Query<VulnerabilitiesQuery>,
) -> Result<Json<VulnerabilityReport>, Problem> {
    let filter = Filter::new(&wanted)?;
    let (image, row) = found(&caller, id, wanted.version.as_deref(), Action::List)?;
    let of = ScanKey { image: id, digest: row.digest.clone() };
    let scan = caller.view.query().scan(&of)?.ok_or_else(|| no_scan(&row.digest))?;
    drop(caller);
    shown(&app, image, &row, scan, filter).await
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ArtifactQuery {
    /// `critical,high,…`: those alone. The summary is of all.
    severity: Option<String>,
    #[serde(deserialize_with = "count")]
    page: Option<u64>,
    #[serde(deserialize_with = "count")]
    page_size: Option<u64>,
}

/// `GET /api/v1/artifacts/{digest}/vulnerabilities`: in whatever repository the version is that the
/// asker may see.
pub async fn of_artifact(
    State(app): State<App>,
    caller: Caller,
    Path(digest): Path<String>,
    Query(ArtifactQuery { severity, page, page_size }): Query<ArtifactQuery>,
) -> Result<Json<VulnerabilityReport>, Problem> {
    let wanted = VulnerabilitiesQuery { version: None, severity, page, page_size };
    let filter = Filter::new(&wanted)?;
    let digest: Digest = digest.parse().map_err(|_| no_scan(&digest))?;
    let query = caller.view.query();
    for scan in query.scans_of(&digest, HOLDERS_MAX)? {
        let Some(image) = query.live_image(scan.of.image)? else { continue };
        if caller.permit(Action::List, What::Repository(&image.name)).is_err() {
            continue;
        }
        let row = query.version(image.id, &digest)?.ok_or_else(|| no_scan(&digest))?;
        drop(caller);
        return shown(&app, image, &row, scan, filter).await;
    }
    Err(no_scan(&digest))
}

fn no_scan(what: impl std::fmt::Display) -> Problem {
    let text = format!("nobody has ordered a scan of {what} yet (POST /api/v1/images/ID/scan)");
    missing("scan_not_found", text)
}

/// Which of what was found.
struct Filter {
    /// None is all.
    severities: Option<Vec<&'static str>>,
    window: Window,
}

impl Filter {
    fn new(wanted: &VulnerabilitiesQuery) -> Result<Self, Problem> {
        let given = wanted.severity.as_ref().filter(|text| !text.is_empty());
        let severities: Option<Result<Vec<_>, Problem>> =
            given.map(|text| text.split(',').map(severity).collect());
        let window = Window::new(wanted.page, wanted.page_size);
        Ok(Self { severities: severities.transpose()?, window })
    }

    fn of(self, mut all: Vec<Vulnerability>) -> (Vec<Vulnerability>, Pagination) {
        if let Some(wanted) = &self.severities {
            all.retain(|one| wanted.contains(&one.severity.as_str()));
        }
        self.window.of(all)
    }
}

fn severity(text: &str) -> Result<&'static str, Problem> {
    let text = text.trim();
    let known = SEVERITIES.into_iter().find(|known| known.eq_ignore_ascii_case(text));
    known.ok_or_else(|| {
        let text = "severity is critical, high, medium, low and unknown, parted by commas";
        Problem::bad_request("severity_invalid", text)
    })
}

async fn shown(
    app: &App,
    image: metadata::Image,
    row: &metadata::Version,
    scan: Scan,
    filter: Filter,
) -> Result<Json<VulnerabilityReport>, Problem> {
    let Scan { id, state, report, .. } = scan;
    let all = match &report {
        Some(report) => app.services.scanner.list(report).await?,
        None => Vec::new(),
    };
    let (vulnerabilities, pagination) = filter.of(all);
    let scan_status = scan_status(&state).to_owned();
    let failure = match state {
        ScanState::Failed { reason, .. } => Some(reason),
        _ => None,
    };
    let report = report.as_ref();
    let database_at = report.and_then(|report| report.database_at);
    Ok(Json(VulnerabilityReport {
        image_id: image.id,
        image: image.name,
        version: number(row),
        manifest_digest: row.digest.clone(),
        scan_id: id,
        scan_status,
        failure,
        scanned_at: report.map(|report| rfc3339(report.completed_at)),
        summary: report.map(|report| severities(report.found)),
        scanner: report.map(|report| report.scanner.clone()),
        database_updated_at: database_at.map(rfc3339),
        truncated: report.is_some_and(|it| u64::from(it.listed) < it.found.total()),
        vulnerabilities,
        pagination,
    }))
}

impl From<ListError> for Problem {
    fn from(error: ListError) -> Self {
        match error {
            ListError::Store(error) => error.into(),
            ListError::Content(_) => Self::internal(&error),
            ListError::Stopping => unavailable("the node is stopping"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn severities_are_read_as_people_write_them() {
        let read = |text: &str| {
            let wanted = VulnerabilitiesQuery { severity: Some(text.into()), ..Default::default() };
            Filter::new(&wanted).map(|filter| filter.severities)
        };
        assert_eq!(read("critical, HIGH").unwrap(), Some(vec!["CRITICAL", "HIGH"]));
        assert_eq!(read("").unwrap(), None);
        for text in ["severe", "high,,low", ","] {
            assert_eq!(read(text).unwrap_err().code, "severity_invalid", "{text}");
        }
    }
}
