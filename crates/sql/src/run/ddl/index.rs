//! CREATE INDEX and DROP INDEX.
//!
//! Outside of a transaction block an index is built *online*, while the table is read and written:
//!
//! 1. One short transaction adds the index in the state *building*. From its commit on every writer
//!    keeps the index up, because whoever goes by the older definition is refused; and no writer
//!    of the older definition is left, because the change waited for them.
//! 2. Rows that are older are given their entries in batches, each a short transaction that locks
//!    its rows first. An entry that is there already was put by a writer and is the same.
//! 3. A last short transaction makes the index *public*: readers may use it, except those of an older
//!    snapshot, who go by the definition of then ([`Catalog::as_of`]).
//!
//! Whatever ends the building early takes the index away again: a duplicate, a cancel request, a time-out, a
//! client that is gone. The building is a task of its own, so that it lives to do that. When the node
//! dies instead, its next start is not the one that the index names as its builder, and whoever
//! leads the cluster removes the index ([`remove_abandoned`]). Until then it costs writers something and
//! serves nobody.

use super::comments::PG_CLASS;
use super::ranges_of;
use super::table::key_columns;
use crate::authority::Owned;
use crate::catalog::{Catalog, Index, IndexState, Kind, Name, RelationId, Table, retry};
use crate::engine::Engine;
use crate::error::{Error, Result, state};
use crate::parse;
use crate::plan::undefined_table;
use crate::run::memory::Kept;
use crate::run::{Exec, rows};
use crate::types::Row;
use crate::{catalog::Overlay, codec};
use base::{Key, KeyRange, NodeId};
use sqlparser::ast;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use txn::{Isolation, LockMode, Locked, Wait};

/// Rows of one batch of the online building.
const BATCH_ROWS: usize = 500;

/// How CREATE INDEX goes on after the definition was made.
pub enum Building {
    /// Nothing is left to do, but perhaps something to say.
    Done(Option<String>),
    /// The index waits to be built online, once this transaction has committed.
    Online { table: u32, index: u32 },
}

