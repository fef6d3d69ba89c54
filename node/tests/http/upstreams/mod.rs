//! Images of another registry, pulled through: one fetch for all who ask, bytes as they come, what
//! is known while the upstream is away, and nothing to whom it is not due.
//!
//! The upstream is another Shoal, behind a [tap](tap): by Basic, and by a token from another host.

mod bad;
mod hosts;
mod nodes;
mod proxy;
mod tap;

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::http::HeaderMap;
use axum::routing::get;
use futures::StreamExt;
use futures::future::try_join_all;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use shoal_api::UpstreamInfo;
use shoal_node::config::{Config, Upstream};

use super::node::Node;
use super::rights::put_member;
use super::v2::{expect, push_image, sha256};
use super::wait::{level_raised, until};
use tap::{Blobs, Tap};

const PASSWORD: &str = "correct-horse-7";
/// More than a flight reads at once, so that there are several pieces.
const LAYER_BYTES: usize = 3_000_000;

fn layer(seed: u8) -> Vec<u8> {
    (0..LAYER_BYTES)
        .map(|at| (at as u8).wrapping_mul(31).wrapping_add(at.to_be_bytes()[5]) ^ seed)
        .collect()
}

/// A private image at a Shoal of its own.
async fn origin(layer: &[u8]) -> Result<Node> {
    let node = Node::start_with(|config| config.http.names.push("localhost".to_owned())).await?;
    level_raised(&node).await?;
    push_image(&node, "team/app", "v1", layer).await?;
    Ok(node)
}

/// How the node is told of it: with the login of its administrator.
fn settings(config: &mut Config, origin: &Node, url: &str) -> Result<()> {
    let password_file = origin.path().join("password");
    std::fs::write(&password_file, format!("{}\n", origin.password()))?;
    let upstream = Upstream {
        url: url.to_owned(),
        aliases: vec!["origin.example:5000".to_owned()],
        username: "admin".to_owned(),
        password_file: Some(password_file),
        ca_file: Some(origin.path().join("node/ca.pem")),
        login_hosts: vec!["localhost".to_owned()],
        visibility: "public".to_owned(),
        tag_seconds: 0,
        ..Upstream::default()
    };
    config.upstreams.0.insert("origin.example".to_owned(), upstream);
    Ok(())
}

/// A node that pulls through, once it may.
async fn cache(origin: &Node, tap: &Tap, change: impl FnOnce(&mut Config)) -> Result<Node> {
    let mut told = Ok(());
    let node = Node::start_with(|config| {
        told = settings(config, origin, &tap.url());
        change(config);
    })
    .await?;
    told?;
    level_raised(&node).await?;
    project_made(&node).await?;
    Ok(node)
}

async fn project_made(node: &Node) -> Result<()> {
    project_made_of(node, "origin.example").await
}

async fn project_made_of(node: &Node, upstream: &str) -> Result<()> {
    until("the upstream's project", async || {
        let answer = node.request(Method::GET, &format!("projects/{upstream}")).send().await?;
        Ok(answer.status().is_success().then_some(()))
    })
    .await
}

const MANIFEST: &str = "origin.example/team/app/manifests/v1";

fn blob(bytes: &[u8]) -> String {
    format!("origin.example/team/app/blobs/{}", sha256(bytes))
}

async fn anonymous(node: &Node, path: &str) -> Result<Response> {
    Ok(node.anonymous_v2(Method::GET, path).send().await?)
}

fn warning(answer: &Response) -> Option<&str> {
    answer.headers().get("warning").and_then(|value| value.to_str().ok())
}

