//! COPY: lines of text or CSV to rows, and rows to lines.
//!
//! Bytes arrive cut anywhere. Whole lines are taken from a buffer, their fields read as the
//! columns' types and gathered into chunks of rows, each of which is locked and buffered at once. The
//! whole COPY is one statement of one transaction.

use crate::catalog::Table;
use crate::error::{Error, Result, state};
use crate::parse::CopyOptions;
use crate::types::{Datum, Row, Type, Zone, text};

/// Cuts and reads the bytes of COPY FROM.
pub struct Reader {
    options: CopyOptions,
    /// Name and type of each column that a line has a field for.
    columns: Vec<(String, Type)>,
    table: String,
    zone: Zone,
    buffer: Vec<u8>,
    /// Bytes of the buffer already looked at without finding a line's end, and whether they end
    /// inside of quotes.
    seen: usize,
    in_quotes: bool,
    line_number: u64,
    header_to_skip: bool,
    ended: bool,
    scratch: Vec<u8>,
    /// A line longer than this is refused: something is wrong with its quotes or its end.
    line_bytes_max: usize,
}

impl Reader {
    pub fn new(
        options: CopyOptions,
        table: &Table,
        idxs: &[usize],
        zone: Zone,
        line_bytes_max: usize,
    ) -> Reader {
        let column =
            |idx: &usize| (table.columns[*idx].name.clone(), table.columns[*idx].ty.clone());
        Reader {
            header_to_skip: options.header,
            options,
            columns: idxs.iter().map(column).collect(),
            table: table.name.clone(),
            zone,
            buffer: Vec::new(),
            seen: 0,
            in_quotes: false,
            line_number: 0,
            ended: false,
            scratch: Vec::new(),
            line_bytes_max,
        }
    }

