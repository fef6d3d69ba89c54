//! The whole way on real parts: docker and skopeo push, a real qcow2 goes up, three nodes keep it
//! in a real Ceph, four agents on hosts of their own fetch it from each other, docker and
//! containerd pull through an agent's mirror, and qemu-img judges the disks.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shoal_tests::ceph::Ceph;
use shoal_tests::clock::wait_for;
use shoal_tests::cluster::{Agent, Cluster, Node, Operator, Storage};
use shoal_tests::docker::Docker;
use shoal_tests::host::{Host, Network};
use shoal_tests::process::{run, run_text};
use shoal_tests::sample::{self, ContainerImage};

const LAYERS: usize = 6;
const LAYER_BYTES: usize = 12 << 20;
/// The nodes may send this many copies of what the agents got, in sum.
const ORIGIN_COPIES_MAX: f64 = 1.5;
const MEET_DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn an_image_goes_from_push_and_upload_through_the_swarm_into_use() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let network = Network::create(4)?;
    let ceph = Ceph::start(network.hub(), &folder.path().join("ceph"))?;
    let mut cluster = Cluster::start(&network, folder.path(), &Storage::of(&ceph), 3, 4)?;
    let outcome = whole_way(folder.path(), &network, &mut cluster);
    outcome.with_context(|| {
        let logs = cluster.logs();
        logs.iter().map(|(name, log)| format!("--- {name}\n{log}\n")).collect::<String>()
    })
}

fn whole_way(folder: &Path, network: &Network, cluster: &mut Cluster) -> Result<()> {
    let hub = network.hub();
    let pushed = sample::container(folder, 1, LAYERS, LAYER_BYTES)?;
    push_with_skopeo(hub, &cluster.nodes[0], &pushed, "demo/app", &cluster.password)?;
    for node in &cluster.nodes[1..] {
        pull_with_skopeo(hub, folder, node, &pushed, "demo/app", &cluster.password)?;
    }
    let engine = Docker::start(network.host(0), &folder.join("docker"))?;
    push_with_docker(&engine, folder, &cluster.nodes[0], &cluster.password)?;
    let through_second = inspect(hub, &cluster.nodes[1], "demo/pushed:v1", &cluster.password)?;
    let through_third = inspect(hub, &cluster.nodes[2], "demo/pushed:v1", &cluster.password)?;
    ensure!(through_second == through_third, "the nodes disagree about a pushed tag");

    let disk = sample::disk(folder)?;
    cluster.operator = Operator::login(hub, folder, &cluster.nodes[1], &cluster.password)?;
    cluster.operator.run(&[
        "image",
        "upload",
        &disk.to_string_lossy(),
        "zedge/desktop:v1",
        "--version",
        "1.0.0",
    ])?;

    deploy_and_count(cluster, "zedge/desktop:v1")?;
    for agent in &cluster.agents {
        let output = folder.join(format!("{}.qcow2", agent.name));
        run(agent.command("fetch", &["zedge/desktop:v1", "--output", &output.to_string_lossy()])?)?;
        sample::ensure_same_disk(&disk, &output, "qcow2")?;
        fs::remove_file(&output)?;
    }
    deploy_and_count(cluster, "demo/app:v1")?;

    agents_know_each_other_without_the_nodes(cluster)?;
    pull_through_the_mirror(&engine, folder, &pushed, &cluster.password)?;
    drop(engine);
    agents_agree_on_the_layers(folder, &cluster.agents, &pushed, &cluster.password)
}

/// The discovery network stands beside the nodes, for when none of them answers.
fn agents_know_each_other_without_the_nodes(cluster: &Cluster) -> Result<()> {
    for agent in &cluster.agents {
        wait_for(&format!("{} to meet other members", agent.name), MEET_DEADLINE, || {
            let connections = agent.metric("shoal_discovery_connections", "")?;
            Ok((connections >= 1.0).then_some(()))
        })?;
    }
    Ok(())
}

/// Deploys to every agent, and holds that the nodes sent little more than one copy.
fn deploy_and_count(cluster: &Cluster, reference: &str) -> Result<()> {
    let (origin, peers) = (cluster.origin_bytes()?, cluster.peer_bytes()?);
    let deployed = cluster.operator.json(&["deploy", reference, "--all", "--watch"])?;
    ensure!(deployed["state"] == "done", "the deployment ended as {deployed}");
    let hosts = deployed["hosts"].as_array().context("a deployment has hosts")?;
    ensure!(hosts.len() == cluster.agents.len(), "not every agent took part: {deployed}");
    let total = hosts[0]["progress"]["bytes_total"].as_f64().context("a host has a size")?;
    ensure!(total > 0.0, "an empty deployment proves nothing");
    let from_nodes = (cluster.origin_bytes()? - origin) / total;
    let from_peers = (cluster.peer_bytes()? - peers) / total;
    println!("{reference}: {from_nodes:.3} copies from the nodes, {from_peers:.3} from agents");
    ensure!(from_nodes < ORIGIN_COPIES_MAX, "{reference}: the nodes sent {from_nodes:.2} copies");
    let expected = hosts.len() as f64 - ORIGIN_COPIES_MAX;
    ensure!(from_peers > expected, "{reference}: only {from_peers:.2} copies came from agents");
    Ok(())
}

