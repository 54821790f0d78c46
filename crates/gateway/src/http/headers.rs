//! What is removed from a message on its way, what is added, and what is carried on.
//!
//! * Hop-by-hop fields end here (RFC 9110, 7.6.1), those that `Connection` names among them.
//! * `X-Forwarded-For`, `-Proto` and `-Host` tell the server who asked, and how.
//! * `X-Request-Timeout-Ms` (or gRPC's `grpc-timeout`) tells how much time is left, as a span and
//!   not as a time of day, because clocks do not agree. What a client asks for is honoured where
//!   it is less than the service's own.
//! * `traceparent` (W3C Trace Context) names the trace; each attempt's parent is a span of ours.

use crate::call::Verdict;
use crate::config::HeaderRules;
use crate::http::http1::head::Writer;
use crate::isolate::bulkhead::Priority;
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Version};
use std::time::Duration;

pub const TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout-ms");
pub const PRIORITY: HeaderName = HeaderName::from_static("x-request-priority");
pub const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Removes what concerns one connection only. `TE: trailers` stays: it is the client's word that
/// it understands trailers, and gRPC servers want it.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .filter(|name| name != header::TE)
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::PROXY_AUTHENTICATE,
    ] {
        headers.remove(name);
    }
    if headers.get_all(header::TE).iter().any(|te| te.as_bytes() != b"trailers") {
        headers.remove(header::TE);
    }
}

pub fn apply(rules: &HeaderRules, headers: &mut HeaderMap) {
    for name in &rules.remove {
        headers.remove(name);
    }
    for (name, value) in &rules.set {
        headers.insert(name, value.clone());
    }
    for (name, value) in &rules.add {
        headers.append(name, value.clone());
    }
}

/// Tells the server who asked. `client` is the client's address as a field's value, made once for
/// its connection.
pub fn forward(headers: &mut HeaderMap, client: &HeaderValue, is_tls: bool) {
    let chain = match headers.get(FORWARDED_FOR) {
        None => client.clone(),
        Some(_) => {
            let mut chain = Vec::with_capacity(64);
            for value in headers.get_all(FORWARDED_FOR) {
                chain.extend_from_slice(value.as_bytes());
                chain.extend_from_slice(b", ");
            }
            chain.extend_from_slice(client.as_bytes());
            // What was put together of values is one.
            HeaderValue::from_maybe_shared(Bytes::from(chain)).unwrap_or_else(|_| client.clone())
        }
    };
    headers.insert(FORWARDED_FOR, chain);
    let proto = HeaderValue::from_static(if is_tls { "https" } else { "http" });
    headers.entry(FORWARDED_PROTO).or_insert(proto);
    if let Some(host) = headers.get(header::HOST).cloned() {
        headers.entry(FORWARDED_HOST).or_insert(host);
    }
}

/// How long the client wants to wait, if it says so.
pub fn asked_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(ms) = text(TIMEOUT).and_then(|text| text.trim().parse().ok()) {
        return Some(Duration::from_millis(ms));
    }
    let text = text(GRPC_TIMEOUT)?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    // gRPC allows eight digits.
    let n: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

/// Tells the server how long anyone will wait for it.
pub fn set_timeout(headers: &mut HeaderMap, left: Duration) {
    let ms = timeout_ms(left);
    headers.insert(TIMEOUT, HeaderValue::from(ms));
    if headers.contains_key(GRPC_TIMEOUT)
        && let Ok(value) = HeaderValue::try_from(grpc_timeout(ms))
    {
        headers.insert(GRPC_TIMEOUT, value);
    }
}

pub fn is_timeout(name: &HeaderName) -> bool {
    *name == TIMEOUT || *name == GRPC_TIMEOUT
}

/// As [`set_timeout`], where the head is written.
pub fn write_timeout(to: &mut Writer<'_>, headers: &HeaderMap, left: Duration) {
    let ms = timeout_ms(left);
    to.number(TIMEOUT.as_str(), ms);
    if headers.contains_key(GRPC_TIMEOUT) {
        to.field(GRPC_TIMEOUT.as_str(), grpc_timeout(ms).as_bytes());
    }
}

fn timeout_ms(left: Duration) -> u64 {
    u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn grpc_timeout(ms: u64) -> String {
    format!("{}m", ms.min(99_999_999))
}

pub fn asked_priority(headers: &HeaderMap) -> Option<Priority> {
    Priority::of(headers.get(PRIORITY)?.to_str().ok()?)
}

/// A trace's name, and the span that we are in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trace {
    pub trace: u128,
    pub span: u64,
    /// The client's span.
    pub parent: Option<u64>,
    pub is_sampled: bool,
}

impl Trace {
    /// The trace that the request belongs to, or a new one, which is sampled with probability
    /// `share`; `random` gives the new names.
    pub fn of(headers: &HeaderMap, share: f64, mut random: impl FnMut() -> u64) -> Trace {
        let given = headers.get(TRACE_PARENT).and_then(|value| parse(value.to_str().ok()?));
        let mut fresh = || random().max(1);
        let Some(given) = given else {
            let (high, low, span) = (fresh(), fresh(), fresh());
            let trace = u128::from(high) << 64 | u128::from(low);
            // Drawn from the name, as W3C's level 2 has it: who knows the share agrees.
            let drawn = (low & ((1 << 56) - 1)) as f64 / (1_u64 << 56) as f64;
            return Trace { trace, span, parent: None, is_sampled: drawn < share };
        };
        Trace { span: fresh(), ..given }
    }

