//! SQL's types and values, as PostgreSQL defines them.
//!
//! A [`Type`] is what the catalog stores and the wire announces; a [`Datum`] is one value. A datum
//! does not carry its type: `int4` and `int8` have variants of their own, but `text`, `varchar`
//! and `char(n)` share one, so whoever prints a datum passes the column's type along.
//!
//! Canonical forms, kept by every producer of datums:
//! - `char(n)` is held without its padding (comparison ignores it anyway) and padded when printed;
//! - dates are days and timestamps microseconds since 1970-01-01 (as in Arrow; the wire's 2000 is
//!   added and taken away in [`binary`]); the extremes of the integer are ±infinity;
//! - a `numeric` keeps its display scale: `1.0` and `1.00` are equal but print differently.
//!
//! Absent: numerics of more than 38 digits and their NaN; types made by users; ranges.

pub mod binary;
pub mod cast;
pub mod datetime;
pub mod numeric;
pub mod text;

pub use datetime::{Interval, Zone};
pub use numeric::Numeric;

use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// A row of a result.
pub type Row = Vec<Datum>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Type {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    /// Precision and scale in decimal digits, `1..=38` and `0..=precision`; none: as it comes.
    Numeric(Option<(u8, u8)>),
    Text,
    /// Length in characters.
    Varchar(Option<u32>),
    /// `char(n)`, PostgreSQL's `bpchar`, length in characters.
    Char(u32),
    Bytea,
    Date,
    Time,
    Timestamp,
    TimestampTz,
    Interval,
    Uuid,
    Json,
    /// Row ids of PostgreSQL's own catalog; values are [`Datum::Int8`].
    Oid,
    /// An identifier in PostgreSQL's own catalog.
    Name,
    /// PostgreSQL's one-byte `"char"`, in its own catalog only.
    InternalChar,
    /// For parameters and literals; no column is an array.
    Array(Box<Type>),
    /// What a function that answers nothing answers.
    Void,
    /// A literal or parameter whose type the context has yet to say.
    Unknown,
}

/// One value. 32 bytes; cheap to clone.
#[derive(Clone, Default)]
pub enum Datum {
    #[default]
    Null,
    Bool(bool),
    Int2(i16),
    Int4(i32),
    Int8(i64),
    Float4(f32),
    Float8(f64),
    Numeric(Numeric),
    /// Also varchar, char(n) (without its padding), json, name.
    Text(Arc<str>),
    Bytes(Arc<[u8]>),
    /// Days since 1970-01-01.
    Date(i32),
    /// Microseconds since midnight.
    Time(i64),
    /// Microseconds since 1970-01-01 00:00:00, of the local calendar.
    Timestamp(i64),
    /// Microseconds since 1970-01-01 00:00:00 UTC.
    TimestampTz(i64),
    Interval(Interval),
    Uuid(uuid::Uuid),
    Array(Arc<[Datum]>),
}

/// What a row takes in memory, about.
pub fn memory_bytes(row: &[Datum]) -> usize {
    size_of::<Row>() + row.iter().map(Datum::memory_bytes).sum::<usize>()
}

impl Type {
    /// PostgreSQL's number for the type.
    pub fn oid(&self) -> u32 {
        match self {
            Type::Bool => 16,
            Type::Bytea => 17,
            Type::InternalChar => 18,
            Type::Name => 19,
            Type::Int8 => 20,
            Type::Int2 => 21,
            Type::Int4 => 23,
            Type::Text => 25,
            Type::Oid => 26,
            Type::Json => 114,
            Type::Float4 => 700,
            Type::Float8 => 701,
            Type::Unknown => 705,
            Type::Char(_) => 1042,
            Type::Varchar(_) => 1043,
            Type::Date => 1082,
            Type::Time => 1083,
            Type::Timestamp => 1114,
            Type::TimestampTz => 1184,
            Type::Interval => 1186,
            Type::Numeric(_) => 1700,
            Type::Void => 2278,
            Type::Uuid => 2950,
            Type::Array(element) => match **element {
                Type::Bool => 1000,
                Type::Bytea => 1001,
                Type::InternalChar => 1002,
                Type::Name => 1003,
                Type::Int2 => 1005,
                Type::Int4 => 1007,
                Type::Text => 1009,
                Type::Char(_) => 1014,
                Type::Varchar(_) => 1015,
                Type::Int8 => 1016,
                Type::Float4 => 1021,
                Type::Float8 => 1022,
                Type::Oid => 1028,
                Type::Timestamp => 1115,
                Type::Date => 1182,
                Type::Time => 1183,
                Type::TimestampTz => 1185,
                Type::Interval => 1187,
                Type::Numeric(_) => 1231,
                Type::Uuid => 2951,
                Type::Json => 199,
                _ => 1009,
            },
        }
    }

