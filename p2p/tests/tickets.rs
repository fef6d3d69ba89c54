//! Keys that tickets are checked with, members and authorities change while chunks move.

mod cluster;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use shoal_content::{ClusterId, Recipe, RecipeId};
use shoal_p2p::identity::{self, KeyPair, Role, Successor};
use shoal_p2p::{FetchError, PeerRole, Transfer};

use cluster::{Cluster, DEADLINE, Process, content, fill, holds_all, ticket_by, ticket_key};

/// Long enough for who is let in to get a recipe.
const SOON: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_distrusted_ends_what_it_allowed_and_another_goes_on() {
    let cluster = Cluster::found(1);
    let origin = cluster.start(PeerRole::Origin).await;
    let (recipe, id, contents) = content(64);
    // Not all of it, so that nobody can be done.
    fill(&*origin.store, &recipe, id, &contents[..32]).await;
    let agent = cluster.start(PeerRole::Host).await;
    let me = agent.swarm.peer_id();
    let transfer = half_way(&cluster, &origin, &agent, (id, &recipe)).await;

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

/// A transfer that has brought the 32 chunks that the origin holds of more.
async fn half_way(
    cluster: &Cluster,
    origin: &Process,
    agent: &Process,
    (id, recipe): (RecipeId, &Arc<Recipe>),
) -> Transfer {
    agent.swarm.set_nodes(vec![origin.address()]).await;
    let ticket = cluster.ticket(id, agent.swarm.peer_id());
    let transfer = agent.swarm.fetch(id, recipe.clone(), ticket);
    let mut progress = transfer.progress();
    let half = progress.wait_for(|progress| progress.chunks_done == 32);
    tokio::time::timeout(DEADLINE, half).await.unwrap().unwrap();
    transfer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_removed_is_cut_off_and_gets_nothing_with_a_good_ticket() {
    let cluster = Cluster::found(1);
    let origin = cluster.start(PeerRole::Origin).await;
    let (recipe, id, contents) = content(64);
    // Not all of it, so that nobody can be done.
    fill(&*origin.store, &recipe, id, &contents[..32]).await;
    let [removed, stays] = [(); 2].map(|()| cluster.start(PeerRole::Host));
    let (removed, stays) = (removed.await, stays.await);
    let mut transfers = Vec::new();
    for agent in [&removed, &stays] {
        transfers.push(half_way(&cluster, &origin, agent, (id, &recipe)).await);
    }
    let expelled = BTreeSet::from([removed.swarm.peer_id()]);
    for process in [&origin, &stays] {
        process.swarm.set_expelled(expelled.clone());
    }
    fill(&*origin.store, &recipe, id, &contents).await;
    let kept = transfers.pop().unwrap();
    tokio::time::timeout(DEADLINE, kept.wait()).await.unwrap().unwrap();
    let mut progress = transfers[0].progress();
    assert_eq!(progress.borrow_and_update().chunks_done, 32, "it was served");
    // Of this one it has nothing itself.
    let (other, other_id, other_contents) = content(3);
    fill(&*origin.store, &other, other_id, &other_contents).await;
    let ticket = cluster.ticket(other_id, removed.swarm.peer_id());
    let asked = removed.swarm.recipe(other_id, ticket.clone());
    let asked = tokio::time::timeout(SOON, asked).await;
    assert!(!matches!(asked, Ok(Ok(_))), "it was let in again");
    // Let in again, it goes on.
    for process in [&origin, &stays] {
        process.swarm.set_expelled(BTreeSet::new());
    }
    tokio::time::timeout(DEADLINE, transfers[0].wait()).await.unwrap().unwrap();
    let asked = removed.swarm.recipe(other_id, ticket);
    tokio::time::timeout(DEADLINE, asked).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shows_a_certificate_of_a_withdrawn_authority_is_cut_off_until_it_has_another() {
    let cluster = Cluster::found(1);
    let id_of_cluster = ClusterId::from_uuid(uuid::Uuid::from_u128(1));
    let Successor { authority: next, .. } = cluster.authority().succeed(&id_of_cluster).unwrap();
    let origin = cluster.start(PeerRole::Origin).await;
    let (recipe, id, contents) = content(64);
    // Not all of it, so that nobody can be done.
    fill(&*origin.store, &recipe, id, &contents[..32]).await;
    let [renewed, forged] = [(); 2].map(|()| cluster.start(PeerRole::Host));
    let (renewed, forged) = (renewed.await, forged.await);
    let mut transfers = Vec::new();
    for agent in [&renewed, &forged] {
        transfers.push(half_way(&cluster, &origin, agent, (id, &recipe)).await);
    }
    // All believe both, and the node and one host have changed over.
    let pems = [cluster.authority().certificate_pem(), next.certificate_pem()];
    for process in [&origin, &renewed, &forged] {
        let both = identity::roots(pems.map(str::as_bytes)).unwrap();
        process.swarm.credentials().trust().replace(both).unwrap();
    }
    for (process, role) in [(&origin, Role::Node), (&renewed, Role::Agent)] {
        let credentials = process.swarm.credentials();
        let csr = credentials.key().csr_pem().unwrap();
        credentials.renew(&next.issue(&csr, role).unwrap()).unwrap();
    }
    origin.swarm.close_distrusted();
    assert_eq!(origin.swarm.status().peers.len(), 2, "both are believed yet");
    for process in [&origin, &renewed] {
        let one = identity::roots([pems[1].as_bytes()]).unwrap();
        process.swarm.credentials().trust().replace(one).unwrap();
        process.swarm.close_distrusted();
    }
    fill(&*origin.store, &recipe, id, &contents).await;
    let last = transfers.pop().unwrap();
    tokio::time::timeout(DEADLINE, transfers[0].wait()).await.unwrap().unwrap();
    let mut progress = last.progress();
    assert_eq!(progress.borrow_and_update().chunks_done, 32, "it was served");
    // With a certificate of the new authority's it is let in, and goes on.
    let credentials = forged.swarm.credentials();
    let csr = credentials.key().csr_pem().unwrap();
    credentials.renew(&next.issue(&csr, Role::Agent).unwrap()).unwrap();
    tokio::time::timeout(DEADLINE, last.wait()).await.unwrap().unwrap();
}
