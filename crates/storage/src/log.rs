//! The log: the one place where this node makes anything durable before it says so.
//!
//! All tablets of a node share the log, so that a hundred Raft groups that each want an fsync get
//! one fsync together. A request goes into the queue of a single writer thread. The writer takes all
//! requests that wait, writes them as one record, syncs once, and then runs their callbacks in the
//! order of the requests (group commit). While a sync runs, the next group gathers.
//!
//! ```text
//!   tablet 1 ── append 7..9 ─┐
//!   tablet 2 ── save vote ───┼─> queue ─> [one record] ─> fsync ─> done, done, done
//!   tablet 1 ── append 10 ───┘
//! ```
//!
//! Invariants:
//! - The requests of one tablet take effect in the order they were made; `bounds`, `read` and
//!   `load` show them at once, before they are durable.
//! - A callback means durable. After a failed write or sync no callback runs, nothing is tried
//!   again, the process halts ([`base::Env::halt`]) and later requests are dropped.
//! - An entry is read from memory until it is durable, and for a while after.
//! - raft-engine cannot cut the end of a log; it can only put other entries in its place. So a log
//!   that was cut carries its new end in a value beside the entries (`CUT_SLOT`), in the same ordered
//!   stream. The next append removes the value and overwrites the old end, in one record. Example:
//!   entries 1 to 9 are there, 7 to 9 are cut: the value says that the next index is 7.
//!
//! What is absent: the log does not know the terms or the meaning of entries, and never reads a clock.

mod check;
mod disk;
#[cfg(test)]
mod tests;
mod writer;

use crate::{Error, Options, Result};
use base::{Env, TabletId};
use bytes::Bytes;
use disk::{Disk, Failure};
use parking_lot::{Condvar, Mutex};
use raft_engine::{Config, Engine, ReadableSize, RecoveryMode};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use tokio::sync::Notify;
use writer::{Codec, Progress, Request};

/// One log entry; its index is its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub index: u64,
    pub bytes: Bytes,
}

/// Small values that a tablet's replica keeps in the log. The numbers are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Slot {
    /// Raft's vote.
    Vote = 1,
    /// The last log id known to be committed.
    Committed = 2,
    /// The last log id that was purged.
    Purged = 3,
    /// What this replica is: consensus's own record of the group.
    Replica = 4,
    /// What the newest snapshot covers.
    Snapshot = 5,
}

/// The slot that holds a tablet's next index while raft-engine still has entries that were cut off.
const CUT_SLOT: u8 = 0;
/// How often a read is tried that finds damage.
const N_READS_MAX: usize = 3;

/// Called on the writer thread, only after the sync succeeded.
pub type Done = Box<dyn FnOnce() + Send>;

type RaftLog = Engine<Disk>;

/// Handle to the log. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    inner: Arc<Inner>,
}

struct Inner {
    env: Env,
    dir: PathBuf,
    data_dir: PathBuf,
    engine: RaftLog,
    failure: Failure,
    front: Mutex<Front>,
    wake: Condvar,
    /// The writer took something out of the queue, or stopped.
    drained: Notify,
    cached_bytes: AtomicUsize,
    cached_bytes_max: usize,
    /// Set before the process halts: from then on every request is dropped.
    stopped: AtomicBool,
    /// Tablets whose old entries keep files from being reclaimed.
    hoarders: Mutex<Vec<TabletId>>,
}

/// What a request changes at once, before the writer has seen it.
#[derive(Default)]
struct Front {
    tablets: HashMap<TabletId, Tail>,
    queue: VecDeque<Request>,
    queued_bytes: usize,
    closing: bool,
    epochs: u64,
}

impl Front {
    fn tail(&mut self, tablet: TabletId) -> &mut Tail {
        self.tablets.entry(tablet).or_insert_with(|| {
            self.epochs += 1;
            Tail { epoch: self.epochs, ..Tail::default() }
        })
    }
}

