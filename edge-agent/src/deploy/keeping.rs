//! Keeps here what policies want here: what came by an order and has left the cache since, evicted or
//! damaged, is brought again.
//!
//! The first time is the order's, in its turn and told to the nodes; what was never whole here is left to
//! it, and what somebody removed from this host by hand is not known here any more.
//!
//! Invariant: one image is brought at a time, and each begins at most once in [`REST`], so that a cache which
//! is too small for all of them does not go round.

use std::collections::HashMap;
use std::time::Duration;

use shoal_content::ImageReference;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::Deployments;
use crate::blocking;
use crate::fetch::Patience;
use crate::nodes::chain;
use crate::transfers::Purpose;

/// How long an image that was brought again is left alone.
const REST: Duration = Duration::from_secs(300);

impl Deployments {
    /// Runs until it is dropped.
    pub async fn keep(self) {
        let mut kept = self.kept.subscribe();
        let mut tried: HashMap<ImageReference, Instant> = HashMap::new();
        loop {
            let wanted = kept.borrow_and_update().clone();
            tried.retain(|reference, _| wanted.contains(reference));
            let mut next: Option<Instant> = None;
            for reference in &wanted {
                if !self.is_missed(reference).await {
                    continue;
                }
                let rested = tried.get(reference).map(|at| *at + REST);
                if let Some(rested) = rested.filter(|rested| *rested > Instant::now()) {
                    next = Some(next.map_or(rested, |next| next.min(rested)));
                    continue;
                }
                let began = Instant::now();
                tried.insert(reference.clone(), began);
                next = Some(next.map_or(began + REST, |next| next.min(began + REST)));
                tokio::select! {
                    () = self.bring(reference) => {}
                    // It may be kept no longer.
                    _ = kept.changed() => {
                        tried.remove(reference);
                        kept.mark_changed();
                        break;
                    }
                }
            }
            tokio::select! {
                _ = kept.changed() => {}
                () = self.moved.notified() => {}
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
    }

    /// Whether it was here whole and is no longer. An order that is under way brings it by itself.
    async fn is_missed(&self, reference: &ImageReference) -> bool {
        let (cache, catalogue) = (&self.fetcher.cache, &self.fetcher.catalogue);
        let Some(known) = catalogue.find(reference) else { return false };
        let is_here = |recipe| cache.entry(recipe).is_some_and(|entry| entry.is_complete());
        if !known.recipes().into_iter().all(is_here) {
            let ordered = self.desk.lock().running.values().any(|one| one.reference == *reference);
            return known.was_whole && !ordered;
        }
        // It came otherwise than by an order.
        if !known.was_whole {
            let (catalogue, reference) = (catalogue.clone(), reference.clone());
            blocking(move || catalogue.note_whole(&reference)).await;
        }
        false
    }

    async fn bring(&self, reference: &ImageReference) {
        info!(%reference, "what a policy keeps here is missing, and brought again");
        let tracked = self.transfers.start(reference.to_string(), Purpose::Deployment);
        match self.fetcher.image(reference, &tracked, Patience::KEEPING).await {
            Ok(_) => drop(tracked.done()),
            Err(error) => {
                let text = chain(&error);
                warn!(%reference, error = text, "what a policy keeps here could not be brought again");
                drop(tracked.failed(&text));
            }
        }
    }
}