impl Exec<'_> {
    /// `online`: leave the building to [`build_online`].
    pub async fn create_index(
        &mut self,
        create: &ast::CreateIndex,
        online: bool,
    ) -> Result<Building> {
        if create.predicate.is_some() {
            return Err(Error::unsupported("a partial index"));
        }
        if create.nulls_distinct == Some(false) {
            return Err(Error::unsupported("NULLS NOT DISTINCT"));
        }
        if !create.include.is_empty() {
            return Err(Error::unsupported("INCLUDE"));
        }
        match &create.using {
            None | Some(ast::IndexType::BTree) => {}
            Some(other) => return Err(Error::unsupported(format!("the index type {other}"))),
        }
        let mut table = self.lock_own_table(&create.table_name).await?;
        let columns = key_columns(&create.columns)?;
        let ids = super::table::column_ids(&table, &columns)?;
        let schema = table.schema.clone();
        let name = match &create.name {
            Some(name) => parse::last_part(name)?,
            None => {
                let mut parts = vec![table.name.as_str()];
                parts.extend(columns.iter().map(String::as_str));
                self.free_name(&schema, &parts, "idx").await?
            }
        };
        if create.if_not_exists
            && Catalog::lock_name(self.txn, table.place(), &name).await?.is_some()
        {
            return Ok(Building::Done(Some(format!(
                "relation \"{name}\" already exists, skipping"
            ))));
        }
        let first = self.engine.catalog().allocate(2).await?;
        let entry = Name { kind: Kind::Index, id: first, table: table.id };
        self.claim(&schema, &name, entry).await?;
        let before = ranges_of(&table);
        self.txn.use_table(table.id, table.version, &before);
        table.indexes.push(Index {
            id: first,
            name,
            relation: RelationId(first + 1),
            columns: ids,
            unique: create.unique,
            constraint: false,
            state: IndexState::Building,
            builder: online.then(|| self.engine.client().coordinator()),
        });
        if online {
            let id = table.id;
            self.redefine(table, &before).await?;
            return Ok(Building::Online { table: id, index: first });
        }
        let at = table.indexes.len() - 1;
        self.build_inside(table, at).await?;
        Ok(Building::Done(None))
    }

    /// Gives locked rows their entries in one index.
    pub async fn put_entries(
        &mut self,
        table: &Table,
        at: usize,
        found: Vec<(Key, Row)>,
    ) -> Result<()> {
        let index = &table.indexes[at];
        let entries: Vec<_> =
            found.iter().map(|(key, row)| rows::entry(table, index, row, key)).collect();
        entries.iter().try_for_each(|(key, _)| rows::check_key(key, &index.name))?;
        let keys: Vec<Key> = entries.iter().map(|(key, _)| key.clone()).collect();
        let locked = self.lock(&keys, LockMode::Exclusive, Wait::Block).await?;
        let mut own = HashMap::new();
        for (((key, value), locked), (_, row)) in entries.into_iter().zip(locked).zip(&found) {
            let there = match (own.get(&key), locked) {
                (Some(value), _) => Some(bytes::Bytes::clone(value)),
                (None, Locked::Held { row: Some(stored) }) => Some(stored.value),
                _ => None,
            };
            match there {
                Some(there) if there != value => {
                    let clash = rows::duplicate(table, &index.name, &index.columns, row);
                    let detail = clash.detail.clone().unwrap_or_default();
                    return Err(Error::new(
                        state::UNIQUE_VIOLATION,
                        format!("could not create unique index \"{}\"", index.name),
                    )
                    .detail(detail.replace("already exists", "is duplicated"))
                    .constraint(&table.name, &index.name));
                }
                Some(_) => {}
                None => {
                    self.txn.put(key.clone(), value.clone())?;
                    own.insert(key, value);
                }
            }
        }
        Ok(())
    }

    /// A notice, if there is something to say.
    pub async fn drop_index(
        &mut self,
        name: &ast::ObjectName,
        if_exists: bool,
    ) -> Result<Option<String>> {
        let (schema, short) = parse::qualified(name)?;
        let (schema, short, entry) = match self.lock_existing(name).await? {
            Some((schema, short, entry)) if entry.kind == Kind::Index => (schema, short, entry),
            Some((_, short, _)) => {
                return Err(Error::new(
                    state::WRONG_OBJECT_TYPE,
                    format!("\"{short}\" is not an index"),
                ));
            }
            None if if_exists => {
                return Ok(Some(format!("index \"{short}\" does not exist, skipping")));
            }
            None => {
                let error = undefined_table(schema.as_deref(), &short);
                return Err(Error::new(
                    state::UNDEFINED_OBJECT,
                    error.message.replace("relation", "index"),
                ));
            }
        };
        let Some(mut table) = Catalog::lock_table(self.txn, entry.table).await? else {
            return Err(Error::internal(format!("index \"{short}\" belongs to no table")));
        };
        self.require_owner_or_schema(Owned::table(&table), &schema, &short)?;
        let before = ranges_of(&table);
        self.txn.use_table(table.id, table.version, &before);
        // Those of constraints go with their constraints.
        let free = |index: &crate::catalog::Index| index.id == entry.id && !index.constraint;
        let Some(at) = table.indexes.iter().position(free) else {
            return Err(Error::new(
                "2BP01",
                format!(
                    "cannot drop index {short} because constraint {short} on table {} requires it",
                    table.name
                ),
            )
            .hint(format!("You can drop constraint {short} on table {} instead.", table.name)));
        };
        let index = table.indexes.remove(at);
        self.release(table.place(), &short).await?;
        self.drop_comments(PG_CLASS, index.id).await?;
        Catalog::discard(self.txn, index.relation).await?;
        self.redefine(table, &before).await?;
        Ok(None)
    }
}

/// Between two tries to take away an index that is not to be.
const UNDO_PAUSE: Duration = Duration::from_millis(200);
/// Tries, before it is left to whoever removes what is abandoned.
const N_UNDO_TRIES: usize = 50;

/// Builds an index whose definition has committed in the state building. Whoever stops waiting for it
/// stops the building, and nothing is left of it.
pub async fn build_online(engine: &Engine, table: u32, index: u32) -> Result<()> {
    let (mut sender, outcome) = tokio::sync::oneshot::channel();
    let worker = engine.clone();
    engine.env().spawn("building of an index", async move {
        let built = tokio::select! {
            biased;
            () = sender.closed() => Err(gone()),
            built = backfill(&worker, table, index) => built,
        };
        let outcome = match built {
            // A commit under way is not to be broken off: from here on the answer is waited for.
            Ok(()) => finish(&worker, table, index, true).await,
            Err(error) => Err(error),
        };
        // It may be public although its client has gone; then it is as good as any.
        if outcome.is_err() {
            undo(&worker, table, index).await;
        }
        drop(sender.send(outcome));
    });
    outcome.await.unwrap_or_else(|_| Err(Error::internal("the building of an index was given up")))
}

/// Takes an index away that could not be built.
async fn undo(engine: &Engine, table: u32, index: u32) {
    for _ in 0..N_UNDO_TRIES {
        match finish(engine, table, index, false).await {
            Ok(()) => return,
            // Somebody has dropped it, or its table.
            Err(error) if error.state() == state::UNDEFINED_OBJECT => return,
            Err(error) => tracing::warn!(table, index, %error, "an index waits to be removed"),
        }
        engine.env().sleep(UNDO_PAUSE).await;
    }
}

