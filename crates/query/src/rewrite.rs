//! A query's syntax tree, made plannable: PostgreSQL's forms put in words that DataFusion knows.
//!
//! - Parameters become typed literals, so that everything after sees constants.
//! - An integer literal is an `int4` where it fits, as in PostgreSQL; DataFusion makes it `int8`.
//!   Positions (`ORDER BY 1`) and limits stay plain numbers.
//! - Columns without a name get PostgreSQL's (`count`, `?column?`), made unique where DataFusion
//!   insists on it by a mark that [`shown_name`] takes off again.
//! - Values of the session (`now()`, `current_user`) become literals.
//! - `pg_catalog.` goes from functions, `OPERATOR(pg_catalog.~)` becomes `~`, COLLATE goes,
//!   `= ANY (array)` becomes a list, `ARRAY(SELECT …)` an aggregate.

mod names;
mod subquery;
mod tree;

use names::column_name;
use sql::error::{Error, Result, state};
use sql::parse;
use sql::session::View;
use sql::types::{Datum, Type, text};
use sqlparser::ast::{self, *};
use std::collections::HashSet;
use std::ops::ControlFlow;
use subquery::{aggregate_whole, count_instead_of_exists, free_of_outer, inline_laterals};
use subquery::{transform_of, when};
use tree::{binary, call, cast, literal, number, string, value};

/// What is known of the parameters.
pub enum Parameters<'a> {
    /// Types and values, of equal length.
    Values(&'a [Type], &'a [Datum]),
    /// Types as far as they are known; the others stay open.
    Types(&'a [Option<Type>]),
}

/// A query ready to be planned.
pub struct Rewritten {
    pub query: Query,
    /// It names tables or functions that describe the catalog.
    pub asks_catalog: bool,
    /// What expressions that make long texts add to a row, about.
    pub grown_bytes: usize,
}

/// How long a text a call makes of a short one, about.
fn grown_bytes(function: &ast::Function) -> usize {
    const UNKNOWN_BYTES: usize = 16 << 10;
    let name = parse::last_part(&function.name).unwrap_or_default();
    let FunctionArguments::List(list) = &function.args else { return 0 };
    let mut literals = list.args.iter().map(|arg| match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(ast::Expr::Value(literal))) => {
            Some(&literal.value)
        }
        _ => None,
    });
    let (text, n) = (literals.next().flatten(), literals.next().flatten());
    let n = match n {
        Some(Value::Number(digits, _)) => digits.parse().ok(),
        _ => None,
    };
    let length = match text {
        Some(Value::SingleQuotedString(text)) => text.len(),
        _ => 16,
    };
    match name.as_str() {
        "repeat" => n.map_or(UNKNOWN_BYTES, |n: usize| n.saturating_mul(length)),
        "lpad" | "rpad" => n.unwrap_or(UNKNOWN_BYTES),
        _ => 0,
    }
}

/// Parts a column's name from what makes it unique. No name that can be typed contains it.
const MARK: char = '\u{1}';

/// A column's name as the client sees it.
pub fn shown_name(name: &str) -> &str {
    name.split(MARK).next().unwrap_or(name)
}

/// A line of a plan, names as the client sees them.
pub fn without_marks(line: &str) -> String {
    let mut parts = line.split(MARK);
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        shown.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    shown
}

/// The type that a type's name means; none for a name that means nothing.
pub fn type_of(ty: &ast::DataType) -> Option<Type> {
    parse::type_of(ty).ok()
}

/// The highest `$n`.
pub fn n_parameters(query: &Query) -> Result<usize> {
    let mut highest = 0;
    let visited = visit_expressions(query, |expr| match expr {
        ast::Expr::Value(ValueWithSpan { value: Value::Placeholder(name), .. }) => {
            match parameter_idx(name) {
                Ok(idx) => {
                    highest = highest.max(idx + 1);
                    ControlFlow::Continue(())
                }
                Err(error) => ControlFlow::Break(error),
            }
        }
        _ => ControlFlow::Continue(()),
    });
    match visited {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(highest),
    }
}

