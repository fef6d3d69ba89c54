//! This node among the peers: serves chunks to whoever shows a ticket, and tracks swarms.
//!
//! Invariant: the list of nodes that the swarm works with follows the replicated one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use shoal_metadata::Event;
use shoal_p2p::identity::Credentials;
use shoal_p2p::{NodeAddress, PeerRole, Swarm, TicketKeys};
use shoal_raft::Raft;
use thiserror::Error;
use tokio::sync::broadcast::error::RecvError;
use tracing::warn;

use super::Origin;
use crate::clock::now;
use crate::config::Config;
use crate::deploy::OrderDesk;
use crate::state::Keys;

/// Names of nodes are looked up again this often, since their addresses may change.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(30);

#[derive(Debug, Error)]
pub enum PeersError {
    #[error("the address {0} that peers are told cannot be looked up")]
    Advertise(String),
    #[error("chunks cannot be served to peers")]
    Swarm(#[from] shoal_p2p::Error),
}

/// Opens the peer port.
///
/// # Errors
/// See [`PeersError`].
pub async fn serve_peers(
    config: &Config,
    credentials: Credentials,
    keys: &Keys,
    origin: Origin,
    registry: &mut Registry,
) -> Result<Swarm, PeersError> {
    let address = config.peer_address();
    let advertise = look_up(&address).await.ok_or(PeersError::Advertise(address))?;
    let discovery = config.discovery.enabled.then(|| shoal_p2p::DiscoveryConfig {
        listen: config.discovery.listen,
        network_key: keys.network,
        bootstrap: Vec::new(),
        mdns: config.discovery.mdns,
        memory: None, // the other nodes are in the metadata
    });
    let config = shoal_p2p::Config {
        credentials,
        listen: config.peer.listen,
        advertise,
        zone: config.node.zone.clone(),
        role: PeerRole::Origin,
        ticket_keys: TicketKeys::new(keys.ring.ticket_keys()),
        discovery,
        bulk: config.peer.bulk,
    };
    Ok(Swarm::start(config, Arc::new(origin), registry).await?)
}

/// Tells the swarm who the nodes are, and it and all agents who is no member any more, whenever that
/// changes. Runs until it is dropped.
pub async fn follow_members(raft: Raft, swarm: Swarm, desk: OrderDesk) {
    let mut events = raft.events();
    let mut known = BTreeMap::new();
    loop {
        // First, since names can take their time.
        match raft.local().query().expelled(now()) {
            Ok(expelled) => {
                desk.set_expelled(&expelled);
                swarm.set_expelled(expelled);
            }
            Err(error) => warn!(%error, "who was removed cannot be read"),
        }
        match raft.local().query().nodes() {
            Ok(nodes) => {
                let mut found = BTreeMap::new();
                let members = nodes.iter().map(|node| node.discovery_address.clone()).collect();
                swarm.set_bootstrap(members).await;
                for node in nodes {
                    if let Some(address) = look_up(&node.peer_address).await {
                        found.insert(node.peer, address);
                    } else {
                        warn!(node = %node.id, address = node.peer_address, "no such address");
                    }
                }
                if found != known {
                    let list = found.iter().map(|(&peer, &address)| NodeAddress { peer, address });
                    swarm.set_nodes(list.collect()).await;
                    known = found;
                }
            }
            Err(error) => warn!(%error, "the nodes cannot be read"),
        }
        let changed = async {
            loop {
                match events.recv().await {
                    Ok(Event::MembersChanged | Event::AgentsChanged | Event::AllChanged)
                    | Err(RecvError::Lagged(_)) => {
                        return;
                    }
                    Ok(_) => {}
                    // The node stops.
                    Err(RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        // The end of the wait is as good a reason to look again.
        let _ = tokio::time::timeout(LOOKUP_INTERVAL, changed).await;
    }
}

async fn look_up(address: &str) -> Option<SocketAddr> {
    tokio::net::lookup_host(address).await.ok()?.next()
}
