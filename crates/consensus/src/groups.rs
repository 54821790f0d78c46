//! The groups of this node, and the messages they answer.
//!
//! Two guards stand here:
//!
//! * **A restarted process has forgotten its leases.** openraft restores a vote, but not when the
//!   leader it was given to was last heard from; it could vote for another while that leader
//!   still believes in its lease. For one maximal election time-out after a start this node
//!   neither campaigns nor votes, except in a hand-over, which the leader or a report of its
//!   death has authorised. A group that never voted has nothing to forget.
//! * **A restarted leader does not go on in its term** (`enable_leader_restore` is off): its lock
//!   table is empty, and a term names one lock table's life.

use crate::applier::Applier;
use crate::group::Group;
use crate::log::GroupLog;
use crate::network::Network;
use crate::snapshot::{Arriving, Message, SnapshotData};
use crate::types::{Raft, SnapshotMeta, Types, Vote, decode, encode};
use crate::{Error, Machine};
use base::env::Instant;
use base::{Env, NodeId, TabletId};
use bytes::Bytes;
use openraft::SnapshotPolicy;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::raft::{AppendEntriesRequest, SnapshotResponse, TransferLeaderRequest, VoteRequest, VoteResponse};
use openraft::type_config::alias::SnapshotOf;
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;
use storage::{Store, TabletRanges};
use transport::{Answer, MessageKind, Transport};

#[derive(Clone, Debug)]
pub struct Config {
    pub heartbeat: Duration,
    pub election_min: Duration,
    pub election_max: Duration,
    /// Shorter than `election_max`, for which voters refuse others, by the clocks' drift.
    pub lease: Duration,
    /// Applied entries kept in the log for followers that lag; beyond, they get a snapshot.
    pub n_entries_kept: u64,
    /// How often the log is looked at for what can be purged.
    pub purge_every: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            heartbeat: Duration::from_millis(200),
            election_min: Duration::from_millis(800),
            election_max: Duration::from_millis(1600),
            lease: Duration::from_millis(1400),
            n_entries_kept: 4096,
            purge_every: Duration::from_secs(5),
        }
    }
}

type Unknown = dyn Fn(TabletId, NodeId) + Send + Sync;

/// All Raft groups of this node. Cheap to clone.
#[derive(Clone)]
pub struct Groups {
    inner: Arc<Inner>,
}

struct Inner {
    env: Env,
    me: NodeId,
    store: Store,
    transport: Transport,
    config: Config,
    groups: RwLock<HashMap<TabletId, Group>>,
    arriving: Arriving,
    unknown: RwLock<Option<Arc<Unknown>>>,
    /// When each unknown tablet was last told about.
    told: Mutex<HashMap<TabletId, Instant>>,
}

/// An unknown tablet is told about this often.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// Survivors of a dead leader campaign one after the other, this far apart.
const STAGGER: Duration = Duration::from_millis(60);

impl Groups {
    pub fn new(env: Env, store: Store, transport: Transport, config: Config) -> Groups {
        let inner = Arc::new(Inner {
            env,
            me: transport.node(),
            store,
            transport,
            config,
            groups: RwLock::default(),
            arriving: Arriving::default(),
            unknown: RwLock::default(),
            told: Mutex::default(),
        });
        let groups = Groups { inner };
        groups.register();
        groups.run_purges();
        groups
    }

    /// Starts this node's replica of a group from what the store holds.
    pub async fn start(&self, tablet: TabletId, machine: Arc<dyn Machine>) -> Result<Group, Error> {
        let inner = &self.inner;
        let stopped = |reason: String| Error::Stopped { tablet, reason };
        let ms = |duration: Duration| duration.as_millis() as u64;
        let config = openraft::Config {
            cluster_name: format!("tablet {tablet}"),
            heartbeat_interval: ms(inner.config.heartbeat),
            election_timeout_min: ms(inner.config.election_min),
            election_timeout_max: ms(inner.config.election_max),
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            max_payload_entries: 512,
            replication_lag_threshold: inner.config.n_entries_kept,
            enable_leader_restore: Some(false),
            enable_pre_vote: Some(true),
            ..openraft::Config::default()
        };
        let config = Arc::new(config.validate().map_err(|error| stopped(error.to_string()))?);
        let log = GroupLog::new(tablet, inner.store.log().clone());
        let voted = log.vote().map_err(|error| stopped(error.to_string()))?.is_some();
        let (applied_term, terms) = tokio::sync::watch::channel(0);
        let applier =
            Applier::open(inner.env.clone(), tablet, inner.store.clone(), machine.clone(), applied_term);
        let applier = applier.map_err(|error| stopped(error.to_string()))?;
        let network =
            Network { env: inner.env.clone(), transport: inner.transport.clone(), tablet };
        let raft = Raft::new(inner.me.0, config, network, log, applier).await;
        let raft = raft.map_err(|fatal| stopped(fatal.to_string()))?;
        let silent_until = voted.then(|| inner.env.now() + inner.config.election_max);
        if let Some(until) = silent_until {
            raft.runtime_config().elect(false);
            let (raft, env) = (raft.clone(), inner.env.clone());
            inner.env.spawn("silence after a start", async move {
                env.sleep_until(until).await;
                raft.runtime_config().elect(true);
            });
        }
        let env = inner.env.clone();
        let group = Group::new(env, inner.me, tablet, raft, inner.config.lease, silent_until);
        group.run_roles(terms, machine);
        inner.groups.write().insert(tablet, group.clone());
        Ok(group)
    }

