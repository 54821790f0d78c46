//! What the server sends, encoded straight into the output buffer.
//!
//! Absent: memory of its own. A row is written value by value behind a length that is filled in
//! afterwards, so a result costs no allocation per row.

use super::request::Formats;
use crate::error::{Error, Result, state};
use crate::session::Column;
use crate::types::{Datum, Zone, binary, text};
use bytes::BufMut;

/// Writes one message; `body` fills it. A body that fails leaves nothing behind.
fn message(
    out: &mut Vec<u8>,
    tag: u8,
    body: impl FnOnce(&mut Vec<u8>) -> Result<()>,
) -> Result<()> {
    let start = out.len();
    out.put_u8(tag);
    out.put_u32(0);
    let filled = body(out).and_then(|()| fill_length(out, start + 1, 0));
    if filled.is_err() {
        out.truncate(start);
    }
    filled
}

/// Writes a message whose body cannot fail and is small.
fn plain(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len() + 1;
    out.put_u8(tag);
    out.put_u32(0);
    body(out);
    let length = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// Stores at `at` how many bytes came since, less `skip` of them.
fn fill_length(out: &mut [u8], at: usize, skip: usize) -> Result<()> {
    let too_large = |_| Error::new(state::LIMIT_EXCEEDED, "a row is larger than 2 GiB");
    let length = i32::try_from(out.len() - at - skip).map_err(too_large)?;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

fn put_str(out: &mut Vec<u8>, text: &str) {
    // A zero byte would end the string early and shift all that follows.
    out.extend(text.bytes().filter(|&byte| byte != 0));
    out.put_u8(0);
}

pub fn authentication_ok(out: &mut Vec<u8>) {
    plain(out, b'R', |out| out.put_u32(0));
}

pub fn authentication_sasl(out: &mut Vec<u8>, mechanisms: &[&str]) {
    plain(out, b'R', |out| {
        out.put_u32(10);
        mechanisms.iter().for_each(|mechanism| put_str(out, mechanism));
        out.put_u8(0);
    });
}

/// `code` 11 goes on, 12 ends.
pub fn authentication_sasl_data(out: &mut Vec<u8>, code: u32, data: &[u8]) {
    plain(out, b'R', |out| {
        out.put_u32(code);
        out.put_slice(data);
    });
}

pub fn parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    plain(out, b'S', |out| {
        put_str(out, name);
        put_str(out, value);
    });
}

pub fn backend_key(out: &mut Vec<u8>, pid: u32, secret: u32) {
    plain(out, b'K', |out| {
        out.put_u32(pid);
        out.put_u32(secret);
    });
}

/// Protocol 3.0 is what will be spoken; `options` are the `_pq_.` options that are not known.
pub fn negotiate_version(out: &mut Vec<u8>, options: &[&str]) {
    plain(out, b'v', |out| {
        out.put_u32(0);
        out.put_u32(options.len() as u32);
        options.iter().for_each(|option| put_str(out, option));
    });
}

pub fn ready(out: &mut Vec<u8>, status: u8) {
    plain(out, b'Z', |out| out.put_u8(status));
}

pub fn parse_complete(out: &mut Vec<u8>) {
    plain(out, b'1', |_| ());
}

pub fn bind_complete(out: &mut Vec<u8>) {
    plain(out, b'2', |_| ());
}

pub fn close_complete(out: &mut Vec<u8>) {
    plain(out, b'3', |_| ());
}

pub fn no_data(out: &mut Vec<u8>) {
    plain(out, b'n', |_| ());
}

pub fn portal_suspended(out: &mut Vec<u8>) {
    plain(out, b's', |_| ());
}

pub fn empty_query(out: &mut Vec<u8>) {
    plain(out, b'I', |_| ());
}

pub fn command_complete(out: &mut Vec<u8>, tag: &str) {
    plain(out, b'C', |out| put_str(out, tag));
}

pub fn parameter_description(out: &mut Vec<u8>, types: impl ExactSizeIterator<Item = u32>) {
    plain(out, b't', |out| {
        out.put_u16(types.len() as u16);
        types.for_each(|oid| out.put_u32(oid));
    });
}

pub fn row_description(out: &mut Vec<u8>, columns: &[Column], formats: &Formats) {
    plain(out, b'T', |out| {
        out.put_u16(columns.len() as u16);
        for (idx, column) in columns.iter().enumerate() {
            put_str(out, &column.name);
            out.put_u32(column.table.unwrap_or(0));
            out.put_i16(column.attnum);
            out.put_u32(column.ty.oid());
            out.put_i16(column.ty.byte_len());
            out.put_i32(column.ty.modifier());
            out.put_i16(i16::from(formats.binary(idx)));
        }
    });
}

/// One row. `zone` is the session's time zone, in which `timestamptz` is shown as text.
pub fn data_row(
    out: &mut Vec<u8>,
    columns: &[Column],
    formats: &Formats,
    row: &[Datum],
    zone: &Zone,
) -> Result<()> {
    message(out, b'D', |out| {
        out.put_u16(row.len() as u16);
        for (idx, (datum, column)) in row.iter().zip(columns).enumerate() {
            if datum.is_null() {
                out.put_i32(-1);
                continue;
            }
            let at = out.len();
            out.put_u32(0);
            if formats.binary(idx) {
                binary::write(datum, &column.ty, out);
            } else {
                text::write(datum, &column.ty, zone, out);
            }
            fill_length(out, at, 4)?;
        }
        Ok(())
    })
}

/// `tag` is `G` for copying in and `H` for copying out; all columns are text.
pub fn copy_response(out: &mut Vec<u8>, tag: u8, n_columns: usize) {
    plain(out, tag, |out| {
        out.put_u8(0);
        out.put_u16(n_columns as u16);
        (0..n_columns).for_each(|_| out.put_u16(0));
    });
}

pub fn copy_data(out: &mut Vec<u8>, data: &[u8]) {
    plain(out, b'd', |out| out.put_slice(data));
}

pub fn copy_done(out: &mut Vec<u8>) {
    plain(out, b'c', |_| ());
}

pub fn error(out: &mut Vec<u8>, severity: &str, error: &Error) {
    plain(out, b'E', |out| {
        let fields = error.fields();
        field(out, b'S', severity);
        field(out, b'V', severity);
        field(out, b'C', fields.state);
        field(out, b'M', &fields.message);
        optional(out, b'D', fields.detail.as_deref());
        optional(out, b'H', fields.hint.as_deref());
        optional(out, b'P', fields.position.map(|at| at.to_string()).as_deref());
        optional(out, b't', fields.table.as_deref());
        optional(out, b'c', fields.column.as_deref());
        optional(out, b'n', fields.constraint.as_deref());
        out.put_u8(0);
    });
}

pub fn notice(out: &mut Vec<u8>, severity: &str, state: &str, message: &str) {
    plain(out, b'N', |out| {
        field(out, b'S', severity);
        field(out, b'V', severity);
        field(out, b'C', state);
        field(out, b'M', message);
        out.put_u8(0);
    });
}

fn field(out: &mut Vec<u8>, tag: u8, value: &str) {
    out.put_u8(tag);
    put_str(out, value);
}

fn optional(out: &mut Vec<u8>, tag: u8, value: Option<&str>) {
    if let Some(value) = value {
        field(out, tag, value);
    }
}
