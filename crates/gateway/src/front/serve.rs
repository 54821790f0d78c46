//! A client's connection, from its first byte to its last: HTTP/1.1 and HTTP/2 on one port, an
//! end for those that stand still, and for all when the gateway stops.
//!
//! ```text
//!             first bytes                    idle for a second
//!   waiting ──────────────► HTTP/1.1 ────────────────────────────► waiting
//!      └──────────────────► HTTP/2          (what serves it is given back: an idle
//!         its preface                        connection costs 3 to 5 KiB)
//! ```
//!
//! Between two requests an HTTP/1.1 connection may move to another lane ([`crate::lanes`]). It is
//! between two only when the last one's body was read to its end and its answer is sent: what
//! parses anew must never begin in the middle of a body.
//!
//! A connection that is idle between requests may stay for `idle_timeout`, one that has begun a
//! request's head and does not finish it (slow-loris) for `header_timeout`, one whose client does
//! not read its answer for `body_idle_timeout`.

use crate::call::Alarms;
use crate::front::answer::{AnswerBody, Reader};
use crate::front::exchanges;
use crate::front::proxy::Client;
use crate::front::pulse::Pulse;
use crate::front::serving::{Requests, Serving};
use crate::gateway::Gateway;
use crate::http::body::Incoming;
use crate::http::http1;
use crate::http::http1::io::Io;
use crate::http::message::{self, Answer};
use crate::http::wire::Wire;
use crate::lanes::Moved;
use base::env::Env;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode, Version};
use hyper::server::conn::http2;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::convert::Infallible;
use std::future::Future;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::net::TcpStream;

/// How an HTTP/2 client begins.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a gateway that stops waits for the first request of who has just come.
const LINGER: Duration = Duration::from_secs(1);

/// What the first bytes are of.
enum First {
    Http1,
    Http2,
    /// The client left.
    Nothing,
}

/// Waits for bytes, as many as it takes to tell the protocol.
fn poll_first(io: &mut Io, pulse: &Pulse, cx: &mut Context<'_>) -> Poll<First> {
    loop {
        if io.input.starts_with(PREFACE) {
            return Poll::Ready(First::Http2);
        }
        if !PREFACE.starts_with(&io.input) {
            return Poll::Ready(First::Http1);
        }
        match ready!(io.poll_fill(cx)) {
            Ok(1..) => pulse.read(),
            // What was begun and not finished is refused by the parser.
            Ok(0) if !io.input.is_empty() => return Poll::Ready(First::Http1),
            Ok(0) | Err(_) => return Poll::Ready(First::Nothing),
        }
    }
}

/// Starts hyper's tasks, one for each request of a client's HTTP/2 connection, each with the watch
/// that [`Requests`] has made for it just before. Whose client does not read is ended, and what its
/// request holds is given back.
#[derive(Clone)]
struct Watched {
    env: Env,
    idle: Duration,
    begun: Arc<Mutex<Option<Arc<Reader>>>>,
    gateway: Arc<Gateway>,
}

impl<F> hyper::rt::Executor<F> for Watched
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        let Some(reader) = self.begun.lock().take() else {
            self.env.spawn("http", future);
            return;
        };
        let Watched { env, idle, gateway, .. } = self.clone();
        self.env.spawn("http", async move {
            let mut future = pin!(future);
            let mut left = idle;
            loop {
                if env.timeout(left, future.as_mut()).await.is_some() {
                    return;
                }
                left = match reader.blocked_for(env.now()) {
                    Some(blocked) if blocked >= idle => {
                        gateway.counters.n_stood_still.fetch_add(1, Relaxed);
                        return;
                    }
                    Some(blocked) => idle - blocked,
                    None => idle,
                };
            }
        });
    }
}

impl Service<Request<hyper::body::Incoming>> for Requests {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<AnswerBody>, Infallible>>;

