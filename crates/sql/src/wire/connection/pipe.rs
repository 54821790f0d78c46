//! A connection's bytes: bounded buffers, whole messages in, answers out in few writes.

use crate::error::{Error, state};
use crate::wire::{ALPN, Server, Tls, no_memory, reply, request};
use base::env::Stream;
use base::{Env, Loan};
use bytes::{Bytes, BytesMut};
use std::future::Future;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::watch;

/// The output is sent on when it has grown to this.
const OUTPUT_BYTES: usize = 64 * 1024;
/// What is read ahead of a running statement.
const READ_AHEAD_BYTES: usize = 64 * 1024;
/// A buffer larger than this is given back once it is empty.
const KEPT_BYTES: usize = 256 * 1024;
/// Messages up to this size are not borrowed for: each connection may have one.
const FREE_BYTES: usize = 64 * 1024;

/// Why a connection is over.
pub enum Gone {
    Closed,
    /// The client was sent this as its last message.
    Refused(Error),
}

impl From<std::io::Error> for Gone {
    fn from(_: std::io::Error) -> Gone {
        Gone::Closed
    }
}

pub type Flow<T> = std::result::Result<T, Gone>;

pub fn shutting_down() -> Error {
    Error::new(state::UNAVAILABLE, "terminating connection due to administrator command")
        .hint("This node is stopping: connect to another node.")
}

/// An encrypted stream, as far as authentication is concerned.
pub struct Channel {
    /// What a client may tie its password to.
    pub end_point: Option<Vec<u8>>,
}

/// The byte stream with its buffers.
pub struct Pipe {
    pub stream: Stream,
    /// Where the client is.
    pub from: IpAddr,
    /// Set once the stream is encrypted.
    pub channel: Option<Channel>,
    pub input: BytesMut,
    pub output: Vec<u8>,
    /// The output up to here is whole messages.
    whole: usize,
    pub shutdown: watch::Receiver<bool>,
    pub env: Env,
    grace: std::time::Duration,
    message_bytes_max: usize,
    /// For the message that is coming, or being answered.
    loan: Loan,
}

impl Pipe {
    pub fn new(stream: Stream, from: IpAddr, server: &Server) -> Pipe {
        Pipe {
            stream,
            from,
            channel: None,
            input: BytesMut::new(),
            output: Vec::new(),
            whole: 0,
            shutdown: server.shutdown.clone(),
            env: server.engine.env().clone(),
            grace: server.patience.shutdown_grace,
            message_bytes_max: server.limits.message_bytes,
            loan: server.memory.open(),
        }
    }

    /// Reads some more. The end of the stream is an error: nobody leaves in the middle.
    pub async fn read(&mut self) -> Flow<()> {
        self.input.reserve(8 * 1024);
        match self.stream.read_buf(&mut self.input).await? {
            0 => Err(Gone::Closed),
            _ => Ok(()),
        }
    }

    pub async fn flush(&mut self) -> Flow<()> {
        if !self.output.is_empty() {
            let Pipe { stream, output, shutdown, env, grace, .. } = self;
            let written = async {
                stream.write_all(output).await?;
                stream.flush().await
            };
            // A client that reads no more must not keep a stopping server.
            let given_up = async {
                stopped(shutdown).await;
                env.sleep(*grace).await;
            };
            tokio::select! {
                biased;
                written = written => written?,
                () = given_up => return Err(Gone::Closed),
            }
            self.output.clear();
            self.whole = 0;
            if self.output.capacity() > KEPT_BYTES {
                self.output = Vec::new();
            }
        }
        Ok(())
    }

    /// Notes that the output ends with a whole message.
    pub fn mark(&mut self) {
        self.whole = self.output.len();
    }

    /// Forgets a message that was begun and not ended.
    pub fn take_back(&mut self) {
        self.output.truncate(self.whole);
    }

    pub async fn flush_if_large(&mut self) -> Flow<()> {
        if self.output.len() >= OUTPUT_BYTES { self.flush().await } else { Ok(()) }
    }

    /// The next message. Idle here, a shutdown ends the connection.
    pub async fn next(&mut self) -> Flow<(u8, Bytes)> {
        let coming = self.coming();
        loop {
            let message = request::split(&mut self.input, self.message_bytes_max);
            if let Some(message) = message.map_err(Gone::Refused)? {
                return Ok(message);
            }
            self.borrow(coming.max(self.coming()))?;
            if self.input.is_empty() && self.input.capacity() > KEPT_BYTES {
                self.input = BytesMut::new();
            }
            self.input.reserve(8 * 1024);
            let n = tokio::select! {
                n = self.stream.read_buf(&mut self.input) => n?,
                _ = stopped(&mut self.shutdown) => return Err(Gone::Refused(shutting_down())),
            };
            if n == 0 {
                return Err(Gone::Closed);
            }
        }
    }

