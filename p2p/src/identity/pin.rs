//! Trust before the join: the authority is known by its fingerprint only, which the join token
//! brings.
//!
//! Invariant: the token goes only to a server whose certificate chain contains the authority with
//! that fingerprint, and whose own certificate that authority signed for the name dialled.

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
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore,
    SignatureScheme,
};

use super::Error;
use super::authority::fingerprint;
use super::member::member_hints;

const TOKEN_PREFIX: &str = "shoal-join-v1.";

/// The SHA-256 of an authority's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuthorityPin([u8; 32]);

impl AuthorityPin {
    /// The one that a join token names: `shoal-join-v1.FINGERPRINT.ID.SECRET`.
    ///
    /// # Errors
    /// [`Error::JoinToken`] where the text is no such token.
    pub fn of_token(token: &str) -> Result<Self, Error> {
        let rest = token.strip_prefix(TOKEN_PREFIX).ok_or(Error::JoinToken)?;
        let parts: Vec<&str> = rest.split('.').collect();
        let [fingerprint, id, secret] = parts.as_slice() else { return Err(Error::JoinToken) };
        if id.is_empty() || secret.is_empty() {
            return Err(Error::JoinToken);
        }
        let bytes = URL_SAFE_NO_PAD.decode(fingerprint).map_err(|_| Error::JoinToken)?;
        bytes.try_into().map(Self).map_err(|_| Error::JoinToken)
    }

    /// Whether the authority in `pem` is the one meant.
    pub fn names(&self, pem: &str) -> bool {
        CertificateDer::from_pem_slice(pem.as_bytes())
            .is_ok_and(|certificate| fingerprint(&certificate) == self.0)
    }

    /// The one in `pem`.
    ///
    /// # Errors
    /// [`Error::Pem`] where that is no certificate.
    pub fn of_certificate(pem: &str) -> Result<Self, Error> {
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| Error::Pem)?;
        Ok(Self(fingerprint(&certificate)))
    }

    /// The SHA-256 itself.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.0
    }

    /// TLS that trusts this authority and no other.
    ///
    /// # Errors
    /// [`Error::Tls`], where the library cannot be set up.
    pub fn client_config(self) -> Result<ClientConfig, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = Arc::new(Pinned { pin: self, provider: provider.clone() });
        Ok(ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth())
    }
}

struct Pinned {
    pin: AuthorityPin,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").field("pin", &self.pin).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Pinned {
    /// The pinned authority must be in the chain; from there on the check is the usual one, name
    /// and time included.
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
            .find(|certificate| fingerprint(certificate) == self.pin.0)
            .ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
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

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        Some(member_hints())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_token_names_its_authority() {
        let fingerprint = URL_SAFE_NO_PAD.encode([5; 32]);
        let good = format!("shoal-join-v1.{fingerprint}.id.secret");
        assert_eq!(AuthorityPin::of_token(&good).unwrap(), AuthorityPin([5; 32]));
        for bad in [
            "",
            "shoal-join-v1.AAAA.id.secret",
            &format!("shoal-join-v2.{fingerprint}.id.secret"),
            &format!("shoal-join-v1.{fingerprint}.id"),
            &format!("shoal-join-v1.{fingerprint}..secret"),
            &format!("{good}.more"),
        ] {
            assert!(AuthorityPin::of_token(bad).is_err(), "{bad}");
        }
    }
}
