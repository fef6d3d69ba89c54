//! What openraft sends, over our own connections.
//!
//! Invariant: every request has an end in time. Messages with entries may take longer than a
//! heartbeat interval, since a manifest may be 4 MiB and the receiver syncs.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{AnyError, BasicNode, OptionalSend};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::debug;

use crate::peers::{CallError, Peers};
use crate::proposal::{TypeConfig, Vote};
use crate::snapshot::{Checkpoint, StateSnapshot};
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
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Client {
        Client { peers: self.peers.clone(), target, address: node.addr.clone() }
    }
}

/// Sends to one member.
pub struct Client {
    peers: Arc<Peers>,
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
        let answer: Result<Result<A, Failure>, CallError> =
            self.peers.call(&self.address, kind, body, limit).await;
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(failure)) => {
                debug!(node = self.target, ?kind, %failure, "refused");
                Err(RPCError::Unreachable(Unreachable::new(&failure)))
            }
            Err(error @ CallError::Connect { .. }) => {
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
            let connection = self.peers.connection(&self.address).await;
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
