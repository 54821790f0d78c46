//! Types and values between SQL and Arrow.
//!
//! Arrow knows fewer types than SQL, so a field's metadata carries the SQL type it stands for. A
//! field without it (the result of an operator) gets the obvious one. Representations chosen:
//!
//! - `numeric(p,s)` is `Decimal128(p,s)`: fast, and every value has the column's scale anyway.
//! - `numeric` without a scale is [`NUMERIC`], a `Decimal256(76,40)` whose last two digits hold the
//!   value's display scale: `1.50` is 1.50 and `…02`. Values have at most 38 digits after the
//!   point, so the digits are free; order is kept, and what compares for equality strips them
//!   first ([`super::expr`]).
//! - `char(n)` is its text without padding, `uuid` its canonical text: both order as they should.
//! - `oid` is `Int64`.

use arrow::array::*;
use arrow::datatypes::{
    DataType, Field, FieldRef, IntervalMonthDayNano, IntervalUnit, TimeUnit, i256,
};
use datafusion_common::ScalarValue;
use sql::codec::Value;
use sql::error::{Error, Result, state};
use sql::types::{Datum, Interval, Numeric, Row, Type};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// `numeric` without declared scale.
pub const NUMERIC: DataType = DataType::Decimal256(76, NUMERIC_SCALE as i8);
const NUMERIC_SCALE: u8 = 40;
/// Digits after the point that a value may have: the two below hold the display scale.
pub const DISPLAY_SCALE_MAX: u8 = 38;

const TYPE_KEY: &str = "sql.type";
const ORIGIN_KEY: &str = "sql.origin";

static POWERS: LazyLock<[i256; 77]> = LazyLock::new(|| {
    let mut powers = [i256::ONE; 77];
    for idx in 1..powers.len() {
        powers[idx] = powers[idx - 1].wrapping_mul(i256::from_i128(10));
    }
    powers
});

pub fn arrow_type(ty: &Type) -> DataType {
    match ty {
        Type::Bool => DataType::Boolean,
        Type::Int2 => DataType::Int16,
        Type::Int4 => DataType::Int32,
        Type::Int8 | Type::Oid => DataType::Int64,
        Type::Float4 => DataType::Float32,
        Type::Float8 => DataType::Float64,
        Type::Numeric(Some((precision, scale))) => DataType::Decimal128(*precision, *scale as i8),
        Type::Numeric(None) => NUMERIC,
        Type::Bytea => DataType::Binary,
        Type::Date => DataType::Date32,
        Type::Time => DataType::Time64(TimeUnit::Microsecond),
        Type::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        Type::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some(utc())),
        Type::Interval => DataType::Interval(IntervalUnit::MonthDayNano),
        Type::Array(element) => {
            DataType::List(Arc::new(Field::new_list_field(arrow_type(element), true)))
        }
        Type::Unknown => DataType::Null,
        Type::Text
        | Type::Varchar(_)
        | Type::Char(_)
        | Type::Uuid
        | Type::Json
        | Type::Name
        | Type::InternalChar
        | Type::Void => DataType::Utf8,
    }
}

fn utc() -> Arc<str> {
    "+00:00".into()
}

/// A column's field. `origin` is the table's id and the column's number in it.
pub fn field(name: &str, ty: &Type, nullable: bool, origin: Option<(u32, i16)>) -> Field {
    let mut metadata = HashMap::new();
    // Where the Arrow type says it all there is nothing to add.
    if type_of_arrow(&arrow_type(ty)) != *ty
        && let Ok(text) = serde_json::to_string(ty)
    {
        metadata.insert(TYPE_KEY.to_owned(), text);
    }
    if let Some((table, attnum)) = origin {
        metadata.insert(ORIGIN_KEY.to_owned(), format!("{table}.{attnum}"));
    }
    Field::new(name, arrow_type(ty), nullable).with_metadata(metadata)
}

