//! A node's durable state in one data directory: the log, and the trees that the log builds.
//!
//! - [`log`]: entries and small values of every tablet's Raft group; one writer, one fsync queue.
//! - [`state`]: the newest version of every row, and older versions in rollback segments.
//! - `transfer`: a tablet's state as a stream of checked chunks, out of and into the trees.
//! - [`spill`]: temporary files of a transaction's writes, for whoever coordinates it.
//! - `store`: the [`Store`] that opens, owns and closes them; `upkeep` is its background work.
//!
//! What is absent: this crate knows no terms of Raft, no transactions and no columns. It never
//! decides what to write, and does no network I/O. The log is the only write-ahead log: the trees
//! are written in the background, and after a crash each tablet's log is replayed from its applied mark.
//!
//! FORMAT.md describes the bytes.

mod error;
mod faults;
mod options;
pub mod log;
pub mod spill;
pub mod state;
mod transfer;
mod upkeep;
mod store;

pub use error::{Error, Result};
pub use faults::Faults;
pub use log::{Done, Entry, Log, Slot};
pub use options::Options;
pub use state::{At, Batch, KEY_BYTES_MAX, MetaIter, Pin, Scan, SegmentInfo, TabletRanges};
pub use store::{Stats, Store, View};
pub use transfer::{CHUNK_BYTES_MAX, Export, Staging};
