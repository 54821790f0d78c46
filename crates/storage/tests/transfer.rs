//! A tablet moves from one node to another.

mod common;

use base::{KeyRange, Scn};
use bytes::Bytes;
use common::*;
use storage::{At, Batch, Error, Options, Store, TabletRanges};

fn ranges() -> TabletRanges {
    TabletRanges {
        rows: KeyRange::new(&b"a"[..], &b"s"[..]),
        meta: vec![KeyRange::prefix(&b"t1/"[..])],
        expiring: vec![KeyRange::prefix(&b"t1/"[..])],
    }
}

/// A node whose tablet 1 has `n` rows with two versions, deleted rows, and keys of every kind.
fn sender(dir: &std::path::Path, n: u64, value: &str) -> Store {
    let store = open(dir);
    for index in 1..=n {
        let mut batch = Batch::default();
        let key = bytes(format!("row{index:06}"));
        batch.put(key.clone(), Scn(index), bytes(value));
        batch.meta_put(bytes(format!("t1/{index}")), bytes("meta"));
        batch.meta_put(bytes(format!("t2/{index}")), bytes("not ours"));
        batch.expiring_put(bytes(format!("t1/{index}")), bytes("outcome"));
        batch.applied(T1, index, bytes(format!("mark{index}")));
        store.apply(batch).unwrap();
        let mut batch = Batch::default();
        if index % 3 == 0 {
            batch.delete(key, Scn(n + index));
        } else {
            batch.put(key, Scn(n + index), bytes("newer"));
        }
        store.apply(batch).unwrap();
        if index == n / 2 {
            store.flush().unwrap();
            store.tick(env().now() + MINUTE).unwrap();
        }
    }
    store
}

fn send(from: &Store, to: &Store) -> storage::Result<Option<Bytes>> {
    let mut staging = to.staging(T1)?;
    for chunk in from.export(T1, &ranges())? {
        let chunk = chunk?;
        assert!(chunk.len() <= 1 << 20);
        staging.append(&chunk)?;
    }
    to.install(T1, staging, ranges())
}

fn assert_same(a: &Store, b: &Store, scns: &[u64]) {
    for scn in scns {
        let at = At::Scn(Scn(*scn));
        assert_eq!(
            rows(a, &ranges().rows, at, false),
            rows(b, &ranges().rows, at, false),
            "at {scn}"
        );
    }
    let newest = rows(a, &ranges().rows, At::Newest, true);
    assert_eq!(newest, rows(b, &ranges().rows, At::Newest, true));
    for range in ranges().meta {
        let metas = |store: &Store| store.meta_scan(&range).map(Result::unwrap).collect::<Vec<_>>();
        assert_eq!(metas(a), metas(b));
        let expiring =
            |store: &Store| store.expiring_scan(&range).map(Result::unwrap).collect::<Vec<_>>();
        assert_eq!(expiring(a), expiring(b));
    }
    assert_eq!(a.mark(T1).unwrap(), b.mark(T1).unwrap());
}

#[test]
fn a_tablet_arrives_with_its_past() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let from = sender(a.path(), 3000, &"x".repeat(900));
    let to = open(b.path());
    // The receiver has an older replica, and a tablet of its own.
    let mut batch = Batch::default();
    batch.put(bytes("row000001"), Scn(1), bytes("stale"));
    batch.put(bytes("rowgone"), Scn(1), bytes("stale"));
    batch.put(bytes("zebra"), Scn(1), bytes("other tablet"));
    batch.meta_put(bytes("t1/stale"), bytes("stale"));
    batch.meta_put(bytes("t2/keep"), bytes("keep"));
    batch.applied(T1, 1, bytes("old mark"));
    to.apply(batch).unwrap();

    assert_eq!(send(&from, &to).unwrap(), Some(bytes("mark3000")));
    assert_eq!(to.durable_index(T1), Some(3000));
    for _restart in 0..2 {
        assert_same(&from, &to, &[2999, 3000, 3500, 5999, 6000]);
    }
    assert!(to.get(b"zebra", At::Newest).unwrap().is_some());
    assert!(to.meta_get(b"t2/keep").unwrap().is_some());
    assert!(to.meta_get(b"t1/stale").unwrap().is_none());
    assert!(to.get(b"rowgone", At::Newest).unwrap().is_none());
    drop(to);
    assert_same(&from, &open(b.path()), &[2999, 3000, 3500, 5999, 6000]);
    assert_eq!(std::fs::read_dir(b.path().join("staging")).unwrap().count(), 0);
}

#[test]
fn the_horizon_travels_along() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let from = sender(a.path(), 100, "x");
    from.tick(env().now() + MINUTE * 20).unwrap();
    let horizon = from.horizon();
    assert!(horizon > Scn(0));
    let to = open(b.path());
    send(&from, &to).unwrap();
    assert_eq!(to.horizon(), horizon);
    drop(to);
    assert_eq!(open(b.path()).horizon(), horizon);
}

