//! One group: its role, its proposals, its lease, its members.

use crate::applier::Raft;
use crate::lease::Lease;
use crate::promise::Promises;
use crate::pulse::{Pulse, Standing};
use crate::types::{Command, LogId, Types};
use crate::{Error, Machine, Role};
use base::env::Instant;
use base::{Env, NodeId, TabletId};
use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, Fatal};
use openraft::impls::ProgressResponder;
use openraft::type_config::TypeConfigExt as _;
use openraft::type_config::alias::InstantOf;
use openraft::{ChangeMembers, RaftMetrics, ReadPolicy, ServerState};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// A group as this replica sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Named only while it is heard from. A node that was left out of the group is told nothing more,
    /// not even that, and would otherwise name the leader of that day for ever.
    pub leader: Option<NodeId>,
    pub term: u64,
    pub last_log: u64,
    pub applied: u64,
    pub purged: u64,
    pub voters: Vec<NodeId>,
    pub learners: Vec<NodeId>,
    /// A change of members is under way, or a leader that is gone left it half done: there are learners,
    /// or the voters before and after the change count together.
    pub is_changing: bool,
    /// The voters that count whichever configuration decides: those that are in all of them. Only this
    /// node while the newest configuration may still be lost.
    pub counting: Vec<NodeId>,
}

/// Handle to a group's replica on this node. Cheap to clone.
#[derive(Clone)]
pub struct Group {
    pub(crate) inner: Arc<Inner>,
}

/// What a [`Group`] is made from.
pub(crate) struct Parts {
    pub env: Env,
    pub me: NodeId,
    pub tablet: TabletId,
    pub raft: Raft,
    /// The moment from which the pulse counts.
    pub epoch: Instant,
    pub lease: Duration,
    /// After this much waiting for an answer a proposer looks whether the answer can still come.
    pub patience: Duration,
    /// Until then this process may be bound by promises that it forgot when it last ended.
    pub silent_until: Option<Instant>,
    /// The end of the log that this process found on disk.
    pub last_at_start: Option<LogId>,
    pub promises: Arc<Promises>,
    pub pulse: Pulse,
}

pub(crate) struct Inner {
    pub(crate) env: Env,
    pub(crate) me: NodeId,
    pub(crate) tablet: TabletId,
    pub(crate) raft: Raft,
    pub(crate) role: watch::Sender<Role>,
    pub(crate) pulse: Pulse,
    pub(crate) last_at_start: Option<LogId>,
    pub(crate) overbid_until_us: AtomicU64,
    pub(crate) promises: Arc<Promises>,
    lease: Lease,
    /// The term in which leadership is being handed over: nothing new is proposed in it.
    handing_over: AtomicU64,
    epoch: Instant,
    lease_max: Duration,
    patience: Duration,
    silent_until: Option<Instant>,
    /// The promise that it found on disk when it started no longer binds it.
    is_freed: AtomicBool,
    /// Rounds of questions to a quorum that have begun.
    n_rounds: AtomicU64,
    last_round: tokio::sync::Mutex<Round>,
}

/// A quorum was asked whether this replica leads in `term`.
#[derive(Clone, Copy, Default)]
struct Round {
    number: u64,
    term: u64,
    confirmed: bool,
}

/// How often the leader looks whether a successor has caught up.
const LOOK: Duration = Duration::from_millis(2);
/// The same for a newcomer, which takes longer the larger the replica is.
const LOOK_FOR_CATCHING_UP: Duration = Duration::from_millis(20);
/// After this long a successor that does not react is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How long a quorum may take to confirm that this node still leads.
const CONFIRM: Duration = Duration::from_secs(1);
/// How long a new member may take to catch up before it votes.
const CATCH_UP: Duration = Duration::from_secs(600);

pub(crate) fn since_us(epoch: Instant, at: Instant) -> u64 {
    at.saturating_duration_since(epoch).as_micros() as u64
}

