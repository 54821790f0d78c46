//! Subqueries, put so that DataFusion can join them to the row outside.

use super::names::column_name;
use super::tree::{binary, call, number, value};
use crate::setup;
use sql::parse;
use sqlparser::ast::helpers::attached_token::AttachedToken;
use sqlparser::ast::{self, *};
use std::ops::ControlFlow;

/// DataFusion tests existence in conditions only: where a value is wanted, rows are counted.
pub fn count_instead_of_exists(expr: &mut ast::Expr) {
    struct Counting {
        depth: usize,
    }
    impl VisitorMut for Counting {
        type Break = ();

        fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
            self.depth += 1;
            ControlFlow::Continue(())
        }

        fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
            self.depth -= 1;
            ControlFlow::Continue(())
        }

        fn post_visit_expr(&mut self, expr: &mut ast::Expr) -> ControlFlow<()> {
            if self.depth == 0
                && let ast::Expr::Exists { subquery, negated } = expr
                && let SetExpr::Select(select) = &mut *subquery.body
                && subquery.limit_clause.is_none()
                && select.having.is_none()
                && matches!(&select.group_by, GroupByExpr::Expressions(by, _) if by.is_empty())
            {
                subquery.order_by = None;
                select.distinct = None;
                let op = if *negated { BinaryOperator::Eq } else { BinaryOperator::Gt };
                let mut count = call("count", Vec::new());
                if let ast::Expr::Function(ast::Function {
                    args: FunctionArguments::List(list),
                    ..
                }) = &mut count
                {
                    list.args.push(FunctionArg::Unnamed(FunctionArgExpr::Wildcard));
                }
                select.projection = vec![SelectItem::UnnamedExpr(count)];
                let count = ast::Expr::Subquery(subquery.clone());
                *expr = ast::Expr::Nested(Box::new(binary(count, op, number("0"))));
            }
            ControlFlow::Continue(())
        }
    }
    let _: ControlFlow<()> = VisitMut::visit(expr, &mut Counting { depth: 0 });
}

/// `CROSS JOIN LATERAL (SELECT e) AS o(n)`, which has one row, goes; `o.n` becomes `e`.
pub fn inline_laterals(select: &mut Select) {
    let mut inlined: Vec<(String, String, ast::Expr)> = Vec::new();
    for from in &mut select.from {
        from.joins.retain(|join| {
            let is_cross = matches!(
                join.join_operator,
                JoinOperator::CrossJoin(_) | JoinOperator::Inner(JoinConstraint::None)
            );
            let TableFactor::Derived { lateral: true, subquery, alias: Some(alias), .. } =
                &join.relation
            else {
                return true;
            };
            let SetExpr::Select(only) = &*subquery.body else { return true };
            let is_one_row = is_cross
                && only.from.is_empty()
                && only.selection.is_none()
                && only.having.is_none()
                && subquery.limit_clause.is_none();
            let exprs: Option<Vec<(String, ast::Expr)>> = only
                .projection
                .iter()
                .map(|item| match item {
                    SelectItem::UnnamedExpr(expr) => Some((column_name(expr), expr.clone())),
                    SelectItem::ExprWithAlias { expr, alias } => {
                        Some((parse::ident(alias), expr.clone()))
                    }
                    _ => None,
                })
                .collect();
            let (true, Some(exprs)) = (is_one_row, exprs) else { return true };
            for (idx, (name, expr)) in exprs.into_iter().enumerate() {
                let renamed = alias.columns.get(idx).map(|column| parse::ident(&column.name));
                let name = renamed.unwrap_or(name);
                inlined.push((parse::ident(&alias.name), name, expr));
            }
            false
        });
    }
    if inlined.is_empty() {
        return;
    }
    let _: ControlFlow<()> = visit_expressions_mut(select, |expr| {
        if let ast::Expr::CompoundIdentifier(path) = expr
            && let [table, column] = &path[..]
            && let Some((_, _, meant)) = inlined
                .iter()
                .find(|(t, c, _)| *t == parse::ident(table) && *c == parse::ident(column))
        {
            *expr = ast::Expr::Nested(Box::new(meant.clone()));
        }
        ControlFlow::Continue(())
    });
}

