//! Ten thousand malformed requests, as raw bytes: none is a failure of the node, and none tells a
//! stranger what exists.
//!
//! The seed is printed with whatever fails; `SHOAL_TEST_SEED` replays it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::node::{DEADLINE, Node, free_tcp};
use super::v2::{push_image, sha256};

const REQUESTS: usize = 10_000;
const CLIENTS: usize = 8;
const SEED_DEFAULT: u64 = 20_261_121;
const REPOSITORY: &str = "a/private";
const LAYER: &[u8] = b"a layer that survives";

/// What a request is made of, and how it goes wrong.
struct Forge {
    random: StdRng,
    token: String,
    upload: String,
}

impl Forge {
    fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.random.random_range(0..choices.len())]
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn noise(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.random.random()).collect()
    }

    fn word(&mut self) -> String {
        let length = [0, 1, 3, 20, 128, 300, 3000][self.random.random_range(0..7)];
        let alphabet: Vec<char> = "aZ09._-/:@%+~ \u{e9}'\"<>&=?#;,*\\".chars().collect();
        (0..length).map(|_| alphabet[self.random.random_range(0..alphabet.len())]).collect()
    }

    fn name(&mut self) -> String {
        if self.chance(20) {
            return self.word();
        }
        let names =
            [REPOSITORY, "a/missing", "A/B", "../..", "a//b", "-", "a/%2e%2e", "library", "_", ""];
        self.pick(&names).to_owned()
    }

    fn digest(&mut self) -> String {
        match self.random.random_range(0..8) {
            0 => self.word(),
            1 => sha256(LAYER),
            2 => format!("sha256:{}", "g".repeat(64)),
            3 => format!("sha256:{}", "A".repeat(64)),
            4 => format!("sha512:{}", "0".repeat(64)),
            5 => format!("sha256:{}", "0".repeat(self.random.random_range(0..200))),
            6 => format!("{}:{}", self.word(), self.word()),
            _ => format!("sha256:{:064x}", self.random.random::<u128>()),
        }
    }

    fn number(&mut self) -> String {
        let numbers = [
            "0",
            "1",
            "-1",
            "18446744073709551615",
            "18446744073709551616",
            "9e9",
            "0x10",
            "",
            " 5",
            "٣",
            "1.5",
            "+7",
        ];
        self.pick(&numbers).to_owned()
    }

    fn path(&mut self) -> String {
        let name = self.name();
        let path = match self.random.random_range(0..14) {
            0 => format!("/v2/{name}/manifests/{}", self.digest()),
            1 => format!("/v2/{name}/manifests/{}", self.word()),
            2 => format!("/v2/{name}/blobs/{}", self.digest()),
            3 => format!("/v2/{name}/blobs/uploads/"),
            4 => format!("/v2/{name}/blobs/uploads/{}", self.word()),
            5 => format!("/v2/{REPOSITORY}/blobs/uploads/{}", self.upload),
            6 => format!("/v2/{name}/tags/list"),
            7 => "/v2/_catalog".into(),
            8 => format!("/v2/{name}/referrers/{}", self.digest()),
            9 => format!("/api/v1/images/{name}"),
            10 => format!("/api/v1/{}", self.word()),
            11 => {
                let rest = self.pick(&[
                    "deployments",
                    "join-tokens",
                    "agents/enrol",
                    "cluster/join",
                    "auth/login",
                    "resolve",
                    "images",
                    "agents/self/orders",
                ]);
                format!("/api/v1/{rest}")
            }
            12 => format!("/v2/token?service={}&scope={}", self.word(), self.word()),
            _ => self.word(),
        };
        if !self.chance(50) {
            return path;
        }
        let separator = if path.contains('?') { '&' } else { '?' };
        let (key, value) = match self.random.random_range(0..8) {
            0 => ("n", self.number()),
            1 => ("last", self.word()),
            2 | 3 => ("digest", self.digest()),
            4 => ("mount", self.digest()),
            5 => ("artifactType", self.word()),
            6 => ("tag", self.word()),
            _ => ("limit", self.number()),
        };
        format!("{path}{separator}{key}={value}")
    }

    fn headers(&mut self) -> String {
        let mut lines = String::new();
        for _ in 0..self.random.random_range(0..5) {
            let (low, high) = (self.number(), self.number());
            let line = match self.random.random_range(0..9) {
                0 => format!("Range: bytes={low}-{high}"),
                1 => format!("Range: {}", self.word()),
                2 => format!("Content-Range: {low}-{high}"),
                3 => format!("Content-Range: bytes {low}-{high}/*"),
                4 => format!("Accept: {}", self.word()),
                5 => format!("Content-Type: {}", self.word()),
                6 => format!("X-Request-Id: {}", self.word()),
                7 => format!("Cookie: {}", self.word()),
                _ => format!("Expect: {}", self.pick(&["100-continue", "nothing", ""])),
            };
            lines += &format!("{line}\r\n");
        }
        lines
    }

    fn body(&mut self) -> Vec<u8> {
        match self.random.random_range(0..9) {
            0 => Vec::new(),
            1 => {
                let length = self.random.random_range(0..2000);
                self.noise(length)
            }
            // Deep, wide and contradictory JSON.
            2 => b"[".repeat(100_000),
            3 => b"{\"a\":".repeat(20_000),
            4 => format!("{{\"schemaVersion\":{}}}", self.number()).into_bytes(),
            5 => format!(
                "{{\"schemaVersion\":2,\"mediaType\":\"{}\",\"config\":{{\"digest\":\"{}\",\
                 \"size\":{},\"mediaType\":\"x\"}},\"layers\":[{{\"digest\":\"{}\",\"size\":-1}}]}}",
                self.pick(&[
                    "application/vnd.oci.image.manifest.v1+json",
                    "application/vnd.oci.image.index.v1+json",
                    "text/plain",
                ]),
                self.digest(),
                self.number(),
                self.digest()
            )
            .into_bytes(),
            6 => {
                let fields = format!(
                    "{{\"name\":\"{}\",\"username\":\"{}\",\"image\":\"{}\",\"hosts\":[{}],\
                     \"token\":\"{}\",\"role\":\"{}\"}}",
                    self.name(),
                    self.pick(&["admin", "", "nobody"]),
                    self.name(),
                    self.number(),
                    self.pick(&["", "x.y", "\\u0000"]),
                    self.pick(&["node", "agent", "god"]),
                );
                fields.into_bytes()
            }
            7 => b"{\"a\":1,\"a\":2}".to_vec(),
            _ => b"null".to_vec(),
        }
    }

    /// How the body is framed: rightly, or in one of the wrong ways.
    fn framed(&mut self, body: &[u8]) -> Vec<u8> {
        let length = body.len();
        let (head, sent) = match self.random.random_range(0..12) {
            0 => (format!("Content-Length: {}\r\n", length + 10), body.to_vec()),
            1 => (format!("Content-Length: {}\r\n", self.number()), body.to_vec()),
            2 => (format!("Content-Length: {length}\r\nContent-Length: 3\r\n"), body.to_vec()),
            3 => ("Transfer-Encoding: chunked\r\n".into(), b"zz\r\nx\r\n".to_vec()),
            4 => {
                let chunk = [b"ffffffffffffffff1\r\n", body].concat();
                ("Transfer-Encoding: chunked\r\n".into(), chunk)
            }
            5 => {
                let both = format!("Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n");
                (both, b"0\r\n\r\n".to_vec())
            }
            6 => {
                let size = format!("{length:x};extension=1\r\n");
                let chunks = [size.as_bytes(), body, b"\r\n0\r\ntrailer: x\r\n\r\n"].concat();
                ("Transfer-Encoding: chunked\r\n".into(), chunks)
            }
            7 => ("Transfer-Encoding: gzip\r\n".into(), body.to_vec()),
            _ => (format!("Content-Length: {length}\r\n"), body.to_vec()),
        };
        [head.as_bytes(), b"\r\n", &sent].concat()
    }

    /// A request, and whether it comes with credentials.
    fn request(&mut self) -> (Vec<u8>, bool) {
        if self.chance(2) {
            let length = self.random.random_range(1..5000);
            return (self.noise(length), false);
        }
        let method =
            self.pick(&["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "BREW", ""]);
        let version = if self.chance(95) { "HTTP/1.1" } else { self.pick(&["HTTP/9", "", "X"]) };
        let known = self.chance(70);
        let credentials = match known {
            true => format!("Authorization: Bearer {}\r\n", self.token),
            false => match self.random.random_range(0..4) {
                0 => String::new(),
                1 => format!("Authorization: Bearer {}\r\n", self.word()),
                2 => format!("Authorization: Basic {}\r\n", self.word()),
                _ => format!("Authorization: {}\r\n", self.word()),
            },
        };
        let (path, headers, body) = (self.path(), self.headers(), self.body());
        let head = format!(
            "{method} {path} {version}\r\nHost: x\r\nConnection: close\r\n{credentials}{headers}"
        );
        let mut bytes = head.into_bytes();
        bytes.extend(self.framed(&body));
        (bytes, known)
    }
}

/// The status of the answer; `None` where the connection is closed without one.
async fn send(address: SocketAddr, request: &[u8]) -> Result<Option<u16>> {
    let mut stream = TcpStream::connect(address).await?;
    // The node may have closed already; then there is nothing more to say.
    let _ = stream.write_all(request).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
    if read.context("no answer, and the connection stays open")?.is_err() && answer.is_empty() {
        return Ok(None);
    }
    // An interim answer comes first where one was asked for.
    while let Some(rest) = answer.strip_prefix(b"HTTP/1.1 100 Continue\r\n\r\n") {
        answer = rest.to_vec();
    }
    if answer.is_empty() {
        return Ok(None);
    }
    let head = answer.strip_prefix(b"HTTP/1.1 ").or_else(|| answer.strip_prefix(b"HTTP/1.0 "));
    let status = head.and_then(|rest| rest.get(..3)).context("no status line")?;
    Ok(Some(std::str::from_utf8(status)?.parse()?))
}

/// Gives the statuses that came.
async fn attack(address: SocketAddr, mut forge: Forge, count: usize) -> Result<BTreeSet<u16>> {
    let mut seen = BTreeSet::new();
    for _ in 0..count {
        let (request, known) = forge.request();
        let shown = String::from_utf8_lossy(&request[..request.len().min(1500)]).into_owned();
        let status = send(address, &request).await.with_context(|| shown.clone())?;
        match status {
            // A proposal may meet a limit; what is not understood may be said to be so.
            None | Some(200..=499 | 501 | 505) => {}
            Some(status) => bail!("{status} for {shown:?}"),
        }
        seen.extend(status);
        // Anonymously, what needs credentials looks the same whether it exists or not.
        let path = shown.split(' ').nth(1).unwrap_or_default();
        if !known && path.starts_with(&format!("/v2/{REPOSITORY}/")) {
            let closed = matches!(status, None | Some(400 | 401 | 408 | 413 | 414 | 431 | 501));
            ensure!(closed, "a stranger gets {status:?} for {shown:?}");
        }
    }
    Ok(seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_the_clients_fault_and_harm_nobody() -> Result<()> {
    let seed = match std::env::var("SHOAL_TEST_SEED") {
        Ok(text) => text.parse()?,
        Err(_) => SEED_DEFAULT,
    };
    let plain = free_tcp()?;
    let node = Node::start_with(|config| config.http.plain_listen = Some(plain)).await?;
    push_image(&node, REPOSITORY, "v1", LAYER).await?;
    let session = super::v2::open_upload(&node, REPOSITORY).await?;
    let upload: Arc<str> = session.rsplit('/').next().context("an id")?.into();
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let random = StdRng::seed_from_u64(seed.wrapping_add(client as u64));
        let forge = Forge { random, token: node.token().to_owned(), upload: upload.to_string() };
        clients.spawn(attack(plain, forge, REQUESTS / CLIENTS));
    }
    let mut seen = BTreeSet::new();
    while let Some(ended) = clients.join_next().await {
        seen.extend(ended?.with_context(|| format!("SHOAL_TEST_SEED={seed}"))?);
    }
    // Requests that all fail at the door would show nothing of what is behind it.
    for status in [200, 202, 400, 401, 404, 405] {
        ensure!(seen.contains(&status), "no {status} among {seen:?}; SHOAL_TEST_SEED={seed}");
    }
    // It still works, and what was there is there, unless a well-formed DELETE named it.
    let answer = node.v2(Method::GET, "").send().await?;
    ensure!(answer.status().is_success());
    push_image(&node, REPOSITORY, "v2", LAYER).await?;
    let blob = format!("{REPOSITORY}/blobs/{}", sha256(LAYER));
    let got = node.v2(Method::GET, &blob).send().await?.bytes().await?;
    ensure!(got == LAYER, "the blob changed");
    node.server.stop().await
}
