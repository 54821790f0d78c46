//! Who a node is, in files of its data directory.
//!
//! ```text
//! format          the layout of everything here, a number; written before identity.json
//! identity.json   cluster, node, zone; written once
//! boot            the number of the newest start; raised before every start of the worker and for each block of ids
//! ticket          what a newcomer asks to be let in with, in every start until it is
//! founded         the first start of a founder went through: from now on its state must be there
//! topology.json   the nodes it last knew, to find the others after a restart
//! supervisor.pid, worker.pid, lock
//! local/          a socket for SQL clients of this machine: for the directory's owner, without a password
//! ```

use base::NodeId;
use cluster::{NodeRow, Topology};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The format number: the layout that this program reads and writes. A change of keys, log entries, votes or anything
/// else in the directory raises it: see FORMAT.md. A directory without the number is of layout 0.
const FORMAT: u32 = 2;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub cluster: u64,
    pub node: NodeId,
    pub zone: String,
    /// The nodes that found the cluster together, this one among them; none for one that joined.
    pub founders: Option<Vec<NodeId>>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{} does not read as it was written ({reason}): restore the file, or wipe the data directory to join anew", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("{} has format {found}, and this program reads format {FORMAT}: run the program that wrote it, or wipe the data directory to join anew", dir.display())]
    Format { dir: PathBuf, found: u32 },
    #[error("another process uses {}", .0.display())]
    InUse(PathBuf),
}

/// The door for SQL clients of this machine, as psql looks for it: `psql -h DIR/local`.
pub fn door(dir: &Path) -> PathBuf {
    dir.join("local").join(format!(".s.PGSQL.{DOOR_PORT}"))
}

pub const DOOR_PORT: u16 = 5432;

/// A node's data directory.
#[derive(Clone, Debug)]
pub struct Home {
    dir: PathBuf,
}

impl Home {
    pub fn open(dir: &Path) -> Result<Home, Error> {
        let home = Home { dir: dir.into() };
        // Keys, and the door that needs no password, are in there.
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(dir).map_err(home.io("create", ""))?;
        Ok(home)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn io(&self, what: &'static str, name: &str) -> impl FnOnce(io::Error) -> Error {
        let path = self.dir.join(name);
        move |source| Error::Io { what, path, source }
    }

    /// Keeps other processes out as long as the file is held.
    pub fn lock(&self) -> Result<File, Error> {
        let file = File::create(self.dir.join("lock")).map_err(self.io("create", "lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => Err(Error::InUse(self.dir.clone())),
            Err(fs::TryLockError::Error(error)) => Err(self.io("lock", "lock")(error)),
        }
    }

    /// Makes this the home of a founder of a new cluster, one of `founders`.
    pub fn found(&self, cluster: u64, own: &NodeRow, founders: &Topology) -> Result<(), Error> {
        let ids = founders.nodes.keys().copied().collect();
        self.set_topology(founders)?;
        let zone = own.zone.0.clone();
        self.set_identity(&Identity { cluster, node: own.id, zone, founders: Some(ids) })
    }

    /// None in a fresh directory.
    pub fn identity(&self) -> Result<Option<Identity>, Error> {
        let Some(identity) = self.read_json("identity.json")? else { return Ok(None) };
        let found = self.read_json("format")?.unwrap_or(0);
        if found != FORMAT {
            return Err(Error::Format { dir: self.dir.clone(), found });
        }
        Ok(Some(identity))
    }

    pub fn set_identity(&self, identity: &Identity) -> Result<(), Error> {
        self.write_json("format", &FORMAT)?;
        self.write_json("identity.json", identity)
    }

    pub fn topology(&self) -> Result<Topology, Error> {
        Ok(self.read_json("topology.json")?.unwrap_or_default())
    }

    pub fn set_topology(&self, topology: &Topology) -> Result<(), Error> {
        self.write_json("topology.json", topology)
    }

    pub fn boot(&self) -> Result<u64, Error> {
        Ok(self.read_json("boot")?.unwrap_or(0))
    }

    /// Before every start of the worker, and for each block of ids; durable when it returns.
    pub fn raise_boot(&self) -> Result<u64, Error> {
        let boot = self.boot()? + 1;
        self.write_json("boot", &boot)?;
        Ok(boot)
    }

    /// What a newcomer asks with: `fresh` the first time, and what it was then ever after. A start
    /// that died before its answer came may have been let in; the next one is the same newcomer.
    pub fn ticket(&self, fresh: u64) -> Result<u64, Error> {
        if let Some(ticket) = self.read_json("ticket")? {
            return Ok(ticket);
        }
        self.write_json("ticket", &fresh)?;
        Ok(fresh)
    }

    /// Where the door is, in a directory that is open to its owner alone.
    pub fn prepare_door(&self) -> Result<PathBuf, Error> {
        let dir = self.dir.join("local");
        let made = || {
            match fs::DirBuilder::new().mode(0o700).create(&dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))
        };
        made().map_err(self.io("create", "local"))?;
        Ok(door(&self.dir))
    }

    pub fn is_founded(&self) -> bool {
        self.dir.join("founded").exists()
    }

    pub fn set_founded(&self) -> Result<(), Error> {
        self.write_json("founded", &true)
    }

    pub fn write_pid(&self, name: &str) -> Result<(), Error> {
        self.write_json(name, &std::process::id())
    }

    pub fn pid(&self, name: &str) -> Result<Option<i32>, Error> {
        self.read_json(name)
    }

    fn read_json<T: for<'a> Deserialize<'a>>(&self, name: &str) -> Result<Option<T>, Error> {
        let path = self.dir.join(name);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| Error::Damaged { path, reason: error.to_string() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.io("read", name)(error)),
        }
    }

