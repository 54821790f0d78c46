//! The SCN service: one counter for the cluster.
//!
//! It runs at the leader of the root tablet. Numbers come from memory. The log holds a ceiling that no
//! number handed out exceeds; the leader raises it in steps, long before it is reached. A new leader
//! starts above the ceiling that it finds, so it never repeats a number of its predecessor.
//!
//! Example: the ceiling is 2,000,000 and the leader has handed out 1,400,000 when it dies. The new
//! leader hands out 2,000,001 first.
//!
//! The predecessor must not hand out smaller numbers meanwhile. So the leader asks a quorum after it took the
//! numbers, and a leader that a quorum does not confirm hands out nothing. A lease would not do: the leader's clock
//! may have stood still, and a commit under a smaller number changes for ever what others have read. For the newest
//! number, which a snapshot is, the lease is enough.

use base::Scn;

/// How far the ceiling is raised at a time. A new leader skips at most this many numbers.
const STEP: u64 = 1_000_000;
const RESERVED: u64 = 1_000;

/// The counter of one leadership. Pure.
#[derive(Debug)]
pub struct Allocator {
    next: u64,
    ceiling: u64,
    raising: bool,
}

impl Allocator {
    /// Starts above `ceiling`, the highest that the log holds. Hands out nothing until raised.
    /// The first thousand numbers are left for ids that Atoll itself gives (the first tablets).
    pub fn new(ceiling: Scn) -> Allocator {
        Allocator { next: ceiling.0.max(RESERVED) + 1, ceiling: ceiling.0, raising: false }
    }

    /// The newest number handed out.
    pub fn current(&self) -> Scn {
        Scn(self.next - 1)
    }

    /// Takes `n` numbers and returns the first; none if the ceiling has to be raised first.
    pub fn take(&mut self, n: u64) -> Option<Scn> {
        let end = self.next.checked_add(n)?;
        if end - 1 > self.ceiling || self.next > self.ceiling {
            return None;
        }
        let first = self.next;
        self.next = end;
        Some(Scn(first))
    }

    /// The ceiling to propose: some once half of the last step is used up, unless it is being raised.
    pub fn wants(&mut self) -> Option<Scn> {
        if self.raising || self.ceiling.saturating_sub(self.next) > STEP / 2 {
            return None;
        }
        self.raising = true;
        Some(Scn(self.next + STEP))
    }

    /// The proposal for `ceiling` was applied.
    pub fn raised(&mut self, ceiling: Scn) {
        self.raising = false;
        self.ceiling = self.ceiling.max(ceiling.0);
    }

    /// The proposal failed.
    pub fn not_raised(&mut self) {
        self.raising = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_handed_out_above_the_ceiling() {
        let mut allocator = Allocator::new(Scn(5000));
        assert_eq!(allocator.take(1), None);
        let ceiling = allocator.wants().unwrap();
        assert_eq!(allocator.wants(), None, "one proposal at a time");
        allocator.raised(ceiling);
        assert_eq!(allocator.take(3), Some(Scn(5001)));
        assert_eq!(allocator.current(), Scn(5003));
        assert_eq!(allocator.take(u64::MAX / 2), None);
        assert_eq!(allocator.take(0), Some(Scn(5004)), "asking for none takes none");
        assert_eq!(allocator.take(1), Some(Scn(5004)));
    }

    #[test]
    fn a_new_leader_starts_above_all_its_predecessor_could_hand_out() {
        let mut old = Allocator::new(Scn::ZERO);
        let ceiling = old.wants().unwrap();
        old.raised(ceiling);
        while old.take(1000).is_some() {}
        let mut new = Allocator::new(ceiling);
        let raised = new.wants().unwrap();
        new.raised(raised);
        assert!(new.take(1).unwrap() > old.current());
    }
}
