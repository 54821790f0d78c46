//! Spans for a collector of traces: OTLP over HTTP, as JSON (OpenTelemetry). Each request that is
//! sampled is one span, whose parent is the client's and whose children are the servers'.
//!
//! Nobody who is served waits for the collector. What it does not take is kept for a while and
//! sent again; when there is no more room the oldest are dropped, and counted.

use crate::config;
use crate::entry::Entry;
use base::env::{Env, Instant, Stream};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Spans that may wait for the collector.
const N_WAITING_MAX: usize = 8192;
/// Spans of one message.
const N_BATCH_MAX: usize = 512;
/// Characters of a text in a span.
const TEXT_MAX: usize = 256;
/// How often spans are sent.
const SEND_EVERY: Duration = Duration::from_secs(1);
/// How long the collector may take for a message.
const TIMEOUT: Duration = Duration::from_secs(5);

pub struct Traces {
    pub config: config::Traces,
    pub queue: Arc<Queue>,
    sent_at: Mutex<Option<Instant>>,
    is_sending: AtomicBool,
    is_failing: AtomicBool,
}

/// What waits for a collector. It stays when the file names another one.
#[derive(Default)]
pub struct Queue {
    waiting: Mutex<VecDeque<Entry>>,
    pub n_sent: AtomicU64,
    pub n_dropped: AtomicU64,
}

/// Why the collector did not take a message.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("no answer within {TIMEOUT:?}")]
    TimedOut,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error(transparent)]
    Request(#[from] http::Error),
    #[error("it answered {0}")]
    Refused(StatusCode),
}

impl Error {
    /// Whether the same message may be taken later: the collector was away, or had too much.
    fn may_pass(&self) -> bool {
        match self {
            Error::TimedOut | Error::Io(_) | Error::Http(_) => true,
            Error::Refused(status) => matches!(status.as_u16(), 429 | 502 | 503 | 504),
            Error::Request(_) => false,
        }
    }
}

impl Traces {
    pub fn new(config: config::Traces, queue: Arc<Queue>) -> Arc<Traces> {
        Arc::new(Traces {
            config,
            queue,
            sent_at: Mutex::default(),
            is_sending: AtomicBool::new(false),
            is_failing: AtomicBool::new(false),
        })
    }

    /// Takes what is said of it: without the query, which may hold what is nobody else's
    /// business, and no more of a text than fits a line. Clients choose how long these are.
    pub fn add(&self, entry: &Entry) {
        let path = entry.path.split('?').next().unwrap_or_default();
        let entry = Entry {
            method: cut(&entry.method),
            path: cut(path),
            host: cut(&entry.host),
            reason: cut(&entry.reason),
            ..entry.clone()
        };
        self.queue.add(entry);
    }

    /// To be called often: sends what waits when it is time, in a task of its own.
    pub fn step(self: &Arc<Self>, env: &Env) {
        let now = env.now();
        let is_due = self.sent_at.lock().is_none_or(|at| now >= at + SEND_EVERY);
        let n_waiting = self.queue.waiting.lock().len();
        let is_full = n_waiting >= N_BATCH_MAX && !self.is_failing.load(Relaxed);
        if !is_due && !is_full {
            return;
        }
        *self.sent_at.lock() = Some(now);
        if n_waiting == 0 || self.is_sending.swap(true, Relaxed) {
            return;
        }
        let (this, world) = (self.clone(), env.clone());
        env.spawn("traces", async move {
            this.send_all(&world).await;
            this.is_sending.store(false, Relaxed);
        });
    }

    /// Sends what waits now, until the collector does not take something. What comes meanwhile is
    /// for the next time, when the file may name another collector.
    pub async fn send_all(&self, env: &Env) {
        let mut n_left = self.queue.waiting.lock().len();
        while n_left > 0 {
            let batch: Vec<Entry> = {
                let mut waiting = self.queue.waiting.lock();
                let n = waiting.len().min(N_BATCH_MAX).min(n_left);
                waiting.drain(..n).collect()
            };
            if batch.is_empty() {
                return;
            }
            n_left -= batch.len();
            let message = message(&self.config, &batch).to_string();
            let sent = env.timeout(TIMEOUT, self.post(env, message)).await;
            let Err(error) = sent.unwrap_or(Err(Error::TimedOut)) else {
                self.queue.n_sent.fetch_add(batch.len() as u64, Relaxed);
                if self.is_failing.swap(false, Relaxed) {
                    tracing::info!("the collector of traces takes spans again");
                }
                continue;
            };
            if !self.is_failing.swap(true, Relaxed) {
                let (host, port) = (&self.config.host, self.config.port);
                tracing::warn!(%host, port, %error, "the collector of traces takes no spans");
            }
            match error.may_pass() {
                true => self.queue.put_back(batch),
                false => self.queue.dropped(batch.len()),
            }
            return;
        }
    }

