//! Deadlock: waits that grow old are followed along the waits-for edges, across tablets.
//!
//! Each coordinator searches on behalf of the transactions that it runs, with one search at a time for
//! all of them. A wait becomes a suspect when it is 60 ms old, again 120 ms later, and so on up to once
//! per second.
//!
//! ```text
//! suspects ─► their coordinators: where do they wait?              one question per node
//!          ─► those tablets: which transactions do they wait for,  one question per tablet
//!                            and which do those wait for in turn?
//!          ─► again with the transactions that are new, until there are none
//! circles  ─► one victim per circle ─► the tablets once more: does the circle still stand?
//!          ─► the arbiter: may it be this victim?
//!          ─► the victim's coordinator ends its wait
//! ```
//!
//! Under strict two-phase locking an edge of a true circle stays until a transaction aborts. So edges may
//! be gathered one after the other, without a global pause (Chandy, Misra and Haas, 1983, call this the
//! resource model). A search sees all edges of a circle twice, with the same tickets: so there was a
//! moment, between the two looks, at which all of them stood. A circle that was broken meanwhile gets no
//! second victim. A prepared transaction waits for nothing, so it is never in a circle.
//!
//! Invariants: a search looks at [`N_TRANSACTIONS_MAX`] transactions at most, nearest first, and the next
//! search begins with other suspects. A victim's wait is ended only if it is still the wait that was seen.
//!
//! Which transaction is the youngest? Each coordinator tells the starts of its transactions by its own
//! monotonic clock, so no wall clock is trusted. A search relates each coordinator's clock to its own once, by
//! the coordinator's first answer. So two transactions of one coordinator are always in their true order, and
//! two of different coordinators are wrong by the time that one question takes, at most.
//!
//! So two coordinators that find the same circle at the same moment may want a victim each, if the transactions of
//! the circle started within the time that one question takes. The arbiter decides: the transaction of the circle with
//! the lowest id. Its coordinator allows the first victim that it is asked about, and for a while no other.

mod circle;

use super::Node;
use crate::message::{
    CoordinatorRequest, CoordinatorResponse, Request, Response, TxnWait, WaitingRow,
};
use base::{NodeId, TabletId, TxnId};
use circle::{Circle, Edge, Graph};
use futures::future::join_all;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Transactions that one search asks about.
const N_TRANSACTIONS_MAX: usize = 4096;
/// Suspects that one search begins with. The next search takes the others.
const N_STARTS_MAX: usize = 256;
/// Between two searches of one node.
const PAUSE: Duration = Duration::from_millis(20);
/// The waits of a circle that its victim's error names.
const N_LINES_MAX: usize = 16;

/// The transactions to look at next: never more than run on this node.
#[derive(Default)]
pub(super) struct Suspects {
    queue: VecDeque<TxnId>,
    queued: HashSet<TxnId>,
    searching: bool,
}

impl Suspects {
    fn take(&mut self) -> Vec<TxnId> {
        let n = self.queue.len().min(N_STARTS_MAX);
        let starts: Vec<TxnId> = self.queue.drain(..n).collect();
        for txn in &starts {
            self.queued.remove(txn);
        }
        self.searching = !starts.is_empty();
        starts
    }
}

impl Node {
    /// `txn`, which runs here, has waited suspiciously long.
    pub(crate) fn suspect_deadlock(self: &Arc<Self>, txn: TxnId) {
        {
            let mut suspects = self.suspects.lock();
            if suspects.queued.insert(txn) {
                suspects.queue.push_back(txn);
            }
            if std::mem::replace(&mut suspects.searching, true) {
                return;
            }
        }
        let node = self.clone();
        self.env.spawn("deadlock search", async move {
            loop {
                let starts = node.suspects.lock().take();
                if starts.is_empty() {
                    return;
                }
                node.search(starts).await;
                node.env.sleep(PAUSE).await;
            }
        });
    }