    /// The type that a driver means by `oid`; none for 0 (unspecified) and for types not here.
    pub fn from_oid(oid: u32) -> Option<Type> {
        let array = |element| Some(Type::Array(Box::new(element)));
        Some(match oid {
            16 => Type::Bool,
            17 => Type::Bytea,
            18 => Type::InternalChar,
            19 => Type::Name,
            20 => Type::Int8,
            21 => Type::Int2,
            23 => Type::Int4,
            25 => Type::Text,
            26 | 2205 => Type::Oid,
            114 | 3802 => Type::Json,
            700 => Type::Float4,
            701 => Type::Float8,
            1042 => Type::Char(0),
            1043 => Type::Varchar(None),
            1082 => Type::Date,
            1083 => Type::Time,
            1114 => Type::Timestamp,
            1184 => Type::TimestampTz,
            1186 => Type::Interval,
            1700 => Type::Numeric(None),
            2278 => Type::Void,
            2950 => Type::Uuid,
            1000 => return array(Type::Bool),
            1001 => return array(Type::Bytea),
            1003 => return array(Type::Name),
            1005 => return array(Type::Int2),
            1007 => return array(Type::Int4),
            1009 => return array(Type::Text),
            1014 => return array(Type::Char(0)),
            1015 => return array(Type::Varchar(None)),
            1016 => return array(Type::Int8),
            1021 => return array(Type::Float4),
            1022 => return array(Type::Float8),
            1028 => return array(Type::Oid),
            1115 => return array(Type::Timestamp),
            1182 => return array(Type::Date),
            1183 => return array(Type::Time),
            1185 => return array(Type::TimestampTz),
            1187 => return array(Type::Interval),
            1231 => return array(Type::Numeric(None)),
            2951 => return array(Type::Uuid),
            _ => return None,
        })
    }

