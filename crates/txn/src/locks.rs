//! The lock table of one tablet: shared and exclusive locks on keys and on ranges.
//!
//! It lives in the memory of the tablet's leader and is lost with the leadership, on purpose:
//! who held locks then finds the table's epoch changed and aborts. Strict two-phase locking
//! (Eswaran et al., 1976): a transaction's locks only grow until [`LockTable::release`] gives
//! them all back at once.
//!
//! ```text
//!          holders of "b"        asks                     answer
//!          T1 shared             T2 shared on "b"         granted
//!          T1, T2 shared         T3 exclusive on "b"      waits for T1 and T2
//!          T1, T2 shared         T4 shared on "b"         waits: T3 is before it
//!          T1, T2 shared         T1 exclusive on ["a","c")  waits for T2; holders go before waiters
//! ```
//!
//! Range locks cover keys that do not exist, which is what keeps phantoms out. A request waits
//! behind the conflicting requests that came before it, so nobody starves; a transaction that
//! already holds a lock on the same key goes before those who hold none there.
//!
//! Pure: no clock, no I/O, no tasks. The caller passes `now` and wakes whom the answers name.

use crate::client::{LockMode, Wait};
use base::env::Instant;
use base::{Key, KeyRange, TxnId};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Bound;

/// A request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// What is locked.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Target {
    Key(Key),
    Range(KeyRange),
}

impl Target {
    fn overlaps(&self, other: &Target) -> bool {
        match (self, other) {
            (Target::Key(a), Target::Key(b)) => a == b,
            (Target::Key(key), Target::Range(range)) | (Target::Range(range), Target::Key(key)) => {
                range.contains(key)
            }
            (Target::Range(a), Target::Range(b)) => a.overlaps(b),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Granted,
    Waits(Ticket),
    /// NOWAIT or SKIP LOCKED met a lock.
    Refused,
}

#[derive(Debug)]
struct Waiter {
    txn: TxnId,
    target: Target,
    mode: LockMode,
    since: Instant,
}

#[derive(Debug, Default)]
struct Point {
    holders: Vec<(TxnId, LockMode)>,
    queue: VecDeque<Ticket>,
}

#[derive(Debug)]
struct RangeHold {
    txn: TxnId,
    mode: LockMode,
    range: KeyRange,
}

#[derive(Debug, Default)]
pub struct LockTable {
    points: BTreeMap<Key, Point>,
    ranges: Vec<RangeHold>,
    range_queue: VecDeque<Ticket>,
    waiters: HashMap<Ticket, Waiter>,
    held: HashMap<TxnId, Vec<Key>>,
    next_ticket: u64,
}

/// One line of `atoll.locks`.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct LockRow {
    pub target: Target,
    pub mode: LockMode,
    pub txn: TxnId,
    pub granted: bool,
    /// Milliseconds waited; 0 for holders.
    pub waited_ms: u64,
    pub blocked_by: Vec<TxnId>,
}

fn conflict(a: LockMode, b: LockMode) -> bool {
    a == LockMode::Exclusive || b == LockMode::Exclusive
}

/// A call's keys become one range lock from this many on, where nobody else holds any between.
const ESCALATE_KEYS_MIN: usize = 256;

impl LockTable {
    /// Asks for one lock. `since` is when the transaction began to wait for it (it may have asked
    /// before); a granted lock that is already held as strongly changes nothing.
    pub fn request(
        &mut self,
        since: Instant,
        txn: TxnId,
        target: Target,
        mode: LockMode,
        wait: Wait,
    ) -> Answer {
        if self.holds(txn, &target, mode) {
            return Answer::Granted;
        }
        if self.blockers(txn, &target, mode, None).is_empty() {
            self.grant(txn, target, mode);
            return Answer::Granted;
        }
        if wait != Wait::Block {
            return Answer::Refused;
        }
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        match &target {
            Target::Key(key) => self.points.entry(key.clone()).or_default().queue.push_back(ticket),
            Target::Range(_) => self.range_queue.push_back(ticket),
        }
        self.waiters.insert(ticket, Waiter { txn, target, mode, since });
        Answer::Waits(ticket)
    }

    /// Takes one exclusive range lock over sorted `keys` instead of one lock each, if there are
    /// many and nobody else holds or wants a lock between the first and the last.
    pub fn escalate(&mut self, txn: TxnId, keys: &[Key]) -> bool {
        let (Some(first), Some(last)) = (keys.first(), keys.last()) else { return false };
        if keys.len() < ESCALATE_KEYS_MIN {
            return false;
        }
        let range = KeyRange::new(first.clone(), base::key::successor(last));
        let target = Target::Range(range);
        let free = self.blockers(txn, &target, LockMode::Exclusive, None).is_empty();
        if free {
            self.grant(txn, target, LockMode::Exclusive);
        }
        free
    }

