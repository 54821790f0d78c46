//! INSERT, UPDATE and DELETE.
//!
//! Rows to change are found by an access path and a filter, or, where the condition or the new
//! values need more than one table, by a query of primary keys (and values) that DataFusion runs:
//!
//! ```text
//!   UPDATE t SET x = s.y FROM s WHERE t.k = s.k   ->   SELECT t.id, s.y FROM t, s WHERE t.k = s.k
//! ```
//!
//! New values are then evaluated over the locked row followed by the query's extra columns.

use super::select::{joined, table_factor};
use super::{Access, Kind, Planner};
use crate::bind::{Bound, Scope, SlotKind};
use crate::catalog::{Column as TableColumn, Identity, Index, IndexState, Table};
use crate::error::{Error, Result, state};
use crate::expr::Expr;
use crate::parse;
use crate::session::Column;
use crate::types::cast::Context as CastContext;
use crate::types::{Datum, Type};
use sqlparser::ast;
use std::ops::ControlFlow;
use std::sync::Arc;

pub struct Insert {
    pub table: Arc<Table>,
    pub source: Source,
    pub conflict: Option<Conflict>,
    pub returning: Option<Vec<Expr>>,
    pub checks: Vec<NamedCheck>,
}

/// A bound CHECK constraint.
#[derive(Clone, Debug)]
pub struct NamedCheck {
    pub name: String,
    pub condition: Expr,
}

pub enum Source {
    /// One expression per column of the table.
    Values(Vec<Vec<Expr>>),
    /// `row` has one expression per column of the table, over the query's row.
    Query { query: Box<ast::Query>, row: Vec<Expr> },
}

pub struct Conflict {
    /// None: any unique key.
    pub target: Option<Target>,
    /// None: DO NOTHING.
    pub update: Option<ConflictUpdate>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Primary,
    /// Position in the table's `indexes`.
    Index(usize),
}

/// Over the row that is there, followed by the row that was to be inserted (EXCLUDED).
pub struct ConflictUpdate {
    pub assignments: Vec<(usize, Expr)>,
    pub filter: Option<Expr>,
}

pub struct Update {
    pub table: Arc<Table>,
    pub finder: Finder,
    pub assignments: Vec<(usize, Expr)>,
    pub returning: Option<Vec<Expr>>,
    pub checks: Vec<NamedCheck>,
}

pub struct Delete {
    pub table: Arc<Table>,
    pub finder: Finder,
    pub returning: Option<Vec<Expr>>,
}

/// RETURNING's expressions and what they are called.
type Returning = (Option<Vec<Expr>>, Option<Vec<Column>>);

pub enum Finder {
    Scan {
        access: Box<Access>,
        filter: Option<Expr>,
    },
    /// The query's first columns are the primary key's.
    Query {
        query: Box<ast::Query>,
        n_key: usize,
    },
}

type Planned = (Kind, Option<Vec<Column>>);

