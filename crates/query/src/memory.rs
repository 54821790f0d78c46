//! What one query may keep in memory, and where it puts the rest.
//!
//! DataFusion's operators ask before they grow. Those that have files for what they cannot keep (sorts, groupings,
//! sort-merge joins) keep the session's `work_mem` each, as PostgreSQL's do, and write to files when that is used up.
//! Those that have none (hash joins, products) take what the node's budget has. All of it is borrowed from that
//! budget, so a query that cannot get more ends with 53200 and takes nothing from what others hold.
//!
//! ```text
//! node's budget (memory_bytes)
//!   └─ a query ─┬─ sort      ≤ work_mem ── more: a file
//!               ├─ grouping  ≤ work_mem ── more: a file
//!               └─ hash join ≤ what is left ── more: the query is planned anew with sort-merge joins
//! ```
//!
//! Example: work_mem is 64 MB and a query sorts a gigabyte. The sort writes about sixteen runs of 64 MB, and merges
//! them as the client reads.
//!
//! Absent: counting of batches on their way between operators. They are few and bounded by their rows.

use base::budget::Exhausted;
use base::{Budget, Loan};
use datafusion_common::DataFusionError;
use datafusion_execution::memory_pool::{MemoryPool, MemoryReservation};
use parking_lot::Mutex;
use std::fmt;

type Df<T> = Result<T, DataFusionError>;

/// Memory is borrowed in steps of this size.
const STEP_BYTES: usize = 1 << 20;

/// One query's share of the node's memory.
#[derive(Debug)]
pub struct Share {
    work_mem_bytes: usize,
    used: Mutex<Used>,
}

#[derive(Debug)]
struct Used {
    bytes: usize,
    loan: Loan,
}

impl Share {
    pub fn new(memory: &Budget, work_mem_bytes: usize) -> Share {
        let used = Mutex::new(Used { bytes: 0, loan: memory.open() });
        Share { work_mem_bytes, used }
    }
}

impl Used {
    fn grow(&mut self, more: usize) -> Result<(), Exhausted> {
        let wanted = self.bytes.saturating_add(more);
        if wanted > self.loan.bytes() {
            let step = wanted.checked_next_multiple_of(STEP_BYTES).unwrap_or(usize::MAX);
            self.loan.set(step)?;
        }
        self.bytes = wanted;
        Ok(())
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a query's share")
    }
}

impl MemoryPool for Share {
    fn name(&self) -> &str {
        "share"
    }

    /// For operators that have the memory already.
    fn grow(&self, _: &MemoryReservation, additional: usize) {
        let mut used = self.used.lock();
        if used.grow(additional).is_err() {
            used.bytes = used.bytes.saturating_add(additional);
        }
    }

    fn shrink(&self, _: &MemoryReservation, shrink: usize) {
        let mut used = self.used.lock();
        used.bytes = used.bytes.saturating_sub(shrink);
        let kept = used.bytes.next_multiple_of(STEP_BYTES);
        if kept + STEP_BYTES < used.loan.bytes() {
            used.loan.shrink_to(kept);
        }
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Df<()> {
        let name = reservation.consumer().name();
        // Who has less gets what it asks for: a batch of wide rows may be larger than work_mem.
        if reservation.consumer().can_spill() && reservation.size() >= self.work_mem_bytes {
            return Err(exhausted(name, additional, "work_mem is used up"));
        }
        self.used.lock().grow(additional).map_err(|Exhausted { left, .. }| {
            exhausted(name, additional, &format!("this node has {left} bytes left for all queries"))
        })
    }

    fn reserved(&self) -> usize {
        self.used.lock().bytes
    }
}

fn exhausted(name: &str, wanted: usize, why: &str) -> DataFusionError {
    DataFusionError::ResourcesExhausted(format!("{name} wants {wanted} bytes more, and {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion_execution::memory_pool::MemoryConsumer;
    use std::sync::Arc;

    fn share(memory: &Budget, work_mem_bytes: usize) -> Arc<dyn MemoryPool> {
        Arc::new(Share::new(memory, work_mem_bytes))
    }

    #[test]
    fn operators_with_files_keep_work_mem_and_the_others_take_what_there_is() {
        let memory = Budget::new(40 << 20);
        let pool = share(&memory, 4 << 20);
        let sort = MemoryConsumer::new("sort").with_can_spill(true).register(&pool);
        sort.try_grow(3 << 20).unwrap();
        sort.try_grow(2 << 20).expect("a batch that goes beyond");
        let refused = sort.try_grow(1).unwrap_err().to_string();
        assert!(refused.contains("work_mem is used up"), "{refused}");
        let grouping = MemoryConsumer::new("grouping").with_can_spill(true).register(&pool);
        grouping.try_grow(4 << 20).expect("as much for each");
        let join = MemoryConsumer::new("join").register(&pool);
        join.try_grow(30 << 20).unwrap();
        let refused = join.try_grow(9 << 20).unwrap_err().to_string();
        assert!(refused.contains("join wants 9437184 bytes more"), "{refused}");
        let other = share(&memory, 8 << 20);
        let theirs = MemoryConsumer::new("sort").with_can_spill(true).register(&other);
        assert!(theirs.try_grow(5 << 20).is_err(), "the node has no more");
        drop((sort, grouping, join, pool));
        theirs.try_grow(5 << 20).unwrap();
        drop((theirs, other));
        assert_eq!(memory.borrowed(), 0);
    }
}
