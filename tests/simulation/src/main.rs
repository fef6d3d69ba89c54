//! Runs scenarios of the simulated swarm and prints what each showed.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use shoal_simulation::{Report, Scenario, simulate};

/// Simulates swarms: the core that the daemons run, over a fluid network.
#[derive(Debug, Parser)]
struct Options {
    /// Which; all of them without it. `list` says what there is.
    #[arg(long)]
    scenario: Vec<String>,
    /// Hosts, where the scenario's own number is not wanted.
    #[arg(long)]
    peers: Option<usize>,
    /// The first seed; the same seed gives the same run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Runs of each scenario, each with the next seed.
    #[arg(long, default_value_t = 1)]
    runs: u64,
    /// Content in MiB.
    #[arg(long)]
    mib: Option<u64>,
    /// Content in chunks, for less than a MiB.
    #[arg(long)]
    chunks: Option<u64>,
    /// Hosts and nodes have no CPU for up to so many milliseconds at a time.
    #[arg(long)]
    pause_ms: Option<u64>,
    /// One chunk in KiB; bigger ones make big content quick to simulate, and the result worse.
    #[arg(long)]
    chunk_kib: Option<u32>,
    #[arg(long)]
    zones: Option<usize>,
    /// Each zone's line in Gbit/s, each way.
    #[arg(long)]
    zone_gbit: Option<f64>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let all = Scenario::all();
    if options.scenario.iter().any(|name| name == "list") {
        for scenario in all {
            println!("{:<12} {}", scenario.name, scenario.about);
        }
        return Ok(());
    }
    for name in &options.scenario {
        ensure!(Scenario::named(name).is_some(), "no scenario {name}; `--scenario list` has them");
    }
    println!("{}", Report::heading());
    for mut scenario in all {
        if !options.scenario.is_empty() && !options.scenario.iter().any(|n| n == scenario.name) {
            continue;
        }
        scenario.peers = options.peers.unwrap_or(scenario.peers);
        scenario.bytes = options.mib.map_or(scenario.bytes, |mib| mib << 20);
        scenario.chunk_bytes = options.chunk_kib.map_or(scenario.chunk_bytes, |kib| kib << 10);
        let chunk_bytes = u64::from(scenario.chunk_bytes);
        scenario.bytes = options.chunks.map_or(scenario.bytes, |count| count * chunk_bytes);
        scenario.pause = options.pause_ms.map_or(scenario.pause, Duration::from_millis);
        scenario.zones = options.zones.unwrap_or(scenario.zones);
        scenario.zone_line = options.zone_gbit.map_or(scenario.zone_line, |gbit| gbit * 125e6);
        for run in 0..options.runs {
            scenario.seed = options.seed + run;
            println!("{}", simulate(scenario.clone()));
        }
    }
    Ok(())
}
