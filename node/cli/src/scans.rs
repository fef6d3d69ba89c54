//! Vulnerabilities of versions: looked for, and shown.

use std::time::Duration;

use comfy_table::Cell;
use reqwest::Method;
use shoal_api::{ScanOrdered, Vulnerability, VulnerabilityCounts, VulnerabilityReport};
use shoal_content::{ImageId, ImageReference, Pin};
use tokio::time::Instant;

use crate::arguments::Severity;
use crate::client::{Client, escaped};
use crate::error::{EXIT_VULNERABLE, Error};
use crate::images::existing;
use crate::screen::{Screen, state, table};

const PAGE_SIZE: u64 = 500;
/// More than a node keeps; a list that never ends is a fault of the node.
const PAGES_MAX: u64 = 1_000;
/// How often a node is asked how far it is.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// A scan is waited for no longer.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// The image that is meant, and what its version is asked for by: nothing is the latest.
async fn meant(client: &Client, text: &str) -> Result<(ImageId, Option<String>), Error> {
    let (name, version) = match text.contains([':', '@']) {
        false => (text.to_owned(), None),
        true => {
            let reference: ImageReference =
                text.parse().map_err(|error| Error::Usage(format!("{error}")))?;
            let version = match reference.pin {
                Pin::Tag(tag) => tag.to_string(),
                Pin::Digest(digest) => digest.to_string(),
            };
            (reference.name.to_string(), Some(version))
        }
    };
    Ok((existing(client, &name).await?.id, version))
}

pub async fn scan(client: &Client, text: &str, wait: bool, screen: Screen) -> Result<(), Error> {
    let (image, version) = meant(client, text).await?;
    let query = version.map(|version| format!("?version={}", escaped(&version)));
    let path = format!("api/v1/images/{image}/scan{}", query.unwrap_or_default());
    let ordered: ScanOrdered = client.call(Method::POST, path, &serde_json::json!({})).await?;
    let follow = format!("shoal image vulnerabilities {text}");
    if !wait {
        return screen.show(&ordered, || {
            format!("{}: {}; '{follow}' shows what it finds.", ordered.status, ordered.message)
        });
    }
    let digest = ordered.manifest_digest.to_string();
    let report = tokio::select! {
        ended = ended(client, image, &digest, screen) => ended?,
        _ = tokio::signal::ctrl_c() => {
            let text = format!("stopped; the nodes go on, and '{follow}' shows what they find");
            return Err(Error::Interrupted(text));
        }
    };
    screen.show(&report, || sentence(&report))
}

/// How a scan ended; the list of what it found is left out.
async fn ended(
    client: &Client,
    image: ImageId,
    digest: &str,
    screen: Screen,
) -> Result<VulnerabilityReport, Error> {
    let spinner = screen.spinner("scanning");
    let deadline = Instant::now() + WAIT_MAX;
    let failed = |reason: String| Error::Failed { what: "the scan".into(), reason };
    let outcome = loop {
        let report = page(client, image, &Some(digest.to_owned()), "", 1, 1).await?;
        match report.scan_status.as_str() {
            "completed" => break Ok(report),
            "failed" => {
                let reason = report.failure.unwrap_or_else(|| "the node does not say why".into());
                break Err(failed(reason));
            }
            _ if Instant::now() >= deadline => {
                break Err(failed("no node has done it in a day; look at the nodes' logs".into()));
            }
            _ => tokio::time::sleep(POLL_INTERVAL).await,
        }
    };
    spinner.finish_and_clear();
    outcome
}

async fn page(
    client: &Client,
    image: ImageId,
    version: &Option<String>,
    severities: &str,
    number: u64,
    size: u64,
) -> Result<VulnerabilityReport, Error> {
    let version = version.as_ref().map(|version| format!("&version={}", escaped(version)));
    let version = version.unwrap_or_default();
    let query = format!("page={number}&page_size={size}{version}{severities}");
    client.get(format!("api/v1/images/{image}/vulnerabilities?{query}")).await
}

pub async fn vulnerabilities(
    client: &Client,
    text: &str,
    wanted: &[Severity],
    fail_on: Option<Severity>,
    screen: Screen,
) -> Result<(), Error> {
    let (image, version) = meant(client, text).await?;
    let severities = match wanted {
        [] => String::new(),
        wanted => {
            let names: Vec<&str> = wanted.iter().map(|one| one.as_str()).collect();
            format!("&severity={}", names.join(","))
        }
    };
    let mut report = page(client, image, &version, &severities, 1, PAGE_SIZE).await?;
    for number in 2..=report.pagination.total_pages.min(PAGES_MAX) {
        let more = page(client, image, &version, &severities, number, PAGE_SIZE).await?;
        report.vulnerabilities.extend(more.vulnerabilities);
    }
    screen.show(&report, || {
        let said = sentence(&report);
        match report.vulnerabilities.is_empty() {
            true => said,
            false => format!("{}\n{said}", rows(&report.vulnerabilities)),
        }
    })?;
    judge(&report, fail_on)
}

