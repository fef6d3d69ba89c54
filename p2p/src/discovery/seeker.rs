//! The network's task: offers, searches, and what the members answer.
//!
//! Invariants: nothing here grows past a named limit; a search goes on, more and more rarely,
//! until somebody says that it may rest.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::StreamExt as _;
use libp2p::kad::{self, GetProvidersOk, QueryResult, RecordKey};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{DialError, Swarm, SwarmEvent};
use libp2p::{Multiaddr, PeerId, identify, mdns};
use rand::RngExt as _;
use shoal_content::RecipeId;
use shoal_swarm::Contact;
use tokio::sync::{broadcast, mpsc};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::memory::Memory;
use super::network::{self, Network, NetworkEvent, OFFERS_MAX};
use super::{Command, DiscoveryConfig, Found};
use crate::Error;
use crate::metrics::Metrics;

/// Searches under way at once.
const SEEKS_MAX: usize = 256;
const SEEK_INTERVAL_MIN: Duration = Duration::from_secs(2);
const SEEK_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Members whose QUIC address is remembered.
const CONTACTS_MAX: usize = 4096;
/// Members that are dialled because they offer something, until they say where their QUIC port is.
const AWAITED_MAX: usize = 256;
/// What time brings is looked at this often.
const STEP: Duration = Duration::from_millis(500);
/// Without a connection, bootstrap addresses are dialled again after this, then after twice as long each
/// time, on the average.
const BOOTSTRAP_PAUSE_MIN: Duration = Duration::from_secs(5);
const BOOTSTRAP_PAUSE_MAX: Duration = Duration::from_secs(60);
const BOOTSTRAP_MAX: usize = 64;
/// A name server that does not answer holds up all else that is done here for so long.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);
/// New members are told of all offers, but no more often than this.
const REPUBLISH_INTERVAL: Duration = Duration::from_secs(5);
const SAVE_INTERVAL: Duration = Duration::from_secs(10);
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Seek {
    next: Instant,
    pause: Duration,
}

/// When the bootstrap addresses are dialled.
#[derive(Debug)]
struct Bootstrap {
    next: Instant,
    pause: Duration,
}

impl Bootstrap {
    /// At once, and soon again.
    fn anew(now: Instant) -> Self {
        Self { next: now, pause: BOOTSTRAP_PAUSE_MIN }
    }

    /// Whether it is time. Then the next time is after about the pause: `share` of it, so that hosts which
    /// lost all others at once do not dial in step.
    fn is_due(&mut self, now: Instant, share: f64) -> bool {
        if self.next > now {
            return false;
        }
        self.next = now + self.pause.mul_f64(share);
        self.pause = (self.pause * 2).min(BOOTSTRAP_PAUSE_MAX);
        true
    }

    /// Somebody is connected: without that, it begins with short pauses.
    fn rest(&mut self) {
        self.pause = BOOTSTRAP_PAUSE_MIN;
    }
}

pub(super) struct Seeker {
    swarm: Swarm<Network>,
    address: SocketAddr,
    /// The peer port, as others are told.
    quic: SocketAddr,
    bootstrap: BTreeSet<String>,
    memory: Memory,
    metrics: Metrics,
    found: broadcast::Sender<Found>,
    /// The newest last.
    offers: VecDeque<RecipeId>,
    seeks: BTreeMap<RecipeId, Seek>,
    contacts: HashMap<PeerId, Contact>,
    awaited: HashMap<PeerId, BTreeSet<RecipeId>>,
    /// Somebody new may not know the offers.
    stale: bool,
    republish_at: Instant,
    dialling: Bootstrap,
    save_at: Instant,
}

