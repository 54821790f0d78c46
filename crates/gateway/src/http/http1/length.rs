//! Where a body ends, for who reads it and for who writes it.
//!
//! ```text
//!   Told(5)       hello
//!   Chunked       5;extension\r\n hello \r\n 0\r\n trailer: x\r\n \r\n
//!   UntilClosed   hello <end of the connection>
//! ```

use super::Error;
use super::lines::{Writer, may_be_whole};
use crate::fields;
use crate::fields::name;
use bytes::Bytes;
use http::HeaderMap;
use http::header::{self, HeaderName, HeaderValue};
use httparse::Status;

/// A line between chunks, its extensions among it.
const LINE_BYTES_MAX: usize = 4096;
/// Such lines of one body: extensions that outweigh what they stand beside are an attack.
const EXTENSION_BYTES_MAX: u64 = 16 << 10;
const TRAILER_BYTES_MAX: usize = 16 << 10;
const TRAILER_FIELDS_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    Told(u64),
    Chunked,
    UntilClosed,
}

/// A piece of a body.
#[derive(Debug, PartialEq)]
pub enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// Reads a body.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    n_extension_bytes: u64,
    /// Of the trailers, without their end.
    n_seen: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes of the body's.
    Told(u64),
    ChunkSize,
    /// So many bytes of the chunk's.
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    UntilClosed,
    Ended,
    /// What came cannot be read, and nothing behind it is.
    Broken,
}

impl Decoder {
    pub fn new(length: Length) -> Decoder {
        let state = match length {
            Length::Told(0) => State::Ended,
            Length::Told(n) => State::Told(n),
            Length::Chunked => State::ChunkSize,
            Length::UntilClosed => State::UntilClosed,
        };
        Decoder { state, n_extension_bytes: 0, n_seen: 0 }
    }

    /// Nothing more comes.
    pub fn is_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// How much is to come, where that was told.
    pub fn n_left(&self) -> Option<u64> {
        match self.state {
            State::Told(n) => Some(n),
            State::Ended => Some(0),
            _ => None,
        }
    }

    /// The next piece of what has come; none: more must come, or it is at its end.
    pub fn next(&mut self, input: &mut Bytes) -> Result<Option<Piece>, Error> {
        let next = self.read(input);
        if next.is_err() {
            self.state = State::Broken;
        }
        next
    }

    fn read(&mut self, input: &mut Bytes) -> Result<Option<Piece>, Error> {
        loop {
            if self.state == State::Ended || input.is_empty() {
                return Ok(None);
            }
            match self.state {
                State::Told(n) => return Ok(Some(self.data(n, State::Ended, State::Told, input))),
                State::ChunkData(n) => {
                    return Ok(Some(self.data(n, State::ChunkEnd, State::ChunkData, input)));
                }
                State::UntilClosed => {
                    let all = input.split_to(input.len());
                    return Ok(Some(Piece::Data(all)));
                }
                State::ChunkSize => {
                    let Some(line) = line(input)? else { return Ok(None) };
                    let (n, n_digits) = size(&line)?;
                    self.n_extension_bytes += (line.len() - n_digits) as u64;
                    if self.n_extension_bytes > EXTENSION_BYTES_MAX {
                        return Err(Error::Malformed("more chunk extensions than content"));
                    }
                    self.state = if n == 0 { State::Trailers } else { State::ChunkData(n) };
                }
                State::ChunkEnd => {
                    if !b"\r\n".starts_with(&input[..input.len().min(2)]) {
                        return Err(Error::Malformed("a chunk is longer than it says"));
                    }
                    if input.len() < 2 {
                        return Ok(None);
                    }
                    drop(input.split_to(2));
                    self.state = State::ChunkSize;
                }
                State::Trailers => {
                    if input.starts_with(b"\r\n") {
                        drop(input.split_to(2));
                        self.state = State::Ended;
                        return Ok(None);
                    }
                    if !may_be_whole(input, self.n_seen) && input.len() < TRAILER_BYTES_MAX {
                        self.n_seen = input.len();
                        return Ok(None);
                    }
                    let Some(fields) = trailers(input)? else {
                        self.n_seen = input.len();
                        return Ok(None);
                    };
                    self.state = State::Ended;
                    return Ok(Some(Piece::Trailers(fields)));
                }
                State::Ended => return Ok(None),
                State::Broken => return Err(Error::Malformed("what comes behind a wrong chunk")),
            }
        }
    }

