//! The next version of a disk as a difference: hosts that have the one before fetch a bundle in place
//! of its new chunks, from each other where they can, and go on with chunks where it is damaged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use shoal_content::{Recipe, RecipeKind};
use shoal_tests::clock::wait_for;
use shoal_tests::cluster::{Cluster, Storage};
use shoal_tests::host::Network;
use shoal_tests::process::run;
use shoal_tests::sample;

const AGENTS: usize = 3;
const DISK_BYTES: usize = 24 << 20;
/// Bytes between two that the next version changes: every chunk has some.
const CHANGE_STEP: usize = 8192;
const BUNDLE_DEADLINE: Duration = Duration::from_secs(120);
/// Of the new chunks, what nodes may send where a bundle is used, for all hosts together.
const NODES_SHARE_MAX: f64 = 0.25;

#[test]
fn hosts_fetch_a_difference_in_place_of_new_chunks() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let network = Network::create(AGENTS)?;
    let storage = folder.path().join("storage");
    let mut cluster =
        Cluster::start(&network, folder.path(), &Storage::Folder(storage.clone()), 1, AGENTS)?;
    let outcome = updates(folder.path(), &storage.join("objects"), &cluster);
    outcome.with_context(|| {
        let logs = cluster.logs();
        logs.iter().map(|(name, log)| format!("--- {name}\n{log}\n")).collect::<String>()
    })
}

fn updates(folder: &Path, storage: &Path, cluster: &Cluster) -> Result<()> {
    let mut content = vec![0; DISK_BYTES];
    StdRng::seed_from_u64(7).fill(&mut content[..]);
    let first = publish(folder, cluster, "1.0.0", &content)?;
    let (hosts, _) = deploy(cluster, "1.0.0")?;
    ensure!(hosts.iter().all(|host| number(host, "bytes_by_delta") == 0.0), "from nothing");
    check(folder, cluster, "1.0.0", &first)?;

    let second = publish(folder, cluster, "2.0.0", &changed(&mut content, 1))?;
    bundles_made(cluster, 1.0)?;
    let (hosts, from_nodes) = deploy(cluster, "2.0.0")?;
    for host in &hosts {
        let (total, made) = (number(host, "bytes_total"), number(host, "bytes_by_delta"));
        ensure!(made > 0.9 * total, "only {made} of {total} bytes were made: {host}");
        ensure!(number(host, "delta_bundle_bytes") > 0.0, "from no bundle: {host}");
    }
    let share = from_nodes / DISK_BYTES as f64;
    println!("the nodes sent {share:.3} of the new chunks to {AGENTS} hosts");
    ensure!(share < NODES_SHARE_MAX, "the nodes sent {share:.3} of the new chunks");
    check(folder, cluster, "2.0.0", &second)?;

    let before = bundles(storage)?;
    let third = publish(folder, cluster, "3.0.0", &changed(&mut content, 2))?;
    bundles_made(cluster, 2.0)?;
    for pack in bundles(storage)?.into_iter().filter(|pack| !before.contains(pack)) {
        let length = fs::metadata(&pack)?.len() as usize;
        fs::write(&pack, vec![0x5a; length])?;
    }
    let (hosts, from_nodes) = deploy(cluster, "3.0.0")?;
    ensure!(hosts.iter().all(|host| number(host, "bytes_by_delta") == 0.0), "made from damage");
    ensure!(from_nodes > 0.9 * DISK_BYTES as f64, "the chunks came from nowhere: {from_nodes}");
    for agent in &cluster.agents {
        ensure!(agent.metric("shoal_cache_delta_failures_total", "")? >= 1.0, "nobody tried");
    }
    check(folder, cluster, "3.0.0", &third)
}

/// A bundle whose node dies over it is made all the same, and hosts get the version meanwhile.
#[test]
fn a_bundle_outlives_the_node_that_was_making_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let network = Network::create(AGENTS)?;
    let storage = folder.path().join("storage");
    let mut cluster =
        Cluster::start(&network, folder.path(), &Storage::Folder(storage.clone()), 1, AGENTS)?;
    let outcome = killed(folder.path(), &storage.join("objects"), &mut cluster);
    outcome.with_context(|| {
        let logs = cluster.logs();
        logs.iter().map(|(name, log)| format!("--- {name}\n{log}\n")).collect::<String>()
    })
}

