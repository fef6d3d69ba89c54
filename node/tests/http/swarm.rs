//! The node as the swarm's origin: a peer with a ticket gets everything, one without gets nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prometheus_client::registry::Registry;
use reqwest::{Method, StatusCode};
use serde_json::json;
use shoal_api::{AgentResolution, DiskGrant};
use shoal_content::{Recipe, RecipeId, Ticket, Timestamp, Zone};
use shoal_p2p::identity::Credentials;
use shoal_p2p::{
    Bulk, ChunkStore, Config, MemoryStore, NodeAddress, PeerRole, Swarm, TicketKey, TicketKeys,
};
use tokio::time::{Instant, timeout};

use super::disks::{create_image, make_disk, upload};
use super::members::Agent;
use super::node::{DEADLINE, Node, read};
use super::wait::{level_raised, until};

/// Whoever would be let in has an answer by then.
const SOON: Duration = Duration::from_secs(5);

pub async fn peer(agent: Agent, store: Arc<MemoryStore>) -> Result<Swarm> {
    let keys = agent.enrolment.ticket_keys.iter().map(|key| {
        let mut public = [0; 32];
        hex::decode_to_slice(&key.public_key, &mut public)?;
        Ok(TicketKey { public, until: key.until_ms.map(Timestamp::from_millis) })
    });
    let keys: Result<Vec<TicketKey>> = keys.collect();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = Config {
        credentials: Credentials::new(
            Arc::new(agent.key),
            &agent.enrolment.certificate_pem,
            agent.enrolment.authority_pem,
        )?,
        listen: any,
        advertise: any,
        zone: Zone::default(),
        role: PeerRole::Host,
        ticket_keys: TicketKeys::new(keys?),
        discovery: None,
        bulk: Bulk::default(),
    };
    let swarm = Swarm::start(config, store, &mut Registry::default()).await?;
    let nodes: Result<Vec<_>> = agent
        .enrolment
        .nodes
        .iter()
        .map(|node| Ok(NodeAddress { peer: node.peer, address: node.peer_address.parse()? }))
        .collect();
    swarm.set_nodes(nodes?).await;
    Ok(swarm)
}

pub async fn granted(
    node: &Node,
    agent: &Agent,
    wanted: &serde_json::Value,
) -> Result<(DiskGrant, Ticket)> {
    let asked = agent.request(node, Method::POST, "resolve")?.json(wanted);
    let found: AgentResolution = read(asked.send().await?).await?;
    let disk = found.disk.context("no disk")?;
    let ticket = Ticket::from_bytes(&STANDARD.decode(&disk.ticket)?)?;
    Ok((disk, ticket))
}

/// A connection that both sides opened at once may be cut; a client asks again.
pub async fn recipe_of(swarm: &Swarm, id: RecipeId, ticket: &Ticket) -> Result<Arc<Recipe>> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match timeout(DEADLINE, swarm.recipe(id, ticket.clone())).await? {
            Ok(recipe) => return Ok(recipe),
            Err(error) => ensure!(Instant::now() < deadline, "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_gets_a_disk_with_a_ticket_and_nothing_without() -> Result<()> {
    let node = Node::start().await?;
    let file = make_disk(node.path(), "swarmed", 2)?;
    let image = create_image(&node, "zedge/swarmed").await?;
    upload(&node, image, &file, "1").await?;
    let (agent, thief) =
        (Agent::enrol(&node, "host-1").await?, Agent::enrol(&node, "host-2").await?);
    let wanted = json!({ "reference": "zedge/swarmed:1" });
    let (disk, ticket) = granted(&node, &agent, &wanted).await?;
    let (_, own) = granted(&node, &thief, &wanted).await?;

    let store = Arc::new(MemoryStore::default());
    let swarm = peer(agent, Arc::clone(&store)).await?;
    let recipe = recipe_of(&swarm, disk.recipe, &ticket).await?;
    ensure!(recipe.length() == disk.virtual_size_bytes);
    let transfer = swarm.fetch(disk.recipe, Arc::clone(&recipe), ticket.clone());
    timeout(DEADLINE, transfer.wait()).await??;
    for (index, chunk) in recipe.chunks().iter().enumerate() {
        let content = store.read(disk.recipe, index as u32).await?.context("a chunk is missing")?;
        ensure!(chunk.id.verifies(&content), "chunk {index} is something else");
    }

    // Somebody else's ticket is no ticket.
    let other = peer(thief, Arc::default()).await?;
    for _ in 0..3 {
        let refused = timeout(DEADLINE, other.recipe(disk.recipe, ticket.clone())).await?;
        ensure!(refused.is_err(), "the recipe went to a peer without a right to it");
    }
    // It was the ticket, not the way there.
    recipe_of(&other, disk.recipe, &own).await?;
    swarm.shutdown().await;
    other.shutdown().await;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_agent_loses_the_connections_that_stand_and_its_ticket_is_worth_nothing()
-> Result<()> {
    let node = Node::start().await?;
    level_raised(&node).await?;
    let file = make_disk(node.path(), "cut", 2)?;
    let image = create_image(&node, "zedge/cut").await?;
    upload(&node, image, &file, "1").await?;
    let (gone, stays) =
        (Agent::enrol(&node, "host-1").await?, Agent::enrol(&node, "host-2").await?);
    let wanted = json!({ "reference": "zedge/cut:1" });
    let (disk, ticket) = granted(&node, &gone, &wanted).await?;
    let (_, other_ticket) = granted(&node, &stays, &wanted).await?;
    let (gone, stays) = (peer(gone, Arc::default()).await?, peer(stays, Arc::default()).await?);
    recipe_of(&gone, disk.recipe, &ticket).await?;
    recipe_of(&stays, disk.recipe, &other_ticket).await?;
    ensure!(!gone.status().peers.is_empty(), "there is no connection to cut");

    let removed = node.request(Method::DELETE, "agents/host-1").send().await?;
    ensure!(removed.status() == StatusCode::NO_CONTENT, "{removed:?}");
    until("the connection of who was removed to be cut", async || {
        Ok(gone.status().peers.is_empty().then_some(()))
    })
    .await?;
    for _ in 0..3 {
        let asked = timeout(SOON, gone.recipe(disk.recipe, ticket.clone())).await;
        ensure!(!matches!(asked, Ok(Ok(_))), "it was let in again");
    }
    // Who was not removed goes on.
    recipe_of(&stays, disk.recipe, &other_ticket).await?;
    gone.shutdown().await;
    stays.shutdown().await;
    node.server.stop().await
}
