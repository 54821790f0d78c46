//! Values in the wire's binary format.

use super::datetime::{
    DAY_US, EPOCH_2000_DAYS, EPOCH_2000_US, Interval, check_date, check_timestamp,
    date_is_infinite, is_infinite,
};
use super::numeric::{MAX_DIGITS, Numeric};
use super::{Datum, Type};
use crate::error::{Error, Result, state};
use std::sync::Arc;

fn to_2000(us: i64) -> i64 {
    if is_infinite(us) { us } else { us.saturating_sub(EPOCH_2000_US) }
}

fn from_2000(us: i64) -> Result<i64> {
    if is_infinite(us) { Ok(us) } else { check_timestamp(us.saturating_add(EPOCH_2000_US)) }
}

fn date_to_2000(days: i32) -> i32 {
    if date_is_infinite(days) { days } else { days.saturating_sub(EPOCH_2000_DAYS) }
}

fn date_from_2000(days: i32) -> Result<i32> {
    if date_is_infinite(days) {
        return Ok(days);
    }
    check_date(i64::from(days) + i64::from(EPOCH_2000_DAYS))
}

/// Appends the datum's bytes, without a length. NULL has none.
pub fn write(datum: &Datum, ty: &Type, out: &mut Vec<u8>) {
    match datum {
        Datum::Null => {}
        Datum::Bool(value) => out.push(u8::from(*value)),
        Datum::Int2(value) => out.extend_from_slice(&value.to_be_bytes()),
        Datum::Int4(value) => out.extend_from_slice(&value.to_be_bytes()),
        Datum::Int8(value) => match ty {
            Type::Oid => out.extend_from_slice(&(*value as u32).to_be_bytes()),
            _ => out.extend_from_slice(&value.to_be_bytes()),
        },
        Datum::Float4(value) => out.extend_from_slice(&value.to_be_bytes()),
        Datum::Float8(value) => out.extend_from_slice(&value.to_be_bytes()),
        Datum::Numeric(value) => write_numeric(value, out),
        // Text and its kin look the same in both formats.
        Datum::Text(_) => super::text::write(datum, ty, &super::Zone::UTC, out),
        Datum::Bytes(bytes) => out.extend_from_slice(bytes),
        Datum::Date(days) => out.extend_from_slice(&date_to_2000(*days).to_be_bytes()),
        Datum::Time(us) => out.extend_from_slice(&us.to_be_bytes()),
        Datum::Timestamp(us) | Datum::TimestampTz(us) => {
            out.extend_from_slice(&to_2000(*us).to_be_bytes());
        }
        Datum::Interval(interval) => {
            out.extend_from_slice(&interval.us.to_be_bytes());
            out.extend_from_slice(&interval.days.to_be_bytes());
            out.extend_from_slice(&interval.months.to_be_bytes());
        }
        Datum::Uuid(uuid) => out.extend_from_slice(uuid.as_bytes()),
        Datum::Array(elements) => {
            let element_type = match ty {
                Type::Array(element) => (**element).clone(),
                _ => Type::Text,
            };
            let has_null = elements.iter().any(Datum::is_null);
            let n_dimensions = i32::from(!elements.is_empty());
            out.extend_from_slice(&n_dimensions.to_be_bytes());
            out.extend_from_slice(&i32::from(has_null).to_be_bytes());
            out.extend_from_slice(&element_type.oid().to_be_bytes());
            if elements.is_empty() {
                return;
            }
            out.extend_from_slice(&(elements.len() as i32).to_be_bytes());
            out.extend_from_slice(&1i32.to_be_bytes());
            for element in elements.iter() {
                let at = out.len();
                out.extend_from_slice(&(-1i32).to_be_bytes());
                if !element.is_null() {
                    write(element, &element_type, out);
                    let length = (out.len() - at - 4) as i32;
                    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
                }
            }
        }
    }
}

/// Groups of four decimal digits, aligned at the point.
fn write_numeric(value: &Numeric, out: &mut Vec<u8>) {
    let scale = value.scale();
    let pad = (4 - scale % 4) % 4;
    let mut rest = value.mantissa().unsigned_abs();
    let mut groups: Vec<u16> = Vec::new();
    let mut weight = -(i32::from(scale + pad) / 4);
    if rest != 0 {
        // The last group holds the scale's odd digits, shifted to the left.
        if pad != 0 {
            let unit = 10u128.pow(u32::from(4 - pad));
            groups.push((rest % unit) as u16 * 10u16.pow(u32::from(pad)));
            rest /= unit;
        }
        while rest != 0 {
            groups.push((rest % 10_000) as u16);
            rest /= 10_000;
        }
    }
    weight += groups.len() as i32 - 1;
    groups.reverse();
    while groups.first() == Some(&0) {
        groups.remove(0);
        weight -= 1;
    }
    while groups.last() == Some(&0) {
        groups.pop();
    }
    if groups.is_empty() {
        weight = 0;
    }
    let sign: u16 = if value.is_negative() { 0x4000 } else { 0 };
    out.extend_from_slice(&(groups.len() as i16).to_be_bytes());
    out.extend_from_slice(&(weight as i16).to_be_bytes());
    out.extend_from_slice(&sign.to_be_bytes());
    out.extend_from_slice(&u16::from(scale).to_be_bytes());
    groups.iter().for_each(|group| out.extend_from_slice(&group.to_be_bytes()));
}

