//! Decides whether the node at a URL is the one meant: by the system's roots, by an authority
//! given beforehand, or by one that a person has looked at and accepted once.
//!
//! Invariant: an accepted certificate becomes the only root of its context, and every later
//! connection is checked against it in full. Nothing secret is sent before trust is settled.

use std::fs;
use std::io::{self, IsTerminal};
use std::net::{IpAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};
use sha2::{Digest, Sha256};

use crate::config::Trust;
use crate::error::Error;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const CA_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What the person said about trust on the command line.
#[derive(Debug, Clone, Copy)]
pub enum Wish<'a> {
    /// The system's roots, else show the authority's fingerprint and ask.
    Ask,
    /// This authority (a PEM file).
    File(&'a Path),
    /// The authority that the node presents, if it has this SHA-256.
    Fingerprint(&'a str),
    SkipVerify,
}

/// An HTTP client that checks nodes as `trust` says.
pub fn http_client(trust: &Trust) -> Result<reqwest::Client, Error> {
    let builder = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")));
    let builder = match trust {
        Trust::System => builder,
        Trust::SkipVerify => builder.tls_danger_accept_invalid_certs(true),
        Trust::Authority(pem) => {
            let roots = reqwest::Certificate::from_pem_bundle(pem.as_bytes())
                .map_err(|error| Error::Untrusted(format!("the stored CA: {error}")))?;
            builder.tls_certs_only(roots)
        }
    };
    builder.build().map_err(|error| Error::Untrusted(error.to_string()))
}

/// A URL that may be talked to: HTTPS, or HTTP on loopback. A missing scheme means HTTPS.
pub fn parse_url(text: &str) -> Result<Url, Error> {
    let full = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let refuse = |reason: &str| Error::Usage(format!("'{text}': {reason}"));
    let url = Url::parse(&full).map_err(|error| refuse(&error.to_string()))?;
    match url.scheme() {
        "https" => {}
        "http" if is_loopback(&url) => {}
        "http" => return Err(refuse("without TLS only on loopback; use https://")),
        _ => return Err(refuse("the address of a node is https://HOST:PORT")),
    }
    if url.path() != "/" || !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("only https://HOST:PORT, without a path or a user"));
    }
    Ok(url)
}

pub fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(|host| {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}

/// SHA-256 of a certificate, as people compare it.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex::encode(Sha256::digest(certificate))
}

/// Settles how nodes of the cluster at `url` are checked from now on.
pub async fn settle(url: &Url, wish: Wish<'_>) -> Result<Trust, Error> {
    match wish {
        Wish::SkipVerify if is_loopback(url) => Ok(Trust::SkipVerify),
        Wish::SkipVerify => Err(Error::Usage(
            "--insecure-skip-verify is for loopback only; use --ca or --fingerprint".into(),
        )),
        Wish::File(path) => authority_from_file(path),
        _ if url.scheme() == "http" => Ok(Trust::System),
        Wish::Fingerprint(wanted) => {
            let authority = presented_authority(url).await?;
            let found = fingerprint(&authority);
            let wanted = wanted.replace(':', "").to_lowercase();
            if found != wanted {
                let reason = format!("its authority has the fingerprint {found}, not {wanted}");
                return Err(Error::Untrusted(reason));
            }
            Ok(Trust::Authority(to_pem(&authority)))
        }
        Wish::Ask => {
            let system = http_client(&Trust::System)?;
            let health = system.get(url.join("health").expect("a plain path"));
            if health.timeout(HANDSHAKE_TIMEOUT).send().await.is_ok() {
                return Ok(Trust::System);
            }
            let authority = presented_authority(url).await?;
            ask(url, &fingerprint(&authority))?;
            Ok(Trust::Authority(to_pem(&authority)))
        }
    }
}

fn ask(url: &Url, fingerprint: &str) -> Result<(), Error> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        let reason = format!(
            "this machine does not know the authority of {url} (SHA-256 {fingerprint}), \
             and there is no terminal to ask on"
        );
        return Err(Error::Untrusted(reason));
    }
    eprintln!("The authority of {url} is not known here. Its SHA-256 fingerprint is");
    eprintln!("  {fingerprint}");
    eprintln!("The node prints the same when it starts for the first time.");
    eprint!("Trust it from now on? [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(Error::file("reading", "the terminal"))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Error::Untrusted("you did not accept it".into())),
    }
}

fn authority_from_file(path: &Path) -> Result<Trust, Error> {
    let length = fs::metadata(path).map_err(Error::file("reading", path))?.len();
    if length > CA_FILE_BYTES_MAX {
        return Err(Error::Usage(format!("{} is too big for a CA", path.display())));
    }
    let pem = fs::read_to_string(path).map_err(Error::file("reading", path))?;
    let found = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(certificates) if !certificates.is_empty() => Ok(Trust::Authority(pem)),
        _ => Err(Error::Usage(format!("{} holds no PEM certificate", path.display()))),
    }
}

/// The last certificate of the chain that the node presents.
async fn presented_authority(url: &Url) -> Result<CertificateDer<'static>, Error> {
    let host = url.host_str().unwrap_or_default().to_owned();
    let port = url.port_or_known_default().unwrap_or(443);
    let chain = tokio::task::spawn_blocking(move || presented_chain(&host, port)).await;
    let chain = chain.map_err(|error| Error::Untrusted(error.to_string()))?;
    let chain = chain.map_err(|error| Error::Unreachable(format!("{url}: {error}")))?;
    chain.into_iter().last().ok_or_else(|| Error::Untrusted("it presents no certificate".into()))
}

fn presented_chain(host: &str, port: u16) -> io::Result<Vec<CertificateDer<'static>>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in (bare, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => return handshake(bare, stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn handshake(host: &str, mut stream: TcpStream) -> io::Result<Vec<CertificateDer<'static>>> {
    stream.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
    stream.set_write_timeout(Some(HANDSHAKE_TIMEOUT))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Presenting(provider)))
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let mut connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    let chain = connection.peer_certificates().unwrap_or_default();
    Ok(chain.iter().map(|certificate| certificate.clone().into_owned()).collect())
}

fn to_pem(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap_or("")).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Looks at a chain without judging it: nothing but the handshake goes over such a connection.
#[derive(Debug)]
struct Presenting(Arc<CryptoProvider>);

impl ServerCertVerifier for Presenting {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
