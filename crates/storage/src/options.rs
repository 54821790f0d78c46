//! What an operator may tune, of the log and of the trees.

use crate::faults::Faults;
use std::sync::Arc;
use std::time::Duration;

/// What an operator may tune. Sizes are in bytes.
#[derive(Clone)]
pub struct Options {
    /// How long an old version is kept at least.
    pub retention: Duration,
    /// How long one rollback segment takes the versions that are replaced.
    pub bucket: Duration,
    /// Applied changes that wait in memory before a flush. Appliers wait at four times this.
    pub memtable_bytes: u64,
    /// Blocks of the trees kept in memory.
    pub cache_bytes: u64,
    /// Files of the trees kept open.
    pub open_files: usize,
    /// Log on disk beyond which space is reclaimed.
    pub log_bytes: u64,
    /// One log file.
    pub log_file_bytes: u64,
    /// Log entries kept in memory beyond those that are not yet durable.
    pub log_cache_bytes: usize,
    /// Makes the log's disk fail, in tests and in the simulator.
    pub log_faults: Option<Arc<dyn Faults>>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            retention: Duration::from_secs(600),
            bucket: Duration::from_secs(60),
            memtable_bytes: 32 << 20,
            cache_bytes: 32 << 20,
            open_files: 256,
            log_bytes: 128 << 20,
            log_file_bytes: 16 << 20,
            log_cache_bytes: 8 << 20,
            log_faults: None,
        }
    }
}
