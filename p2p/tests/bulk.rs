//! Chunks over TLS and TCP on loopback, and all the ways in which they go by QUIC after all.

mod cluster;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use shoal_content::RecipeId;
use shoal_p2p::identity::{Credentials, Role, roots};
use shoal_p2p::{Bulk, Limits, MemoryStore, Path, PeerRole};
use shoal_swarm::frames::{self, Answer, Ask};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use cluster::{CHUNK_BYTES, Cluster, DEADLINE, Process, Ways, content, fetch, fill, holds_all};

const ALPN: &[u8] = b"shoal-bulk/2";
const BY_TLS: &str = "shoal_bulk_bytes_received_total{path=\"tls\"}";
const BY_QUIC: &str = "shoal_bulk_bytes_received_total{path=\"quic\"}";
const SENT_BY_TLS: &str = "shoal_bulk_bytes_sent_total{path=\"tls\"}";
const FAILURES: &str = "shoal_bulk_failures_total";
const LISTENING: &str = "shoal_bulk_listening";
const CONNECTIONS: &str = "shoal_bulk_connections";
const BANS: &str = "shoal_peer_bans_total{reason=\"wrong_content\"}";
/// Stands behind an answer.
const END: [u8; 4] = [0xff; 4];
/// From one thing to the next.
const STEP: Duration = Duration::from_millis(100);
/// Well before a connection that nothing is asked over is closed for that.
const SOON: Duration = Duration::from_secs(8);

async fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A node, and a host that knows it.
struct Pair {
    cluster: Cluster,
    origin: Process,
    agent: Process,
}

impl Pair {
    async fn start() -> Self {
        Self::start_by(Ways::default(), by_tls()).await
    }

    async fn start_by(origin: Ways, agent: Ways) -> Self {
        let cluster = Cluster::found(1);
        let store = || Arc::new(MemoryStore::default());
        let origin = cluster.start_by(PeerRole::Origin, store(), origin).await;
        let agent = cluster.start_by(PeerRole::Host, store(), agent).await;
        agent.swarm.set_nodes(vec![origin.address()]).await;
        Self { cluster, origin, agent }
    }

    /// Has the host fetch something new.
    async fn fetch(&self, chunks: usize) {
        let (recipe, id, contents) = content(chunks);
        fill(&*self.origin.store, &recipe, id, &contents).await;
        fetch(&self.cluster, &self.agent, id).await;
        holds_all(&*self.agent.store, id, &contents).await;
    }

    /// Has the host fetch one thing after the other, since the first requests go by QUIC, and all of
    /// them before some MiB came fast.
    async fn fetch_until(&self, mut condition: impl FnMut(&Process) -> bool) {
        let work = async {
            for chunks in 100.. {
                self.fetch(chunks).await;
                if timeout(STEP, until(|| condition(&self.agent))).await.is_ok() {
                    return;
                }
            }
        };
        timeout(DEADLINE, work).await.expect("it does not come to that");
    }

    async fn fetch_until_by_tls(&self) {
        self.fetch_until(|agent| agent.metric(BY_TLS) > 0).await;
    }

