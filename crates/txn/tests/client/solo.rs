//! One node: what a transaction does, seen from its client.

use crate::common::{all, get, key, put, set};
use base::{Key, KeyRange};
use bytes::Bytes;
use txn::testing::solo;
use txn::{Error, Isolation, LockMode, Locked, Wait};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_committed_is_read_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    {
        let solo = solo(dir.path()).await.unwrap();
        set(&solo.client, &[("a", "1"), ("b", "2"), ("c", "3")]).await;
        let mut txn = solo.client.begin(Isolation::ReadCommitted);
        assert_eq!(all(&mut txn, false).await, ["a=1", "b=2", "c=3"]);
        put(&mut txn, "bb", "own").await.unwrap();
        txn.lock(&[key("c")], LockMode::Exclusive, Wait::Block).await.unwrap();
        txn.delete(key("c")).unwrap();
        assert_eq!(all(&mut txn, true).await, ["bb=own", "b=2", "a=1"]);
        let savepoint = txn.savepoint();
        put(&mut txn, "a", "changed").await.unwrap();
        assert_eq!(get(&mut txn, "a").await.unwrap().unwrap(), "changed");
        txn.rollback_to(savepoint);
        assert_eq!(get(&mut txn, "a").await.unwrap().unwrap(), "1");
        txn.commit().await.unwrap();
        solo.stop().await;
    }
    let solo = solo(dir.path()).await.unwrap();
    let mut txn = solo.client.begin(Isolation::ReadCommitted);
    assert_eq!(all(&mut txn, false).await, ["a=1", "b=2", "bb=own"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_stands_still_and_the_first_updater_wins() {
    let dir = tempfile::tempdir().unwrap();
    let solo = solo(dir.path()).await.unwrap();
    set(&solo.client, &[("a", "1"), ("b", "1")]).await;
    let mut old = solo.client.begin(Isolation::RepeatableRead);
    assert_eq!(get(&mut old, "a").await.unwrap().unwrap(), "1");
    set(&solo.client, &[("a", "2")]).await;
    let mut deleter = solo.client.begin(Isolation::ReadCommitted);
    deleter.lock(&[key("b")], LockMode::Exclusive, Wait::Block).await.unwrap();
    deleter.delete(key("b")).unwrap();
    deleter.commit().await.unwrap();
    assert_eq!(all(&mut old, false).await, ["a=1", "b=1"]);
    for name in ["a", "b"] {
        let refused = put(&mut old, name, "mine").await;
        assert!(matches!(refused, Err(Error::Serialization { .. })), "{name}: {refused:?}");
    }
    old.rollback().await;
    let mut new = solo.client.begin(Isolation::RepeatableRead);
    assert_eq!(all(&mut new, false).await, ["a=2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_writer_sees_what_it_waited_for_and_nowait_does_not_wait() {
    let dir = tempfile::tempdir().unwrap();
    let solo = solo(dir.path()).await.unwrap();
    set(&solo.client, &[("a", "1")]).await;
    let mut first = solo.client.begin(Isolation::ReadCommitted);
    put(&mut first, "a", "2").await.unwrap();
    let mut impatient = solo.client.begin(Isolation::ReadCommitted);
    let refused = impatient.lock(&[key("a")], LockMode::Shared, Wait::NoWait).await;
    assert!(matches!(refused, Err(Error::LockNotAvailable)));
    let skipped =
        impatient.lock(&[key("a"), key("z")], LockMode::Exclusive, Wait::Skip).await.unwrap();
    assert!(matches!(skipped[..], [Locked::Skipped, Locked::Held { row: None }]));
    impatient.rollback().await;
    let mut second = solo.client.begin(Isolation::ReadCommitted);
    let wanted = [key("a")];
    let waits = second.lock(&wanted, LockMode::Exclusive, Wait::Block);
    let commits = async {
        tokio::task::yield_now().await;
        first.commit().await
    };
    let (locked, committed) = tokio::join!(waits, commits);
    committed.unwrap();
    let Locked::Held { row: Some(row) } = &locked.unwrap()[0] else { panic!("not held") };
    assert_eq!(&row.value[..], b"2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadlock_over_two_tablets_has_one_victim() {
    let dir = tempfile::tempdir().unwrap();
    let solo = solo(dir.path()).await.unwrap();
    set(&solo.client, &[("a", "1"), ("z", "1")]).await;
    solo.client.split(key("m")).await.unwrap();
    let tablets = solo.client.inspector().tablets().await;
    assert_eq!(tablets.len(), 3);
    let mut one = solo.client.begin(Isolation::ReadCommitted);
    let mut two = solo.client.begin(Isolation::ReadCommitted);
    put(&mut one, "a", "one").await.unwrap();
    put(&mut two, "z", "two").await.unwrap();
    let (first, second) = tokio::join!(put(&mut one, "z", "one"), async {
        let done = put(&mut two, "a", "two").await;
        if done.is_err() {
            two.rollback().await;
        }
        done
    });
    // The younger loses, the older goes on.
    first.unwrap();
    let Err(Error::Deadlock { detail }) = second else { panic!("{second:?}") };
    assert_eq!(detail.lines().count(), 2, "{detail}");
    one.commit().await.unwrap();
    let mut after = solo.client.begin(Isolation::ReadCommitted);
    assert_eq!(all(&mut after, false).await, ["a=one", "z=one"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_definition_changes_with_the_commit_that_changes_it() {
    let dir = tempfile::tempdir().unwrap();
    let solo = solo(dir.path()).await.unwrap();
    set(&solo.client, &[("a", "1")]).await;
    let relations = [KeyRange::prefix(key(""))];
    let mut stale = solo.client.begin(Isolation::ReadCommitted);
    stale.use_table(7, 1, &relations);
    let mut old = solo.client.begin(Isolation::RepeatableRead);
    old.use_table(7, 1, &relations);
    assert_eq!(get(&mut old, "a").await.unwrap().unwrap(), "1");
    let mut change = solo.client.begin(Isolation::ReadCommitted);
    change.change_schema(7, 2, &relations).await.unwrap();
    change.commit().await.unwrap();
    let refused = get(&mut stale, "a").await;
    assert!(matches!(refused, Err(Error::SchemaChanged { table: 7 })), "{refused:?}");
    assert_eq!(
        get(&mut old, "a").await.unwrap().unwrap(),
        "1",
        "an old snapshot goes by old definitions"
    );
    let refused = put(&mut old, "a", "2").await;
    assert!(matches!(refused, Err(Error::SchemaChanged { table: 7 })), "{refused:?}");
    let mut fresh = solo.client.begin(Isolation::ReadCommitted);
    fresh.use_table(7, 2, &relations);
    assert_eq!(get(&mut fresh, "a").await.unwrap().unwrap(), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serializable_keeps_phantoms_and_write_skew_out() {
    let dir = tempfile::tempdir().unwrap();
    let solo = solo(dir.path()).await.unwrap();
    set(&solo.client, &[("a", "1"), ("b", "1")]).await;
    let mut one = solo.client.begin(Isolation::Serializable);
    let mut two = solo.client.begin(Isolation::Serializable);
    assert_eq!(all(&mut one, false).await.len(), 2);
    assert_eq!(all(&mut two, false).await.len(), 2);
    let (first, second) = tokio::join!(put(&mut one, "c", "phantom"), async {
        let done = put(&mut two, "d", "phantom").await;
        if done.is_err() {
            two.rollback().await;
        }
        done
    });
    first.unwrap();
    assert!(matches!(second, Err(Error::Deadlock { .. })), "{second:?}");
    one.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_transaction_over_tablets_is_there_whole() {
    let dir = tempfile::tempdir().unwrap();
    let solo = solo(dir.path()).await.unwrap();
    solo.client.split(key("0010000")).await.unwrap();
    let mut txn = solo.client.begin(Isolation::ReadCommitted);
    let value = Bytes::from(vec![b'v'; 200]);
    for chunk in 0..10 {
        let keys: Vec<Key> = (0..3000).map(|n| key(&format!("{:07}", chunk * 3000 + n))).collect();
        txn.lock(&keys, LockMode::Exclusive, Wait::Block).await.unwrap();
        keys.into_iter().for_each(|key| txn.put(key, value.clone()).unwrap());
    }
    txn.commit().await.unwrap();
    let mut txn = solo.client.begin(Isolation::ReadCommitted);
    assert_eq!(all(&mut txn, false).await.len(), 30_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_replica_could_apply_is_refused_before_it_is_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let solo = solo(dir.path()).await.unwrap();
    let long = "k".repeat(70_000);
    for name in [&long[..33_000], &long] {
        let mut txn = solo.client.begin(Isolation::ReadCommitted);
        assert_eq!(get(&mut txn, name).await.unwrap(), None);
        txn.lock(&[key(name)], LockMode::Exclusive, Wait::Block).await.unwrap();
        let refused = txn.put(key(name), Bytes::from_static(b"1"));
        assert!(matches!(refused, Err(Error::TooLarge { .. })), "{refused:?}");
    }
    let mut txn = solo.client.begin(Isolation::ReadCommitted);
    txn.lock(&[key("row")], LockMode::Exclusive, Wait::Block).await.unwrap();
    let refused = txn.put(key("row"), Bytes::from(vec![b'v'; 17 << 20]));
    assert!(matches!(refused, Err(Error::TooLarge { .. })), "{refused:?}");
    set(&solo.client, &[("a", "1"), ("l", "2")]).await;
    let mut txn = solo.client.begin(Isolation::ReadCommitted);
    let range = KeyRange::new(key(&long), key("z"));
    let mut scan = txn.reader().await.unwrap().scan(range, false, None);
    assert_eq!(scan.next_batch().await.unwrap().len(), 1, "a bound may be longer than any key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_future_is_no_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let solo = solo(dir.path()).await.unwrap();
    let mut txn = solo.client.begin(Isolation::RepeatableRead);
    let now = solo.client.begin(Isolation::RepeatableRead).snapshot().await.unwrap();
    let later = base::Scn(now.0 + 1_000_000);
    assert!(matches!(txn.read_as_of(later).await, Err(Error::Refused { .. })));
    txn.read_as_of(now).await.unwrap();
}

/// Amounts move between two keys; whoever reads both in one statement sees their sum unchanged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_read_together_are_of_one_state() {
    let dir = tempfile::tempdir().unwrap();
    let solo = solo(dir.path()).await.unwrap();
    set(&solo.client, &[("a", "100"), ("b", "0")]).await;
    let client = solo.client.clone();
    let writer = tokio::spawn(async move {
        for n in 0..300 {
            let mut txn = client.begin(Isolation::ReadCommitted);
            put(&mut txn, "a", &(100 - n % 100).to_string()).await.unwrap();
            put(&mut txn, "b", &(n % 100).to_string()).await.unwrap();
            txn.commit().await.unwrap();
        }
    });
    while !writer.is_finished() {
        let mut txn = solo.client.begin(Isolation::ReadCommitted);
        let rows = txn.get_only(&[key("a"), key("b")]).await.unwrap();
        let number = |row: &Option<txn::Row>| -> i64 {
            std::str::from_utf8(&row.as_ref().unwrap().value).unwrap().parse().unwrap()
        };
        assert_eq!(rows.iter().map(number).sum::<i64>(), 100);
    }
    writer.await.unwrap();
}
