//! The newest report of each host in each deployment, as this node heard it.
//!
//! Invariant: at most [`DEPLOYMENTS_MAX`] deployments are kept; those that were reported to longest
//! ago go first. Nothing here survives the process, and nothing needs to.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shoal_api::TransferProgress;
use shoal_content::{DeploymentId, PeerId, Timestamp};

/// Deployments whose progress one node keeps.
const DEPLOYMENTS_MAX: usize = 1024;

/// What a host said, and when it was heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reported {
    pub progress: TransferProgress,
    pub heard_at: Timestamp,
    /// Which attempt of the host it is about.
    #[serde(default)]
    pub attempt: u32,
}

/// The reports of one deployment, by host.
pub type Reports = BTreeMap<PeerId, Reported>;

#[derive(Debug, Default)]
struct Entry {
    touched: u64,
    reports: Reports,
}

#[derive(Debug, Default)]
struct Entries {
    turn: u64,
    deployments: HashMap<DeploymentId, Entry>,
}

/// See the module's documentation. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Board {
    entries: Arc<Mutex<Entries>>,
}

impl Board {
    /// Keeps a report. The caller has checked that the host is part of the deployment.
    pub fn record(&self, deployment: DeploymentId, host: PeerId, reported: Reported) {
        let mut entries = self.entries.lock();
        entries.turn += 1;
        let turn = entries.turn;
        let is_new = !entries.deployments.contains_key(&deployment);
        if is_new && entries.deployments.len() >= DEPLOYMENTS_MAX {
            let oldest = entries.deployments.iter().min_by_key(|(_, entry)| entry.touched);
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                entries.deployments.remove(&oldest);
            }
        }
        let entry = entries.deployments.entry(deployment).or_default();
        entry.touched = turn;
        entry.reports.insert(host, reported);
    }

    /// Whether the host's last word here was that it is at this attempt.
    pub fn is_running(&self, deployment: DeploymentId, host: PeerId, attempt: u32) -> bool {
        let entries = self.entries.lock();
        let entry = entries.deployments.get(&deployment);
        entry.and_then(|entry| entry.reports.get(&host)).is_some_and(|reported| {
            reported.attempt == attempt && reported.progress.state == "running"
        })
    }

    /// What this node has heard.
    pub fn reports(&self, deployment: DeploymentId) -> Reports {
        let entries = self.entries.lock();
        entries.deployments.get(&deployment).map(|entry| entry.reports.clone()).unwrap_or_default()
    }
}

/// Adds `other` to `reports`: of two reports of a host, one that says it is done counts, which is
/// for good; else that of the later attempt; of one attempt, that it ended, else the one heard later.
pub fn merge(reports: &mut Reports, other: Reports) {
    let rank = |report: &Reported| {
        let state = report.progress.state.as_str();
        (state == "done", report.attempt, state != "running", report.heard_at)
    };
    for (host, report) in other {
        match reports.get(&host) {
            Some(known) if rank(known) >= rank(&report) => {}
            _ => {
                reports.insert(host, report);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn deployment(number: u128) -> DeploymentId {
        DeploymentId::from_uuid(Uuid::from_u128(number))
    }

    fn said(state: &str, bytes_done: u64, at: u64, attempt: u32) -> Reported {
        let state = state.to_owned();
        let progress = TransferProgress { state, bytes_done, ..TransferProgress::default() };
        Reported { progress, heard_at: Timestamp::from_millis(at), attempt }
    }

    #[test]
    fn the_end_of_a_transfer_outlives_a_later_word_from_elsewhere() {
        let host = PeerId::from_public_key([1; 32]);
        let (here, there) = (Board::default(), Board::default());
        here.record(deployment(1), host, said("done", 9, 5, 0));
        there.record(deployment(1), host, said("running", 3, 8, 0));
        let mut merged = there.reports(deployment(1));
        merge(&mut merged, here.reports(deployment(1)));
        assert_eq!(merged[&host].progress.state, "done");
        merge(&mut merged, there.reports(deployment(1)));
        assert_eq!(merged[&host].progress.bytes_done, 9);
    }

    #[test]
    fn another_attempt_counts_more_than_the_end_of_the_one_before() {
        let host = PeerId::from_public_key([1; 32]);
        let (before, after) = (said("failed", 9, 5, 0), said("running", 3, 4, 1));
        for (first, second) in [(&before, &after), (&after, &before)] {
            let mut merged = Reports::from([(host, first.clone())]);
            merge(&mut merged, Reports::from([(host, second.clone())]));
            assert_eq!(merged[&host], after);
        }
        let board = Board::default();
        board.record(deployment(1), host, before);
        assert!(!board.is_running(deployment(1), host, 0));
        board.record(deployment(1), host, after);
        assert!(board.is_running(deployment(1), host, 1));
        assert!(!board.is_running(deployment(1), host, 2));
    }

    #[test]
    fn forgets_what_was_reported_longest_ago() {
        let board = Board::default();
        let host = PeerId::from_public_key([1; 32]);
        for number in 0..DEPLOYMENTS_MAX as u128 {
            board.record(deployment(number), host, said("running", 1, 1, 0));
        }
        board.record(deployment(0), host, said("running", 2, 2, 0));
        board.record(deployment(u128::MAX), host, said("running", 1, 3, 0));
        assert!(board.reports(deployment(1)).is_empty());
        assert_eq!(board.reports(deployment(0))[&host].progress.bytes_done, 2);
    }
}
