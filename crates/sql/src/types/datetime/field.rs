//! The parts of dates and times: `extract`, `date_part` and `date_trunc`.
//!
//! A part goes by many names (`hr`, `hours`, `HOUR`), which PostgreSQL compares by their first ten
//! letters. Not every part is one of every type: `extract(hour from date '2001-02-03')` is an error.
//! Of an infinite time the parts that come round again (`hour`, `month`) are unknown, and those that
//! only grow (`year`, `epoch`) are infinite:
//!
//! | | `2001-02-03 04:05:06` | `infinity` |
//! |---|---|---|
//! | `extract(hour …)` | 4 | NULL |
//! | `extract(year …)` | 2001 | infinity |
//! | `date_trunc('year', …)` | `2001-01-01 00:00:00` | `infinity` |

use super::{
    DAY_US, HOUR_US, Interval, MINUTE_US, SECOND_US, Zone, civil_from_days, days_from_civil,
    is_infinite, join, timestamp_out_of_range,
};
use crate::error::{Error, Result, state};
use crate::types::{Datum, Numeric, Type};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Microseconds,
    Milliseconds,
    Second,
    Minute,
    Hour,
    Day,
    Week,
    Month,
    Quarter,
    Year,
    Decade,
    Century,
    Millennium,
    DayOfWeek,
    IsoDayOfWeek,
    DayOfYear,
    IsoYear,
    Julian,
    Epoch,
    Timezone,
    TimezoneHour,
    TimezoneMinute,
}

/// Longer names are compared by their beginnings.
const N_LETTERS: usize = 10;

impl Part {
    fn find(name: &str) -> Option<Part> {
        let lower: String = name.chars().take(N_LETTERS).collect::<String>().to_ascii_lowercase();
        Some(match lower.as_str() {
            "microsecon" | "us" | "usec" | "usecs" => Part::Microseconds,
            "millisecon" | "ms" | "msec" | "msecs" => Part::Milliseconds,
            "s" | "sec" | "secs" | "second" | "seconds" => Part::Second,
            "m" | "min" | "mins" | "minute" | "minutes" => Part::Minute,
            "h" | "hr" | "hrs" | "hour" | "hours" => Part::Hour,
            "d" | "day" | "days" => Part::Day,
            "w" | "week" | "weeks" => Part::Week,
            "mon" | "mons" | "month" | "months" => Part::Month,
            "qtr" | "quarter" => Part::Quarter,
            "y" | "yr" | "yrs" | "year" | "years" => Part::Year,
            "dec" | "decs" | "decade" | "decades" => Part::Decade,
            "c" | "cent" | "century" | "centuries" => Part::Century,
            "mil" | "mils" | "millennium" | "millennia" => Part::Millennium,
            "dow" => Part::DayOfWeek,
            "isodow" => Part::IsoDayOfWeek,
            "doy" => Part::DayOfYear,
            "isoyear" => Part::IsoYear,
            "j" | "jd" | "julian" => Part::Julian,
            "epoch" => Part::Epoch,
            "timezone" => Part::Timezone,
            "timezone_h" => Part::TimezoneHour,
            "timezone_m" => Part::TimezoneMinute,
            _ => return None,
        })
    }

    fn named(name: &str, ty: &Type) -> Result<Part> {
        Part::find(name).ok_or_else(|| not_recognized(name, ty))
    }

    /// Whether the part of an infinite time is infinite, too.
    fn grows(self) -> bool {
        use Part::*;
        matches!(self, Year | Decade | Century | Millennium | IsoYear | Julian | Epoch)
    }

    fn is_of_a_clock(self) -> bool {
        use Part::*;
        matches!(self, Microseconds | Milliseconds | Second | Minute | Hour)
    }
}

fn not_recognized(name: &str, ty: &Type) -> Error {
    let ty = ty.base_name();
    let message = format!("unit \"{}\" not recognized for type {ty}", name.to_ascii_lowercase());
    Error::new(state::INVALID_PARAMETER, message)
}

fn not_supported(name: &str, ty: &Type) -> Error {
    let ty = ty.base_name();
    let message = format!("unit \"{}\" not supported for type {ty}", name.to_ascii_lowercase());
    Error::new(state::FEATURE_NOT_SUPPORTED, message)
}

/// A part's value.
#[derive(Clone, Copy, Debug)]
pub enum Extracted {
    Number(Numeric),
    Unknown,
    PlusInfinity,
    MinusInfinity,
}