/// How long ago `at` was, by the clock that openraft reads too.
pub(crate) fn age(at: InstantOf<Types>) -> Duration {
    Types::now() - at
}

impl Inner {
    pub(crate) fn now_us(&self) -> u64 {
        since_us(self.epoch, self.env.now())
    }

    /// Whether this process may have forgotten a promise.
    pub(crate) fn is_silent(&self) -> bool {
        self.silent_until
            .is_some_and(|until| !self.is_freed.load(Ordering::Acquire) && self.env.now() < until)
    }

    /// The promise that this process found on disk when it started no longer binds it.
    pub(crate) fn end_silence(&self) {
        self.is_freed.store(true, Ordering::Release);
    }
}

impl Group {
    pub(crate) fn new(parts: Parts) -> Group {
        let Parts {
            env,
            me,
            tablet,
            raft,
            epoch,
            lease,
            patience,
            silent_until,
            last_at_start,
            promises,
            pulse,
        } = parts;
        Group {
            inner: Arc::new(Inner {
                env,
                me,
                tablet,
                raft,
                role: watch::Sender::new(Role::Follower { term: 0, leader: None }),
                pulse,
                last_at_start,
                overbid_until_us: AtomicU64::new(0),
                promises,
                lease: Lease::default(),
                handing_over: AtomicU64::new(0),
                epoch,
                lease_max: lease,
                patience,
                silent_until,
                is_freed: AtomicBool::new(false),
                n_rounds: AtomicU64::new(0),
                last_round: tokio::sync::Mutex::default(),
            }),
        }
    }

    pub fn tablet(&self) -> TabletId {
        self.inner.tablet
    }

    pub fn role(&self) -> watch::Receiver<Role> {
        self.inner.role.subscribe()
    }

    /// Whether this node leads the group and serves in it.
    pub fn is_led_here(&self) -> bool {
        matches!(*self.inner.role.borrow(), Role::Leader { .. })
    }

    fn leads(&self, term: u64) -> bool {
        *self.inner.role.borrow() == (Role::Leader { term })
    }

    /// Proposes as leader of `term`; resolves with [`Machine::apply`]'s answer once the entry is applied here.
    ///
    /// [`Error::NotLeader`]: certainly not proposed. [`Error::Lost`]: the entry may have been committed, or
    /// may be yet; told at the latest when the leadership has been unsure for an election time-out.
    pub async fn propose(&self, term: u64, command: Bytes) -> Result<Bytes, Error> {
        let not_leader = |leader: Option<u64>| Error::NotLeader { leader: leader.map(NodeId) };
        match *self.inner.role.borrow() {
            Role::Leader { term: own } if own == term => {}
            Role::Leader { .. } => return Err(not_leader(None)),
            Role::Follower { leader, .. } => return Err(Error::NotLeader { leader }),
        }
        if self.inner.handing_over.load(Ordering::Acquire) == term {
            return Err(not_leader(None));
        }
        self.inner.pulse.touch(self.inner.now_us());
        // openraft refuses proposals without a lease, and a quiet group has none.
        if !self.lease(term) && !self.confirm(term).await {
            return Err(not_leader(None));
        }
        let (responder, answer) = ProgressResponder::complete_only();
        let write = self.inner.raft.write(Command(command)).with_leader(term).responder(responder);
        if let Err(fatal) = write.await {
            return Err(self.stopped(&fatal));
        }
        let mut answer = std::pin::pin!(answer);
        let answered = loop {
            match self.inner.env.timeout(self.inner.patience, &mut answer).await {
                Some(answered) => break answered,
                None if self.lease(term) => {}
                None => return Err(Error::Lost),
            }
        };
        match answered {
            Ok(Ok(response)) => Ok(response.data),
            Ok(Err(ClientWriteError::ForwardToLeader(to))) => Err(not_leader(to.leader_id)),
            Ok(Err(_)) | Err(_) => Err(Error::Lost),
        }
    }

