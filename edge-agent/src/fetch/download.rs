//! One recipe on its way into the cache, shared by everybody who wants it.
//!
//! The download runs in a task of its own. Each [`Download`] is a handle; when the last one is
//! dropped, the task lingers for [`LINGER`] (a container engine that broke off comes back) and is
//! cancelled then. What was verified stays in the cache.
//!
//! Invariants: a recipe has at most one running download; whoever starts one while it runs joins it.
//! None is given up that has a handle.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::{Mutex, RwLock};
use shoal_api::{DeltaGrant, NodeAddress, TransferProgress};
use shoal_content::{PeerId, Recipe, RecipeId, Ticket, Zone};
use shoal_p2p::{ChunkStore, FetchError, Progress, Swarm};
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use super::delta::{self, Rebuilt};
use crate::cache::{self, Cache};

const LINGER: Duration = Duration::from_secs(5);
/// Demands waiting for the swarm; more than this many are dropped, since newer ones follow.
const DEMANDS_MAX: usize = 64;

/// What people read that a download waits for, before the swarm says more.
const RECIPE: &str = "its list of chunks, from a node or another host";
const BUNDLE: &str = "a delta bundle";

/// Why a recipe did not arrive.
#[derive(Debug, Error)]
pub enum Error {
    #[error("the ticket in the node's answer is malformed")]
    Ticket,
    #[error("the swarm could not bring it: {0}")]
    Fetch(FetchError),
    #[error(transparent)]
    Cache(cache::Error),
    #[error("the agent is shutting down")]
    Stopped,
}

impl Error {
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Fetch(error) => error.is_retryable(),
            Self::Ticket | Self::Cache(_) | Self::Stopped => false,
        }
    }

    pub fn is_full(&self) -> bool {
        match self {
            Self::Fetch(error) => error.is_full(),
            Self::Cache(error) => error.is_full(),
            _ => false,
        }
    }

    /// Whether the cache is too small for it, be it for now or for good.
    pub fn lacks_room(&self) -> bool {
        match self {
            Self::Fetch(error) => error.is_full(),
            Self::Cache(error) => error.lacks_room(),
            Self::Ticket | Self::Stopped => false,
        }
    }
}

/// A recipe, the right to it (base64) and its size in bytes as the node gave it.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub recipe: RecipeId,
    pub ticket: String,
    pub bytes: u64,
    /// What leads to it from a disk that is here.
    pub delta: Option<DeltaGrant>,
}

/// What happened to a download.
#[derive(Debug)]
pub enum Step {
    Progress(TransferProgress),
    End(Result<TransferProgress, Arc<Error>>),
}

type Outcome = Option<Result<TransferProgress, Arc<Error>>>;

#[derive(Debug)]
struct Running {
    recipe: watch::Receiver<Option<Arc<Recipe>>>,
    progress: watch::Receiver<TransferProgress>,
    outcome: watch::Receiver<Outcome>,
    demands: mpsc::Sender<Range<u32>>,
    /// Its receivers are the handles.
    handles: watch::Sender<()>,
}

/// A handle on a running (or just finished) download.
#[derive(Debug, Clone)]
pub struct Download {
    running: Arc<Running>,
    progress: watch::Receiver<TransferProgress>,
    outcome: watch::Receiver<Outcome>,
    _handle: watch::Receiver<()>,
}

impl Download {
    fn of(running: Arc<Running>) -> Self {
        let (progress, outcome) = (running.progress.clone(), running.outcome.clone());
        let handle = running.handles.subscribe();
        Self { running, progress, outcome, _handle: handle }
    }

    /// Waits for the next thing that happens.
    pub async fn next(&mut self) -> Step {
        let Self { progress, outcome, .. } = self;
        tokio::select! {
            biased;
            ended = outcome.wait_for(Option::is_some) => Step::End(settle(ended.as_deref().ok())),
            Ok(()) = progress.changed() => Step::Progress(progress.borrow_and_update().clone()),
        }
    }

    /// The progress as it stands.
    pub fn latest(&self) -> TransferProgress {
        self.progress.borrow().clone()
    }

    /// Waits for the end.
    pub async fn outcome(&mut self) -> Result<TransferProgress, Arc<Error>> {
        settle(self.outcome.wait_for(Option::is_some).await.as_deref().ok())
    }

