//! Running plans inside a transaction.
//!
//! [`Exec`] is what one statement has at hand: the transaction, the definitions it sees, and its
//! sequences. Reads go by the statement's snapshot, changes by the newest state of rows that were
//! locked first:
//!
//! 1. find candidates (a key that is known needs no look-up; else a scan at the snapshot),
//! 2. lock them, which returns their newest state,
//! 3. check the condition again on rows that changed since the snapshot,
//! 4. compute the new rows, lock every further key they touch (moved rows, index entries),
//! 5. check uniqueness on what the locks showed, and buffer the writes.
//!
//! Each lock call covers a whole chunk of rows, so a statement over a thousand rows takes a few
//! round trips and not a thousand.

pub mod change;
pub mod copy;
pub mod ddl;
mod explain;
pub mod memory;
pub mod rows;
pub mod select;

pub use explain::explain;

use crate::authority::{self, Class, Owned, Privileges};
use crate::bind::{Slot, SlotKind};
use crate::catalog::{Object, Overlay, Sequence};
use crate::engine::Engine;
use crate::error::{Error, Result, state};
use crate::expr::Context;
use crate::parse;
use crate::plan::{self, Plan};
use crate::session::{Column, RowStream, View};
use crate::types::{Datum, Type};
use crate::wide::QueryContext;
use base::Key;
use futures::StreamExt;
use memory::Kept;
use sqlparser::ast;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use txn::{LockMode, Locked, Txn, Wait};

/// What `currval` and `lastval` answer from.
#[derive(Clone, Debug, Default)]
pub struct Drawn {
    by_sequence: HashMap<u32, i64>,
    last: Option<i64>,
}

pub struct Exec<'a> {
    pub engine: &'a Engine,
    pub view: &'a Arc<View>,
    pub txn: &'a mut Txn,
    pub overlay: &'a mut Overlay,
    pub drawn: &'a mut Drawn,
    /// The sequences that this statement has named, as they are now.
    pub sequences: HashMap<String, Arc<Sequence>>,
    /// Zero: no limit.
    pub lock_timeout: Duration,
    /// The statement may be run again from its beginning, at a newer snapshot.
    pub may_restart: bool,
    pub kept: Kept,
    pub read_only: bool,
    /// What set_config has set, for the session to take over.
    pub set_config: Vec<(String, Option<String>, bool)>,
    /// What a definition has to say beside its answer.
    pub notices: Vec<String>,
}

