//! The same core as a client library: a `tower` layer that sends each request to the server of the
//! closest zone that is well, within the service's breaker, bulkhead, budget and time.
//!
//! ```no_run
//! use base::env::Env;
//! use gateway::balance::{Closeness, ServerSpec};
//! use gateway::layer::{Dependency, Http, Placed};
//! use gateway::service::Settings;
//! use tower::{ServiceBuilder, service_fn};
//!
//! # fn main() {
//! let closeness = Closeness(vec![vec!["a".into()], vec!["b".into(), "c".into()]]);
//! let orders = Dependency::new(&Env::real(), "orders", Settings::default(), closeness);
//! orders.set_servers(vec![ServerSpec {
//!     address: ([10, 0, 0, 1], 80).into(),
//!     zone: "a".into(),
//!     weight: 1.0,
//! }]);
//! orders.keep();
//! let client = ServiceBuilder::new().layer(orders.layer(Http)).service(service_fn(
//!     |placed: Placed<http::Request<()>>| async move {
//!         // Send `placed.request` to `placed.server` by whatever client there is.
//!         Ok::<_, std::io::Error>(http::Response::new(()))
//!     },
//! ));
//! # fn check<S: tower::Service<http::Request<()>>>(_: S) {}
//! # check(client);
//! # }
//! ```
//!
//! A request has its place in the bulkhead until the inner service's answer is there; a body that
//! streams afterwards is not counted.

use crate::balance::{Check, Closeness, ServerSpec};
use crate::call::{Alarms, Ask, Failure, Handle, SendError, Sent, Verdict, call};
use crate::isolate::bulkhead::Priority;
use crate::service::Settings;
use crate::upkeep;
use base::env::Env;
use futures::future::BoxFuture;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// A service that this process depends on. Cheap to clone.
#[derive(Clone)]
pub struct Dependency {
    handle: Arc<Handle>,
}

/// A request with the server that is to answer it.
#[derive(Clone, Debug)]
pub struct Placed<R> {
    pub server: SocketAddr,
    /// How long anyone will wait for the answer.
    pub left: Duration,
    pub request: R,
}

/// What the requests and answers of a protocol mean.
pub trait Protocol<R, A, E>: Clone + Send + Sync + 'static {
    fn priority(&self, _request: &R) -> Priority {
        Priority::Normal
    }

    /// Requests with the same number are alike, and may be expected to take about as long.
    fn class(&self, _request: &R) -> u32 {
        0
    }

    /// Whether sending it twice does no harm.
    fn may_repeat(&self, request: &R) -> bool;

    fn verdict(&self, answer: &A) -> Verdict;

    /// What an error of the inner service says: whether anything was sent, above all.
    fn error(&self, error: &E) -> SendError;
}

/// HTTP: idempotent methods may be repeated, a status from 500 on is the server's failure. An
/// error of the inner service that goes back to a connection which was not made says so; of all
/// others it is not known whether anything was sent.
#[derive(Clone, Copy, Debug)]
pub struct Http;

impl<B, C, E> Protocol<http::Request<B>, http::Response<C>, E> for Http
where
    E: Error + 'static,
{
    fn may_repeat(&self, request: &http::Request<B>) -> bool {
        request.method().is_idempotent()
    }

    fn verdict(&self, answer: &http::Response<C>) -> Verdict {
        if answer.status().is_server_error() { Verdict::Failed } else { Verdict::Well }
    }

    fn error(&self, error: &E) -> SendError {
        let mut cause: Option<&(dyn Error + 'static)> = Some(error);
        let mut is_unreachable = false;
        while let Some(error) = cause {
            is_unreachable |= error.downcast_ref::<io::Error>().is_some_and(is_no_connection);
            cause = error.source();
        }
        match is_unreachable {
            true => SendError::Unreachable(error.to_string()),
            false => SendError::Broken(error.to_string()),
        }
    }
}

fn is_no_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable};
    matches!(
        error.kind(),
        AddrNotAvailable | ConnectionRefused | HostUnreachable | NetworkUnreachable
    )
}

