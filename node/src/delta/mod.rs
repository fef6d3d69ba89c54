//! Delta bundles: what a host that has one version of a disk fetches in place of the new chunks.
//!
//! A bundle is a blob of its own, in packs and with a recipe, so that hosts spread it among
//! themselves like any other. It is made in the background: when a version is published, from the
//! one before (`[delta] ahead`), or when the first host asks. Its row in the metadata says who makes
//! it, where it is, or that it is not worth its bytes.
//!
//! Order: the claim, packs, recipe, and the command that names them. A node that dies in between
//! leaves a claim that runs out, and packs that the scrub finds.
//!
//! Invariants: one node makes a bundle at a time, and a node at most `at_once` of them, each within
//! `memory_bytes`; nobody waits for one longer than [`WAIT_MAX`]; a failure costs a host nothing but
//! that it fetches chunks.
//! Non-goals: who may have it (see `api`), the bundle's form (see `shoal-formats`).

mod making;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use shoal_content::{ImageId, NodeId, RecipeId, Timestamp};
use shoal_formats::fresh_chunks;
use shoal_metadata::{Command, DeltaBundle, DeltaKey, DeltaState, Event, Fault, command_version};
use shoal_raft::Raft;
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use crate::clock;
use crate::config;
use crate::http::problem::chain;
use crate::origin::{self, Origin, Windows};
use crate::store::BlobStore;

/// How long one request waits for a bundle.
pub const WAIT_MAX: Duration = Duration::from_secs(8);
/// Of the packs that chunks are read from while bundles are made.
pub const READ_CACHE_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Bundles that wait or are made on one node; more are for another time.
const RUNNING_MAX: usize = 64;
/// A use is noted again after this long: it only says that somebody uses it still.
const USE_GRAIN_MS: u64 = 3_600_000;

/// What a host is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offer {
    Ready {
        /// The version that the host has and the bundle starts from.
        old: RecipeId,
        bundle: DeltaBundle,
    },
    /// One is being made.
    Making {
        /// Content that the host lacks, in bytes.
        missing_bytes: u64,
    },
    None,
}

/// See the module's documentation. Clones share everything.
#[derive(Debug, Clone)]
pub struct Deltas {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    raft: Raft,
    store: Arc<dyn BlobStore>,
    origin: Origin,
    windows: Windows,
    node: NodeId,
    settings: OnceLock<Settings>,
    running: Mutex<BTreeSet<DeltaKey>>,
    /// Given to hosts, and not noted yet.
    uses: Mutex<BTreeMap<DeltaKey, Timestamp>>,
    made: Counter,
    made_bytes: Counter,
    useless: Counter,
    failed: Counter,
}

#[derive(Debug)]
struct Settings {
    config: config::Delta,
    permits: Semaphore,
}

