//! A client's connection: one request after the other, and our answers.
//!
//! ```text
//!   poll_request ──► (body …) ──► begin ──► poll_body … ──► poll_flush ──► poll_request
//! ```
//!
//! A request's body is read by whoever wants it, in whatever task; until it is at its end nobody
//! else reads. A body that was not read to its end is in the way of the next request: the
//! connection ends behind such an answer, and says so.

use super::Error;
use super::head::{self, Limits};
use super::io::{HEAD_BYTES, Io};
use super::length::{Decoder, Encoder, Length, Piece};
use super::lines::{self, Writer};
use crate::fields::{Fields, name};
use crate::http::failure;
use crate::http::message::Request;
use bytes::Bytes;
use http::{Method, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

/// No more of a line is told of.
const LINE_BYTES_MAX: usize = 1024;

pub struct Connection {
    shared: Arc<Mutex<Shared>>,
    limits: Limits,
    /// Of the input, without the end of a head in it.
    n_seen: usize,
    asked: Asked,
    /// Of the answer that is being sent.
    encoder: Option<Encoder>,
}

/// What is shared with the body of the request under way.
struct Shared {
    /// None when the connection has ended, or is no longer served here.
    io: Option<Io>,
    decoder: Decoder,
    /// Its client waits to be told before it sends it.
    is_waiting: bool,
    /// The client is being told, in front of all else.
    is_telling: bool,
    /// Which request it is of: who holds an older one's reads nothing.
    nth: u64,
    /// Who waits for more of it, perhaps another task than the connection's.
    reader: Option<Waker>,
}

impl Shared {
    /// The connection is no longer served here.
    fn end(&mut self) -> Option<Io> {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        self.io.take()
    }
}

/// What an answer needs to know of its request.
struct Asked {
    is_head: bool,
    is_old: bool,
    is_kept: bool,
    takes_trailers: bool,
}

/// A request's body.
pub struct Incoming {
    shared: Arc<Mutex<Shared>>,
    nth: u64,
}

/// A time as HTTP writes it.
pub type Date = [u8; 29];

/// A request, and its body where it has one.
pub type Came = (Request, Option<Incoming>);

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Request(#[from] Error),
    #[error("the answer broke off: {0}")]
    Answer(#[from] failure::Error),
}

impl Connection {
    pub fn new(io: Io, limits: Limits) -> Connection {
        let decoder = Decoder::new(Length::Told(0));
        let shared = Shared {
            io: Some(io),
            decoder,
            is_waiting: false,
            is_telling: false,
            nth: 0,
            reader: None,
        };
        Connection {
            shared: Arc::new(Mutex::new(shared)),
            limits,
            n_seen: 0,
            asked: Asked { is_head: false, is_old: false, is_kept: true, takes_trailers: false },
            encoder: None,
        }
    }

    /// The stream, when there is nothing more to do with it here.
    pub fn into_io(self) -> Option<Io> {
        self.shared.lock().end()
    }

    /// The next request; none: the client said goodbye. `has_begun` is told that a
    /// head is here in part.
    pub fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
        has_begun: impl Fn(),
    ) -> Poll<Result<Option<Came>, Failure>> {
        let mut shared = self.shared.lock();
        let Shared { io: Some(io), decoder, is_waiting, nth, .. } = &mut *shared else {
            return Poll::Ready(Ok(None));
        };
        loop {
            if !io.input.is_empty()
                && lines::may_be_whole(&io.input, self.n_seen)
                && let Some(head) = head::Request::read(&mut io.input, self.limits)?
            {
                let head::Request { request, length, is_kept, is_waiting: waits } = head;
                self.n_seen = 0;
                self.asked = Asked {
                    is_head: request.method == Method::HEAD,
                    is_old: request.version < Version::HTTP_11,
                    is_kept,
                    takes_trailers: takes_trailers(&request.fields),
                };
                *decoder = Decoder::new(length);
                *is_waiting = waits;
                *nth += 1;
                let body = (!decoder.is_ended())
                    .then(|| Incoming { shared: self.shared.clone(), nth: *nth });
                return Poll::Ready(Ok(Some((request, body))));
            }
            self.n_seen = io.input.len();
            if self.n_seen > 0 {
                has_begun();
            }
            if self.n_seen >= self.limits.n_bytes_max {
                return Poll::Ready(Err(Error::HeadTooLarge.into()));
            }
            match ready!(io.poll_fill(cx))? {
                0 if io.input.is_empty() => return Poll::Ready(Ok(None)),
                0 => return Poll::Ready(Err(Error::Cut.into())),
                _ => {}
            }
        }
    }

    /// Ready when the client leaves while its request is under way.
    pub fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut shared = self.shared.lock();
        let Shared { io: Some(io), decoder, .. } = &mut *shared else { return Poll::Ready(()) };
        // A body's reader sees it; what comes behind the body is the next request.
        if !decoder.is_ended() || !io.input.is_empty() {
            return Poll::Pending;
        }
        match ready!(io.poll_peek(cx)) {
            Ok(n) if n > 0 => Poll::Pending,
            _ => Poll::Ready(()),
        }
    }

    /// Whether the request was read to its end.
    pub fn is_read(&self) -> bool {
        self.shared.lock().decoder.is_ended()
    }

    /// Whether something came behind the request.
    pub fn has_more(&self) -> bool {
        self.shared.lock().io.as_ref().is_some_and(|io| !io.input.is_empty())
    }

    /// Writes an answer's head. `is_last`: no other request is wanted on this connection. `date` is
    /// the time, for an answer that has none.
    pub fn begin(
        &mut self,
        status: StatusCode,
        fields: &Fields,
        size: &SizeHint,
        is_last: bool,
        date: impl FnOnce() -> Date,
    ) {
        let mut shared = self.shared.lock();
        let Shared { io: Some(io), decoder, is_waiting, is_telling, .. } = &mut *shared else {
            return;
        };
        // It is told now, and need not send the rest.
        (*is_waiting, *is_telling) = (false, false);
        let is_read = decoder.is_ended();
        let is_switch = status == StatusCode::SWITCHING_PROTOCOLS;
        let is_bare = self.asked.is_head
            || is_switch
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let length = match size.exact() {
            Some(n) => Length::Told(n),
            None if self.asked.is_old => Length::UntilClosed,
            None => Length::Chunked,
        };
        let says_close = fields.get(name::CONNECTION) == Some(b"close");
        let is_kept = self.asked.is_kept
            && is_read
            && !is_last
            && !says_close
            && (is_bare || length != Length::UntilClosed);
        self.asked.is_kept = is_kept;

        io.output.reserve(HEAD_BYTES);
        let mut to = Writer(&mut io.output);
        to.status(status);
        // Of an answer to HEAD it is the length that another one would have.
        let keeps_length = self.asked.is_head || status == StatusCode::NOT_MODIFIED;
        to.fields(fields, |name| {
            let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
            (is(name::CONTENT_LENGTH) && !keeps_length) || (is(name::CONNECTION) && !is_switch)
        });
        if !fields.has(name::DATE) {
            to.field(name::DATE, &date());
        }
        let is_known = fields.has(name::CONTENT_LENGTH);
        if !is_bare || (self.asked.is_head && !is_known && length != Length::Told(0)) {
            to.length(length);
        }
        match is_kept {
            _ if is_switch => {}
            false => to.field(name::CONNECTION, b"close"),
            true if self.asked.is_old => to.field(name::CONNECTION, b"keep-alive"),
            true => {}
        }
        to.end();
        // What has no body is waited for all the same: its end may be that of an upload.
        self.encoder = (!is_bare || length == Length::Told(0)).then(|| Encoder::new(length));
    }

    /// Sends what there is of an answer's body. Ready when there is no more of it; what was put and
    /// not written yet goes with [`Connection::poll_flush`].
    pub fn poll_body<B>(&mut self, cx: &mut Context<'_>, body: &mut B) -> Poll<Result<(), Failure>>
    where
        B: Body<Data = Bytes, Error = failure::Error> + Unpin,
    {
        loop {
            let is_moving = self.gather(cx, body)?;
            if self.encoder.is_none() {
                return Poll::Ready(Ok(()));
            }
            if let Some(io) = &mut self.shared.lock().io {
                ready!(io.poll_send(cx))?;
            }
            if !is_moving {
                return Poll::Pending;
            }
        }
    }

    /// Puts what there is of an answer's body behind its head; false: it stands still.
    fn gather<B>(&mut self, cx: &mut Context<'_>, body: &mut B) -> Result<bool, Failure>
    where
        B: Body<Data = Bytes, Error = failure::Error> + Unpin,
    {
        while let Some(encoder) = &mut self.encoder {
            if !self.shared.lock().io.as_ref().is_some_and(Io::has_room) {
                return Ok(true);
            }
            // Not locked: it may be on its way while the request's is, which reads here.
            let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else { return Ok(false) };
            let mut shared = self.shared.lock();
            let Some(io) = &mut shared.io else { return Err(Error::Cut.into()) };
            let is_last = io.put_frame(encoder, frame.transpose()?, self.asked.takes_trailers)?;
            drop(shared);
            // What is told and has come needs no look at its end, but where an upload's is behind it.
            if is_last || (encoder.is_through() && body.is_end_stream()) {
                self.encoder = None;
            }
        }
        Ok(true)
    }

    /// Writes what there is.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.shared.lock();
        let Some(io) = &mut shared.io else { return Poll::Ready(Ok(())) };
        ready!(io.poll_send(cx))?;
        io.rest();
        Poll::Ready(Ok(()))
    }

    /// How much was sent, where more waits to be.
    pub fn is_blocked(&self) -> Option<u64> {
        let shared = self.shared.lock();
        shared.io.as_ref().filter(|io| !io.is_written()).map(|io| io.n_sent)
    }

    /// Whether another request may follow the answer.
    pub fn is_kept(&self) -> bool {
        self.asked.is_kept
    }

    /// What there is of the first line of a request that was not read, to tell of it.
    pub fn first_line(&self) -> String {
        let shared = self.shared.lock();
        let input = shared.io.as_ref().map_or(&[][..], |io| &io.input[..]);
        let line = input.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
        String::from_utf8_lossy(&line[..line.len().min(LINE_BYTES_MAX)]).into_owned()
    }

    /// Writes the answer to what cannot be read; the connection ends with it.
    pub fn refuse(&mut self, status: StatusCode, reason: &str, date: Date) {
        let mut shared = self.shared.lock();
        let Some(io) = &mut shared.io else { return };
        let mut to = Writer(&mut io.output);
        to.status(status);
        to.field(name::DATE, &date);
        to.field(name::CONTENT_TYPE, b"text/plain; charset=utf-8");
        to.length(Length::Told(reason.len() as u64 + 1));
        to.field(name::CONNECTION, b"close");
        to.end();
        io.output.extend_from_slice(reason.as_bytes());
        io.output.push(b'\n');
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Whoever still holds a body does not hold the connection.
        self.shared.lock().end();
    }
}

/// Whether whoever asks reads what stands behind a body (RFC 9110, 6.5.1).
fn takes_trailers(fields: &Fields) -> bool {
    fields.all(name::TE).any(|value| {
        let mut codings = value.split(|byte| *byte == b',');
        codings.any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    })
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = failure::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, failure::Error>>> {
        let mut shared = self.shared.lock();
        let cut = Poll::Ready(Some(Err(Error::Cut.into())));
        let Shared { io: Some(io), decoder, is_waiting, is_telling, nth, reader } = &mut *shared
        else {
            return cut;
        };
        if *nth != self.nth {
            return cut;
        }
        if std::mem::take(is_waiting) {
            io.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            *is_telling = true;
        }
        if *is_telling && let Poll::Ready(sent) = io.poll_send(cx) {
            sent?;
            *is_telling = false;
        }
        loop {
            if let Some(piece) = decoder.next(&mut io.input)? {
                return Poll::Ready(Some(Ok(match piece {
                    Piece::Data(data) => Frame::data(data),
                    Piece::Trailers(trailers) => Frame::trailers(trailers),
                })));
            }
            if decoder.is_ended() {
                return Poll::Ready(None);
            }
            let Poll::Ready(filled) = io.poll_fill(cx) else {
                *reader = Some(cx.waker().clone());
                return Poll::Pending;
            };
            if filled? == 0 {
                return cut;
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let shared = self.shared.lock();
        shared.nth == self.nth && shared.decoder.is_ended()
    }

    fn size_hint(&self) -> SizeHint {
        let shared = self.shared.lock();
        match shared.decoder.n_left().filter(|_| shared.nth == self.nth) {
            Some(n_left) => SizeHint::with_exact(n_left),
            None => SizeHint::default(),
        }
    }
}
