//! What a statement of the fast path keeps in memory: rows to be sorted, RETURNING's rows, lists.
//!
//! It borrows from the node's budget, in steps. What it cannot get ends the statement with 53200, and nobody else is
//! harmed. A chunk of rows is bounded by its bytes as by its number, so that wide rows are handled few at a time.
//!
//! Absent: what passes through. A batch of a scan is bounded where it is read.

use crate::error::{Error, Result, state};
use crate::types::{Row, memory_bytes};
use base::{Env, Loan};

/// So little is not borrowed.
const FREE_BYTES: usize = 64 << 10;
const STEP_BYTES: usize = 256 << 10;
/// Rows of one chunk take about this much at most.
const CHUNK_BYTES: usize = 4 << 20;
/// The first chunk of rows whose width nobody knows.
const CHUNK_ROWS_FIRST: usize = 64;

/// What one statement keeps. It is given back when this is dropped.
pub struct Kept {
    loan: Loan,
    bytes: usize,
    bytes_max: usize,
}

impl Kept {
    pub fn new(env: &Env) -> Kept {
        let bytes_max = env.limits().statement_memory_bytes;
        Kept { loan: env.memory().open(), bytes: 0, bytes_max }
    }

    /// Keeps `bytes` more for `what`.
    pub fn keep(&mut self, bytes: usize, what: &str) -> Result<()> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.bytes_max {
            let max = self.bytes_max;
            return Err(Error::new(
                state::OUT_OF_MEMORY,
                format!("{what} would take more than {max} bytes of memory"),
            )
            .hint("Ask for fewer or narrower rows at once. The limit is statement_memory_bytes in atoll.settings."));
        }
        if self.bytes > FREE_BYTES && self.bytes > self.loan.bytes() {
            self.loan.set(self.bytes.next_multiple_of(STEP_BYTES)).map_err(|exhausted| {
                Error::new(state::OUT_OF_MEMORY, format!("this node has no memory left for {what}"))
                    .detail(format!(
                        "{} bytes more are wanted, {} are left for all statements.",
                        exhausted.wanted, exhausted.left
                    ))
                    .hint("Run the statement again later, or on another node.")
            })?;
        }
        Ok(())
    }

    pub fn keep_row(&mut self, row: &Row, what: &str) -> Result<()> {
        self.keep(memory_bytes(row), what)
    }
}

/// Rows on their way to be locked and written together.
pub struct Chunk {
    rows: Vec<Row>,
    n_bytes: usize,
    n_rows_max: usize,
}

impl Chunk {
    pub fn new(n_rows_max: usize) -> Chunk {
        Chunk { rows: Vec::new(), n_bytes: 0, n_rows_max }
    }

    /// The rows to be written now, when this one made them many or large.
    pub fn push(&mut self, row: Row) -> Option<Vec<Row>> {
        self.n_bytes += memory_bytes(&row);
        self.rows.push(row);
        let is_full = self.rows.len() >= self.n_rows_max || self.n_bytes >= CHUNK_BYTES;
        is_full.then(|| self.take())
    }

    pub fn take(&mut self) -> Vec<Row> {
        self.n_bytes = 0;
        std::mem::take(&mut self.rows)
    }
}

/// How many rows are locked and read at once where only their keys are known: more as long as they are narrow.
pub struct Stride {
    n_rows: usize,
    n_rows_max: usize,
}

impl Stride {
    pub fn new(n_rows_max: usize) -> Stride {
        Stride { n_rows: CHUNK_ROWS_FIRST.min(n_rows_max), n_rows_max }
    }

    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// After a chunk of `n_rows` that took `n_bytes`.
    pub fn took(&mut self, n_rows: usize, n_bytes: usize) {
        let fits = CHUNK_BYTES * n_rows.max(1) / n_bytes.max(1);
        self.n_rows = fits.clamp(1, (self.n_rows * 4).min(self.n_rows_max));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Datum;
    use base::Limits;
    use base::env::MemoryNet;
    use std::sync::Arc;

    #[test]
    fn a_statement_keeps_what_it_may() {
        let env = Env::seeded(1, Arc::new(MemoryNet::default()));
        let limits = Limits {
            memory_bytes: 1 << 20,
            statement_memory_bytes: 700 << 10,
            ..Limits::default()
        };
        let env = env.limited(limits);
        let mut one = Kept::new(&env);
        one.keep(600 << 10, "a sort").unwrap();
        let error = one.keep(200 << 10, "a sort").unwrap_err();
        assert!(error.state() == "53200" && error.message.contains("716800 bytes"), "{error}");
        let mut two = Kept::new(&env);
        let error = two.keep(600 << 10, "a sort").unwrap_err();
        assert!(error.state() == "53200" && error.message.contains("no memory left"), "{error}");
        drop(one);
        two.keep(10, "a sort").unwrap();
        drop(two);
        assert_eq!(env.memory().borrowed(), 0);
    }

    #[test]
    fn wide_rows_are_handled_few_at_a_time() {
        let (narrow, wide) = (vec![Datum::Int4(1)], vec![Datum::text("x".repeat(3 << 20))]);
        let mut chunk = Chunk::new(3);
        assert!(chunk.push(narrow.clone()).is_none() && chunk.push(narrow.clone()).is_none());
        assert_eq!(chunk.push(narrow.clone()).map(|rows| rows.len()), Some(3));
        assert!(chunk.push(wide.clone()).is_none());
        assert_eq!(chunk.push(wide).map(|rows| rows.len()), Some(2));
        assert!(chunk.take().is_empty());
        let mut stride = Stride::new(2_000);
        assert_eq!(stride.n_rows(), 64);
        stride.took(64, 64 * 100);
        assert_eq!(stride.n_rows(), 256);
        stride.took(256, 256 << 20);
        assert_eq!(stride.n_rows(), 4);
        stride.took(4, 80 << 20);
        assert_eq!(stride.n_rows(), 1);
    }
}
