//! The network: byte streams between addresses.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// A two-way byte stream.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

pub type Stream = Box<dyn Duplex>;
/// The answer of a network operation, once it is there.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// The seam between a real network and a simulated one.
pub trait Net: Send + Sync {
    fn connect(&self, to: SocketAddr) -> Pending<'_, Stream>;
    fn listen(&self, at: SocketAddr) -> Pending<'_, Box<dyn Listener>>;

    /// Listens at a path of this machine for processes of its owner. A network without paths has no such door.
    fn listen_local<'a>(&'a self, at: &'a Path) -> Pending<'a, Box<dyn Listener>> {
        let none =
            io::Error::new(io::ErrorKind::Unsupported, format!("no door at {}", at.display()));
        Box::pin(std::future::ready(Err(none)))
    }

    /// The addresses that a name stands for. A network without names knows none.
    fn lookup<'a>(&'a self, name: &'a str, _port: u16) -> Pending<'a, Vec<SocketAddr>> {
        let unknown = io::Error::new(io::ErrorKind::NotFound, format!("nobody knows {name:?}"));
        Box::pin(std::future::ready(Err(unknown)))
    }
}

/// A bound listener. The address it is bound to is in `local`.
pub trait Listener: Send + Sync {
    fn local(&self) -> SocketAddr;
    fn accept(&mut self) -> Pending<'_, (Stream, SocketAddr)>;
}

/// The operating system's TCP, without Nagle's delay.
pub struct TcpNet;

impl Net for TcpNet {
    fn connect(&self, to: SocketAddr) -> Pending<'_, Stream> {
        Box::pin(async move {
            let stream = tokio::net::TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Stream)
        })
    }

    fn listen(&self, at: SocketAddr) -> Pending<'_, Box<dyn Listener>> {
        Box::pin(async move {
            let listener = tokio::net::TcpListener::bind(at).await?;
            let local = listener.local_addr()?;
            Ok(Box::new(TcpAcceptor { listener, local }) as Box<dyn Listener>)
        })
    }

    fn listen_local<'a>(&'a self, at: &'a Path) -> Pending<'a, Box<dyn Listener>> {
        Box::pin(async move {
            // Whoever left it is dead: the directory's owner lets one process in.
            match std::fs::remove_file(at) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = tokio::net::UnixListener::bind(at)?;
            Ok(Box::new(UnixAcceptor { listener }) as Box<dyn Listener>)
        })
    }

    fn lookup<'a>(&'a self, name: &'a str, port: u16) -> Pending<'a, Vec<SocketAddr>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((name, port)).await?.collect()) })
    }
}

/// A door on this machine. Who comes through it has no address; it is shown as a loopback one.
struct UnixAcceptor {
    listener: tokio::net::UnixListener,
}

const HERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

impl Listener for UnixAcceptor {
    fn local(&self) -> SocketAddr {
        HERE
    }

    fn accept(&mut self) -> Pending<'_, (Stream, SocketAddr)> {
        Box::pin(async move {
            let (stream, _) = self.listener.accept().await?;
            Ok((Box::new(stream) as Stream, HERE))
        })
    }
}

struct TcpAcceptor {
    listener: tokio::net::TcpListener,
    local: SocketAddr,
}

impl Listener for TcpAcceptor {
    fn local(&self) -> SocketAddr {
        self.local
    }

    fn accept(&mut self) -> Pending<'_, (Stream, SocketAddr)> {
        Box::pin(async move {
            let (stream, from) = self.listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok((Box::new(stream) as Stream, from))
        })
    }
}

/// A network inside one process: connecting hands one end of a pipe to the listener.
#[derive(Clone, Default)]
pub struct MemoryNet {
    listeners: Arc<Mutex<HashMap<SocketAddr, mpsc::Sender<Stream>>>>,
}

/// Bytes a pipe holds before its writer waits.
const PIPE_BYTES: usize = 256 * 1024;

impl Net for MemoryNet {
    fn connect(&self, to: SocketAddr) -> Pending<'_, Stream> {
        Box::pin(async move {
            let listener = self.listeners.lock().get(&to).cloned();
            let refused = || {
                io::Error::new(io::ErrorKind::ConnectionRefused, format!("nobody listens on {to}"))
            };
            let (near, far) = tokio::io::duplex(PIPE_BYTES);
            listener.ok_or_else(refused)?.send(Box::new(far)).await.map_err(|_| refused())?;
            Ok(Box::new(near) as Stream)
        })
    }

    fn listen(&self, at: SocketAddr) -> Pending<'_, Box<dyn Listener>> {
        Box::pin(async move {
            let (sender, arrivals) = mpsc::channel(16);
            let mut listeners = self.listeners.lock();
            if listeners.get(&at).is_some_and(|held| !held.is_closed()) {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("{at} is taken")));
            }
            listeners.insert(at, sender);
            Ok(Box::new(MemoryAcceptor { at, arrivals }) as Box<dyn Listener>)
        })
    }
}

struct MemoryAcceptor {
    at: SocketAddr,
    arrivals: mpsc::Receiver<Stream>,
}

impl Listener for MemoryAcceptor {
    fn local(&self) -> SocketAddr {
        self.at
    }

    fn accept(&mut self) -> Pending<'_, (Stream, SocketAddr)> {
        Box::pin(async move {
            let closed = || io::Error::new(io::ErrorKind::NotConnected, "the listener is closed");
            let stream = self.arrivals.recv().await.ok_or_else(closed)?;
            Ok((stream, self.at))
        })
    }
}
