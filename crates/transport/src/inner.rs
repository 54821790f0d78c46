//! What a node's connections share: who it is, what it does with messages, what it counts.

use crate::counters::Counters;
use crate::kind::MessageKind;
use crate::tls::Tls;
use base::env::Instant;
use base::{Env, NodeId};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// The log repeats why a peer is refused after this long.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// So many different reasons are told in that time; whoever finds more is not told of.
const N_SAID_MAX: usize = 64;

pub type Answer = Pin<Box<dyn Future<Output = Bytes> + Send>>;

/// Who sent a request.
#[derive(Clone, Debug)]
pub struct Speaker {
    /// As whom it greeted; 0 for newcomers and supervisors.
    pub node: NodeId,
    /// The name in its certificate. None over a network without TLS, where everybody is believed: the
    /// simulator's, and those of tests.
    pub name: Option<Arc<str>>,
}

/// A node's work for one kind of message. The answer is dropped when the deadline passes.
pub trait Handler: Send + Sync + 'static {
    fn handle(&self, from: Speaker, payload: Bytes) -> Answer;
}

impl<F> Handler for F
where
    F: Fn(NodeId, Bytes) -> Answer + Send + Sync + 'static,
{
    fn handle(&self, from: Speaker, payload: Bytes) -> Answer {
        self(from.node, payload)
    }
}

/// A handler that asks for more than the sender's id.
pub(crate) struct Named<F>(pub(crate) F);

impl<F> Handler for Named<F>
where
    F: Fn(Speaker, Bytes) -> Answer + Send + Sync + 'static,
{
    fn handle(&self, from: Speaker, payload: Bytes) -> Answer {
        self.0(from, payload)
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
    /// Whose certificates have which names.
    pub(crate) names: RwLock<BTreeMap<NodeId, Arc<str>>>,
    pub(crate) said: Mutex<HashMap<String, Instant>>,
}

impl Inner {
    pub(crate) fn heard_from(&self, node: NodeId, boot: u64) {
        let mut boots = self.boots.write();
        let newest = boots.entry(node).or_insert(boot);
        *newest = boot.max(*newest);
    }

    /// Whether a certificate of this name may speak as `node`. The newest node with a name has it: one
    /// whose data was lost comes back under its name and a new id, which others hear of later.
    pub(crate) fn may_speak(&self, node: NodeId, name: &str) -> Result<(), String> {
        let names = self.names.read();
        if let Some(known) = names.get(&node) {
            return match &**known == name {
                true => Ok(()),
                false => Err(format!(
                    "the certificate {name:?} speaks as node {node}, whose certificate has the name {known:?}"
                )),
            };
        }
        let holder = names.iter().rev().find(|(_, known)| &***known == name);
        match holder {
            Some((holder, _)) if node < *holder => Err(format!(
                "the certificate {name:?} is node {holder}'s, and speaks as node {node}"
            )),
            _ => Ok(()),
        }
    }

    /// Tells the log why somebody is refused: each reason once per minute, so that who tries again and
    /// again, or always anew, does not fill it.
    pub(crate) fn say(&self, reason: &str) {
        let now = self.env.now();
        let mut said = self.said.lock();
        said.retain(|_, at| now < *at + SAY_AGAIN);
        if said.len() < N_SAID_MAX && !said.contains_key(reason) {
            tracing::warn!("{reason}");
            said.insert(reason.to_owned(), now);
        }
    }

    /// An error of a connection, in words.
    pub(crate) fn explain(&self, error: &std::io::Error) -> String {
        let about_certificates = self.tls.as_ref().and_then(|tls| tls.explain(error));
        match about_certificates {
            Some(reason) => {
                self.say(&reason);
                reason
            }
            None => error.to_string(),
        }
    }
}
