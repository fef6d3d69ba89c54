//! A key with its certificate: what a process shows in every handshake, and whom it accepts.
//!
//! Invariant: what is shown was signed by the cluster's authority for this key and role; a new
//! certificate is shown in every handshake that begins after it was taken, and ends no connection.

use std::sync::Arc;

use parking_lot::RwLock;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, SignatureScheme};
use shoal_content::{PeerId, Timestamp};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::verifier::{ClientGate, ServerGate, role_and_key};
use super::{Error, KeyPair, Role};

/// See the module's documentation. All connections made with it are mutual TLS 1.3. Clones show the
/// same certificate.
#[derive(Debug, Clone)]
pub struct Credentials {
    key: Arc<KeyPair>,
    authority_pem: String,
    shown: Arc<Shown>,
}

/// The certificate of now.
#[derive(Debug)]
struct Shown(RwLock<Current>);

#[derive(Debug)]
struct Current {
    certified: Arc<CertifiedKey>,
    from: Timestamp,
    until: Timestamp,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().certified))
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().certified))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl Credentials {
    /// # Errors
    /// Where a certificate does not parse or does not belong to the key.
    pub fn new(
        key: Arc<KeyPair>,
        certificate_pem: &str,
        authority_pem: String,
    ) -> Result<Self, Error> {
        let current = current(&key, certificate_pem)?;
        first_certificate(&authority_pem)?;
        Ok(Self { key, authority_pem, shown: Arc::new(Shown(RwLock::new(current))) })
    }

    pub fn peer_id(&self) -> PeerId {
        self.key.peer_id()
    }

    pub fn key(&self) -> &KeyPair {
        &self.key
    }

    /// Shows another certificate from now on.
    ///
    /// # Errors
    /// Where it is none of the authority's for this key and in the same role; the old one is shown
    /// on.
    pub fn renew(&self, certificate_pem: &str) -> Result<(), Error> {
        let new = current(&self.key, certificate_pem)?;
        let role = |current: &Current| {
            let first = current.certified.cert.first().and_then(role_and_key);
            first.map(|(role, _)| role).ok_or(Error::Peer)
        };
        let before = role(&self.shown.0.read())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let gate = ServerGate::new(self.roots()?, provider, &[before])?;
        let certificate = new.certified.cert.first().ok_or(Error::Pem)?;
        let name = ServerName::try_from(before.server_name())
            .map_err(|error| Error::Setup(error.to_string()))?;
        gate.verify_server_cert(certificate, &[], &name, &[], UnixTime::now())?;
        *self.shown.0.write() = new;
        Ok(())
    }

    /// When what is shown ends.
    pub fn ends_at(&self) -> Timestamp {
        self.shown.0.read().until
    }

    /// Whether two thirds of its time are over, since the rest is for whoever cannot renew it at
    /// once; or its time has not begun, since it was made while a clock was wrong.
    pub fn is_due(&self, now: Timestamp) -> bool {
        let current = self.shown.0.read();
        is_due(current.from, current.until, now)
    }

    /// A QUIC server for the one protocol `alpn` that lets in `accept` only; strangers fail the
    /// handshake.
    ///
    /// # Errors
    /// Where TLS cannot be set up.
    pub fn quinn_server(&self, alpn: &[u8], accept: &[Role]) -> Result<quinn::ServerConfig, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let gate = ClientGate::new(self.roots()?, provider.clone(), accept)?;
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(gate))
            .with_cert_resolver(self.shown.clone());
        tls.alpn_protocols = vec![alpn.to_vec()];
        // Early data can be replayed; a resumed session may outlive the certificate that began it.
        tls.max_early_data_size = 0;
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        let tls =
            QuicServerConfig::try_from(tls).map_err(|error| Error::Setup(error.to_string()))?;
        Ok(quinn::ServerConfig::with_crypto(Arc::new(tls)))
    }

    /// A QUIC client for the one protocol `alpn` that talks to `expect` only. Which server name is
    /// dialled does not matter.
    ///
    /// # Errors
    /// As [`Self::quinn_server`].
    pub fn quinn_client(&self, alpn: &[u8], expect: &[Role]) -> Result<quinn::ClientConfig, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let gate = ServerGate::new(self.roots()?, provider.clone(), expect)?;
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(gate))
            .with_client_cert_resolver(self.shown.clone());
        tls.alpn_protocols = vec![alpn.to_vec()];
        // A resumed session would show the certificate of the one before.
        tls.resumption = rustls::client::Resumption::disabled();
        let tls =
            QuicClientConfig::try_from(tls).map_err(|error| Error::Setup(error.to_string()))?;
        Ok(quinn::ClientConfig::new(Arc::new(tls)))
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, Error> {
        let mut roots = RootCertStore::empty();
        roots.add(first_certificate(&self.authority_pem)?)?;
        Ok(Arc::new(roots))
    }
}

