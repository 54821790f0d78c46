//! How values become bytes: keys whose byte order is the values' order, and rows by column id.
//!
//! **Keys.** Each column is one tag byte and a body; NULL's tag is the larger one, so that NULLs
//! sort last. Bodies: integers big endian with the sign bit flipped; floats with all bits of a
//! negative flipped; text with 00 written as 00 FF and ended by 00 01; numerics as sign, decimal
//! exponent and digits, so that `1.0` and `1.00` are one key. Equal values have equal bytes.
//!
//! **Rows.** A list of (tag, value) in the order of column ids. The tag is a variable-length
//! integer, `(id - previous id) << 3 | kind`; columns 1 to 15 after each other take one byte. A
//! reader skips what it does not know (a dropped column) and what is absent was added later: then
//! the column's `missing` value holds. So a definition changes without touching rows.
//!
//! ```text
//! (aid 7, bid 1, abalance 0, filler NULL)   ->   09 0e  09 02  09 00  08
//! ```

use crate::catalog::Table;
use crate::error::{Error, Result};
use crate::types::{Datum, Interval, Numeric, Type};
use std::sync::Arc;

// ---- keys

/// The longest key that a row or an index entry may have: a little less than the store takes, so
/// that the error names the index and not the store. Looking for a longer one finds nothing.
pub const KEY_BYTES_MAX: usize = 32_000;

const KEY_VALUE: u8 = 0x01;
const KEY_NULL: u8 = 0xfe;

/// Appends one column of a key. `datum` must be of the column's own type: `int4` and `int8` have
/// different bytes.
pub fn encode_key(datum: &Datum, out: &mut Vec<u8>) {
    if datum.is_null() {
        out.push(KEY_NULL);
        return;
    }
    out.push(KEY_VALUE);
    match datum {
        Datum::Null => {}
        Datum::Bool(value) => out.push(u8::from(*value)),
        Datum::Int2(value) => out.extend_from_slice(&(*value ^ i16::MIN).to_be_bytes()),
        Datum::Int4(value) | Datum::Date(value) => {
            out.extend_from_slice(&(*value ^ i32::MIN).to_be_bytes());
        }
        Datum::Int8(value)
        | Datum::Time(value)
        | Datum::Timestamp(value)
        | Datum::TimestampTz(value) => {
            out.extend_from_slice(&(*value ^ i64::MIN).to_be_bytes());
        }
        Datum::Float4(value) => {
            let bits = if *value == 0.0 {
                0
            } else if value.is_nan() {
                0x7fc0_0000
            } else {
                value.to_bits()
            };
            let bits = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
            out.extend_from_slice(&bits.to_be_bytes());
        }
        Datum::Float8(value) => {
            let bits = if *value == 0.0 {
                0
            } else if value.is_nan() {
                0x7ff8 << 48
            } else {
                value.to_bits()
            };
            let bits = if bits >> 63 == 1 { !bits } else { bits | 1 << 63 };
            out.extend_from_slice(&bits.to_be_bytes());
        }
        Datum::Numeric(value) => encode_numeric_key(value, out),
        Datum::Text(text) => encode_bytes_key(text.as_bytes(), out),
        Datum::Bytes(bytes) => encode_bytes_key(bytes, out),
        Datum::Interval(value) => {
            let flipped = value.span_us() ^ i128::MIN;
            out.extend_from_slice(&flipped.to_be_bytes());
        }
        Datum::Uuid(uuid) => out.extend_from_slice(uuid.as_bytes()),
        Datum::Array(elements) => {
            for element in elements.iter() {
                encode_key(element, out);
            }
            out.push(0);
        }
    }
}

fn encode_bytes_key(bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes {
        out.push(*byte);
        if *byte == 0 {
            out.push(0xff);
        }
    }
    out.extend_from_slice(&[0, 1]);
}

