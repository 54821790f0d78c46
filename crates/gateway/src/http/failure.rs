//! Why a body ended before its end.

use crate::http::error;
use std::time::Duration;

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the body is larger than the {0} bytes that are allowed")]
    TooLarge(u64),
    #[error("the body stood still for {0:?}")]
    StoodStill(Duration),
    #[error("it is not as long as it says")]
    NotAsTold,
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error(transparent)]
    Http2(#[from] h2::Error),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Http1(#[from] error::Error),
}
