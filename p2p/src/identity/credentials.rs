//! A key with its certificate: what a process shows in every handshake, and whom it accepts.
//!
//! Invariant: what is shown was signed by the cluster's authority for this key and role; a new
//! certificate is shown in every handshake that begins after it was taken, and ends no connection.
//! Behind it stands what makes it good for those who know an older authority only.

use std::sync::Arc;

use parking_lot::RwLock;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, CommonState, SignatureScheme, SupportedCipherSuite};
use shoal_content::{PeerId, Timestamp};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::verifier::{ClientGate, ServerGate, role_and_key};
use super::{Error, KeyPair, Role, Trust};

/// Certificates of one chain: a process's own, and those of authorities behind it.
const CHAIN_MAX: usize = 8;

/// See the module's documentation. All connections made with it are mutual TLS 1.3. Clones show the
/// same certificate.
#[derive(Debug, Clone)]
pub struct Credentials {
    key: Arc<KeyPair>,
    trust: Trust,
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
    /// With the authorities that are believed; `certificate_pem` may be a chain.
    ///
    /// # Errors
    /// Where a certificate does not parse or does not belong to the key.
    pub fn new(
        key: Arc<KeyPair>,
        certificate_pem: &str,
        authority_pem: String,
    ) -> Result<Self, Error> {
        let current = current(&key, certificate_pem)?;
        let trust = Trust::of_pem(&authority_pem)?;
        Ok(Self { key, trust, shown: Arc::new(Shown(RwLock::new(current))) })
    }

    /// Whom this process believes; what is changed there counts here.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Whether what is shown is the authority's in `pem`, by its name.
    pub fn is_of(&self, pem: &str) -> bool {
        let Ok(authority) = first_certificate(pem) else { return false };
        let current = self.shown.0.read();
        let Some(shown) = current.certified.cert.first() else { return false };
        let issuer = X509Certificate::from_der(shown);
        let subject = X509Certificate::from_der(&authority);
        match (issuer, subject) {
            (Ok((_, shown)), Ok((_, authority))) => {
                shown.issuer().as_raw() == authority.subject().as_raw()
            }
            _ => false,
        }
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
        let gate = ServerGate::new(self.trust.clone(), &[before]);
        let (certificate, behind) = new.certified.cert.split_first().ok_or(Error::Pem)?;
        let name = ServerName::try_from(before.server_name())
            .map_err(|error| Error::Setup(error.to_string()))?;
        gate.verify_server_cert(certificate, behind, &name, &[], UnixTime::now())?;
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
        let tls = self.tls_server(alpn, accept)?;
        let tls =
            QuicServerConfig::try_from(tls).map_err(|error| Error::Setup(error.to_string()))?;
        Ok(quinn::ServerConfig::with_crypto(Arc::new(tls)))
    }

    /// The same over TCP.
    ///
    /// # Errors
    /// As [`Self::quinn_server`].
    pub fn tls_server(&self, alpn: &[u8], accept: &[Role]) -> Result<rustls::ServerConfig, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let gate = ClientGate::new(self.trust.clone(), accept);
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(gate))
            .with_cert_resolver(self.shown.clone());
        tls.alpn_protocols = vec![alpn.to_vec()];
        // Early data can be replayed; a resumed session may outlive the certificate that began it.
        tls.max_early_data_size = 0;
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        Ok(tls)
    }

    /// A QUIC client for the one protocol `alpn` that talks to `expect` only. Which server name is
    /// dialled does not matter.
    ///
    /// # Errors
    /// As [`Self::quinn_server`].
    pub fn quinn_client(&self, alpn: &[u8], expect: &[Role]) -> Result<quinn::ClientConfig, Error> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let tls = self.client(provider, alpn, expect)?;
        let tls =
            QuicClientConfig::try_from(tls).map_err(|error| Error::Setup(error.to_string()))?;
        Ok(quinn::ClientConfig::new(Arc::new(tls)))
    }

    /// The same over TCP, for much content: AES-128 is asked for first, which costs less for each
    /// byte than AES-256.
    ///
    /// # Errors
    /// As [`Self::quinn_server`].
    pub fn tls_client(&self, alpn: &[u8], expect: &[Role]) -> Result<rustls::ClientConfig, Error> {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        let others =
            |suite: &SupportedCipherSuite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256;
        provider.cipher_suites.sort_by_key(others);
        self.client(provider, alpn, expect)
    }

    fn client(
        &self,
        provider: CryptoProvider,
        alpn: &[u8],
        expect: &[Role],
    ) -> Result<rustls::ClientConfig, Error> {
        let gate = ServerGate::new(self.trust.clone(), expect);
        let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(gate))
            .with_client_cert_resolver(self.shown.clone());
        tls.alpn_protocols = vec![alpn.to_vec()];
        // A resumed session would show the certificate of the one before.
        tls.resumption = rustls::client::Resumption::disabled();
        Ok(tls)
    }
}

