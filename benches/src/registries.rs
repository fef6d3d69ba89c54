//! The contestants of `bin/registry`: a cluster of ours and Debian's docker-registry, each with its
//! data in a folder or in a Ceph that they share.

use std::fmt;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::http::{Connection, Request};
use crate::process::Server;

/// What a benchmark is told to keep content in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum StorageKind {
    Folder,
    /// A monitor, an OSD and a gateway on this host (packages ceph-mon, ceph-osd, radosgw).
    Ceph,
}

/// Where content is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    Folder,
    S3 { endpoint: String, access_key: String, secret_key: String },
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Folder => "a folder",
            Self::S3 { .. } => "Ceph",
        })
    }
}

/// One Ceph of our own, stopped when it is dropped.
#[derive(Debug)]
pub struct Ceph {
    folder: PathBuf,
    storage: Storage,
}

impl Ceph {
    pub fn start(folder: &Path) -> Result<Self> {
        let mut command = ceph_rgw();
        command.arg("start").arg(folder).env("MONPORT", port()?).env("RGWPORT", port()?);
        let output = command.output().with_context(|| format!("{command:?}"))?;
        let (said, error) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "Ceph does not start: {error}");
        let last = said.lines().last().unwrap_or_default();
        let mut words = last.split_whitespace().map(str::to_owned);
        let (Some(endpoint), Some(access_key), Some(secret_key)) =
            (words.next(), words.next(), words.next())
        else {
            anyhow::bail!("ceph-rgw says: {said}{error}")
        };
        let storage = Storage::S3 { endpoint, access_key, secret_key };
        Ok(Self { folder: folder.to_owned(), storage })
    }

    pub fn storage(&self) -> Storage {
        self.storage.clone()
    }
}

impl Drop for Ceph {
    fn drop(&mut self) {
        // What is left then is seen by whoever looks for processes.
        let _ = ceph_rgw().arg("kill").arg(&self.folder).output();
    }
}

fn ceph_rgw() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/ceph-rgw"))
}

/// One of the two: the first server is asked, the others help it.
#[derive(Debug)]
pub struct Contestant {
    servers: Vec<Server>,
    /// Address and port.
    pub host: String,
    /// A whole header line, or nothing.
    pub authorization: String,
    /// The same for the whole API of ours, as its administrator.
    pub administrator: String,
}

impl Contestant {
    /// Of all its servers so far.
    pub fn cpu(&self) -> Result<Duration> {
        self.servers.iter().map(Server::cpu).sum()
    }

    /// See [`Server::memory_mib`]; of the server that is asked.
    pub fn memory_mib(&self, field: &str) -> Result<f64> {
        self.servers.first().context("no server")?.memory_mib(field)
    }
}

fn tcp() -> Result<String> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.to_string())
}

fn udp() -> Result<String> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.to_string())
}

fn port() -> Result<String> {
    Ok(tcp()?.rsplit(':').next().unwrap_or_default().to_owned())
}

/// A node that is to run.
struct Node<'a> {
    program: &'a Path,
    folder: PathBuf,
    /// In the clear, and with TLS.
    hosts: [String; 2],
}

impl<'a> Node<'a> {
    /// All nodes of a cluster have `store`, where they store in a folder.
    fn prepare(program: &'a Path, name: &str, home: &Path, storage: &Storage) -> Result<Self> {
        let (folder, store) = (home.join(name), home.join("store"));
        std::fs::create_dir_all(&folder)?;
        let hosts = [tcp()?, tcp()?];
        let storage = match storage {
            Storage::Folder => format!("path = \"{}\"\n", store.display()),
            Storage::S3 { endpoint, access_key, secret_key } => format!(
                "kind = \"s3\"\nendpoint = \"{endpoint}\"\nbucket = \"shoal\"\n\
                 access_key = \"{access_key}\"\nsecret_key = \"{secret_key}\"\n"
            ),
        };
        let text = format!(
            "[node]\nname = \"{name}\"\ndata_dir = \"{}\"\n[http]\nlisten = \"{}\"\nplain_listen = \"{}\"\n\
             [raft]\nlisten = \"{}\"\n[peer]\nlisten = \"{}\"\n[discovery]\nenabled = false\n\
             [log]\nfilter = \"warn\"\n[storage]\n{storage}",
            folder.join("data").display(),
            hosts[1],
            hosts[0],
            udp()?,
            udp()?,
        );
        std::fs::write(folder.join("node.toml"), text)?;
        Ok(Self { program, folder, hosts })
    }

    fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(self.program);
        command.arg(subcommand).arg("--config").arg(self.folder.join("node.toml"));
        command
    }

    /// Runs a subcommand to its end; gives what it said.
    fn finish(&self, mut command: Command) -> Result<String> {
        let output = command.output().with_context(|| {
            format!("{} does not start; 'cargo build --release' makes it", self.program.display())
        })?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {error}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    async fn start(&self) -> Result<Server> {
        let log = self.folder.join("log");
        let mut server = Server::start(self.command("run"), &log)?;
        server.listening(&self.hosts[0], &log).await?;
        Ok(server)
    }
}

/// The shoal-node program: the one that is named, or the one beside this program.
///
/// # Errors
/// Where this program does not know where it lies.
pub fn node_program(named: Option<&Path>) -> Result<PathBuf> {
    Ok(match named {
        Some(program) => program.to_owned(),
        None => std::env::current_exe()?.with_file_name("shoal-node"),
    })
}

/// Starts a cluster and logs in.
///
/// # Errors
/// Where a program does not start, or does not do as it is told.
pub async fn start_cluster(
    program: &Path,
    folder: &Path,
    storage: &Storage,
    nodes: usize,
) -> Result<Contestant> {
    ensure!(nodes > 0, "a cluster has a node");
    let of = |number| Node::prepare(program, &format!("node-{number}"), folder, storage);
    let first = of(1)?;
    let said = first.finish(first.command("init"))?;
    let password = said.lines().find_map(|line| line.strip_prefix("password: "));
    let password = password.with_context(|| format!("shoal-node init: {said}"))?;
    let mut servers = vec![first.start().await?];
    let host = first.hosts[0].clone();
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("admin:{password}"));
    let administrator = format!("Authorization: Basic {basic}\r\n");
    let mut admin = Connection::open(&host, &administrator).await?;
    for number in 2..=nodes {
        let asked = json!({ "role": "node", "ttl_seconds": 600, "uses": 1 });
        let made = admin.call("POST", "/api/v1/join-tokens", &asked, 201).await?;
        let node = of(number)?;
        let mut join = node.command("join");
        join.arg("--node").arg(format!("https://{}", first.hosts[1]));
        join.arg("--token").arg(made["token"].as_str().context("no join token")?);
        node.finish(join)?;
        servers.push(node.start().await?);
    }
    let scope = "repository:bench/image:pull,push";
    let answer =
        admin.send(&Request::get(format!("/v2/token?service=shoal&scope={scope}"))).await?;
    let answer: Value = serde_json::from_str(&answer.text)?;
    let token = answer["token"].as_str().context("no token")?;
    let authorization = format!("Authorization: Bearer {token}\r\n");
    Ok(Contestant { servers, host, authorization, administrator })
}

/// Starts docker-registry as Debian's package has it, without logs.
///
/// # Errors
/// Where it does not start.
pub async fn start_peer(program: &Path, folder: &Path, storage: &Storage) -> Result<Contestant> {
    let host = tcp()?;
    let storage = match storage {
        Storage::Folder => {
            format!("filesystem: {{rootdirectory: {}}}", folder.join("peer").display())
        }
        Storage::S3 { endpoint, access_key, secret_key } => {
            make_bucket(endpoint, access_key, secret_key)?;
            format!(
                "s3: {{accesskey: {access_key}, secretkey: {secret_key}, region: default, \
                 bucket: peer, regionendpoint: '{endpoint}', secure: false, v4auth: true}}\n  \
                 redirect: {{disable: true}}"
            )
        }
    };
    let text = format!(
        "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage:\n  {storage}\n  \
         cache: {{blobdescriptor: inmemory}}\nhttp: {{addr: '{host}'}}\n"
    );
    let file = folder.join("peer.yml");
    std::fs::write(&file, text)?;
    let mut command = Command::new(program);
    command.arg("serve").arg(&file).env("OTEL_TRACES_EXPORTER", "none");
    // Storage speaks no TLS here, and the program dies of such a setting.
    command.env_remove("AWS_CA_BUNDLE");
    let log = folder.join("peer.log");
    let mut server = Server::start(command, &log)?;
    server.listening(&host, &log).await?;
    let (authorization, administrator) = Default::default();
    Ok(Contestant { servers: vec![server], host, authorization, administrator })
}

/// docker-registry makes none; a node makes its own.
fn make_bucket(endpoint: &str, access_key: &str, secret_key: &str) -> Result<()> {
    let empty = hex::encode(Sha256::digest(b""));
    let mut command = Command::new("curl");
    command.arg("-H").arg(format!("x-amz-content-sha256: {empty}"));
    command.args(["-sSf", "-X", "PUT", "--aws-sigv4", "aws:amz:default:s3", "--user"]);
    command.arg(format!("{access_key}:{secret_key}")).arg(format!("{endpoint}/peer"));
    let output = command.output().context("curl")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the peer's bucket: {error}");
    Ok(())
}
