//! What must survive: a killed leader, a killed agent, a stranger at the door, a full disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use shoal_tests::ceph::Ceph;
use shoal_tests::clock::wait_for;
use shoal_tests::cluster::{Agent, Cluster, Storage};
use shoal_tests::host::Network;
use shoal_tests::process::{Process, run, run_text};
use shoal_tests::sample;

/// From the kill of a leader to the end of what clients were doing; an election takes two of it.
const RECOVERY_DEADLINE: Duration = Duration::from_secs(60);
/// What an agent that was told to stop must still have of what it had verified.
const KEPT_MIN: f64 = 0.95;
/// What one that was killed must still have of what it said a moment before. What it brings in a
/// twentieth of a second is half a hundredth of it, so that of all that it had verified 99 % stay.
const KEPT_KILLED_MIN: f64 = 0.995;

#[test]
fn nothing_acknowledged_is_lost_when_the_leader_is_killed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let network = Network::create(2)?;
    let ceph = Ceph::start(network.hub(), &folder.path().join("ceph"))?;
    let mut cluster = Cluster::start(&network, folder.path(), &Storage::of(&ceph), 3, 2)?;
    let outcome = kill_the_leader(folder.path(), &network, &mut cluster);
    outcome.with_context(|| format!("{:#?}", cluster.logs()))
}

fn kill_the_leader(folder: &Path, network: &Network, cluster: &mut Cluster) -> Result<()> {
    let disk = folder.join("disk.raw");
    fs::write(&disk, incompressible(96 << 20))?;
    cluster.operator.run(&[
        "image",
        "upload",
        &disk.to_string_lossy(),
        "zedge/small:v1",
        "--version",
        "1",
    ])?;
    let first = sample::container(folder, 11, 2, 4 << 20)?;
    let second = sample::container(folder, 12, 4, 24 << 20)?;

    let leader = cluster.leader()?;
    let survivor = (leader + 1) % cluster.nodes.len();
    let acknowledged = push(cluster, network, survivor, &first.layout, "demo/first")?;
    acknowledged.context("the push before the fault failed")?;

    // A push through a survivor and a deployment are under way when the leader dies.
    let pushing = spawn_push(cluster, network, survivor, &second.layout, "demo/second", folder)?;
    let mut deploying =
        cluster.operator.command(&["--json", "deploy", "zedge/small:v1", "--all", "--watch"])?;
    let deploying =
        deploying.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    cluster.nodes[leader].process()?.kill()?;
    let killed = Instant::now();

    let deployed = deploying.wait_with_output()?;
    ensure!(
        deployed.status.success(),
        "the deployment failed: {}{}",
        String::from_utf8_lossy(&deployed.stdout),
        String::from_utf8_lossy(&deployed.stderr)
    );
    let mut pushing = pushing;
    let pushed = wait_for("the push to end", RECOVERY_DEADLINE, || {
        Ok((!pushing.is_running()?).then_some(()))
    });
    pushed?;
    // Where the client itself gave up, its retry must do.
    if inspect(cluster, network, survivor, "demo/second").is_err() {
        push(cluster, network, survivor, &second.layout, "demo/second")??;
    }
    println!("after the kill, everything had ended within {:?}", killed.elapsed());
    ensure!(killed.elapsed() < RECOVERY_DEADLINE, "recovery took {:?}", killed.elapsed());

    inspect(cluster, network, survivor, "demo/first").context("an acknowledged push is gone")?;
    cluster.nodes[leader].start()?;
    // It has caught up when it gives what was pushed while it was away.
    wait_for("the killed node to catch up", RECOVERY_DEADLINE, || {
        inspect(cluster, network, leader, "demo/second").map(Some)
    })
    .map(drop)
}

fn push_command(
    cluster: &Cluster,
    network: &Network,
    node: usize,
    layout: &Path,
    name: &str,
) -> Command {
    let mut command = network.hub().command("skopeo");
    command.args(["--insecure-policy", "copy", "--retry-times", "5", "--dest-tls-verify=false"]);
    command.args(["--dest-creds", &format!("admin:{}", cluster.password)]);
    command.arg(format!("oci:{}:latest", layout.display()));
    command.arg(format!("docker://{}/{name}:v1", cluster.nodes[node].registry()));
    command
}

