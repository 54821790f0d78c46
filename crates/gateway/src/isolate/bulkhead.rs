//! A bulkhead: how many requests to one service may be under way at once. The limit follows the
//! latency between its bounds: while answers take as long as they do without load it grows, when
//! they take longer, requests queue somewhere, and it shrinks.
//!
//! Requests of a service differ: each kind has its latencies for itself, and of those a low quantile
//! counts, as a queue makes even the quickest wait, and what waits on purpose (a long poll) makes
//! nobody else wait. Each window of answers gives such a latency `l` for each kind; `base` is what it
//! is without load:
//!
//! ```text
//!   gradient = clamp(tolerance · base / l, ½, 1)        limit' = limit · gradient + √limit
//! ```
//!
//! Of the kinds' gradients the median counts, weighted by their answers. The square root is the queue that is always allowed, and what the limit grows by. The rule is
//! that of Netflix's concurrency-limits; `base` is ours: it falls to any lower `l` at once, and
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
/// Kinds that are told apart; those that share a place are taken for alike.
const N_KINDS: usize = 64;
/// The latest answers of a kind that its quantile is of, and fewer that tell nothing.
const N_SAMPLES: usize = 32;
const N_SAMPLES_MIN: usize = 4;
/// The share of a kind's answers that are quicker than the latency that counts.
const QUANTILE: f64 = 0.25;
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
    kinds: Box<[Kind]>,
    window_since: Instant,
    n_answers: u32,
}

#[derive(Clone, Debug, Default)]
struct Kind {
    base_s: Option<f64>,
    /// Of this window.
    samples_s: Vec<f64>,
    n_answers: u32,
}

impl Bulkhead {
    pub fn new(now: Instant, settings: Settings) -> Bulkhead {
        let mut bulkhead = Bulkhead {
            limit: LIMIT_FIRST,
            settings: Settings::default(),
            n_in_flight: 0,
            n_in_flight_max: 0,
            kinds: vec![Kind::default(); N_KINDS].into(),
            window_since: now,
            n_answers: 0,
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

    /// An answer of a kind came, or did not within its time, after so long.
    pub fn answered(&mut self, now: Instant, class: u32, latency: Duration) {
        self.n_answers += 1;
        let kind = &mut self.kinds[class as usize % N_KINDS];
        let sample_s = latency.as_secs_f64();
        match kind.samples_s.len() < N_SAMPLES {
            true => kind.samples_s.push(sample_s),
            false => kind.samples_s[kind.n_answers as usize % N_SAMPLES] = sample_s,
        }
        kind.n_answers += 1;
        let open = now.saturating_duration_since(self.window_since);
        if open >= WINDOW && self.n_answers >= N_ANSWERS_MIN {
            self.learn(open.as_secs_f64());
            self.window_since = now;
            self.n_answers = 0;
            self.n_in_flight_max = self.n_in_flight;
        }
    }

    fn learn(&mut self, open_s: f64) {
        let loaded = f64::from(self.n_in_flight_max) * 2.0 >= self.limit;
        let rise = if loaded { RISE_LOADED } else { RISE_IDLE };
        let rise = 1.0 + rise * open_s.min(60.0);
        let tolerance = self.settings.tolerance;
        let mut gradients: Vec<(f64, u32)> = self
            .kinds
            .iter_mut()
            .filter_map(|kind| Some((kind.gradient(rise, tolerance)?, kind.n_answers)))
            .collect();
        for kind in &mut self.kinds {
            kind.samples_s.clear();
            kind.n_answers = 0;
        }
        let Some(gradient) = weighted_median(&mut gradients) else { return };
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

impl Kind {
    /// How much smaller its latency wants the limit to be, ½ to 1; none: it had few answers.
    fn gradient(&mut self, rise: f64, tolerance: f64) -> Option<f64> {
        if self.samples_s.len() < N_SAMPLES_MIN {
            return None;
        }
        self.samples_s.sort_by(f64::total_cmp);
        let at = (self.samples_s.len() as f64 * QUANTILE) as usize;
        let own_s = *self.samples_s.get(at)?;
        let base_s = self.base_s.map_or(own_s, |base_s| own_s.min(base_s * rise));
        self.base_s = Some(base_s);
        Some(match own_s - base_s <= SLACK.as_secs_f64() {
            true => 1.0,
            false => (tolerance * base_s / own_s).clamp(0.5, 1.0),
        })
    }
}

/// The value that half of the weight lies at or below.
fn weighted_median(values: &mut [(f64, u32)]) -> Option<f64> {
    values.sort_by(|one, other| one.0.total_cmp(&other.0));
    let all: u64 = values.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let mut below = 0;
    values.iter().find_map(|(value, weight)| {
        below += u64::from(*weight);
        (2 * below >= all).then_some(*value)
    })
}
