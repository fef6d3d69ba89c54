//! What openraft sends, over our own connections.
//!
//! Invariants: every request has an end in time. Messages with entries may take longer than a
//! heartbeat interval, since a manifest may be 4 MiB and the receiver syncs. What is said to a member
//! is said to the node that has, or had, its id: a machine that joins anew at the address of a member
//! whose disk is lost has an empty log, and must not vote in its place.

use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{AnyError, BasicNode, OptionalSend};
use parking_lot::RwLock;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_content::{NodeId, PeerId};
use shoal_metadata::{Fault, Query};
use tracing::debug;

use crate::peers::{CallError, Peers};
use crate::proposal::{TypeConfig, Vote};
use crate::snapshot::{Checkpoint, StateSnapshot};
use crate::store::Store;
use crate::transfer;
use crate::wire::{Failure, Kind};

/// How long a message with entries may take.
const APPEND_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a member may take to get ready to lead: it syncs its log.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(2);

type Rpc<T> = Result<T, RPCError<TypeConfig>>;

/// Makes a client for each member.
pub struct Network {
    pub peers: Arc<Peers>,
    pub rows: NodeRows,
}

/// The rows that say who is who. Weak, since a request that is still under way must not keep databases
/// open that are to be opened again.
pub type NodeRows = Weak<RwLock<Arc<Store>>>;

/// Who has this id, or had it and was removed; nobody while the cluster is being founded, and as long
/// as this member has not heard of it.
fn peer_of(rows: &NodeRows, id: u64) -> Result<Option<PeerId>, Fault> {
    let Some(store) = rows.upgrade() else { return Ok(None) };
    let store = store.read().clone();
    let (query, id) = (Query::new(&*store), NodeId::new(id));
    match query.node(id)? {
        Some(node) => Ok(Some(node.peer)),
        None => query.retired_node(id),
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Client {
        let (peers, rows) = (self.peers.clone(), self.rows.clone());
        Client { peers, rows, target, address: node.addr.clone() }
    }
}

/// Sends to one member.
pub struct Client {
    peers: Arc<Peers>,
    rows: NodeRows,
    target: u64,
    address: String,
}

impl Client {
    async fn call<A: DeserializeOwned>(
        &self,
        kind: Kind,
        body: &impl Serialize,
        limit: Duration,
    ) -> Rpc<A> {
        let expected = peer_of(&self.rows, self.target);
        let expected = expected.map_err(|fault| RPCError::Unreachable(Unreachable::new(&fault)))?;
        let answer: Result<Result<A, Failure>, CallError> =
            self.peers.call_peer((&self.address, expected), kind, body, limit).await;
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(failure)) => {
                debug!(node = self.target, ?kind, %failure, "refused");
                Err(RPCError::Unreachable(Unreachable::new(&failure)))
            }
            Err(error @ (CallError::Connect { .. } | CallError::Another { .. })) => {
                Err(RPCError::Unreachable(Unreachable::new(&error)))
            }
            Err(error) => {
                debug!(node = self.target, ?kind, %error, "no answer");
                Err(RPCError::Network(NetworkError::new(&error)))
            }
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = Checkpoint;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        let limit = if rpc.entries.is_empty() {
            // A heartbeat that is a little late is better than none.
            option.hard_ttl() * 2
        } else {
            APPEND_TIMEOUT
        };
        self.call(Kind::Append, &rpc, limit).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        self.call(Kind::Vote, &rpc, option.hard_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        self.call(Kind::PreVote, &rpc, option.hard_ttl()).await
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        self.call(Kind::TransferLeader, &request, TRANSFER_TIMEOUT).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: StateSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let unreachable =
            |error: String| StreamingError::Unreachable(Unreachable::new(&AnyError::error(error)));
        let sending = async {
            let expected = peer_of(&self.rows, self.target);
            let expected = expected.map_err(|fault| unreachable(fault.to_string()))?;
            let connection = self.peers.connection(&self.address, expected).await;
            let connection = connection.map_err(|error| unreachable(error.to_string()))?;
            match transfer::send(&connection, vote, &snapshot).await {
                Ok(Ok(response)) => Ok(response),
                Ok(Err(failure)) => Err(unreachable(failure.to_string())),
                Err(error) => Err(unreachable(error.to_string())),
            }
        };
        tokio::select! {
            sent = sending => sent,
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{Authority, Home, Member, eventually, peer, register};

    /// Whether `from` gets an answer to a vote request for `target` from whoever is at an address.
    fn asks(from: &Member, target: u64, address: String) -> Result<(), String> {
        from.run(move |raft| async move {
            let core = raft.shared.core().unwrap();
            let rows = Arc::downgrade(&core.store);
            let mut network = Network { peers: raft.shared.peers.clone(), rows };
            let client = network.new_client(target, &BasicNode::new(address)).await;
            let request = VoteRequest::<TypeConfig>::new(Vote::new(1, 1), None);
            let limit = Duration::from_secs(5);
            let asked: Rpc<VoteResponse<TypeConfig>> =
                client.call(Kind::PreVote, &request, limit).await;
            asked.map(drop).map_err(|error| error.to_string())
        })
    }

    #[test]
    fn who_has_come_to_a_members_address_is_not_asked_in_its_place() {
        let authority = Authority::new();
        let (mut home, mut second, mut fourth) = (Home::new(1), Home::new(2), Home::new(4));
        let first = home.start(&authority);
        first.bootstrap();
        let lost = second.start(&authority);
        let address = lost.address.to_string();
        // Before there are rows, addresses are all that there is.
        asks(&first, 3, address.clone()).unwrap();
        for id in [2, 3, 4] {
            first.propose(register(id, 1)).unwrap();
        }
        asks(&first, 2, address.clone()).unwrap();
        let refused = asks(&first, 3, address.clone()).unwrap_err();
        assert!(refused.contains("another node than"), "{refused}");

        // Its disk is lost, and the machine joins anew.
        fourth.take_address(&second);
        lost.stop();
        let _new = fourth.start(&authority);
        eventually("it answers for itself", || asks(&first, 4, address.clone()).ok());
        for _ in 0..2 {
            let refused = asks(&first, 2, address.clone()).unwrap_err();
            assert!(refused.contains("another node than"), "{refused}");
            // Nor does the old one come back by being removed.
            let _ = first.propose(shoal_metadata::Command::RemoveNode(NodeId::new(2)));
        }
    }
    #[test]
    fn who_was_not_believed_at_first_is_asked_once_it_is() {
        let authority = Authority::new();
        let (mut home, mut other) = (Home::new(1), Home::new(2));
        let first = home.start(&authority);
        first.bootstrap();
        let second = other.start(&authority);
        let address = second.address.to_string();
        authority.refuse(&[peer(2)]);
        for id in [1, 2] {
            first.propose(register(id, 1)).unwrap();
        }
        let refused = asks(&first, 2, address.clone()).unwrap_err();
        assert!(refused.contains("another node than"), "{refused}");
        authority.refuse(&[]);
        eventually("it is believed", || asks(&first, 2, address.clone()).ok());
    }
}
