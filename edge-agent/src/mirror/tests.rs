//! What a client gets where the swarm cannot bring a blob. The node is no more than its HTTPS port.

use axum::body::{Bytes, to_bytes};
use axum::http::StatusCode;
use axum_server::tls_rustls::RustlsConfig;
use prometheus_client::registry::Registry;
use shoal_api::{AgentResolution, BlobGrant};
use shoal_content::{
    Chunk, ChunkId, ClusterId, Encoding, Extent, ObjectKey, PackId, Recipe, RecipeKind,
    SourceObject, Zone,
};
use shoal_p2p::identity::{Authority, Credentials, KeyPair, Role};
use shoal_p2p::{Bulk, PeerRole, Swarm, TicketKey};

use super::range::Part;
use super::*;
use crate::cache::Cache;
use crate::catalogue::Catalogue;
use crate::config::{self, ByteSize};
use crate::fetch::{delta, download::Downloads};
use crate::metrics::CacheMetrics;
use crate::nodes::NodeClient;

const CHUNK_BYTES: usize = 256 * 1024;
const BLOB_BYTES: usize = 4 << 20;
/// Less than the blob.
const CACHE_BYTES: u64 = 1 << 20;
const NAME: &str = "demo/app";
const LOGIN: &str = "Basic YTpi";

/// One agent, alone with at most a node.
struct Stage {
    mirror: Arc<Mirror>,
    content: Bytes,
    digest: Digest,
    _folder: tempfile::TempDir,
}

impl Stage {
    async fn set(has_node: bool) -> Self {
        // Fails only where a provider is installed already, which is what is wanted.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let cluster = ClusterId::from_uuid(uuid::Uuid::from_u128(5));
        let authority = Authority::create(&cluster).unwrap();
        let (key, signer) = (Arc::new(KeyPair::generate().unwrap()), KeyPair::generate().unwrap());
        let content = content();
        let urls = if has_node { vec![node(&authority, content.clone()).await] } else { vec![] };
        let settings = config::Cache {
            max_bytes: Some(ByteSize::new(CACHE_BYTES)),
            min_free_bytes: Some(ByteSize::new(0)),
            ..config::Cache::default()
        };
        let cache =
            Cache::open(&folder.path().join("cache"), &settings, CacheMetrics::default()).unwrap();
        let swarm = swarm(&authority, &key, &signer, &cache).await;
        let metrics = AgentMetrics::default();
        let authorities = [authority.certificate_pem().as_bytes()];
        let nodes =
            NodeClient::new(key.clone(), cluster, &authorities, &urls, &[], metrics.clone());
        let fetcher = Fetcher {
            cache: cache.clone(),
            catalogue: Catalogue::open(&folder.path().join("images")).unwrap(),
            nodes: Arc::new(nodes.unwrap()),
            downloads: Downloads::new(cache, swarm.clone()),
            delta: delta::Means { config: config::Delta::default(), limits: Default::default() },
        };
        let recipe = recipe(&content).encode_with_id().0;
        let expires = shoal_p2p::wall_clock().plus_millis(3_600_000);
        let ticket = Ticket::issue(recipe, key.peer_id(), expires, |text| signer.sign(text));
        let digest = Digest::sha256([7; 32]);
        let grant = BlobGrant {
            digest: digest.clone(),
            size_bytes: content.len() as u64,
            recipe,
            ticket: STANDARD.encode(ticket.to_bytes()),
        };
        let reference = format!("{NAME}:v1").parse().unwrap();
        fetcher.catalogue.remember(&reference, resolution(grant));
        let mirror = Mirror {
            fetcher,
            transfers: Transfers::new(metrics.clone(), Default::default()),
            metrics,
            peer: key.peer_id(),
            ticket_keys: swarm.ticket_keys().clone(),
            scheme: "http",
            rights: Rights::new(Default::default(), Default::default()),
            logins: Logins::default(),
            upstreams: Arc::new(Upstreams::open(folder.path(), &[])),
        };
        Self { mirror: Arc::new(mirror), content, digest, _folder: folder }
    }

    /// Asks for the blob, or for a part of it.
    async fn ask(&self, head: bool, range: Option<&'static str>) -> Result<Response, Error> {
        let (caller, name) = (Caller::bringing(LOGIN), NAME.parse().unwrap());
        let mut headers = HeaderMap::new();
        if let Some(range) = range {
            headers.insert(header::RANGE, HeaderValue::from_static(range));
        }
        let (mirror, digest) = (self.mirror.clone(), self.digest.clone());
        blob::serve(mirror, &caller, name, digest, head, &headers).await
    }
}

fn content() -> Bytes {
    let mut bytes = vec![0; BLOB_BYTES];
    blake3::Hasher::new().update(b"layer").finalize_xof().fill(&mut bytes);
    bytes.into()
}

fn recipe(content: &[u8]) -> Arc<Recipe> {
    let length = content.len() as u64;
    let objects = vec![SourceObject { key: ObjectKey::Pack(PackId::of(content)), length }];
    let pieces = || (0u64..).step_by(CHUNK_BYTES).zip(content.chunks(CHUNK_BYTES));
    let chunks = pieces().map(|(at, piece)| Chunk {
        id: ChunkId::of(piece),
        length: piece.len() as u32,
        object: 0,
        at,
        encoding: Encoding::Raw,
    });
    let extents = (0u32..).zip(pieces()).map(|(chunk, (offset, _))| Extent { offset, chunk });
    let (chunks, extents) = (chunks.collect(), extents.collect());
    Arc::new(Recipe::new(RecipeKind::Blob, length, objects, chunks, extents).unwrap())
}

