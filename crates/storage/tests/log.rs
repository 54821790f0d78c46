//! The log through its front door: order, durability, truncation, and disks that fail.

mod common;

use common::*;
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use storage::{Entry, Error, Faults, Log, Options, Slot, Store};

fn append(log: &Log, tablet: base::TabletId, indexes: std::ops::RangeInclusive<u64>, text: &str) {
    let entries = indexes.map(|index| entry(index, format!("{text}{index}"))).collect();
    let (done, heard) = done();
    log.append(tablet, entries, done);
    wait(heard);
}

fn texts(log: &Log, tablet: base::TabletId) -> Vec<String> {
    let entries = log.read(tablet, 0..u64::MAX, usize::MAX).unwrap();
    let text = |entry: Entry| String::from_utf8(entry.bytes.to_vec()).unwrap();
    entries.into_iter().map(text).collect()
}

#[test]
fn what_was_acknowledged_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    append(store.log(), T1, 1..=3, "a");
    append(store.log(), T2, 7..=8, "b");
    let (done, heard) = done();
    store.log().save(T1, Slot::Vote, Some(bytes("me")), done);
    wait(heard);
    drop(store);

    let store = open(dir.path());
    let log = store.log();
    assert_eq!(log.tablets(), [T1, T2]);
    assert_eq!((log.bounds(T1), log.bounds(T2)), (Some((1, 3)), Some((7, 8))));
    assert_eq!(texts(log, T1), ["a1", "a2", "a3"]);
    assert_eq!(log.load(T1, Slot::Vote).unwrap(), Some(bytes("me")));
    assert_eq!(log.load(T2, Slot::Vote).unwrap(), None);
}

#[test]
fn requests_show_at_once_and_callbacks_keep_the_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let log = store.log();
    let heard = Arc::new(Mutex::new(Vec::new()));
    for index in 1..=200 {
        let heard = heard.clone();
        let hear = Box::new(move || heard.lock().push(index));
        log.append(T1, vec![entry(index, "x")], hear);
        assert_eq!(log.bounds(T1), Some((1, index)));
    }
    let (done, all) = done();
    log.save(T1, Slot::Vote, None, done);
    wait(all);
    assert_eq!(*heard.lock(), (1..=200).collect::<Vec<_>>());
}

#[test]
fn a_read_takes_what_fits_and_at_least_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    append(store.log(), T1, 1..=9, "12345678");
    for _restart in 0..2 {
        let log = store.log();
        let n = |range, max| log.read(T1, range, max).unwrap().len();
        assert_eq!(n(1..10, 27), 3);
        assert_eq!(n(1..10, 26), 2);
        assert_eq!(n(4..6, 1), 1);
        assert_eq!(n(4..6, 1000), 2);
        assert_eq!(n(9..30, 1000), 1);
        assert_eq!(n(10..30, 1000), 0);
        assert_eq!(log.read(T2, 0..9, 9).unwrap(), []);
    }
}

#[test]
fn truncated_entries_do_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    append(store.log(), T1, 1..=9, "old");
    let (done, heard) = done();
    store.log().truncate_after(T1, Some(4), done);
    assert_eq!(store.log().bounds(T1), Some((1, 4)));
    wait(heard);
    drop(store);

    let store = open(dir.path());
    assert_eq!(store.log().bounds(T1), Some((1, 4)), "a restart does not undo it");
    assert_eq!(texts(store.log(), T1), ["old1", "old2", "old3", "old4"]);
    append(store.log(), T1, 5..=6, "new");
    drop(store);

    let store = open(dir.path());
    assert_eq!(texts(store.log(), T1)[3..], ["old4", "new5", "new6"]);
    store.log().truncate_after(T1, None, ignore());
    assert_eq!(store.log().bounds(T1), None);
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.log().bounds(T1), None);
    append(store.log(), T1, 1..=1, "afresh");
    drop(store);
    assert_eq!(texts(open(dir.path()).log(), T1), ["afresh1"]);
}