fn killed(folder: &Path, storage: &Path, cluster: &mut Cluster) -> Result<()> {
    let mut content = vec![0; 2 * DISK_BYTES];
    StdRng::seed_from_u64(8).fill(&mut content[..]);
    publish(folder, cluster, "1.0.0", &content)?;
    deploy(cluster, "1.0.0")?;
    // The bundle is begun when a version is published; one that is quicker than the kill proves
    // nothing, and the next may not be.
    let mut tries = 2..8;
    let (version, disk) = loop {
        let round = tries.next().context("each bundle was whole before its node was killed")?;
        let version = format!("{round}.0.0");
        let whole = bundles(storage)?.len();
        let disk = publish(folder, cluster, &version, &changed(&mut content, round))?;
        cluster.nodes[0].process()?.kill()?;
        let is_cut_off = bundles(storage)?.len() == whole;
        cluster.nodes[0].start()?;
        if is_cut_off {
            break (version, disk);
        }
        // What comes next starts from what the hosts have.
        deploy(cluster, &version)?;
    };
    // Counted anew since the start: who asks has it made.
    let (hosts, _) = deploy(cluster, &version)?;
    println!("{} of {AGENTS} hosts used it", {
        hosts.iter().filter(|host| number(host, "bytes_by_delta") > 0.0).count()
    });
    bundles_made(cluster, 1.0)?;
    check(folder, cluster, &version, &disk)
}

/// Every chunk of it is new, and all of it resembles what was there.
fn changed(content: &mut [u8], round: u8) -> Vec<u8> {
    content.iter_mut().step_by(CHANGE_STEP).for_each(|byte| *byte = byte.wrapping_add(round));
    content.to_vec()
}

fn publish(folder: &Path, cluster: &Cluster, version: &str, content: &[u8]) -> Result<PathBuf> {
    let (raw, disk) = (folder.join("disk.raw"), folder.join(format!("{version}.qcow2")));
    fs::write(&raw, content)?;
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(&disk);
    run(convert)?;
    let name = format!("vm/base:{version}");
    let path = disk.to_string_lossy();
    cluster.operator.run(&["image", "upload", &path, &name, "--version", version])?;
    Ok(disk)
}

fn bundles_made(cluster: &Cluster, wanted: f64) -> Result<()> {
    wait_for(&format!("{wanted} bundles"), BUNDLE_DEADLINE, || {
        let made =
            cluster.nodes[0].metric("shoal_delta_bundles_made_total", "", &cluster.password)?;
        Ok((made >= wanted).then_some(()))
    })
}

/// Deploys to every agent: how it went on each, and what the nodes have sent for it.
fn deploy(cluster: &Cluster, version: &str) -> Result<(Vec<Value>, f64)> {
    let before = cluster.origin_bytes()?;
    let reference = format!("vm/base:{version}");
    let deployed = cluster.operator.json(&["deploy", &reference, "--all", "--watch"])?;
    ensure!(deployed["state"] == "done", "the deployment ended as {deployed}");
    let hosts = deployed["hosts"].as_array().context("a deployment has hosts")?;
    ensure!(hosts.len() == AGENTS, "not every agent took part: {deployed}");
    let progress = hosts.iter().map(|host| host["progress"].clone()).collect();
    Ok((progress, cluster.origin_bytes()? - before))
}

/// A field that is left out is zero.
fn number(progress: &Value, field: &str) -> f64 {
    progress[field].as_f64().unwrap_or(0.0)
}

fn check(folder: &Path, cluster: &Cluster, version: &str, disk: &Path) -> Result<()> {
    for agent in &cluster.agents {
        let output = folder.join(format!("{}.qcow2", agent.name));
        let reference = format!("vm/base:{version}");
        run(agent.command("fetch", &[&reference, "--output", &output.to_string_lossy()])?)?;
        sample::ensure_same_disk(disk, &output, "qcow2")?;
        fs::remove_file(&output)?;
    }
    Ok(())
}

/// The packs of all bundles in storage: nothing else here is a blob.
fn bundles(storage: &Path) -> Result<Vec<PathBuf>> {
    let mut packs = Vec::new();
    for folder in fs::read_dir(storage.join("recipes"))? {
        for file in fs::read_dir(folder?.path())? {
            let recipe = Recipe::decode(&fs::read(file?.path())?)?;
            if recipe.kind() == RecipeKind::Blob {
                packs.extend(recipe.objects().iter().map(|o| storage.join(o.key.to_string())));
            }
        }
    }
    Ok(packs)
}
