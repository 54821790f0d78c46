//! How to reach the rows that a condition asks for.
//!
//! The condition's conjuncts of the form `column op value`, where the value depends on no row, are
//! matched with the columns of the primary key and of each index, in key order: as many equalities
//! as there are, then at most one range.
//!
//! ```text
//!   key (a, b, c)    WHERE a = 1 AND b IN (2, 3) AND c > 4   ->  two ranges  [1,2,(4..  [1,3,(4..
//! ```
//!
//! Equality with a whole key makes points. When the statement runs, the values are brought to the
//! column's own type; one that the type cannot hold (`int4_column = 3000000000`) equals nothing.
//! All conjuncts stay in the filter except those that a primary-key point fulfils by itself.

use crate::catalog::{IndexState, Table};
use crate::codec;
use crate::error::Result;
use crate::expr::{Comparison, Context, Expr};
use crate::types::{Datum, Type};
use base::{Key, KeyRange};

#[derive(Clone, Debug)]
pub struct Access {
    /// Position in the table's `indexes`; none: the rows themselves.
    pub index: Option<usize>,
    /// Positions in the table's columns of the key's columns.
    pub key: Vec<usize>,
    pub equal: Vec<Equal>,
    pub low: Option<(Expr, bool)>,
    pub high: Option<(Expr, bool)>,
    /// Every column of a unique key is fixed.
    pub is_point: bool,
}

/// The values that one column may have.
#[derive(Clone, Debug)]
pub enum Equal {
    One(Expr),
    Many(Vec<Expr>),
    /// The elements of an array.
    Elements(Expr),
}

/// Where to look, with the values filled in.
#[derive(Clone, Debug, PartialEq)]
pub enum Places {
    /// Whole keys: of rows, or of entries of a unique index.
    Points(Vec<Key>),
    Ranges(Vec<KeyRange>),
}

/// A conjunct that limits one column.
struct Limit<'a> {
    column: usize,
    op: Comparison,
    value: LimitValue<'a>,
    /// Which conjunct it is.
    conjunct: usize,
}

