//! A transfer as its owner sees it: progress, demands, the end.
//!
//! Invariant: when the last [`Transfer`] of a recipe is dropped before its end, the swarm stops
//! fetching it; what was verified stays in the store.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
use shoal_content::{PeerId, Recipe, RecipeId, Zone};
use shoal_swarm::{Event, Wait};
use thiserror::Error;
use tokio::sync::{mpsc, watch};

use crate::link::Link;
use crate::store::StoreError;

/// How far a transfer is, and where its bytes came from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    pub chunks_total: u32,
    pub chunks_done: u32,
    pub bytes_total: u64,
    pub bytes_done: u64,
    /// Held before it began.
    pub bytes_local: u64,
    pub bytes_by_peer: BTreeMap<PeerId, u64>,
    pub bytes_by_node: BTreeMap<PeerId, u64>,
    /// What of these two did not go over the network, since it came compressed.
    pub bytes_saved: u64,
    /// What peers sent, by where they say that they stand.
    pub bytes_by_zone: BTreeMap<Zone, u64>,
    /// For people; nothing where that is not known, or it has ended.
    pub waits_for: Option<&'static str>,
    /// The last thing that went wrong and was worked around.
    pub last_error: Option<String>,
    pub elapsed: Duration,
}

#[derive(Debug, Clone, Error)]
pub enum FetchError {
    #[error(transparent)]
    Storage(#[from] StoreError),
    #[error("no node or peer gave the recipe: {0}")]
    NoSource(String),
    #[error("the right to it was withdrawn: the cluster changed its ticket key; ask for it again")]
    Distrusted,
    #[error("the right to it has run out; ask for it again")]
    Expired,
    #[error("the swarm is shutting down")]
    Stopped,
}

impl FetchError {
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::NoSource(_) | Self::Storage(_) | Self::Distrusted | Self::Expired)
    }

    pub fn is_full(&self) -> bool {
        matches!(self, Self::Storage(error) if error.is_full())
    }
}

type Outcome = Option<Result<Progress, FetchError>>;

/// What the driver and the handles share.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) id: RecipeId,
    pub(crate) recipe: Arc<Recipe>,
    began: Instant,
    progress: watch::Sender<Progress>,
    outcome: watch::Sender<Outcome>,
    commands: mpsc::Sender<Event>,
    last_error: Mutex<Option<String>>,
    early: Mutex<Early>,
}

/// What was asked for before the driver knew of the transfer.
#[derive(Debug, Default)]
struct Early {
    started: bool,
    demands: VecDeque<Range<u32>>,
}

/// Zones that are told apart.
const ZONES_MAX: usize = 256;
/// Demands that are kept until the start; of more the first are forgotten.
const EARLY_DEMANDS_MAX: usize = 64;

impl Running {
    pub(crate) fn new(id: RecipeId, recipe: Arc<Recipe>, commands: mpsc::Sender<Event>) -> Self {
        let progress = Progress {
            chunks_total: recipe.chunks().len() as u32,
            bytes_total: recipe.chunk_bytes(),
            ..Progress::default()
        };
        Self {
            id,
            recipe,
            began: Instant::now(),
            progress: watch::Sender::new(progress),
            outcome: watch::Sender::new(None),
            commands,
            last_error: Mutex::default(),
            early: Mutex::default(),
        }
    }

    /// The driver was told of it, and is told of what was asked for before.
    pub(crate) fn started(&self) {
        let mut early = self.early.lock();
        early.started = true;
        for range in std::mem::take(&mut early.demands) {
            self.pass_on(range);
        }
    }

    fn demand(&self, range: Range<u32>) {
        let mut early = self.early.lock();
        if early.started {
            return self.pass_on(range);
        }
        if early.demands.len() >= EARLY_DEMANDS_MAX {
            early.demands.pop_front();
        }
        early.demands.push_back(range);
    }

    fn pass_on(&self, range: Range<u32>) {
        let _ = self.commands.try_send(Event::Demand { recipe: self.id, range });
    }

    pub(crate) fn local(&self, indices: impl Iterator<Item = u32>) {
        let chunks = self.recipe.chunks();
        let lengths: Vec<u64> = indices.map(|at| u64::from(chunks[at as usize].length)).collect();
        self.progress.send_modify(|progress| {
            progress.chunks_done = lengths.len() as u32;
            progress.bytes_local = lengths.iter().sum();
            progress.bytes_done = progress.bytes_local;
        });
    }

