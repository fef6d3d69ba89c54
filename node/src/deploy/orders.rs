//! The order streams of the agents.
//!
//! An agent that opens its stream hears of the nodes and of every order that it has not come to an
//! end with, then of changes as they are applied here. Events are taken before the state is read,
//! so that nothing falls between.
//!
//! Invariants: at most [`ORDER_STREAMS_MAX`] streams are open at a node; a slow agent holds back
//! only its own stream; a stream whose agent was removed ends, and so does every stream of a node
//! that does not hear any more what is decided: its agents then ask another one.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use rand::RngExt;
use shoal_api::{NodeAddress, OrderMessage, TicketKeyInfo};
use shoal_content::{DeploymentId, ImageReference, PeerId, Pin, Timestamp};
use shoal_metadata::{Event, Fault, HostState, Query, Read};
use shoal_p2p::TicketKey;
use shoal_raft::{Raft, View};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::warm_up::Kept;
use crate::authorities;
use crate::keys::Keyring;

/// Streams open at one node: every agent of a large cluster may be at the one node that is left.
pub const ORDER_STREAMS_MAX: usize = 12_288;
/// Messages that wait for a slow agent.
const QUEUE: usize = 64;
/// An agent takes a stream for dead that is silent for 25 s.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// How often a stream makes sure that its node hears what is decided, on the average.
const CHECK_INTERVAL: Duration = Duration::from_secs(15);
/// An election is over before. With a ping's interval it is less than the agent waits in silence.
const CHECK_TIMEOUT: Duration = Duration::from_secs(8);
/// Agents that are removed one after another are told of together, and not to all agents at once.
const GATHERING_MAX: Duration = Duration::from_secs(3);

/// Hands out order streams, and knows which agents listen. Clones share it.
#[derive(Debug, Clone)]
pub struct OrderDesk {
    raft: Raft,
    ring: Keyring,
    /// Who was removed from the cluster; `None` until that was read.
    expelled: watch::Sender<Option<Arc<BTreeSet<PeerId>>>>,
    /// What policies keep on hosts.
    kept: watch::Sender<Arc<Vec<Kept>>>,
    /// Open streams by agent; an agent that comes again has two for a moment.
    open: Arc<Mutex<HashMap<PeerId, usize>>>,
    stopping: CancellationToken,
}

/// Counts a stream for as long as it lives.
struct Seat {
    desk: OrderDesk,
    agent: PeerId,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.desk.open.lock();
        if let Some(count) = open.get_mut(&self.agent) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.agent);
            }
        }
    }
}

/// The node has all the streams that it takes.
#[derive(Debug, PartialEq, Eq)]
pub struct Crowded;

impl OrderDesk {
    /// Streams end when `stopping` is cancelled.
    pub fn new(raft: Raft, ring: Keyring, stopping: CancellationToken) -> Self {
        let (expelled, kept) = (watch::Sender::new(None), watch::Sender::default());
        Self { raft, ring, expelled, kept, open: Arc::default(), stopping }
    }

    /// Tells agents what policies keep on them, where that is something else.
    pub fn set_kept(&self, kept: Vec<Kept>) {
        self.kept.send_if_modified(|known| {
            let changed = **known != kept;
            if changed {
                *known = Arc::new(kept);
            }
            changed
        });
    }

    /// Tells all agents who was removed from the cluster, where that is another list.
    pub fn set_expelled(&self, expelled: &BTreeSet<PeerId>) {
        self.expelled.send_if_modified(|known| {
            let changed = known.as_deref() != Some(expelled);
            if changed {
                *known = Some(Arc::new(expelled.clone()));
            }
            changed
        });
    }

    /// Agents that listen here.
    pub fn online(&self) -> Vec<PeerId> {
        self.open.lock().keys().copied().collect()
    }

    fn seat(&self, agent: PeerId) -> Result<Seat, Crowded> {
        let mut open = self.open.lock();
        if open.values().sum::<usize>() >= ORDER_STREAMS_MAX {
            return Err(Crowded);
        }
        *open.entry(agent).or_default() += 1;
        Ok(Seat { desk: self.clone(), agent })
    }

    /// Newline-delimited JSON of [`OrderMessage`]s. `current` is a linearizable state read after
    /// the call began.
    ///
    /// # Errors
    /// [`Crowded`].
    pub fn stream(
        &self,
        agent: PeerId,
        current: View,
        events: tokio::sync::broadcast::Receiver<Event>,
    ) -> Result<impl Stream<Item = Bytes> + Send + use<>, Crowded> {
        let seat = self.seat(agent)?;
        let stopping = self.stopping.clone();
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (raft, ring) = (self.raft.clone(), self.ring.clone());
        let stream = OrderStream {
            agent,
            raft,
            ring,
            sent: HashMap::new(),
            expelled: self.expelled.subscribe(),
            kept: self.kept.subscribe(),
            told_kept: None,
            tell_at: None,
            sender,
        };
        tokio::spawn(async move {
            let _seat = seat;
            stopping.run_until_cancelled(stream.run(current, events)).await;
        });
        let lines = tokio_stream::wrappers::ReceiverStream::new(receiver);
        Ok(lines.map(|message: OrderMessage| line(&message)))
    }
}

