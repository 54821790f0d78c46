//! Deadlock: a wait that grows old is followed along the waits-for edges, across tablets.
//!
//! Under strict two-phase locking an edge of a true cycle stays until somebody aborts, so edges
//! may be gathered one after the other without a global pause (Chandy, Misra and Haas, 1983,
//! call this the resource model). The youngest transaction of a cycle is its victim; all who
//! find the same cycle choose the same. A prepared transaction waits for nothing, so it is never
//! in one.

use super::Node;
use crate::message::{CoordinatorRequest, CoordinatorResponse, Edge, Request, Response};
use base::TxnId;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Transactions looked at before a search is given up until the next suspicion.
const N_TRANSACTIONS_MAX: usize = 128;

impl Node {
    /// `txn` has waited suspiciously long.
    pub(crate) fn suspect_deadlock(self: &Arc<Self>, txn: TxnId) {
        if !self.suspects.lock().insert(txn) {
            return;
        }
        let node = self.clone();
        self.env.spawn("deadlock search", async move {
            node.search(txn).await;
            node.suspects.lock().remove(&txn);
        });
    }

    async fn search(self: &Arc<Self>, start: TxnId) {
        let mut started: HashMap<TxnId, i64> = HashMap::new();
        let mut edges: HashMap<TxnId, Vec<Edge>> = HashMap::new();
        let mut next = vec![start];
        while let Some(txn) = next.pop() {
            if edges.contains_key(&txn) || edges.len() >= N_TRANSACTIONS_MAX {
                continue;
            }
            let question = CoordinatorRequest::Waiting(txn);
            let Some(CoordinatorResponse::Waiting { tablets, started_us }) =
                self.inspect(txn.node(), &question).await
            else {
                continue;
            };
            started.insert(txn, started_us);
            let mut found = Vec::new();
            for tablet in tablets {
                if let Ok(Response::WaitsFor(more)) =
                    self.ask(tablet, Request::WaitsFor { txn }).await
                {
                    found.extend(more);
                }
            }
            next.extend(found.iter().map(|edge| edge.blocker));
            edges.insert(txn, found);
        }
        let Some(cycle) = cycle(start, &edges) else { return };
        let Some(victim) = victim(&cycle, &started) else { return };
        let doom = CoordinatorRequest::Doom { txn: victim, detail: detail(&cycle) };
        // A victim that does not hear it is found again at the next suspicion.
        drop(self.inspect(victim.node(), &doom).await);
    }
}

/// A circle of waits that leads from `start` back to it.
fn cycle(start: TxnId, edges: &HashMap<TxnId, Vec<Edge>>) -> Option<Vec<Edge>> {
    let mut path: Vec<Edge> = Vec::new();
    let mut dead_ends = HashSet::new();
    fn walk(
        from: TxnId,
        start: TxnId,
        edges: &HashMap<TxnId, Vec<Edge>>,
        dead_ends: &mut HashSet<TxnId>,
        path: &mut Vec<Edge>,
    ) -> bool {
        for edge in edges.get(&from).into_iter().flatten() {
            if edge.blocker != start
                && (dead_ends.contains(&edge.blocker) || path.iter().any(|p| p.txn == edge.blocker))
            {
                continue;
            }
            path.push(edge.clone());
            if edge.blocker == start || walk(edge.blocker, start, edges, dead_ends, path) {
                return true;
            }
            path.pop();
        }
        dead_ends.insert(from);
        false
    }
    walk(start, start, edges, &mut dead_ends, &mut path).then_some(path)
}

/// The youngest: it has the least to lose.
fn victim(cycle: &[Edge], started: &HashMap<TxnId, i64>) -> Option<TxnId> {
    let age = |txn: &TxnId| (started.get(txn).copied().unwrap_or(0), *txn);
    cycle.iter().map(|edge| edge.txn).max_by_key(age)
}

fn detail(cycle: &[Edge]) -> String {
    let line = |edge: &Edge| {
        let what = match &edge.target {
            crate::locks::Target::Key(key) => format!("key {}", base::key::Hex(key)),
            crate::locks::Target::Range(range) => format!("range {range}"),
        };
        let Edge { txn, tablet, mode, blocker, .. } = edge;
        format!(
            "Transaction {txn} waits for {mode:?} lock on {what} of tablet {tablet}; \
             blocked by transaction {blocker}."
        )
    };
    cycle.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LockMode;
    use crate::locks::Target;
    use base::TabletId;

    fn edges(pairs: &[(u64, u64)]) -> HashMap<TxnId, Vec<Edge>> {
        let mut edges: HashMap<TxnId, Vec<Edge>> = HashMap::new();
        for &(txn, blocker) in pairs {
            edges.entry(TxnId(txn)).or_default().push(Edge {
                txn: TxnId(txn),
                tablet: TabletId(2),
                target: Target::Key(base::Key::from_static(b"k")),
                mode: LockMode::Exclusive,
                blocker: TxnId(blocker),
            });
        }
        edges
    }

    fn found(start: u64, pairs: &[(u64, u64)]) -> Option<Vec<u64>> {
        let cycle = cycle(TxnId(start), &edges(pairs))?;
        Some(cycle.iter().map(|edge| edge.txn.0).collect())
    }

    #[test]
    fn only_a_circle_through_the_suspect_counts() {
        assert_eq!(found(1, &[(1, 2), (2, 1)]), Some(vec![1, 2]));
        assert_eq!(found(1, &[(1, 2), (2, 3), (3, 1)]), Some(vec![1, 2, 3]));
        assert_eq!(found(1, &[(1, 2), (1, 4), (2, 3), (4, 1)]), Some(vec![1, 4]));
        assert_eq!(found(1, &[(1, 2), (2, 3), (3, 2)]), None, "others' circles are theirs to find");
        assert_eq!(found(1, &[(1, 2), (2, 3)]), None);
    }

    #[test]
    fn the_youngest_is_the_victim_whoever_finds_the_circle() {
        let started = HashMap::from([(TxnId(1), 100), (TxnId(2), 300), (TxnId(3), 200)]);
        let edges = edges(&[(1, 2), (2, 3), (3, 1)]);
        for start in 1..=3 {
            let cycle = cycle(TxnId(start), &edges).unwrap();
            assert_eq!(victim(&cycle, &started), Some(TxnId(2)));
            assert!(detail(&cycle).contains("Transaction 2 waits for Exclusive lock"));
        }
    }
}
