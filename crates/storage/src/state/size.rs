//! How large a range is, roughly, from what the trees know of their tables.
//!
//! A table of the tree counts whole if all its rows lie inside the range. If only some do, it counts
//! for the share of its span that the range covers: keys are taken for binary fractions, and their
//! spread for even. Rows that are still in memory are not counted, because the answer is used to cut
//! tablets of many megabytes.

use super::State;
use super::keys::{self, ROW};
use crate::Result;
use base::KeyRange;
use lsm_tree::{AbstractTree, InternalValue, Slice};
use std::ops::Bound;

impl State {
    /// Bytes on disk of the current rows in `range`, within a few tables.
    pub(crate) fn approximate_bytes(&self, range: &KeyRange) -> Result<u64> {
        let bounds = keys::tagged_range(ROW, range);
        let (Bound::Included(start), Bound::Excluded(end)) = &bounds else { return Ok(0) };
        let rows = keys::tagged_range(ROW, &KeyRange::all());
        let mut bytes = 0.0;
        for table in self.current.current_version().iter_tables() {
            let mut items = table.range(rows.clone());
            let ends = (items.next(), items.next_back());
            let key = |item: lsm_tree::Result<InternalValue>| -> Result<Slice> {
                Ok(item.map_err(|e| self.tree_error(e))?.key.user_key)
            };
            let Some(first) = ends.0 else { continue };
            let first = key(first)?;
            let last = ends.1.map_or(Ok(first.clone()), key)?;
            bytes += table.metadata.file_size as f64 * share(&first, &last, start, end);
        }
        Ok(bytes as u64)
    }
}

/// The share of the keys `first..=last` that lies in `start..end`.
fn share(first: &[u8], last: &[u8], start: &[u8], end: &[u8]) -> f64 {
    if last < start || first >= end {
        return 0.0;
    }
    let common = first.iter().zip(last).take_while(|(a, b)| a == b).count();
    let at = |key: &[u8]| fraction(key.get(common..).unwrap_or_default());
    let span = at(last) - at(first);
    if span <= 0.0 || (start <= first && last < end) {
        return 1.0;
    }
    let (from, to) = (first.max(start), last.min(end));
    ((at(to) - at(from)) / span).clamp(0.0, 1.0)
}

/// The first bytes of a key as a number in `0..1`.
fn fraction(key: &[u8]) -> f64 {
    let mut head = [0; 8];
    let len = key.len().min(8);
    head[..len].copy_from_slice(&key[..len]);
    u64::from_be_bytes(head) as f64 / u64::MAX as f64
}
