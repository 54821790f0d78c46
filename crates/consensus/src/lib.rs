//! Many Raft groups on one node: `openraft` over the node's one log, one state and one transport.
//!
//! ```text
//! txn ── propose ──► Group ──► openraft core ──► storage::Log (one writer, one fsync for all groups)
//!                               │        ▲
//!                               │        └─── network: transport's control lane
//!                               ▼
//!                    Applier ──► Machine::apply ──► storage::Store (rows and applied mark, atomic)
//! ```
//!
//! * [`groups`]: the groups of this node, the messages they answer, reports of deaths
//! * [`group`]: one group: roles, proposals, leases, members
//! * `lease`: until when a leader surely leads; `pulse`: when a group was last heard from; `beat`: one
//!   timer for all groups
//! * `promise`: to which leader a vote binds a replica, and when it no longer does; `succession`:
//!   elections after a death
//! * `purge`: when a log is purged
//! * `log`, `applier`, `network`, `snapshot`: openraft's four seams
//!
//! This crate knows nothing of transactions: the [`Machine`] decides what an entry does. The traps that
//! the crate guards against are described where the guards are, each with a test of its own.

mod applier;
mod beat;
pub mod group;
pub mod groups;
mod lease;
mod log;
mod network;
mod promise;
mod pulse;
mod purge;
mod snapshot;
mod succession;
mod types;

pub use group::{Group, Role, Status};
pub use groups::{Config, Groups, Stats};
pub use promise::Death;

use base::{Disposition, NodeId, TabletId};
use bytes::Bytes;
use openraft::vote::RaftLeaderId as _;
use storage::{Batch, TabletRanges};

/// Where an entry stands in its group's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub term: u64,
    pub index: u64,
}

/// A committed command, as it is handed to the [`Machine`].
pub struct Entry<'a> {
    pub position: Position,
    pub command: &'a [u8],
    /// Voters and learners in force at this position.
    pub members: &'a [NodeId],
}

/// What a group's committed entries do.
pub trait Machine: Send + Sync + 'static {
    /// Decides the effect of one command: adds it to `batch` and returns the answer for its
    /// proposer. Called in log order; after a crash again, on the older state. Deterministic on
    /// the store's state and the entry.
    fn apply(&self, entry: &Entry<'_>, batch: &mut Batch) -> Result<Bytes, storage::Error>;

    /// The batch of `position` is in the store now. In log order, for every entry.
    fn applied(&self, position: Position);

    /// What belongs to this group, for snapshots.
    fn snapshot_scope(&self) -> TabletRanges;

    /// A snapshot is about to replace the whole state: until [`Machine::restored`] the store shows
    /// pieces of it. A read that was under way when this was called must not be answered either.
    fn replacing(&self) {}

    /// A snapshot has replaced the whole state.
    fn restored(&self);

    /// This replica's role changed. `Leader` comes only once an entry of its own term has been
    /// applied here, so that a new leader serves nothing before it knows all that was committed.
    fn role(&self, role: Role);
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Certainly not proposed.
    #[error("this replica does not lead the group")]
    NotLeader { leader: Option<NodeId> },
    /// The leadership was lost meanwhile: the entry may or may not be committed.
    #[error("leadership was lost in the middle of a proposal")]
    Lost,
    #[error("tablet {0} has no replica here")]
    NoReplica(TabletId),
    #[error("the group of tablet {tablet} has stopped: {reason}")]
    Stopped { tablet: TabletId, reason: String },
    #[error("the members of tablet {tablet} cannot be changed: {reason}")]
    Members { tablet: TabletId, reason: String },
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

impl Error {
    pub fn disposition(&self) -> Disposition {
        match self {
            Error::NotLeader { .. } | Error::Lost | Error::NoReplica(_) | Error::Stopped { .. } => {
                Disposition::RetryElsewhere
            }
            Error::Members { .. } => Disposition::Retry,
            Error::Storage(error) => error.disposition(),
        }
    }
}

/// The applied mark from which a new group starts, the same on every replica: position zero,
/// these members. The state that the group begins with is in no entry of its log, so a replica that
/// joins later is filled by a snapshot.
pub fn seed(batch: &mut Batch, child: TabletId, members: &[NodeId]) {
    let voters = members.iter().map(|node| node.0).collect();
    let id = types::LogId::new(types::LeaderId { term: 0, voted_for: 0 }.to_committed(), 0);
    let membership = openraft::Membership::new_with_defaults(vec![voters], []);
    let mark =
        types::Mark { applied: Some(id), membership: types::Membership::new(Some(id), membership) };
    batch.applied(child, 0, types::encode(&mark));
}
