//! Which nodes belong to the cluster, where replicas belong, and when a worker is started again.
//!
//! * [`topology`]: the nodes, as rows that every node reads
//! * [`placement`]: which nodes should hold a tablet, pure
//! * [`supervision`]: what a supervisor does about its worker, pure
//! * [`report`]: the messages of supervisors and newcomers
//!
//! Nothing here does I/O or reads a clock: the crate `node` carries out what this crate decides.

pub mod placement;
pub mod report;
pub mod supervision;
pub mod topology;

pub use report::{DeathReport, JoinAnswer, JoinRequest};
pub use topology::{NodeRow, Topology};