impl Planner<'_> {
    pub(super) async fn insert(&mut self, insert: &ast::Insert) -> Result<Planned> {
        let ast::TableObject::TableName(name) = &insert.table else {
            return Err(Error::unsupported("INSERT into something that is not a table"));
        };
        let table = self.target(name).await?;
        let alias = insert.table_alias.as_ref().map(|alias| parse::ident(&alias.alias));
        let targets = insert_targets(&table, &insert.columns)?;
        let source = self.insert_source(&table, &targets, insert).await?;
        let conflict = match &insert.on {
            None => None,
            Some(ast::OnInsert::OnConflict(conflict)) => {
                Some(self.conflict(&table, alias.as_deref(), conflict).await?)
            }
            Some(_) => return Err(Error::unsupported("ON DUPLICATE KEY UPDATE")),
        };
        let mut scope = Scope::empty();
        scope.add(&table, alias.as_deref(), 0, true);
        let (returning, columns) =
            self.returning(&insert.returning, &scope, &table, alias.as_deref())?;
        let checks = self.checks(&table)?;
        let plan = Insert { table, source, conflict, returning, checks };
        Ok((Kind::Insert(Box::new(plan)), columns))
    }

    async fn insert_source(
        &mut self,
        table: &Table,
        targets: &[usize],
        insert: &ast::Insert,
    ) -> Result<Source> {
        let Some(query) = &insert.source else {
            // DEFAULT VALUES.
            return Ok(Source::Values(vec![self.full_row(table, &[], Vec::new())?]));
        };
        if let ast::SetExpr::Values(values) = &*query.body
            && query.with.is_none()
            && query.order_by.is_none()
            && query.limit_clause.is_none()
        {
            let (params, n_slots) = (self.params.clone(), self.slots.len());
            match self.values(table, targets, values).await {
                Err(error) if error.is_unsupported() && !has_default(values) => {
                    self.params = params;
                    self.slots.truncate(n_slots);
                }
                outcome => return outcome,
            }
        }
        let (types, columns) = self.describe(query).await?;
        self.params.types = types.into_iter().map(Some).collect();
        check_width(targets.len(), columns.len(), insert.columns.is_empty())?;
        let mut given = Vec::new();
        for (idx, column) in columns.iter().enumerate() {
            let bound = Bound { expr: Expr::Column(idx), ty: column.ty.clone() };
            given.push(self.assign(&table.columns[targets[idx]], bound)?);
        }
        let row = self.full_row(table, &targets[..columns.len()], given)?;
        Ok(Source::Query { query: query.clone(), row })
    }

    async fn values(
        &mut self,
        table: &Table,
        targets: &[usize],
        values: &ast::Values,
    ) -> Result<Source> {
        let exprs: Vec<&ast::Expr> =
            values.rows.iter().flat_map(|row| row.content.iter()).collect();
        if !self.describe_subqueries(&exprs).await? {
            return Err(Error::unsupported("this subquery in VALUES"));
        }
        let mut rows = Vec::with_capacity(values.rows.len());
        for row in &values.rows {
            let row = &row.content;
            check_width(targets.len(), row.len(), targets.len() == table.columns.len())?;
            let mut given = Vec::with_capacity(row.len());
            for (expr, target) in row.iter().zip(targets) {
                let column = &table.columns[*target];
                given.push(if is_default(expr) {
                    self.default(column)?
                } else {
                    refuse_generated(column)?;
                    let scope = Scope::empty();
                    let bound = self.binder(&scope).bind(expr)?;
                    self.assign(column, bound)?
                });
            }
            rows.push(self.full_row(table, &targets[..row.len()], given)?);
        }
        Ok(Source::Values(rows))
    }

    /// One expression per column of the table: the given ones and the others' defaults.
    pub fn full_row(
        &mut self,
        table: &Table,
        targets: &[usize],
        given: Vec<Expr>,
    ) -> Result<Vec<Expr>> {
        let mut row: Vec<Option<Expr>> = vec![None; table.columns.len()];
        for (target, expr) in targets.iter().zip(given) {
            row[*target] = Some(expr);
        }
        row.into_iter()
            .zip(&table.columns)
            .map(|(expr, column)| expr.map_or_else(|| self.default(column), Ok))
            .collect()
    }

    /// A column's default, as a value of its type.
    pub fn default(&mut self, column: &TableColumn) -> Result<Expr> {
        let Some(default) = &column.default else { return Ok(Expr::Const(Datum::Null)) };
        let scope = Scope::empty();
        let bound = match default.owned_sequence {
            Some(id) => {
                let slot = crate::bind::Slot {
                    kind: SlotKind::NextOf(id),
                    args: Vec::new(),
                    ty: Type::Int8,
                };
                self.slots.push(slot);
                Bound { expr: Expr::Slot(self.slots.len() - 1), ty: Type::Int8 }
            }
            None => {
                let expr = parse::expression(&default.sql)?;
                self.binder(&scope).bind(&expr)?
            }
        };
        self.assign(column, bound)
    }

    /// Makes a value fit a column, as storing does.
    fn assign(&mut self, column: &TableColumn, bound: Bound) -> Result<Expr> {
        let from = bound.ty.clone();
        let scope = Scope::empty();
        self.binder(&scope).coerce(bound, &column.ty, CastContext::Assignment).map_err(|error| {
            if error.state() == state::CANNOT_COERCE {
                Error::new(
                    state::DATATYPE_MISMATCH,
                    format!(
                        "column \"{}\" is of type {} but expression is of type {}",
                        column.name,
                        column.ty.base_name(),
                        from.base_name()
                    ),
                )
                .hint("You will need to rewrite or cast the expression.")
            } else {
                error
            }
        })
    }

    async fn conflict(
        &mut self,
        table: &Table,
        alias: Option<&str>,
        conflict: &ast::OnConflict,
    ) -> Result<Conflict> {
        let target = match &conflict.conflict_target {
            None => None,
            Some(ast::ConflictTarget::Columns(names)) => {
                let mut ids = names
                    .iter()
                    .map(|name| {
                        let name = parse::ident(name);
                        let column = table.column(&name).ok_or_else(|| {
                            Error::new(
                                state::UNDEFINED_COLUMN,
                                format!("column \"{name}\" does not exist"),
                            )
                        })?;
                        Ok(column.id)
                    })
                    .collect::<Result<Vec<u32>>>()?;
                ids.sort_unstable();
                let same = |key: &[u32]| {
                    let mut key = key.to_vec();
                    key.sort_unstable();
                    key == ids
                };
                let index = table.indexes.iter().position(|i| is_arbiter(i) && same(&i.columns));
                Some(if !table.is_keyless() && same(&table.primary) {
                    Target::Primary
                } else {
                    Target::Index(index.ok_or_else(|| {
                        Error::new(
                            state::INVALID_COLUMN_REFERENCE,
                            "there is no unique or exclusion constraint matching the ON CONFLICT specification",
                        )
                    })?)
                })
            }
            Some(ast::ConflictTarget::OnConstraint(name)) => {
                let name = parse::last_part(name)?;
                let index = table.indexes.iter().position(|i| is_arbiter(i) && i.name == name);
                Some(if !table.is_keyless() && table.primary_name == name {
                    Target::Primary
                } else {
                    Target::Index(index.ok_or_else(|| {
                        Error::new(
                            state::UNDEFINED_OBJECT,
                            format!(
                                "constraint \"{name}\" for table \"{}\" does not exist",
                                table.name
                            ),
                        )
                    })?)
                })
            }
        };
        let update = match &conflict.action {
            ast::OnConflictAction::DoNothing => None,
            ast::OnConflictAction::DoUpdate(update) => {
                if target.is_none() {
                    return Err(Error::new(
                        state::SYNTAX_ERROR,
                        "ON CONFLICT DO UPDATE requires inference specification or constraint name",
                    )
                    .hint("For example, ON CONFLICT (column_name)."));
                }
                let mut scope = Scope::empty();
                scope.add(table, alias, 0, true);
                scope.add(table, Some("excluded"), table.columns.len(), false);
                let mut exprs: Vec<&ast::Expr> = update.selection.iter().collect();
                exprs.extend(update.assignments.iter().map(|assignment| &assignment.value));
                if !self.describe_subqueries(&exprs).await? {
                    return Err(Error::unsupported("this subquery in ON CONFLICT DO UPDATE"));
                }
                let mut assignments = Vec::new();
                for (idx, value) in targets_of(table, &update.assignments)? {
                    assignments.push((idx, self.new_value(table, idx, value, &scope)?));
                }
                let filter = match &update.selection {
                    Some(condition) => Some(self.binder(&scope).condition(condition, "WHERE")?),
                    None => None,
                };
                Some(ConflictUpdate { assignments, filter })
            }
        };
        Ok(Conflict { target, update })
    }

    fn new_value(
        &mut self,
        table: &Table,
        idx: usize,
        value: &ast::Expr,
        scope: &Scope,
    ) -> Result<Expr> {
        let column = &table.columns[idx];
        if is_default(value) {
            return self.default(column);
        }
        if column.identity == Some(Identity::Always) {
            return Err(Error::new(
                "428C9",
                format!("column \"{}\" can only be updated to DEFAULT", column.name),
            ));
        }
        let bound = self.binder(scope).bind(value)?;
        self.assign(column, bound)
    }

    pub(super) async fn update(&mut self, update: &ast::Update) -> Result<Planned> {
        let (table, alias) = self.changed_table(&update.table).await?;
        let from: Option<&[ast::TableWithJoins]> = match &update.from {
            None => None,
            Some(
                ast::UpdateTableFromKind::AfterSet(from)
                | ast::UpdateTableFromKind::BeforeSet(from),
            ) => Some(from),
        };
        if !update.order_by.is_empty() || update.limit.is_some() {
            return Err(Error::unsupported("ORDER BY and LIMIT in UPDATE"));
        }
        let mut scope = Scope::empty();
        scope.add(&table, alias.as_deref(), 0, true);
        let pairs = targets_of(&table, &update.assignments)?;
        let mut exprs: Vec<&ast::Expr> = update.selection.iter().collect();
        exprs.extend(pairs.iter().map(|(_, value)| *value));
        let alone = from.is_none() && self.describe_subqueries(&exprs).await?;
        let before = (self.params.clone(), self.slots.len());
        let mut planned = None;
        if alone {
            planned = match self.update_alone(&table, &pairs, update.selection.as_ref(), &scope) {
                Ok(planned) => Some(planned),
                Err(error) if error.is_unsupported() => {
                    self.params = before.0.clone();
                    self.slots.truncate(before.1);
                    None
                }
                Err(error) => return Err(error),
            };
        }
        let (finder, assignments) = match planned {
            Some(planned) => planned,
            None => {
                self.update_joined(
                    &table,
                    alias.as_deref(),
                    &pairs,
                    from,
                    update.selection.as_ref(),
                    &scope,
                )
                .await?
            }
        };
        if from.is_some() {
            refuse_joined_columns(&update.returning, alias.as_deref().unwrap_or(&table.name))?;
        }
        let (returning, columns) =
            self.returning(&update.returning, &scope, &table, alias.as_deref())?;
        let checks = self.checks(&table)?;
        let plan = Update { table, finder, assignments, returning, checks };
        Ok((Kind::Update(Box::new(plan)), columns))
    }

    fn update_alone(
        &mut self,
        table: &Table,
        pairs: &[(usize, &ast::Expr)],
        condition: Option<&ast::Expr>,
        scope: &Scope,
    ) -> Result<(Finder, Vec<(usize, Expr)>)> {
        let mut assignments = Vec::new();
        for (idx, value) in pairs {
            assignments.push((*idx, self.new_value(table, *idx, value, scope)?));
        }
        Ok((self.finder(table, condition, scope)?, assignments))
    }

    fn finder(
        &mut self,
        table: &Table,
        condition: Option<&ast::Expr>,
        scope: &Scope,
    ) -> Result<Finder> {
        let conjuncts = match condition {
            None => Vec::new(),
            Some(condition) => match self.binder(scope).condition(condition, "WHERE")? {
                Expr::And(list) => list,
                single => vec![single],
            },
        };
        let (access, rest) = Access::choose(table, conjuncts, &[]);
        Ok(Finder::Scan { access: Box::new(access), filter: joined(rest) })
    }

    async fn update_joined(
        &mut self,
        table: &Table,
        alias: Option<&str>,
        pairs: &[(usize, &ast::Expr)],
        from: Option<&[ast::TableWithJoins]>,
        condition: Option<&ast::Expr>,
        scope: &Scope,
    ) -> Result<(Finder, Vec<(usize, Expr)>)> {
        // What stands on the table's own columns, or on none, is evaluated on the locked row; only
        // the rest comes from the query.
        let mut assignments: Vec<(usize, Option<Expr>)> = Vec::new();
        let mut extras: Vec<(usize, &ast::Expr)> = Vec::new();
        for (idx, value) in pairs {
            let before = (self.params.clone(), self.slots.len());
            match self.new_value(table, *idx, value, scope) {
                Ok(expr) => assignments.push((*idx, Some(expr))),
                Err(error)
                    if error.is_unsupported()
                        || matches!(
                            error.state(),
                            state::UNDEFINED_COLUMN | state::UNDEFINED_TABLE
                        ) =>
                {
                    self.params = before.0;
                    self.slots.truncate(before.1);
                    assignments.push((*idx, None));
                    extras.push((*idx, value));
                }
                Err(error) => return Err(error),
            }
        }
        let shown: Vec<String> = extras.iter().map(|(_, value)| value.to_string()).collect();
        let (query, columns) = self.key_query(table, alias, &shown, from, condition).await?;
        let n_key = table.primary.len();
        let width = table.columns.len();
        let mut next = 0;
        let mut finished = Vec::new();
        for (idx, expr) in assignments {
            let expr = match expr {
                Some(expr) => expr,
                None => {
                    let ty = columns[n_key + next].ty.clone();
                    let bound = Bound { expr: Expr::Column(width + next), ty };
                    next += 1;
                    self.assign(&table.columns[idx], bound)?
                }
            };
            finished.push((idx, expr));
        }
        Ok((Finder::Query { query, n_key }, finished))
    }

    /// The query for the primary keys of the rows to change, followed by `extras`.
    async fn key_query(
        &mut self,
        table: &Table,
        alias: Option<&str>,
        extras: &[String],
        from: Option<&[ast::TableWithJoins]>,
        condition: Option<&ast::Expr>,
    ) -> Result<(Box<ast::Query>, Vec<Column>)> {
        if table.is_keyless() {
            return Err(Error::unsupported(
                "UPDATE or DELETE with other tables, on a table without a primary key,",
            )
            .hint("Give the table a primary key: ALTER TABLE … ADD PRIMARY KEY."));
        }
        let name = quoted(alias.unwrap_or(&table.name));
        let mut outputs: Vec<String> = table
            .primary_idxs()
            .into_iter()
            .map(|idx| format!("{name}.{}", quoted(&table.columns[idx].name)))
            .collect();
        outputs
            .extend(extras.iter().enumerate().map(|(idx, extra)| format!("{extra} AS new_{idx}")));
        let mut sql = format!(
            "SELECT {} FROM {}.{} AS {name}",
            outputs.join(", "),
            quoted(&table.schema),
            quoted(&table.name)
        );
        for item in from.unwrap_or_default() {
            sql.push_str(&format!(", {item}"));
        }
        if let Some(condition) = condition {
            sql.push_str(&format!(" WHERE {condition}"));
        }
        let query = parse::query(&sql)?;
        let (types, columns) = self.describe(&query).await?;
        for (idx, ty) in types.into_iter().enumerate() {
            if self.params.types.len() <= idx {
                self.params.types.resize(idx + 1, None);
            }
            if self.params.types[idx].is_none() {
                self.params.types[idx] = Some(ty);
            }
        }
        Ok((query, columns))
    }

    pub(super) async fn delete(&mut self, delete: &ast::Delete) -> Result<Planned> {
        let from = match &delete.from {
            ast::FromTable::WithFromKeyword(from) | ast::FromTable::WithoutKeyword(from) => from,
        };
        let [target] = &from[..] else {
            return Err(Error::unsupported("DELETE from several tables"));
        };
        if !delete.order_by.is_empty() || delete.limit.is_some() || !delete.tables.is_empty() {
            return Err(Error::unsupported("ORDER BY and LIMIT in DELETE"));
        }
        let (table, alias) = self.changed_table(target).await?;
        let mut scope = Scope::empty();
        scope.add(&table, alias.as_deref(), 0, true);
        let exprs: Vec<&ast::Expr> = delete.selection.iter().collect();
        let mut finder = None;
        if delete.using.is_none() && self.describe_subqueries(&exprs).await? {
            let before = (self.params.clone(), self.slots.len());
            finder = match self.finder(&table, delete.selection.as_ref(), &scope) {
                Ok(finder) => Some(finder),
                Err(error) if error.is_unsupported() => {
                    self.params = before.0;
                    self.slots.truncate(before.1);
                    None
                }
                Err(error) => return Err(error),
            };
        }
        let finder = match finder {
            Some(finder) => finder,
            None => {
                let n_key = table.primary.len();
                let using = delete.using.as_deref();
                let (query, _) = self
                    .key_query(&table, alias.as_deref(), &[], using, delete.selection.as_ref())
                    .await?;
                Finder::Query { query, n_key }
            }
        };
        if delete.using.is_some() {
            refuse_joined_columns(&delete.returning, alias.as_deref().unwrap_or(&table.name))?;
        }
        let (returning, columns) =
            self.returning(&delete.returning, &scope, &table, alias.as_deref())?;
        Ok((Kind::Delete(Box::new(Delete { table, finder, returning })), columns))
    }

    async fn changed_table(
        &mut self,
        from: &ast::TableWithJoins,
    ) -> Result<(Arc<Table>, Option<String>)> {
        let Some((Some(name), alias)) = table_factor(&from.relation) else {
            return Err(Error::unsupported("changing something that is not a table"));
        };
        if !from.joins.is_empty() {
            return Err(Error::unsupported("a join as the target of a change"));
        }
        Ok((self.target(name).await?, alias))
    }

    fn returning(
        &mut self,
        items: &Option<Vec<ast::SelectItem>>,
        scope: &Scope,
        table: &Table,
        alias: Option<&str>,
    ) -> Result<Returning> {
        match items {
            None => Ok((None, None)),
            Some(items) => {
                let (exprs, columns) = self.projection(items, scope, Some(table), alias)?;
                Ok((Some(exprs), Some(columns)))
            }
        }
    }

    /// The table's CHECK constraints, bound.
    pub fn checks(&mut self, table: &Table) -> Result<Vec<NamedCheck>> {
        let mut scope = Scope::empty();
        scope.add(table, None, 0, true);
        table
            .checks
            .iter()
            .map(|check| {
                let expr = parse::expression(&check.sql)?;
                let condition = self.binder(&scope).condition(&expr, "CHECK")?;
                Ok(NamedCheck { name: check.name.clone(), condition })
            })
            .collect()
    }
}