#[test]
fn an_export_shows_the_moment_of_its_call() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (c, d) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let from = sender(a.path(), 2000, &"x".repeat(900));
    let twin = sender(b.path(), 2000, &"x".repeat(900));
    let export = from.export(T1, &ranges()).unwrap();
    assert_eq!(export.index(), 2000);
    for index in 2001..2500 {
        let mut batch = Batch::default();
        batch.put(bytes(format!("row{:06}", index - 1500)), Scn(10_000 + index), bytes("later"));
        batch.meta_delete(bytes(format!("t1/{}", index - 1500)));
        batch.applied(T1, index, bytes("later"));
        from.apply(batch).unwrap();
    }
    from.flush().unwrap();
    let (to, expected) = (open(c.path()), open(d.path()));
    let mut staging = to.staging(T1).unwrap();
    export.for_each(|chunk| staging.append(&chunk.unwrap()).unwrap());
    to.install(T1, staging, ranges()).unwrap();
    send(&twin, &expected).unwrap();
    assert_same(&expected, &to, &[1000, 2000, 3000, 4000]);
}

#[test]
fn a_crash_in_the_middle_is_finished_by_the_next_start() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let from = sender(a.path(), 2000, &"x".repeat(500));
    let options = Options { memtable_bytes: 100 << 10, ..small() };
    let to = Store::open(&env(), b.path(), options.clone()).unwrap();
    let mut batch = Batch::default();
    batch.put(bytes("rowgone"), Scn(1), bytes("stale"));
    batch.put(bytes("zebra"), Scn(1), bytes("other tablet"));
    batch.applied(T1, 1, bytes("old mark"));
    to.apply(batch).unwrap();
    to.flush().unwrap();

    let broken = CannotFlush::current(b.path());
    send(&from, &to).unwrap_err();
    drop(to);
    assert_eq!(std::fs::read_dir(b.path().join("staging")).unwrap().count(), 1);
    drop(broken);

    let to = Store::open(&env(), b.path(), options).unwrap();
    assert_same(&from, &to, &[1000, 2000, 3000, 4000]);
    assert!(to.get(b"zebra", At::Newest).unwrap().is_some());
    assert!(to.get(b"rowgone", At::Newest).unwrap().is_none());
    assert_eq!(std::fs::read_dir(b.path().join("staging")).unwrap().count(), 0);
}

#[test]
fn a_damaged_repeated_or_missing_chunk_is_refused() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let from = sender(a.path(), 3000, &"x".repeat(900));
    let to = open(b.path());
    let chunks: Vec<_> = from.export(T1, &ranges()).unwrap().map(Result::unwrap).collect();
    assert!(chunks.len() >= 3, "{} chunks", chunks.len());
    let mut staging = to.staging(T1).unwrap();
    staging.append(&chunks[0]).unwrap();
    for at in [0, 5, 8, 100, chunks[1].len() - 1] {
        let mut damaged = chunks[1].to_vec();
        damaged[at] ^= 1;
        assert!(matches!(staging.append(&damaged), Err(Error::BadChunk { number: 1, .. })));
    }
    assert!(staging.append(&chunks[1][..50]).is_err());
    assert!(staging.append(b"").is_err());
    assert!(staging.append(&chunks[0]).is_err(), "repeated");
    assert!(staging.append(&chunks[2]).is_err(), "out of order");
    staging.append(&chunks[1]).unwrap();
    assert!(!staging.is_complete());
    assert!(matches!(to.install(T1, staging, ranges()), Err(Error::BadChunk { .. })));
    assert_eq!(std::fs::read_dir(b.path().join("staging")).unwrap().count(), 0);
}

#[test]
fn a_staging_file_that_suffered_wipes_nothing() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let from = sender(a.path(), 300, "x");
    let to = open(b.path());
    let mut batch = Batch::default();
    batch.put(bytes("row"), Scn(1), bytes("here"));
    to.apply(batch).unwrap();
    let mut staging = to.staging(T1).unwrap();
    from.export(T1, &ranges()).unwrap().for_each(|chunk| staging.append(&chunk.unwrap()).unwrap());
    let file = files(&b.path().join("staging"), "").remove(0);
    let mut content = std::fs::read(&file).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(&file, content).unwrap();
    assert!(matches!(to.install(T1, staging, ranges()), Err(Error::Damaged { .. })));
    assert!(to.get(b"row", At::Newest).unwrap().is_some());
}

#[test]
fn a_removed_tablet_stays_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = sender(dir.path(), 300, "x");
    let mut batch = Batch::default();
    batch.put(bytes("zebra"), Scn(1), bytes("other tablet"));
    batch.applied(T2, 1, bytes("mark"));
    store.apply(batch).unwrap();
    store.remove_range(T1, &ranges()).unwrap();
    drop(store);
    let store = open(dir.path());
    assert_eq!(rows(&store, &ranges().rows, At::Newest, false), []);
    assert_eq!((store.mark(T1).unwrap(), store.durable_index(T1)), (None, None));
    assert_eq!(store.meta_scan(&ranges().meta[0]).count(), 0);
    assert!(store.meta_get(b"t2/1").unwrap().is_some());
    assert!(store.get(b"zebra", At::Newest).unwrap().is_some());
    assert_eq!(store.mark(T2).unwrap(), Some(bytes("mark")));
    assert!(store.expiring_get(b"t1/5").unwrap().is_some(), "outcomes outlive the tablet");
}