    fn path(&self) -> Path {
        self.agent.swarm.status().peers[0].path
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_come_by_tls_where_the_network_is_fast_and_are_counted() {
    let pair = Pair::start_by(Ways::default(), Ways::default()).await;
    assert_eq!(pair.origin.metric(LISTENING), 1);
    pair.fetch_until_by_tls().await;
    let before = pair.agent.metric(BY_TLS);
    pair.fetch(300).await;
    let (by_tls, by_quic) = (pair.agent.metric(BY_TLS), pair.agent.metric(BY_QUIC));
    assert!(by_tls > before, "the way is not taken again");
    let all = pair.agent.metric("shoal_chunk_bytes_received_total{from=\"node\"}");
    assert_eq!(by_tls + by_quic, all);
    assert_eq!(pair.path(), Path::Tls);
    assert_eq!(pair.agent.metric(FAILURES), 0);
    let sent = until(|| pair.origin.metric(SENT_BY_TLS) >= by_tls);
    timeout(DEADLINE, sent).await.expect("what was sent is not counted");
    pair.agent.swarm.shutdown().await;
    let closed = until(|| pair.origin.metric(CONNECTIONS) == 0);
    timeout(SOON, closed).await.expect("a connection outlived its host");
    pair.origin.swarm.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_only_quic_gets_and_gives_everything_all_the_same() {
    let quic = Ways { bulk: Bulk::Quic, ..Ways::default() };
    for (origin, agent) in [(quic, Ways::default()), (Ways::default(), quic), (quic, quic)] {
        let pair = Pair::start_by(origin, agent).await;
        for (process, ways) in [(&pair.origin, origin), (&pair.agent, agent)] {
            assert_eq!(process.metric(LISTENING), u64::from(ways.bulk != Bulk::Quic));
        }
        pair.fetch(64).await;
        pair.fetch(65).await;
        assert_eq!(pair.agent.metric(BY_TLS), 0);
        assert_eq!(pair.path(), Path::Quic);
    }
}

/// How a host asks for chunks by TLS, however busy the machine of the test is.
fn by_tls() -> Ways {
    Ways { bulk: Bulk::Tls, ..Ways::default() }
}

/// A TCP port that is taken, and how to listen at it for UDP.
fn taken() -> (std::net::TcpListener, Ways) {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    (taken, Ways { listen, ..Ways::default() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_or_answers_nothing_leaves_quic() {
    let (_taken, origin) = taken();
    let pair = Pair::start_by(origin, by_tls()).await;
    assert_eq!(pair.origin.metric(LISTENING), 0);
    pair.fetch_until(|agent| agent.metric(FAILURES) > 0).await;
    // For a while it is not tried again.
    pair.fetch(500).await;
    assert_eq!(pair.agent.metric(FAILURES), 1);
    assert_eq!(pair.agent.metric(BY_TLS), 0);
    assert!(pair.agent.swarm.status().banned.is_empty());
}

/// Answers every request at `listener` with these bytes, in the name of whose credentials they are,
/// and ends the connection.
fn answer_falsely(listener: std::net::TcpListener, credentials: &Credentials, answer: Vec<u8>) {
    let config = credentials.tls_server(ALPN, &Role::ALL).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            // Each by itself: the next one is made while the last one waits for its question. Whoever
            // came may have gone.
            tokio::spawn(async move {
                let mut lane = acceptor.accept(socket).await?;
                let length = lane.read_u32().await?;
                lane.read_exact(&mut vec![0; length as usize]).await?;
                lane.write_all(&answer).await?;
                lane.flush().await
            });
        }
    });
}

/// The beginning of an answer with one chunk that is all zeros.
fn zeros(bytes: usize) -> Vec<u8> {
    let mut answer = vec![Answer::Content.byte()];
    answer.extend((CHUNK_BYTES as u32).to_be_bytes());
    answer.resize(answer.len() + bytes, 0);
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_connection_that_breaks_off_owes_comes_by_quic() {
    for answer in [Vec::new(), vec![Answer::Content.byte()], zeros(CHUNK_BYTES / 2)] {
        let (listener, origin) = taken();
        let pair = Pair::start_by(origin, by_tls()).await;
        answer_falsely(listener, pair.origin.swarm.credentials(), answer);
        pair.fetch_until(|agent| agent.metric(FAILURES) > 0).await;
        assert_eq!(pair.agent.metric(BY_TLS), 0);
        assert!(pair.agent.swarm.status().banned.is_empty());
    }
}

/// The beginning of an answer with one chunk as such a frame.
fn framed(frame: &[u8]) -> Vec<u8> {
    let head = frame.len() as u32 | 1 << 31;
    [&[Answer::Content.byte()][..], &head.to_be_bytes(), frame].concat()
}

/// A frame of so many zeros.
fn frame(bytes: usize) -> Vec<u8> {
    zstd::bulk::compress(&vec![0; bytes], 3).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_content_by_tls_bans_whose_connection_it_was() {
    is_banned_for(zeros(CHUNK_BYTES)).await;
    is_banned_for(framed(&frame(CHUNK_BYTES))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_is_no_chunk_bans_whose_connection_it_was() {
    for longer in [CHUNK_BYTES + 1, 100 << 20] {
        is_banned_for(framed(&frame(longer))).await;
    }
    is_banned_for(framed(&frame(CHUNK_BYTES - 1))).await;
    is_banned_for(framed(&[frame(CHUNK_BYTES), vec![0]].concat())).await;
    is_banned_for(framed(b"not zstd")).await;
    is_banned_for(framed(&[])).await;
    // As long as the chunk itself: nobody reads that.
    is_banned_for(framed(&vec![0; CHUNK_BYTES])).await;
}

/// Whoever begins each answer by TLS like this.
async fn is_banned_for(answer: Vec<u8>) {
    let banned = async { while !bans(&answer).await {} };
    timeout(DEADLINE, banned).await.expect("nobody was banned");
}

/// Not where a connection failed before it was answered, as happens on a busy machine: the two do
/// without for longer than a test takes then.
async fn bans(answer: &[u8]) -> bool {
    let (listener, origin) = taken();
    let pair = Pair::start_by(origin, by_tls()).await;
    answer_falsely(listener, pair.origin.swarm.credentials(), answer.to_vec());
    for chunks in 100.. {
        let (recipe, id, contents) = content(chunks);
        fill(&*pair.origin.store, &recipe, id, &contents).await;
        let ticket = pair.cluster.ticket(id, pair.agent.swarm.peer_id());
        let transfer = pair.agent.swarm.fetch(id, recipe, ticket);
        tokio::select! {
            _ = transfer.wait() => {}
            () = until(|| pair.agent.metric(BANS) > 0) => {}
        }
        if pair.agent.metric(BANS) > 0 {
            assert!(!pair.agent.swarm.status().banned.is_empty());
            return true;
        }
        if pair.agent.metric(FAILURES) > 0 {
            break;
        }
    }
    false
}

/// A bulk connection of whoever has these credentials.
async fn lane(of: &Credentials, to: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
    let config = of.tls_client(ALPN, &Role::ALL).unwrap();
    let socket = TcpStream::connect(to).await?;
    let name = ServerName::try_from(Role::Agent.server_name()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, socket).await
}

/// What is answered to a request for a recipe's first chunk; nothing where the connection ends.
async fn answer(of: &Credentials, to: SocketAddr, recipe: RecipeId) -> Option<[u8; 5]> {
    let asked = async {
        let mut lane = lane(of, to).await?;
        let ask = Ask::Chunks { recipe, indices: vec![0], insists: false };
        let ask = frames::encode(&ask).unwrap();
        lane.write_all(&(ask.len() as u32).to_be_bytes()).await?;
        lane.write_all(&ask).await?;
        lane.flush().await?;
        let mut answer = [0; 5];
        lane.read_exact(&mut answer).await?;
        io::Result::Ok(answer)
    };
    timeout(DEADLINE, asked).await.unwrap().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_without_a_link_and_a_ticket_gets_anything() {
    let pair = Pair::start().await;
    let (recipe, id, contents) = content(4);
    fill(&*pair.origin.store, &recipe, id, &contents).await;
    let to = pair.origin.swarm.local_address();
    // Another cluster's, who believes this one.
    let foreign = Cluster::found(2);
    let stranger = foreign.credentials(Role::Agent);
    let both = [pair.cluster.authority_pem(), foreign.authority_pem()].map(str::as_bytes);
    stranger.trust().replace(roots(both).unwrap()).unwrap();
    assert_eq!(answer(&stranger, to, id).await, None);
    let unlinked = pair.cluster.credentials(Role::Agent);
    assert_eq!(answer(&unlinked, to, id).await, None);

    // A link with a ticket for something else.
    pair.fetch(1).await;
    let agent = pair.agent.swarm.credentials();
    let [first, end @ ..] = answer(agent, to, id).await.unwrap();
    assert_eq!((first, end), (Answer::Forbidden.byte(), END));
    // With its ticket it does.
    fetch(&pair.cluster, &pair.agent, id).await;
    let [first, length @ ..] = answer(agent, to, id).await.unwrap();
    assert_eq!(first, Answer::Content.byte());
    assert_eq!(u32::from_be_bytes(length), CHUNK_BYTES as u32);

    let removed = BTreeSet::from([pair.agent.swarm.peer_id()]);
    pair.origin.swarm.set_expelled(removed);
    assert_eq!(answer(agent, to, id).await, None);
    assert!(pair.agent.swarm.status().banned.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_connections_than_a_peer_may_have_are_refused() {
    let pair = Pair::start().await;
    pair.fetch(1).await;
    let (_, id, _) = content(1);
    let (agent, to) = (pair.agent.swarm.credentials(), pair.origin.swarm.local_address());
    let mut held = Vec::new();
    let refused = async {
        loop {
            held.push(lane(agent, to).await.unwrap());
            if answer(agent, to, id).await.is_none() {
                return;
            }
        }
    };
    timeout(DEADLINE, refused).await.expect("any number is let in");
    drop(held);
    let served = async { while answer(agent, to, id).await.is_none() {} };
    timeout(DEADLINE, served).await.expect("the places are not given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_link_ends_its_connections() {
    let pair = Pair::start().await;
    pair.fetch_until_by_tls().await;
    for process in [&pair.origin, &pair.agent] {
        assert!(process.metric(CONNECTIONS) > 0);
    }
    pair.origin.swarm.set_expelled(BTreeSet::from([pair.agent.swarm.peer_id()]));
    let closed =
        until(|| pair.origin.metric(CONNECTIONS) == 0 && pair.agent.metric(CONNECTIONS) == 0);
    timeout(SOON, closed).await.expect("a connection outlived its link");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_is_given_up_frees_the_slots_and_goes_on_later() {
    let pair = Pair::start().await;
    pair.fetch_until_by_tls().await;
    let before = pair.agent.metric(BY_TLS);
    let (recipe, id, contents) = content(512);
    fill(&*pair.origin.store, &recipe, id, &contents).await;
    let ticket = pair.cluster.ticket(id, pair.agent.swarm.peer_id());
    let transfer = pair.agent.swarm.fetch(id, recipe, ticket);
    let mut progress = transfer.progress();
    let began = progress.wait_for(|progress| progress.chunks_done >= 8);
    timeout(DEADLINE, began).await.unwrap().unwrap();
    drop(transfer);
    let idle = until(|| pair.origin.swarm.status().uploads == 0);
    timeout(DEADLINE, idle).await.expect("a slot is not given back");
    let done = fetch(&pair.cluster, &pair.agent, id).await;
    assert!(done.bytes_local > 0, "what was verified before was fetched again");
    holds_all(&*pair.agent.store, id, &contents).await;
    assert!(pair.agent.metric(BY_TLS) > before);
    assert!(pair.agent.swarm.status().banned.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold_whichever_way_chunks_go() {
    /// A quarter of what the limit asks for: what is under way when a debt is made goes on.
    const LEAST: Duration = Duration::from_secs(1);
    let pair = Pair::start().await;
    pair.fetch_until_by_tls().await;
    let before = pair.agent.metric(BY_TLS);
    let limits = Limits { upload: Some(1_000_000), download: None };
    pair.origin.swarm.set_limits(limits).await;
    let began = Instant::now();
    pair.fetch(64).await;
    assert!(began.elapsed() >= LEAST, "the limit does not hold");
    assert!(pair.agent.metric(BY_TLS) > before);
}
