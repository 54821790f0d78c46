//! Dates, times and intervals as PostgreSQL prints them: ISO style.

use super::{Interval, Zone, civil_from_days, is_infinite};

fn two(value: u64, out: &mut Vec<u8>) {
    out.push(b'0' + (value / 10 % 10) as u8);
    out.push(b'0' + (value % 10) as u8);
}

fn write_civil(days: i64, out: &mut Vec<u8>) -> bool {
    let (year, month, day) = civil_from_days(days);
    let bc = year <= 0;
    let shown = (if bc { 1 - year } else { year }).unsigned_abs();
    if shown < 10_000 {
        two(shown / 100, out);
        two(shown % 100, out);
    } else {
        out.extend_from_slice(shown.to_string().as_bytes());
    }
    out.push(b'-');
    two(month.unsigned_abs(), out);
    out.push(b'-');
    two(day.unsigned_abs(), out);
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
    write_clock(us.unsigned_abs(), out);
}

/// The least interval is one microsecond longer than an `i64` holds without its sign.
fn write_clock(us: u64, out: &mut Vec<u8>) {
    const HOUR_US: u64 = super::HOUR_US as u64;
    const MINUTE_US: u64 = super::MINUTE_US as u64;
    const SECOND_US: u64 = super::SECOND_US as u64;
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

pub(super) fn write_offset(seconds: i32, out: &mut Vec<u8>) {
    out.push(if seconds < 0 { b'-' } else { b'+' });
    let seconds = u64::from(seconds.unsigned_abs());
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
    write_instant(us, Some(zone.offset_at(us)), out);
}

/// East of Greenwich the local reading of the last instants is one that no timestamp holds, so
/// that the day and the time are moved, each by itself.
fn write_instant(us: i64, offset: Option<i32>, out: &mut Vec<u8>) {
    if is_infinite(us) {
        return out.extend_from_slice(if us > 0 { b"infinity" } else { b"-infinity" });
    }
    let (days, time) = Zone::Fixed(offset.unwrap_or(0)).day_and_time(us);
    let bc = write_civil(days, out);
    out.push(b' ');
    write_time(time, out);
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
        write_clock(interval.us.unsigned_abs(), &mut time);
        text.push_str(&String::from_utf8_lossy(&time));
    }
    out.extend_from_slice(text.as_bytes());
}
