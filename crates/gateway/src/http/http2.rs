//! A connection to a server that speaks HTTP/2: many requests at once, as many as the server says.
//!
//! * It is open when the server's first settings have come (RFC 9113, 3.4): before that nobody
//!   knows how many requests it takes, or whether anybody is there at all.
//! * No pings are sent unless the file wants them: servers of gRPC end a connection that pings too
//!   often.
//! * A request that the server says it has not processed (REFUSED_STREAM, or beyond the last one
//!   that its GOAWAY names) may be sent again, whatever its method (RFC 9113, 8.7).
//!
//! Why not hyper's client: it tells neither how many requests a server takes at once nor why one
//! failed, and it queues without bounds what the server does not take.

use crate::call::SendError;
use crate::http::failure;
use base::env::{Env, JoinHandle, Stream};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response, header};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// Requests at once on one connection, where the server allows more: beyond that another one is
/// opened, so that not all wait for what one loses.
const N_STREAMS_MAX: usize = 100;
const STREAM_WINDOW: u32 = 1 << 20;
const WINDOW: u32 = 4 << 20;
/// Of an answer's head.
const HEAD_BYTES_MAX: u32 = 64 << 10;
/// A server that does not answer a ping for so long is gone.
const PONG_WITHIN: Duration = Duration::from_secs(5);

/// A connection; each clone is one user of it.
#[derive(Clone)]
pub struct Connection {
    env: Env,
    sender: SendRequest<Bytes>,
    /// As many as there are users of it, and one.
    users: Arc<()>,
    about: Arc<About>,
}

struct About {
    is_closed: AtomicBool,
    /// What the server took when it refused one more, although it had allowed that.
    n_taken_max: AtomicUsize,
}

/// Why there is no answer; where nothing was sent, the body comes back.
pub type Unsent<B> = (SendError, Option<B>);

impl Connection {
    /// Opens a connection on a stream, within the caller's time.
    pub async fn open(
        env: &Env,
        stream: Stream,
        ping_every: Option<Duration>,
    ) -> Result<Connection, String> {
        let seen = Arc::<Seen>::default();
        let watched = Watched { stream, seen: seen.clone(), head: Vec::new(), n_left: 0 };
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_header_list_size(HEAD_BYTES_MAX)
            // Until the server says how many.
            .initial_max_send_streams(1);
        let opened = builder.handshake::<_, Bytes>(watched).await;
        let (sender, mut connection) = opened.map_err(|error| error.to_string())?;
        let about = Arc::new(About {
            is_closed: AtomicBool::new(false),
            n_taken_max: AtomicUsize::new(N_STREAMS_MAX),
        });
        let (told, shared) = (about.clone(), seen.clone());
        let pings = ping_every.and_then(|every| Some((every, connection.ping_pong()?)));
        let world = env.clone();
        env.spawn("connection to a server", async move {
            let ended = match pings {
                None => connection.await.map_err(|error| error.to_string()),
                Some((every, pings)) => tokio::select! {
                    ended = connection => ended.map_err(|error| error.to_string()),
                    () = ping(&world, every, pings) => Err("no answer to a ping".to_owned()),
                },
            };
            told.is_closed.store(true, Relaxed);
            if let Err(error) = &ended {
                tracing::debug!(%error, "a connection to a server ended");
            }
            *shared.ended.lock() = Some(ended.err().unwrap_or_else(|| "it was closed".into()));
            shared.notify.notify_one();
        });
        loop {
            if seen.is_first_here.load(Relaxed) {
                break;
            }
            if let Some(reason) = &*seen.ended.lock() {
                return Err(format!("no settings came: {reason}"));
            }
            seen.notify.notified().await;
        }
        Ok(Connection { env: env.clone(), sender, users: Arc::default(), about })
    }

    pub fn n_users(&self) -> usize {
        Arc::strong_count(&self.users) - 1
    }

    /// Whether one more request may use it now.
    pub fn has_room(&self) -> bool {
        let n_allowed = self.sender.current_max_send_streams();
        self.n_users() < n_allowed.min(self.about.n_taken_max.load(Relaxed))
    }

    /// Whether it takes no more requests.
    pub fn is_closed(&self) -> bool {
        self.about.is_closed.load(Relaxed)
    }

