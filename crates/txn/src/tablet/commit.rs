//! Commit: mark, then draw, then propose.
//!
//! Because of this order snapshot readers need no locks. A reader's snapshot S was handed out at some
//! moment. A commit that was marked after that moment draws a larger number, so it is not in S. A commit
//! that was marked before that moment shows the reader its mark, and the reader waits for it if its
//! number is or may be within S. [`super::marks`] has an example with numbers.

use super::{Tablet, lost_locks, unexpected};
use crate::Error;
use crate::command::{Applied, Changes, Command, Outcome, Reject};
use crate::keyspace;
use crate::machine;
use crate::message::{Epoch, Fault, Part, Response};
use base::{Key, TabletId, TxnId};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::time::Duration;

/// Between two tries to learn what became of a proposal.
const CERTAIN_PAUSE: Duration = Duration::from_millis(20);
/// Parts of one transaction that are resolved at the same time. Others' commits wait behind them in the log: behind two
/// of 512 KiB for about 50 ms.
const N_PARTS_AT_ONCE: usize = 2;

impl Tablet {
    /// A whole transaction in one log entry.
    pub(super) async fn commit(
        &self,
        txn: TxnId,
        epoch: Epoch,
        changes: Changes,
    ) -> Result<Response, Fault> {
        let marked = match self.mark(txn, epoch, &changes).await {
            Ok(()) => self.promise(txn, epoch),
            Err(fault) => Err(fault),
        };
        if let Err(fault) = marked {
            // The request may have come twice, and the first one may have committed.
            return match self.told(txn)? {
                Some(Outcome::Committed(scn)) => Ok(Response::Committed(scn)),
                _ => Err(fault),
            };
        }
        let answer = match self.commit_marked(txn, epoch, changes).await {
            Err(Fault::Lost) => {
                // It may be in the log yet: the locks and the marks stay until that is certain.
                self.certain(epoch, txn).await?;
                match self.told(txn) {
                    Ok(Some(Outcome::Committed(scn))) => Ok(Response::Committed(scn)),
                    Ok(_) => Err(lost_locks().into()),
                    Err(fault) => Err(fault),
                }
            }
            answer => answer,
        };
        self.finish(epoch, txn);
        answer
    }

    /// The outcome of a commit, as the store has it. If the store cannot be read, the outcome stays open:
    /// the commit may have happened, and another replica knows.
    fn told(&self, txn: TxnId) -> Result<Option<Outcome>, Fault> {
        machine::outcome(&self.store, self.id, txn).map_err(|error| {
            tracing::warn!(tablet = %self.id, %txn, %error, "the outcome of a commit is not read");
            Fault::Lost
        })
    }

