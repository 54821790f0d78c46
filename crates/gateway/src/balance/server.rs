//! What the traffic tells of one server, and which of two is better.
//!
//! Prequal's hot–cold rule: a server with more requests under way than most of its zone is hot.
//! Of two cold ones the quicker is better, a cold one is better than a hot one, of two hot ones
//! that with fewer requests under way. Latencies that differ by less than a quarter are equal:
//! then requests under way decide, so that noise does not send everything to one server.
//!
//! Who fails a clearly larger share is worse, whatever its latency: errors come quickly.
//!
//! A server that owes answers and gives none is as slow as it has been silent: one that hangs is
//! avoided long before a time-out, and one that has been silent for longer than it usually takes is
//! asked by the gateway itself whether it is there. What later requests have overtaken it does not
//! owe any more: an answer to a later one shows that it is alive, and that the earlier one waits for
//! something else (a long poll, a stream).
//!
//! Where there is no traffic, active checks tell who is slow. They are compared with each other
//! alone, as a check is another question than a request is: who takes eight times as long as its
//! zone's typical server for a check is thought to take eight times as long for a request.

use super::health::Health;
use super::settings::{ServerSpec, Settings};
use crate::isolate::window::Window;
use base::env::Instant;
use std::collections::VecDeque;
use std::time::Duration;

/// How long an answer counts in the mean latency.
const MEMORY: Duration = Duration::from_secs(1);
/// A server that has not answered for a while is thought half as slow after this time.
const FADING: Duration = Duration::from_secs(5);
/// So many times its mean latency a server may be silent before it is asked whether it is there,
/// within these bounds.
const SUSPECT_TIMES: f64 = 3.0;
const SUSPECT_MIN_S: f64 = 0.1;
const SUSPECT_MAX_S: f64 = 1.0;
/// Of a server that never answered, less than this tells nothing.
const TELLING_S: f64 = 0.1;
/// The share of a server that has just come or come back.
const COLD_SHARE: f64 = 0.05;
/// The least share of a server that is slower than its zone, or fails.
const LEAST_SHARE: f64 = 0.02;
/// Good answers that every server is credited with, so that a single failure is not taken for all.
const DOUBT: u32 = 2;
/// Checks that differ by less are equally quick.
const LEAST_LAG_S: f64 = 0.005;
/// How much more of its requests a server must fail than another to be worse for it.
const WORSE: f64 = 0.2;

#[derive(Debug)]
pub struct Server {
    pub spec: ServerSpec,
    /// Its zone's place in the fleet.
    pub zone: usize,
    pub n_in_flight: u32,
    /// The attempts that it owes an answer, in the order in which they began.
    owed: VecDeque<u64>,
    /// Since when it has owed answers without a sign of life.
    silent_since: Option<Instant>,
    pub spoke_at: Instant,
    latency_s: Option<f64>,
    pub answered_at: Instant,
    /// How long active checks take.
    look_s: Option<f64>,
    /// What an answer takes by the checks, on its zone's better days; none: about as long as at
    /// the others, or traffic tells more.
    lag_s: Option<f64>,
    pub window: Window,
    pub health: Health,
    /// It was out, and has not answered well since: requests that cannot be sent twice go
    /// elsewhere, and those that can get another attempt beside theirs soon.
    pub is_on_trial: bool,
    /// None: it was there from the beginning.
    warm_from: Option<Instant>,
    /// How likely it is drawn, 0 to 1, relative to its zone's likeliest.
    pub draw: f64,
    /// Its recent share of failures, as far as so few tell.
    pub failing: f64,
    /// No longer named, and kept for what is still under way there.
    pub leaving: bool,
    pub n_requests: u64,
    pub n_failed: u64,
}

