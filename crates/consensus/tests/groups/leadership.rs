//! Who leads, since when, and until when.

use crate::cluster::{Cluster, Op, config, index, op, patient, put, wait_for};
use base::{NodeId, TabletId};
use consensus::{Error, Role};
use std::time::Duration;

#[test]
fn a_restarted_voter_keeps_the_promise_that_it_forgot() {
    let mut cluster = Cluster::new(3, config());
    cluster.move_leader(1);
    // Node 3 loses sight of the leader and wants to campaign; node 2 knows better.
    cluster.cut(1, 3);
    std::thread::sleep(config().election_max * 2);
    assert!(cluster.is_leader(1) && !cluster.is_leader(3));
    // Node 2 forgets, and does not hear from the leader either.
    cluster.cut(1, 2);
    cluster.kill(2);
    cluster.start(2);
    let started = cluster.node(2).env.now();
    wait_for("another leader", || (2..=3).find(|id| cluster.is_leader(*id)));
    let waited = cluster.node(2).env.now() - started;
    assert!(waited >= config().election_max - Duration::from_millis(50), "after {waited:?}");
}

#[test]
fn a_restarted_voter_takes_over_at_once_when_it_is_asked_to() {
    let mut cluster = Cluster::new(3, patient());
    cluster.move_leader(1);
    cluster.kill(2);
    cluster.start(2);
    cluster.move_leader(2);

    // And after a death, as candidate or as voter.
    cluster.kill(3);
    cluster.start(3);
    wait_for("node 3 to know its leader", || {
        (cluster.node(3).group().status().leader == Some(NodeId(2))).then_some(())
    });
    cluster.kill(2);
    cluster.report_death(2);
    wait_for("a successor", || [1, 3].into_iter().find(|id| cluster.is_leader(*id)));
}

#[test]
fn a_restarted_leader_follows_first_and_leads_in_another_term() {
    let mut cluster = Cluster::new(1, config());
    let term = cluster.node(1).leads().unwrap();
    cluster.kill(1);
    cluster.start(1);
    cluster.leader();
    let roles = cluster.node(1).kv.roles.lock().clone();
    assert!(matches!(roles[0].1, Role::Follower { .. }), "{roles:?}");
    assert!(cluster.node(1).leads().unwrap() > term, "{roles:?}");
}

#[test]
fn a_deposed_leader_knows_before_its_successor_serves() {
    let cluster = Cluster::new(3, config());
    let old = cluster.leader();
    let node = cluster.node(old);
    let (group, term) = (node.group(), node.leads().unwrap());
    assert!(group.lease(term));
    let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    others.iter().for_each(|id| cluster.cut(old, *id));
    let mut last_sure = None;
    let new = wait_for("a successor", || {
        for _ in 0..200 {
            let now = node.env.now();
            if group.lease(term) {
                last_sure = Some(now);
            }
        }
        others.iter().copied().find(|id| cluster.is_leader(*id))
    });
    assert!(!group.lease(term) && !node.run(group.confirm(term)));
    let roles = cluster.node(new).kv.roles.lock().clone();
    let serves = roles.iter().rfind(|(_, role)| matches!(role, Role::Leader { .. })).unwrap().0;
    let margin = serves.saturating_duration_since(last_sure.unwrap());
    eprintln!("the successor served {margin:?} after the old leader's last lease");
    assert!(last_sure.unwrap() < serves);
}

#[test]
fn what_an_old_leader_proposed_is_lost_and_says_so() {
    let cluster = Cluster::new(3, config());
    let old = cluster.leader();
    let node = cluster.node(old);
    let (group, term) = (node.group(), node.leads().unwrap());
    node.propose(put("k", "first")).unwrap();
    let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    others.iter().for_each(|id| cluster.cut(old, *id));
    // The lease still holds, so it is proposed, and reaches nobody.
    let pending =
        node.spawn(async move { group.propose(term, put("k", "of the old leader")).await });
    let new = wait_for("a successor", || others.iter().copied().find(|id| cluster.is_leader(*id)));
    let late = node.run(node.group().propose(term, put("k", "too late")));
    assert!(matches!(late, Err(Error::NotLeader { .. })), "{late:?}");
    let at = index(&cluster.node(new).propose(put("k", "second")).unwrap());
    cluster.heal();
    let outcome = node.run(pending).unwrap();
    assert!(matches!(outcome, Err(Error::Lost)), "{outcome:?}");
    (1..=3).for_each(|id| cluster.wait_applied(id, at));
    (1..=3).for_each(|id| assert_eq!(cluster.node(id).get("k").as_deref(), Some("second")));
}

#[test]
fn a_term_that_is_over_proposes_nothing_even_on_the_same_node() {
    let mut cluster = Cluster::new(1, config());
    let old = cluster.node(1).leads().unwrap();
    cluster.kill(1);
    cluster.start(1);
    cluster.leader();
    let node = cluster.node(1);
    let refused = node.run(node.group().propose(old, put("k", "old")));
    assert!(matches!(refused, Err(Error::NotLeader { .. })), "{refused:?}");
    node.propose(put("other", "new")).unwrap();
    assert_eq!(node.get("k"), None);
}

