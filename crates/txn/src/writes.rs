//! A transaction's writes until its commit: in memory, and in temporary files where they are many.
//!
//! ```text
//! put, delete ─► recent (a map) ── more than transaction_memory_bytes, or no memory left ──► a run in a file
//! read         ◄─ recent, else the newest run that knows the key
//! ```
//!
//! **Savepoints.** While there is one, each write notes what it replaced, at a position that only rises. Going back to
//! position p takes the writes at p and behind back. A run never mixes writes of both sides of a savepoint: with
//! savepoints at 3 and 7, `recent` becomes the runs 0..3, 3..7 and 7.., and going back to 7 drops the last one.
//!
//! **Memory** is borrowed from the node's budget, in steps, by whoever has more than [`FREE_BYTES`]. When it is refused,
//! the writes go to the file at once, so that many large transactions share what there is.
//!
//! Absent: durability. A transaction ends with its coordinator, and its file with both.

use crate::Error;
use base::budget::Exhausted;
use base::{Budget, Key, KeyRange, Limits, Loan};
use bytes::Bytes;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use storage::spill::{Run, RunScan, Spill, Write};

type Result<T> = std::result::Result<T, Error>;

/// What a write takes in memory beside its bytes, about.
const ENTRY_BYTES: usize = 120;
/// So little is not borrowed.
const FREE_BYTES: usize = 256 << 10;
const LOAN_STEP_BYTES: usize = 1 << 20;

/// Where a node's transactions put what they cannot keep in memory.
pub(crate) struct Room {
    dir: PathBuf,
    memory: Budget,
    limits: Limits,
    next_file: AtomicU64,
}

impl Room {
    pub(crate) fn new(dir: PathBuf, memory: &Budget, limits: &Limits) -> Room {
        let memory = memory.within(limits.write_memory_bytes);
        Room { dir, memory, limits: *limits, next_file: AtomicU64::new(0) }
    }

    fn file(&self) -> Result<Spill> {
        let n = self.next_file.fetch_add(1, Ordering::Relaxed);
        Spill::create(&self.dir, &format!("writes-{n}")).map_err(temporary)
    }
}

/// The writes as a reader sees them. They do not change.
#[derive(Clone, Default)]
pub(crate) struct Writes {
    recent: BTreeMap<Key, Option<Bytes>>,
    /// The newest last.
    runs: Vec<Layer>,
}

#[derive(Clone)]
struct Layer {
    run: Arc<Run>,
    /// The position of its first write.
    from: u64,
}

impl Writes {
    pub(crate) fn is_empty(&self) -> bool {
        self.recent.is_empty() && self.runs.is_empty()
    }