/// One tablet's log as its requests left it, durable or not.
#[derive(Default)]
struct Tail {
    /// The entries are `next - len .. next`; `first` is kept when there are none.
    first: u64,
    next: u64,
    /// The newest entries, at least all that are not yet durable.
    cached: VecDeque<Entry>,
    cached_bytes: usize,
    /// Entries below this index are durable and may leave the cache.
    durable: u64,
    /// Changes when entries are cut off. When entries of an older epoch become durable, that says
    /// nothing about the entries that took their place.
    epoch: u64,
    /// The engine still holds entries that were cut off.
    cut: bool,
    slots: BTreeMap<u8, Bytes>,
}

impl Tail {
    fn bounds(&self) -> Option<(u64, u64)> {
        (self.first < self.next).then(|| (self.first, self.next - 1))
    }

    fn cache_start(&self) -> u64 {
        self.next - self.cached.len() as u64
    }
}

impl Log {
    /// Opens the log in `data_dir/log`, cutting a torn tail, and starts its writer.
    pub(crate) fn open(
        env: &Env,
        data_dir: &Path,
        options: &Options,
    ) -> Result<(Log, JoinHandle<()>)> {
        let dir = data_dir.join("log");
        check::check(&dir, data_dir)?;
        let failure = Failure::default();
        let disk = Arc::new(Disk { faults: options.log_faults.clone(), failure: failure.clone() });
        let config = Config {
            dir: dir.to_string_lossy().into_owned(),
            recovery_mode: RecoveryMode::AbsoluteConsistency,
            recovery_threads: 2,
            // Files kept for reuse would stand before a gap in the numbers, and a gap means a lost file.
            enable_log_recycle: false,
            // Entries are small and the reader's cache keeps whole records: leave them as they are.
            batch_compression_threshold: ReadableSize(0),
            target_file_size: ReadableSize(options.log_file_bytes),
            purge_threshold: ReadableSize(options.log_bytes.max(options.log_file_bytes)),
            ..Config::default()
        };
        let engine = Engine::open_with_file_system(config, disk)
            .map_err(|error| engine_error(error, &dir, data_dir))?;
        if let Some(reason) = failure.reason() {
            return Err(Error::Halted(reason));
        }
        sync_dir(&dir)?;
        let tablets = recover(&engine);
        let inner = Arc::new(Inner {
            env: env.clone(),
            dir,
            data_dir: data_dir.to_path_buf(),
            engine,
            failure,
            front: Mutex::new(Front { tablets, ..Front::default() }),
            wake: Condvar::new(),
            drained: Notify::new(),
            cached_bytes: AtomicUsize::new(0),
            cached_bytes_max: options.log_cache_bytes,
            stopped: AtomicBool::new(false),
            hoarders: Mutex::new(Vec::new()),
        });
        let writer = writer::start(inner.clone())?;
        Ok((Log { inner }, writer))
    }

    /// Adds entries, which continue the tablet's log. An empty log takes any first index above the
    /// last one that was purged.
    pub fn append(&self, tablet: TabletId, entries: Vec<Entry>, done: Done) {
        self.request(|front, inner| {
            let tail = front.tail(tablet);
            if let Some(entry) = entries.first() {
                if tail.bounds().is_none() {
                    assert!(entry.index >= tail.first, "tablet {tablet}: append to a purged index");
                    tail.first = entry.index;
                    tail.next = entry.index;
                    tail.durable = tail.durable.min(entry.index);
                }
                for entry in &entries {
                    assert_eq!(entry.index, tail.next, "tablet {tablet}: the log would get a hole");
                    tail.next += 1;
                    tail.cached_bytes += entry.bytes.len();
                    inner.cached_bytes.fetch_add(entry.bytes.len(), Ordering::Relaxed);
                    tail.cached.push_back(entry.clone());
                }
                let fresh = tail.first == entry.index;
                let heals = std::mem::take(&mut tail.cut);
                Request::Append { tablet, epoch: tail.epoch, entries, fresh, heals, done }
            } else {
                Request::Nothing { done }
            }
        });
    }

