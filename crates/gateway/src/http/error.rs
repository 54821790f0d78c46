//! Why a message of HTTP/1.1 cannot be read, and what its sender is told.

use http::StatusCode;

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
