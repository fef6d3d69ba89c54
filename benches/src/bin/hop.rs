//! One disk over one hop, from a node into an agent's cache, beside quinn, TLS over TCP and sendme.

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use prometheus_client::registry::Registry;
use shoal_agent::cache::Cache;
use shoal_agent::config;
use shoal_agent::metrics::CacheMetrics;
use shoal_benches::report::{Report, Row, Run, Wanted, measure};
use shoal_benches::sample::noise;
use shoal_benches::sendme::{Received, Sender};
use shoal_benches::tls;
use shoal_content::{
    CHUNK_BYTES_MAX, Chunk, ChunkId, ClusterId, Encoding, Extent, ObjectKey, PackId, Recipe,
    RecipeId, RecipeKind, SourceObject, Ticket, Zone,
};
use shoal_p2p::identity::{Authority, Credentials, KeyPair, Role};
use shoal_p2p::{
    Bulk, ChunkStore, Config, MemoryStore, NodeAddress, PeerRole, Swarm, TICKET_LIFE_MAX,
    TicketKey, TicketKeys, wall_clock,
};
use shoal_tests::host::Network;
use tokio::runtime::Runtime;

const SHOAL: &str = "shoal: swarm, BLAKE3, cache, synced";
const SHOAL_QUIC: &str = "shoal by QUIC only, the same besides";
const QUINN: &str = "quinn, one stream, BLAKE3, file, synced";
const BARE: &str = "quinn, one stream, thrown away";
const TLS: &str = "TLS 1.3 over TCP, BLAKE3, file, synced";
const SENDME: &str = "sendme, its transfer alone";
const SENDME_COMMAND: &str = "sendme receive, the whole command";
/// Over bare quinn, and over iroh-blobs.
const RATE_OVER_QUINN: f64 = 0.9;
const RATE_OVER_SENDME: f64 = 2.5;
const CPU_OVER_SENDME: f64 = 0.5;
const PROTOCOL: &[u8] = b"shoal-bench/1";
/// As the swarm's own endpoint has it.
const MTU_MAX: u16 = 6500;
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Measures one hop of the swarm: node to agent, verified, written and synced. sendme needs root,
/// for a network of its own, and that ./dev bench has installed it.
#[derive(Debug, Parser)]
#[command(name = "hop", version, about, long_about = None)]
struct Arguments {
    /// What is sent, in MiB.
    #[arg(long, default_value_t = 512)]
    mib: usize,
    /// How often each contestant runs.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Whom to measure beside the swarm.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["quinn", "tls", "sendme"])]
    contestants: Vec<Contestant>,
    /// One JSON object in place of the table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Contestant {
    /// One stream, hashed and written as ours, and once more thrown away
    Quinn,
    /// One connection of rustls over TCP, hashed and written as ours
    Tls,
    /// iroh-blobs
    Sendme,
}

/// What is sent, and who may have it.
struct Load {
    authority: Authority,
    tickets: KeyPair,
    contents: Vec<Bytes>,
    recipe: Arc<Recipe>,
    id: RecipeId,
}

fn main() -> Result<()> {
    // Fails only where a provider is installed already, which is what is wanted.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments = Arguments::parse();
    ensure!(arguments.runs > 0, "nothing to measure");
    let takes_part = |contestant| arguments.contestants.contains(&contestant);
    let load = Load::make(arguments.mib)?;
    let folder = tempfile::tempdir()?;
    // Before any other thread is there, so that all contestants are on the same loopback.
    let network = takes_part(Contestant::Sendme)
        .then(|| Secluded::enter(&load, folder.path()))
        .transpose()?;
    let runtime = Runtime::new()?;
    let names = [SHOAL, SHOAL_QUIC, QUINN, BARE, TLS, SENDME, SENDME_COMMAND];
    let mut runs = names.map(|name| (name, Vec::new()));
    let mut without_tls = 0;
    for number in 0..arguments.runs {
        let [shoal, by_quic, quinn, bare, tls, transfer, command] =
            runs.each_mut().map(|(_, runs)| runs);
        let (run, path) = runtime.block_on(swarm(&load, Bulk::Auto))?;
        shoal.push(run);
        without_tls += usize::from(path != Some(shoal_p2p::Path::Tls));
        by_quic.push(runtime.block_on(swarm(&load, Bulk::Quic))?.0);
        if takes_part(Contestant::Quinn) {
            let folder = tempfile::tempdir()?;
            quinn.push(runtime.block_on(stream(&load, Some(folder.path())))?);
            bare.push(runtime.block_on(stream(&load, None))?);
        }
        if takes_part(Contestant::Tls) {
            let folder = tempfile::tempdir()?;
            tls.push(runtime.block_on(over_tcp(&load, folder.path()))?);
        }
        if let Some(network) = &network {
            let own = folder.path().join(format!("received-{number}"));
            let received = runtime.block_on(network.receive(&own))?;
            transfer.push(received.transfer);
            command.push(received.command);
            std::fs::remove_dir_all(&own)?;
        }
    }
    let contestants: Vec<_> = runs.into_iter().filter(|(_, runs)| !runs.is_empty()).collect();
    let rate = |row: &Row| row.ratio_of_ours;
    let mut report = Report::new("hop", load.recipe.chunk_bytes(), &contestants)?
        .aim(QUINN, "our rate over that of", rate, Wanted::AtLeast(RATE_OVER_QUINN))
        .aim(SENDME, "our rate over that of", rate, Wanted::AtLeast(RATE_OVER_SENDME))
        .aim(
            SENDME,
            "our CPU time over that of",
            |row| row.cpu_ratio_of_ours,
            Wanted::AtMost(CPU_OVER_SENDME),
        )
        .note("loopback; sender and receiver share this machine's cores, and CPU time is of both");
    if without_tls > 0 {
        report = report.note(format!("without TLS over TCP in {without_tls} runs"));
    }
    if network.is_some() {
        report = report.note(
            "sendme verifies with BLAKE3 and syncs nothing; the whole command also starts, connects \
             and copies the file out of its store",
        );
    }
    report.print(arguments.json)
}

