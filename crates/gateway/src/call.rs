//! Runs one request at a service: lets it in, sends its attempts, and tells the service how they
//! ended. What an attempt is, its caller says: the gateway sends HTTP, a client library whatever
//! it speaks.
//!
//! Dropped at any point (the client went away, the deadline passed) it leaves nothing behind: an
//! attempt is released by its [`Flight`], the request's place in the bulkhead by its [`Stay`].

use crate::balance::{Attempt, Closeness, Ended};
use crate::isolate::bulkhead::Priority;
use crate::service::{Admission, Finished, Refused, Service, Settings};
use base::env::{Alarm, Env, Instant};
use futures::future::{Either, select};
use parking_lot::{Mutex, MutexGuard};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// A service that many tasks use. On a cache line of its own: each request counts as its holder.
#[repr(align(128))]
pub struct Handle {
    pub name: Arc<str>,
    env: Env,
    service: Arc<Mutex<Service>>,
}

impl Handle {
    pub fn new(env: &Env, name: &str, settings: Settings, closeness: Closeness) -> Arc<Handle> {
        let service = Service::new(env.now(), settings, closeness, env.random());
        let service = Arc::new(Mutex::new(service));
        Arc::new(Handle { name: name.into(), env: env.clone(), service })
    }

    /// The same service for another thread, whose requests are counted elsewhere.
    pub fn another(&self) -> Arc<Handle> {
        let Handle { name, env, service } = self;
        Arc::new(Handle { name: name.clone(), env: env.clone(), service: service.clone() })
    }

    /// Never held across an await.
    pub fn lock(&self) -> MutexGuard<'_, Service> {
        self.service.lock()
    }

    pub fn env(&self) -> &Env {
        &self.env
    }
}

/// How long an attempt is waited for before it is looked whether its server says anything, and how
/// often then.
const DOUBT_AFTER: Duration = Duration::from_millis(200);
const DOUBT_EVERY: Duration = Duration::from_millis(100);

/// The timers of one caller, for one call after the other.
#[derive(Default)]
pub struct Alarms {
    end: Alarm,
    doubt: Alarm,
}

/// A request's body that its caller still sends while it is passed on. The time that it takes is
/// the caller's: a server's begins when it is through.
#[derive(Debug, Default)]
pub struct Upload {
    has_failed: AtomicBool,
    /// Whether the caller has more to send and has not sent it.
    is_waited_for: AtomicBool,
    n_moved: AtomicU64,
    ended_at: OnceLock<Instant>,
}

impl Upload {
    /// The caller has sent something, or not yet.
    pub fn moved(&self, has_come: bool) {
        self.is_waited_for.store(!has_come, Relaxed);
        if has_come {
            self.n_moved.fetch_add(1, Relaxed);
        }
    }

    /// It is through, or broke off.
    pub fn end(&self, now: Instant, is_well: bool) {
        if !is_well {
            self.has_failed.store(true, Relaxed);
        }
        self.ended_at.get_or_init(|| now);
    }

    pub fn has_failed(&self) -> bool {
        self.has_failed.load(Relaxed)
    }

    /// Until when an attempt has time that has been waited for until `now`, where each span of
    /// `limit` in which the caller was waited for does not count. None: its time is over.
    fn more(&self, now: Instant, limit: Duration, n_seen: &mut u64) -> Option<Instant> {
        if let Some(ended_at) = self.ended_at.get() {
            return Some(*ended_at + limit).filter(|until| *until > now);
        }
        let n_moved = self.n_moved.load(Relaxed);
        let is_moving = std::mem::replace(n_seen, n_moved) != n_moved;
        // What has come and is not taken is the server's fault.
        (is_moving || self.is_waited_for.load(Relaxed)).then(|| now + limit)
    }
}

