//! Dates, times, intervals and zones on the proleptic Gregorian calendar.
//!
//! Nothing here reads a clock: "now" is a value that the session passes in.

use crate::error::{Error, Result, state};
use chrono::{Offset, TimeZone};
use std::cmp::Ordering;
use std::fmt::Write;

pub const DAY_US: i64 = 86_400_000_000;
const HOUR_US: i64 = 3_600_000_000;
const MINUTE_US: i64 = 60_000_000;
const SECOND_US: i64 = 1_000_000;
/// Days from 1970-01-01 to 2000-01-01, the wire's epoch.
pub const EPOCH_2000_DAYS: i32 = 10_957;
pub const EPOCH_2000_US: i64 = EPOCH_2000_DAYS as i64 * DAY_US;
/// 4713 BC to 5874897 AD for dates; timestamps to where the microseconds since 1970 end, in 294247 AD.
const DATE_MIN: i64 = -2_440_588;
const DATE_MAX: i64 = 2_145_042_541;
const TIMESTAMP_MIN: i64 = -210_866_803_200_000_000;
const TIMESTAMP_END: i64 = i64::MAX;

/// Months, days and microseconds, which do not convert into each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interval {
    pub months: i32,
    pub days: i32,
    pub us: i64,
}

impl Interval {
    /// A month as thirty days and a day as 24 hours: the measure by which intervals compare.
    pub fn span_us(&self) -> i128 {
        (i128::from(self.months) * 30 + i128::from(self.days)) * i128::from(DAY_US)
            + i128::from(self.us)
    }

    pub fn order(&self, other: &Interval) -> Ordering {
        self.span_us().cmp(&other.span_us())
    }

    pub fn neg(&self) -> Interval {
        Interval {
            months: self.months.wrapping_neg(),
            days: self.days.wrapping_neg(),
            us: self.us.wrapping_neg(),
        }
    }

    pub fn add(&self, other: &Interval) -> Result<Interval> {
        let out = || Error::new(state::DATETIME_OVERFLOW, "interval out of range");
        Ok(Interval {
            months: self.months.checked_add(other.months).ok_or_else(out)?,
            days: self.days.checked_add(other.days).ok_or_else(out)?,
            us: self.us.checked_add(other.us).ok_or_else(out)?,
        })
    }

    /// Fractions of months spill into days and of days into time, as in PostgreSQL.
    pub fn scale(&self, factor: f64) -> Result<Interval> {
        let out = || Error::new(state::DATETIME_OVERFLOW, "interval out of range");
        let months = f64::from(self.months) * factor;
        let days = f64::from(self.days) * factor + (months.fract() * 30.0);
        let us = self.us as f64 * factor + days.fract() * DAY_US as f64;
        if !months.is_finite() || months.abs() > 2e9 || days.abs() > 2e9 || us.abs() > 9e18 {
            return Err(out());
        }
        Ok(Interval { months: months as i32, days: days as i32, us: us.round() as i64 })
    }
}

/// The session's time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// Seconds east of Greenwich.
    Fixed(i32),
    Named(chrono_tz::Tz),
}

impl Zone {
    pub const UTC: Zone = Zone::Fixed(0);

    /// A zone by its IANA name, `UTC`, `+02`, `-3:30`, or hours as SET TIME ZONE takes them.
    pub fn parse(name: &str) -> Option<Zone> {
        let name = name.trim();
        if ["utc", "gmt", "z", "zulu", "etc/utc", "localtime", "default"]
            .contains(&name.to_ascii_lowercase().as_str())
        {
            return Some(Zone::UTC);
        }
        if let Some(seconds) = parse_offset(name) {
            return Some(Zone::Fixed(seconds));
        }
        chrono_tz::TZ_VARIANTS
            .iter()
            .find(|zone| zone.name().eq_ignore_ascii_case(name))
            .map(|zone| Zone::Named(*zone))
    }

    pub fn name(&self) -> String {
        match self {
            Zone::Fixed(0) => "UTC".to_owned(),
            Zone::Fixed(seconds) => {
                let mut out = Vec::new();
                write_offset(*seconds, &mut out);
                let shown = String::from_utf8_lossy(&out);
                format!(
                    "<{shown}>{}",
                    if *seconds > 0 { shown.replace('+', "-") } else { shown.replace('-', "+") }
                )
            }
            Zone::Named(zone) => zone.name().to_owned(),
        }
    }

