//! A message's fields, in the order in which they came, as HTTP/1.1 writes them: what passes
//! through is copied once on its way in and once on its way out, and looking for what is not there
//! costs next to nothing.
//!
//! Why not `http::HeaderMap`: with it a fifth of a request's time in user space went into the names'
//! hashes and the values' counts of references. HTTP/2, whose library speaks in such maps, is
//! translated at the edge.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use std::ops::Range;

/// Names of the fields that the gateway knows.
pub mod name {
    pub const ACCEPT_RANGES: &str = "accept-ranges";
    pub const ACCEPT_ENCODING: &str = "accept-encoding";
    pub const ALLOW_CREDENTIALS: &str = "access-control-allow-credentials";
    pub const ALLOW_HEADERS: &str = "access-control-allow-headers";
    pub const ALLOW_METHODS: &str = "access-control-allow-methods";
    pub const ALLOW_ORIGIN: &str = "access-control-allow-origin";
    pub const EXPOSE_HEADERS: &str = "access-control-expose-headers";
    pub const MAX_AGE: &str = "access-control-max-age";
    pub const REQUEST_HEADERS: &str = "access-control-request-headers";
    pub const REQUEST_METHOD: &str = "access-control-request-method";
    pub const AGE: &str = "age";
    pub const AUTHORIZATION: &str = "authorization";
    pub const CACHE_CONTROL: &str = "cache-control";
    pub const CONNECTION: &str = "connection";
    pub const CONTENT_ENCODING: &str = "content-encoding";
    pub const CONTENT_LENGTH: &str = "content-length";
    pub const CONTENT_TYPE: &str = "content-type";
    pub const COOKIE: &str = "cookie";
    pub const DATE: &str = "date";
    pub const ETAG: &str = "etag";
    pub const EXPECT: &str = "expect";
    pub const FORWARDED_FOR: &str = "x-forwarded-for";
    pub const FORWARDED_HOST: &str = "x-forwarded-host";
    pub const FORWARDED_PROTO: &str = "x-forwarded-proto";
    pub const GRPC_MESSAGE: &str = "grpc-message";
    pub const GRPC_STATUS: &str = "grpc-status";
    pub const GRPC_TIMEOUT: &str = "grpc-timeout";
    pub const HOST: &str = "host";
    pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
    pub const KEEP_ALIVE: &str = "keep-alive";
    pub const LOCATION: &str = "location";
    pub const ORIGIN: &str = "origin";
    pub const CLIENT_CERT: &str = "x-forwarded-client-cert";
    pub const PRIORITY: &str = "x-request-priority";
    pub const PROXY_AUTHENTICATE: &str = "proxy-authenticate";
    pub const PROXY_CONNECTION: &str = "proxy-connection";
    pub const RANGE: &str = "range";
    pub const RETRY_AFTER: &str = "retry-after";
    pub const SET_COOKIE: &str = "set-cookie";
    pub const TE: &str = "te";
    pub const TIMEOUT: &str = "x-request-timeout-ms";
    pub const TRACE_PARENT: &str = "traceparent";
    pub const TRANSFER_ENCODING: &str = "transfer-encoding";
    pub const UPGRADE: &str = "upgrade";
    pub const USER_AGENT: &str = "user-agent";
    pub const VARY: &str = "vary";
}

#[derive(Clone, Debug, Default)]
pub struct Fields {
    /// `name: value\r\n`, line by line. Lines that were removed are still in it.
    text: Vec<u8>,
    lines: Vec<Line>,
    /// A bit for each name that is there or was, of 64: most names that are looked for have none.
    hints: u64,
}

#[derive(Clone, Copy, Debug)]
struct Line {
    at: u32,
    n_name: u32,
    n_value: u32,
}

/// Fields for which a map has room from the beginning.
const N_MAPPED: usize = 64;

const BETWEEN: &[u8] = b": ";
const BEHIND: &[u8] = b"\r\n";

fn hint(name: &[u8]) -> u64 {
    // Nearly all known names differ in their length or their first letter.
    let first = name.first().map_or(0, |byte| byte | 0x20);
    1 << ((name.len() as u8).wrapping_mul(7).wrapping_add(first) & 63)
}

fn is_value(bytes: &[u8]) -> bool {
    !bytes.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f)
}

impl Line {
    fn name(self, text: &[u8]) -> &[u8] {
        &text[self.at as usize..][..self.n_name as usize]
    }

    fn value(self, text: &[u8]) -> &[u8] {
        &text[self.value_at()]
    }

