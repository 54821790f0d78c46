//! The groups of this node, and the messages they answer.
//!
//! Three guards stand here:
//!
//! * **A restarted process has forgotten its promises.** openraft restores the vote, but not the moment
//!   at which the leader was last heard from. Without this guard the process could vote for another node
//!   while the leader still counts on its lease. So for one maximal election time-out after a start
//!   (1,300 ms) this node neither campaigns nor votes, except in a hand-over, which the leader has
//!   authorised. The silence ends early when the leader's process is known to be dead (`promise`,
//!   `succession`) or another leader has been heard. A node whose last vote was for itself, or for a
//!   candidate that never spoke as leader, or that never voted, owes nothing and is not silent.
//! * **A restarted leader does not go on in its term** (`enable_leader_restore` is off): its lock
//!   table is empty, and a term names the life of one lock table.
//! * **A group whose log begins after the end of its state is not started**: this node acknowledged the
//!   entries in between, and cannot make them up. Example: the state is applied up to entry 80, and the
//!   log was purged up to 120.

use crate::applier::{Applier, Raft};
use crate::group::{self, Group};
use crate::log::GroupLog;
use crate::network::{Append, Campaign, Network};
use crate::promise::Deaths;
use crate::pulse::Pulse;
use crate::snapshot::{Arriving, Message, SnapshotData};
use crate::types::{LogId, SnapshotMeta, Types, Vote, decode, encode};
use crate::{Error, Machine};
use base::env::Instant;
use base::{Env, NodeId, TabletId};
use bytes::Bytes;
use openraft::SnapshotPolicy;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::raft::{
    AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use storage::{Store, TabletRanges};
use transport::{Answer, MessageKind, Transport};

#[derive(Clone, Debug)]
pub struct Config {
    /// The time between two heartbeats of a leader.
    pub heartbeat: Duration,
    /// For this long after it heard from a leader a voter refuses other candidates.
    pub election_min: Duration,
    /// After a silence between `election_min` and this a follower campaigns.
    pub election_max: Duration,
    /// How long a leader serves after a quorum was asked. Shorter than `election_min`, for which voters
    /// refuse other candidates, because clocks may run at different rates.
    pub lease: Duration,
    /// Applied entries kept in the log for members that are away; a member that misses more gets a
    /// snapshot. The log is not purged under members that are there.
    pub n_entries_kept: u64,
    /// How often each group's log is purged.
    pub purge_every: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            heartbeat: Duration::from_millis(200),
            election_min: Duration::from_millis(900),
            election_max: Duration::from_millis(1300),
            lease: Duration::from_millis(800),
            n_entries_kept: 32_768,
            purge_every: Duration::from_secs(5),
        }
    }
}

/// What the groups of this node have done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Snapshots delivered to other nodes, and installed here.
    pub n_snapshots_sent: u64,
    pub n_snapshots_installed: u64,
}

type Unknown = dyn Fn(TabletId, NodeId) + Send + Sync;

/// All Raft groups of this node. Cheap to clone.
#[derive(Clone)]
pub struct Groups {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) env: Env,
    pub(crate) me: NodeId,
    pub(crate) store: Store,
    pub(crate) transport: Transport,
    pub(crate) config: Config,
    pub(crate) groups: RwLock<HashMap<TabletId, Group>>,
    pub(crate) deaths: Deaths,
    /// The moment from which the pulses count.
    epoch: Instant,
    n_snapshots_sent: Arc<AtomicU64>,
    n_snapshots_installed: AtomicU64,
    arriving: Arriving,
    unknown: RwLock<Option<Arc<Unknown>>>,
    /// When the callback was last told of each unknown tablet.
    told: Mutex<HashMap<TabletId, Instant>>,
}

impl Inner {
    pub(crate) fn now_us(&self) -> u64 {
        group::since_us(self.epoch, self.env.now())
    }

    /// How long a leader counts as alive after it was heard from.
    pub(crate) fn loyalty_us(&self) -> u64 {
        self.config.election_min.as_micros() as u64
    }
}

/// A handle that does not keep the groups alive.
#[derive(Clone)]
pub(crate) struct WeakGroups(Weak<Inner>);

impl WeakGroups {
    pub(crate) fn upgrade(&self) -> Option<Groups> {
        self.0.upgrade().map(|inner| Groups { inner })
    }
}

/// The callback is told of an unknown tablet at most this often.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// A learner that lags by no more entries than this may become a voter.
const CAUGHT_UP: u64 = 256;

