//! Functions of text and bytes. Places and lengths count characters of a text and bytes of a bytea.

use super::{Function, check_length};
use crate::error::{Error, Result, state};
use crate::types::Datum;
use std::borrow::Cow;

/// The largest code point that PostgreSQL encodes.
const CODE_MAX: i64 = 0x10_ffff;

pub fn call(function: Function, args: &[Cow<'_, Datum>]) -> Result<Datum> {
    use Function::*;
    if let Some(Datum::Bytes(bytes)) = args.first().map(|arg| &**arg) {
        return Ok(match function {
            OctetLength => Datum::Int4(count(bytes.len())?),
            BitLength => Datum::Int4(count(bytes.len().saturating_mul(8))?),
            Substring => {
                let (skip, n) = window(args)?;
                let rest = bytes.get(skip..).unwrap_or_default();
                Datum::bytes(&rest[..n.min(rest.len())])
            }
            Trim | TrimLeft | TrimRight => {
                let set: &[u8] = match args.get(1).map(|set| &**set) {
                    Some(Datum::Bytes(set)) => set,
                    _ => &[],
                };
                let stays = |byte: &u8| !set.contains(byte);
                let first = bytes.iter().position(stays).unwrap_or(bytes.len());
                let end = bytes.iter().rposition(stays).map_or(0, |last| last + 1);
                let from = if function == TrimRight { 0 } else { first };
                let to = if function == TrimLeft { bytes.len() } else { end };
                Datum::bytes(bytes.get(from..to).unwrap_or_default())
            }
            _ => return Err(Error::internal("a function of text is given bytes")),
        });
    }
    let shown = |idx: usize| args[idx].as_str().unwrap_or_default();
    let integer = |idx: usize| args[idx].as_i64().unwrap_or_default();
    Ok(match function {
        Length => Datum::Int4(count(shown(0).chars().count())?),
        OctetLength => Datum::Int4(count(shown(0).len())?),
        BitLength => Datum::Int4(count(shown(0).len().saturating_mul(8))?),
        Lower => Datum::text(shown(0).to_lowercase()),
        Upper => Datum::text(shown(0).to_uppercase()),
        Concat => {
            let parts = || args.iter().filter_map(|arg| arg.as_str());
            check_length(parts().map(str::len).sum())?;
            Datum::text(parts().collect::<String>())
        }
        Substring => {
            let (skip, n) = window(args)?;
            Datum::text(shown(0).chars().skip(skip).take(n).collect::<String>())
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
            check_length(shown(0).len().saturating_mul(n))?;
            Datum::text(shown(0).repeat(n))
        }
        Replace if shown(1).is_empty() => args[0].clone().into_owned(),
        Replace => {
            let n_found = shown(0).matches(shown(1)).count();
            check_length(shown(0).len().saturating_add(n_found.saturating_mul(shown(2).len())))?;
            Datum::text(shown(0).replace(shown(1), shown(2)))
        }
        Reverse => Datum::text(shown(0).chars().rev().collect::<String>()),
        Trim | TrimLeft | TrimRight => {
            let set = args.get(1).map_or(" ", |set| set.as_str().unwrap_or_default());
            let goes = |letter: char| set.contains(letter);
            Datum::text(match function {
                TrimLeft => shown(0).trim_start_matches(goes),
                TrimRight => shown(0).trim_end_matches(goes),
                _ => shown(0).trim_matches(goes),
            })
        }
        Position => {
            let at = shown(0).find(shown(1)).map(|at| shown(0)[..at].chars().count() + 1);
            Datum::Int4(count(at.unwrap_or(0))?)
        }
        StartsWith => Datum::Bool(shown(0).starts_with(shown(1))),
        PadLeft | PadRight => {
            let fill = args.get(2).map_or(" ", |fill| fill.as_str().unwrap_or_default());
            Datum::text(pad(shown(0), integer(1).max(0) as usize, fill, function == PadLeft)?)
        }
        SplitPart => Datum::text(split_part(shown(0), shown(1), integer(2))?),
        Translate => {
            let to: Vec<char> = shown(2).chars().collect();
            let from: Vec<char> = shown(1).chars().collect();
            let translated = |letter: char| match from.iter().position(|from| *from == letter) {
                Some(at) => to.get(at).copied(),
                None => Some(letter),
            };
            Datum::text(shown(0).chars().filter_map(translated).collect::<String>())
        }
        Chr => Datum::text(chr(integer(0))?.to_string()),
        Ascii => Datum::Int4(shown(0).chars().next().map_or(0, |letter| letter as i32)),
        ToHex => match &*args[0] {
            Datum::Int8(value) => Datum::text(format!("{value:x}")),
            other => Datum::text(format!("{:x}", other.as_i64().unwrap_or_default() as i32)),
        },
        _ => return Err(Error::internal("no function of text")),
    })
}

fn count(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::new(state::OUT_OF_RANGE, "integer out of range"))
}

