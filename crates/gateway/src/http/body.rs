//! Bodies on their way. Nothing is collected on the way but small requests whose length is told,
//! and answers that may be served stale.

use crate::call::{Stay, Upload, Verdict};
use crate::fields::name;
use crate::http::ending::{Ending, Place};
use crate::http::headers;
use crate::http::http1;
use crate::http::http1::client::Failure;
use crate::http::http1::io::Io;
use crate::http::http1::server;
use crate::http::http2;
use crate::http::pool::Loan;
use crate::http::squeeze::Squeeze;
use crate::stale::Capture;
use base::env::{Env, Instant};
use bytes::Bytes;
use http::HeaderValue;
use http_body::{Body, Frame, SizeHint};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
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
    Http1(#[from] http1::Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        match failure {
            Failure::Io(error) => error.into(),
            Failure::Answer(error) => error.into(),
            Failure::Body(error) => error,
        }
    }
}

/// A body as it comes.
pub enum Incoming {
    Empty,
    Http1(server::Incoming),
    Http2(hyper::body::Incoming),
    /// A server's.
    Answer(http2::Incoming),
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        match &mut *self {
            Incoming::Empty => Poll::Ready(None),
            Incoming::Http1(body) => Pin::new(body).poll_frame(cx),
            Incoming::Http2(body) => {
                Pin::new(body).poll_frame(cx).map(|frame| Some(frame?.map_err(Error::from)))
            }
            Incoming::Answer(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Incoming::Empty => true,
            Incoming::Http1(body) => body.is_end_stream(),
            Incoming::Http2(body) => body.is_end_stream(),
            Incoming::Answer(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Incoming::Empty => SizeHint::with_exact(0),
            Incoming::Http1(body) => body.size_hint(),
            Incoming::Http2(body) => body.size_hint(),
            Incoming::Answer(body) => body.size_hint(),
        }
    }
}

type Polled = Poll<Option<Result<Frame<Bytes>, Error>>>;

/// How long a body may stand still.
struct Patience {
    env: Env,
    idle: Duration,
    /// Made when the body first stands still, so that most need none.
    alarm: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl Patience {
    fn new(env: &Env, idle: Duration) -> Patience {
        Patience { env: env.clone(), idle, alarm: None }
    }

    fn poll(&mut self, cx: &mut Context<'_>, frame: Polled) -> Polled {
        if frame.is_ready() {
            self.alarm = None;
            return frame;
        }
        let (env, idle) = (&self.env, self.idle);
        let alarm = self.alarm.get_or_insert_with(|| {
            let env = env.clone();
            Box::pin(async move { env.sleep(idle).await })
        });
        ready!(alarm.as_mut().poll(cx));
        Poll::Ready(Some(Err(Error::StoodStill(idle))))
    }
}

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

    fn env(&self) -> Option<&Env> {
        match self {
            Content::Bytes(_) => None,
            Content::Stream(_, patience) | Content::OnLoan(patience, _) => Some(&patience.env),
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

fn length(bytes: &Bytes) -> u64 {
    bytes.len() as u64
}

/// A request's body on its way to a server.
pub struct RequestBody {
    content: Content,
    n_left: u64,
    n_max: u64,
    pub upload: Option<Arc<Upload>>,
}

impl RequestBody {
    pub fn bytes(bytes: Bytes) -> RequestBody {
        RequestBody {
            content: Content::bytes(bytes),
            n_left: u64::MAX,
            n_max: u64::MAX,
            upload: None,
        }
    }

    pub fn stream(
        env: &Env,
        incoming: Incoming,
        idle: Duration,
        n_max: Option<u64>,
        upload: Arc<Upload>,
    ) -> RequestBody {
        let n_max = n_max.unwrap_or(u64::MAX);
        let content = Content::Stream(incoming, Patience::new(env, idle));
        RequestBody { content, n_left: n_max, n_max, upload: Some(upload) }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let polled = self.content.poll_frame(cx, None);
        if let Some(upload) = &self.upload {
            upload.moved(polled.is_ready());
        }
        let mut frame = ready!(polled);
        if let Some(Ok(data)) = &frame {
            let n = data.data_ref().map_or(0, length);
            match self.n_left.checked_sub(n) {
                Some(left) => self.n_left = left,
                None => frame = Some(Err(Error::TooLarge(self.n_max))),
            }
        }
        if let (Some(upload), Some(env)) = (&self.upload, self.content.env()) {
            let is_well = !matches!(&frame, Some(Err(_)));
            let is_last = matches!(&frame, Some(Ok(_))) && self.content.is_end_stream(None);
            if frame.is_none() || is_last || !is_well {
                upload.end(env.now(), is_well);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream(None)
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint(None)
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
