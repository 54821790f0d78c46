//! What a value may be: each function takes one kind and refuses everything else, with the line
//! and what is allowed.

use super::table::{Result, Value, cut};
use crate::config::{Network, Pattern};
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Uri};
use regex::RegexBuilder;
use std::fmt::Display;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;
use toml::de::DeValue;

/// Durations longer than this are slips, and would overflow where they are added up.
const TIME_MAX: Duration = Duration::from_secs(720 * 3600);

/// What a compiled pattern may take.
const PATTERN_BYTES_MAX: usize = 1 << 20;

pub fn integer<T>(allowed: RangeInclusive<T>) -> impl Fn(&Value) -> Result<T>
where
    T: Display + PartialOrd + TryFrom<i64>,
{
    move |value| {
        let number = value.get().as_integer().and_then(|number| {
            T::try_from(i64::from_str_radix(number.as_str(), number.radix()).ok()?).ok()
        });
        number.filter(|number| allowed.contains(number)).ok_or_else(|| {
            let (min, max) = (allowed.start(), allowed.end());
            value.must(format_args!("be a whole number from {min} to {max}"))
        })
    }
}

pub fn number(allowed: RangeInclusive<f64>) -> impl Fn(&Value) -> Result<f64> {
    move |value| {
        real(value).filter(|number| allowed.contains(number)).ok_or_else(|| {
            let (min, max) = (allowed.start(), allowed.end());
            value.must(format_args!("be a number from {min} to {max}"))
        })
    }
}

pub fn above_zero(max: f64) -> impl Fn(&Value) -> Result<f64> {
    move |value| {
        real(value)
            .filter(|number| *number > 0.0 && *number <= max)
            .ok_or_else(|| value.must(format_args!("be a number above 0, {max} at most")))
    }
}

/// A part of all, and not nothing.
pub fn share(value: &Value) -> Result<f64> {
    above_zero(1.0)(value)
}

fn real(value: &Value) -> Option<f64> {
    match value.get() {
        DeValue::Float(number) => number.as_str().parse().ok(),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number as f64)
        }
        _ => None,
    }
}

pub fn time(value: &Value) -> Result<Duration> {
    match time_or_zero(value)? {
        Duration::ZERO => Err(value.must("be longer than 0")),
        time => Ok(time),
    }
}

pub fn time_or_zero(value: &Value) -> Result<Duration> {
    let time =
        value.get().as_str().and_then(time_of).ok_or_else(|| {
            value.must("be a duration such as \"250ms\", \"2s\", \"1m\" or \"1h\"")
        })?;
    if time > TIME_MAX {
        return Err(value.must("be 720h at most"));
    }
    Ok(time)
}

fn time_of(text: &str) -> Option<Duration> {
    let (number, unit) = counted(text)?;
    let ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.saturating_mul(ms)))
}

/// Bytes: a number of them, or with a unit.
pub fn size<T>(allowed: RangeInclusive<T>) -> impl Fn(&Value) -> Result<T>
where
    T: Copy + PartialOrd + TryFrom<u64> + TryInto<u64>,
{
    move |value| {
        let bytes = match value.get() {
            DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
            DeValue::String(text) => size_of(text),
            _ => None,
        };
        let bytes = bytes.and_then(|bytes| T::try_from(bytes).ok());
        bytes.filter(|bytes| allowed.contains(bytes)).ok_or_else(|| {
            let shown = |bytes: &T| with_unit((*bytes).try_into().unwrap_or(u64::MAX));
            let (min, max) = (shown(allowed.start()), shown(allowed.end()));
            value.must(format_args!("be a size such as 65536 or \"64KiB\", from {min} to {max}"))
        })
    }
}

const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

fn size_of(text: &str) -> Option<u64> {
    let (number, unit) = counted(text)?;
    let (_, shift) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(1 << shift)
}

fn with_unit(bytes: u64) -> String {
    let fits = |(_, shift): &(&str, u32)| bytes > 0 && bytes.is_multiple_of(1 << shift);
    match UNITS.into_iter().find(fits) {
        Some((name, shift)) => format!("{}{name}", bytes >> shift),
        None => bytes.to_string(),
    }
}

/// "250ms" is 250 and "ms".
fn counted(text: &str) -> Option<(u64, &str)> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    Some((text[..text.len() - unit.len()].parse().ok()?, unit))
}

/// One of a few words.
pub fn one_of<T: Copy>(words: &[(&str, T)], value: &Value) -> Result<T> {
    let known = words.iter().find(|(word, _)| value.get().as_str() == Some(word));
    known.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let words: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        value.must(format_args!("be {}", words.join(" or ")))
    })
}

pub const NAME: &str = "letters, digits, \".\", \"-\" and \"_\"";

/// Names go into addresses of pages, logs and metrics, unquoted.
pub fn is_name(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    !text.is_empty() && text.bytes().all(is_plain)
}

pub fn name(value: &Value) -> Result<String> {
    let text = value.get().as_str().filter(|text| is_name(text));
    text.map(str::to_owned).ok_or_else(|| value.must(format_args!("be a name, made of {NAME}")))
}

/// One word of a header's value. What it is instead stays untold: errors go into logs.
pub fn secret(value: &Value) -> Result<String> {
    let is_word =
        |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    let text = value.get().as_str().filter(is_word);
    text.map(str::to_owned).ok_or_else(|| {
        let subject = value.subject();
        value.refuse(format_args!("{subject} must be visible ASCII without spaces, in quotes"))
    })
}

pub fn flag(value: &Value) -> Result<bool> {
    value.get().as_bool().ok_or_else(|| value.must("be true or false"))
}

