use super::*;
use crate::Faults;
use base::env::MemoryNet;
use std::sync::mpsc;

const READ: TabletId = TabletId(1);
const BUSY: TabletId = TabletId(2);
const READER: &str = "reader";

/// A disk on which the reader's first read takes as long as it is told to.
struct SlowRead {
    reached: Mutex<Option<mpsc::Sender<()>>>,
    gate: Mutex<mpsc::Receiver<()>>,
}

impl Faults for SlowRead {
    fn read(&self, _: &Path) -> std::io::Result<()> {
        let is_reader = std::thread::current().name() == Some(READER);
        let reached = self.reached.lock().take_if(|_| is_reader);
        if let Some(reached) = reached {
            reached.send(()).unwrap();
            self.gate.lock().recv().unwrap();
        }
        Ok(())
    }

    fn write(&self, _: &Path, _: usize) -> std::io::Result<()> {
        Ok(())
    }

    fn sync(&self, _: &Path) -> std::io::Result<()> {
        Ok(())
    }
}

fn append(log: &Log, tablet: TabletId, index: u64) {
    let (sender, done) = mpsc::channel();
    let entry = Entry { index, bytes: Bytes::from("x".repeat(5_000)) };
    log.append(tablet, vec![entry], Box::new(move || sender.send(()).unwrap_or_default()));
    done.recv().unwrap();
}

#[test]
fn who_reads_what_is_moved_to_another_file_finds_it_there() {
    let env = Env::seeded(1, Arc::new(MemoryNet::default()));
    let dir = tempfile::tempdir().unwrap();
    let (reached, has_reached) = mpsc::channel();
    let (open, gate) = mpsc::channel();
    let slow = SlowRead { reached: Mutex::new(Some(reached)), gate: Mutex::new(gate) };
    let options = Options {
        log_bytes: 64 << 10,
        log_file_bytes: 16 << 10,
        log_cache_bytes: 0,
        log_faults: Some(Arc::new(slow)),
        ..Options::default()
    };
    let (log, writer) = Log::open(&env, dir.path(), &options).unwrap();
    // Over several files, more than the cache holds, and few enough to be moved.
    let n = 30;
    (1..=n).for_each(|index| append(&log, READ, index));
    let mut files = fs::read_dir(dir.path().join("log")).unwrap();
    let is_old = |path: &PathBuf| path.extension().is_some_and(|kind| kind == "raftlog");
    let old: Vec<PathBuf> =
        files.by_ref().map(|file| file.unwrap().path()).filter(is_old).collect();
    assert!(old.len() > 3, "{old:?}");

    let reads = log.clone();
    let read = move || reads.read(READ, 0..u64::MAX, usize::MAX);
    let reader = std::thread::Builder::new().name(READER.into()).spawn(read).unwrap();
    has_reached.recv().unwrap();
    let mut index = 0;
    while old.iter().filter(|path| path.exists()).count() > 1 {
        index += 1;
        assert!(index < 1000, "the old files stay");
        append(&log, BUSY, index);
        log.purge(BUSY, index.saturating_sub(2), Box::new(|| ()));
        log.reclaim();
    }
    open.send(()).unwrap();
    let found = reader.join().unwrap().unwrap();
    assert!(found.iter().map(|entry| entry.index).eq(1..=n));
    assert_eq!(env.halt_reason(), None);
    log.close();
    writer.join().unwrap();
}
