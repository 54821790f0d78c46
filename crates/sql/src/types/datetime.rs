//! Dates, times, intervals and zones on the proleptic Gregorian calendar.
//!
//! Nothing here reads a clock: "now" is a value that the session passes in.

mod field;
mod interval;
mod parse;
mod print;

pub use field::{extract, truncate, truncate_in, truncate_interval};
pub use interval::parse_interval;
pub use parse::{parse_date, parse_time, parse_timestamp, parse_timestamptz};
pub use print::{write_date, write_interval, write_time, write_timestamp, write_timestamptz};

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
/// Dates go from 4714-11-24 BC to 5874897-12-31. Timestamps begin with the same day and end where the
/// microseconds since 1970 do, at 294247-01-10 04:00:54.775806.
const DATE_MIN: i64 = -2_440_588;
const DATE_MAX: i64 = 2_145_042_905;
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

    /// The least months, days or microseconds have no counterpart: `- '-2147483648 days'` is an error.
    pub fn neg(&self) -> Result<Interval> {
        Interval::default().sub(self)
    }

    pub fn add(&self, other: &Interval) -> Result<Interval> {
        Ok(Interval {
            months: self.months.checked_add(other.months).ok_or_else(interval_out_of_range)?,
            days: self.days.checked_add(other.days).ok_or_else(interval_out_of_range)?,
            us: self.us.checked_add(other.us).ok_or_else(interval_out_of_range)?,
        })
    }

    pub fn sub(&self, other: &Interval) -> Result<Interval> {
        Ok(Interval {
            months: self.months.checked_sub(other.months).ok_or_else(interval_out_of_range)?,
            days: self.days.checked_sub(other.days).ok_or_else(interval_out_of_range)?,
            us: self.us.checked_sub(other.us).ok_or_else(interval_out_of_range)?,
        })
    }

    /// `interval * factor`. Fractions of months spill into days and those of days into time
    /// (`interval_mul` in PostgreSQL's timestamp.c): `'1 mon' * 1.5` is `1 mon 15 days`.
    pub fn mul(&self, factor: f64) -> Result<Interval> {
        self.scaled(|part| part * factor)
    }

    /// `interval / divisor`; the divisor is not zero.
    pub fn div(&self, divisor: f64) -> Result<Interval> {
        self.scaled(|part| part / divisor)
    }

    fn scaled(&self, scale: impl Fn(f64) -> f64) -> Result<Interval> {
        let out = interval_out_of_range;
        // As close to a microsecond as a float of seconds or days comes.
        let tidy = |value: f64| (value * 1e6).round_ties_even() / 1e6;
        let months = scale(f64::from(self.months));
        let days = scale(f64::from(self.days));
        let whole_months = to_i32(months).ok_or_else(out)?;
        let whole_days = to_i32(days).ok_or_else(out)?;
        let month_days = tidy((months - f64::from(whole_months)) * 30.0);
        let mut rest =
            tidy((days - f64::from(whole_days) + month_days - month_days.trunc()) * DAY_S);
        let mut carried = 0;
        if rest.abs() >= DAY_S {
            carried = (rest / DAY_S) as i32;
            rest -= f64::from(carried) * DAY_S;
        }
        let days = whole_days
            .checked_add(carried)
            .and_then(|days| days.checked_add(month_days as i32))
            .ok_or_else(out)?;
        let us = (scale(self.us as f64) + rest * 1e6).round_ties_even();
        Ok(Interval { months: whole_months, days, us: to_i64(us).ok_or_else(out)? })
    }
}

const DAY_S: f64 = 86_400.0;

fn interval_out_of_range() -> Error {
    Error::new(state::DATETIME_OVERFLOW, "interval out of range")
}

fn timestamp_out_of_range() -> Error {
    Error::new(state::DATETIME_OVERFLOW, "timestamp out of range")
}

/// Cut towards zero; none where it does not fit or is NaN.
fn to_i32(value: f64) -> Option<i32> {
    (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&value).then_some(value as i32)
}

fn to_i64(value: f64) -> Option<i64> {
    // 2^63 itself is a float, and does not fit: an open end.
    (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0)
        .contains(&value)
        .then_some(value as i64)
}

