//! Dates, times, intervals and zones on the proleptic Gregorian calendar.
//!
//! Nothing here reads a clock: "now" is a value that the session passes in.

mod parse;
mod print;

pub use parse::{parse_date, parse_interval, parse_time, parse_timestamp, parse_timestamptz};
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
