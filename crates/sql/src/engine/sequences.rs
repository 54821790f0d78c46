//! Values of sequences, drawn in blocks.
//!
//! As in PostgreSQL, drawing is no part of the user's transaction: values are never given back. A
//! node takes a block of them in a short transaction of its own and hands them out from memory,
//! so `nextval` costs a round trip once in a block. Values of different nodes interleave by blocks,
//! and a node that stops leaves the rest of its block unused. A block belongs to a sequence's id, and
//! who draws from it has made sure that the sequence is still there: see [`crate::catalog`]. What
//! `setval` and ALTER SEQUENCE do at one node reaches another with its next block, as it reaches
//! PostgreSQL's sessions with a CACHE.
//!
//! A sequence that the user's transaction itself created is invisible to others still; its values
//! are drawn inside that transaction, one by one.

use crate::catalog::{Catalog, Overlay, Sequence, retry};
use crate::error::{Error, Result, state};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use txn::{Isolation, Txn};

/// Values in a block unless the sequence's CACHE says more.
const BLOCK_VALUES: i64 = 32;
const BLOCK_VALUES_MAX: i64 = 10_000;

type Block = Arc<tokio::sync::Mutex<VecDeque<i64>>>;

pub struct Sequences {
    client: txn::Client,
    blocks: Mutex<HashMap<u32, Block>>,
}

impl Sequences {
    pub fn new(client: txn::Client) -> Sequences {
        Sequences { client, blocks: Mutex::default() }
    }

    pub async fn next(&self, id: u32, txn: &mut Txn, overlay: &mut Overlay) -> Result<i64> {
        if overlay.sequence(id).is_some() {
            let mut sequence = locked(txn, id).await?;
            let values = advance(&mut sequence, 1)?;
            Catalog::put_sequence(txn, overlay, sequence)?;
            return values.front().copied().ok_or_else(|| gone(id));
        }
        let block = self.blocks.lock().entry(id).or_default().clone();
        let mut block = block.lock().await;
        if block.is_empty() {
            *block = self.take(id).await?;
        }
        block.pop_front().ok_or_else(|| gone(id))
    }

    async fn take(&self, id: u32) -> Result<VecDeque<i64>> {
        retry(|| async {
            let mut txn = self.client.begin(Isolation::ReadCommitted);
            let mut sequence = locked(&mut txn, id).await?;
            let n = sequence.cache.clamp(BLOCK_VALUES, BLOCK_VALUES_MAX);
            let values = advance(&mut sequence, n)?;
            Catalog::put_sequence(&mut txn, &mut Overlay::default(), sequence)?;
            txn.commit().await?;
            Ok(values)
        })
        .await
    }

    /// `setval`; the block at hand is forgotten.
    pub async fn set(
        &self,
        id: u32,
        value: i64,
        is_called: bool,
        txn: &mut Txn,
        overlay: &mut Overlay,
    ) -> Result<()> {
        let change = |mut sequence: Sequence| -> Result<Sequence> {
            if value < sequence.min || value > sequence.max {
                return Err(Error::new(
                    state::OUT_OF_RANGE,
                    format!(
                        "setval: value {value} is out of bounds for sequence \"{}\" ({}..{})",
                        sequence.name, sequence.min, sequence.max
                    ),
                ));
            }
            sequence.last = value;
            sequence.is_called = is_called;
            Ok(sequence)
        };
        if overlay.sequence(id).is_some() {
            let sequence = change(locked(txn, id).await?)?;
            return Catalog::put_sequence(txn, overlay, sequence);
        }
        let block = self.blocks.lock().entry(id).or_default().clone();
        let mut block = block.lock().await;
        retry(|| async {
            let mut txn = self.client.begin(Isolation::ReadCommitted);
            let sequence = change(locked(&mut txn, id).await?)?;
            Catalog::put_sequence(&mut txn, &mut Overlay::default(), sequence)?;
            txn.commit().await?;
            Ok(())
        })
        .await?;
        block.clear();
        Ok(())
    }

    /// Forgets the block at hand: the sequence was altered or dropped.
    pub fn forget(&self, id: u32) {
        self.blocks.lock().remove(&id);
    }
}

fn gone(id: u32) -> Error {
    Error::new(state::UNDEFINED_TABLE, format!("the sequence with id {id} does not exist any more"))
}

async fn locked(txn: &mut Txn, id: u32) -> Result<Sequence> {
    Catalog::lock_sequence(txn, id).await?.ok_or_else(|| gone(id))
}

/// The next values, up to `n` of them, at least one.
fn advance(sequence: &mut Sequence, n: i64) -> Result<VecDeque<i64>> {
    let mut values = VecDeque::new();
    while (values.len() as i64) < n {
        let next = if sequence.is_called {
            match sequence.last.checked_add(sequence.increment) {
                Some(next) if next >= sequence.min && next <= sequence.max => next,
                _ if sequence.cycle => {
                    if sequence.increment > 0 {
                        sequence.min
                    } else {
                        sequence.max
                    }
                }
                _ if !values.is_empty() => break,
                _ => {
                    let (word, bound) = if sequence.increment > 0 {
                        ("maximum", sequence.max)
                    } else {
                        ("minimum", sequence.min)
                    };
                    return Err(Error::new(
                        "2200H",
                        format!(
                            "nextval: reached {word} value of sequence \"{}\" ({bound})",
                            sequence.name
                        ),
                    ));
                }
            }
        } else {
            sequence.last
        };
        sequence.last = next;
        sequence.is_called = true;
        values.push_back(next);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Type;

    #[test]
    fn a_sequence_counts_to_its_end() {
        let mut sequence = Sequence {
            id: 1,
            schema: "public".into(),
            name: "s".into(),
            database: crate::catalog::FIRST_DATABASE_ID,
            owner: crate::authority::RoleId::FIRST,
            ty: Type::Int8,
            start: 1,
            increment: 2,
            min: 1,
            max: 6,
            cycle: false,
            cache: 1,
            owned_by: None,
            last: 1,
            is_called: false,
        };
        assert_eq!(advance(&mut sequence, 2).unwrap(), [1, 3]);
        assert_eq!(advance(&mut sequence, 5).unwrap(), [5]);
        assert_eq!(advance(&mut sequence, 1).unwrap_err().state(), "2200H");
        sequence.cycle = true;
        assert_eq!(advance(&mut sequence, 2).unwrap(), [1, 3]);
    }
}
