//! A rolling upgrade of three whole nodes while clients push and pull: nothing fails, nobody is
//! given what it does not know, and there is no way back.
//!
//! The release before is this program, told to know no command of later versions; what two
//! releases say to each other besides is held by the golden encodings of `raft/metadata`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use shoal_tests::chaos::client::{Outcome, Registry, Request, digest};
use shoal_tests::clock::wait_for;
use shoal_tests::cluster::{Cluster, Node, Operator, Storage};
use shoal_tests::host::{Host, Network};

/// What the release before knows.
const OLD: u8 = 1;
const NODES: usize = 3;
const CLIENTS: u64 = 2;
/// Pushed and pulled at each step of the upgrade at least, by all clients.
const IMAGES_PER_STEP_MIN: usize = 6;
const STEP_DEADLINE: Duration = Duration::from_secs(90);
/// Between two images of a client: the nodes are to be restarted under load, not worn out.
const PAUSE: Duration = Duration::from_millis(50);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image that a client was told is there.
#[derive(Debug, Clone)]
struct Pushed {
    tag: String,
    manifest: String,
    layer: String,
}

/// Clients that push, and pull through another node than they pushed to.
struct Load {
    stop: Arc<AtomicBool>,
    pushed: Arc<parking_lot::Mutex<Vec<Pushed>>>,
    clients: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    fn start(host: &Host, authority: &[u8], nodes: &[String], password: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let pushed = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let client = |number: u64| {
            let (host, authority, nodes) = (host.clone(), authority.to_vec(), nodes.to_vec());
            let (password, stop, pushed) = (password.to_owned(), stop.clone(), pushed.clone());
            std::thread::spawn(move || {
                host.enter()?;
                // One of each kind.
                let registry = Registry::new(&authority, &nodes, &password, number == 0)?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                for image in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let made = runtime.block_on(push_and_pull(&registry, number, image))?;
                    pushed.lock().push(made);
                    std::thread::park_timeout(PAUSE);
                }
                Ok(())
            })
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self { stop, pushed, clients }
    }

    /// Waits until so many more images are there; fails where a client has failed.
    fn goes_on(&self) -> Result<()> {
        let before = self.pushed.lock().len();
        wait_for("the load to go on", STEP_DEADLINE, || {
            let failed = self.clients.iter().any(JoinHandle::is_finished);
            Ok((failed || self.pushed.lock().len() >= before + IMAGES_PER_STEP_MIN).then_some(()))
        })
    }

    fn end(self) -> Result<Vec<Pushed>> {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().expect("a client does not panic").context("a client's request failed")?;
        }
        Ok(std::mem::take(&mut *self.pushed.lock()))
    }
}

/// Asks one node after another until one can be reached: a node that is restarted cannot.
///
/// # Errors
/// Where any node answers with anything but success, or breaks off.
async fn done(
    registry: &Registry,
    first: usize,
    method: Method,
    path: &str,
    body: &[u8],
) -> Result<Vec<u8>> {
    for node in (first..).take(registry.nodes()).map(|node| node % registry.nodes()) {
        let request = Request {
            content_type: (method == Method::PUT).then_some(MANIFEST),
            body: body.to_vec(),
            ..Request::new(method.clone(), path, REQUEST_TIMEOUT)
        };
        match registry.send(node, request).await {
            Outcome::Done(answer) => return Ok(answer.body),
            Outcome::Refused(0) => {}
            outcome => bail!("{method} {path} at node {}: {outcome:?}", node + 1),
        }
    }
    bail!("{method} {path}: no node can be reached")
}

async fn push_and_pull(registry: &Registry, client: u64, image: u64) -> Result<Pushed> {
    let node = (client + image) as usize;
    let repository = format!("load/client-{client}");
    let layer: Vec<u8> =
        (0..4096).flat_map(|at| (at * 31 + image * 7 + client).to_le_bytes()).collect();
    for blob in [b"{}".as_slice(), &layer] {
        let path = format!("/v2/{repository}/blobs/uploads/?digest={}", digest(blob));
        done(registry, node, Method::POST, &path, blob).await?;
    }
    let described = |media_type: &str, bytes: &[u8]| json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": described("application/vnd.oci.image.config.v1+json", b"{}"),
        "layers": [described("application/vnd.oci.image.layer.v1.tar", &layer)],
        "annotations": { "org.example.image": format!("{client}/{image}") },
    });
    let manifest = manifest.to_string();
    let tag = format!("v{image}");
    let path = format!("/v2/{repository}/manifests/{tag}");
    done(registry, node, Method::PUT, &path, manifest.as_bytes()).await?;
    let pulled = done(registry, node + 1, Method::GET, &path, b"").await?;
    ensure!(pulled == manifest.as_bytes(), "{path} came back as another");
    let path = format!("/v2/{repository}/blobs/{}", digest(&layer));
    ensure!(done(registry, node + 1, Method::GET, &path, b"").await? == layer, "{path} differs");
    let (manifest, layer) = (digest(manifest.as_bytes()), digest(&layer));
    Ok(Pushed { tag: format!("{repository}:{tag}"), manifest, layer })
}

