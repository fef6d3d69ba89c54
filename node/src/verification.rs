//! Whether everything that the metadata name is in storage: there, and of the right size; on wish
//! all of it is read and compared with what it is named by.
//!
//! The scrub (see `scrub`) goes the other way, from storage to the rows, and reads a sample.
//!
//! Invariants: memory is bounded whatever the metadata name; what was deleted, rightly, while this
//! went on is no flaw: an object that is not there is looked up in the rows again.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use shoal_api::{FlawedObject, VerificationStatus};
use shoal_content::ObjectKey;
use shoal_formats::backup::{Check, Flaw, Needed};
use shoal_raft::Raft;
use tracing::{error, info, warn};

use crate::clock;
use crate::collection::CollectionError;
use crate::needed::{self, Place};
use crate::store::{BlobStore, StoreError};

/// Objects that are looked at at once.
const LOOKS_MAX: usize = 32;
/// Objects that are read at once.
const READS_MAX: usize = 2;
/// Flaws that are listed; more are counted.
const LISTED_MAX: usize = 1000;

/// See the module's documentation. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Verifier {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    raft: Raft,
    store: Arc<dyn BlobStore>,
    status: Mutex<VerificationStatus>,
}

impl Verifier {
    /// `store` is storage itself: what lies in a cache says nothing about it.
    pub fn new(raft: Raft, store: Arc<dyn BlobStore>) -> Self {
        let status = Mutex::new(VerificationStatus::default());
        Self { inner: Arc::new(Inner { raft, store, status }) }
    }

    /// Storage, without a cache before it.
    pub fn store(&self) -> &dyn BlobStore {
        self.inner.store.as_ref()
    }

    /// How far the one under way is, or what the last one came to at this node.
    pub fn status(&self) -> VerificationStatus {
        self.inner.status.lock().clone()
    }

    /// Starts one in the background, unless one is under way.
    pub fn start(&self, read: bool) {
        {
            let mut status = self.inner.status.lock();
            if status.running {
                return;
            }
            let started_at = Some(clock::rfc3339(clock::now()));
            *status = VerificationStatus { running: true, read, started_at, ..Default::default() };
        }
        let verifier = self.clone();
        tokio::spawn(async move { verifier.work(read).await });
    }

    async fn work(&self, read: bool) {
        let outcome = self.verify(read).await;
        let mut status = self.inner.status.lock();
        status.running = false;
        match outcome {
            Ok(()) => {
                let VerificationStatus { objects, missing, wrong_size, damaged, .. } = *status;
                info!(objects, missing, wrong_size, damaged, "storage was verified");
            }
            Err(error) => {
                let text = crate::http::problem::chain(&error);
                warn!(error = text, "the verification ended early");
                status.error = Some(text);
            }
        }
    }

    async fn verify(&self, read: bool) -> Result<(), CollectionError> {
        let at_once = if read { READS_MAX } else { LOOKS_MAX };
        let mut place = Place::START;
        while place != Place::End {
            // A view for each page: none is held while bytes are read.
            let view = self.inner.raft.read().await?;
            let (objects, next) = needed::page(view.query(), place)?;
            drop(view);
            place = next;
            let looks = objects.into_iter().map(|needed| self.look(needed, read));
            let mut looks = futures::stream::iter(looks).buffer_unordered(at_once);
            while looks.try_next().await?.is_some() {}
        }
        Ok(())
    }

    /// Looks at one object and counts what it is.
    async fn look(&self, needed: Needed, read: bool) -> Result<(), CollectionError> {
        let looked = look(self.store(), &needed, read).await?;
        let flaw = match looked {
            Ok(bytes) => {
                let mut status = self.inner.status.lock();
                status.objects += 1;
                status.bytes += bytes;
                return Ok(());
            }
            Err(Flaw::Missing) if !self.is_needed(needed.key).await? => return Ok(()),
            Err(flaw) => flaw,
        };
        error!(object = %needed.key, %flaw, "an object that the metadata name is not as it should");
        let mut status = self.inner.status.lock();
        status.objects += 1;
        match flaw {
            Flaw::Missing => status.missing += 1,
            Flaw::Size { .. } => status.wrong_size += 1,
            Flaw::Content => status.damaged += 1,
        }
        if status.flaws.len() < LISTED_MAX {
            let digest = needed.digest.map(|digest| digest.to_string());
            let object = needed.key.to_string();
            status.flaws.push(FlawedObject { object, digest, flaw: flaw.to_string() });
        }
        Ok(())
    }

    async fn is_needed(&self, object: ObjectKey) -> Result<bool, CollectionError> {
        let row = self.inner.raft.read().await?.query().object(&object)?;
        Ok(row.is_some_and(|row| row.count > 0))
    }
}

/// The object's size in storage, or what is wrong with it there.
///
/// # Errors
/// Where storage does not answer.
pub async fn look(
    store: &dyn BlobStore,
    needed: &Needed,
    read: bool,
) -> Result<Result<u64, Flaw>, StoreError> {
    let Some(length) = store.length(needed.key).await? else { return Ok(Err(Flaw::Missing)) };
    if let Err(flaw) = needed.check_size(length) {
        return Ok(Err(flaw));
    }
    if read {
        let mut check = Check::new(needed);
        let mut pieces = match store.get(needed.key, 0..length).await {
            Err(StoreError::NotFound(_) | StoreError::Shredded(_)) => {
                return Ok(Err(Flaw::Missing));
            }
            Err(StoreError::Sealed(_)) => return Ok(Err(Flaw::Content)),
            pieces => pieces?,
        };
        while let Some(piece) = pieces.next().await {
            match piece {
                Err(StoreError::Range { .. } | StoreError::Sealed(_)) => {
                    return Ok(Err(Flaw::Content));
                }
                piece => check.update(&piece?),
            }
        }
        if let Err(flaw) = check.finish() {
            return Ok(Err(flaw));
        }
    }
    Ok(Ok(length))
}
