//! A node's door to transactions.
//!
//! ```text
//! let mut txn = client.begin(Isolation::ReadCommitted);
//! txn.begin_statement();
//! let rows = txn.lock(&keys, LockMode::Exclusive, Wait::Block).await?;   // newest rows
//! txn.put(key, value)?;                                                 // buffered here
//! let scn = txn.commit().await?;                                        // ours, or an error
//! ```
//!
//! Writes stay on this node until the commit, in memory and, where they are many, in a temporary file
//! (`writes.rs`); the transaction's own reads see them.
//! Locks live at the tablets' leaders. The transaction remembers the epoch of each lock table in which it
//! has locks, and the leaders compare it at the commit.

mod commit;
mod scan;

use crate::active::Active;
use crate::command::SchemaUse;
use crate::error::lost_locks;
use crate::locks::Target;
use crate::message::{Epoch, Fault, LockRequest, LockedRow, ReadAt, Request, Response};
use crate::node::Node;
use crate::words::{Isolation, LockMode, Row, Wait};
use crate::writes::{Buffer, Position};
use crate::{Error, admin};
use base::{Key, KeyRange, NodeId, Scn, TabletId, TxnId};
use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

pub use scan::{Reader, Scan};

type Result<T, E = Error> = std::result::Result<T, E>;

/// The answer for one key that was to be locked.
#[derive(Clone, Debug)]
pub enum Locked {
    /// Held now, until the transaction ends. `row` is the newest state (own writes included).
    Held {
        row: Option<Row>,
    },
    Skipped,
}

/// A position in a transaction's buffered writes.
#[derive(Clone, Copy, Debug)]
pub struct Savepoint {
    position: Position,
    n_barriers: usize,
}

/// Begins transactions. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    node: Arc<Node>,
}

/// A call that locks this many keys at once lets other tasks run before it goes on.
const KEYS_WITH_A_PAUSE: usize = 256;
/// Rows that are read together without a snapshot: all of them must fit into one answer.
const N_NEWEST_MAX: usize = 3;

/// At this age a wait is followed for the first time, to see whether it closes a circle. Each next time
/// comes after twice as long, up to the larger value.
const SUSPICIOUS_MIN: Duration = Duration::from_millis(60);
const SUSPICIOUS_MAX: Duration = Duration::from_secs(1);

/// The part of a transaction that it shares with its readers.
pub(crate) struct Shared {
    node: Arc<Node>,
    id: TxnId,
    isolation: Isolation,
    active: Arc<Active>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    uses: Vec<(KeyRange, SchemaUse)>,
    /// The lock tables in which this transaction holds locks.
    grants: BTreeMap<TabletId, Epoch>,
    /// The tablets that may hold locks of it, also where the answer was lost on the way.
    touched: BTreeSet<TabletId>,
}

/// One transaction. Dropping it without `commit` rolls it back in the background.
pub struct Txn {
    shared: Arc<Shared>,
    snapshot: Option<Scn>,
    /// The snapshot was chosen by the user and stays.
    fixed: bool,
    writes: Buffer,
    barriers: Vec<(SchemaUse, Vec<KeyRange>)>,
    over: bool,
}

impl Client {
    pub fn new(node: Arc<Node>) -> Client {
        Client { node }
    }

    pub fn begin(&self, isolation: Isolation) -> Txn {
        let id = self.node.new_txn_id();
        let active = Arc::new(Active {
            isolation,
            started_us: self.node.env.wall_us(),
            started: self.node.env.now(),
            n_waits: AtomicU64::new(0),
            committing: AtomicBool::new(false),
            waiting: Mutex::default(),
            doom: watch::Sender::new(None),
            sentenced: Mutex::default(),
        });
        self.node.active.lock().insert(id, active.clone());
        let node = self.node.clone();
        let writes = Buffer::new(node.room.clone());
        Txn {
            shared: Arc::new(Shared { node, id, isolation, active, known: Mutex::default() }),
            snapshot: None,
            fixed: false,
            writes,
            barriers: Vec::new(),
            over: false,
        }
    }

