//! A bulkhead: how many requests to one service may be under way at once. The limit follows the
//! latency between its bounds: while answers take as long as they do without load it grows, when
//! they take longer, requests queue somewhere, and it shrinks.
//!
//! Each window of answers gives the mean latency `l`; `base` is what it is without load:
//!
//! ```text
//!   gradient = clamp(tolerance · base / l, ½, 1)        limit' = limit · gradient + √limit
//! ```
//!
//! The square root is the queue that is always allowed, and what the limit grows by. The rule is
//! that of Netflix's concurrency-limits; `base` is ours: it falls to any lower mean at once, and
//! rises slowly, more slowly still under load, so that the queue's own latency is not taken for
//! the service's. Differences below [`SLACK`] say nothing.
//!
//! Near the limit the less important go first: a request of priority `p` is let in below
//! `limit · share(p)`.

use base::env::Instant;
use std::time::Duration;

/// Latency that may come from anywhere: a burst, a pause of a virtual machine. At 90 % load a queue
/// of a few milliseconds is no overload.
const SLACK: Duration = Duration::from_millis(25);
const WINDOW: Duration = Duration::from_millis(250);
const N_ANSWERS_MIN: u32 = 16;
/// How fast `base` forgets, per second: when the service has room, and when it has not.
const RISE_IDLE: f64 = 0.01;
const RISE_LOADED: f64 = 0.001;

/// How important a request is. Under overload the least important are refused first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    Low,
    #[default]
    Normal,
    High,
    Critical,
}

impl Priority {
    pub const ALL: [Priority; 4] =
        [Priority::Low, Priority::Normal, Priority::High, Priority::Critical];

    pub fn name(self) -> &'static str {
        match self {
            Priority::Low => "low",
            Priority::Normal => "normal",
            Priority::High => "high",
            Priority::Critical => "critical",
        }
    }

    pub fn of(name: &str) -> Option<Priority> {
        Priority::ALL.into_iter().find(|priority| priority.name() == name)
    }

    /// The share of a limit that requests of this priority may fill.
    pub fn share(self) -> f64 {
        match self {
            Priority::Low => 0.6,
            Priority::Normal => 0.9,
            Priority::High => 0.95,
            Priority::Critical => 1.0,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The limit's bounds, in requests under way. Equal bounds: a fixed limit.
    pub limit_min: u32,
    pub limit_max: u32,
    /// How many times longer than without load an answer may take.
    pub tolerance: f64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { limit_min: 64, limit_max: 4096, tolerance: 2.0 }
    }
}

/// The limit of the first moment, if the bounds allow it: what a burst needs before anything is
/// known.
const LIMIT_FIRST: f64 = 2048.0;

#[derive(Debug)]
pub struct Bulkhead {
    settings: Settings,
    limit: f64,
    n_in_flight: u32,
    n_in_flight_max: u32,
    base_s: Option<f64>,
    window_since: Instant,
    n_answers: u32,
    latency_sum_s: f64,
}

impl Bulkhead {
    pub fn new(now: Instant, settings: Settings) -> Bulkhead {
        let mut bulkhead = Bulkhead {
            limit: LIMIT_FIRST,
            settings: Settings::default(),
            n_in_flight: 0,
            n_in_flight_max: 0,
            base_s: None,
            window_since: now,
            n_answers: 0,
            latency_sum_s: 0.0,
        };
        bulkhead.set(settings);
        bulkhead
    }

    pub fn set(&mut self, settings: Settings) {
        let (min, max) = (f64::from(settings.limit_min.max(1)), f64::from(settings.limit_max));
        self.limit = self.limit.clamp(min, max.max(min));
        self.settings = settings;
    }

    /// Whether one more request is let in; it is counted until [`Bulkhead::release`].
    pub fn admit(&mut self, priority: Priority) -> bool {
        let room = (self.limit * priority.share()).max(1.0);
        let admitted = f64::from(self.n_in_flight) + 1.0 <= room;
        if admitted {
            self.n_in_flight += 1;
            self.n_in_flight_max = self.n_in_flight_max.max(self.n_in_flight);
        }
        admitted
    }

    pub fn release(&mut self) {
        self.n_in_flight = self.n_in_flight.saturating_sub(1);
    }

    /// An answer came, or did not within its time, after so long.
    pub fn answered(&mut self, now: Instant, latency: Duration) {
        self.n_answers += 1;
        self.latency_sum_s += latency.as_secs_f64();
        let open = now.saturating_duration_since(self.window_since);
        if open >= WINDOW && self.n_answers >= N_ANSWERS_MIN {
            let mean_s = self.latency_sum_s / f64::from(self.n_answers);
            self.learn(open.as_secs_f64(), mean_s);
            self.window_since = now;
            self.n_answers = 0;
            self.latency_sum_s = 0.0;
            self.n_in_flight_max = self.n_in_flight;
        }
    }

    fn learn(&mut self, open_s: f64, mean_s: f64) {
        let loaded = f64::from(self.n_in_flight_max) * 2.0 >= self.limit;
        let rise = if loaded { RISE_LOADED } else { RISE_IDLE };
        let base_s = match self.base_s {
            Some(base_s) => mean_s.min(base_s * (1.0 + rise * open_s.min(60.0))),
            None => mean_s,
        };
        self.base_s = Some(base_s);
        let gradient = if mean_s - base_s <= SLACK.as_secs_f64() {
            1.0
        } else {
            (self.settings.tolerance * base_s / mean_s).clamp(0.5, 1.0)
        };
        let queue = self.limit.sqrt();
        if gradient < 1.0 {
            self.limit = 0.8 * self.limit + 0.2 * (self.limit * gradient + queue);
        } else if loaded {
            self.limit += queue;
        }
        self.set(self.settings.clone());
    }

    pub fn limit(&self) -> u32 {
        self.limit as u32
    }

    pub fn n_in_flight(&self) -> u32 {
        self.n_in_flight
    }
}