/// The SQL type of a field, and the table's column that it is.
pub fn type_of(field: &FieldRef) -> (Type, Option<(u32, i16)>) {
    let noted = field.metadata().get(TYPE_KEY).and_then(|text| serde_json::from_str(text).ok());
    // A cast keeps the metadata of what it casts.
    let noted = noted.filter(|ty| arrow_type(ty) == *field.data_type());
    let same = noted.is_some() || !field.metadata().contains_key(TYPE_KEY);
    let origin = field.metadata().get(ORIGIN_KEY).filter(|_| same).and_then(|text| {
        let (table, attnum) = text.split_once('.')?;
        Some((table.parse().ok()?, attnum.parse().ok()?))
    });
    let ty = noted.unwrap_or_else(|| match type_of_arrow(field.data_type()) {
        // A decimal that is not a column's own is PostgreSQL's numeric without a scale.
        Type::Numeric(_) if origin.is_none() => Type::Numeric(None),
        ty => ty,
    });
    (ty, origin)
}

/// The SQL type that an Arrow type stands for by itself.
pub fn type_of_arrow(ty: &DataType) -> Type {
    match ty {
        DataType::Boolean => Type::Bool,
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => Type::Int2,
        DataType::Int32 | DataType::UInt16 => Type::Int4,
        // Counts and positions come unsigned.
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => Type::Int8,
        DataType::Float16 | DataType::Float32 => Type::Float4,
        DataType::Float64 => Type::Float8,
        DataType::Decimal128(precision, scale) if *scale >= 0 => {
            Type::Numeric(Some((*precision, *scale as u8)))
        }
        DataType::Decimal32(..)
        | DataType::Decimal64(..)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => Type::Numeric(None),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => Type::Bytea,
        DataType::Date32 | DataType::Date64 => Type::Date,
        DataType::Time32(_) | DataType::Time64(_) => Type::Time,
        DataType::Timestamp(_, None) => Type::Timestamp,
        DataType::Timestamp(_, Some(_)) => Type::TimestampTz,
        DataType::Interval(_) | DataType::Duration(_) => Type::Interval,
        DataType::List(element) | DataType::LargeList(element) => {
            Type::Array(Box::new(type_of(element).0))
        }
        _ => Type::Text,
    }
}

/// A `numeric` in the representation of [`NUMERIC`].
pub fn pack(value: &Numeric) -> Result<i256> {
    let scale = value.scale();
    let too_large = || Error::new(state::OUT_OF_RANGE, "value overflows numeric format");
    if scale > DISPLAY_SCALE_MAX {
        return Err(too_large());
    }
    i256::from_i128(value.mantissa())
        .checked_mul(POWERS[usize::from(NUMERIC_SCALE - scale)])
        .and_then(|scaled| scaled.checked_add(i256::from_i128(i128::from(scale))))
        .ok_or_else(too_large)
}

/// The same value without its display scale, for comparisons.
pub fn strip(packed: i256) -> i256 {
    let hundred = i256::from_i128(100);
    let rest = packed.wrapping_rem(hundred);
    let rest = if rest < i256::ZERO { rest.wrapping_add(hundred) } else { rest };
    packed.wrapping_sub(rest)
}

/// Reads a [`NUMERIC`]. A value that came by a cast has no display scale: it shows what it has.
pub fn unpack(packed: i256) -> Result<Numeric> {
    let value = strip(packed);
    let noted = packed.wrapping_sub(value).as_i128() as u8;
    let mut scale = NUMERIC_SCALE;
    let mut mantissa = value;
    let ten = i256::from_i128(10);
    // Straight to the noted scale where the digits below it are zeros, as they mostly are.
    let unit = POWERS[usize::from(NUMERIC_SCALE - noted.min(NUMERIC_SCALE))];
    if value.wrapping_rem(unit) == i256::ZERO {
        mantissa = value.wrapping_div(unit);
        scale = noted.min(NUMERIC_SCALE);
    } else {
        while scale > 0 && mantissa.wrapping_rem(ten) == i256::ZERO {
            mantissa = mantissa.wrapping_div(ten);
            scale -= 1;
        }
    }
    // More digits than a numeric holds here: the last ones go, the value stays.
    while mantissa.to_i128().is_none() && scale > 0 {
        mantissa = mantissa.wrapping_div(ten);
        scale -= 1;
    }
    let mantissa = mantissa
        .to_i128()
        .ok_or_else(|| Error::new(state::OUT_OF_RANGE, "value overflows numeric format"))?;
    Numeric::new(mantissa, scale)
}

/// Builds one Arrow column from datums.
pub struct Builder {
    ty: Type,
    inner: Inner,
}