    /// Waits until the recipe itself is known, and that the cache has room for all of it.
    pub async fn recipe(&mut self) -> Result<Arc<Recipe>, Arc<Error>> {
        let mut recipe = self.running.recipe.clone();
        tokio::select! {
            biased;
            // A task that fails before gives no recipe any more; why, its outcome says.
            Ok(found) = recipe.wait_for(Option::is_some) => {
                if let Some(recipe) = found.as_ref() {
                    return Ok(recipe.clone());
                }
            }
            outcome = self.outcome.wait_for(|o| matches!(o, Some(Err(_)))) => {
                if let Ok(Some(Err(error))) = outcome.as_deref() {
                    return Err(error.clone());
                }
            }
        }
        Err(Arc::new(Error::Stopped))
    }

    /// Asks for these chunks before all others.
    pub fn demand(&self, chunks: Range<u32>) {
        // A full queue means that newer demands than the swarm can take are on their way.
        let _ = self.running.demands.try_send(chunks);
    }
}

/// No outcome at all means that the task went with the runtime.
fn settle(outcome: Option<&Outcome>) -> Result<TransferProgress, Arc<Error>> {
    outcome.cloned().flatten().unwrap_or_else(|| Err(Arc::new(Error::Stopped)))
}

type RunningByRecipe = Mutex<HashMap<RecipeId, Arc<Running>>>;

#[derive(Debug)]
struct Shared {
    cache: Cache,
    swarm: Swarm,
    running: RunningByRecipe,
    node_names: RwLock<HashMap<PeerId, String>>,
}

/// Starts downloads and knows those that run; clones share them.
#[derive(Debug, Clone)]
pub struct Downloads(Arc<Shared>);

impl Downloads {
    pub fn new(cache: Cache, swarm: Swarm) -> Self {
        Self(Arc::new(Shared {
            cache,
            swarm,
            running: Mutex::default(),
            node_names: RwLock::default(),
        }))
    }

    /// By these names the nodes appear in reports.
    pub fn set_nodes(&self, nodes: &[NodeAddress]) {
        let names = nodes.iter().map(|node| (node.peer, node.name.clone()));
        *self.0.node_names.write() = names.collect();
    }

    /// Joins the running download of this recipe, or starts one.
    pub fn start(&self, wanted: Wanted) -> Download {
        let mut all = self.0.running.lock();
        let found = all.get(&wanted.recipe).cloned();
        if let Some(running) = found.filter(|running| running.outcome.borrow().is_none()) {
            return Download::of(running);
        }
        let first = TransferProgress { bytes_total: wanted.bytes, ..Default::default() };
        let (progress_sender, progress) = watch::channel(first);
        let (outcome_sender, outcome) = watch::channel(None);
        let (recipe_sender, recipe) = watch::channel(None);
        let (demand_sender, demands) = mpsc::channel(DEMANDS_MAX);
        let handles = watch::Sender::new(());
        let running = Running { recipe, progress, outcome, demands: demand_sender, handles };
        let running = Arc::new(running);
        let id = wanted.recipe;
        all.insert(id, running.clone());
        let task = Task {
            shared: self.0.clone(),
            wanted,
            progress: progress_sender,
            recipe: recipe_sender,
            demands,
            copied_before: 0,
        };
        let download = Download::of(running.clone());
        let shared = self.0.clone();
        tokio::spawn(async move {
            let mut run = std::pin::pin!(task.run());
            let outcome = loop {
                tokio::select! {
                    outcome = &mut run => {
                        forget(&mut shared.running.lock(), id, &running);
                        break outcome;
                    }
                    () = abandoned(&running.handles) => {
                        if give_up(&shared.running, id, &running) {
                            break Err(Error::Stopped);
                        }
                    }
                }
            };
            outcome_sender.send_replace(Some(outcome.map_err(Arc::new)));
        });
        download
    }
}

/// Whether nobody has a handle of `running`. It is forgotten then, under the lock that whoever starts
/// one takes: who comes at the last moment either keeps it or begins anew.
fn give_up(all: &RunningByRecipe, id: RecipeId, running: &Arc<Running>) -> bool {
    let mut all = all.lock();
    let alone = running.handles.is_closed();
    if alone {
        forget(&mut all, id, running);
    }
    alone
}

fn forget(all: &mut HashMap<RecipeId, Arc<Running>>, id: RecipeId, running: &Arc<Running>) {
    if all.get(&id).is_some_and(|found| Arc::ptr_eq(found, running)) {
        all.remove(&id);
    }
}

