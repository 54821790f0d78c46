//! What a power cut leaves of a host's files.
//!
//! The files are real ones, in memory. Beside them stands what is certain to survive: for each
//! file the bytes that unsynced writes have replaced since, and its synced length; for each
//! directory a second one with hard links to what it held when it was last synced.
//!
//! ```text
//!   files/state/current/v7     ◄─ written, synced; its directory was not: it may be gone
//!   synced/state/current/v6    ◄─ unlinked, its directory was not synced: it may be back
//!   undo of inode 41           ◄─ bytes 4096..8192 as they were at the last sync
//! ```
//!
//! At a power cut each unsynced write is kept, lost or torn at a sector, and the unsynced changes
//! of each directory stay or go together (a journal makes renames atomic). A new file whose
//! contents were synced is there: journals order it so, and the stores rely on it.
//!
//! Sources: Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014); Rebello et al.,
//! "Can Applications Recover from fsync Failures?" (ATC 2020).

use super::threads::{self, Host};
use super::{clock, raw};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

type Errno = i32;

/// What a sync takes on a disk that is well.
const USUAL_SYNC_NS: (u64, u64) = (100_000, 2_000_000);
const SECTOR_BYTES: u64 = 512;

/// One host's disk.
#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
    /// The same, from the working directory: what is said of a file is the same in every run.
    name: PathBuf,
    files: BTreeMap<u64, File>,
    pub faults: Faults,
    pub counts: Counts,
}

/// How the disk misbehaves.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// A sync takes between these, in nanoseconds.
    pub sync_ns: (u64, u64),
    /// Writes and creations are answered by "no space left".
    pub is_full: bool,
    /// So many syncs from now on are answered by an I/O error. What they were to save is not.
    pub n_failing_syncs: u64,
    /// The power fails in the sync of the state that follows after so many others.
    pub power_fails_after: Option<u64>,
    /// The disk becomes full in this room's write, creation or sync that follows after so many others.
    pub fills_after: Option<(Room, u64)>,
}

/// What is written where: the trees' files, or the log's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    State,
    Log,
}

impl Room {
    fn dir(self) -> &'static str {
        match self {
            Room::State => "state",
            Room::Log => "log",
        }
    }
}

impl Faults {
    pub const NONE: Faults = Faults {
        sync_ns: USUAL_SYNC_NS,
        is_full: false,
        n_failing_syncs: 0,
        power_fails_after: None,
        fills_after: None,
    };
}

impl Faults {
    /// Counts one sync of the state; whether the power fails in it.
    fn power_fails(&mut self) -> bool {
        let left = self.power_fails_after;
        self.power_fails_after = left.and_then(|n| n.checked_sub(1));
        left == Some(0)
    }

