//! openraft's state machine: committed entries in, batches for the store out.

use crate::snapshot::SnapshotData;
use crate::types::{LeaderId, LogId, Mark, Membership, SnapshotMeta, Types, decode, encode};
use crate::{Entry, Machine, Position};
use base::env::Runtime;
use base::{Env, NodeId, TabletId};
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use openraft::EntryPayload;
use openraft::entry::RaftEntry as _;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::type_config::alias::{SnapshotOf, StoredMembershipOf};
use openraft::vote::RaftLeaderId as _;
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use storage::{Batch, Store};
use tokio::sync::watch;

pub type Raft = openraft::Raft<Types, Applier>;

/// The applied mark from which a new group starts, the same on every replica: position zero,
/// these members. The state that the group begins with is in no entry of its log, so a replica that
/// joins later is filled by a snapshot.
pub fn seed(batch: &mut Batch, child: TabletId, members: &[NodeId]) {
    let voters = members.iter().map(|node| node.0).collect();
    let id = LogId::new(LeaderId { term: 0, voted_for: 0 }.to_committed(), 0);
    let membership = openraft::Membership::new_with_defaults(vec![voters], []);
    let mark = Mark { applied: Some(id), membership: Membership::new(Some(id), membership) };
    batch.applied(child, 0, encode(&mark));
}

pub struct Applier {
    env: Env,
    tablet: TabletId,
    store: Store,
    log: crate::log::GroupLog,
    machine: Arc<dyn Machine>,
    /// One entry after the other. The lock is there because entries that take long are applied by another runtime.
    work: Arc<Mutex<Work>>,
}

/// What an entry is applied with.
struct Work {
    tablet: TabletId,
    store: Store,
    machine: Arc<dyn Machine>,
    mark: Mark,
    members: Vec<NodeId>,
    /// The term of the newest applied entry.
    applied_term: watch::Sender<u64>,
}

fn term_of(id: &LogId) -> u64 {
    id.committed_leader_id().term
}

impl Applier {
    pub fn open(
        env: Env,
        tablet: TabletId,
        store: Store,
        machine: Arc<dyn Machine>,
        applied_term: watch::Sender<u64>,
    ) -> io::Result<Applier> {
        let mark = match store.mark(tablet).map_err(io::Error::other)? {
            Some(bytes) => decode(&bytes)?,
            None => Mark::default(),
        };
        let log = crate::log::GroupLog::new(tablet, store.log().clone());
        let mut work = Work {
            tablet,
            store: store.clone(),
            machine: machine.clone(),
            mark,
            members: Vec::new(),
            applied_term,
        };
        work.learn_members();
        Ok(Applier { env, tablet, store, log, machine, work: Arc::new(Mutex::new(work)) })
    }

    pub fn applied(&self) -> Option<LogId> {
        self.work.lock().mark.applied
    }

    /// A large entry would keep a thread that others' votes need.
    async fn apply_entry(&self, entry: crate::types::RaftEntry) -> Result<Bytes, storage::Error> {
        let takes_long = match &entry.payload {
            EntryPayload::Normal(command) => self.machine.takes_long(&command.0),
            EntryPayload::Blank | EntryPayload::Membership(_) => false,
        };
        if !takes_long {
            return self.work.lock().apply_one(&entry);
        }
        let work = self.work.clone();
        let applied = async move { work.lock().apply_one(&entry) };
        let applied = self.env.on(Runtime::Serve).run("apply", applied).await;
        // None: this process is ending.
        applied.unwrap_or_else(|| Err(storage::Error::Halted("the process is ending".into())))
    }

    fn halt(&self, error: &dyn std::fmt::Display) -> io::Error {
        self.env.halt(format!("tablet {}: {error}", self.tablet));
        io::Error::other(error.to_string())
    }
}

impl Work {
    fn learn_members(&mut self) {
        let membership = self.mark.membership.membership();
        let voters = membership.voter_ids().map(NodeId);
        self.members = voters.chain(membership.learner_ids().map(NodeId)).collect();
    }

