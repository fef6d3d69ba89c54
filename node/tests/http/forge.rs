//! Requests that are wrong in every way that raw bytes can be, and tokens that look right and are
//! not. The same randomness makes the same ones.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use shoal_p2p::identity::KeyPair;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::node::DEADLINE;
use super::v2::sha256;

pub const REPOSITORY: &str = "a/private";
pub const LAYER: &[u8] = b"a layer that survives";

/// What a request is made of, and how it goes wrong.
pub struct Forge {
    random: StdRng,
    token: String,
    upload: String,
    false_tokens: Vec<String>,
    /// Paths name nothing else.
    subject: Option<&'static str>,
}

/// A request without credentials.
#[derive(Clone)]
pub struct Forged {
    pub method: &'static str,
    pub path: String,
    /// Lines.
    pub headers: String,
    pub body: Vec<u8>,
    pub version: &'static str,
    /// The rest of the head, and the body as it is sent.
    pub framed: Vec<u8>,
}

impl Forged {
    /// As it goes over the wire, with lines of credentials.
    pub fn bytes(&self, credentials: &str) -> Vec<u8> {
        let Self { method, path, headers, version, framed, .. } = self;
        let head = format!(
            "{method} {path} {version}\r\nHost: x\r\nConnection: close\r\n{credentials}{headers}"
        );
        [head.as_bytes(), framed].concat()
    }
}

impl Forge {
    pub fn new(random: StdRng, token: &str, upload: &str) -> Self {
        let (token, upload) = (token.to_owned(), upload.to_owned());
        Self { random, token, upload, false_tokens: Vec::new(), subject: None }
    }

    pub fn with_false_tokens(self, false_tokens: Vec<String>) -> Self {
        Self { false_tokens, ..self }
    }