impl Seeker {
    pub(super) async fn join(
        config: DiscoveryConfig,
        seed: &mut [u8; 32],
        quic: SocketAddr,
        metrics: Metrics,
        found: broadcast::Sender<Found>,
    ) -> Result<Self, Error> {
        let failed = |error| Error::Discovery { address: config.listen, error };
        let mut swarm = network::build(seed, config.network_key, config.mdns).map_err(failed)?;
        let port = listen(&mut swarm, config.listen).await.map_err(failed)?;
        let address = SocketAddr::new(quic.ip(), port);
        swarm.add_external_address(network::tcp_multiaddr(address));
        swarm.add_external_address(network::quic_multiaddr(quic));
        let memory = Memory::open(config.memory);
        for (peer, address) in memory.known() {
            swarm.behaviour_mut().kad.add_address(peer, address.clone());
        }
        let now = Instant::now();
        info!(member = %swarm.local_peer_id(), %address, "discovery is up");
        Ok(Self {
            swarm,
            address,
            quic,
            bootstrap: config.bootstrap.into_iter().take(BOOTSTRAP_MAX).collect(),
            memory,
            metrics,
            found,
            offers: VecDeque::new(),
            seeks: BTreeMap::new(),
            contacts: HashMap::new(),
            awaited: HashMap::new(),
            stale: false,
            republish_at: now,
            dialling: Bootstrap::anew(now),
            save_at: now,
        })
    }

    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(super) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Command>,
        cancel: CancellationToken,
    ) {
        let mut step = tokio::time::interval(STEP);
        step.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                Some(command) = inbox.recv() => self.obey(command),
                event = self.swarm.select_next_some() => self.hear(event),
                _ = step.tick() => self.advance().await,
            }
        }
        self.memory.save();
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Offer(recipe) => self.offer(recipe),
            Command::Withdraw(recipe) => {
                self.offers.retain(|offered| *offered != recipe);
                self.seeks.remove(&recipe);
                self.swarm.behaviour_mut().kad.stop_providing(&key(recipe));
            }
            Command::Seek(recipe) => {
                if self.seeks.len() < SEEKS_MAX && !self.seeks.contains_key(&recipe) {
                    let seek = Seek { next: Instant::now(), pause: SEEK_INTERVAL_MIN };
                    self.seeks.insert(recipe, seek);
                    self.search();
                }
            }
            Command::Rest(recipe) => {
                self.seeks.remove(&recipe);
            }
            Command::Bootstrap(addresses) => {
                let addresses: BTreeSet<String> =
                    addresses.into_iter().take(BOOTSTRAP_MAX).collect();
                if addresses != self.bootstrap {
                    self.bootstrap = addresses;
                    self.dialling = Bootstrap::anew(Instant::now());
                }
            }
            Command::Moved(ip) => self.move_to(ip),
        }
    }

    /// Members are told, and what is offered here is offered under the new address.
    fn move_to(&mut self, ip: IpAddr) {
        self.swarm.remove_external_address(&network::tcp_multiaddr(self.address));
        self.swarm.remove_external_address(&network::quic_multiaddr(self.quic));
        self.address.set_ip(ip);
        self.quic.set_ip(ip);
        self.swarm.add_external_address(network::tcp_multiaddr(self.address));
        self.swarm.add_external_address(network::quic_multiaddr(self.quic));
        let members: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        self.swarm.behaviour_mut().identify.push(members);
        self.stale = true;
        self.dialling = Bootstrap::anew(Instant::now());
    }

    fn offer(&mut self, recipe: RecipeId) {
        if self.offers.contains(&recipe) {
            return;
        }
        if self.offers.len() >= OFFERS_MAX
            && let Some(oldest) = self.offers.pop_front()
        {
            self.swarm.behaviour_mut().kad.stop_providing(&key(oldest));
        }
        self.offers.push_back(recipe);
        self.publish(recipe);
    }

    fn publish(&mut self, recipe: RecipeId) {
        if let Err(error) = self.swarm.behaviour_mut().kad.start_providing(key(recipe)) {
            debug!(%recipe, %error, "not offered");
        }
    }

    /// Asks for every recipe whose turn it is.
    fn search(&mut self) {
        let now = Instant::now();
        for (recipe, seek) in self.seeks.iter_mut().filter(|(_, seek)| seek.next <= now) {
            self.swarm.behaviour_mut().kad.get_providers(key(*recipe));
            seek.next = now + seek.pause;
            seek.pause = (seek.pause * 2).min(SEEK_INTERVAL_MAX);
        }
    }

    async fn advance(&mut self) {
        let now = Instant::now();
        if self.stale && self.republish_at <= now {
            self.stale = false;
            self.republish_at = now + REPUBLISH_INTERVAL;
            let offers: Vec<RecipeId> = self.offers.iter().copied().collect();
            offers.into_iter().for_each(|recipe| self.publish(recipe));
        }
        if self.swarm.connected_peers().next().is_some() {
            self.dialling.rest();
        } else if self.dialling.is_due(now, rand::rng().random_range(0.5..1.5)) {
            self.dial_bootstrap().await;
        }
        if self.save_at <= now {
            self.save_at = now + SAVE_INTERVAL;
            self.memory.save();
        }
        self.search();
    }

    async fn dial_bootstrap(&mut self) {
        for text in self.bootstrap.clone() {
            let found = tokio::time::timeout(LOOKUP_TIMEOUT, network::resolve(&text)).await;
            match found.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
                Ok(address) if network::tcp_address(&address) == Some(self.address) => {}
                Ok(address) => {
                    self.dial(DialOpts::unknown_peer_id().address(address).build());
                }
                Err(error) => debug!(address = text, %error, "a member cannot be looked up"),
            }
        }
        let known: Vec<(PeerId, Multiaddr)> = self.memory.known().cloned().collect();
        for (peer, address) in known {
            let options = DialOpts::peer_id(peer)
                .condition(PeerCondition::DisconnectedAndNotDialing)
                .addresses(vec![address]);
            self.dial(options.build());
        }
    }

    /// Whether an answer may come: it is dialled, or was before.
    fn dial(&mut self, options: DialOpts) -> bool {
        match self.swarm.dial(options) {
            Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => true,
            Err(error) => {
                debug!(%error, "a member is not dialled");
                false
            }
        }
    }

    fn hear(&mut self, event: SwarmEvent<NetworkEvent>) {
        match event {
            SwarmEvent::Behaviour(NetworkEvent::Identify(identify::Event::Received {
                peer_id,
                info,
                ..
            })) => self.identified(peer_id, &info),
            SwarmEvent::Behaviour(NetworkEvent::Kad(event)) => self.hear_table(event),
            SwarmEvent::Behaviour(NetworkEvent::Mdns(mdns::Event::Discovered(members))) => {
                for (peer, address) in members {
                    self.swarm.behaviour_mut().kad.add_address(&peer, address);
                }
            }
            SwarmEvent::OutgoingConnectionError { peer_id, error, .. } => {
                debug!(?peer_id, %error, "a member is not reached");
                if let Some(peer) = peer_id {
                    self.awaited.remove(&peer);
                }
            }
            SwarmEvent::ConnectionEstablished { .. } => self.count_connections(),
            SwarmEvent::ConnectionClosed { peer_id, num_established, .. } => {
                if num_established == 0 {
                    self.awaited.remove(&peer_id);
                }
                self.count_connections();
            }
            _ => {}
        }
    }

    fn count_connections(&self) {
        let connected = self.swarm.connected_peers().count();
        self.metrics.discovery_connections.set(connected as i64);
    }

    fn identified(&mut self, peer: PeerId, info: &identify::Info) {
        let tcp = info.listen_addrs.iter().find(|at| self.is_reachable(at));
        if let Some(address) = tcp {
            self.swarm.behaviour_mut().kad.add_address(&peer, address.clone());
            self.memory.remember(peer, address.clone());
        }
        let name = network::peer(&info.public_key);
        let Some((name, address)) = name.zip(network::quic_address(&info.listen_addrs)) else {
            return;
        };
        let contact = Contact { peer: name, address };
        if self.contacts.len() >= CONTACTS_MAX && !self.contacts.contains_key(&peer) {
            self.contacts.clear();
        }
        self.contacts.insert(peer, contact);
        for recipe in self.awaited.remove(&peer).unwrap_or_default() {
            self.report(recipe, contact);
        }
    }

    /// A loopback address means something only among processes of one host.
    fn is_reachable(&self, address: &Multiaddr) -> bool {
        network::tcp_address(address)
            .is_some_and(|at| !at.ip().is_loopback() || self.address.ip().is_loopback())
    }

    fn hear_table(&mut self, event: kad::Event) {
        match event {
            kad::Event::RoutingUpdated { is_new_peer: true, .. } => {
                self.stale = true;
                let soon = Instant::now();
                self.seeks.values_mut().for_each(|seek| {
                    seek.next = soon;
                    seek.pause = SEEK_INTERVAL_MIN;
                });
            }
            kad::Event::OutboundQueryProgressed {
                result:
                    QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { key, providers })),
                ..
            } => {
                let Some(recipe) = recipe_of(&key) else { return };
                for peer in providers {
                    self.provider(recipe, peer);
                }
            }
            _ => {}
        }
    }

    fn provider(&mut self, recipe: RecipeId, peer: PeerId) {
        if peer == *self.swarm.local_peer_id() {
            return;
        }
        if let Some(&contact) = self.contacts.get(&peer) {
            return self.report(recipe, contact);
        }
        if self.awaited.len() >= AWAITED_MAX && !self.awaited.contains_key(&peer) {
            return;
        }
        self.awaited.entry(peer).or_default().insert(recipe);
        // The table knows its address for as long as the search lasts.
        if !self.dial(DialOpts::peer_id(peer).build()) {
            // No event tells of it, and the places would run out.
            self.awaited.remove(&peer);
        }
    }

    fn report(&self, recipe: RecipeId, contact: Contact) {
        debug!(%recipe, peer = %contact.peer, address = %contact.address, "found");
        self.metrics.contacts_found.inc();
        // Nobody may be listening.
        let _ = self.found.send(Found { recipe, contact });
    }
}

