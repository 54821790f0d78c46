//! The memory of one leadership: locks, marks, prepared transactions. A new leader begins without the
//! locks and marks, except for those of prepared transactions, which it reads back from the store.

use super::marks::Marks;
use crate::command::{SchemaUse, decode};
use crate::key_set::SetLimits;
use crate::locks::{LockTable, Ticket};
use crate::machine::Prepared;
use crate::message::{Epoch, TxnState};
use crate::{Error, keyspace};
use base::env::Instant;
use base::{Key, Scn, TabletId, TxnId};
use std::collections::{HashMap, HashSet};
use storage::Store;
use tokio::sync::oneshot;

pub(crate) struct Lead {
    pub(crate) epoch: Epoch,
    pub(crate) locks: LockTable,
    pub(crate) wakers: HashMap<Ticket, oneshot::Sender<()>>,
    pub(crate) marks: Marks,
    pub(crate) prepared: HashMap<TxnId, Waiting>,
    /// Transactions whose locks this tablet took away, and when. Whatever they ask is refused. An entry is
    /// removed once the coordinator says that it runs no such transaction.
    doomed: HashMap<TxnId, Instant>,
    /// A split waits for commits under way to end and keeps new ones waiting.
    pub(crate) splitting: bool,
    /// A cut was proposed, and it is not known yet whether it was made: the tablet vouches for nothing.
    pub(crate) cutting: bool,
    /// An SCN that was handed out before now. Commits that promise from now on get larger ones.
    pub(crate) floor: Scn,
    /// The coordinators that do not answer, and since when.
    pub(crate) silent: HashMap<base::NodeId, Instant>,
    /// Transactions whose decision is being carried out.
    pub(crate) resolving: HashSet<TxnId>,
}

/// A prepared transaction that waits for its decision.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) anchor: TabletId,
    pub(crate) since: Instant,
}

