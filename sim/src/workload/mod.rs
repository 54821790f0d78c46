//! What clients do while everything around them breaks, and what must hold all the same.
//!
//! A workload is a story with a judge. Its clients talk SQL to whichever node answers and write
//! down what they were told; when the faults are over the judge reads everything through every
//! node and compares. What a client was told is one of three things:
//!
//! ```text
//!   committed   it is there, whole, from now on, whoever asks
//!   refused     it is not there and never will be
//!   unknown     nobody said: it is there whole, or not at all
//! ```
//!
//! A judge that needs more than that (orders, snapshots, single values) says so in its header.
//! Workloads know nothing of faults and never ask for one; all that they know of the world is its
//! clock, its dice and its nodes. None of them reads a real clock or iterates in an order that two
//! runs would not share.

mod client;

mod append;
mod bank;
mod ddl;
mod followers;
mod index;
mod registers;
mod sequences;
mod skew;
mod unique;

use crate::world::{Dice, World};
use async_trait::async_trait;
use std::sync::Arc;

#[async_trait]
pub trait Workload: Send + Sync {
    fn name(&self) -> &'static str;

    /// Makes the tables, before any fault. May be asked again when a part of it failed.
    async fn lay_out(&self, sql: &tokio_postgres::Client) -> Result<(), tokio_postgres::Error>;

    fn n_clients(&self) -> usize;

    /// One client's life, until the storm is over.
    async fn client(&self, world: &World, number: usize);

    /// After the storm: reads through every node. The error says in one line what is wrong.
    async fn judge(&self, world: &World) -> Result<(), String>;
}

pub fn all() -> [&'static str; 9] {
    ["bank", "append", "registers", "unique", "sequences", "skew", "index", "followers", "ddl"]
}

/// The workload of that name, its sizes and habits thrown by `dice`.
pub fn make(name: &str, dice: &mut Dice) -> Option<Arc<dyn Workload>> {
    Some(match name {
        "bank" => Arc::new(bank::Bank::new(dice)),
        "append" => Arc::new(append::Append::new(dice)),
        "registers" => Arc::new(registers::Registers::new(dice)),
        "unique" => Arc::new(unique::Unique::new(dice)),
        "sequences" => Arc::new(sequences::Sequences::new(dice)),
        "skew" => Arc::new(skew::Skew::new(dice)),
        "index" => Arc::new(index::Index::new(dice)),
        "followers" => Arc::new(followers::Followers::new(dice)),
        "ddl" => Arc::new(ddl::Ddl::new(dice)),
        _ => return None,
    })
}