/// A name as SQL text.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn is_default(expr: &ast::Expr) -> bool {
    matches!(expr, ast::Expr::Identifier(name) if name.quote_style.is_none() && name.value.eq_ignore_ascii_case("default"))
}

fn has_default(values: &ast::Values) -> bool {
    values.rows.iter().flat_map(|row| row.content.iter()).any(is_default)
}

/// RETURNING beside other tables has the changed table's columns only: `*` would have to be all.
fn refuse_joined_columns(items: &Option<Vec<ast::SelectItem>>, target: &str) -> Result<()> {
    let is_other = |parts: &[ast::Ident]| match parts {
        [.., table, _] => parse::ident(table) != target,
        _ => false,
    };
    for item in items.iter().flatten() {
        let joined = match item {
            ast::SelectItem::Wildcard(_) => true,
            ast::SelectItem::UnnamedExpr(expr) | ast::SelectItem::ExprWithAlias { expr, .. } => {
                ast::visit_expressions(expr, |expr| match expr {
                    ast::Expr::CompoundIdentifier(parts) if is_other(parts) => {
                        ControlFlow::Break(())
                    }
                    _ => ControlFlow::Continue(()),
                })
                .is_break()
            }
            _ => false,
        };
        if joined {
            return Err(Error::unsupported("RETURNING of the columns of other tables"));
        }
    }
    Ok(())
}