fn malformed(ty: &Type) -> Error {
    Error::new(
        state::INVALID_BINARY,
        format!("incorrect binary data format for a value of type {}", ty.name()),
    )
}

/// Reads a parameter's bytes as a value of `ty`.
pub fn parse(bytes: &[u8], ty: &Type) -> Result<Datum> {
    let wrong = || malformed(ty);
    fn fixed<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
        bytes.try_into().ok()
    }
    Ok(match ty {
        Type::Bool => match bytes {
            [byte] => Datum::Bool(*byte != 0),
            _ => return Err(wrong()),
        },
        Type::Int2 => Datum::Int2(i16::from_be_bytes(fixed(bytes).ok_or_else(wrong)?)),
        Type::Int4 => Datum::Int4(i32::from_be_bytes(fixed(bytes).ok_or_else(wrong)?)),
        Type::Int8 => Datum::Int8(i64::from_be_bytes(fixed(bytes).ok_or_else(wrong)?)),
        Type::Oid => Datum::Int8(i64::from(u32::from_be_bytes(fixed(bytes).ok_or_else(wrong)?))),
        Type::Float4 => Datum::Float4(f32::from_be_bytes(fixed(bytes).ok_or_else(wrong)?)),
        Type::Float8 => Datum::Float8(f64::from_be_bytes(fixed(bytes).ok_or_else(wrong)?)),
        Type::Numeric(_) => Datum::Numeric(parse_numeric(bytes, ty)?),
        Type::Text
        | Type::Varchar(_)
        | Type::Char(_)
        | Type::Name
        | Type::InternalChar
        | Type::Unknown
        | Type::Json => {
            let text = std::str::from_utf8(bytes).map_err(|_| {
                Error::new(
                    state::INVALID_ENCODING,
                    "invalid byte sequence for encoding \"UTF8\" in a parameter",
                )
            })?;
            return super::text::parse(text, ty, &super::Zone::UTC);
        }
        Type::Bytea => Datum::bytes(bytes),
        Type::Date => {
            Datum::Date(date_from_2000(i32::from_be_bytes(fixed(bytes).ok_or_else(wrong)?))?)
        }
        Type::Time => {
            let us = i64::from_be_bytes(fixed(bytes).ok_or_else(wrong)?);
            if !(0..=DAY_US).contains(&us) {
                return Err(Error::new(state::DATETIME_OVERFLOW, "time out of range"));
            }
            Datum::Time(us)
        }
        Type::Timestamp => {
            Datum::Timestamp(from_2000(i64::from_be_bytes(fixed(bytes).ok_or_else(wrong)?))?)
        }
        Type::TimestampTz => {
            Datum::TimestampTz(from_2000(i64::from_be_bytes(fixed(bytes).ok_or_else(wrong)?))?)
        }
        Type::Interval => {
            let all: [u8; 16] = fixed(bytes).ok_or_else(wrong)?;
            Datum::Interval(Interval {
                us: i64::from_be_bytes(fixed(&all[..8]).ok_or_else(wrong)?),
                days: i32::from_be_bytes(fixed(&all[8..12]).ok_or_else(wrong)?),
                months: i32::from_be_bytes(fixed(&all[12..]).ok_or_else(wrong)?),
            })
        }
        Type::Uuid => Datum::Uuid(uuid::Uuid::from_bytes(fixed(bytes).ok_or_else(wrong)?)),
        Type::Array(element) => parse_array(bytes, element, ty)?,
        Type::Void => Datum::Null,
    })
}

fn parse_numeric(bytes: &[u8], ty: &Type) -> Result<Numeric> {
    let wrong = || malformed(ty);
    let half = |idx: usize| -> Option<u16> {
        Some(u16::from_be_bytes([*bytes.get(idx * 2)?, *bytes.get(idx * 2 + 1)?]))
    };
    let n_groups = half(0).ok_or_else(wrong)?;
    let weight = i32::from(half(1).ok_or_else(wrong)? as i16);
    let sign = half(2).ok_or_else(wrong)?;
    let scale = half(3).ok_or_else(wrong)?;
    if sign == 0xC000 || sign == 0xD000 || sign == 0xF000 {
        return Err(Error::unsupported("NaN and infinity in type numeric"));
    }
    let overflow = || {
        Error::new(state::OUT_OF_RANGE, "value overflows numeric format")
            .detail("A numeric holds up to 38 digits.")
    };
    let mut mantissa: i128 = 0;
    for idx in 0..usize::from(n_groups) {
        let group = half(4 + idx).ok_or_else(wrong)?;
        if group > 9_999 {
            return Err(wrong());
        }
        mantissa = mantissa
            .checked_mul(10_000)
            .and_then(|mantissa| mantissa.checked_add(i128::from(group)))
            .ok_or_else(overflow)?;
    }
    if sign == 0x4000 {
        mantissa = -mantissa;
    }
    // The groups end `weight - n_groups + 1` groups left of the point.
    let mut exponent = (weight - i32::from(n_groups) + 1) * 4;
    if mantissa == 0 {
        exponent = 0;
    }
    let scale = u8::try_from(scale).unwrap_or(MAX_DIGITS).min(MAX_DIGITS);
    if exponent >= 0 {
        for _ in 0..exponent {
            mantissa = mantissa.checked_mul(10).ok_or_else(overflow)?;
        }
        return Numeric::new(mantissa, 0)?.rescale(scale);
    }
    let mut have = -exponent;
    while have > i32::from(MAX_DIGITS) {
        mantissa /= 10;
        have -= 1;
    }
    Numeric::new(mantissa, have as u8)?.rescale(scale)
}