impl Extracted {
    /// As `extract` answers.
    pub fn numeric(self) -> Result<Datum> {
        Ok(match self {
            Extracted::Number(value) => Datum::Numeric(value),
            Extracted::Unknown => Datum::Null,
            Extracted::PlusInfinity | Extracted::MinusInfinity => {
                return Err(Error::unsupported("infinity in type numeric"));
            }
        })
    }

    /// As `date_part` answers.
    pub fn float(self) -> Datum {
        match self {
            Extracted::Number(value) => Datum::Float8(value.to_f64()),
            Extracted::Unknown => Datum::Null,
            Extracted::PlusInfinity => Datum::Float8(f64::INFINITY),
            Extracted::MinusInfinity => Datum::Float8(f64::NEG_INFINITY),
        }
    }
}

/// `extract(name from value)`, a timestamptz by the clocks of `zone`.
pub fn extract(name: &str, value: &Datum, zone: &Zone) -> Result<Extracted> {
    let (ty, infinite) = match value {
        Datum::Null => return Ok(Extracted::Unknown),
        Datum::Date(days) => (Type::Date, super::date_is_infinite(*days).then_some(*days > 0)),
        Datum::Timestamp(us) => (Type::Timestamp, is_infinite(*us).then_some(*us > 0)),
        Datum::TimestampTz(us) => (Type::TimestampTz, is_infinite(*us).then_some(*us > 0)),
        Datum::Time(_) => (Type::Time, None),
        Datum::Interval(_) => (Type::Interval, None),
        _ => return Err(Error::internal("a part of what is no time")),
    };
    let part = Part::named(name, &ty)?;
    let unsupported = || not_supported(name, &ty);
    if ty == Type::Date && (part.is_of_a_clock() || zone_of(part, 0).is_some()) {
        return Err(unsupported());
    }
    if let Some(positive) = infinite {
        return Ok(match (part.grows(), positive) {
            (false, _) => Extracted::Unknown,
            (true, true) => Extracted::PlusInfinity,
            (true, false) => Extracted::MinusInfinity,
        });
    }
    let number = match value {
        Datum::Date(days) => match part {
            Part::Epoch => Numeric::from(i64::from(*days) * (DAY_US / SECOND_US)),
            Part::Julian => Numeric::from(i64::from(*days) + JULIAN_1970),
            _ => Numeric::from(of_day(part, i64::from(*days)).ok_or_else(unsupported)?),
        },
        Datum::Time(us) => match part {
            Part::Epoch => Numeric::new(i128::from(*us), 6)?,
            _ => of_clock(part, *us).ok_or_else(unsupported)??,
        },
        Datum::Timestamp(us) => {
            of_instant(part, Zone::UTC.day_and_time(*us), *us)?.ok_or_else(unsupported)?
        }
        Datum::TimestampTz(us) => match zone_of(part, zone.offset_at(*us)) {
            Some(value) => Numeric::from(value),
            None => of_instant(part, zone.day_and_time(*us), *us)?.ok_or_else(unsupported)?,
        },
        Datum::Interval(interval) => of_interval(part, interval)?.ok_or_else(unsupported)?,
        _ => return Err(unsupported()),
    };
    Ok(Extracted::Number(number))
}

/// 1970-01-01 as a Julian day.
const JULIAN_1970: i64 = 2_440_588;

fn zone_of(part: Part, offset: i32) -> Option<i64> {
    let offset = i64::from(offset);
    match part {
        Part::Timezone => Some(offset),
        Part::TimezoneHour => Some(offset / 3600),
        Part::TimezoneMinute => Some(offset % 3600 / 60),
        _ => None,
    }
}

/// A part of a time of day, or of an interval's time, which may be negative.
fn of_clock(part: Part, us: i64) -> Option<Result<Numeric>> {
    let seconds = i128::from(us % MINUTE_US);
    Some(match part {
        Part::Microseconds => Numeric::new(seconds, 0),
        Part::Milliseconds => Numeric::new(seconds, 3),
        Part::Second => Numeric::new(seconds, 6),
        Part::Minute => Ok(Numeric::from(us / MINUTE_US % 60)),
        Part::Hour => Ok(Numeric::from(us / HOUR_US)),
        _ => return None,
    })
}