fn line(message: &OrderMessage) -> Bytes {
    let mut line = serde_json::to_vec(message).expect("an order always serialises");
    line.push(b'\n');
    line.into()
}

struct OrderStream {
    agent: PeerId,
    raft: Raft,
    ring: Keyring,
    /// With the attempt that the agent was told to make.
    sent: HashMap<DeploymentId, u32>,
    expelled: watch::Receiver<Option<Arc<BTreeSet<PeerId>>>>,
    kept: watch::Receiver<Arc<Vec<Kept>>>,
    /// What the agent was told last that it is to keep.
    told_kept: Option<Vec<ImageReference>>,
    /// When the agent is told of a list that it does not know.
    tell_at: Option<Instant>,
    sender: mpsc::Sender<OrderMessage>,
}

/// The stream is at its end: nobody listens, the agent is no member, or the node is cut off.
struct End;

/// Somewhere about [`CHECK_INTERVAL`] from now, so that streams that began together do not stay so.
fn next_check() -> Instant {
    let share = rand::rng().random_range(0.5..1.5);
    Instant::now() + CHECK_INTERVAL.mul_f64(share)
}

impl OrderStream {
    async fn run(mut self, current: View, mut events: tokio::sync::broadcast::Receiver<Event>) {
        if self.send_all(&current).await.is_err() {
            return;
        }
        drop(current);
        let mut pings = tokio::time::interval(PING_INTERVAL);
        pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut check_at = next_check();
        loop {
            let tell_at = self.tell_at;
            let step = tokio::select! {
                () = self.sender.closed() => return,
                _ = pings.tick() => self.send(OrderMessage::Ping).await,
                event = events.recv() => match event {
                    Ok(event) => self.take(event).await,
                    Err(RecvError::Lagged(_)) => self.take(Event::AllChanged).await,
                    Err(RecvError::Closed) => return,
                },
                Ok(()) = self.expelled.changed() => {
                    self.gather();
                    Ok(())
                }
                Ok(()) = self.kept.changed() => {
                    let view = self.raft.local();
                    self.send_kept(&view).await
                }
                () = sleep_until(tell_at.unwrap_or(check_at)), if tell_at.is_some() => {
                    let view = self.raft.local();
                    self.send_cluster(&view).await
                }
                () = sleep_until(check_at) => {
                    check_at = next_check();
                    self.check_current().await
                }
            };
            if step.is_err() {
                return;
            }
        }
    }

    /// Lets a little time pass before the agent is told of another list.
    fn gather(&mut self) {
        let share = rand::rng().random_range(0.0..1.0);
        self.tell_at.get_or_insert_with(|| Instant::now() + GATHERING_MAX.mul_f64(share));
    }

    /// Whether this node still hears what is decided: an agent would wait here in vain.
    async fn check_current(&self) -> Result<(), End> {
        let read = timeout(CHECK_TIMEOUT, self.raft.read()).await;
        if matches!(read, Ok(Ok(_))) {
            return Ok(());
        }
        debug!(agent = %self.agent, "an order stream ends: this node is cut off");
        Err(End)
    }

    async fn send(&self, message: OrderMessage) -> Result<(), End> {
        self.sender.send(message).await.map_err(|_| End)
    }

    async fn send_all(&mut self, view: &View) -> Result<(), End> {
        let query = view.query();
        let pending = match query.pending_deployments(self.agent) {
            Ok(pending) => pending,
            Err(error) => return self.broken(&error),
        };
        self.send_cluster(view).await?;
        let deployments: Vec<DeploymentId> = pending.iter().map(|one| one.id).collect();
        // What was sent and does not stand is stopped by this.
        self.sent.retain(|id, _| deployments.contains(id));
        self.send(OrderMessage::Standing { deployments: deployments.clone() }).await?;
        for deployment in deployments {
            self.order(view, deployment).await?;
        }
        self.told_kept = None;
        self.send_kept(view).await
    }

