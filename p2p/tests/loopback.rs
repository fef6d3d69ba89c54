//! Real QUIC on loopback: one origin, several agents, and people who should get nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::registry::Registry;
use shoal_content::{
    Chunk, ChunkId, ClusterId, Encoding, Extent, ObjectKey, PackId, PeerId, Recipe, RecipeId,
    RecipeKind, SourceObject, Ticket, Timestamp, Zone,
};
use shoal_p2p::identity::{Authority, Credentials, KeyPair, Role};
use shoal_p2p::{ChunkStore, Config, MemoryStore, NodeAddress, PeerRole, Swarm};

const CHUNK_BYTES: usize = 64 * 1024;
const DEADLINE: Duration = Duration::from_secs(60);

struct Cluster {
    authority: Authority,
    tickets: KeyPair,
}

struct Process {
    swarm: Swarm,
    store: Arc<MemoryStore>,
    registry: Registry,
}

impl Cluster {
    fn found(number: u128) -> Self {
        let id = ClusterId::from_uuid(uuid::Uuid::from_u128(number));
        Self { authority: Authority::create(&id).unwrap(), tickets: KeyPair::generate().unwrap() }
    }

    async fn start(&self, role: PeerRole) -> Process {
        let key = KeyPair::generate().unwrap();
        let kind = if role == PeerRole::Origin { Role::Node } else { Role::Agent };
        let certificate_pem = self.authority.issue(&key.csr_pem().unwrap(), kind).unwrap();
        let authority_pem = self.authority.certificate_pem().to_owned();
        let address = "127.0.0.1:0".parse().unwrap();
        let config = Config {
            credentials: Credentials { key: Arc::new(key), certificate_pem, authority_pem },
            listen: address,
            advertise: address,
            zone: Zone::default(),
            role,
            ticket_public_key: *self.tickets.peer_id().as_public_key(),
            discovery: None,
        };
        let (store, mut registry) = (Arc::new(MemoryStore::default()), Registry::default());
        let swarm = Swarm::start(config, store.clone(), &mut registry).await.unwrap();
        Process { swarm, store, registry }
    }

    fn ticket(&self, recipe: RecipeId, peer: PeerId) -> Ticket {
        let expires = Timestamp::from_millis(u64::MAX);
        Ticket::issue(recipe, peer, expires, |message| self.tickets.sign(message))
    }
}

impl Process {
    fn address(&self) -> NodeAddress {
        NodeAddress { peer: self.swarm.peer_id(), address: self.swarm.local_address() }
    }

    /// The value of a counter with exactly this name and these labels; 0 where it has none yet.
    fn metric(&self, line: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let found = text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
        found.unwrap_or(0)
    }
}

fn content(chunks: usize) -> (Arc<Recipe>, RecipeId, Vec<Bytes>) {
    let contents: Vec<Bytes> = (0..chunks)
        .map(|at| (0..CHUNK_BYTES).map(|byte| (at * 31 + byte / 7) as u8).collect::<Vec<_>>())
        .enumerate()
        .map(|(at, mut bytes)| {
            bytes[..8].copy_from_slice(&(at as u64).to_be_bytes());
            Bytes::from(bytes)
        })
        .collect();
    let all = contents.iter().enumerate().map(|(at, bytes)| Chunk {
        id: ChunkId::of(bytes),
        length: CHUNK_BYTES as u32,
        object: 0,
        at: (at * CHUNK_BYTES) as u64,
        encoding: Encoding::Raw,
    });
    let length = (chunks * CHUNK_BYTES) as u64;
    let object = SourceObject { key: ObjectKey::Pack(PackId::of(b"pack")), length };
    let extents = (0..chunks)
        .map(|at| Extent { offset: (at * CHUNK_BYTES) as u64, chunk: at as u32 })
        .collect();
    let recipe =
        Recipe::new(RecipeKind::Disk, length, vec![object], all.collect(), extents).unwrap();
    let id = recipe.encode_with_id().0;
    (Arc::new(recipe), id, contents)
}

async fn fill(store: &MemoryStore, recipe: &Arc<Recipe>, id: RecipeId, contents: &[Bytes]) {
    store.open(id, recipe.clone()).await.unwrap();
    for (index, bytes) in contents.iter().enumerate() {
        store.write(id, index as u32, bytes.clone()).await.unwrap();
    }
}

async fn fetch(cluster: &Cluster, process: &Process, id: RecipeId) -> shoal_p2p::Progress {
    let ticket = cluster.ticket(id, process.swarm.peer_id());
    let work = async {
        let recipe = process.swarm.recipe(id, ticket.clone()).await.unwrap();
        process.swarm.fetch(id, recipe, ticket).wait().await.unwrap()
    };
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(progress) => progress,
        Err(_) => panic!("not in time: {:?}", process.swarm.status()),
    }
}

