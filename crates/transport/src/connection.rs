//! The asking side: one peer, one connection per priority, opened when first needed.

use crate::counters::add;
use crate::frame::{Broken, Frame, PAYLOAD_BYTES_MAX, Read, Reader, Shape, Writer};
use crate::inner::Inner;
use crate::{Error, MessageKind, Priority};
use base::env::{Instant, Stream};
use base::{Env, NodeId};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot};

/// Frames that may wait to be written on one connection.
pub(crate) const QUEUE_FRAMES: usize = 4096;
/// A batch of frames is written once it holds this much.
const BATCH_BYTES: usize = 256 * 1024;
/// How long opening a connection, greeting included, may take.
pub(crate) const OPEN_MAX: Duration = Duration::from_secs(2);
/// A connection is given up when for this long after a deadline nothing at all has come back, not even
/// [`Shape::Late`]: the network may be cut in a way that TCP takes minutes to notice.
const SILENCE_MAX: Duration = Duration::from_secs(1);
/// After a failed attempt, requests fail at once for this long.
const PAUSE: Duration = Duration::from_millis(50);

pub(crate) struct Peer {
    node: NodeId,
    pub(crate) address: SocketAddr,
    lanes: [tokio::sync::Mutex<Lane>; 3],
}

#[derive(Default)]
struct Lane {
    open: Option<Arc<Connection>>,
    failed: Option<(Instant, String)>,
}

struct Connection {
    requests: mpsc::Sender<Queued>,
    waiting: Arc<Mutex<Waiting>>,
    /// Ends the reading task of a connection that is given up.
    given_up: Arc<Notify>,
}

#[derive(Default)]
struct Waiting {
    next_request: u64,
    n_received: u64,
    /// A watch waits to see whether anything comes back.
    is_watched: bool,
    closed: Option<String>,
    replies: HashMap<u64, oneshot::Sender<Frame>>,
}

impl Waiting {
    fn close(&mut self, reason: String) {
        self.closed.get_or_insert(reason);
        self.replies.clear();
    }
}

impl Peer {
    pub(crate) fn new(node: NodeId, address: SocketAddr) -> Peer {
        Peer { node, address, lanes: Default::default() }
    }

