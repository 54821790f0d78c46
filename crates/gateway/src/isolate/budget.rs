//! How many requests retries and hedges may add: a share of the requests of the last seconds,
//! and at least a floor, so that a service with little traffic is retried at all.
//!
//! When everything fails, every request wants retries; with the budget the servers see at most
//! 1 + share times the requests, however many attempts each may make (Finagle's rule).

use super::window::{Counts, Window};
use base::env::Instant;
use std::time::Duration;

const WINDOW: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Retries allowed for each request, such as 0.2.
    pub share: f64,
    /// Retries allowed each second when the share allows fewer.
    pub floor_per_s: f64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { share: 0.2, floor_per_s: 3.0 }
    }
}

#[derive(Debug)]
pub struct Budget {
    settings: Settings,
    /// Requests under `n_all`, the retries they had under `n_failed`.
    window: Window,
}

impl Budget {
    pub fn new(now: Instant, settings: Settings) -> Budget {
        Budget { settings, window: Window::new(now, WINDOW) }
    }

    pub fn set(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// A request came.
    pub fn deposit(&mut self, now: Instant) {
        self.window.add(now, Counts { n_all: 1, ..Counts::default() });
    }

    /// Takes one retry out of the budget, if there is one.
    pub fn withdraw(&mut self, now: Instant) -> bool {
        let sum = self.window.sum(now);
        let by_share = f64::from(sum.n_all) * self.settings.share;
        let by_floor = self.settings.floor_per_s * WINDOW.as_secs_f64();
        let enough = f64::from(sum.n_failed) + 1.0 <= by_share.max(by_floor);
        if enough {
            self.window.add(now, Counts { n_failed: 1, ..Counts::default() });
        }
        enough
    }
}
