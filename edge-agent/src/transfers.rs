//! What is and was being transferred: the source of `explain` and of progress bars.
//!
//! Invariant: finished transfers are kept up to [`FINISHED_MAX`], the oldest go first; a transfer
//! whose owner goes away without an outcome counts as failed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_api::TransferProgress;
use shoal_content::TransferId;
use tokio::sync::watch;
use tracing::{Span, debug_span};
use uuid::Uuid;

use crate::metrics::AgentMetrics;
use crate::{limits, telemetry};

const FINISHED_MAX: usize = 100;

/// Who asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// `shoal-agent fetch`.
    Fetch,
    Deployment,
    /// A container engine, through the mirror.
    Mirror,
}

/// One transfer as people see it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TransferRecord {
    pub id: TransferId,
    /// The image reference, or for the mirror the repository and digest.
    pub what: String,
    pub purpose: Purpose,
    /// Milliseconds since the Unix epoch.
    pub started_at: u64,
    pub progress: TransferProgress,
}

#[derive(Debug)]
struct Live {
    record: TransferRecord,
    progress: watch::Receiver<TransferProgress>,
}

#[derive(Debug, Default)]
struct Log {
    running: Vec<Live>,
    finished: VecDeque<TransferRecord>,
}

/// A handle; clones share one log.
#[derive(Debug, Clone)]
pub struct Transfers {
    log: Arc<Mutex<Log>>,
    metrics: AgentMetrics,
    limits: limits::Shown,
}

/// One running transfer, held by whoever drives it.
#[derive(Debug)]
pub struct Tracked {
    transfers: Transfers,
    id: TransferId,
    span: Span,
    started: Instant,
    progress: watch::Sender<TransferProgress>,
}

impl Transfers {
    /// By `limits` it is known what the line brings.
    pub fn new(metrics: AgentMetrics, limits: limits::Shown) -> Self {
        Self { log: Arc::default(), metrics, limits }
    }

    pub fn start(&self, what: String, purpose: Purpose) -> Tracked {
        let id = TransferId::from_uuid(Uuid::now_v7());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started_at = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let running = TransferProgress { state: "running".into(), ..Default::default() };
        let (sender, progress) = watch::channel(running.clone());
        let record = TransferRecord { id, what, purpose, started_at, progress: running };
        let span = debug_span!("transfer", what = record.what, ?purpose, transfer = %id);
        self.log.lock().running.push(Live { record, progress });
        self.metrics.transfers_running.inc();
        Tracked { transfers: self.clone(), id, span, started: Instant::now(), progress: sender }
    }

    /// Running ones first, then the finished, newest first.
    pub fn recent(&self, limit: usize) -> Vec<TransferRecord> {
        let line_bytes_per_second = limits::line(&self.limits);
        let log = self.log.lock();
        let running = log.running.iter().map(|live| {
            let progress = live.progress.borrow().clone();
            let progress = TransferProgress { line_bytes_per_second, ..progress };
            TransferRecord { progress, ..live.record.clone() }
        });
        running.chain(log.finished.iter().cloned()).take(limit).collect()
    }

    pub fn running(&self) -> usize {
        self.log.lock().running.len()
    }
}

impl Tracked {
    pub fn id(&self) -> TransferId {
        self.id
    }

    /// What is done for it is done below this.
    pub fn span(&self) -> &Span {
        &self.span
    }

    pub fn watch(&self) -> watch::Receiver<TransferProgress> {
        self.progress.subscribe()
    }

    /// Takes a new state; time and rate are filled in here. The rate is that of bytes that had to
    /// be moved, over the whole time.
    pub fn update(&self, mut progress: TransferProgress) {
        let elapsed = self.started.elapsed();
        progress.elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let here = progress.bytes_local + progress.bytes_by_delta;
        let moved = progress.bytes_done.saturating_sub(here) + progress.delta_bundle_bytes;
        progress.rate_bytes_per_second = (moved as f64 / elapsed.as_secs_f64().max(0.001)) as u64;
        self.progress.send_replace(progress);
    }

    /// Notes what has to happen before it goes on.
    pub fn wait_for(&self, what: &str) {
        self.progress.send_modify(|progress| progress.waits_for = Some(what.to_owned()));
    }

    /// Notes a failure that is being retried.
    pub fn note_error(&self, error: &str) {
        telemetry::note(&self.span, error);
        self.progress.send_modify(|progress| progress.last_error = Some(error.to_owned()));
    }

    pub fn done(&self) -> TransferProgress {
        self.end("done", None)
    }

    pub fn failed(&self, error: &str) -> TransferProgress {
        self.end("failed", Some(error.to_owned()))
    }

    fn end(&self, state: &str, error: Option<String>) -> TransferProgress {
        let mut progress = self.progress.borrow().clone();
        progress.state = state.to_owned();
        progress.waits_for = None;
        progress.line_bytes_per_second = limits::line(&self.transfers.limits);
        progress.last_error = error.or(progress.last_error);
        self.update(progress);
        self.progress.borrow().clone()
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        if self.progress.borrow().state == "running" {
            self.failed("cancelled");
        }
        telemetry::describe(&self.span, &self.progress.borrow());
        let outcome = if self.progress.borrow().state == "done" { "done" } else { "failed" };
        let metrics = &self.transfers.metrics;
        metrics.transfers_running.dec();
        metrics.transfers.get_or_create(&[("outcome", outcome)]).inc();
        let mut log = self.transfers.log.lock();
        let Some(at) = log.running.iter().position(|live| live.record.id == self.id) else {
            return;
        };
        let live = log.running.remove(at);
        let progress = self.progress.borrow().clone();
        log.finished.push_front(TransferRecord { progress, ..live.record });
        log.finished.truncate(FINISHED_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_is_seen_while_it_runs_and_after() {
        let transfers = Transfers::new(AgentMetrics::default(), limits::Shown::default());
        let good = transfers.start("a:1".into(), Purpose::Fetch);
        let lost = transfers.start("b:1".into(), Purpose::Mirror);
        good.update(TransferProgress {
            bytes_done: 7,
            state: "running".into(),
            ..Default::default()
        });
        let seen = transfers.recent(10);
        assert_eq!(seen.iter().find(|t| t.what == "a:1").unwrap().progress.bytes_done, 7);
        good.done();
        drop(good);
        drop(lost);
        let seen = transfers.recent(10);
        assert_eq!(transfers.running(), 0);
        let state = |what: &str| {
            let found = seen.iter().find(|transfer| transfer.what == what).unwrap();
            (found.progress.state.clone(), found.progress.last_error.clone())
        };
        assert_eq!(state("a:1"), ("done".into(), None));
        assert_eq!(state("b:1"), ("failed".into(), Some("cancelled".into())));
        for number in 0..2 * FINISHED_MAX {
            transfers.start(number.to_string(), Purpose::Fetch);
        }
        assert_eq!(transfers.recent(usize::MAX).len(), FINISHED_MAX);
    }
}
