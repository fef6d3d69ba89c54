//! A node that is told to stop, while clients push and pull through it: nobody loses anything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use reqwest::{Body, Client, Method, StatusCode};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::node::{Node, client};
use super::program::Program;
use super::v2::{open_upload, sha256};
use super::wait::until;

/// Of each way to connect.
const CLIENTS: u64 = 3;
/// What each client does before the stop, and again after it.
const ROUNDS: u64 = 3;
/// More than the buffers of a connection hold.
const LARGE_BYTES: usize = 24 << 20;
/// Bodies are cut off four seconds before the deadline: what is to end well has ended long before.
const SETTINGS: &str = "[drain]\nnotice_seconds = 1\ndeadline_seconds = 20\n";

/// One client: where it is, and how it gets there.
struct Pusher {
    number: u64,
    http: Client,
    /// The node that stops, then the one that stays.
    nodes: [String; 2],
    password: String,
    rounds: Arc<AtomicU64>,
    moved: bool,
}

impl Pusher {
    fn content(&self, round: u64) -> Vec<u8> {
        format!("{}/{round} ", self.number).repeat(4000).into_bytes()
    }

    /// Pushes and pulls until it is told to stop; gives what was acknowledged.
    async fn run(mut self, stop: Arc<AtomicBool>) -> Result<Vec<String>> {
        let mut acknowledged = Vec::new();
        for round in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let content = self.content(round);
            let digest = sha256(&content);
            let blobs = "v2/load/app/blobs";
            let push = format!("{blobs}/uploads/?digest={digest}");
            let (status, _) = self
                .ask(|http, node| http.post(format!("{node}/{push}")).body(content.clone()))
                .await?;
            ensure!(status == StatusCode::CREATED, "a push was answered with {status}");
            let pull = format!("{blobs}/{digest}");
            let (status, body) = self.ask(|http, node| http.get(format!("{node}/{pull}"))).await?;
            ensure!(
                status == StatusCode::OK && body == content,
                "a pull was answered with {status}"
            );
            acknowledged.push(digest);
            self.rounds.fetch_add(1, Ordering::Relaxed);
        }
        ensure!(self.moved, "client {} never left the node that stopped", self.number);
        Ok(acknowledged)
    }

    /// Asks where it is; goes to the other node only when it is not let in any more.
    async fn ask(
        &mut self,
        request: impl Fn(&Client, &str) -> reqwest::RequestBuilder,
    ) -> Result<(StatusCode, Bytes)> {
        loop {
            let node = &self.nodes[usize::from(self.moved)];
            let sent = request(&self.http, node).basic_auth("admin", Some(&self.password));
            match sent.send().await {
                Ok(answer) => return Ok((answer.status(), answer.bytes().await?)),
                Err(error) if error.is_connect() && !self.moved => self.moved = true,
                Err(error) => return Err(error).context("a request was lost"),
            }
        }
    }
}

/// The node to stop, which leads, and two that stay.
struct Scene {
    program: Program,
    staying: [Node; 2],
    password: String,
    folder: tempfile::TempDir,
}

impl Scene {
    async fn set() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let program = Program::start(folder.path(), SETTINGS).await?;
        let password = program.password.clone();
        let mut staying = Vec::new();
        for name in ["node-2", "node-3"] {
            let wanted = serde_json::json!({ "role": "node", "ttl_seconds": 600, "uses": 1 });
            let asked = program.http.post(format!("{}/api/v1/join-tokens", program.url));
            let asked = asked.basic_auth("admin", Some(&password)).json(&wanted).send().await?;
            let made: Value = asked.error_for_status()?.json().await?;
            let token = made["token"].as_str().context("a token")?;
            let storage = program.data_dir().join("storage");
            staying.push(Node::join_at(name, &program.https_url, token, &storage).await?);
        }
        let Ok(staying) = <[Node; 2]>::try_from(staying) else { bail!("two nodes") };
        let raft = &staying[1].server.app().raft;
        until("three voters", async || Ok((raft.status().voters.len() == 3).then_some(()))).await?;
        let leader = raft.status().leader.map(|leader| leader.number());
        ensure!(leader == Some(1), "{leader:?} leads");
        Ok(Self { program, staying, password, folder })
    }

    /// HTTP/1.1 in the clear, and HTTP/2.
    fn clients(&self) -> Result<Vec<(Client, String)>> {
        let mut clients = Vec::new();
        let authority = std::fs::read(self.program.data_dir().join("ca.pem"))?;
        for _ in 0..CLIENTS {
            clients.push((client(&authority)?, self.program.https_url.clone()));
            // It goes on with TLS at the other node.
            let authority = reqwest::Certificate::from_pem(&authority)?;
            let plain = Client::builder().tls_certs_only([authority]).http1_only().no_proxy();
            clients.push((plain.build()?, self.program.url.clone()));
        }
        Ok(clients)
    }
}

