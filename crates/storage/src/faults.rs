//! Tests and the simulator make the log's disk fail through [`Faults`].

use std::io::Result;
use std::path::Path;

/// Asked before the log's files are read or changed. An `Err` takes the place of the operating
/// system's answer.
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
