//! One request: its route, its service, the answer.

use crate::backend::Backend;
use crate::call::{Alarms, Ask, Called, Failure, Fault, SendError, Sent, Verdict, call};
use crate::config::{self, Cors, Limits, Route};
use crate::fields::{Fields, name};
use crate::front::answer::{AnswerBody, Tunnel};
use crate::front::early::{self, Early};
use crate::front::ending::{Ending, Place};
use crate::front::pulse::Pulse;
use crate::gateway::{Gateway, State};
use crate::http::body::{Incoming, RequestBody};
use crate::http::forwarded::{self, Asker};
use crate::http::headers;
use crate::http::http1::io::Io;
use crate::http::message::{Answer, Request};
use crate::http::outgoing::{Outgoing, OutgoingBody};
use crate::http::pool::{Loan, Rest};
use crate::http::{squeeze, target};
use crate::isolate::bulkhead::Priority;
use crate::record::Record;
use crate::route;
use crate::service::Refused;
use crate::stale::{self, Capture};
use crate::trace::Trace;
use base::env::{Env, Instant};
use bytes::{Bytes, BytesMut};
use futures::future::{Either, select};
use http::{Method, StatusCode, Version};
use http_body::Body;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

/// Bodies of HTTP/1.1 that are told to have up to this are held: servers do not wait for slow
/// clients, what may be repeated can be sent again, and whoever is refused can ask again on the
/// same connection.
const HELD_BYTES_MAX: u64 = 64 << 10;
/// How long the body of a request that is refused is waited for.
const DISCARD_WITHIN: Duration = Duration::from_secs(1);

/// Who asks.
#[derive(Clone)]
pub struct Client {
    pub lane: usize,
    pub address: SocketAddr,
    /// The address as servers are told it.
    pub forwarded_for: Arc<str>,
    pub is_tls: bool,
    /// Who its certificate says that it is, if it showed one, as servers are told it.
    pub certificate: Option<Arc<str>>,
    pub pulse: Arc<Pulse>,
}

/// An answer that the gateway gives itself.
struct Own {
    status: StatusCode,
    text: String,
    retry_after: Option<Duration>,
    fields: Fields,
}

impl Own {
    fn new(status: StatusCode, text: impl Into<String>) -> Own {
        Own { status, text: text.into(), retry_after: None, fields: Fields::default() }
    }

    fn busy(text: impl Into<String>, retry_after: Duration) -> Own {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Own { retry_after: Some(retry_after), ..Own::new(status, text) }
    }

    fn of(service: &str, failure: &Failure) -> Own {
        let text = format!("service {service:?}: {failure}");
        match failure {
            Failure::Refused(Refused::Open(wait)) => Own::busy(text, *wait),
            Failure::Refused(Refused::Full | Refused::NoServers) => {
                Own::busy(text, Duration::from_secs(1))
            }
            Failure::TimedOut => Own::new(StatusCode::GATEWAY_TIMEOUT, text),
            Failure::Send(SendError::Request { fault, reason }) => {
                let status = match fault {
                    Fault::Malformed => StatusCode::BAD_REQUEST,
                    Fault::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
                    Fault::TooSlow => StatusCode::REQUEST_TIMEOUT,
                };
                Own::new(status, reason.clone())
            }
            Failure::Send(SendError::Own(_)) => Own::busy(text, Duration::from_secs(1)),
            Failure::Send(_) => Own::new(StatusCode::BAD_GATEWAY, text),
        }
    }

    fn answer(self, is_grpc: bool) -> Answer<AnswerBody> {
        let mut fields = self.fields;
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            fields.add(name::RETRY_AFTER, seconds.max(1).to_string());
        }
        if is_grpc {
            // gRPC looks at its own status, in headers where there is no body.
            let code = match self.status {
                StatusCode::GATEWAY_TIMEOUT => "4",
                StatusCode::NOT_FOUND => "12",
                StatusCode::PAYLOAD_TOO_LARGE | StatusCode::TOO_MANY_REQUESTS => "8",
                StatusCode::BAD_REQUEST => "3",
                _ => "14",
            };
            fields.add(name::CONTENT_TYPE, "application/grpc");
            fields.add(name::GRPC_STATUS, code);
            fields.add(name::GRPC_MESSAGE, percent(&self.text));
            return Answer {
                status: StatusCode::OK,
                fields,
                body: AnswerBody::bytes(Bytes::new()),
            };
        }
        if self.status == StatusCode::NO_CONTENT {
            return Answer { status: self.status, fields, body: AnswerBody::bytes(Bytes::new()) };
        }
        fields.add(name::CONTENT_TYPE, "text/plain; charset=utf-8");
        let body = AnswerBody::bytes(Bytes::from(self.text + "\n"));
        Answer { status: self.status, fields, body }
    }
}

