//! From edges to circles to victims.
//!
//! Transactions that can reach each other along the edges are a strongly connected component
//! (Tarjan, 1972). If a component has more than one transaction, each of them is on a circle. The
//! youngest is the victim; then the component is looked at again without it. All coordinators that see
//! the same edges choose the same victims, wherever their searches began.
//!
//! Most transactions that wait for a hot row are on no circle that their end would break:
//!
//! ```text
//! A has row a and wants b, B has b and wants a; W1 wants b and is before A in the queue
//! A→B (B holds b), A→W1 (W1 is before A), W1→B (B holds b), B→A (A holds a)
//! ```
//!
//! A, W1 and B are a component, and W1 may be the youngest; but without W1, A and B would still wait for
//! each other. So circles of holders come first: {A, B} has one victim, and without it there is no other
//! circle. The circles that are left after that contain a place in a queue. Their victim is the youngest
//! transaction that holds something that another one in the component waits for.
//!
//! Pure: no clock, no messages. The caller tells when each transaction started.

use crate::locks::Ticket;
use base::{TabletId, TxnId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Victims of one search. The next search finds the circles that are left.
const N_VICTIMS_MAX: usize = 32;

/// One transaction's wait for `blocker`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) tablet: TabletId,
    pub(super) ticket: Ticket,
    pub(super) blocker: TxnId,
    /// The blocker holds something that is asked for; otherwise it only asked before.
    pub(super) holds: bool,
}

/// A circle: each waits for the next, the last for the first.
#[derive(Debug)]
pub(super) struct Circle {
    pub(super) victim: TxnId,
    pub(super) waits: Vec<(TxnId, Edge)>,
}

#[derive(Debug, Default)]
pub(super) struct Graph {
    edges: BTreeMap<TxnId, Vec<Edge>>,
}

impl Graph {
    pub(super) fn add(&mut self, txn: TxnId, edge: Edge) {
        self.edges.entry(txn).or_default().push(edge);
    }

    pub(super) fn retain(&mut self, keep: impl Fn(TxnId) -> bool) {
        self.edges.retain(|txn, _| keep(*txn));
        self.edges.values_mut().for_each(|edges| edges.retain(|edge| keep(edge.blocker)));
    }

    /// The circles that are to be broken, each with its victim. `started`: in microseconds, by a clock of
    /// the search.
    pub(super) fn circles(mut self, started: impl Fn(TxnId) -> i64) -> Vec<Circle> {
        let youngest = |txn: &TxnId| (started(*txn), *txn);
        let mut circles = Vec::new();
        for by_holders_only in [true, false] {
            let counts = |edge: &Edge| edge.holds || !by_holders_only;
            loop {
                let mut found = Vec::new();
                for component in self.components(counts) {
                    let held = self.held_in(&component);
                    let Some(victim) = held.into_iter().max_by_key(youngest) else { continue };
                    if let Some(waits) = self.shortest(victim, &component, counts) {
                        found.push(Circle { victim, waits });
                    }
                }
                if found.is_empty() {
                    break;
                }
                for circle in found {
                    if circles.len() >= N_VICTIMS_MAX {
                        return circles;
                    }
                    self.retain(|txn| txn != circle.victim);
                    circles.push(circle);
                }
            }
        }
        circles
    }

    /// The transactions of a component that hold something that another one in it waits for.
    fn held_in(&self, component: &BTreeSet<TxnId>) -> BTreeSet<TxnId> {
        let edges = component.iter().filter_map(|txn| self.edges.get(txn)).flatten();
        let held = edges.filter(|edge| edge.holds && component.contains(&edge.blocker));
        held.map(|edge| edge.blocker).collect()
    }

    /// The shortest circle through `start` within the component.
    fn shortest(
        &self,
        start: TxnId,
        component: &BTreeSet<TxnId>,
        counts: impl Fn(&Edge) -> bool,
    ) -> Option<Vec<(TxnId, Edge)>> {
        let mut came_by: BTreeMap<TxnId, (TxnId, Edge)> = BTreeMap::new();
        let mut next = VecDeque::from([start]);
        while let Some(txn) = next.pop_front() {
            let edges = self.edges.get(&txn).into_iter().flatten();
            for edge in edges.filter(|edge| counts(edge) && component.contains(&edge.blocker)) {
                if came_by.contains_key(&edge.blocker) {
                    continue;
                }
                came_by.insert(edge.blocker, (txn, *edge));
                next.push_back(edge.blocker);
                if edge.blocker == start {
                    let mut waits = Vec::new();
                    let mut at = start;
                    loop {
                        let (from, edge) = came_by.get(&at)?;
                        waits.push((*from, *edge));
                        at = *from;
                        if at == start {
                            waits.reverse();
                            return Some(waits);
                        }
                    }
                }
            }
        }
        None
    }

