//! The cluster's ticket key is thrown away while hosts fetch with its tickets.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_tests::clock::wait_for;
use shoal_tests::cluster::{Agent, Cluster, Storage};
use shoal_tests::host::Network;
use shoal_tests::process::run_text;

const AGENTS: usize = 2;
const DISK_BYTES: usize = 64 << 20;
/// At this rate the disk takes 27 seconds.
const RATE: &str = "20 Mbit/s";
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn a_deployment_goes_on_with_new_tickets_when_the_key_of_the_old_is_distrusted() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let network = Network::create(AGENTS)?;
    let storage = Storage::Folder(folder.path().join("objects"));
    let mut cluster = Cluster::start(&network, folder.path(), &storage, 1, AGENTS)?;
    let outcome = distrust_under_way(folder.path(), &mut cluster);
    outcome.with_context(|| {
        let logs = cluster.logs();
        logs.iter().map(|(name, log)| format!("--- {name}\n{log}\n")).collect::<String>()
    })
}

fn distrust_under_way(folder: &std::path::Path, cluster: &mut Cluster) -> Result<()> {
    let disk = folder.join("disk.raw");
    let mut content = vec![0; DISK_BYTES];
    StdRng::seed_from_u64(11).fill(&mut content[..]);
    fs::write(&disk, content)?;
    let path = disk.to_string_lossy().into_owned();
    cluster.operator.run(&["image", "upload", &path, "vm/keyed:1", "--version", "1"])?;
    for agent in &mut cluster.agents {
        agent.edit("[limits]\n", &format!("[limits]\ndownload = \"{RATE}\"\n"))?;
        agent.process()?.signal(Signal::SIGHUP);
        wait_for("the limit to be read", DEADLINE, || {
            let status = run_text(agent.command("status", &["--json"])?)?;
            let status: serde_json::Value = serde_json::from_str(&status)?;
            Ok((status["limits"]["download"] == RATE).then_some(()))
        })?;
    }
    cluster.operator.run(&["deploy", "vm/keyed:1", "--all", "--detach"])?;
    let received = |agent: &Agent| {
        agent.metric("shoal_chunk_bytes_received_total", "").unwrap_or(0.0) as usize
    };
    wait_for("a part of the disk to arrive everywhere", DEADLINE, || {
        let begun = |agent| received(agent) > DISK_BYTES / 16;
        Ok(cluster.agents.iter().all(begun).then_some(()))
    })?;
    let keys =
        cluster.operator.json(&["cluster", "rotate-key", "ticket", "--distrust", "--yes"])?;
    let under_way = cluster.agents.iter().all(|agent| received(agent) < DISK_BYTES / 2);
    ensure!(under_way, "it was nearly over before: nothing was tested");
    let tickets =
        keys.as_array().context("a list")?.iter().filter(|key| key["purpose"] == "ticket");
    let tickets: Vec<_> = tickets.map(|key| (key["number"].as_u64(), &key["state"])).collect();
    ensure!(tickets == [(Some(1), &"signs".into())], "{keys}");

    cluster.operator.run(&["watch", "vm/keyed:1"])?;
    let shown = cluster.operator.json(&["deployments", "show", "vm/keyed:1"])?;
    ensure!(shown["state"] == "done", "{shown}");
    for agent in &mut cluster.agents {
        let log = agent.process()?.log_text();
        ensure!(log.contains("changed its ticket key"), "{} did not notice", agent.name);
        let output = folder.join(format!("{}.raw", agent.name));
        let into = output.to_string_lossy().into_owned();
        let fetch = ["vm/keyed:1", "--format", "raw", "--output", &into];
        run_text(agent.command("fetch", &fetch)?)?;
        ensure!(fs::read(&output)? == fs::read(&disk)?, "{}: the disk differs", agent.name);
        // Little came twice: what was there when the tickets ended stayed.
        let came = received(agent);
        ensure!(came < DISK_BYTES * 5 / 4, "{} fetched {came} bytes", agent.name);
        // A key that is thrown away is not believed after a start either.
        agent.process()?.stop()?;
        agent.start()?;
        let again = folder.join(format!("{}.again.raw", agent.name));
        let into = again.to_string_lossy().into_owned();
        run_text(agent.command("fetch", &["vm/keyed:1", "--format", "raw", "--output", &into])?)?;
    }
    Ok(())
}
