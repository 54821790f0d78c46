//! Which of many intervals overlap a key or a range: the lock table's ranges.
//!
//! A treap: a binary tree in the order of the intervals' starts, and a heap by a number that is
//! made from each interval's id, so that it stays shallow in whatever order intervals come (Aragon
//! and Seidel, 1989). Each node knows the largest end below it, and the first place in the order
//! of requests below it for each mode; both let a search leave out whole subtrees.
//!
//! ```text
//! [a, c)  [b, z)  [m, n)      overlaps "k"? [b, z) alone: [m, n) starts behind it.
//! ```
//!
//! A search costs O(log n) and a step per interval that it finds. A range may be empty; it overlaps nothing.

use super::Place;
use crate::LockMode;
use base::{Key, KeyRange};
use std::cmp::Ordering;
use std::ops::ControlFlow;

/// An interval with what a search asks of it.
#[derive(Clone, Debug)]
pub(super) struct Interval {
    pub(super) range: KeyRange,
    pub(super) id: u64,
    pub(super) mode: LockMode,
    pub(super) place: Place,
}

/// What intervals are looked for.
#[derive(Clone, Copy)]
pub(super) enum Overlaps<'a> {
    Key(&'a [u8]),
    Range(&'a KeyRange),
}

/// Which of the overlapping intervals conflict.
#[derive(Clone, Copy)]
pub(super) struct Conflicts<'a> {
    pub(super) with: Overlaps<'a>,
    pub(super) mode: LockMode,
    /// Only those before this place; none: wherever they stand in the order of requests.
    pub(super) before: Option<Place>,
}

#[derive(Debug, Default)]
pub(super) struct Intervals {
    root: Link,
}

type Link = Option<Box<Node>>;

#[derive(Debug)]
struct Node {
    own: Interval,
    heap: u64,
    left: Link,
    right: Link,
    /// The largest end in this subtree; None is the end of the line.
    end: Option<Key>,
    /// The first place of a shared, and of an exclusive request in this subtree.
    shared: Option<Place>,
    exclusive: Option<Place>,
}

impl Overlaps<'_> {
    fn starts_in_time(&self, start: &[u8]) -> bool {
        match self {
            Overlaps::Key(key) => start <= *key,
            Overlaps::Range(range) => range.end.as_ref().is_none_or(|end| start < &end[..]),
        }
    }

    fn ends_in_time(&self, end: Option<&Key>) -> bool {
        let start = match self {
            Overlaps::Key(key) => *key,
            Overlaps::Range(range) => &range.start[..],
        };
        end.is_none_or(|end| &end[..] > start)
    }
}

impl Conflicts<'_> {
    fn may_be(&self, shared: Option<Place>, exclusive: Option<Place>) -> bool {
        let counts = |place: Option<Place>| {
            place.is_some_and(|place| self.before.is_none_or(|before| place < before))
        };
        counts(exclusive) || (self.mode == LockMode::Exclusive && counts(shared))
    }

    fn is(&self, interval: &Interval) -> bool {
        let (shared, exclusive) = places(interval);
        !interval.range.is_empty()
            && self.may_be(shared, exclusive)
            && self.with.starts_in_time(&interval.range.start)
            && self.with.ends_in_time(interval.range.end.as_ref())
    }
}

fn places(interval: &Interval) -> (Option<Place>, Option<Place>) {
    match interval.mode {
        LockMode::Shared => (Some(interval.place), None),
        LockMode::Exclusive => (None, Some(interval.place)),
    }
}

fn first(a: Option<Place>, b: Option<Place>) -> Option<Place> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

impl Node {
    fn update(&mut self) {
        (self.shared, self.exclusive) = places(&self.own);
        let mut end = self.own.range.end.clone();
        for child in [&self.left, &self.right].into_iter().flatten() {
            end = match (end, &child.end) {
                (Some(a), Some(b)) => Some(a.max(b.clone())),
                _ => None,
            };
            self.shared = first(self.shared, child.shared);
            self.exclusive = first(self.exclusive, child.exclusive);
        }
        self.end = end;
    }

    fn order(&self, start: &[u8], id: u64) -> Ordering {
        (start, id).cmp(&(&self.own.range.start[..], self.own.id))
    }
}