/// Ends once there was no handle for [`LINGER`].
async fn abandoned(handles: &watch::Sender<()>) {
    loop {
        handles.closed().await;
        tokio::time::sleep(LINGER).await;
        if handles.is_closed() {
            return;
        }
    }
}

struct Task {
    shared: Arc<Shared>,
    wanted: Wanted,
    progress: watch::Sender<TransferProgress>,
    recipe: watch::Sender<Option<Arc<Recipe>>>,
    demands: mpsc::Receiver<Range<u32>>,
    /// What had been copied for the recipe out of others before, in bytes.
    copied_before: u64,
}

impl Task {
    async fn run(mut self) -> Result<TransferProgress, Error> {
        let id = self.wanted.recipe;
        let _lease = self.shared.cache.lease(id);
        let ticket = STANDARD.decode(&self.wanted.ticket).map_err(|_| Error::Ticket)?;
        let ticket = Ticket::from_bytes(&ticket).map_err(|_| Error::Ticket)?;
        let store = &self.shared.cache;
        let kept = ChunkStore::recipe(store, id).await.map_err(FetchError::from);
        let recipe = match kept.map_err(Error::Fetch)? {
            Some(recipe) => recipe,
            None => {
                self.waits_for(RECIPE);
                let found = self.shared.swarm.recipe(id, ticket.clone()).await;
                found.map_err(Error::Fetch)?
            }
        };
        // Before the first chunk: what cannot be kept is not worth the network.
        let (cache, wanted) = (store.clone(), recipe.clone());
        let room = crate::blocking(move || cache.check_room(id, &wanted)).await;
        room.ok_or(Error::Stopped)?.map_err(Error::Cache)?;
        self.recipe.send_replace(Some(recipe.clone()));
        self.copied_before = self.copied();
        let rebuilt = self.rebuild(&recipe).await;
        let transfer = self.shared.swarm.fetch(id, recipe, ticket);
        let mut changes = transfer.progress();
        let mut waiting = std::pin::pin!(transfer.wait());
        loop {
            tokio::select! {
                outcome = &mut waiting => {
                    let summary = outcome.map_err(Error::Fetch)?;
                    let progress = self.convert(&summary, &rebuilt);
                    self.progress.send_replace(progress.clone());
                    debug!(recipe = %id, bytes = progress.bytes_done, "download complete");
                    return Ok(progress);
                }
                Ok(()) = changes.changed() => {
                    let progress = changes.borrow_and_update().clone();
                    self.progress.send_replace(self.convert(&progress, &rebuilt));
                }
                Some(chunks) = self.demands.recv() => transfer.demand(chunks),
            }
        }
    }

    fn waits_for(&self, what: &str) {
        self.progress.send_modify(|progress| progress.waits_for = Some(what.to_owned()));
    }

    /// What was copied for the recipe out of others since the start, in bytes.
    fn copied(&self) -> u64 {
        let entry = self.shared.cache.entry(self.wanted.recipe);
        entry.map_or(0, |entry| entry.copied_bytes())
    }

    /// Makes what it can from a disk that is here; without a bundle, nothing.
    async fn rebuild(&self, recipe: &Arc<Recipe>) -> Rebuilt {
        let mut rebuilt = Rebuilt::default();
        let Some(grant) = &self.wanted.delta else { return rebuilt };
        let Shared { cache, swarm, .. } = &*self.shared;
        self.waits_for(BUNDLE);
        let first = self.progress.borrow().clone();
        let on_bundle = |bundle: &Progress| {
            let mut progress = first.clone();
            self.add_bundle(&mut progress, bundle);
            self.progress.send_replace(progress);
        };
        let new = (self.wanted.recipe, recipe);
        let outcome = delta::rebuild(cache, swarm, new, grant, &mut rebuilt, on_bundle).await;
        cache.metrics().delta_bytes.inc_by(rebuilt.content_bytes);
        match outcome {
            Ok(()) => debug!(recipe = %new.0, bytes = rebuilt.content_bytes, "made from a bundle"),
            Err(error) => {
                let error = crate::nodes::chain(&error);
                warn!(recipe = %new.0, bundle = %grant.recipe, error, "going on without a bundle");
                cache.metrics().delta_failures.inc();
            }
        }
        rebuilt
    }

