//! Transactions: strict two-phase locking for writers, one SCN for readers, one log for both.
//!
//! A statement's way through this room, from the session down:
//!
//! * [`client`]: a transaction at the node that runs it: its writes, its snapshot, its commit
//! * [`node`]: from a key to the leader of its tablet, wherever that is
//! * `tablet`: the leader's work: reads, locks, commit
//! * [`locks`]: the lock table, pure
//! * [`scn`]: the counter, pure
//! * [`command`], [`machine`]: what the log says and what that does to every replica alike
//!
//! What is absent: clocks decide nothing but when to look again; no lock is ever written to disk; no
//! tablet knows more of a table than its number and the version of its definition.

pub mod admin;
pub mod client;
pub mod command;
pub mod error;
pub mod ids;
mod key_set;
pub mod keyspace;
pub mod locks;
pub mod machine;
pub mod message;
pub mod node;
mod routes;
pub mod scn;
mod tablet;
pub mod testing;

pub use client::{Client, Isolation, LockMode, Locked, Reader, Row, Savepoint, Scan, Txn, Wait};
pub use error::Error;
pub use node::{FIRST_DATA_RELATION, Node, Parts};
