//! Sorted runs of writes in a temporary file, for a transaction that is larger than its share of memory.
//!
//! ```text
//! run      block, block, …                       one after the other in the file, keys rising
//! block    crc32c: u32, entries                  (little endian; the sum is over the entries)
//! entry    key length: u32, key, kind: u8, value length: u32, value
//! kind     0 the key is deleted · 1 the key has this value
//! ```
//!
//! What stays in memory of a run: the first key of each block, and a filter of ten bits for each key, so that a key
//! that is not there mostly costs no read. A run of 32 MiB with rows of 100 bytes keeps about half a MiB.
//!
//! The file has no name: it is removed as soon as it is open, so that the operating system frees its space when this
//! process ends, however that happens. It is never synced, as nobody reads it after a crash.
//!
//! Absent: merging of runs. Whoever wrote them reads them all, the newest first; and the newest can be dropped alone,
//! which is what a rollback to a savepoint does. That is why this is no LSM tree.

use crate::{Error, Result};
use base::{Key, KeyRange};
use bytes::{BufMut, Bytes, BytesMut};
use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A block ends with the entry that makes it this large.
const BLOCK_BYTES: usize = 32 << 10;
const CRC_BYTES: usize = 4;
const FILTER_BITS_PER_KEY: usize = 10;
const N_FILTER_HASHES: u64 = 7;

/// A key's write: its value, or none where it is deleted.
pub type Write = (Key, Option<Bytes>);

/// A temporary file of runs.
pub struct Spill {
    file: Arc<Temporary>,
    bytes: u64,
}

struct Temporary {
    file: File,
    /// Where it was before it lost its name; errors say it.
    path: PathBuf,
}

/// Writes with rising keys. They stay readable as long as the run lives.
pub struct Run {
    file: Arc<Temporary>,
    blocks: Vec<Block>,
    last: Key,
    filter: Filter,
    bytes: u64,
}

struct Block {
    first: Key,
    offset: u64,
    bytes: usize,
}

impl Spill {
    /// An empty file in `dir`, which is made if it is not there.
    pub fn create(dir: &Path, name: &str) -> Result<Spill> {
        crate::log::create_dir(dir)?;
        let path = dir.join(name);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(Error::io("create the temporary file", &path))?;
        std::fs::remove_file(&path).map_err(Error::io("remove the name of", &path))?;
        Ok(Spill { file: Arc::new(Temporary { file, path }), bytes: 0 })
    }

    /// Writes a run. `writes` come in rising order of their keys, each key once; there are `n_writes`.
    pub fn write<'a>(
        &mut self,
        n_writes: usize,
        writes: impl Iterator<Item = (&'a Key, &'a Option<Bytes>)>,
    ) -> Result<Run> {
        let begin = self.bytes;
        let mut blocks: Vec<Block> = Vec::new();
        let mut filter = Filter::new(n_writes);
        let mut last = Key::new();
        let mut first: Option<Key> = None;
        let mut block = BytesMut::with_capacity(BLOCK_BYTES * 2);
        block.put_u32_le(0);
        let mut writes = writes.peekable();
        while let Some((key, value)) = writes.next() {
            filter.add(key);
            first.get_or_insert_with(|| compact(key));
            block.put_u32_le(key.len() as u32);
            block.put_slice(key);
            match value {
                None => block.put_u8(0),
                Some(value) => {
                    block.put_u8(1);
                    block.put_u32_le(value.len() as u32);
                    block.put_slice(value);
                }
            }
            let is_last = writes.peek().is_none();
            if is_last {
                last = compact(key);
            }
            if block.len() >= BLOCK_BYTES || is_last {
                let crc = crc32c::crc32c(&block[CRC_BYTES..]);
                block[..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
                let Temporary { file, path } = &*self.file;
                let written = file.write_all_at(&block, self.bytes);
                written.map_err(Error::io("write to the temporary file", path))?;
                if let Some(first) = first.take() {
                    blocks.push(Block { first, offset: self.bytes, bytes: block.len() });
                }
                self.bytes += block.len() as u64;
                block.truncate(CRC_BYTES);
            }
        }
        let bytes = self.bytes - begin;
        Ok(Run { file: self.file.clone(), blocks, last, filter, bytes })
    }
}

