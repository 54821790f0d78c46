//! The state through its front door: versions, snapshots, segments, crashes.

mod common;

use base::{Disposition, KeyRange, Scn};
use common::*;
use std::path::Path;
use storage::{At, Batch, Error, Options, Store};

fn put(store: &Store, key: &str, scn: u64, value: &str) {
    let mut batch = Batch::default();
    batch.put(bytes(key), Scn(scn), bytes(value));
    store.apply(batch).unwrap();
}

fn delete(store: &Store, key: &str, scn: u64) {
    let mut batch = Batch::default();
    batch.delete(bytes(key), Scn(scn));
    store.apply(batch).unwrap();
}

fn value_at(store: &Store, key: &str, scn: u64) -> Option<String> {
    let found = store.get(key.as_bytes(), At::Scn(Scn(scn))).unwrap();
    found.map(|(_, value)| String::from_utf8(value.to_vec()).unwrap())
}

/// The example in the header of `state`.
#[test]
fn one_row_three_versions_three_readers() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, "k", 10, "v1");
    put(&store, "k", 20, "v2");
    delete(&store, "k", 30);
    put(&store, "k", 40, "v3");

    let story = [(9, None), (10, Some("v1")), (15, Some("v1")), (20, Some("v2")), (29, Some("v2"))];
    let rest = [(30, None), (35, None), (40, Some("v3")), (45, Some("v3"))];
    for (scn, expected) in story.into_iter().chain(rest) {
        assert_eq!(value_at(&store, "k", scn).as_deref(), expected, "at {scn}");
        for reverse in [false, true] {
            let scanned = rows(&store, &KeyRange::all(), At::Scn(Scn(scn)), reverse);
            let scanned: Vec<_> = scanned.iter().map(|(_, _, value)| &value[..]).collect();
            let expected: Vec<_> = expected.iter().map(|value| value.as_bytes()).collect();
            assert_eq!(scanned, expected, "scan at {scn}");
        }
    }
    assert_eq!(store.get(b"k", At::Newest).unwrap(), Some((Scn(40), bytes("v3"))));
}

#[test]
fn any_read_at_any_scn_equals_the_model() {
    let mut dice = Dice::new();
    let dir = tempfile::tempdir().unwrap();
    let mut store = open_hoarding(dir.path());
    let mut clock = env().now();
    let mut model = Model::default();
    let keys = awkward_keys();
    let mut scn = Scn(0);
    for _ in 0..1500 {
        scn = Scn(scn.0 + 1 + dice.below(3) as u64);
        store.apply(random_batch(&mut dice, &keys, scn, &mut model)).unwrap();
        if dice.one_in(60) {
            store.flush().unwrap();
        }
        if dice.one_in(150) {
            clock += MINUTE;
            store.tick(clock).unwrap();
        }
        if dice.one_in(300) {
            store.flush().unwrap();
            drop(store);
            store = open_hoarding(dir.path());
            clock = env().now();
        }
        if dice.one_in(5) {
            let at = Scn(dice.below(scn.0 as usize + 2) as u64);
            let reverse = dice.one_in(2);
            let mut ends =
                [keys[dice.below(keys.len())].clone(), keys[dice.below(keys.len())].clone()];
            ends.sort();
            let range = match dice.below(4) {
                0 => KeyRange { start: ends[0].clone(), end: None },
                1 => KeyRange::new(ends[0].clone(), ends[1].clone()),
                _ => KeyRange::all(),
            };
            let expected = model.scan(&range, at, reverse);
            assert_eq!(rows(&store, &range, At::Scn(at), reverse), expected, "{range} at {at}");
            let key = &keys[dice.below(keys.len())];
            assert_eq!(store.get(key, At::Scn(at)).unwrap(), model.get(key, at));
            let newest = model.scan(&range, Scn::MAX, reverse);
            assert_eq!(rows(&store, &range, At::Newest, reverse), newest);
        }
    }
    assert!(store.segments().len() > 2, "the story needs several segments");
}

