//! Connections to a service's servers: kept when idle, one set for each lane (a thread that
//! serves), so that lanes do not meet on a hot path.

use crate::backend::Counts;
use crate::balance::Attempt;
use crate::call::{Fault, Handle, SendError};
use crate::config::Protocol;
use crate::http::body::{self, RequestBody};
use crate::http::fields::{Fields, name};
use crate::http::http1;
use crate::http::http1::client::Connection;
use crate::http::http1::head;
use crate::http::http1::io::Io;
use crate::http::http1::length::Length;
use crate::http::message::Answer;
use crate::http::outgoing::Head;
use crate::tls::Connector;
use base::env::{Env, Instant, Stream};
use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::{self, FutureExt};
use http::{Method, Request, StatusCode};
use http_body::{Body, Frame};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// Shorter than the five seconds after which common servers close an idle connection: what they
/// close while a request is on its way cannot always be sent again.
const IDLE_MAX: Duration = Duration::from_secs(4);
/// Idle connections kept to one server, by one lane.
const N_IDLE_MAX: usize = 512;
/// Requests at once on an HTTP/2 connection; beyond, another one is opened. Common servers allow
/// 100 to 250.
const N_STREAMS_MAX: usize = 100;
/// HTTP/2 connections to one server, in each lane; beyond, requests share what there is.
const N_SHARED_MAX: usize = 16;

/// A service as one lane has it: how it is spoken to, its connections, and what is counted. On a
/// cache line of its own, as its [`Handle`] is.
#[repr(align(128))]
pub struct Upstream {
    pub handle: Arc<Handle>,
    protocol: Protocol,
    tls: Option<Connector>,
    pool: Mutex<Pool>,
    pub counts: Arc<Counts>,
}

/// Connections, by the servers' places in the fleet.
#[derive(Default)]
struct Pool {
    shelves: Vec<Shelf>,
    /// What comes back is not kept.
    is_closed: bool,
}

/// The connections to one server.
struct Shelf {
    address: SocketAddr,
    /// HTTP/1.1: the one used last is the last.
    idle: Vec<Idle>,
    /// HTTP/2: most requests share the first.
    shared: Vec<Shared>,
    /// HTTP/2: tells those who wait for it how a connection's opening went.
    opening: Option<Opening>,
}

type Opening = future::Shared<oneshot::Receiver<Result<(), String>>>;

impl Pool {
    /// The shelf of the attempt's server; what another server at its place has left is closed.
    fn shelf(&mut self, attempt: Attempt) -> &mut Shelf {
        let empty =
            |address| Shelf { address, idle: Vec::new(), shared: Vec::new(), opening: None };
        while self.shelves.len() <= attempt.place() {
            self.shelves.push(empty(attempt.address));
        }
        let shelf = &mut self.shelves[attempt.place()];
        if shelf.address != attempt.address {
            *shelf = empty(attempt.address);
        }
        shelf
    }
}

struct Idle {
    connection: Box<Connection>,
    since: Instant,
}

/// An HTTP/2 connection.
#[derive(Clone)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    /// As many as there are users of it, and one.
    users: Arc<()>,
}

impl Shared {
    fn n_users(&self) -> usize {
        Arc::strong_count(&self.users) - 1
    }
}

/// A connection that one request has; it goes back when dropped.
pub struct Loan {
    upstream: Arc<Upstream>,
    attempt: Attempt,
    sender: Option<Sender>,
    pub is_fresh: bool,
    /// When it was asked for, or made.
    pub at: Instant,
}

enum Sender {
    /// Boxed: it goes from hand to hand.
    Http1(Box<Connection>),
    Http2(Shared),
}

impl Upstream {
    pub fn new(
        handle: Arc<Handle>,
        protocol: Protocol,
        tls: Option<Connector>,
        counts: Arc<Counts>,
    ) -> Arc<Upstream> {
        Arc::new(Upstream { handle, protocol, tls, pool: Mutex::default(), counts })
    }

