//! An answer's body on its way to a client, with what its request holds. Nothing is collected but
//! answers that may be served stale.

use crate::call::{Stay, Verdict};
use crate::fields::name;
use crate::front::ending::{Ending, Place};
use crate::http::body::{Incoming, Patience, Polled, length};
use crate::http::failure::Error;
use crate::http::headers;
use crate::http::http1::io::Io;
use crate::http::pool::Loan;
use crate::http::squeeze::Squeeze;
use crate::stale::Capture;
use base::env::{Env, Instant};
use bytes::Bytes;
use http::HeaderValue;
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// What a message says: nothing more, a few bytes, or a stream.
enum Content {
    Bytes(Option<Bytes>),
    Stream(Incoming, Patience),
    /// What comes on the connection that the answer's [`Ending`] has on loan, of which so much was
    /// sent: while its request moves it does not stand still.
    OnLoan(Patience, u64),
}

impl Content {
    fn bytes(bytes: Bytes) -> Content {
        Content::Bytes(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>, loan: Option<&mut Loan>) -> Polled {
        match self {
            Content::Bytes(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Stream(incoming, patience) => {
                let frame = Pin::new(incoming).poll_frame(cx);
                patience.poll(cx, frame)
            }
            Content::OnLoan(patience, n_sent) => match loan {
                Some(loan) => {
                    let frame = loan.poll_frame(cx);
                    if std::mem::replace(n_sent, loan.n_sent()) != loan.n_sent() {
                        patience.alarm = None;
                    }
                    patience.poll(cx, frame)
                }
                None => Poll::Ready(None),
            },
        }
    }

    fn is_end_stream(&self, loan: Option<&Loan>) -> bool {
        match self {
            Content::Bytes(bytes) => bytes.is_none(),
            Content::Stream(incoming, _) => incoming.is_end_stream(),
            Content::OnLoan(..) => loan.is_none_or(Loan::is_ended),
        }
    }

    fn size_hint(&self, loan: Option<&Loan>) -> SizeHint {
        match self {
            Content::Bytes(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, length)),
            Content::Stream(incoming, _) => incoming.size_hint(),
            Content::OnLoan(..) => match loan.map_or(Some(0), Loan::n_left) {
                Some(n_left) => SizeHint::with_exact(n_left),
                None => SizeHint::default(),
            },
        }
    }
}

/// Since when an answer's client has not come for more of it: HTTP/2 asks a body for as much as the
/// client has room for, and for nothing when it grants none.
pub struct Reader {
    origin: Instant,
    /// In microseconds since `origin`, plus one; 0: it is the server's turn.
    since_us: AtomicU64,
}

impl Reader {
    pub fn new(env: &Env) -> Reader {
        Reader { origin: env.now(), since_us: AtomicU64::new(0) }
    }

    fn wait(&self, now: Instant) {
        let us = now.saturating_duration_since(self.origin).as_micros();
        self.since_us.store(u64::try_from(us).unwrap_or(u64::MAX - 1) + 1, Relaxed);
    }

    fn came(&self) {
        self.since_us.store(0, Relaxed);
    }

    /// For how long it has not come.
    pub fn blocked_for(&self, now: Instant) -> Option<Duration> {
        let since = Duration::from_micros(self.since_us.load(Relaxed).checked_sub(1)?);
        Some(now.saturating_duration_since(self.origin + since))
    }
}

/// An answer's body on its way to a client. What the request held is given back when it is
/// through or given up.
pub struct AnswerBody {
    content: Content,
    ending: Option<Box<Ending>>,
    capture: Option<Box<Capture>>,
    reader: Option<Arc<Reader>>,
    squeeze: Option<Box<Squeeze>>,
    /// Of an answer behind which the connection is no longer one of HTTP.
    pub tunnel: Option<Box<Tunnel>>,
}

/// A server's side of a connection that both sides use as they like, and what its request holds.
pub struct Tunnel {
    pub io: Io,
    pub stay: Option<Stay>,
    pub place: Option<Place>,
}

impl AnswerBody {
    pub fn bytes(bytes: Bytes) -> AnswerBody {
        AnswerBody {
            content: Content::bytes(bytes),
            ending: None,
            capture: None,
            reader: None,
            squeeze: None,
            tunnel: None,
        }
    }

    pub fn stream(env: &Env, incoming: Incoming, idle: Duration) -> AnswerBody {
        let content = Content::Stream(incoming, Patience::new(env, idle));
        AnswerBody {
            content,
            ending: None,
            capture: None,
            reader: None,
            squeeze: None,
            tunnel: None,
        }
    }

    /// The answer on the connection that its ending has.
    pub fn on_loan(env: &Env, idle: Duration) -> AnswerBody {
        let content = Content::OnLoan(Patience::new(env, idle), 0);
        AnswerBody {
            content,
            ending: None,
            capture: None,
            reader: None,
            squeeze: None,
            tunnel: None,
        }
    }

    /// Goes on with the request while nobody reads its answer.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) {
        if let Some(loan) = self.ending.as_mut().and_then(|ending| ending.loan.as_mut()) {
            loan.poll_upload(cx);
        }
    }

