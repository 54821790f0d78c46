//! A message's head: its first line and its fields.

use super::Error;
use super::length::Length;
use crate::fields::{Fields, name};
use crate::http::message;
use crate::http::target::Target;
use bytes::{Buf, Bytes};
use http::{Method, StatusCode, Version};
use httparse::{Header, Status};
use std::mem::MaybeUninit;

/// Fields for which there is room without asking for memory; a server's answer may have as many.
const N_USUAL: usize = 128;
/// Fields that are usually added on the way, and their bytes.
const N_ADDED: usize = 6;
const N_ADDED_BYTES: usize = 256;
/// Bytes of a head, of a server's answer.
pub const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What is allowed to whoever sends.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub n_bytes_max: usize,
    pub n_fields_max: usize,
}

#[derive(Debug)]
pub struct Request {
    pub request: message::Request,
    pub length: Length,
    /// Another request may follow.
    pub is_kept: bool,
    /// It waits to be told before it sends its body.
    pub is_waiting: bool,
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub fields: Fields,
    pub length: Length,
    /// Another request may follow.
    pub is_kept: bool,
}

/// What the fields say of the connection and of the body.
struct Framing {
    n_told: Option<u64>,
    is_chunked: bool,
    is_closing: bool,
    is_keeping: bool,
}

impl Request {
    /// Takes a head from the input, if it is all there.
    pub fn read(input: &mut Bytes, limits: Limits) -> Result<Option<Request>, Error> {
        // RFC 9112, 2.2: empty lines before a request are not seen.
        loop {
            match &input[..] {
                [b'\r', b'\n', ..] => input.advance(2),
                [b'\n', ..] => input.advance(1),
                _ => break,
            }
        }
        let (n_bytes, method, target, version, fields, framing) = {
            let mut usual = [const { MaybeUninit::uninit() }; N_USUAL];
            let mut many;
            let room: &mut [MaybeUninit<Header<'_>>] = if limits.n_fields_max <= N_USUAL {
                &mut usual[..limits.n_fields_max]
            } else {
                many = vec![MaybeUninit::uninit(); limits.n_fields_max];
                &mut many
            };
            let mut parsed = httparse::Request::new(&mut []);
            let n_bytes = match parsed.parse_with_uninit_headers(input, room) {
                Ok(Status::Complete(n_bytes)) if n_bytes <= limits.n_bytes_max => n_bytes,
                Ok(Status::Partial) if input.len() < limits.n_bytes_max => return Ok(None),
                Ok(_) => return Err(Error::HeadTooLarge),
                Err(error) => return Err(error.into()),
            };
            let missing = Error::Malformed("the first line is not one");
            let method = parsed.method.ok_or(missing)?;
            let target = parsed.path.ok_or(missing)?;
            if target.len() > usize::from(u16::MAX - 1) {
                return Err(Error::TargetTooLong);
            }
            let method = Method::from_bytes(method.as_bytes())
                .map_err(|_| Error::Malformed("the method"))?;
            let target = Target::parse(target, method == Method::CONNECT)?;
            let version = version(parsed.version);
            let (fields, framing) = fields(n_bytes, parsed.headers)?;
            (n_bytes, method, target, version, fields, framing)
        };
        let length = match (framing.is_chunked, framing.n_told) {
            // RFC 9112, 6.1 and 11.2: what may be an attempt to smuggle a request is refused.
            (true, Some(_)) => return Err(Error::Malformed("a length, and chunks")),
            (true, None) if version < Version::HTTP_11 => {
                return Err(Error::Malformed("chunks in HTTP/1.0"));
            }
            (true, None) => Length::Chunked,
            (false, n_told) => Length::Told(n_told.unwrap_or(0)),
        };
        // What is refused stays, to tell of it.
        input.advance(n_bytes);
        let expects = fields
            .get(name::EXPECT)
            .is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
        Ok(Some(Request {
            is_kept: framing.is_kept(version),
            is_waiting: expects && version == Version::HTTP_11 && length != Length::Told(0),
            request: message::Request { method, target, version, fields },
            length,
        }))
    }
}

