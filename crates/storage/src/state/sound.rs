//! Checks the files that say what a tree consists of, before lsm-tree reads them.
//!
//! lsm-tree believes the lengths in these files. A flipped bit in one makes it ask for gigabytes, and
//! the process ends without a word of the file that is damaged. lsm-tree does write checksums:
//!
//! ```text
//!   current     the number n of the version, and the xxh3-128 of the file vn    25 bytes
//!   vn          the version: which tables the tree has
//!   tables/m    table m; at its end a list of its sections, with an xxh3-128 of its own
//! ```
//!
//! The blocks of a table are not looked at here: each has a checksum that every read compares.

use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{Cursor, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_128;

/// Version number (8), xxh3-128 of its file (16), kind of checksum (1).
const CURRENT_BYTES: usize = 25;
/// The kind of checksum that stands for xxh3-128.
const XXH3: u8 = 0;
/// The end of a table: [`TRAILER_BEGIN`] (6), xxh3-128 of the list of sections (16), its place (8), its
/// length (8).
const TRAILER_BYTES: usize = 38;
/// Magic bytes, version 1, [`XXH3`].
const TRAILER_BEGIN: &[u8] = b"SFA!\x01\x00";
/// What a version tells of a table: number (8), kind of checksum (1), checksum (16), sequence number (8).
const TABLE_BYTES: usize = 33;
/// A table has five sections; their list needs less than 200 bytes.
const SECTIONS_BYTES_MAX: u64 = 64 << 10;

/// An error that names the damaged file. A directory without a tree is sound.
pub(crate) fn check(tree_dir: &Path, data_dir: &Path) -> Result<()> {
    let damaged = |file: PathBuf, what: &str| Error::Damaged {
        file,
        dir: data_dir.to_path_buf(),
        what: what.into(),
    };
    let current = tree_dir.join("current");
    let pointer = match fs::read(&current) {
        Ok(pointer) => pointer,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::Io { what: "read", path: current, source }),
    };
    let (number, checksum) = version_of(&pointer)
        .ok_or_else(|| damaged(current.clone(), "it is not a pointer to a version"))?;

    let path = tree_dir.join(format!("v{number}"));
    let version = fs::read(&path).map_err(|source| match source.kind() {
        // Either this file was lost or the number was damaged.
        ErrorKind::NotFound => damaged(current.clone(), &format!("there is no file v{number}")),
        _ => Error::Io { what: "read", path: path.clone(), source },
    })?;
    if xxh3_128(&version) != checksum {
        return Err(damaged(path, "its checksum does not match"));
    }
    let tables = tables_of(&version).ok_or_else(|| damaged(path, "its content cannot be read"))?;
    for table in tables {
        let path = tree_dir.join("tables").join(table.to_string());
        match sections_match(&path) {
            Ok(true) => {}
            Ok(false) => return Err(damaged(path, "the checksum of its sections does not match")),
            Err(source) if source.kind() == ErrorKind::NotFound => {
                return Err(damaged(path, "the file is not there"));
            }
            Err(source) => return Err(Error::Io { what: "read", path, source }),
        }
    }
    Ok(())
}

fn version_of(pointer: &[u8]) -> Option<(u64, u128)> {
    let pointer: &[u8; CURRENT_BYTES] = pointer.try_into().ok()?;
    let (number, rest) = pointer.split_first_chunk()?;
    let (checksum, kind) = rest.split_first_chunk()?;
    (kind == [XXH3]).then(|| (u64::from_le_bytes(*number), u128::from_le_bytes(*checksum)))
}

/// The numbers of the tables that a version names. The version's checksum matches, so None means
/// another format.
fn tables_of(version: &[u8]) -> Option<Vec<u64>> {
    let archive = sfa::Reader::from_reader(&mut Cursor::new(version)).ok()?;
    let section = archive.toc().section(b"tables")?;
    let start = usize::try_from(section.pos()).ok()?;
    let mut left = version.get(start..start + usize::try_from(section.len()).ok()?)?;
    let mut tables = Vec::new();
    let n_levels = *left.split_off_first()?;
    for _ in 0..n_levels {
        let n_runs = *left.split_off_first()?;
        for _ in 0..n_runs {
            let (n_tables, rest) = left.split_first_chunk()?;
            left = rest;
            for _ in 0..u32::from_le_bytes(*n_tables) {
                let table = left.split_off(..TABLE_BYTES)?;
                tables.push(u64::from_le_bytes(*table.first_chunk()?));
            }
        }
    }
    Some(tables)
}

fn sections_match(path: &Path) -> std::io::Result<bool> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let Some(end) = bytes.checked_sub(TRAILER_BYTES as u64) else { return Ok(false) };
    let mut trailer = [0; TRAILER_BYTES];
    file.read_exact_at(&mut trailer, end)?;
    let Some((checksum, start, length)) = sections_of(&trailer) else { return Ok(false) };
    if length > SECTIONS_BYTES_MAX || start.checked_add(length) != Some(end) {
        return Ok(false);
    }
    let mut sections = vec![0; length as usize];
    file.read_exact_at(&mut sections, start)?;
    Ok(xxh3_128(&sections) == checksum)
}

/// The checksum of the list of sections, where the list begins, and its length.
fn sections_of(trailer: &[u8; TRAILER_BYTES]) -> Option<(u128, u64, u64)> {
    let rest = trailer.strip_prefix(TRAILER_BEGIN)?;
    let (checksum, rest) = rest.split_first_chunk()?;
    let (start, rest) = rest.split_first_chunk()?;
    let length = rest.first_chunk()?;
    let (start, length) = (u64::from_le_bytes(*start), u64::from_le_bytes(*length));
    Some((u128::from_le_bytes(*checksum), start, length))
}
