//! What the scanner says, read into what is kept of it.
//!
//! The program reads images of strangers, and so may say anything: what is missing is empty, what is
//! too long is cut, and what has no end has been cut off before (see `program`).
//!
//! Invariants: a vulnerability of a package counts once, wherever it was found; the most severe come
//! first, and where a list grows beyond [`LIST_BYTES_MAX`] or [`LISTED_MAX`] its end goes, while the
//! counts are of all.

use std::collections::BTreeMap;

use serde::Deserialize;
use shoal_api::Vulnerability;
use shoal_metadata::{SCANNER_BYTES_MAX, SeverityCounts};
use thiserror::Error;

/// Vulnerabilities of one list.
pub const LISTED_MAX: usize = 20_000;
/// What they take as JSON.
pub const LIST_BYTES_MAX: usize = 8 * 1024 * 1024;
const ID_BYTES_MAX: usize = 128;
const NAME_BYTES_MAX: usize = 256;
const TITLE_BYTES_MAX: usize = 512;
const DESCRIPTION_BYTES_MAX: usize = 4096;
const REFERENCES_MAX: usize = 16;
const REFERENCE_BYTES_MAX: usize = 512;
const SEVERITIES: [&str; 5] = ["CRITICAL", "HIGH", "MEDIUM", "LOW", "UNKNOWN"];

/// Why that is no report.
#[derive(Debug, Error)]
pub enum ReportError {
    #[error("output_invalid: the scanner did not answer with a report in JSON")]
    Json(#[source] serde_json::Error),
    #[error("output_invalid: the scanner answered with something else than its report")]
    Other,
}

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    pub counts: SeverityCounts,
    /// The most severe first.
    pub listed: Vec<Vulnerability>,
    /// As JSON; nothing where none is listed.
    pub list: Vec<u8>,
    pub scanner: String,
}

/// As Trivy writes it (schema version 2), of which as much is read as is kept.
#[derive(Deserialize)]
struct Report {
    #[serde(rename = "SchemaVersion")]
    schema_version: Option<u32>,
    #[serde(rename = "Trivy")]
    trivy: Option<Program>,
    #[serde(rename = "Results")]
    results: Option<Vec<Target>>,
}

#[derive(Deserialize)]
struct Program {
    #[serde(rename = "Version")]
    version: Option<String>,
}

