//! Asks the other nodes, over HTTPS that only the cluster's authority can serve.
//!
//! Invariants: requests carry a token signed for each of them by this node's own key; an answer is
//! read within [`ANSWER_BYTES_MAX`] and [`ANSWER_TIMEOUT`], unless it is content that streams or what a
//! node is told to do. A node that does not answer is left out.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::RwLock;
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde::de::DeserializeOwned;
use shoal_content::{ClusterId, NodeId};
use shoal_p2p::identity::{self, KeyPair, Trust};
use shoal_raft::Raft;
use thiserror::Error;
use tracing::debug;

use super::node_token;
use crate::clock;
use crate::state::Keys;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// With TLS, for content that streams: who gives up a node too soon asks elsewhere for all of it.
const STREAM_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1500);
/// For what a node is told to do, which takes commands.
const DONE_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;
/// A node that passes on what comes from elsewhere may be silent for so long.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Why the client could not be made.
#[derive(Debug, Error)]
pub enum SiblingsError {
    #[error("TLS could not be set up")]
    Tls(#[from] identity::Error),
    #[error("the HTTP client could not be made")]
    Client(#[from] reqwest::Error),
}

/// See the module's documentation. Clones share connections.
#[derive(Clone)]
pub struct Siblings {
    raft: Raft,
    node: NodeId,
    trust: Trust,
    clients: Arc<RwLock<Clients>>,
    key: Arc<KeyPair>,
    cluster: ClusterId,
}

/// Who has these has their connections.
#[derive(Clone)]
struct Clients {
    /// So many authorities had been taken out when they were made.
    withdrawals: u64,
    http: reqwest::Client,
    /// For answers that take as long as they take.
    streams: reqwest::Client,
}

impl Clients {
    fn new(trust: &Trust) -> Result<Self, SiblingsError> {
        let withdrawals = trust.withdrawals();
        let tls = identity::member_client(trust.clone())?;
        let builder = || {
            reqwest::Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .https_only(true)
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(CONNECT_TIMEOUT)
                .user_agent(concat!("shoal-node/", env!("CARGO_PKG_VERSION")))
        };
        let http = builder().timeout(ANSWER_TIMEOUT).build()?;
        let streams = builder().connect_timeout(STREAM_CONNECT_TIMEOUT);
        let streams = streams.read_timeout(SILENCE_MAX).http1_only().build()?;
        Ok(Self { withdrawals, http, streams })
    }
}

impl std::fmt::Debug for Siblings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Siblings").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Siblings {
    /// Only whom this node believes at the moment is trusted; the key is this node's own.
    ///
    /// # Errors
    /// Where TLS cannot be set up.
    pub fn new(
        raft: Raft,
        node: NodeId,
        keys: &Keys,
        (key, trust): (Arc<KeyPair>, &Trust),
    ) -> Result<Self, SiblingsError> {
        let clients = Arc::new(RwLock::new(Clients::new(trust)?));
        let trust = trust.clone();
        Ok(Self { raft, node, trust, clients, key, cluster: keys.cluster })
    }

    /// Others than before, with connections of their own, where an authority was taken out meanwhile: those
    /// that stand may lead to whoever has its key.
    fn clients(&self) -> Result<Clients, String> {
        let known = self.clients.read().clone();
        if known.withdrawals == self.trust.withdrawals() {
            return Ok(known);
        }
        let made = Clients::new(&self.trust).map_err(|error| error.to_string())?;
        *self.clients.write() = made.clone();
        Ok(made)
    }

    /// The answers of all other nodes to `GET path` that came in time.
    pub async fn ask<T: DeserializeOwned>(&self, path: &str) -> Vec<T> {
        let nodes = self.raft.local().query().nodes().unwrap_or_default();
        let others = nodes.into_iter().filter(|node| node.id != self.node);
        let asked: FuturesUnordered<_> = others
            .map(|node| async move {
                let answer = self.get(&node.api_url, path).await;
                if let Err(error) = &answer {
                    debug!(node = %node.id, error, "a node did not answer");
                }
                answer.ok()
            })
            .collect();
        asked.filter_map(std::future::ready).collect().await
    }

    /// Has all other nodes carry out `POST path`; gives the names of those that have not said in time that
    /// they did.
    pub async fn tell(&self, path: &str) -> Vec<String> {
        let nodes = self.raft.local().query().nodes().unwrap_or_default();
        let others = nodes.into_iter().filter(|node| node.id != self.node);
        let told: FuturesUnordered<_> = others
            .map(|node| async move {
                let told = self.post(&node.api_url, path).await;
                if let Err(error) = &told {
                    debug!(node = %node.id, error, "a node did not do what it was told");
                }
                told.is_err().then_some(node.name)
            })
            .collect();
        told.filter_map(std::future::ready).collect().await
    }

    async fn post(&self, api_url: &str, path: &str) -> Result<(), String> {
        let request = self.request(&self.clients()?.http, Method::POST, api_url, path)?;
        let sent = request.timeout(DONE_TIMEOUT).send().await;
        let status = sent.map_err(|error| error.to_string())?.status();
        if status.is_success() { Ok(()) } else { Err(status.to_string()) }
    }

    /// The answer of the node at `api_url` to `GET path`, whatever it is, to be read as it comes.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn open(
        &self,
        api_url: &str,
        path: &str,
        headers: HeaderMap,
    ) -> Result<reqwest::Response, String> {
        let request = self.request(&self.clients()?.streams, Method::GET, api_url, path)?;
        let request = request.headers(headers);
        request.send().await.map_err(|error| error.to_string())
    }

    fn request(
        &self,
        http: &reqwest::Client,
        method: Method,
        api_url: &str,
        path: &str,
    ) -> Result<reqwest::RequestBuilder, String> {
        let url = format!("{}{path}", api_url.trim_end_matches('/'));
        let token = node_token::issue(&self.key, self.cluster, clock::now());
        Ok(http.request(method, url).bearer_auth(token.map_err(|error| error.to_string())?))
    }

    async fn get<T: DeserializeOwned>(&self, api_url: &str, path: &str) -> Result<T, String> {
        let request = self.request(&self.clients()?.http, Method::GET, api_url, path)?;
        let response = request.send().await.map_err(|error| error.to_string())?;
        let status = response.status();
        if !status.is_success() {
            return Err(status.to_string());
        }
        let mut response = response;
        let mut body = Vec::new();
        while let Some(part) = response.chunk().await.map_err(|error| error.to_string())? {
            if body.len() + part.len() > ANSWER_BYTES_MAX {
                return Err("the answer is too long".to_owned());
            }
            body.extend_from_slice(&part);
        }
        serde_json::from_slice(&body).map_err(|error| error.to_string())
    }
}
