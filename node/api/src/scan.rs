//! Vulnerabilities: that they are looked for in a version, and which were found.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shoal_content::{Digest, ImageId, RepositoryName, ScanId};

use crate::Pagination;

/// `POST /api/v1/images/{id}/scan`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ScanOrdered {
    /// Of the order that stands: one that has not come to an end is not made again.
    pub scan_id: ScanId,
    /// `pending`, or `scanning` where it was ordered before.
    pub status: String,
    pub message: String,
    pub image_id: ImageId,
    pub version: String,
    pub manifest_digest: Digest,
}

/// How many vulnerabilities there are of each severity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VulnerabilityCounts {
    pub critical: u32,
    pub high: u32,
    pub medium: u32,
    pub low: u32,
    /// Nobody has said how severe they are.
    #[serde(default)]
    pub unknown: u32,
}

/// One vulnerability of one package.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Vulnerability {
    /// For instance `CVE-2024-1234`.
    pub id: String,
    /// `CRITICAL`, `HIGH`, `MEDIUM`, `LOW` or `UNKNOWN`.
    pub severity: String,
    pub package: String,
    pub installed_version: String,
    /// None where there is no version yet that is free of it.
    pub fixed_version: Option<String>,
    pub title: String,
    pub description: String,
    /// Of CVSS, 0 to 10.
    pub cvss_score: Option<f64>,
    pub references: Vec<String>,
}

/// `GET /api/v1/images/{id}/vulnerabilities`: a page of what the last scan that was completed has
/// found in one version, and how the scan stands that was ordered last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VulnerabilityReport {
    pub image_id: ImageId,
    pub image: RepositoryName,
    pub version: String,
    pub manifest_digest: Digest,
    /// Of the last order.
    pub scan_id: ScanId,
    /// `pending`, `scanning`, `completed` or `failed`.
    pub scan_status: String,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// When the last scan was completed: what is below is of then. None where there was none yet.
    pub scanned_at: Option<String>,
    /// Of all that was found, whatever is listed.
    pub summary: Option<VulnerabilityCounts>,
    /// Name and version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scanner: Option<String>,
    /// Of when what the scanner knew was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database_updated_at: Option<String>,
    /// More was found than is kept; the most severe are.
    #[serde(default)]
    pub truncated: bool,
    /// The most severe first.
    pub vulnerabilities: Vec<Vulnerability>,
    pub pagination: Pagination,
}
