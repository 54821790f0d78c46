//! What a replica has promised with its vote, to which start of which node, and when that is void.
//!
//! A voter that answers a leader makes it a promise: to vote for no other node for a while. The
//! leader's lease rests on such promises. openraft keeps the vote on disk and the end of the promise
//! in memory. So a process that starts again knows *to which node* it may be bound, but not *until
//! when*; it waits for as long as the longest promise lasts (`groups` calls that silence).
//!
//! That wait is needless when the leader's process is dead, because a dead process relies on no lease.
//! The report of a death names a node and a start of it ("node 2, start 5"). The vote on disk names a
//! term and a node ("term 9, node 2"). A [`Promise`] connects the two: beside the vote it keeps the
//! newest start of that node which the voter had heard from when the node first spoke as leader of the
//! term.
//!
//! ```text
//! node 2's start 5 leads in term 9;  node 3 hears it, and saves (term 9, node 2, start 5)
//!   "node 2 is dead up to start 4"   an older start of node 2: node 3 stays bound
//!   "node 2 is dead up to start 5"   start 5 was the leader of term 9: node 3 owes nothing
//!   "node 2 is dead up to start 6"   start 5 ended before start 6 began: node 3 owes nothing
//! ```
//!
//! Invariants:
//!
//! * *A saved start is never older than the start that led.* The voter looks the start up when a message
//!   of the leader has arrived, so the greeting of the leading start came before. A newer start may have
//!   greeted meanwhile: then 6 is saved although 5 led, and the wait is only longer than necessary.
//! * *A vote that a third node told of has no start*, and no death makes it void.
//! * *Only a committed vote binds*, that is, a vote whose leader was heard from. A voter that gave its
//!   vote to a candidate and heard nothing more of it owes nothing to anyone: it gave that vote only
//!   after its earlier promise was over or void.
//! * *Deaths only add up.* A death is a fact for ever, so it may be told late, twice, and by any node. A
//!   leadership belongs to one start, because no node goes on in a term after a restart.
//!
//! What is absent: this file sends nothing, and reads no clock and no disk.

use crate::types::{LeaderId, Vote, decode, encode};
use base::NodeId;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// Nodes whose deaths are remembered. A cluster has hundreds.
const N_NODES_MAX: usize = 4096;

/// A fact: every start of `node` up to `boot` has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Death {
    pub node: NodeId,
    pub boot: u64,
}

/// All deaths that this node was told of.
#[derive(Default)]
pub(crate) struct Deaths(RwLock<HashMap<NodeId, u64>>);

impl Deaths {
    /// False if that was known already. Beyond [`N_NODES_MAX`] nodes a death is not remembered; voters
    /// then wait out their promises.
    pub fn learn(&self, death: Death) -> bool {
        let mut known = self.0.write();
        let before = known.get(&death.node).copied();
        let is_news = match before {
            Some(boot) => boot < death.boot,
            None => known.len() < N_NODES_MAX,
        };
        if is_news {
            known.insert(death.node, death.boot);
        }
        is_news
    }

    /// The newest start of `node` that is known to have ended.
    pub fn of(&self, node: NodeId) -> Option<u64> {
        self.0.read().get(&node).copied()
    }
}

/// A vote as it is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Promise {
    pub vote: Vote,
    /// The newest start of the leader when the leader was first heard; none if it was not heard.
    pub boot: Option<u64>,
}

impl Promise {
    pub fn from_bytes(bytes: &[u8]) -> io::Result<Promise> {
        decode(bytes)
    }

    pub fn to_bytes(self) -> Bytes {
        encode(&self)
    }

    /// The node that it is made to.
    pub fn leader(&self) -> NodeId {
        NodeId(self.vote.leader_id.voted_for)
    }

    /// Whether this promise may bind `me` to another node.
    pub fn binds(&self, me: NodeId) -> bool {
        self.vote.committed && self.leader() != me
    }

    /// Whether it no longer binds, given that all starts of its leader up to `dead` have ended.
    pub fn is_void(&self, dead: Option<u64>) -> bool {
        self.vote.committed && matches!((self.boot, dead), (Some(boot), Some(dead)) if boot <= dead)
    }
}

/// The newest promise of one group's replica. The group's log sets it before the vote is durable, and
/// so before the replica answers anything that rests on the vote.
#[derive(Default)]
pub(crate) struct Promises {
    newest: Mutex<Option<Promise>>,
    heard: Mutex<Option<(LeaderId, u64)>>,
    /// The term of the leader that was heard last.
    heard_term: AtomicU64,
}

impl Promises {
    /// Sets the promise that was found on disk.
    pub fn find(&self, promise: Option<Promise>) {
        *self.newest.lock() = promise;
    }

