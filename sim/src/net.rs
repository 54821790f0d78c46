//! The network between the simulated hosts: byte streams as TCP carries them over bad cables.
//!
//! What is sent while a link is cut is not lost: TCP sends it again when the link is back, after
//! its own ever longer pauses. What TCP cannot mend shows as a reset. Between peers, whose frames
//! carry checksums and numbers, whole frames are also flipped, repeated, swapped, dropped and cut
//! short, as a broken switch or a bug below would do it.
//!
//! Each direction of a connection is a queue of pieces with the true time at which they arrive;
//! the reader's own timer brings it there, so nothing here runs by itself.

use crate::machine::{clock, threads};
use base::env::{Listener, Net, Pending, Stream};
use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use transport::MessageKind;
use transport::frame::Shape;

const MS: u64 = 1_000_000;
/// Bytes under way in one direction before the sender waits.
const BUFFER_BYTES: usize = 256 * 1024;
/// TCP's first pause before it sends again, and its longest that matters here.
const RESEND_NS: (u64, u64) = (200 * MS, 4_000 * MS);
/// How long a connection's opening waits before it knocks again.
const KNOCK_AGAIN: Duration = Duration::from_secs(1);

/// How a link between two hosts is, in one direction.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub latency_ns: (u64, u64),
    /// Packets of a hundred that are lost, each costing one of TCP's pauses.
    pub loss_percent: u64,
    pub is_cut: bool,
    /// Frames of ten thousand that arrive damaged, where frames are checked.
    pub n_damaged: u64,
}

/// What happened to frames and connections, for the run's statistics.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub n_connections: u64,
    pub n_pieces: u64,
    /// Of frames that carry replicas' states.
    pub n_snapshot_bytes: u64,
    pub n_flipped: u64,
    pub n_repeated: u64,
    pub n_swapped: u64,
    pub n_dropped: u64,
    pub n_truncated: u64,
    pub n_reset: u64,
}

struct State {
    rng: SmallRng,
    links: BTreeMap<(IpAddr, IpAddr), Link>,
    /// Latency between hosts that no entry of `links` names.
    usual: Link,
    listeners: BTreeMap<SocketAddr, Arc<Mutex<Waiting>>>,
    pipes: Vec<Weak<Mutex<Pipe>>>,
    /// Hosts without power: nothing goes in or out.
    dark: BTreeSet<IpAddr>,
    /// Ports where peers speak in checked frames.
    framed_ports: BTreeSet<u16>,
    counts: Counts,
    watched: Option<Watched>,
}

/// Frames of one kind that were sent from one host to another since somebody looks.
#[derive(Clone, Copy, Debug)]
struct Watched {
    from: IpAddr,
    to: IpAddr,
    kind: MessageKind,
    n: u64,
}

#[derive(Clone)]
pub struct SimNet {
    state: Arc<Mutex<State>>,
}

/// Connections that nobody has accepted yet.
#[derive(Default)]
struct Waiting {
    arrivals: VecDeque<(Stream, SocketAddr)>,
    waker: Option<Waker>,
    is_closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Closed,
    Reset,
}

/// One direction of a connection.
struct Pipe {
    from: IpAddr,
    to: IpAddr,
    queue: VecDeque<(u64, Bytes)>,
    n_bytes: usize,
    last_due_ns: u64,
    /// Sent while the link was cut.
    held: Vec<Bytes>,
    n_held: usize,
    end: Option<(u64, End)>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// The beginning of a frame whose rest is not written yet; none where frames are not known.
    partial: Option<BytesMut>,
    /// A frame that lets the next one pass.
    overtaken: Option<Bytes>,
}

impl State {
    fn link(&self, from: IpAddr, to: IpAddr) -> Link {
        let mut link = self.links.get(&(from, to)).copied().unwrap_or(self.usual);
        link.is_cut |= self.dark.contains(&from) || self.dark.contains(&to);
        link
    }

    fn between(&mut self, (least, most): (u64, u64)) -> u64 {
        if most > least { self.rng.random_range(least..=most) } else { least }
    }

