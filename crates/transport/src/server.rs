//! The answering side.

use crate::connection::{
    ANYONE, QUEUE_FRAMES, Queued, check_hello, hello, next_frame, within_greeting, write_frames,
};
use crate::counters::add;
use crate::frame::{Frame, Reader, Shape, Writer};
use crate::inner::Inner;
use crate::{Error, MessageKind, Priority, Speaker};
use base::env::Stream;
use bytes::{Bytes, BytesMut};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Semaphore, mpsc};

/// Requests of one connection that may be under way; reading pauses at the limit.
const REQUESTS_MAX: usize = 1024;
/// A pause after a failed accept (out of file descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(crate) async fn serve(inner: Arc<Inner>, at: SocketAddr) -> Result<SocketAddr, Error> {
    let listening = inner.env.net().listen(at).await;
    let mut listener = listening.map_err(|source| Error::Listen { at, source })?;
    let local = listener.local();
    let env = inner.env.clone();
    env.clone().spawn("transport listener", async move {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    let inner = inner.clone();
                    env.spawn("transport connection", async move {
                        if let Err(reason) = answer(&inner, stream, from.ip()).await {
                            tracing::debug!(reason, "a connection ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    env.sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    Ok(local)
}

async fn answer(inner: &Arc<Inner>, stream: Stream, at: IpAddr) -> Result<(), String> {
    let greeting = async {
        let text = |error: std::io::Error| inner.explain(&error);
        let (stream, name): (Stream, Option<Arc<str>>) = match &inner.tls {
            Some(tls) => {
                let (stream, name) = tls.accept(stream, at, |reason| inner.say(reason)).await?;
                (stream, Some(name))
            }
            None => (stream, None),
        };
        let (mut read, mut write) = tokio::io::split(stream);
        let mut reader = Reader::default();
        let mut input = BytesMut::new();
        let first = next_frame(inner, &mut read, &mut reader, &mut input).await?;
        let from = check_hello(inner, &first, None, name.as_deref().map(|name| (name, at)))?;
        let priority = Priority::from_index(first.kind).ok_or("an unknown priority")?;
        let mut writer = Writer::default();
        let mut out = BytesMut::new();
        writer.write(&mut out, &hello(inner, priority, from));
        write.write_all(&out).await.map_err(text)?;
        Ok((Speaker { node: from, name }, read, reader, input, write, writer))
    };
    let (from, mut read, mut reader, mut input, write, writer) =
        within_greeting(&inner.env, greeting).await.inspect_err(|_| {
            add(&inner.counters.n_connections_refused, 1);
        })?;
    add(&inner.counters.n_connections_accepted, 1);

    let (replies, queue) = mpsc::channel(QUEUE_FRAMES);
    let for_writer = inner.clone();
    inner.env.spawn("transport replies", async move {
        write_frames(&for_writer, queue, writer, write).await;
    });
    let places = Arc::new(Semaphore::new(REQUESTS_MAX));
    let bytes_max = inner.env.limits().reply_bytes.min(Semaphore::MAX_PERMITS);
    let room = Arc::new(Semaphore::new(bytes_max));
    loop {
        let request = next_frame(inner, &mut read, &mut reader, &mut input).await?;
        if request.shape != Shape::Request {
            return Err("only requests are expected here".into());
        }
        let place = places.clone().acquire_owned().await.map_err(|error| error.to_string())?;
        let (replies, room) = (replies.clone(), room.clone());
        let kind = MessageKind::from_number(request.kind);
        // A sender without a node id may ask to join, and may report a death, but nothing else.
        let kind = kind.filter(|kind| from.node != ANYONE || kind.is_for_strangers());
        let handler = kind.and_then(|kind| inner.handlers.read().get(&kind).cloned());
        let env = match kind {
            Some(kind) => inner.env.on(kind.runtime()),
            None => inner.env.clone(),
        };
        let from = from.clone();
        env.clone().spawn("transport request", async move {
            let Frame { kind, request, deadline_ms, payload, .. } = request;
            let (shape, payload) = match handler {
                None => (Shape::NoHandler, Bytes::new()),
                Some(handler) => {
                    let deadline = Duration::from_millis(u64::from(deadline_ms));
                    match env.timeout(deadline, handler.handle(from, payload)).await {
                        Some(answer) => (Shape::Reply, answer),
                        None => (Shape::Late, Bytes::new()),
                    }
                }
            };
            let reply = Frame { shape, kind, request, deadline_ms: 0, payload };
            // One that is larger than all the room goes alone.
            let n_bytes = u32::try_from(reply.payload.len().min(bytes_max)).unwrap_or(u32::MAX);
            let Ok(room) = room.acquire_many_owned(n_bytes).await else { return };
            // If this fails the asker is gone; its own side has told it so.
            drop(replies.send(Queued { frame: reply, _room: Some(room) }).await);
            drop(place);
        });
    }
}
