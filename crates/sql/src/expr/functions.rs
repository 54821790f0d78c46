//! The functions that the fast path knows, by their names and the types of their arguments.
//!
//! One name may have several meanings: `abs(int4)` and `abs(float8)`. As in PostgreSQL, arguments of
//! the very types win, then those that are cast implicitly, to a preferred type (`float8`, `text`,
//! `timestamptz`) if there is a choice: `sqrt(4)` is `sqrt(4::float8)`. A literal or parameter of unknown
//! type fits everywhere.
//!
//! | call | meaning |
//! |---|---|
//! | `round(2.5)` | `round(numeric)`, the very type |
//! | `round(2)` | `round(float8)`, the preferred one of two casts |
//! | `left('abc', 1::bigint)` | none: bigint is not cast to integer unasked |
//! | `ln(2.5)` | elsewhere: what is exact is left to the engine of wide queries |
//!
//! What each does to values is in [`call`] and the rooms below. Absent: functions that read tables, and
//! those that answer rows.

mod number;
mod text;

use super::Context;
use crate::error::{Error, Result, state};
use crate::types::cast::{self, Context as CastContext};
use crate::types::{Datum, Type, datetime};
use std::borrow::Cow;

/// The longest text that a function makes.
pub const TEXT_BYTES_MAX: usize = 64 << 20;

