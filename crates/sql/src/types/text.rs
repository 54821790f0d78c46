//! Values as text, read and written exactly as PostgreSQL does.

use super::datetime::{self, Zone};
use super::numeric::{Numeric, ParseError};
use super::{Datum, Type};
use crate::error::{Error, Result, state};
use std::sync::Arc;

/// Appends the datum's text. NULL has none: the caller says it in its own way.
pub fn write(datum: &Datum, ty: &Type, zone: &Zone, out: &mut Vec<u8>) {
    match datum {
        Datum::Null => {}
        Datum::Bool(value) => out.push(if *value { b't' } else { b'f' }),
        Datum::Int2(value) => write_int(i64::from(*value), out),
        Datum::Int4(value) => write_int(i64::from(*value), out),
        Datum::Int8(value) => write_int(*value, out),
        Datum::Float4(value) => write_float(f64::from(*value), format!("{value:e}"), 6, out),
        Datum::Float8(value) => write_float(*value, format!("{value:e}"), 15, out),
        Datum::Numeric(value) => out.extend_from_slice(value.to_string().as_bytes()),
        Datum::Text(text) => {
            out.extend_from_slice(text.as_bytes());
            if let Type::Char(n) = ty {
                let n_chars = if text.is_ascii() { text.len() } else { text.chars().count() };
                let pad = (*n as usize).saturating_sub(n_chars);
                out.resize(out.len() + pad, b' ');
            }
        }
        Datum::Bytes(bytes) => {
            out.extend_from_slice(b"\\x");
            const DIGITS: &[u8; 16] = b"0123456789abcdef";
            for byte in bytes.iter() {
                out.push(DIGITS[usize::from(byte >> 4)]);
                out.push(DIGITS[usize::from(byte & 15)]);
            }
        }
        Datum::Date(days) => datetime::write_date(*days, out),
        Datum::Time(us) => datetime::write_time(*us, out),
        Datum::Timestamp(us) => datetime::write_timestamp(*us, out),
        Datum::TimestampTz(us) => datetime::write_timestamptz(*us, zone, out),
        Datum::Interval(interval) => datetime::write_interval(interval, out),
        Datum::Uuid(uuid) => {
            let mut buffer = uuid::Uuid::encode_buffer();
            out.extend_from_slice(uuid.hyphenated().encode_lower(&mut buffer).as_bytes());
        }
        Datum::Array(elements) => write_array(elements, ty, zone, out),
    }
}

