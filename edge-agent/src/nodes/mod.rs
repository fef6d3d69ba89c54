//! The nodes, as this agent asks them: resolve a reference, report progress, hear orders.
//!
//! Any node answers anything, so the client keeps to the last one that answered and goes on to the
//! next where a node cannot be reached or says that it cannot serve now. A refusal (not found, no
//! right) is an answer and ends the round.
//!
//! Invariant: requests carry a token signed for each of them; nothing is sent to a node whose
//! certificate does not lead to the cluster's authority, or to one that the settings name. Before the
//! join, `identity::AuthorityPin` decides.

pub mod addresses;
pub mod orders;
pub mod token;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;
use reqwest::header::{AUTHORIZATION, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_api::{
    AgentResolution, AgentResolveRequest, CertificateRequest, CertificateResponse, DeltaAnswer,
    DeltaRequest, EnrolRequest, EnrolResponse, NodeAddress, Problem, ProgressReport, UpstreamInfo,
};
use shoal_content::{ClusterId, Digest, ImageReference};
use shoal_p2p::identity::{self, AuthorityPin, KeyPair, Trust};
use thiserror::Error;
use tokio::sync::Notify;
use tracing::{Instrument, Span, debug, debug_span};

use crate::metrics::AgentMetrics;
use crate::telemetry;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Content that a node gets from elsewhere first begins within this.
const CONTENT_TIMEOUT: Duration = Duration::from_secs(45);
/// An election takes about two seconds: a round of all nodes is made again until this much time
/// has passed.
const ROUNDS_DEADLINE: Duration = Duration::from_secs(12);
const ROUND_PAUSE: Duration = Duration::from_millis(300);
/// A resolution carries manifests, each at most 4 MiB and base64.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// What a node says of a refusal is read so far, and waited for so long.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Nodes kept in the list; a cluster has five at most.
const NODES_MAX: usize = 32;

/// What can go wrong between an agent and the nodes.
#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Identity(#[from] identity::Error),
    #[error("TLS could not be set up: {0}")]
    Tls(String),
    #[error("{url} did not answer: {message}")]
    Unreachable { url: String, message: String },
    #[error("no node answered; the last one said: {0}")]
    NoNode(String),
    #[error("this agent knows no node; join a cluster first")]
    NoneKnown,
    #[error("{url} refused ({status}, {}): {}", .problem.code, .problem.message)]
    Refused { url: String, status: u16, problem: Problem },
    #[error("{url} answered what this agent does not understand: {message}")]
    Answer { url: String, message: String },
}

impl Error {
    /// Whether asking again, here or elsewhere, can help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NoNode(_) => true,
            Self::Refused { status, .. } => *status >= 500 || *status == 429 || *status == 408,
            _ => false,
        }
    }

    /// Whether a node said that there is no such image, or none that this agent may see.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404 | 403, .. })
    }

    /// Whether a node said that what it was sent is nothing it can ever take.
    pub fn is_malformed(&self) -> bool {
        matches!(self, Self::Refused { status: 400 | 413 | 422, .. })
    }
}

/// What a node answers somebody else, whose question is passed on.
#[derive(Debug)]
pub struct Passed {
    pub status: StatusCode,
    pub retry_after: Option<HeaderValue>,
}

/// Who has these has their connections.
#[derive(Debug)]
struct Clients {
    http: reqwest::Client,
    /// Without a limit on the whole answer, for the order stream.
    streaming: reqwest::Client,
}

impl Clients {
    fn new(trust: &Trust) -> Result<Self, Error> {
        let tls = identity::member_client(trust.clone())?;
        Ok(Self { http: http(tls.clone(), Some(REQUEST_TIMEOUT))?, streaming: http(tls, None)? })
    }
}

/// Asks nodes on behalf of an enrolled agent.
#[derive(Debug)]
pub struct NodeClient {
    clients: RwLock<Clients>,
    /// The cluster's authorities, and others that the settings name.
    trust: Trust,
    others: Vec<Vec<u8>>,
    key: Arc<KeyPair>,
    cluster: ClusterId,
    configured: Vec<String>,
    /// Their URLs; the one that answered last stands first.
    urls: RwLock<Vec<String>>,
    /// Has the order stream opened anew.
    reopen: Notify,
    metrics: AgentMetrics,
}

