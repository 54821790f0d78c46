//! When a group was last heard from, and what is due for it now.
//!
//! openraft's own timers are off: they wake every group 25 times per second, which a node with
//! hundreds of idle groups cannot afford. Instead `beat` walks over all groups on one timer, and
//! this file says what is due for each group. openraft still runs the elections. This file only decides
//! when to try one, and a try is a pre-vote, which a group with a living leader refuses.
//!
//! A leader whose group is at rest (nothing was asked of it for a while, every member has everything)
//! falls *quiet*: it sends no heartbeats. Its node names the group in the one message that it sends to
//! each peer, and the peer counts the leader as heard from. Such messages do not prolong leases: a quiet
//! leader has none, and asks a quorum before it serves again.
//!
//! A replica that knows that its leader's process is dead is in a *hurry*. It campaigns often, because
//! the voters that it misses may be starting at that moment, and does not wait long for a candidate that
//! it voted for. The hurry ends when a leader speaks.
//!
//! What is absent: nothing is sent here and no clock is read; callers pass the time in microseconds
//! since the node's groups began.

use base::NodeId;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What openraft says of this replica of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub term: u64,
    pub leader: Option<NodeId>,
    /// Leads according to openraft, whether or not it serves yet.
    pub leading: bool,
    pub voter: bool,
    /// The other members, learners among them.
    pub peers: Vec<NodeId>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    /// The leader has been silent for too long.
    Campaign,
    /// Leads other members, and must send them a heartbeat.
    Beat,
}

#[derive(Default)]
pub(crate) struct Pulse {
    standing: Mutex<Arc<Standing>>,
    term: AtomicU64,
    leading: AtomicBool,
    has_peers: AtomicBool,
    voter: AtomicBool,
    /// Until then this node takes its leader for alive, and gives no other node its vote.
    loyal_until_us: AtomicU64,
    campaign_at_us: AtomicU64,
    hurried_until_us: AtomicU64,
    /// How long this replica waits for a silent leader; drawn anew for each campaign.
    patience_us: AtomicU64,
    /// When something was last asked of the group.
    active_us: AtomicU64,
    quiet: AtomicBool,
    /// The term in which this leader has resigned and sends no more heartbeats.
    resigned: AtomicU64,
}

impl Pulse {
    pub fn new(campaign_at_us: u64, patience_us: u64) -> Pulse {
        Pulse {
            campaign_at_us: AtomicU64::new(campaign_at_us),
            patience_us: AtomicU64::new(patience_us),
            ..Pulse::default()
        }
    }

    pub fn stand(&self, standing: Standing) {
        self.term.store(standing.term, Ordering::Release);
        self.leading.store(standing.leading, Ordering::Release);
        self.voter.store(standing.voter, Ordering::Release);
        self.has_peers.store(!standing.peers.is_empty(), Ordering::Release);
        self.quiet.store(false, Ordering::Release);
        *self.standing.lock() = Arc::new(standing);
    }

    pub fn standing(&self) -> Arc<Standing> {
        self.standing.lock().clone()
    }

    /// A leader of `term` spoke. It counts as alive for `loyalty_us`.
    pub fn heard(&self, term: u64, now_us: u64, loyalty_us: u64) {
        if term >= self.term.load(Ordering::Acquire) {
            self.loyal_until_us.store(now_us + loyalty_us, Ordering::Release);
            self.hurried_until_us.store(0, Ordering::Release);
            self.patient(now_us);
        }
    }

    /// A candidate got this node's vote and now has time to win; in a hurry no more than `pause_us`.
    pub fn yielded(&self, now_us: u64, pause_us: u64) {
        match self.is_hurried(now_us) {
            true => _ = self.campaign_at_us.fetch_max(now_us + pause_us, Ordering::AcqRel),
            false => self.patient(now_us),
        }
    }

    /// The leader's process is dead: this replica campaigns at `at_us`, and often until `until_us`.
    pub fn hurry(&self, at_us: u64, until_us: u64) {
        self.hurried_until_us.store(until_us, Ordering::Release);
        self.campaign_at_us.store(at_us, Ordering::Release);
    }

    pub fn is_hurried(&self, now_us: u64) -> bool {
        now_us < self.hurried_until_us.load(Ordering::Acquire)
    }

    /// Waits a full patience from now on.
    fn patient(&self, now_us: u64) {
        let patience_us = self.patience_us.load(Ordering::Relaxed);
        self.campaign_at_us.fetch_max(now_us + patience_us, Ordering::AcqRel);
    }

    /// The peer `from` says that it leads this group quietly. False if this replica knows another
    /// leader or term; the peer must then send a heartbeat of the group itself.
    pub fn heard_quiet(&self, from: NodeId, term: u64, now_us: u64, loyalty_us: u64) -> bool {
        let standing = self.standing();
        let known = standing.term == term && standing.leader == Some(from);
        if known {
            self.heard(term, now_us, loyalty_us);
        }
        known
    }

