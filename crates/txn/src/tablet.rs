//! One replica of a tablet, and the tablet's leadership while this replica has it.
//!
//! The replica applies the log ([`crate::machine`]). The leadership ([`lead`]) is memory only: the lock
//! table, the keys that are being committed ([`marks`]), the prepared transactions. It is made when this
//! replica becomes leader and dropped when it stops being leader, with every wait in it. Each kind of
//! request has its own file:
//!
//! * [`read`]: snapshot and newest reads, scans, reads of the past at followers
//! * [`lock`]: locks, with the newest rows under them
//! * [`commit`]: one-entry commit, prepare, decide, resolve
//! * [`split`]: cutting the tablet in two
//! * [`sweep`]: cleaning up after coordinators: abandoned locks, in-doubt transactions, records
//!
//! No request rests on the clock of another machine. The leader asks its lease after the work that the
//! lease vouches for.

mod commit;
mod home;
mod lead;
mod lock;
mod marks;
mod read;
mod split;
mod sweep;

pub(crate) use home::Home;
pub(crate) use lead::Lead;

use crate::command::{Applied, Command, SchemaUse, decode, encode};
use crate::error::lost_locks;
use crate::key_set::SetLimits;
use crate::machine::{self, Effect, State};
use crate::message::{Epoch, Fault, Request, Response, TxnState};
use crate::scn::Allocator;
use crate::{Error, keyspace};
use base::env::Instant;
use base::{Env, KeyRange, Scn, TabletId, TxnId, panics};
use bytes::Bytes;
use consensus::{Entry, Group, Position, Role};
use parking_lot::{Mutex, RwLock};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use storage::{Batch, Store, TabletRanges};
use tokio::sync::watch;

/// After a failed attempt to raise the SCN ceiling.
const RAISE_AGAIN: Duration = Duration::from_millis(10);

pub(crate) struct Tablet {
    pub(crate) id: TabletId,
    env: Env,
    store: Store,
    home: Weak<dyn Home>,
    group: OnceLock<Group>,
    state: RwLock<Option<State>>,
    lead: Mutex<Option<Lead>>,
    changing_role: Mutex<()>,
    sweeping: AtomicBool,
    /// Where the next sweep goes on with the records.
    swept: Mutex<Option<base::Key>>,
    /// Grows with each change that a waiting reader or committer may wait for.
    changed: watch::Sender<u64>,
    effects: Mutex<Vec<Effect>>,
    applied_index: AtomicU64,
    closed: Mutex<Closed>,
    closing: Mutex<Option<Closing>>,
    /// The SCN counter, at the root tablet's leader.
    allocator: Mutex<Option<Allocator>>,
}

/// All commits up to `scn` are in the entries up to `index`: a replica that has applied these entries
/// answers reads at or below `scn` from its own state.
#[derive(Clone, Copy, Debug, Default)]
struct Closed {
    scn: Scn,
    index: u64,
}

/// What the leader will close once a quorum has answered something that it asked later.
#[derive(Clone, Copy, Debug)]
struct Closing {
    closed: Closed,
    term: u64,
    since: Instant,
}

impl Tablet {
    pub(crate) fn new(
        env: Env,
        store: Store,
        home: Weak<dyn Home>,
        id: TabletId,
    ) -> Result<Arc<Tablet>, Error> {
        let state = State::load(&store, id)?;
        Ok(Arc::new(Tablet {
            id,
            env,
            store,
            home,
            group: OnceLock::new(),
            state: RwLock::new(state),
            lead: Mutex::new(None),
            changing_role: Mutex::default(),
            sweeping: AtomicBool::new(false),
            swept: Mutex::default(),
            changed: watch::Sender::new(0),
            effects: Mutex::default(),
            applied_index: AtomicU64::new(0),
            closed: Mutex::default(),
            closing: Mutex::default(),
            allocator: Mutex::new(None),
        }))
    }

    /// Ties the replica to its Raft group; once, right after the group has started.
    pub(crate) fn join(&self, group: Group) {
        let role = group.role().borrow().clone();
        let first = self.group.set(group).is_ok();
        debug_assert!(first);
        consensus::Machine::role(self, role);
    }

    pub(crate) fn group(&self) -> Result<&Group, Fault> {
        self.group.get().ok_or(Fault::NotLeader { leader: None })
    }

    pub(crate) fn range(&self) -> Option<KeyRange> {
        self.state.read().as_ref().map(|state| state.descriptor.range.clone())
    }

    pub(crate) fn generation(&self) -> u64 {
        self.state.read().as_ref().map_or(0, |state| state.descriptor.generation)
    }

    pub(crate) fn closed_scn(&self) -> Scn {
        self.closed.lock().scn
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.lead.lock().is_some()
    }