    /// The old content or the new, never half of it.
    fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), Error> {
        let text = serde_json::to_vec(value).map_err(|error| Error::Damaged {
            path: self.dir.join(name),
            reason: error.to_string(),
        })?;
        let draft = self.dir.join(format!("{name}.new"));
        let written = || {
            let mut file = File::create(&draft)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&draft, self.dir.join(name))?;
            File::open(&self.dir)?.sync_all()
        };
        written().map_err(self.io("write", name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_number_never_comes_twice_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        assert_eq!((home.raise_boot().unwrap(), home.raise_boot().unwrap()), (1, 2));
        fs::write(dir.path().join("identity.json"), "{").unwrap();
        let error = home.identity().unwrap_err().to_string();
        assert!(error.contains("identity.json does not read as it was written"), "{error}");
    }

    #[test]
    fn a_directory_of_another_layout_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        assert_eq!(home.identity().unwrap(), None);
        let zone = "z1".to_owned();
        let identity = Identity { cluster: 1, node: NodeId(1), zone, founders: None };
        home.set_identity(&identity).unwrap();
        assert_eq!(home.identity().unwrap(), Some(identity));
        fs::remove_file(dir.path().join("format")).unwrap();
        assert!(matches!(home.identity(), Err(Error::Format { found: 0, .. })));
        fs::write(dir.path().join("format"), "7").unwrap();
        let error = home.identity().unwrap_err().to_string();
        assert!(error.contains("has format 7, and this program reads format 2"), "{error}");
    }

    #[test]
    fn a_newcomer_asks_with_the_same_ticket_in_every_start() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Home::open(dir.path()).unwrap().ticket(7).unwrap(), 7);
        assert_eq!(Home::open(dir.path()).unwrap().ticket(8).unwrap(), 7);
    }

    #[test]
    fn two_processes_do_not_share_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        let held = home.lock().unwrap();
        assert!(matches!(home.lock(), Err(Error::InUse(_))));
        drop(held);
        home.lock().unwrap();
    }
}