/// A network with nobody else in it, and a sender there.
struct Secluded {
    sender: Sender,
    network: Network,
}

impl Secluded {
    /// Moves this thread there, and all threads that it starts from now on.
    fn enter(load: &Load, folder: &Path) -> Result<Self> {
        let network = Network::create(0)
            .context("sendme gets a network of its own; --contestants quinn,tls does without")?;
        network.hub().enter()?;
        let content = folder.join("content");
        let mut file = File::create(&content)?;
        for chunk in &load.contents {
            file.write_all(chunk)?;
        }
        let sender = Sender::start(network.hub(), &folder.join("sender"), &content)?;
        Ok(Self { sender, network })
    }

    async fn receive(&self, folder: &Path) -> Result<Received> {
        self.sender.measure(self.network.hub(), folder).await
    }
}

impl Load {
    fn make(mib: usize) -> Result<Self> {
        let cluster = ClusterId::from_uuid(uuid::Uuid::from_u128(1));
        let chunk_bytes = CHUNK_BYTES_MAX as usize;
        let count = (mib << 20) / chunk_bytes;
        ensure!(count > 0, "--mib must be at least 1");
        let contents: Vec<Bytes> =
            (0..count).map(|at| noise(at as u64, chunk_bytes).into()).collect();
        let chunk = |(at, content): (usize, &Bytes)| Chunk {
            id: ChunkId::of(content),
            length: content.len() as u32,
            object: 0,
            at: (at * chunk_bytes) as u64,
            encoding: Encoding::Raw,
        };
        let chunks: Vec<Chunk> = contents.iter().enumerate().map(chunk).collect();
        let extent = |at: usize| Extent { offset: (at * chunk_bytes) as u64, chunk: at as u32 };
        let length = (count * chunk_bytes) as u64;
        let object = SourceObject { key: ObjectKey::Pack(PackId::of(b"hop")), length };
        let extents = (0..count).map(extent).collect();
        let recipe = Recipe::new(RecipeKind::Disk, length, vec![object], chunks, extents)?;
        let id = recipe.encode_with_id().0;
        Ok(Self {
            authority: Authority::create(&cluster)?,
            tickets: KeyPair::generate()?,
            contents,
            recipe: Arc::new(recipe),
            id,
        })
    }

    fn credentials(&self, role: Role) -> Result<Credentials> {
        let key = KeyPair::generate()?;
        let certificate_pem = self.authority.issue(&key.csr_pem()?, role)?;
        let authority_pem = self.authority.certificate_pem().to_owned();
        Ok(Credentials::new(Arc::new(key), &certificate_pem, authority_pem)?)
    }

