//! Members come and go; groups are born of others.

use crate::cluster::{Cluster, Op, TABLET, config, index, op, put, row, wait_for};
use base::{NodeId, TabletId};
use consensus::{Config, Error};
use std::collections::BTreeSet;
use std::time::Duration;

fn voters<const N: usize>(ids: [u64; N]) -> BTreeSet<NodeId> {
    ids.map(NodeId).into()
}

fn change<const N: usize>(cluster: &Cluster, ids: [u64; N]) -> Result<(), Error> {
    let leader =
        wait_for("a leader", || cluster.nodes.values().find(|node| node.leads().is_some()));
    leader.run(leader.group().change_members(voters(ids)))
}

#[test]
fn a_wiped_node_comes_back_as_another_and_is_filled() {
    let kept = Config { n_entries_kept: 4, purge_every: Duration::from_millis(20), ..config() };
    let mut cluster = Cluster::new(3, kept);
    cluster.move_leader(1);
    for n in 0..40 {
        cluster.node(1).propose(put(&format!("k{n}"), "v")).unwrap();
        cluster.node(1).store.flush().unwrap();
    }
    cluster.kill(3);
    std::fs::remove_dir_all(cluster.dir(3)).unwrap();
    wait_for("the log to forget", || {
        cluster.node(1).propose(put("k", "v")).unwrap();
        cluster.node(1).store.flush().unwrap();
        (cluster.node(1).group().status().purged > 5).then_some(())
    });
    cluster.start(4);
    change(&cluster, [1, 2, 4]).unwrap();
    let at = index(&cluster.node(1).propose(put("k", "last")).unwrap());
    cluster.wait_applied(4, at);
    assert_eq!(cluster.node(4).get("k0").as_deref(), Some("v"));
    let status = cluster.node(1).group().status();
    assert_eq!((status.voters, status.learners), (vec![NodeId(1), NodeId(2), NodeId(4)], vec![]));
    assert_eq!(cluster.node(1).groups.stats().n_snapshots_sent, 1);
    // The new one counts: with it and without node 2 there is a majority.
    cluster.kill(2);
    cluster.node(1).propose(put("k", "with node 4")).unwrap();
}

#[test]
fn a_change_that_its_leader_left_half_done_is_done_by_the_next() {
    let mut cluster = Cluster::new(3, config());
    cluster.move_leader(1);
    let group = cluster.node(1).group();
    // Node 4 is not there: the change waits for it to catch up.
    drop(cluster.node(1).spawn(async move { group.change_members(voters([1, 2, 4])).await }));
    wait_for("the learner", || {
        let all = [2, 3].map(|id| cluster.node(id).group().status());
        all.iter().all(|status| status.learners == [NodeId(4)]).then_some(())
    });
    cluster.kill(1);
    let next = cluster.leader();
    assert!(cluster.node(next).group().status().is_changing);
    change(&cluster, [1, 2, 3]).unwrap();
    let status = cluster.node(next).group().status();
    assert_eq!((status.voters, status.learners), (Vec::from([1, 2, 3].map(NodeId)), vec![]));
    assert!(!status.is_changing);
}

#[test]
fn a_hand_over_that_is_dropped_leaves_no_mute_leader() {
    let cluster = Cluster::new(3, config());
    cluster.move_leader(1);
    // Node 9 is not there: the hand-over waits for it to catch up.
    let group = cluster.node(1).group();
    let hand_over = cluster.node(1).spawn(async move { group.transfer(NodeId(9)).await });
    wait_for("the leader's silence", || cluster.node(1).propose(put("k", "v")).err());
    hand_over.abort();
    wait_for("its word again", || cluster.node(1).propose(put("k", "v")).ok());
}

#[test]
fn a_removed_member_does_not_disturb() {
    let cluster = Cluster::new(3, config());
    cluster.move_leader(1);
    change(&cluster, [1, 2]).unwrap();
    let term = cluster.node(1).leads();
    // It goes on campaigning, as it was never told.
    std::thread::sleep(config().election_max * 2);
    assert_eq!(cluster.node(1).leads(), term);
    cluster.node(1).propose(put("k", "v")).unwrap();
}

