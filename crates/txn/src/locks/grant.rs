//! Granting: looking at requests again where something has changed.
//!
//! [`LockTable::settle`] is exact whatever it is given: it grants no request that still has to wait. But
//! after each change the caller must name everything that may be able to go on now: the key that changed,
//! and the requests that are parked at a witness that has gone.

use super::intervals::{Conflicts, Interval, Overlaps};
use super::{Hold, LockTable, Place, Point, Target, Ticket, Waiter, Witness, conflict};
use crate::LockMode;
use base::{Key, KeyRange, TxnId};
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// The keys and the range requests to look at again.
#[derive(Debug, Default)]
pub(super) struct Again {
    pub(super) keys: BTreeSet<Key>,
    ranges: BTreeSet<Ticket>,
}

/// The thing that keeps a request from being granted.
enum InTheWay {
    Nothing,
    /// Something at the request's own key: a change there is seen anyway.
    Here,
    Parks(Witness),
}

impl LockTable {
    /// May this request, which does not wait yet, be granted?
    pub(super) fn is_free(&self, waiter: &Waiter) -> bool {
        match &waiter.target {
            Target::Key(key) => {
                self.is_next_at(key, waiter)
                    && matches!(self.in_the_way_at(key, waiter), InTheWay::Nothing)
            }
            Target::Range(range) => self.in_the_way_of_range(range, waiter).is_none(),
        }
    }

    /// Is no request before it in the key's queue in its way?
    fn is_next_at(&self, key: &Key, waiter: &Waiter) -> bool {
        let Some(point) = self.points.get(key).filter(|_| waiter.place.fresh) else { return true };
        let end = point.queue.partition_point(|place| *place < waiter.place);
        let before = point.queue.range(..end).rev().filter_map(|place| self.waiter(*place));
        let mut before = before.inspect(|_| self.steps.one());
        !before.any(|other| conflict(other.mode, waiter.mode))
    }

    fn in_the_way_at(&self, key: &Key, waiter: &Waiter) -> InTheWay {
        self.steps.one();
        let Waiter { txn, mode, place, .. } = *waiter;
        let holders = self.points.get(key).map_or(&[][..], |point| &point.holders);
        if holders.iter().any(|(holder, held)| *holder != txn && conflict(*held, mode)) {
            return InTheWay::Here;
        }
        let with = Overlaps::Key(key);
        if let Some(request) = self.last_request(txn, mode, place, with) {
            return InTheWay::Parks(Witness::Request(request));
        }
        let target = &waiter.target;
        let found = self.held.find(Conflicts { with, mode, before: None }, |own| {
            self.holds.get(&own.id).is_some_and(|hold| hold.txn != txn && hold.touches(target))
        });
        found.map_or(InTheWay::Nothing, |own| InTheWay::Parks(Witness::Hold(own.id)))
    }

    /// The last of the conflicting range requests before `place`. A request behind many is looked at again
    /// when the one right before it goes, and not when each of them goes.
    fn last_request(
        &self,
        txn: TxnId,
        mode: LockMode,
        place: Place,
        with: Overlaps<'_>,
    ) -> Option<Ticket> {
        if !place.fresh {
            return None;
        }
        let mut last: Option<&Interval> = None;
        self.asked.visit(Conflicts { with, mode, before: Some(place) }, &mut |own| {
            self.steps.one();
            let is_others = self.waiters.get(&own.place.ticket).is_some_and(|w| w.txn != txn);
            if is_others && last.is_none_or(|last| last.place < own.place) {
                last = Some(own);
            }
            ControlFlow::Continue(())
        });
        last.map(|own| own.place.ticket)
    }

    /// The witness of a range request: a request before it, a range that is held, or a key.
    fn in_the_way_of_range(&self, range: &KeyRange, waiter: &Waiter) -> Option<Witness> {
        let Waiter { txn, mode, place, .. } = *waiter;
        let with = Overlaps::Range(range);
        if let Some(request) = self.last_request(txn, mode, place, with) {
            return Some(Witness::Request(request));
        }
        let found = self.held.find(Conflicts { with, mode, before: None }, |own| {
            self.steps.one();
            let hold = self.holds.get(&own.id);
            hold.is_some_and(|hold| hold.txn != txn && hold.touches(&waiter.target))
        });
        if let Some(own) = found {
            return Some(Witness::Hold(own.id));
        }
        let mut points = self.points_from(range, &waiter.cursor);
        let found = points.find(|(_, point)| self.is_in_the_way(point, waiter));
        found.map(|(key, _)| Witness::Key(key.clone()))
    }

