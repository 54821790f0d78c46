//! What can go wrong in the store, and what the caller does about it.

use base::{Disposition, Scn};
use std::path::{Path, PathBuf};

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The versions this read needs went with a dropped rollback segment.
    #[error(
        "snapshot too old: SCN {wanted} was asked for and the oldest kept is {oldest}; begin a new transaction"
    )]
    SnapshotTooOld { wanted: Scn, oldest: Scn },

    /// A checksum does not match, or a file that must be there is not.
    #[error(
        "{} is damaged ({what}): stop this node, delete its data directory {} and start it again, \
         it is filled from the other replicas; with a single replica restore from a backup",
        file.display(), dir.display()
    )]
    Damaged { file: PathBuf, dir: PathBuf, what: String },

    /// The operating system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },

    /// The store stopped after an earlier failure, which [`base::Env::halted`] tells.
    #[error("the store has stopped: {0}")]
    Halted(String),

    /// A chunk of a snapshot arrived damaged, twice, or out of order. The transfer starts again.
    #[error("snapshot chunk {number} refused: {what}; send the snapshot again")]
    BadChunk { number: u32, what: String },

    /// A key does not fit the trees.
    #[error("a key of {bytes} bytes is longer than the {max} that the store takes")]
    KeyTooLong { bytes: usize, max: usize },
}

impl Error {
    pub fn disposition(&self) -> Disposition {
        match self {
            Error::SnapshotTooOld { .. } | Error::KeyTooLong { .. } => Disposition::Refuse,
            Error::Damaged { .. } | Error::Io { .. } => Disposition::Halt,
            Error::Halted(_) => Disposition::RetryElsewhere,
            Error::BadChunk { .. } => Disposition::Retry,
        }
    }

    /// For `map_err`: names the attempt and the path of a failed file operation.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { what, path, source }
    }
}
