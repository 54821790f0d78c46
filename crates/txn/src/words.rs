//! The words that a transaction and the tablets share: what is asked for, and what is read.

use base::Scn;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The levels as PostgreSQL and Oracle users know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Isolation {
    /// A fresh snapshot for every statement; a blocked update re-reads the row it waited for.
    ReadCommitted,
    /// One snapshot; the first updater wins.
    RepeatableRead,
    /// Strict two-phase locking: shared locks on all that is read, ranges included.
    Serializable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LockMode {
    Shared,
    Exclusive,
}

/// What to do when a lock is held by somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wait {
    Block,
    /// Fail with [`crate::Error::LockNotAvailable`].
    NoWait,
    /// Leave the key out and answer [`crate::Locked::Skipped`] for it.
    Skip,
}

/// A row as it is read. `scn` is its commit's; `Scn::MAX` for this transaction's own write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub scn: Scn,
    pub value: Bytes,
}