    /// Seconds east of Greenwich at an instant.
    pub fn offset_at(&self, utc_us: i64) -> i32 {
        match self {
            Zone::Fixed(seconds) => *seconds,
            Zone::Named(zone) => {
                let instant = chrono::DateTime::from_timestamp_micros(utc_us);
                instant.map_or(0, |instant| {
                    zone.offset_from_utc_datetime(&instant.naive_utc()).fix().local_minus_utc()
                })
            }
        }
    }

    /// The local calendar's reading at an instant.
    pub fn to_local(&self, utc_us: i64) -> i64 {
        if is_infinite(utc_us) {
            return utc_us;
        }
        utc_us.saturating_add(i64::from(self.offset_at(utc_us)) * SECOND_US)
    }

    /// The instant of a reading of the local calendar. Of a reading that occurs twice the later
    /// offset's wins; one that is skipped goes by the offset before the gap, as in PostgreSQL.
    pub fn to_utc(&self, local_us: i64) -> i64 {
        if is_infinite(local_us) {
            return local_us;
        }
        let offset = match self {
            Zone::Fixed(seconds) => *seconds,
            Zone::Named(_) => {
                let before = self.offset_at(local_us - DAY_US);
                let after = self.offset_at(local_us + DAY_US);
                let guess = |offset: i32| local_us - i64::from(offset) * SECOND_US;
                if self.offset_at(guess(after)) == after { after } else { before }
            }
        };
        local_us.saturating_sub(i64::from(offset) * SECOND_US)
    }
}

pub fn is_infinite(us: i64) -> bool {
    us == i64::MAX || us == i64::MIN
}

pub fn date_to_timestamp(days: i32) -> i64 {
    match days {
        i32::MAX => i64::MAX,
        i32::MIN => i64::MIN,
        days => i64::from(days).saturating_mul(DAY_US),
    }
}

pub fn timestamp_to_date(us: i64) -> i32 {
    match us {
        i64::MAX => i32::MAX,
        i64::MIN => i32::MIN,
        us => us.div_euclid(DAY_US) as i32,
    }
}

/// Days since 1970 of a civil date (H. Hinnant, "chrono-compatible low-level date algorithms").
pub fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year - era * 400;
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Year (0 is 1 BC), month, day.
pub fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days - era * 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

pub fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// `timestamp + interval`: months first (the day clamped to the month's length), then days, then
/// time.
pub fn add_interval(us: i64, interval: &Interval) -> Result<i64> {
    if is_infinite(us) {
        return Ok(us);
    }
    let out = || Error::new(state::DATETIME_OVERFLOW, "timestamp out of range");
    let mut days = us.div_euclid(DAY_US);
    let time = us.rem_euclid(DAY_US);
    if interval.months != 0 {
        let (year, month, day) = civil_from_days(days);
        let months = year * 12 + (month - 1) + i64::from(interval.months);
        let (year, month) = (months.div_euclid(12), months.rem_euclid(12) + 1);
        days = days_from_civil(year, month, day.min(days_in_month(year, month)));
    }
    days = days.checked_add(i64::from(interval.days)).ok_or_else(out)?;
    let sum = days
        .checked_mul(DAY_US)
        .and_then(|us| us.checked_add(time))
        .and_then(|us| us.checked_add(interval.us))
        .ok_or_else(out)?;
    check_timestamp(sum)
}

fn check_timestamp(us: i64) -> Result<i64> {
    if (TIMESTAMP_MIN..TIMESTAMP_END).contains(&us) {
        Ok(us)
    } else {
        Err(Error::new(state::DATETIME_OVERFLOW, "timestamp out of range"))
    }
}

pub fn check_date(days: i64) -> Result<i32> {
    if (DATE_MIN..=DATE_MAX).contains(&days) {
        Ok(days as i32)
    } else {
        Err(Error::new(state::DATETIME_OVERFLOW, "date out of range"))
    }
}

// ---- printing

fn two(value: i64, out: &mut Vec<u8>) {
    out.push(b'0' + (value / 10 % 10) as u8);
    out.push(b'0' + (value % 10) as u8);
}

fn write_civil(days: i64, out: &mut Vec<u8>) -> bool {
    let (year, month, day) = civil_from_days(days);
    let bc = year <= 0;
    let shown = if bc { 1 - year } else { year };
    if shown < 10_000 {
        two(shown / 100, out);
        two(shown % 100, out);
    } else {
        out.extend_from_slice(shown.to_string().as_bytes());
    }
    out.push(b'-');
    two(month, out);
    out.push(b'-');
    two(day, out);
    bc
}

pub fn write_date(days: i32, out: &mut Vec<u8>) {
    match days {
        i32::MAX => return out.extend_from_slice(b"infinity"),
        i32::MIN => return out.extend_from_slice(b"-infinity"),
        _ => {}
    }
    if write_civil(i64::from(days), out) {
        out.extend_from_slice(b" BC");
    }
}

