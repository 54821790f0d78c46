//! The functions that the fast path knows. A query that calls any other goes to DataFusion.

use super::Context;
use crate::error::{Error, Result, state};
use crate::types::{Datum, Numeric, Type, datetime};
use std::borrow::Cow;

/// The longest text that a function makes.
pub const TEXT_BYTES_MAX: usize = 64 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    Now,
    ClockTimestamp,
    CurrentDate,
    LocalTimestamp,
    Version,
    CurrentUser,
    CurrentDatabase,
    CurrentSchema,
    BackendPid,
    TransactionId,
    Abs,
    Length,
    OctetLength,
    Lower,
    Upper,
    Concat,
    Round,
    RoundTo,
    Floor,
    Ceil,
    Truncate,
    Mod,
    Sign,
    Sqrt,
    Power,
    Random,
    RandomUuid,
    Substring,
    Left,
    Right,
    Repeat,
    Replace,
    Trim,
    TrimLeft,
    TrimRight,
    Position,
    DateTrunc,
    Extract,
}

impl Function {
    pub fn is_volatile(self) -> bool {
        matches!(self, Function::Random | Function::RandomUuid | Function::ClockTimestamp)
    }
}

/// A function's meaning for these argument types: itself, the types its arguments are cast to,
/// and its result's type. None: not known here.
pub fn lookup(name: &str, args: &[Type]) -> Option<(Function, Vec<Type>, Type)> {
    use Function::*;
    let text = || Type::Text;
    let float_or_numeric = |ty: &Type| match ty {
        Type::Float4 | Type::Float8 => Some(Type::Float8),
        Type::Numeric(_) => Some(Type::Numeric(None)),
        _ => None,
    };
    Some(match (name, args) {
        ("now" | "transaction_timestamp" | "statement_timestamp" | "current_timestamp", []) => {
            (Now, vec![], Type::TimestampTz)
        }
        ("clock_timestamp", []) => (ClockTimestamp, vec![], Type::TimestampTz),
        ("current_date", []) => (CurrentDate, vec![], Type::Date),
        ("localtimestamp", []) => (LocalTimestamp, vec![], Type::Timestamp),
        ("version", []) => (Version, vec![], text()),
        ("current_user" | "session_user" | "user" | "current_role", []) => {
            (CurrentUser, vec![], Type::Name)
        }
        ("current_database" | "current_catalog", []) => (CurrentDatabase, vec![], Type::Name),
        ("current_schema", []) => (CurrentSchema, vec![], Type::Name),
        ("pg_backend_pid", []) => (BackendPid, vec![], Type::Int4),
        ("txid_current" | "pg_current_xact_id", []) => (TransactionId, vec![], Type::Int8),
        ("random", []) => (Random, vec![], Type::Float8),
        ("gen_random_uuid", []) => (RandomUuid, vec![], Type::Uuid),
        ("abs", [ty]) if ty.is_number() => (Abs, vec![ty.clone()], untyped(ty)),
        ("length" | "char_length" | "character_length", [ty]) if is_textual(ty) => {
            (Length, vec![text()], Type::Int4)
        }
        ("octet_length", [ty]) if is_textual(ty) => (OctetLength, vec![text()], Type::Int4),
        ("lower", [ty]) if is_textual(ty) => (Lower, vec![text()], text()),
        ("upper", [ty]) if is_textual(ty) => (Upper, vec![text()], text()),
        ("concat", types) if !types.is_empty() && types.iter().all(is_textual) => {
            (Concat, vec![text(); types.len()], text())
        }
        ("round", [ty]) if float_or_numeric(ty).is_some() => {
            let ty = float_or_numeric(ty)?;
            (Round, vec![ty.clone()], ty)
        }
        ("round", [Type::Numeric(_), n]) if n.is_integer() => {
            (RoundTo, vec![Type::Numeric(None), Type::Int4], Type::Numeric(None))
        }
        ("trunc", [Type::Numeric(_)]) => (Truncate, vec![Type::Numeric(None)], Type::Numeric(None)),
        ("floor", [ty]) if float_or_numeric(ty).is_some() => {
            let ty = float_or_numeric(ty)?;
            (Floor, vec![ty.clone()], ty)
        }
        ("ceil" | "ceiling", [ty]) if float_or_numeric(ty).is_some() => {
            let ty = float_or_numeric(ty)?;
            (Ceil, vec![ty.clone()], ty)
        }
        ("floor" | "ceil" | "ceiling" | "round", [ty]) if ty.is_integer() => {
            let function = match name {
                "floor" => Floor,
                "round" => Round,
                _ => Ceil,
            };
            (function, vec![Type::Float8], Type::Float8)
        }
        ("mod", [a, b]) if a.is_number() && b.is_number() => {
            let ty = crate::types::cast::common(a, b)?;
            (Mod, vec![ty.clone(), ty.clone()], ty)
        }
        ("sign", [ty]) if float_or_numeric(ty).is_some() => {
            let ty = float_or_numeric(ty)?;
            (Sign, vec![ty.clone()], ty)
        }
        ("sqrt", [Type::Float4 | Type::Float8 | Type::Int2 | Type::Int4 | Type::Int8]) => {
            (Sqrt, vec![Type::Float8], Type::Float8)
        }
        ("power" | "pow", [a, b]) if float_like(a) && float_like(b) => {
            (Power, vec![Type::Float8, Type::Float8], Type::Float8)
        }
        ("substring" | "substr", [ty, from]) if is_textual(ty) && from.is_integer() => {
            (Substring, vec![text(), Type::Int4], text())
        }
        ("substring" | "substr", [ty, from, n])
            if is_textual(ty) && from.is_integer() && n.is_integer() =>
        {
            (Substring, vec![text(), Type::Int4, Type::Int4], text())
        }
        ("left", [ty, n]) if is_textual(ty) && n.is_integer() => {
            (Left, vec![text(), Type::Int4], text())
        }
        ("right", [ty, n]) if is_textual(ty) && n.is_integer() => {
            (Right, vec![text(), Type::Int4], text())
        }
        ("repeat", [ty, n]) if is_textual(ty) && n.is_integer() => {
            (Repeat, vec![text(), Type::Int4], text())
        }
        ("replace", [a, b, c]) if is_textual(a) && is_textual(b) && is_textual(c) => {
            (Replace, vec![text(); 3], text())
        }
        ("btrim" | "trim", [ty]) if is_textual(ty) => (Trim, vec![text()], text()),
        ("ltrim", [ty]) if is_textual(ty) => (TrimLeft, vec![text()], text()),
        ("rtrim", [ty]) if is_textual(ty) => (TrimRight, vec![text()], text()),
        ("strpos", [a, b]) if is_textual(a) && is_textual(b) => {
            (Position, vec![text(), text()], Type::Int4)
        }
        ("md5", _) => return None,
        ("date_trunc", [unit, ty]) if is_textual(unit) => {
            let ty = match ty {
                Type::Date | Type::TimestampTz => Type::TimestampTz,
                Type::Timestamp => Type::Timestamp,
                _ => return None,
            };
            (DateTrunc, vec![text(), ty.clone()], ty)
        }
        ("extract", [unit, Type::Date | Type::Timestamp]) if is_textual(unit) => {
            (Extract, vec![text(), Type::Timestamp], Type::Numeric(None))
        }
        _ => return None,
    })
}

