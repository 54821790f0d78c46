//! What committed commands do to a tablet: a function of the store's state and the command.
//!
//! Every replica runs it over the same log and ends in the same state. It draws no numbers, asks no
//! clock and sends nothing. It adds its effects to one atomic batch and returns the answer for the
//! proposer. Replaying an entry over its own effects changes nothing.

use crate::Error;
use crate::command::{
    Applied, Changes, Command, Descriptor, Outcome, Reject, SchemaUse, decode, encode,
};
use crate::keyspace;
use base::{Key, KeyRange, NodeId, Scn, TabletId, TxnId};
use consensus::Entry;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use storage::{Batch, Store};

/// Barriers that are kept per table. Within the retention a table has fewer definitions than this.
const N_BARRIERS_MAX: usize = 64;

/// What a replica keeps in memory of its tablet; all of it can be read back from the store.
#[derive(Clone, Debug)]
pub struct State {
    pub descriptor: Descriptor,
    /// For each table the versions below which requests are refused, each with the SCN since which it
    /// holds, by version. A read of the past obeys the barriers that held then, and not only the newest.
    /// Example: (8, 50), (9, 70): a read at 60 by version 8 is served, by version 7 it is refused.
    pub barriers: HashMap<u32, Vec<(u64, Scn)>>,
}

/// A commit record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub outcome: Outcome,
    pub participants: Vec<TabletId>,
}

/// One prepared part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    pub anchor: TabletId,
    pub changes: Changes,
}

/// What the node must do once the batch is in the store.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// The tablet `child` exists now, with a replica at each of `members`.
    Born { child: TabletId, members: Vec<NodeId> },
}

impl State {
    /// Reads back what the store holds; none for a replica that has not been filled yet.
    pub fn load(store: &Store, tablet: TabletId) -> Result<Option<State>, Error> {
        let Some(bytes) = store.meta_get(&keyspace::descriptor(tablet))? else { return Ok(None) };
        let descriptor = decode(&bytes, "a tablet's descriptor")?;
        let mut barriers = HashMap::new();
        for row in store.meta_scan(&keyspace::space(keyspace::Space::Barrier, tablet)) {
            let (key, value) = row?;
            if let Some(table) = key.last_chunk::<4>() {
                let standing: Vec<(u64, Scn)> = decode(&value, "schema barriers")?;
                barriers.insert(u32::from_be_bytes(*table), standing);
            }
        }
        Ok(Some(State { descriptor, barriers }))
    }

    /// The table among `uses` whose definition is too old for a request at `at` (none: newest).
    pub fn stale(&self, uses: &[SchemaUse], at: Option<Scn>) -> Option<u32> {
        if self.barriers.is_empty() {
            return None;
        }
        let old = |used: &&SchemaUse| {
            let standing = self.barriers.get(&used.table).into_iter().flatten();
            // The first barrier above the version is the earliest.
            let above = standing.into_iter().find(|(version, _)| used.version < *version);
            above.is_some_and(|(_, since)| at.is_none_or(|at| *since <= at))
        };
        uses.iter().find(old).map(|used| used.table)
    }

    fn check(&self, changes: &Changes, term: u64, entry: &Entry<'_>) -> Option<Reject> {
        if term != entry.position.term {
            return Some(Reject::Term);
        }
        let fits = |key: &Key| key.len() <= storage::KEY_BYTES_MAX;
        let range = &self.descriptor.range;
        if changes.writes.iter().any(|(key, _)| !range.contains(key) || !fits(key)) {
            return Some(Reject::Range);
        }
        self.stale(&changes.uses, None).map(|table| Reject::Schema { table })
    }