    /// Counts one use of a room; whether the disk is full now.
    fn fills(&mut self) -> bool {
        match &mut self.fills_after {
            Some((_, 0)) => (self.fills_after, self.is_full) = (None, true),
            Some((_, left)) => *left -= 1,
            None => {}
        }
        self.is_full
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub n_syncs: u64,
    pub n_failed_syncs: u64,
    pub n_refused_writes: u64,
    pub n_lost_writes: u64,
    pub n_torn_writes: u64,
}

/// What is not synced of a file.
#[derive(Debug, Default)]
struct File {
    synced_len: u64,
    changes: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    /// `old` is what stood there, as far as it was below the synced length.
    Write { offset: u64, len: u64, old: Vec<u8> },
    /// The file was cut at `at`; `old` is what stood from there to the synced length.
    Cut { at: u64, old: Vec<u8> },
}

impl Disk {
    /// A disk in the directory `name` of the working directory, which is made.
    pub fn create(name: impl Into<PathBuf>) -> io::Result<Disk> {
        let name = name.into();
        for part in ["files", "synced"] {
            fs::create_dir_all(name.join(part))?;
        }
        let root = fs::canonicalize(&name)?;
        let counts = Counts::default();
        Ok(Disk { root, name, files: BTreeMap::new(), faults: Faults::NONE, counts })
    }
}

/// Where a host's files are.
pub fn files(host: Host) -> PathBuf {
    threads::with_host(host, |state| state.disk.name.join("files"))
}

pub fn set_faults(host: Host, change: impl FnOnce(&mut Faults)) {
    threads::with_host(host, |state| change(&mut state.disk.faults));
}

/// Whether the disk is still to become full.
pub fn awaits_filling(host: Host) -> bool {
    threads::with_host(host, |state| state.disk.faults.fills_after.is_some())
}

/// Something of the host is about to take room on its disk: in a file, or under a name. Tells how the
/// disk refuses, if it does.
fn take_room(host: Host, path: impl FnOnce() -> Option<PathBuf>) -> Result<(), Errno> {
    let watched = threads::with_host(host, |state| {
        let room = state.disk.faults.fills_after.map(|(room, _)| room);
        room.map(|room| {
            [&state.disk.root, &state.disk.name].map(|at| at.join("files").join(room.dir()))
        })
    });
    let counts = watched.is_some_and(|dirs| {
        path().is_some_and(|path| dirs.iter().any(|dir| path.starts_with(dir)))
    });
    threads::with_host(host, |state| {
        let Disk { faults, counts: n, .. } = &mut state.disk;
        if if counts { faults.fills() } else { faults.is_full } {
            n.n_refused_writes += 1;
            return Err(libc::ENOSPC);
        }
        Ok(())
    })
}

fn path_of(fd: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{fd}")).ok()
}

/// Whether a power failure is still to come.
pub fn awaits_power_failure(host: Host) -> bool {
    threads::with_host(host, |state| state.disk.faults.power_fails_after.is_some())
}

pub fn counts(host: Host) -> Counts {
    threads::with_host(host, |state| state.disk.counts)
}

struct Status {
    inode: u64,
    len: u64,
    is_file: bool,
    is_dir: bool,
}

fn status(fd: i32) -> Option<Status> {
    // What a program says to its people is on no simulated disk.
    if fd <= libc::STDERR_FILENO {
        return None;
    }
    let mut stat = MaybeUninit::<libc::stat64>::zeroed();
    // SAFETY: a place for the answer.
    if unsafe { libc::fstat64(fd, stat.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: filled above.
    let stat = unsafe { stat.assume_init() };
    let kind = stat.st_mode & libc::S_IFMT;
    Some(Status {
        inode: stat.st_ino,
        len: stat.st_size as u64,
        is_file: kind == libc::S_IFREG,
        is_dir: kind == libc::S_IFDIR,
    })
}

/// The bytes of `fd` in `start..end`.
fn old_bytes(fd: i32, start: u64, end: u64) -> Vec<u8> {
    let mut old = vec![0; end.saturating_sub(start) as usize];
    let mut n_read = 0;
    while n_read < old.len() {
        let rest = &mut old[n_read..];
        let args = [fd as usize, rest.as_mut_ptr() as usize, rest.len()];
        let args = [args[0], args[1], args[2], start as usize + n_read, 0, 0];
        // SAFETY: reads into a buffer of this length.
        let n = unsafe { raw::call(libc::SYS_pread64, args) };
        if n <= 0 {
            break;
        }
        n_read += n as usize;
    }
    old.truncate(n_read);
    old
}

pub(super) fn before_write(fd: i32, offset: Option<u64>, len: usize) -> Result<(), Errno> {
    let Some(host) = threads::my_host() else { return Ok(()) };
    let Some(status) = status(fd).filter(|status| status.is_file) else { return Ok(()) };
    let offset = offset.unwrap_or_else(|| {
        let args = [fd as usize, 0, libc::SEEK_CUR as usize, 0, 0, 0];
        // SAFETY: asks for a position.
        unsafe { raw::call(libc::SYS_lseek, args) }.max(0) as u64
    });
    take_room(host, || path_of(fd))?;
    let synced_len = threads::with_host(host, |state| {
        state.disk.files.entry(status.inode).or_default().synced_len
    });
    let end = (offset + len as u64).min(synced_len);
    let old = if offset < end { old_bytes(fd, offset, end) } else { Vec::new() };
    threads::with_host(host, |state| {
        let file = state.disk.files.entry(status.inode).or_default();
        file.changes.push(Change::Write { offset, len: len as u64, old });
    });
    Ok(())
}

pub(super) fn before_cut(fd: i32, at: u64) -> Result<(), Errno> {
    let Some(host) = threads::my_host() else { return Ok(()) };
    let Some(status) = status(fd).filter(|status| status.is_file) else { return Ok(()) };
    let synced_len = threads::with_host(host, |state| {
        state.disk.files.entry(status.inode).or_default().synced_len
    });
    let old = if at < synced_len { old_bytes(fd, at, synced_len) } else { Vec::new() };
    threads::with_host(host, |state| {
        let file = state.disk.files.entry(status.inode).or_default();
        file.changes.push(Change::Cut { at, old });
    });
    Ok(())
}

pub(super) fn before_create(path: impl FnOnce() -> Option<PathBuf>) -> Result<(), Errno> {
    let Some(host) = threads::my_host() else { return Ok(()) };
    take_room(host, path)
}

/// Takes its time, and makes a file or a directory certain, unless it fails.
pub(super) fn sync(fd: i32) -> Result<(), Errno> {
    let Some(host) = threads::my_host() else { return Ok(()) };
    let (least, most) = threads::with_host(host, |state| state.disk.faults.sync_ns);
    let takes = least + threads::draw(most.saturating_sub(least) + 1);
    // Before the effect: a power cut in between finds nothing done.
    threads::sleep_until(clock::now_ns() + takes);
    let Some(status) = status(fd) else { return Err(libc::EBADF) };
    let path = path_of(fd);
    let root = threads::with_host(host, |state| state.disk.root.clone());
    let files = root.join("files");
    if path.as_ref().is_some_and(|path| path.starts_with(files.join("state")))
        && threads::with_host(host, |state| state.disk.faults.power_fails())
    {
        // Whoever runs the world finds a process that has ended, and does the rest.
        threads::exit();
    }
    // File systems that give room only as they write back say so late.
    if threads::with_host(host, |state| state.disk.faults.fills_after.is_some()) {
        take_room(host, || path.clone())?;
    }
    let fails = threads::with_host(host, |state| {
        let Disk { faults, counts, .. } = &mut state.disk;
        counts.n_syncs += 1;
        let fails = faults.n_failing_syncs > 0;
        faults.n_failing_syncs = faults.n_failing_syncs.saturating_sub(1);
        counts.n_failed_syncs += u64::from(fails);
        fails
    });
    threads::note(6, status.len);
    if fails {
        return Err(libc::EIO);
    }
    if status.is_file {
        threads::with_host(host, |state| {
            let file = state.disk.files.entry(status.inode).or_default();
            file.synced_len = status.len;
            file.changes.clear();
        });
    }
    let Some(path) = path else { return Ok(()) };
    let Ok(name) = path.strip_prefix(files) else { return Ok(()) };
    let twin = root.join("synced").join(name);
    let done = if status.is_dir {
        sync_dir(&path, &twin)
    } else {
        // A file's own name is certain with its contents.
        link(&path, &twin)
    };
    match done {
        // Unlinked meanwhile: there is no name to save.
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            threads::stop(&format!("cannot mirror {}: {error}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Makes `twin` name the same file as `path`.
fn link(path: &Path, twin: &Path) -> io::Result<()> {
    let inode = fs::metadata(path)?.ino();
    match fs::metadata(twin) {
        Ok(known) if known.ino() == inode => return Ok(()),
        Ok(_) => fs::remove_file(twin)?,
        Err(_) => {}
    }
    if let Some(parent) = twin.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::hard_link(path, twin)
}

fn names(dir: &Path) -> io::Result<BTreeMap<std::ffi::OsString, fs::FileType>> {
    let mut names = BTreeMap::new();
    match fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry?;
                names.insert(entry.file_name(), entry.file_type()?);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(names)
}

/// Brings the names in `twin` to what `dir` has. What is in subdirectories is their affair.
fn sync_dir(dir: &Path, twin: &Path) -> io::Result<()> {
    fs::create_dir_all(twin)?;
    let present = names(dir)?;
    for (name, kind) in names(twin)? {
        if !present.contains_key(&name) {
            let gone = twin.join(name);
            if kind.is_dir() { fs::remove_dir_all(gone)? } else { fs::remove_file(gone)? }
        }
    }
    for (name, kind) in present {
        if kind.is_dir() {
            fs::create_dir_all(twin.join(name))?;
        } else {
            link(&dir.join(&name), &twin.join(&name))?;
        }
    }
    Ok(())
}

/// How a power cut treats what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mercy {
    Nothing,
    Everything,
    Some,
}

/// The power goes: of what was not synced only what chance lets through is left. Every process of
/// the host must be dead.
pub fn cut_power(host: Host) -> io::Result<()> {
    let root = threads::with_host(host, |state| state.disk.root.clone());
    close_files(&root)?;
    let (actual, synced) = (root.join("files"), root.join("synced"));
    let mercy = match threads::draw(4) {
        0 => Mercy::Everything,
        1 => Mercy::Some,
        _ => Mercy::Nothing,
    };
    let mut by_inode = BTreeMap::new();
    for tree in [&actual, &synced] {
        paths(tree, &mut by_inode)?;
    }
    let mut files = threads::with_host(host, |state| std::mem::take(&mut state.disk.files));
    // By name: the system's numbers differ from run to run.
    let mut by_path: Vec<_> = by_inode.into_iter().map(|(inode, path)| (path, inode)).collect();
    by_path.sort();
    for (path, inode) in by_path {
        if let Some(file) = files.remove(&inode) {
            undo(host, &path, file, mercy)?;
        }
    }
    restore_dir(&actual, &synced, mercy)?;
    settle(host)
}

/// Takes all files as they are now for certain.
pub fn settle(host: Host) -> io::Result<()> {
    let root = threads::with_host(host, |state| state.disk.root.clone());
    let (actual, synced) = (root.join("files"), root.join("synced"));
    settle_dir(&actual, &synced)?;
    let mut by_inode = BTreeMap::new();
    paths(&actual, &mut by_inode)?;
    let mut files = BTreeMap::new();
    for (inode, path) in by_inode {
        let synced_len = fs::metadata(path)?.len();
        files.insert(inode, File { synced_len, changes: Vec::new() });
    }
    threads::with_host(host, |state| state.disk.files = files);
    Ok(())
}

fn settle_dir(dir: &Path, twin: &Path) -> io::Result<()> {
    sync_dir(dir, twin)?;
    for (name, kind) in names(dir)? {
        if kind.is_dir() {
            settle_dir(&dir.join(&name), &twin.join(&name))?;
        }
    }
    Ok(())
}

fn paths(dir: &Path, by_inode: &mut BTreeMap<u64, PathBuf>) -> io::Result<()> {
    for (name, kind) in names(dir)? {
        let path = dir.join(name);
        if kind.is_dir() {
            paths(&path, by_inode)?;
        } else {
            by_inode.insert(fs::metadata(&path)?.ino(), path);
        }
    }
    Ok(())
}

fn undo(host: Host, path: &Path, file: File, mercy: Mercy) -> io::Result<()> {
    let handle = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let mut keeps_length = mercy == Mercy::Everything;
    let mut end_kept = file.synced_len;
    for change in file.changes.into_iter().rev() {
        let fate = match mercy {
            Mercy::Nothing => 0,
            Mercy::Everything => 2,
            Mercy::Some => threads::draw(3),
        };
        match (change, fate) {
            (Change::Write { offset, len, old }, 0) => {
                threads::with_host(host, |state| state.disk.counts.n_lost_writes += 1);
                handle.write_all_at(&old, offset)?;
                // What lies beyond the synced length reads as zeros if the length survives.
                blank(&handle, offset + old.len() as u64, offset + len)?;
            }
            (Change::Write { offset, len, old }, 1) => {
                threads::with_host(host, |state| state.disk.counts.n_torn_writes += 1);
                let kept = threads::draw(len / SECTOR_BYTES + 1) * SECTOR_BYTES;
                let kept = (kept - offset % SECTOR_BYTES.min(kept.max(1))).min(len);
                let old_rest = old.get(kept as usize..).unwrap_or_default();
                handle.write_all_at(old_rest, offset + kept)?;
                blank(&handle, offset + kept.max(old.len() as u64), offset + len)?;
                end_kept = end_kept.max(offset + kept);
                keeps_length = true;
            }
            (Change::Write { offset, len, .. }, _) => {
                end_kept = end_kept.max(offset + len);
                keeps_length = true;
            }
            (Change::Cut { at, old }, 0 | 1) => handle.write_all_at(&old, at)?,
            (Change::Cut { .. }, _) => keeps_length = true,
        }
    }
    if !keeps_length {
        handle.set_len(file.synced_len)?;
    } else if mercy == Mercy::Some {
        handle.set_len(handle.metadata()?.len().min(end_kept.max(file.synced_len)))?;
    }
    Ok(())
}

fn blank(handle: &fs::File, start: u64, end: u64) -> io::Result<()> {
    let end = end.min(handle.metadata()?.len());
    if start < end {
        handle.write_all_at(&vec![0; (end - start) as usize], start)?;
    }
    Ok(())
}

/// Whether the unsynced changes of one directory go.
fn goes(mercy: Mercy) -> bool {
    match mercy {
        Mercy::Nothing => true,
        Mercy::Everything => false,
        Mercy::Some => threads::draw(2) == 0,
    }
}

fn restore_dir(dir: &Path, twin: &Path, mercy: Mercy) -> io::Result<()> {
    let (present, certain) = (names(dir)?, names(twin)?);
    if goes(mercy) {
        for (name, kind) in &present {
            let path = dir.join(name);
            let same = certain.contains_key(name)
                && (kind.is_dir()
                    || fs::metadata(&path)?.ino() == fs::metadata(twin.join(name))?.ino());
            if !same {
                if kind.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
            }
        }
        for (name, kind) in &certain {
            let path = dir.join(name);
            if kind.is_dir() {
                fs::create_dir_all(path)?;
            } else if !path.exists() {
                fs::hard_link(twin.join(name), path)?;
            }
        }
    }
    for (name, kind) in names(dir)? {
        if kind.is_dir() {
            restore_dir(&dir.join(&name), &twin.join(&name), mercy)?;
        }
    }
    Ok(())
}

/// Closes what dead processes of the host still hold open; their locks go with it.
fn close_files(root: &Path) -> io::Result<()> {
    let mut held = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        if let Ok(path) = fs::read_link(entry.path())
            && path.starts_with(root)
            && let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse().ok())
        {
            held.push(fd);
        }
    }
    for fd in held {
        let fd: i32 = fd;
        // SAFETY: those who used it are dead.
        unsafe { raw::call(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]) };
    }
    Ok(())
}

/// Closes what a killed process held open on the host. Its unsynced writes live on in the page
/// cache, which is the system's and not the process's.
pub fn after_kill(host: Host) -> io::Result<()> {
    let root = threads::with_host(host, |state| state.disk.root.clone());
    close_files(&root)
}

/// Everything on the disk is gone.
pub fn wipe(host: Host) -> io::Result<()> {
    let root = threads::with_host(host, |state| state.disk.root.clone());
    close_files(&root)?;
    for part in ["files", "synced"] {
        fs::remove_dir_all(root.join(part))?;
        fs::create_dir_all(root.join(part))?;
    }
    settle(host)
}
