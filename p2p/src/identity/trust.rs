//! Whom a process believes: the cluster's authority, and while another takes its place, both.
//!
//! Invariant: every handshake that begins after [`Trust::replace`] is judged by the new ones;
//! connections that are open stay.

use std::sync::Arc;

use parking_lot::RwLock;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

use super::Error;

/// See the module's documentation. Clones change together.
#[derive(Debug, Clone)]
pub struct Trust {
    anchors: Arc<RwLock<Anchors>>,
}

#[derive(Debug, Clone)]
struct Anchors {
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<WebPkiServerVerifier>,
}

impl Trust {
    /// # Errors
    /// [`Error::Setup`] where there is no authority among them.
    pub fn new(roots: RootCertStore) -> Result<Self, Error> {
        Ok(Self { anchors: Arc::new(RwLock::new(anchors(roots)?)) })
    }

    /// Those in a PEM text.
    ///
    /// # Errors
    /// [`Error::Pem`] where it holds none, or what is none.
    pub fn of_pem(pem: &str) -> Result<Self, Error> {
        Self::new(roots([pem.as_bytes()])?)
    }

    /// Believes these from now on, and no others.
    ///
    /// # Errors
    /// As [`Self::new`]; those before are believed on.
    pub fn replace(&self, roots: RootCertStore) -> Result<(), Error> {
        let new = anchors(roots)?;
        *self.anchors.write() = new;
        Ok(())
    }

    pub(super) fn clients(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.anchors.read().clients)
    }

    pub(super) fn servers(&self) -> Arc<WebPkiServerVerifier> {
        Arc::clone(&self.anchors.read().servers)
    }
}

fn anchors(roots: RootCertStore) -> Result<Anchors, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = Arc::new(roots);
    let setup = |error: rustls::server::VerifierBuilderError| Error::Setup(error.to_string());
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(setup)?;
    let servers =
        WebPkiServerVerifier::builder_with_provider(roots, provider).build().map_err(setup)?;
    Ok(Anchors { clients, servers })
}

/// All authorities in these PEM texts.
///
/// # Errors
/// [`Error::Pem`] where one of the texts holds none, or what is none.
pub fn roots<'a>(pems: impl IntoIterator<Item = &'a [u8]>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for pem in pems {
        let before = roots.len();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            roots.add(certificate.map_err(|_| Error::Pem)?)?;
        }
        if roots.len() == before {
            return Err(Error::Pem);
        }
    }
    Ok(roots)
}
