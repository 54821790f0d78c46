//! The lock table of one tablet: shared and exclusive locks on keys and on ranges.
//!
//! The table lives in the memory of the tablet's leader and is lost with the leadership, on purpose: a
//! transaction that held locks then finds another epoch and aborts. Strict two-phase locking (Eswaran et
//! al., 1976): the locks of a transaction only grow until [`LockTable::release`] gives them all back at
//! once.
//!
//! ```text
//!          holders of "b"        asks                     answer
//!          T1 shared             T2 shared on "b"         granted
//!          T1, T2 shared         T3 exclusive on "b"      waits for T1 and T2
//!          T1, T2 shared         T4 shared on "b"         waits for T3, which is before it
//!          T1, T2 shared         T1 exclusive on ["a","c")  waits for T2; holders go before waiters
//! ```
//!
//! # Which request goes first
//!
//! Range locks also cover keys that do not exist, and so keep phantoms out. All requests that wait stand
//! in one order, by their [`Place`]: holders that want more come first, then the transaction that has
//! waited longest. A request waits for the conflicting locks of other transactions. Unless it is a
//! holder's, it also waits for the conflicting requests of other transactions before it. So no request
//! starves, and a transaction that asks again after a lost answer comes back to its place.
//!
//! # What granting costs
//!
//! The requests for one key are a queue. After a change at the key only the head of the queue is looked
//! at: the shared requests there, or the one exclusive request. 1,000 transactions that wait for one row
//! are granted with some 1,000 looks in all, and not with 1,000 looks each.
//!
//! A request that waits for something other than a holder of its key is parked at one **witness**: a range
//! that is held, a range request before it, or (for a range request) a key within the range. When the
//! witness goes, the request is looked at again; it finds its next witness or is granted. A range request
//! goes over the keys within it once, from the first to the last. It remembers how far it came, and goes
//! back only if a key that it has passed is granted or asked for meanwhile.
//!
//! # Which transactions a wait is for
//!
//! [`LockTable::waits_for`] names the conflicting holders. Of the requests before a request it names only
//! those back to the nearest exclusive one. Example: five exclusive requests T1 to T5 wait behind a holder
//! H of one key. The edges are T5→T4, T4→T3, T3→T2, T2→T1 and each →H: nine, where all pairs would be
//! fifteen.
//!
//! No circle is missed: each pair that is left out has a path instead (T5 waits for T2 by T4 and T3), so a
//! circle over the pair is also a circle over the path. No false circle arises, because each edge is true.
//! Requests of holders wait for holders only, so a path may end at them: they are named wherever they
//! stand in the queue.
//!
//! # Many keys at once
//!
//! A call for `n_keys_min` keys or more takes them as one [`KeySet`]. It takes a fifth of the memory of
//! single keys and is as exact: other transactions may lock the keys in between. Beyond `bytes_max`
//! in one table the neighbouring keys of a call become ranges, each within one relation and without a lock
//! or request of another transaction inside. Then the memory of a load no longer grows with its keys, and
//! a transaction that wants a key in between waits for the end of the load.
//!
//! Pure: no clock, no I/O, no tasks. The caller passes times, and wakes the requests that the answers name.

mod bulk;
mod edges;
mod grant;
mod intervals;

use crate::key_set::{KeySet, SetLimits};
use crate::words::{LockMode, Wait};
use base::env::Instant;
use base::{Key, KeyRange, TxnId};
use intervals::{Interval, Intervals};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::Bound;

pub use edges::Waits;

/// A request that waits.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Ticket(u64);

/// What is locked.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Target {
    Key(Key),
    Range(KeyRange),
}

#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Granted,
    Waits(Ticket),
    /// NOWAIT or SKIP LOCKED met a lock.
    Refused,
}

/// Where a request stands in the order of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// False for a holder that wants more; such a request comes first.
    fresh: bool,
    since: Instant,
    ticket: Ticket,
}

#[derive(Debug)]
struct Waiter {
    txn: TxnId,
    target: Target,
    mode: LockMode,
    place: Place,
    parked: Option<Witness>,
    /// A range request has passed the keys before this one.
    cursor: Key,
}

