//! Takes connections on one address and serves HTTP on them, until it is told to end.
//!
//! At the end nobody is let in any more who was not on the way, and idle connections are closed.
//! The kernel completes handshakes by itself: closing the socket would reset whoever is connected
//! and not yet accepted. So new handshakes are ignored first (the client tries again, and is
//! refused then, before it has sent anything), those under way end, and then the socket is closed.
//! A connection that has just come is given a moment: its request may be under way, and whoever
//! sent it could not know. A request that was taken in is answered, within the deadline.
//!
//! Invariants: at most [`CONNECTIONS_MAX`] connections are open at one listener; one more is closed
//! at once, which a client sees and may try again elsewhere. A connection that has not asked for
//! anything within [`FIRST_REQUEST_TIMEOUT`] is closed, whatever it has sent. Who vanished without a
//! word is noticed by the kernel, within [`VANISHED_AFTER`] and a little.

use std::future::pending;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::http::{StatusCode, header};
use axum::response::Response;
use axum_server::accept::{Accept, DefaultAcceptor};
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use socket2::{SockFilter, SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;
use tracing::warn;

use super::linger::{Lingering, Unread};
use super::prompt::Prompt;
use super::unencrypted::RefuseUnencrypted;

/// Connections at one listener: thousands of agents hold one each for their orders.
const CONNECTIONS_MAX: usize = 16 * 1024;
/// From the handshake's end to the end of the first request's headers; longer than the wait for the
/// first byte (see `prompt`).
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(35);
/// From one HTTP/1.1 answer to the end of the next request's headers: hyper has one timer for the
/// silence between them and for the headers. Proxies keep idle connections for a minute, and answer
/// 502 where the other end closes first. The first request has a shorter time of its own.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);
/// Requests at once on one HTTP/2 connection.
const STREAMS_PER_CONNECTION_MAX: u32 = 64;
/// Of one request's body, sent and not yet read; of all requests together, see `backlog`.
pub(super) const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// The same of all requests of a connection: an upload that waits for room takes none of what the
/// others may send.
const CONNECTION_WINDOW_BYTES: u32 = STREAMS_PER_CONNECTION_MAX * STREAM_WINDOW_BYTES;
/// Headers of one HTTP/2 request, as they count there: a `Range` may name a thousand ranges.
const HEADERS_BYTES_MAX: u32 = 64 * 1024;
/// An HTTP/2 client that is silent is asked, and given up when it does not answer.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Whose connection is silent is asked whether it is still there, and asked again.
const PROBE_AFTER: Duration = Duration::from_secs(60);
const PROBE_INTERVAL: Duration = Duration::from_secs(30);
/// Who answers nothing for so long, or takes nothing of what it is to get, is given up. The kernel
/// does not tell the two apart, and by itself takes a quarter of an hour for the first.
const VANISHED_AFTER: Duration = Duration::from_secs(300);
/// At the end: how long a connection that has not asked for anything yet may take to do so.
const FIRST_REQUEST_PATIENCE: Duration = Duration::from_secs(1);
/// At the end: how long a TLS handshake that has begun may take to end, several round trips.
const TLS_PATIENCE: Duration = Duration::from_secs(3);
/// At the end: how long a TCP handshake that has begun may take to end, a round trip.
const LAST_HANDSHAKE_PATIENCE: Duration = Duration::from_millis(300);
/// After an error that is not the listener's own: too many open files, for instance.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Stands among a request's extensions where its connection is not encrypted.
#[derive(Debug, Clone, Copy)]
pub struct InTheClear;

/// A running listener.
#[derive(Debug)]
pub struct Listening {
    address: SocketAddr,
    phases: Phases,
    connections: TaskTracker,
    task: JoinHandle<()>,
}

#[derive(Debug, Clone, Default)]
struct Phases {
    ending: CancellationToken,
    ended: CancellationToken,
}

impl Listening {
    /// Serves `router` on `address`; without `tls`, in the clear.
    ///
    /// # Errors
    /// Where the address cannot be listened on.
    pub async fn begin(
        router: Router,
        address: SocketAddr,
        tls: Option<RustlsConfig>,
    ) -> io::Result<Self> {
        Self::begin_for(router, address, tls, CONNECTIONS_MAX).await
    }

    async fn begin_for(
        router: Router,
        address: SocketAddr,
        tls: Option<RustlsConfig>,
        connections_max: usize,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        notice_vanished(&listener)?;
        let address = listener.local_addr()?;
        let (phases, connections) = (Phases::default(), TaskTracker::new());
        let serving = Serving {
            router,
            builder: Arc::new(builder()),
            phases: phases.clone(),
            connections: connections.clone(),
            places: Arc::new(Semaphore::new(connections_max)),
            first_request_timeout: FIRST_REQUEST_TIMEOUT,
            in_the_clear: tls.is_none(),
        };
        let task = match tls {
            Some(tls) => {
                let acceptor = RustlsAcceptor::new(tls).acceptor(RefuseUnencrypted);
                let acceptor = Prompt::new(acceptor);
                tokio::spawn(serving.accept(listener, acceptor))
            }
            None => tokio::spawn(serving.accept(listener, Prompt::new(DefaultAcceptor::new()))),
        };
        Ok(Self { address, phases, connections, task })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets nobody in any more, waits until what is under way has ended or `deadline` is over.
    pub async fn stop(self, deadline: Duration) {
        self.phases.ending.cancel();
        // Everyone who was on the way has come in when this ends.
        let _ = self.task.await;
        self.connections.close();
        if timeout(deadline, self.connections.wait()).await.is_err() {
            let connections = self.connections.len();
            warn!(connections, address = %self.address, "requests are broken off at the deadline");
            self.phases.ended.cancel();
            self.connections.wait().await;
        }
    }

    /// Waits until the listener ends by itself, which is a failure.
    pub async fn failed(&mut self) -> io::Error {
        match (&mut self.task).await {
            Ok(()) => io::Error::other("the HTTP server ended"),
            Err(error) => io::Error::other(error),
        }
    }
}

/// What one connection may take: time for its headers, streams at once, silence.
fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEADERS_BYTES_MAX)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    builder
}

