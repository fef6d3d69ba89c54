//! Files that nodes get by themselves: an import is an upload whose parts this node sends to itself.
//!
//! One node at a time has the lease; another takes over where it ran out, and goes on with the parts
//! that are missing. A file that is not the same any more ends the import; one of which its server
//! does not say which one it is, is got in one go or anew from its beginning. Its checksum is compared
//! like that of every upload before it becomes a version.
//!
//! Invariants: at most [`IMPORTS_AT_ONCE_MAX`] parts are in memory; a server that sends more slowly
//! than clients may is given up, so that it holds nobody's turn.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sha2::{Digest as _, Sha256};
use shoal_content::{ObjectKey, UploadId};
use shoal_metadata::{
    Command, DiskUploadState, Import, KeyOwner, Refusal, Upload, UploadPart, UploadPurpose,
};
use shoal_raft::ProposeError;
use tracing::{info, warn};

use super::{Disks, LEASE, LEASE_RENEWAL};
use crate::clock;
use crate::http::pace::Pace;
use crate::http::problem::chain;
use crate::remote::{self, Remote};
use crate::store::StoreError;

/// Files that one node gets at once.
pub const IMPORTS_AT_ONCE_MAX: usize = 2;
/// Those that wait or are got on one node; more wait for another node.
const IMPORTS_KNOWN_MAX: usize = 256;
/// Failures one after another without a part between them, and the pause after each, longer by this.
const FAILURES_MAX: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);
/// A session lives so long after its last part.
const SESSION_TTL: Duration = Duration::from_secs(24 * 3600);

/// How getting parts ends early.
enum Failure {
    /// For good; the reason is for who ordered it.
    Refused(String),
    /// The session is gone, or another node's.
    Lost,
    Passing(String),
}

impl From<remote::Error> for Failure {
    fn from(error: remote::Error) -> Self {
        let text = chain(&error);
        if error.is_retryable() { Self::Passing(text) } else { Self::Refused(text) }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let text = chain(&error);
        if error.is_full() {
            Self::Refused(format!("storage_full: {text}"))
        } else {
            Self::Passing(text)
        }
    }
}

/// What the rows say.
struct Wanted {
    import: Import,
    total_bytes: u64,
    part_bytes: u64,
    /// The first part that is missing; all are there where it is `None`.
    first: Option<u32>,
}

impl Disks {
    /// Where files may be got from; said once, at the start.
    pub fn import_from(&self, remote: Remote) {
        // Said again it would be the same.
        let _ = self.inner.remote.set(remote);
    }

    pub fn remote(&self) -> Option<&Remote> {
        self.inner.remote.get()
    }