/// The outer error is ours, the inner one the client's.
fn push(
    cluster: &Cluster,
    network: &Network,
    node: usize,
    layout: &Path,
    name: &str,
) -> Result<Result<()>> {
    Ok(run(push_command(cluster, network, node, layout, name)).map(drop))
}

fn spawn_push(
    cluster: &Cluster,
    network: &Network,
    node: usize,
    layout: &Path,
    name: &str,
    folder: &Path,
) -> Result<Process> {
    Process::start(
        "skopeo",
        push_command(cluster, network, node, layout, name),
        &folder.join("push.log"),
    )
}

fn inspect(cluster: &Cluster, network: &Network, node: usize, name: &str) -> Result<String> {
    let mut command = network.hub().command("skopeo");
    command.args(["inspect", "--raw", "--tls-verify=false"]);
    command.args(["--creds", &format!("admin:{}", cluster.password)]);
    command.arg(format!("docker://{}/{name}:v1", cluster.nodes[node].registry()));
    run_text(command)
}

fn incompressible(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Has an agent that runs fetch no faster than that.
fn limit_download(agent: &mut Agent, rate: &str) -> Result<()> {
    agent.edit("[limits]\n", &format!("[limits]\ndownload = \"{rate}\"\n"))?;
    agent.process()?.signal(Signal::SIGHUP);
    wait_for("the limit to be read", RECOVERY_DEADLINE, || {
        let status = run_text(agent.command("status", &["--json"])?)?;
        let status: serde_json::Value = serde_json::from_str(&status)?;
        Ok((status["limits"]["download"] == rate).then_some(()))
    })
}

#[test]
fn a_killed_agent_keeps_what_it_had_verified() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let network = Network::create(1)?;
    let storage = Storage::Folder(folder.path().join("objects"));
    let mut cluster = Cluster::start(&network, folder.path(), &storage, 1, 1)?;
    let disk = folder.path().join("disk.raw");
    fs::write(&disk, incompressible(256 << 20))?;
    cluster.operator.run(&[
        "image",
        "upload",
        &disk.to_string_lossy(),
        "zedge/big:v1",
        "--version",
        "1",
    ])?;

    // So slow that it is not over before the kill.
    limit_download(&mut cluster.agents[0], "100 Mbit/s")?;
    let agent = &mut cluster.agents[0];
    let mut fetching = agent.command("fetch", &["zedge/big:v1"])?;
    let mut fetching =
        fetching.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let received = |agent: &Agent| {
        agent.metric("shoal_chunk_bytes_received_total", "from=\"node\"").unwrap_or(0.0)
    };
    let before = wait_for("half of the disk to arrive", RECOVERY_DEADLINE, || {
        let bytes = received(agent);
        Ok((bytes > f64::from(128 << 20)).then_some(bytes))
    })?;
    agent.process()?.kill()?;
    fetching.kill().ok();
    fetching.wait()?;
    ensure!(
        before < f64::from(250 << 20),
        "the fetch was over before the kill: nothing was tested"
    );

    agent.start()?;
    run(agent.command(
        "fetch",
        &[
            "zedge/big:v1",
            "--format",
            "raw",
            "--output",
            &folder.path().join("out.raw").to_string_lossy(),
        ],
    )?)?;
    let again = received(agent);
    let total = f64::from(256 << 20);
    // What came again beyond what was missing was lost.
    let kept = (total - again) / before;
    println!("{:.1} % of the verified bytes were kept", kept * 100.0);
    ensure!(kept >= KEPT_KILLED_MIN, "only {kept:.3} of what was verified was kept");
    ensure!(fs::read(folder.path().join("out.raw"))? == fs::read(&disk)?, "the disk differs");
    Ok(())
}

