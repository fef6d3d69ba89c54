//! The lanes that this process asks a peer over: dialled when one is missed, used again, closed when
//! they lie idle, and done without for a while where they fail.
//!
//! Invariant: a lane in the pool owes nothing; one whose request was cut off comes back only when
//! what little was left of the answer has been read.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use shoal_swarm::frames::Ask;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::debug;

use super::lane::{DRAIN_BYTES_MAX, Reader};
use super::{
    ALPN, CONNECT_TIMEOUT, Dialler, IDLE_MAX, LANES_PER_PEER_MAX, Open, Path, READ_BYTES,
    RETRY_MAX, RETRY_MIN, SERVED_PER_PEER_MAX,
};
use crate::identity::{Role, peer_of_tls};
use crate::link::Link;
use crate::serve::CHUNK_TIMEOUT;
use crate::swarm::Shared;
use crate::wire::WireError;

/// What is left of an answer that nobody wants comes within so long, or its lane is closed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Who gave up after so long a silence may have asked over a connection that carries nothing.
const SILENCE_MAX: Duration = Duration::from_millis(500);

/// An answer that this host left unread for as long may have been ended for that: who serves waits for
/// so long that one chunk is taken, of which a few fit into buffers on the way.
const UNREAD_MAX: Duration = Duration::from_secs(CHUNK_TIMEOUT.as_secs() / 4);

type Stream = Box<TlsStream<BufReader<TcpStream>>>;
pub(crate) type Incoming = Reader<Stream>;
/// At the link, and over all.
type Places = [OwnedSemaphorePermit; 2];

#[derive(Debug)]
struct Lane {
    reader: Incoming,
    _open: Open,
    _places: Places,
}

/// A link's lanes, those that its peer asks over among them.
#[derive(Debug)]
pub(crate) struct Lanes {
    pool: Mutex<Pool>,
    places: Arc<Semaphore>,
    /// Places for those that the peer asks over.
    pub(super) served: Arc<Semaphore>,
    /// Lanes in either direction.
    pub(super) open: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Pool {
    /// With the time since when.
    idle: Vec<(Lane, Instant)>,
    dialling: bool,
    /// Nothing is tried before.
    retry_at: Option<Instant>,
    /// As long it is done without lanes after the next failure.
    back_off: Duration,
}

impl Default for Lanes {
    fn default() -> Self {
        let pool = Pool { idle: Vec::new(), dialling: false, retry_at: None, back_off: RETRY_MIN };
        Self {
            pool: Mutex::new(pool),
            places: Arc::new(Semaphore::new(LANES_PER_PEER_MAX)),
            served: Arc::new(Semaphore::new(SERVED_PER_PEER_MAX)),
            open: Arc::default(),
        }
    }
}

impl Lanes {
    /// How chunks go at the moment; with lanes some may still go by QUIC.
    pub(crate) fn path(&self) -> Path {
        if self.open.load(Ordering::Relaxed) > 0 { Path::Tls } else { Path::Quic }
    }

    fn idle(&self) -> Option<Lane> {
        let mut pool = self.pool.lock();
        // Whoever serves one that was forgotten for long may have closed it.
        pool.idle.retain(|(_, since)| since.elapsed() < IDLE_MAX);
        pool.idle.pop().map(|(lane, _)| lane)
    }

    /// The places of a lane that may be dialled now; the caller says how that ended.
    fn begin_dial(&self, dialler: &Dialler) -> Option<Places> {
        let mut pool = self.pool.lock();
        if pool.dialling || pool.retry_at.is_some_and(|at| at > Instant::now()) {
            return None;
        }
        let place = |of: &Arc<Semaphore>| of.clone().try_acquire_owned().ok();
        let places = [place(&self.places)?, place(&dialler.places)?];
        pool.dialling = true;
        Some(places)
    }

    /// It works, and owes nothing.
    fn give_back(&self, lane: Lane) {
        let mut pool = self.pool.lock();
        pool.idle.push((lane, Instant::now()));
        if pool.retry_at.is_none_or(|at| at <= Instant::now()) {
            (pool.retry_at, pool.back_off) = (None, RETRY_MIN);
        }
    }

    /// Lanes do not work here: for a while there are none. Failures at once are one.
    fn failed(&self) {
        let mut pool = self.pool.lock();
        let now = Instant::now();
        pool.idle.clear();
        if pool.retry_at.is_none_or(|at| at <= now) {
            pool.retry_at = Some(now + pool.back_off);
            pool.back_off = (pool.back_off * 2).min(RETRY_MAX);
        }
    }

