//! What a leader remembers and a new leader does not: locks, marks, prepared transactions.

use crate::command::{SchemaUse, decode};
use crate::locks::{LockTable, Target, Ticket};
use crate::machine::Prepared;
use crate::message::{Epoch, ReadAt, TxnState};
use crate::{Error, LockMode, Wait, keyspace};
use base::env::Instant;
use base::{Key, KeyRange, Scn, TabletId, TxnId};
use std::collections::{BTreeMap, HashMap, HashSet};
use storage::Store;
use tokio::sync::oneshot;

pub(crate) struct Lead {
    pub(crate) epoch: Epoch,
    pub(crate) locks: LockTable,
    pub(crate) wakers: HashMap<Ticket, oneshot::Sender<()>>,
    pub(crate) marks: Marks,
    pub(crate) prepared: HashMap<TxnId, Waiting>,
    /// Transactions whose locks were taken from them: whatever they ask now is refused.
    pub(crate) doomed: HashSet<TxnId>,
    /// A split waits for commits under way to end and keeps new ones waiting.
    pub(crate) splitting: bool,
    /// A cut was proposed and its fate is not known here: nothing is vouched for.
    pub(crate) cutting: bool,
    /// A number handed out before now; commits that are marked from now on get larger ones.
    pub(crate) floor: Scn,
    /// Since when the coordinators of these transactions do not answer.
    pub(crate) silent: HashMap<base::NodeId, Instant>,
}

/// A prepared transaction that waits for its decision.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) anchor: TabletId,
    pub(crate) since: Instant,
}

impl Lead {
    /// Begins a leadership: no locks but those of prepared transactions, which outlive leaders.
    pub(crate) fn take_over(
        store: &Store,
        tablet: TabletId,
        epoch: Epoch,
        now: Instant,
    ) -> Result<Lead, Error> {
        let mut lead = Lead {
            epoch,
            locks: LockTable::default(),
            wakers: HashMap::new(),
            marks: Marks::default(),
            prepared: HashMap::new(),
            doomed: HashSet::new(),
            splitting: false,
            cutting: false,
            floor: Scn::ZERO,
            silent: HashMap::new(),
        };
        for row in store.meta_scan(&keyspace::space(keyspace::Space::Prepared, tablet)) {
            let (key, value) = row?;
            let Some(txn) = key.get(9..17) else { continue };
            let txn = TxnId(txn.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)));
            let prepared: Prepared = decode(&value, "a prepared part")?;
            let keys: Vec<Key> =
                prepared.changes.writes.iter().map(|(key, _)| key.clone()).collect();
            // Key by key: one lock over a range could keep out another who is prepared within it.
            for key in &keys {
                let target = Target::Key(key.clone());
                lead.locks.request(now, txn, target, LockMode::Exclusive, Wait::NoWait);
            }
            lead.marks.add(txn, &keys, &prepared.changes.barriers, Scn::ZERO);
            lead.is_prepared(txn, prepared.anchor, now);
        }
        Ok(lead)
    }

    pub(crate) fn is_prepared(&mut self, txn: TxnId, anchor: TabletId, now: Instant) {
        self.prepared.entry(txn).or_insert(Waiting { anchor, since: now });
        self.marks.set_prepared(txn);
    }

    /// Gives back all that `txn` has here and wakes who waited for it.
    pub(crate) fn finish(&mut self, txn: TxnId) {
        self.marks.remove(txn);
        self.prepared.remove(&txn);
        let woken = self.locks.release(txn);
        self.wake(woken);
    }

    pub(crate) fn wake(&mut self, tickets: Vec<Ticket>) {
        for ticket in tickets {
            if let Some(waker) = self.wakers.remove(&ticket) {
                // Who gave up waiting in this very moment still holds the lock until its end.
                waker.send(()).ok();
            }
        }
    }

    /// May `txn` go on here with the locks it has?
    pub(crate) fn holds_for(&self, txn: TxnId) -> bool {
        !self.doomed.contains(&txn) && self.locks.holds_any(txn)
    }

    /// Must `txn` wait for a definition that is about to change? Who changes it has locked the
    /// table's ranges, and keeps others out by that; but locks end with a leadership, and of what
    /// was prepared in an earlier one there are the marks only. `barriers`: what `txn` defines
    /// itself, in its turn.
    pub(crate) fn is_walled(&self, txn: TxnId, uses: &[SchemaUse], barriers: &[SchemaUse]) -> bool {
        let others = self.marks.walls.iter().filter(|(_, owner)| *owner != txn);
        let mut prepared = others.filter(|(_, owner)| self.prepared.contains_key(owner));
        prepared.any(|(wall, _)| {
            uses.iter().any(|used| used.table == wall.table && used.version < wall.version)
                || barriers.iter().any(|own| own.table == wall.table)
        })
    }

    pub(crate) fn undecided(&self) -> Vec<(TxnId, TxnState)> {
        let state = |txn: &TxnId| match self.prepared.contains_key(txn) {
            true => TxnState::InDoubt,
            false => TxnState::Committing,
        };
        self.marks.by_txn.keys().map(|txn| (*txn, state(txn))).collect()
    }
}

