//! What nobody came back for.
//!
//! A coordinator may die with locks held, with parts prepared, or with a record whose
//! participants were not all told. The leader of each tablet looks regularly, asks the
//! coordinator whether the transaction still runs, and cleans up where it does not:
//!
//! * locks only: given back, and the transaction is doomed here should it speak again;
//! * prepared: the record at the anchor decides; where there is none, an abort is written there
//!   first, and whichever decision stands is carried out;
//! * a record: every participant is told, then the record may expire.

use super::Tablet;
use crate::command::{Outcome, decode};
use crate::keyspace;
use crate::machine::Record;
use crate::message::{Fault, Request, Response};
use crate::node::Node;
use base::{NodeId, TabletId, TxnId};
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A prepared transaction is left to its coordinator for this long.
const PREPARED_PATIENCE: Duration = Duration::from_secs(1);
/// A coordinator that does not answer for this long is taken for dead. Correctness does not rest
/// on it: a live one finds its locks gone and aborts.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Records looked at in one sweep.
const N_RECORDS_MAX: usize = 256;

impl Tablet {
    /// In the background; not again while the last one is still at it.
    pub(crate) fn sweep(self: Arc<Self>, node: Arc<Node>) {
        if self.sweeping.swap(true, Ordering::AcqRel) {
            return;
        }
        self.env.clone().spawn("sweep of a tablet", async move {
            if let Err(fault) = self.try_sweep(&node).await {
                tracing::debug!(tablet = %self.id, ?fault, "a sweep left something for the next");
            }
            self.sweeping.store(false, Ordering::Release);
        });
    }

    async fn try_sweep(self: &Arc<Self>, node: &Arc<Node>) -> Result<(), Fault> {
        let epoch = self.leading()?;
        let now = self.env.now();
        let (holders, in_doubt) = self.with_lead(epoch, |lead| {
            let mut holders = lead.locks.transactions();
            holders.retain(|txn| !lead.marks.contains(*txn));
            let old = lead.prepared.iter().filter(|(_, waiting)| {
                now.saturating_duration_since(waiting.since) > PREPARED_PATIENCE
            });
            let in_doubt: Vec<(TxnId, TabletId)> =
                old.map(|(txn, waiting)| (*txn, waiting.anchor)).collect();
            Ok((holders, in_doubt))
        })?;
        let records = self.records()?;
        let asked = holders.iter().chain(in_doubt.iter().map(|(txn, _)| txn));
        let asked: BTreeSet<TxnId> =
            asked.chain(records.iter().map(|(txn, _)| txn)).copied().collect();
        if asked.is_empty() {
            return Ok(());
        }
        let abandoned = self.abandoned(node, asked).await?;
        for txn in holders.intersection(&abandoned) {
            self.with_lead(epoch, |lead| {
                // It may have reached its commit while we asked.
                if !lead.marks.contains(*txn) {
                    lead.doomed.insert(*txn);
                    lead.finish(*txn);
                }
                Ok(())
            })?;
            self.bump();
        }
        // Each by itself: one whose other tablets cannot be reached must not hold up the rest.
        let in_doubt = in_doubt.into_iter().filter(|(txn, _)| abandoned.contains(txn));
        let settled = in_doubt.map(|(txn, anchor)| async move {
            let outcome = settle(node, txn, anchor).await?;
            self.resolve(txn, outcome).await.map(drop)
        });
        let records = records.into_iter().filter(|(txn, _)| abandoned.contains(txn));
        let told = records.map(|(txn, record)| async move {
            node.carry_out(self.id, txn, record.outcome, &record.participants).await
        });
        let (settled, told) = futures::join!(join_all(settled), join_all(told));
        settled.into_iter().chain(told).collect()
    }

    fn records(&self) -> Result<Vec<(TxnId, Record)>, Fault> {
        let mut records = Vec::new();
        let scan = self.store.meta_scan(&keyspace::space(keyspace::Space::Record, self.id));
        for row in scan.take(N_RECORDS_MAX) {
            let (key, value) = row?;
            if let Some(txn) = keyspace::last_u64(&key) {
                records.push((TxnId(txn), decode(&value, "a commit record")?));
            }
        }
        Ok(records)
    }

    /// Those among `asked` that no coordinator runs any more.
    async fn abandoned(
        &self,
        node: &Arc<Node>,
        asked: BTreeSet<TxnId>,
    ) -> Result<HashSet<TxnId>, Fault> {
        let mut by_node: BTreeMap<NodeId, Vec<TxnId>> = BTreeMap::new();
        for txn in asked {
            by_node.entry(txn.node()).or_default().push(txn);
        }
        let mut abandoned = HashSet::new();
        for (coordinator, txns) in by_node {
            let alive = node.which_run(coordinator, txns.clone()).await;
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
                Some(alive) => abandoned.extend(txns.iter().filter(|txn| !alive.contains(txn))),
                None if silent > SILENCE_MAX || node.is_dead(coordinator) => abandoned.extend(txns),
                None => {}
            }
        }
        Ok(abandoned)
    }
}

/// The decision about an abandoned transaction: its record's, or an abort written there now.
async fn settle(node: &Arc<Node>, txn: TxnId, anchor: TabletId) -> Result<Outcome, Fault> {
    let participants = Vec::new();
    let decide = Request::Decide { txn, outcome: Outcome::Aborted, participants };
    match node.ask(anchor, decide).await? {
        Response::Decided(outcome) => Ok(outcome),
        other => {
            Err(crate::Error::Internal { reason: format!("decide answered {other:?}") }.into())
        }
    }
}