/// `substring(… from n for m)`: how many to skip and how many to take. Places before the first
/// count: from -1 for 3 is the first character.
fn window(args: &[Cow<'_, Datum>]) -> Result<(usize, usize)> {
    let integer = |idx: usize| args[idx].as_i64().unwrap_or_default();
    let from = integer(1);
    let end = match args.get(2) {
        Some(_) if integer(2) < 0 => {
            return Err(Error::new("22011", "negative substring length not allowed"));
        }
        Some(_) => from.saturating_add(integer(2)),
        None => i64::MAX,
    };
    let skip = from.max(1) - 1;
    let n = end.saturating_sub(1).saturating_sub(skip).max(0);
    Ok((usize::try_from(skip).unwrap_or(usize::MAX), usize::try_from(n).unwrap_or(usize::MAX)))
}

/// To `n` characters: cut on the right, or filled on the left or the right.
fn pad(text: &str, n: usize, fill: &str, left: bool) -> Result<String> {
    let n_chars = text.chars().count();
    if n <= n_chars || fill.is_empty() {
        return Ok(text.chars().take(n).collect());
    }
    check_length(n)?;
    let filling: String = fill.chars().cycle().take(n - n_chars).collect();
    check_length(text.len() + filling.len())?;
    Ok(if left { filling + text } else { text.to_owned() + &filling })
}

/// The field at a place, counted from the end where it is negative.
fn split_part<'a>(text: &'a str, separator: &str, at: i64) -> Result<&'a str> {
    if at == 0 {
        let message = "field position must not be zero";
        return Err(Error::new(state::INVALID_PARAMETER, message));
    }
    let place = usize::try_from(at.unsigned_abs() - 1).unwrap_or(usize::MAX);
    if separator.is_empty() {
        // Nothing separates: there is one field, the first and the last.
        return Ok(if place == 0 && !text.is_empty() { text } else { "" });
    }
    Ok(match at > 0 {
        true => text.split(separator).nth(place),
        // Found from the left, as those from the front: `aaa` by `aa` is "" and "a".
        false => {
            let n_fields = text.split(separator).count();
            n_fields.checked_sub(place + 1).and_then(|at| text.split(separator).nth(at))
        }
    }
    .unwrap_or_default())
}

fn chr(code: i64) -> Result<char> {
    if code == 0 {
        return Err(Error::new(state::LIMIT_EXCEEDED, "null character not permitted"));
    }
    if code < 0 {
        return Err(Error::new(state::INVALID_PARAMETER, "character number must be positive"));
    }
    let too_large = || {
        let message = format!("requested character too large for encoding: {code}");
        Error::new(state::LIMIT_EXCEEDED, message)
    };
    if code > CODE_MAX {
        return Err(too_large());
    }
    u32::try_from(code).ok().and_then(char::from_u32).ok_or_else(|| {
        let message = format!("requested character not valid for encoding: {code}");
        Error::new(state::LIMIT_EXCEEDED, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extreme_places_and_lengths() {
        use Datum::{Int4, Int8};
        let text = |text: &str| Datum::text(text);
        for (function, args, want) in [
            (Function::Chr, vec![Int4(0)], "54000"),
            (Function::Chr, vec![Int4(-1)], "22023"),
            (Function::Chr, vec![Int4(0xd800)], "54000"),
            (Function::Chr, vec![Int4(i32::MAX)], "54000"),
            (Function::Repeat, vec![text("ab"), Int4(i32::MAX)], "54000"),
            (Function::PadLeft, vec![text("ab"), Int4(i32::MAX)], "54000"),
            (Function::PadLeft, vec![text("ab"), Int4(i32::MIN)], ""),
            (Function::PadRight, vec![text("ab"), Int4(5), text("xy")], "abxyx"),
            (Function::Substring, vec![text("abc"), Int4(i32::MAX), Int4(i32::MAX)], ""),
            (Function::Substring, vec![text("abc"), Int4(i32::MIN), Int4(i32::MAX)], ""),
            (Function::Substring, vec![text("abc"), Int4(-1), Int4(3)], "a"),
            (Function::Substring, vec![text("abc"), Int4(1), Int4(-1)], "22011"),
            (Function::Left, vec![text("abc"), Int4(i32::MIN)], ""),
            (Function::Right, vec![text("abc"), Int4(-1)], "bc"),
            (Function::SplitPart, vec![text("a,b"), text(","), Int4(i32::MIN)], ""),
            (Function::SplitPart, vec![text("a,b"), text(","), Int4(-1)], "b"),
            (Function::SplitPart, vec![text("a,b"), text(","), Int4(0)], "22023"),
            (Function::ToHex, vec![Int4(-1)], "ffffffff"),
            (Function::ToHex, vec![Int8(i64::MIN)], "8000000000000000"),
            (Function::Translate, vec![text("12345"), text("143"), text("ax")], "a2x5"),
        ] {
            let shown: Vec<Cow<'_, Datum>> = args.iter().map(Cow::Borrowed).collect();
            let got = match call(function, &shown) {
                Ok(datum) => datum.as_str().unwrap_or_default().to_owned(),
                Err(error) => error.state().to_owned(),
            };
            assert_eq!(got, want, "{function:?} of {args:?}");
        }
    }
}
