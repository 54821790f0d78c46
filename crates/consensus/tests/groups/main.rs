//! Groups of three nodes in one process, each on a runtime of its own so that it can be killed:
//! its tasks end where they stand, as a process's would. Time is real and waited for by
//! condition; the network can be cut between any two nodes.

mod cluster;
mod deaths;
mod leadership;
mod members;
mod snapshots;