/// Whether the blob is the node's own by now, which is soon after it was given.
async fn held(node: &Node, digest: &str) -> Result<bool> {
    let held = node.server.app().raft.local().query().blob(&digest.parse()?)?;
    Ok(held.is_some())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_askers_are_one_fetch_and_what_came_is_an_image_like_others() -> Result<()> {
    let bytes = layer(1);
    let origin = origin(&bytes).await?;
    let tap = Tap::on(&origin, "127.0.0.1").await?;
    let node = cache(&origin, &tap, |config| {
        if let Some(upstream) = config.upstreams.0.get_mut("origin.example") {
            upstream.tag_seconds = 3600;
        }
    })
    .await?;
    let asked = (0..20).map(async |number| {
        // As docker asks, and as containerd does.
        let path = match number % 2 {
            0 => MANIFEST.to_owned(),
            _ => "team/app/manifests/v1?ns=origin.example:5000".to_owned(),
        };
        let answer = anonymous(&node, &path).await?;
        expect(&answer, StatusCode::OK)?;
        ensure!(warning(&answer).is_none(), "{answer:?}");
        let manifest = answer.bytes().await?;
        let answer = anonymous(&node, &blob(&bytes)).await?;
        expect(&answer, StatusCode::OK)?;
        ensure!(answer.bytes().await? == bytes, "the layer is another one");
        Ok(sha256(&manifest))
    });
    let digests = try_join_all(asked).await?;
    ensure!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
    ensure!(tap.fetches("/manifests/") == 1, "{:?}", tap.seen(&Method::GET, "/manifests/"));
    ensure!(tap.fetches("/blobs/") == 1, "{:?}", tap.seen(&Method::GET, "/blobs/"));
    ensure!(tap.seen(&Method::HEAD, "/manifests/v1").len() <= 2, "a challenge, and its answer");
    // All of them may have been one asking; who comes later is a hit.
    expect(&anonymous(&node, MANIFEST).await?, StatusCode::OK)?;
    until("the layer's own row", async || Ok(held(&node, &sha256(&bytes)).await?.then_some(())))
        .await?;

    // It is listed, counted and kept by the project's policy.
    let project: Value = node.get("projects/origin.example").await?;
    ensure!(
        project["description"].as_str().is_some_and(|text| text.contains(&tap.url())),
        "{project}"
    );
    let policy: Value = node.get("projects/origin.example/policy").await?;
    let rules = &policy["policy"];
    ensure!(rules["automatic"] == true && rules["untagged_after_days"] == 30, "{policy}");
    let shown: Vec<UpstreamInfo> = node.get("upstreams").await?;
    let [shown] = &shown[..] else { anyhow::bail!("{shown:?}") };
    ensure!(shown.received_bytes == bytes.len() as u64 && shown.misses == 2, "{shown:?}");
    ensure!(
        shown.hits > 0 && shown.last_error.is_none() && shown.paused_seconds.is_none(),
        "{shown:?}"
    );
    let metrics = node.request(Method::GET, "../../metrics").send().await?.text().await?;
    for line in [
        format!("shoal_upstream_bytes_total{{upstream=\"origin.example\"}} {}", bytes.len()),
        "shoal_upstream_misses_total{upstream=\"origin.example\"} 2".to_owned(),
    ] {
        ensure!(metrics.contains(&line), "{line} is not in {metrics}");
    }
    // Its versions are read only.
    let push = node.v2(Method::PUT, MANIFEST).body("{}").send().await?;
    expect(&push, StatusCode::FORBIDDEN)?;
    let upload = node.v2(Method::POST, "origin.example/team/app/blobs/uploads/").send().await?;
    expect(&upload, StatusCode::FORBIDDEN)?;
    let image = json!({ "name": "origin.example/disk" });
    let made = node.request(Method::POST, "images").json(&image).send().await?;
    expect(&made, StatusCode::FORBIDDEN)?;
    // Nothing was asked for all that.
    ensure!(tap.fetches("/blobs/") == 1, "again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_given_as_they_come_and_a_client_that_leaves_spoils_nothing() -> Result<()> {
    let bytes = layer(2);
    let origin = origin(&bytes).await?;
    // Tokens come from another host than the registry.
    let tap = Tap::on(&origin, "localhost").await?;
    let node = cache(&origin, &tap, |config| {
        config.import.allowed_networks = vec!["127.0.0.0/8".parse().expect("a network")];
    })
    .await?;
    expect(&anonymous(&node, MANIFEST).await?, StatusCode::OK)?;
    let bearer = tap.seen(&Method::GET, "/manifests/").pop().context("nothing was asked")?;
    let authorization = bearer.headers.get("authorization").context("no token")?;
    ensure!(authorization.to_str()?.starts_with("Bearer "), "{authorization:?}");

    tap.blobs(Blobs::HoldAfter(1_000_000));
    let path = blob(&bytes);
    let head = node.anonymous_v2(Method::HEAD, &path).send().await?;
    ensure!(head.headers()["content-length"] == bytes.len().to_string().as_str(), "{head:?}");
    let mut first = anonymous(&node, &path).await?;
    expect(&first, StatusCode::OK)?;
    let mut got = 0;
    while got < 1_000_000 {
        got += first.chunk().await?.context("it ended")?.len();
    }
    ensure!(
        !held(&node, &sha256(&bytes)).await?,
        "the node has it whole before the upstream gave it"
    );
    // Who comes now reads from the beginning, or from where it wants.
    let second = anonymous(&node, &path).await?;
    let range = node.anonymous_v2(Method::GET, &path).header("range", "bytes=10-19");
    let part = range.send().await?;
    expect(&part, StatusCode::PARTIAL_CONTENT)?;
    ensure!(part.bytes().await? == bytes[10..20], "another part");
    drop(first);
    tap.release();
    ensure!(second.bytes().await? == bytes, "another layer");
    ensure!(tap.fetches("/blobs/") == 1, "{:?}", tap.seen(&Method::GET, "/blobs/"));

    // Nobody waits any more, and it comes all the same.
    let other = layer(3);
    push_image(&origin, "team/app", "v1", &other).await?;
    expect(&anonymous(&node, MANIFEST).await?, StatusCode::OK)?;
    let left = anonymous(&node, &blob(&other)).await?;
    expect(&left, StatusCode::OK)?;
    drop(left);
    until("the layer nobody waits for", async || {
        Ok(held(&node, &sha256(&other)).await?.then_some(()))
    })
    .await?;
    let again = anonymous(&node, &blob(&other)).await?;
    ensure!(again.bytes().await? == other, "another layer");
    ensure!(tap.fetches("/blobs/") == 2, "{:?}", tap.seen(&Method::GET, "/blobs/"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_is_given_while_the_upstream_is_away_or_wants_to_be_left_alone() -> Result<()>
{
    let bytes = layer(4);
    let origin = origin(&bytes).await?;
    push_image(&origin, "team/app", "never-asked", b"other").await?;
    let tap = Tap::on(&origin, "127.0.0.1").await?;
    let node = cache(&origin, &tap, |_| ()).await?;
    let known = anonymous(&node, MANIFEST).await?.bytes().await?;
    ensure!(anonymous(&node, &blob(&bytes)).await?.bytes().await? == bytes, "another layer");
    until("the layer's row", async || Ok(held(&node, &sha256(&bytes)).await?.then_some(())))
        .await?;
    let gone = anonymous(&node, "origin.example/team/app/manifests/missing").await?;
    expect(&gone, StatusCode::NOT_FOUND)?;
    let asked = tap.seen(&Method::HEAD, "/manifests/missing").len();
    let gone = anonymous(&node, "origin.example/team/app/manifests/missing").await?;
    expect(&gone, StatusCode::NOT_FOUND)?;
    ensure!(
        tap.seen(&Method::HEAD, "/manifests/missing").len() == asked,
        "it was asked again at once"
    );

    tap.refuse(Some(StatusCode::TOO_MANY_REQUESTS));
    let never = "origin.example/team/app/manifests/never-asked";
    let limited = anonymous(&node, never).await?;
    expect(&limited, StatusCode::TOO_MANY_REQUESTS)?;
    let after: u64 = limited.headers()["retry-after"].to_str()?.parse()?;
    ensure!((1..=7).contains(&after), "{after}");
    let stale = anonymous(&node, MANIFEST).await?;
    expect(&stale, StatusCode::OK)?;
    ensure!(warning(&stale).is_some_and(|text| text.contains("last known")), "{stale:?}");
    ensure!(stale.bytes().await? == known, "another manifest");
    // It said when it may be asked again.
    ensure!(tap.seen(&Method::HEAD, "never-asked").len() == 1, "it was not left alone");
    let shown: Vec<UpstreamInfo> = node.get("upstreams").await?;
    ensure!(shown[0].paused_seconds.is_some() && shown[0].stale == 1, "{shown:?}");
    ensure!(shown[0].last_error.is_some(), "{shown:?}");

    let (address, url) = (tap.address, node.url.clone());
    drop(tap);
    until("the end of the tap", async || {
        Ok(tokio::net::TcpStream::connect(address).await.is_err().then_some(()))
    })
    .await?;
    let other = cache_at(&origin, &format!("http://{address}")).await?;
    let away = anonymous(&other, MANIFEST).await?;
    expect(&away, StatusCode::SERVICE_UNAVAILABLE)?;
    ensure!(away.text().await?.contains("cannot be reached"), "{url}");
    until("a pull with a warning that it is away", async || {
        let answer = anonymous(&node, MANIFEST).await?;
        expect(&answer, StatusCode::OK)?;
        let text = warning(&answer).context("no warning")?;
        Ok(text.contains("cannot be reached").then_some(()))
    })
    .await?;
    ensure!(anonymous(&node, &blob(&bytes)).await?.bytes().await? == bytes, "another layer");
    Ok(())
}

async fn cache_at(origin: &Node, url: &str) -> Result<Node> {
    let mut told = Ok(());
    let node = Node::start_with(|config| told = settings(config, origin, url)).await?;
    told?;
    level_raised(&node).await?;
    project_made(&node).await?;
    Ok(node)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_it_is_called_is_refused_and_not_kept() -> Result<()> {
    let bytes = layer(5);
    let origin = origin(&bytes).await?;
    let tap = Tap::on(&origin, "127.0.0.1").await?;
    let node = cache(&origin, &tap, |_| ()).await?;
    expect(&anonymous(&node, MANIFEST).await?, StatusCode::OK)?;
    tap.blobs(Blobs::Bend);
    let answer = anonymous(&node, &blob(&bytes)).await?;
    let body = answer.bytes().await;
    ensure!(body.is_err(), "a layer with another digest was given whole");
    let shown: Vec<UpstreamInfo> = node.get("upstreams").await?;
    let error = shown[0].last_error.clone().context("nothing was noted")?;
    ensure!(error.contains("other content"), "{error}");
    ensure!(!held(&node, &sha256(&bytes)).await?, "it is kept");
    // The next one is not spoilt.
    tap.blobs(Blobs::BreakAfter(1_500_000, 2));
    let answer = anonymous(&node, &blob(&bytes)).await?;
    ensure!(answer.bytes().await? == bytes, "another layer");
    let ranges = tap.seen(&Method::GET, "/blobs/");
    let ranges = ranges.iter().filter_map(|seen| seen.headers.get("range"));
    ensure!(ranges.count() >= 1, "what broke off was not asked for from where it was");

    // What is always something else costs the upstream two fetches, however many ask.
    let never = layer(50);
    push_image(&origin, "team/never", "v1", &never).await?;
    let manifest = anonymous(&node, "origin.example/team/never/manifests/v1").await?;
    expect(&manifest, StatusCode::OK)?;
    tap.blobs(Blobs::Bend);
    let path = format!("origin.example/team/never/blobs/{}", sha256(&never));
    for _ in 0..2 {
        let answer = anonymous(&node, &path).await?;
        ensure!(answer.bytes().await.is_err(), "a layer with another digest was given whole");
    }
    for _ in 0..5 {
        let refused = anonymous(&node, &path).await?;
        expect(&refused, StatusCode::BAD_GATEWAY)?;
        ensure!(refused.text().await?.contains("other content"), "it does not say why");
    }
    ensure!(tap.fetches(&sha256(&never)) == 2, "{:?}", tap.seen(&Method::GET, &sha256(&never)));

    push_image(&origin, "team/app", "v2", b"other").await?;
    tap.bend_manifests();
    let bent = anonymous(&node, "origin.example/team/app/manifests/v2").await?;
    expect(&bent, StatusCode::BAD_GATEWAY)?;
    let tags = node.v2(Method::GET, "origin.example/team/app/tags/list").send().await?;
    ensure!(tags.json::<Value>().await?["tags"] == json!(["v1"]), "a bent manifest has a tag");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_stays_with_its_upstream_and_nobody_is_sent_to_where_it_must_not_go() -> Result<()>
{
    let bytes = layer(6);
    let origin = origin(&bytes).await?;
    let tap = Tap::on(&origin, "127.0.0.1").await?;
    let (sender, mut told) = tokio::sync::mpsc::unbounded_channel::<HeaderMap>();
    let body = bytes.clone();
    let elsewhere = Router::new().route(
        "/layer",
        get(move |headers: HeaderMap| {
            let (sender, body) = (sender.clone(), body.clone());
            async move {
                let _ = sender.send(headers);
                body
            }
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let place = format!("http://localhost:{}/layer", listener.local_addr()?.port());
    let server = tokio::spawn(async move { axum::serve(listener, elsewhere).await });
    tap.blobs(Blobs::Divert(place));

    let careful = cache(&origin, &tap, |_| ()).await?;
    expect(&anonymous(&careful, MANIFEST).await?, StatusCode::OK)?;
    let refused = anonymous(&careful, &blob(&bytes)).await?;
    ensure!(refused.status().is_server_error(), "{refused:?}");
    ensure!(told.try_recv().is_err(), "a private address was asked");

    let node = cache(&origin, &tap, |config| {
        config.import.allowed_networks = vec!["127.0.0.0/8".parse().expect("a network")];
    })
    .await?;
    expect(&anonymous(&node, MANIFEST).await?, StatusCode::OK)?;
    ensure!(anonymous(&node, &blob(&bytes)).await?.bytes().await? == bytes, "another layer");
    ensure!(tap.fetches("/blobs/") > 0, "the upstream was not told the login");
    let headers = told.recv().await.context("nobody was asked")?;
    ensure!(!headers.contains_key("authorization"), "{headers:?}");
    server.abort();

    // A login is told to its token service only where the operator says which that is.
    let tap = Tap::on(&origin, "localhost").await?;
    let strict = cache(&origin, &tap, |config| {
        config.import.allowed_networks = vec!["127.0.0.0/8".parse().expect("a network")];
        if let Some(upstream) = config.upstreams.0.get_mut("origin.example") {
            upstream.login_hosts.clear();
        }
    })
    .await?;
    let refused = anonymous(&strict, MANIFEST).await?;
    expect(&refused, StatusCode::BAD_GATEWAY)?;
    ensure!(refused.text().await?.contains("login_hosts"), "it does not say what to do");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_upstream_is_for_who_may_and_only_what_is_allowed_is_pulled() -> Result<()> {
    let bytes = layer(7);
    let origin = origin(&bytes).await?;
    push_image(&origin, "secret/app", "v1", b"secret").await?;
    let tap = Tap::on(&origin, "127.0.0.1").await?;
    let node = cache(&origin, &tap, |config| {
        if let Some(upstream) = config.upstreams.0.get_mut("origin.example") {
            upstream.visibility = "private".to_owned();
            upstream.allow = vec!["team/*".to_owned()];
        }
    })
    .await?;
    for name in ["alice", "mallory"] {
        let request = json!({ "username": name, "password": PASSWORD });
        let _user: Value = node.call(Method::POST, "users", &request).await?;
    }
    put_member(&node, "projects/origin.example/members/user:alice", "guest").await?;
    let get = async |name: &str, path: &str| {
        let request = node.anonymous_v2(Method::GET, path).basic_auth(name, Some(PASSWORD));
        anyhow::Ok(request.send().await?)
    };
    expect(&anonymous(&node, MANIFEST).await?, StatusCode::UNAUTHORIZED)?;
    expect(&get("mallory", MANIFEST).await?, StatusCode::NOT_FOUND)?;
    ensure!(
        tap.seen(&Method::HEAD, "/manifests/").is_empty(),
        "the upstream was asked for strangers"
    );
    expect(&get("alice", MANIFEST).await?, StatusCode::OK)?;
    expect(&get("alice", &blob(&bytes)).await?, StatusCode::OK)?;
    // By any name, and whatever is here by now.
    for path in ["team/app/manifests/v1?ns=origin.example", MANIFEST, &blob(&bytes)] {
        expect(&get("mallory", path).await?, StatusCode::NOT_FOUND)?;
        expect(&anonymous(&node, path).await?, StatusCode::UNAUTHORIZED)?;
    }
    let forbidden = get("alice", "origin.example/secret/app/manifests/v1").await?;
    expect(&forbidden, StatusCode::FORBIDDEN)?;
    ensure!(tap.seen(&Method::HEAD, "/secret/").is_empty(), "what is not allowed was asked for");
    // A blob that no manifest here refers to is not to be had by its digest.
    let guessed = format!("origin.example/team/app/blobs/{}", sha256(b"secret"));
    expect(&get("alice", &guessed).await?, StatusCode::NOT_FOUND)?;
    ensure!(tap.seen(&Method::GET, &sha256(b"secret")).is_empty(), "it was asked for");
    let mine: Vec<Value> = {
        let request = node.http.get(format!("{}/api/v1/upstreams", node.url));
        request.basic_auth("mallory", Some(PASSWORD)).send().await?.json().await?
    };
    ensure!(mine.is_empty(), "{mine:?}");
    Ok(())
}

/// Reads some of a body, so that it is on its way.
async fn begin(
    answer: Response,
) -> Result<impl futures::Stream<Item = reqwest::Result<bytes::Bytes>>> {
    let mut pieces = Box::pin(answer.bytes_stream());
    pieces.next().await.context("nothing came")??;
    Ok(pieces)
}
