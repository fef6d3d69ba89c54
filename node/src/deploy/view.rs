//! A deployment as people see it: the replicated row, with the soft reports merged in.
//!
//! Invariant: what the row says wins; a report only adds detail. Non-goal: asking for either.

use std::collections::{BTreeMap, HashMap};

use shoal_api::{DeploymentHost, TransferProgress};
use shoal_content::{ImageReference, PeerId, Pin};
use shoal_metadata::{Deployment, DeploymentPlan, Fault, HostState, Query, Read};

use super::board::Reports;
use crate::clock::rfc3339;

/// Names of agents and nodes by their key.
#[derive(Debug, Default)]
pub struct Names(HashMap<PeerId, String>);

impl Names {
    /// # Errors
    /// Where the metadata cannot be read.
    pub fn read<R: Read>(query: Query<'_, R>) -> Result<Self, Fault> {
        let agents = query.agents()?.into_iter().map(|agent| (agent.peer, agent.name));
        let nodes = query.nodes()?.into_iter().map(|node| (node.peer, node.name));
        Ok(Self(agents.chain(nodes).collect()))
    }

    pub fn of(&self, peer: PeerId) -> String {
        self.0.get(&peer).cloned().unwrap_or_else(|| peer.to_string())
    }

    /// Replaces peer ids that are known by names.
    fn name_keys(&self, bytes: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
        let mut named = BTreeMap::new();
        for (key, count) in bytes {
            let name = key.parse().map_or(key, |peer| self.of(peer));
            *named.entry(name).or_default() += count;
        }
        named
    }
}

/// Whether a deployment's state is its last.
pub fn is_over(state: &str) -> bool {
    matches!(state, "done" | "failed" | "cancelled")
}

/// See the module's documentation.
pub fn view(
    row: &Deployment,
    plan: &DeploymentPlan,
    reports: &Reports,
    names: &Names,
) -> shoal_api::Deployment {
    let hosts = row.hosts.iter().map(|(&peer, state)| {
        let reported = reports.get(&peer).map(|reported| reported.progress.clone());
        let (state, mut progress) = host(state, reported);
        progress.bytes_by_peer = names.name_keys(progress.bytes_by_peer);
        progress.bytes_by_node = names.name_keys(progress.bytes_by_node);
        DeploymentHost { id: peer, name: names.of(peer), state: state.to_owned(), progress }
    });
    shoal_api::Deployment {
        id: row.id,
        reference: ImageReference {
            name: row.image.clone(),
            pin: row.tag.clone().map_or_else(|| Pin::Digest(row.digest.clone()), Pin::Tag),
        },
        manifest_digest: row.digest.clone(),
        state: state(row, plan.paused).to_owned(),
        created_at: rfc3339(row.created_at),
        created_by: row.created_by.clone(),
        priority: plan.priority,
        parallel: plan.parallel,
        deadline: plan.deadline.map(rfc3339),
        warm_up: plan.warm_up.as_ref().map(ToString::to_string),
        hosts: hosts.collect(),
    }
}

/// What a deployment has come to, its hosts taken together.
pub fn state(row: &Deployment, paused: bool) -> &'static str {
    if row.hosts.values().all(|state| matches!(state, HostState::Done { .. })) {
        "done"
    } else if row.cancelled {
        "cancelled"
    } else if row.hosts.values().all(HostState::has_ended) {
        "failed"
    } else if paused {
        "paused"
    } else {
        "running"
    }
}

