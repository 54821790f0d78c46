//! A client's connection, from its first byte to its last: HTTP/1.1 and HTTP/2 on one port, an
//! end for those that stand still, and for all when the gateway stops.
//!
//! hyper parses, and refuses what is malformed; what it cannot tell apart is looked after here: a
//! connection that is idle between requests may stay for `idle_timeout`, one that has begun a
//! request's head and does not finish it (slow-loris) for `header_timeout`.

use crate::gateway::Gateway;
use crate::http::pool::Spawn;
use crate::http::proxy::Client;
use base::env::{Env, Instant, Stream};
use http::Version;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a connection is doing, for the alarm that ends it.
pub struct Pulse {
    env: Env,
    origin: Instant,
    n_under_way: AtomicU32,
    /// When the head that is arriving began, in microseconds since `origin`, plus one; 0: none is.
    head_us: AtomicU64,
    idle_us: AtomicU64,
    is_http2: AtomicBool,
}

impl Pulse {
    fn new(env: &Env) -> Arc<Pulse> {
        Arc::new(Pulse {
            env: env.clone(),
            origin: env.now(),
            n_under_way: AtomicU32::new(0),
            head_us: AtomicU64::new(1),
            idle_us: AtomicU64::new(0),
            is_http2: AtomicBool::new(false),
        })
    }

    fn now_us(&self) -> u64 {
        let gone = self.env.now().saturating_duration_since(self.origin);
        u64::try_from(gone.as_micros()).unwrap_or(u64::MAX)
    }

    /// Bytes came.
    fn read(&self) {
        if self.n_under_way.load(Relaxed) == 0 && self.head_us.load(Relaxed) == 0 {
            self.head_us.store(self.now_us() + 1, Relaxed);
        }
    }

    /// A request's head is complete; it is under way until what this returns is dropped.
    pub fn begin(self: &Arc<Self>, version: Version) -> UnderWay {
        self.n_under_way.fetch_add(1, Relaxed);
        self.head_us.store(0, Relaxed);
        if version == Version::HTTP_2 {
            self.is_http2.store(true, Relaxed);
        }
        UnderWay(self.clone())
    }

    /// How much longer the connection may stay as it is; none: it is to end.
    fn left(&self, header: Duration, idle: Duration) -> Option<Duration> {
        if self.n_under_way.load(Relaxed) > 0 {
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

/// A request under way on a connection.
pub struct UnderWay(Arc<Pulse>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.idle_us.store(self.0.now_us(), Relaxed);
        self.0.head_us.store(0, Relaxed);
        self.0.n_under_way.fetch_sub(1, Relaxed);
    }
}

/// Tells the pulse of bytes that come.
struct Watched {
    stream: Stream,
    pulse: Arc<Pulse>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
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
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Serves one client until it leaves, stands still, or the gateway stops.
pub async fn connection(
    gateway: Arc<Gateway>,
    lane: usize,
    stream: Stream,
    from: SocketAddr,
    acceptor: Option<crate::tls::Acceptor>,
) {
    let Some(_open) = gateway.open_connection() else { return };
    let env = gateway.env().clone();
    let limits = gateway.state().limits.clone();
    let is_tls = acceptor.is_some();
    let stream = match acceptor {
        None => stream,
        Some(acceptor) => match env.timeout(limits.header_timeout, acceptor.accept(stream)).await {
            Some(Ok(stream)) => stream,
            Some(Err(error)) => {
                tracing::debug!(%from, %error, "a TLS greeting failed");
                gateway.counters.n_bad_greetings.fetch_add(1, Relaxed);
                return;
            }
            None => {
                gateway.counters.n_stood_still.fetch_add(1, Relaxed);
                return;
            }
        },
    };
    let pulse = Pulse::new(&env);
    let client = Client { lane, address: from, is_tls, pulse: pulse.clone() };
    let service = service_fn(|request: http::Request<Incoming>| {
        let gateway = gateway.clone();
        let client = client.clone();
        async move { Ok::<_, Infallible>(gateway.answer(client, request).await) }
    });
    let mut builder = auto::Builder::new(Spawn(env.clone()));
    builder
        .http1()
        .timer(TokioTimer::new())
        // The pulse does this: hyper's would end idle connections too.
        .header_read_timeout(None)
        .max_headers(limits.n_headers_max)
        .max_buf_size(limits.header_bytes_max.max(8192))
        .half_close(false)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.n_streams_max)
        .max_header_list_size(u32::try_from(limits.header_bytes_max).unwrap_or(u32::MAX))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10));
    let io = TokioIo::new(Watched { stream, pulse: pulse.clone() });
    let mut serving = pin!(builder.serve_connection_with_upgrades(io, service));
    let mut stopping = gateway.stopping();
    let mut alarm = pin!(env.sleep(limits.header_timeout));
    let mut is_stopping = false;
    loop {
        tokio::select! {
            ended = serving.as_mut() => {
                if let Err(error) = ended {
                    gateway.count_broken(error.as_ref());
                }
                return;
            }
            () = alarm.as_mut() => match pulse.left(limits.header_timeout, limits.idle_timeout) {
                Some(left) => alarm.set(env.sleep(left)),
                None => {
                    gateway.counters.n_stood_still.fetch_add(1, Relaxed);
                    return;
                }
            },
            _ = stopping.wait_for(|stopping| *stopping), if !is_stopping => {
                is_stopping = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}