#[derive(Deserialize)]
struct Target {
    #[serde(rename = "Vulnerabilities")]
    vulnerabilities: Option<Vec<Said>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Said {
    #[serde(rename = "VulnerabilityID")]
    vulnerability_id: Option<String>,
    pkg_name: Option<String>,
    installed_version: Option<String>,
    fixed_version: Option<String>,
    title: Option<String>,
    description: Option<String>,
    severity: Option<String>,
    #[serde(rename = "CVSS")]
    cvss: Option<BTreeMap<String, Scores>>,
    references: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Scores {
    #[serde(rename = "V3Score")]
    v3: Option<f64>,
    #[serde(rename = "V40Score")]
    v4: Option<f64>,
    #[serde(rename = "V2Score")]
    v2: Option<f64>,
}

/// # Errors
/// See [`ReportError`].
pub fn parse(output: &[u8]) -> Result<Found, ReportError> {
    let report: Report = serde_json::from_slice(output).map_err(ReportError::Json)?;
    if report.schema_version.is_none() {
        return Err(ReportError::Other);
    }
    let version = report.trivy.and_then(|program| program.version).unwrap_or_default();
    let scanner = cut(format!("trivy {version}").trim().to_owned(), SCANNER_BYTES_MAX);
    let said = report.results.into_iter().flatten().filter_map(|target| target.vulnerabilities);
    // By how severe they are, then by name.
    let mut all: BTreeMap<(usize, String, String, String), Vulnerability> = BTreeMap::new();
    for one in said.flatten().filter_map(read) {
        let rank = SEVERITIES.iter().position(|severity| *severity == one.severity);
        let rank = rank.unwrap_or(SEVERITIES.len());
        let key = (rank, one.id.clone(), one.package.clone(), one.installed_version.clone());
        all.entry(key).or_insert(one);
    }
    let mut counts = SeverityCounts::default();
    for (rank, ..) in all.keys() {
        let count = match rank {
            0 => &mut counts.critical,
            1 => &mut counts.high,
            2 => &mut counts.medium,
            3 => &mut counts.low,
            _ => &mut counts.unknown,
        };
        *count = count.saturating_add(1);
    }
    let (listed, list) = listed(all.into_values())?;
    Ok(Found { counts, listed, list, scanner })
}

/// As many as may be kept, and their JSON.
fn listed(
    all: impl Iterator<Item = Vulnerability>,
) -> Result<(Vec<Vulnerability>, Vec<u8>), ReportError> {
    let (mut listed, mut list) = (Vec::new(), Vec::new());
    for one in all.take(LISTED_MAX) {
        let text = serde_json::to_vec(&one).map_err(ReportError::Json)?;
        // With what stands before and behind it.
        if list.len() + text.len() + 2 > LIST_BYTES_MAX {
            break;
        }
        list.push(if list.is_empty() { b'[' } else { b',' });
        list.extend(text);
        listed.push(one);
    }
    if !list.is_empty() {
        list.push(b']');
    }
    Ok((listed, list))
}

/// What has neither a name nor a package says nothing.
fn read(said: Said) -> Option<Vulnerability> {
    let text = |text: Option<String>, most| cut(plain(text.unwrap_or_default()), most);
    let id = text(said.vulnerability_id, ID_BYTES_MAX);
    let package = text(said.pkg_name, NAME_BYTES_MAX);
    if id.is_empty() || package.is_empty() {
        return None;
    }
    let severity = said.severity.unwrap_or_default().to_ascii_uppercase();
    let known = SEVERITIES.iter().find(|known| **known == severity);
    let fixed_version = text(said.fixed_version, NAME_BYTES_MAX);
    let links = said.references.into_iter().flatten().filter(|link| {
        let is_link = link.starts_with("https://") || link.starts_with("http://");
        is_link && link.len() <= REFERENCE_BYTES_MAX && !link.contains(char::is_control)
    });
    Some(Vulnerability {
        id,
        severity: (*known.unwrap_or(&SEVERITIES[SEVERITIES.len() - 1])).to_owned(),
        package,
        installed_version: text(said.installed_version, NAME_BYTES_MAX),
        fixed_version: Some(fixed_version).filter(|version| !version.is_empty()),
        title: text(said.title, TITLE_BYTES_MAX),
        description: text(said.description, DESCRIPTION_BYTES_MAX),
        cvss_score: said.cvss.as_ref().and_then(score),
        references: links.take(REFERENCES_MAX).collect(),
    })
}

/// That of the National Vulnerability Database, or else the highest; of version 3, then 4, then 2.
fn score(by_source: &BTreeMap<String, Scores>) -> Option<f64> {
    let possible = |score: &f64| (0.0..=10.0).contains(score);
    let of =
        |scores: &Scores| [scores.v3, scores.v4, scores.v2].into_iter().flatten().find(possible);
    by_source.get("nvd").and_then(of).or_else(|| by_source.values().filter_map(of).reduce(f64::max))
}

/// Without what a terminal would obey.
fn plain(text: String) -> String {
    let odd = |c: char| c.is_control() && c != '\n';
    match text.contains(odd) {
        true => text.replace(odd, " "),
        false => text,
    }
}

/// No longer than `most` bytes.
pub fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed(results: &Value) -> Found {
        let report = json!({
            "SchemaVersion": 2, "Trivy": { "Version": "0.76.0" }, "ArtifactName": "x",
            "Results": results,
        });
        parse(report.to_string().as_bytes()).unwrap()
    }

    fn vulnerability(id: &str, package: &str, severity: &str) -> Value {
        json!({
            "VulnerabilityID": id, "PkgName": package, "InstalledVersion": "1", "Severity": severity,
        })
    }

    #[test]
    fn a_report_is_read_with_the_most_severe_first() {
        let openssl = json!({
            "VulnerabilityID": "CVE-2024-1234", "PkgID": "openssl@1.1.1", "PkgName": "openssl",
            "InstalledVersion": "1.1.1", "FixedVersion": "1.1.1n", "Status": "fixed",
            "Title": "Overflow", "Description": "Two\nlines", "Severity": "HIGH",
            "CVSS": { "redhat": { "V3Score": 9.1 }, "nvd": { "V2Score": 4.0, "V3Score": 7.5 } },
            "References": ["https://nvd.nist.gov/vuln/detail/CVE-2024-1234", "javascript:alert(1)"],
        });
        let found = parsed(&json!([
            { "Target": "x (debian 12)", "Class": "os-pkgs", "Vulnerabilities": [
                vulnerability("CVE-1", "zlib", "LOW"), openssl, vulnerability("CVE-2", "bash", "?"),
            ] },
            { "Target": "app/go.sum", "Vulnerabilities": [vulnerability("CVE-3", "net", "critical")] },
            { "Target": "nothing here" },
        ]));
        let counts = SeverityCounts { critical: 1, high: 1, low: 1, unknown: 1, medium: 0 };
        assert_eq!((found.counts, found.scanner.as_str()), (counts, "trivy 0.76.0"));
        let ids: Vec<&str> = found.listed.iter().map(|one| one.id.as_str()).collect();
        assert_eq!(ids, ["CVE-3", "CVE-2024-1234", "CVE-1", "CVE-2"]);
        assert_eq!(
            serde_json::to_value(&found.listed[1]).unwrap(),
            json!({
                "id": "CVE-2024-1234", "severity": "HIGH", "package": "openssl",
                "installed_version": "1.1.1", "fixed_version": "1.1.1n", "title": "Overflow",
                "description": "Two\nlines", "cvss_score": 7.5,
                "references": ["https://nvd.nist.gov/vuln/detail/CVE-2024-1234"],
            })
        );
        assert_eq!(
            serde_json::from_slice::<Vec<Vulnerability>>(&found.list).unwrap(),
            found.listed
        );
    }

    #[test]
    fn the_same_in_two_places_counts_once() {
        let twice = json!([
            { "Vulnerabilities": [vulnerability("CVE-1", "a", "HIGH")] },
            { "Vulnerabilities": [
                vulnerability("CVE-1", "a", "HIGH"), vulnerability("CVE-1", "b", "HIGH"),
            ] },
        ]);
        assert_eq!(parsed(&twice).counts.high, 2);
    }

    #[test]
    fn nothing_found_has_no_list() {
        for results in [json!(null), json!([]), json!([{ "Vulnerabilities": null }])] {
            let found = parsed(&results);
            assert_eq!((found.counts.total(), found.list.len()), (0, 0), "{results}");
        }
    }

    #[test]
    fn what_is_missing_or_odd_is_left_out() {
        let found = parsed(&json!([{ "Vulnerabilities": [
            {}, { "VulnerabilityID": "CVE-1" }, { "PkgName": "a" },
            { "VulnerabilityID": "CVE-2\u{1b}[31m", "PkgName": "a", "CVSS": { "nvd": { "V3Score": 99.0 } },
              "FixedVersion": "", "Title": "é".repeat(TITLE_BYTES_MAX), "Unheard": [{ "of": 1 }] },
        ] }]));
        let [one] = &found.listed[..] else { panic!("{found:?}") };
        assert_eq!((one.id.as_str(), one.severity.as_str()), ("CVE-2 [31m", "UNKNOWN"));
        assert_eq!((one.cvss_score, &one.fixed_version), (None, &None));
        assert_eq!(one.title.len(), TITLE_BYTES_MAX);
    }

    #[test]
    fn what_is_no_report_is_refused() {
        for text in
            ["", "{}", "[]", "null", "usage: trivy", "{\"SchemaVersion\":2", "{\"Results\":[]}"]
        {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        let wrong = json!({ "SchemaVersion": 2, "Results": [{ "Vulnerabilities": [7] }] });
        assert!(parse(wrong.to_string().as_bytes()).is_err());
        let deep = format!("{{\"SchemaVersion\":2,\"x\":{}", "[".repeat(100_000));
        assert!(parse(deep.as_bytes()).is_err());
    }

    #[test]
    fn a_list_has_an_end_and_the_counts_are_of_all() {
        let many = (0..LISTED_MAX + 10).map(|number| {
            let severity = if number == LISTED_MAX + 9 { "CRITICAL" } else { "LOW" };
            vulnerability(&format!("CVE-{number:09}"), "a", severity)
        });
        let found = parsed(&json!([{ "Vulnerabilities": many.collect::<Vec<_>>() }]));
        assert_eq!((found.counts.total() as usize, found.counts.critical), (LISTED_MAX + 10, 1));
        assert_eq!(
            (found.listed.len(), found.listed[0].severity.as_str()),
            (LISTED_MAX, "CRITICAL")
        );

        let long = (0..4000).map(|number| {
            let mut one = vulnerability(&format!("CVE-{number:09}"), "a", "LOW");
            one["Description"] = "x".repeat(DESCRIPTION_BYTES_MAX).into();
            one
        });
        let found = parsed(&json!([{ "Vulnerabilities": long.collect::<Vec<_>>() }]));
        assert!(found.list.len() <= LIST_BYTES_MAX && found.listed.len() < 4000);
        let read: Vec<Vulnerability> = serde_json::from_slice(&found.list).unwrap();
        assert_eq!(read.len(), found.listed.len());
    }
}
