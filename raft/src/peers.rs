//! Connections to the other members, and requests over them.
//!
//! Invariants: one connection to an address, made when it is needed; a request that gets no answer
//! in time takes its connection down, so that the next one starts afresh rather than wait for QUIC
//! to notice that the other side was replaced. Who is at an address is known from its certificate:
//! what is meant for one node is not said to another that has come to its place. Who is not believed, or not
//! any more, is looked for again, on a new connection.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quinn::{Connection, Endpoint};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_content::PeerId;
use thiserror::Error;
use tokio::time::timeout;

use crate::config::{Authenticate, Transport, quic_settings};
use crate::store::{decode, encode};
use crate::wire::{Kind, STOPPING, STRANGER, receive_body, receive_length, send_request};

/// How long finding an address and the handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);

/// How often it is looked again at who is at the other end of a connection.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// The most addresses that are kept; a group has a handful of members.
const LINKS_MAX: usize = 64;

/// Why there was no answer.
#[derive(Debug, Error)]
pub enum CallError {
    #[error("cannot connect to {address}: {reason}")]
    Connect { address: String, reason: String },
    #[error("another node than {expected} is at {address}")]
    Another { address: String, expected: PeerId },
    #[error("{address} did not answer within {} ms", limit.as_millis())]
    Timeout { address: String, limit: Duration },
    #[error("the request to {address} broke off")]
    Broken { address: String, source: io::Error },
}

/// See the module's documentation.
pub struct Peers {
    endpoint: Endpoint,
    client: quinn::ClientConfig,
    server_name: String,
    authenticate: Authenticate,
    links: Mutex<BTreeMap<String, Arc<Link>>>,
}

struct Link {
    address: String,
    connection: tokio::sync::Mutex<Option<Reached>>,
}

/// A connection, and who is at its other end.
#[derive(Clone)]
struct Reached {
    connection: Connection,
    peer: Option<PeerId>,
    looked_at: Instant,
}

impl Peers {
    pub fn new(transport: &Transport) -> Self {
        let mut client = transport.client.clone();
        let mut settings = quic_settings();
        settings.keep_alive_interval(Some(KEEP_ALIVE_INTERVAL));
        client.transport_config(Arc::new(settings));
        Self {
            endpoint: transport.endpoint.clone(),
            client,
            server_name: transport.server_name.clone(),
            authenticate: transport.authenticate.clone(),
            links: Mutex::default(),
        }
    }

    fn link(&self, address: &str) -> Arc<Link> {
        let mut links = self.links.lock();
        if !links.contains_key(address) && links.len() >= LINKS_MAX {
            links.clear();
        }
        let new = || {
            let connection = tokio::sync::Mutex::new(None);
            Arc::new(Link { address: address.to_owned(), connection })
        };
        links.entry(address.to_owned()).or_insert_with(new).clone()
    }

    /// A connection to `address`, the one there is or a new one; where it matters who is there, to
    /// nobody else.
    pub async fn connection(
        &self,
        address: &str,
        expected: Option<PeerId>,
    ) -> Result<Connection, CallError> {
        let Reached { connection, peer, .. } = self.reach(address).await?;
        match expected {
            Some(expected) if peer != Some(expected) => {
                Err(CallError::Another { address: address.to_owned(), expected })
            }
            _ => Ok(connection),
        }
    }

    async fn reach(&self, address: &str) -> Result<Reached, CallError> {
        let link = self.link(address);
        let mut slot = link.connection.lock().await;
        if let Some(reached) = &mut *slot
            && reached.connection.close_reason().is_none()
        {
            if self.is_still(reached) {
                return Ok(reached.clone());
            }
            // What it was asked before and has not answered is asked again over the next one.
            reached.connection.close(STRANGER, b"no node of this cluster any more");
        }
        let refuse = |reason: String| CallError::Connect { address: link.address.clone(), reason };
        let connection = match timeout(CONNECT_TIMEOUT, self.connect(address)).await {
            Ok(connected) => connected.map_err(|error| refuse(error.to_string()))?,
            Err(_) => return Err(refuse("no answer".into())),
        };
        let peer = (self.authenticate)(&connection);
        let reached = Reached { connection, peer, looked_at: Instant::now() };
        *slot = Some(reached.clone());
        Ok(reached)
    }

    /// Whether whoever was known to be at the other end is yet, as far as it is time to look. Who was not
    /// believed may be now; who is not believed yet may show another certificate on another connection.
    fn is_still(&self, reached: &mut Reached) -> bool {
        if reached.looked_at.elapsed() < LOOK_INTERVAL {
            return true;
        }
        reached.looked_at = Instant::now();
        let (before, now) = (reached.peer, (self.authenticate)(&reached.connection));
        reached.peer = now;
        now.is_some() && (before.is_none() || before == now)
    }

    async fn connect(&self, address: &str) -> io::Result<Connection> {
        let ipv4 = self.endpoint.local_addr()?.is_ipv4();
        let mut found = tokio::net::lookup_host(address).await?;
        let Some(address) = found.find(|found| !ipv4 || found.is_ipv4()) else {
            return Err(io::Error::other("the name has no address that can be reached from here"));
        };
        let connecting = self
            .endpoint
            .connect_with(self.client.clone(), address, &self.server_name)
            .map_err(io::Error::other)?;
        Ok(connecting.await?)
    }

    /// Asks whoever is at `address` and waits for the answer, `limit` at most.
    pub async fn call<A: DeserializeOwned>(
        &self,
        address: &str,
        kind: Kind,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<A, CallError> {
        self.call_peer((address, None), kind, body, limit).await
    }

    /// As [`Self::call`], and where it matters who is there, nobody else is asked.
    pub async fn call_peer<A: DeserializeOwned>(
        &self,
        (address, expected): (&str, Option<PeerId>),
        kind: Kind,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<A, CallError> {
        let broken = |source| CallError::Broken { address: address.to_owned(), source };
        let body = encode(body).map_err(broken)?;
        let connection = self.connection(address, expected).await?;
        match timeout(limit, exchange(&connection, kind, body)).await {
            Ok(Ok(answer)) => decode(&answer).map_err(broken),
            Ok(Err(source)) => Err(broken(source)),
            Err(_) => {
                connection.close(STOPPING, b"no answer in time");
                Err(CallError::Timeout { address: address.to_owned(), limit })
            }
        }
    }
}

async fn exchange(connection: &Connection, kind: Kind, body: Vec<u8>) -> io::Result<Vec<u8>> {
    let (mut send, mut receive) = connection.open_bi().await?;
    send_request(&mut send, kind, body).await?;
    send.finish().map_err(io::Error::other)?;
    let length = receive_length(&mut receive).await?;
    receive_body(&mut receive, length).await
}