/// Makes a subquery's only column an aggregate over all its rows; false where it groups, limits or
/// aggregates already.
pub fn aggregate_whole(query: &mut Query, aggregate: &str) -> bool {
    let SetExpr::Select(select) = &mut *query.body else { return false };
    let groups = !matches!(&select.group_by, GroupByExpr::Expressions(by, _) if by.is_empty());
    if groups
        || select.having.is_some()
        || select.distinct.is_some()
        || query.limit_clause.is_some()
        || query.with.is_some()
    {
        return false;
    }
    let [SelectItem::UnnamedExpr(item) | SelectItem::ExprWithAlias { expr: item, .. }] =
        &mut select.projection[..]
    else {
        return false;
    };
    if has_aggregate(item) {
        return false;
    }
    let placeholder = value(Value::Null);
    let mut whole = call(aggregate, vec![std::mem::replace(item, placeholder)]);
    if let ast::Expr::Function(ast::Function { args: FunctionArguments::List(list), .. }) =
        &mut whole
        && let Some(OrderBy { kind: OrderByKind::Expressions(by), .. }) = query.order_by.take()
        // A single value has no order.
        && aggregate == "array_agg"
        // A position or a name of the answer would mean another thing inside.
        && !by.iter().any(|by| matches!(by.expr, ast::Expr::Value(_)))
    {
        list.clauses.push(FunctionArgumentClause::OrderBy(by));
    }
    *item = whole;
    true
}

/// Where a subquery's condition names the row outside by something else than an equality,
/// DataFusion cannot join it. What an equality makes the same is therefore named by the inner
/// column, and conditions on the outer row alone are taken out and returned.
pub fn free_of_outer(query: &mut Query) -> Option<ast::Expr> {
    let SetExpr::Select(select) = &mut *query.body else { return None };
    let mut inner = Vec::new();
    for from in &select.from {
        for factor in std::iter::once(&from.relation).chain(from.joins.iter().map(|j| &j.relation))
        {
            match factor {
                TableFactor::Table { alias: Some(alias), .. }
                | TableFactor::Derived { alias: Some(alias), .. } => {
                    inner.push(parse::ident(&alias.name));
                }
                TableFactor::Table { name, .. } => inner.push(parse::last_part(name).ok()?),
                _ => return None,
            }
        }
    }
    let mut conditions = Vec::new();
    conjuncts(select.selection.take()?, &mut conditions);
    // Which sides a condition names: the inner one, the outer one. A name without a table may be
    // either's and counts as the inner's.
    let sides = |expr: &ast::Expr| {
        let (mut names_inner, mut names_outer) = (false, false);
        let _: ControlFlow<()> = visit_expressions(expr, |expr| {
            match expr {
                ast::Expr::CompoundIdentifier(path) if path.len() == 2 => {
                    let is_inner = inner.contains(&parse::ident(&path[0]));
                    names_inner |= is_inner;
                    names_outer |= !is_inner;
                }
                ast::Expr::CompoundIdentifier(_) | ast::Expr::Identifier(_) => names_inner = true,
                _ => {}
            }
            ControlFlow::Continue(())
        });
        (names_inner, names_outer)
    };
    let same: Vec<(ast::Expr, ast::Expr)> = conditions
        .iter()
        .filter_map(|condition| match condition {
            ast::Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => {
                match (sides(left), sides(right)) {
                    ((true, false), (false, true)) => Some(((**right).clone(), (**left).clone())),
                    ((false, true), (true, false)) => Some(((**left).clone(), (**right).clone())),
                    _ => None,
                }
            }
            _ => None,
        })
        .collect();
    let mut guards = Vec::new();
    let mut kept = Vec::new();
    for mut condition in conditions {
        // A subquery's own names would be taken for the outer row's.
        if has_subquery(&condition) {
            kept.push(condition);
            continue;
        }
        match sides(&condition) {
            (false, true) => guards.push(condition),
            (true, true) => {
                let is_equality = same.iter().any(|(outer, inner)| {
                    let eq = |a: &ast::Expr, b: &ast::Expr| {
                        condition == binary(a.clone(), BinaryOperator::Eq, b.clone())
                    };
                    eq(outer, inner) || eq(inner, outer)
                });
                if !is_equality {
                    let _: ControlFlow<()> = visit_expressions_mut(&mut condition, |expr| {
                        if let Some((_, inner)) = same.iter().find(|(outer, _)| outer == expr) {
                            *expr = inner.clone();
                        }
                        ControlFlow::Continue(())
                    });
                }
                kept.push(condition);
            }
            _ => kept.push(condition),
        }
    }
    select.selection = kept.into_iter().reduce(|a, b| binary(a, BinaryOperator::And, b));
    guards.into_iter().reduce(|a, b| binary(a, BinaryOperator::And, b))
}

