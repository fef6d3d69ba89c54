//! One connection to one peer: who it is, its control stream, its requests.
//!
//! Invariant: at most one link a peer. Where two peers dialled each other at once, both keep the
//! connection that the smaller id dialled; and nobody dials a peer while it dials it already, since of
//! two connections that one side made each end might keep another one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shoal_content::{PeerId, RecipeId, Ticket, Timestamp, Zone};
use shoal_swarm::frames::{Frame, FrameError};
use shoal_swarm::{Contact, Event, Member};
use tokio::sync::{OwnedMutexGuard, Semaphore, mpsc, oneshot};
use tracing::{debug, info, warn};

use crate::bulk::Lanes;
use crate::identity::{Role, peer_of};
use crate::serve;
use crate::swarm::{PeerRole, Shared};
use crate::wire::{self, WireError};

/// From dialling to the peer's Hello.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Frames waiting for a peer that does not read; then the link is closed.
const FRAMES_MAX: usize = 4096;
/// Connections at once: of a host, and of a node, to which every host has one.
const LINKS_MAX: usize = 1024;
const LINKS_NODE_MAX: usize = 16 * 1024;
/// Handshakes at once; who comes then must show that its address is its own.
const HANDSHAKES_MAX: usize = 512;
/// Recipes that one connection may present tickets for.
const GRANTS_MAX: usize = 4096;

/// Say why a connection is closed.
pub(crate) const EXPELLED: u32 = 5;
const DISTRUSTED: u32 = 7;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) peer: PeerId,
    pub(crate) address: SocketAddr,
    pub(crate) zone: Zone,
    pub(crate) node: bool,
    cache: bool,
    pub(crate) connection: quinn::Connection,
    pub(crate) lanes: Lanes,
    dialler: PeerId,
    frames: mpsc::Sender<Frame>,
    /// Bytes of answers to it that are not acknowledged, as they count.
    pub(crate) kept: AtomicU64,
    /// When anything but names went over it.
    used: Mutex<Instant>,
    /// What this peer has a right to, by the ticket that says so.
    grants: Mutex<HashMap<RecipeId, Ticket>>,
}

impl Link {
    pub(crate) fn send(&self, frame: Frame) {
        self.touch_by(&frame);
        if self.frames.try_send(frame).is_err() {
            self.connection.close(1u32.into(), b"too slow");
        }
    }

    /// Something is asked or answered over it.
    pub(crate) fn touch(&self) {
        *self.used.lock() = Instant::now();
    }

    /// Those who have nothing to do with each other any more still name others now and then.
    fn touch_by(&self, frame: &Frame) {
        if !matches!(frame, Frame::Peers { .. } | Frame::Leave { .. }) {
            self.touch();
        }
    }

    pub(crate) fn idle(&self) -> Duration {
        self.used.lock().elapsed()
    }

    /// As others are told of it.
    pub(crate) fn member(&self) -> Member {
        let contact = Contact { peer: self.peer, address: self.address };
        Member { contact, zone: self.zone.clone(), cache: self.cache }
    }

    pub(crate) fn granted(&self, recipe: RecipeId, now: Timestamp) -> bool {
        self.grants.lock().get(&recipe).is_some_and(|ticket| ticket.expires() > now)
    }

    /// Those that it showed a ticket for.
    pub(crate) fn recipes(&self) -> Vec<RecipeId> {
        self.grants.lock().keys().copied().collect()
    }

    /// Drops what is not `good` any more.
    pub(crate) fn check_grants(&self, good: impl Fn(RecipeId, &Ticket) -> bool) {
        self.grants.lock().retain(|&recipe, ticket| good(recipe, ticket));
    }

    fn grant(&self, ticket: Ticket, now: Timestamp) {
        let mut grants = self.grants.lock();
        if grants.len() >= GRANTS_MAX {
            grants.retain(|_, ticket| ticket.expires() > now);
        }
        if grants.len() < GRANTS_MAX {
            grants.insert(ticket.recipe(), ticket);
        }
    }
}

/// Closes the connections whose other end showed what no authority has signed that is believed now.
pub(crate) fn close_distrusted(shared: &Shared) {
    let trust = shared.config.credentials.trust();
    let links: Vec<Arc<Link>> = shared.links.lock().values().cloned().collect();
    for link in links.iter().filter(|link| !trust.believes(&link.connection)) {
        info!(peer = %link.peer, "closed: its certificate is of an authority that is believed no longer");
        link.connection.close(DISTRUSTED.into(), b"another authority is believed");
    }
}

