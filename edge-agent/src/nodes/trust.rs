//! How a node's HTTPS certificate is checked after the join: by the cluster's authority, and those
//! that the settings name besides. Before it, `identity::AuthorityPin` does.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use shoal_p2p::identity;

use super::Error;

/// TLS that trusts the authorities in these PEM texts.
pub fn authorities(pems: &[&[u8]]) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    for pem in pems {
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| Error::Tls(format!("{error:?}")))?;
            roots.add(certificate).map_err(|error| Error::Tls(error.to_string()))?;
        }
    }
    identity::member_client(roots).map_err(|error| Error::Tls(error.to_string()))
}