    fn stopped(&self, reason: &dyn std::fmt::Display) -> Error {
        Error::Stopped { tablet: self.inner.tablet, reason: reason.to_string() }
    }

    /// True if this replica surely led in `term` at some moment after the call began. Call it after
    /// reading local state; it costs a few atomic loads. A voter that has heard from the leader refuses
    /// other candidates for 900 ms; the lease lasts 800 ms from when the leader asked. The difference
    /// is for clocks that run at different rates.
    pub fn lease(&self, term: u64) -> bool {
        let now = self.inner.env.now();
        let now_us = since_us(self.inner.epoch, now);
        self.inner.lease.holds(term, now_us) || self.renew_lease(term, now)
    }

    /// Computes the lease of `term` anew from what openraft knows.
    fn renew_lease(&self, term: u64, now: Instant) -> bool {
        let Some(asked) = self.asked(term, now) else { return false };
        let until = asked + self.inner.lease_max;
        self.inner.lease.renew(term, since_us(self.inner.epoch, until));
        now < until && !self.inner.lease.is_given_up(term)
    }

    /// True if a quorum has answered what this replica, as leader of `term`, asked after `at`. So it led at some
    /// moment after `at`, whatever its clock did meanwhile.
    pub fn led_after(&self, term: u64, at: Instant) -> bool {
        self.asked(term, self.inner.env.now()).is_some_and(|asked| asked > at)
    }

    /// When this replica, as leader of `term`, asked what a quorum has answered last.
    fn asked(&self, term: u64, now: Instant) -> Option<Instant> {
        if self.inner.lease.is_given_up(term) || !self.leads(term) {
            return None;
        }
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.current_term != term || metrics.state != ServerState::Leader {
            return None;
        }
        match alone(&metrics, self.inner.me) {
            true => Some(now),
            false => metrics.last_quorum_acked.and_then(|acked| now.checked_sub(age(*acked))),
        }
    }

    /// As [`Group::lease`], but asks a quorum before it answers no.
    pub async fn confirm(&self, term: u64) -> bool {
        if self.inner.lease.is_given_up(term) || !self.leads(term) {
            return false;
        }
        self.inner.pulse.touch(self.inner.now_us());
        // Boxed: the future is large and seldom needed, and would make every request's task as large.
        let asked = Box::pin(self.inner.raft.ensure_linearizable(ReadPolicy::ReadIndex));
        let confirmed = matches!(self.inner.env.timeout(CONFIRM, asked).await, Some(Ok(_)));
        confirmed && self.leads(term) && !self.inner.lease.is_given_up(term)
    }

    /// As [`Group::confirm`], and no lease is asked: a quorum's word since the call began. For what must hold
    /// even where clocks stood still for a while, which is when a lease looks good that is none. Who comes
    /// while somebody asks waits for the next round, which is one for all.
    pub async fn confirm_anew(&self, term: u64) -> bool {
        let n_begun = self.inner.n_rounds.load(Ordering::Acquire);
        let mut last = self.inner.last_round.lock().await;
        if last.number > n_begun && last.term == term {
            return last.confirmed;
        }
        let number = self.inner.n_rounds.fetch_add(1, Ordering::AcqRel) + 1;
        let confirmed = self.confirm(term).await;
        *last = Round { number, term, confirmed };
        confirmed
    }

