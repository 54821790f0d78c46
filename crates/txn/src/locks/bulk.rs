//! Many keys taken with one call.

use super::intervals::{Conflicts, Interval, Overlaps};
use super::{Hold, LockTable, Place, Point, Target, Ticket, Waiter, conflict};
use crate::LockMode;
use crate::key_set::{self, KeySet};
use base::env::Instant;
use base::{Key, KeyRange, TxnId};
use std::ops::Bound;

/// The first bytes of a key are the number of its relation.
const RELATION_BYTES: usize = 4;

fn relation(key: &[u8]) -> &[u8] {
    &key[..key.len().min(RELATION_BYTES)]
}

fn hull(first: &Key, last: &Key) -> KeyRange {
    KeyRange::new(first.clone(), base::key::successor(last))
}

impl LockTable {
    /// Takes all of many sorted `keys`, if no other transaction has or wants any of them. False: the caller
    /// asks for them one by one.
    pub fn request_all(
        &mut self,
        since: Instant,
        txn: TxnId,
        keys: &[Key],
        mode: LockMode,
    ) -> bool {
        if keys.len() < self.limits.n_keys_min || !self.are_free(txn, keys, mode) {
            return false;
        }
        let place = Place { fresh: true, since, ticket: Ticket(self.next_number()) };
        if self.n_bulk_bytes + key_set::n_bytes(keys) <= self.limits.bytes_max {
            self.take_keys(txn, keys, mode, place);
        } else {
            for keys in keys.chunk_by(|a, b| relation(a) == relation(b)) {
                self.take_ranges(txn, keys, mode, place);
            }
        }
        true
    }

    /// Gives a prepared transaction its locks back in a new leadership. No other transaction has any of its
    /// `keys`. They are locked exactly, however many there are: a second prepared transaction may have keys
    /// in between, and a range would cover these too.
    pub fn restore(&mut self, since: Instant, txn: TxnId, keys: &[Key]) {
        let (mode, place) =
            (LockMode::Exclusive, Place { fresh: true, since, ticket: Ticket(self.next_number()) });
        if keys.len() >= self.limits.n_keys_min {
            return self.take_keys(txn, keys, mode, place);
        }
        for key in keys {
            let (target, cursor) = (Target::Key(key.clone()), Key::new());
            self.grant(Waiter { txn, target, mode, place, parked: None, cursor });
        }
    }

    fn are_free(&self, txn: TxnId, keys: &[Key], mode: LockMode) -> bool {
        let (Some(first), Some(last)) = (keys.first(), keys.last()) else { return false };
        let range = hull(first, last);
        let conflicts = Conflicts { with: Overlaps::Range(&range), mode, before: None };
        let held = self.held.find(conflicts, |own| {
            let hold = self.holds.get(&own.id).filter(|hold| hold.txn != txn);
            hold.is_some_and(|hold| match &hold.only {
                Some(only) => keys.iter().any(|key| only.contains(key)),
                None => has_any(keys, &hold.range),
            })
        });
        let is_others = |ticket: &Ticket| self.waiters.get(ticket).is_some_and(|w| w.txn != txn);
        let asked = self
            .asked
            .find(conflicts, |own| is_others(&own.place.ticket) && has_any(keys, &own.range));
        if held.is_some() || asked.is_some() {
            return false;
        }
        if self.points_from(&range, &range.start).next().is_none() {
            return true;
        }
        let in_the_way = |point: &Point| {
            point.holders.iter().any(|(holder, held)| *holder != txn && conflict(*held, mode))
                || point.queue.iter().any(|place| is_others(&place.ticket))
        };
        !keys.iter().any(|key| self.points.get(key).is_some_and(in_the_way))
    }

