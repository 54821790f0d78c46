//! The meta keys of the store: where a tablet keeps everything that is not a row.
//!
//! Rows are keyed by relation and primary key alone. Everything that a tablet knows of itself stands
//! under its own id, so that a Raft snapshot of it takes one range of meta keys per space. Each key is
//! `space (1) | tablet (8) | rest`; numbers are big endian, so that they sort.

use base::{KeyRange, TabletId, TxnId};
use bytes::{BufMut, Bytes, BytesMut};

/// The kinds of meta keys. The numbers are on disk and are never reused.
#[derive(Clone, Copy)]
pub enum Space {
    /// What the tablet is: [`crate::machine::Descriptor`].
    Descriptor = 1,
    /// The schema versions below which requests are refused: `table (4)`.
    Barrier = 2,
    /// Writes prepared but not decided: `txn (8) part (4)`.
    Prepared = 3,
    /// Commit records of transactions over several tablets: `txn (8)`.
    Record = 4,
    /// The SCN up to which numbers may have been handed out (root tablet only).
    Ceiling = 5,
}

const SPACES: [Space; 5] =
    [Space::Descriptor, Space::Barrier, Space::Prepared, Space::Record, Space::Ceiling];

/// The keys of one space of a tablet.
pub fn space(space: Space, tablet: TabletId) -> KeyRange {
    KeyRange::prefix(key(space, tablet, &[]))
}

/// All meta keys of `tablet`, for snapshots and removal.
pub fn all(tablet: TabletId) -> Vec<KeyRange> {
    SPACES.iter().map(|&kind| space(kind, tablet)).collect()
}

pub fn descriptor(tablet: TabletId) -> Bytes {
    key(Space::Descriptor, tablet, &[])
}

/// The descriptors of all tablets of this node.
pub fn descriptors() -> KeyRange {
    KeyRange::prefix(vec![Space::Descriptor as u8])
}

pub fn barrier(tablet: TabletId, table: u32) -> Bytes {
    key(Space::Barrier, tablet, &table.to_be_bytes())
}

pub fn prepared(tablet: TabletId, txn: TxnId, part: u32) -> Bytes {
    let mut rest = [0; 12];
    rest[..8].copy_from_slice(&txn.0.to_be_bytes());
    rest[8..].copy_from_slice(&part.to_be_bytes());
    key(Space::Prepared, tablet, &rest)
}

pub fn record(tablet: TabletId, txn: TxnId) -> Bytes {
    key(Space::Record, tablet, &txn.0.to_be_bytes())
}

pub fn ceiling() -> Bytes {
    key(Space::Ceiling, TabletId::ROOT, &[])
}

/// In the expiring space: how a transaction ended, kept for the retention.
pub fn outcome(tablet: TabletId, txn: TxnId) -> Bytes {
    let mut out = BytesMut::with_capacity(16);
    out.put_u64(tablet.0);
    out.put_u64(txn.0);
    out.freeze()
}

/// The outcomes that `tablet` keeps.
pub fn outcomes(tablet: TabletId) -> KeyRange {
    KeyRange::prefix(tablet.0.to_be_bytes().to_vec())
}

/// The number at the end of a key, such as the transaction of a record or an outcome.
pub fn last_u64(key: &[u8]) -> Option<u64> {
    key.last_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes))
}

fn key(space: Space, tablet: TabletId, rest: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(9 + rest.len());
    out.put_u8(space as u8);
    out.put_u64(tablet.0);
    out.put_slice(rest);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_names_all_that_a_tablet_knows_of_itself_and_nothing_of_others() {
        let (tablet, txn) = (TabletId::ROOT, TxnId(9));
        let keys = [
            descriptor(tablet),
            barrier(tablet, 3),
            prepared(tablet, txn, 1),
            record(tablet, txn),
            ceiling(),
        ];
        let named = |tablet, key: &Bytes| all(tablet).iter().any(|range| range.contains(key));
        for key in &keys {
            assert!(named(tablet, key), "{key:?}");
            assert!(!named(TabletId(tablet.0 + 1), key), "{key:?}");
        }
    }
}
