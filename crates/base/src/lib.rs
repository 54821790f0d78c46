//! The small vocabulary every room shares: identities, the system change number, zones, the
//! ordered key codec, error dispositions, and the one door to the world outside ([`env`]).
//!
//! Something that one room alone uses does not live here. This crate starts no task and opens no file by
//! itself. Its one global is the count of panics ([`panics`]).

pub mod budget;
pub mod disposition;
pub mod env;
pub mod id;
pub mod key;
pub mod limits;
pub mod panics;
pub mod rehearsal;
pub mod scn;

pub use budget::{Budget, Loan};
pub use disposition::Disposition;
pub use env::Env;
pub use id::{NodeId, TabletId, TxnId, Zone};
pub use key::{Key, KeyRange};
pub use limits::Limits;
pub use scn::Scn;
