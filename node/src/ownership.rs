//! Whose storage this is: an object beside all others says so, and a cluster that finds another one's
//! name there does not begin.
//!
//! Two clusters in one bucket know nothing of each other's rows, so each would have its scrub take
//! what the other stored for orphans, and delete it. The same holds for the two lives of a cluster
//! that was restored (see `restore`) while nodes of the old one still run. Hence the owner is looked
//! at when a node starts, and again before anything is deleted because no row knows or needs it.
//!
//! Storage without an owner – a new one, or one of before there were owners – becomes that of the
//! first cluster that comes. A restored cluster takes over what its earlier life had.
//!
//! Non-goal: keeping out whoever has the keys of the bucket and means harm.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_content::ClusterId;
use thiserror::Error;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::clock;
use crate::store::{BlobStore, StoreError};

/// How long a node that starts waits for storage that does not answer, and between two looks.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Why a cluster must not use a storage.
#[derive(Debug, Error)]
pub enum OwnershipError {
    #[error(
        "storage belongs to another cluster, {cluster}, since {since}; two clusters in one storage \
         would each delete what the other one stores. Give this cluster a bucket or folder of its \
         own ([storage]). If {cluster} is gone for good and all that it stored may go, remove the \
         object shoal-owner.json from storage and start again"
    )]
    Another { cluster: ClusterId, since: String },
    #[error(
        "storage belongs to another life of this cluster ({life}, since {since}), made by restoring a \
         backup; both would delete what the other one stores. If that life goes on, stop the nodes \
         of this one for good. If this is the life that goes on, stop the other one's, remove the \
         object shoal-owner.json from storage and start again"
    )]
    AnotherLife { life: String, since: String },
    #[error(
        "the object shoal-owner.json in storage does not say whose storage it is; if no other \
         cluster uses it, remove that object and start again"
    )]
    Unreadable,
    #[error(
        "storage was told whose it is, and says nothing of it; if no other cluster uses it, a start of \
         this node writes it down again"
    )]
    Forgotten,
    #[error("whose storage it is cannot be looked up")]
    Store(#[from] StoreError),
}

impl OwnershipError {
    /// Whether another look may go better by itself.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_retryable())
    }
}

/// What the object says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    cluster: ClusterId,
    /// Of a restored cluster: which of its lives (see `home::Member`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lineage: Option<String>,
    /// For people: when it was written, in RFC 3339.
    since: String,
}

fn parse(bytes: &[u8]) -> Result<Owner, OwnershipError> {
    serde_json::from_slice(bytes).map_err(|_| OwnershipError::Unreadable)
}

/// One life of one cluster, and the storage that is to be its own. Clones are the same.
#[derive(Debug, Clone)]
pub struct Ownership {
    store: Arc<dyn BlobStore>,
    cluster: ClusterId,
    lineage: Option<String>,
    /// Once it was this cluster's, it is claimed no more: who took the name away may have had a reason.
    seen: Arc<AtomicBool>,
}

impl Ownership {
    pub fn new(store: Arc<dyn BlobStore>, cluster: ClusterId, lineage: Option<String>) -> Self {
        Self { store, cluster, lineage, seen: Arc::default() }
    }

    /// Whether storage is this cluster's already; else it is nobody's yet. Changes nothing.
    ///
    /// # Errors
    /// Where it is another's, or storage does not answer.
    pub async fn look(&self) -> Result<bool, OwnershipError> {
        let Some(bytes) = self.store.owner().await? else { return Ok(false) };
        let Owner { cluster, lineage, since } = parse(&bytes)?;
        if cluster != self.cluster {
            return Err(OwnershipError::Another { cluster, since });
        }
        if lineage != self.lineage {
            let life = lineage.unwrap_or_else(|| "the first one".to_owned());
            return Err(OwnershipError::AnotherLife { life, since });
        }
        self.seen.store(true, Ordering::Relaxed);
        Ok(true)
    }