/// The keys whose commit is under way. A snapshot reader waits for those that may get a number
/// within its snapshot, and for nothing else.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    points: BTreeMap<Key, TxnId>,
    ranges: Vec<(KeyRange, TxnId)>,
    /// Definitions of tables that change with these commits.
    walls: Vec<(SchemaUse, TxnId)>,
    by_txn: HashMap<TxnId, Mark>,
}

#[derive(Debug)]
struct Mark {
    /// Known once drawn.
    scn: Option<Scn>,
    prepared: bool,
    /// Its number will be larger than this.
    floor: Scn,
}

impl Mark {
    fn blocks(&self, at: ReadAt) -> bool {
        match at {
            // Not acknowledged before it is applied, so the newest state may leave it out; a
            // prepared one may be decided and acknowledged already.
            ReadAt::Newest => self.prepared,
            ReadAt::Snapshot(at) => self.scn.is_none_or(|scn| scn <= at),
        }
    }
}

/// Marks of this many keys are kept as one range.
const RANGE_KEYS_MIN: usize = 256;

impl Marks {
    /// `keys` are sorted.
    pub(crate) fn add(&mut self, txn: TxnId, keys: &[Key], walls: &[SchemaUse], floor: Scn) {
        self.walls.extend(walls.iter().map(|wall| (*wall, txn)));
        let fresh = || Mark { scn: None, prepared: false, floor };
        self.by_txn.entry(txn).or_insert_with(fresh);
        match keys {
            [first, .., last] if keys.len() >= RANGE_KEYS_MIN => {
                let range = KeyRange::new(first.clone(), base::key::successor(last));
                self.ranges.push((range, txn));
            }
            _ => self.points.extend(keys.iter().map(|key| (key.clone(), txn))),
        }
    }

    pub(crate) fn drawn(&mut self, txn: TxnId, scn: Scn) {
        if let Some(mark) = self.by_txn.get_mut(&txn) {
            mark.scn = Some(scn);
        }
    }

    fn set_prepared(&mut self, txn: TxnId) {
        if let Some(mark) = self.by_txn.get_mut(&txn) {
            mark.prepared = true;
        }
    }

    pub(crate) fn remove(&mut self, txn: TxnId) {
        if self.by_txn.remove(&txn).is_some() {
            self.points.retain(|_, owner| *owner != txn);
            self.ranges.retain(|(_, owner)| *owner != txn);
            self.walls.retain(|(_, owner)| *owner != txn);
        }
    }

    pub(crate) fn contains(&self, txn: TxnId) -> bool {
        self.by_txn.contains_key(&txn)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_txn.is_empty()
    }

    /// No mark that is set has a number at or below this; none if nothing is marked.
    pub(crate) fn lowest_floor(&self) -> Option<Scn> {
        self.by_txn.values().map(|mark| mark.floor).min()
    }

    /// A table that the reader goes by may have a newer definition within its snapshot.
    pub(crate) fn blocks_uses(&self, uses: &[SchemaUse], at: ReadAt) -> bool {
        self.walls.iter().any(|(wall, txn)| {
            uses.iter().any(|used| used.table == wall.table && used.version < wall.version)
                && self.by_txn.get(txn).is_some_and(|mark| mark.blocks(at))
        })
    }

    pub(crate) fn blocks_key(&self, key: &Key, at: ReadAt) -> bool {
        if self.by_txn.is_empty() {
            return false;
        }
        let blocks = |txn: &TxnId| self.by_txn.get(txn).is_some_and(|mark| mark.blocks(at));
        self.points.get(key).is_some_and(blocks)
            || self.ranges.iter().any(|(range, txn)| range.contains(key) && blocks(txn))
    }

