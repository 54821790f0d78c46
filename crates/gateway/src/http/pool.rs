//! Connections to a service's servers: kept when idle, one set for each lane (a thread that
//! serves), so that lanes do not meet on a hot path.

use crate::balance::Attempt;
use crate::balance::settings::HealthCheck;
use crate::call::{Handle, SendError};
use crate::config::Protocol;
use crate::counts::Counts;
use crate::fields::{Fields, name};
use crate::http::body::RequestBody;
use crate::http::failure;
use crate::http::http1;
use crate::http::http1::client::Connection;
use crate::http::http1::head;
use crate::http::http1::io::Io;
use crate::http::http1::length::Length;
use crate::http::http2::{self, Unsent};
use crate::http::message::Answer;
use crate::http::outgoing::Head;
use crate::tls::Connector;
use base::env::{Env, Instant, Stream};
use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::{self, FutureExt};
use http::{Method, StatusCode};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use rustix::io::Errno;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// Idle connections kept to one server, by one lane.
const N_IDLE_MAX: usize = 512;
/// HTTP/2 connections to one server, in each lane. A server that allows one request at a time on
/// each has as many requests under way as a server of HTTP/1.1 may.
const N_SHARED_MAX: usize = 4096;

/// A service as one lane has it: how it is spoken to, its connections, and what is counted. On a
/// cache line of its own, as its [`Handle`] is.
#[repr(align(128))]
pub struct Upstream {
    pub handle: Arc<Handle>,
    wire: Wire,
    pool: Mutex<Pool>,
    pub counts: Arc<Counts>,
}

/// How a service's servers are spoken to.
#[derive(Clone, Default)]
pub struct Wire {
    pub protocol: Protocol,
    pub tls: Option<Connector>,
    /// How long a connection may be idle. What the server closes while a request is on its way
    /// cannot always be sent again.
    pub idle_max: Duration,
    /// How often HTTP/2 connections are pinged, if at all.
    pub ping_every: Option<Duration>,
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
    shared: Vec<http2::Connection>,
    /// HTTP/2: tells those who wait for it how a connection's opening went.
    opening: Option<Opening>,
}

type Opening = future::Shared<oneshot::Receiver<Result<(), NoConnection>>>;

/// Why there is no connection.
#[derive(Clone, Debug)]
pub enum NoConnection {
    /// The server does not let us.
    Refused(String),
    /// This process has none to give: descriptors, memory, ports.
    Own(String),
}

impl From<NoConnection> for SendError {
    fn from(why: NoConnection) -> SendError {
        match why {
            NoConnection::Refused(reason) => SendError::Unreachable(reason),
            NoConnection::Own(reason) => SendError::Own(reason),
        }
    }
}

fn refused(reason: impl ToString) -> NoConnection {
    NoConnection::Refused(reason.to_string())
}

/// What an error of the system's says: that we have no more of something, or that of the server.
pub fn no_connection(error: &io::Error) -> NoConnection {
    const OWN: [Errno; 5] =
        [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    let code = error.raw_os_error();
    match OWN.iter().any(|own| Some(own.raw_os_error()) == code) {
        true => NoConnection::Own(error.to_string()),
        false => refused(error),
    }
}

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
    Http2(http2::Connection),
}

impl Upstream {
    pub fn new(handle: Arc<Handle>, wire: Wire, counts: Arc<Counts>) -> Arc<Upstream> {
        Arc::new(Upstream { handle, wire, pool: Mutex::default(), counts })
    }

