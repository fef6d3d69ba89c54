//! Brings an image to this host: resolve, recipe, chunks into the cache.
//!
//! Whoever wants a recipe gets the same running download as everybody else who wants it
//! (`download`). An image is all of its recipes; a failure that can pass is tried again with fresh
//! tickets, and what was verified meanwhile is in the cache.
//!
//! Invariant: leases are taken before anything is fetched and live as long as the result does.

mod awaited;
pub mod delta;
pub mod download;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rand::RngExt;
use shoal_api::TransferProgress;
use shoal_content::ImageReference;
use thiserror::Error;
use tracing::{Instrument, Span, debug_span, info, warn};

use crate::cache::{self, Cache, Lease};
use crate::catalogue::{Catalogue, Known};
use crate::nodes::{self, NodeClient};
use crate::telemetry;
use crate::transfers::Tracked;
use download::{Download, Downloads, Step, Wanted};

/// Blobs of one image under way at once.
const BLOBS_AT_ONCE: usize = 6;
const RETRY_PAUSE_MIN: Duration = Duration::from_secs(1);
/// So far a pause doubles; where it takes longer, it is a part of the time since the first attempt.
const RETRY_PAUSE_DOUBLED_MAX: Duration = Duration::from_secs(15);
const RETRY_PAUSE_PART: u32 = 8;
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(120);
/// In a pause that is as long, others have their turn.
const REST_MIN: Duration = Duration::from_secs(5);

/// Why an image did not arrive.
#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Nodes(#[from] nodes::Error),
    #[error(transparent)]
    Download(#[from] Arc<download::Error>),
    #[error("for long nothing came: {0}")]
    Awaited(String),
    #[error("the fetch was stopped by the agent's shutdown")]
    Stopped,
}

impl Error {
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Nodes(error) => error.is_retryable(),
            Self::Download(error) => error.is_retryable(),
            Self::Awaited(_) | Self::Stopped => false,
        }
    }

    pub fn is_full(&self) -> bool {
        matches!(self, Self::Download(error) if error.is_full())
    }
}

/// How often a failure that can pass is tried again, and whether a full disk is such a failure.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// `None` is until somebody stops it.
    pub attempts: Option<u32>,
    pub waits_for_space: bool,
}

impl Patience {
    /// Somebody is waiting for the answer.
    pub const PERSON: Self = Self { attempts: Some(4), waits_for_space: false };
    /// An order stands until it is done, called off, or past its deadline, which the cluster keeps;
    /// space may come back.
    pub const ORDER: Self = Self { attempts: None, waits_for_space: true };
    /// Nobody waits, and it is looked at again later.
    pub const KEEPING: Self = Self { attempts: Some(8), waits_for_space: true };

    /// Whether there is another attempt after so many, the last of which ended with `error`.
    fn goes_on(self, attempts: u32, error: &Error) -> bool {
        let passes = if error.is_full() { self.waits_for_space } else { error.is_retryable() };
        passes && self.attempts.is_none_or(|most| attempts < most)
    }
}

/// How long to wait after so many attempts, the first of which began `since` ago, before jitter. A
/// fault that ends is so found over within a part of its own length.
fn retry_pause(attempts: u32, since: Duration) -> Duration {
    let doubled = RETRY_PAUSE_MIN.saturating_mul(1 << attempts.saturating_sub(1).min(8));
    doubled.min(RETRY_PAUSE_DOUBLED_MAX).max(since / RETRY_PAUSE_PART).min(RETRY_PAUSE_MAX)
}

/// An image whose chunks are all here, and stay while this lives.
#[derive(Debug)]
pub struct Fetched {
    pub known: Arc<Known>,
    pub leases: Vec<Lease>,
}

/// See the module's documentation; clones share everything.
#[derive(Debug, Clone)]
pub struct Fetcher {
    pub cache: Cache,
    pub catalogue: Catalogue,
    pub nodes: Arc<NodeClient>,
    pub downloads: Downloads,
    pub delta: delta::Means,
}

impl Fetcher {
    /// Asks a node what `reference` means, and remembers it.
    pub async fn resolve(&self, reference: &ImageReference) -> Result<Arc<Known>, Error> {
        let resolution = self.nodes.resolve(reference, awaited::platform()).await?;
        let (catalogue, reference) = (self.catalogue.clone(), reference.clone());
        let known = crate::blocking(move || catalogue.remember(&reference, resolution)).await;
        known.ok_or(Error::Stopped)
    }