fn refuse_generated(column: &TableColumn) -> Result<()> {
    if column.identity == Some(Identity::Always) {
        return Err(Error::new(
            "428C9",
            format!("cannot insert a non-DEFAULT value into column \"{}\"", column.name),
        )
        .detail(format!(
            "Column \"{}\" is an identity column defined as GENERATED ALWAYS.",
            column.name
        )));
    }
    Ok(())
}

fn check_width(n_targets: usize, n_values: usize, may_be_fewer: bool) -> Result<()> {
    if n_values > n_targets {
        return Err(Error::new(
            state::SYNTAX_ERROR,
            "INSERT has more expressions than target columns",
        ));
    }
    if n_values < n_targets && !may_be_fewer {
        return Err(Error::new(
            state::SYNTAX_ERROR,
            "INSERT has more target columns than expressions",
        ));
    }
    Ok(())
}

/// Positions of the columns that an INSERT names; without names, all in order.
fn insert_targets(table: &Table, names: &[ast::ObjectName]) -> Result<Vec<usize>> {
    if names.is_empty() {
        return Ok((0..table.columns.len()).collect());
    }
    let mut targets = Vec::with_capacity(names.len());
    for name in names {
        let idx = column_idx(table, &parse::last_part(name)?)?;
        if targets.contains(&idx) {
            return Err(Error::new(
                state::DUPLICATE_COLUMN,
                format!("column \"{}\" specified more than once", table.columns[idx].name),
            ));
        }
        targets.push(idx);
    }
    Ok(targets)
}