    /// `format_type`'s name without the modifier: `character varying`, `timestamp with time zone`.
    pub fn base_name(&self) -> &'static str {
        match self {
            Type::Bool => "boolean",
            Type::Int2 => "smallint",
            Type::Int4 => "integer",
            Type::Int8 => "bigint",
            Type::Float4 => "real",
            Type::Float8 => "double precision",
            Type::Numeric(_) => "numeric",
            Type::Text => "text",
            Type::Varchar(_) => "character varying",
            Type::Char(_) => "character",
            Type::Bytea => "bytea",
            Type::Date => "date",
            Type::Time => "time without time zone",
            Type::Timestamp => "timestamp without time zone",
            Type::TimestampTz => "timestamp with time zone",
            Type::Interval => "interval",
            Type::Uuid => "uuid",
            Type::Json => "json",
            Type::Oid => "oid",
            Type::Name => "name",
            Type::InternalChar => "\"char\"",
            Type::Array(_) => "ARRAY",
            Type::Void => "void",
            Type::Unknown => "unknown",
        }
    }

    /// `format_type`'s name: `character varying(20)`, `integer[]`.
    pub fn name(&self) -> String {
        match self {
            Type::Numeric(Some((precision, scale))) => format!("numeric({precision},{scale})"),
            Type::Varchar(Some(n)) => format!("character varying({n})"),
            Type::Char(n) if *n > 0 => format!("character({n})"),
            Type::Array(element) => format!("{}[]", element.name()),
            other => other.base_name().to_owned(),
        }
    }

    /// `pg_type.typname`: `int4`, `bpchar`, `_int4`.
    pub fn short_name(&self) -> String {
        match self {
            Type::Bool => "bool".into(),
            Type::Int2 => "int2".into(),
            Type::Int4 => "int4".into(),
            Type::Int8 => "int8".into(),
            Type::Float4 => "float4".into(),
            Type::Float8 => "float8".into(),
            Type::Varchar(_) => "varchar".into(),
            Type::Char(_) => "bpchar".into(),
            Type::Time => "time".into(),
            Type::Timestamp => "timestamp".into(),
            Type::TimestampTz => "timestamptz".into(),
            Type::InternalChar => "char".into(),
            Type::Array(element) => format!("_{}", element.short_name()),
            other => other.base_name().into(),
        }
    }

    /// `pg_attribute.atttypmod`, as `RowDescription` sends it; -1 for none.
    pub fn modifier(&self) -> i32 {
        match self {
            Type::Numeric(Some((precision, scale))) => {
                ((i32::from(*precision)) << 16 | i32::from(*scale)) + 4
            }
            Type::Varchar(Some(n)) => i32::try_from(*n).unwrap_or(i32::MAX - 4) + 4,
            Type::Char(n) if *n > 0 => i32::try_from(*n).unwrap_or(i32::MAX - 4) + 4,
            _ => -1,
        }
    }

    /// `pg_type.typlen`: bytes, or -1 for a length that varies.
    pub fn byte_len(&self) -> i16 {
        match self {
            Type::Bool | Type::InternalChar => 1,
            Type::Int2 => 2,
            Type::Int4 | Type::Float4 | Type::Date | Type::Oid | Type::Void => 4,
            Type::Int8 | Type::Float8 | Type::Time | Type::Timestamp | Type::TimestampTz => 8,
            Type::Interval | Type::Uuid => 16,
            Type::Name => 64,
            Type::Unknown => -2,
            _ => -1,
        }
    }

    pub fn is_number(&self) -> bool {
        self.is_integer() || matches!(self, Type::Float4 | Type::Float8 | Type::Numeric(_))
    }

    pub fn is_integer(&self) -> bool {
        matches!(self, Type::Int2 | Type::Int4 | Type::Int8 | Type::Oid)
    }

    pub fn is_text(&self) -> bool {
        matches!(
            self,
            Type::Text | Type::Varchar(_) | Type::Char(_) | Type::Name | Type::InternalChar
        )
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl Datum {
    pub fn text(text: impl AsRef<str>) -> Datum {
        Datum::Text(Arc::from(text.as_ref()))
    }

    /// What it takes in memory, about.
    pub fn memory_bytes(&self) -> usize {
        let heap = match self {
            Datum::Text(text) => text.len(),
            Datum::Bytes(bytes) => bytes.len(),
            Datum::Array(items) => memory_bytes(items),
            _ => 0,
        };
        size_of::<Datum>() + heap
    }

    pub fn bytes(bytes: impl AsRef<[u8]>) -> Datum {
        Datum::Bytes(Arc::from(bytes.as_ref()))
    }

    pub fn is_null(&self) -> bool {
        matches!(self, Datum::Null)
    }

    /// An integer of any width.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Datum::Int2(value) => Some(i64::from(*value)),
            Datum::Int4(value) => Some(i64::from(*value)),
            Datum::Int8(value) => Some(*value),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Datum::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Datum::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// What stands for a date or timestamp in a comparison with one of the type `ty`: itself as such, or
    /// the nearest that there is.
    pub fn nearest_timestamp(&self, ty: &Type, zone: &Zone) -> Datum {
        let local = match self {
            Datum::Date(days) => datetime::date_to_timestamp(*days),
            Datum::Timestamp(us) => *us,
            other => return other.clone(),
        };
        match ty {
            Type::TimestampTz => Datum::TimestampTz(zone.to_utc(local)),
            _ => Datum::Timestamp(local),
        }
    }

    /// SQL's `=` and `<`: unknown (none) when either side is NULL. Numbers of different types
    /// compare by value; anything else must be of one type, which the binder sees to.
    pub fn compare(&self, other: &Datum) -> Option<Ordering> {
        match (self, other) {
            (Datum::Null, _) | (_, Datum::Null) => None,
            _ => Some(self.order(other)),
        }
    }

    /// The order of `ORDER BY`: NULL is larger than everything and equal to itself.
    pub fn order(&self, other: &Datum) -> Ordering {
        use Datum::*;
        match (self, other) {
            (Null, Null) => Ordering::Equal,
            (Null, _) => Ordering::Greater,
            (_, Null) => Ordering::Less,
            (Bool(a), Bool(b)) => a.cmp(b),
            (Text(a), Text(b)) => a.as_bytes().cmp(b.as_bytes()),
            (Bytes(a), Bytes(b)) => a.cmp(b),
            (Date(a), Date(b)) => a.cmp(b),
            (Time(a), Time(b)) => a.cmp(b),
            (Timestamp(a) | TimestampTz(a), Timestamp(b) | TimestampTz(b)) => a.cmp(b),
            (Date(a), Timestamp(b) | TimestampTz(b)) => datetime::order_date(*a, *b),
            (Timestamp(a) | TimestampTz(a), Date(b)) => datetime::order_date(*b, *a).reverse(),
            (Interval(a), Interval(b)) => a.order(b),
            (Uuid(a), Uuid(b)) => a.cmp(b),
            (Array(a), Array(b)) => {
                let first = a.iter().zip(b.iter()).map(|(a, b)| a.order(b)).find(|o| o.is_ne());
                first.unwrap_or_else(|| a.len().cmp(&b.len()))
            }
            (Float4(a), Float4(b)) => order_floats(f64::from(*a), f64::from(*b)),
            (Numeric(a), Numeric(b)) => a.cmp(b),
            _ => match (self.as_i64(), other.as_i64()) {
                (Some(a), Some(b)) => a.cmp(&b),
                (Some(a), None) => other.order_to_i64(a).reverse(),
                (None, Some(b)) => self.order_to_i64(b),
                (None, None) => match (self.as_f64(), other.as_f64()) {
                    (Some(a), Some(b)) => order_floats(a, b),
                    _ => self.rank().cmp(&other.rank()),
                },
            },
        }
    }

    fn order_to_i64(&self, other: i64) -> Ordering {
        match self {
            Datum::Numeric(value) => value.cmp(&numeric::Numeric::from(other)),
            // Through f64 as in PostgreSQL, whose `int8 = float8` converts too.
            _ => match self.as_f64() {
                Some(value) => order_floats(value, other as f64),
                None => self.rank().cmp(&Datum::Int8(other).rank()),
            },
        }
    }

    /// Any number as a float.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Datum::Float4(value) => Some(f64::from(*value)),
            Datum::Float8(value) => Some(*value),
            Datum::Numeric(value) => Some(value.to_f64()),
            other => other.as_i64().map(|value| value as f64),
        }
    }

    /// A fixed order among kinds that never meet in one well-typed comparison.
    fn rank(&self) -> u8 {
        match self {
            Datum::Bool(_) => 0,
            Datum::Int2(_) | Datum::Int4(_) | Datum::Int8(_) => 1,
            Datum::Float4(_) | Datum::Float8(_) | Datum::Numeric(_) => 1,
            Datum::Text(_) => 2,
            Datum::Bytes(_) => 3,
            Datum::Date(_) | Datum::Timestamp(_) | Datum::TimestampTz(_) => 4,
            Datum::Time(_) => 5,
            Datum::Interval(_) => 6,
            Datum::Uuid(_) => 7,
            Datum::Array(_) => 8,
            Datum::Null => 9,
        }
    }
}