enum Inner {
    Bool(BooleanBuilder),
    Int2(Int16Builder),
    Int4(Int32Builder),
    Int8(Int64Builder),
    Float4(Float32Builder),
    Float8(Float64Builder),
    Decimal(Decimal128Builder, u8),
    Numeric(Decimal256Builder),
    Text(StringBuilder),
    Bytes(BinaryBuilder),
    Date(Date32Builder),
    Time(Time64MicrosecondBuilder),
    Timestamp(TimestampMicrosecondBuilder),
    Interval(IntervalMonthDayNanoBuilder),
    Null(usize),
    /// Arrays are rare: gathered as they are.
    Scalars(Vec<ScalarValue>),
}

impl Builder {
    pub fn new(ty: &Type, n_rows: usize) -> Builder {
        let inner = match arrow_type(ty) {
            DataType::Boolean => Inner::Bool(BooleanBuilder::with_capacity(n_rows)),
            DataType::Int16 => Inner::Int2(Int16Builder::with_capacity(n_rows)),
            DataType::Int32 => Inner::Int4(Int32Builder::with_capacity(n_rows)),
            DataType::Int64 => Inner::Int8(Int64Builder::with_capacity(n_rows)),
            DataType::Float32 => Inner::Float4(Float32Builder::with_capacity(n_rows)),
            DataType::Float64 => Inner::Float8(Float64Builder::with_capacity(n_rows)),
            DataType::Decimal128(precision, scale) => Inner::Decimal(
                Decimal128Builder::with_capacity(n_rows)
                    .with_data_type(DataType::Decimal128(precision, scale)),
                scale as u8,
            ),
            DataType::Decimal256(..) => {
                Inner::Numeric(Decimal256Builder::with_capacity(n_rows).with_data_type(NUMERIC))
            }
            DataType::Binary => Inner::Bytes(BinaryBuilder::with_capacity(n_rows, n_rows * 16)),
            DataType::Date32 => Inner::Date(Date32Builder::with_capacity(n_rows)),
            DataType::Time64(_) => Inner::Time(Time64MicrosecondBuilder::with_capacity(n_rows)),
            ty @ DataType::Timestamp(..) => Inner::Timestamp(
                TimestampMicrosecondBuilder::with_capacity(n_rows).with_data_type(ty),
            ),
            DataType::Interval(_) => {
                Inner::Interval(IntervalMonthDayNanoBuilder::with_capacity(n_rows))
            }
            DataType::Null => Inner::Null(0),
            DataType::List(_) => Inner::Scalars(Vec::with_capacity(n_rows)),
            _ => Inner::Text(StringBuilder::with_capacity(n_rows, n_rows * 16)),
        };
        Builder { ty: ty.clone(), inner }
    }

