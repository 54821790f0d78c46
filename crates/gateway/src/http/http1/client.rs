//! A connection to a server: one request at a time, and its answer.
//!
//! ```text
//!   idle ── send ──► sending, waiting ── head ──► (sending,) reading ── its end ──► idle
//! ```
//!
//! A request's body is sent while its answer is read: a server may answer before it has all of it.
//! A connection that is dropped on the way is closed.

use super::Error;
use super::head::{ANSWER_BYTES_MAX, Answer};
use super::io::{HEAD_BYTES, Io};
use super::length::{Decoder, Encoder, Length, Piece};
use super::lines;
use crate::http::failure;
use crate::http::wire::Wire;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

pub struct Connection {
    io: Io,
    upload: Option<Upload>,
    /// Of the answer that is being read.
    decoder: Option<Decoder>,
    /// Another request may follow.
    is_kept: bool,
    /// The server took the request: it gets the rest, even behind its answer.
    is_taken: bool,
    /// A request has begun, and its answer has not.
    is_waiting: bool,
    /// Why nothing more can be sent; an answer may still come.
    broken: Option<std::io::Error>,
    /// Why the request's body ended before its end, until that is told.
    failed: Option<Failure>,
    /// Of the answer, until they are told.
    trailers: Option<HeaderMap>,
}