#[test]
fn a_row_that_changes_all_the_time_does_not_slow_a_scan_down() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut model = Model::default();
    for scn in 1..=2000 {
        let mut batch = Batch::default();
        for key in if scn % 500 == 0 { vec!["cold", "hot", "warm"] } else { vec!["hot"] } {
            let (key, value) = (bytes(key), bytes(scn.to_string()));
            batch.put(key.clone(), Scn(scn), value.clone());
            model.put(key, Scn(scn), value);
        }
        store.apply(batch).unwrap();
    }
    for scn in [0, 1, 7, 499, 500, 1234, 1999, 2000] {
        for reverse in [false, true] {
            let found = rows(&store, &KeyRange::all(), At::Scn(Scn(scn)), reverse);
            assert_eq!(found, model.scan(&KeyRange::all(), Scn(scn), reverse), "at {scn}");
        }
    }
}

#[test]
fn a_scan_shows_the_moment_of_its_call() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for n in 0..100 {
        put(&store, &format!("k{n:02}"), 1, "before");
    }
    let mut scan = store.scan(&KeyRange::all(), At::Newest, false);
    let mut past = store.scan(&KeyRange::all(), At::Scn(Scn(1)), true);
    scan.next().unwrap().unwrap();
    for n in 0..100 {
        put(&store, &format!("k{n:02}"), 2, "after");
    }
    store.flush().unwrap();
    store.tick(env().now() + MINUTE).unwrap();
    assert!(scan.all(|row| row.unwrap().2 == "before"));
    assert_eq!(past.by_ref().filter(|row| row.as_ref().unwrap().2 == "before").count(), 100);
}

#[test]
fn a_batch_is_seen_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let writer = {
        let store = store.clone();
        std::thread::spawn(move || {
            for scn in 1..3000 {
                let mut batch = Batch::default();
                for key in ["a", "b", "c"] {
                    batch.put(bytes(key), Scn(scn), bytes(scn.to_string()));
                }
                store.apply(batch).unwrap();
                if scn % 500 == 0 {
                    store.flush().unwrap();
                }
            }
        })
    };
    while !writer.is_finished() {
        let seen = rows(&store, &KeyRange::all(), At::Newest, false);
        assert!(seen.iter().all(|row| row.1 == seen[0].1), "{seen:?}");
        assert!(seen.is_empty() || seen.len() == 3);
    }
    writer.join().unwrap();
}

#[test]
fn a_read_before_the_horizon_is_refused_and_the_horizon_survives() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, "k", 10, "v1");
    put(&store, "k", 20, "v2");
    let start = env().now();
    store.tick(start + MINUTE).unwrap();
    put(&store, "k", 30, "v3");
    assert_eq!(store.segments().len(), 2);
    assert_eq!(store.horizon(), Scn(0));

    store.tick(start + MINUTE * 11).unwrap();
    assert_eq!(store.horizon(), Scn(20), "what was replaced at 20 is gone");
    let refused = store.get(b"k", At::Scn(Scn(19))).unwrap_err();
    assert!(matches!(refused, Error::SnapshotTooOld { wanted: Scn(19), oldest: Scn(20) }));
    assert_eq!(refused.disposition(), Disposition::Refuse);
    assert!(store.scan(&KeyRange::all(), At::Scn(Scn(19)), false).next().unwrap().is_err());
    assert_eq!(value_at(&store, "k", 20).as_deref(), Some("v2"));

    drop(store);
    let store = open(dir.path());
    assert_eq!(store.horizon(), Scn(20));
    assert_eq!(value_at(&store, "k", 25).as_deref(), Some("v2"));
}

