//! Requests that are alike, and how long each kind usually takes.
//!
//! A long poll takes fifteen seconds and is no sign of a slow server; a quick request that takes
//! three is. So latencies are compared with those of like requests alone. Each kind ([`Classes`]
//! keeps 64, by their number) has a usual latency: the median of its recent answers, which falls at
//! once and rises slowly, so that a queue is not taken for what is usual. What balances by latency
//! gets one scale, that of the quickest kind of any weight:
//!
//! ```text
//!   kind      usual     took     felt
//!   /quick    1 ms      3 ms     3 ms
//!   /poll     15 s      15 s     1 ms
//!   /poll     15 s      45 s     3 ms
//! ```
//!
//! Kinds whose usual latencies differ by little are taken as they are.

use base::env::Instant;
use std::time::Duration;

/// Kinds that are told apart. Those that share a place are taken for alike.
const N: usize = 64;
/// Answers that make a median, or as many as there are after this time.
const N_SAMPLES: usize = 16;
const N_SAMPLES_MIN: usize = 4;
const WINDOW: Duration = Duration::from_secs(2);
/// How fast what is usual is forgotten, per second.
const RISE: f64 = 0.005;
/// A kind this many times as slow as the quickest is slow by nature.
const BY_NATURE: f64 = 4.0;
/// The share of the answers that a kind must have to be the scale of all, and to stay it.
const SCALE_SHARE: f64 = 0.1;
const SCALE_SHARE_LEFT: f64 = 0.02;
/// Half of what is known of the shares is forgotten after this time.
const SHARES_HALVED: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Classes {
    classes: Box<[Class]>,
    /// The kind that is the scale.
    scale: Option<usize>,
    halved_at: Instant,
}

#[derive(Clone, Debug)]
struct Class {
    usual_s: Option<f64>,
    samples_s: Vec<f64>,
    since: Instant,
    n_recent: f64,
}

/// How an answer's latency is felt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Felt {
    /// None: nobody knows yet what is usual for its kind.
    pub latency: Option<Duration>,
    /// What is known of latencies so far has to be multiplied by this.
    pub rescale: Option<f64>,
}

impl Classes {
    pub fn new(now: Instant) -> Classes {
        let class = Class { usual_s: None, samples_s: Vec::new(), since: now, n_recent: 0.0 };
        Classes { classes: vec![class; N].into(), scale: None, halved_at: now }
    }

    /// An answer of a kind came after so long.
    pub fn answered(&mut self, now: Instant, class: u32, latency: Duration) -> Felt {
        let idx = class as usize % N;
        self.classes[idx].learn(now, latency);
        self.halve(now);
        let rescale = self.choose_scale();
        let scale_s = self.scale.and_then(|scale| self.classes[scale].usual_s);
        let latency = match (self.classes[idx].usual_s, scale_s) {
            (Some(own_s), Some(scale_s)) if own_s > BY_NATURE * scale_s => {
                Some(latency.mul_f64((scale_s / own_s).min(1.0)))
            }
            (Some(_), _) | (None, None) => Some(latency),
            (None, Some(_)) => None,
        };
        Felt { latency, rescale }
    }

    fn halve(&mut self, now: Instant) {
        if now.saturating_duration_since(self.halved_at) >= SHARES_HALVED {
            self.halved_at = now;
            self.classes.iter_mut().for_each(|class| class.n_recent /= 2.0);
        }
    }

    /// The scale stays while its kind is asked for at all.
    fn choose_scale(&mut self) -> Option<f64> {
        let all: f64 = self.classes.iter().map(|class| class.n_recent).sum();
        let has = |class: &Class, share: f64| class.n_recent >= share * all;
        let now_s = self.scale.and_then(|idx| self.classes[idx].usual_s);
        let is_kept = self.scale.is_some_and(|idx| has(&self.classes[idx], SCALE_SHARE_LEFT));
        let known = self.classes.iter().enumerate();
        let known = known.filter_map(|(idx, class)| Some((idx, class, class.usual_s?)));
        let quickest = known
            .filter(|(_, class, _)| has(class, SCALE_SHARE))
            .min_by(|(_, _, one), (_, _, other)| one.total_cmp(other));
        let (idx, _, usual_s) = quickest?;
        match now_s {
            // What is quicker, but not by nature, makes no other scale.
            Some(now_s) if is_kept && usual_s * BY_NATURE > now_s => None,
            Some(now_s) => {
                self.scale = Some(idx);
                Some(usual_s / now_s).filter(|factor| *factor != 1.0)
            }
            None => {
                self.scale = Some(idx);
                None
            }
        }
    }
}

impl Class {
    fn learn(&mut self, now: Instant, latency: Duration) {
        self.n_recent += 1.0;
        if self.samples_s.is_empty() && self.usual_s.is_none() {
            self.since = now;
        }
        self.samples_s.push(latency.as_secs_f64().max(1e-6));
        let n = self.samples_s.len();
        let passed = now.saturating_duration_since(self.since);
        if n < N_SAMPLES && (n < N_SAMPLES_MIN || passed < WINDOW) {
            return;
        }
        self.samples_s.sort_by(f64::total_cmp);
        let median_s = self.samples_s[n / 2];
        let risen_s = self.usual_s.map(|usual_s| usual_s * (1.0 + RISE * passed.as_secs_f64()));
        self.usual_s = Some(risen_s.map_or(median_s, |risen_s| risen_s.min(median_s)));
        self.samples_s.clear();
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::env::{Env, MemoryNet};
    use std::sync::Arc;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn what_is_slow_by_nature_is_felt_as_the_quickest_kind_is() {
        let mut now = Env::seeded(1, Arc::new(MemoryNet::default())).now();
        let mut classes = Classes::new(now);
        let mut answer = |class: u32, took: u64| {
            now += ms(10);
            classes.answered(now, class, ms(took))
        };
        for _ in 0..100 {
            assert_eq!(answer(1, 10).latency, Some(ms(10)), "one kind is taken as it is");
        }
        for _ in 0..15 {
            assert_eq!(answer(2, 15_000).latency, None, "nobody knows yet");
        }
        assert_eq!(answer(2, 15_000), Felt { latency: Some(ms(10)), rescale: None });
        let slow = answer(2, 45_000).latency.unwrap();
        assert!((29.0..31.0).contains(&(slow.as_secs_f64() * 1e3)), "{slow:?}");
        assert_eq!(answer(1, 30).latency, Some(ms(30)));
        for _ in 0..16 {
            answer(3, 20);
        }
        assert_eq!(answer(3, 25).latency, Some(ms(25)), "twice as long is no other nature");
    }

    #[test]
    fn the_scale_follows_when_its_kind_is_no_longer_asked_for() {
        let mut now = Env::seeded(1, Arc::new(MemoryNet::default())).now();
        let mut classes = Classes::new(now);
        for _ in 0..100 {
            now += ms(10);
            classes.answered(now, 1, ms(10));
        }
        let mut factors = Vec::new();
        for _ in 0..2000 {
            now += ms(100);
            factors.extend(classes.answered(now, 2, ms(1000)).rescale);
        }
        assert_eq!(factors.len(), 1, "{factors:?}");
        assert!((80.0..120.0).contains(&factors[0]), "{factors:?}");
        assert_eq!(classes.answered(now, 2, ms(1000)).latency, Some(ms(1000)));
    }
}
