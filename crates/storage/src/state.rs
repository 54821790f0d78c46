//! The state: the newest version of every row in one tree, older versions in rollback segments.
//!
//! `current` holds, for every key, its newest committed version and the SCN that wrote it.
//! Applying a batch moves each version that it replaces into the open rollback segment, under
//! the key and the SCN at which it was replaced. A scan of the present therefore never steps over
//! old versions, and old versions go when a whole segment is dropped ([`segments`]).
//!
//! One row, three versions, three readers (v1 written at SCN 10, v2 at 20, deleted at 30, v3
//! written at 40):
//!
//! ```text
//!   current            k      -> (40, v3)
//!   rollback segments  k, 20  -> (10, v1)      v1 was replaced at 20
//!                      k, 30  -> (20, v2)      v2 was replaced at 30
//!
//!   read at 15   current is too new (40 > 15); first replaced after 15 is (k, 20): v1, 10 <= 15
//!   read at 35   current is too new; nothing was replaced after 35: no row
//!   read at 45   current: v3, no segment is touched
//! ```
//!
//! In general: a version with SCN `w`, replaced at `r`, is what reads at `w <= S < r` see.
//!
//! Invariants:
//! - A batch is atomic. It becomes visible in one moment ([`view`]). It also reaches the disk in one
//!   piece, together with its applied mark, because no memtable is sealed while a batch goes in.
//! - A rollback segment is flushed before the image of `current` that needs it. After a crash the
//!   segments may be ahead of `current`, never behind. Replaying the log puts the same versions at
//!   the same places again.
//! - An expiring key names the entry that wrote it, and is not shown before that entry is applied.
//!   Example: a crash leaves the outcome of T1, written by entry 130, in a segment, and `current` at
//!   entry 120. If the outcome were shown, replaying entry 125, T1's prepare, would be refused.
//! - A batch syncs nothing: the log is the write-ahead log. [`State::durable_index`] tells up to which
//!   entry a tablet's log may be purged.
//!
//! What is absent: no transaction, no lock, no wall clock. The state never judges SCNs: a batch says
//! at which SCN a row changes. The state does not know which tablet a key belongs to.

pub(crate) mod keys;
pub(crate) mod manifest;
mod read;
pub(crate) mod segments;
mod size;
mod sound;
pub(crate) mod view;

pub use keys::TabletRanges;
pub use read::{MetaIter, Scan};
pub use segments::{Pin, SegmentInfo};

use crate::{Error, Options, Result};
use base::{Env, Key, KeyRange, Scn, TabletId, panics};
use bytes::Bytes;
use keys::{GONE, MARK, META, ROW};
use lsm_tree::config::{Config, PinningPolicy};
use lsm_tree::{AbstractTree, AnyTree, Cache, DescriptorTable, Guard, SeqNo};
use lsm_tree::{SequenceNumberCounter, Slice};
use manifest::{Installing, Manifest};
use parking_lot::{Condvar, Mutex, RwLock};
use segments::{OpenTrees, Pins, Segment, Segments};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
pub(crate) use view::View;
use view::Views;

/// The longest key. Escaped, it may be twice as long, and must fit the 16 bits that a tree has for a length.
pub const KEY_BYTES_MAX: usize = 32_752;

/// Which state a read sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The state that was applied last.
    Newest,
    /// Everything committed at this SCN or before.
    Scn(Scn),
}

/// Changes that become visible, and durable, all together. The batches of one tablet are applied one
/// after the other; batches of different tablets may be applied at the same time.
#[derive(Default)]
pub struct Batch {
    changes: Vec<Change>,
    marks: Vec<(TabletId, u64, Bytes)>,
}

enum Change {
    Put { key: Key, scn: Scn, value: Bytes },
    Delete { key: Key, scn: Scn },
    MetaPut { key: Bytes, value: Bytes },
    MetaDelete { key: Bytes },
    Expiring { key: Bytes, value: Bytes },
}

