//! What a node's connections share: who it is, what it does with messages, what it counts.

use crate::counters::Counters;
use crate::kind::MessageKind;
use crate::tls::Tls;
use base::{Env, NodeId};
use bytes::Bytes;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

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

pub(crate) struct Inner {
    pub(crate) env: Env,
    pub(crate) identity: Identity,
    pub(crate) tls: Option<Tls>,
    pub(crate) counters: Counters,
    pub(crate) handlers: RwLock<HashMap<MessageKind, Arc<dyn Handler>>>,
    pub(crate) boots: RwLock<HashMap<NodeId, u64>>,
}

impl Inner {
    pub(crate) fn heard_from(&self, node: NodeId, boot: u64) {
        let mut boots = self.boots.write();
        let newest = boots.entry(node).or_insert(boot);
        *newest = boot.max(*newest);
    }
}
