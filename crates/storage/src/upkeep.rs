//! Upkeep: what the store does in the background, on two threads of its own.
//!
//! *Flush* seals the memtables of all trees at one instant between two batches, writes the
//! rollback segments first and `current` after them, and then says how far each tablet is durable.
//! It also turns the segments and lets the log reclaim space. *Compaction* keeps the number of
//! tables that a read must look into small. They have a thread each, because a compaction may take
//! minutes, and memory fills in seconds.
//!
//! An I/O error here halts the process: batches that cannot be flushed never become durable, and a
//! log that may not be purged grows until the disk is full.

use crate::state::State;
use crate::{Error, Log, Result};
use base::env::PanicHalts;
use lsm_tree::compaction::Leveled;
use lsm_tree::{AbstractTree, AnyTree};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the flush thread looks at the clock.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between two visits to the log's reclaiming.
const TICKS_PER_RECLAIM: u32 = 5;
/// Runs in the first level of a tree that are merged into the next: each merge writes the whole
/// next level again, and a point read asks one filter more for each run that waits.
const RUNS_MERGED: u8 = 8;
/// Runs in the first level of a tree beyond which appliers wait for compaction.
const RUNS_MAX: usize = 32;
/// One file of a tree. The level after the first takes `RUNS_MERGED` of them.
const TABLE_BYTES: u64 = 32 << 20;
/// How much the compaction gives way to commits (`nice`). Its work can wait; when it falls too far
/// behind, the appliers wait for it.
const COMPACTION_NICENESS: i32 = 15;

pub(crate) fn start(state: &Arc<State>, log: &Log) -> Result<Vec<JoinHandle<()>>> {
    let (flusher, log) = (state.clone(), log.clone());
    let compacter = state.clone();
    Ok(vec![
        spawn(state, "store-flush", move || flush_loop(&flusher, &log))?,
        spawn(state, "store-compact", move || compact_loop(&compacter))?,
    ])
}

fn spawn(
    state: &Arc<State>,
    name: &'static str,
    work: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<JoinHandle<()>> {
    let owner = state.clone();
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            let guard = PanicHalts::new(&owner.env, "thread", name);
            match work() {
                // The store was closed, or has halted with a reason already.
                Ok(()) | Err(Error::Halted(_)) => {}
                Err(error) => owner.halt(error.to_string()),
            }
            drop(guard);
        })
        .map_err(Error::io("start the upkeep of", &state.dir))
}

fn flush_loop(state: &State, log: &Log) -> Result<()> {
    let mut ticks = 0_u32;
    let mut flushed_at = state.env.now();
    loop {
        let (full, dirty) = {
            let mut pressure = state.pressure.lock();
            if !pressure.flush_asked && !pressure.stop {
                state.pressed.wait_for(&mut pressure, TICK);
            }
            if pressure.stop {
                return Ok(());
            }
            let bytes = pressure.active_bytes;
            (bytes >= state.options.memtable_bytes, bytes > 0)
        };
        let now = state.env.now();
        let turned = state.turn_segments(now)?;
        // Batches that stay in memory for long keep log files from being reclaimed.
        let stale = now.saturating_duration_since(flushed_at) >= state.options.bucket
            || ticks.is_multiple_of(TICKS_PER_RECLAIM) && !log.hoarders().is_empty();
        if full || turned || dirty && stale {
            state.flush()?;
            flushed_at = now;
        }
        state.pressure.lock().flush_asked = false;
        ticks = ticks.wrapping_add(1);
        if ticks.is_multiple_of(TICKS_PER_RECLAIM) {
            log.reclaim();
        }
    }
}

fn compact_loop(state: &State) -> Result<()> {
    // Linux keeps a niceness for each thread. Without it the compaction is only less polite.
    let thread = rustix::thread::gettid();
    if let Err(error) = rustix::process::setpriority_process(Some(thread), COMPACTION_NICENESS) {
        tracing::debug!(%error, "the compaction runs at the priority of everything else");
    }
    loop {
        {
            let mut pressure = state.pressure.lock();
            if !pressure.compact_asked && !pressure.stop {
                state.pressed.wait_for(&mut pressure, TICK * 10);
            }
            if pressure.stop {
                return Ok(());
            }
            if !std::mem::take(&mut pressure.compact_asked) {
                continue;
            }
        }
        compact(state, &state.current)?;
        let segments = state.segments.read().clone();
        for segment in &segments.list {
            compact(state, &segment.tree)?;
        }
        let crowded = state.current.l0_run_count() > RUNS_MAX;
        state.pressure.lock().crowded = crowded;
        state.pressed.notify_all();
    }
}

/// Compacts until there is nothing left to do.
fn compact(state: &State, tree: &AnyTree) -> Result<()> {
    let strategy =
        Leveled::default().with_l0_threshold(RUNS_MERGED).with_table_target_size(TABLE_BYTES);
    let strategy = Arc::new(strategy);
    let shape = || (0..7).map(|level| tree.level_table_count(level)).collect::<Vec<_>>();
    loop {
        let before = (shape(), tree.disk_space());
        if state.pressure.lock().stop {
            return Ok(());
        }
        tree.compact(strategy.clone(), state.views.watermark())
            .map_err(|error| state.tree_error(error))?;
        if before == (shape(), tree.disk_space()) {
            return Ok(());
        }
    }
}

impl State {
    /// Brings all applied batches to disk. Blocks. A failure halts: a second attempt could succeed
    /// without having written anything (see `log::disk`).
    pub(crate) fn flush(&self) -> Result<()> {
        let _flushing = self.flushing.lock();
        self.check_running()?;
        self.flush_all().inspect_err(|error| self.halt(error.to_string()))
    }

    fn flush_all(&self) -> Result<()> {
        let (segments, reached, sealed_bytes) = {
            let _applying = self.applying.lock();
            let segments = self.segments.read().clone();
            for segment in &segments.list {
                segment.seal(|| self.seqno.next());
            }
            self.current.rotate_memtable();
            let progress = self.progress.read();
            let reached: Vec<_> = progress.iter().map(|(id, p)| (*id, p.applied)).collect();
            let mut pressure = self.pressure.lock();
            let sealed_bytes = std::mem::take(&mut pressure.active_bytes);
            pressure.sealed_bytes += sealed_bytes;
            (segments, reached, sealed_bytes)
        };
        // The segments first: see the invariants of `state`.
        for segment in &segments.list {
            self.flush_tree(&segment.tree)?;
        }
        self.flush_tree(&self.current)?;
        {
            let mut progress = self.progress.write();
            for (tablet, index) in reached {
                // A tablet that is not there any more was removed meanwhile.
                if let Some(progress) = progress.get_mut(&tablet).filter(|p| !p.gone) {
                    progress.durable = progress.durable.max(Some(index));
                }
            }
        }
        let mut pressure = self.pressure.lock();
        pressure.sealed_bytes -= sealed_bytes;
        pressure.compact_asked = true;
        pressure.crowded = self.current.l0_run_count() > RUNS_MAX;
        drop(pressure);
        self.pressed.notify_all();
        Ok(())
    }

    fn flush_tree(&self, tree: &AnyTree) -> Result<()> {
        if tree.sealed_memtable_count() == 0 {
            return Ok(());
        }
        tree.flush(&tree.get_flush_lock(), self.views.watermark())
            .map_err(|error| self.tree_error(error))?;
        Ok(())
    }
}
