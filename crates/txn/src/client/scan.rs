//! Reading at one snapshot, with the transaction's own writes laid over.

use super::{Result, Row, Shared};
use crate::Error;
use crate::message::{Fault, ReadAt, Request, Response, ScanRequest, Scanned};
use crate::writes::Writes;
use crate::{Isolation, LockMode, Wait};
use base::{Key, KeyRange, Scn, TabletId};
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Reads at one snapshot. Cheap to clone, `Send + Sync + 'static`.
#[derive(Clone)]
pub struct Reader {
    shared: Arc<Shared>,
    at: ReadAt,
    writes: Arc<Writes>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, at: ReadAt, writes: Arc<Writes>) -> Reader {
        Reader { shared, at, writes }
    }

    /// The snapshot; `Scn::MAX` at SERIALIZABLE, which reads the newest under locks.
    pub fn scn(&self) -> Scn {
        self.at.scn().unwrap_or(Scn::MAX)
    }

    /// Whether a read may wait for locks: at SERIALIZABLE it takes them.
    pub fn locks(&self) -> bool {
        self.shared.isolation == Isolation::Serializable
    }

    /// Rows of `range` in key order (falling when `reverse`). `limit` is a hint for how many rows
    /// will be wanted (batches are cut to it); the scan goes on when more are asked for.
    pub fn scan(&self, range: KeyRange, reverse: bool, limit: Option<usize>) -> Scan {
        let locked = self.shared.isolation != Isolation::Serializable;
        // Rows asked for at a time when nobody says how many will be wanted.
        let most = self.shared.node.env.limits().scan_rows;
        let n_rows_max = limit.unwrap_or(most).clamp(1, most);
        Scan {
            reader: self.clone(),
            rest: Some(range),
            reverse,
            n_rows_max,
            locked,
            is_first: true,
        }
    }

    pub fn get<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Row>>>> {
        Box::pin(async move {
            let mut rows: Vec<Option<Row>> = vec![None; keys.len()];
            let mut missing: Vec<usize> = Vec::new();
            for (at, key) in keys.iter().enumerate() {
                match self.writes.get(key)? {
                    Some(own) => rows[at] = own.map(|value| Row { scn: Scn::MAX, value }),
                    None => missing.push(at),
                }
            }
            if self.shared.isolation == Isolation::Serializable {
                missing.sort_by(|a, b| keys[*a].cmp(&keys[*b]));
                let sorted: Vec<Key> = missing.iter().map(|at| keys[*at].clone()).collect();
                let locked =
                    self.shared.lock_keys(sorted, LockMode::Shared, Wait::Block, None).await?;
                for (at, row) in missing.into_iter().zip(locked) {
                    if let crate::message::LockedRow::Held(row) = row {
                        rows[at] = row;
                    }
                }
                return Ok(rows);
            }
            let mut n_moved = 0;
            while !missing.is_empty() {
                let mut by_tablet: BTreeMap<TabletId, Vec<usize>> = BTreeMap::new();
                let mut last: Option<(KeyRange, TabletId)> = None;
                let mut moved = false;
                for at in std::mem::take(&mut missing) {
                    let tablet = match &last {
                        Some((range, tablet)) if range.contains(&keys[at]) => *tablet,
                        _ => last.insert(self.shared.node.tablet_of(&keys[at]).await?).1,
                    };
                    by_tablet.entry(tablet).or_default().push(at);
                }
                let asks = by_tablet.into_iter().map(|(tablet, wanted)| async move {
                    let own: Vec<Key> = wanted.iter().map(|at| keys[*at].clone()).collect();
                    let uses = self.shared.uses_of(&own);
                    let request = Request::Read { at: self.at, keys: own, uses };
                    (wanted, self.shared.node.ask(tablet, request).await)
                });
                for (wanted, answer) in futures::future::join_all(asks).await {
                    match answer {
                        Ok(Response::Rows(found)) => {
                            // One answer has a limited size; the other rows are asked for again.
                            missing.extend(wanted.get(found.len()..).unwrap_or_default());
                            for (at, row) in wanted.into_iter().zip(found) {
                                rows[at] = row;
                            }
                        }
                        Err(Fault::WrongTablet) if n_moved < 20 => {
                            missing.extend(wanted);
                            moved = true;
                        }
                        Err(fault) => return Err(fault.into_error()),
                        Ok(other) => return Err(odd(&other)),
                    }
                }
                if moved {
                    n_moved += 1;
                    self.shared.node.refresh().await;
                }
            }
            Ok(rows)
        })
    }
}

