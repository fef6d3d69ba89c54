//! Debian's docker-registry pulled through the cluster, by containerd, podman and docker, through
//! agents: once from there, from peers and nodes after that, and on when it is gone; also over a node
//! that is killed in the middle of a layer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shoal_tests::clock::wait_for;
use shoal_tests::cluster::{Agent, Node, Operator, Storage};
use shoal_tests::docker::Docker;
use shoal_tests::host::{Host, Network};
use shoal_tests::process::{Process, run, run_text};
use shoal_tests::sample::{self, ContainerImage};

const DEADLINE: Duration = Duration::from_secs(60);
const LAYERS: usize = 2;
const LAYER_BYTES: usize = 4 << 20;
const REGISTRY: &str = "10.77.0.5:5300";
const PASSWORD: &str = "hub-secret";
/// bcrypt of [`PASSWORD`].
const HASH: &str = "$2y$05$abcdefghijklmnopqrstuuU4B3f5avGH64nqTkZwHrcWGlT8qAWiy";
const HUB: &str = "127.0.0.1:5057";
const NAME: &str = "team/app";

struct Stage {
    folder: PathBuf,
    network: Network,
    registry: Process,
    node: Node,
    password: String,
    agents: Vec<Agent>,
    image: ContainerImage,
    _temporary: tempfile::TempDir,
}

/// docker-registry, which lets in whoever knows the password.
fn start_registry(host: &Host, folder: &Path) -> Result<Process> {
    fs::create_dir_all(folder)?;
    let (passwords, settings) = (folder.join("passwords"), folder.join("config.yml"));
    fs::write(&passwords, format!("puller:{HASH}\n"))?;
    fs::write(
        &settings,
        format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: {REGISTRY}\nauth:\n  htpasswd:\n    realm: hub\n    path: {}\n",
            folder.join("storage").display(),
            passwords.display()
        ),
    )?;
    let mut command = host.command("docker-registry");
    command.arg("serve").arg(&settings);
    let mut process = Process::start("docker-registry", command, &folder.join("log"))?;
    wait_for("docker-registry", DEADLINE, || {
        process.ensure_running()?;
        let mut curl = host.command("curl");
        curl.args(["-sSf", "-u", &format!("puller:{PASSWORD}"), &format!("http://{REGISTRY}/v2/")]);
        Ok(run(curl).ok())
    })?;
    Ok(process)
}

fn push(host: &Host, image: &ContainerImage) -> Result<()> {
    let mut push = host.command("skopeo");
    push.args(["--insecure-policy", "copy", "--quiet", "--preserve-digests"]);
    push.args(["--dest-tls-verify=false", "--dest-creds", &format!("puller:{PASSWORD}")]);
    push.arg(format!("oci:{}:latest", image.layout.display()));
    push.arg(format!("docker://{REGISTRY}/{NAME}:v1"));
    run(push).map(drop)
}

impl Stage {
    fn set() -> Result<Self> {
        let temporary = tempfile::tempdir()?;
        let folder = temporary.path().to_owned();
        let network = Network::create(2)?;
        let registry = start_registry(network.hub(), &folder.join("registry"))?;
        let image = sample::container(&folder, 41, LAYERS, LAYER_BYTES)?;
        push(network.hub(), &image)?;
        let storage = Storage::Folder(folder.join("storage"));
        let at = folder.join("node-1");
        let mut node = Node::prepare(network.hub(), &at, "node-1", "10.77.0.1", &storage)?;
        let secret = folder.join("registry-password");
        fs::write(&secret, PASSWORD)?;
        let upstream = |name: &str| {
            format!(
                "[upstreams.\"{name}\"]\nurl = \"http://{REGISTRY}\"\nusername = \"puller\"\n\
                 password_file = {secret:?}\nvisibility = \"public\"\ntag_seconds = 1\n"
            )
        };
        // docker pulls what it takes for Docker Hub's.
        node.configure(&format!("{}{}", upstream("registry.lab"), upstream("docker.io")))?;
        let password = node.init()?;
        node.start()?;
        let operator = Operator::login(network.hub(), &folder, &node, &password)?;
        let mut agents = Vec::new();
        for (index, name) in ["agent-1", "agent-2"].into_iter().enumerate() {
            let mut agent = Agent::prepare(network.host(index), &folder.join(name), name)?;
            agent.set_mirror(&format!("hub_listen = \"{HUB}\"\n"))?;
            agent.join(&node, &operator.token("agent")?)?;
            agent.start()?;
            let known = folder.join(name).join("data/upstreams.json");
            wait_for("the agent to know the upstreams", DEADLINE, || {
                Ok(fs::read_to_string(&known).ok().filter(|text| text.contains("\"public\": true")))
            })?;
            agents.push(agent);
        }
        let shown = operator.json(&["upstreams"])?;
        ensure!(shown.as_array().is_some_and(|all| all.len() == 2), "{shown}");
        Ok(Self { folder, network, registry, node, password, agents, image, _temporary: temporary })
    }

