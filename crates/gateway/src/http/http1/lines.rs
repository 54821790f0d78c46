//! A head's lines, as they are written, and where they may end.

use crate::fields::Fields;
use http::{Method, StatusCode};

/// Whether a head may be whole, of which the first `n_seen` bytes were not.
pub fn may_be_whole(input: &[u8], n_seen: usize) -> bool {
    let new = &input[n_seen.saturating_sub(3).min(input.len())..];
    n_seen == 0
        || new.windows(2).any(|end| end == b"\n\n")
        || new.windows(3).any(|end| end == b"\n\r\n")
}

/// Writes a head, line by line.
pub struct Writer<'a>(pub &'a mut Vec<u8>);

impl Writer<'_> {
    pub fn request(&mut self, method: &Method, target: &str) {
        self.text(method.as_str());
        self.text(" ");
        self.text(target);
        self.text(" HTTP/1.1\r\n");
    }

    pub fn status(&mut self, status: StatusCode) {
        if status == StatusCode::OK {
            return self.text("HTTP/1.1 200 OK\r\n");
        }
        self.text("HTTP/1.1 ");
        self.text(status.as_str());
        self.text(" ");
        self.text(status.canonical_reason().unwrap_or(""));
        self.text("\r\n");
    }

    pub fn field(&mut self, name: &str, value: &[u8]) {
        self.text(name);
        self.text(": ");
        self.0.extend_from_slice(value);
        self.text("\r\n");
    }

    /// All of them but those that `is_ours` names, which are the writer's.
    pub fn fields(&mut self, fields: &Fields, is_ours: impl Fn(&[u8]) -> bool) {
        fields.write(self.0, is_ours);
    }

    pub fn number(&mut self, name: &str, n: u64) {
        // As many digits as there can be.
        let mut digits = [0; 20];
        let mut at = digits.len();
        let mut rest = n;
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.field(name, &digits[at..]);
    }

    pub fn end(&mut self) {
        self.text("\r\n");
    }

    fn text(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }
}
