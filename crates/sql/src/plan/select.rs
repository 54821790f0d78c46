//! SELECT over one table or none.

use super::{Access, Kind, Planner};
use crate::bind::Scope;
use crate::catalog::Table;
use crate::error::{Error, Result};
use crate::expr::Expr;
use crate::parse;
use crate::session::Column;
use crate::types::{Type, cast};
use sqlparser::ast;
use std::sync::Arc;
use txn::{LockMode, Wait};

pub struct Select {
    /// None: one row without columns.
    pub table: Option<Arc<Table>>,
    pub access: Option<Access>,
    pub filter: Option<Expr>,
    pub projection: Vec<Expr>,
    pub order: Vec<SortKey>,
    /// The access path gives the rows in the order asked for (reversed if so).
    pub is_sorted: bool,
    pub reverse: bool,
    pub limit: Option<Expr>,
    pub offset: Option<Expr>,
    pub lock: Option<(LockMode, Wait)>,
    /// Columns to decode, one flag per column of the table.
    pub wanted: Vec<bool>,
}

#[derive(Clone, Debug)]
pub struct SortKey {
    pub expr: Expr,
    pub descending: bool,
    pub nulls_first: bool,
}

impl Planner<'_> {
    /// None: not a query for the fast path.
    pub(super) async fn select(
        &mut self,
        query: &ast::Query,
    ) -> Result<Option<(Kind, Option<Vec<Column>>)>> {
        let ast::SetExpr::Select(select) = &*query.body else { return Ok(None) };
        if !is_simple(query, select) {
            return Ok(None);
        }
        let Some((name, alias)) = single_table(&select.from)? else { return Ok(None) };
        let mut scope = Scope::empty();
        let mut table = None;
        if let Some(name) = name {
            let (schema, short) = parse::qualified(name)?;
            let Some(found) = self.find_table(schema.as_deref(), &short).await? else {
                return Ok(None);
            };
            self.note(&found);
            scope.add(&found, alias.as_deref(), 0, true);
            table = Some(found);
        }
        let lock = match &query.locks[..] {
            [] => None,
            [lock] => Some(lock_of(lock)),
            _ => return Err(Error::unsupported("several locking clauses")),
        };
        let mut exprs: Vec<&ast::Expr> = select.selection.iter().collect();
        exprs.extend(select.projection.iter().filter_map(|item| match item {
            ast::SelectItem::UnnamedExpr(expr) | ast::SelectItem::ExprWithAlias { expr, .. } => {
                Some(expr)
            }
            _ => None,
        }));
        // Only where the general path cannot do it: with locks, and without a table, where
        // functions with effects may surround the subquery.
        if (lock.is_some() || table.is_none()) && !self.describe_subqueries(&exprs).await? {
            return Ok(None);
        }
        let filter = match &select.selection {
            Some(condition) => Some(self.binder(&scope).condition(condition, "WHERE")?),
            None => None,
        };
        let (projection, columns) =
            self.projection(&select.projection, &scope, table.as_deref(), alias.as_deref())?;
        let order = self.order(query, &scope, &projection, &columns, &select.projection)?;
        let (limit, offset) = self.limit(query)?;
        let conjuncts = match filter {
            Some(Expr::And(list)) => list,
            Some(single) => vec![single],
            None => Vec::new(),
        };
        let Some(table) = table else {
            let filter = joined(conjuncts);
            let plan = Select {
                table: None,
                access: None,
                filter,
                projection,
                order: Vec::new(),
                is_sorted: true,
                reverse: false,
                limit,
                offset,
                lock: None,
                wanted: Vec::new(),
            };
            return Ok(Some((Kind::Select(Box::new(plan)), Some(columns))));
        };
        let order_columns = plain_order(&order);
        let hint = if limit.is_some() { order_columns.clone() } else { None };
        let (access, rest) = Access::choose(&table, conjuncts, hint.as_deref().unwrap_or_default());
        let is_sorted = order.is_empty()
            || order_columns.is_some_and(|columns| {
                access.gives_order(&columns) || access.is_point && single_point(&access)
            });
        let reverse = is_sorted && order.first().is_some_and(|key| key.descending);
        // A big sort is DataFusion's, which bounds its memory.
        if access.is_full() && !is_sorted && lock.is_none() {
            return Ok(None);
        }
        let filter = joined(rest);
        let mut wanted = vec![false; table.columns.len()];
        projection.iter().for_each(|expr| expr.mark_columns(&mut wanted));
        filter.iter().for_each(|expr| expr.mark_columns(&mut wanted));
        order.iter().for_each(|key| key.expr.mark_columns(&mut wanted));
        let plan = Select {
            table: Some(table),
            access: Some(access),
            filter,
            projection,
            order,
            is_sorted,
            reverse,
            limit,
            offset,
            lock,
            wanted,
        };
        Ok(Some((Kind::Select(Box::new(plan)), Some(columns))))
    }

    fn order(
        &mut self,
        query: &ast::Query,
        scope: &Scope,
        projection: &[Expr],
        columns: &[Column],
        items: &[ast::SelectItem],
    ) -> Result<Vec<SortKey>> {
        let Some(order) = &query.order_by else { return Ok(Vec::new()) };
        let ast::OrderByKind::Expressions(list) = &order.kind else {
            return Err(Error::unsupported("ORDER BY ALL"));
        };
        let mut keys = Vec::new();
        for item in list {
            let position = match &item.expr {
                ast::Expr::Value(value) => match &value.value {
                    ast::Value::Number(digits, _) => digits.parse::<usize>().ok(),
                    _ => None,
                },
                // A name of the output wins over one of the table.
                ast::Expr::Identifier(name) => {
                    let name = parse::ident(name);
                    let aliased = items.iter().any(|item| {
                        matches!(item, ast::SelectItem::ExprWithAlias { alias, .. } if parse::ident(alias) == name)
                    });
                    if aliased {
                        columns.iter().position(|column| column.name == name).map(|idx| idx + 1)
                    } else {
                        None
                    }
                }
                _ => None,
            };
            let expr = match position {
                Some(position) => match position.checked_sub(1).and_then(|idx| projection.get(idx))
                {
                    Some(expr) => expr.clone(),
                    None => {
                        return Err(Error::new(
                            crate::error::state::INVALID_COLUMN_REFERENCE,
                            format!("ORDER BY position {position} is not in select list"),
                        ));
                    }
                },
                None => self.binder(scope).bind(&item.expr)?.expr,
            };
            let descending = item.options.asc == Some(false);
            let nulls_first = item.options.nulls_first.unwrap_or(descending);
            keys.push(SortKey { expr, descending, nulls_first });
        }
        Ok(keys)
    }

    fn limit(&mut self, query: &ast::Query) -> Result<(Option<Expr>, Option<Expr>)> {
        let (limit, offset) = match &query.limit_clause {
            None => (None, None),
            Some(ast::LimitClause::LimitOffset { limit, offset, limit_by })
                if limit_by.is_empty() =>
            {
                (limit.clone(), offset.as_ref().map(|offset| offset.value.clone()))
            }
            Some(_) => return Err(Error::unsupported("this LIMIT clause")),
        };
        let scope = Scope::empty();
        let mut bind = |expr: Option<ast::Expr>| -> Result<Option<Expr>> {
            match expr {
                None => Ok(None),
                Some(expr) => self
                    .binder(&scope)
                    .bind_as(&expr, &Type::Int8, cast::Context::Assignment)
                    .map(Some),
            }
        };
        Ok((bind(limit)?, bind(offset)?))
    }
}

