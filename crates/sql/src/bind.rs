//! Names and types: from a syntax tree's expressions to [`Expr`]s.
//!
//! PostgreSQL's rule for what has no type of its own, string literals and parameters, is kept:
//! such an operand is *unknown* until its neighbour says what it must be; then a literal is read as
//! that type and a parameter takes it for good. An unknown that meets only unknowns is text.
//!
//! Whatever the binder does not know it reports as "not supported" (0A000): a query then goes to
//! DataFusion, and only what cannot go there is refused for real.

mod functions;
mod operators;

pub use functions::no_function;
pub use operators::{comparison, temporal};

use crate::catalog::Table;
use crate::error::{Error, Result, state};
use crate::expr::{Comparison, Expr, Function};
use crate::parse;
use crate::types::cast::{self, Context as CastContext};
use crate::types::{Datum, Type, Zone, text};
use sqlparser::ast;
use std::collections::HashMap;

/// A bound expression and its type.
#[derive(Clone, Debug)]
pub struct Bound {
    pub expr: Expr,
    pub ty: Type,
}

/// The columns that an expression may name, by their positions in the row at hand.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    columns: Vec<ScopeColumn>,
}

#[derive(Clone, Debug)]
struct ScopeColumn {
    schema: String,
    relation: String,
    name: String,
    ty: Type,
    idx: usize,
    /// Found without its relation's name too.
    bare: bool,
}

impl Scope {
    pub fn empty() -> Scope {
        Scope::default()
    }

    /// A table's columns, under its alias if it has one, at positions from `first`.
    pub fn add(&mut self, table: &Table, alias: Option<&str>, first: usize, bare: bool) {
        for (idx, column) in table.columns.iter().enumerate() {
            self.columns.push(ScopeColumn {
                // An alias hides the table's own name, and with it the schema.
                schema: if alias.is_some() { String::new() } else { table.schema.clone() },
                relation: alias.unwrap_or(&table.name).to_owned(),
                name: column.name.clone(),
                ty: column.ty.clone(),
                idx: first + idx,
                bare,
            });
        }
    }

    fn find(&self, parts: &[String]) -> Result<(usize, &Type)> {
        let shown = parts.join(".");
        let missing = || {
            let error = match parts {
                [name] => format!("column \"{name}\" does not exist"),
                _ if parts.len() >= 2
                    && !self.columns.iter().any(|c| c.relation == parts[parts.len() - 2]) =>
                {
                    let relation = &parts[parts.len() - 2];
                    return Error::new(
                        state::UNDEFINED_TABLE,
                        format!("missing FROM-clause entry for table \"{relation}\""),
                    );
                }
                _ => format!("column {shown} does not exist"),
            };
            Error::new(state::UNDEFINED_COLUMN, error)
        };
        let mut found = self.columns.iter().filter(|column| match parts {
            [name] => column.bare && column.name == *name,
            [relation, name] => column.relation == *relation && column.name == *name,
            [schema, relation, name] => {
                column.schema == *schema && column.relation == *relation && column.name == *name
            }
            _ => false,
        });
        let first = found.next().ok_or_else(missing)?;
        if found.next().is_some() {
            return Err(Error::new(
                state::AMBIGUOUS_COLUMN,
                format!("column reference \"{shown}\" is ambiguous"),
            ));
        }
        Ok((first.idx, &first.ty))
    }
}

/// Something that a statement computes before it looks at rows.
#[derive(Clone, Debug)]
pub struct Slot {
    pub kind: SlotKind,
    pub args: Vec<Expr>,
    pub ty: Type,
}

#[derive(Clone, Debug)]
pub enum SlotKind {
    /// One value per row.
    NextVal,
    /// The same for a sequence known by its id: a column's own.
    NextOf(u32),
    CurrVal,
    LastVal,
    SetVal,
    ExportSnapshot,
    /// `set_config(name, value, is_local)`: set once the statement has run.
    SetConfig,
    Sleep,
    /// `(SELECT …)`: one value, NULL without a row.
    Scalar(Box<ast::Query>),
    /// `EXISTS (SELECT …)`.
    Exists(Box<ast::Query>),
    /// `x IN (SELECT …)`: all values as an array.
    List(Box<ast::Query>),
}

