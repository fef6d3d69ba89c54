//! One run of openraft over its databases, and what all of this crate shares.
//!
//! Invariant: there is at most one core at a time; between two (see `supervisor`) there is none,
//! and whoever asks is told to come again.

use std::sync::Arc;

use openraft::async_runtime::watch::WatchReceiver;
use parking_lot::{Mutex, RwLock};
use shoal_metadata::Event;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Authenticate, Config};
use crate::error::Error;
use crate::folder::Home;
use crate::forward::Forward;
use crate::log::{Closing, LogStore, blocking};
use crate::machine::{CurrentStore, StateMachine};
use crate::metrics::Metrics;
use crate::network::Network;
use crate::peers::Peers;
use crate::proposal::Engine;
use crate::read::Waiter;
use crate::space::Space;
use crate::store::Store;
use crate::transfer::Partial;
use crate::view::View;
use crate::wire::Failure;

/// What every part of this crate works with.
pub struct Shared {
    pub config: Config,
    pub endpoint: quinn::Endpoint,
    pub authenticate: Authenticate,
    pub peers: Arc<Peers>,
    pub events: broadcast::Sender<Event>,
    pub space: Arc<Space>,
    pub metrics: Arc<Metrics>,
    pub reads: mpsc::Sender<Waiter>,
    pub forwards: mpsc::Sender<Forward>,
    pub stopped: CancellationToken,
    pub tasks: TaskTracker,
    pub core: RwLock<Option<Arc<Core>>>,
}

impl Shared {
    pub fn core(&self) -> Result<Arc<Core>, Failure> {
        let stopped = || Failure::Unavailable("this node's Raft core is not running".into());
        self.core.read().clone().ok_or_else(stopped)
    }

    pub fn me(&self) -> u64 {
        self.config.node.number()
    }
}

/// See the module's documentation.
pub struct Core {
    pub engine: Engine,
    pub store: CurrentStore,
    pub home: Arc<Home>,
    /// Whether it had state when it was opened. openraft's metrics say so only a moment later.
    pub had_state: bool,
    /// Held while a snapshot comes in.
    pub receiving: tokio::sync::Mutex<Partial>,
    /// Taken by the one who stops the core.
    pub closing: Mutex<Option<Closing>>,
}

/// Who leads, as far as is known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leader {
    Me,
    Other(String),
    Unknown,
}

impl Core {
    /// Opens the databases and starts openraft on them.
    pub async fn open(shared: &Shared) -> Result<Self, Error> {
        let config = Arc::new(shared.config.openraft()?);
        let (directory, metrics) = (shared.config.directory.clone(), shared.metrics.clone());
        let opening = blocking(move || Ok(open_databases(&directory, metrics))).await;
        let stopped = |error: std::io::Error| Error::Stopped(error.to_string());
        let (home, (log, closing), store) = opening.map_err(stopped)??;
        let knows = shared.config.command_version;
        let level = shoal_metadata::Query::new(&store).level();
        match level.map_err(|fault| Error::Stopped(fault.to_string()))? {
            level if level > knows => {
                drop(log);
                closing.ended().await;
                return Err(Error::TooOld { level, knows });
            }
            _ => {}
        }
        let home = Arc::new(home);
        let store: CurrentStore = Arc::new(RwLock::new(Arc::new(store)));
        let machine = StateMachine {
            home: home.clone(),
            store: store.clone(),
            snapshot: Arc::new(Mutex::new(None)),
            events: shared.events.clone(),
            space: shared.space.clone(),
            metrics: shared.metrics.clone(),
            command_version: shared.config.command_version,
        };
        let rows = Arc::downgrade(&store);
        let network = Network { peers: shared.peers.clone(), rows };
        // What this member acknowledged before it was ended may still be relied on (see `read`).
        tokio::time::sleep(crate::read::LEASE).await;
        let engine = Engine::new(shared.me(), config, network, log, machine)
            .await
            .map_err(|error| Error::Stopped(error.to_string()))?;
        let had_state = engine.is_initialized().await;
        let had_state = had_state.map_err(|error| Error::Stopped(error.to_string()))?;
        let receiving = tokio::sync::Mutex::new(Partial::default());
        let closing = Mutex::new(Some(closing));
        Ok(Self { engine, store, home, had_state, receiving, closing })
    }

    pub fn view(&self) -> View {
        View::new(self.store.read().clone())
    }

    pub fn leader(&self, me: u64) -> Leader {
        let metrics = self.engine.server_metrics();
        let metrics = metrics.borrow_watched();
        match metrics.current_leader {
            Some(leader) if leader == me => Leader::Me,
            Some(leader) => match metrics.membership_config.membership().get_node(&leader) {
                Some(node) => Leader::Other(node.addr.clone()),
                None => Leader::Unknown,
            },
            None => Leader::Unknown,
        }
    }

    /// The answer to a request that only the leader serves.
    pub fn not_leader(&self, me: u64) -> Failure {
        let leader = match self.leader(me) {
            Leader::Other(address) => Some(address),
            Leader::Me | Leader::Unknown => None,
        };
        Failure::NotLeader { leader }
    }

    /// Waits until somebody else leads than `seen`. Every proposal on its way waits for this, so it
    /// must not be woken by whatever openraft counts.
    pub async fn leader_changed(&self, me: u64, seen: &Leader) {
        let mut metrics = self.engine.server_metrics();
        while self.leader(me) == *seen {
            if metrics.changed().await.is_err() {
                // The core has stopped: that is a change, too.
                return;
            }
        }
    }
}

fn open_databases(
    directory: &std::path::Path,
    metrics: Arc<Metrics>,
) -> Result<(Home, (LogStore, Closing), Store), Error> {
    let home = Home::open(directory)?;
    let path = home.state().map_err(|source| Error::Files {
        doing: "read",
        path: home.directory().to_owned(),
        source,
    })?;
    let store = Store::open(&path)?;
    let log = LogStore::open(&home.log(), metrics)?;
    Ok((home, log, store))
}
