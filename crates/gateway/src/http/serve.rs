//! A client's connection, from its first byte to its last: HTTP/1.1 and HTTP/2 on one port, an
//! end for those that stand still, and for all when the gateway stops.
//!
//! ```text
//!             first bytes                    idle for a second
//!   waiting ──────────────► HTTP/1.1 ────────────────────────────► waiting
//!      └──────────────────► HTTP/2          (its buffers are given back: an idle
//!         its preface                        connection costs 5 to 10 KiB, not 30)
//! ```
//!
//! Between two requests an HTTP/1.1 connection may move to another lane ([`crate::lanes`]). It is
//! between two only when the last one's body was read to its end and its answer is sent: what
//! parses anew must never begin in the middle of a body.
//!
//! hyper parses, and refuses what is malformed; what it cannot tell apart is looked after here: a
//! connection that is idle between requests may stay for `idle_timeout`, one that has begun a
//! request's head and does not finish it (slow-loris) for `header_timeout`.

use crate::config::Limits;
use crate::gateway::{Gateway, Open};
use crate::http::body::AnswerBody;
use crate::http::pool::Spawn;
use crate::http::proxy::Client;
use crate::lanes::Moved;
use base::env::{Duplex, Env, Instant, Stream};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

/// How an HTTP/2 client begins.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// An HTTP/1.1 connection that has been idle for this long gives its buffers back.
const PARK_AFTER: Duration = Duration::from_secs(1);
/// How long a connection that has ended is read, where its client still sends.
const LINGER_FOR_REST: Duration = Duration::from_secs(5);
/// How long a gateway that stops waits for the first request of who has just come.
const LINGER: Duration = Duration::from_secs(1);

/// What a connection is doing, for the alarm that ends it.
pub struct Pulse {
    env: Env,
    origin: Instant,
    n_under_way: AtomicU32,
    /// When the head that is arriving began, in microseconds since `origin`, plus one; 0: none is.
    head_us: AtomicU64,
    idle_us: AtomicU64,
    is_http2: AtomicBool,
    /// Answers wait for the client to read.
    is_blocked: AtomicBool,
    /// The last request was read to its body's end.
    is_read: AtomicBool,
    /// Whether another lane can have it.
    can_move: bool,
    gateway: Arc<Gateway>,
    lane: usize,
    /// The lane that it had better move to; [`STAY`]: none.
    to: AtomicUsize,
}

const STAY: usize = usize::MAX;

impl Pulse {
    fn new(gateway: &Arc<Gateway>, lane: usize, can_move: bool) -> Arc<Pulse> {
        let env = gateway.env();
        Arc::new(Pulse {
            env: env.clone(),
            origin: env.now(),
            n_under_way: AtomicU32::new(0),
            head_us: AtomicU64::new(1),
            idle_us: AtomicU64::new(0),
            is_http2: AtomicBool::new(false),
            is_blocked: AtomicBool::new(false),
            is_read: AtomicBool::new(true),
            can_move,
            gateway: gateway.clone(),
            lane,
            to: AtomicUsize::new(STAY),
        })
    }

    fn now_us(&self) -> u64 {
        self.us_at(self.env.now())
    }

    fn us_at(&self, now: Instant) -> u64 {
        micros(now.saturating_duration_since(self.origin))
    }

    /// Bytes came.
    fn read(&self) {
        if !self.is_busy() && self.head_us.load(Relaxed) == 0 {
            self.head_us.store(self.now_us() + 1, Relaxed);
        }
    }

    /// A request's head is complete; it is under way until what this returns is dropped.
    pub fn begin(self: &Arc<Self>, version: Version, has_body: bool) -> UnderWay {
        self.is_read.store(!has_body, Relaxed);
        self.n_under_way.fetch_add(1, Relaxed);
        self.gateway.lanes.begin(self.lane);
        self.head_us.store(0, Relaxed);
        if version == Version::HTTP_2 {
            self.is_http2.store(true, Relaxed);
        }
        UnderWay { pulse: self.clone(), is_over: false }
    }