    fn value_at(self) -> Range<usize> {
        let at = self.at as usize + self.n_name as usize + BETWEEN.len();
        at..at + self.n_value as usize
    }

    fn whole(self, text: &[u8]) -> &[u8] {
        let n = self.n_name as usize + BETWEEN.len() + self.n_value as usize + BEHIND.len();
        &text[self.at as usize..][..n]
    }
}

impl Fields {
    pub fn with_room(n_fields: usize, n_bytes: usize) -> Fields {
        let (text, lines) = (Vec::with_capacity(n_bytes), Vec::with_capacity(n_fields));
        Fields { text, lines, hints: 0 }
    }

    /// One more, behind all others. `name` must be a token and `value` a field's value, as all are
    /// that were parsed: nothing is looked at here.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.text.reserve(name.len() + BETWEEN.len() + value.len() + BEHIND.len());
        let at = self.begin(name);
        self.text.extend_from_slice(value);
        self.end(at, name.len());
    }

    fn begin(&mut self, name: &[u8]) -> usize {
        let at = self.text.len();
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(BETWEEN);
        self.hints |= hint(name);
        at
    }

    fn end(&mut self, at: usize, n_name: usize) {
        let n_value = self.text.len() - at - n_name - BETWEEN.len();
        self.text.extend_from_slice(BEHIND);
        let (at, n_name, n_value) = (at as u32, n_name as u32, n_value as u32);
        self.lines.push(Line { at, n_name, n_value });
    }

    /// One more. What is no value is a bug of whoever adds it, and left out.
    pub fn add(&mut self, name: &str, value: impl AsRef<[u8]>) {
        let value = value.as_ref();
        match is_value(value) {
            true => self.push(name.as_bytes(), value),
            false => tracing::error!(name, "a field was left out, as its value is none"),
        }
    }

    /// One more, with the value that another has, if that is there.
    pub fn add_same(&mut self, name: &str, other: &str) {
        let Some(line) = self.find(other.as_bytes()).next() else { return };
        let value = line.value_at();
        let at = self.begin(name.as_bytes());
        self.text.extend_from_within(value);
        self.end(at, name.len());
    }

    /// All of those, behind all others.
    pub fn extend(&mut self, other: &Fields) {
        for line in &other.lines {
            self.push(line.name(&other.text), line.value(&other.text));
        }
    }

    /// The only one of its name.
    pub fn set(&mut self, name: &str, value: impl AsRef<[u8]>) {
        self.remove(name);
        self.add(name, value);
    }

    #[inline]
    pub fn remove(&mut self, name: &str) {
        if self.hints & hint(name.as_bytes()) != 0 {
            self.retain(|line_name| !line_name.eq_ignore_ascii_case(name.as_bytes()));
        }
    }

    /// Keeps those whose names `is_kept` is true of.
    pub fn retain(&mut self, is_kept: impl Fn(&[u8]) -> bool) {
        let text = &self.text;
        self.lines.retain(|line| is_kept(line.name(text)));
    }

    /// The values of that name.
    #[inline]
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.find(name.as_bytes()).map(|line| line.value(&self.text))
    }

    #[inline]
    fn find<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = Line> {
        let lines = if self.hints & hint(name) == 0 { &[][..] } else { &self.lines[..] };
        lines.iter().copied().filter(|line| line.name(&self.text).eq_ignore_ascii_case(name))
    }

    /// The first value of that name.
    #[inline]
    pub fn get<'a>(&'a self, name: &'a str) -> Option<&'a [u8]> {
        self.all(name).next()
    }

    /// As [`Fields::get`], where it is ASCII.
    #[inline]
    pub fn ascii<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        ascii(self.get(name)?)
    }

    #[inline]
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub fn n(&self) -> usize {
        self.lines.len()
    }

    /// What it takes.
    pub fn n_bytes(&self) -> usize {
        self.text.capacity() + self.lines.capacity() * size_of::<Line>()
    }

    /// Writes them as HTTP/1.1 does, without those whose names `is_left_out` is true of.
    pub fn write(&self, out: &mut Vec<u8>, is_left_out: impl Fn(&[u8]) -> bool) {
        for line in &self.lines {
            if !is_left_out(line.name(&self.text)) {
                out.extend_from_slice(line.whole(&self.text));
            }
        }
    }

    /// As HTTP/2's library has them; none where they are more than it can hold, which no head of a
    /// message is.
    pub fn to_map(&self) -> Option<HeaderMap> {
        let text = Bytes::copy_from_slice(&self.text);
        let mut map = HeaderMap::with_capacity(self.lines.len().min(N_MAPPED));
        for line in &self.lines {
            let name = HeaderName::from_bytes(line.name(&text)).ok()?;
            let value = text.slice_ref(line.value(&text));
            let value = HeaderValue::from_maybe_shared(value).ok()?;
            map.try_append(name, value).ok()?;
        }
        Some(map)
    }
}

