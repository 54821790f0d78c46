//! Reading intervals, as PostgreSQL's `DecodeInterval` (datetime.c) does.
//!
//! The text is taken apart into words, which are read from the last to the first: so a unit is known
//! before its amount, and a bare number before a time means days. `1 2:03` is a day and two hours,
//! `-1-2 3 -4:05` is a year and two months, three days and four hours, each with its sign. Amounts are whole
//! numbers with an optional fraction; whole parts are summed exactly, each in 64 bits, so that the least
//! and the largest interval can be written. A fraction spills into the next smaller units.
//!
//! ISO 8601's form is here with designators (`P1Y2M3DT4H5M6S`). Absent: its form without them
//! (`P0001-02-03T04:05:06`), and units after the type (`interval '1' year` is put together by the binder).

use super::{DAY_US, HOUR_US, Interval, MINUTE_US, SECOND_US, interval_out_of_range};
use crate::error::{Error, Result, state};

const INTERVAL_FIELD_OVERFLOW: &str = "22015";

/// Why a text is no interval.
enum Wrong {
    Syntax,
    /// Of a field, before the parts are put together.
    Overflow,
}

type Read<T> = std::result::Result<T, Wrong>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Microsecond,
    Millisecond,
    Second,
    Minute,
    Hour,
    Day,
    Week,
    Month,
    Year,
    Decade,
    Century,
    Millennium,
}

impl Unit {
    fn named(word: &str) -> Option<Unit> {
        Some(match word.get(..10).unwrap_or(word) {
            "us" | "usec" | "usecs" | "microsecon" => Unit::Microsecond,
            "ms" | "msec" | "msecs" | "millisecon" => Unit::Millisecond,
            "s" | "sec" | "secs" | "second" | "seconds" => Unit::Second,
            "m" | "min" | "mins" | "minute" | "minutes" => Unit::Minute,
            "h" | "hr" | "hrs" | "hour" | "hours" => Unit::Hour,
            "d" | "day" | "days" => Unit::Day,
            "w" | "week" | "weeks" => Unit::Week,
            "mon" | "mons" | "month" | "months" => Unit::Month,
            "y" | "yr" | "yrs" | "year" | "years" => Unit::Year,
            "dec" | "decs" | "decade" | "decades" => Unit::Decade,
            "c" | "cent" | "century" | "centuries" => Unit::Century,
            "mil" | "mils" | "millennium" | "millennia" => Unit::Millennium,
            _ => return None,
        })
    }
}

/// A whole number and what stands after its point, with the number's sign.
#[derive(Clone, Copy)]
struct Amount {
    whole: i64,
    fraction: f64,
}

#[derive(Default)]
struct Sum {
    years: i64,
    months: i64,
    days: i64,
    us: i64,
    /// The units that were there, a bit each: none may come twice.
    seen: u16,
}

impl Sum {
    fn mark(&mut self, unit: Unit) -> Read<()> {
        let bit = 1 << unit as u16;
        if self.seen & bit != 0 {
            return Err(Wrong::Syntax);
        }
        self.seen |= bit;
        Ok(())
    }

    fn add(&mut self, amount: Amount, unit: Unit) -> Read<()> {
        let Amount { whole, fraction } = amount;
        match unit {
            Unit::Microsecond => self.add_us(whole, fraction, 1),
            Unit::Millisecond => self.add_us(whole, fraction, 1_000),
            Unit::Second => self.add_us(whole, fraction, SECOND_US),
            Unit::Minute => self.add_us(whole, fraction, MINUTE_US),
            Unit::Hour => self.add_us(whole, fraction, HOUR_US),
            Unit::Day => self.add_days(whole, fraction, 1),
            Unit::Week => self.add_days(whole, fraction, 7),
            Unit::Month => {
                add(&mut self.months, whole, 1)?;
                self.add_days(0, fraction, 30)
            }
            Unit::Year => self.add_years(whole, fraction, 1),
            Unit::Decade => self.add_years(whole, fraction, 10),
            Unit::Century => self.add_years(whole, fraction, 100),
            Unit::Millennium => self.add_years(whole, fraction, 1_000),
        }
    }

