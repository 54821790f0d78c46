//! What a client sends: framing and the bodies of the messages.
//!
//! A message is a tag byte, a length that counts itself, and a body. [`split`] cuts whole messages
//! off the front of a buffer; [`Request::parse`] reads one body. Every read is checked against the
//! body's end and every body must be used up, so that a malformed message is refused as such and
//! can neither reach into the next one nor end the server. Text must be UTF-8.
//!
//! Bodies are slices of the input buffer: nothing is copied but what a statement keeps.

use crate::error::{Error, Result, state};
use bytes::{Buf, Bytes, BytesMut};

/// The largest message taken before.
pub const STARTUP_BYTES_MAX: usize = 10_000;

pub const SSL_REQUEST: u32 = 80_877_103;
pub const GSS_REQUEST: u32 = 80_877_104;
pub const CANCEL_REQUEST: u32 = 80_877_102;

/// A message after the startup.
#[derive(Debug)]
pub enum Request {
    Query {
        sql: Text,
    },
    Parse {
        name: Text,
        sql: Text,
        types: Vec<u32>,
    },
    Bind(Bind),
    Describe {
        target: Target,
        name: Text,
    },
    Execute {
        portal: Text,
        n_rows_max: usize,
    },
    Close {
        target: Target,
        name: Text,
    },
    Flush,
    Sync,
    CopyData(Bytes),
    CopyDone,
    CopyFail {
        reason: Text,
    },
    /// Only the authentication reads its body.
    Password,
    Terminate,
}

#[derive(Debug)]
pub struct Bind {
    pub portal: Text,
    pub statement: Text,
    pub formats: Formats,
    pub values: Vec<Option<Bytes>>,
    pub results: Formats,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Statement,
    Portal,
}

/// UTF-8 that lies in the input buffer.
#[derive(Clone, Default)]
pub struct Text(Bytes);

impl std::ops::Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        // Checked where it is made; an empty text is the harmless answer to a bug.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(&**self, f)
    }
}

/// Text or binary, for each of a row's values: none given is text, one given is for all.
#[derive(Clone, Debug, Default)]
pub struct Formats(Vec<bool>);

impl Formats {
    pub fn binary(&self, column: usize) -> bool {
        match self.0.len() {
            0 => false,
            1 => self.0[0],
            _ => self.0.get(column).copied().unwrap_or(false),
        }
    }