/// It is told nothing any more, not even that it was removed; and its vote outlives a restart.
#[test]
fn a_removed_member_names_no_leader() {
    let mut cluster = Cluster::new(3, config());
    cluster.move_leader(1);
    change(&cluster, [1, 2]).unwrap();
    let named = |cluster: &Cluster, id: u64| cluster.node(id).group().status().leader;
    wait_for("the silence to tell", || named(&cluster, 3).is_none().then_some(()));
    cluster.kill(3);
    cluster.start(3);
    assert_eq!(named(&cluster, 3), None, "nobody has spoken to it");
    wait_for("the leader's word", || (named(&cluster, 2) == Some(NodeId(1))).then_some(()));
    assert_eq!(named(&cluster, 1), Some(NodeId(1)));
}

#[test]
fn a_leader_that_is_to_go_hands_over_first() {
    let cluster = Cluster::new(3, config());
    cluster.move_leader(1);
    let (group, term) = (cluster.node(1).group(), cluster.node(1).leads().unwrap());
    let told = change(&cluster, [2, 3]);
    let Err(Error::NotLeader { leader: Some(next) }) = told else { panic!("{told:?}") };
    assert!(!group.lease(term));
    wait_for("the next leader", || cluster.is_leader(next.0).then_some(()));
    change(&cluster, [2, 3]).unwrap();
    assert_eq!(cluster.node(next.0).group().status().voters, vec![NodeId(2), NodeId(3)]);
}

#[test]
fn a_seeded_group_is_born_elects_and_lives_on() {
    const CHILD: TabletId = TabletId(8);
    let mut cluster = Cluster::new(3, config());
    let leader = cluster.leader();
    let at = index(&cluster.node(leader).propose(op(&Op::Seed(CHILD))).unwrap());
    (1..=3).for_each(|id| cluster.wait_applied(id, at));

    let wrong = cluster.wrong.clone();
    let start = |cluster: &Cluster, id: u64| cluster.node(id).start(CHILD, &wrong);
    let groups: Vec<_> = (1..=3).map(|id| start(&cluster, id)).collect();
    cluster.node(2).run(groups[1].0.campaign()).unwrap();
    let role = |group: &consensus::Group| match *group.role().borrow() {
        consensus::Role::Leader { term } => Some(term),
        consensus::Role::Follower { .. } => None,
    };
    let term = wait_for("the child's leader", || role(&groups[1].0));
    let child_put = |key: &str| op(&Op::Put(row(CHILD, key), bytes::Bytes::from_static(b"v")));
    let answer = cluster.node(2).run(groups[1].0.propose(term, child_put("a"))).unwrap();
    let at = index(&answer);
    for (_, kv) in &groups {
        wait_for("the child's entry everywhere", || (kv.applied_index() >= at).then_some(()));
    }
    drop(groups);

    // It lives on after a restart, and a replica that was never seeded is filled by a snapshot.
    cluster.kill(2);
    cluster.kill(3);
    std::fs::remove_dir_all(cluster.dir(3)).unwrap();
    cluster.start(2);
    let one = cluster.node(1).groups.get(CHILD).unwrap();
    // Nothing was flushed: the child is there once its parent's log has been replayed.
    wait_for("the second birth", || cluster.node(2).store.meta_get(&row(CHILD, "born")).unwrap());
    let (two, _) = start(&cluster, 2);
    let (leader, group, term) = wait_for("the child's next leader", || {
        role(&one)
            .map(|term| (1, one.clone(), term))
            .or(role(&two).map(|term| (2, two.clone(), term)))
    });
    cluster.node(leader).run(group.propose(term, child_put("b"))).unwrap();
    let node = cluster.open(4);
    let (_, kv) = node.start(CHILD, &wrong);
    node.run(node.groups.start(TABLET, node.kv.clone())).unwrap();
    cluster.nodes.insert(4, node);
    cluster.node(leader).run(group.change_members(voters([1, 2, 4]))).unwrap();
    let last = group.status().last_log;
    wait_for("the new replica", || (kv.applied_index() >= last).then_some(()));
    let born = cluster.node(4).store.meta_get(&row(CHILD, "born")).unwrap();
    assert!(born.is_some(), "what the child was born with came with a snapshot");
}