pub fn column_idx(table: &Table, name: &str) -> Result<usize> {
    table.column_idx(name).ok_or_else(|| {
        Error::new(
            state::UNDEFINED_COLUMN,
            format!("column \"{name}\" of relation \"{}\" does not exist", table.name),
        )
    })
}

/// Columns and their new values, `(a, b) = (x, y)` taken apart.
fn targets_of<'a>(
    table: &Table,
    assignments: &'a [ast::Assignment],
) -> Result<Vec<(usize, &'a ast::Expr)>> {
    let mut pairs: Vec<(usize, &ast::Expr)> = Vec::new();
    let mut add = |name: &ast::ObjectName, value: &'a ast::Expr| -> Result<()> {
        let idx = column_idx(table, &parse::last_part(name)?)?;
        if pairs.iter().any(|(taken, _)| *taken == idx) {
            return Err(Error::new(
                state::SYNTAX_ERROR,
                format!("multiple assignments to same column \"{}\"", table.columns[idx].name),
            ));
        }
        pairs.push((idx, value));
        Ok(())
    };
    for assignment in assignments {
        match (&assignment.target, &assignment.value) {
            (ast::AssignmentTarget::ColumnName(name), value) => add(name, value)?,
            (ast::AssignmentTarget::Tuple(names), ast::Expr::Tuple(values))
                if names.len() == values.len() =>
            {
                for (name, value) in names.iter().zip(values) {
                    add(name, value)?;
                }
            }
            _ => return Err(Error::unsupported("assigning a row from one expression")),
        }
    }
    Ok(pairs)
}

/// Whether ON CONFLICT may name the index: one that is being built does not know all rows yet.
fn is_arbiter(index: &Index) -> bool {
    index.unique && index.state == IndexState::Public
}