fn resolution(grant: BlobGrant) -> AgentResolution {
    AgentResolution {
        image: NAME.parse().unwrap(),
        kind: "container".into(),
        public: false,
        version: "ver".into(),
        manifest_digest: Digest::sha256([1; 32]),
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        manifest: STANDARD.encode(b"{}"),
        manifests: Vec::new(),
        disk: None,
        blobs: vec![grant],
        warning: None,
        awaited: None,
    }
}

async fn swarm(
    authority: &Authority,
    key: &Arc<KeyPair>,
    signer: &KeyPair,
    cache: &Cache,
) -> Swarm {
    let certificate = authority.issue(&key.csr_pem().unwrap(), Role::Agent).unwrap();
    let authority_pem = authority.certificate_pem().to_owned();
    let ticket_key = TicketKey { public: *signer.peer_id().as_public_key(), until: None };
    let address = "127.0.0.1:0".parse().unwrap();
    let config = shoal_p2p::Config {
        credentials: Credentials::new(key.clone(), &certificate, authority_pem).unwrap(),
        listen: address,
        advertise: address,
        zone: Zone::default(),
        role: PeerRole::Host,
        ticket_keys: TicketKeys::new(vec![ticket_key]),
        discovery: None,
        bulk: Bulk::default(),
    };
    Swarm::start(config, Arc::new(cache.clone()), &mut Registry::default()).await.unwrap()
}

/// A node that has the blob, for whoever brings the login; gives its URL.
async fn node(authority: &Authority, content: Bytes) -> String {
    let certificate = authority.issue_http(&["127.0.0.1".to_owned()]).unwrap();
    let (chain, key) = (certificate.chain_pem.into_bytes(), certificate.key_pem.as_bytes());
    let tls = RustlsConfig::from_pem(chain, key.to_vec()).await.unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let answer = move |headers: HeaderMap| async move { of_node(&content, &headers) };
    let server = axum_server::from_tcp_rustls(listener, tls).unwrap();
    tokio::spawn(server.serve(Router::new().fallback(answer).into_make_service()));
    url
}

fn of_node(content: &Bytes, headers: &HeaderMap) -> Response {
    if headers.get(header::AUTHORIZATION).is_none_or(|login| login.as_bytes() != LOGIN.as_bytes()) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let asked = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let Part::Bytes(part) = range::parse(asked, content.len() as u64) else {
        return content.clone().into_response();
    };
    let range = format!("bytes {}-{}/{}", part.start, part.end - 1, content.len());
    let part = content.slice(part.start as usize..part.end as usize);
    (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, range)], part).into_response()
}

async fn body(response: Response) -> Bytes {
    to_bytes(response.into_body(), BLOB_BYTES).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cache_is_too_small_for_comes_from_a_node_whole_and_in_parts() {
    let stage = Stage::set(true).await;
    let recipe = recipe(&stage.content);
    let id = recipe.encode_with_id().0;
    // The recipe is here, as the swarm would have brought it.
    stage.mirror.fetcher.cache.open_entry(id, &recipe).unwrap();

    let whole = stage.ask(false, None).await.unwrap();
    assert_eq!(whole.status(), StatusCode::OK);
    assert!(body(whole).await == stage.content, "it came as something else");
    let part = stage.ask(false, Some("bytes=5-9")).await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.headers()[header::CONTENT_RANGE], format!("bytes 5-9/{BLOB_BYTES}"));
    assert_eq!(body(part).await, stage.content.slice(5..10));
    assert_eq!(stage.mirror.metrics.mirror_passed_bytes.get(), BLOB_BYTES as u64 + 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_has_is_refused_before_a_length_is_promised() {
    let stage = Stage::set(false).await;
    for range in [None, Some("bytes=5-9")] {
        let refused = stage.ask(false, range).await.unwrap_err();
        assert!(matches!(refused, Error::NoSource(_)), "{refused}");
        assert!(refused.to_string().contains("no node or peer"), "{refused}");
        assert_eq!(refused.into_response().status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    // Where the cache is too small, its settings are the way out while no node answers.
    let recipe = recipe(&stage.content);
    let id = recipe.encode_with_id().0;
    stage.mirror.fetcher.cache.open_entry(id, &recipe).unwrap();
    let refused = stage.ask(false, None).await.unwrap_err();
    assert!(matches!(refused, Error::NoSource(_)), "{refused}");
    assert!(refused.to_string().contains("cache.max_bytes"), "{refused}");
    // What is known of it is said all the same, as before every pull.
    let head = stage.ask(true, None).await.unwrap();
    assert_eq!(head.headers()[header::CONTENT_LENGTH], BLOB_BYTES.to_string());
    assert!(body(head).await.is_empty());
    let past = stage.ask(false, Some("bytes=9999999-")).await;
    assert!(matches!(past, Err(Error::Range { .. })), "{past:?}");
}
