//! kill -9: what was acknowledged stays, what was not is whole or absent, and the cluster goes on.
//!
//! How long that takes is not judged here, where it would depend on what else the machine does: each
//! wait has a bound that only a cluster which does not go on reaches. `cargo xtask bench kills` measures.
// The test stands outside of what is simulated.
#![allow(clippy::disallowed_methods)]

mod support;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::{Cluster, RETRYABLE, state};
use tokio::sync::Mutex;
use tokio_postgres::Client;

const N_ACCOUNTS: i64 = 64;
const START: i64 = 1000;
const N_CLIENTS: u64 = 16;
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

async fn lay_out(cluster: &Cluster) {
    let sql = cluster.connect(1).await;
    sql.batch_execute(
        "CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL);
         CREATE TABLE transfers (id bigint PRIMARY KEY, source bigint, target bigint, amount bigint);",
    )
    .await
    .unwrap();
    let rows: Vec<String> = (0..N_ACCOUNTS).map(|id| format!("({id}, {START})")).collect();
    sql.batch_execute(&format!("INSERT INTO accounts VALUES {}", rows.join(","))).await.unwrap();
    sql.batch_execute("ALTER TABLE accounts SPLIT AT VALUES (16), (32), (48)").await.unwrap();
    sql.batch_execute("ALTER TABLE transfers SPLIT AT VALUES (1000000000)").await.unwrap();
}

/// One transfer. The error says whether it may have happened all the same: only a connection that
/// ends in the middle of COMMIT (08006) and 08007 leave that open. 57P01 promises that nothing was
/// changed, in COMMIT too.
async fn transfer(
    sql: &mut Client,
    id: i64,
    source: i64,
    target: i64,
    amount: i64,
) -> Result<(), (String, bool)> {
    let definite = |error: tokio_postgres::Error| (state(&error), false);
    let txn = sql.transaction().await.map_err(definite)?;
    let update = "UPDATE accounts SET balance = balance + $2 WHERE id = $1";
    let n = txn.execute(update, &[&source, &-amount]).await.map_err(definite)?;
    assert_eq!(n, 1);
    txn.execute(update, &[&target, &amount]).await.map_err(definite)?;
    let insert = "INSERT INTO transfers VALUES ($1, $2, $3, $4)";
    txn.execute(insert, &[&id, &source, &target, &amount]).await.map_err(definite)?;
    txn.commit().await.map_err(|error| {
        let state = state(&error);
        let unsure = state == "08006" || state == "08007";
        (state, unsure)
    })
}

#[derive(Default)]
struct Seen {
    acknowledged: Mutex<BTreeMap<i64, (i64, i64, i64)>>,
    unsure: Mutex<Vec<i64>>,
    errors: Mutex<BTreeMap<String, u64>>,
    next: AtomicI64,
    /// Counts acknowledged transfers.
    n_done: AtomicU64,
    n_audits: AtomicU64,
    over: AtomicBool,
}