/// A name that HTTP/1.1 cannot have.
#[derive(Debug, thiserror::Error)]
#[error("a field's name is no token: {0:?}")]
pub struct NoToken(String);

/// As HTTP/2 has them: a client may send its cookies in pieces, which HTTP/1.1 wants in one
/// (RFC 9113, 8.2.3).
impl TryFrom<&HeaderMap> for Fields {
    type Error = NoToken;

    fn try_from(map: &HeaderMap) -> Result<Fields, NoToken> {
        let n_bytes = map.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        let mut fields = Fields::with_room(map.len(), n_bytes);
        for (name, value) in map {
            if is_no_token(name) {
                return Err(NoToken(name.to_string()));
            }
            if name != header::COOKIE {
                fields.push(name.as_str().as_bytes(), value.as_bytes());
            }
        }
        let cookies: Vec<&[u8]> =
            map.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if !cookies.is_empty() {
            fields.push(name::COOKIE.as_bytes(), &cookies.join(&b"; "[..]));
        }
        Ok(fields)
    }
}

/// HTTP/2's library takes names with quotes, which HTTP/1.1 cannot have.
pub fn is_no_token(name: &HeaderName) -> bool {
    name.as_str().contains('"')
}

/// Of a value, where it is ASCII.
pub fn ascii(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value).ok().filter(|text| text.is_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(fields: &Fields) -> String {
        let mut out = Vec::new();
        fields.write(&mut out, |_| false);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn fields_are_found_whatever_their_case_and_stay_in_order() {
        let mut fields = Fields::default();
        for (name, value) in [("Host", "h"), ("X-A", "1"), ("te", ""), ("x-a", "2")] {
            fields.add(name, value);
        }
        assert_eq!(fields.get("host"), Some(&b"h"[..]));
        assert_eq!(fields.all("x-A").collect::<Vec<_>>(), [b"1", b"2"]);
        assert_eq!(fields.ascii("te"), Some(""));
        assert!(!fields.has("hos") && !fields.has("hosts") && !fields.has("tf"));
        assert_eq!(written(&fields), "Host: h\r\nX-A: 1\r\nte: \r\nx-a: 2\r\n");
        fields.set("x-a", "3");
        fields.remove("TE");
        fields.add_same("x-forwarded-host", "host");
        fields.add_same("x-none", "none");
        assert_eq!(written(&fields), "Host: h\r\nx-a: 3\r\nx-forwarded-host: h\r\n");
        assert!(!fields.has("te"));
        let mut out = Vec::new();
        fields.write(&mut out, |name| name == b"Host");
        assert_eq!(out, b"x-a: 3\r\nx-forwarded-host: h\r\n");
    }

    #[test]
    fn what_is_no_value_is_left_out() {
        let mut fields = Fields::default();
        for value in ["a\r\nx: y", "a\nb", "a\0b", "\x7f"] {
            fields.add("x", value);
        }
        assert_eq!(written(&fields), "");
        fields.add("x", "a\tb\u{e9}");
        assert_eq!(fields.get("x"), Some("a\tb\u{e9}".as_bytes()));
    }

    #[test]
    fn a_map_is_the_same_there_and_back() {
        let mut map = HeaderMap::new();
        map.append("x-a", HeaderValue::from_static("1"));
        map.append("x-a", HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(Fields::try_from(&map).unwrap().to_map().unwrap(), map);
        for cookie in ["a=1", "b=2", "c=3"] {
            map.append("cookie", HeaderValue::from_static(cookie));
        }
        let fields = Fields::try_from(&map).unwrap();
        assert_eq!((fields.n(), fields.ascii("cookie")), (3, Some("a=1; b=2; c=3")));
        assert_eq!(fields.ascii("x-a"), Some("1"));
        map.append(HeaderName::from_lowercase(b"a\"b").unwrap(), HeaderValue::from_static(""));
        assert!(Fields::try_from(&map).is_err());
        let mut upper = Fields::default();
        upper.add("X-Upper", "v");
        assert_eq!(upper.to_map().unwrap()["x-upper"], "v");
        for n in 0..40_000 {
            upper.add(&format!("x{n}"), "v");
        }
        assert!(upper.to_map().is_none());
    }
}
