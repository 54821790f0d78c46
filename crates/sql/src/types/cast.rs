//! From one type to another: which casts there are, who may ask for them, and what they do.

use super::datetime::{self, Zone};
use super::numeric::Numeric;
use super::{Datum, Type, text};
use crate::error::{Error, Result, state};

/// Who may ask for a cast, from the most to the least free; `pg_cast.castcontext`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Context {
    /// Anywhere in an expression.
    Implicit,
    /// Storing into a column.
    Assignment,
    /// `CAST` and `::` only.
    Explicit,
}

/// The least explicit context in which the cast exists; none where there is no such cast.
pub fn context(from: &Type, to: &Type) -> Option<Context> {
    use Context::*;
    use Type::*;
    let number = |ty: &Type| match ty {
        Int2 => Some(1),
        Int4 => Some(2),
        Int8 => Some(3),
        Numeric(_) => Some(4),
        Float4 => Some(5),
        Float8 => Some(6),
        _ => None,
    };
    if let (Some(a), Some(b)) = (number(from), number(to)) {
        return Some(if a <= b { Implicit } else { Assignment });
    }
    Some(match (from, to) {
        (Unknown, _) => Implicit,
        (Array(a), Array(b)) => return context(a, b),
        (Void, Void) => Implicit,
        (a, b) if std::mem::discriminant(a) == std::mem::discriminant(b) => Implicit,
        (Text | Varchar(_) | Char(_) | Name, Text | Varchar(_) | Char(_)) => Implicit,
        (Text | Varchar(_) | Char(_), Name) => Implicit,
        (InternalChar, Text | Varchar(_) | Char(_)) => Implicit,
        (Text | Varchar(_) | Char(_), InternalChar) => Assignment,
        (Int2 | Int4 | Int8, Oid) => Implicit,
        (Oid, Int4 | Int8) => Assignment,
        (Int4, Bool) | (Bool, Int4) => Explicit,
        (Date, Timestamp | TimestampTz) | (Timestamp, TimestampTz) => Implicit,
        (Timestamp, Date | Time) | (TimestampTz, Date | Time | Timestamp) => Assignment,
        (Time, Interval) => Implicit,
        (Interval, Time) => Assignment,
        // Through text: everything may be stored as text, text becomes anything when asked to.
        (_, Text | Varchar(_) | Char(_)) => Assignment,
        (Text | Varchar(_) | Char(_) | Name, _) => Explicit,
        _ => return None,
    })
}

fn out_of_range(ty: &Type) -> Error {
    Error::new(state::OUT_OF_RANGE, format!("{} out of range", ty.base_name()))
}

/// As `real` holds it; an error where a number that is neither infinite nor zero would become so.
pub fn narrow_float(value: f64) -> Result<f32> {
    let narrow = value as f32;
    let error =
        |how: &str| Err(Error::new(state::OUT_OF_RANGE, format!("value out of range: {how}")));
    if narrow.is_infinite() && value.is_finite() {
        return error("overflow");
    }
    if narrow == 0.0 && value != 0.0 {
        return error("underflow");
    }
    Ok(narrow)
}

