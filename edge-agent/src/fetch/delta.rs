//! A new version of a disk from an old one that is here, by a delta bundle in place of its chunks.
//!
//! A bundle is a blob: it comes over the swarm into the cache, is served from there like any other,
//! and leaves with what was not used for longest. What is made with it goes into the cache chunk by
//! chunk, each compared with its id.
//!
//! Invariants: whatever goes wrong here costs time only, since the download goes on with chunks;
//! [`APPLIED_AT_ONCE`] bundles are read at a time, each within [`DELTA_DECODE_BYTES_MAX`]; a host
//! waits for a bundle no longer than the chunks would take on its line.
//!
//! [`DELTA_DECODE_BYTES_MAX`]: shoal_formats::DELTA_DECODE_BYTES_MAX

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes};
use shoal_api::{DeltaAnswer, DeltaGrant, DeltaRequest};
use shoal_content::{ImageReference, Pin, Recipe, RecipeId, RecipeKind, Ticket};
use shoal_formats::{DeltaError, SinkError, apply_delta};
use shoal_p2p::{FetchError, Progress, Swarm};
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::debug;

use super::Fetcher;
use crate::cache::{self, Cache, Entry};
use crate::catalogue::Known;
use crate::config;
use crate::limits;

/// A bundle of which nothing came for so long is given up.
const STALL: Duration = Duration::from_secs(5);
/// Bundles that are read at a time.
const APPLIED_AT_ONCE: usize = 1;
static APPLYING: Semaphore = Semaphore::const_new(APPLIED_AT_ONCE);
/// Disks that a node is told of.
const HELD_MAX: usize = 64;
/// How long a node may hold one answer back.
const WAIT_STEP: Duration = Duration::from_secs(6);
/// A bundle has to be smaller than this share of the chunks that it replaces, compressed.
const SHARE_PERCENT_MAX: u64 = 90;
/// The line of a host that knows no better, in bytes a second: 1 Gbit/s.
const LINE_USUAL: u64 = 125_000_000;

/// Why a bundle was of no use.
#[derive(Debug, Error)]
pub enum Error {
    #[error("the ticket in the node's answer is malformed")]
    Ticket,
    #[error("the swarm could not bring it: {0}")]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Cache(#[from] cache::Error),
    #[error("the disk that it starts from is not here any more")]
    NotHeld,
    #[error("nothing came of it for {} s", STALL.as_secs())]
    Stalled,
    #[error("it is not as long as was promised")]
    Length,
    #[error(transparent)]
    Delta(#[from] DeltaError),
    #[error("the agent is shutting down")]
    Stopped,
}

/// When bundles are asked for.
#[derive(Debug, Clone)]
pub struct Means {
    pub config: config::Delta,
    pub limits: limits::Shown,
}

/// What came of a bundle, also of one that failed midway.
#[derive(Debug, Default)]
pub struct Rebuilt {
    /// Content of the chunks that were made, in bytes.
    pub content_bytes: u64,
    /// Of the bundle itself.
    pub bundle: Progress,
}

impl Fetcher {
    /// The right to a bundle that leads to this version from one that is here. Where none is ready,
    /// and none comes while it can still save time, there is none.
    pub(super) async fn delta(&self, known: &Known) -> Option<DeltaGrant> {
        let disk = known.resolution.disk.as_ref().filter(|_| self.delta.config.enabled)?;
        let is_here = |recipe| self.cache.entry(recipe).is_some_and(|entry| entry.is_complete());
        if is_here(disk.recipe) {
            return None;
        }
        let held = self.held(known);
        if held.is_empty() {
            return None;
        }
        let digest = known.resolution.manifest_digest.clone();
        let name = known.resolution.image.clone();
        let reference = ImageReference { name, pin: Pin::Digest(digest) };
        let started = Instant::now();
        let mut wait = Duration::ZERO;
        loop {
            let wait_ms = wait.as_millis() as u64;
            let request =
                DeltaRequest { reference: reference.clone(), held: held.clone(), wait_ms };
            let missing_bytes = match self.nodes.delta(&request).await {
                Ok(DeltaAnswer::Ready(grant)) => return Some(grant),
                Ok(DeltaAnswer::Making { missing_bytes }) => missing_bytes,
                Ok(DeltaAnswer::None) => return None,
                Err(error) => {
                    debug!(%error, "no delta bundle");
                    return None;
                }
            };
            let patience = self.patience(missing_bytes);
            wait = patience.saturating_sub(started.elapsed()).min(WAIT_STEP);
            if wait.is_zero() {
                return None;
            }
        }
    }

