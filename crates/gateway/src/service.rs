//! One service: whether a request is let in, where each of its attempts goes, whether there is
//! another attempt, and what all of that taught.
//!
//! ```text
//!   admit ──► pick ──► report ──► (retry ──► pick ──► report …) ──► finish
//!     │         └─ each attempt ends with `release`, or with `give_up`  │
//!     └─ refused: the breaker is open, or the bulkhead full            └─ leave, at the last byte
//! ```

use crate::balance::{self, Attempt, Closeness, Fleet};
use crate::isolate::breaker::{self, Breaker, Pass};
use crate::isolate::budget::{self, Budget};
use crate::isolate::bulkhead::{self, Bulkhead, Priority};
use crate::isolate::classes::Classes;
use crate::isolate::latency::Latencies;
use base::env::Instant;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// How long a request may take in all, attempts and pauses included.
    pub timeout: Duration,
    /// How long one attempt may take to its answer's headers; none: as long as the request.
    pub attempt_timeout: Option<Duration>,
    pub connect_timeout: Duration,
    /// Attempts for one request, the first included.
    pub n_attempts_max: u32,
    pub hedge: Option<Hedge>,
    pub breaker: breaker::Settings,
    pub bulkhead: bulkhead::Settings,
    pub budget: budget::Settings,
    pub balance: balance::Settings,
}

/// A second attempt beside the first one, when that takes longer than most.
#[derive(Clone, Debug, PartialEq)]
pub struct Hedge {
    /// The share of the service's recent answers that came sooner.
    pub quantile: f64,
    pub delay_min: Duration,
}

impl Default for Hedge {
    fn default() -> Hedge {
        Hedge { quantile: 0.95, delay_min: Duration::from_millis(1) }
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            timeout: Duration::from_secs(30),
            attempt_timeout: None,
            connect_timeout: Duration::from_secs(1),
            n_attempts_max: 3,
            hedge: None,
            breaker: breaker::Settings::default(),
            bulkhead: bulkhead::Settings::default(),
            budget: budget::Settings::default(),
            balance: balance::Settings::default(),
        }
    }
}

/// Why a request was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// With the time until the breaker lets somebody try.
    #[error("its breaker is open: most of its requests fail")]
    Open(Duration),
    #[error("its bulkhead is full: too many of its requests are under way")]
    Full,
    #[error("it has no servers")]
    NoServers,
}

/// A request that was let in.
#[derive(Debug)]
pub struct Admission {
    pass: Pass,
    pub begun: Instant,
}

/// How a request ended, all of its attempts taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finished {
    Well,
    Failed,
    /// Its caller went away.
    GivenUp,
}

/// Counts since the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub n_requests: u64,
    pub n_failed: u64,
    pub n_refused_open: u64,
    pub n_refused_full: u64,
    pub n_retries: u64,
    pub n_hedges: u64,
    /// Retries and hedges that there was no budget for.
    pub n_over_budget: u64,
}

/// Fewer answers say nothing about what is usual.
const N_HEDGE_MIN: u64 = 50;
/// The quantile is worked out anew after this many answers.
const HEDGE_EVERY: u64 = 64;

#[derive(Debug)]
pub struct Service {
    settings: Settings,
    pub fleet: Fleet,
    pub breaker: Breaker,
    pub bulkhead: Bulkhead,
    budget: Budget,
    classes: Classes,
    pub latencies: Latencies,
    pub totals: Totals,
    hedge_after: Option<Duration>,
    n_until_hedge: u64,
}

impl Service {
    pub fn new(now: Instant, settings: Settings, closeness: Closeness, seed: u64) -> Service {
        Service {
            fleet: Fleet::new(now, settings.balance.clone(), closeness, seed),
            breaker: Breaker::new(now, settings.breaker.clone()),
            bulkhead: Bulkhead::new(now, settings.bulkhead.clone()),
            budget: Budget::new(now, settings.budget.clone()),
            classes: Classes::new(now),
            latencies: Latencies::new(now),
            totals: Totals::default(),
            hedge_after: None,
            n_until_hedge: 0,
            settings,
        }
    }

