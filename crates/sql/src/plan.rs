//! What a statement will do, worked out once and run often.
//!
//! A plan holds bound expressions, the tables it goes by, and how to reach the rows. It is made
//! without looking at any row, holds no parameter's value, and may be shared by sessions and kept
//! by its text for as long as no definition it rests on has changed ([`Plan::generation`]).
//!
//! The fast path plans statements over one table. What it does not know goes to DataFusion whole
//! ([`Kind::Query`]), or, for UPDATE and DELETE, as a query that finds the rows ([`change::Finder`]).

pub mod access;
pub mod change;
pub mod select;

pub use access::Access;

use crate::authority::Needs;
use crate::bind::{Binder, Bound, Params, Scope, Slot, SlotKind, column_name};
use crate::catalog::{Object, Overlay, Table, VIRTUAL_SCHEMAS};
use crate::engine::Engine;
use crate::error::{Error, Result, state};
use crate::expr::Expr;
use crate::parse::{self, Statement};
use crate::session::{Column, View};
use crate::types::Type;
use crate::wide::QueryContext;
use base::Scn;
use sqlparser::ast::{self, Visit, Visitor};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

pub struct Plan {
    pub kind: Kind,
    pub params: Vec<Type>,
    pub columns: Option<Arc<[Column]>>,
    pub slots: Vec<Slot>,
    /// Stored tables that the statement goes by, declared to the tablets before it runs.
    pub tables: Vec<Arc<Table>>,
    /// What it needs to be allowed; read from the tree when somebody asks who is no superuser.
    pub needs: OnceLock<Needs>,
    /// The catalog's generation that the plan was made at.
    pub generation: u64,
    /// It rests on definitions that only one transaction goes by, uncommitted or as of an older
    /// snapshot: never shared.
    pub is_private: bool,
    pub tree: Arc<Statement>,
}

pub enum Kind {
    Select(Box<select::Select>),
    Insert(Box<change::Insert>),
    Update(Box<change::Update>),
    Delete(Box<change::Delete>),
    /// Through DataFusion.
    Query(Box<ast::Query>),
    /// Run from the tree: transaction control, definitions, settings.
    Utility,
}

impl Plan {
    /// True where all its definitions were in force at this snapshot already (none: the snapshot
    /// is yet to be drawn).
    pub fn holds_at(&self, snapshot: Option<Scn>) -> bool {
        snapshot.is_none_or(|at| self.tables.iter().all(|table| table.since <= at))
    }

    /// True where a definition it goes by is in force no more: it can read, but not write.
    pub fn is_past(&self) -> bool {
        self.tables.iter().any(|table| table.is_past)
    }

    /// The table that it changes.
    pub fn target(&self) -> Option<&Arc<Table>> {
        match &self.kind {
            Kind::Insert(insert) => Some(&insert.table),
            Kind::Update(update) => Some(&update.table),
            Kind::Delete(delete) => Some(&delete.table),
            Kind::Select(_) | Kind::Query(_) | Kind::Utility => None,
        }
    }

    /// True where a slot must be computed anew for each row.
    pub fn draws_per_row(&self) -> bool {
        self.slots.iter().any(|slot| matches!(slot.kind, SlotKind::NextVal | SlotKind::NextOf(_)))
    }
}

pub struct Planner<'a> {
    pub engine: &'a Engine,
    pub overlay: &'a Overlay,
    pub view: &'a View,
    /// What [`txn::Txn::lasting_snapshot`] says: definitions must not be newer.
    pub snapshot: Option<Scn>,
    pub params: Params,
    pub slots: Vec<Slot>,
    pub tables: Vec<Arc<Table>>,
    pub subqueries: HashMap<String, Type>,
}

