//! HTTP/1.1, both of its ends, for a message that passes through: nothing is handed from task to
//! task, and what is idle holds no buffers.
//!
//! * [`head`]: a message's head, read and written
//! * [`length`]: where its body ends: by length, in chunks, or with the connection
//! * [`io`]: a stream with what was read ahead and what is to be written
//! * [`client`]: a connection to a server
//! * [`server`]: a connection of a client
//!
//! The first two read and write bytes and do nothing else. What two readers might understand in
//! two ways is refused and not repaired (RFC 9112): a gateway stands between two readers.
//!
//! Why not hyper's, which serves all else here: its client runs each connection as a task of its
//! own, and hands request, head and body over by channels; its server keeps room for a whole
//! exchange in each connection that is idle.

use http::StatusCode;

pub mod client;
pub mod head;
pub mod io;
pub mod length;
pub mod server;

/// Why a message cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Malformed(&'static str),
    #[error("the head is too large")]
    HeadTooLarge,
    #[error("the target is too long")]
    TargetTooLong,
    #[error("there are too many headers")]
    TooManyFields,
    #[error("the head did not come in time")]
    TooSlow,
    #[error("the connection was closed in the middle of a message")]
    Cut,
}

impl Error {
    /// What is answered to a request that cannot be read, and why; none: nobody is there.
    pub fn refusal(self) -> Option<(StatusCode, String)> {
        let status = match self {
            Error::Malformed(_) => StatusCode::BAD_REQUEST,
            Error::HeadTooLarge | Error::TooManyFields => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            Error::TargetTooLong => StatusCode::URI_TOO_LONG,
            Error::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Error::Cut => return None,
        };
        Some((status, format!("the request cannot be read: {self}")))
    }
}
