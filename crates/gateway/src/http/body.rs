//! Bodies on their way. Nothing is collected on the way but small requests whose length is told,
//! and answers that may be served stale.

use crate::call::{Stay, Verdict};
use crate::http::ending::Ending;
use crate::http::headers;
use crate::http::serve::Pulse;
use crate::stale::Capture;
use base::env::Env;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the body is larger than the {0} bytes that are allowed")]
    TooLarge(u64),
    #[error("the body stood still for {0:?}")]
    StoodStill(Duration),
    #[error(transparent)]
    Http(#[from] hyper::Error),
}

type Polled = Poll<Option<Result<Frame<Bytes>, Error>>>;

/// A stream of frames that must move.
struct Moving {
    incoming: Incoming,
    env: Env,
    idle: Duration,
    /// Made when the body first stands still, so that most need none.
    alarm: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl Moving {
    fn new(env: &Env, incoming: Incoming, idle: Duration) -> Moving {
        Moving { incoming, env: env.clone(), idle, alarm: None }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Polled {
        if let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) {
            self.alarm = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Error::from)));
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
    Stream(Moving),
}

impl Content {
    fn bytes(bytes: Bytes) -> Content {
        Content::Bytes(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Polled {
        match self {
            Content::Bytes(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Stream(moving) => moving.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Content::Bytes(bytes) => bytes.is_none(),
            Content::Stream(moving) => moving.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Content::Bytes(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, length)),
            Content::Stream(moving) => moving.incoming.size_hint(),
        }
    }
}

fn length(bytes: &Bytes) -> u64 {
    bytes.len() as u64
}

/// What becomes of a body that a client sends while it is passed on.
pub struct Upload {
    pulse: Arc<Pulse>,
    has_failed: AtomicBool,
}

impl Upload {
    pub fn new(pulse: Arc<Pulse>) -> Arc<Upload> {
        Arc::new(Upload { pulse, has_failed: AtomicBool::new(false) })
    }
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
        let content = Content::Stream(Moving::new(env, incoming, idle));
        RequestBody { content, n_left: n_max, n_max, upload: Some(upload) }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let mut frame = ready!(self.content.poll_frame(cx));
        if let Some(Ok(data)) = &frame {
            let n = data.data_ref().map_or(0, length);
            match self.n_left.checked_sub(n) {
                Some(left) => self.n_left = left,
                None => frame = Some(Err(Error::TooLarge(self.n_max))),
            }
        }
        if let Some(upload) = &self.upload {
            match &frame {
                Some(Err(_)) => upload.has_failed.store(true, Relaxed),
                Some(Ok(data)) if data.is_data() && !self.content.is_end_stream() => {}
                _ => upload.pulse.has_read(),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint()
    }
}

/// An answer's body on its way to a client. What the request held is given back when it is
/// through or given up.
pub struct AnswerBody {
    content: Content,
    ending: Option<Box<Ending>>,
    capture: Option<Box<Capture>>,
}

impl AnswerBody {
    pub fn bytes(bytes: Bytes) -> AnswerBody {
        AnswerBody { content: Content::bytes(bytes), ending: None, capture: None }
    }

    pub fn stream(env: &Env, incoming: Incoming, idle: Duration) -> AnswerBody {
        let content = Content::Stream(Moving::new(env, incoming, idle));
        AnswerBody { content, ending: None, capture: None }
    }

    pub fn hold(&mut self, ending: Ending) {
        self.ending = Some(Box::new(ending));
        // Nobody asks for what is not there.
        if self.content.is_end_stream() {
            self.ended(true);
        }
    }

    pub fn capture(&mut self, capture: Capture) {
        self.capture = Some(Box::new(capture));
    }

    fn ended(&mut self, is_well: bool) {
        let capture = self.capture.take();
        let Some(ending) = &mut self.ending else { return };
        // A server cannot end its answer to a question that broke off.
        let upload = ending.upload.as_ref();
        let is_clients = upload.is_some_and(|upload| upload.has_failed.load(Relaxed));
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

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let frame = ready!(self.content.poll_frame(cx));
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
                    let is_late = ending.late_from.is_some_and(|from| ending.now() >= from);
                    match headers::grpc_verdict(trailers, is_late) {
                        Verdict::Well => {}
                        Verdict::Failed => self.ended(false),
                        Verdict::Late => ending.stay.iter_mut().for_each(Stay::has_no_end),
                    }
                }
                // Whoever sees the end here asks no more.
                if trailers.is_some() || self.content.is_end_stream() {
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

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint()
    }
}
