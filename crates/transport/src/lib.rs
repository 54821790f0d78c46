//! Messages between nodes: requests with deadlines and their replies, in checked frames.
//!
//! Each pair of nodes is joined by one connection for every [`Priority`] and direction of asking,
//! so that a snapshot never stands in front of a heartbeat. A connection carries [`frame`]s; a
//! corrupt or missing one closes it, a repeated one is dropped, each is counted in [`Counters`].
//! Requests that were under way on a closed connection fail with [`Error::Unreachable`], and the next
//! request opens a new connection.
//!
//! Over TLS a peer is who its certificate says. A certificate's name belongs to one node id at a time, and a
//! member speaks only as itself.
//!
//! The transport never retries a request: only its sender knows whether that is harmless. It
//! does not know what payloads mean. FORMAT.md describes the bytes.

mod kind;
mod error;
mod counters;
pub mod frame;
mod files;
pub mod certificate;
pub mod tls;
mod inner;
mod connection;
mod server;

pub use counters::{Counters, Snapshot};
pub use error::Error;
pub use files::Files;
pub use inner::{Answer, Handler, Identity, Speaker};
pub use kind::{MessageKind, Priority};

use base::{Env, NodeId};
use bytes::Bytes;
use connection::Peer;
use inner::Inner;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A node's end of all its conversations. Cheap to clone.
#[derive(Clone)]
pub struct Transport {
    inner: Arc<Inner>,
    peers: Arc<RwLock<HashMap<NodeId, Arc<Peer>>>>,
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
                boots: RwLock::default(),
                names: RwLock::default(),
                said: parking_lot::Mutex::default(),
            }),
            peers: Arc::default(),
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

    /// The same for work that depends on who asks.
    pub fn handle_named(
        &self,
        kind: MessageKind,
        handler: impl Fn(Speaker, Bytes) -> Answer + Send + Sync + 'static,
    ) {
        self.inner.handlers.write().insert(kind, Arc::new(inner::Named(handler)));
    }

    /// Learns the name in a node's certificate: only its holder speaks as that node.
    pub fn set_name(&self, node: NodeId, name: &str) {
        let mut names = self.inner.names.write();
        if names.get(&node).is_none_or(|known| &**known != name) {
            names.insert(node, name.into());
        }
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
        let mut peers = self.peers.write();
        if peers.get(&node).is_none_or(|peer| peer.address != address) {
            peers.insert(node, Arc::new(Peer::new(node, address)));
        }
    }

    /// The newest start of `node` that spoke to this node.
    pub fn boot_of(&self, node: NodeId) -> Option<u64> {
        self.inner.boots.read().get(&node).copied()
    }

    pub fn address(&self, node: NodeId) -> Option<SocketAddr> {
        self.peers.read().get(&node).map(|peer| peer.address)
    }

    pub fn forget(&self, node: NodeId) {
        self.peers.write().remove(&node);
    }

    /// Asks `to` and waits for its answer, `deadline` at most. Never retried here.
    pub async fn call(
        &self,
        to: NodeId,
        kind: MessageKind,
        deadline: Duration,
        payload: Bytes,
    ) -> Result<Bytes, Error> {
        let peer = self.peers.read().get(&to).cloned().ok_or(Error::UnknownNode(to))?;
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