/// Refuses to make a longer one.
pub fn check_length(n_bytes: usize) -> Result<()> {
    match n_bytes > TEXT_BYTES_MAX {
        true => Err(Error::new(state::LIMIT_EXCEEDED, "requested length too large")),
        false => Ok(()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    Now,
    ClockTimestamp,
    CurrentDate,
    LocalTimestamp,
    Version,
    CurrentUser,
    SessionUser,
    CurrentDatabase,
    CurrentSchema,
    BackendPid,
    TransactionId,
    Random,
    RandomUuid,

    Abs,
    Round,
    RoundTo,
    Floor,
    Ceil,
    Truncate,
    TruncateTo,
    Mod,
    Sign,
    Sqrt,
    CubeRoot,
    Power,
    Exp,
    Ln,
    Log10,
    Degrees,
    Radians,
    Sin,
    Cos,
    Tan,
    Cot,
    Asin,
    Acos,
    Atan,
    Atan2,

    Length,
    OctetLength,
    BitLength,
    Lower,
    Upper,
    Concat,
    Substring,
    Left,
    Right,
    Repeat,
    Replace,
    Reverse,
    Trim,
    TrimLeft,
    TrimRight,
    Position,
    StartsWith,
    PadLeft,
    PadRight,
    SplitPart,
    Translate,
    Chr,
    Ascii,
    ToHex,

    DateTrunc,
    Extract,
    DatePart,
    IsFinite,
    /// What stands for a timestamp in a comparison with a date, and for a timestamptz in one with
    /// either: the nearest that there is, where a cast would be an error.
    NearestTimestamp,
    NearestTimestampTz,
}

impl Function {
    pub fn is_volatile(self) -> bool {
        matches!(self, Function::Random | Function::RandomUuid | Function::ClockTimestamp)
    }
}

/// One meaning of a name.
struct Overload {
    name: &'static str,
    /// None: known, and computed by the engine of wide queries only.
    function: Option<Function>,
    args: &'static [Type],
    answer: Type,
}

const fn here(
    name: &'static str,
    function: Function,
    args: &'static [Type],
    answer: Type,
) -> Overload {
    Overload { name, function: Some(function), args, answer }
}

const fn elsewhere(name: &'static str, args: &'static [Type], answer: Type) -> Overload {
    Overload { name, function: None, args, answer }
}

use Function as F;
use Type::{
    Bool, Bytea, Date, Float4, Float8, Int2, Int4, Int8, Interval, Name, Text, Time, Timestamp,
    TimestampTz, Uuid,
};
const NUMERIC: Type = Type::Numeric(None);

static OVERLOADS: &[Overload] = &[
    here("now", F::Now, &[], TimestampTz),
    here("transaction_timestamp", F::Now, &[], TimestampTz),
    here("statement_timestamp", F::Now, &[], TimestampTz),
    here("current_timestamp", F::Now, &[], TimestampTz),
    here("clock_timestamp", F::ClockTimestamp, &[], TimestampTz),
    here("current_date", F::CurrentDate, &[], Date),
    here("localtimestamp", F::LocalTimestamp, &[], Timestamp),
    here("version", F::Version, &[], Text),
    here("current_user", F::CurrentUser, &[], Name),
    here("session_user", F::SessionUser, &[], Name),
    here("user", F::CurrentUser, &[], Name),
    here("current_role", F::CurrentUser, &[], Name),
    here("current_database", F::CurrentDatabase, &[], Name),
    here("current_catalog", F::CurrentDatabase, &[], Name),
    here("current_schema", F::CurrentSchema, &[], Name),
    here("pg_backend_pid", F::BackendPid, &[], Int4),
    here("txid_current", F::TransactionId, &[], Int8),
    here("pg_current_xact_id", F::TransactionId, &[], Int8),
    here("random", F::Random, &[], Float8),
    here("gen_random_uuid", F::RandomUuid, &[], Uuid),
    // Numbers.
    here("abs", F::Abs, &[Float8], Float8),
    here("abs", F::Abs, &[Float4], Float4),
    here("abs", F::Abs, &[Int2], Int2),
    here("abs", F::Abs, &[Int4], Int4),
    here("abs", F::Abs, &[Int8], Int8),
    here("abs", F::Abs, &[NUMERIC], NUMERIC),
    here("round", F::Round, &[Float8], Float8),
    here("round", F::Round, &[NUMERIC], NUMERIC),
    here("round", F::RoundTo, &[NUMERIC, Int4], NUMERIC),
    here("trunc", F::Truncate, &[Float8], Float8),
    here("trunc", F::Truncate, &[NUMERIC], NUMERIC),
    here("trunc", F::TruncateTo, &[NUMERIC, Int4], NUMERIC),
    here("floor", F::Floor, &[Float8], Float8),
    here("floor", F::Floor, &[NUMERIC], NUMERIC),
    here("ceil", F::Ceil, &[Float8], Float8),
    here("ceil", F::Ceil, &[NUMERIC], NUMERIC),
    here("ceiling", F::Ceil, &[Float8], Float8),
    here("ceiling", F::Ceil, &[NUMERIC], NUMERIC),
    here("mod", F::Mod, &[Int2, Int2], Int2),
    here("mod", F::Mod, &[Int4, Int4], Int4),
    here("mod", F::Mod, &[Int8, Int8], Int8),
    here("mod", F::Mod, &[NUMERIC, NUMERIC], NUMERIC),
    here("sign", F::Sign, &[Float8], Float8),
    here("sign", F::Sign, &[NUMERIC], NUMERIC),
    here("sqrt", F::Sqrt, &[Float8], Float8),
    elsewhere("sqrt", &[NUMERIC], NUMERIC),
    here("cbrt", F::CubeRoot, &[Float8], Float8),
    here("power", F::Power, &[Float8, Float8], Float8),
    elsewhere("power", &[NUMERIC, NUMERIC], NUMERIC),
    here("pow", F::Power, &[Float8, Float8], Float8),
    elsewhere("pow", &[NUMERIC, NUMERIC], NUMERIC),
    here("exp", F::Exp, &[Float8], Float8),
    elsewhere("exp", &[NUMERIC], NUMERIC),
    here("ln", F::Ln, &[Float8], Float8),
    elsewhere("ln", &[NUMERIC], NUMERIC),
    here("log", F::Log10, &[Float8], Float8),
    elsewhere("log", &[NUMERIC], NUMERIC),
    elsewhere("log", &[NUMERIC, NUMERIC], NUMERIC),
    here("log10", F::Log10, &[Float8], Float8),
    elsewhere("log10", &[NUMERIC], NUMERIC),
    here("degrees", F::Degrees, &[Float8], Float8),
    here("radians", F::Radians, &[Float8], Float8),
    here("sin", F::Sin, &[Float8], Float8),
    here("cos", F::Cos, &[Float8], Float8),
    here("tan", F::Tan, &[Float8], Float8),
    here("cot", F::Cot, &[Float8], Float8),
    here("asin", F::Asin, &[Float8], Float8),
    here("acos", F::Acos, &[Float8], Float8),
    here("atan", F::Atan, &[Float8], Float8),
    here("atan2", F::Atan2, &[Float8, Float8], Float8),
    // Text.
    here("length", F::Length, &[Text], Int4),
    here("length", F::OctetLength, &[Bytea], Int4),
    here("char_length", F::Length, &[Text], Int4),
    here("character_length", F::Length, &[Text], Int4),
    here("octet_length", F::OctetLength, &[Text], Int4),
    here("octet_length", F::OctetLength, &[Bytea], Int4),
    here("bit_length", F::BitLength, &[Text], Int4),
    here("bit_length", F::BitLength, &[Bytea], Int4),
    here("lower", F::Lower, &[Text], Text),
    here("upper", F::Upper, &[Text], Text),
    here("substring", F::Substring, &[Text, Int4], Text),
    here("substring", F::Substring, &[Text, Int4, Int4], Text),
    here("substring", F::Substring, &[Bytea, Int4], Bytea),
    here("substring", F::Substring, &[Bytea, Int4, Int4], Bytea),
    elsewhere("substring", &[Text, Text], Text),
    here("substr", F::Substring, &[Text, Int4], Text),
    here("substr", F::Substring, &[Text, Int4, Int4], Text),
    here("substr", F::Substring, &[Bytea, Int4], Bytea),
    here("substr", F::Substring, &[Bytea, Int4, Int4], Bytea),
    here("left", F::Left, &[Text, Int4], Text),
    here("right", F::Right, &[Text, Int4], Text),
    here("repeat", F::Repeat, &[Text, Int4], Text),
    here("replace", F::Replace, &[Text, Text, Text], Text),
    here("reverse", F::Reverse, &[Text], Text),
    here("btrim", F::Trim, &[Text], Text),
    here("btrim", F::Trim, &[Text, Text], Text),
    here("btrim", F::Trim, &[Bytea, Bytea], Bytea),
    here("trim", F::Trim, &[Text], Text),
    here("trim", F::Trim, &[Text, Text], Text),
    here("ltrim", F::TrimLeft, &[Text], Text),
    here("ltrim", F::TrimLeft, &[Text, Text], Text),
    here("ltrim", F::TrimLeft, &[Bytea, Bytea], Bytea),
    here("rtrim", F::TrimRight, &[Text], Text),
    here("rtrim", F::TrimRight, &[Text, Text], Text),
    here("rtrim", F::TrimRight, &[Bytea, Bytea], Bytea),
    here("strpos", F::Position, &[Text, Text], Int4),
    here("starts_with", F::StartsWith, &[Text, Text], Bool),
    here("lpad", F::PadLeft, &[Text, Int4], Text),
    here("lpad", F::PadLeft, &[Text, Int4, Text], Text),
    here("rpad", F::PadRight, &[Text, Int4], Text),
    here("rpad", F::PadRight, &[Text, Int4, Text], Text),
    here("split_part", F::SplitPart, &[Text, Text, Int4], Text),
    here("translate", F::Translate, &[Text, Text, Text], Text),
    here("chr", F::Chr, &[Int4], Text),
    here("ascii", F::Ascii, &[Text], Int4),
    here("to_hex", F::ToHex, &[Int4], Text),
    here("to_hex", F::ToHex, &[Int8], Text),
    // Dates and times.
    here("date_trunc", F::DateTrunc, &[Text, TimestampTz], TimestampTz),
    here("date_trunc", F::DateTrunc, &[Text, Timestamp], Timestamp),
    here("date_trunc", F::DateTrunc, &[Text, Interval], Interval),
    here("extract", F::Extract, &[Text, Date], NUMERIC),
    here("extract", F::Extract, &[Text, Time], NUMERIC),
    here("extract", F::Extract, &[Text, Timestamp], NUMERIC),
    here("extract", F::Extract, &[Text, TimestampTz], NUMERIC),
    here("extract", F::Extract, &[Text, Interval], NUMERIC),
    here("date_part", F::DatePart, &[Text, Date], Float8),
    here("date_part", F::DatePart, &[Text, Time], Float8),
    here("date_part", F::DatePart, &[Text, Timestamp], Float8),
    here("date_part", F::DatePart, &[Text, TimestampTz], Float8),
    here("date_part", F::DatePart, &[Text, Interval], Float8),
    here("isfinite", F::IsFinite, &[Date], Bool),
    here("isfinite", F::IsFinite, &[Timestamp], Bool),
    here("isfinite", F::IsFinite, &[TimestampTz], Bool),
    here("isfinite", F::IsFinite, &[Interval], Bool),
];

/// The names that are known, each once.
pub fn names() -> impl Iterator<Item = &'static str> {
    let mut last = "concat";
    std::iter::once(last).chain(OVERLOADS.iter().map(|overload| overload.name).filter(
        move |name| {
            let is_new = *name != last;
            last = name;
            is_new
        },
    ))
}

/// What a name means for arguments of some types.
pub enum Lookup {
    /// The function, the types its arguments are cast to, and its result's type.
    Here(Function, Vec<Type>, Type),
    /// Not known, or left to the engine of wide queries.
    Elsewhere,
    /// Known, and not for such arguments.
    NoSuch,
}

/// Arguments that are `very` of the wanted type, and those that reach a preferred one by a cast; none
/// where one does not reach its type unasked.
fn score(overload: &Overload, args: &[Type]) -> Option<(usize, usize)> {
    if overload.args.len() != args.len() {
        return None;
    }
    let mut score = (0, 0);
    for (arg, wanted) in args.iter().zip(overload.args) {
        if std::mem::discriminant(arg) == std::mem::discriminant(wanted) {
            score.0 += 1;
        } else if cast::context(arg, wanted) == Some(CastContext::Implicit) {
            score.1 += usize::from(matches!(wanted, Float8 | Text | TimestampTz));
        } else {
            return None;
        }
    }
    Some(score)
}

pub fn lookup(name: &str, args: &[Type]) -> Lookup {
    if name == "concat" {
        // Booleans are `t` there and `true` as text.
        let known = |ty: &Type| !matches!(ty, Bool | Type::Array(_) | Type::Void);
        return match !args.is_empty() && args.iter().all(known) {
            true => Lookup::Here(F::Concat, vec![Text; args.len()], Text),
            false => Lookup::Elsewhere,
        };
    }
    let mut is_known = false;
    let mut best: Option<((usize, usize), &Overload)> = None;
    for overload in OVERLOADS.iter().filter(|overload| overload.name == name) {
        is_known = true;
        if let Some(score) = score(overload, args)
            && best.as_ref().is_none_or(|(other, _)| score > *other)
        {
            best = Some((score, overload));
        }
    }
    match best {
        Some((_, Overload { function: Some(function), args, answer, .. })) => {
            Lookup::Here(*function, args.to_vec(), answer.clone())
        }
        None if is_known => Lookup::NoSuch,
        _ => Lookup::Elsewhere,
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

/// The function's value. Arguments have the types that [`lookup`] told.
pub fn call(function: Function, args: &[Cow<'_, Datum>], cx: &Context<'_>) -> Result<Datum> {
    use Function::*;
    let view = cx.view;
    // CONCAT alone looks at NULLs itself.
    if function != Concat && args.iter().any(|arg| arg.is_null()) {
        return Ok(Datum::Null);
    }
    let name = || args[0].as_str().unwrap_or_default();
    Ok(match function {
        Now => Datum::TimestampTz(view.now_us),
        ClockTimestamp => Datum::TimestampTz(view.env.wall_us()),
        CurrentDate => Datum::Date(datetime::timestamp_to_date(view.zone.to_local(view.now_us))),
        LocalTimestamp => Datum::Timestamp(view.zone.to_local(view.now_us)),
        Version => Datum::text(version()),
        CurrentUser => Datum::text(view.user()),
        SessionUser => Datum::text(&view.session_user),
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
        Mod => super::Arithmetic::Modulo.apply(&args[0], &args[1], &view.zone)?,
        Abs | Round | RoundTo | Floor | Ceil | Truncate | TruncateTo | Sign | Sqrt | CubeRoot
        | Power | Exp | Ln | Log10 | Degrees | Radians | Sin | Cos | Tan | Cot | Asin | Acos
        | Atan | Atan2 => number::call(function, args)?,
        Length | OctetLength | BitLength | Lower | Upper | Concat | Substring | Left | Right
        | Repeat | Replace | Reverse | Trim | TrimLeft | TrimRight | Position | StartsWith
        | PadLeft | PadRight | SplitPart | Translate | Chr | Ascii | ToHex => {
            text::call(function, args)?
        }
        DateTrunc => match &*args[1] {
            Datum::Timestamp(us) => Datum::Timestamp(datetime::truncate(name(), *us)?),
            Datum::TimestampTz(us) => {
                Datum::TimestampTz(datetime::truncate_in(name(), *us, &view.zone)?)
            }
            Datum::Interval(interval) => {
                Datum::Interval(datetime::truncate_interval(name(), interval)?)
            }
            _ => return Err(Error::internal("date_trunc of what is no time")),
        },
        Extract => datetime::extract(name(), &args[1], &view.zone)?.numeric()?,
        // Of a date's midnight: `date_part('hour', date)` is 0 where `extract` refuses.
        DatePart => match &*args[1] {
            Datum::Date(days) => {
                let midnight = Datum::Timestamp(datetime::try_date_to_timestamp(*days)?);
                datetime::extract(name(), &midnight, &view.zone)?.float()
            }
            time => datetime::extract(name(), time, &view.zone)?.float(),
        },
        IsFinite => Datum::Bool(match &*args[0] {
            Datum::Date(days) => !datetime::date_is_infinite(*days),
            Datum::Timestamp(us) | Datum::TimestampTz(us) => !datetime::is_infinite(*us),
            _ => true,
        }),
        NearestTimestamp => args[0].nearest_timestamp(&Timestamp, &view.zone),
        NearestTimestampTz => args[0].nearest_timestamp(&TimestampTz, &view.zone),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_choose_the_meaning() {
        let answer = |name: &str, args: &[Type]| match lookup(name, args) {
            Lookup::Here(_, _, answer) => answer.name(),
            Lookup::Elsewhere => "elsewhere".to_owned(),
            Lookup::NoSuch => "none".to_owned(),
        };
        for (name, args, want) in [
            ("round", vec![NUMERIC], "numeric"),
            ("round", vec![Int4], "double precision"),
            ("round", vec![Int4, Int4], "numeric"),
            ("round", vec![Float8, Int4], "none"),
            ("sqrt", vec![Float4], "double precision"),
            ("sqrt", vec![NUMERIC], "elsewhere"),
            ("power", vec![Int4, NUMERIC], "elsewhere"),
            ("power", vec![Int4, Int4], "double precision"),
            ("mod", vec![Int2, Int4], "integer"),
            ("left", vec![Type::Unknown, Int8], "none"),
            ("length", vec![Bytea], "integer"),
            ("date_trunc", vec![Type::Unknown, Date], "timestamp with time zone"),
            ("to_char", vec![Date, Text], "elsewhere"),
        ] {
            assert_eq!(answer(name, &args), want, "{name} of {args:?}");
        }
    }
}
