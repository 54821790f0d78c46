//! Recent latencies as a histogram: eight steps an octave, so that a quantile is at most an
//! eighth too large. Two generations of ten seconds: the last one and the one that is being
//! filled, so that what is older is forgotten.

use base::env::Instant;
use std::time::Duration;

const SPAN: Duration = Duration::from_secs(10);
const STEPS: u64 = 8;
/// Up to 2⁴⁰ microseconds, twelve days.
const N_BUCKETS: usize = 8 * 38;

#[derive(Debug)]
pub struct Latencies {
    current: Box<[u32; N_BUCKETS]>,
    previous: Box<[u32; N_BUCKETS]>,
    n_current: u64,
    n_previous: u64,
    since: Instant,
}

impl Latencies {
    pub fn new(now: Instant) -> Latencies {
        Latencies {
            current: Box::new([0; N_BUCKETS]),
            previous: Box::new([0; N_BUCKETS]),
            n_current: 0,
            n_previous: 0,
            since: now,
        }
    }

    pub fn add(&mut self, now: Instant, latency: Duration) {
        self.turn(now);
        self.current[bucket(latency)] += 1;
        self.n_current += 1;
    }

    fn turn(&mut self, now: Instant) {
        let gone = now.saturating_duration_since(self.since);
        if gone < SPAN {
            return;
        }
        std::mem::swap(&mut self.current, &mut self.previous);
        self.n_previous = self.n_current;
        if gone >= SPAN * 2 {
            self.previous.fill(0);
            self.n_previous = 0;
        }
        self.current.fill(0);
        self.n_current = 0;
        self.since = now;
    }

    pub fn n(&self) -> u64 {
        self.n_current + self.n_previous
    }

    /// The latency that `share` (0 to 1) of the recent ones do not exceed; none when there are
    /// none.
    pub fn quantile(&mut self, now: Instant, share: f64) -> Option<Duration> {
        self.turn(now);
        let n_below = (self.n() as f64 * share.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut n = 0;
        for (bucket, (current, previous)) in
            self.current.iter().zip(self.previous.iter()).enumerate()
        {
            n += u64::from(*current) + u64::from(*previous);
            if n >= n_below {
                return Some(upper(bucket));
            }
        }
        None
    }
}

fn bucket(latency: Duration) -> usize {
    let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
    if us < STEPS {
        return us as usize;
    }
    let octave = u64::from(us.ilog2()) - 3;
    let step = (us >> octave) - STEPS;
    usize::try_from((octave + 1) * STEPS + step).unwrap_or(N_BUCKETS).min(N_BUCKETS - 1)
}

/// The largest latency that falls into the bucket.
fn upper(bucket: usize) -> Duration {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return Duration::from_micros(bucket);
    }
    let (octave, step) = (bucket / STEPS - 1, bucket % STEPS);
    Duration::from_micros(((STEPS + step + 1) << octave) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_falls_into_it_and_no_more_than_an_eighth_above() {
        for us in (0..5_000).chain((1..1_000).map(|n| n * 7_919)) {
            let latency = Duration::from_micros(us);
            let upper = upper(bucket(latency));
            assert!(upper >= latency, "{us} µs");
            assert!(upper.as_micros() as u64 <= us + us / 8, "{us} µs: {upper:?}");
        }
    }
}
