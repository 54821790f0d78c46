//! Arithmetic, comparison and pattern matching on datums.

use super::functions::check_length;
use crate::error::{Error, Result, state};
use crate::types::datetime::{self, Zone};
use crate::types::numeric::division_by_zero;
use crate::types::{Datum, Interval, Numeric, cast};
use std::cmp::Ordering;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    Concat,
    BitAnd,
    BitOr,
    BitXor,
    ShiftLeft,
    ShiftRight,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Eq,
    NotEq,
    Lt,
    LtEq,
    Gt,
    GtEq,
}

impl Comparison {
    pub fn test(self, order: Ordering) -> bool {
        match self {
            Comparison::Eq => order.is_eq(),
            Comparison::NotEq => order.is_ne(),
            Comparison::Lt => order.is_lt(),
            Comparison::LtEq => order.is_le(),
            Comparison::Gt => order.is_gt(),
            Comparison::GtEq => order.is_ge(),
        }
    }

    /// The comparison with its sides exchanged.
    pub fn mirrored(self) -> Comparison {
        match self {
            Comparison::Lt => Comparison::Gt,
            Comparison::LtEq => Comparison::GtEq,
            Comparison::Gt => Comparison::Lt,
            Comparison::GtEq => Comparison::LtEq,
            same => same,
        }
    }
}

fn out_of_range(what: &str) -> Error {
    Error::new(state::OUT_OF_RANGE, format!("{what} out of range"))
}

macro_rules! integer_arithmetic {
    ($op:expr, $a:expr, $b:expr, $kind:path, $name:literal) => {{
        let (a, b) = ($a, $b);
        let value = match $op {
            Arithmetic::Add => a.checked_add(b),
            Arithmetic::Subtract => a.checked_sub(b),
            Arithmetic::Multiply => a.checked_mul(b),
            Arithmetic::Divide if b == 0 => return Err(division_by_zero()),
            Arithmetic::Divide => a.checked_div(b),
            Arithmetic::Modulo if b == 0 => return Err(division_by_zero()),
            Arithmetic::Modulo => Some(a.wrapping_rem(b)),
            Arithmetic::BitAnd => Some(a & b),
            Arithmetic::BitOr => Some(a | b),
            Arithmetic::BitXor => Some(a ^ b),
            Arithmetic::ShiftLeft | Arithmetic::ShiftRight | Arithmetic::Concat => None,
        };
        value.map($kind).ok_or_else(|| out_of_range($name))
    }};
}

/// `integer << integer`, by as many bits as the machine's own shift takes: modulo 32, or 64 for a
/// bigint. A smallint is shifted as an integer: `1::int2 << 17` is 0, `1 << 33` is 2.
fn shift(op: Arithmetic, left: &Datum, n_bits: i32) -> Result<Datum> {
    let is_left = op == Arithmetic::ShiftLeft;
    let narrow = |value: i32| match is_left {
        true => value.wrapping_shl(n_bits as u32),
        false => value.wrapping_shr(n_bits as u32),
    };
    Ok(match left {
        Datum::Int2(value) => Datum::Int2(narrow(i32::from(*value)) as i16),
        Datum::Int4(value) => Datum::Int4(narrow(*value)),
        Datum::Int8(value) if is_left => Datum::Int8(value.wrapping_shl(n_bits as u32)),
        Datum::Int8(value) => Datum::Int8(value.wrapping_shr(n_bits as u32)),
        _ => return Err(undefined(op)),
    })
}

/// `+ - * /` on floats: what finite operands make infinite or zero is an error.
pub fn float(op: Arithmetic, a: f64, b: f64) -> Result<f64> {
    let value = match op {
        Arithmetic::Add => a + b,
        Arithmetic::Subtract => a - b,
        Arithmetic::Multiply => a * b,
        Arithmetic::Divide if b == 0.0 && !a.is_nan() => return Err(division_by_zero()),
        Arithmetic::Divide => a / b,
        _ => return Err(undefined(op)),
    };
    if value.is_infinite() && a.is_finite() && b.is_finite() {
        return Err(Error::new(state::OUT_OF_RANGE, "value out of range: overflow"));
    }
    if value == 0.0
        && a != 0.0
        && matches!(op, Arithmetic::Multiply | Arithmetic::Divide)
        && b != 0.0
        && b.is_finite()
    {
        return Err(Error::new(state::OUT_OF_RANGE, "value out of range: underflow"));
    }
    Ok(value)
}

fn undefined(op: Arithmetic) -> Error {
    Error::new(
        state::UNDEFINED_FUNCTION,
        format!("operator {op:?} does not exist for these operands"),
    )
}

