//! Commit: mark, then draw, then propose.
//!
//! The order is what lets snapshot readers do without locks. A reader's snapshot S was handed
//! out at some moment. A commit that was marked after that moment draws a larger number, so it
//! is not in S; one that was marked before is seen by the reader as a mark, and waited for if
//! its number is or may be within S.

use super::{Tablet, lost_locks, unexpected};
use crate::Error;
use crate::command::{Applied, Changes, Command, Outcome, Reject};
use crate::machine;
use crate::message::{Epoch, Fault, Response};
use base::{Key, TabletId, TxnId};

impl Tablet {
    /// A whole transaction in one log entry.
    pub(super) async fn commit(
        &self,
        txn: TxnId,
        epoch: Epoch,
        changes: Changes,
    ) -> Result<Response, Fault> {
        if let Err(fault) = self.mark(txn, epoch, &changes).await {
            // Asked twice: the first may have done it.
            return match machine::outcome(&self.store, self.id, txn)? {
                Some(Outcome::Committed(scn)) => Ok(Response::Committed(scn)),
                _ => Err(fault),
            };
        }
        let answer = self.commit_marked(txn, epoch, changes).await;
        self.finish(epoch, txn);
        answer
    }

    async fn commit_marked(
        &self,
        txn: TxnId,
        epoch: Epoch,
        changes: Changes,
    ) -> Result<Response, Fault> {
        let scn = self.node()?.draw().await?;
        self.with_lead(epoch, |lead| {
            lead.marks.drawn(txn, scn);
            Ok(())
        })?;
        let command = Command::Commit { txn, term: epoch.term, scn, changes };
        match self.propose(epoch.term, &command).await? {
            Applied::Done => Ok(Response::Committed(scn)),
            Applied::Rejected(reject) => Err(rejected(&reject)),
            other => Err(unexpected(&other)),
        }
    }

    /// One part of what a transaction writes here. Its locks and marks stay until it is resolved.
    pub(super) async fn prepare(
        &self,
        txn: TxnId,
        epoch: Epoch,
        anchor: TabletId,
        part: u32,
        changes: Changes,
    ) -> Result<Response, Fault> {
        self.mark(txn, epoch, &changes).await?;
        let command = Command::Prepare { txn, term: epoch.term, anchor, part, changes };
        match self.propose(epoch.term, &command).await? {
            Applied::Done => {
                let now = self.env.now();
                self.with_lead(epoch, |lead| {
                    lead.is_prepared(txn, anchor, part, now);
                    Ok(Response::Done)
                })
            }
            Applied::Rejected(reject) => {
                self.with_lead(epoch, |lead| {
                    if !lead.prepared.contains_key(&txn) {
                        lead.marks.remove(txn);
                    }
                    Ok(())
                })?;
                self.bump();
                Err(rejected(&reject))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Marks the keys as being committed, if the transaction still has its locks.
    async fn mark(&self, txn: TxnId, epoch: Epoch, changes: &Changes) -> Result<(), Fault> {
        let keys: Vec<Key> = changes.writes.iter().map(|(key, _)| key.clone()).collect();
        self.check_keys(keys.iter())?;
        self.check_schema(&changes.uses, None)?;
        let mut changed = None;
        loop {
            let marked = self.with_lead(epoch, |lead| {
                if !lead.holds_for(txn) {
                    return Err(lost_locks().into());
                }
                if !lead.splitting {
                    let floor = lead.floor;
                    lead.marks.add(txn, &keys, floor);
                }
                Ok(!lead.splitting)
            })?;
            if marked {
                return Ok(());
            }
            match &mut changed {
                None => changed = Some(self.changed.subscribe()),
                Some(changed) => {
                    if changed.changed().await.is_err() {
                        return Err(lost_locks().into());
                    }
                }
            }
        }
    }

    /// Asked after the SCN was drawn: who reads this and gets yes held its locks at that number.
    pub(super) async fn check(&self, txn: TxnId, epoch: Epoch) -> Result<Response, Fault> {
        self.with_lead(epoch, |lead| match lead.holds_for(txn) {
            true => Ok(()),
            false => Err(lost_locks().into()),
        })?;
        self.vouch(epoch.term).await?;
        Ok(Response::Done)
    }

    /// Carries out a decision for all parts prepared here, then gives the locks back.
    pub(super) async fn resolve(
        &self,
        txn: TxnId,
        outcome: Outcome,
    ) -> Result<Response, Fault> {
        let epoch = self.leading()?;
        let parts = self.with_lead(epoch, |lead| {
            Ok(lead.prepared.get(&txn).map(|waiting| waiting.parts.clone()).unwrap_or_default())
        })?;
        for part in parts {
            let command = Command::Resolve { txn, part, outcome };
            match self.propose(epoch.term, &command).await? {
                Applied::Done => {}
                other => return Err(unexpected(&other)),
            }
        }
        if outcome == Outcome::Aborted {
            // A part that is still on its way must find no locks here.
            self.with_lead(epoch, |lead| {
                lead.doomed.insert(txn);
                Ok(())
            })?;
        }
        self.finish(epoch, txn);
        Ok(Response::Done)
    }

    /// Gives back what `txn` has in the leadership of `epoch`, if that still is.
    pub(super) fn finish(&self, epoch: Epoch, txn: TxnId) {
        if let Some(lead) = &mut *self.lead.lock()
            && lead.epoch == epoch
        {
            lead.finish(txn);
        }
        self.bump();
    }
}

fn rejected(reject: &Reject) -> Fault {
    match reject {
        Reject::Schema { table } => Error::SchemaChanged { table: *table }.into(),
        Reject::Term | Reject::Range | Reject::Decided(_) | Reject::Busy => lost_locks().into(),
    }
}