/// As gRPC wants its messages.
fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Where a request goes, and how much time it has.
struct Way<'a> {
    route: &'a Route,
    backend: &'a Arc<Backend>,
    priority: Priority,
    /// How long the service may take.
    own_time: Duration,
    /// How long the client gives it, when that is less.
    given: Option<Duration>,
    /// When the client's part must be here.
    until: Instant,
}

/// What a request's answer needs to know of it.
struct Asked<'a> {
    alarms: &'a mut Alarms,
    is_grpc: bool,
    stale_key: Option<String>,
    /// What pages of other origins are told of the answer, and by which rule.
    cors: Option<(Cors, Option<Fields>)>,
    /// How long a body may stand still, where the route says so.
    idle: Option<Duration>,
    /// Where answers are compressed: the request's method, and whether its client takes it.
    squeeze: Option<(Method, bool)>,
    trace: Trace,
    /// What it holds, and will hold until its answer's end.
    ending: Box<Ending>,
}

impl Gateway {
    /// Answers one request, whatever happens to it.
    pub async fn answer(
        self: &Arc<Self>,
        state: &Arc<State>,
        client: &Client,
        alarms: &mut Alarms,
        request: Request,
        body: Incoming,
    ) -> Answer<AnswerBody> {
        let under_way = client.pulse.begin(request.version);
        let traces = state.traces.as_ref();
        let share = traces.map_or(0.0, |traces| traces.config.share);
        let trace = Trace::of(&request.fields, share, self.lanes.random(client.lane));
        let record = Record::begin(trace, self.log(), traces);
        let mut asked = Asked {
            alarms,
            is_grpc: headers::is_grpc(&request.fields),
            stale_key: None,
            cors: None,
            idle: None,
            squeeze: None,
            trace,
            ending: Ending::new(self.env().now(), under_way, record),
        };
        let forwarded = self.forward(state, client, request, body, &mut asked).await;
        let mut ending = asked.ending;
        let mut answer = match forwarded {
            Ok(answer) => answer,
            Err(own) => {
                if let Some(record) = &mut ending.record {
                    record.entry.reason.clone_from(&own.text);
                }
                own.answer(asked.is_grpc)
            }
        };
        if let Some((cors, told)) = &asked.cors {
            early::tell_origin(cors, told.as_ref(), &mut answer.fields);
        }
        ending.status = Some(answer.status);
        answer.body.hold(ending);
        answer
    }

    /// Tells of a request that was not understood; `line` is what there is of its first line.
    pub fn note_refused(&self, client: &Client, line: &str, status: u16, reason: String) {
        let Some(log) = self.log() else { return };
        let mut record = Record::refused(line, log);
        let entry = &mut record.entry;
        entry.at_us = self.env().wall_us();
        entry.client = client.address.to_string();
        entry.peer = client.address.to_string();
        entry.is_tls = client.is_tls;
        entry.status = status;
        entry.reason = reason;
        record.end();
    }