impl Server {
    pub fn new(now: Instant, spec: ServerSpec, zone: usize, warm: bool) -> Server {
        Server {
            spec,
            zone,
            n_in_flight: 0,
            owed: VecDeque::new(),
            silent_since: None,
            spoke_at: now,
            latency_s: None,
            answered_at: now,
            look_s: None,
            lag_s: None,
            window: Window::new(now, Duration::from_secs(10)),
            health: Health::new(now),
            is_on_trial: false,
            warm_from: (!warm).then_some(now),
            draw: 1.0,
            failing: 0.0,
            leaving: false,
            n_requests: 0,
            n_failed: 0,
        }
    }

    /// An attempt begins; its number among this server's.
    pub fn begin(&mut self, now: Instant) -> u64 {
        self.n_in_flight += 1;
        self.n_requests += 1;
        self.owed.push_back(self.n_requests);
        self.silent_since.get_or_insert(now);
        self.n_requests
    }

    /// One request less is under way.
    pub fn release(&mut self) {
        self.n_in_flight = self.n_in_flight.saturating_sub(1);
    }

    /// Answers that it owes.
    pub fn n_owed(&self) -> u32 {
        u32::try_from(self.owed.len()).unwrap_or(u32::MAX)
    }

    /// It answered this attempt, and owes none of those before it.
    pub fn heard(&mut self, now: Instant, nth: u64) {
        while self.owed.front().is_some_and(|owed| *owed <= nth) {
            self.owed.pop_front();
        }
        self.spoke(now);
    }

    /// It gave a sign of life that is no answer: whatever it owes waits for something else.
    pub fn heard_all(&mut self, now: Instant) {
        self.owed.clear();
        self.spoke(now);
    }

    /// This attempt is over without a word from the server.
    pub fn forget(&mut self, nth: u64) {
        if let Ok(place) = self.owed.binary_search(&nth) {
            self.owed.remove(place);
        }
    }

    /// How long it has been silent, if it owes or has owed something since its last sign of life.
    pub fn silence(&self, now: Instant) -> Option<Duration> {
        self.silent_since.map(|since| now.saturating_duration_since(since))
    }

    /// Whether it has been silent for longer than it usually takes: somebody should ask whether it
    /// is there.
    pub fn is_suspect(&self, now: Instant) -> bool {
        let usual_s = self.latency_s.unwrap_or(0.0);
        let patience_s = (SUSPECT_TIMES * usual_s).clamp(SUSPECT_MIN_S, SUSPECT_MAX_S);
        self.silence(now).is_some_and(|silence| silence.as_secs_f64() > patience_s)
    }

    /// An answer came: it is alive.
    pub fn answered(&mut self, now: Instant, latency: Duration) {
        let sample = latency.as_secs_f64();
        let gone = now.saturating_duration_since(self.answered_at).as_secs_f64();
        // A server that answers rarely is known by its last answers, however long ago.
        let weight = (1.0 - (-gone / MEMORY.as_secs_f64()).exp()).clamp(0.02, 0.5);
        self.latency_s = Some(match self.latency_s {
            Some(mean) => mean + weight * (sample - mean),
            None => sample,
        });
        self.answered_at = now;
    }

    /// It gave a sign of life.
    fn spoke(&mut self, now: Instant) {
        self.spoke_at = now;
        self.silent_since = (!self.owed.is_empty()).then_some(now);
    }

    pub fn rescale(&mut self, factor: f64) {
        self.latency_s = self.latency_s.map(|latency_s| latency_s * factor);
    }

    /// An active check went well.
    pub fn looked(&mut self, took: Duration) {
        let sample = took.as_secs_f64();
        self.look_s = Some(self.look_s.map_or(sample, |mean| 0.5 * (mean + sample)));
    }

    /// Nobody checks any more.
    pub fn forget_looks(&mut self) {
        self.look_s = None;
    }

    pub fn look_s(&self) -> Option<f64> {
        self.look_s
    }

    /// Somebody gave up after so long: an answer takes at least that. A hedge that always wins
    /// would otherwise hide how slow this server is.
    pub fn gave_up(&mut self, waited: Duration) {
        let known_s = self.latency_s.unwrap_or(TELLING_S);
        if waited.as_secs_f64() > known_s {
            self.latency_s = Some(waited.as_secs_f64());
        }
    }