fn parse_array(bytes: &[u8], element: &Type, ty: &Type) -> Result<Datum> {
    let wrong = || malformed(ty);
    let int = |at: usize| -> Option<i32> {
        Some(i32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
    };
    let n_dimensions = int(0).ok_or_else(wrong)?;
    if n_dimensions == 0 {
        return Ok(Datum::Array(Arc::from([])));
    }
    if n_dimensions != 1 {
        return Err(Error::unsupported("an array of more than one dimension as a parameter"));
    }
    let sent = int(8).ok_or_else(wrong)? as u32;
    let element = Type::from_oid(sent).unwrap_or_else(|| element.clone());
    let n_elements = usize::try_from(int(12).ok_or_else(wrong)?).map_err(|_| wrong())?;
    // Every element takes at least four bytes: a length that lies is found before memory is taken.
    if n_elements > bytes.len() / 4 {
        return Err(wrong());
    }
    let mut elements = Vec::with_capacity(n_elements);
    let mut at = 20;
    for _ in 0..n_elements {
        let length = int(at).ok_or_else(wrong)?;
        at += 4;
        if length < 0 {
            elements.push(Datum::Null);
            continue;
        }
        let end = at.checked_add(length as usize).ok_or_else(wrong)?;
        elements.push(parse(bytes.get(at..end).ok_or_else(wrong)?, &element)?);
        at = end;
    }
    Ok(Datum::Array(Arc::from(elements)))
}

#[cfg(test)]
mod tests {
    use super::super::{Zone, text};
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        for (ty, shown) in [
            (Type::Bool, "t"),
            (Type::Int2, "-5"),
            (Type::Int8, "9223372036854775807"),
            (Type::Float8, "-0.25"),
            (Type::Numeric(None), "0"),
            (Type::Numeric(None), "0.00"),
            (Type::Numeric(None), "-12345678.901"),
            (Type::Numeric(None), "10000"),
            (Type::Numeric(None), "0.0001"),
            (Type::Numeric(None), "0.00012"),
            (Type::Numeric(None), "99999999999999999999.5"),
            (Type::Text, "grüß"),
            (Type::Bytea, "\\x00ff"),
            (Type::Date, "1999-12-31"),
            (Type::Timestamp, "2024-02-29 23:59:59.000001"),
            (Type::TimestampTz, "1969-12-31 00:00:00+00"),
            (Type::Interval, "1 year -1 days +00:00:01"),
            (Type::Uuid, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
            (Type::Array(Box::new(Type::Int4)), "{1,NULL,3}"),
        ] {
            let datum = text::parse(shown, &ty, &Zone::UTC).unwrap();
            let mut bytes = Vec::new();
            write(&datum, &ty, &mut bytes);
            let back = parse(&bytes, &ty).unwrap();
            assert_eq!(text::to_string(&back, &ty, &Zone::UTC), shown);
        }
    }

    #[test]
    fn what_no_date_or_time_is_is_refused() {
        for (ty, bytes) in [
            (Type::Date, (i32::MAX - 1).to_be_bytes().to_vec()),
            (Type::Date, (i32::MIN + 1).to_be_bytes().to_vec()),
            (Type::Time, (-1i64).to_be_bytes().to_vec()),
            (Type::Time, (DAY_US + 1).to_be_bytes().to_vec()),
            (Type::Timestamp, (i64::MAX - 1).to_be_bytes().to_vec()),
            (Type::TimestampTz, (i64::MIN + 1).to_be_bytes().to_vec()),
        ] {
            assert_eq!(parse(&bytes, &ty).unwrap_err().state(), "22008", "{ty}");
        }
        assert_eq!(parse(b"a\0b", &Type::Text).unwrap_err().state(), "22021");
    }

    #[test]
    fn garbage_is_refused() {
        for ty in [Type::Int4, Type::Numeric(None), Type::Array(Box::new(Type::Int4))] {
            assert_eq!(parse(&[1, 2], &ty).unwrap_err().state(), "22P03", "{ty}");
        }
        let lying = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 23, 127, 255, 255, 255, 0, 0, 0, 1];
        assert!(parse(&lying, &Type::Array(Box::new(Type::Int4))).is_err());
    }
}