#[test]
fn an_agent_that_is_told_to_stop_goes_on_at_the_chunk_with_its_next_start() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let network = Network::create(1)?;
    let storage = Storage::Folder(folder.path().join("objects"));
    let mut cluster = Cluster::start(&network, folder.path(), &storage, 1, 1)?;
    let disk = folder.path().join("disk.raw");
    fs::write(&disk, incompressible(96 << 20))?;
    let disk = disk.to_string_lossy().into_owned();
    cluster.operator.run(&["image", "upload", &disk, "zedge/big:v1", "--version", "1"])?;

    // So slow that it is not over before the stop.
    limit_download(&mut cluster.agents[0], "100 Mbit/s")?;
    let order = ["deploy", "zedge/big:v1", "--all", "--detach", "--priority", "high"];
    cluster.operator.run(&order)?;
    let received = |agent: &Agent| {
        agent.metric("shoal_chunk_bytes_received_total", "from=\"node\"").unwrap_or(0.0)
    };
    let agent = &mut cluster.agents[0];
    let before = wait_for("a part of the disk to arrive", RECOVERY_DEADLINE, || {
        let bytes = received(agent);
        Ok((bytes > f64::from(16 << 20)).then_some(bytes))
    })?;
    agent.process()?.stop()?;
    ensure!(before < f64::from(80 << 20), "it was over before the stop: nothing was tested");
    let state = |cluster: &Cluster| -> Result<String> {
        let shown = cluster.operator.json(&["deployments", "show", "zedge/big:v1"])?;
        Ok(shown["state"].as_str().unwrap_or_default().to_owned())
    };
    ensure!(state(&cluster)? == "running", "a stop is no failure: {}", state(&cluster)?);

    let agent = &mut cluster.agents[0];
    agent.edit("download = \"100 Mbit/s\"\n", "")?;
    agent.start()?;
    cluster.operator.run(&["watch", "zedge/big:v1"])?;
    ensure!(state(&cluster)? == "done");
    let again = received(&cluster.agents[0]);
    let kept = (f64::from(96 << 20) - again) / before;
    println!("{:.1} % of the verified bytes were kept", kept * 100.0);
    ensure!(kept >= KEPT_MIN, "only {kept:.3} of what was verified was kept");
    Ok(())
}

#[test]
fn a_stranger_gets_nothing_from_the_raft_port_or_a_peer_port() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let network = Network::create(1)?;
    let storage = Storage::Folder(folder.path().join("objects"));
    let cluster = Cluster::start(&network, folder.path(), &storage, 1, 1)?;
    let node = &cluster.nodes[0];
    let agent = cluster.agents[0].host().address();
    let doors = [
        (node.raft_address(), "shoal-raft/1"),
        (format!("{}:5002", node.address), "shoal-peer/3"),
        (format!("{agent}:5002"), "shoal-peer/3"),
    ];
    for (address, protocol) in doors {
        let stranger = binary_of_this_crate("stranger")?;
        for certificate in ["none", "own"] {
            let mut command = network.hub().command(&stranger);
            command.args([&address, protocol, certificate]);
            let answer = run_text(command)?;
            ensure!(answer == "refused", "{address} told a stranger ({certificate}): {answer}");
        }
    }
    Ok(())
}

/// Cargo builds the crate's programs before its integration tests.
fn binary_of_this_crate(name: &str) -> Result<PathBuf> {
    match name {
        "stranger" => Ok(env!("CARGO_BIN_EXE_stranger").into()),
        other => bail!("this crate has no program {other}"),
    }
}

/// A small file system of its own; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: PathBuf, mib: u32) -> Result<Self> {
        fs::create_dir_all(&folder)?;
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(&folder);
        run(command)?;
        Ok(Self(folder))
    }

    /// Takes all the space there is; gives it back when the file is removed.
    fn fill(&self) -> Result<PathBuf> {
        let ballast = self.0.join("ballast");
        let mut command = Command::new("sh");
        command.arg("-c").arg("dd if=/dev/zero of=\"$0\" bs=1M 2>/dev/null; dd if=/dev/zero of=\"$0.2\" bs=4k 2>/dev/null; true").arg(&ballast);
        run(command)?;
        Ok(ballast)
    }

    fn release(&self) -> Result<()> {
        for name in ["ballast", "ballast.2"] {
            let path = self.0.join(name);
            if path.exists() {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let mut command = Command::new("umount");
        command.arg("-l").arg(&self.0);
        if let Err(error) = run(command) {
            eprintln!("{error:#}");
        }
    }
}

#[test]
fn a_full_disk_under_the_folder_store_refuses_and_recovers() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let network = Network::create(0)?;
    let small = SmallDisk::mount(folder.path().join("objects"), 256)?;
    let storage = Storage::Folder(small.0.join("store"));
    let mut cluster = Cluster::start(&network, folder.path(), &storage, 1, 0)?;
    let image = sample::container(folder.path(), 21, 1, 8 << 20)?;
    small.fill()?;
    let refused = push(&cluster, &network, 0, &image.layout, "demo/full")?;
    let message = format!("{:#}", refused.err().context("a push onto a full disk went through")?);
    // skopeo shows the status and keeps the body with the reason to itself.
    ensure!(message.contains("507 Insufficient Storage"), "the error helps nobody: {message}");
    ensure_alive(&mut cluster)?;
    small.release()?;
    push(&cluster, &network, 0, &image.layout, "demo/full")?
        .context("space returned, service did not")?;
    inspect(&cluster, &network, 0, "demo/full").map(drop)
}