    /// This node, and the number of its present start.
    pub fn coordinator(&self) -> (NodeId, u64) {
        self.node.coordinator()
    }

    /// The id of a new row without a primary key: no node gives it out again.
    pub fn new_row_id(&self) -> u64 {
        self.node.new_row_id()
    }

    /// Cuts the tablet that holds `key` in two at `key` (a no-op where a tablet starts there).
    pub fn split(&self, key: Key) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { admin::split(&self.node, key).await })
    }

    /// Takes out all rows of a relation that no definition names and no snapshot can read any more. False: a
    /// replica has not done so yet; ask again later.
    pub fn discard(&self, range: KeyRange) -> BoxFuture<'_, Result<bool>> {
        Box::pin(async move { self.node.discard(range).await })
    }

    /// What the cluster's tablets, locks and transactions look like, for the schema `atoll`.
    pub fn inspector(&self) -> admin::Inspector {
        admin::Inspector::new(self.node.clone())
    }
}

impl Txn {
    pub fn id(&self) -> TxnId {
        self.shared.id
    }

    pub fn isolation(&self) -> Isolation {
        self.shared.isolation
    }

    /// Before each statement. At READ COMMITTED forgets the snapshot, so that the statement's
    /// first read takes a fresh one; no effect at the other levels.
    pub fn begin_statement(&mut self) {
        if self.shared.isolation == Isolation::ReadCommitted && !self.fixed {
            self.snapshot = None;
        }
    }

    /// Call it before the first statement has shown anything: the transaction then sees the present. A
    /// transaction whose user chose a snapshot stays at it.
    pub fn renew_snapshot(&mut self) {
        if !self.fixed {
            self.snapshot = None;
        }
    }