    async fn forward(
        self: &Arc<Self>,
        state: &Arc<State>,
        client: &Client,
        mut request: Request,
        body: Incoming,
        asked: &mut Asked<'_>,
    ) -> Result<Answer<AnswerBody>, Own> {
        let trusted = &state.config.trusted_proxies;
        let peer = client.address;
        let asker = forwarded::believe(&mut request.fields, trusted, peer, client.is_tls);
        let way = match self.way(state, client, &asker, &mut request, asked) {
            Ok(way) => way,
            Err(own) => {
                self.discard(&request, body).await;
                return Err(own);
            }
        };
        let Way { route, backend, priority, own_time, given, until } = way;
        let class = route::class(route, &request.method, request.target.compared());
        asked.ending.counts = Some(backend.upstream(client.lane).counts.clone());
        asked.idle = route.idle_timeout;
        if route.compress && !asked.is_grpc {
            let takes_gzip = squeeze::takes_gzip(&request.fields);
            asked.squeeze = Some((request.method.clone(), takes_gzip));
        }

        if request.method == Method::GET && backend.config.fallback.stale_for.is_some() {
            let host = request.fields.ascii(name::HOST).unwrap_or_default();
            asked.stale_key = stale::key(host, request.target.text(), &request.fields);
        }
        // What has a body to send first is an ordinary request, as servers may take it (RFC 9110, 7.8).
        let fields = &mut request.fields;
        let upgrade = headers::wanted_upgrade(fields, request.version);
        let upgrade = upgrade.filter(|_| body.is_end_stream());
        headers::remove_hop_by_hop(fields);
        // In this order: what is removed is the client's, and what is set stands in place of ours.
        headers::remove(&route.request_headers, fields);
        forwarded::tell(fields, &client.forwarded_for, client.is_tls);
        if let Some(certificate) = &client.certificate {
            fields.set(name::CLIENT_CERT, &**certificate);
        }
        asked.trace.set(fields);
        headers::write(&route.request_headers, fields);
        let outgoing = self.outgoing(state, &way, request, upgrade, body).await?;

        // The service's own time begins when the request is there: a slow client is not its fault.
        let now = if outgoing.was_waited_for { self.env().now() } else { asked.ending.begun };
        let deadline = if given.is_none() { now + own_time } else { until };
        let late_from = Ask::late_from(deadline, given);
        let may_repeat = outgoing.may_repeat;
        let upload = outgoing.upload();
        asked.ending.upload.clone_from(&upload);
        let ask = Ask { at: now, priority, deadline, late_from, may_repeat, class, upload };
        asked.ending.late_from = late_from;
        let mut answer = self.ask(state, client, backend, ask, &outgoing, asked).await?;
        headers::remove(&route.response_headers, &mut answer.fields);
        headers::write(&route.response_headers, &mut answer.fields);
        Ok(answer)
    }

