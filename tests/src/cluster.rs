//! Three nodes and some agents, started as a user starts them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::ceph::Ceph;
use crate::clock::wait_for;
use crate::host::{Host, Network};
use crate::process::{Process, binary, run, run_text};

pub(crate) const API_PORT: u16 = 5000;
/// Of an agent.
pub const PEER_PORT: u16 = 5002;
/// A debug build on two busy cores takes a while to open RocksDB and elect.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// Where a node keeps its objects.
#[derive(Debug, Clone)]
pub enum Storage {
    Folder(PathBuf),
    /// Endpoint, access key and secret key of an S3 gateway.
    S3(String, String, String),
}

impl Storage {
    pub fn of(ceph: &Ceph) -> Self {
        Self::S3(ceph.endpoint.clone(), ceph.access_key.clone(), ceph.secret_key.clone())
    }

    fn toml(&self) -> String {
        match self {
            Self::Folder(path) => format!("kind = \"folder\"\npath = {path:?}\n"),
            Self::S3(endpoint, access, secret) => format!(
                "kind = \"s3\"\nendpoint = {endpoint:?}\nbucket = \"shoal\"\nregion = \"default\"\n\
                 access_key = {access:?}\nsecret_key = {secret:?}\npath_style = true\n"
            ),
        }
    }
}

/// One `shoal-node` with its folder; the process may be down.
#[derive(Debug)]
pub struct Node {
    pub name: String,
    pub address: String,
    host: Host,
    folder: PathBuf,
    environment: Vec<(String, String)>,
    stands_for: Option<u8>,
    process: Option<Process>,
}

impl Node {
    /// Writes the configuration of a node that answers on `address`.
    pub fn prepare(
        host: &Host,
        folder: &Path,
        name: &str,
        address: &str,
        storage: &Storage,
    ) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let data = folder.join("data");
        let config = format!(
            "[node]\nname = {name:?}\ndata_dir = {data:?}\n\n\
             [http]\nlisten = \"{address}:{API_PORT}\"\n\n\
             [raft]\nlisten = \"{address}:5001\"\n\n\
             [peer]\nlisten = \"{address}:5002\"\n\n[limits]\n\n\
             [discovery]\nlisten = \"{address}:5003\"\n\n\
             [storage]\n{}",
            storage.toml()
        );
        fs::write(folder.join("node.toml"), config)?;
        Ok(Self {
            name: name.into(),
            address: address.into(),
            host: host.clone(),
            folder: folder.into(),
            environment: Vec::new(),
            stands_for: None,
            process: None,
        })
    }

    /// Adds sections to the configuration.
    pub fn configure(&self, sections: &str) -> Result<()> {
        let path = self.folder.join("node.toml");
        let text = fs::read_to_string(&path)?;
        Ok(fs::write(&path, format!("{text}\n{sections}"))?)
    }

    /// Has `name` in the node's certificate.
    pub fn answer_to(&self, name: &str) -> Result<()> {
        self.edit("[http]\n", &format!("[http]\nnames = [{name:?}]\n"))
    }

    /// Puts `to` in the place of the first `from` in the configuration.
    pub fn edit(&self, from: &str, to: &str) -> Result<()> {
        let path = self.folder.join("node.toml");
        let text = fs::read_to_string(&path)?;
        Ok(fs::write(&path, text.replacen(from, to, 1))?)
    }

    /// From its next start, the process has these variables.
    pub fn set_environment(&mut self, variables: Vec<(String, String)>) {
        self.environment = variables;
    }

    /// From its next command, the program stands for the one whose newest command this is; `None`
    /// is the one that it is.
    pub fn stand_for(&mut self, command_version: Option<u8>) {
        self.stands_for = command_version;
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    pub fn url(&self) -> String {
        format!("https://{}:{API_PORT}", self.address)
    }

    /// `10.77.0.N:5000`, as it stands before an image's name.
    pub fn registry(&self) -> String {
        format!("{}:{API_PORT}", self.address)
    }

    pub fn raft_address(&self) -> String {
        format!("{}:5001", self.address)
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// `shoal-node SUBCOMMAND --config … ARGUMENTS`, on the node's host.
    pub fn command(&self, subcommand: &str, arguments: &[&str]) -> Result<Command> {
        let mut command = self.host.command(binary("shoal-node")?);
        command.arg(subcommand).arg("--config").arg(self.folder.join("node.toml")).args(arguments);
        command.env("RUST_BACKTRACE", "0");
        if let Some(version) = self.stands_for {
            command.env("SHOAL_NODE_STANDS_FOR", version.to_string());
        }
        Ok(command)
    }

    /// Founds a cluster; gives the administrator's password, which is printed once.
    pub fn init(&self) -> Result<String> {
        let printed = run_text(self.command("init", &[])?)?;
        let line = printed.lines().find_map(|line| line.trim().strip_prefix("password:"));
        Ok(line.with_context(|| format!("no password in:\n{printed}"))?.trim().to_owned())
    }

    pub fn join(&self, other: &Self, token: &str) -> Result<()> {
        run(self.command("join", &["--node", &other.url(), "--token", token])?).map(drop)
    }

    /// Starts it and waits until it is ready.
    pub fn start(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_until_ready()
    }

    /// Starts it and waits for nothing.
    pub fn launch(&mut self) -> Result<()> {
        let mut command = self.command("run", &[])?;
        command.envs(self.environment.iter().cloned());
        self.process = Some(Process::start(&self.name, command, &self.folder.join("log"))?);
        Ok(())
    }

    pub fn wait_until_ready(&mut self) -> Result<()> {
        let (host, url) = (self.host.clone(), self.url());
        let process = self.process.as_mut().context("the node was not started")?;
        wait_for(&format!("{} to be ready", self.name), START_DEADLINE, || {
            process.ensure_running()?;
            let mut command = host.command("curl");
            command.args(["-ksSf", "--max-time", "3", &format!("{url}/ready")]);
            Ok(run(command).ok())
        })
        .map(drop)
        .with_context(|| process.log_tail())
    }

    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the process was not started")
    }

    /// The sum of a counter over the label sets that contain `labels`.
    pub fn metric(&self, name: &str, labels: &str, password: &str) -> Result<f64> {
        let mut command = self.host.command("curl");
        command.args(["-ksSf", "--max-time", "10", "-u", &format!("admin:{password}")]);
        command.arg(format!("{}/metrics", self.url()));
        sum_metric(&run_text(command)?, name, labels)
    }
}