/// A body on its way to the server.
struct Upload {
    /// Boxed: whose it is makes no difference here, and most requests have none.
    body: Pin<Box<dyn Body<Data = Bytes, Error = failure::Error> + Send>>,
    encoder: Encoder,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("the answer: {0}")]
    Answer(#[from] Error),
    /// The request's body failed: it is not the server's fault.
    #[error(transparent)]
    Body(#[from] failure::Error),
}

impl From<Failure> for failure::Error {
    fn from(failure: Failure) -> failure::Error {
        match failure {
            Failure::Io(error) => error.into(),
            Failure::Answer(error) => error.into(),
            Failure::Body(error) => error,
        }
    }
}

impl Connection {
    pub fn new(wire: Wire) -> Connection {
        Connection {
            io: Io::new(wire, Bytes::new()),
            upload: None,
            decoder: None,
            is_kept: true,
            is_taken: false,
            is_waiting: false,
            broken: None,
            failed: None,
            trailers: None,
        }
    }

    /// Whether another request may follow: nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.decoder.is_none() && !self.is_uploading() && !self.is_waiting && self.is_kept
    }

    /// Whether a request can be sent now: the server has neither closed it nor said what nobody
    /// has asked for.
    pub fn is_ready(&mut self) -> bool {
        self.is_idle() && self.io.is_quiet()
    }

    /// Whether anything of the answer that is waited for has come.
    pub fn has_heard(&self) -> bool {
        !self.is_waiting || !self.io.input.is_empty()
    }

    /// Where a request's head is to be written.
    pub fn head(&mut self) -> lines::Writer<'_> {
        self.io.output.reserve(HEAD_BYTES);
        lines::Writer(&mut self.io.output)
    }

    /// Sends the request whose head was written, and waits for the answer's.
    pub async fn send(
        &mut self,
        body: impl Body<Data = Bytes, Error = failure::Error> + Send + 'static,
        length: Length,
        is_head: bool,
    ) -> Result<Answer, Failure> {
        self.is_waiting = true;
        self.trailers = None;
        if length != Length::Told(0) {
            self.upload = Some(Upload { body: Box::pin(body), encoder: Encoder::new(length) });
        }
        let mut n_seen = 0;
        let answer = poll_fn(|cx| {
            // Pending or not: an answer may come before the request is through.
            if let Poll::Ready(Err(failure)) = self.poll_send(cx) {
                return Poll::Ready(Err(failure));
            }
            loop {
                while lines::may_be_whole(&self.io.input, n_seen) && !self.io.input.is_empty() {
                    let found = Answer::read(&mut self.io.input, is_head)?;
                    let Some(answer) = found else { break };
                    n_seen = 0;
                    if !answer.status.is_informational() || answer.status.as_u16() == 101 {
                        return Poll::Ready(Ok(answer));
                    }
                }
                n_seen = self.io.input.len();
                if n_seen >= ANSWER_BYTES_MAX {
                    return Poll::Ready(Err(Error::HeadTooLarge.into()));
                }
                match ready!(self.io.poll_fill(cx)) {
                    Ok(0) => return Poll::Ready(Err(self.cut())),
                    Ok(_) => {}
                    Err(error) => {
                        let first = self.broken.take();
                        return Poll::Ready(Err(first.unwrap_or(error).into()));
                    }
                }
            }
        })
        .await?;
        self.is_waiting = false;
        self.is_kept &= answer.is_kept;
        self.is_taken = answer.status.is_success() && self.is_kept;
        self.decoder = Some(Decoder::new(answer.length));
        self.end_if_ended();
        Ok(answer)
    }

    fn cut(&mut self) -> Failure {
        match self.broken.take() {
            Some(error) => error.into(),
            None => Error::Cut.into(),
        }
    }

    /// Sends what there is of the request.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        while self.broken.is_none() {
            let gathered = self.gather(cx);
            if gathered.is_err() {
                self.give_up();
            }
            let is_moving = gathered?;
            match ready!(self.io.poll_send(cx)) {
                Ok(()) if self.upload.is_none() => break,
                Ok(()) if is_moving => {}
                Ok(()) => return Poll::Pending,
                Err(error) => {
                    self.broken = Some(error);
                    self.give_up();
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Puts what there is of the request's body behind its head; false: it stands still.
    fn gather(&mut self, cx: &mut Context<'_>) -> Result<bool, Failure> {
        while self.io.has_room()
            && let Some(Upload { body, encoder }) = &mut self.upload
        {
            let Poll::Ready(frame) = body.as_mut().poll_frame(cx) else { return Ok(false) };
            if self.io.put_frame(encoder, frame.transpose()?, true)? {
                self.upload = None;
            }
        }
        Ok(true)
    }

    fn is_uploading(&self) -> bool {
        self.upload.is_some() || !self.io.is_written()
    }

    fn give_up(&mut self) {
        self.upload = None;
        self.is_kept = false;
        self.io.rest();
    }

    /// Sends what there is of the request while nobody reads the answer.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) {
        if let Poll::Ready(Err(failure)) = self.poll_send(cx) {
            self.failed = Some(failure);
        }
    }

    /// How much of the answer's body is to come, where that was told.
    pub fn n_left(&self) -> Option<u64> {
        self.decoder.as_ref().map_or(Some(0), Decoder::n_left)
    }

    /// Whether the answer is at its end, and the request too.
    pub fn is_ended(&self) -> bool {
        self.decoder.is_none() && !self.is_uploading() && self.trailers.is_none()
    }

    /// How much was sent on this connection.
    pub fn n_sent(&self) -> u64 {
        self.io.n_sent
    }

    /// The whole of the answer's body, if it has come already.
    pub fn whole(&mut self) -> Option<Bytes> {
        let decoder = self.decoder.as_ref().filter(|_| !self.is_uploading())?;
        let n_left = decoder.n_left()?;
        let n_left = usize::try_from(n_left).ok().filter(|n| *n <= self.io.input.len())?;
        self.decoder = Some(Decoder::new(Length::Told(0)));
        let whole = self.io.input.split_to(n_left);
        self.end_if_ended();
        Some(whole)
    }

    /// The answer's body, piece by piece. Its end waits for the request's, where the server takes
    /// that.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if let Some(failure) = self.failed.take() {
            return Poll::Ready(Some(Err(failure)));
        }
        if self.decoder.is_some()
            && let Poll::Ready(Err(failure)) = self.poll_send(cx)
        {
            return Poll::Ready(Some(Err(failure)));
        }
        loop {
            let Some(decoder) = &mut self.decoder else {
                // Behind an answer that is at its end nothing is sent but what the server takes.
                if self.is_uploading()
                    && let Err(failure) = ready!(self.poll_send(cx))
                {
                    return Poll::Ready(Some(Err(failure)));
                }
                self.io.rest();
                return Poll::Ready(self.trailers.take().map(|fields| Ok(Frame::trailers(fields))));
            };
            match decoder.next(&mut self.io.input)? {
                Some(Piece::Data(data)) => {
                    self.end_if_ended();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Piece::Trailers(trailers)) => self.trailers = Some(trailers),
                None if decoder.is_ended() => {}
                None => {
                    if ready!(self.io.poll_fill(cx))? == 0 {
                        decoder.close()?;
                    }
                }
            }
            self.end_if_ended();
        }
    }

    /// After an answer that is at its end.
    fn end_if_ended(&mut self) {
        if !self.decoder.as_ref().is_some_and(Decoder::is_ended) {
            return;
        }
        self.decoder = None;
        match self.is_uploading() {
            true if self.is_taken => {}
            // The server does not want the rest.
            true => self.give_up(),
            false => self.io.rest(),
        }
    }

    /// The stream, when it is no longer one of HTTP.
    pub fn into_io(self) -> Io {
        self.io
    }
}