    /// What policies keep on this host, where that is not what it was told last. Ends where the agent is no
    /// member any more.
    async fn send_kept(&mut self, view: &View) -> Result<(), End> {
        let labels = match view.query().agent(self.agent) {
            Ok(Some(agent)) => agent.labels,
            Ok(None) => return Err(End),
            Err(error) => return self.broken(&error),
        };
        let kept = self.kept.borrow_and_update().clone();
        let own = kept.iter().filter(|one| labels.match_selector(&one.selector));
        let references: Vec<ImageReference> = own.map(|one| one.reference.clone()).collect();
        if self.told_kept.as_ref() == Some(&references) {
            return Ok(());
        }
        self.told_kept = Some(references.clone());
        self.send(OrderMessage::Keep { references }).await
    }

    /// How the nodes are reached, what tickets are checked with, who has no part in it any more, and whom
    /// to believe.
    async fn send_cluster(&mut self, view: &View) -> Result<(), End> {
        let query = view.query();
        let nodes = match node_addresses(query) {
            Ok(nodes) => nodes,
            Err(error) => return self.broken(&error),
        };
        if let Err(error) = self.ring.refresh(query) {
            return self.broken(&error);
        }
        self.tell_at = None;
        let expelled = self.expelled.borrow_and_update().clone();
        let expelled = expelled.map(|expelled| expelled.iter().copied().collect());
        let authorities = match query.authorities() {
            Ok(rows) => authorities::news(&rows),
            Err(error) => return self.broken(&error),
        };
        let ticket_keys = ticket_keys(&self.ring);
        self.send(OrderMessage::Nodes { nodes, ticket_keys, expelled, authorities }).await
    }

    fn broken(&self, error: &dyn std::error::Error) -> Result<(), End> {
        warn!(agent = %self.agent, %error, "an order stream ends: the metadata cannot be read");
        Err(End)
    }

    /// Tells the agent of one order what it does not know yet. The rows are read only where there
    /// is something to be told: every agent hears of every change of each deployment.
    async fn order(&mut self, view: &View, id: DeploymentId) -> Result<(), End> {
        let query = view.query();
        let attempt = match query.pending_attempt(self.agent, id) {
            Ok(attempt) => attempt,
            Err(error) => return self.broken(&error),
        };
        if attempt == self.sent.get(&id).copied() {
            return Ok(());
        }
        let read = query.deployment(id).and_then(|row| Ok((row, query.deployment_plan(id)?)));
        let (row, plan) = match read {
            Ok((Some(row), plan)) => (row, plan.unwrap_or_default()),
            Ok((None, _)) => return Ok(()),
            Err(error) => return self.broken(&error),
        };
        let Some(attempt) = attempt else {
            self.sent.remove(&id);
            // Who is done has ended by itself.
            if matches!(row.hosts.get(&self.agent), Some(HostState::Done { .. })) {
                return Ok(());
            }
            let attempt = plan.attempt(self.agent);
            return self.send(OrderMessage::Cancel { deployment: id, attempt }).await;
        };
        self.sent.insert(id, attempt);
        let reference = ImageReference { name: row.image, pin: Pin::Digest(row.digest) };
        let (tag, priority) = (row.tag, plan.priority);
        let order = OrderMessage::Deploy { deployment: id, reference, tag, priority, attempt };
        self.send(order).await
    }

    fn check_member(&self, view: &View) -> Result<(), End> {
        match view.query().agent(self.agent) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(End),
            Err(error) => self.broken(&error),
        }
    }

    async fn take(&mut self, event: Event) -> Result<(), End> {
        let view = self.raft.local();
        match event {
            Event::DeploymentChanged(id) => self.order(&view, id).await,
            Event::MembersChanged | Event::SigningKeysChanged | Event::AuthoritiesChanged => {
                self.send_cluster(&view).await
            }
            // It may carry other labels now.
            Event::AgentsChanged => self.send_kept(&view).await,
            Event::AllChanged => {
                self.check_member(&view)?;
                self.send_all(&view).await
            }
            Event::TagMoved { .. }
            | Event::UploadChanged(_)
            | Event::WarmUpsChanged
            | Event::ScansChanged
            | Event::DeltaChanged(_) => Ok(()),
        }
    }
}

/// What agents check tickets with.
pub fn ticket_keys(ring: &Keyring) -> Vec<TicketKeyInfo> {
    let shown = |key: TicketKey| TicketKeyInfo {
        public_key: hex::encode(key.public),
        until_ms: key.until.map(Timestamp::as_millis),
    };
    ring.ticket_keys().into_iter().map(shown).collect()
}

/// How agents reach the nodes.
///
/// # Errors
/// Where the metadata cannot be read.
pub fn node_addresses<R: Read>(query: Query<'_, R>) -> Result<Vec<NodeAddress>, Fault> {
    let nodes = query.nodes()?.into_iter().map(|node| NodeAddress {
        id: node.id,
        name: node.name,
        peer: node.peer,
        zone: node.zone,
        api_url: node.api_url,
        peer_address: node.peer_address,
        discovery_address: node.discovery_address,
    });
    Ok(nodes.collect())
}