/// Takes connections until shutdown.
pub(crate) async fn accept(shared: Arc<Shared>) {
    let node = shared.config.role == PeerRole::Origin;
    let most = if node { LINKS_NODE_MAX } else { LINKS_MAX };
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    while let Some(incoming) = shared.endpoint.accept().await {
        if shared.links.lock().len() >= most || shared.is_retiring() {
            incoming.refuse();
            continue;
        }
        let Ok(turn) = handshakes.clone().try_acquire_owned() else {
            if incoming.may_retry() {
                let _ = incoming.retry();
            } else {
                // It comes again by itself.
                incoming.ignore();
            }
            continue;
        };
        let task = shared.clone();
        shared.tasks.spawn(async move {
            let connected = incoming.await;
            drop(turn);
            match connected {
                Ok(connection) => run(task, connection, None, None).await,
                Err(error) => debug!(%error, "a stranger did not get in"),
            }
        });
    }
}

/// The peers that are being dialled.
#[derive(Debug, Default)]
pub(crate) struct Dials(Mutex<HashMap<PeerId, Weak<tokio::sync::Mutex<Option<Failed>>>>>);

/// How the last dial of a peer ended, where it failed: who waited for it has no need to try again.
#[derive(Debug)]
struct Failed {
    at: Instant,
    address: SocketAddr,
    reason: String,
}

type Turn = OwnedMutexGuard<Option<Failed>>;