fn has_subquery(expr: &ast::Expr) -> bool {
    visit_expressions(expr, |expr| match expr {
        ast::Expr::Subquery(_) | ast::Expr::Exists { .. } | ast::Expr::InSubquery { .. } => {
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    })
    .is_break()
}

fn conjuncts(expr: ast::Expr, into: &mut Vec<ast::Expr>) {
    match expr {
        ast::Expr::Nested(inner) => match *inner {
            ast::Expr::BinaryOp { op: BinaryOperator::And, .. } => conjuncts(*inner, into),
            other => into.push(ast::Expr::Nested(Box::new(other))),
        },
        ast::Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            conjuncts(*left, into);
            conjuncts(*right, into);
        }
        other => into.push(other),
    }
}

/// `CASE WHEN condition THEN result END`.
pub fn when(condition: ast::Expr, result: ast::Expr) -> ast::Expr {
    ast::Expr::Case {
        case_token: AttachedToken::empty(),
        end_token: AttachedToken::empty(),
        operand: None,
        conditions: vec![CaseWhen { condition, result }],
        else_result: None,
    }
}

/// `ARRAY(SELECT e FROM unnest(a) x)`: the elements of `a`, each made into `e`.
pub fn transform_of(query: &Query) -> Option<ast::Expr> {
    let SetExpr::Select(select) = &*query.body else { return None };
    let ([from], None, None, [item]) =
        (&select.from[..], &select.selection, &query.order_by, &select.projection[..])
    else {
        return None;
    };
    let TableFactor::UNNEST { alias: Some(alias), array_exprs, .. } = &from.relation else {
        return None;
    };
    let (SelectItem::UnnamedExpr(item) | SelectItem::ExprWithAlias { expr: item, .. }) = item
    else {
        return None;
    };
    let ([array], true) = (&array_exprs[..], from.joins.is_empty() && alias.columns.is_empty())
    else {
        return None;
    };
    let lambda = ast::Expr::Lambda(LambdaFunction {
        params: OneOrManyWithParens::One(LambdaFunctionParameter {
            name: alias.name.clone(),
            data_type: None,
        }),
        body: Box::new(item.clone()),
        syntax: LambdaSyntax::Arrow,
    });
    Some(call("array_transform", vec![array.clone(), lambda]))
}

/// Whether an expression aggregates the rows of its own query.
fn has_aggregate(expr: &ast::Expr) -> bool {
    struct Finding {
        depth: usize,
    }
    impl Visitor for Finding {
        type Break = ();

        fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.depth += 1;
            ControlFlow::Continue(())
        }

        fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.depth -= 1;
            ControlFlow::Continue(())
        }

        fn pre_visit_expr(&mut self, expr: &ast::Expr) -> ControlFlow<()> {
            match expr {
                ast::Expr::Function(function)
                    if self.depth == 0
                        && function.over.is_none()
                        && parse::last_part(&function.name)
                            .is_ok_and(|name| setup::is_aggregate(&name)) =>
                {
                    ControlFlow::Break(())
                }
                _ => ControlFlow::Continue(()),
            }
        }
    }
    expr.visit(&mut Finding { depth: 0 }).is_break()
}
