//! SELECT over one table: points, key ranges and index ranges, with or without row locks.

use super::change::stored_bytes;
use super::memory::{Kept, Stride};
use super::{Exec, one_batch, rows};
use crate::catalog::Table;
use crate::codec;
use crate::error::{Error, Result};
use crate::expr::{Context, Expr};
use crate::parse::Statement;
use crate::plan::access::Places;
use crate::plan::select::{Select, SortKey};
use crate::plan::{Kind, Plan};
use crate::session::{RowStream, View};
use crate::types::{Datum, Row, memory_bytes};
use base::{Key, KeyRange, Scn};
use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;
use txn::{LockMode, Locked, Reader, Scan, Wait};

/// LIMIT and OFFSET, evaluated.
#[derive(Clone, Copy)]
struct Window {
    skip: usize,
    take: usize,
}

fn window(select: &Select, cx: &Context<'_>) -> Result<Window> {
    let count = |expr: &Option<Expr>, what: &str, default: usize| -> Result<usize> {
        let Some(expr) = expr else { return Ok(default) };
        match expr.eval(cx)?.as_i64() {
            None => Ok(default),
            Some(n) => usize::try_from(n).map_err(|_| {
                let state = if what == "LIMIT" { "2201W" } else { "2201X" };
                Error::new(state, format!("{what} must not be negative"))
            }),
        }
    };
    Ok(Window {
        skip: count(&select.offset, "OFFSET", 0)?,
        take: count(&select.limit, "LIMIT", usize::MAX)?,
    })
}

