//! Marks: the keys whose commit is under way.
//!
//! A snapshot reader waits for the marks that may get a number within its snapshot, and for nothing
//! else.
//!
//! ```text
//! 8 was handed out; T1 marks "k"        a reader of "k" at 8 goes on: T1 gets more than 8 (its floor)
//! T1 has drawn no number                a reader of "k" at 10 waits: T1 may get 9
//! T1 has drawn 11                       a reader of "k" at 10 goes on, one at 11 waits
//! T1's row is there                     the mark goes; the reader at 11 sees the row
//! ```
//!
//! A large transaction is prepared in parts. Its coordinator draws no number before each tablet has *promised*,
//! that is, answered the last part. Until then no reader needs to wait for the transaction, whatever the reader's
//! snapshot: the transaction's number will be larger than any that was handed out. Its locks keep other writers away.
//! So the marks of all its parts count from the promise on, and not while a load of ten million rows is still coming.
//!
//! A key has one mark at most, because the committing transaction holds the key's lock. The few keys of a small
//! transaction stand in a tree; many keys are a [`KeySet`], which is as exact. Beyond `bytes_max` of [`SetLimits`] in
//! one tablet a transaction has one range per relation: memory no longer grows with the keys, and readers of keys
//! between the marked ones wait too. Taking marks back is linear in the transaction's own keys.
//!
//! Pure: no clock and no I/O.

use crate::command::SchemaUse;
use crate::key_set::{self, KeySet, SetLimits};
use crate::message::ReadAt;
use base::{Key, KeyRange, Scn, TxnId};
use std::collections::{BTreeMap, HashMap};

/// The first bytes of a key are the number of its relation.
const RELATION_BYTES: usize = 4;

#[derive(Debug, Default)]
pub(crate) struct Marks {
    points: BTreeMap<Key, TxnId>,
    by_txn: HashMap<TxnId, Mark>,
    /// Transactions with key sets or ranges. They are few, and each reader goes over them.
    bulks: HashMap<TxnId, Bulk>,
    /// Definitions of tables that change with these commits.
    walls: Vec<(SchemaUse, TxnId)>,
    n_bulk_bytes: usize,
    limits: SetLimits,
}

#[derive(Debug)]
struct Mark {
    /// Known once drawn.
    scn: Option<Scn>,
    prepared: bool,
    /// Set by the promise: from then on a number may be drawn, and it will be larger than this. None: the
    /// tablet has not promised.
    floor: Option<Scn>,
    /// Its points.
    keys: Vec<Key>,
}

#[derive(Debug, Default)]
struct Bulk {
    keys: KeySet,
    by_relation: BTreeMap<Key, KeyRange>,
}

impl Mark {
    fn blocks(&self, at: ReadAt) -> bool {
        let Some(floor) = self.floor else { return false };
        match at {
            // A one-tablet commit is not acknowledged before it is applied, so the newest state may leave
            // it out. A prepared transaction may have been decided and acknowledged already.
            ReadAt::Newest => self.prepared,
            ReadAt::Snapshot(at) => self.scn.map_or(floor < at, |scn| scn <= at),
        }
    }
}

impl Bulk {
    fn contains(&self, key: &Key) -> bool {
        self.by_relation.values().any(|range| range.contains(key)) || self.keys.contains(key)
    }

    fn any_in(&self, range: &KeyRange) -> bool {
        self.by_relation.values().any(|own| own.overlaps(range)) || self.keys.any_in(range)
    }

    /// `keys` are sorted.
    fn add_ranges(&mut self, keys: &[Key]) {
        let relation = |key: &Key| key.slice(..key.len().min(RELATION_BYTES));
        for keys in keys.chunk_by(|a, b| relation(a) == relation(b)) {
            let (Some(first), Some(last)) = (keys.first(), keys.last()) else { continue };
            let range = KeyRange::new(first.clone(), base::key::successor(last));
            let own = self.by_relation.entry(relation(first)).or_insert_with(|| range.clone());
            own.start = own.start.clone().min(range.start);
            own.end = own.end.clone().max(range.end);
        }
    }
}

impl Marks {
    pub(super) fn new(limits: SetLimits) -> Marks {
        Marks { limits, ..Marks::default() }
    }

