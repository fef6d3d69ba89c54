//! Finds peers without any node: by Kademlia, by mDNS in the rack, from what earlier runs knew.
//!
//! Non-goals: bytes, which go over QUIC; trust, which the peers' certificates give. A member that
//! lies about its address costs whoever believes it one failed dial.

mod memory;
mod network;
mod seeker;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use shoal_content::RecipeId;
use shoal_swarm::Contact;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::identity::KeyPair;
use crate::metrics::Metrics;
use seeker::Seeker;

/// Commands waiting for the network's task. What does not fit is lost: it is repeated, or a hint.
const COMMANDS_MAX: usize = 4096;
/// Contacts found and not yet taken.
const FOUND_MAX: usize = 1024;

/// How peers find each other without nodes.
#[derive(Debug, Clone)]
pub struct DiscoveryConfig {
    /// TCP.
    pub listen: SocketAddr,
    /// The cluster's pre-shared key.
    pub network_key: [u8; 32],
    /// `HOST:PORT` or multiaddrs of members, nodes for instance.
    pub bootstrap: Vec<String>,
    /// Ask the local network by multicast.
    pub mdns: bool,
    /// Where members' addresses are kept for the next run.
    pub memory: Option<PathBuf>,
}

#[derive(Debug)]
enum Command {
    /// This process has some of the recipe, or soon will.
    Offer(RecipeId),
    Withdraw(RecipeId),
    /// Look for members that offer it, until [`Command::Rest`].
    Seek(RecipeId),
    Rest(RecipeId),
    Bootstrap(Vec<String>),
    /// This host has another address.
    Moved(IpAddr),
}

/// A member that offers a recipe.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) recipe: RecipeId,
    pub(crate) contact: Contact,
}

/// The running network; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Discovery {
    commands: mpsc::Sender<Command>,
    found: broadcast::Sender<Found>,
    port: u16,
}

impl Discovery {
    /// Joins the network; the rest runs in `tasks` until `cancel`.
    pub(crate) async fn start(
        config: DiscoveryConfig,
        key: &KeyPair,
        quic: SocketAddr,
        metrics: Metrics,
        tasks: &TaskTracker,
        cancel: CancellationToken,
    ) -> Result<Self, crate::Error> {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let found = broadcast::Sender::new(FOUND_MAX);
        let mut seed = key.seed()?;
        let seeker = Seeker::join(config, &mut seed, quic, metrics, found.clone()).await?;
        let port = seeker.port();
        tasks.spawn(seeker.run(inbox, cancel));
        Ok(Self { commands, found, port })
    }

    /// The TCP port on which other members reach this one.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) async fn moved(&self, ip: IpAddr) {
        let _ = self.commands.send(Command::Moved(ip)).await;
    }

    pub(crate) fn found(&self) -> broadcast::Receiver<Found> {
        self.found.subscribe()
    }

    pub(crate) fn offer(&self, recipe: RecipeId) {
        let _ = self.commands.try_send(Command::Offer(recipe));
    }

    pub(crate) fn withdraw(&self, recipe: RecipeId) {
        let _ = self.commands.try_send(Command::Withdraw(recipe));
    }

    pub(crate) fn seek(&self, recipe: RecipeId) {
        let _ = self.commands.try_send(Command::Seek(recipe));
    }

    pub(crate) fn rest(&self, recipe: RecipeId) {
        let _ = self.commands.try_send(Command::Rest(recipe));
    }

    pub(crate) async fn bootstrap(&self, addresses: Vec<String>) {
        let _ = self.commands.send(Command::Bootstrap(addresses)).await;
    }
}