fn push_with_skopeo(
    hub: &Host,
    node: &Node,
    image: &ContainerImage,
    name: &str,
    password: &str,
) -> Result<()> {
    let mut command = skopeo(hub, "copy");
    command.args(["--preserve-digests", "--dest-tls-verify=false"]);
    command.args(["--dest-creds", &format!("admin:{password}")]);
    command.arg(format!("oci:{}:latest", image.layout.display()));
    command.arg(format!("docker://{}/{name}:v1", node.registry()));
    run(command).map(drop)
}

fn pull_with_skopeo(
    hub: &Host,
    folder: &Path,
    node: &Node,
    image: &ContainerImage,
    name: &str,
    password: &str,
) -> Result<()> {
    let target = folder.join(format!("pulled-{}", node.name));
    let mut command = skopeo(hub, "copy");
    command.args(["--preserve-digests", "--src-tls-verify=false"]);
    command.args(["--src-creds", &format!("admin:{password}")]);
    command.arg(format!("docker://{}/{name}:v1", node.registry()));
    command.arg(format!("dir:{}", target.display()));
    run(command)?;
    ensure_layers(&target, image)
}

/// Holds that a `dir:` copy has each layer, by its digest.
fn ensure_layers(folder: &Path, image: &ContainerImage) -> Result<()> {
    for digest in &image.layer_digests {
        let encoded = digest.strip_prefix("sha256:").context("a sha256 digest")?;
        let mut command = Command::new("sha256sum");
        command.arg(folder.join(encoded));
        let sum = run_text(command)?;
        ensure!(sum.starts_with(encoded), "layer {digest} came as {sum}");
    }
    Ok(())
}

fn skopeo(host: &Host, verb: &str) -> Command {
    let mut command = host.command("skopeo");
    command.args(["--insecure-policy", verb]);
    command
}

fn inspect(hub: &Host, node: &Node, reference: &str, password: &str) -> Result<String> {
    let mut command = skopeo(hub, "inspect");
    command.args(["--raw", "--tls-verify=false", "--creds", &format!("admin:{password}")]);
    command.arg(format!("docker://{}/{reference}", node.registry()));
    run_text(command)
}

fn push_with_docker(engine: &Docker, folder: &Path, node: &Node, password: &str) -> Result<()> {
    let layer = folder.join("imported.tar");
    let mut command = Command::new("tar");
    command.args(["-C", "/usr/share", "-cf"]).arg(&layer).arg("doc/bash");
    run(command)?;
    let reference = format!("{}/demo/pushed:v1", node.registry());
    engine.docker(&["import", &layer.to_string_lossy(), &reference])?;
    engine.docker(&["login", "--username", "admin", "--password", password, &node.registry()])?;
    engine.docker(&["push", &reference]).with_context(|| engine.log_tail()).map(drop)
}

/// docker and containerd pull what the agent on their host already has, by the mirror's address.
fn pull_through_the_mirror(
    engine: &Docker,
    folder: &Path,
    image: &ContainerImage,
    password: &str,
) -> Result<()> {
    let reference = format!("{}/demo/app:v1", Agent::MIRROR);
    engine.docker(&["login", "--username", "admin", "--password", password, Agent::MIRROR])?;
    engine.docker(&["pull", &reference]).with_context(|| engine.log_tail())?;
    let printed =
        engine.docker(&["image", "inspect", "--format", "{{json .RootFS.Layers}}", &reference])?;
    let layers: Vec<String> = serde_json::from_str(&printed)?;
    ensure!(layers == image.layer_digests, "docker pulled other layers: {printed}");

    let hosts = folder.join("hosts");
    fs::create_dir_all(hosts.join("registry.example"))?;
    let mirror =
        format!("[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", Agent::MIRROR);
    fs::write(hosts.join("registry.example/hosts.toml"), mirror)?;
    let reference = "registry.example/demo/app:v1";
    engine.ctr(&[
        "-n",
        "test",
        "images",
        "pull",
        "--hosts-dir",
        &hosts.to_string_lossy(),
        "--user",
        &format!("admin:{password}"),
        reference,
    ])?;
    let listed = engine.ctr(&["-n", "test", "images", "list"])?;
    ensure!(listed.contains(&image.manifest_digest), "containerd pulled something else: {listed}");
    for digest in &image.layer_digests {
        let content = engine.ctr(&["-n", "test", "content", "list", "--quiet"])?;
        ensure!(content.contains(digest), "containerd holds no layer {digest}");
    }
    Ok(())
}

fn agents_agree_on_the_layers(
    folder: &Path,
    agents: &[Agent],
    image: &ContainerImage,
    password: &str,
) -> Result<()> {
    for agent in agents {
        let target = folder.join(format!("mirror-{}", agent.name));
        let mut command = skopeo(agent.host(), "copy");
        command.args(["--preserve-digests", "--src-tls-verify=false"]);
        command.args(["--src-creds", &format!("admin:{password}")]);
        command.arg(format!("docker://{}/demo/app:v1", Agent::MIRROR));
        command.arg(format!("dir:{}", target.display()));
        run(command)?;
        ensure_layers(&target, image)?;
    }
    Ok(())
}
