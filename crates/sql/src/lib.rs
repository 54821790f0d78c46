//! SQL over transactions: PostgreSQL's language, types, errors and wire protocol.
//!
//! A statement's way through the house: [`wire`] reads it, [`parse`] makes a tree of it, [`bind`]
//! and [`plan`] find its tables, types and access paths, [`run`] executes it against a
//! [`txn::Txn`], and [`session`] keeps what lives longer than one statement. Queries beyond one
//! table go through [`wide`] to an engine of their own, over the same snapshot.

#![recursion_limit = "256"]

pub mod authority;
pub mod bind;
pub mod catalog;
pub mod codec;
pub mod engine;
pub mod error;
pub mod expr;
pub mod parse;
pub mod plan;
pub mod run;
pub mod session;
pub mod types;
pub mod views;
pub mod wide;
pub mod wire;

pub use engine::{Auth, Engine};
pub use error::{Error, Result};
pub use types::{Datum, Row, Type};
