//! Preparing and executing statements.

use super::transaction::Open;
use super::{
    Canceler, Column, Outcome, ParsedStatement, Prepared, Session, TagKind, View, canceled,
};
use crate::authority::{Needs, needs};
use crate::catalog::Overlay;
use crate::engine::Engine;
use crate::error::{Error, Result, state};
use crate::parse::{self, Statement};
use crate::plan::{Kind, Plan, Planner};
use crate::run::change::Changed;
use crate::run::memory::Kept;
use crate::run::{Drawn, Exec, explain, kept_batch, one_batch, primed, text_column};
use crate::types::{Datum, Type};
use crate::views;
use base::env::Instant;
use futures::future::BoxFuture;
use futures::{Stream, StreamExt};
use sqlparser::ast;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use txn::Isolation;

/// Times that a statement is planned anew because a definition changed under it.
pub(super) const PLANS_MAX: usize = 20;
/// Times that a statement looks anew because a row that it waited for is gone; then it goes without it.
const N_RESTARTS_MAX: usize = 3;

impl Session {
    /// Plans one statement. `hints` are the parameters' types as far as the client says.
    pub async fn prepare(&mut self, sql: &str, hints: &[Option<Type>]) -> Result<Prepared> {
        let mut statements = parse::split(sql)?;
        let statement = match statements.len() {
            0 => ParsedStatement::new(""),
            1 => statements.remove(0),
            _ => {
                return Err(Error::new(
                    state::SYNTAX_ERROR,
                    "cannot insert multiple commands into a prepared statement",
                ));
            }
        };
        self.prepare_with(statement, hints).await
    }

    /// The same for a statement that [`Session::split`] found, and that is executed at once: its
    /// columns are told with its rows.
    pub async fn prepare_parsed(&mut self, statement: &ParsedStatement) -> Result<Prepared> {
        let prepared = self.prepare_with(statement.clone(), &[]).await?;
        Ok(Prepared { is_promised: false, ..prepared })
    }

