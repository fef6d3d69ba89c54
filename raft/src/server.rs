//! Serves what the other members ask.
//!
//! Invariants: connections, the streams of one connection (quinn's own limit) and the bytes of all
//! requests under way are bounded; who is no node of the cluster is refused in the handshake, and
//! asked for once more after it. A request that does not come in whole in time is dropped, and so is
//! a proposal or a read whose asker has gone.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Incoming, RecvStream, SendStream};
use shoal_content::PeerId;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{debug, info, warn};

use crate::core::Shared;
use crate::forward::PROPOSALS_MAX;
use crate::proposal::{Proposal, TypeConfig};
use crate::space::DISK_FULL;
use crate::store::{decode, encode};
use crate::wire::{
    Failure, Kind, REMOVED, STRANGER, UNKNOWN_KIND, receive_body, receive_kind, receive_length,
    send_answer,
};
use crate::{members, propose, read, transfer};

/// The most connections at a time; a group has a handful of members.
const CONNECTIONS_MAX: usize = 256;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a request may take to come in.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How often it is looked again at who is at the other end of a connection. The other side does so more
/// often (see `peers`), and connects anew by itself, so that nothing on its way is lost.
const LOOK_INTERVAL: Duration = Duration::from_secs(15);

/// The bytes of all requests under way, in KiB.
const REQUESTS_KIB_MAX: usize = 256 * 1024;

/// Takes connections until the endpoint is closed.
pub async fn serve(shared: Arc<Shared>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let budget = Arc::new(Semaphore::new(REQUESTS_KIB_MAX));
    loop {
        let incoming = tokio::select! {
            incoming = shared.endpoint.accept() => incoming,
            () = shared.stopped.cancelled() => return,
        };
        let Some(incoming) = incoming else { return };
        let Ok(place) = connections.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let (served, budget) = (shared.clone(), budget.clone());
        shared.tasks.spawn(async move {
            let stopped = served.stopped.clone();
            tokio::select! {
                () = serve_connection(served, incoming, budget) => {}
                () = stopped.cancelled() => {}
            }
            drop(place);
        });
    }
}

async fn serve_connection(shared: Arc<Shared>, incoming: Incoming, budget: Arc<Semaphore>) {
    let address = incoming.remote_address();
    let connection = match timeout(HANDSHAKE_TIMEOUT, incoming).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            shared.metrics.strangers_refused.inc();
            warn!(%address, %error, "refused in the handshake");
            return;
        }
        Err(_) => return,
    };
    let Some(peer) = (shared.authenticate)(&connection) else {
        shared.metrics.strangers_refused.inc();
        warn!(%address, "refused: no node of this cluster");
        connection.close(STRANGER, b"no node of this cluster");
        return;
    };
    if is_retired(&shared, peer) {
        shared.metrics.strangers_refused.inc();
        warn!(%address, %peer, "refused: removed from this cluster");
        connection.close(STRANGER, b"removed from this cluster");
        return;
    }
    debug!(%address, %peer, "connected");
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (send, receive) = tokio::select! {
            accepted = connection.accept_bi() => match accepted {
                Ok(streams) => streams,
                Err(_) => return,
            },
            _ = looks.tick() => match (shared.authenticate)(&connection) {
                Some(_) => continue,
                None => {
                    info!(%address, %peer, "closed: it is not known for a node any more");
                    connection.close(STRANGER, b"no node of this cluster any more");
                    return;
                }
            },
        };
        let (served, budget) = (shared.clone(), budget.clone());
        shared.tasks.spawn(async move {
            let stopped = served.stopped.clone();
            let served = serve_request(served, peer, send, receive, budget);
            let result = tokio::select! {
                result = served => result,
                () = stopped.cancelled() => return,
            };
            if let Err(error) = result {
                debug!(%peer, %error, "a request broke off");
            }
        });
    }
}

/// Whether the peer was a node and was removed, as far as this member has heard. A member that has
/// not heard of a node yet must take what it sends: it may be the leader that brings the news.
fn is_retired(shared: &Shared, peer: PeerId) -> bool {
    let Ok(core) = shared.core() else { return false };
    core.view().query().is_retired(peer).unwrap_or(false)
}