    /// How long the message is that the input begins with, as far as is known.
    fn coming(&self) -> usize {
        match self.input[..] {
            [_, a, b, c, d, ..] => u32::from_be_bytes([a, b, c, d]) as usize,
            _ => 0,
        }
    }

    /// Borrows for a message of that size before it is read.
    fn borrow(&mut self, bytes: usize) -> Flow<()> {
        let bytes = if bytes > FREE_BYTES { bytes } else { 0 };
        let borrowed = self.loan.set(bytes);
        borrowed.map_err(|exhausted| Gone::Refused(no_memory("a message", &exhausted)))
    }

    /// The next message of the authentication, which must be a password's.
    pub async fn password(&mut self) -> Flow<Bytes> {
        loop {
            match request::split(&mut self.input, request::STARTUP_BYTES_MAX) {
                Ok(Some((b'p', body))) => return Ok(body),
                Ok(Some((tag, _))) => {
                    let message = format!("expected password response, got message type {tag}");
                    return Err(Gone::Refused(request::violation(message)));
                }
                Ok(None) => self.read().await?,
                Err(error) => return Err(Gone::Refused(error)),
            }
        }
    }

    /// Goes on under TLS. `is_direct`: the client began with it, and what has been read belongs to it.
    pub async fn encrypt(&mut self, tls: &Tls, is_direct: bool) -> Flow<()> {
        // The placeholder is never read: it is replaced below or the connection ends.
        let (placeholder, _) = tokio::io::duplex(1);
        let plain = std::mem::replace(&mut self.stream, Box::new(placeholder));
        let begin = std::mem::take(&mut self.input);
        let shown = tls();
        let acceptor = tokio_rustls::TlsAcceptor::from(shown.config);
        let stream = acceptor.accept(Begun { begin, rest: plain }).await?;
        // As PostgreSQL: what begins with TLS might speak anything, HTTP for one, and must say so.
        if is_direct && stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(Gone::Closed);
        }
        self.stream = Box::new(stream);
        self.channel = Some(Channel { end_point: shown.end_point });
        Ok(())
    }

    /// Sends the last error. The client may have stopped reading, which must not hold us.
    pub async fn refuse(&mut self, error: Error) -> Gone {
        reply::error(&mut self.output, "FATAL", &error);
        let env = self.env.clone();
        let sent = env.timeout(std::time::Duration::from_secs(1), async {
            self.flush().await?;
            Ok::<(), Gone>(self.stream.shutdown().await?)
        });
        match sent.await {
            Some(Ok(())) => Gone::Refused(error),
            _ => Gone::Closed,
        }
    }

    /// Runs `work` while watching the client: one that is gone has nobody to answer to, so the
    /// work is dropped, as it is when a shutdown's grace ends. A commit in it goes on all the same:
    /// [`Session::unfinished_commit`]. What the client sends meanwhile waits in the input, up to a
    /// bound.
    ///
    /// [`Session::unfinished_commit`]: crate::session::Session::unfinished_commit
    pub async fn attend<T>(&mut self, work: impl Future<Output = T>) -> Flow<T> {
        let mut work = pin!(work);
        loop {
            if self.input.len() >= READ_AHEAD_BYTES {
                return Ok(work.await);
            }
            self.input.reserve(4 * 1024);
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                n = self.stream.read_buf(&mut self.input) => if n? == 0 {
                    return Err(Gone::Closed);
                },
                _ = stopped(&mut self.shutdown) => {
                    return match self.env.timeout(self.grace, work).await {
                        Some(done) => Ok(done),
                        None => Err(Gone::Refused(shutting_down())),
                    };
                }
            }
        }
    }
}

/// A stream whose first bytes have been read already.
struct Begun {
    begin: BytesMut,
    rest: Stream,
}

impl AsyncRead for Begun {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.begin.is_empty() {
            return Pin::new(&mut self.rest).poll_read(cx, into);
        }
        let n = self.begin.len().min(into.remaining());
        into.put_slice(&self.begin.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Begun {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.rest).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.rest).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.rest).poll_shutdown(cx)
    }
}

async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    if shutdown.wait_for(|stop| *stop).await.is_err() {
        // Nobody is left who could stop us.
        std::future::pending::<()>().await;
    }
}
