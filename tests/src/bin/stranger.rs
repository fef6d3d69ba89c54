//! Knocks at a QUIC port without a certificate, or with one of its own making, and prints
//! `refused` where it got no byte and no stream; else what it got.
//!
//! It is a program of its own because the doors stand in other network namespaces.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

/// A server that lets a stranger in is found out within this; a refusal comes much sooner.
const PATIENCE: Duration = Duration::from_secs(5);

/// Trusts everyone: the question is whom the server trusts.
#[derive(Debug)]
struct Gullible(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = || arguments.next().context("usage: stranger ADDRESS ALPN none|own");
    let address: SocketAddr = argument()?.parse()?;
    let protocol = argument()?;
    let own_certificate = argument()? == "own";

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible(provider)));
    let mut tls = if own_certificate {
        let made = rcgen::generate_simple_self_signed(vec!["node.shoal.internal".to_owned()])?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        builder.with_client_auth_cert(vec![made.cert.der().clone()], key)?
    } else {
        builder.with_no_client_auth()
    };
    tls.alpn_protocols = vec![protocol.into_bytes()];
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(tls)?;
    let mut endpoint = quinn::Endpoint::client("0.0.0.0:0".parse()?)?;
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(config)));

    match tokio::time::timeout(PATIENCE, knock(&endpoint, address)).await {
        Ok(Err(refusal)) => {
            eprintln!("{refusal:#}");
            println!("refused");
        }
        Ok(Ok(bytes)) => println!("got {bytes} bytes"),
        Err(_) => println!("the connection stayed open"),
    }
    Ok(())
}

/// TLS 1.3 lets a client think it is in before the server has looked at its certificate, so only
/// an answer, or a connection that stays, counts as being let in.
async fn knock(endpoint: &quinn::Endpoint, address: SocketAddr) -> Result<usize> {
    let connection = endpoint.connect(address, "node.shoal.internal")?.await?;
    let (mut send, mut receive) = connection.open_bi().await?;
    send.write_all(&[0; 64]).await?;
    Ok(receive.read(&mut [0; 64]).await?.unwrap_or_default())
}
