//! Keeps here what policies want here: what came by an order and has left the cache since, evicted or
//! damaged, is brought again.
//!
//! The first time is the order's, in its turn and told to the nodes; what was never whole here is left to
//! it, and what somebody removed from this host by hand is not known here any more.
//!
//! Invariant: one image is brought at a time, and each begins at most once in [`REST_MIN`]. One that does not
//! stay though it was brought rests for twice as long each time, so that a cache which is too small for all of
//! them does not go round.

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

/// How long an image that was brought again, or could not be, is left alone.
const REST_MIN: Duration = Duration::from_secs(300);
const REST_MAX: Duration = Duration::from_secs(6 * 3600);

/// How long an image is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rest {
    pause: Duration,
    until: Instant,
}

impl Rest {
    /// Of one that was missed then, and brought until `now`; with its last rest, which counts for
    /// [`REST_MAX`] more: to bring the others takes its time, too.
    fn next(last: Option<Self>, missed: Instant, now: Instant) -> Self {
        let pause = match last {
            Some(Self { pause, until }) if missed < until + REST_MAX => (pause * 2).min(REST_MAX),
            _ => REST_MIN,
        };
        Self { pause, until: now + pause }
    }
}

impl Deployments {
    /// Runs until it is dropped.
    pub async fn keep(self) {
        let mut kept = self.kept.subscribe();
        let mut rests: HashMap<ImageReference, Rest> = HashMap::new();
        loop {
            let wanted = kept.borrow_and_update().clone();
            rests.retain(|reference, _| wanted.contains(reference));
            let mut next: Option<Instant> = None;
            for reference in &wanted {
                if !self.is_missed(reference).await {
                    continue;
                }
                let (last, missed) = (rests.get(reference).copied(), Instant::now());
                let until = match last {
                    Some(rest) if rest.until > missed => rest.until,
                    _ => {
                        let is_brought = tokio::select! {
                            is_brought = self.bring(reference) => is_brought,
                            // It may be kept no longer.
                            _ = kept.changed() => {
                                kept.mark_changed();
                                break;
                            }
                        };
                        // What could not be brought is tried again as soon as what was missed once.
                        let last = last.filter(|_| is_brought);
                        let rest = Rest::next(last, missed, Instant::now());
                        rests.insert(reference.clone(), rest);
                        rest.until
                    }
                };
                next = Some(next.map_or(until, |next| next.min(until)));
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

    /// Gives whether it is here now.
    async fn bring(&self, reference: &ImageReference) -> bool {
        info!(%reference, "what a policy keeps here is missing, and brought again");
        let tracked = self.transfers.start(reference.to_string(), Purpose::Deployment);
        let outcome = self.fetcher.image(reference, &tracked, Patience::KEEPING).await;
        match &outcome {
            Ok(_) => drop(tracked.done()),
            Err(error) => {
                let text = chain(error);
                warn!(%reference, error = text, "what a policy keeps here could not be brought again");
                drop(tracked.failed(&text));
            }
        }
        outcome.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_stay_is_brought_less_and_less_often() {
        const BRINGING: Duration = Duration::from_secs(3600);
        let mut missed = Instant::now();
        let mut rest = Rest::next(None, missed, missed + BRINGING);
        assert_eq!(rest, Rest { pause: REST_MIN, until: missed + BRINGING + REST_MIN });
        for doubled in 1..12 {
            // Another one took its time meanwhile.
            missed = rest.until + BRINGING;
            rest = Rest::next(Some(rest), missed, missed + BRINGING);
            assert_eq!(rest.pause, REST_MAX.min(REST_MIN * (1 << doubled)));
        }
        let stayed = rest.until + REST_MAX;
        assert_eq!(Rest::next(Some(rest), stayed, stayed).pause, REST_MIN);
    }
}