    /// A brand-new group's first act, on one of its members. Nothing happens if it has acted.
    pub async fn initialize(&self, tablet: TabletId, members: &BTreeSet<NodeId>) -> Result<(), Error> {
        let group = self.get(tablet).ok_or(Error::NoReplica(tablet))?;
        let stopped = |reason: String| Error::Stopped { tablet, reason };
        let raft = &group.inner.raft;
        if raft.is_initialized().await.map_err(|fatal| stopped(fatal.to_string()))? {
            return Ok(());
        }
        let members: BTreeSet<u64> = members.iter().map(|node| node.0).collect();
        raft.initialize(members).await.map_err(|error| stopped(error.to_string()))
    }

    pub fn get(&self, tablet: TabletId) -> Option<Group> {
        self.inner.groups.read().get(&tablet).cloned()
    }

    pub fn all(&self) -> Vec<Group> {
        self.inner.groups.read().values().cloned().collect()
    }

    /// Stops the replica here; `wipe` also removes its log, the state is the caller's to remove.
    pub async fn stop(&self, tablet: TabletId, wipe: bool) -> Result<(), Error> {
        let group = self.inner.groups.write().remove(&tablet).ok_or(Error::NoReplica(tablet))?;
        let ended = group.inner.raft.shutdown().await;
        ended.map_err(|error| Error::Stopped { tablet, reason: error.to_string() })?;
        if wipe {
            self.inner.store.log().remove(tablet, Box::new(|| {}));
        }
        Ok(())
    }

    /// Calls back when a message came for a group that does not run here.
    pub fn on_unknown(&self, callback: impl Fn(TabletId, NodeId) + Send + Sync + 'static) {
        *self.inner.unknown.write() = Some(Arc::new(callback));
    }

    /// A fact told by the dead process's supervisor: the groups it led elect at once. The
    /// survivor with the lowest id campaigns first, the others a little later if it failed.
    pub fn report_death(&self, node: NodeId) {
        for group in self.all() {
            let status = group.status();
            if status.leader != Some(node) {
                continue;
            }
            let mut survivors = status.voters;
            survivors.retain(|voter| *voter != node);
            survivors.sort_unstable();
            let Some(rank) = survivors.iter().position(|voter| *voter == self.inner.me) else { continue };
            let env = self.inner.env.clone();
            self.inner.env.spawn("succession", async move {
                env.sleep(STAGGER * rank as u32).await;
                group.succeed(node).await;
            });
        }
    }

    pub async fn shutdown(&self) {
        for group in self.all() {
            if let Err(error) = self.stop(group.tablet(), false).await {
                tracing::warn!(tablet = %group.tablet(), %error, "a group did not stop cleanly");
            }
        }
    }

    fn register(&self) {
        self.handle(MessageKind::RaftAppend, |group, rpc: AppendEntriesRequest<Types>| async move {
            group.inner.raft.append_entries(rpc).await.map_err(|error| error.to_string())
        });
        self.handle(MessageKind::RaftVote, |group, rpc: VoteRequest<Types>| async move {
            if let Some(refusal) = group.refuses(&rpc) {
                return Ok(refusal);
            }
            group.inner.raft.vote(rpc).await.map_err(|error| error.to_string())
        });
        self.handle(MessageKind::RaftPreVote, |group, rpc: VoteRequest<Types>| async move {
            if let Some(refusal) = group.refuses(&rpc) {
                return Ok(refusal);
            }
            group.inner.raft.pre_vote(rpc).await.map_err(|error| error.to_string())
        });
        self.handle(MessageKind::RaftTransferLeader, |group, rpc: TransferLeaderRequest<Types>| async move {
            group.inner.raft.handle_transfer_leader(rpc).await.map_err(|fatal| fatal.to_string())
        });
        let weak = Arc::downgrade(&self.inner);
        self.inner.transport.handle(MessageKind::RaftSnapshot, move |from: NodeId, payload: Bytes| -> Answer {
            let weak = weak.clone();
            Box::pin(async move {
                let answer = match upgrade(&weak) {
                    Some(groups) => groups.snapshot_message(from, &payload).await,
                    None => Err("this node is stopping".into()),
                };
                encode(&answer)
            })
        });
    }

