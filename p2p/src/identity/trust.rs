//! Whom a process believes: the cluster's authority, and while another takes its place, both.
//!
//! Invariants: every handshake that begins after [`Trust::replace`] is judged by the new ones, and so is a
//! connection whenever [`Trust::believes`] is asked; one that no longer is believed is whoever holds it to
//! close, who hears of it by [`Trust::withdrawals`].

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Error;

/// See the module's documentation. Clones change together.
#[derive(Debug, Clone)]
pub struct Trust {
    anchors: Arc<RwLock<Anchors>>,
}

#[derive(Debug, Clone)]
struct Anchors {
    roots: Arc<RootCertStore>,
    /// How often one of them was taken out.
    withdrawals: u64,
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<WebPkiServerVerifier>,
}

impl Trust {
    /// # Errors
    /// [`Error::Setup`] where there is no authority among them.
    pub fn new(roots: RootCertStore) -> Result<Self, Error> {
        Ok(Self { anchors: Arc::new(RwLock::new(anchors(roots, 0)?)) })
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
        // Both locked as one: of two that replace them at once none is overlooked.
        let mut current = self.anchors.write();
        let withdrawn = current.roots.roots.iter().any(|root| !roots.roots.contains(root));
        let withdrawals = current.withdrawals.saturating_add(u64::from(withdrawn));
        *current = anchors(roots, withdrawals)?;
        Ok(())
    }

    /// How often an authority that was believed was taken out. Whoever keeps connections compares it with
    /// what it was.
    pub fn withdrawals(&self) -> u64 {
        self.anchors.read().withdrawals
    }

    /// Whether an authority that is believed now signed what the other end of `connection` showed in its
    /// handshake; not where it showed nothing. Time is left to handshakes: a certificate that ends
    /// meanwhile ends no connection.
    pub fn believes(&self, connection: &quinn::Connection) -> bool {
        let shown = connection.peer_identity();
        let chain = shown.and_then(|shown| shown.downcast::<Vec<CertificateDer<'static>>>().ok());
        chain.is_some_and(|chain| self.believes_chain(&chain))
    }

    /// Leaf first.
    fn believes_chain(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((leaf, behind)) = chain.split_first() else { return false };
        let Some(at) = within_validity(leaf, UnixTime::now()) else { return false };
        // Every certificate of the cluster's is good for both sides of a connection.
        self.clients().verify_client_cert(leaf, behind, at).is_ok()
    }

    pub(super) fn clients(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.anchors.read().clients)
    }

    pub(super) fn servers(&self) -> Arc<WebPkiServerVerifier> {
        Arc::clone(&self.anchors.read().servers)
    }
}

/// The moment of a certificate's time that is nearest to `now`.
fn within_validity(certificate: &CertificateDer<'_>, now: UnixTime) -> Option<UnixTime> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let seconds = |seconds: i64| u64::try_from(seconds).unwrap_or(0);
    let from = seconds(parsed.validity().not_before.timestamp());
    let until = seconds(parsed.validity().not_after.timestamp());
    let nearest = now.as_secs().min(until).max(from);
    Some(UnixTime::since_unix_epoch(Duration::from_secs(nearest)))
}

fn anchors(roots: RootCertStore, withdrawals: u64) -> Result<Anchors, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = Arc::new(roots);
    let setup = |error: rustls::server::VerifierBuilderError| Error::Setup(error.to_string());
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(setup)?;
    let servers = WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), provider)
        .build()
        .map_err(setup)?;
    Ok(Anchors { roots, withdrawals, clients, servers })
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

#[cfg(test)]
mod tests {
    use shoal_content::ClusterId;

    use super::super::{Authority, KeyPair, Role, Successor};
    use super::*;

    fn chain(pem: &str) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn what_was_shown_is_believed_for_as_long_as_its_authority_is() {
        let cluster = ClusterId::from_uuid(uuid::Uuid::from_u128(1));
        let first = Authority::create(&cluster).unwrap();
        let Successor { authority: second, vouched_pem } = first.succeed(&cluster).unwrap();
        let csr = KeyPair::generate().unwrap().csr_pem().unwrap();
        let old = chain(&first.issue(&csr, Role::Agent).unwrap());
        let leaf = second.issue(&csr, Role::Node).unwrap();
        let new = chain(&format!("{leaf}{vouched_pem}"));
        let trust = Trust::of_pem(first.certificate_pem()).unwrap();
        assert!(trust.believes_chain(&old) && trust.believes_chain(&new));
        let replace = |authorities: &[&Authority]| {
            let pems = authorities.iter().map(|one| one.certificate_pem().as_bytes());
            trust.replace(roots(pems).unwrap()).unwrap();
        };
        replace(&[&first, &second]);
        assert_eq!(trust.withdrawals(), 0, "one more takes none away");
        assert!(trust.believes_chain(&old) && trust.believes_chain(&new));
        replace(&[&second]);
        assert_eq!(trust.withdrawals(), 1);
        assert!(!trust.believes_chain(&old), "the first is believed yet");
        assert!(trust.believes_chain(&new) && !trust.believes_chain(&[]));
        replace(&[&second]);
        assert_eq!(trust.withdrawals(), 1, "the same again");
    }

    #[test]
    fn time_is_left_to_handshakes() {
        let authority = Authority::create(&ClusterId::from_uuid(uuid::Uuid::from_u128(1))).unwrap();
        let csr = KeyPair::generate().unwrap().csr_pem().unwrap();
        let shown = chain(&authority.issue(&csr, Role::Node).unwrap());
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let near = |seconds| within_validity(&shown[0], at(seconds)).unwrap().as_secs();
        let (from, until) = (near(0), near(u64::MAX));
        assert!(0 < from && from < until && until < u64::MAX);
        assert_eq!(near(from + 1), from + 1);
    }
}