    /// Has all paths name `subject`.
    pub fn about(self, subject: &'static str) -> Self {
        Self { subject: Some(subject), ..self }
    }

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
        if let Some(subject) = self.subject {
            return subject.to_owned();
        }
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
            9 => {
                let before = self.pick(&["api/v1/images", "api/images", "api/v1/resolve"]);
                format!("/{before}/{name}/{}", self.digest())
            }
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
        let (key, value) = match self.random.random_range(0..10) {
            0 => ("n", self.number()),
            1 => ("last", self.word()),
            2 | 3 => ("digest", self.digest()),
            4 => ("mount", self.digest()),
            5 => ("artifactType", self.word()),
            6 => ("tag", self.word()),
            7 => {
                let (mount, from) = (self.digest(), self.name());
                return format!("{path}{separator}mount={mount}&from={from}");
            }
            8 => ("name", self.name()),
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

    /// A request whose line, headers, framing or body may be wrong in any way.
    pub fn forged(&mut self) -> Forged {
        let method =
            self.pick(&["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "BREW", ""]);
        let version = if self.chance(95) { "HTTP/1.1" } else { self.pick(&["HTTP/9", "", "X"]) };
        let (path, headers, body) = (self.path(), self.headers(), self.body());
        let framed = self.framed(&body);
        Forged { method, path, headers, body, version, framed }
    }

    /// A request, and whether it comes with credentials.
    pub fn request(&mut self) -> (Vec<u8>, bool) {
        if self.chance(2) {
            let length = self.random.random_range(1..5000);
            return (self.noise(length), false);
        }
        let known = self.chance(70);
        let credentials = match known {
            true => format!("Authorization: Bearer {}\r\n", self.token),
            false => match self.random.random_range(0..5) {
                0 => String::new(),
                1 => format!("Authorization: Bearer {}\r\n", self.word()),
                2 => format!("Authorization: Basic {}\r\n", self.word()),
                3 => {
                    let at = self.random.random_range(0..self.false_tokens.len());
                    format!("Authorization: Bearer {}\r\n", self.false_tokens[at])
                }
                _ => format!("Authorization: {}\r\n", self.word()),
            },
        };
        (self.forged().bytes(&credentials), known)
    }
}

/// All that comes back on a connection of its own; nothing where it is closed without an answer.
pub async fn exchange(address: SocketAddr, request: &[u8]) -> Result<Vec<u8>> {
    exchange_patiently(address, request, Duration::ZERO).await
}

/// As `exchange`, but says only after `patience` that nothing more will come: a server may drop
/// what it has not answered by then.
pub async fn exchange_patiently(
    address: SocketAddr,
    request: &[u8],
    patience: Duration,
) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    // The node may have closed already; then there is nothing more to say.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let read = match tokio::time::timeout(patience, stream.read_to_end(&mut answer)).await {
        Ok(read) => read,
        Err(_waited) => {
            let _ = stream.shutdown().await;
            let rest = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
            rest.context("no answer, and the connection stays open")?
        }
    };
    if read.is_err() && answer.is_empty() {
        return Ok(Vec::new());
    }
    // An interim answer comes first where one was asked for.
    while let Some(rest) = answer.strip_prefix(b"HTTP/1.1 100 Continue\r\n\r\n") {
        answer = rest.to_vec();
    }
    Ok(answer)
}

/// Tokens made out of a good one that nobody may be let in with, each with what is wrong with it.
pub fn false_tokens(good: &str) -> Result<Vec<(&'static str, String)>> {
    let mut parts = good.split('.');
    let mut part = || parts.next().context("a token has three parts");
    let (header, payload, signature) = (part()?, part()?, part()?);
    let claims: Value = serde_json::from_slice(&BASE64.decode(payload)?)?;
    let key = KeyPair::generate()?;
    let text = |value: &Value| BASE64.encode(value.to_string());
    let signed = |header: &Value, payload: &str| {
        let message = format!("{}.{payload}", text(header));
        let signature = BASE64.encode(key.sign(message.as_bytes()));
        format!("{message}.{signature}")
    };
    let with = |changes: Value| {
        let mut claims = claims.clone();
        for (name, value) in changes.as_object().into_iter().flatten() {
            claims[name] = value.clone();
        }
        claims
    };
    let ours = json!({ "alg": "EdDSA", "typ": "JWT" });
    let own = with(json!({ "iss": key.peer_id().to_string(), "sub": key.peer_id().to_string() }));
    let machine = |kind: &str| json!({ "alg": "EdDSA", "typ": kind });
    let none = json!({ "alg": "none", "typ": "JWT" });
    let public = BASE64.encode(key.peer_id().as_public_key());
    let brought = json!({ "alg": "EdDSA", "typ": "JWT", "kid": "../../../dev/null",
        "jwk": { "kty": "OKP", "crv": "Ed25519", "x": public } });
    let later = text(&with(json!({ "exp": 4_102_444_800_u64 })));
    let other = text(&with(json!({ "sub": "root" })));
    let deep = BASE64.encode("[".repeat(2000));
    let flipped = signature.char_indices().map(|(at, letter)| match (at, letter) {
        (0, 'A') => 'B',
        (0, _) => 'A',
        _ => letter,
    });
    Ok(vec![
        ("another key", signed(&ours, payload)),
        ("another key that comes along", signed(&brought, payload)),
        ("no algorithm and no signature", format!("{}.{payload}.", text(&none))),
        ("no algorithm, and a signature", format!("{}.{payload}.{signature}", text(&none))),
        ("another algorithm", {
            let header = text(&json!({ "alg": "HS256", "typ": "JWT" }));
            format!("{header}.{payload}.{signature}")
        }),
        ("an unknown algorithm", signed(&json!({ "alg": "Ed448", "typ": "JWT" }), payload)),
        ("no kind", signed(&json!({ "alg": "EdDSA" }), payload)),
        ("an unknown kind", signed(&machine("at+jwt"), payload)),
        ("a later end", format!("{header}.{later}.{signature}")),
        ("another account", format!("{header}.{other}.{signature}")),
        ("a flipped signature", format!("{header}.{payload}.{}", flipped.collect::<String>())),
        ("a short signature", format!("{header}.{payload}.{}", &signature[..40])),
        ("a long signature", format!("{header}.{payload}.{signature}AAAA")),
        ("no signature", format!("{header}.{payload}.")),
        ("two parts", format!("{header}.{payload}")),
        ("four parts", format!("{good}.{signature}")),
        ("an agent that is not enrolled", signed(&machine("shoal-agent+jwt"), &text(&own))),
        ("a node that is none", signed(&machine("shoal-node+jwt"), &text(&own))),
        ("an agent in the cluster's name", signed(&machine("shoal-agent+jwt"), payload)),
        ("a node in the cluster's name", signed(&machine("shoal-node+jwt"), payload)),
        ("no claims", signed(&ours, &text(&json!({})))),
        ("claims that are none", signed(&ours, &text(&json!([1, 2, 3])))),
        ("deep claims", signed(&ours, &deep)),
        ("claims of other kinds", signed(&ours, &text(&with(json!({ "exp": [], "sub": 7 }))))),
        ("an end out of range", signed(&ours, &text(&with(json!({ "exp": -1, "iat": 1e300 }))))),
        ("a long account", signed(&ours, &text(&with(json!({ "sub": "a".repeat(5000) }))))),
        ("more than a header takes", signed(&ours, &text(&with(json!({ "x": "a".repeat(9000) }))))),
    ])
}