/// Adds up the samples of `name` whose label text contains `labels`.
///
/// # Errors
/// Where the name does not occur at all: a renamed metric must not read as zero.
pub fn sum_metric(text: &str, name: &str, labels: &str) -> Result<f64> {
    if !text.contains(name) {
        bail!("no metric {name} in:\n{text}");
    }
    let samples = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (set, value) = rest.rsplit_once(' ')?;
        let whole_name = set.is_empty() || set.starts_with('{');
        (whole_name && set.contains(labels)).then(|| value.parse::<f64>().ok())?
    });
    Ok(samples.sum())
}

/// One `shoal-agent` on a host of its own.
#[derive(Debug)]
pub struct Agent {
    pub name: String,
    host: Host,
    folder: PathBuf,
    data: PathBuf,
    process: Option<Process>,
    environment: Vec<(String, String)>,
}

impl Agent {
    pub const MIRROR: &'static str = "127.0.0.1:5055";
    const STATUS: &'static str = "127.0.0.1:5056";

    pub fn prepare(host: &Host, folder: &Path, name: &str) -> Result<Self> {
        Self::prepare_in(host, folder, name, &folder.join("data"))
    }

    /// With a data folder elsewhere, for instance on a small file system.
    pub fn prepare_in(host: &Host, folder: &Path, name: &str, data: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let address = host.address();
        let config = format!(
            "[agent]\nname = {name:?}\ndata_dir = {data:?}\n\n\
             [peer]\nlisten = \"{address}:{PEER_PORT}\"\n\n[limits]\n\n\
             [discovery]\nlisten = \"{address}:5003\"\n\n\
             [mirror]\nlisten = {:?}\n\n[status]\nlisten = {:?}\n",
            Self::MIRROR,
            Self::STATUS
        );
        fs::write(folder.join("agent.toml"), config)?;
        Ok(Self {
            name: name.into(),
            host: host.clone(),
            folder: folder.into(),
            data: data.into(),
            process: None,
            environment: Vec::new(),
        })
    }

