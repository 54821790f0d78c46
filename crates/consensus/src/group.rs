//! One group: its role, its proposals, its lease, its members.

use crate::types::{Command, Raft, Types};
use crate::{Error, Machine};
use base::{Env, NodeId, TabletId};
use bytes::Bytes;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use openraft::raft::TransferLeaderRequest;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::type_config::TypeConfigExt as _;
use openraft::{RaftMetrics, ReadPolicy, ServerState};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    Follower { term: u64, leader: Option<NodeId> },
    /// An entry of `term` has been applied here.
    Leader { term: u64 },
}

/// A group as this replica sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub leader: Option<NodeId>,
    pub term: u64,
    pub last_log: u64,
    pub applied: u64,
    pub purged: u64,
    pub voters: Vec<NodeId>,
    pub learners: Vec<NodeId>,
    /// At the leader: how far each member's log is known to have come.
    pub matched: Vec<(NodeId, u64)>,
}

/// Handle to a group's replica on this node. Cheap to clone.
#[derive(Clone)]
pub struct Group {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) env: Env,
    pub(crate) me: NodeId,
    pub(crate) tablet: TabletId,
    pub(crate) raft: Raft,
    pub(crate) role: watch::Sender<Role>,
    /// While leadership is being handed over, nobody may rely on the lease.
    handing_over: AtomicBool,
    lease: Duration,
    /// Until then this process may be bound by promises that it forgot with its last end.
    pub(crate) silent_until: Option<base::env::Instant>,
}

/// Asking a quorum whether one still leads.
const CONFIRM: Duration = Duration::from_secs(1);
/// A new member catches up before it votes.
const CATCH_UP: Duration = Duration::from_secs(600);

impl Group {
    pub(crate) fn new(
        env: Env,
        me: NodeId,
        tablet: TabletId,
        raft: Raft,
        lease: Duration,
        silent_until: Option<base::env::Instant>,
    ) -> Group {
        let role = watch::Sender::new(Role::Follower { term: 0, leader: None });
        let handing_over = AtomicBool::new(false);
        Group { inner: Arc::new(Inner { env, me, tablet, raft, role, handing_over, lease, silent_until }) }
    }

    pub fn tablet(&self) -> TabletId {
        self.inner.tablet
    }

    pub fn role(&self) -> watch::Receiver<Role> {
        self.inner.role.subscribe()
    }

    /// Proposes as leader of `term`; resolves with [`Machine::apply`]'s answer once applied here.
    pub async fn propose(&self, term: u64, command: Bytes) -> Result<Bytes, Error> {
        let not_leader = |leader: Option<u64>| Error::NotLeader { leader: leader.map(NodeId) };
        match *self.inner.role.borrow() {
            Role::Leader { term: own } if own == term => {}
            Role::Leader { .. } => return Err(not_leader(None)),
            Role::Follower { leader, .. } => return Err(Error::NotLeader { leader }),
        }
        let (responder, answer) = ProgressResponder::complete_only();
        let write = self.inner.raft.write(Command(command)).with_leader(term).responder(responder);
        if let Err(fatal) = write.await {
            return Err(self.stopped(&fatal));
        }
        match answer.await {
            Ok(Ok(response)) => Ok(response.data),
            Ok(Err(ClientWriteError::ForwardToLeader(to))) => Err(not_leader(to.leader_id)),
            Ok(Err(_)) => Err(Error::Lost),
            Err(_) => Err(Error::Lost),
        }
    }

    fn stopped(&self, reason: &dyn std::fmt::Display) -> Error {
        Error::Stopped { tablet: self.inner.tablet, reason: reason.to_string() }
    }

    /// True if this replica surely led in `term` at some moment after the call began. Ask it
    /// after reading local state. A voter refuses others its vote for a whole election time-out
    /// after it heard from the leader; the lease is shorter than that by the margin by which
    /// clocks may run at different rates, and counts from when the leader asked.
    pub fn lease(&self, term: u64) -> bool {
        if *self.inner.role.borrow() != (Role::Leader { term })
            || self.inner.handing_over.load(Ordering::Acquire)
        {
            return false;
        }
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.current_term != term || metrics.state != ServerState::Leader {
            return false;
        }
        if alone(&metrics, self.inner.me) {
            return true;
        }
        // openraft's own reading of the same clock.
        let now = Types::now();
        metrics.last_quorum_acked.is_some_and(|acked| now < *acked + self.inner.lease)
    }

    /// As [`Group::lease`], but asks a quorum before it says no.
    pub async fn confirm(&self, term: u64) -> bool {
        if *self.inner.role.borrow() != (Role::Leader { term })
            || self.inner.handing_over.load(Ordering::Acquire)
        {
            return false;
        }
        let asked = self.inner.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        let confirmed = matches!(self.inner.env.timeout(CONFIRM, asked).await, Some(Ok(_)));
        confirmed && *self.inner.role.borrow() == (Role::Leader { term })
    }

