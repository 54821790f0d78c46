//! The store: opens the log and the trees of one data directory, owns their threads, closes them.
//!
//! ```text
//!   DIR/log/       raft-engine's files; its LOCK keeps a second process out
//!   DIR/state/     manifest, current/, segment-NNNNNNNNNN/
//!   DIR/staging/   snapshots that are arriving
//!   DIR/temporary/ what large transactions and queries put aside
//! ```
//!
//! Closing finishes the queue of the log and stops the upkeep. It does not flush the trees, because
//! nothing depends on a clean end.

use crate::state::{At, Batch, MetaIter, Pin, Scan, SegmentInfo, State, TabletRanges};
use crate::transfer::{self, Export, Staging};
use crate::{Error, Log, Options, Result, upkeep};
use base::env::Instant;
use base::{Env, KeyRange, Scn, TabletId};
use bytes::Bytes;
use lsm_tree::AbstractTree;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

/// What the store holds, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Applied changes in memory, those being flushed included.
    pub memtable_bytes: u64,
    pub block_cache_bytes: u64,
    /// Indexes and filters that stay in memory beside the block cache.
    pub pinned_bytes: u64,
    pub log_cache_bytes: u64,
    pub log_disk_bytes: u64,
    pub current_disk_bytes: u64,
    pub segments_disk_bytes: u64,
    pub n_segments: usize,
}

/// Handle to a node's durable state. Cheap to clone; the last one to go closes it.
#[derive(Clone)]
pub struct Store {
    owner: Arc<Owner>,
}

/// The rows at one moment. The segments that it may need stay on disk until it is dropped.
pub struct View {
    view: crate::state::View,
    store: Store,
}

impl View {
    /// The newest committed version, or the one that `at` sees.
    pub fn get(&self, key: &[u8], at: At) -> Result<Option<(Scn, Bytes)>> {
        self.store.state().get_in(&self.view, key, at)
    }
}

struct Owner {
    state: Arc<State>,
    log: Log,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.log.close();
        self.state.pressure.lock().stop = true;
        self.state.stopped.store(true, Ordering::Release);
        self.state.pressed.notify_all();
        join(std::mem::take(&mut self.threads));
    }
}

/// Waits for the threads: until they have ended, the directory is in use.
fn join(threads: Vec<JoinHandle<()>>) {
    let me = std::thread::current().id();
    for thread in threads {
        // A callback on the log's own thread may drop the last handle: that thread ends by itself.
        if thread.thread().id() != me && thread.join().is_err() {
            tracing::error!("a thread of the store panicked");
        }
    }
}

