//! Contestants run in turn; their figures as a table or one JSON object, beside what is aimed at.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::resource::UsageWho;
use serde::Serialize;

use crate::process::own_cpu;

/// One measured run.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    pub wall: Duration,
    /// User and system time of this process and the children it waited for.
    pub cpu: Duration,
}

/// Measures `work`, in wall and CPU time.
pub async fn measure<T>(work: impl AsyncFnOnce() -> Result<T>) -> Result<(Run, T)> {
    let cpu = cpu_time()?;
    let started = Instant::now();
    let value = work().await?;
    Ok((Run { wall: started.elapsed(), cpu: cpu_time()?.saturating_sub(cpu) }, value))
}

fn cpu_time() -> Result<Duration> {
    Ok(own_cpu(UsageWho::RUSAGE_SELF)? + own_cpu(UsageWho::RUSAGE_CHILDREN)?)
}

/// The figures of one contestant, over all its runs.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub name: String,
    /// Median MiB of content a second.
    pub mib_per_second: f64,
    /// Median CPU seconds of both ends for a GiB of content.
    pub cpu_seconds_per_gib: f64,
    pub runs: usize,
    /// Our rate over this contestant's, pair by pair, the median; 1 for ours.
    pub ratio_of_ours: f64,
    /// Our CPU time over this contestant's, in the same way.
    pub cpu_ratio_of_ours: f64,
}

/// What a figure is to be, beside what it is.
#[derive(Debug, Clone, Serialize)]
pub struct Aim {
    pub what: String,
    pub value: f64,
    pub wanted: Wanted,
    pub met: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    AtLeast(f64),
    AtMost(f64),
}

impl Aim {
    /// A value that is no number meets nothing.
    pub fn new(what: impl Into<String>, value: f64, wanted: Wanted) -> Self {
        let met = match wanted {
            Wanted::AtLeast(limit) => value >= limit,
            Wanted::AtMost(limit) => value <= limit,
        };
        Self { what: what.into(), value, wanted, met }
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (words, limit) = match self.wanted {
            Wanted::AtLeast(limit) => ("at least", limit),
            Wanted::AtMost(limit) => ("at most", limit),
        };
        let verdict = if self.met { "met" } else { "missed" };
        write!(f, "{}: {:.2}; the aim is {words} {limit}: {verdict}", self.what, self.value)
    }
}

/// A benchmark's result; the first row is Shoal's.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub benchmark: String,
    pub bytes: u64,
    pub rows: Vec<Row>,
    pub aims: Vec<Aim>,
    /// What a reader must know to judge the figures.
    pub notes: Vec<String>,
}

impl Report {
    /// `contestants` are names with their runs, in the order they ran; the first is ours.
    pub fn new(benchmark: &str, bytes: u64, contestants: &[(&str, Vec<Run>)]) -> Result<Self> {
        let Some((_, ours)) = contestants.first() else { bail!("a report needs contestants") };
        let rows = contestants.iter().map(|(name, runs)| {
            let (mib, gib) = (bytes as f64 / f64::from(1 << 20), bytes as f64 / f64::from(1 << 30));
            let over = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64().max(1e-9);
            let pairs = || ours.iter().zip(runs);
            Row {
                name: (*name).to_owned(),
                mib_per_second: median(
                    runs.iter().map(|run| mib / run.wall.as_secs_f64().max(1e-9)).collect(),
                ),
                cpu_seconds_per_gib: median(
                    runs.iter().map(|run| run.cpu.as_secs_f64() / gib).collect(),
                ),
                runs: runs.len(),
                ratio_of_ours: median(pairs().map(|(a, b)| over(b.wall, a.wall)).collect()),
                cpu_ratio_of_ours: median(pairs().map(|(a, b)| over(a.cpu, b.cpu)).collect()),
            }
        });
        Ok(Self {
            benchmark: benchmark.into(),
            bytes,
            rows: rows.collect(),
            aims: Vec::new(),
            notes: Vec::new(),
        })
    }

