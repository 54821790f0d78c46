//! Many Raft groups on one node: `openraft` over the node's one log, one state and one transport.
//!
//! ```text
//! txn ── propose ──► Group ──► openraft core ──► storage::Log (one writer, one fsync for all groups)
//!                               │        ▲
//!                               │        └─── network: transport's control lane
//!                               ▼
//!                    Applier ──► Machine::apply ──► storage::Store (rows and applied mark, atomic)
//! ```
//!
//! * [`groups`]: the groups of this node, the messages they answer, reports of deaths
//! * [`group`]: one group: roles, proposals, leases, members
//! * `lease`: until when a leader surely leads; `pulse`: when a group was last heard from; `beat`: one
//!   timer for all groups
//! * `promise`: to which leader a vote binds a replica, and when it no longer does; `succession`:
//!   elections after a death
//! * `purge`: when a log is purged
//! * `log`, `applier`, `network`, `snapshot`: openraft's four seams
//!
//! This crate knows nothing of transactions: the [`Machine`] decides what an entry does. The traps that
//! the crate guards against are described where the guards are, each with a test of its own.

mod error;
mod machine;
mod types;
mod promise;
mod lease;
mod pulse;
mod log;
mod snapshot;
mod applier;
mod network;
pub mod group;
pub mod groups;
mod beat;
mod purge;
mod succession;

pub use applier::seed;
pub use error::Error;
pub use group::{Group, Status};
pub use groups::{Config, Groups, Stats};
pub use machine::{Entry, Machine, Position, Role};
pub use promise::Death;
