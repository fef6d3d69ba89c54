//! Answers over lanes, as `serve` does over streams.
//!
//! Invariant: a stranger costs a handshake, one of a bounded number, within a bounded time; nothing
//! is read from whoever has no link.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use shoal_swarm::frames::{Ask, FrameError};
use socket2::SockRef;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use super::{
    END, HANDSHAKE_TIMEOUT, HANDSHAKES_MAX, Listener, Open, Path, SEALED_BYTES_MAX,
    SERVED_IDLE_MAX, SERVED_MAX, UNSENT_BYTES_MAX,
};
use crate::channel::{self, Outlet};
use crate::compression::Stored;
use crate::identity::peer_of_tls;
use crate::link::Link;
use crate::outgoing::Kept;
use crate::serve;
use crate::swarm::Shared;
use crate::wire::{self, WireError};

/// How long nothing is taken after the system had nothing left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Stream = Box<TlsStream<TcpStream>>;

/// Takes lanes until shutdown.
pub(crate) async fn accept(shared: Arc<Shared>, listener: Listener) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let places = Arc::new(Semaphore::new(SERVED_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.socket.accept() => accepted,
            () = shared.cancel.cancelled() => return,
        };
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                warn!(%error, "no bulk connection can be taken");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Whoever finds none is turned away and goes by QUIC.
        let turn = handshakes.clone().try_acquire_owned();
        let place = places.clone().try_acquire_owned();
        if let (Ok(turn), Ok(place), false) = (turn, place, shared.is_retiring()) {
            let acceptor = listener.acceptor.clone();
            shared.tasks.spawn(run(shared.clone(), acceptor, socket, turn, place));
        }
    }
}

async fn run(
    shared: Arc<Shared>,
    acceptor: TlsAcceptor,
    socket: TcpStream,
    turn: OwnedSemaphorePermit,
    _place: OwnedSemaphorePermit,
) {
    let shaken = tokio::select! {
        shaken = timeout(HANDSHAKE_TIMEOUT, shake_hands(acceptor, socket)) => shaken,
        () = shared.cancel.cancelled() => return,
    };
    drop(turn);
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%error, "a stranger got no bulk connection"),
        Err(_) => return debug!("somebody did not end its handshake"),
    };
    let Some(link) = link_of(&shared, &stream) else {
        return debug!("a bulk connection of a peer without a link was refused");
    };
    let Ok(_place_of_peer) = link.lanes.served.clone().try_acquire_owned() else { return };
    let _open = Open::count(link.lanes.open.clone(), shared.metrics.bulk_connections.clone());
    let mut lane = Lane { stream, kept: Vec::new() };
    tokio::select! {
        ended = answer(&shared, &link, &mut lane) => if let Err(error) = ended {
            debug!(peer = %link.peer, %error, "a bulk connection ended");
        },
        _ = link.connection.closed() => {}
        () = shared.cancel.cancelled() => {}
    }
}

async fn shake_hands(acceptor: TlsAcceptor, socket: TcpStream) -> io::Result<Stream> {
    socket.set_nodelay(true)?;
    // A kernel that has no such limit sends all the same.
    let _ = SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT_BYTES_MAX);
    let accepting = acceptor.accept_with(socket, |session| {
        session.set_buffer_limit(Some(SEALED_BYTES_MAX));
    });
    Ok(Box::new(Box::pin(accepting).await?))
}

/// The link of whoever showed its certificate, where one stands that is to be.
fn link_of(shared: &Shared, stream: &Stream) -> Option<Arc<Link>> {
    let (peer, _) = peer_of_tls(stream.get_ref().1).ok()?;
    let link = shared.links.lock().get(&peer).cloned()?;
    let stands = link.connection.close_reason().is_none() && !shared.is_refused(peer);
    stands.then_some(link)
}

/// Until the other side ends, asks nothing for long, or asks for what there is not.
async fn answer(shared: &Shared, link: &Link, lane: &mut Lane) -> Result<(), WireError> {
    loop {
        let asked = timeout(SERVED_IDLE_MAX, wire::read::<Ask>(&mut lane.stream));
        let Ask::Chunks { recipe, indices, insists } =
            asked.await.map_err(|_| WireError::Stalled)??
        else {
            return Err(FrameError::Malformed.into());
        };
        let _answering = serve::Answering::begin(shared);
        link.touch();
        let mut kept = Kept::nothing(shared, link);
        serve::chunks(shared, link, lane, &mut kept, recipe, (&indices, insists)).await?;
        serve::in_time(lane.end()).await?;
    }
}

/// Where answers are written.
struct Lane {
    stream: Stream,
    /// What goes before the next chunk, in one piece with it.
    kept: Vec<u8>,
}

impl Lane {
    /// Behind the last byte of an answer.
    async fn end(&mut self) -> io::Result<()> {
        self.kept.extend_from_slice(&END.to_be_bytes());
        self.stream.write_all(&self.kept).await?;
        self.kept.clear();
        self.stream.flush().await
    }
}

impl Outlet for Lane {
    const PATH: Path = Path::Tls;

    async fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.kept.extend_from_slice(bytes);
        Ok(())
    }

    async fn chunk(&mut self, chunk: Stored) -> io::Result<()> {
        let (head, bytes) = channel::framed(chunk);
        self.kept.extend_from_slice(&head);
        // Sealed and handed to the kernel in one go, without a copy that puts them together.
        let mut both = Buf::chain(self.kept.as_slice(), bytes);
        self.stream.write_all_buf(&mut both).await?;
        self.kept.clear();
        self.stream.flush().await
    }
}
