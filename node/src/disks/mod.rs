//! Disks: from the parts of an upload to a published version.
//!
//! Order of an ingest: the lease in the metadata, packs, recipe, the digest of the file that the
//! registry gives for the disk, manifest (one command publishes the version and ends the session),
//! and only then the parts are deleted. A node that dies in
//! between leaves a lease that runs out; whichever node finds it takes over and comes to the same
//! result, since everything here is deterministic. Most of a large disk is read, cut and packed
//! before, while its parts come in (see `ahead`).
//!
//! Invariants: at most [`INGESTS_AT_ONCE_MAX`] disks are read at once on a node, and
//! [`AHEAD_AT_ONCE_MAX`] that are still to come; a disk is published by the node that holds its lease,
//! and one that loses it stops.
//! Non-goals: HTTP (see `api`), formats (see `shoal-formats`).

mod ahead;
mod arrivals;
mod dedup;
mod export;
mod import;
mod ingest;
mod manifest;
mod packs;
mod reading;
mod source;
mod sweep;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use shoal_content::{NodeId, ObjectKey, UploadId};
use shoal_formats::ContentMap;
use shoal_metadata::{Command, DiskUploadState, Refusal, Upload, UploadPurpose};
use shoal_raft::{ProposeError, Raft};
use tokio::sync::Semaphore;
use tracing::{info, warn};

use self::ahead::Ahead;
use crate::clock;
use crate::delta::Deltas;
use crate::origin::Origin;
use crate::remote::Remote;
use crate::scanning::Scanner;
use crate::store::BlobStore;

pub use ahead::AHEAD_AT_ONCE_MAX;
pub use export::exported;
pub use import::IMPORTS_AT_ONCE_MAX;
pub use manifest::{ARTIFACT_TYPE, DiskFile, DiskManifest, EMPTY, MEDIA_TYPE, file_target};
pub use packs::{PACKS_IN_FLIGHT_MAX, PackUploads};

/// Disks that one node reads at once.
pub const INGESTS_AT_ONCE_MAX: usize = 2;
/// Disks that wait or are read on one node; more wait for another node or for a lease to run out.
const INGESTS_KNOWN_MAX: usize = 256;
/// How long a node may be silent before another one takes over.
pub const LEASE: Duration = Duration::from_secs(20);
/// How often the lease is renewed: it survives an election.
const LEASE_RENEWAL: Duration = Duration::from_secs(5);
/// How often a disk is read before its lease is left to run out, and the pauses between, each
/// longer by this.
const ATTEMPTS_MAX: u32 = 5;
const ATTEMPT_PAUSE: Duration = Duration::from_secs(2);
/// How often a node looks for disks that nobody reads any more.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3);
/// Disks of which their senders said where they have content, at 400 KB at most; of more, those that were
/// begun last.
const EXPECTED_MAX: usize = 32;
/// Keys in one call of delete.
const DELETE_BATCH: usize = 500;

/// One disk on this node.
#[derive(Debug, Default)]
struct Running {
    processed_bytes: AtomicU64,
    /// Set where the lease went to another node, or the session ended.
    lost: AtomicBool,
}

/// See the module's documentation. Clones share everything.
#[derive(Debug, Clone)]
pub struct Disks {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    raft: Raft,
    store: Arc<dyn BlobStore>,
    origin: Origin,
    node: NodeId,
    running: Mutex<HashMap<UploadId, Arc<Running>>>,
    permits: Semaphore,
    /// Of those that have a permit.
    ahead: Mutex<HashMap<UploadId, Arc<Ahead>>>,
    ahead_permits: Arc<Semaphore>,
    /// What senders said of their disks. It is believed nothing, and only this node has it.
    expected: Mutex<BTreeMap<UploadId, Arc<ContentMap>>>,
    keep_free_space: AtomicBool,
    parts_are_near: AtomicBool,
    remote: OnceLock<Remote>,
    deltas: OnceLock<Deltas>,
    scanner: OnceLock<Scanner>,
    importing: Mutex<BTreeSet<UploadId>>,
    import_permits: Semaphore,
}