    /// The leader is dead: this node owes it nothing.
    pub fn disloyal(&self) {
        self.loyal_until_us.store(0, Ordering::Release);
    }

    pub fn is_loyal(&self, now_us: u64) -> bool {
        now_us < self.loyal_until_us.load(Ordering::Acquire)
    }

    pub fn due(&self, now_us: u64) -> Due {
        if self.leading.load(Ordering::Acquire) {
            let resigned = self.resigned.load(Ordering::Acquire);
            let speaks = resigned != self.term.load(Ordering::Acquire);
            let heard = self.has_peers.load(Ordering::Acquire);
            return if speaks && heard { Due::Beat } else { Due::Nothing };
        }
        let tired = now_us >= self.campaign_at_us.load(Ordering::Acquire);
        if tired && self.voter.load(Ordering::Acquire) { Due::Campaign } else { Due::Nothing }
    }

    /// A campaign begins. If it fails, the next one begins at `next_us` at the earliest.
    pub fn campaigned(&self, next_us: u64, patience_us: u64) {
        self.patience_us.store(patience_us, Ordering::Relaxed);
        self.campaign_at_us.store(next_us, Ordering::Release);
    }

    /// The leader of `term` sends no more heartbeats, so that another node can be elected.
    pub fn resign(&self, term: u64) {
        self.resigned.store(term, Ordering::Release);
    }

    /// Something is asked of the group, so it must not be quiet.
    pub fn touch(&self, now_us: u64) {
        self.active_us.store(now_us, Ordering::Release);
        self.quiet.store(false, Ordering::Release);
    }

    pub fn is_resting(&self, now_us: u64, rest_us: u64) -> bool {
        now_us >= self.active_us.load(Ordering::Acquire) + rest_us
    }

    pub fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Acquire)
    }

    pub fn fall_quiet(&self) {
        self.quiet.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follower() -> Pulse {
        let pulse = Pulse::new(100, 1000);
        pulse.stand(Standing {
            term: 3,
            leader: Some(NodeId(2)),
            voter: true,
            ..Standing::default()
        });
        pulse
    }

    #[test]
    fn a_silent_leader_is_waited_for_and_then_followed() {
        let pulse = follower();
        assert_eq!(pulse.due(99), Due::Nothing);
        pulse.heard(3, 90, 800);
        assert_eq!((pulse.due(1089), pulse.due(1090)), (Due::Nothing, Due::Campaign));
        assert!(pulse.is_loyal(889) && !pulse.is_loyal(890));
        pulse.heard(2, 1000, 800);
        assert_eq!(pulse.due(1090), Due::Campaign, "a leader of the past does not count");
    }

    #[test]
    fn a_dead_leader_s_follower_is_in_a_hurry_until_another_speaks() {
        let pulse = follower();
        pulse.heard(3, 90, 800);
        pulse.hurry(150, 10_000);
        assert_eq!((pulse.due(149), pulse.due(150)), (Due::Nothing, Due::Campaign));
        pulse.yielded(150, 70);
        assert_eq!((pulse.due(219), pulse.due(220)), (Due::Nothing, Due::Campaign));
        pulse.heard(4, 220, 800);
        assert!(!pulse.is_hurried(221));
        pulse.yielded(300, 70);
        assert_eq!((pulse.due(1299), pulse.due(1300)), (Due::Nothing, Due::Campaign));
    }

    #[test]
    fn a_quiet_leader_counts_only_where_it_is_known() {
        let pulse = follower();
        assert!(!pulse.heard_quiet(NodeId(1), 3, 50, 800));
        assert!(!pulse.heard_quiet(NodeId(2), 4, 50, 800));
        assert_eq!(pulse.due(100), Due::Campaign);
        assert!(pulse.heard_quiet(NodeId(2), 3, 50, 800));
        assert_eq!(pulse.due(100), Due::Nothing);
    }

    #[test]
    fn a_leader_that_has_let_go_is_silent_for_its_term() {
        let pulse = Pulse::new(0, 1000);
        let leader = |term| Standing {
            term,
            leading: true,
            voter: true,
            peers: vec![NodeId(2)],
            ..Standing::default()
        };
        pulse.stand(leader(4));
        assert_eq!(pulse.due(5), Due::Beat);
        pulse.resign(4);
        assert_eq!(pulse.due(5), Due::Nothing);
        pulse.stand(leader(6));
        assert_eq!(pulse.due(5), Due::Beat);
    }

    #[test]
    fn learners_do_not_campaign_and_lone_leaders_do_not_beat() {
        let pulse = Pulse::new(0, 1000);
        assert_eq!(pulse.due(5), Due::Nothing);
        pulse.stand(Standing { term: 1, leading: true, voter: true, ..Standing::default() });
        assert_eq!(pulse.due(5), Due::Nothing);
    }
}