impl Exec<'_> {
    pub async fn select(
        &mut self,
        plan: &Arc<Plan>,
        select: &Select,
        params: &Arc<[Datum]>,
    ) -> Result<RowStream> {
        let mut slots = self.slots(plan, params).await?;
        let Some(table) = &select.table else {
            return self.without_table(select, params, &slots);
        };
        let Some(access) = &select.access else {
            return Err(Error::internal("a SELECT over a table has no access path"));
        };
        let cx = Context { row: &[], params, slots: &slots, view: self.view };
        let window = window(select, &cx)?;
        let places = access.places(table, &cx)?;
        if let Some((mode, wait)) = select.lock {
            let rows = self
                .locking(plan, select, table, places, params, &mut slots, window, mode, wait)
                .await?;
            return Ok(one_batch(rows));
        }
        if window.take == 0 {
            return Ok(one_batch(Vec::new()));
        }
        match places {
            Places::Points(keys) if access.index.is_none() => {
                let found = if keys.is_empty() {
                    Vec::new()
                } else if plan.slots.is_empty() {
                    self.txn.get_only(&keys).await?
                } else {
                    self.txn.get(&keys).await?
                };
                self.points_found(plan, select, table, found, params, &mut slots, window).await
            }
            Places::Points(keys) => {
                let entries = self.txn.get(&keys).await?;
                let keys: Vec<Key> = entries
                    .into_iter()
                    .flatten()
                    .map(|entry| rows::row_key_of_entry(table, &entry.value))
                    .collect();
                let found = if keys.is_empty() { Vec::new() } else { self.txn.get(&keys).await? };
                self.points_found(plan, select, table, found, params, &mut slots, window).await
            }
            Places::Ranges(ranges) => {
                let reader = self.txn.reader().await?;
                if plan.draws_per_row() || !select.is_sorted {
                    return self
                        .gathered(plan, select, table, reader, ranges, params, &mut slots, window)
                        .await;
                }
                let finder = Finder::new(reader, table, select, ranges, window);
                let stream = Scanning {
                    finder,
                    plan: plan.clone(),
                    params: params.clone(),
                    slots: slots.into(),
                    view: self.view.clone(),
                    window,
                };
                Ok(Box::pin(futures::stream::try_unfold(stream, Scanning::step)))
            }
        }
    }

    fn without_table(
        &self,
        select: &Select,
        params: &[Datum],
        slots: &[Datum],
    ) -> Result<RowStream> {
        let cx = Context { row: &[], params, slots, view: self.view };
        let window = window(select, &cx)?;
        let holds = match &select.filter {
            Some(filter) => filter.holds(&cx)?,
            None => true,
        };
        if !holds || window.skip > 0 || window.take == 0 {
            return Ok(one_batch(Vec::new()));
        }
        let row = select.projection.iter().map(|expr| expr.value(&cx)).collect::<Result<Row>>()?;
        Ok(one_batch(vec![row]))
    }

    #[allow(clippy::too_many_arguments)]
    async fn points_found(
        &mut self,
        plan: &Plan,
        select: &Select,
        table: &Table,
        found: Vec<Option<txn::Row>>,
        params: &[Datum],
        slots: &mut [Datum],
        window: Window,
    ) -> Result<RowStream> {
        let mut kept = Vec::new();
        let mut row = Vec::new();
        for stored in found.into_iter().flatten() {
            codec::decode_row(table, &stored.value, Some(&select.wanted), &mut row)?;
            if holds(&select.filter, &row, params, slots, self.view)? {
                kept.push(std::mem::take(&mut row));
            }
        }
        self.finished(plan, select, kept, params, slots, window).await
    }

    /// Sorts, cuts and projects rows at hand.
    async fn finished(
        &mut self,
        plan: &Plan,
        select: &Select,
        mut kept: Vec<Row>,
        params: &[Datum],
        slots: &mut [Datum],
        window: Window,
    ) -> Result<RowStream> {
        // Several points come in the order of their keys' list, not in the one asked for.
        if kept.len() > 1 && !select.order.is_empty() {
            sort(&mut kept, &select.order, params, slots, self.view)?;
        }
        let mut out = Vec::with_capacity(kept.len().min(window.take));
        for row in kept.into_iter().skip(window.skip).take(window.take) {
            if plan.draws_per_row() && !out.is_empty() {
                self.redraw(plan, params, slots).await?;
            }
            out.push(project(select, &row, params, slots, self.view)?);
        }
        Ok(one_batch(out))
    }

    #[allow(clippy::too_many_arguments)]
    async fn gathered(
        &mut self,
        plan: &Plan,
        select: &Select,
        table: &Arc<Table>,
        reader: Reader,
        ranges: Vec<KeyRange>,
        params: &[Datum],
        slots: &mut [Datum],
        window: Window,
    ) -> Result<RowStream> {
        let unlimited = Window { skip: 0, take: usize::MAX };
        let hint = if select.is_sorted { window } else { unlimited };
        let mut finder = Finder::new(reader, table, select, ranges, hint);
        let mut kept = Vec::new();
        let (mut n_bytes, mut refused) = (0, None);
        while let Some(batch) = finder.next().await? {
            for (_, _, row) in batch {
                if holds(&select.filter, &row, params, slots, self.view)? {
                    n_bytes += memory_bytes(&row);
                    refused = refused.or(self.kept.keep_row(&row, "a sort").err());
                    kept.push(row);
                }
            }
            if (n_bytes > self.view.work_mem_bytes() || refused.is_some())
                && let Statement::Query(query) = &*plan.tree
                && !plan.draws_per_row()
            {
                // The other way has files for what does not fit.
                self.kept = Kept::new(self.engine.env());
                drop(kept);
                return Ok(self.run_query(query, plan, params).await?.1);
            }
            if let Some(refused) = refused {
                return Err(refused);
            }
            if select.is_sorted && kept.len() >= window.skip.saturating_add(window.take) {
                break;
            }
        }
        self.finished(plan, select, kept, params, slots, window).await
    }

    /// FOR UPDATE and FOR SHARE: locks rows until there are enough, and returns their newest state.
    #[allow(clippy::too_many_arguments)]
    async fn locking(
        &mut self,
        plan: &Plan,
        select: &Select,
        table: &Arc<Table>,
        places: Places,
        params: &[Datum],
        slots: &mut [Datum],
        window: Window,
        mode: LockMode,
        wait: Wait,
    ) -> Result<Vec<Row>> {
        let is_index = select.access.as_ref().is_some_and(|access| access.index.is_some());
        let mut kept: Vec<Row> = Vec::new();
        let enough = window.skip.saturating_add(window.take);
        let mut out = Vec::new();
        if enough == 0 || window.take == 0 {
            return Ok(out);
        }
        let mut row = Vec::new();
        match places {
            Places::Points(keys) => {
                let keys = if is_index { self.keys_of_entries(table, &keys).await? } else { keys };
                for locked in self.lock(&keys, mode, wait).await? {
                    if let Locked::Held { row: Some(stored) } = locked {
                        codec::decode_row(table, &stored.value, None, &mut row)?;
                        if holds(&select.filter, &row, params, slots, self.view)? {
                            kept.push(std::mem::take(&mut row));
                        }
                    }
                }
                if kept.len() > 1 && !select.order.is_empty() {
                    sort(&mut kept, &select.order, params, slots, self.view)?;
                }
            }
            Places::Ranges(ranges) => {
                let reader = self.txn.reader().await?;
                let snapshot = reader.scn();
                let hint =
                    if select.is_sorted { window } else { Window { skip: 0, take: usize::MAX } };
                let mut finder = Finder::new(reader, table, select, ranges, hint);
                let mut candidates: VecDeque<(Key, Row)> = VecDeque::new();
                let mut ended = false;
                let mut stride = Stride::new(self.chunk_rows());
                while kept.len() < enough && !(ended && candidates.is_empty()) {
                    // Unsorted candidates are gathered whole, so that the first ones are the first.
                    while !ended && (!select.is_sorted || candidates.is_empty()) {
                        let Some(batch) = finder.next().await? else {
                            ended = true;
                            break;
                        };
                        for (key, _, row) in batch {
                            if holds(&select.filter, &row, params, slots, self.view)? {
                                self.kept.keep_row(&row, "the rows to lock")?;
                                candidates.push_back((key, row));
                            }
                        }
                    }
                    if ended && !select.is_sorted && !candidates.is_empty() && kept.is_empty() {
                        let mut list: Vec<(Key, Row)> = std::mem::take(&mut candidates).into();
                        sort_by(
                            &mut list,
                            |pair| &pair.1,
                            &select.order,
                            params,
                            slots,
                            self.view,
                        )?;
                        candidates = list.into();
                    }
                    let n = (enough - kept.len()).min(stride.n_rows()).min(candidates.len());
                    let chunk: Vec<(Key, Row)> = candidates.drain(..n).collect();
                    let keys: Vec<Key> = chunk.iter().map(|(key, _)| key.clone()).collect();
                    let locked = self.lock(&keys, mode, wait).await?;
                    stride.took(n, locked.iter().map(stored_bytes).sum());
                    for locked in locked {
                        let stored = match locked {
                            Locked::Held { row: Some(stored) } => stored,
                            Locked::Held { row: None } => {
                                self.is_gone()?;
                                continue;
                            }
                            Locked::Skipped => continue,
                        };
                        codec::decode_row(table, &stored.value, None, &mut row)?;
                        if stored.scn <= snapshot
                            || holds(&select.filter, &row, params, slots, self.view)?
                        {
                            self.kept.keep_row(&row, "the locked rows")?;
                            kept.push(std::mem::take(&mut row));
                        }
                    }
                }
            }
        }
        for row in kept.iter().skip(window.skip).take(window.take) {
            if plan.draws_per_row() && !out.is_empty() {
                self.redraw(plan, params, slots).await?;
            }
            out.push(project(select, row, params, slots, self.view)?);
        }
        Ok(out)
    }

    /// The row keys that entries of a unique index lead to.
    pub async fn keys_of_entries(&mut self, table: &Table, entries: &[Key]) -> Result<Vec<Key>> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let found = self.txn.get(entries).await?;
        Ok(found
            .into_iter()
            .flatten()
            .map(|entry| rows::row_key_of_entry(table, &entry.value))
            .collect())
    }
}