/// The session's time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
        if let Some(seconds) = parse::parse_offset(name) {
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
                print::write_offset(*seconds, &mut out);
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
                let tabled = |utc_us: i64| {
                    let instant = chrono::DateTime::from_timestamp_micros(utc_us);
                    instant.map_or(0, |instant| {
                        zone.offset_from_utc_datetime(&instant.naive_utc()).fix().local_minus_utc()
                    })
                };
                match utc_us < TABLES_END_US {
                    true => tabled(utc_us),
                    false => tabled(same_kind_of_year(utc_us)),
                }
            }
        }
    }

    /// The local calendar's reading at an instant. What lies beyond the last timestamp becomes
    /// the last one: for a reading that must be right, see [`Zone::try_to_local`].
    pub fn to_local(&self, utc_us: i64) -> i64 {
        self.try_to_local(utc_us).unwrap_or_else(|_| clamped(utc_us))
    }

    /// The local calendar's reading at an instant; an error where no timestamp holds it.
    pub fn try_to_local(&self, utc_us: i64) -> Result<i64> {
        if is_infinite(utc_us) {
            return Ok(utc_us);
        }
        let offset_us = i64::from(self.offset_at(utc_us)) * SECOND_US;
        check_timestamp(utc_us.checked_add(offset_us).ok_or_else(timestamp_out_of_range)?)
    }

    /// The day and the time of day by the zone's clocks. A day that no timestamp begins has a number, too.
    pub fn day_and_time(&self, utc_us: i64) -> (i64, i64) {
        let time = utc_us.rem_euclid(DAY_US) + i64::from(self.offset_at(utc_us)) * SECOND_US;
        (utc_us.div_euclid(DAY_US) + time.div_euclid(DAY_US), time.rem_euclid(DAY_US))
    }

    /// The instant of a reading of the local calendar, the first or last one of all where no
    /// timestamp holds it: what a comparison asks for. See [`Zone::try_to_utc`].
    pub fn to_utc(&self, local_us: i64) -> i64 {
        self.try_to_utc(local_us).unwrap_or_else(|_| clamped(local_us))
    }

    /// The instant of a reading of the local calendar. Of a reading that occurs twice the later
    /// offset's wins; one that is skipped goes by the offset before the gap, as in PostgreSQL.
    /// An error where no timestamp holds it.
    pub fn try_to_utc(&self, local_us: i64) -> Result<i64> {
        if is_infinite(local_us) {
            return Ok(local_us);
        }
        self.instant_of(i128::from(local_us)).ok_or_else(timestamp_out_of_range)
    }

    /// The same of a reading that no timestamp needs to hold; none where none holds the instant.
    fn instant_of(&self, local_us: i128) -> Option<i64> {
        let utc = |offset: i32| {
            let utc_us = local_us - i128::from(offset) * i128::from(SECOND_US);
            i64::try_from(utc_us).ok().and_then(|us| check_timestamp(us).ok())
        };
        match self {
            Zone::Fixed(seconds) => utc(*seconds),
            Zone::Named(_) => {
                let near = |days: i64| {
                    let us = local_us + i128::from(days * DAY_US);
                    let end = |us: i64| i128::from(us);
                    us.clamp(end(TIMESTAMP_MIN), end(TIMESTAMP_END)) as i64
                };
                let (before, after) = (self.offset_at(near(-1)), self.offset_at(near(1)));
                match utc(after) {
                    Some(utc_us) if self.offset_at(utc_us) == after => Some(utc_us),
                    _ => utc(before),
                }
            }
        }
    }
}

/// From 2088 on every zone goes by a rule for all years, but the tables that spell the rule out
/// end. A later instant is looked up in a year that has the same days of the week.
const TABLES_END_US: i64 = 43_099 * DAY_US;

/// The same moment of a year from 2060 to 2087 that begins with the same day of the week and is as
/// long: 28 years in a row without an exception have all fourteen kinds. 2150 begins with a Thursday,
/// as 2065 does.
fn same_kind_of_year(utc_us: i64) -> i64 {
    let days = utc_us.div_euclid(DAY_US);
    let (year, _, _) = civil_from_days(days);
    let first = days_from_civil(year, 1, 1);
    let kind = |year: i64| ((days_from_civil(year, 1, 1)).rem_euclid(7), days_in_month(year, 2));
    let like = (2060..2088).find(|candidate| kind(*candidate) == kind(year)).unwrap_or(2087);
    (days - first + days_from_civil(like, 1, 1)) * DAY_US + utc_us.rem_euclid(DAY_US)
}

pub fn is_infinite(us: i64) -> bool {
    us == i64::MAX || us == i64::MIN
}

pub fn date_is_infinite(days: i32) -> bool {
    days == i32::MAX || days == i32::MIN
}

/// The finite timestamp that is nearest.
fn clamped(us: i64) -> i64 {
    us.clamp(TIMESTAMP_MIN, TIMESTAMP_END - 1)
}

/// The midnight that begins the day. A day beyond the last timestamp becomes the last one: what a
/// comparison asks for. See [`try_date_to_timestamp`].
pub fn date_to_timestamp(days: i32) -> i64 {
    try_date_to_timestamp(days).unwrap_or_else(|_| clamped(i64::from(days).saturating_mul(DAY_US)))
}