    /// Where the request goes, and that it may.
    fn way<'a>(
        &self,
        state: &'a State,
        client: &Client,
        asker: &Asker,
        request: &mut Request,
        asked: &mut Asked<'_>,
    ) -> Result<Way<'a>, Own> {
        let host = settle_host(request);
        let Request { method, target, version, fields } = &*request;
        if let Some(record) = &mut asked.ending.record {
            let entry = &mut record.entry;
            entry.at_us = self.env().wall_us();
            entry.client = match asker.address {
                Some(address) => address.to_string(),
                None => client.address.to_string(),
            };
            entry.peer = client.address.to_string();
            entry.is_tls = asker.is_tls;
            entry.version = version_of(*version);
            entry.certificate = client.certificate.as_deref().unwrap_or_default().to_owned();
            entry.method = method.to_string();
            entry.host = fields.get(name::HOST).map(text_of).unwrap_or_default();
            entry.path = target.text().to_owned();
            record.note_headers(fields);
        }
        host.map_err(|reason| {
            self.counters.n_bad_requests.fetch_add(1, Relaxed);
            Own::new(StatusCode::BAD_REQUEST, reason)
        })?;
        let host = fields.ascii(name::HOST).unwrap_or_default();
        if *method == Method::CONNECT {
            let text = "this is no forward proxy: CONNECT is not served";
            return Err(Own::new(StatusCode::METHOD_NOT_ALLOWED, text));
        }
        let path = target.compared();
        let wanted = route::Request { host, path, method, headers: fields };
        let idx = route::find(&state.routes, &wanted);
        if let Some(path) = target.unresolved()
            && route::find(&state.routes, &route::Request { path, ..wanted }) != idx
        {
            self.counters.n_bad_requests.fetch_add(1, Relaxed);
            let text = "the path's dot segments lead from one route into another";
            return Err(Own::new(StatusCode::BAD_REQUEST, text));
        }
        let found = idx.and_then(|idx| state.routes.get(idx));
        let route = found.ok_or_else(|| {
            self.counters.n_no_route.fetch_add(1, Relaxed);
            Own::new(StatusCode::NOT_FOUND, format!("no route for {method} {host}{path}"))
        })?;
        if let Some(record) = &mut asked.ending.record {
            record.entry.route.clone_from(&route.name);
        }
        if let Some(cors) = &route.cors {
            asked.cors = Some((cors.clone(), early::cors_fields(cors, request)));
        }
        if let (Some(limit), Some(buckets)) = (&route.rate_limit, state.rates.get(&route.name)) {
            let key = early::rate_key(&limit.by, asker, client.address, fields);
            if let Err(wait) = buckets.lock().take(self.env().now(), limit, &key) {
                self.counters.n_over_rate.fetch_add(1, Relaxed);
                let text = format!("more than {} requests a second", limit.per_s);
                let own = Own::new(StatusCode::TOO_MANY_REQUESTS, text);
                return Err(Own { retry_after: Some(wait), ..own });
            }
        }
        if let Some(early) = early::answer(route, request, asker.is_tls) {
            let Early { status, text, fields } = early;
            return Err(Own { fields, ..Own::new(status, text) });
        }
        // A client may call its request less important than the route has it, and not more.
        let highest = route.priority;
        let asked_priority = headers::asked_priority(fields);
        let priority = asked_priority.map_or(highest, |asked| asked.min(highest));
        let place = Place::take(&client.pulse, &state.limits, priority);
        asked.ending.place = Some(place.ok_or_else(|| {
            self.counters.n_refused_requests.fetch_add(1, Relaxed);
            Own::busy("the gateway has too many requests under way", Duration::from_secs(1))
        })?);
        let name = route::target(route, self.draw(client, route)).unwrap_or_default();
        let backend = state.backends.get(name).ok_or_else(|| {
            Own::new(StatusCode::NOT_FOUND, format!("there is no service {name:?}"))
        })?;
        if let Some(record) = &mut asked.ending.record {
            record.entry.service = name.to_owned();
        }
        let own_time = route.timeout.unwrap_or(backend.config.settings.timeout);
        let asked_for = headers::asked_timeout(fields);
        let given = asked_for.filter(|asked_for| *asked_for < own_time);
        let until = asked.ending.begun + given.unwrap_or(own_time);
        Ok(Way { route, backend, priority, own_time, given, until })
    }

    /// Reads the rest of a small request that is refused, so that the next one can follow.
    async fn discard(&self, request: &Request, mut body: Incoming) {
        let is_small = body.size_hint().exact().is_some_and(|n| n <= HELD_BYTES_MAX);
        // HTTP/2 needs no such thing; who expects to be told before it sends is told.
        let is_wanted = request.version < Version::HTTP_2
            && !request.fields.has(name::EXPECT)
            && !body.is_end_stream();
        if !is_small || !is_wanted {
            return;
        }
        let read = async {
            while let Some(frame) = body.frame().await {
                if frame.is_err() {
                    return;
                }
            }
        };
        Box::pin(self.env().timeout(DISCARD_WITHIN, read)).await;
    }

    fn draw(&self, client: &Client, route: &Route) -> f64 {
        if route.targets.len() == 1 {
            return 0.0;
        }
        let [random] = self.lanes.random(client.lane);
        (random >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The request as it is sent; small bodies are read whole.
    async fn outgoing(
        &self,
        state: &State,
        way: &Way<'_>,
        request: Request,
        upgrade: Option<Vec<u8>>,
        body: Incoming,
    ) -> Result<Outgoing, Own> {
        let route = way.route;
        let is_harmless =
            request.method.is_idempotent() || request.fields.has(name::IDEMPOTENCY_KEY);
        let limits = &state.limits;
        let n_max = route.body_bytes_max.or(limits.body_bytes_max);
        let n_told = body.size_hint().exact();
        if let (Some(n_told), Some(n_max)) = (n_told, n_max)
            && n_told > n_max
        {
            let text = format!("the body has {n_told} bytes, {n_max} are allowed");
            self.discard(&request, body).await;
            return Err(Own::new(StatusCode::PAYLOAD_TOO_LARGE, text));
        }
        // Of HTTP/2 as much waits for its reader as there is room for.
        let is_held = is_harmless || request.version < Version::HTTP_2;
        let n_held = n_told.filter(|n_told| is_held && *n_told <= HELD_BYTES_MAX);
        let mut was_waited_for = false;
        let body = if body.is_end_stream() {
            OutgoingBody::Held(Bytes::new(), AtomicBool::new(false))
        } else if let Some(n_held) = n_held {
            was_waited_for = true;
            let held = Box::pin(self.hold(limits, body, n_held, way.until)).await?;
            OutgoingBody::Held(held, AtomicBool::new(false))
        } else {
            let idle = route.idle_timeout.unwrap_or(limits.body_idle_timeout);
            let upload = Arc::default();
            let body = RequestBody::stream(self.env(), body, idle, n_max, upload);
            OutgoingBody::Stream(Mutex::new(Some(body)))
        };
        let is_held = matches!(body, OutgoingBody::Held(..));
        let target = request.target;
        let replaced = match &route.rewrite {
            Some(rewrite) => early::rewritten(rewrite, target.path()),
            None => route::replaced(route, target.path()),
        };
        let path = match (replaced, target.query()) {
            (Some(path), Some(query)) => path + "?" + query,
            (Some(path), None) => path,
            (None, _) => target.into_text(),
        };
        Ok(Outgoing {
            method: request.method,
            path,
            fields: request.fields,
            may_repeat: is_harmless && is_held && upgrade.is_none(),
            was_waited_for,
            upgrade,
            body,
        })
    }

    /// The whole of a small body, which may stand still for as long as any, and must have come
    /// when the request's time is over.
    async fn hold(
        &self,
        limits: &Limits,
        mut body: Incoming,
        n_told: u64,
        until: Instant,
    ) -> Result<Bytes, Own> {
        let too_slow = |text: &str| {
            self.counters.n_stood_still.fetch_add(1, Relaxed);
            Own::new(StatusCode::REQUEST_TIMEOUT, text)
        };
        // Copied, unless it came in one piece: each piece would hold the buffer that it is cut from.
        let mut held = BytesMut::new();
        loop {
            let now = self.env().now();
            if now >= until {
                return Err(too_slow("the body did not come in time"));
            }
            let at = until.min(now + limits.body_idle_timeout);
            let frame = match self.env().timeout_at(at, body.frame()).await {
                None if at == until => continue,
                None => return Err(too_slow("the body stood still")),
                Some(None) => break,
                Some(Some(Err(error))) => {
                    self.counters.n_bad_requests.fetch_add(1, Relaxed);
                    return Err(Own::new(StatusCode::BAD_REQUEST, format!("the body: {error}")));
                }
                Some(Some(Ok(frame))) => frame,
            };
            let Ok(bytes) = frame.into_data() else { continue };
            if held.is_empty() && bytes.len() as u64 == n_told {
                return Ok(bytes);
            }
            held.extend_from_slice(&bytes);
        }
        Ok(held.freeze())
    }

    /// Asks the service, and those that stand in for it where it has no good answer.
    async fn ask<'a>(
        self: &Arc<Self>,
        state: &'a State,
        client: &Client,
        mut backend: &'a Arc<Backend>,
        mut ask: Ask,
        outgoing: &Outgoing,
        asked: &mut Asked<'_>,
    ) -> Result<Answer<AnswerBody>, Own> {
        loop {
            let called = self.send(client, backend, &ask, asked.alarms, outgoing).await;
            let upstream = backend.upstream(client.lane);
            let name = &*upstream.handle.name;
            if let (Ok(called), Some(record)) = (&called, &mut asked.ending.record) {
                let entry = &mut record.entry;
                entry.server = called.attempt.address.to_string();
                entry.n_attempts += called.n_attempts;
            }
            let is_good = called.as_ref().is_ok_and(|called| called.verdict == Verdict::Well);
            let fallback = &backend.config.fallback;
            let has_fallback = fallback.stale_for.is_some()
                || fallback.service.is_some()
                || fallback.answer.is_some();
            let is_clients = matches!(&called, Err(Failure::Send(SendError::Request { .. })));
            if is_good || !has_fallback || is_clients {
                return match called {
                    Ok(called) => Ok(self.pass_on(state, backend, called, asked)),
                    Err(failure) => Err(Own::of(name, &failure)),
                };
            }
            if let Some(answer) = self.stale(backend, asked) {
                upstream.counts.n_fallbacks.fetch_add(1, Relaxed);
                return Ok(answer);
            }
            let next = fallback.service.as_ref().and_then(|name| state.backends.get(name));
            if let Some(next) = next.filter(|_| outgoing.can_send()) {
                upstream.counts.n_fallbacks.fetch_add(1, Relaxed);
                backend = next;
                ask.at = self.env().now();
                continue;
            }
            if let Some(answer) = &fallback.answer {
                upstream.counts.n_fallbacks.fetch_add(1, Relaxed);
                return Ok(static_answer(answer));
            }
            return match called {
                Ok(called) => Ok(self.pass_on(state, backend, called, asked)),
                Err(failure) => Err(Own::of(name, &failure)),
            };
        }
    }

    fn stale(&self, backend: &Backend, asked: &Asked<'_>) -> Option<Answer<AnswerBody>> {
        let max_age = backend.config.fallback.stale_for?;
        let now = self.env().now();
        let copy = backend.stale.get(now, asked.stale_key.as_ref()?, max_age)?;
        let body = AnswerBody::bytes(copy.body.clone());
        let mut answer = Answer { status: StatusCode::OK, fields: copy.fields.clone(), body };
        let age_s = now.saturating_duration_since(copy.stored_at).as_secs();
        answer.fields.set(name::AGE, age_s.to_string());
        Some(answer)
    }

    async fn send(
        &self,
        client: &Client,
        backend: &Arc<Backend>,
        ask: &Ask,
        alarms: &mut Alarms,
        outgoing: &Outgoing,
    ) -> Result<Called<(Answer<Rest>, Loan)>, Failure> {
        let upstream = backend.upstream(client.lane);
        let env = self.env();
        call(&upstream.handle, ask, alarms, |attempt, begun| async move {
            let (mut now, mut is_again) = (begun, false);
            loop {
                let mut loan = upstream.loan(env, now, attempt, is_again).await?;
                let left = ask.deadline.saturating_duration_since(loan.at);
                let body = outgoing.body()?;
                match loan.send(&outgoing.head(left, attempt.address), body).await {
                    Ok(answer) => {
                        let verdict = verdict(&answer, || ask.is_late(env.now()));
                        return Ok(Sent { answer: (answer, loan), verdict });
                    }
                    Err((error, body)) => {
                        if let Some(body) = body {
                            outgoing.put_back(body);
                        }
                        // Once more, on a connection that was not idle: neither the server nor the
                        // budget for retries is charged for what happens to those.
                        let is_free = match &error {
                            SendError::Stale => !loan.is_fresh,
                            SendError::Unanswered(_) => ask.may_repeat,
                            SendError::Unprocessed(_) => outgoing.take_back(),
                            _ => false,
                        };
                        if is_free && !is_again {
                            (now, is_again) = (env.now(), true);
                            continue;
                        }
                        return Err(error);
                    }
                }
            }
        })
        .await
    }

    /// The server's answer, as the client gets it.
    fn pass_on(
        &self,
        state: &State,
        backend: &Arc<Backend>,
        called: Called<(Answer<Rest>, Loan)>,
        asked: &mut Asked<'_>,
    ) -> Answer<AnswerBody> {
        let Called { answer: (answer, mut loan), mut stay, .. } = called;
        let Answer { status, mut fields, body } = answer;
        let idle = asked.idle.unwrap_or(state.limits.body_idle_timeout);
        let mut body = match body {
            Rest::Here(bytes) => AnswerBody::bytes(bytes),
            Rest::OnLoan => AnswerBody::on_loan(self.env(), idle),
            Rest::Stream(incoming) => {
                AnswerBody::stream(self.env(), Incoming::Answer(incoming), idle)
            }
        };
        if status == StatusCode::SWITCHING_PROTOCOLS {
            let upgrade = fields.get(name::UPGRADE).map(<[u8]>::to_vec);
            headers::remove_hop_by_hop(&mut fields);
            fields.set(name::CONNECTION, "upgrade");
            if let Some(upgrade) = upgrade {
                fields.set(name::UPGRADE, upgrade);
            }
            if let Some(io) = loan.into_upgraded() {
                stay.leave();
                let place = asked.ending.place.take();
                body.tunnel = Some(Box::new(Tunnel { io, stay: Some(stay), place }));
                return Answer { status, fields, body };
            }
        } else {
            headers::remove_hop_by_hop(&mut fields);
        }
        if status == StatusCode::OK
            && let Some(key) = asked.stale_key.take()
            && stale::may_keep(&fields)
        {
            body.capture(Capture::new(backend.stale.clone(), key, &fields));
        }
        if let Some((method, takes_gzip)) = &asked.squeeze {
            let n_told = body.n_told(&loan);
            if squeeze::prepare(method, status, &mut fields, n_told, *takes_gzip) {
                body.squeeze();
            }
        }
        asked.ending.loan = Some(loan);
        asked.ending.stay = Some(stay);
        Answer { status, fields, body }
    }

    /// Carries bytes both ways until one side ends, with what the request holds.
    pub fn tunnel(self: &Arc<Self>, theirs: Io, tunnel: Tunnel) {
        let mut stopping = self.stopping();
        let gateway = self.clone();
        self.env().spawn("tunnel", async move {
            let Tunnel { io: ours, stay: _stay, place: _place } = tunnel;
            let state = gateway.state();
            let idle = state.limits.body_idle_timeout;
            let carried = carry(gateway.env(), theirs, ours, idle);
            let end = async {
                // Fails only when the gateway is gone.
                stopping.wait_for(|stopping| *stopping).await.map(|_| ()).unwrap_or_default();
                gateway.env().sleep(state.config.drain).await;
            };
            tokio::select! {
                () = carried => {}
                () = end => {}
            }
        });
    }
}

