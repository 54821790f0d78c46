//! A request on its way to a service: everything that does not change from attempt to attempt.

use crate::call::Upload;
use crate::call::{Fault, SendError};
use crate::fields::{Fields, name};
use crate::http::body::RequestBody;
use crate::http::headers;
use crate::http::http1::length::Length;
use crate::http::http1::lines::Writer;
use crate::http::target;
use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{Method, Request, Uri, Version};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

pub struct Outgoing {
    pub method: Method,
    /// With the query.
    pub path: String,
    pub fields: Fields,
    pub upgrade: Option<Vec<u8>>,
    pub body: OutgoingBody,
    pub may_repeat: bool,
    /// Its body was read whole before it is sent.
    pub was_waited_for: bool,
}

/// Taken by the attempt that sends it.
pub enum OutgoingBody {
    /// All of it, and whether it was taken: it may be again where it does no harm.
    Held(Bytes, AtomicBool),
    Stream(Mutex<Option<RequestBody>>),
}

impl Outgoing {
    pub fn upload(&self) -> Option<Arc<Upload>> {
        match &self.body {
            OutgoingBody::Held(..) => None,
            OutgoingBody::Stream(body) => body.lock().as_ref()?.upload.clone(),
        }
    }

    /// Whether there is a body for one more attempt.
    pub fn can_send(&self) -> bool {
        match &self.body {
            OutgoingBody::Held(_, is_taken) => self.may_repeat || !is_taken.load(Relaxed),
            OutgoingBody::Stream(body) => body.lock().is_some(),
        }
    }

    /// The body, for one attempt.
    pub fn body(&self) -> Result<RequestBody, SendError> {
        let body = match &self.body {
            OutgoingBody::Held(bytes, is_taken) => {
                let is_free = !is_taken.swap(true, Relaxed) || self.may_repeat;
                is_free.then(|| RequestBody::bytes(bytes.clone()))
            }
            OutgoingBody::Stream(body) => body.lock().take(),
        };
        body.ok_or_else(|| malformed("the body was sent already".into()))
    }

    /// The server has done nothing with it: whether it is here still, to be sent again.
    pub fn take_back(&self) -> bool {
        match &self.body {
            OutgoingBody::Held(_, is_taken) => {
                is_taken.store(false, Relaxed);
                true
            }
            OutgoingBody::Stream(body) => body.lock().is_some(),
        }
    }

    /// Nothing of it was sent.
    pub fn put_back(&self, body: RequestBody) {
        match &self.body {
            OutgoingBody::Held(_, is_taken) => is_taken.store(false, Relaxed),
            OutgoingBody::Stream(slot) => *slot.lock() = Some(body),
        }
    }

    /// The head, for an attempt that has so much time left.
    pub fn head(&self, left: Duration, server: SocketAddr) -> Head<'_> {
        let Outgoing { method, path, fields, upgrade, .. } = self;
        Head { method, path, fields, upgrade: upgrade.as_deref(), left: Some(left), server }
    }
}

/// What is asked of a server.
pub struct Head<'a> {
    pub method: &'a Method,
    /// With the query.
    pub path: &'a str,
    pub fields: &'a Fields,
    pub upgrade: Option<&'a [u8]>,
    /// How long anyone will wait for the answer.
    pub left: Option<Duration>,
    /// Who is asked: the host of a request that names none.
    pub server: SocketAddr,
}

impl Head<'_> {
    /// HTTP/1.0 may name no host, and HTTP/1.1 an empty one; many servers refuse both.
    fn has_host(&self) -> bool {
        self.fields.get(name::HOST).is_some_and(|host| !host.is_empty())
    }

    /// As HTTP/1.1 has it.
    pub fn write(&self, mut to: Writer<'_>, length: Length) {
        to.request(self.method, self.path);
        to.fields(self.fields, |name| {
            let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
            is(name::CONTENT_LENGTH)
                || (is(name::HOST) && !self.has_host())
                || (self.left.is_some() && headers::is_timeout(name))
        });
        if !self.has_host() {
            to.field(name::HOST, self.server.to_string().as_bytes());
        }
        if let Some(left) = self.left {
            write_timeout(&mut to, self.fields, left);
        }
        if let Some(upgrade) = self.upgrade {
            to.field(name::CONNECTION, b"upgrade");
            to.field(name::UPGRADE, upgrade);
        }
        let has_none = length == Length::Told(0)
            && !self.fields.has(name::CONTENT_LENGTH)
            && !matches!(*self.method, Method::POST | Method::PUT | Method::PATCH);
        if !has_none {
            to.length(length);
        }
        to.end();
    }

    /// As HTTP/2 has it.
    pub fn request(&self, is_tls: bool) -> Result<Request<()>, SendError> {
        let mut request = Request::new(());
        *request.method_mut() = self.method.clone();
        *request.version_mut() = Version::HTTP_2;
        let mut fields = self.fields.clone();
        if let Some(left) = self.left {
            headers::set_timeout(&mut fields, left);
        }
        fields.remove(name::HOST);
        let fields = fields.to_map().ok_or_else(|| malformed("too many fields".into()))?;
        *request.headers_mut() = fields;
        let server = self.server.to_string();
        let host = self.fields.ascii(name::HOST).filter(|host| !host.is_empty()).unwrap_or(&server);
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(if is_tls { Scheme::HTTPS } else { Scheme::HTTP });
        let authority = Authority::try_from(host);
        uri.authority = Some(authority.map_err(|error| malformed(error.to_string()))?);
        let path = target::path_and_query(self.path);
        uri.path_and_query =
            Some(path.ok_or_else(|| malformed("the path cannot be one of HTTP/2".into()))?);
        *request.uri_mut() = Uri::from_parts(uri).map_err(|error| malformed(error.to_string()))?;
        Ok(request)
    }
}

/// As [`headers::set_timeout`], where the head is written.
fn write_timeout(to: &mut Writer<'_>, fields: &Fields, left: Duration) {
    let ms = headers::timeout_ms(left);
    to.number(name::TIMEOUT, ms);
    if fields.has(name::GRPC_TIMEOUT) {
        to.field(name::GRPC_TIMEOUT, headers::grpc_timeout(ms).as_bytes());
    }
}

fn malformed(reason: String) -> SendError {
    SendError::Request { fault: Fault::Malformed, reason }
}
