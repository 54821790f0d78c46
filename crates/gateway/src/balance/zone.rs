//! How much of what a zone is offered it takes: its share.
//!
//! The share follows a target, the least of three ramps: load, latency and failures, each 1 up to
//! its threshold and 0 at a multiple of it. It falls and rises by degrees, so that a zone is not
//! left for a hiccup, and the next one is not hit by all requests at once:
//!
//! ```text
//!   target 1 ───────┐                 share 1 ───╲
//!                    ╲                             ╲  `fall_per_s`      ╱ `rise_per_s`
//!          0          └──────                       ╲________________╱
//!              max   k·max                          (the zone is slow)
//! ```
//!
//! Only a zone with no open server is out at once.
//!
//! A share moves within seconds; a queue grows within milliseconds. So a zone has room, too: as many
//! requests without an answer as it answers within the latency that is allowed (Little's law: rate times
//! latency). What comes beyond that goes to the next closest at once. Without it the shares of zones
//! that are overloaded one after the other swing, and never settle.

use super::settings::Settings;
use crate::isolate::window::Window;
use base::env::Instant;
use std::time::Duration;

/// How long an answer counts in a zone's latency.
const MEMORY_S: f64 = 1.0;
/// Answers older than this say nothing about now.
const STALE: Duration = Duration::from_secs(5);
/// Failures older than this say nothing: a zone whose servers all begin to fail at once must be
/// left before the budget for retries is spent on it.
const WINDOW: Duration = Duration::from_secs(3);
/// Requests without an answer that each open server may have, however few it has answered.
const ROOM_MIN: u32 = 4;
/// What a zone that fails altogether counts for, beside others.
const WORKS_MIN: f64 = 0.05;
/// How fast the latency of better days is forgotten, per second.
const BASE_RISE: f64 = 0.005;

#[derive(Debug)]
pub struct Zone {
    pub name: String,
    pub tier: usize,
    /// Its servers that get requests, by their place in the fleet.
    pub open: Vec<u32>,
    /// Sum of the weights of `open`, less what warms up; and of all its servers.
    pub open_weight: f64,
    pub all_weight: f64,
    pub n_in_flight: u32,
    /// Of those, the requests that have no answer yet and that no later one has overtaken. An answer
    /// that streams, or a tunnel, or a long poll, takes no room: it says nothing about the zone's
    /// speed.
    pub n_waiting: u32,
    pub share: f64,
    /// Requests under way per weight above which a server is hot.
    pub hot_above: f64,
    pub window: Window,
    latency_s: Option<f64>,
    answered_at: Instant,
    base_s: Option<f64>,
    /// Answers since the last step, and per second.
    n_answers: u32,
    rate: f64,
    /// Requests without an answer that it may have.
    room: u32,
    /// 1 while its failures are few, down to 0.
    works: f64,
}

impl Zone {
    pub fn new(now: Instant, name: String, tier: usize) -> Zone {
        Zone {
            name,
            tier,
            open: Vec::new(),
            open_weight: 0.0,
            all_weight: 0.0,
            n_in_flight: 0,
            n_waiting: 0,
            share: 1.0,
            hot_above: 0.0,
            window: Window::new(now, WINDOW),
            latency_s: None,
            answered_at: now,
            base_s: None,
            n_answers: 0,
            rate: 0.0,
            room: u32::MAX,
            works: 1.0,
        }
    }

    pub fn has_room(&self) -> bool {
        self.n_waiting < self.room
    }

    /// What it can do beside the other zones: its open servers, less what fails.
    pub fn ability(&self) -> f64 {
        self.open_weight * self.works.max(WORKS_MIN)
    }

    pub fn answered(&mut self, now: Instant, latency: Duration) {
        let sample = latency.as_secs_f64();
        let gone = now.saturating_duration_since(self.answered_at).as_secs_f64();
        let weight = (1.0 - (-gone / MEMORY_S).exp()).clamp(0.005, 0.2);
        self.latency_s = Some(match self.latency_s {
            Some(mean) if gone < STALE.as_secs_f64() => mean + weight * (sample - mean),
            _ => sample,
        });
        self.answered_at = now;
        self.n_answers += 1;
    }