    async fn search(self: &Arc<Self>, starts: Vec<TxnId>) {
        let mut graph = Graph::default();
        let began = self.env.now();
        // What the clock of each coordinator showed when the search began.
        let mut clocks: HashMap<NodeId, i64> = HashMap::new();
        let mut running: HashMap<TxnId, WaitingRow> = HashMap::new();
        let mut asked: HashSet<TxnId> = HashSet::new();
        let mut told: HashSet<(TabletId, TxnId)> = HashSet::new();
        let mut next = starts;
        loop {
            next.retain(|txn| asked.len() < N_TRANSACTIONS_MAX && asked.insert(*txn));
            if next.is_empty() {
                break;
            }
            let mut by_tablet: BTreeMap<TabletId, Vec<TxnId>> = BTreeMap::new();
            let asked_us = self.env.now().saturating_duration_since(began).as_micros() as i64;
            for (node, now_us, rows) in self.waiting(std::mem::take(&mut next)).await {
                clocks.entry(node).or_insert((now_us as i64).saturating_sub(asked_us));
                for row in rows {
                    for tablet in &row.tablets {
                        if !told.contains(&(*tablet, row.txn)) {
                            by_tablet.entry(*tablet).or_default().push(row.txn);
                        }
                    }
                    running.insert(row.txn, row);
                }
            }
            for (tablet, waits) in self.waits(by_tablet, false).await {
                for wait in waits {
                    told.insert((tablet, wait.txn));
                    next.push(wait.txn);
                    for (blocker, holds) in wait.blockers {
                        next.push(blocker);
                        graph.add(wait.txn, Edge { tablet, ticket: wait.ticket, blocker, holds });
                    }
                }
            }
        }
        // The sweeps take care of transactions that no longer run.
        graph.retain(|txn| running.contains_key(&txn));
        let started = |txn: TxnId| {
            let at = running.get(&txn).map_or(0, |row| row.started_us as i64);
            at.saturating_sub(clocks.get(&txn.node()).copied().unwrap_or(0))
        };
        let circles = graph.circles(started);
        let break_up = circles.into_iter().filter_map(|circle| {
            let n_waits = running.get(&circle.victim)?.n_waits;
            Some(self.break_up(circle, n_waits))
        });
        join_all(break_up).await;
    }

    /// Ends the victim's wait if the whole circle still stands.
    async fn break_up(self: &Arc<Self>, circle: Circle, n_waits: u64) {
        let mut by_tablet: BTreeMap<TabletId, Vec<TxnId>> = BTreeMap::new();
        for (txn, edge) in &circle.waits {
            by_tablet.entry(edge.tablet).or_default().push(*txn);
        }
        let stands = self.waits(by_tablet, true).await;
        let mut lines = Vec::new();
        for (txn, edge) in &circle.waits {
            let here = stands.get(&edge.tablet).into_iter().flatten();
            let same = here.filter(|wait| wait.txn == *txn && wait.ticket == edge.ticket);
            let mut same =
                same.filter(|wait| wait.blockers.iter().any(|(b, _)| *b == edge.blocker));
            let Some(wait) = same.next() else { return };
            lines.push(line(wait, edge));
        }
        let more = lines.len().saturating_sub(N_LINES_MAX);
        lines.truncate(N_LINES_MAX);
        if more > 0 {
            lines.push(format!("{more} more are in the circle."));
        }
        // Those who find the same circle ask the same arbiter, so they cannot take a victim each.
        let Some(arbiter) = circle.waits.iter().map(|(txn, _)| *txn).min() else { return };
        let ask = CoordinatorRequest::MayDoom { arbiter, victim: circle.victim };
        let Some(CoordinatorResponse::MayDoom(true)) = self.inspect(arbiter.node(), &ask).await
        else {
            return;
        };
        let (txn, detail) = (circle.victim, lines.join("\n"));
        let doom = CoordinatorRequest::Doom { txn, n_waits, detail };
        // If the victim's coordinator does not hear it, the next search finds the circle again.
        drop(self.inspect(txn.node(), &doom).await);
    }

    /// Where `txns` wait, by coordinator: its clock, and those of `txns` that it runs. Coordinators that
    /// are silent, and transactions that no longer run, are left out.
    async fn waiting(self: &Arc<Self>, txns: Vec<TxnId>) -> Vec<(NodeId, u64, Vec<WaitingRow>)> {
        let mut by_node: BTreeMap<NodeId, Vec<TxnId>> = BTreeMap::new();
        for txn in txns {
            by_node.entry(txn.node()).or_default().push(txn);
        }
        let ask = by_node.into_iter().map(|(node, txns)| async move {
            match self.inspect(node, &CoordinatorRequest::Waiting(txns)).await? {
                CoordinatorResponse::Waiting { now_us, rows } => Some((node, now_us, rows)),
                _ => None,
            }
        });
        join_all(ask).await.into_iter().flatten().collect()
    }