#[test]
fn a_pin_holds_back_the_segments_it_needs_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let start = env().now();
    for (minute, scn) in [(1, 10), (2, 20), (3, 30)] {
        put(&store, "k", scn, "old");
        put(&store, "k", scn + 5, "new");
        store.tick(start + MINUTE * minute).unwrap();
    }
    let pin = store.pin("backup".into(), Scn(26)).unwrap();
    store.tick(start + MINUTE * 30).unwrap();
    assert_eq!(store.horizon(), Scn(25));
    assert_eq!(value_at(&store, "k", 26).as_deref(), Some("new"));
    let held: Vec<_> = store.segments().into_iter().map(|segment| segment.held_by).collect();
    assert_eq!(held[0], ["backup"]);

    drop(pin);
    store.tick(start + MINUTE * 31).unwrap();
    assert_eq!(store.horizon(), Scn(35));
    assert!(matches!(store.pin("late".into(), Scn(26)), Err(Error::SnapshotTooOld { .. })));
    let n_dirs = || {
        let names = files(&dir.path().join("state"), "");
        names.iter().filter(|path| path.to_string_lossy().contains("segment-")).count()
    };
    // A compaction that runs keeps them a little longer.
    let deadline = env().now() + MINUTE / 2;
    while n_dirs() > store.segments().len() {
        assert!(env().now() < deadline, "dropped segments leave the disk");
        std::thread::yield_now();
    }
}

#[test]
fn a_running_scan_keeps_the_segment_it_reads() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for (scn, value) in [(10, "v1"), (20, "v2")] {
        for n in 0..2000 {
            put(&store, &format!("k{n:04}"), scn, value);
        }
    }
    let start = env().now();
    store.tick(start + MINUTE).unwrap();
    store.flush().unwrap();
    let mut scan = store.scan(&KeyRange::all(), At::Scn(Scn(15)), false);
    scan.next().unwrap().unwrap();
    store.tick(start + MINUTE * 30).unwrap();
    assert_eq!(store.horizon(), Scn(20));
    let segment = dir.path().join("state/segment-0000000000");
    assert!(segment.exists(), "it is dropped, and still read");
    assert_eq!(scan.by_ref().filter(|row| row.as_ref().unwrap().2 == "v1").count(), 1999);
    drop(scan);
    let deadline = env().now() + MINUTE / 2;
    while segment.exists() {
        assert!(env().now() < deadline, "it stays after its last reader");
        std::thread::yield_now();
    }
}

#[test]
fn a_replayed_change_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, "k", 10, "v1");
    put(&store, "k", 20, "v2");
    put(&store, "k", 20, "again");
    put(&store, "k", 10, "again");
    delete(&store, "k", 15);
    assert_eq!(store.get(b"k", At::Newest).unwrap(), Some((Scn(20), bytes("v2"))));
    assert_eq!(value_at(&store, "k", 12).as_deref(), Some("v1"));
}

/// Reads and transfers run on other threads than the one that asked.
#[test]
fn handles_and_iterators_may_move_between_threads() {
    fn moves<T: Send + 'static>() {}
    moves::<Store>();
    moves::<storage::Scan>();
    moves::<storage::MetaIter>();
    moves::<storage::Export>();
    moves::<storage::Staging>();
    moves::<storage::Pin>();
}

#[test]
fn a_key_that_does_not_fit_is_refused_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut batch = Batch::default();
    batch.put(bytes("good"), Scn(1), bytes("v"));
    batch.put(bytes(vec![0; storage::KEY_BYTES_MAX + 1]), Scn(1), bytes("v"));
    assert!(matches!(store.apply(batch), Err(Error::KeyTooLong { .. })));
    assert_eq!(store.get(b"good", At::Newest).unwrap(), None);
    let longest = vec![0; storage::KEY_BYTES_MAX];
    for scn in [1, 2] {
        let mut batch = Batch::default();
        batch.put(bytes(&longest), Scn(scn), bytes("v"));
        store.apply(batch).unwrap();
    }
    store.flush().unwrap();
    assert_eq!(store.get(&longest, At::Scn(Scn(1))).unwrap().unwrap().0, Scn(1));
}

