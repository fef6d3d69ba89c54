//! Contestants run in turn, and a table or one JSON object of their figures.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use serde::Serialize;

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
    let mut sum = Duration::ZERO;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who)?;
        for time in [usage.user_time(), usage.system_time()] {
            sum += Duration::new(time.tv_sec().unsigned_abs(), time.tv_usec() as u32 * 1000);
        }
    }
    Ok(sum)
}

/// The figures of one contestant, over all its runs.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub name: String,
    /// Median MiB of content a second.
    pub mib_per_second: f64,
    /// Median MiB of content for a second of CPU.
    pub mib_per_cpu_second: f64,
    pub runs: usize,
    /// Our rate over this contestant's, pair by pair, the median; 1 for ours.
    pub ratio_of_ours: f64,
}

/// A benchmark's result; the first row is Shoal's.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub benchmark: String,
    pub bytes: u64,
    pub rows: Vec<Row>,
    /// What a reader must know to judge the figures.
    pub notes: Vec<String>,
}

impl Report {
    /// `contestants` are names with their runs, in the order they ran; the first is ours.
    pub fn new(benchmark: &str, bytes: u64, contestants: &[(&str, Vec<Run>)]) -> Result<Self> {
        let Some((_, ours)) = contestants.first() else { bail!("a report needs contestants") };
        let rows = contestants.iter().map(|(name, runs)| {
            let mib = bytes as f64 / f64::from(1 << 20);
            let rate = |time: fn(&Run) -> Duration| {
                median(runs.iter().map(|run| mib / time(run).as_secs_f64().max(1e-9)).collect())
            };
            let pairs = ours.iter().zip(runs);
            let ratio = pairs.map(|(a, b)| b.wall.as_secs_f64() / a.wall.as_secs_f64().max(1e-9));
            Row {
                name: (*name).to_owned(),
                mib_per_second: rate(|run| run.wall),
                mib_per_cpu_second: rate(|run| run.cpu),
                runs: runs.len(),
                ratio_of_ours: median(ratio.collect()),
            }
        });
        Ok(Self { benchmark: benchmark.into(), bytes, rows: rows.collect(), notes: Vec::new() })
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
        println!("{:<44} {:>10} {:>14} {:>12}", "", "MiB/s", "MiB/CPU-s", "ours/this");
        for row in &self.rows {
            println!(
                "{:<44} {:>10.0} {:>14.0} {:>12.2}",
                row.name, row.mib_per_second, row.mib_per_cpu_second, row.ratio_of_ours
            );
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
    }
}