    /// Hands the leadership to `to`: proposes nothing more, waits until `to` has caught up, and lets it
    /// campaign. If `to` does not catch up, this leadership goes on. If `to` has caught up and does not
    /// take over, this leadership is over all the same, and the group elects after a time-out.
    pub async fn transfer(&self, to: NodeId) -> Result<(), Error> {
        let term = match *self.inner.role.borrow() {
            Role::Leader { term } => term,
            Role::Follower { leader, .. } => return Err(Error::NotLeader { leader }),
        };
        let failed = |reason: String| Error::Members { tablet: self.inner.tablet, reason };
        self.inner.pulse.touch(self.inner.now_us());
        let mut hand_over = HandOver::begin(&self.inner, term);
        let caught_up = async {
            while !self.has_all(to) {
                self.inner.env.sleep(LOOK).await;
            }
        };
        if self.inner.env.timeout(CONFIRM, caught_up).await.is_none() {
            return Err(failed(format!("node {to} has not caught up")));
        }
        hand_over.give_up_lease();
        let mut role = self.role();
        let gone = role.wait_for(|role| *role != Role::Leader { term });
        let mut gone = std::pin::pin!(self.inner.env.timeout(CONFIRM, gone));
        // Asked more than once: a successor that has just restarted may miss the first call.
        let gone = loop {
            let asked = self.inner.raft.trigger().transfer_leader(to.0).await;
            asked.map_err(|fatal| self.stopped(&fatal))?;
            if let Some(gone) = self.inner.env.timeout(ASK_AGAIN, &mut gone).await {
                break gone;
            }
        };
        match gone {
            Some(Ok(_)) => {
                hand_over.end();
                Ok(())
            }
            _ => Err(failed(format!("node {to} did not take over"))),
        }
    }

    /// As leader: proposes an entry that does nothing, and so wakes the group.
    pub(crate) async fn nudge(&self) {
        let Role::Leader { term } = *self.inner.role.borrow() else { return };
        if let Err(error) = self.propose(term, Bytes::new()).await {
            tracing::debug!(tablet = %self.inner.tablet, %error, "a quiet group was not woken");
        }
    }

    /// Whether every entry of the log here has been applied here.
    pub(crate) fn has_applied_all(&self) -> bool {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.last_applied.map(|id| id.index) == metrics.last_log_index
    }