/// A copy of its own: `key` may be a piece of something large.
fn compact(key: &Key) -> Key {
    Key::copy_from_slice(key)
}

impl Run {
    /// What it takes on disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What it keeps in memory, about.
    pub fn resident_bytes(&self) -> usize {
        let keys: usize =
            self.blocks.iter().map(|block| block.first.len() + size_of::<Block>()).sum();
        keys + self.filter.bits.len() * size_of::<u64>() + size_of::<Run>()
    }

    /// What the run says of `key`; none when it says nothing.
    pub fn get(&self, key: &[u8]) -> Result<Option<Option<Bytes>>> {
        let at = self.blocks.partition_point(|block| &block.first[..] <= key);
        let Some(at) = at.checked_sub(1) else { return Ok(None) };
        if key > &self.last[..] || !self.filter.may_have(key) {
            return Ok(None);
        }
        let entries = self.read(&self.blocks[at])?;
        Ok(entries.into_iter().find(|(found, _)| found == key).map(|(_, value)| value))
    }

    /// The writes in `range`, in the order of their keys.
    pub fn scan(self: &Arc<Run>, range: &KeyRange) -> RunScan {
        let at = self.blocks.partition_point(|block| block.first <= range.start);
        let next = match range.start > self.last {
            true => self.blocks.len(),
            false => at.saturating_sub(1),
        };
        RunScan { run: self.clone(), next, entries: Vec::new().into_iter(), range: range.clone() }
    }

    fn read(&self, block: &Block) -> Result<Vec<Write>> {
        let Temporary { file, path } = &*self.file;
        let mut bytes = vec![0; block.bytes];
        let read = file.read_exact_at(&mut bytes, block.offset);
        read.map_err(Error::io("read from the temporary file", path))?;
        let bytes = Bytes::from(bytes);
        entries_of(&bytes).ok_or_else(|| {
            let source = std::io::Error::new(std::io::ErrorKind::InvalidData, "a block is damaged");
            Error::Io { what: "read from the temporary file", path: path.clone(), source }
        })
    }
}

/// None: the block is not what was written.
fn entries_of(block: &Bytes) -> Option<Vec<Write>> {
    let (crc, content) = block.split_first_chunk::<CRC_BYTES>()?;
    if crc32c::crc32c(content) != u32::from_le_bytes(*crc) {
        return None;
    }
    let mut rest = block.slice(CRC_BYTES..);
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let key = sized(&mut rest)?;
        let kind = *rest.first()?;
        let _ = rest.split_to(1);
        let value = match kind {
            0 => None,
            1 => Some(sized(&mut rest)?),
            _ => return None,
        };
        entries.push((key, value));
    }
    Some(entries)
}

fn sized(rest: &mut Bytes) -> Option<Bytes> {
    let length = u32::from_le_bytes(*rest.first_chunk::<4>()?) as usize;
    let end = length.checked_add(4).filter(|end| *end <= rest.len())?;
    let whole = rest.split_to(end);
    Some(whole.slice(4..))
}

/// The writes of a run within a range; ends with the first error.
pub struct RunScan {
    run: Arc<Run>,
    /// The next block to read.
    next: usize,
    entries: std::vec::IntoIter<Write>,
    range: KeyRange,
}

impl Iterator for RunScan {
    type Item = Result<Write>;

    fn next(&mut self) -> Option<Result<Write>> {
        loop {
            for (key, value) in self.entries.by_ref() {
                if key < self.range.start {
                    continue;
                }
                if !self.range.contains(&key) {
                    self.next = self.run.blocks.len();
                    self.entries = Vec::new().into_iter();
                    return None;
                }
                return Some(Ok((key, value)));
            }
            let block = self.run.blocks.get(self.next)?;
            self.next += 1;
            match self.run.read(block) {
                Ok(entries) => self.entries = entries.into_iter(),
                Err(error) => {
                    self.next = self.run.blocks.len();
                    return Some(Err(error));
                }
            }
        }
    }
}

/// Whether a key may be among those that were added: never no for one that was (Bloom, 1970).
struct Filter {
    bits: Vec<u64>,
}

impl Filter {
    fn new(n_keys: usize) -> Filter {
        Filter { bits: vec![0; (n_keys * FILTER_BITS_PER_KEY).div_ceil(64).max(1)] }
    }

