//! COPY between a client and a table.

use super::execute::Patience;
use super::transaction::Open;
use super::{Outcome, RowStream, Session};
use crate::authority::{Needs, Privileges};
use crate::catalog::Table;
use crate::engine::Engine;
use crate::error::{Error, Result, state};
use crate::expr::{Context, Expr};
use crate::parse::{self, Copy, CopyOptions, CopySource, Statement};
use crate::plan::change::{NamedCheck, column_idx, quoted};
use crate::plan::{Kind, Plan, Planner};
use crate::run::copy::{Reader, Writer};
use crate::run::memory::{Chunk, Kept};
use crate::run::{Drawn, Exec};
use crate::types::{Row, Type, Zone};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{Stream, StreamExt};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Lines of COPY OUT, several in one chunk.
pub type CopyStream = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>;

/// COPY … FROM STDIN under way. It carries the session's transaction until
/// [`Session::copy_end`] or [`Session::copy_fail`] gives it back; dropped, it rolls back.
pub struct CopyIn {
    pub n_columns: usize,
    engine: Engine,
    open: Open,
    drawn: Drawn,
    lock_timeout: Duration,
    reader: Reader,
    table: Arc<Table>,
    checks: Vec<NamedCheck>,
    /// Makes a row of the table of a line's fields; none where they are the same.
    row: Option<(Vec<Expr>, Plan)>,
    fields: Chunk,
    n_rows: u64,
    /// Set where the statement is run for a client.
    pub(super) patience: Option<Patience>,
}

/// COPY … TO STDOUT. The stream's chunks hold whole lines; `n_rows` is right once it has ended.
pub struct CopyOut {
    pub n_columns: usize,
    pub lines: CopyStream,
    pub n_rows: Arc<AtomicU64>,
}

impl CopyIn {
    /// Waits until nobody waits for the COPY any more: a request to cancel it, or its time.
    pub async fn over(&self) -> Error {
        match &self.patience {
            Some(patience) => patience.over().await,
            None => std::future::pending().await,
        }
    }

    /// Bytes as they came from the client, cut anywhere.
    pub async fn data(&mut self, bytes: &[u8]) -> Result<()> {
        let patience = self.patience.clone();
        let work = self.take(bytes);
        match patience {
            Some(patience) => patience.bound(work).await,
            None => work.await,
        }
    }

    async fn take(&mut self, bytes: &[u8]) -> Result<()> {
        let mut fields = Vec::new();
        self.reader.feed(bytes, &mut fields)?;
        for row in fields {
            let Some(chunk) = self.fields.push(row) else { continue };
            let work: BoxFuture<'_, Result<()>> = Box::pin(self.write(chunk));
            work.await?;
        }
        Ok(())
    }

    async fn write(&mut self, chunk: Vec<Row>) -> Result<()> {
        let n_rows = chunk.len() as u64;
        let view = self.open.view.clone();
        let mut exec = Exec {
            engine: &self.engine,
            view: &view,
            txn: &mut self.open.txn,
            overlay: &mut self.open.overlay,
            drawn: &mut self.drawn,
            sequences: HashMap::new(),
            lock_timeout: self.lock_timeout,
            may_restart: false,
            kept: Kept::new(self.engine.env()),
            read_only: false,
            set_config: Vec::new(),
            notices: Vec::new(),
        };
        let rows = match &self.row {
            None => chunk,
            Some((exprs, plan)) => {
                let mut rows = Vec::with_capacity(chunk.len());
                for fields in chunk {
                    let slots = exec.slots(plan, &[]).await?;
                    let cx = Context { row: &fields, params: &[], slots: &slots, view: &view };
                    rows.push(exprs.iter().map(|expr| expr.value(&cx)).collect::<Result<Row>>()?);
                }
                rows
            }
        };
        exec.append(&self.table, &self.checks, rows).await?;
        self.n_rows += n_rows;
        Ok(())
    }
}

impl Session {
    pub(super) async fn copy(&mut self, copy: &Copy) -> Result<Outcome> {
        if copy.out { self.copy_out(copy).await } else { self.copy_in(copy).await }
    }

