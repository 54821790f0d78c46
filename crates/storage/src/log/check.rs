//! What the log files must look like before recovery reads them.
//!
//! A crash may tear the record that was being written, and nothing else: the writer appends one
//! record, syncs, and only then appends the next. So unreadable bytes at the end of the newest file
//! *with no readable record after them* are a tear, and are cut. All other unreadable bytes are damage
//! to entries that may have been acknowledged, and the node must not start with them:
//!
//! ```text
//!   [ok][ok][ok][to|                torn: cut after the third record
//!   [ok][ok][ok]000000000000        space allocated ahead: cut
//!   [ok][ok][?!][ok]                damaged: refuse
//!   0001.raftlog, 0003.raftlog      a file is missing: refuse
//! ```
//!
//! raft-engine's own modes either refuse a torn tail or cut the newest file at its first bad
//! record, whatever follows it. It therefore runs in its strictest mode, after this check. It
//! verifies the index part of every record of every file; the entries themselves of older files
//! are verified as they are read.
//!
//! The format (raft-engine 0.4, version 2): a file header of 69 bytes; then records of
//! `len << 8 | compression: u64, footer offset: u64, entries, crc32: u32, footer, crc32: u32`, big
//! endian in the head and little endian in the checksums, the last of which is mixed with the
//! low half of the file's number.

use crate::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

const MAGIC: &[u8] = b"RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5";
/// The magic, the version and the alignment.
const FILE_HEAD_BYTES: usize = MAGIC.len() + 8 + 8;
const RECORD_HEAD_BYTES: usize = 16;
const CRC_BYTES: usize = 4;

/// Cuts a torn tail from the log in `dir`, and refuses a damaged log. `data_dir` is the directory that
/// an operator is told to delete. The version in a file's head is not compared.
pub(crate) fn check(dir: &Path, data_dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    for suffix in [".raftlog", ".rewrite"] {
        let files = list(dir, suffix)?;
        for pair in files.windows(2) {
            if pair[1].0 != pair[0].0 + 1 {
                return Err(Error::Damaged {
                    file: pair[0].1.clone(),
                    dir: data_dir.to_path_buf(),
                    what: format!("the log file after it is missing, number {}", pair[0].0 + 1),
                });
            }
        }
        if let Some((number, path)) = files.last() {
            check_newest(*number, path, data_dir)?;
        }
    }
    Ok(())
}

/// The files of one queue by number.
fn list(dir: &Path, suffix: &str) -> Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let path = entry.map_err(Error::io("list", dir))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_suffix(suffix)).and_then(|n| n.parse().ok());
        if let Some(number) = number {
            files.push((number, path));
        }
    }
    files.sort();
    Ok(files)
}

fn check_newest(number: u64, path: &Path, data_dir: &Path) -> Result<()> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    let headed = bytes.len() >= FILE_HEAD_BYTES && bytes.starts_with(MAGIC);
    let mut end = if headed { FILE_HEAD_BYTES } else { 0 };
    if headed {
        while let Some(len) = record_at(&bytes[end..], number) {
            end += len;
        }
    }
    // An empty file has no head: the crash came while it was being made.
    if headed && end == bytes.len() {
        return Ok(());
    }
    let survivor = (end + 1..bytes.len()).find(|&at| record_at(&bytes[at..], number).is_some());
    if let Some(survivor) = survivor {
        return Err(Error::Damaged {
            file: path.to_path_buf(),
            dir: data_dir.to_path_buf(),
            what: format!("no record can be read at byte {end}, but one can at byte {survivor}"),
        });
    }
    if headed {
        let file =
            fs::OpenOptions::new().write(true).open(path).map_err(Error::io("open", path))?;
        file.set_len(end as u64).map_err(Error::io("cut", path))?;
        file.sync_all().map_err(Error::io("sync", path))?;
    } else {
        // The crash came while the file was being made: nothing was ever in it.
        fs::remove_file(path).map_err(Error::io("delete", path))?;
    }
    let cut_bytes = bytes.len() - end;
    tracing::info!(file = %path.display(), cut_bytes, "cut the unwritten tail of the log");
    Ok(())
}

/// The length of the record that `bytes` begins with, if it is whole.
fn record_at(bytes: &[u8], file_number: u64) -> Option<usize> {
    let word = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let (head, footer_at) = (word(0)?, word(8)?);
    let len = usize::try_from(head >> 8).ok()?;
    let footer_at = usize::try_from(footer_at).ok()?;
    let compression = head & 0xff;
    let plausible = compression <= 1
        && len <= bytes.len()
        && footer_at >= RECORD_HEAD_BYTES
        && footer_at + CRC_BYTES < len;
    let footer = plausible.then(|| &bytes[footer_at..len])?;
    let entries = &bytes[RECORD_HEAD_BYTES..footer_at];
    let whole = checks(footer, file_number as u32) && (entries.is_empty() || checks(entries, 0));
    whole.then_some(len)
}

/// Whether `bytes` end in the checksum of what precedes it, mixed with `signature`.
fn checks(bytes: &[u8], signature: u32) -> bool {
    let Some((content, stored)) = bytes.split_last_chunk::<CRC_BYTES>() else { return false };
    !content.is_empty() && crc32fast::hash(content) == u32::from_le_bytes(*stored) ^ signature
}
