//! `atoll`: one fault-tolerant computer out of many.
//!
//! * [`cli`]: what people type
//! * [`supervisor`]: the small process that starts, watches and reports the worker
//! * [`worker`]: the process that does the work; puts all rooms of the house together
//! * `membership`: the nodes as rows, newcomers, replicas that must move
//! * `views`: the state behind the schema `atoll`
//! * [`config`], [`identity`]: what a node is told, and who it is
//! * [`certificates`]: the cluster's authority and what it signs

pub mod certificates;
pub mod cli;
pub mod config;
pub mod identity;
mod membership;
pub mod supervisor;
mod views;
pub mod worker;
