//! A member of a Raft group as the node runs it, in a process of its own, that takes puts.
//!
//! Everything below the put is the node's: the log, the state machine, QUIC with the cluster's
//! certificates. A put is the smallest command that carries a value, the creation of an image.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bytes::Bytes;
use prometheus_client::registry::Registry;
use shoal_content::{ImageId, NodeId, Timestamp};
use shoal_metadata::{COMMAND_VERSION, Command, ImageKind, ImageProfile, Secret, User, UserRole};
use shoal_p2p::identity::{Authority, Credentials, KeyPair, Role, peer_of};
use shoal_raft::{Config, Raft, Transport};
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;
use uuid::Uuid;

use crate::grpc;

const PROTOCOL: &[u8] = b"shoal-raft/1";

/// What a member is told.
#[derive(Debug, Clone)]
pub struct Member {
    pub number: u64,
    pub folder: PathBuf,
    pub raft: SocketAddr,
    /// Where it takes puts.
    pub front: SocketAddr,
    /// The others, with their Raft addresses: for the one that founds the group.
    pub others: Vec<(u64, SocketAddr)>,
}

/// Makes a member's key and certificate in `folder`.
pub fn enrol(authority: &Authority, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let key = KeyPair::load_or_create(&folder.join("key"))?;
    let certificate = authority.issue(&key.csr_pem()?, Role::Node)?;
    std::fs::write(folder.join("certificate.pem"), certificate)?;
    Ok(std::fs::write(folder.join("authority.pem"), authority.certificate_pem())?)
}

/// Runs until it is killed.
pub async fn run(member: Member) -> Result<()> {
    // As in a node. Without any, each span that nobody wants to see is put together all the same.
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(EnvFilter::new("info"))
        .init();
    let text = |name: &str| std::fs::read_to_string(member.folder.join(name));
    let key = Arc::new(KeyPair::load_or_create(&member.folder.join("key"))?);
    let credentials = Credentials::new(key, &text("certificate.pem")?, text("authority.pem")?)?;
    let mut server = credentials.quinn_server(PROTOCOL, &[Role::Node])?;
    server.transport_config(Arc::new(shoal_raft::quic_settings()));
    let transport = Transport {
        endpoint: quinn::Endpoint::server(server, member.raft)?,
        client: credentials.quinn_client(PROTOCOL, &[Role::Node])?,
        server_name: Role::Node.server_name().to_owned(),
        authenticate: Arc::new(|connection| peer_of(connection).ok().map(|(peer, _)| peer)),
    };
    let config = Config::new(NodeId::new(member.number), member.folder.join("raft"));
    let raft = Raft::start(config, transport, &mut Registry::default()).await?;
    if !member.others.is_empty() {
        raft.bootstrap(member.raft.to_string()).await?;
        for (number, address) in &member.others {
            raft.add_member(NodeId::new(*number), address.to_string()).await?;
        }
        // As a cluster's nodes do once all of them run the same program.
        raft.propose(now()?, Command::RaiseLevel { to: COMMAND_VERSION }).await?;
        let bench = User {
            name: "bench".to_owned(),
            password_hash: Secret(Vec::new()),
            role: UserRole::Admin,
            created_at: now()?,
        };
        raft.propose(now()?, Command::PutUser(bench)).await?;
    }
    let listener = TcpListener::bind(member.front).await.context("the front")?;
    let put = move |key, value| {
        let raft = raft.clone();
        async move {
            let command = command(&key, &value)?;
            raft.propose(now()?, command).await?;
            Ok(())
        }
    };
    grpc::serve(listener, put).await
}

fn command(key: &Bytes, value: &Bytes) -> Result<Command> {
    let description = String::from_utf8(value.to_vec())?;
    Ok(Command::CreateImage {
        id: ImageId::from_uuid(Uuid::now_v7()),
        name: std::str::from_utf8(key)?.parse()?,
        kind: ImageKind::Disk,
        profile: ImageProfile { description, ..ImageProfile::default() },
        owner: "bench".into(),
    })
}

fn now() -> Result<Timestamp> {
    let since: Duration = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(Timestamp::from_millis(u64::try_from(since.as_millis())?))
}
