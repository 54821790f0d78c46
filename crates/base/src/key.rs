//! Keys: byte strings whose byte order is the order of the values they encode.
//!
//! A row's key is its relation's number (four bytes, big endian) followed by the encoded columns
//! of its primary key. The cluster's whole key space is one ordered line of such keys; tablets
//! are intervals of it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

/// One key. Cheap to clone.
pub type Key = Bytes;

/// A half-open interval of keys, `start <= key < end`; an absent end is the end of the line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyRange {
    pub start: Key,
    pub end: Option<Key>,
}

impl KeyRange {
    /// The whole line.
    pub fn all() -> KeyRange {
        KeyRange::default()
    }

    /// `start <= key < end`.
    pub fn new(start: impl Into<Key>, end: impl Into<Key>) -> KeyRange {
        KeyRange { start: start.into(), end: Some(end.into()) }
    }

    /// The keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Key>) -> KeyRange {
        let start = prefix.into();
        let end = prefix_end(&start);
        KeyRange { start, end }
    }

    /// Just `key`.
    pub fn point(key: impl Into<Key>) -> KeyRange {
        let start = key.into();
        let end = successor(&start);
        KeyRange { start, end: Some(end) }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        &self.start[..] <= key && self.end.as_ref().is_none_or(|end| key < &end[..])
    }

    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    pub fn overlaps(&self, other: &KeyRange) -> bool {
        !self.intersect(other).is_empty()
    }

    pub fn covers(&self, other: &KeyRange) -> bool {
        self.start <= other.start
            && match (&self.end, &other.end) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(mine), Some(theirs)) => theirs <= mine,
            }
    }

    /// The keys in both.
    pub fn intersect(&self, other: &KeyRange) -> KeyRange {
        let end = match (&self.end, &other.end) {
            (None, end) | (end, None) => end.clone(),
            (Some(a), Some(b)) => Some(a.min(b).clone()),
        };
        KeyRange { start: (&self.start).max(&other.start).clone(), end }
    }
}

impl fmt::Display for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, ", Hex(&self.start))?;
        match &self.end {
            Some(end) => write!(f, "{})", Hex(end)),
            None => f.write_str("∞)"),
        }
    }
}

/// Shows bytes in hexadecimal.
pub struct Hex<'a>(pub &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The smallest key after `key`.
pub fn successor(key: &[u8]) -> Key {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

/// The smallest key after every key that begins with `prefix`; none if there is none.
pub fn prefix_end(prefix: &[u8]) -> Option<Key> {
    let last = prefix.iter().rposition(|&byte| byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_prefix() {
        assert_eq!(prefix_end(b"a\xff"), Some(Key::from_static(b"b")));
        assert_eq!(prefix_end(b"\xff\xff"), None);
        assert!(KeyRange::prefix(&b"ab"[..]).contains(b"ab\xff\xff"));
        assert!(!KeyRange::prefix(&b"ab"[..]).contains(b"ac"));
    }

    #[test]
    fn ranges_intersect_and_cover() {
        let all = KeyRange::all();
        let ac = KeyRange::new(&b"a"[..], &b"c"[..]);
        let bd = KeyRange::new(&b"b"[..], &b"d"[..]);
        assert_eq!(ac.intersect(&bd), KeyRange::new(&b"b"[..], &b"c"[..]));
        assert!(all.covers(&ac) && !ac.covers(&all) && !ac.covers(&bd));
        assert!(!ac.overlaps(&KeyRange::new(&b"c"[..], &b"d"[..])));
        assert!(KeyRange::point(&b"k"[..]).contains(b"k"));
        assert!(!KeyRange::point(&b"k"[..]).contains(b"k\0"));
    }
}