    /// Notes the keys that a transaction is about to write. They count from the promise on. `keys` are sorted.
    pub(crate) fn add(&mut self, txn: TxnId, keys: &[Key], walls: &[SchemaUse]) {
        self.walls.extend(walls.iter().map(|wall| (*wall, txn)));
        let fresh = || Mark { scn: None, prepared: false, floor: None, keys: Vec::new() };
        let mark = self.by_txn.entry(txn).or_insert_with(fresh);
        if keys.len() < self.limits.n_keys_min {
            mark.keys.extend_from_slice(keys);
            self.points.extend(keys.iter().map(|key| (key.clone(), txn)));
            return;
        }
        let bulk = self.bulks.entry(txn).or_default();
        let before = bulk.keys.n_bytes();
        match self.n_bulk_bytes + key_set::n_bytes(keys) <= self.limits.bytes_max {
            true => bulk.keys.add(keys),
            false => bulk.add_ranges(keys),
        }
        self.n_bulk_bytes = self.n_bulk_bytes - before + bulk.keys.n_bytes();
    }

    /// From now on a number larger than `floor` may be drawn for `txn`.
    pub(crate) fn promise(&mut self, txn: TxnId, floor: Scn) {
        if let Some(mark) = self.by_txn.get_mut(&txn) {
            mark.floor.get_or_insert(floor);
        }
    }

    pub(crate) fn drawn(&mut self, txn: TxnId, scn: Scn) {
        if let Some(mark) = self.by_txn.get_mut(&txn) {
            mark.scn = Some(scn);
        }
    }

    pub(crate) fn set_prepared(&mut self, txn: TxnId) {
        if let Some(mark) = self.by_txn.get_mut(&txn) {
            mark.prepared = true;
        }
    }

    pub(crate) fn remove(&mut self, txn: TxnId) {
        let Some(mark) = self.by_txn.remove(&txn) else { return };
        for key in mark.keys {
            if self.points.get(&key) == Some(&txn) {
                self.points.remove(&key);
            }
        }
        if let Some(bulk) = self.bulks.remove(&txn) {
            self.n_bulk_bytes -= bulk.keys.n_bytes();
        }
        self.walls.retain(|(_, owner)| *owner != txn);
    }

    pub(crate) fn contains(&self, txn: TxnId) -> bool {
        self.by_txn.contains_key(&txn)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_txn.is_empty()
    }

    pub(crate) fn transactions(&self) -> impl Iterator<Item = TxnId> {
        self.by_txn.keys().copied()
    }

    /// Definitions that change, each with the transaction that changes it.
    pub(crate) fn walls(&self) -> impl Iterator<Item = &(SchemaUse, TxnId)> {
        self.walls.iter()
    }

    /// Every mark that counts has or gets a number above this; none if no mark counts.
    pub(crate) fn lowest_floor(&self) -> Option<Scn> {
        self.by_txn.values().filter_map(|mark| mark.floor).min()
    }

    /// Whether a table that the reader goes by may have a newer definition within the reader's snapshot.
    pub(crate) fn blocks_uses(&self, uses: &[SchemaUse], at: ReadAt) -> bool {
        self.walls.iter().any(|(wall, txn)| {
            uses.iter().any(|used| used.table == wall.table && used.version < wall.version)
                && self.blocks(*txn, at)
        })
    }

    pub(crate) fn blocks_key(&self, key: &Key, at: ReadAt) -> bool {
        self.points.get(key).is_some_and(|txn| self.blocks(*txn, at))
            || self.bulks.iter().any(|(txn, bulk)| self.blocks(*txn, at) && bulk.contains(key))
    }

    pub(crate) fn blocks_range(&self, range: &KeyRange, at: ReadAt) -> bool {
        let points = self.points.range(range.start.clone()..);
        let mut points = points.take_while(|(key, _)| range.contains(key));
        points.any(|(_, txn)| self.blocks(*txn, at))
            || self.bulks.iter().any(|(txn, bulk)| self.blocks(*txn, at) && bulk.any_in(range))
    }