async fn serve_request(
    shared: Arc<Shared>,
    peer: PeerId,
    mut send: SendStream,
    mut receive: RecvStream,
    budget: Arc<Semaphore>,
) -> io::Result<()> {
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let head = async {
        let kind = receive_kind(&mut receive).await?;
        Ok::<_, io::Error>((Kind::from_byte(kind), receive_length(&mut receive).await?))
    };
    let (kind, length) = timeout(REQUEST_TIMEOUT, head).await.map_err(late)??;
    let Some(kind) = kind else {
        // Where the other side has gone already there is nobody to tell.
        let _ = send.reset(UNKNOWN_KIND);
        return Ok(());
    };
    let kib = u32::try_from(length.div_ceil(1024)).map_err(io::Error::other)?;
    let held = budget.acquire_many(kib).await.map_err(io::Error::other)?;
    let body = receive_body(&mut receive, length);
    let body = timeout(REQUEST_TIMEOUT, body).await.map_err(late)??;
    // Entries come by the thousand, from a leader that its group has elected.
    if kind != Kind::Append && is_retired(&shared, peer) {
        let _ = send.reset(REMOVED);
        return Ok(());
    }
    let gone = send.stopped();
    let waits = matches!(kind, Kind::Propose | Kind::ProposeMany | Kind::ReadIndex);
    let answer = tokio::select! {
        answer = answer(&shared, kind, &body, &mut send, &mut receive) => answer?,
        // What was proposed is applied or not; only the answer is not waited for.
        _ = gone, if waits => return Ok(()),
    };
    drop(held);
    send_answer(&mut send, answer).await
}

async fn answer(
    shared: &Shared,
    kind: Kind,
    body: &[u8],
    send: &mut SendStream,
    receive: &mut RecvStream,
) -> io::Result<Vec<u8>> {
    match kind {
        Kind::Append => encode(&append(shared, decode(body)?).await),
        Kind::Vote => encode(&vote(shared, decode(body)?, false).await),
        Kind::PreVote => encode(&vote(shared, decode(body)?, true).await),
        Kind::SnapshotFiles => {
            let offer = decode(body)?;
            let Shared { space, metrics, .. } = shared;
            let installed: transfer::Installed = match shared.core() {
                Ok(core) => transfer::receive(&core, space, metrics, offer, send, receive).await,
                Err(failure) => Err(failure),
            };
            encode(&installed)
        }
        Kind::Propose => encode(&propose::here(shared, decode(body)?).await),
        Kind::ProposeMany => {
            let proposals: Vec<Proposal> = decode(body)?;
            if proposals.len() > PROPOSALS_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "too many proposals"));
            }
            encode(&propose::many_here(shared, proposals).await)
        }
        Kind::ReadIndex => {
            decode::<()>(body)?;
            encode(&read::index_for_member(shared).await)
        }
        Kind::AddMember => encode(&members::add_here(shared, &decode(body)?).await),
        Kind::RemoveMember => encode(&members::remove_here(shared, decode(body)?).await),
        Kind::TransferLeader => encode(&take_over(shared, decode(body)?).await),
    }
}

type Served<T> = Result<T, Failure>;

/// Entries are not taken while the disk is nearly full: this member falls behind and catches up
/// when there is space again, rather than let its databases fail.
async fn append(
    shared: &Shared,
    rpc: openraft::raft::AppendEntriesRequest<TypeConfig>,
) -> Served<openraft::raft::AppendEntriesResponse<TypeConfig>> {
    if !rpc.entries.is_empty() && !shared.space.has_half_reserve() {
        return Err(Failure::Storage(DISK_FULL.into()));
    }
    let core = shared.core()?;
    core.engine.append_entries(rpc).await.map_err(unavailable)
}

async fn vote(
    shared: &Shared,
    rpc: openraft::raft::VoteRequest<TypeConfig>,
    before: bool,
) -> Served<openraft::raft::VoteResponse<TypeConfig>> {
    let core = shared.core()?;
    let answer = if before { core.engine.pre_vote(rpc).await } else { core.engine.vote(rpc).await };
    answer.map_err(unavailable)
}

/// The leader asks a voter to lead, and tells the others.
async fn take_over(
    shared: &Shared,
    request: openraft::raft::TransferLeaderRequest<TypeConfig>,
) -> Served<openraft::raft::TransferLeaderResponse<TypeConfig>> {
    shared.core()?.engine.handle_transfer_leader(request).await.map_err(unavailable)
}

fn unavailable(error: impl std::fmt::Display) -> Failure {
    Failure::Unavailable(error.to_string())
}
