//! Trust, held against a real TLS server with a small authority of its own.

use std::io::{Read, Write};
use std::net::TcpListener;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::*;

/// Serves `200 OK` over TLS; gives its URL and its authority's certificate.
fn serve() -> (Url, CertificateDer<'static>) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap().der().clone();
    let leaf_key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&leaf_key, &Issuer::new(params, key)).unwrap();
    let chain = vec![leaf.der().clone(), authority.clone()];
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivatePkcs8KeyDer::from(leaf_key.serialize_der()).into())
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = ServerConnection::new(config.clone()).unwrap();
            let mut stream = StreamOwned::new(connection, stream);
            let mut request = [0; 4096];
            // A client that only looks at the certificate sends nothing and goes.
            if stream.read(&mut request).is_ok_and(|count| count > 0) {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                stream.write_all(answer).ok();
            }
        }
    });
    (parse_url(&url).unwrap(), authority)
}

#[tokio::test]
async fn the_right_fingerprint_makes_the_presented_authority_the_only_root() {
    let (url, authority) = serve();
    let colons: Vec<String> = fingerprint(&authority)
        .as_bytes()
        .chunks(2)
        .map(|two| String::from_utf8_lossy(two).to_uppercase())
        .collect();
    let trust = settle(&url, Wish::Fingerprint(&colons.join(":"))).await.unwrap();
    let health = http_client(&trust).unwrap().get(url.join("health").unwrap()).send().await;
    assert!(health.unwrap().status().is_success());

    let (other, _) = serve();
    let refused = http_client(&trust).unwrap().get(other).send().await;
    assert!(refused.is_err(), "another authority's server was trusted");
    assert!(http_client(&Trust::System).unwrap().get(url).send().await.is_err());
}

#[tokio::test]
async fn a_wrong_fingerprint_is_refused_and_the_right_one_named() {
    let (url, authority) = serve();
    let refused = settle(&url, Wish::Fingerprint(&"00".repeat(32))).await.unwrap_err();
    assert!(refused.to_string().contains(&fingerprint(&authority)), "{refused}");
    assert!(matches!(refused, Error::Untrusted(_)));
}

#[tokio::test]
async fn a_file_with_the_authority_is_trust_enough() {
    let (url, authority) = serve();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(to_pem(&authority).as_bytes()).unwrap();
    let trust = settle(&url, Wish::File(file.path())).await.unwrap();
    let health = http_client(&trust).unwrap().get(url).send().await;
    assert!(health.unwrap().status().is_success());
    assert!(matches!(
        authority_from_file(tempfile::NamedTempFile::new().unwrap().path()),
        Err(Error::Usage(_))
    ));
}

#[test]
fn http_is_for_loopback_only() {
    for good in ["https://a:1", "a:5000", "http://127.0.0.1:1", "http://[::1]:1"] {
        assert!(parse_url(good).is_ok(), "{good}");
    }
    assert_eq!(parse_url("node-1:5000").unwrap().scheme(), "https");
    for bad in ["http://a:1", "ftp://a", "https://a/b", "https://u:p@a", "", "http://10.0.0.1"] {
        assert!(parse_url(bad).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn skipping_verification_is_refused_away_from_loopback() {
    let far = parse_url("https://10.1.2.3:5000").unwrap();
    assert!(matches!(settle(&far, Wish::SkipVerify).await, Err(Error::Usage(_))));
    let near = parse_url("https://localhost:5000").unwrap();
    assert_eq!(settle(&near, Wish::SkipVerify).await.unwrap(), Trust::SkipVerify);
}
