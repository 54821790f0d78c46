//! Elections after a reported death: nobody waits for a time-out that is known to run out.
//!
//! A report is a fact told by the dead process's supervisor, so the promises made to that leader
//! bind nobody any more. Every survivor drops them; the one with the lowest id campaigns at once.
//! Two things can go wrong, and each has its own way on:
//!
//! * *Its log is too short.* The survivor that refuses it for that reason campaigns itself, two
//!   terms higher: in the term between it would meet the first candidate's own vote. Logs only get
//!   longer along such a chain, so it ends.
//! * *It is dead too, or does not know.* The others try in the order of their ids, [`STAGGER`]
//!   apart, if there is no leader by then.
//!
//! A report names a process, and by the time that a survivor acts on it a new process of the same
//! node may lead. Only a leadership that was in force when the report came is succeeded.

use crate::group::Group;
use crate::groups::Groups;
use crate::types::{LogId, Types, Vote};
use base::NodeId;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::raft::{TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Survivors of a dead leader campaign one after the other, this far apart.
const STAGGER: Duration = Duration::from_millis(60);
/// How long after a report a candidate is overbidden by whoever has the longer log.
const OVERBID: Duration = Duration::from_millis(500);

impl Groups {
    /// A fact told by the dead process's supervisor: the groups it led elect at once.
    pub fn report_death(&self, node: NodeId) {
        for group in self.all() {
            let (leader, vote) = {
                let server = group.inner.raft.server_metrics();
                let server = server.borrow_watched();
                (server.current_leader.map(NodeId), server.vote)
            };
            if leader != Some(node) {
                continue;
            }
            let mut survivors = group.status().voters;
            survivors.retain(|voter| *voter != node);
            survivors.sort_unstable();
            let Some(first) = survivors.first().copied() else { continue };
            let Some(rank) = survivors.iter().position(|voter| *voter == self.inner.me) else {
                continue;
            };
            let overbid_until_us = self.inner.now_us() + OVERBID.as_micros() as u64;
            group.inner.overbid_until_us.store(overbid_until_us, Ordering::Release);
            let env = self.inner.env.clone();
            self.inner.env.spawn("succession", async move {
                group.free(vote, first).await;
                if rank > 0 {
                    env.sleep(STAGGER * rank as u32).await;
                    group.stand_in(vote).await;
                }
            });
        }
    }
}

impl Group {
    /// Drops what was promised to the leader elected by `vote`; `first` campaigns, if it is this
    /// node. Nothing happens if there has been another vote since.
    async fn free(&self, vote: Vote, first: NodeId) {
        self.inner.pulse.patient(self.inner.now_us());
        let request = TransferLeaderRequest::new(vote, first.0, self.last_log());
        if let Err(reason) = self.take_over(request).await {
            tracing::debug!(tablet = %self.inner.tablet, reason, "cannot let go of a dead leader");
        }
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
                const NOBODY: u64 = 0;
                let free = TransferLeaderRequest::new(vote, NOBODY, None);
                let freed =
                    raft.handle_transfer_leader(free).await.map_err(|fatal| fatal.to_string())?;
                self.campaign().await.map_err(|error| error.to_string())?;
                return Ok(freed);
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
        } else if leader.is_none()
            && let Err(error) = self.campaign().await
        {
            tracing::debug!(tablet = %self.inner.tablet, %error, "cannot stand in for a candidate");
        }
    }

    fn last_log(&self) -> Option<LogId> {
        self.inner.raft.data_metrics().borrow_watched().last_log
    }

    /// Whether a candidate that was just refused is to be overbidden, see above.
    pub(crate) fn overbids(
        &self,
        request: &VoteRequest<Types>,
        response: &VoteResponse<Types>,
    ) -> bool {
        !response.vote_granted
            && response.last_log_id > request.last_log_id
            && self.inner.now_us() < self.inner.overbid_until_us.load(Ordering::Acquire)
            && self.inner.pulse.standing().voter
    }

    /// Campaigns in a term above `term`.
    pub(crate) async fn overbid(&self, term: u64) {
        // One campaign may only reach the refused candidate's own term.
        for _ in 0..3 {
            let state = self.inner.raft.with_raft_state(|state| *state.vote_ref()).await;
            let Ok(vote) = state else { return };
            if vote.leader_id.term > term || self.campaign().await.is_err() {
                return;
            }
        }
    }
}