impl Groups {
    pub fn new(env: Env, store: Store, transport: Transport, config: Config) -> Groups {
        let inner = Arc::new(Inner {
            epoch: env.now(),
            n_snapshots_sent: Arc::default(),
            n_snapshots_installed: AtomicU64::new(0),
            env,
            me: transport.node(),
            store,
            transport,
            config,
            groups: RwLock::default(),
            deaths: Deaths::default(),
            arriving: Arriving::default(),
            unknown: RwLock::default(),
            told: Mutex::default(),
        });
        let groups = Groups { inner };
        groups.register();
        groups.run_beats();
        groups.run_purges();
        groups
    }

    pub(crate) fn downgrade(&self) -> WeakGroups {
        WeakGroups(Arc::downgrade(&self.inner))
    }

    pub fn stats(&self) -> Stats {
        Stats {
            n_snapshots_sent: self.inner.n_snapshots_sent.load(Ordering::Relaxed),
            n_snapshots_installed: self.inner.n_snapshots_installed.load(Ordering::Relaxed),
        }
    }

    /// Starts this node's replica of a group from what the store holds.
    pub async fn start(&self, tablet: TabletId, machine: Arc<dyn Machine>) -> Result<Group, Error> {
        let inner = &self.inner;
        let stopped = |reason: String| Error::Stopped { tablet, reason };
        let ms = |duration: Duration| duration.as_millis() as u64;
        let config = openraft::Config {
            cluster_name: format!("tablet {tablet}"),
            // `beat` keeps the time. openraft still uses how long a heartbeat may be on its way, and how
            // long a voter is loyal (`election_timeout_max`).
            enable_tick: false,
            heartbeat_interval: ms(inner.config.heartbeat * 2),
            election_timeout_min: ms(inner.config.election_min) - 1,
            election_timeout_max: ms(inner.config.election_min),
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            max_payload_entries: 512,
            replication_lag_threshold: CAUGHT_UP,
            enable_leader_restore: Some(false),
            enable_pre_vote: Some(true),
            ..openraft::Config::default()
        };
        let config = Arc::new(config.validate().map_err(|error| stopped(error.to_string()))?);
        let log = GroupLog::new(tablet, inner.store.log().clone());
        let promise = log.promise().map_err(|error| stopped(error.to_string()))?;
        let promises = log.promises();
        promises.find(promise);
        let purged = log.purged().map_err(|error| stopped(error.to_string()))?;
        let last_at_start = log.last().map_err(|error| stopped(error.to_string()))?;
        let (applied_term, terms) = tokio::sync::watch::channel(0);
        let applier = Applier::open(
            inner.env.clone(),
            tablet,
            inner.store.clone(),
            machine.clone(),
            applied_term,
        );
        let applier = applier.map_err(|error| stopped(error.to_string()))?;
        let next = |id: Option<LogId>| id.map_or(0, |id| id.index + 1);
        if promise.is_none() && applier.applied().is_some_and(|applied| applied.index > 0) {
            return Err(stopped(
                "its state is here and its log is gone; give this node an empty data directory and \
                 let it join anew"
                    .into(),
            ));
        }
        if next(purged) > next(applier.applied()) {
            return Err(stopped(format!(
                "its log here begins at entry {} and its state ends before entry {}; give this node \
                 an empty data directory and let it join anew",
                next(purged),
                next(applier.applied()),
            )));
        }
        let weak = self.downgrade();
        let deaths = move || weak.upgrade().map(|groups| groups.deaths_in(tablet));
        let network = Network {
            env: inner.env.clone(),
            transport: inner.transport.clone(),
            tablet,
            deaths: Arc::new(move || deaths().unwrap_or_default()),
            n_snapshots_sent: inner.n_snapshots_sent.clone(),
        };
        // openraft's tasks start on the runtime on which this runs: the one that votes, whoever called.
        let me = inner.me.0;
        let starting = async move { Raft::new(me, config, network, log, applier).await };
        let raft = inner.env.run("a group's start", starting).await;
        let raft = raft.ok_or_else(|| stopped("this node is ending".into()))?;
        let raft = raft.map_err(|fatal| stopped(fatal.to_string()))?;

        let now = inner.env.now();
        let owes = promise.is_some_and(|promise| promise.binds(inner.me));
        let leads_alone = {
            let server = raft.server_metrics();
            let server = server.borrow_watched();
            let mut voters = server.membership_config.membership().voter_ids();
            voters.next() == Some(inner.me.0) && voters.next().is_none()
        };
        let patience_us = self.patience_us();
        let now_us = group::since_us(inner.epoch, now);
        let campaign_at_us = if leads_alone && !owes { now_us } else { now_us + patience_us };
        let group = Group::new(group::Parts {
            env: inner.env.clone(),
            me: inner.me,
            tablet,
            raft,
            epoch: inner.epoch,
            lease: inner.config.lease,
            patience: inner.config.election_max,
            silent_until: owes.then(|| now + inner.config.election_max),
            last_at_start,
            promises,
            pulse: Pulse::new(campaign_at_us, patience_us),
        });
        group.run_roles(terms, machine);
        inner.groups.write().insert(tablet, group.clone());
        // A death may have been told before the group was there to hear of it.
        self.succeed(&group);
        Ok(group)
    }