impl Batch {
    /// Writes a row's new version. A version that is not newer than the stored one is a replay,
    /// and ignored.
    pub fn put(&mut self, key: Key, scn: Scn, value: Bytes) {
        self.changes.push(Change::Put { key, scn, value });
    }

    /// Ends a row at `scn`.
    pub fn delete(&mut self, key: Key, scn: Scn) {
        self.changes.push(Change::Delete { key, scn });
    }

    /// Sets a value without versions.
    pub fn meta_put(&mut self, key: Bytes, value: Bytes) {
        self.changes.push(Change::MetaPut { key, value });
    }

    pub fn meta_delete(&mut self, key: Bytes) {
        self.changes.push(Change::MetaDelete { key });
    }

    /// Sets a value that vanishes after the retention, together with its time bucket. The batch must
    /// carry the applied mark of the entry that writes the value.
    pub fn expiring_put(&mut self, key: Bytes, value: Bytes) {
        self.changes.push(Change::Expiring { key, value });
    }

    /// Notes that `tablet` is applied up to `index`; `mark` is what the state machine keeps beside
    /// that. The first mark of a batch belongs to the entry that made the batch.
    pub fn applied(&mut self, tablet: TabletId, index: u64, mark: Bytes) {
        self.marks.push((tablet, index, mark));
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.marks.is_empty()
    }
}

/// How far a tablet is applied in memory and on disk.
#[derive(Clone, Copy, Default)]
pub(crate) struct Progress {
    pub applied: u64,
    pub durable: Option<u64>,
    /// The tablet was removed. Its expiring keys stay, and `applied` still says which of them exist.
    pub gone: bool,
}

/// Applied changes that wait for the disk.
#[derive(Default)]
pub(crate) struct Pressure {
    /// Bytes in memtables that take writes, and in sealed ones that are being flushed.
    pub active_bytes: u64,
    pub sealed_bytes: u64,
    /// Compaction is far behind.
    pub crowded: bool,
    pub flush_asked: bool,
    pub compact_asked: bool,
    pub stop: bool,
}

pub(crate) struct State {
    pub env: Env,
    pub options: Options,
    pub dir: PathBuf,
    pub data_dir: PathBuf,
    pub current: AnyTree,
    pub seqno: SequenceNumberCounter,
    pub cache: Arc<Cache>,
    pub descriptors: Arc<DescriptorTable>,
    pub views: Arc<Views>,
    pub segments: RwLock<Arc<Segments>>,
    pub manifest: Mutex<Manifest>,
    pub pins: Mutex<Pins>,
    /// The apply lock: held while a batch goes in, and while memtables are sealed.
    pub applying: Mutex<()>,
    pub flushing: Mutex<()>,
    /// One installation runs at a time and holds this.
    pub installing: Mutex<()>,
    pub progress: RwLock<HashMap<TabletId, Progress>>,
    pub pressure: Mutex<Pressure>,
    /// Wakes the upkeep, and appliers that wait for room.
    pub pressed: Condvar,
    pub stopped: AtomicBool,
}

/// One insertion into a tree, decided before the apply lock is taken.
enum Write {
    Current(Slice, Slice),
    CurrentGone(Slice),
    Old(Slice, Scn, Slice),
    Expiring(Slice, Slice),
}

