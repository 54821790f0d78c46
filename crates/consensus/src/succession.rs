//! Elections after a death: nobody waits for a time-out that is known to run out.
//!
//! A death is a fact: "every start of node 2 up to start 5 has ended". The supervisor that reaped
//! the process reports it. A leader's process that is dead relies on no lease, so what was promised
//! to it binds nobody (`promise` says to which deaths that applies). Every survivor drops its
//! promise; the one with the lowest id campaigns at once. Three things can go wrong, and each has its own
//! way on:
//!
//! * *Its log is too short.* The survivor that refuses it for that reason campaigns itself, in a
//!   higher term: in the one between it would meet the first candidate's own vote. Logs only get longer
//!   along such a chain, so it ends.
//! * *It is dead too, or does not know.* The others try in the order of their ids, [`STAGGER`]
//!   apart, if there is no leader by then.
//! * *A majority is not there.* Those that are there try again every few dozen milliseconds for
//!   [`HURRY`], because a worker that was killed is back in a fraction of a second.
//!
//! # Deaths in a row
//!
//! A process that was down when a death was reported never hears the report. When it comes back it
//! finds a vote on its disk, does not know until when that binds it, and would keep silent for a
//! whole election time-out. So candidates carry what they know: each question for a vote names the deaths of the
//! group's members, and whoever is asked learns of them before it answers. A greeting tells as
//! much: who greets as start 6 shows that start 5 has ended. Example, three nodes, an election time-out
//! of 1300 ms:
//!
//! ```text
//!    0 ms  node 2, start 5, leads in term 9; nodes 1 and 3 have answered it. Both have saved
//!          (term 9, node 2, start 5).
//!    1 ms  node 3 is killed.
//!    5 ms  node 2 is killed. Node 1 hears the report (node 2, start 5), drops its promise, asks
//!          both for their votes, and reaches nobody. It is in a hurry.
//!  180 ms  node 3 serves again. It is bound to the leader of term 9, for all it knows.
//!  240 ms  node 1 asks node 3: "may I lead in term 10? Node 2 is dead up to start 5." What node 3
//!          saved names node 2 and start 5: it is free, and answers yes. Node 1 leads.
//!          Without the death in the question it would have answered no until 1480 ms.
//! ```
//!
//! Why that is safe: a leader serves on its lease only while a majority is bound to it. A node that
//! lets go here was bound to (term 9, node 2), and that leadership was in start 5 or in an older one,
//! because start 5 was the newest that had greeted when node 2 first spoke in term 9. All of these
//! have ended, and a later start of node 2 does not go on in term 9. So nobody serves on what was dropped. If
//! node 2's start 6 leads in term 11, whoever answered it has saved (term 11, node 2, start 6), and the
//! death of start 5, however late it is told, frees nobody from that. If node 3 has answered a
//! leader of term 10 meanwhile, its newest promise is that one, and the death of node 2 does not
//! name it.
//!
//! What is absent: no death is ever concluded from silence.