    async fn commit_marked(
        &self,
        txn: TxnId,
        epoch: Epoch,
        changes: Changes,
    ) -> Result<Response, Fault> {
        let scn = self.home()?.draw().await?;
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

    /// Prepares one part of the transaction's writes in this tablet. Its locks and marks stay until it is resolved.
    /// The answer to the last part is this tablet's promise. The coordinator draws no number before it has all
    /// promises, so the marks need not count earlier.
    pub(super) async fn prepare(
        &self,
        txn: TxnId,
        epoch: Epoch,
        anchor: TabletId,
        part: Part,
        changes: Changes,
    ) -> Result<Response, Fault> {
        let Part { number: part, is_last } = part;
        self.mark(txn, epoch, &changes).await?;
        let command = Command::Prepare { txn, term: epoch.term, anchor, part, changes };
        let proposed = match self.propose(epoch.term, &command).await {
            Err(Fault::Lost) => {
                self.certain(epoch, txn).await?;
                let key = keyspace::prepared(self.id, txn, part);
                match self.store.meta_get(&key)? {
                    Some(_) => Applied::Done,
                    None => Applied::Rejected(Reject::Busy),
                }
            }
            Err(fault) => {
                // Not proposed at all. This leadership may go on, and the mark with it.
                self.unmark(epoch, txn);
                return Err(fault);
            }
            Ok(applied) => applied,
        };
        match proposed {
            Applied::Done => {
                let now = self.env.now();
                self.with_lead(epoch, |lead| {
                    lead.is_prepared(txn, anchor, now);
                    if is_last {
                        lead.marks.promise(txn, lead.floor);
                    }
                    Ok(Response::Done)
                })
            }
            Applied::Rejected(reject) => {
                self.unmark(epoch, txn);
                Err(rejected(&reject))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// From now on a number may be drawn for `txn`, and its marks count.
    fn promise(&self, txn: TxnId, epoch: Epoch) -> Result<(), Fault> {
        self.with_lead(epoch, |lead| {
            lead.marks.promise(txn, lead.floor);
            Ok(())
        })
    }

    /// Takes back the marks of a transaction whose part was not prepared, unless another part was.
    fn unmark(&self, epoch: Epoch, txn: TxnId) {
        if let Some(lead) = &mut *self.lead.lock()
            && lead.epoch == epoch
            && !lead.prepared.contains_key(&txn)
        {
            lead.marks.remove(txn);
        }
        self.bump();
    }

    /// After a proposal without an answer: returns when every earlier proposal of this leadership is
    /// applied here or was cut off. An error: the leadership is over, and the log of the next one tells.
    pub(super) async fn certain(&self, epoch: Epoch, txn: TxnId) -> Result<(), Fault> {
        // To forget a transaction without a record does nothing, but the entry has its place in the log.
        let barrier = Command::Forget { txn };
        while self.leading() == Ok(epoch) {
            if self.propose(epoch.term, &barrier).await.is_ok() {
                return Ok(());
            }
            self.env.sleep(CERTAIN_PAUSE).await;
        }
        Err(Fault::Lost)
    }

    /// Marks the keys as being committed, if the transaction still has its locks.
    async fn mark(&self, txn: TxnId, epoch: Epoch, changes: &Changes) -> Result<(), Fault> {
        let keys: Vec<Key> = changes.writes.iter().map(|(key, _)| key.clone()).collect();
        self.check_keys(keys.iter())?;
        let mut changed = None;
        loop {
            self.check_schema(&changes.uses, None)?;
            let marked = self.with_lead(epoch, |lead| {
                if !lead.holds_for(txn) {
                    return Err(lost_locks().into());
                }
                // A split waits for the further parts of a transaction that is marked already.
                let may = (!lead.splitting || lead.marks.contains(txn))
                    && !lead.is_walled(txn, &changes.uses, &changes.barriers);
                if may {
                    lead.marks.add(txn, &keys, &changes.barriers);
                }
                Ok(may)
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

    /// Asked after the SCN was drawn: a transaction that is answered yes still held its locks at that number.
    pub(super) async fn check(&self, txn: TxnId, epoch: Epoch) -> Result<Response, Fault> {
        self.with_lead(epoch, |lead| match lead.holds_for(txn) && !lead.cutting {
            true => Ok(()),
            false => Err(lost_locks().into()),
        })?;
        self.vouch(epoch.term).await?;
        Ok(Response::Done)
    }

    /// Carries out a decision for all parts prepared here, then gives the locks back.
    pub(super) async fn resolve(&self, txn: TxnId, outcome: Outcome) -> Result<Response, Fault> {
        let epoch = self.leading()?;
        // A second request, while a large transaction is being resolved, waits for the first one.
        let mut changed = self.changed.subscribe();
        while !self.with_lead(epoch, |lead| Ok(lead.resolving.insert(txn)))? {
            if changed.changed().await.is_err() {
                return Err(Fault::Lost);
            }
        }
        let resolved = self.resolve_parts(epoch, txn, outcome).await;
        if let Some(lead) = &mut *self.lead.lock()
            && lead.epoch == epoch
        {
            lead.resolving.remove(&txn);
        }
        self.bump();
        resolved
    }

    async fn resolve_parts(
        &self,
        epoch: Epoch,
        txn: TxnId,
        outcome: Outcome,
    ) -> Result<Response, Fault> {
        if let Outcome::Committed(scn) = outcome {
            // From now on readers at older snapshots need not wait until the rows are there.
            self.with_lead(epoch, |lead| {
                lead.marks.drawn(txn, scn);
                Ok(())
            })?;
            self.bump();
        }
        // The store is asked, because it may hold a part that this leadership was not told of.
        // Part by part, because a part is read whole to be found.
        let mut under_way = FuturesUnordered::new();
        let mut next = Some(0);
        let mut failed = None;
        loop {
            while under_way.len() < N_PARTS_AT_ONCE
                && let Some(from) = next
            {
                let found = machine::part_from(&self.store, self.id, txn, from)?;
                next = found.and_then(|part| part.checked_add(1));
                if let Some(part) = found {
                    under_way.push(self.resolve_part(epoch, txn, part, outcome));
                }
            }
            match under_way.next().await {
                Some(resolved) => failed = failed.or(resolved.err()),
                None => break,
            }
        }
        if let Some(fault) = failed {
            return Err(fault);
        }
        if outcome == Outcome::Aborted {
            // A part that still arrives must find no locks here.
            let now = self.env.now();
            self.with_lead(epoch, |lead| {
                lead.doom(txn, now);
                Ok(())
            })?;
        }
        // The coordinator forgets the transaction when it hears "done", so only a sure leader may say so.
        self.vouch(epoch.term).await?;
        self.finish(epoch, txn);
        Ok(Response::Done)
    }

    async fn resolve_part(
        &self,
        epoch: Epoch,
        txn: TxnId,
        part: u32,
        outcome: Outcome,
    ) -> Result<(), Fault> {
        match self.propose(epoch.term, &Command::Resolve { txn, part, outcome }).await? {
            Applied::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Gives back all that `txn` has in the leadership of `epoch`, if that is still the present one.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::solo;
    use crate::{Isolation, LockMode, Wait};
    use base::NodeId;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_part_that_was_not_proposed_leaves_no_mark() {
        let dir = tempfile::tempdir().unwrap();
        let solo = solo(dir.path()).await.unwrap();
        let tablet = solo.node.tablet(TabletId::FIRST_DATA).unwrap();
        let key = Key::from_static(b"\0\0\x01\0a");
        let mut txn = solo.client.begin(Isolation::ReadCommitted);
        txn.lock(std::slice::from_ref(&key), LockMode::Exclusive, Wait::Block).await.unwrap();
        let epoch = tablet.leading().unwrap();
        // A hand-over to a node that is not there: nothing is proposed until it is given up.
        let group = solo.node.groups.get(tablet.id).unwrap();
        let hand_over = solo.env.spawn("hand-over", async move {
            group.transfer(NodeId(9)).await.unwrap_err();
        });
        let nothing = Command::Forget { txn: TxnId(1) };
        while tablet.propose(epoch.term, &nothing).await.is_ok() {}
        let changes = Changes { writes: vec![(key, None)], ..Changes::default() };
        let part = Part { number: 0, is_last: true };
        let prepared = tablet.prepare(txn.id(), epoch, tablet.id, part, changes).await;
        assert!(matches!(prepared, Err(Fault::NotLeader { .. })), "{prepared:?}");
        hand_over.await.unwrap();
        assert_eq!(tablet.leading(), Ok(epoch), "the leadership goes on");
        assert_eq!(tablet.with_lead(epoch, |lead| Ok(lead.marks.contains(txn.id()))), Ok(false));
    }
}