/// Converts a datum of type `from`. Whether the cast is allowed was the binder's question.
/// `explicit`: text that is too long is cut instead of refused.
pub fn cast(datum: Datum, from: &Type, to: &Type, zone: &Zone, explicit: bool) -> Result<Datum> {
    if datum.is_null() {
        return Ok(Datum::Null);
    }
    let integer = |value: i64| -> Result<Datum> {
        Ok(match to {
            Type::Int2 => Datum::Int2(i16::try_from(value).map_err(|_| out_of_range(to))?),
            Type::Int4 => Datum::Int4(i32::try_from(value).map_err(|_| out_of_range(to))?),
            _ => Datum::Int8(value),
        })
    };
    let converted = match (&datum, to) {
        (Datum::Int2(_) | Datum::Int4(_) | Datum::Int8(_), to) if to.is_integer() => {
            integer(datum.as_i64().unwrap_or_default())?
        }
        (Datum::Float4(_) | Datum::Float8(_), to) if to.is_integer() => {
            let value = datum.as_f64().unwrap_or_default().round_ties_even();
            // The bounds themselves are exact floats; i64::MAX is not, hence the open end.
            if !(-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&value) {
                return Err(out_of_range(to));
            }
            integer(value as i64)?
        }
        (Datum::Numeric(value), to) if to.is_integer() => {
            integer(value.to_i64().ok_or_else(|| out_of_range(to))?)?
        }
        (Datum::Bool(value), Type::Int4) => Datum::Int4(i32::from(*value)),
        (Datum::Int2(_) | Datum::Int4(_) | Datum::Int8(_), Type::Bool) => {
            Datum::Bool(datum.as_i64() != Some(0))
        }
        (Datum::Float8(value), Type::Float4) => Datum::Float4(narrow_float(*value)?),
        (Datum::Float4(_), Type::Float4) | (Datum::Float8(_), Type::Float8) => datum,
        (_, Type::Float8) if datum.as_f64().is_some() => {
            Datum::Float8(datum.as_f64().unwrap_or_default())
        }
        (_, Type::Float4) if datum.as_f64().is_some() => {
            Datum::Float4(narrow_float(datum.as_f64().unwrap_or_default())?)
        }
        (Datum::Numeric(_), Type::Numeric(_)) => fit(datum, to, explicit)?,
        (Datum::Int2(_) | Datum::Int4(_) | Datum::Int8(_), Type::Numeric(_)) => {
            let value = Numeric::from(datum.as_i64().unwrap_or_default());
            fit(Datum::Numeric(value), to, explicit)?
        }
        (Datum::Float8(value), Type::Numeric(_)) => {
            fit(Datum::Numeric(Numeric::from_f64(*value)?), to, explicit)?
        }
        (Datum::Float4(value), Type::Numeric(_)) => {
            fit(Datum::Numeric(Numeric::from_f32(*value)?), to, explicit)?
        }
        (Datum::Date(days), Type::Timestamp) => {
            Datum::Timestamp(datetime::try_date_to_timestamp(*days)?)
        }
        (Datum::Date(days), Type::TimestampTz) => {
            Datum::TimestampTz(zone.try_to_utc(datetime::try_date_to_timestamp(*days)?)?)
        }
        (Datum::Timestamp(us), Type::TimestampTz) => Datum::TimestampTz(zone.try_to_utc(*us)?),
        (Datum::TimestampTz(us), Type::Timestamp) => Datum::Timestamp(zone.try_to_local(*us)?),
        (Datum::Timestamp(us), Type::Date) => Datum::Date(datetime::timestamp_to_date(*us)),
        (Datum::TimestampTz(us), Type::Date) => {
            match datetime::is_infinite(*us) {
                true => Datum::Date(datetime::timestamp_to_date(*us)),
                // PostgreSQL's dates begin a day earlier here, west of Greenwich.
                false => Datum::Date(zone.day_and_time(*us).0 as i32),
            }
        }
        // An infinite time has no time of day.
        (Datum::Timestamp(us) | Datum::TimestampTz(us), Type::Time)
            if datetime::is_infinite(*us) =>
        {
            Datum::Null
        }
        (Datum::Timestamp(us), Type::Time) => Datum::Time(us.rem_euclid(datetime::DAY_US)),
        (Datum::TimestampTz(us), Type::Time) => Datum::Time(zone.day_and_time(*us).1),
        (Datum::Time(us), Type::Interval) => {
            Datum::Interval(datetime::Interval { us: *us, ..Default::default() })
        }
        (Datum::Interval(interval), Type::Time) => {
            Datum::Time(interval.us.rem_euclid(datetime::DAY_US))
        }
        (Datum::Array(elements), Type::Array(element_to)) => {
            let element_from = match from {
                Type::Array(element) => element,
                other => other,
            };
            let cast_one =
                |element: &Datum| cast(element.clone(), element_from, element_to, zone, explicit);
            Datum::Array(elements.iter().map(cast_one).collect::<Result<Vec<_>>>()?.into())
        }
        (Datum::Text(_), Type::Text | Type::Varchar(_) | Type::Char(_) | Type::InternalChar) => {
            fit(datum, to, explicit)?
        }
        (Datum::Text(_), Type::Name | Type::Unknown) => datum,
        (Datum::Text(value), _) => match to {
            Type::Numeric(Some(_)) | Type::Json => text::parse(value, to, zone)?,
            _ => text::parse(value, to, zone)?,
        },
        (Datum::Bool(value), Type::Text | Type::Varchar(_) | Type::Char(_)) => {
            fit(Datum::text(if *value { "true" } else { "false" }), to, explicit)?
        }
        (_, Type::Text | Type::Varchar(_) | Type::Char(_) | Type::Name) => {
            fit(Datum::text(text::to_string(&datum, from, zone)), to, explicit)?
        }
        _ => datum,
    };
    Ok(converted)
}