impl Store {
    /// Opens the store in `dir`, which is made if it is not there. Cuts a torn log tail, finishes
    /// an installation that a crash cut short, and refuses to start with damage.
    pub fn open(env: &Env, dir: &Path, options: Options) -> Result<Store> {
        crate::log::create_dir(dir)?;
        let (log, writer) = Log::open(env, dir, &options)?;
        let mut threads = vec![writer];
        let opened = State::open(env, dir, options).and_then(|(state, installing)| {
            threads.extend(upkeep::start(&state, &log)?);
            Ok((state, installing))
        });
        let (state, installing) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                log.close();
                join(threads);
                return Err(error);
            }
        };
        let store = Store { owner: Arc::new(Owner { state, log, threads }) };
        if let Some(installing) = &installing {
            tracing::info!(tablet = %installing.tablet, "installing a snapshot again");
            store.state().run_install(installing)?;
        }
        store.clear_staging(dir)?;
        let temporary = store.temporary_dir();
        if temporary.exists() {
            fs::remove_dir_all(&temporary).map_err(Error::io("delete", &temporary))?;
        }
        Ok(store)
    }

    fn clear_staging(&self, dir: &Path) -> Result<()> {
        let dir = transfer::staging_dir(dir);
        if dir.exists() {
            for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
                let path = entry.map_err(Error::io("list", &dir))?.path();
                fs::remove_file(&path).map_err(Error::io("delete", &path))?;
            }
        }
        Ok(())
    }

    /// For files that nobody needs after a restart: the next start clears it.
    pub fn temporary_dir(&self) -> PathBuf {
        self.state().data_dir.join("temporary")
    }

    fn state(&self) -> &Arc<State> {
        &self.owner.state
    }

    pub fn log(&self) -> &Log {
        &self.owner.log
    }

    /// Applies a batch: atomic, visible on return, durable with the next flush. Blocks while the
    /// disk is behind.
    pub fn apply(&self, batch: Batch) -> Result<()> {
        self.state().apply(batch)
    }

    /// The version of a row that `at` sees.
    pub fn get(&self, key: &[u8], at: At) -> Result<Option<(Scn, Bytes)>> {
        self.view().get(key, at)
    }

    /// The rows as they are at this moment. Batches that are applied after the call are not in it.
    pub fn view(&self) -> View {
        View { view: crate::state::View::of(self.state()), store: self.clone() }
    }

    /// The rows of `range` that `at` sees, in key order or against it. Batches that are applied after
    /// the call are not in it.
    pub fn scan(&self, range: &KeyRange, at: At, reverse: bool) -> Scan {
        self.state().scan(range, at, reverse)
    }

    pub fn meta_get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.state().meta_get(key)
    }

    pub fn meta_scan(&self, range: &KeyRange) -> MetaIter {
        self.state().meta_scan(range)
    }

    pub fn expiring_get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.state().expiring_get(key)
    }

    pub fn expiring_scan(&self, range: &KeyRange) -> MetaIter {
        self.state().expiring_scan(range)
    }

    /// The newest applied mark of a tablet: after a restart, from where its log is replayed.
    pub fn mark(&self, tablet: TabletId) -> Result<Option<Bytes>> {
        self.state().mark(tablet)
    }

    /// The applied index as of the last finished flush: the log may be purged up to here.
    pub fn durable_index(&self, tablet: TabletId) -> Option<u64> {
        self.state().durable_index(tablet)
    }

    /// Whether [`Store::apply`] would go on at once and not wait for the disk.
    pub fn has_room(&self) -> bool {
        self.state().has_room()
    }

    /// Blocks until there is room.
    pub fn wait_for_room(&self) -> Result<()> {
        self.state().wait_for_room()
    }

    /// Brings all applied batches to disk. Blocks; a failure halts the process.
    pub fn flush(&self) -> Result<()> {
        self.state().flush()
    }

    /// Does what is due at `now`: opens the next rollback segment, drops segments that are too old.
    /// The store's own upkeep does so every second.
    pub fn tick(&self, now: Instant) -> Result<()> {
        if self.state().turn_segments(now)? {
            self.flush()?;
        }
        Ok(())
    }

    /// The oldest SCN that a read may use.
    pub fn horizon(&self) -> Scn {
        self.state().segments.read().horizon
    }

    /// Keeps reads at `scn` possible until the pin is dropped; `who` is shown to people.
    pub fn pin(&self, who: String, scn: Scn) -> Result<Pin> {
        self.state().pin(who, scn)
    }

    /// The rollback segments, oldest first.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        self.state().segment_infos()
    }

    /// Bytes on disk of the current rows in `range`, roughly.
    pub fn approximate_bytes(&self, range: &KeyRange) -> Result<u64> {
        self.state().approximate_bytes(range)
    }

    /// A tablet's whole state as of the call, in chunks of at most a mebibyte.
    pub fn export(&self, tablet: TabletId, ranges: &TabletRanges) -> Result<Export> {
        Export::of(self.state(), tablet, ranges)
    }

    /// A place for a snapshot's chunks as they arrive.
    pub fn staging(&self, tablet: TabletId) -> Result<Staging> {
        Staging::create(self.state(), tablet)
    }

    /// Replaces all that `ranges` hold by a complete staged snapshot, and gives its mark. Durable
    /// on return; finished by the next start if a crash comes in between. The tablet must not be
    /// applied to, nor read, meanwhile. One installation at a time runs; others wait.
    pub fn install(
        &self,
        tablet: TabletId,
        staging: Staging,
        ranges: TabletRanges,
    ) -> Result<Option<Bytes>> {
        self.state().install(tablet, staging, ranges)
    }

    /// Takes rows out that nobody will ever read or write again. Durable on return. It takes as long as a flush,
    /// whatever the number of rows: do not call it on a thread that other work waits for.
    pub fn discard_rows(&self, range: &KeyRange) -> Result<()> {
        self.state().discard_rows(range)
    }

    /// Takes a tablet out: rows, unversioned keys, mark. Durable on return.
    pub fn remove_range(&self, tablet: TabletId, ranges: &TabletRanges) -> Result<()> {
        self.state().remove(tablet, ranges)
    }

    pub fn stats(&self) -> Stats {
        let state = self.state();
        let segments = state.segments.read().clone();
        let (memtable_bytes, trees) = {
            let pressure = state.pressure.lock();
            let trees = segments.list.iter().map(|s| &s.tree).chain([&state.current]);
            (pressure.active_bytes + pressure.sealed_bytes, trees)
        };
        let pinned = trees.map(|t| t.pinned_filter_size() + t.pinned_block_index_size());
        let (log_cache_bytes, log_disk_bytes) = self.log().usage();
        Stats {
            memtable_bytes,
            block_cache_bytes: state.cache.size(),
            pinned_bytes: pinned.sum::<usize>() as u64,
            log_cache_bytes: log_cache_bytes as u64,
            log_disk_bytes: log_disk_bytes as u64,
            current_disk_bytes: state.current.disk_space(),
            segments_disk_bytes: segments.list.iter().map(|s| s.tree.disk_space()).sum(),
            n_segments: segments.list.len(),
        }
    }
}