impl NodeClient {
    /// `configured` URLs are asked first, then those of `nodes`. Of the authorities, texts in PEM, the
    /// first are the cluster's; those after them stay whoever they are.
    pub fn new(
        key: Arc<KeyPair>,
        cluster: ClusterId,
        authorities: &[&[u8]],
        configured: &[String],
        nodes: &[NodeAddress],
        metrics: AgentMetrics,
    ) -> Result<Self, Error> {
        let (believed, others) = authorities.split_first().ok_or(identity::Error::Pem)?;
        let others: Vec<Vec<u8>> = others.iter().map(|pem| pem.to_vec()).collect();
        let trust = Trust::new(roots(believed, &others)?)?;
        let client = Self {
            clients: RwLock::new(Clients::new(&trust)?),
            trust,
            others,
            key,
            cluster,
            configured: configured.iter().map(|url| url.trim_end_matches('/').into()).collect(),
            urls: RwLock::default(),
            reopen: Notify::new(),
            metrics,
        };
        client.set_nodes(nodes);
        Ok(client)
    }

    /// Believes these authorities of the cluster from now on, PEM, and those of the settings. Where one
    /// that was believed is not among them, connections are made anew, the order stream's too: whoever is
    /// at their other ends may have a certificate of that one's.
    ///
    /// # Errors
    /// Where they cannot be read; those before are believed on.
    pub fn believe(&self, pem: &str) -> Result<(), Error> {
        let before = self.trust.withdrawals();
        self.trust.replace(roots(pem.as_bytes(), &self.others)?)?;
        if self.trust.withdrawals() != before {
            *self.clients.write() = Clients::new(&self.trust)?;
            self.reopen_orders();
        }
        Ok(())
    }

    fn http(&self) -> reqwest::Client {
        self.clients.read().http.clone()
    }

    fn streaming(&self) -> reqwest::Client {
        self.clients.read().streaming.clone()
    }

    /// Takes a new list of nodes; the one that answered last stays first where it is still there.
    pub fn set_nodes(&self, nodes: &[NodeAddress]) {
        let named = nodes.iter().map(|node| node.api_url.trim_end_matches('/').to_owned());
        let mut urls: Vec<String> = Vec::new();
        for url in self.configured.iter().cloned().chain(named) {
            if !url.is_empty() && !urls.contains(&url) && urls.len() < NODES_MAX {
                urls.push(url);
            }
        }
        let mut current = self.urls.write();
        let first = current.first().and_then(|first| urls.iter().position(|url| url == first));
        if let Some(at) = first {
            urls.swap(0, at);
        }
        *current = urls;
    }

    /// Has a node say again which orders are pending.
    pub fn reopen_orders(&self) {
        self.reopen.notify_one();
    }

    /// Where the next request goes first.
    pub fn preferred(&self) -> Option<String> {
        self.urls.read().first().cloned()
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.urls.read().clone()
    }

    pub(crate) fn prefer(&self, url: &str) {
        let mut urls = self.urls.write();
        if let Some(at) = urls.iter().position(|known| known == url) {
            urls.swap(0, at);
        }
    }

    pub(crate) fn token(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        token::issue(self.key.peer_id(), &self.cluster, now, |message| self.key.sign(message))
    }

    /// What `reference` means now, with the right to all of its bytes that is for `platform`; what
    /// nodes lack of it they ask for.
    pub async fn resolve(
        &self,
        reference: &ImageReference,
        platform: String,
    ) -> Result<AgentResolution, Error> {
        let (reference, platform) = (reference.clone(), Some(platform));
        let request = AgentResolveRequest { reference, blobs: None, whole: true, platform };
        self.ask(Method::POST, "/api/v1/agents/self/resolve", &request).await
    }

    /// The same as nodes have it; `blobs` narrows it to those. Each node is asked once: for callers
    /// that have something to fall back to.
    pub async fn resolve_once(
        &self,
        reference: &ImageReference,
        blobs: Option<Vec<Digest>>,
    ) -> Result<AgentResolution, Error> {
        let reference = reference.clone();
        let request = AgentResolveRequest { reference, blobs, whole: false, platform: None };
        self.round(Method::POST, "/api/v1/agents/self/resolve", Some(&request)).await
    }

    /// A certificate in place of the one that this agent has.
    pub async fn certificate(&self, csr_pem: String) -> Result<CertificateResponse, Error> {
        let request = CertificateRequest { csr_pem };
        self.round(Method::POST, "/api/v1/agents/self/certificate", Some(&request)).await
    }

    /// A bundle in place of new chunks; asked of each node once.
    pub async fn delta(&self, request: &DeltaRequest) -> Result<DeltaAnswer, Error> {
        self.round(Method::POST, "/api/v1/agents/self/delta", Some(request)).await
    }