    /// The snapshot of the current statement (or transaction), drawn now if there is none yet.
    pub fn snapshot(&mut self) -> BoxFuture<'_, Result<Scn>> {
        Box::pin(async move {
            match self.snapshot {
                Some(scn) => Ok(scn),
                None => {
                    let scn = self.shared.node.current_scn().await?;
                    self.snapshot = Some(scn);
                    Ok(scn)
                }
            }
        })
    }

    /// The snapshot by which the rest of this transaction goes: at REPEATABLE READ, once it was drawn or
    /// chosen. None: the next read draws a snapshot, which sees everything that can be looked up now.
    pub fn lasting_snapshot(&self) -> Option<Scn> {
        self.snapshot.filter(|_| self.shared.isolation == Isolation::RepeatableRead)
    }

    /// Reads everything as of `scn` (SET TRANSACTION SNAPSHOT). Before the first read only, and
    /// not at SERIALIZABLE, which has no snapshot.
    pub async fn read_as_of(&mut self, scn: Scn) -> Result<()> {
        let refused = |reason: &str| Err(Error::Refused { reason: reason.into() });
        if self.shared.isolation != Isolation::RepeatableRead {
            return refused("a snapshot can be chosen at REPEATABLE READ only");
        }
        if self.snapshot.is_some() {
            return refused("a snapshot can be chosen before the first statement only");
        }
        // A snapshot in the future would change while it is read.
        if scn > self.shared.node.current_scn().await? {
            return refused("the snapshot lies in the future");
        }
        self.snapshot = Some(scn);
        self.fixed = true;
        Ok(())
    }

    /// Declares by which definition of the table this transaction goes. `relations` are the key ranges
    /// that belong to the table. The tablets check every later request on keys in those ranges: if
    /// [`Txn::change_schema`] has brought a newer version, the request fails with
    /// [`Error::SchemaChanged`]. Cheap; call it for every table of every statement.
    pub fn use_table(&mut self, table: u32, version: u64, relations: &[KeyRange]) {
        let mut known = self.shared.known.lock();
        let same = |entry: &&(KeyRange, SchemaUse)| entry.1 == SchemaUse { table, version };
        if known.uses.iter().filter(same).count() == relations.len() {
            return;
        }
        known.uses.retain(|(_, used)| used.table != table);
        let used = SchemaUse { table, version };
        known.uses.extend(relations.iter().map(|range| (range.clone(), used)));
    }

    /// As part of this transaction's commit: from its SCN on, requests that go by a definition of
    /// `table` older than `version` are refused. Takes exclusive range locks on `relations`.
    pub fn change_schema<'a>(
        &'a mut self,
        table: u32,
        version: u64,
        relations: &'a [KeyRange],
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            for range in relations {
                self.lock_range(range.clone(), LockMode::Exclusive).await?;
            }
            self.barriers.push((SchemaUse { table, version }, relations.to_vec()));
            Ok(())
        })
    }

    /// Point reads, answers in the order of `keys`. READ COMMITTED and REPEATABLE READ read at the
    /// snapshot (own writes included); SERIALIZABLE takes shared locks and reads the newest.
    pub fn get<'a>(&'a mut self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Row>>>> {
        Box::pin(async move { self.reader().await?.get(keys).await })
    }

    /// As [`Txn::get`], for a statement that reads nothing else: at READ COMMITTED, keys that one
    /// tablet holds are read in their newest committed state, and no SCN is drawn for that.
    pub fn get_only<'a>(&'a mut self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Row>>>> {
        Box::pin(async move {
            let few = keys.len() <= N_NEWEST_MAX;
            if self.shared.isolation != Isolation::ReadCommitted || self.snapshot.is_some() || !few
            {
                return self.get(keys).await;
            }
            if let Some(first) = keys.first() {
                let (range, _) = self.shared.node.tablet_of(first).await?;
                if keys.iter().any(|key| !range.contains(key)) {
                    return self.get(keys).await;
                }
            }
            let reader = Reader::new(self.shared.clone(), ReadAt::Newest, self.writes.shared());
            reader.get(keys).await
        })
    }

    /// A reader at the statement's snapshot for scans, which may outlive the borrow of the
    /// transaction (query operators hold it). It sees the writes buffered so far, not later ones.
    pub fn reader(&mut self) -> BoxFuture<'_, Result<Reader>> {
        Box::pin(async move {
            let at = match self.shared.isolation {
                Isolation::Serializable => ReadAt::Newest,
                _ => ReadAt::Snapshot(self.snapshot().await?),
            };
            Ok(Reader::new(self.shared.clone(), at, self.writes.shared()))
        })
    }

    /// Locks keys (in key order, whatever the order asked) and returns the newest state of each,
    /// answers in the order asked. At REPEATABLE READ, a row newer than the snapshot is
    /// [`Error::Serialization`] (first updater wins). `put` and `delete` require an exclusive
    /// lock taken here.
    pub fn lock<'a>(
        &'a mut self,
        keys: &'a [Key],
        mode: LockMode,
        wait: Wait,
    ) -> BoxFuture<'a, Result<Vec<Locked>>> {
        Box::pin(async move {
            let unchanged_since = match self.shared.isolation {
                Isolation::RepeatableRead => Some(self.snapshot().await?),
                _ => None,
            };
            let mut order: Vec<usize> = (0..keys.len()).collect();
            order.sort_by(|a, b| keys[*a].cmp(&keys[*b]));
            let sorted: Vec<Key> = order.iter().map(|at| keys[*at].clone()).collect();
            let rows = self.shared.lock_keys(sorted, mode, wait, unchanged_since).await?;
            let mut answers: Vec<Locked> = vec![Locked::Skipped; keys.len()];
            for (at, row) in order.into_iter().zip(rows) {
                answers[at] = match row {
                    LockedRow::Skipped => Locked::Skipped,
                    LockedRow::Held(row) => Locked::Held { row: self.own_or(&keys[at], row)? },
                };
            }
            Ok(answers)
        })
    }

    fn own_or(&self, key: &Key, committed: Option<Row>) -> Result<Option<Row>> {
        Ok(match self.writes.get(key)? {
            Some(own) => own.map(|value| Row { scn: Scn::MAX, value }),
            None => committed,
        })
    }

    /// Locks a range, absent keys included.
    pub fn lock_range(&mut self, range: KeyRange, mode: LockMode) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.shared.lock_range(range, mode).await })
    }

    /// Buffers a write of a key locked exclusively. It fails when the transaction or its node has no room for it.
    pub fn put(&mut self, key: Key, value: Bytes) -> Result<()> {
        self.writes.write(key, Some(value))
    }

    pub fn delete(&mut self, key: Key) -> Result<()> {
        self.writes.write(key, None)
    }

    /// A place that [`Txn::rollback_to`] goes back to. It costs memory for each write until it is released.
    pub fn savepoint(&mut self) -> Savepoint {
        Savepoint { position: self.writes.savepoint(), n_barriers: self.barriers.len() }
    }

    /// Forgets a savepoint that nobody will go back to.
    pub fn release(&mut self, savepoint: Savepoint) {
        self.writes.release(savepoint.position);
    }

    /// Forgets the writes that were buffered since the savepoint. The savepoint stays, and so do locks (strict
    /// two-phase locking).
    pub fn rollback_to(&mut self, savepoint: Savepoint) {
        self.writes.rollback_to(savepoint.position);
        self.barriers.truncate(savepoint.n_barriers);
    }

    /// True once anything was written or defined.
    pub fn has_writes(&self) -> bool {
        !self.writes.is_empty() || !self.barriers.is_empty()
    }

    /// The commit's SCN; none for a transaction that wrote nothing.
    pub fn commit(mut self) -> BoxFuture<'static, Result<Option<Scn>>> {
        Box::pin(async move {
            self.over = true;
            let writes = self.writes.take();
            let barriers = std::mem::take(&mut self.barriers);
            commit::commit(self.shared.clone(), writes, barriers).await
        })
    }

    pub fn rollback(mut self) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            self.over = true;
            self.shared.end().await;
        })
    }
}