    /// Counts what came of a bundle.
    fn add_bundle(&self, progress: &mut TransferProgress, bundle: &Progress) {
        let names = self.shared.node_names.read();
        let name = |peer: &PeerId| names.get(peer).cloned().unwrap_or_else(|| peer.to_string());
        let by = [
            (&bundle.bytes_by_peer, &mut progress.bytes_by_peer),
            (&bundle.bytes_by_node, &mut progress.bytes_by_node),
        ];
        for (from, to) in by {
            for (peer, bytes) in from {
                *to.entry(name(peer)).or_default() += bytes;
                progress.delta_bundle_bytes += bytes;
            }
        }
        for (zone, bytes) in &bundle.bytes_by_zone {
            *progress.bytes_by_zone.entry(zone.to_string()).or_default() += bytes;
        }
    }

    fn convert(&self, progress: &Progress, rebuilt: &Rebuilt) -> TransferProgress {
        let mut converted = self.convert_own(progress);
        // What was made stood in the cache before the chunks' transfer began.
        converted.bytes_local = converted.bytes_local.saturating_sub(rebuilt.content_bytes);
        let copied = self.copied().saturating_sub(self.copied_before);
        converted.bytes_deduplicated = copied.min(converted.bytes_local);
        converted.bytes_by_delta = rebuilt.content_bytes;
        self.add_bundle(&mut converted, &rebuilt.bundle);
        converted
    }

    fn convert_own(&self, progress: &Progress) -> TransferProgress {
        let names = self.shared.node_names.read();
        let named = |(peer, bytes): (&PeerId, &u64)| {
            (names.get(peer).cloned().unwrap_or_else(|| peer.to_string()), *bytes)
        };
        let of_zone = |(zone, bytes): (&Zone, &u64)| (zone.to_string(), *bytes);
        TransferProgress {
            state: "running".into(),
            bytes_total: progress.bytes_total,
            bytes_done: progress.bytes_done,
            bytes_local: progress.bytes_local,
            bytes_deduplicated: 0,
            bytes_by_delta: 0,
            delta_bundle_bytes: 0,
            bytes_by_peer: progress.bytes_by_peer.iter().map(named).collect(),
            bytes_by_node: progress.bytes_by_node.iter().map(named).collect(),
            bytes_by_zone: progress.bytes_by_zone.iter().map(of_zone).collect(),
            rate_bytes_per_second: 0,
            elapsed_ms: progress.elapsed.as_millis() as u64,
            waits_for: progress.waits_for.map(str::to_owned),
            last_error: progress.last_error.clone(),
            line_bytes_per_second: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A download without a task: the senders stand for it.
    struct Made {
        running: Arc<Running>,
        recipe: watch::Sender<Option<Arc<Recipe>>>,
        outcome: watch::Sender<Outcome>,
    }

    fn made() -> Made {
        let (recipe_sender, recipe) = watch::channel(None);
        let (outcome_sender, outcome) = watch::channel(None);
        let (_, progress) = watch::channel(TransferProgress::default());
        let (demands, _) = mpsc::channel(1);
        let handles = watch::Sender::new(());
        let running = Arc::new(Running { recipe, progress, outcome, demands, handles });
        Made { running, recipe: recipe_sender, outcome: outcome_sender }
    }

    #[tokio::test]
    async fn whoever_waits_for_the_recipe_hears_why_there_is_none() {
        let Made { running, recipe, outcome } = made();
        let mut download = Download::of(running);
        // As a task that ends: what it holds goes first, its outcome is told then.
        drop(recipe);
        let waiting = tokio::spawn(async move { download.recipe().await });
        tokio::task::yield_now().await;
        let error = Error::Cache(cache::Error::TooLarge { need: 2, room: 1 });
        outcome.send_replace(Some(Err(Arc::new(error))));
        let told = waiting.await.unwrap().unwrap_err();
        assert!(told.lacks_room() && !told.is_full(), "{told}");
    }

    #[test]
    fn a_download_that_somebody_joins_at_the_last_moment_is_not_given_up() {
        let (id, all) = (RecipeId::of(b"joined"), RunningByRecipe::default());
        let Made { running, .. } = made();
        all.lock().insert(id, running.clone());
        assert!(running.handles.is_closed(), "its last handle is gone");
        let joined = Download::of(running.clone());
        assert!(!give_up(&all, id, &running));
        assert!(all.lock().contains_key(&id));
        drop(joined);
        assert!(give_up(&all, id, &running));
        assert!(all.lock().is_empty(), "whoever comes now would join what is dead");
        // Another one of that recipe is none of its business.
        let other = made().running;
        all.lock().insert(id, other.clone());
        assert!(give_up(&all, id, &running));
        assert!(all.lock().get(&id).is_some_and(|found| Arc::ptr_eq(found, &other)));
    }
}