    fn apply_one(&mut self, entry: &crate::types::RaftEntry) -> Result<Bytes, storage::Error> {
        let id = entry.log_id();
        let position = Position { term: term_of(&id), index: id.index };
        self.mark.applied = Some(id);
        if let EntryPayload::Membership(membership) = &entry.payload {
            self.mark.membership = StoredMembershipOf::<Types>::new(Some(id), membership.clone());
            self.learn_members();
        }
        let mut batch = Batch::default();
        // Before the machine's effects: expiring keys belong to the batch's first mark, and a
        // command may seed the mark of another tablet.
        batch.applied(self.tablet, position.index, encode(&self.mark));
        let answer = match &entry.payload {
            EntryPayload::Blank | EntryPayload::Membership(_) => Bytes::new(),
            // The entry of [`crate::Group::nudge`].
            EntryPayload::Normal(command) if command.0.is_empty() => Bytes::new(),
            EntryPayload::Normal(command) => {
                let entry = Entry { position, command: &command.0, members: &self.members };
                self.machine.apply(&entry, &mut batch)?
            }
        };
        self.store.apply(batch)?;
        self.machine.applied(position);
        self.applied_term
            .send_if_modified(|term| std::mem::replace(term, position.term) != position.term);
        Ok(answer)
    }
}

impl RaftStateMachine<Types> for Applier {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembershipOf<Types>)> {
        let work = self.work.lock();
        Ok((work.mark.applied, work.mark.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + Send,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            // The disk may be behind. Waiting for it must not hold up a thread that other tasks need.
            if !self.store.has_room() {
                let store = self.store.clone();
                let waited = tokio::task::spawn_blocking(move || store.wait_for_room()).await;
                waited.map_err(io::Error::other)?.map_err(|error| self.halt(&error))?;
            }
            let answer = self.apply_entry(entry).await.map_err(|error| self.halt(&error))?;
            if let Some(responder) = responder {
                responder.send(answer);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let mark = self.work.lock().mark.clone();
        Builder { tablet: self.tablet, store: self.store.clone(), log: self.log.clone(), mark }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> io::Result<()> {
        let SnapshotData::Incoming { staging, ranges } = snapshot else {
            return Err(io::Error::other("only a snapshot that arrived can be installed"));
        };
        self.machine.replacing();
        let (store, tablet) = (self.store.clone(), self.tablet);
        let installed = tokio::task::spawn_blocking(move || store.install(tablet, staging, ranges));
        let mark = match installed.await {
            Ok(Ok(Some(mark))) => decode(&mark)?,
            Ok(Ok(None)) => return Err(self.halt(&"an installed snapshot has no mark")),
            Ok(Err(error)) => return Err(self.halt(&error)),
            Err(error) => return Err(self.halt(&error)),
        };
        let mut work = self.work.lock();
        work.mark = mark;
        debug_assert_eq!(work.mark.applied, meta.last_log_id);
        work.learn_members();
        self.machine.restored();
        if let Some(applied) = &work.mark.applied {
            work.applied_term.send_replace(term_of(applied));
        }
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<SnapshotOf<Types, SnapshotData>>> {
        let mark = self.work.lock().mark.clone();
        if mark.applied.is_none() {
            return Ok(None);
        }
        let ranges = self.machine.snapshot_scope();
        let export = self.store.export(self.tablet, &ranges).map_err(|error| self.halt(&error))?;
        let meta = SnapshotMeta { last_log_id: mark.applied, last_membership: mark.membership };
        Ok(Some(SnapshotOf::<Types, SnapshotData> {
            meta,
            snapshot: SnapshotData::Outgoing { export: Box::new(export), ranges },
        }))
    }
}

/// "Builds" what openraft calls a snapshot: the permission to purge the log up to the index that is
/// durable in the trees. No state is copied; a follower that needs a snapshot is sent the live state.
pub struct Builder {
    tablet: TabletId,
    store: Store,
    log: crate::log::GroupLog,
    mark: Mark,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Types, SnapshotData>> {
        let durable = self.store.durable_index(self.tablet);
        let known = match durable {
            Some(index) => self.log.id_at(index)?,
            None => None,
        };
        // If the members have not changed since the durable index, they are those of the durable state.
        // Otherwise, and where nothing is durable yet, a flush makes the applied mark itself durable.
        let unchanged = |id: &LogId| {
            self.mark.membership.log_id().as_ref().is_none_or(|changed| changed.index <= id.index)
        };
        let last_log_id = match known.filter(unchanged) {
            Some(id) => Some(id),
            None => {
                let store = self.store.clone();
                let flushed = tokio::task::spawn_blocking(move || store.flush()).await;
                flushed.map_err(io::Error::other)?.map_err(io::Error::other)?;
                self.mark.applied
            }
        };
        Ok(SnapshotOf::<Types, SnapshotData> {
            meta: SnapshotMeta { last_log_id, last_membership: self.mark.membership.clone() },
            snapshot: SnapshotData::Permission,
        })
    }
}
