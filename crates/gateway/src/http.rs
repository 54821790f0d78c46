//! HTTP as both sides speak it, below what is decided about a request:
//!
//! * [`target`], [`message`]: what is asked for, a request, an answer
//! * [`http1`]: both ends of HTTP/1.1; [`http2`]: a connection to a server of HTTP/2
//! * [`error`], [`failure`]: why a message cannot be read, and why a body has no end
//! * [`forwarded`], [`headers`]: who asks; what is removed, added and carried on
//! * [`body`], [`squeeze`]: bodies on their way, and those that are compressed
//! * [`outgoing`], [`pool`]: a request as servers get it, and connections to them

pub mod body;
pub mod error;
pub mod failure;
pub mod forwarded;
pub mod headers;
pub mod http1;
pub mod http2;
pub mod message;
pub mod outgoing;
pub mod pool;
pub mod squeeze;
pub mod target;
pub mod wire;