/// Of all connections that it takes from now on: they inherit these options (tcp(7)).
fn notice_vanished(listener: &TcpListener) -> io::Result<()> {
    let socket = SockRef::from(listener);
    let probes = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_INTERVAL);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(VANISHED_AFTER))
}

/// Drops every SYN that comes from now on, by a filter in the kernel (classic BPF, which sees the
/// segment from its TCP header on).
fn ignore_handshakes(listener: &TcpListener) -> io::Result<()> {
    const LOAD_BYTE_AT: u16 = 0x30;
    const JUMP_IF_ANY_BIT: u16 = 0x45;
    const RETURN: u16 = 0x06;
    // RFC 9293, 3.1: the flags are the header's 14th byte, SYN is the second lowest.
    const FLAGS: u32 = 13;
    const SYN: u32 = 2;
    const NOTHING: u32 = 0;
    const WHOLE: u32 = u32::MAX;
    SockRef::from(listener).attach_filter(&[
        SockFilter::new(LOAD_BYTE_AT, 0, 0, FLAGS),
        SockFilter::new(JUMP_IF_ANY_BIT, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, NOTHING),
        SockFilter::new(RETURN, 0, 0, WHOLE),
    ])
}

/// What has no content by its status says nothing of a length (RFC 9110, section 8.6); axum says of
/// each empty body that it is one.
fn without_length(mut answer: Response) -> Response {
    if matches!(answer.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        answer.headers_mut().remove(header::CONTENT_LENGTH);
    }
    answer
}

/// What connections are served with. Clones are the same.
#[derive(Clone)]
struct Serving {
    router: Router,
    builder: Arc<Builder<TokioExecutor>>,
    phases: Phases,
    connections: TaskTracker,
    /// A connection holds one while it is open.
    places: Arc<Semaphore>,
    first_request_timeout: Duration,
    in_the_clear: bool,
}