    /// How long a piece is on its way.
    fn delay_ns(&mut self, link: &Link) -> u64 {
        let mut delay = self.between(link.latency_ns);
        let mut pause = RESEND_NS.0;
        while link.loss_percent > 0 && self.rng.random_range(0..100) < link.loss_percent {
            delay += pause;
            pause = (pause * 2).min(RESEND_NS.1);
        }
        delay
    }

    fn send(&mut self, pipe: &mut Pipe, bytes: Bytes) {
        let link = self.link(pipe.from, pipe.to);
        if link.is_cut {
            pipe.n_held += bytes.len();
            pipe.held.push(bytes);
            return;
        }
        self.counts.n_pieces += 1;
        pipe.n_bytes += bytes.len();
        let due = clock::now_ns() + self.delay_ns(&link);
        // A stream keeps its order.
        pipe.last_due_ns = due.max(pipe.last_due_ns);
        pipe.queue.push_back((pipe.last_due_ns, bytes));
        wake(&mut pipe.reader);
    }

    /// Sends one whole frame, unless chance wills otherwise.
    fn send_frame(&mut self, pipe: &mut Pipe, frame: Bytes) {
        if is_snapshot(&frame) {
            self.counts.n_snapshot_bytes += frame.len() as u64;
        }
        if let Some(watched) = &mut self.watched
            && (watched.from, watched.to) == (pipe.from, pipe.to)
            && kind_of(&frame) == Some(watched.kind.number())
        {
            watched.n += 1;
        }
        let n_damaged = self.link(pipe.from, pipe.to).n_damaged;
        if n_damaged == 0 || self.rng.random_range(0..10_000) >= n_damaged {
            self.send(pipe, frame);
            if let Some(late) = pipe.overtaken.take() {
                self.send(pipe, late);
            }
            return;
        }
        match self.rng.random_range(0..5) {
            0 => {
                let mut flipped = BytesMut::from(&frame[..]);
                let at = self.rng.random_range(0..flipped.len());
                flipped[at] ^= 1 << self.rng.random_range(0..8);
                self.counts.n_flipped += 1;
                self.send(pipe, flipped.freeze());
            }
            1 => {
                self.counts.n_repeated += 1;
                self.send(pipe, frame.clone());
                self.send(pipe, frame);
            }
            2 => {
                self.counts.n_swapped += 1;
                if let Some(late) = pipe.overtaken.replace(frame) {
                    self.send(pipe, late);
                }
            }
            3 => self.counts.n_dropped += 1,
            _ => {
                self.counts.n_truncated += 1;
                let len = self.rng.random_range(0..frame.len());
                self.send(pipe, frame.slice(..len));
            }
        }
    }