/// Types of parameters that stand in a cast or a limit.
pub fn infer_from_syntax(query: &Query, types: &mut [Option<Type>]) {
    let mut note = |expr: &ast::Expr, ty: Type| {
        if let ast::Expr::Value(ValueWithSpan { value: Value::Placeholder(name), .. }) = expr
            && let Ok(idx) = parameter_idx(name)
            && let Some(slot @ None) = types.get_mut(idx)
        {
            *slot = Some(ty);
        }
    };
    let mut visitor = Inference { note: &mut note };
    let _: ControlFlow<()> = query.visit(&mut visitor);
}

struct Inference<'a> {
    note: &'a mut dyn FnMut(&ast::Expr, Type),
}

impl Visitor for Inference<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        match &query.limit_clause {
            Some(LimitClause::LimitOffset { limit, offset, .. }) => {
                for expr in limit.iter().chain(offset.iter().map(|offset| &offset.value)) {
                    (self.note)(expr, Type::Int8);
                }
            }
            Some(LimitClause::OffsetCommaLimit { offset, limit }) => {
                (self.note)(offset, Type::Int8);
                (self.note)(limit, Type::Int8);
            }
            None => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &ast::Expr) -> ControlFlow<()> {
        match expr {
            ast::Expr::Cast { expr, data_type, .. } => {
                if let Some(ty) = type_of(data_type) {
                    (self.note)(expr, ty);
                }
            }
            ast::Expr::AnyOp { right, .. } | ast::Expr::AllOp { right, .. } => {
                (self.note)(right, Type::Array(Box::new(Type::Text)));
            }
            ast::Expr::Like { expr, pattern, .. } | ast::Expr::ILike { expr, pattern, .. } => {
                (self.note)(expr, Type::Text);
                (self.note)(pattern, Type::Text);
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

pub fn rewrite(query: &Query, parameters: &Parameters<'_>, view: &View) -> Result<Rewritten> {
    let mut query = query.clone();
    let mut rewriter = Rewriter {
        parameters,
        view,
        depth: 0,
        n_marks: 0,
        n_relations: 0,
        grown_bytes: 0,
        asks_catalog: false,
    };
    match VisitMut::visit(&mut query, &mut rewriter) {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => {
            let Rewriter { asks_catalog, grown_bytes, .. } = rewriter;
            Ok(Rewritten { query, asks_catalog, grown_bytes })
        }
    }
}

fn parameter_idx(name: &str) -> Result<usize> {
    let n = name.strip_prefix('$').and_then(|n| n.parse::<usize>().ok());
    match n {
        Some(n @ 1..=65_535) => Ok(n - 1),
        _ => Err(Error::new(state::UNDEFINED_PARAMETER, format!("there is no parameter {name}"))),
    }
}

struct Rewriter<'a> {
    parameters: &'a Parameters<'a>,
    view: &'a View,
    depth: usize,
    n_marks: usize,
    n_relations: usize,
    grown_bytes: usize,
    asks_catalog: bool,
}

impl Rewriter<'_> {
    /// Plans take a time that grows with the square of their relations, and more.
    fn one_relation_more(&mut self) -> ControlFlow<Error> {
        self.n_relations += 1;
        let max = self.view.env.limits().relations;
        if self.n_relations <= max {
            return ControlFlow::Continue(());
        }
        let message = format!("a query names more than {max} tables and subqueries");
        let hint = "Put a part of it into a table first. The limit is relations in atoll.settings.";
        ControlFlow::Break(Error::new(state::LIMIT_EXCEEDED, message).hint(hint))
    }
}

impl VisitorMut for Rewriter<'_> {
    type Break = Error;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Error> {
        self.depth += 1;
        // DataFusion has them, but counts duplicates in its own way.
        match keeps_duplicates(&query.body) {
            true => ControlFlow::Break(Error::unsupported("INTERSECT ALL or EXCEPT ALL")),
            false => ControlFlow::Continue(()),
        }
    }

    fn post_visit_query(&mut self, query: &mut Query) -> ControlFlow<Error> {
        self.depth -= 1;
        if let Some(OrderBy { kind: OrderByKind::Expressions(exprs), .. }) = &mut query.order_by {
            exprs.iter_mut().for_each(|order| bare_number(&mut order.expr));
        }
        match &mut query.limit_clause {
            Some(LimitClause::LimitOffset { limit, offset, .. }) => {
                limit.iter_mut().for_each(bare_number);
                offset.iter_mut().for_each(|offset| bare_number(&mut offset.value));
            }
            Some(LimitClause::OffsetCommaLimit { offset, limit }) => {
                bare_number(offset);
                bare_number(limit);
            }
            None => {}
        }
        // FETCH FIRST n ROWS ONLY is a limit.
        if let Some(fetch) = query.fetch.take() {
            if fetch.percent || fetch.with_ties {
                return ControlFlow::Break(Error::unsupported("FETCH with PERCENT or WITH TIES"));
            }
            let mut quantity = fetch.quantity.unwrap_or_else(|| number("1"));
            bare_number(&mut quantity);
            let offset = match query.limit_clause.take() {
                Some(LimitClause::LimitOffset { offset, .. }) => offset,
                _ => None,
            };
            query.limit_clause = Some(LimitClause::LimitOffset {
                limit: Some(quantity),
                offset,
                limit_by: Vec::new(),
            });
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<Error> {
        self.one_relation_more()?;
        self.name_columns(select);
        inline_laterals(select);
        if select.from.iter().any(|from| self.is_always_empty(&from.relation)) {
            // Then nothing need be planned of what DataFusion may not be able to.
            select.selection = Some(value(Value::Boolean(false)));
            let _: ControlFlow<()> = visit_expressions_mut(&mut select.projection, |expr| {
                let is_subquery = match expr {
                    ast::Expr::Subquery(_) => true,
                    ast::Expr::Function(function) => {
                        matches!(function.args, FunctionArguments::Subquery(_))
                    }
                    _ => false,
                };
                if is_subquery {
                    *expr = value(Value::Null);
                }
                ControlFlow::Continue(())
            });
        }
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
                count_instead_of_exists(expr);
                unnest_series(expr);
            }
        }
        ControlFlow::Continue(())
    }

    fn post_visit_select(&mut self, select: &mut Select) -> ControlFlow<Error> {
        if self.depth == 1 {
            // A regclass is a number that is shown as a name.
            for item in &mut select.projection {
                if let SelectItem::UnnamedExpr(ast::Expr::Function(function))
                | SelectItem::ExprWithAlias { expr: ast::Expr::Function(function), .. } = item
                    && parse::last_part(&function.name).is_ok_and(|name| name == "to_regclass_oid")
                {
                    function.name = ObjectName::from(vec![Ident::new("regclass_name")]);
                }
            }
        }
        if let GroupByExpr::Expressions(exprs, _) = &mut select.group_by {
            exprs.iter_mut().for_each(bare_number);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, name: &mut ObjectName) -> ControlFlow<Error> {
        // The database's own name may stand in front.
        if name.0.len() == 3 {
            name.0.remove(0);
        }
        let first = name.0.first().and_then(ObjectNamePart::as_ident);
        let first = first.map(|ident| ident.value.to_ascii_lowercase()).unwrap_or_default();
        let in_schema = name.0.len() == 2;
        self.asks_catalog |= match in_schema {
            true => matches!(first.as_str(), "pg_catalog" | "information_schema" | "atoll"),
            false => first.starts_with("pg_"),
        };
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<Error> {
        self.one_relation_more()?;
        if let TableFactor::Table { name, alias, args: Some(args), with_ordinality, .. } = factor
            && parse::last_part(name).is_ok_and(|name| name == "unnest")
        {
            let arrays = args.args.iter().map(|arg| match arg {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
                _ => None,
            });
            if let Some(array_exprs) = arrays.collect::<Option<Vec<_>>>() {
                *factor = TableFactor::UNNEST {
                    alias: alias.take(),
                    array_exprs,
                    with_offset: false,
                    with_offset_alias: None,
                    with_ordinality: *with_ordinality,
                };
            }
        }
        if let TableFactor::UNNEST { alias, array_exprs, with_ordinality: false, .. } = factor
            && array_exprs.len() > 1
        {
            return match side_by_side(array_exprs, alias.take()) {
                Ok(derived) => {
                    *factor = derived;
                    ControlFlow::Continue(())
                }
                Err(error) => ControlFlow::Break(error),
            };
        }
        if let TableFactor::Table { name, alias, args: Some(_), .. } = factor {
            // pg_catalog.generate_series(…) AS i: the column has the alias's name too.
            if name.0.len() == 2 {
                name.0.remove(0);
            }
            let function = parse::last_part(name).unwrap_or_default();
            let named = alias.get_or_insert_with(|| TableAlias {
                explicit: true,
                name: Ident::new(function),
                columns: Vec::new(),
                at: None,
            });
            if named.columns.is_empty() {
                named.columns =
                    vec![TableAliasColumnDef { name: named.name.clone(), data_type: None }];
            }
        }
        if let TableFactor::Table { name, alias, args: Some(args), .. } = factor
            && parse::last_part(name).is_ok_and(|name| name != "generate_series")
        {
            return match one_row(name, args, alias.take()) {
                Ok(derived) => {
                    *factor = derived;
                    ControlFlow::Continue(())
                }
                Err(error) => ControlFlow::Break(error),
            };
        }
        ControlFlow::Continue(())
    }

    /// `= ANY (SELECT …)` before the subquery is visited: that would make it a single value.
    fn pre_visit_expr(&mut self, expr: &mut ast::Expr) -> ControlFlow<Error> {
        let (left, op, right, all) = match expr {
            ast::Expr::AnyOp { left, compare_op, right, .. } => (left, compare_op, right, false),
            ast::Expr::AllOp { left, compare_op, right } => (left, compare_op, right, true),
            _ => return ControlFlow::Continue(()),
        };
        if !is_subquery(right) {
            return ControlFlow::Continue(());
        }
        match quantified(left, op, right, all) {
            Ok(Some(new)) => {
                *expr = new;
                ControlFlow::Continue(())
            }
            Ok(None) => {
                let quantifier = if all { "ALL" } else { "ANY" };
                let what = format!("{op} {quantifier} of a subquery");
                ControlFlow::Break(Error::unsupported(what))
            }
            Err(error) => ControlFlow::Break(error),
        }
    }

    fn post_visit_expr(&mut self, expr: &mut ast::Expr) -> ControlFlow<Error> {
        match self.rewrite_expr(expr) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    }
}

impl Rewriter<'_> {
    /// Whether the relation is the catalog of a feature that there is not.
    fn is_always_empty(&self, factor: &TableFactor) -> bool {
        let TableFactor::Table { name, args: None, .. } = factor else { return false };
        let Ok((schema, name)) = parse::qualified(name) else { return false };
        self.view.table(schema.as_deref(), &name).is_none()
            && sql::views::find(schema.as_deref(), &name).is_some_and(|view| view.is_empty())
    }

    fn name_columns(&mut self, select: &mut Select) {
        let top = self.depth == 1;
        let has_wildcard = select.projection.iter().any(|item| {
            matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..))
        });
        let mut taken = HashSet::new();
        for item in &mut select.projection {
            let (expr, name, chosen) = match item {
                SelectItem::UnnamedExpr(expr) => {
                    let plain =
                        matches!(expr, ast::Expr::Identifier(_) | ast::Expr::CompoundIdentifier(_));
                    (expr.clone(), column_name(expr), plain)
                }
                SelectItem::ExprWithAlias { expr, alias } => {
                    (expr.clone(), parse::ident(alias), true)
                }
                _ => continue,
            };
            let fresh = taken.insert(name.clone());
            let is_column = matches!(item, SelectItem::UnnamedExpr(_)) && chosen;
            if chosen && fresh && (is_column || !has_wildcard) {
                continue;
            }
            // A name that the user did not choose must not catch names in ORDER BY, but a
            // derived table's columns are called by theirs.
            let name = if !chosen && !top && fresh {
                name
            } else {
                self.n_marks += 1;
                format!("{name}{MARK}{}", self.n_marks)
            };
            *item = SelectItem::ExprWithAlias { expr, alias: Ident::with_quote('"', name) };
        }
    }

    fn rewrite_expr(&mut self, expr: &mut ast::Expr) -> Result<()> {
        use ast::Expr::*;
        if let Function(function) = expr {
            self.grown_bytes = self.grown_bytes.saturating_add(grown_bytes(function));
        }
        match expr {
            Value(ValueWithSpan { value: ast::Value::Placeholder(name), .. }) => {
                let idx = parameter_idx(name)?;
                let missing = || {
                    let message = format!("there is no parameter ${}", idx + 1);
                    Error::new(state::UNDEFINED_PARAMETER, message)
                };
                match self.parameters {
                    Parameters::Values(types, values) => {
                        let ty = types.get(idx).ok_or_else(missing)?;
                        *expr = literal(values.get(idx).ok_or_else(missing)?, ty)?;
                    }
                    Parameters::Types(types) => {
                        if let Some(ty) = types.get(idx).ok_or_else(missing)? {
                            *expr = literal(&Datum::Null, ty)?;
                        }
                    }
                }
            }
            Value(ValueWithSpan { value: ast::Value::Number(digits, _), .. }) => {
                if digits.parse::<i32>().is_ok() {
                    let digits = std::mem::take(digits);
                    *expr = cast(number(&digits), ast::DataType::Integer(None));
                } else if digits.contains(['e', 'E']) {
                    // DataFusion reads these as floats or not at all.
                    *expr = match digits.parse() {
                        Ok(exact) => literal(&Datum::Numeric(exact), &Type::Numeric(None))?,
                        Err(_) => cast(string(digits), ast::DataType::DoublePrecision),
                    };
                }
            }
            SimilarTo { .. } => return Err(Error::unsupported("SIMILAR TO")),
            Interval(interval) => bare_number(&mut interval.value),
            Collate { expr: inner, .. } => *expr = (**inner).clone(),
            BinaryOp { op, left, right } => {
                if let BinaryOperator::PGCustomBinaryOperator(path) = op {
                    *op = operator(path)?;
                }
                if let (Tuple(a), Tuple(b), BinaryOperator::Eq) = (&**left, &**right, &*op) {
                    *expr = same_tuples(a, b)?;
                }
            }
            InList { expr: left, list, negated } => {
                if let Tuple(a) = &**left {
                    let matches = list.iter().map(|item| match item {
                        Tuple(b) => same_tuples(a, b),
                        _ => Err(Error::unsupported("IN of a row and something that is none")),
                    });
                    let any = any_of(matches.collect::<Result<Vec<_>>>()?, false);
                    *expr = if *negated { not(any) } else { any };
                }
            }
            AnyOp { left, compare_op, right, .. } => {
                if let Some(new) = quantified(left, compare_op, right, false)? {
                    *expr = new;
                }
            }
            AllOp { left, compare_op, right } => {
                if let Some(new) = quantified(left, compare_op, right, true)? {
                    *expr = new;
                }
            }
            Cast { expr: inner, data_type, .. } => {
                if let Some(new) = self.rewrite_cast(inner, data_type) {
                    *expr = new;
                }
            }
            TypedString(ast::TypedString { data_type, value, .. }) => {
                if let Some(text) = value.value.clone().into_string()
                    && is_regclass(data_type)
                {
                    self.asks_catalog = true;
                    *expr = call("to_regclass_oid", vec![string(&text)]);
                }
            }
            // DataFusion joins only what is aggregated to the row outside.
            Subquery(query) => {
                if aggregate_whole(query, "single_value")
                    && let Some(guard) = free_of_outer(query)
                {
                    *expr = when(guard, expr.clone());
                }
            }
            AtTimeZone { timestamp, time_zone } => {
                *expr = call("timezone", vec![(**time_zone).clone(), (**timestamp).clone()]);
            }
            Function(function) => {
                if let Some(new) = self.rewrite_function(function)? {
                    *expr = new;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn rewrite_cast(&mut self, inner: &ast::Expr, data_type: &ast::DataType) -> Option<ast::Expr> {
        if is_regclass(data_type) {
            self.asks_catalog = true;
            return Some(call("to_regclass_oid", vec![inner.clone()]));
        }
        // A cast of one of those to text is its name.
        if let ast::Expr::Function(function) = inner
            && matches!(type_of(data_type), Some(Type::Text | Type::Name | Type::Varchar(_)))
            && parse::last_part(&function.name).is_ok_and(|name| name == "to_regclass_oid")
            && let FunctionArguments::List(list) = &function.args
            && let Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(of))) = list.args.first()
        {
            return Some(call("regclass_name", vec![of.clone()]));
        }
        match type_of(data_type)? {
            // An explicit cast cuts what is too long.
            Type::Varchar(Some(n)) => {
                let text = cast(inner.clone(), ast::DataType::Text);
                Some(call("left", vec![text, number(&n.to_string())]))
            }
            Type::Char(n) if n > 0 => {
                let text = cast(inner.clone(), ast::DataType::Text);
                let cut = call("left", vec![text, number(&n.to_string())]);
                Some(call("rtrim", vec![cut, string(" ")]))
            }
            _ => None,
        }
    }

    fn rewrite_function(&mut self, function: &mut ast::Function) -> Result<Option<ast::Expr>> {
        if function.name.0.len() == 2 {
            let schema = function.name.0[0].as_ident().map(|ident| ident.value.to_lowercase());
            if schema.as_deref() == Some("pg_catalog") {
                function.name.0.remove(0);
            }
        }
        if let Some(WindowType::WindowSpec(WindowSpec { window_frame: Some(frame), .. })) =
            &mut function.over
        {
            for bound in std::iter::once(&mut frame.start_bound).chain(&mut frame.end_bound) {
                if let WindowFrameBound::Preceding(Some(n)) | WindowFrameBound::Following(Some(n)) =
                    bound
                {
                    bare_number(n);
                }
            }
        }
        let name = parse::last_part(&function.name)?;
        self.asks_catalog |= super::functions::asks_catalog(&name);
        if name == "array"
            && let FunctionArguments::Subquery(query) = &function.args
        {
            if let Some(transformed) = transform_of(query) {
                return Ok(Some(transformed));
            }
            let mut query = query.clone();
            if !aggregate_whole(&mut query, "array_agg") {
                return Err(Error::unsupported("ARRAY of a subquery that groups or limits"));
            }
            return Ok(Some(ast::Expr::Subquery(query)));
        }
        if let FunctionArguments::List(list) = &function.args
            && !list.args.is_empty()
        {
            return Ok(match (name.as_str(), &list.args[..]) {
                (
                    "mod",
                    [
                        FunctionArg::Unnamed(FunctionArgExpr::Expr(a)),
                        FunctionArg::Unnamed(FunctionArgExpr::Expr(b)),
                    ],
                ) => {
                    let nested = |expr: &ast::Expr| ast::Expr::Nested(Box::new(expr.clone()));
                    Some(binary(nested(a), BinaryOperator::Modulo, nested(b)))
                }
                ("date_part", _) => {
                    let part = ast::Expr::Function(function.clone());
                    Some(cast(part, ast::DataType::DoublePrecision))
                }
                _ => None,
            });
        }
        let view = self.view;
        let timestamp = |ty: &Type, us: i64| {
            let datum = match ty {
                Type::TimestampTz => Datum::TimestampTz(us),
                Type::Date => Datum::Date(sql::types::datetime::timestamp_to_date(us)),
                Type::Time => Datum::Time(us.rem_euclid(86_400_000_000)),
                _ => Datum::Timestamp(us),
            };
            literal(&datum, ty).map(Some)
        };
        let local = || view.zone.to_local(view.now_us);
        match name.as_str() {
            "now"
            | "current_timestamp"
            | "transaction_timestamp"
            | "statement_timestamp"
            | "clock_timestamp" => timestamp(&Type::TimestampTz, view.now_us),
            "localtimestamp" => timestamp(&Type::Timestamp, local()),
            "current_date" => timestamp(&Type::Date, local()),
            "localtime" | "current_time" => timestamp(&Type::Time, local()),
            "current_user" | "user" | "current_role" => Ok(Some(string(view.user()))),
            "session_user" => Ok(Some(string(&view.session_user))),
            "current_database" | "current_catalog" => Ok(Some(string(&view.database))),
            "current_schema" => {
                let schema = view.search_path.iter().find(|name| *name != "$user");
                Ok(Some(string(schema.map_or("public", String::as_str))))
            }
            "version" => Ok(Some(string(
                &view
                    .setting("server_version")
                    .map_or_else(|| "Atoll".to_owned(), |version| format!("PostgreSQL {version}")),
            ))),
            "pg_backend_pid" => {
                Ok(Some(cast(number(&view.pid.to_string()), ast::DataType::Integer(None))))
            }
            "txid_current" | "pg_current_xact_id" => {
                Ok(Some(cast(number(&view.txn_id.to_string()), ast::DataType::BigInt(None))))
            }
            _ => Ok(None),
        }
    }
}

fn not(expr: ast::Expr) -> ast::Expr {
    ast::Expr::UnaryOp { op: UnaryOperator::Not, expr: Box::new(ast::Expr::Nested(Box::new(expr))) }
}

/// Undoes what was done to an integer literal, where a position or a count is meant.
fn bare_number(expr: &mut ast::Expr) {
    if let ast::Expr::Cast { expr: inner, data_type: ast::DataType::Integer(None), .. } = expr
        && matches!(&**inner, ast::Expr::Value(ValueWithSpan { value: Value::Number(..), .. }))
    {
        *expr = (**inner).clone();
    }
}

/// A series in a list of columns is a row for each value; DataFusion makes it an array.
fn unnest_series(expr: &mut ast::Expr) {
    if let ast::Expr::Function(function) = expr
        && parse::last_part(&function.name).is_ok_and(|name| name == "generate_series")
    {
        *expr = call("unnest", vec![expr.clone()]);
    }
}

/// Whether an INTERSECT or EXCEPT of the query's own body says ALL.
fn keeps_duplicates(body: &SetExpr) -> bool {
    let mut body = body;
    while let SetExpr::SetOperation { op, set_quantifier, left, right } = body {
        let all = matches!(set_quantifier, SetQuantifier::All | SetQuantifier::AllByName);
        if (all && !matches!(op, SetOperator::Union)) || keeps_duplicates(right) {
            return true;
        }
        body = left;
    }
    false
}

fn is_subquery(expr: &ast::Expr) -> bool {
    match expr {
        ast::Expr::Nested(inner) => is_subquery(inner),
        ast::Expr::Subquery(_) => true,
        _ => false,
    }
}

fn is_regclass(ty: &ast::DataType) -> bool {
    match ty {
        ast::DataType::Regclass => true,
        ast::DataType::Custom(name, _) => {
            parse::last_part(name).is_ok_and(|name| name == "regclass")
        }
        _ => false,
    }
}

fn operator(path: &[String]) -> Result<BinaryOperator> {
    let name = path.last().map(String::as_str).unwrap_or_default();
    Ok(match name {
        "~" => BinaryOperator::PGRegexMatch,
        "~*" => BinaryOperator::PGRegexIMatch,
        "!~" => BinaryOperator::PGRegexNotMatch,
        "!~*" => BinaryOperator::PGRegexNotIMatch,
        "~~" => BinaryOperator::PGLikeMatch,
        "~~*" => BinaryOperator::PGILikeMatch,
        "!~~" => BinaryOperator::PGNotLikeMatch,
        "!~~*" => BinaryOperator::PGNotILikeMatch,
        "=" => BinaryOperator::Eq,
        "<>" => BinaryOperator::NotEq,
        "<" => BinaryOperator::Lt,
        "<=" => BinaryOperator::LtEq,
        ">" => BinaryOperator::Gt,
        ">=" => BinaryOperator::GtEq,
        "+" => BinaryOperator::Plus,
        "-" => BinaryOperator::Minus,
        "*" => BinaryOperator::Multiply,
        "/" => BinaryOperator::Divide,
        "||" => BinaryOperator::StringConcat,
        other => return Err(Error::unsupported(format!("the operator {other}"))),
    })
}

/// The disjunction of conditions, or their conjunction.
fn any_of(conditions: Vec<ast::Expr>, all: bool) -> ast::Expr {
    let op = if all { BinaryOperator::And } else { BinaryOperator::Or };
    let joined = conditions.into_iter().reduce(|a, b| binary(a, op.clone(), b));
    let joined = joined.unwrap_or_else(|| value(Value::Boolean(all)));
    ast::Expr::Nested(Box::new(joined))
}

fn same_tuples(a: &[ast::Expr], b: &[ast::Expr]) -> Result<ast::Expr> {
    if a.len() != b.len() {
        let message = "unequal number of entries in row expressions";
        return Err(Error::new(state::SYNTAX_ERROR, message));
    }
    let same = a.iter().zip(b).map(|(a, b)| binary(a.clone(), BinaryOperator::Eq, b.clone()));
    Ok(any_of(same.collect(), true))
}

/// `left op ANY (right)`, or ALL, where `right` can be written out.
fn quantified(
    left: &ast::Expr,
    op: &BinaryOperator,
    right: &ast::Expr,
    all: bool,
) -> Result<Option<ast::Expr>> {
    let mut right = right;
    while let ast::Expr::Nested(inner) = right {
        right = inner;
    }
    let op = match op {
        BinaryOperator::PGCustomBinaryOperator(path) => operator(path)?,
        op => op.clone(),
    };
    let is_eq = matches!((&op, all), (BinaryOperator::Eq, false));
    let is_not_eq = matches!((&op, all), (BinaryOperator::NotEq, true));
    match right {
        ast::Expr::Subquery(query) if is_eq || is_not_eq => Ok(Some(ast::Expr::InSubquery {
            expr: Box::new(left.clone()),
            subquery: query.clone(),
            negated: is_not_eq,
        })),
        // A cast of an array literal: element by element, the comparison finds the type.
        ast::Expr::Cast { expr, .. } if matches!(**expr, ast::Expr::Array(_)) => {
            quantified(left, &op, expr, all)
        }
        ast::Expr::Array(array) => {
            let is_text = |item: &ast::Expr| matches!(item, ast::Expr::Value(v) if matches!(v.value, Value::SingleQuotedString(_)));
            if (is_eq || is_not_eq) && !array.elem.is_empty() && !array.elem.iter().any(is_text) {
                return Ok(Some(ast::Expr::InList {
                    expr: Box::new(left.clone()),
                    list: array.elem.clone(),
                    negated: is_not_eq,
                }));
            }
            let each = array.elem.iter().map(|item| binary(left.clone(), op.clone(), item.clone()));
            Ok(Some(any_of(each.collect(), all)))
        }
        // '{a,b}' as an array.
        ast::Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(text), .. }) => {
            let ty = Type::Array(Box::new(Type::Text));
            let array = text::parse(text, &ty, &sql::types::Zone::UTC)?;
            quantified(left, &op, &literal(&array, &ty)?, all)
        }
        ast::Expr::Cast { expr, data_type, .. } => match (&**expr, type_of(data_type)) {
            (
                ast::Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(text), .. }),
                Some(ty @ Type::Array(_)),
            ) => {
                let array = text::parse(text, &ty, &sql::types::Zone::UTC)?;
                quantified(left, &op, &literal(&array, &ty)?, all)
            }
            // A NULL array: the comparison is unknown.
            (ast::Expr::Value(ValueWithSpan { value: Value::Null, .. }), _) => {
                Ok(Some(cast(value(Value::Null), ast::DataType::Boolean)))
            }
            _ => Ok(None),
        },
        _ => Ok(None),
    }
}

