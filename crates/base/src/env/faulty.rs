//! A network in memory whose links can be cut, for tests of what happens then. Nothing that a real
//! node runs may use it.

use super::net::{Listener, MemoryNet, Net, Pending, Stream};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// While two addresses are cut, bytes between them are lost without a word, as on a real network
/// whose cable is pulled. After the healing, a connection that lost bytes is reset.
#[derive(Clone, Default)]
pub struct FaultyNet {
    net: MemoryNet,
    cut: Arc<Mutex<HashSet<Pair>>>,
    fuse: Arc<Mutex<Option<(Pair, u64)>>>,
    n_writes: Arc<AtomicU64>,
}

/// Two addresses, the smaller first.
type Pair = (SocketAddr, SocketAddr);

fn pair(a: SocketAddr, b: SocketAddr) -> Pair {
    (a.min(b), a.max(b))
}

impl FaultyNet {
    /// The network as the host at `me` sees it.
    pub fn of(&self, me: SocketAddr) -> FaultyHost {
        FaultyHost { me, faults: self.clone() }
    }

    pub fn cut(&self, a: SocketAddr, b: SocketAddr) {
        self.cut.lock().insert(pair(a, b));
    }

    /// Cuts the two once `n_bytes` more have gone from one to the other.
    pub fn cut_after(&self, a: SocketAddr, b: SocketAddr, n_bytes: u64) {
        *self.fuse.lock() = Some((pair(a, b), n_bytes));
    }

    pub fn is_cut(&self, a: SocketAddr, b: SocketAddr) -> bool {
        self.cut.lock().contains(&pair(a, b))
    }

    /// Joins all that was cut.
    pub fn heal(&self) {
        self.cut.lock().clear();
    }

    /// How often any caller has sent something over the connection that it opened.
    pub fn n_writes(&self) -> u64 {
        self.n_writes.load(Ordering::Relaxed)
    }
}

/// One host's view of a [`FaultyNet`].
pub struct FaultyHost {
    me: SocketAddr,
    faults: FaultyNet,
}

impl Net for FaultyHost {
    fn connect(&self, to: SocketAddr) -> Pending<'_, Stream> {
        Box::pin(async move {
            if self.faults.is_cut(self.me, to) {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "cut"));
            }
            let pair = pair(self.me, to);
            let stream = self.faults.net.connect(to).await?;
            Ok(Box::new(Faulty { stream, pair, faults: self.faults.clone(), lost: false })
                as Stream)
        })
    }

    fn listen(&self, at: SocketAddr) -> Pending<'_, Box<dyn Listener>> {
        self.faults.net.listen(at)
    }
}

struct Faulty {
    stream: Stream,
    pair: Pair,
    faults: FaultyNet,
    /// Something was lost on the way: as with TCP, nothing comes after it.
    lost: bool,
}

impl Faulty {
    /// Whether bytes that pass now are lost.
    fn loses(&mut self) -> io::Result<bool> {
        let cut = self.faults.cut.lock().contains(&self.pair);
        if self.lost && !cut {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        self.lost |= cut;
        Ok(cut)
    }

    fn burn(&self, n_bytes: u64) {
        let mut fuse = self.faults.fuse.lock();
        if let Some((pair, left)) = fuse.as_mut().filter(|(pair, _)| *pair == self.pair) {
            *left = left.saturating_sub(n_bytes);
            if *left == 0 {
                self.faults.cut.lock().insert(*pair);
                *fuse = None;
            }
        }
    }
}

impl AsyncRead for Faulty {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let before = buf.filled().len();
            std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
            let read = buf.filled().len() - before;
            if read == 0 || !self.loses()? {
                return Poll::Ready(Ok(()));
            }
            buf.set_filled(before);
        }
    }
}

impl AsyncWrite for Faulty {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.loses()? {
            return Poll::Ready(Ok(buf.len()));
        }
        self.faults.n_writes.fetch_add(1, Ordering::Relaxed);
        self.burn(buf.len() as u64);
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