impl Serving {
    async fn accept<A>(self, listener: TcpListener, acceptor: A)
    where
        A: Accept<TcpStream, ()> + Clone + Send + Sync + 'static,
        A::Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        A::Service: Send,
        A::Future: Send,
    {
        let last_came = async {
            self.phases.ending.cancelled().await;
            if let Err(error) = ignore_handshakes(&listener) {
                warn!(%error, "whoever connects in this moment may be reset");
            }
            sleep(LAST_HANDSHAKE_PATIENCE).await;
        };
        let mut last_came = pin!(last_came);
        loop {
            let accepted = tokio::select! {
                biased;
                accepted = listener.accept() => accepted,
                () = &mut last_came => return,
            };
            let Ok((stream, address)) = accepted else {
                sleep(ACCEPT_RETRY_INTERVAL).await;
                continue;
            };
            let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
                warn!("too many connections; one is turned away");
                continue;
            };
            if stream.set_nodelay(true).is_err() {
                continue; // It is gone already.
            }
            let (serving, acceptor) = (self.clone(), acceptor.clone());
            self.connections.spawn(async move {
                let _place = place;
                let over = async {
                    serving.phases.ending.cancelled().await;
                    let _ = timeout(TLS_PATIENCE, serving.phases.ended.cancelled()).await;
                };
                let accepted = tokio::select! {
                    accepted = acceptor.accept(stream, ()) => accepted,
                    // Who says nothing holds up no stop.
                    () = over => return,
                };
                // Where no handshake succeeds there is nobody to serve.
                if let Ok((stream, _)) = accepted {
                    serving.serve(stream, address).await;
                }
            });
        }
    }

    async fn serve(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        address: SocketAddr,
    ) {
        let address = canonical(address);
        let asked = CancellationToken::new();
        let (router, first, in_the_clear) = (self.router, asked.clone(), self.in_the_clear);
        let unread = Unread::default();
        let stream = TokioIo::new(Lingering::new(stream, unread.clone()));
        let service = service_fn(move |request: Request<Incoming>| {
            first.cancel();
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(address));
            request.extensions_mut().insert(unread.clone());
            if in_the_clear {
                request.extensions_mut().insert(InTheClear);
            }
            // A router is always ready.
            let answer = router.clone().call(request);
            async move { answer.await.map(without_length) }
        });
        let mut connection = pin!(self.builder.serve_connection_with_upgrades(stream, service));
        let first_request = timeout(self.first_request_timeout, asked.cancelled());
        let silent = async {
            if first_request.await.is_ok() {
                pending::<()>().await;
            }
        };
        // How a connection ended is nobody's concern: its requests have their lines in the log.
        tokio::select! {
            _ = &mut connection => return,
            () = silent => return,
            () = self.phases.ending.cancelled() => {}
        }
        tokio::select! {
            _ = &mut connection => return,
            () = asked.cancelled() => {}
            () = sleep(FIRST_REQUEST_PATIENCE) => {}
        }
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            _ = &mut connection => {}
            () = self.phases.ended.cancelled() => {}
        }
    }
}

