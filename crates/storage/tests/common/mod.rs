//! What the stories share: a world, a directory, and ways to break both.
#![allow(dead_code)]

use base::env::MemoryNet;
use base::{Env, Key, KeyRange, Scn, TabletId};
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;
use storage::{At, Batch, Done, Entry, Options, Result, Store};

pub const T1: TabletId = TabletId(1);
pub const T2: TabletId = TabletId(2);
pub const MINUTE: Duration = Duration::from_secs(60);

pub fn env() -> Env {
    Env::seeded(1, Arc::new(MemoryNet::default()))
}

pub fn open(dir: &Path) -> Store {
    Store::open(&env(), dir, small()).unwrap()
}

/// Opens a store that never drops a version.
pub fn open_hoarding(dir: &Path) -> Store {
    Store::open(&env(), dir, Options { retention: MINUTE * 60 * 24, ..small() }).unwrap()
}

/// Small sizes, so that little data fills much.
pub fn small() -> Options {
    Options {
        log_bytes: 64 << 10,
        log_file_bytes: 8 << 10,
        log_cache_bytes: 0,
        ..Options::default()
    }
}

pub fn bytes(text: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(text.as_ref())
}

pub fn entry(index: u64, text: impl AsRef<[u8]>) -> Entry {
    Entry { index, bytes: bytes(text) }
}

/// A callback, and the place where its call is heard.
pub fn done() -> (Done, mpsc::Receiver<()>) {
    let (sender, receiver) = mpsc::channel();
    (Box::new(move || sender.send(()).unwrap_or_default()), receiver)
}

pub fn ignore() -> Done {
    Box::new(|| ())
}

pub fn wait(heard: mpsc::Receiver<()>) {
    heard.recv_timeout(Duration::from_secs(20)).expect("the callback never ran");
}

pub fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(suffix))
        .collect();
    files.sort();
    files
}

/// Makes the flush of one tree fail until the guard is dropped; the others still flush.
pub struct CannotFlush(PathBuf);

impl CannotFlush {
    pub fn current(dir: &Path) -> CannotFlush {
        CannotFlush::tree(dir.join("state/current"))
    }

    pub fn newest_segment(dir: &Path) -> CannotFlush {
        let trees = files(&dir.join("state"), "");
        let segments = trees.into_iter().filter(|tree| tree.to_string_lossy().contains("segment-"));
        CannotFlush::tree(segments.max().unwrap())
    }

    fn tree(tree: PathBuf) -> CannotFlush {
        let tables = tree.join("tables");
        std::fs::rename(&tables, tables.with_extension("away")).unwrap();
        CannotFlush(tables)
    }
}

impl Drop for CannotFlush {
    fn drop(&mut self) {
        std::fs::rename(self.0.with_extension("away"), &self.0).unwrap();
    }
}

/// A generator, and its seed for the replay line.
pub struct Dice {
    pub rng: SmallRng,
    seed: u64,
}

impl Dice {
    /// From `ATOLL_SEED`, or fresh.
    pub fn new() -> Dice {
        let seed = std::env::var("ATOLL_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| Env::real().random());
        Dice { rng: SmallRng::seed_from_u64(seed), seed }
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.rng.random_range(0..n)
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

impl Drop for Dice {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay with ATOLL_SEED={}", self.seed);
        }
    }
}

/// Every version there ever was.
#[derive(Clone, Default)]
pub struct Model {
    pub rows: BTreeMap<Key, Vec<(Scn, Option<Bytes>)>>,
}

pub type Rows = Vec<(Key, Scn, Bytes)>;

impl Model {
    pub fn put(&mut self, key: Key, scn: Scn, value: Bytes) {
        self.rows.entry(key).or_default().push((scn, Some(value)));
    }

    pub fn delete(&mut self, key: Key, scn: Scn) {
        self.rows.entry(key).or_default().push((scn, None));
    }

    pub fn get(&self, key: &[u8], scn: Scn) -> Option<(Scn, Bytes)> {
        let versions = self.rows.get(key)?;
        let (at, value) = versions.iter().rev().find(|(at, _)| *at <= scn)?;
        value.clone().map(|value| (*at, value))
    }

    pub fn scan(&self, range: &KeyRange, scn: Scn, reverse: bool) -> Rows {
        let mut rows: Rows = self
            .rows
            .keys()
            .filter(|key| range.contains(key))
            .filter_map(|key| self.get(key, scn).map(|(at, value)| (key.clone(), at, value)))
            .collect();
        if reverse {
            rows.reverse();
        }
        rows
    }
}

pub fn rows(store: &Store, range: &KeyRange, at: At, reverse: bool) -> Rows {
    store.scan(range, at, reverse).collect::<Result<_>>().unwrap()
}

/// A batch of one change to each of some random keys, also noted in the model.
pub fn random_batch(dice: &mut Dice, keys: &[Key], scn: Scn, model: &mut Model) -> Batch {
    let mut batch = Batch::default();
    let start = dice.below(keys.len());
    for step in 0..1 + dice.below(4) {
        let key = keys[(start + step) % keys.len()].clone();
        if dice.one_in(3) {
            batch.delete(key.clone(), scn);
            model.delete(key, scn);
        } else {
            let value = bytes(format!("{scn}/{}", dice.below(1000)));
            batch.put(key.clone(), scn, value.clone());
            model.put(key, scn, value);
        }
    }
    batch
}

/// Keys that are prefixes of each other and hold zeros.
pub fn awkward_keys() -> Vec<Key> {
    let fixed: [&[u8]; 8] =
        [b"a", b"a\0", b"a\0\0", b"a\0\xff", b"a\x01", b"b", b"\0", b"\xff\xff"];
    let mut keys: Vec<Key> = fixed.iter().map(bytes).collect();
    keys.extend((0..12).map(|n| bytes(format!("row{n:02}"))));
    keys
}