impl Drop for Txn {
    fn drop(&mut self) {
        if !self.over {
            let shared = self.shared.clone();
            self.shared.node.env.spawn("rollback", async move { shared.end().await });
        }
    }
}

impl Shared {
    /// The table definitions that a request on `range` goes by.
    fn uses_in(&self, range: &KeyRange) -> Vec<SchemaUse> {
        let known = self.known.lock();
        let mut uses: Vec<SchemaUse> = Vec::new();
        for (relation, used) in &known.uses {
            if relation.overlaps(range) && !uses.contains(used) {
                uses.push(*used);
            }
        }
        uses
    }

    fn uses_of(&self, keys: &[Key]) -> Vec<SchemaUse> {
        let known = self.known.lock();
        let mut uses: Vec<SchemaUse> = Vec::new();
        for (relation, used) in &known.uses {
            if !uses.contains(used) && keys.iter().any(|key| relation.contains(key)) {
                uses.push(*used);
            }
        }
        uses
    }

    /// Locks sorted keys and returns their newest committed rows, in order.
    async fn lock_keys(
        &self,
        keys: Vec<Key>,
        mode: LockMode,
        wait: Wait,
        unchanged_since: Option<Scn>,
    ) -> Result<Vec<LockedRow>> {
        let mut rows = Vec::with_capacity(keys.len());
        let mut n_moved = 0;
        while rows.len() < keys.len() {
            let rest = &keys[rows.len()..];
            let (range, tablet) = self.node.tablet_of(&rest[0]).await?;
            let here = rest.partition_point(|key| range.contains(key)).max(1);
            let mine = &rest[..here];
            if here >= KEYS_WITH_A_PAUSE {
                // As a scan does between its batches.
                tokio::task::yield_now().await;
            }
            let uses = self.uses_of(mine);
            let targets = mine.iter().cloned().map(Target::Key).collect();
            match self.lock_in(tablet, targets, mode, wait, true, unchanged_since, uses).await {
                Ok(more) => rows.extend(more),
                Err(Fault::WrongTablet) if n_moved < 20 => {
                    n_moved += 1;
                    self.node.refresh().await;
                }
                Err(fault) => return Err(fault.into_error()),
            }
        }
        Ok(rows)
    }

