//! Real QUIC on loopback: one origin, several agents, and people who should get nothing.

mod cluster;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use shoal_p2p::PeerRole;

use cluster::{CHUNK_BYTES, Cluster, DEADLINE, content, fetch, fill, holds_all};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_swarm_takes_about_one_copy_from_the_origin() {
    let cluster = Cluster::found(1);
    let origin = cluster.start(PeerRole::Origin).await;
    let (recipe, id, contents) = content(256);
    fill(&*origin.store, &recipe, id, &contents).await;
    let mut agents = Vec::new();
    for _ in 0..4 {
        let agent = cluster.start(PeerRole::Host).await;
        agent.swarm.set_nodes(vec![origin.address()]).await;
        agents.push(agent);
    }
    let all = futures::future::join_all(agents.iter().map(|a| fetch(&cluster, a, id))).await;
    let mut from_node = BTreeMap::new();
    for (agent, progress) in agents.iter().zip(&all) {
        holds_all(&*agent.store, id, &contents).await;
        from_node.insert(agent.swarm.peer_id(), progress.bytes_by_node.values().sum::<u64>());
    }
    let sent = origin.metric("shoal_chunk_bytes_sent_total{to=\"agent\"}");
    let copies = sent as f64 / recipe.chunk_bytes() as f64;
    assert!((1.0..1.5).contains(&copies), "{copies} copies left the origin: {from_node:?}");
    for agent in &agents {
        agent.swarm.shutdown().await;
    }
    origin.swarm.shutdown().await;
}

/// As the layers of a container are, by a host that has just started.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recipes_that_are_asked_for_at_once_come_over_one_connection() {
    let cluster = Cluster::found(1);
    let origin = cluster.start(PeerRole::Origin).await;
    let mut wanted = Vec::new();
    for chunks in 1..=16 {
        let (recipe, id, contents) = content(chunks);
        fill(&*origin.store, &recipe, id, &contents).await;
        wanted.push((id, recipe));
    }
    for _ in 0..4 {
        let agent = cluster.start(PeerRole::Host).await;
        agent.swarm.set_nodes(vec![origin.address()]).await;
        let asked = wanted.iter().map(|&(id, _)| {
            let ticket = cluster.ticket(id, agent.swarm.peer_id());
            agent.swarm.recipe(id, ticket)
        });
        let got = futures::future::try_join_all(asked).await.unwrap();
        assert!(got.iter().zip(&wanted).all(|(got, (_, wanted))| got == wanted));
        agent.swarm.shutdown().await;
    }
    origin.swarm.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_liar_is_banned_and_the_fetch_ends_well() {
    let cluster = Cluster::found(1);
    let origin = cluster.start(PeerRole::Origin).await;
    let (recipe, id, contents) = content(512);
    fill(&*origin.store, &recipe, id, &contents).await;
    let liar = cluster.start(PeerRole::Host).await;
    let wrong: Vec<Bytes> = contents.iter().map(|_| Bytes::from(vec![7; CHUNK_BYTES])).collect();
    fill(&*liar.store, &recipe, id, &wrong).await;
    liar.swarm.set_nodes(vec![origin.address()]).await;
    liar.swarm.announce(id).await.unwrap();
    let linked = async {
        while origin.swarm.status().peers.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, linked).await.unwrap();
    let agent = cluster.start(PeerRole::Host).await;
    agent.swarm.set_nodes(vec![origin.address()]).await;
    fetch(&cluster, &agent, id).await;
    holds_all(&*agent.store, id, &contents).await;
    assert_eq!(agent.metric("shoal_peer_bans_total{reason=\"wrong_content\"}"), 1);
    let banned = agent.swarm.status().banned;
    assert_eq!(banned[&liar.swarm.peer_id()].reason, "wrong_content", "{banned:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_another_address_tells_it_to_all_and_goes_on() {
    let cluster = Cluster::found(1);
    let origin = cluster.start(PeerRole::Origin).await;
    let (recipe, id, contents) = content(64);
    fill(&*origin.store, &recipe, id, &contents).await;
    let agent = cluster.start(PeerRole::Host).await;
    agent.swarm.set_nodes(vec![origin.address()]).await;
    fetch(&cluster, &agent, id).await;
    let (before, moved) = (agent.swarm.local_address(), "127.0.0.2".parse().unwrap());
    agent.swarm.set_address(moved).await;
    let after = agent.swarm.local_address();
    assert_eq!((after.ip(), after.port()), (moved, before.port()));
    // What it holds is offered anew, under that address.
    let told = async {
        while !origin.swarm.status().peers.iter().any(|peer| peer.address == after) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, told).await.unwrap();
    assert_eq!(origin.swarm.status().peers.len(), 1, "the old connection is gone");
    assert!(origin.swarm.status().banned.is_empty() && agent.swarm.status().banned.is_empty());
    let (recipe, id, contents) = content(65);
    fill(&*origin.store, &recipe, id, &contents).await;
    fetch(&cluster, &agent, id).await;
    holds_all(&*agent.store, id, &contents).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_the_unentitled_get_nothing() {
    let (cluster, foreign) = (Cluster::found(1), Cluster::found(2));
    let origin = cluster.start(PeerRole::Origin).await;
    let (recipe, id, contents) = content(4);
    fill(&*origin.store, &recipe, id, &contents).await;
    // A certificate of another cluster does not get through the handshake.
    let stranger = foreign.start(PeerRole::Host).await;
    stranger.swarm.set_nodes(vec![origin.address()]).await;
    let ticket = cluster.ticket(id, stranger.swarm.peer_id());
    assert!(stranger.swarm.recipe(id, ticket).await.is_err());
    // One of ours with somebody else's ticket gets neither the recipe nor a chunk.
    let agent = cluster.start(PeerRole::Host).await;
    agent.swarm.set_nodes(vec![origin.address()]).await;
    let ticket = cluster.ticket(id, stranger.swarm.peer_id());
    assert!(agent.swarm.recipe(id, ticket.clone()).await.is_err());
    let transfer = agent.swarm.fetch(id, recipe, ticket);
    let mut progress = transfer.progress();
    let refused = progress.wait_for(|progress| progress.chunks_done > 0);
    assert!(tokio::time::timeout(Duration::from_secs(3), refused).await.is_err());
    assert_eq!(origin.metric("shoal_chunk_bytes_sent_total{to=\"agent\"}"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_goes_on_among_peers_when_every_node_is_gone() {
    let cluster = Cluster::found(1);
    let origin = cluster.start(PeerRole::Origin).await;
    let (recipe, id, contents) = content(512);
    fill(&*origin.store, &recipe, id, &contents[..]).await;
    let holder = cluster.start(PeerRole::Host).await;
    holder.swarm.set_nodes(vec![origin.address()]).await;
    fetch(&cluster, &holder, id).await;
    let agent = cluster.start(PeerRole::Host).await;
    agent.swarm.set_nodes(vec![origin.address()]).await;
    let ticket = cluster.ticket(id, agent.swarm.peer_id());
    let transfer = agent.swarm.fetch(id, recipe, ticket);
    let mut progress = transfer.progress();
    // Whoever has met no peer before the last node goes has nobody to go on with.
    let began = progress.wait_for(|progress| !progress.bytes_by_peer.is_empty());
    tokio::time::timeout(DEADLINE, began).await.unwrap().unwrap();
    origin.swarm.shutdown().await;
    let done = tokio::time::timeout(DEADLINE, transfer.wait()).await.unwrap().unwrap();
    holds_all(&*agent.store, id, &contents).await;
    assert!(done.bytes_by_peer.contains_key(&holder.swarm.peer_id()));
}
