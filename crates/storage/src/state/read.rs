//! Reads: a key or a range, now or at an SCN.
//!
//! A read of the present looks at `current` alone. A read at an SCN walks `current` and the
//! rollback segments that can matter side by side, key by key. For each key it takes the current
//! version if that is old enough, and otherwise the version that was replaced first after the SCN. A
//! row that changes all the time has thousands of versions in one segment; after a few steps inside
//! one key a cursor seeks past the other versions instead of walking over them.

use super::keys::{self, EXPIRING, META, ROW};
use super::segments::Segment;
use super::view::View;
use super::{At, KEY_BYTES_MAX, State};
use crate::{Error, Result};
use base::{Key, KeyRange, Scn};
use bytes::Bytes;
use lsm_tree::{AbstractTree, AnyTree, Guard, IterGuardImpl, Slice};
use std::ops::Bound;
use std::sync::Arc;

type TreeIter = Box<dyn DoubleEndedIterator<Item = IterGuardImpl> + Send>;

/// Steps inside one key after which a cursor seeks.
const STEPS_MAX: usize = 16;

/// The same range of keys, with bounds that are short enough for the trees. A bound that is too long
/// is cut; no key that can be stored lies between the long bound and the cut one.
fn within_reach(range: &KeyRange) -> KeyRange {
    let reach = |bound: &Key| match bound.get(..KEY_BYTES_MAX) {
        Some(cut) if bound.len() > KEY_BYTES_MAX => base::key::successor(cut),
        _ => bound.clone(),
    };
    KeyRange { start: reach(&range.start), end: range.end.as_ref().map(reach) }
}

impl State {
    pub(crate) fn get_in(&self, view: &View, key: &[u8], at: At) -> Result<Option<(Scn, Bytes)>> {
        if key.len() > KEY_BYTES_MAX {
            return Ok(None);
        }
        let stored = self.current.get(keys::tagged(ROW, key), view.number);
        let stored = stored.map_err(|e| self.tree_error(e))?;
        let newest = match stored.map(keys::split_version) {
            Some(None) => return Err(self.damaged("a row has no SCN")),
            Some(version) => version,
            None => None,
        };
        let At::Scn(scn) = at else { return Ok(newest) };
        check_horizon(view, scn)?;
        if newest.as_ref().is_some_and(|(written_at, _)| *written_at <= scn) {
            return Ok(newest);
        }
        let mut first: Option<(Scn, Slice)> = None;
        for segment in view.segments.for_read_at(scn) {
            let found = first_replaced_after(&segment.tree, key, scn, view.number);
            if let Some((replaced_at, old)) = found.map_err(|e| self.tree_error(e))?
                && first.as_ref().is_none_or(|(best, _)| replaced_at < *best)
            {
                first = Some((replaced_at, old));
            }
        }
        let Some((_, old)) = first else { return Ok(None) };
        match keys::split_version(old) {
            Some((written_at, value)) if written_at <= scn => Ok(Some((written_at, value))),
            Some(_) => Ok(None),
            None => Err(self.damaged("an old version has no SCN")),
        }
    }

    pub(crate) fn scan(self: &Arc<State>, range: &KeyRange, at: At, reverse: bool) -> Scan {
        let view = View::of(self);
        let refused = match at {
            At::Newest => None,
            At::Scn(scn) => check_horizon(&view, scn).err(),
        };
        let range = &within_reach(range);
        let current = self.current.range(keys::tagged_range(ROW, range), view.number, None);
        let scn = match at {
            At::Newest => Scn::MAX,
            At::Scn(scn) => scn,
        };
        let bounds = keys::old_range(range);
        let open = |segment: &Arc<Segment>| Cursor::open(segment, &bounds, view.number, reverse);
        let cursors = view.segments.for_read_at(scn).map(open).collect();
        Scan {
            state: self.clone(),
            current: Walk { iter: current, reverse, head: None, started: false },
            cursors,
            scn,
            reverse,
            failed: refused.map(Some),
            _view: view,
        }
    }