    pub(crate) async fn call(
        &self,
        inner: &Arc<Inner>,
        kind: MessageKind,
        deadline: Duration,
        payload: Bytes,
    ) -> Result<Bytes, Error> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(Error::TooLarge { bytes: payload.len(), max: PAYLOAD_BYTES_MAX });
        }
        let mut asked_on = None;
        let asked = self.ask(inner, kind, deadline, payload, &mut asked_on);
        match inner.env.timeout(deadline, asked).await {
            Some(answer) => answer,
            None => {
                add(&inner.counters.n_deadlines_passed, 1);
                if let Some((connection, n_received)) = asked_on {
                    watch(inner, &connection, n_received);
                }
                Err(Error::Deadline { node: self.node, after: deadline })
            }
        }
    }

    async fn ask(
        &self,
        inner: &Arc<Inner>,
        kind: MessageKind,
        deadline: Duration,
        payload: Bytes,
        asked_on: &mut Option<(Arc<Connection>, u64)>,
    ) -> Result<Bytes, Error> {
        let connection = self.connection(inner, kind.priority()).await?;
        let (sender, reply) = oneshot::channel();
        let request = {
            let mut waiting = connection.waiting.lock();
            if let Some(reason) = &waiting.closed {
                return Err(self.unreachable(reason));
            }
            waiting.next_request += 1;
            let request = waiting.next_request;
            waiting.replies.insert(request, sender);
            *asked_on = Some((connection.clone(), waiting.n_received));
            request
        };
        let _forget = Forget { waiting: &connection.waiting, request };
        let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
        let frame =
            Frame { shape: Shape::Request, kind: kind.number(), request, deadline_ms, payload };
        if connection.requests.send(Queued { frame, _room: None }).await.is_err() {
            return Err(self.unreachable(&self.closed_because(&connection)));
        }
        match reply.await {
            Ok(frame) if frame.shape == Shape::NoHandler => {
                Err(Error::NoHandler { node: self.node, kind })
            }
            // The deadline is about to pass on this side too.
            Ok(frame) if frame.shape == Shape::Late => std::future::pending().await,
            Ok(frame) => Ok(frame.payload),
            Err(_) => Err(self.unreachable(&self.closed_because(&connection))),
        }
    }

    fn closed_because(&self, connection: &Connection) -> String {
        let closed = connection.waiting.lock().closed.clone();
        closed.unwrap_or_else(|| "the connection was closed".into())
    }

    fn unreachable(&self, reason: &str) -> Error {
        Error::Unreachable { node: self.node, reason: reason.into() }
    }

    async fn connection(
        &self,
        inner: &Arc<Inner>,
        priority: Priority,
    ) -> Result<Arc<Connection>, Error> {
        let mut lane = self.lanes[priority.index()].lock().await;
        if let Some(connection) = &lane.open {
            if connection.waiting.lock().closed.is_none() {
                return Ok(connection.clone());
            }
            lane.open = None;
        }
        let now = inner.env.now();
        if let Some((at, reason)) = &lane.failed
            && now < *at + PAUSE
        {
            return Err(self.unreachable(reason));
        }
        // Boxed: it is large and seldom needed, and every call's future carries it.
        let opened = inner.env.timeout(OPEN_MAX, Box::pin(self.open(inner, priority))).await;
        match opened.unwrap_or_else(|| Err("connecting took too long".into())) {
            Ok(connection) => {
                let connection = Arc::new(connection);
                *lane = Lane { open: Some(connection.clone()), failed: None };
                Ok(connection)
            }
            Err(reason) => {
                lane.failed = Some((inner.env.now(), reason.clone()));
                Err(self.unreachable(&reason))
            }
        }
    }

    async fn open(&self, inner: &Arc<Inner>, priority: Priority) -> Result<Connection, String> {
        let text = |error: std::io::Error| inner.explain(&error);
        let stream = inner.env.net().connect(self.address).await.map_err(text)?;
        let (stream, name): (Stream, Option<Arc<str>>) = match &inner.tls {
            Some(tls) => {
                let known = tls.connect(stream, self.address.ip()).await;
                let (stream, name) = known.inspect_err(|reason| inner.say(reason))?;
                (stream, Some(name))
            }
            None => (stream, None),
        };
        let (mut read, mut write) = tokio::io::split(stream);
        let mut writer = Writer::default();
        let mut out = BytesMut::new();
        writer.write(&mut out, &hello(inner, priority, self.node));
        write.write_all(&out).await.map_err(text)?;
        let mut reader = Reader::default();
        let mut input = BytesMut::new();
        let answer = next_frame(inner, &mut read, &mut reader, &mut input).await?;
        let shown = name.as_deref().map(|name| (name, self.address.ip()));
        check_hello(inner, &answer, Some(self.node), shown)?;
        add(&inner.counters.n_connections_opened, 1);

        let (requests, queue) = mpsc::channel(QUEUE_FRAMES);
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let given_up = Arc::new(Notify::new());
        let connection =
            Connection { requests, waiting: waiting.clone(), given_up: given_up.clone() };
        let writing = waiting.clone();
        let for_writer = inner.clone();
        inner.env.spawn("transport writer", async move {
            let ended = write_frames(&for_writer, queue, writer, write).await;
            writing.lock().close(ended);
        });
        let for_reader = inner.clone();
        inner.env.spawn("transport reader", async move {
            let receiving = async {
                loop {
                    match next_frame(&for_reader, &mut read, &mut reader, &mut input).await {
                        Ok(frame) => {
                            let reply = {
                                let mut waiting = waiting.lock();
                                waiting.n_received += 1;
                                waiting.replies.remove(&frame.request)
                            };
                            // A reply without a waiting request came after its deadline.
                            if let Some(reply) = reply {
                                drop(reply.send(frame));
                            }
                        }
                        Err(reason) => break reason,
                    }
                }
            };
            let reason = tokio::select! {
                reason = receiving => reason,
                () = given_up.notified() => "nothing came back over it".into(),
            };
            waiting.lock().close(reason);
        });
        Ok(connection)
    }
}

/// A deadline has passed; before its request was sent, `n_received` frames had come. Gives the connection
/// up unless a frame comes soon.
fn watch(inner: &Arc<Inner>, connection: &Arc<Connection>, n_received: u64) {
    {
        let mut waiting = connection.waiting.lock();
        if waiting.n_received != n_received || std::mem::replace(&mut waiting.is_watched, true) {
            return;
        }
    }
    let (inner, connection) = (inner.clone(), connection.clone());
    inner.env.clone().spawn("transport watch", async move {
        inner.env.sleep(SILENCE_MAX).await;
        let mut waiting = connection.waiting.lock();
        waiting.is_watched = false;
        if waiting.n_received == n_received && waiting.closed.is_none() {
            add(&inner.counters.n_connections_given_up, 1);
            waiting.close("nothing came back over it".into());
            connection.given_up.notify_one();
        }
    });
}

/// Takes a request off the waiting list, however its future ends.
struct Forget<'a> {
    waiting: &'a Mutex<Waiting>,
    request: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.waiting.lock().replies.remove(&self.request);
    }
}

/// The protocol number. A change of a frame, of a message or of a type in a message raises it: see FORMAT.md.
const VERSION: u32 = 5;

pub(crate) fn hello(inner: &Inner, priority: Priority, to: NodeId) -> Frame {
    let mut payload = BytesMut::new();
    payload.put_u32_le(VERSION);
    payload.put_u64_le(inner.identity.cluster);
    payload.put_u64_le(inner.identity.node.0);
    payload.put_u64_le(to.0);
    payload.put_u64_le(inner.identity.boot);
    let payload = payload.freeze();
    Frame { shape: Shape::Hello, kind: priority.index() as u8, request: 0, deadline_ms: 0, payload }
}

