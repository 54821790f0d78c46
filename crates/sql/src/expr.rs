//! Scalar expressions, bound to columns and types, and their evaluation over one row.
//!
//! An expression is a tree whose leaves are constants, parameters, columns of the row at hand, and
//! *slots*: values that a statement computes before it looks at rows, because computing them waits
//! for something (a sequence, a subquery). Evaluation itself never waits, reads no clock and touches
//! no table. NULL goes in and comes out as SQL says.

mod functions;
mod operators;

pub use functions::{Function, Lookup, TEXT_BYTES_MAX, call, check_length, lookup, names};
pub use operators::{Arithmetic, Comparison, float, like};

use crate::error::Result;
use crate::session::View;
use crate::types::{Datum, Type, cast};
use std::borrow::Cow;
use std::sync::Arc;

#[derive(Clone, Debug)]
pub enum Expr {
    Const(Datum),
    /// `$n`, from 0.
    Param(usize),
    /// A column of the row at hand.
    Column(usize),
    Slot(usize),
    Cast {
        expr: Box<Expr>,
        from: Type,
        to: Type,
        explicit: bool,
    },
    Arithmetic {
        op: Arithmetic,
        left: Box<Expr>,
        right: Box<Expr>,
    },
    Negate(Box<Expr>),
    Compare {
        op: Comparison,
        left: Box<Expr>,
        right: Box<Expr>,
    },
    IsDistinct {
        left: Box<Expr>,
        right: Box<Expr>,
        negated: bool,
    },
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Not(Box<Expr>),
    IsNull {
        expr: Box<Expr>,
        negated: bool,
    },
    /// IS [NOT] TRUE and IS [NOT] FALSE.
    IsTruth {
        expr: Box<Expr>,
        truth: bool,
        negated: bool,
    },
    InList {
        expr: Box<Expr>,
        list: Vec<Expr>,
        negated: bool,
    },
    /// `expr op ANY (array)` or, with `all`, `ALL`.
    Quantified {
        op: Comparison,
        expr: Box<Expr>,
        array: Box<Expr>,
        all: bool,
    },
    Like {
        expr: Box<Expr>,
        pattern: Box<Expr>,
        escape: Option<char>,
        negated: bool,
        fold: bool,
    },
    Case {
        operand: Option<Box<Expr>>,
        arms: Vec<(Expr, Expr)>,
        otherwise: Option<Box<Expr>>,
    },
    Coalesce(Vec<Expr>),
    Extreme {
        list: Vec<Expr>,
        least: bool,
    },
    Array(Vec<Expr>),
    Call {
        function: Function,
        args: Vec<Expr>,
    },
}

/// What an expression is evaluated over.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub row: &'a [Datum],
    pub params: &'a [Datum],
    pub slots: &'a [Datum],
    pub view: &'a View,
}

impl Expr {
    pub fn eval<'a>(&'a self, cx: &Context<'a>) -> Result<Cow<'a, Datum>> {
        Ok(match self {
            Expr::Const(datum) => Cow::Borrowed(datum),
            Expr::Param(idx) => Cow::Borrowed(&cx.params[*idx]),
            Expr::Column(idx) => Cow::Borrowed(&cx.row[*idx]),
            Expr::Slot(idx) => Cow::Borrowed(&cx.slots[*idx]),
            other => Cow::Owned(other.compute(cx)?),
        })
    }

    /// The value, owned.
    pub fn value(&self, cx: &Context<'_>) -> Result<Datum> {
        self.eval(cx).map(Cow::into_owned)
    }

    /// A condition's outcome; NULL does not hold.
    pub fn holds(&self, cx: &Context<'_>) -> Result<bool> {
        Ok(matches!(*self.eval(cx)?, Datum::Bool(true)))
    }

    fn truth(&self, cx: &Context<'_>) -> Result<Option<bool>> {
        Ok(self.eval(cx)?.as_bool())
    }