    /// As long as the chunks would take: whoever waits so long has lost half of the time at most.
    fn patience(&self, missing_bytes: u64) -> Duration {
        let line = limits::line(&self.delta.limits).unwrap_or(LINE_USUAL);
        let chunks = Duration::from_secs_f64(missing_bytes as f64 / line.max(1) as f64);
        chunks.min(Duration::from_secs(self.delta.config.wait_seconds))
    }

    /// Disks that are here whole: those of the same image, then whatever was used last.
    fn held(&self, known: &Known) -> Vec<RecipeId> {
        let wanted = known.resolution.disk.as_ref().map(|disk| disk.recipe);
        let all = self.catalogue.all();
        let same = all.iter().filter(|other| other.resolution.image == known.resolution.image);
        let mut same: Vec<_> = same.collect();
        same.sort_by_key(|other| std::cmp::Reverse(other.resolved_at));
        let same = same.iter().filter_map(|other| Some(other.resolution.disk.as_ref()?.recipe));
        let mut held = Vec::new();
        for recipe in same.chain(self.cache.complete()) {
            let whole = self.cache.entry(recipe).is_some_and(|entry| entry.is_complete());
            if whole && Some(recipe) != wanted && !held.contains(&recipe) && held.len() < HELD_MAX {
                held.push(recipe);
            }
        }
        held
    }
}

/// Fetches the bundle and makes what of `new` is not here. `rebuilt` says how far it came, also
/// where it fails; `on_bundle` hears of the bundle's progress.
pub(super) async fn rebuild(
    cache: &Cache,
    swarm: &Swarm,
    new: (RecipeId, &Arc<Recipe>),
    grant: &DeltaGrant,
    rebuilt: &mut Rebuilt,
    on_bundle: impl Fn(&Progress),
) -> Result<(), Error> {
    let leases = [cache.lease(grant.old), cache.lease(grant.recipe)];
    let old = cache.entry(grant.old).filter(|entry| entry.is_complete()).ok_or(Error::NotHeld)?;
    let (opening, recipe) = (cache.clone(), new.1.clone());
    let entry = off(move || Ok(opening.open_entry(new.0, &recipe)?)).await?;
    let missing = (0u32..).zip(new.1.chunks()).filter(|(index, _)| !entry.contains(*index));
    let missing: u64 = missing.map(|(_, chunk)| u64::from(chunk.stored())).sum();
    if grant.size_bytes > missing / 100 * SHARE_PERCENT_MAX {
        return Ok(());
    }
    bring(cache, swarm, grant, rebuilt, on_bundle).await?;
    let Ok(_turn) = APPLYING.acquire().await else { return Err(Error::Stopped) };
    let bundle = cache.entry(grant.recipe).ok_or(Error::NotHeld)?;
    let made = Arc::new(AtomicU64::new(0));
    let (counted, working) = (made.clone(), cache.clone());
    let outcome = off(move || apply(&working, &bundle, &old, &entry, &counted)).await;
    rebuilt.content_bytes = made.load(Ordering::Relaxed);
    if matches!(&outcome, Err(Error::Delta(error)) if error.is_damage()) {
        // Not to be offered to others.
        let (cache, recipe) = (cache.clone(), grant.recipe);
        drop(leases);
        off(move || Ok(cache.remove_unleased(recipe)?)).await?;
    }
    outcome
}

/// The bundle itself, into the cache.
async fn bring(
    cache: &Cache,
    swarm: &Swarm,
    grant: &DeltaGrant,
    rebuilt: &mut Rebuilt,
    on_bundle: impl Fn(&Progress),
) -> Result<(), Error> {
    let ticket = STANDARD.decode(&grant.ticket).map_err(|_| Error::Ticket)?;
    let ticket = Ticket::from_bytes(&ticket).map_err(|_| Error::Ticket)?;
    let id = grant.recipe;
    let recipe = match shoal_p2p::ChunkStore::recipe(cache, id).await.map_err(FetchError::from)? {
        Some(recipe) => recipe,
        None => {
            let asked = tokio::time::timeout(STALL, swarm.recipe(id, ticket.clone())).await;
            asked.map_err(|_| Error::Stalled)??
        }
    };
    if recipe.kind() != RecipeKind::Blob || recipe.length() != grant.size_bytes {
        return Err(Error::Length);
    }
    let (looking, wanted) = (cache.clone(), recipe.clone());
    off(move || Ok(looking.check_room(id, &wanted)?)).await?;
    let transfer = swarm.fetch(id, recipe, ticket);
    let mut changes = transfer.progress();
    let mut waiting = std::pin::pin!(transfer.wait());
    let mut deadline = Instant::now() + STALL;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(deadline) => return Err(Error::Stalled),
            outcome = &mut waiting => {
                rebuilt.bundle = outcome?;
                return Ok(());
            }
            Ok(()) = changes.changed() => {
                let bundle = changes.borrow_and_update().clone();
                if bundle.bytes_done > rebuilt.bundle.bytes_done {
                    deadline = Instant::now() + STALL;
                }
                rebuilt.bundle = bundle;
                on_bundle(&rebuilt.bundle);
            }
        }
    }
}

