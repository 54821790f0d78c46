//! What is counted of a service's answers, for each lane for itself.

use http::StatusCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the latency histogram, in seconds; beyond the last one lies infinity.
pub const LATENCY_BOUNDS_S: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Answers since the beginning, by the hundred of their status, and how long they took.
#[derive(Default)]
#[repr(align(128))]
pub struct Counts {
    by_class: [AtomicU64; 6],
    by_latency: [AtomicU64; LATENCY_BOUNDS_S.len() + 1],
    latency_sum_us: AtomicU64,
    pub n_fallbacks: AtomicU64,
}

/// What all lanes have counted.
#[derive(Default)]
pub struct Sums {
    pub by_class: [u64; 6],
    pub by_latency: [u64; LATENCY_BOUNDS_S.len() + 1],
    pub latency_sum_us: u64,
    pub n_fallbacks: u64,
}

impl Counts {
    pub fn answer(&self, status: StatusCode, took: Duration) {
        let class = usize::from(status.as_u16() / 100).min(5);
        self.by_class[class].fetch_add(1, Relaxed);
        let took_s = took.as_secs_f64();
        let bucket = LATENCY_BOUNDS_S.iter().position(|bound| took_s <= *bound);
        self.by_latency[bucket.unwrap_or(LATENCY_BOUNDS_S.len())].fetch_add(1, Relaxed);
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.latency_sum_us.fetch_add(took_us, Relaxed);
    }

    pub fn add_to(&self, sums: &mut Sums) {
        let pairs = self.by_class.iter().zip(&mut sums.by_class);
        for (count, sum) in pairs.chain(self.by_latency.iter().zip(&mut sums.by_latency)) {
            *sum += count.load(Relaxed);
        }
        sums.latency_sum_us += self.latency_sum_us.load(Relaxed);
        sums.n_fallbacks += self.n_fallbacks.load(Relaxed);
    }
}