    pub fn get(&self, tablet: TabletId) -> Option<Group> {
        self.inner.groups.read().get(&tablet).cloned()
    }

    pub fn all(&self) -> Vec<Group> {
        self.inner.groups.read().values().cloned().collect()
    }

    /// Stops the replica here. `wipe` also removes its log; the caller removes the state.
    pub async fn stop(&self, tablet: TabletId, wipe: bool) -> Result<(), Error> {
        let group = self.inner.groups.write().remove(&tablet).ok_or(Error::NoReplica(tablet))?;
        let ended = group.inner.raft.shutdown().await;
        ended.map_err(|error| Error::Stopped { tablet, reason: error.to_string() })?;
        if wipe {
            self.inner.store.log().remove(tablet, Box::new(|| {}));
        }
        Ok(())
    }

    /// Sets what is called when a message has come for a group that does not run here.
    pub fn on_unknown(&self, callback: impl Fn(TabletId, NodeId) + Send + Sync + 'static) {
        *self.inner.unknown.write() = Some(Arc::new(callback));
    }

    pub async fn shutdown(&self) {
        for group in self.all() {
            if let Err(error) = self.stop(group.tablet(), false).await {
                tracing::warn!(tablet = %group.tablet(), %error, "a group did not stop cleanly");
            }
        }
    }

    fn register(&self) {
        let weak = self.downgrade();
        self.inner.transport.handle(
            MessageKind::RaftAppend,
            move |from: NodeId, payload: Bytes| -> Answer {
                let groups = weak.upgrade();
                Box::pin(async move {
                    match (groups, decode::<Append>(&payload)) {
                        (Some(groups), Ok(Append::Entries(tablet, rpc))) => {
                            encode(&groups.append(from, tablet, rpc).await)
                        }
                        (Some(groups), Ok(Append::Quiet(named))) => {
                            encode(&groups.hear_quiet(from, &named))
                        }
                        (None, _) => encode(&Err::<(), _>("this node is stopping")),
                        (_, Err(error)) => {
                            encode(&Err::<(), _>(format!("a message does not decode: {error}")))
                        }
                    }
                })
            },
        );
        self.handle(MessageKind::RaftVote, |groups, group, campaign: Campaign| async move {
            let Campaign { request, deaths } = campaign;
            groups.hear_deaths(&group, &deaths).await?;
            if let Some(refusal) = group.refuses(&request) {
                return Ok(refusal);
            }
            let raft = &group.inner.raft;
            let answer = raft.vote(request.clone()).await.map_err(|error| error.to_string())?;
            if answer.vote_granted {
                group.inner.pulse.yielded(group.inner.now_us(), groups.hurried_us());
            } else if groups.overbids(&group, &request, &answer) {
                let env = group.inner.env.clone();
                let term = request.vote.leader_id.term;
                env.spawn("overbid", async move { group.overbid(term).await });
            }
            Ok(answer)
        });
        self.handle(MessageKind::RaftPreVote, |groups, group, campaign: Campaign| async move {
            let Campaign { request, deaths } = campaign;
            groups.hear_deaths(&group, &deaths).await?;
            if let Some(refusal) = group.refuses(&request) {
                return Ok(refusal);
            }
            let raft = &group.inner.raft;
            let answer = raft.pre_vote(request.clone()).await.map_err(|error| error.to_string())?;
            if groups.overbids(&group, &request, &answer) {
                let env = group.inner.env.clone();
                let term = request.vote.leader_id.term;
                env.spawn("overbid", async move { group.overbid(term).await });
            }
            Ok(answer)
        });
        self.handle(
            MessageKind::RaftTransferLeader,
            |_, group, rpc: TransferLeaderRequest<Types>| async move { group.take_over(rpc).await },
        );
        let weak = self.downgrade();
        self.inner.transport.handle(
            MessageKind::RaftSnapshot,
            move |from: NodeId, payload: Bytes| -> Answer {
                let groups = weak.upgrade();
                Box::pin(async move {
                    let answer = match groups {
                        Some(groups) => groups.snapshot_message(from, &payload).await,
                        None => Err("this node is stopping".into()),
                    };
                    encode(&answer)
                })
            },
        );
    }