    pub fn rescale(&mut self, factor: f64) {
        self.latency_s = self.latency_s.map(|latency_s| latency_s * factor);
        self.base_s = self.base_s.map(|base_s| base_s * factor);
    }

    /// The mean latency of its recent answers, in seconds; none when there were none.
    pub fn latency_s(&self, now: Instant) -> Option<f64> {
        let fresh = now.saturating_duration_since(self.answered_at) < STALE;
        self.latency_s.filter(|_| fresh)
    }

    /// Ribbon's measure: requests under way over open servers. None for a zone without one.
    pub fn load(&self) -> Option<f64> {
        let n_open = self.open.len() as f64;
        (n_open > 0.0).then(|| f64::from(self.n_in_flight) / n_open)
    }

    /// What an answer takes on the zone's better days, in seconds.
    pub fn base_s(&self) -> Option<f64> {
        self.base_s
    }

    /// Moves the share after `passed`. `other_s` is the best latency of the other zones, `best_s`
    /// that of any zone's better days: a zone that was full from its beginning has had none.
    pub fn step(
        &mut self,
        now: Instant,
        passed: Duration,
        settings: &Settings,
        other_s: Option<f64>,
        best_s: Option<f64>,
    ) {
        let latency_s = self.latency_s(now);
        if let Some(own) = latency_s {
            let risen = self.base_s.map(|base| base * (1.0 + BASE_RISE * passed.as_secs_f64()));
            self.base_s = Some(risen.map_or(own, |base| base.min(own)));
        }
        let passed_s = passed.as_secs_f64();
        let weight = 1.0 - (-passed_s / MEMORY_S).exp();
        self.rate += weight * (f64::from(self.n_answers) / passed_s.max(1e-3) - self.rate);
        self.n_answers = 0;
        let base_s = self.base_s.map(|own| best_s.map_or(own, |best| best.min(own)));
        let reference_s = base_s.map(|base_s| base_s.max(other_s.unwrap_or(0.0)));
        self.room = reference_s.map_or(u32::MAX, |reference_s| {
            let allowed_s =
                settings.latency_max * reference_s + settings.latency_slack.as_secs_f64();
            (self.rate * allowed_s) as u32 + ROOM_MIN * self.open.len() as u32
        });
        let target = self.target(now, settings, latency_s, reference_s);
        let by = target - self.share;
        self.share += by.clamp(-settings.fall_per_s * passed_s, settings.rise_per_s * passed_s);
        self.share = self.share.clamp(0.0, 1.0);
    }

    fn target(
        &mut self,
        now: Instant,
        settings: &Settings,
        latency_s: Option<f64>,
        reference_s: Option<f64>,
    ) -> f64 {
        let load = self.load().unwrap_or(0.0);
        let counts = self.window.sum(now);
        let enough = counts.n_all >= settings.n_requests_min;
        let slow = match (latency_s, reference_s) {
            (Some(own), Some(reference)) if enough => {
                let excess = own - reference > settings.latency_slack.as_secs_f64();
                if excess { own / reference.max(1e-9) } else { 0.0 }
            }
            _ => 0.0,
        };
        let failed = if enough { counts.failed() } else { 0.0 };
        let by_load = ramp(load, settings.load_max, 2.0 * settings.load_max);
        let by_latency = ramp(slow, settings.latency_max, 3.0 * settings.latency_max);
        let by_failures = ramp(failed, settings.failed_max, (5.0 * settings.failed_max).min(1.0));
        self.works = by_failures;
        by_load.min(by_latency).min(by_failures)
    }
}

/// 1 up to `from`, 0 from `to` on, straight in between.
fn ramp(value: f64, from: f64, to: f64) -> f64 {
    if value <= from {
        1.0
    } else if value >= to {
        0.0
    } else {
        (to - value) / (to - from)
    }
}