    pub fn set(&self, headers: &mut HeaderMap) {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        hex(&mut text[3..35], &self.trace.to_be_bytes());
        hex(&mut text[36..52], &self.span.to_be_bytes());
        hex(&mut text[53..55], &[u8::from(self.is_sampled)]);
        if let Ok(value) = HeaderValue::from_bytes(&text) {
            headers.insert(TRACE_PARENT, value);
        }
    }
}

fn hex(to: &mut [u8], bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (to, byte) in to.chunks_exact_mut(2).zip(bytes) {
        to[0] = DIGITS[usize::from(byte >> 4)];
        to[1] = DIGITS[usize::from(byte & 15)];
    }
}

/// `00-<32 hex>-<16 hex>-<2 hex>`; later versions may say more behind that. The span is nobody's.
fn parse(text: &str) -> Option<Trace> {
    let mut parts = text.split('-');
    let (version, trace) = (parts.next()?, parts.next()?);
    let (parent, flags) = (parts.next()?, parts.next()?);
    let is_hex = |text: &str, n: usize| {
        text.len() == n && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let lengths = is_hex(version, 2) && is_hex(trace, 32) && is_hex(parent, 16) && is_hex(flags, 2);
    if !lengths || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let trace = u128::from_str_radix(trace, 16).ok().filter(|trace| *trace != 0)?;
    let parent = u64::from_str_radix(parent, 16).ok().filter(|parent| *parent != 0)?;
    let is_sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
    Some(Trace { trace, span: 0, parent: Some(parent), is_sampled })
}

/// The protocol that a client wants to change to on this connection, such as WebSocket.
pub fn wanted_upgrade(headers: &HeaderMap, version: Version) -> Option<HeaderValue> {
    if version != Version::HTTP_11 {
        return None;
    }
    let names_upgrade = headers.get_all(header::CONNECTION).iter().any(|value| {
        value.to_str().is_ok_and(|value| {
            value.split(',').any(|name| name.trim().eq_ignore_ascii_case("upgrade"))
        })
    });
    let upgrade = headers.get(header::UPGRADE).filter(|_| names_upgrade)?;
    // HTTP/2 in clear text by upgrade is deprecated, and would pass us by.
    let mut protocols = upgrade.as_bytes().split(|byte| *byte == b',');
    let is_h2c = protocols.any(|name| name.trim_ascii().eq_ignore_ascii_case(b"h2c"));
    (!is_h2c).then(|| upgrade.clone())
}

pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// What headers or trailers say of a gRPC server; not that it failed when the request is wrong.
/// `is_late`: its caller gave it little time, which is over.
pub fn grpc_verdict(headers: &HeaderMap, is_late: impl Fn() -> bool) -> Verdict {
    match headers.get("grpc-status").map(HeaderValue::as_bytes) {
        // DEADLINE_EXCEEDED
        Some(b"4") if is_late() => Verdict::Late,
        // UNAVAILABLE, DEADLINE_EXCEEDED, INTERNAL, and a full server's RESOURCE_EXHAUSTED.
        Some(b"14" | b"4" | b"13" | b"8") => Verdict::Failed,
        _ => Verdict::Well,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn what_concerns_one_connection_ends_here() {
        let mut headers = map(&[
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("keep-alive", "5"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("x-kept", "1"),
        ]);
        remove_hop_by_hop(&mut headers);
        let left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["te", "x-kept"]);
        let mut gzip = map(&[("te", "gzip, trailers")]);
        remove_hop_by_hop(&mut gzip);
        assert!(gzip.is_empty());
    }

    #[test]
    fn the_clients_chain_is_extended() {
        let mut headers = map(&[
            ("host", "a.example"),
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "2.2.2.2"),
        ]);
        forward(&mut headers, &HeaderValue::from_static("3.3.3.3"), true);
        assert_eq!(headers["x-forwarded-for"], "1.1.1.1, 2.2.2.2, 3.3.3.3");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-forwarded-host"], "a.example");
    }

    #[test]
    fn time_left_is_read_in_both_tongues() {
        let asked = |name, value| asked_timeout(&map(&[(name, value)]));
        assert_eq!(asked("x-request-timeout-ms", "250"), Some(Duration::from_millis(250)));
        assert_eq!(asked("grpc-timeout", "2S"), Some(Duration::from_secs(2)));
        assert_eq!(asked("grpc-timeout", "100m"), Some(Duration::from_millis(100)));
        for wrong in ["", "S", "-1S", "999999999S", "1x"] {
            assert_eq!(asked("grpc-timeout", wrong), None, "{wrong}");
        }
        assert_eq!(asked("x-request-timeout-ms", "soon"), None);
    }

    #[test]
    fn a_trace_goes_on_and_a_broken_one_begins_anew() {
        let given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let trace = Trace::of(&map(&[("traceparent", given)]), 0.0, || 7);
        assert_eq!(trace.trace, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!((trace.parent, trace.is_sampled), (Some(0xb7ad_6b71_6920_3331), true));
        let mut headers = HeaderMap::new();
        trace.set(&mut headers);
        assert_eq!(
            headers["traceparent"],
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000007-01"
        );
        for wrong in [
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-short-b7ad6b7169203331-01",
        ] {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn only_a_named_upgrade_is_one() {
        let asks = |connection, upgrade| {
            let headers = map(&[("connection", connection), ("upgrade", upgrade)]);
            wanted_upgrade(&headers, Version::HTTP_11).is_some()
        };
        assert!(asks("keep-alive, Upgrade", "websocket"));
        assert!(!asks("keep-alive", "websocket"));
        assert!(!asks("Upgrade", "h2c"));
        assert!(!asks("Upgrade", "websocket, H2C"));
    }
}