/// PostgreSQL's order of floats: NaN equals itself and is larger than everything; -0 equals 0.
pub fn order_floats(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// Sameness in the sense of `IS NOT DISTINCT FROM`.
impl PartialEq for Datum {
    fn eq(&self, other: &Datum) -> bool {
        self.order(other).is_eq()
    }
}

impl Eq for Datum {}

impl Hash for Datum {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Datum::Null => 0u8.hash(state),
            Datum::Bool(value) => value.hash(state),
            Datum::Text(value) => value.hash(state),
            Datum::Bytes(value) => value.hash(state),
            Datum::Date(value) => datetime::date_to_timestamp(*value).hash(state),
            Datum::Time(value) => value.hash(state),
            Datum::Timestamp(value) | Datum::TimestampTz(value) => value.hash(state),
            Datum::Interval(value) => value.span_us().hash(state),
            Datum::Uuid(value) => value.hash(state),
            Datum::Array(value) => value.iter().for_each(|datum| datum.hash(state)),
            // Equal numbers of different types must meet in one bucket.
            number => {
                let value = number.as_f64().unwrap_or_default();
                let value = if value == 0.0 { 0.0 } else { value };
                (if value.is_nan() { f64::NAN } else { value }).to_bits().hash(state);
            }
        }
    }
}

impl fmt::Debug for Datum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Datum::Null => f.write_str("NULL"),
            Datum::Text(text) => write!(f, "{text:?}"),
            other => f.write_str(&text::show(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datum_stays_small() {
        assert_eq!(std::mem::size_of::<Datum>(), 32);
    }

    #[test]
    fn numbers_compare_across_types() {
        let numeric = Datum::Numeric("2.50".parse().unwrap());
        assert!(Datum::Int4(2).order(&numeric).is_lt());
        assert!(Datum::Float8(2.5).order(&numeric).is_eq());
        assert!(Datum::Float8(f64::NAN).order(&Datum::Int8(i64::MAX)).is_gt());
        assert!(Datum::Null.order(&numeric).is_gt());
        assert_eq!(Datum::Null.compare(&numeric), None);
    }
}