impl State {
    /// Opens the trees in `data_dir/state`; second is an installation that a crash cut short.
    pub fn open(
        env: &Env,
        data_dir: &Path,
        options: Options,
    ) -> Result<(Arc<State>, Option<Installing>)> {
        let dir = data_dir.join("state");
        crate::log::create_dir(&dir)?;
        let found = Manifest::load(&dir, data_dir)?;
        let current_dir = dir.join("current");
        let born = current_dir.join("current").exists();
        let damaged = |what: &str| Error::Damaged {
            file: dir.clone(),
            dir: data_dir.to_path_buf(),
            what: what.into(),
        };
        if found.is_some() && !born {
            return Err(damaged("the tree of current rows is not there"));
        }
        let cache = Arc::new(Cache::with_capacity_bytes(options.cache_bytes));
        let descriptors = Arc::new(DescriptorTable::new(options.open_files));
        let seqno = SequenceNumberCounter::new(1);
        let trees = OpenTrees {
            dir: &dir,
            data_dir,
            seqno: &seqno,
            cache: &cache,
            descriptors: &descriptors,
        };
        let current = open_tree(&current_dir, &trees)?;
        if found.is_none() && current.table_count() > 0 {
            return Err(damaged("the manifest is not there"));
        }
        let mut manifest = found.unwrap_or_default();
        let segments = segments::open(&trees, &mut manifest, env.now())?;
        manifest.save(&dir)?;
        crate::log::sync_dir(data_dir)?;

        let highest = segments.list.iter().filter_map(|s| s.tree.get_highest_seqno()).max();
        seqno.fetch_max(highest.max(current.get_highest_seqno()).map_or(1, |highest| highest + 1));
        let views = Arc::new(Views::default());
        views.publish(seqno.get());
        let state = Arc::new(State {
            env: env.clone(),
            options,
            data_dir: data_dir.to_path_buf(),
            current,
            cache,
            descriptors,
            views,
            segments: RwLock::new(Arc::new(segments)),
            pins: Mutex::default(),
            applying: Mutex::default(),
            flushing: Mutex::default(),
            installing: Mutex::default(),
            progress: RwLock::default(),
            pressure: Mutex::default(),
            pressed: Condvar::new(),
            stopped: AtomicBool::new(false),
            seqno,
            dir,
            manifest: Mutex::default(),
        });
        state.recover_progress()?;
        let installing = manifest.installing.clone();
        *state.manifest.lock() = manifest;
        Ok((state, installing))
    }

    fn recover_progress(&self) -> Result<()> {
        let mut progress = self.progress.write();
        for kind in [GONE, MARK] {
            let range = keys::tagged_range(kind, &KeyRange::all());
            for item in self.current.range(range, SeqNo::MAX, None) {
                let (key, value) = item.into_inner().map_err(|e| self.tree_error(e))?;
                let tablet = key.get(1..).and_then(|id| id.try_into().ok()).map(u64::from_be_bytes);
                let (Some(tablet), Some((index, _))) = (tablet, keys::split_version(value)) else {
                    return Err(self.damaged("a tablet's mark cannot be read"));
                };
                let gone = kind == GONE;
                let durable = (!gone).then_some(index.0);
                progress.insert(TabletId(tablet), Progress { applied: index.0, durable, gone });
            }
        }
        Ok(())
    }

    /// Applies a batch: on return it is visible, and will be durable with the next flush.
    pub fn apply(&self, batch: Batch) -> Result<()> {
        let writes = self.decide(&batch)?;
        self.wait_for_room()?;
        let written_bytes = {
            let _applying = self.applying.lock();
            let seqno = self.seqno.next();
            let segment = self.segments.read().newest().clone();
            let written_bytes = self.write(writes, &segment, seqno);
            {
                let mut progress = self.progress.write();
                for (tablet, index, mark) in batch.marks {
                    let key = keys::tablet_key(MARK, tablet);
                    self.current.insert(key, keys::mark_value(index, &mark), seqno);
                    let progress = progress.entry(tablet).or_default();
                    (progress.applied, progress.gone) = (index, false);
                }
            }
            self.views.publish(seqno + 1);
            written_bytes
        };
        self.press(written_bytes);
        Ok(())
    }

