//! What a transfer survives: a peer that dies in the middle, an owner who gives up, a full disk.

mod cluster;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use shoal_content::{Recipe, RecipeId, Timestamp};
use shoal_p2p::{
    ChunkSet, ChunkStore, FetchError, Limits, MemoryStore, PeerRole, Progress, StoreError,
    Transfer, wall_clock,
};
use tokio::sync::Semaphore;

use cluster::{Cluster, DEADLINE, Process, content, fetch, fill, holds_all};

/// A store whose disk may be full, that may lose what it held, and that may take long to open.
#[derive(Debug)]
struct SmallStore {
    inner: MemoryStore,
    full: AtomicBool,
    lost: AtomicBool,
    opening: Semaphore,
}

impl Default for SmallStore {
    fn default() -> Self {
        let (full, lost) = (AtomicBool::new(false), AtomicBool::new(false));
        let opening = Semaphore::new(Semaphore::MAX_PERMITS);
        Self { inner: MemoryStore::default(), full, lost, opening }
    }
}

impl SmallStore {
    /// Opens nothing until [`Self::open_now`].
    fn slow_to_open() -> Arc<Self> {
        Arc::new(Self { opening: Semaphore::new(0), ..Self::default() })
    }

    fn open_now(&self) {
        self.opening.add_permits(1);
    }
}

#[async_trait]
impl ChunkStore for SmallStore {
    async fn recipe(&self, id: RecipeId) -> Result<Option<Arc<Recipe>>, StoreError> {
        self.inner.recipe(id).await
    }

    async fn held(&self, id: RecipeId) -> Result<ChunkSet, StoreError> {
        if self.lost.load(Ordering::Relaxed) {
            return Ok(ChunkSet::empty(0));
        }
        self.inner.held(id).await
    }

    async fn read(&self, id: RecipeId, index: u32) -> Result<Option<Bytes>, StoreError> {
        if self.lost.load(Ordering::Relaxed) {
            return Ok(None);
        }
        self.inner.read(id, index).await
    }

    async fn open(&self, id: RecipeId, recipe: Arc<Recipe>) -> Result<ChunkSet, StoreError> {
        let turn = self.opening.acquire().await.expect("it is never closed");
        turn.forget();
        self.inner.open(id, recipe).await
    }

    async fn write(&self, id: RecipeId, index: u32, content: Bytes) -> Result<(), StoreError> {
        if index >= 16 && self.full.load(Ordering::Relaxed) {
            return Err(StoreError::full("no space left".to_owned()));
        }
        self.inner.write(id, index, content).await
    }

    async fn complete(&self, id: RecipeId) -> Result<(), StoreError> {
        self.inner.complete(id).await
    }
}

/// An agent that gets something from a holder of all of it, and has begun.
struct UnderWay {
    cluster: Cluster,
    origin: Process,
    holder: Process,
    agent: Process,
    recipe: Arc<Recipe>,
    id: RecipeId,
    contents: Vec<Bytes>,
    transfer: Transfer,
}

impl UnderWay {
    async fn begin() -> Self {
        let cluster = Cluster::found(1);
        let origin = cluster.start(PeerRole::Origin).await;
        let (recipe, id, contents) = content(512);
        fill(&*origin.store, &recipe, id, &contents).await;
        let holder = cluster.start(PeerRole::Host).await;
        holder.swarm.set_nodes(vec![origin.address()]).await;
        fetch(&cluster, &holder, id).await;
        let agent = cluster.start(PeerRole::Host).await;
        agent.swarm.set_nodes(vec![origin.address()]).await;
        let ticket = cluster.ticket(id, agent.swarm.peer_id());
        let transfer = agent.swarm.fetch(id, recipe.clone(), ticket);
        let mut progress = transfer.progress();
        let began = progress.wait_for(|progress| !progress.bytes_by_peer.is_empty());
        tokio::time::timeout(DEADLINE, began).await.unwrap().unwrap();
        Self { cluster, origin, holder, agent, recipe, id, contents, transfer }
    }

