//! What the HTTPS port speaks: TLS 1.3 and 1.2 and nothing older, HTTP/2 and HTTP/1.1.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use reqwest::Version;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, RootCertStore};

use super::node::{DEADLINE, Node};

#[tokio::test(flavor = "multi_thread")]
async fn clients_get_http_2_where_they_can_and_http_1_1_else() -> Result<()> {
    let node = Node::start().await?;
    let url = format!("{}/health", node.url);
    let answer = node.http.get(&url).send().await?;
    ensure!(answer.version() == Version::HTTP_2, "{:?}", answer.version());
    let authority =
        reqwest::Certificate::from_pem(&std::fs::read(node.path().join("node/ca.pem"))?)?;
    let old =
        reqwest::Client::builder().tls_certs_only([authority]).no_proxy().http1_only().build()?;
    let answer = old.get(&url).send().await?;
    ensure!(answer.version() == Version::HTTP_11, "{:?}", answer.version());
    node.server.stop().await
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(stream)
}

/// The version and the protocol that a client of today agrees on.
fn agreed(address: SocketAddr, authority: &[u8]) -> Result<(ProtocolVersion, Vec<u8>)> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority)?)?;
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = ServerName::from(address.ip());
    let mut client = ClientConnection::new(Arc::new(config), name)?;
    let mut stream = connect(address)?;
    while client.is_handshaking() {
        client.complete_io(&mut stream)?;
    }
    let version = client.protocol_version().context("a version")?;
    Ok((version, client.alpn_protocol().unwrap_or_default().to_vec()))
}

/// A ClientHello (RFC 5246, 7.4.1.2) of a client that knows `version` and nothing later: without
/// `supported_versions`, that is what this field means.
fn hello(version: [u8; 2]) -> Vec<u8> {
    const SUITES: &[u8] =
        &[0xc0, 0x2b, 0xc0, 0x2f, 0xc0, 0x2c, 0xc0, 0x30, 0xc0, 0x09, 0xc0, 0x13, 0, 0x2f];
    // supported_groups, ec_point_formats, signature_algorithms.
    const EXTENSIONS: &[&[u8]] = &[
        &[0, 10, 0, 6, 0, 4, 0, 0x1d, 0, 0x17],
        &[0, 11, 0, 2, 1, 0],
        &[0, 13, 0, 12, 0, 10, 4, 3, 5, 3, 8, 7, 8, 4, 4, 1],
    ];
    let counted = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes(), bytes].concat();
    let mut body = version.to_vec();
    body.extend([7; 32]);
    body.push(0);
    body.extend(counted(SUITES));
    body.extend([1, 0]);
    body.extend(counted(&EXTENSIONS.concat()));
    let message = [&[1, 0], counted(&body).as_slice()].concat();
    [&[0x16, 3, 1], counted(&message).as_slice()].concat()
}

/// The first record that comes back: its type, and the first two bytes of its content.
fn first_record(address: SocketAddr, hello: &[u8]) -> Result<(u8, [u8; 2])> {
    let mut stream = connect(address)?;
    stream.write_all(hello)?;
    let mut record = [0; 7];
    stream.read_exact(&mut record).context("closed without a word")?;
    Ok((record[0], [record[5], record[6]]))
}

/// All that comes back to who speaks no TLS.
fn in_the_clear(address: SocketAddr, request: &[u8]) -> Result<String> {
    let mut stream = connect(address)?;
    stream.write_all(request)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_1_3_is_agreed_on_and_1_1_is_refused() -> Result<()> {
    const HANDSHAKE: u8 = 22;
    const ALERT: u8 = 21;
    const SERVER_HELLO: u8 = 2;
    const FATAL_PROTOCOL_VERSION: [u8; 2] = [2, 70];
    let node = Node::start().await?;
    let address: SocketAddr = node.url.strip_prefix("https://").context("HTTPS")?.parse()?;
    let authority = std::fs::read(node.path().join("node/ca.pem"))?;
    let (agreed, old, older, plain) = tokio::task::spawn_blocking(move || {
        let refused = |version| first_record(address, &hello(version));
        Ok::<_, anyhow::Error>((
            agreed(address, &authority)?,
            first_record(address, &hello([3, 3]))?,
            [refused([3, 2])?, refused([3, 1])?],
            [
                in_the_clear(address, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")?,
                in_the_clear(address, &[&b"PUT / HTTP/1.1\r\n"[..], &[b'x'; 100_000]].concat())?,
                in_the_clear(address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?,
            ],
        ))
    })
    .await??;
    ensure!(agreed == (ProtocolVersion::TLSv1_3, b"h2".to_vec()), "{agreed:?}");
    // The same words are understood where they say 1.2.
    ensure!(old.0 == HANDSHAKE && old.1[0] == SERVER_HELLO, "TLS 1.2: {old:?}");
    ensure!(older == [(ALERT, FATAL_PROTOCOL_VERSION); 2], "TLS 1.1 and 1.0: {older:?}");
    // Whoever forgets TLS gets no page, and is told why.
    for answer in plain {
        let (head, body) = answer.split_once("\r\n\r\n").with_context(|| answer.clone())?;
        ensure!(head.starts_with("HTTP/1.1 400 "), "{answer}");
        ensure!(head.contains(&format!("content-length: {}\r\n", body.len())), "{answer}");
        let body: serde_json::Value = serde_json::from_str(body)?;
        ensure!(body["errors"][0]["code"] == "UNSUPPORTED", "{answer}");
        ensure!(body["errors"][0]["message"].as_str().is_some_and(|text| text.contains("HTTPS")));
    }
    node.server.stop().await
}