/// Carries bytes both ways until both sides have ended; when one has, the other has `rest` to.
async fn carry<A, B>(env: &Env, one: A, other: B, rest: Duration)
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (mut one_in, mut one_out) = tokio::io::split(one);
    let (mut other_in, mut other_out) = tokio::io::split(other);
    let there = pin!(pump(&mut one_in, &mut other_out));
    let back = pin!(pump(&mut other_in, &mut one_out));
    match select(there, back).await {
        Either::Left((_, back)) => env.timeout(rest, back).await,
        Either::Right((_, there)) => env.timeout(rest, there).await,
    };
}

/// One way. However it ends, the other side is told that nothing more comes.
async fn pump(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) {
    if let Err(error) = tokio::io::copy(from, to).await {
        tracing::debug!(%error, "a tunnel broke");
    }
    // It may be gone already.
    to.shutdown().await.unwrap_or_default();
}

fn static_answer(answer: &config::StaticAnswer) -> Answer<AnswerBody> {
    let body = AnswerBody::bytes(Bytes::from(answer.body.clone()));
    let mut own = Answer::new(answer.status, body);
    own.fields.add(name::CONTENT_TYPE, &answer.content_type);
    own
}

/// Whether an answer is one of a server that works.
fn verdict(answer: &Answer<Rest>, is_late: impl Fn() -> bool) -> Verdict {
    match answer.status {
        StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED => Verdict::Well,
        StatusCode::GATEWAY_TIMEOUT if is_late() => Verdict::Late,
        status if status.is_server_error() => Verdict::Failed,
        _ => headers::grpc_verdict(answer.fields.get(name::GRPC_STATUS), is_late),
    }
}

/// Makes the host that a request is for its `Host` field: what the target names, whatever the
/// field says (RFC 9112, 3.2.2); the field otherwise, of which there must be exactly one. In
/// HTTP/1.0 there may be none.
fn settle_host(request: &mut Request) -> Result<(), &'static str> {
    let Request { target, version, fields, .. } = request;
    match target.host() {
        Some(host) => {
            let host = host.to_owned();
            fields.set(name::HOST, host);
        }
        None => match fields.all(name::HOST).count() {
            0 if *version < Version::HTTP_11 => return Ok(()),
            0 => return Err("the request names no host"),
            1 => {}
            _ => return Err("the request names two hosts"),
        },
    }
    let host = fields.ascii(name::HOST).filter(|host| target::is_host(host));
    let host = host.ok_or("the host is not one: it is a name or an address, and perhaps a port")?;
    // DNS ends a name with a dot, and means the same.
    if let Some(without) = target::without_dot(host) {
        fields.set(name::HOST, without);
    }
    Ok(())
}

fn version_of(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "2",
        Version::HTTP_11 => "1.1",
        _ => "1.0",
    }
}

fn text_of(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}
