//! Where the nodes' peer ports are: the names in the present list, looked up again and again.
//!
//! Of a name's addresses, those count that the peer port can send to.
//!
//! Invariants: one task tells the swarm, so what is looked up last counts; a node that is still in
//! the list and whose name leads nowhere for now stays where it was. Non-goal: who the nodes are;
//! a node says so with the orders.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use shoal_api::NodeAddress;
use shoal_content::PeerId;
use shoal_p2p::Swarm;
use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::warn;

use crate::advertise::is_within_reach;
use crate::blocking;
use crate::enrolment::DataFolder;

/// Names are looked up again this often, since a node can move and a name server can be away.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(30);
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

type ByPeer = BTreeMap<PeerId, SocketAddr>;

/// Keeps the swarm's nodes.
#[derive(Debug)]
pub struct Addresses {
    swarm: Swarm,
    lists: watch::Receiver<Vec<NodeAddress>>,
    /// What the peer port is bound to.
    listen: SocketAddr,
    /// What the swarm was told last.
    told: ByPeer,
}

impl Addresses {
    /// `listen` is what the peer port is bound to.
    pub fn new(swarm: Swarm, lists: watch::Receiver<Vec<NodeAddress>>, listen: SocketAddr) -> Self {
        Self { swarm, lists, listen, told: ByPeer::new() }
    }

    /// Looks up the list of now, and tells the swarm where that comes to something else.
    pub async fn look_up(&mut self) {
        let list = self.lists.borrow().clone();
        let found = found(&list, &self.told, self.listen).await;
        if found == self.told {
            return;
        }
        let nodes = found.iter().map(|(&peer, &address)| shoal_p2p::NodeAddress { peer, address });
        self.swarm.set_nodes(nodes.collect()).await;
        self.told = found;
    }

    /// Does so at each change and in between, and keeps each new list in `folder`. Runs until nobody
    /// can bring another list.
    pub async fn follow(mut self, folder: Arc<DataFolder>) {
        loop {
            match timeout(LOOKUP_INTERVAL, self.lists.changed()).await {
                Ok(Ok(())) => self.keep(&folder).await,
                Ok(Err(_)) => return,
                // The end of the wait is as good a reason to look again.
                Err(_) => {}
            }
            self.look_up().await;
        }
    }

    /// Takes what of a new list needs no looking up.
    async fn keep(&self, folder: &Arc<DataFolder>) {
        let list = self.lists.borrow().clone();
        self.swarm.set_bootstrap(members(&list)).await;
        let folder = Arc::clone(folder);
        if let Some(Err(error)) = blocking(move || folder.save_nodes(&list)).await {
            warn!(%error, "the list of nodes could not be kept");
        }
    }
}

/// Where the nodes are members of the discovery network.
pub fn members(nodes: &[NodeAddress]) -> Vec<String> {
    nodes.iter().map(|node| node.discovery_address.clone()).collect()
}

/// Where each of `list` is. One that was at one of its addresses before is there still.
async fn found(list: &[NodeAddress], before: &ByPeer, listen: SocketAddr) -> ByPeer {
    let all = join_all(list.iter().map(|node| lookup(&node.peer_address))).await;
    let mut found = ByPeer::new();
    for (node, mut addresses) in list.iter().zip(all) {
        addresses.retain(|address| is_within_reach(listen, *address));
        if addresses.is_empty() {
            warn!(node = %node.id, address = node.peer_address, "a node's address leads nowhere");
        }
        let stays = |at: &&SocketAddr| addresses.is_empty() || addresses.contains(at);
        let address = before.get(&node.peer).filter(stays).or(addresses.first());
        found.extend(address.map(|&address| (node.peer, address)));
    }
    found
}

/// All addresses of HOST:PORT; none where it leads nowhere, or nobody says so in time.
pub(crate) async fn lookup(name: &str) -> Vec<SocketAddr> {
    match timeout(LOOKUP_TIMEOUT, lookup_host(name)).await {
        Ok(Ok(found)) => found.collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use shoal_content::{NodeId, Zone};

    use super::*;

    fn peer(seed: u8) -> PeerId {
        PeerId::from_public_key([seed; 32])
    }

    fn node(seed: u8, peer_address: &str) -> NodeAddress {
        NodeAddress {
            id: NodeId::new(u64::from(seed)),
            name: format!("node-{seed}"),
            peer: peer(seed),
            zone: Zone::default(),
            api_url: String::new(),
            peer_address: peer_address.to_owned(),
            discovery_address: String::new(),
        }
    }

    fn by_peer(all: &[(u8, &str)]) -> ByPeer {
        all.iter().map(|(seed, address)| (peer(*seed), address.parse().unwrap())).collect()
    }

    #[tokio::test]
    async fn a_node_that_moved_is_found_and_one_without_an_address_stays_where_it_was() {
        let before = by_peer(&[(1, "127.0.0.1:1"), (2, "127.0.0.1:2"), (9, "127.0.0.1:9")]);
        // Without a port, a name leads nowhere at once.
        let list = [node(1, "127.0.0.1:11"), node(2, "nowhere"), node(3, "nowhere")];
        let listen = "0.0.0.0:5002".parse().unwrap();
        let found_now = found(&list, &before, listen).await;
        assert_eq!(found_now, by_peer(&[(1, "127.0.0.1:11"), (2, "127.0.0.1:2")]));
        // The name of the third leads somewhere when it is looked up again.
        let list = [node(1, "127.0.0.1:11"), node(2, "nowhere"), node(3, "127.0.0.1:3")];
        let all = by_peer(&[(1, "127.0.0.1:11"), (2, "127.0.0.1:2"), (3, "127.0.0.1:3")]);
        assert_eq!(found(&list, &found_now, listen).await, all);
        // What the port cannot send to is no address of a node's.
        let list = [node(1, "[::1]:11")];
        assert_eq!(found(&list, &ByPeer::new(), listen).await, ByPeer::new());
        let both = found(&list, &ByPeer::new(), "[::]:5002".parse().unwrap()).await;
        assert_eq!(both, by_peer(&[(1, "[::1]:11")]));
    }
}