impl Deltas {
    pub fn new(raft: Raft, store: Arc<dyn BlobStore>, origin: Origin, node: NodeId) -> Self {
        let windows = Windows::with_capacity(Arc::clone(&store), READ_CACHE_BYTES_MAX);
        let inner = Inner {
            raft,
            store,
            origin,
            windows,
            node,
            settings: OnceLock::new(),
            running: Mutex::default(),
            uses: Mutex::default(),
            made: Counter::default(),
            made_bytes: Counter::default(),
            useless: Counter::default(),
            failed: Counter::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Until then none are made or given.
    pub fn begin(&self, config: config::Delta, registry: &mut Registry) {
        let Inner { made, made_bytes, useless, failed, .. } = &*self.inner;
        for (name, help, counter) in [
            ("shoal_delta_bundles_made", "Delta bundles made", made),
            ("shoal_delta_bundles_made_bytes", "Bytes of delta bundles made", made_bytes),
            ("shoal_delta_bundles_useless", "Delta bundles that would save too little", useless),
            ("shoal_delta_bundles_failed", "Delta bundles that could not be made", failed),
        ] {
            registry.register(name, help, counter.clone());
        }
        let permits = Semaphore::new(config.at_once);
        // Only the first call counts; there is one.
        let _ = self.inner.settings.set(Settings { config, permits });
    }

    fn settings(&self) -> Option<&Settings> {
        let settings = self.inner.settings.get().filter(|settings| settings.config.enabled)?;
        // Not before every node knows what such a row is.
        let level = self.inner.raft.local().query().level();
        let needed = command_version(&Command::NoteDeltaUses { uses: BTreeMap::new() });
        level.is_ok_and(|level| level >= needed).then_some(settings)
    }

    /// A version was published whose image has had `before`, the newest first.
    pub fn published(&self, image: ImageId, before: &[RecipeId], new: RecipeId) {
        let Some(old) = before.iter().copied().find(|old| *old != new) else { return };
        if self.settings().is_some_and(|settings| settings.config.ahead) {
            self.start(DeltaKey { image, old, new });
        }
    }

    /// A bundle that leads from one of `held` to `new`, both of them versions of `image`; the first
    /// of `held` is made one for, where there is none. Waits for that as long as is said.
    ///
    /// # Errors
    /// Where the rows cannot be read.
    pub async fn offer(
        &self,
        image: ImageId,
        new: RecipeId,
        held: &[RecipeId],
        wait: Duration,
    ) -> Result<Offer, Fault> {
        if self.settings().is_none() {
            return Ok(Offer::None);
        }
        let deadline = Instant::now() + wait.min(WAIT_MAX);
        // Before the rows are read: what changes in between comes as an event.
        let mut events = self.inner.raft.events();
        loop {
            let of = match self.look(image, new, held)? {
                Look::Ready(old, bundle) => {
                    self.note_use(DeltaKey { image, old, new });
                    return Ok(Offer::Ready { old, bundle });
                }
                Look::Making { of, elsewhere: true } => of,
                Look::Making { of, elsewhere: false } => {
                    self.start(of);
                    of
                }
                Look::None => return Ok(Offer::None),
            };
            if Instant::now() >= deadline || self.changed(of, &mut events, deadline).await.is_none()
            {
                return Ok(match self.missing_bytes(of).await {
                    Ok(missing_bytes) => Offer::Making { missing_bytes },
                    Err(error) => {
                        warn!(image = %of.image, old = %of.old, new = %of.new, %error, "no bundle");
                        Offer::None
                    }
                });
            }
        }
    }

    /// Returns once the bundle's row has changed; nothing at the deadline.
    async fn changed(
        &self,
        of: DeltaKey,
        events: &mut tokio::sync::broadcast::Receiver<Event>,
        deadline: Instant,
    ) -> Option<()> {
        loop {
            match timeout_at(deadline, events.recv()).await.ok()? {
                Ok(Event::DeltaChanged(changed)) if changed == of => return Some(()),
                Ok(Event::AllChanged) | Err(RecvError::Lagged(_)) => return Some(()),
                Ok(_) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn look(&self, image: ImageId, new: RecipeId, held: &[RecipeId]) -> Result<Look, Fault> {
        let view = self.inner.raft.local();
        let (mut ready, mut making) = (None::<(RecipeId, DeltaBundle)>, None);
        for &old in held.iter().filter(|old| **old != new) {
            let of = DeltaKey { image, old, new };
            match view.query().delta(&of)?.map(|row| row.state) {
                Some(DeltaState::Made(bundle)) => {
                    if ready.as_ref().is_none_or(|(_, best)| bundle.bytes < best.bytes) {
                        ready = Some((old, bundle));
                    }
                }
                Some(DeltaState::Useless) => {}
                Some(DeltaState::Making { node, lease_until }) => {
                    let elsewhere = node != self.inner.node && lease_until > clock::now();
                    making.get_or_insert(Look::Making { of, elsewhere });
                }
                None => {
                    making.get_or_insert(Look::Making { of, elsewhere: false });
                }
            }
        }
        Ok(match (ready, making) {
            (Some((old, bundle)), _) => Look::Ready(old, bundle),
            (None, Some(making)) => making,
            (None, None) => Look::None,
        })
    }

    async fn missing_bytes(&self, of: DeltaKey) -> Result<u64, origin::Error> {
        let old = self.inner.origin.recipe(of.old).await?;
        let new = self.inner.origin.recipe(of.new).await?;
        let (Some(old), Some(new)) = (old, new) else { return Ok(0) };
        let fresh = fresh_chunks(&old, &new);
        Ok(fresh.iter().map(|chunk| u64::from(new.chunks()[*chunk as usize].length)).sum())
    }

    fn note_use(&self, of: DeltaKey) {
        let now = clock::now();
        let row = self.inner.raft.local().query().delta(&of);
        let noted = row.ok().flatten().map_or(now, |row| row.used_at);
        let mut uses = self.inner.uses.lock();
        let full = uses.len() >= shoal_metadata::DELTAS_AT_ONCE_MAX;
        if !full && noted.plus_millis(USE_GRAIN_MS) <= now {
            uses.insert(of, now);
        }
    }

    /// Makes a bundle in the background, unless it is under way here.
    fn start(&self, of: DeltaKey) {
        {
            let mut running = self.inner.running.lock();
            if running.len() >= RUNNING_MAX || !running.insert(of) {
                return;
            }
        }
        let this = self.clone();
        tokio::spawn(async move {
            let DeltaKey { image, old, new } = of;
            match this.make(of).await {
                Ok(making::End::Made { bytes, instead_of }) => {
                    info!(%image, %old, %new, bytes, instead_of, "made a delta bundle");
                    this.inner.made.inc();
                    this.inner.made_bytes.inc_by(bytes);
                }
                Ok(making::End::Useless) => {
                    info!(%image, %old, %new, "a delta bundle would save too little");
                    this.inner.useless.inc();
                }
                Ok(making::End::NotOurs) => {}
                Err(error) => {
                    let error = chain(&error);
                    warn!(%image, %old, %new, error, "a delta bundle could not be made");
                    this.inner.failed.inc();
                }
            }
            this.inner.running.lock().remove(&of);
        });
    }
}

enum Look {
    Ready(RecipeId, DeltaBundle),
    Making {
        of: DeltaKey,
        /// Another node is at it.
        elsewhere: bool,
    },
    None,
}
