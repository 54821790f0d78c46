//! Rollback segments: one tree per time bucket, dropped as a whole.
//!
//! A segment opens when its predecessor has been open for a bucket (a minute), takes the versions
//! that are replaced while it is open, and is dropped once everything in it is older than the
//! retention. No old version is ever looked for and deleted by itself.
//!
//! Dropping a segment loses the versions that reads *before* its highest "replaced at" may need.
//! That SCN becomes the horizon, which is made durable first. Example: the highest "replaced at" in
//! the segment is 900; from now on a read at 899 gets "snapshot too old". A [`Pin`] keeps the segments
//! that reads at its SCN need; [`State::segment_infos`] shows each segment with its pins.
//!
//! Buckets follow this node's own clock and differ between replicas. That is harmless, because a read
//! looks into every segment that can matter.

use super::keys::{self, SUMMARY};
use super::manifest::{Listed, Manifest};
use super::{State, open_tree, tree_error};
use crate::{Error, Result};
use base::Scn;
use base::env::Instant;
use lsm_tree::{AbstractTree, AnyTree, SeqNo};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

pub(crate) struct Segment {
    pub id: u64,
    pub dir: PathBuf,
    pub tree: AnyTree,
    /// The lowest and highest "replaced at" of its versions; `u64::MAX` and 0 while it has none.
    lowest: AtomicU64,
    highest: AtomicU64,
    /// Whether something was put in since the summary was written.
    touched: AtomicBool,
    age: Mutex<Age>,
    /// Its directory is deleted when the last reader lets go of it.
    doomed: AtomicBool,
}

/// How long a segment has existed: `then` at the moment `since`.
struct Age {
    then: Duration,
    since: Instant,
}

impl Segment {
    fn open(state: &OpenTrees<'_>, listed: Listed, now: Instant) -> Result<Segment> {
        let dir = segment_dir(state.dir, listed.id);
        let tree = open_tree(&dir, state)?;
        let summary = tree
            .get(SUMMARY, SeqNo::MAX)
            .map_err(|error| tree_error(error, &dir, state.data_dir))?;
        let (lowest, highest) = match summary.and_then(keys::split_pair) {
            Some((lowest, highest, _)) => (lowest, highest),
            None => (u64::MAX, 0),
        };
        Ok(Segment {
            id: listed.id,
            dir,
            tree,
            lowest: AtomicU64::new(lowest),
            highest: AtomicU64::new(highest),
            touched: AtomicBool::new(false),
            age: Mutex::new(Age { then: Duration::from_millis(listed.age_ms), since: now }),
            doomed: AtomicBool::new(false),
        })
    }

    /// Notes that something was put in, a version replaced at `replaced_at` if it is one.
    pub fn touch(&self, replaced_at: Option<Scn>) {
        if let Some(scn) = replaced_at {
            self.lowest.fetch_min(scn.0, Ordering::Relaxed);
            self.highest.fetch_max(scn.0, Ordering::Release);
        }
        self.touched.store(true, Ordering::Relaxed);
    }

    /// Whether a read at `scn` may need a version from here.
    pub fn matters_to(&self, scn: Scn) -> bool {
        self.highest() > scn
    }

    fn highest(&self) -> Scn {
        Scn(self.highest.load(Ordering::Acquire))
    }

    fn is_empty(&self) -> bool {
        !self.touched.load(Ordering::Relaxed)
            && self.tree.table_count() == 0
            && self.tree.active_memtable().is_empty()
            && self.tree.sealed_memtable_count() == 0
    }

    pub fn age(&self, now: Instant) -> Duration {
        let age = self.age.lock();
        age.then + now.saturating_duration_since(age.since)
    }

    fn rejuvenate(&self, now: Instant) {
        *self.age.lock() = Age { then: Duration::ZERO, since: now };
    }