    /// Takes more bytes and returns the rows of the lines that they complete.
    pub fn feed(&mut self, bytes: &[u8], rows: &mut Vec<Row>) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        self.buffer.extend_from_slice(bytes);
        let mut begin = 0;
        while let Some(end) = self.line_end(begin) {
            let buffer = std::mem::take(&mut self.buffer);
            let outcome = self.line(&buffer[begin..end], rows);
            self.buffer = buffer;
            outcome?;
            begin = end + 1;
            if self.ended {
                break;
            }
        }
        self.buffer.drain(..begin.min(self.buffer.len()));
        self.seen = self.seen.saturating_sub(begin);
        if self.buffer.len() > self.line_bytes_max {
            return Err(self.too_long());
        }
        Ok(())
    }

    fn too_long(&self) -> Error {
        let max = self.line_bytes_max;
        Error::new(
            state::LIMIT_EXCEEDED,
            format!(
                "a line is longer than {max} bytes (COPY {}, line {})",
                self.table, self.line_number
            ),
        )
    }

    /// The last line may lack its end.
    pub fn finish(&mut self, rows: &mut Vec<Row>) -> Result<()> {
        if self.in_quotes {
            return Err(self.error("unterminated CSV quoted field"));
        }
        if !self.ended && !self.buffer.is_empty() {
            let buffer = std::mem::take(&mut self.buffer);
            self.line(&buffer, rows)?;
        }
        Ok(())
    }

    /// Where the line that begins at `begin` ends.
    fn line_end(&mut self, begin: usize) -> Option<usize> {
        let mut at = self.seen.max(begin);
        if !self.options.csv {
            // A newline behind a backslash belongs to the data.
            while let Some(found) = self.buffer[at..].iter().position(|byte| *byte == b'\n') {
                let end = at + found;
                let n_backslashes =
                    self.buffer[begin..end].iter().rev().take_while(|byte| **byte == b'\\').count();
                if n_backslashes % 2 == 0 {
                    self.seen = end + 1;
                    return Some(end);
                }
                at = end + 1;
            }
            self.seen = self.buffer.len();
            return None;
        }
        while let Some(byte) = self.buffer.get(at) {
            if *byte == self.options.quote {
                self.in_quotes = !self.in_quotes;
            } else if self.in_quotes
                && *byte == self.options.escape
                && self.options.escape != self.options.quote
            {
                if at + 1 >= self.buffer.len() {
                    break;
                }
                at += 1;
            } else if *byte == b'\n' && !self.in_quotes {
                self.seen = at + 1;
                return Some(at);
            }
            at += 1;
        }
        self.seen = at;
        None
    }

    fn line(&mut self, line: &[u8], rows: &mut Vec<Row>) -> Result<()> {
        self.line_number += 1;
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line == b"\\." {
            self.ended = true;
            return Ok(());
        }
        if self.header_to_skip {
            self.header_to_skip = false;
            return Ok(());
        }
        let line = std::str::from_utf8(line).map_err(|_| {
            Error::new(
                state::INVALID_ENCODING,
                format!(
                    "invalid byte sequence for encoding \"UTF8\" (COPY {}, line {})",
                    self.table, self.line_number
                ),
            )
        })?;
        let row = if self.options.csv { self.csv_fields(line)? } else { self.text_fields(line)? };
        rows.push(row);
        Ok(())
    }

    fn text_fields(&mut self, line: &str) -> Result<Row> {
        let mut row = Vec::with_capacity(self.columns.len());
        let delimiter = self.options.delimiter;
        let bytes = line.as_bytes();
        let mut at = 0;
        // A table without columns has empty lines.
        let mut done = self.columns.is_empty() && bytes.is_empty();
        while !done {
            let begin = at;
            let mut escaped = false;
            while at < bytes.len() && bytes[at] != delimiter {
                if bytes[at] == b'\\' {
                    escaped = true;
                    at += 1;
                }
                at += 1;
            }
            let end = at.min(bytes.len());
            let raw = &line[begin..end];
            let datum = if raw == self.options.null {
                self.known(row.len())?;
                Datum::Null
            } else if escaped {
                let unescaped = self.unescape(raw.as_bytes())?;
                self.field(row.len(), &unescaped)?
            } else {
                self.field(row.len(), raw)?
            };
            row.push(datum);
            done = end >= bytes.len();
            at = end + 1;
        }
        self.complete(row)
    }

    fn unescape(&mut self, raw: &[u8]) -> Result<String> {
        let mut out = std::mem::take(&mut self.scratch);
        out.clear();
        let mut rest = raw;
        while let Some((first, tail)) = rest.split_first() {
            rest = tail;
            if *first != b'\\' {
                out.push(*first);
                continue;
            }
            let Some((letter, tail)) = rest.split_first() else {
                out.push(b'\\');
                break;
            };
            rest = tail;
            match letter {
                b'b' => out.push(8),
                b'f' => out.push(12),
                b'n' => out.push(b'\n'),
                b'r' => out.push(b'\r'),
                b't' => out.push(b'\t'),
                b'v' => out.push(11),
                b'0'..=b'7' => {
                    let mut value = u32::from(letter - b'0');
                    for _ in 0..2 {
                        let Some((digit @ b'0'..=b'7', tail)) = rest.split_first() else { break };
                        value = value * 8 + u32::from(digit - b'0');
                        rest = tail;
                    }
                    out.push(value as u8);
                }
                b'x' if rest.first().is_some_and(u8::is_ascii_hexdigit) => {
                    let n = rest.iter().take(2).take_while(|byte| byte.is_ascii_hexdigit()).count();
                    let digits = String::from_utf8_lossy(&rest[..n]).into_owned();
                    rest = &rest[n..];
                    out.push(u8::from_str_radix(&digits, 16).unwrap_or_default());
                }
                other => out.push(*other),
            }
        }
        let text = String::from_utf8(out.clone()).map_err(|_| {
            self.error("an escape makes an invalid byte sequence for encoding \"UTF8\"")
        });
        self.scratch = out;
        text
    }

    fn csv_fields(&mut self, line: &str) -> Result<Row> {
        let mut row = Vec::with_capacity(self.columns.len());
        let CopyOptions { delimiter, quote, escape, .. } = self.options;
        let bytes = line.as_bytes();
        let mut at = 0;
        let mut done = self.columns.is_empty() && bytes.is_empty();
        while !done {
            let begin = at;
            let mut out = Vec::new();
            let mut was_quoted = false;
            let mut in_quotes = false;
            let mut plain = true;
            while at < bytes.len() {
                let byte = bytes[at];
                if in_quotes {
                    if byte == escape
                        && bytes.get(at + 1).is_some_and(|next| *next == quote || *next == escape)
                    {
                        out.push(bytes[at + 1]);
                        at += 2;
                        continue;
                    }
                    if byte == quote {
                        in_quotes = false;
                    } else {
                        out.push(byte);
                    }
                } else if byte == quote {
                    if plain {
                        out.extend_from_slice(&bytes[begin..at]);
                        plain = false;
                    }
                    in_quotes = true;
                    was_quoted = true;
                } else if byte == delimiter {
                    break;
                } else if !plain {
                    out.push(byte);
                }
                at += 1;
            }
            let end = at.min(bytes.len());
            let raw = if plain {
                std::borrow::Cow::Borrowed(&line[begin..end])
            } else {
                std::borrow::Cow::Owned(String::from_utf8_lossy(&out).into_owned())
            };
            let datum = if !was_quoted && raw == self.options.null {
                self.known(row.len())?;
                Datum::Null
            } else {
                self.field(row.len(), &raw)?
            };
            row.push(datum);
            done = end >= bytes.len();
            at = end + 1;
        }
        self.complete(row)
    }

    fn known(&self, idx: usize) -> Result<&(String, Type)> {
        self.columns.get(idx).ok_or_else(|| self.error("extra data after last expected column"))
    }

    fn field(&self, idx: usize, raw: &str) -> Result<Datum> {
        let (name, ty) = self.known(idx)?;
        text::parse(raw, ty, &self.zone).map_err(|error| {
            let place = format!("COPY {}, line {}, column {name}", self.table, self.line_number);
            error.detail(place)
        })
    }

    fn complete(&self, row: Row) -> Result<Row> {
        match self.columns.get(row.len()) {
            None => Ok(row),
            Some((name, _)) => Err(self.error(&format!("missing data for column \"{name}\""))),
        }
    }

    fn error(&self, message: &str) -> Error {
        Error::new(state::BAD_COPY, message)
            .detail(format!("COPY {}, line {}", self.table, self.line_number))
    }
}

