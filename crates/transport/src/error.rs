//! Why a request was not answered.

use crate::kind::MessageKind;
use base::{Disposition, NodeId};
use std::net::SocketAddr;
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
