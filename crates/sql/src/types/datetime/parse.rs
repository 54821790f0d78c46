//! Reading dates and times in the forms that PostgreSQL takes.
//!
//! The plain form of dumps and COPY has a path of its own; everything else is taken apart into words.
//! Absent: `now`, `today` and their kin as literals, which would read a clock.

use super::{
    DAY_US, HOUR_US, MINUTE_US, SECOND_US, Zone, check_date, days_from_civil, days_in_month, join,
};
use crate::error::{Error, Result, state};

/// Later than any date, and far from where the calendar's arithmetic ends.
const YEAR_MAX: i64 = 6_000_000;

/// The parts of a date and time as text gives them.
struct Parts {
    has_time: bool,
    days: Option<i64>,
    time_us: i64,
    offset: Option<Zone>,
}

fn bad(kind: &str, text: &str) -> Error {
    Error::new(state::DATETIME_INVALID, format!("invalid input syntax for type {kind}: \"{text}\""))
}

fn out_of_range(text: &str) -> Error {
    Error::new(state::DATETIME_OVERFLOW, format!("date/time field value out of range: \"{text}\""))
}

/// A zone by its name or offset.
fn zone(kind: &str, word: &str, text: &str) -> Result<Zone> {
    if let Some(Err(())) = read_offset(word) {
        let message = format!("time zone displacement out of range: \"{text}\"");
        return Err(Error::new(DISPLACEMENT_OUT_OF_RANGE, message));
    }
    Zone::parse(word).ok_or_else(|| bad(kind, text))
}

const DISPLACEMENT_OUT_OF_RANGE: &str = "22009";

fn timestamp_out_of_range(text: &str) -> Error {
    Error::new(state::DATETIME_OVERFLOW, format!("timestamp out of range: \"{text}\""))
}

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

fn month_by_name(word: &str) -> Option<i64> {
    let lower = word.to_ascii_lowercase();
    let short = lower.get(..3)?;
    let position = MONTHS.iter().position(|month| *month == short)?;
    let full = [
        "january",
        "february",
        "march",
        "april",
        "may",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
    ];
    full[position].starts_with(&lower).then_some(position as i64 + 1)
}

/// `12:34`, `12:34:56.789`; 24:00:00 is allowed.
fn parse_clock(word: &str) -> Option<Result<i64, ()>> {
    let mut pieces = word.split(':');
    let hours = pieces.next()?;
    let minutes = pieces.next()?;
    let seconds = pieces.next().unwrap_or("0");
    if pieces.next().is_some() || hours.is_empty() || hours.len() > 2 || minutes.len() > 2 {
        return None;
    }
    let (hours, minutes) = (digits(hours)?, digits(minutes)?);
    let seconds_us = parse_seconds(seconds)?;
    if hours > 24 || minutes > 59 || seconds_us > MINUTE_US {
        return Some(Err(()));
    }
    let total = hours * HOUR_US + minutes * MINUTE_US + seconds_us;
    Some(if total <= DAY_US { Ok(total) } else { Err(()) })
}

/// A number without a sign.
fn digits(text: &str) -> Option<i64> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

/// Seconds with decimals, rounded to microseconds.
pub(super) fn parse_seconds(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    whole.checked_mul(SECOND_US)?.checked_add(parse_fraction(fraction))
}

/// The digits after a point as millionths, rounded.
fn parse_fraction(digits: &str) -> i64 {
    let mut us = 0;
    for idx in 0..6 {
        us = us * 10 + digits.as_bytes().get(idx).map_or(0, |digit| i64::from(digit - b'0'));
    }
    us + i64::from(digits.as_bytes().get(6).is_some_and(|digit| *digit >= b'5'))
}

/// `+02`, `-03:30`, `+0530`, seconds too; as seconds east. None where it is none or is too far.
pub(super) fn parse_offset(text: &str) -> Option<i32> {
    read_offset(text)?.ok()
}

