//! Packs that are mostly garbage are written anew while versions come and go and leaders die, on real
//! storage: every version that there is can be read whole, at nodes and on a host, also of two images
//! that began with the same disk.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_tests::ceph::Ceph;
use shoal_tests::clock::wait_for;
use shoal_tests::cluster::{Agent, Cluster, Node, Storage};
use shoal_tests::host::Network;
use shoal_tests::process::run;

const NODES: usize = 3;
const ROUNDS: u64 = 6;
/// What all versions have, what each shares with the one before, and what it has alone.
const SHARED_BYTES: usize = 8 << 20;
const PASSED_ON_BYTES: usize = 6 << 20;
const OWN_BYTES: usize = 24 << 20;
/// Far shorter than anybody would have it, so that all of it meets.
const SETTINGS: &str = "[collection]\ngrace_seconds = 2\ninterval_seconds = 1\n\
                        compact_below_percent = 95\n[delta]\nenabled = false\n";
const TWIN: &str = "vm/twin:v2";
const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn versions_are_read_whole_while_their_packs_are_compacted_and_leaders_die() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let network = Network::create(1)?;
    let ceph = Ceph::start(network.hub(), &folder.path().join("ceph"))?;
    let storage = Storage::of(&ceph);
    let mut nodes = Vec::new();
    for number in 1..=NODES {
        let (name, address) = (format!("node-{number}"), format!("10.77.0.{number}"));
        let home = folder.path().join(&name);
        let node = Node::prepare(network.hub(), &home, &name, &address, &storage)?;
        node.configure(SETTINGS)?;
        nodes.push(node);
    }
    let mut cluster = Cluster::of(network.hub(), folder.path(), nodes)?;
    let outcome = come_and_go(folder.path(), &network, &mut cluster);
    outcome.with_context(|| {
        let logs = cluster.logs();
        logs.iter().map(|(name, log)| format!("--- {name}\n{log}\n")).collect::<String>()
    })
}

fn random(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

/// Its own, the beginning of what the one before has alone, and what all have.
fn content(version: u64) -> Vec<u8> {
    disk(version, version.wrapping_sub(1))
}

/// What another image becomes that began as the first one did.
fn twin() -> Vec<u8> {
    disk(1 << 33, 1)
}

fn disk(own: u64, before: u64) -> Vec<u8> {
    let mut bytes = random(own, OWN_BYTES);
    bytes.extend(random(before, PASSED_ON_BYTES));
    bytes.extend(random(1 << 32, SHARED_BYTES));
    bytes
}

fn come_and_go(folder: &Path, network: &Network, cluster: &mut Cluster) -> Result<()> {
    let disk = folder.join("disk.raw");
    let path = disk.to_string_lossy().into_owned();
    for version in 1..=ROUNDS {
        fs::write(&disk, content(version))?;
        let (name, number) = (format!("vm/app:v{version}"), version.to_string());
        cluster.operator.run(&["image", "upload", &path, &name, "--version", &number])?;
        if version <= 2 {
            fs::write(&disk, if version == 1 { content(1) } else { twin() })?;
            let name = format!("vm/twin:v{version}");
            cluster.operator.run(&["image", "upload", &path, &name, "--version", &number])?;
        }
        if version > 1 {
            let before = (version - 1).to_string();
            cluster.operator.run(&["image", "remove-version", "vm/app", &before, "--yes"])?;
        }
        if version == 2 {
            cluster.operator.run(&["image", "remove-version", "vm/twin", "1", "--yes"])?;
        }
        if version % 2 == 0 {
            // Whoever leads compacts, or is about to.
            let leader = cluster.leader()?;
            cluster.nodes[leader].process()?.kill()?;
            cluster.nodes[leader].start()?;
        }
        check(folder, cluster, &name, &content(version))?;
        if version >= 2 {
            check(folder, cluster, TWIN, &twin())?;
        }
    }
    wait_for("packs to be compacted", DEADLINE, || {
        let mut packs = 0.0;
        for node in &cluster.nodes {
            packs += node.metric("shoal_compaction_packs_total", "", &cluster.password)?;
        }
        Ok((packs > 0.0).then_some(()))
    })?;
    let name = format!("vm/app:v{ROUNDS}");
    check(folder, cluster, &name, &content(ROUNDS))?;
    for node in &mut cluster.nodes {
        node.process()?.kill()?;
        node.start()?;
    }
    // Nobody remembers anything.
    check(folder, cluster, &name, &content(ROUNDS))?;
    check(folder, cluster, TWIN, &twin())?;
    cluster.operator.run(&["storage", "verify", "--read"])?;

    let mut agent = Agent::prepare(network.host(0), &folder.join("agent-1"), "agent-1")?;
    agent.join(&cluster.nodes[0], &cluster.operator.token("agent")?)?;
    agent.start()?;
    cluster.agents.push(agent);
    cluster.operator.run(&["deploy", &name, "--all", "--watch"])?;
    let fetched = folder.join("fetched.raw");
    let target = fetched.to_string_lossy().into_owned();
    run(cluster.agents[0].command("fetch", &[&name, "--output", &target, "--format", "raw"])?)?;
    ensure!(fs::read(&fetched)? == content(ROUNDS), "the host has something else");
    Ok(())
}

/// As a client downloads it.
fn check(folder: &Path, cluster: &Cluster, name: &str, wanted: &[u8]) -> Result<()> {
    let file = folder.join("back.raw");
    // Else a download would go on where that one ended.
    let _ = fs::remove_file(&file);
    let target = file.to_string_lossy().into_owned();
    cluster.operator.run(&["image", "download", name, "--format", "raw", "-o", &target])?;
    ensure!(fs::read(&file)? == wanted, "{name} is something else");
    Ok(())
}
