//! Deaths in a row: whoever was down when a death was reported is freed all the same, and by nothing
//! but that death.

use crate::cluster::{Cluster, config, index, patient, put, wait_for};
use std::time::Duration;

/// Leader 2, and what all three have.
fn led_by_2() -> Cluster {
    let cluster = Cluster::new(3, patient());
    cluster.move_leader(2);
    let at = index(&cluster.node(2).propose(put("k", "v")).unwrap());
    (1..=3).for_each(|id| cluster.wait_applied(id, at));
    cluster
}

#[test]
fn a_voter_that_was_down_hears_of_the_death_from_the_candidate() {
    let mut cluster = led_by_2();
    cluster.kill(3);
    cluster.kill(2);
    cluster.report_death(3);
    cluster.report_death(2);
    cluster.start(3);
    let new = wait_for("a leader", || [1, 3].into_iter().find(|id| cluster.is_leader(*id)));
    cluster.node(new).propose(put("k", "w")).unwrap();
}

#[test]
fn a_survivor_that_was_not_told_hears_of_the_death_from_the_one_that_came_back() {
    let mut cluster = led_by_2();
    cluster.kill(3);
    cluster.kill(2);
    cluster.start(3);
    cluster.tell(3, cluster.death(2));
    let new = wait_for("a leader", || [1, 3].into_iter().find(|id| cluster.is_leader(*id)));
    cluster.node(new).propose(put("k", "w")).unwrap();
}

#[test]
fn who_came_back_with_the_longer_log_leads() {
    let mut cluster = led_by_2();
    cluster.cut(1, 2);
    let at = index(&cluster.node(2).propose(put("k", "w")).unwrap());
    cluster.wait_applied(3, at - 1);
    cluster.kill(3);
    cluster.kill(2);
    assert!(cluster.node(1).group().status().last_log < at, "node 1 was to be behind");
    cluster.report_death(2);
    cluster.start(3);
    wait_for("node 3 to lead", || cluster.is_leader(3).then_some(()));
    assert_eq!(cluster.node(3).get("k").as_deref(), Some("w"));
}

#[test]
fn the_dead_leader_s_next_start_makes_a_majority_at_once() {
    let mut cluster = led_by_2();
    cluster.kill(3);
    cluster.kill(2);
    cluster.report_death(2);
    cluster.start(2);
    let new = wait_for("a leader", || [1, 2].into_iter().find(|id| cluster.is_leader(*id)));
    cluster.node(new).propose(put("k", "w")).unwrap();
}

/// Three, one after the other, each the leader of the moment, and the one before is still away.
#[test]
fn leaders_that_die_in_a_row_are_succeeded_in_a_row() {
    let mut cluster = led_by_2();
    let mut away = 3;
    cluster.kill(away);
    cluster.report_death(away);
    for n in 0..4 {
        let leader = wait_for("a leader", || (1..=3).find(|id| cluster.is_leader(*id)));
        cluster.node(leader).propose(put("n", &n.to_string())).unwrap();
        cluster.kill(leader);
        cluster.report_death(leader);
        cluster.start(away);
        away = leader;
    }
    let last = wait_for("a leader", || (1..=3).find(|id| cluster.is_leader(*id)));
    cluster.node(last).propose(put("n", "last")).unwrap();
}

/// Node 1 leads in its second start; that its first start is dead is true, and frees nobody.
#[test]
fn the_death_of_an_older_start_frees_nobody() {
    let mut cluster = Cluster::new(3, config());
    cluster.move_leader(1);
    let old = cluster.death(1);
    cluster.kill(1);
    cluster.report_death(1);
    cluster.start(1);
    cluster.move_leader(1);
    // Nodes 2 and 3 see nothing of the leader any more, and node 2 forgets.
    cluster.cut(1, 3);
    cluster.cut(1, 2);
    cluster.kill(2);
    cluster.start(2);
    let started = cluster.node(2).env.now();
    (2..=3).for_each(|id| cluster.tell(id, old));
    wait_for("another leader", || (2..=3).find(|id| cluster.is_leader(*id)));
    let waited = cluster.node(2).env.now() - started;
    assert!(waited >= config().election_max - Duration::from_millis(50), "after {waited:?}");
}
