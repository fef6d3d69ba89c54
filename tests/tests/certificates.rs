//! Certificates that are to end, and a cluster that was away until all of them had.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_tests::clock::wait_for;
use shoal_tests::cluster::{Cluster, Storage};
use shoal_tests::host::Network;
use shoal_tests::process::run_text;
use shoal_tests::skew::{self, Clock};

const AGENTS: usize = 2;
const DISK_BYTES: usize = 8 << 20;
const DAY_MS: i64 = 24 * 3600 * 1000;
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn certificates_are_renewed_in_time_and_after_a_long_absence() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let network = Network::create(AGENTS)?;
    let storage = Storage::Folder(folder.path().join("objects"));
    let mut cluster = Cluster::start(&network, folder.path(), &storage, 3, AGENTS)?;
    let outcome = grow_old(folder.path(), &mut cluster);
    outcome.with_context(|| {
        let logs = cluster.logs();
        logs.iter().map(|(name, log)| format!("--- {name}\n{log}\n")).collect::<String>()
    })
}

fn grow_old(folder: &Path, cluster: &mut Cluster) -> Result<()> {
    let names = ["vm/first:1", "vm/second:1", "vm/third:1"];
    for (number, name) in names.into_iter().enumerate() {
        let disk = disk(folder, number);
        let mut content = vec![0; DISK_BYTES];
        StdRng::seed_from_u64(number as u64).fill(&mut content[..]);
        fs::write(&disk, content)?;
        let path = disk.to_string_lossy();
        cluster.operator.run(&["image", "upload", &path, name, "--version", "1"])?;
    }
    fetch(folder, cluster, 0, 0, names[0])?;
    let clock = Clock::create(&folder.join("clock"), &skew::build(folder)?)?;
    for node in &mut cluster.nodes {
        // Slow enough for the other host to be asked.
        node.edit("[limits]\n", "[limits]\norigin = \"2 MiB/s\"\n")?;
        node.set_environment(clock.environment());
    }
    for agent in &mut cluster.agents {
        agent.set_environment(clock.environment());
    }
    stop(cluster)?;
    clock.set(0)?;
    start(cluster)?;
    // In the last third of a year and a month, while all run; then all were away until long after
    // what was renewed had ended.
    for (days, number) in [(300, 1), (1000, 2)] {
        let before = certificates(cluster)?;
        if number == 1 {
            clock.set(days * DAY_MS)?;
        } else {
            stop(cluster)?;
            clock.set(days * DAY_MS)?;
            start(cluster).with_context(|| format!("after {days} days"))?;
        }
        wait_for("every certificate to be another one", DEADLINE, || {
            let now = certificates(cluster)?;
            Ok(now.iter().zip(&before).all(|(now, before)| now != before).then_some(()))
        })?;
        // From the nodes, and then from the other host.
        fetch(folder, cluster, 0, number, names[number])?;
        fetch(folder, cluster, 1, number, names[number])?;
        ensure!(cluster.peer_bytes()? > 0.0, "the hosts do not trust each other after {days} days");
    }
    Ok(())
}

fn stop(cluster: &mut Cluster) -> Result<()> {
    for agent in &mut cluster.agents {
        agent.process()?.stop()?;
    }
    for node in &mut cluster.nodes {
        node.process()?.stop()?;
    }
    Ok(())
}

/// The hosts come up before the nodes that could give them certificates.
fn start(cluster: &mut Cluster) -> Result<()> {
    for agent in &mut cluster.agents {
        agent.start()?;
    }
    for node in &mut cluster.nodes {
        node.launch()?;
    }
    for node in &mut cluster.nodes {
        node.wait_until_ready()?;
    }
    Ok(())
}

fn disk(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("disk-{number}.raw"))
}

/// Has an agent fetch a disk, and compares it.
fn fetch(folder: &Path, cluster: &Cluster, agent: usize, number: usize, name: &str) -> Result<()> {
    let agent = &cluster.agents[agent];
    let output = folder.join(format!("{}-{number}.raw", agent.name));
    let into = output.to_string_lossy().into_owned();
    run_text(agent.command("fetch", &[name, "--format", "raw", "--output", &into])?)?;
    ensure!(fs::read(&output)? == fs::read(disk(folder, number))?, "{name} differs");
    Ok(())
}

/// What each process has on its disk.
fn certificates(cluster: &Cluster) -> Result<Vec<String>> {
    let nodes = cluster.nodes.iter().map(|node| node.data_dir().join("node.pem"));
    let agents = cluster.agents.iter().map(|agent| agent.data_dir().join("cluster.json"));
    nodes.chain(agents).map(|path| Ok(fs::read_to_string(path)?)).collect()
}
