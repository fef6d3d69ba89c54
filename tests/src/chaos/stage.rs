//! Three nodes on hosts, disks and clocks of their own, a real Ceph behind a gateway, and the
//! faults that befall them.
//!
//! Invariant: after [`Stage::heal`] nothing is broken any more; processes may still be starting.
//! A process that ends although nobody killed it is an error.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tokio::runtime::Handle;

use super::fault::{Fault, Kind};
use crate::ceph::Ceph;
use crate::clock::wait_for;
use crate::cluster::{Cluster, Node, Storage, sum_metric};
use crate::gateway::{Gateway, Mode};
use crate::host::{Host, Network};
use crate::process::{run, run_text};
use crate::skew::{self, Clock};
use crate::throttle::Disk;

pub const NODES: usize = 3;
/// Where the nodes find S3: an address of the hub that nobody else answers on.
const GATEWAY: &str = "10.77.0.8";
const DISK_MIB: u64 = 16 * 1024;
/// What nothing refers to is deleted while clients push: that is part of what is tested.
const SETTINGS: &str = "[collection]\ngrace_seconds = 20\ninterval_seconds = 4\n\
                        compact_below_percent = 95\n[metrics]\npublic = true\n";
/// More than a fault sets a clock ahead, and the grace; S3 allows a quarter of an hour.
const CLOCK_JUMP_MS: i64 = 14 * 60 * 1000;
/// Within this time of the end of all faults, all nodes serve again.
pub const RECOVERY_DEADLINE: Duration = Duration::from_secs(90);

/// Fields are dropped in this order: processes before what they stand on.
#[derive(Debug)]
pub struct Stage {
    pub cluster: Cluster,
    gateway: Gateway,
    ceph: Ceph,
    clocks: Vec<Clock>,
    disks: Vec<Disk>,
    network: Network,
    /// Whom we killed, and have not started again.
    down: [bool; NODES],
    gateway_down: bool,
}

impl Stage {
    /// The calling thread, and the threads of `runtime`, must be in the hub of `network`.
    pub fn set(network: Network, folder: &Path, runtime: &Handle) -> Result<Self> {
        let ceph = Ceph::start(network.hub(), &folder.join("ceph"))?;
        let upstream = ceph.endpoint.trim_start_matches("http://").to_owned();
        let listen = format!("{GATEWAY}:7480");
        let gateway = runtime.block_on(Gateway::start(&listen, &upstream))?;
        let storage = Storage::S3(
            format!("http://{listen}"),
            ceph.access_key.clone(),
            ceph.secret_key.clone(),
        );
        let library = skew::build(folder)?;
        let (mut nodes, mut disks, mut clocks) = (Vec::new(), Vec::new(), Vec::new());
        for index in 0..NODES {
            let host = network.host(index);
            let name = format!("node-{}", index + 1);
            let home = folder.join(&name);
            disks.push(Disk::create(&folder.join(format!("{name}.disk")), &home, DISK_MIB)?);
            let clock = Clock::create(&folder.join(format!("{name}.clock")), &library)?;
            let mut node = Node::prepare(host, &home, &name, host.address(), &storage)?;
            node.configure(SETTINGS)?;
            node.set_environment(clock.environment());
            nft(host, "add table inet chaos")?;
            let chain = "add chain inet chaos input { type filter hook input priority 0; }";
            nft(host, chain)?;
            nodes.push(node);
            clocks.push(clock);
        }
        let mut cluster = Cluster::of(network.hub(), folder, nodes)?;
        for (node, disk) in cluster.nodes.iter_mut().zip(&disks) {
            disk.adopt(node.process()?.id())?;
        }
        let down = [false; NODES];
        Ok(Self { cluster, gateway, ceph, clocks, disks, network, down, gateway_down: false })
    }