    /// As [`Tablet::serve`], for an asker that may go away in the middle: a peer whose deadline is over,
    /// a session that is dropped. Work that must not stop half done goes on all the same.
    pub(crate) async fn serve_to_the_end(
        self: &Arc<Self>,
        request: Request,
    ) -> Result<Response, Fault> {
        match request {
            Request::Commit { .. }
            | Request::Prepare { .. }
            | Request::Resolve { .. }
            | Request::Split { .. } => {
                let this = self.clone();
                self.to_the_end(async move { this.serve(request).await }).await
            }
            request => self.serve(request).await,
        }
    }

    /// Does what a request asks, as leader (or, for reads of the past, as any replica). A panic in it ends
    /// the process even if a statement asked, because other transactions would see the half-done work.
    pub(crate) async fn serve(self: &Arc<Self>, request: Request) -> Result<Response, Fault> {
        panics::fatal(&self.env, "a tablet", self.do_serve(request)).await
    }

    async fn do_serve(self: &Arc<Self>, request: Request) -> Result<Response, Fault> {
        match request {
            Request::Read { at, keys, uses } => self.read(at, &keys, &uses).await,
            Request::Scan(scan) => self.scan(scan).await,
            Request::Lock(lock) => self.lock(lock).await,
            Request::Commit { txn, epoch, changes } => self.commit(txn, epoch, changes).await,
            Request::Prepare { txn, epoch, anchor, part, changes } => {
                self.prepare(txn, epoch, anchor, part, changes).await
            }
            Request::Check { txn, epoch } => self.check(txn, epoch).await,
            Request::Decide { txn, outcome, participants } => {
                let command = Command::Decide { txn, outcome, participants };
                match self.propose(self.leading()?.term, &command).await? {
                    Applied::Decided(outcome) => Ok(Response::Decided(outcome)),
                    other => Err(unexpected(&other)),
                }
            }
            Request::Resolve { txn, outcome } => self.resolve(txn, outcome).await,
            Request::Forget { txn } => {
                self.propose(self.leading()?.term, &Command::Forget { txn }).await?;
                Ok(Response::Done)
            }
            Request::Release { txn } => {
                let epoch = self.leading()?;
                // A transaction that is committing or prepared keeps its locks until its decision.
                if !self.with_lead(epoch, |lead| Ok(lead.marks.contains(txn)))? {
                    self.finish(epoch, txn);
                }
                Ok(Response::Done)
            }
            Request::Outcome { txn, fence } => {
                let (epoch, now) = (self.leading()?, self.env.now());
                self.with_lead(epoch, |lead| {
                    if lead.marks.contains(txn) {
                        return Err(Error::OutcomeUnknown { txn }.into());
                    }
                    if fence {
                        // Its commit may still be on the way here, and must find no locks.
                        lead.doom(txn, now);
                        lead.finish(txn);
                    }
                    Ok(())
                })?;
                let outcome = machine::outcome(&self.store, self.id, txn)?;
                match fence {
                    // Whoever asks so tells a client for good.
                    true => self.vouch_anew(epoch.term).await?,
                    false => self.vouch(epoch.term).await?,
                }
                Ok(Response::Outcome(outcome))
            }
            Request::WaitsFor { txns, only_these } => self.waits_for(txns, only_these),
            Request::Split { at, child } => self.split(at, child).await,
            Request::Locks => {
                let epoch = self.leading()?;
                let now = self.env.now();
                self.with_lead(epoch, |lead| Ok(Response::Locks(lead.locks.rows(now))))
            }
            Request::Transactions { limit } => self.transactions(limit),
        }
    }

    /// Runs work that must not stop in the middle when its asker goes away.
    async fn to_the_end<F>(&self, work: F) -> Result<Response, Fault>
    where
        F: Future<Output = Result<Response, Fault>> + Send + 'static,
    {
        let (sender, answer) = tokio::sync::oneshot::channel();
        self.env.spawn("tablet request", async move {
            // Nobody waits any more when this fails; the work is done all the same.
            drop(sender.send(work.await));
        });
        answer.await.unwrap_or(Err(Fault::Lost))
    }

    pub(crate) fn set_limits(&self) -> SetLimits {
        SetLimits::of(self.env.limits())
    }

    /// The lock table's epoch, if this replica leads.
    fn leading(&self) -> Result<Epoch, Fault> {
        match &*self.lead.lock() {
            Some(lead) => Ok(lead.epoch),
            None => Err(self.not_leader()),
        }
    }

    fn new_epoch(&self, term: u64) -> Epoch {
        Epoch { node: self.me(), term, nonce: self.env.random() }
    }

    fn not_leader(&self) -> Fault {
        let leader = self.group.get().and_then(|group| group.status().leader);
        Fault::NotLeader { leader: leader.filter(|leader| *leader != self.me()) }
    }