    async fn lock_range(&self, range: KeyRange, mode: LockMode) -> Result<()> {
        let mut rest = range;
        let mut n_moved = 0;
        while !rest.is_empty() {
            let (own, tablet) = self.node.tablet_of(&rest.start).await?;
            let part = own.intersect(&rest);
            let uses = self.uses_in(&part);
            let targets = vec![Target::Range(part.clone())];
            match self.lock_in(tablet, targets, mode, Wait::Block, false, None, uses).await {
                Ok(_) => match part.end {
                    Some(end) => rest.start = end,
                    None => return Ok(()),
                },
                Err(Fault::WrongTablet) if n_moved < 20 => {
                    n_moved += 1;
                    self.node.refresh().await;
                }
                Err(fault) => return Err(fault.into_error()),
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    async fn lock_in(
        &self,
        tablet: TabletId,
        targets: Vec<Target>,
        mode: LockMode,
        wait: Wait,
        read: bool,
        unchanged_since: Option<Scn>,
        uses: Vec<SchemaUse>,
    ) -> Result<Vec<LockedRow>, Fault> {
        let request = LockRequest {
            txn: self.id,
            targets,
            mode,
            wait,
            waited_ms: 0,
            read,
            unchanged_since,
            uses,
        };
        self.known.lock().touched.insert(tablet);
        let mut doom = self.active.doom.subscribe();
        {
            let mut waiting = self.active.waiting.lock();
            if waiting.is_empty() {
                // A doom of an earlier wait is not meant for this one.
                self.active.doom.send_if_modified(|doom| doom.take().is_some());
            }
            *waiting.entry(tablet).or_default() += 1;
            // Under the lock on `waiting`, as where the number is compared.
            self.active.n_waits.fetch_add(1, Ordering::Relaxed);
        }
        let waiting = NotWaiting { active: &self.active, tablet };
        let mut asked = pin!(self.node.ask(tablet, Request::Lock(request)));
        let mut patience = SUSPICIOUS_MIN;
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut asked => break answer?,
                detail = async {
                    // The guard must go before the next await: it is not Send.
                    let detail = doom.wait_for(Option::is_some).await;
                    match detail.map(|detail| detail.clone().unwrap_or_default()) {
                        Ok(detail) => detail,
                        Err(_) => std::future::pending().await,
                    }
                } => return Err(Error::Deadlock { detail }.into()),
                () = self.node.env.sleep(patience) => {
                    self.node.suspect_deadlock(self.id);
                    patience = (patience * 2).min(SUSPICIOUS_MAX);
                }
            }
        };
        drop(waiting);
        let Response::Locked { epoch, rows } = answer else {
            return Err(Error::Internal {
                reason: "a lock was answered with something else".into(),
            }
            .into());
        };
        match self.known.lock().grants.insert(tablet, epoch) {
            Some(before) if before != epoch => Err(lost_locks().into()),
            _ => Ok(rows),
        }
    }

    /// Gives back all locks and leaves the list of running transactions.
    async fn end(&self) {
        let touched = std::mem::take(&mut self.known.lock().touched);
        let txn = self.id;
        self.leave();
        let release =
            touched.into_iter().map(|tablet| self.node.ask(tablet, Request::Release { txn }));
        // A leader that does not hear it finds out in its sweep that this transaction no longer runs.
        drop(futures::future::join_all(release).await);
    }

    fn leave(&self) {
        self.node.active.lock().remove(&self.id);
    }
}

struct NotWaiting<'a> {
    active: &'a Active,
    tablet: TabletId,
}

impl Drop for NotWaiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.active.waiting.lock();
        if let Some(n_waits) = waiting.get_mut(&self.tablet) {
            *n_waits -= 1;
            if *n_waits == 0 {
                waiting.remove(&self.tablet);
            }
        }
    }
}