    /// Lets `fault` happen, and be over.
    pub fn endure(&mut self, fault: &Fault) -> Result<Vec<String>> {
        let until = Instant::now() + fault.lasts;
        let mut said = Vec::new();
        for kind in &fault.kinds {
            said.push(self.begin(*kind, fault.parameter)?);
        }
        let mut again = 0u64;
        while Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            // A killed process is started, and killed again, for as long as it lasts.
            let pause = Duration::from_millis(400 + u64::from(fault.parameter) + 700 * again);
            std::thread::park_timeout(pause.min(left));
            for kind in &fault.kinds {
                self.go_on(*kind, again)?;
            }
            again += 1;
        }
        self.heal()?;
        Ok(said)
    }

    fn begin(&mut self, kind: Kind, parameter: u32) -> Result<String> {
        let leader = self.leader();
        let follower = (leader + 1 + parameter as usize % 2) % NODES;
        let third = NODES - leader - follower;
        let any = parameter as usize % NODES;
        let mut said = format!("{kind:?}");
        match kind {
            Kind::LeaderAlone => self.isolate(leader)?,
            Kind::FollowerAlone => self.isolate(follower)?,
            Kind::LeaderMute => self.mute(leader)?,
            Kind::FollowerMute => self.mute(follower)?,
            Kind::LeaderDeaf => self.deafen(leader)?,
            Kind::LinkCut => {
                self.drop_packets(follower, &self.address(third), 100)?;
                self.drop_packets(third, &self.address(follower), 100)?;
            }
            Kind::Loss => {
                let percent = 5 + parameter / 30;
                said = format!("{said} ({percent} %)");
                self.drop_packets(any, "10.77.0.0/24", percent)?;
            }
            Kind::NarrowLink => {
                let rate = format!("{}kbit", 300 + 2 * parameter);
                said = format!("{said} ({rate})");
                let arguments = ["burst", "16kb", "latency", "400ms"];
                let mut command = self.network.host(any).command("tc");
                command.args(["qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", &rate]);
                command.args(arguments);
                run(command)?;
            }
            Kind::StorageCut => self.drop_packets(any, GATEWAY, 100)?,
            Kind::LeaderKilled => self.kill(leader)?,
            Kind::FollowerKilled => self.kill(follower)?,
            Kind::AllKilled => (0..NODES).try_for_each(|node| self.kill(node))?,
            Kind::LeaderPaused => self.signal(leader, Signal::SIGSTOP)?,
            Kind::FollowerPaused => self.signal(follower, Signal::SIGSTOP)?,
            Kind::ClockAhead | Kind::ClockBehind => {
                // Within what `collection` allows for.
                let sign = if kind == Kind::ClockAhead { 1 } else { -1 };
                let offset_ms = sign * (5_000 + i64::from(parameter) * 700);
                said = format!("{said} ({} s)", offset_ms / 1000);
                self.clocks[any].set(offset_ms)?;
            }
            Kind::LeaderDiskSlow | Kind::FollowerDiskSlow => {
                let victim = if kind == Kind::LeaderDiskSlow { leader } else { follower };
                let writes = 3 + parameter / 40;
                said = format!("{said} ({writes} writes a second)");
                self.disks[victim].limit(writes)?;
            }
            Kind::GatewayKilled => {
                self.ceph.stop_gateway(Signal::SIGKILL)?;
                self.gateway_down = true;
            }
            Kind::GatewayPaused => self.ceph.signal_gateway(Signal::SIGSTOP)?,
            Kind::GatewayRefuses => self.gateway.set(Mode::Refuse),
            Kind::GatewayCuts => self.gateway.set(Mode::Cut),
        }
        Ok(format!("{said}, node-{} led", leader + 1))
    }

    /// The next step of what goes on in a loop.
    fn go_on(&mut self, kind: Kind, step: u64) -> Result<()> {
        if !matches!(kind, Kind::LeaderKilled | Kind::FollowerKilled | Kind::AllKilled) {
            return Ok(());
        }
        if step.is_multiple_of(2) {
            return self.relaunch();
        }
        match kind {
            Kind::LeaderKilled => self.kill(self.leader()),
            Kind::FollowerKilled => self.kill((self.leader() + 1) % NODES),
            _ => (0..NODES).try_for_each(|node| self.kill(node)),
        }
    }

    /// Ends every fault.
    pub fn heal(&mut self) -> Result<()> {
        for index in 0..NODES {
            let host = self.network.host(index);
            nft(host, "flush chain inet chaos input")?;
            let mut command = host.command("tc");
            command.args(["qdisc", "delete", "dev", "eth0", "root"]);
            // Where there is none, there is nothing to heal.
            let _ = run(command);
            self.clocks[index].set(0)?;
            self.disks[index].release()?;
            if !self.down[index] {
                self.signal(index, Signal::SIGCONT)?;
            }
        }
        self.gateway.set(Mode::Pass);
        if self.gateway_down {
            self.ceph.start_gateway()?;
            self.gateway_down = false;
        }
        self.ceph.signal_gateway(Signal::SIGCONT)?;
        self.relaunch()?;
        for node in &mut self.cluster.nodes {
            node.process()?.ensure_running().context("nobody killed it")?;
        }
        Ok(())
    }

    /// Sets all nodes' clocks so far ahead that what they noted while a clock was wrong is in the
    /// past, and its grace is over; not so far that storage takes their requests for old.
    pub fn jump_ahead(&self) -> Result<()> {
        self.clocks.iter().try_for_each(|clock| clock.set(CLOCK_JUMP_MS))
    }

    /// Waits until each node serves.
    pub fn recover(&mut self) -> Result<()> {
        for node in &mut self.cluster.nodes {
            node.wait_until_ready()?;
        }
        Ok(())
    }

    /// No node has met a bug of its own.
    pub fn ensure_sound(&mut self) -> Result<()> {
        for node in &mut self.cluster.nodes {
            let log = node.process()?.log_text();
            let panics: Vec<&str> = log.lines().filter(|line| line.contains("panicked")).collect();
            ensure!(panics.is_empty(), "{} panicked: {panics:#?}", node.name);
        }
        Ok(())
    }

    /// Who leads, as the one with the highest term says; else any.
    fn leader(&self) -> usize {
        let asked = wait_for("a leader", Duration::from_secs(4), || {
            let mut best = None;
            for index in (0..NODES).filter(|index| !self.down[*index]) {
                let mut command = self.network.hub().command("curl");
                let url = format!("{}/metrics", self.cluster.nodes[index].url());
                command.args(["-ksSf", "--max-time", "1", &url]);
                let Ok(text) = run_text(command) else { continue };
                let leads = sum_metric(&text, "shoal_raft_is_leader", "")? > 0.5;
                let term = sum_metric(&text, "shoal_raft_term", "")?;
                if leads && best.is_none_or(|(_, highest)| term > highest) {
                    best = Some((index, term));
                }
            }
            Ok(best)
        });
        asked.map_or(0, |(index, _)| index)
    }

    fn address(&self, node: usize) -> String {
        self.network.host(node).address().to_owned()
    }

    /// What comes to `node` from `source` is dropped, so many of a hundred packets.
    fn drop_packets(&self, node: usize, source: &str, percent: u32) -> Result<()> {
        let chance = match percent {
            100 => String::new(),
            percent => format!("numgen random mod 100 < {percent} "),
        };
        let rule = format!("add rule inet chaos input ip saddr {source} {chance}drop");
        nft(self.network.host(node), &rule)
    }

    fn others(node: usize) -> impl Iterator<Item = usize> {
        (0..NODES).filter(move |other| *other != node)
    }

    fn deafen(&self, node: usize) -> Result<()> {
        Self::others(node).try_for_each(|other| self.drop_packets(node, &self.address(other), 100))
    }

    fn mute(&self, node: usize) -> Result<()> {
        Self::others(node).try_for_each(|other| self.drop_packets(other, &self.address(node), 100))
    }

    fn isolate(&self, node: usize) -> Result<()> {
        self.deafen(node)?;
        self.mute(node)
    }

    fn signal(&mut self, node: usize, signal: Signal) -> Result<()> {
        self.cluster.nodes[node].process()?.signal(signal);
        Ok(())
    }

    fn kill(&mut self, node: usize) -> Result<()> {
        if !self.down[node] {
            let process = self.cluster.nodes[node].process()?;
            process.ensure_running().context("nobody killed it")?;
            process.kill()?;
            self.down[node] = true;
        }
        Ok(())
    }

    /// Starts whom we killed.
    fn relaunch(&mut self) -> Result<()> {
        for index in 0..NODES {
            if std::mem::take(&mut self.down[index]) {
                let node = &mut self.cluster.nodes[index];
                node.launch()?;
                self.disks[index].adopt(node.process()?.id())?;
            }
        }
        Ok(())
    }
}

fn nft(host: &Host, words: &str) -> Result<()> {
    let mut command = host.command("nft");
    command.arg(words);
    run(command).map(drop)
}