#[test]
fn a_purged_log_may_go_on_behind_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    append(store.log(), T1, 1..=9, "a");
    store.log().purge(T1, 3, ignore());
    assert_eq!(store.log().bounds(T1), Some((4, 9)));
    store.log().truncate_after(T1, Some(7), ignore());
    // A snapshot up to 20 arrived.
    store.log().purge(T1, 20, ignore());
    assert_eq!(store.log().bounds(T1), None);
    append(store.log(), T1, 21..=22, "b");
    drop(store);
    let store = open(dir.path());
    assert_eq!(texts(store.log(), T1), ["b21", "b22"]);
    store.log().truncate_after(T1, None, ignore());
    append(store.log(), T1, 22..=22, "c");
    drop(store);
    let store = open(dir.path());
    assert_eq!(texts(store.log(), T1), ["c22"]);
    store.log().remove(T1, ignore());
    append(store.log(), T1, 1..=1, "reborn");
    append(store.log(), T2, 1..=1, "other");
    drop(store);
    let store = open(dir.path());
    assert_eq!(texts(store.log(), T1), ["reborn1"]);
}

/// Any order of requests, restarts in between: the log is what the model says.
#[test]
fn the_log_equals_a_model_across_restarts() {
    let mut dice = Dice::new();
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let mut model: [(u64, BTreeMap<u64, String>); 2] = Default::default();
    for step in 0..4000 {
        let t = dice.below(2);
        let tablet = [T1, T2][t];
        let (floor, entries) = &mut model[t];
        let last = entries.last_key_value().map(|(index, _)| *index);
        let log = store.log();
        match dice.below(10) {
            0 if last.is_some() => {
                let keep = last.unwrap_or(0).saturating_sub(dice.below(5) as u64).max(*floor);
                log.truncate_after(tablet, Some(keep), ignore());
                entries.retain(|index, _| *index <= keep);
            }
            1 => {
                let upto = *floor + dice.below(12) as u64;
                log.purge(tablet, upto, ignore());
                *floor = upto;
                entries.retain(|index, _| *index > upto);
            }
            2 if dice.one_in(20) => {
                log.remove(tablet, ignore());
                (*floor, *entries) = (0, BTreeMap::new());
            }
            _ => {
                let next = last.map_or(*floor + 1, |last| last + 1);
                let new: Vec<_> = (next..next + 1 + dice.below(4) as u64)
                    .map(|index| entry(index, format!("{step}:{index}")))
                    .collect();
                for e in &new {
                    entries.insert(e.index, String::from_utf8(e.bytes.to_vec()).unwrap());
                }
                log.append(tablet, new, ignore());
            }
        }
        if dice.one_in(50) {
            let (done, heard) = done();
            log.save(tablet, Slot::Committed, Some(bytes(step.to_string())), done);
            wait(heard);
        }
        if dice.one_in(200) {
            drop(store);
            store = open(dir.path());
        }
        if dice.one_in(4) {
            let expected: Vec<_> = model[t].1.values().cloned().collect();
            assert_eq!(texts(store.log(), tablet), expected);
        }
    }
}

/// A disk under the test's control.
#[derive(Default)]
struct Broken {
    sync_error: Mutex<Option<i32>>,
    write_error: Mutex<Option<i32>>,
    n_syncs: AtomicUsize,
    gate: Mutex<Gate>,
    moved: Condvar,
}

/// Syncs that wait, and how many may pass; all if none is said.
#[derive(Default)]
struct Gate {
    n_waiting: usize,
    permits: Option<usize>,
}

impl Faults for Broken {
    fn write(&self, _: &Path, _: usize) -> io::Result<()> {
        self.write_error.lock().map_or(Ok(()), |code| Err(io::Error::from_raw_os_error(code)))
    }

    fn sync(&self, _: &Path) -> io::Result<()> {
        let mut gate = self.gate.lock();
        gate.n_waiting += 1;
        self.moved.notify_all();
        while gate.permits == Some(0) {
            self.moved.wait(&mut gate);
        }
        gate.n_waiting -= 1;
        gate.permits = gate.permits.map(|permits| permits - 1);
        drop(gate);
        self.n_syncs.fetch_add(1, Ordering::SeqCst);
        self.sync_error.lock().map_or(Ok(()), |code| Err(io::Error::from_raw_os_error(code)))
    }
}

impl Broken {
    fn let_pass(&self, permits: Option<usize>) {
        self.gate.lock().permits = permits;
        self.moved.notify_all();
    }