/// What a request asks for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// When the first attempt begins: what it takes is told from here.
    pub at: Instant,
    pub priority: Priority,
    pub deadline: Instant,
    /// None: the deadline is the service's own. A caller that gives less time than the service may
    /// take learns nothing about the service when that is over; from this moment on it nearly is.
    pub late_from: Option<Instant>,
    /// Whether sending it twice does no harm, and it can be sent twice.
    pub may_repeat: bool,
    /// Requests with the same number are alike, and may be expected to take about as long.
    pub class: u32,
    pub upload: Option<Arc<Upload>>,
}

impl Ask {
    /// Nearly the deadline, when the caller gave less time (`given`) than the service may take.
    pub fn late_from(deadline: Instant, given: Option<Duration>) -> Option<Instant> {
        // A server is told whole milliseconds.
        let slack = given? / 10 + Duration::from_millis(1);
        Some(deadline.checked_sub(slack).unwrap_or(deadline))
    }

    /// Whether an answer that came now may say that its time was over without being wrong.
    pub fn is_late(&self, now: Instant) -> bool {
        self.late_from.is_some_and(|from| now >= from)
    }
}

/// An answer, and whether it is one of a server that works.
pub struct Sent<A> {
    pub answer: A,
    pub verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Well,
    /// The server failed; another one may do better.
    Failed,
    /// It ran out of the time that its caller gave it, which was less than the service may take:
    /// nobody's failure.
    Late,
}

/// Why an attempt has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Nothing was sent: harmless to send elsewhere.
    #[error("no connection: {0}")]
    Unreachable(String),
    /// As above, where several requests waited for one connection: the one who opened it tells of
    /// the server.
    #[error("no connection to share: {0}")]
    NotShared(String),
    /// A connection that had been idle was closed by the other side before anything was sent.
    #[error("the idle connection was closed")]
    Stale,
    /// A connection that had been used before was closed before anything of an answer came: it says
    /// nothing about the server, which may have taken the request all the same.
    #[error("the connection was closed before an answer: {0}")]
    Unanswered(String),
    /// The server says that it has done nothing with the request: harmless to send again, whatever
    /// it is.
    #[error("the server has not taken the request: {0}")]
    Unprocessed(String),
    /// The caller has no descriptors, ports or memory left: nothing was sent, and the server is not
    /// to blame.
    #[error("no connection can be made here: {0}")]
    Own(String),
    /// Something was sent, and the connection broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// It is the request that cannot be sent: nobody's fault here.
    #[error("{reason}")]
    Request { fault: Fault, reason: String },
}

/// What is wrong with a request that cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Malformed,
    TooLarge,
    /// Its body stood still.
    TooSlow,
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("no answer in time")]
    TimedOut,
    #[error(transparent)]
    Send(SendError),
}

/// An answer, with what must be kept until its last byte is out.
pub struct Called<A> {
    pub answer: A,
    pub verdict: Verdict,
    pub attempt: Attempt,
    pub n_attempts: u32,
    pub stay: Stay,
}

/// The request's place in the bulkhead, and its attempt's at the server. Given back when dropped.
pub struct Stay {
    handle: Arc<Handle>,
    admission: Admission,
    is_finished: bool,
    flight: Option<Flight>,
    /// How the rest of the answer went, when it began well.
    rest: Option<bool>,
    may_break: bool,
    is_inside: bool,
    is_over: bool,
}

impl Stay {
    fn finish(&mut self, now: Instant, finished: Finished, service: &mut Service) {
        self.is_finished = true;
        service.finish(now, &self.admission, finished);
    }

    /// The rest of the answer came, or did not, or says at its end that the server failed. The
    /// first word counts; of what the caller gave up there is none.
    pub fn ended(&mut self, is_well: bool) {
        self.rest.get_or_insert(is_well);
    }

    /// The rest of the answer cannot come, and it is not the server's fault.
    pub fn has_no_end(&mut self) {
        self.may_break = false;
    }

