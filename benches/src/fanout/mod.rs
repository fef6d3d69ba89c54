//! Hosts with thin lines of their own, and how long each takes to get what one of them has.
//!
//! Every host is a network namespace whose line is shaped both ways by a token bucket; the first
//! one has the content. With equal lines of B and F bytes of content no host can have all before
//! F/B, whatever they are: each figure is a multiple of that bound (Kumar and Ross, "Peer-Assisted
//! File Distribution: The Minimum Distribution Time", 2006).

mod cost;
pub mod image;
pub mod registry;
pub mod swarm;
pub mod table;
pub mod torrent;

use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use shoal_tests::host::{Host, Network};
use shoal_tests::process::{Process, run, run_text};

use cost::Meter;
pub use cost::{Cost, Costs, Daemons};

/// A contestant that takes so many times as long as it would to send every host a copy has failed.
const PATIENCE: f64 = 4.0;
const POLL: Duration = Duration::from_millis(20);
/// What a line holds back before it drops.
const LINE_LATENCY: &str = "30ms";
const LINE_BURST: &str = "64kb";

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

impl Taker {
    fn id(&self) -> u32 {
        self.process.id()
    }
}

/// What is spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Case {
    /// One file that no host has any of.
    Disk,
    /// A version of it, where each host holds the last one.
    Update,
    /// A container image of which no host has any.
    Container,
}

/// Who spreads what.
#[derive(Debug, Clone, Copy)]
pub struct Contest<'a> {
    pub name: &'a str,
    pub case: Case,
    pub ours: bool,
    /// What each host is to get that it has not.
    pub bytes: u64,
}

/// What one contestant did.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    pub name: String,
    pub case: Case,
    pub ours: bool,
    /// Multiples of the bound, over all hosts.
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
    /// Bytes that left the source over the content's, headers and all.
    pub source_copies: f64,
    #[serde(flatten)]
    pub costs: Costs,
    /// Of ours, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<Idle>,
}

/// What the hosts' processes cost after it, when they have nothing to do.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Idle {
    /// For so long they were looked at.
    pub seconds: f64,
    /// Of one core, by the one that took most.
    pub cpu_percent: f64,
    /// Resident, of the biggest.
    pub mib: f64,
}

/// Starts all takers at once and waits until the last has the content.
///
/// # Errors
/// Where one fails, or the last has nothing long after a plain download would have ended.
pub fn spread(
    field: &Field,
    contest: &Contest<'_>,
    daemons: &Daemons,
    start: impl Fn(usize) -> Result<Taker>,
) -> Result<Outcome> {
    let Contest { name, bytes, .. } = *contest;
    let limit = field.bound(bytes).mul_f64(field.takers as f64 * PATIENCE);
    let sent = field.sent_by_source()?;
    let (mut meter, began) = (Meter::start(daemons)?, Instant::now());
    let takers = (0..field.takers).map(&start).collect::<Result<Vec<_>>>()?;
    let wait = Wait { name, began, limit };
    let (mut seconds, kept) = wait.for_all(takers, &mut meter)?;
    let running: Vec<u32> = kept.iter().map(Taker::id).collect();
    let costs = meter.end(&running, bytes as f64 * field.takers as f64)?;
    let sent = field.sent_by_source()? - sent;
    seconds.sort_by(f64::total_cmp);
    let bound = field.bound(bytes).as_secs_f64();
    Ok(Outcome {
        name: name.into(),
        case: contest.case,
        ours: contest.ours,
        p50: quantile(&seconds, 0.5) / bound,
        p99: quantile(&seconds, 0.99) / bound,
        max: quantile(&seconds, 1.0) / bound,
        source_copies: sent as f64 / bytes as f64,
        costs,
        idle: None,
    })
}

/// How long to be patient, and with whom.
struct Wait<'a> {
    name: &'a str,
    began: Instant,
    limit: Duration,
}

impl Wait<'_> {
    /// Gives the seconds that each taker needed, in no order, and the takers that go on.
    fn for_all(&self, takers: Vec<Taker>, meter: &mut Meter<'_>) -> Result<(Vec<f64>, Vec<Taker>)> {
        let mut open: Vec<(usize, Taker)> = takers.into_iter().enumerate().collect();
        let (mut seconds, mut kept) = (Vec::new(), Vec::<Taker>::new());
        while !open.is_empty() {
            ensure!(
                self.began.elapsed() < self.limit,
                "{}: {} hosts have nothing after {:?}",
                self.name,
                open.len(),
                self.limit
            );
            meter.look(open.iter().map(|(_, taker)| taker).chain(&kept).map(Taker::id));
            let mut still = Vec::new();
            for (index, mut taker) in open {
                let ended = taker.process.ended()?;
                let done = match &taker.leaves {
                    Some(path) => path.exists(),
                    None => ended.is_some_and(|status| status.success()),
                };
                match (done, ended) {
                    // One that goes on gives what it has to others.
                    (true, None) => kept.push(taker),
                    (true, Some(_)) => {}
                    (false, None) => still.push((index, taker)),
                    (false, Some(status)) => bail!(
                        "{}: host {index} ended with {status}, without the content\n{}",
                        self.name,
                        taker.process.log_tail()
                    ),
                }
                if done {
                    seconds.push(self.began.elapsed().as_secs_f64());
                }
            }
            open = still;
            sleep(POLL);
        }
        Ok((seconds, kept))
    }
}

/// The quantile `q` (0 to 1) of sorted values, by the next higher one: p99 of a few is the slowest.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let index = (sorted.len().saturating_sub(1) as f64 * q).ceil() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_quantile_is_lower_than_so_many() {
        let times: Vec<f64> = (1..=32).map(f64::from).collect();
        let quantiles = [0.5, 0.99, 1.0].map(|q| quantile(&times, q));
        assert_eq!(quantiles, [17.0, 32.0, 32.0]);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
