//! HTTP on both sides. A request's way:
//!
//! * [`serve`]: a client's connection: HTTP/1.1 or HTTP/2, time-outs, draining
//! * [`proxy`]: a request: its route, its service, the answer, what is logged and counted
//! * [`headers`]: what is removed, added and carried on
//! * [`pool`]: connections to servers
//! * [`body`], [`ending`]: bodies on their way, and what is given back at their end

pub mod body;
pub mod ending;
pub mod headers;
pub mod pool;
pub mod proxy;
pub mod serve;
