//! How many rows a batch has: fewer where rows are wide, so that batches are about equally large.
//!
//! Operators work on batches of rows and keep a few of them each, counted by nobody. 8,192 rows of 100 bytes are less
//! than a megabyte; 8,192 rows of a megabyte each would be 8 GB. How wide a query's rows are is guessed before it runs:
//! from what its tables had when they were read last, and from calls that make long texts of short ones.
//!
//! Example: `SELECT repeat('x', 1000000) FROM t` may make a megabyte of each row, so its batches have 16 rows.
//!
//! Absent: certainty. Where the guess is wrong, one batch is larger than it should be, and the next query over that
//! table knows better.

use parking_lot::Mutex;
use sql::catalog::RelationId;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A batch of rows has about this many bytes at most.
pub const BATCH_BYTES: usize = 4 << 20;
/// Rows of a batch where they are narrow.
pub const BATCH_ROWS: usize = 8192;
const BATCH_ROWS_MIN: usize = 16;
/// A row of a relation that was not read yet.
const ROW_BYTES: usize = 100;

const N_RELATIONS_REMEMBERED: usize = 10_000;

/// The rows of one query's batches. Cheap to clone; set once the query's names are known.
#[derive(Clone, Debug)]
pub struct BatchRows(Arc<AtomicUsize>);

impl Default for BatchRows {
    fn default() -> BatchRows {
        BatchRows(Arc::new(AtomicUsize::new(BATCH_ROWS)))
    }
}

impl BatchRows {
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// For rows of about `row_bytes`.
    pub fn fit(&self, row_bytes: usize) {
        let n_rows = BATCH_BYTES / row_bytes.max(1);
        self.0.store(n_rows.clamp(BATCH_ROWS_MIN, BATCH_ROWS), Ordering::Relaxed);
    }
}

/// How many rows each relation had when it was last read whole, and how wide its rows are. Only the order of work and
/// the size of its pieces depend on it, never an answer.
#[derive(Debug, Default)]
pub struct RowsSeen(Mutex<HashMap<RelationId, Seen>>);

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    n_rows: Option<usize>,
    row_bytes: Option<usize>,
}

impl RowsSeen {
    pub fn n_rows(&self, relation: RelationId) -> Option<usize> {
        self.0.lock().get(&relation)?.n_rows
    }

    pub fn row_bytes(&self, relation: RelationId) -> usize {
        let seen = self.0.lock().get(&relation).and_then(|seen| seen.row_bytes);
        seen.unwrap_or(ROW_BYTES)
    }

    pub fn note_rows(&self, relation: RelationId, n_rows: usize) {
        self.note(relation, |seen| seen.n_rows = Some(n_rows));
    }

    pub fn note_width(&self, relation: RelationId, row_bytes: usize) {
        self.note(relation, |seen| seen.row_bytes = Some(row_bytes));
    }

    fn note(&self, relation: RelationId, change: impl FnOnce(&mut Seen)) {
        let mut all = self.0.lock();
        if all.len() < N_RELATIONS_REMEMBERED || all.contains_key(&relation) {
            change(all.entry(relation).or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_rows_come_in_small_batches() {
        let rows = BatchRows::default();
        for (row_bytes, n_rows) in
            [(0, 8192), (100, 8192), (1 << 10, 4096), (1 << 16, 64), (1 << 30, 16)]
        {
            rows.fit(row_bytes);
            assert_eq!(rows.get(), n_rows, "{row_bytes}");
        }
        let (seen, relation) = (RowsSeen::default(), RelationId(7));
        assert_eq!((seen.n_rows(relation), seen.row_bytes(relation)), (None, 100));
        seen.note_width(relation, 5_000);
        seen.note_rows(relation, 3);
        assert_eq!((seen.n_rows(relation), seen.row_bytes(relation)), (Some(3), 5_000));
    }
}
