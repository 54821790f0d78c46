//! The transactions that a request waits for, for the search for deadlocks and for people.

use super::intervals::{Conflicts, Interval, Overlaps};
use super::{LockTable, Target, Ticket, Waiter, conflict};
use crate::LockMode;
use base::{Key, TxnId};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// One wait, with the transactions that it is for.
#[derive(Debug)]
pub struct Waits<'a> {
    pub ticket: Ticket,
    pub target: &'a Target,
    pub mode: LockMode,
    /// Each with true if it holds something of the target, and false if it only asked before.
    pub blockers: BTreeMap<TxnId, bool>,
}

impl LockTable {
    /// The waits of `txn` here. The header of [`super`] says which transactions are named and which are not.
    pub fn waits_for(&self, txn: TxnId) -> Vec<Waits<'_>> {
        let tickets = self.owned.get(&txn).map_or(&[][..], |owned| &owned.waits);
        let waiters = tickets.iter().filter_map(|ticket| self.waiters.get(ticket));
        waiters
            .map(|waiter| Waits {
                ticket: waiter.place.ticket,
                target: &waiter.target,
                mode: waiter.mode,
                blockers: self.blockers(waiter),
            })
            .collect()
    }

    pub(super) fn blockers(&self, waiter: &Waiter) -> BTreeMap<TxnId, bool> {
        let mut found = BTreeMap::new();
        match &waiter.target {
            Target::Key(key) => self.blockers_at(key, waiter, &mut found),
            Target::Range(range) => {
                // Keys before the cursor are not in its way.
                for (key, _) in self.points_from(range, &waiter.cursor) {
                    self.blockers_at(key, waiter, &mut found);
                }
                self.requests(waiter, Overlaps::Range(range), &mut found);
            }
        }
        let with = match &waiter.target {
            Target::Key(key) => Overlaps::Key(key),
            Target::Range(range) => Overlaps::Range(range),
        };
        let conflicts = Conflicts { with, mode: waiter.mode, before: None };
        self.held.visit(conflicts, &mut |own| {
            if let Some(hold) = self.holds.get(&own.id)
                && hold.touches(&waiter.target)
            {
                found.insert(hold.txn, true);
            }
            ControlFlow::Continue(())
        });
        found.remove(&waiter.txn);
        found
    }

    /// The holders of a key, and the requests in its queue back to the nearest exclusive one. For
    /// a request for this very key, range requests stand in the same queue.
    fn blockers_at(&self, key: &Key, waiter: &Waiter, found: &mut BTreeMap<TxnId, bool>) {
        let Some(point) = self.points.get(key) else { return };
        for (holder, held) in &point.holders {
            self.steps.one();
            if conflict(*held, waiter.mode) {
                found.insert(*holder, true);
            }
        }
        if !waiter.place.fresh {
            return;
        }
        let mut ranges: Vec<&Interval> = Vec::new();
        if matches!(waiter.target, Target::Key(_)) {
            ranges = self.requests_before(waiter, Overlaps::Key(key));
        }
        let nearest = ranges.iter().filter(|own| own.mode == LockMode::Exclusive);
        let mut nearest = nearest.map(|own| own.place).max();
        let end = point.queue.partition_point(|place| *place < waiter.place);
        let holders_end = point.queue.partition_point(|place| !place.fresh);
        for place in point.queue.range(holders_end..end.max(holders_end)).rev() {
            self.steps.one();
            let Some(other) = self.waiter(*place) else { continue };
            if nearest.is_some_and(|nearest| *place < nearest) {
                break;
            }
            if conflict(other.mode, waiter.mode) {
                found.entry(other.txn).or_insert(false);
            }
            if other.mode == LockMode::Exclusive {
                nearest = Some(*place);
                break;
            }
        }
        for place in point.queue.range(..holders_end.min(end)) {
            if let Some(other) = self.waiter(*place)
                && conflict(other.mode, waiter.mode)
            {
                found.entry(other.txn).or_insert(false);
            }
        }
        for own in ranges {
            if let Some(other) = self.waiter(own.place)
                && (!own.place.fresh || nearest.is_none_or(|nearest| own.place >= nearest))
            {
                found.entry(other.txn).or_insert(false);
            }
        }
    }

    /// The range requests before a range request, without those for which a nearer one waits. Requests of
    /// holders are named in any case, because requests of other holders do not wait for them.
    fn requests(&self, waiter: &Waiter, with: Overlaps<'_>, found: &mut BTreeMap<TxnId, bool>) {
        if !waiter.place.fresh {
            return;
        }
        let mut before = self.requests_before(waiter, with);
        before.sort_unstable_by_key(|own| std::cmp::Reverse(own.place));
        let mut walls: Vec<&Interval> = Vec::new();
        for own in before {
            let is_behind = own.place.fresh && walls.iter().any(|w| w.range.overlaps(&own.range));
            if is_behind {
                continue;
            }
            if let Some(other) = self.waiter(own.place) {
                found.entry(other.txn).or_insert(false);
            }
            if own.mode == LockMode::Exclusive {
                walls.push(own);
            }
        }
    }

    fn requests_before<'a>(&'a self, waiter: &Waiter, with: Overlaps<'_>) -> Vec<&'a Interval> {
        let mut before = Vec::new();
        let conflicts = Conflicts { with, mode: waiter.mode, before: Some(waiter.place) };
        self.asked.visit(conflicts, &mut |own| {
            self.steps.one();
            before.push(own);
            ControlFlow::Continue(())
        });
        before
    }
}