    fn wait_until_one_waits(&self) {
        let mut gate = self.gate.lock();
        while gate.n_waiting == 0 || gate.permits != Some(0) {
            self.moved.wait(&mut gate);
        }
    }
}

/// Lets everything pass at the end of a story, or the store would wait for its writer.
struct OpenAtLast(Arc<Broken>);

impl Drop for OpenAtLast {
    fn drop(&mut self) {
        self.0.let_pass(None);
    }
}

fn open_on(disk: &Arc<Broken>, env: &base::Env, dir: &Path) -> Store {
    let options = Options { log_faults: Some(disk.clone()), ..small() };
    Store::open(env, dir, options).unwrap()
}

#[test]
fn what_waits_during_a_sync_shares_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(Broken::default());
    let store = open_on(&disk, &env(), dir.path());
    append(store.log(), T1, 1..=1, "first");
    let before = disk.n_syncs.load(Ordering::SeqCst);
    disk.let_pass(Some(0));
    let heard: Vec<_> = (0..100)
        .map(|n| {
            let (done, heard) = done();
            store.log().append(base::TabletId(10 + n), vec![entry(1, "x")], done);
            heard
        })
        .collect();
    disk.let_pass(None);
    heard.into_iter().for_each(wait);
    let n_syncs = disk.n_syncs.load(Ordering::SeqCst) - before;
    assert!(n_syncs <= 2, "{n_syncs} syncs for 100 appends");
}

#[test]
fn entries_cut_off_while_they_are_written_are_not_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(Broken::default());
    let store = open_on(&disk, &env(), dir.path());
    let log = store.log();
    append(log, T1, 1..=1, "a");
    let _gate = OpenAtLast(disk.clone());
    disk.let_pass(Some(0));
    let big = "x".repeat(100_000);
    log.append(T1, (2..=9).map(|i| entry(i, format!("old{big}"))).collect(), ignore());
    disk.wait_until_one_waits();
    log.truncate_after(T1, Some(4), ignore());
    log.append(T1, (5..=6).map(|i| entry(i, format!("new{big}"))).collect(), ignore());
    let starts = || {
        let read = log.read(T1, 5..7, usize::MAX).unwrap();
        read.iter().map(|e| e.bytes.slice(..3)).collect::<Vec<_>>()
    };
    assert_eq!(starts(), ["new", "new"]);
    // The old ones are durable now, the new ones are not.
    disk.let_pass(Some(1));
    disk.wait_until_one_waits();
    assert_eq!(starts(), ["new", "new"]);
    disk.let_pass(None);
    let (done, heard) = done();
    log.save(T1, Slot::Vote, None, done);
    wait(heard);
    assert_eq!(starts(), ["new", "new"]);
}

#[test]
fn a_failed_sync_or_a_full_disk_halts_and_acknowledges_nothing() {
    const EIO: i32 = 5;
    const ENOSPC: i32 = 28;
    for (code, what) in [(EIO, "sync"), (ENOSPC, "write"), (ENOSPC, "sync"), (EIO, "write")] {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(Broken::default());
        let env = env();
        let store = open_on(&disk, &env, dir.path());
        append(store.log(), T1, 1..=3, "safe");
        let error = if what == "sync" { &disk.sync_error } else { &disk.write_error };
        *error.lock() = Some(code);

        let (failing, heard_failing) = done();
        store.log().append(T1, vec![entry(4, "lost")], failing);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let limit = Duration::from_secs(20);
        let halt =
            runtime.block_on(async { tokio::time::timeout(limit, env.halted()).await.unwrap() });
        assert_eq!(halt.cause, base::env::Cause::Data);
        let reason = halt.reason;
        let expected = io::Error::from_raw_os_error(code).to_string();
        assert!(reason.contains(&expected), "{reason}");
        assert!(reason.contains(&format!("cannot {what} the log file")), "{reason}");
        assert!(reason.contains(".raftlog") && !reason.contains('\n'), "{reason}");

        // The disk works again, and is not trusted again.
        *error.lock() = None;
        let (later, heard_later) = done();
        store.log().append(T1, vec![entry(5, "dropped")], later);
        store.log().save(T1, Slot::Vote, Some(bytes("dropped")), ignore());
        drop(store);
        assert!(heard_failing.try_recv().is_err() && heard_later.try_recv().is_err());

        let store = open(dir.path());
        assert_eq!(texts(store.log(), T1)[..3], ["safe1", "safe2", "safe3"]);
        assert_eq!(store.log().load(T1, Slot::Vote).unwrap(), None);
    }
}

