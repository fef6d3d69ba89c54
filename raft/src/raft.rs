//! The handle that the rest of a node holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use openraft::BasicNode;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::error::{InitializeError, RaftError};
use parking_lot::RwLock;
use prometheus_client::registry::Registry;
use shoal_content::{NodeId, Timestamp};
use shoal_metadata::{Command, Event, Response};
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, Transport};
use crate::core::{Core, Shared};
use crate::error::{Error, ProposeError, ReadError};
use crate::forward::FORWARDS_WAITING_MAX;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::read::READS_WAITING_MAX;
use crate::space::Space;
use crate::view::View;
use crate::wire::STOPPING;
use crate::{forward, handover, members, propose, read, server, supervisor};

/// An observer that falls this many events behind misses some, and is told so by the channel.
const EVENTS_WAITING_MAX: usize = 4096;

/// A member of the group; clones are the same one. When the last clone is dropped, it stops.
#[derive(Clone)]
pub struct Raft {
    pub(crate) shared: Arc<Shared>,
    _stop: Arc<StopOnDrop>,
}

impl std::fmt::Debug for Raft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Raft").field("node", &self.shared.config.node).finish_non_exhaustive()
    }
}

struct StopOnDrop(Arc<Shared>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stopped.cancel();
        *self.0.core.write() = None;
        self.0.endpoint.close(STOPPING, b"stopping");
    }
}

/// How a member stands, as it sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub id: NodeId,
    pub leader: Option<NodeId>,
    pub term: u64,
    /// Index of the last entry in the log.
    pub last_log: Option<u64>,
    pub last_applied: Option<u64>,
    pub voters: BTreeSet<NodeId>,
    pub learners: BTreeSet<NodeId>,
    /// Whether a change of the voters has begun and not ended.
    pub is_changing: bool,
    pub is_leader: bool,
    /// Index of the last entry in the newest snapshot.
    pub snapshot: Option<u64>,
}

impl Raft {
    /// Opens the databases and joins in; nothing happens until the group is made by
    /// [`Raft::bootstrap`] on one node, or this node is added by [`Raft::add_member`].
    ///
    /// # Errors
    /// [`Error::Config`], or that the databases cannot be opened.
    pub async fn start(
        config: Config,
        transport: Transport,
        registry: &mut Registry,
    ) -> Result<Self, Error> {
        let (reads, waiting) = mpsc::channel(READS_WAITING_MAX);
        let (forwards, forwarded) = mpsc::channel(FORWARDS_WAITING_MAX);
        let (events, _) = broadcast::channel(EVENTS_WAITING_MAX);
        let space = Space::new(config.directory.clone(), config.disk_reserve_bytes);
        let shared = Arc::new(Shared {
            peers: Arc::new(Peers::new(&transport)),
            endpoint: transport.endpoint,
            authenticate: transport.authenticate,
            events,
            space: Arc::new(space),
            metrics: Metrics::new(registry),
            reads,
            forwards,
            stopped: CancellationToken::new(),
            tasks: TaskTracker::new(),
            core: RwLock::new(None),
            config,
        });
        let core = Core::open(&shared).await?;
        supervisor::publish(&shared, core);
        shared.tasks.spawn(server::serve(shared.clone()));
        shared.tasks.spawn(read::run_rounds(shared.clone(), waiting));
        shared.tasks.spawn(forward::run(shared.clone(), forwarded));
        shared.tasks.spawn(supervisor::supervise(shared.clone()));
        let stop = Arc::new(StopOnDrop(shared.clone()));
        Ok(Self { shared, _stop: stop })
    }

    fn core(&self) -> Result<Arc<Core>, Error> {
        self.shared.core().map_err(|failure| Error::Unavailable(failure.to_string()))
    }

