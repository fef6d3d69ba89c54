//! A key with its certificate: what a process shows in every handshake, and whom it accepts.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use shoal_content::PeerId;

use super::verifier::{ClientGate, ServerGate, role_and_key};
use super::{Error, KeyPair, Role};

/// See the module's documentation. All connections made with it are mutual TLS 1.3.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub key: Arc<KeyPair>,
    pub certificate_pem: String,
    pub authority_pem: String,
}

impl Credentials {
    pub fn peer_id(&self) -> PeerId {
        self.key.peer_id()
    }

    /// A QUIC server for the one protocol `alpn` that lets in `accept` only; strangers fail the
    /// handshake.
    ///
    /// # Errors
    /// Where the certificate does not parse or does not belong to the key.
    pub fn quinn_server(&self, alpn: &[u8], accept: &[Role]) -> Result<quinn::ServerConfig, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let gate = ClientGate::new(self.roots()?, provider.clone(), accept)?;
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(gate))
            .with_single_cert(self.chain()?, self.private_key())?;
        tls.alpn_protocols = vec![alpn.to_vec()];
        // Early data can be replayed.
        tls.max_early_data_size = 0;
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
            .with_client_auth_cert(self.chain()?, self.private_key())?;
        tls.alpn_protocols = vec![alpn.to_vec()];
        let tls =
            QuicClientConfig::try_from(tls).map_err(|error| Error::Setup(error.to_string()))?;
        Ok(quinn::ClientConfig::new(Arc::new(tls)))
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, Error> {
        let mut roots = RootCertStore::empty();
        roots.add(first_certificate(&self.authority_pem)?)?;
        Ok(Arc::new(roots))
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, Error> {
        Ok(vec![first_certificate(&self.certificate_pem)?])
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.to_pkcs8_der().to_vec()))
    }
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
        Credentials { key: Arc::new(key), certificate_pem, authority_pem }
    }

    fn authority() -> Authority {
        Authority::create(&ClusterId::from_uuid(uuid::Uuid::from_u128(1))).unwrap()
    }

    /// Connects `client` to `server`, which accepts agents only; gives what both sides saw.
    async fn connect(server: &Credentials, client: &Credentials) -> Option<(PeerId, PeerId)> {
        let config = server.quinn_server(b"test", &[Role::Agent]).unwrap();
        let listener = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
        let dialler = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let config = client.quinn_client(b"test", &[Role::Node]).unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = async { listener.accept().await?.await.ok() };
        let dialled = async { dialler.connect_with(config, address, "any.name").ok()?.await.ok() };
        let (accepted, dialled) = tokio::join!(accepted, dialled);
        let (accepted, dialled) = (accepted?, dialled?);
        Some((peer_of(&accepted).ok()?.0, peer_of(&dialled).ok()?.0))
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
        let stolen = Credentials { key: Arc::new(KeyPair::generate().unwrap()), ..node.clone() };
        assert!(stolen.quinn_server(b"test", &[Role::Agent]).is_err());
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