    /// As leader: how far the log is known to have reached `node`.
    fn reached(&self, node: NodeId) -> Option<u64> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let matched = metrics.replication.as_ref().and_then(|all| all.get(&node.0).copied());
        matched.flatten().map(|id| id.index)
    }

    /// As leader: whether the whole log is known to have reached `node`.
    fn has_all(&self, node: NodeId) -> bool {
        let last = self.inner.raft.metrics().borrow_watched().last_log_index;
        self.reached(node) == last || node == self.inner.me
    }

    /// As leader: whether all members have the whole log and have answered lately, so that there is
    /// nothing to tell them.
    pub(crate) fn is_settled(&self) -> bool {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let (Some(replication), Some(heard)) = (&metrics.replication, &metrics.heartbeat) else {
            return false;
        };
        let lately = |node: &u64| {
            let at = heard.get(node).copied().flatten();
            *node == self.inner.me.0 || at.is_some_and(|at| age(*at) < self.inner.lease_max)
        };
        self.leads(metrics.current_term)
            && metrics.last_applied.map(|id| id.index) == metrics.last_log_index
            && replication.iter().all(|(node, matched)| {
                matched.map(|id| id.index) == metrics.last_log_index && lately(node)
            })
    }

    /// Whether this replica's log was empty when this process started it.
    pub fn is_new(&self) -> bool {
        self.inner.last_at_start.is_none()
    }

    /// Asks the voters whether they would elect this node, and campaigns if so. A node that is bound to a
    /// leader does neither.
    pub(crate) async fn try_campaign(&self) {
        if let Err(fatal) = self.inner.raft.trigger().elect(true).await {
            tracing::debug!(tablet = %self.inner.tablet, %fatal, "no campaign");
        }
    }

    /// Campaigns now, unless it leads. For new groups, in which no node is bound to a leader.
    pub async fn campaign(&self) -> Result<(), Error> {
        self.inner.raft.trigger().elect(false).await.map_err(|fatal| self.stopped(&fatal))
    }

    /// Makes `voters` the group's voters: adds new ones as learners, lets them catch up, changes over by
    /// joint consensus, and removes members that are not among `voters`. A leader that is not among them
    /// hands over on the way and answers [`Error::NotLeader`]: ask the new leader. To finish a change
    /// that an earlier leader left half done ([`Status::is_changing`]), ask once more.
    pub async fn change_members(&self, voters: BTreeSet<NodeId>) -> Result<(), Error> {
        let failed = |reason: String| Error::Members { tablet: self.inner.tablet, reason };
        let Role::Leader { term } = *self.inner.role.borrow() else {
            return Err(Error::NotLeader { leader: self.status().leader });
        };
        if voters.is_empty() {
            return Err(failed("a group needs a voter".into()));
        }
        self.inner.pulse.touch(self.inner.now_us());
        // As for proposals: a quiet group has no lease.
        if !self.lease(term) && !self.confirm(term).await {
            return Err(Error::NotLeader { leader: None });
        }
        let status = self.status();
        for new in voters.iter().filter(|node| !status.voters.contains(node)) {
            let added = self.inner.raft.add_learner(new.0, (), false).await;
            let at = added.map_err(|error| failed(error.to_string()))?.log_id.index;
            // openraft's own waiting ends while a learner is still thousands of entries behind.
            let caught_up = async {
                while self.leads(term) && self.reached(*new) < Some(at) {
                    self.inner.env.sleep(LOOK_FOR_CATCHING_UP).await;
                }
            };
            if self.inner.env.timeout(CATCH_UP, caught_up).await.is_none() {
                return Err(failed(format!("node {new} does not catch up")));
            }
        }
        let me = self.inner.me;
        let ids: BTreeSet<u64> = voters.iter().copied().chain([me]).map(|node| node.0).collect();
        let changed = self.inner.raft.change_membership(ids, false).await;
        changed.map_err(|error| failed(error.to_string()))?;
        // Learners that an earlier change left behind.
        let left: BTreeSet<u64> = self.status().learners.iter().map(|node| node.0).collect();
        if !left.is_empty() {
            let removed =
                self.inner.raft.change_membership(ChangeMembers::RemoveNodes(left), false).await;
            removed.map_err(|error| failed(error.to_string()))?;
        }
        if voters.contains(&me) {
            return Ok(());
        }
        // If a leader removed itself from the voters, it would have a lease by which no voter is bound.
        let to = voters
            .iter()
            .copied()
            .max_by_key(|node| self.reached(*node))
            .ok_or_else(|| failed("a group needs a voter".into()))?;
        self.transfer(to).await?;
        Err(Error::NotLeader { leader: Some(to) })
    }

    pub fn status(&self) -> Status {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: &Option<crate::types::LogId>| id.map_or(0, |id| id.index);
        let membership = metrics.membership_config.membership();
        let now_us = self.inner.now_us();
        let is_heard =
            |leader: &NodeId| *leader == self.inner.me || self.inner.pulse.is_loyal(now_us);
        let configured_at = metrics.membership_config.log_id().as_ref().map(|id| id.index);
        let committed = metrics.cluster_committed.as_ref().map(|id| id.index);
        let is_in_all =
            |voter: &u64| membership.get_joint_config().iter().all(|voters| voters.contains(voter));
        let counting = match configured_at <= committed.max(Some(0)) {
            true => membership.voter_ids().filter(is_in_all).map(NodeId).collect(),
            false => vec![self.inner.me],
        };
        Status {
            leader: metrics.current_leader.map(NodeId).filter(is_heard),
            term: metrics.current_term,
            last_log: metrics.last_log_index.unwrap_or(0),
            applied: index(&metrics.last_applied),
            purged: index(&metrics.purged),
            voters: membership.voter_ids().map(NodeId).collect(),
            learners: membership.learner_ids().map(NodeId).collect(),
            is_changing: membership.get_joint_config().len() > 1
                || membership.learner_ids().next().is_some(),
            counting,
        }
    }

    /// Follows openraft's view of the role and tells the machine, until the group stops.
    pub(crate) fn run_roles(
        &self,
        mut applied_term: watch::Receiver<u64>,
        machine: Arc<dyn Machine>,
    ) {
        let group = self.clone();
        let found = self.inner.promises.newest().map(|promise| promise.vote.leader_id);
        self.inner.env.spawn("group role", async move {
            let mut server = group.inner.raft.server_metrics();
            loop {
                let applied = *applied_term.borrow_and_update();
                let (now, standing) = {
                    let server = server.borrow_watched();
                    let term = server.vote.leader_id.term;
                    if found.is_some_and(|found| term > found.term) {
                        // A leader elected since then needed voters that were not bound to the earlier
                        // leader. So the earlier lease is over, and with it this node's promise.
                        group.inner.end_silence();
                    }
                    let leader = server.current_leader.map(NodeId);
                    let membership = server.membership_config.membership();
                    let me = group.inner.me;
                    let voter = membership.voter_ids().any(|voter| voter == me.0);
                    let members =
                        membership.voter_ids().chain(membership.learner_ids()).map(NodeId);
                    let leading = server.state == ServerState::Leader;
                    let standing = Standing {
                        term,
                        leader,
                        leading,
                        voter,
                        peers: members.filter(|node| *node != me).collect(),
                    };
                    match leading && applied == term {
                        true => (Role::Leader { term }, standing),
                        false => (Role::Follower { term, leader }, standing),
                    }
                };
                if *group.inner.pulse.standing() != standing {
                    group.inner.pulse.stand(standing);
                }
                let before = group.inner.role.borrow().clone();
                if before != now {
                    tracing::debug!(tablet = %group.inner.tablet, ?now, "a new role");
                    if let Role::Leader { term } = before {
                        group.inner.lease.give_up(term);
                    }
                    group.inner.role.send_replace(now.clone());
                    machine.role(now);
                }
                tokio::select! {
                    changed = server.changed() => {
                        if changed.is_err() { break }
                    }
                    changed = applied_term.changed() => if changed.is_err() { break },
                }
            }
            let last = Role::Follower { term: 0, leader: None };
            group.inner.role.send_replace(last.clone());
            machine.role(last);
            let end = group.inner.raft.metrics().borrow_watched().running_state.clone();
            if let Err(fatal) = end
                && !matches!(fatal, Fatal::Stopped)
            {
                // A replica that does nothing any more must not look alive.
                let tablet = group.inner.tablet;
                group.inner.env.halt_by_bug(format!("tablet {tablet}: its group ended: {fatal}"));
            }
        });
    }
}

