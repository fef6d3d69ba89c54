//! Chunks on the wire as zstd frames, on loopback: who sends them, who passes them on, who does not.

mod cluster;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use shoal_content::{Encoding, Recipe, RecipeId};
use shoal_p2p::{
    ChunkSet, ChunkStore, Limits, MemoryStore, PeerRole, Progress, StoreError, Stored, ZstdFrame,
};
use tokio::time::timeout;

use cluster::{CHUNK_BYTES, Cluster, DEADLINE, Process, fetch, fill, holds_all, recipe_of};

const SAVED_SENT: &str = "shoal_wire_bytes_saved_total{direction=\"sent\"}";
const SAVED_RECEIVED: &str = "shoal_wire_bytes_saved_total{direction=\"received\"}";
const BY_TLS: &str = "shoal_bulk_bytes_received_total{path=\"tls\"}";
const BANS: &str = "shoal_peer_bans_total{reason=\"wrong_content\"}";
/// Of each chunk that compresses; the rest is noise, since much has to come for a line to look fast.
const ZEROS: usize = CHUNK_BYTES / 8;

/// Has chunks as a node's packs do: compressed where that makes them shorter.
#[derive(Debug, Default)]
struct PackStore {
    inner: MemoryStore,
    frames: Mutex<HashMap<(RecipeId, u32), ZstdFrame>>,
}

fn frame(content: &Bytes) -> Option<ZstdFrame> {
    let frame = zstd::bulk::compress(content, 3).unwrap();
    ZstdFrame::parse(frame.into(), content.len() as u32)
}

#[async_trait]
impl ChunkStore for PackStore {
    async fn recipe(&self, id: RecipeId) -> Result<Option<Arc<Recipe>>, StoreError> {
        self.inner.recipe(id).await
    }

    async fn held(&self, id: RecipeId) -> Result<ChunkSet, StoreError> {
        self.inner.held(id).await
    }

    async fn read(&self, id: RecipeId, index: u32) -> Result<Option<Bytes>, StoreError> {
        self.inner.read(id, index).await
    }

    async fn read_stored(&self, id: RecipeId, index: u32) -> Result<Option<Stored>, StoreError> {
        let frame = self.frames.lock().unwrap().get(&(id, index)).cloned();
        match frame {
            Some(frame) => Ok(Some(Stored::Zstd(frame))),
            None => Ok(self.inner.read(id, index).await?.map(Stored::Raw)),
        }
    }

    async fn open(&self, id: RecipeId, recipe: Arc<Recipe>) -> Result<ChunkSet, StoreError> {
        self.inner.open(id, recipe).await
    }

    async fn write(&self, id: RecipeId, index: u32, content: Bytes) -> Result<(), StoreError> {
        if let Some(frame) = frame(&content) {
            self.frames.lock().unwrap().insert((id, index), frame);
        }
        self.inner.write(id, index, content).await
    }

    async fn complete(&self, id: RecipeId) -> Result<(), StoreError> {
        self.inner.complete(id).await
    }
}

#[tokio::test]
async fn a_store_that_compresses_conforms() {
    shoal_p2p::conformance::run(&PackStore::default()).await;
}

/// Noise that follows from `seed`, behind so many zeros (xorshift64).
fn chunk(seed: u64, zeros: usize) -> Bytes {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let noise = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    std::iter::repeat_n(0, zeros).chain(noise.flatten()).take(CHUNK_BYTES).collect()
}

struct Content {
    recipe: Arc<Recipe>,
    id: RecipeId,
    contents: Vec<Bytes>,
    /// What compressing all of it saves.
    saving: u64,
}

/// So many chunks, each with so many zeros; others for each `seed`.
fn content(seed: u64, chunks: u64, zeros: usize) -> Content {
    let contents: Vec<Bytes> = (0..chunks).map(|at| chunk(seed << 32 | at, zeros)).collect();
    let length = |content: &Bytes| frame(content).map(|frame| frame.bytes().len() as u32);
    let (recipe, id) = recipe_of(&contents, |content| match length(content) {
        Some(stored) => Encoding::Zstd { stored },
        None => Encoding::Raw,
    });
    let stored: u64 = recipe.chunks().iter().map(|chunk| u64::from(chunk.stored())).sum();
    let saving = recipe.chunk_bytes() - stored;
    Content { recipe, id, contents, saving }
}

impl Content {
    async fn fill(&self, process: &Process) {
        fill(&*process.store, &self.recipe, self.id, &self.contents).await;
    }

    async fn fetched(&self, cluster: &Cluster, process: &Process) -> Progress {
        let progress = fetch(cluster, process, self.id).await;
        holds_all(&*process.store, self.id, &self.contents).await;
        progress
    }
}

