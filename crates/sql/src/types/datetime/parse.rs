//! Reading dates, times and intervals in the forms that PostgreSQL takes.
//!
//! The plain form of dumps and COPY has a path of its own; everything else is taken apart into words.
//! Absent: `now`, `today` and their kin as literals, which would read a clock.

use super::{
    DAY_US, HOUR_US, Interval, MINUTE_US, SECOND_US, Zone, check_date, check_timestamp,
    days_from_civil, days_in_month,
};
use crate::error::{Error, Result, state};

/// The parts of a date and time as text gives them.
struct Parts {
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
    let hours: i64 = hours.parse().ok()?;
    let minutes: i64 = minutes.parse().ok()?;
    let seconds_us = parse_seconds(seconds)?;
    let total = hours * HOUR_US + minutes * MINUTE_US + seconds_us;
    let fits = hours <= 24 && minutes < 60 && seconds_us <= 60 * SECOND_US && total <= DAY_US;
    Some(if fits { Ok(total) } else { Err(()) })
}

/// Seconds with decimals, rounded to microseconds.
fn parse_seconds(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    Some(whole.checked_mul(SECOND_US)? + parse_fraction(fraction))
}

/// The digits after a point as millionths, rounded.
fn parse_fraction(digits: &str) -> i64 {
    let mut us = 0;
    for idx in 0..6 {
        us = us * 10 + digits.as_bytes().get(idx).map_or(0, |digit| i64::from(digit - b'0'));
    }
    us + i64::from(digits.as_bytes().get(6).is_some_and(|digit| *digit >= b'5'))
}

/// `+02`, `-03:30`, `+0530`, seconds too; as seconds east.
pub(super) fn parse_offset(text: &str) -> Option<i32> {
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
    if fields[0] > 15 || fields[1] > 59 || fields[2] > 59 || fields.iter().any(|f| *f < 0) {
        return None;
    }
    Some(sign * (fields[0] * 3600 + fields[1] * 60 + fields[2]))
}

