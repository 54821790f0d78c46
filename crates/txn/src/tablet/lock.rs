//! Locks, and the newest rows under them.

use super::{Tablet, lost_locks};
use crate::locks::{Answer, Target, Ticket};
use crate::message::{Epoch, Fault, LockRequest, LockedRow, Response, TxnWait};
use crate::{Error, Row, Wait};
use base::env::Instant;
use base::{Key, Scn, TxnId};
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use storage::At;
use tokio::sync::oneshot;

/// The most waits, and blockers of waits, in one answer to a search for deadlocks.
const N_WAITS_MAX: usize = 4096;
const N_BLOCKERS_MAX: usize = 1 << 16;
/// Transactions that one hold of the leadership looks at, before other requests get their turn.
const N_AT_ONCE: usize = 64;

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
        // The definition may have changed while this request waited for the change.
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
                // The asker asks again for the other rows; it holds their locks by then.
                if n_bytes >= self.env.limits().scan_bytes {
                    break;
                }
            }
        }
        self.vouch(epoch.term).await?;
        Ok(Response::Locked { epoch, rows })
    }

    /// Waits for prepared changes of definitions whose range locks ended with an earlier leadership.
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

    /// First updater wins: refuses a row that another transaction changed after `snapshot`.
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

    /// Takes the locks one after the other, and waits if the request wants that. Returns the positions of
    /// the keys that were skipped.
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
        if self.acquire_all(epoch, request, since)? {
            next = targets.len();
        }
        while next < targets.len() {
            let waiting = self.with_lead(epoch, |lead| {
                if lead.is_doomed(txn) {
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
                self.wait(epoch, ticket, woken).await?;
                next += 1;
            }
        }
        Ok(skipped)
    }

    /// Takes many keys at once, if no other transaction has or wants any of them.
    fn acquire_all(
        &self,
        epoch: Epoch,
        request: &LockRequest,
        since: Instant,
    ) -> Result<bool, Fault> {
        let key = |target: &Target| match target {
            Target::Key(key) => Some(key.clone()),
            Target::Range(_) => None,
        };
        let keys: Option<Vec<Key>> = request.targets.iter().map(key).collect();
        let Some(keys) = keys.filter(|keys| keys.len() > 1) else { return Ok(false) };
        self.with_lead(epoch, |lead| match lead.is_doomed(request.txn) {
            true => Err(lost_locks().into()),
            false => Ok(lead.locks.request_all(since, request.txn, &keys, request.mode)),
        })
    }

    /// Ends with the grant, or with this leadership. The transaction's coordinator finds out whether the
    /// wait closes a circle.
    async fn wait(
        &self,
        epoch: Epoch,
        ticket: Ticket,
        woken: oneshot::Receiver<()>,
    ) -> Result<(), Fault> {
        let _cancel = CancelOnDrop { tablet: self, epoch, ticket };
        woken.await.map_err(|_| lost_locks().into())
    }

    /// The transactions that these wait for, and (unless `only_these`) those that they wait for in turn:
    /// 1,000 waits for one row are one answer. An answer that is too long is cut, nearest first.
    pub(super) fn waits_for(&self, txns: Vec<TxnId>, only_these: bool) -> Result<Response, Fault> {
        let epoch = self.leading()?;
        let mut seen: HashSet<TxnId> = txns.iter().copied().collect();
        let mut next: VecDeque<TxnId> = txns.into();
        let (mut found, mut n_blockers) = (Vec::new(), 0);
        while !next.is_empty() && found.len() < N_WAITS_MAX && n_blockers < N_BLOCKERS_MAX {
            let now: Vec<TxnId> = next.drain(..next.len().min(N_AT_ONCE)).collect();
            self.with_lead(epoch, |lead| {
                for txn in now {
                    for wait in lead.locks.waits_for(txn) {
                        n_blockers += wait.blockers.len();
                        if !only_these {
                            let fresh = wait.blockers.keys().filter(|txn| seen.insert(**txn));
                            next.extend(fresh);
                        }
                        found.push(TxnWait {
                            txn,
                            ticket: wait.ticket,
                            what: only_these.then(|| (wait.target.clone(), wait.mode)),
                            blockers: wait.blockers.into_iter().collect(),
                        });
                    }
                }
                Ok(())
            })?;
        }
        Ok(Response::WaitsFor(found))
    }
}

/// Takes the request out of the queue when the asker gives up. After the grant this does nothing.
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