impl Lead {
    /// Begins a leadership. Its only locks are those of prepared transactions, which outlive leaders.
    pub(crate) fn take_over(
        store: &Store,
        tablet: TabletId,
        epoch: Epoch,
        now: Instant,
        limits: SetLimits,
    ) -> Result<Lead, Error> {
        let mut lead = Lead {
            epoch,
            locks: LockTable::new(limits),
            wakers: HashMap::new(),
            marks: Marks::new(limits),
            prepared: HashMap::new(),
            doomed: HashMap::new(),
            splitting: false,
            cutting: false,
            floor: Scn::ZERO,
            silent: HashMap::new(),
            resolving: HashSet::new(),
        };
        for row in store.meta_scan(&keyspace::space(keyspace::Space::Prepared, tablet)) {
            let (key, value) = row?;
            let Some(txn) = key.get(9..17) else { continue };
            let txn = TxnId(txn.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)));
            let prepared: Prepared = decode(&value, "a prepared part")?;
            let keys: Vec<Key> =
                prepared.changes.writes.iter().map(|(key, _)| key.clone()).collect();
            lead.locks.restore(now, txn, &keys);
            lead.marks.add(txn, &keys, &prepared.changes.barriers);
            // Prepared for who knows how long: the first sweep asks for it.
            let since = now.checked_sub(super::sweep::PREPARED_PATIENCE).unwrap_or(now);
            lead.is_prepared(txn, prepared.anchor, since);
            // The tablet may have promised, and a number may have been drawn: this leader does not know which.
            lead.marks.promise(txn, Scn::ZERO);
        }
        Ok(lead)
    }

    pub(crate) fn is_prepared(&mut self, txn: TxnId, anchor: TabletId, now: Instant) {
        self.prepared.entry(txn).or_insert(Waiting { anchor, since: now });
        self.marks.set_prepared(txn);
    }

    /// Gives back all that `txn` has here, and wakes the requests that waited for it.
    pub(crate) fn finish(&mut self, txn: TxnId) {
        self.marks.remove(txn);
        self.prepared.remove(&txn);
        let woken = self.locks.release(txn);
        self.wake(woken);
    }

    pub(crate) fn wake(&mut self, tickets: Vec<Ticket>) {
        for ticket in tickets {
            if let Some(waker) = self.wakers.remove(&ticket) {
                // A transaction that gave up waiting in this very moment keeps the lock until its end.
                waker.send(()).ok();
            }
        }
    }

    /// May `txn` go on here with the locks it has?
    pub(crate) fn holds_for(&self, txn: TxnId) -> bool {
        !self.is_doomed(txn) && self.locks.holds_any(txn)
    }

    pub(crate) fn is_doomed(&self, txn: TxnId) -> bool {
        self.doomed.contains_key(&txn)
    }

    /// What `txn` asks here from now on is refused.
    pub(crate) fn doom(&mut self, txn: TxnId, now: Instant) {
        self.doomed.entry(txn).or_insert(now);
    }

    /// The transactions that were doomed before `before`: requests that they sent earlier have arrived by now.
    pub(crate) fn doomed_before(&self, before: Option<Instant>) -> Vec<TxnId> {
        let old = self.doomed.iter().filter(|(_, since)| before.is_some_and(|at| **since < at));
        old.map(|(txn, _)| *txn).collect()
    }

    /// `txn` runs nowhere any more, and will never ask again.
    pub(crate) fn forget_doomed(&mut self, txn: TxnId) {
        self.doomed.remove(&txn);
    }

    /// Must `txn` wait for another transaction that is about to change a definition?
    ///
    /// The transaction that changes a table holds range locks on the table, and these keep other
    /// transactions out. But the range locks end with the leadership. Of a schema change that was prepared
    /// under an earlier leader only the marks are left, so this asks the marks. Example: D is prepared
    /// with version 5 of table 9, and the leader changes. T goes by version 4 of table 9: it waits for D's
    /// decision. `barriers`: the definitions that `txn` itself changes; it waits for another change of the
    /// same table too.
    pub(crate) fn is_walled(&self, txn: TxnId, uses: &[SchemaUse], barriers: &[SchemaUse]) -> bool {
        let others = self.marks.walls().filter(|(_, owner)| *owner != txn);
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
        self.marks.transactions().map(|txn| (txn, state(&txn))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Changes, encode};
    use crate::locks::{Answer, Target};
    use crate::{LockMode, Wait};
    use base::Env;
    use base::env::MemoryNet;
    use std::sync::Arc;
    use storage::{Batch, Options};

    fn key(n: u16) -> Key {
        Key::copy_from_slice(&n.to_be_bytes())
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
        let mut lead =
            Lead::take_over(&store, tablet, epoch, env.now(), SetLimits::default()).unwrap();
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
        let mut lead =
            Lead::take_over(&store, tablet, epoch, env.now(), SetLimits::default()).unwrap();
        let ask = |lead: &mut Lead, n| {
            let target = Target::Key(key(n));
            lead.locks.request(env.now(), other, target, LockMode::Exclusive, Wait::NoWait)
        };
        assert!(matches!(ask(&mut lead, 300), Answer::Refused));
        lead.finish(many);
        assert!(matches!(ask(&mut lead, 301), Answer::Refused), "still in doubt");
        assert!(matches!(ask(&mut lead, 300), Answer::Granted));
    }

    #[test]
    fn who_is_doomed_is_refused_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let env = Env::seeded(1, Arc::new(MemoryNet::default()));
        let store = Store::open(&env, dir.path(), Options::default()).unwrap();
        let epoch = Epoch { node: base::NodeId(1), term: 1, nonce: 1 };
        let now = env.now();
        let mut lead =
            Lead::take_over(&store, TabletId(7), epoch, now, SetLimits::default()).unwrap();
        let later = now + std::time::Duration::from_secs(1);
        lead.locks.restore(now, TxnId(1), &[key(1)]);
        assert!(lead.holds_for(TxnId(1)));
        lead.doom(TxnId(1), now);
        lead.doom(TxnId(2), later);
        assert!(!lead.holds_for(TxnId(1)));
        assert_eq!(lead.doomed_before(Some(later)), [TxnId(1)], "the other's may be on its way");
        assert_eq!(lead.doomed_before(None), []);
        lead.forget_doomed(TxnId(1));
        assert!(!lead.is_doomed(TxnId(1)) && lead.is_doomed(TxnId(2)));
    }
}