    /// Gets the file in the background; the lease is held.
    pub fn start_import(&self, upload: UploadId) {
        {
            let mut importing = self.inner.importing.lock();
            if importing.len() >= IMPORTS_KNOWN_MAX || !importing.insert(upload) {
                return;
            }
        }
        let this = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = this.hold_import(upload) => {}
                () = this.import(upload) => {}
            }
            this.inner.importing.lock().remove(&upload);
        });
    }

    async fn claim_import(&self, upload: UploadId) -> Result<(), ProposeError> {
        let now = clock::now();
        let lease_until = now.plus_millis(LEASE.as_millis() as u64);
        let claim = Command::ClaimImport { upload, node: self.inner.node, lease_until };
        self.inner.raft.propose(now, claim).await.map(drop)
    }

    /// Renews the lease; returns when it is lost.
    async fn hold_import(&self, upload: UploadId) {
        loop {
            tokio::time::sleep(LEASE_RENEWAL).await;
            match self.claim_import(upload).await {
                // All parts are there: what happens now has a lease of its own.
                Err(ProposeError::Refused(Refusal::UploadState(_))) => std::future::pending().await,
                Err(ProposeError::Refused(refusal)) => {
                    info!(%upload, %refusal, "the lease on an import is gone");
                    return;
                }
                Err(error) => warn!(%upload, %error, "a lease could not be renewed"),
                Ok(()) => {}
            }
        }
    }

    /// Takes over an import that nobody goes on with.
    pub(super) async fn adopt_import(&self, upload: &Upload) {
        let UploadPurpose::Disk { state: DiskUploadState::Receiving, .. } = &upload.purpose else {
            return;
        };
        let note = self.inner.raft.local().query().upload_note(upload.id);
        let Ok(Some(Some(import))) = note.map(|note| note.map(|note| note.import)) else { return };
        let here = self.inner.importing.lock().contains(&upload.id);
        let due = import.node == self.inner.node || import.lease_until <= clock::now();
        if here || !due || self.remote().is_none() {
            return;
        }
        match self.claim_import(upload.id).await {
            Ok(()) => {
                info!(upload = %upload.id, "took over an import");
                self.start_import(upload.id);
            }
            Err(ProposeError::Refused(_)) => {}
            Err(error) => warn!(upload = %upload.id, %error, "could not take over an import"),
        }
    }

    async fn import(&self, upload: UploadId) {
        let Ok(_permit) = self.inner.import_permits.acquire().await else { return };
        let mut failures = 0;
        let reason = loop {
            let mut got = 0;
            match self.get_parts(upload, &mut got).await {
                Ok(()) => match self.begin(upload).await {
                    Ok(()) | Err(ProposeError::Refused(_)) => return,
                    // With no parts missing, whoever has the lease next begins.
                    Err(error) => {
                        warn!(%upload, %error, "an imported disk waits to be read");
                        return;
                    }
                },
                Err(Failure::Lost) => return,
                Err(Failure::Refused(reason)) => break reason,
                Err(Failure::Passing(error)) => {
                    failures = if got > 0 { 1 } else { failures + 1 };
                    if failures >= FAILURES_MAX {
                        break error;
                    }
                    warn!(%upload, error, failures, "an import broke off; once more");
                    tokio::time::sleep(PAUSE * failures).await;
                }
            }
        };
        warn!(%upload, reason, "an import failed");
        let fail = Command::FailIngest { upload, reason: format!("import_failed: {reason}") };
        match self.propose_patiently(fail).await {
            Ok(_) => self.delete_parts(upload).await,
            Err(error) => warn!(%upload, %error, "the end of an import could not be recorded"),
        }
    }

    async fn wanted(&self, id: UploadId) -> Result<Wanted, Failure> {
        let passing = |error: &(dyn std::error::Error + 'static)| Failure::Passing(chain(error));
        let view = self.inner.raft.read().await.map_err(|error| passing(&error))?;
        let upload = view.query().upload(id).map_err(|error| passing(&error))?;
        let note = view.query().upload_note(id).map_err(|error| passing(&error))?;
        let (Some(upload), Some(import)) = (upload, note.and_then(|note| note.import)) else {
            return Err(Failure::Lost);
        };
        match upload.purpose {
            UploadPurpose::Disk {
                total_bytes,
                part_bytes,
                parts,
                state: DiskUploadState::Receiving,
                ..
            } => {
                let count = total_bytes.div_ceil(part_bytes.max(1)) as u32;
                let first = (0..count).find(|part| !parts.contains_key(part));
                Ok(Wanted { import, total_bytes, part_bytes, first })
            }
            _ => Err(Failure::Lost),
        }
    }

    /// Gets what is missing, and counts the parts that need not be got again.
    async fn get_parts(&self, upload: UploadId, got: &mut u32) -> Result<(), Failure> {
        let wanted = self.wanted(upload).await?;
        let Some(missing) = wanted.first else { return Ok(()) };
        // Without a validator, what is there may be another file's beginning.
        let goes_on = wanted.import.validator.is_some();
        let first = if goes_on { missing } else { 0 };
        let remote = self.remote().ok_or(Failure::Lost)?;
        let url = remote.check(&wanted.import.url)?;
        let from = u64::from(first) * wanted.part_bytes;
        let mut opened = remote.open(&url, from).await?;
        let same = opened.total_bytes == wanted.total_bytes
            && opened.validator == wanted.import.validator
            && (opened.start == 0 || opened.start == from);
        if !same {
            return Err(remote::Error::Changed.into());
        }
        let mut skip = from - opened.start;
        let mut rest = Bytes::new();
        let mut pace = Pace::begin();
        let count = wanted.total_bytes.div_ceil(wanted.part_bytes) as u32;
        for part in first..count {
            let start = u64::from(part) * wanted.part_bytes;
            let length = wanted.part_bytes.min(wanted.total_bytes - start) as usize;
            let mut bytes = BytesMut::with_capacity(length);
            while bytes.len() < length {
                if rest.is_empty() {
                    let passing = |what: &str| Failure::Passing(format!("the server {what}"));
                    let piece = pace.within(opened.response.chunk()).await;
                    let piece = piece.map_err(|_| passing("sends too slowly"))?;
                    let piece = piece.map_err(remote::Error::Broken)?;
                    rest = piece.ok_or_else(|| passing("broke off"))?;
                    pace.count(rest.len());
                    let skipped = skip.min(rest.len() as u64);
                    skip -= skipped;
                    rest = rest.split_off(skipped as usize);
                    continue;
                }
                let taken = rest.split_to(rest.len().min(length - bytes.len()));
                bytes.extend_from_slice(&taken);
            }
            self.keep_part(upload, part, bytes.freeze()).await?;
            *got += u32::from(goes_on);
        }
        Ok(())
    }

    /// Whose key the parts are sealed with.
    fn under(&self, upload: UploadId) -> Result<KeyOwner, Failure> {
        let view = self.inner.raft.local();
        let passing = |fault| Failure::Passing(chain(&fault));
        let Some(upload) = view.query().upload(upload).map_err(passing)? else {
            return Err(Failure::Lost);
        };
        match upload.purpose {
            UploadPurpose::Disk { image, .. } => view.query().key_owner(image).map_err(passing),
            UploadPurpose::Blob { .. } => Err(Failure::Lost),
        }
    }

    async fn keep_part(&self, upload: UploadId, part: u32, bytes: Bytes) -> Result<(), Failure> {
        let (length, hashed) = (bytes.len() as u64, bytes.clone());
        let sha256 = tokio::task::spawn_blocking(move || Sha256::digest(&hashed).into()).await;
        let sha256: [u8; 32] = sha256.map_err(|error| Failure::Passing(error.to_string()))?;
        let key = ObjectKey::UploadPart { upload, part };
        self.inner.store.put(key, &self.under(upload)?, bytes).await?;
        let received = UploadPart { bytes: length, sha256 };
        let expires_at = clock::now().plus_millis(SESSION_TTL.as_millis() as u64);
        let record = Command::RecordPart { upload, part, received, expires_at };
        match self.inner.raft.propose(clock::now(), record).await {
            Ok(_) => Ok(()),
            Err(ProposeError::Refused(_)) => Err(Failure::Lost),
            Err(error) => Err(Failure::Passing(chain(&error))),
        }
    }
}
