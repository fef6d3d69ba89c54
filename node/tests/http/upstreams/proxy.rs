//! An upstream that only a proxy reaches.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use reqwest::StatusCode;
use shoal_node::config::{Config, Upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::super::node::Node;
use super::super::v2::expect;
use super::super::wait::level_raised;
use super::tap::{Blobs, Tap};
use super::{MANIFEST, anonymous, blob, layer, origin, project_made, settings};

const HEAD_BYTES_MAX: usize = 64 << 10;
const USERNAME: &str = "node";
const PASSWORD: &str = "proxy-secret";

/// A proxy that lets in who knows the password, and remembers what it was asked for.
struct Proxy {
    asked: Arc<Mutex<Vec<String>>>,
    url: String,
    server: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Proxy {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let lines = Arc::clone(&asked);
        let server = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let asked = Arc::clone(&lines);
                // A client that goes away is the test's to notice.
                tokio::spawn(async move { drop(pass(client, &asked).await) });
            }
        });
        Ok(Self { asked, url, server })
    }

    /// The request lines that it was let pass.
    fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

/// One request, or one tunnel (RFC 9110, 9.3.6; RFC 9112, 3.2.2).
async fn pass(mut client: TcpStream, asked: &Mutex<Vec<String>>) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < HEAD_BYTES_MAX, "a head without an end");
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8(head)?;
    let login = format!("Basic {}", STANDARD.encode(format!("{USERNAME}:{PASSWORD}")));
    let known = head.lines().any(|line| {
        line.split_once(": ").is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("proxy-authorization") && value == login
        })
    });
    if !known {
        let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\n\
             Proxy-Authenticate: Basic realm=\"proxy\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        client.write_all(refusal.as_bytes()).await?;
        return Ok(client.shutdown().await?);
    }
    let (line, rest) = head.split_once("\r\n").context("no request line")?;
    asked.lock().push(line.to_owned());
    let mut words = line.split(' ');
    let (method, target) = (words.next().context("no method")?, words.next().context("no target")?);
    let mut server = if method == "CONNECT" {
        let server = TcpStream::connect(target).await?;
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
        server
    } else {
        let (host, path) = target
            .strip_prefix("http://")
            .and_then(|target| target.split_once('/'))
            .context("the target is no absolute address")?;
        let mut server = TcpStream::connect(host).await?;
        // One request for each connection: the tap closes them.
        server.write_all(format!("{method} /{path} HTTP/1.1\r\n{rest}").as_bytes()).await?;
        server
    };
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

/// A node that reaches its upstream by a proxy.
async fn behind(
    origin: &Node,
    url: &str,
    proxy: &Proxy,
    change: impl FnOnce(&mut Upstream, &mut Vec<ipnet::IpNet>),
) -> Result<Node> {
    let secret = origin.path().join("proxy-password");
    std::fs::write(&secret, format!("{PASSWORD}\n"))?;
    let told = |config: &mut Config| {
        settings(config, origin, url)?;
        let networks = &mut config.import.allowed_networks;
        let upstream = config.upstreams.0.get_mut("origin.example").context("no upstream")?;
        upstream.proxy = Some(proxy.url.clone());
        upstream.proxy_username = USERNAME.to_owned();
        upstream.proxy_password_file = Some(secret);
        change(upstream, networks);
        anyhow::Ok(())
    };
    let mut outcome = Ok(());
    let node = Node::start_with(|config| outcome = told(config)).await?;
    outcome?;
    level_raised(&node).await?;
    project_made(&node).await?;
    Ok(node)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_behind_a_proxy_is_pulled_through_in_the_open_and_by_tls() -> Result<()> {
    let bytes = layer(30);
    let origin = origin(&bytes).await?;
    let tap = Tap::on(&origin, "127.0.0.1").await?;
    // In the open the proxy sees each request; by TLS a tunnel to the host.
    for (url, line) in [(tap.url(), format!("HEAD {}/v2/", tap.url())), {
        let host = origin.url.trim_start_matches("https://");
        (origin.url.clone(), format!("CONNECT {host}"))
    }] {
        let proxy = Proxy::start().await?;
        let node = behind(&origin, &url, &proxy, |_, _| ()).await?;
        let manifest = anonymous(&node, MANIFEST).await?;
        expect(&manifest, StatusCode::OK)?;
        ensure!(anonymous(&node, &blob(&bytes)).await?.bytes().await? == bytes, "another layer");
        let asked = proxy.asked();
        ensure!(asked.iter().any(|asked| asked.starts_with(&line)), "no {line} in {asked:?}");
    }
    ensure!(tap.fetches("/blobs/") == 1, "{:?}", tap.fetches("/blobs/"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_asked_for_no_host_that_is_not_named_and_says_what_it_wants() -> Result<()> {
    let bytes = layer(31);
    let origin = origin(&bytes).await?;
    let tap = Tap::on(&origin, "127.0.0.1").await?;
    let elsewhere = Tap::on(&origin, "127.0.0.1").await?;
    let port = elsewhere.address.port();
    let proxy = Proxy::start().await?;
    // What a name stands for is the proxy's to look up, so names are on a list.
    let node = behind(&origin, &tap.url(), &proxy, |_, _| ()).await?;
    expect(&anonymous(&node, MANIFEST).await?, StatusCode::OK)?;
    tap.blobs(Blobs::Divert(format!("http://localhost:{port}/v2/")));
    let refused = anonymous(&node, &blob(&bytes)).await?;
    expect(&refused, StatusCode::BAD_GATEWAY)?;
    let text = refused.text().await?;
    ensure!(text.contains("localhost") && text.contains("proxy_hosts"), "{text}");
    // An address that is not public is one however it is reached.
    let listed = behind(&origin, &tap.url(), &proxy, |upstream, _| {
        upstream.proxy_hosts = vec!["*".to_owned()];
    })
    .await?;
    expect(&anonymous(&listed, MANIFEST).await?, StatusCode::OK)?;
    tap.blobs(Blobs::Divert(format!("http://127.0.0.1:{port}/v2/")));
    let refused = anonymous(&listed, &blob(&bytes)).await?;
    expect(&refused, StatusCode::BAD_GATEWAY)?;
    ensure!(refused.text().await?.contains("no public address"), "it does not say why");
    let asked = proxy.asked();
    let there = format!(":{port}/");
    ensure!(!asked.iter().any(|line| line.contains(&there)), "{asked:?}");
    tap.blobs(Blobs::Divert(format!("http://localhost:{port}/layer")));
    // It is asked for, and has no such thing.
    expect(&anonymous(&listed, &blob(&bytes)).await?, StatusCode::NOT_FOUND)?;
    let asked = proxy.asked();
    ensure!(asked.iter().any(|line| line.contains(&there)), "{asked:?}");

    // A login that the proxy does not take.
    for url in [tap.url(), origin.url.clone()] {
        let stranger = behind(&origin, &url, &proxy, |upstream, _| {
            upstream.proxy_username = "nobody".to_owned();
        })
        .await?;
        let refused = anonymous(&stranger, MANIFEST).await?;
        expect(&refused, StatusCode::BAD_GATEWAY)?;
        let text = refused.text().await?;
        ensure!(text.contains("proxy_username"), "{text}");
    }
    Ok(())
}