impl Exec<'_> {
    /// Rows that one lock call covers.
    pub fn chunk_rows(&self) -> usize {
        self.engine.env().limits().lock_chunk_rows
    }

    /// What the statement keeps, for whoever takes its rows.
    pub fn take_kept(&mut self) -> Kept {
        std::mem::replace(&mut self.kept, Kept::new(self.engine.env()))
    }

    /// Declares the tables that a plan goes by.
    pub fn declare(&mut self, plan: &Plan) {
        for table in &plan.tables {
            self.txn.use_table(table.id, table.version, &table.ranges);
        }
    }

    pub async fn lock(&mut self, keys: &[Key], mode: LockMode, wait: Wait) -> Result<Vec<Locked>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        if self.lock_timeout.is_zero() {
            return Ok(self.txn.lock(keys, mode, wait).await?);
        }
        let env = self.engine.env().clone();
        match env.timeout(self.lock_timeout, self.txn.lock(keys, mode, wait)).await {
            Some(locked) => Ok(locked?),
            None => Err(Error::new(
                state::LOCK_NOT_AVAILABLE,
                "canceling statement due to lock timeout",
            )),
        }
    }

    /// A row that the snapshot has is gone once its lock is there: somebody deleted it, or gave it another key.
    /// In the second case it may satisfy the condition still, so the statement looks anew.
    pub fn is_gone(&self) -> Result<()> {
        match self.may_restart {
            true => Err(Error::row_gone()),
            false => Ok(()),
        }
    }

    // ---- slots

    /// Computes a plan's slots.
    pub async fn slots(&mut self, plan: &Plan, params: &[Datum]) -> Result<Vec<Datum>> {
        let mut values = Vec::with_capacity(plan.slots.len());
        for slot in &plan.slots {
            let value = Box::pin(self.slot(slot, plan, params, &values)).await?;
            values.push(value);
        }
        Ok(values)
    }

    /// Draws the sequences' values anew, for the next row.
    pub async fn redraw(
        &mut self,
        plan: &Plan,
        params: &[Datum],
        slots: &mut [Datum],
    ) -> Result<()> {
        for (idx, slot) in plan.slots.iter().enumerate() {
            if matches!(slot.kind, SlotKind::NextVal | SlotKind::NextOf(_)) {
                slots[idx] = Box::pin(self.slot(slot, plan, params, slots)).await?;
            }
        }
        Ok(())
    }

    async fn slot(
        &mut self,
        slot: &Slot,
        plan: &Plan,
        params: &[Datum],
        slots: &[Datum],
    ) -> Result<Datum> {
        let mut args = Vec::with_capacity(slot.args.len());
        for arg in &slot.args {
            let cx = Context { row: &[], params, slots, view: self.view };
            args.push(arg.value(&cx)?);
        }
        let strict = matches!(
            slot.kind,
            SlotKind::NextVal | SlotKind::CurrVal | SlotKind::SetVal | SlotKind::Sleep
        );
        if strict && args.iter().any(Datum::is_null) {
            return Ok(Datum::Null);
        }
        Ok(match &slot.kind {
            SlotKind::NextOf(id) => {
                self.may_draw_default(plan, *id)?;
                Datum::Int8(self.next(*id).await?)
            }
            SlotKind::NextVal => {
                let sequence = self.sequence(args[0].as_str().unwrap_or_default()).await?;
                self.refuse_read_only("nextval()")?;
                self.may(&sequence, &[Privileges::USAGE, Privileges::UPDATE])?;
                Datum::Int8(self.next(sequence.id).await?)
            }
            SlotKind::CurrVal => {
                let sequence = self.sequence(args[0].as_str().unwrap_or_default()).await?;
                self.may(&sequence, &[Privileges::USAGE, Privileges::SELECT])?;
                let value = self.drawn.by_sequence.get(&sequence.id).copied();
                Datum::Int8(value.ok_or_else(|| {
                    Error::new(
                        state::NOT_IN_PREREQUISITE_STATE,
                        format!(
                            "currval of sequence \"{}\" is not yet defined in this session",
                            sequence.name
                        ),
                    )
                })?)
            }
            SlotKind::LastVal => Datum::Int8(self.drawn.last.ok_or_else(|| {
                Error::new(
                    state::NOT_IN_PREREQUISITE_STATE,
                    "lastval is not yet defined in this session",
                )
            })?),
            SlotKind::SetVal => {
                let sequence = self.sequence(args[0].as_str().unwrap_or_default()).await?;
                self.refuse_read_only("setval()")?;
                self.may(&sequence, &[Privileges::UPDATE])?;
                let id = sequence.id;
                let value = args[1].as_i64().unwrap_or_default();
                let is_called = args.get(2).and_then(Datum::as_bool).unwrap_or(true);
                let engine = self.engine.clone();
                engine.sequences().set(id, value, is_called, self.txn, self.overlay).await?;
                if is_called {
                    self.drawn.by_sequence.insert(id, value);
                }
                Datum::Int8(value)
            }
            SlotKind::SetConfig => {
                let name = args[0].as_str().ok_or_else(|| {
                    Error::new(state::NULL_NOT_ALLOWED, "SET requires parameter name")
                })?;
                // NULL: back to the default.
                let value = args[1].as_str();
                let is_local = args[2].as_bool().unwrap_or(false);
                let shown = self.view.setting_after(name, value)?;
                let wanted = (name.to_owned(), value.map(str::to_owned), is_local);
                self.set_config.push(wanted);
                Datum::text(shown)
            }
            SlotKind::ExportSnapshot => Datum::text(self.txn.snapshot().await?.to_string()),
            SlotKind::Sleep => {
                let seconds = args[0].as_f64().unwrap_or_default().clamp(0.0, 1e6);
                self.engine.env().sleep(Duration::from_secs_f64(seconds)).await;
                Datum::text("")
            }
            SlotKind::Scalar(query) => {
                let rows = self.gather(query, plan, params, 1).await?;
                rows.into_iter().next().unwrap_or_default()
            }
            SlotKind::Exists(query) => {
                let mut stream = self.run_query(query, plan, params).await?.1;
                let mut found = false;
                while let Some(batch) = stream.next().await {
                    if !batch?.is_empty() {
                        found = true;
                        break;
                    }
                }
                Datum::Bool(found)
            }
            SlotKind::List(query) => {
                let n_values_max = self.engine.env().limits().list_values;
                Datum::Array(self.gather(query, plan, params, n_values_max).await?.into())
            }
        })
    }

    /// The first column of a subquery's rows.
    async fn gather(
        &mut self,
        query: &ast::Query,
        plan: &Plan,
        params: &[Datum],
        max: usize,
    ) -> Result<Vec<Datum>> {
        let mut stream = self.run_query(query, plan, params).await?.1;
        let mut values = Vec::new();
        while let Some(batch) = stream.next().await {
            for row in batch? {
                if values.len() == max {
                    return Err(if max == 1 {
                        Error::new(
                            state::CARDINALITY_VIOLATION,
                            "more than one row returned by a subquery used as an expression",
                        )
                    } else {
                        Error::new(
                            state::LIMIT_EXCEEDED,
                            format!("a subquery in IN returned more than {max} rows"),
                        )
                    });
                }
                self.kept.keep_row(&row, "the values of a subquery")?;
                values.extend(row.into_iter().next());
            }
        }
        Ok(values)
    }

    /// Runs a query in DataFusion at the statement's snapshot.
    pub async fn run_query(
        &mut self,
        query: &ast::Query,
        plan: &Plan,
        params: &[Datum],
    ) -> Result<(Arc<[Column]>, RowStream)> {
        let cx = self.query_context(plan).await?;
        self.engine.wide().run(&cx, query, &plan.params, params).await
    }

    pub async fn query_context(&mut self, plan: &Plan) -> Result<QueryContext> {
        let tables = plan
            .tables
            .iter()
            .map(|table| ((table.schema.clone(), table.name.clone()), table.clone()))
            .collect();
        let view = Arc::new(self.view.with_tables(tables));
        let reader = Some(self.txn.reader().await?);
        Ok(QueryContext { engine: self.engine.clone(), reader, view })
    }

    // ---- sequences

    fn refuse_read_only(&self, what: &str) -> Result<()> {
        if !self.read_only {
            return Ok(());
        }
        let message = format!("cannot execute {what} in a read-only transaction");
        Err(Error::new(state::READ_ONLY_TRANSACTION, message))
    }

    /// One of the privileges is enough.
    fn may(&self, sequence: &Sequence, privileges: &[Privileges]) -> Result<()> {
        let held = self.identity().privileges(Owned::sequence(sequence));
        match privileges.iter().any(|one| held.contains(*one)) {
            true => Ok(()),
            false => Err(authority::denied("sequence", &sequence.name)),
        }
    }

    /// A serial column's default draws in the name of whoever inserts; an identity column's in the owner's.
    fn may_draw_default(&self, plan: &Plan, id: u32) -> Result<()> {
        if self.identity().is_superuser {
            return Ok(());
        }
        let drawn = plan.tables.iter().find_map(|table| {
            let is_drawn = |column: &&crate::catalog::Column| {
                column.default.as_ref().is_some_and(|default| default.owned_sequence == Some(id))
            };
            Some((table, table.columns.iter().find(is_drawn)?))
        });
        let Some((table, column)) = drawn.filter(|(_, column)| column.identity.is_none()) else {
            return Ok(());
        };
        // The sequence goes with its table to a new owner.
        let owned = Owned { class: Class::Sequence, id, owner: table.owner };
        let held = self.identity().privileges(owned);
        if held.contains(Privileges::USAGE) || held.contains(Privileges::UPDATE) {
            return Ok(());
        }
        Err(authority::denied("sequence", &format!("{}_{}_seq", table.name, column.name)))
    }

    async fn next(&mut self, id: u32) -> Result<i64> {
        let engine = self.engine.clone();
        let value = engine.sequences().next(id, self.txn, self.overlay).await?;
        self.drawn.by_sequence.insert(id, value);
        self.drawn.last = Some(value);
        Ok(value)
    }

    /// A sequence by the name that nextval and its kin were given: not one that had it before.
    async fn sequence(&mut self, name: &str) -> Result<Arc<Sequence>> {
        if let Some(known) = self.sequences.get(name) {
            return Ok(known.clone());
        }
        let mut sequence = self.find_sequence(name).await?;
        let engine = self.engine;
        let is_own = self.overlay.sequence(sequence.id).is_some();
        if !is_own && !engine.catalog().is_named(&sequence).await? {
            engine.catalog().forget_name(sequence.place(), &sequence.name);
            engine.sequences().forget(sequence.id);
            sequence = self.find_sequence(name).await?;
        }
        self.sequences.insert(name.to_owned(), sequence.clone());
        Ok(sequence)
    }

    async fn find_sequence(&self, name: &str) -> Result<Arc<Sequence>> {
        let parsed = parse::expression(name)?;
        let parts = match &parsed {
            ast::Expr::Identifier(part) => vec![parse::ident(part)],
            ast::Expr::CompoundIdentifier(parts) => parts.iter().map(parse::ident).collect(),
            _ => Vec::new(),
        };
        let (schema, short) = match &parts[..] {
            [name] => (None, name.as_str()),
            [.., schema, name] => (Some(schema.as_str()), name.as_str()),
            [] => {
                return Err(Error::new("42602", format!("invalid name syntax: \"{name}\"")));
            }
        };
        match plan::find(self.engine, self.overlay, self.view, schema, short).await? {
            Some(Object::Sequence(sequence)) => Ok(sequence),
            Some(_) => {
                Err(Error::new(state::WRONG_OBJECT_TYPE, format!("\"{short}\" is not a sequence")))
            }
            None => Err(plan::undefined_table(schema, short)),
        }
    }
}

/// A stream of rows that are in memory; their loan ends with it.
pub fn kept_batch(rows: Vec<Vec<Datum>>, kept: Kept) -> RowStream {
    let rows = futures::stream::once(async move { Ok(rows) });
    Box::pin(rows.chain(futures::stream::poll_fn(move |_| {
        let _until_here = &kept;
        std::task::Poll::Ready(None)
    })))
}

/// A stream of one batch.
pub fn one_batch(rows: Vec<Vec<Datum>>) -> RowStream {
    Box::pin(futures::stream::once(async move { Ok(rows) }))
}

/// Waits for a stream's first batch, so that what fails at once fails before the first row is
/// sent.
pub async fn primed(mut stream: RowStream) -> Result<RowStream> {
    match stream.next().await {
        None => Ok(Box::pin(futures::stream::empty())),
        Some(first) => {
            let first = first?;
            Ok(Box::pin(futures::stream::once(async move { Ok(first) }).chain(stream)))
        }
    }
}

/// A single text column.
pub fn text_column(name: &str) -> Arc<[Column]> {
    Arc::from([Column { name: name.to_owned(), ty: Type::Text, table: None, attnum: 0 }])
}