impl Arithmetic {
    /// Operands of one number type, or a pair of dates, times and intervals that the binder let
    /// through.
    pub fn apply(self, left: &Datum, right: &Datum, zone: &Zone) -> Result<Datum> {
        use Datum::*;
        Ok(match (left, right) {
            (Null, _) | (_, Null) => Null,
            (_, Int4(n_bits)) if matches!(self, Arithmetic::ShiftLeft | Arithmetic::ShiftRight) => {
                shift(self, left, *n_bits)?
            }
            (Int4(a), Int4(b)) => integer_arithmetic!(self, *a, *b, Int4, "integer")?,
            (Int8(a), Int8(b)) => integer_arithmetic!(self, *a, *b, Int8, "bigint")?,
            (Int2(a), Int2(b)) => integer_arithmetic!(self, *a, *b, Int2, "smallint")?,
            (Numeric(a), Numeric(b)) => Numeric(numeric(self, a, b)?),
            (Float8(a), Float8(b)) => Float8(float(self, *a, *b)?),
            (Float4(a), Float4(b)) => {
                Float4(cast::narrow_float(float(self, f64::from(*a), f64::from(*b))?)?)
            }
            (Text(a), Text(b)) if self == Arithmetic::Concat => {
                check_length(a.len().saturating_add(b.len()))?;
                Datum::text(format!("{a}{b}"))
            }
            (Bytes(a), Bytes(b)) if self == Arithmetic::Concat => {
                check_length(a.len().saturating_add(b.len()))?;
                Datum::bytes([&a[..], &b[..]].concat())
            }
            (Array(a), Array(b)) if self == Arithmetic::Concat => {
                Array(a.iter().chain(b.iter()).cloned().collect())
            }
            _ => temporal(self, left, right, zone)?,
        })
    }
}

fn numeric(op: Arithmetic, a: &Numeric, b: &Numeric) -> Result<Numeric> {
    match op {
        Arithmetic::Add => a.add(b),
        Arithmetic::Subtract => a.sub(b),
        Arithmetic::Multiply => a.mul(b),
        Arithmetic::Divide => a.div(b),
        Arithmetic::Modulo => a.rem(b),
        _ => Err(undefined(op)),
    }
}

fn temporal(op: Arithmetic, left: &Datum, right: &Datum, zone: &Zone) -> Result<Datum> {
    use Arithmetic::{Add, Divide, Multiply, Subtract};
    use Datum::*;
    Ok(match (op, left, right) {
        (Add, Date(a), Int2(n)) | (Add, Int2(n), Date(a)) => {
            Date(datetime::add_to_date(*a, i64::from(*n))?)
        }
        (Add, Date(a), Int4(n)) | (Add, Int4(n), Date(a)) => {
            Date(datetime::add_to_date(*a, i64::from(*n))?)
        }
        (Subtract, Date(a), Int2(n)) => Date(datetime::add_to_date(*a, -i64::from(*n))?),
        (Subtract, Date(a), Int4(n)) => Date(datetime::add_to_date(*a, -i64::from(*n))?),
        (Subtract, Date(a), Date(b)) => Int4(datetime::days_between(*a, *b)?),
        (Add, Date(a), Time(us)) | (Add, Time(us), Date(a)) => {
            Timestamp(datetime::add_time_of_day(*a, *us)?)
        }
        (Add, Date(a), Interval(i)) | (Add, Interval(i), Date(a)) => {
            Timestamp(datetime::add_interval(datetime::try_date_to_timestamp(*a)?, i)?)
        }
        (Subtract, Date(a), Interval(i)) => {
            Timestamp(datetime::add_interval(datetime::try_date_to_timestamp(*a)?, &i.neg()?)?)
        }
        (Add, Timestamp(a), Interval(i)) | (Add, Interval(i), Timestamp(a)) => {
            Timestamp(datetime::add_interval(*a, i)?)
        }
        (Subtract, Timestamp(a), Interval(i)) => Timestamp(datetime::add_interval(*a, &i.neg()?)?),
        (Add, TimestampTz(a), Interval(i)) | (Add, Interval(i), TimestampTz(a)) => {
            TimestampTz(datetime::add_interval_in(*a, i, zone)?)
        }
        (Subtract, TimestampTz(a), Interval(i)) => {
            TimestampTz(datetime::add_interval_in(*a, &i.neg()?, zone)?)
        }
        (Subtract, Timestamp(a), Timestamp(b)) | (Subtract, TimestampTz(a), TimestampTz(b)) => {
            Interval(datetime::time_between(*a, *b)?)
        }
        (Add, Interval(a), Interval(b)) => Interval(a.add(b)?),
        (Subtract, Interval(a), Interval(b)) => Interval(a.sub(b)?),
        (Multiply, Interval(i), n) | (Multiply, n, Interval(i)) if n.as_f64().is_some() => {
            Interval(i.mul(n.as_f64().unwrap_or_default())?)
        }
        (Divide, Interval(i), n) if n.as_f64().is_some() => {
            let by = n.as_f64().unwrap_or_default();
            if by == 0.0 {
                return Err(division_by_zero());
            }
            Interval(i.div(by)?)
        }
        (Add, Time(us), Interval(i)) | (Add, Interval(i), Time(us)) => {
            Time((us + i.us % datetime::DAY_US).rem_euclid(datetime::DAY_US))
        }
        (Subtract, Time(us), Interval(i)) => {
            Time((us - i.us % datetime::DAY_US).rem_euclid(datetime::DAY_US))
        }
        (Subtract, Time(a), Time(b)) => {
            Interval(self::Interval { us: a - b, ..Default::default() })
        }
        _ => return Err(undefined(op)),
    })
}

