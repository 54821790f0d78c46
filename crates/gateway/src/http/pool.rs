//! Connections to a service's servers: kept when idle, one set for each lane (a thread that
//! serves), so that lanes do not meet on a hot path.

use crate::balance::Attempt;
use crate::call::{Fault, Handle, SendError};
use crate::config::Protocol;
use crate::http::body::{self, RequestBody};
use crate::tls::Connector;
use base::env::{Env, Instant, Stream};
use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::{self, FutureExt};
use http::uri::PathAndQuery;
use http::{Request, Response, Uri, header};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
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

/// A service, and how it is spoken to.
pub struct Upstream {
    pub handle: Arc<Handle>,
    pub protocol: Protocol,
    pub tls: Option<Connector>,
    lanes: Vec<Mutex<Pool>>,
}

/// One lane's connections, by the servers' places in the fleet.
#[derive(Default)]
struct Pool {
    shelves: Vec<Shelf>,
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
    sender: http1::SendRequest<RequestBody>,
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
    lane: usize,
    attempt: Attempt,
    sender: Option<Sender>,
    pub is_fresh: bool,
    /// When it was given.
    pub at: Instant,
}

enum Sender {
    Http1(http1::SendRequest<RequestBody>),
    Http2(Shared),
}

impl Upstream {
    pub fn new(
        handle: Arc<Handle>,
        protocol: Protocol,
        tls: Option<Connector>,
        n_lanes: usize,
    ) -> Arc<Upstream> {
        let lanes = (0..n_lanes.max(1)).map(|_| Mutex::default()).collect();
        Arc::new(Upstream { handle, protocol, tls, lanes })
    }

    /// A connection to the server: an idle one, or a new one.
    pub async fn loan(
        self: &Arc<Self>,
        env: &Env,
        lane: usize,
        attempt: Attempt,
    ) -> Result<Loan, SendError> {
        let loan = |sender, is_fresh, at| Loan {
            upstream: self.clone(),
            lane,
            attempt,
            sender: Some(sender),
            is_fresh,
            at,
        };
        let now = env.now();
        if let Some(sender) = self.take(now, lane, attempt) {
            return Ok(loan(sender, false, now));
        }
        // Boxed: the usual request finds a connection, and should not carry room for making one.
        let (sender, is_fresh) = match self.protocol {
            Protocol::Http1 => {
                let connected = Box::pin(self.connect(env, attempt.address)).await;
                (connected.map_err(SendError::Unreachable)?, true)
            }
            Protocol::Http2 => Box::pin(self.share(env, lane, attempt)).await?,
        };
        Ok(loan(sender, is_fresh, env.now()))
    }

