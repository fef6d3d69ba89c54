//! Upstreams that mean no good, or cannot do better: each is refused soon, with a reason, after a
//! bounded number of requests and bytes, and leaves nothing here.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use futures::future::try_join_all;
use futures::stream::{pending, repeat};
use parking_lot::Mutex;
use serde_json::json;
use shoal_api::UpstreamInfo;
use shoal_node::config::{Config, Upstream};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::super::node::Node;
use super::super::v2::{expect, sha256};
use super::super::wait::level_raised;
use super::{anonymous, held, layer, project_made_of};

/// An upstream that is silent for longer is given up; one that means well may be slow here.
const SILENCE_SECONDS: u64 = 4;
/// No refusal takes longer, with all that is tried again and on a machine that has more to do.
const SOON: Duration = Duration::from_secs(120);
/// What one of them may send before it is cut off, with what lies in sockets.
const SENT_MAX: u64 = 32 << 20;
const PIECE: usize = 64 << 10;
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// A registry that does to each repository what its name says.
struct Scoundrel {
    line: Arc<Line>,
    port: u16,
    server: JoinHandle<()>,
}

struct Line {
    /// How often each path was asked for.
    asked: Mutex<HashMap<String, usize>>,
    /// Of bodies without an end.
    sent: AtomicU64,
    layer: Bytes,
    manifest: Bytes,
    port: u16,
}

impl Drop for Scoundrel {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Scoundrel {
    async fn start(layer: Vec<u8>) -> Result<Self> {
        let descriptor = |of: &str, bytes: &[u8]| json!({ "mediaType": of, "digest": sha256(bytes), "size": bytes.len() });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE,
            "config": descriptor("application/vnd.oci.image.config.v1+json", b"{}"),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let line = Arc::new(Line {
            asked: Mutex::default(),
            sent: AtomicU64::new(0),
            layer: layer.into(),
            manifest: manifest.to_string().into(),
            port,
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&line));
        let server = tokio::spawn(async move {
            // It ends with the test.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { line, port, server })
    }

    /// How often anything was asked for whose path has this in it.
    fn asked(&self, part: &str) -> usize {
        let asked = self.line.asked.lock();
        asked.iter().filter(|(path, _)| path.contains(part)).map(|(_, count)| count).sum()
    }

    fn sent(&self) -> u64 {
        self.line.sent.load(Ordering::Relaxed)
    }
}

async fn answer(State(line): State<Arc<Line>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    *line.asked.lock().entry(path.clone()).or_default() += 1;
    let Some(rest) = path.strip_prefix("/v2/") else { return token(&line, &path) };
    let how = rest.split('/').next().unwrap_or_default();
    let range = request.headers().get(header::RANGE).and_then(|value| value.to_str().ok());
    let from = range.and_then(|text| text.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    if how == "silent" || (how == "blob-stalls" && from.is_some()) {
        std::future::pending::<()>().await;
    }
    match (path.contains("/blobs/"), request.method() == Method::HEAD) {
        (true, _) => blob(&line, how, from),
        (false, head) => manifest(&line, how, &path, head),
    }
}

/// What is sent on and on, and counted.
fn endless(line: &Arc<Line>) -> Body {
    let line = Arc::clone(line);
    Body::from_stream(repeat(()).map(move |()| {
        line.sent.fetch_add(PIECE as u64, Ordering::Relaxed);
        Ok::<_, Infallible>(Bytes::from(vec![b' '; PIECE]))
    }))
}

/// A byte now and then, for ever.
fn dripping() -> Body {
    let drops = tokio::time::interval(Duration::from_millis(20));
    Body::from_stream(futures::stream::unfold(drops, |mut drops| async move {
        drops.tick().await;
        Some((Ok::<_, Infallible>(Bytes::from_static(b" ")), drops))
    }))
}

fn sent_to(place: &str) -> Response {
    (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, place.to_owned())]).into_response()
}

fn challenge(realm: &str) -> Response {
    let text = format!("Bearer realm=\"{realm}\",service=\"here\"");
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, text)]).into_response()
}

fn token(line: &Arc<Line>, path: &str) -> Response {
    match path {
        "/token/endless" => endless(line).into_response(),
        "/token/refused" => challenge(&format!("http://127.0.0.1:{}{path}", line.port)),
        "/token/sent-on" => sent_to("http://169.254.169.254/token"),
        _ => axum::Json(json!({ "token": "good" })).into_response(),
    }
}

