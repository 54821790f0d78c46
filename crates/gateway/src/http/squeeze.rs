//! Answers that are text, compressed on their way (gzip, RFC 1952), for clients that take it
//! (RFC 9110, 12.5.3).
//!
//! What is small, compressed already, a part of something, a stream of events, or not to be changed
//! (`no-transform`) stays as it is.

use crate::fields::{Fields, name};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{Method, StatusCode};
use std::io::{self, Write};

/// Smaller answers are not worth it.
const BYTES_MIN: u64 = 1024;
/// Beyond this level text gets hardly smaller.
const LEVEL: u32 = 5;
const TEXTS: [&str; 9] = [
    "text/",
    "application/json",
    "application/javascript",
    "application/xml",
    "application/xhtml+xml",
    "application/rss+xml",
    "application/ld+json",
    "application/wasm",
    "image/svg+xml",
];

/// Whether a client takes gzip.
pub fn takes_gzip(fields: &Fields) -> bool {
    let mut codings = fields
        .all(name::ACCEPT_ENCODING)
        .flat_map(|value| value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii));
    codings.any(|coding| {
        let mut parts = coding.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let is_gzip = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(b"gzip"));
        // Of no weight is what is not wanted: `gzip;q=0`, `q=0.000`.
        let is_refused = parts.any(|part| {
            let weight = part.strip_prefix(b"q=").or(part.strip_prefix(b"Q="));
            weight.is_some_and(|weight| weight.iter().all(|byte| matches!(byte, b'0' | b'.')))
        });
        is_gzip && !is_refused
    })
}

/// Whether an answer of so many bytes, where that is told, is worth it; its fields say so then.
pub fn prepare(
    method: &Method,
    status: StatusCode,
    fields: &mut Fields,
    n_bytes: Option<u64>,
    takes_gzip: bool,
) -> bool {
    let kind = fields.ascii(name::CONTENT_TYPE).unwrap_or_default().to_ascii_lowercase();
    let is_text = TEXTS.iter().any(|text| kind.starts_with(text));
    let is_whole = status.is_success()
        && !matches!(status, StatusCode::NO_CONTENT | StatusCode::PARTIAL_CONTENT);
    let is_kept = fields.has(name::CONTENT_ENCODING)
        || kind.starts_with("text/event-stream")
        || fields.all(name::CACHE_CONTROL).any(|value| {
            value.to_ascii_lowercase().windows(12).any(|part| part == b"no-transform")
        });
    if !is_text || !is_whole || is_kept || n_bytes.is_some_and(|n| n < BYTES_MIN) {
        return false;
    }
    // Another client gets another answer, and caches have to know.
    fields.add(name::VARY, "Accept-Encoding");
    if !takes_gzip || *method == Method::HEAD {
        return false;
    }
    fields.remove(name::CONTENT_LENGTH);
    fields.remove(name::ACCEPT_RANGES);
    fields.add(name::CONTENT_ENCODING, "gzip");
    // What is the same in meaning is no longer the same in bytes.
    if let Some(tag) = fields.get(name::ETAG).filter(|tag| !tag.starts_with(b"W/")) {
        let weak = [b"W/", tag].concat();
        fields.set(name::ETAG, weak);
    }
    true
}

/// A body that is being compressed.
pub struct Squeeze {
    encoder: GzEncoder<Vec<u8>>,
    /// Something was put in that may not have come out.
    is_dirty: bool,
    pub is_through: bool,
}

impl Default for Squeeze {
    fn default() -> Squeeze {
        let encoder = GzEncoder::new(Vec::new(), Compression::new(LEVEL));
        Squeeze { encoder, is_dirty: false, is_through: false }
    }
}

impl Squeeze {
    /// What comes out for this; nothing, as a rule, until there is enough.
    pub fn put(&mut self, data: &[u8]) -> io::Result<Bytes> {
        self.encoder.write_all(data)?;
        self.is_dirty = true;
        Ok(self.take())
    }

    /// All that was put in: nothing more comes for now.
    pub fn flush(&mut self) -> io::Result<Bytes> {
        if std::mem::take(&mut self.is_dirty) {
            self.encoder.flush()?;
        }
        Ok(self.take())
    }

    /// The end.
    pub fn finish(&mut self) -> io::Result<Bytes> {
        self.is_through = true;
        self.encoder.try_finish()?;
        Ok(self.take())
    }

    fn take(&mut self) -> Bytes {
        std::mem::take(self.encoder.get_mut()).into()
    }
}