    /// Forgets what was learned before it was out.
    pub fn warm_up(&mut self, now: Instant) {
        self.warm_from = Some(now);
        self.latency_s = None;
        self.answered_at = now;
        self.window.clear();
        self.is_on_trial = true;
    }

    /// How long an answer takes, as far as is known, in seconds. What is known fades, so that a
    /// server that was slow is asked again some time.
    pub fn latency_s(&self, now: Instant) -> Option<f64> {
        let since = |at: Instant| now.saturating_duration_since(at).as_secs_f64();
        let idle_s = (since(self.answered_at) - MEMORY.as_secs_f64()).max(0.0);
        let faded = (-idle_s / FADING.as_secs_f64()).exp2();
        let known = self.latency_s.map(|mean| mean * faded);
        let known = known.map_or(self.lag_s, |mean| Some(mean.max(self.lag_s.unwrap_or(0.0))));
        let silent_s = self.silent_since.filter(|_| !self.owed.is_empty()).map(since);
        match (known, silent_s) {
            (Some(mean), Some(silent)) => Some(mean.max(silent)),
            // What never answered is known only to be silent.
            (None, Some(silent)) if silent > TELLING_S => Some(silent),
            (mean, _) => mean,
        }
    }

    /// Its share of its zone's requests: its weight, less while it is new, less still while it is
    /// slower than the zone's typical server, or fails. A share has no cap, as ejections have: of
    /// five servers three may be bad.
    pub fn share(
        &mut self,
        now: Instant,
        settings: &Settings,
        typical_s: Option<f64>,
        typical_look_s: Option<f64>,
        base_s: Option<f64>,
    ) -> f64 {
        let is_fresh = now.saturating_duration_since(self.answered_at) < MEMORY;
        let lag = match (self.look_s, typical_look_s) {
            (Some(own), Some(typical))
                if !is_fresh && own > (2.0 * typical).max(typical + LEAST_LAG_S) =>
            {
                own / typical
            }
            _ => 1.0,
        };
        self.lag_s = base_s.map(|base| base * lag).filter(|_| lag > 1.0);
        let warm = self.warm_from.map_or(1.0, |from| {
            let warm_s = now.saturating_duration_since(from).as_secs_f64();
            warm_s / settings.warm_up.as_secs_f64().max(0.001)
        });
        let slow = match (self.latency_s(now), typical_s.or(base_s)) {
            (Some(own), Some(typical)) if own > 2.0 * typical => 2.0 * typical / own,
            _ => 1.0,
        };
        let counts = self.window.sum(now);
        self.failing = f64::from(counts.n_failed) / f64::from(counts.n_all + DOUBT);
        let worth = (slow * (1.0 - self.failing)).max(LEAST_SHARE);
        self.spec.weight * warm.clamp(COLD_SHARE, 1.0) * worth
    }
}

/// Whether `one` is better than `other`. Hot is who has more than `hot_above` requests under way;
/// weights are honoured by comparing requests under way per weight.
pub fn is_better(now: Instant, one: &Server, other: &Server, hot_above: f64) -> bool {
    if (one.failing - other.failing).abs() > WORSE {
        return one.failing < other.failing;
    }
    let load = |server: &Server| f64::from(server.n_in_flight) / server.spec.weight;
    let (one_load, other_load) = (load(one), load(other));
    match (one_load > hot_above, other_load > hot_above) {
        (false, true) => true,
        (true, false) => false,
        (true, true) => one_load <= other_load,
        (false, false) => match (one.latency_s(now), other.latency_s(now)) {
            (Some(one_s), Some(other_s)) if one_s * 1.25 < other_s => true,
            (Some(one_s), Some(other_s)) if other_s * 1.25 < one_s => false,
            _ => one_load <= other_load,
        },
    }
}
