//! Scans: a program that knows vulnerabilities looks through versions, container images and disks
//! alike, and what it finds is kept with each.
//!
//! A scan is ordered by a command – for somebody, for a version that was just pushed, or since the
//! last one is long ago – and any node that has a scanner takes it, the one that was ordered first
//! before the others. The node that has the lease runs the program; if it dies, another takes over.
//!
//! Order: the claim, the program, the list as an object, and the command that names it. A node that
//! dies in between leaves a claim that runs out, an object that the scrub finds, and a scratch folder
//! that it empties when it starts again.
//!
//! Invariants: a version is scanned by one node at a time, and a node scans at most `parallel` of
//! them; the program sees one version and nothing else of the cluster, and what it says is believed
//! to be no more than text; an image is not counted as pulled.
//! Non-goals: who may order and read (see `api`), what is a vulnerability (the program's).

mod database;
mod disk;
mod gauge;
mod orders;
mod program;
mod report;
mod source;
mod subject;
mod work;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use shoal_api::Vulnerability;
use shoal_content::{NodeId, ObjectKey, ScanId};
use shoal_metadata::{
    Command, Fault, OPEN_SCANS_MAX, Query, Read, Scan, ScanKey, ScanReport, ScanState,
    command_version,
};
use shoal_raft::Raft;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};
use uuid::Uuid;

use crate::clock;
use crate::config;
use crate::http::problem::chain;
use crate::origin::Origin;
use crate::store::{self, BlobStore, StoreError};

use database::Database;
use disk::Room;
use gauge::Criticals;

pub use subject::Unfit;

/// How often what is open is looked at, besides whenever something changes.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Lists that are read at once; each is in memory.
const READS_AT_ONCE_MAX: usize = 4;
/// Versions just pushed that are about to be ordered; more are left to the next round.
const PUSHES_MAX: usize = 64;

/// Why a list cannot be read.
#[derive(Debug, Error)]
pub enum ListError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the list of vulnerabilities {0} holds something else")]
    Content(ObjectKey),
    #[error("the node is stopping")]
    Stopping,
}

/// See the module's documentation. Clones share everything.
#[derive(Debug, Clone)]
pub struct Scanner {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    raft: Raft,
    store: Arc<dyn BlobStore>,
    origin: Origin,
    node: NodeId,
    settings: OnceLock<Settings>,
    /// What this node is at.
    running: Mutex<BTreeSet<ScanKey>>,
    reads: Semaphore,
    pushes: Arc<Semaphore>,
    completed: Counter,
    failed: Counter,
    criticals: Criticals,
}

#[derive(Debug)]
struct Settings {
    config: config::Scanner,
    /// A folder in it for each scan.
    scratch: PathBuf,
    database: Database,
    room: Room,
}

/// Takes a scan off the list of what this node is at.
struct AtWork {
    scanner: Scanner,
    of: ScanKey,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.scanner.inner.running.lock().remove(&self.of);
    }
}

/// An order of somebody's, or (`by` is empty) of the cluster's own.
pub fn order(of: ScanKey, by: String) -> Command {
    Command::OrderScan { of, id: ScanId::from_uuid(Uuid::now_v7()), by }
}

/// Why a version cannot be scanned, if it cannot.
///
/// # Errors
/// Where the rows cannot be read.
pub fn unfit<R: Read>(query: Query<'_, R>, of: &ScanKey) -> Result<Option<Unfit>, Fault> {
    Ok(subject::of(query, of)?.err())
}

