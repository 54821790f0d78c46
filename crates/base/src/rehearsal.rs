//! Panics that a simulator orders: at any poll of a task, or of a statement's work.
//!
//! What a panic costs is decided in [`crate::panics`]; whoever simulates wants to see that decided at each place. The
//! product orders nothing, and pays one load for each poll.

use std::sync::OnceLock;

/// What an ordered panic says.
pub const ON_PURPOSE: &str = "a panic on purpose";

/// The simulator's answer, asked for at each poll. The product never sets it.
static IS_DUE: OnceLock<fn() -> bool> = OnceLock::new();

/// From now on whatever is polled asks `is_due` whether it is to panic. The first call in a process counts.
pub fn rehearse(is_due: fn() -> bool) {
    IS_DUE.get_or_init(|| is_due);
}

/// At the beginning of each poll of a task, and of work that has a price of its own.
pub(crate) fn rehearsal() {
    if let Some(is_due) = IS_DUE.get()
        && is_due()
    {
        std::panic::panic_any(ON_PURPOSE);
    }
}
