//! Looks for disks that nobody reads any more, and takes over.
//!
//! Invariant: runs on every node; the claim in the metadata decides who gets a disk.

use shoal_metadata::Event;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{info, warn};

use super::{Disks, SWEEP_INTERVAL, is_under_way};

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
            for upload in uploads.iter().filter(|upload| self.is_abandoned(upload)) {
                match self.begin(upload.id).await {
                    Ok(()) => info!(upload = %upload.id, "took over an unfinished disk"),
                    Err(error) if is_under_way(&error) => {}
                    Err(error) => warn!(upload = %upload.id, %error, "could not take over a disk"),
                }
            }
        }
    }

    /// Returns when the upload is published, has failed or is gone, as far as this node knows.
    pub async fn ended(&self, id: shoal_content::UploadId) {
        use shoal_metadata::{DiskUploadState, UploadPurpose};
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
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => return,
                }
            }
        }
    }
}