/// A log whose newest file holds several records; the bytes are handed to `change`.
fn with_changed_log(change: impl FnOnce(&mut Vec<u8>)) -> storage::Result<Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for index in 1..=5 {
        append(store.log(), T1, index..=index, "entry");
    }
    drop(store);
    let newest = files(&dir.path().join("log"), ".raftlog").pop().unwrap();
    let mut content = std::fs::read(&newest).unwrap();
    change(&mut content);
    std::fs::write(&newest, content).unwrap();
    Store::open(&env(), dir.path(), small()).map(|store| texts(store.log(), T1))
}

fn position(content: &[u8], text: &str) -> usize {
    content.windows(text.len()).position(|window| window == text.as_bytes()).unwrap()
}

#[test]
fn a_torn_tail_is_cut() {
    let all = ["entry1", "entry2", "entry3", "entry4", "entry5"];
    assert_eq!(with_changed_log(|log| log.extend([0; 100_000])).unwrap(), all);
    assert_eq!(with_changed_log(|log| log.extend(b"half a record")).unwrap(), all);
    let cut = |log: &mut Vec<u8>| log.truncate(log.len() - 3);
    assert_eq!(with_changed_log(cut).unwrap(), all[..4]);
    let torn = |log: &mut Vec<u8>| {
        let at = position(log, "entry5");
        log[at] ^= 0xff;
    };
    assert_eq!(with_changed_log(torn).unwrap(), all[..4]);
}

/// A power cut may leave a log file's name and nothing of what was to be in it.
#[test]
fn a_log_file_whose_making_was_torn_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    append(store.log(), T1, 1..=3, "entry");
    drop(store);
    for file in files(&dir.path().join("log"), ".rewrite") {
        std::fs::write(file, "").unwrap();
    }
    assert_eq!(texts(open(dir.path()).log(), T1), ["entry1", "entry2", "entry3"]);
}

/// As a kill would find it: what is open stays as it is.
#[test]
fn a_log_that_forgot_most_of_its_files_opens_again() {
    const N: u64 = 400;
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(dir.path());
    for index in 1..=N {
        append(store.log(), T1, index..=index, &"x".repeat(500));
    }
    let (done, heard) = done();
    store.log().purge(T1, N - 1, done);
    wait(heard);
    let log_files = || files(&dir.path().join("log"), ".raftlog");
    let n_files_before = log_files().len();
    let deadline = env().now() + Duration::from_secs(30);
    // The upkeep gives the space back within seconds.
    while log_files().len() > 3 {
        assert!(env().now() < deadline, "the log keeps {n_files_before} files");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::create_dir(copy.path().join("log")).unwrap();
    for file in log_files().iter().chain(&files(&dir.path().join("log"), ".rewrite")) {
        let name = file.file_name().unwrap();
        std::fs::copy(file, copy.path().join("log").join(name)).unwrap();
    }
    assert_eq!(open(copy.path()).log().bounds(T1), Some((N, N)));
}

/// A vote may depend on the entries that were there when it was given, and entries on the vote
/// they were accepted under: whatever a crash leaves is a beginning of what was asked for.
#[test]
fn votes_and_entries_are_lost_from_the_end_only() {
    const N: u64 = 12;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let log = store.log();
    for vote in 1..=N {
        log.append(T1, vec![entry(vote, "x")], ignore());
        let (done, heard) = done();
        log.save(T1, Slot::Vote, Some(bytes(vote.to_string())), done);
        wait(heard);
    }
    drop(store);
    let log_files = || files(&dir.path().join("log"), ".raftlog");
    let file = log_files().pop().unwrap();
    let content = std::fs::read(&file).unwrap();
    let mut seen = BTreeSet::new();
    for length in (0..content.len()).rev().step_by(5) {
        std::fs::write(&file, &content[..length]).unwrap();
        let Ok(store) = Store::open(&env(), dir.path(), small()) else { continue };
        let log = store.log();
        let last = log.bounds(T1).map_or(0, |(_, last)| last);
        let vote = log.load(T1, Slot::Vote).unwrap();
        let vote = vote.map_or(0, |vote| std::str::from_utf8(&vote).unwrap().parse().unwrap());
        assert!(vote <= last && last <= vote + 1, "cut at {length}: vote {vote}, entry {last}");
        seen.insert((vote, last));
        drop(store);
        // What the opening itself wrote does not count.
        for later in log_files().into_iter().filter(|other| *other > file) {
            std::fs::remove_file(later).unwrap();
        }
    }
    assert!(seen.len() as u64 >= N, "{seen:?}");
}

#[test]
fn damage_before_the_tail_refuses_to_start() {
    for text in ["entry1", "entry2", "entry4"] {
        for offset in [0, 8, 12] {
            let flip = |log: &mut Vec<u8>| {
                let at = position(log, text) + offset;
                log[at] ^= 1;
            };
            let error = with_changed_log(flip).unwrap_err().to_string();
            assert!(error.contains(".raftlog is damaged"), "{error}");
            assert!(error.contains("delete its data directory"), "{error}");
        }
    }
    let error = with_changed_log(|log| log[3] ^= 1).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "the file's own head: {error}");
}

