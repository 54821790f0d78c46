//! A node's durable state in one data directory: the log, and the trees that the log builds.
//!
//! - [`log`]: entries and small values of every tablet's Raft group; one writer, one fsync queue.
//! - [`state`]: the newest version of every row, and older versions in rollback segments.
//! - `transfer`: a tablet's state as a stream of checked chunks, out of and into the trees.
//! - `store`: the [`Store`] that opens, owns and closes them; `upkeep` is its background work.
//!
//! What is absent: this crate knows no terms of Raft, no transactions and no columns. It never
//! decides what to write, and does no network I/O. The log is the only write-ahead log: the trees
//! are written in the background, and after a crash each tablet's log is replayed from its applied mark.
//!
//! FORMAT.md describes the bytes.

mod error;
pub mod log;
pub mod state;
mod store;
mod transfer;
mod upkeep;

pub use error::{Error, Result};
pub use log::{Done, Entry, Faults, Log, Slot};
pub use state::{At, Batch, KEY_BYTES_MAX, MetaIter, Pin, Scan, SegmentInfo};
pub use store::{Options, Stats, Store, View};
pub use transfer::{CHUNK_BYTES_MAX, Export, Staging, TabletRanges};
