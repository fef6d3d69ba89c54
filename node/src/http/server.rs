//! The HTTPS server: routes, what every request passes through, and a graceful end.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum_server::Handle;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use socket2::{Domain, Socket, Type};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::warn;

use super::access::observe;
use super::auth::Principal;
use super::cors;
use super::door::{CONNECTIONS_MAX, Door};
use super::leftover::read_leftover;
use super::problem::{Problem, chain};
use super::prompt::Prompt;
use crate::api;
use crate::registry;
use crate::state::App;

/// How long requests under way may take once the node is told to stop.
const DRAIN_DEADLINE: Duration = Duration::from_secs(20);
/// Connections that wait to be let in.
const BACKLOG: i32 = 1024;
/// From a request's first byte to the end of its headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long storage is waited for before a node says that it is not ready.
const READY_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests at once on one HTTP/2 connection.
const STREAMS_PER_CONNECTION_MAX: u32 = 256;
/// An HTTP/2 client that is silent is asked, and given up when it does not answer.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// A running server.
#[derive(Debug)]
pub struct Listening {
    handle: Handle<SocketAddr>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Listening {
    /// Takes no new requests, lets those under way end, and returns.
    ///
    /// # Errors
    /// What ended the server, where it had failed before.
    pub async fn stop(self) -> std::io::Result<()> {
        self.handle.graceful_shutdown(Some(DRAIN_DEADLINE));
        self.task.await.map_err(std::io::Error::other)?
    }

    /// Waits until the server ends by itself, which is a failure.
    pub async fn failed(&mut self) -> std::io::Error {
        match (&mut self.task).await {
            Ok(Ok(())) => std::io::Error::other("the HTTP server ended"),
            Ok(Err(error)) => error,
            Err(error) => std::io::Error::other(error),
        }
    }
}

/// Serves the app on `address`; `tls` is missing only for a listener on loopback.
///
/// # Errors
/// Where the address cannot be listened on.
pub fn serve(
    app: App,
    address: SocketAddr,
    tls: Option<RustlsConfig>,
) -> std::io::Result<Listening> {
    let listener = listen(address)?;
    let handle = Handle::new();
    let service = router(app).into_make_service_with_connect_info::<SocketAddr>();
    let door = Door::new(CONNECTIONS_MAX);
    let task = match tls {
        Some(tls) => {
            let acceptor = Prompt::new(RustlsAcceptor::new(tls).acceptor(door));
            let mut server = axum_server::from_tcp(listener)?.acceptor(acceptor);
            bound(server.http_builder());
            tokio::spawn(server.handle(handle.clone()).serve(service))
        }
        None => {
            let mut server = axum_server::from_tcp(listener)?.acceptor(Prompt::new(door));
            bound(server.http_builder());
            tokio::spawn(server.handle(handle.clone()).serve(service))
        }
    };
    Ok(Listening { handle, task })
}

/// Bound before anything is promised to anyone.
fn listen(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // What a stopped node left in TIME_WAIT does not hold up the next one.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// What one connection may take: time for its headers, streams at once, silence.
fn bound(builder: &mut Builder<TokioExecutor>) {
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
}

fn router(app: App) -> Router {
    let router = Router::new()
        .route("/health", get(|| async { "ok\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .merge(registry::router())
        .merge(api::router())
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn(read_leftover))
        .layer(CatchPanicLayer::new());
    let router = match cors::layer(&app.config.cors) {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router.layer(from_fn_with_state(app.clone(), observe)).with_state(app)
}

async fn no_such_path() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "no_such_path",
        "nothing is here; the REST API is below /api/v1, the registry below /v2",
    )
}

async fn no_such_method() -> Problem {
    let message = "this path knows no such method";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

/// Whether this node can do its work: it is a member, a majority answers, and so does storage.
async fn ready(State(app): State<App>) -> Response {
    match timeout(READY_TIMEOUT, app.view()).await {
        Ok(Ok(view)) if matches!(view.query().node(app.node), Ok(None)) => {
            let text = "this node was removed from the cluster\n";
            return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
        }
        Ok(Ok(_)) => {}
        Ok(Err(_)) | Err(_) => {
            let text = "no leader answers for a majority\n";
            return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
        }
    }
    let failed = match timeout(READY_TIMEOUT, app.store.probe()).await {
        Ok(Ok(())) => return "ready\n".into_response(),
        Ok(Err(error)) => chain(&error),
        Err(_) => format!("no answer in {} s", READY_TIMEOUT.as_secs()),
    };
    // Anyone may ask: what exactly is wrong is the operator's to know.
    warn!(error = failed, "storage is not ready");
    (StatusCode::SERVICE_UNAVAILABLE, "storage does not answer; the log says more\n")
        .into_response()
}

async fn metrics(
    State(app): State<App>,
    principal: Result<Principal, Problem>,
) -> Result<Response, Problem> {
    if !app.config.metrics.public {
        principal?;
    }
    let text = app.metrics.text().map_err(|error| Problem::internal(&error))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}
