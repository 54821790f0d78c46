//! Counts over the last seconds, in a ring of buckets: what is older than the window falls out a
//! tenth at a time.

use base::env::Instant;
use std::time::Duration;

const N_BUCKETS: usize = 10;

/// What happened to requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub n_all: u32,
    pub n_failed: u32,
    pub n_slow: u32,
}

impl Counts {
    /// Share of all that failed, 0 to 1; 0 when there was nothing.
    pub fn failed(&self) -> f64 {
        share(self.n_failed, self.n_all)
    }

    /// Share of all that were slow, 0 to 1.
    pub fn slow(&self) -> f64 {
        share(self.n_slow, self.n_all)
    }

    fn add(&mut self, other: Counts) {
        self.n_all = self.n_all.saturating_add(other.n_all);
        self.n_failed = self.n_failed.saturating_add(other.n_failed);
        self.n_slow = self.n_slow.saturating_add(other.n_slow);
    }
}

fn share(part: u32, all: u32) -> f64 {
    // A failure that is seen late may be counted when its request has fallen out.
    if all == 0 { 0.0 } else { (f64::from(part) / f64::from(all)).min(1.0) }
}

/// [`Counts`] of the last `span`.
#[derive(Debug)]
pub struct Window {
    buckets: [Counts; N_BUCKETS],
    bucket: Duration,
    current: usize,
    current_since: Instant,
}

impl Window {
    pub fn new(now: Instant, span: Duration) -> Window {
        let bucket = (span / N_BUCKETS as u32).max(Duration::from_millis(1));
        Window { buckets: Default::default(), bucket, current: 0, current_since: now }
    }

    pub fn add(&mut self, now: Instant, counts: Counts) {
        self.turn(now);
        self.buckets[self.current].add(counts);
    }

    pub fn sum(&mut self, now: Instant) -> Counts {
        self.turn(now);
        let mut sum = Counts::default();
        for bucket in &self.buckets {
            sum.add(*bucket);
        }
        sum
    }

    pub fn clear(&mut self) {
        self.buckets = Default::default();
    }

    fn turn(&mut self, now: Instant) {
        let gone = now.saturating_duration_since(self.current_since);
        if gone < self.bucket {
            return;
        }
        let n_turns = gone.as_nanos() / self.bucket.as_nanos();
        let n_turns = u32::try_from(n_turns).unwrap_or(u32::MAX);
        for _ in 0..n_turns.min(N_BUCKETS as u32) {
            self.current = (self.current + 1) % N_BUCKETS;
            self.buckets[self.current] = Counts::default();
        }
        self.current_since = if n_turns > N_BUCKETS as u32 {
            now
        } else {
            self.current_since + self.bucket * n_turns
        };
    }
}