    fn handle<Q, A, F>(
        &self,
        kind: MessageKind,
        work: impl Fn(Group, Q) -> F + Clone + Send + Sync + 'static,
    ) where
        Q: serde::de::DeserializeOwned + Send + 'static,
        A: Serialize + Send,
        F: Future<Output = Result<A, String>> + Send + 'static,
    {
        let weak = Arc::downgrade(&self.inner);
        self.inner.transport.handle(kind, move |from: NodeId, payload: Bytes| -> Answer {
            let (weak, work) = (weak.clone(), work.clone());
            Box::pin(async move {
                let answer: Result<A, String> = match (upgrade(&weak), decode::<(TabletId, Q)>(&payload)) {
                    (None, _) => Err("this node is stopping".into()),
                    (_, Err(error)) => Err(format!("a message does not decode: {error}")),
                    (Some(groups), Ok((tablet, request))) => match groups.get(tablet) {
                        Some(group) => work(group, request).await,
                        None => {
                            groups.tell_unknown(tablet, from);
                            Err(format!("tablet {tablet} has no replica here"))
                        }
                    },
                };
                encode(&answer)
            })
        });
    }

    fn tell_unknown(&self, tablet: TabletId, from: NodeId) {
        let now = self.inner.env.now();
        {
            let mut told = self.inner.told.lock();
            if told.get(&tablet).is_some_and(|at| now < *at + TELL_EVERY) {
                return;
            }
            told.insert(tablet, now);
        }
        let callback = self.inner.unknown.read().clone();
        if let Some(callback) = callback {
            callback(tablet, from);
        }
    }

    async fn snapshot_message(
        &self,
        from: NodeId,
        payload: &[u8],
    ) -> Result<Option<SnapshotResponse<Types>>, String> {
        let message: Message = decode(payload).map_err(|error| error.to_string())?;
        let arriving = &self.inner.arriving;
        match message {
            Message::Begin { tablet, transfer } => {
                if self.get(tablet).is_none() {
                    self.tell_unknown(tablet, from);
                    return Err(format!("tablet {tablet} has no replica here"));
                }
                arriving.begin(from, transfer, tablet, &self.inner.store)?;
                Ok(None)
            }
            Message::Chunk { transfer, chunk } => {
                arriving.chunk(from, transfer, &chunk)?;
                Ok(None)
            }
            Message::End { tablet, transfer, vote, meta, ranges } => {
                let staging = arriving.end(from, transfer)?;
                self.install(tablet, staging, vote, meta, ranges).await.map(Some)
            }
        }
    }

    async fn install(
        &self,
        tablet: TabletId,
        staging: storage::Staging,
        vote: Vote,
        meta: SnapshotMeta,
        ranges: TabletRanges,
    ) -> Result<SnapshotResponse<Types>, String> {
        let group = self.get(tablet).ok_or_else(|| format!("tablet {tablet} has no replica here"))?;
        let snapshot = SnapshotOf::<Types, SnapshotData> {
            meta,
            snapshot: SnapshotData::Incoming { staging, ranges },
        };
        group.inner.raft.install_full_snapshot(vote, snapshot).await.map_err(|fatal| fatal.to_string())
    }

    /// Purges each log up to what is durable in the trees, less what lagging followers may need.
    fn run_purges(&self) {
        let weak = Arc::downgrade(&self.inner);
        let env = self.inner.env.clone();
        let every = self.inner.config.purge_every;
        self.inner.env.spawn("log purge", async move {
            loop {
                env.sleep(every).await;
                let Some(groups) = upgrade(&weak) else { return };
                groups.purge().await;
            }
        });
    }

    async fn purge(&self) {
        let hoarders = self.inner.store.log().hoarders();
        for group in self.all() {
            let tablet = group.tablet();
            let status = group.status();
            let kept = if hoarders.contains(&tablet) { 16 } else { self.inner.config.n_entries_kept };
            let durable = self.inner.store.durable_index(tablet).unwrap_or(0);
            let upto = durable.saturating_sub(kept);
            // Rarely enough that purging costs nothing, often enough that logs stay short.
            if upto < status.purged + kept.div_ceil(4) {
                continue;
            }
            let raft = &group.inner.raft;
            let purged = async {
                raft.trigger().snapshot().await?;
                raft.trigger().purge_log(upto).await
            };
            if let Err(fatal) = purged.await {
                tracing::warn!(%tablet, %fatal, "a log cannot be purged");
            }
        }
    }
}

fn upgrade(weak: &Weak<Inner>) -> Option<Groups> {
    weak.upgrade().map(|inner| Groups { inner })
}

impl Group {
    /// The answer of a process that may have forgotten a lease it granted.
    fn refuses(&self, request: &VoteRequest<Types>) -> Option<VoteResponse<Types>> {
        let until = self.inner.silent_until?;
        if request.leadership_transfer || self.inner.env.now() >= until {
            return None;
        }
        let vote = self.inner.raft.metrics().borrow_watched().vote;
        let last = self.inner.raft.data_metrics().borrow_watched().last_log;
        Some(VoteResponse::new(vote, last, false))
    }
}
