//! Bodies on their way: as they come, and a request's on its way to a server. Nothing is collected
//! but small requests whose length is told.

use crate::call::Upload;
use crate::http::failure::Error;
use crate::http::http1::server;
use crate::http::http2;
use base::env::Env;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

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

pub type Polled = Poll<Option<Result<Frame<Bytes>, Error>>>;

/// How long a body may stand still.
pub struct Patience {
    pub env: Env,
    idle: Duration,
    /// Made when the body first stands still, so that most need none.
    pub alarm: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl Patience {
    pub fn new(env: &Env, idle: Duration) -> Patience {
        Patience { env: env.clone(), idle, alarm: None }
    }

    pub fn poll(&mut self, cx: &mut Context<'_>, frame: Polled) -> Polled {
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

/// What a request says: nothing more, a few bytes, or a stream.
enum Content {
    Bytes(Option<Bytes>),
    Stream(Incoming, Patience),
}

pub fn length(bytes: &Bytes) -> u64 {
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
            content: Content::Bytes(Some(bytes).filter(|bytes| !bytes.is_empty())),
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

impl RequestBody {
    fn poll_content(&mut self, cx: &mut Context<'_>) -> Polled {
        match &mut self.content {
            Content::Bytes(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Stream(incoming, patience) => {
                let frame = Pin::new(incoming).poll_frame(cx);
                patience.poll(cx, frame)
            }
        }
    }

    fn env(&self) -> Option<&Env> {
        match &self.content {
            Content::Bytes(_) => None,
            Content::Stream(_, patience) => Some(&patience.env),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let polled = self.poll_content(cx);
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
        if let (Some(upload), Some(env)) = (&self.upload, self.env()) {
            let is_well = !matches!(&frame, Some(Err(_)));
            let is_last = matches!(&frame, Some(Ok(_))) && self.is_end_stream();
            if frame.is_none() || is_last || !is_well {
                upload.end(env.now(), is_well);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Bytes(bytes) => bytes.is_none(),
            Content::Stream(incoming, _) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Bytes(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, length)),
            Content::Stream(incoming, _) => incoming.size_hint(),
        }
    }
}
