//! The end of a transaction, seen from its coordinator.
//!
//! A transaction that has locks in one tablet only, and little to write, takes one request and one log
//! entry. Any other takes these steps (ARCHITECTURE.md draws them with numbers):
//!
//! ```text
//! prepare everywhere ─► draw the SCN ─► ask the tablets only read from ─► record at the anchor
//!     any "no": abort                      any "no": abort                  ─► answer
//!                                                                           resolve, forget
//! ```

use super::{Result, Shared, Writes};
use crate::command::{Changes, Outcome, SchemaUse};
use crate::message::{Epoch, Fault, Part, Request, Response};
use crate::tablet::lost_locks;
use crate::{Error, Isolation};
use base::{Key, KeyRange, Scn, TabletId};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// One log entry carries at most about this much of a transaction.
const PART_BYTES_MAX: usize = 2 << 20;
/// Parts for one tablet that are under way at the same time.
const N_PARTS_AT_ONCE: usize = 4;
/// How long a coordinator tries to learn how a commit ended before it tells its client that
/// it does not know.
const OUTCOME_PATIENCE: Duration = Duration::from_secs(15);
const OUTCOME_PAUSE: Duration = Duration::from_millis(20);
/// A value must fit into one log entry and one message to the followers, with room to spare.
const VALUE_BYTES_MAX: usize = 16 << 20;

type Barriers = Vec<(SchemaUse, Vec<KeyRange>)>;

pub(super) async fn commit(
    shared: Arc<Shared>,
    writes: Arc<Writes>,
    barriers: Barriers,
) -> Result<Option<Scn>> {
    if writes.is_empty() && barriers.is_empty() {
        let held = match shared.isolation {
            Isolation::Serializable => shared.check_all().await,
            _ => Ok(()),
        };
        if shared.known.lock().touched.is_empty() {
            shared.leave();
        } else {
            let ending = shared.clone();
            shared.node.env.spawn("release", async move { ending.end().await });
        }
        return held.map(|()| None);
    }
    shared.active.committing.store(true, Ordering::Relaxed);
    // The commit goes on to its end even if its session goes away in the middle.
    let (sender, answer) = tokio::sync::oneshot::channel();
    let (env, txn) = (shared.node.env.clone(), shared.id);
    env.spawn("commit", async move {
        let writes = Arc::try_unwrap(writes).unwrap_or_else(|shared| (*shared).clone());
        let outcome = shared.clone().commit(writes, barriers).await;
        drop(sender.send(outcome));
        shared.end().await;
    });
    // The process is ending: this node cannot tell how far the commit came.
    answer.await.unwrap_or(Err(Error::OutcomeUnknown { txn })).map(Some)
}

/// The writes for one tablet, in parts.
struct Share {
    tablet: TabletId,
    epoch: Epoch,
    parts: Vec<Changes>,
}

impl Shared {
    async fn commit(self: Arc<Self>, writes: Writes, barriers: Barriers) -> Result<Scn> {
        let mut shares = self.shares(writes, &barriers).await?;
        let grants = self.known.lock().grants.clone();
        let alone = shares.len() == 1 && grants.len() == 1;
        if let [share] = &mut shares[..]
            && alone
            && share.parts.len() == 1
            && let Some(changes) = share.parts.pop()
        {
            return self.commit_one(share.tablet, share.epoch, changes).await;
        }
        self.commit_many(shares, grants).await
    }

