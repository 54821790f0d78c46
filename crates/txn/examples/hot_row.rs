//! What one row gives that many transactions change at once, in one process with real fsyncs.
//!
//! ```text
//! hot_row N_NODES SECONDS CLIENTS…        commits a second, and how long a client waits
//! hot_row deadlock N_NODES WAITERS        a circle of two behind that many waiters
//! ```
//!
//! Each client begins, locks the row, adds one, commits, and begins again. The last line of a
//! run compares the row with the commits that were acknowledged: it must be the same number.

use base::env::FaultyNet;
use base::{Key, TabletId};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use txn::testing::{TestNode, member};
use txn::{Client, Error, Isolation, LockMode, Locked, Txn, Wait};

type Failure = Box<dyn std::error::Error>;

/// How long clients are waited for after the run.
const DRAIN: Duration = Duration::from_secs(60);

fn key(name: &str) -> Key {
    let mut key = 100u32.to_be_bytes().to_vec();
    key.extend_from_slice(name.as_bytes());
    key.into()
}

fn number(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_be_bytes)
}

async fn start(n_nodes: u64, dir: &std::path::Path) -> Result<Vec<TestNode>, Failure> {
    let net = FaultyNet::default();
    let dirs: Vec<_> = (1..=n_nodes).map(|id| dir.join(id.to_string())).collect();
    let starting = (1..=n_nodes).zip(&dirs).map(|(id, dir)| member(dir, &net, id, n_nodes));
    let nodes = futures::future::try_join_all(starting).await?;
    for tablet in [TabletId::ROOT, TabletId::FIRST_DATA] {
        while !nodes.iter().any(|node| node.term(tablet).is_some()) {
            nodes[0].env.sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(nodes)
}

async fn lock(txn: &mut Txn, name: &str) -> Result<u64, Error> {
    let keys = [key(name)];
    let locked = txn.lock(&keys, LockMode::Exclusive, Wait::Block).await?;
    Ok(match &locked[..] {
        [Locked::Held { row: Some(row) }] => number(&row.value),
        _ => 0,
    })
}

async fn increment(client: &Client, name: &str) -> Result<(), Error> {
    let mut txn = client.begin(Isolation::ReadCommitted);
    let done = async {
        let n = lock(&mut txn, name).await?;
        txn.put(key(name), Bytes::copy_from_slice(&(n + 1).to_be_bytes()))?;
        Ok(())
    }
    .await;
    match done {
        Ok(()) => txn.commit().await.map(drop),
        Err(error) => {
            txn.rollback().await;
            Err(error)
        }
    }
}

async fn hot(nodes: &[TestNode], n_clients: usize, seconds: u64) -> Result<(), Failure> {
    let env = nodes[0].env.clone();
    let row = format!("row {n_clients}");
    let (began, until) = (env.now(), env.now() + Duration::from_secs(seconds));
    let n_acknowledged = Arc::new(AtomicU64::new(0));
    let (sender, mut ended) = mpsc::channel::<(Vec<u64>, u64)>(n_clients);
    for n in 0..n_clients {
        let client = nodes[n % nodes.len()].client.clone();
        let (env, sender, row) = (env.clone(), sender.clone(), row.clone());
        let n_acknowledged = n_acknowledged.clone();
        env.clone().spawn("client", async move {
            let (mut took_us, mut n_failed) = (Vec::new(), 0);
            while env.now() < until {
                let asked = env.now();
                match increment(&client, &row).await {
                    Ok(()) => {
                        n_acknowledged.fetch_add(1, Ordering::Relaxed);
                        took_us.push((env.now() - asked).as_micros() as u64);
                    }
                    Err(_) => n_failed += 1,
                }
            }
            // The receiver may have given up waiting.
            sender.send((took_us, n_failed)).await.ok();
        });
    }
    drop(sender);
    env.sleep(Duration::from_secs(seconds)).await;
    let (n, span) = (n_acknowledged.load(Ordering::Relaxed), env.now() - began);
    let (mut all, mut n_failed, mut n_ended) = (Vec::new(), 0, 0);
    while let Some(Some((took_us, failed))) = env.timeout(DRAIN, ended.recv()).await {
        all.extend(took_us);
        n_failed += failed;
        n_ended += 1;
    }
    all.sort_unstable();
    let at = |share: f64| all.get((all.len() as f64 * share) as usize).copied().unwrap_or(0);
    println!(
        "{} nodes, {n_clients} clients: {:.0} commits/s, p50 {} ms, p99 {} ms, {n_failed} failed, \
         {} clients without an end",
        nodes.len(),
        n as f64 / span.as_secs_f64(),
        at(0.5) / 1000,
        at(0.99) / 1000,
        n_clients - n_ended,
    );
    let mut txn = nodes[0].client.begin(Isolation::ReadCommitted);
    let rows = txn.get(&[key(&row)]).await?;
    let value = rows[0].as_ref().map_or(0, |row| number(&row.value));
    println!("the row: {value}; acknowledged: {}", n_acknowledged.load(Ordering::Relaxed));
    Ok(())
}

async fn deadlock(nodes: &[TestNode], n_waiters: usize) -> Result<(), Failure> {
    let env = nodes[0].env.clone();
    let mut one = nodes[0].client.begin(Isolation::ReadCommitted);
    let mut two = nodes[nodes.len() - 1].client.begin(Isolation::ReadCommitted);
    lock(&mut one, "a").await?;
    lock(&mut two, "b").await?;
    let (sender, mut ended) = mpsc::channel(n_waiters.max(1));
    for n in 0..n_waiters {
        let client = nodes[n % nodes.len()].client.clone();
        let (env, sender) = (env.clone(), sender.clone());
        env.clone().spawn("waiter", async move {
            let failed = increment(&client, ["a", "b"][n % 2]).await.is_err();
            sender.send(failed).await.ok();
        });
    }
    drop(sender);
    // All of them wait by then, and have waited for longer than a search needs to begin.
    env.sleep(Duration::from_secs(2)).await;
    let began = env.now();
    let take = |mut txn: Txn, name: &'static str| async move {
        let locked = lock(&mut txn, name).await;
        txn.rollback().await;
        locked.is_err()
    };
    let (first, second) = tokio::join!(take(one, "b"), take(two, "a"));
    let found = env.now() - began;
    let (mut n_victims, mut n_ended) = (0, 0);
    while let Some(Some(failed)) = env.timeout(DRAIN, ended.recv()).await {
        n_ended += 1;
        n_victims += usize::from(failed);
    }
    println!(
        "a circle of two behind {n_waiters} waiters on {} nodes: over after {} ms; \
         {} victims in the circle, {n_victims} outside; {} waiters without an end; all ended after {} ms",
        nodes.len(),
        found.as_millis(),
        usize::from(first) + usize::from(second),
        n_waiters - n_ended,
        (env.now() - began).as_millis(),
    );
    Ok(())
}

fn main() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let dir = tempfile::tempdir_in(".")?;
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let circle = words.first().is_some_and(|word| word == "deadlock");
    words.drain(..usize::from(circle));
    let numbers = words.iter().map(|word| word.parse()).collect::<Result<Vec<u64>, _>>()?;
    let number = |at: usize, default: u64| numbers.get(at).copied().unwrap_or(default);
    runtime.block_on(async {
        let nodes = start(number(0, 1), dir.path()).await?;
        if circle {
            return deadlock(&nodes, number(1, 500) as usize).await;
        }
        let clients = numbers.get(2..).filter(|rest| !rest.is_empty()).unwrap_or(&[16, 200, 1000]);
        for n_clients in clients {
            hot(&nodes, *n_clients as usize, number(1, 5)).await?;
        }
        Ok(())
    })
}