/// Rows in files and rows in memory: all newest versions of the range go, and no neighbour's.
#[test]
fn discarded_rows_are_gone_and_their_neighbours_stay() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_hoarding(dir.path());
    for key in ["a", "b", "c"] {
        put(&store, key, 10, "filed");
    }
    store.flush().unwrap();
    for key in ["bb", "d"] {
        put(&store, key, 20, "in memory");
    }
    let scan = store.scan(&KeyRange::all(), At::Newest, false);
    store.discard_rows(&KeyRange::new("b", "c")).unwrap();
    assert_eq!(scan.count(), 5, "a scan that runs shows the moment of its call");
    let keys = |store: &Store| -> Vec<String> {
        let rows = rows(store, &KeyRange::all(), At::Newest, false);
        rows.iter().map(|(key, _, _)| String::from_utf8(key.to_vec()).unwrap()).collect()
    };
    assert_eq!(keys(&store), ["a", "c", "d"]);
    put(&store, "bb", 50, "anew");
    assert_eq!(value_at(&store, "bb", 40), None, "it is a new row");
    store.flush().unwrap();
    drop(store);
    let store = open_hoarding(dir.path());
    assert_eq!(keys(&store), ["a", "bb", "c", "d"]);
}

type Change = (base::Key, Scn, Option<bytes::Bytes>);

/// Two tablets, a log of what they applied, crashes at random: after each, every tablet replays
/// from its mark, and all is as if nothing had happened.
#[test]
fn after_a_crash_the_log_replayed_from_the_mark_gives_the_same_state() {
    let mut dice = Dice::new();
    let dir = tempfile::tempdir().unwrap();
    let mut store = open_hoarding(dir.path());
    let keys = awkward_keys();
    let halves = keys.split_at(keys.len() / 2);
    let halves = [halves.0.to_vec(), halves.1.to_vec()];
    // What each tablet's entries did: replaying one is doing it again.
    let mut logs: [Vec<Change>; 2] = Default::default();
    let mut model = Model::default();
    let mut clock = env().now();
    let apply = |store: &Store, tablet: usize, index: usize, (key, scn, value): &Change| {
        let mut batch = Batch::default();
        match value {
            Some(value) => batch.put(key.clone(), *scn, value.clone()),
            None => batch.delete(key.clone(), *scn),
        }
        let id = [T1, T2][tablet];
        batch.expiring_put(bytes(format!("{id}/{index}")), bytes("done"));
        batch.meta_put(bytes(format!("count{id}")), bytes(index.to_string()));
        batch.applied(id, index as u64, bytes(index.to_string()));
        store.apply(batch).unwrap();
    };
    for scn in 1..2500u64 {
        let tablet = dice.below(2);
        let half = &halves[tablet];
        let key = half[dice.below(half.len())].clone();
        let value = (!dice.one_in(3)).then(|| bytes(scn.to_string()));
        match &value {
            Some(value) => model.put(key.clone(), Scn(scn), value.clone()),
            None => model.delete(key.clone(), Scn(scn)),
        }
        logs[tablet].push((key, Scn(scn), value));
        let index = logs[tablet].len();
        apply(&store, tablet, index, &logs[tablet][index - 1]);
        if dice.one_in(100) {
            store.flush().unwrap();
        }
        if dice.one_in(300) {
            clock += MINUTE;
            store.tick(clock).unwrap();
        }
        if !dice.one_in(120) {
            continue;
        }
        // The crash, sometimes in the middle of a flush.
        let dirty = store.stats().memtable_bytes > 0;
        let broken = match dice.below(3) {
            0 => Some(CannotFlush::current(dir.path())),
            1 => Some(CannotFlush::newest_segment(dir.path())),
            _ => None,
        };
        if broken.is_some() {
            assert_eq!(store.flush().is_err(), dirty);
        }
        drop(store);
        drop(broken);
        store = open_hoarding(dir.path());
        clock = env().now();
        for (tablet, log) in logs.iter().enumerate() {
            let id = [T1, T2][tablet];
            let mark = store.mark(id).unwrap();
            let mark: usize =
                mark.map_or(0, |mark| String::from_utf8(mark.to_vec()).unwrap().parse().unwrap());
            assert_eq!(store.durable_index(id), (mark > 0).then_some(mark as u64));
            for index in mark + 1..=log.len() {
                let key = format!("{id}/{index}");
                assert_eq!(
                    store.expiring_get(key.as_bytes()).unwrap(),
                    None,
                    "{key} is not applied"
                );
                apply(&store, tablet, index, &log[index - 1]);
                assert!(store.expiring_get(key.as_bytes()).unwrap().is_some());
            }
        }
        for at in [scn, dice.below(scn as usize) as u64, dice.below(scn as usize) as u64] {
            let expected = model.scan(&KeyRange::all(), Scn(at), false);
            assert_eq!(
                rows(&store, &KeyRange::all(), At::Scn(Scn(at)), false),
                expected,
                "at {at}"
            );
        }
    }
    let n_requests = logs[0].len() + logs[1].len();
    assert_eq!(store.expiring_scan(&KeyRange::all()).count(), n_requests);
}