    /// What a batch inserts, and where. Reads the rows that the batch replaces before the apply lock is
    /// taken. Nobody changes them meanwhile: only batches of the same tablet do, one after the other.
    fn decide(&self, batch: &Batch) -> Result<Vec<Write>> {
        let mut writes = Vec::with_capacity(batch.changes.len() * 2);
        // The row as this batch has left it, if the batch touches a row twice.
        let mut left: HashMap<&Key, Option<Slice>> = HashMap::new();
        let repeats = batch.changes.len() > 1;
        for change in &batch.changes {
            match change {
                Change::Put { key, .. } | Change::Delete { key, .. } => check_key(key)?,
                Change::MetaPut { key, .. }
                | Change::MetaDelete { key }
                | Change::Expiring { key, .. } => check_key(key)?,
            }
            let (key, scn, value) = match change {
                Change::Put { key, scn, value } => (key, *scn, Some(value)),
                Change::Delete { key, scn } => (key, *scn, None),
                Change::MetaPut { key, value } => {
                    let value = Slice::from(value.clone());
                    writes.push(Write::Current(keys::tagged(META, key), value));
                    continue;
                }
                Change::MetaDelete { key } => {
                    writes.push(Write::CurrentGone(keys::tagged(META, key)));
                    continue;
                }
                Change::Expiring { key, value } => {
                    let (tablet, index, _) =
                        batch.marks.first().expect("an expiring key comes with its entry's mark");
                    let value = keys::expiring_value(*tablet, *index, value);
                    writes.push(Write::Expiring(keys::tagged(keys::EXPIRING, key), value));
                    continue;
                }
            };
            let row = keys::tagged(ROW, key);
            let stored = match left.get(key) {
                Some(stored) => stored.clone(),
                None => self.current.get(&row, SeqNo::MAX).map_err(|e| self.tree_error(e))?,
            };
            if let Some(stored) = stored {
                let Some((old_scn, _)) = keys::split_version(stored.clone()) else {
                    return Err(self.damaged("a row has no SCN"));
                };
                let replay = if value.is_some() { old_scn >= scn } else { old_scn > scn };
                if replay {
                    continue;
                }
                if old_scn < scn {
                    writes.push(Write::Old(keys::old_key(key, scn), scn, stored));
                }
            } else if value.is_none() {
                continue;
            }
            let new = value.map(|value| keys::versioned(scn, value));
            if repeats {
                left.insert(key, new.clone());
            }
            writes.push(match new {
                Some(new) => Write::Current(row, new),
                None => Write::CurrentGone(row),
            });
        }
        Ok(writes)
    }

    /// Inserts under the apply lock; returns how many bytes that took. Cannot fail.
    fn write(&self, writes: Vec<Write>, segment: &Segment, seqno: SeqNo) -> u64 {
        let inserted = writes.into_iter().map(|write| match write {
            Write::Current(key, value) => self.current.insert(key, value, seqno).0,
            Write::CurrentGone(key) => self.current.remove(key, seqno).0,
            Write::Old(key, replaced_at, old) => {
                segment.touch(Some(replaced_at));
                segment.tree.insert(key, old, seqno).0
            }
            Write::Expiring(key, value) => {
                segment.touch(None);
                segment.tree.insert(key, value, seqno).0
            }
        });
        inserted.sum()
    }

    /// Inserts changes that are in no batch: the records of a transfer, and the wiping of ranges.
    pub fn write_raw(&self, insert: impl FnOnce(&AnyTree, &Segment, SeqNo) -> u64) -> Result<()> {
        self.wait_for_room()?;
        let written_bytes = {
            let _applying = self.applying.lock();
            let seqno = self.seqno.next();
            let segment = self.segments.read().newest().clone();
            let written_bytes = insert(&self.current, &segment, seqno);
            self.views.publish(seqno + 1);
            written_bytes
        };
        self.press(written_bytes);
        Ok(())
    }

    fn press(&self, written_bytes: u64) {
        let mut pressure = self.pressure.lock();
        pressure.active_bytes += written_bytes;
        if pressure.active_bytes >= self.options.memtable_bytes && !pressure.flush_asked {
            pressure.flush_asked = true;
            self.pressed.notify_all();
        }
    }

    /// Bounds the memory: the applier waits here while the disk is behind.
    pub fn wait_for_room(&self) -> Result<()> {
        let mut pressure = self.pressure.lock();
        while self.is_full(&pressure) {
            self.check_running()?;
            self.pressed.wait(&mut pressure);
        }
        drop(pressure);
        self.check_running()
    }

    pub fn has_room(&self) -> bool {
        !self.is_full(&self.pressure.lock())
    }