/// `04:05:06.7`: as many decimals as are not zero.
pub fn write_time(us: i64, out: &mut Vec<u8>) {
    let hours = us / HOUR_US;
    if hours < 100 {
        two(hours, out);
    } else {
        out.extend_from_slice(hours.to_string().as_bytes());
    }
    out.push(b':');
    two(us / MINUTE_US % 60, out);
    out.push(b':');
    two(us / SECOND_US % 60, out);
    let fraction = us % SECOND_US;
    if fraction != 0 {
        let digits = format!(".{fraction:06}");
        out.extend_from_slice(digits.trim_end_matches('0').as_bytes());
    }
}

fn write_offset(seconds: i32, out: &mut Vec<u8>) {
    out.push(if seconds < 0 { b'-' } else { b'+' });
    let seconds = i64::from(seconds.abs());
    two(seconds / 3600, out);
    if seconds % 3600 != 0 {
        out.push(b':');
        two(seconds / 60 % 60, out);
        if seconds % 60 != 0 {
            out.push(b':');
            two(seconds % 60, out);
        }
    }
}

pub fn write_timestamp(us: i64, out: &mut Vec<u8>) {
    write_instant(us, None, out);
}

pub fn write_timestamptz(us: i64, zone: &Zone, out: &mut Vec<u8>) {
    write_instant(zone.to_local(us), Some(zone.offset_at(us)), out);
}

fn write_instant(local_us: i64, offset: Option<i32>, out: &mut Vec<u8>) {
    match local_us {
        i64::MAX => return out.extend_from_slice(b"infinity"),
        i64::MIN => return out.extend_from_slice(b"-infinity"),
        _ => {}
    }
    let bc = write_civil(local_us.div_euclid(DAY_US), out);
    out.push(b' ');
    write_time(local_us.rem_euclid(DAY_US), out);
    if let Some(offset) = offset {
        write_offset(offset, out);
    }
    if bc {
        out.extend_from_slice(b" BC");
    }
}

/// The `postgres` interval style: `1 year 2 mons 3 days 04:05:06`.
pub fn write_interval(interval: &Interval, out: &mut Vec<u8>) {
    let mut text = String::new();
    let mut negative_before = false;
    let mut part = |value: i64, unit: &str| {
        if value == 0 {
            return;
        }
        if !text.is_empty() {
            text.push(' ');
        }
        if negative_before && value > 0 {
            text.push('+');
        }
        negative_before = value < 0;
        let plural = if value == 1 { "" } else { "s" };
        text.push_str(&format!("{value} {unit}{plural}"));
    };
    part(i64::from(interval.months / 12), "year");
    part(i64::from(interval.months % 12), "mon");
    part(i64::from(interval.days), "day");
    if interval.us != 0 || text.is_empty() {
        if !text.is_empty() {
            text.push(' ');
        }
        if interval.us < 0 {
            text.push('-');
        } else if negative_before {
            text.push('+');
        }
        let mut time = Vec::new();
        // The minimum has no positive counterpart; one microsecond off is better than a panic.
        write_time(interval.us.checked_abs().unwrap_or(i64::MAX), &mut time);
        text.push_str(&String::from_utf8_lossy(&time));
    }
    out.extend_from_slice(text.as_bytes());
}