    /// Gives up waiting. Returns who can go on because of it.
    pub fn cancel(&mut self, ticket: Ticket) -> Vec<Ticket> {
        match self.leave_queue(ticket) {
            Some(waiter) => self.wake(vec![waiter.target]),
            None => Vec::new(),
        }
    }

    /// Gives back all locks of `txn` and ends its waits. Returns who can go on because of it.
    pub fn release(&mut self, txn: TxnId) -> Vec<Ticket> {
        let mut freed = Vec::new();
        for key in self.held.remove(&txn).unwrap_or_default() {
            if let Some(point) = self.points.get_mut(&key) {
                point.holders.retain(|(holder, _)| *holder != txn);
                if point.holders.is_empty() && point.queue.is_empty() {
                    self.points.remove(&key);
                    if self.range_queue.is_empty() {
                        continue;
                    }
                }
            }
            freed.push(Target::Key(key));
        }
        self.ranges.retain(|hold| {
            let keep = hold.txn != txn;
            if !keep {
                freed.push(Target::Range(hold.range.clone()));
            }
            keep
        });
        if !self.waiters.is_empty() {
            let own = |(ticket, waiter): (&Ticket, &Waiter)| (waiter.txn == txn).then_some(*ticket);
            let waits: Vec<Ticket> = self.waiters.iter().filter_map(own).collect();
            let left = waits.into_iter().filter_map(|ticket| self.leave_queue(ticket));
            let targets: Vec<Target> = left.map(|waiter| waiter.target).collect();
            freed.extend(targets);
        }
        self.wake(freed)
    }

    /// Every transaction that holds or waits for a lock.
    pub fn transactions(&self) -> HashSet<TxnId> {
        let ranges = self.ranges.iter().map(|hold| hold.txn);
        let waits = self.waiters.values().map(|waiter| waiter.txn);
        self.held.keys().copied().chain(ranges).chain(waits).collect()
    }

    pub fn holds_any(&self, txn: TxnId) -> bool {
        self.held.contains_key(&txn) || self.ranges.iter().any(|hold| hold.txn == txn)
    }

    /// Does `txn` hold `target` in `mode` or a stronger one?
    pub fn holds(&self, txn: TxnId, target: &Target, mode: LockMode) -> bool {
        let strong = |(holder, held): &(TxnId, LockMode)| *holder == txn && *held >= mode;
        let point = match target {
            Target::Key(key) => {
                self.points.get(key).is_some_and(|point| point.holders.iter().any(strong))
            }
            Target::Range(_) => false,
        };
        let covers = |hold: &RangeHold| match target {
            Target::Key(key) => hold.range.contains(key),
            Target::Range(range) => hold.range.covers(range),
        };
        point || self.ranges.iter().any(|hold| hold.txn == txn && hold.mode >= mode && covers(hold))
    }

    /// Waits that began before `before`.
    pub fn old_waits(&self, before: Instant) -> Vec<TxnId> {
        let old = self.waiters.values().filter(|waiter| waiter.since <= before);
        old.map(|waiter| waiter.txn).collect()
    }

    /// Whom `txn` waits for here, with what it asks.
    pub fn waits_for(&self, txn: TxnId) -> Vec<(Target, LockMode, Vec<TxnId>)> {
        let own = self.waiters.iter().filter(|(_, waiter)| waiter.txn == txn);
        own.map(|(ticket, waiter)| {
            let blockers = self.blockers(txn, &waiter.target, waiter.mode, Some(*ticket));
            (waiter.target.clone(), waiter.mode, blockers)
        })
        .collect()
    }

    pub fn rows(&self, now: Instant) -> Vec<LockRow> {
        let held = |target, txn, mode| LockRow {
            target,
            mode,
            txn,
            granted: true,
            waited_ms: 0,
            blocked_by: Vec::new(),
        };
        let points = self.points.iter().flat_map(|(key, point)| {
            point.holders.iter().map(|(txn, mode)| held(Target::Key(key.clone()), *txn, *mode))
        });
        let ranges = self.ranges.iter();
        let ranges =
            ranges.map(|hold| held(Target::Range(hold.range.clone()), hold.txn, hold.mode));
        let waits = self.waiters.iter().map(|(ticket, waiter)| LockRow {
            target: waiter.target.clone(),
            mode: waiter.mode,
            txn: waiter.txn,
            granted: false,
            waited_ms: now.saturating_duration_since(waiter.since).as_millis() as u64,
            blocked_by: self.blockers(waiter.txn, &waiter.target, waiter.mode, Some(*ticket)),
        });
        points.chain(ranges).chain(waits).collect()
    }