    /// Sends a request and waits for its answer's head.
    pub async fn send<B>(
        &mut self,
        mut request: Request<()>,
        body: B,
    ) -> Result<Response<Incoming>, Unsent<B>>
    where
        B: Body<Data = Bytes, Error = failure::Error> + Send + Unpin + 'static,
    {
        let has_body = !body.is_end_stream();
        if let Some(n) = body.size_hint().exact().filter(|n| *n > 0) {
            let fields = request.headers_mut();
            fields.entry(header::CONTENT_LENGTH).or_insert(n.into());
        }
        if let Err(error) = poll_fn(|cx| self.sender.poll_ready(cx)).await {
            self.about.is_closed.store(true, Relaxed);
            tracing::debug!(%error, "a connection to a server takes no more requests");
            return Err((SendError::Stale, Some(body)));
        }
        let (answer, stream) = match self.sender.send_request(request, !has_body) {
            Ok(sent) => sent,
            Err(error) => {
                self.about.is_closed.store(true, Relaxed);
                tracing::debug!(%error, "a connection to a server takes no more requests");
                return Err((SendError::Stale, Some(body)));
            }
        };
        let failed = Arc::<Mutex<Option<SendError>>>::default();
        let upload = has_body.then(|| {
            let (failed, env) = (failed.clone(), &self.env);
            let sending = env.spawn("request body", async move {
                if let Err(error) = upload(stream, body).await {
                    *failed.lock() = Some(error);
                }
            });
            Upload { task: Some(sending) }
        });
        match head(answer).await {
            Ok(answer) => Ok(answer.map(|stream| Incoming::new(stream, upload))),
            Err(error) => {
                let of_body = failed.lock().take();
                Err((of_body.unwrap_or_else(|| self.what(&error)), None))
            }
        }
    }

    /// What a failure means for its request.
    fn what(&self, error: &h2::Error) -> SendError {
        let text = error.to_string();
        if !error.is_remote() {
            return match error.is_io() {
                // Of all requests on it nobody knows how far they were.
                true => SendError::Unanswered(text),
                false => SendError::Request { fault: crate::call::Fault::Malformed, reason: text },
            };
        }
        if error.is_go_away() {
            // The library says so of requests beyond the last one that the server names.
            self.about.is_closed.store(true, Relaxed);
            return SendError::Unprocessed(text);
        }
        if error.reason() == Some(Reason::REFUSED_STREAM) {
            let n_others = self.n_users().saturating_sub(1);
            self.about.n_taken_max.fetch_min(n_others.max(1), Relaxed);
            return SendError::Unprocessed(text);
        }
        SendError::Broken(text)
    }
}

async fn head(answer: ResponseFuture) -> Result<Response<RecvStream>, h2::Error> {
    answer.await
}

/// Ends when a ping had no answer.
async fn ping(env: &Env, every: Duration, mut pings: h2::PingPong) {
    loop {
        env.sleep(every).await;
        let pong = env.timeout(PONG_WITHIN, pings.ping(h2::Ping::opaque())).await;
        if !matches!(pong, Some(Ok(_))) {
            return;
        }
    }
}

/// Sends a body as far as the server has room for it.
async fn upload<B>(mut stream: SendStream<Bytes>, mut body: B) -> Result<(), SendError>
where
    B: Body<Data = Bytes, Error = failure::Error> + Unpin,
{
    loop {
        let frame = poll_fn(|cx| {
            // A server that has enough says so.
            if let Poll::Ready(reset) = stream.poll_reset(cx) {
                return Poll::Ready(Err(reset));
            }
            Pin::new(&mut body).poll_frame(cx).map(Ok)
        })
        .await;
        // The answer, or its failure, tells the rest.
        let Ok(frame) = frame else { return Ok(()) };
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                stream.send_reset(Reason::CANCEL);
                return Err(fault_of(&error));
            }
            None => {
                // It may be reset already.
                stream.send_data(Bytes::new(), true).ok();
                return Ok(());
            }
        };
        match frame.into_data() {
            Ok(data) => {
                let is_last = body.is_end_stream();
                if send_data(&mut stream, data, is_last).await.is_err() || is_last {
                    return Ok(());
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    stream.send_trailers(trailers).ok();
                }
                return Ok(());
            }
        }
    }
}