/// The thing at which a waiting request is parked; when it goes, the request is looked at again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Witness {
    Key(Key),
    Hold(u64),
    Request(Ticket),
}

#[derive(Debug, Default)]
struct Point {
    holders: Vec<(TxnId, LockMode)>,
    /// In the order of their places.
    queue: VecDeque<Place>,
}

/// A lock on more than one key.
#[derive(Debug)]
struct Hold {
    txn: TxnId,
    mode: LockMode,
    range: KeyRange,
    /// Only these keys of the range; none: the whole range.
    only: Option<KeySet>,
}

/// The locks and waits of one transaction.
#[derive(Debug, Default)]
struct Owned {
    keys: Vec<Key>,
    holds: Vec<u64>,
    waits: Vec<Ticket>,
}

#[derive(Debug, Default)]
pub struct LockTable {
    points: BTreeMap<Key, Point>,
    holds: HashMap<u64, Hold>,
    held: Intervals,
    waiters: HashMap<Ticket, Waiter>,
    /// The range requests that wait.
    asked: Intervals,
    parked: HashMap<Witness, BTreeSet<Ticket>>,
    owned: HashMap<TxnId, Owned>,
    last_number: u64,
    /// In key sets.
    n_bulk_bytes: usize,
    limits: SetLimits,
    steps: Steps,
}

/// Counts what is looked at, so that tests can tell what a call costs without a clock.
#[derive(Debug, Default)]
struct Steps {
    #[cfg(test)]
    n: std::cell::Cell<u64>,
}

impl Steps {
    #[cfg(test)]
    fn one(&self) {
        self.n.set(self.n.get() + 1);
    }

    #[cfg(not(test))]
    fn one(&self) {}
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

impl Hold {
    fn covers(&self, target: &Target) -> bool {
        match (target, &self.only) {
            (Target::Key(key), Some(only)) => only.contains(key),
            (Target::Key(key), None) => self.range.contains(key),
            (Target::Range(range), None) => self.range.covers(range),
            (Target::Range(_), Some(_)) => false,
        }
    }

    /// Whether this lock covers any of `target`.
    fn touches(&self, target: &Target) -> bool {
        match (target, &self.only) {
            (Target::Key(key), Some(only)) => only.contains(key),
            (Target::Range(range), Some(only)) => only.any_in(range),
            (Target::Key(key), None) => self.range.contains(key),
            (Target::Range(range), None) => self.range.overlaps(range),
        }
    }
}

impl LockTable {
    pub fn new(limits: SetLimits) -> LockTable {
        LockTable { limits, ..LockTable::default() }
    }

    /// Asks for one lock. `since` is when the transaction began to wait for it (it may have asked before).
    /// A lock that is already held as strongly is granted and changes nothing.
    pub fn request(
        &mut self,
        since: Instant,
        txn: TxnId,
        target: Target,
        mode: LockMode,
        wait: Wait,
    ) -> Answer {
        let is_empty = matches!(&target, Target::Range(range) if range.is_empty());
        if is_empty || self.holds(txn, &target, mode) {
            return Answer::Granted;
        }
        let ticket = Ticket(self.next_number());
        let place = Place { fresh: !self.has_part_of(txn, &target), since, ticket };
        let cursor = match &target {
            Target::Key(_) => Key::new(),
            Target::Range(range) => range.start.clone(),
        };
        let waiter = Waiter { txn, target, mode, place, parked: None, cursor };
        if self.is_free(&waiter) {
            self.grant(waiter);
            return Answer::Granted;
        }
        if wait != Wait::Block {
            return Answer::Refused;
        }
        self.enqueue(waiter);
        Answer::Waits(ticket)
    }

    /// Gives up waiting. Returns the requests that can go on because of it.
    pub fn cancel(&mut self, ticket: Ticket) -> Vec<Ticket> {
        let mut again = grant::Again::default();
        self.leave(ticket, &mut again);
        self.settle(again)
    }

