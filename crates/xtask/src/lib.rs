//! What the project's commands and the tests of real clusters share.

pub mod postgres;