    /// A connection to the server: an idle one, or a new one. `is_new`: another than those that
    /// have been idle.
    pub async fn loan(
        self: &Arc<Self>,
        env: &Env,
        now: Instant,
        attempt: Attempt,
        is_new: bool,
    ) -> Result<Loan, SendError> {
        let loan = |sender, is_fresh, at| Loan {
            upstream: self.clone(),
            attempt,
            sender: Some(sender),
            is_fresh,
            at,
        };
        let is_pooled = !is_new || self.wire.protocol == Protocol::Http2;
        if let Some(sender) = is_pooled.then(|| self.take(now, attempt)).flatten() {
            return Ok(loan(sender, false, now));
        }
        // Boxed: the usual request finds a connection, and should not carry room for making one.
        let (sender, is_fresh) = match self.wire.protocol {
            Protocol::Http1 => (Box::pin(self.connect(env, attempt.address)).await?, true),
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
            if self.pool.lock().shelf(attempt).shared.len() >= N_SHARED_MAX {
                break;
            }
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
            let opened = opening.await.unwrap_or_else(|_| Err(refused("its opening broke off")));
            let taken = opened.and_then(|()| {
                let taken = self.take(env.now(), attempt);
                let is_closed = self.pool.lock().shelf(attempt).shared.is_empty();
                if is_closed { Err(refused("it was closed at once")) } else { Ok(taken) }
            });
            match taken {
                Ok(Some(sender)) => return Ok((sender, is_ours)),
                Ok(None) => {}
                Err(why) if is_ours => return Err(why.into()),
                Err(NoConnection::Own(reason)) => return Err(SendError::Own(reason)),
                Err(NoConnection::Refused(reason)) => return Err(SendError::NotShared(reason)),
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
        if self.wire.protocol == Protocol::Http2 {
            shelf.shared.retain(|shared| !shared.is_closed());
            let free = shelf.shared.iter().find(|shared| shared.has_room());
            return free.cloned().map(Sender::Http2);
        }
        // The one used last is the likeliest to be open still.
        while let Some(Idle { mut connection, since }) = shelf.idle.pop() {
            if now.saturating_duration_since(since) > self.wire.idle_max {
                shelf.idle.clear();
                return None;
            }
            if connection.is_ready() {
                return Some(Sender::Http1(connection));
            }
        }
        None
    }

    async fn connect(&self, env: &Env, address: SocketAddr) -> Result<Sender, NoConnection> {
        let limit = self.handle.lock().settings().connect_timeout;
        let connected = env.timeout(limit, self.connect_at_last(env, address)).await;
        connected.unwrap_or_else(|| Err(refused(format_args!("no connection within {limit:?}"))))
    }

    async fn connect_at_last(
        &self,
        env: &Env,
        address: SocketAddr,
    ) -> Result<Sender, NoConnection> {
        let stream = match env.net().connect(address).await {
            Ok(stream) => stream,
            // What is idle holds what is missing.
            Err(error) if matches!(no_connection(&error), NoConnection::Own(_)) => {
                self.clear();
                let connected = env.net().connect(address).await;
                connected.map_err(|error| no_connection(&error))?
            }
            Err(error) => return Err(no_connection(&error)),
        };
        let stream: Stream = match &self.wire.tls {
            Some(tls) => tls.connect(stream).await.map_err(refused)?,
            None => stream,
        };
        match self.wire.protocol {
            Protocol::Http1 => Ok(Sender::Http1(Box::new(Connection::new(stream.into())))),
            Protocol::Http2 => {
                let opened = http2::Connection::open(env, stream, self.wire.ping_every).await;
                opened.map(Sender::Http2).map_err(refused)
            }
        }
    }

    /// Closes what is idle.
    fn clear(&self) {
        for shelf in &mut self.pool.lock().shelves {
            shelf.idle.clear();
            shelf.shared.retain(|shared| shared.n_users() > 0);
        }
    }

    /// Asks the server, on a connection of its own: the answer's head, and the beginning of its body.
    async fn look(
        &self,
        env: &Env,
        address: SocketAddr,
        method: &Method,
        path: &str,
        fields: &Fields,
        body: Bytes,
    ) -> Result<(StatusCode, Fields, Bytes), SendError> {
        let (upgrade, left, server) = (None, None, address);
        let head = Head { method, path, fields, upgrade, left, server };
        let mut sender = self.connect(env, address).await?;
        let answer = sender.send(&head, RequestBody::bytes(body), self.wire.tls.is_some()).await;
        let Answer { status, fields, body } = answer.map_err(|(error, _)| error)?;
        let first = match body {
            Rest::Here(bytes) => bytes,
            Rest::OnLoan => Bytes::new(),
            Rest::Stream(mut body) => match body.frame().await {
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                _ => Bytes::new(),
            },
        };
        Ok((status, fields, first))
    }

    /// Whether the server is well by what the file asks of it.
    pub async fn is_well(
        &self,
        env: &Env,
        address: SocketAddr,
        check: &HealthCheck,
    ) -> Result<bool, SendError> {
        let mut fields = Fields::default();
        let host = || address.to_string();
        fields.add(name::HOST, check.host.clone().unwrap_or_else(host));
        fields.add(name::USER_AGENT, "atoll-health-check");
        let Some(service) = &check.grpc else {
            let path = &check.path;
            let asked = self.look(env, address, &check.method, path, &fields, Bytes::new());
            let (status, ..) = asked.await?;
            let is_in = |(from, to): &(u16, u16)| (*from..=*to).contains(&status.as_u16());
            return Ok(check.statuses.iter().any(is_in));
        };
        fields.add(name::CONTENT_TYPE, "application/grpc");
        fields.add(name::TE, "trailers");
        let body = grpc_question(service);
        let asked = self.look(env, address, &Method::POST, &check.path, &fields, body);
        let (status, fields, body) = asked.await?;
        let is_refused = fields.get(name::GRPC_STATUS).is_some_and(|status| status != b"0");
        Ok(status == StatusCode::OK && !is_refused && body[..] == GRPC_SERVING)
    }

    /// Any word from the server, on a connection of its own. OPTIONS * asks for nothing (RFC 9110,
    /// 9.3.7), and whatever is said to it, or an end of the connection, shows that somebody is
    /// there; so do TLS and HTTP/2 when they are opened. The system's listener alone shows nothing:
    /// it lets in whoever comes for a process that stands still.
    pub async fn sign(&self, env: &Env, address: SocketAddr) -> Result<(), SendError> {
        if self.wire.protocol == Protocol::Http2 || self.wire.tls.is_some() {
            return Ok(self.connect(env, address).await.map(|_| ())?);
        }
        let mut fields = Fields::default();
        fields.add(name::HOST, address.to_string());
        fields.add(name::USER_AGENT, "atoll-health-check");
        let asked = self.look(env, address, &Method::OPTIONS, "*", &fields, Bytes::new());
        match asked.await {
            Err(error @ (SendError::Own(_) | SendError::Unreachable(_))) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
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
                now.saturating_duration_since(idle.since) <= self.wire.idle_max
                    && idle.connection.is_ready()
            });
            let mut is_first = true;
            shelf.shared.retain(|shared| {
                let is_used = std::mem::take(&mut is_first) || shared.n_users() > 0;
                is_used && !shared.is_closed()
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
    Stream(http2::Incoming),
}

impl Sender {
    async fn send(
        &mut self,
        head: &Head<'_>,
        body: RequestBody,
        is_tls: bool,
    ) -> Result<Answer<Rest>, Unsent<RequestBody>> {
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
                let request = match head.request(is_tls) {
                    Ok(request) => request,
                    Err(error) => return Err((error, None)),
                };
                let (parts, body) = shared.send(request, body).await?.into_parts();
                let fields = Fields::try_from(&parts.headers)
                    .map_err(|error| (SendError::Broken(error.to_string()), None))?;
                match parts.status {
                    StatusCode::SWITCHING_PROTOCOLS => Err((unasked(), None)),
                    status => {
                        let body = Rest::Stream(body.told(&parts.headers));
                        Ok(Answer { status, fields, body })
                    }
                }
            }
        }
    }

    /// Whether anything of an answer has come.
    fn has_heard(&self) -> bool {
        match self {
            Sender::Http1(connection) => connection.has_heard(),
            // It tells by itself.
            Sender::Http2(_) => true,
        }
    }
}

impl Loan {
    /// Sends the request.
    pub async fn send(
        &mut self,
        head: &Head<'_>,
        body: RequestBody,
    ) -> Result<Answer<Rest>, Unsent<RequestBody>> {
        let Some(sender) = &mut self.sender else { return Err((SendError::Stale, Some(body))) };
        let sent = sender.send(head, body, self.upstream.wire.tls.is_some()).await;
        // The server had closed it, or was about to, when the request came: that says nothing
        // about the server.
        let is_unanswered = !self.is_fresh && !sender.has_heard();
        if sent.is_err() {
            // A pooled connection may be given to nobody after this.
            self.sender = None;
        }
        sent.map_err(|(error, body)| match error {
            SendError::Broken(reason) if is_unanswered => (SendError::Unanswered(reason), body),
            SendError::Unanswered(reason) if self.is_fresh => (SendError::Broken(reason), body),
            error => (error, body),
        })
    }

    /// The rest of an answer that comes on this connection.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, failure::Error>>> {
        match &mut self.sender {
            Some(Sender::Http1(connection)) => {
                connection.poll_frame(cx).map(|frame| Some(frame?.map_err(failure::Error::from)))
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

/// A `HealthCheckResponse` that says SERVING (field 1 is 1), behind the five bytes that come before
/// each of gRPC's messages: whether it is compressed, and its length.
const GRPC_SERVING: [u8; 7] = [0, 0, 0, 0, 2, 0x08, 1];

/// A `HealthCheckRequest`: field 1 is the service's name. No name in a file is longer than a
/// length in one byte says.
fn grpc_question(service: &str) -> Bytes {
    let service = &service.as_bytes()[..service.len().min(127)];
    let mut message = Vec::new();
    if !service.is_empty() {
        message.extend([0x0a, service.len() as u8]);
        message.extend(service);
    }
    let mut framed = vec![0, 0, 0, 0, message.len() as u8];
    framed.extend(message);
    framed.into()
}

fn unasked() -> SendError {
    SendError::Broken("the answer changes to a protocol that nobody asked for".into())
}

impl From<http1::client::Failure> for SendError {
    fn from(failure: http1::client::Failure) -> SendError {
        match failure {
            http1::client::Failure::Body(error) => http2::fault_of(&error),
            other => SendError::Broken(other.to_string()),
        }
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