/// `0.d1d2… * 10^e`: sign, exponent, digits two to a byte, a terminator; all but the sign flipped
/// for negative numbers.
fn encode_numeric_key(value: &Numeric, out: &mut Vec<u8>) {
    let value = value.without_trailing_zeros();
    let mantissa = value.mantissa();
    if mantissa == 0 {
        out.push(1);
        return;
    }
    out.push(if mantissa < 0 { 0 } else { 2 });
    let digits = mantissa.unsigned_abs().to_string();
    let digits = digits.trim_end_matches('0').as_bytes();
    let n_digits = mantissa.unsigned_abs().ilog10() as i32 + 1;
    let exponent = n_digits - i32::from(value.scale());
    let from = out.len();
    out.push((exponent + 128) as u8);
    for pair in digits.chunks(2) {
        let high = pair[0] - b'0';
        let low = pair.get(1).map_or(0, |digit| digit - b'0');
        out.push(high * 10 + low + 1);
    }
    out.push(0);
    if mantissa < 0 {
        out[from..].iter_mut().for_each(|byte| *byte = !*byte);
    }
}

/// A relation's prefix, as the start of a key.
pub fn key_prefix(relation: crate::catalog::RelationId, capacity: usize) -> Vec<u8> {
    let mut key = Vec::with_capacity(4 + capacity);
    key.extend_from_slice(&relation.prefix());
    key
}

// ---- rows

const NULL: u64 = 0;
const INT: u64 = 1;
const FLOAT4: u64 = 2;
const FLOAT8: u64 = 3;
const FALSE: u64 = 4;
const TRUE: u64 = 5;
const BYTES: u64 = 6;
const NUMERIC: u64 = 7;

