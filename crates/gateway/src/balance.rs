//! Which server a request goes to.
//!
//! Servers stand in zones, zones in tiers of closeness. A request is offered to the tiers in their
//! order; each takes a share of what it is offered ([`zone`]), all of it while its zones are well.
//! Inside the zone, the better of two random servers ([`server`]) gets it. Servers that cannot be
//! reached, fail or fall behind their peers are out for a while ([`health`]).
//!
//! ```text
//!   requests ──► tier 1: zone a  ──(1 − share a)──► tier 2: zones b, c ──(1 − share)──► …
//!                  share a                            evenly, by their open servers
//! ```
//!
//! The base are Ribbon's rules (load per server, a zone with no open server is out); unlike
//! Ribbon, which also avoids the most loaded zone as soon as any is out, the survivors share.

pub mod fleet;
pub mod health;
pub mod server;
pub mod settings;
pub mod subset;
pub mod zone;

pub use fleet::{Attempt, Check, CheckKind, Ended, Event, Fleet};
pub use settings::{Closeness, ServerSpec, Settings};