    /// The request's body has been read to its end.
    pub fn has_read(&self) {
        self.is_read.store(true, Relaxed);
    }

    pub fn is_read(&self) -> bool {
        self.is_read.load(Relaxed)
    }

    /// Whether nothing is under way, or begun, or to be read by either side: what follows is a
    /// request. The rest of a body that nobody wants would be taken for one.
    fn is_between(&self) -> bool {
        !self.is_busy()
            && self.is_read()
            && self.head_us.load(Relaxed) == 0
            && !self.is_blocked.load(Relaxed)
    }

    /// Whether that has been so for this long.
    fn is_idle(&self, span: Duration) -> bool {
        self.is_between()
            && self.now_us().saturating_sub(self.idle_us.load(Relaxed)) >= micros(span)
    }

    fn is_busy(&self) -> bool {
        self.n_under_way.load(Relaxed) > 0
    }

    /// Whether the next request had better come elsewhere.
    fn is_leaving(&self) -> bool {
        self.to.load(Relaxed) != STAY && self.is_between()
    }

    /// How much longer the connection may stay as it is; none: it is to end.
    fn left(&self, header: Duration, idle: Duration) -> Option<Duration> {
        if self.is_busy() {
            return Some(header.min(idle));
        }
        let head_us = self.head_us.load(Relaxed);
        let ends_us = if head_us > 0 && !self.is_http2.load(Relaxed) {
            head_us - 1 + micros(header)
        } else {
            self.idle_us.load(Relaxed) + micros(idle)
        };
        let left_us = ends_us.saturating_sub(self.now_us());
        (left_us > 0).then(|| Duration::from_micros(left_us))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A request under way on a connection, until it is ended or dropped.
pub struct UnderWay {
    pulse: Arc<Pulse>,
    is_over: bool,
}

impl UnderWay {
    pub fn now(&self) -> Instant {
        self.pulse.env.now()
    }

    pub fn end(&mut self, now: Instant) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        let pulse = &self.pulse;
        pulse.idle_us.store(pulse.us_at(now), Relaxed);
        pulse.head_us.store(0, Relaxed);
        pulse.n_under_way.fetch_sub(1, Relaxed);
        let to = pulse.gateway.lanes.end(now, pulse.lane, pulse.can_move);
        pulse.to.store(to.unwrap_or(STAY), Relaxed);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if !self.is_over {
            self.end(self.now());
        }
    }
}

/// How the client is reached.
pub enum Wire {
    Tcp(TcpStream),
    Other(Stream),
}

impl From<TcpStream> for Wire {
    fn from(stream: TcpStream) -> Wire {
        Wire::Tcp(stream)
    }
}

impl From<Stream> for Wire {
    fn from(stream: Stream) -> Wire {
        Wire::Other(stream)
    }
}

impl Wire {
    fn get(&mut self) -> Pin<&mut dyn Duplex> {
        match self {
            Wire::Tcp(stream) => Pin::new(stream),
            Wire::Other(stream) => Pin::new(&mut **stream),
        }
    }
}

/// The client's stream: tells the pulse of bytes that come, and holds those that were read to see
/// which protocol they are of.
struct Watched {
    wire: Wire,
    pulse: Arc<Pulse>,
    ahead: [u8; PREFACE.len()],
    n_ahead: usize,
    /// What was read of a request before its connection was parked.
    rest: Bytes,
}

/// What the first bytes are of.
enum First {
    Http1,
    Http2,
    /// The client left.
    Nothing,
}

impl Watched {
    fn new(wire: Wire, pulse: Arc<Pulse>, rest: Bytes) -> Watched {
        Watched { wire, pulse, ahead: [0; PREFACE.len()], n_ahead: 0, rest }
    }