    pub fn push(&mut self, datum: &Datum) -> Result<()> {
        match (&mut self.inner, datum) {
            (Inner::Bool(to), Datum::Bool(value)) => to.append_value(*value),
            (Inner::Int2(to), Datum::Int2(value)) => to.append_value(*value),
            (Inner::Int4(to), Datum::Int4(value)) => to.append_value(*value),
            (Inner::Int8(to), datum) if datum.as_i64().is_some() => {
                to.append_option(datum.as_i64());
            }
            (Inner::Float4(to), Datum::Float4(value)) => to.append_value(*value),
            (Inner::Float8(to), Datum::Float8(value)) => to.append_value(*value),
            (Inner::Decimal(to, scale), Datum::Numeric(value)) => {
                to.append_value(value.rescale(*scale)?.mantissa());
            }
            (Inner::Numeric(to), Datum::Numeric(value)) => to.append_value(pack(value)?),
            (Inner::Text(to), Datum::Text(value)) => to.append_value(value),
            (Inner::Text(to), Datum::Uuid(value)) => {
                to.append_value(value.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()));
            }
            (Inner::Bytes(to), Datum::Bytes(value)) => to.append_value(value),
            (Inner::Date(to), Datum::Date(value)) => to.append_value(*value),
            (Inner::Time(to), Datum::Time(value)) => to.append_value(*value),
            (Inner::Timestamp(to), Datum::Timestamp(value) | Datum::TimestampTz(value)) => {
                to.append_value(*value);
            }
            (Inner::Interval(to), Datum::Interval(value)) => to.append_value(interval(value)?),
            (Inner::Scalars(to), Datum::Array(_)) => to.push(scalar(datum, &self.ty)?),
            (_, Datum::Null) => self.push_null()?,
            (_, other) => {
                let message = format!("the value {other:?} is not of the type {}", self.ty);
                return Err(Error::internal(message));
            }
        }
        Ok(())
    }

    /// A stored value, without a datum in between where that costs.
    pub fn push_value(&mut self, value: Value<'_>) -> Result<()> {
        match (&mut self.inner, value) {
            (Inner::Bool(to), Value::Bool(value)) => to.append_value(value),
            (Inner::Int4(to), Value::Int(value)) => to.append_value(value as i32),
            (Inner::Int8(to), Value::Int(value)) => to.append_value(value),
            (Inner::Date(to), Value::Int(value)) => to.append_value(value as i32),
            (Inner::Timestamp(to), Value::Int(value)) => to.append_value(value),
            (Inner::Float8(to), Value::Float8(value)) => to.append_value(value),
            (Inner::Decimal(to, scale), Value::Numeric(value)) if value.scale() == *scale => {
                to.append_value(value.mantissa());
            }
            (Inner::Text(to), Value::Bytes(bytes)) if self.ty != Type::Uuid => {
                let damaged = |_| Error::internal("a stored row is damaged: its text is not UTF-8");
                to.append_value(std::str::from_utf8(bytes).map_err(damaged)?);
            }
            (Inner::Bytes(to), Value::Bytes(bytes)) => to.append_value(bytes),
            (_, value) => return self.push(&value.datum(&self.ty)?),
        }
        Ok(())
    }

    fn push_null(&mut self) -> Result<()> {
        match &mut self.inner {
            Inner::Bool(to) => to.append_null(),
            Inner::Int2(to) => to.append_null(),
            Inner::Int4(to) => to.append_null(),
            Inner::Int8(to) => to.append_null(),
            Inner::Float4(to) => to.append_null(),
            Inner::Float8(to) => to.append_null(),
            Inner::Decimal(to, _) => to.append_null(),
            Inner::Numeric(to) => to.append_null(),
            Inner::Text(to) => to.append_null(),
            Inner::Bytes(to) => to.append_null(),
            Inner::Date(to) => to.append_null(),
            Inner::Time(to) => to.append_null(),
            Inner::Timestamp(to) => to.append_null(),
            Inner::Interval(to) => to.append_null(),
            Inner::Null(n) => *n += 1,
            Inner::Scalars(to) => to.push(scalar(&Datum::Null, &self.ty)?),
        }
        Ok(())
    }

    pub fn finish(self) -> Result<ArrayRef> {
        Ok(match self.inner {
            Inner::Bool(mut from) => Arc::new(from.finish()),
            Inner::Int2(mut from) => Arc::new(from.finish()),
            Inner::Int4(mut from) => Arc::new(from.finish()),
            Inner::Int8(mut from) => Arc::new(from.finish()),
            Inner::Float4(mut from) => Arc::new(from.finish()),
            Inner::Float8(mut from) => Arc::new(from.finish()),
            Inner::Decimal(mut from, _) => Arc::new(from.finish()),
            Inner::Numeric(mut from) => Arc::new(from.finish()),
            Inner::Text(mut from) => Arc::new(from.finish()),
            Inner::Bytes(mut from) => Arc::new(from.finish()),
            Inner::Date(mut from) => Arc::new(from.finish()),
            Inner::Time(mut from) => Arc::new(from.finish()),
            Inner::Timestamp(mut from) => Arc::new(from.finish()),
            Inner::Interval(mut from) => Arc::new(from.finish()),
            Inner::Null(n) => Arc::new(NullArray::new(n)),
            Inner::Scalars(from) if from.is_empty() => new_empty_array(&arrow_type(&self.ty)),
            Inner::Scalars(from) => {
                ScalarValue::iter_to_array(from).map_err(super::failure::from)?
            }
        })
    }
}

fn interval(value: &Interval) -> Result<IntervalMonthDayNano> {
    let nanoseconds = value
        .us
        .checked_mul(1000)
        .ok_or_else(|| Error::new(state::DATETIME_OVERFLOW, "interval out of range"))?;
    Ok(IntervalMonthDayNano::new(value.months, value.days, nanoseconds))
}

