//! The PostgreSQL wire protocol, version 3.0, for every driver there is.
//!
//! One task per connection reads messages, runs them in order against one [`Session`] and writes the
//! answers. Answers gather in one buffer that goes out at ReadyForQuery, at Flush, or when it has
//! grown large: a pipelined batch costs one write. While a statement runs the connection is read
//! on, up to a bound, so that a client that goes away cancels what it waits for.
//!
//! The codec is our own ([`request`], [`reply`]) rather than the `pgwire` crate's: its decoders turn
//! wrong UTF-8 into other text, allocate for every field and trust counts that a client sends,
//! and its session loop writes per message.
//!
//! What protects the node from its clients: a limit on connections, a time-out for the startup, bounds on
//! message lengths (small ones before authentication), one budget of memory for what all clients make the
//! node keep ([`base::Budget`]), bounded buffers, and a body parser that cannot read past a message. A client that breaks the protocol gets one error and is closed.
//!
//! Absent: protocol 2, COPY in binary, replication, NOTIFY, GSS encryption, protocol 3.2's longer
//! cancel keys (a client that asks for 3.2 is told 3.0).
//!
//! [`Session`]: crate::session::Session

pub mod access;
mod connection;
mod reply;
mod request;
pub mod scram;
mod secrets;

use crate::engine::{Auth, Engine};
use crate::error::{Error, state};
use access::Access;
use base::Budget;
use base::env::{Listener, Stream};
use futures::future::BoxFuture;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// What a listener grants in time. What it grants in space is among [`base::Limits`].
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// From the connection's begin to the end of authentication.
    pub startup: Duration,
    /// How long a shutdown lets a running statement go on.
    pub shutdown_grace: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { startup: Duration::from_secs(10), shutdown_grace: Duration::from_secs(5) }
    }
}

/// What the two sides of an encrypted connection agree on (ALPN). Who begins with TLS at once must offer it.
pub const ALPN: &[u8] = b"postgresql";

/// What clients are shown that ask for encryption.
#[derive(Clone)]
pub struct Shown {
    pub config: Arc<rustls::ServerConfig>,
    /// The hash of its certificate, to which a client may tie its password (`tls-server-end-point`). None: the
    /// certificate has none.
    pub end_point: Option<Vec<u8>>,
}

/// Asked at each handshake: certificates are renewed.
pub type Tls = Arc<dyn Fn() -> Shown + Send + Sync>;

/// What all connections of a listener share.
struct Server {
    engine: Engine,
    tls: Option<Tls>,
    access: Access,
    patience: Patience,
    limits: base::Limits,
    n_connections: AtomicUsize,
    memory: Budget,
    shutdown: watch::Receiver<bool>,
}

/// Serves clients until `shutdown` turns true and the last of them has been told.
pub fn serve(
    engine: Engine,
    listener: Box<dyn Listener>,
    tls: Option<Tls>,
    patience: Patience,
    shutdown: watch::Receiver<bool>,
) -> BoxFuture<'static, ()> {
    let access = engine.access().clone();
    serve_by(engine, listener, tls, access, patience, shutdown)
}

/// The same at a door that the operating system guards: whoever may open it is believed.
pub fn serve_local(
    engine: Engine,
    listener: Box<dyn Listener>,
    patience: Patience,
    shutdown: watch::Receiver<bool>,
) -> BoxFuture<'static, ()> {
    serve_by(engine, listener, None, Auth::Trust.into(), patience, shutdown)
}

fn serve_by(
    engine: Engine,
    mut listener: Box<dyn Listener>,
    tls: Option<Tls>,
    access: Access,
    patience: Patience,
    mut shutdown: watch::Receiver<bool>,
) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let env = engine.env().clone();
        let server = Arc::new(Server {
            engine,
            tls,
            access,
            patience,
            limits: *env.limits(),
            n_connections: AtomicUsize::new(0),
            memory: env.memory().within(env.limits().connection_memory_bytes),
            shutdown: shutdown.clone(),
        });
        let mut clients = Vec::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = shutdown.wait_for(|stop| *stop) => break,
            };
            let (stream, from) = match accepted {
                Ok((stream, from)) => (stream, from.ip()),
                Err(error) => {
                    // Out of file descriptors, mostly: others may close theirs.
                    tracing::warn!(%error, "cannot accept a SQL connection");
                    env.sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let place = Place::take(&server);
            let task = client(server.clone(), stream, from, place);
            clients.retain(|client: &base::env::JoinHandle<()>| !client.is_finished());
            clients.push(env.spawn("sql connection", task));
        }
        drop(listener);
        for client in clients {
            if let Err(error) = client.await {
                tracing::error!(%error, "a SQL connection ended badly");
            }
        }
    })
}

/// A connection's place among those allowed.
struct Place {
    server: Arc<Server>,
    /// Which connection it is, from 1.
    n: usize,
}

impl Place {
    fn take(server: &Arc<Server>) -> Place {
        let n = 1 + server.n_connections.fetch_add(1, Ordering::Relaxed);
        Place { server: server.clone(), n }
    }

    fn check(&self) -> Result<(), Error> {
        if self.n <= self.server.limits.connections {
            return Ok(());
        }
        let message = "sorry, too many clients already";
        let n = self.server.limits.connections;
        Err(Error::new(state::TOO_MANY_CONNECTIONS, message)
            .hint(format!("This node takes {n} connections: connect to another node.")))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.server.n_connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What all connections together may keep is used up.
fn no_memory(what: &str, exhausted: &base::budget::Exhausted) -> Error {
    let base::budget::Exhausted { wanted, left } = exhausted;
    Error::new(state::OUT_OF_MEMORY, format!("this node has no memory left for {what}"))
        .detail(format!("{wanted} bytes are wanted, {left} are left for all connections."))
        .hint("Close statements and portals that are not used, or connect to another node.")
}

async fn client(server: Arc<Server>, stream: Stream, from: IpAddr, place: Place) {
    match connection::run(&server, stream, from, &place).await {
        Ok(()) => {}
        Err(connection::Gone::Closed) => tracing::debug!("a SQL client went away"),
        Err(connection::Gone::Refused(error)) => {
            tracing::debug!(?error, "a SQL connection was refused");
        }
    }
}