// ---- reading

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
fn parse_offset(text: &str) -> Option<i32> {
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

/// `extract(field from …)` of a local calendar reading; none for a field that is not known.
/// The answer is in microunits, so that seconds keep their decimals.
pub fn extract(field: &str, local_us: i64) -> Option<i128> {
    const MICRO: i128 = 1_000_000;
    let days = local_us.div_euclid(DAY_US);
    let time = local_us.rem_euclid(DAY_US);
    let (year, month, day) = civil_from_days(days);
    let shown_year = if year <= 0 { year - 1 } else { year };
    let weekday = (days + 4).rem_euclid(7);
    let whole = |value: i64| Some(i128::from(value) * MICRO);
    match field {
        "year" | "years" => whole(shown_year),
        "month" | "months" => whole(month),
        "day" | "days" => whole(day),
        "quarter" => whole((month - 1) / 3 + 1),
        "hour" | "hours" => whole(time / HOUR_US),
        "minute" | "minutes" => whole(time / MINUTE_US % 60),
        "second" | "seconds" => Some(i128::from(time % MINUTE_US)),
        "milliseconds" | "millisecond" => Some(i128::from(time % MINUTE_US) * 1_000),
        "microseconds" | "microsecond" => Some(i128::from(time % MINUTE_US) * MICRO),
        "dow" => whole(weekday),
        "isodow" => whole(if weekday == 0 { 7 } else { weekday }),
        "doy" => whole(days - days_from_civil(year, 1, 1) + 1),
        "epoch" => Some(i128::from(local_us)),
        "century" => whole(if year > 0 { (year + 99) / 100 } else { -((100 - year) / 100) }),
        "decade" => whole(year.div_euclid(10)),
        "millennium" => whole(if year > 0 { (year + 999) / 1000 } else { -((1000 - year) / 1000) }),
        "week" | "isoyear" => {
            let thursday = days - (weekday + 6) % 7 + 3;
            let (iso_year, _, _) = civil_from_days(thursday);
            match field {
                "week" => whole((thursday - days_from_civil(iso_year, 1, 1)) / 7 + 1),
                _ => whole(iso_year),
            }
        }
        _ => None,
    }
}

/// `date_trunc` of a local calendar reading; none for a field that is not known.
pub fn truncate(field: &str, local_us: i64) -> Option<i64> {
    let days = local_us.div_euclid(DAY_US);
    let (year, month, _) = civil_from_days(days);
    let at = |year: i64, month: i64| days_from_civil(year, month, 1) * DAY_US;
    Some(match field {
        "microseconds" => local_us,
        "milliseconds" => local_us - local_us.rem_euclid(1_000),
        "second" => local_us - local_us.rem_euclid(SECOND_US),
        "minute" => local_us - local_us.rem_euclid(MINUTE_US),
        "hour" => local_us - local_us.rem_euclid(HOUR_US),
        "day" => days * DAY_US,
        "week" => (days - (days + 3).rem_euclid(7)) * DAY_US,
        "month" => at(year, month),
        "quarter" => at(year, (month - 1) / 3 * 3 + 1),
        "year" => at(year, 1),
        "decade" => at(year.div_euclid(10) * 10, 1),
        "century" => at((year - 1).div_euclid(100) * 100 + 1, 1),
        _ => return None,
    })
}

/// Writes to a string through one of the writers above.
pub fn shown(write: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut out = Vec::new();
    write(&mut out);
    let mut text = String::new();
    // Only ASCII is ever written here.
    out.iter().for_each(|byte| {
        text.write_char(char::from(*byte)).unwrap_or_default();
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_print_as_they_read() {
        for text in ["1970-01-01", "2000-02-29", "1999-12-31", "0044-03-15 BC", "12345-01-01"] {
            assert_eq!(shown(|out| write_date(parse_date(text).unwrap(), out)), text);
        }
        assert_eq!(parse_date("March 5, 2021").unwrap(), parse_date("2021-03-05").unwrap());
        assert_eq!(parse_date("2021-02-29").unwrap_err().state(), "22008");
        assert_eq!(parse_date("yes").unwrap_err().state(), "22007");
    }

    #[test]
    fn timestamps_respect_zones() {
        let berlin = Zone::parse("Europe/Berlin").unwrap();
        let us = parse_timestamptz("2024-07-01 12:00", &berlin).unwrap();
        assert_eq!(shown(|out| write_timestamptz(us, &Zone::UTC, out)), "2024-07-01 10:00:00+00");
        assert_eq!(shown(|out| write_timestamptz(us, &berlin, out)), "2024-07-01 12:00:00+02");
        let us = parse_timestamptz("2024-01-01T00:00:00.25-03:30", &berlin).unwrap();
        assert_eq!(
            shown(|out| write_timestamptz(us, &Zone::UTC, out)),
            "2024-01-01 03:30:00.25+00"
        );
    }

    #[test]
    fn intervals_read_print_and_add() {
        for (text, want) in [
            ("1 year 2 months 3 days 04:05:06.5", "1 year 2 mons 3 days 04:05:06.5"),
            ("90 minutes", "01:30:00"),
            ("1.5 days", "1 day 12:00:00"),
            ("3 weeks ago", "-21 days"),
            ("P1Y2M3DT4H5M6S", "1 year 2 mons 3 days 04:05:06"),
            ("0", "00:00:00"),
        ] {
            assert_eq!(shown(|out| write_interval(&parse_interval(text).unwrap(), out)), want);
        }
        let end_of_january = parse_timestamp("2023-01-31").unwrap();
        let moved = add_interval(end_of_january, &parse_interval("1 month").unwrap()).unwrap();
        assert_eq!(shown(|out| write_timestamp(moved, out)), "2023-02-28 00:00:00");
    }
}