/// The finaliser of SplitMix64: ids that follow each other give numbers that do not.
fn scattered(id: u64) -> u64 {
    let id = (id ^ (id >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let id = (id ^ (id >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    id ^ (id >> 31)
}

impl Intervals {
    pub(super) fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    pub(super) fn insert(&mut self, own: Interval) {
        let (below, above) = split(self.root.take(), &own.range.start, own.id);
        let heap = scattered(own.id);
        let mut node = Box::new(Node {
            own,
            heap,
            left: None,
            right: None,
            end: None,
            shared: None,
            exclusive: None,
        });
        node.update();
        self.root = merge(merge(below, Some(node)), above);
    }

    pub(super) fn remove(&mut self, start: &[u8], id: u64) {
        self.root = remove(self.root.take(), start, id);
    }

    /// Visits the conflicting intervals in the order of their starts, until `visit` stops it. Says whether it
    /// was stopped.
    pub(super) fn visit<'a>(
        &'a self,
        wanted: Conflicts<'_>,
        found: &mut dyn FnMut(&'a Interval) -> ControlFlow<()>,
    ) -> bool {
        visit(&self.root, wanted, found).is_break()
    }

    /// The first conflicting interval that `counts`.
    pub(super) fn find<'a>(
        &'a self,
        wanted: Conflicts<'_>,
        counts: impl Fn(&Interval) -> bool,
    ) -> Option<&'a Interval> {
        let mut first = None;
        self.visit(wanted, &mut |own| match counts(own) {
            true => {
                first = Some(own);
                ControlFlow::Break(())
            }
            false => ControlFlow::Continue(()),
        });
        first
    }
}

/// The smaller ones than (`start`, `id`), and the rest.
fn split(link: Link, start: &[u8], id: u64) -> (Link, Link) {
    let Some(mut node) = link else { return (None, None) };
    match node.order(start, id) {
        Ordering::Greater => {
            let (below, above) = split(node.right.take(), start, id);
            node.right = below;
            node.update();
            (Some(node), above)
        }
        _ => {
            let (below, above) = split(node.left.take(), start, id);
            node.left = above;
            node.update();
            (below, Some(node))
        }
    }
}

fn merge(below: Link, above: Link) -> Link {
    match (below, above) {
        (None, link) | (link, None) => link,
        (Some(mut a), Some(mut b)) => Some(match a.heap >= b.heap {
            true => {
                a.right = merge(a.right.take(), Some(b));
                a.update();
                a
            }
            false => {
                b.left = merge(Some(a), b.left.take());
                b.update();
                b
            }
        }),
    }
}

fn remove(link: Link, start: &[u8], id: u64) -> Link {
    let mut node = link?;
    match node.order(start, id) {
        Ordering::Equal => return merge(node.left.take(), node.right.take()),
        Ordering::Less => node.left = remove(node.left.take(), start, id),
        Ordering::Greater => node.right = remove(node.right.take(), start, id),
    }
    node.update();
    Some(node)
}

fn visit<'a>(
    link: &'a Link,
    wanted: Conflicts<'_>,
    found: &mut dyn FnMut(&'a Interval) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let Some(node) = link else { return ControlFlow::Continue(()) };
    if !wanted.may_be(node.shared, node.exclusive) || !wanted.with.ends_in_time(node.end.as_ref()) {
        return ControlFlow::Continue(());
    }
    visit(&node.left, wanted, found)?;
    if wanted.is(&node.own) {
        found(&node.own)?;
    }
    // All starts to the right are as large or larger.
    match wanted.with.starts_in_time(&node.own.range.start) {
        true => visit(&node.right, wanted, found),
        false => ControlFlow::Continue(()),
    }
}

#[cfg(test)]
// The tests stand outside of what is simulated.
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::super::Ticket;
    use super::*;
    use base::env::Instant;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    #[test]
    fn a_search_finds_what_a_walk_over_all_finds() {
        let mut rng = SmallRng::seed_from_u64(7);
        let since = Instant::now();
        let (mut tree, mut all): (Intervals, Vec<Interval>) = Default::default();
        let key = |n: u8| Key::from(vec![n]);
        for id in 0..3000u64 {
            let from = rng.random_range(0..100);
            let end = rng.random_bool(0.9).then(|| key(from + rng.random_range(0..20)));
            let range = KeyRange { start: key(from), end };
            let mode = [LockMode::Shared, LockMode::Exclusive][rng.random_range(0..2)];
            let place = Place { fresh: true, since, ticket: Ticket(id) };
            let own = Interval { range, id, mode, place };
            tree.insert(own.clone());
            all.push(own);
            if rng.random_bool(0.45) {
                let gone = all.swap_remove(rng.random_range(0..all.len()));
                tree.remove(&gone.range.start, gone.id);
            }
            let (at, to) = (key(rng.random_range(0..120)), key(rng.random_range(0..120)));
            let range = KeyRange::new(at.clone(), to);
            let mode = [LockMode::Shared, LockMode::Exclusive][rng.random_range(0..2)];
            let ticket = Ticket(rng.random_range(0..=id));
            let before = rng.random_bool(0.5).then_some(Place { fresh: true, since, ticket });
            let conflict = |other: &&Interval| {
                super::super::conflict(other.mode, mode) && before.is_none_or(|at| other.place < at)
            };
            for with in [Overlaps::Key(&at), Overlaps::Range(&range)] {
                if matches!(with, Overlaps::Range(range) if range.is_empty()) {
                    continue;
                }
                let mut found = Vec::new();
                tree.visit(Conflicts { with, mode, before }, &mut |own| {
                    found.push(own.id);
                    ControlFlow::Continue(())
                });
                let overlaps = |other: &&Interval| match with {
                    Overlaps::Key(key) => other.range.contains(key),
                    Overlaps::Range(range) => other.range.overlaps(range),
                };
                let mut expected: Vec<u64> =
                    all.iter().filter(conflict).filter(overlaps).map(|own| own.id).collect();
                found.sort_unstable();
                expected.sort_unstable();
                assert_eq!(found, expected);
            }
        }
    }
}