pub fn holds(
    filter: &Option<Expr>,
    row: &[Datum],
    params: &[Datum],
    slots: &[Datum],
    view: &View,
) -> Result<bool> {
    match filter {
        None => Ok(true),
        Some(filter) => filter.holds(&Context { row, params, slots, view }),
    }
}

fn project(
    select: &Select,
    row: &[Datum],
    params: &[Datum],
    slots: &[Datum],
    view: &View,
) -> Result<Row> {
    let cx = Context { row, params, slots, view };
    select.projection.iter().map(|expr| expr.value(&cx)).collect()
}

fn sort(
    rows: &mut Vec<Row>,
    order: &[SortKey],
    params: &[Datum],
    slots: &[Datum],
    view: &View,
) -> Result<()> {
    sort_by(rows, |row| row, order, params, slots, view)
}

fn sort_by<T>(
    items: &mut Vec<T>,
    row_of: impl Fn(&T) -> &Row,
    order: &[SortKey],
    params: &[Datum],
    slots: &[Datum],
    view: &View,
) -> Result<()> {
    let mut keyed = Vec::with_capacity(items.len());
    for item in items.drain(..) {
        let cx = Context { row: row_of(&item), params, slots, view };
        let keys = order.iter().map(|key| key.expr.value(&cx)).collect::<Result<Vec<Datum>>>()?;
        keyed.push((keys, item));
    }
    keyed.sort_by(|(a, _), (b, _)| {
        for (key, (a, b)) in order.iter().zip(a.iter().zip(b)) {
            let one = compare(key, a, b);
            if one.is_ne() {
                return one;
            }
        }
        Ordering::Equal
    });
    items.extend(keyed.into_iter().map(|(_, item)| item));
    Ok(())
}