    /// Makes a group of this node alone, which others reach at `address` (`host:port`).
    ///
    /// # Errors
    /// [`Error::NotEmpty`] where this node has been a member of a group.
    pub async fn bootstrap(&self, address: String) -> Result<(), Error> {
        let members = BTreeMap::from([(self.shared.me(), BasicNode::new(address))]);
        match self.core()?.engine.initialize(members).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Err(Error::NotEmpty),
            Err(error) => Err(Error::Stopped(error.to_string())),
        }
    }

    /// Whether this node is, or was, a member of a group.
    pub fn is_initialized(&self) -> bool {
        let Ok(core) = self.core() else { return false };
        let metrics = core.engine.metrics();
        let metrics = metrics.borrow_watched();
        core.had_state
            || metrics.last_log_index.is_some()
            || metrics.membership_config.nodes().next().is_some()
    }

    /// Has `command`, proposed at `at`, applied everywhere, and answers what the state machine
    /// said. Callable on any node. Waits through an election, up to [`crate::PROPOSE_TIMEOUT`].
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(&self, at: Timestamp, command: Command) -> Result<Response, ProposeError> {
        Box::pin(propose::propose(&self.shared, at, &command)).await
    }

    /// The state, at least as new as anything that was answered to anyone before this call.
    /// Callable on any node. Waits through an election, up to [`crate::READ_TIMEOUT`].
    ///
    /// # Errors
    /// [`ReadError::Unavailable`] where no majority answers in time.
    pub async fn read(&self) -> Result<View, ReadError> {
        read::read(&self.shared).await
    }

    /// The state as far as this node knows it, which may be behind. While the databases are being
    /// opened again after a failure, or once this node has stopped, all it answers is a fault.
    pub fn local(&self) -> View {
        self.shared.core().map_or_else(|_| View::closed(), |core| core.view())
    }

    /// What commands do from now on, as this node applies them.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    pub fn status(&self) -> Status {
        let id = self.shared.config.node;
        let Ok(core) = self.core() else {
            return Status {
                id,
                leader: None,
                term: 0,
                last_log: None,
                last_applied: None,
                voters: BTreeSet::new(),
                learners: BTreeSet::new(),
                is_changing: false,
                is_leader: false,
                snapshot: None,
            };
        };
        let metrics = core.engine.metrics();
        let metrics = metrics.borrow_watched();
        let members = metrics.membership_config.membership();
        Status {
            id,
            leader: metrics.current_leader.map(NodeId::new),
            term: metrics.current_term,
            last_log: metrics.last_log_index,
            last_applied: metrics.last_applied.as_ref().map(|applied| applied.index),
            voters: members.voter_ids().map(NodeId::new).collect(),
            learners: members.learner_ids().map(NodeId::new).collect(),
            is_changing: members.get_joint_config().len() > 1,
            is_leader: metrics.current_leader == Some(self.shared.me()),
            snapshot: metrics.snapshot.as_ref().map(|snapshot| snapshot.index),
        }
    }

    /// Adds a node that runs and waits at `raft_address`: it learns, catches up, then votes.
    /// Callable on any member; a node that is a member already is no error.
    ///
    /// # Errors
    /// [`Error::Membership`] where it is refused or does not catch up; [`Error::Unavailable`].
    pub async fn add_member(&self, id: NodeId, raft_address: String) -> Result<(), Error> {
        Box::pin(members::add(&self.shared, id.number(), raft_address)).await
    }

    /// Takes a node out of the group. Callable on any member, for any member; a node that is no
    /// member is no error.
    ///
    /// # Errors
    /// [`Error::Membership`] where it is the last one; [`Error::Unavailable`].
    pub async fn remove_member(&self, id: NodeId) -> Result<(), Error> {
        Box::pin(members::remove(&self.shared, id.number())).await
    }

    /// Ends a change of the voters that broke off. Only the leader can; without such a change it does
    /// nothing.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where it cannot be done now.
    pub async fn settle_members(&self) -> Result<(), Error> {
        let settled = Box::pin(members::settle_here(&self.shared)).await;
        settled.map_err(|failure| Error::Unavailable(failure.to_string()))
    }

    /// Where this node leads, makes another voter lead: for a node that is about to stop. Gives who
    /// leads then, and nothing where this node did not lead or there is no other voter.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where nobody took the leadership in time.
    pub async fn hand_over(&self) -> Result<Option<NodeId>, Error> {
        Ok(Box::pin(handover::hand_over(&self.shared)).await?.map(NodeId::new))
    }

    /// Stops, and waits until the databases are closed, but for views that are still held.
    pub async fn shutdown(&self) {
        self.shared.stopped.cancel();
        let core = self.shared.core.write().take();
        let mut closing = None;
        if let Some(core) = core {
            if let Err(error) = core.engine.shutdown().await {
                tracing::warn!(%error, "the Raft core did not end well");
            }
            closing = core.closing.lock().take();
        }
        self.shared.endpoint.close(STOPPING, b"stopping");
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        if let Some(closing) = closing {
            closing.ended().await;
        }
    }
}