fn host(state: &HostState, reported: Option<TransferProgress>) -> (&'static str, TransferProgress) {
    match state {
        // What an attempt before has brought is there.
        HostState::Queued => {
            let progress = TransferProgress {
                state: "running".to_owned(),
                rate_bytes_per_second: 0,
                waits_for: None,
                ..reported.unwrap_or_default()
            };
            ("queued", progress)
        }
        HostState::Waiting | HostState::Running => {
            // A report can be ahead of the row, never behind: an end counts once it is replicated.
            let under_way = reported.is_some() || *state == HostState::Running;
            let mut progress = reported.unwrap_or_default();
            progress.state = "running".to_owned();
            (if under_way { "running" } else { "waiting" }, progress)
        }
        HostState::Done { bytes_from_peers, bytes_from_nodes, bytes_local } => {
            let detailed = reported.filter(|progress| progress.state == "done");
            let progress = detailed.unwrap_or_else(|| {
                let total = bytes_from_peers + bytes_from_nodes + bytes_local;
                TransferProgress {
                    state: "done".to_owned(),
                    bytes_total: total,
                    bytes_done: total,
                    bytes_local: *bytes_local,
                    bytes_by_peer: sum("peers", *bytes_from_peers),
                    bytes_by_node: sum("nodes", *bytes_from_nodes),
                    ..TransferProgress::default()
                }
            });
            ("done", progress)
        }
        HostState::Failed { reason } => {
            let mut progress = reported.unwrap_or_default();
            progress.state = "failed".to_owned();
            progress.waits_for = None;
            progress.last_error = Some(reason.clone());
            ("failed", progress)
        }
    }
}

/// Where who sent what is known no more.
fn sum(name: &str, bytes: u64) -> BTreeMap<String, u64> {
    if bytes == 0 { BTreeMap::new() } else { BTreeMap::from([(name.to_owned(), bytes)]) }
}

#[cfg(test)]
mod tests {
    use shoal_content::{DeploymentId, Digest, Timestamp};
    use uuid::Uuid;

    use super::super::board::Reported;
    use super::*;

    fn peer(number: u8) -> PeerId {
        PeerId::from_public_key([number; 32])
    }

    fn viewed(row: &Deployment, reports: &Reports, names: &Names) -> shoal_api::Deployment {
        view(row, &DeploymentPlan::default(), reports, names)
    }

    fn row(hosts: &[(u8, HostState)]) -> Deployment {
        Deployment {
            id: DeploymentId::from_uuid(Uuid::from_u128(1)),
            image: "a/b".parse().unwrap(),
            digest: Digest::sha256([1; 32]),
            tag: None,
            created_at: Timestamp::from_millis(0),
            created_by: "admin".into(),
            hosts: hosts.iter().map(|(number, state)| (peer(*number), state.clone())).collect(),
            cancelled: false,
        }
    }

    const DONE: HostState =
        HostState::Done { bytes_from_peers: 5, bytes_from_nodes: 0, bytes_local: 2 };

    #[test]
    fn ends_when_every_host_has() {
        let failed = HostState::Failed { reason: "full".into() };
        let of = |hosts: &[(u8, HostState)], paused| state(&row(hosts), paused);
        assert_eq!(of(&[(1, DONE), (2, HostState::Running)], false), "running");
        assert_eq!(of(&[(1, DONE), (2, HostState::Queued)], true), "paused");
        assert_eq!(of(&[(1, DONE), (2, failed)], true), "failed");
        assert_eq!(of(&[(1, DONE), (2, DONE)], false), "done");
        let cancelled = Deployment { cancelled: true, ..row(&[(1, HostState::Waiting)]) };
        assert_eq!(state(&cancelled, true), "cancelled");
    }

    #[test]
    fn a_report_adds_detail_and_names_but_never_contradicts_the_row() {
        let progress = TransferProgress {
            state: "done".into(),
            bytes_done: 7,
            bytes_by_peer: BTreeMap::from([(peer(9).to_string(), 5)]),
            ..TransferProgress::default()
        };
        let heard_at = Timestamp::from_millis(1);
        let reports = Reports::from([(peer(1), Reported { progress, heard_at, attempt: 0 })]);
        let names = Names(HashMap::from([(peer(9), "host-9".to_owned())]));
        let shown = viewed(&row(&[(1, HostState::Waiting)]), &reports, &names);
        assert_eq!(shown.hosts[0].state, "running");
        assert_eq!(shown.hosts[0].progress.bytes_by_peer["host-9"], 5);
        let shown = viewed(&row(&[(1, DONE)]), &Reports::new(), &names);
        assert_eq!(shown.hosts[0].progress.bytes_done, 7);
        assert_eq!(shown.hosts[0].progress.bytes_local, 2);
    }
}