    fn add_years(&mut self, whole: i64, fraction: f64, unit: i64) -> Read<()> {
        add(&mut self.years, whole, unit)?;
        add(&mut self.months, (fraction * unit as f64 * 12.0).round_ties_even() as i64, 1)
    }

    fn add_days(&mut self, whole: i64, fraction: f64, unit: i64) -> Read<()> {
        add(&mut self.days, whole, unit)?;
        let days = fraction * unit as f64;
        add(&mut self.days, days.trunc() as i64, 1)?;
        self.add_us(0, days.fract(), DAY_US)
    }

    fn add_us(&mut self, whole: i64, fraction: f64, unit: i64) -> Read<()> {
        add(&mut self.us, whole, unit)?;
        // Half a microsecond is rounded towards zero, more than half away from it.
        let us = fraction * unit as f64;
        let extra = if us.fract().abs() > 0.5 { us.signum() as i64 } else { 0 };
        add(&mut self.us, us.trunc() as i64 + extra, 1)
    }

    fn negated(&self) -> Read<Sum> {
        let neg = |value: i64| value.checked_neg().ok_or(Wrong::Overflow);
        let sum = Sum {
            years: neg(self.years)?,
            months: neg(self.months)?,
            days: neg(self.days)?,
            us: neg(self.us)?,
            seen: self.seen,
        };
        sum.check()?;
        Ok(sum)
    }

    /// Years, months and days have 32 bits each, after every field.
    fn check(&self) -> Read<()> {
        let fits = |value: &i64| i32::try_from(*value).is_ok();
        match [self.years, self.months, self.days].iter().all(fits) {
            true => Ok(()),
            false => Err(Wrong::Overflow),
        }
    }
}

fn add(sum: &mut i64, value: i64, unit: i64) -> Read<()> {
    let product = value.checked_mul(unit).ok_or(Wrong::Overflow)?;
    *sum = sum.checked_add(product).ok_or(Wrong::Overflow)?;
    Ok(())
}

/// `1 year 2 mons -3 days 04:05:06`, `@ 1 hour ago`, `P1Y2M3DT4H5M6S`; a bare number is seconds.
pub fn parse_interval(text: &str) -> Result<Interval> {
    let sum = match read(text) {
        Err(Wrong::Syntax) => read_iso(text),
        read => read,
    };
    let sum = sum.map_err(|wrong| match wrong {
        Wrong::Syntax => Error::new(
            state::DATETIME_INVALID,
            format!("invalid input syntax for type interval: \"{text}\""),
        ),
        Wrong::Overflow => Error::new(
            INTERVAL_FIELD_OVERFLOW,
            format!("interval field value out of range: \"{text}\""),
        ),
    })?;
    let narrow = |value: i64| i32::try_from(value).map_err(|_| interval_out_of_range());
    let months = narrow(sum.years * 12 + sum.months)?;
    Ok(Interval { months, days: narrow(sum.days)?, us: sum.us })
}

/// `3days` is two words, `-04:05` one; punctuation that means nothing (`@`) is left out.
fn words(text: &str) -> Read<Vec<&str>> {
    let bytes = text.as_bytes();
    let mut words = Vec::new();
    let mut at = 0;
    let run = |from: usize, goes_on: &dyn Fn(&u8) -> bool| {
        from + bytes[from..].iter().take_while(|byte| goes_on(byte)).count()
    };
    while let Some(&byte) = bytes.get(at) {
        let end = match byte {
            byte if byte.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            b'@' | b',' => {
                at += 1;
                continue;
            }
            b'0'..=b'9' | b'.' => run(at, &|b| b.is_ascii_digit() || b".:-".contains(b)),
            b'+' | b'-' => run(at + 1, &|b| b.is_ascii_digit() || b".:-".contains(b)),
            byte if byte.is_ascii_alphabetic() => run(at, &u8::is_ascii_alphabetic),
            _ => return Err(Wrong::Syntax),
        };
        words.push(&text[at..end]);
        at = end;
    }
    Ok(words)
}