impl<'a> Planner<'a> {
    pub fn new(
        engine: &'a Engine,
        overlay: &'a Overlay,
        view: &'a View,
        hints: &[Option<Type>],
    ) -> Planner<'a> {
        Planner {
            engine,
            overlay,
            view,
            snapshot: None,
            params: Params { types: hints.to_vec() },
            slots: Vec::new(),
            tables: Vec::new(),
            subqueries: HashMap::new(),
        }
    }

    pub async fn plan(mut self, tree: Arc<Statement>) -> Result<Plan> {
        let catalog = self.engine.catalog();
        let generation = catalog.generation();
        let planned = match &*tree {
            Statement::Query(query) => self.query(query).await,
            Statement::Insert(insert) => Box::pin(self.insert(insert)).await,
            Statement::Update(update) => Box::pin(self.update(update)).await,
            Statement::Delete(delete) => Box::pin(self.delete(delete)).await,
            _ => Ok((Kind::Utility, None)),
        };
        let (kind, columns) = match planned {
            Ok(planned) => planned,
            Err(error) => return Err(Box::pin(catalog.judge(error, &self.tables)).await),
        };
        let is_private =
            self.tables.iter().any(|table| table.is_past || self.overlay.has_table(table.id));
        Ok(Plan {
            kind,
            params: self.params.finish(),
            columns: columns.map(Arc::from),
            slots: self.slots,
            tables: self.tables,
            needs: OnceLock::new(),
            generation,
            is_private,
            tree,
        })
    }

    async fn query(&mut self, query: &ast::Query) -> Result<(Kind, Option<Vec<Column>>)> {
        let params = self.params.clone();
        match self.select(query).await {
            Ok(Some(planned)) => return Ok(planned),
            Ok(None) => {}
            Err(error) if error.is_unsupported() && query.locks.is_empty() => {}
            Err(error) => return Err(error),
        }
        if !query.locks.is_empty() {
            return Err(Error::unsupported("FOR UPDATE or FOR SHARE in a query of this form")
                .hint("Lock the rows of one table by a query of its own."));
        }
        self.params = params;
        self.slots.clear();
        Box::pin(self.general(query)).await
    }

    /// A query for DataFusion.
    async fn general(&mut self, query: &ast::Query) -> Result<(Kind, Option<Vec<Column>>)> {
        let (types, columns) = self.describe(query).await?;
        self.params.types = types.into_iter().map(Some).collect();
        Ok((Kind::Query(Box::new(query.clone())), Some(columns)))
    }

    /// Types of a query's parameters and columns; its stored tables are noted.
    pub async fn describe(&mut self, query: &ast::Query) -> Result<(Vec<Type>, Vec<Column>)> {
        let tables = self.tables_of(query).await?;
        for table in tables.values() {
            self.note(table);
        }
        let view = Arc::new(self.view.with_tables(tables));
        let cx = QueryContext { engine: self.engine.clone(), reader: None, view };
        self.engine.wide().describe(&cx, query, &self.params.types).await
    }

    fn note(&mut self, table: &Arc<Table>) {
        if !self.tables.iter().any(|noted| noted.id == table.id) {
            self.tables.push(table.clone());
        }
    }

    /// The stored tables that a query names.
    async fn tables_of(&self, query: &ast::Query) -> Result<HashMap<(String, String), Arc<Table>>> {
        let mut names = Names::default();
        let ControlFlow::Continue(()) = query.visit(&mut names) else {
            return Err(Error::internal("a visit that never breaks was broken"));
        };
        let mut tables = HashMap::new();
        for name in names.0 {
            let (schema, name) = parse::qualified(&name)?;
            if let Some(table) = self.find_table(schema.as_deref(), &name).await? {
                tables.insert((table.schema.clone(), table.name.clone()), table);
            }
        }
        Ok(tables)
    }

    /// A stored table by its name, along the search path if it names no schema.
    pub async fn find_table(&self, schema: Option<&str>, name: &str) -> Result<Option<Arc<Table>>> {
        match self.find(schema, name).await? {
            Some(Object::Table(table)) => Ok(Some(table)),
            _ => Ok(None),
        }
    }

    async fn find(&self, schema: Option<&str>, name: &str) -> Result<Option<Object>> {
        let found = find(self.engine, self.overlay, self.view, schema, name).await?;
        Ok(match (found, self.snapshot) {
            (Some(Object::Table(table)), Some(at)) if table.since > at => {
                let past = Box::pin(self.engine.catalog().as_of(table, at)).await?;
                Some(Object::Table(past))
            }
            (found, _) => found,
        })
    }

    /// The table that a statement changes.
    pub async fn target(&mut self, name: &ast::ObjectName) -> Result<Arc<Table>> {
        let (schema, short) = parse::qualified(name)?;
        match self.find(schema.as_deref(), &short).await? {
            Some(Object::Table(table)) => {
                self.note(&table);
                Ok(table)
            }
            Some(_) => {
                Err(Error::new(state::WRONG_OBJECT_TYPE, format!("\"{short}\" is not a table")))
            }
            None if schema.as_deref().is_some_and(|s| VIRTUAL_SCHEMAS.contains(&s)) => {
                Err(Error::new(
                    state::INSUFFICIENT_PRIVILEGE,
                    format!("permission denied for table {short}"),
                ))
            }
            None => Err(undefined_table(schema.as_deref(), &short)),
        }
    }

    /// Describes the subqueries of an expression, so that the binder can place them. False if one
    /// cannot stand alone: it refers to the statement's table.
    pub async fn describe_subqueries(&mut self, exprs: &[&ast::Expr]) -> Result<bool> {
        let mut found = Subqueries::default();
        for expr in exprs {
            let ControlFlow::Continue(()) = expr.visit(&mut found) else {
                return Err(Error::internal("a visit that never breaks was broken"));
            };
        }
        for query in found.list {
            let text = query.to_string();
            if self.subqueries.contains_key(&text) {
                continue;
            }
            let before = self.params.clone();
            match self.describe(&query).await {
                Ok((types, columns)) => {
                    for (idx, ty) in types.into_iter().enumerate() {
                        if self.params.types.len() <= idx {
                            self.params.types.resize(idx + 1, None);
                        }
                        // A parameter that only another part of the statement uses comes as text.
                        if self.params.types[idx].is_none()
                            && text.contains(&format!("${}", idx + 1))
                        {
                            self.params.types[idx] = Some(ty);
                        }
                    }
                    let ty = match &columns[..] {
                        [column] => column.ty.clone(),
                        _ => Type::Bool,
                    };
                    self.subqueries.insert(text, ty);
                }
                Err(error)
                    if matches!(
                        error.state(),
                        state::UNDEFINED_COLUMN
                            | state::UNDEFINED_TABLE
                            | state::FEATURE_NOT_SUPPORTED
                    ) =>
                {
                    self.params = before;
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    pub fn binder<'b>(&'b mut self, scope: &'b Scope) -> Binder<'b> {
        Binder {
            scope,
            params: &mut self.params,
            slots: &mut self.slots,
            subqueries: &self.subqueries,
        }
    }

    /// The columns of a select list or RETURNING, over one table.
    pub fn projection(
        &mut self,
        items: &[ast::SelectItem],
        scope: &Scope,
        table: Option<&Table>,
        alias: Option<&str>,
    ) -> Result<(Vec<Expr>, Vec<Column>)> {
        let mut exprs = Vec::new();
        let mut columns = Vec::new();
        let star = |exprs: &mut Vec<Expr>, columns: &mut Vec<Column>| -> Result<()> {
            let table = table.ok_or_else(|| {
                Error::new(state::SYNTAX_ERROR, "SELECT * with no tables specified is not valid")
            })?;
            for (idx, column) in table.columns.iter().enumerate() {
                exprs.push(Expr::Column(idx));
                columns.push(Column {
                    name: column.name.clone(),
                    ty: column.ty.clone(),
                    table: Some(table.id),
                    attnum: column.id as i16,
                });
            }
            Ok(())
        };
        for item in items {
            let (expr, name) = match item {
                ast::SelectItem::Wildcard(options) if is_plain(options) => {
                    star(&mut exprs, &mut columns)?;
                    continue;
                }
                ast::SelectItem::QualifiedWildcard(
                    ast::SelectItemQualifiedWildcardKind::ObjectName(name),
                    options,
                ) if is_plain(options) => {
                    let name = parse::last_part(name)?;
                    let shown = alias.or(table.map(|table| table.name.as_str()));
                    if shown != Some(name.as_str()) {
                        return Err(Error::unsupported(format!("{name}.* here")));
                    }
                    star(&mut exprs, &mut columns)?;
                    continue;
                }
                ast::SelectItem::UnnamedExpr(expr) => (expr, column_name(expr)),
                ast::SelectItem::ExprWithAlias { expr, alias } => (expr, parse::ident(alias)),
                other => return Err(Error::unsupported(format!("the output {other}"))),
            };
            let mut binder = self.binder(scope);
            let Bound { expr, ty } = binder.bind(expr)?;
            let (expr, ty) = match ty {
                Type::Unknown => {
                    let bound = Bound { expr, ty: Type::Unknown };
                    let context = crate::types::cast::Context::Implicit;
                    (binder.coerce(bound, &Type::Text, context)?, Type::Text)
                }
                ty => (expr, ty),
            };
            let origin = match (&expr, table) {
                (Expr::Column(idx), Some(table)) => {
                    table.columns.get(*idx).map(|column| (table.id, column.id as i16))
                }
                _ => None,
            };
            columns.push(Column {
                name,
                ty,
                table: origin.map(|(table, _)| table),
                attnum: origin.map_or(0, |(_, attnum)| attnum),
            });
            exprs.push(expr);
        }
        Ok((exprs, columns))
    }
}

fn is_plain(options: &ast::WildcardAdditionalOptions) -> bool {
    options.opt_ilike.is_none()
        && options.opt_exclude.is_none()
        && options.opt_except.is_none()
        && options.opt_replace.is_none()
        && options.opt_rename.is_none()
}

pub fn undefined_table(schema: Option<&str>, name: &str) -> Error {
    let shown = match schema {
        Some(schema) => format!("{schema}.{name}"),
        None => name.to_owned(),
    };
    Error::new(state::UNDEFINED_TABLE, format!("relation \"{shown}\" does not exist"))
}

/// What a name stands for, along the search path if it names no schema.
pub async fn find(
    engine: &Engine,
    overlay: &Overlay,
    view: &View,
    schema: Option<&str>,
    name: &str,
) -> Result<Option<Object>> {
    if let Some(schema) = schema {
        if VIRTUAL_SCHEMAS.contains(&schema) {
            return Ok(None);
        }
        return engine.catalog().find(overlay, view.place(schema), name).await;
    }
    for schema in view.search_path.iter() {
        if VIRTUAL_SCHEMAS.contains(&schema.as_str()) {
            continue;
        }
        if let Some(object) = engine.catalog().find(overlay, view.place(schema), name).await? {
            return Ok(Some(object));
        }
    }
    Ok(None)
}

/// Names of relations in a tree.
#[derive(Default)]
struct Names(Vec<ast::ObjectName>);

impl Visitor for Names {
    type Break = ();

    fn pre_visit_relation(&mut self, name: &ast::ObjectName) -> ControlFlow<()> {
        if !self.0.contains(name) {
            self.0.push(name.clone());
        }
        ControlFlow::Continue(())
    }
}

/// The outermost subqueries of an expression.
#[derive(Default)]
struct Subqueries {
    list: Vec<ast::Query>,
    depth: usize,
}

impl Visitor for Subqueries {
    type Break = ();

    fn pre_visit_query(&mut self, query: &ast::Query) -> ControlFlow<()> {
        if self.depth == 0 {
            self.list.push(query.clone());
        }
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _query: &ast::Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }
}