    fn compute(&self, cx: &Context<'_>) -> Result<Datum> {
        let of = |truth: Option<bool>| truth.map_or(Datum::Null, Datum::Bool);
        Ok(match self {
            Expr::Const(_) | Expr::Param(_) | Expr::Column(_) | Expr::Slot(_) => self.value(cx)?,
            Expr::Cast { expr, from, to, explicit } => {
                cast::cast(expr.value(cx)?, from, to, &cx.view.zone, *explicit)?
            }
            Expr::Arithmetic { op, left, right } => {
                let (left, right) = (left.eval(cx)?, right.eval(cx)?);
                op.apply(&left, &right, &cx.view.zone)?
            }
            Expr::Negate(expr) => operators::negate(&*expr.eval(cx)?)?,
            Expr::Compare { op, left, right } => {
                of(left.eval(cx)?.compare(&*right.eval(cx)?).map(|order| op.test(order)))
            }
            Expr::IsDistinct { left, right, negated } => {
                let same = left.eval(cx)?.order(&*right.eval(cx)?).is_eq();
                Datum::Bool(same == *negated)
            }
            Expr::And(list) => {
                let mut unknown = false;
                for expr in list {
                    match expr.truth(cx)? {
                        Some(true) => {}
                        Some(false) => return Ok(Datum::Bool(false)),
                        None => unknown = true,
                    }
                }
                if unknown { Datum::Null } else { Datum::Bool(true) }
            }
            Expr::Or(list) => {
                let mut unknown = false;
                for expr in list {
                    match expr.truth(cx)? {
                        Some(false) => {}
                        Some(true) => return Ok(Datum::Bool(true)),
                        None => unknown = true,
                    }
                }
                if unknown { Datum::Null } else { Datum::Bool(false) }
            }
            Expr::Not(expr) => of(expr.truth(cx)?.map(|truth| !truth)),
            Expr::IsNull { expr, negated } => Datum::Bool(expr.eval(cx)?.is_null() != *negated),
            Expr::IsTruth { expr, truth, negated } => {
                Datum::Bool((expr.truth(cx)? == Some(*truth)) != *negated)
            }
            Expr::InList { expr, list, negated } => {
                let needle = expr.eval(cx)?;
                let mut found = Some(false);
                for candidate in list {
                    match needle.compare(&*candidate.eval(cx)?) {
                        Some(order) if order.is_eq() => {
                            found = Some(true);
                            break;
                        }
                        Some(_) => {}
                        None => found = None,
                    }
                }
                of(found.map(|found| found != *negated))
            }
            Expr::Quantified { op, expr, array, all } => {
                let needle = expr.eval(cx)?;
                let array = array.eval(cx)?;
                let Datum::Array(elements) = &*array else { return Ok(Datum::Null) };
                let mut outcome = Some(*all);
                for element in elements.iter() {
                    match needle.compare(element).map(|order| op.test(order)) {
                        Some(truth) if truth != *all => {
                            outcome = Some(truth);
                            break;
                        }
                        Some(_) => {}
                        None => outcome = None,
                    }
                }
                of(outcome)
            }
            Expr::Like { expr, pattern, escape, negated, fold } => {
                let (text, pattern) = (expr.eval(cx)?, pattern.eval(cx)?);
                match (text.as_str(), pattern.as_str()) {
                    (Some(text), Some(pattern)) => {
                        let found = if *fold {
                            like(&text.to_lowercase(), &pattern.to_lowercase(), *escape)?
                        } else {
                            like(text, pattern, *escape)?
                        };
                        Datum::Bool(found != *negated)
                    }
                    _ => Datum::Null,
                }
            }
            Expr::Case { operand, arms, otherwise } => {
                let operand = operand.as_ref().map(|operand| operand.eval(cx)).transpose()?;
                for (condition, outcome) in arms {
                    let chosen = match &operand {
                        Some(operand) => operand
                            .compare(&*condition.eval(cx)?)
                            .is_some_and(|order| order.is_eq()),
                        None => condition.holds(cx)?,
                    };
                    if chosen {
                        return outcome.value(cx);
                    }
                }
                match otherwise {
                    Some(otherwise) => otherwise.value(cx)?,
                    None => Datum::Null,
                }
            }
            Expr::Coalesce(list) => {
                for expr in list {
                    let datum = expr.eval(cx)?;
                    if !datum.is_null() {
                        return Ok(datum.into_owned());
                    }
                }
                Datum::Null
            }
            Expr::Extreme { list, least } => {
                let mut best = Datum::Null;
                for expr in list {
                    let datum = expr.eval(cx)?;
                    let better = match datum.compare(&best) {
                        Some(order) => {
                            if *least {
                                order.is_lt()
                            } else {
                                order.is_gt()
                            }
                        }
                        None => best.is_null(),
                    };
                    if better && !datum.is_null() {
                        best = datum.into_owned();
                    }
                }
                best
            }
            Expr::Array(list) => Datum::Array(
                list.iter()
                    .map(|expr| expr.value(cx))
                    .collect::<Result<Vec<_>>>()
                    .map(Arc::from)?,
            ),
            Expr::Call { function, args } => {
                let args = args.iter().map(|arg| arg.eval(cx)).collect::<Result<Vec<_>>>()?;
                functions::call(*function, &args, cx)?
            }
        })
    }

    /// True where the value depends on no row: it may be computed once for a statement.
    pub fn is_row_free(&self) -> bool {
        let mut free = true;
        self.walk(&mut |expr| free &= !matches!(expr, Expr::Column(_)) && !expr.is_volatile());
        free
    }

    fn is_volatile(&self) -> bool {
        matches!(self, Expr::Call { function, .. } if function.is_volatile())
    }

    /// Columns that the expression reads, as flags.
    pub fn mark_columns(&self, wanted: &mut [bool]) {
        self.walk(&mut |expr| {
            if let Expr::Column(idx) = expr
                && let Some(flag) = wanted.get_mut(*idx)
            {
                *flag = true;
            }
        });
    }

    /// Visits the expression and everything in it.
    pub fn walk(&self, visit: &mut dyn FnMut(&Expr)) {
        visit(self);
        match self {
            Expr::Const(_) | Expr::Param(_) | Expr::Column(_) | Expr::Slot(_) => {}
            Expr::Cast { expr, .. }
            | Expr::Negate(expr)
            | Expr::Not(expr)
            | Expr::IsNull { expr, .. }
            | Expr::IsTruth { expr, .. } => expr.walk(visit),
            Expr::Arithmetic { left, right, .. }
            | Expr::Compare { left, right, .. }
            | Expr::IsDistinct { left, right, .. }
            | Expr::Like { expr: left, pattern: right, .. }
            | Expr::Quantified { expr: left, array: right, .. } => {
                left.walk(visit);
                right.walk(visit);
            }
            Expr::And(list)
            | Expr::Or(list)
            | Expr::Coalesce(list)
            | Expr::Array(list)
            | Expr::Extreme { list, .. }
            | Expr::Call { args: list, .. } => list.iter().for_each(|expr| expr.walk(visit)),
            Expr::InList { expr, list, .. } => {
                expr.walk(visit);
                list.iter().for_each(|expr| expr.walk(visit));
            }
            Expr::Case { operand, arms, otherwise } => {
                operand.iter().for_each(|expr| expr.walk(visit));
                for (condition, outcome) in arms {
                    condition.walk(visit);
                    outcome.walk(visit);
                }
                otherwise.iter().for_each(|expr| expr.walk(visit));
            }
        }
    }
}
