//! Putting a staged snapshot into the trees, and taking a tablet out of them.

use super::{Chunk, Record, Staging, TabletRanges, staging_dir, stored};
use crate::state::State;
use crate::state::keys::{self, EXPIRING, GONE, MARK, META, ROW};
use crate::state::manifest::Installing;
use crate::{Error, Result};
use base::{KeyRange, TabletId};
use bytes::Bytes;
use lsm_tree::{AbstractTree, Guard, Slice};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// Keys or records that go in under one hold of the apply lock.
const STEP_LEN: usize = 1024;

impl State {
    /// Replaces all that `ranges` hold by the staged snapshot. Durable on return, which gives the
    /// mark. The tablet must not be applied to, nor read, meanwhile.
    pub(crate) fn install(
        &self,
        tablet: TabletId,
        staging: Staging,
        ranges: TabletRanges,
    ) -> Result<Option<Bytes>> {
        let _installing = self.installing.lock();
        let path = staging.finish()?;
        // The whole file is read before anything is wiped: it may have been damaged since it arrived.
        let mut records = Records::open(&path, &self.data_dir)?;
        while records.next()?.is_some() {}
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let installing = Installing { file: name, tablet, ranges };
        {
            let mut manifest = self.manifest.lock();
            manifest.installing = Some(installing.clone());
            manifest.save(&self.dir)?;
        }
        self.run_install(&installing)?;
        self.mark(tablet)
    }

    /// Does an installation that the manifest notes, from the wiping on.
    pub(crate) fn run_install(&self, installing: &Installing) -> Result<()> {
        let Installing { file, tablet, ranges } = installing;
        let path = staging_dir(&self.data_dir).join(file);
        self.wipe(*tablet, ranges)?;
        let mut records = Records::open(&path, &self.data_dir)?;
        let Some(Record::Header { index, mark, horizon, .. }) = records.next()? else {
            return Err(records.damaged("it does not begin with a header"));
        };
        self.raise_horizon(&mut self.manifest.lock(), horizon);
        let mut n_records = 1;
        loop {
            let mut step = Vec::with_capacity(STEP_LEN);
            while step.len() < STEP_LEN
                && let Some(record) = records.next()?
            {
                step.push(record);
            }
            if step.is_empty() {
                break;
            }
            n_records += step.len() as u64;
            if let Some(Record::End { n_records: told }) = step.last()
                && *told != n_records - 1
            {
                return Err(records.damaged("records are missing"));
            }
            self.write_raw(|current, segment, seqno| {
                let inserted = step.into_iter().map(|record| match record {
                    Record::Row { key, stored: row } => {
                        current.insert(keys::tagged(ROW, &key), stored(row), seqno).0
                    }
                    Record::Old { key, replaced_at, stored: old } => {
                        segment.touch(Some(replaced_at));
                        let key = keys::old_key(&key, replaced_at);
                        segment.tree.insert(key, stored(old), seqno).0
                    }
                    Record::Meta { key, value } => {
                        current.insert(keys::tagged(META, &key), stored(value), seqno).0
                    }
                    Record::Expiring { key, value } => {
                        segment.touch(None);
                        let value = keys::expiring_value(*tablet, index, &value);
                        segment.tree.insert(keys::tagged(EXPIRING, &key), value, seqno).0
                    }
                    Record::Header { .. } | Record::End { .. } => 0,
                });
                inserted.sum()
            })?;
        }
        self.write_raw(|current, _, seqno| {
            let key = keys::tablet_key(MARK, *tablet);
            current.insert(key, keys::mark_value(index, &mark), seqno).0
        })?;
        {
            let mut progress = self.progress.write();
            let progress = progress.entry(*tablet).or_default();
            (progress.applied, progress.gone) = (index, false);
        }
        self.flush()?;
        {
            let mut manifest = self.manifest.lock();
            manifest.installing = None;
            manifest.save(&self.dir)?;
        }
        fs::remove_file(&path).map_err(Error::io("delete", &path))
    }

    /// Takes out a tablet's rows, unversioned keys and applied mark. Durable on return. Its old versions
    /// and expiring keys go when their segments are dropped.
    pub(crate) fn remove(&self, tablet: TabletId, ranges: &TabletRanges) -> Result<()> {
        self.wipe(tablet, ranges)?;
        self.flush()
    }

