//! A tablet's state on its way to another node: out as chunks, in through a staging file.
//!
//! An [`Export`] is a stream of records cut into chunks of at most a mebibyte, each with its
//! number and a CRC32C. It shows the tablet as of the call, whatever is applied while it runs: the
//! applied mark and the horizon first, then the rows, their old versions, the unversioned keys and
//! the expiring keys.
//!
//! The receiver appends each chunk to a [`Staging`] file, which refuses a chunk that is damaged,
//! repeated or out of order. Then the receiver installs the file: the manifest notes the installation,
//! the ranges are wiped, the records go in, all is flushed, and the note is removed. A start after a
//! crash in between finds the note and does the installation again, beginning with the wiping. Other
//! tablets are not touched. Memory stays bounded: one chunk, and what the memtables may hold.
//!
//! ```text
//!   chunk    crc32c: u32, number: u32, last: u8, a piece of the stream     (little endian)
//!   stream   (length: u32, record)*        header, rows, old versions, metas, expiring, end
//! ```
//!
//! Old versions that an earlier replica of the tablet left in this node's segments stay, because they
//! are true of the same rows. Versions may be missing between these and the ones that arrive; they lie
//! before the sender's horizon, which becomes the horizon of this node too.

mod install;

use crate::log::{create_dir, sync_dir};
use crate::state::keys::{self, EXPIRING, MARK, META, ROW};
use crate::state::view::View;
use crate::state::{State, TabletRanges};
use crate::{Error, Result};
use base::{Scn, TabletId};
use bytes::{BufMut, Bytes, BytesMut};
use lsm_tree::{AbstractTree, Guard, Slice};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The longest chunk, its head included.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;
const CHUNK_HEAD_BYTES: usize = 9;

/// One item of the stream. The order of the variants is on disk and on the wire.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Record {
    Header { tablet: TabletId, index: u64, mark: Bytes, horizon: Scn },
    Row { key: Bytes, stored: Bytes },
    Old { key: Bytes, replaced_at: Scn, stored: Bytes },
    Meta { key: Bytes, value: Bytes },
    Expiring { key: Bytes, value: Bytes },
    End { n_records: u64 },
}

/// The chunks of a tablet's state.
pub struct Export {
    state: Arc<State>,
    records: Box<dyn Iterator<Item = Result<Record>> + Send>,
    waiting: BytesMut,
    n_records: u64,
    number: u32,
    over: bool,
    index: u64,
    _view: View,
}

impl Export {
    pub(crate) fn of(
        state: &Arc<State>,
        tablet: TabletId,
        ranges: &TabletRanges,
    ) -> Result<Export> {
        let view = View::of(state);
        let number = view.number;
        let mark = state
            .current
            .get(keys::tablet_key(MARK, tablet), number)
            .map_err(|e| state.tree_error(e))?;
        let (Scn(index), mark) = mark.and_then(keys::split_version).unwrap_or_default();
        let horizon = view.segments.horizon;
        let header = Record::Header { tablet, index, mark, horizon };

        let of = state.clone();
        let rows = state.current.range(keys::tagged_range(ROW, &ranges.rows), number, None).map(
            move |item| {
                let (key, stored) = item.into_inner().map_err(|e| of.tree_error(e))?;
                Ok(Record::Row { key: keys::untagged(key), stored: stored.into() })
            },
        );

        let (start, end) = keys::old_range(&ranges.rows);
        let of = state.clone();
        let olds = view.segments.list.clone().into_iter().flat_map(move |segment| {
            let of = of.clone();
            segment.tree.range(keys::old_bounds(&start, &end), number, None).map(move |item| {
                let (key, stored) = item.into_inner().map_err(|e| of.tree_error(e))?;
                let (prefix, replaced_at) =
                    keys::split_old(&key).ok_or_else(|| of.damaged("an old version has no SCN"))?;
                let key = keys::unescape(prefix);
                Ok(Record::Old { key, replaced_at, stored: stored.into() })
            })
        });

        let of = state.clone();
        let metas = ranges.meta.clone().into_iter().flat_map(move |range| {
            let shown = of.clone();
            let iter = of.current.range(keys::tagged_range(META, &range), number, None);
            iter.map(move |item| {
                let (key, value) = item.into_inner().map_err(|e| shown.tree_error(e))?;
                Ok(Record::Meta { key: keys::untagged(key), value: value.into() })
            })
        });

        let of = state.clone();
        let ranges = ranges.expiring.clone();
        let expiring = view.segments.list.clone().into_iter().flat_map(move |segment| {
            let of = of.clone();
            ranges.clone().into_iter().flat_map(move |range| {
                let shown = of.clone();
                let iter = segment.tree.range(keys::tagged_range(EXPIRING, &range), number, None);
                iter.filter_map(move |item| match item.into_inner() {
                    Ok((key, stored)) => shown
                        .if_applied(stored)
                        .map(|value| Ok(Record::Expiring { key: keys::untagged(key), value })),
                    Err(error) => Some(Err(shown.tree_error(error))),
                })
            })
        });

        let records = Box::new(
            std::iter::once(Ok(header)).chain(rows).chain(olds).chain(metas).chain(expiring),
        );
        Ok(Export {
            state: state.clone(),
            records,
            waiting: BytesMut::new(),
            n_records: 0,
            number: 0,
            over: false,
            index,
            _view: view,
        })
    }

