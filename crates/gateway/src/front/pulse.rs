//! What a client's connection is doing: for the alarm that ends it, and for the lanes that share
//! the work.

use crate::config::Limits;
use crate::gateway::Gateway;
use base::env::{Env, Instant};
use http::Version;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

pub struct Pulse {
    env: Env,
    origin: Instant,
    n_under_way: AtomicU32,
    /// When the head that is arriving began, in microseconds since `origin`, plus one; 0: none is.
    head_us: AtomicU64,
    idle_us: AtomicU64,
    is_http2: AtomicBool,
    /// HTTP/1.1: since when an answer waits for the client to read, as `head_us`.
    blocked_us: AtomicU64,
    /// Whether another lane can have it.
    can_move: bool,
    pub gateway: Arc<Gateway>,
    pub lane: usize,
    /// The lane that it had better move to; [`STAY`]: none.
    to: AtomicUsize,
}

const STAY: usize = usize::MAX;

impl Pulse {
    pub fn new(gateway: &Arc<Gateway>, lane: usize, can_move: bool) -> Arc<Pulse> {
        let env = gateway.env();
        Arc::new(Pulse {
            env: env.clone(),
            origin: env.now(),
            n_under_way: AtomicU32::new(0),
            head_us: AtomicU64::new(1),
            idle_us: AtomicU64::new(0),
            is_http2: AtomicBool::new(false),
            blocked_us: AtomicU64::new(0),
            can_move,
            gateway: gateway.clone(),
            lane,
            to: AtomicUsize::new(STAY),
        })
    }

    fn now_us(&self) -> u64 {
        self.us_at(self.env.now())
    }

    fn us_at(&self, now: Instant) -> u64 {
        micros(now.saturating_duration_since(self.origin))
    }

    /// Nothing has begun: a connection that is not new may be idle before its next request.
    pub fn wait(&self) {
        self.head_us.store(0, Relaxed);
    }

    /// Whether a request's head has begun and is not whole yet.
    pub fn has_begun(&self) -> bool {
        !self.is_busy() && self.head_us.load(Relaxed) > 0
    }

    /// Bytes came.
    pub fn read(&self) {
        if !self.is_busy() && self.head_us.load(Relaxed) == 0 {
            self.head_us.store(self.now_us() + 1, Relaxed);
        }
    }

    /// A request's head is complete; it is under way until what this returns is dropped.
    pub fn begin(self: &Arc<Self>, version: Version) -> UnderWay {
        self.n_under_way.fetch_add(1, Relaxed);
        self.gateway.lanes.begin(self.lane);
        self.head_us.store(0, Relaxed);
        if version == Version::HTTP_2 {
            self.is_http2.store(true, Relaxed);
        }
        UnderWay { pulse: self.clone(), is_over: false }
    }

    /// An answer's bytes wait for the client to read, or no longer do.
    pub fn block(&self, is_blocked: bool) {
        let since_us = if is_blocked { self.now_us() + 1 } else { 0 };
        self.blocked_us.store(since_us, Relaxed);
    }

    /// HTTP/1.1: whether nothing is under way, or begun, or to be read by the client.
    pub fn is_between(&self) -> bool {
        !self.is_busy() && self.head_us.load(Relaxed) == 0 && self.blocked_us.load(Relaxed) == 0
    }

    /// Whether that has been so for this long.
    pub fn is_idle(&self, span: Duration) -> bool {
        self.is_between()
            && self.now_us().saturating_sub(self.idle_us.load(Relaxed)) >= micros(span)
    }

    fn is_busy(&self) -> bool {
        self.n_under_way.load(Relaxed) > 0
    }

    /// Whether the next request had better come elsewhere.
    pub fn is_leaving(&self) -> bool {
        self.to.load(Relaxed) != STAY && self.is_between()
    }

    /// The lane that it had better move to; it is told once.
    pub fn take_to(&self) -> Option<usize> {
        Some(self.to.swap(STAY, Relaxed)).filter(|to| *to != STAY)
    }

    /// How much longer the connection may stay as it is; none: it is to end.
    pub fn left(&self, limits: &Limits) -> Option<Duration> {
        let (header, idle) = (limits.header_timeout, limits.idle_timeout);
        let head_us = self.head_us.load(Relaxed);
        let blocked_us = self.blocked_us.load(Relaxed);
        let ends_us = if blocked_us > 0 {
            blocked_us - 1 + micros(limits.body_idle_timeout)
        } else if self.is_busy() {
            return Some(header.min(idle));
        } else if head_us > 0 && !self.is_http2.load(Relaxed) {
            head_us - 1 + micros(header)
        } else {
            self.idle_us.load(Relaxed) + micros(idle)
        };
        let left_us = ends_us.saturating_sub(self.now_us());
        (left_us > 0).then(|| Duration::from_micros(left_us))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A request under way on a connection, until it is ended or dropped.
pub struct UnderWay {
    pulse: Arc<Pulse>,
    is_over: bool,
}

impl UnderWay {
    /// Its client left before the answer.
    pub fn count_left(&self) {
        self.pulse.gateway.counters.n_left_requests.fetch_add(1, Relaxed);
    }

    pub fn now(&self) -> Instant {
        self.pulse.env.now()
    }

    pub fn end(&mut self, now: Instant) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        let pulse = &self.pulse;
        pulse.idle_us.store(pulse.us_at(now), Relaxed);
        pulse.head_us.store(0, Relaxed);
        pulse.n_under_way.fetch_sub(1, Relaxed);
        let to = pulse.gateway.lanes.end(now, pulse.lane, pulse.can_move);
        pulse.to.store(to.unwrap_or(STAY), Relaxed);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if !self.is_over {
            self.end(self.now());
        }
    }
}
