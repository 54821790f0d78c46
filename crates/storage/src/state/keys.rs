//! How things are named in the trees.
//!
//! ```text
//!   current   r <key>                          -> scn, value          the newest version of a row
//!             m <key>                          -> value               unversioned
//!             t <tablet>                       -> index, mark         how far a tablet was applied
//!             g <tablet>                       -> index               how far it was when it left this node
//!   segment   r <escaped key> <replaced at>    -> scn, value          an older version of a row
//!             e <key>                          -> tablet, index of the entry, value  expires with the segment
//!             s                                -> lowest, highest     of the "replaced at" in it
//! ```
//!
//! In a segment an SCN follows the key, so the key is escaped: otherwise the versions of `"a"` and of
//! `"a\0"` would lie mixed up. A zero byte becomes `00 ff`, and the key ends with `00 01`.

use base::{Key, KeyRange, Scn, TabletId};
use bytes::{BufMut, Bytes};
use lsm_tree::Slice;
use serde::{Deserialize, Serialize};
use std::ops::Bound;

pub(crate) const ROW: u8 = b'r';
pub(crate) const META: u8 = b'm';
pub(crate) const MARK: u8 = b't';
pub(crate) const GONE: u8 = b'g';
pub(crate) const EXPIRING: u8 = b'e';
pub(crate) const SUMMARY: &[u8] = b"s";

const SCN_BYTES: usize = 8;

/// What belongs to a tablet: rows, and the ranges of unversioned and expiring keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TabletRanges {
    pub rows: KeyRange,
    pub meta: Vec<KeyRange>,
    pub expiring: Vec<KeyRange>,
}

pub(crate) type Bounds = (Bound<Slice>, Bound<Slice>);

/// `kind` and `key`, as a tree's key.
pub(crate) fn tagged(kind: u8, key: &[u8]) -> Slice {
    let mut out = Vec::with_capacity(1 + key.len());
    out.push(kind);
    out.extend_from_slice(key);
    out.into()
}

pub(crate) fn untagged(key: Slice) -> Bytes {
    Bytes::from(key).slice(1..)
}

/// The range of `kind` that holds the keys in `range`.
pub(crate) fn tagged_range(kind: u8, range: &KeyRange) -> Bounds {
    let end = match &range.end {
        Some(end) => tagged(kind, end),
        None => Slice::from([kind + 1]),
    };
    ordered(tagged(kind, &range.start), end)
}

/// A tree panics on bounds that are out of order: an inverted range is made an empty one.
fn ordered(start: Slice, end: Slice) -> Bounds {
    if start < end {
        (Bound::Included(start), Bound::Excluded(end))
    } else {
        (Bound::Included(start.clone()), Bound::Excluded(start))
    }
}

pub(crate) fn tablet_key(kind: u8, tablet: TabletId) -> Slice {
    tagged(kind, &tablet.0.to_be_bytes())
}

/// The SCN in front of a row's value.
pub(crate) fn versioned(scn: Scn, value: &[u8]) -> Slice {
    let mut out = Vec::with_capacity(SCN_BYTES + value.len());
    out.put_u64(scn.0);
    out.extend_from_slice(value);
    out.into()
}

/// None if `stored` is too short to be a version.
pub(crate) fn split_version(stored: Slice) -> Option<(Scn, Bytes)> {
    let stored = Bytes::from(stored);
    let scn = u64::from_be_bytes(*stored.first_chunk()?);
    Some((Scn(scn), stored.slice(SCN_BYTES..)))
}

fn old_prefix(key: &[u8], terminator: u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + key.len() / 2 + 3 + SCN_BYTES);
    out.push(ROW);
    for &byte in key {
        out.push(byte);
        if byte == 0 {
            out.push(0xff);
        }
    }
    out.extend_from_slice(&[0, terminator]);
    out
}

/// Where the version of `key` that was replaced at `replaced_at` lies in its segment.
pub(crate) fn old_key(key: &[u8], replaced_at: Scn) -> Slice {
    let mut out = old_prefix(key, 1);
    out.put_u64(replaced_at.0);
    out.into()
}

/// After every version of `key` and before those of the next key.
pub(crate) fn old_end(key: &[u8]) -> Slice {
    old_prefix(key, 2).into()
}

/// Before every version of `key`.
pub(crate) fn old_start(key: &[u8]) -> Slice {
    old_prefix(key, 1).into()
}

/// All versions of the keys in `range`.
pub(crate) fn old_range(range: &KeyRange) -> (Slice, Slice) {
    let end = match &range.end {
        Some(end) => old_start(end),
        None => Slice::from([ROW + 1]),
    };
    (old_start(&range.start), end)
}

pub(crate) fn old_bounds(start: &Slice, end: &Slice) -> Bounds {
    ordered(start.clone(), end.clone())
}

/// Splits a segment's key into the escaped part and the SCN; none if it is not one.
pub(crate) fn split_old(stored: &Slice) -> Option<(&[u8], Scn)> {
    let (prefix, scn) = stored.split_last_chunk::<SCN_BYTES>()?;
    Some((prefix, Scn(u64::from_be_bytes(*scn))))
}

/// The key in the escaped part.
pub(crate) fn unescape(prefix: &[u8]) -> Key {
    let escaped = prefix.get(1..prefix.len().saturating_sub(2)).unwrap_or_default();
    let mut out = Vec::with_capacity(escaped.len());
    let mut after_zero = false;
    for &byte in escaped {
        if !(after_zero && byte == 0xff) {
            out.push(byte);
        }
        after_zero = !after_zero && byte == 0;
    }
    out.into()
}

/// What `e` keys hold: the entry that wrote them, and the value.
pub(crate) fn expiring_value(tablet: TabletId, index: u64, value: &[u8]) -> Slice {
    let mut out = Vec::with_capacity(16 + value.len());
    out.put_u64(tablet.0);
    out.put_u64(index);
    out.extend_from_slice(value);
    out.into()
}

/// Two numbers and what follows them: an expiring value, a summary.
pub(crate) fn split_pair(stored: Slice) -> Option<(u64, u64, Bytes)> {
    let stored = Bytes::from(stored);
    let (first, rest) = stored.split_first_chunk()?;
    let (second, _) = rest.split_first_chunk()?;
    Some((u64::from_be_bytes(*first), u64::from_be_bytes(*second), stored.slice(16..)))
}

/// A tablet's mark: the applied index and what the state machine keeps with it.
pub(crate) fn mark_value(index: u64, mark: &[u8]) -> Slice {
    versioned(Scn(index), mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_versions_lie_in_the_order_of_their_keys() {
        let keys: [&[u8]; 7] = [b"", b"\0", b"\0\xff", b"a", b"a\0", b"a\0\0", b"b"];
        let mut stored = Vec::new();
        for key in keys {
            for scn in [0, 1, 300, u64::MAX] {
                let old = old_key(key, Scn(scn));
                let (prefix, replaced_at) = split_old(&old).unwrap();
                assert_eq!((&unescape(prefix)[..], replaced_at), (key, Scn(scn)));
                assert!(old_start(key) <= old && old < old_end(key));
                stored.push(old);
            }
        }
        assert!(stored.is_sorted());
    }
}
