//! Under which address other members reach this host, where the settings do not say.
//!
//! That by which it reaches a node, or else the rest of the world: nodes may be away, and so may what
//! knows their names, and what is cached here is to be had all the same.
//!
//! Where this host has that address no longer, another one is told in its place.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use futures::future::join_all;
use shoal_api::NodeAddress;
use shoal_p2p::Swarm;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::nodes::addresses::lookup;

/// Nobody's (RFC 5737 and RFC 3849): whatever leads out of here leads there.
const ANYWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];
/// It is looked this often whether this host still has the address.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Connecting a UDP socket sends nothing, so that any port will do.
const ANY_PORT: u16 = 9;

/// The address of `listen` as others have it; `None` where nothing leads out of this host.
pub async fn found(listen: SocketAddr, known: &[NodeAddress]) -> Option<SocketAddr> {
    if !listen.ip().is_unspecified() {
        return Some(listen);
    }
    let nodes = join_all(known.iter().map(|node| lookup(&node.peer_address))).await;
    let own = |to: SocketAddr| Some(SocketAddr::new(way_out(listen, to).ok()?, listen.port()));
    if let Some(address) = nodes.into_iter().flatten().find_map(own) {
        return Some(address);
    }
    let address = ANYWHERE.iter().find_map(|ip| own(SocketAddr::new(*ip, ANY_PORT)))?;
    warn!(%address, "no node's address is known; others are told this one of this host");
    Some(address)
}

/// Tells others another address once this host has the one that they were told no longer. An address
/// that comes beside it changes nothing. Never returns.
pub async fn follow(swarm: Swarm, listen: SocketAddr, lists: watch::Receiver<Vec<NodeAddress>>) {
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let told = swarm.local_address();
        if is_own(told.ip()) {
            continue;
        }
        let known = lists.borrow().clone();
        let Some(address) = found(listen, &known).await.filter(|now| now.ip() != told.ip()) else {
            continue;
        };
        info!(before = %told, %address, "this host has another address; others are told");
        swarm.set_address(address.ip()).await;
    }
}

/// Whether this host has the address: else nothing can be bound to it (ip(7), `EADDRNOTAVAIL`).
fn is_own(ip: IpAddr) -> bool {
    let bound = UdpSocket::bind((ip, 0));
    bound.map_or_else(|error| error.kind() != io::ErrorKind::AddrNotAvailable, |_| true)
}

/// Whether a socket at `listen` can send to `to`.
pub fn is_within_reach(listen: SocketAddr, to: SocketAddr) -> bool {
    // One of IPv6 that is bound to no address takes both.
    listen.is_ipv4() == to.is_ipv4() || listen.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
}

/// This host's address on the way to `to`. Sends nothing.
fn way_out(listen: SocketAddr, to: SocketAddr) -> io::Result<IpAddr> {
    if !is_within_reach(listen, to) {
        return Err(io::ErrorKind::AddrNotAvailable.into());
    }
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use shoal_content::{NodeId, PeerId, Zone};

    use super::*;

    fn node(peer_address: &str) -> NodeAddress {
        NodeAddress {
            id: NodeId::new(1),
            name: "node".into(),
            peer: PeerId::from_public_key([1; 32]),
            zone: Zone::default(),
            api_url: String::new(),
            peer_address: peer_address.into(),
            discovery_address: String::new(),
        }
    }

    #[tokio::test]
    async fn the_address_on_the_way_to_a_node_is_told_whatever_the_socket_is_bound_to() {
        // Without a port, a name leads nowhere at once.
        let known = [node("nowhere"), node("127.0.0.1:9")];
        for (listen, expected) in [
            ("0.0.0.0:5002", "127.0.0.1:5002"),
            ("[::]:5002", "127.0.0.1:5002"),
            ("10.1.2.3:5002", "10.1.2.3:5002"),
        ] {
            let told = found(listen.parse().unwrap(), &known).await;
            assert_eq!(told, Some(expected.parse().unwrap()), "{listen}");
        }
    }

    #[test]
    fn an_address_is_its_hosts_while_something_can_be_bound_to_it() {
        assert!(is_own(Ipv4Addr::LOCALHOST.into()));
        assert!(!is_own(ANYWHERE[0]), "that is nobody's");
    }

    #[test]
    fn a_socket_of_one_kind_reaches_that_kind() {
        let reach =
            |listen: &str, to: &str| is_within_reach(listen.parse().unwrap(), to.parse().unwrap());
        assert!(reach("0.0.0.0:1", "10.0.0.1:1") && !reach("0.0.0.0:1", "[fd00::1]:1"));
        assert!(reach("[::]:1", "10.0.0.1:1") && reach("[::]:1", "[fd00::1]:1"));
        assert!(reach("[fd00::2]:1", "[fd00::1]:1") && !reach("[fd00::2]:1", "10.0.0.1:1"));
    }
}
