//! openraft's own suite for log and state storage, run against ours.

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use parking_lot::{Mutex, RwLock};
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio::sync::broadcast;

use crate::folder::Home;
use crate::log::LogStore;
use crate::machine::StateMachine;
use crate::metrics::Metrics;
use crate::proposal::TypeConfig;
use crate::space::Space;
use crate::store::Store;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let folder = tempfile::tempdir().unwrap();
        let home = Arc::new(Home::open(folder.path()).unwrap());
        let metrics = Metrics::new(&mut Registry::default());
        let (log, _) = LogStore::open(&home.log(), metrics.clone()).unwrap();
        let store = Store::open(&home.state().unwrap()).unwrap();
        let machine = StateMachine {
            store: Arc::new(RwLock::new(Arc::new(store))),
            snapshot: Arc::new(Mutex::new(None)),
            events: broadcast::channel(16).0,
            space: Arc::new(Space::new(folder.path().to_owned(), 0)),
            home,
            metrics,
            command_version: shoal_metadata::COMMAND_VERSION,
        };
        Ok((folder, log, machine))
    }
}

#[tokio::test]
async fn passes_the_suite_of_openraft() {
    Box::pin(Suite::test_all(Builder)).await.unwrap();
}
