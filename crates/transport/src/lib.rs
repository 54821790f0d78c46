//! Messages between nodes: requests with deadlines and their replies, in checked frames.
//!
//! Each pair of nodes is joined by one connection for every [`Priority`] and direction of asking,
//! so that a snapshot never stands in front of a heartbeat. A connection carries [`frame`]s; a
//! corrupt or missing one closes it, a repeated one is dropped, each is counted in [`Counters`].
//! Requests that were under way on a closed connection fail with [`Error::Unreachable`], and the next
//! request opens a new connection.
//!
//! The transport never retries a request: only its sender knows whether that is harmless. It
//! does not know what payloads mean. FORMAT.md describes the bytes.

mod connection;
mod counters;
pub mod frame;
mod kind;
mod server;
pub mod tls;

pub use counters::{Counters, Snapshot};
pub use kind::{MessageKind, Priority};

use base::{Disposition, Env, NodeId};
use bytes::Bytes;
use connection::Peer;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no address is known for node {0}")]
    UnknownNode(NodeId),
    #[error("node {node} is unreachable: {reason}")]
    Unreachable { node: NodeId, reason: String },
    #[error("node {node} did not answer within {}", Millis(*after))]
    Deadline { node: NodeId, after: Duration },
    #[error("node {node} has no handler for {kind:?}")]
    NoHandler { node: NodeId, kind: MessageKind },
    #[error("a message of {bytes} bytes is larger than {max}")]
    TooLarge { bytes: usize, max: usize },
    #[error("cannot listen on {at}: {source}")]
    Listen { at: SocketAddr, source: std::io::Error },
    #[error("TLS: {0}")]
    Tls(String),
}

struct Millis(Duration);

impl std::fmt::Display for Millis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ms", self.0.as_millis())
    }
}

impl Error {
    pub fn disposition(&self) -> Disposition {
        match self {
            Error::Unreachable { .. } | Error::Deadline { .. } | Error::UnknownNode(_) => {
                Disposition::RetryElsewhere
            }
            Error::NoHandler { .. } | Error::TooLarge { .. } | Error::Tls(_) => Disposition::Refuse,
            Error::Listen { .. } => Disposition::Halt,
        }
    }
}

pub type Answer = Pin<Box<dyn Future<Output = Bytes> + Send>>;

/// A node's work for one kind of message. The answer is dropped when the deadline passes.
pub trait Handler: Send + Sync + 'static {
    fn handle(&self, from: NodeId, payload: Bytes) -> Answer;
}

impl<F> Handler for F
where
    F: Fn(NodeId, Bytes) -> Answer + Send + Sync + 'static,
{
    fn handle(&self, from: NodeId, payload: Bytes) -> Answer {
        self(from, payload)
    }
}

/// Who this node is to its peers.
#[derive(Clone, Debug)]
pub struct Identity {
    pub node: NodeId,
    /// Nodes of different clusters refuse each other.
    pub cluster: u64,
    /// The number of this start of the node on its data. A peer that has heard from one start takes
    /// no news of an earlier one.
    pub boot: u64,
}

/// A node's end of all its conversations. Cheap to clone.
#[derive(Clone)]
pub struct Transport {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) env: Env,
    pub(crate) identity: Identity,
    pub(crate) tls: Option<tls::Tls>,
    pub(crate) counters: Counters,
    pub(crate) handlers: RwLock<HashMap<MessageKind, Arc<dyn Handler>>>,
    peers: RwLock<HashMap<NodeId, Arc<Peer>>>,
    boots: RwLock<HashMap<NodeId, u64>>,
}

impl Inner {
    pub(crate) fn heard_from(&self, node: NodeId, boot: u64) {
        let mut boots = self.boots.write();
        let newest = boots.entry(node).or_insert(boot);
        *newest = boot.max(*newest);
    }
}

impl Transport {
    pub fn new(env: Env, identity: Identity, tls: Option<tls::Tls>) -> Transport {
        Transport {
            inner: Arc::new(Inner {
                env,
                identity,
                tls,
                counters: Counters::default(),
                handlers: RwLock::default(),
                peers: RwLock::default(),
                boots: RwLock::default(),
            }),
        }
    }

    pub fn node(&self) -> NodeId {
        self.inner.identity.node
    }

    pub fn counters(&self) -> Snapshot {
        self.inner.counters.snapshot()
    }

    /// Registers what to do with `kind`. Before [`Transport::serve`].
    pub fn handle(&self, kind: MessageKind, handler: impl Handler) {
        self.inner.handlers.write().insert(kind, Arc::new(handler));
    }

    /// Binds `at` and answers peers until the process ends.
    pub async fn serve(&self, at: SocketAddr) -> Result<SocketAddr, Error> {
        server::serve(self.inner.clone(), at).await
    }

    /// Learns or corrects where a node listens. A changed address drops the connections.
    pub fn set_address(&self, node: NodeId, address: SocketAddr) {
        if node == self.node() {
            return;
        }
        let mut peers = self.inner.peers.write();
        if peers.get(&node).is_none_or(|peer| peer.address != address) {
            peers.insert(node, Arc::new(Peer::new(node, address)));
        }
    }

    /// The newest start of `node` that spoke to this node.
    pub fn boot_of(&self, node: NodeId) -> Option<u64> {
        self.inner.boots.read().get(&node).copied()
    }

    pub fn address(&self, node: NodeId) -> Option<SocketAddr> {
        self.inner.peers.read().get(&node).map(|peer| peer.address)
    }

    pub fn forget(&self, node: NodeId) {
        self.inner.peers.write().remove(&node);
    }

    /// Asks `to` and waits for its answer, `deadline` at most. Never retried here.
    pub async fn call(
        &self,
        to: NodeId,
        kind: MessageKind,
        deadline: Duration,
        payload: Bytes,
    ) -> Result<Bytes, Error> {
        let peer = self.inner.peers.read().get(&to).cloned().ok_or(Error::UnknownNode(to))?;
        peer.call(&self.inner, kind, deadline, payload).await
    }

    /// Asks the node that listens at `address`, whichever that is.
    pub async fn call_address(
        &self,
        address: SocketAddr,
        kind: MessageKind,
        deadline: Duration,
        payload: Bytes,
    ) -> Result<Bytes, Error> {
        Peer::new(connection::ANYONE, address).call(&self.inner, kind, deadline, payload).await
    }
}