fn manifest(line: &Arc<Line>, how: &str, path: &str, head: bool) -> Response {
    let own = format!("http://127.0.0.1:{}", line.port);
    let typed = |body: Body| ([(header::CONTENT_TYPE, MANIFEST_TYPE)], body).into_response();
    match how {
        "redirects" => sent_to(path),
        "to-metadata" => sent_to("http://169.254.169.254/latest/meta-data/"),
        "to-loopback" => sent_to("http://[::1]:1/"),
        "to-a-name" => sent_to(&format!("http://localhost:{}/", line.port)),
        "to-a-file" => sent_to("file:///etc/passwd"),
        "challenges" => challenge(&format!("{own}/token")),
        "realm" => challenge("http://169.254.169.254/token"),
        "token-endless" => challenge(&format!("{own}/token/endless")),
        "token-refused" => challenge(&format!("{own}/token/refused")),
        "token-sent-on" => challenge(&format!("{own}/token/sent-on")),
        "limited" => {
            let after = [(header::RETRY_AFTER, "99999999")];
            (StatusCode::TOO_MANY_REQUESTS, after).into_response()
        }
        "long-headed" => {
            let long = HeaderValue::from_bytes(&vec![b'x'; 2 << 20]).expect("letters");
            let mut response = typed(Body::empty());
            response.headers_mut().insert("x-long", long);
            response
        }
        "lies" if head => {
            let mut response = typed(Body::empty());
            let other = HeaderValue::from_str(&sha256(b"other")).expect("a digest");
            response.headers_mut().insert("docker-content-digest", other);
            response
        }
        // A digest is not said, so that the next is a GET.
        _ if head => typed(Body::empty()),
        "endless" => typed(endless(line)),
        "drips" => typed(dripping()),
        "empty" => typed(Body::empty()),
        _ => typed(Body::from(line.manifest.clone())),
    }
}

/// From a byte on, where that is asked for.
fn blob(line: &Arc<Line>, how: &str, from: Option<usize>) -> Response {
    let half = line.layer.len() / 2;
    let first = || Ok::<_, std::io::Error>(line.layer.slice(..half));
    let broken = || Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
    let stream = |rest| Body::from_stream(futures::stream::iter([first()]).chain(rest));
    let part = |from: usize, body: Body| {
        let whole = line.layer.len();
        let range = [(header::CONTENT_RANGE, format!("bytes {from}-{}/{whole}", whole - 1))];
        (StatusCode::PARTIAL_CONTENT, range, body).into_response()
    };
    let body = match how {
        "blob-endless" => endless(line),
        "blob-long" => Body::from(vec![0; line.layer.len() + 1]),
        "blob-drips" => match from {
            Some(from) => return part(from, dripping()),
            None => dripping(),
        },
        "blob-stalls" => stream(pending().boxed()),
        // It begins anew in the middle.
        "blob-shifts" if from.is_some() => return part(0, Body::from(line.layer.clone())),
        "blob-shifts" => stream(futures::stream::iter([broken()]).boxed()),
        "blob-gone" => return StatusCode::NOT_FOUND.into_response(),
        "blob-challenges" => {
            return challenge(&format!("http://127.0.0.1:{}/token", line.port));
        }
        _ => Body::from(line.layer.clone()),
    };
    body.into_response()
}