    /// Bytes of blobs that the node has got from upstreams.
    fn received(&self) -> Result<f64> {
        self.node.metric("shoal_upstream_bytes_total", "", &self.password)
    }

    /// Asks an agent's mirror; gives the headers, in lower case.
    fn headers(&self, agent: usize, path: &str) -> Result<String> {
        let mut curl = self.agents[agent].host().command("curl");
        curl.args(["-sS", "--max-time", "60", "-D", "-", "-o", "/dev/null"]);
        curl.arg(format!("http://{}{path}", Agent::MIRROR));
        Ok(run_text(curl)?.to_lowercase())
    }
}

#[test]
fn engines_pull_another_registrys_images_through_agents_and_go_on_without_it() -> Result<()> {
    let mut stage = Stage::set()?;
    let outcome = engines(&mut stage);
    let log = stage.agents[0].process()?.log_tail() + &stage.node.process()?.log_tail();
    outcome.with_context(|| log)
}

fn engines(stage: &mut Stage) -> Result<()> {
    let engine = docker_with_mirror(stage)?;
    let log = || engine.log_tail();
    let blobs = stage.image.blob_bytes as f64;

    containerd(stage, &engine, "one").with_context(log).context("containerd")?;
    ensure!(stage.received()? == blobs, "{} of {blobs} bytes were received", stage.received()?);
    podman(stage).context("podman")?;
    ensure!(stage.received()? == blobs, "podman's pull was fetched again");
    // What the node holds comes to the second host by the swarm.
    let layer = format!("/v2/registry.lab/{NAME}/blobs/{}", stage.image.layer_digests[0]);
    let headers = stage.headers(1, &format!("/v2/registry.lab/{NAME}/manifests/v1"))?;
    ensure!(headers.contains("200 ok") && !headers.contains("warning:"), "{headers}");
    ensure!(stage.headers(1, &layer)?.contains("200 ok"), "no layer at the second host");
    ensure!(
        stage.agents[1].metric("shoal_mirror_passed_bytes_total", "")? == 0.0,
        "it was passed on"
    );
    ensure!(stage.agents[1].metric("shoal_mirror_sent_bytes_total", "")? >= LAYER_BYTES as f64);

    // The other name is another project; docker has no way past the mirror here.
    engine
        .docker(&["pull", "--quiet", &format!("{NAME}:v1")])
        .with_context(log)
        .context("docker")?;
    ensure!(stage.received()? == 2.0 * blobs, "{}", stage.received()?);

    stage.registry.kill()?;
    containerd(stage, &engine, "two").with_context(log).context("containerd, without upstream")?;
    wait_for("a warning", DEADLINE, || {
        let path = format!("/v2/{NAME}/manifests/v1?ns=registry.lab");
        let headers = stage.headers(0, &path)?;
        ensure!(headers.contains("200 ok"), "{headers}");
        Ok(headers.contains("warning: 299").then_some(()))
    })?;
    engine.docker(&["rmi", "--force", &format!("{NAME}:v1")])?;
    engine.docker(&["pull", "--quiet", &format!("{NAME}:v1")]).with_context(log)?;

    // Engines are told of these names, too.
    let setup = stage.agents[0].command("setup", &["containerd", "--dry-run"])?;
    let diff = run_text(setup)?;
    for part in ["registry.lab/hosts.toml", "docker.io/hosts.toml", "server = \"http://10.77.0.5"] {
        ensure!(diff.contains(part), "no {part} in {diff}");
    }
    Ok(())
}

/// An engine whose `registry-mirrors` are the agent's.
fn docker_with_mirror(stage: &Stage) -> Result<Docker> {
    let settings = stage.folder.join("etc-docker");
    fs::create_dir_all(&settings)?;
    let text = format!("{{\"registry-mirrors\": [\"http://{HUB}\"]}}");
    fs::write(settings.join("daemon.json"), text)?;
    let host = stage.network.host(0).clone().overlaid(&settings, "/etc/docker");
    Docker::start(&host, &stage.folder.join("docker"))
}