async fn client(cluster: Arc<Cluster>, seen: Arc<Seen>, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut sql: Option<Client> = None;
    while !seen.over.load(Ordering::Relaxed) {
        let Some(connection) = &mut sql else {
            let node = rng.random_range(1..=cluster.n_nodes);
            match cluster.try_connect(node).await {
                Ok(client) => sql = Some(client),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
            continue;
        };
        // Spread the ids over both tablets of the journal.
        let n = seen.next.fetch_add(1, Ordering::Relaxed);
        let id = if n % 2 == 0 { n } else { 1_000_000_000 + n };
        let source = rng.random_range(0..N_ACCOUNTS);
        let target = (source + rng.random_range(1..N_ACCOUNTS)) % N_ACCOUNTS;
        let amount = rng.random_range(1..10);
        match transfer(connection, id, source, target, amount).await {
            Ok(()) => {
                seen.acknowledged.lock().await.insert(id, (source, target, amount));
                seen.n_done.fetch_add(1, Ordering::Relaxed);
            }
            Err((state, unsure)) => {
                *seen.errors.lock().await.entry(state.clone()).or_default() += 1;
                if unsure {
                    seen.unsure.lock().await.push(id);
                }
                if state == "08006" || state == "57P01" {
                    sql = None;
                }
            }
        }
    }
}

/// The total at one snapshot, and the snapshot.
async fn total(sql: &Client) -> Result<(i64, String), tokio_postgres::Error> {
    sql.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    let read = async {
        let sum = sql.query_one("SELECT sum(balance)::bigint FROM accounts", &[]).await?.get(0);
        Ok((sum, sql.query_one("SELECT pg_export_snapshot()", &[]).await?.get(0)))
    };
    let read = read.await;
    sql.batch_execute("ROLLBACK").await?;
    read
}

async fn total_at(sql: &Client, snapshot: &str) -> Result<i64, tokio_postgres::Error> {
    sql.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    sql.batch_execute(&format!("SET TRANSACTION SNAPSHOT '{snapshot}'")).await?;
    let row = sql.query_one("SELECT sum(balance)::bigint FROM accounts", &[]).await;
    sql.batch_execute("ROLLBACK").await?;
    row.map(|row| row.get(0))
}

/// Reads totals from any node, now and at earlier snapshots, as long as the storm lasts.
async fn auditor(cluster: Arc<Cluster>, seen: Arc<Seen>) {
    let mut rng = SmallRng::seed_from_u64(99);
    let mut snapshots: Vec<String> = Vec::new();
    while !seen.over.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let node = rng.random_range(1..=cluster.n_nodes);
        let Ok(sql) = cluster.try_connect(node).await else { continue };
        match total(&sql).await {
            Ok((sum, snapshot)) => {
                assert_eq!(sum, N_ACCOUNTS * START, "the total changed at snapshot {snapshot}");
                snapshots.push(snapshot);
                seen.n_audits.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => assert!(RETRYABLE.contains(&&*state(&error)), "{error:?}"),
        }
        if snapshots.is_empty() {
            continue;
        }
        let snapshot = &snapshots[rng.random_range(0..snapshots.len())];
        match total_at(&sql, snapshot).await {
            Ok(sum) => {
                assert_eq!(sum, N_ACCOUNTS * START, "the total changed at old snapshot {snapshot}")
            }
            Err(error) => assert!(RETRYABLE.contains(&&*state(&error)), "{error:?}"),
        }
    }
}

/// Waits until a counter has gone beyond `n`.
async fn until(counter: &AtomicU64, n: u64, what: &str) {
    let begun = Instant::now();
    while counter.load(Ordering::Relaxed) <= n {
        assert!(begun.elapsed() < PATIENCE, "not even {n} {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Every acknowledged transfer is there, and the accounts are what the transfers make of them.
async fn reconcile(cluster: &Cluster, seen: &Seen) {
    for node in 1..=cluster.n_nodes {
        let sql = cluster.connect(node).await;
        let mut balances: BTreeMap<i64, i64> = (0..N_ACCOUNTS).map(|id| (id, START)).collect();
        let mut found = BTreeMap::new();
        for row in sql.query("SELECT id, source, target, amount FROM transfers", &[]).await.unwrap()
        {
            let (source, target, amount): (i64, i64, i64) = (row.get(1), row.get(2), row.get(3));
            *balances.get_mut(&source).unwrap() -= amount;
            *balances.get_mut(&target).unwrap() += amount;
            found.insert(row.get::<_, i64>(0), (source, target, amount));
        }
        for (id, transfer) in seen.acknowledged.lock().await.iter() {
            assert_eq!(
                found.get(id),
                Some(transfer),
                "acknowledged transfer {id} is lost (node {node})"
            );
        }
        let unsure = seen.unsure.lock().await;
        let acknowledged = seen.acknowledged.lock().await;
        for id in found.keys() {
            assert!(
                acknowledged.contains_key(id) || unsure.contains(id),
                "transfer {id} was refused and is there"
            );
        }
        for row in sql.query("SELECT id, balance FROM accounts", &[]).await.unwrap() {
            let (id, balance): (i64, i64) = (row.get(0), row.get(1));
            assert_eq!(balances[&id], balance, "account {id} (node {node})");
        }
    }
}

/// Waits until rows of all tablets are written by a statement that began after now, at a node other
/// than `avoid`; how long that took, to be printed.
async fn until_served(cluster: &Cluster, avoid: u16) -> Duration {
    let begun = Instant::now();
    loop {
        for node in (1..=cluster.n_nodes).filter(|node| *node != avoid) {
            let Ok(sql) = cluster.try_connect(node).await else { continue };
            let touch = "UPDATE accounts SET balance = balance WHERE id IN (1, 17, 33, 49)";
            if let Ok(Ok(4)) =
                tokio::time::timeout(Duration::from_secs(1), sql.execute(touch, &[])).await
            {
                return begun.elapsed();
            }
        }
        assert!(begun.elapsed() < PATIENCE, "nothing is served after a kill\n{}", cluster.logs());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn storm(cluster: &Arc<Cluster>, seen: &Arc<Seen>) -> Vec<tokio::task::JoinHandle<()>> {
    let clients =
        (0..N_CLIENTS).map(|seed| tokio::spawn(client(cluster.clone(), seen.clone(), seed)));
    clients.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_survive_kills_of_workers_and_nodes_and_a_wiped_disk() {
    let seconds = std::env::var("ATOLL_KILL_SECONDS").ok().and_then(|text| text.parse().ok());
    let storm_length = Duration::from_secs(seconds.unwrap_or(60));
    let cluster = Arc::new(Cluster::start(3).await);
    lay_out(&cluster).await;
    let seen = Arc::new(Seen::default());
    let clients = storm(&cluster, &seen);
    let audits = tokio::spawn(auditor(cluster.clone(), seen.clone()));
    let mut rng = SmallRng::seed_from_u64(7);
    let begun = Instant::now();
    let mut outages = Vec::new();
    let mut n_kills = 0;
    let mut wiped = false;
    while begun.elapsed() < storm_length {
        tokio::time::sleep(Duration::from_millis(rng.random_range(1500..3000))).await;
        let node = rng.random_range(1..=3u16);
        let number = node.to_string();
        n_kills += 1;
        if rng.random_bool(0.5) {
            cluster.chaos(&["kill", &number, "--worker"]).unwrap();
            outages.push(until_served(&cluster, node).await);
        } else {
            cluster.chaos(&["kill", &number]).unwrap();
            outages.push(until_served(&cluster, node).await);
            if !wiped && begun.elapsed() > storm_length / 3 {
                wiped = true;
                wipe(&cluster, node).await;
            } else {
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..1500))).await;
                cluster.restart(node).await;
            }
        }
        cluster.connect(node).await;
    }
    until(&seen.n_done, 100, "transfers").await;
    until(&seen.n_audits, 3, "audits").await;
    seen.over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    audits.await.unwrap();
    reconcile(&cluster, &seen).await;
    outages.sort();
    let errors = seen.errors.lock().await.clone();
    println!(
        "{} transfers, {n_kills} kills, {} audits, errors {errors:?}, unsure {}, \
         served again after: median {:?}, longest {:?}",
        seen.n_done.load(Ordering::Relaxed),
        seen.n_audits.load(Ordering::Relaxed),
        seen.unsure.lock().await.len(),
        outages[outages.len() / 2],
        outages.last().unwrap(),
    );
    for state in errors.keys() {
        assert!(RETRYABLE.contains(&state.as_str()), "a client saw {state}");
    }
    assert!(wiped || storm_length < Duration::from_secs(30));
}

/// The node loses its disk: it comes back under a new id and is filled again.
async fn wipe(cluster: &Cluster, node: u16) {
    let old = ids(cluster, node).await;
    std::fs::remove_dir_all(cluster.node_dir(node)).unwrap();
    std::fs::create_dir(cluster.node_dir(node)).unwrap();
    cluster.restart(node).await;
    let begun = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let sql = cluster.connect(1 + node % 3).await;
        let rows = sql.query("SELECT replicas FROM atoll.tablets", &[]).await.unwrap_or_default();
        let members: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let filled = |text: &String| {
            let ids: Vec<&str> = text.split(',').collect();
            ids.len() == 3 && !ids.contains(&old.as_str())
        };
        if members.len() >= 6 && members.iter().all(filled) {
            return;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "the wiped node {node} (id {old}) is not filled again: {members:?}\n{}",
            cluster.logs()
        );
    }
}

/// The id of the node that listens where node `number` does.
async fn ids(cluster: &Cluster, number: u16) -> String {
    let sql = cluster.connect(1 + number % 3).await;
    let at = format!("127.0.0.1:{}", cluster.sql_port(number));
    let query = "SELECT id::text FROM atoll.nodes WHERE sql_address = $1 AND state <> 'replaced'";
    sql.query_one(query, &[&at]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_three_killed_at_once_come_back_with_all_they_acknowledged() {
    let cluster = Arc::new(Cluster::start(3).await);
    lay_out(&cluster).await;
    let seen = Arc::new(Seen::default());
    let clients = storm(&cluster, &seen);
    until(&seen.n_done, 50, "transfers").await;
    for node in 1..=3u16 {
        cluster.chaos(&["kill", &node.to_string()]).unwrap();
    }
    seen.over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    for node in 1..=3u16 {
        cluster.restart(node).await;
    }
    reconcile(&cluster, &seen).await;
    println!("{} transfers before the end", seen.n_done.load(Ordering::Relaxed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_leader_serves_nothing_stale_when_it_wakes() {
    let cluster = Arc::new(Cluster::start(3).await);
    lay_out(&cluster).await;
    let balance = "SELECT balance FROM accounts WHERE id = 1";
    let mut n_answers = 0;
    for node in 1..=3u16 {
        let sleeper = cluster.connect(node).await;
        let before: i64 = sleeper.query_one(balance, &[]).await.unwrap().get(0);
        cluster.chaos(&["pause", &node.to_string()]).unwrap();
        let served = until_served(&cluster, node).await;
        let other = cluster.connect(1 + node % 3).await;
        other.execute("UPDATE accounts SET balance = balance + 1 WHERE id = 1", &[]).await.unwrap();
        cluster.chaos(&["resume", &node.to_string()]).unwrap();
        println!("node {node} paused: served again after {served:?}");
        // Whatever the sleeper answers after it woke must know of the update.
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE && !sleeper.is_closed() {
            match sleeper.query_one(balance, &[]).await {
                Ok(row) => {
                    assert_eq!(row.get::<_, i64>(0), before + 1, "node {node} served the past");
                    n_answers += 1;
                    break;
                }
                Err(error) => assert!(RETRYABLE.contains(&&*state(&error)), "{error:?}"),
            }
        }
    }
    assert!(n_answers > 0, "no node answered after it woke");
}

#[tokio::test]
async fn nodes_whose_up_is_killed_stop_in_good_order() {
    let mut cluster = Cluster::start(1).await;
    let pid = std::fs::read_to_string(cluster.node_dir(1).join("supervisor.pid")).unwrap();
    cluster.kill_up();
    let begun = Instant::now();
    while std::path::Path::new(&format!("/proc/{}", pid.trim())).exists() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the supervisor goes on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let log = std::fs::read_to_string(cluster.node_dir(1).join("log.txt")).unwrap();
    assert!(!log.contains("panicked"), "{log}");
}