    fn take_keys(&mut self, txn: TxnId, keys: &[Key], mode: LockMode, place: Place) {
        let (Some(first), Some(last)) = (keys.first(), keys.last()) else { return };
        let range = hull(first, last);
        let own = self.holds_of(txn).find(|(_, hold)| hold.mode == mode && hold.only.is_some());
        match own.map(|(id, _)| id) {
            None => {
                let mut only = KeySet::default();
                only.add(keys);
                self.n_bulk_bytes += only.n_bytes();
                self.add_hold(Hold { txn, mode, range: range.clone(), only: Some(only) }, place);
            }
            Some(id) => {
                let Some(hold) = self.holds.get_mut(&id) else { return };
                let Some(only) = &mut hold.only else { return };
                self.n_bulk_bytes -= only.n_bytes();
                only.add(keys);
                self.n_bulk_bytes += only.n_bytes();
                let before = hold.range.clone();
                let grown = KeyRange {
                    start: before.start.clone().min(range.start),
                    end: before.end.clone().max(range.end),
                };
                self.resize(id, grown, place);
            }
        }
    }

    /// A held range begins or ends elsewhere now.
    pub(super) fn resize(&mut self, id: u64, range: KeyRange, place: Place) {
        let Some(hold) = self.holds.get_mut(&id) else { return };
        if hold.range != range {
            self.held.remove(&hold.range.start, id);
            hold.range = range.clone();
            let mode = hold.mode;
            self.held.insert(Interval { range, id, mode, place });
        }
    }

    /// Locks the keys of one relation as ranges, cut where other transactions have or want something.
    fn take_ranges(&mut self, txn: TxnId, keys: &[Key], mode: LockMode, place: Place) {
        let new = |key: &&Key| {
            let target = Target::Key((*key).clone());
            !self
                .holds_of(txn)
                .any(|(_, hold)| hold.only.is_none() && hold.mode >= mode && hold.covers(&target))
        };
        let keys: Vec<Key> = keys.iter().filter(new).cloned().collect();
        let mut ranges: Vec<KeyRange> = Vec::new();
        for key in &keys {
            match ranges.last_mut() {
                Some(last) if self.is_lonely(txn, last.end.as_ref(), key) => {
                    last.end = Some(base::key::successor(key));
                }
                _ => ranges.push(hull(key, key)),
            }
        }
        for range in ranges {
            // The load goes on where its last call ended: one range for both.
            let before = self.holds_of(txn).filter(|(_, hold)| {
                hold.only.is_none()
                    && hold.mode == mode
                    && relation(&hold.range.start) == relation(&range.start)
                    && hold.range.end.as_ref().is_some_and(|end| *end <= range.start)
            });
            let before = before.max_by(|(_, a), (_, b)| a.range.end.cmp(&b.range.end));
            let joined = before
                .filter(|(_, hold)| self.is_lonely(txn, hold.range.end.as_ref(), &range.start));
            match joined.map(|(id, hold)| (id, hold.range.start.clone())) {
                Some((id, start)) => self.resize(id, KeyRange { start, end: range.end }, place),
                None => self.add_hold(Hold { txn, mode, range, only: None }, place),
            }
        }
    }

    /// Whether no transaction but `txn` has a lock or a request from `end` up to `key`.
    fn is_lonely(&self, txn: TxnId, end: Option<&Key>, key: &Key) -> bool {
        let Some(end) = end else { return false };
        if end >= key {
            return true;
        }
        let gap = KeyRange::new(end.clone(), key.clone());
        let with = Overlaps::Range(&gap);
        // As an exclusive request, which meets both modes: simple, and rarely asked.
        let all = Conflicts { with, mode: LockMode::Exclusive, before: None };
        let target = Target::Range(gap.clone());
        let others = |hold: &Hold| hold.txn != txn && hold.touches(&target);
        let held = self.held.find(all, |own| self.holds.get(&own.id).is_some_and(others));
        let asked = self.asked.find(all, |own| {
            self.waiters.get(&own.place.ticket).is_some_and(|waiter| waiter.txn != txn)
        });
        let mut points = self.points.range::<Key, _>((Bound::Included(end), Bound::Excluded(key)));
        held.is_none()
            && asked.is_none()
            && points.all(|(_, point)| {
                point.queue.is_empty() && point.holders.iter().all(|(holder, _)| *holder == txn)
            })
    }
}

/// Has `range` any of these sorted keys?
fn has_any(keys: &[Key], range: &KeyRange) -> bool {
    let at = keys.partition_point(|key| *key < range.start);
    keys.get(at).is_some_and(|key| range.contains(key))
}
