//! A breaker: when many of a service's requests fail or are slow, the next ones are refused at
//! once, for a while; then a few trials decide.
//!
//! ```text
//!            too many failed or slow, of enough
//!   closed ───────────────────────────────────► open ◄──────────┐
//!      ▲                                          │ `open_for`  │ a trial failed
//!      │            all trials succeeded          ▼             │ (and wait twice as long)
//!      └────────────────────────────────────── half open ───────┘
//! ```
//!
//! The rules are Hystrix's (rolling window, least volume, share of errors, pause) with slow calls
//! counted as Resilience4j does. Requests that were admitted before a change of state tell
//! nothing about it afterwards: their outcomes are ignored.

use super::window::{Counts, Window};
use base::env::Instant;
use std::collections::VecDeque;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Requests older than this are forgotten.
    pub window: Duration,
    /// Fewer requests in the window say nothing.
    pub n_requests_min: u32,
    /// Share of failed requests that opens, above 0 to 1.
    pub failed_max: f64,
    /// An answer that took longer than this is slow; none: no answer is.
    pub slow_after: Option<Duration>,
    /// Share of slow requests that opens, above 0 to 1.
    pub slow_max: f64,
    /// How long it stays open the first time; doubled for each failed trial, to `open_max`.
    pub open_for: Duration,
    pub open_max: Duration,
    /// Trials that must succeed to close it; as many run at once.
    pub n_trials: u32,
    /// After this time a trial that has not ended gives its place to another one: what hangs must
    /// not keep the service closed for everybody. When it ends it still counts.
    pub trial_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            window: Duration::from_secs(10),
            n_requests_min: 20,
            failed_max: 0.5,
            slow_after: None,
            slow_max: 0.8,
            open_for: Duration::from_secs(1),
            open_max: Duration::from_secs(4),
            n_trials: 5,
            trial_timeout: Duration::from_secs(1),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Closed,
    Open,
    HalfOpen,
}

/// A request that was let through, to be reported once.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    epoch: u64,
    begun: Instant,
}

/// How a request that was let through ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With an answer, after so long.
    Well(Duration),
    Failed,
    /// It was reported well, and then its answer broke.
    Broken,
    /// Given up by its caller: says nothing.
    Unknown,
}

#[derive(Debug)]
enum Inner {
    Closed,
    Open {
        until: Instant,
    },
    /// `out`: when the trials under way that hold a place began, the oldest first.
    HalfOpen {
        out: VecDeque<Instant>,
        n_well: u32,
    },
}

#[derive(Debug)]
pub struct Breaker {
    settings: Settings,
    inner: Inner,
    /// Changes with every change of state.
    epoch: u64,
    open_for: Duration,
    window: Window,
    n_opened: u64,
}

impl Breaker {
    pub fn new(now: Instant, settings: Settings) -> Breaker {
        Breaker {
            inner: Inner::Closed,
            epoch: 0,
            open_for: settings.open_for,
            window: Window::new(now, settings.window),
            n_opened: 0,
            settings,
        }
    }

    /// The settings change; what is known stays, but for counts over another window.
    pub fn set(&mut self, now: Instant, settings: Settings) {
        if settings.window != self.settings.window {
            self.window = Window::new(now, settings.window);
        }
        self.open_for =
            self.open_for.clamp(settings.open_for, settings.open_max.max(settings.open_for));
        self.settings = settings;
    }

    /// Lets a request through, or says how long it is until the next trial.
    pub fn admit(&mut self, now: Instant) -> Result<Pass, Duration> {
        if let Inner::Open { until } = self.inner {
            if now < until {
                return Err(until.saturating_duration_since(now));
            }
            self.turn(Inner::HalfOpen { out: VecDeque::new(), n_well: 0 });
        }
        if let Inner::HalfOpen { out, n_well } = &mut self.inner {
            let span = self.settings.trial_timeout;
            out.retain(|begun| now.saturating_duration_since(*begun) < span);
            if out.len() + *n_well as usize >= self.settings.n_trials.max(1) as usize {
                let next = out.front().map(|begun| (*begun + span).saturating_duration_since(now));
                return Err(next.unwrap_or(self.settings.open_for));
            }
            out.push_back(now);
        }
        Ok(Pass { epoch: self.epoch, begun: now })
    }

    pub fn report(&mut self, now: Instant, pass: Pass, ended: Ended) {
        if pass.epoch != self.epoch {
            return;
        }
        let slow = matches!((ended, self.settings.slow_after),
            (Ended::Well(took), Some(after)) if took > after);
        match &mut self.inner {
            Inner::Open { .. } => {}
            Inner::Closed => {
                if ended == Ended::Unknown {
                    return;
                }
                let n_all = u32::from(ended != Ended::Broken);
                let n_failed = u32::from(matches!(ended, Ended::Failed | Ended::Broken));
                self.window.add(now, Counts { n_all, n_failed, n_slow: u32::from(slow) });
                let sum = self.window.sum(now);
                let bad = sum.failed() >= self.settings.failed_max
                    || (sum.n_slow > 0 && sum.slow() >= self.settings.slow_max);
                if sum.n_all >= self.settings.n_requests_min && bad && (n_failed == 1 || slow) {
                    self.open_for = self.settings.open_for;
                    self.open(now);
                }
            }
            Inner::HalfOpen { out, n_well } => {
                if ended != Ended::Broken
                    && let Some(place) = out.iter().position(|begun| *begun == pass.begun)
                {
                    out.remove(place);
                }
                match ended {
                    Ended::Unknown => {}
                    Ended::Well(_) if !slow => {
                        *n_well += 1;
                        if *n_well >= self.settings.n_trials.max(1) {
                            self.window.clear();
                            self.turn(Inner::Closed);
                        }
                    }
                    Ended::Well(_) | Ended::Failed | Ended::Broken => {
                        self.open_for = (self.open_for * 2).min(self.settings.open_max);
                        self.open(now);
                    }
                }
            }
        }
    }

    pub fn state(&self) -> State {
        match self.inner {
            Inner::Closed => State::Closed,
            Inner::Open { .. } => State::Open,
            Inner::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// How often it has opened since the beginning.
    pub fn n_opened(&self) -> u64 {
        self.n_opened
    }

    /// What the window holds now.
    pub fn counts(&mut self, now: Instant) -> Counts {
        self.window.sum(now)
    }

    fn open(&mut self, now: Instant) {
        self.n_opened += 1;
        self.turn(Inner::Open { until: now + self.open_for });
    }

    fn turn(&mut self, inner: Inner) {
        self.inner = inner;
        self.epoch += 1;
    }
}
