//! Members of a group in one process: real QUIC on loopback, real RocksDB in temporary folders.
//!
//! Each member has a runtime of its own, so that it can be killed: its tasks vanish where they
//! stand, and nothing says good-bye to anyone. Used by the tests of this crate alone.
#![allow(dead_code)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use shoal_content::{ImageId, NodeId, PeerId, RepositoryName, Timestamp, Zone};
use shoal_metadata::{Command, ImageKind, ImageProfile, Node, Response, Secret, User, UserRole};
use shoal_raft::{Config, ProposeError, Raft, Transport, View};
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub const NAME: &str = "node.shoal.internal";
/// Its number follows.
const NAME_OF_PEER: &str = "peer-";
const ALPN: &[u8] = b"shoal-raft/1";

/// Within so long everything that is waited for must have happened.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits for a condition.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(begun.elapsed() < DEADLINE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A certificate authority of its own.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    /// Whom members take for a stranger, whatever it shows.
    refused: Arc<Mutex<BTreeSet<PeerId>>>,
}

impl Authority {
    pub fn new() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { certificate, issuer: Issuer::new(params, key), refused: Arc::default() }
    }

    /// Members take nobody but these for a stranger from now on.
    pub fn refuse(&self, peers: &[PeerId]) {
        *self.refused.lock().unwrap() = peers.iter().copied().collect();
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        Arc::new(roots)
    }

    /// A certificate of the node with this id.
    fn issue(&self, id: u64) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let names = vec![NAME.to_owned(), format!("{NAME_OF_PEER}{id:03}.test")];
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (vec![certificate], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    fn server(&self, id: u64) -> quinn::ServerConfig {
        let (chain, key) = self.issue(id);
        let verifier = WebPkiClientVerifier::builder(self.roots()).build().unwrap();
        let mut tls =
            rustls::ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
                .with_client_cert_verifier(verifier)
                .with_single_cert(chain, key)
                .unwrap();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let crypto = Arc::new(QuicServerConfig::try_from(tls).unwrap());
        let mut server = quinn::ServerConfig::with_crypto(crypto);
        server.transport_config(Arc::new(shoal_raft::quic_settings()));
        server
    }

    /// A client that trusts this authority and shows a certificate of `identity`'s for node 1, if
    /// any.
    pub fn client(&self, identity: Option<&Self>) -> quinn::ClientConfig {
        self.client_as(identity, 1)
    }

    fn client_as(&self, identity: Option<&Self>, id: u64) -> quinn::ClientConfig {
        let builder =
            rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
                .with_root_certificates(self.roots());
        let mut tls = match identity {
            Some(identity) => {
                let (chain, key) = identity.issue(id);
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![ALPN.to_vec()];
        quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
    }
}

/// Who is at the other end: each certificate of an authority's here names its node.
fn peer_of(connection: &quinn::Connection) -> Option<PeerId> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let certificate = String::from_utf8_lossy(chain.first()?).into_owned();
    let (_, rest) = certificate.split_once(NAME_OF_PEER)?;
    Some(peer(rest.get(..3)?.parse().ok()?))
}

/// The peer of the node with this id.
pub fn peer(id: u64) -> PeerId {
    PeerId::from_public_key([id as u8; 32])
}

/// One member that runs.
pub struct Member {
    pub id: NodeId,
    pub raft: Raft,
    pub address: SocketAddr,
    pub registry: Registry,
    runtime: Runtime,
}

/// What stays of a member that does not run.
pub struct Home {
    pub id: NodeId,
    folder: TempDir,
    address: Option<SocketAddr>,
}

impl Home {
    pub fn new(number: u64) -> Self {
        Self { id: NodeId::new(number), folder: tempfile::tempdir().unwrap(), address: None }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn start(&mut self, authority: &Authority) -> Member {
        self.start_with(authority, |_| {})
    }

    /// Starts at the address where it was before. Where it was killed, its databases may be held
    /// for a moment by what has not ended yet.
    pub fn start_with(&mut self, authority: &Authority, change: impl Fn(&mut Config)) -> Member {
        let member = eventually("the member starts", || self.try_start(authority, &change).ok());
        self.address = Some(member.address);
        member
    }

    fn try_start(
        &self,
        authority: &Authority,
        change: impl Fn(&mut Config),
    ) -> Result<Member, String> {
        let mut config = Config::new(self.id, self.path().join("raft"));
        config.disk_reserve_bytes = 1024 * 1024;
        change(&mut config);
        Member::start(authority, config, self.address)
    }

    /// Why it does not start, which is for a reason that has these words in it.
    pub fn refuses_to_start(
        &self,
        authority: &Authority,
        words: &str,
        change: impl Fn(&mut Config),
    ) -> String {
        // What an earlier try has not let go of yet is another reason.
        eventually("the member refuses to start", || {
            let refused = self.try_start(authority, &change).err();
            Some(refused.expect("the member must not start")).filter(|why| why.contains(words))
        })
    }

    /// Starts where another one was.
    pub fn take_address(&mut self, other: &Self) {
        self.address = other.address;
    }

    /// An address that is free now, where it will start.
    pub fn choose_address(&mut self) -> SocketAddr {
        let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        self.address = Some(free);
        free
    }
}

impl Member {
    fn start(
        authority: &Authority,
        config: Config,
        address: Option<SocketAddr>,
    ) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let at = address.unwrap_or_else(|| "127.0.0.1:0".parse().unwrap());
        let (id, number) = (config.node, config.node.number());
        let refused = authority.refused.clone();
        let mut registry = Registry::default();
        let started = runtime.block_on(async {
            let endpoint = quinn::Endpoint::server(authority.server(number), at)
                .map_err(|error| error.to_string())?;
            let address = endpoint.local_addr().unwrap();
            let transport = Transport {
                endpoint,
                client: authority.client_as(Some(authority), number),
                server_name: NAME.to_owned(),
                authenticate: Arc::new(move |connection| {
                    let peer = peer_of(connection);
                    peer.filter(|peer| !refused.lock().unwrap().contains(peer))
                }),
            };
            let raft = Raft::start(config, transport, &mut registry).await;
            Ok((raft.map_err(|error| error.to_string())?, address))
        });
        match started {
            Ok((raft, address)) => Ok(Self { id, raft, address, registry, runtime }),
            Err(error) => {
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    /// Runs a call on the member's own runtime.
    pub fn run<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        call: impl FnOnce(Raft) -> F,
    ) -> T {
        let task = self.runtime.spawn(call(self.raft.clone()));
        futures::executor::block_on(task).unwrap()
    }

    pub fn propose(&self, command: Command) -> Result<Response, ProposeError> {
        self.run(|raft| async move { raft.propose(Timestamp::from_millis(1), command).await })
    }

    pub fn read(&self) -> View {
        self.run(|raft| async move { raft.read().await }).unwrap()
    }

    pub fn bootstrap(&self) {
        let address = self.address.to_string();
        self.run(|raft| async move { raft.bootstrap(address).await }).unwrap();
        self.propose(put_admin()).unwrap();
    }

    pub fn add(&self, member: &Self) {
        let (id, address) = (member.id, member.address.to_string());
        self.run(|raft| async move { raft.add_member(id, address).await }).unwrap();
    }

    pub fn remove(&self, id: NodeId) {
        self.run(|raft| async move { raft.remove_member(id).await }).unwrap();
    }

    /// As `kill -9` would: nothing is said to anyone.
    pub fn kill(self) {
        self.runtime.shutdown_background();
    }

    pub fn stop(self) {
        self.run(|raft| async move { raft.shutdown().await });
        drop(self.raft);
        self.runtime.shutdown_timeout(Duration::from_secs(5));
    }

    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> f64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no metric {name} in {text}")).parse().unwrap()
    }
}

pub fn image_name(number: u64) -> RepositoryName {
    format!("library/image-{number}").parse().unwrap()
}

/// Who makes the images; without an account nobody could.
pub fn put_admin() -> Command {
    Command::PutUser(User {
        name: "admin".into(),
        password_hash: Secret(b"hash".to_vec()),
        role: UserRole::Admin,
        created_at: Timestamp::from_millis(0),
    })
}

pub fn create_image(number: u64) -> Command {
    Command::CreateImage {
        id: image_id(number),
        name: image_name(number),
        kind: ImageKind::Disk,
        profile: ImageProfile::default(),
        owner: "admin".into(),
    }
}

/// The row of a node whose program knows commands up to a version.
pub fn register(id: u64, command_version: u8) -> Command {
    Command::RegisterNode(Node {
        id: NodeId::new(id),
        name: format!("node-{id}"),
        peer: peer(id),
        zone: Zone::default(),
        raft_address: "127.0.0.1:1".into(),
        peer_address: "127.0.0.1:2".into(),
        discovery_address: "127.0.0.1:3".into(),
        api_url: "https://127.0.0.1:4".into(),
        command_version,
        joined_at: Timestamp::from_millis(0),
    })
}

pub fn image_id(number: u64) -> ImageId {
    format!("img-{number:032x}").parse().unwrap()
}

pub fn has_image(view: &View, number: u64) -> bool {
    view.query().image_by_name(&image_name(number)).unwrap().is_some()
}

/// Three members that form one group.
pub fn three(authority: &Authority) -> (Vec<Home>, Vec<Member>) {
    let mut homes: Vec<Home> = (1..=3).map(Home::new).collect();
    let members: Vec<Member> = homes.iter_mut().map(|home| home.start(authority)).collect();
    members[0].bootstrap();
    members[0].add(&members[1]);
    members[0].add(&members[2]);
    (homes, members)
}

/// The member that leads, once they all agree.
pub fn leader(members: &[Member]) -> usize {
    eventually("all agree on a leader", || {
        let of = |member: &Member| member.raft.status().leader;
        let leader = of(&members[0])?;
        let agreed = members.iter().all(|member| of(member) == Some(leader));
        let at = members.iter().position(|member| member.id == leader)?;
        agreed.then_some(at)
    })
}