/// For scripts that go no further where something is too severe, or where nobody knows.
fn judge(report: &VulnerabilityReport, fail_on: Option<Severity>) -> Result<(), Error> {
    let Some(fail_on) = fail_on else { return Ok(()) };
    let Some(summary) = report.summary else {
        let reason = report.failure.clone().unwrap_or_else(|| "it has not ended yet".into());
        return Err(Error::Failed { what: "the scan".into(), reason });
    };
    let found: u64 = Severity::ALL
        .into_iter()
        .filter(|severity| *severity <= fail_on)
        .map(|severity| u64::from(count(&summary, severity)))
        .sum();
    if found == 0 {
        return Ok(());
    }
    let message = format!("{found} vulnerabilities are {} or worse", fail_on.as_str());
    Err(Error::Judged { code: EXIT_VULNERABLE, word: "vulnerable", message })
}

fn count(summary: &VulnerabilityCounts, severity: Severity) -> u32 {
    match severity {
        Severity::Critical => summary.critical,
        Severity::High => summary.high,
        Severity::Medium => summary.medium,
        Severity::Low => summary.low,
        Severity::Unknown => summary.unknown,
    }
}

fn rows(found: &[Vulnerability]) -> String {
    let mut rows = table(&["SEVERITY", "ID", "PACKAGE", "INSTALLED", "FIXED IN", "SCORE", "TITLE"]);
    for one in found {
        rows.add_row([
            state(&one.severity),
            Cell::new(&one.id),
            Cell::new(&one.package),
            Cell::new(&one.installed_version),
            Cell::new(one.fixed_version.as_deref().unwrap_or("-")),
            Cell::new(one.cvss_score.map_or_else(|| "-".to_owned(), |score| score.to_string())),
            Cell::new(&one.title),
        ]);
    }
    rows.to_string()
}

fn sentence(report: &VulnerabilityReport) -> String {
    let VulnerabilityReport { image, version, scan_status, .. } = report;
    let mut lines = Vec::new();
    if let (Some(summary), Some(at)) = (&report.summary, &report.scanned_at) {
        let counted =
            Severity::ALL.into_iter().map(|severity| (severity, count(summary, severity)));
        let counted: Vec<String> = counted
            .filter(|(_, count)| *count > 0)
            .map(|(severity, count)| format!("{count} {}", severity.as_str()))
            .collect();
        let counted = match counted.is_empty() {
            true => "no known vulnerabilities".to_owned(),
            false => counted.join(", "),
        };
        lines.push(format!("{image} {version}: {counted}, as of {at}"));
    }
    if report.truncated {
        lines.push("more were found than are kept; the most severe are".to_owned());
    }
    match scan_status.as_str() {
        "completed" => {}
        "failed" => {
            let reason = report.failure.as_deref().unwrap_or("the node does not say why");
            lines.push(format!("the last scan failed: {reason}"));
        }
        status => lines.push(format!("a scan is ordered ({status})")),
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(status: &str, summary: serde_json::Value) -> VulnerabilityReport {
        let at = summary.is_object().then_some("2026-01-01T00:00:00Z");
        serde_json::from_value(json!({
            "image_id": format!("img-{:032x}", 1), "image": "a/b", "version": "3",
            "manifest_digest": format!("sha256:{:064x}", 1), "scan_id": format!("scan-{:032x}", 1),
            "scan_status": status, "scanned_at": at, "summary": summary, "vulnerabilities": [],
            "pagination": { "page": 1, "page_size": 1, "total_pages": 0, "total_count": 0 },
        }))
        .unwrap()
    }

    #[test]
    fn a_script_stops_at_what_is_too_severe_and_where_nobody_knows() {
        let found = json!({ "critical": 0, "high": 1, "medium": 2, "low": 0 });
        let found = report("completed", found);
        let code = |fail_on| judge(&found, fail_on).err().map(|error| error.exit_code());
        assert_eq!(code(None), None);
        assert_eq!(code(Some(Severity::Critical)), None);
        assert_eq!(code(Some(Severity::High)), Some(EXIT_VULNERABLE));
        assert_eq!(code(Some(Severity::Low)), Some(EXIT_VULNERABLE));
        let unknown = judge(&report("pending", json!(null)), Some(Severity::Critical));
        assert_eq!(unknown.unwrap_err().exit_code(), crate::error::EXIT_FAILED);
    }

    #[test]
    fn a_summary_says_what_was_found_and_how_the_last_scan_stands() {
        let none = json!({ "critical": 0, "high": 0, "medium": 0, "low": 0 });
        let text = sentence(&report("completed", none));
        assert_eq!(text, "a/b 3: no known vulnerabilities, as of 2026-01-01T00:00:00Z");
        let some = json!({ "critical": 2, "high": 0, "medium": 0, "low": 7 });
        let text = sentence(&report("scanning", some));
        let counted = "a/b 3: 2 critical, 7 low, as of 2026-01-01T00:00:00Z";
        assert_eq!(text, format!("{counted}\na scan is ordered (scanning)"));
        assert_eq!(sentence(&report("pending", json!(null))), "a scan is ordered (pending)");
    }
}