    /// From its next start, the process has these variables.
    pub fn set_environment(&mut self, variables: Vec<(String, String)>) {
        self.environment = variables;
    }

    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    /// Adds settings of the mirror, a line for each.
    pub fn set_mirror(&self, lines: &str) -> Result<()> {
        self.edit("[mirror]\n", &format!("[mirror]\n{lines}"))
    }

    /// Changes its settings' text.
    pub fn edit(&self, from: &str, to: &str) -> Result<()> {
        let path = self.folder.join("agent.toml");
        let text = fs::read_to_string(&path)?;
        ensure!(text.contains(from), "the settings have no {from:?}");
        Ok(fs::write(&path, text.replacen(from, to, 1))?)
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    pub fn command(&self, subcommand: &str, arguments: &[&str]) -> Result<Command> {
        let mut command = self.host.command(binary("shoal-agent")?);
        command.arg(subcommand).arg("--config").arg(self.folder.join("agent.toml")).args(arguments);
        command.env("RUST_BACKTRACE", "0");
        Ok(command)
    }

    /// What a command of it says for programs, in its last line.
    pub fn json(&self, subcommand: &str, arguments: &[&str]) -> Result<Value> {
        let all = [arguments, &["--json"][..]].concat();
        let text = run_text(self.command(subcommand, &all)?)?;
        let last = text.lines().last().context("it says nothing")?;
        serde_json::from_str(last).with_context(|| format!("not JSON: {text}"))
    }

    /// Another program in its place, on its host: it is told the data folder and the peer port.
    pub fn stand_in(&self, program: &str) -> Result<Command> {
        let mut command = self.host.command(binary(program)?);
        command.arg(&self.data).arg(format!("{}:{PEER_PORT}", self.host.address()));
        Ok(command)
    }

    pub fn join(&self, node: &Node, token: &str) -> Result<()> {
        run(self.command("join", &["--node", &node.url(), "--token", token])?).map(drop)
    }

    pub fn start(&mut self) -> Result<()> {
        let mut command = self.command("run", &[])?;
        command.envs(self.environment.iter().cloned());
        let mut process = Process::start(&self.name, command, &self.folder.join("log"))?;
        wait_for(&format!("{} to be healthy", self.name), START_DEADLINE, || {
            process.ensure_running()?;
            Ok(self.get("/health").ok())
        })
        .with_context(|| process.log_tail())?;
        self.process = Some(process);
        Ok(())
    }

    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the process was not started")
    }

    /// The sum of a metric over the label sets that contain `labels`.
    pub fn metric(&self, name: &str, labels: &str) -> Result<f64> {
        sum_metric(&self.get("/metrics")?, name, labels)
    }

    fn get(&self, path: &str) -> Result<String> {
        let mut command = self.host.command("curl");
        command.args(["-sSf", "--max-time", "5", &format!("http://{}{path}", Self::STATUS)]);
        run_text(command)
    }
}

/// The command line for people, logged in as the administrator.
#[derive(Debug)]
pub struct Operator {
    host: Host,
    home: PathBuf,
}

impl Operator {
    pub fn login(host: &Host, folder: &Path, node: &Node, password: &str) -> Result<Self> {
        let home = folder.join("operator");
        fs::create_dir_all(&home)?;
        let secret = home.join("password");
        fs::write(&secret, password)?;
        let operator = Self { host: host.clone(), home };
        let mut command =
            operator.command(&["login", &node.url(), "--username", "admin", "--password-stdin"])?;
        command.arg("--ca").arg(node.data_dir().join("ca.pem"));
        let output = command.stdin(fs::File::open(&secret)?).output()?;
        if !output.status.success() {
            bail!("shoal login: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(operator)
    }

    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.host.command(binary("shoal")?);
        command.args(arguments).env("XDG_CONFIG_HOME", &self.home).env("HOME", &self.home);
        Ok(command)
    }

    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        run_text(self.command(arguments)?)
    }

    /// With `--json`: what the command prints for programs.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = vec!["--json"];
        all.extend_from_slice(arguments);
        let text = self.run(&all)?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    pub fn token(&self, role: &str) -> Result<String> {
        let created = self.json(&["token", "create", "--role", role])?;
        Ok(created["token"].as_str().context("no token in the answer")?.to_owned())
    }
}