    /// The other transactions that a request must wait for: conflicting holders, and conflicting
    /// requests that came before it (all that wait, for a request without a ticket yet).
    fn blockers(
        &self,
        txn: TxnId,
        target: &Target,
        mode: LockMode,
        ticket: Option<Ticket>,
    ) -> Vec<TxnId> {
        let mut found: Vec<TxnId> = Vec::new();
        let mut add = |other: TxnId| {
            if other != txn && !found.contains(&other) {
                found.push(other);
            }
        };
        let mut holds_here = false;
        let mut holders = |point: &Point| {
            for (holder, held) in &point.holders {
                holds_here |= *holder == txn;
                if conflict(*held, mode) {
                    add(*holder);
                }
            }
        };
        match target {
            Target::Key(key) => self.points.get(key).into_iter().for_each(&mut holders),
            Target::Range(range) => {
                self.points_in(range).for_each(|(_, point)| holders(point));
            }
        }
        for hold in &self.ranges {
            if conflict(hold.mode, mode) && target.overlaps(&Target::Range(hold.range.clone())) {
                add(hold.txn);
            }
        }
        if holds_here {
            return found;
        }
        let before = |other: &Ticket| ticket.is_none_or(|ticket| *other < ticket);
        let mut queued = |other: &Ticket| {
            if let Some(waiter) = self.waiters.get(other)
                && before(other)
                && conflict(waiter.mode, mode)
                && waiter.target.overlaps(target)
            {
                add(waiter.txn);
            }
        };
        self.range_queue.iter().for_each(&mut queued);
        match target {
            Target::Key(key) => {
                let point = self.points.get(key);
                point.into_iter().flat_map(|point| &point.queue).for_each(&mut queued);
            }
            Target::Range(range) => {
                let points = self.points_in(range);
                points.flat_map(|(_, point)| &point.queue).for_each(&mut queued);
            }
        }
        found
    }

    fn points_in(&self, range: &KeyRange) -> impl Iterator<Item = (&Key, &Point)> {
        let end = match &range.end {
            Some(end) => Bound::Excluded(end.clone().max(range.start.clone())),
            None => Bound::Unbounded,
        };
        self.points.range::<Key, _>((Bound::Included(range.start.clone()), end))
    }

    fn grant(&mut self, txn: TxnId, target: Target, mode: LockMode) {
        match target {
            Target::Key(key) => {
                let point = self.points.entry(key.clone()).or_default();
                match point.holders.iter_mut().find(|(holder, _)| *holder == txn) {
                    Some((_, held)) => *held = mode.max(*held),
                    None => {
                        point.holders.push((txn, mode));
                        self.held.entry(txn).or_default().push(key);
                    }
                }
            }
            Target::Range(range) => {
                // A bulk load takes neighbouring ranges one after the other: keep one.
                let joins = |hold: &&mut RangeHold| {
                    hold.txn == txn
                        && hold.mode == mode
                        && hold.range.end.as_ref().is_some_and(|end| *end == range.start)
                };
                match self.ranges.iter_mut().find(joins) {
                    Some(hold) => hold.range.end = range.end,
                    None => self.ranges.push(RangeHold { txn, mode, range }),
                }
            }
        }
    }

    fn leave_queue(&mut self, ticket: Ticket) -> Option<Waiter> {
        let waiter = self.waiters.remove(&ticket)?;
        match &waiter.target {
            Target::Key(key) => {
                if let Some(point) = self.points.get_mut(key) {
                    point.queue.retain(|other| *other != ticket);
                    if point.holders.is_empty() && point.queue.is_empty() {
                        self.points.remove(key);
                    }
                }
            }
            Target::Range(_) => self.range_queue.retain(|other| *other != ticket),
        }
        Some(waiter)
    }

    /// Grants what can be granted among the requests that overlap `freed`, oldest first.
    fn wake(&mut self, freed: Vec<Target>) -> Vec<Ticket> {
        if self.waiters.is_empty() {
            return Vec::new();
        }
        let mut candidates: Vec<Ticket> = Vec::new();
        for target in &freed {
            match target {
                Target::Key(key) => {
                    let point = self.points.get(key);
                    candidates.extend(point.into_iter().flat_map(|point| &point.queue));
                }
                Target::Range(range) => {
                    let points = self.points_in(range);
                    candidates.extend(points.flat_map(|(_, point)| &point.queue));
                }
            }
            // Who waits behind a range that overlaps may be freed with it.
            for ticket in &self.range_queue {
                if let Some(waiter) = self.waiters.get(ticket)
                    && waiter.target.overlaps(target)
                {
                    candidates.push(*ticket);
                    if let Target::Range(range) = &waiter.target {
                        let points = self.points_in(range);
                        candidates.extend(points.flat_map(|(_, point)| &point.queue));
                    }
                }
            }
        }
        candidates.sort_unstable();
        candidates.dedup();
        let mut granted = Vec::new();
        for ticket in candidates {
            let Some(waiter) = self.waiters.get(&ticket) else { continue };
            if !self.blockers(waiter.txn, &waiter.target, waiter.mode, Some(ticket)).is_empty() {
                continue;
            }
            if let Some(waiter) = self.leave_queue(ticket) {
                self.grant(waiter.txn, waiter.target, waiter.mode);
                granted.push(ticket);
            }
        }
        granted
    }
}

#[cfg(test)]
mod tests;
