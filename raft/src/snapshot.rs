//! Snapshots: checkpoints of the state's database, in folders of their own.
//!
//! Invariant: what a snapshot says of itself (its last entry and membership) is read from the
//! checkpoint, so that it agrees with the rows whatever was applied meanwhile. Its folder lives as
//! long as someone sends or installs it.
//!
//! A snapshot is not kept over a restart: checkpoints are made of hard links in no time, and
//! openraft asks for a new one when a member needs it.

use std::io;
use std::sync::Arc;

use openraft::RaftSnapshotBuilder;
use openraft::storage::Snapshot;
use parking_lot::Mutex;

use crate::folder::{Home, Scratch};
use crate::log::blocking;
use crate::metrics::Metrics;
use crate::proposal::{SnapshotMeta, TypeConfig};
use crate::store::Store;

pub type StateSnapshot = openraft::alias::SnapshotOf<TypeConfig, Checkpoint>;

/// The files of a snapshot.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    pub folder: Arc<Scratch>,
}

/// The newest snapshot, for those that ask.
pub type CurrentSnapshot = Arc<Mutex<Option<StateSnapshot>>>;

/// Takes one snapshot of the state.
pub struct Builder {
    pub store: Arc<Store>,
    pub home: Arc<Home>,
    pub current: CurrentSnapshot,
    pub metrics: Arc<Metrics>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Checkpoint;

    async fn build_snapshot(&mut self) -> io::Result<StateSnapshot> {
        let (store, home) = (self.store.clone(), self.home.clone());
        let snapshot = blocking(move || take(&store, &home)).await?;
        *self.current.lock() = Some(snapshot.clone());
        self.metrics.snapshots_built.inc();
        Ok(snapshot)
    }
}

/// A checkpoint of `store`, with what it says of itself.
pub fn take(store: &Store, home: &Home) -> io::Result<StateSnapshot> {
    let folder = Arc::new(Scratch::new(home.new_snapshot()));
    store.checkpoint(folder.path())?;
    let meta = inspect(folder.path())?;
    Ok(Snapshot { meta, snapshot: Checkpoint { folder } })
}

/// What the state in a folder that nobody else has open says of itself.
pub fn inspect(folder: &std::path::Path) -> io::Result<SnapshotMeta> {
    let store = Store::open(folder).map_err(io::Error::other)?;
    Ok(SnapshotMeta { last_log_id: store.applied()?, last_membership: store.membership()? })
}
