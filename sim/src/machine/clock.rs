//! One true time, and what each host takes it for.
//!
//! The true time is nanoseconds since the run began. A host's monotonic clock runs a little fast
//! or slow; its wall clock may in addition stand anywhere, and jump.

use std::sync::atomic::{AtomicU64, Ordering};

/// What monotonic clocks show at the beginning: programs may subtract hours from it.
const MONOTONIC_START_NS: u64 = 1_000_000 * 1_000_000_000;
/// What a right wall clock shows at the beginning: 2026-01-01, 00:00 UTC.
const WALL_START_NS: i128 = 1_767_225_600 * 1_000_000_000;

static NOW_NS: AtomicU64 = AtomicU64::new(0);

/// The true time, in nanoseconds.
pub fn now_ns() -> u64 {
    NOW_NS.load(Ordering::Relaxed)
}

pub(super) fn advance_to(ns: u64) {
    NOW_NS.fetch_max(ns, Ordering::Relaxed);
}

/// A host's clocks.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// What it gains in a million seconds of true time; negative if it is slow.
    drift_ppm: i64,
    /// How far the wall clock is off, beside the drift.
    wall_offset_ns: i128,
    /// Where the present drift began: true time, and what the monotonic clock showed then.
    since_ns: u64,
    shown_ns: u64,
    /// Stands still, and will go on from where it stands.
    is_frozen: bool,
}

impl Clock {
    pub const RIGHT: Clock = Clock {
        drift_ppm: 0,
        wall_offset_ns: 0,
        since_ns: 0,
        shown_ns: MONOTONIC_START_NS,
        is_frozen: false,
    };

    pub fn monotonic_ns(&self, now_ns: u64) -> u64 {
        if self.is_frozen {
            return self.shown_ns;
        }
        let passed = i128::from(now_ns - self.since_ns);
        let gained = passed * i128::from(self.drift_ppm) / 1_000_000;
        (i128::from(self.shown_ns) + passed + gained) as u64
    }

    pub fn wall_ns(&self, now_ns: u64) -> i128 {
        let passed = i128::from(self.monotonic_ns(now_ns)) - i128::from(MONOTONIC_START_NS);
        WALL_START_NS + passed + self.wall_offset_ns
    }

    /// The true time at which the monotonic clock shows `shown_ns` or more.
    pub fn true_ns(&self, shown_ns: u64) -> u64 {
        let ahead = i128::from(shown_ns) - i128::from(self.shown_ns);
        let rate = 1_000_000 + i128::from(self.drift_ppm);
        // Rounded up: who wakes must find its deadline passed.
        let passed = (ahead * 1_000_000 + rate - 1).div_euclid(rate);
        (i128::from(self.since_ns) + passed).max(0) as u64
    }

    /// Runs at another pace from now on.
    pub fn set_drift(&mut self, now_ns: u64, drift_ppm: i64) {
        self.shown_ns = self.monotonic_ns(now_ns);
        self.since_ns = now_ns;
        self.drift_ppm = drift_ppm;
    }

    /// Stops, or goes on as if no time had passed.
    pub fn set_frozen(&mut self, now_ns: u64, is_frozen: bool) {
        self.shown_ns = self.monotonic_ns(now_ns);
        self.since_ns = now_ns;
        self.is_frozen = is_frozen;
    }

    pub fn set_wall_offset_s(&mut self, offset_s: i64) {
        self.wall_offset_ns = i128::from(offset_s) * 1_000_000_000;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_reached_when_the_host_thinks_so() {
        for drift_ppm in [-50_000, -1, 0, 1, 333, 50_000] {
            let mut clock = Clock::RIGHT;
            clock.set_drift(123_456_789, drift_ppm);
            for ahead in [10, 1_000_000, 7_777_777_777] {
                let deadline = clock.monotonic_ns(123_456_789) + ahead;
                let at = clock.true_ns(deadline);
                assert!(clock.monotonic_ns(at) >= deadline, "{drift_ppm} {ahead}");
                assert!(clock.monotonic_ns(at - 2) < deadline, "{drift_ppm} {ahead}");
            }
        }
    }

    #[test]
    fn a_change_of_pace_does_not_make_time_jump() {
        let mut clock = Clock::RIGHT;
        clock.set_drift(1_000_000_000, 10_000);
        let before = clock.monotonic_ns(5_000_000_000);
        clock.set_drift(5_000_000_000, -10_000);
        assert_eq!(clock.monotonic_ns(5_000_000_000), before);
        clock.set_wall_offset_s(-600);
        assert_eq!(clock.monotonic_ns(5_000_000_000), before);
    }

    #[test]
    fn a_frozen_clock_goes_on_from_where_it_stood() {
        let mut clock = Clock::RIGHT;
        clock.set_drift(0, 100);
        let (shown, wall) = (clock.monotonic_ns(1_000_000), clock.wall_ns(1_000_000));
        clock.set_frozen(1_000_000, true);
        assert_eq!(clock.monotonic_ns(9_000_000_000), shown);
        clock.set_frozen(9_000_000_000, false);
        assert_eq!(clock.monotonic_ns(9_000_000_000), shown);
        assert_eq!(clock.wall_ns(9_000_000_000), wall);
        assert_eq!(clock.monotonic_ns(9_001_000_000), shown + 1_000_100);
        let deadline = shown + 5_000_000;
        assert!(clock.monotonic_ns(clock.true_ns(deadline)) >= deadline);
    }
}