/// `unnest(a, b)`: the arrays get names of their own first. DataFusion names an unnested column
/// after its expression, and two equal ones (parameters not known yet, above all) would be one.
fn side_by_side(arrays: &[ast::Expr], alias: Option<TableAlias>) -> Result<TableFactor> {
    let named: Vec<String> =
        arrays.iter().enumerate().map(|(n, array)| format!("{array} AS array{n}")).collect();
    let taken: Vec<String> =
        (0..arrays.len()).map(|n| format!("unnest(arrays.array{n}) AS unnest")).collect();
    let sql = format!("SELECT {} FROM (SELECT {}) AS arrays", taken.join(", "), named.join(", "));
    let parse::Statement::Query(subquery) = parse::parse(&sql)? else {
        return Err(Error::internal("a query did not parse as one"));
    };
    let alias = alias.or_else(|| {
        Some(TableAlias {
            explicit: true,
            name: Ident::new("unnest"),
            columns: Vec::new(),
            at: None,
        })
    });
    Ok(TableFactor::Derived { lateral: false, subquery, alias, sample: None })
}

/// `FROM f(x)` of a function that returns one value: a table of one row.
fn one_row(
    name: &ast::ObjectName,
    args: &ast::TableFunctionArgs,
    alias: Option<TableAlias>,
) -> Result<TableFactor> {
    let list: Vec<String> = args.args.iter().map(ToString::to_string).collect();
    let parse::Statement::Query(subquery) =
        parse::parse(&format!("SELECT {name}({})", list.join(", ")))?
    else {
        return Err(Error::internal("a query did not parse as one"));
    };
    Ok(TableFactor::Derived { lateral: false, subquery, alias, sample: None })
}