    /// A place on an HTTP/2 connection where there was none, and whether it is new. One is opened
    /// at a time, by a task of its own: who asked for it may go away.
    async fn share(
        self: &Arc<Self>,
        env: &Env,
        lane: usize,
        attempt: Attempt,
    ) -> Result<(Sender, bool), SendError> {
        // Each time somebody else's connection was full at once; there are no more than these.
        for _ in 0..N_SHARED_MAX {
            let mut is_ours = false;
            let opening = {
                let mut pool = self.lanes[lane].lock();
                let opening = &mut pool.shelf(attempt).opening;
                opening
                    .get_or_insert_with(|| {
                        is_ours = true;
                        self.start_opening(env, lane, attempt)
                    })
                    .clone()
            };
            let opened = opening.await.unwrap_or_else(|_| Err("its opening broke off".into()));
            let taken = opened.and_then(|()| {
                let taken = self.take(env.now(), lane, attempt);
                let is_closed = self.lanes[lane].lock().shelf(attempt).shared.is_empty();
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

    fn start_opening(self: &Arc<Self>, env: &Env, lane: usize, attempt: Attempt) -> Opening {
        let (sender, opening) = oneshot::channel();
        let (this, world) = (self.clone(), env.clone());
        env.spawn("opening a connection", async move {
            let connected = this.connect(&world, attempt.address).await;
            let opened = {
                let mut pool = this.lanes[lane].lock();
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

    fn take(&self, now: Instant, lane: usize, attempt: Attempt) -> Option<Sender> {
        let mut pool = self.lanes[lane].lock();
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
        while let Some(Idle { sender, since }) = shelf.idle.pop() {
            if now.saturating_duration_since(since) > IDLE_MAX {
                shelf.idle.clear();
                return None;
            }
            if sender.is_ready() {
                return Some(Sender::Http1(sender));
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
        let io = TokioIo::new(stream);
        match self.protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::Builder::new()
                    .max_buf_size(64 << 10)
                    // One write of one piece: most requests are a head and nothing more.
                    .writev(false)
                    .handshake(io)
                    .await
                    .map_err(|error| error.to_string())?;
                // Its end is seen by whoever uses it.
                let connection = connection.with_upgrades();
                env.spawn("connection to a server", async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%address, %error, "a connection ended");
                    }
                });
                Ok(Sender::Http1(sender))
            }
            Protocol::Http2 => {
                let (sender, connection) = http2::Builder::new(Spawn(env.clone()))
                    .timer(TokioTimer::new())
                    .keep_alive_interval(Duration::from_secs(10))
                    .keep_alive_timeout(Duration::from_secs(5))
                    .initial_stream_window_size(1 << 20)
                    .initial_connection_window_size(4 << 20)
                    .handshake(io)
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
        let Ok(path) = PathAndQuery::try_from(path) else { return false };
        let host = address.to_string();
        let uri = match self.protocol {
            Protocol::Http1 => Uri::builder().path_and_query(path),
            Protocol::Http2 => Uri::builder().scheme("http").authority(&*host).path_and_query(path),
        };
        let Ok(uri) = uri.build() else { return false };
        let request = Request::get(uri).header(header::USER_AGENT, "atoll-health-check");
        let request = match self.protocol {
            Protocol::Http1 => request.header(header::HOST, host),
            Protocol::Http2 => request,
        };
        let Ok(request) = request.body(RequestBody::bytes(Bytes::new())) else { return false };
        let answer = match self.connect(env, address).await {
            Ok(Sender::Http1(mut sender)) => sender.send_request(request).await,
            Ok(Sender::Http2(mut shared)) => shared.sender.send_request(request).await,
            Err(_) => return false,
        };
        answer.is_ok_and(|answer| {
            let status = answer.status();
            status.is_success() || status.is_redirection()
        })
    }

    /// Closes connections that have been idle for long.
    pub fn sweep(&self, now: Instant) {
        for lane in &self.lanes {
            for shelf in &mut lane.lock().shelves {
                shelf.idle.retain(|idle| {
                    now.saturating_duration_since(idle.since) <= IDLE_MAX
                        && !idle.sender.is_closed()
                });
                let mut is_first = true;
                shelf.shared.retain(|shared| {
                    let is_used = std::mem::take(&mut is_first) || shared.n_users() > 0;
                    is_used && !shared.sender.is_closed()
                });
            }
        }
    }
}

impl Loan {
    /// Sends the request; where that failed before a byte was sent, it comes back.
    pub async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, (SendError, Option<Request<RequestBody>>)> {
        let sent = match &mut self.sender {
            Some(Sender::Http1(sender)) => sender.try_send_request(request).await,
            Some(Sender::Http2(shared)) => shared.sender.try_send_request(request).await,
            None => return Err((SendError::Stale, Some(request))),
        };
        sent.map_err(|mut error| {
            let request = error.take_message();
            let reason = error.into_error();
            // A pooled connection may be given to nobody after this.
            self.sender = None;
            let kind = match request {
                Some(_) => SendError::Stale,
                None => fault_of(&reason),
            };
            (kind, request)
        })
    }

    /// The connection is no longer one of HTTP.
    pub fn forget(&mut self) {
        self.sender = None;
    }

    pub fn give_back(&mut self, now: Instant) {
        let Some(Sender::Http1(sender)) = self.sender.take() else { return };
        if sender.is_closed() {
            return;
        }
        let mut pool = self.upstream.lanes[self.lane].lock();
        let shelf = pool.shelf(self.attempt);
        if shelf.idle.len() < N_IDLE_MAX {
            shelf.idle.push(Idle { sender, since: now });
        }
    }
}

/// What a failure of hyper's means: it is the request's where its body failed.
fn fault_of(error: &hyper::Error) -> SendError {
    let mut cause: &(dyn std::error::Error + 'static) = error;
    loop {
        let fault = match cause.downcast_ref::<body::Error>() {
            Some(body::Error::TooLarge(_)) => Some(Fault::TooLarge),
            Some(body::Error::StoodStill(_)) => Some(Fault::TooSlow),
            Some(body::Error::Http(_)) => Some(Fault::Malformed),
            None => None,
        };
        if let Some(fault) = fault {
            return SendError::Request { fault, reason: cause.to_string() };
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