    /// Fetches all of an image.
    pub async fn image(
        &self,
        reference: &ImageReference,
        tracked: &Tracked,
        patience: Patience,
    ) -> Result<Fetched, Error> {
        self.image_in_turns(reference, tracked, patience, &|_| {}).await
    }

    /// The same; `rests` hears when a long pause before another attempt begins, and when it ends.
    pub async fn image_in_turns(
        &self,
        reference: &ImageReference,
        tracked: &Tracked,
        patience: Patience,
        rests: &(dyn Fn(bool) + Send + Sync),
    ) -> Result<Fetched, Error> {
        let attempts = self.attempts(reference, tracked, patience, rests);
        attempts.instrument(tracked.span().clone()).await
    }

    async fn attempts(
        &self,
        reference: &ImageReference,
        tracked: &Tracked,
        patience: Patience,
        rests: &(dyn Fn(bool) + Send + Sync),
    ) -> Result<Fetched, Error> {
        let began = Instant::now();
        let mut attempts = 0;
        loop {
            let error = match self.attempt(reference, tracked).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => error,
            };
            attempts += 1;
            if !patience.goes_on(attempts, &error) {
                return Err(error);
            }
            let share = rand::rng().random_range(0.5..1.0);
            let pause = retry_pause(attempts, began.elapsed()).mul_f64(share);
            let text = nodes::chain(&error);
            warn!(%reference, attempts, ?pause, error = text, "the fetch is tried again");
            let seconds = pause.as_secs_f64();
            tracked.note_error(&format!("{text} (attempt {attempts}, again in {seconds:.0} s)"));
            tracked.wait_for("the next attempt");
            let is_long = pause >= REST_MIN;
            if is_long {
                rests(true);
            }
            tokio::time::sleep(pause).await;
            if is_long {
                rests(false);
            }
        }
    }

    /// Resolves the image once nodes have all of it.
    async fn arrived(
        &self,
        reference: &ImageReference,
        tracked: &Tracked,
    ) -> Result<Arc<Known>, Error> {
        let mut wait = awaited::Wait::begin(Instant::now());
        loop {
            let known = self.resolve(reference).await?;
            let Some(awaited) = &known.resolution.awaited else { return Ok(known) };
            let text = awaited::text(awaited);
            let Some(pause) = wait.next(Instant::now(), awaited) else {
                return Err(Error::Awaited(text));
            };
            tracked.note_error(&text);
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(
        &self,
        reference: &ImageReference,
        tracked: &Tracked,
    ) -> Result<Fetched, Error> {
        let known = self.arrived(reference, tracked).await?;
        let mut wanted = wanted(&known);
        let leases = wanted.iter().map(|one| self.cache.lease(one.recipe)).collect();
        self.check_room(&wanted)?;
        if let Some(disk) = &known.resolution.disk {
            let delta = self.delta(&known).await;
            for one in wanted.iter_mut().filter(|one| one.recipe == disk.recipe) {
                one.delta.clone_from(&delta);
            }
        }
        let mut parts: Vec<TransferProgress> = wanted
            .iter()
            .map(|one| TransferProgress { bytes_total: one.bytes, ..Default::default() })
            .collect();
        let begin = |(at, one): (usize, Wanted)| {
            let span = debug_span!(parent: tracked.span(), "recipe", recipe = %one.recipe);
            follow(Part { at, span, download: self.downloads.start(one) })
        };
        let mut waiting = wanted.into_iter().enumerate();
        let mut running = FuturesUnordered::new();
        running.extend(waiting.by_ref().take(BLOBS_AT_ONCE).map(begin));
        while let Some((part, step)) = running.next().await {
            let at = part.at;
            match step {
                Step::Progress(progress) => {
                    parts[at] = progress;
                    running.push(follow(part));
                }
                Step::End(outcome) => {
                    parts[at] = outcome?;
                    telemetry::describe(&part.span, &parts[at]);
                    running.extend(waiting.next().map(begin));
                }
            }
            tracked.update(sum(&parts));
        }
        tracked.update(sum(&parts));
        info!(%reference, recipes = parts.len(), "image is here");
        Ok(Fetched { known, leases })
    }
}

impl Fetcher {
    /// Refuses an image that can never be here as a whole. Each recipe is looked at closely when
    /// it is known (see `download`).
    fn check_room(&self, wanted: &[Wanted]) -> Result<(), Error> {
        let is_here =
            |one: &Wanted| self.cache.entry(one.recipe).is_some_and(|entry| entry.is_complete());
        let need = wanted.iter().map(|one| one.bytes).sum();
        let room = self.cache.limits().high;
        if need <= room || wanted.iter().all(is_here) {
            return Ok(());
        }
        let error = cache::Error::TooLarge { need, room };
        Err(Arc::new(download::Error::Cache(error)).into())
    }
}

/// A recipe of an image, on its way.
struct Part {
    /// Its place among the others.
    at: usize,
    span: Span,
    download: Download,
}

/// Waits for the next thing that happens to it.
async fn follow(mut part: Part) -> (Part, Step) {
    let step = part.download.next().await;
    (part, step)
}

/// Every distinct recipe of an image, with the right to it.
fn wanted(known: &Known) -> Vec<Wanted> {
    let resolution = &known.resolution;
    let disk = resolution.disk.iter().map(|disk| Wanted {
        recipe: disk.recipe,
        ticket: disk.ticket.clone(),
        bytes: disk.content_size_bytes,
        delta: None,
    });
    let blobs = resolution.blobs.iter().map(|blob| Wanted {
        recipe: blob.recipe,
        ticket: blob.ticket.clone(),
        bytes: blob.size_bytes,
        delta: None,
    });
    let mut all: Vec<Wanted> = Vec::new();
    for one in disk.chain(blobs) {
        if !all.iter().any(|known: &Wanted| known.recipe == one.recipe) {
            all.push(one);
        }
    }
    all
}

/// The parts of an image as one.
fn sum(parts: &[TransferProgress]) -> TransferProgress {
    let mut total = TransferProgress { state: "running".into(), ..Default::default() };
    for part in parts {
        total.bytes_total += part.bytes_total;
        total.bytes_done += part.bytes_done;
        total.bytes_local += part.bytes_local;
        total.bytes_deduplicated += part.bytes_deduplicated;
        total.bytes_by_delta += part.bytes_by_delta;
        total.delta_bundle_bytes += part.delta_bundle_bytes;
        for (peer, bytes) in &part.bytes_by_peer {
            *total.bytes_by_peer.entry(peer.clone()).or_default() += bytes;
        }
        for (node, bytes) in &part.bytes_by_node {
            *total.bytes_by_node.entry(node.clone()).or_default() += bytes;
        }
        for (zone, bytes) in &part.bytes_by_zone {
            *total.bytes_by_zone.entry(zone.clone()).or_default() += bytes;
        }
        total.waits_for = total.waits_for.or(part.waits_for.clone());
        total.last_error = part.last_error.clone().or(total.last_error);
    }
    total
}

#[cfg(test)]
mod tests {
    use shoal_p2p::FetchError;

    use super::*;

    #[test]
    fn pauses_grow_with_the_time_that_a_fault_lasts() {
        let seconds = |attempts, since| retry_pause(attempts, Duration::from_secs(since)).as_secs();
        let first: Vec<u64> = (1..=6).map(|attempts| seconds(attempts, 0)).collect();
        assert_eq!(first, [1, 2, 4, 8, 15, 15]);
        assert_eq!(seconds(40, 400), 50);
        assert_eq!(seconds(u32::MAX, 86_400), 120);
    }

    #[test]
    fn an_order_stands_until_it_is_called_off_and_a_person_hears_soon() {
        let cache = |error| Error::Download(Arc::new(download::Error::Cache(error)));
        let full = || cache(cache::Error::Full { missing: 1, path: "/".into() });
        assert!(Patience::ORDER.goes_on(1_000_000, &full()));
        assert!(!Patience::PERSON.goes_on(1, &full()));
        let passes = || Error::Download(Arc::new(download::Error::Fetch(FetchError::Expired)));
        assert!(Patience::ORDER.goes_on(1_000_000, &passes()));
        assert!(Patience::PERSON.goes_on(3, &passes()) && !Patience::PERSON.goes_on(4, &passes()));
        let never = || cache(cache::Error::TooLarge { need: 2, room: 1 });
        assert!(!Patience::ORDER.goes_on(1, &never()), "no attempt makes room for it");
    }
}