    /// Writes the summary that a restart needs, and seals the memtable. Under the apply lock.
    pub fn seal(&self, seqno: impl FnOnce() -> SeqNo) {
        if self.touched.swap(false, Ordering::Relaxed) {
            let (lowest, highest) = (self.lowest.load(Ordering::Relaxed), self.highest());
            let mut summary = lowest.to_be_bytes().to_vec();
            summary.extend_from_slice(&highest.0.to_be_bytes());
            self.tree.insert(SUMMARY, summary, seqno());
            self.tree.rotate_memtable();
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if self.doomed.load(Ordering::Acquire)
            && let Err(error) = std::fs::remove_dir_all(&self.dir)
        {
            // The manifest no longer lists it: the next start deletes it.
            tracing::warn!(dir = %self.dir.display(), %error, "cannot delete a dropped segment");
        }
    }
}

/// The segments as one value, so that a reader gets list and horizon of the same instant.
pub(crate) struct Segments {
    /// Oldest first; the last one is open. Never empty.
    pub list: Vec<Arc<Segment>>,
    pub horizon: Scn,
}

impl Segments {
    pub fn newest(&self) -> &Arc<Segment> {
        &self.list[self.list.len() - 1]
    }

    /// The segments that a read at `scn` must look into.
    pub fn for_read_at(&self, scn: Scn) -> impl Iterator<Item = &Arc<Segment>> {
        self.list.iter().filter(move |segment| segment.matters_to(scn))
    }
}

/// What is needed to open a tree.
pub(crate) struct OpenTrees<'a> {
    pub dir: &'a Path,
    pub data_dir: &'a Path,
    pub seqno: &'a lsm_tree::SequenceNumberCounter,
    pub cache: &'a Arc<lsm_tree::Cache>,
    pub descriptors: &'a Arc<lsm_tree::DescriptorTable>,
}

fn segment_dir(state_dir: &Path, id: u64) -> PathBuf {
    state_dir.join(format!("segment-{id:010}"))
}

/// Opens the segments that the manifest lists and deletes those it does not.
pub(crate) fn open(
    trees: &OpenTrees<'_>,
    manifest: &mut Manifest,
    now: Instant,
) -> Result<Segments> {
    let dir = trees.dir;
    for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let path = entry.map_err(Error::io("list", dir))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let listed = manifest.segments.iter().any(|s| segment_dir(dir, s.id) == path);
        if name.starts_with("segment-") && !listed {
            std::fs::remove_dir_all(&path).map_err(Error::io("delete", &path))?;
        }
    }
    let mut list = Vec::new();
    for listed in &manifest.segments {
        let path = segment_dir(dir, listed.id);
        if !path.join("current").exists() {
            return Err(Error::Damaged {
                file: path,
                dir: trees.data_dir.to_path_buf(),
                what: "the manifest lists this rollback segment and it is not there".into(),
            });
        }
        list.push(Arc::new(Segment::open(trees, *listed, now)?));
    }
    if list.is_empty() {
        list.push(Arc::new(create(trees, manifest, now)?));
    }
    Ok(Segments { list, horizon: manifest.horizon })
}

/// Makes the next segment's tree; the caller saves the manifest, which then lists it.
fn create(trees: &OpenTrees<'_>, manifest: &mut Manifest, now: Instant) -> Result<Segment> {
    let listed = Listed { id: manifest.next_segment, age_ms: 0 };
    let segment = Segment::open(trees, listed, now)?;
    crate::log::sync_dir(trees.dir)?;
    manifest.next_segment += 1;
    manifest.segments.push(listed);
    Ok(segment)
}

/// One rollback segment, for people.
#[derive(Clone, Debug)]
pub struct SegmentInfo {
    pub id: u64,
    /// Whether versions that are replaced now go here.
    pub open: bool,
    pub age: Duration,
    pub bytes: u64,
    /// The lowest and highest SCN at which a version in it was replaced; none if it has none.
    pub replaced: Option<(Scn, Scn)>,
    /// The pins that hold it back.
    pub held_by: Vec<String>,
}

/// Keeps reads at its SCN possible until it is dropped.
pub struct Pin {
    state: Arc<State>,
    id: u64,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.state.pins.lock().held.remove(&self.id);
    }
}