    fn dialled(&self) {
        self.pool.lock().dialling = false;
    }
}

/// Closes what nothing was asked over for long.
pub(crate) fn close_idle(shared: &Shared) {
    if shared.bulk.is_some() {
        let links = shared.links.lock();
        for link in links.values() {
            link.lanes.pool.lock().idle.retain(|(_, since)| since.elapsed() < IDLE_MAX);
        }
    }
}

/// A lane for one request to `link`'s peer, where one is idle and the network is what they are for.
/// Where only the lane is missing, one is dialled for a later request; this one goes by QUIC.
pub(crate) fn take(shared: &Arc<Shared>, link: &Arc<Link>) -> Option<Exchange> {
    let dialler = shared.bulk.as_ref()?;
    if !dialler.suits(&link.connection) {
        return None;
    }
    if let Some(lane) = link.lanes.idle() {
        return Some(Exchange { shared: shared.clone(), link: link.clone(), lane: Some(lane) });
    }
    if let Some(places) = link.lanes.begin_dial(dialler) {
        let connector = dialler.connector.clone();
        shared.tasks.spawn(dial(shared.clone(), link.clone(), connector, places));
    }
    None
}

async fn dial(shared: Arc<Shared>, link: Arc<Link>, connector: TlsConnector, places: Places) {
    let opened = tokio::select! {
        opened = timeout(CONNECT_TIMEOUT, open(&link, connector)) => opened,
        _ = link.connection.closed() => return,
        () = shared.cancel.cancelled() => return,
    };
    match opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(stream) => {
            let open =
                Open::count(link.lanes.open.clone(), shared.metrics.bulk_connections.clone());
            let reader = Reader::new(stream, link.node);
            link.lanes.give_back(Lane { reader, _open: open, _places: places });
        }
        Err(error) => {
            debug!(peer = %link.peer, %error, "no bulk connection; chunks go by QUIC");
            shared.metrics.bulk_failures.inc();
            link.lanes.failed();
        }
    }
    link.lanes.dialled();
}

/// To where the link leads: what the peer says of itself is not asked.
async fn open(link: &Link, connector: TlsConnector) -> io::Result<Stream> {
    let socket = TcpStream::connect(link.connection.remote_address()).await?;
    socket.set_nodelay(true)?;
    let socket = BufReader::with_capacity(READ_BYTES, socket);
    let name = ServerName::try_from(Role::Agent.server_name()).map_err(io::Error::other)?;
    let stream = Box::new(Box::pin(connector.connect(name, socket)).await?);
    let session = stream.get_ref().1;
    match peer_of_tls(session) {
        Ok((peer, _)) if peer == link.peer && session.alpn_protocol() == Some(ALPN) => Ok(stream),
        _ => Err(io::Error::other("another peer answers at this address")),
    }
}

/// One request over a lane. Dropped, it gives the lane back where its answer is over or nearly so,
/// and closes it where not, which frees the slot at the other side.
pub(crate) struct Exchange {
    shared: Arc<Shared>,
    link: Arc<Link>,
    lane: Option<Lane>,
}

impl Exchange {
    /// Asks for so many chunks; gives the answer's first byte, and where the rest is read.
    pub(crate) async fn ask(
        &mut self,
        message: &Ask,
        chunks: usize,
    ) -> Result<(u8, &mut Incoming), WireError> {
        let lane = self.lane.as_mut().ok_or(io::Error::from(io::ErrorKind::NotConnected))?;
        lane.reader.ask(message, chunks).await?;
        let answer = lane.reader.answer().await?;
        Ok((answer, &mut lane.reader))
    }

    /// It broke off: lanes are done without for a while, unless this host brought that about. Whoever
    /// serves ends an answer that nobody takes, and a disk here that is slow leaves one unread.
    pub(crate) fn fail(mut self) {
        let Some(lane) = self.lane.take() else { return };
        self.shared.metrics.bulk_failures.inc();
        let stood = lane.reader.stood_unread();
        if stood < UNREAD_MAX {
            self.link.lanes.failed();
        } else {
            debug!(peer = %self.link.peer, ?stood, "an answer was left unread too long");
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let Some(lane) = self.lane.take() else { return };
        match lane.reader.owed() {
            Some(0) => self.link.lanes.give_back(lane),
            Some(owed) if owed <= DRAIN_BYTES_MAX && Handle::try_current().is_ok() => {
                let drained = drain(self.shared.clone(), self.link.clone(), lane);
                self.shared.tasks.spawn(drained);
            }
            _ if lane.reader.silence() >= SILENCE_MAX => {
                debug!(peer = %self.link.peer, "nothing came over a bulk connection");
                self.shared.metrics.bulk_failures.inc();
                self.link.lanes.failed();
            }
            _ => {}
        }
    }
}

async fn drain(shared: Arc<Shared>, link: Arc<Link>, mut lane: Lane) {
    let drained = tokio::select! {
        drained = timeout(DRAIN_TIMEOUT, lane.reader.drain()) => matches!(drained, Ok(Ok(()))),
        _ = link.connection.closed() => false,
        () = shared.cancel.cancelled() => false,
    };
    if drained {
        link.lanes.give_back(lane);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_followed_by_a_rest_that_grows_and_failures_at_once_are_one() {
        let lanes = Lanes::default();
        lanes.failed();
        lanes.failed();
        let first = lanes.pool.lock().retry_at.unwrap();
        assert!(first > Instant::now() + RETRY_MIN / 2);
        assert_eq!(lanes.pool.lock().back_off, RETRY_MIN * 2);
        for _ in 0..10 {
            // The rest is over, and the next try fails, too.
            lanes.pool.lock().retry_at = Some(Instant::now());
            lanes.failed();
        }
        assert_eq!(lanes.pool.lock().back_off, RETRY_MAX);
    }
}
