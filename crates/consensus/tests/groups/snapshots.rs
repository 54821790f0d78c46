//! What the log forgets, and how those who missed it are filled.

use crate::cluster::{Cluster, Op, TABLET, config, index, op, patient, put, row, wait_for};
use base::Scn;
use bytes::Bytes;
use consensus::Config;
use std::sync::atomic::Ordering;
use std::time::Duration;
use storage::At;

fn forgetful() -> Config {
    Config { n_entries_kept: 8, purge_every: Duration::from_millis(20), ..config() }
}

/// Writes until the leader's log has forgotten the entry `upto`.
fn forget(cluster: &Cluster, upto: u64) {
    let leader = cluster.leader();
    wait_for("the log to be purged", || {
        let node = cluster.node(leader);
        node.propose(put("filler", "x")).unwrap();
        node.store.flush().unwrap();
        (node.group().status().purged > upto).then_some(())
    });
}

#[test]
fn a_snapshot_carries_all_that_a_tablet_is_made_of() {
    let mut cluster = Cluster::new(3, forgetful());
    cluster.move_leader(1);
    cluster.kill(3);
    let node = cluster.node(1);
    let old = index(&node.propose(put("k", "old")).unwrap());
    let new = index(&node.propose(put("k", "new")).unwrap());
    node.propose(op(&Op::Meta(row(TABLET, "m"), Bytes::from_static(b"meta")))).unwrap();
    node.propose(op(&Op::Expiring(row(TABLET, "e"), Bytes::from_static(b"soon")))).unwrap();
    forget(&cluster, new + 4);
    let last = index(&cluster.node(1).propose(put("k", "newest")).unwrap());
    cluster.start(3);
    cluster.wait_applied(3, last);
    let store = &cluster.node(3).store;
    let at = |scn| store.get(&row(TABLET, "k"), scn).unwrap().map(|(scn, value)| (scn.0, value));
    assert_eq!(at(At::Newest), Some((last, Bytes::from_static(b"newest"))));
    assert_eq!(at(At::Scn(Scn(new))), Some((new, Bytes::from_static(b"new"))));
    assert_eq!(at(At::Scn(Scn(old))), Some((old, Bytes::from_static(b"old"))));
    assert_eq!(store.meta_get(&row(TABLET, "m")).unwrap(), Some(Bytes::from_static(b"meta")));
    assert_eq!(store.expiring_get(&row(TABLET, "e")).unwrap(), Some(Bytes::from_static(b"soon")));
    assert_eq!(cluster.node(3).groups.stats().n_snapshots_installed, 1);
}

#[test]
fn a_snapshot_cut_short_begins_anew() {
    let mut cluster = Cluster::new(3, forgetful());
    cluster.move_leader(1);
    cluster.kill(3);
    // More than one chunk.
    let big = "v".repeat(300_000);
    for n in 0..12 {
        cluster.node(1).propose(put(&format!("big{n}"), &big)).unwrap();
    }
    forget(&cluster, cluster.node(1).group().status().last_log);
    let last = cluster.node(1).group().status().last_log;

    // The receiver dies with all of it on disk and nothing of it installed.
    let node = cluster.open(3);
    let hold = node.kv.hold_install.clone();
    hold.store(true, Ordering::Release);
    node.run(node.groups.start(TABLET, node.kv.clone())).unwrap();
    cluster.nodes.insert(3, node);
    let staging = cluster.dir(3).join("staging");
    wait_for("a staged snapshot", || {
        let mut files = std::fs::read_dir(&staging).ok()?;
        let bytes = files.next()?.ok()?.metadata().ok()?.len();
        (bytes > 3_000_000).then_some(())
    });
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        hold.store(false, Ordering::Release);
    });
    cluster.kill(3);
    killer.join().unwrap();

    // The network fails in the middle of the next transfer, and comes back.
    cluster.cut_after(1, 3, 2_000_000);
    cluster.start(3);
    wait_for("the network to fail", || cluster.is_cut(1, 3).then_some(()));
    cluster.heal();
    cluster.wait_applied(3, last);
    assert_eq!(cluster.node(3).get("big11").as_deref(), Some(&big[..]));
    let left = std::fs::read_dir(&staging).unwrap().count();
    assert_eq!(left, 0, "what was cut short is not left on disk");
}

#[test]
fn the_log_forgets_what_is_durable_and_nothing_else() {
    // Nobody counts as away, however long the machine lets a follower wait.
    let config = Config { n_entries_kept: 8, purge_every: Duration::from_millis(20), ..patient() };
    let cluster = Cluster::new(3, config);
    let leader = cluster.leader();
    let mut highest = 0;
    for n in 0..400 {
        cluster.node(leader).propose(put(&format!("k{}", n % 10), "v")).unwrap();
        for node in cluster.nodes.values() {
            if n % 25 == 0 {
                node.store.flush().unwrap();
            }
            // The purged index is read first: the durable one only grows.
            let purged = node.group().status().purged;
            let durable = node.store.durable_index(TABLET).unwrap_or(0);
            assert!(purged <= durable, "node {} forgot {purged}, durable is {durable}", node.id);
            highest = highest.max(purged);
        }
    }
    assert!(highest > 100, "the log was purged up to {highest} only");
    // Nobody was away, so nobody needed a snapshot.
    let sent: u64 = cluster.nodes.values().map(|node| node.groups.stats().n_snapshots_sent).sum();
    assert_eq!(sent, 0);
}

#[test]
fn a_killed_node_replays_what_was_not_durable() {
    let mut cluster = Cluster::new(1, forgetful());
    for n in 0..50 {
        cluster.node(1).propose(put("k", &n.to_string())).unwrap();
        if n == 30 {
            cluster.node(1).store.flush().unwrap();
        }
    }
    cluster.kill(1);
    cluster.start(1);
    cluster.leader();
    assert_eq!(cluster.node(1).get("k").as_deref(), Some("49"));
}

#[test]
fn a_state_whose_log_is_gone_is_refused() {
    let mut cluster = Cluster::new(1, forgetful());
    forget(&cluster, 20);
    cluster.kill(1);
    std::fs::remove_dir_all(cluster.dir(1).join("log")).unwrap();
    let node = cluster.open(1);
    let refused = node.run(node.groups.start(TABLET, node.kv.clone()));
    let message = refused.err().expect("it must not start").to_string();
    assert!(message.contains("its log is gone"), "{message}");
    cluster.nodes.insert(1, node);
}

#[test]
fn a_log_that_begins_after_the_state_is_refused() {
    let mut cluster = Cluster::new(1, forgetful());
    forget(&cluster, 20);
    cluster.kill(1);
    std::fs::remove_dir_all(cluster.dir(1).join("state")).unwrap();
    let node = cluster.open(1);
    let refused = node.run(node.groups.start(TABLET, node.kv.clone()));
    let message = refused.err().expect("it must not start").to_string();
    assert!(message.contains("its log here begins at entry"), "{message}");
    cluster.nodes.insert(1, node);
}