/// One stored value, borrowed from its row. Integers of all widths, dates and times are `Int`;
/// text, bytea, uuid (16 bytes) and interval (16 bytes: see [`Value::interval`]) are `Bytes`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    Null,
    Int(i64),
    Float4(f32),
    Float8(f64),
    Bool(bool),
    Bytes(&'a [u8]),
    Numeric(Numeric),
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_wide(mut value: u128, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Appends rows' values one column at a time, in rising order of ids.
pub struct RowWriter<'a> {
    out: &'a mut Vec<u8>,
    last_id: u32,
}

impl<'a> RowWriter<'a> {
    pub fn new(out: &'a mut Vec<u8>) -> RowWriter<'a> {
        RowWriter { out, last_id: 0 }
    }

    fn tag(&mut self, id: u32, kind: u64) {
        debug_assert!(id > self.last_id, "columns must come in rising order of ids");
        let delta = u64::from(id - self.last_id);
        self.last_id = id;
        varint(delta << 3 | kind, self.out);
    }

    fn int(&mut self, id: u32, value: i64) {
        self.tag(id, INT);
        varint(zigzag(value), self.out);
    }

    fn bytes(&mut self, id: u32, bytes: &[u8]) {
        self.tag(id, BYTES);
        varint(bytes.len() as u64, self.out);
        self.out.extend_from_slice(bytes);
    }

    pub fn put(&mut self, id: u32, datum: &Datum) {
        match datum {
            Datum::Null => self.tag(id, NULL),
            Datum::Bool(value) => self.tag(id, if *value { TRUE } else { FALSE }),
            Datum::Int2(value) => self.int(id, i64::from(*value)),
            Datum::Int4(value) | Datum::Date(value) => self.int(id, i64::from(*value)),
            Datum::Int8(value)
            | Datum::Time(value)
            | Datum::Timestamp(value)
            | Datum::TimestampTz(value) => self.int(id, *value),
            Datum::Float4(value) => {
                self.tag(id, FLOAT4);
                self.out.extend_from_slice(&value.to_le_bytes());
            }
            Datum::Float8(value) => {
                self.tag(id, FLOAT8);
                self.out.extend_from_slice(&value.to_le_bytes());
            }
            Datum::Numeric(value) => {
                self.tag(id, NUMERIC);
                self.out.push(value.scale());
                let mantissa = value.mantissa();
                varint_wide(((mantissa << 1) ^ (mantissa >> 127)) as u128, self.out);
            }
            Datum::Text(text) => self.bytes(id, text.as_bytes()),
            Datum::Bytes(bytes) => self.bytes(id, bytes),
            Datum::Uuid(uuid) => self.bytes(id, uuid.as_bytes()),
            Datum::Interval(interval) => {
                let mut bytes = [0; 16];
                bytes[..4].copy_from_slice(&interval.months.to_le_bytes());
                bytes[4..8].copy_from_slice(&interval.days.to_le_bytes());
                bytes[8..].copy_from_slice(&interval.us.to_le_bytes());
                self.bytes(id, &bytes);
            }
            // No column is an array; the binder refuses such a definition.
            Datum::Array(_) => self.tag(id, NULL),
        }
    }
}

/// A whole row of `table`; `row` has one datum per column of the table, in its order.
pub fn encode_row(table: &Table, row: &[Datum]) -> Vec<u8> {
    let mut out = Vec::with_capacity(row.len() * 8 + 8);
    let mut writer = RowWriter::new(&mut out);
    for (column, datum) in table.columns.iter().zip(row) {
        writer.put(column.id, datum);
    }
    out
}

fn damaged() -> Error {
    Error::internal("a stored row is damaged: its bytes end early or hold a length that cannot be")
}

/// The columns of a stored row, in rising order of ids.
pub struct RowReader<'a> {
    rest: &'a [u8],
    last_id: u32,
}

impl<'a> RowReader<'a> {
    pub fn new(row: &'a [u8]) -> RowReader<'a> {
        RowReader { rest: row, last_id: 0 }
    }

    fn varint(&mut self) -> Option<u64> {
        let (first, rest) = self.rest.split_first()?;
        if *first < 0x80 {
            self.rest = rest;
            return Some(u64::from(*first));
        }
        let mut value = 0u64;
        for (idx, byte) in self.rest.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f) << (7 * idx);
            if *byte < 0x80 {
                self.rest = &self.rest[idx + 1..];
                return Some(value);
            }
        }
        None
    }

    fn varint_wide(&mut self) -> Option<u128> {
        let mut value = 0u128;
        for (idx, byte) in self.rest.iter().enumerate().take(19) {
            value |= u128::from(byte & 0x7f) << (7 * idx);
            if *byte < 0x80 {
                self.rest = &self.rest[idx + 1..];
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        if n > self.rest.len() {
            return None;
        }
        let (taken, rest) = self.rest.split_at(n);
        self.rest = rest;
        Some(taken)
    }

    fn read(&mut self) -> Option<(u32, Value<'a>)> {
        let tag = self.varint()?;
        let id = self.last_id.checked_add(u32::try_from(tag >> 3).ok()?)?;
        self.last_id = id;
        let value = match tag & 7 {
            NULL => Value::Null,
            INT => Value::Int(unzigzag(self.varint()?)),
            FLOAT4 => Value::Float4(f32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            FLOAT8 => Value::Float8(f64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            FALSE => Value::Bool(false),
            TRUE => Value::Bool(true),
            BYTES => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            _ => {
                let scale = self.take(1)?[0];
                let raw = self.varint_wide()?;
                let mantissa = (raw >> 1) as i128 ^ -((raw & 1) as i128);
                Value::Numeric(Numeric::new(mantissa, scale).ok()?)
            }
        };
        Some((id, value))
    }
}

impl<'a> Iterator for RowReader<'a> {
    type Item = Result<(u32, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let column = self.read();
        if column.is_none() {
            self.rest = &[];
        }
        Some(column.ok_or_else(damaged))
    }
}

impl Value<'_> {
    /// The sixteen bytes of an interval.
    pub fn interval(bytes: &[u8]) -> Result<Interval> {
        let bytes: &[u8; 16] = bytes.try_into().map_err(|_| damaged())?;
        let [a, b, c, d, e, f, g, h, us @ ..] = *bytes;
        Ok(Interval {
            months: i32::from_le_bytes([a, b, c, d]),
            days: i32::from_le_bytes([e, f, g, h]),
            us: i64::from_le_bytes(us),
        })
    }

    pub fn datum(&self, ty: &Type) -> Result<Datum> {
        Ok(match (self, ty) {
            (Value::Null, _) => Datum::Null,
            (Value::Bool(value), _) => Datum::Bool(*value),
            (Value::Float4(value), _) => Datum::Float4(*value),
            (Value::Float8(value), _) => Datum::Float8(*value),
            (Value::Numeric(value), _) => Datum::Numeric(*value),
            (Value::Int(value), Type::Int4) => Datum::Int4(*value as i32),
            (Value::Int(value), Type::Int2) => Datum::Int2(*value as i16),
            (Value::Int(value), Type::Date) => Datum::Date(*value as i32),
            (Value::Int(value), Type::Time) => Datum::Time(*value),
            (Value::Int(value), Type::Timestamp) => Datum::Timestamp(*value),
            (Value::Int(value), Type::TimestampTz) => Datum::TimestampTz(*value),
            (Value::Int(value), _) => Datum::Int8(*value),
            (Value::Bytes(bytes), Type::Bytea) => Datum::bytes(bytes),
            (Value::Bytes(bytes), Type::Uuid) => {
                Datum::Uuid(uuid::Uuid::from_slice(bytes).map_err(|_| damaged())?)
            }
            (Value::Bytes(bytes), Type::Interval) => Datum::Interval(Value::interval(bytes)?),
            (Value::Bytes(bytes), _) => {
                Datum::Text(Arc::from(std::str::from_utf8(bytes).map_err(|_| damaged())?))
            }
        })
    }
}

/// Decodes a stored row into `out`, one datum per column of `table`. Columns outside of `wanted`
/// (one flag per column; none: all) stay NULL.
pub fn decode_row(
    table: &Table,
    bytes: &[u8],
    wanted: Option<&[bool]>,
    out: &mut Vec<Datum>,
) -> Result<()> {
    out.clear();
    let mut reader = RowReader::new(bytes);
    let mut pending = reader.next().transpose()?;
    for (idx, column) in table.columns.iter().enumerate() {
        while let Some((id, _)) = pending
            && id < column.id
        {
            pending = reader.next().transpose()?;
        }
        let is_wanted = wanted.is_none_or(|wanted| wanted[idx]);
        out.push(match pending {
            Some((id, value)) if id == column.id => {
                if is_wanted {
                    value.datum(&column.ty)?
                } else {
                    Datum::Null
                }
            }
            _ if is_wanted => column.missing.clone(),
            _ => Datum::Null,
        });
    }
    Ok(())
}

/// How a descriptor keeps a column's `missing` value.
pub mod missing {
    use crate::types::Datum;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::sync::Arc;

    #[derive(Serialize, Deserialize)]
    enum Kept {
        Null,
        Bool(bool),
        Int2(i16),
        Int4(i32),
        Int8(i64),
        Float4(f32),
        Float8(f64),
        Numeric(i128, u8),
        Text(String),
        Bytes(Vec<u8>),
        Date(i32),
        Time(i64),
        Timestamp(i64),
        TimestampTz(i64),
        Interval(i32, i32, i64),
        Uuid([u8; 16]),
    }

    pub fn serialize<S: Serializer>(datum: &Datum, serializer: S) -> Result<S::Ok, S::Error> {
        let kept = match datum {
            Datum::Null | Datum::Array(_) => Kept::Null,
            Datum::Bool(value) => Kept::Bool(*value),
            Datum::Int2(value) => Kept::Int2(*value),
            Datum::Int4(value) => Kept::Int4(*value),
            Datum::Int8(value) => Kept::Int8(*value),
            Datum::Float4(value) => Kept::Float4(*value),
            Datum::Float8(value) => Kept::Float8(*value),
            Datum::Numeric(value) => Kept::Numeric(value.mantissa(), value.scale()),
            Datum::Text(value) => Kept::Text(value.as_ref().to_owned()),
            Datum::Bytes(value) => Kept::Bytes(value.to_vec()),
            Datum::Date(value) => Kept::Date(*value),
            Datum::Time(value) => Kept::Time(*value),
            Datum::Timestamp(value) => Kept::Timestamp(*value),
            Datum::TimestampTz(value) => Kept::TimestampTz(*value),
            Datum::Interval(value) => Kept::Interval(value.months, value.days, value.us),
            Datum::Uuid(value) => Kept::Uuid(*value.as_bytes()),
        };
        kept.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Datum, D::Error> {
        Ok(match Kept::deserialize(deserializer)? {
            Kept::Null => Datum::Null,
            Kept::Bool(value) => Datum::Bool(value),
            Kept::Int2(value) => Datum::Int2(value),
            Kept::Int4(value) => Datum::Int4(value),
            Kept::Int8(value) => Datum::Int8(value),
            Kept::Float4(value) => Datum::Float4(value),
            Kept::Float8(value) => Datum::Float8(value),
            Kept::Numeric(mantissa, scale) => Datum::Numeric(
                super::Numeric::new(mantissa, scale).map_err(serde::de::Error::custom)?,
            ),
            Kept::Text(value) => Datum::Text(Arc::from(value)),
            Kept::Bytes(value) => Datum::Bytes(Arc::from(value)),
            Kept::Date(value) => Datum::Date(value),
            Kept::Time(value) => Datum::Time(value),
            Kept::Timestamp(value) => Datum::Timestamp(value),
            Kept::TimestampTz(value) => Datum::TimestampTz(value),
            Kept::Interval(months, days, us) => {
                Datum::Interval(super::Interval { months, days, us })
            }
            Kept::Uuid(bytes) => Datum::Uuid(uuid::Uuid::from_bytes(bytes)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Zone, text};

    fn key(datum: &Datum) -> Vec<u8> {
        let mut out = Vec::new();
        encode_key(datum, &mut out);
        out
    }

    #[test]
    fn keys_sort_as_their_values() {
        let columns: Vec<(Type, Vec<&str>)> = vec![
            (Type::Int4, vec!["-2147483648", "-1", "0", "1", "2147483647"]),
            (Type::Int8, vec!["-9000000000", "-1", "0", "300"]),
            (
                Type::Float8,
                vec!["-Infinity", "-2.5", "-1e-300", "0", "1e-300", "7", "Infinity", "NaN"],
            ),
            (
                Type::Numeric(None),
                vec![
                    "-100", "-99.5", "-1.01", "-1", "-0.5", "-0.05", "0", "0.001", "0.05", "0.5",
                    "1", "1.01", "9.99", "10", "1000000",
                ],
            ),
            (Type::Text, vec!["", "\u{1}", "a", "a\u{1}", "ab", "b", "ä"]),
            (Type::Bytea, vec!["\\x", "\\x00", "\\x0000", "\\x0001", "\\x00ff", "\\x01", "\\xff"]),
            (Type::Date, vec!["1066-10-14", "1969-12-31", "2024-01-01"]),
        ];
        for (ty, texts) in columns {
            let mut datums: Vec<Datum> =
                texts.iter().map(|shown| text::parse(shown, &ty, &Zone::UTC).unwrap()).collect();
            datums.push(Datum::Null);
            for pair in datums.windows(2) {
                assert!(key(&pair[0]) < key(&pair[1]), "{:?} < {:?} as {ty}", pair[0], pair[1]);
            }
        }
    }

    #[test]
    fn equal_values_have_equal_keys() {
        let numeric = |text: &str| Datum::Numeric(text.parse().unwrap());
        assert_eq!(key(&numeric("1.0")), key(&numeric("1.000")));
        assert_eq!(key(&numeric("100")), key(&numeric("1e2")));
        assert_eq!(key(&Datum::Float8(0.0)), key(&Datum::Float8(-0.0)));
    }

    #[test]
    fn a_row_outlives_changes_of_its_table() {
        let mut table = crate::catalog::Table::for_tests(&[("a", Type::Int4), ("b", Type::Text)]);
        let stored = encode_row(&table, &[Datum::Int4(-7), Datum::text("x")]);
        // Drop `a`, add `c` that older rows read as 5.
        table.columns.remove(0);
        table.columns.push(crate::catalog::Column {
            id: 3,
            name: "c".into(),
            ty: Type::Int8,
            not_null: false,
            default: None,
            identity: None,
            missing: Datum::Int8(5),
        });
        let mut row = Vec::new();
        decode_row(&table, &stored, None, &mut row).unwrap();
        assert_eq!(row, vec![Datum::text("x"), Datum::Int8(5)]);
        decode_row(&table, &stored, Some(&[false, true]), &mut row).unwrap();
        assert_eq!(row, vec![Datum::Null, Datum::Int8(5)]);
        assert!(decode_row(&table, &stored[..1], None, &mut row).is_err());
    }
}