    /// Hands the leadership to `to`, which must have caught up.
    pub async fn transfer(&self, to: NodeId) -> Result<(), Error> {
        let term = match *self.inner.role.borrow() {
            Role::Leader { term } => term,
            Role::Follower { leader, .. } => return Err(Error::NotLeader { leader }),
        };
        self.inner.handing_over.store(true, Ordering::Release);
        let asked = self.inner.raft.trigger().transfer_leader(to.0).await;
        let mut role = self.role();
        let gone = self.inner.env.timeout(CONFIRM, role.wait_for(|role| *role != Role::Leader { term }));
        let moved = asked.is_ok() && matches!(gone.await, Some(Ok(_)));
        if !moved {
            // The target may still be campaigning: wait out what it was allowed.
            self.inner.env.sleep(self.inner.lease).await;
        }
        self.inner.handing_over.store(false, Ordering::Release);
        asked.map_err(|fatal| self.stopped(&fatal))?;
        match moved {
            true => Ok(()),
            false => Err(Error::Members {
                tablet: self.inner.tablet,
                reason: format!("node {to} did not take over"),
            }),
        }
    }

    /// Campaigns now, unless a leader is known.
    pub async fn campaign(&self) -> Result<(), Error> {
        self.inner.raft.trigger().elect(false).await.map_err(|fatal| self.stopped(&fatal))
    }

    /// The leader's process is dead, which is a fact: campaigns without waiting for its lease.
    pub(crate) async fn succeed(&self, dead: NodeId) {
        let request = {
            let metrics = self.inner.raft.metrics();
            let metrics = metrics.borrow_watched();
            if metrics.current_leader != Some(dead.0) {
                return;
            }
            let last = self.inner.raft.data_metrics().borrow_watched().last_log;
            TransferLeaderRequest::new(metrics.vote, self.inner.me.0, last)
        };
        match self.inner.raft.handle_transfer_leader(request).await {
            Ok(Ok(())) => {}
            other => tracing::debug!(tablet = %self.inner.tablet, ?other, "cannot succeed a dead leader at once"),
        }
    }

    /// Makes `voters` the group's voters: adds those that are new as learners, lets them catch
    /// up, changes over by joint consensus, and lets go of who is no more among them.
    pub async fn change_members(&self, voters: BTreeSet<NodeId>) -> Result<(), Error> {
        let failed = |reason: String| Error::Members { tablet: self.inner.tablet, reason };
        let status = self.status();
        for new in voters.iter().filter(|node| !status.voters.contains(node)) {
            let added = self.inner.raft.add_learner(new.0, (), true);
            match self.inner.env.timeout(CATCH_UP, added).await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(failed(error.to_string())),
                None => return Err(failed(format!("node {new} does not catch up"))),
            }
        }
        let voters: BTreeSet<u64> = voters.iter().map(|node| node.0).collect();
        let changed = self.inner.raft.change_membership(voters, false).await;
        changed.map(|_| ()).map_err(|error| failed(error.to_string()))
    }

    pub fn status(&self) -> Status {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: &Option<crate::types::LogId>| id.map_or(0, |id| id.index);
        let membership = metrics.membership_config.membership();
        let matched = metrics.replication.iter().flatten();
        Status {
            leader: metrics.current_leader.map(NodeId),
            term: metrics.current_term,
            last_log: metrics.last_log_index.unwrap_or(0),
            applied: index(&metrics.last_applied),
            purged: index(&metrics.purged),
            voters: membership.voter_ids().map(NodeId).collect(),
            learners: membership.learner_ids().map(NodeId).collect(),
            matched: matched.map(|(node, id)| (NodeId(*node), index(id))).collect(),
        }
    }

    /// Follows openraft's view of the role and tells the machine, until the group stops.
    pub(crate) fn run_roles(&self, mut applied_term: watch::Receiver<u64>, machine: Arc<dyn Machine>) {
        let group = self.clone();
        self.inner.env.spawn("group role", async move {
            let mut server = group.inner.raft.server_metrics();
            loop {
                let applied = *applied_term.borrow_and_update();
                let now = {
                    let server = server.borrow_watched();
                    let term = server.vote.leader_id.term;
                    match server.state {
                        ServerState::Leader if applied == term => Role::Leader { term },
                        _ => Role::Follower { term, leader: server.current_leader.map(NodeId) },
                    }
                };
                if *group.inner.role.borrow() != now {
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
        });
    }
}

/// A group of one needs nobody's word.
fn alone(metrics: &RaftMetrics<Types>, me: NodeId) -> bool {
    let mut voters = metrics.membership_config.membership().voter_ids();
    voters.next() == Some(me.0) && voters.next().is_none()
}