    async fn prepare_with(
        &mut self,
        source: ParsedStatement,
        hints: &[Option<Type>],
    ) -> Result<Prepared> {
        let patience = self.patience();
        // Boxed: the future is large, and whoever awaits it need not know its type.
        let work: BoxFuture<'_, Result<Arc<Plan>>> = Box::pin(async {
            self.renew_identity().await?;
            self.plan(&source, hints).await
        });
        let plan = match patience.bound(work).await {
            Ok(plan) => plan,
            Err(error) => {
                self.fail_with(&error).await;
                return Err(error);
            }
        };
        let watch = self.engine.statistics().watch(&source.text);
        Ok(Prepared {
            params: plan.params.clone(),
            columns: plan.columns.clone(),
            source,
            hints: hints.to_vec(),
            is_promised: true,
            plan,
            watch,
        })
    }

    /// A plan that is true now: from the cache, or made.
    async fn plan(
        &mut self,
        source: &ParsedStatement,
        hints: &[Option<Type>],
    ) -> Result<Arc<Plan>> {
        let key = crate::engine::PlanKey {
            text: source.text.clone(),
            database: self.identity.database,
            search_path: self.usable_path.clone(),
            hints: hints.to_vec(),
        };
        let is_shared = self.open.as_ref().is_none_or(|open| open.overlay.is_empty());
        if is_shared
            && let Some(plan) = self.engine.plans().get(&key, self.engine.catalog().generation())
            && plan.holds_at(self.snapshot())
        {
            return Ok(plan);
        }
        let tree = source.tree()?;
        let plan = Arc::new(self.plan_tree(tree, hints).await?);
        if is_shared && !matches!(plan.kind, Kind::Utility) {
            self.engine.plans().put(key, &plan);
        }
        Ok(plan)
    }

    async fn plan_tree(&mut self, tree: Arc<Statement>, hints: &[Option<Type>]) -> Result<Plan> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let planned = self.plan_once(tree.clone(), hints).await;
            match planned.as_ref().err().and_then(Error::schema_changed) {
                Some(table) if attempt < PLANS_MAX => self.engine.catalog().forget_table(table),
                _ => return planned,
            }
        }
    }

    async fn plan_once(&self, tree: Arc<Statement>, hints: &[Option<Type>]) -> Result<Plan> {
        let failed = self.open.as_ref().is_some_and(|open| open.block && open.failed);
        let empty = Overlay::default();
        let view = self.view();
        let overlay = self.open.as_ref().map_or(&empty, |open| &open.overlay);
        let mut planner = Planner::new(&self.engine, overlay, &view, hints);
        planner.snapshot = self.snapshot();
        let utility = |params: Vec<Type>, columns: Option<Arc<[Column]>>| Plan {
            kind: Kind::Utility,
            params,
            columns,
            slots: Vec::new(),
            tables: Vec::new(),
            needs: OnceLock::new(),
            generation: 0,
            is_private: true,
            tree: tree.clone(),
        };
        Ok(match &*tree {
            // Its execution is refused anyway; looking names up would only hide that.
            _ if failed && !ends_failure(&tree) => return Err(aborted()),
            Statement::Query(_)
            | Statement::Insert(_)
            | Statement::Update(_)
            | Statement::Delete(_) => planner.plan(tree).await?,
            Statement::Explain { statement, .. } => {
                let inner = planner.plan(Arc::new((**statement).clone())).await?;
                utility(inner.params, Some(text_column("QUERY PLAN")))
            }
            Statement::Show(name) if name == "all" => {
                let column = |name: &str| Column {
                    name: name.to_owned(),
                    ty: Type::Text,
                    table: None,
                    attnum: 0,
                };
                let columns = ["name", "setting", "description"].map(column);
                utility(Vec::new(), Some(Arc::from(columns)))
            }
            Statement::Show(name) => utility(Vec::new(), Some(text_column(name))),
            Statement::Execute { name, .. } => {
                let prepared = self.prepared.get(name).ok_or_else(|| no_prepared(name))?;
                utility(Vec::new(), prepared.columns.clone())
            }
            _ => utility(Vec::new(), None),
        })
    }

    /// Runs a statement in the open transaction; an implicit one is begun if there is none. The
    /// rows must be drained or dropped, then [`Session::finish`] is called.
    pub async fn execute(&mut self, prepared: &Prepared, params: Vec<Datum>) -> Result<Outcome> {
        let env = self.engine.env().clone();
        let begin = env.now();
        let patience = self.patience();
        let running: BoxFuture<'_, Result<Outcome>> = Box::pin(self.dispatch(prepared, params));
        let outcome = patience.bound(running).await;
        prepared.watch.record(env.now().duration_since(begin).as_micros() as u64);
        match outcome {
            Ok(Outcome::Rows { columns, rows, tag }) => {
                Ok(Outcome::Rows { columns, rows: patience.guard(rows), tag })
            }
            Ok(Outcome::CopyOut(mut copy)) => {
                copy.lines = patience.guard(copy.lines);
                Ok(Outcome::CopyOut(copy))
            }
            Ok(Outcome::CopyIn(mut copy)) => {
                copy.patience = Some(patience);
                Ok(Outcome::CopyIn(copy))
            }
            Ok(outcome) => Ok(outcome),
            Err(error) => {
                self.fail_with(&error).await;
                Err(error)
            }
        }
    }

    /// How long the client waits for the statement that begins now.
    fn patience(&self) -> Patience {
        self.cancel.arm();
        let env = self.engine.env().clone();
        let timeout = self.settings.statement_timeout;
        let until = (!timeout.is_zero()).then(|| env.now() + timeout);
        Patience { env, cancel: self.cancel.clone(), until }
    }

    async fn dispatch(&mut self, prepared: &Prepared, params: Vec<Datum>) -> Result<Outcome> {
        self.renew_identity().await?;
        let tree = &prepared.plan.tree;
        if self.open.as_ref().is_some_and(|open| open.block && open.failed) && !ends_failure(tree) {
            return Err(aborted());
        }
        if params.len() != prepared.params.len() {
            return Err(Error::new(
                state::PROTOCOL_VIOLATION,
                format!(
                    "bind message supplies {} parameters, but the statement requires {}",
                    params.len(),
                    prepared.params.len()
                ),
            ));
        }
        match prepared.plan.kind {
            Kind::Utility => Box::pin(self.utility(tree.clone(), params)).await,
            _ => self.data(prepared, params.into()).await,
        }
    }

    // ---- queries and changes

    async fn data(&mut self, prepared: &Prepared, params: Arc<[Datum]>) -> Result<Outcome> {
        let mut n_restarts = 0;
        for attempt in 0.. {
            let plan = self.current(prepared).await?;
            match self.attempt(&plan, &params, n_restarts < N_RESTARTS_MAX).await {
                Err(error) if error.is_row_gone() => n_restarts += 1,
                Err(error)
                    if attempt < PLANS_MAX && !plan.is_past() && self.may_run_again(&error) => {}
                outcome => return outcome,
            }
        }
        Err(Error::internal("an endless loop ended"))
    }

    /// The plan that the statement was prepared with, or a new one if that is out of date.
    async fn current(&mut self, prepared: &Prepared) -> Result<Arc<Plan>> {
        let is_plain = self.open.as_ref().is_none_or(|open| open.overlay.is_empty());
        let plan = &prepared.plan;
        if is_plain
            && !plan.is_private
            && plan.generation == self.engine.catalog().generation()
            && plan.holds_at(self.snapshot())
        {
            return Ok(plan.clone());
        }
        // The types that the client was told stay.
        let hints: Vec<Option<Type>> = if prepared.hints.len() == prepared.params.len() {
            prepared.hints.clone()
        } else {
            prepared.params.iter().cloned().map(Some).collect()
        };
        let plan = Box::pin(self.plan(&prepared.source, &hints)).await?;
        let shape = |columns: &Option<Arc<[Column]>>| -> Option<Vec<Type>> {
            columns.as_ref().map(|list| list.iter().map(|column| column.ty.clone()).collect())
        };
        if prepared.is_promised && shape(&plan.columns) != shape(&prepared.columns) {
            return Err(Error::new(
                state::FEATURE_NOT_SUPPORTED,
                "cached plan must not change result type",
            ));
        }
        Ok(plan)
    }

    /// After an error: true if the statement is to be planned and run again.
    pub(super) fn may_run_again(&mut self, error: &Error) -> bool {
        let Some(table) = error.schema_changed() else { return false };
        self.engine.catalog().forget_table(table);
        let Some(open) = &mut self.open else { return false };
        match open.txn.isolation() {
            Isolation::ReadCommitted => true,
            _ if open.n_statements == 0 && open.overlay.is_empty() => {
                open.txn.renew_snapshot();
                true
            }
            // By the definition as of its snapshot.
            Isolation::RepeatableRead => open.overlay.is_empty(),
            Isolation::Serializable => false,
        }
    }

    /// `may_restart`: a row that is gone when it is locked may end the attempt.
    async fn attempt(
        &mut self,
        plan: &Arc<Plan>,
        params: &Arc<[Datum]>,
        may_restart: bool,
    ) -> Result<Outcome> {
        let lock_timeout = self.settings.lock_timeout;
        self.open();
        self.check_needs(plan)?;
        if let Some(target) = plan.target() {
            self.refuse_read_only(match plan.kind {
                Kind::Insert(_) => "INSERT",
                Kind::Update(_) => "UPDATE",
                _ => "DELETE",
            })?;
            // As the tablets would, before anything is drawn or computed by it.
            if target.is_past {
                return Err(txn::Error::SchemaChanged { table: target.id }.into());
            }
        }
        let engine = self.engine.clone();
        let Some(open) = &mut self.open else {
            return Err(Error::internal("a statement lost its transaction"));
        };
        open.txn.begin_statement();
        let savepoint = open.txn.savepoint();
        let view = open.view.clone();
        let mut exec = exec_of(&engine, &view, open, &mut self.drawn, lock_timeout);
        exec.may_restart = may_restart && exec.txn.isolation() == Isolation::ReadCommitted;
        exec.declare(plan);
        let outcome = run_plan(&mut exec, plan, params).await;
        let set_config = std::mem::take(&mut exec.set_config);
        match outcome {
            Ok(outcome) => {
                open.txn.release(savepoint);
                open.n_statements += 1;
                for (name, value, is_local) in set_config {
                    self.set(&name, value.as_deref(), is_local)?;
                }
                Ok(outcome)
            }
            Err(error) => {
                open.txn.rollback_to(savepoint);
                open.txn.release(savepoint);
                Err(Box::pin(engine.catalog().judge(error, &plan.tables)).await)
            }
        }
    }

    /// Refuses a plan that names what the current role may not use.
    fn check_needs(&self, plan: &Plan) -> Result<()> {
        if self.identity.is_superuser {
            return Ok(());
        }
        let path = &self.usable_path;
        let find = |schema: Option<&str>, name: &str| {
            let in_schema = |schema: &str| {
                plan.tables.iter().find(|table| table.name == name && table.schema == schema)
            };
            let found = match schema {
                Some(schema) => in_schema(schema),
                None => path.iter().find_map(|schema| in_schema(schema)),
            };
            found.cloned()
        };
        let find = needs::Find { table: &find, view: views::name_of };
        let needed = plan.needs.get_or_init(|| Needs::of(&plan.tree, find));
        self.identity.check(needed)
    }

    pub(super) fn refuse_read_only(&self, what: &str) -> Result<()> {
        if self.open.as_ref().is_some_and(|open| open.read_only) {
            return Err(Error::new(
                state::READ_ONLY_TRANSACTION,
                format!("cannot execute {what} in a read-only transaction"),
            ));
        }
        Ok(())
    }

    /// Plans and runs a tree that comes from inside another statement.
    pub(super) async fn run_tree(&mut self, tree: Arc<Statement>) -> Result<Outcome> {
        for attempt in 0.. {
            let plan = Arc::new(self.plan_tree(tree.clone(), &[]).await?);
            match self.attempt(&plan, &Arc::from([]), false).await {
                Err(error)
                    if attempt < PLANS_MAX && !plan.is_past() && self.may_run_again(&error) => {}
                outcome => return outcome,
            }
        }
        Err(Error::internal("an endless loop ended"))
    }

    // ---- everything else

    async fn utility(&mut self, tree: Arc<Statement>, params: Vec<Datum>) -> Result<Outcome> {
        let done = |tag: &str| Ok(Outcome::Done { tag: tag.to_owned() });
        match &*tree {
            Statement::Empty => Ok(Outcome::Empty),
            Statement::Begin(modes) => {
                self.begin_block(modes)?;
                done("BEGIN")
            }
            Statement::Commit { chain } => {
                let tag = self.commit(*chain).await?;
                done(tag)
            }
            Statement::Rollback { chain } => {
                self.rollback(*chain).await?;
                done("ROLLBACK")
            }
            Statement::Savepoint(name) => {
                self.savepoint(name.clone())?;
                done("SAVEPOINT")
            }
            Statement::RollbackTo(name) => {
                self.rollback_to(name)?;
                done("ROLLBACK")
            }
            Statement::Release(name) => {
                self.release(name)?;
                done("RELEASE")
            }
            Statement::SetTransaction(modes) => {
                self.set_modes(modes)?;
                done("SET")
            }
            Statement::SetCharacteristics(modes) => {
                self.set_characteristics(modes)?;
                done("SET")
            }
            Statement::SetSnapshot(text) => {
                self.set_snapshot(text).await?;
                done("SET")
            }
            Statement::Set { name, value, local } => {
                self.set(name, value.as_deref(), *local)?;
                done(if value.is_some() { "SET" } else { "RESET" })
            }
            Statement::SetRole { role, is_session, local } => {
                self.set_role(role.as_deref(), *is_session, *local)?;
                done(if role.is_some() { "SET" } else { "RESET" })
            }
            Statement::ResetAll => {
                self.reset_all();
                done("RESET")
            }
            Statement::Show(name) => self.show(name),
            Statement::Discard(tag) => {
                if *tag == "DISCARD ALL" {
                    if self.open.as_ref().is_some_and(|open| open.block) {
                        return Err(Error::new(
                            state::ACTIVE_TRANSACTION,
                            "DISCARD ALL cannot run inside a transaction block",
                        ));
                    }
                    self.reset_all();
                    self.prepared.clear();
                    self.drawn = Default::default();
                }
                done(tag)
            }
            Statement::Prepare { name, types, statement } => {
                if self.prepared.contains_key(name) {
                    return Err(Error::new(
                        state::DUPLICATE_STATEMENT,
                        format!("prepared statement \"{name}\" already exists"),
                    ));
                }
                let hints: Vec<Option<Type>> = types.iter().cloned().map(Some).collect();
                let prepared = Box::pin(self.prepare_with((**statement).clone(), &hints)).await?;
                self.prepared.insert(name.clone(), prepared);
                done("PREPARE")
            }
            Statement::Execute { name, args } => {
                let prepared = self.prepared.get(name).cloned().ok_or_else(|| no_prepared(name))?;
                if args.len() != prepared.params.len() {
                    return Err(Error::new(
                        state::SYNTAX_ERROR,
                        format!("wrong number of parameters for prepared statement \"{name}\""),
                    )
                    .detail(format!(
                        "Expected {} parameters but got {}.",
                        prepared.params.len(),
                        args.len()
                    )));
                }
                let types = prepared.params.clone();
                let values = self.constants(args, &types)?;
                Box::pin(self.dispatch(&prepared, values)).await
            }
            Statement::Deallocate(None) => {
                self.prepared.clear();
                done("DEALLOCATE ALL")
            }
            Statement::Deallocate(Some(name)) => {
                self.prepared.remove(name).ok_or_else(|| no_prepared(name))?;
                done("DEALLOCATE")
            }
            Statement::Explain { analyze, statement } => {
                self.explain(statement, *analyze, params).await
            }
            Statement::Copy(copy) => self.copy(copy).await,
            Statement::Split { table, rows } => self.split_table(table, rows).await,
            Statement::Nothing(tag) => done(tag),
            Statement::CreateTable(create) if create.query.is_some() => {
                self.create_table_as(create).await
            }
            _ => self.define(&tree).await,
        }
    }

    fn show(&mut self, name: &str) -> Result<Outcome> {
        let columns;
        let rows = if name == "all" {
            let column = |name: &str| Column {
                name: name.to_owned(),
                ty: Type::Text,
                table: None,
                attnum: 0,
            };
            columns = Arc::from(["name", "setting", "description"].map(column));
            let row = |(name, value, about): (String, String, String)| {
                vec![Datum::text(name), Datum::text(value), Datum::text(about)]
            };
            self.settings.all().into_iter().map(row).collect()
        } else {
            let value = self.setting(name).ok_or_else(|| {
                Error::new(
                    state::UNDEFINED_OBJECT,
                    format!("unrecognized configuration parameter \"{name}\""),
                )
            })?;
            columns = text_column(name);
            vec![vec![Datum::text(value)]]
        };
        Ok(Outcome::Rows { columns, rows: one_batch(rows), tag: TagKind::Fixed("SHOW") })
    }

    /// Constant expressions as values of these types.
    pub(super) fn constants(&mut self, exprs: &[ast::Expr], types: &[Type]) -> Result<Vec<Datum>> {
        self.with_exec(|exec| {
            exprs.iter().zip(types).map(|(expr, ty)| exec.constant(expr, ty)).collect()
        })
    }

    fn with_exec<T>(&mut self, work: impl FnOnce(&mut Exec<'_>) -> Result<T>) -> Result<T> {
        let lock_timeout = self.settings.lock_timeout;
        self.open();
        let engine = self.engine.clone();
        let Some(open) = &mut self.open else {
            return Err(Error::internal("a statement lost its transaction"));
        };
        let view = open.view.clone();
        let mut exec = exec_of(&engine, &view, open, &mut self.drawn, lock_timeout);
        work(&mut exec)
    }

    async fn explain(
        &mut self,
        statement: &Statement,
        analyze: bool,
        params: Vec<Datum>,
    ) -> Result<Outcome> {
        let tree = Arc::new(statement.clone());
        let hints = vec![None; params.len()];
        let plan = Arc::new(Box::pin(self.plan_tree(tree, &hints)).await?);
        self.check_needs(&plan)?;
        let is_general = matches!(plan.kind, Kind::Query(_));
        let lock_timeout = self.settings.lock_timeout;
        self.open();
        let engine = self.engine.clone();
        let Some(open) = &mut self.open else {
            return Err(Error::internal("a statement lost its transaction"));
        };
        open.txn.begin_statement();
        let view = open.view.clone();
        let mut exec = exec_of(&engine, &view, open, &mut self.drawn, lock_timeout);
        exec.declare(&plan);
        let mut lines = explain(&mut exec, &plan, &params, analyze).await?;
        if analyze && !is_general {
            let begin = engine.env().now();
            let outcome = Box::pin(self.attempt(&plan, &Arc::from(params), false)).await?;
            let mut n_rows = 0;
            match outcome {
                Outcome::Rows { mut rows, .. } => {
                    while let Some(batch) = rows.next().await {
                        n_rows += batch?.len() as u64;
                    }
                }
                Outcome::Done { tag } => {
                    let count = tag.rsplit(' ').next().and_then(|count| count.parse().ok());
                    n_rows = count.unwrap_or(0);
                }
                _ => {}
            }
            let ms = engine.env().now().duration_since(begin).as_secs_f64() * 1e3;
            lines.push(format!("Rows: {n_rows}"));
            lines.push(format!("Execution Time: {ms:.3} ms"));
        }
        let rows = lines.into_iter().map(|line| vec![Datum::text(line)]).collect();
        Ok(Outcome::Rows {
            columns: text_column("QUERY PLAN"),
            rows: one_batch(rows),
            tag: TagKind::Fixed("EXPLAIN"),
        })
    }
}