    /// [`Self::look`] for a node that starts: storage that does not answer is waited for.
    ///
    /// # Errors
    /// As above, where it does not answer within [`PATIENCE`].
    pub async fn look_patiently(&self) -> Result<bool, OwnershipError> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = PAUSE;
        loop {
            match self.look().await {
                Err(error) if error.is_retryable() && Instant::now() < deadline => {
                    let error = anyhow::Error::from(error);
                    warn!("it cannot be seen yet whose the storage is: {error:#}");
                }
                looked => return looked,
            }
            sleep(pause).await;
            pause = PAUSE_MAX.min(pause * 2);
        }
    }

    /// Makes sure that storage is this cluster's; what is nobody's becomes so.
    ///
    /// # Errors
    /// As [`Self::look`].
    pub async fn hold(&self) -> Result<(), OwnershipError> {
        if self.look().await? {
            return Ok(());
        }
        if self.seen.load(Ordering::Relaxed) {
            return Err(OwnershipError::Forgotten);
        }
        match self.store.set_owner(None, self.written()).await {
            // Nobody else is named there, and to delete is what makes room.
            Err(error) if error.is_full() => {
                warn!(%error, "storage cannot be told whose it is");
                return Ok(());
            }
            written => written?,
        };
        self.confirm().await?;
        info!(cluster = %self.cluster, "storage named no owner, and is this cluster's from now on");
        Ok(())
    }

    /// [`Self::hold`] for a node that starts, which can serve pulls without it: whatever deletes looks
    /// for itself. Says whether storage names this cluster now.
    ///
    /// # Errors
    /// Where storage is another's.
    pub async fn begin(&self) -> Result<bool, OwnershipError> {
        match self.hold().await {
            Err(error @ (OwnershipError::Store(_) | OwnershipError::Forgotten)) => {
                warn!(%error, "storage cannot be told whose it is: nothing is deleted until it can");
            }
            held => held?,
        }
        Ok(self.seen.load(Ordering::Relaxed))
    }

    /// Whether [`Self::take_over`] would succeed. Changes nothing.
    ///
    /// # Errors
    /// Where storage is another cluster's, or does not answer.
    pub async fn may_take_over(&self) -> Result<(), OwnershipError> {
        self.earlier().await.map(drop)
    }

    /// Makes storage this life's, whichever life of the cluster had it.
    ///
    /// # Errors
    /// As [`Self::may_take_over`].
    pub async fn take_over(&self) -> Result<(), OwnershipError> {
        let earlier = self.earlier().await?;
        self.store.set_owner(earlier.as_ref(), self.written()).await?;
        self.confirm().await
    }

    /// What is written there, of no other cluster.
    async fn earlier(&self) -> Result<Option<Bytes>, OwnershipError> {
        let Some(bytes) = self.store.owner().await? else { return Ok(None) };
        let Owner { cluster, since, .. } = parse(&bytes)?;
        if cluster != self.cluster {
            return Err(OwnershipError::Another { cluster, since });
        }
        Ok(Some(bytes))
    }

    /// Somebody else may have been quicker, or storage may not compare.
    async fn confirm(&self) -> Result<(), OwnershipError> {
        if self.look().await? { Ok(()) } else { Err(OwnershipError::Forgotten) }
    }

    fn written(&self) -> Bytes {
        let owner = Owner {
            cluster: self.cluster,
            lineage: self.lineage.clone(),
            since: clock::rfc3339(clock::now()),
        };
        // Three texts always have a form in JSON.
        serde_json::to_vec_pretty(&owner).unwrap_or_default().into()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::store::FolderStore;
    use crate::store::disturbed::DisturbedStore;

    fn of(store: &Arc<dyn BlobStore>, cluster: u128, lineage: Option<&str>) -> Ownership {
        let cluster = ClusterId::from_uuid(Uuid::from_u128(cluster));
        Ownership::new(Arc::clone(store), cluster, lineage.map(str::to_owned))
    }

    fn open(folder: &tempfile::TempDir) -> Arc<dyn BlobStore> {
        Arc::new(FolderStore::open(folder.path(), 0).unwrap())
    }

    #[tokio::test]
    async fn the_first_cluster_has_the_storage_and_another_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder);
        let (first, second) = (of(&store, 1, None), of(&store, 2, None));
        assert!(!first.look().await.unwrap(), "it is somebody's");
        assert!(!second.look().await.unwrap(), "a look has written");
        first.hold().await.unwrap();
        first.hold().await.unwrap();
        for refused in [
            second.look().await.map(drop),
            second.hold().await,
            second.may_take_over().await,
            second.take_over().await,
        ] {
            let error = refused.unwrap_err();
            assert!(matches!(error, OwnershipError::Another { .. }), "{error}");
        }
        assert!(first.look().await.unwrap());
    }

    #[tokio::test]
    async fn a_restored_cluster_takes_over_and_the_life_before_it_stops_there() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder);
        let (old, new) = (of(&store, 1, None), of(&store, 1, Some("a")));
        old.hold().await.unwrap();
        assert!(matches!(new.hold().await, Err(OwnershipError::AnotherLife { .. })));
        new.may_take_over().await.unwrap();
        old.hold().await.unwrap();
        new.take_over().await.unwrap();
        new.hold().await.unwrap();
        assert!(matches!(old.hold().await, Err(OwnershipError::AnotherLife { .. })));
        of(&store, 1, Some("b")).take_over().await.unwrap();
        assert!(matches!(new.hold().await, Err(OwnershipError::AnotherLife { .. })));
    }

    #[tokio::test]
    async fn a_name_that_was_taken_away_is_not_written_again_by_who_had_seen_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder);
        let runs = of(&store, 1, None);
        assert!(runs.begin().await.unwrap());
        std::fs::remove_file(folder.path().join("shoal-owner.json")).unwrap();
        assert!(matches!(runs.hold().await, Err(OwnershipError::Forgotten)));
        let starts = of(&store, 1, None);
        assert!(starts.begin().await.unwrap());
        runs.hold().await.unwrap();
    }

    #[tokio::test]
    async fn what_says_nothing_is_not_taken_for_nobodys() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder);
        store.set_owner(None, Bytes::from_static(b"{}")).await.unwrap();
        assert!(matches!(of(&store, 1, None).hold().await, Err(OwnershipError::Unreadable)));
    }

    #[tokio::test]
    async fn a_start_waits_for_storage_that_does_not_answer_and_for_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let disturbed = DisturbedStore::open(folder.path());
        let store: Arc<dyn BlobStore> = disturbed.clone();
        of(&store, 1, None).hold().await.unwrap();
        disturbed.failing_owners.store(2, Ordering::Relaxed);
        assert!(of(&store, 1, None).look_patiently().await.unwrap());
        assert_eq!(disturbed.failing_owners.load(Ordering::Relaxed), 0);
        disturbed.failing_owners.store(1, Ordering::Relaxed);
        assert!(matches!(of(&store, 1, None).look().await, Err(OwnershipError::Store(_))));
        // Who is another cluster hears of it at once.
        disturbed.failing_owners.store(1, Ordering::Relaxed);
        let refused = of(&store, 2, None).look_patiently().await;
        assert!(matches!(refused, Err(OwnershipError::Another { .. })));
    }
}
