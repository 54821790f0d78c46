//! A client's HTTP/1.1 connection: request, answer, and the next one, until it ends, is idle, or had
//! better be served elsewhere.

use crate::call::Alarms;
use crate::front::answer::{AnswerBody, Tunnel};
use crate::front::serving::{Requests, Serving};
use crate::gateway::View;
use crate::http::body::Incoming;
use crate::http::http1::io::Io;
use crate::http::http1::server::{Connection, Date, Failure};
use crate::http::http1::{self, head};
use crate::http::message::Answer;
use base::env::Env;
use http::StatusCode;
use http_body::Body;
use std::cell::Cell;
use std::future::Future;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A connection that has been idle for this long goes back, so that what serves it is given up.
const PARK_AFTER: Duration = Duration::from_secs(1);
/// How long a connection that has ended is read, where its client still sends.
const LINGER_FOR_REST: Duration = Duration::from_secs(5);

/// Why no more requests are served here.
enum Left {
    /// Between two requests.
    Between,
    Ended,
    /// It stood still for too long.
    Late,
    /// In the middle of an answer: its client must not take it for whole.
    Broken,
    /// Its client was told that it ends, and may still send.
    Told,
    /// It is no longer one of HTTP.
    Switched(Box<Tunnel>),
}

/// Serves the connection; it comes back when it is idle, or had better move.
pub async fn serve(serving: &Serving, io: Io, requests: &Requests) -> Option<Io> {
    let limits = head::Limits {
        n_bytes_max: serving.limits.header_bytes_max.max(8192),
        n_fields_max: serving.limits.n_headers_max,
    };
    let mut connection = Connection::new(io, limits);
    let left = {
        let mut exchanges = pin!(exchanges(serving, &mut connection, requests));
        let mut alarm = pin!(serving.env.sleep(PARK_AFTER));
        loop {
            tokio::select! {
                biased;
                left = exchanges.as_mut() => break left,
                () = alarm.as_mut() => {
                    let Some(left) = serving.left() else { break Left::Late };
                    if serving.pulse.is_idle(PARK_AFTER) {
                        break Left::Between;
                    }
                    alarm.set(serving.env.sleep(left.min(PARK_AFTER)));
                }
            }
        }
    };
    if matches!(left, Left::Late) && serving.pulse.has_begun() {
        // Whoever is told and still sends nothing is not waited for.
        Box::pin(refuse(serving, &mut connection, requests, &http1::Error::TooSlow.into())).await;
    }
    let io = connection.into_io()?;
    match left {
        Left::Between => return Some(io),
        Left::Broken | Left::Late => {}
        // Boxed: few need the room.
        Left::Ended => Box::pin(end(serving, io)).await,
        Left::Told => Box::pin(linger(serving, io)).await,
        Left::Switched(tunnel) => serving.gateway.tunnel(io, *tunnel),
    }
    None
}

async fn exchanges(serving: &Serving, connection: &mut Connection, requests: &Requests) -> Left {
    let (mut view, mut alarms) = (None, Alarms::default());
    loop {
        let came = poll_fn(|cx| {
            let polled = connection.poll_request(cx, || serving.pulse.read());
            match polled {
                Poll::Pending if serving.pulse.is_leaving() => Poll::Ready(Err(Left::Between)),
                // A stop is looked for and not waited for: that would cost every request.
                Poll::Pending if serving.gateway.is_stopping() && serving.pulse.is_between() => {
                    Poll::Ready(Err(Left::Ended))
                }
                polled => polled.map(Ok),
            }
        });
        let (request, body) = match came.await {
            Ok(Ok(Some(came))) => came,
            Ok(Ok(None)) => return Left::Ended,
            Ok(Err(failure)) => return refuse(serving, connection, requests, &failure).await,
            Err(left) => return left,
        };
        let answer = {
            let body = body.map_or(Incoming::Empty, Incoming::Http1);
            let Requests { gateway, client, .. } = requests;
            let state = gateway.view(&mut view);
            let mut answering = pin!(gateway.answer(state, client, &mut alarms, request, body));
            poll_fn(|cx| match answering.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(Some(answer)),
                Poll::Pending => connection.poll_gone(cx).map(|()| None),
            })
            .await
        };
        let Some(answer) = answer else {
            serving.gateway.counters.n_broken_connections.fetch_add(1, Relaxed);
            return Left::Ended;
        };
        match send(serving, connection, answer, &mut view).await {
            Ok(Some(tunnel)) => return Left::Switched(tunnel),
            Ok(None) if connection.is_kept() => {}
            Ok(None) if connection.is_read() && !connection.has_more() => return Left::Ended,
            Ok(None) => return Left::Told,
            Err(failure) => {
                tracing::debug!(%failure, "a connection broke");
                serving.gateway.counters.n_broken_connections.fetch_add(1, Relaxed);
                return Left::Broken;
            }
        }
    }
}