fn read(text: &str) -> Read<Sum> {
    let mut sum = Sum::default();
    let mut unit = None;
    let mut is_before = false;
    let words = words(text)?;
    for (idx, word) in words.iter().enumerate().rev() {
        if word.starts_with(|letter: char| letter.is_ascii_alphabetic()) {
            let lower = word.to_ascii_lowercase();
            if lower == "ago" {
                if idx + 1 != words.len() || idx == 0 {
                    return Err(Wrong::Syntax);
                }
                is_before = true;
                continue;
            }
            unit = Some(Unit::named(&lower).ok_or(Wrong::Syntax)?);
            // A unit without an amount before it.
            let amount = idx.checked_sub(1).map_or("", |before| words[before]);
            if !amount.ends_with(|last: char| last.is_ascii_digit() || last == '.') {
                return Err(Wrong::Syntax);
            }
            continue;
        }
        let negative = word.starts_with('-');
        if word.contains(':') {
            let clock = match (read_clock(word.trim_start_matches(['+', '-'])), word.as_bytes()[0])
            {
                // Behind a sign what is no time may yet be a number; with colons it never is.
                (Err(_), b'+' | b'-') => return Err(Wrong::Syntax),
                (clock, _) => clock?,
            };
            add(&mut sum.us, if negative { -clock } else { clock }, 1)?;
            for unit in [Unit::Hour, Unit::Minute, Unit::Second] {
                sum.mark(unit)?;
            }
            unit = Some(Unit::Day);
            continue;
        }
        let (amount, is_months) = read_amount(word)?;
        let meant = match (is_months, unit) {
            (true, _) => Unit::Month,
            (false, unit) => unit.unwrap_or(Unit::Second),
        };
        sum.add(amount, meant)?;
        sum.check()?;
        sum.mark(meant)?;
        unit = Some(if meant == Unit::Hour { Unit::Day } else { meant });
    }
    if sum.seen == 0 {
        return Err(Wrong::Syntax);
    }
    if is_before { sum.negated() } else { Ok(sum) }
}

/// `04:05`, `04:05:06.789` and `05:06.789`, in microseconds.
fn read_clock(text: &str) -> Read<i64> {
    let pieces: Vec<&str> = text.split(':').collect();
    let whole = |text: &str| -> Read<i64> {
        match !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => text.parse().map_err(|_| Wrong::Overflow),
            false => Err(Wrong::Syntax),
        }
    };
    let (hours, minutes, seconds) = match pieces[..] {
        [minutes, seconds] if seconds.contains('.') => (0, whole(minutes)?, seconds),
        [hours, minutes] => (whole(hours)?, whole(minutes)?, "0"),
        [hours, minutes, seconds] => (whole(hours)?, whole(minutes)?, seconds),
        _ => return Err(Wrong::Syntax),
    };
    let seconds_us = super::parse::parse_seconds(seconds).ok_or(Wrong::Syntax)?;
    if minutes > 59 || seconds_us > MINUTE_US {
        return Err(Wrong::Overflow);
    }
    let mut us = 0;
    add(&mut us, hours, HOUR_US)?;
    add(&mut us, minutes, MINUTE_US)?;
    add(&mut us, seconds_us, 1)?;
    Ok(us)
}

/// `-3`, `1.5`, and years and months as `1-2`, which are fourteen months.
fn read_amount(word: &str) -> Read<(Amount, bool)> {
    let digits = word.strip_prefix(['+', '-']).unwrap_or(word);
    let sign = if word.starts_with('-') { -1.0 } else { 1.0 };
    let end = digits.bytes().take_while(u8::is_ascii_digit).count();
    let rest = &digits[end..];
    let signed = &word[..word.len() - rest.len()];
    let whole = match end {
        0 if rest.len() > 1 && rest.starts_with('.') => 0,
        0 => return Err(Wrong::Syntax),
        _ => signed.parse::<i64>().map_err(|_| Wrong::Overflow)?,
    };
    if rest.is_empty() {
        return Ok((Amount { whole, fraction: 0.0 }, false));
    }
    let after = &rest[1..];
    if !after.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Wrong::Syntax);
    }
    if rest.starts_with('.') {
        let fraction = format!("0.{after}0").parse::<f64>().map_err(|_| Wrong::Syntax)?;
        return Ok((Amount { whole, fraction: fraction * sign }, false));
    }
    if !rest.starts_with('-') || after.is_empty() {
        return Err(Wrong::Syntax);
    }
    let months = after.parse::<i64>().ok().filter(|n| *n < 12).ok_or(Wrong::Overflow)?;
    let mut total = if sign < 0.0 { -months } else { months };
    add(&mut total, whole, 12)?;
    Ok((Amount { whole: total, fraction: 0.0 }, true))
}