    fn me(&self) -> base::NodeId {
        self.home.upgrade().map_or(base::NodeId(0), |home| home.me())
    }

    fn home(&self) -> Result<Arc<dyn Home>, Fault> {
        self.home.upgrade().ok_or(Fault::NotLeader { leader: None })
    }

    /// Works on the leadership of `epoch`, if that is still the present one.
    fn with_lead<T>(
        &self,
        epoch: Epoch,
        work: impl FnOnce(&mut Lead) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        match &mut *self.lead.lock() {
            Some(lead) if lead.epoch == epoch => work(lead),
            Some(_) => Err(lost_locks().into()),
            None => Err(self.not_leader()),
        }
    }

    /// Confirms that local state which was just read was the newest: this replica surely led in `term` at
    /// a moment after the reading.
    async fn vouch(&self, term: u64) -> Result<(), Fault> {
        let group = self.group()?;
        if group.lease(term) || group.confirm(term).await {
            return Ok(());
        }
        Err(self.not_leader())
    }

    /// The same by a quorum's word, whatever the clock says of the lease.
    async fn vouch_anew(&self, term: u64) -> Result<(), Fault> {
        match self.group()?.confirm_anew(term).await {
            true => Ok(()),
            false => Err(self.not_leader()),
        }
    }

    fn check_range(&self, range: &KeyRange) -> Result<(), Fault> {
        match &*self.state.read() {
            Some(state) if state.descriptor.range.covers(range) => Ok(()),
            _ => Err(Fault::WrongTablet),
        }
    }

    fn check_keys<'a>(&self, mut keys: impl Iterator<Item = &'a base::Key>) -> Result<(), Fault> {
        match &*self.state.read() {
            Some(state) if keys.all(|key| state.descriptor.range.contains(key)) => Ok(()),
            _ => Err(Fault::WrongTablet),
        }
    }

    fn check_schema(&self, uses: &[SchemaUse], at: Option<Scn>) -> Result<(), Fault> {
        let stale = self.state.read().as_ref().and_then(|state| state.stale(uses, at));
        stale.map_or(Ok(()), |table| Err(Error::SchemaChanged { table }.into()))
    }

    async fn propose(&self, term: u64, command: &Command) -> Result<Applied, Fault> {
        match self.group()?.propose(term, encode(command)).await {
            Ok(bytes) => Ok(decode(&bytes, "an applied command's answer")?),
            Err(consensus::Error::NotLeader { leader }) => {
                Err(Fault::NotLeader { leader: leader.filter(|leader| *leader != self.me()) })
            }
            Err(_) => Err(Fault::Lost),
        }
    }

    fn bump(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn transactions(&self, limit: usize) -> Result<Response, Fault> {
        let epoch = self.leading()?;
        let mut rows = self.with_lead(epoch, |lead| Ok(lead.undecided()))?;
        for row in self.store.meta_scan(&keyspace::space(keyspace::Space::Record, self.id)) {
            let (key, value) = row?;
            let record: machine::Record = decode(&value, "a commit record")?;
            if let Some(txn) = keyspace::last_u64(&key) {
                rows.push((TxnId(txn), TxnState::Ended(record.outcome)));
            }
        }
        for row in self.store.expiring_scan(&keyspace::outcomes(self.id)).take(limit) {
            let (key, value) = row?;
            if let Some(txn) = keyspace::last_u64(&key) {
                rows.push((TxnId(txn), TxnState::Ended(decode(&value, "an outcome")?)));
            }
        }
        Ok(Response::Transactions(rows))
    }
}

fn unexpected(applied: &Applied) -> Fault {
    Error::Internal { reason: format!("a command answered {applied:?}") }.into()
}

impl consensus::Machine for Tablet {
    fn takes_long(&self, command: &[u8]) -> bool {
        machine::takes_long(command)
    }

    fn apply(&self, entry: &Entry<'_>, batch: &mut Batch) -> Result<Bytes, storage::Error> {
        let mut state = self.state.write();
        match machine::apply(&self.store, self.id, &mut state, entry, batch) {
            Ok((applied, effect)) => {
                self.effects.lock().extend(effect);
                Ok(encode(&applied))
            }
            Err(error) => {
                // If this replica went on, it would differ from the others.
                self.env.halt(format!("tablet {} cannot apply its log: {error}", self.id));
                Err(storage::Error::Halted(error.to_string()))
            }
        }
    }

    fn applied(&self, position: Position) {
        self.applied_index.store(position.index, Ordering::Release);
        let effects = std::mem::take(&mut *self.effects.lock());
        for effect in effects {
            let Effect::Born { child, members } = effect;
            self.after_split();
            if let Some(home) = self.home.upgrade() {
                home.adopt(child, members);
            }
        }
    }