    /// The rules change; what was learned stays.
    pub fn set(&mut self, now: Instant, settings: Settings, closeness: Closeness) {
        self.fleet.set(now, settings.balance.clone(), closeness);
        self.breaker.set(now, settings.breaker.clone());
        self.bulkhead.set(settings.bulkhead.clone());
        self.budget.set(settings.budget.clone());
        self.settings = settings;
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn admit(&mut self, now: Instant, priority: Priority) -> Result<Admission, Refused> {
        self.totals.n_requests += 1;
        if !self.bulkhead.admit(priority) {
            self.totals.n_refused_full += 1;
            return Err(Refused::Full);
        }
        match self.breaker.admit(now) {
            Ok(pass) => {
                self.budget.deposit(now);
                Ok(Admission { pass, begun: now })
            }
            Err(wait) => {
                self.bulkhead.release();
                self.totals.n_refused_open += 1;
                Err(Refused::Open(wait))
            }
        }
    }

    pub fn pick(&mut self, now: Instant, tried: &[Attempt], may_repeat: bool) -> Option<Attempt> {
        self.fleet.pick_for(now, tried, may_repeat)
    }

    /// Whether a request that has had `n_attempts` gets another one.
    pub fn retry(&mut self, now: Instant, n_attempts: u32) -> bool {
        self.spend(now, n_attempts, |totals| &mut totals.n_retries)
    }

    /// Whether a request gets another attempt beside those under way.
    pub fn hedge(&mut self, now: Instant, n_attempts: u32) -> bool {
        self.spend(now, n_attempts, |totals| &mut totals.n_hedges)
    }

    fn spend(&mut self, now: Instant, n_attempts: u32, of: fn(&mut Totals) -> &mut u64) -> bool {
        if n_attempts >= self.settings.n_attempts_max {
            return false;
        }
        let granted = self.budget.withdraw(now);
        *if granted { of(&mut self.totals) } else { &mut self.totals.n_over_budget } += 1;
        granted
    }

    /// After how long a second attempt is worth its price; none: never.
    pub fn hedge_after(&self) -> Option<Duration> {
        self.hedge_after
    }

    /// How an attempt of a request of this kind ended.
    pub fn report(&mut self, now: Instant, attempt: Attempt, ended: balance::Ended, class: u32) {
        let latency = match ended {
            balance::Ended::Well(latency) => {
                self.latencies.add(now, latency);
                let felt = self.classes.answered(now, class, latency);
                if let Some(factor) = felt.rescale {
                    self.fleet.rescale(factor);
                }
                let felt = felt.latency.map_or(balance::Ended::Streamed, balance::Ended::Well);
                self.fleet.report(now, attempt, felt);
                latency
            }
            balance::Ended::TimedOut(latency) => {
                self.fleet.report(now, attempt, ended);
                latency
            }
            // What fails quickly is no sign of room.
            _ => return self.fleet.report(now, attempt, ended),
        };
        self.bulkhead.answered(now, class, latency);
        self.n_until_hedge = self.n_until_hedge.saturating_sub(1);
        if let (Some(hedge), 0) = (&self.settings.hedge, self.n_until_hedge) {
            self.n_until_hedge = HEDGE_EVERY;
            let usual = self.latencies.quantile(now, hedge.quantile);
            let usual = usual.filter(|_| self.latencies.n() >= N_HEDGE_MIN);
            self.hedge_after = usual.map(|usual| usual.max(hedge.delay_min));
        }
    }

    /// How the rest of an answer went: its request has been finished well, when it began.
    pub fn rest(&mut self, now: Instant, attempt: Attempt, admission: &Admission, is_well: bool) {
        self.fleet.rest(now, attempt, is_well);
        if !is_well {
            self.totals.n_failed += 1;
            self.breaker.report(now, admission.pass, breaker::Ended::Broken);
        }
    }

    /// A reported attempt is over.
    pub fn release(&mut self, attempt: Attempt) {
        self.fleet.release(attempt);
    }

    /// Nobody waits for the attempt any more, after so long; it was not reported.
    pub fn give_up(&mut self, attempt: Attempt, waited: Duration) {
        self.fleet.give_up(attempt, waited);
    }

    /// The request has its answer, or has failed, or was given up. It is under way until
    /// [`Service::leave`].
    pub fn finish(&mut self, now: Instant, admission: &Admission, finished: Finished) {
        let ended = match finished {
            Finished::Well => breaker::Ended::Well(now.saturating_duration_since(admission.begun)),
            Finished::Failed => breaker::Ended::Failed,
            Finished::GivenUp => breaker::Ended::Unknown,
        };
        self.totals.n_failed += u64::from(finished == Finished::Failed);
        let before = self.breaker.state();
        self.breaker.report(now, admission.pass, ended);
        // The service as a whole was broken and is well: what its servers looked like meanwhile
        // was not their own fault, and without them the others would carry the load alone.
        if before == breaker::State::HalfOpen && self.breaker.state() == breaker::State::Closed {
            self.fleet.forgive(now);
        }
    }

    /// The request's last byte is out.
    pub fn leave(&mut self) {
        self.bulkhead.release();
    }
}