    /// Must a range request wait for something at this key within it?
    fn is_in_the_way(&self, point: &Point, waiter: &Waiter) -> bool {
        self.steps.one();
        let Waiter { txn, mode, place, .. } = *waiter;
        point.holders.iter().any(|(holder, held)| *holder != txn && conflict(*held, mode))
            || place.fresh
                && point.queue.iter().take_while(|other| **other < place).any(|other| {
                    self.waiter(*other).is_some_and(|w| w.txn != txn && conflict(w.mode, mode))
                })
    }

    pub(super) fn waiter(&self, place: Place) -> Option<&Waiter> {
        self.waiters.get(&place.ticket)
    }

    pub(super) fn grant(&mut self, waiter: Waiter) {
        let Waiter { txn, target, mode, place, .. } = waiter;
        match target {
            Target::Key(key) => {
                self.look_back(&key, None);
                let point = self.points.entry(key.clone()).or_default();
                match point.holders.iter_mut().find(|(holder, _)| *holder == txn) {
                    Some((_, held)) => *held = mode.max(*held),
                    None => {
                        point.holders.push((txn, mode));
                        self.owned.entry(txn).or_default().keys.push(key);
                    }
                }
            }
            Target::Range(range) => {
                // A transaction that takes neighbouring ranges one after the other keeps one range.
                let before = self.holds_of(txn).find(|(_, hold)| {
                    hold.only.is_none()
                        && hold.mode == mode
                        && hold.range.end.as_ref() == Some(&range.start)
                });
                match before.map(|(id, hold)| (id, hold.range.start.clone())) {
                    Some((id, start)) => self.resize(id, KeyRange { start, end: range.end }, place),
                    None => self.add_hold(Hold { txn, mode, range, only: None }, place),
                }
            }
        }
    }

    /// Something new stands at `key`, a lock or a request with its `place`: range requests that
    /// passed the key, and have to wait for that, come back to it.
    fn look_back(&mut self, key: &Key, place: Option<Place>) {
        if self.asked.is_empty() {
            return;
        }
        let mut passed = Vec::new();
        let with = Overlaps::Key(key);
        // As an exclusive request, which meets requests of both modes.
        let all = Conflicts { with, mode: LockMode::Exclusive, before: None };
        self.asked.visit(all, &mut |own| {
            passed.push(own.place.ticket);
            ControlFlow::Continue(())
        });
        for ticket in passed {
            if let Some(waiter) = self.waiters.get_mut(&ticket)
                && waiter.cursor > *key
                && place.is_none_or(|place| place < waiter.place)
            {
                waiter.cursor = key.clone();
            }
        }
    }

    pub(super) fn enqueue(&mut self, waiter: Waiter) {
        let ticket = waiter.place.ticket;
        self.owned.entry(waiter.txn).or_default().waits.push(ticket);
        let mut again = Again::default();
        match &waiter.target {
            Target::Key(key) => {
                self.look_back(key, Some(waiter.place));
                let queue = &mut self.points.entry(key.clone()).or_default().queue;
                let at = queue.partition_point(|place| *place < waiter.place);
                queue.insert(at, waiter.place);
                again.keys.insert(key.clone());
            }
            Target::Range(range) => {
                let (range, mode, place) = (range.clone(), waiter.mode, waiter.place);
                self.asked.insert(Interval { range, id: ticket.0, mode, place });
                again.ranges.insert(ticket);
            }
        }
        self.waiters.insert(ticket, waiter);
        // To park it: it was just found not to be free, and one more request frees no other.
        let granted = self.settle(again);
        debug_assert!(granted.is_empty());
    }