    fn carry_out(&mut self, tablet: TabletId, changes: Changes, scn: Scn, batch: &mut Batch) {
        for (key, value) in changes.writes {
            match value {
                Some(value) => batch.put(key, scn, value),
                None => batch.delete(key, scn),
            }
        }
        for barrier in changes.barriers {
            let standing = self.barriers.entry(barrier.table).or_default();
            // By version: the decision for an older version may be carried out after that for a newer one.
            standing.retain(|(version, _)| *version != barrier.version);
            let at = standing.partition_point(|(version, _)| *version < barrier.version);
            standing.insert(at, (barrier.version, scn));
            if standing.len() > N_BARRIERS_MAX {
                standing.remove(0);
            }
            batch.meta_put(keyspace::barrier(tablet, barrier.table), encode(standing));
        }
    }
}

/// Larger commands are applied apart from the votes: 64 KiB of rows take about half a millisecond.
const LONG_COMMAND_BYTES: usize = 64 << 10;
/// A command of a few numbers, such as [`Command::Resolve`], is no longer than this.
const SHORT_COMMAND_BYTES: usize = 64;

/// Whether a command writes so many rows that applying it takes long. A resolved part of a large transaction does,
/// though its command is short.
pub fn takes_long(command: &[u8]) -> bool {
    if command.len() <= SHORT_COMMAND_BYTES {
        let short = postcard::from_bytes(command);
        return matches!(short, Ok(Command::Resolve { part, .. }) if part > 0);
    }
    command.len() > LONG_COMMAND_BYTES
}

/// Applies one entry's command. `state` is none for a replica that was never filled; such a replica has
/// no entries to apply.
pub fn apply(
    store: &Store,
    tablet: TabletId,
    state: &mut Option<State>,
    entry: &Entry<'_>,
    batch: &mut Batch,
) -> Result<(Applied, Option<Effect>), Error> {
    let command: Command = decode(entry.command, "a command in the log")?;
    let Some(state) = state else {
        return Err(Error::Internal {
            reason: format!("tablet {tablet} has entries but no state"),
        });
    };
    let applied = match command {
        Command::Ceiling { scn } => {
            batch.meta_put(keyspace::ceiling(), encode(&scn));
            Applied::Done
        }
        Command::Commit { txn, term, scn, changes } => match state.check(&changes, term, entry) {
            Some(reject) => Applied::Rejected(reject),
            None => {
                state.carry_out(tablet, changes, scn, batch);
                let outcome = Outcome::Committed(scn);
                batch.expiring_put(keyspace::outcome(tablet, txn), encode(&outcome));
                Applied::Done
            }
        },
        Command::Prepare { txn, term, anchor, part, changes } => {
            match (state.check(&changes, term, entry), outcome(store, tablet, txn)?) {
                (Some(reject), _) => Applied::Rejected(reject),
                (None, Some(outcome)) => Applied::Rejected(Reject::Decided(outcome)),
                (None, None) => {
                    let prepared = Prepared { anchor, changes };
                    batch.meta_put(keyspace::prepared(tablet, txn, part), encode(&prepared));
                    Applied::Done
                }
            }
        }
        Command::Decide { txn, outcome: wanted, participants } => {
            let is_prepared = || parts(store, tablet, txn).next().is_some();
            match (outcome(store, tablet, txn)?, wanted) {
                (Some(standing), _) => Applied::Decided(standing),
                // The anchor is a participant. If it has nothing prepared any more, it was told of an
                // abort, so long ago that the outcome has expired.
                (None, Outcome::Committed(_)) if !is_prepared() => {
                    Applied::Decided(Outcome::Aborted)
                }
                (None, _) => {
                    let record = Record { outcome: wanted, participants };
                    batch.meta_put(keyspace::record(tablet, txn), encode(&record));
                    Applied::Decided(wanted)
                }
            }
        }
        Command::Resolve { txn, part, outcome } => {
            let key = keyspace::prepared(tablet, txn, part);
            if let Some(bytes) = store.meta_get(&key)? {
                let prepared: Prepared = decode(&bytes, "a prepared part")?;
                if let Outcome::Committed(scn) = outcome {
                    state.carry_out(tablet, prepared.changes, scn, batch);
                }
                batch.meta_delete(key);
            }
            Applied::Done
        }
        Command::Forget { txn } => {
            let key = keyspace::record(tablet, txn);
            if let Some(bytes) = store.meta_get(&key)? {
                let record: Record = decode(&bytes, "a commit record")?;
                batch.expiring_put(keyspace::outcome(tablet, txn), encode(&record.outcome));
                batch.meta_delete(key);
            }
            Applied::Done
        }
        Command::Split { term, at, child } => {
            return match split(store, state, entry, term, &at, child, batch)? {
                Some(reject) => Ok((Applied::Rejected(reject), None)),
                None => Ok((
                    Applied::Done,
                    Some(Effect::Born { child, members: entry.members.to_vec() }),
                )),
            };
        }
    };
    Ok((applied, None))
}

