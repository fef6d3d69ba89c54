//! The libp2p network of one cluster: who may be in it, and what its members say to each other.
//!
//! Invariants: only who knows the cluster's network key gets a word (pnet's pre-shared key below
//! noise); no chunk bytes travel here. Where a member's QUIC port is stands among the addresses
//! that identify carries, as `/ip4/…/udp/…/quic-v1`.
//! Specifications: libp2p pnet "Private Networks", noise, yamux, identify 1.0, kad-dht.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::core::Transport as _;
use libp2p::core::upgrade::Version;
use libp2p::identity::{Keypair, PublicKey};
use libp2p::kad::{self, store::MemoryStore, store::MemoryStoreConfig};
use libp2p::multiaddr::Protocol;
use libp2p::pnet::{PnetConfig, PreSharedKey};
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::{NetworkBehaviour, StreamProtocol, Swarm};
use libp2p::{Multiaddr, SwarmBuilder, identify, mdns, noise, ping, tcp, yamux};
use shoal_content::PeerId;

/// Recipes that one process offers at once; those it used last.
pub(super) const OFFERS_MAX: usize = 1024;
/// What one process keeps for others.
const PROVIDER_KEYS_MAX: usize = 64 * 1024;
/// Providers kept, and asked for, for one recipe.
const PROVIDERS_PER_KEY_MAX: usize = 20;
const PROVIDER_TTL: Duration = Duration::from_secs(15 * 60);
const PROVIDER_INTERVAL: Duration = Duration::from_secs(5 * 60);
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECTIONS_MAX: u32 = 256;
const CONNECTIONS_PENDING_MAX: u32 = 64;
const CONNECTIONS_PER_PEER_MAX: u32 = 2;
const ADDRESSES_CACHED: usize = 1024;
const IDENTIFY_PROTOCOL: &str = "/shoal/1";
const KAD_PROTOCOL: StreamProtocol = StreamProtocol::new("/shoal/kad/1");

#[derive(NetworkBehaviour)]
pub(super) struct Network {
    limits: connection_limits::Behaviour,
    pub(super) identify: identify::Behaviour,
    pub(super) kad: kad::Behaviour<MemoryStore>,
    ping: ping::Behaviour,
    pub(super) mdns: Toggle<mdns::tokio::Behaviour>,
}

/// Why the network could not be joined, in libp2p's words.
pub(super) type BuildError = Box<dyn std::error::Error + Send + Sync>;

/// A member of the network under this process's own Ed25519 key. It does not listen yet.
pub(super) fn build(
    seed: &mut [u8; 32],
    network_key: [u8; 32],
    with_mdns: bool,
) -> Result<Swarm<Network>, BuildError> {
    let key = Keypair::ed25519_from_bytes(seed)?;
    let network = PnetConfig::new(PreSharedKey::new(network_key));
    let transport = move |key: &Keypair| -> Result<_, BuildError> {
        let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
        Ok(tcp
            .and_then(move |socket, _| network.handshake(socket))
            .upgrade(Version::V1Lazy)
            .authenticate(noise::Config::new(key)?)
            .multiplex(yamux::Config::default()))
    };
    let behaviour = move |key: &Keypair| Network::new(key, with_mdns);
    let swarm = SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_other_transport(transport)?
        .with_behaviour(behaviour)?
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE_TIMEOUT))
        .build();
    Ok(swarm)
}

impl Network {
    fn new(key: &Keypair, with_mdns: bool) -> Result<Self, BuildError> {
        let me = key.public().to_peer_id();
        let mdns = if with_mdns {
            Some(mdns::tokio::Behaviour::new(mdns::Config::default(), me)?)
        } else {
            None
        };
        let limits = ConnectionLimits::default()
            .with_max_established(Some(CONNECTIONS_MAX))
            .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER_MAX))
            .with_max_pending_incoming(Some(CONNECTIONS_PENDING_MAX))
            .with_max_pending_outgoing(Some(CONNECTIONS_PENDING_MAX));
        let identify = identify::Config::new(IDENTIFY_PROTOCOL.to_owned(), key.public())
            .with_agent_version(concat!("shoal/", env!("CARGO_PKG_VERSION")).to_owned())
            .with_cache_size(ADDRESSES_CACHED)
            .with_push_listen_addr_updates(true);
        Ok(Self {
            limits: connection_limits::Behaviour::new(limits),
            identify: identify::Behaviour::new(identify),
            kad: table(me),
            ping: ping::Behaviour::default(),
            mdns: mdns.into(),
        })
    }
}

