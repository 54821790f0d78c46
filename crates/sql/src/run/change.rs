//! INSERT, UPDATE and DELETE over locked rows.

use super::memory::{Chunk, Stride};
use super::select::{Finder as Scanner, holds};
use super::{Exec, rows};
use crate::catalog::Table;
use crate::codec;
use crate::error::{Error, Result, state};
use crate::expr::{Context, Expr};
use crate::plan::access::Places;
use crate::plan::change::{Conflict, Delete, Finder, Insert, NamedCheck, Source, Target, Update};
use crate::plan::{Access, Plan};
use crate::types::{Datum, Row, memory_bytes};
use base::Key;
use bytes::Bytes;
use futures::StreamExt;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use txn::{LockMode, Locked, Wait};

/// Times that a change with other tables looks again after rows changed under it.
const RUNS_MAX: usize = 20;

/// What a change did: how many rows, and RETURNING's rows.
#[derive(Default)]
pub struct Changed {
    pub n_rows: u64,
    pub returned: Vec<Row>,
}

/// A row that is to be replaced.
struct Replacement {
    key: Key,
    old: Row,
    new: Row,
}

impl Exec<'_> {
    // ---- INSERT

    pub async fn insert(
        &mut self,
        plan: &Plan,
        insert: &Insert,
        params: &[Datum],
    ) -> Result<Changed> {
        let mut changed = Changed::default();
        let mut touched = HashSet::new();
        match &insert.source {
            Source::Values(list) => {
                let slots = self.slots(plan, params).await?;
                let mut chunk = Chunk::new(self.chunk_rows());
                for exprs in list {
                    let cx = Context { row: &[], params, slots: &slots, view: self.view };
                    let row = exprs.iter().map(|expr| expr.value(&cx)).collect::<Result<Row>>()?;
                    if let Some(full) = chunk.push(row) {
                        self.insert_chunk(insert, full, params, &slots, &mut touched, &mut changed)
                            .await?;
                    }
                }
                self.insert_chunk(insert, chunk.take(), params, &slots, &mut touched, &mut changed)
                    .await?;
            }
            Source::Query { query, row } => {
                let mut slots = self.slots(plan, params).await?;
                let mut stream = self.run_query(query, plan, params).await?.1;
                let mut chunk = Chunk::new(self.chunk_rows());
                let mut is_first = true;
                while let Some(batch) = stream.next().await {
                    for given in batch? {
                        if !is_first && plan.draws_per_row() {
                            self.redraw(plan, params, &mut slots).await?;
                        }
                        is_first = false;
                        let cx = Context { row: &given, params, slots: &slots, view: self.view };
                        let row =
                            row.iter().map(|expr| expr.value(&cx)).collect::<Result<Row>>()?;
                        if let Some(full) = chunk.push(row) {
                            self.insert_chunk(
                                insert,
                                full,
                                params,
                                &slots,
                                &mut touched,
                                &mut changed,
                            )
                            .await?;
                        }
                    }
                }
                self.insert_chunk(insert, chunk.take(), params, &slots, &mut touched, &mut changed)
                    .await?;
            }
        }
        Ok(changed)
    }

    /// Inserts rows of a table without ON CONFLICT and RETURNING, as COPY does.
    pub async fn append(
        &mut self,
        table: &Arc<Table>,
        checks: &[NamedCheck],
        chunk: Vec<Row>,
    ) -> Result<()> {
        let mut changed = Changed::default();
        self.put_new(table, checks, None, &None, chunk, &[], &[], &mut HashSet::new(), &mut changed)
            .await
    }

    async fn insert_chunk(
        &mut self,
        insert: &Insert,
        chunk: Vec<Row>,
        params: &[Datum],
        slots: &[Datum],
        touched: &mut HashSet<Key>,
        changed: &mut Changed,
    ) -> Result<()> {
        self.put_new(
            &insert.table,
            &insert.checks,
            insert.conflict.as_ref(),
            &insert.returning,
            chunk,
            params,
            slots,
            touched,
            changed,
        )
        .await
    }

    /// `touched` are the keys of rows that this statement has written: ON CONFLICT DO UPDATE must
    /// not meet them again.
    #[allow(clippy::too_many_arguments)]
    async fn put_new(
        &mut self,
        table: &Arc<Table>,
        checks: &[NamedCheck],
        conflict: Option<&Conflict>,
        returning: &Option<Vec<Expr>>,
        chunk: Vec<Row>,
        params: &[Datum],
        slots: &[Datum],
        touched: &mut HashSet<Key>,
        changed: &mut Changed,
    ) -> Result<()> {
        if chunk.is_empty() {
            return Ok(());
        }
        let width = 1 + table.indexes.len();
        let mut keys: Vec<Key> = Vec::with_capacity(chunk.len() * width);
        let mut values: Vec<Bytes> = Vec::with_capacity(chunk.len() * width);
        for row in &chunk {
            rows::check_row(table, checks, row, self)?;
            let key = self.new_key(table, row);
            rows::check_key(&key, &table.primary_name)?;
            let at = keys.len();
            keys.push(key);
            values.push(codec::encode_row(table, row).into());
            for index in &table.indexes {
                let (entry, value) = rows::entry(table, index, row, &keys[at]);
                rows::check_key(&entry, &index.name)?;
                keys.push(entry);
                values.push(value);
            }
        }
        let locked = self.lock(&keys, LockMode::Exclusive, Wait::Block).await?;
        // Keys written by earlier rows of the same chunk are not in the locks' answers.
        let mut own: HashMap<Key, Bytes> = HashMap::new();
        let alone = chunk.len() == 1;
        for (at, row) in chunk.into_iter().enumerate() {
            let range = at * width..(at + 1) * width;
            let is_arbiter = |target: Target| {
                conflict.is_some_and(|c| c.target.is_none_or(|wanted| wanted == target))
            };
            // The keys that ON CONFLICT names are looked at first: if one is taken, the row is not
            // inserted and no other key of it counts.
            let mut met: Option<(Target, Bytes)> = None;
            let mut refused: Option<Target> = None;
            for (offset, at) in range.clone().enumerate() {
                let target = match offset {
                    // No id comes twice. Where one does, no row is written over another.
                    0 if table.is_keyless() => match &locked[at] {
                        Locked::Held { row: Some(_) } => return Err(rows::repeated_id(table)),
                        _ => continue,
                    },
                    0 => Target::Primary,
                    offset if rows::is_unique(table, &table.indexes[offset - 1], &row) => {
                        Target::Index(offset - 1)
                    }
                    _ => continue,
                };
                let there = match (&locked[at], own.get(&keys[at])) {
                    (_, Some(value)) => value.clone(),
                    (Locked::Held { row: Some(stored) }, None) => stored.value.clone(),
                    _ => continue,
                };
                if is_arbiter(target) {
                    met = Some((target, there));
                    break;
                }
                refused = refused.or(Some(target));
            }
            if let (None, Some(target)) = (&met, refused) {
                return Err(match target {
                    Target::Primary => {
                        rows::duplicate(table, &table.primary_name, &table.primary, &row)
                    }
                    Target::Index(idx) => {
                        let index = &table.indexes[idx];
                        rows::duplicate(table, &index.name, &index.columns, &row)
                    }
                });
            }
            match met {
                None => {
                    let row_key = keys[range.start].clone();
                    for at in range {
                        if !alone {
                            own.insert(keys[at].clone(), values[at].clone());
                        }
                        self.txn.put(keys[at].clone(), values[at].clone())?;
                    }
                    if conflict.is_some_and(|conflict| conflict.update.is_some()) {
                        touched.insert(row_key);
                    }
                    changed.n_rows += 1;
                    if let Some(returning) = returning {
                        self.returned(returning, &row, params, slots, changed)?;
                    }
                }
                Some((target, there)) => {
                    let Some(conflict) = conflict else { continue };
                    if conflict.update.is_none() {
                        continue;
                    }
                    let key = match target {
                        Target::Primary => keys[range.start].clone(),
                        Target::Index(_) => rows::row_key_of_entry(table, &there),
                    };
                    if touched.contains(&key) {
                        return Err(Error::new(
                            state::CARDINALITY_VIOLATION,
                            "ON CONFLICT DO UPDATE command cannot affect row a second time",
                        )
                        .hint("Ensure that no rows proposed for insertion within the same command have duplicate constrained values."));
                    }
                    touched.insert(key.clone());
                    Box::pin(self.update_existing(
                        table, checks, conflict, returning, key, row, params, slots, changed,
                    ))
                    .await?;
                }
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    async fn update_existing(
        &mut self,
        table: &Arc<Table>,
        checks: &[NamedCheck],
        conflict: &Conflict,
        returning: &Option<Vec<Expr>>,
        key: Key,
        excluded: Row,
        params: &[Datum],
        slots: &[Datum],
        changed: &mut Changed,
    ) -> Result<()> {
        let Some(update) = &conflict.update else { return Ok(()) };
        let locked =
            self.lock(std::slice::from_ref(&key), LockMode::Exclusive, Wait::Block).await?;
        let Some(Locked::Held { row: Some(stored) }) = locked.into_iter().next() else {
            return Err(Error::new(
                state::SERIALIZATION_FAILURE,
                "could not serialize access: the conflicting row was deleted concurrently",
            )
            .hint("The transaction might succeed if retried."));
        };
        let mut old = Vec::new();
        codec::decode_row(table, &stored.value, None, &mut old)?;
        let both: Row = old.iter().cloned().chain(excluded).collect();
        let cx = Context { row: &both, params, slots, view: self.view };
        if let Some(filter) = &update.filter
            && !filter.holds(&cx)?
        {
            return Ok(());
        }
        let mut new = old.clone();
        for (idx, expr) in &update.assignments {
            new[*idx] = expr.value(&cx)?;
        }
        let replacement = Replacement { key, old, new };
        self.replace(table, checks, vec![replacement], returning, params, slots, changed).await
    }

    /// Keeps what RETURNING says of a row.
    fn returned(
        &mut self,
        exprs: &[Expr],
        row: &[Datum],
        params: &[Datum],
        slots: &[Datum],
        changed: &mut Changed,
    ) -> Result<()> {
        let cx = Context { row, params, slots, view: self.view };
        let row = exprs.iter().map(|expr| expr.value(&cx)).collect::<Result<Row>>()?;
        self.kept.keep_row(&row, "the rows of RETURNING")?;
        changed.returned.push(row);
        Ok(())
    }

    // ---- UPDATE

    pub async fn update(
        &mut self,
        plan: &Plan,
        update: &Update,
        params: &[Datum],
    ) -> Result<Changed> {
        let mut slots = self.slots(plan, params).await?;
        let mut changed = Changed::default();
        let table = &update.table;
        let mut targets = Targets::new(self, plan, table, &update.finder, params, &slots).await?;
        let mut is_first = true;
        while let Some(chunk) = targets.next(self, params, &slots).await? {
            let mut replacements = Vec::with_capacity(chunk.len());
            for (key, row) in chunk {
                if !is_first && plan.draws_per_row() {
                    self.redraw(plan, params, &mut slots).await?;
                }
                is_first = false;
                let cx = Context { row: &row, params, slots: &slots, view: self.view };
                let mut new = row[..table.columns.len()].to_vec();
                for (idx, expr) in &update.assignments {
                    new[*idx] = expr.value(&cx)?;
                }
                let mut old = row;
                old.truncate(table.columns.len());
                replacements.push(Replacement { key, old, new });
            }
            self.replace(
                table,
                &update.checks,
                replacements,
                &update.returning,
                params,
                &slots,
                &mut changed,
            )
            .await?;
        }
        Ok(changed)
    }

    /// Writes new rows over locked old ones, with everything that hangs on them.
    #[allow(clippy::too_many_arguments)]
    async fn replace(
        &mut self,
        table: &Arc<Table>,
        checks: &[NamedCheck],
        replacements: Vec<Replacement>,
        returning: &Option<Vec<Expr>>,
        params: &[Datum],
        slots: &[Datum],
        changed: &mut Changed,
    ) -> Result<()> {
        let key_idxs = table.primary_idxs();
        let mut more_locks: Vec<Key> = Vec::new();
        let mut removed: Vec<Key> = Vec::new();
        // For a unique key: the replacement, and the index (none: the primary key).
        type Unique = (usize, Option<usize>);
        let mut written: Vec<(Key, Bytes, Option<Unique>)> = Vec::new();
        for (at, replacement) in replacements.iter().enumerate() {
            let Replacement { key, old, new } = replacement;
            rows::check_row(table, checks, new, self)?;
            let moves = key_idxs.iter().any(|idx| old[*idx] != new[*idx]);
            let new_key = if moves { rows::row_key(table, new) } else { key.clone() };
            let value: Bytes = codec::encode_row(table, new).into();
            if moves {
                rows::check_key(&new_key, &table.primary_name)?;
                removed.push(key.clone());
                more_locks.push(new_key.clone());
                written.push((new_key.clone(), value, Some((at, None))));
            } else {
                written.push((new_key.clone(), value, None));
            }
            for (idx, index) in table.indexes.iter().enumerate() {
                if !moves && rows::same_entry(table, index, old, new) {
                    continue;
                }
                let (old_entry, _) = rows::entry(table, index, old, key);
                let (new_entry, value) = rows::entry(table, index, new, &new_key);
                rows::check_key(&new_entry, &index.name)?;
                more_locks.push(old_entry.clone());
                if new_entry != old_entry {
                    more_locks.push(new_entry.clone());
                }
                removed.push(old_entry);
                written.push((new_entry, value, index.unique.then_some((at, Some(idx)))));
            }
        }
        if !more_locks.is_empty() {
            let locked = self.lock(&more_locks, LockMode::Exclusive, Wait::Block).await?;
            let there: HashSet<&Key> = more_locks
                .iter()
                .zip(&locked)
                .filter(|(_, locked)| matches!(locked, Locked::Held { row: Some(_) }))
                .map(|(key, _)| key)
                .collect();
            let freed: HashSet<&Key> = removed.iter().collect();
            let mut taken: HashSet<&Key> = HashSet::new();
            for (key, _, unique) in &written {
                let Some((at, index)) = unique else { continue };
                let clashes = (there.contains(key) && !freed.contains(key)) || !taken.insert(key);
                if clashes {
                    let row = &replacements[*at].new;
                    return Err(match index {
                        None => rows::duplicate(table, &table.primary_name, &table.primary, row),
                        Some(idx) => {
                            let index = &table.indexes[*idx];
                            rows::duplicate(table, &index.name, &index.columns, row)
                        }
                    });
                }
            }
        }
        removed.into_iter().try_for_each(|key| self.txn.delete(key))?;
        for (key, value, _) in written {
            self.txn.put(key, value)?;
        }
        changed.n_rows += replacements.len() as u64;
        if let Some(returning) = returning {
            for replacement in &replacements {
                self.returned(returning, &replacement.new, params, slots, changed)?;
            }
        }
        Ok(())
    }

    // ---- DELETE

    pub async fn delete(
        &mut self,
        plan: &Plan,
        delete: &Delete,
        params: &[Datum],
    ) -> Result<Changed> {
        let slots = self.slots(plan, params).await?;
        let mut changed = Changed::default();
        let table = &delete.table;
        let mut targets = Targets::new(self, plan, table, &delete.finder, params, &slots).await?;
        while let Some(chunk) = targets.next(self, params, &slots).await? {
            let mut entries = Vec::new();
            for (key, row) in &chunk {
                for index in &table.indexes {
                    entries.push(rows::entry(table, index, row, key).0);
                }
            }
            self.lock(&entries, LockMode::Exclusive, Wait::Block).await?;
            entries.into_iter().try_for_each(|entry| self.txn.delete(entry))?;
            for (key, row) in chunk {
                self.txn.delete(key)?;
                changed.n_rows += 1;
                if let Some(returning) = &delete.returning {
                    self.returned(returning, &row, params, &slots, &mut changed)?;
                }
            }
        }
        Ok(changed)
    }
}

/// The rows to change, locked, chunk by chunk. A joined row has the query's extra values behind
/// the table's columns.
enum Targets<'a> {
    Points {
        table: &'a Arc<Table>,
        filter: &'a Option<Expr>,
        keys: Vec<Key>,
        stride: Stride,
    },
    Scan {
        table: &'a Arc<Table>,
        filter: &'a Option<Expr>,
        scanner: Box<Scanner>,
        snapshot: base::Scn,
    },
    Done(std::vec::IntoIter<(Key, Row)>),
}

impl<'a> Targets<'a> {
    async fn new(
        exec: &mut Exec<'_>,
        plan: &Plan,
        table: &'a Arc<Table>,
        finder: &'a Finder,
        params: &[Datum],
        slots: &[Datum],
    ) -> Result<Targets<'a>> {
        match finder {
            Finder::Scan { access, filter } => {
                let cx = Context { row: &[], params, slots, view: exec.view };
                match access.places(table, &cx)? {
                    Places::Points(keys) => {
                        let mut keys = if access.index.is_some() {
                            exec.keys_of_entries(table, &keys).await?
                        } else {
                            keys
                        };
                        keys.dedup();
                        let stride = Stride::new(exec.chunk_rows());
                        Ok(Targets::Points { table, filter, keys, stride })
                    }
                    Places::Ranges(ranges) => {
                        let reader = exec.txn.reader().await?;
                        let snapshot = reader.scn();
                        let is_index = access.index.is_some();
                        let wanted = filter.as_ref().map(|filter| wanted(table, access, filter));
                        let wanted = wanted.or_else(|| Some(vec![false; table.columns.len()]));
                        let scanner = Box::new(Scanner::over(
                            reader,
                            table.clone(),
                            wanted,
                            is_index,
                            false,
                            None,
                            ranges,
                        ));
                        Ok(Targets::Scan { table, filter, scanner, snapshot })
                    }
                }
            }
            Finder::Query { query, n_key } => {
                let rows = Box::pin(exec.find_joined(plan, table, query, *n_key, params)).await?;
                Ok(Targets::Done(rows.into_iter()))
            }
        }
    }

    async fn next(
        &mut self,
        exec: &mut Exec<'_>,
        params: &[Datum],
        slots: &[Datum],
    ) -> Result<Option<Vec<(Key, Row)>>> {
        match self {
            Targets::Points { table, filter, keys, stride } => {
                if keys.is_empty() {
                    return Ok(None);
                }
                let n = keys.len().min(stride.n_rows());
                let chunk: Vec<Key> = keys.drain(..n).collect();
                let locked = exec.lock(&chunk, LockMode::Exclusive, Wait::Block).await?;
                let mut out = Vec::with_capacity(chunk.len());
                stride.took(n, locked.iter().map(stored_bytes).sum());
                for (key, locked) in chunk.into_iter().zip(locked) {
                    let Locked::Held { row: Some(stored) } = locked else { continue };
                    let mut row = Vec::with_capacity(table.columns.len());
                    codec::decode_row(table, &stored.value, None, &mut row)?;
                    if holds(filter, &row, params, slots, exec.view)? {
                        out.push((key, row));
                    }
                }
                Ok(Some(out))
            }
            Targets::Scan { table, filter, scanner, snapshot } => {
                let Some(batch) = scanner.next().await? else { return Ok(None) };
                let mut keys = Vec::new();
                for (key, _, row) in batch {
                    if holds(filter, &row, params, slots, exec.view)? {
                        keys.push(key);
                    }
                }
                let locked = exec.lock(&keys, LockMode::Exclusive, Wait::Block).await?;
                let mut out = Vec::with_capacity(keys.len());
                for (key, locked) in keys.into_iter().zip(locked) {
                    let Locked::Held { row: Some(stored) } = locked else {
                        exec.is_gone()?;
                        continue;
                    };
                    let mut row = Vec::with_capacity(table.columns.len());
                    codec::decode_row(table, &stored.value, None, &mut row)?;
                    // It changed between the snapshot and the lock: does it still match?
                    if stored.scn <= *snapshot || holds(filter, &row, params, slots, exec.view)? {
                        out.push((key, row));
                    }
                }
                Ok(Some(out))
            }
            Targets::Done(rows) => {
                let chunk: Vec<(Key, Row)> = rows.by_ref().take(exec.chunk_rows()).collect();
                Ok(if chunk.is_empty() { None } else { Some(chunk) })
            }
        }
    }
}