impl Answer {
    /// Takes a head from the input, if it is all there.
    pub fn read(input: &mut Bytes, is_head: bool) -> Result<Option<Answer>, Error> {
        let (n_bytes, status, version, fields, framing) = {
            let mut room = [const { MaybeUninit::uninit() }; N_USUAL];
            let mut parsed = httparse::Response::new(&mut []);
            let config = httparse::ParserConfig::default();
            let n_bytes =
                match config.parse_response_with_uninit_headers(&mut parsed, input, &mut room) {
                    Ok(Status::Complete(n_bytes)) => n_bytes,
                    Ok(Status::Partial) if input.len() < ANSWER_BYTES_MAX => return Ok(None),
                    Ok(Status::Partial) => return Err(Error::HeadTooLarge),
                    Err(error) => return Err(error.into()),
                };
            let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
            let status = status.ok_or(Error::Malformed("the status is not one"))?;
            let version = version(parsed.version);
            let (fields, framing) = fields(n_bytes, parsed.headers)?;
            (n_bytes, status, version, fields, framing)
        };
        input.advance(n_bytes);
        let is_bare = is_head
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let length = match (framing.is_chunked, framing.n_told) {
            _ if is_bare => Length::Told(0),
            (true, Some(_)) => return Err(Error::Malformed("a length, and chunks")),
            (true, None) if version < Version::HTTP_11 => {
                return Err(Error::Malformed("chunks in HTTP/1.0"));
            }
            (true, None) => Length::Chunked,
            (false, Some(n_told)) => Length::Told(n_told),
            (false, None) => Length::UntilClosed,
        };
        let is_kept = framing.is_kept(version) && length != Length::UntilClosed;
        Ok(Some(Answer { status, fields, length, is_kept }))
    }
}

fn version(minor: Option<u8>) -> Version {
    if minor == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 }
}

impl Framing {
    fn is_kept(&self, version: Version) -> bool {
        !self.is_closing && (version == Version::HTTP_11 || self.is_keeping)
    }
}