/// The end of a client's patience: a request to cancel, or a time. It is looked at before the work each
/// time, so that work which is always ready ends as well.
#[derive(Clone)]
pub(super) struct Patience {
    env: base::Env,
    cancel: Canceler,
    /// None: no statement_timeout.
    until: Option<Instant>,
}

impl Patience {
    pub(super) async fn over(&self) -> Error {
        let expired = async {
            match self.until {
                Some(until) => self.env.sleep_until(until).await,
                None => std::future::pending().await,
            }
            self.cancel.allowed(|_| true).await;
        };
        tokio::select! {
            biased;
            () = self.cancel.requested() => canceled(),
            () = expired => {
                let message = "canceling statement due to statement timeout";
                Error::new(state::QUERY_CANCELED, message)
            }
        }
    }

    pub(super) async fn bound<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            error = self.over() => Err(error),
            outcome = work => outcome,
        }
    }

    /// The same stream until then.
    fn guard<T: Send + 'static>(self, stream: GuardedStream<T>) -> GuardedStream<T> {
        let state = Some((stream, self));
        Box::pin(futures::stream::unfold(state, |state| async move {
            let (mut stream, patience) = state?;
            let next = tokio::select! {
                biased;
                error = patience.over() => return Some((Err(error), None)),
                next = stream.next() => next?,
            };
            Some((next, Some((stream, patience))))
        }))
    }
}

