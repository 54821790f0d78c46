//! Why a group does not do what it was asked.

use base::{Disposition, NodeId, TabletId};

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