    /// The connection has ended; whether the body may end so.
    pub fn close(&mut self) -> Result<(), Error> {
        match self.state {
            State::Ended => Ok(()),
            State::UntilClosed => {
                self.state = State::Ended;
                Ok(())
            }
            _ => Err(Error::Cut),
        }
    }

    fn data(&mut self, n: u64, after: State, within: fn(u64) -> State, input: &mut Bytes) -> Piece {
        // As much as there is, which fits.
        let n_here = n.min(input.len() as u64);
        self.state = if n_here == n { after } else { within(n - n_here) };
        Piece::Data(input.split_to(n_here as usize))
    }
}

/// Takes a line from the input, without its end.
fn line(input: &mut Bytes) -> Result<Option<Bytes>, Error> {
    let Some(at) = input.iter().position(|byte| *byte == b'\n') else {
        return match input.len() > LINE_BYTES_MAX {
            true => Err(Error::Malformed("a chunk's size has no end")),
            false => Ok(None),
        };
    };
    let line = input.split_to(at + 1);
    let is_clean = !line[..at.saturating_sub(1)].contains(&b'\r');
    match line.strip_suffix(b"\r\n") {
        Some(inner) if is_clean && at <= LINE_BYTES_MAX => Ok(Some(line.slice_ref(inner))),
        _ => Err(Error::Malformed("a chunk's size does not end in a line of its own")),
    }
}

/// A chunk's size, and how many bytes tell it.
fn size(line: &[u8]) -> Result<(u64, usize), Error> {
    let n_digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (digits, rest) = line.split_at(n_digits);
    // RFC 9112, 7.1.1: space before an extension is bad, and old.
    let is_space = |byte: &&u8| matches!(byte, b' ' | b'\t');
    let is_plain = matches!(rest.iter().find(|byte| !is_space(byte)), None | Some(b';'));
    let n = std::str::from_utf8(digits).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
    match n {
        Some(n) if is_plain && n_digits <= 16 => Ok((n, n_digits)),
        _ => Err(Error::Malformed("a chunk's size is no number")),
    }
}

/// Takes the trailers from the input, if they are all there.
fn trailers(input: &mut Bytes) -> Result<Option<HeaderMap>, Error> {
    let mut room = [httparse::EMPTY_HEADER; TRAILER_FIELDS_MAX];
    let (n_bytes, fields) = match httparse::parse_headers(input, &mut room)? {
        Status::Partial if input.len() < TRAILER_BYTES_MAX => return Ok(None),
        Status::Complete((n_bytes, parsed)) if n_bytes <= TRAILER_BYTES_MAX => {
            // Chunks end in whole lines; who looks for those must not find another end.
            let mut lines = input[..n_bytes].split_inclusive(|byte| *byte == b'\n');
            if !lines.all(|line| line.ends_with(b"\r\n")) {
                return Err(Error::Malformed("a trailer's line does not end in CR LF"));
            }
            let mut fields = HeaderMap::with_capacity(parsed.len());
            for field in parsed {
                let name = HeaderName::from_bytes(field.name.as_bytes());
                let value = HeaderValue::from_bytes(field.value);
                let (Ok(name), Ok(value)) = (name, value) else {
                    return Err(Error::Malformed("a trailer"));
                };
                fields.try_append(name, value).map_err(|_| Error::HeadTooLarge)?;
            }
            (n_bytes, fields)
        }
        _ => return Err(Error::HeadTooLarge),
    };
    drop(input.split_to(n_bytes));
    Ok(Some(fields))
}

/// Writes a body.
#[derive(Debug)]
pub enum Encoder {
    /// So many bytes are to follow.
    Told(u64),
    Chunked,
    UntilClosed,
}