    fn is_full(&self, pressure: &Pressure) -> bool {
        let bytes_max = self.options.memtable_bytes * 4;
        pressure.crowded || pressure.active_bytes + pressure.sealed_bytes > bytes_max
    }

    pub fn check_running(&self) -> Result<()> {
        if !self.stopped.load(Ordering::Acquire) {
            return Ok(());
        }
        let reason = self.env.halt_reason().map(|halt| halt.reason);
        Err(Error::Halted(reason.unwrap_or_else(|| "it was closed".into())))
    }

    /// Stops the store and the process: the state can no longer be brought to disk.
    pub fn halt(&self, reason: String) {
        self.stopped.store(true, Ordering::Release);
        self.env.halt(reason);
        self.pressed.notify_all();
    }

    /// The applied index on disk: the log up to here may be purged.
    pub fn durable_index(&self, tablet: TabletId) -> Option<u64> {
        self.progress.read().get(&tablet)?.durable
    }

    pub fn mark(&self, tablet: TabletId) -> Result<Option<Bytes>> {
        let view = view::View::of(self);
        let stored = self
            .current
            .get(keys::tablet_key(MARK, tablet), view.number)
            .map_err(|e| self.tree_error(e))?;
        Ok(stored.and_then(keys::split_version).map(|(_, mark)| mark))
    }

    /// Whether the entry that wrote an expiring key is part of the state.
    pub fn is_applied(&self, tablet: TabletId, index: u64) -> bool {
        self.progress.read().get(&tablet).is_some_and(|progress| index <= progress.applied)
    }

    pub fn trees(&self) -> OpenTrees<'_> {
        OpenTrees {
            dir: &self.dir,
            data_dir: &self.data_dir,
            seqno: &self.seqno,
            cache: &self.cache,
            descriptors: &self.descriptors,
        }
    }

    pub fn tree_error(&self, error: lsm_tree::Error) -> Error {
        tree_error(error, &self.dir, &self.data_dir)
    }

    pub fn damaged(&self, what: &str) -> Error {
        Error::Damaged { file: self.dir.clone(), dir: self.data_dir.clone(), what: what.into() }
    }
}

fn check_key(key: &[u8]) -> Result<()> {
    if key.len() > KEY_BYTES_MAX {
        return Err(Error::KeyTooLong { bytes: key.len(), max: KEY_BYTES_MAX });
    }
    Ok(())
}

pub(crate) fn open_tree(dir: &Path, trees: &OpenTrees<'_>) -> Result<AnyTree> {
    sound::check(dir, trees.data_dir)?;
    // The counter by which the tree publishes is not used: views have a counter of their own.
    let unheard = SequenceNumberCounter::default();
    let config = Config::new(dir, trees.seqno.clone(), unheard)
        .use_cache(trees.cache.clone())
        .use_descriptor_table(Some(trees.descriptors.clone()))
        .index_block_pinning_policy(PinningPolicy::all(false))
        .filter_block_pinning_policy(PinningPolicy::new([true, false]));
    // The library asserts where a few of its bytes are damaged. Nothing of the tree is in use yet.
    match panics::contained_call(|| config.open()) {
        Ok(opened) => opened.map_err(|error| tree_error(error, dir, trees.data_dir)),
        Err(panicked) => Err(Error::Damaged {
            file: dir.to_path_buf(),
            dir: trees.data_dir.to_path_buf(),
            what: panicked.message,
        }),
    }
}

/// The trees say what is wrong and not in which file: the error names the directory.
pub(crate) fn tree_error(error: lsm_tree::Error, dir: &Path, data_dir: &Path) -> Error {
    use std::io::ErrorKind::{NotFound, UnexpectedEof};
    match error {
        lsm_tree::Error::Io(source) if !matches!(source.kind(), NotFound | UnexpectedEof) => {
            Error::Io { what: "use the tree in", path: dir.to_path_buf(), source }
        }
        other => Error::Damaged {
            file: dir.to_path_buf(),
            dir: data_dir.to_path_buf(),
            what: other.to_string(),
        },
    }
}