    /// Gives back all locks of `txn` and ends its waits. Returns the requests that can go on because of it.
    pub fn release(&mut self, txn: TxnId) -> Vec<Ticket> {
        let Some(owned) = self.owned.get_mut(&txn) else { return Vec::new() };
        let mut again = grant::Again::default();
        for ticket in std::mem::take(&mut owned.waits) {
            self.leave(ticket, &mut again);
        }
        let Some(owned) = self.owned.remove(&txn) else { return self.settle(again) };
        for key in owned.keys {
            let Some(point) = self.points.get_mut(&key) else { continue };
            point.holders.retain(|(holder, _)| *holder != txn);
            let has_queue = !point.queue.is_empty();
            if point.holders.is_empty() && !has_queue {
                self.points.remove(&key);
            }
            if has_queue || self.parked.contains_key(&Witness::Key(key.clone())) {
                again.keys.insert(key);
            }
        }
        for id in owned.holds {
            let Some(hold) = self.holds.remove(&id) else { continue };
            self.held.remove(&hold.range.start, id);
            self.n_bulk_bytes -= hold.only.as_ref().map_or(0, KeySet::n_bytes);
            self.wake_parked(&Witness::Hold(id), &mut again);
        }
        self.settle(again)
    }

    /// Every transaction that holds or waits for a lock.
    pub fn transactions(&self) -> HashSet<TxnId> {
        self.owned.keys().copied().collect()
    }

    pub fn holds_any(&self, txn: TxnId) -> bool {
        let any = |owned: &Owned| !owned.keys.is_empty() || !owned.holds.is_empty();
        self.owned.get(&txn).is_some_and(any)
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
        point || self.holds_of(txn).any(|(_, hold)| hold.mode >= mode && hold.covers(target))
    }

    /// Whether `txn` holds any of `target`: a holder that wants more goes before other requests.
    fn has_part_of(&self, txn: TxnId, target: &Target) -> bool {
        let own = |point: &Point| point.holders.iter().any(|(holder, _)| *holder == txn);
        let point = match target {
            Target::Key(key) => self.points.get(key).is_some_and(own),
            // The fewer of the two are gone through: the transaction's keys, or the points of the range.
            Target::Range(range) => match self.owned.get(&txn) {
                None => false,
                Some(owned) if owned.keys.len() < 64 => {
                    owned.keys.iter().any(|key| range.contains(key))
                }
                Some(_) => self.points_from(range, &range.start).any(|(_, point)| own(point)),
            },
        };
        point || self.holds_of(txn).any(|(_, hold)| hold.touches(target))
    }

    fn holds_of(&self, txn: TxnId) -> impl Iterator<Item = (u64, &Hold)> {
        let ids = self.owned.get(&txn).map_or(&[][..], |owned| &owned.holds);
        ids.iter().filter_map(|id| Some((*id, self.holds.get(id)?)))
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
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
        let holds = self.holds.values();
        let holds = holds.map(|hold| held(Target::Range(hold.range.clone()), hold.txn, hold.mode));
        let waits = self.waiters.values().map(|waiter| LockRow {
            target: waiter.target.clone(),
            mode: waiter.mode,
            txn: waiter.txn,
            granted: false,
            waited_ms: now.saturating_duration_since(waiter.place.since).as_millis() as u64,
            blocked_by: self.blockers(waiter).into_keys().collect(),
        });
        points.chain(holds).chain(waits).collect()
    }

    /// The points of `range` from `from` on, which lies within it.
    fn points_from(&self, range: &KeyRange, from: &Key) -> impl Iterator<Item = (&Key, &Point)> {
        let end = match &range.end {
            Some(end) => Bound::Excluded(end.clone().max(from.clone())),
            None => Bound::Unbounded,
        };
        self.points.range::<Key, _>((Bound::Included(from.clone()), end))
    }

    /// `place`: the place of the request that is granted.
    fn add_hold(&mut self, hold: Hold, place: Place) {
        let id = self.next_number();
        let (range, mode) = (hold.range.clone(), hold.mode);
        self.held.insert(Interval { range, id, mode, place });
        self.owned.entry(hold.txn).or_default().holds.push(id);
        self.holds.insert(id, hold);
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