/// A body whose rest comes when it is let go.
fn held_body(pieces: [Bytes; 2], let_go: Arc<Notify>) -> Body {
    let [first, rest] = pieces;
    let rest = async move {
        let_go.notified().await;
        Ok(rest)
    };
    let first = futures::stream::iter([Ok::<_, std::io::Error>(first)]);
    Body::wrap_stream(futures::StreamExt::chain(first, futures::stream::once(rest)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_leaves_under_load_and_no_request_is_lost() -> Result<()> {
    let scene = Scene::set().await?;
    let log = scene.folder.path().join("log");
    let outcome = leave(scene).await;
    outcome.with_context(|| std::fs::read_to_string(log).unwrap_or_default())
}

async fn leave(scene: Scene) -> Result<()> {
    let (stop, mut clients, mut progress) =
        (Arc::new(AtomicBool::new(false)), JoinSet::new(), Vec::new());
    for (number, (http, node)) in scene.clients()?.into_iter().enumerate() {
        let rounds = Arc::new(AtomicU64::new(0));
        progress.push(Arc::clone(&rounds));
        let nodes = [node, scene.staying[0].url.clone()];
        let (number, password) = (number as u64, scene.password.clone());
        let pusher = Pusher { number, http, nodes, password, rounds, moved: false };
        clients.spawn(pusher.run(Arc::clone(&stop)));
    }
    let Scene { program, staying, password, folder: _folder } = scene;
    let all_did = |rounds: u64| {
        progress.iter().all(|did| did.load(Ordering::Relaxed) >= rounds).then_some(())
    };
    let plain = |path: &str| format!("{}/{path}", program.url);
    let uploads = plain("v2/slow/app/blobs/uploads/");
    let large: Bytes =
        (0..LARGE_BYTES as u32 / 4).flat_map(u32::to_be_bytes).collect::<Vec<_>>().into();
    let large_digest = sha256(&large);
    let push = program.http.post(format!("{uploads}?digest={large_digest}")).body(large.clone());
    push.basic_auth("admin", Some(&password)).send().await?.error_for_status()?;
    let session = async || -> Result<String> {
        let begun = program.http.post(&uploads).basic_auth("admin", Some(&password)).send().await?;
        Ok(begun.error_for_status()?.headers()["location"].to_str()?.to_owned())
    };

    // A pull, an upload that will end, and one that will not, are under way.
    let pull = program.http.get(plain(&format!("v2/slow/app/blobs/{large_digest}")));
    let mut pull = pull.basic_auth("admin", Some(&password)).send().await?.error_for_status()?;
    let mut pulled = pull.chunk().await?.context("the first bytes")?.to_vec();
    let let_go = Arc::new(Notify::new());
    let ending = session().await?;
    let half = LARGE_BYTES / 2;
    let body = held_body([large.slice(..half), large.slice(half..)], Arc::clone(&let_go));
    let request = program.http.patch(format!("{}{ending}", program.url)).body(body);
    let ending_upload = tokio::spawn(request.basic_auth("admin", Some(&password)).send());
    let endless = session().await?;
    let never = Arc::new(Notify::new());
    let body = held_body([large.slice(..100_000), Bytes::new()], Arc::clone(&never));
    let request = program.http.patch(format!("{}{endless}", program.url)).body(body);
    let endless_upload = tokio::spawn(request.basic_auth("admin", Some(&password)).send());
    until("each client to be busy", async || Ok(all_did(ROUNDS))).await?;

    program.terminate()?;
    let fresh = Client::builder().no_proxy().build()?;
    let ready = until("the notice", async || {
        let answer = fresh.get(plain("ready")).send().await.ok();
        Ok(answer.filter(|answer| answer.status() == 503))
    });
    let ready = ready.await?;
    ensure!(ready.headers()["connection"] == "close", "{ready:?}");
    let address: SocketAddr = program.url.trim_start_matches("http://").parse()?;
    until("nobody to be let in", async || Ok(TcpStream::connect(address).await.err())).await?;

    // What was under way ends well, and goes on elsewhere.
    while let Some(piece) = pull.chunk().await? {
        pulled.extend_from_slice(&piece);
    }
    ensure!(pulled == large, "the pull ended after {} bytes", pulled.len());
    let_go.notify_one();
    let answer = ending_upload.await??;
    ensure!(answer.status() == StatusCode::ACCEPTED, "{answer:?}");
    let node = &staying[0];
    let close = node.http.put(format!("{}{ending}?digest={large_digest}", node.url));
    let closed = close.basic_auth("admin", Some(&password)).send().await?;
    ensure!(closed.status() == StatusCode::CREATED, "{closed:?}");
    let answer = endless_upload.await??;
    ensure!(answer.status() == StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
    let kept = node.http.get(format!("{}{endless}", node.url)).basic_auth("admin", Some(&password));
    let kept = kept.send().await?;
    ensure!(kept.headers()["range"] == "0-99999", "{kept:?}");

    program.ended().await?;
    let raft = &node.server.app().raft;
    until("another leader", async || {
        Ok(raft.status().leader.filter(|leader| leader.number() != 1))
    })
    .await?;
    let before: Vec<u64> = progress.iter().map(|did| did.load(Ordering::Relaxed)).collect();
    let most = before.into_iter().max().unwrap_or_default();
    let went_on = until("each client to go on", async || Ok(all_did(most + ROUNDS))).await;
    stop.store(true, Ordering::Relaxed);
    let other = &staying[1];
    while let Some(ended) = clients.join_next().await {
        for digest in ended?? {
            let head = other.http.head(format!("{}/v2/load/app/blobs/{digest}", other.url));
            let found = head.basic_auth("admin", Some(&password)).send().await?.status();
            ensure!(found == StatusCode::OK, "{digest} was acknowledged and is lost: {found}");
        }
    }
    // A client that ended early has said why by now.
    went_on?;
    for node in staying {
        node.server.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_wait_for_room_hear_in_time_that_the_node_stops() -> Result<()> {
    // One more than there are parts to hold, and each holds more than it may without one.
    const UPLOADS: usize = 11;
    const EACH_BYTES: usize = 300_000;
    const WITHOUT_PART_BYTES: usize = 256 * 1024;
    let node = Node::start_with(|config| config.drain.deadline_seconds = 12).await?;
    let content = Bytes::from(vec![7; EACH_BYTES]);
    let mut uploads = JoinSet::new();
    for _ in 0..UPLOADS {
        let path = open_upload(&node, "a/waiting").await?;
        let body = held_body([content.clone(), Bytes::new()], Arc::new(Notify::new()));
        uploads.spawn(node.v2(Method::PATCH, &path).body(body).send());
    }
    let metrics = &node.server.app().metrics;
    let least = ((UPLOADS - 1) * EACH_BYTES + WITHOUT_PART_BYTES) as u64;
    let all_came = async || Ok((metrics.upload_bytes.get() >= least).then_some(()));
    until("as much to have come as there is room for", all_came).await?;
    node.server.stop().await?;
    while let Some(answer) = uploads.join_next().await {
        let answer = answer?.context("an upload was broken off")?;
        ensure!(answer.status() == StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
        ensure!(answer.headers().contains_key("retry-after"), "{answer:?}");
    }
    Ok(())
}