/// The speaker's id, if this node may talk to it. `expected`: the node that this side meant to reach.
/// `shown`: the name in the speaker's certificate, and where the speaker is.
pub(crate) fn check_hello(
    inner: &Inner,
    frame: &Frame,
    expected: Option<NodeId>,
    shown: Option<(&str, IpAddr)>,
) -> Result<NodeId, String> {
    let mut payload = frame.payload.clone();
    if frame.shape != Shape::Hello || payload.len() != 36 {
        return Err("the other side does not greet as an Atoll node does".into());
    }
    let (version, cluster) = (payload.get_u32_le(), payload.get_u64_le());
    let (from, to) = (NodeId(payload.get_u64_le()), NodeId(payload.get_u64_le()));
    let boot = payload.get_u64_le();
    let me = inner.identity.node;
    if version != VERSION {
        return Err(format!("node {from} speaks protocol {version}, this node speaks {VERSION}"));
    }
    // A node that is not yet a member belongs to no cluster.
    let joining = (from == ANYONE && cluster == 0) || (me == ANYONE && inner.identity.cluster == 0);
    if cluster != inner.identity.cluster && !joining {
        return Err(format!("node {from} belongs to another cluster"));
    }
    if to != me && to != ANYONE {
        return Err(format!("node {from} looks for node {to}, this is node {me}"));
    }
    match expected {
        Some(expected) if expected != from && expected != ANYONE => {
            Err(format!("node {from} now listens there, not node {expected}"))
        }
        _ => {
            if let Some((name, at)) = shown
                && from != ANYONE
                && let Err(reason) = inner.may_speak(from, name)
            {
                let reason = format!("{at} is refused: {reason}");
                inner.say(&reason);
                return Err(reason);
            }
            inner.heard_from(from, boot);
            Ok(from)
        }
    }
}

/// Means "the node that listens there, whichever it is" in a greeting; also the id of newcomers and supervisors.
pub(crate) const ANYONE: NodeId = NodeId(0);

/// The next good frame; the error says why there will be none. Repetitions are counted and dropped.
pub(crate) async fn next_frame(
    inner: &Inner,
    read: &mut (impl AsyncRead + Unpin),
    reader: &mut Reader,
    input: &mut BytesMut,
) -> Result<Frame, String> {
    loop {
        match reader.read(input) {
            Ok(Read::Frame(frame)) => {
                add(&inner.counters.n_frames_received, 1);
                return Ok(frame);
            }
            Ok(Read::Repeated) => {
                add(&inner.counters.n_frames_repeated, 1);
                continue;
            }
            Ok(Read::Incomplete) => {}
            Err(broken) => {
                let counter = match broken {
                    Broken::Gap { .. } => &inner.counters.n_frames_out_of_order,
                    _ => &inner.counters.n_frames_corrupt,
                };
                add(counter, 1);
                return Err(broken.to_string());
            }
        }
        input.reserve(64 * 1024);
        match read.read_buf(input).await {
            Ok(0) => return Err("the other side closed the connection".into()),
            Ok(n) => add(&inner.counters.n_bytes_received, n as u64),
            Err(error) => return Err(inner.explain(&error)),
        }
    }
}

/// A frame that waits to be written.
pub(crate) struct Queued {
    pub(crate) frame: Frame,
    /// What it takes of the room for answers, until it is written.
    pub(crate) _room: Option<OwnedSemaphorePermit>,
}

/// Writes the frames of the queue, as many at once as are there. Returns the reason why it ended.
pub(crate) async fn write_frames(
    inner: &Inner,
    mut queue: mpsc::Receiver<Queued>,
    mut writer: Writer,
    mut write: impl AsyncWrite + Unpin,
) -> String {
    let mut out = BytesMut::new();
    let mut under_way: Vec<Queued> = Vec::new();
    while let Some(next) = queue.recv().await {
        writer.write(&mut out, &next.frame);
        under_way.push(next);
        let mut n_frames = 1;
        while out.len() < BATCH_BYTES
            && let Ok(next) = queue.try_recv()
        {
            writer.write(&mut out, &next.frame);
            under_way.push(next);
            n_frames += 1;
        }
        inner.counters.n_frames_sent.fetch_add(n_frames, Ordering::Relaxed);
        add(&inner.counters.n_bytes_sent, out.len() as u64);
        let written = async {
            write.write_all(&out).await?;
            write.flush().await
        };
        if let Err(error) = written.await {
            return error.to_string();
        }
        out.clear();
        under_way.clear();
        if out.capacity() > 4 * BATCH_BYTES {
            out = BytesMut::new();
        }
    }
    "this side closed the connection".into()
}

/// Waits for `future` as long as a greeting may take.
pub(crate) async fn within_greeting<T>(
    env: &Env,
    future: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    env.timeout(OPEN_MAX, future).await.unwrap_or_else(|| Err("the greeting took too long".into()))
}