/// When the first certificate in `pem` ends.
///
/// # Errors
/// [`Error::Pem`] where there is none.
pub fn ends_at(pem: &str) -> Result<Timestamp, Error> {
    let certificate = first_certificate(pem)?;
    let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|_| Error::Pem)?;
    let seconds = parsed.validity().not_after.timestamp();
    Ok(Timestamp::from_millis(u64::try_from(seconds).unwrap_or(0) * 1000))
}

/// Whether a certificate that is valid in between should be replaced: see [`Credentials::is_due`].
pub fn is_due(from: Timestamp, until: Timestamp, now: Timestamp) -> bool {
    let lasts = until.as_millis().saturating_sub(from.as_millis());
    now < from || now >= from.plus_millis(lasts / 3 * 2)
}

fn current(key: &KeyPair, certificate_pem: &str) -> Result<Current, Error> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate_pem.as_bytes())
        .take(CHAIN_MAX)
        .collect::<Result<_, _>>()
        .map_err(|_| Error::Pem)?;
    let certificate = chain.first().ok_or(Error::Pem)?;
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| Error::Pem)?;
    let moment = |seconds: i64| Timestamp::from_millis(u64::try_from(seconds).unwrap_or(0) * 1000);
    let validity = parsed.validity();
    let (from, until) =
        (moment(validity.not_before.timestamp()), moment(validity.not_after.timestamp()));
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_pkcs8_der().to_vec()));
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    // The key has to be the certificate's.
    let certified = CertifiedKey::from_der(chain, private, &provider)?;
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
    owner(&chain)
}

/// The same of a connection over TCP whose handshake is over.
///
/// # Errors
/// As [`peer_of`].
pub fn peer_of_tls(connection: &CommonState) -> Result<(PeerId, Role), Error> {
    owner(connection.peer_certificates().ok_or(Error::Peer)?)
}

