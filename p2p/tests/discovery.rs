//! Peers that find each other without any node: `set_nodes` is never called here.

mod cluster;

use std::path::PathBuf;
use std::time::Duration;

use shoal_content::{Recipe, RecipeId};
use shoal_p2p::DiscoveryConfig;

use cluster::{Cluster, DEADLINE, Process, content, fetch, fill, holds_all};

const NETWORK_KEY: [u8; 32] = [7; 32];

fn network(bootstrap: &[&Process]) -> DiscoveryConfig {
    let address = |process: &&Process| process.swarm.discovery_address().unwrap().to_string();
    DiscoveryConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        network_key: NETWORK_KEY,
        bootstrap: bootstrap.iter().map(address).collect(),
        mdns: false,
        memory: None,
    }
}

/// A member that has everything, and the content.
async fn seed(
    cluster: &Cluster,
    network: DiscoveryConfig,
) -> (Process, RecipeId, Vec<bytes::Bytes>) {
    let seed = cluster.start_member(network).await;
    let (recipe, id, contents) = content(64);
    fill(&*seed.store, &recipe, id, &contents).await;
    seed.swarm.announce(id).await.unwrap();
    (seed, id, contents)
}

async fn gets_all(cluster: &Cluster, process: &Process, id: RecipeId, contents: &[bytes::Bytes]) {
    let done = fetch(cluster, process, id).await;
    assert_eq!(done.bytes_by_node.len(), 0);
    holds_all(&*process.store, id, contents).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_share_an_image_with_no_node_alive() {
    let cluster = Cluster::found(1);
    let (seed, id, contents) = seed(&cluster, network(&[])).await;
    let agent = cluster.start_member(network(&[&seed])).await;
    gets_all(&cluster, &agent, id, &contents).await;
    assert!(agent.metric("shoal_discovery_contacts_total") >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_is_found_through_a_member_that_does_not_have_it() {
    let cluster = Cluster::found(1);
    let middle = cluster.start_member(network(&[])).await;
    let (_seed, id, contents) = seed(&cluster, network(&[&middle])).await;
    let agent = cluster.start_member(network(&[&middle])).await;
    gets_all(&cluster, &agent, id, &contents).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_an_earlier_run_are_found_again_without_being_named() {
    let cluster = Cluster::found(1);
    let (seed, id, contents) = seed(&cluster, network(&[])).await;
    let folder = tempfile::tempdir().unwrap();
    let memory: Option<PathBuf> = Some(folder.path().join("members"));
    let first = DiscoveryConfig { memory: memory.clone(), ..network(&[&seed]) };
    let agent = cluster.start_member(first).await;
    gets_all(&cluster, &agent, id, &contents).await;
    agent.swarm.shutdown().await;
    let again = cluster.start_member(DiscoveryConfig { memory, ..network(&[]) }).await;
    gets_all(&cluster, &again, id, &contents).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_lacks_the_network_key_is_told_nothing() {
    let cluster = Cluster::found(1);
    let (seed, id, _contents) = seed(&cluster, network(&[])).await;
    let stranger =
        cluster.start_member(DiscoveryConfig { network_key: [8; 32], ..network(&[&seed]) }).await;
    let ticket = cluster.ticket(id, stranger.swarm.peer_id());
    assert!(stranger.swarm.recipe(id, ticket).await.is_err());
    assert_eq!(stranger.metric("shoal_discovery_contacts_total"), 0);
    assert_eq!(seed.metric("shoal_peer_connections"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_offers_what_it_lacks_does_not_stop_the_fetch() {
    let cluster = Cluster::found(1);
    let (seed, id, contents) = seed(&cluster, network(&[])).await;
    let liar = cluster.start_member(network(&[&seed])).await;
    let (recipe, ..): (std::sync::Arc<Recipe>, _, _) = content(64);
    // It begins to fetch, and so offers; without a ticket it never gets anything.
    let ticket = cluster.ticket(RecipeId::of(b"another"), liar.swarm.peer_id());
    let transfer = liar.swarm.fetch(id, recipe, ticket);
    let offered = async {
        while seed.swarm.status().peers.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, offered).await.unwrap();
    let agent = cluster.start_member(network(&[&liar])).await;
    gets_all(&cluster, &agent, id, &contents).await;
    assert_eq!(transfer.progress().borrow().chunks_done, 0);
}