    fn blocks(&self, txn: TxnId, at: ReadAt) -> bool {
        self.by_txn.get(&txn).is_some_and(|mark| mark.blocks(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u16) -> Key {
        Key::copy_from_slice(&n.to_be_bytes())
    }

    fn at(scn: u64) -> ReadAt {
        ReadAt::Snapshot(Scn(scn))
    }

    #[test]
    fn a_reader_waits_for_what_may_lie_within_its_snapshot_and_for_nothing_else() {
        let mut marks = Marks::default();
        let txn = TxnId(1);
        marks.add(txn, &[key(1)], &[]);
        assert!(!marks.blocks_key(&key(1), at(10)), "no number is drawn before the promise");
        assert_eq!(marks.lowest_floor(), None);
        marks.promise(txn, Scn(5));
        marks.promise(txn, Scn(7));
        assert!(marks.blocks_key(&key(1), at(10)), "its number is not known yet");
        assert!(marks.blocks_key(&key(1), at(6)));
        assert!(!marks.blocks_key(&key(1), at(5)), "but it is larger than what was handed out");
        assert!(!marks.blocks_key(&key(2), at(10)));
        assert!(!marks.blocks_key(&key(1), ReadAt::Newest), "not acknowledged before it is there");
        marks.drawn(txn, Scn(11));
        assert!(!marks.blocks_key(&key(1), at(10)));
        assert!(marks.blocks_key(&key(1), at(11)));
        assert_eq!(marks.lowest_floor(), Some(Scn(5)), "what is closed ends there");
        marks.set_prepared(txn);
        assert!(marks.blocks_key(&key(1), ReadAt::Newest), "it may be acknowledged already");
        marks.remove(txn);
        assert!(!marks.blocks_key(&key(1), at(99)));
        assert_eq!(marks.lowest_floor(), None);
    }

    #[test]
    fn a_definition_that_is_changing_holds_back_who_goes_by_the_older_one() {
        let mut marks = Marks::default();
        marks.add(TxnId(1), &[], &[SchemaUse { table: 7, version: 3 }]);
        marks.promise(TxnId(1), Scn(5));
        let uses = |version| [SchemaUse { table: 7, version }];
        assert!(marks.blocks_uses(&uses(2), at(10)));
        assert!(!marks.blocks_uses(&uses(3), at(10)));
        assert!(!marks.blocks_uses(&[SchemaUse { table: 8, version: 1 }], at(10)));
        marks.remove(TxnId(1));
        assert!(!marks.blocks_uses(&uses(2), at(10)));
    }

    #[test]
    fn many_keys_are_marked_and_nothing_between_them() {
        let mut marks = Marks::default();
        let (load, small) = (TxnId(1), TxnId(2));
        let even = |from| (from..from + 600).filter(|n| n % 2 == 0).map(key).collect::<Vec<_>>();
        marks.add(load, &even(0), &[]);
        marks.add(load, &even(600), &[]);
        marks.add(small, &[key(301)], &[]);
        marks.promise(load, Scn(5));
        marks.promise(small, Scn(5));
        marks.drawn(small, Scn(20));
        let between = |a, b| KeyRange::new(key(a), key(b));
        assert!(marks.blocks_key(&key(300), at(10)) && marks.blocks_key(&key(1198), at(10)));
        assert!(!marks.blocks_key(&key(299), at(10)));
        assert!(!marks.blocks_range(&between(301, 302), at(10)), "it has 20");
        assert!(marks.blocks_range(&between(301, 302), at(20)));
        assert!(marks.blocks_range(&between(301, 303), at(10)));
        marks.remove(load);
        assert!(!marks.blocks_range(&between(0, 2000), at(10)));
        assert!(marks.blocks_key(&key(301), at(20)), "others' marks stay");
        marks.remove(small);
        assert!(marks.points.is_empty() && marks.bulks.is_empty() && marks.n_bulk_bytes == 0);
    }

    #[test]
    fn what_outgrows_its_memory_is_one_range_for_each_relation() {
        let mut marks = Marks::default();
        marks.n_bulk_bytes = marks.limits.bytes_max;
        let of =
            |relation: u8, n: u16| Key::from([&[0, 0, 0, relation][..], &n.to_be_bytes()].concat());
        for part in 0..3 {
            let keys = |relation| (0..200).map(move |n| of(relation, part * 400 + n * 2));
            marks.add(TxnId(1), &keys(7).chain(keys(9)).collect::<Vec<_>>(), &[]);
        }
        marks.promise(TxnId(1), Scn(5));
        assert_eq!(marks.bulks[&TxnId(1)].by_relation.len(), 2);
        assert!(marks.blocks_key(&of(7, 1), at(10)) && marks.blocks_key(&of(9, 1198), at(10)));
        assert!(!marks.blocks_key(&of(7, 1199), at(10)) && !marks.blocks_key(&of(8, 0), at(10)));
    }
}