fn table(me: libp2p::PeerId) -> kad::Behaviour<MemoryStore> {
    let mut config = kad::Config::new(KAD_PROTOCOL);
    config
        .set_query_timeout(QUERY_TIMEOUT)
        .set_provider_record_ttl(Some(PROVIDER_TTL))
        .set_provider_publication_interval(Some(PROVIDER_INTERVAL))
        // Nothing but provider records is stored: a value would be somebody's free memory.
        .set_record_filtering(kad::StoreInserts::FilterBoth);
    if let Some(copies) = NonZeroUsize::new(PROVIDERS_PER_KEY_MAX) {
        config.set_replication_factor(copies);
    }
    let store = MemoryStoreConfig {
        max_records: 0,
        max_value_bytes: 0,
        max_providers_per_key: PROVIDERS_PER_KEY_MAX,
        max_provided_keys: PROVIDER_KEYS_MAX,
    };
    let mut table = kad::Behaviour::with_config(me, MemoryStore::with_config(me, store), config);
    table.set_mode(Some(kad::Mode::Server));
    table
}

/// The swarm's name of a member.
pub(super) fn peer(key: &PublicKey) -> Option<PeerId> {
    let key = key.clone().try_into_ed25519().ok()?;
    Some(PeerId::from_public_key(key.to_bytes()))
}

/// Where a member says that its QUIC port is.
pub(super) fn quic_address(addresses: &[Multiaddr]) -> Option<SocketAddr> {
    addresses.iter().find_map(|address| {
        let mut parts = address.iter();
        let ip = ip_of(&parts.next()?)?;
        match (parts.next()?, parts.next()?) {
            (Protocol::Udp(port), Protocol::QuicV1) => Some(SocketAddr::new(ip, port)),
            _ => None,
        }
    })
}

pub(super) fn quic_multiaddr(address: SocketAddr) -> Multiaddr {
    Multiaddr::from(address.ip()).with(Protocol::Udp(address.port())).with(Protocol::QuicV1)
}

pub(super) fn tcp_multiaddr(address: SocketAddr) -> Multiaddr {
    Multiaddr::from(address.ip()).with(Protocol::Tcp(address.port()))
}

/// The TCP address that a multiaddr begins with, where it has one.
pub(super) fn tcp_address(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = ip_of(&parts.next()?)?;
    match parts.next()? {
        Protocol::Tcp(port) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}

fn ip_of(part: &Protocol<'_>) -> Option<std::net::IpAddr> {
    match part {
        Protocol::Ip4(ip) => Some((*ip).into()),
        Protocol::Ip6(ip) => Some((*ip).into()),
        _ => None,
    }
}

/// An address from the settings: `HOST:PORT`, or a multiaddr of TCP.
///
/// # Errors
/// Where the host cannot be looked up.
pub(super) async fn resolve(text: &str) -> io::Result<Multiaddr> {
    if let Ok(address) = text.parse::<Multiaddr>() {
        return Ok(address);
    }
    let found = tokio::net::lookup_host(text).await?.next();
    found.map(tcp_multiaddr).ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_one_name_in_both_worlds() {
        let mine = crate::identity::KeyPair::generate().unwrap();
        let theirs = Keypair::ed25519_from_bytes(*mine.seed().unwrap()).unwrap();
        assert_eq!(peer(&theirs.public()), Some(mine.peer_id()));
    }

    #[test]
    fn the_quic_port_is_found_among_other_addresses() {
        let address: SocketAddr = "10.1.2.3:5002".parse().unwrap();
        let tcp = tcp_multiaddr("10.1.2.3:5003".parse().unwrap());
        assert_eq!(quic_address(&[tcp.clone(), quic_multiaddr(address)]), Some(address));
        assert_eq!(quic_address(std::slice::from_ref(&tcp)), None);
        assert_eq!(tcp_address(&tcp), Some("10.1.2.3:5003".parse().unwrap()));
    }
}
