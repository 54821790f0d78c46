//! HTTP on both sides. A request's way:
//!
//! * [`serve`]: a client's connection: HTTP/1.1 or HTTP/2, time-outs, draining
//! * [`exchanges`]: request, answer, and the next one, where it is HTTP/1.1
//! * [`pulse`]: what a client's connection is doing
//! * [`proxy`]: a request: its route, its service, the answer, what is logged and counted
//! * [`proxied`], [`early`]: the PROXY protocol; what is answered before a service is asked
//! * [`message`], [`target`]: a request, an answer, and what is asked for
//! * [`forwarded`]: who asks, and what a client may say of that
//! * [`headers`]: what is removed, added and carried on
//! * [`outgoing`], [`pool`]: a request as servers get it, and connections to them
//! * [`http1`]: both ends of HTTP/1.1; [`http2`]: a connection to a server of HTTP/2
//! * [`squeeze`]: answers that are compressed on their way
//! * [`body`], [`ending`]: bodies on their way, and what is given back at their end

pub mod body;
pub mod early;
pub mod ending;
pub mod exchanges;
pub mod forwarded;
pub mod headers;
pub mod http1;
pub mod http2;
pub mod message;
pub mod outgoing;
pub mod pool;
pub mod proxied;
pub mod proxy;
pub mod pulse;
pub mod serve;
pub mod squeeze;
pub mod target;
pub mod wire;
