//! Rows as the store keeps them: keys of rows, entries of indexes, and what a row must fulfil.

use super::Exec;
use crate::catalog::{Index, Table};
use crate::codec;
use crate::error::{Error, Result, state};
use crate::expr::Context;
use crate::plan::change::NamedCheck;
use crate::types::{Datum, text};
use base::Key;
use bytes::Bytes;

/// Bytes of the relation at the start of every key.
pub const PREFIX_BYTES: usize = 4;

/// The row's key by its primary key's columns.
pub fn row_key(table: &Table, row: &[Datum]) -> Key {
    let mut key = codec::key_prefix(table.relation, 12);
    for id in &table.primary {
        if let Some(idx) = table.idx_of_id(*id) {
            codec::encode_key(&row[idx], &mut key);
        }
    }
    key.into()
}

/// An index's entry for a row: its key and its value, the row's key without the relation. The
/// entry's key ends with the row's key unless the index is unique and no column is NULL.
pub fn entry(table: &Table, index: &Index, row: &[Datum], row_key: &Key) -> (Key, Bytes) {
    let mut key = codec::key_prefix(index.relation, 24);
    let mut has_null = false;
    for id in &index.columns {
        if let Some(idx) = table.idx_of_id(*id) {
            has_null |= row[idx].is_null();
            codec::encode_key(&row[idx], &mut key);
        }
    }
    let suffix = row_key.slice(PREFIX_BYTES..);
    if !index.unique || has_null {
        key.extend_from_slice(&suffix);
    }
    (key.into(), suffix)
}

/// Refuses a key that is longer than the store takes. `index` is the name of what it is a key of.
pub fn check_key(key: &Key, index: &str) -> Result<()> {
    let (size, max) = (key.len(), codec::KEY_BYTES_MAX);
    if size <= max {
        return Ok(());
    }
    let message = format!("index row size {size} exceeds maximum {max} for index \"{index}\"");
    Err(Error::new(state::LIMIT_EXCEEDED, message)
        .hint("Values larger than that cannot be part of a key."))
}

/// True where no other row may have this row's entry: NULLs are never equal.
pub fn is_unique(table: &Table, index: &Index, row: &[Datum]) -> bool {
    index.unique
        && !index.columns.iter().filter_map(|id| table.idx_of_id(*id)).any(|idx| row[idx].is_null())
}

/// The key of the row that an index entry leads to.
pub fn row_key_of_entry(table: &Table, value: &[u8]) -> Key {
    let mut key = codec::key_prefix(table.relation, value.len());
    key.extend_from_slice(value);
    key.into()
}

/// True where two rows of the same key have the same entry too.
pub fn same_entry(table: &Table, index: &Index, a: &[Datum], b: &[Datum]) -> bool {
    index.columns.iter().filter_map(|id| table.idx_of_id(*id)).all(|idx| a[idx] == b[idx])
}

/// NOT NULL and CHECK.
pub fn check_row(
    table: &Table,
    checks: &[NamedCheck],
    row: &[Datum],
    exec: &Exec<'_>,
) -> Result<()> {
    for (column, datum) in table.columns.iter().zip(row) {
        if column.not_null && datum.is_null() {
            return Err(Error::new(
                state::NOT_NULL_VIOLATION,
                format!(
                    "null value in column \"{}\" of relation \"{}\" violates not-null constraint",
                    column.name, table.name
                ),
            )
            .detail(failing_row(table, row, exec))
            .column(&table.name, &column.name));
        }
    }
    for check in checks {
        let cx = Context { row, params: &[], slots: &[], view: exec.view };
        // Unknown passes, as the standard says.
        if matches!(*check.condition.eval(&cx)?, Datum::Bool(false)) {
            return Err(Error::new(
                state::CHECK_VIOLATION,
                format!(
                    "new row for relation \"{}\" violates check constraint \"{}\"",
                    table.name, check.name
                ),
            )
            .detail(failing_row(table, row, exec))
            .constraint(&table.name, &check.name));
        }
    }
    Ok(())
}

fn failing_row(table: &Table, row: &[Datum], exec: &Exec<'_>) -> String {
    let shown: Vec<String> = table
        .columns
        .iter()
        .zip(row)
        .map(|(column, datum)| match datum {
            Datum::Null => "null".to_owned(),
            datum => {
                let mut shown = text::to_string(datum, &column.ty, &exec.view.zone);
                if shown.chars().count() > 64 {
                    shown = shown.chars().take(64).collect::<String>() + "...";
                }
                shown
            }
        })
        .collect();
    format!("Failing row contains ({}).", shown.join(", "))
}

/// Another row has this key already. `columns` are ids.
pub fn duplicate(table: &Table, constraint: &str, columns: &[u32], row: &[Datum]) -> Error {
    let idxs: Vec<usize> = columns.iter().filter_map(|id| table.idx_of_id(*id)).collect();
    let names: Vec<&str> = idxs.iter().map(|idx| table.columns[*idx].name.as_str()).collect();
    let values: Vec<String> = idxs
        .iter()
        .map(|idx| match &row[*idx] {
            Datum::Null => "null".to_owned(),
            datum => text::to_string(datum, &table.columns[*idx].ty, &crate::types::Zone::UTC),
        })
        .collect();
    Error::new(
        state::UNIQUE_VIOLATION,
        format!("duplicate key value violates unique constraint \"{constraint}\""),
    )
    .detail(format!("Key ({})=({}) already exists.", names.join(", "), values.join(", ")))
    .constraint(&table.name, constraint)
}

/// A new row's id is taken: a bug, or a data directory that was copied.
pub fn repeated_id(table: &Table) -> Error {
    Error::internal(format!("a row of \"{}\" has the id that was given to a new one", table.name))
        .hint("Was a node's data directory copied, or put back from an older copy?")
}

impl Exec<'_> {
    /// A fresh key for a row of a table without a primary key.
    pub fn hidden_key(&mut self, table: &Table) -> Key {
        let mut key = codec::key_prefix(table.relation, 8);
        key.extend_from_slice(&self.engine.client().new_row_id().to_be_bytes());
        key.into()
    }

    /// The key under which a new row is stored.
    pub fn new_key(&mut self, table: &Table, row: &[Datum]) -> Key {
        if table.is_keyless() { self.hidden_key(table) } else { row_key(table, row) }
    }
}
