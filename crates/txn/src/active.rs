//! A running transaction as others see it: what its node answers for it, and how a search for
//! deadlocks ends its wait. Its own writes and locks are not here.

use crate::words::Isolation;
use base::TabletId;
use base::env::Instant;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::watch;

pub(crate) struct Active {
    pub(crate) isolation: Isolation,
    /// By the wall clock, for people.
    pub(crate) started_us: i64,
    pub(crate) started: Instant,
    pub(crate) committing: AtomicBool,
    /// The tablets in which it waits for locks right now, and for how many: one statement's scans
    /// may wait side by side.
    pub(crate) waiting: Mutex<BTreeMap<TabletId, usize>>,
    /// How many waits it has begun.
    pub(crate) n_waits: AtomicU64,
    /// Why it was chosen to break a deadlock.
    pub(crate) doom: watch::Sender<Option<String>>,
}

impl Active {
    /// Ends a wait, if none has begun since there were `n_waits`. One that waits no more, or for
    /// something else, has left the circle by itself.
    pub(crate) fn doom(&self, n_waits: u64, detail: String) {
        let waiting = self.waiting.lock();
        if !waiting.is_empty() && self.n_waits.load(Ordering::Relaxed) == n_waits {
            self.doom.send_replace(Some(detail));
        }
    }

    #[cfg(test)]
    pub(crate) fn is_doomed(&self) -> bool {
        self.doom.borrow().is_some()
    }
}