fn parse_parts(kind: &str, text: &str) -> Result<Parts> {
    let mut parts = Parts { days: None, time_us: 0, offset: None };
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
    let mut bc = false;
    let mut seen_time = false;
    let mut numbers: Vec<i64> = Vec::new();
    let mut month_word = None;
    let mut civil: Option<(i64, i64, i64)> = None;
    for word in spaced.split([' ', ',']).filter(|word| !word.is_empty()) {
        if word.contains(':') && !word.starts_with(['+', '-']) {
            // The zone may stand right behind the time.
            let cut = word.find(['+', '-', 'Z', 'z']).unwrap_or(word.len());
            match parse_clock(&word[..cut]) {
                Some(Ok(us)) if !seen_time => parts.time_us = us,
                Some(Err(())) => return Err(out_of_range(text)),
                _ => return Err(bad(kind, text)),
            }
            seen_time = true;
            if cut < word.len() {
                parts.offset = Some(Zone::parse(&word[cut..]).ok_or_else(|| bad(kind, text))?);
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
            numbers.push(word.parse().map_err(|_| bad(kind, text))?);
        } else if let Some(month) = month_by_name(word) {
            month_word = Some(month);
        } else if civil.is_none() && word.as_bytes()[0].is_ascii_digit() {
            let separator = word.find(['-', '/', '.']).ok_or_else(|| bad(kind, text))?;
            let separator = word.as_bytes()[separator] as char;
            let fields: Vec<&str> = word.split(separator).collect();
            let [a, b, c] = fields[..] else { return Err(bad(kind, text)) };
            let number = |field: &str| field.parse::<i64>().map_err(|_| bad(kind, text));
            civil = Some(if a.len() >= 3 {
                let month = month_by_name(b).map_or_else(|| number(b), Ok)?;
                (number(a)?, month, number(c)?)
            } else if let Some(month) = month_by_name(b) {
                (number(c)?, month, number(a)?)
            } else {
                // DateStyle ISO, MDY.
                (number(c)?, number(a)?, number(b)?)
            });
        } else if let Some(zone) = Zone::parse(word) {
            parts.offset = Some(zone);
        } else {
            return Err(bad(kind, text));
        }
    }
    if let Some(month) = month_word {
        let [a, b] = numbers[..] else { return Err(bad(kind, text)) };
        civil = Some(if a > 31 { (a, month, b) } else { (b, month, a) });
    } else if !numbers.is_empty() {
        return Err(bad(kind, text));
    }
    if let Some((mut year, month, day)) = civil {
        if bc {
            year = 1 - year;
        } else if year == 0 {
            return Err(out_of_range(text));
        }
        if !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) {
            return Err(out_of_range(text));
        }
        if year > 6_000_000 {
            return Err(out_of_range(text));
        }
        parts.days = Some(days_from_civil(year, month, day));
    } else if !seen_time {
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
    Ok(parts.time_us)
}

/// Microseconds since 1970; a zone in the text is ignored, as in PostgreSQL.
pub fn parse_timestamp(text: &str) -> Result<i64> {
    if let Some(positive) = infinity(text) {
        return Ok(if positive { i64::MAX } else { i64::MIN });
    }
    let parts = parse_parts("timestamp", text)?;
    let days = parts.days.ok_or_else(|| bad("timestamp", text))?;
    days.checked_mul(DAY_US)
        .and_then(|us| us.checked_add(parts.time_us))
        .ok_or_else(|| out_of_range(text))
        .and_then(check_timestamp)
}

/// Microseconds since 1970 UTC; text without a zone is read in `zone`.
pub fn parse_timestamptz(text: &str, zone: &Zone) -> Result<i64> {
    if let Some(positive) = infinity(text) {
        return Ok(if positive { i64::MAX } else { i64::MIN });
    }
    let kind = "timestamp with time zone";
    let parts = parse_parts(kind, text)?;
    let days = parts.days.ok_or_else(|| bad(kind, text))?;
    let local = days
        .checked_mul(DAY_US)
        .and_then(|us| us.checked_add(parts.time_us))
        .ok_or_else(|| out_of_range(text))?;
    check_timestamp(parts.offset.unwrap_or(*zone).to_utc(local))
}

/// `1 year 2 mons -3 days 04:05:06`, `@ 1 hour ago`, ISO 8601's `P1Y2M3DT4H5M6S`; a bare number
/// is seconds.
pub fn parse_interval(text: &str) -> Result<Interval> {
    let error = || bad("interval", text);
    let trimmed = text.trim();
    let mut total = Interval::default();
    let mut months = 0f64;
    let mut days = 0f64;
    let mut us = 0f64;
    let mut add = |value: f64, unit: &str| -> Option<()> {
        match unit.to_ascii_lowercase().as_str() {
            "millennium" | "millennia" | "millenniums" | "mil" | "mils" => {
                months += value * 12_000.0
            }
            "century" | "centuries" | "c" | "cent" => months += value * 1_200.0,
            "decade" | "decades" | "dec" | "decs" => months += value * 120.0,
            "year" | "years" | "y" | "yr" | "yrs" => months += value * 12.0,
            "month" | "months" | "mon" | "mons" => months += value,
            "week" | "weeks" | "w" => days += value * 7.0,
            "day" | "days" | "d" => days += value,
            "hour" | "hours" | "h" | "hr" | "hrs" => us += value * HOUR_US as f64,
            "minute" | "minutes" | "m" | "min" | "mins" => us += value * MINUTE_US as f64,
            "second" | "seconds" | "s" | "sec" | "secs" => us += value * SECOND_US as f64,
            "millisecond" | "milliseconds" | "ms" | "msec" | "msecs" => us += value * 1_000.0,
            "microsecond" | "microseconds" | "us" | "usec" | "usecs" => us += value,
            _ => return None,
        }
        Some(())
    };
    let mut ago = false;
    if let Some(iso) = trimmed.strip_prefix('P') {
        let mut in_time = false;
        let mut number = String::new();
        for letter in iso.chars() {
            match letter {
                'T' => in_time = true,
                '0'..='9' | '.' | '-' | '+' => number.push(letter),
                unit => {
                    let value: f64 = number.parse().map_err(|_| error())?;
                    number.clear();
                    let unit = match (unit, in_time) {
                        ('Y', false) => "year",
                        ('M', false) => "month",
                        ('W', false) => "week",
                        ('D', false) => "day",
                        ('H', true) => "hour",
                        ('M', true) => "minute",
                        ('S', true) => "second",
                        _ => return Err(error()),
                    };
                    add(value, unit).ok_or_else(error)?;
                }
            }
        }
        if !number.is_empty() {
            return Err(error());
        }
    } else {
        let mut pending: Option<f64> = None;
        let mut seen = false;
        for word in trimmed.split_whitespace() {
            if word == "@" {
                continue;
            }
            if word.eq_ignore_ascii_case("ago") && seen {
                ago = true;
                continue;
            }
            seen = true;
            if word.contains(':') {
                let (negative, clock) = match word.as_bytes()[0] {
                    b'-' => (true, &word[1..]),
                    b'+' => (false, &word[1..]),
                    _ => (false, word),
                };
                let mut pieces = clock.split(':');
                let mut next = || pieces.next().map(|piece| piece.to_owned());
                let hours: i64 = next().and_then(|h| h.parse().ok()).ok_or_else(error)?;
                let minutes: i64 = next().and_then(|m| m.parse().ok()).ok_or_else(error)?;
                let seconds = next().map_or(Some(0), |s| parse_seconds(&s)).ok_or_else(error)?;
                if minutes > 59 || seconds >= 60 * SECOND_US {
                    return Err(out_of_range(text));
                }
                let clock_us =
                    hours.checked_mul(HOUR_US).ok_or_else(error)? + minutes * MINUTE_US + seconds;
                total.us += if negative { -clock_us } else { clock_us };
                continue;
            }
            // `3days` and `3 days` alike.
            let split =
                word.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(word.len());
            let (number, unit) = word.split_at(split);
            if !number.is_empty() {
                if pending.is_some() {
                    return Err(error());
                }
                pending = Some(number.parse().map_err(|_| error())?);
            }
            if !unit.is_empty() {
                let value = pending.take().ok_or_else(error)?;
                add(value, unit).ok_or_else(error)?;
            }
        }
        if let Some(value) = pending {
            add(value, "second").ok_or_else(error)?;
        }
        if !seen {
            return Err(error());
        }
    }
    days += (months.fract() * 30.0 * 1e6).round() / 1e6;
    us += days.fract() * DAY_US as f64;
    if months.abs() > 2e9 || days.abs() > 2e9 || us.abs() > 9e18 {
        return Err(Error::new(state::DATETIME_OVERFLOW, "interval out of range"));
    }
    total =
        total.add(&Interval { months: months as i32, days: days as i32, us: us.round() as i64 })?;
    Ok(if ago { total.neg() } else { total })
}