pub(super) fn joined(mut conjuncts: Vec<Expr>) -> Option<Expr> {
    match conjuncts.len() {
        0 => None,
        1 => conjuncts.pop(),
        _ => Some(Expr::And(conjuncts)),
    }
}

/// The columns of an order that a key could give: plain columns, all in one direction, NULLs where
/// keys have them.
fn plain_order(order: &[SortKey]) -> Option<Vec<usize>> {
    let descending = order.first()?.descending;
    order
        .iter()
        .map(|key| match key.expr {
            Expr::Column(idx) if key.descending == descending && key.nulls_first == descending => {
                Some(idx)
            }
            _ => None,
        })
        .collect()
}

fn single_point(access: &Access) -> bool {
    access.equal.iter().all(|equal| matches!(equal, super::access::Equal::One(_)))
}

fn is_simple(query: &ast::Query, select: &ast::Select) -> bool {
    let no_groups = matches!(
        &select.group_by,
        ast::GroupByExpr::Expressions(list, modifiers) if list.is_empty() && modifiers.is_empty()
    );
    query.with.is_none()
        && query.fetch.is_none()
        && query.for_clause.is_none()
        && select.distinct.is_none()
        && select.into.is_none()
        && select.top.is_none()
        && no_groups
        && select.having.is_none()
        && select.named_window.is_empty()
        && select.lateral_views.is_empty()
        && select.qualify.is_none()
        && select.prewhere.is_none()
        && !select.projection.is_empty()
}

/// The one table of a FROM clause and its alias. `Some((None, _))`: there is no FROM. None:
/// something else than one plain table.
#[allow(clippy::type_complexity)]
pub(super) fn single_table(
    from: &[ast::TableWithJoins],
) -> Result<Option<(Option<&ast::ObjectName>, Option<String>)>> {
    match from {
        [] => Ok(Some((None, None))),
        [only] if only.joins.is_empty() => Ok(table_factor(&only.relation)),
        _ => Ok(None),
    }
}

#[allow(clippy::type_complexity)]
pub(super) fn table_factor(
    factor: &ast::TableFactor,
) -> Option<(Option<&ast::ObjectName>, Option<String>)> {
    match factor {
        ast::TableFactor::Table {
            name,
            alias,
            args: None,
            with_ordinality: false,
            sample: None,
            version: None,
            ..
        } => {
            let alias = match alias {
                None => None,
                Some(alias) if alias.columns.is_empty() => Some(parse::ident(&alias.name)),
                Some(_) => return None,
            };
            Some((Some(name), alias))
        }
        _ => None,
    }
}

fn lock_of(lock: &ast::LockClause) -> (LockMode, Wait) {
    let mode = match lock.lock_type {
        ast::LockType::Share => LockMode::Shared,
        ast::LockType::Update => LockMode::Exclusive,
    };
    let wait = match lock.nonblock {
        None => Wait::Block,
        Some(ast::NonBlock::Nowait) => Wait::NoWait,
        Some(ast::NonBlock::SkipLocked) => Wait::Skip,
    };
    (mode, wait)
}