#[derive(Default)]
pub(crate) struct Pins {
    next: u64,
    held: std::collections::BTreeMap<u64, (String, Scn)>,
}

impl Pins {
    fn holding(&self, segment: &Segment) -> Vec<String> {
        let holds = |(_, scn): &&(String, Scn)| segment.matters_to(*scn);
        self.held.values().filter(holds).map(|(who, _)| who.clone()).collect()
    }
}

impl State {
    pub(crate) fn pin(self: &Arc<State>, who: String, scn: Scn) -> Result<Pin> {
        let mut pins = self.pins.lock();
        let oldest = self.segments.read().horizon;
        if scn < oldest {
            return Err(Error::SnapshotTooOld { wanted: scn, oldest });
        }
        let id = pins.next;
        pins.next += 1;
        pins.held.insert(id, (who, scn));
        Ok(Pin { state: self.clone(), id })
    }

    pub(crate) fn segment_infos(&self) -> Vec<SegmentInfo> {
        let segments = self.segments.read().clone();
        let pins = self.pins.lock();
        let now = self.env.now();
        let info = |segment: &Arc<Segment>| SegmentInfo {
            id: segment.id,
            open: segment.id == segments.newest().id,
            age: segment.age(now),
            bytes: segment.tree.disk_space() + segment.tree.active_memtable().size(),
            replaced: (segment.highest() > Scn::ZERO)
                .then(|| (Scn(segment.lowest.load(Ordering::Relaxed)), segment.highest())),
            held_by: pins.holding(segment),
        };
        segments.list.iter().map(info).collect()
    }

    /// Opens the next segment if the open one is a bucket old, and drops the segments that are older
    /// than the retention and that no pin holds. Says whether anything changed.
    pub(crate) fn turn_segments(&self, now: Instant) -> Result<bool> {
        let mut manifest = self.manifest.lock();
        let before = self.segments.read().clone();
        let mut next = manifest.clone();
        let mut list = before.list.clone();
        let newest = before.newest();
        let due = newest.age(now) >= self.options.bucket;
        if due && newest.is_empty() {
            newest.rejuvenate(now);
        } else if due {
            list.push(Arc::new(create(&self.trees(), &mut next, now)?));
        }

        let pins = self.pins.lock();
        let newest_id = list.last().map_or(0, |segment| segment.id);
        let lifetime = self.options.retention + self.options.bucket;
        let (dropped, kept): (Vec<_>, Vec<_>) = list.into_iter().partition(|segment| {
            segment.id != newest_id
                && segment.age(now) >= lifetime
                && pins.holding(segment).is_empty()
        });
        let changed = !dropped.is_empty() || kept.len() != before.list.len();
        if !changed {
            return Ok(false);
        }
        for segment in &dropped {
            next.horizon = next.horizon.max(segment.highest());
        }
        next.segments = kept
            .iter()
            .map(|s| Listed { id: s.id, age_ms: s.age(now).as_millis() as u64 })
            .collect();
        next.save(&self.dir)?;
        let horizon = next.horizon;
        *manifest = next;
        {
            // Under the apply lock: a batch puts all its old versions into one segment.
            let _applying = self.applying.lock();
            *self.segments.write() = Arc::new(Segments { list: kept, horizon });
        }
        drop(pins);
        for segment in dropped {
            tracing::debug!(segment = segment.id, %horizon, "dropped a rollback segment");
            segment.doomed.store(true, Ordering::Release);
        }
        Ok(true)
    }

    /// Refuses reads before `horizon` from now on; the caller's next save makes it durable.
    pub(crate) fn raise_horizon(&self, manifest: &mut Manifest, horizon: Scn) {
        manifest.horizon = manifest.horizon.max(horizon);
        let mut segments = self.segments.write();
        if segments.horizon < horizon {
            *segments = Arc::new(Segments { list: segments.list.clone(), horizon });
        }
    }
}
