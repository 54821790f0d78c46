//! The files under the log: raft-engine's `FileSystem` over plain files, with one rule of ours.
//!
//! After the first failed write or sync nothing more reaches the disk. A kernel that could not
//! write a page may drop it and report success to the next fsync, so a second attempt would lie
//! (PostgreSQL's "fsyncgate"). raft-engine answers a failed sync with a panic. Here the failure is
//! kept in [`Failure`] instead: sync returns, and every later change is refused. The writer thread
//! looks at [`Failure::reason`] before it acknowledges anything.

use crate::faults::Faults;
use parking_lot::Mutex;
use raft_engine::env::{FileSystem, Handle, Permission, WriteExt};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{File, OpenOptions};
use std::io::{Error, Read, Result, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The first failure of a log file, if there was one.
#[derive(Clone, Default)]
pub(crate) struct Failure(Arc<Mutex<Option<String>>>);

impl Failure {
    pub fn reason(&self) -> Option<String> {
        self.0.lock().clone()
    }

    fn record(&self, what: &str, path: &Path, error: &Error) {
        let mut first = self.0.lock();
        if first.is_none() {
            *first = Some(format!("cannot {what} the log file {}: {error}", path.display()));
        }
    }

    fn refuse_if_failed(&self) -> Result<()> {
        match &*self.0.lock() {
            Some(reason) => Err(Error::other(reason.clone())),
            None => Ok(()),
        }
    }
}

pub(crate) struct Disk {
    pub faults: Option<Arc<dyn Faults>>,
    pub failure: Failure,
}

impl Disk {
    fn wrap(&self, file: File, path: &Path) -> LogFile {
        LogFile {
            file,
            path: path.to_path_buf(),
            faults: self.faults.clone(),
            failure: self.failure.clone(),
        }
    }
}

/// One open log file.
pub(crate) struct LogFile {
    file: File,
    path: PathBuf,
    faults: Option<Arc<dyn Faults>>,
    failure: Failure,
}

impl LogFile {
    /// Runs one change of the file. After a failure no file is changed any more.
    fn change<T>(&self, what: &str, change: impl FnOnce() -> Result<T>) -> Result<T> {
        self.failure.refuse_if_failed()?;
        change().inspect_err(|error| self.failure.record(what, &self.path, error))
    }

    fn set_len(&self, bytes: usize) -> Result<()> {
        self.change("cut", || self.file.set_len(bytes as u64))
    }
}

impl FileSystem for Disk {
    type Handle = LogFile;
    type Reader = Cursor;
    type Writer = Cursor;

    fn create<P: AsRef<Path>>(&self, path: P) -> Result<LogFile> {
        self.failure.refuse_if_failed()?;
        let path = path.as_ref();
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = open.inspect_err(|error| self.failure.record("create", path, error))?;
        Ok(self.wrap(file, path))
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> Result<LogFile> {
        let path = path.as_ref();
        let write = permission == Permission::ReadWrite;
        Ok(self.wrap(OpenOptions::new().read(true).write(write).open(path)?, path))
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> Result<()> {
        self.failure.refuse_if_failed()?;
        std::fs::remove_file(path)
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> Result<()> {
        self.failure.refuse_if_failed()?;
        std::fs::rename(from, to)
    }

    fn new_reader(&self, file: Arc<LogFile>) -> Result<Cursor> {
        Ok(Cursor { file, offset: 0 })
    }

    fn new_writer(&self, file: Arc<LogFile>) -> Result<Cursor> {
        Ok(Cursor { file, offset: 0 })
    }
}

impl Handle for LogFile {
    fn truncate(&self, offset: usize) -> Result<()> {
        self.set_len(offset)
    }

    fn file_size(&self) -> Result<usize> {
        Ok(self.file.metadata()?.len() as usize)
    }

    fn sync(&self) -> Result<()> {
        if self.failure.reason().is_none() {
            let asked = self.faults.as_ref().map_or(Ok(()), |faults| faults.sync(&self.path));
            if let Err(error) = asked.and_then(|()| self.file.sync_data()) {
                self.failure.record("sync", &self.path, &error);
            }
        }
        // An error here would be a panic in raft-engine; see the header.
        Ok(())
    }
}

/// A position in a log file.
pub(crate) struct Cursor {
    file: Arc<LogFile>,
    offset: u64,
}

impl Read for Cursor {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        if let Some(faults) = &self.file.faults {
            faults.read(&self.file.path)?;
        }
        let n_bytes = self.file.file.read_at(buffer, self.offset)?;
        self.offset += n_bytes as u64;
        Ok(n_bytes)
    }
}

impl Write for Cursor {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let file = &self.file;
        let n_bytes = file.change("write", || {
            if let Some(faults) = &file.faults {
                faults.write(&file.path, bytes.len())?;
            }
            file.file.write_at(bytes, self.offset)
        })?;
        self.offset += n_bytes as u64;
        Ok(n_bytes)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

impl Seek for Cursor {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        let offset = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(by) => self.offset.checked_add_signed(by),
            SeekFrom::End(by) => self.file.file.metadata()?.len().checked_add_signed(by),
        };
        self.offset = offset.ok_or_else(|| Error::other("seek before the start of the file"))?;
        Ok(self.offset)
    }
}

impl WriteExt for Cursor {
    fn truncate(&mut self, offset: usize) -> Result<()> {
        self.file.set_len(offset)?;
        self.offset = offset as u64;
        Ok(())
    }

    /// Allocating ahead only saves the file system work: where it cannot be done the write
    /// itself allocates, and where space is short the write itself fails.
    fn allocate(&mut self, offset: usize, size: usize) -> Result<()> {
        self.file.failure.refuse_if_failed()?;
        match fallocate(&self.file.file, FallocateFlags::empty(), offset as u64, size as u64) {
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            result => Ok(result?),
        }
    }
}