fn compare(key: &SortKey, a: &Datum, b: &Datum) -> Ordering {
    match (a.is_null(), b.is_null()) {
        (true, true) => Ordering::Equal,
        (true, false) if key.nulls_first => Ordering::Less,
        (true, false) => Ordering::Greater,
        (false, true) if key.nulls_first => Ordering::Greater,
        (false, true) => Ordering::Less,
        _ if key.descending => b.order(a),
        _ => a.order(b),
    }
}

/// Scans ranges of rows or of index entries and decodes what it finds.
pub struct Finder {
    reader: Reader,
    table: Arc<Table>,
    wanted: Option<Vec<bool>>,
    is_index: bool,
    reverse: bool,
    limit: Option<usize>,
    ranges: VecDeque<KeyRange>,
    scan: Option<Scan>,
}

/// A row's key, its commit, and its columns.
pub type Found = (Key, Scn, Row);

impl Finder {
    fn new(
        reader: Reader,
        table: &Arc<Table>,
        select: &Select,
        ranges: Vec<KeyRange>,
        window: Window,
    ) -> Finder {
        let filtered = select.filter.is_some();
        let limit = match window.take {
            usize::MAX => None,
            // A filter drops some: a little more is asked for at once.
            take if filtered => Some(take.saturating_add(window.skip).saturating_mul(2).max(64)),
            take => Some(take.saturating_add(window.skip)),
        };
        let is_index = select.access.as_ref().is_some_and(|access| access.index.is_some());
        let wanted = Some(select.wanted.clone());
        Finder::over(reader, table.clone(), wanted, is_index, select.reverse, limit, ranges)
    }

    pub fn over(
        reader: Reader,
        table: Arc<Table>,
        wanted: Option<Vec<bool>>,
        is_index: bool,
        reverse: bool,
        limit: Option<usize>,
        ranges: Vec<KeyRange>,
    ) -> Finder {
        let mut ranges: VecDeque<KeyRange> = ranges.into();
        if reverse {
            ranges.make_contiguous().reverse();
        }
        Finder { reader, table, wanted, is_index, reverse, limit, ranges, scan: None }
    }

    /// The next rows; none at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<Found>>> {
        loop {
            let scan = match &mut self.scan {
                Some(scan) => scan,
                none => {
                    let Some(range) = self.ranges.pop_front() else { return Ok(None) };
                    none.insert(self.reader.scan(range, self.reverse, self.limit))
                }
            };
            let batch = scan.next_batch().await?;
            if batch.is_empty() {
                self.scan = None;
                continue;
            }
            let stored: Vec<(Key, txn::Row)> = if self.is_index {
                let keys: Vec<Key> = batch
                    .iter()
                    .map(|(_, entry)| rows::row_key_of_entry(&self.table, &entry.value))
                    .collect();
                let found = self.reader.get(&keys).await?;
                keys.into_iter()
                    .zip(found)
                    .filter_map(|(key, row)| row.map(|row| (key, row)))
                    .collect()
            } else {
                batch
            };
            let mut out = Vec::with_capacity(stored.len());
            for (key, stored) in stored {
                let mut row = Vec::with_capacity(self.table.columns.len());
                codec::decode_row(&self.table, &stored.value, self.wanted.as_deref(), &mut row)?;
                out.push((key, stored.scn, row));
            }
            return Ok(Some(out));
        }
    }
}

/// A scan whose rows go straight to the client.
struct Scanning {
    finder: Finder,
    plan: Arc<Plan>,
    params: Arc<[Datum]>,
    slots: Arc<[Datum]>,
    view: Arc<View>,
    window: Window,
}

impl Scanning {
    async fn step(mut self) -> Result<Option<(Vec<Row>, Scanning)>> {
        let plan = self.plan.clone();
        let Kind::Select(select) = &plan.kind else {
            return Err(Error::internal("a scan's plan is no SELECT"));
        };
        if self.window.take == 0 {
            return Ok(None);
        }
        let Some(batch) = self.finder.next().await? else { return Ok(None) };
        let mut out = Vec::with_capacity(batch.len());
        for (_, _, row) in batch {
            if !holds(&select.filter, &row, &self.params, &self.slots, &self.view)? {
                continue;
            }
            if self.window.skip > 0 {
                self.window.skip -= 1;
                continue;
            }
            out.push(project(select, &row, &self.params, &self.slots, &self.view)?);
            self.window.take -= 1;
            if self.window.take == 0 {
                break;
            }
        }
        Ok(Some((out, self)))
    }
}
