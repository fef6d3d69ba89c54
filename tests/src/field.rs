//! Agents on thin lines of their own, and a disk that all of them are to have.
//!
//! The lines make a transfer last seconds, so that there is a middle of it in which something can
//! befall it, on whichever machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::clock::wait_for;
use crate::cluster::{Agent, Cluster, Operator, Storage};
use crate::host::Network;
use crate::process::run;
use crate::sample::noise;

/// Of each agent's line, each way.
pub const KILOBITS: u32 = 50_000;
pub const REFERENCE: &str = "zedge/field:v1";
const DISK_BYTES: usize = 48 << 20;
/// Over an agent's line that disk takes eight seconds.
pub const DEADLINE: Duration = Duration::from_secs(180);
const KIB: f64 = 1024.0;

/// Fields are dropped in this order: processes before what they stand on.
#[derive(Debug)]
pub struct Field {
    pub cluster: Cluster,
    pub network: Network,
    pub folder: PathBuf,
    disk: PathBuf,
}

impl Field {
    /// So many nodes, an agent in each of `zones`, and the disk in an image.
    pub fn set(folder: &Path, nodes: usize, zones: &[&str]) -> Result<Self> {
        let network = Network::create(zones.len())?;
        let storage = Storage::Folder(folder.join("objects"));
        let mut cluster = Cluster::start(&network, folder, &storage, nodes, 0)?;
        for (index, zone) in zones.iter().enumerate() {
            let name = format!("agent-{}", index + 1);
            let mut agent = Agent::prepare(network.host(index), &folder.join(&name), &name)?;
            agent.edit("[agent]\n", &format!("[agent]\nzone = {zone:?}\n"))?;
            agent.join(&cluster.nodes[index % nodes], &cluster.operator.token("agent")?)?;
            agent.start()?;
            cluster.agents.push(agent);
            network.shape(index, KILOBITS)?;
        }
        let disk = folder.join("disk.raw");
        fs::write(&disk, noise(1, DISK_BYTES))?;
        let path = disk.to_string_lossy().into_owned();
        cluster.operator.run(&["image", "upload", &path, REFERENCE, "--version", "1"])?;
        Ok(Self { cluster, network, folder: folder.to_owned(), disk })
    }

    /// Has all agents get the disk.
    pub fn order(&self, arguments: &[&str]) -> Result<()> {
        let order = ["deploy", REFERENCE, "--all", "--detach"];
        self.cluster.operator.run(&[&order[..], arguments].concat()).map(drop)
    }

    /// The operator goes on at this node, once that takes a login: there may be no leader yet.
    pub fn ask_at(&mut self, node: usize) -> Result<()> {
        let (hub, cluster) = (self.network.hub(), &self.cluster);
        let operator = wait_for("a login", DEADLINE, || {
            let node = &cluster.nodes[node];
            Operator::login(hub, &self.folder, node, &cluster.password).map(Some)
        })?;
        self.cluster.operator = operator;
        Ok(())
    }

    /// How much of the disk an agent got since it was started, as a share of it.
    pub fn got(&self, agent: usize) -> Result<f64> {
        let bytes =
            self.cluster.agents[agent].metric("shoal_chunk_bytes_received_total", "from=")?;
        Ok(bytes / DISK_BYTES as f64)
    }

    /// How many chunks of the disk an agent has verified in its cache, as its `list` says.
    pub fn holds(&self, agent: usize) -> Result<f64> {
        let listed = self.cluster.agents[agent].json("list", &[])?;
        let images = listed["images"].as_array().context("a list has images")?;
        let held = images.iter().map(|image| image["chunks_held"].as_f64());
        held.sum::<Option<f64>>().context("an image has chunks")
    }

    /// Waits until each of these agents has got such a share of the disk, and holds that none has
    /// all of it, so that what comes now comes in the middle.
    pub fn reach(&self, agents: &[usize], share: f64) -> Result<()> {
        wait_for(&format!("{share} of the disk on {agents:?}"), DEADLINE, || {
            let got = agents.iter().map(|&agent| self.got(agent)).collect::<Result<Vec<_>>>()?;
            ensure!(got.iter().all(|got| *got < 1.0), "some had all of it before: {got:?}");
            Ok(got.iter().all(|got| *got >= share).then_some(()))
        })
    }