/// The fields of a head of so many bytes.
fn fields(n_bytes: usize, parsed: &[Header<'_>]) -> Result<(Fields, Framing), Error> {
    // Room for those that are added on the way.
    let mut fields = Fields::with_room(parsed.len() + N_ADDED, n_bytes + N_ADDED_BYTES);
    let mut framing =
        Framing { n_told: None, is_chunked: false, is_closing: false, is_keeping: false };
    for Header { name, value } in parsed {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if is(name::CONTENT_LENGTH) {
            let n = n_of(value).ok_or(Error::Malformed("the length is no number"))?;
            if framing.n_told.is_some_and(|told| told != n) {
                return Err(Error::Malformed("two lengths"));
            }
            if framing.n_told.replace(n).is_some() {
                continue;
            }
        } else if is(name::TRANSFER_ENCODING) {
            // Others would have to be taken off here, and twice chunked is a trick.
            let is_chunked = value.eq_ignore_ascii_case(b"chunked");
            if !is_chunked || framing.is_chunked {
                return Err(Error::Malformed("a transfer encoding that is not chunked"));
            }
            framing.is_chunked = true;
        } else if is(name::CONNECTION) {
            for option in value.split(|byte| *byte == b',') {
                let option = option.trim_ascii();
                framing.is_closing |= option.eq_ignore_ascii_case(b"close");
                framing.is_keeping |= option.eq_ignore_ascii_case(b"keep-alive");
            }
        }
        fields.push(name.as_bytes(), value);
    }
    Ok((fields, framing))
}

/// Digits and nothing else: `+1` is a number to some.
fn n_of(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok()?.parse().ok().filter(|_| is_number)
}

impl From<httparse::Error> for Error {
    fn from(error: httparse::Error) -> Error {
        match error {
            httparse::Error::TooManyHeaders => Error::TooManyFields,
            httparse::Error::HeaderName => Error::Malformed("a field's name"),
            httparse::Error::HeaderValue => Error::Malformed("a field's value"),
            httparse::Error::NewLine => Error::Malformed("a line's end"),
            httparse::Error::Status => Error::Malformed("the status is not one"),
            httparse::Error::Token => Error::Malformed("the first line is not one"),
            httparse::Error::Version => Error::Malformed("the version is not one of HTTP/1"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::http1::lines::{Writer, may_be_whole};

    const LIMITS: Limits = Limits { n_bytes_max: 8192, n_fields_max: 100 };

    fn request(text: &str) -> Result<Option<Request>, Error> {
        Request::read(&mut Bytes::copy_from_slice(text.as_bytes()), LIMITS)
    }

    /// What a request's head says of its body and its connection, in a line.
    fn told(text: &str) -> String {
        match request(text) {
            Ok(None) => "more".into(),
            Ok(Some(head)) => {
                let kept = if head.is_kept { "kept" } else { "closed" };
                let waits = if head.is_waiting { ", waits" } else { "" };
                let message::Request { method, target, .. } = head.request;
                format!("{method:?} {} {:?}, {kept}{waits}", target.text(), head.length)
            }
            Err(error) => format!("{error:?}"),
        }
    }

    #[test]
    fn a_requests_head_says_where_its_body_ends() {
        let body = "POST / HTTP/1.1\r\nhost: h\r\n";
        for (text, outcome) in [
            ("GET /a?b HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(), "GET /a?b Told(0), kept"),
            ("\r\n\r\nGET / HTTP/1.1\r\n\r\n".into(), "GET / Told(0), kept"),
            ("GET / HTTP/1.1\nhost: h\n\n".into(), "GET / Told(0), kept"),
            ("GET / HTTP/1.1\r\nhost: h\r\n".into(), "more"),
            ("GET / HTTP/1.0\r\n\r\n".into(), "GET / Told(0), closed"),
            ("GET / HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n".into(), "GET / Told(0), kept"),
            (
                "GET / HTTP/1.1\r\nconnection: x, Close\r\nconnection: keep-alive\r\n\r\n".into(),
                "GET / Told(0), closed",
            ),
            (format!("{body}content-length: 5\r\n\r\n"), "POST / Told(5), kept"),
            (
                format!("{body}content-length: 5\r\ncontent-length: 5\r\n\r\n"),
                "POST / Told(5), kept",
            ),
            (format!("{body}Transfer-Encoding: Chunked\r\n\r\n"), "POST / Chunked, kept"),
            (
                format!("{body}expect: 100-Continue\r\ncontent-length: 5\r\n\r\n"),
                "POST / Told(5), kept, waits",
            ),
            (
                format!("{body}expect: 100-continue\r\ncontent-length: 0\r\n\r\n"),
                "POST / Told(0), kept",
            ),
        ] {
            assert_eq!(told(&text), outcome, "{text:?}");
        }
    }

    #[test]
    fn what_two_readers_might_read_in_two_ways_is_refused() {
        let long = format!("content-length: {}", u128::MAX);
        for fields in [
            "content-length: 5\r\ntransfer-encoding: chunked",
            "transfer-encoding: chunked\r\ncontent-length: 5",
            "content-length: 5\r\ncontent-length: 6",
            "content-length: 5, 5",
            "content-length: +5",
            "content-length: -5",
            "content-length: 0x5",
            "content-length:",
            "content-length: 5 5",
            &long,
            "transfer-encoding: gzip, chunked",
            "transfer-encoding: chunked, chunked",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
            "transfer-encoding: xchunked",
            "transfer-encoding: \"chunked\"",
            "transfer-encoding:",
            "transfer-encoding : chunked",
            " transfer-encoding: chunked",
            "x: a\r\n b",
            "x: a\rb",
            "x: a\0b",
            "x\0: a",
            ": a",
            "no colon",
        ] {
            let told = told(&format!("POST / HTTP/1.1\r\nhost: h\r\n{fields}\r\n\r\n"));
            assert!(told.starts_with("Malformed"), "{fields:?}: {told}");
        }
        let old = "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n";
        assert!(told(old).starts_with("Malformed"));
        for line in [
            "GET  / HTTP/1.1",
            "GET / HTTP/1.1 ",
            "GET / HTTP/2.0",
            "GET / http/1.1",
            "GET /",
            "GET",
            "G@T / HTTP/1.1",
            "GET /a b HTTP/1.1",
            "GET /a\tb HTTP/1.1",
        ] {
            let told = told(&format!("{line}\r\nhost: h\r\n\r\n"));
            assert!(told.starts_with("Malformed"), "{line:?}: {told}");
        }
    }

    #[test]
    fn a_head_has_its_limits() {
        let fields = |n: usize, field: &str| format!("GET / HTTP/1.1\r\n{}\r\n", field.repeat(n));
        assert_eq!(told(&fields(100, "x: y\r\n")), "GET / Told(0), kept");
        assert_eq!(told(&fields(101, "x: y\r\n")), "TooManyFields");
        let wide = format!("x: {}\r\n", "y".repeat(4090));
        assert_eq!(told(&fields(1, &wide)), "GET / Told(0), kept");
        assert_eq!(told(&fields(2, &wide)), "HeadTooLarge");
        assert_eq!(told(&format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(9000))), "HeadTooLarge");
        let many = Limits { n_bytes_max: 1 << 20, n_fields_max: 1000 };
        let mut input = Bytes::from(fields(1000, "x: y\r\n"));
        let head = Request::read(&mut input, many).unwrap().unwrap();
        assert_eq!((head.request.fields.n(), input.len()), (1000, 0));
        let target = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(70_000));
        assert!(matches!(Request::read(&mut target.into(), many), Err(Error::TargetTooLong)));
    }

    #[test]
    fn what_follows_a_head_stays() {
        let mut input = Bytes::from_static(b"GET / HTTP/1.1\r\n\r\nGET /next");
        assert!(Request::read(&mut input, LIMITS).unwrap().is_some());
        assert_eq!(input, "GET /next");
        assert!(Request::read(&mut input, LIMITS).unwrap().is_none());
        assert_eq!(input, "GET /next");
    }

    #[test]
    fn an_answers_head_says_where_its_body_ends() {
        let told = |text: &str, is_head: bool| match Answer::read(
            &mut Bytes::copy_from_slice(text.as_bytes()),
            is_head,
        ) {
            Ok(None) => "more".into(),
            Ok(Some(answer)) => {
                let kept = if answer.is_kept { "kept" } else { "closed" };
                format!("{} {:?}, {kept}", answer.status.as_u16(), answer.length)
            }
            Err(Error::Malformed(_)) => "malformed".into(),
            Err(error) => format!("{error:?}"),
        };
        for (text, outcome) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", "200 Told(5), kept"),
            ("HTTP/1.1 200\r\ncontent-length: 5\r\n\r\n", "200 Told(5), kept"),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "200 Chunked, kept"),
            ("HTTP/1.1 200 OK\r\n\r\n", "200 UntilClosed, closed"),
            ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\n", "200 Told(5), closed"),
            (
                "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\n",
                "200 Told(5), kept",
            ),
            (
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\n",
                "200 Told(5), closed",
            ),
            ("HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n", "204 Told(0), kept"),
            ("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", "304 Told(0), kept"),
            ("HTTP/1.1 100 Continue\r\n\r\n", "100 Told(0), kept"),
            ("HTTP/1.1 200 OK\r\n", "more"),
            ("HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n", "999 Told(0), kept"),
            ("HTTP/1.1 099 Odd\r\ncontent-length: 0\r\n\r\n", "malformed"),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
                "malformed",
            ),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n", "malformed"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", "malformed"),
            ("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "malformed"),
            ("HTTP/1.1 200 OK\r\nx: a\r\n b\r\n\r\n", "malformed"),
            ("SSH-2.0-OpenSSH\r\n\r\n", "malformed"),
        ] {
            assert_eq!(told(text, false), outcome, "{text:?}");
        }
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
        assert_eq!(told(head, true), "200 Told(0), kept");
    }

    #[test]
    fn a_head_is_looked_for_again_only_where_it_may_end() {
        let head = b"GET / HTTP/1.1\r\nhost: h\r\nx: y\r\n\r\n";
        for n_seen in 0..head.len() {
            for n in n_seen + 1..=head.len() {
                let is_whole = n == head.len();
                let may_be = may_be_whole(&head[..n], n_seen);
                assert!(may_be || !is_whole, "{n_seen} of {n}");
                assert!(!may_be || is_whole || n_seen == 0, "{n_seen} of {n}");
            }
        }
        assert!(may_be_whole(b"GET / HTTP/1.1\n\n", 15));
    }

    #[test]
    fn a_head_is_written_line_by_line() {
        let mut out = Vec::new();
        let mut to = Writer(&mut out);
        to.request(&Method::GET, "/?a");
        let mut fields = Fields::default();
        fields.add("host", "h");
        fields.add("Content-Length", "7");
        to.fields(&fields, |name| name == b"Content-Length");
        to.length(Length::Told(u64::MAX));
        to.number("x", 0);
        to.length(Length::Chunked);
        to.length(Length::UntilClosed);
        to.end();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.split("\r\n").collect();
        let length = "content-length: 18446744073709551615";
        let chunked = "transfer-encoding: chunked";
        assert_eq!(lines, ["GET /?a HTTP/1.1", "host: h", length, "x: 0", chunked, "", ""]);
        let mut out = Vec::new();
        for code in [200, 404, 799] {
            Writer(&mut out).status(StatusCode::from_u16(code).unwrap());
        }
        assert_eq!(out, b"HTTP/1.1 200 OK\r\nHTTP/1.1 404 Not Found\r\nHTTP/1.1 799 \r\n");
    }
}