impl Dials {
    /// Waits until nobody dials `peer`.
    async fn turn(&self, peer: PeerId) -> Turn {
        let turn = {
            let mut all = self.0.lock();
            let known = all.get(&peer).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                all.retain(|_, turn| turn.strong_count() > 0);
                let turn = Arc::default();
                all.insert(peer, Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }
}

/// A dial under way: dropped when its link is registered, or will not be.
struct Dialling {
    turn: Turn,
    _ready: Option<oneshot::Sender<()>>,
}

enum Dialled {
    /// The core was told of it.
    Before(quinn::Connection),
    Now(quinn::Connection, Turn),
}

/// Takes the turn to dial; a link that stands by then makes it needless, as does a failure that was
/// waited for.
async fn dial_in_turn(shared: &Shared, contact: Contact) -> Result<Dialled, String> {
    let since = Instant::now();
    let mut turn = shared.dials.turn(contact.peer).await;
    if let Some(connection) = linked(shared, contact.peer) {
        return Ok(Dialled::Before(connection));
    }
    let failed = turn.as_ref().filter(|failed| failed.at >= since);
    if let Some(failed) = failed.filter(|failed| failed.address == contact.address) {
        return Err(failed.reason.clone());
    }
    match connect(shared, contact).await {
        Ok(connection) => Ok(Dialled::Now(connection, turn)),
        Err(reason) => {
            let (at, address) = (Instant::now(), contact.address);
            *turn = Some(Failed { at, address, reason: reason.clone() });
            drop(turn);
            // It need not be waited for again.
            shared.tell(Event::DialFailed { peer: contact.peer }).await;
            Err(reason)
        }
    }
}

/// Dials and stays until the connection's end.
pub(crate) async fn dial(shared: Arc<Shared>, contact: Contact) {
    match dial_in_turn(&shared, contact).await {
        Ok(Dialled::Before(_)) => {}
        Ok(Dialled::Now(connection, turn)) => {
            let dialling = Dialling { turn, _ready: None };
            run(shared, connection, Some(contact.peer), Some(dialling)).await;
        }
        Err(error) => {
            debug!(peer = %contact.peer, address = %contact.address, %error, "not reached");
        }
    }
}

/// The connection to `peer`, where one stands.
pub(crate) fn linked(shared: &Shared, peer: PeerId) -> Option<quinn::Connection> {
    let connection = shared.links.lock().get(&peer).map(|link| link.connection.clone());
    connection.filter(|connection| connection.close_reason().is_none())
}

/// A connection to `contact`: the link's if one stands by then, made for it if not.
pub(crate) async fn establish(
    shared: &Shared,
    contact: Contact,
) -> Result<quinn::Connection, String> {
    let (connection, turn) = match dial_in_turn(shared, contact).await? {
        Dialled::Before(connection) => return Ok(connection),
        Dialled::Now(connection, turn) => (connection, turn),
    };
    let stopped = || "the swarm is shutting down".to_owned();
    let shared = shared.this.upgrade().ok_or_else(stopped)?;
    let (ready, registered) = oneshot::channel();
    let dialling = Dialling { turn, _ready: Some(ready) };
    let work = run(shared.clone(), connection, Some(contact.peer), Some(dialling));
    shared.tasks.clone().spawn(work);
    // The control stream must be the first; and another connection may have won meanwhile.
    let _ = registered.await;
    let links = shared.links.lock();
    let link = links.get(&contact.peer).ok_or_else(|| "the peer said no hello".to_owned())?;
    Ok(link.connection.clone())
}

async fn connect(shared: &Shared, contact: Contact) -> Result<quinn::Connection, String> {
    let connecting = shared
        .endpoint
        .connect(contact.address, Role::Agent.server_name())
        .map_err(|error| error.to_string())?;
    let connection = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .map_err(|_| "no answer in time".to_owned())?
        .map_err(|error| error.to_string())?;
    match peer_of(&connection) {
        Ok((peer, _)) if peer == contact.peer => Ok(connection),
        _ => Err("another peer answers at this address".to_owned()),
    }
}

async fn run(
    shared: Arc<Shared>,
    connection: quinn::Connection,
    dialled: Option<PeerId>,
    mut dialling: Option<Dialling>,
) {
    let Ok((peer, role)) = peer_of(&connection) else { return };
    let greeted = if shared.is_refused(peer) || peer == shared.config.credentials.peer_id() {
        None
    } else {
        let greeted = greet(&shared, &connection, dialled);
        tokio::time::timeout(CONNECT_TIMEOUT, greeted).await.ok().and_then(Result::ok)
    };
    let Some(Greeting { address, zone, cache, mut sender, receiver }) = greeted else {
        connection.close(2u32.into(), b"refused, or no hello");
        if let Some(dialling) = &mut dialling {
            let (at, address) = (Instant::now(), connection.remote_address());
            *dialling.turn = Some(Failed { at, address, reason: "the peer said no hello".into() });
        }
        drop(dialling);
        if let Some(peer) = dialled {
            shared.tell(Event::DialFailed { peer }).await;
        }
        return;
    };
    let (frames, mut outbox) = mpsc::channel(FRAMES_MAX);
    let me = shared.config.credentials.peer_id();
    let dialler = if dialled.is_some() { me } else { peer };
    let link = Arc::new(Link {
        peer,
        address,
        zone,
        node: role == Role::Node,
        cache,
        connection: connection.clone(),
        lanes: Lanes::default(),
        dialler,
        frames,
        kept: AtomicU64::new(0),
        used: Mutex::new(Instant::now()),
        grants: Mutex::default(),
    });
    if !register(&shared, &link).await {
        connection.close(4u32.into(), b"already connected, or refused");
        // Who is connected already was told of; who was refused meanwhile is not being dialled.
        if let Some(peer) = dialled.filter(|&peer| linked(&shared, peer).is_none()) {
            shared.tell(Event::DialFailed { peer }).await;
        }
        return;
    }
    drop(dialling);
    let writer = async {
        while let Some(frame) = outbox.recv().await {
            if wire::write(&mut sender, &frame).await.is_err() {
                break;
            }
        }
    };
    let requests = async {
        while let Ok((sender, receiver)) = connection.accept_bi().await {
            shared.tasks.spawn(serve::answer(shared.clone(), link.clone(), sender, receiver));
        }
    };
    tokio::select! {
        () = writer => {}
        () = requests => {}
        () = listen(&shared, &link, receiver) => {}
        () = shared.cancel.cancelled() => {}
    }
    connection.close(0u32.into(), b"done");
    unregister(&shared, &link).await;
}

/// What a peer says of itself first, and the control stream.
struct Greeting {
    address: SocketAddr,
    zone: Zone,
    cache: bool,
    sender: quinn::SendStream,
    receiver: quinn::RecvStream,
}

async fn greet(
    shared: &Shared,
    connection: &quinn::Connection,
    dialled: Option<PeerId>,
) -> Result<Greeting, WireError> {
    let opened =
        if dialled.is_some() { connection.open_bi().await } else { connection.accept_bi().await };
    let (mut sender, mut receiver) = opened.map_err(quinn::WriteError::from)?;
    let (zone, cache) = (shared.config.zone.clone(), shared.config.role == PeerRole::Cache);
    let address = *shared.advertise.lock();
    let hello = Frame::Hello { address, zone, cache };
    wire::write(&mut sender, &hello).await?;
    match wire::read(&mut receiver).await? {
        Frame::Hello { address, zone, cache } => {
            Ok(Greeting { address, zone, cache, sender, receiver })
        }
        _ => Err(FrameError::Malformed.into()),
    }
}

/// Whether this link is the peer's one from now on.
///
/// The place in the queue is taken before the lock: the order of events is that of the links.
async fn register(shared: &Shared, link: &Arc<Link>) -> bool {
    let Ok(place) = shared.events.reserve().await else { return false };
    let mut links = shared.links.lock();
    // Whoever is added to the list later finds this link among the others.
    if shared.is_refused(link.peer) {
        return false;
    }
    let preferred = link.peer.min(shared.config.credentials.peer_id());
    if let Some(old) = links.get(&link.peer) {
        let alive = old.connection.close_reason().is_none();
        if alive && old.dialler == preferred && link.dialler != preferred {
            return false;
        }
        old.connection.close(4u32.into(), b"already connected");
    }
    links.insert(link.peer, link.clone());
    shared.metrics.connections.set(links.len() as i64);
    let (member, rtt) = (link.member(), link.connection.rtt());
    place.send(Event::Connected { member, node: link.node, rtt });
    true
}

async fn unregister(shared: &Shared, link: &Arc<Link>) {
    let Ok(place) = shared.events.reserve().await else { return };
    let mut links = shared.links.lock();
    if links.get(&link.peer).is_some_and(|found| Arc::ptr_eq(found, link)) {
        links.remove(&link.peer);
        shared.metrics.connections.set(links.len() as i64);
        place.send(Event::Disconnected { peer: link.peer });
        drop(links);
        shared.uploads.lock().pass(link.peer);
        shared.ledger.lock().forget(link.peer);
        shared.call_waiting();
    }
}

async fn listen(shared: &Arc<Shared>, link: &Arc<Link>, mut receiver: quinn::RecvStream) {
    let peer = link.peer;
    loop {
        let frame = match wire::read::<Frame>(&mut receiver).await {
            Ok(frame) => frame,
            Err(WireError::Frame(error @ FrameError::Version(_))) => {
                // Not a fault: one of us is yet to be upgraded.
                warn!(%peer, %error, "a peer speaks another version");
                return;
            }
            Err(WireError::Frame(error)) => {
                warn!(%peer, %error, "a frame was refused");
                shared.tell(Event::BadFrame { peer }).await;
                return;
            }
            Err(_) => return,
        };
        link.touch_by(&frame);
        let event = match frame {
            Frame::Join { recipe, ticket } => {
                if !shared.entitled(&ticket, recipe, peer) {
                    warn!(%peer, %recipe, "a join without a valid ticket was refused");
                    continue;
                }
                link.grant(ticket, crate::swarm::wall_clock());
                let offers = shared.config.role != PeerRole::Origin && !shared.is_retiring();
                if offers && shared.running(recipe).is_none() {
                    shared.tasks.spawn(tell_held(shared.clone(), link.clone(), recipe));
                }
                Event::Joined { peer, recipe }
            }
            Frame::Pass => {
                shared.uploads.lock().pass(peer);
                shared.call_waiting();
                continue;
            }
            frame => Event::Frame { peer, frame },
        };
        shared.tell(event).await;
    }
}

/// What is held of a recipe that is not on its way here.
async fn tell_held(shared: Arc<Shared>, link: Arc<Link>, recipe: RecipeId) {
    match shared.store.held(recipe).await {
        Ok(held) => {
            Frame::holdings(recipe, &held).into_iter().for_each(|frame| link.send(frame));
            link.send(Frame::Claim { recipe, chunks: Vec::new() });
        }
        Err(error) => warn!(%recipe, %error, "what is held cannot be told"),
    }
}