/// One value as a DataFusion literal.
pub fn scalar(datum: &Datum, ty: &Type) -> Result<ScalarValue> {
    if let Type::Array(element) = ty {
        let element_type = arrow_type(element);
        return Ok(match datum {
            Datum::Array(values) => {
                let values =
                    values.iter().map(|v| scalar(v, element)).collect::<Result<Vec<_>>>()?;
                ScalarValue::List(ScalarValue::new_list_nullable(&values, &element_type))
            }
            _ => ScalarValue::new_null_list(element_type, true, 1),
        });
    }
    let mut builder = Builder::new(ty, 1);
    builder.push(datum)?;
    ScalarValue::try_from_array(&builder.finish()?, 0).map_err(super::failure::from)
}

/// A batch's rows as datums of the given types.
pub fn rows(batch: &RecordBatch, types: &[Type]) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> =
        (0..batch.num_rows()).map(|_| Vec::with_capacity(types.len())).collect();
    for (array, ty) in batch.columns().iter().zip(types) {
        let mut at = rows.iter_mut();
        each(array, ty, &mut |datum| {
            if let Some(row) = at.next() {
                row.push(datum);
            }
        })?;
    }
    Ok(rows)
}

/// One value of an array.
pub fn datum(array: &ArrayRef, row: usize, ty: &Type) -> Result<Datum> {
    let mut found = Datum::Null;
    each(&array.slice(row, 1), ty, &mut |datum| found = datum)?;
    Ok(found)
}