    /// Takes rows out that nobody will ever read or write again, whole files at a time; only the files at the
    /// borders are looked into. Versions that were replaced before go when their segments are dropped. Durable on
    /// return. All batches applied before the call are durable too, so no replay of the log brings a row back.
    pub(crate) fn discard_rows(&self, range: &KeyRange) -> Result<()> {
        self.flush()?;
        let (start, end) = keys::tagged_range(ROW, range);
        self.current.drop_range((start, end)).map_err(|error| self.tree_error(error))?;
        self.wipe_range(ROW, range)?;
        self.flush()
    }

    fn wipe(&self, tablet: TabletId, ranges: &TabletRanges) -> Result<()> {
        // The mark first: if a crash leaves rows behind, they belong to no tablet here.
        self.write_raw(|current, _, seqno| {
            let mut progress = self.progress.write();
            let Some(progress) = progress.get_mut(&tablet) else { return 0 };
            (progress.durable, progress.gone) = (None, true);
            let last = keys::mark_value(progress.applied, &[]);
            current.insert(keys::tablet_key(GONE, tablet), last, seqno).0
                + current.remove(keys::tablet_key(MARK, tablet), seqno).0
        })?;
        self.wipe_range(ROW, &ranges.rows)?;
        ranges.meta.iter().try_for_each(|range| self.wipe_range(META, range))
    }

    fn wipe_range(&self, kind: u8, range: &KeyRange) -> Result<()> {
        let view = crate::state::view::View::of(self);
        let mut items = self.current.range(keys::tagged_range(kind, range), view.number, None);
        loop {
            let step = items.by_ref().take(STEP_LEN).map(|item| item.key());
            let step: lsm_tree::Result<Vec<Slice>> = step.collect();
            let step = step.map_err(|e| self.tree_error(e))?;
            if step.is_empty() {
                return Ok(());
            }
            self.write_raw(|current, _, seqno| {
                step.into_iter().map(|key| current.remove(key, seqno).0).sum()
            })?;
        }
    }
}

/// The records of a staging file, each chunk checked again.
struct Records {
    path: PathBuf,
    data_dir: PathBuf,
    file: BufReader<File>,
    next: u32,
    waiting: VecDeque<u8>,
    last: bool,
    over: bool,
}

impl Records {
    fn open(path: &Path, data_dir: &Path) -> Result<Records> {
        Ok(Records {
            file: BufReader::new(File::open(path).map_err(Error::io("open", path))?),
            path: path.to_path_buf(),
            data_dir: data_dir.to_path_buf(),
            next: 0,
            waiting: VecDeque::new(),
            last: false,
            over: false,
        })
    }

    /// The next record; none after the end record, and an error if there is no end record.
    fn next(&mut self) -> Result<Option<Record>> {
        if self.over {
            return Ok(None);
        }
        let length = self.take(4)?;
        let length = length.try_into().map_or(0, u32::from_le_bytes) as usize;
        let encoded = self.take(length)?;
        let record: Record =
            postcard::from_bytes(&encoded).map_err(|_| self.damaged("a record cannot be read"))?;
        self.over = matches!(record, Record::End { .. });
        Ok(Some(record))
    }

    fn take(&mut self, len: usize) -> Result<Vec<u8>> {
        while self.waiting.len() < len {
            self.chunk()?;
        }
        Ok(self.waiting.drain(..len).collect())
    }

    fn chunk(&mut self) -> Result<()> {
        if self.last {
            return Err(self.damaged("it ends in the middle of a record"));
        }
        let mut length = [0; 4];
        self.file.read_exact(&mut length).map_err(|_| self.damaged("a chunk is missing"))?;
        let length = u32::from_le_bytes(length) as usize;
        if length > super::CHUNK_BYTES_MAX {
            return Err(self.damaged("a chunk is too long"));
        }
        let mut bytes = vec![0; length];
        self.file.read_exact(&mut bytes).map_err(|_| self.damaged("a chunk is cut short"))?;
        let chunk = Chunk::parse(&bytes).map_err(|what| self.damaged(what))?;
        if chunk.number != self.next {
            return Err(self.damaged("its chunks are out of order"));
        }
        self.next += 1;
        self.last = chunk.last;
        self.waiting.extend(chunk.piece);
        Ok(())
    }

    fn damaged(&self, what: &str) -> Error {
        Error::Damaged { file: self.path.clone(), dir: self.data_dir.clone(), what: what.into() }
    }
}
