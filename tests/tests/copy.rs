//! A disk goes from one cluster to another, on nobody's disk between.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_tests::clock::wait_for;
use shoal_tests::cluster::{Cluster, Node, Storage};
use shoal_tests::host::Network;
use shoal_tests::process::run;

const DISK_BYTES: usize = 96 << 20;
const DEADLINE: Duration = Duration::from_secs(60);
/// A part takes three seconds at this rate, there and back; the burst is more than a packet of the
/// loopback.
const SLOW: &str = "add dev lo root tbf rate 80mbit burst 256kb latency 400ms";
const FAST: &str = "del dev lo root";

#[test]
fn a_disk_is_copied_to_another_cluster_and_goes_on_where_it_stopped() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let network = Network::create(0)?;
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    let node = |folder: &Path, name: &str, address: &str| {
        let storage = Storage::Folder(folder.join("objects"));
        Node::prepare(network.hub(), &folder.join(name), name, address, &storage)
    };
    let mut one = Cluster::of(network.hub(), &here, vec![node(&here, "node-1", "10.77.0.1")?])?;
    let mut other =
        Cluster::of(network.hub(), &there, vec![node(&there, "other-1", "10.77.0.2")?])?;
    let outcome = copy(folder.path(), &network, &one, &other);
    outcome.with_context(|| {
        let logs = one.logs().into_iter().chain(other.logs());
        logs.map(|(name, log)| format!("--- {name}\n{log}\n")).collect::<String>()
    })
}

/// Changes the line that both clusters and the operator share.
fn line(network: &Network, change: &str) -> Result<()> {
    let mut command = network.hub().command("tc");
    command.arg("qdisc").args(change.split(' '));
    run(command).map(drop)
}

fn copy(folder: &Path, network: &Network, one: &Cluster, other: &Cluster) -> Result<()> {
    let disk = folder.join("disk.raw");
    let mut content = vec![0; DISK_BYTES];
    StdRng::seed_from_u64(12).fill(&mut content[..DISK_BYTES / 2]);
    fs::write(&disk, &content)?;
    let path = disk.to_string_lossy().into_owned();
    let upload = ["image", "upload", &path, "vm/app:stable", "--version", "2.1.0"];
    one.operator.run(&[&upload[..], &["--changelog", "faster"]].concat())?;
    one.operator.run(&["image", "edit", "vm/app", "--description", "an app", "--labels", "a=b"])?;

    let unknown = one.operator.run(&["image", "copy", "vm/app:stable", "--to", "nowhere"]);
    let unknown = format!("{:#}", unknown.expect_err("there is no such context"));
    ensure!(unknown.contains("nowhere"), "{unknown}");
    let secret = folder.join("password");
    fs::write(&secret, &other.password)?;
    let url = other.nodes[0].url();
    let words = ["--context", "other", "login", &url, "--username", "admin", "--password-stdin"];
    let mut login = one.operator.command(&words)?;
    login.arg("--ca").arg(other.nodes[0].data_dir().join("ca.pem"));
    ensure!(login.stdin(fs::File::open(&secret)?).status()?.success(), "no login there");
    // That made it the current one.
    one.operator.run(&["context", "use", "default"])?;

    let words = ["image", "copy", "vm/app:stable", "--to", "other", "copied/app:v2"];
    line(network, SLOW)?;
    let mut stopped = one.operator.command(&words)?;
    stopped.args(["--parallel", "1"]).stdout(Stdio::null()).stderr(Stdio::piped());
    let stopped = stopped.spawn()?;
    let parts = folder.join("there/objects/objects/uploads");
    wait_for("a part of it to be there", DEADLINE, || Ok(parts.exists().then_some(())))?;
    kill(Pid::from_raw(i32::try_from(stopped.id())?), Signal::SIGINT)?;
    let stopped = stopped.wait_with_output()?;
    line(network, FAST)?;
    let said = String::from_utf8_lossy(&stopped.stderr);
    ensure!(!stopped.status.success() && said.contains("the same command again"), "{said}");

    let copied = one.operator.json(&words)?;
    ensure!(copied["status"] == "active" && copied["version"] == "2.1.0", "{copied}");
    let again = one.operator.run(&words)?;
    ensure!(again.contains("Nothing was uploaded"), "{again}");
    let image = other.operator.json(&["image", "show", "copied/app"])?;
    ensure!(image["description"] == "an app" && image["labels"]["a"] == "b", "{image}");
    let version = other.operator.json(&["image", "version", "copied/app", "v2"])?;
    ensure!(version["changelog"] == "faster", "{version}");
    let output = folder.join("back.raw");
    let into = output.to_string_lossy().into_owned();
    let download = ["image", "download", "copied/app:v2", "--format", "raw", "--output", &into];
    other.operator.run(&download)?;
    ensure!(fs::read(&output)? == content, "the copy differs");
    Ok(())
}
