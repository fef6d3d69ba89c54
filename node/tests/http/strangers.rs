//! What somebody may not see is answered like what is not there, down to the byte: the same odd
//! request about a private repository and about missing ones, by nobody and by somebody without
//! rights, over HTTP/1.1 and over HTTP/2. And no token is taken for its looks.
//!
//! The seed is printed with whatever fails; `SHOAL_TEST_SEED` replays it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode, Url, Version};
use serde_json::{Value, json};

use super::forge::{Forge, Forged, LAYER, REPOSITORY, exchange_patiently, false_tokens};
use super::node::{Node, free_tcp};
use super::v2::push_image;

const REQUESTS: usize = 500;
const SEED_DEFAULT: u64 = 20_261_122;
/// As long as the private one's name, in a project that is there, and in one that is not.
const MISSING: [&str; 2] = ["a/missing", "z/missing"];
/// An answer that comes before a body was read may be lost with its connection.
const TRIES_MAX: usize = 20;
/// How long a connection stays open on the asker's side where an answer went missing.
const PATIENCE: Duration = Duration::from_secs(5);

fn seed() -> Result<u64> {
    Ok(std::env::var("SHOAL_TEST_SEED").map_or(Ok(SEED_DEFAULT), |text| text.parse())?)
}

/// A person without any right; gives the lines of its credentials.
async fn stranger(node: &Node) -> Result<String> {
    let (name, password) = ("eve", "nothing is hers 7");
    let login = json!({ "username": name, "password": password });
    let _user: Value = node.call(Method::POST, "users", &login).await?;
    let answer: Value = node.call(Method::POST, "auth/login", &login).await?;
    Ok(format!("Authorization: Bearer {}\r\n", answer["token"].as_str().context("a token")?))
}