impl Disks {
    pub fn new(raft: Raft, store: Arc<dyn BlobStore>, origin: Origin, node: NodeId) -> Self {
        let permits = Semaphore::new(INGESTS_AT_ONCE_MAX);
        let running = Mutex::default();
        let keep_free_space = AtomicBool::new(false);
        let inner = Inner {
            raft,
            store,
            origin,
            node,
            running,
            permits,
            ahead: Mutex::default(),
            ahead_permits: Arc::new(Semaphore::new(AHEAD_AT_ONCE_MAX)),
            expected: Mutex::default(),
            keep_free_space,
            parts_are_near: AtomicBool::new(false),
            remote: OnceLock::new(),
            deltas: OnceLock::new(),
            scanner: OnceLock::new(),
            importing: Mutex::default(),
            import_permits: Semaphore::new(IMPORTS_AT_ONCE_MAX),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Whether bytes that a clean file system does not use are stored as they are, for disks that
    /// are read from now on.
    pub fn keep_free_space(&self, keep: bool) {
        self.inner.keep_free_space.store(keep, Ordering::Relaxed);
    }

    /// Whether what was uploaded is read again as quickly as this node's own packs, which have to be
    /// decompressed besides: where both lie in a folder.
    pub fn parts_are_near(&self, near: bool) {
        self.inner.parts_are_near.store(near, Ordering::Relaxed);
    }

    /// Takes what whoever begins an upload says of the disk, for when it is read here.
    pub fn expect_content(&self, upload: UploadId, content: ContentMap) {
        let mut expected = self.inner.expected.lock();
        expected.insert(upload, Arc::new(content));
        // Their ids ascend in time.
        while expected.len() > EXPECTED_MAX {
            expected.pop_first();
        }
    }

    /// From now on it is told of every version that is published here.
    pub fn make_deltas(&self, deltas: Deltas) {
        // Only the first call counts; there is one.
        let _ = self.inner.deltas.set(deltas);
    }

    /// So is this.
    pub fn scan_pushed(&self, scanner: Scanner) {
        // Only the first call counts; there is one.
        let _ = self.inner.scanner.set(scanner);
    }

    /// Guest bytes read so far, where this node reads the disk.
    pub fn processed_bytes(&self, upload: UploadId) -> Option<u64> {
        let running = self.inner.running.lock();
        running.get(&upload).map(|running| running.processed_bytes.load(Ordering::Relaxed))
    }

    /// Takes the lease on an upload whose parts are all there, and starts to read the disk.
    ///
    /// # Errors
    /// [`Refusal::Leased`] where another node reads it already, which is as good; else what the
    /// metadata answer.
    pub async fn begin(&self, upload: UploadId) -> Result<(), ProposeError> {
        if self.inner.running.lock().contains_key(&upload) {
            return Ok(());
        }
        self.claim(upload).await?;
        self.start(upload);
        Ok(())
    }

    async fn claim(&self, upload: UploadId) -> Result<(), ProposeError> {
        let now = clock::now();
        let lease_until = now.plus_millis(LEASE.as_millis() as u64);
        let claim = Command::ClaimIngest { upload, node: self.inner.node, lease_until };
        self.inner.raft.propose(now, claim).await.map(drop)
    }

    /// Reads the disk in the background; the lease is held.
    fn start(&self, upload: UploadId) {
        let entry = self.running_ahead(upload).unwrap_or_default();
        {
            let mut running = self.inner.running.lock();
            if running.contains_key(&upload) {
                return;
            }
            if running.len() >= INGESTS_KNOWN_MAX {
                warn!(%upload, "too many disks wait here; the lease will run out");
                return;
            }
            running.insert(upload, Arc::clone(&entry));
        }
        let this = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = this.hold_lease(upload, &entry) => {}
                () = this.work(upload, &entry) => {}
            }
            this.inner.running.lock().remove(&upload);
            this.inner.expected.lock().remove(&upload);
        });
    }

    /// Renews the lease; returns when it is lost.
    async fn hold_lease(&self, upload: UploadId, entry: &Running) {
        loop {
            tokio::time::sleep(LEASE_RENEWAL).await;
            match self.claim(upload).await {
                Err(ProposeError::Refused(refusal)) => {
                    info!(%upload, %refusal, "the lease on a disk is gone");
                    entry.lost.store(true, Ordering::Relaxed);
                    return;
                }
                Err(error) => warn!(%upload, %error, "the lease on a disk could not be renewed"),
                Ok(()) => {}
            }
        }
    }

    async fn work(&self, upload: UploadId, entry: &Arc<Running>) {
        let Ok(_permit) = self.inner.permits.acquire().await else { return };
        let mut attempt = 1;
        let outcome = loop {
            match self.ingest(upload, entry).await {
                Err(ingest::Failure::Passing(error)) if attempt < ATTEMPTS_MAX => {
                    warn!(%upload, error, attempt, "reading a disk failed; once more");
                    tokio::time::sleep(ATTEMPT_PAUSE * attempt).await;
                    attempt += 1;
                }
                outcome => break outcome,
            }
        };
        match outcome {
            Ok(()) => info!(%upload, "disk published"),
            Err(ingest::Failure::Lost) => {}
            Err(ingest::Failure::Refused(reason)) => {
                warn!(%upload, reason, "disk refused");
                let fail = Command::FailIngest { upload, reason };
                if let Err(error) = self.propose_patiently(fail).await {
                    warn!(%upload, %error, "the end of an ingest could not be recorded");
                    return;
                }
            }
            Err(ingest::Failure::Passing(error)) => {
                warn!(%upload, error, "reading a disk failed; whoever gets the lease tries again");
                return;
            }
        }
        self.delete_parts(upload).await;
    }

    /// Proposes until an answer comes. Ends at the latest when the lease does, since the caller is
    /// dropped then.
    async fn propose_patiently(
        &self,
        command: Command,
    ) -> Result<shoal_metadata::Response, ProposeError> {
        loop {
            match self.inner.raft.propose(clock::now(), command.clone()).await {
                Err(error) if error.is_retryable() => {
                    warn!(%error, "the metadata do not answer; asking again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn delete_parts(&self, upload: UploadId) {
        let row = self.inner.raft.local().query().upload(upload);
        if let Ok(Some(row)) = row {
            self.delete_parts_of(&row).await;
        }
    }

    /// Deletes the parts of a disk upload that came to an end. What is left behind by a failure is
    /// deleted when the session expires.
    pub async fn delete_parts_of(&self, upload: &Upload) {
        let UploadPurpose::Disk { total_bytes, part_bytes, .. } = &upload.purpose else { return };
        // All that there can be, recorded or not.
        let parts = total_bytes.div_ceil((*part_bytes).max(1));
        let key = |part: u64| ObjectKey::UploadPart { upload: upload.id, part: part as u32 };
        let keys: Vec<ObjectKey> = (0..parts).map(key).collect();
        for batch in keys.chunks(DELETE_BATCH) {
            if let Err(error) = self.inner.store.delete(batch).await {
                warn!(upload = %upload.id, %error, "parts could not be deleted yet");
                return;
            }
        }
    }

    /// Whether the state says that a disk is to be read and nobody does.
    fn is_abandoned(&self, upload: &Upload) -> bool {
        let UploadPurpose::Disk { state: DiskUploadState::Ingesting { node, lease_until }, .. } =
            &upload.purpose
        else {
            return false;
        };
        let here = self.inner.running.lock().contains_key(&upload.id);
        // What this node held before it was started again is its own at once.
        !here && (*node == self.inner.node || *lease_until <= clock::now())
    }
}

/// Whether a refusal of a claim means that all is well: another node is at it, or it is done.
pub fn is_under_way(error: &ProposeError) -> bool {
    matches!(error, ProposeError::Refused(Refusal::Leased))
}