/// A regular expression. Its size is bounded, and so is the time that it takes.
pub fn pattern(value: &Value) -> Result<Pattern> {
    let regex = RegexBuilder::new(value.text()?).size_limit(PATTERN_BYTES_MAX).build();
    regex.map(Pattern).map_err(|error| {
        let error = error.to_string();
        let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
        let reason: String = reason.chars().filter(|c| !c.is_control()).take(120).collect();
        value.refuse(format_args!("{} is no regular expression: {reason}", value.subject()))
    })
}

/// An address, or a network as `ADDRESS/BITS`.
pub fn network(value: &Value) -> Result<Network> {
    value.get().as_str().and_then(Network::of).ok_or_else(|| {
        value.must("be an address or a network, such as \"10.0.0.1\" or \"10.0.0.0/8\"")
    })
}

pub fn address(value: &Value) -> Result<SocketAddr> {
    let address = value.get().as_str().and_then(|text| text.parse().ok());
    address.ok_or_else(|| {
        value.must("be an address and a port, such as \"10.0.0.1:80\" or \"[::1]:80\"")
    })
}

/// A host's name, as DNS and certificates have it.
pub fn host(value: &Value) -> Result<String> {
    let text = value.text()?.to_ascii_lowercase();
    let is_host = is_host(&text) || text.parse::<IpAddr>().is_ok();
    if is_host { Ok(text) } else { Err(value.must("be a host's name, such as \"api.internal\"")) }
}

/// A host's name or address, with a port or without, as the `Host` field has it.
pub fn host_and_port(value: &Value) -> Result<String> {
    let text = value.text()?;
    let (name, port) = text.rsplit_once(':').unwrap_or((text, ""));
    let is_host = is_host(name) && port.bytes().all(|byte| byte.is_ascii_digit());
    match is_host {
        true => Ok(text.to_owned()),
        false => Err(value.must("be a host, such as \"shop.example\" or \"shop.example:8080\"")),
    }
}

/// A host that requests are for, or `*.` and what it ends with; lower-case.
pub fn host_pattern(value: &Value) -> Result<String> {
    let text = value.text()?.to_ascii_lowercase();
    let literal = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let is_literal = literal.is_some_and(|literal| literal.parse::<Ipv6Addr>().is_ok());
    if is_literal || is_host(text.strip_prefix("*.").unwrap_or(&text)) {
        return Ok(text);
    }
    Err(value.must(
        "be a host such as \"shop.example\" or \"*.shop.example\", without a port and a path",
    ))
}

fn is_host(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    text.len() <= 253
        && text
            .split('.')
            .all(|label| (1..=63).contains(&label.len()) && label.bytes().all(is_plain))
}

/// Where OTLP is spoken: host, port, path.
pub fn collector(value: &Value) -> Result<(String, u16, String)> {
    const PATH: &str = "/v1/traces";
    const PORT: u16 = 4318;
    let uri = value.get().as_str().and_then(|text| text.parse::<Uri>().ok());
    let uri = uri.filter(|uri| uri.scheme_str() == Some("http") && uri.query().is_none());
    let host = uri.as_ref().and_then(Uri::host).filter(|host| !host.is_empty());
    let (Some(uri), Some(host)) = (&uri, host) else {
        return Err(value.must(
            "be where a collector takes OTLP over HTTP, without TLS, such as \
             \"http://127.0.0.1:4318\"",
        ));
    };
    let path = if uri.path() == "/" { PATH } else { uri.path() };
    Ok((host.to_owned(), uri.port_u16().unwrap_or(PORT), path.to_owned()))
}

/// A request's path, as it stands in the request: percent-encoded, without a query.
pub fn path(value: &Value) -> Result<String> {
    match parsed_path(value) {
        Some(path) if path.query().is_none() => Ok(path.to_string()),
        _ => Err(value.must("be a path that begins with \"/\", without a query")),
    }
}

/// A path that requests are compared with, in the form in which they are.
pub fn matched_path(value: &Value) -> Result<String> {
    crate::path::compared(&path(value)?).ok_or_else(|| {
        value.must("be a path that all servers read alike, without dot segments beside %2F or ;")
    })
}

/// A path, and a query if it needs one.
pub fn path_and_query(value: &Value) -> Result<String> {
    let path = parsed_path(value).map(|path| path.to_string());
    path.ok_or_else(|| value.must("be a path that begins with \"/\""))
}

fn parsed_path(value: &Value) -> Option<PathAndQuery> {
    let text = value.get().as_str().filter(|text| text.starts_with('/'))?;
    // Parsing drops a fragment.
    PathAndQuery::try_from(text).ok().filter(|path| path.as_str() == text)
}

pub fn header_name(value: &Value) -> Result<HeaderName> {
    let name = value.get().as_str().and_then(header_name_of);
    name.ok_or_else(|| value.must("be a header's name, such as \"x-request-id\""))
}

/// A table's key that names a header.
pub fn header_key(key: &str, value: &Value) -> Result<HeaderName> {
    header_name_of(key)
        .ok_or_else(|| value.refuse(format_args!("{:?} cannot be the name of a header", cut(key))))
}

fn header_name_of(text: &str) -> Option<HeaderName> {
    HeaderName::from_bytes(text.as_bytes()).ok()
}

pub fn header_value(value: &Value) -> Result<HeaderValue> {
    let text = value.get().as_str().and_then(|text| HeaderValue::from_str(text).ok());
    text.ok_or_else(|| {
        // It may be a secret.
        let subject = value.subject();
        let must = "must be a header's value: visible ASCII and spaces, in quotes";
        value.refuse(format_args!("{subject} {must}"))
    })
}