/// Listens, and gives the port.
async fn listen(
    swarm: &mut Swarm<Network>,
    address: SocketAddr,
) -> Result<u16, network::BuildError> {
    swarm.listen_on(network::tcp_multiaddr(address))?;
    let listening = async {
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::NewListenAddr { address, .. } => {
                    if let Some(address) = network::tcp_address(&address) {
                        return Ok(address.port());
                    }
                }
                SwarmEvent::ListenerError { error, .. } => return Err(error),
                SwarmEvent::ListenerClosed { reason: Err(error), .. } => return Err(error),
                _ => {}
            }
        }
    };
    Ok(tokio::time::timeout(LISTEN_TIMEOUT, listening).await??)
}

fn key(recipe: RecipeId) -> RecordKey {
    RecordKey::new(recipe.as_bytes())
}

fn recipe_of(key: &RecordKey) -> Option<RecipeId> {
    Some(RecipeId::from_bytes(key.as_ref().try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_member_dials_less_and_less_often_until_it_has_one() {
        let mut now = Instant::now();
        let mut dialling = Bootstrap::anew(now);
        let mut pauses = |dialling: &mut Bootstrap, share: f64, count: usize| {
            let pause = |_| {
                assert!(dialling.is_due(now, share) && !dialling.is_due(now, share));
                let pause = dialling.next - now;
                now = dialling.next;
                pause.as_secs_f64()
            };
            (0..count).map(pause).collect::<Vec<f64>>()
        };
        assert_eq!(pauses(&mut dialling, 1.0, 6), [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]);
        assert_eq!(pauses(&mut dialling, 0.5, 2), [30.0, 30.0]);
        dialling.rest();
        assert_eq!(pauses(&mut dialling, 1.5, 2), [7.5, 15.0]);
    }
}