    fn live_pipes(&mut self) -> Vec<Arc<Mutex<Pipe>>> {
        let live: Vec<_> = self.pipes.iter().filter_map(Weak::upgrade).collect();
        self.pipes = live.iter().map(Arc::downgrade).collect();
        live
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

impl SimNet {
    pub fn new(seed: u64, latency_ns: (u64, u64)) -> SimNet {
        SimNet {
            state: Arc::new(Mutex::new(State {
                rng: SmallRng::seed_from_u64(seed),
                links: BTreeMap::new(),
                usual: Link { latency_ns, loss_percent: 0, is_cut: false, n_damaged: 0 },
                listeners: BTreeMap::new(),
                pipes: Vec::new(),
                dark: BTreeSet::new(),
                framed_ports: BTreeSet::new(),
                counts: Counts::default(),
                watched: None,
            })),
        }
    }

    /// The network as the host at `ip` sees it.
    pub fn of(&self, ip: IpAddr) -> HostNet {
        HostNet { ip, net: self.clone() }
    }

    /// From now on connections to this port carry frames, which can be damaged one by one.
    pub fn know_frames_at(&self, port: u16) {
        self.state.lock().framed_ports.insert(port);
    }

    pub fn counts(&self) -> Counts {
        self.state.lock().counts
    }

    /// Changes the link from one host to another, in this direction only.
    pub fn set_link(&self, from: IpAddr, to: IpAddr, change: impl FnOnce(&mut Link)) {
        let mut state = self.state.lock();
        let mut link = state.links.get(&(from, to)).copied().unwrap_or(state.usual);
        change(&mut link);
        state.links.insert((from, to), link);
        resend(&mut state);
    }

    /// From now on counts questions and answers of this kind on their way from one host to another.
    pub fn watch(&self, from: IpAddr, to: IpAddr, kind: MessageKind) {
        self.state.lock().watched = Some(Watched { from, to, kind, n: 0 });
    }

    pub fn n_watched(&self) -> u64 {
        self.state.lock().watched.map_or(0, |watched| watched.n)
    }

    /// Everything as on the first day.
    pub fn heal(&self) {
        let mut state = self.state.lock();
        let usual = state.usual;
        for link in state.links.values_mut() {
            *link = Link { latency_ns: link.latency_ns, ..usual };
        }
        resend(&mut state);
    }

    /// Forgets what was set for single links, latencies too.
    pub fn heal_all(&self) {
        let mut state = self.state.lock();
        state.links.clear();
        resend(&mut state);
    }

    /// The host's power goes or comes back. Its connections are gone when it comes back.
    pub fn set_power(&self, ip: IpAddr, is_on: bool) {
        let mut state = self.state.lock();
        if is_on {
            state.dark.remove(&ip);
            // Who still waits for the old host is told by the new one that it knows nothing.
            end_all(&mut state, |pipe| pipe.from == ip || pipe.to == ip, End::Reset);
        } else {
            state.dark.insert(ip);
            let gone = take_listeners(&mut state, |at| at.ip() == ip);
            drop(state);
            drop(gone);
        }
    }

    /// A process on the host died: its system closes its connections and listeners.
    pub fn process_died(&self, ip: IpAddr, ports: &[u16]) {
        let mut state = self.state.lock();
        let gone = take_listeners(&mut state, |at| at.ip() == ip && ports.contains(&at.port()));
        end_all(&mut state, |pipe| pipe.from == ip || pipe.to == ip, End::Reset);
        drop(state);
        drop(gone);
    }

    /// Resets all connections between two hosts.
    pub fn reset(&self, a: IpAddr, b: IpAddr) {
        let mut state = self.state.lock();
        let joins = |pipe: &Pipe| (pipe.from, pipe.to) == (a, b) || (pipe.from, pipe.to) == (b, a);
        state.counts.n_reset += 1;
        end_all(&mut state, joins, End::Reset);
    }
}

/// Takes listeners off the network. What they had not accepted locks the network when it is
/// dropped, so that is for the caller to do.
fn take_listeners(
    state: &mut State,
    is_gone: impl Fn(&SocketAddr) -> bool,
) -> Vec<Arc<Mutex<Waiting>>> {
    state.listeners.extract_if(.., |at, _| is_gone(at)).map(|(_, waiting)| waiting).collect()
}

/// What was held back goes on its way where links are whole again.
fn resend(state: &mut State) {
    for pipe in state.live_pipes() {
        let mut pipe = pipe.lock();
        if pipe.held.is_empty() || state.link(pipe.from, pipe.to).is_cut {
            continue;
        }
        let held = std::mem::take(&mut pipe.held);
        pipe.n_held = 0;
        pipe.last_due_ns = pipe.last_due_ns.max(clock::now_ns() + state.between(RESEND_NS));
        held.into_iter().for_each(|bytes| state.send(&mut pipe, bytes));
    }
}

fn end_all(state: &mut State, chosen: impl Fn(&Pipe) -> bool, end: End) {
    for pipe in state.live_pipes() {
        let mut pipe = pipe.lock();
        if chosen(&pipe) && pipe.end.is_none_or(|(_, known)| known == End::Closed) {
            let link = state.link(pipe.from, pipe.to);
            let at = clock::now_ns() + state.delay_ns(&link);
            pipe.queue.clear();
            pipe.held.clear();
            (pipe.n_bytes, pipe.n_held) = (0, 0);
            pipe.end = Some((at, end));
            wake(&mut pipe.reader);
            wake(&mut pipe.writer);
        }
    }
}

/// One host's view of the network.
#[derive(Clone)]
pub struct HostNet {
    ip: IpAddr,
    net: SimNet,
}

async fn sleep_ns(ns: u64) {
    tokio::time::sleep(Duration::from_nanos(ns)).await;
}

impl HostNet {
    /// A round trip; none while the way is cut.
    fn round_trip_ns(&self, to: IpAddr) -> Option<u64> {
        let mut state = self.net.state.lock();
        let (there, back) = (state.link(self.ip, to), state.link(to, self.ip));
        if there.is_cut || back.is_cut {
            return None;
        }
        Some(state.delay_ns(&there) + state.delay_ns(&back))
    }

    async fn open(&self, to: SocketAddr) -> io::Result<Stream> {
        loop {
            match self.round_trip_ns(to.ip()) {
                Some(ns) => {
                    sleep_ns(ns).await;
                    break;
                }
                None => tokio::time::sleep(KNOCK_AGAIN).await,
            }
        }
        let mut state = self.net.state.lock();
        let waiting = state.listeners.get(&to).cloned().filter(|at| !at.lock().is_closed);
        let Some(waiting) = waiting else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        state.counts.n_connections += 1;
        let is_framed = state.framed_ports.contains(&to.port());
        let mut pipe = |from: IpAddr, to: IpAddr| {
            let pipe = Arc::new(Mutex::new(Pipe {
                from,
                to,
                queue: VecDeque::new(),
                n_bytes: 0,
                last_due_ns: 0,
                held: Vec::new(),
                n_held: 0,
                end: None,
                reader: None,
                writer: None,
                partial: is_framed.then(BytesMut::new),
                overtaken: None,
            }));
            state.pipes.push(Arc::downgrade(&pipe));
            pipe
        };
        let (there, back) = (pipe(self.ip, to.ip()), pipe(to.ip(), self.ip));
        let end = |reads: &Arc<Mutex<Pipe>>, writes: &Arc<Mutex<Pipe>>| {
            Box::new(Connected {
                net: self.net.clone(),
                reads: reads.clone(),
                writes: writes.clone(),
                timer: None,
            })
        };
        let mut waiting = waiting.lock();
        waiting.arrivals.push_back((end(&there, &back), SocketAddr::new(self.ip, 0)));
        wake(&mut waiting.waker);
        Ok(end(&back, &there))
    }
}

impl Net for HostNet {
    fn connect(&self, to: SocketAddr) -> Pending<'_, Stream> {
        Box::pin(self.open(to))
    }

    fn listen(&self, at: SocketAddr) -> Pending<'_, Box<dyn Listener>> {
        Box::pin(async move {
            let mut state = self.net.state.lock();
            if state.listeners.get(&at).is_some_and(|held| !held.lock().is_closed) {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            let waiting = Arc::new(Mutex::new(Waiting::default()));
            let old = state.listeners.insert(at, waiting.clone());
            drop(state);
            drop(old);
            Ok(Box::new(Acceptor { at, waiting }) as Box<dyn Listener>)
        })
    }
}

struct Acceptor {
    at: SocketAddr,
    waiting: Arc<Mutex<Waiting>>,
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock();
        waiting.is_closed = true;
        // Who was not accepted is told.
        let arrivals = std::mem::take(&mut waiting.arrivals);
        drop(waiting);
        drop(arrivals);
    }
}

