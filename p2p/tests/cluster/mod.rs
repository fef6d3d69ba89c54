//! A cluster of real swarms on loopback, and made-up content for it.

#![allow(dead_code, reason = "each test binary takes what it needs")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::registry::Registry;
use shoal_content::{
    Chunk, ChunkId, ClusterId, Encoding, Extent, ObjectKey, PackId, PeerId, Recipe, RecipeId,
    RecipeKind, SourceObject, Ticket, Timestamp, Zone,
};
use shoal_p2p::identity::{Authority, Credentials, KeyPair, Role};
use shoal_p2p::{
    Bulk, ChunkStore, Config, DiscoveryConfig, MemoryStore, NodeAddress, PeerRole, Swarm,
    TICKET_LIFE_MAX, TicketKey, TicketKeys, wall_clock,
};

pub const CHUNK_BYTES: usize = 64 * 1024;
pub const DEADLINE: Duration = Duration::from_secs(60);

pub struct Cluster {
    authority: Authority,
    tickets: KeyPair,
}

/// How a process listens.
#[derive(Clone, Copy)]
pub struct Ways {
    pub listen: SocketAddr,
    pub bulk: Bulk,
}

impl Default for Ways {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 0)), bulk: Bulk::default() }
    }
}

/// One that is free for UDP and for TCP: a socket's own choice for the one may be taken for the other.
fn free_port() -> SocketAddr {
    loop {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        if std::net::UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

pub struct Process {
    pub swarm: Swarm,
    pub store: Arc<dyn ChunkStore>,
    registry: Registry,
}

impl Cluster {
    pub fn found(number: u128) -> Self {
        let id = ClusterId::from_uuid(uuid::Uuid::from_u128(number));
        Self { authority: Authority::create(&id).unwrap(), tickets: KeyPair::generate().unwrap() }
    }

    pub async fn start(&self, role: PeerRole) -> Process {
        self.start_on(role, Arc::new(MemoryStore::default())).await
    }

    pub async fn start_on(&self, role: PeerRole, store: Arc<dyn ChunkStore>) -> Process {
        self.start_with(role, store, None, Ways::default()).await
    }

    /// One whose chunks go by these ways.
    pub async fn start_by(&self, role: PeerRole, store: Arc<dyn ChunkStore>, by: Ways) -> Process {
        self.start_with(role, store, None, by).await
    }

    /// A host that is a member of the discovery network.
    pub async fn start_member(&self, discovery: DiscoveryConfig) -> Process {
        let store = Arc::new(MemoryStore::default());
        self.start_with(PeerRole::Host, store, Some(discovery), Ways::default()).await
    }

    /// Of a member that runs nowhere.
    pub fn credentials(&self, kind: Role) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let certificate_pem = self.authority.issue(&key.csr_pem().unwrap(), kind).unwrap();
        let authority_pem = self.authority.certificate_pem().to_owned();
        Credentials::new(Arc::new(key), &certificate_pem, authority_pem).unwrap()
    }

    pub fn authority_pem(&self) -> &str {
        self.authority.certificate_pem()
    }

    async fn start_with(
        &self,
        role: PeerRole,
        store: Arc<dyn ChunkStore>,
        discovery: Option<DiscoveryConfig>,
        by: Ways,
    ) -> Process {
        let kind = if role == PeerRole::Origin { Role::Node } else { Role::Agent };
        let listen = if by.listen.port() == 0 { free_port() } else { by.listen };
        let config = Config {
            credentials: self.credentials(kind),
            listen,
            advertise: listen,
            zone: Zone::default(),
            role,
            ticket_keys: TicketKeys::new(vec![ticket_key(&self.tickets)]),
            discovery,
            bulk: by.bulk,
        };
        let mut registry = Registry::default();
        let swarm = Swarm::start(config, store.clone(), &mut registry).await.unwrap();
        Process { swarm, store, registry }
    }

    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    pub fn ticket(&self, recipe: RecipeId, peer: PeerId) -> Ticket {
        ticket_by(&self.tickets, recipe, peer)
    }

    pub fn ticket_until(&self, recipe: RecipeId, peer: PeerId, expires: Timestamp) -> Ticket {
        ticket_until(&self.tickets, recipe, peer, expires)
    }
}

pub fn ticket_by(key: &KeyPair, recipe: RecipeId, peer: PeerId) -> Ticket {
    ticket_until(key, recipe, peer, wall_clock().plus_millis(TICKET_LIFE_MAX.as_millis() as u64))
}

fn ticket_until(key: &KeyPair, recipe: RecipeId, peer: PeerId, expires: Timestamp) -> Ticket {
    Ticket::issue(recipe, peer, expires, |message| key.sign(message))
}

pub fn ticket_key(pair: &KeyPair) -> TicketKey {
    TicketKey { public: *pair.peer_id().as_public_key(), until: None }
}

impl Process {
    pub fn address(&self) -> NodeAddress {
        NodeAddress { peer: self.swarm.peer_id(), address: self.swarm.local_address() }
    }

    /// The value of a counter with exactly this name and these labels; 0 where it has none yet.
    pub fn metric(&self, line: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let found = text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
        found.unwrap_or(0)
    }
}

pub fn content(chunks: usize) -> (Arc<Recipe>, RecipeId, Vec<Bytes>) {
    let contents: Vec<Bytes> = (0..chunks)
        .map(|at| (0..CHUNK_BYTES).map(|byte| (at * 31 + byte / 7) as u8).collect::<Vec<_>>())
        .enumerate()
        .map(|(at, mut bytes)| {
            bytes[..8].copy_from_slice(&(at as u64).to_be_bytes());
            Bytes::from(bytes)
        })
        .collect();
    let (recipe, id) = recipe_of(&contents, |_| Encoding::Raw);
    (recipe, id, contents)
}

/// A disk of these chunks, each of [`CHUNK_BYTES`], and how they are stored.
pub fn recipe_of(
    contents: &[Bytes],
    encoding: impl Fn(&Bytes) -> Encoding,
) -> (Arc<Recipe>, RecipeId) {
    let chunks = contents.len();
    let all = contents.iter().enumerate().map(|(at, bytes)| Chunk {
        id: ChunkId::of(bytes),
        length: CHUNK_BYTES as u32,
        object: 0,
        at: (at * CHUNK_BYTES) as u64,
        encoding: encoding(bytes),
    });
    let length = (chunks * CHUNK_BYTES) as u64;
    let object = SourceObject { key: ObjectKey::Pack(PackId::of(b"pack")), length };
    let extents = (0..chunks)
        .map(|at| Extent { offset: (at * CHUNK_BYTES) as u64, chunk: at as u32 })
        .collect();
    let recipe =
        Recipe::new(RecipeKind::Disk, length, vec![object], all.collect(), extents).unwrap();
    let id = recipe.encode_with_id().0;
    (Arc::new(recipe), id)
}

pub async fn fill(store: &dyn ChunkStore, recipe: &Arc<Recipe>, id: RecipeId, contents: &[Bytes]) {
    store.open(id, recipe.clone()).await.unwrap();
    for (index, bytes) in contents.iter().enumerate() {
        store.write(id, index as u32, bytes.clone()).await.unwrap();
    }
}

pub async fn fetch(cluster: &Cluster, process: &Process, id: RecipeId) -> shoal_p2p::Progress {
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

pub async fn holds_all(store: &dyn ChunkStore, id: RecipeId, contents: &[Bytes]) {
    for (index, bytes) in contents.iter().enumerate() {
        assert_eq!(store.read(id, index as u32).await.unwrap().as_ref(), Some(bytes));
    }
}
