//! Transactions: strict two-phase locking for writers, one SCN for readers, one log for both.
//!
//! A statement's way through this room, from the session down:
//!
//! * [`client`]: a transaction at the node that runs it: its writes, its snapshot, its commit
//! * `writes`: what it has written and not committed, in memory and in temporary files
//! * [`node`]: from a key to the leader of its tablet, wherever that is
//! * `tablet`: the leader's work: reads, locks, commit
//! * [`locks`]: the lock table, pure
//! * [`scn`]: the counter, pure
//! * `words`: what all of these say to each other about locks and rows
//! * [`command`], [`machine`]: what the log says and what that does to every replica alike
//!
//! What is absent: clocks decide nothing but when to look again; no lock is ever written to disk; no
//! tablet knows more of a table than its number and the version of its definition.

pub mod error;
mod words;
pub mod ids;
pub mod keyspace;
pub mod command;
pub mod machine;
pub mod scn;
mod key_set;
pub mod locks;
pub mod message;
mod tablet;
mod active;
mod writes;
mod routes;
pub mod node;
pub mod admin;
pub mod client;
pub mod testing;

pub use client::{Client, Locked, Reader, Savepoint, Scan, Txn};
pub use error::Error;
pub use node::{FIRST_DATA_RELATION, Node, Parts};
pub use words::{Isolation, LockMode, Row, Wait};