    /// Whether the list fits `n` values.
    pub fn fits(&self, n: usize) -> bool {
        self.0.len() <= 1 || self.0.len() == n
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// Cuts the first whole message off `input`; none while it is incomplete. The error is fatal: what
/// follows cannot be told apart.
pub fn split(input: &mut BytesMut, bytes_max: usize) -> Result<Option<(u8, Bytes)>> {
    let [tag, a, b, c, d, ..] = input[..] else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length < 4 || length > bytes_max {
        return Err(violation(format!("invalid message length {length} after {:?}", tag as char)));
    }
    if input.len() < 1 + length {
        return Ok(None);
    }
    let mut message = input.split_to(1 + length);
    message.advance(5);
    Ok(Some((tag, message.freeze())))
}

/// Cuts a message without a tag, as they come before the startup: its code and its body.
pub fn split_startup(input: &mut BytesMut) -> Result<Option<(u32, Bytes)>> {
    let [a, b, c, d, ..] = input[..] else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if !(8..=STARTUP_BYTES_MAX).contains(&length) {
        return Err(violation(format!("invalid length of startup packet: {length}")));
    }
    if input.len() < length {
        return Ok(None);
    }
    let mut message = input.split_to(length);
    message.advance(4);
    let code = message.get_u32();
    Ok(Some((code, message.freeze())))
}

/// The settings of a startup message, in the order sent.
pub fn startup_settings(body: Bytes) -> Result<Vec<(Text, Text)>> {
    let mut body = Body(body);
    let mut settings = Vec::new();
    loop {
        let name = body.text()?;
        if name.is_empty() {
            return Ok(settings);
        }
        settings.push((name, body.text()?));
    }
}

/// The process id and the secret of a cancel request.
pub fn cancel_key(body: Bytes) -> Result<(u32, u32)> {
    let mut body = Body(body);
    Ok((body.u32()?, body.u32()?))
}

impl Request {
    pub fn parse(tag: u8, body: Bytes) -> Result<Request> {
        let mut body = Body(body);
        let request = match tag {
            b'Q' => Request::Query { sql: body.text()? },
            b'P' => {
                let (name, sql) = (body.text()?, body.text()?);
                let n = body.count(4)?;
                let types = (0..n).map(|_| body.u32()).collect::<Result<_>>()?;
                Request::Parse { name, sql, types }
            }
            b'B' => {
                let (portal, statement) = (body.text()?, body.text()?);
                let formats = body.formats()?;
                let n = body.count(4)?;
                let values = (0..n).map(|_| body.value()).collect::<Result<_>>()?;
                let results = body.formats()?;
                Request::Bind(Bind { portal, statement, formats, values, results })
            }
            b'D' => Request::Describe { target: body.target()?, name: body.text()? },
            b'C' => Request::Close { target: body.target()?, name: body.text()? },
            b'E' => {
                let portal = body.text()?;
                // Zero and, as PostgreSQL has it, anything negative mean all rows.
                let n_rows_max = match body.u32()?.cast_signed() {
                    n if n > 0 => n as usize,
                    _ => usize::MAX,
                };
                Request::Execute { portal, n_rows_max }
            }
            b'H' => Request::Flush,
            b'S' => Request::Sync,
            b'd' => return Ok(Request::CopyData(body.0)),
            b'c' => Request::CopyDone,
            b'f' => Request::CopyFail { reason: body.text()? },
            b'p' => return Ok(Request::Password),
            b'X' => Request::Terminate,
            other => return Err(violation(format!("invalid frontend message type {other}"))),
        };
        if !body.0.is_empty() {
            return Err(violation("invalid message format: it goes on after its end"));
        }
        Ok(request)
    }
}

/// Whether a message belongs to the extended protocol, whose errors skip to the next Sync.
pub fn is_extended(tag: u8) -> bool {
    matches!(tag, b'P' | b'B' | b'D' | b'E' | b'C' | b'H')
}

pub fn violation(message: impl Into<String>) -> Error {
    Error::new(state::PROTOCOL_VIOLATION, message)
}

/// What remains of a message's body.
struct Body(Bytes);

impl Body {
    fn need(&self, n: usize) -> Result<()> {
        if self.0.len() < n {
            return Err(violation("insufficient data left in message"));
        }
        Ok(())
    }

    fn u16(&mut self) -> Result<u16> {
        self.need(2)?;
        Ok(self.0.get_u16())
    }

    fn u32(&mut self) -> Result<u32> {
        self.need(4)?;
        Ok(self.0.get_u32())
    }

    /// How many things of at least `bytes_each` follow.
    fn count(&mut self, bytes_each: usize) -> Result<usize> {
        let n = usize::from(self.u16()?);
        self.need(n * bytes_each)?;
        Ok(n)
    }

    fn text(&mut self) -> Result<Text> {
        let Some(end) = self.0.iter().position(|&byte| byte == 0) else {
            return Err(violation("invalid string in message"));
        };
        let text = self.0.split_to(end);
        self.0.advance(1);
        utf8(text)
    }

    fn formats(&mut self) -> Result<Formats> {
        let n = self.count(2)?;
        let code = |body: &mut Body| match body.u16()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(violation(format!("unsupported format code: {other}"))),
        };
        (0..n).map(|_| code(self)).collect::<Result<_>>().map(Formats)
    }

    fn value(&mut self) -> Result<Option<Bytes>> {
        match self.u32()?.cast_signed() {
            -1 => Ok(None),
            n if n < 0 => Err(violation("invalid length of a parameter's value")),
            n => {
                self.need(n as usize)?;
                Ok(Some(self.0.split_to(n as usize)))
            }
        }
    }

    fn target(&mut self) -> Result<Target> {
        self.need(1)?;
        match self.0.get_u8() {
            b'S' => Ok(Target::Statement),
            b'P' => Ok(Target::Portal),
            other => Err(violation(format!("invalid target {other} of a message"))),
        }
    }
}

fn utf8(bytes: Bytes) -> Result<Text> {
    match std::str::from_utf8(&bytes) {
        Ok(_) => Ok(Text(bytes)),
        Err(error) => {
            let byte = bytes.get(error.valid_up_to()).copied().unwrap_or_default();
            let message = format!("invalid byte sequence for encoding \"UTF8\": 0x{byte:02x}");
            Err(Error::new(state::INVALID_ENCODING, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE_BYTES_MAX: usize = 64 << 20;

    fn parse(tag: u8, body: &[u8]) -> Result<Request> {
        Request::parse(tag, Bytes::copy_from_slice(body))
    }

    #[test]
    fn a_message_comes_whole_or_not_at_all() {
        let mut input = BytesMut::from(&b"Q\0\0\0\x0dselect 1\0S\0\0\0\x04"[..]);
        let whole = input.clone();
        for cut in 0..14 {
            let mut part = BytesMut::from(&whole[..cut]);
            assert!(split(&mut part, MESSAGE_BYTES_MAX).unwrap().is_none());
        }
        let (tag, body) = split(&mut input, MESSAGE_BYTES_MAX).unwrap().unwrap();
        assert!(
            matches!(Request::parse(tag, body), Ok(Request::Query { sql }) if &*sql == "select 1")
        );
        assert_eq!(split(&mut input, MESSAGE_BYTES_MAX).unwrap().unwrap().0, b'S');
        assert!(input.is_empty());
    }

    /// Every prefix of good messages, and lengths that lie: an error each, never a panic.
    #[test]
    fn malformed_bodies_are_refused() {
        let bind = b"p\0s\0\0\x01\0\x01\0\x02\0\0\0\x01a\xff\xff\xff\xff\0\0";
        assert!(parse(b'B', bind).is_ok());
        for cut in 0..bind.len() {
            assert!(parse(b'B', &bind[..cut]).is_err(), "cut at {cut}");
        }
        for (tag, body) in [
            (b'B', &b"\0\0\0\0\xff\xff"[..]),
            (b'B', b"\0\0\0\0\0\x01\xff\xff\xff\xfe\0\0"),
            (b'B', b"\0\0\0\x01\0\x07\0\0\0\0"),
            (b'P', b"\0select 1\0\xff\xff"),
            (b'Q', b"select 1"),
            (b'Q', b"select 1\0\0"),
            (b'Q', b"\xff\0"),
            (b'D', b"X\0"),
            (b'S', b"x"),
            (b'!', b""),
        ] {
            assert!(parse(tag, body).is_err(), "{} {body:?}", tag as char);
        }
        for length in [0u32, 3, 1 << 30, u32::MAX] {
            let mut input = BytesMut::from(&b"Q"[..]);
            input.extend_from_slice(&length.to_be_bytes());
            assert!(split(&mut input, MESSAGE_BYTES_MAX).is_err());
            assert!(split_startup(&mut BytesMut::from(&length.to_be_bytes()[..])).is_err());
        }
    }
}