    /// Sets or removes a small value, in order with everything else of the tablet.
    pub fn save(&self, tablet: TabletId, slot: Slot, value: Option<Bytes>, done: Done) {
        self.request(|front, _| {
            let slots = &mut front.tail(tablet).slots;
            match &value {
                Some(value) => slots.insert(slot as u8, value.clone()),
                None => slots.remove(&(slot as u8)),
            };
            Request::Save { tablet, slot: slot as u8, value, done }
        });
    }

    /// Removes the entries after `last_kept`; all of them for `None`.
    pub fn truncate_after(&self, tablet: TabletId, last_kept: Option<u64>, done: Done) {
        self.request(|front, inner| {
            front.epochs += 1;
            let epoch = front.epochs;
            let tail = front.tail(tablet);
            let next = last_kept.map_or(0, |last| last + 1).max(tail.first);
            if next >= tail.next {
                return Request::Nothing { done };
            }
            while tail.cache_start() < tail.next && tail.next > next {
                inner.evict(tail.cached_bytes(Side::New), tail);
                tail.next -= 1;
            }
            tail.next = next;
            tail.durable = tail.durable.min(next);
            tail.epoch = epoch;
            tail.cut = true;
            Request::Cut { tablet, next, done }
        });
    }

    /// Removes the entries up to and including `upto`.
    pub fn purge(&self, tablet: TabletId, upto: u64, done: Done) {
        self.request(|front, inner| {
            let tail = front.tail(tablet);
            let first = upto + 1;
            if first > tail.first {
                while !tail.cached.is_empty() && tail.cache_start() < first {
                    inner.evict(tail.cached_bytes(Side::Old), tail);
                }
                tail.first = first;
                tail.next = tail.next.max(first);
            }
            Request::Purge { tablet, first, done }
        });
    }

    /// Forgets the tablet: entries and values.
    pub fn remove(&self, tablet: TabletId, done: Done) {
        self.request(|front, inner| {
            if let Some(tail) = front.tablets.remove(&tablet) {
                inner.cached_bytes.fetch_sub(tail.cached_bytes, Ordering::Relaxed);
            }
            Request::Remove { tablet, done }
        });
    }

    pub fn load(&self, tablet: TabletId, slot: Slot) -> Result<Option<Bytes>> {
        let front = self.inner.front.lock();
        Ok(front.tablets.get(&tablet).and_then(|tail| tail.slots.get(&(slot as u8)).cloned()))
    }

    /// The first and the last index; none if the log is empty.
    pub fn bounds(&self, tablet: TabletId) -> Option<(u64, u64)> {
        self.inner.front.lock().tablets.get(&tablet)?.bounds()
    }

    /// The entries in `range` that the log holds, in order: as many as fit `max_bytes`, and at
    /// least one if there is any.
    pub fn read(
        &self,
        tablet: TabletId,
        range: Range<u64>,
        max_bytes: usize,
    ) -> Result<Vec<Entry>> {
        for _ in 1..N_READS_MAX {
            // raft-engine rewrites files and gives them back while they are read. The reader finds the
            // entries in their new place when it looks again.
            match self.read_once(tablet, range.clone(), max_bytes) {
                Err(error) => tracing::debug!(%tablet, %error, "reading the log again"),
                found => return found,
            }
        }
        // Halts, because an error alone would only stop the group that asked. The node would go on with
        // one dead replica, on a disk that loses data.
        let halt = |error: &Error| self.inner.halt(error.to_string());
        self.read_once(tablet, range, max_bytes).inspect_err(halt)
    }

