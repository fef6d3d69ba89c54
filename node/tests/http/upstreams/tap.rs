//! A tap on the line between a node and its upstream, which is another Shoal: it passes everything
//! on, remembers what was asked, and can hold, break, bend or divert it on the way.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::super::node::Node;

const BODY_BYTES_MAX: usize = 1024 * 1024;

/// What happens to bodies of blobs.
#[derive(Debug, Clone, Default)]
pub enum Blobs {
    #[default]
    Pass,
    /// The rest waits for [`Tap::release`].
    HoldAfter(usize),
    /// Breaks off, as often as is said.
    BreakAfter(usize, u32),
    /// The last byte is another one.
    Bend,
    /// They are elsewhere.
    Divert(String),
}

/// One request, as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
}

struct Line {
    /// Of the upstream.
    url: String,
    /// What it is told to be called.
    host: String,
    http: reqwest::Client,
    seen: Mutex<Vec<Seen>>,
    blobs: Mutex<Blobs>,
    /// What is answered instead of everything.
    refusal: Mutex<Option<StatusCode>>,
    bend_manifests: Mutex<bool>,
    gate: Arc<Semaphore>,
}

/// See the module's documentation. Dropped, it is gone from the line.
pub struct Tap {
    line: Arc<Line>,
    pub address: SocketAddr,
    server: JoinHandle<()>,
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Tap {
    /// `host` is the name by which the upstream is asked: by an address it wants Basic, by a name
    /// a token.
    pub async fn on(upstream: &Node, host: &str) -> Result<Self> {
        let port = upstream.server.app().config.http.listen.port();
        let line = Arc::new(Line {
            url: upstream.url.clone(),
            host: format!("{host}:{port}"),
            http: upstream.http.clone(),
            seen: Mutex::default(),
            blobs: Mutex::default(),
            refusal: Mutex::default(),
            bend_manifests: Mutex::new(false),
            gate: Arc::new(Semaphore::new(0)),
        });
        let router = Router::new().fallback(pass).with_state(Arc::clone(&line));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let server = tokio::spawn(async move {
            // It ends with the test.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { line, address, server })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn blobs(&self, what: Blobs) {
        *self.line.blobs.lock() = what;
    }

    pub fn refuse(&self, status: Option<StatusCode>) {
        *self.line.refusal.lock() = status;
    }

    pub fn bend_manifests(&self) {
        *self.line.bend_manifests.lock() = true;
    }

    /// Lets what is held go on, for good.
    pub fn release(&self) {
        self.line.gate.add_permits(1000);
    }

    /// Requests whose paths have this in them.
    pub fn seen(&self, method: &Method, part: &str) -> Vec<Seen> {
        let seen = self.line.seen.lock();
        seen.iter()
            .filter(|one| one.method == *method && one.path.contains(part))
            .cloned()
            .collect()
    }

    /// Those that were let in: nobody asks in vain but for the challenge.
    pub fn fetches(&self, part: &str) -> usize {
        let all = self.seen(&Method::GET, part);
        all.iter().filter(|one| one.headers.contains_key(header::AUTHORIZATION)).count()
    }
}

async fn pass(State(line): State<Arc<Line>>, request: Request) -> Response {
    let mut response = match forward(&line, request).await {
        Ok(response) => response,
        Err(error) => (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response(),
    };
    // When it is gone, no connection is left that it answers on.
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

async fn forward(line: &Arc<Line>, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let is_blob = path.contains("/blobs/");
    line.seen.lock().push(Seen {
        method: parts.method.clone(),
        path: path.clone(),
        headers: parts.headers.clone(),
    });
    let refusal = *line.refusal.lock();
    if let Some(status) = refusal {
        return Ok((status, [(header::RETRY_AFTER, "7")]).into_response());
    }
    let what = line.blobs.lock().clone();
    if let (true, Blobs::Divert(to)) = (is_blob, &what) {
        return Ok(
            (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to.clone())]).into_response()
        );
    }
    let mut headers = parts.headers;
    headers.insert(header::HOST, line.host.parse()?);
    let body = to_bytes(body, BODY_BYTES_MAX).await?;
    let request = line.http.request(parts.method.clone(), format!("{}{path}", line.url));
    let answer = request.headers(headers).body(body).send().await.context("the upstream")?;
    let status = answer.status();
    let mut response = Response::builder().status(status);
    for (name, value) in answer.headers() {
        if *name != header::TRANSFER_ENCODING && *name != header::CONNECTION {
            response = response.header(name, value);
        }
    }
    let is_content = parts.method == Method::GET && status.is_success();
    if is_content && path.contains("/manifests/") && *line.bend_manifests.lock() {
        return Ok(response.body(bent(line, answer.bytes().await?, Blobs::Bend))?);
    }
    let body = match is_content && is_blob {
        true => bent(line, answer.bytes().await?, what),
        false => Body::from(answer.bytes().await?),
    };
    Ok(response.body(body)?)
}

fn bent(line: &Arc<Line>, bytes: Bytes, what: Blobs) -> Body {
    match what {
        Blobs::Pass | Blobs::Divert(_) => Body::from(bytes),
        Blobs::Bend => {
            let mut bytes = bytes.to_vec();
            if let Some(last) = bytes.last_mut() {
                *last ^= 1;
            }
            Body::from(bytes)
        }
        Blobs::BreakAfter(_, 0) => Body::from(bytes),
        Blobs::BreakAfter(most, times) => {
            *line.blobs.lock() = Blobs::BreakAfter(most, times - 1);
            let first = Ok(bytes.slice(..most.min(bytes.len())));
            let broken = Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
            Body::from_stream(futures::stream::iter([first, broken]))
        }
        Blobs::HoldAfter(most) => {
            let (first, rest) = (bytes.slice(..most), bytes.slice(most..));
            let gate = Arc::clone(&line.gate);
            let rest = futures::stream::once(async move {
                let _opened = gate.acquire().await;
                Ok::<_, std::io::Error>(rest)
            });
            Body::from_stream(futures::stream::iter([Ok(first)]).chain(rest))
        }
    }
}
