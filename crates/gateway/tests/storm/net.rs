//! A network in memory whose hosts die, are cut off and stand still.

use base::env::{Listener, MemoryNet, Net, Pending, Stream};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Up,
    /// Nobody listens; what was open is reset.
    Down,
    /// Nothing comes through, and no connection is made.
    Cut,
    /// Connections are made, and nothing comes through.
    Frozen,
}

#[derive(Default)]
struct Host {
    mode: Mode,
    /// Connections of an earlier one are reset.
    life: u64,
    waiting: Vec<Waker>,
}

#[derive(Clone, Default)]
pub struct StormNet {
    net: MemoryNet,
    hosts: Arc<Mutex<HashMap<SocketAddr, Host>>>,
}

impl StormNet {
    pub fn set(&self, address: SocketAddr, mode: Mode) {
        let mut hosts = self.lock();
        let host = hosts.entry(address).or_default();
        host.mode = mode;
        host.life += u64::from(mode == Mode::Down);
        host.waiting.drain(..).for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Host>> {
        self.hosts.lock().unwrap()
    }

    /// Whether bytes may move on a connection of this life; waits while they cannot.
    fn poll_moves(
        &self,
        cx: &mut Context<'_>,
        address: SocketAddr,
        life: u64,
    ) -> Poll<io::Result<()>> {
        let mut hosts = self.lock();
        let host = hosts.entry(address).or_default();
        if host.life != life {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        match host.mode {
            Mode::Up => Poll::Ready(Ok(())),
            Mode::Down => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Mode::Cut | Mode::Frozen => {
                host.waiting.push(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// The host's life, once a connection can be made.
    fn poll_open(&self, cx: &mut Context<'_>, address: SocketAddr) -> Poll<io::Result<u64>> {
        let mut hosts = self.lock();
        let host = hosts.entry(address).or_default();
        match host.mode {
            Mode::Up | Mode::Frozen => Poll::Ready(Ok(host.life)),
            Mode::Down => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
            Mode::Cut => {
                host.waiting.push(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Net for StormNet {
    fn connect(&self, to: SocketAddr) -> Pending<'_, Stream> {
        Box::pin(async move {
            let life = poll_fn(|cx| self.poll_open(cx, to)).await?;
            let stream = self.net.connect(to).await?;
            Ok(Box::new(Wire { stream, to, life, net: self.clone() }) as Stream)
        })
    }

    fn listen(&self, at: SocketAddr) -> Pending<'_, Box<dyn Listener>> {
        self.net.listen(at)
    }
}

struct Wire {
    stream: Stream,
    to: SocketAddr,
    life: u64,
    net: StormNet,
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.net.poll_moves(cx, self.to, self.life))?;
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if polled.is_pending() {
            // A reset wakes who waits for bytes.
            self.net.lock().entry(self.to).or_default().waiting.push(cx.waker().clone());
        }
        polled
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.net.poll_moves(cx, self.to, self.life))?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