async fn holds_all(store: &MemoryStore, id: RecipeId, contents: &[Bytes]) {
    for (index, bytes) in contents.iter().enumerate() {
        assert_eq!(store.read(id, index as u32).await.unwrap().as_ref(), Some(bytes));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_swarm_takes_about_one_copy_from_the_origin() {
    let cluster = Cluster::found(1);
    let origin = cluster.start(PeerRole::Origin).await;
    let (recipe, id, contents) = content(256);
    fill(&origin.store, &recipe, id, &contents).await;
    let mut agents = Vec::new();
    for _ in 0..4 {
        let agent = cluster.start(PeerRole::Host).await;
        agent.swarm.set_nodes(vec![origin.address()]);
        agents.push(agent);
    }
    let all = futures::future::join_all(agents.iter().map(|a| fetch(&cluster, a, id))).await;
    let mut from_node = BTreeMap::new();
    for (agent, progress) in agents.iter().zip(&all) {
        holds_all(&agent.store, id, &contents).await;
        from_node.insert(agent.swarm.peer_id(), progress.bytes_by_node.values().sum::<u64>());
    }
    let sent = origin.metric("shoal_chunk_bytes_sent_total{to=\"agent\"}");
    let copies = sent as f64 / recipe.chunk_bytes() as f64;
    assert!((1.0..1.5).contains(&copies), "{copies} copies left the origin: {from_node:?}");
    for agent in &agents {
        agent.swarm.shutdown().await;
    }
    origin.swarm.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_liar_is_banned_and_the_fetch_ends_well() {
    let cluster = Cluster::found(1);
    let origin = cluster.start(PeerRole::Origin).await;
    let (recipe, id, contents) = content(64);
    fill(&origin.store, &recipe, id, &contents).await;
    let liar = cluster.start(PeerRole::Host).await;
    let wrong: Vec<Bytes> = contents.iter().map(|_| Bytes::from(vec![7; CHUNK_BYTES])).collect();
    fill(&liar.store, &recipe, id, &wrong).await;
    liar.swarm.set_nodes(vec![origin.address()]);
    liar.swarm.announce(id).await.unwrap();
    let linked = async {
        while origin.swarm.status().peers.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, linked).await.unwrap();
    let agent = cluster.start(PeerRole::Host).await;
    agent.swarm.set_nodes(vec![origin.address()]);
    fetch(&cluster, &agent, id).await;
    holds_all(&agent.store, id, &contents).await;
    assert_eq!(agent.metric("shoal_peer_bans_total{reason=\"wrong_content\"}"), 1);
    assert!(agent.swarm.status().banned.contains(&liar.swarm.peer_id()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_the_unentitled_get_nothing() {
    let (cluster, foreign) = (Cluster::found(1), Cluster::found(2));
    let origin = cluster.start(PeerRole::Origin).await;
    let (recipe, id, contents) = content(4);
    fill(&origin.store, &recipe, id, &contents).await;
    // A certificate of another cluster does not get through the handshake.
    let stranger = foreign.start(PeerRole::Host).await;
    stranger.swarm.set_nodes(vec![origin.address()]);
    let ticket = cluster.ticket(id, stranger.swarm.peer_id());
    assert!(stranger.swarm.recipe(id, ticket).await.is_err());
    // One of ours with somebody else's ticket gets neither the recipe nor a chunk.
    let agent = cluster.start(PeerRole::Host).await;
    agent.swarm.set_nodes(vec![origin.address()]);
    let ticket = cluster.ticket(id, stranger.swarm.peer_id());
    assert!(agent.swarm.recipe(id, ticket.clone()).await.is_err());
    let transfer = agent.swarm.fetch(id, recipe, ticket);
    let mut progress = transfer.progress();
    let refused = progress.wait_for(|progress| progress.chunks_done > 0);
    assert!(tokio::time::timeout(Duration::from_secs(3), refused).await.is_err());
    assert_eq!(origin.metric("shoal_chunk_bytes_sent_total{to=\"agent\"}"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_goes_on_among_peers_when_every_node_is_gone() {
    let cluster = Cluster::found(1);
    let origin = cluster.start(PeerRole::Origin).await;
    let (recipe, id, contents) = content(64);
    fill(&origin.store, &recipe, id, &contents[..]).await;
    let holder = cluster.start(PeerRole::Host).await;
    holder.swarm.set_nodes(vec![origin.address()]);
    fetch(&cluster, &holder, id).await;
    let agent = cluster.start(PeerRole::Host).await;
    agent.swarm.set_nodes(vec![origin.address()]);
    let ticket = cluster.ticket(id, agent.swarm.peer_id());
    let transfer = agent.swarm.fetch(id, recipe, ticket);
    let mut progress = transfer.progress();
    let began = progress.wait_for(|progress| progress.chunks_done > 0);
    tokio::time::timeout(DEADLINE, began).await.unwrap().unwrap();
    origin.swarm.shutdown().await;
    let done = tokio::time::timeout(DEADLINE, transfer.wait()).await.unwrap().unwrap();
    holds_all(&agent.store, id, &contents).await;
    assert!(done.bytes_by_peer.contains_key(&holder.swarm.peer_id()));
}