    fn snapshot_scope(&self) -> TabletRanges {
        let rows = self.range().unwrap_or_else(|| KeyRange::new(&b""[..], &b""[..]));
        let expiring = vec![keyspace::outcomes(self.id)];
        TabletRanges { rows, meta: keyspace::all(self.id), expiring }
    }

    /// Readers of the past must not see a state that is half old and half new.
    fn replacing(&self) {
        *self.closed.lock() = Closed::default();
        self.applied_index.store(0, Ordering::Release);
        *self.state.write() = None;
    }

    fn restored(&self) {
        match State::load(&self.store, self.id) {
            Ok(state) => {
                *self.state.write() = state;
                if let Some(home) = self.home.upgrade() {
                    home.routes_changed(self);
                }
            }
            Err(error) => self.env.halt(format!("tablet {} cannot be read: {error}", self.id)),
        }
    }

    fn role(&self, _: Role) {
        // The group's own start may report a role before `join`; `join` repeats it. The two may
        // come at once, so what counts is what is true now.
        let Some(group) = self.group.get() else { return };
        let _one = self.changing_role.lock();
        let role = group.role().borrow().clone();
        let same = |lead: &Lead| role == Role::Leader { term: lead.epoch.term };
        if self.lead.lock().as_ref().is_some_and(same) {
            return;
        }
        let lead = match role {
            Role::Leader { term } => {
                let epoch = self.new_epoch(term);
                match Lead::take_over(
                    &self.store,
                    self.id,
                    epoch,
                    self.env.now(),
                    self.set_limits(),
                ) {
                    Ok(lead) => Some(lead),
                    Err(error) => {
                        self.env.halt(format!("tablet {} cannot be led: {error}", self.id));
                        None
                    }
                }
            }
            Role::Follower { .. } => None,
        };
        if self.id == TabletId::ROOT {
            *self.allocator.lock() = lead.is_some().then(|| self.ceiling()).map(Allocator::new);
        }
        // The old leadership is dropped with its wakers, which ends every wait in it.
        let in_doubt = lead.as_ref().is_some_and(|lead| !lead.prepared.is_empty());
        *self.lead.lock() = lead;
        self.bump();
        if let Some(home) = self.home.upgrade() {
            home.routes_changed(self);
            if in_doubt {
                // Their coordinators may have died with the leader before.
                home.sweep_soon();
            }
        }
    }
}

impl Tablet {
    fn ceiling(&self) -> Scn {
        let read = self.store.meta_get(&keyspace::ceiling()).map_err(Error::from);
        let ceiling = read.and_then(|bytes| match bytes {
            Some(bytes) => decode(&bytes, "the SCN ceiling"),
            None => Ok(Scn::ZERO),
        });
        ceiling.unwrap_or_else(|error| {
            self.env.halt(format!("the SCN ceiling cannot be read: {error}"));
            Scn::MAX
        })
    }

    /// Hands out `n` SCNs. Root tablet's leader only.
    pub(crate) async fn draw(self: &Arc<Self>, n: u64) -> Result<crate::message::ScnGrant, Fault> {
        let epoch = self.leading()?;
        let mut changes = self.changed.subscribe();
        loop {
            changes.borrow_and_update();
            let (grant, wants) = match &mut *self.allocator.lock() {
                Some(allocator) => {
                    let current = allocator.current();
                    let first = allocator.take(n);
                    (
                        first.map(|first| crate::message::ScnGrant { first, current }),
                        allocator.wants(),
                    )
                }
                None => return Err(self.not_leader()),
            };
            if let Some(ceiling) = wants {
                let this = self.clone();
                self.env.spawn("SCN ceiling", async move {
                    let raised = this.propose(epoch.term, &Command::Ceiling { scn: ceiling }).await;
                    if raised.is_err() {
                        // A leadership that is being handed over refuses at once, as long as that
                        // takes: asking again and again would keep it from coming to an end.
                        this.env.sleep(RAISE_AGAIN).await;
                    }
                    if let Some(allocator) = &mut *this.allocator.lock() {
                        match raised {
                            Ok(_) if this.leading() == Ok(epoch) => allocator.raised(ceiling),
                            _ => allocator.not_raised(),
                        }
                    }
                    this.bump();
                });
            }
            if let Some(grant) = grant {
                match n {
                    // What is read at an old number is old, and no more than that.
                    0 => self.vouch(epoch.term).await?,
                    // A commit under a number smaller than a successor has handed out would change what
                    // was read: no clock is trusted with that.
                    _ => self.vouch_anew(epoch.term).await?,
                }
                return Ok(grant);
            }
            self.with_lead(epoch, |_| Ok(()))?;
            if changes.changed().await.is_err() {
                return Err(self.not_leader());
            }
        }
    }
}