    async fn post(&self, env: &Env, message: String) -> Result<(), Error> {
        let config::Traces { host, port, path, .. } = &self.config;
        let stream = connect(env, host, *port).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        env.spawn("connection to the collector", async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the collector ended");
            }
        });
        let request = Request::post(path)
            .header(header::HOST, format!("{host}:{port}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(message)))?;
        let status = sender.send_request(request).await?.status();
        if status.is_success() { Ok(()) } else { Err(Error::Refused(status)) }
    }
}

/// The newest are worth most: what finds no room are the oldest.
impl Queue {
    fn add(&self, entry: Entry) {
        let mut waiting = self.waiting.lock();
        if waiting.len() >= N_WAITING_MAX {
            waiting.pop_front();
            self.dropped(1);
        }
        waiting.push_back(entry);
    }

    fn put_back(&self, batch: Vec<Entry>) {
        let mut waiting = self.waiting.lock();
        let n_over = (batch.len() + waiting.len()).saturating_sub(N_WAITING_MAX);
        self.dropped(n_over);
        for entry in batch.into_iter().skip(n_over).rev() {
            waiting.push_front(entry);
        }
    }

    fn dropped(&self, n: usize) {
        self.n_dropped.fetch_add(n as u64, Relaxed);
    }
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

/// A name's addresses are tried one after the other: `localhost` has two, as a rule.
async fn connect(env: &Env, host: &str, port: u16) -> io::Result<Stream> {
    let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let addresses = match literal {
        Ok(address) => vec![SocketAddr::new(address, port)],
        Err(_) => env.net().lookup(host, port).await?,
    };
    let mut last = io::Error::other(format!("{host:?} has no address"));
    for address in addresses {
        match env.net().connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn message(config: &config::Traces, batch: &[Entry]) -> Value {
    let spans: Vec<Value> = batch.iter().map(span).collect();
    json!({ "resourceSpans": [{
        "resource": { "attributes": [
            text("service.name", &config.name),
            text("cloud.availability_zone", &config.zone),
        ] },
        "scopeSpans": [{ "scope": { "name": "atoll" }, "spans": spans }],
    }] })
}

/// Names and kinds are those of OpenTelemetry's conventions for HTTP servers.
fn span(entry: &Entry) -> Value {
    const KIND_SERVER: u8 = 2;
    const STATUS_ERROR: u8 = 2;
    let began_ns = i128::from(entry.at_us) * 1000;
    let ended_ns = began_ns + entry.took.as_nanos() as i128;
    let mut attributes = vec![
        text("http.request.method", &entry.method),
        text("url.path", &entry.path),
        text("server.address", &entry.host),
        text("client.address", &entry.client),
        number("http.response.status_code", entry.status.into()),
        number("http.response.body.size", entry.n_bytes),
    ];
    if !entry.route.is_empty() {
        attributes.push(text("atoll.route", &entry.route));
        attributes.push(text("atoll.service", &entry.service));
    }
    if entry.n_attempts > 0 {
        attributes.push(text("atoll.server", &entry.server));
        attributes.push(number("atoll.attempts", entry.n_attempts.into()));
    }
    let name = if entry.route.is_empty() {
        entry.method.clone()
    } else {
        format!("{} {}", entry.method, entry.route)
    };
    let mut span = json!({
        "traceId": format!("{:032x}", entry.trace.trace),
        "spanId": format!("{:016x}", entry.trace.span),
        "flags": u8::from(entry.trace.is_sampled),
        "name": name,
        "kind": KIND_SERVER,
        "startTimeUnixNano": began_ns.to_string(),
        "endTimeUnixNano": ended_ns.to_string(),
        "attributes": attributes,
    });
    if let Some(parent) = entry.trace.parent {
        span["parentSpanId"] = json!(format!("{parent:016x}"));
    }
    if entry.status >= 500 || entry.is_broken {
        let broken = "the answer ended before its end";
        let message = if entry.is_broken { broken } else { &entry.reason };
        span["status"] = json!({ "code": STATUS_ERROR, "message": message });
    }
    span
}

fn text(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

/// A whole number is text in OTLP's JSON.
fn number(key: &str, value: u64) -> Value {
    json!({ "key": key, "value": { "intValue": value.to_string() } })
}