/// A node for which each of these is an upstream, `HOW.example`.
async fn node(scoundrel: &Scoundrel, hows: &[&str]) -> Result<Node> {
    let url = format!("http://127.0.0.1:{}", scoundrel.port);
    let change = |config: &mut Config| {
        for how in hows {
            let upstream = Upstream {
                url: url.clone(),
                visibility: "public".to_owned(),
                tag_seconds: 0,
                silence_seconds: SILENCE_SECONDS,
                ..Upstream::default()
            };
            config.upstreams.0.insert(format!("{how}.example"), upstream);
        }
    };
    let node = Node::start_with(change).await?;
    level_raised(&node).await?;
    for how in hows {
        project_made_of(&node, &format!("{how}.example")).await?;
    }
    Ok(node)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_none_is_refused_soon_with_a_reason_and_within_bounds() -> Result<()> {
    const NO_ADDRESS: &str = "has no public address";
    // With the requests that it may cost.
    let table = [
        ("redirects", StatusCode::BAD_GATEWAY, "redirects without end", 6),
        ("to-metadata", StatusCode::BAD_GATEWAY, NO_ADDRESS, 1),
        ("to-loopback", StatusCode::BAD_GATEWAY, NO_ADDRESS, 1),
        ("to-a-name", StatusCode::BAD_GATEWAY, NO_ADDRESS, 1),
        ("to-a-file", StatusCode::BAD_GATEWAY, "no address of a registry", 1),
        ("challenges", StatusCode::NOT_FOUND, "does not let this node", 2),
        ("realm", StatusCode::BAD_GATEWAY, NO_ADDRESS, 1),
        ("token-endless", StatusCode::BAD_GATEWAY, "its tokens cannot be read", 1),
        ("token-refused", StatusCode::NOT_FOUND, "does not let this node", 1),
        ("token-sent-on", StatusCode::BAD_GATEWAY, "answers 307", 1),
        ("limited", StatusCode::TOO_MANY_REQUESTS, "takes no more requests", 1),
        ("silent", StatusCode::SERVICE_UNAVAILABLE, "cannot be reached", 2),
        ("long-headed", StatusCode::SERVICE_UNAVAILABLE, "cannot be reached", 1),
        ("lies", StatusCode::BAD_GATEWAY, "is sha256:", 2),
        ("endless", StatusCode::BAD_GATEWAY, "its manifest is too long", 2),
        ("drips", StatusCode::SERVICE_UNAVAILABLE, "takes too long", 2),
        ("empty", StatusCode::BAD_GATEWAY, "cannot be kept", 2),
    ];
    let scoundrel = Scoundrel::start(layer(20)).await?;
    let node = node(&scoundrel, &table.map(|(how, ..)| how)).await?;
    let asked = table.iter().map(async |(how, status, reason, _)| {
        let path = format!("{how}.example/{how}/app/manifests/v1");
        let answer = anonymous(&node, &path).await?;
        expect(&answer, *status).context(*how)?;
        if *how == "limited" {
            let after: u64 = answer.headers()["retry-after"].to_str()?.parse()?;
            ensure!((1..=3600).contains(&after), "{after}");
        }
        let text = answer.text().await?;
        ensure!(text.contains(reason), "{how}: {text}");
        anyhow::Ok(())
    });
    tokio::time::timeout(SOON, try_join_all(asked)).await.context("not soon")??;
    for (how, _, _, most) in table {
        let asked = scoundrel.asked(&format!("/v2/{how}/"));
        ensure!((1..=most).contains(&asked), "{how} was asked {asked} times");
        let repository = format!("{how}.example/{how}/app").parse()?;
        let kept = node.server.app().raft.local().query().image_by_name(&repository)?;
        ensure!(kept.is_none(), "{how}: {kept:?}");
    }
    // Four kinds come to tokens, and none more than twice.
    ensure!(scoundrel.asked("/token") <= 8, "{} tokens", scoundrel.asked("/token"));
    ensure!(scoundrel.sent() < SENT_MAX, "{} bytes were taken", scoundrel.sent());
    // Each says what was wrong with it.
    let shown: Vec<UpstreamInfo> = node.get("upstreams").await?;
    let silent = shown.iter().filter(|one| one.last_error.is_none()).map(|one| &*one.name);
    let silent: Vec<&str> = silent.collect();
    ensure!(silent == ["challenges.example", "token-refused.example"], "{silent:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_none_is_cut_off_soon_and_leaves_nothing() -> Result<()> {
    // With what is said of it, where that is before the first byte, and the requests it may cost.
    let table = [
        ("blob-endless", None, "more than its manifest says", 1),
        ("blob-long", Some(StatusCode::BAD_GATEWAY), "not as long as its manifest says", 1),
        ("blob-drips", None, "too slowly", 4),
        ("blob-stalls", None, "", 4),
        ("blob-shifts", None, "not as long as its manifest says", 4),
        ("blob-gone", Some(StatusCode::NOT_FOUND), "", 1),
        ("blob-challenges", Some(StatusCode::NOT_FOUND), "", 2),
    ];
    let bytes = layer(21);
    let digest = sha256(&bytes);
    let scoundrel = Scoundrel::start(bytes.clone()).await?;
    let hows: Vec<&str> = table.iter().map(|(how, ..)| *how).chain(["honest"]).collect();
    let node = node(&scoundrel, &hows).await?;
    let asked = table.iter().map(async |(how, status, ..)| {
        let manifest = anonymous(&node, &format!("{how}.example/{how}/app/manifests/v1")).await?;
        expect(&manifest, StatusCode::OK).context(*how)?;
        let answer = anonymous(&node, &format!("{how}.example/{how}/app/blobs/{digest}")).await?;
        match status {
            Some(status) => expect(&answer, *status).context(*how)?,
            None => {
                expect(&answer, StatusCode::OK).context(*how)?;
                ensure!(answer.bytes().await.is_err(), "{how}: it was given whole");
            }
        }
        anyhow::Ok(())
    });
    tokio::time::timeout(SOON, try_join_all(asked)).await.context("not soon")??;
    let shown: Vec<UpstreamInfo> = node.get("upstreams").await?;
    for (how, _, reason, most) in table {
        let asked = scoundrel.asked(&format!("/v2/{how}/app/blobs/"));
        ensure!((1..=most).contains(&asked), "{how} was asked {asked} times");
        let name = format!("{how}.example");
        let one = shown.iter().find(|one| one.name == name).context("it is not shown")?;
        let said = one.last_error.as_deref().unwrap_or_default();
        ensure!(said.contains(reason), "{how}: {said}");
    }
    ensure!(scoundrel.sent() < SENT_MAX, "{} bytes were taken", scoundrel.sent());
    ensure!(!held(&node, &digest).await?, "something of it is kept");
    // None of them has spoilt what another one gives.
    expect(&anonymous(&node, "honest.example/honest/app/manifests/v1").await?, StatusCode::OK)?;
    let blob = anonymous(&node, &format!("honest.example/honest/app/blobs/{digest}")).await?;
    ensure!(blob.bytes().await? == bytes, "another layer");
    Ok(())
}