    /// Cuts the writes by tablet and size. If this transaction has no epoch for a tablet, the tablet's
    /// borders have changed since the keys were locked, and the transaction aborts.
    async fn shares(&self, writes: Writes, barriers: &Barriers) -> Result<Vec<Share>> {
        let (grants, uses) = {
            let known = self.known.lock();
            (known.grants.clone(), known.uses.clone())
        };
        let mut shares: BTreeMap<TabletId, (Share, usize)> = BTreeMap::new();
        let mut order: Vec<TabletId> = Vec::new();
        let mut share_of = |tablet: TabletId| -> Result<()> {
            if let Entry::Vacant(vacant) = shares.entry(tablet) {
                let epoch = *grants.get(&tablet).ok_or_else(lost_locks)?;
                order.push(tablet);
                vacant.insert((Share { tablet, epoch, parts: vec![Changes::default()] }, 0));
            }
            Ok(())
        };
        let mut here: Option<(KeyRange, TabletId)> = None;
        let mut placed: Vec<(TabletId, Key, Option<Bytes>)> = Vec::with_capacity(writes.len());
        for (key, value) in writes {
            check_size(&key, value.as_ref())?;
            let tablet = match &here {
                Some((range, tablet)) if range.contains(&key) => *tablet,
                _ => here.insert(self.node.tablet_of(&key).await?).1,
            };
            share_of(tablet)?;
            placed.push((tablet, key, value));
        }
        let mut walls: Vec<(TabletId, SchemaUse)> = Vec::new();
        for (barrier, ranges) in barriers {
            for range in ranges {
                let mut rest = range.clone();
                while !rest.is_empty() {
                    let (own, tablet) = self.node.tablet_of(&rest.start).await?;
                    share_of(tablet)?;
                    if !walls.contains(&(tablet, *barrier)) {
                        walls.push((tablet, *barrier));
                    }
                    match own.end {
                        Some(end) => rest.start = end,
                        None => break,
                    }
                }
            }
        }
        for (tablet, key, value) in placed {
            let Some((share, n_bytes)) = shares.get_mut(&tablet) else { continue };
            let size = key.len() + value.as_ref().map_or(0, Bytes::len) + 16;
            if *n_bytes + size > PART_BYTES_MAX && *n_bytes > 0 {
                share.parts.push(Changes::default());
                *n_bytes = 0;
            }
            *n_bytes += size;
            if let Some(part) = share.parts.last_mut() {
                part.writes.push((key, value));
            }
        }
        for (tablet, barrier) in walls {
            if let Some(part) =
                shares.get_mut(&tablet).and_then(|(share, _)| share.parts.last_mut())
            {
                part.barriers.push(barrier);
            }
        }
        let mut distinct: Vec<(KeyRange, SchemaUse)> = Vec::new();
        for used in uses {
            if !distinct.contains(&used) {
                distinct.push(used);
            }
        }
        let by_relation = |changes: &mut Changes| {
            for (relation, used) in &distinct {
                let touched = || changes.writes.iter().any(|(key, _)| relation.contains(key));
                if !changes.uses.contains(used) && touched() {
                    changes.uses.push(*used);
                }
            }
        };
        let mut in_order = Vec::with_capacity(order.len());
        for tablet in order {
            if let Some((mut share, _)) = shares.remove(&tablet) {
                share.parts.iter_mut().for_each(by_relation);
                in_order.push(share);
            }
        }
        Ok(in_order)
    }

    async fn commit_one(&self, tablet: TabletId, epoch: Epoch, changes: Changes) -> Result<Scn> {
        let txn = self.id;
        match self.node.ask(tablet, Request::Commit { txn, epoch, changes }).await {
            Ok(Response::Committed(scn)) => {
                // The leader has given the locks back.
                self.known.lock().touched.remove(&tablet);
                Ok(scn)
            }
            Ok(other) => Err(Error::Internal { reason: format!("a commit answered {other:?}") }),
            Err(Fault::Lost) => self.find_out(tablet).await,
            Err(Fault::NotLeader { .. } | Fault::WrongTablet) => Err(lost_locks()),
            Err(Fault::Failed(error)) => Err(error),
        }
    }

    /// The tablet's leader was lost while the commit was on its way. The next leader's log has every entry
    /// that was or will ever be committed; if the transaction is not in it, it never will be.
    async fn find_out(&self, tablet: TabletId) -> Result<Scn> {
        let txn = self.id;
        let deadline = self.node.env.now() + OUTCOME_PATIENCE;
        loop {
            match self.node.ask(tablet, Request::Outcome { txn, fence: true }).await {
                Ok(Response::Outcome(Some(Outcome::Committed(scn)))) => return Ok(scn),
                Ok(_) => return Err(lost_locks()),
                Err(_) if self.node.env.now() < deadline => {
                    self.node.env.sleep(OUTCOME_PAUSE).await;
                }
                Err(_) => return Err(Error::OutcomeUnknown { txn }),
            }
        }
    }

    async fn commit_many(
        self: Arc<Self>,
        shares: Vec<Share>,
        grants: BTreeMap<TabletId, Epoch>,
    ) -> Result<Scn> {
        let txn = self.id;
        let participants: Vec<TabletId> = shares.iter().map(|share| share.tablet).collect();
        let Some(&anchor) = participants.first() else {
            return Err(Error::Internal { reason: "a commit of nothing".into() });
        };
        let only_read = |tablet: &TabletId| !participants.contains(tablet);
        // Participants give the locks back when the transaction is resolved there, and not before.
        self.known.lock().touched.retain(only_read);
        // If a participant's leader changed since the promise, the shared locks there are lost.
        let reads_count = self.isolation == Isolation::Serializable;
        let asked_again: Vec<(TabletId, Epoch)> =
            grants.into_iter().filter(|(tablet, _)| reads_count || only_read(tablet)).collect();
        let decided = match self.agree(shares, anchor, &asked_again).await {
            Ok(scn) => self.decide(anchor, Outcome::Committed(scn), &participants).await,
            Err(error) => {
                // If the anchor cannot be told now, the tablets' sweeps find the transaction.
                drop(self.decide(anchor, Outcome::Aborted, &participants).await);
                Err(error)
            }
        };
        let outcome = match &decided {
            Ok(Outcome::Committed(scn)) => Outcome::Committed(*scn),
            Err(Error::OutcomeUnknown { .. }) => return Err(Error::OutcomeUnknown { txn }),
            _ => Outcome::Aborted,
        };
        let this = self.clone();
        self.node.env.spawn("resolve", async move {
            // A participant that is not reached asks the anchor in its own sweep.
            drop(this.node.carry_out(anchor, txn, outcome, &participants).await);
        });
        match decided? {
            Outcome::Committed(scn) => Ok(scn),
            Outcome::Aborted => Err(lost_locks()),
        }
    }