/// The midnight that begins the day; an error where no timestamp holds it.
pub fn try_date_to_timestamp(days: i32) -> Result<i64> {
    match days {
        i32::MAX => Ok(i64::MAX),
        i32::MIN => Ok(i64::MIN),
        days => i64::from(days)
            .checked_mul(DAY_US)
            .and_then(|us| check_timestamp(us).ok())
            .ok_or_else(|| Error::new(state::DATETIME_OVERFLOW, "date out of range for timestamp")),
    }
}

/// The order of a date and a timestamp. A day that no timestamp holds is later than all of them,
/// infinity excepted.
pub fn order_date(days: i32, us: i64) -> Ordering {
    match try_date_to_timestamp(days) {
        Ok(midnight) => midnight.cmp(&us),
        Err(_) if us == i64::MAX => Ordering::Less,
        Err(_) => Ordering::Greater,
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
/// time. Each step must end at a timestamp.
pub fn add_interval(us: i64, interval: &Interval) -> Result<i64> {
    if is_infinite(us) {
        return Ok(us);
    }
    add_time(add_days(add_months(us, interval.months)?, interval.days)?, interval.us)
}

/// The same with months and days counted by the clocks of a zone: a day may have 23 hours.
pub fn add_interval_in(us: i64, interval: &Interval, zone: &Zone) -> Result<i64> {
    if is_infinite(us) {
        return Ok(us);
    }
    let mut us = us;
    if interval.months != 0 {
        us = zone.try_to_utc(add_months(zone.try_to_local(us)?, interval.months)?)?;
    }
    if interval.days != 0 {
        us = zone.try_to_utc(add_days(zone.try_to_local(us)?, interval.days)?)?;
    }
    add_time(us, interval.us)
}

fn add_months(us: i64, months: i32) -> Result<i64> {
    if months == 0 {
        return Ok(us);
    }
    let (year, month, day) = civil_from_days(us.div_euclid(DAY_US));
    let months = year * 12 + (month - 1) + i64::from(months);
    let (year, month) = (months.div_euclid(12), months.rem_euclid(12) + 1);
    let days = days_from_civil(year, month, day.min(days_in_month(year, month)));
    join(days, us.rem_euclid(DAY_US)).ok_or_else(timestamp_out_of_range)
}

fn add_days(us: i64, days: i32) -> Result<i64> {
    let moved = us.div_euclid(DAY_US) + i64::from(days);
    join(moved, us.rem_euclid(DAY_US)).ok_or_else(timestamp_out_of_range)
}

fn add_time(us: i64, time_us: i64) -> Result<i64> {
    check_timestamp(us.checked_add(time_us).ok_or_else(timestamp_out_of_range)?)
}

/// The timestamp of a day and a time; none where there is none.
fn join(days: i64, time_us: i64) -> Option<i64> {
    let us = days.checked_mul(DAY_US)?.checked_add(time_us)?;
    check_timestamp(us).ok()
}

pub fn check_timestamp(us: i64) -> Result<i64> {
    if (TIMESTAMP_MIN..TIMESTAMP_END).contains(&us) {
        Ok(us)
    } else {
        Err(timestamp_out_of_range())
    }
}

/// `date + time`; infinity stays what it is.
pub fn add_time_of_day(days: i32, time_us: i64) -> Result<i64> {
    let midnight = try_date_to_timestamp(days)?;
    if is_infinite(midnight) { Ok(midnight) } else { add_time(midnight, time_us) }
}

/// `date + integer`; infinity stays what it is.
pub fn add_to_date(days: i32, n: i64) -> Result<i32> {
    if date_is_infinite(days) {
        return Ok(days);
    }
    check_date(i64::from(days).saturating_add(n))
}

/// `date - date`, in days.
pub fn days_between(a: i32, b: i32) -> Result<i32> {
    if date_is_infinite(a) || date_is_infinite(b) {
        return Err(Error::new(state::DATETIME_OVERFLOW, "cannot subtract infinite dates"));
    }
    a.checked_sub(b).ok_or_else(|| Error::new(state::OUT_OF_RANGE, "integer out of range"))
}

/// `timestamp - timestamp`, in days and time.
pub fn time_between(a: i64, b: i64) -> Result<Interval> {
    if is_infinite(a) || is_infinite(b) {
        return Err(Error::new(state::DATETIME_OVERFLOW, "cannot subtract infinite timestamps"));
    }
    let us = a.checked_sub(b).ok_or_else(interval_out_of_range)?;
    let days = i32::try_from(us / DAY_US).map_err(|_| interval_out_of_range())?;
    Ok(Interval { months: 0, days, us: us % DAY_US })
}

pub fn check_date(days: i64) -> Result<i32> {
    if (DATE_MIN..=DATE_MAX).contains(&days) {
        Ok(days as i32)
    } else {
        Err(Error::new(state::DATETIME_OVERFLOW, "date out of range"))
    }
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
