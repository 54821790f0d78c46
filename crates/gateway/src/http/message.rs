//! A request and an answer, in whichever version of HTTP they came.

use crate::http::fields::{Fields, NoToken};
use http::{Method, Response, StatusCode, Uri, Version, request};

/// What is asked; its body goes its own way.
#[derive(Debug)]
pub struct Request {
    pub method: Method,
    pub target: Uri,
    pub version: Version,
    pub fields: Fields,
}

impl TryFrom<request::Parts> for Request {
    type Error = NoToken;

    fn try_from(parts: request::Parts) -> Result<Request, NoToken> {
        let request::Parts { method, uri: target, version, headers, .. } = parts;
        Ok(Request { method, target, version, fields: Fields::try_from(&headers)? })
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
