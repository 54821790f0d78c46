//! Reads HTTP/1.1 answers as well-behaved servers send them, in whatever pieces they arrive: a
//! status line, headers, and a body by Content-Length or in chunks. Bodies are counted, not kept.
//! Not here: informational answers, bodies that end with the connection, HEAD.

/// One answer, read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Whether the connection may be used again.
    pub keep: bool,
}

/// The server said what HTTP does not allow, or what this reader does not know.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

pub struct Reader {
    head: Vec<u8>,
    body: Option<(Answer, Body)>,
}

enum Body {
    /// Bytes that are still to come.
    Sized(u64),
    /// The line with a chunk's size, as far as it has come.
    ChunkSize(Vec<u8>),
    /// Bytes of this chunk that are still to come, its line end included.
    Chunk(u64),
    /// Lines up to an empty one; the bytes of the present line.
    Trailer(usize),
}

const HEAD_MAX: usize = 16 * 1024;

impl Reader {
    pub fn new() -> Reader {
        Reader { head: Vec::new(), body: None }
    }

    /// Takes in what has arrived; `Some` when that completes the answer. Bytes behind the end are
    /// malformed: nobody has asked for more.
    pub fn read(&mut self, mut bytes: &[u8]) -> Result<Option<Answer>, Malformed> {
        if self.body.is_none() {
            let searched = self.head.len().saturating_sub(3);
            self.head.extend_from_slice(bytes);
            let Some(end) = find(&self.head[searched..], b"\r\n\r\n") else {
                return if self.head.len() > HEAD_MAX { Err(Malformed) } else { Ok(None) };
            };
            let n_head = searched + end + 4;
            bytes = &bytes[bytes.len() - (self.head.len() - n_head)..];
            self.body = Some(parse(&self.head[..n_head])?);
            self.head.clear();
        }
        let Some((answer, body)) = &mut self.body else { return Err(Malformed) };
        if !body.read(&mut bytes)? {
            return Ok(None);
        }
        let answer = *answer;
        self.body = None;
        if bytes.is_empty() { Ok(Some(answer)) } else { Err(Malformed) }
    }
}

impl Body {
    /// Whether the body has ended; `bytes` is left at what stands behind.
    fn read(&mut self, bytes: &mut &[u8]) -> Result<bool, Malformed> {
        loop {
            match self {
                Body::Sized(left) => {
                    skip(left, bytes);
                    return Ok(*left == 0);
                }
                Body::ChunkSize(line) => {
                    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
                        line.extend_from_slice(bytes);
                        *bytes = &[];
                        return if line.len() > HEAD_MAX { Err(Malformed) } else { Ok(false) };
                    };
                    line.extend_from_slice(&bytes[..end]);
                    *bytes = &bytes[end + 1..];
                    let line = std::str::from_utf8(line).map_err(|_| Malformed)?;
                    let size = line.split(';').next().unwrap_or("").trim();
                    let size = u64::from_str_radix(size, 16).map_err(|_| Malformed)?;
                    *self = match size {
                        0 => Body::Trailer(0),
                        _ => Body::Chunk(size.checked_add(2).ok_or(Malformed)?),
                    };
                }
                Body::Chunk(left) => {
                    skip(left, bytes);
                    if *left > 0 {
                        return Ok(false);
                    }
                    *self = Body::ChunkSize(Vec::new());
                }
                Body::Trailer(n_line) => {
                    let Some((byte, rest)) = bytes.split_first() else { return Ok(false) };
                    *bytes = rest;
                    match byte {
                        b'\n' if *n_line == 0 => return Ok(true),
                        b'\n' => *n_line = 0,
                        b'\r' => {}
                        _ => *n_line += 1,
                    }
                }
            }
        }
    }
}

fn skip(left: &mut u64, bytes: &mut &[u8]) {
    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
    *left -= n as u64;
    *bytes = &bytes[n..];
}

fn parse(head: &[u8]) -> Result<(Answer, Body), Malformed> {
    let head = std::str::from_utf8(head).map_err(|_| Malformed)?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")).ok_or(Malformed)?;
    let status: u16 = status.get(..3).and_then(|code| code.parse().ok()).ok_or(Malformed)?;
    let mut body = None;
    let mut keep = true;
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').ok_or(Malformed)?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            body = Some(Body::Sized(value.parse().map_err(|_| Malformed)?));
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            body = Some(Body::ChunkSize(Vec::new()));
        } else if name.eq_ignore_ascii_case("connection") {
            keep = !value.eq_ignore_ascii_case("close");
        }
    }
    match (status, body) {
        (204 | 304, _) => Ok((Answer { status, keep }, Body::Sized(0))),
        (_, Some(body)) => Ok((Answer { status, keep }, body)),
        (_, None) => Err(Malformed),
    }
}

pub fn find(within: &[u8], what: &[u8]) -> Option<usize> {
    within.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::{Answer, Malformed, Reader};

    /// The answer to `text`, the same whether it arrives whole, bytewise or cut anywhere.
    fn read(text: &str) -> Result<Option<Answer>, Malformed> {
        let whole = Reader::new().read(text.as_bytes());
        for cut in 0..=text.len() {
            let mut reader = Reader::new();
            let (first, second) = text.as_bytes().split_at(cut);
            let cut = match reader.read(first) {
                Ok(None) if !second.is_empty() => reader.read(second),
                other => other,
            };
            if whole.is_ok() {
                assert_eq!(cut, whole, "{text:?}");
            }
        }
        let mut reader = Reader::new();
        let mut bytewise = Ok(None);
        for byte in text.as_bytes() {
            bytewise = reader.read(std::slice::from_ref(byte));
            if bytewise != Ok(None) {
                break;
            }
        }
        if whole.is_ok() {
            assert_eq!(bytewise, whole, "{text:?}");
        }
        whole
    }

    #[test]
    fn answers_end_where_their_length_or_last_chunk_says() {
        let ok = |status, keep| Ok(Some(Answer { status, keep }));
        assert_eq!(read("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"), ok(200, true));
        assert_eq!(read("HTTP/1.1 200 OK\r\ncontent-length:3\r\n\r\nab"), Ok(None));
        assert_eq!(
            read("HTTP/1.1 503 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"),
            ok(503, false)
        );
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(
            read(&format!("{chunked}3\r\nabc\r\n1a;x=y\r\n{:26}\r\n0\r\n\r\n", "")),
            ok(200, true)
        );
        assert_eq!(read(&format!("{chunked}0\r\nA: b\r\n\r\n")), ok(200, true));
        assert_eq!(read(&format!("{chunked}3\r\nabc\r\n0\r\n")), Ok(None));
        assert_eq!(read("HTTP/1.1 204 None\r\n\r\n"), ok(204, true));
    }

    #[test]
    fn what_is_no_answer_is_malformed() {
        assert_eq!(read("SSH-2.0\r\n\r\n"), Err(Malformed));
        assert_eq!(read("HTTP/1.1 200 OK\r\n\r\n"), Err(Malformed));
        assert_eq!(read("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc"), Err(Malformed));
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(read(&format!("{chunked}zz\r\n")), Err(Malformed));
    }
}