/// Blocks on the disk.
fn apply(
    cache: &Cache,
    bundle: &Arc<Entry>,
    old: &Arc<Entry>,
    new: &Arc<Entry>,
    made: &AtomicU64,
) -> Result<(), Error> {
    let recipe = |entry: &Entry| entry.load().map(|loaded| loaded.places.recipe().clone());
    let (from, to) = (recipe(old)?, recipe(new)?);
    let mut input =
        Content { cache, entry: bundle, recipe: recipe(bundle)?, next: 0, rest: Bytes::new() };
    let read_old = &mut |chunk: u32, out: &mut Vec<u8>| -> Result<(), SinkError> {
        let content = cache.read_chunk(old, chunk)?.ok_or("it did not check when it was read")?;
        out.extend_from_slice(&content);
        Ok(())
    };
    let write_new = &mut |chunk: u32, content: &[u8]| -> Result<(), SinkError> {
        cache.write_chunk(new, chunk, content)?;
        made.fetch_add(content.len() as u64, Ordering::Relaxed);
        Ok(())
    };
    let wants = |chunk| !new.contains(chunk);
    let (from, to) = ((old.id(), &*from), (new.id(), &*to));
    apply_delta(&mut input, from, to, &wants, read_old, write_new)?;
    Ok(())
}

/// A blob in the cache from front to back, each chunk hashed.
struct Content<'a> {
    cache: &'a Cache,
    entry: &'a Entry,
    recipe: Arc<Recipe>,
    /// The next extent.
    next: usize,
    rest: Bytes,
}

impl Read for Content<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            let Some(extent) = self.recipe.extents().get(self.next) else { return Ok(0) };
            let chunk =
                self.cache.read_chunk(self.entry, extent.chunk).map_err(io::Error::other)?;
            self.rest = chunk.ok_or_else(|| io::Error::other("a chunk of it did not check"))?;
            self.next += 1;
        }
        let count = out.len().min(self.rest.len());
        self.rest.copy_to_slice(&mut out[..count]);
        Ok(count)
    }
}

/// Runs `work` off the async threads.
async fn off<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    crate::blocking(work).await.ok_or(Error::Stopped)?
}