    fn loan(&self) -> Option<&Loan> {
        self.ending.as_ref()?.loan.as_ref()
    }

    /// Compresses it on its way.
    pub fn squeeze(&mut self) {
        self.squeeze = Some(Box::default());
    }

    /// How much of it the server sends, where that is told.
    pub fn n_told(&self, loan: &Loan) -> Option<u64> {
        self.content.size_hint(Some(loan)).exact()
    }

    /// Tells `reader` when its client comes for more.
    pub fn watch(&mut self, reader: Arc<Reader>) {
        if let Some(ending) = &self.ending {
            reader.wait(ending.now());
        }
        self.reader = Some(reader);
    }

    pub fn hold(&mut self, ending: Box<Ending>) {
        self.ending = Some(ending);
        // Nobody asks for what is not there.
        if self.content.is_end_stream(self.loan()) {
            self.ended(true);
        }
    }

    /// All that its client asked for was sent: of an answer to HEAD nobody takes the content.
    pub fn is_sent(&mut self) {
        if let Some(ending) = &mut self.ending {
            ending.is_through = true;
        }
    }

    pub fn capture(&mut self, capture: Capture) {
        self.capture = Some(Box::new(capture));
    }

    fn ended(&mut self, is_well: bool) {
        let capture = self.capture.take();
        let Some(ending) = &mut self.ending else { return };
        ending.is_through |= is_well;
        // A server cannot end its answer to a question that broke off.
        let upload = ending.upload.as_ref();
        let is_clients = upload.is_some_and(|upload| upload.has_failed());
        if let Some(stay) = &mut ending.stay {
            match is_clients && !is_well {
                true => stay.has_no_end(),
                false => stay.ended(is_well),
            }
        }
        match capture {
            Some(capture) if is_well => capture.finish(ending.now()),
            _ => {}
        }
    }
}

impl AnswerBody {
    /// As it comes.
    fn poll_plain(&mut self, cx: &mut Context<'_>) -> Polled {
        let this = &mut *self;
        if let Some(reader) = &this.reader {
            reader.came();
        }
        let loan = this.ending.as_mut().and_then(|ending| ending.loan.as_mut());
        let frame = ready!(this.content.poll_frame(cx, loan));
        if let (Some(reader), Some(ending)) = (&this.reader, &this.ending) {
            reader.wait(ending.now());
        }
        match &frame {
            Some(Ok(frame)) => {
                if let Some(bytes) = frame.data_ref() {
                    if let Some(ending) = &mut self.ending {
                        ending.n_bytes += length(bytes);
                    }
                    if let Some(capture) = &mut self.capture {
                        capture.data(bytes);
                    }
                }
                let trailers = frame.trailers_ref();
                if let (Some(trailers), Some(ending)) = (trailers, &mut self.ending) {
                    let is_late = || ending.late_from.is_some_and(|from| ending.now() >= from);
                    let status = trailers.get(name::GRPC_STATUS).map(HeaderValue::as_bytes);
                    match headers::grpc_verdict(status, is_late) {
                        Verdict::Well => {}
                        Verdict::Failed => self.ended(false),
                        Verdict::Late => ending.stay.iter_mut().for_each(Stay::has_no_end),
                    }
                }
                // Whoever sees the end here asks no more.
                if trailers.is_some() || self.content.is_end_stream(self.loan()) {
                    self.ended(true);
                }
            }
            Some(Err(error)) => {
                // A stream may be silent for long, and is no sign of a server that fails.
                match error {
                    Error::StoodStill(_) => self.capture = None,
                    _ => self.ended(false),
                }
                if let Some(ending) = &mut self.ending {
                    ending.is_broken = true;
                }
            }
            None => self.ended(true),
        }
        Poll::Ready(frame)
    }

    fn poll_squeezed(&mut self, cx: &mut Context<'_>) -> Polled {
        loop {
            if self.squeeze.as_ref().is_some_and(|squeeze| squeeze.is_through) {
                return Poll::Ready(None);
            }
            let polled = self.poll_plain(cx);
            let Some(squeeze) = &mut self.squeeze else { return polled };
            let out = match &polled {
                Poll::Ready(Some(Ok(frame))) => match frame.data_ref() {
                    Some(data) => squeeze.put(data)?,
                    // Nobody compresses what has trailers.
                    None => continue,
                },
                Poll::Ready(Some(Err(_))) => return polled,
                Poll::Ready(None) => squeeze.finish()?,
                Poll::Pending => match squeeze.flush()? {
                    out if out.is_empty() => return polled,
                    out => out,
                },
            };
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out))));
            }
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        match self.squeeze {
            Some(_) => self.poll_squeezed(cx),
            None => self.poll_plain(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.squeeze {
            Some(squeeze) => squeeze.is_through,
            None => self.content.is_end_stream(self.loan()),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.squeeze {
            Some(_) => SizeHint::default(),
            None => self.content.size_hint(self.loan()),
        }
    }
}