impl Encoder {
    pub fn new(length: Length) -> Encoder {
        match length {
            Length::Told(n) => Encoder::Told(n),
            Length::Chunked => Encoder::Chunked,
            Length::UntilClosed => Encoder::UntilClosed,
        }
    }

    /// What stands before this piece of content, which is not empty; false: there is more of it
    /// than was told.
    pub fn before(&mut self, out: &mut Vec<u8>, n_bytes: usize) -> bool {
        match self {
            Encoder::Told(n_left) => match n_left.checked_sub(n_bytes as u64) {
                Some(left) => *n_left = left,
                None => return false,
            },
            Encoder::Chunked => out.extend_from_slice(format!("{n_bytes:x}\r\n").as_bytes()),
            Encoder::UntilClosed => {}
        }
        true
    }

    /// What stands behind it.
    pub fn after(&self) -> &'static [u8] {
        match self {
            Encoder::Chunked => b"\r\n",
            _ => b"",
        }
    }

    /// Whether all that was told is through.
    pub fn is_through(&self) -> bool {
        matches!(self, Encoder::Told(0))
    }

    /// What stands behind the last one; false: there was less than was told.
    pub fn end(&self, out: &mut Vec<u8>, trailers: Option<&HeaderMap>) -> bool {
        match self {
            Encoder::Told(n_left) => *n_left == 0,
            Encoder::Chunked => {
                out.extend_from_slice(b"0\r\n");
                let mut writer = Writer(out);
                if let Some(trailers) = trailers {
                    for (name, value) in trailers.iter().filter(|(name, _)| !is_forbidden(name)) {
                        writer.field(name.as_str(), value.as_bytes());
                    }
                }
                writer.end();
                true
            }
            Encoder::UntilClosed => true,
        }
    }
}

/// What a recipient might go by must come before the content (RFC 9110, 6.5.1).
fn is_forbidden(name: &HeaderName) -> bool {
    let is_reserved = [
        header::AUTHORIZATION,
        header::CACHE_CONTROL,
        header::CONNECTION,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::HOST,
        header::MAX_FORWARDS,
        header::SET_COOKIE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
    ]
    .contains(name);
    is_reserved || fields::is_no_token(name)
}

