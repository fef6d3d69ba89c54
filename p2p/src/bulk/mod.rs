//! A second way for chunks: TLS 1.3 over TCP, which costs a fraction of what QUIC does for each
//! byte, where much comes and the network between two peers is fast and clean.
//!
//! A bulk connection, a *lane*, belongs to a link and carries one request at a time: an `Ask` for
//! chunks, framed as on a stream of QUIC's, and its answer byte with the chunks, each behind its
//! head. Since no end of a stream marks an answer's end, [`END`] does. All that is said
//! besides goes over the link, by QUIC, and so do the chunks wherever there is no lane.
//!
//! Nothing is negotiated: who has this way listens on TCP at the port of its QUIC endpoint, and who
//! has it not refuses the connection at once. A lane is dialled beside a request that goes by QUIC, so
//! that nobody ever waits for one, and what a lane does not bring after all comes by QUIC.
//!
//! Invariants: a lane is taken only from a peer with a link, and ends with it, so that whom a link is
//! closed to – banned, removed, not believed – has no lanes either; it shows and asks for the same
//! certificates; tickets, slots and limits are the link's and the process's, whatever the way.
//! Non-goals: recipes, which are small; crossing a NAT, where TCP fails and QUIC goes on.

mod lane;
mod pool;
mod rate;
mod server;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tracing::{info, warn};

pub(crate) use pool::{Exchange, Lanes, close_idle, take};
use rate::Rate;
pub(crate) use server::accept;

use crate::identity::{self, Role};
use crate::metrics::Metrics;
use crate::swarm::{Config, Shared};

const ALPN: &[u8] = b"shoal-bulk/2";
/// Stands where a head would, behind the last chunk of an answer: no chunk is so long.
const END: u32 = u32::MAX;

/// Lanes over which one peer may ask here: as many as it has requests at one source.
const SERVED_PER_PEER_MAX: usize = 8;
/// The same of all; each takes some 40 KiB, and while it has an upload slot [`SEALED_BYTES_MAX`] besides.
const SERVED_MAX: usize = 1024;
/// One that asks nothing for so long is closed by who serves; who asks closes it long before.
const SERVED_IDLE_MAX: Duration = Duration::from_secs(60);
/// Handshakes at once, and how long each may take. Who finds no place goes on by QUIC.
const HANDSHAKES_MAX: usize = 64;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections that the kernel keeps until they are looked at.
const BACKLOG: u32 = 256;

/// Lanes that this process asks over: at one peer, and all.
const LANES_PER_PEER_MAX: usize = 8;
const LANES_MAX: usize = 64;
/// One that nothing was asked over for so long is closed.
const IDLE_MAX: Duration = Duration::from_secs(15);
/// From dialling to the end of the handshake. No request waits for it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// After a failure a link goes by QUIC for so long; twice as long after each further one.
const RETRY_MIN: Duration = Duration::from_secs(60);
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// rustls reads 4 KiB at a time, which a buffer below it takes from the kernel in one piece. Each of
/// [`LANES_MAX`] has one.
const READ_BYTES: usize = 256 * 1024;
/// What the kernel takes before it can send it: on a slow line more would look like sent, and a slot
/// like free.
const UNSENT_BYTES_MAX: u32 = 512 * 1024;
/// What may be sealed before it is written: a chunk whole, where rustls alone stops at 64 KiB.
const SEALED_BYTES_MAX: usize = 512 * 1024;

/// A link is fast where the shortest round trip seen is no longer, and clean where of what was sent
/// no more was lost than one packet in a hundred, a few aside that any connection may lose.
const RTT_MAX: Duration = Duration::from_millis(2);
const LOST_FREE: u64 = 16;
const SENT_PER_LOST: u64 = 100;

/// The ways that chunks may go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bulk {
    /// Where the network is fast and clean by TLS over TCP, else by QUIC.
    #[default]
    Auto,
    /// By QUIC only; the TCP port stays closed.
    Quic,
    /// What this process asks for by TLS over TCP wherever that can be had, however slow or far.
    Tls,
}

/// How chunks go between two peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    Quic,
    Tls,
}

impl Path {
    pub(crate) const ALL: [Self; 2] = [Self::Quic, Self::Tls];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tls => "tls",
        }
    }
}

/// Where lanes come in.
pub(crate) struct Listener {
    socket: TcpListener,
    acceptor: TlsAcceptor,
}

/// What lanes are dialled with.
pub(crate) struct Dialler {
    connector: TlsConnector,
    /// For each lane of this process one.
    places: Arc<Semaphore>,
    rate: Mutex<Rate>,
    /// Whether lanes are used whatever the network is like.
    always: bool,
}

/// Opens the port for TCP that `at` is for QUIC; none where the settings or the system say no.
///
/// # Errors
/// Where TLS cannot be set up.
pub(crate) fn open(
    config: &Config,
    at: SocketAddr,
    metrics: &Metrics,
) -> Result<Option<(Listener, Dialler)>, identity::Error> {
    if config.bulk == Bulk::Quic {
        return Ok(None);
    }
    let acceptor = Arc::new(config.credentials.tls_server(ALPN, &Role::ALL)?).into();
    let connector = Arc::new(config.credentials.tls_client(ALPN, &Role::ALL)?).into();
    match listen(at) {
        Ok(socket) => {
            info!(%at, "chunks go by TLS over TCP where the network is fast and clean");
            metrics.bulk_listening.set(1);
            let places = Arc::new(Semaphore::new(LANES_MAX));
            let rate = Mutex::new(Rate::new(Instant::now()));
            let always = config.bulk == Bulk::Tls;
            let dialler = Dialler { connector, places, rate, always };
            Ok(Some((Listener { socket, acceptor }, dialler)))
        }
        Err(error) => {
            warn!(%at, %error, "the peer port cannot be had for TCP; chunks go by QUIC only");
            Ok(None)
        }
    }
}

fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Connections of the process before this one may not be over yet.
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)
}

/// So many bytes came over the line, by either way.
pub(crate) fn arrived(shared: &Shared, bytes: u64) {
    if let Some(dialler) = &shared.bulk {
        dialler.rate.lock().count(Instant::now(), bytes);
    }
}

impl Dialler {
    /// Whether lanes are for the way to this link's peer.
    fn suits(&self, link: &quinn::Connection) -> bool {
        self.always || self.rate.lock().is_high() && is_fast_and_clean(link)
    }
}

fn is_fast_and_clean(link: &quinn::Connection) -> bool {
    let path = link.stats().path;
    let lost_max = LOST_FREE + path.sent_packets / SENT_PER_LOST;
    path.min_rtt <= RTT_MAX && path.lost_packets <= lost_max
}

/// Counts a lane for as long as it is open: at its link, and over all.
#[derive(Debug)]
struct Open {
    here: Arc<AtomicUsize>,
    all: Gauge,
}

impl Open {
    fn count(here: Arc<AtomicUsize>, all: Gauge) -> Self {
        here.fetch_add(1, Ordering::Relaxed);
        all.inc();
        Self { here, all }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.here.fetch_sub(1, Ordering::Relaxed);
        self.all.dec();
    }
}
