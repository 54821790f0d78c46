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

use super::{Result, Shared};
use crate::command::{Changes, Outcome, SchemaUse};
use crate::error::lost_locks;
use crate::message::{Epoch, Fault, Part, Request, Response};
use crate::writes::{Writes, WritesScan};
use crate::{Error, Isolation};
use base::{Key, KeyRange, Scn, TabletId};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Parts for one tablet that are under way at the same time.
const N_PARTS_AT_ONCE: usize = 4;
/// How long a coordinator tries to learn how a commit ended before it tells its client that
/// it does not know.
const OUTCOME_PATIENCE: Duration = Duration::from_secs(15);
const OUTCOME_PAUSE: Duration = Duration::from_millis(20);
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
        let outcome = shared.clone().commit(writes, barriers).await;
        drop(sender.send(outcome));
        shared.end().await;
    });
    // The process is ending: this node cannot tell how far the commit came.
    answer.await.unwrap_or(Err(Error::OutcomeUnknown { txn })).map(Some)
}

/// The writes for one tablet.
struct Share {
    tablet: TabletId,
    epoch: Epoch,
    parts: Parts,
}

/// The writes of one share, cut into parts as they are asked for: of a large transaction only the parts that are under
/// way are in memory.
struct Parts {
    writes: Peekable<WritesScan>,
    barriers: Vec<SchemaUse>,
    uses: Arc<Vec<(KeyRange, SchemaUse)>>,
    bytes_max: usize,
    n: u32,
    is_over: bool,
}

impl Parts {
    /// The next part, and where it stands. There is one at least; None after the last.
    fn next(&mut self) -> Option<Result<(Part, Changes)>> {
        if self.is_over {
            return None;
        }
        let mut changes = Changes::default();
        let mut n_bytes = 0;
        loop {
            let next = self.writes.next_if(|write| {
                let size = write.as_ref().map_or(0, |(key, value)| size(key, value));
                n_bytes += size;
                n_bytes <= self.bytes_max || n_bytes == size
            });
            match next {
                Some(Ok(write)) => changes.writes.push(write),
                Some(Err(error)) => {
                    self.is_over = true;
                    return Some(Err(error));
                }
                None => break,
            }
        }
        self.is_over = self.writes.peek().is_none();
        if self.is_over {
            changes.barriers = std::mem::take(&mut self.barriers);
        }
        for (relation, used) in self.uses.iter() {
            let touched = || changes.writes.iter().any(|(key, _)| relation.contains(key));
            if !changes.uses.contains(used) && touched() {
                changes.uses.push(*used);
            }
        }
        let part = Part { number: self.n, is_last: self.is_over };
        self.n += 1;
        Some(Ok((part, changes)))
    }
}

fn size(key: &Key, value: &Option<Bytes>) -> usize {
    key.len() + value.as_ref().map_or(0, Bytes::len) + 16
}

impl Shared {
    async fn commit(self: Arc<Self>, writes: Arc<Writes>, barriers: Barriers) -> Result<Scn> {
        let mut shares = self.shares(&writes, &barriers).await?;
        drop(writes);
        let grants = self.known.lock().grants.clone();
        let alone = shares.len() == 1 && grants.len() == 1;
        let mut first = None;
        if let [Share { tablet, epoch, parts }] = &mut shares[..]
            && alone
            && let Some(part) = parts.next()
        {
            let (part, changes) = part?;
            if part.is_last {
                return self.commit_one(*tablet, *epoch, changes).await;
            }
            first = Some((part, changes));
        }
        self.commit_many(shares, first, grants).await
    }

