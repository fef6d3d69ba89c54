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
use shoal_content::{ClusterId, Timestamp};
use time::macros::date;
use time::{Date, Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::{Error, Role};

/// How long the authority's own certificate holds from when it was made; it begins long before, since the
/// clock that it is made by may be ahead of all others.
const AUTHORITY_DAYS: i64 = 3650;
const AUTHORITY_FROM: Date = date!(2000 - 01 - 01);
/// Authorities that may stand between one and a process's certificate: each has signed the certificate
/// of the next, and who knows only the first believes the last through them.
const LATER_MAX: u8 = 4;
/// Of the hash of an authority's key in its name: two names never meet, in another life of the cluster
/// either.
const NAME_BYTES: usize = 8;
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

/// An authority that takes the place of another one.
#[derive(Debug)]
pub struct Successor {
    pub authority: Authority,
    /// PEM: its key and name, signed by the one before. Behind a certificate of the new authority's it
    /// makes that good for whoever knows only the old one.
    pub vouched_pem: String,
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
        let certificate_pem =
            authority_params(&format!("Shoal {cluster}"))?.self_signed(&key)?.pem();
        Self::load(&certificate_pem, &key.serialize_pem())
    }

    /// Another one for `cluster`, to take the place of this one, which vouches for it.
    ///
    /// # Errors
    /// [`Error::Certificate`] where a key or certificate cannot be made.
    pub fn succeed(&self, cluster: &ClusterId) -> Result<Successor, Error> {
        let key = rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let of_key = digest(&SHA256, key.der_bytes());
        let name = hex::encode(&of_key.as_ref()[..NAME_BYTES]);
        let mut params = authority_params(&format!("Shoal {cluster} {name}"))?;
        let certificate_pem = params.self_signed(&key)?.pem();
        // By whichever clock the two were made: who believes this one asks for no time of its.
        params.not_after = params.not_after.max(self.ends_at()?);
        let vouched_pem = params.signed_by(&key, &self.issuer)?.pem();
        let authority = Self::load(&certificate_pem, &key.serialize_pem())?;
        Ok(Successor { authority, vouched_pem })
    }

    fn ends_at(&self) -> Result<OffsetDateTime, Error> {
        let (_, parsed) = X509Certificate::from_der(&self.certificate).map_err(|_| Error::Pem)?;
        let seconds = parsed.validity().not_after.timestamp();
        OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| Error::Pem)
    }

    /// Whether two thirds of its time are over, so that another should take its place.
    ///
    /// # Errors
    /// Where its certificate cannot be read.
    pub fn is_old(&self, now: Timestamp) -> Result<bool, Error> {
        let from = self.ends_at()? - Duration::days(AUTHORITY_DAYS / 3);
        let from = u64::try_from(from.unix_timestamp()).unwrap_or(0);
        Ok(now >= Timestamp::from_millis(from * 1000))
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
        self.issue_http_before(names, &self.certificate_pem)
    }

    /// The same, with other certificates than the authority's own behind it (PEM).
    ///
    /// # Errors
    /// As above.
    pub fn issue_http_before(
        &self,
        names: &[String],
        behind_pem: &str,
    ) -> Result<HttpCertificate, Error> {
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
            chain_pem: format!("{leaf}{behind_pem}"),
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

fn authority_params(name: &str) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name = common_name(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(LATER_MAX));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, AUTHORITY_DAYS);
    params.not_before = AUTHORITY_FROM.midnight().assume_utc();
    Ok(params)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_and_what_vouches_for_it_are_good_by_every_clock() {
        let cluster = ClusterId::from_uuid(uuid::Uuid::from_u128(1));
        let first = Authority::create(&cluster).unwrap();
        let Successor { authority: second, vouched_pem } = first.succeed(&cluster).unwrap();
        let pems = [first.certificate_pem(), second.certificate_pem(), vouched_pem.as_str()];
        let ends = pems.map(|pem| {
            let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
            let (_, parsed) = X509Certificate::from_der(&certificate).unwrap();
            let from = parsed.validity().not_before.timestamp();
            assert_eq!(from, AUTHORITY_FROM.midnight().assume_utc().unix_timestamp());
            parsed.validity().not_after.timestamp()
        });
        // Where the clock went back before the second was made, it would not be good for those who were
        // away until then.
        assert!(ends[2] >= ends[0] && ends[2] >= ends[1]);
    }
}