/// Whether a certificate that is valid in between should be replaced: see [`Credentials::is_due`].
pub fn is_due(from: Timestamp, until: Timestamp, now: Timestamp) -> bool {
    let lasts = until.as_millis().saturating_sub(from.as_millis());
    now < from || now >= from.plus_millis(lasts / 3 * 2)
}

fn current(key: &KeyPair, certificate_pem: &str) -> Result<Current, Error> {
    let certificate = first_certificate(certificate_pem)?;
    let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|_| Error::Pem)?;
    let moment = |seconds: i64| Timestamp::from_millis(u64::try_from(seconds).unwrap_or(0) * 1000);
    let validity = parsed.validity();
    let (from, until) =
        (moment(validity.not_before.timestamp()), moment(validity.not_after.timestamp()));
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_pkcs8_der().to_vec()));
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    // The key has to be the certificate's.
    let certified = CertifiedKey::from_der(vec![certificate], private, &provider)?;
    Ok(Current { certified: Arc::new(certified), from, until })
}

fn first_certificate(pem: &str) -> Result<CertificateDer<'static>, Error> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| Error::Pem)
}

/// Who is at the other end of `connection`, proved by its handshake.
///
/// # Errors
/// [`Error::Peer`] where there is no certificate of ours, which mutual TLS rules out.
pub fn peer_of(connection: &quinn::Connection) -> Result<(PeerId, Role), Error> {
    let identity = connection.peer_identity().ok_or(Error::Peer)?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| Error::Peer)?;
    let (role, key) = chain.first().and_then(role_and_key).ok_or(Error::Peer)?;
    Ok((PeerId::from_public_key(key), role))
}

#[cfg(test)]
mod tests {
    use shoal_content::ClusterId;

    use super::super::Authority;
    use super::*;

