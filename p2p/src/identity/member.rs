//! How members of the cluster and people share one HTTPS port, though they trust different
//! authorities.
//!
//! A node may serve a certificate of the operator's own, which browsers and docker trust. Members
//! (agents, nodes, whoever joins) trust the cluster's authority instead, and say so in the
//! handshake: TLS 1.3 lets a client name the authorities it accepts (RFC 8446, 4.2.4). They name
//! [`MEMBER_HINT`], which stands for the cluster's authority whatever the cluster: who joins knows
//! its fingerprint only.

use std::sync::{Arc, OnceLock};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ClientHello;
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, SignatureScheme};

use super::{Error, Trust};

/// `CN=shoal-cluster`, in DER (X.501): a sequence of a set of a sequence of the attribute's object
/// identifier (2.5.4.3) and its text.
const MEMBER_HINT: [u8; 26] = *b"\x30\x18\x31\x16\x30\x14\x06\x03\x55\x04\x03\x0c\x0dshoal-cluster";

/// What a member's verifier gives as its root hints.
pub(super) fn member_hints() -> &'static [DistinguishedName] {
    static HINTS: OnceLock<[DistinguishedName; 1]> = OnceLock::new();
    HINTS.get_or_init(|| [DistinguishedName::from(MEMBER_HINT.to_vec())])
}

/// Whether the client wants the cluster's own certificate.
pub fn is_member(hello: &ClientHello<'_>) -> bool {
    let named = hello.certificate_authorities().unwrap_or_default();
    named.iter().any(|name| name.as_ref() == MEMBER_HINT)
}

/// TLS of a member that believes as `trust` says when a handshake begins: the cluster's authority, and
/// others that it was told.
///
/// # Errors
/// [`Error::Tls`], where the library cannot be set up with them.
pub fn member_client(trust: Trust) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Member(trust)))
        .with_no_client_auth();
    // In a resumed session no certificate is looked at, whoever is believed by then.
    tls.resumption = Resumption::disabled();
    Ok(tls)
}

/// The usual check, with the hint.
#[derive(Debug)]
struct Member(Trust);

impl ServerCertVerifier for Member {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let usual = self.0.servers();
        usual.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.servers().verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.servers().verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.servers().supported_verify_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        Some(member_hints())
    }
}