/// Removes the indexes whose builders are no more. `lives` says whether a node's start still runs.
pub async fn remove_abandoned(engine: &Engine, lives: impl Fn(NodeId, u64) -> bool) -> Result<()> {
    let mut txn = engine.client().begin(Isolation::ReadCommitted);
    let tables = engine.catalog().tables(&txn.reader().await?).await;
    txn.rollback().await;
    for table in tables? {
        for index in &table.indexes {
            if index.builder.is_some_and(|(node, boot)| !lives(node, boot)) {
                tracing::info!(
                    table = table.name,
                    index = index.name,
                    "removed: its builder is gone"
                );
                finish(engine, table.id, index.id, false).await?;
            }
        }
    }
    Ok(())
}

async fn backfill(engine: &Engine, table: u32, index: u32) -> Result<()> {
    let mut rest: Option<KeyRange> = None;
    loop {
        let step = retry(|| batch(engine, table, index, rest.clone())).await?;
        match step {
            Some(next) => rest = Some(next),
            None => return Ok(()),
        }
    }
}

/// One batch; returns what is left of the range.
async fn batch(
    engine: &Engine,
    id: u32,
    index: u32,
    rest: Option<KeyRange>,
) -> Result<Option<KeyRange>> {
    let table = read_table(engine, id).await?;
    let at = table.indexes.iter().position(|candidate| candidate.id == index).ok_or_else(gone)?;
    let mut txn = engine.client().begin(Isolation::ReadCommitted);
    txn.use_table(table.id, table.version, &table.ranges);
    let whole = table.relation.range();
    // A concurrent TRUNCATE has moved the rows: begin again with the new relation.
    let range = match rest {
        Some(rest) if whole.covers(&rest) => rest,
        _ => whole,
    };
    let reader = txn.reader().await?;
    let mut scan = reader.scan(range.clone(), false, Some(BATCH_ROWS));
    let found = scan.next_batch().await?;
    let Some((last, _)) = found.last() else { return Ok(None) };
    let next = KeyRange { start: base::key::successor(last), end: range.end };
    let keys: Vec<Key> = found.into_iter().map(|(key, _)| key).collect();
    let locked = txn.lock(&keys, LockMode::Exclusive, Wait::Block).await?;
    let mut newest = Vec::with_capacity(keys.len());
    for (key, locked) in keys.into_iter().zip(locked) {
        // A row deleted meanwhile needs no entry; one inserted meanwhile has it.
        let Locked::Held { row: Some(stored) } = locked else { continue };
        let mut row = Vec::new();
        codec::decode_row(&table, &stored.value, None, &mut row)?;
        newest.push((key, row));
    }
    let view = Arc::new(crate::session::View::internal_for(engine, &table));
    let mut overlay = Overlay::default();
    let mut exec = Exec {
        engine,
        view: &view,
        txn: &mut txn,
        overlay: &mut overlay,
        drawn: &mut Default::default(),
        sequences: HashMap::new(),
        lock_timeout: Duration::ZERO,
        may_restart: false,
        kept: Kept::new(engine.env()),
        read_only: false,
        set_config: Vec::new(),
        notices: Vec::new(),
    };
    exec.put_entries(&table, at, newest).await?;
    txn.commit().await?;
    Ok(Some(next))
}

/// Makes the index public, or takes it away again.
async fn finish(engine: &Engine, id: u32, index: u32, built: bool) -> Result<()> {
    retry(|| async {
        let mut txn = engine.client().begin(Isolation::ReadCommitted);
        let mut overlay = Overlay::default();
        let mut table = Catalog::lock_table(&mut txn, id).await?.ok_or_else(gone)?;
        let before = ranges_of(&table);
        txn.use_table(table.id, table.version, &before);
        let at =
            table.indexes.iter().position(|candidate| candidate.id == index).ok_or_else(gone)?;
        if built {
            table.indexes[at].state = IndexState::Public;
            table.indexes[at].builder = None;
        } else {
            let index = table.indexes.remove(at);
            Catalog::lock_name(&mut txn, table.place(), &index.name).await?;
            Catalog::put_name(&mut txn, &mut overlay, table.place(), &index.name, None)?;
            Catalog::discard(&mut txn, index.relation).await?;
        }
        table.version += 1;
        let table = Catalog::put_table(&mut txn, &mut overlay, table)?;
        txn.change_schema(table.id, table.version, &before).await?;
        txn.commit().await?;
        engine.redefined(&overlay.changed()).await;
        Ok(())
    })
    .await
}

fn gone() -> Error {
    Error::new(state::UNDEFINED_OBJECT, "the index was dropped while it was being built")
}

async fn read_table(engine: &Engine, id: u32) -> Result<Arc<Table>> {
    let mut txn = engine.client().begin(Isolation::ReadCommitted);
    let found = txn.get(&[crate::catalog::rows::table_key(id)]).await;
    txn.rollback().await;
    match found?.into_iter().next() {
        Some(Some(row)) => Ok(crate::catalog::rows::decode::<Table>(&row.value)?.seal()),
        _ => Err(gone()),
    }
}
