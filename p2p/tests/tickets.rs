//! Keys that tickets are checked with change while chunks move.

mod cluster;

use shoal_p2p::identity::KeyPair;
use shoal_p2p::{FetchError, PeerRole};

use cluster::{Cluster, DEADLINE, content, fill, holds_all, ticket_by, ticket_key};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_distrusted_ends_what_it_allowed_and_another_goes_on() {
    let cluster = Cluster::found(1);
    let origin = cluster.start(PeerRole::Origin).await;
    let (recipe, id, contents) = content(64);
    // Not all of it, so that nobody can be done.
    fill(&*origin.store, &recipe, id, &contents[..32]).await;
    let agent = cluster.start(PeerRole::Host).await;
    agent.swarm.set_nodes(vec![origin.address()]).await;
    let me = agent.swarm.peer_id();
    let old = cluster.ticket(id, me);
    let transfer = agent.swarm.fetch(id, recipe.clone(), old);
    let mut progress = transfer.progress();
    let half = progress.wait_for(|progress| progress.chunks_done == 32);
    tokio::time::timeout(DEADLINE, half).await.unwrap().unwrap();

    let new = KeyPair::generate().unwrap();
    for process in [&origin, &agent] {
        process.swarm.set_ticket_keys(vec![ticket_key(&new)]).await;
    }
    let ended = tokio::time::timeout(DEADLINE, transfer.wait()).await.unwrap();
    let error = ended.unwrap_err();
    assert!(matches!(error, FetchError::Distrusted) && error.is_retryable(), "{error}");
    drop(transfer);
    // Nobody who has nothing yet gets anything with it, and everything with one of the new key.
    let late = cluster.start(PeerRole::Host).await;
    late.swarm.set_nodes(vec![origin.address()]).await;
    let newcomer = late.swarm.peer_id();
    assert!(late.swarm.recipe(id, cluster.ticket(id, newcomer)).await.is_err());
    late.swarm.recipe(id, ticket_by(&new, id, newcomer)).await.unwrap();
    fill(&*origin.store, &recipe, id, &contents).await;
    let ticket = ticket_by(&new, id, me);
    let transfer = agent.swarm.fetch(id, recipe, ticket);
    let done = tokio::time::timeout(DEADLINE, transfer.wait()).await.unwrap().unwrap();
    assert_eq!(done.bytes_local, done.bytes_total / 2, "what was there is not fetched again");
    holds_all(&*agent.store, id, &contents).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_learns_of_a_key_late_is_shown_the_ticket_again() {
    let cluster = Cluster::found(1);
    let origin = cluster.start(PeerRole::Origin).await;
    let (recipe, id, contents) = content(8);
    fill(&*origin.store, &recipe, id, &contents).await;
    let agent = cluster.start(PeerRole::Host).await;
    agent.swarm.set_nodes(vec![origin.address()]).await;
    // Signed with a key that the origin has not heard of.
    let new = KeyPair::generate().unwrap();
    let ticket = ticket_by(&new, id, agent.swarm.peer_id());
    let transfer = agent.swarm.fetch(id, recipe, ticket);
    let linked = async {
        while origin.swarm.status().peers.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, linked).await.unwrap();
    assert_eq!(origin.metric("shoal_chunk_bytes_sent_total{to=\"agent\"}"), 0);
    origin.swarm.set_ticket_keys(vec![ticket_key(&new)]).await;
    tokio::time::timeout(DEADLINE, transfer.wait()).await.unwrap().unwrap();
    holds_all(&*agent.store, id, &contents).await;
}
