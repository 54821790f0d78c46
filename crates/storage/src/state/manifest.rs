//! The manifest: which rollback segments exist, the horizon, and an installation under way.
//!
//! One small file, replaced as a whole (new file, sync, rename, sync of the directory), so that its
//! content changes at one instant. It keeps the ages of segments and not their times: a clock that
//! jumped while the node was down makes no segment older or younger.

use super::TabletRanges;
use crate::log::sync_dir;
use crate::{Error, Result};
use base::{Scn, TabletId};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

const FILE: &str = "manifest";

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The number of the next segment.
    pub next_segment: u64,
    /// Reads before this SCN are refused.
    pub horizon: Scn,
    /// Oldest first; the last one is open.
    pub segments: Vec<Listed>,
    pub installing: Option<Installing>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Listed {
    pub id: u64,
    pub age_ms: u64,
}

/// A received snapshot that is being put into the trees. A start that finds one here does the
/// installation again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Installing {
    pub file: String,
    pub tablet: TabletId,
    pub ranges: TabletRanges,
}

impl Manifest {
    /// None if this directory never had one.
    pub fn load(dir: &Path, data_dir: &Path) -> Result<Option<Manifest>> {
        let path = dir.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Io { what: "read", path, source }),
        };
        let manifest = bytes
            .split_last_chunk()
            .filter(|(content, crc)| crc32c::crc32c(content) == u32::from_le_bytes(**crc))
            .and_then(|(content, _)| postcard::from_bytes(content).ok());
        let damaged = || Error::Damaged {
            file: path.clone(),
            dir: data_dir.to_path_buf(),
            what: "its checksum does not match".into(),
        };
        manifest.map(Some).ok_or_else(damaged)
    }

    pub fn save(&self, dir: &Path) -> Result<()> {
        let (path, new) = (dir.join(FILE), dir.join("manifest.new"));
        let encoded = postcard::to_stdvec(self).map_err(std::io::Error::other);
        let written = encoded.and_then(|mut bytes| {
            let crc = crc32c::crc32c(&bytes);
            bytes.extend_from_slice(&crc.to_le_bytes());
            let mut file = File::create(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)
        });
        written.map_err(Error::io("write", &path))?;
        sync_dir(dir)
    }
}
