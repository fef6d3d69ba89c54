//! How a new node becomes a member of a cluster: one request with a token, and three files.
//!
//! Order: the key (made with the data folder), the request, the certificates, `member.json`. A join
//! that is cut off anywhere is made again with the same key and gets the same id. What follows is
//! the leader's: it makes the node a member once it runs (see `api`, `cluster`).
//!
//! Invariant: the token goes only to a server whose certificate chain contains the authority that
//! the token names by its fingerprint, and whose own certificate that authority signed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};
use shoal_api::{JoinRequest, JoinResponse, Problem};
use shoal_metadata::COMMAND_VERSION;
use thiserror::Error;

use crate::config::Config;
use crate::home::{self, Home, Member};

const TOKEN_PREFIX: &str = "shoal-join-v1.";
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a node did not join.
#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Home(#[from] home::Error),
    #[error("the join token is none: it reads shoal-join-v1.FINGERPRINT.ID.SECRET")]
    Token,
    #[error("TLS could not be set up")]
    Tls(#[from] rustls::Error),
    #[error("{url} could not be asked")]
    Request { url: String, source: reqwest::Error },
    #[error("{url} refused ({code}): {message}")]
    Refused { url: String, code: String, message: String },
    #[error("{url} answered with another authority than the join token names")]
    Authority { url: String },
}

/// Joins the cluster that `url` is a node of. A node that is a member already is refused.
///
/// # Errors
/// See [`Error`].
pub async fn join(config: &Config, url: &str, token: &str) -> Result<Member, Error> {
    let home = Home::open(&config.node.data_dir)?;
    if home.member()?.is_some() {
        return Err(home::Error::Exists(home.folder().into()).into());
    }
    let token = token.trim();
    let fingerprint = fingerprint_in(token)?;
    let url = url.trim_end_matches('/').to_owned();
    let failed = |source| Error::Request { url: url.clone(), source };
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(pinned(fingerprint)?)
        .https_only(true)
        .no_proxy()
        .timeout(REQUEST_TIMEOUT)
        .build()
        .map_err(failed)?;
    let request = JoinRequest {
        token: token.to_owned(),
        name: config.node.name.clone(),
        csr_pem: home.key().csr_pem().map_err(home::Error::from)?,
        zone: config.node.zone.clone(),
        raft_address: config.raft_address(),
        peer_address: config.peer_address(),
        discovery_address: config.discovery_address(),
        api_url: config.api_url(),
        command_version: COMMAND_VERSION,
    };
    let sent = client.post(format!("{url}/api/v1/cluster/join")).json(&request).send();
    let answer = sent.await.map_err(failed)?;
    if !answer.status().is_success() {
        let status = answer.status();
        let problem = answer.json::<Problem>().await.unwrap_or_else(|_| Problem {
            code: "unknown".into(),
            message: status.to_string(),
            request_id: None,
        });
        return Err(Error::Refused { url, code: problem.code, message: problem.message });
    }
    let joined: JoinResponse = answer.json().await.map_err(failed)?;
    if !is_authority(&joined.authority_pem, &fingerprint) {
        return Err(Error::Authority { url });
    }
    home.save_certificates(&joined.certificate_pem, &joined.authority_pem)?;
    let member = Member { cluster: joined.cluster, node: joined.id.number() };
    home.save_member(&member)?;
    Ok(member)
}

/// The SHA-256 of the authority's certificate that a join token names.
fn fingerprint_in(token: &str) -> Result<[u8; 32], Error> {
    let rest = token.strip_prefix(TOKEN_PREFIX).ok_or(Error::Token)?;
    let parts: Vec<&str> = rest.split('.').collect();
    let [fingerprint, id, secret] = parts.as_slice() else { return Err(Error::Token) };
    if id.is_empty() || secret.is_empty() {
        return Err(Error::Token);
    }
    let bytes = URL_SAFE_NO_PAD.decode(fingerprint).map_err(|_| Error::Token)?;
    bytes.try_into().map_err(|_| Error::Token)
}

fn is_authority(pem: &str, fingerprint: &[u8; 32]) -> bool {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .is_ok_and(|certificate| Sha256::digest(&certificate)[..] == fingerprint[..])
}

/// TLS that trusts the authority with this fingerprint and no other.
fn pinned(fingerprint: [u8; 32]) -> Result<rustls::ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(Pinned { fingerprint, provider: provider.clone() });
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

struct Pinned {
    fingerprint: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Pinned {
    /// The authority that the token names must be in the chain; from there on the check is the
    /// usual one, name and time included.
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| Sha256::digest(certificate)[..] == self.fingerprint[..])
            .ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let provider = self.provider.clone();
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_token_names_its_authority() {
        let fingerprint = URL_SAFE_NO_PAD.encode([5; 32]);
        let good = format!("shoal-join-v1.{fingerprint}.id.secret");
        assert_eq!(fingerprint_in(&good).unwrap(), [5; 32]);
        for bad in [
            "",
            "shoal-join-v1.AAAA.id.secret",
            &format!("shoal-join-v2.{fingerprint}.id.secret"),
            &format!("shoal-join-v1.{fingerprint}.id"),
            &format!("shoal-join-v1.{fingerprint}..secret"),
            &format!("{good}.more"),
        ] {
            assert!(fingerprint_in(bad).is_err(), "{bad}");
        }
    }
}