impl Dependency {
    pub fn new(env: &Env, name: &str, settings: Settings, closeness: Closeness) -> Dependency {
        Dependency { handle: Handle::new(env, name, settings, closeness) }
    }

    /// These are its servers now.
    pub fn set_servers(&self, specs: Vec<ServerSpec>) {
        let now = self.handle.env().now();
        self.handle.lock().fleet.set_servers(now, specs);
    }

    /// Looks after it as long as anyone else has it: servers come back, connections are tried
    /// where servers were unreachable or are idle. Active checks are looked at as connections.
    pub fn keep(&self) {
        let handle = Arc::downgrade(&self.handle);
        let env = self.handle.env().clone();
        self.handle.env().spawn("dependency", async move {
            while let Some(handle) = handle.upgrade() {
                for check in upkeep::step(&handle) {
                    let (handle, world) = (handle.clone(), env.clone());
                    env.spawn("check", async move {
                        let took = upkeep::timed(&world, connects(&world, &check)).await;
                        handle.lock().fleet.checked(world.now(), &check, took);
                    });
                }
                drop(handle);
                env.sleep(upkeep::STEP).await;
            }
        });
    }

    pub fn layer<P>(&self, protocol: P) -> Layer<P> {
        Layer { dependency: self.clone(), protocol }
    }
}

/// Whether anyone listens.
async fn connects(env: &Env, check: &Check) -> bool {
    let connected = env.timeout(check.timeout, env.net().connect(check.attempt.address));
    matches!(connected.await, Some(Ok(_)))
}

#[derive(Clone)]
pub struct Layer<P> {
    dependency: Dependency,
    protocol: P,
}

impl<S, P: Clone> tower::Layer<S> for Layer<P> {
    type Service = Balanced<S, P>;

    fn layer(&self, inner: S) -> Balanced<S, P> {
        Balanced { inner, dependency: self.dependency.clone(), protocol: self.protocol.clone() }
    }
}

/// A service that is sent to servers.
#[derive(Clone)]
pub struct Balanced<S, P> {
    inner: S,
    dependency: Dependency,
    protocol: P,
}

impl<S, P, R> tower::Service<R> for Balanced<S, P>
where
    S: tower::Service<Placed<R>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Response: Send,
    S::Error: Send,
    P: Protocol<R, S::Response, S::Error>,
    R: Clone + Send + Sync + 'static,
{
    type Response = S::Response;
    type Error = Failure;
    type Future = BoxFuture<'static, Result<S::Response, Failure>>;

    /// Always: whether there is room is decided, and said, for each request.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        let Balanced { inner, dependency, protocol } = self.clone();
        Box::pin(async move {
            let handle = dependency.handle;
            let env = handle.env().clone();
            let timeout = handle.lock().settings().timeout;
            let (now, mut alarms) = (env.now(), Alarms::default());
            let ask = Ask {
                at: now,
                priority: protocol.priority(&request),
                deadline: now + timeout,
                late_from: None,
                may_repeat: protocol.may_repeat(&request),
                class: protocol.class(&request),
                upload: None,
            };
            let called = call(&handle, &ask, &mut alarms, |attempt, begun| {
                let (mut inner, protocol) = (inner.clone(), protocol.clone());
                let left = ask.deadline.saturating_duration_since(begun);
                let placed = Placed { server: attempt.address, left, request: request.clone() };
                async move {
                    let failed = |error: &S::Error| protocol.error(error);
                    std::future::poll_fn(|cx| inner.poll_ready(cx))
                        .await
                        .map_err(|error| failed(&error))?;
                    let answer = inner.call(placed).await.map_err(|error| failed(&error))?;
                    let verdict = protocol.verdict(&answer);
                    Ok(Sent { answer, verdict })
                }
            });
            called.await.map(|called| called.answer)
        })
    }
}