    pub fn newest(&self) -> Option<Promise> {
        *self.newest.lock()
    }

    /// A message of a leader has come from the leader's own node, whose newest start is `boot`. True for
    /// the first message of a term. Call it before the message is looked at.
    pub fn hear(&self, vote: &Vote, from: NodeId, boot: impl FnOnce() -> Option<u64>) -> bool {
        let leader = vote.leader_id;
        if leader.term == self.heard_term.load(Ordering::Acquire) || leader.voted_for != from.0 {
            return false;
        }
        let mut heard = self.heard.lock();
        if heard.is_some_and(|(known, _)| known.term >= leader.term) {
            return false;
        }
        let Some(boot) = boot() else { return false };
        *heard = Some((leader, boot));
        self.heard_term.store(leader.term, Ordering::Release);
        true
    }

    /// The vote changes: returns the promise that is to be saved.
    pub fn make(&self, vote: Vote) -> Promise {
        let heard = *self.heard.lock();
        let boot = heard.and_then(|(leader, boot)| (leader == vote.leader_id).then_some(boot));
        let promise = Promise { vote, boot: boot.filter(|_| vote.committed) };
        *self.newest.lock() = Some(promise);
        promise
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId(3);

    fn vote(term: u64, node: u64, committed: bool) -> Vote {
        let vote = Vote { leader_id: LeaderId { term, voted_for: node }, committed };
        decode(&encode(&vote)).unwrap()
    }

    #[test]
    fn a_death_frees_from_the_start_that_led_and_from_those_before_it() {
        let promises = Promises::default();
        assert!(promises.hear(&vote(9, 2, true), NodeId(2), || Some(5)));
        let promise = promises.make(vote(9, 2, true));
        assert_eq!(promise, Promise { vote: vote(9, 2, true), boot: Some(5) });
        assert!(promise.binds(ME));
        let void: Vec<bool> =
            [None, Some(4), Some(5), Some(6)].map(|dead| promise.is_void(dead)).into();
        assert_eq!(void, [false, false, true, true]);
        assert_eq!(Promise::from_bytes(&promise.to_bytes()).unwrap(), promise);
    }

    #[test]
    fn the_first_word_of_a_term_counts_and_a_stranger_s_does_not() {
        let promises = Promises::default();
        assert!(!promises.hear(&vote(9, 2, true), NodeId(1), || Some(70)), "not the leader itself");
        assert!(promises.hear(&vote(9, 2, true), NodeId(2), || Some(5)));
        assert!(!promises.hear(&vote(9, 2, true), NodeId(2), || Some(6)), "5 or an older one led");
        assert!(!promises.hear(&vote(8, 1, true), NodeId(1), || Some(7)), "a leader of the past");
        assert_eq!(promises.make(vote(9, 2, true)).boot, Some(5));
        assert!(promises.hear(&vote(11, 1, true), NodeId(1), || Some(7)));
        assert_eq!(promises.make(vote(11, 1, true)).boot, Some(7));
    }

    #[test]
    fn a_leader_that_a_third_node_told_of_has_no_start() {
        let promises = Promises::default();
        promises.hear(&vote(9, 2, true), NodeId(2), || Some(5));
        let hearsay = promises.make(vote(10, 2, true));
        assert!(hearsay.binds(ME) && !hearsay.is_void(Some(u64::MAX)));
    }

    #[test]
    fn who_heard_nothing_of_a_candidate_and_who_led_itself_owe_nothing() {
        let promises = Promises::default();
        promises.hear(&vote(9, 2, true), NodeId(2), || Some(5));
        let given = promises.make(vote(9, 2, false));
        assert!(!given.binds(ME) && !given.is_void(Some(5)));
        assert!(!promises.make(vote(12, 3, true)).binds(ME));
    }

    #[test]
    fn deaths_only_add_up() {
        let deaths = Deaths::default();
        let death = |boot| Death { node: NodeId(2), boot };
        assert!(deaths.learn(death(5)));
        assert!(!deaths.learn(death(5)) && !deaths.learn(death(4)));
        assert_eq!(deaths.of(NodeId(2)), Some(5));
        assert!(deaths.learn(death(6)));
        assert_eq!((deaths.of(NodeId(2)), deaths.of(NodeId(1))), (Some(6), None));
        let strangers = (100..).take(N_NODES_MAX).map(|node| Death { node: NodeId(node), boot: 1 });
        assert_eq!(strangers.filter(|death| deaths.learn(*death)).count(), N_NODES_MAX - 1);
        assert!(deaths.learn(death(7)), "who is known goes on being known");
    }
}