#[test]
fn a_full_disk_under_the_metadata_refuses_and_recovers() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let network = Network::create(0)?;
    let small = SmallDisk::mount(folder.path().join("node-1"), 512)?;
    let storage = Storage::Folder(folder.path().join("objects"));
    let mut cluster = Cluster::start(&network, folder.path(), &storage, 1, 0)?;
    let image = sample::container(folder.path(), 22, 1, 1 << 20)?;
    push(&cluster, &network, 0, &image.layout, "demo/before")??;
    small.fill()?;
    let refused = push(&cluster, &network, 0, &image.layout, "demo/full")?;
    let message =
        format!("{:#}", refused.err().context("a push without room for metadata went through")?);
    // skopeo shows the status and keeps the body with the reason to itself.
    ensure!(message.contains("507 Insufficient Storage"), "the error helps nobody: {message}");
    inspect(&cluster, &network, 0, "demo/before").context("reads must go on")?;
    ensure_alive(&mut cluster)?;
    small.release()?;
    wait_for("pushes to go through again", RECOVERY_DEADLINE, || {
        Ok(push(&cluster, &network, 0, &image.layout, "demo/full")?.ok())
    })?;
    cluster.nodes[0].process()?.stop()?;
    cluster.nodes[0].start()?;
    inspect(&cluster, &network, 0, "demo/before")?;
    inspect(&cluster, &network, 0, "demo/full").map(drop)
}

#[test]
fn a_full_disk_under_an_agents_cache_refuses_and_recovers() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let network = Network::create(1)?;
    let storage = Storage::Folder(folder.path().join("objects"));
    let mut cluster = Cluster::start(&network, folder.path(), &storage, 1, 0)?;
    let disk = folder.path().join("disk.raw");
    fs::write(&disk, incompressible(64 << 20))?;
    cluster.operator.run(&[
        "image",
        "upload",
        &disk.to_string_lossy(),
        "zedge/one:v1",
        "--version",
        "1",
    ])?;

    let small = SmallDisk::mount(folder.path().join("cache"), 512)?;
    let data = small.0.join("data");
    let mut agent =
        Agent::prepare_in(network.host(0), &folder.path().join("agent"), "agent", &data)?;
    agent.join(&cluster.nodes[0], &cluster.operator.token("agent")?)?;
    agent.start()?;
    small.fill()?;
    let refused = run(agent.command("fetch", &["zedge/one:v1"])?);
    let message = format!("{:#}", refused.err().context("a fetch onto a full disk went through")?);
    ensure!(
        message.contains("space") || message.contains("full"),
        "the error helps nobody: {message}"
    );
    agent.process()?.ensure_running()?;
    small.release()?;
    let output = folder.path().join("out.raw");
    run(agent.command(
        "fetch",
        &["zedge/one:v1", "--format", "raw", "--output", &output.to_string_lossy()],
    )?)
    .context("space returned, service did not")?;
    ensure!(fs::read(&output)? == fs::read(&disk)?, "the disk differs");
    ensure_alive(&mut cluster)?;
    agent.process()?.stop()
}

fn ensure_alive(cluster: &mut Cluster) -> Result<()> {
    for node in &mut cluster.nodes {
        node.process()?.ensure_running()?;
        let log = node.process()?.log_text();
        ensure!(!log.contains("panicked"), "a node panicked:\n{}", node.process()?.log_tail());
    }
    Ok(())
}
