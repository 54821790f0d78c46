//! Locks, and the newest rows under them.

use super::{Tablet, lost_locks};
use crate::locks::{Answer, Target, Ticket};
use crate::message::{Edge, Epoch, Fault, LockRequest, LockedRow, Response};
use crate::{Error, LockMode, Row, Wait};
use base::{Scn, TxnId};
use std::sync::Arc;
use std::time::Duration;
use storage::At;
use tokio::sync::oneshot;

/// A wait this old is followed to see whether it closes a circle, and again after as long.
const SUSPICIOUS: Duration = Duration::from_millis(60);

impl Tablet {
    pub(super) async fn lock(self: &Arc<Self>, request: LockRequest) -> Result<Response, Fault> {
        let epoch = self.leading()?;
        for target in &request.targets {
            match target {
                Target::Key(key) => self.check_keys(std::iter::once(key))?,
                Target::Range(range) => self.check_range(range)?,
            }
        }
        self.check_schema(&request.uses, None)?;
        let skipped = self.acquire(epoch, &request).await?;
        self.pass_walls(epoch, &request).await?;
        // The definition may have changed while we waited for who changed it.
        self.check_schema(&request.uses, None)?;
        let mut rows = Vec::new();
        if request.read {
            rows.reserve(request.targets.len());
            let mut n_bytes = 0;
            for (n, target) in request.targets.iter().enumerate() {
                let Target::Key(key) = target else { continue };
                rows.push(match skipped.contains(&n) {
                    true => LockedRow::Skipped,
                    false => {
                        let row = self.store.get(key, At::Newest)?;
                        let row = row.map(|(scn, value)| Row { scn, value });
                        if let Some(snapshot) = request.unchanged_since {
                            self.check_unchanged(key, row.as_ref(), snapshot)?;
                        }
                        n_bytes += row.as_ref().map_or(0, |row| row.value.len());
                        LockedRow::Held(row)
                    }
                });
                // The asker asks on for the rest, whose locks it has by then.
                if n_bytes >= super::read::BATCH_BYTES_MAX {
                    break;
                }
            }
        }
        self.vouch(epoch.term).await?;
        Ok(Response::Locked { epoch, rows })
    }

    /// Waits for definitions that are about to change, and whose locks ended with a leadership.
    async fn pass_walls(&self, epoch: Epoch, request: &LockRequest) -> Result<(), Fault> {
        let mut changes = None;
        while self.with_lead(epoch, |lead| Ok(lead.is_walled(request.txn, &request.uses, &[])))? {
            // Subscribe, look again, and only then wait: a change in between is not missed.
            match &mut changes {
                None => changes = Some(self.changed.subscribe()),
                Some(changes) => {
                    if changes.changed().await.is_err() {
                        return Err(lost_locks().into());
                    }
                }
            }
        }
        Ok(())
    }

    /// First updater wins: did somebody change the row after `snapshot`?
    fn check_unchanged(
        &self,
        key: &base::Key,
        row: Option<&Row>,
        snapshot: Scn,
    ) -> Result<(), Fault> {
        let changed = match row {
            Some(row) => row.scn > snapshot,
            // A row that is gone now but was there then has been deleted since.
            None => self.store.get(key, At::Scn(snapshot))?.is_some(),
        };
        match changed {
            true => {
                Err(Error::serialization("the row was changed by a concurrent transaction").into())
            }
            false => Ok(()),
        }
    }

    /// Takes the locks one after the other, waiting where that is wanted. Returns the positions
    /// that were skipped.
    async fn acquire(
        self: &Arc<Self>,
        epoch: Epoch,
        request: &LockRequest,
    ) -> Result<Vec<usize>, Fault> {
        let LockRequest { txn, ref targets, mode, wait, .. } = *request;
        let now = self.env.now();
        let since = now.checked_sub(Duration::from_millis(request.waited_ms)).unwrap_or(now);
        let mut skipped = Vec::new();
        let mut next = 0;
        if mode == LockMode::Exclusive && wait == Wait::Block && self.escalate(epoch, request)? {
            next = targets.len();
        }
        while next < targets.len() {
            let waiting = self.with_lead(epoch, |lead| {
                if lead.doomed.contains(&txn) {
                    return Err(lost_locks().into());
                }
                while let Some(target) = targets.get(next) {
                    match lead.locks.request(since, txn, target.clone(), mode, wait) {
                        Answer::Granted => {}
                        Answer::Refused if wait == Wait::Skip => skipped.push(next),
                        Answer::Refused => return Err(Error::LockNotAvailable.into()),
                        Answer::Waits(ticket) => {
                            let (waker, woken) = oneshot::channel();
                            lead.wakers.insert(ticket, waker);
                            return Ok(Some((ticket, woken)));
                        }
                    }
                    next += 1;
                }
                Ok(None)
            })?;
            if let Some((ticket, woken)) = waiting {
                self.wait(epoch, txn, ticket, woken).await?;
                next += 1;
            }
        }
        Ok(skipped)
    }

    fn escalate(&self, epoch: Epoch, request: &LockRequest) -> Result<bool, Fault> {
        let key = |target: &Target| match target {
            Target::Key(key) => Some(key.clone()),
            Target::Range(_) => None,
        };
        let keys: Option<Vec<_>> = request.targets.iter().map(key).collect();
        let Some(keys) = keys.filter(|keys| keys.len() > 1) else { return Ok(false) };
        self.with_lead(epoch, |lead| match lead.doomed.contains(&request.txn) {
            true => Err(lost_locks().into()),
            false => Ok(lead.locks.escalate(request.txn, &keys)),
        })
    }

    async fn wait(
        self: &Arc<Self>,
        epoch: Epoch,
        txn: TxnId,
        ticket: Ticket,
        mut woken: oneshot::Receiver<()>,
    ) -> Result<(), Fault> {
        let _cancel = CancelOnDrop { tablet: self, epoch, ticket };
        loop {
            match self.env.timeout(SUSPICIOUS, &mut woken).await {
                Some(Ok(())) => return Ok(()),
                Some(Err(_)) => return Err(lost_locks().into()),
                None => self.node()?.suspect_deadlock(txn),
            }
        }
    }

    pub(super) fn waits_for(&self, txn: TxnId) -> Result<Response, Fault> {
        let epoch = self.leading()?;
        self.with_lead(epoch, |lead| {
            let waits = lead.locks.waits_for(txn).into_iter();
            let edges = waits.flat_map(|(target, mode, blockers)| {
                blockers.into_iter().map(move |blocker| Edge {
                    txn,
                    tablet: self.id,
                    target: target.clone(),
                    mode,
                    blocker,
                })
            });
            Ok(Response::WaitsFor(edges.collect()))
        })
    }
}

/// Leaves the queue when the asker gives up. After the grant there is nothing to leave.
struct CancelOnDrop<'a> {
    tablet: &'a Tablet,
    epoch: Epoch,
    ticket: Ticket,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(lead) = &mut *self.tablet.lead.lock()
            && lead.epoch == self.epoch
        {
            lead.wakers.remove(&self.ticket);
            let woken = lead.locks.cancel(self.ticket);
            lead.wake(woken);
        }
    }
}