fn read_iso(text: &str) -> Read<Sum> {
    let mut sum = Sum::default();
    let mut rest = text.strip_prefix('P').filter(|rest| !rest.is_empty()).ok_or(Wrong::Syntax)?;
    let mut in_time = false;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('T') {
            in_time = true;
            rest = after;
            continue;
        }
        let end = rest.find(|letter: char| letter.is_ascii_alphabetic()).ok_or(Wrong::Syntax)?;
        let unit = match (rest.as_bytes()[end], in_time) {
            (b'Y', false) => Unit::Year,
            (b'M', false) => Unit::Month,
            (b'W', false) => Unit::Week,
            (b'D', false) => Unit::Day,
            (b'H', true) => Unit::Hour,
            (b'M', true) => Unit::Minute,
            (b'S', true) => Unit::Second,
            _ => return Err(Wrong::Syntax),
        };
        let (amount, is_months) = read_amount(&rest[..end])?;
        if is_months {
            return Err(Wrong::Syntax);
        }
        sum.add(amount, unit)?;
        sum.check()?;
        rest = &rest[end + 1..];
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::super::{shown, write_interval};
    use super::*;

    #[test]
    fn intervals_read_as_in_postgres() {
        // Each right side is what PostgreSQL 15 answers.
        for (text, want) in [
            ("-2147483648:00:00", "-2147483648:00:00"),
            ("1 day 2562047788:00:54.775807", "1 day 2562047788:00:54.775807"),
            ("-9223372036854775808 us", "-2562047788:00:54.775808"),
            ("-2562047788:00:54.775808", "22007"),
            ("9223372036854.775807 s", "2562047788:00:54.775807"),
            ("2562047788 hours 0:0:54.775807", "22007"),
            ("99999999999 months", "22015"),
            ("2147483648 months", "22015"),
            ("2147483647 mons 1 year", "22008"),
            ("2147483647 mons 1 mon", "22015"),
            ("357913942 decades", "22015"),
            ("-178956970 years -8 mons -2147483648 days ago", "22015"),
            ("0.1 2562047788:0:54.775808 ago", "22015"),
            ("-178956970 years -8 mons", "-178956970 years -8 mons"),
            ("1e3 days", "22007"),
            ("0.1 years", "1 mon"),
            ("1.5 mons", "1 mon 15 days"),
            ("1.23456789 weeks", "8 days 15:24:26.659872"),
            ("", "22007"),
            ("infinity", "22007"),
            ("1:60", "22015"),
            ("12.34", "00:00:12.34"),
            ("-1.5 hours ago", "01:30:00"),
            ("1 2:03", "1 day 02:03:00"),
            ("-1-2 3 -4:05", "-1 years -2 mons +3 days -04:05:00"),
            ("178956970-8", "22015"),
            ("1.1.1", "22007"),
            ("1 day 1 day", "22007"),
            ("@ 1 day", "1 day"),
            ("@", "22007"),
            ("1 day ago", "-1 days"),
            ("P1Y2M3DT4H5M6S", "1 year 2 mons 3 days 04:05:06"),
        ] {
            let got = match parse_interval(text) {
                Ok(interval) => shown(|out| write_interval(&interval, out)),
                Err(error) => error.state().to_owned(),
            };
            assert_eq!(got, want, "{text}");
        }
    }
}
