//! Many who want the same row.

use crate::common::{get, key, put, set};
use base::env::FaultyNet;
use std::time::Duration;
use txn::testing::member;
use txn::{Client, Error, Isolation, LockMode, Wait};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const N_WAITERS: usize = 300;

/// Takes the row, and commits what is one more than it was.
async fn add_one(client: &Client, name: &str) -> Result<(), Error> {
    let mut txn = client.begin(Isolation::ReadCommitted);
    let wanted = [key(name)];
    let held = txn.lock(&wanted, LockMode::Exclusive, Wait::Block).await;
    let txn::Locked::Held { row: Some(row) } = &held?[0] else { panic!("{name} is not there") };
    let n: usize = std::str::from_utf8(&row.value).unwrap().parse().unwrap();
    put(&mut txn, name, &(n + 1).to_string()).await?;
    txn.commit().await.map(drop)
}

/// Two transactions that wait for each other stand behind all the others in the queues. One of the
/// two is the victim, and nobody else, though each that waits is on some way from one to the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circle_of_two_behind_many_waiters_has_one_victim() {
    let net = FaultyNet::default();
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let starting = (1..=3).zip(&dirs).map(|(id, dir)| member(dir.path(), &net, id, 3));
    let nodes = futures::future::try_join_all(starting).await.unwrap();
    set(&nodes[0].client, &[("a", "0"), ("b", "0")]).await;
    let mut one = nodes[0].client.begin(Isolation::ReadCommitted);
    let mut two = nodes[1].client.begin(Isolation::ReadCommitted);
    one.lock(&[key("a")], LockMode::Exclusive, Wait::Block).await.unwrap();
    two.lock(&[key("b")], LockMode::Exclusive, Wait::Block).await.unwrap();
    let waiters: Vec<_> = (0..N_WAITERS)
        .map(|n| {
            let client = nodes[n % 3].client.clone();
            tokio::spawn(async move { add_one(&client, ["a", "b"][n % 2]).await })
        })
        .collect();
    let all_wait = async {
        let inspector = nodes[2].client.inspector();
        loop {
            let waits = inspector.locks().await;
            if waits.iter().filter(|(_, row)| !row.granted).count() == N_WAITERS {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, all_wait).await.expect("they come to wait");
    let finish = |mut txn: txn::Txn, name: &'static str| async move {
        let wanted = [key(name)];
        let held = txn.lock(&wanted, LockMode::Exclusive, Wait::Block).await.map(drop);
        txn.rollback().await;
        held
    };
    let both = async { tokio::join!(finish(one, "b"), finish(two, "a")) };
    let (first, second) = tokio::time::timeout(PATIENCE, both).await.expect("it is found");
    let victims = [&first, &second].into_iter().filter(|ended| ended.is_err()).count();
    assert_eq!(victims, 1, "{first:?}, {second:?}");
    assert!(first.and(second).is_err_and(|error| matches!(error, Error::Deadlock { .. })));
    for waiter in waiters {
        let ended = tokio::time::timeout(PATIENCE, waiter).await.expect("every wait ends");
        ended.unwrap().expect("who only waits is no victim");
    }
    let mut reader = nodes[2].client.begin(Isolation::ReadCommitted);
    for name in ["a", "b"] {
        let n = get(&mut reader, name).await.unwrap().unwrap();
        assert_eq!(n, (N_WAITERS / 2).to_string());
    }
}
