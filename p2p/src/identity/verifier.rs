//! Whom a TLS handshake lets in: the cluster's own, in one of the roles asked for.
//!
//! The chain and signature checks are rustls's; only the role is added. TLS 1.2 is not offered.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{Role, Trust};

/// The role that a certificate's one DNS name says, and its raw Ed25519 key.
pub(super) fn role_and_key(certificate: &CertificateDer<'_>) -> Option<(Role, [u8; 32])> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let [GeneralName::DNSName(name)] = names.value.general_names.as_slice() else { return None };
    let role = Role::ALL.into_iter().find(|role| role.server_name() == *name)?;
    let key = <[u8; 32]>::try_from(parsed.public_key().subject_public_key.data.as_ref()).ok()?;
    Some((role, key))
}

fn check_role(certificate: &CertificateDer<'_>, accepted: &[Role]) -> Result<(), Error> {
    match role_and_key(certificate) {
        Some((role, _)) if accepted.contains(&role) => Ok(()),
        _ => Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
    }
}

/// Lets clients in.
#[derive(Debug)]
pub(super) struct ClientGate {
    trust: Trust,
    accepted: Vec<Role>,
}

impl ClientGate {
    pub(super) fn new(trust: Trust, accepted: &[Role]) -> Self {
        Self { trust, accepted: accepted.to_vec() }
    }
}

impl ClientCertVerifier for ClientGate {
    /// None: whoever comes has one certificate to show, whose authority this process may not have
    /// heard of yet.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.trust.clients().verify_client_cert(end_entity, intermediates, now)?;
        check_role(end_entity, &self.accepted)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.trust.clients().verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.trust.clients().verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.clients().supported_verify_schemes()
    }
}

/// Accepts servers.
#[derive(Debug)]
pub(super) struct ServerGate {
    trust: Trust,
    expected: Vec<Role>,
}

impl ServerGate {
    pub(super) fn new(trust: Trust, expected: &[Role]) -> Self {
        Self { trust, expected: expected.to_vec() }
    }
}

impl ServerCertVerifier for ServerGate {
    /// The name dialled is not asked for: a peer's name is its role, and the caller compares the
    /// peer id with the one it wanted.
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let refuse = Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        let (role, _) = role_and_key(end_entity).ok_or(refuse)?;
        check_role(end_entity, &self.expected)?;
        let name = ServerName::try_from(role.server_name())
            .map_err(|_| Error::General("a role's name is no DNS name".into()))?;
        let chain = self.trust.servers();
        chain.verify_server_cert(end_entity, intermediates, &name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.trust.servers().verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.trust.servers().verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.servers().supported_verify_schemes()
    }
}