/// A hand-over under way. It may end at any point: by an error, or because its caller has gone away.
struct HandOver<'a> {
    inner: &'a Inner,
    term: u64,
    has_lease: bool,
    is_over: bool,
}

impl HandOver<'_> {
    /// From now on this leader proposes nothing.
    fn begin(inner: &Inner, term: u64) -> HandOver<'_> {
        inner.handing_over.store(term, Ordering::Release);
        HandOver { inner, term, has_lease: true, is_over: false }
    }

    /// From now on there is no way back.
    fn give_up_lease(&mut self) {
        self.inner.lease.give_up(self.term);
        self.has_lease = false;
    }

    /// Another node leads.
    fn end(&mut self) {
        self.is_over = true;
    }
}

impl Drop for HandOver<'_> {
    fn drop(&mut self) {
        if self.has_lease {
            self.inner.handing_over.store(0, Ordering::Release);
        } else if !self.is_over {
            // This leader proposes nothing more in its term, and the others elect nobody while they hear
            // from it: it falls silent and lets them elect.
            self.inner.pulse.resign(self.term);
        }
    }
}

/// Whether this node is the only voter, and so needs no other node's answer.
fn alone(metrics: &RaftMetrics<Types>, me: NodeId) -> bool {
    let mut voters = metrics.membership_config.membership().voter_ids();
    voters.next() == Some(me.0) && voters.next().is_none()
}