/// Writes COPY TO's lines.
pub struct Writer {
    options: CopyOptions,
    types: Vec<Type>,
    zone: Zone,
    field: Vec<u8>,
}

impl Writer {
    pub fn new(options: CopyOptions, types: Vec<Type>, zone: Zone) -> Writer {
        Writer { options, types, zone, field: Vec::new() }
    }

    pub fn header(&self, names: &[String], out: &mut Vec<u8>) {
        for (idx, name) in names.iter().enumerate() {
            if idx > 0 {
                out.push(self.options.delimiter);
            }
            if self.options.csv {
                self.csv(name.as_bytes(), false, out);
            } else {
                self.escape(name.as_bytes(), out);
            }
        }
        out.push(b'\n');
    }

    pub fn row(&mut self, row: &[Datum], out: &mut Vec<u8>) {
        for (idx, datum) in row.iter().enumerate() {
            if idx > 0 {
                out.push(self.options.delimiter);
            }
            if datum.is_null() {
                out.extend_from_slice(self.options.null.as_bytes());
                continue;
            }
            let mut field = std::mem::take(&mut self.field);
            field.clear();
            text::write(datum, self.types.get(idx).unwrap_or(&Type::Text), &self.zone, &mut field);
            if self.options.csv {
                self.csv(&field, row.len() == 1, out);
            } else {
                self.escape(&field, out);
            }
            self.field = field;
        }
        out.push(b'\n');
    }