async fn send_data(
    stream: &mut SendStream<Bytes>,
    mut data: Bytes,
    is_last: bool,
) -> Result<(), h2::Error> {
    if data.is_empty() && is_last {
        // It takes no room.
        return stream.send_data(data, true);
    }
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        // It tells of what is new alone.
        while stream.capacity() == 0 {
            match poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(n) => n?,
                // The stream is over.
                None => return Err(Reason::CANCEL.into()),
            };
        }
        let part = data.split_to(stream.capacity().min(data.len()));
        stream.send_data(part, is_last && data.is_empty())?;
    }
    Ok(())
}

/// What a body's failure means: it is the request that cannot be sent.
pub fn fault_of(error: &failure::Error) -> SendError {
    use crate::call::Fault;
    let fault = match error {
        failure::Error::TooLarge(_) => Fault::TooLarge,
        failure::Error::StoodStill(_) => Fault::TooSlow,
        _ => Fault::Malformed,
    };
    SendError::Request { fault, reason: error.to_string() }
}

/// A request's body on its way. Given up with an answer that was not read to its end.
struct Upload {
    task: Option<JoinHandle<()>>,
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// An answer's body as it comes.
pub struct Incoming {
    stream: RecvStream,
    upload: Option<Upload>,
    /// What is to come, where that was told.
    n_left: Option<u64>,
    is_through: bool,
}

impl Incoming {
    fn new(stream: RecvStream, upload: Option<Upload>) -> Incoming {
        Incoming { stream, upload, n_left: None, is_through: false }
    }

    /// How long the answer's head says that it is.
    pub fn told(mut self, fields: &HeaderMap) -> Incoming {
        let told = fields.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        self.n_left = told.and_then(|text| text.parse().ok());
        self
    }

    /// The answer is whole: what its request still sends goes on.
    fn through(&mut self) {
        self.is_through = true;
        if let Some(mut upload) = self.upload.take() {
            upload.task = None;
        }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = failure::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, failure::Error>>> {
        if self.is_through {
            return Poll::Ready(None);
        }
        match ready!(self.stream.poll_data(cx)) {
            Some(Ok(data)) => {
                // Fails when the stream is over already.
                self.stream.flow_control().release_capacity(data.len()).ok();
                if let Some(n_left) = &mut self.n_left {
                    *n_left = n_left.saturating_sub(data.len() as u64);
                }
                if self.stream.is_end_stream() {
                    self.through();
                }
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            // RFC 9113, 8.1: a server that has answered whole may want no more of the request.
            Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) && error.is_reset() => {
                self.through();
                return Poll::Ready(None);
            }
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            None => {}
        }
        let trailers = ready!(self.stream.poll_trailers(cx));
        self.through();
        Poll::Ready(trailers?.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_through || self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.n_left {
            _ if self.is_end_stream() => SizeHint::with_exact(0),
            Some(n_left) => SizeHint::with_exact(n_left),
            None => SizeHint::default(),
        }
    }
}

/// Whether the server's first frame has come.
#[derive(Default)]
struct Seen {
    is_first_here: AtomicBool,
    /// Why nothing more comes.
    ended: Mutex<Option<String>>,
    notify: Notify,
}

/// A stream whose first frame is waited for.
struct Watched {
    stream: Stream,
    seen: Arc<Seen>,
    /// What came of that frame's head.
    head: Vec<u8>,
    /// What is to come of its content.
    n_left: usize,
}

/// Of a frame's head (RFC 9113, 4.1): the length is in its first three bytes.
const FRAME_HEAD_BYTES: usize = 9;

impl Watched {
    fn look(&mut self, mut bytes: &[u8]) {
        if self.head.len() < FRAME_HEAD_BYTES {
            let n = bytes.len().min(FRAME_HEAD_BYTES - self.head.len());
            let (head, rest) = bytes.split_at(n);
            self.head.extend_from_slice(head);
            bytes = rest;
            if let &[high, middle, low, _, _, _, _, _, _] = &self.head[..] {
                self.n_left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            } else {
                return;
            }
        }
        self.n_left = self.n_left.saturating_sub(bytes.len());
        if self.n_left == 0 {
            self.seen.is_first_here.store(true, Relaxed);
            self.seen.notify.notify_one();
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let n_before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if !self.seen.is_first_here.load(Relaxed) {
            let fresh = &buffer.filled()[n_before..];
            self.look(fresh);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
