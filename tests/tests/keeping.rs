//! A policy keeps its image on a host: what leaves the host's cache for something else is brought again
//! when there is room.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shoal_tests::clock::wait_for;
use shoal_tests::cluster::{Agent, Cluster, Node, Storage};
use shoal_tests::host::{Host, Network};
use shoal_tests::process::run;
use shoal_tests::sample;

const LAYERS: usize = 2;
const LAYER_BYTES: usize = 5 << 20;
/// Holds one of the images, and not two.
const CACHE: &str = "[cache]\nmax_bytes = \"16MiB\"\n\n[limits]\n";
const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn what_a_policy_keeps_comes_back_after_it_was_evicted() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let network = Network::create(1)?;
    let storage = Storage::Folder(folder.path().join("storage"));
    let mut cluster = Cluster::start(&network, folder.path(), &storage, 1, 0)?;
    let (node, operator) = (&cluster.nodes[0], &cluster.operator);
    let mut agent = Agent::prepare(network.host(0), &folder.path().join("agent-1"), "agent-1")?;
    agent.edit("[limits]\n", CACHE)?;
    agent.join(node, &operator.token("agent")?)?;
    agent.start()?;
    for (seed, name) in [(51, "demo/kept"), (52, "demo/other")] {
        push(network.hub(), folder.path(), node, seed, name, &cluster.password)?;
    }

    wait_for("the policy to be taken", DEADLINE, || {
        Ok(operator.run(&["warm-up", "create", "base", "demo/kept:v1", "--all"]).ok())
    })?;
    wait_for("the policy's order to be carried out", DEADLINE, || {
        let orders = operator.json(&["deployments", "list"])?;
        let orders = orders.as_array().context("a list of deployments")?;
        let done = orders.iter().any(|one| one["state"] == "done");
        Ok(done.then_some(()))
    })?;
    ensure!(held(&agent, "demo/kept@")?, "the policy's image is not here");
    // Until the order has let go of what it brought, there is no room.
    wait_for("the other image", DEADLINE, || {
        Ok(run(agent.command("fetch", &["demo/other:v1"])?).ok())
    })?;
    ensure!(agent.metric("shoal_cache_evictions_total", "")? >= 1.0, "both images fit");
    let back = wait_for("the image to come back", DEADLINE, || {
        Ok(held(&agent, "demo/kept@")?.then_some(()))
    });
    cluster.agents.push(agent);
    back.with_context(|| format!("{:?}", cluster.logs()))
}

/// Whether all of an image is in the agent's cache.
fn held(agent: &Agent, reference: &str) -> Result<bool> {
    let listed = agent.json("list", &[])?;
    let mut images = listed["images"].as_array().context("a list of images")?.iter();
    let found = images.find(|one| one["reference"].as_str().unwrap_or("").starts_with(reference));
    Ok(found.is_some_and(|one| one["chunks_held"] == one["chunks_total"]))
}

fn push(
    hub: &Host,
    folder: &Path,
    node: &Node,
    seed: u64,
    name: &str,
    password: &str,
) -> Result<()> {
    let image = sample::container(folder, seed, LAYERS, LAYER_BYTES)?;
    let mut push = hub.command("skopeo");
    push.args(["--insecure-policy", "copy", "--quiet", "--preserve-digests"]);
    push.args(["--dest-tls-verify=false", "--dest-creds", &format!("admin:{password}")]);
    push.arg(format!("oci:{}:latest", image.layout.display()));
    push.arg(format!("docker://{}/{name}:v1", node.registry()));
    run(push).map(drop)
}
