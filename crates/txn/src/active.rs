//! A running transaction, as other tasks and nodes see it: what its node answers for it, and how a search
//! for deadlocks ends its wait. Its own writes and locks are not here.

use crate::words::Isolation;
use base::env::Instant;
use base::{TabletId, TxnId};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// How long no other victim is taken for a circle: longer than it takes the first one to hear of it.
const SENTENCE: Duration = Duration::from_secs(2);

pub(crate) struct Active {
    pub(crate) isolation: Isolation,
    /// By the wall clock, for people.
    pub(crate) started_us: i64,
    pub(crate) started: Instant,
    pub(crate) committing: AtomicBool,
    /// The tablets in which it waits for locks right now, each with the number of waits: the scans of one
    /// statement may wait side by side.
    pub(crate) waiting: Mutex<BTreeMap<TabletId, usize>>,
    /// How many waits it has begun.
    pub(crate) n_waits: AtomicU64,
    /// The error's detail, once it was chosen to break a deadlock.
    pub(crate) doom: watch::Sender<Option<String>>,
    /// The victim of the circle of which this transaction is the arbiter, and since when.
    pub(crate) sentenced: Mutex<Option<(TxnId, Instant)>>,
}

impl Active {
    /// The first who names a victim is right, until that one has had time to be gone.
    pub(crate) fn may_doom(&self, victim: TxnId, now: Instant) -> bool {
        let mut sentenced = self.sentenced.lock();
        match *sentenced {
            Some((other, at)) if other != victim && now < at + SENTENCE => false,
            Some((same, _)) if same == victim => true,
            _ => {
                *sentenced = Some((victim, now));
                true
            }
        }
    }

    /// Ends the transaction's wait, if it has begun no other since its `n_waits`-th. A transaction that
    /// waits no longer, or for something else, has left the circle by itself.
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