    fn shown(&self) -> Result<Value> {
        self.cluster.operator.json(&["deployments", "show", REFERENCE])
    }

    /// Each host's state in the deployment, in the agents' order.
    pub fn states(&self) -> Result<Vec<String>> {
        let shown = self.shown()?;
        let hosts = shown["hosts"].as_array().context("a deployment has hosts")?;
        let state = |agent: &Agent| -> Result<String> {
            let host = hosts.iter().find(|host| host["name"] == agent.name.as_str());
            let state = host.and_then(|host| host["state"].as_str());
            Ok(state.with_context(|| format!("no {} in {shown}", agent.name))?.to_owned())
        };
        self.cluster.agents.iter().map(state).collect()
    }

    /// Waits until these hosts are done.
    pub fn until_done(&self, agents: &[usize]) -> Result<()> {
        wait_for(&format!("{agents:?} to be done"), DEADLINE, || {
            let states = self.states()?;
            Ok(agents.iter().all(|&agent| states[agent] == "done").then_some(()))
        })
    }

    /// Waits until the deployment has ended well.
    pub fn end(&self) -> Result<()> {
        wait_for("the deployment to be done", DEADLINE, || {
            let shown = self.shown()?;
            ensure!(shown["state"] != "failed", "it failed: {shown}");
            Ok((shown["state"] == "done").then_some(()))
        })
    }

    /// Holds that an agent has the disk byte for byte.
    pub fn ensure_whole(&self, agent: usize) -> Result<()> {
        let output = self.folder.join("out.raw");
        let path = output.to_string_lossy().into_owned();
        let fetch = ["--format", "raw", "--output", path.as_str()];
        let agent = &self.cluster.agents[agent];
        run(agent.command("fetch", &[&[REFERENCE][..], &fetch[..]].concat())?)?;
        ensure!(fs::read(&output)? == fs::read(&self.disk)?, "{} has another disk", agent.name);
        Ok(fs::remove_file(&output)?)
    }

    /// Copies of the disk that the nodes which run have sent to agents.
    pub fn copies(&self) -> Result<f64> {
        Ok(self.cluster.origin_bytes()? / DISK_BYTES as f64)
    }

    pub fn disk_bytes(&self) -> f64 {
        DISK_BYTES as f64
    }

    /// Peers that an agent has banned since it was started.
    pub fn bans(&self, agent: usize) -> Result<f64> {
        self.cluster.agents[agent].metric("shoal_peer_bans_total", "reason=")
    }

    /// Those that an agent has banned at the moment, with the reasons, as its `status` has them.
    pub fn banned(&self, agent: usize) -> Result<BTreeMap<String, String>> {
        let status = self.cluster.agents[agent].json("status", &[])?;
        let banned = status["banned"].as_object().context("a status says who is banned")?;
        let reason = |(peer, ban): (&String, &Value)| {
            Some((peer.clone(), ban["reason"].as_str()?.to_owned()))
        };
        Ok(banned.iter().filter_map(reason).collect())
    }

    /// What `shoal explain` says went wrong at the hosts, and was worked around.
    pub fn errors(&self) -> Result<Vec<String>> {
        let explained = self.cluster.operator.json(&["explain", REFERENCE])?;
        let hosts = explained["hosts"].as_array().context("a deployment has hosts")?;
        let error = |host: &Value| host["progress"]["last_error"].as_str().map(str::to_owned);
        Ok(hosts.iter().filter_map(error).collect())
    }

    /// Open files and sockets of an agent.
    pub fn descriptors(&mut self, agent: usize) -> Result<usize> {
        let id = self.cluster.agents[agent].process()?.id();
        Ok(fs::read_dir(format!("/proc/{id}/fd"))?.count())
    }

    /// A line of an agent's `/proc/PID/status` in MiB, for instance `VmHWM` (proc(5)).
    pub fn memory_mib(&mut self, agent: usize, field: &str) -> Result<f64> {
        let id = self.cluster.agents[agent].process()?.id();
        let status = fs::read_to_string(format!("/proc/{id}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib = line.with_context(|| format!("no {field}"))?.trim().trim_end_matches(" kB");
        Ok(kib.parse::<f64>()? / KIB)
    }
}
