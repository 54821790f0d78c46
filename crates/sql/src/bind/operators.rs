//! Operators, conditions, CASE and arrays.

use super::{Binder, Bound, SlotKind, is_free, no_operator};
use crate::error::{Error, Result, state};
use crate::expr::{Arithmetic, Comparison, Expr};
use crate::types::cast::{self, Context as CastContext};
use crate::types::{Datum, Type};
use sqlparser::ast;

impl Binder<'_> {
    pub(super) fn unary(&mut self, op: &ast::UnaryOperator, expr: &ast::Expr) -> Result<Bound> {
        match op {
            ast::UnaryOperator::Not => {
                let inner = self.condition(expr, "NOT")?;
                Ok(Bound { expr: Expr::Not(Box::new(inner)), ty: Type::Bool })
            }
            ast::UnaryOperator::Plus => self.bind(expr),
            ast::UnaryOperator::Minus => {
                if let Some(power) = negated_base(expr) {
                    return self.bind(&power);
                }
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

    pub(super) fn binary(
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
            B::PGExp => return self.call("power", vec![left.clone(), right.clone()]),
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

    pub(super) fn flatten(
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

    pub(super) fn arithmetic(
        &mut self,
        op: Arithmetic,
        left: Bound,
        right: Bound,
        shown: &str,
    ) -> Result<Bound> {
        let bits = matches!(op, Arithmetic::BitAnd | Arithmetic::BitOr | Arithmetic::BitXor);
        let plain = |ty: Type| match ty {
            Type::Numeric(_) => Type::Numeric(None),
            other => other,
        };
        let (lt, rt) = (plain(left.ty.clone()), plain(right.ty.clone()));
        if matches!(op, Arithmetic::ShiftLeft | Arithmetic::ShiftRight) {
            // By an integer, whatever is shifted.
            let counts = matches!(rt, Type::Int2 | Type::Int4 | Type::Unknown);
            if !lt.is_integer() || lt == Type::Oid || !counts {
                return Err(no_operator(shown, &lt, &rt));
            }
            let right = self.coerce(right, &Type::Int4, CastContext::Implicit)?;
            let expr = Expr::Arithmetic { op, left: Box::new(left.expr), right: Box::new(right) };
            return Ok(Bound { expr, ty: lt });
        }
        let number = |ty: &Type| ty.is_number() || *ty == Type::Unknown;
        if number(&lt) && number(&rt) {
            let common = match (&lt, &rt) {
                (Type::Unknown, Type::Unknown) => {
                    return Err(Error::unsupported(
                        "an operator between operands of unknown types",
                    ));
                }
                // A float that is not as wide as it could be meets an integer at the widest.
                (Type::Float4, other) | (other, Type::Float4) if other.is_integer() => Type::Float8,
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
        let ty = temporal(op, &left.ty, &right.ty).ok_or_else(|| no_operator(shown, &lt, &rt))?;
        let is_instant = |ty: &Type| matches!(ty, Type::Date | Type::Timestamp | Type::TimestampTz);
        if ty == Type::Interval && is_instant(&left.ty) && left.ty != right.ty {
            let common =
                cast::common(&left.ty, &right.ty).ok_or_else(|| no_operator(shown, &lt, &rt))?;
            let left = self.coerce(left, &common, CastContext::Implicit)?;
            let right = self.coerce(right, &common, CastContext::Implicit)?;
            let expr = Expr::Arithmetic { op, left: Box::new(left), right: Box::new(right) };
            return Ok(Bound { expr, ty });
        }
        let expr = Expr::Arithmetic { op, left: Box::new(left.expr), right: Box::new(right.expr) };
        Ok(Bound { expr, ty })
    }

    pub(super) fn concat(&mut self, left: &ast::Expr, right: &ast::Expr) -> Result<Bound> {
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

    pub(super) fn compare(
        &mut self,
        left: &ast::Expr,
        op: Comparison,
        right: &ast::Expr,
    ) -> Result<Bound> {
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

    pub(super) fn is_null(&mut self, inner: &ast::Expr, negated: bool) -> Result<Bound> {
        let inner = self.bind(inner)?;
        let ty = if inner.ty == Type::Unknown { Type::Text } else { inner.ty.clone() };
        let expr = Box::new(self.coerce(inner, &ty, CastContext::Implicit)?);
        Ok(Bound { expr: Expr::IsNull { expr, negated }, ty: Type::Bool })
    }

    pub(super) fn is_truth(
        &mut self,
        inner: &ast::Expr,
        truth: bool,
        negated: bool,
    ) -> Result<Bound> {
        let expr = Box::new(self.condition(inner, "IS")?);
        Ok(Bound { expr: Expr::IsTruth { expr, truth, negated }, ty: Type::Bool })
    }

    pub(super) fn is_distinct(
        &mut self,
        left: &ast::Expr,
        right: &ast::Expr,
        negated: bool,
    ) -> Result<Bound> {
        let (left, right) = (self.bind(left)?, self.bind(right)?);
        let (left, right, _) = self.unify("IS DISTINCT FROM", left, right)?;
        let expr = Expr::IsDistinct { left: Box::new(left), right: Box::new(right), negated };
        Ok(Bound { expr, ty: Type::Bool })
    }

    pub(super) fn in_list(
        &mut self,
        expr: &ast::Expr,
        list: &[ast::Expr],
        negated: bool,
    ) -> Result<Bound> {
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

    pub(super) fn in_subquery(
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

    pub(super) fn quantified(
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

    pub(super) fn like(
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

    pub(super) fn case(
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

    pub(super) fn array(&mut self, elements: &[ast::Expr]) -> Result<Bound> {
        let bound =
            elements.iter().map(|element| self.bind(element)).collect::<Result<Vec<_>>>()?;
        let (list, ty) = self.same_type("ARRAY", bound)?;
        Ok(Bound { expr: Expr::Array(list), ty: Type::Array(Box::new(ty)) })
    }
}

/// What an operator answers where a side is a date, a time or an interval. Where two instants of
/// different types are subtracted, both are cast to their common type.
pub fn temporal(op: Arithmetic, left: &Type, right: &Type) -> Option<Type> {
    use Arithmetic::{Add, Divide, Multiply, Subtract};
    use Type as T;
    Some(match (op, left, right) {
        (Add | Subtract, T::Date, T::Int2 | T::Int4) => T::Date,
        (Add, T::Int2 | T::Int4, T::Date) => T::Date,
        (Subtract, T::Date, T::Date) => T::Int4,
        (Add, T::Date, T::Time) | (Add, T::Time, T::Date) => T::Timestamp,
        (Add | Subtract, T::Date | T::Timestamp, T::Interval) => T::Timestamp,
        (Add, T::Interval, T::Date | T::Timestamp) => T::Timestamp,
        (Add | Subtract, T::TimestampTz, T::Interval) | (Add, T::Interval, T::TimestampTz) => {
            T::TimestampTz
        }
        (
            Subtract,
            T::Timestamp | T::TimestampTz | T::Date,
            T::Timestamp | T::TimestampTz | T::Date,
        ) => T::Interval,
        (Add | Subtract, T::Interval, T::Interval) => T::Interval,
        (Multiply, T::Interval, n) | (Multiply, n, T::Interval) if n.is_number() => T::Interval,
        (Divide, T::Interval, n) if n.is_number() => T::Interval,
        (Add | Subtract, T::Time, T::Interval) | (Add, T::Interval, T::Time) => T::Time,
        (Subtract, T::Time, T::Time) => T::Interval,
        _ => return None,
    })
}

/// `- a ^ b` as `(- a) ^ b`: in PostgreSQL a sign binds tighter than a power, unlike in the parser.
fn negated_base(expr: &ast::Expr) -> Option<ast::Expr> {
    let ast::Expr::BinaryOp { left, op: op @ ast::BinaryOperator::PGExp, right } = expr else {
        return None;
    };
    let base = negated_base(left).unwrap_or_else(|| ast::Expr::UnaryOp {
        op: ast::UnaryOperator::Minus,
        expr: left.clone(),
    });
    Some(ast::Expr::BinaryOp { left: Box::new(base), op: op.clone(), right: right.clone() })
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
