//! Memory that many callers share: a caller borrows some, and gives it back by dropping the loan.
//!
//! A node has one budget for the memory that its clients make it keep (`sql::wire`). The budget does not count each
//! byte: nobody borrows for small things, and sizes may be estimates. It promises that the sum stays below a limit,
//! whatever clients do, so that the operating system never has to choose a process to kill.
//!
//! Example with a limit of 100: A borrows 60. B's request for 50 is refused and costs B an error. A gives 20 back, B
//! asks again and gets 50.
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
        Budget(Arc::new(Inner { bytes_max, borrowed: AtomicUsize::new(0) }))
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
}

impl Loan {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes this a loan of `bytes`, more or less than before. A loan whose growth is refused stays as it was.
    pub fn set(&mut self, bytes: usize) -> Result<(), Exhausted> {
        let inner = &self.budget.0;
        match bytes.checked_sub(self.bytes) {
            None => {
                inner.borrowed.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
            }
            Some(0) => {}
            Some(more) => {
                let grown = |borrowed: usize| {
                    borrowed.checked_add(more).filter(|sum| *sum <= inner.bytes_max)
                };
                let order = Ordering::Relaxed;
                if let Err(borrowed) = inner.borrowed.fetch_update(order, order, grown) {
                    let left = inner.bytes_max.saturating_sub(borrowed);
                    return Err(Exhausted { wanted: more, left });
                }
            }
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.budget.0.borrowed.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn borrowed(budget: &Budget) -> usize {
        budget.0.borrowed.load(Ordering::Relaxed)
    }

    #[test]
    fn nobody_gets_more_than_there_is_and_what_is_dropped_comes_back() {
        let budget = Budget::new(100);
        let mut a = budget.borrow(60).unwrap();
        assert_eq!(budget.borrow(50).unwrap_err(), Exhausted { wanted: 50, left: 40 });
        assert_eq!(a.set(101), Err(Exhausted { wanted: 41, left: 40 }));
        assert_eq!((a.bytes(), borrowed(&budget)), (60, 60), "a refused loan stays as it was");
        a.set(40).unwrap();
        let b = budget.borrow(50).unwrap();
        assert!(budget.borrow(usize::MAX).is_err());
        drop((a, b));
        assert_eq!(borrowed(&budget), 0);
        budget.borrow(100).unwrap();
    }
}
