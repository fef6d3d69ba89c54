//! Scans: that vulnerabilities are looked for in a version, who does that, and what came of it.
//!
//! A version has one row, which says what was ordered last and how that stands, and what the last
//! scan that came to an end has found. The list of what was found is an object in storage.
//!
//! Invariants: the object of a row counts as referred to by it; the row is gone when its version is;
//! a scan stands among the open ones exactly while it has not come to an end.
//! Non-goal: what is in the list.

use serde::{Deserialize, Serialize};
use shoal_content::{Digest, ImageId, NodeId, ObjectKey, ScanId, Timestamp};

use crate::key;
use crate::query::Query;
use crate::table::{Fault, Read, Table};
use crate::transaction::{decoded, row};

/// Scans of the whole cluster that have not come to an end.
pub const OPEN_SCANS_MAX: usize = 1000;
/// The longest reason for a failure, in bytes.
pub const SCAN_REASON_BYTES_MAX: usize = 1024;
/// The longest name of a scanner, in bytes.
pub const SCANNER_BYTES_MAX: usize = 128;

/// Which version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ScanKey {
    pub image: ImageId,
    pub digest: Digest,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scan {
    /// Of the last order.
    pub id: ScanId,
    pub of: ScanKey,
    pub ordered_at: Timestamp,
    /// Empty where it came by itself.
    pub ordered_by: String,
    pub state: ScanState,
    /// Of the last scan that was completed, this one or one before.
    pub report: Option<ScanReport>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScanState {
    Pending,
    /// Whoever finds the lease run out may do it.
    Scanning {
        node: NodeId,
        lease_until: Timestamp,
        attempt: u32,
    },
    Completed,
    /// With the reason that people are told.
    Failed {
        at: Timestamp,
        reason: String,
    },
}

impl ScanState {
    /// Whether it has not come to an end.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Pending | Self::Scanning { .. })
    }
}

/// How many vulnerabilities there are of each severity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeverityCounts {
    pub critical: u32,
    pub high: u32,
    pub medium: u32,
    pub low: u32,
    /// Nobody has said how severe they are.
    pub unknown: u32,
}

impl SeverityCounts {
    pub fn total(&self) -> u64 {
        let Self { critical, high, medium, low, unknown } = *self;
        [critical, high, medium, low, unknown].into_iter().map(u64::from).sum()
    }
}

/// What a scan has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanReport {
    pub id: ScanId,
    pub completed_at: Timestamp,
    pub found: SeverityCounts,
    /// Of those, so many are in the list.
    pub listed: u32,
    /// The list, where there is something in it.
    pub list: Option<ObjectKey>,
    /// How long that is.
    pub list_bytes: u64,
    /// Name and version.
    pub scanner: String,
    /// Of when what the scanner knows is, where it says so.
    pub database_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScanOutcome {
    Completed(ScanReport),
    Failed { reason: String },
}

impl<R: Read> Query<'_, R> {
    pub fn scan(&self, of: &ScanKey) -> Result<Option<Scan>, Fault> {
        row(self.read, Table::Scans, &key::scan(of))
    }

    /// Of the versions that have this digest, in whatever repository; at most `limit`.
    pub fn scans_of(&self, digest: &Digest, limit: usize) -> Result<Vec<Scan>, Fault> {
        let rows = self.read.scan(Table::Scans, b"", &key::digest(digest), limit)?;
        rows.iter().map(|(_, bytes)| decoded(Table::Scans, bytes)).collect()
    }

    /// Those of all versions behind `after`, at most `limit`.
    pub fn scans_after(&self, after: Option<&ScanKey>, limit: usize) -> Result<Vec<Scan>, Fault> {
        let from = after.map(|after| key::after(key::scan(after))).unwrap_or_default();
        let rows = self.read.scan(Table::Scans, &from, b"", limit)?;
        rows.iter().map(|(_, bytes)| decoded(Table::Scans, bytes)).collect()
    }

    /// Those that have not come to an end, the one that was ordered first before the others; at most
    /// `limit`.
    pub fn open_scans(&self, limit: usize) -> Result<Vec<Scan>, Fault> {
        let rows = self.read.scan(Table::OpenScans, b"", b"", limit)?;
        let broken = Fault::Contradiction("an index names no scan");
        let scans: Result<Option<Vec<Scan>>, Fault> = rows
            .iter()
            .map(|(key, _)| {
                let (image, digest) =
                    key::read_image_digest(key.get(key::TIME_BYTES..).unwrap_or_default())?;
                self.scan(&ScanKey { image, digest })
            })
            .collect();
        scans?.ok_or(broken)
    }
}