    /// A chunk of so many bytes, of which some were saved on the way.
    pub(crate) fn arrived(&self, link: &Link, bytes: u64, saved: u64) {
        self.progress.send_modify(|progress| {
            progress.bytes_saved += saved;
            if link.node {
                *progress.bytes_by_node.entry(link.peer).or_default() += bytes;
            } else {
                *progress.bytes_by_peer.entry(link.peer).or_default() += bytes;
                count_by_zone(&mut progress.bytes_by_zone, &link.zone, bytes);
            }
            progress.bytes_done = (progress.bytes_done + bytes).min(progress.bytes_total);
            progress.chunks_done = (progress.chunks_done + 1).min(progress.chunks_total);
            progress.elapsed = self.began.elapsed();
            progress.last_error = self.last_error.lock().clone();
        });
    }

    pub(crate) fn waits(&self, wait: Option<Wait>) {
        let waits_for = wait.map(Wait::as_str);
        self.progress.send_if_modified(|progress| {
            let before = std::mem::replace(&mut progress.waits_for, waits_for);
            before != waits_for
        });
    }

    pub(crate) fn trouble(&self, text: String) {
        *self.last_error.lock() = Some(text);
    }

    /// The first end counts.
    pub(crate) fn end(&self, outcome: Result<(), FetchError>) {
        self.progress.send_modify(|progress| {
            progress.elapsed = self.began.elapsed();
            progress.last_error = self.last_error.lock().clone();
            progress.waits_for = None;
        });
        let progress = self.progress.borrow().clone();
        self.outcome.send_if_modified(|slot| {
            let first = slot.is_none();
            if first {
                *slot = Some(outcome.map(|()| progress));
            }
            first
        });
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.outcome.borrow().is_some()
    }

    pub(crate) fn has_succeeded(&self) -> bool {
        matches!(*self.outcome.borrow(), Some(Ok(_)))
    }

    pub(crate) fn snapshot(&self) -> Progress {
        self.progress.borrow().clone()
    }
}

/// Peers say themselves where they stand: of more zones, the rest counts as nowhere.
fn count_by_zone(by_zone: &mut BTreeMap<Zone, u64>, zone: &Zone, bytes: u64) {
    if let Some(count) = by_zone.get_mut(zone) {
        *count += bytes;
    } else {
        let known = by_zone.len() < ZONES_MAX;
        *by_zone.entry(if known { zone.clone() } else { Zone::default() }).or_default() += bytes;
    }
}

/// The handles' common end.
#[derive(Debug)]
pub(crate) struct Handle(pub(crate) Arc<Running>);

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.0.has_succeeded() {
            // Where the queue is full, the driver finds the transfer without an owner by itself.
            let _ = self.0.commands.try_send(Event::Stop { recipe: self.0.id });
        }
    }
}

/// A transfer, and whether somebody still holds a handle of it. The driver drops it some time
/// after the last handle.
pub(crate) struct Owned {
    pub(crate) running: Arc<Running>,
    pub(crate) handle: Weak<Handle>,
}

impl Owned {
    pub(crate) fn has_owner(&self) -> bool {
        self.handle.strong_count() > 0
    }

    pub(crate) fn is_under_way(&self) -> bool {
        self.has_owner() && !self.running.has_ended()
    }

    pub(crate) fn end(&self, error: FetchError) {
        self.running.end(Err(error));
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        !self.has_owner() && !self.running.has_succeeded()
    }
}

/// A recipe on its way. Clones share it; dropping the last one cancels it.
#[derive(Debug, Clone)]
pub struct Transfer(pub(crate) Arc<Handle>);

impl Transfer {
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.0.0.progress.subscribe()
    }

    /// Asks for these chunk indices before all others, in order. A hint: under overload it may be
    /// lost, and the chunks come in their turn.
    pub fn demand(&self, range: Range<u32>) {
        self.0.0.demand(range);
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// [`FetchError::Storage`] where the store failed, [`FetchError::Expired`] where its ticket ran
    /// out, [`FetchError::Stopped`] at shutdown.
    pub async fn wait(&self) -> Result<Progress, FetchError> {
        let mut outcome = self.0.0.outcome.subscribe();
        match outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            _ => Err(FetchError::Stopped),
        }
    }
}
