//! Where a test or the simulator makes the log's disk fail.

use std::io::Result;
use std::path::Path;

/// Asked before the log's files are read or changed. An `Err` is what the operating system
/// "answers".
pub trait Faults: Send + Sync {
    /// `path` is about to be read.
    fn read(&self, _path: &Path) -> Result<()> {
        Ok(())
    }
    /// `bytes` are about to be written at the end of `path`.
    fn write(&self, path: &Path, bytes: usize) -> Result<()>;
    /// `path` is about to be synced.
    fn sync(&self, path: &Path) -> Result<()>;
}