fn owner(chain: &[CertificateDer<'static>]) -> Result<(PeerId, Role), Error> {
    let (role, key) = chain.first().and_then(role_and_key).ok_or(Error::Peer)?;
    Ok((PeerId::from_public_key(key), role))
}

#[cfg(test)]
mod tests {
    use shoal_content::ClusterId;

    use super::super::{Authority, Successor};
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
        let authority_pem = authority.certificate_pem().to_owned();
        assert!(Credentials::new(thief, &stolen, authority_pem).is_err());
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

    /// A certificate of `authority`'s with what makes it good for those who know an older one.
    fn chain(authority: &Authority, of: &Credentials, role: Role, vouched: &[&str]) -> String {
        let leaf = authority.issue(&of.key.csr_pem().unwrap(), role).unwrap();
        format!("{leaf}{}", vouched.concat())
    }

    fn trust_only(credentials: &Credentials, authorities: &[&Authority]) {
        let pems = authorities.iter().map(|one| one.certificate_pem().as_bytes());
        credentials.trust().replace(super::super::roots(pems).unwrap()).unwrap();
    }

    #[tokio::test]
    async fn another_authority_takes_the_place_of_the_first_while_both_run() {
        let cluster = ClusterId::from_uuid(uuid::Uuid::from_u128(1));
        let first = authority();
        let Successor { authority: second, vouched_pem } = first.succeed(&cluster).unwrap();
        let node = credentials(&first, Role::Node);
        let agent = credentials(&first, Role::Agent);
        let ends = Ends::new(&node, &agent);
        assert!(node.is_of(first.certificate_pem()) && !node.is_of(second.certificate_pem()));
        // Who has not heard of the second believes it by what the first has signed.
        node.renew(&chain(&second, &node, Role::Node, &[])).unwrap_err();
        node.renew(&chain(&second, &node, Role::Node, &[&vouched_pem])).unwrap();
        assert!(node.is_of(second.certificate_pem()) && !node.is_of(first.certificate_pem()));
        let before = ends.connect().await.expect("the agent knows the first only");
        // The other way round it takes more: the agent's own is the first's.
        trust_only(&node, &[&first, &second]);
        ends.connect().await.expect("the node believes both");
        trust_only(&node, &[&second]);
        assert!(ends.connect().await.is_none(), "the first is believed yet");
        trust_only(&agent, &[&second]);
        agent.renew(&chain(&second, &agent, Role::Agent, &[])).unwrap();
        ends.connect().await.expect("both have changed over");
        assert!(before.0.close_reason().is_none(), "what was open is cut off");
    }

    #[tokio::test]
    async fn who_was_away_for_several_rotations_finds_the_way() {
        let cluster = ClusterId::from_uuid(uuid::Uuid::from_u128(1));
        let (mut last, mut vouched) = (authority(), Vec::new());
        let agent = credentials(&last, Role::Agent);
        let node = credentials(&last, Role::Node);
        let oldest = last.certificate_pem().to_owned();
        for _ in 0..3 {
            let next = last.succeed(&cluster).unwrap();
            vouched.insert(0, next.vouched_pem);
            last = next.authority;
        }
        let vouched: Vec<&str> = vouched.iter().map(String::as_str).collect();
        node.renew(&chain(&last, &node, Role::Node, &vouched)).unwrap();
        let ends = Ends::new(&node, &agent);
        ends.connect().await.expect("one vouches for the next");
        // Over HTTPS it is the same, also for somebody who has a join token of long ago.
        let names = ["127.0.0.1".to_owned()];
        let behind = [&vouched[..], &[oldest.as_str(), last.certificate_pem()]].concat().concat();
        let http = last.issue_http_before(&names, &behind).unwrap();
        let shown: Vec<_> = CertificateDer::pem_slice_iter(http.chain_pem.as_bytes())
            .collect::<Result<_, _>>()
            .unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let verify = |trust: &Trust| {
            let (leaf, behind) = shown.split_first().unwrap();
            trust.servers().verify_server_cert(leaf, behind, &name, &[], UnixTime::now())
        };
        verify(&Trust::of_pem(&oldest).unwrap()).unwrap();
        verify(&Trust::of_pem(last.certificate_pem()).unwrap()).unwrap();
        verify(&Trust::of_pem(self::authority().certificate_pem()).unwrap()).unwrap_err();
    }

    #[test]
    fn an_authority_is_old_when_two_thirds_of_its_time_are_over() {
        const DAY_MS: u64 = 24 * 3600 * 1000;
        let authority = authority();
        let end = ends_at(authority.certificate_pem()).unwrap();
        let before = |days: u64| Timestamp::from_millis(end.as_millis() - days * DAY_MS);
        assert!(!authority.is_old(before(3650)).unwrap());
        assert!(!authority.is_old(before(1220)).unwrap());
        assert!(authority.is_old(before(1214)).unwrap());
        assert!(!authority.is_old(before(4000)).unwrap(), "a clock that is behind rotates it");
        let cluster = ClusterId::from_uuid(uuid::Uuid::from_u128(1));
        let names = [1, 2].map(|_| authority.succeed(&cluster).unwrap().authority);
        assert_ne!(names[0].fingerprint(), names[1].fingerprint());
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