/// The text of a datum that is not NULL.
pub fn to_string(datum: &Datum, ty: &Type, zone: &Zone) -> String {
    let mut out = Vec::new();
    write(datum, ty, zone, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// For error messages and logs: UTC, no padding.
pub fn show(datum: &Datum) -> String {
    match datum {
        Datum::Null => "null".to_owned(),
        other => to_string(other, &Type::Text, &Zone::UTC),
    }
}

pub fn write_int(value: i64, out: &mut Vec<u8>) {
    let mut buffer = [0u8; 20];
    let mut at = buffer.len();
    let mut rest = value.unsigned_abs();
    loop {
        at -= 1;
        buffer[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&buffer[at..]);
}

/// The fewest digits that read back as the same float, without an exponent where it lies in
/// `-4..digits_max`. `exponential` is Rust's shortest form, such as `1.25e-7`.
fn write_float(value: f64, exponential: String, digits_max: i32, out: &mut Vec<u8>) {
    if value.is_nan() {
        return out.extend_from_slice(b"NaN");
    }
    if value.is_infinite() {
        return out.extend_from_slice(if value > 0.0 { b"Infinity" } else { b"-Infinity" });
    }
    let (mantissa, exponent) = exponential.split_once('e').unwrap_or((&exponential, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", mantissa),
    };
    out.extend_from_slice(sign.as_bytes());
    let digits: Vec<u8> = mantissa.bytes().filter(u8::is_ascii_digit).collect();
    if exponent < -4 || exponent >= digits_max {
        out.extend_from_slice(mantissa.as_bytes());
        let sign = if exponent < 0 { '-' } else { '+' };
        out.extend_from_slice(format!("e{sign}{:02}", exponent.abs()).as_bytes());
    } else if exponent < 0 {
        out.extend_from_slice(b"0.");
        out.resize(out.len() + (-exponent - 1) as usize, b'0');
        out.extend_from_slice(&digits);
    } else {
        let whole = exponent as usize + 1;
        if digits.len() <= whole {
            out.extend_from_slice(&digits);
            out.resize(out.len() + whole - digits.len(), b'0');
        } else {
            out.extend_from_slice(&digits[..whole]);
            out.push(b'.');
            out.extend_from_slice(&digits[whole..]);
        }
    }
}

fn write_array(elements: &[Datum], ty: &Type, zone: &Zone, out: &mut Vec<u8>) {
    let element_type = match ty {
        Type::Array(element) => element,
        other => other,
    };
    out.push(b'{');
    for (idx, element) in elements.iter().enumerate() {
        if idx > 0 {
            out.push(b',');
        }
        if element.is_null() {
            out.extend_from_slice(b"NULL");
            continue;
        }
        let mut text = Vec::new();
        write(element, element_type, zone, &mut text);
        let nested = matches!(element, Datum::Array(_));
        let special = |byte: &u8| b"{},\"\\ \t\n\r\x0b\x0c".contains(byte);
        let quoted = !nested
            && (text.is_empty() || text.iter().any(special) || text.eq_ignore_ascii_case(b"null"));
        if !quoted {
            out.extend_from_slice(&text);
            continue;
        }
        out.push(b'"');
        for byte in text {
            if byte == b'"' || byte == b'\\' {
                out.push(b'\\');
            }
            out.push(byte);
        }
        out.push(b'"');
    }
    out.push(b'}');
}

fn syntax(ty: &Type, text: &str) -> Error {
    Error::new(
        state::INVALID_TEXT,
        format!("invalid input syntax for type {}: \"{text}\"", ty.base_name()),
    )
}

fn range(ty: &Type, text: &str) -> Error {
    Error::new(
        state::OUT_OF_RANGE,
        format!("value \"{text}\" is out of range for type {}", ty.base_name()),
    )
}

/// Reads text as a value of `ty`, its length or scale applied as an assignment would.
pub fn parse(text: &str, ty: &Type, zone: &Zone) -> Result<Datum> {
    // A text ends there for C clients, and no comparison would find it.
    if text.as_bytes().contains(&0) {
        let message = "invalid byte sequence for encoding \"UTF8\": 0x00";
        return Err(Error::new(state::INVALID_ENCODING, message));
    }
    Ok(match ty {
        Type::Bool => Datum::Bool(parse_bool(text).ok_or_else(|| syntax(ty, text))?),
        Type::Int2 => {
            let value = parse_int(text, ty)?;
            Datum::Int2(i16::try_from(value).map_err(|_| range(ty, text))?)
        }
        Type::Int4 => {
            let value = parse_int(text, ty)?;
            Datum::Int4(i32::try_from(value).map_err(|_| range(ty, text))?)
        }
        Type::Int8 | Type::Oid => Datum::Int8(parse_int(text, ty)?),
        Type::Float4 => Datum::Float4(parse_float::<f32>(text, ty)?),
        Type::Float8 => Datum::Float8(parse_float::<f64>(text, ty)?),
        Type::Numeric(_) if is_no_finite_number(text) => {
            return Err(Error::unsupported("NaN and infinity in type numeric"));
        }
        Type::Numeric(fit) => {
            let read = match fit {
                Some(_) => Numeric::parse_rounded(text),
                None => text.parse(),
            };
            let value = read.map_err(|error| match error {
                ParseError::Syntax => syntax(ty, text),
                ParseError::Overflow => {
                    Error::new(state::OUT_OF_RANGE, "value overflows numeric format")
                        .detail("A numeric holds up to 38 digits.")
                }
            })?;
            Datum::Numeric(match fit {
                Some((precision, scale)) => value.fit(*precision, *scale)?,
                None => value,
            })
        }
        Type::Varchar(Some(_)) | Type::Char(_) | Type::InternalChar => {
            super::cast::fit(Datum::text(text), ty, false)?
        }
        Type::Text | Type::Varchar(None) | Type::Name | Type::Unknown | Type::Void => {
            Datum::text(text)
        }
        Type::Json => match serde_json::from_str::<serde::de::IgnoredAny>(text) {
            Ok(_) => Datum::text(text),
            Err(error) => {
                return Err(Error::new(state::INVALID_TEXT, "invalid input syntax for type json")
                    .detail(error.to_string()));
            }
        },
        Type::Bytea => Datum::Bytes(parse_bytea(text)?.into()),
        Type::Date => Datum::Date(datetime::parse_date(text)?),
        Type::Time => Datum::Time(datetime::parse_time(text)?),
        Type::Timestamp => Datum::Timestamp(datetime::parse_timestamp(text)?),
        Type::TimestampTz => Datum::TimestampTz(datetime::parse_timestamptz(text, zone)?),
        Type::Interval => Datum::Interval(datetime::parse_interval(text)?),
        Type::Uuid => {
            Datum::Uuid(uuid::Uuid::parse_str(text.trim()).map_err(|_| syntax(ty, text))?)
        }
        Type::Array(element) => parse_array(text, element, zone)?,
    })
}

fn is_no_finite_number(text: &str) -> bool {
    let word = text.trim();
    let word = word.strip_prefix(['+', '-']).unwrap_or(word);
    ["nan", "inf", "infinity"].iter().any(|known| word.eq_ignore_ascii_case(known))
}

fn parse_bool(text: &str) -> Option<bool> {
    let text = text.trim().to_ascii_lowercase();
    match text.as_str() {
        "" => None,
        "1" | "on" => Some(true),
        "0" | "of" | "off" => Some(false),
        text if "true".starts_with(text) || "yes".starts_with(text) => Some(true),
        text if "false".starts_with(text) || "no".starts_with(text) => Some(false),
        _ => None,
    }
}

fn parse_int(text: &str, ty: &Type) -> Result<i64> {
    let trimmed = text.trim();
    let digits = trimmed.strip_prefix(['+', '-']).unwrap_or(trimmed);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(syntax(ty, text));
    }
    trimmed.parse().map_err(|_| range(ty, text))
}

fn parse_float<F>(text: &str, ty: &Type) -> Result<F>
where
    F: std::str::FromStr + Into<f64> + Copy,
{
    let trimmed = text.trim();
    let unsigned = trimmed.strip_prefix(['+', '-']).unwrap_or(trimmed).to_ascii_lowercase();
    let word = matches!(unsigned.as_str(), "nan" | "inf" | "infinity");
    if !word && !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return Err(syntax(ty, text));
    }
    let value: F = trimmed.parse().map_err(|_| syntax(ty, text))?;
    let wide: f64 = value.into();
    let overflowed = wide.is_infinite() && !word;
    let vanished = wide == 0.0
        && unsigned.split('e').next().is_some_and(|m| m.contains(|c| ('1'..='9').contains(&c)));
    if overflowed || vanished {
        return Err(Error::new(
            state::OUT_OF_RANGE,
            format!("\"{text}\" is out of range for type {}", ty.base_name()),
        ));
    }
    Ok(value)
}

fn parse_bytea(text: &str) -> Result<Vec<u8>> {
    let nibble = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    if let Some(hex) = text.strip_prefix("\\x") {
        let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        if digits.len() % 2 == 1 {
            let message = "invalid hexadecimal data: odd number of digits";
            return Err(Error::new(state::INVALID_PARAMETER, message));
        }
        return digits
            .chunks_exact(2)
            .map(|pair| Some(nibble(pair[0])? << 4 | nibble(pair[1])?))
            .collect::<Option<Vec<u8>>>()
            .ok_or_else(|| Error::new(state::INVALID_PARAMETER, "invalid hexadecimal digit"));
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes();
    loop {
        match bytes {
            [] => return Ok(out),
            [b'\\', b'\\', rest @ ..] => {
                out.push(b'\\');
                bytes = rest;
            }
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', rest @ ..] => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                bytes = rest;
            }
            [b'\\', ..] => return Err(syntax(&Type::Bytea, text)),
            [byte, rest @ ..] => {
                out.push(*byte);
                bytes = rest;
            }
        }
    }
}

/// As many as in PostgreSQL. Arrays within arrays are compared, printed and freed by recursion.
const DIMENSIONS_MAX: usize = 6;

/// `{1,2,NULL,"a b"}`; nested braces make nested arrays.
fn parse_array(text: &str, element: &Type, zone: &Zone) -> Result<Datum> {
    let malformed =
        || Error::new(state::INVALID_TEXT, format!("malformed array literal: \"{text}\""));
    let too_deep = || {
        let message =
            format!("number of array dimensions exceeds the maximum allowed ({DIMENSIONS_MAX})");
        Error::new(state::LIMIT_EXCEEDED, message)
    };
    let mut stack: Vec<Vec<Datum>> = Vec::new();
    let mut letters = text.trim().chars().peekable();
    let mut after_value = false;
    loop {
        let Some(letter) = letters.next() else { return Err(malformed()) };
        match letter {
            '{' if !after_value && stack.len() == DIMENSIONS_MAX => return Err(too_deep()),
            '{' if !after_value => stack.push(Vec::new()),
            '}' => {
                let done = stack.pop().ok_or_else(malformed)?;
                let array = Datum::Array(Arc::from(done));
                match stack.last_mut() {
                    Some(parent) => parent.push(array),
                    None if letters.next().is_none() => return Ok(array),
                    None => return Err(malformed()),
                }
                after_value = true;
            }
            ',' if after_value => after_value = false,
            letter if letter.is_whitespace() => {}
            letter if !after_value && !stack.is_empty() => {
                let mut word = String::new();
                let quoted = letter == '"';
                if quoted {
                    loop {
                        match letters.next().ok_or_else(malformed)? {
                            '"' => break,
                            '\\' => word.push(letters.next().ok_or_else(malformed)?),
                            other => word.push(other),
                        }
                    }
                } else {
                    word.push(letter);
                    while let Some(next) = letters.next_if(|next| !matches!(next, ',' | '}' | '{'))
                    {
                        match next {
                            '\\' => word.push(letters.next().ok_or_else(malformed)?),
                            other => word.push(other),
                        }
                    }
                }
                let datum = if !quoted && word.trim().eq_ignore_ascii_case("null") {
                    Datum::Null
                } else {
                    parse(if quoted { &word } else { word.trim_end() }, element, zone)?
                };
                stack.last_mut().ok_or_else(malformed)?.push(datum);
                after_value = true;
            }
            _ => return Err(malformed()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_read_and_print_as_in_postgres() {
        let bpchar = Type::Char(5);
        let ints = Type::Array(Box::new(Type::Int4));
        let texts = Type::Array(Box::new(Type::Text));
        for (ty, text, want) in [
            (Type::Bool, " YES ", "t"),
            (Type::Int4, " -12 ", "-12"),
            (Type::Float8, "1e15", "1e+15"),
            (Type::Float8, "123456789012345", "123456789012345"),
            (Type::Float8, "0.00001", "1e-05"),
            (Type::Float8, "0.1", "0.1"),
            (Type::Float8, "-infinity", "-Infinity"),
            (Type::Float4, "1000000", "1e+06"),
            (Type::Float4, "3.1415927", "3.1415927"),
            (Type::Numeric(Some((6, 2))), "1.005", "1.01"),
            (bpchar, "ab  ", "ab   "),
            (Type::Bytea, "a\\\\b\\001", "\\x615c6201"),
            (ints, "{1, NULL,3}", "{1,NULL,3}"),
            (texts, r#"{"a b","x\"y",""}"#, r#"{"a b","x\"y",""}"#),
        ] {
            let datum = parse(text, &ty, &Zone::UTC).unwrap();
            assert_eq!(to_string(&datum, &ty, &Zone::UTC), want, "{text} as {ty}");
        }
    }

    #[test]
    fn what_does_not_read_is_told_as_postgres_tells_it() {
        for (ty, text, want) in [
            (Type::Int4, "x", "22P02"),
            (Type::Int4, "2147483648", "22003"),
            (Type::Int2, "", "22P02"),
            (Type::Float8, "1e400", "22003"),
            (Type::Bool, "maybe", "22P02"),
            (Type::Varchar(Some(2)), "abc", "22001"),
            (Type::Uuid, "123", "22P02"),
            (Type::Numeric(Some((3, 1))), "100", "22003"),
        ] {
            assert_eq!(parse(text, &ty, &Zone::UTC).unwrap_err().state(), want, "{text} as {ty}");
        }
    }
}