    async fn waits(
        self: &Arc<Self>,
        by_tablet: BTreeMap<TabletId, Vec<TxnId>>,
        only_these: bool,
    ) -> BTreeMap<TabletId, Vec<TxnWait>> {
        let ask = by_tablet.into_iter().map(|(tablet, txns)| async move {
            let request = Request::WaitsFor { txns, only_these };
            // A tablet that has no leader now is asked by the next search.
            match self.env.timeout(super::INSPECT, self.ask(tablet, request)).await {
                Some(Ok(Response::WaitsFor(waits))) => Some((tablet, waits)),
                _ => None,
            }
        });
        join_all(ask).await.into_iter().flatten().collect()
    }
}

fn line(wait: &TxnWait, edge: &Edge) -> String {
    let what = match &wait.what {
        Some((crate::locks::Target::Key(key), mode)) => {
            format!("{mode:?} lock on key {}", base::key::Hex(key))
        }
        Some((crate::locks::Target::Range(range), mode)) => {
            format!("{mode:?} lock on range {range}")
        }
        None => "a lock".to_owned(),
    };
    let (txn, Edge { tablet, blocker, .. }) = (wait.txn, edge);
    format!(
        "Transaction {txn} waits for {what} of tablet {tablet}; blocked by transaction {blocker}."
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::solo;
    use crate::{Error, Isolation, LockMode, Wait};
    use base::Key;

    const TABLET: TabletId = TabletId::FIRST_DATA;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn only_a_circle_that_still_stands_is_broken() {
        let dir = tempfile::tempdir().unwrap();
        let solo = solo(dir.path()).await.unwrap();
        let wanted = [Key::from_static(b"\0\0\x01\0a")];
        let mut holder = solo.client.begin(Isolation::ReadCommitted);
        holder.lock(&wanted, LockMode::Exclusive, Wait::Block).await.unwrap();
        let mut waiter = solo.client.begin(Isolation::ReadCommitted);
        let (txn, blocker) = (waiter.id(), holder.id());
        let waits = async { waiter.lock(&wanted, LockMode::Exclusive, Wait::Block).await };
        let breaks = async {
            let ticket = loop {
                let waits = solo.node.waits(BTreeMap::from([(TABLET, vec![txn])]), true).await;
                if let Some(wait) = waits.get(&TABLET).and_then(|waits| waits.first()) {
                    break wait.ticket;
                }
            };
            let n_waits = solo.node.waiting(vec![txn]).await[0].2[0].n_waits;
            let is_doomed = || solo.node.active.lock()[&txn].is_doomed();
            let circle = |blocker, ticket| Circle {
                victim: txn,
                waits: vec![(txn, Edge { tablet: TABLET, ticket, blocker, holds: true })],
            };
            let (now, second) = (solo.env.now(), std::time::Duration::from_secs(1));
            {
                let active = solo.node.active.lock();
                let arbiter = &active[&blocker];
                assert!(arbiter.may_doom(txn, now) && arbiter.may_doom(txn, now));
                assert!(!arbiter.may_doom(TxnId(1), now + second), "another victim");
                assert!(arbiter.may_doom(TxnId(1), now + second * 3), "the first lives on");
                assert!(!arbiter.may_doom(txn, now + second * 4));
            }
            let other: crate::locks::Ticket = postcard::from_bytes(&[0]).unwrap();
            solo.node.break_up(circle(blocker, other), n_waits).await;
            assert!(!is_doomed(), "it was another wait");
            solo.node.break_up(circle(TxnId(1), ticket), n_waits).await;
            assert!(!is_doomed(), "it waits for somebody else");
            solo.node.break_up(circle(blocker, ticket), n_waits + 1).await;
            assert!(!is_doomed(), "it was told of another wait");
            solo.node.break_up(circle(blocker, ticket), n_waits).await;
        };
        let (ended, ()) = tokio::join!(waits, breaks);
        assert!(matches!(ended, Err(Error::Deadlock { .. })), "{ended:?}");
    }
}