    /// A connection to the server: an idle one, or a new one.
    pub async fn loan(
        self: &Arc<Self>,
        env: &Env,
        now: Instant,
        attempt: Attempt,
    ) -> Result<Loan, SendError> {
        let loan = |sender, is_fresh, at| Loan {
            upstream: self.clone(),
            attempt,
            sender: Some(sender),
            is_fresh,
            at,
        };
        if let Some(sender) = self.take(now, attempt) {
            return Ok(loan(sender, false, now));
        }
        // Boxed: the usual request finds a connection, and should not carry room for making one.
        let (sender, is_fresh) = match self.protocol {
            Protocol::Http1 => {
                let connected = Box::pin(self.connect(env, attempt.address)).await;
                (connected.map_err(SendError::Unreachable)?, true)
            }
            Protocol::Http2 => Box::pin(self.share(env, attempt)).await?,
        };
        Ok(loan(sender, is_fresh, env.now()))
    }

    /// A place on an HTTP/2 connection where there was none, and whether it is new. One is opened
    /// at a time, by a task of its own: who asked for it may go away.
    async fn share(
        self: &Arc<Self>,
        env: &Env,
        attempt: Attempt,
    ) -> Result<(Sender, bool), SendError> {
        // Each time somebody else's connection was full at once; there are no more than these.
        for _ in 0..N_SHARED_MAX {
            let mut is_ours = false;
            let opening = {
                let mut pool = self.pool.lock();
                let opening = &mut pool.shelf(attempt).opening;
                opening
                    .get_or_insert_with(|| {
                        is_ours = true;
                        self.start_opening(env, attempt)
                    })
                    .clone()
            };
            let opened = opening.await.unwrap_or_else(|_| Err("its opening broke off".into()));
            let taken = opened.and_then(|()| {
                let taken = self.take(env.now(), attempt);
                let is_closed = self.pool.lock().shelf(attempt).shared.is_empty();
                if is_closed { Err("it was closed at once".into()) } else { Ok(taken) }
            });
            match taken {
                Ok(Some(sender)) => return Ok((sender, is_ours)),
                Ok(None) => {}
                Err(reason) if is_ours => return Err(SendError::Unreachable(reason)),
                Err(reason) => return Err(SendError::NotShared(reason)),
            }
        }
        Err(SendError::NotShared("each was full at once".into()))
    }

    fn start_opening(self: &Arc<Self>, env: &Env, attempt: Attempt) -> Opening {
        let (sender, opening) = oneshot::channel();
        let (this, world) = (self.clone(), env.clone());
        env.spawn("opening a connection", async move {
            let connected = this.connect(&world, attempt.address).await;
            let opened = {
                let mut pool = this.pool.lock();
                let shelf = pool.shelf(attempt);
                shelf.opening = None;
                connected.map(|sender| match sender {
                    Sender::Http2(shared) => shelf.shared.push(shared),
                    Sender::Http1(_) => {}
                })
            };
            // They may all have gone.
            sender.send(opened).unwrap_or_default();
        });
        opening.shared()
    }

    fn take(&self, now: Instant, attempt: Attempt) -> Option<Sender> {
        let mut pool = self.pool.lock();
        let shelf = pool.shelf(attempt);
        if self.protocol == Protocol::Http2 {
            shelf.shared.retain(|shared| !shared.sender.is_closed());
            let mut shared = shelf.shared.iter();
            let free = match shelf.shared.len() < N_SHARED_MAX {
                true => shared.find(|shared| shared.n_users() < N_STREAMS_MAX),
                false => shared.min_by_key(|shared| shared.n_users()),
            };
            return free.cloned().map(Sender::Http2);
        }
        // The one used last is the likeliest to be open still.
        while let Some(Idle { mut connection, since }) = shelf.idle.pop() {
            if now.saturating_duration_since(since) > IDLE_MAX {
                shelf.idle.clear();
                return None;
            }
            if connection.is_ready() {
                return Some(Sender::Http1(connection));
            }
        }
        None
    }

    async fn connect(&self, env: &Env, address: SocketAddr) -> Result<Sender, String> {
        let limit = self.handle.lock().settings().connect_timeout;
        let connected = env.timeout(limit, self.connect_at_last(env, address)).await;
        connected.unwrap_or_else(|| Err(format!("no connection within {limit:?}")))
    }

