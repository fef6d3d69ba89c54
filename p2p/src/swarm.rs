//! What agents and nodes hold of this crate: one [`Swarm`] for a process.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use serde::Serialize;
use shoal_content::{PeerId, Recipe, RecipeId, Ticket, Timestamp, Zone};
use shoal_swarm::frames::Frame;
use shoal_swarm::{Contact, Event, Ledger, Uploads, ranked};
use thiserror::Error;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::bulk::{self, Bulk};
use crate::discovery::{Discovery, DiscoveryConfig, Found};
use crate::identity::{self, Credentials, Role};
use crate::link::{Dials, EXPELLED, Link};
use crate::metrics::{CertificateEnd, Metrics};
use crate::relay::Relay;
use crate::status::Banned;
use crate::store::{ChunkStore, StoreError};
use crate::tickets::{TicketKey, TicketKeys};
use crate::transfer::{FetchError, Handle, Owned, Running, Transfer};
use crate::{driver, endpoint, link, request};

/// Chunk bytes received and not yet written, over all transfers; of what came compressed, the frame and
/// the content.
pub(crate) const IN_FLIGHT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Recipes sent at once; who asks for more of them waits.
const RECIPES_MAX: usize = 32;
/// Bytes of recipes that were written and may not have reached those who asked, over all connections.
const RECIPES_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Events waiting for the driver; whoever brings more waits, a peer's control stream with it.
const EVENTS_MAX: usize = 8 * 1024;
/// Tickets kept for recipes; the first to expire go first.
const TICKETS_MAX: usize = 16 * 1024;
/// How long the discovery network is searched for a recipe that no node gives.
const MEMBERS_TIMEOUT: Duration = Duration::from_secs(15);
/// Says why a connection is closed.
const MOVED: u32 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum PeerRole {
    Host,
    Cache,
    /// A node: holds everything, tracks swarms.
    Origin,
}

#[derive(Debug, Clone)]
pub struct Config {
    pub credentials: Credentials,
    pub listen: SocketAddr,
    /// What others are told to dial; port 0 means the bound one.
    pub advertise: SocketAddr,
    pub zone: Zone,
    pub role: PeerRole,
    /// Check tickets.
    pub ticket_keys: TicketKeys,
    pub discovery: Option<DiscoveryConfig>,
    /// The ways that chunks may go.
    pub bulk: Bulk,
}

/// Bytes a second at most; `None` is any number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    pub upload: Option<u64>,
    pub download: Option<u64>,
}

/// A node's identity and peer address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeAddress {
    pub peer: PeerId,
    pub address: SocketAddr,
}

#[derive(Debug, Error)]
pub enum Error {
    #[error("the identity cannot be used")]
    Identity(#[from] identity::Error),
    #[error("the peer port {address} cannot be opened")]
    Listen {
        address: SocketAddr,
        #[source]
        error: std::io::Error,
    },
    #[error("the discovery network cannot be joined on {address}")]
    Discovery {
        address: SocketAddr,
        #[source]
        error: Box<dyn std::error::Error + Send + Sync>,
    },
}

pub(crate) struct Shared {
    pub(crate) this: Weak<Self>,
    pub(crate) config: Config,
    /// What others are told to dial now.
    pub(crate) advertise: Mutex<SocketAddr>,
    pub(crate) endpoint: quinn::Endpoint,
    /// Where chunks may go over bulk connections.
    pub(crate) bulk: Option<bulk::Dialler>,
    pub(crate) store: Arc<dyn ChunkStore>,
    pub(crate) relay: Relay,
    pub(crate) metrics: Metrics,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) links: Mutex<HashMap<PeerId, Arc<Link>>>,
    pub(crate) dials: Dials,
    pub(crate) tickets: Mutex<HashMap<RecipeId, Ticket>>,
    pub(crate) transfers: Mutex<HashMap<RecipeId, Owned>>,
    pub(crate) uploads: Mutex<Uploads>,
    /// What this process gave to whom, where it is a node.
    pub(crate) ledger: Mutex<Ledger>,
    /// What the core's and the upload slots' time counts from.
    pub(crate) began: Instant,
    pub(crate) nodes: Mutex<Vec<NodeAddress>>,
    pub(crate) bans: Mutex<BTreeMap<PeerId, Banned>>,
    expelled: Mutex<BTreeSet<PeerId>>,
    /// Recipes sent at once.
    pub(crate) recipes: Semaphore,
    /// Room for those that are sent, until they are there.
    pub(crate) recipe_bytes: Semaphore,
    pub(crate) budget: Arc<Semaphore>,
    pub(crate) discovery: Option<Discovery>,
    /// Answers under way, and who waits for their end.
    pub(crate) answers: watch::Sender<usize>,
    /// Somebody will be called when a limit allows it.
    pub(crate) calling: AtomicBool,
    /// It ends soon, and lets nobody in.
    pub(crate) retiring: AtomicBool,
    pub(crate) tasks: TaskTracker,
    pub(crate) cancel: CancellationToken,
}