#[test]
fn a_reported_death_is_not_waited_for() {
    let mut cluster = Cluster::new(3, patient());
    cluster.move_leader(1);
    cluster.node(1).propose(put("k", "v")).unwrap();
    cluster.kill(1);
    let reported = cluster.node(2).env.now();
    cluster.report_death(1);
    wait_for("a successor", || [2, 3].into_iter().find(|id| cluster.is_leader(*id)));
    eprintln!("a successor led {:?} after the report", cluster.node(2).env.now() - reported);
}

#[test]
fn a_successor_with_too_short_a_log_is_overbidden() {
    let mut cluster = Cluster::new(3, patient());
    cluster.move_leader(1);
    cluster.cut(1, 2);
    let at = index(&cluster.node(1).propose(put("k", "v")).unwrap());
    cluster.kill(1);
    assert!(cluster.node(2).group().status().last_log < at, "node 2 was to be behind");
    let reported = cluster.node(2).env.now();
    cluster.report_death(1);
    wait_for("node 3 to lead", || cluster.is_leader(3).then_some(()));
    eprintln!(
        "the better successor led {:?} after the report",
        cluster.node(2).env.now() - reported
    );
    assert_eq!(cluster.node(3).get("k").as_deref(), Some("v"));
}

#[test]
fn a_group_at_rest_falls_quiet_and_wakes_when_it_is_asked() {
    let cluster = Cluster::new(3, config());
    let leader = cluster.leader();
    let node = cluster.node(leader);
    let term = node.leads().unwrap();
    node.propose(put("k", "1")).unwrap();
    wait_for("the lease to end in quiet", || (!node.group().lease(term)).then_some(()));
    std::thread::sleep(config().election_max * 2);
    assert_eq!(cluster.leader(), leader, "quiet is not dead");
    assert_eq!(node.leads(), Some(term));
    assert!(node.run(node.group().confirm(term)));
    node.propose(put("k", "2")).unwrap();
    assert!(node.group().lease(term));
    assert_eq!(node.get("k").as_deref(), Some("2"));
}

/// What is in its log may have been committed long ago, and nobody asks anything of the group.
#[test]
fn a_follower_that_restarts_beside_a_group_at_rest_applies_its_log() {
    let mut cluster = Cluster::new(3, config());
    let leader = cluster.leader();
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let at = index(&cluster.node(leader).propose(put("k", "1")).unwrap());
    cluster.wait_applied(follower, at);
    let term = cluster.node(leader).leads().unwrap();
    let is_quiet = |cluster: &Cluster| !cluster.node(leader).group().lease(term);
    wait_for("quiet", || is_quiet(&cluster).then_some(()));
    cluster.kill(follower);
    cluster.start(follower);
    cluster.wait_applied(follower, at);
    assert_eq!(cluster.node(leader).leads(), Some(term), "nobody else had to be elected");
}

#[test]
fn a_quiet_leader_that_vanishes_is_missed() {
    let cluster = Cluster::new(3, config());
    let old = cluster.leader();
    let term = cluster.node(old).leads().unwrap();
    wait_for("quiet", || (!cluster.node(old).group().lease(term)).then_some(()));
    let cut = cluster.node(old).env.now();
    let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    others.iter().for_each(|id| cluster.cut(old, *id));
    wait_for("a successor", || others.iter().copied().find(|id| cluster.is_leader(*id)));
    eprintln!("a quiet leader's successor came after {:?}", cluster.node(old).env.now() - cut);
    assert!(!cluster.node(old).group().lease(term));
}

#[test]
fn groups_at_rest_share_their_heartbeats() {
    const N_GROUPS: u64 = 30;
    let cluster = Cluster::new(3, config());
    let leader = cluster.leader();
    let children = || (100..100 + N_GROUPS).map(TabletId);
    let born = children().map(|child| cluster.node(leader).propose(op(&Op::Seed(child))).unwrap());
    let at = born.map(|answer| index(&answer)).max().unwrap();
    (1..=3).for_each(|id| cluster.wait_applied(id, at));
    let mut led = Vec::new();
    for child in children() {
        let groups: Vec<_> =
            (1..=3).map(|id| cluster.node(id).start(child, &cluster.wrong).0).collect();
        // They are led from different nodes.
        let id = 1 + child.0 % 3;
        let group = groups[id as usize - 1].clone();
        let node = cluster.node(id);
        node.run(group.campaign()).unwrap();
        wait_for("the child's leader", || match *group.role().borrow() {
            Role::Leader { term } => {
                led.push((id, child, term));
                Some(())
            }
            Role::Follower { .. } => None,
        });
    }
    // Per second of the clock, however long the machine took for it.
    let env = &cluster.node(leader).env;
    let n_writes = || {
        let (before, began) = (cluster.net.n_writes(), env.now());
        std::thread::sleep(Duration::from_secs(1));
        (cluster.net.n_writes() - before) as f64 / (env.now() - began).as_secs_f64()
    };
    // Ten beats a second from each of three nodes to each of two peers, in whatever many groups.
    let most = f64::from(2 * 10 * 3 * 2);
    wait_for("the groups to fall quiet", || (n_writes() < most).then_some(()));
    std::thread::sleep(config().election_max * 2);
    wait_for("a quiet second", || (n_writes() < most).then_some(()));
    for (id, child, term) in led {
        let role = cluster.node(id).groups.get(child).unwrap().role().borrow().clone();
        assert_eq!(role, Role::Leader { term }, "{child} was led by node {id}");
    }
}
