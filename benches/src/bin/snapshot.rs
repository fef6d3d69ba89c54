//! Writes to a member of the metadata's group whose state is sizeable, while snapshots of it are
//! built one after another, beside the same writes without any snapshot.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use futures::StreamExt;
use prometheus_client::registry::Registry;
use shoal_benches::report::{Report, Run, measure};
use shoal_content::{ClusterId, ImageId, NodeId, Timestamp};
use shoal_metadata::{Command, ImageKind, ImageProfile, Secret, Table, User, UserRole};
use shoal_p2p::identity::{Authority, Credentials, KeyPair, Role, peer_of};
use shoal_raft::{Config, Raft, Restoring, Transport};

const NODE: u64 = 1;
const PROTOCOL: &[u8] = b"shoal-raft/1";
/// What a written row carries for people, in bytes.
const DESCRIPTION_BYTES: usize = 1024;

/// Measures what building a snapshot costs the writes that go on.
#[derive(Debug, Parser)]
#[command(name = "snapshot", version, about, long_about = None)]
struct Arguments {
    /// Rows that are there before.
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    #[arg(long, default_value_t = 200)]
    row_bytes: usize,
    #[arg(long, default_value_t = 10_000)]
    writes: u64,
    /// Writes between two snapshots.
    #[arg(long, default_value_t = 1000)]
    every: u64,
    /// Writes under way at once.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// How often each contestant runs.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// One JSON object in place of the table.
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments = Arguments::parse();
    let (mut with, mut without, mut built) = (Vec::new(), Vec::new(), 0);
    for _ in 0..arguments.runs {
        let (run, snapshots) = write(&arguments, arguments.every).await?;
        built += snapshots;
        with.push(run);
        without.push(write(&arguments, u64::MAX / 2).await?.0);
    }
    ensure!(built > 0, "no snapshot was built; give more --writes");
    let bytes = arguments.writes * DESCRIPTION_BYTES as u64;
    let contestants = [("shoal, snapshots all the while", with), ("shoal, no snapshot", without)];
    Report::new("snapshot", bytes, &contestants)?
        .note(format!(
            "{built} snapshots of {} rows and {} MiB in all runs",
            arguments.rows,
            (arguments.rows * arguments.row_bytes as u64) >> 20
        ))
        .print(arguments.json)
}

/// Makes a state, starts a member on it, and measures the writes; gives how many snapshots were
/// built meanwhile.
async fn write(arguments: &Arguments, snapshot_after: u64) -> Result<(Run, u64)> {
    let folder = tempfile::tempdir()?;
    let directory = folder.path().join("raft");
    let (rows, row_bytes) = (arguments.rows, arguments.row_bytes);
    let endpoint = start_endpoint(folder.path())?;
    let address = endpoint.endpoint.local_addr()?.to_string();
    let made = directory.clone();
    tokio::task::spawn_blocking(move || make_state(&made, &address, rows, row_bytes)).await??;
    let config = Config { snapshot_after, ..Config::new(NodeId::new(NODE), directory) };
    let mut registry = Registry::default();
    let raft = Raft::start(config, endpoint, &mut registry).await?;
    // The first read waits until it leads.
    raft.read().await?;
    let admin = User {
        name: "admin".to_owned(),
        password_hash: Secret(Vec::new()),
        role: UserRole::Admin,
        created_at: Timestamp::from_millis(0),
    };
    raft.propose(Timestamp::from_millis(0), Command::PutUser(admin)).await.context("a user")?;
    let (run, ()) = measure(async || {
        let writes = (0..arguments.writes).map(|number| {
            let raft = raft.clone();
            async move {
                raft.propose(Timestamp::from_millis(number), create(number)?)
                    .await
                    .context("a write")
            }
        });
        let mut writes = futures::stream::iter(writes).buffer_unordered(arguments.clients);
        while let Some(written) = writes.next().await {
            written?;
        }
        Ok(())
    })
    .await?;
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    let built =
        text.lines().find_map(|line| line.strip_prefix("shoal_raft_snapshots_built_total "));
    let built = built.context("no count of snapshots")?.parse()?;
    raft.shutdown().await;
    Ok((run, built))
}

fn make_state(directory: &Path, address: &str, rows: u64, row_bytes: usize) -> Result<()> {
    let mut state = Restoring::begin(directory)?;
    let mut row = vec![0; row_bytes.max(32)];
    for number in 0..rows {
        row[..32].copy_from_slice(blake3::hash(&number.to_be_bytes()).as_bytes());
        state.put(Table::Manifests, &number.to_be_bytes(), &row)?;
    }
    state.finish(NodeId::new(NODE), address, rows)?;
    Ok(())
}

fn create(number: u64) -> Result<Command> {
    let id: ImageId = format!("img-{number:032x}").parse()?;
    let description = "x".repeat(DESCRIPTION_BYTES);
    Ok(Command::CreateImage {
        id,
        name: format!("bench/image-{number}").parse()?,
        kind: ImageKind::Disk,
        profile: ImageProfile { description, ..ImageProfile::default() },
        owner: "admin".into(),
    })
}

fn start_endpoint(folder: &Path) -> Result<Transport> {
    let authority = Authority::create(&ClusterId::from_uuid(uuid::Uuid::new_v4()))?;
    let key = Arc::new(KeyPair::load_or_create(&folder.join("key"))?);
    let certificate_pem = authority.issue(&key.csr_pem()?, Role::Node)?;
    let authority_pem = authority.certificate_pem().to_owned();
    let credentials = Credentials::new(key, &certificate_pem, authority_pem)?;
    let mut server = credentials.quinn_server(PROTOCOL, &[Role::Node])?;
    server.transport_config(Arc::new(shoal_raft::quic_settings()));
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Ok(Transport {
        endpoint: quinn::Endpoint::server(server, any)?,
        client: credentials.quinn_client(PROTOCOL, &[Role::Node])?,
        server_name: Role::Node.server_name().to_owned(),
        authenticate: Arc::new(|connection| match peer_of(connection) {
            Ok((peer, Role::Node)) => Some(peer),
            _ => None,
        }),
    })
}