#[test]
fn a_rolling_upgrade_of_whole_nodes_fails_nobody_and_new_commands_wait_for_its_end() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let network = Network::create(0)?;
    let storage = Storage::Folder(folder.path().join("storage"));
    let mut nodes = Vec::new();
    for number in 1..=NODES {
        let (name, address) = (format!("node-{number}"), format!("10.77.0.{number}"));
        let home = folder.path().join(&name);
        let mut node = Node::prepare(network.hub(), &home, &name, &address, &storage)?;
        node.stand_for(Some(OLD));
        nodes.push(node);
    }
    let mut cluster = Cluster::of(network.hub(), folder.path(), nodes)?;
    let outcome = upgrade(&network, folder.path(), &mut cluster);
    outcome.with_context(|| format!("{:#?}", cluster.logs()))
}

fn upgrade(network: &Network, folder: &std::path::Path, cluster: &mut Cluster) -> Result<()> {
    let operators = (0..NODES).map(|at| {
        let home = folder.join(format!("operator-{at}"));
        Operator::login(network.hub(), &home, &cluster.nodes[at], &cluster.password)
    });
    let operators: Vec<Operator> = operators.collect::<Result<_>>()?;
    let status = |at: usize| operators[at].json(&["status"]);
    let levels = |status: &Value| -> Vec<u64> {
        let nodes = status["nodes"].as_array().into_iter().flatten();
        nodes.filter_map(|node| node["level"].as_u64()).collect()
    };
    let old = u64::from(OLD);
    ensure!(levels(&status(0)?) == [old; NODES], "{}", status(0)?);

    let authority = std::fs::read(cluster.nodes[0].data_dir().join("ca.pem"))?;
    let urls: Vec<String> = cluster.nodes.iter().map(Node::url).collect();
    let load = Load::start(network.hub(), &authority, &urls, &cluster.password);
    load.goes_on().context("before the upgrade")?;
    for at in 0..NODES {
        // New commands wait, whichever node is asked: an old one, or one that knows them.
        for (number, operator) in operators.iter().enumerate() {
            let refused = operator.run(&["user", "create", "late"]);
            let refused = refused.err().with_context(|| format!("node {} took it", number + 1))?;
            let said = format!("{refused:#}");
            ensure!(said.contains(&format!("which is {OLD} now")), "{said}");
            ensure!(said.contains("once every node runs a program that knows it"), "{said}");
        }
        let node = &mut cluster.nodes[at];
        node.process()?.stop()?;
        node.stand_for(None);
        node.start()?;
        wait_for("the node to say what it knows", STEP_DEADLINE, || {
            let status = status(at)?;
            let new = levels(&status).iter().filter(|level| **level > old).count();
            Ok((new == at + 1).then_some(()))
        })?;
        load.goes_on().with_context(|| format!("with {} new nodes", at + 1))?;
        if at + 1 < NODES {
            let level = status(at)?["level"].as_u64();
            ensure!(level == Some(old), "the level is {level:?} while versions are mixed");
        }
    }
    wait_for("the level to rise", STEP_DEADLINE, || {
        let status = status(0)?;
        Ok(status["level"].as_u64().filter(|level| *level > old))
    })?;
    for (at, operator) in operators.iter().enumerate() {
        operator.run(&["user", "create", &format!("late-{at}")])?;
    }
    load.goes_on().context("after the upgrade")?;
    let pushed = load.end()?;
    ensure!(pushed.len() > IMAGES_PER_STEP_MIN * NODES, "{} images", pushed.len());
    everything_is_everywhere(network.hub(), &authority, &urls, &cluster.password, pushed)?;

    // The version before cannot come back.
    let node = &mut cluster.nodes[1];
    node.process()?.stop()?;
    node.stand_for(Some(OLD));
    node.launch()?;
    let process = node.process()?;
    wait_for("the old program to give up", STEP_DEADLINE, || {
        Ok((!process.is_running()?).then_some(()))
    })?;
    let said = process.log_tail();
    ensure!(said.contains("install the version that ran here before"), "{said}");
    node.stand_for(None);
    node.start()
}

fn everything_is_everywhere(
    host: &Host,
    authority: &[u8],
    nodes: &[String],
    password: &str,
    pushed: Vec<Pushed>,
) -> Result<()> {
    let (host, password) = (host.clone(), password.to_owned());
    let (authority, nodes) = (authority.to_vec(), nodes.to_vec());
    let reader = std::thread::spawn(move || {
        host.enter()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        for node in &nodes {
            let registry = Registry::new(&authority, std::slice::from_ref(node), &password, true)?;
            for Pushed { tag, manifest, layer } in &pushed {
                let (repository, tag) = tag.rsplit_once(':').context("a tag")?;
                let found = |path: String| {
                    let path = format!("/v2/{repository}/{path}");
                    let body = runtime.block_on(done(&registry, 0, Method::GET, &path, b""))?;
                    Ok::<_, anyhow::Error>(digest(&body))
                };
                ensure!(found(format!("manifests/{tag}"))? == *manifest, "{tag} at {node}");
                ensure!(found(format!("blobs/{layer}"))? == *layer, "{layer} at {node}");
            }
        }
        Ok(())
    });
    reader.join().expect("a reader does not panic")
}
