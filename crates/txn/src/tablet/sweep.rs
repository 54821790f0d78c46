//! Cleaning up after coordinators that do not come back.
//!
//! A coordinator may die while its transaction holds locks, has prepared parts, or has a record of which
//! not all participants were told. The leader of each tablet looks once per second, asks the coordinator
//! whether the transaction still runs, and cleans up if it does not:
//!
//! * the transaction has locks only: the leader gives them back, and dooms the transaction here, in case
//!   it speaks again;
//! * it has prepared parts: the leader proposes "aborted" at the anchor. The first decision stands,
//!   whether that is this one or an earlier one, and the leader carries it out;
//! * it has a record here: the leader tells every participant, then lets the record expire.

use super::{Home, Tablet};
use crate::command::{Outcome, decode};
use crate::keyspace;
use crate::machine::Record;
use crate::message::{Fault, Request, Response};
use base::{KeyRange, NodeId, TabletId, TxnId};
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A prepared transaction is left to its coordinator for this long.
pub(super) const PREPARED_PATIENCE: Duration = Duration::from_secs(1);
/// A coordinator that does not answer for this long is taken for dead. Correctness does not rest on
/// that: if it lives, its transaction finds its locks gone and aborts.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Records that one sweep looks at. The next sweep goes on behind them.
const N_RECORDS_MAX: usize = 256;
/// Longer than any request is on its way: the requests of a doomed transaction have come by then.
const ON_ITS_WAY_MAX: Duration = Duration::from_secs(30);

impl Tablet {
    /// Starts a sweep in the background, unless the last one is still running.
    pub(crate) fn sweep(self: Arc<Self>, home: Arc<dyn Home>) {
        if self.sweeping.swap(true, Ordering::AcqRel) {
            return;
        }
        self.env.clone().spawn("sweep of a tablet", async move {
            if let Err(fault) = self.try_sweep(&home).await {
                tracing::debug!(tablet = %self.id, ?fault, "a sweep left something for the next");
            }
            self.sweeping.store(false, Ordering::Release);
        });
    }

    async fn try_sweep(self: &Arc<Self>, home: &Arc<dyn Home>) -> Result<(), Fault> {
        let epoch = self.leading()?;
        let now = self.env.now();
        let (holders, in_doubt, doomed) = self.with_lead(epoch, |lead| {
            let mut holders = lead.locks.transactions();
            holders.retain(|txn| !lead.marks.contains(*txn));
            let old = lead.prepared.iter().filter(|(txn, waiting)| {
                now.saturating_duration_since(waiting.since) >= PREPARED_PATIENCE
                    || home.is_dead(txn.node())
            });
            let in_doubt: Vec<(TxnId, TabletId)> =
                old.map(|(txn, waiting)| (*txn, waiting.anchor)).collect();
            Ok((holders, in_doubt, lead.doomed_before(now.checked_sub(ON_ITS_WAY_MAX))))
        })?;
        let records = self.records()?;
        let asked = holders.iter().chain(in_doubt.iter().map(|(txn, _)| txn));
        let asked: BTreeSet<TxnId> =
            asked.chain(records.iter().map(|(txn, _)| txn)).chain(&doomed).copied().collect();
        if asked.is_empty() {
            return Ok(());
        }
        let Ended { abandoned, told: ended } = self.abandoned(home, asked).await?;
        self.with_lead(epoch, |lead| {
            doomed
                .iter()
                .filter(|txn| ended.contains(txn))
                .for_each(|txn| lead.forget_doomed(*txn));
            Ok(())
        })?;
        for txn in holders.intersection(&abandoned) {
            self.with_lead(epoch, |lead| {
                // It may have reached its commit while we asked.
                if !lead.marks.contains(*txn) {
                    lead.doom(*txn, now);
                    lead.finish(*txn);
                }
                Ok(())
            })?;
            self.bump();
        }
        // Each by itself: a transaction whose other tablets cannot be reached must not hold up the others.
        let in_doubt = in_doubt.into_iter().filter(|(txn, _)| abandoned.contains(txn));
        let settled = in_doubt.map(|(txn, anchor)| async move {
            let outcome = settle(home, txn, anchor).await?;
            self.resolve(txn, outcome).await.map(drop)
        });
        let records = records.into_iter().filter(|(txn, _)| abandoned.contains(txn));
        let told = records.map(|(txn, record)| async move {
            home.clone().carry_out(self.id, txn, record.outcome, record.participants).await
        });
        let (settled, told) = futures::join!(join_all(settled), join_all(told));
        settled.into_iter().chain(told).collect()
    }

