//! What a group's committed entries do: the seam to the crate above.

use base::NodeId;
use bytes::Bytes;
use storage::{Batch, TabletRanges};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    Follower {
        term: u64,
        leader: Option<NodeId>,
    },
    /// An entry of `term` has been applied here.
    Leader {
        term: u64,
    },
}

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

    /// Whether applying this command takes so long that no thread of the votes should do it.
    fn takes_long(&self, _command: &[u8]) -> bool {
        false
    }

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