    async fn copy_in(&mut self, copy: &Copy) -> Result<Outcome> {
        let CopySource::Table { name, columns } = &copy.source else {
            return Err(Error::new(state::SYNTAX_ERROR, "COPY FROM wants a table"));
        };
        self.open();
        self.refuse_read_only("COPY FROM")?;
        let engine = self.engine.clone();
        let Some(open) = &mut self.open else {
            return Err(Error::internal("COPY lost its transaction"));
        };
        open.txn.begin_statement();
        let view = open.view.clone();
        let mut planner = Planner::new(&engine, &open.overlay, &view, &[]);
        let mut table = planner.target(name).await?;
        // Lines that are gone cannot be written again by a newer definition.
        if !engine.catalog().is_in_force(&table).await? {
            engine.catalog().forget_table(table.id);
            table = planner.target(name).await?;
        }
        let idxs = if columns.is_empty() {
            (0..table.columns.len()).collect()
        } else {
            columns.iter().map(|name| column_idx(&table, name)).collect::<Result<Vec<usize>>>()?
        };
        let mut needs = Needs::default();
        let named = parse::qualified(name)?.0.filter(|schema| *schema == table.schema);
        needs.schemas.extend(named);
        needs.add(&table, Privileges::INSERT, idxs.iter().map(|idx| table.columns[*idx].id));
        view.identity.check(&needs)?;
        let all: Vec<usize> = (0..table.columns.len()).collect();
        let mut row = None;
        if idxs != all {
            let given = (0..idxs.len()).map(Expr::Column).collect();
            row = Some(planner.full_row(&table, &idxs, given)?);
        }
        let checks = planner.checks(&table)?;
        let plan = Plan {
            kind: Kind::Utility,
            params: Vec::new(),
            columns: None,
            slots: planner.slots,
            tables: vec![table.clone()],
            needs: OnceLock::new(),
            generation: 0,
            is_private: true,
            tree: Arc::new(Statement::Empty),
        };
        open.txn.use_table(table.id, table.version, &table.ranges);
        let Some(open) = self.open.take() else {
            return Err(Error::internal("COPY lost its transaction"));
        };
        let limits = engine.env().limits();
        let (n_rows_max, line_max) = (limits.lock_chunk_rows, limits.copy_line_bytes);
        let reader = Reader::new(copy.options.clone(), &table, &idxs, view.zone, line_max);
        Ok(Outcome::CopyIn(Box::new(CopyIn {
            n_columns: idxs.len(),
            reader,
            engine,
            open,
            drawn: std::mem::take(&mut self.drawn),
            lock_timeout: self.settings.lock_timeout,
            table,
            checks,
            row: row.map(|row| (row, plan)),
            fields: Chunk::new(n_rows_max),
            n_rows: 0,
            patience: None,
        })))
    }

    /// Ends COPY FROM STDIN and returns its tag.
    pub async fn copy_end(&mut self, mut copy: Box<CopyIn>) -> Result<String> {
        let mut chunk = copy.fields.take();
        let mut outcome = copy.reader.finish(&mut chunk);
        if outcome.is_ok() {
            let patience = copy.patience.clone();
            let work: BoxFuture<'_, Result<()>> = Box::pin(copy.write(chunk));
            outcome = match patience {
                Some(patience) => patience.bound(work).await,
                None => work.await,
            };
        }
        let n_rows = copy.n_rows;
        self.take_back(copy);
        match outcome {
            Ok(()) => Ok(format!("COPY {n_rows}")),
            Err(error) => {
                self.fail_with(&error).await;
                Err(error)
            }
        }
    }

    /// The client broke COPY off, or feeding it failed.
    pub async fn copy_fail(&mut self, copy: Box<CopyIn>, message: &str) -> Error {
        self.take_back(copy);
        let error = Error::new(state::QUERY_CANCELED, format!("COPY from stdin failed: {message}"));
        self.fail_with(&error).await;
        error
    }

    fn take_back(&mut self, copy: Box<CopyIn>) {
        let mut open = copy.open;
        open.n_statements += 1;
        self.open = Some(open);
        self.drawn = copy.drawn;
    }

    async fn copy_out(&mut self, copy: &Copy) -> Result<Outcome> {
        let query = match &copy.source {
            CopySource::Query(query) => query.clone(),
            CopySource::Table { name, columns } => {
                let list = if columns.is_empty() {
                    "*".to_owned()
                } else {
                    columns.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ")
                };
                crate::parse::query(&format!("SELECT {list} FROM {name}"))?
            }
        };
        let tree = Arc::new(Statement::Query(query));
        let outcome = Box::pin(self.run_tree(tree)).await?;
        let Outcome::Rows { columns, rows, .. } = outcome else {
            return Err(Error::internal("COPY's query returned no rows"));
        };
        let types: Vec<Type> = columns.iter().map(|column| column.ty.clone()).collect();
        let names = columns.iter().map(|column| column.name.clone()).collect();
        let n_rows = Arc::new(AtomicU64::new(0));
        let zone = self.settings.zone;
        let lines = lines(rows, copy.options.clone(), names, types, zone, n_rows.clone());
        Ok(Outcome::CopyOut(CopyOut { n_columns: columns.len(), lines, n_rows }))
    }
}

fn lines(
    rows: RowStream,
    options: CopyOptions,
    names: Vec<String>,
    types: Vec<Type>,
    zone: Zone,
    n_rows: Arc<AtomicU64>,
) -> CopyStream {
    let mut writer = Writer::new(options.clone(), types, zone);
    let mut head = Vec::new();
    if options.header {
        writer.header(&names, &mut head);
    }
    let head = (!head.is_empty()).then(|| Ok(Bytes::from(head)));
    let body = rows.map(move |batch| {
        let batch = batch?;
        n_rows.fetch_add(batch.len() as u64, Ordering::Relaxed);
        let mut out = Vec::with_capacity(batch.len() * 32);
        batch.iter().for_each(|row| writer.row(row, &mut out));
        Ok(Bytes::from(out))
    });
    Box::pin(futures::stream::iter(head).chain(body))
}
