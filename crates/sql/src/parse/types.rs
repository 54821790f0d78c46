//! Type names.

use crate::error::{Error, Result, state};
use crate::types::Type;
use crate::types::numeric::MAX_DIGITS;
use sqlparser::ast::{ArrayElemTypeDef, CharacterLength, DataType, ExactNumberInfo, TimezoneInfo};

/// `serial` and its kin: an integer that a sequence fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serial {
    Small,
    Normal,
    Big,
}

impl Serial {
    pub fn ty(self) -> Type {
        match self {
            Serial::Small => Type::Int2,
            Serial::Normal => Type::Int4,
            Serial::Big => Type::Int8,
        }
    }
}

pub fn serial_of(ty: &DataType) -> Option<Serial> {
    let DataType::Custom(name, arguments) = ty else { return None };
    if !arguments.is_empty() {
        return None;
    }
    match name.to_string().to_lowercase().as_str() {
        "serial" | "serial4" => Some(Serial::Normal),
        "bigserial" | "serial8" => Some(Serial::Big),
        "smallserial" | "serial2" => Some(Serial::Small),
        _ => None,
    }
}

fn length(length: &Option<CharacterLength>) -> Result<Option<u32>> {
    match length {
        None => Ok(None),
        Some(CharacterLength::IntegerLength { length, .. }) => match u32::try_from(*length) {
            Ok(0) => Err(Error::new(
                state::INVALID_PARAMETER,
                "length for type varchar must be at least 1",
            )),
            Ok(n) if n <= 10_485_760 => Ok(Some(n)),
            _ => Err(Error::new(
                state::INVALID_PARAMETER,
                "length for type varchar cannot exceed 10485760",
            )),
        },
        Some(CharacterLength::Max) => Err(Error::unsupported("the length MAX")),
    }
}

fn numeric(info: &ExactNumberInfo) -> Result<Type> {
    let (precision, scale) = match info {
        ExactNumberInfo::None => return Ok(Type::Numeric(None)),
        ExactNumberInfo::Precision(precision) => (*precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => (*precision, *scale),
    };
    match (u8::try_from(precision), u8::try_from(scale)) {
        (Ok(precision @ 1..=MAX_DIGITS), Ok(scale)) if scale <= precision => {
            Ok(Type::Numeric(Some((precision, scale))))
        }
        _ if (1..=1000).contains(&precision) => Err(Error::unsupported(format!(
            "numeric({precision},{scale})"
        ))
        .detail("A numeric holds up to 38 digits, its scale lies between 0 and its precision.")),
        _ => Err(Error::new(
            state::INVALID_PARAMETER,
            format!("NUMERIC precision {precision} must be between 1 and 1000"),
        )),
    }
}

/// The type that a name means.
pub fn type_of(ty: &DataType) -> Result<Type> {
    if let Some(serial) = serial_of(ty) {
        return Ok(serial.ty());
    }
    Ok(match ty {
        DataType::Bool | DataType::Boolean => Type::Bool,
        DataType::Int2(_) | DataType::SmallInt(_) => Type::Int2,
        DataType::Int(_) | DataType::Integer(_) | DataType::Int4(_) => Type::Int4,
        DataType::BigInt(_) | DataType::Int8(_) => Type::Int8,
        DataType::Float4 | DataType::Real => Type::Float4,
        DataType::Float8 | DataType::DoublePrecision | DataType::Double(_) => Type::Float8,
        DataType::Float(info) => match info {
            ExactNumberInfo::Precision(1..=24) => Type::Float4,
            _ => Type::Float8,
        },
        DataType::Numeric(info) | DataType::Decimal(info) | DataType::Dec(info) => numeric(info)?,
        DataType::Text => Type::Text,
        DataType::Varchar(n) | DataType::CharacterVarying(n) | DataType::CharVarying(n) => {
            Type::Varchar(length(n)?)
        }
        DataType::Char(n) | DataType::Character(n) => Type::Char(length(n)?.unwrap_or(1)),
        DataType::Bytea => Type::Bytea,
        DataType::Date => Type::Date,
        DataType::Time(_, zone) => match zone {
            TimezoneInfo::None | TimezoneInfo::WithoutTimeZone => Type::Time,
            _ => return Err(Error::unsupported("time with time zone")),
        },
        DataType::Timestamp(_, zone) => match zone {
            TimezoneInfo::None | TimezoneInfo::WithoutTimeZone => Type::Timestamp,
            TimezoneInfo::WithTimeZone | TimezoneInfo::Tz => Type::TimestampTz,
        },
        DataType::Interval { .. } => Type::Interval,
        DataType::Uuid => Type::Uuid,
        DataType::JSON => Type::Json,
        DataType::Regclass => Type::Oid,
        DataType::Array(ArrayElemTypeDef::SquareBracket(element, _)) => {
            Type::Array(Box::new(type_of(element)?))
        }
        DataType::Custom(name, arguments) => {
            let full = name.to_string().to_lowercase().replace('"', "");
            let short = full.strip_prefix("pg_catalog.").unwrap_or(&full);
            match (short, arguments.is_empty()) {
                ("int2", true) => Type::Int2,
                ("int4" | "int", true) => Type::Int4,
                ("int8", true) => Type::Int8,
                ("float4", true) => Type::Float4,
                ("float8", true) => Type::Float8,
                ("bool", true) => Type::Bool,
                ("text" | "citext", true) => Type::Text,
                ("varchar", true) => Type::Varchar(None),
                ("bpchar", true) => Type::Char(0),
                ("numeric", true) => Type::Numeric(None),
                ("timestamptz", _) => Type::TimestampTz,
                ("timestamp", _) => Type::Timestamp,
                ("date", true) => Type::Date,
                ("interval", true) => Type::Interval,
                ("uuid", true) => Type::Uuid,
                ("bytea", true) => Type::Bytea,
                ("json", true) => Type::Json,
                ("name", true) => Type::Name,
                ("oid" | "regproc" | "regtype" | "regrole" | "regnamespace", true) => Type::Oid,
                ("char", true) => Type::InternalChar,
                _ => {
                    return Err(Error::new(
                        state::UNDEFINED_OBJECT,
                        format!("type \"{name}\" does not exist"),
                    ));
                }
            }
        }
        other => {
            return Err(Error::new(
                state::UNDEFINED_OBJECT,
                format!("type \"{}\" does not exist", other.to_string().to_lowercase()),
            ));
        }
    })
}
