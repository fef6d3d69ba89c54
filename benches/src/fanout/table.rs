//! The outcomes beside each other and beside the aims, as a table or one JSON object.

use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;

use super::{Case, Idle, Outcome};
use crate::report::{Aim, Wanted};

/// What each of ours is to reach at most, in the order of the columns.
const P50: f64 = 1.05;
const P99: f64 = 1.15;
const MAX: f64 = 1.3;
const COPIES: f64 = 1.1;
/// Of an agent that is busy.
const AGENT_MIB: f64 = 256.0;
/// Of one that is idle: of a core, and resident.
const IDLE_CPU_PERCENT: f64 = 0.5;
const IDLE_MIB: f64 = 40.0;

/// All of one run.
#[derive(Debug, Clone, Serialize)]
pub struct Table {
    pub hosts: usize,
    /// Of each line, both ways.
    pub mbit: u32,
    /// Of the file, and about of the image.
    pub mib: usize,
    pub outcomes: Vec<Outcome>,
    pub aims: Vec<Aim>,
}

impl Table {
    pub fn new(hosts: usize, mbit: u32, mib: usize, outcomes: Vec<Outcome>) -> Self {
        let aims = outcomes.iter().filter(|outcome| outcome.ours).flat_map(aims).collect();
        Self { hosts, mbit, mib, outcomes, aims }
    }

    /// To standard output.
    pub fn print(&self, json: bool) -> Result<()> {
        if json {
            println!("{}", serde_json::to_string_pretty(self)?);
        } else {
            print!("{}", self.text()?);
        }
        Ok(())
    }

    fn text(&self) -> Result<String> {
        let mut text = format!(
            "{} hosts, {} Mbit/s each way, {} MiB; times are multiples of the bound\n\n",
            self.hosts, self.mbit, self.mib
        );
        writeln!(text, "{:<36}{:>32}{:>16}{:>16}{:>16}", "", "", "all", "source", "hosts")?;
        write!(text, "{:<36}{:>8}{:>8}{:>8}{:>8}", "", "p50", "p99", "max", "copies")?;
        writeln!(
            text,
            "{:>10}{:>6}{:>10}{:>6}{:>10}{:>6}",
            "s/GiB", "CPU", "s/GiB", "MiB", "s/GiB", "MiB"
        )?;
        for outcome in &self.outcomes {
            line(&mut text, outcome)?;
        }
        if !self.aims.is_empty() {
            write!(text, "{:<36}{P50:>8.2}{P99:>8.2}{MAX:>8.2}", "the aim for ours, at most")?;
            writeln!(text, "{COPIES:>8.2}{:>42}{AGENT_MIB:>6.0}", "")?;
        }
        text.push('\n');
        for outcome in &self.outcomes {
            if let Some(Idle { seconds, cpu_percent, mib }) = outcome.idle {
                writeln!(
                    text,
                    "{}: idle for {seconds:.0} s after it, a host's process takes {cpu_percent:.2} % of a \
                     core and {mib:.0} MiB at most; the aims are {IDLE_CPU_PERCENT} % and {IDLE_MIB} MiB",
                    outcome.name
                )?;
            }
        }
        for aim in self.aims.iter().filter(|aim| !aim.met) {
            writeln!(text, "{aim}")?;
        }
        for case in [Case::Disk, Case::Container] {
            compare(&mut text, self.outcomes.iter().filter(|outcome| outcome.case == case))?;
        }
        text.push_str(
            "\ncopies: bytes that left the source, headers included, over the content's.\n\
             s/GiB: CPU seconds for each GiB that all hosts got, of the whole machine with the lines, \
             and of\nthe processes of either side. CPU: how much of the machine's was busy; near 1 it \
             is the limit,\nnot the lines. MiB: the biggest process's peak.\n",
        );
        Ok(text)
    }
}