fn of_day(part: Part, days: i64) -> Option<i64> {
    let (year, month, day) = civil_from_days(days);
    // There is no year 0: 1 BC comes before 1 AD.
    let shown = |year: i64| if year <= 0 { year - 1 } else { year };
    let weekday = (days + 4).rem_euclid(7);
    Some(match part {
        Part::Day => day,
        Part::Month => month,
        Part::Quarter => (month - 1) / 3 + 1,
        Part::Year => shown(year),
        Part::Decade => year.div_euclid(10),
        Part::Century if year > 0 => (year + 99) / 100,
        Part::Century => -((100 - year) / 100),
        Part::Millennium if year > 0 => (year + 999) / 1000,
        Part::Millennium => -((1000 - year) / 1000),
        Part::DayOfWeek => weekday,
        Part::IsoDayOfWeek if weekday == 0 => 7,
        Part::IsoDayOfWeek => weekday,
        Part::DayOfYear => days - days_from_civil(year, 1, 1) + 1,
        Part::Week | Part::IsoYear => {
            let thursday = days - (weekday + 6) % 7 + 3;
            let (iso_year, _, _) = civil_from_days(thursday);
            match part {
                Part::Week => (thursday - days_from_civil(iso_year, 1, 1)) / 7 + 1,
                _ => shown(iso_year),
            }
        }
        _ => return None,
    })
}

/// A part of a calendar reading; the epoch goes by the instant.
fn of_instant(part: Part, (days, time): (i64, i64), utc_us: i64) -> Result<Option<Numeric>> {
    Ok(match part {
        Part::Epoch => Some(Numeric::new(i128::from(utc_us), 6)?),
        Part::Julian => {
            let of_day = Numeric::from(time).div(&Numeric::from(DAY_US))?;
            Some(Numeric::from(days + JULIAN_1970).add(&of_day)?)
        }
        _ => match of_clock(part, time) {
            Some(number) => Some(number?),
            None => of_day(part, days).map(Numeric::from),
        },
    })
}

fn of_interval(part: Part, interval: &Interval) -> Result<Option<Numeric>> {
    let (years, months) = (i64::from(interval.months / 12), i64::from(interval.months % 12));
    let whole = match part {
        Part::Day => i64::from(interval.days),
        Part::Month => months,
        Part::Quarter => months / 3 + 1,
        Part::Year => years,
        Part::Decade => years / 10,
        Part::Century => years / 100,
        Part::Millennium => years / 1000,
        // A year has 365.25 days here, in quarters of a day.
        Part::Epoch => {
            let quarters = years * 1461 + months * 120 + i64::from(interval.days) * 4;
            let us = i128::from(quarters) * i128::from(DAY_US / 4) + i128::from(interval.us);
            return Numeric::new(us, 6).map(Some);
        }
        _ => return of_clock(part, interval.us).transpose(),
    };
    Ok(Some(Numeric::from(whole)))
}

/// `date_trunc` of a timestamp without zone.
pub fn truncate(name: &str, local_us: i64) -> Result<i64> {
    if is_infinite(local_us) {
        return Ok(local_us);
    }
    let part = Part::named(name, &Type::Timestamp)?;
    cut(part, local_us)?.ok_or_else(|| no_cut(part, name, &Type::Timestamp))
}

/// `date_trunc` of a timestamptz by the clocks of `zone`. What is cut within a day keeps its offset, so
/// that of an hour that comes twice each is its own: at `01:40-07` it is `01:00-07`, at `01:40-08` it
/// is `01:00-08`.
pub fn truncate_in(name: &str, us: i64, zone: &Zone) -> Result<i64> {
    if is_infinite(us) {
        return Ok(us);
    }
    let part = Part::named(name, &Type::TimestampTz)?;
    let local = zone.try_to_local(us)?;
    let cut = cut(part, local)?.ok_or_else(|| no_cut(part, name, &Type::TimestampTz))?;
    match part.is_of_a_clock() {
        true => super::check_timestamp(us - (local - cut)),
        false => zone.try_to_utc(cut),
    }
}

/// `date_trunc` of an interval: towards zero.
pub fn truncate_interval(name: &str, interval: &Interval) -> Result<Interval> {
    let part = Part::named(name, &Type::Interval)?;
    let Interval { months, days, us } = *interval;
    let months_only = |unit: i32| Interval { months: months / unit * unit, days: 0, us: 0 };
    let time = |unit: i64| Interval { us: us / unit * unit, ..*interval };
    Ok(match part {
        Part::Microseconds => *interval,
        Part::Milliseconds => time(1_000),
        Part::Second => time(SECOND_US),
        Part::Minute => time(MINUTE_US),
        Part::Hour => time(HOUR_US),
        Part::Day => Interval { months, days, us: 0 },
        Part::Month => months_only(1),
        Part::Quarter => months_only(3),
        Part::Year => months_only(12),
        Part::Decade => months_only(120),
        Part::Century => months_only(1_200),
        Part::Millennium => months_only(12_000),
        Part::Week => return Err(not_supported(name, &Type::Interval)),
        _ => return Err(no_cut(part, name, &Type::Interval)),
    })
}