    fn credentials(authority: &Authority, role: Role) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let certificate_pem = authority.issue(&key.csr_pem().unwrap(), role).unwrap();
        let authority_pem = authority.certificate_pem().to_owned();
        Credentials::new(Arc::new(key), &certificate_pem, authority_pem).unwrap()
    }

    fn authority() -> Authority {
        Authority::create(&ClusterId::from_uuid(uuid::Uuid::from_u128(1))).unwrap()
    }

    /// Two processes, set up once.
    struct Ends {
        listener: quinn::Endpoint,
        dialler: quinn::Endpoint,
    }

    impl Ends {
        /// The server accepts agents only.
        fn new(server: &Credentials, client: &Credentials) -> Self {
            let any = "127.0.0.1:0".parse().unwrap();
            let config = server.quinn_server(b"test", &[Role::Agent]).unwrap();
            let listener = quinn::Endpoint::server(config, any).unwrap();
            let mut dialler = quinn::Endpoint::client(any).unwrap();
            dialler.set_default_client_config(client.quinn_client(b"test", &[Role::Node]).unwrap());
            Self { listener, dialler }
        }

        /// The server's side and the client's.
        async fn connect(&self) -> Option<(quinn::Connection, quinn::Connection)> {
            let address = self.listener.local_addr().unwrap();
            let accepted = async { self.listener.accept().await?.await.ok() };
            let dialled = async { self.dialler.connect(address, "any.name").ok()?.await.ok() };
            let (accepted, dialled) = tokio::join!(accepted, dialled);
            Some((accepted?, dialled?))
        }
    }

    /// Connects both; gives whom each of them saw.
    async fn connect(server: &Credentials, client: &Credentials) -> Option<(PeerId, PeerId)> {
        let (accepted, dialled) = Ends::new(server, client).connect().await?;
        Some((peer_of(&accepted).ok()?.0, peer_of(&dialled).ok()?.0))
    }

    fn shown_to(connection: &quinn::Connection) -> CertificateDer<'static> {
        let chain = connection.peer_identity().unwrap();
        chain.downcast::<Vec<CertificateDer<'static>>>().unwrap().remove(0)
    }

    #[tokio::test]
    async fn the_clusters_own_know_each_other_by_key() {
        let authority = authority();
        let node = credentials(&authority, Role::Node);
        let agent = credentials(&authority, Role::Agent);
        assert_eq!(connect(&node, &agent).await, Some((agent.peer_id(), node.peer_id())));
    }

    #[tokio::test]
    async fn a_wrong_role_or_another_cluster_is_refused() {
        let authority = authority();
        let node = credentials(&authority, Role::Node);
        let second_node = credentials(&authority, Role::Node);
        assert_eq!(connect(&node, &second_node).await, None);
        let foreign = credentials(&self::authority(), Role::Agent);
        assert_eq!(connect(&node, &foreign).await, None);
        // A certificate of ours with a key that is not its own does not even make a config.
        let stolen = authority.issue(&node.key.csr_pem().unwrap(), Role::Node).unwrap();
        let thief = Arc::new(KeyPair::generate().unwrap());
        assert!(Credentials::new(thief, &stolen, node.authority_pem.clone()).is_err());
    }

    #[tokio::test]
    async fn a_renewed_certificate_is_shown_and_no_other_is_taken() {
        let authority = authority();
        let node = credentials(&authority, Role::Node);
        let agent = credentials(&authority, Role::Agent);
        let ends = Ends::new(&node.clone(), &agent.clone());
        let before = ends.connect().await.unwrap();
        let csr = node.key.csr_pem().unwrap();
        let foreign = self::authority();
        let strangers = KeyPair::generate().unwrap().csr_pem().unwrap();
        for bad in [
            foreign.issue(&csr, Role::Node).unwrap(),
            authority.issue(&csr, Role::Agent).unwrap(),
            authority.issue(&strangers, Role::Node).unwrap(),
            "no certificate".to_owned(),
        ] {
            node.renew(&bad).unwrap_err();
        }
        let same = ends.connect().await.unwrap();
        assert_eq!(shown_to(&same.1), shown_to(&before.1));
        for (credentials, role) in [(&node, Role::Node), (&agent, Role::Agent)] {
            let csr = credentials.key.csr_pem().unwrap();
            credentials.renew(&authority.issue(&csr, role).unwrap()).unwrap();
        }
        let after = ends.connect().await.unwrap();
        for (after, before) in [(&after.0, &before.0), (&after.1, &before.1)] {
            assert_ne!(shown_to(after), shown_to(before));
            assert_eq!(peer_of(after).unwrap(), peer_of(before).unwrap());
        }
        assert!(before.0.close_reason().is_none() && before.1.close_reason().is_none());
    }

    #[test]
    fn a_certificate_is_due_when_two_thirds_of_its_time_are_over() {
        const DAY_MS: u64 = 24 * 3600 * 1000;
        let node = credentials(&authority(), Role::Node);
        let end = node.ends_at();
        let before = |days: u64| Timestamp::from_millis(end.as_millis() - days * DAY_MS);
        assert!(!node.is_due(before(396)) && !node.is_due(before(134)));
        assert!(node.is_due(before(131)) && node.is_due(end));
        assert!(node.is_due(before(500)), "its time has not begun");
    }

    #[test]
    fn an_authority_survives_storage_and_refuses_other_keys() {
        let first = authority();
        let loaded = Authority::load(first.certificate_pem(), first.key_pem()).unwrap();
        assert_eq!(loaded.fingerprint(), first.fingerprint());
        let ecdsa = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        let csr = params.serialize_request(&ecdsa).unwrap().pem().unwrap();
        assert!(matches!(loaded.issue(&csr, Role::Node), Err(Error::Request(_))));
        let http = loaded.issue_http(&["127.0.0.1".into(), "registry.example".into()]).unwrap();
        assert_eq!(http.chain_pem.matches("BEGIN CERTIFICATE").count(), 2);
    }
}