    /// Holds `figure` of the row `name` against an aim; where nobody of that name ran, nothing.
    pub fn aim(
        mut self,
        name: &str,
        what: &str,
        figure: impl Fn(&Row) -> f64,
        wanted: Wanted,
    ) -> Self {
        let row = self.rows.iter().find(|row| row.name == name);
        let aim = row.map(|row| Aim::new(format!("{what} {name}"), figure(row), wanted));
        self.aims.extend(aim);
        self
    }

    pub fn note(mut self, text: impl Into<String>) -> Self {
        self.notes.push(text.into());
        self
    }

    /// To standard output: a table, or one JSON object.
    pub fn print(&self, json: bool) -> Result<()> {
        if json {
            println!("{}", serde_json::to_string(self)?);
            return Ok(());
        }
        println!(
            "{}: {} MiB, medians of {} runs in turn",
            self.benchmark,
            self.bytes >> 20,
            self.rows[0].runs
        );
        println!(
            "{:<44} {:>8} {:>10} {:>10} {:>14}",
            "", "MiB/s", "CPU s/GiB", "ours/this", "CPU ours/this"
        );
        for row in &self.rows {
            println!(
                "{:<44} {:>8.0} {:>10.2} {:>10.2} {:>14.2}",
                row.name,
                row.mib_per_second,
                row.cpu_seconds_per_gib,
                row.ratio_of_ours,
                row.cpu_ratio_of_ours
            );
        }
        for aim in &self.aims {
            println!("- {aim}");
        }
        for note in &self.notes {
            println!("- {note}");
        }
        Ok(())
    }
}

/// Of no values, no number.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_taken_pair_by_pair() {
        let run = |millis| Run {
            wall: Duration::from_millis(millis),
            cpu: Duration::from_millis(millis),
        };
        let ours = vec![run(100), run(200), run(300)];
        let peer = vec![run(200), run(400), run(600)];
        let report = Report::new("x", 1 << 20, &[("ours", ours), ("peer", peer)]).unwrap();
        assert!((report.rows[1].ratio_of_ours - 2.0).abs() < 1e-9);
        assert!((report.rows[0].ratio_of_ours - 1.0).abs() < 1e-9);
        assert!((report.rows[1].cpu_ratio_of_ours - 0.5).abs() < 1e-9);
        assert!((report.rows[1].cpu_seconds_per_gib - 0.4 * 1024.0).abs() < 1e-6);
    }

    #[test]
    fn an_aim_is_met_at_its_limit_and_by_no_missing_figure() {
        let met = |value, wanted| Aim::new("x", value, wanted).met;
        assert!(met(2.5, Wanted::AtLeast(2.5)) && !met(2.49, Wanted::AtLeast(2.5)));
        assert!(met(0.5, Wanted::AtMost(0.5)) && !met(0.51, Wanted::AtMost(0.5)));
        assert!(!met(f64::NAN, Wanted::AtLeast(0.0)) && !met(f64::NAN, Wanted::AtMost(9.0)));
    }

    #[test]
    fn an_aim_is_of_the_row_of_its_name() {
        let run = |millis| Run {
            wall: Duration::from_millis(millis),
            cpu: Duration::from_millis(millis),
        };
        let contestants = [("ours", vec![run(100)]), ("peer", vec![run(300)])];
        let report = Report::new("x", 1 << 20, &contestants)
            .unwrap()
            .aim("peer", "rate over", |row| row.ratio_of_ours, Wanted::AtLeast(2.5))
            .aim("nobody", "rate over", |row| row.ratio_of_ours, Wanted::AtLeast(2.5));
        let said: Vec<String> = report.aims.iter().map(Aim::to_string).collect();
        assert_eq!(said, ["rate over peer: 3.00; the aim is at least 2.5: met"]);
    }
}
