//! A stream with what was read ahead of it and what is to be written. While nothing is under way
//! it holds no memory.

use super::length::Encoder;
use crate::http::failure;
use crate::http::wire::Wire;
use bytes::{Bytes, BytesMut};
use http_body::Frame;
use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// Small reads go by the stack: most messages fit, and whoever waits needs no buffer.
const SMALL_BYTES: usize = 2048;
const READ_BYTES_MAX: usize = 64 << 10;
/// Content up to this is copied behind its head; more is written from where it is.
const COPIED_BYTES_MAX: usize = 4 << 10;

/// What most heads need, with a little content behind them.
pub const HEAD_BYTES: usize = 1024;

pub struct Io {
    wire: Wire,
    /// Read, and not yet understood.
    pub input: Bytes,
    /// How much the next read may bring, by what the last ones did.
    n_expected: usize,
    /// To be written, in this order.
    pub output: Vec<u8>,
    content: Bytes,
    tail: &'static [u8],
    /// Of all three.
    n_written: usize,
    /// Of all there ever was.
    pub n_sent: u64,
    is_flushed: bool,
}

impl Io {
    pub fn new(wire: Wire, input: Bytes) -> Io {
        Io {
            wire,
            input,
            n_expected: SMALL_BYTES,
            output: Vec::new(),
            content: Bytes::new(),
            tail: b"",
            n_written: 0,
            n_sent: 0,
            is_flushed: true,
        }
    }

    /// The stream, and what was read of it and not used.
    pub fn into_parts(self) -> (Wire, Bytes) {
        (self.wire, self.input)
    }

    /// Whether nothing has come, neither bytes nor an end.
    pub fn is_quiet(&mut self) -> bool {
        if !self.input.is_empty() {
            return false;
        }
        let look = poll_fn(|cx| {
            let mut byte = [0];
            let mut buffer = ReadBuf::new(&mut byte);
            Poll::Ready(Pin::new(&mut self.wire).poll_read(cx, &mut buffer).is_pending())
        });
        // Whoever has done much in this turn would be told that nothing has come.
        let look = pin!(tokio::task::unconstrained(look));
        look.poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(true)
    }

    /// Reads what there is, once; how many bytes, none at the stream's end.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.poll_fill_with(cx, self.n_expected)
    }

    /// As [`Io::poll_fill`], where nothing is expected.
    pub fn poll_peek(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.poll_fill_with(cx, SMALL_BYTES)
    }

    fn poll_fill_with(&mut self, cx: &mut Context<'_>, n_room: usize) -> Poll<io::Result<usize>> {
        let n = if n_room <= SMALL_BYTES {
            let mut small = [MaybeUninit::uninit(); SMALL_BYTES];
            let mut buffer = ReadBuf::uninit(&mut small);
            ready!(Pin::new(&mut self.wire).poll_read(cx, &mut buffer))?;
            let filled = buffer.filled();
            match self.input.is_empty() {
                true => self.input = Bytes::copy_from_slice(filled),
                false => self.extend(filled),
            }
            filled.len()
        } else {
            // Asked for before there is anything to read, the memory would be for nothing.
            ready!(self.wire.poll_readable(cx))?;
            let mut large = BytesMut::with_capacity(n_room);
            let n = ready!(pin!(self.wire.read_buf(&mut large)).poll(cx))?;
            match self.input.is_empty() {
                true => self.input = large.freeze(),
                false => self.extend(&large),
            }
            n
        };
        if n == n_room {
            self.n_expected = (n_room * 4).min(READ_BYTES_MAX);
        } else if n < n_room / 4 {
            self.n_expected = (n_room / 2).max(SMALL_BYTES);
        }
        Poll::Ready(Ok(n))
    }

    fn extend(&mut self, more: &[u8]) {
        // Copied only where something cut from it is still in use.
        let mut whole = BytesMut::from(std::mem::take(&mut self.input));
        whole.extend_from_slice(more);
        self.input = whole.freeze();
    }

    /// What a body has next, none at its end, behind what is in `output`. There must be room. True:
    /// that was the last. It fails where the body is not as long as it says.
    pub fn put_frame(
        &mut self,
        encoder: &mut Encoder,
        frame: Option<Frame<Bytes>>,
        takes_trailers: bool,
    ) -> Result<bool, failure::Error> {
        let (is_told, is_last) = match frame.map(Frame::into_data) {
            Some(Ok(data)) if data.is_empty() => (true, false),
            Some(Ok(data)) => {
                let is_told = encoder.before(&mut self.output, data.len());
                if is_told {
                    self.put(data, encoder.after());
                }
                (is_told, false)
            }
            // What is no data is trailers.
            Some(Err(other)) => {
                let trailers = other.into_trailers().ok().filter(|_| takes_trailers);
                (encoder.end(&mut self.output, trailers.as_ref()), true)
            }
            None => (encoder.end(&mut self.output, None), true),
        };
        if is_told { Ok(is_last) } else { Err(failure::Error::NotAsTold) }
    }

    /// Content, and what stands behind it, behind what is in `output`. There must be room.
    fn put(&mut self, content: Bytes, tail: &'static [u8]) {
        if content.len() > COPIED_BYTES_MAX {
            (self.content, self.tail) = (content, tail);
        } else {
            self.output.extend_from_slice(&content);
            self.output.extend_from_slice(tail);
        }
    }

    /// Whether more can be put behind without a write in between.
    pub fn has_room(&self) -> bool {
        self.content.is_empty() && self.output.len() < COPIED_BYTES_MAX
    }

    pub fn is_written(&self) -> bool {
        self.output.is_empty() && self.content.is_empty() && self.is_flushed
    }

    /// Writes all there is.
    pub fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut n_skipped = self.n_written;
            let left = [&self.output[..], &self.content[..], self.tail].map(|part| {
                let n = n_skipped.min(part.len());
                n_skipped -= n;
                &part[n..]
            });
            let wire = Pin::new(&mut self.wire);
            let polled = match left {
                [b"", b"", b""] => break,
                [only, b"", b""] | [b"", only, b""] | [b"", b"", only] => wire.poll_write(cx, only),
                parts => wire.poll_write_vectored(cx, &parts.map(io::IoSlice::new)),
            };
            self.is_flushed = false;
            match ready!(polled)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => {
                    self.n_written += n;
                    self.n_sent += n as u64;
                }
            }
        }
        if self.n_written > 0 {
            self.output.clear();
            self.content = Bytes::new();
            self.tail = b"";
            self.n_written = 0;
        }
        if !self.is_flushed {
            // What TLS holds back is sent by its flush.
            ready!(Pin::new(&mut self.wire).poll_flush(cx))?;
            self.is_flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Gives back what memory is held, and what was to be written, if anything was.
    pub fn rest(&mut self) {
        self.output = Vec::new();
        self.content = Bytes::new();
        self.tail = b"";
        self.n_written = 0;
        self.is_flushed = true;
    }
}

/// As a stream of bytes: first what was read already.
impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.input.is_empty() {
            return Pin::new(&mut self.wire).poll_read(cx, buffer);
        }
        let n = self.input.len().min(buffer.remaining());
        buffer.put_slice(&self.input.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}