    /// The strongly connected components of more than one transaction. Without recursion: a
    /// queue of thousands is a path as long.
    fn components(&self, counts: impl Fn(&Edge) -> bool) -> Vec<BTreeSet<TxnId>> {
        #[derive(Clone, Copy)]
        struct Seen {
            number: usize,
            lowest: usize,
            on_stack: bool,
        }
        let mut seen: BTreeMap<TxnId, Seen> = BTreeMap::new();
        let (mut stack, mut found) = (Vec::new(), Vec::new());
        for &root in self.edges.keys() {
            if seen.contains_key(&root) {
                continue;
            }
            // Each with the edge that is next.
            let mut path = vec![(root, 0)];
            while let Some((txn, at)) = path.last_mut() {
                let txn = *txn;
                if *at == 0 {
                    let number = seen.len();
                    seen.insert(txn, Seen { number, lowest: number, on_stack: true });
                    stack.push(txn);
                }
                let edge = self.edges.get(&txn).and_then(|edges| edges.get(*at));
                *at += 1;
                if let Some(edge) = edge {
                    if !counts(edge) {
                        continue;
                    }
                    match seen.get(&edge.blocker).copied() {
                        None => path.push((edge.blocker, 0)),
                        Some(other) if other.on_stack => {
                            if let Some(own) = seen.get_mut(&txn) {
                                own.lowest = own.lowest.min(other.number);
                            }
                        }
                        Some(_) => {}
                    }
                    continue;
                }
                path.pop();
                let Some(own) = seen.get(&txn).copied() else { continue };
                if let Some((before, _)) = path.last()
                    && let Some(before) = seen.get_mut(before)
                {
                    before.lowest = before.lowest.min(own.lowest);
                }
                if own.lowest == own.number {
                    let mut component = BTreeSet::new();
                    while let Some(member) = stack.pop() {
                        if let Some(seen) = seen.get_mut(&member) {
                            seen.on_stack = false;
                        }
                        component.insert(member);
                        if member == txn {
                            break;
                        }
                    }
                    if component.len() > 1 {
                        found.push(component);
                    }
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `1=2`: 1 waits for what 2 holds; `1-2`: 2 is before it in a queue. The older the smaller.
    fn victims(edges: &str) -> Vec<(u64, Vec<u64>)> {
        let mut graph = Graph::default();
        for (n, edge) in edges.split_whitespace().enumerate() {
            let holds = edge.contains('=');
            let (txn, blocker) = edge.split_once(['=', '-']).unwrap();
            let ticket: Ticket = postcard::from_bytes(&[n as u8]).unwrap();
            let blocker = TxnId(blocker.parse().unwrap());
            let edge = Edge { tablet: TabletId(2), ticket, blocker, holds };
            graph.add(TxnId(txn.parse().unwrap()), edge);
        }
        let circles = graph.circles(|txn| txn.0 as i64 / 10);
        let ids = |circle: &Circle| circle.waits.iter().map(|(txn, _)| txn.0).collect();
        circles.iter().map(|circle| (circle.victim.0, ids(circle))).collect()
    }

    #[test]
    fn the_youngest_of_a_circle_is_its_victim() {
        assert_eq!(victims("10=20 20=10"), [(20, vec![20, 10])]);
        assert_eq!(victims("10=30 30=20 20=10"), [(30, vec![30, 20, 10])]);
        assert_eq!(victims("10=20 20=30"), []);
        // As old as each other: the larger id.
        assert_eq!(victims("11=12 12=11"), [(12, vec![12, 11])]);
    }

    #[test]
    fn one_victim_for_each_circle_that_is_left() {
        assert_eq!(victims("10=20 20=10 30=40 40=30").len(), 2);
        assert_eq!(victims("10=30 30=10 20=30 30=20"), [(30, vec![30, 10])]);
        // Without 40 there is still 10, 20.
        assert_eq!(
            victims("10=20 20=10 20=40 40=10"),
            [(40, vec![40, 10, 20]), (20, vec![20, 10])]
        );
    }

    #[test]
    fn who_only_waits_is_no_victim() {
        // 10 holds a, 20 holds b; 30 to 50 wait for b and are before 10, 60 waits behind it.
        let queue = "10-50 50-40 40-30 30=20 40=20 50=20 60-10 60=20";
        assert_eq!(victims(&format!("10=20 20=10 {queue}")), [(20, vec![20, 10])]);
        // 25 waits for what 30 holds, and is before 10 in a queue: without 20 they all go on.
        assert_eq!(victims("10=20 20=10 10-25 25=30 30=20"), [(20, vec![20, 10])]);
        // 10 and 20 share b, and 10 wants it exclusively behind others that want it.
        assert_eq!(victims("10-50 50-40 40=20 50=20 20=10"), [(20, vec![20, 10, 50])]);
        // A circle of places alone is none yet: a third one holds both.
        assert_eq!(victims("20-30 30-20 20=10 30=10"), []);
    }

    #[test]
    fn a_queue_of_thousands_is_no_deeper_than_its_path() {
        let mut graph = Graph::default();
        let ticket: Ticket = postcard::from_bytes(&[0]).unwrap();
        let n = 50_000;
        for txn in 0..n {
            let blocker = TxnId((txn + 1) % n);
            graph.add(TxnId(txn), Edge { tablet: TabletId(2), ticket, blocker, holds: true });
        }
        assert_eq!(graph.circles(|_| 0)[0].waits.len(), n as usize);
    }
}