    async fn join(&self, role: PeerRole, store: Arc<dyn ChunkStore>, bulk: Bulk) -> Result<Swarm> {
        let kind = if role == PeerRole::Origin { Role::Node } else { Role::Agent };
        let config = Config {
            credentials: self.credentials(kind)?,
            listen: loopback(),
            advertise: loopback(),
            zone: Zone::default(),
            role,
            ticket_keys: TicketKeys::new(vec![TicketKey {
                public: *self.tickets.peer_id().as_public_key(),
                until: None,
            }]),
            discovery: None,
            bulk,
        };
        Ok(Swarm::start(config, store, &mut Registry::default()).await?)
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// One fetch by a fresh agent, from the order to the synced end, and the way that chunks took then.
async fn swarm(load: &Load, bulk: Bulk) -> Result<(Run, Option<shoal_p2p::Path>)> {
    let held = Arc::new(MemoryStore::default());
    held.open(load.id, load.recipe.clone()).await?;
    for (index, content) in load.contents.iter().enumerate() {
        held.write(load.id, index as u32, content.clone()).await?;
    }
    let node = load.join(PeerRole::Origin, held, bulk).await?;
    let folder = tempfile::tempdir()?;
    let cache = Cache::open(folder.path(), &config::Cache::default(), CacheMetrics::default())?;
    let agent = load.join(PeerRole::Host, Arc::new(cache), bulk).await?;
    let address = NodeAddress { peer: node.peer_id(), address: node.local_address() };
    agent.set_nodes(vec![address]).await;
    let ends = wall_clock().plus_millis(TICKET_LIFE_MAX.as_millis() as u64);
    let ticket =
        Ticket::issue(load.id, agent.peer_id(), ends, |message| load.tickets.sign(message));
    let recipe = agent.recipe(load.id, ticket.clone()).await?;
    let work = agent.fetch(load.id, recipe, ticket);
    let run = measure(async || Ok(work.wait().await.map(drop)?)).await?.0;
    let path = agent.status().peers.first().map(|peer| peer.path);
    agent.shutdown().await;
    node.shutdown().await;
    Ok((run, path))
}

/// The same bytes over one stream of quinn; with a folder, hashed chunk by chunk, written, synced.
async fn stream(load: &Load, folder: Option<&Path>) -> Result<Run> {
    let server = quinn_server(load)?;
    let address = server.local_addr()?;
    let contents = load.contents.clone();
    let sending = tokio::spawn(async move {
        let connection = server.accept().await.context("the endpoint closed")?.await?;
        let mut stream = connection.open_uni().await?;
        for content in contents {
            stream.write_chunk(content).await?;
        }
        stream.finish()?;
        stream.stopped().await?;
        anyhow::Ok(())
    });
    let mut endpoint = quinn::Endpoint::client(loopback())?;
    let mut client = load.credentials(Role::Agent)?.quinn_client(PROTOCOL, &Role::ALL)?;
    client.transport_config(transport());
    endpoint.set_default_client_config(client);
    let connection = endpoint.connect(address, Role::Agent.server_name())?.await?;
    let work = async || {
        let mut stream = connection.accept_uni().await?;
        let mut file = folder.map(|folder| File::create(folder.join("disk"))).transpose()?;
        for chunk in load.recipe.chunks() {
            let mut content = vec![0; chunk.length as usize];
            stream.read_exact(&mut content).await?;
            if let Some(file) = &mut file {
                keep(file, chunk, &content)?;
            }
        }
        if let Some(file) = file {
            file.sync_data()?;
        }
        Ok(())
    };
    let run = measure(work).await?.0;
    drop(connection);
    sending.abort();
    Ok(run)
}

/// The same bytes over one TCP connection of TLS 1.3, hashed chunk by chunk, written, synced.
async fn over_tcp(load: &Load, folder: &Path) -> Result<Run> {
    let sender = tls::Sender::bind(&load.authority, loopback())?;
    let address = sender.address()?;
    let sending = sender.send(load.contents.clone());
    let mut receiver = tls::Receiver::connect(&load.authority, address)?;
    let run = measure(async || {
        // It blocks its thread, which has nothing else to do.
        receiver.begin()?;
        let mut file = File::create(folder.join("disk"))?;
        for chunk in load.recipe.chunks() {
            let mut content = vec![0; chunk.length as usize];
            receiver.read_exact(&mut content)?;
            keep(&mut file, chunk, &content)?;
        }
        Ok(file.sync_data()?)
    })
    .await?
    .0;
    sending.join().map_err(|_| anyhow!("the sender's thread panicked"))??;
    Ok(run)
}

fn keep(file: &mut File, chunk: &Chunk, content: &[u8]) -> Result<()> {
    ensure!(chunk.id.verifies(content), "the stream brought something else");
    Ok(file.write_all(content)?)
}

fn quinn_server(load: &Load) -> Result<quinn::Endpoint> {
    let mut config = load.credentials(Role::Node)?.quinn_server(PROTOCOL, &Role::ALL)?;
    config.transport_config(transport());
    Ok(quinn::Endpoint::server(config, loopback())?)
}

fn transport() -> Arc<quinn::TransportConfig> {
    let mut transport = quinn::TransportConfig::default();
    let mut mtu = quinn::MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_MAX);
    transport
        .mtu_discovery_config(Some(mtu))
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window((4 * STREAM_WINDOW_BYTES).into());
    Arc::new(transport)
}