/// As [`parse_offset`]; an error where it is sixteen hours or more.
fn read_offset(text: &str) -> Option<Result<i32, ()>> {
    let (sign, rest) = match text.as_bytes().first()? {
        b'+' => (1, &text[1..]),
        b'-' => (-1, &text[1..]),
        _ => return None,
    };
    let mut fields = [0i32; 3];
    if rest.contains(':') {
        for (idx, piece) in rest.split(':').enumerate() {
            *fields.get_mut(idx)? = piece.parse().ok()?;
        }
    } else if rest.bytes().all(|byte| byte.is_ascii_digit()) {
        match rest.len() {
            1 | 2 => fields[0] = rest.parse().ok()?,
            3 | 4 => {
                let (hours, minutes) = rest.split_at(rest.len() - 2);
                fields[0] = hours.parse().ok()?;
                fields[1] = minutes.parse().ok()?;
            }
            _ => return None,
        }
    } else {
        return None;
    }
    let [hours, minutes, seconds] = fields;
    if fields.iter().any(|field| *field < 0) {
        return None;
    }
    if hours > 15 || minutes > 59 || seconds > 59 {
        return Some(Err(()));
    }
    Some(Ok(sign * (hours * 3600 + minutes * 60 + seconds)))
}

fn parse_parts(kind: &str, text: &str) -> Result<Parts> {
    let mut parts = Parts { has_time: false, days: None, time_us: 0, offset: None };
    let trimmed = text.trim();
    // A date with `T` before its time reads as with a blank.
    let spaced = match trimmed.find(['T', 't']) {
        Some(at)
            if at > 0
                && trimmed.as_bytes()[at - 1].is_ascii_digit()
                && trimmed.as_bytes().get(at + 1).is_some_and(u8::is_ascii_digit) =>
        {
            format!("{} {}", &trimmed[..at], &trimmed[at + 1..])
        }
        _ => trimmed.to_owned(),
    };
    let is_before_christ = spaced.split([' ', ',']).any(|word| word.eq_ignore_ascii_case("bc"));
    let mut bc = false;
    let mut numbers: Vec<i64> = Vec::new();
    let mut month_word = None;
    let mut civil: Option<(i64, i64, i64)> = None;
    for word in spaced.split([' ', ',']).filter(|word| !word.is_empty()) {
        if word.contains(':') && !word.starts_with(['+', '-']) {
            // The zone may stand right behind the time.
            let cut = word.find(['+', '-', 'Z', 'z']).unwrap_or(word.len());
            match parse_clock(&word[..cut]) {
                Some(Ok(us)) if !parts.has_time => parts.time_us = us,
                Some(Err(())) => return Err(out_of_range(text)),
                _ => return Err(bad(kind, text)),
            }
            parts.has_time = true;
            if cut < word.len() {
                parts.offset = Some(zone(kind, &word[cut..], text)?);
            }
        } else if word.eq_ignore_ascii_case("bc") {
            bc = true;
        } else if word.eq_ignore_ascii_case("ad") {
        } else if word.eq_ignore_ascii_case("epoch") && spaced.trim().len() == 5 {
            civil = Some((1970, 1, 1));
        } else if word.bytes().all(|byte| byte.is_ascii_digit()) && word.len() == 8 {
            let number: i64 = word.parse().map_err(|_| bad(kind, text))?;
            civil = Some((number / 10_000, number / 100 % 100, number % 100));
        } else if word.bytes().all(|byte| byte.is_ascii_digit()) {
            numbers.push(word.parse().map_err(|_| out_of_range(text))?);
        } else if let Some(month) = month_by_name(word) {
            month_word = Some(month);
        } else if civil.is_none() && word.as_bytes()[0].is_ascii_digit() {
            let separator = word.find(['-', '/', '.']).ok_or_else(|| bad(kind, text))?;
            let separator = word.as_bytes()[separator] as char;
            let fields: Vec<&str> = word.split(separator).collect();
            let [a, b, c] = fields[..] else { return Err(bad(kind, text)) };
            let number = |field: &str| match digits(field) {
                Some(number) => Ok(number),
                None if field.bytes().all(|b| b.is_ascii_digit()) && !field.is_empty() => {
                    Err(out_of_range(text))
                }
                None => Err(bad(kind, text)),
            };
            // Of a year of one or two digits the century is left out.
            let is_short = a.len() < 3 && c.len() < 3;
            civil = Some(if a.len() >= 3 {
                let month = month_by_name(b).map_or_else(|| number(b), Ok)?;
                (number(a)?, month, number(c)?)
            } else if let Some(month) = month_by_name(b) {
                (number(c)?, month, number(a)?)
            } else {
                // DateStyle ISO, MDY.
                (number(c)?, number(a)?, number(b)?)
            });
            if let (true, false, Some((year, _, _))) = (is_short, is_before_christ, &mut civil) {
                *year += if *year < 70 { 2000 } else { 1900 };
            }
        } else {
            parts.offset = Some(zone(kind, word, text)?);
        }
    }
    if let Some(month) = month_word {
        let [a, b] = numbers[..] else { return Err(bad(kind, text)) };
        civil = Some(if a > 31 { (a, month, b) } else { (b, month, a) });
    } else if !numbers.is_empty() {
        return Err(bad(kind, text));
    }
    if let Some((mut year, month, day)) = civil {
        if year > YEAR_MAX {
            return Err(out_of_range(text));
        }
        if bc {
            year = 1 - year;
        } else if year == 0 {
            return Err(out_of_range(text));
        }
        if !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) {
            return Err(out_of_range(text));
        }
        parts.days = Some(days_from_civil(year, month, day));
    } else if !parts.has_time {
        return Err(bad(kind, text));
    }
    Ok(parts)
}