    fn read_once(
        &self,
        tablet: TabletId,
        range: Range<u64>,
        max_bytes: usize,
    ) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        let mut left_bytes = max_bytes;
        let (old, new) = {
            let front = self.inner.front.lock();
            let Some(tail) = front.tablets.get(&tablet) else { return Ok(found) };
            let (start, end) = (range.start.max(tail.first), range.end.min(tail.next));
            if start >= end {
                return Ok(found);
            }
            let split = tail.cache_start().clamp(start, end);
            let skip = split.saturating_sub(tail.cache_start()) as usize;
            let cached = tail.cached.iter().skip(skip).take((end - split) as usize);
            let mut new = Vec::new();
            for entry in cached {
                if !fits(&mut left_bytes, entry, new.is_empty() && split == start) {
                    break;
                }
                new.push(entry.clone());
            }
            (start..split, new)
        };
        if !old.is_empty() {
            let mut raw = Vec::new();
            let engine = &self.inner.engine;
            let budget = Some(max_bytes);
            let read =
                engine.fetch_entries_to::<Codec>(tablet.0, old.start, old.end, budget, &mut raw);
            if let Err(error) = read {
                let (first, next) = self.bounds(tablet).map_or((0, 0), |(f, last)| (f, last + 1));
                if first > old.start || next < old.end {
                    // The log was purged or cut meanwhile: answer what is left of the range.
                    return self.read_once(
                        tablet,
                        range.start.max(first)..range.end.min(next),
                        max_bytes,
                    );
                }
                return Err(engine_error(error, &self.inner.dir, &self.inner.data_dir));
            }
            let mut left_bytes = max_bytes;
            for raw in raw {
                let entry = Codec::unpack(raw);
                if !fits(&mut left_bytes, &entry, found.is_empty()) {
                    return Ok(found);
                }
                found.push(entry);
            }
            if (found.len() as u64) < old.end - old.start {
                return Ok(found);
            }
            for entry in new {
                if !fits(&mut left_bytes, &entry, false) {
                    break;
                }
                found.push(entry);
            }
            return Ok(found);
        }
        Ok(new)
    }

    /// The tablets that have entries or values.
    pub fn tablets(&self) -> Vec<TabletId> {
        let front = self.inner.front.lock();
        let used = |tail: &Tail| tail.bounds().is_some() || !tail.slots.is_empty();
        let mut tablets: Vec<_> =
            front.tablets.iter().filter(|(_, tail)| used(tail)).map(|(id, _)| *id).collect();
        tablets.sort();
        tablets
    }

    /// Tablets that hold so many old entries that space cannot be reclaimed. The caller should flush
    /// the state and purge the logs of these tablets.
    pub fn hoarders(&self) -> Vec<TabletId> {
        self.inner.hoarders.lock().clone()
    }

    /// Gives space of purged entries back to the file system. Blocks; called now and then by the
    /// store's upkeep.
    pub(crate) fn reclaim(&self) {
        let inner = &self.inner;
        if inner.stopped.load(Ordering::Acquire) {
            return;
        }
        let result = inner.engine.purge_expired_files();
        if let Some(reason) = inner.failure.reason() {
            inner.halt(reason);
            return;
        }
        match result {
            Ok(ids) => *inner.hoarders.lock() = ids.into_iter().map(TabletId).collect(),
            Err(error) => {
                inner.halt(format!("cannot reclaim log space in {}: {error}", inner.dir.display()));
            }
        }
    }

    /// Bytes of entries held in memory, and of log files on disk.
    pub(crate) fn usage(&self) -> (usize, usize) {
        (self.inner.cached_bytes.load(Ordering::Relaxed), self.inner.engine.get_used_size())
    }

    /// Lets the writer finish the requests that wait, and end.
    pub(crate) fn close(&self) {
        self.inner.front.lock().closing = true;
        self.inner.wake.notify_all();
    }

    /// Waits while more than `log_queue_bytes` wait for the disk. Nothing is refused here: votes are small, and pass.
    pub async fn room(&self) {
        let Inner { env, front, drained, stopped, .. } = &*self.inner;
        let most = env.limits().log_queue_bytes;
        loop {
            // Before the look, so that no word is missed.
            let mut word = pin!(drained.notified());
            word.as_mut().enable();
            if front.lock().queued_bytes <= most || stopped.load(Ordering::Acquire) {
                return;
            }
            word.await;
        }
    }

    fn request(&self, change: impl FnOnce(&mut Front, &Inner) -> Request) {
        let inner = &self.inner;
        let mut front = inner.front.lock();
        if front.closing || inner.stopped.load(Ordering::Acquire) {
            return;
        }
        let request = change(&mut front, inner);
        front.queued_bytes += request.bytes();
        front.queue.push_back(request);
        drop(front);
        inner.wake.notify_all();
    }
}