pub fn negate(datum: &Datum) -> Result<Datum> {
    Ok(match datum {
        Datum::Null => Datum::Null,
        Datum::Int2(value) => {
            Datum::Int2(value.checked_neg().ok_or_else(|| out_of_range("smallint"))?)
        }
        Datum::Int4(value) => {
            Datum::Int4(value.checked_neg().ok_or_else(|| out_of_range("integer"))?)
        }
        Datum::Int8(value) => {
            Datum::Int8(value.checked_neg().ok_or_else(|| out_of_range("bigint"))?)
        }
        Datum::Float4(value) => Datum::Float4(-value),
        Datum::Float8(value) => Datum::Float8(-value),
        Datum::Numeric(value) => Datum::Numeric(value.neg()),
        Datum::Interval(value) => Datum::Interval(value.neg()?),
        _ => return Err(undefined(Arithmetic::Subtract)),
    })
}

/// SQL's LIKE. `escape` none: the backslash.
pub fn like(text: &str, pattern: &str, escape: Option<char>) -> Result<bool> {
    enum Piece {
        Char(char),
        One,
        Many,
    }
    let escape = escape.unwrap_or('\\');
    let mut pieces = Vec::new();
    let mut letters = pattern.chars();
    while let Some(letter) = letters.next() {
        pieces.push(match letter {
            letter if letter == escape => Piece::Char(letters.next().ok_or_else(|| {
                Error::new("22025", "LIKE pattern must not end with escape character")
            })?),
            '%' => Piece::Many,
            '_' => Piece::One,
            other => Piece::Char(other),
        });
    }
    // Greedy with one point of return: the last `%` absorbs one more character at a mismatch.
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut piece) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    loop {
        match pieces.get(piece) {
            Some(Piece::Many) => {
                retry = Some((at, piece));
                piece += 1;
                continue;
            }
            Some(Piece::One) if at < text.len() => {
                at += 1;
                piece += 1;
                continue;
            }
            Some(Piece::Char(letter)) if text.get(at) == Some(letter) => {
                at += 1;
                piece += 1;
                continue;
            }
            None if at == text.len() => return Ok(true),
            _ => {}
        }
        match retry {
            Some((from, many)) if from < text.len() => {
                retry = Some((from + 1, many));
                at = from + 1;
                piece = many + 1;
            }
            _ => return Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match() {
        for (text, pattern, want) in [
            ("abc", "a%", true),
            ("abc", "%b%", true),
            ("abc", "_b_", true),
            ("abc", "a_", false),
            ("a%c", "a\\%c", true),
            ("abc", "a\\%c", false),
            ("", "%", true),
            ("aab", "%ab", true),
            ("grün", "gr_n", true),
        ] {
            assert_eq!(like(text, pattern, None).unwrap(), want, "{text} LIKE {pattern}");
        }
        assert!(like("a", "a\\", None).is_err());
    }

    #[test]
    fn arithmetic_overflows_loudly() {
        let apply = |op: Arithmetic, a: Datum, b: Datum| op.apply(&a, &b, &Zone::UTC);
        let state = |result: Result<Datum>| result.unwrap_err().state();
        assert_eq!(state(apply(Arithmetic::Add, Datum::Int4(i32::MAX), Datum::Int4(1))), "22003");
        assert_eq!(state(apply(Arithmetic::Divide, Datum::Int8(1), Datum::Int8(0))), "22012");
        assert_eq!(
            state(apply(Arithmetic::Multiply, Datum::Float8(1e308), Datum::Float8(10.0))),
            "22003"
        );
        assert_eq!(
            apply(Arithmetic::Modulo, Datum::Int4(i32::MIN), Datum::Int4(-1)).unwrap(),
            Datum::Int4(0)
        );
        assert_eq!(
            apply(Arithmetic::Divide, Datum::Int4(-7), Datum::Int4(2)).unwrap(),
            Datum::Int4(-3)
        );
    }
}
