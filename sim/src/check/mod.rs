//! What must hold of a history, whatever happened meanwhile.

pub mod append;
pub mod register;