fn aims(outcome: &Outcome) -> Vec<Aim> {
    let figures = [
        ("p50", outcome.p50, P50),
        ("p99", outcome.p99, P99),
        ("max", outcome.max, MAX),
        ("copies", outcome.source_copies, COPIES),
        ("MiB of a host's process", outcome.costs.hosts.peak_mib, AGENT_MIB),
    ];
    let idle = outcome.idle.map(|idle| {
        [
            ("% of a core of an idle host's process", idle.cpu_percent, IDLE_CPU_PERCENT),
            ("MiB of an idle host's process", idle.mib, IDLE_MIB),
        ]
    });
    let aim = |(what, value, limit)| {
        Aim::new(format!("{}, {what}", outcome.name), value, Wanted::AtMost(limit))
    };
    figures.into_iter().chain(idle.into_iter().flatten()).map(aim).collect()
}

fn line(text: &mut String, outcome: &Outcome) -> Result<()> {
    let Outcome { name, p50, p99, max, source_copies, costs, .. } = outcome;
    write!(text, "{name:<36}{p50:>8.2}{p99:>8.2}{max:>8.2}{source_copies:>8.2}")?;
    write!(text, "{:>10.1}{:>6.2}", costs.cpu_seconds_per_gib, costs.cpu_busy)?;
    for side in [&costs.source, &costs.hosts] {
        write!(text, "{:>10.2}{:>6.0}", side.cpu_seconds_per_gib, side.peak_mib)?;
    }
    writeln!(text)?;
    Ok(())
}

/// How much longer the slowest host of each of the others takes than that of our last one.
fn compare<'a>(
    text: &mut String,
    outcomes: impl Iterator<Item = &'a Outcome> + Clone,
) -> Result<()> {
    let Some(ours) = outcomes.clone().filter(|outcome| outcome.ours).last() else { return Ok(()) };
    for other in outcomes.filter(|outcome| !outcome.ours) {
        writeln!(
            text,
            "{}: its slowest host takes {:.2} times as long as with {}",
            other.name,
            other.max / ours.max,
            ours.name
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fanout::{Cost, Costs};

    fn outcome(name: &str, case: Case, ours: bool, max: f64) -> Outcome {
        let side = |peak_mib| Cost { cpu_seconds_per_gib: 1.5, peak_mib };
        Outcome {
            name: name.into(),
            case,
            ours,
            p50: 1.0,
            p99: 1.1,
            max,
            source_copies: 1.05,
            costs: Costs {
                cpu_seconds_per_gib: 9.0,
                cpu_busy: 0.5,
                source: side(300.0),
                hosts: side(100.0),
            },
            idle: None,
        }
    }

    #[test]
    fn each_of_ours_has_all_aims_and_is_compared_with_its_own_kind() {
        let outcomes = vec![
            outcome("shoal", Case::Disk, true, 1.25),
            outcome("shoal, update", Case::Update, true, 2.0),
            outcome("aria2", Case::Disk, false, 2.5),
            outcome("shoal, cached", Case::Container, true, 1.0),
            outcome("shoal, pulled", Case::Container, true, 1.2),
            outcome("registry", Case::Container, false, 6.0),
        ];
        let mut outcomes = outcomes;
        outcomes[1].idle = Some(Idle { seconds: 60.0, cpu_percent: 0.4, mib: 41.0 });
        let table = Table::new(8, 50, 64, outcomes);
        let missed: Vec<&str> =
            table.aims.iter().filter(|aim| !aim.met).map(|aim| aim.what.as_str()).collect();
        let expected = vec!["shoal, update, max", "shoal, update, MiB of an idle host's process"];
        assert_eq!((table.aims.len(), missed), (4 * 5 + 2, expected));
        let text = table.text().unwrap();
        let idle = "shoal, update: idle for 60 s after it, a host's process takes 0.40 % of a core and 41 MiB";
        assert!(text.contains(idle), "{text}");
        for (other, times, ours) in
            [("aria2", "2.00", "shoal"), ("registry", "5.00", "shoal, pulled")]
        {
            let said =
                format!("{other}: its slowest host takes {times} times as long as with {ours}\n");
            assert!(text.contains(&said), "{text}");
        }
        assert!(text.contains("shoal, update, max: 2.00; the aim is at most 1.3: missed\n"));
        let widths: Vec<usize> = text.lines().skip(2).take(2 + 6 + 1).map(str::len).collect();
        assert_eq!(widths, [116; 9], "{text}");
    }
}