    /// Gives all back; what is dropped does so itself.
    pub fn end(&mut self, now: Instant) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        let mut service = self.handle.service.lock();
        if !self.is_finished {
            service.finish(now, &self.admission, Finished::GivenUp);
        }
        if let Some(flight) = &mut self.flight {
            if let Some(is_well) = self.rest.filter(|_| self.may_break) {
                service.rest(now, flight.attempt, &self.admission, is_well);
            }
            flight.end(now, &mut service);
        }
        if self.is_inside {
            service.leave();
        }
    }

    /// Gives the place in the bulkhead back: the request has become a connection, which may stay
    /// for days.
    pub fn leave(&mut self) {
        if std::mem::take(&mut self.is_inside) {
            self.handle.lock().leave();
        }
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        if !self.is_over {
            self.end(self.handle.env.now());
        }
    }
}

/// One attempt under way.
struct Flight {
    handle: Arc<Handle>,
    attempt: Attempt,
    begun: Instant,
    is_reported: bool,
    is_over: bool,
}

impl Flight {
    fn end(&mut self, now: Instant, service: &mut Service) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        match self.is_reported {
            true => service.release(self.attempt),
            false => {
                service.give_up(self.attempt, now.saturating_duration_since(self.begun));
            }
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !self.is_over {
            let handle = self.handle.clone();
            self.end(handle.env.now(), &mut handle.service.lock());
        }
    }
}

/// How one attempt ended, and when.
struct Tried<A> {
    flight: Flight,
    /// Until it is reported.
    ended: Option<Ended>,
    result: Result<Sent<A>, Failure>,
    at: Instant,
    /// Since when the server's time ran.
    since: Instant,
}

impl<A> Tried<A> {
    fn report(&mut self, ask: &Ask, service: &mut Service) {
        if let Some(ended) = self.ended.take() {
            service.report(self.at, self.flight.attempt, ended, ask.class);
            self.flight.is_reported = true;
        }
    }

    /// What it means for its request, if there is no other attempt.
    fn finished(&self, ask: &Ask) -> Finished {
        match &self.result {
            Ok(Sent { verdict: Verdict::Well, .. }) => Finished::Well,
            Ok(Sent { verdict: Verdict::Failed, .. }) => Finished::Failed,
            Ok(Sent { verdict: Verdict::Late, .. }) => Finished::GivenUp,
            Err(Failure::Send(
                SendError::Request { .. } | SendError::Unanswered(_) | SendError::Own(_),
            )) => Finished::GivenUp,
            Err(Failure::TimedOut) if ask.late_from.is_some() => Finished::GivenUp,
            Err(_) => Finished::Failed,
        }
    }

    /// Whether another attempt may do better, and does no harm.
    fn helps(&self, ask: &Ask) -> bool {
        match &self.result {
            Ok(sent) => sent.verdict == Verdict::Failed && ask.may_repeat,
            Err(Failure::Send(
                SendError::Unreachable(_)
                | SendError::NotShared(_)
                | SendError::Stale
                | SendError::Unprocessed(_)
                | SendError::Own(_),
            )) => true,
            Err(
                Failure::Send(SendError::Broken(_) | SendError::Unanswered(_)) | Failure::TimedOut,
            ) => ask.may_repeat,
            Err(Failure::Send(SendError::Request { .. }) | Failure::Refused(_)) => false,
        }
    }
}

