//! Who belongs to the cluster, where replicas belong, and when a worker is started again.
//!
//! * [`topology`]: the nodes, as rows that every node reads
//! * [`placement`]: which nodes should hold a tablet, pure
//! * [`supervision`]: what a supervisor does about its worker, pure
//! * [`report`]: what supervisors and newcomers tell the others
//!
//! Nothing here does I/O or reads a clock: the node crate runs what this room decides.

pub mod placement;
pub mod report;
pub mod supervision;
pub mod topology;

pub use report::{DeathReport, JoinAnswer, JoinRequest};
pub use topology::{NodeRow, Topology};