/// Into an image store of its own for each `space`.
fn containerd(stage: &Stage, engine: &Docker, space: &str) -> Result<()> {
    let hosts = stage.folder.join("hosts");
    fs::create_dir_all(hosts.join("registry.lab"))?;
    let mirror =
        format!("[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", Agent::MIRROR);
    fs::write(hosts.join("registry.lab/hosts.toml"), mirror)?;
    let (hosts, name) = (hosts.display().to_string(), format!("registry.lab/{NAME}:v1"));
    engine.ctr(&["-n", space, "images", "pull", "--hosts-dir", &hosts, &name])?;
    let listed = engine.ctr(&["-n", space, "images", "list"])?;
    ensure!(listed.contains(&stage.image.manifest_digest), "something else came: {listed}");
    Ok(())
}

fn podman(stage: &Stage) -> Result<()> {
    let settings = stage.folder.join("registries.conf");
    fs::write(
        &settings,
        format!(
            "[[registry]]\nprefix = \"registry.lab\"\nlocation = \"registry.lab\"\n\
             [[registry.mirror]]\nlocation = \"{}/registry.lab\"\ninsecure = true\n",
            Agent::MIRROR
        ),
    )?;
    let mut command = stage.network.host(0).command("podman");
    command.arg("--root").arg(stage.folder.join("containers"));
    command.arg("--runroot").arg(stage.folder.join("run"));
    command.args(["--storage-driver", "vfs", "pull", "--quiet"]);
    command.arg(format!("registry.lab/{NAME}:v1"));
    command.env("CONTAINERS_REGISTRIES_CONF", settings);
    run(command).map(drop)
}

#[test]
fn a_host_fetches_whole_what_nobody_has_pulled() -> Result<()> {
    let stage = Stage::set()?;
    let reference = format!("registry.lab/{NAME}:v1");
    for agent in &stage.agents {
        run(agent.command("fetch", &[&reference])?)?;
    }
    let blobs = stage.image.blob_bytes as f64;
    ensure!(stage.received()? == blobs, "{} of {blobs} bytes were received", stage.received()?);
    // All of it is at the host: nothing more is asked for.
    let layer = format!("/v2/registry.lab/{NAME}/blobs/{}", stage.image.layer_digests[0]);
    ensure!(stage.headers(0, &format!("/v2/registry.lab/{NAME}/manifests/v1"))?.contains("200 ok"));
    ensure!(stage.headers(0, &layer)?.contains("200 ok"), "no layer at the host");
    ensure!(
        stage.agents[0].metric("shoal_mirror_passed_bytes_total", "")? == 0.0,
        "it was passed on"
    );
    Ok(())
}

#[test]
fn a_node_that_is_killed_in_the_middle_of_a_layer_spoils_nothing() -> Result<()> {
    let mut stage = Stage::set()?;
    // Slow enough to be caught at it; the burst is more than a packet of the loopback.
    let mut slow = stage.network.hub().command("tc");
    slow.args(["qdisc", "add", "dev", "lo", "root", "tbf"]);
    slow.args(["rate", "4mbit", "burst", "256kb", "latency", "400ms"]);
    run(slow)?;
    let node = stage.node.url();
    let ask = |path: &str| {
        let mut curl = stage.network.host(0).command("curl");
        curl.args(["-ksSf", "--max-time", "60", "-o"]).arg(stage.folder.join("body"));
        curl.arg(format!("{node}/v2/registry.lab/{NAME}/{path}"));
        curl
    };
    let digest = stage.image.layer_digests[1].clone();
    run(ask("manifests/v1"))?;
    let layer = ask(&format!("blobs/{digest}"));
    let mut pull = Process::start("curl", layer, &stage.folder.join("curl-log"))?;
    wait_for("bytes on their way", DEADLINE, || {
        let received = stage.received()?;
        Ok((received > 0.0).then_some(received))
    })?;
    ensure!(pull.is_running()?, "the layer came too fast for this test");
    stage.node.process()?.kill()?;
    stage.node.start()?;
    run(ask(&format!("blobs/{digest}")))?;
    let mut sum = Command::new("sha256sum");
    sum.arg(stage.folder.join("body"));
    ensure!(run_text(sum)?.starts_with(digest.trim_start_matches("sha256:")), "another layer");
    Ok(())
}