    /// Some of the records. All get their turn, even if many cannot be settled.
    fn records(&self) -> Result<Vec<(TxnId, Record)>, Fault> {
        let all = keyspace::space(keyspace::Space::Record, self.id);
        let mut swept = self.swept.lock();
        let start = swept.take().filter(|key| all.contains(key)).unwrap_or(all.start.clone());
        let mut records = Vec::new();
        for row in self.store.meta_scan(&KeyRange { start, end: all.end }) {
            let (key, value) = row?;
            if records.len() >= N_RECORDS_MAX {
                *swept = Some(key);
                break;
            }
            if let Some(txn) = keyspace::last_u64(&key) {
                records.push((TxnId(txn), decode(&value, "a commit record")?));
            }
        }
        Ok(records)
    }

    /// Those among `asked` that no coordinator runs any more. All coordinators are asked at once, so a
    /// silent one does not delay the others' answers.
    async fn abandoned(
        &self,
        home: &Arc<dyn Home>,
        asked: BTreeSet<TxnId>,
    ) -> Result<Ended, Fault> {
        let mut by_node: BTreeMap<NodeId, Vec<TxnId>> = BTreeMap::new();
        for txn in asked {
            by_node.entry(txn.node()).or_default().push(txn);
        }
        let ask = by_node.into_iter().map(|(coordinator, txns)| async move {
            let alive = home.clone().which_run(coordinator, txns.clone()).await;
            (coordinator, txns, alive)
        });
        let mut ended = Ended::default();
        for (coordinator, txns, alive) in join_all(ask).await {
            let now = self.env.now();
            let silent = {
                let mut guard = self.lead.lock();
                let Some(lead) = &mut *guard else { return Err(self.not_leader()) };
                match &alive {
                    Some(_) => {
                        lead.silent.remove(&coordinator);
                        Duration::ZERO
                    }
                    None => {
                        let since = *lead.silent.entry(coordinator).or_insert(now);
                        now.saturating_duration_since(since)
                    }
                }
            };
            match alive {
                Some(alive) => {
                    let alive: HashSet<TxnId> = alive.into_iter().collect();
                    let gone = txns.into_iter().filter(|txn| !alive.contains(txn));
                    ended.told.extend(gone);
                }
                None if silent > SILENCE_MAX || home.is_dead(coordinator) => {
                    ended.abandoned.extend(txns);
                }
                None => {}
            }
        }
        ended.abandoned.extend(&ended.told);
        Ok(ended)
    }
}

/// Transactions that no longer run.
#[derive(Default)]
struct Ended {
    abandoned: HashSet<TxnId>,
    /// The abandoned ones of which their coordinators said so.
    told: HashSet<TxnId>,
}

/// The decision about an abandoned transaction: that of its record, or an abort that is written now.
async fn settle(home: &Arc<dyn Home>, txn: TxnId, anchor: TabletId) -> Result<Outcome, Fault> {
    let participants = Vec::new();
    let decide = Request::Decide { txn, outcome: Outcome::Aborted, participants };
    match home.clone().ask(anchor, decide).await? {
        Response::Decided(outcome) => Ok(outcome),
        other => {
            Err(crate::Error::Internal { reason: format!("decide answered {other:?}") }.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::encode;
    use crate::testing::solo;
    use storage::Batch;

    /// Whose coordinators do not answer stay; those behind them are looked at all the same.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn all_records_get_their_turn() {
        let dir = tempfile::tempdir().unwrap();
        let solo = solo(dir.path()).await.unwrap();
        let tablet = solo.node.tablet(TabletId::FIRST_DATA).unwrap();
        let all: BTreeSet<TxnId> =
            (0..N_RECORDS_MAX as u64 * 2 + 10).map(|n| TxnId(9 << 48 | n)).collect();
        let mut batch = Batch::default();
        for txn in &all {
            let record = Record { outcome: Outcome::Aborted, participants: Vec::new() };
            batch.meta_put(keyspace::record(tablet.id, *txn), encode(&record));
        }
        solo.store.apply(batch).unwrap();
        let mut seen = BTreeSet::new();
        // Three rounds do; the node's own sweep may take some of them.
        for _ in 0..12 {
            let records = tablet.records().unwrap();
            assert!(records.len() <= N_RECORDS_MAX);
            seen.extend(records.into_iter().map(|(txn, _)| txn));
        }
        assert_eq!(seen.intersection(&all).count(), all.len());
    }
}