fn no_cut(part: Part, name: &str, ty: &Type) -> Error {
    match zone_of(part, 0) {
        Some(_) => not_supported(name, ty),
        None => not_recognized(name, ty),
    }
}

/// None where nothing is cut by the part. The first days of all lie within a year that has no
/// beginning here: an error.
fn cut(part: Part, local_us: i64) -> Result<Option<i64>> {
    let days = local_us.div_euclid(DAY_US);
    let (year, month, _) = civil_from_days(days);
    let midnight = |days: i64| join(days, 0).ok_or_else(timestamp_out_of_range);
    let first = |year: i64, month: i64| midnight(days_from_civil(year, month, 1));
    // Midnights are whole hours, so that this never goes below the first timestamp.
    let time = |unit: i64| local_us - local_us.rem_euclid(unit);
    Ok(Some(match part {
        Part::Microseconds => local_us,
        Part::Milliseconds => time(1_000),
        Part::Second => time(SECOND_US),
        Part::Minute => time(MINUTE_US),
        Part::Hour => time(HOUR_US),
        Part::Day => midnight(days)?,
        Part::Week => midnight(days - (days + 3).rem_euclid(7))?,
        Part::Month => first(year, month)?,
        Part::Quarter => first(year, (month - 1) / 3 * 3 + 1)?,
        Part::Year => first(year, 1)?,
        Part::Decade => first(year.div_euclid(10) * 10, 1)?,
        Part::Century => first((year - 1).div_euclid(100) * 100 + 1, 1)?,
        Part::Millennium => first((year - 1).div_euclid(1000) * 1000 + 1, 1)?,
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::{parse_interval, parse_timestamp, parse_timestamptz, shown};
    use super::super::{write_timestamp, write_timestamptz};
    use super::*;

    #[test]
    fn parts_are_postgres_parts() {
        let moment = Datum::Timestamp(parse_timestamp("2001-02-03 04:05:06.789012").unwrap());
        let last = Datum::Timestamp(i64::MAX);
        let long = Datum::Interval(parse_interval("-14 mon 3 d 04:05:06.789").unwrap());
        // Each right side is what PostgreSQL 15 answers.
        for (part, value, want) in [
            ("SECONDS", &moment, "6.789012"),
            ("ms", &moment, "6789.012"),
            ("julian", &moment, "2451944.17021746541666666667"),
            ("hour", &last, "NULL"),
            ("epoch", &long, "-36467693.211000"),
            ("month", &long, "-2"),
            ("hour", &Datum::Date(0), "0A000"),
            ("hour", &Datum::Date(i32::MAX), "0A000"),
            ("timezone", &Datum::Date(i32::MAX), "0A000"),
            ("foo", &last, "22023"),
            ("timezone", &moment, "0A000"),
        ] {
            let got = match extract(part, value, &Zone::UTC).and_then(Extracted::numeric) {
                Ok(Datum::Null) => "NULL".to_owned(),
                Ok(value) => crate::types::text::show(&value),
                Err(error) => error.state().to_owned(),
            };
            assert_eq!(got, want, "{part} of {value:?}");
        }
        let year = extract("year", &last, &Zone::UTC).unwrap();
        assert_eq!(year.float(), Datum::Float8(f64::INFINITY));
    }

    #[test]
    fn both_ends_of_time_are_cut() {
        let cut = |part: &str, text: &str| match truncate(part, parse_timestamp(text).unwrap()) {
            Ok(us) => shown(|out| write_timestamp(us, out)),
            Err(error) => error.state().to_owned(),
        };
        for (part, text, want) in [
            ("day", "-infinity", "-infinity"),
            ("foo", "infinity", "infinity"),
            ("milliseconds", "294247-01-10 04:00:54.775806", "294247-01-10 04:00:54.775"),
            ("year", "4714-11-25 BC", "22008"),
            ("day", "4714-11-24 01:00 BC", "4714-11-24 00:00:00 BC"),
            ("dow", "2001-02-03", "22023"),
            ("timezone", "2001-02-03", "0A000"),
        ] {
            assert_eq!(cut(part, text), want, "{part} of {text}");
        }
    }

    #[test]
    fn an_hour_that_comes_twice_is_cut_twice() {
        let zone = Zone::parse("America/Los_Angeles").unwrap();
        for text in ["2023-11-05 01:00:00-07", "2023-11-05 01:00:00-08"] {
            let late = parse_timestamptz(&text.replace(":00:00", ":40:00"), &zone).unwrap();
            let hour = truncate_in("hour", late, &zone).unwrap();
            assert_eq!(shown(|out| write_timestamptz(hour, &zone, out)), text);
        }
    }
}