impl Shared {
    /// The running transfer of a recipe.
    pub(crate) fn running(&self, id: RecipeId) -> Option<Arc<Running>> {
        let transfers = self.transfers.lock();
        transfers.get(&id).filter(|owned| owned.has_owner()).map(|owned| owned.running.clone())
    }

    /// Whether `peer` shows a right to `recipe`.
    pub(crate) fn entitled(&self, ticket: &Ticket, recipe: RecipeId, peer: PeerId) -> bool {
        self.config.ticket_keys.entitles(ticket, recipe, peer, wall_clock())
    }

    /// Shows `link`'s peer the ticket for a recipe, if there is one.
    pub(crate) fn join(&self, link: &Link, recipe: RecipeId) {
        let ticket = self.tickets.lock().get(&recipe).cloned();
        if let Some(ticket) = ticket {
            link.send(Frame::Join { recipe, ticket });
        }
    }

    pub(crate) async fn tell(&self, event: Event) {
        // The driver is gone only at shutdown, when nobody needs to know any more.
        let _ = self.events.send(event).await;
    }

    /// Calls those who wait for an upload slot, as far as there are some.
    pub(crate) fn call_waiting(&self) {
        loop {
            let next = self.uploads.lock().invite(self.began.elapsed());
            let Some(peer) = next else { return };
            let link = self.links.lock().get(&peer).cloned();
            match link {
                Some(link) => link.send(Frame::Free),
                None => self.uploads.lock().pass(peer),
            }
        }
    }

    /// Calls those who wait once a limit lets somebody in again.
    pub(crate) fn call_later(&self) {
        let now = self.began.elapsed();
        let Some(at) = self.uploads.lock().call_at(now) else { return };
        let Some(shared) = self.this.upgrade() else { return };
        if self.calling.swap(true, Ordering::Relaxed) {
            return;
        }
        self.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(at.saturating_sub(now)) => {
                    shared.calling.store(false, Ordering::Relaxed);
                    shared.call_waiting();
                    // The limit may be another by now.
                    shared.call_later();
                }
                () = shared.cancel.cancelled() => {}
            }
        });
    }

    pub(crate) fn is_retiring(&self) -> bool {
        self.retiring.load(Ordering::Relaxed)
    }

    fn keep_ticket(&self, recipe: RecipeId, ticket: Ticket) {
        let mut tickets = self.tickets.lock();
        if tickets.len() >= TICKETS_MAX && !tickets.contains_key(&recipe) {
            let first = tickets.iter().min_by_key(|(_, ticket)| ticket.expires());
            if let Some(first) = first.map(|(&recipe, _)| recipe) {
                tickets.remove(&first);
            }
        }
        tickets.insert(recipe, ticket);
    }

    pub(crate) fn ban(&self, peer: PeerId, banned: Banned) {
        let mut bans = self.bans.lock();
        let now = Instant::now();
        bans.retain(|_, banned| banned.until > now);
        bans.insert(peer, banned);
    }

    /// Whether a node is connected, which tracks swarms and has every recipe.
    pub(crate) fn has_node(&self) -> bool {
        self.links.lock().values().any(|link| link.node)
    }

    /// Whether nothing is to do with it, for a while or for good.
    pub(crate) fn is_refused(&self, peer: PeerId) -> bool {
        self.is_banned(peer) || self.expelled.lock().contains(&peer)
    }

    fn is_banned(&self, peer: PeerId) -> bool {
        self.bans.lock().get(&peer).is_some_and(|banned| banned.until > Instant::now())
    }
}

/// What this host takes to be the time.
pub fn wall_clock() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp::from_millis(since.map_or(0, |since| since.as_millis() as u64))
}