/// Applies a column's length or scale to a value that already has the column's kind.
pub fn fit(datum: Datum, ty: &Type, explicit: bool) -> Result<Datum> {
    match (&datum, ty) {
        (Datum::Numeric(value), Type::Numeric(Some((precision, scale)))) => {
            Ok(Datum::Numeric(value.fit(*precision, *scale)?))
        }
        (Datum::Text(value), Type::Varchar(Some(n))) => {
            let Some(cut) = char_boundary(value, *n) else { return Ok(datum) };
            if explicit || value[cut..].bytes().all(|byte| byte == b' ') {
                return Ok(Datum::text(&value[..cut]));
            }
            Err(too_long(ty))
        }
        (Datum::Text(value), Type::Char(n)) => {
            let trimmed = value.trim_end_matches(' ');
            // Length 0 marks a parameter or literal whose length is not declared.
            if let (Some(cut), true) = (char_boundary(trimmed, *n), *n > 0) {
                if !explicit {
                    return Err(too_long(ty));
                }
                return Ok(Datum::text(trimmed[..cut].trim_end_matches(' ')));
            }
            Ok(if trimmed.len() == value.len() { datum } else { Datum::text(trimmed) })
        }
        (Datum::Text(value), Type::InternalChar) => {
            let cut = char_boundary(value, 1).unwrap_or(value.len());
            Ok(Datum::text(&value[..cut]))
        }
        _ => Ok(datum),
    }
}

fn too_long(ty: &Type) -> Error {
    Error::new(state::STRING_TOO_LONG, format!("value too long for type {}", ty.name()))
}

/// Where the first `n` characters end, if there are more.
fn char_boundary(text: &str, n: u32) -> Option<usize> {
    if text.len() <= n as usize {
        return None;
    }
    text.char_indices().nth(n as usize).map(|(at, _)| at)
}

/// The common type of UNION, CASE, COALESCE, VALUES, and of the sides of an operator.
pub fn common(a: &Type, b: &Type) -> Option<Type> {
    if a == b || *b == Type::Unknown {
        return Some(a.clone());
    }
    if *a == Type::Unknown {
        return Some(b.clone());
    }
    match (a, b) {
        (Type::Numeric(_), Type::Numeric(_)) => return Some(Type::Numeric(None)),
        (Type::Varchar(_), Type::Varchar(_)) => return Some(Type::Varchar(None)),
        (Type::Char(_), Type::Char(_)) => return Some(Type::Char(0)),
        (a, b) if a.is_text() && b.is_text() => return Some(Type::Text),
        _ => {}
    }
    // One that both reach; numbers meet at the wider, and numeric with float at float8.
    if context(a, b) == Some(Context::Implicit) {
        return Some(match b {
            Type::Numeric(_) => Type::Numeric(None),
            Type::Float4 if matches!(a, Type::Numeric(_)) => Type::Float8,
            other => other.clone(),
        });
    }
    if context(b, a) == Some(Context::Implicit) {
        return common(b, a);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn casts_round_and_refuse_as_postgres_does() {
        let zone = Zone::UTC;
        let cast_text = |text: &str, from: Type, to: Type, explicit: bool| {
            let datum = text::parse(text, &from, &zone).unwrap();
            cast(datum, &from, &to, &zone, explicit)
                .map(|datum| text::to_string(&datum, &to, &zone))
        };
        let numeric = || Type::Numeric(None);
        assert_eq!(cast_text("2.5", numeric(), Type::Int4, false).unwrap(), "3");
        assert_eq!(cast_text("2.5", Type::Float8, Type::Int4, false).unwrap(), "2");
        assert_eq!(cast_text("40000", Type::Int4, Type::Int2, false).unwrap_err().state(), "22003");
        assert_eq!(cast_text("abcd", Type::Text, Type::Varchar(Some(2)), true).unwrap(), "ab");
        let refused = cast_text("abcd", Type::Text, Type::Varchar(Some(2)), false);
        assert_eq!(refused.unwrap_err().state(), "22001");
        assert_eq!(cast_text("ab  ", Type::Text, Type::Varchar(Some(2)), false).unwrap(), "ab");
        assert_eq!(cast_text("t", Type::Bool, Type::Text, true).unwrap(), "true");
        assert_eq!(cast_text("0.1", Type::Float4, Type::Numeric(None), false).unwrap(), "0.1");
        assert_eq!(context(&Type::Text, &Type::Int4), Some(Context::Explicit));
        assert_eq!(context(&Type::Int4, &Type::Text), Some(Context::Assignment));
        assert_eq!(context(&Type::Uuid, &Type::Int4), None);
    }
}