    pub(crate) fn meta_get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let view = View::of(self);
        let stored = self.current.get(keys::tagged(META, key), view.number);
        Ok(stored.map_err(|e| self.tree_error(e))?.map(Bytes::from))
    }

    pub(crate) fn meta_scan(self: &Arc<State>, range: &KeyRange) -> MetaIter {
        let view = View::of(self);
        let iter = self.current.range(keys::tagged_range(META, range), view.number, None);
        let walks = vec![Walk { iter, reverse: false, head: None, started: false }];
        MetaIter { state: self.clone(), walks, expiring: false, _view: view }
    }

    pub(crate) fn expiring_get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let view = View::of(self);
        let key = keys::tagged(EXPIRING, key);
        for segment in view.segments.list.iter().rev() {
            let stored = segment.tree.get(&key, view.number).map_err(|e| self.tree_error(e))?;
            if let Some(value) = stored.and_then(|stored| self.if_applied(stored)) {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    pub(crate) fn expiring_scan(self: &Arc<State>, range: &KeyRange) -> MetaIter {
        let view = View::of(self);
        let bounds = keys::tagged_range(EXPIRING, range);
        let walk = |segment: &Arc<Segment>| Walk {
            iter: segment.tree.range(bounds.clone(), view.number, None),
            reverse: false,
            head: None,
            started: false,
        };
        let walks = view.segments.list.iter().rev().map(walk).collect();
        MetaIter { state: self.clone(), walks, expiring: true, _view: view }
    }

    pub(crate) fn if_applied(&self, stored: Slice) -> Option<Bytes> {
        let (tablet, index, value) = keys::split_pair(stored)?;
        self.is_applied(base::TabletId(tablet), index).then_some(value)
    }
}

fn check_horizon(view: &View, wanted: Scn) -> Result<()> {
    let oldest = view.segments.horizon;
    if wanted < oldest { Err(Error::SnapshotTooOld { wanted, oldest }) } else { Ok(()) }
}

/// The version of `key` that was replaced first after `scn`.
fn first_replaced_after(
    tree: &AnyTree,
    key: &[u8],
    scn: Scn,
    number: u64,
) -> lsm_tree::Result<Option<(Scn, Slice)>> {
    let bounds =
        (Bound::Included(keys::old_key(key, scn.next())), Bound::Excluded(keys::old_end(key)));
    let Some(item) = tree.range(bounds, number, None).next() else { return Ok(None) };
    let (stored, old) = item.into_inner()?;
    Ok(keys::split_old(&stored).map(|(_, replaced_at)| (replaced_at, old)))
}

/// A tree's range in one direction, with the next item in sight.
struct Walk {
    iter: TreeIter,
    reverse: bool,
    head: Option<(Slice, Slice)>,
    started: bool,
}

impl Walk {
    fn head(&mut self) -> lsm_tree::Result<Option<&(Slice, Slice)>> {
        if !self.started {
            self.step()?;
        }
        Ok(self.head.as_ref())
    }

    fn step(&mut self) -> lsm_tree::Result<()> {
        self.started = true;
        let next = if self.reverse { self.iter.next_back() } else { self.iter.next() };
        self.head = next.map(Guard::into_inner).transpose()?;
        Ok(())
    }

    fn take(&mut self) -> lsm_tree::Result<Option<(Slice, Slice)>> {
        self.head()?;
        let head = self.head.take();
        self.started = false;
        Ok(head)
    }
}

/// A walk through the old versions in one segment.
struct Cursor {
    segment: Arc<Segment>,
    walk: Walk,
    number: u64,
    /// Where the range begins and ends in the segment.
    bounds: (Slice, Slice),
    /// The key in sight, unescaped once for all its versions.
    key: Option<(Slice, Key)>,
}

impl Cursor {
    fn open(segment: &Arc<Segment>, bounds: &(Slice, Slice), number: u64, reverse: bool) -> Cursor {
        let iter = segment.tree.range(keys::old_bounds(&bounds.0, &bounds.1), number, None);
        Cursor {
            segment: segment.clone(),
            walk: Walk { iter, reverse, head: None, started: false },
            number,
            bounds: bounds.clone(),
            key: None,
        }
    }

    /// The key in sight.
    fn key(&mut self) -> lsm_tree::Result<Option<Key>> {
        let Some((stored, _)) = self.walk.head()? else { return Ok(None) };
        let Some((prefix, _)) = keys::split_old(stored) else { return Ok(None) };
        if let Some((known, key)) = &self.key
            && known[..] == *prefix
        {
            return Ok(Some(key.clone()));
        }
        let key = keys::unescape(prefix);
        self.key = Some((Slice::from(prefix), key.clone()));
        Ok(Some(key))
    }

    /// Takes `key`'s version that was replaced first after `scn`, and leaves the key behind.
    fn take_version(&mut self, key: &Key, scn: Scn) -> lsm_tree::Result<Option<(Scn, Slice)>> {
        let mut found = None;
        for _ in 0..STEPS_MAX {
            if self.key()?.as_ref() != Some(key) {
                return Ok(found);
            }
            let Some((stored, old)) = self.walk.head.as_ref() else { return Ok(found) };
            let Some((_, replaced_at)) = keys::split_old(stored) else { return Ok(found) };
            let wanted = replaced_at > scn;
            if wanted {
                found = Some((replaced_at, old.clone()));
            }
            // Upwards, the first wanted version is it; downwards, the last wanted one before an unwanted one.
            if wanted != self.walk.reverse {
                self.skip(key)?;
                return Ok(found);
            }
            self.walk.step()?;
        }
        found = first_replaced_after(&self.segment.tree, key, scn, self.number)?;
        self.seek_past(key);
        Ok(found)
    }

    /// Leaves `key` behind.
    fn skip(&mut self, key: &Key) -> lsm_tree::Result<()> {
        for _ in 0..STEPS_MAX {
            if self.key()?.as_ref() != Some(key) {
                return Ok(());
            }
            self.walk.step()?;
        }
        self.seek_past(key);
        Ok(())
    }

    fn seek_past(&mut self, key: &Key) {
        if self.walk.reverse {
            self.bounds.1 = keys::old_start(key);
        } else {
            self.bounds.0 = keys::old_end(key);
        }
        let bounds = keys::old_bounds(&self.bounds.0, &self.bounds.1);
        self.walk.iter = self.segment.tree.range(bounds, self.number, None);
        self.walk.started = false;
    }
}

/// Rows in key order, as of the call of `scan`.
pub struct Scan {
    state: Arc<State>,
    current: Walk,
    cursors: Vec<Cursor>,
    scn: Scn,
    reverse: bool,
    /// An error to give, once; after it the scan is over.
    failed: Option<Option<Error>>,
    _view: View,
}

impl Iterator for Scan {
    type Item = Result<(Key, Scn, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(failed) = &mut self.failed {
            return failed.take().map(Err);
        }
        match self.row() {
            Ok(row) => row.map(Ok),
            Err(error) => {
                self.failed = Some(None);
                Some(Err(error))
            }
        }
    }
}

impl Scan {
    fn row(&mut self) -> Result<Option<(Key, Scn, Bytes)>> {
        let state = self.state.clone();
        let tree_error = |error| state.tree_error(error);
        loop {
            if self.cursors.is_empty() {
                // The present, or a past that nothing has replaced since.
                let Some((key, stored)) = self.current.take().map_err(tree_error)? else {
                    return Ok(None);
                };
                let (scn, value) = self.version(stored)?;
                if scn <= self.scn {
                    return Ok(Some((keys::untagged(key), scn, value)));
                }
                continue;
            }
            let head = self.current.head().map_err(tree_error)?;
            let current_key = head.map(|(key, _)| keys::untagged(key.clone()));
            let mut next = current_key.clone();
            for cursor in &mut self.cursors {
                let Some(key) = cursor.key().map_err(tree_error)? else { continue };
                let nearer = |best: &Key| if self.reverse { key > *best } else { key < *best };
                if next.as_ref().is_none_or(nearer) {
                    next = Some(key);
                }
            }
            let Some(key) = next else { return Ok(None) };
            let mut visible = None;
            if current_key.as_ref() == Some(&key)
                && let Some((_, stored)) = self.current.take().map_err(tree_error)?
            {
                let (scn, value) = self.version(stored)?;
                visible = (scn <= self.scn).then_some((scn, value));
            }
            let mut first: Option<(Scn, Slice)> = None;
            for cursor in &mut self.cursors {
                if visible.is_some() {
                    cursor.skip(&key).map_err(tree_error)?;
                } else if let Some((replaced_at, old)) =
                    cursor.take_version(&key, self.scn).map_err(tree_error)?
                    && first.as_ref().is_none_or(|(best, _)| replaced_at < *best)
                {
                    first = Some((replaced_at, old));
                }
            }
            if let Some((_, old)) = first {
                let (scn, value) = self.version(old)?;
                visible = (scn <= self.scn).then_some((scn, value));
            }
            if let Some((scn, value)) = visible {
                return Ok(Some((key, scn, value)));
            }
        }
    }

    fn version(&self, stored: Slice) -> Result<(Scn, Bytes)> {
        keys::split_version(stored).ok_or_else(|| self.state.damaged("a version has no SCN"))
    }
}

/// Keys without versions in key order, as of the call.
pub struct MetaIter {
    state: Arc<State>,
    /// For expiring keys the newest segment comes first and wins.
    walks: Vec<Walk>,
    expiring: bool,
    _view: View,
}

impl Iterator for MetaIter {
    type Item = Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.pair() {
            Ok(pair) => pair.map(Ok),
            Err(error) => {
                self.walks.clear();
                Some(Err(self.state.tree_error(error)))
            }
        }
    }
}

impl MetaIter {
    fn pair(&mut self) -> lsm_tree::Result<Option<(Bytes, Bytes)>> {
        loop {
            let mut next: Option<Slice> = None;
            for walk in &mut self.walks {
                if let Some((key, _)) = walk.head()?
                    && next.as_ref().is_none_or(|best| key < best)
                {
                    next = Some(key.clone());
                }
            }
            let Some(key) = next else { return Ok(None) };
            let mut found = None;
            for walk in &mut self.walks {
                if walk.head()?.is_some_and(|(head, _)| *head == key)
                    && let Some((_, stored)) = walk.take()?
                    && found.is_none()
                {
                    found = if self.expiring {
                        self.state.if_applied(stored)
                    } else {
                        Some(Bytes::from(stored))
                    };
                }
            }
            if let Some(value) = found {
                return Ok(Some((keys::untagged(key), value)));
            }
        }
    }
}
