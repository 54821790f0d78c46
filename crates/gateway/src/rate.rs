//! How many requests of one kind of asker are let in: buckets of tokens, one for each key.
//!
//! A bucket is full at first (`burst`), a request takes one token out, and `per_s` come back each
//! second. Keys come from clients, so their number is bounded: when there are too many, those that
//! are full again are forgotten, which changes nothing for them, and after that all of them.

use crate::config::RateLimit;
use base::env::Instant;
use std::collections::HashMap;
use std::time::Duration;

/// Buckets of one route.
const N_MAX: usize = 100_000;

#[derive(Debug, Default)]
pub struct Buckets {
    buckets: HashMap<String, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    n_tokens: f64,
    at: Instant,
}

impl Buckets {
    /// Takes a token out of the key's bucket, or says how long it is until there is one.
    pub fn take(&mut self, now: Instant, limit: &RateLimit, key: &str) -> Result<(), Duration> {
        let RateLimit { per_s, burst, .. } = *limit;
        let filled = |bucket: &Bucket| {
            let passed_s = now.saturating_duration_since(bucket.at).as_secs_f64();
            (bucket.n_tokens + per_s * passed_s).min(burst)
        };
        if self.buckets.len() >= N_MAX && !self.buckets.contains_key(key) {
            self.buckets.retain(|_, bucket| filled(bucket) < burst);
            if self.buckets.len() >= N_MAX {
                self.buckets.clear();
            }
        }
        let Some(bucket) = self.buckets.get_mut(key) else {
            self.buckets.insert(key.to_owned(), Bucket { n_tokens: burst - 1.0, at: now });
            return Ok(());
        };
        let n_tokens = filled(bucket);
        *bucket = Bucket { n_tokens, at: now };
        if n_tokens < 1.0 {
            return Err(Duration::from_secs_f64(((1.0 - n_tokens) / per_s).min(3600.0)));
        }
        bucket.n_tokens -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::By;
    use base::env::{Env, MemoryNet};
    use std::sync::Arc;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut now = Env::seeded(1, Arc::new(MemoryNet::default())).now();
        let mut buckets = Buckets::default();
        let limit = RateLimit { per_s: 10.0, burst: 3.0, by: By::Client };
        let mut n = 0;
        for _ in 0..1000 {
            n += usize::from(buckets.take(now, &limit, "a").is_ok());
            now += Duration::from_millis(10);
        }
        assert!((102..=103).contains(&n), "{n} in ten seconds");
        assert!(buckets.take(now, &limit, "b").is_ok(), "another one has its own");
        let waits: Vec<_> = (0..3).filter_map(|_| buckets.take(now, &limit, "b").err()).collect();
        assert_eq!(waits, [Duration::from_millis(100)]);
        for n in 0..250_000 {
            assert!(buckets.take(now, &limit, &n.to_string()).is_ok());
            assert!(buckets.buckets.len() <= N_MAX);
        }
    }
}