/// Hands every value of `array` to `take`, in order.
pub fn each(array: &ArrayRef, ty: &Type, take: &mut dyn FnMut(Datum)) -> Result<()> {
    macro_rules! values {
        ($kind:ty, $make:expr) => {{
            let make = $make;
            let array = downcast::<$kind>(array)?;
            for value in array.iter() {
                take(match value {
                    Some(value) => make(value),
                    None => Datum::Null,
                });
            }
        }};
    }
    macro_rules! fallible {
        ($kind:ty, $make:expr) => {{
            let make = $make;
            let array = downcast::<$kind>(array)?;
            for value in array.iter() {
                take(match value {
                    Some(value) => make(value)?,
                    None => Datum::Null,
                });
            }
        }};
    }
    match array.data_type() {
        DataType::Null => (0..array.len()).for_each(|_| take(Datum::Null)),
        DataType::Boolean => values!(BooleanArray, Datum::Bool),
        DataType::Int8 => values!(Int8Array, |v| Datum::Int2(i16::from(v))),
        DataType::Int16 => values!(Int16Array, Datum::Int2),
        DataType::Int32 => values!(Int32Array, Datum::Int4),
        DataType::Int64 => values!(Int64Array, Datum::Int8),
        DataType::UInt8 => values!(UInt8Array, |v| Datum::Int2(i16::from(v))),
        DataType::UInt16 => values!(UInt16Array, |v| Datum::Int4(i32::from(v))),
        DataType::UInt32 => values!(UInt32Array, |v| Datum::Int8(i64::from(v))),
        DataType::UInt64 => fallible!(UInt64Array, |v| {
            let too_large = |_| Error::new(state::OUT_OF_RANGE, "bigint out of range");
            i64::try_from(v).map(Datum::Int8).map_err(too_large)
        }),
        DataType::Float32 => values!(Float32Array, Datum::Float4),
        DataType::Float64 => values!(Float64Array, Datum::Float8),
        DataType::Decimal128(_, scale) => {
            let scale = *scale;
            fallible!(Decimal128Array, |v| decimal(v, scale));
        }
        DataType::Decimal256(_, scale) if *scale == NUMERIC_SCALE as i8 => {
            fallible!(Decimal256Array, |v| unpack(v).map(Datum::Numeric));
        }
        DataType::Decimal256(_, scale) => {
            let scale = *scale;
            fallible!(Decimal256Array, |v: i256| {
                let too_large =
                    || Error::new(state::OUT_OF_RANGE, "value overflows numeric format");
                decimal(v.to_i128().ok_or_else(too_large)?, scale)
            });
        }
        DataType::Utf8 if *ty == Type::Uuid => fallible!(StringArray, |v: &str| {
            sql::types::text::parse(v, &Type::Uuid, &sql::types::Zone::UTC)
        }),
        DataType::Utf8 => values!(StringArray, |v: &str| Datum::text(v)),
        DataType::LargeUtf8 => values!(LargeStringArray, |v: &str| Datum::text(v)),
        DataType::Utf8View => values!(StringViewArray, |v: &str| Datum::text(v)),
        DataType::Binary => values!(BinaryArray, |v: &[u8]| Datum::bytes(v)),
        DataType::LargeBinary => values!(LargeBinaryArray, |v: &[u8]| Datum::bytes(v)),
        DataType::BinaryView => values!(BinaryViewArray, |v: &[u8]| Datum::bytes(v)),
        DataType::Date32 => values!(Date32Array, Datum::Date),
        DataType::Time64(TimeUnit::Microsecond) => values!(Time64MicrosecondArray, Datum::Time),
        DataType::Time64(TimeUnit::Nanosecond) => {
            values!(Time64NanosecondArray, |v: i64| Datum::Time(v / 1000));
        }
        DataType::Timestamp(unit, zone) => {
            let has_zone = zone.is_some();
            let make = move |v: i64| match has_zone {
                true => Datum::TimestampTz(v),
                false => Datum::Timestamp(v),
            };
            match unit {
                TimeUnit::Microsecond => values!(TimestampMicrosecondArray, make),
                TimeUnit::Nanosecond => {
                    values!(TimestampNanosecondArray, |v: i64| make(v.div_euclid(1000)));
                }
                TimeUnit::Millisecond => {
                    values!(TimestampMillisecondArray, |v: i64| make(v * 1000))
                }
                TimeUnit::Second => values!(TimestampSecondArray, |v: i64| make(v * 1_000_000)),
            }
        }
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            values!(IntervalMonthDayNanoArray, |v: IntervalMonthDayNano| {
                let us = v.nanoseconds / 1000;
                Datum::Interval(Interval { months: v.months, days: v.days, us })
            });
        }
        DataType::Interval(IntervalUnit::YearMonth) => {
            values!(IntervalYearMonthArray, |months: i32| {
                Datum::Interval(Interval { months, days: 0, us: 0 })
            });
        }
        DataType::Duration(unit) => {
            let us_each = match unit {
                TimeUnit::Second => 1_000_000.0,
                TimeUnit::Millisecond => 1000.0,
                TimeUnit::Microsecond => 1.0,
                TimeUnit::Nanosecond => 0.001,
            };
            let make = |v: i64| {
                let us = (v as f64 * us_each) as i64;
                const DAY: i64 = 86_400_000_000;
                Datum::Interval(Interval { months: 0, days: (us / DAY) as i32, us: us % DAY })
            };
            match unit {
                TimeUnit::Second => values!(DurationSecondArray, make),
                TimeUnit::Millisecond => values!(DurationMillisecondArray, make),
                TimeUnit::Microsecond => values!(DurationMicrosecondArray, make),
                TimeUnit::Nanosecond => values!(DurationNanosecondArray, make),
            }
        }
        DataType::List(_) => {
            let element = match ty {
                Type::Array(element) => (**element).clone(),
                _ => Type::Text,
            };
            fallible!(ListArray, |values: ArrayRef| {
                let mut datums = Vec::with_capacity(values.len());
                each(&values, &element, &mut |datum| datums.push(datum))?;
                Ok::<_, Error>(Datum::Array(datums.into()))
            });
        }
        other => return Err(Error::unsupported(format!("a result of the type {other}"))),
    }
    Ok(())
}

fn decimal(mantissa: i128, scale: i8) -> Result<Datum> {
    let value = match u8::try_from(scale) {
        Ok(scale) => Numeric::new(mantissa, scale)?,
        Err(_) => {
            let factor = 10_i128.checked_pow(u32::from(scale.unsigned_abs()));
            let too_large = || Error::new(state::OUT_OF_RANGE, "value overflows numeric format");
            let mantissa = factor.and_then(|factor| mantissa.checked_mul(factor));
            Numeric::new(mantissa.ok_or_else(too_large)?, 0)?
        }
    };
    Ok(Datum::Numeric(value))
}

fn downcast<T: 'static>(array: &ArrayRef) -> Result<&T> {
    let wrong = || Error::internal(format!("an array of {} is none", array.data_type()));
    array.as_any().downcast_ref::<T>().ok_or_else(wrong)
}