/// A client of IPv4 at a socket of both versions has the address that all others know it by, not one
/// of IPv6 that it is mapped to.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(client) => SocketAddr::from((client, address.port())),
        IpAddr::V6(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use axum::middleware::from_fn;
    use axum::routing::{get, post};
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::leftover::read_leftover;
    use super::*;

    #[tokio::test]
    async fn connections_are_watched_for_who_vanishes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        notice_vanished(&listener).unwrap();
        let connect = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(connect, listener.accept());
        let (stream, _) = accepted.unwrap();
        let socket = SockRef::from(&stream);
        assert!(client.is_ok() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), PROBE_AFTER);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), PROBE_INTERVAL);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(VANISHED_AFTER));
    }

    #[test]
    fn a_client_of_ipv4_has_one_address_at_every_socket() {
        for (came, known) in [
            ("[::ffff:192.0.2.1]:80", "192.0.2.1:80"),
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("[2001:db8::1]:80", "[2001:db8::1]:80"),
            ("[::1]:80", "[::1]:80"),
        ] {
            let came: SocketAddr = came.parse().unwrap();
            assert_eq!(canonical(came), known.parse().unwrap());
        }
    }

    #[tokio::test]
    async fn a_connection_too_many_is_turned_away_until_one_leaves() {
        let router = Router::new().route("/", get(|| async { "here" }));
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let listening = Listening::begin_for(router, anywhere, None, 1).await.unwrap();
        let ask = async || {
            let mut stream = TcpStream::connect(listening.address()).await.unwrap();
            // Whoever is turned away may see it here already.
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
            let mut first = [0; 12];
            stream.read_exact(&mut first).await.ok().map(|_| (stream, first))
        };
        let (first, answer) = ask().await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        assert!(ask().await.is_none());
        drop(first);
        while ask().await.is_none() {
            tokio::task::yield_now().await;
        }
    }

    /// Lets nobody in, as a handshake that does not go on.
    #[derive(Clone)]
    struct Stuck;

    impl Accept<TcpStream, ()> for Stuck {
        type Stream = TcpStream;
        type Service = ();
        type Future = std::future::Pending<io::Result<(TcpStream, ())>>;

        fn accept(&self, _: TcpStream, (): ()) -> Self::Future {
            pending()
        }
    }

    #[tokio::test]
    async fn a_handshake_that_does_not_go_on_holds_up_no_stop() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (phases, connections) = (Phases::default(), TaskTracker::new());
        let serving = Serving {
            router: Router::new(),
            builder: Arc::new(builder()),
            phases: phases.clone(),
            connections: connections.clone(),
            places: Arc::new(Semaphore::new(1)),
            first_request_timeout: FIRST_REQUEST_TIMEOUT,
            in_the_clear: false,
        };
        let task = tokio::spawn(serving.accept(listener, Stuck));
        let _client = TcpStream::connect(address).await.unwrap();
        while connections.is_empty() {
            tokio::task::yield_now().await;
        }
        let listening = Listening { address, phases, connections, task };
        timeout(HEADER_TIMEOUT, listening.stop(Duration::ZERO)).await.expect("it ends");
    }

    #[tokio::test]
    async fn what_has_no_content_says_nothing_of_its_length() {
        let router = Router::new()
            .route("/none", get(|| async { StatusCode::NO_CONTENT }))
            .route("/known", get(|| async { StatusCode::NOT_MODIFIED }))
            .route("/empty", get(|| async { "" }))
            .route("/some", get(|| async { "here" }));
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let listening = Listening::begin(router, anywhere, None).await.unwrap();
        for (path, status, length) in [
            ("/none", "204", None),
            ("/known", "304", None),
            ("/empty", "200", Some("0")),
            ("/some", "200", Some("4")),
        ] {
            let mut stream = TcpStream::connect(listening.address()).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer:?}");
            let found = answer.lines().find_map(|line| line.strip_prefix("content-length: "));
            assert_eq!(found, length, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn who_sends_something_and_asks_for_nothing_is_shown_out() {
        const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_millis(100);
        let serve = |sent: &'static [u8]| async move {
            let (near, mut far) = tokio::io::duplex(1024);
            far.write_all(sent).await.unwrap();
            let serving = Serving {
                router: Router::new().route("/", get(|| async { "here" })),
                builder: Arc::new(builder()),
                phases: Phases::default(),
                connections: TaskTracker::new(),
                places: Arc::new(Semaphore::new(1)),
                first_request_timeout: FIRST_REQUEST_TIMEOUT,
                in_the_clear: true,
            };
            let address = SocketAddr::from(([127, 0, 0, 1], 1));
            (tokio::spawn(serving.serve(near, address)), far)
        };
        // A letter that both protocols begin with, headers without an end, and a whole preface.
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        for sent in [&b"P"[..], b"GET / HTTP/1.1\r\nhost: x\r\n", preface] {
            let (served, _far) = serve(sent).await;
            timeout(HEADER_TIMEOUT / 3, served).await.expect("it is closed").unwrap();
        }
        let (served, mut far) = serve(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let mut first = [0; 12];
        far.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        assert!(timeout(FIRST_REQUEST_TIMEOUT * 3, served).await.is_err(), "who asked may be idle");
    }

    #[tokio::test]
    async fn a_refusal_reaches_who_sends_all_of_a_long_body_before_reading() {
        // More than two socket buffers hold.
        const BODY_BYTES: usize = 64 << 20;
        let refuse = |body: Body| async {
            let _ = { body }.frame().await;
            StatusCode::INSUFFICIENT_STORAGE
        };
        let router = Router::new().route("/", post(refuse)).layer(from_fn(read_leftover));
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let listening = Listening::begin(router, anywhere, None).await.unwrap();
        for expect in ["", "expect: 100-continue\r\n"] {
            let mut stream = TcpStream::connect(listening.address()).await.unwrap();
            let head = format!(
                "POST / HTTP/1.1\r\nhost: x\r\n{expect}content-length: {BODY_BYTES}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&vec![0; BODY_BYTES]).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let answer = answer.trim_start_matches("HTTP/1.1 100 Continue\r\n\r\n");
            assert!(answer.starts_with("HTTP/1.1 507 "), "{expect:?}: {answer:?}");
        }
    }
}