/// Parameters' types, filled in as they become known.
#[derive(Clone, Debug, Default)]
pub struct Params {
    pub types: Vec<Option<Type>>,
}

impl Params {
    /// The final types: what nothing decided is text.
    pub fn finish(self) -> Vec<Type> {
        self.types.into_iter().map(|ty| ty.unwrap_or(Type::Text)).collect()
    }
}

pub struct Binder<'a> {
    pub scope: &'a Scope,
    pub params: &'a mut Params,
    pub slots: &'a mut Vec<Slot>,
    /// The type of the one column of each subquery that was described beforehand, by its text.
    pub subqueries: &'a HashMap<String, Type>,
}

fn no_operator(op: &str, left: &Type, right: &Type) -> Error {
    Error::new(
        state::UNDEFINED_FUNCTION,
        format!("operator does not exist: {} {op} {}", left.base_name(), right.base_name()),
    )
    .hint(
        "No operator matches the given name and argument types. You might need to add explicit type casts.",
    )
}

impl Binder<'_> {
    pub fn bind(&mut self, expr: &ast::Expr) -> Result<Bound> {
        use ast::Expr as E;
        match expr {
            E::Identifier(name) => self.name(&[parse::ident(name)], name.quote_style.is_none()),
            E::CompoundIdentifier(parts) => {
                let parts: Vec<String> = parts.iter().map(parse::ident).collect();
                self.name(&parts, false)
            }
            E::Nested(inner) => self.bind(inner),
            E::Value(value) => self.literal(&value.value),
            E::TypedString(typed) => {
                let ty = parse::type_of(&typed.data_type)?;
                let value = self.literal(&typed.value.value)?;
                self.cast_to(value, &ty)
            }
            E::Cast { expr, data_type, kind, .. } => {
                if matches!(kind, ast::CastKind::TryCast | ast::CastKind::SafeCast) {
                    return Err(Error::unsupported("TRY_CAST"));
                }
                if matches!(data_type, ast::DataType::Regclass) {
                    return self.regclass(expr);
                }
                let ty = parse::type_of(data_type)?;
                if ty == Type::Oid {
                    return Err(Error::unsupported("a cast to an object identifier"));
                }
                let value = self.bind(expr)?;
                self.cast_to(value, &ty)
            }
            E::Interval(interval) => self.interval(interval),
            E::UnaryOp { op, expr } => self.unary(op, expr),
            E::BinaryOp { left, op, right } => self.binary(left, op, right),
            E::IsNull(inner) => self.is_null(inner, false),
            E::IsNotNull(inner) => self.is_null(inner, true),
            E::IsTrue(inner) => self.is_truth(inner, true, false),
            E::IsNotTrue(inner) => self.is_truth(inner, true, true),
            E::IsFalse(inner) => self.is_truth(inner, false, false),
            E::IsNotFalse(inner) => self.is_truth(inner, false, true),
            E::IsUnknown(inner) => self.is_null(inner, false),
            E::IsNotUnknown(inner) => self.is_null(inner, true),
            E::IsDistinctFrom(left, right) => self.is_distinct(left, right, false),
            E::IsNotDistinctFrom(left, right) => self.is_distinct(left, right, true),
            E::Between { expr, negated, low, high } => {
                let above = self.compare(expr, Comparison::GtEq, low)?;
                let below = self.compare(expr, Comparison::LtEq, high)?;
                let both = Expr::And(vec![above.expr, below.expr]);
                let expr = if *negated { Expr::Not(Box::new(both)) } else { both };
                Ok(Bound { expr, ty: Type::Bool })
            }
            E::InList { expr, list, negated } => self.in_list(expr, list, *negated),
            E::InSubquery { expr, subquery, negated } => self.in_subquery(expr, subquery, *negated),
            E::Exists { subquery, negated } => {
                self.subquery_type(subquery)?;
                let slot = self.slot(SlotKind::Exists(subquery.clone()), Vec::new(), Type::Bool);
                let expr = if *negated { Expr::Not(Box::new(slot.expr)) } else { slot.expr };
                Ok(Bound { expr, ty: Type::Bool })
            }
            E::Subquery(query) => {
                let ty = self.subquery_type(query)?;
                Ok(self.slot(SlotKind::Scalar(query.clone()), Vec::new(), ty))
            }
            E::AnyOp { left, compare_op, right, .. } => {
                self.quantified(left, compare_op, right, false)
            }
            E::AllOp { left, compare_op, right } => self.quantified(left, compare_op, right, true),
            E::Like { negated, expr, pattern, escape_char, any: false } => {
                self.like(expr, pattern, escape_char.as_ref(), *negated, false)
            }
            E::ILike { negated, expr, pattern, escape_char, any: false } => {
                self.like(expr, pattern, escape_char.as_ref(), *negated, true)
            }
            E::Case { operand, conditions, else_result, .. } => {
                self.case(operand.as_deref(), conditions, else_result.as_deref())
            }
            E::Function(function) => self.function(function),
            E::Array(array) => self.array(&array.elem),
            E::Ceil {
                expr,
                field: ast::CeilFloorKind::DateTimeField(ast::DateTimeField::NoDateTime),
            } => self.call("ceil", vec![(**expr).clone()]),
            E::Floor {
                expr,
                field: ast::CeilFloorKind::DateTimeField(ast::DateTimeField::NoDateTime),
            } => self.call("floor", vec![(**expr).clone()]),
            E::Substring { expr, substring_from, substring_for, .. } => {
                let one = || ast::Expr::value(ast::Value::Number("1".into(), false));
                let from = substring_from.as_deref().cloned().unwrap_or_else(one);
                let mut args = vec![(**expr).clone(), from];
                args.extend(substring_for.as_deref().cloned());
                self.call("substring", args)
            }
            E::Position { expr, r#in } => {
                self.call("strpos", vec![(**r#in).clone(), (**expr).clone()])
            }
            E::Trim { trim_where, trim_what: None, expr, trim_characters: None } => {
                let name = match trim_where {
                    Some(ast::TrimWhereField::Leading) => "ltrim",
                    Some(ast::TrimWhereField::Trailing) => "rtrim",
                    _ => "btrim",
                };
                self.call(name, vec![(**expr).clone()])
            }
            E::Extract { field, expr, .. } => {
                let field = match field {
                    ast::DateTimeField::Custom(word) => word.value.clone(),
                    known => known.to_string().to_lowercase(),
                };
                let field = ast::Expr::value(ast::Value::SingleQuotedString(field));
                self.call("extract", vec![field, (**expr).clone()])
            }
            other => Err(Error::unsupported(format!("the expression {other}"))),
        }
    }

    /// Binds an expression that must become a value of `ty` in the given context.
    pub fn bind_as(&mut self, expr: &ast::Expr, ty: &Type, context: CastContext) -> Result<Expr> {
        let bound = self.bind(expr)?;
        self.coerce(bound, ty, context)
    }

    /// A condition.
    pub fn condition(&mut self, expr: &ast::Expr, clause: &str) -> Result<Expr> {
        let bound = self.bind(expr)?;
        match bound.ty {
            Type::Bool | Type::Unknown => self.coerce(bound, &Type::Bool, CastContext::Implicit),
            other => Err(Error::new(
                state::DATATYPE_MISMATCH,
                format!(
                    "argument of {clause} must be type boolean, not type {}",
                    other.base_name()
                ),
            )),
        }
    }

    // ---- leaves

    fn name(&mut self, parts: &[String], bare_word: bool) -> Result<Bound> {
        match self.scope.find(parts) {
            Ok((idx, ty)) => Ok(Bound { expr: Expr::Column(idx), ty: ty.clone() }),
            // CURRENT_DATE and its kin are words without parentheses.
            Err(error) => match parts {
                [word] if bare_word && is_keyword_function(word) => self.call(word, Vec::new()),
                _ => Err(error),
            },
        }
    }

    fn literal(&mut self, value: &ast::Value) -> Result<Bound> {
        let known = |datum: Datum, ty: Type| Ok(Bound { expr: Expr::Const(datum), ty });
        match value {
            ast::Value::Null => known(Datum::Null, Type::Unknown),
            ast::Value::Boolean(value) => known(Datum::Bool(*value), Type::Bool),
            ast::Value::Number(digits, _) => {
                if let Ok(value) = digits.parse::<i32>() {
                    known(Datum::Int4(value), Type::Int4)
                } else if let Ok(value) = digits.parse::<i64>() {
                    known(Datum::Int8(value), Type::Int8)
                } else {
                    let ty = Type::Numeric(None);
                    match text::parse(digits, &ty, &Zone::UTC) {
                        // What a numeric cannot hold here is a float.
                        Err(_) if digits.contains(['e', 'E']) => {
                            known(text::parse(digits, &Type::Float8, &Zone::UTC)?, Type::Float8)
                        }
                        value => known(value?, ty),
                    }
                }
            }
            ast::Value::SingleQuotedString(text)
            | ast::Value::EscapedStringLiteral(text)
            | ast::Value::UnicodeStringLiteral(text)
            | ast::Value::NationalStringLiteral(text) => known(Datum::text(text), Type::Unknown),
            ast::Value::DollarQuotedString(text) => known(Datum::text(&text.value), Type::Unknown),
            ast::Value::Placeholder(name) => {
                let idx = parameter_idx(name)?;
                if self.params.types.len() <= idx {
                    self.params.types.resize(idx + 1, None);
                }
                let ty = self.params.types[idx].clone().unwrap_or(Type::Unknown);
                Ok(Bound { expr: Expr::Param(idx), ty })
            }
            other => Err(Error::unsupported(format!("the literal {other}"))),
        }
    }

    fn interval(&mut self, interval: &ast::Interval) -> Result<Bound> {
        let ast::Expr::Value(value) = &*interval.value else {
            return Err(Error::unsupported("an interval that is not a literal"));
        };
        let ast::Value::SingleQuotedString(amount) = &value.value else {
            return Err(Error::unsupported("an interval that is not a string"));
        };
        let shown = match (&interval.leading_field, &interval.last_field) {
            (None, _) => amount.clone(),
            (Some(field), None) => format!("{amount} {field}"),
            _ => return Err(Error::unsupported("an interval of several fields")),
        };
        let datum = text::parse(&shown, &Type::Interval, &Zone::UTC)?;
        Ok(Bound { expr: Expr::Const(datum), ty: Type::Interval })
    }

    /// `'t'::regclass` as the argument of nextval and its kin stays the name.
    fn regclass(&mut self, expr: &ast::Expr) -> Result<Bound> {
        let inner = self.bind(expr)?;
        match inner.ty {
            Type::Unknown | Type::Text => Ok(Bound { expr: inner.expr, ty: Type::Unknown }),
            _ => Err(Error::unsupported("a cast to regclass")),
        }
    }

    fn slot(&mut self, kind: SlotKind, args: Vec<Expr>, ty: Type) -> Bound {
        self.slots.push(Slot { kind, args, ty: ty.clone() });
        Bound { expr: Expr::Slot(self.slots.len() - 1), ty }
    }

    fn subquery_type(&self, query: &ast::Query) -> Result<Type> {
        self.subqueries
            .get(&query.to_string())
            .cloned()
            .ok_or_else(|| Error::unsupported("a subquery here"))
    }

    // ---- types

    /// Makes a bound expression a value of `ty`, if the context allows it.
    pub fn coerce(&mut self, bound: Bound, ty: &Type, context: CastContext) -> Result<Expr> {
        if bound.ty == *ty && !matches!(bound.ty, Type::Unknown) {
            return Ok(bound.expr);
        }
        if bound.ty == Type::Unknown {
            return self.settle(bound.expr, ty);
        }
        match cast::context(&bound.ty, ty) {
            Some(needed) if needed <= context => {
                let explicit = context == CastContext::Explicit;
                if is_free(&bound.ty, ty) {
                    return Ok(bound.expr);
                }
                Ok(Expr::Cast {
                    expr: Box::new(bound.expr),
                    from: bound.ty,
                    to: ty.clone(),
                    explicit,
                })
            }
            _ => Err(Error::new(
                state::CANNOT_COERCE,
                format!("cannot cast type {} to {}", bound.ty.base_name(), ty.base_name()),
            )),
        }
    }

    /// Gives an unknown its type.
    fn settle(&mut self, expr: Expr, ty: &Type) -> Result<Expr> {
        match expr {
            Expr::Param(idx) => {
                let slot = &mut self.params.types[idx];
                match slot {
                    None => *slot = Some(parameter_type(ty)),
                    Some(known) if known == ty => {}
                    Some(known) => {
                        let from = known.clone();
                        let param = Bound { expr: Expr::Param(idx), ty: from.clone() };
                        if cast::context(&from, ty).is_none() {
                            return Err(Error::new(
                                state::AMBIGUOUS_PARAMETER,
                                format!("inconsistent types deduced for parameter ${}", idx + 1),
                            ));
                        }
                        return self.coerce(param, ty, CastContext::Assignment);
                    }
                }
                let settled = parameter_type(ty);
                if settled == *ty {
                    Ok(Expr::Param(idx))
                } else {
                    let param = Bound { expr: Expr::Param(idx), ty: settled };
                    self.coerce(param, ty, CastContext::Assignment)
                }
            }
            Expr::Const(Datum::Null) => Ok(Expr::Const(Datum::Null)),
            // In the session's zone, so not before it runs.
            Expr::Const(datum @ Datum::Text(_)) if reads_zone(ty) => Ok(Expr::Cast {
                expr: Box::new(Expr::Const(datum)),
                from: Type::Unknown,
                to: ty.clone(),
                explicit: false,
            }),
            Expr::Const(Datum::Text(literal)) => {
                Ok(Expr::Const(text::parse(&literal, ty, &Zone::UTC)?))
            }
            other => Ok(other),
        }
    }

    fn cast_to(&mut self, bound: Bound, ty: &Type) -> Result<Bound> {
        // An explicit cast of a literal cuts what is too long; reading it would refuse.
        let cuts = matches!(ty, Type::Varchar(Some(_)) | Type::Char(_));
        let expr = match (&bound.ty, &bound.expr) {
            (Type::Unknown, Expr::Const(Datum::Text(_))) if cuts => Expr::Cast {
                expr: Box::new(bound.expr),
                from: Type::Text,
                to: ty.clone(),
                explicit: true,
            },
            _ => self.coerce(bound, ty, CastContext::Explicit)?,
        };
        Ok(Bound { expr, ty: ty.clone() })
    }

    /// Brings two operands to a common type. Numbers of different types stay as they are: they
    /// compare by value.
    fn unify(&mut self, op: &str, left: Bound, right: Bound) -> Result<(Expr, Expr, Type)> {
        if left.ty == Type::Unknown && right.ty == Type::Unknown {
            let left = self.settle(left.expr, &Type::Text)?;
            let right = self.settle(right.expr, &Type::Text)?;
            return Ok((left, right, Type::Text));
        }
        let common = cast::common(&left.ty, &right.ty)
            .ok_or_else(|| no_operator(op, &left.ty, &right.ty))?;
        if left.ty.is_number() && right.ty.is_number() {
            return Ok((left.expr, right.expr, common));
        }
        // A literal beside a column is read as the column's kind without its length.
        let common = match common {
            Type::Varchar(_) => Type::Text,
            Type::Char(_) => Type::Char(0),
            Type::Numeric(_) => Type::Numeric(None),
            other => other,
        };
        let left = self.comparable(left, &common)?;
        let right = self.comparable(right, &common)?;
        Ok((left, right, common))
    }

    /// Makes an operand of a comparison a value of `ty`. No comparison of times fails: what a cast
    /// would refuse stands for the nearest timestamp there is.
    fn comparable(&mut self, bound: Bound, ty: &Type) -> Result<Expr> {
        let function = match (&bound.ty, ty) {
            (Type::Date, Type::Timestamp) => Function::NearestTimestamp,
            (Type::Date | Type::Timestamp, Type::TimestampTz) => Function::NearestTimestampTz,
            _ => return self.coerce(bound, ty, CastContext::Implicit),
        };
        Ok(Expr::Call { function, args: vec![bound.expr] })
    }
}

/// Types whose values are alike, so that a cast between them does nothing.
fn is_free(from: &Type, to: &Type) -> bool {
    match (from, to) {
        (Type::Numeric(_), Type::Numeric(None)) => true,
        (from, Type::Text | Type::Varchar(None)) => from.is_text(),
        (Type::Char(_), Type::Char(0)) => true,
        (from, Type::Name) => from.is_text(),
        (a, b) => a == b,
    }
}

/// Parameters carry no length: it is the column that checks it.
fn parameter_type(ty: &Type) -> Type {
    match ty {
        Type::Numeric(_) => Type::Numeric(None),
        Type::Varchar(_) => Type::Varchar(None),
        Type::Char(_) => Type::Char(0),
        Type::Unknown => Type::Text,
        other => other.clone(),
    }
}

fn reads_zone(ty: &Type) -> bool {
    match ty {
        Type::TimestampTz => true,
        Type::Array(element) => reads_zone(element),
        _ => false,
    }
}

fn is_keyword_function(word: &str) -> bool {
    matches!(
        word,
        "current_date"
            | "current_timestamp"
            | "localtimestamp"
            | "current_user"
            | "session_user"
            | "user"
            | "current_role"
            | "current_catalog"
            | "current_schema"
    )
}

fn parameter_idx(name: &str) -> Result<usize> {
    let number = name.strip_prefix('$').and_then(|digits| digits.parse::<usize>().ok());
    match number {
        Some(number @ 1..=65_535) => Ok(number - 1),
        _ => Err(Error::new(state::UNDEFINED_PARAMETER, format!("there is no parameter {name}"))),
    }
}

/// The name that a column of a result gets from its expression.
pub fn column_name(expr: &ast::Expr) -> String {
    match expr {
        ast::Expr::Identifier(name) => parse::ident(name),
        ast::Expr::CompoundIdentifier(parts) => parts.last().map(parse::ident).unwrap_or_default(),
        ast::Expr::Function(function) => {
            parse::last_part(&function.name).unwrap_or_else(|_| "?column?".to_owned())
        }
        ast::Expr::Cast { expr, data_type, .. } => match column_name(expr) {
            name if name == "?column?" => {
                parse::type_of(data_type).map_or(name, |ty| ty.short_name())
            }
            name => name,
        },
        ast::Expr::TypedString(typed) => parse::type_of(&typed.data_type)
            .map_or_else(|_| "?column?".to_owned(), |ty| ty.short_name()),
        ast::Expr::Nested(inner) => column_name(inner),
        ast::Expr::Case { else_result, .. } => match else_result.as_deref().map(column_name) {
            Some(name) if name != "?column?" => name,
            _ => "case".to_owned(),
        },
        ast::Expr::Value(value) if matches!(value.value, ast::Value::Boolean(_)) => "bool".into(),
        ast::Expr::Interval(_) => "interval".to_owned(),
        ast::Expr::Array(_) => "array".to_owned(),
        ast::Expr::Exists { .. } => "exists".to_owned(),
        ast::Expr::Extract { .. } => "extract".to_owned(),
        ast::Expr::Substring { .. } => "substring".to_owned(),
        ast::Expr::Position { .. } => "position".to_owned(),
        ast::Expr::Trim { .. } => "btrim".to_owned(),
        ast::Expr::Ceil { .. } => "ceil".to_owned(),
        ast::Expr::Floor { .. } => "floor".to_owned(),
        _ => "?column?".to_owned(),
    }
}