#[test]
fn unversioned_and_expiring_keys() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut batch = Batch::default();
    for key in ["a", "b", "c"] {
        batch.meta_put(bytes(key), bytes("1"));
        batch.expiring_put(bytes(key), bytes("2"));
    }
    batch.applied(T1, 1, bytes("mark"));
    store.apply(batch).unwrap();
    let mut batch = Batch::default();
    batch.meta_delete(bytes("b"));
    batch.expiring_put(bytes("c"), bytes("3"));
    batch.applied(T1, 2, bytes("mark2"));
    let start = env().now();
    store.tick(start + MINUTE).unwrap();
    store.apply(batch).unwrap();

    let metas: Vec<_> = store.meta_scan(&KeyRange::all()).map(|pair| pair.unwrap().0).collect();
    assert_eq!(metas, ["a", "c"]);
    assert_eq!(store.meta_get(b"b").unwrap(), None);
    assert_eq!(store.expiring_get(b"c").unwrap(), Some(bytes("3")));
    let expiring: Vec<_> = store.expiring_scan(&KeyRange::all()).map(Result::unwrap).collect();
    let expected = [("a", "2"), ("b", "2"), ("c", "3")].map(|(k, v)| (bytes(k), bytes(v)));
    assert_eq!(expiring, expected);
    assert_eq!(store.mark(T1).unwrap(), Some(bytes("mark2")));

    store.tick(start + MINUTE * 11 + MINUTE / 2).unwrap();
    let left: Vec<_> = store.expiring_scan(&KeyRange::all()).map(|pair| pair.unwrap().0).collect();
    assert_eq!(left, ["c"], "the rest went with its segment");
    assert_eq!(store.horizon(), Scn(0), "no version was lost");
}

#[test]
fn memory_stays_bounded_while_much_is_applied() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { memtable_bytes: 256 << 10, cache_bytes: 1 << 20, ..small() };
    let store = Store::open(&env(), dir.path(), options).unwrap();
    let value = bytes(vec![7; 1000]);
    for scn in 1..=10_000u64 {
        let mut batch = Batch::default();
        batch.put(bytes(format!("{:05}", scn * 7919 % 5000)), Scn(scn), value.clone());
        batch.applied(T1, scn, bytes(""));
        store.apply(batch).unwrap();
        assert!(store.stats().memtable_bytes <= (256 << 10) * 4 + 4096);
    }
    store.flush().unwrap();
    assert_eq!(store.durable_index(T1), Some(10_000));
    assert_eq!(rows(&store, &KeyRange::all(), At::Newest, false).len(), 5000);
    assert!(store.stats().block_cache_bytes <= 2 << 20);
    let all = store.approximate_bytes(&KeyRange::all()).unwrap();
    let half = store.approximate_bytes(&KeyRange::new(&b""[..], &b"02500"[..])).unwrap();
    assert!(all > 5_000_000 && half > all / 4 && half < all * 3 / 4, "{half} of {all}");
}