    /// The applied index that the export shows.
    pub fn index(&self) -> u64 {
        self.index
    }

    fn chunk(&mut self) -> Result<Bytes> {
        let room = CHUNK_BYTES_MAX - CHUNK_HEAD_BYTES;
        let mut ended = false;
        while self.waiting.len() <= room && !ended {
            let record = match self.records.next().transpose()? {
                Some(record) => record,
                None => {
                    ended = true;
                    Record::End { n_records: self.n_records }
                }
            };
            self.n_records += 1;
            let encoded = postcard::to_stdvec(&record)
                .map_err(|error| self.state.damaged(&format!("it cannot be sent: {error}")))?;
            self.waiting.put_u32_le(encoded.len() as u32);
            self.waiting.put_slice(&encoded);
        }
        // The last record may not fit into this chunk: the rest of it goes out in further chunks.
        if ended {
            self.records = Box::new(std::iter::empty());
            self.over = true;
        }
        Ok(self.cut(room))
    }

    fn cut(&mut self, room: usize) -> Bytes {
        let piece = self.waiting.split_to(room.min(self.waiting.len()));
        let last = self.over && self.waiting.is_empty();
        let mut chunk = BytesMut::with_capacity(CHUNK_HEAD_BYTES + piece.len());
        chunk.put_u32_le(0);
        chunk.put_u32_le(self.number);
        chunk.put_u8(last.into());
        chunk.put_slice(&piece);
        let crc = crc32c::crc32c(&chunk[4..]);
        chunk[..4].copy_from_slice(&crc.to_le_bytes());
        self.number += 1;
        chunk.freeze()
    }
}

impl Iterator for Export {
    type Item = Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            let room = CHUNK_BYTES_MAX - CHUNK_HEAD_BYTES;
            return (!self.waiting.is_empty()).then(|| Ok(self.cut(room)));
        }
        let chunk = self.chunk();
        if chunk.is_err() {
            self.over = true;
            self.waiting.clear();
        }
        Some(chunk)
    }
}

/// A snapshot that is arriving. If it is dropped before it was installed, its file is deleted.
pub struct Staging {
    path: PathBuf,
    file: File,
    next: u32,
    complete: bool,
    kept: bool,
}

pub(crate) fn staging_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("staging")
}

impl Staging {
    pub(crate) fn create(state: &State, tablet: TabletId) -> Result<Staging> {
        let dir = staging_dir(&state.data_dir);
        create_dir(&dir)?;
        let path = dir.join(format!("{tablet}-{:016x}", state.env.random()));
        let file = File::create_new(&path).map_err(Error::io("create", &path))?;
        Ok(Staging { path, file, next: 0, complete: false, kept: false })
    }

    /// Takes the next chunk.
    pub fn append(&mut self, chunk: &[u8]) -> Result<()> {
        let refuse = |what: String| Error::BadChunk { number: self.next, what };
        let parsed = Chunk::parse(chunk).map_err(|what| refuse(what.into()))?;
        if self.complete {
            return Err(refuse("the last chunk was already here".into()));
        }
        if parsed.number != self.next {
            return Err(refuse(format!("chunk {} came instead", parsed.number)));
        }
        let length = (chunk.len() as u32).to_le_bytes();
        self.file
            .write_all(&length)
            .and_then(|()| self.file.write_all(chunk))
            .map_err(Error::io("write", &self.path))?;
        self.next += 1;
        self.complete = parsed.last;
        Ok(())
    }

    /// The number of the chunk that comes next.
    pub fn next_chunk(&self) -> u32 {
        self.next
    }

    /// Whether the last chunk has arrived.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Makes the file durable; refused while chunks are missing.
    fn finish(mut self) -> Result<PathBuf> {
        if !self.complete {
            let what = "the snapshot is not complete".into();
            return Err(Error::BadChunk { number: self.next, what });
        }
        self.file.sync_all().map_err(Error::io("sync", &self.path))?;
        self.path.parent().map_or(Ok(()), sync_dir)?;
        self.kept = true;
        Ok(self.path.clone())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = fs::remove_file(&self.path)
        {
            // The next start deletes staging files that no installation names.
            tracing::warn!(file = %self.path.display(), %error, "cannot delete a staging file");
        }
    }
}

struct Chunk<'a> {
    number: u32,
    last: bool,
    piece: &'a [u8],
}

impl<'a> Chunk<'a> {
    fn parse(bytes: &'a [u8]) -> std::result::Result<Chunk<'a>, &'static str> {
        let (crc, content) = bytes.split_first_chunk().ok_or("it is too short")?;
        if bytes.len() > CHUNK_BYTES_MAX {
            return Err("it is too long");
        }
        if crc32c::crc32c(content) != u32::from_le_bytes(*crc) {
            return Err("its checksum does not match");
        }
        let (number, rest) = content.split_first_chunk().ok_or("it is too short")?;
        let (last, piece) = rest.split_first().ok_or("it is too short")?;
        Ok(Chunk { number: u32::from_le_bytes(*number), last: *last == 1, piece })
    }
}

fn stored(bytes: Bytes) -> Slice {
    Slice::from(bytes)
}