enum LimitValue<'a> {
    One(&'a Expr),
    Many(&'a [Expr]),
    Elements(&'a Expr),
}

impl Access {
    /// All rows.
    pub fn full(table: &Table) -> Access {
        Access {
            index: None,
            key: table.primary_idxs(),
            equal: Vec::new(),
            low: None,
            high: None,
            is_point: false,
        }
    }

    pub fn is_full(&self) -> bool {
        self.equal.is_empty() && self.low.is_none() && self.high.is_none()
    }

    /// The best way for a condition, and the conjuncts that it leaves to be checked.
    /// `order` are columns that would like to come in this order.
    pub fn choose(table: &Table, conjuncts: Vec<Expr>, order: &[usize]) -> (Access, Vec<Expr>) {
        let limits: Vec<Limit<'_>> = conjuncts
            .iter()
            .enumerate()
            .filter_map(|(idx, conjunct)| limit(conjunct, idx))
            .collect();
        let mut best: Option<(u32, Access, Vec<usize>)> = None;
        let mut consider = |access: Access, used: Vec<usize>, unique: bool| {
            let is_rows = access.index.is_none();
            let mut score = if access.is_point && unique {
                1_000 + u32::from(is_rows) * 100
            } else {
                access.equal.len() as u32 * 20
                    + u32::from(access.low.is_some()) * 5
                    + u32::from(access.high.is_some()) * 5
            };
            let ordered = !order.is_empty() && access.gives_order(order);
            score += u32::from(ordered) * 3;
            // An index with nothing to start from is worth its detour only for its order.
            if !is_rows && access.is_full() && !ordered {
                return;
            }
            // Rows are next to their key; an index entry leads there in a second step.
            score = score * 2 + u32::from(is_rows);
            if best.as_ref().is_none_or(|(top, ..)| score > *top) {
                best = Some((score, access, used));
            }
        };
        let (access, used) = along(None, table.primary_idxs(), true, &limits);
        consider(access, used, !table.is_keyless());
        for (idx, index) in table.indexes.iter().enumerate() {
            if index.state == IndexState::Public {
                let (access, used) =
                    along(Some(idx), index.column_idxs(table), index.unique, &limits);
                consider(access, used, index.unique);
            }
        }
        drop(limits);
        let Some((_, access, used)) = best else { return (Access::full(table), conjuncts) };
        let fulfilled = access.index.is_none() && access.is_point;
        let rest = conjuncts
            .into_iter()
            .enumerate()
            .filter(|(idx, _)| !(fulfilled && used.contains(idx)))
            .map(|(_, conjunct)| conjunct)
            .collect();
        (access, rest)
    }

    /// True where rows come in the order of these columns (or exactly against it, reversed).
    pub fn gives_order(&self, order: &[usize]) -> bool {
        if self.equal.iter().any(|equal| !matches!(equal, Equal::One(_))) {
            return false;
        }
        let fixed = self.equal.len();
        // Columns fixed by equality may stand anywhere in the order.
        let mut wanted = order.iter().filter(|column| !self.key[..fixed].contains(column));
        let mut key = self.key[fixed..].iter();
        wanted.all(|column| key.next() == Some(column))
    }

    /// Fills the values in.
    pub fn places(&self, table: &Table, cx: &Context<'_>) -> Result<Places> {
        let relation = match self.index {
            Some(idx) => table.indexes[idx].relation,
            None => table.relation,
        };
        let mut prefixes = vec![codec::key_prefix(relation, 16)];
        for (equal, column) in self.equal.iter().zip(&self.key) {
            let ty = &table.columns[*column].ty;
            match equal {
                Equal::One(expr) => {
                    let value = expr.eval(cx)?;
                    let Some(value) = narrow(&value, ty) else {
                        return Ok(Places::Points(Vec::new()));
                    };
                    prefixes.iter_mut().for_each(|prefix| codec::encode_key(&value, prefix));
                }
                Equal::Many(_) | Equal::Elements(_) => {
                    let mut values: Vec<Datum> = match equal {
                        Equal::Elements(array) => match &*array.eval(cx)? {
                            Datum::Array(elements) => {
                                elements.iter().filter_map(|value| narrow(value, ty)).collect()
                            }
                            _ => Vec::new(),
                        },
                        Equal::Many(list) => {
                            let mut values = Vec::with_capacity(list.len());
                            for expr in list {
                                values.extend(narrow(&*expr.eval(cx)?, ty));
                            }
                            values
                        }
                        Equal::One(_) => Vec::new(),
                    };
                    values.sort_by(Datum::order);
                    values.dedup();
                    prefixes = prefixes
                        .iter()
                        .flat_map(|prefix| {
                            values.iter().map(|value| {
                                let mut longer = prefix.clone();
                                codec::encode_key(value, &mut longer);
                                longer
                            })
                        })
                        .collect();
                }
            }
        }
        if self.is_point {
            return Ok(Places::Points(prefixes.into_iter().map(Key::from).collect()));
        }
        if self.low.is_none() && self.high.is_none() {
            return Ok(Places::Ranges(prefixes.into_iter().map(KeyRange::prefix).collect()));
        }
        let ty = &table.columns[self.key[self.equal.len()]].ty;
        // A bound is a value and whether it belongs to the range; NULL admits nothing.
        let bound = |bound: &Option<(Expr, bool)>| -> Result<Option<Option<(Datum, bool)>>> {
            let Some((expr, inclusive)) = bound else { return Ok(Some(None)) };
            let value = expr.eval(cx)?;
            if value.is_null() {
                return Ok(None);
            }
            // A value that the type cannot hold bounds nothing here; the filter sees to it.
            Ok(Some(narrow(&value, ty).map(|value| (value, *inclusive))))
        };
        let (Some(low), Some(high)) = (bound(&self.low)?, bound(&self.high)?) else {
            return Ok(Places::Ranges(Vec::new()));
        };
        let mut ranges = Vec::with_capacity(prefixes.len());
        for prefix in prefixes {
            let whole = KeyRange::prefix(prefix.clone());
            let with = |value: &Datum| {
                let mut key = prefix.clone();
                codec::encode_key(value, &mut key);
                Key::from(key)
            };
            let start = match &low {
                None => whole.start,
                Some((value, true)) => with(value),
                Some((value, false)) => {
                    let key = with(value);
                    base::key::prefix_end(&key).unwrap_or(key)
                }
            };
            let end = match &high {
                // NULLs sort last and are in no range.
                None => Some(with(&Datum::Null)),
                Some((value, true)) => base::key::prefix_end(&with(value)),
                Some((value, false)) => Some(with(value)),
            };
            let range = KeyRange { start, end };
            if !range.is_empty() {
                ranges.push(range);
            }
        }
        Ok(Places::Ranges(ranges))
    }

    /// For EXPLAIN.
    pub fn describe(&self, table: &Table) -> String {
        let name = &table.name;
        let how = match (self.is_point, self.is_full()) {
            (true, _) => "Point",
            (false, true) => "Full",
            (false, false) => "Range",
        };
        let columns: Vec<&str> = self
            .key
            .iter()
            .take(self.equal.len() + usize::from(self.low.is_some() || self.high.is_some()))
            .map(|idx| table.columns[*idx].name.as_str())
            .collect();
        match self.index {
            Some(idx) => {
                format!(
                    "Index {how} Scan using {} on {name} ({})",
                    table.indexes[idx].name,
                    columns.join(", ")
                )
            }
            None if columns.is_empty() => format!("{how} Scan on {name}"),
            None => format!("Key {how} Scan on {name} ({})", columns.join(", ")),
        }
    }
}

/// The limits that fit a key, in its order.
fn along(
    index: Option<usize>,
    key: Vec<usize>,
    unique: bool,
    limits: &[Limit<'_>],
) -> (Access, Vec<usize>) {
    let mut access =
        Access { index, key, equal: Vec::new(), low: None, high: None, is_point: false };
    let mut used = Vec::new();
    for (at, column) in access.key.iter().enumerate() {
        let equal = limits
            .iter()
            .filter(|limit| limit.column == *column && limit.op == Comparison::Eq)
            .min_by_key(|limit| !matches!(limit.value, LimitValue::One(_)));
        if let Some(limit) = equal {
            access.equal.push(match limit.value {
                LimitValue::One(expr) => Equal::One(expr.clone()),
                LimitValue::Many(list) => Equal::Many(list.to_vec()),
                LimitValue::Elements(array) => Equal::Elements(array.clone()),
            });
            used.push(limit.conjunct);
            if at + 1 == access.key.len() {
                access.is_point = unique;
            }
            continue;
        }
        for limit in limits.iter().filter(|limit| limit.column == *column) {
            let LimitValue::One(expr) = limit.value else { continue };
            let bound =
                Some((expr.clone(), matches!(limit.op, Comparison::GtEq | Comparison::LtEq)));
            match limit.op {
                Comparison::Gt | Comparison::GtEq if access.low.is_none() => access.low = bound,
                Comparison::Lt | Comparison::LtEq if access.high.is_none() => access.high = bound,
                _ => {}
            }
        }
        break;
    }
    (access, used)
}

fn limit(conjunct: &Expr, idx: usize) -> Option<Limit<'_>> {
    let (column, op, value) = match conjunct {
        Expr::Compare { op: Comparison::NotEq, .. } => return None,
        Expr::Compare { op, left, right } => match (&**left, &**right) {
            (Expr::Column(column), value) if value.is_row_free() => {
                (*column, *op, LimitValue::One(value))
            }
            (value, Expr::Column(column)) if value.is_row_free() => {
                (*column, op.mirrored(), LimitValue::One(value))
            }
            _ => return None,
        },
        Expr::InList { expr, list, negated: false } => match &**expr {
            Expr::Column(column) if list.iter().all(Expr::is_row_free) => {
                (*column, Comparison::Eq, LimitValue::Many(list))
            }
            _ => return None,
        },
        Expr::Quantified { op: Comparison::Eq, expr, array, all: false } => match &**expr {
            Expr::Column(column) if array.is_row_free() => {
                (*column, Comparison::Eq, LimitValue::Elements(array))
            }
            _ => return None,
        },
        _ => return None,
    };
    Some(Limit { column, op, value, conjunct: idx })
}

/// The same value as the column's type would hold it; none where it cannot (or is NULL), so that
/// no row's column equals it.
pub fn narrow(value: &Datum, ty: &Type) -> Option<Datum> {
    Some(match (value, ty) {
        (Datum::Null, _) => return None,
        (Datum::Int4(_), Type::Int4)
        | (Datum::Int8(_), Type::Int8)
        | (Datum::Int2(_), Type::Int2)
        | (Datum::Float8(_), Type::Float8)
        | (Datum::Float4(_), Type::Float4)
        | (Datum::Numeric(_), Type::Numeric(_)) => value.clone(),
        (_, Type::Int2 | Type::Int4 | Type::Int8) => {
            let whole = match value {
                Datum::Numeric(numeric) => {
                    let whole = numeric.to_i64()?;
                    (Datum::Int8(whole) == *value).then_some(whole)?
                }
                Datum::Float4(_) | Datum::Float8(_) => {
                    let float = value.as_f64()?;
                    let exact = float.fract() == 0.0 && float.abs() < 9e15;
                    exact.then_some(float as i64)?
                }
                other => other.as_i64()?,
            };
            match ty {
                Type::Int2 => Datum::Int2(i16::try_from(whole).ok()?),
                Type::Int4 => Datum::Int4(i32::try_from(whole).ok()?),
                _ => Datum::Int8(whole),
            }
        }
        (_, Type::Float8) => Datum::Float8(value.as_f64()?),
        (_, Type::Float4) => {
            let float = value.as_f64()?;
            let narrow = float as f32;
            (f64::from(narrow) == float).then_some(Datum::Float4(narrow))?
        }
        (_, Type::Numeric(_)) => match value {
            Datum::Float4(_) | Datum::Float8(_) => {
                Datum::Numeric(crate::types::Numeric::from_f64(value.as_f64()?).ok()?)
            }
            other => Datum::Numeric(crate::types::Numeric::from(other.as_i64()?)),
        },
        (Datum::Text(text), Type::Char(_)) if text.ends_with(' ') => {
            Datum::text(text.trim_end_matches(' '))
        }
        _ => value.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::View;

    fn conjunct(column: usize, op: Comparison, value: i32) -> Expr {
        Expr::Compare {
            op,
            left: Box::new(Expr::Column(column)),
            right: Box::new(Expr::Const(Datum::Int4(value))),
        }
    }

    #[test]
    fn conditions_become_places() {
        let mut table =
            Table::for_tests(&[("a", Type::Int4), ("b", Type::Int4), ("c", Type::Text)]);
        table.primary = vec![1, 2];
        let view = View::for_tests();
        let cx = Context { row: &[], params: &[], slots: &[], view: &view };
        use Comparison::*;
        for (conjuncts, want, left_over) in [
            (vec![conjunct(0, Eq, 1), conjunct(1, Eq, 2)], "Key Point Scan on t (a, b)", 0),
            (vec![conjunct(0, Eq, 1), conjunct(1, Gt, 2)], "Key Range Scan on t (a, b)", 2),
            (vec![conjunct(1, Eq, 2)], "Full Scan on t", 1),
            (vec![conjunct(0, Lt, 2), conjunct(1, Eq, 2)], "Key Range Scan on t (a)", 2),
        ] {
            let (access, rest) = Access::choose(&table, conjuncts, &[]);
            assert_eq!(access.describe(&table), want);
            assert_eq!(rest.len(), left_over, "{want}");
        }
        let (access, _) = Access::choose(&table, vec![conjunct(0, Eq, 1), conjunct(1, Gt, 2)], &[]);
        let Places::Ranges(ranges) = access.places(&table, &cx).unwrap() else { panic!("a range") };
        let key = |a: i32, b: i32| {
            let mut key = codec::key_prefix(table.relation, 16);
            codec::encode_key(&Datum::Int4(a), &mut key);
            codec::encode_key(&Datum::Int4(b), &mut key);
            key
        };
        assert_eq!(ranges.len(), 1);
        assert!(!ranges[0].contains(&key(1, 2)) && ranges[0].contains(&key(1, 3)));
        assert!(!ranges[0].contains(&key(2, 3)));
        assert_eq!(narrow(&Datum::Int8(3_000_000_000), &Type::Int4), None);
        assert_eq!(narrow(&Datum::Int8(3), &Type::Int4), Some(Datum::Int4(3)));
    }
}
