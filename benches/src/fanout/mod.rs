//! Hosts with thin lines of their own, and how long each takes to get what one of them has.
//!
//! Every host is a network namespace whose line is shaped both ways by a token bucket; the first
//! one has the content. With equal lines of B and F bytes of content no host can have all before
//! F/B, whatever they are: each figure is a multiple of that bound (Kumar and Ross, "Peer-Assisted
//! File Distribution: The Minimum Distribution Time", 2006).

pub mod torrent;

use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use shoal_tests::host::{Host, Network};
use shoal_tests::process::{Process, run, run_text};

/// A contestant that takes so many times as long as it would to send every host a copy has failed.
const PATIENCE: f64 = 4.0;
const POLL: Duration = Duration::from_millis(20);
/// What a line holds back before it drops.
const LINE_LATENCY: &str = "30ms";
const LINE_BURST: &str = "64kb";
const TICKS_PER_SECOND: f64 = 100.0;

/// One who has the content, and those who want it.
#[derive(Debug)]
pub struct Field {
    network: Network,
    pub takers: usize,
    megabits: u32,
}

impl Field {
    /// # Errors
    /// Where namespaces or `tc` are not to be had.
    pub fn create(takers: usize, megabits: u32) -> Result<Self> {
        let network = Network::create(takers + 1)?;
        for index in 0..=takers {
            shape(network.host(index), "eth0", megabits)?;
            shape(network.hub(), &format!("port{index}"), megabits)?;
        }
        Ok(Self { network, takers, megabits })
    }

    /// A host without a line of its own, for those who look on.
    pub fn hub(&self) -> &Host {
        self.network.hub()
    }

    pub fn source(&self) -> &Host {
        self.network.host(0)
    }

    pub fn taker(&self, index: usize) -> &Host {
        self.network.host(index + 1)
    }

    /// The least time in which anybody can get `bytes`.
    pub fn bound(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 * 8.0 / (f64::from(self.megabits) * 1e6))
    }

    /// All bytes that left the source, with the headers of every layer.
    fn sent_by_source(&self) -> Result<u64> {
        let mut command = self.hub().command("ip");
        command.args(["-json", "-stats", "link", "show", "dev", "port0"]);
        let links: serde_json::Value = serde_json::from_str(&run_text(command)?)?;
        links[0]["stats64"]["rx"]["bytes"].as_u64().context("no statistics of port0")
    }
}

fn shape(host: &Host, device: &str, megabits: u32) -> Result<()> {
    let mut command = host.command("tc");
    command.args(["qdisc", "add", "dev", device, "root", "tbf", "rate"]);
    command.arg(format!("{megabits}mbit"));
    command.args(["burst", LINE_BURST, "latency", LINE_LATENCY]);
    run(command).map(drop)
}

/// One host's part: a command that ends when the host has all, or goes on and leaves this file.
#[derive(Debug)]
pub struct Taker {
    pub process: Process,
    pub leaves: Option<PathBuf>,
}

/// What one contestant did.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    pub name: String,
    /// Multiples of the bound, over all hosts.
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
    /// Bytes that left the source over the content's, headers and all.
    pub source_copies: f64,
    /// Busy time of the whole machine for each GiB that a host got.
    pub cpu_seconds_per_gib: f64,
    /// The biggest process's resident memory.
    pub peak_mib: f64,
}

/// Starts all takers at once and waits until the last has the content. `daemons` are processes
/// besides the takers' own whose memory counts.
///
/// # Errors
/// Where one fails, or the last has nothing long after a plain download would have ended.
pub fn spread(
    field: &Field,
    name: &str,
    bytes: u64,
    daemons: &[u32],
    start: impl Fn(usize) -> Result<Taker>,
) -> Result<Outcome> {
    let (sent, cpu, began) = (field.sent_by_source()?, busy_seconds()?, Instant::now());
    let limit = field.bound(bytes).mul_f64(field.takers as f64 * PATIENCE);
    let takers = (0..field.takers).map(&start).collect::<Result<Vec<_>>>()?;
    let mut open: Vec<(usize, Taker)> = takers.into_iter().enumerate().collect();
    let (mut seconds, mut peak, mut kept) = (Vec::new(), 0.0_f64, Vec::new());
    while !open.is_empty() {
        ensure!(
            began.elapsed() < limit,
            "{name}: {} hosts have nothing after {limit:?}",
            open.len()
        );
        let ids = open.iter().chain(&kept).map(|(_, taker)| taker.process.id());
        let sizes = ids.chain(daemons.iter().copied()).filter_map(resident_peak_mib);
        peak = sizes.fold(peak, f64::max);
        let mut still = Vec::new();
        for (index, mut taker) in open {
            let ended = taker.process.ended()?;
            let done = match &taker.leaves {
                Some(path) => path.exists(),
                None => ended.is_some_and(|status| status.success()),
            };
            if done {
                seconds.push(began.elapsed().as_secs_f64());
                // One that goes on gives what it has to others.
                kept.push((index, taker));
            } else if ended.is_some() {
                bail!(
                    "{name}: host {index} ended without the content\n{}",
                    taker.process.log_tail()
                );
            } else {
                still.push((index, taker));
            }
        }
        open = still;
        sleep(POLL);
    }
    let (cpu, sent) = (busy_seconds()? - cpu, field.sent_by_source()? - sent);
    seconds.sort_by(f64::total_cmp);
    let bound = field.bound(bytes).as_secs_f64();
    let quantile = |q: f64| seconds[((seconds.len() - 1) as f64 * q).ceil() as usize] / bound;
    let delivered = bytes as f64 * field.takers as f64 / f64::from(1 << 30);
    Ok(Outcome {
        name: name.into(),
        p50: quantile(0.5),
        p99: quantile(0.99),
        max: quantile(1.0),
        source_copies: sent as f64 / bytes as f64,
        cpu_seconds_per_gib: cpu / delivered,
        peak_mib: peak,
    })
}

/// Seconds in which any CPU of the machine worked, added up, since it started (proc(5)).
fn busy_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("an empty /proc/stat")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    let &[user, nice, system, _idle, _wait, irq, softirq, ..] = &ticks[..] else {
        bail!("/proc/stat says {line}")
    };
    Ok((user + nice + system + irq + softirq) / TICKS_PER_SECOND)
}

/// Nothing where the process has ended.
fn resident_peak_mib(process: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<f64>().ok()? / 1024.0)
}

/// Waits until something listens on `port` of `host`.
///
/// # Errors
/// Where nothing does in time.
pub fn wait_for_port(host: &Host, address: &str, port: u16) -> Result<()> {
    let probe = || -> Command {
        let mut command = host.command("bash");
        command.args(["-c", &format!("exec 3<>/dev/tcp/{address}/{port}")]);
        command
    };
    shoal_tests::clock::wait_for(&format!("{address}:{port}"), Duration::from_secs(30), || {
        Ok(run(probe()).ok().map(drop))
    })
}