    /// Waits for bytes, as many as it takes to tell the protocol.
    fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<First> {
        loop {
            let known = &self.ahead[..self.n_ahead];
            if !self.rest.is_empty() {
                return Poll::Ready(First::Http1);
            }
            if known.len() == PREFACE.len() && known == PREFACE {
                return Poll::Ready(First::Http2);
            }
            if !PREFACE.starts_with(known) {
                return Poll::Ready(First::Http1);
            }
            let mut buffer = ReadBuf::new(&mut self.ahead[self.n_ahead..]);
            if ready!(self.wire.get().poll_read(cx, &mut buffer)).is_err() {
                return Poll::Ready(First::Nothing);
            }
            match buffer.filled().len() {
                // What was begun and not finished is refused by the parser.
                0 if self.n_ahead > 0 => return Poll::Ready(First::Http1),
                0 => return Poll::Ready(First::Nothing),
                n => self.n_ahead += n,
            }
            self.pulse.read();
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.rest.is_empty() {
            let n = self.rest.len().min(buffer.remaining());
            buffer.put_slice(&self.rest.split_to(n));
            self.pulse.read();
            return Poll::Ready(Ok(()));
        }
        if self.n_ahead > 0 {
            let n = self.n_ahead.min(buffer.remaining());
            buffer.put_slice(&self.ahead[..n]);
            self.ahead.copy_within(n.., 0);
            self.n_ahead -= n;
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let polled = self.wire.get().poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.pulse.read();
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = self.wire.get().poll_write(cx, bytes);
        self.pulse.is_blocked.store(polled.is_pending(), Relaxed);
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = self.wire.get().poll_write_vectored(cx, parts);
        self.pulse.is_blocked.store(polled.is_pending(), Relaxed);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        match &self.wire {
            Wire::Tcp(stream) => stream.is_write_vectored(),
            Wire::Other(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What TLS holds back is sent by its flush.
        let polled = self.wire.get().poll_flush(cx);
        self.pulse.is_blocked.store(polled.is_pending(), Relaxed);
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.get().poll_shutdown(cx)
    }
}

/// One client's requests, as hyper hands them over.
#[derive(Clone)]
struct Requests {
    gateway: Arc<Gateway>,
    client: Client,
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    /// Boxed: hyper keeps room for it as long as the connection is open, idle or not.
    type Future = BoxFuture<'static, Result<Response<AnswerBody>, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        // An async block around it would hold it twice.
        Box::pin(self.gateway.clone().answer(self.client.clone(), request).map(Ok))
    }
}

/// What a connection is served with.
struct Serving {
    gateway: Arc<Gateway>,
    env: Env,
    limits: Limits,
    pulse: Arc<Pulse>,
}

/// Serves one client until it leaves, stands still, or the gateway stops.
pub async fn connection(
    gateway: Arc<Gateway>,
    lane: usize,
    wire: Wire,
    from: SocketAddr,
    acceptor: Option<crate::tls::Acceptor>,
) {
    let Some(open) = gateway.open_connection() else { return };
    let env = gateway.env().clone();
    let limits = gateway.state().limits.clone();
    let is_tls = acceptor.is_some();
    let wire = match acceptor {
        None => wire,
        Some(acceptor) => {
            let stream = match wire {
                Wire::Tcp(stream) => Box::new(stream),
                Wire::Other(stream) => stream,
            };
            let greeting = Box::pin(acceptor.accept(stream));
            match env.timeout(limits.header_timeout, greeting).await {
                Some(Ok(stream)) => Wire::Other(stream),
                Some(Err(error)) => {
                    tracing::debug!(%from, %error, "a TLS greeting failed");
                    gateway.counters.n_bad_greetings.fetch_add(1, Relaxed);
                    return;
                }
                None => {
                    gateway.counters.n_stood_still.fetch_add(1, Relaxed);
                    return;
                }
            }
        }
    };
    let pulse = Pulse::new(&gateway, lane, matches!(wire, Wire::Tcp(_)));
    let io = Watched::new(wire, pulse, Bytes::new());
    serve(gateway, io, Visit { open, from, is_tls, linger: LINGER }).await;
}

/// Serves a client that comes from another lane, as [`connection`] does.
pub async fn moved(gateway: Arc<Gateway>, lane: usize, moved: Moved) {
    let Moved { stream, from, rest, open } = moved;
    match TcpStream::from_std(stream) {
        Ok(stream) => {
            let pulse = Pulse::new(&gateway, lane, true);
            // It is between two requests.
            pulse.head_us.store(u64::from(!rest.is_empty()), Relaxed);
            let io = Watched::new(stream.into(), pulse, rest);
            serve(gateway, io, Visit { open, from, is_tls: false, linger: LINGER }).await;
        }
        Err(error) => tracing::debug!(%from, %error, "a connection was lost"),
    }
}

/// A client that is here.
struct Visit {
    open: Open,
    from: SocketAddr,
    is_tls: bool,
    /// How long its next request is waited for when the gateway stops.
    linger: Duration,
}

async fn serve(gateway: Arc<Gateway>, mut io: Watched, mut visit: Visit) {
    let Ok(forwarded_for) = HeaderValue::try_from(visit.from.ip().to_string()) else { return };
    let pulse = io.pulse.clone();
    let client = Client {
        lane: pulse.lane,
        address: visit.from,
        forwarded_for,
        is_tls: visit.is_tls,
        pulse: pulse.clone(),
    };
    let requests = Requests { gateway: gateway.clone(), client };
    let (env, limits) = (gateway.env().clone(), gateway.state().limits.clone());
    let serving = Serving { gateway, env, limits, pulse };
    loop {
        let first = serving.first(&mut io, std::mem::take(&mut visit.linger)).await;
        match first {
            First::Nothing => return,
            First::Http2 => return Box::pin(serving.http2(io, requests)).await,
            First::Http1 => match Box::pin(serving.http1(io, requests.clone())).await {
                Some(back) => io = back,
                None => return,
            },
        }
        (io, visit) = match serving.move_on(io, visit) {
            Some(stays) => stays,
            None => return,
        };
    }
}

impl Serving {
    /// Waits for a request to begin; for as long as the connection may be idle, and no longer
    /// than `linger` once no more are wanted.
    async fn first(&self, io: &mut Watched, linger: Duration) -> First {
        let mut stopping = self.gateway.stopping();
        let mut stop = pin!(async {
            // Fails only when the gateway is gone.
            stopping.wait_for(|stopping| *stopping).await.map(|_| ()).unwrap_or_default();
            self.env.sleep(linger).await;
        });
        loop {
            let Some(left) = self.left() else { return First::Nothing };
            tokio::select! {
                biased;
                first = poll_fn(|cx| io.poll_first(cx)) => return first,
                () = self.env.sleep(left) => {}
                () = &mut stop => return First::Nothing,
            }
        }
    }

    /// How much longer the connection may stay as it is; counts it when that is over.
    fn left(&self) -> Option<Duration> {
        let left = self.pulse.left(self.limits.header_timeout, self.limits.idle_timeout);
        if left.is_none() {
            self.gateway.counters.n_stood_still.fetch_add(1, Relaxed);
        }
        left
    }

    /// Hands the connection to the lane that it had better be in; it comes back if it stays.
    fn move_on(&self, io: Watched, visit: Visit) -> Option<(Watched, Visit)> {
        let to = self.pulse.to.swap(STAY, Relaxed);
        let room = if to == STAY { None } else { self.gateway.lanes.room(to) };
        let (Some(room), 0) = (room, io.n_ahead) else { return Some((io, visit)) };
        let Watched { wire, pulse, ahead, n_ahead, rest } = io;
        let wire = match wire {
            Wire::Tcp(stream) => {
                match stream.into_std() {
                    Ok(stream) => {
                        let moved = Moved { stream, from: visit.from, rest, open: visit.open };
                        self.gateway.lanes.take_over(to, room, moved);
                    }
                    Err(error) => tracing::debug!(%error, "a connection was lost"),
                }
                return None;
            }
            other => other,
        };
        Some((Watched { wire, pulse, ahead, n_ahead, rest }, visit))
    }

    /// Serves until the connection ends, or is idle, or had better move: then it comes back.
    async fn http1(&self, io: Watched, requests: Requests) -> Option<Watched> {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            // The pulse does this: hyper's would end idle connections too.
            .header_read_timeout(None)
            .max_headers(self.limits.n_headers_max)
            .max_buf_size(self.limits.header_bytes_max.max(8192));
        let mut connection = builder.serve_connection(TokioIo::new(io), requests).with_upgrades();
        let mut is_stopping = false;
        let mut alarm = pin!(self.env.sleep(PARK_AFTER));
        loop {
            tokio::select! {
                biased;
                ended = poll_fn(|cx| {
                    let mut connection = Pin::new(&mut connection);
                    // A stop is looked for and not waited for: that would cost every request.
                    let must_stop = !is_stopping && self.gateway.is_stopping();
                    if must_stop && self.pulse.is_busy() {
                        // The answer tells the client that the connection ends with it.
                        connection.as_mut().graceful_shutdown();
                        is_stopping = true;
                    }
                    let mut polled = connection.as_mut().poll(cx);
                    if must_stop && !is_stopping && polled.is_pending() {
                        // A request that had come has been read before hyper hears of the stop.
                        connection.as_mut().graceful_shutdown();
                        is_stopping = true;
                        polled = connection.poll(cx);
                    }
                    match polled {
                        Poll::Pending if !is_stopping && self.pulse.is_leaving() => {
                            Poll::Ready(None)
                        }
                        polled => polled.map(Some),
                    }
                }) => match ended {
                    Some(ended) => {
                        let is_told = match ended {
                            Ok(()) => !self.pulse.is_read(),
                            Err(error) => {
                                self.gateway.count_broken(&error);
                                error.is_parse()
                            }
                        };
                        if let Some(parts) = connection.into_parts().filter(|_| is_told) {
                            Box::pin(self.linger(parts.io.into_inner())).await;
                        }
                        return None;
                    }
                    None => break,
                },
                () = alarm.as_mut() => {
                    let left = self.left()?;
                    if self.pulse.is_idle(PARK_AFTER) && !is_stopping {
                        break;
                    }
                    alarm.set(self.env.sleep(left.min(PARK_AFTER)));
                }
            }
        }
        let parts = connection.into_parts()?;
        let mut io = parts.io.into_inner();
        // An empty one would still hold the buffer that it was cut from.
        if !parts.read_buf.is_empty() {
            io.rest = parts.read_buf;
        }
        Some(io)
    }

    /// Reads what a client sends that was told why it is not wanted: a connection that is closed
    /// before that is reset, and what it was told lost on its way.
    async fn linger(&self, mut io: Watched) {
        let mut stopping = self.gateway.stopping();
        let mut bytes = [0; 4096];
        let rest = async {
            // It may be gone already.
            io.shutdown().await.ok();
            while io.read(&mut bytes).await.is_ok_and(|n| n > 0) {}
        };
        let end = async {
            tokio::select! {
                () = rest => {}
                _ = stopping.wait_for(|stopping| *stopping) => {}
            }
        };
        self.env.timeout(LINGER_FOR_REST, end).await;
    }

    async fn http2(&self, io: Watched, requests: Requests) {
        let header_bytes_max = u32::try_from(self.limits.header_bytes_max).unwrap_or(u32::MAX);
        let mut builder = http2::Builder::new(Spawn(self.env.clone()));
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.limits.n_streams_max)
            .max_header_list_size(header_bytes_max)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10));
        let mut connection = pin!(builder.serve_connection(TokioIo::new(io), requests));
        let mut stopping = self.gateway.stopping();
        let mut is_stopping = false;
        let mut alarm = pin!(self.env.sleep(self.limits.header_timeout));
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        self.gateway.count_broken(&error);
                    }
                    return;
                }
                () = alarm.as_mut() => match self.left() {
                    Some(left) => alarm.set(self.env.sleep(left)),
                    None => return,
                },
                _ = stopping.wait_for(|stopping| *stopping), if !is_stopping => {
                    is_stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}
