//! The system change number: the one order in which transactions commit.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A point in the cluster's commit order. A logical clock (Oracle's SCN): it says nothing about
/// wall time, is handed out by one counter, and is never reused. A snapshot at `Scn(s)` sees
/// every commit with a number `<= s` and nothing else.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Scn(pub u64);

impl Scn {
    /// Before the first commit.
    pub const ZERO: Scn = Scn(0);
    /// After every commit that will ever be: a read here sees the newest committed state.
    pub const MAX: Scn = Scn(u64::MAX);

    /// The number that follows this one.
    pub fn next(self) -> Scn {
        Scn(self.0.saturating_add(1))
    }
}

impl fmt::Display for Scn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