/// What a locked row takes.
pub fn stored_bytes(locked: &Locked) -> usize {
    match locked {
        Locked::Held { row: Some(stored) } => stored.value.len(),
        _ => 0,
    }
}

fn wanted(table: &Table, access: &Access, filter: &Expr) -> Vec<bool> {
    let mut flags = vec![false; table.columns.len()];
    filter.mark_columns(&mut flags);
    access.key.iter().for_each(|idx| flags[*idx] = true);
    flags
}

impl Exec<'_> {
    /// Rows that a query of keys finds, locked. If one of them changed after the query's snapshot,
    /// the query runs again at a fresh one, now with those rows locked, until it rests on what is.
    async fn find_joined(
        &mut self,
        plan: &Plan,
        table: &Table,
        query: &sqlparser::ast::Query,
        n_key: usize,
        params: &[Datum],
    ) -> Result<Vec<(Key, Row)>> {
        let key_types: Vec<_> =
            table.primary_idxs().into_iter().map(|idx| table.columns[idx].ty.clone()).collect();
        for _ in 0..RUNS_MAX {
            let snapshot = self.txn.reader().await?.scn();
            let mut stream = self.run_query(query, plan, params).await?.1;
            let mut keys: Vec<Key> = Vec::new();
            let mut extras: Vec<Row> = Vec::new();
            let mut seen = HashSet::new();
            while let Some(batch) = stream.next().await {
                for mut row in batch? {
                    let extra = row.split_off(n_key);
                    let mut key = codec::key_prefix(table.relation, 16);
                    for (datum, ty) in row.iter().zip(&key_types) {
                        let datum = crate::plan::access::narrow(datum, ty).ok_or_else(|| {
                            Error::internal("a query of primary keys returned something else")
                        })?;
                        codec::encode_key(&datum, &mut key);
                    }
                    let key = Key::from(key);
                    // A row that joins several times is changed once, by the first.
                    if seen.insert(key.clone()) {
                        self.kept
                            .keep(key.len() * 2 + memory_bytes(&extra), "the rows to change")?;
                        keys.push(key);
                        extras.push(extra);
                    }
                }
            }
            let mut out = Vec::with_capacity(keys.len());
            let mut is_current = true;
            let mut at = 0;
            let mut stride = Stride::new(self.chunk_rows());
            while at < keys.len() {
                let end = (at + stride.n_rows()).min(keys.len());
                let locked = self.lock(&keys[at..end], LockMode::Exclusive, Wait::Block).await?;
                stride.took(end - at, locked.iter().map(stored_bytes).sum());
                for (offset, locked) in locked.into_iter().enumerate() {
                    let Locked::Held { row: Some(stored) } = locked else {
                        is_current = false;
                        continue;
                    };
                    is_current &= stored.scn <= snapshot || stored.scn == base::Scn::MAX;
                    let mut row = Vec::new();
                    codec::decode_row(table, &stored.value, None, &mut row)?;
                    self.kept.keep_row(&row, "the rows to change")?;
                    row.append(&mut extras[at + offset]);
                    out.push((keys[at + offset].clone(), row));
                }
                at = end;
            }
            if is_current {
                return Ok(out);
            }
            self.txn.begin_statement();
        }
        Err(Error::new(
            state::SERIALIZATION_FAILURE,
            "could not serialize access: the rows to change kept changing",
        )
        .hint("The transaction might succeed if retried."))
    }
}