fn infinity(text: &str) -> Option<bool> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("infinity") || text.eq_ignore_ascii_case("+infinity") {
        Some(true)
    } else if text.eq_ignore_ascii_case("-infinity") {
        Some(false)
    } else {
        None
    }
}

/// `YYYY-MM-DD` in its plain form, the one that dumps and COPY are made of.
fn plain_date(bytes: &[u8]) -> Option<i64> {
    let [y0, y1, y2, y3, b'-', m0, m1, b'-', d0, d1] = *bytes else { return None };
    let digit = |byte: u8| byte.is_ascii_digit().then(|| i64::from(byte - b'0'));
    let year = digit(y0)? * 1000 + digit(y1)? * 100 + digit(y2)? * 10 + digit(y3)?;
    let (month, day) = (digit(m0)? * 10 + digit(m1)?, digit(d0)? * 10 + digit(d1)?);
    let valid =
        year > 0 && (1..=12).contains(&month) && day >= 1 && day <= days_in_month(year, month);
    valid.then(|| days_from_civil(year, month, day))
}

/// Days since 1970.
pub fn parse_date(text: &str) -> Result<i32> {
    if let Some(days) = plain_date(text.as_bytes()) {
        return Ok(days as i32);
    }
    if let Some(positive) = infinity(text) {
        return Ok(if positive { i32::MAX } else { i32::MIN });
    }
    let parts = parse_parts("date", text)?;
    check_date(parts.days.ok_or_else(|| bad("date", text))?)
        .map_err(|_| Error::new(state::DATETIME_OVERFLOW, format!("date out of range: \"{text}\"")))
}

/// Microseconds since midnight.
pub fn parse_time(text: &str) -> Result<i64> {
    let parts = parse_parts("time", text)?;
    if !parts.has_time {
        return Err(bad("time", text));
    }
    Ok(parts.time_us)
}

/// Microseconds since 1970; a zone in the text is ignored, as in PostgreSQL.
pub fn parse_timestamp(text: &str) -> Result<i64> {
    if let Some(positive) = infinity(text) {
        return Ok(if positive { i64::MAX } else { i64::MIN });
    }
    let parts = parse_parts("timestamp", text)?;
    let days = parts.days.ok_or_else(|| bad("timestamp", text))?;
    join(days, parts.time_us).ok_or_else(|| timestamp_out_of_range(text))
}

/// Microseconds since 1970 UTC; text without a zone is read in `zone`.
pub fn parse_timestamptz(text: &str, zone: &Zone) -> Result<i64> {
    if let Some(positive) = infinity(text) {
        return Ok(if positive { i64::MAX } else { i64::MIN });
    }
    let kind = "timestamp with time zone";
    let parts = parse_parts(kind, text)?;
    let days = parts.days.ok_or_else(|| bad(kind, text))?;
    let out = || timestamp_out_of_range(text);
    // The reading may lie beyond the first or last instant where the instant does not.
    let local = i128::from(days) * i128::from(DAY_US) + i128::from(parts.time_us);
    parts.offset.unwrap_or(*zone).instant_of(local).ok_or_else(out)
}
