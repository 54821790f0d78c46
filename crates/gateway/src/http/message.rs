//! A request and an answer, in whichever version of HTTP they came.

use crate::fields::{Fields, NoToken};
use crate::http::error;
use crate::http::target::Target;
use http::{Method, Response, StatusCode, Version, request};

/// What is asked; its body goes its own way.
#[derive(Debug)]
pub struct Request {
    pub method: Method,
    pub target: Target,
    pub version: Version,
    pub fields: Fields,
}

/// Why a request of HTTP/2 is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Field(#[from] NoToken),
    #[error(transparent)]
    Target(#[from] error::Error),
}

impl Error {
    /// What is answered, and why.
    pub fn refusal(self) -> (StatusCode, String) {
        (StatusCode::BAD_REQUEST, format!("the request cannot be read: {self}"))
    }
}

impl TryFrom<request::Parts> for Request {
    type Error = Error;

    fn try_from(parts: request::Parts) -> Result<Request, Error> {
        let request::Parts { method, uri, version, headers, .. } = parts;
        let (target, fields) = (Target::try_from(&uri)?, Fields::try_from(&headers)?);
        Ok(Request { method, target, version, fields })
    }
}

/// What is answered. `B` is its body, or what is known of it.
#[derive(Debug)]
pub struct Answer<B> {
    pub status: StatusCode,
    pub fields: Fields,
    pub body: B,
}

impl<B> Answer<B> {
    pub fn new(status: StatusCode, body: B) -> Answer<B> {
        Answer { status, fields: Fields::default(), body }
    }

    /// As HTTP/2's library has it: a bad gateway's where that cannot hold so many fields.
    pub fn into_response(self) -> Response<B> {
        let mut response = Response::new(self.body);
        match self.fields.to_map() {
            Some(fields) => {
                *response.status_mut() = self.status;
                *response.headers_mut() = fields;
            }
            None => *response.status_mut() = StatusCode::BAD_GATEWAY,
        }
        response
    }
}