impl Listener for Acceptor {
    fn local(&self) -> SocketAddr {
        self.at
    }

    fn accept(&mut self) -> Pending<'_, (Stream, SocketAddr)> {
        Box::pin(std::future::poll_fn(|cx| {
            let mut waiting = self.waiting.lock();
            match waiting.arrivals.pop_front() {
                Some(arrival) => Poll::Ready(Ok(arrival)),
                None => {
                    waiting.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        }))
    }
}

/// One end of a connection.
struct Connected {
    net: SimNet,
    reads: Arc<Mutex<Pipe>>,
    writes: Arc<Mutex<Pipe>>,
    /// Runs until the next piece arrives.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Connected {
    /// Waits for the true time `at_ns`; false: it is there.
    fn waits(&mut self, at_ns: u64, cx: &mut Context<'_>) -> bool {
        let now = clock::now_ns();
        if at_ns <= now {
            return false;
        }
        let mut timer = Box::pin(tokio::time::sleep(Duration::from_nanos(at_ns - now)));
        if timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        self.timer = Some(timer);
        true
    }
}

impl AsyncRead for Connected {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let reads = self.reads.clone();
        let mut pipe = reads.lock();
        pipe.reader = Some(cx.waker().clone());
        let next = pipe.queue.front().map(|(due, _)| *due);
        let Some(due) = next.or(pipe.end.map(|(due, _)| due)) else { return Poll::Pending };
        if self.waits(due, cx) {
            return Poll::Pending;
        }
        let Some((_, bytes)) = pipe.queue.front_mut() else {
            return match pipe.end {
                Some((_, End::Reset)) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                _ => Poll::Ready(Ok(())),
            };
        };
        let n = bytes.len().min(buf.remaining());
        buf.put_slice(&bytes[..n]);
        threads::note(7, u64::from(crc32c::crc32c(&bytes[..n])));
        bytes.advance(n);
        if bytes.is_empty() {
            pipe.queue.pop_front();
        }
        pipe.n_bytes = pipe.n_bytes.saturating_sub(n);
        wake(&mut pipe.writer);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connected {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.net.state.lock();
        let mut pipe = self.writes.lock();
        if let Some((due, end)) = pipe.end {
            let is_known = end == End::Reset && clock::now_ns() >= due;
            // Before the news has come, what is written is lost on the way.
            return if is_known || end == End::Closed {
                Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
            } else {
                Poll::Ready(Ok(bytes.len()))
            };
        }
        if pipe.n_bytes + pipe.n_held >= BUFFER_BYTES {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let n = bytes.len().min(BUFFER_BYTES);
        let piece = &bytes[..n];
        match pipe.partial.take() {
            None => state.send(&mut pipe, Bytes::copy_from_slice(piece)),
            Some(mut partial) => {
                partial.extend_from_slice(piece);
                while let Some(len) = frame_len(&partial).filter(|len| *len <= partial.len()) {
                    let frame = partial.split_to(len).freeze();
                    state.send_frame(&mut pipe, frame);
                }
                pipe.partial = Some(partial);
            }
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}

impl Connected {
    fn close(&self) {
        let mut state = self.net.state.lock();
        let mut pipe = self.writes.lock();
        if pipe.end.is_none() {
            let link = state.link(pipe.from, pipe.to);
            let at = (clock::now_ns() + state.delay_ns(&link)).max(pipe.last_due_ns);
            pipe.end = Some((at, End::Closed));
            wake(&mut pipe.reader);
        }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.close();
        // Nobody reads any more: who writes is told.
        let mut pipe = self.reads.lock();
        if pipe.end.is_none() {
            pipe.end = Some((clock::now_ns(), End::Reset));
            wake(&mut pipe.writer);
        }
    }
}

/// The whole length of the frame that `bytes` begin with, as `transport::frame` lays it out.
fn frame_len(bytes: &[u8]) -> Option<usize> {
    let length = bytes.first_chunk::<4>().map(|length| u32::from_le_bytes(*length))?;
    Some(transport::frame::PREFIX_BYTES + length as usize)
}

/// Where a frame says what it is; its kind follows.
const SHAPE_AT: usize = transport::frame::PREFIX_BYTES + 8;

/// The number of the kind of message in a question or an answer. Greetings have none.
fn kind_of(frame: &[u8]) -> Option<u8> {
    let shape = *frame.get(SHAPE_AT)?;
    let is_message = shape == Shape::Request as u8 || shape == Shape::Reply as u8;
    frame.get(SHAPE_AT + 1).copied().filter(|_| is_message)
}

/// Whether a frame asks its receiver to take a piece of a replica's state.
fn is_snapshot(frame: &[u8]) -> bool {
    let asked = [Shape::Request as u8, MessageKind::RaftSnapshot.number()];
    frame.get(SHAPE_AT..SHAPE_AT + 2) == Some(&asked)
}