#[test]
fn a_damaged_block_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for n in 0..1000 {
        put(&store, &format!("k{n:04}"), 1, "some value or other");
    }
    store.flush().unwrap();
    drop(store);
    let tables = files(&dir.path().join("state/current/tables"), "");
    let mut table = std::fs::read(&tables[0]).unwrap();
    table[2000] ^= 1;
    std::fs::write(&tables[0], table).unwrap();

    let store = open(dir.path());
    let error = store.scan(&KeyRange::all(), At::Newest, false).find_map(Result::err).unwrap();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    assert_eq!(error.disposition(), Disposition::Halt);
    assert!(error.to_string().contains("delete its data directory"), "{error}");
}

#[test]
fn a_lost_tree_or_manifest_is_not_mistaken_for_a_new_node() {
    for lost in ["state/current", "state/manifest", "state/segment-0000000000"] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        put(&store, "k", 1, "v");
        store.flush().unwrap();
        drop(store);
        let path = dir.path().join(lost);
        if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
            .unwrap();
        let error = Store::open(&env(), dir.path(), small()).err().expect(lost);
        assert!(matches!(error, Error::Damaged { .. }), "{lost}: {error}");
    }
}

#[test]
fn a_flush_that_fails_halts_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let env = env();
    let store = Store::open(&env, dir.path(), small()).unwrap();
    put(&store, "k", 1, "v");
    let _broken = CannotFlush::current(dir.path());
    assert!(store.flush().is_err());
    assert!(env.halt_reason().is_some());
    let mut batch = Batch::default();
    batch.put(bytes("k"), Scn(2), bytes("v"));
    assert!(matches!(store.apply(batch), Err(Error::Halted(_))));
}

/// The library that reads the trees believes their lengths, and asserts here and there instead of saying that a file
/// is damaged.
#[test]
fn a_flipped_bit_in_a_tree_s_own_files_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, "k", 1, "v");
    store.flush().unwrap();
    drop(store);
    let tree = dir.path().join("state/current");
    let files = || {
        let in_dir = |dir: &Path| {
            let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
            entries.filter(|path| path.is_file()).collect::<Vec<_>>()
        };
        [in_dir(&tree), in_dir(&tree.join("tables"))].concat()
    };
    let whole: Vec<_> =
        files().into_iter().map(|path| (path.clone(), std::fs::read(&path).unwrap())).collect();
    assert!(whole.len() >= 3, "{whole:?}");
    // What is opened may clear up.
    let restore = || {
        files().iter().for_each(|path| std::fs::remove_file(path).unwrap());
        whole.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
    };
    // A version that is not the current one is read by nobody.
    let current = std::fs::read(tree.join("current")).unwrap();
    let version = u64::from_le_bytes(current[..8].try_into().unwrap());
    let is_read = |path: &Path| {
        path.ends_with("current")
            || path.ends_with(format!("v{version}"))
            || path.parent().is_some_and(|parent| parent.ends_with("tables"))
    };
    for (path, bytes) in whole.iter().filter(|(path, _)| is_read(path)) {
        // Of a table the end: the list of its sections, and where that is. The rest has checksums that reads compare.
        let is_table = path.parent().is_some_and(|parent| parent.ends_with("tables"));
        let begin = if is_table { bytes.len() - 100 } else { 0 };
        // `current` holds the checksum of the version: which of the two is damaged cannot be told.
        let named = if path.ends_with("current") { &tree } else { path };
        for at in begin..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x80;
            restore();
            std::fs::write(path, &flipped).unwrap();
            let error = Store::open(&env(), dir.path(), Options::default()).err();
            let error = error.unwrap_or_else(|| panic!("{path:?} {at}: not seen"));
            assert_eq!(error.disposition(), Disposition::Halt, "{path:?} {at}: {error}");
            let told = error.to_string();
            assert!(told.contains(named.to_str().unwrap()), "{path:?} {at}: {told}");
        }
    }
    restore();
    assert_eq!(value_at(&open(dir.path()), "k", 1).as_deref(), Some("v"));
}
