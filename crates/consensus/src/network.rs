//! openraft's network, over the node's one transport.

use crate::promise::Death;
use crate::snapshot::{self, SnapshotData};
use crate::types::{Types, Vote, decode, encode};
use base::{Env, NodeId, TabletId};
use bytes::Bytes;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, v2::RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use transport::{MessageKind, Transport};

#[derive(Clone)]
pub struct Network {
    pub env: Env,
    pub transport: Transport,
    pub tablet: TabletId,
    /// Of the group's voters, as far as this node knows.
    pub deaths: Arc<dyn Fn() -> Vec<Death> + Send + Sync>,
    pub n_snapshots_sent: Arc<AtomicU64>,
}

/// A candidate's request, and the deaths that the voter may not have heard of. The request itself frees
/// a voter that was down when a death was reported (`succession`).
#[derive(Serialize, Deserialize)]
pub struct Campaign {
    pub request: VoteRequest<Types>,
    pub deaths: Vec<Death>,
}

/// What the leaders on one node say to another node.
#[derive(Serialize, Deserialize)]
pub enum Append {
    /// Entries of one group, or its heartbeat.
    Entries(TabletId, AppendEntriesRequest<Types>),
    /// Groups at rest that the sender leads, each with its term.
    Quiet(Vec<(TabletId, u64)>),
}

/// How long the answer to entries is waited for. For a heartbeat that would be too long; but entries
/// that take a follower's disk a while must not be sent again and again.
const ENTRIES_DEADLINE: Duration = Duration::from_secs(2);
/// A member that cannot be reached is tried again after this pause: its process may be back in a
/// moment, and make the majority.
const TRY_AGAIN: Duration = Duration::from_millis(50);

impl RaftNetworkFactory<Types> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, _node: &()) -> Connection {
        Connection { network: self.clone(), target: NodeId(target) }
    }
}

pub struct Connection {
    network: Network,
    target: NodeId,
}

impl Connection {
    async fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        kind: MessageKind,
        request: Q,
        deadline: Duration,
    ) -> Result<A, RPCError<Types>> {
        self.call(kind, encode(&(self.network.tablet, request)), deadline).await
    }

    fn campaign(&self, request: VoteRequest<Types>) -> Campaign {
        Campaign { request, deaths: (self.network.deaths)() }
    }

    async fn call<A: DeserializeOwned>(
        &self,
        kind: MessageKind,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<A, RPCError<Types>> {
        let answer = self.network.transport.call(self.target, kind, deadline, payload).await;
        let unreachable = |error: &transport::Error| RPCError::Unreachable(Unreachable::new(error));
        let answer = answer.map_err(|error| match &error {
            transport::Error::Deadline { .. } => RPCError::Network(NetworkError::new(&error)),
            _ => unreachable(&error),
        })?;
        let answer: Result<A, String> =
            decode(&answer).map_err(|error| RPCError::Network(NetworkError::new(&error)))?;
        answer.map_err(|reason| RPCError::Unreachable(Unreachable::from_string(reason)))
    }
}

impl RaftNetworkV2<Types> for Connection {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let deadline = match request.entries.is_empty() {
            true => option.hard_ttl(),
            false => option.hard_ttl().max(ENTRIES_DEADLINE),
        };
        let payload = encode(&Append::Entries(self.network.tablet, request));
        self.call(MessageKind::RaftAppend, payload, deadline).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask(MessageKind::RaftVote, self.campaign(request), option.hard_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask(MessageKind::RaftPreVote, self.campaign(request), option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Types, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let Network { env, transport, tablet, n_snapshots_sent, .. } = &self.network;
        let transfer = env.random();
        tokio::select! {
            sent = snapshot::send(transport, self.target, *tablet, transfer, vote, snapshot) => {
                let sent = sent.inspect(|_| {
                    n_snapshots_sent.fetch_add(1, Ordering::Relaxed);
                });
                sent.map_err(|reason| {
                    tracing::warn!(%tablet, to = %self.target, reason, "a snapshot was not delivered");
                    StreamingError::Unreachable(Unreachable::from_string(reason))
                })
            }
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        self.ask(MessageKind::RaftTransferLeader, request, option.hard_ttl()).await
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(TRY_AGAIN)))
    }
}