/// With `MISSING`'s names for the private one's.
fn renamed(bytes: &[u8], to: &str) -> Vec<u8> {
    assert_eq!(to.len(), REPOSITORY.len(), "lengths in the request stay true");
    let mut bytes = bytes.to_vec();
    while let Some(at) = bytes.windows(to.len()).position(|part| part == REPOSITORY.as_bytes()) {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    bytes
}

/// Without what differs between two answers to one request: the name, ids, the time.
fn plain(answer: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(answer).into_owned();
    for name in MISSING {
        text = text.replace(name, REPOSITORY);
    }
    let lines: Vec<&str> = text.split("\r\n").filter(|line| !line.starts_with("date:")).collect();
    let mut out = String::new();
    let mut run = String::new();
    for letter in lines.join("\n").chars().chain(['\n']) {
        if letter.is_ascii_hexdigit() || letter == '-' {
            run.push(letter);
            continue;
        }
        out.push_str(if run.len() >= 32 { "ID" } else { &run });
        out.push(letter);
        run.clear();
    }
    out
}

#[test]
fn what_is_compared_has_names_ids_and_times_apart_and_nothing_else() {
    let answer = b"HTTP/1.1 404 Not Found\r\ndate: now\r\nlocation: /v2/a/missing/uploads/\
        00112233445566778899aabbccddeeff\r\n\r\n{\"code\":\"NAME_UNKNOWN\"}";
    let expected = "HTTP/1.1 404 Not Found\nlocation: /v2/a/private/uploads/ID\n\n\
        {\"code\":\"NAME_UNKNOWN\"}\n";
    assert_eq!(plain(answer), expected);
    assert_eq!(renamed(b"GET a/private a/private", MISSING[1]), b"GET z/missing z/missing");
}

/// Whom a missing name must look the same to: whoever may make a project may also push to one that
/// is not there, and learns so much. A session belongs to a push, whatever is done with it.
fn tells_nothing(forged: &Forged, missing: &str, credentials: &str) -> bool {
    let reads = matches!(forged.method, "GET" | "HEAD") && !forged.path.contains("/blobs/uploads");
    missing == MISSING[0] || credentials.is_empty() || reads
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_private_looks_like_what_is_missing() -> Result<()> {
    let seed = seed()?;
    let address = free_tcp()?;
    let node = Node::start_with(|config| config.http.plain_listen = Some(address)).await?;
    push_image(&node, REPOSITORY, "v1", LAYER).await?;
    let session = super::v2::open_upload(&node, REPOSITORY).await?;
    let upload = session.rsplit('/').next().context("an id")?;
    let eve = stranger(&node).await?;
    let random = StdRng::seed_from_u64(seed);
    let mut forge = Forge::new(random, "", upload).about(REPOSITORY);
    let mut compared = [0; 2];
    for _ in 0..REQUESTS {
        let forged = forge.forged();
        for (place, credentials) in ["", eve.as_str()].into_iter().enumerate() {
            for missing in MISSING {
                if tells_nothing(&forged, missing, credentials) {
                    let said = compare(address, &forged, credentials, missing).await;
                    compared[place] +=
                        usize::from(said.with_context(|| format!("SHOAL_TEST_SEED={seed}"))?);
                }
            }
        }
    }
    ensure!(compared.iter().all(|count| *count > REQUESTS / 3), "{compared:?} were answered");
    // A stranger's pushes went nowhere.
    let tags: Value =
        node.v2(Method::GET, &format!("{REPOSITORY}/tags/list")).send().await?.json().await?;
    ensure!(tags["tags"] == json!(["v1"]), "{tags}");
    node.server.stop().await
}

/// What is answered; nothing where the connection is closed without a word however often it asks.
async fn answer(address: SocketAddr, request: &[u8], patience: Duration) -> Result<String> {
    for _ in 0..TRIES_MAX {
        let answer = exchange_patiently(address, request, patience).await?;
        if !answer.is_empty() {
            return Ok(plain(&answer));
        }
    }
    Ok(String::new())
}

/// Fails where the two answers differ; says whether there was one, and the request was about the
/// repository.
async fn compare(
    address: SocketAddr,
    forged: &Forged,
    credentials: &str,
    missing: &str,
) -> Result<bool> {
    let about = forged.bytes(credentials);
    let twin = renamed(&about, missing);
    if about == twin {
        return Ok(false);
    }
    let ask = async |patience| -> Result<(String, String)> {
        Ok((answer(address, &about, patience).await?, answer(address, &twin, patience).await?))
    };
    let (mut private, mut missing) = ask(Duration::ZERO).await?;
    if private != missing && (private.is_empty() || missing.is_empty()) {
        (private, missing) = ask(PATIENCE).await?;
    }
    if private == missing {
        return Ok(!private.is_empty());
    }
    let shown = String::from_utf8_lossy(&about[..about.len().min(600)]).into_owned();
    bail!("{shown}\n--- is answered where it exists:\n{private}\n--- else:\n{missing}")
}

/// What of a forged request a client of HTTP/2 can say at all.
fn over_http2(node: &Node, forged: &Forged, credentials: &str) -> Option<reqwest::Request> {
    let method = Method::from_bytes(forged.method.as_bytes()).ok()?;
    let path = forged.path.strip_prefix('/')?;
    let url = Url::parse(&format!("{}/{path}", node.url)).ok()?;
    let mut headers = HeaderMap::new();
    for line in credentials.lines().chain(forged.headers.lines()) {
        let (name, value) = line.split_once(": ")?;
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).ok()?);
    }
    // It asks before it sends a body, and this client waits for no answer to that.
    headers.remove("expect");
    let request = node.http.request(method, url).headers(headers).body(forged.body.clone());
    request.build().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_tells_strangers_no_more() -> Result<()> {
    let seed = seed()?;
    let node = Node::start().await?;
    push_image(&node, REPOSITORY, "v1", LAYER).await?;
    let eve = stranger(&node).await?;
    let mut forge = Forge::new(StdRng::seed_from_u64(seed), "", "none").about(REPOSITORY);
    let ask = async |request: reqwest::Request| -> Result<String> {
        let answer = node.http.execute(request).await?;
        ensure!(answer.version() == Version::HTTP_2, "{:?}", answer.version());
        let (status, headers) = (answer.status(), answer.headers().clone());
        let known = status.as_u16() < 500 || matches!(status.as_u16(), 501 | 505);
        ensure!(known, "{status}: {}", answer.text().await?);
        let mut said = format!("{status}\n");
        for (name, value) in headers.iter().filter(|(name, _)| *name != "date") {
            said += &format!("{name}: {value:?}\n");
        }
        Ok(plain((said + &answer.text().await?).as_bytes()))
    };
    let mut compared = 0;
    for _ in 0..REQUESTS {
        let forged = forge.forged();
        let twin = Forged {
            path: forged.path.replace(REPOSITORY, MISSING[0]),
            body: renamed(&forged.body, MISSING[0]),
            ..forged.clone()
        };
        for credentials in ["", &eve] {
            let pair =
                (over_http2(&node, &forged, credentials), over_http2(&node, &twin, credentials));
            let (Some(private), Some(missing)) = pair else { continue };
            let shown = format!("{} {}\n{}", forged.method, forged.path, forged.headers);
            let context = || format!("SHOAL_TEST_SEED={seed}\n{shown}");
            let private = ask(private).await.with_context(context)?;
            let missing = ask(missing).await.with_context(context)?;
            ensure!(
                private == missing,
                "{}--- is answered where it exists:\n{private}\n--- else:\n{missing}",
                context()
            );
            compared += usize::from(forged.path.contains(REPOSITORY));
        }
    }
    ensure!(compared > REQUESTS / 3, "only {compared} were about the repository");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_only_look_right_let_nobody_in() -> Result<()> {
    let node = Node::start().await?;
    push_image(&node, REPOSITORY, "v1", LAYER).await?;
    let private = format!("/v2/{REPOSITORY}/manifests/v1");
    let missing = format!("/v2/{}/manifests/v1", MISSING[0]);
    let token = format!("/v2/token?service=x&scope=repository:{REPOSITORY}:pull");
    let pages = ["/v2/", &private, &missing, &token, "/api/v1/auth/me", "/api/v1/images"];
    for (wrong, token) in false_tokens(node.token())? {
        let mut said = Vec::new();
        for page in pages {
            let request = node.http.get(format!("{}{page}", node.url)).bearer_auth(&token);
            let answer = request.send().await.with_context(|| wrong)?;
            let status = answer.status();
            ensure!(status == StatusCode::UNAUTHORIZED, "{wrong}: {page} answers {status}");
            said.push(plain(answer.text().await?.as_bytes()));
        }
        ensure!(said[1] == said[2], "{wrong}: {} is not {}", said[1], said[2]);
    }
    // The good one is good still, and so is its address.
    let answer = node.v2(Method::GET, &format!("{REPOSITORY}/manifests/v1")).send().await?;
    ensure!(answer.status() == StatusCode::OK);
    node.server.stop().await
}