    fn call(&self, request: Request<hyper::body::Incoming>) -> Self::Future {
        let Requests { gateway, client, .. } = self.clone();
        let state = gateway.state();
        let (parts, body) = request.into_parts();
        let line = || format!("{} {}", parts.method, parts.uri);
        let n_fields_max = state.limits.n_headers_max;
        let (line, read) = match gateway.log() {
            Some(_) => (line(), message::Request::try_from(parts)),
            None => (String::new(), message::Request::try_from(parts)),
        };
        let request = match read.map_err(message::Error::refusal) {
            Ok(request) if request.fields.n() <= n_fields_max => request,
            refused => {
                // It was one all the same, of a client that does not stand still.
                drop(client.pulse.begin(Version::HTTP_2));
                gateway.counters.n_bad_requests.fetch_add(1, Relaxed);
                let too_many = http1::Error::TooManyFields.refusal();
                let unknown = || (StatusCode::BAD_REQUEST, String::new());
                let (status, reason) = refused.err().or(too_many).unwrap_or_else(unknown);
                gateway.note_refused(&client, &line, status.as_u16(), reason.clone());
                let refusal = Answer::new(status, AnswerBody::bytes(Bytes::from(reason + "\n")));
                return Box::pin(async { Ok(refusal.into_response()) });
            }
        };
        let reader = Arc::new(Reader::new(gateway.env()));
        *self.begun.lock() = Some(reader.clone());
        Box::pin(async move {
            let (body, mut alarms) = (Incoming::Http2(body), Alarms::default());
            let answer = gateway.answer(&state, &client, &mut alarms, request, body).await;
            let mut response = answer.into_response();
            response.body_mut().watch(reader);
            Ok(response)
        })
    }
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
    let mut certificate = None;
    let wire = match acceptor {
        None => wire,
        Some(acceptor) => {
            let stream = match wire {
                Wire::Tcp(stream) => Box::new(stream),
                Wire::Other(stream) => stream,
            };
            let greeting = Box::pin(acceptor.accept(stream));
            match env.timeout(limits.header_timeout, greeting).await {
                Some(Ok((stream, shown))) => {
                    certificate = shown.map(Arc::from);
                    Wire::Other(stream)
                }
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
    let io = Io::new(wire, Bytes::new());
    serve(
        gateway,
        io,
        pulse,
        Visit { open: Box::new(open), from, is_tls, certificate, linger: LINGER },
    )
    .await;
}

/// Serves a client that comes from another lane, as [`connection`] does.
pub async fn moved(gateway: Arc<Gateway>, lane: usize, moved: Moved) {
    let Moved { stream, from, rest, open } = moved;
    match TcpStream::from_std(stream) {
        Ok(stream) => {
            let pulse = Pulse::new(&gateway, lane, true);
            // It is between two requests.
            if rest.is_empty() {
                pulse.wait();
            }
            let io = Io::new(stream.into(), rest);
            let visit = Visit { open, from, is_tls: false, certificate: None, linger: LINGER };
            serve(gateway, io, pulse, visit).await;
        }
        Err(error) => tracing::debug!(%from, %error, "a connection was lost"),
    }
}

/// A client that is here.
struct Visit {
    /// What counts it as open.
    open: Box<dyn Send>,
    from: SocketAddr,
    is_tls: bool,
    certificate: Option<Arc<str>>,
    /// How long its next request is waited for when the gateway stops.
    linger: Duration,
}

async fn serve(gateway: Arc<Gateway>, mut io: Io, pulse: Arc<Pulse>, mut visit: Visit) {
    let forwarded_for = visit.from.ip().to_canonical().to_string().into();
    let client = Client {
        lane: pulse.lane,
        address: visit.from,
        forwarded_for,
        is_tls: visit.is_tls,
        certificate: visit.certificate.clone(),
        pulse: pulse.clone(),
    };
    let requests = Requests { gateway: gateway.clone(), client, begun: Arc::default() };
    let (env, limits) = (gateway.env().clone(), gateway.state().limits.clone());
    let serving = Serving { gateway, env, limits, pulse };
    loop {
        let first = serving.first(&mut io, std::mem::take(&mut visit.linger)).await;
        match first {
            First::Nothing => return,
            First::Http2 => return Box::pin(serving.http2(io, requests)).await,
            First::Http1 => match Box::pin(exchanges::serve(&serving, io, &requests)).await {
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
    async fn first(&self, io: &mut Io, linger: Duration) -> First {
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
                first = poll_fn(|cx| poll_first(io, &self.pulse, cx)) => return first,
                () = self.env.sleep(left) => {}
                () = &mut stop => return First::Nothing,
            }
        }
    }

    /// Hands the connection to the lane that it had better be in; it comes back if it stays.
    fn move_on(&self, io: Io, visit: Visit) -> Option<(Io, Visit)> {
        let to = self.pulse.take_to();
        let Some((to, room)) = to.and_then(|to| Some((to, self.gateway.lanes.room(to)?))) else {
            return Some((io, visit));
        };
        let (stream, rest) = match io.into_parts() {
            (Wire::Tcp(stream), rest) => (stream, rest),
            (other, rest) => return Some((Io::new(other, rest), visit)),
        };
        match stream.into_std() {
            Ok(stream) => {
                let moved = Moved { stream, from: visit.from, rest, open: visit.open };
                self.gateway.lanes.take_over(to, room, moved);
            }
            Err(error) => tracing::debug!(%error, "a connection was lost"),
        }
        None
    }

    async fn http2(&self, io: Io, requests: Requests) {
        let header_bytes_max = u32::try_from(self.limits.header_bytes_max).unwrap_or(u32::MAX);
        let mut builder = http2::Builder::new(Watched {
            env: self.env.clone(),
            idle: self.limits.body_idle_timeout,
            begun: requests.begun.clone(),
            gateway: self.gateway.clone(),
        });
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
        let (mut is_stopping, mut is_over) = (false, false);
        let mut alarm = pin!(self.env.sleep(self.limits.header_timeout));
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        self.gateway.count_broken(&error);
                    }
                    return;
                }
                () = alarm.as_mut() => match self.pulse.left(&self.limits) {
                    _ if is_over => return,
                    Some(left) => alarm.set(self.env.sleep(left)),
                    None => {
                        // Told, so that no request comes for nothing; who does not listen is left.
                        is_over = true;
                        self.gateway.counters.n_stood_still.fetch_add(1, Relaxed);
                        connection.as_mut().graceful_shutdown();
                        alarm.set(self.env.sleep(LINGER));
                    }
                },
                _ = stopping.wait_for(|stopping| *stopping), if !is_stopping => {
                    is_stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}