/// Sends a request to the service, again if that is allowed and helps. `send` is told to whom, and
/// when that begins; `alarms` are the caller's, for one call after the other.
pub async fn call<A, S, F>(
    handle: &Arc<Handle>,
    ask: &Ask,
    alarms: &mut Alarms,
    send: S,
) -> Result<Called<A>, Failure>
where
    S: Fn(Attempt, Instant) -> F,
    F: Future<Output = Result<Sent<A>, SendError>>,
{
    let mut now = ask.at;
    let (mut stay, mut attempt, hedge_after, attempt_timeout) = {
        let mut service = handle.lock();
        let admission = service.admit(now, ask.priority)?;
        match service.pick(now, &[], ask.may_repeat) {
            Some(attempt) => {
                let stay = Stay {
                    handle: handle.clone(),
                    admission,
                    is_finished: false,
                    flight: None,
                    rest: None,
                    may_break: false,
                    is_inside: true,
                    is_over: false,
                };
                let hedge_after = service.hedge_after().filter(|_| ask.may_repeat);
                (stay, attempt, hedge_after, service.settings().attempt_timeout)
            }
            None => {
                service.finish(now, &admission, Finished::Failed);
                service.leave();
                return Err(Refused::NoServers.into());
            }
        }
    };
    let sending = Sending { handle, ask, attempt_timeout, send };
    // Empty vectors hold no memory: the usual request has one attempt.
    let mut tried: Vec<Attempt> = Vec::new();
    let mut n_attempts = 1;
    loop {
        let Alarms { end, doubt } = &mut *alarms;
        let mut last = {
            let mut first = pin!(sending.once(now, attempt, end));
            match ask.may_repeat {
                false => first.await,
                true => {
                    let hedge_after = hedge_after.filter(|_| n_attempts == 1);
                    let look_at = now + hedge_after.unwrap_or(DOUBT_AFTER).min(DOUBT_AFTER);
                    match doubt.timeout_at(look_at, first.as_mut()).await {
                        Some(ended) => ended,
                        // Boxed, as it is rare and as large again.
                        None => {
                            let hedge_at = hedge_after.map(|after| now + after);
                            let n = &mut n_attempts;
                            let beside =
                                sending.beside(attempt, first, doubt, hedge_at, n, &mut tried);
                            Box::pin(beside).await
                        }
                    }
                }
            }
        };
        now = last.at;
        let next = {
            let mut service = handle.lock();
            last.report(ask, &mut service);
            let mut next = None;
            if last.helps(ask) && now < ask.deadline && service.retry(now, n_attempts) {
                tried.push(attempt);
                next = service.pick(now, &tried, ask.may_repeat);
            }
            if next.is_none() {
                stay.admission.begun = stay.admission.begun.max(last.since);
                stay.finish(now, last.finished(ask), &mut service);
            }
            next
        };
        if let Some(next) = next {
            attempt = next;
            n_attempts += 1;
            continue;
        }
        let Tried { flight, result, .. } = last;
        let Sent { answer, verdict } = result?;
        let attempt = flight.attempt;
        stay.flight = Some(flight);
        stay.may_break = verdict == Verdict::Well;
        return Ok(Called { answer, verdict, attempt, n_attempts, stay });
    }
}

/// What does not change from attempt to attempt.
struct Sending<'a, S> {
    handle: &'a Arc<Handle>,
    ask: &'a Ask,
    attempt_timeout: Option<Duration>,
    send: S,
}