    pub(crate) fn blocks_range(&self, range: &KeyRange, at: ReadAt) -> bool {
        let marks = self.by_txn.iter().filter(|(_, mark)| mark.blocks(at));
        let blocking: HashSet<TxnId> = marks.map(|(txn, _)| *txn).collect();
        if blocking.is_empty() {
            return false;
        }
        let mut points = self.points.range(range.start.clone()..);
        let point = points.try_for_each(|(key, txn)| match range.contains(key) {
            true if blocking.contains(txn) => Err(true),
            true => Ok(()),
            false => Err(false),
        });
        point == Err(true)
            || self
                .ranges
                .iter()
                .any(|(other, txn)| other.overlaps(range) && blocking.contains(txn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Changes, encode};
    use crate::locks::Answer;
    use base::Env;
    use base::env::MemoryNet;
    use std::sync::Arc;
    use storage::{Batch, Options};

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
        marks.add(txn, &[key(1)], &[], Scn(5));
        assert!(marks.blocks_key(&key(1), at(10)), "its number is not known yet");
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
        marks.add(TxnId(1), &[], &[SchemaUse { table: 7, version: 3 }], Scn(5));
        let uses = |version| [SchemaUse { table: 7, version }];
        assert!(marks.blocks_uses(&uses(2), at(10)));
        assert!(!marks.blocks_uses(&uses(3), at(10)));
        assert!(!marks.blocks_uses(&[SchemaUse { table: 8, version: 1 }], at(10)));
        marks.remove(TxnId(1));
        assert!(!marks.blocks_uses(&uses(2), at(10)));
    }

    #[test]
    fn a_new_leader_lets_nobody_by_a_definition_that_is_prepared() {
        let dir = tempfile::tempdir().unwrap();
        let env = Env::seeded(1, Arc::new(MemoryNet::default()));
        let store = Store::open(&env, dir.path(), Options::default()).unwrap();
        let (tablet, definer, other) = (TabletId(7), TxnId(1), TxnId(2));
        let of = |table, version| SchemaUse { table, version };
        let changes = Changes { barriers: vec![of(9, 5)], ..Changes::default() };
        let mut batch = Batch::default();
        let part = Prepared { anchor: tablet, changes };
        batch.meta_put(keyspace::prepared(tablet, definer, 0), encode(&part));
        store.apply(batch).unwrap();
        let epoch = Epoch { node: base::NodeId(1), term: 1, nonce: 1 };
        let mut lead = Lead::take_over(&store, tablet, epoch, env.now()).unwrap();
        assert!(lead.is_walled(other, &[of(9, 4)], &[]), "it goes by the older one");
        assert!(!lead.is_walled(other, &[of(9, 5), of(8, 1)], &[]));
        assert!(lead.is_walled(other, &[of(9, 5)], &[of(9, 6)]), "one definition after the other");
        assert!(!lead.is_walled(definer, &[of(9, 4)], &[of(9, 5)]));
        lead.finish(definer);
        assert!(!lead.is_walled(other, &[of(9, 4)], &[of(9, 6)]));
    }

    #[test]
    fn a_new_leader_locks_all_that_is_prepared_even_where_it_lies_side_by_side() {
        let dir = tempfile::tempdir().unwrap();
        let env = Env::seeded(1, Arc::new(MemoryNet::default()));
        let store = Store::open(&env, dir.path(), Options::default()).unwrap();
        let tablet = TabletId(7);
        let (many, one, other) = (TxnId(1), TxnId(2), TxnId(3));
        let mut batch = Batch::default();
        let mut prepare = |txn, keys: Vec<Key>| {
            let writes = keys.into_iter().map(|key| (key, None)).collect();
            let changes = Changes { writes, ..Changes::default() };
            let part = Prepared { anchor: tablet, changes };
            batch.meta_put(keyspace::prepared(tablet, txn, 0), encode(&part));
        };
        prepare(many, (0..600).filter(|n| n % 2 == 0).map(key).collect());
        prepare(one, vec![key(301)]);
        store.apply(batch).unwrap();
        let epoch = Epoch { node: base::NodeId(1), term: 1, nonce: 1 };
        let mut lead = Lead::take_over(&store, tablet, epoch, env.now()).unwrap();
        let ask = |lead: &mut Lead, n| {
            let target = Target::Key(key(n));
            lead.locks.request(env.now(), other, target, LockMode::Exclusive, Wait::NoWait)
        };
        assert!(matches!(ask(&mut lead, 300), Answer::Refused));
        lead.finish(many);
        assert!(matches!(ask(&mut lead, 301), Answer::Refused), "still in doubt");
        assert!(matches!(ask(&mut lead, 300), Answer::Granted));
    }
}
