//! An agent that lies: it offers all that the cache in its data folder has whole, and gives other bytes.
//!
//! It is a program of its own because the shipped one hashes what it gives. It stands in for an agent
//! that is enrolled and fetched something, since nobody would ask it otherwise.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use async_trait::async_trait;
use bytes::Bytes;
use prometheus_client::registry::Registry;
use shoal_agent::cache::Cache;
use shoal_agent::config;
use shoal_agent::enrolment::DataFolder;
use shoal_agent::metrics::CacheMetrics;
use shoal_agent::ticket_keys;
use shoal_content::{Recipe, RecipeId};
use shoal_p2p::identity::{Credentials, KeyPair};
use shoal_p2p::{
    Bulk, ChunkSet, ChunkStore, Config, NodeAddress, PeerRole, StoreError, Swarm, TicketKeys,
};

/// A cache of which every bit reads as the other one.
#[derive(Debug)]
struct Lies(Cache);

#[async_trait]
impl ChunkStore for Lies {
    async fn recipe(&self, id: RecipeId) -> Result<Option<Arc<Recipe>>, StoreError> {
        ChunkStore::recipe(&self.0, id).await
    }

    async fn held(&self, id: RecipeId) -> Result<ChunkSet, StoreError> {
        ChunkStore::held(&self.0, id).await
    }

    async fn read(&self, id: RecipeId, index: u32) -> Result<Option<Bytes>, StoreError> {
        let content = ChunkStore::read(&self.0, id, index).await?;
        Ok(content.map(|content| content.iter().map(|byte| !byte).collect()))
    }

    async fn open(&self, id: RecipeId, recipe: Arc<Recipe>) -> Result<ChunkSet, StoreError> {
        ChunkStore::open(&self.0, id, recipe).await
    }

    async fn write(&self, id: RecipeId, index: u32, content: Bytes) -> Result<(), StoreError> {
        ChunkStore::write(&self.0, id, index, content).await
    }

    async fn complete(&self, id: RecipeId) -> Result<(), StoreError> {
        ChunkStore::complete(&self.0, id).await
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    // Fails only where a provider is installed already, which is what is wanted.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut arguments = std::env::args().skip(1);
    let mut argument = || arguments.next().context("usage: liar DATA_DIR ADDRESS:PORT");
    let folder = DataFolder::open(Path::new(&argument()?))?;
    let listen: SocketAddr = argument()?.parse()?;

    let enrolment = folder.enrolment()?.context("nobody joined a cluster there")?;
    let settings = config::Cache::default();
    let cache = Cache::open(&folder.cache_path(), &settings, CacheMetrics::default())?;
    let key = Arc::new(KeyPair::load_or_create(&folder.key_path())?);
    let authority = enrolment.authority_pem.clone();
    let config = Config {
        credentials: Credentials::new(key, &enrolment.certificate_pem, authority)?,
        listen,
        advertise: listen,
        zone: enrolment.zone.clone(),
        role: PeerRole::Host,
        ticket_keys: TicketKeys::new(ticket_keys::known(&folder, &enrolment)?),
        bulk: Bulk::Auto,
        discovery: None,
    };
    let store = Arc::new(Lies(cache.clone()));
    let swarm = Swarm::start(config, store, &mut Registry::default()).await?;
    let mut nodes = Vec::new();
    for node in folder.nodes()? {
        nodes.push(NodeAddress { peer: node.peer, address: node.peer_address.parse()? });
    }
    swarm.set_nodes(nodes).await;
    let whole = cache.complete();
    for &recipe in &whole {
        swarm.announce(recipe).await?;
    }
    println!("offers {} recipes", whole.len());
    std::future::pending().await
}