    /// Takes a request out of its queue, wherever it stands there.
    pub(super) fn leave(&mut self, ticket: Ticket, again: &mut Again) -> Option<Waiter> {
        self.park(ticket, None);
        let waiter = self.waiters.remove(&ticket)?;
        match &waiter.target {
            Target::Key(key) => {
                if let Some(point) = self.points.get_mut(key) {
                    if let Ok(at) = point.queue.binary_search(&waiter.place) {
                        point.queue.remove(at);
                    }
                    if point.holders.is_empty() && point.queue.is_empty() {
                        self.points.remove(key);
                    }
                }
                again.keys.insert(key.clone());
            }
            Target::Range(range) => {
                self.asked.remove(&range.start, ticket.0);
                self.wake_parked(&Witness::Request(ticket), again);
            }
        }
        if let Some(owned) = self.owned.get_mut(&waiter.txn) {
            owned.waits.retain(|own| *own != ticket);
            if owned.waits.is_empty() && owned.keys.is_empty() && owned.holds.is_empty() {
                self.owned.remove(&waiter.txn);
            }
        }
        Some(waiter)
    }

    fn park(&mut self, ticket: Ticket, at: Option<Witness>) {
        let Some(waiter) = self.waiters.get_mut(&ticket) else { return };
        if waiter.parked == at {
            return;
        }
        if let Some(before) = std::mem::replace(&mut waiter.parked, at.clone())
            && let Some(tickets) = self.parked.get_mut(&before)
        {
            tickets.remove(&ticket);
            if tickets.is_empty() {
                self.parked.remove(&before);
            }
        }
        if let Some(witness) = at {
            self.parked.entry(witness).or_default().insert(ticket);
        }
    }

    /// Notes that the requests parked there are to be looked at again.
    pub(super) fn wake_parked(&mut self, at: &Witness, again: &mut Again) {
        for ticket in self.parked.remove(at).unwrap_or_default() {
            let Some(waiter) = self.waiters.get_mut(&ticket) else { continue };
            waiter.parked = None;
            match &waiter.target {
                Target::Key(key) => again.keys.insert(key.clone()),
                Target::Range(_) => again.ranges.insert(ticket),
            };
        }
    }

    /// Grants the requests in `again` that can be granted, and those that can be granted because of that.
    pub(super) fn settle(&mut self, mut again: Again) -> Vec<Ticket> {
        let mut granted = Vec::new();
        loop {
            if let Some(key) = again.keys.pop_first() {
                self.look_at_key(&key, &mut again, &mut granted);
            } else if let Some(ticket) = again.ranges.pop_first() {
                self.look_at_range(ticket, &mut again, &mut granted);
            } else {
                return granted;
            }
        }
    }

    /// The head of a key's queue: as many shared requests as there are, or one exclusive one.
    fn look_at_key(&mut self, key: &Key, again: &mut Again, granted: &mut Vec<Ticket>) {
        if !self.asked.is_empty() {
            // Range requests that wait for this key.
            self.wake_parked(&Witness::Key(key.clone()), again);
        }
        let mut at = 0;
        while let Some(place) = self.points.get(key).and_then(|point| point.queue.get(at)) {
            let Some(waiter) = self.waiter(*place) else { return };
            let (ticket, mode) = (waiter.place.ticket, waiter.mode);
            if at > 0 && mode == LockMode::Exclusive {
                // The shared requests that still wait are before it.
                return;
            }
            let parks = match self.in_the_way_at(key, waiter) {
                InTheWay::Nothing => {
                    let mut rest = Again::default();
                    if let Some(waiter) = self.leave(ticket, &mut rest) {
                        self.grant(waiter);
                        granted.push(ticket);
                    }
                    continue;
                }
                InTheWay::Here => None,
                InTheWay::Parks(witness) => Some(witness),
            };
            self.park(ticket, parks);
            if mode == LockMode::Exclusive {
                return;
            }
            // The lock that holds this request up may belong to the transaction of the next one.
            at += 1;
        }
    }

    fn look_at_range(&mut self, ticket: Ticket, again: &mut Again, granted: &mut Vec<Ticket>) {
        let Some(waiter) = self.waiters.get(&ticket) else { return };
        let Target::Range(range) = &waiter.target else { return };
        let witness = self.in_the_way_of_range(range, waiter);
        if let Some(witness) = witness {
            if let Witness::Key(key) = &witness
                && let Some(waiter) = self.waiters.get_mut(&ticket)
            {
                waiter.cursor = key.clone();
            }
            self.park(ticket, Some(witness));
        } else if let Some(waiter) = self.leave(ticket, again) {
            self.grant(waiter);
            granted.push(ticket);
        }
    }
}
