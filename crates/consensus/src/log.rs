//! openraft's log, over the node's one log.
//!
//! Votes and entries go through the same ordered stream, so a vote can never be durable while an
//! entry acknowledged before it is not. Entries can be read as soon as they are appended; they count
//! as stored only when the shared fsync has returned. A vote is saved as a [`Promise`].

use crate::promise::{Promise, Promises};
use crate::types::{LogId, RaftEntry, Types, Vote, decode, encode};
use base::TabletId;
use bytes::Bytes;
use openraft::entry::RaftEntry as _;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use storage::{Done, Entry, Log, Slot};
use tokio::sync::oneshot;

/// Bytes of entries that are read for one message to a follower.
const BATCH_BYTES_MAX: usize = 4 << 20;

#[derive(Clone)]
pub struct GroupLog {
    tablet: TabletId,
    log: Log,
    promises: Arc<Promises>,
}

impl GroupLog {
    pub fn new(tablet: TabletId, log: Log) -> GroupLog {
        GroupLog { tablet, log, promises: Arc::default() }
    }

    /// The promises of this replica, which this log writes.
    pub fn promises(&self) -> Arc<Promises> {
        self.promises.clone()
    }

    fn load(&self, slot: Slot) -> io::Result<Option<Bytes>> {
        self.log.load(self.tablet, slot).map_err(io::Error::other)
    }

    /// The promise on disk.
    pub fn promise(&self) -> io::Result<Option<Promise>> {
        self.load(Slot::Vote)?.map(|bytes| Promise::from_bytes(&bytes)).transpose()
    }

    pub fn purged(&self) -> io::Result<Option<LogId>> {
        self.load(Slot::Purged)?.map(|bytes| decode(&bytes)).transpose()
    }

    /// The id of the last entry, even if it is purged; entries that were cut off do not count.
    pub fn last(&self) -> io::Result<Option<LogId>> {
        let last = match self.log.bounds(self.tablet) {
            Some((_, last)) => {
                self.read(last, last + 1, usize::MAX)?.first().map(RaftEntry::log_id)
            }
            None => None,
        };
        Ok(last.or(self.purged()?))
    }

    fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<RaftEntry>> {
        let entries =
            self.log.read(self.tablet, start..end, max_bytes).map_err(io::Error::other)?;
        entries.iter().map(|entry| decode(&entry.bytes)).collect()
    }

    /// The id of the entry at `index`, if the log still has it.
    pub fn id_at(&self, index: u64) -> io::Result<Option<LogId>> {
        let purged = self.purged()?;
        if let Some(purged) = purged.filter(|purged| purged.index == index) {
            return Ok(Some(purged));
        }
        match self.log.bounds(self.tablet) {
            Some((first, last)) if (first..=last).contains(&index) => {
                Ok(self.read(index, index + 1, usize::MAX)?.first().map(RaftEntry::log_id))
            }
            _ => Ok(None),
        }
    }
}

/// A callback, and what resolves when it has been called.
fn done() -> (Done, oneshot::Receiver<()>) {
    let (sender, receiver) = oneshot::channel();
    let done = move || {
        // The caller may have been shut down meanwhile.
        sender.send(()).ok();
    };
    (Box::new(done), receiver)
}

fn stopped() -> io::Error {
    io::Error::other("the log has stopped")
}

impl RaftLogReader<Types> for GroupLog {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<RaftEntry>> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.read(start, end, usize::MAX)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.promise()?.map(|promise| promise.vote))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> io::Result<Vec<RaftEntry>> {
        self.read(start, end, BATCH_BYTES_MAX)
    }
}

impl RaftLogStorage<Types> for GroupLog {
    type LogReader = GroupLog;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        Ok(LogState { last_purged_log_id: self.purged()?, last_log_id: self.last()? })
    }

    async fn get_log_reader(&mut self) -> GroupLog {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (done, durable) = done();
        let promise = self.promises.make(*vote);
        self.log.save(self.tablet, Slot::Vote, Some(promise.to_bytes()), done);
        durable.await.map_err(|_| stopped())
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = RaftEntry> + Send,
        I::IntoIter: Send,
    {
        let entries = entries
            .into_iter()
            .map(|entry| Entry { index: entry.log_id().index, bytes: encode(&entry) })
            .collect();
        self.log.room().await;
        self.log.append(self.tablet, entries, Box::new(move || flushed.io_completed(Ok(()))));
        Ok(())
    }

    async fn truncate_after(&mut self, last_kept: Option<LogId>) -> io::Result<()> {
        let last_kept = last_kept.map(|id| id.index);
        // Waits until the cut is durable. Otherwise a snapshot that is installed next could be durable
        // before the entries that contradict it are gone.
        let (done, durable) = done();
        self.log.truncate_after(self.tablet, last_kept, done);
        durable.await.map_err(|_| stopped())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.log.save(self.tablet, Slot::Purged, Some(encode(&upto)), Box::new(|| {}));
        self.log.purge(self.tablet, upto.index, Box::new(|| {}));
        Ok(())
    }
}