use crate::group::Group;
use crate::groups::Groups;
use crate::promise::{Death, Promise};
use crate::types::{LogId, Types, Vote};
use base::{NodeId, TabletId};
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::raft::{TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Survivors of a dead leader campaign one after the other, this far apart.
const STAGGER: Duration = Duration::from_millis(60);
/// How long after a death a group without a leader tries again and again.
const HURRY: Duration = Duration::from_secs(10);
/// No node has this id: a hand-over to it only frees.
const NOBODY: NodeId = NodeId(0);
/// The refused candidate's term is here by then, if it comes at all.
const OVERBID_ROUND: Duration = Duration::from_millis(100);

impl Groups {
    /// A fact: the groups that the dead process led elect at once. To be told late, twice, or of
    /// a start that is long over does no harm.
    pub fn report_death(&self, death: Death) {
        if death.node == self.inner.me || !self.inner.deaths.learn(death) {
            return;
        }
        for group in self.all() {
            self.succeed(&group);
        }
    }

    /// The newest start of `node` that is known to have ended.
    fn dead_up_to(&self, node: NodeId) -> Option<u64> {
        let newest = self.inner.transport.boot_of(node);
        self.inner.deaths.of(node).max(newest.and_then(|boot| boot.checked_sub(1)))
    }

    /// Whether no start of `node` lives, as far as is known.
    fn is_dead(&self, node: NodeId) -> bool {
        self.inner.deaths.of(node).is_some_and(|boot| {
            self.inner.transport.boot_of(node).is_none_or(|newest| newest <= boot)
        })
    }

    /// What a candidate of the group tells those that it asks.
    pub(crate) fn deaths_in(&self, tablet: TabletId) -> Vec<Death> {
        let voters = self.get(tablet).map(|group| group.status().voters).unwrap_or_default();
        let death = |node| Some(Death { node, boot: self.dead_up_to(node)? });
        voters.into_iter().filter_map(death).collect()
    }

    /// What a candidate of the group told; this node's promise in it is dropped before the candidate
    /// is answered.
    pub(crate) async fn hear_deaths(&self, group: &Group, deaths: &[Death]) -> Result<(), String> {
        for death in deaths {
            self.report_death(*death);
        }
        match self.void_promise(group) {
            Some(promise) => group.let_go(promise.vote).await,
            None => Ok(()),
        }
    }

    fn void_promise(&self, group: &Group) -> Option<Promise> {
        let promise = group.inner.promises.newest()?;
        promise.is_void(self.dead_up_to(promise.leader())).then_some(promise)
    }

    /// Ends a restarted replica's silence if what it found on disk binds nobody.
    pub(crate) fn sets_free(&self, group: &Group) -> bool {
        let is_void = self.void_promise(group).is_some();
        if is_void {
            group.inner.end_silence();
        }
        is_void
    }

    /// Elects in the group if its leader's process is dead.
    pub(crate) fn succeed(&self, group: &Group) {
        let Some(promise) = group.inner.promises.newest() else { return };
        let leader = promise.leader();
        let is_void = promise.is_void(self.dead_up_to(leader));
        // A candidate that died before it was heard as leader: nothing is owed to it, and there is
        // no use in waiting for it.
        let is_orphan = !promise.vote.committed && leader != self.inner.me && self.is_dead(leader);
        if !is_void && !is_orphan {
            return;
        }
        let now_us = self.inner.now_us();
        let until_us = now_us + HURRY.as_micros() as u64;
        group.inner.pulse.hurry(now_us + self.hurried_us(), until_us);
        group.inner.overbid_until_us.store(until_us, Ordering::Release);
        if !is_void {
            return;
        }
        group.inner.end_silence();
        let mut survivors = group.status().voters;
        survivors.retain(|voter| *voter != leader && !self.is_dead(*voter));
        survivors.sort_unstable();
        let first = survivors.first().copied().unwrap_or(NOBODY);
        let rank = survivors.iter().position(|voter| *voter == self.inner.me);
        let (env, group) = (self.inner.env.clone(), group.clone());
        self.inner.env.spawn("succession", async move {
            group.free(promise.vote, first).await;
            // A learner does not campaign.
            if let Some(rank @ 1..) = rank {
                env.sleep(STAGGER * rank as u32).await;
                group.stand_in(promise.vote).await;
            }
        });
    }

    /// Whether a candidate that was just refused is to be overbidden, see above. Who follows a
    /// leader that lives overbids nobody.
    pub(crate) fn overbids(
        &self,
        group: &Group,
        request: &VoteRequest<Types>,
        response: &VoteResponse<Types>,
    ) -> bool {
        let is_bound = || {
            let promise = group.inner.promises.newest();
            promise.is_some_and(|promise| {
                promise.binds(self.inner.me) && !promise.is_void(self.dead_up_to(promise.leader()))
            })
        };
        !response.vote_granted
            && response.last_log_id > request.last_log_id
            && self.inner.now_us() < group.inner.overbid_until_us.load(Ordering::Acquire)
            && group.inner.pulse.standing().voter
            && !is_bound()
    }
}

impl Group {
    /// Drops what was promised to the leader elected by `vote`; `first` campaigns, if it is this
    /// node. Nothing happens if there has been another vote since.
    async fn free(&self, vote: Vote, first: NodeId) {
        let request = TransferLeaderRequest::new(vote, first.0, self.last_log());
        if let Err(reason) = self.take_over(request).await {
            tracing::debug!(tablet = %self.inner.tablet, reason, "cannot let go of a dead leader");
        }
    }

    /// The same without a campaign.
    async fn let_go(&self, vote: Vote) -> Result<(), String> {
        self.inner.end_silence();
        self.inner.pulse.disloyal();
        let free = TransferLeaderRequest::new(vote, NOBODY.0, None);
        let freed = self.inner.raft.handle_transfer_leader(free).await;
        freed.map(drop).map_err(|fatal| fatal.to_string())
    }

    /// Does what the leader, or the report of its death, asks: drops the promises made to it,
    /// and campaigns if this node is meant.
    pub(crate) async fn take_over(
        &self,
        request: TransferLeaderRequest<Types>,
    ) -> Result<TransferLeaderResponse<Types>, String> {
        let raft = &self.inner.raft;
        let vote = *request.from_leader();
        if raft.server_metrics().borrow_watched().vote == vote {
            self.inner.pulse.disloyal();
            // openraft waits until the log is known to be on disk, and never learns that of what
            // was there before this process began. Then campaign without its help, among voters
            // that were told as well.
            let last = self.last_log();
            if *request.to_node_id() == self.inner.me.0
                && last == self.inner.last_at_start
                && last.as_ref() >= request.last_log_id()
            {
                self.let_go(vote).await?;
                self.try_campaign().await;
                return Ok(Ok(()));
            }
        }
        raft.handle_transfer_leader(request).await.map_err(|fatal| fatal.to_string())
    }

    /// Campaigns if those before this node in the line have not brought a leader.
    async fn stand_in(&self, vote: Vote) {
        let (now, leader) = {
            let server = self.inner.raft.server_metrics();
            let server = server.borrow_watched();
            (server.vote, server.current_leader)
        };
        if now == vote {
            self.free(vote, self.inner.me).await;
        } else if leader.is_none() {
            self.try_campaign().await;
        }
    }

    fn last_log(&self) -> Option<LogId> {
        self.inner.raft.data_metrics().borrow_watched().last_log
    }

    /// Campaigns in a term above `term`.
    pub(crate) async fn overbid(&self, term: u64) {
        // The first question may reach the refused candidate's own term only, and brings it here.
        self.try_campaign().await;
        let mut server = self.inner.raft.server_metrics();
        let reached = async {
            while server.borrow_watched().vote.leader_id.term < term {
                if server.changed().await.is_err() {
                    return;
                }
            }
        };
        if self.inner.env.timeout(OVERBID_ROUND, reached).await.is_some() {
            self.try_campaign().await;
        }
    }
}