impl<A, S, F> Sending<'_, S>
where
    S: Fn(Attempt, Instant) -> F,
    F: Future<Output = Result<Sent<A>, SendError>>,
{
    /// One attempt, from its begin to its answer's headers. It is under way from the call on, and
    /// not from the first poll: a future that is dropped before that gives it back all the same.
    fn once(
        &self,
        begun: Instant,
        attempt: Attempt,
        alarm: &mut Alarm,
    ) -> impl Future<Output = Tried<A>> {
        let handle = self.handle.clone();
        let flight = Flight { handle, attempt, begun, is_reported: false, is_over: false };
        async move {
            let left = self.ask.deadline.saturating_duration_since(begun);
            let own = self.attempt_timeout;
            let limit = own.map_or(left, |own| own.min(left));
            let is_fair = self.ask.late_from.is_none() || own.is_some_and(|own| own <= left);
            // A caller that gave less time means all of it.
            let upload = self.ask.upload.as_ref().filter(|_| self.ask.late_from.is_none());
            let mut sent = pin!((self.send)(attempt, begun));
            let (mut until, mut n_seen) = (begun + limit, 0);
            let result = loop {
                let result = alarm.timeout_at(until, sent.as_mut()).await;
                let more = upload
                    .filter(|_| result.is_none())
                    .and_then(|upload| upload.more(self.handle.env.now(), limit, &mut n_seen));
                match more {
                    Some(more) => until = more,
                    None => break result,
                }
            };
            let now = self.handle.env.now();
            let uploaded_at = self.ask.upload.as_ref().map(|upload| upload.ended_at.get().copied());
            let since = match uploaded_at {
                None => begun,
                Some(ended_at) => ended_at.unwrap_or(now).max(begun).min(now),
            };
            let took = now.saturating_duration_since(since);
            let (ended, result) = match result {
                None => (is_fair.then_some(Ended::TimedOut(took)), Err(Failure::TimedOut)),
                Some(Ok(sent)) => {
                    let ended = match sent.verdict {
                        Verdict::Well if uploaded_at == Some(None) => Some(Ended::Streamed),
                        Verdict::Well => Some(Ended::Well(took)),
                        Verdict::Failed => Some(Ended::Failed),
                        Verdict::Late => Some(Ended::Late),
                    };
                    (ended, Ok(sent))
                }
                Some(Err(error)) => {
                    let ended = match &error {
                        SendError::Unreachable(_) => Some(Ended::Unreachable),
                        SendError::Broken(_) => Some(Ended::Broken),
                        SendError::NotShared(_)
                        | SendError::Stale
                        | SendError::Unanswered(_)
                        | SendError::Unprocessed(_)
                        | SendError::Own(_)
                        | SendError::Request { .. } => None,
                    };
                    (ended, Err(Failure::Send(error)))
                }
            };
            Tried { flight, ended, result, at: now, since }
        }
    }

    /// An attempt that has waited for a while, and another beside it when it is time for a hedge
    /// or when its server says nothing: no request is the trial of a server that stands still. The
    /// first good answer wins.
    async fn beside(
        &self,
        attempt: Attempt,
        mut first: Pin<&mut impl Future<Output = Tried<A>>>,
        doubt: &mut Alarm,
        hedge_at: Option<Instant>,
        n_attempts: &mut u32,
        tried: &mut Vec<Attempt>,
    ) -> Tried<A> {
        let second = loop {
            let now = self.handle.env.now();
            let is_due = hedge_at.is_some_and(|at| now >= at);
            {
                let mut service = self.handle.lock();
                if is_due || service.fleet.is_doubtful(attempt) {
                    let mut known = tried.clone();
                    known.push(attempt);
                    break match service.hedge(now, *n_attempts) {
                        true => service.pick(now, &known, true),
                        false => None,
                    };
                }
            }
            let next = now + DOUBT_EVERY;
            let next = hedge_at.filter(|at| *at > now).map_or(next, |at| at.min(next));
            if let Some(ended) = doubt.timeout_at(next, first.as_mut()).await {
                return ended;
            }
        };
        let Some(second) = second else { return first.await };
        *n_attempts += 1;
        tried.push(second);
        let mut second_alarm = Alarm::default();
        let now = self.handle.env.now();
        let second = pin!(self.once(now, second, &mut second_alarm));
        let is_good =
            |tried: &Tried<A>| matches!(&tried.result, Ok(sent) if sent.verdict == Verdict::Well);
        match select(first, second).await {
            Either::Left((ended, _)) | Either::Right((ended, _)) if is_good(&ended) => ended,
            Either::Left((ended, other)) => {
                self.over(ended);
                other.await
            }
            Either::Right((ended, other)) => {
                self.over(ended);
                other.await
            }
        }
    }

    /// Another attempt is waited for in its place.
    fn over(&self, mut tried: Tried<A>) {
        tried.report(self.ask, &mut self.handle.lock());
    }
}
