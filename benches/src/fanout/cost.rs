//! What a spread costs: CPU time of the whole machine and of each side, and each side's memory.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::resource::UsageWho;
use serde::Serialize;

use crate::process::{cpu_of, forget_memory_peak, memory_mib_of, own_cpu};

const TICKS_PER_SECOND: f64 = 100.0;

/// Processes that run before the takers start and after the last has ended.
#[derive(Debug, Clone, Default)]
pub struct Daemons {
    pub source: Vec<u32>,
    /// Of all hosts that want the content.
    pub hosts: Vec<u32>,
}

/// What one side cost: its own processes, without the kernel's work on their packets.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Cost {
    /// For each GiB that all hosts got, in sum.
    pub cpu_seconds_per_gib: f64,
    /// The most resident memory of any one of its processes.
    pub peak_mib: f64,
}

/// What all of it cost.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Costs {
    /// Busy time of the whole machine for each GiB that all hosts got, in sum.
    pub cpu_seconds_per_gib: f64,
    /// The part of the machine's CPU time that was busy, 0 to 1. Near 1 the machine was the limit,
    /// and not the lines.
    pub cpu_busy: f64,
    pub source: Cost,
    pub hosts: Cost,
}

/// Looks on from the start to the end.
#[derive(Debug)]
pub(super) struct Meter<'a> {
    daemons: &'a Daemons,
    machine: Machine,
    /// Of children that ended: takers, and nothing else in the time that is measured.
    children: Duration,
    source: Duration,
    hosts: Duration,
    source_peak_mib: f64,
    hosts_peak_mib: f64,
}

impl<'a> Meter<'a> {
    pub fn start(daemons: &'a Daemons) -> Result<Self> {
        for daemon in daemons.source.iter().chain(&daemons.hosts) {
            forget_memory_peak(*daemon)?;
        }
        Ok(Self {
            daemons,
            machine: Machine::now()?,
            children: own_cpu(UsageWho::RUSAGE_CHILDREN)?,
            source: sum(&daemons.source)?,
            hosts: sum(&daemons.hosts)?,
            source_peak_mib: 0.0,
            hosts_peak_mib: 0.0,
        })
    }

    /// To be called again and again: a process that has ended says nothing of its memory.
    pub fn look(&mut self, takers: impl Iterator<Item = u32>) {
        let highest =
            |peak: f64, process| memory_mib_of(process, "VmHWM").map_or(peak, |mib| mib.max(peak));
        let source = self.daemons.source.iter().copied();
        self.source_peak_mib = source.fold(self.source_peak_mib, highest);
        let hosts = self.daemons.hosts.iter().copied().chain(takers);
        self.hosts_peak_mib = hosts.fold(self.hosts_peak_mib, highest);
    }

    /// `running` are takers that go on; all others were waited for.
    pub fn end(self, running: &[u32], delivered_bytes: f64) -> Result<Costs> {
        let machine = Machine::now()?;
        let busy = machine.busy - self.machine.busy;
        let takers =
            own_cpu(UsageWho::RUSAGE_CHILDREN)?.saturating_sub(self.children) + sum(running)?;
        let source = sum(&self.daemons.source)?.saturating_sub(self.source);
        let hosts = sum(&self.daemons.hosts)?.saturating_sub(self.hosts) + takers;
        let delivered_gib = delivered_bytes / f64::from(1 << 30);
        let cost = |cpu: Duration, peak_mib| Cost {
            cpu_seconds_per_gib: cpu.as_secs_f64() / delivered_gib,
            peak_mib,
        };
        Ok(Costs {
            cpu_seconds_per_gib: busy / delivered_gib,
            cpu_busy: busy / (machine.all - self.machine.all),
            source: cost(source, self.source_peak_mib),
            hosts: cost(hosts, self.hosts_peak_mib),
        })
    }
}

fn sum(processes: &[u32]) -> Result<Duration> {
    processes.iter().map(|process| cpu_of(*process)).sum()
}

/// Seconds of all CPUs of the machine together, since it started.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Machine {
    busy: f64,
    all: f64,
}

impl Machine {
    fn now() -> Result<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat")?)
    }

    /// The first line of `/proc/stat` (proc(5)); time of guests is in `user` already.
    fn parse(stat: &str) -> Result<Self> {
        let line = stat.lines().next().context("an empty /proc/stat")?;
        let ticks: Vec<f64> =
            line.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
        let &[user, nice, system, idle, wait, irq, softirq, ..] = &ticks[..] else {
            bail!("/proc/stat says {line}")
        };
        let busy = user + nice + system + irq + softirq;
        Ok(Self { busy: busy / TICKS_PER_SECOND, all: (busy + idle + wait) / TICKS_PER_SECOND })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_and_idling_are_no_work() {
        let machine = Machine::parse("cpu  100 200 300 4000 500 60 40 0 0 0\ncpu0 1 2\n").unwrap();
        assert_eq!(machine, Machine { busy: 7.0, all: 52.0 });
        assert!(Machine::parse("cpu  100 200").is_err());
    }

    #[test]
    fn the_work_of_a_child_that_ended_is_the_hosts() {
        let daemons = Daemons { source: vec![std::process::id()], hosts: Vec::new() };
        let mut meter = Meter::start(&daemons).unwrap();
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"]);
        assert!(command.status().unwrap().success());
        meter.look(std::iter::empty());
        let costs = meter.end(&[], f64::from(1 << 30)).unwrap();
        assert!(costs.hosts.cpu_seconds_per_gib > 0.0, "{costs:?}");
        assert!(costs.source.peak_mib > 0.0 && costs.hosts.peak_mib == 0.0, "{costs:?}");
    }
}