#[test]
fn damage_that_is_read_stops_the_node() {
    let (env, dir) = (env(), tempfile::tempdir().unwrap());
    let store = Store::open(&env, dir.path(), small()).unwrap();
    // More than the cache holds.
    for index in 1..=200 {
        append(store.log(), T1, index..=index, &"x".repeat(1000));
    }
    let oldest = files(&dir.path().join("log"), ".raftlog").into_iter().next().unwrap();
    let mut content = std::fs::read(&oldest).unwrap();
    let at = position(&content, "xxxx") + 100;
    content[at] ^= 64;
    std::fs::write(&oldest, content).unwrap();
    let error = store.log().read(T1, 0..u64::MAX, usize::MAX).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    let reason = env.halt_reason().expect("the node stops").reason;
    assert!(reason.contains("is damaged") && reason.contains("delete its data directory"));
}

#[test]
fn a_missing_log_file_refuses_to_start() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for index in 1..=50 {
        append(store.log(), T1, index..=index, &"x".repeat(1000));
    }
    drop(store);
    let logs = files(&dir.path().join("log"), ".raftlog");
    assert!(logs.len() > 3, "{logs:?}");
    std::fs::remove_file(&logs[1]).unwrap();
    let error = Store::open(&env(), dir.path(), small()).err().unwrap();
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn damage_in_an_older_file_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for index in 1..=50 {
        append(store.log(), T1, index..=index, &"x".repeat(1000));
    }
    drop(store);
    let oldest = files(&dir.path().join("log"), ".raftlog").remove(0);
    let mut content = std::fs::read(&oldest).unwrap();
    content[500] ^= 1;
    std::fs::write(&oldest, content).unwrap();
    // The entries of older files are checked as they are read.
    let store = open(dir.path());
    let error = store.log().read(T1, 1..51, usize::MAX).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
}

#[test]
fn a_second_process_is_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    let _store = open(dir.path());
    let error = Store::open(&env(), dir.path(), small()).err().unwrap();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[test]
fn the_space_of_purged_entries_is_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let log = store.log();
    append(log, T2, 1..=2, "quiet");
    let text = "x".repeat(1000);
    for index in 1..=3000 {
        log.append(T1, vec![entry(index, format!("{text}{index}"))], ignore());
        if index % 20 == 0 {
            let (done, heard) = done();
            log.purge(T1, index - 10, done);
            wait(heard);
        }
    }
    let deadline = env().now() + Duration::from_secs(30);
    while store.stats().log_disk_bytes > 300_000 {
        assert!(env().now() < deadline, "{} bytes of log", store.stats().log_disk_bytes);
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(store);
    let store = open(dir.path());
    assert_eq!(texts(store.log(), T2), ["quiet1", "quiet2"]);
    assert_eq!(store.log().bounds(T1), Some((2991, 3000)));
    assert_eq!(texts(store.log(), T1).len(), 10);
}
