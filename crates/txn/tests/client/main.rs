//! Transactions, seen from their client.
// The tests stand outside of what is simulated.
#![allow(clippy::disallowed_methods)]

mod common;
mod queue;
mod solo;
mod trio;