/// Cuts the tablet at `at`. No row moves; the rows from `at` on belong to another tablet now. A tablet
/// with prepared parts is not split, because these would have to be cut too: its leader waits for them.
fn split(
    store: &Store,
    state: &mut State,
    entry: &Entry<'_>,
    term: u64,
    at: &Key,
    child: TabletId,
    batch: &mut Batch,
) -> Result<Option<Reject>, Error> {
    let parent = state.descriptor.tablet;
    let range = &state.descriptor.range;
    if term != entry.position.term {
        return Ok(Some(Reject::Term));
    }
    if !range.contains(at) || range.start == *at {
        return Ok(Some(Reject::Range));
    }
    if store.meta_scan(&keyspace::space(keyspace::Space::Prepared, parent)).next().is_some() {
        return Ok(Some(Reject::Busy));
    }
    let generation = state.descriptor.generation + 1;
    let upper = KeyRange { start: at.clone(), end: range.end.clone() };
    let lower = KeyRange { start: range.start.clone(), end: Some(at.clone()) };
    let born = Descriptor { tablet: child, generation, range: upper };
    // At once: the next entry of the same batch may cut again.
    state.descriptor = Descriptor { tablet: parent, generation, range: lower };
    batch.meta_put(keyspace::descriptor(parent), encode(&state.descriptor));
    batch.meta_put(keyspace::descriptor(child), encode(&born));
    for (table, standing) in &state.barriers {
        batch.meta_put(keyspace::barrier(child, *table), encode(standing));
    }
    consensus::seed(batch, child, entry.members);
    Ok(None)
}

/// The parts of `txn` that are prepared here.
fn parts(store: &Store, tablet: TabletId, txn: TxnId) -> storage::MetaIter {
    let (first, end) =
        (keyspace::prepared(tablet, txn, 0), keyspace::prepared(tablet, txn, u32::MAX));
    store.meta_scan(&KeyRange::new(first, end))
}

/// The first prepared part of `txn` here with the number `from` or a higher one.
pub fn part_from(
    store: &Store,
    tablet: TabletId,
    txn: TxnId,
    from: u32,
) -> Result<Option<u32>, Error> {
    let (first, end) =
        (keyspace::prepared(tablet, txn, from), keyspace::prepared(tablet, txn, u32::MAX));
    let Some(row) = store.meta_scan(&KeyRange::new(first, end)).next() else { return Ok(None) };
    Ok(row?.0.last_chunk().map(|part| u32::from_be_bytes(*part)))
}