impl Scanner {
    pub fn new(raft: Raft, store: Arc<dyn BlobStore>, origin: Origin, node: NodeId) -> Self {
        let inner = Inner {
            raft,
            store,
            origin,
            node,
            settings: OnceLock::new(),
            running: Mutex::default(),
            reads: Semaphore::new(READS_AT_ONCE_MAX),
            pushes: Arc::new(Semaphore::new(PUSHES_MAX)),
            completed: Counter::default(),
            failed: Counter::default(),
            criticals: Criticals::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// What it keeps lies in `folder`. Without a command nothing is scanned here.
    ///
    /// # Errors
    /// Where the folder cannot be used.
    pub fn begin(
        &self,
        config: &config::Scanner,
        folder: PathBuf,
        registry: &mut Registry,
    ) -> io::Result<()> {
        let Inner { completed, failed, criticals, .. } = &*self.inner;
        registry.register("image_scans", "Scans that this node has completed", completed.clone());
        let help = "Scans that this node could not complete";
        registry.register("image_scan_failures", help, failed.clone());
        registry.register_collector(Box::new(criticals.clone()));
        if config.command.is_empty() {
            return Ok(());
        }
        let (scratch, cache) = (folder.join("scratch"), folder.join("cache"));
        match std::fs::remove_dir_all(&scratch) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::create_dir_all(&scratch)?;
        std::fs::create_dir_all(&cache)?;
        // Absolute, since the program runs somewhere else.
        let (scratch, cache) = (scratch.canonicalize()?, cache.canonicalize()?);
        let (database, room) = (Database::new(cache), Room::default());
        let settings = Settings { config: config.clone(), scratch, database, room };
        // Only the first call counts; there is one.
        let _ = self.inner.settings.set(settings);
        Ok(())
    }

    /// Where there is a scanner, and every node knows what a scan is.
    fn settings(&self) -> Option<&Settings> {
        let settings = self.inner.settings.get()?;
        let level = self.inner.raft.local().query().level();
        let needed = command_version(&Command::CountUsage);
        level.is_ok_and(|level| level >= needed).then_some(settings)
    }

    /// Whether this node has a scanner.
    pub fn is_on(&self) -> bool {
        self.inner.settings.get().is_some()
    }

    /// What keeps a version from being deployed, in words, if something does.
    ///
    /// # Errors
    /// Where the rows cannot be read.
    pub fn blocks<R: Read>(
        &self,
        query: Query<'_, R>,
        of: &ScanKey,
    ) -> Result<Option<String>, Fault> {
        let settings = self.inner.settings.get();
        let Some(severity) = settings.and_then(|settings| settings.config.block_severity) else {
            return Ok(None);
        };
        let report = query.scan(of)?.and_then(|scan| scan.report);
        let count = report.map_or(0, |report| severity.count(&report.found));
        let severity = severity.as_str();
        Ok((count > 0).then(|| {
            format!(
                "{count} vulnerabilities are {severity} or worse, with which nothing is deployed \
                 ([scanner] block_severity)"
            )
        }))
    }

    /// Carries out what is ordered, and orders what is due. Runs until it is dropped; what is under
    /// way ends with it.
    pub async fn run(self) {
        tokio::join!(self.count_criticals(), self.keep_ordering(), self.keep_scanning());
    }

    async fn keep_scanning(&self) {
        let mut events = self.inner.raft.events();
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tasks = JoinSet::new();
        loop {
            if let Some(settings) = self.settings() {
                match self.due(settings.config.parallel.saturating_sub(tasks.len())) {
                    Ok(due) => {
                        for scan in due {
                            if let Some(task) = self.at_work(scan) {
                                tasks.spawn(task);
                            }
                        }
                    }
                    Err(fault) => warn!(error = chain(&fault), "scans cannot be looked at"),
                }
            }
            tokio::select! {
                _ = ticks.tick() => {}
                Some(_) = tasks.join_next() => {}
                () = changed(&mut events) => {}
            }
        }
    }

    /// What waits for a node, or for a node to take over, at most `free`; the one that was ordered first
    /// comes first.
    fn due(&self, free: usize) -> Result<Vec<Scan>, Fault> {
        let mut due = Vec::new();
        if free == 0 {
            return Ok(due);
        }
        let view = self.inner.raft.local();
        let now = clock::now();
        // Of all: others may be at any number of them.
        for scan in view.query().open_scans(OPEN_SCANS_MAX)? {
            let waits = match &scan.state {
                ScanState::Pending => true,
                // What this node began and is not at, it began before it was started again.
                ScanState::Scanning { node, lease_until, .. } => {
                    *node == self.inner.node || *lease_until <= now
                }
                ScanState::Completed | ScanState::Failed { .. } => false,
            };
            let here = self.inner.running.lock().contains(&scan.of);
            // Those of an image that is being deleted have nothing to be done.
            if waits && !here && view.query().live_image(scan.of.image)?.is_some() {
                due.push(scan);
            }
            if due.len() == free {
                break;
            }
        }
        Ok(due)
    }

    /// `None` where this node is at it already.
    fn at_work(&self, scan: Scan) -> Option<BoxFuture<'static, ()>> {
        if !self.inner.running.lock().insert(scan.of.clone()) {
            return None;
        }
        let at_work = AtWork { scanner: self.clone(), of: scan.of.clone() };
        Some(Box::pin(async move {
            let AtWork { scanner, of } = &at_work;
            match scanner.carry_out(scan).await {
                work::End::Completed { found, seconds } => {
                    info!(image = %of.image, digest = %of.digest, found, seconds, "scanned");
                    scanner.inner.completed.inc();
                }
                work::End::Failed { reason } => {
                    warn!(image = %of.image, digest = %of.digest, reason, "a scan failed");
                    scanner.inner.failed.inc();
                }
                work::End::NotOurs => {}
            }
        }))
    }

    /// A page of what a scan has found is cut out of this.
    ///
    /// # Errors
    /// Where storage does not have the list.
    pub async fn list(&self, report: &ScanReport) -> Result<Vec<Vulnerability>, ListError> {
        let Some(key) = report.list else { return Ok(Vec::new()) };
        let _permit = self.inner.reads.acquire().await.map_err(|_| ListError::Stopping)?;
        let bytes = store::read(&*self.inner.store, key, 0..report.list_bytes).await?;
        let read = tokio::task::spawn_blocking(move || serde_json::from_slice(&bytes)).await;
        read.map_err(|_| ListError::Stopping)?.map_err(|_| ListError::Content(key))
    }
}

/// Returns when scans may have changed.
async fn changed(events: &mut tokio::sync::broadcast::Receiver<shoal_metadata::Event>) {
    use shoal_metadata::Event;
    loop {
        match events.recv().await {
            Ok(Event::ScansChanged | Event::AllChanged) | Err(RecvError::Lagged(_)) => return,
            Ok(_) => {}
            // The node is stopping.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}
