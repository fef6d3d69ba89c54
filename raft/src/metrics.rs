//! The metrics of this crate, all of them.
//!
//! Invariant: the names are an interface; the test at the end pins them.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// As Prometheus sees them, without the suffixes that it adds to counters and histograms.
pub const METRIC_NAMES: [&str; 16] = [
    "shoal_raft_is_leader",
    "shoal_raft_has_leader",
    "shoal_raft_term",
    "shoal_raft_last_log_index",
    "shoal_raft_applied_index",
    "shoal_raft_entries_applied",
    "shoal_raft_proposals",
    "shoal_raft_reads",
    "shoal_raft_read_rounds",
    "shoal_raft_log_sync_seconds",
    "shoal_raft_snapshots_built",
    "shoal_raft_snapshots_installed",
    "shoal_raft_snapshot_files_resumed",
    "shoal_raft_strangers_refused",
    "shoal_raft_core_restarts",
    "shoal_raft_disk_free_bytes",
];

pub type Labels = [(&'static str, &'static str); 1];
type UGauge = Gauge<u64, AtomicU64>;

/// Handles to all of them; clones share the values.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub is_leader: Gauge,
    pub has_leader: Gauge,
    pub term: UGauge,
    pub last_log_index: UGauge,
    pub applied_index: UGauge,
    pub entries_applied: Counter,
    /// By `result`: `applied`, `refused`, `unavailable`, `unsupported` or `storage`.
    pub proposals: Family<Labels, Counter>,
    pub reads: Counter,
    /// Questions to the leader; fewer than reads, since reads share them.
    pub read_rounds: Counter,
    pub log_sync_seconds: Histogram,
    pub snapshots_built: Counter,
    pub snapshots_installed: Counter,
    /// Files of snapshots that had come in before a transfer broke off.
    pub snapshot_files_resumed: Counter,
    pub strangers_refused: Counter,
    pub core_restarts: Counter,
    pub disk_free_bytes: UGauge,
}

impl Metrics {
    pub fn new(registry: &mut Registry) -> Arc<Self> {
        let metrics = Self {
            is_leader: Gauge::default(),
            has_leader: Gauge::default(),
            term: UGauge::default(),
            last_log_index: UGauge::default(),
            applied_index: UGauge::default(),
            entries_applied: Counter::default(),
            proposals: Family::default(),
            reads: Counter::default(),
            read_rounds: Counter::default(),
            // 50 µs to about 1.6 s.
            log_sync_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 16)),
            snapshots_built: Counter::default(),
            snapshots_installed: Counter::default(),
            snapshot_files_resumed: Counter::default(),
            strangers_refused: Counter::default(),
            core_restarts: Counter::default(),
            disk_free_bytes: UGauge::default(),
        };
        metrics.register(registry);
        Arc::new(metrics)
    }

    fn register(&self, registry: &mut Registry) {
        let [
            is_leader,
            has_leader,
            term,
            last_log,
            applied,
            entries,
            proposals,
            reads,
            rounds,
            sync,
            built,
            installed,
            resumed,
            strangers,
            restarts,
            free,
        ] = METRIC_NAMES;
        registry.register(is_leader, "1 where this node leads", self.is_leader.clone());
        registry.register(has_leader, "1 where a leader is known", self.has_leader.clone());
        registry.register(term, "Current term", self.term.clone());
        registry.register(last_log, "Index of the last entry", self.last_log_index.clone());
        registry.register(applied, "Index of the last applied entry", self.applied_index.clone());
        registry.register(entries, "Entries applied", self.entries_applied.clone());
        registry.register(proposals, "Proposals made here, by result", self.proposals.clone());
        registry.register(reads, "Linearizable reads", self.reads.clone());
        registry.register(rounds, "Rounds of linearizable reads", self.read_rounds.clone());
        registry.register(sync, "Time of one sync of the log", self.log_sync_seconds.clone());
        registry.register(built, "Snapshots taken", self.snapshots_built.clone());
        registry.register(installed, "Snapshots installed", self.snapshots_installed.clone());
        let files = self.snapshot_files_resumed.clone();
        registry.register(resumed, "Snapshot files that needed no second transfer", files);
        registry.register(strangers, "Connections refused", self.strangers_refused.clone());
        registry.register(restarts, "Restarts after a storage error", self.core_restarts.clone());
        registry.register(free, "Free bytes of the databases' disk", self.disk_free_bytes.clone());
    }

    pub fn proposed(&self, result: &'static str) {
        self.proposals.get_or_create(&[("result", result)]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_metrics_is_what_is_exposed() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        metrics.proposed("applied");
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let exposed: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|rest| rest.split(' ').next())
            .collect();
        assert_eq!(exposed, METRIC_NAMES);
        assert!(text.contains(r#"shoal_raft_proposals_total{result="applied"} 1"#));
    }
}
