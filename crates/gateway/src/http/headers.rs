//! What is removed from a message on its way, what is added, and what is carried on.
//!
//! * Hop-by-hop fields end here (RFC 9110, 7.6.1), those that `Connection` names among them.
//! * Who asked [`forwarded`] tells.
//! * `X-Request-Timeout-Ms` (or gRPC's `grpc-timeout`) tells how much time is left, as a span and
//!   not as a time of day, because clocks do not agree. What a client asks for is honoured where
//!   it is less than the service's own.

use crate::call::Verdict;
use crate::config::HeaderRules;
use crate::fields::{Fields, name};
use crate::http::forwarded;
use crate::isolate::bulkhead::Priority;
use http::Version;
use std::collections::HashSet;
use std::time::Duration;

/// What no connection option can name (RFC 9110, 7.6.1): it is for every recipient, and who takes
/// it out on the way makes the server see another request than the gateway has decided about.
fn is_for_all(name: &[u8]) -> bool {
    const FOR_ALL: [&str; 8] = [
        name::HOST,
        name::TE,
        name::CONTENT_TYPE,
        name::TRACE_PARENT,
        name::TIMEOUT,
        name::GRPC_TIMEOUT,
        name::PRIORITY,
        name::IDEMPOTENCY_KEY,
    ];
    FOR_ALL.iter().any(|known| known.as_bytes() == name) || forwarded::is_claim(name)
}

/// Removes what concerns one connection only. `TE: trailers` stays: it is the client's word that
/// it understands trailers, and gRPC servers want it.
pub fn remove_hop_by_hop(fields: &mut Fields) {
    if fields.has(name::CONNECTION) {
        // A set: a client may name thousands.
        let named: HashSet<Vec<u8>> = fields
            .all(name::CONNECTION)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .map(|name| name.trim_ascii().to_ascii_lowercase())
            .filter(|named| !is_for_all(named))
            .collect();
        fields.retain(|name| !named.contains(&name.to_ascii_lowercase()));
        fields.remove(name::CONNECTION);
    }
    for name in [
        name::KEEP_ALIVE,
        name::PROXY_CONNECTION,
        name::TRANSFER_ENCODING,
        name::UPGRADE,
        name::PROXY_AUTHENTICATE,
    ] {
        fields.remove(name);
    }
    if fields.all(name::TE).any(|te| te != b"trailers") {
        fields.remove(name::TE);
    }
}

pub fn remove(rules: &HeaderRules, fields: &mut Fields) {
    for name in &rules.remove {
        fields.remove(name.as_str());
    }
}

pub fn write(rules: &HeaderRules, fields: &mut Fields) {
    for (name, value) in &rules.set {
        fields.set(name.as_str(), value);
    }
    for (name, value) in &rules.add {
        fields.add(name.as_str(), value);
    }
}

/// How long the client wants to wait, if it says so.
pub fn asked_timeout(fields: &Fields) -> Option<Duration> {
    if let Some(ms) = fields.ascii(name::TIMEOUT).and_then(|text| text.trim().parse().ok()) {
        return Some(Duration::from_millis(ms));
    }
    let text = fields.ascii(name::GRPC_TIMEOUT)?;
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

pub fn is_timeout(name: &[u8]) -> bool {
    let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
    is(name::TIMEOUT) || is(name::GRPC_TIMEOUT)
}

/// Tells the server how long anyone will wait for it, in HTTP/2.
pub fn set_timeout(fields: &mut Fields, left: Duration) {
    let ms = timeout_ms(left);
    fields.set(name::TIMEOUT, ms.to_string());
    if fields.has(name::GRPC_TIMEOUT) {
        fields.set(name::GRPC_TIMEOUT, grpc_timeout(ms));
    }
}

pub fn timeout_ms(left: Duration) -> u64 {
    u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1)
}

pub fn grpc_timeout(ms: u64) -> String {
    format!("{}m", ms.min(99_999_999))
}

pub fn asked_priority(fields: &Fields) -> Option<Priority> {
    Priority::of(fields.ascii(name::PRIORITY)?)
}

/// The protocol that a client wants to change to on this connection, such as WebSocket.
pub fn wanted_upgrade(fields: &Fields, version: Version) -> Option<Vec<u8>> {
    if version != Version::HTTP_11 {
        return None;
    }
    let names = |values: &[u8], wanted: &[u8]| {
        let mut names = values.split(|byte| *byte == b',');
        names.any(|name| name.trim_ascii().eq_ignore_ascii_case(wanted))
    };
    if !fields.all(name::CONNECTION).any(|value| names(value, b"upgrade")) {
        return None;
    }
    let upgrade = fields.get(name::UPGRADE)?;
    // HTTP/2 in clear text by upgrade is deprecated, and would pass us by.
    (!names(upgrade, b"h2c")).then(|| upgrade.to_vec())
}

pub fn is_grpc(fields: &Fields) -> bool {
    fields.get(name::CONTENT_TYPE).is_some_and(|value| value.starts_with(b"application/grpc"))
}

/// What a gRPC server's status (in headers or trailers) says of it; not that it failed when the
/// request is wrong. `is_late`: its caller gave it little time, which is over.
pub fn grpc_verdict(status: Option<&[u8]>, is_late: impl Fn() -> bool) -> Verdict {
    match status {
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

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::default();
        for (name, value) in pairs {
            fields.add(name, value);
        }
        fields
    }

    #[test]
    fn what_concerns_one_connection_ends_here() {
        let mut headers = fields(&[
            ("connection", "close, x-private"),
            ("X-Private", "1"),
            ("keep-alive", "5"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("X-Kept", "1"),
        ]);
        remove_hop_by_hop(&mut headers);
        let mut left = Vec::new();
        headers.write(&mut left, |_| false);
        assert_eq!(left, b"te: trailers\r\nX-Kept: 1\r\n");
        let mut gzip = fields(&[("te", "gzip, trailers")]);
        remove_hop_by_hop(&mut gzip);
        assert_eq!(gzip.n(), 0);
    }

    #[test]
    fn time_left_is_read_in_both_tongues() {
        let asked = |name, value| asked_timeout(&fields(&[(name, value)]));
        assert_eq!(asked("x-request-timeout-ms", "250"), Some(Duration::from_millis(250)));
        assert_eq!(asked("grpc-timeout", "2S"), Some(Duration::from_secs(2)));
        assert_eq!(asked("grpc-timeout", "100m"), Some(Duration::from_millis(100)));
        for wrong in ["", "S", "-1S", "999999999S", "1x"] {
            assert_eq!(asked("grpc-timeout", wrong), None, "{wrong}");
        }
        assert_eq!(asked("x-request-timeout-ms", "soon"), None);
    }

    #[test]
    fn only_a_named_upgrade_is_one() {
        let asks = |connection, upgrade| {
            let headers = fields(&[("connection", connection), ("upgrade", upgrade)]);
            wanted_upgrade(&headers, Version::HTTP_11).is_some()
        };
        assert!(asks("keep-alive, Upgrade", "websocket"));
        assert!(!asks("keep-alive", "websocket"));
        assert!(!asks("Upgrade", "h2c"));
        assert!(!asks("Upgrade", "websocket, H2C"));
    }
}
