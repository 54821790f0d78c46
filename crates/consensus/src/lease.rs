//! The leader's lease, remembered so that asking for it costs a few atomic loads.
//!
//! A lease says: until this moment a quorum has promised to vote for no other node. A promise does
//! not shrink, so a lease once computed holds until it runs out. Example: a quorum has answered what
//! the leader asked at 1,000 ms; with a lease of 800 ms the leader serves until 1,800 ms.
//!
//! There is one exception: a leader that hands over sets its voters free. It gives up its leases first,
//! for the whole term, because a successor that was asked to campaign may do so at any later time.
//!
//! What is absent: this file sends nothing and reads no clock. `group` computes leases from what
//! openraft knows, and callers pass the time.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Times are in microseconds since the node's groups began.
#[derive(Default)]
pub(crate) struct Lease {
    term: AtomicU64,
    until_us: AtomicU64,
    /// Leases of this term and of all before it are given up.
    given_up: AtomicU64,
    renewing: Mutex<()>,
}

impl Lease {
    /// Whether a remembered lease of `term` holds at `now_us`.
    pub fn holds(&self, term: u64, now_us: u64) -> bool {
        // The term is read before and after the time. A time of a later term was written after that term,
        // so the second reading of the term sees the later one.
        self.term.load(Ordering::Acquire) == term
            && now_us < self.until_us.load(Ordering::Acquire)
            && self.term.load(Ordering::Acquire) == term
            && !self.is_given_up(term)
    }

    /// Remembers that `term` has a lease until `until_us`. Terms only grow.
    pub fn renew(&self, term: u64, until_us: u64) {
        let _renewing = self.renewing.lock();
        let known = self.term.load(Ordering::Relaxed);
        if term < known {
            return;
        }
        if term > known {
            self.until_us.store(0, Ordering::Release);
            self.term.store(term, Ordering::Release);
        }
        self.until_us.fetch_max(until_us, Ordering::Release);
    }

    /// From now on no lease of `term`, or of an earlier term, holds.
    pub fn give_up(&self, term: u64) {
        self.given_up.fetch_max(term, Ordering::AcqRel);
    }

    pub fn is_given_up(&self, term: u64) -> bool {
        self.given_up.load(Ordering::Acquire) >= term
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_belongs_to_its_term_and_ends() {
        let lease = Lease::default();
        lease.renew(3, 100);
        assert!(lease.holds(3, 99) && !lease.holds(3, 100));
        assert!(!lease.holds(2, 0) && !lease.holds(4, 0));
        lease.renew(3, 50);
        assert!(lease.holds(3, 99), "a promise does not shrink");
        lease.renew(4, 60);
        assert!(lease.holds(4, 59) && !lease.holds(4, 99), "nor does it pass to another term");
        lease.renew(3, 500);
        assert!(!lease.holds(3, 59));
    }

    #[test]
    fn what_was_given_up_does_not_come_back() {
        let lease = Lease::default();
        lease.renew(3, 100);
        lease.give_up(3);
        lease.renew(3, 200);
        assert!(!lease.holds(3, 0));
        lease.renew(4, 100);
        assert!(lease.holds(4, 0));
    }
}