    /// Finds the tablets that the writes and barriers go to. If this transaction has no epoch for a tablet, the
    /// tablet's borders have changed since the keys were locked, and the transaction aborts.
    async fn shares(&self, writes: &Writes, barriers: &Barriers) -> Result<Vec<Share>> {
        let (grants, uses) = {
            let known = self.known.lock();
            (known.grants.clone(), known.uses.clone())
        };
        let mut distinct: Vec<(KeyRange, SchemaUse)> = Vec::new();
        for used in uses {
            if !distinct.contains(&used) {
                distinct.push(used);
            }
        }
        let uses = Arc::new(distinct);
        let bytes_max = self.node.env.limits().part_bytes;
        let mut shares: Vec<Share> = Vec::new();
        let share_of =
            |shares: &mut Vec<Share>, tablet: TabletId, range: KeyRange| -> Result<usize> {
                if let Some(at) = shares.iter().position(|share| share.tablet == tablet) {
                    return Ok(at);
                }
                let epoch = *grants.get(&tablet).ok_or_else(lost_locks)?;
                let writes = writes.scan(&range).peekable();
                let (barriers, uses) = (Vec::new(), uses.clone());
                let parts = Parts { writes, barriers, uses, bytes_max, n: 0, is_over: false };
                shares.push(Share { tablet, epoch, parts });
                Ok(shares.len() - 1)
            };
        let mut rest = KeyRange::all();
        while let Some(write) = writes.first_in(&rest) {
            let key = write?;
            let (range, tablet) = self.node.tablet_of(&key).await?;
            let n_before = shares.len();
            if share_of(&mut shares, tablet, range.clone())? < n_before {
                // Its borders have changed since its first key was looked up.
                return Err(lost_locks());
            }
            match range.end {
                Some(end) => rest.start = end,
                None => break,
            }
        }
        for (barrier, ranges) in barriers {
            for range in ranges {
                let mut rest = range.clone();
                while !rest.is_empty() {
                    let (own, tablet) = self.node.tablet_of(&rest.start).await?;
                    let at = share_of(&mut shares, tablet, own.clone())?;
                    let walls = &mut shares[at].parts.barriers;
                    if !walls.contains(barrier) {
                        walls.push(*barrier);
                    }
                    match own.end {
                        Some(end) => rest.start = end,
                        None => break,
                    }
                }
            }
        }
        Ok(shares)
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
        first: Option<(Part, Changes)>,
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
        let decided = match self.agree(shares, first, anchor, &asked_again).await {
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
    /// has read under locks, the confirmation that these locks still hold. `first` is a part that was taken
    /// from the only share already.
    async fn agree(
        &self,
        shares: Vec<Share>,
        mut first: Option<(Part, Changes)>,
        anchor: TabletId,
        asked_again: &[(TabletId, Epoch)],
    ) -> Result<Scn> {
        let prepare: Vec<_> =
            shares.into_iter().map(|share| self.prepare(share, first.take(), anchor)).collect();
        for promise in join_all(prepare).await {
            promise?;
        }
        let scn = self.node.draw().await.map_err(Fault::into_error)?;
        self.check(asked_again).await?;
        Ok(scn)
    }

    /// Gets one participant's promise. Several parts are under way, so that one write to the disk takes more than one.
    /// All are waited for, also when one fails: what is still on its way would otherwise come after the decision. The
    /// last one goes alone, and with it the leader marks.
    async fn prepare(
        &self,
        share: Share,
        mut first: Option<(Part, Changes)>,
        anchor: TabletId,
    ) -> Result<()> {
        let Share { tablet, epoch, mut parts } = share;
        let txn = self.id;
        let ask = |part: Part, changes: Changes| {
            self.node.ask(tablet, Request::Prepare { txn, epoch, anchor, part, changes })
        };
        let mut under_way = FuturesUnordered::new();
        let mut failed: Option<Error> = None;
        let mut last = None;
        loop {
            while failed.is_none() && last.is_none() && under_way.len() < N_PARTS_AT_ONCE {
                match first.take().map(Ok).or_else(|| parts.next()) {
                    Some(Ok((part, changes))) if part.is_last => last = Some((part, changes)),
                    Some(Ok((part, changes))) => under_way.push(ask(part, changes)),
                    Some(Err(error)) => failed = Some(error),
                    None => break,
                }
            }
            match under_way.next().await {
                Some(Ok(_)) => {}
                Some(Err(fault)) => failed = failed.or(Some(unprepared(fault))),
                None => break,
            }
        }
        match (failed, last) {
            (Some(error), _) => Err(error),
            (None, Some((part, changes))) => ask(part, changes).await.map(drop).map_err(unprepared),
            (None, None) => Err(Error::Internal { reason: "a share has no last part".into() }),
        }
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

/// A tablet did not promise. Whatever the reason, the transaction has not happened and can be run again.
fn unprepared(fault: Fault) -> Error {
    match fault {
        Fault::Failed(error) => error,
        Fault::NotLeader { .. } | Fault::WrongTablet | Fault::Lost => lost_locks(),
    }
}