async fn host(cluster: &Cluster, origin: &Process) -> Process {
    let host = cluster.start(PeerRole::Host).await;
    host.swarm.set_nodes(vec![origin.address()]).await;
    host
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_has_compressed_goes_so_and_is_passed_on_so() {
    let cluster = Cluster::found(1);
    let origin = cluster.start_on(PeerRole::Origin, Arc::new(PackStore::default())).await;
    let content = content(1, 256, ZEROS);
    assert!(content.saving > content.recipe.chunk_bytes() / 10);
    content.fill(&origin).await;
    let mut hosts = Vec::new();
    for _ in 0..3 {
        hosts.push(host(&cluster, &origin).await);
    }
    let all = hosts.iter().map(|host| content.fetched(&cluster, host));
    let all = futures::future::join_all(all).await;
    for (host, progress) in hosts.iter().zip(&all) {
        // Of what hosts sent as well, and as content nothing is missing.
        assert!(host.metric(SAVED_RECEIVED) >= content.saving);
        assert!(progress.bytes_saved >= content.saving, "{progress:?}");
        assert_eq!(progress.bytes_done, content.recipe.chunk_bytes());
        let came = progress.bytes_by_node.values().chain(progress.bytes_by_peer.values());
        assert!(came.sum::<u64>() >= content.recipe.chunk_bytes(), "{progress:?}");
        assert!(host.swarm.status().banned.is_empty());
    }
    let passed_on: u64 = hosts.iter().map(|host| host.metric(SAVED_SENT)).sum();
    assert!(passed_on > 0, "hosts sent nothing compressed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_go_by_tls_as_well() {
    let cluster = Cluster::found(1);
    let origin = cluster.start_on(PeerRole::Origin, Arc::new(PackStore::default())).await;
    let host = host(&cluster, &origin).await;
    let work = async {
        // Those first requests go by QUIC, and all of them before some MiB came fast.
        for seed in 1.. {
            let content = content(seed, 128, ZEROS);
            content.fill(&origin).await;
            let before = (host.metric(BY_TLS), host.metric(SAVED_RECEIVED));
            content.fetched(&cluster, &host).await;
            assert!(host.metric(SAVED_RECEIVED) - before.1 >= content.saving);
            if host.metric(BY_TLS) - before.0 > content.recipe.chunk_bytes() / 2 {
                return;
            }
        }
    };
    timeout(DEADLINE, work).await.expect("nothing goes by TLS");
    assert!(host.swarm.status().banned.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_goes_as_it_is() {
    let cluster = Cluster::found(1);
    let origin = cluster.start_on(PeerRole::Origin, Arc::new(PackStore::default())).await;
    let content = content(1, 64, 0);
    assert_eq!(content.saving, 0);
    content.fill(&origin).await;
    // A slow line alone is no reason.
    let slow = Limits { upload: Some(20_000_000), download: None };
    let (first, second) = (host(&cluster, &origin).await, host(&cluster, &origin).await);
    first.swarm.set_limits(slow).await;
    content.fetched(&cluster, &first).await;
    content.fetched(&cluster, &second).await;
    for process in [&origin, &first, &second] {
        assert_eq!((process.metric(SAVED_SENT), process.metric(SAVED_RECEIVED)), (0, 0));
    }
}

/// It has the content from elsewhere, and no frames.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_a_slow_line_compresses_what_it_has() {
    let cluster = Cluster::found(1);
    let origin = cluster.start(PeerRole::Origin).await;
    let content = content(1, 256, ZEROS);
    content.fill(&origin).await;
    let holder = host(&cluster, &origin).await;
    content.fetched(&cluster, &holder).await;
    assert_eq!(holder.metric(SAVED_RECEIVED), 0, "this origin compresses nothing");
    let slow = Limits { upload: Some(20_000_000), download: None };
    holder.swarm.set_limits(slow).await;
    let taker = host(&cluster, &origin).await;
    let ticket = cluster.ticket(content.id, taker.swarm.peer_id());
    let transfer = taker.swarm.fetch(content.id, content.recipe.clone(), ticket);
    let mut progress = transfer.progress();
    let met = progress.wait_for(|progress| !progress.bytes_by_peer.is_empty());
    timeout(DEADLINE, met).await.unwrap().unwrap();
    origin.swarm.shutdown().await;
    let done = timeout(DEADLINE, transfer.wait()).await.unwrap().unwrap();
    holds_all(&*taker.store, content.id, &content.contents).await;
    assert!(done.bytes_saved > 0, "{done:?}");
    assert!(holder.metric(SAVED_SENT) > 0);
    assert!(taker.swarm.status().banned.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_good_frames_of_wrong_content_is_banned() {
    let cluster = Cluster::found(1);
    let origin = cluster.start_on(PeerRole::Origin, Arc::new(PackStore::default())).await;
    let content = content(1, 512, ZEROS);
    content.fill(&origin).await;
    let liar = cluster.start_on(PeerRole::Host, Arc::new(PackStore::default())).await;
    let wrong = vec![Bytes::from(vec![7; CHUNK_BYTES]); content.contents.len()];
    fill(&*liar.store, &content.recipe, content.id, &wrong).await;
    liar.swarm.set_nodes(vec![origin.address()]).await;
    liar.swarm.announce(content.id).await.unwrap();
    let linked = async {
        while origin.swarm.status().peers.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, linked).await.unwrap();
    let host = host(&cluster, &origin).await;
    content.fetched(&cluster, &host).await;
    assert_eq!(host.metric(BANS), 1);
    assert!(host.swarm.status().banned.contains_key(&liar.swarm.peer_id()));
}