    fn handle<Q, A, F>(
        &self,
        kind: MessageKind,
        work: impl Fn(Groups, Group, Q) -> F + Clone + Send + Sync + 'static,
    ) where
        Q: serde::de::DeserializeOwned + Send + 'static,
        A: Serialize + Send,
        F: Future<Output = Result<A, String>> + Send + 'static,
    {
        let weak = self.downgrade();
        self.inner.transport.handle(kind, move |from: NodeId, payload: Bytes| -> Answer {
            let (groups, work) = (weak.upgrade(), work.clone());
            Box::pin(async move {
                let answer: Result<A, String> = match (groups, decode::<(TabletId, Q)>(&payload)) {
                    (None, _) => Err("this node is stopping".into()),
                    (_, Err(error)) => Err(format!("a message does not decode: {error}")),
                    (Some(groups), Ok((tablet, request))) => match groups.get(tablet) {
                        Some(group) => work(groups, group, request).await,
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

    async fn append(
        &self,
        from: NodeId,
        tablet: TabletId,
        rpc: openraft::raft::AppendEntriesRequest<Types>,
    ) -> Result<AppendEntriesResponse<Types>, String> {
        let Some(group) = self.get(tablet) else {
            self.tell_unknown(tablet, from);
            return Err(format!("tablet {tablet} has no replica here"));
        };
        let inner = &group.inner;
        let is_first = self.hear_leader(&group, &rpc.vote, from);
        let is_hurried = inner.pulse.is_hurried(self.inner.now_us());
        // Noted on arrival: while a snapshot is being installed, the answer takes its time.
        inner.pulse.heard(rpc.vote.leader_id.term, self.inner.now_us(), self.inner.loyalty_us());
        let answer = inner.raft.append_entries(rpc).await.map_err(|error| error.to_string());
        if is_first || is_hurried {
            // The last message of a dead leader may have come after the report of its death.
            self.succeed(&group);
        }
        answer
    }

    /// Before a leader's message is looked at: see [`crate::promise`].
    fn hear_leader(&self, group: &Group, vote: &Vote, from: NodeId) -> bool {
        group.inner.promises.hear(vote, from, || self.inner.transport.boot_of(from))
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
                arriving.begin(tablet, from, transfer, &self.inner.store)?;
                Ok(None)
            }
            Message::Chunk { tablet, transfer, chunk } => {
                arriving.chunk(tablet, from, transfer, chunk).await?;
                Ok(None)
            }
            Message::End { tablet, transfer, vote, meta, ranges } => {
                let staging = arriving.end(tablet, from, transfer)?;
                if let Some(group) = self.get(tablet) {
                    self.hear_leader(&group, &vote, from);
                }
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
        let group =
            self.get(tablet).ok_or_else(|| format!("tablet {tablet} has no replica here"))?;
        let snapshot = SnapshotOf::<Types, SnapshotData> {
            meta,
            snapshot: SnapshotData::Incoming { staging, ranges },
        };
        let installed = group.inner.raft.install_full_snapshot(vote, snapshot).await;
        self.inner.n_snapshots_installed.fetch_add(1, Ordering::Relaxed);
        installed.map_err(|fatal| fatal.to_string())
    }
}

impl Group {
    /// The refusal of a node that may have forgotten a promise, or that knows its leader to be alive
    /// though quiet.
    fn refuses(&self, request: &VoteRequest<Types>) -> Option<VoteResponse<Types>> {
        let bound = self.inner.is_silent() || self.inner.pulse.is_loyal(self.inner.now_us());
        if request.leadership_transfer || !bound {
            return None;
        }
        let vote = self.inner.raft.metrics().borrow_watched().vote;
        let last = self.inner.raft.data_metrics().borrow_watched().last_log;
        Some(VoteResponse::new(vote, last, false))
    }
}
