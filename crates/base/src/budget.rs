//! Memory that many callers share: a caller borrows some, and gives it back by dropping the loan.
//!
//! A node has one budget for the memory that its clients make it keep: messages, statements, writes, rows of queries.
//! The budget does not count each byte: nobody borrows for small things, and sizes may be estimates. It promises that
//! the sum stays below a limit, whatever clients do, so that the operating system never has to choose a process to
//! kill.
//!
//! Example with a limit of 100: A borrows 60. B's request for 50 is refused and costs B an error. A gives 20 back, B
//! asks again and gets 50.
//!
//! A budget may lie within another ([`Budget::within`]): a loan from the inner one is a loan from both. So the node has
//! one limit for all kinds of work, and no kind can use up the whole of it alone.
//!
//! Absent: waiting. A request that cannot be granted at once is refused, because a caller that waited would keep what
//! it already has.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bytes_max: usize,
    borrowed: AtomicUsize,
    outer: Option<Budget>,
}

/// Less is left than was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted {
    pub wanted: usize,
    pub left: usize,
}

/// Bytes that were borrowed.
#[derive(Debug)]
pub struct Loan {
    budget: Budget,
    bytes: usize,
}

impl Budget {
    pub fn new(bytes_max: usize) -> Budget {
        Budget(Arc::new(Inner { bytes_max, borrowed: AtomicUsize::new(0), outer: None }))
    }

    /// A part of this budget that lends `bytes_max` at most.
    pub fn within(&self, bytes_max: usize) -> Budget {
        let outer = Some(self.clone());
        Budget(Arc::new(Inner { bytes_max, borrowed: AtomicUsize::new(0), outer }))
    }

    /// A loan of nothing, to be grown.
    pub fn open(&self) -> Loan {
        Loan { budget: self.clone(), bytes: 0 }
    }

    pub fn borrow(&self, bytes: usize) -> Result<Loan, Exhausted> {
        let mut loan = self.open();
        loan.set(bytes)?;
        Ok(loan)
    }

    /// What is lent at this moment.
    pub fn borrowed(&self) -> usize {
        self.0.borrowed.load(Ordering::Relaxed)
    }

    fn take(&self, wanted: usize) -> Result<(), Exhausted> {
        let inner = &self.0;
        let grown =
            |borrowed: usize| borrowed.checked_add(wanted).filter(|sum| *sum <= inner.bytes_max);
        let order = Ordering::Relaxed;
        if let Err(borrowed) = inner.borrowed.fetch_update(order, order, grown) {
            return Err(Exhausted { wanted, left: inner.bytes_max.saturating_sub(borrowed) });
        }
        let taken = inner.outer.as_ref().map_or(Ok(()), |outer| outer.take(wanted));
        if taken.is_err() {
            inner.borrowed.fetch_sub(wanted, order);
        }
        taken
    }

    fn give_back(&self, bytes: usize) {
        self.0.borrowed.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(outer) = &self.0.outer {
            outer.give_back(bytes);
        }
    }
}

impl Loan {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes this a loan of `bytes`, more or less than before. A loan whose growth is refused stays as it was.
    pub fn set(&mut self, bytes: usize) -> Result<(), Exhausted> {
        match bytes.checked_sub(self.bytes) {
            None => self.budget.give_back(self.bytes - bytes),
            Some(more) => self.budget.take(more)?,
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Gives back what is more than `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        if let Some(less) = self.bytes.checked_sub(bytes) {
            self.budget.give_back(less);
            self.bytes = bytes;
        }
    }

    /// Borrows `more` beside what it has.
    pub fn grow(&mut self, more: usize) -> Result<(), Exhausted> {
        self.set(self.bytes.saturating_add(more))
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gets_more_than_there_is_and_what_is_dropped_comes_back() {
        let budget = Budget::new(100);
        let mut a = budget.borrow(60).unwrap();
        assert_eq!(budget.borrow(50).unwrap_err(), Exhausted { wanted: 50, left: 40 });
        assert_eq!(a.set(101), Err(Exhausted { wanted: 41, left: 40 }));
        assert_eq!((a.bytes(), budget.borrowed()), (60, 60), "a refused loan stays as it was");
        a.set(40).unwrap();
        let b = budget.borrow(50).unwrap();
        assert!(budget.borrow(usize::MAX).is_err());
        drop((a, b));
        assert_eq!(budget.borrowed(), 0);
        budget.borrow(100).unwrap();
    }

    #[test]
    fn what_is_borrowed_within_is_borrowed_from_all() {
        let all = Budget::new(100);
        let (a, b) = (all.within(80), all.within(80));
        let one = a.borrow(70).unwrap();
        assert_eq!(a.borrow(20).unwrap_err(), Exhausted { wanted: 20, left: 10 });
        let two = b.borrow(30).unwrap();
        assert_eq!(b.borrow(1).unwrap_err(), Exhausted { wanted: 1, left: 0 }, "all is lent");
        assert_eq!((a.borrowed(), b.borrowed(), all.borrowed()), (70, 30, 100));
        drop(one);
        let mut more = b.open();
        more.grow(50).unwrap();
        more.shrink_to(60);
        assert_eq!((more.bytes(), all.borrowed()), (50, 80));
        more.shrink_to(40);
        assert_eq!((more.bytes(), all.borrowed()), (40, 70));
        more.grow(10).unwrap();
        assert!(more.grow(1).is_err());
        drop((two, more));
        assert_eq!((a.borrowed(), b.borrowed(), all.borrowed()), (0, 0, 0));
    }
}