impl Inner {
    fn halt(&self, reason: String) {
        self.stopped.store(true, Ordering::Release);
        self.drained.notify_waiters();
        self.env.halt(reason);
    }

    fn evict(&self, bytes: usize, tail: &mut Tail) {
        tail.cached_bytes -= bytes;
        self.cached_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Notes that `tablet`'s entries below `next` are durable, and trims its cache: each tablet
    /// may keep its share of the whole, and at least a little.
    fn entries_are_durable(&self, front: &mut Front, (tablet, epoch, next): Progress) {
        const SHARE_BYTES_MIN: usize = 64 * 1024;
        let share_bytes = (self.cached_bytes_max / front.tablets.len().max(1)).max(SHARE_BYTES_MIN);
        let Some(tail) = front.tablets.get_mut(&tablet) else { return };
        if tail.epoch == epoch {
            tail.durable = tail.durable.max(next.min(tail.next));
        }
        while tail.cached_bytes > share_bytes && tail.cache_start() < tail.durable {
            let bytes = tail.cached_bytes(Side::Old);
            self.evict(bytes, tail);
        }
    }
}

enum Side {
    Old,
    New,
}

impl Tail {
    /// Takes one entry off the cache and says how many bytes it held.
    fn cached_bytes(&mut self, side: Side) -> usize {
        let entry = match side {
            Side::Old => self.cached.pop_front(),
            Side::New => self.cached.pop_back(),
        };
        entry.map_or(0, |entry| entry.bytes.len())
    }
}

/// Whether `entry` may join an answer that has `left_bytes` to fill; the first always may.
fn fits(left_bytes: &mut usize, entry: &Entry, first: bool) -> bool {
    let fits = entry.bytes.len() <= *left_bytes || first;
    *left_bytes = left_bytes.saturating_sub(entry.bytes.len());
    fits
}

/// What the tablets' logs look like after a restart.
fn recover(engine: &RaftLog) -> HashMap<TabletId, Tail> {
    let mut tablets = HashMap::new();
    for id in engine.raft_groups() {
        let mut tail = Tail::default();
        let values = engine.scan_raw_messages(id, None, None, false, |key, value| {
            if let [slot] = key {
                tail.slots.insert(*slot, Bytes::copy_from_slice(value));
            }
            true
        });
        // The closure cannot fail and the values are in memory.
        debug_assert!(values.is_ok());
        if let (Some(first), Some(last)) = (engine.first_index(id), engine.last_index(id)) {
            tail.first = first;
            tail.next = last + 1;
        }
        if let Some(cut) = tail.slots.remove(&CUT_SLOT).and_then(|cut| cut[..].try_into().ok()) {
            tail.next = tail.next.min(u64::from_be_bytes(cut)).max(tail.first);
            tail.cut = true;
        }
        tail.durable = tail.next;
        tablets.insert(TabletId(id), tail);
    }
    tablets
}

pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))
}

pub(crate) fn create_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::io("create", dir))
}

fn engine_error(error: raft_engine::Error, dir: &Path, data_dir: &Path) -> Error {
    match error {
        raft_engine::Error::Io(source) => {
            Error::Io { what: "use the log in", path: dir.to_path_buf(), source }
        }
        // Not about the content: above all, that another process holds the directory.
        error @ (raft_engine::Error::Other(_) | raft_engine::Error::InvalidArgument(_)) => {
            let source = std::io::Error::other(error.to_string());
            Error::Io { what: "open the log in", path: dir.to_path_buf(), source }
        }
        other => Error::Damaged {
            file: dir.to_path_buf(),
            dir: data_dir.to_path_buf(),
            what: other.to_string(),
        },
    }
}
