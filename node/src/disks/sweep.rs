//! Looks for disks that nobody reads or gets any more and takes over, and ends sessions that expired.
//!
//! Invariants: the claim in the metadata decides who gets a disk; bytes are deleted only after a
//! command has ended the session that they belonged to.

use std::time::Duration;

use shoal_content::{Timestamp, UploadId};
use shoal_metadata::{Command, DiskUploadState, Event, Refusal, Response, Upload, UploadPurpose};
use shoal_raft::ProposeError;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{info, warn};

use super::{Disks, SWEEP_INTERVAL, is_under_way};
use crate::clock;
use crate::registry::pieces;

/// How often the leader looks for expired sessions.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(60);
/// Sessions that one command ends.
const EXPIRE_AT_ONCE: u32 = 100;

impl Disks {
    /// Takes over abandoned ingests, until it is dropped.
    pub async fn sweep(&self) {
        let mut ticks = interval_at(Instant::now(), SWEEP_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let uploads = match self.inner.raft.local().query().uploads() {
                Ok(uploads) => uploads,
                Err(error) => {
                    warn!(%error, "upload sessions cannot be read");
                    continue;
                }
            };
            for upload in &uploads {
                self.adopt_import(upload).await;
            }
            for upload in uploads.iter().filter(|upload| self.is_abandoned(upload)) {
                match self.begin(upload.id).await {
                    Ok(()) => info!(upload = %upload.id, "took over an unfinished disk"),
                    Err(error) if is_under_way(&error) => {}
                    Err(error) => warn!(upload = %upload.id, %error, "could not take over a disk"),
                }
            }
        }
    }

    /// Ends expired sessions, on whichever node leads, and deletes what they left. Runs until it is
    /// dropped.
    pub async fn expire_uploads(&self) {
        let mut ticks = interval_at(Instant::now() + EXPIRY_INTERVAL, EXPIRY_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if !self.inner.raft.status().is_leader {
                continue;
            }
            if let Err(error) = self.expire(clock::now()).await {
                warn!(%error, "expired uploads could not be ended");
            }
        }
    }

    /// Ends all sessions that have expired by `now`, and deletes what they left.
    ///
    /// # Errors
    /// Where the metadata did not take a command; sessions before it are ended.
    pub async fn expire(&self, now: Timestamp) -> Result<usize, ProposeError> {
        let mut ended = 0;
        loop {
            let expire = Command::ExpireUploads { limit: EXPIRE_AT_ONCE };
            let Response::Expired(uploads) = self.inner.raft.propose(now, expire).await? else {
                return Ok(ended);
            };
            for upload in &uploads {
                info!(upload = %upload.id, "upload session expired");
                self.delete_leftovers(upload).await;
            }
            ended += uploads.len();
            if uploads.len() < EXPIRE_AT_ONCE as usize {
                return Ok(ended);
            }
        }
    }

    /// Ends a session and deletes what it left. One that is gone already is no mistake.
    ///
    /// # Errors
    /// Where the metadata did not take the command.
    pub async fn abort(&self, upload: UploadId) -> Result<(), ProposeError> {
        let abort = Command::AbortUpload { upload };
        match self.inner.raft.propose(clock::now(), abort).await {
            Ok(Response::Aborted(upload)) => self.delete_leftovers(&upload).await,
            Ok(_) | Err(ProposeError::Refused(Refusal::NotFound(_))) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// What an ended session had in storage beside the content that was published.
    async fn delete_leftovers(&self, upload: &Upload) {
        let UploadPurpose::Blob { checkpoint, multipart, .. } = &upload.purpose else {
            return self.delete_parts_of(upload).await;
        };
        let store = &self.inner.store;
        if let Some(multipart) = multipart
            && let Err(error) = store.abort(multipart.object, &multipart.id).await
        {
            warn!(upload = %upload.id, %error, "an expired upload's parts stay in storage");
        }
        if let Err(error) = pieces::delete_all(&**store, upload.id, *checkpoint).await {
            warn!(upload = %upload.id, %error, "an expired upload's checkpoints stay in storage");
        }
    }

    /// Returns when the upload is published, has failed or is gone, as far as this node knows.
    pub async fn ended(&self, id: UploadId) {
        let mut events = self.inner.raft.events();
        loop {
            let under_way = match self.inner.raft.local().query().upload(id) {
                Ok(Some(upload)) => matches!(
                    upload.purpose,
                    UploadPurpose::Disk {
                        state: DiskUploadState::Receiving | DiskUploadState::Ingesting { .. },
                        ..
                    }
                ),
                Ok(None) | Err(_) => false,
            };
            if !under_way {
                return;
            }
            loop {
                match events.recv().await {
                    Ok(Event::UploadChanged(changed)) if changed == id => break,
                    Ok(Event::AllChanged) | Err(RecvError::Lagged(_)) => break,
                    Ok(_) => {}
                    Err(RecvError::Closed) => return,
                }
            }
        }
    }
}