/// Three nodes in the hub, agents on hosts of their own.
#[derive(Debug)]
pub struct Cluster {
    pub agents: Vec<Agent>,
    pub nodes: Vec<Node>,
    pub operator: Operator,
    pub password: String,
}

impl Cluster {
    /// Founds a cluster on `storage`, joins the other nodes and enrols `agents` agents.
    pub fn start(
        network: &Network,
        folder: &Path,
        storage: &Storage,
        nodes: usize,
        agents: usize,
    ) -> Result<Self> {
        let hub = network.hub();
        let mut all = Vec::new();
        for number in 1..=nodes {
            let name = format!("node-{number}");
            all.push(Node::prepare(
                hub,
                &folder.join(&name),
                &name,
                &format!("10.77.0.{number}"),
                storage,
            )?);
        }
        let mut cluster = Self::of(hub, folder, all)?;
        for index in 0..agents {
            let name = format!("agent-{}", index + 1);
            let mut agent = Agent::prepare(network.host(index), &folder.join(&name), &name)?;
            agent.join(&cluster.nodes[index % nodes], &cluster.operator.token("agent")?)?;
            agent.start()?;
            cluster.agents.push(agent);
        }
        Ok(cluster)
    }

    /// Founds a cluster by the first of `nodes` and joins the others; `hub` is the operator's host.
    pub fn of(hub: &Host, folder: &Path, mut nodes: Vec<Node>) -> Result<Self> {
        let password = nodes[0].init()?;
        nodes[0].start()?;
        let operator = Operator::login(hub, folder, &nodes[0], &password)?;
        for number in 1..nodes.len() {
            let token = operator.token("node")?;
            let (first, rest) = nodes.split_at_mut(number);
            rest[0].join(&first[0], &token)?;
            rest[0].start()?;
        }
        let cluster = Self { agents: Vec::new(), nodes, operator, password };
        cluster.wait_for_voters(cluster.nodes.len())?;
        Ok(cluster)
    }

    fn wait_for_voters(&self, wanted: usize) -> Result<()> {
        wait_for(&format!("{wanted} voters"), START_DEADLINE, || {
            let status = self.operator.json(&["status"])?;
            let nodes = status["nodes"].as_array().context("no nodes in the status")?;
            let voters =
                nodes.iter().filter(|node| node["role"] == "voter" || node["role"] == "leader");
            Ok((voters.count() == wanted).then_some(()))
        })
    }

    /// The index of the node that leads, as the cluster says it.
    pub fn leader(&self) -> Result<usize> {
        wait_for("a leader", START_DEADLINE, || {
            let status = self.operator.json(&["status"])?;
            let nodes = status["nodes"].as_array().context("no nodes in the status")?;
            let leader = nodes.iter().find(|node| node["role"] == "leader");
            let name = leader.and_then(|node| node["name"].as_str());
            Ok(name.and_then(|name| self.nodes.iter().position(|node| node.name == name)))
        })
    }

    /// Chunk bytes that the nodes have sent to agents so far, in sum.
    pub fn origin_bytes(&self) -> Result<f64> {
        let sent = |node: &Node| {
            node.metric("shoal_chunk_bytes_sent_total", "to=\"agent\"", &self.password)
        };
        self.nodes.iter().map(sent).sum()
    }

    /// Bytes that agents got from agents so far, in sum.
    pub fn peer_bytes(&self) -> Result<f64> {
        let got = |agent: &Agent| agent.metric("shoal_chunk_bytes_received_total", "from=\"peer\"");
        self.agents.iter().map(got).sum()
    }

    /// The ends of all logs, for a failed test's message.
    pub fn logs(&mut self) -> BTreeMap<String, String> {
        let nodes = self
            .nodes
            .iter_mut()
            .filter_map(|node| Some((node.name.clone(), node.process.as_ref()?.log_tail())));
        let agents = self
            .agents
            .iter_mut()
            .filter_map(|agent| Some((agent.name.clone(), agent.process.as_ref()?.log_tail())));
        nodes.chain(agents).collect()
    }
}