    /// It ends well all the same, and little comes twice.
    async fn end(&self) {
        let done = tokio::time::timeout(DEADLINE, self.transfer.wait()).await.unwrap().unwrap();
        holds_all(&*self.agent.store, self.id, &self.contents).await;
        let came: u64 = done.bytes_by_peer.values().chain(done.bytes_by_node.values()).sum();
        // The endgame may bring a few chunks twice.
        assert!(came <= self.recipe.chunk_bytes() * 11 / 10, "{came} bytes came");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_dies_in_the_middle_only_costs_what_it_had_not_sent() {
    let under_way = UnderWay::begin().await;
    under_way.holder.swarm.shutdown().await;
    under_way.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_away_in_order_ends_what_it_sends_and_is_not_asked_again() {
    let under_way = UnderWay::begin().await;
    let UnderWay { cluster, origin, holder, agent, id, .. } = &under_way;
    assert!(holder.swarm.retire(DEADLINE).await, "an answer did not end");
    // Both are still connected; what comes now comes from elsewhere.
    let late = cluster.start(PeerRole::Host).await;
    late.swarm.set_nodes(vec![origin.address()]).await;
    let whole = fetch(cluster, &late, *id).await;
    assert!(!whole.bytes_by_peer.contains_key(&holder.swarm.peer_id()), "{whole:?}");
    under_way.end().await;
    assert!(agent.swarm.status().banned.is_empty());
    holder.swarm.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold_nobody_up_for_good_and_ban_nobody() {
    let cluster = Cluster::found(1);
    let origin = cluster.start(PeerRole::Origin).await;
    let (recipe, id, contents) = content(24);
    fill(&*origin.store, &recipe, id, &contents).await;
    let thin = Limits { upload: Some(2_000_000), download: Some(4_000_000) };
    origin.swarm.set_limits(thin).await;
    let mut agents = Vec::new();
    for _ in 0..2 {
        let agent = cluster.start(PeerRole::Host).await;
        agent.swarm.set_nodes(vec![origin.address()]).await;
        agent.swarm.set_limits(thin).await;
        agents.push(agent);
    }
    let (first, second) =
        tokio::join!(fetch(&cluster, &agents[0], id), fetch(&cluster, &agents[1], id));
    assert!(first.chunks_done == 24 && second.chunks_done == 24);
    for agent in &agents {
        holds_all(&*agent.store, id, &contents).await;
        assert!(agent.swarm.status().banned.is_empty());
    }
    // A limit that is lifted counts at once, for who waits, too.
    origin.swarm.set_limits(Limits::default()).await;
    let third = cluster.start(PeerRole::Host).await;
    third.swarm.set_nodes(vec![origin.address()]).await;
    fetch(&cluster, &third, id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_transfer_stops_and_a_new_one_goes_on_from_there() {
    let cluster = Cluster::found(1);
    let origin = cluster.start(PeerRole::Origin).await;
    let (recipe, id, contents) = content(512);
    fill(&*origin.store, &recipe, id, &contents).await;
    let agent = cluster.start(PeerRole::Host).await;
    agent.swarm.set_nodes(vec![origin.address()]).await;
    let ticket = cluster.ticket(id, agent.swarm.peer_id());
    let transfer = agent.swarm.fetch(id, recipe.clone(), ticket.clone());
    let mut progress = transfer.progress();
    let began = progress.wait_for(|progress| progress.chunks_done >= 8);
    tokio::time::timeout(DEADLINE, began).await.unwrap().unwrap();
    drop(transfer);
    // No more uploads at the origin: the requests under way were cancelled.
    let idle = async {
        while origin.swarm.status().uploads > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, idle).await.unwrap();
    assert!(agent.swarm.status().transfers.is_empty());
    let kept = agent.store.held(id).await.unwrap().count();
    assert!(kept >= 8, "only {kept} chunks were kept");
    let done = fetch(&cluster, &agent, id).await;
    assert!(done.bytes_local > 0, "what was verified before was fetched again");
    holds_all(&*agent.store, id, &contents).await;
}

/// A node that has something, and hosts that want it.
struct Offer {
    cluster: Cluster,
    origin: Process,
    recipe: Arc<Recipe>,
    id: RecipeId,
    contents: Vec<Bytes>,
}

impl Offer {
    async fn of(chunks: usize) -> Self {
        let cluster = Cluster::found(1);
        let origin = cluster.start(PeerRole::Origin).await;
        let (recipe, id, contents) = content(chunks);
        fill(&*origin.store, &recipe, id, &contents).await;
        Self { cluster, origin, recipe, id, contents }
    }

    async fn agent(&self, store: Arc<dyn ChunkStore>) -> Process {
        let agent = self.cluster.start_on(PeerRole::Host, store).await;
        agent.swarm.set_nodes(vec![self.origin.address()]).await;
        agent
    }

    fn begin(&self, agent: &Process) -> Transfer {
        let ticket = self.cluster.ticket(self.id, agent.swarm.peer_id());
        agent.swarm.fetch(self.id, self.recipe.clone(), ticket)
    }

    /// Fetches all of it, or what is missing.
    async fn fetch(&self, agent: &Process) -> Progress {
        let done = fetch(&self.cluster, agent, self.id).await;
        holds_all(&*agent.store, self.id, &self.contents).await;
        done
    }
}

async fn failure(transfer: &Transfer) -> FetchError {
    tokio::time::timeout(DEADLINE, transfer.wait()).await.unwrap().unwrap_err()
}

/// Waits until a transfer is as far as that.
async fn reached(transfer: &Transfer, far: impl FnMut(&Progress) -> bool) {
    let mut progress = transfer.progress();
    tokio::time::timeout(DEADLINE, progress.wait_for(far)).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_ends_the_fetch_with_that_reason_and_a_retry_goes_on() {
    let offer = Offer::of(64).await;
    let store = Arc::new(SmallStore::default());
    store.full.store(true, Ordering::Relaxed);
    let agent = offer.agent(store.clone()).await;
    let transfer = offer.begin(&agent);
    let error = failure(&transfer).await;
    assert!(error.is_full(), "{error}");
    assert!(agent.metric("shoal_chunks_refused_total{reason=\"storage\"}") >= 1);
    drop(transfer);
    store.full.store(false, Ordering::Relaxed);
    offer.fetch(&agent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_lets_go_of_a_failed_transfer_does_not_stop_the_next_one() {
    let offer = Offer::of(512).await;
    let store = Arc::new(SmallStore::default());
    store.full.store(true, Ordering::Relaxed);
    let agent = offer.agent(store.clone()).await;
    let failed = offer.begin(&agent);
    let error = failure(&failed).await;
    assert!(error.is_full(), "{error}");
    store.full.store(false, Ordering::Relaxed);
    let next = offer.begin(&agent);
    reached(&next, |progress| progress.bytes_done > progress.bytes_local).await;
    drop(failed);
    tokio::time::timeout(DEADLINE, next.wait()).await.unwrap().unwrap();
    holds_all(&*agent.store, offer.id, &offer.contents).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_is_given_up_while_the_store_opens_never_begins() {
    /// Those that are asked in vain are banned after their third failure, within a second.
    const BLAMED_WITHIN: Duration = Duration::from_secs(3);
    let offer = Offer::of(64).await;
    let holder = offer.agent(Arc::new(MemoryStore::default())).await;
    offer.fetch(&holder).await;
    let store = SmallStore::slow_to_open();
    let agent = offer.agent(store.clone()).await;
    let given_up = offer.begin(&agent);
    let mut progress = given_up.progress();
    drop(given_up);
    // Nothing else changes it before the store is open.
    tokio::time::timeout(DEADLINE, progress.changed()).await.unwrap().unwrap();
    store.open_now();
    let told = async { while progress.changed().await.is_ok() {} };
    tokio::time::timeout(DEADLINE, told).await.expect("whoever opened the store is done");
    let blamed = async {
        while agent.swarm.status().banned.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let blamed = tokio::time::timeout(BLAMED_WITHIN, blamed).await;
    assert!(blamed.is_err(), "others were blamed for what nobody wanted");
    assert_eq!(agent.store.held(offer.id).await.unwrap().count(), 0);
    store.open_now();
    offer.fetch(&agent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_dropped_what_it_held_is_neither_blamed_nor_asked() {
    let offer = Offer::of(256).await;
    let store = Arc::new(SmallStore::default());
    let holder = offer.agent(store.clone()).await;
    offer.fetch(&holder).await;
    store.lost.store(true, Ordering::Relaxed);
    // Whether another one that wants it was sent there.
    let sent_there = async || {
        let agent = offer.agent(Arc::new(MemoryStore::default())).await;
        let done = offer.fetch(&agent).await;
        assert!(!done.bytes_by_peer.contains_key(&holder.swarm.peer_id()), "{done:?}");
        let status = agent.swarm.status();
        assert!(status.banned.is_empty(), "it was blamed");
        agent.swarm.shutdown().await;
        status.peers.iter().any(|peer| peer.peer == holder.swarm.peer_id())
    };
    // Before it has said so, and after.
    sent_there().await;
    holder.swarm.withdraw(offer.id).await;
    let heard = async { while sent_there().await {} };
    tokio::time::timeout(DEADLINE, heard).await.unwrap();
    // It may have it again.
    store.lost.store(false, Ordering::Relaxed);
    offer.fetch(&holder).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_runs_out_ends_the_transfer_and_another_goes_on() {
    let offer = Offer::of(1024).await;
    offer.origin.swarm.set_limits(Limits { upload: Some(2_000_000), download: None }).await;
    let agent = offer.agent(Arc::new(MemoryStore::default())).await;
    let until = Timestamp::from_millis(wall_clock().as_millis() + 6000);
    let ticket = offer.cluster.ticket_until(offer.id, agent.swarm.peer_id(), until);
    let transfer = agent.swarm.fetch(offer.id, offer.recipe.clone(), ticket);
    let error = failure(&transfer).await;
    assert!(matches!(error, FetchError::Expired) && error.is_retryable(), "{error}");
    drop(transfer);
    offer.origin.swarm.set_limits(Limits::default()).await;
    let done = offer.fetch(&agent).await;
    assert!(done.bytes_local > 0, "what had come was fetched again");
    assert!(agent.swarm.status().banned.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_for_while_the_store_opens_comes_first() {
    let offer = Offer::of(512).await;
    offer.origin.swarm.set_limits(Limits { upload: Some(4_000_000), download: None }).await;
    let store = SmallStore::slow_to_open();
    let agent = offer.agent(store.clone()).await;
    let transfer = offer.begin(&agent);
    transfer.demand(300..308);
    store.open_now();
    reached(&transfer, |progress| progress.chunks_done >= 64).await;
    let held = agent.store.held(offer.id).await.unwrap();
    let missing: Vec<u32> = (300..308).filter(|&index| !held.contains(index)).collect();
    assert!(missing.is_empty(), "{missing:?} did not come among the first 64 of 512");
}