fn is_textual(ty: &Type) -> bool {
    ty.is_text() || *ty == Type::Unknown
}

fn float_like(ty: &Type) -> bool {
    ty.is_number() && !matches!(ty, Type::Numeric(_))
}

fn untyped(ty: &Type) -> Type {
    match ty {
        Type::Numeric(_) => Type::Numeric(None),
        other => other.clone(),
    }
}

/// The version as PostgreSQL's clients expect it: its number first.
pub fn version() -> String {
    format!(
        "PostgreSQL 15.0 (Atoll {}) on {}-{}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        std::env::consts::OS
    )
}

pub fn call(function: Function, args: &[Cow<'_, Datum>], cx: &Context<'_>) -> Result<Datum> {
    use Function::*;
    let view = cx.view;
    // CONCAT alone looks at NULLs itself.
    if function != Concat && args.iter().any(|arg| arg.is_null()) {
        return Ok(Datum::Null);
    }
    let shown = |idx: usize| args[idx].as_str().unwrap_or_default();
    let integer = |idx: usize| args[idx].as_i64().unwrap_or_default();
    let float = |idx: usize| args[idx].as_f64().unwrap_or_default();
    Ok(match function {
        Now => Datum::TimestampTz(view.now_us),
        ClockTimestamp => Datum::TimestampTz(view.env.wall_us()),
        CurrentDate => Datum::Date(datetime::timestamp_to_date(view.zone.to_local(view.now_us))),
        LocalTimestamp => Datum::Timestamp(view.zone.to_local(view.now_us)),
        Version => Datum::text(version()),
        CurrentUser => Datum::text(&view.user),
        CurrentDatabase => Datum::text(&view.database),
        CurrentSchema => match view.search_path.first() {
            Some(schema) => Datum::text(schema),
            None => Datum::Null,
        },
        BackendPid => Datum::Int4(view.pid),
        TransactionId => Datum::Int8(view.txn_id as i64),
        Random => Datum::Float8((view.env.random() >> 11) as f64 / (1u64 << 53) as f64),
        RandomUuid => {
            let high = u128::from(view.env.random());
            let low = u128::from(view.env.random());
            let bytes = (high << 64 | low).to_be_bytes();
            Datum::Uuid(uuid::Builder::from_random_bytes(bytes).into_uuid())
        }
        Abs => match &*args[0] {
            Datum::Float8(value) => Datum::Float8(value.abs()),
            Datum::Float4(value) => Datum::Float4(value.abs()),
            Datum::Numeric(value) => Datum::Numeric(value.abs()),
            other if other.as_i64().is_some_and(|value| value < 0) => {
                super::operators::negate(other)?
            }
            other => other.clone(),
        },
        Length => Datum::Int4(shown(0).chars().count() as i32),
        OctetLength => Datum::Int4(shown(0).len() as i32),
        Lower => Datum::text(shown(0).to_lowercase()),
        Upper => Datum::text(shown(0).to_uppercase()),
        Concat => {
            let mut joined = String::new();
            args.iter().filter_map(|arg| arg.as_str()).for_each(|part| joined.push_str(part));
            Datum::text(joined)
        }
        Round => match &*args[0] {
            Datum::Numeric(value) => Datum::Numeric(value.rescale(0)?),
            other => Datum::Float8(other.as_f64().unwrap_or_default().round_ties_even()),
        },
        RoundTo => match &*args[0] {
            Datum::Numeric(value) => Datum::Numeric(round_to(value, integer(1))?),
            other => other.clone(),
        },
        Floor => match &*args[0] {
            Datum::Numeric(value) => Datum::Numeric(value.floor()?),
            other => Datum::Float8(other.as_f64().unwrap_or_default().floor()),
        },
        Ceil => match &*args[0] {
            Datum::Numeric(value) => Datum::Numeric(value.ceil()?),
            other => Datum::Float8(other.as_f64().unwrap_or_default().ceil()),
        },
        Truncate => match &*args[0] {
            Datum::Numeric(value) => Datum::Numeric(value.truncate(0)?),
            other => other.clone(),
        },
        Mod => super::Arithmetic::Modulo.apply(&args[0], &args[1], &view.zone)?,
        Sign => match &*args[0] {
            Datum::Numeric(value) => {
                Datum::Numeric(Numeric::from(value.mantissa().signum() as i64))
            }
            other => {
                let value = other.as_f64().unwrap_or_default();
                Datum::Float8(if value == 0.0 { 0.0 } else { value.signum() })
            }
        },
        Sqrt if float(0) < 0.0 => {
            return Err(Error::new("2201F", "cannot take square root of a negative number"));
        }
        Sqrt => Datum::Float8(float(0).sqrt()),
        Power => {
            let value = float(0).powf(float(1));
            if value.is_infinite() && float(0).is_finite() && float(1).is_finite() {
                return Err(Error::new(state::OUT_OF_RANGE, "value out of range: overflow"));
            }
            Datum::Float8(value)
        }
        Substring => {
            let from = integer(1);
            let end = match args.get(2) {
                Some(_) if integer(2) < 0 => {
                    return Err(Error::new("22011", "negative substring length not allowed"));
                }
                Some(_) => from.saturating_add(integer(2)),
                None => i64::MAX,
            };
            let skip = from.max(1) - 1;
            let n_chars = (end - 1).saturating_sub(skip).max(0);
            Datum::text(
                shown(0).chars().skip(skip as usize).take(n_chars as usize).collect::<String>(),
            )
        }
        Left | Right => {
            let n_chars = shown(0).chars().count() as i64;
            let n = integer(1);
            let kept = if n < 0 { (n_chars + n).max(0) } else { n.min(n_chars) };
            let skip = if function == Left { 0 } else { n_chars - kept };
            Datum::text(
                shown(0).chars().skip(skip as usize).take(kept as usize).collect::<String>(),
            )
        }
        Repeat => {
            let n = integer(1).max(0) as usize;
            if shown(0).len().saturating_mul(n) > TEXT_BYTES_MAX {
                return Err(Error::new(state::LIMIT_EXCEEDED, "requested length too large"));
            }
            Datum::text(shown(0).repeat(n))
        }
        Replace if shown(1).is_empty() => args[0].clone().into_owned(),
        Replace => Datum::text(shown(0).replace(shown(1), shown(2))),
        Trim => Datum::text(shown(0).trim_matches(' ')),
        TrimLeft => Datum::text(shown(0).trim_start_matches(' ')),
        TrimRight => Datum::text(shown(0).trim_end_matches(' ')),
        Position => {
            let at = shown(0).find(shown(1)).map(|at| shown(0)[..at].chars().count() + 1);
            Datum::Int4(at.unwrap_or(0) as i32)
        }
        DateTrunc => {
            let unit = shown(0).to_lowercase();
            let error = || {
                let kind = "timestamp units";
                Error::new(state::INVALID_PARAMETER, format!("{kind} \"{unit}\" not recognized"))
            };
            match &*args[1] {
                Datum::Timestamp(us) => {
                    Datum::Timestamp(datetime::truncate(&unit, *us).ok_or_else(error)?)
                }
                Datum::TimestampTz(us) => {
                    let local = view.zone.to_local(*us);
                    let cut = datetime::truncate(&unit, local).ok_or_else(error)?;
                    Datum::TimestampTz(view.zone.to_utc(cut))
                }
                other => other.clone(),
            }
        }
        Extract => {
            let unit = shown(0).to_lowercase();
            let Datum::Timestamp(us) = &*args[1] else { return Ok(Datum::Null) };
            let micros = datetime::extract(&unit, *us).ok_or_else(|| {
                Error::new(
                    state::INVALID_PARAMETER,
                    format!("timestamp units \"{unit}\" not recognized"),
                )
            })?;
            let value = Numeric::new(micros, 6)?;
            Datum::Numeric(match unit.as_str() {
                "second" | "seconds" | "epoch" => value,
                "milliseconds" | "millisecond" => value.rescale(3)?,
                _ => value.rescale(0)?,
            })
        }
    })
}

/// `round(n, digits)`; negative digits round before the point.
fn round_to(value: &Numeric, digits: i64) -> Result<Numeric> {
    if digits >= 0 {
        let digits = digits.min(i64::from(crate::types::numeric::MAX_DIGITS)) as u8;
        return match value.rescale(digits) {
            Ok(rounded) => Ok(rounded),
            // Zeros that do not fit say nothing.
            Err(_) if digits > value.scale() => Ok(*value),
            Err(error) => Err(error),
        };
    }
    let unit =
        Numeric::new(crate::types::numeric::power_of_ten(digits.unsigned_abs().min(37) as u8), 0)?;
    value.div(&unit)?.rescale(0)?.mul(&unit)
}