type GuardedStream<T> = Pin<Box<dyn Stream<Item = Result<T>> + Send>>;

/// What a statement works with, from the session's parts.
pub(super) fn exec_of<'a>(
    engine: &'a Engine,
    view: &'a Arc<View>,
    open: &'a mut Open,
    drawn: &'a mut Drawn,
    lock_timeout: Duration,
) -> Exec<'a> {
    let read_only = open.read_only;
    Exec {
        engine,
        view,
        txn: &mut open.txn,
        overlay: &mut open.overlay,
        drawn,
        sequences: HashMap::new(),
        lock_timeout,
        may_restart: false,
        kept: Kept::new(engine.env()),
        read_only,
        set_config: Vec::new(),
        notices: Vec::new(),
    }
}

/// Boxed one by one: a statement then moves the state of its own kind only.
async fn run_plan(exec: &mut Exec<'_>, plan: &Arc<Plan>, params: &Arc<[Datum]>) -> Result<Outcome> {
    let returned = |changed: Changed, kept: Kept, tag: TagKind| match &plan.columns {
        Some(columns) => {
            let rows = kept_batch(changed.returned, kept);
            Outcome::Rows { columns: columns.clone(), rows, tag }
        }
        None => Outcome::Done { tag: tag.tag(changed.n_rows) },
    };
    let columns = || plan.columns.clone().unwrap_or_else(|| Arc::from([]));
    Ok(match &plan.kind {
        Kind::Select(select) => {
            let rows = Box::pin(exec.select(plan, select, params)).await?;
            Outcome::Rows { columns: columns(), rows: primed(rows).await?, tag: TagKind::Select }
        }
        Kind::Query(query) => {
            let rows = Box::pin(exec.run_query(query, plan, params)).await?.1;
            Outcome::Rows { columns: columns(), rows: primed(rows).await?, tag: TagKind::Select }
        }
        Kind::Insert(insert) => {
            let changed = Box::pin(exec.insert(plan, insert, params)).await?;
            returned(changed, exec.take_kept(), TagKind::Insert)
        }
        Kind::Update(update) => {
            let changed = Box::pin(exec.update(plan, update, params)).await?;
            returned(changed, exec.take_kept(), TagKind::Update)
        }
        Kind::Delete(delete) => {
            let changed = Box::pin(exec.delete(plan, delete, params)).await?;
            returned(changed, exec.take_kept(), TagKind::Delete)
        }
        Kind::Utility => return Err(Error::internal("a utility statement was run as a plan")),
    })
}

/// Statements that a failed block still takes.
fn ends_failure(tree: &Statement) -> bool {
    matches!(tree, Statement::Commit { .. } | Statement::Rollback { .. } | Statement::RollbackTo(_))
}

fn aborted() -> Error {
    Error::new(
        state::FAILED_TRANSACTION,
        "current transaction is aborted, commands ignored until end of transaction block",
    )
}

fn no_prepared(name: &str) -> Error {
    Error::new(
        state::INVALID_STATEMENT_NAME,
        format!("prepared statement \"{name}\" does not exist"),
    )
}
