//! What this host offers to the swarm: what its cache holds.
//!
//! Invariant: what left the cache is withdrawn, since whoever asks here for it in vain again and again
//! bans this host. A recipe that leaves while it is looked at is withdrawn at the end.

use std::sync::Arc;

use shoal_content::RecipeId;
use shoal_p2p::Swarm;
use tokio::sync::{Notify, mpsc};
use tracing::warn;

use crate::blocking;
use crate::cache::Cache;

/// Settles the cache and then offers all that it holds.
pub async fn begin(cache: Cache, swarm: Swarm) {
    let settling = cache.clone();
    blocking(move || settling.settle()).await;
    for holding in cache.holdings().into_iter().filter(|held| held.chunks_held > 0) {
        offer(&cache, &swarm, holding.recipe).await;
    }
}

/// Withdraws what leaves the cache, for as long as something can, and tells `moved` of it.
pub async fn follow(
    cache: Cache,
    swarm: Swarm,
    mut removals: mpsc::UnboundedReceiver<RecipeId>,
    moved: Arc<Notify>,
) {
    while let Some(recipe) = removals.recv().await {
        moved.notify_one();
        // Fetched again by now, it is offered rightly.
        if cache.entry(recipe).is_some_and(|entry| entry.is_complete()) {
            continue;
        }
        // Of a transfer under way the swarm keeps what it offers.
        swarm.withdraw(recipe).await;
        if cache.entry(recipe).is_some() {
            offer(&cache, &swarm, recipe).await;
        }
    }
}

async fn offer(cache: &Cache, swarm: &Swarm, recipe: RecipeId) {
    if let Err(error) = swarm.announce(recipe).await {
        warn!(%recipe, %error, "a cached recipe is not announced");
    }
    // It may have left, and been withdrawn, before it was offered.
    if cache.entry(recipe).is_none() {
        swarm.withdraw(recipe).await;
    }
}