    /// Gets every participant's promise; then the number; then, from the tablets where the transaction
    /// has read under locks, the confirmation that these locks still hold.
    async fn agree(
        &self,
        shares: Vec<Share>,
        anchor: TabletId,
        asked_again: &[(TabletId, Epoch)],
    ) -> Result<Scn> {
        let txn = self.id;
        let prepare = shares.into_iter().map(|share| async move {
            let Share { tablet, epoch, mut parts } = share;
            let last = parts.pop().unwrap_or_default();
            let n = parts.len() as u32;
            let ask = |number: u32, is_last: bool, changes: Changes| {
                let part = Part { number, is_last };
                self.node.ask(tablet, Request::Prepare { txn, epoch, anchor, part, changes })
            };
            // Several under way, so that one write to the disk takes more than one. All are waited for, also
            // when one fails: what is still on its way would otherwise come after the decision.
            let parts = (0..n).zip(parts).map(|(number, changes)| ask(number, false, changes));
            let mut asked = futures::stream::iter(parts).buffer_unordered(N_PARTS_AT_ONCE);
            let mut failed = None;
            while let Some(answer) = asked.next().await {
                failed = failed.or(answer.err());
            }
            match failed {
                Some(fault) => Err(fault),
                None => ask(n, true, last).await.map(drop),
            }
        });
        for promise in join_all(prepare).await {
            promise.map_err(unprepared)?;
        }
        let scn = self.node.draw().await.map_err(Fault::into_error)?;
        self.check(asked_again).await?;
        Ok(scn)
    }

    async fn decide(
        &self,
        anchor: TabletId,
        outcome: Outcome,
        participants: &[TabletId],
    ) -> Result<Outcome> {
        let txn = self.id;
        let deadline = self.node.env.now() + OUTCOME_PATIENCE;
        loop {
            let participants = participants.to_vec();
            match self.node.ask(anchor, Request::Decide { txn, outcome, participants }).await {
                Ok(Response::Decided(outcome)) => return Ok(outcome),
                Ok(other) => {
                    return Err(Error::Internal { reason: format!("decide answered {other:?}") });
                }
                Err(_) if self.node.env.now() < deadline => {
                    self.node.env.sleep(OUTCOME_PAUSE).await;
                }
                Err(_) => return Err(Error::OutcomeUnknown { txn }),
            }
        }
    }

    async fn check_all(&self) -> Result<()> {
        let grants: Vec<(TabletId, Epoch)> =
            self.known.lock().grants.iter().map(|(tablet, epoch)| (*tablet, *epoch)).collect();
        self.check(&grants).await
    }

    async fn check(&self, grants: &[(TabletId, Epoch)]) -> Result<()> {
        let txn = self.id;
        let ask = grants
            .iter()
            .map(|&(tablet, epoch)| self.node.ask(tablet, Request::Check { txn, epoch }));
        for answer in join_all(ask).await {
            answer.map_err(unprepared)?;
        }
        Ok(())
    }
}

/// Refuses writes that no replica could apply, before they get into a log.
fn check_size(key: &Key, value: Option<&Bytes>) -> Result<()> {
    let too_large = |what: &str, bytes: usize, max: usize| {
        Err(Error::TooLarge { reason: format!("{what} of {bytes} bytes exceeds {max}") })
    };
    match value {
        _ if key.len() > storage::KEY_BYTES_MAX => {
            too_large("a primary key or index entry", key.len(), storage::KEY_BYTES_MAX)
        }
        Some(value) if value.len() > VALUE_BYTES_MAX => {
            too_large("a row", value.len(), VALUE_BYTES_MAX)
        }
        _ => Ok(()),
    }
}

/// A tablet did not promise. Whatever the reason, the transaction has not happened and can be run again.
fn unprepared(fault: Fault) -> Error {
    match fault {
        Fault::Failed(error) => error,
        Fault::NotLeader { .. } | Fault::WrongTablet | Fault::Lost => lost_locks(),
    }
}