/// How `txn` was decided here, whether its record still stands or has moved to the outcomes.
pub fn outcome(store: &Store, tablet: TabletId, txn: TxnId) -> Result<Option<Outcome>, Error> {
    if let Some(bytes) = store.meta_get(&keyspace::record(tablet, txn))? {
        let record: Record = decode(&bytes, "a commit record")?;
        return Ok(Some(record.outcome));
    }
    match store.expiring_get(&keyspace::outcome(tablet, txn))? {
        Some(bytes) => Ok(Some(decode(&bytes, "an outcome")?)),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_parts_take_long_when_they_come_and_when_they_are_resolved() {
        let txn = TxnId(7);
        let changes = |bytes: usize| Changes {
            writes: vec![(Key::from_static(b"k"), Some(bytes::Bytes::from(vec![1; bytes])))],
            ..Changes::default()
        };
        let prepare = |bytes| {
            let (anchor, changes) = (TabletId(1), changes(bytes));
            encode(&Command::Prepare { txn, term: 1, anchor, part: 0, changes })
        };
        assert!(takes_long(&prepare(1 << 20)) && !takes_long(&prepare(1_000)));
        let resolve = |part| encode(&Command::Resolve { txn, part, outcome: Outcome::Aborted });
        assert!(takes_long(&resolve(3)) && !takes_long(&resolve(0)));
        assert!(!takes_long(&encode(&Command::Forget { txn })) && !takes_long(&[]));
    }

    /// Locks of term 3 are gone in term 4, whatever way the entry took into its log.
    #[test]
    fn what_was_locked_in_another_term_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let env = base::Env::seeded(1, std::sync::Arc::new(base::env::MemoryNet::default()));
        let store = Store::open(&env, dir.path(), storage::Options::default()).unwrap();
        let tablet = TabletId(7);
        let descriptor = Descriptor { tablet, range: KeyRange::all(), generation: 1 };
        let mut state = Some(State { descriptor, barriers: HashMap::new() });
        let key = Key::from_static(b"k");
        let write = (key.clone(), Some(bytes::Bytes::from_static(b"v")));
        let changes = Changes { writes: vec![write], ..Changes::default() };
        for (term, expected) in [(3, Applied::Rejected(Reject::Term)), (4, Applied::Done)] {
            let (one, two, scn) = (TxnId(1), TxnId(2), Scn(5));
            let (anchor, part, changes) = (tablet, 0, changes.clone());
            let commands = [
                Command::Commit { txn: one, term, scn, changes: changes.clone() },
                Command::Prepare { txn: two, term, anchor, part, changes },
            ];
            for command in commands {
                let (command, mut batch) = (encode(&command), Batch::default());
                let position = consensus::Position { term: 4, index: 9 };
                let entry = Entry { position, command: &command, members: &[] };
                let applied = apply(&store, tablet, &mut state, &entry, &mut batch).unwrap();
                assert_eq!(applied, (expected.clone(), None), "{term}");
                batch.applied(tablet, 9, bytes::Bytes::from_static(b"mark"));
                store.apply(batch).unwrap();
            }
            let row = store.get(&key, storage::At::Newest).unwrap();
            let n_parts = parts(&store, tablet, two).count();
            assert_eq!((row.is_some(), n_parts), (term == 4, usize::from(term == 4)));
        }
    }

    #[test]
    fn definitions_stand_in_the_order_of_their_versions() {
        let tablet = TabletId(7);
        let descriptor = Descriptor { tablet, range: KeyRange::all(), generation: 1 };
        let mut state = State { descriptor, barriers: HashMap::new() };
        let of = |version| SchemaUse { table: 9, version };
        let mut batch = Batch::default();
        // The decision for version 3 is carried out here after the one for version 4.
        for (version, scn) in [(2, 20), (4, 40), (3, 30), (3, 30)] {
            let changes = Changes { barriers: vec![of(version)], ..Changes::default() };
            state.carry_out(tablet, changes, Scn(scn), &mut batch);
        }
        assert_eq!(state.barriers[&9], [(2, Scn(20)), (3, Scn(30)), (4, Scn(40))]);
        assert_eq!(state.stale(&[of(3)], None), Some(9));
        assert_eq!(state.stale(&[of(3)], Some(Scn(39))), None);
        assert_eq!(state.stale(&[of(2)], Some(Scn(30))), Some(9));
    }
}
