//! The writer thread: requests in, one record and one sync per group, callbacks out.

use super::{CUT_SLOT, Done, Entry, Inner};
use crate::{Error, Result};
use base::TabletId;
use bytes::Bytes;
use protobuf::well_known_types::BytesValue;
use raft_engine::{Command, LogBatch, MessageExt};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

/// Bytes of entries that one record may hold. Each reading thread keeps one record in its cache, and
/// a torn tail loses one record at most.
const GROUP_BYTES_MAX: usize = 4 << 20;

pub(super) enum Request {
    /// `fresh`: the log was empty. `heals`: entries after these were cut off earlier.
    Append {
        tablet: TabletId,
        epoch: u64,
        entries: Vec<Entry>,
        fresh: bool,
        heals: bool,
        done: Done,
    },
    Save {
        tablet: TabletId,
        slot: u8,
        value: Option<Bytes>,
        done: Done,
    },
    Cut {
        tablet: TabletId,
        next: u64,
        done: Done,
    },
    Purge {
        tablet: TabletId,
        first: u64,
        done: Done,
    },
    Remove {
        tablet: TabletId,
        done: Done,
    },
    /// Nothing to write, but the callback keeps its place in the order.
    Nothing {
        done: Done,
    },
}

impl Request {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Request::Append { entries, .. } => entries.iter().map(|e| e.bytes.len() + 16).sum(),
            Request::Save { value, .. } => value.as_ref().map_or(0, Bytes::len) + 16,
            _ => 16,
        }
    }
}

/// How an entry lies in a record. raft-engine wants protobuf messages that know their index, so the
/// bytes begin with the index.
pub(super) struct Codec;

impl MessageExt for Codec {
    type Entry = BytesValue;

    fn index(packed: &BytesValue) -> u64 {
        packed.value.first_chunk().map_or(0, |index| u64::from_be_bytes(*index))
    }
}

impl Codec {
    fn pack(entry: &Entry) -> BytesValue {
        let mut packed = BytesValue::new();
        packed.value.reserve_exact(8 + entry.bytes.len());
        packed.value.extend_from_slice(&entry.index.to_be_bytes());
        packed.value.extend_from_slice(&entry.bytes);
        packed
    }

    pub fn unpack(packed: BytesValue) -> Entry {
        let index = Codec::index(&packed);
        let mut bytes = Bytes::from(packed.value);
        Entry { index, bytes: bytes.split_off(8.min(bytes.len())) }
    }
}

pub(super) fn start(inner: Arc<Inner>) -> Result<JoinHandle<()>> {
    let dir = inner.dir.clone();
    std::thread::Builder::new()
        .name("log-writer".into())
        .spawn(move || {
            let guard = base::env::PanicHalts::new(&inner.env, "thread", "log-writer");
            run(&inner);
            drop(guard);
        })
        .map_err(Error::io("start the writer of the log in", &dir))
}

fn run(inner: &Inner) {
    while let Some(group) = next_group(inner) {
        let (batch, progress, done) = assemble(group);
        if let Err(reason) = write(inner, batch) {
            // The callbacks are dropped without being called, so nobody is told "durable".
            inner.halt(reason);
            return;
        }
        let mut front = inner.front.lock();
        for progress in progress {
            inner.entries_are_durable(&mut front, progress);
        }
        drop(front);
        done.into_iter().for_each(|done| done());
    }
}

/// Waits for requests and takes a group of them; none when the log closes and nothing waits.
fn next_group(inner: &Inner) -> Option<Vec<Request>> {
    let mut front = inner.front.lock();
    while front.queue.is_empty() {
        if front.closing {
            return None;
        }
        inner.wake.wait(&mut front);
    }
    if inner.stopped.load(Ordering::Acquire) {
        return None;
    }
    let mut group = Vec::new();
    let mut bytes = 0;
    while let Some(request) = front.queue.pop_front() {
        bytes += request.bytes();
        front.queued_bytes -= request.bytes();
        group.push(request);
        if bytes >= GROUP_BYTES_MAX {
            break;
        }
    }
    drop(front);
    inner.drained.notify_waiters();
    Some(group)
}

/// The entries that a record makes durable: those of this tablet and epoch below this index.
pub(super) type Progress = (TabletId, u64, u64);
type Assembled = (raft_engine::Result<LogBatch>, Vec<Progress>, Vec<Done>);

/// One record made of a group of requests, the ends of the logs that it makes durable, and the callbacks.
fn assemble(group: Vec<Request>) -> Assembled {
    let mut batch = LogBatch::with_capacity(group.len() * 2);
    let mut progress = Vec::new();
    let mut callbacks = Vec::with_capacity(group.len());
    let mut failed = None;
    for request in group {
        let (added, done) = match request {
            Request::Append { tablet, epoch, entries, fresh, heals, done } => {
                if let Some(last) = entries.last() {
                    progress.push((tablet, epoch, last.index + 1));
                }
                if heals {
                    batch.delete(tablet.0, vec![CUT_SLOT]);
                }
                (append(&mut batch, tablet, &entries, fresh), done)
            }
            Request::Save { tablet, slot, value: Some(value), done } => {
                (batch.put(tablet.0, vec![slot], value.to_vec()), done)
            }
            Request::Save { tablet, slot, value: None, done } => {
                batch.delete(tablet.0, vec![slot]);
                (Ok(()), done)
            }
            Request::Cut { tablet, next, done } => {
                (batch.put(tablet.0, vec![CUT_SLOT], next.to_be_bytes().to_vec()), done)
            }
            Request::Purge { tablet, first, done } => {
                batch.add_command(tablet.0, Command::Compact { index: first });
                (Ok(()), done)
            }
            Request::Remove { tablet, done } => {
                batch.add_command(tablet.0, Command::Clean);
                (Ok(()), done)
            }
            Request::Nothing { done } => (Ok(()), done),
        };
        if let Err(error) = added {
            failed.get_or_insert(error);
        }
        callbacks.push(done);
    }
    (failed.map_or(Ok(batch), Err), progress, callbacks)
}

fn append(
    batch: &mut LogBatch,
    tablet: TabletId,
    entries: &[Entry],
    fresh: bool,
) -> raft_engine::Result<()> {
    if let Some(entry) = entries.first().filter(|_| fresh) {
        // A cut or purged log may have gaps before its next entry; the engine knows no gaps.
        batch.add_command(tablet.0, Command::Compact { index: entry.index });
    }
    let packed: Vec<BytesValue> = entries.iter().map(Codec::pack).collect();
    batch.add_entries::<Codec>(tablet.0, &packed)
}

fn write(inner: &Inner, batch: raft_engine::Result<LogBatch>) -> std::result::Result<(), String> {
    let written = batch.and_then(|mut batch| inner.engine.write(&mut batch, true));
    // Looked at even after success: this is where a failed sync is found.
    match (inner.failure.reason(), written) {
        (Some(reason), _) => Err(reason),
        (None, Err(error)) => Err(format!("cannot write the log {}: {error}", inner.dir.display())),
        (None, Ok(_)) => Ok(()),
    }
}
