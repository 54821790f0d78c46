//! Why a transaction cannot go on.

use base::{Disposition, Scn, TxnId};
use serde::{Deserialize, Serialize};

/// Travels between nodes as it is, so that every layer decides by the same errors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Error {
    /// First updater wins, lost locks, a leader that changed: run the transaction again (40001).
    #[error("could not serialize access: {reason}")]
    Serialization { reason: String },
    /// This transaction was chosen to break a circle of waits (40P01). `detail` names both sides.
    #[error("deadlock detected")]
    Deadlock { detail: String },
    /// NOWAIT met a lock (55P03).
    #[error("could not obtain lock on row")]
    LockNotAvailable,
    /// The statement's time-out or the user's cancel ended a wait (57014).
    #[error("canceling statement due to user request")]
    Canceled,
    /// The snapshot lies before the rollback segments' retention (72000).
    #[error(
        "snapshot too old: SCN {wanted} is no longer kept, the oldest readable SCN is {oldest}"
    )]
    SnapshotTooOld { wanted: Scn, oldest: Scn },
    /// The statement was planned with an older definition of the table than the cluster's: look
    /// the table up again and plan anew. Never shown to a user.
    #[error("the definition of table {table} has changed")]
    SchemaChanged { table: u32 },
    /// No leader answered in time (57P01 or 08006: retryable, nothing was changed).
    #[error("the cluster is not reachable: {reason}")]
    Unavailable { reason: String },
    /// No node could say in time whether the commit happened (08007).
    /// `atoll.transactions` answers for the id.
    #[error("the outcome of transaction {txn} is not known yet")]
    OutcomeUnknown { txn: TxnId },
    /// A key or a row that is larger than the store takes (54000).
    #[error("{reason}")]
    TooLarge { reason: String },
    /// A request that can never succeed as asked.
    #[error("{reason}")]
    Refused { reason: String },
    /// A bug or a broken disk.
    #[error("internal error: {reason}")]
    Internal { reason: String },
    /// The node that runs the transaction has no memory left for it (53200).
    #[error("{reason}")]
    OutOfMemory { reason: String },
    /// The node that runs the transaction has no room for its temporary files (53100).
    #[error("{reason}")]
    DiskFull { reason: String },
}

impl Error {
    pub fn disposition(&self) -> Disposition {
        match self {
            Error::Serialization { .. }
            | Error::Deadlock { .. }
            | Error::LockNotAvailable
            | Error::SchemaChanged { .. } => Disposition::Retry,
            Error::Unavailable { .. } | Error::OutOfMemory { .. } | Error::DiskFull { .. } => {
                Disposition::RetryElsewhere
            }
            Error::Canceled
            | Error::SnapshotTooOld { .. }
            | Error::OutcomeUnknown { .. }
            | Error::TooLarge { .. }
            | Error::Refused { .. }
            | Error::Internal { .. } => Disposition::Refuse,
        }
    }

    pub(crate) fn serialization(reason: impl Into<String>) -> Error {
        Error::Serialization { reason: reason.into() }
    }

    pub(crate) fn unavailable(reason: impl Into<String>) -> Error {
        Error::Unavailable { reason: reason.into() }
    }
}

pub(crate) fn lost_locks() -> Error {
    Error::serialization("the locks were lost because the tablet's leader or borders changed")
}

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Error {
        match error {
            storage::Error::SnapshotTooOld { wanted, oldest } => {
                Error::SnapshotTooOld { wanted, oldest }
            }
            other => Error::Internal { reason: other.to_string() },
        }
    }
}
