//! Names and types: from a syntax tree's expressions to [`Expr`]s.
//!
//! PostgreSQL's rule for what has no type of its own, string literals and parameters, is kept:
//! such an operand is *unknown* until its neighbour says what it must be; then a literal is read as
//! that type and a parameter takes it for good. An unknown that meets only unknowns is text.
//!
//! Whatever the binder does not know it reports as "not supported" (0A000): a query then goes to
//! DataFusion, and only what cannot go there is refused for real.

use crate::catalog::Table;
use crate::error::{Error, Result, state};
use crate::expr::{Arithmetic, Comparison, Expr, lookup};
use crate::parse;
use crate::types::cast::{self, Context as CastContext};
use crate::types::{Datum, Type, Zone, text};
use datafusion::sql::sqlparser::ast;
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
                let field = field.to_string().to_lowercase();
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
                [word] if bare_word && lookup(word, &[]).is_some() && is_keyword_function(word) => {
                    self.call(word, Vec::new())
                }
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
                    known(text::parse(digits, &ty, &Zone::UTC)?, ty)
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
        let left = self.coerce(left, &common, CastContext::Implicit)?;
        let right = self.coerce(right, &common, CastContext::Implicit)?;
        Ok((left, right, common))
    }

    // ---- operators

    fn unary(&mut self, op: &ast::UnaryOperator, expr: &ast::Expr) -> Result<Bound> {
        match op {
            ast::UnaryOperator::Not => {
                let inner = self.condition(expr, "NOT")?;
                Ok(Bound { expr: Expr::Not(Box::new(inner)), ty: Type::Bool })
            }
            ast::UnaryOperator::Plus => self.bind(expr),
            ast::UnaryOperator::Minus => {
                // The smallest integers have no positive counterpart to negate.
                if let ast::Expr::Value(value) = expr
                    && let ast::Value::Number(digits, long) = &value.value
                {
                    return self.literal(&ast::Value::Number(format!("-{digits}"), *long));
                }
                let inner = self.bind(expr)?;
                if !(inner.ty.is_number() || inner.ty == Type::Interval) {
                    return Err(Error::unsupported("the operator - on this operand"));
                }
                let ty = match inner.ty {
                    Type::Numeric(_) => Type::Numeric(None),
                    other => other,
                };
                Ok(Bound { expr: Expr::Negate(Box::new(inner.expr)), ty })
            }
            other => Err(Error::unsupported(format!("the operator {other}"))),
        }
    }

    fn binary(
        &mut self,
        left: &ast::Expr,
        op: &ast::BinaryOperator,
        right: &ast::Expr,
    ) -> Result<Bound> {
        use ast::BinaryOperator as B;
        if let Some(op) = comparison(op) {
            return self.compare(left, op, right);
        }
        let arithmetic = match op {
            B::And | B::Or => {
                let mut list = Vec::new();
                self.flatten(left, op, &mut list)?;
                self.flatten(right, op, &mut list)?;
                let expr = if *op == B::And { Expr::And(list) } else { Expr::Or(list) };
                return Ok(Bound { expr, ty: Type::Bool });
            }
            B::PGLikeMatch => return self.like(left, right, None, false, false),
            B::PGNotLikeMatch => return self.like(left, right, None, true, false),
            B::PGILikeMatch => return self.like(left, right, None, false, true),
            B::PGNotILikeMatch => return self.like(left, right, None, true, true),
            B::Plus => Arithmetic::Add,
            B::Minus => Arithmetic::Subtract,
            B::Multiply => Arithmetic::Multiply,
            B::Divide => Arithmetic::Divide,
            B::Modulo => Arithmetic::Modulo,
            B::StringConcat => return self.concat(left, right),
            B::BitwiseAnd => Arithmetic::BitAnd,
            B::BitwiseOr => Arithmetic::BitOr,
            B::PGBitwiseXor => Arithmetic::BitXor,
            B::PGBitwiseShiftLeft => Arithmetic::ShiftLeft,
            B::PGBitwiseShiftRight => Arithmetic::ShiftRight,
            other => return Err(Error::unsupported(format!("the operator {other}"))),
        };
        let (left, right) = (self.bind(left)?, self.bind(right)?);
        self.arithmetic(arithmetic, left, right, &op.to_string())
    }

    fn flatten(
        &mut self,
        expr: &ast::Expr,
        op: &ast::BinaryOperator,
        list: &mut Vec<Expr>,
    ) -> Result<()> {
        match expr {
            ast::Expr::BinaryOp { left, op: inner, right } if inner == op => {
                self.flatten(left, op, list)?;
                self.flatten(right, op, list)
            }
            ast::Expr::Nested(inner) => self.flatten(inner, op, list),
            other => {
                let clause = if *op == ast::BinaryOperator::And { "AND" } else { "OR" };
                list.push(self.condition(other, clause)?);
                Ok(())
            }
        }
    }

    fn arithmetic(
        &mut self,
        op: Arithmetic,
        left: Bound,
        right: Bound,
        shown: &str,
    ) -> Result<Bound> {
        let bits = matches!(
            op,
            Arithmetic::BitAnd
                | Arithmetic::BitOr
                | Arithmetic::BitXor
                | Arithmetic::ShiftLeft
                | Arithmetic::ShiftRight
        );
        let plain = |ty: Type| match ty {
            Type::Numeric(_) => Type::Numeric(None),
            other => other,
        };
        let (lt, rt) = (plain(left.ty.clone()), plain(right.ty.clone()));
        let number = |ty: &Type| ty.is_number() || *ty == Type::Unknown;
        if number(&lt) && number(&rt) {
            let common = match (&lt, &rt) {
                (Type::Unknown, Type::Unknown) => {
                    return Err(Error::unsupported(
                        "an operator between operands of unknown types",
                    ));
                }
                _ => cast::common(&lt, &rt).ok_or_else(|| no_operator(shown, &lt, &rt))?,
            };
            if common == Type::Oid || (bits && !common.is_integer()) {
                return Err(no_operator(shown, &lt, &rt));
            }
            if op == Arithmetic::Modulo && matches!(common, Type::Float4 | Type::Float8) {
                return Err(no_operator(shown, &lt, &rt));
            }
            let left = self.coerce(left, &common, CastContext::Implicit)?;
            let right = self.coerce(right, &common, CastContext::Implicit)?;
            let expr = Expr::Arithmetic { op, left: Box::new(left), right: Box::new(right) };
            return Ok(Bound { expr, ty: common });
        }
        // An unknown beside a date or time: an interval where only that makes sense.
        let guess = |known: &Type| match (op, known) {
            (Arithmetic::Add, Type::Date) => Type::Int4,
            (Arithmetic::Add, _) => Type::Interval,
            (Arithmetic::Multiply | Arithmetic::Divide, _) => Type::Float8,
            (_, known) => known.clone(),
        };
        let (left, right) = match (&lt, &rt) {
            (Type::Unknown, _) => {
                let ty = guess(&rt);
                let expr = self.settle(left.expr, &ty)?;
                (Bound { expr, ty }, right)
            }
            (_, Type::Unknown) => {
                let ty = guess(&lt);
                let expr = self.settle(right.expr, &ty)?;
                (left, Bound { expr, ty })
            }
            _ => (left, right),
        };
        use Arithmetic::{Add, Divide, Multiply, Subtract};
        use Type as T;
        let ty = match (op, &left.ty, &right.ty) {
            (Add | Subtract, T::Date, T::Int2 | T::Int4 | T::Int8) => T::Date,
            (Add, T::Int2 | T::Int4 | T::Int8, T::Date) => T::Date,
            (Subtract, T::Date, T::Date) => T::Int4,
            (Add, T::Date, T::Time) | (Add, T::Time, T::Date) => T::Timestamp,
            (Add | Subtract, T::Date | T::Timestamp, T::Interval) => T::Timestamp,
            (Add, T::Interval, T::Date | T::Timestamp) => T::Timestamp,
            (Add | Subtract, T::TimestampTz, T::Interval) | (Add, T::Interval, T::TimestampTz) => {
                T::TimestampTz
            }
            (Subtract, T::Timestamp, T::Timestamp) | (Subtract, T::TimestampTz, T::TimestampTz) => {
                T::Interval
            }
            (
                Subtract,
                T::Timestamp | T::TimestampTz | T::Date,
                T::Timestamp | T::TimestampTz | T::Date,
            ) => {
                let common = cast::common(&left.ty, &right.ty)
                    .ok_or_else(|| no_operator(shown, &lt, &rt))?;
                let left = self.coerce(left, &common, CastContext::Implicit)?;
                let right = self.coerce(right, &common, CastContext::Implicit)?;
                let expr = Expr::Arithmetic { op, left: Box::new(left), right: Box::new(right) };
                return Ok(Bound { expr, ty: T::Interval });
            }
            (Add | Subtract, T::Interval, T::Interval) => T::Interval,
            (Multiply, T::Interval, n) | (Multiply, n, T::Interval) if n.is_number() => T::Interval,
            (Divide, T::Interval, n) if n.is_number() => T::Interval,
            (Add | Subtract, T::Time, T::Interval) | (Add, T::Interval, T::Time) => T::Time,
            (Subtract, T::Time, T::Time) => T::Interval,
            _ => return Err(no_operator(shown, &lt, &rt)),
        };
        let expr = Expr::Arithmetic { op, left: Box::new(left.expr), right: Box::new(right.expr) };
        Ok(Bound { expr, ty })
    }

    fn concat(&mut self, left: &ast::Expr, right: &ast::Expr) -> Result<Bound> {
        let (left, right) = (self.bind(left)?, self.bind(right)?);
        let ty = match (&left.ty, &right.ty) {
            (Type::Array(_), _) | (_, Type::Array(_)) => {
                return Err(Error::unsupported("concatenation of arrays"));
            }
            (Type::Bytea, Type::Bytea | Type::Unknown) | (Type::Unknown, Type::Bytea) => {
                Type::Bytea
            }
            (a, b)
                if a.is_text() || b.is_text() || (*a == Type::Unknown && *b == Type::Unknown) =>
            {
                Type::Text
            }
            (a, b) => return Err(no_operator("||", a, b)),
        };
        let left = self.coerce(left, &ty, CastContext::Assignment)?;
        let right = self.coerce(right, &ty, CastContext::Assignment)?;
        let expr = Expr::Arithmetic {
            op: Arithmetic::Concat,
            left: Box::new(left),
            right: Box::new(right),
        };
        Ok(Bound { expr, ty })
    }

    fn compare(&mut self, left: &ast::Expr, op: Comparison, right: &ast::Expr) -> Result<Bound> {
        if let (ast::Expr::Tuple(lefts), ast::Expr::Tuple(rights)) = (left, right) {
            if op != Comparison::Eq || lefts.len() != rights.len() {
                return Err(Error::unsupported("this comparison of rows"));
            }
            let each = lefts.iter().zip(rights);
            let list = each
                .map(|(left, right)| self.compare(left, op, right).map(|bound| bound.expr))
                .collect::<Result<Vec<_>>>()?;
            return Ok(Bound { expr: Expr::And(list), ty: Type::Bool });
        }
        let (left, right) = (self.bind(left)?, self.bind(right)?);
        let (left, right, _) = self.unify(sign(op), left, right)?;
        let expr = Expr::Compare { op, left: Box::new(left), right: Box::new(right) };
        Ok(Bound { expr, ty: Type::Bool })
    }

    fn is_null(&mut self, inner: &ast::Expr, negated: bool) -> Result<Bound> {
        let inner = self.bind(inner)?;
        let ty = if inner.ty == Type::Unknown { Type::Text } else { inner.ty.clone() };
        let expr = Box::new(self.coerce(inner, &ty, CastContext::Implicit)?);
        Ok(Bound { expr: Expr::IsNull { expr, negated }, ty: Type::Bool })
    }

    fn is_truth(&mut self, inner: &ast::Expr, truth: bool, negated: bool) -> Result<Bound> {
        let expr = Box::new(self.condition(inner, "IS")?);
        Ok(Bound { expr: Expr::IsTruth { expr, truth, negated }, ty: Type::Bool })
    }

    fn is_distinct(&mut self, left: &ast::Expr, right: &ast::Expr, negated: bool) -> Result<Bound> {
        let (left, right) = (self.bind(left)?, self.bind(right)?);
        let (left, right, _) = self.unify("IS DISTINCT FROM", left, right)?;
        let expr = Expr::IsDistinct { left: Box::new(left), right: Box::new(right), negated };
        Ok(Bound { expr, ty: Type::Bool })
    }

    fn in_list(&mut self, expr: &ast::Expr, list: &[ast::Expr], negated: bool) -> Result<Bound> {
        if matches!(expr, ast::Expr::Tuple(_)) {
            let any = list
                .iter()
                .map(|row| self.compare(expr, Comparison::Eq, row).map(|bound| bound.expr))
                .collect::<Result<Vec<_>>>()?;
            let any = Expr::Or(any);
            let expr = if negated { Expr::Not(Box::new(any)) } else { any };
            return Ok(Bound { expr, ty: Type::Bool });
        }
        let needle = self.bind(expr)?;
        let mut ty = needle.ty.clone();
        let mut candidates = Vec::new();
        for candidate in list {
            let candidate = self.bind(candidate)?;
            ty = cast::common(&ty, &candidate.ty)
                .ok_or_else(|| no_operator("=", &needle.ty, &candidate.ty))?;
            candidates.push(candidate);
        }
        let ty = match ty {
            Type::Unknown | Type::Varchar(_) => Type::Text,
            Type::Char(_) => Type::Char(0),
            Type::Numeric(_) => Type::Numeric(None),
            other => other,
        };
        // Known numbers compare by value and need no cast.
        let mut fix = |bound: Bound| {
            if bound.ty.is_number() && ty.is_number() {
                Ok(bound.expr)
            } else {
                self.coerce(bound, &ty, CastContext::Implicit)
            }
        };
        let expr = Box::new(fix(needle)?);
        let list = candidates.into_iter().map(fix).collect::<Result<Vec<_>>>()?;
        Ok(Bound { expr: Expr::InList { expr, list, negated }, ty: Type::Bool })
    }

    fn in_subquery(
        &mut self,
        expr: &ast::Expr,
        query: &ast::Query,
        negated: bool,
    ) -> Result<Bound> {
        let ty = self.subquery_type(query)?;
        let needle = self.bind(expr)?;
        let kind = SlotKind::List(Box::new(query.clone()));
        let array = self.slot(kind, Vec::new(), Type::Array(Box::new(ty.clone())));
        let side = Bound { expr: Expr::Const(Datum::Null), ty };
        let (needle, _, common) = self.unify("=", needle, side.clone())?;
        if common != side.ty
            && !(common.is_number() && side.ty.is_number())
            && !is_free(&side.ty, &common)
        {
            return Err(Error::unsupported("IN with a subquery of another type"));
        }
        let expr = Expr::Quantified {
            op: Comparison::Eq,
            expr: Box::new(needle),
            array: Box::new(array.expr),
            all: false,
        };
        let expr = if negated { Expr::Not(Box::new(expr)) } else { expr };
        Ok(Bound { expr, ty: Type::Bool })
    }

    fn quantified(
        &mut self,
        left: &ast::Expr,
        op: &ast::BinaryOperator,
        right: &ast::Expr,
        all: bool,
    ) -> Result<Bound> {
        let op = comparison(op).ok_or_else(|| Error::unsupported(format!("{op} ANY")))?;
        let right = match right {
            ast::Expr::Nested(inner) => inner,
            other => other,
        };
        if matches!(right, ast::Expr::Subquery(_)) {
            return Err(Error::unsupported("ANY with a subquery here"));
        }
        let needle = self.bind(left)?;
        let array = self.bind(right)?;
        let element = match &array.ty {
            Type::Array(element) => (**element).clone(),
            Type::Unknown => match &needle.ty {
                Type::Unknown => Type::Text,
                Type::Varchar(_) => Type::Text,
                other => other.clone(),
            },
            other => return Err(no_operator("= ANY", &needle.ty, other)),
        };
        let array_type = Type::Array(Box::new(element.clone()));
        let array = self.coerce(array, &array_type, CastContext::Implicit)?;
        let side = Bound { expr: Expr::Const(Datum::Null), ty: element.clone() };
        let (needle, _, common) = self.unify(sign(op), needle, side)?;
        let array = if (common.is_number() && element.is_number()) || is_free(&element, &common) {
            array
        } else {
            Expr::Cast {
                expr: Box::new(array),
                from: array_type,
                to: Type::Array(Box::new(common)),
                explicit: false,
            }
        };
        let expr = Expr::Quantified { op, expr: Box::new(needle), array: Box::new(array), all };
        Ok(Bound { expr, ty: Type::Bool })
    }

    fn like(
        &mut self,
        expr: &ast::Expr,
        pattern: &ast::Expr,
        escape: Option<&ast::ValueWithSpan>,
        negated: bool,
        fold: bool,
    ) -> Result<Bound> {
        let escape = match escape.map(|escape| &escape.value) {
            None => None,
            Some(ast::Value::SingleQuotedString(text)) if text.chars().count() == 1 => {
                text.chars().next()
            }
            Some(_) => return Err(Error::unsupported("this LIKE escape")),
        };
        let text = self.bind(expr)?;
        let pattern = self.bind(pattern)?;
        for side in [&text, &pattern] {
            if !(side.ty.is_text() || side.ty == Type::Unknown) {
                return Err(no_operator("~~", &text.ty, &pattern.ty));
            }
            if matches!(side.ty, Type::Char(_)) {
                // A pattern sees the padding; let the general path decide.
                return Err(Error::unsupported("LIKE on character(n)"));
            }
        }
        let text = Box::new(self.coerce(text, &Type::Text, CastContext::Implicit)?);
        let pattern = Box::new(self.coerce(pattern, &Type::Text, CastContext::Implicit)?);
        let expr = Expr::Like { expr: text, pattern, escape, negated, fold };
        Ok(Bound { expr, ty: Type::Bool })
    }

    fn case(
        &mut self,
        operand: Option<&ast::Expr>,
        conditions: &[ast::CaseWhen],
        otherwise: Option<&ast::Expr>,
    ) -> Result<Bound> {
        let mut whens = Vec::new();
        let mut operand_expr = None;
        match operand {
            None => {
                for arm in conditions {
                    whens.push(self.condition(&arm.condition, "CASE/WHEN")?);
                }
            }
            Some(operand) => {
                let operand = self.bind(operand)?;
                for arm in conditions {
                    let when = self.bind(&arm.condition)?;
                    let (left, right, _) = self.unify("=", operand.clone(), when)?;
                    operand_expr = Some(Box::new(left));
                    whens.push(right);
                }
            }
        }
        let mut results =
            conditions.iter().map(|arm| self.bind(&arm.result)).collect::<Result<Vec<_>>>()?;
        let has_else = otherwise.is_some();
        if let Some(otherwise) = otherwise {
            results.push(self.bind(otherwise)?);
        }
        let (mut results, ty) = self.same_type("CASE", results)?;
        let otherwise = if has_else { results.pop().map(Box::new) } else { None };
        let arms = whens.into_iter().zip(results).collect();
        Ok(Bound { expr: Expr::Case { operand: operand_expr, arms, otherwise }, ty })
    }

    /// Brings all to one type, as UNION, CASE and COALESCE do.
    pub fn same_type(&mut self, what: &str, list: Vec<Bound>) -> Result<(Vec<Expr>, Type)> {
        let mut ty = Type::Unknown;
        for bound in &list {
            ty = cast::common(&ty, &bound.ty).ok_or_else(|| {
                Error::new(
                    state::DATATYPE_MISMATCH,
                    format!(
                        "{what} types {} and {} cannot be matched",
                        ty.base_name(),
                        bound.ty.base_name()
                    ),
                )
            })?;
        }
        if ty == Type::Unknown {
            ty = Type::Text;
        }
        let exprs = list
            .into_iter()
            .map(|bound| self.coerce(bound, &ty, CastContext::Implicit))
            .collect::<Result<Vec<_>>>()?;
        Ok((exprs, ty))
    }

    fn array(&mut self, elements: &[ast::Expr]) -> Result<Bound> {
        let bound =
            elements.iter().map(|element| self.bind(element)).collect::<Result<Vec<_>>>()?;
        let (list, ty) = self.same_type("ARRAY", bound)?;
        Ok(Bound { expr: Expr::Array(list), ty: Type::Array(Box::new(ty)) })
    }

    // ---- functions

    fn function(&mut self, function: &ast::Function) -> Result<Bound> {
        let mut parts = parse::parts(&function.name)?;
        let name = parts.pop().unwrap_or_default();
        let plain = function.filter.is_none()
            && function.over.is_none()
            && function.within_group.is_empty()
            && parts.iter().all(|schema| schema == "pg_catalog");
        if !plain {
            return Err(Error::unsupported(format!("the function {name} here")));
        }
        let args = match &function.args {
            ast::FunctionArguments::None => Vec::new(),
            ast::FunctionArguments::List(list)
                if list.duplicate_treatment.is_none() && list.clauses.is_empty() =>
            {
                list.args
                    .iter()
                    .map(|arg| match arg {
                        ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(expr)) => {
                            Ok(expr.clone())
                        }
                        _ => Err(Error::unsupported(format!("this argument of {name}"))),
                    })
                    .collect::<Result<Vec<_>>>()?
            }
            _ => return Err(Error::unsupported(format!("these arguments of {name}"))),
        };
        self.call(&name, args)
    }

    fn call(&mut self, name: &str, args: Vec<ast::Expr>) -> Result<Bound> {
        match (name, args.len()) {
            ("coalesce", 1..) => {
                let list = args.iter().map(|arg| self.bind(arg)).collect::<Result<Vec<_>>>()?;
                let (list, ty) = self.same_type("COALESCE", list)?;
                return Ok(Bound { expr: Expr::Coalesce(list), ty });
            }
            ("greatest" | "least", 1..) => {
                let list = args.iter().map(|arg| self.bind(arg)).collect::<Result<Vec<_>>>()?;
                let (list, ty) = self.same_type(&name.to_uppercase(), list)?;
                return Ok(Bound { expr: Expr::Extreme { list, least: name == "least" }, ty });
            }
            ("nullif", 2) => {
                let (left, right) = (self.bind(&args[0])?, self.bind(&args[1])?);
                let ty = if left.ty == Type::Unknown { Type::Text } else { left.ty.clone() };
                let (left, right, _) = self.unify("=", left, right)?;
                return Ok(Bound { expr: Expr::NullIf(Box::new(left), Box::new(right)), ty });
            }
            ("nextval", 1) => return self.sequence_call(SlotKind::NextVal, &args),
            ("currval", 1) => return self.sequence_call(SlotKind::CurrVal, &args),
            ("lastval", 0) => return Ok(self.slot(SlotKind::LastVal, Vec::new(), Type::Int8)),
            ("setval", 2 | 3) => {
                let mut bound = vec![self.bind_as(&args[0], &Type::Text, CastContext::Implicit)?];
                bound.push(self.bind_as(&args[1], &Type::Int8, CastContext::Assignment)?);
                if let Some(is_called) = args.get(2) {
                    bound.push(self.bind_as(is_called, &Type::Bool, CastContext::Implicit)?);
                }
                return Ok(self.slot(SlotKind::SetVal, bound, Type::Int8));
            }
            ("pg_export_snapshot", 0) => {
                return Ok(self.slot(SlotKind::ExportSnapshot, Vec::new(), Type::Text));
            }
            ("pg_sleep", 1) => {
                let seconds = self.bind_as(&args[0], &Type::Float8, CastContext::Implicit)?;
                return Ok(self.slot(SlotKind::Sleep, vec![seconds], Type::Void));
            }
            _ => {}
        }
        let mut bound = args.iter().map(|arg| self.bind(arg)).collect::<Result<Vec<_>>>()?;
        let types: Vec<Type> = bound.iter().map(|bound| bound.ty.clone()).collect();
        let (function, wanted, ty) = lookup(name, &types)
            .ok_or_else(|| Error::unsupported(format!("the function {name} here")))?;
        let args = bound
            .drain(..)
            .zip(&wanted)
            .map(|(bound, ty)| self.coerce(bound, ty, CastContext::Assignment))
            .collect::<Result<Vec<_>>>()?;
        Ok(Bound { expr: Expr::Call { function, args }, ty })
    }

    fn sequence_call(&mut self, kind: SlotKind, args: &[ast::Expr]) -> Result<Bound> {
        let name = self.bind_as(&args[0], &Type::Text, CastContext::Implicit)?;
        if !name.is_row_free() {
            return Err(Error::unsupported("a sequence's name that depends on the row"));
        }
        Ok(self.slot(kind, vec![name], Type::Int8))
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

pub fn comparison(op: &ast::BinaryOperator) -> Option<Comparison> {
    Some(match op {
        ast::BinaryOperator::Eq => Comparison::Eq,
        ast::BinaryOperator::NotEq => Comparison::NotEq,
        ast::BinaryOperator::Lt => Comparison::Lt,
        ast::BinaryOperator::LtEq => Comparison::LtEq,
        ast::BinaryOperator::Gt => Comparison::Gt,
        ast::BinaryOperator::GtEq => Comparison::GtEq,
        _ => return None,
    })
}

fn sign(op: Comparison) -> &'static str {
    match op {
        Comparison::Eq => "=",
        Comparison::NotEq => "<>",
        Comparison::Lt => "<",
        Comparison::LtEq => "<=",
        Comparison::Gt => ">",
        Comparison::GtEq => ">=",
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