impl Writer<'_> {
    /// The field that says where the body ends.
    pub fn length(&mut self, length: Length) {
        match length {
            Length::Told(n) => self.number(name::CONTENT_LENGTH, n),
            Length::Chunked => self.field(name::TRANSFER_ENCODING, b"chunked"),
            Length::UntilClosed => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of a body that comes in pieces of `n_piece` bytes: its content and trailers,
    /// or why not, and what is left behind it.
    fn read(length: Length, text: &[u8], n_piece: usize) -> (String, Bytes) {
        let mut decoder = Decoder::new(length);
        let (mut input, mut content) = (Bytes::new(), String::new());
        let mut pieces = text.chunks(n_piece);
        loop {
            match decoder.next(&mut input) {
                Ok(Some(Piece::Data(data))) => {
                    assert!(!data.is_empty());
                    content += std::str::from_utf8(&data).unwrap();
                }
                Ok(Some(Piece::Trailers(trailers))) => content += &format!(" {trailers:?}"),
                Ok(None) if decoder.is_ended() => break,
                Ok(None) => match pieces.next() {
                    Some(piece) => input = [&input, piece].concat().into(),
                    None => match decoder.close() {
                        Ok(()) => break,
                        Err(error) => return (format!("{content} refused: {error:?}"), input),
                    },
                },
                Err(error) => return (format!("{content} refused: {error}"), input),
            }
        }
        for piece in pieces {
            input = [&input, piece].concat().into();
        }
        (content, input)
    }

    #[test]
    fn a_body_is_the_same_in_whatever_pieces_it_comes() {
        let cases: [(Length, &[u8], &str, &[u8]); 9] = [
            (Length::Told(0), b"next", "", b"next"),
            (Length::Told(5), b"hellonext", "hello", b"next"),
            (Length::Told(5), b"hell", "hell refused: Cut", b""),
            (Length::UntilClosed, b"hello", "hello", b""),
            (Length::Chunked, b"5\r\nhello\r\n0\r\n\r\nnext", "hello", b"next"),
            (Length::Chunked, b"5;a=\"b\"\r\nhello\r\n00\r\n\r\n", "hello", b""),
            (
                Length::Chunked,
                b"A\r\n0123456789\r\na \t;x\r\n0123456789\r\n0\r\n\r\n",
                "01234567890123456789",
                b"",
            ),
            (Length::Chunked, b"1\r\nx\r\n0\r\nA: b\r\n\r\nnext", "x {\"a\": \"b\"}", b"next"),
            (Length::Chunked, b"5\r\nhel", "hel refused: Cut", b""),
        ];
        for (length, text, content, rest) in cases {
            for n_piece in 1..=text.len() {
                let (read, left) = read(length, text, n_piece);
                assert_eq!((read.as_str(), &*left), (content, rest), "{length:?}, by {n_piece}");
            }
        }
    }

    #[test]
    fn a_chunk_that_is_not_plain_is_refused() {
        for text in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "+1\r\n",
            "0x1\r\n",
            " 1\r\n",
            "1 1\r\nx\r\n",
            "1\nx\r\n",
            "1;a\nb\r\nx\r\n",
            "1;a\rb\r\nx\r\n",
            "1\r\nxx\r\n",
            "1\r\nx\n",
            "1\r\nx\rx",
            "10000000000000000\r\n",
            "0\r\na: b\r\n c\r\n\r\n",
            "0\r\nno colon\r\n\r\n",
            "0\r\n\n",
            "0\r\na: b\n\r\n",
            "0\r\na: b\r\n\n",
            "1\x0c\r\nx\r\n",
        ] {
            for n_piece in 1..=text.len() {
                let (outcome, _) = read(Length::Chunked, text.as_bytes(), n_piece);
                let is_refused = outcome.contains("refused") && !outcome.contains("Cut");
                assert!(is_refused, "{text:?}, by {n_piece}: {outcome:?}");
            }
        }
    }

    #[test]
    fn chunks_have_their_limits() {
        let outcome = |text: &str| read(Length::Chunked, text.as_bytes(), text.len()).0;
        let endless = format!("1;{}", "x".repeat(5000));
        assert!(outcome(&endless).contains("no end"));
        let long = format!("1;{}\r\nx\r\n", "x".repeat(5000));
        assert!(outcome(&long).contains("a line of its own"));
        let many = format!("1;{}\r\nx\r\n", "x".repeat(1000)).repeat(20);
        assert!(outcome(&many).contains("more chunk extensions"));
        let trailers = format!("0\r\nx: {}", "y".repeat(20_000));
        assert!(outcome(&trailers).contains("too large"));
        let fields = format!("0\r\n{}\r\n", "x: y\r\n".repeat(100));
        assert!(outcome(&fields).contains("too many headers"));
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let mut encoder = Encoder::new(Length::Chunked);
        let mut out = Vec::new();
        for piece in ["hello", " ", &"x".repeat(300)] {
            assert!(encoder.before(&mut out, piece.len()));
            out.extend_from_slice(piece.as_bytes());
            out.extend_from_slice(encoder.after());
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("1"));
        trailers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("9"));
        let quoted = HeaderName::from_lowercase(b"a\"b").unwrap();
        trailers.insert(quoted, HeaderValue::from_static("9"));
        assert!(encoder.end(&mut out, Some(&trailers)));
        let (content, rest) = read(Length::Chunked, &out, 7);
        assert_eq!(content, format!("hello {} {{\"x-sum\": \"1\"}}", "x".repeat(300)));
        assert!(rest.is_empty());

        let mut told = Encoder::new(Length::Told(5));
        assert!(told.before(&mut out, 3));
        assert!(!told.end(&mut out, None), "two are missing");
        assert!(!told.before(&mut out, 3), "one too many");
        assert!(told.before(&mut out, 2) && told.end(&mut out, None));
    }
}
