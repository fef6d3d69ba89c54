//! How a node's HTTPS certificate is checked: before the join by the authority's fingerprint in
//! the join token, after it by the authority itself.
//!
//! Invariant: a join sends its token only over a connection whose chain contains the authority
//! with that fingerprint, and whose own certificate that authority signed for the name dialled.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use sha2::{Digest, Sha256};

use super::Error;

const TOKEN_PREFIX: &str = "shoal-join-v1.";

/// The SHA-256 of the authority's certificate that a join token names.
pub fn fingerprint_in(token: &str) -> Result<[u8; 32], Error> {
    let rest = token.strip_prefix(TOKEN_PREFIX).ok_or(Error::Token)?;
    let mut parts = rest.split('.');
    let fingerprint = parts.next().and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
    let complete = parts.clone().count() == 2 && parts.all(|part| !part.is_empty());
    let fingerprint = fingerprint.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    fingerprint.filter(|_| complete).ok_or(Error::Token)
}

/// TLS that trusts the authority with this fingerprint and no other.
pub fn pinned(fingerprint: [u8; 32]) -> Result<ClientConfig, Error> {
    let provider = provider();
    let verifier = Arc::new(Pinned { fingerprint, provider: provider.clone() });
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Tls(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

/// TLS that trusts the authorities in these PEM texts.
pub fn authorities(pems: &[&[u8]]) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    for pem in pems {
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| Error::Tls(format!("{error:?}")))?;
            roots.add(certificate).map_err(|error| Error::Tls(error.to_string()))?;
        }
    }
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Tls(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// Whether the authority in `pem` is the one that the token named.
pub fn is_authority(pem: &str, fingerprint: &[u8; 32]) -> bool {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .is_ok_and(|certificate| Sha256::digest(&certificate)[..] == fingerprint[..])
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

struct Pinned {
    fingerprint: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").field("fingerprint", &hex::encode(self.fingerprint)).finish()
    }
}

impl ServerCertVerifier for Pinned {
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
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
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
        let token = format!("shoal-join-v1.{fingerprint}.id.secret");
        assert_eq!(fingerprint_in(&token).unwrap(), [5; 32]);
        for bad in [
            String::new(),
            format!("shoal-join-v2.{fingerprint}.id.secret"),
            format!("shoal-join-v1.{fingerprint}.id"),
            format!("shoal-join-v1.{fingerprint}..secret"),
            "shoal-join-v1.AAAA.id.secret".into(),
        ] {
            assert!(fingerprint_in(&bad).is_err(), "{bad}");
        }
    }
}
