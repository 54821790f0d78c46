//! Elections after a death: the survivors do not wait for a time-out.
//!
//! A death is a fact: "every start of node 2 up to start 5 has ended". The supervisor that reaped the
//! process reports it. A dead process relies on no lease, so the promises that were made to it no longer
//! bind (`promise` says which death voids which promise). Every survivor drops its promise, and the
//! survivor with the lowest id campaigns at once. Three things can go wrong with this candidate:
//!
//! * *Its log is too short.* A survivor that refuses it for that reason campaigns itself, in the term
//!   after the candidate's: in the candidate's own term the candidate has voted for itself. Along such a
//!   chain the logs only get longer, so the chain ends.
//! * *It is dead too, or has not heard of the death.* The other survivors campaign in the order of their
//!   ids, [`STAGGER`] apart, if there is no leader by then.
//! * *A majority is not there.* The survivors try again every few dozen milliseconds for [`HURRY`],
//!   because a worker that was killed is back in a fraction of a second.
//!
//! # Deaths in a row
//!
//! A process that was down when a death was reported never hears the report. When it comes back it
//! finds a vote on its disk, does not know until when the vote binds it, and would keep silent for a
//! whole election time-out. So candidates pass on what they know: each request for a vote names the
//! deaths of the group's members, and the voter learns of them before it answers. A greeting tells the
//! same: a node that greets as start 6 shows that its start 5 has ended. Example, three nodes, an
//! election time-out of 1300 ms:
//!
//! ```text
//!    0 ms  node 2, start 5, leads in term 9; nodes 1 and 3 have answered it. Both have saved
//!          (term 9, node 2, start 5).
//!    1 ms  node 3 is killed.
//!    5 ms  node 2 is killed. Node 1 hears the report (node 2, start 5), drops its promise, asks
//!          both for their votes, and reaches nobody. It is in a hurry.
//!  180 ms  node 3 serves again. As far as it knows it is bound to the leader of term 9.
//!  240 ms  node 1 asks node 3: "may I lead in term 10? Node 2 is dead up to start 5." Node 3 has
//!          saved node 2 and start 5: it is free, and answers yes. Node 1 leads.
//!          Without the death in the request, node 3 would have answered no until 1480 ms.
//! ```
//!
//! Why that is safe:
//!
//! * A leader serves on its lease only while a majority is bound to it. A node that is freed here was
//!   bound to (term 9, node 2). That leadership was in start 5 or in an older start, because 5 was the
//!   newest start that had greeted when node 2 first spoke in term 9. All of these starts have ended, and
//!   a later start of node 2 does not go on in term 9. So no leader serves on the dropped promise.
//! * If start 6 of node 2 leads in term 11, the voters that answered it have saved (term 11, node 2,
//!   start 6). The death of start 5, however late it is told, does not free them.
//! * If node 3 has answered a leader of term 10 meanwhile, that is its newest promise, and the death of
//!   node 2 does not concern it.
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
/// The term of the refused candidate has arrived by then, if it comes at all.
const OVERBID_ROUND: Duration = Duration::from_millis(100);

impl Groups {
    /// A fact: the groups that the dead process led elect at once. It does no harm to be told late, twice,
    /// or of a start that is long over.
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

    /// Whether no start of `node` lives, as far as this node knows.
    fn is_dead(&self, node: NodeId) -> bool {
        self.inner.deaths.of(node).is_some_and(|boot| {
            self.inner.transport.boot_of(node).is_none_or(|newest| newest <= boot)
        })
    }

    /// The deaths that a candidate of the group tells the voters.
    pub(crate) fn deaths_in(&self, tablet: TabletId) -> Vec<Death> {
        let voters = self.get(tablet).map(|group| group.status().voters).unwrap_or_default();
        let death = |node| Some(Death { node, boot: self.dead_up_to(node)? });
        voters.into_iter().filter_map(death).collect()
    }

    /// A candidate of the group told of these deaths. If they void this node's promise in the group, the
    /// promise is dropped before the candidate is answered.
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

    /// Ends the silence of a restarted replica if the promise that it found on disk is void.
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
        // A candidate that died before it spoke as leader: this node owes it nothing, and waiting for it
        // is of no use.
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

    /// Whether this node overbids a candidate that it just refused, see above. A node that follows a
    /// living leader does not.
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
    /// Drops the promise to the leader elected by `vote`. If `first` is this node, it campaigns. Nothing
    /// happens if there has been another vote since.
    async fn free(&self, vote: Vote, first: NodeId) {
        let request = TransferLeaderRequest::new(vote, first.0, self.last_log());
        if let Err(reason) = self.take_over(request).await {
            tracing::debug!(tablet = %self.inner.tablet, reason, "cannot let go of a dead leader");
        }
    }

    /// As [`Group::free`], without a campaign.
    async fn let_go(&self, vote: Vote) -> Result<(), String> {
        self.inner.end_silence();
        self.inner.pulse.disloyal();
        let free = TransferLeaderRequest::new(vote, NOBODY.0, None);
        let freed = self.inner.raft.handle_transfer_leader(free).await;
        freed.map(drop).map_err(|fatal| fatal.to_string())
    }

    /// Does what the leader, or the report of its death, asks: drops the promise made to the leader, and
    /// campaigns if this node is meant.
    pub(crate) async fn take_over(
        &self,
        request: TransferLeaderRequest<Types>,
    ) -> Result<TransferLeaderResponse<Types>, String> {
        let raft = &self.inner.raft;
        let vote = *request.from_leader();
        if raft.server_metrics().borrow_watched().vote == vote {
            self.inner.pulse.disloyal();
            // openraft waits until the log is known to be on disk, and never learns that of entries that
            // were there before this process began. Where there are no others, this node campaigns
            // without openraft's help, among voters that were told as well.
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

    /// Campaigns if the survivors before this one have not brought a leader.
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
        // The first try may only reach the term of the refused candidate, and brings that term here.
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