    async fn connect_at_last(&self, env: &Env, address: SocketAddr) -> Result<Sender, String> {
        let stream = env.net().connect(address).await.map_err(|error| error.to_string())?;
        let stream: Stream = match &self.tls {
            Some(tls) => tls.connect(stream).await.map_err(|error| error.to_string())?,
            None => stream,
        };
        match self.protocol {
            Protocol::Http1 => Ok(Sender::Http1(Box::new(Connection::new(stream.into())))),
            Protocol::Http2 => {
                let (sender, connection) = http2::Builder::new(Spawn(env.clone()))
                    .timer(TokioTimer::new())
                    .keep_alive_interval(Duration::from_secs(10))
                    .keep_alive_timeout(Duration::from_secs(5))
                    .initial_stream_window_size(1 << 20)
                    .initial_connection_window_size(4 << 20)
                    .handshake(TokioIo::new(stream))
                    .await
                    .map_err(|error| error.to_string())?;
                env.spawn("connection to a server", async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%address, %error, "a connection ended");
                    }
                });
                Ok(Sender::Http2(Shared { sender, users: Arc::default() }))
            }
        }
    }

    /// Whether the server answers `GET path` with a 2xx or 3xx, on a connection of its own.
    pub async fn is_well(&self, env: &Env, address: SocketAddr, path: &str) -> bool {
        let mut fields = Fields::default();
        fields.add(name::HOST, address.to_string());
        fields.add(name::USER_AGENT, "atoll-health-check");
        let method = &Method::GET;
        let (upgrade, left, server) = (None, None, address);
        let head = Head { method, path, fields: &fields, upgrade, left, server };
        let Ok(mut sender) = self.connect(env, address).await else { return false };
        let answer = sender.send(&head, RequestBody::bytes(Bytes::new()), self.tls.is_some()).await;
        answer.is_ok_and(|answer| {
            let status = answer.status;
            status.is_success() || status.is_redirection()
        })
    }

    /// Closes all connections that are idle, and those that will be: another file has this service
    /// otherwise, or not at all. An answer under way may hold it for days.
    pub fn close(&self) {
        let mut pool = self.pool.lock();
        pool.is_closed = true;
        for shelf in &mut pool.shelves {
            shelf.idle.clear();
            shelf.shared.clear();
        }
    }

    /// Closes connections that have been idle for long.
    pub fn sweep(&self, now: Instant) {
        for shelf in &mut self.pool.lock().shelves {
            shelf.idle.retain_mut(|idle| {
                now.saturating_duration_since(idle.since) <= IDLE_MAX && idle.connection.is_ready()
            });
            let mut is_first = true;
            shelf.shared.retain(|shared| {
                let is_used = std::mem::take(&mut is_first) || shared.n_users() > 0;
                is_used && !shared.sender.is_closed()
            });
        }
    }
}

/// What of an answer is behind its head.
pub enum Rest {
    /// All of it.
    Here(Bytes),
    /// What comes on the connection that the request has: [`Loan::poll_frame`].
    OnLoan,
    Stream(hyper::body::Incoming),
}

/// Why there is no answer; where nothing was sent, the body comes back.
type Unsent = (SendError, Option<RequestBody>);

impl Sender {
    async fn send(
        &mut self,
        head: &Head<'_>,
        body: RequestBody,
        is_tls: bool,
    ) -> Result<Answer<Rest>, Unsent> {
        match self {
            Sender::Http1(connection) => {
                let length = body.size_hint().exact().map_or(Length::Chunked, Length::Told);
                head.write(connection.head(), length);
                let sent = connection.send(body, length, head.method == Method::HEAD).await;
                let head::Answer { status, fields, .. } =
                    sent.map_err(|failure| (failure.into(), None))?;
                let is_switch = status == StatusCode::SWITCHING_PROTOCOLS;
                if is_switch && head.upgrade.is_none() {
                    return Err((unasked(), None));
                }
                let body = match (connection.is_ended(), connection.whole()) {
                    (true, _) => Rest::Here(Bytes::new()),
                    (false, Some(whole)) => Rest::Here(whole),
                    (false, None) => Rest::OnLoan,
                };
                Ok(Answer { status, fields, body })
            }
            Sender::Http2(shared) => {
                let request = head.request(body, is_tls).map_err(|error| (error, None))?;
                let sent = shared.sender.try_send_request(request).await;
                let answer = sent.map_err(|mut error| {
                    let body = error.take_message().map(Request::into_body);
                    let kind = match body {
                        Some(_) => SendError::Stale,
                        None => kind_of(&error.into_error()),
                    };
                    (kind, body)
                })?;
                let (parts, body) = answer.into_parts();
                let fields = Fields::try_from(&parts.headers)
                    .map_err(|error| (SendError::Broken(error.to_string()), None))?;
                match parts.status {
                    StatusCode::SWITCHING_PROTOCOLS => Err((unasked(), None)),
                    status => Ok(Answer { status, fields, body: Rest::Stream(body) }),
                }
            }
        }
    }
}