/// Sends an answer to its end, as far as the client reads it.
async fn send(
    serving: &Serving,
    connection: &mut Connection,
    answer: Answer<AnswerBody>,
    view: &mut Option<View>,
) -> Result<Option<Box<Tunnel>>, Failure> {
    let Answer { status, fields, mut body } = answer;
    let is_last = serving.gateway.is_stopping();
    let size = body.size_hint();
    connection.begin(status, &fields, &size, is_last, || date(&serving.env));
    drop(fields);
    let tunnel = body.tunnel.take();
    let mut n_sent = None;
    // For how long the client has not read: it may be slow, and must not stand still.
    let mut watch = |connection: &Connection, is_pending: bool| {
        if is_pending {
            // It may last for days, and the state be an old one then.
            *view = None;
        }
        let now = if is_pending { connection.is_blocked() } else { None };
        if now != n_sent {
            n_sent = now;
            serving.pulse.block(now.is_some());
        }
        now.is_some()
    };
    let sent = poll_fn(|cx| {
        let polled = connection.poll_body(cx, &mut body);
        let is_blocked = watch(connection, polled.is_pending());
        match polled {
            // The client has its answer, and only its request is still on its way: it may go.
            Poll::Pending if !is_blocked && body.size_hint().exact() == Some(0) => Poll::Pending,
            Poll::Pending => {
                if is_blocked {
                    // Whoever does not read may write.
                    body.poll_upload(cx);
                }
                connection.poll_gone(cx).map(|()| Err(Failure::Request(http1::Error::Cut)))
            }
            polled => polled,
        }
    })
    .await;
    if sent.is_ok() {
        body.is_sent();
    }
    // What there is of a broken answer is sent all the same.
    let flushed = poll_fn(|cx| Poll::Ready(connection.poll_flush(cx))).await;
    // The server and its place are free before a slow client has read all.
    drop(body);
    sent?;
    match flushed {
        Poll::Ready(flushed) => flushed?,
        Poll::Pending => {
            poll_fn(|cx| {
                let polled = connection.poll_flush(cx);
                watch(connection, polled.is_pending());
                polled
            })
            .await?;
        }
    }
    Ok(tunnel)
}

/// Answers what cannot be read, if anything can be said to it, and tells of it.
async fn refuse(
    serving: &Serving,
    connection: &mut Connection,
    requests: &Requests,
    failure: &Failure,
) -> Left {
    let counters = &serving.gateway.counters;
    // It is not between two requests, however long it takes to tell.
    serving.pulse.read();
    let refusal = match failure {
        Failure::Request(error) => error.refusal(),
        _ => None,
    };
    let line = connection.first_line();
    let Some((status, reason)) = refusal else {
        tracing::debug!(%failure, "a connection broke");
        counters.n_broken_connections.fetch_add(1, Relaxed);
        if !line.is_empty() {
            counters.n_left_requests.fetch_add(1, Relaxed);
            requests.gateway.note_refused(&requests.client, &line, 499, failure.to_string());
        }
        return Left::Ended;
    };
    if status != StatusCode::REQUEST_TIMEOUT {
        counters.n_bad_requests.fetch_add(1, Relaxed);
    }
    requests.gateway.note_refused(&requests.client, &line, status.as_u16(), reason.clone());
    connection.refuse(status, &reason, date(&serving.env));
    let told = poll_fn(|cx| connection.poll_flush(cx));
    match serving.env.timeout(LINGER_FOR_REST, told).await {
        Some(Ok(())) => Left::Told,
        _ => Left::Ended,
    }
}

fn date(env: &Env) -> Date {
    date_at(env.wall())
}

/// The time as HTTP has it, written once a second for each thread.
fn date_at(wall: SystemTime) -> Date {
    thread_local! {
        static LAST: Cell<(u64, Date)> = const { Cell::new((u64::MAX, [b' '; 29])) };
    }
    let second = wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (last, mut date) = LAST.get();
    if last != second {
        date.copy_from_slice(httpdate::fmt_http_date(wall).as_bytes());
        LAST.set((second, date));
    }
    date
}

async fn end(serving: &Serving, mut io: Io) {
    // It may be gone already, or not read what TLS has to say.
    serving.env.timeout(LINGER_FOR_REST, io.shutdown()).await;
}

/// Reads what a client sends that was told why it is not wanted: a connection that is closed
/// before that is reset, and what it was told lost on its way.
async fn linger(serving: &Serving, mut io: Io) {
    let mut stopping = serving.gateway.stopping();
    let mut bytes = [0; 4096];
    let rest = async {
        // It may be gone already.
        io.shutdown().await.ok();
        while io.read(&mut bytes).await.is_ok_and(|n| n > 0) {}
    };
    let end = async {
        tokio::select! {
            () = rest => {}
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
    };
    serving.env.timeout(LINGER_FOR_REST, end).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_is_that_of_now_whichever_way_the_clock_goes() {
        for (ms, date) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777_000, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (784_111_777_999, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (784_111_778_000, "Sun, 06 Nov 1994 08:49:38 GMT"),
            (784_111_777_000, "Sun, 06 Nov 1994 08:49:37 GMT"),
        ] {
            assert_eq!(date_at(UNIX_EPOCH + Duration::from_millis(ms)), date.as_bytes(), "{ms}");
        }
    }
}
