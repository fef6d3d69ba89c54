//! The cluster's certificate authority: signs one certificate for each process, and those of the
//! nodes' HTTPS ports.

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ED25519, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use shoal_content::ClusterId;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::{Error, Role};

/// How long the authority's own certificate holds.
const AUTHORITY_DAYS: i64 = 3650;
/// How long a process's or a HTTPS certificate holds.
const LEAF_DAYS: i64 = 397;
pub const CERTIFICATE_LIFETIME: std::time::Duration =
    std::time::Duration::from_secs(LEAF_DAYS as u64 * 24 * 3600);
/// A certificate holds from a while before now, since clocks differ.
const CLOCK_SKEW: Duration = Duration::hours(1);

/// See the module's documentation.
pub struct Authority {
    certificate_pem: String,
    certificate: CertificateDer<'static>,
    key_pem: Zeroizing<String>,
    issuer: Issuer<'static, rcgen::KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("fingerprint", &hex::encode(self.fingerprint()))
            .finish_non_exhaustive()
    }
}

/// A certificate chain (leaf first, then the authority) and its private key, both PEM.
pub struct HttpCertificate {
    pub chain_pem: String,
    pub key_pem: Zeroizing<String>,
}

impl std::fmt::Debug for HttpCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpCertificate").finish_non_exhaustive()
    }
}

impl Authority {
    /// A new authority (ECDSA P-256) for `cluster`.
    ///
    /// # Errors
    /// [`Error::Certificate`] where a key or certificate cannot be made.
    pub fn create(cluster: &ClusterId) -> Result<Self, Error> {
        let key = rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name = common_name(&format!("Shoal {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params, AUTHORITY_DAYS);
        let certificate_pem = params.self_signed(&key)?.pem();
        Self::load(&certificate_pem, &key.serialize_pem())
    }

    /// # Errors
    /// Where either text is not what it should be.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, Error> {
        let key = rcgen::KeyPair::from_pem(key_pem)?;
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|_| Error::Pem)?
            .into_owned();
        Ok(Self {
            certificate_pem: certificate_pem.to_owned(),
            key_pem: Zeroizing::new(key_pem.to_owned()),
            issuer: Issuer::from_ca_cert_der(&certificate, key)?,
            certificate,
        })
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// PKCS#8; goes into the replicated metadata and nowhere else.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// SHA-256 of the certificate (DER): what a join token carries.
    pub fn fingerprint(&self) -> [u8; 32] {
        fingerprint(&self.certificate)
    }

    /// Signs a certificate for the key of `csr_pem`, with `role` and nothing of what the request
    /// asks for.
    ///
    /// # Errors
    /// Where the request is malformed, not signed by its own key, or not for an Ed25519 key.
    pub fn issue(&self, csr_pem: &str, role: Role) -> Result<String, Error> {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem)?;
        if request.public_key.algorithm() != &PKCS_ED25519 {
            return Err(Error::Request("the key is not Ed25519"));
        }
        let mut params = CertificateParams::new(vec![role.server_name().to_owned()])?;
        let peer = hex::encode(request.public_key.der_bytes());
        params.distinguished_name = common_name(&peer);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        validity(&mut params, LEAF_DAYS);
        request.params = params;
        Ok(request.signed_by(&self.issuer)?.pem())
    }

    /// A certificate for HTTPS on `names` (DNS names and IP addresses), with a new ECDSA key: not
    /// every client of HTTPS knows Ed25519.
    ///
    /// # Errors
    /// [`Error::Certificate`] for a name that is neither.
    pub fn issue_http(&self, names: &[String]) -> Result<HttpCertificate, Error> {
        let key = rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        // `new` takes what parses as an address for an address.
        let mut params = CertificateParams::new(names.to_vec())?;
        let first = names.first().map_or("shoal", String::as_str);
        params.distinguished_name = common_name(first);
        if params.subject_alt_names.is_empty() {
            params.subject_alt_names.push(SanType::DnsName("localhost".try_into()?));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        validity(&mut params, LEAF_DAYS);
        let leaf = params.signed_by(&key, &self.issuer)?.pem();
        Ok(HttpCertificate {
            chain_pem: format!("{leaf}{}", self.certificate_pem),
            key_pem: Zeroizing::new(key.serialize_pem()),
        })
    }
}

/// SHA-256 of a certificate in DER.
pub(super) fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, certificate).as_ref());
    bytes
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn validity(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + Duration::days(days);
}
