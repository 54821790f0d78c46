//! openraft's type parameters, and how its types become bytes.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::{fmt, io};

/// The payload of an entry: bytes that only the [`crate::Machine`] understands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command(pub Bytes);

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

openraft::declare_raft_types!(
    /// At most one leader per term (the classic rule), so that a term names one leadership.
    pub Types:
        D = Command,
        R = Bytes,
        NodeId = u64,
        Node = (),
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
);

pub type LeaderId = openraft::type_config::alias::LeaderIdOf<Types>;
pub type LogId = openraft::type_config::alias::LogIdOf<Types>;
pub type Vote = openraft::type_config::alias::VoteOf<Types>;
pub type RaftEntry = openraft::type_config::alias::EntryOf<Types>;
pub type Membership = openraft::type_config::alias::StoredMembershipOf<Types>;
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;

/// The applied mark: how far a replica's state has come, in the store beside the state itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Mark {
    pub applied: Option<LogId>,
    pub membership: Membership,
}

pub fn encode<T: Serialize>(value: &T) -> Bytes {
    // Serialising openraft's and our own types into memory cannot fail.
    #[allow(clippy::expect_used)]
    let bytes = postcard::to_stdvec(value).expect("raft types serialise");
    bytes.into()
}

pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    postcard::from_bytes(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