    fn escape(&self, field: &[u8], out: &mut Vec<u8>) {
        for byte in field {
            match byte {
                b'\\' => out.extend_from_slice(b"\\\\"),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                b'\t' => out.extend_from_slice(b"\\t"),
                8 => out.extend_from_slice(b"\\b"),
                11 => out.extend_from_slice(b"\\v"),
                12 => out.extend_from_slice(b"\\f"),
                byte if *byte == self.options.delimiter => out.extend_from_slice(&[b'\\', *byte]),
                byte => out.push(*byte),
            }
        }
    }

    fn csv(&self, field: &[u8], alone: bool, out: &mut Vec<u8>) {
        let CopyOptions { delimiter, quote, escape, .. } = self.options;
        let special =
            |byte: &u8| *byte == delimiter || *byte == quote || matches!(byte, b'\n' | b'\r');
        let quoted = field.iter().any(special)
            || field == self.options.null.as_bytes()
            || (alone && field == b"\\.");
        if !quoted {
            return out.extend_from_slice(field);
        }
        out.push(quote);
        for byte in field {
            if *byte == quote || *byte == escape {
                out.push(escape);
            }
            out.push(*byte);
        }
        out.push(quote);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(csv: bool) -> CopyOptions {
        CopyOptions {
            csv,
            delimiter: if csv { b',' } else { b'\t' },
            null: if csv { String::new() } else { "\\N".into() },
            header: false,
            quote: b'"',
            escape: b'"',
        }
    }

    fn table() -> Table {
        Table::for_tests(&[("a", Type::Int4), ("b", Type::Text)])
    }

    #[test]
    fn lines_survive_any_cut() {
        let text = b"1\ta\\tb\\\\\n2\t\\N\n-3\tx\\\ny\n\\.\nignored".as_slice();
        let csv = b"1,\"a\tb\\\"\n2,\n-3,\"x\ny\"\n".as_slice();
        for (bytes, csv) in [(text, false), (csv, true)] {
            for step in 1..bytes.len() {
                let mut reader = Reader::new(options(csv), &table(), &[0, 1], Zone::UTC, 1 << 20);
                let mut rows = Vec::new();
                for piece in bytes.chunks(step) {
                    reader.feed(piece, &mut rows).unwrap();
                }
                reader.finish(&mut rows).unwrap();
                let want = vec![
                    vec![Datum::Int4(1), Datum::text("a\tb\\")],
                    vec![Datum::Int4(2), Datum::Null],
                    vec![Datum::Int4(-3), Datum::text("x\ny")],
                ];
                assert_eq!(rows, want, "csv {csv}, cut every {step} bytes");
            }
        }
    }

    #[test]
    fn bad_lines_are_named() {
        for (line, want) in [
            ("1", "missing data for column \"b\""),
            ("1\tx\ty", "extra data after last expected column"),
            ("x\ty", "invalid input syntax for type integer: \"x\""),
        ] {
            let mut reader = Reader::new(options(false), &table(), &[0, 1], Zone::UTC, 1 << 20);
            let error = reader.feed(format!("{line}\n").as_bytes(), &mut Vec::new()).unwrap_err();
            assert_eq!(error.message, want);
            assert!(error.detail.as_deref().is_some_and(|detail| detail.contains("line 1")));
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for csv in [false, true] {
            let mut writer = Writer::new(options(csv), vec![Type::Int4, Type::Text], Zone::UTC);
            let rows = vec![
                vec![Datum::Int4(1), Datum::text("a,\"b\"\t\\\n")],
                vec![Datum::Null, Datum::text("")],
            ];
            let mut out = Vec::new();
            rows.iter().for_each(|row| writer.row(row, &mut out));
            let mut reader = Reader::new(options(csv), &table(), &[0, 1], Zone::UTC, 1 << 20);
            let mut back = Vec::new();
            reader.feed(&out, &mut back).unwrap();
            assert_eq!(back, rows, "csv {csv}");
        }
    }
}