    /// This transaction's write of `key`: its value, or that it is deleted. None: it did not write it.
    pub(crate) fn get(&self, key: &Key) -> Result<Option<Option<Bytes>>> {
        if let Some(found) = self.recent.get(key) {
            return Ok(Some(found.clone()));
        }
        for layer in self.runs.iter().rev() {
            if let Some(found) = layer.run.get(key).map_err(temporary)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The smallest key in `range` that was written.
    pub(crate) fn first_in(&self, range: &KeyRange) -> Option<Result<Key>> {
        let recent = self.recent.range(range.start.clone()..).next().map(|(key, _)| key.clone());
        let mut first = recent.filter(|key| range.contains(key));
        for layer in &self.runs {
            match layer.run.scan(range).next() {
                Some(Ok((key, _))) if first.as_ref().is_none_or(|first| key < *first) => {
                    first = Some(key);
                }
                Some(Err(error)) => return Some(Err(temporary(error))),
                _ => {}
            }
        }
        first.map(Ok)
    }

    /// The writes in `range` in the order of their keys, each key once.
    pub(crate) fn scan(&self, range: &KeyRange) -> WritesScan {
        let from = self.recent.range(range.start.clone()..);
        let recent: Vec<Write> = from
            .take_while(|(key, _)| range.contains(key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let runs = self.runs.iter().map(|layer| layer.run.scan(range)).collect();
        WritesScan::new(runs, recent)
    }
}

/// Merges the runs and what is in memory; the newest write of a key wins.
pub(crate) struct WritesScan {
    runs: Vec<RunScan>,
    recent: std::vec::IntoIter<Write>,
    /// The next write of each source, the smallest key first, the newest source first.
    heads: BinaryHeap<Reverse<Head>>,
    failed: Option<Error>,
}

struct Head {
    key: Key,
    source: usize,
    value: Option<Bytes>,
}

impl Head {
    fn order(&self) -> (&Key, Reverse<usize>) {
        (&self.key, Reverse(self.source))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Head) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Head {}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Head) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Head {
    fn cmp(&self, other: &Head) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

impl WritesScan {
    fn new(runs: Vec<RunScan>, recent: Vec<Write>) -> WritesScan {
        let recent = recent.into_iter();
        let mut scan = WritesScan { runs, recent, heads: BinaryHeap::new(), failed: None };
        // What is in memory is the newest source.
        (0..=scan.runs.len()).for_each(|source| scan.advance(source));
        scan
    }

    fn advance(&mut self, source: usize) {
        let next = match self.runs.get_mut(source) {
            Some(run) => run.next().transpose().map_err(temporary),
            None => Ok(self.recent.next()),
        };
        match next {
            Ok(Some((key, value))) => self.heads.push(Reverse(Head { key, source, value })),
            Ok(None) => {}
            Err(error) => self.failed = Some(error),
        }
    }
}

impl Iterator for WritesScan {
    type Item = Result<Write>;

    fn next(&mut self) -> Option<Result<Write>> {
        if self.failed.is_some() {
            return self.failed.take().map(Err);
        }
        let Reverse(Head { key, source, value }) = self.heads.pop()?;
        self.advance(source);
        // Older writes of the same key.
        while let Some(Reverse(older)) = self.heads.peek()
            && older.key == key
        {
            let source = older.source;
            self.heads.pop();
            self.advance(source);
        }
        Some(Ok((key, value)))
    }
}

/// A position among a transaction's writes.
pub(crate) type Position = u64;

/// The writes as they grow.
pub(crate) struct Buffer {
    room: Arc<Room>,
    writes: Arc<Writes>,
    position: Position,
    /// What each write since `undo_from` replaced in `recent`; kept while there are savepoints.
    undo: Vec<(Key, Option<Option<Bytes>>)>,
    undo_from: Position,
    /// Where `recent` begins: behind it nothing is in a run.
    recent_from: Position,
    savepoints: Vec<Position>,
    /// What `recent` and `undo` take in memory.
    recent_bytes: usize,
    /// What the runs take in memory.
    resident_bytes: usize,
    loan: Loan,
    file: Option<Spill>,
}

impl Buffer {
    pub(crate) fn new(room: Arc<Room>) -> Buffer {
        Buffer {
            loan: room.memory.open(),
            room,
            writes: Arc::default(),
            position: 0,
            undo: Vec::new(),
            undo_from: 0,
            recent_from: 0,
            savepoints: Vec::new(),
            recent_bytes: 0,
            resident_bytes: 0,
            file: None,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// The writes up to now, for a reader. Later ones are not in it.
    pub(crate) fn shared(&self) -> Arc<Writes> {
        self.writes.clone()
    }

    pub(crate) fn take(&mut self) -> Arc<Writes> {
        std::mem::take(&mut self.writes)
    }

    pub(crate) fn get(&self, key: &Key) -> Result<Option<Option<Bytes>>> {
        self.writes.get(key)
    }

    /// After an error the write is not there, and all others are.
    pub(crate) fn write(&mut self, key: Key, value: Option<Bytes>) -> Result<()> {
        check_size(&key, value.as_ref(), self.room.limits.row_bytes)?;
        let size = key.len() + value.as_ref().map_or(0, Bytes::len) + ENTRY_BYTES;
        self.make_room(size)?;
        // Copies only while a reader of an earlier state is alive.
        let before = Arc::make_mut(&mut self.writes).recent.insert(key.clone(), value);
        self.recent_bytes += size;
        self.position += 1;
        if !self.savepoints.is_empty() {
            self.undo.push((key, before));
            self.recent_bytes += ENTRY_BYTES;
        }
        Ok(())
    }

    fn make_room(&mut self, more: usize) -> Result<()> {
        let limits = &self.room.limits;
        let runs: u64 = self.writes.runs.iter().map(|layer| layer.run.bytes()).sum();
        if runs + (self.recent_bytes + more) as u64 > limits.transaction_bytes as u64 {
            let reason = format!(
                "a transaction that writes more than {} bytes (transaction_bytes); write less at once",
                limits.transaction_bytes
            );
            return Err(Error::TooLarge { reason });
        }
        if self.recent_bytes + more > limits.transaction_memory_bytes {
            self.spill()?;
        }
        if self.borrow(more).is_ok() {
            return Ok(());
        }
        self.spill()?;
        self.borrow(more).map_err(|exhausted| {
            let reason = format!(
                "this node has no memory left for a row of {more} bytes: {} are left for writes of all transactions",
                exhausted.left
            );
            Error::OutOfMemory { reason }
        })
    }

    /// Borrows for `more` bytes beside what there is.
    fn borrow(&mut self, more: usize) -> std::result::Result<(), Exhausted> {
        let wanted = self.recent_bytes + self.resident_bytes + more;
        match wanted <= FREE_BYTES || wanted <= self.loan.bytes() {
            true => Ok(()),
            false => self.loan.set(wanted.next_multiple_of(LOAN_STEP_BYTES)),
        }
    }

    /// Moves what is in memory to the file.
    fn spill(&mut self) -> Result<()> {
        if self.writes.recent.is_empty() {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(self.room.file()?),
        };
        let mut layers = Vec::new();
        let mut layer = |from: Position, writes: &BTreeMap<Key, Option<Bytes>>| -> Result<()> {
            if !writes.is_empty() {
                let run = file.write(writes.len(), writes.iter()).map_err(temporary)?;
                layers.push(Layer { run: Arc::new(run), from });
            }
            Ok(())
        };
        let mut cuts: Vec<Position> = self.savepoints.clone();
        cuts.retain(|at| *at > self.recent_from && *at < self.position);
        cuts.sort_unstable();
        cuts.dedup();
        if cuts.is_empty() {
            layer(self.recent_from, &self.writes.recent)?;
        } else {
            // From the newest writes back, each piece is what it wrote last under each key.
            let mut state = self.writes.recent.clone();
            let mut undo = &self.undo[..];
            for cut in cuts.iter().rev() {
                let (rest, piece) = undo.split_at((cut - self.undo_from) as usize);
                undo = rest;
                let keys = piece.iter().map(|(key, _)| key);
                let writes = keys.filter_map(|key| Some((key.clone(), state.get(key)?.clone())));
                layer(*cut, &writes.collect())?;
                go_back(&mut state, piece.iter().cloned());
            }
            layer(self.recent_from, &state)?;
            layers.reverse();
        }
        let mut runs = self.writes.runs.clone();
        runs.append(&mut layers);
        self.writes = Arc::new(Writes { recent: BTreeMap::new(), runs });
        self.forget_undo();
        self.recent_from = self.position;
        self.count_anew();
        Ok(())
    }

    /// When `recent` is empty.
    fn count_anew(&mut self) {
        self.recent_bytes = 0;
        self.resident_bytes = self.writes.runs.iter().map(|layer| layer.run.resident_bytes()).sum();
        self.loan.shrink_to(self.resident_bytes.next_multiple_of(LOAN_STEP_BYTES));
    }

    fn forget_undo(&mut self) {
        self.recent_bytes = self.recent_bytes.saturating_sub(self.undo.len() * ENTRY_BYTES);
        self.undo.clear();
        self.undo_from = self.position;
    }

    pub(crate) fn savepoint(&mut self) -> Position {
        if self.savepoints.is_empty() {
            self.forget_undo();
        }
        self.savepoints.push(self.position);
        self.position
    }

    /// Nobody will go back to `savepoint`.
    pub(crate) fn release(&mut self, savepoint: Position) {
        if let Some(at) = self.savepoints.iter().rposition(|at| *at == savepoint) {
            self.savepoints.remove(at);
        }
        if self.savepoints.is_empty() {
            self.forget_undo();
        }
    }

    /// Takes back the writes since `savepoint`, which stays.
    pub(crate) fn rollback_to(&mut self, savepoint: Position) {
        let writes = Arc::make_mut(&mut self.writes);
        if savepoint < self.recent_from {
            writes.recent.clear();
            writes.runs.retain(|layer| layer.from < savepoint);
            self.undo.clear();
            self.undo_from = savepoint;
            self.recent_from = savepoint;
            self.count_anew();
        } else {
            let kept = savepoint.saturating_sub(self.undo_from) as usize;
            let undone = self.undo.drain(kept.min(self.undo.len())..).rev();
            for (key, before) in undone {
                restore(&mut writes.recent, key, before);
            }
        }
        self.position = savepoint;
        self.savepoints.retain(|at| *at <= savepoint);
    }
}

fn go_back(
    state: &mut BTreeMap<Key, Option<Bytes>>,
    undo: impl DoubleEndedIterator<Item = (Key, Option<Option<Bytes>>)>,
) {
    undo.rev().for_each(|(key, before)| restore(state, key, before));
}

fn restore(state: &mut BTreeMap<Key, Option<Bytes>>, key: Key, before: Option<Option<Bytes>>) {
    match before {
        Some(before) => state.insert(key, before),
        None => state.remove(&key),
    };
}

/// Refuses writes that no replica could apply, before they get into a log.
fn check_size(key: &Key, value: Option<&Bytes>, row_bytes_max: usize) -> Result<()> {
    let too_large = |what: &str, bytes: usize, max: usize| {
        Err(Error::TooLarge { reason: format!("{what} of {bytes} bytes exceeds {max}") })
    };
    match value {
        _ if key.len() > storage::KEY_BYTES_MAX => {
            too_large("a primary key or index entry", key.len(), storage::KEY_BYTES_MAX)
        }
        Some(value) if value.len() > row_bytes_max => {
            too_large("a row", value.len(), row_bytes_max)
        }
        _ => Ok(()),
    }
}

/// A temporary file failed. The transaction ends, the node goes on: nothing durable is in such a file.
fn temporary(error: storage::Error) -> Error {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    let full = |kind| matches!(kind, StorageFull | QuotaExceeded);
    let is_full = matches!(&error, storage::Error::Io { source, .. } if full(source.kind()));
    let reason = error.to_string();
    match is_full {
        true => Error::DiskFull { reason },
        false => Error::Internal { reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    fn room(limits: Limits) -> (Arc<Room>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let memory = Budget::new(limits.memory_bytes);
        (Arc::new(Room::new(dir.path().join("temporary"), &memory, &limits)), dir)
    }

    fn key(n: u64) -> Key {
        format!("k{n:04}").into()
    }

    /// The model: a map, and a copy of it for each savepoint.
    #[test]
    fn writes_are_a_map_that_can_go_back() {
        let limits = Limits { transaction_memory_bytes: 4_000, ..Limits::default() };
        let mut n_spilled = 0;
        for seed in 0..300 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let (room, _dir) = room(limits);
            let mut buffer = Buffer::new(room);
            let mut model: BTreeMap<Key, Option<Bytes>> = BTreeMap::new();
            let mut savepoints: Vec<(Position, BTreeMap<Key, Option<Bytes>>)> = Vec::new();
            for step in 0..400 {
                match rng.random_range(0..40) {
                    0..30 => {
                        let key = key(rng.random_range(0..60));
                        let value = rng.random_bool(0.7).then(|| Bytes::from(format!("{step}")));
                        buffer.write(key.clone(), value.clone()).unwrap();
                        model.insert(key, value);
                    }
                    30..34 => savepoints.push((buffer.savepoint(), model.clone())),
                    34..36 if !savepoints.is_empty() => {
                        let at = rng.random_range(0..savepoints.len());
                        savepoints.truncate(at + 1);
                        buffer.rollback_to(savepoints[at].0);
                        model = savepoints[at].1.clone();
                    }
                    36..38 if !savepoints.is_empty() => {
                        let at = rng.random_range(0..savepoints.len());
                        for (position, _) in savepoints.drain(at..).rev() {
                            buffer.release(position);
                        }
                    }
                    _ => {
                        let at = key(rng.random_range(0..60));
                        assert_eq!(
                            buffer.get(&at).unwrap(),
                            model.get(&at).cloned(),
                            "{seed} {step}"
                        );
                    }
                }
                if step % 20 == 0 {
                    let (from, to) = (key(rng.random_range(0..60)), key(rng.random_range(0..60)));
                    let range = KeyRange::new(from.clone(), to.clone());
                    let found = buffer.shared().scan(&range).collect::<Result<Vec<_>>>().unwrap();
                    let right = model.iter().filter(|(key, _)| range.contains(key));
                    let right: Vec<Write> = right.map(|(k, v)| (k.clone(), v.clone())).collect();
                    assert_eq!(found, right, "{seed} {step}");
                }
            }
            assert_eq!(buffer.is_empty(), model.is_empty());
            n_spilled += buffer.shared().runs.len();
        }
        assert!(n_spilled > 1_000, "{n_spilled} runs");
    }

    #[test]
    fn a_reader_keeps_what_it_saw() {
        let (room, _dir) = room(Limits { transaction_memory_bytes: 2_000, ..Limits::default() });
        let mut buffer = Buffer::new(room);
        for n in 0..50 {
            buffer.write(key(n), Some(Bytes::from_static(b"old"))).unwrap();
        }
        let seen = buffer.shared();
        for n in 0..50 {
            buffer.write(key(n), Some(Bytes::from_static(b"new"))).unwrap();
        }
        let old: Vec<Write> = seen.scan(&KeyRange::all()).map(Result::unwrap).collect();
        assert!(old.len() == 50 && old.iter().all(|(_, value)| value.as_deref() == Some(b"old")));
        assert_eq!(buffer.get(&key(7)).unwrap(), Some(Some(Bytes::from_static(b"new"))));
    }

    #[test]
    fn limits_are_kept_and_memory_comes_back() {
        let limits = Limits {
            write_memory_bytes: 4 << 20,
            transaction_memory_bytes: 3 << 20,
            transaction_bytes: 20 << 20,
            ..Limits::default()
        };
        let (room, _dir) = room(limits);
        let value = Bytes::from(vec![7; 10_000]);
        let mut one = Buffer::new(room.clone());
        let mut two = Buffer::new(room.clone());
        for n in 0..1_500 {
            one.write(key(n), Some(value.clone())).unwrap();
            two.write(key(n), Some(value.clone())).unwrap();
            assert!(room.memory.borrowed() <= limits.write_memory_bytes);
        }
        assert!(!one.writes.runs.is_empty() && !two.writes.runs.is_empty());
        let error = (1_500..9_000).find_map(|n| one.write(key(n), Some(value.clone())).err());
        assert!(matches!(error, Some(Error::TooLarge { .. })), "{error:?}");
        assert_eq!(one.get(&key(3)).unwrap(), Some(Some(value)), "what was written is there");
        drop((one, two));
        assert_eq!(room.memory.borrowed(), 0);
    }
}