impl Loan {
    /// Sends the request.
    pub async fn send(
        &mut self,
        head: &Head<'_>,
        body: RequestBody,
    ) -> Result<Answer<Rest>, Unsent> {
        let Some(sender) = &mut self.sender else { return Err((SendError::Stale, Some(body))) };
        let sent = sender.send(head, body, self.upstream.tls.is_some()).await;
        if sent.is_err() {
            // A pooled connection may be given to nobody after this.
            self.sender = None;
        }
        sent
    }

    /// The rest of an answer that comes on this connection.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        match &mut self.sender {
            Some(Sender::Http1(connection)) => {
                connection.poll_frame(cx).map(|frame| Some(frame?.map_err(body::Error::from)))
            }
            _ => Poll::Ready(None),
        }
    }

    /// Sends what there is of the request while nobody reads the answer.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) {
        if let Some(Sender::Http1(connection)) = &mut self.sender {
            connection.poll_upload(cx);
        }
    }

    /// How much was sent on this connection.
    pub fn n_sent(&self) -> u64 {
        match &self.sender {
            Some(Sender::Http1(connection)) => connection.n_sent(),
            _ => 0,
        }
    }

    /// How much of it is to come, where that was told.
    pub fn n_left(&self) -> Option<u64> {
        match &self.sender {
            Some(Sender::Http1(connection)) => connection.n_left(),
            _ => Some(0),
        }
    }

    pub fn is_ended(&self) -> bool {
        match &self.sender {
            Some(Sender::Http1(connection)) => connection.is_ended(),
            _ => true,
        }
    }

    /// The connection, when it is no longer one of HTTP.
    pub fn into_upgraded(&mut self) -> Option<Io> {
        match self.sender.take() {
            Some(Sender::Http1(connection)) => Some(connection.into_io()),
            _ => None,
        }
    }

    pub fn give_back(&mut self, now: Instant) {
        let Some(Sender::Http1(connection)) = self.sender.take() else { return };
        // Who takes it looks whether the server has closed it.
        if !connection.is_idle() {
            return;
        }
        let mut pool = self.upstream.pool.lock();
        if pool.is_closed {
            return;
        }
        let shelf = pool.shelf(self.attempt);
        if shelf.idle.len() < N_IDLE_MAX {
            shelf.idle.push(Idle { connection, since: now });
        }
    }
}

fn unasked() -> SendError {
    SendError::Broken("the answer changes to a protocol that nobody asked for".into())
}

impl From<http1::client::Failure> for SendError {
    fn from(failure: http1::client::Failure) -> SendError {
        match failure {
            http1::client::Failure::Body(error) => fault_of(&error),
            other => SendError::Broken(other.to_string()),
        }
    }
}

fn fault_of(error: &body::Error) -> SendError {
    let fault = match error {
        body::Error::TooLarge(_) => Fault::TooLarge,
        body::Error::StoodStill(_) => Fault::TooSlow,
        _ => Fault::Malformed,
    };
    SendError::Request { fault, reason: error.to_string() }
}

/// What a failure of hyper's means: it is the request's where its body failed.
fn kind_of(error: &hyper::Error) -> SendError {
    let mut cause: &(dyn std::error::Error + 'static) = error;
    loop {
        if let Some(error) = cause.downcast_ref::<body::Error>() {
            return fault_of(error);
        }
        match cause.source() {
            Some(source) => cause = source,
            // The innermost reason says most.
            None => break,
        }
    }
    match error.is_user() {
        true => SendError::Request { fault: Fault::Malformed, reason: cause.to_string() },
        false => SendError::Broken(cause.to_string()),
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if self.sender.is_some() {
            self.give_back(self.upstream.handle.env().now());
        }
    }
}

/// hyper's tasks are started like all others.
#[derive(Clone)]
pub struct Spawn(pub Env);

impl<F> hyper::rt::Executor<F> for Spawn
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn("http", future);
    }
}