    /// Asks each node once, until one answers, with somebody else's credentials and not with this
    /// agent's. What was answered is not read.
    ///
    /// # Errors
    /// Where no node answers, or those that do cannot serve now.
    pub async fn ask_for(
        &self,
        method: Method,
        path: &str,
        authorization: Option<&HeaderValue>,
    ) -> Result<Passed, Error> {
        let mut last = Error::NoneKnown;
        for url in self.urls() {
            let mut request = self.http().request(method.clone(), format!("{url}{path}"));
            if let Some(value) = authorization {
                request = request.header(AUTHORIZATION, value.clone());
            }
            let outcome = request.send().await;
            let answered = outcome.as_ref().is_ok_and(|answer| !answer.status().is_server_error());
            let label = if answered { "ok" } else { "failed" };
            self.metrics.node_requests.get_or_create(&[("outcome", label)]).inc();
            match outcome {
                Ok(answer) if answered => {
                    self.prefer(&url);
                    let retry_after = answer.headers().get(RETRY_AFTER).cloned();
                    return Ok(Passed { status: answer.status(), retry_after });
                }
                Ok(answer) => last = refusal(&url, answer.status(), b""),
                Err(error) => last = Error::Unreachable { url, message: chain(&error) },
            }
        }
        Err(match last {
            Error::NoneKnown => last,
            last => Error::NoNode(last.to_string()),
        })
    }

    /// Content as a node sends it, with somebody else's credentials and not with this agent's; of
    /// the first node that answers at all.
    ///
    /// # Errors
    /// Where no node answers, or those that do cannot serve now.
    pub async fn open_for(
        &self,
        method: Method,
        path: &str,
        authorization: Option<&HeaderValue>,
        range: Option<&HeaderValue>,
    ) -> Result<reqwest::Response, Error> {
        let mut last = Error::NoneKnown;
        for url in self.urls() {
            let mut request = self.streaming().request(method.clone(), format!("{url}{path}"));
            for (name, value) in [(AUTHORIZATION, authorization), (RANGE, range)] {
                if let Some(value) = value {
                    request = request.header(name, value.clone());
                }
            }
            match tokio::time::timeout(CONTENT_TIMEOUT, request.send()).await {
                Ok(Ok(answer)) if !answer.status().is_server_error() => {
                    self.prefer(&url);
                    return Ok(answer);
                }
                Ok(Ok(answer)) => last = refused(&url, answer).await,
                Ok(Err(error)) => last = Error::Unreachable { url, message: chain(&error) },
                Err(_) => {
                    let message = "it takes too long".to_owned();
                    last = Error::Unreachable { url, message };
                }
            }
        }
        Err(match last {
            Error::NoneKnown => last,
            last => Error::NoNode(last.to_string()),
        })
    }

    /// The other registries that are pulled through the cluster.
    ///
    /// # Errors
    /// Where no node says so.
    pub async fn upstreams(&self) -> Result<Vec<UpstreamInfo>, Error> {
        self.round::<_, ()>(Method::GET, "/api/v1/upstreams", None).await
    }

    pub async fn report(&self, report: &ProgressReport) -> Result<(), Error> {
        let path = "/api/v1/agents/self/progress";
        self.round::<serde_json::Value, _>(Method::POST, path, Some(report)).await.map(drop)
    }