    /// The places of `key`: two hashes make as many as are needed (Kirsch and Mitzenmacher, 2006).
    fn places(&self, key: &[u8]) -> impl Iterator<Item = (usize, u64)> + use<> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let one = hasher.finish();
        let (step, n_bits) = (one.rotate_left(32) | 1, self.bits.len() as u64 * 64);
        (0..N_FILTER_HASHES).map(move |n| {
            let bit = one.wrapping_add(step.wrapping_mul(n)) % n_bits;
            ((bit / 64) as usize, 1 << (bit % 64))
        })
    }

    fn add(&mut self, key: &[u8]) {
        for (word, bit) in self.places(key) {
            self.bits[word] |= bit;
        }
    }

    fn may_have(&self, key: &[u8]) -> bool {
        self.places(key).all(|(word, bit)| self.bits[word] & bit != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn key(n: usize) -> Key {
        format!("k{n:06}").into()
    }

    /// Even keys; each tenth is deleted.
    fn writes(range: std::ops::Range<usize>) -> BTreeMap<Key, Option<Bytes>> {
        let value =
            |n: usize| (!n.is_multiple_of(10)).then(|| Bytes::from(format!("value {n}").repeat(9)));
        range.filter(|n| n % 2 == 0).map(|n| (key(n), value(n))).collect()
    }

    fn file() -> (Spill, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let spill = Spill::create(&dir.path().join("temporary"), "1").unwrap();
        (spill, dir)
    }

    #[test]
    fn runs_answer_what_was_written_and_nothing_else() {
        let (mut spill, dir) = file();
        let (one, two) = (writes(0..6_000), writes(4_000..9_000));
        let runs: Vec<Arc<Run>> = [&one, &two]
            .map(|writes| Arc::new(spill.write(writes.len(), writes.iter()).unwrap()))
            .into();
        assert_eq!(std::fs::read_dir(dir.path().join("temporary")).unwrap().count(), 0);
        for (run, written) in runs.iter().zip([&one, &two]) {
            assert!(run.blocks.len() > 3, "{} blocks", run.blocks.len());
            assert!(run.resident_bytes() < run.bytes() as usize / 20);
            for n in 0..10_000 {
                assert_eq!(run.get(&key(n)).unwrap(), written.get(&key(n)).cloned(), "{n}");
            }
            for (start, end) in
                [(0, 9_999), (10, 11), (4_101, 4_777), (8_997, 9_500), (9_500, 9_600)]
            {
                let range = KeyRange::new(key(start), key(end));
                let found: Vec<Write> = run.scan(&range).map(Result::unwrap).collect();
                let right = written.range(key(start)..key(end));
                let right: Vec<Write> = right.map(|(k, v)| (k.clone(), v.clone())).collect();
                assert_eq!(found, right, "{start} {end}");
            }
            let all = run.scan(&KeyRange::all()).count();
            assert_eq!(all, written.len());
        }
        assert!(spill.write(0, std::iter::empty()).unwrap().get(&key(1)).unwrap().is_none());
    }

    #[test]
    fn a_flipped_bit_is_an_error_and_no_other_row() {
        let (mut spill, _dir) = file();
        let written = writes(0..3_000);
        let run = Arc::new(spill.write(written.len(), written.iter()).unwrap());
        let at = run.blocks[1].offset + 100;
        let mut byte = [0];
        spill.file.file.read_exact_at(&mut byte, at).unwrap();
        spill.file.file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        let outcome: Result<Vec<Write>> = run.scan(&KeyRange::all()).collect();
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("a block is damaged"), "{error}");
        assert!(run.get(&run.blocks[1].first).is_err());
        assert_eq!(run.get(&key(2)).unwrap(), written.get(&key(2)).cloned());
    }

    #[test]
    fn the_filter_mostly_knows_what_is_not_there() {
        let mut filter = Filter::new(10_000);
        (0..10_000).for_each(|n| filter.add(&key(n)));
        assert!((0..10_000).all(|n| filter.may_have(&key(n))));
        let wrong = (10_000..20_000).filter(|n| filter.may_have(&key(*n))).count();
        assert!(wrong < 300, "{wrong} of 10,000");
    }
}