fn odd(response: &Response) -> Error {
    Error::Internal { reason: format!("a read was answered with {response:?}") }
}

/// A scan under way.
pub struct Scan {
    reader: Reader,
    rest: Option<KeyRange>,
    reverse: bool,
    n_rows_max: usize,
    /// The range lock is held, or none is needed.
    locked: bool,
    is_first: bool,
}

impl Scan {
    /// The next rows, up to some thousands; an empty batch ends the scan.
    pub fn next_batch(&mut self) -> BoxFuture<'_, Result<Vec<(Key, Row)>>> {
        Box::pin(async move {
            if let Some(range) = self.rest.clone()
                && !self.locked
            {
                self.reader.shared.lock_range(range, LockMode::Shared).await?;
                self.locked = true;
            }
            // Rows of this node are read without a pause. Between two batches other tasks may run, among
            // them a request to cancel this one.
            if !std::mem::replace(&mut self.is_first, false) {
                tokio::task::yield_now().await;
            }
            let mut n_moved = 0;
            while let Some(rest) = self.rest.clone().filter(|rest| !rest.is_empty()) {
                let node = &self.reader.shared.node;
                let (own, tablet) = match self.reverse {
                    false => node.tablet_of(&rest.start).await?,
                    true => node.tablet_before(rest.end.as_ref()).await?,
                };
                let uses = self.reader.shared.uses_in(&own.intersect(&rest));
                let request = ScanRequest {
                    at: self.reader.at,
                    range: rest.clone(),
                    reverse: self.reverse,
                    n_rows_max: self.n_rows_max,
                    uses,
                };
                let Scanned { rows, covered } = match node.ask(tablet, Request::Scan(request)).await
                {
                    Ok(Response::Scanned(scanned)) => scanned,
                    Err(Fault::WrongTablet) if n_moved < 20 => {
                        n_moved += 1;
                        node.refresh().await;
                        continue;
                    }
                    Err(fault) => return Err(fault.into_error()),
                    Ok(other) => return Err(odd(&other)),
                };
                self.rest = after(&rest, &covered, self.reverse);
                let rows = self.lay_over(rows, &covered)?;
                if !rows.is_empty() {
                    return Ok(rows);
                }
            }
            self.rest = None;
            Ok(Vec::new())
        })
    }

    /// The transaction's own writes take the place of committed rows.
    fn lay_over(&self, rows: Vec<(Key, Row)>, covered: &KeyRange) -> Result<Vec<(Key, Row)>> {
        if self.reader.writes.is_empty() || covered.is_empty() {
            return Ok(rows);
        }
        let mut own = self.reader.writes.scan(covered).peekable();
        if own.peek().is_none() {
            return Ok(rows);
        }
        let mut merged: BTreeMap<Key, Row> = rows.into_iter().collect();
        for write in own {
            let (key, value) = write?;
            match value {
                Some(value) => merged.insert(key, Row { scn: Scn::MAX, value }),
                None => merged.remove(&key),
            };
        }
        Ok(match self.reverse {
            false => merged.into_iter().collect(),
            true => merged.into_iter().rev().collect(),
        })
    }
}

/// What is left of `rest` once `covered` is done.
fn after(rest: &KeyRange, covered: &KeyRange, reverse: bool) -> Option<KeyRange> {
    match reverse {
        false => {
            let start = covered.end.clone()?;
            Some(KeyRange { start, end: rest.end.clone() })
        }
        true => {
            let end = Some(covered.start.clone());
            Some(KeyRange { start: rest.start.clone(), end }).filter(|rest| !rest.is_empty())
        }
    }
}