    /// Rounds over all nodes until one answers or [`ROUNDS_DEADLINE`] has passed.
    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        let started = tokio::time::Instant::now();
        loop {
            match self.round(method.clone(), path, Some(body)).await {
                Err(error) if error.is_retryable() && started.elapsed() < ROUNDS_DEADLINE => {
                    debug!(%error, "asking the nodes again");
                    tokio::time::sleep(ROUND_PAUSE).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn round<T: DeserializeOwned, B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, Error> {
        let mut last = Error::NoneKnown;
        for url in self.urls() {
            let mut request = self
                .http()
                .request(method.clone(), format!("{url}{path}"))
                .bearer_auth(self.token());
            if let Some(body) = body {
                request = request.json(body);
            }
            // Of what no transfer waits for there are no spans.
            let span = match Span::current().is_none() {
                true => Span::none(),
                false => debug_span!("node.request", path, node = url),
            };
            let request = request.headers(telemetry::headers(&span));
            let outcome = answer(&url, request).instrument(span).await;
            let label = if outcome.is_ok() { "ok" } else { "failed" };
            self.metrics.node_requests.get_or_create(&[("outcome", label)]).inc();
            match outcome {
                Err(error) if error.is_retryable() => last = error,
                outcome => {
                    self.prefer(&url);
                    return outcome;
                }
            }
        }
        Err(match last {
            Error::NoneKnown => last,
            last => Error::NoNode(last.to_string()),
        })
    }
}

/// Enrols at `url` over TLS pinned by the token's fingerprint.
pub async fn enrol(url: &str, request: &EnrolRequest) -> Result<EnrolResponse, Error> {
    let pin = AuthorityPin::of_token(&request.token)?;
    let http = http(pin.client_config()?, Some(REQUEST_TIMEOUT))?;
    let url = url.trim_end_matches('/');
    let response: EnrolResponse =
        answer(url, http.post(format!("{url}/api/v1/agents/enrol")).json(request)).await?;
    if !pin.names(&response.authority_pem) {
        let message = "its authority is not the one that the join token names".to_owned();
        return Err(Error::Answer { url: url.to_owned(), message });
    }
    Ok(response)
}

fn roots(believed: &[u8], others: &[Vec<u8>]) -> Result<rustls::RootCertStore, identity::Error> {
    let others = others.iter().map(Vec::as_slice).filter(|pem| !pem.is_empty());
    identity::roots([believed].into_iter().chain(others))
}

/// Reads a PEM file of further authorities.
pub fn read_authorities(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| Error::Tls(format!("{}: {error}", path.display())))
}

fn http(tls: rustls::ClientConfig, timeout: Option<Duration>) -> Result<reqwest::Client, Error> {
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(true)
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .user_agent(concat!("shoal-agent/", env!("CARGO_PKG_VERSION")));
    if let Some(timeout) = timeout {
        builder = builder.timeout(timeout);
    }
    builder.build().map_err(|error| Error::Tls(error.to_string()))
}

/// Sends, and reads the answer within bounds. An empty answer reads as JSON's `null`.
async fn answer<T: DeserializeOwned>(
    url: &str,
    request: reqwest::RequestBuilder,
) -> Result<T, Error> {
    let unreachable =
        |error: reqwest::Error| Error::Unreachable { url: url.to_owned(), message: chain(&error) };
    let mut response = request.send().await.map_err(unreachable)?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await.map_err(unreachable)? {
        if body.len() + part.len() > ANSWER_BYTES_MAX {
            let message = format!("more than {ANSWER_BYTES_MAX} bytes");
            return Err(Error::Answer { url: url.to_owned(), message });
        }
        body.extend_from_slice(&part);
    }
    if !status.is_success() {
        return Err(refusal(url, status, &body));
    }
    let body = if body.is_empty() { b"null".as_slice() } else { &body };
    serde_json::from_slice(body)
        .map_err(|error| Error::Answer { url: url.to_owned(), message: error.to_string() })
}

/// What a node says instead, as far as it says so within bounds of time and length.
pub(crate) async fn refused(url: &str, mut response: reqwest::Response) -> Error {
    let (status, mut body) = (response.status(), Vec::new());
    let read = async {
        while let Ok(Some(part)) = response.chunk().await
            && body.len() + part.len() <= REFUSAL_BYTES_MAX
        {
            body.extend_from_slice(&part);
        }
    };
    // What came in time may do.
    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, read).await;
    refusal(url, status, &body)
}

fn refusal(url: &str, status: StatusCode, body: &[u8]) -> Error {
    let nothing = || Problem {
        code: "unknown".into(),
        message: status.canonical_reason().unwrap_or("no reason given").to_owned(),
        request_id: None,
        quota: None,
    };
    let problem = serde_json::from_slice(body).ok().or_else(|| of_registry(body));
    let problem = problem.unwrap_or_else(nothing);
    Error::Refused { url: url.to_owned(), status: status.as_u16(), problem }
}

/// The same of an answer below `/v2` (distribution-spec, "Errors").
fn of_registry(body: &[u8]) -> Option<Problem> {
    let said: serde_json::Value = serde_json::from_slice(body).ok()?;
    let text = |key: &str| Some(said["errors"][0][key].as_str()?.to_owned());
    Some(Problem { code: text("code")?, message: text("message")?, request_id: None, quota: None })
}

/// The error with its causes: reqwest's own text leaves out what happened.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_why_whichever_api_it_is_of() {
        let said = |body: &str| refusal("u", StatusCode::BAD_GATEWAY, body.as_bytes()).to_string();
        let api = said(r#"{"code":"disk_full","message":"it is full"}"#);
        assert_eq!(api, "u refused (502, disk_full): it is full");
        let registry =
            said(r#"{"errors":[{"code":"UNAVAILABLE","message":"away","detail":null}]}"#);
        assert_eq!(registry, "u refused (502, UNAVAILABLE): away");
        for nothing in ["", "<html>", "{\"errors\":[]}"] {
            assert_eq!(said(nothing), "u refused (502, unknown): Bad Gateway", "{nothing}");
        }
    }
}
