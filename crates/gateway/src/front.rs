//! A client's request, from its first byte to its answer's last:
//!
//! * [`proxied`]: whose connection it is, by the PROXY protocol
//! * [`serve`]: a client's connection: HTTP/1.1 or HTTP/2, time-outs, draining
//! * [`exchanges`]: request, answer, and the next one, where it is HTTP/1.1
//! * [`serving`], [`pulse`]: what a connection is served with, and what it is doing
//! * [`proxy`]: a request: its route, its service, the answer, what is logged and counted
//! * [`early`]: what is answered before a service is asked
//! * [`answer`], [`ending`]: an answer on its way, and what is given back at its end

pub mod answer;
pub mod early;
pub mod ending;
pub mod exchanges;
pub mod proxied;
pub mod proxy;
pub mod pulse;
pub mod serve;
pub mod serving;