/// Members that discovery names may be worth knowing.
async fn take_hints(shared: Arc<Shared>, mut found: broadcast::Receiver<Found>) {
    loop {
        let next = tokio::select! {
            () = shared.cancel.cancelled() => return,
            next = found.recv() => next,
        };
        match next {
            Ok(Found { recipe, contact }) => shared.tell(Event::Hint { recipe, contact }).await,
            // What was missed is found again at the next search.
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// See the module's documentation; clones share it.
#[derive(Clone)]
pub struct Swarm(pub(crate) Arc<Shared>);

impl std::fmt::Debug for Swarm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Swarm").field("peer", &self.peer_id()).finish_non_exhaustive()
    }
}

impl Swarm {
    /// Opens the port and starts to serve what `store` holds.
    ///
    /// # Errors
    /// Where the certificate or the port cannot be used.
    pub async fn start(
        config: Config,
        store: Arc<dyn ChunkStore>,
        registry: &mut Registry,
    ) -> Result<Self, Error> {
        let metrics = Metrics::register(registry);
        registry.register_collector(Box::new(CertificateEnd(config.credentials.clone())));
        let server = config.credentials.quinn_server(endpoint::ALPN, &Role::ALL)?;
        let client = config.credentials.quinn_client(endpoint::ALPN, &Role::ALL)?;
        let failed = |error| Error::Listen { address: config.listen, error };
        let endpoint = endpoint::open(config.listen, server, client, &metrics).map_err(failed)?;
        let bound = endpoint.local_addr().map_err(failed)?;
        let mut advertise = config.advertise;
        if advertise.port() == 0 {
            advertise.set_port(bound.port());
        }
        let (lanes, dialler) = bulk::open(&config, bound, &metrics)?.unzip();
        let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
        let discovery = match config.discovery.clone() {
            Some(wanted) => {
                let (key, metrics) = (config.credentials.key(), metrics.clone());
                let started =
                    Discovery::start(wanted, key, advertise, metrics, &tasks, cancel.clone());
                Some(started.await?)
            }
            None => None,
        };
        let (events, inbox) = mpsc::channel(EVENTS_MAX);
        let node = config.role == PeerRole::Origin;
        let uploads = if node { Uploads::of_node() } else { Uploads::default() };
        let shared = Arc::new_cyclic(|this| Shared {
            this: this.clone(),
            config,
            advertise: Mutex::new(advertise),
            endpoint,
            bulk: dialler,
            store,
            relay: Relay::default(),
            metrics,
            events,
            links: Mutex::default(),
            dials: Dials::default(),
            tickets: Mutex::default(),
            transfers: Mutex::default(),
            uploads: Mutex::new(uploads),
            ledger: Mutex::default(),
            began: Instant::now(),
            nodes: Mutex::default(),
            bans: Mutex::default(),
            expelled: Mutex::default(),
            recipes: Semaphore::new(RECIPES_MAX),
            recipe_bytes: Semaphore::new(RECIPES_BYTES_MAX),
            budget: Arc::new(Semaphore::new(IN_FLIGHT_BYTES_MAX)),
            discovery,
            answers: watch::Sender::new(0),
            calling: AtomicBool::new(false),
            retiring: AtomicBool::new(false),
            tasks,
            cancel,
        });
        if let Some(discovery) = &shared.discovery {
            shared.tasks.spawn(take_hints(shared.clone(), discovery.found()));
        }
        shared.tasks.spawn(driver::run(shared.clone(), inbox));
        shared.tasks.spawn(link::accept(shared.clone()));
        if let Some(lanes) = lanes {
            shared.tasks.spawn(bulk::accept(shared.clone(), lanes));
        }
        Ok(Self(shared))
    }

    /// Where peers reach this process.
    pub fn local_address(&self) -> SocketAddr {
        *self.0.advertise.lock()
    }

    /// Where other members of the discovery network reach this process.
    pub fn discovery_address(&self) -> Option<SocketAddr> {
        let discovery = self.0.discovery.as_ref()?;
        Some(SocketAddr::new(self.local_address().ip(), discovery.port()))
    }

    /// This host has another address from now on; the port stays. Whoever is connected knows the old
    /// one, so every connection is closed and made anew where it is of use. What is on its way goes
    /// on at the chunk.
    pub async fn set_address(&self, ip: IpAddr) {
        let shared = &self.0;
        {
            let mut advertise = shared.advertise.lock();
            if advertise.ip() == ip {
                return;
            }
            advertise.set_ip(ip);
        }
        if let Some(discovery) = &shared.discovery {
            discovery.moved(ip).await;
        }
        for link in shared.links.lock().values() {
            link.connection.close(MOVED.into(), b"its address changed");
        }
    }

    /// Members to begin with, as `HOST:PORT` or multiaddrs; replaces those given before.
    pub async fn set_bootstrap(&self, addresses: Vec<String>) {
        if let Some(discovery) = &self.0.discovery {
            discovery.bootstrap(addresses).await;
        }
    }

    pub fn peer_id(&self) -> PeerId {
        self.0.config.credentials.peer_id()
    }

    /// The keys that tickets are checked with from now on. Where one is believed no longer that was
    /// until now, whoever showed its tickets needs others, and transfers of this peer that had them
    /// end with [`FetchError::Distrusted`].
    pub async fn set_ticket_keys(&self, keys: Vec<TicketKey>) {
        let shared = &self.0;
        if !shared.config.ticket_keys.replace(keys, wall_clock()) {
            return;
        }
        for link in shared.links.lock().values() {
            link.check_grants(|recipe, ticket| shared.entitled(ticket, recipe, link.peer));
        }
        let me = self.peer_id();
        shared.tickets.lock().retain(|&recipe, ticket| shared.entitled(ticket, recipe, me));
        let mut ended = Vec::new();
        for (&recipe, owned) in shared.transfers.lock().iter() {
            if owned.is_under_way() && !shared.tickets.lock().contains_key(&recipe) {
                owned.end(FetchError::Distrusted);
                ended.push(recipe);
            }
        }
        for recipe in ended {
            shared.tell(Event::Stop { recipe }).await;
        }
    }

    /// Members that were removed from the cluster, all of them: their certificates may hold, and
    /// nothing is had from them or given to them.
    pub fn set_expelled(&self, peers: BTreeSet<PeerId>) {
        let shared = &self.0;
        // Who comes from here on is refused.
        shared.expelled.lock().clone_from(&peers);
        for link in shared.links.lock().values().filter(|link| peers.contains(&link.peer)) {
            debug!(peer = %link.peer, "a member was removed from the cluster");
            link.connection.close(EXPELLED.into(), b"removed from the cluster");
        }
    }

    /// Closes connections with certificates of authorities that are not believed any more; it does so by
    /// itself within half a minute. Whoever has a newer certificate comes again.
    pub fn close_distrusted(&self) {
        link::close_distrusted(&self.0);
    }

    /// Those members.
    pub fn expelled(&self) -> BTreeSet<PeerId> {
        self.0.expelled.lock().clone()
    }

    /// What this process shows to others.
    pub fn credentials(&self) -> &Credentials {
        &self.0.config.credentials
    }

    /// Those keys.
    pub fn ticket_keys(&self) -> &TicketKeys {
        &self.0.config.ticket_keys
    }

    /// The nodes as they are now; may be called at any time.
    pub async fn set_nodes(&self, nodes: Vec<NodeAddress>) {
        let me = self.peer_id();
        let nodes: Vec<_> = nodes.into_iter().filter(|node| node.peer != me).collect();
        let contacts =
            nodes.iter().map(|node| Contact { peer: node.peer, address: node.address }).collect();
        *self.0.nodes.lock() = nodes;
        self.0.tell(Event::Nodes(contacts)).await;
    }

    /// The recipe itself, from a node or from any peer that is connected; checked by its id.
    ///
    /// # Errors
    /// [`FetchError::NoSource`] with the last refusal, where nobody gave it.
    pub async fn recipe(&self, id: RecipeId, ticket: Ticket) -> Result<Arc<Recipe>, FetchError> {
        self.0.keep_ticket(id, ticket.clone());
        if let Some(recipe) = self.0.store.recipe(id).await? {
            return Ok(recipe);
        }
        let nodes: BTreeMap<PeerId, SocketAddr> =
            self.0.nodes.lock().iter().map(|node| (node.peer, node.address)).collect();
        let mut sources: Vec<Contact> = ranked(id, nodes.keys().copied())
            .into_iter()
            .filter_map(|peer| Some(Contact { peer, address: *nodes.get(&peer)? }))
            .collect();
        for (&peer, link) in self.0.links.lock().iter().filter(|(_, link)| !link.node) {
            sources.push(Contact { peer, address: link.address });
        }
        let last = match request::recipe_of_any(&self.0, &sources, id, &ticket).await {
            Ok(recipe) => return Ok(Arc::new(recipe)),
            Err(last) => last,
        };
        let found = self.recipe_from_members(id, ticket).await;
        found.map(Arc::new).ok_or(FetchError::NoSource(last))
    }

    /// The recipe from whoever the discovery network says has it.
    async fn recipe_from_members(&self, id: RecipeId, ticket: Ticket) -> Option<Recipe> {
        let discovery = self.0.discovery.as_ref()?;
        let mut found = discovery.found();
        discovery.seek(id);
        let search = async {
            loop {
                let contact = match found.recv().await {
                    Ok(Found { recipe, contact }) if recipe == id => contact,
                    Ok(_) | Err(RecvError::Lagged(_)) => continue,
                    Err(RecvError::Closed) => return None,
                };
                match request::recipe(&self.0, contact, id, ticket.clone()).await {
                    Ok(recipe) => return Some(recipe),
                    Err(error) => debug!(peer = %contact.peer, %error, "no recipe from there"),
                }
            }
        };
        let recipe = tokio::time::timeout(MEMBERS_TIMEOUT, search).await.ok().flatten();
        if self.0.running(id).is_none() {
            discovery.rest(id);
        }
        recipe
    }

    /// Fetches what is missing of a recipe into the store, or joins the transfer that does.
    pub fn fetch(&self, id: RecipeId, recipe: Arc<Recipe>, ticket: Ticket) -> Transfer {
        self.0.keep_ticket(id, ticket);
        let mut all = self.0.transfers.lock();
        let under_way = all.get(&id).filter(|owned| !owned.running.has_ended());
        if let Some(handle) = under_way.and_then(|owned| owned.handle.upgrade()) {
            return Transfer(handle);
        }
        let running = Arc::new(Running::new(id, recipe.clone(), self.0.events.clone()));
        let handle = Arc::new(Handle(running.clone()));
        all.insert(id, Owned { running: running.clone(), handle: Arc::downgrade(&handle) });
        let shared = self.0.clone();
        self.0.tasks.spawn(async move {
            match shared.store.open(id, recipe).await {
                Ok(held) => {
                    running.local(held.iter());
                    shared.tell(Event::Start { recipe: id, held }).await;
                    running.started();
                }
                Err(error) => running.end(Err(error.into())),
            }
        });
        Transfer(handle)
    }

    /// Offers what the store holds of `recipe` to the swarm.
    ///
    /// # Errors
    /// Where the store cannot say what it holds.
    pub async fn announce(&self, recipe: RecipeId) -> Result<(), StoreError> {
        if !self.0.store.held(recipe).await?.is_empty() {
            self.0.tell(Event::Seed { recipe }).await;
        }
        Ok(())
    }

    /// Stops offering `recipe`, of which the store holds nothing any more. One that is on its way
    /// here goes on.
    pub async fn withdraw(&self, recipe: RecipeId) {
        self.0.relay.forget(recipe);
        self.0.tell(Event::Stop { recipe }).await;
    }

    /// Sets what may be sent and brought in from now on.
    pub async fn set_limits(&self, limits: Limits) {
        let now = self.0.began.elapsed();
        self.0.uploads.lock().limit(now, limits.upload);
        self.0.call_waiting();
        self.0.tell(Event::Limit { bytes_per_second: limits.download }).await;
    }

    /// Tells the peers that this process goes away, begins no answer any more, and lets those under
    /// way end, for as long as `bound`; gives whether they did. What is on its way here goes on.
    pub async fn retire(&self, bound: Duration) -> bool {
        let shared = &self.0;
        shared.retiring.store(true, Ordering::Relaxed);
        shared.uploads.lock().close();
        shared.tell(Event::Retire).await;
        let links: Vec<Arc<Link>> = shared.links.lock().values().cloned().collect();
        for link in links {
            link.recipes().into_iter().for_each(|recipe| link.send(Frame::Leave { recipe }));
        }
        let mut answers = shared.answers.subscribe();
        let ended = answers.wait_for(|answers| *answers == 0);
        tokio::time::timeout(bound, ended).await.is_ok()
    }

    /// Ends every transfer and connection, and returns when nothing of them runs.
    pub async fn shutdown(&self) {
        self.0.cancel.cancel();
        for owned in self.0.transfers.lock().values() {
            owned.end(FetchError::Stopped);
        }
        self.0.endpoint.close(0u32.into(), b"shutdown");
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.0.endpoint.wait_idle().await;
    }
}
