//! A value that is read from files, and read anew when they change.
//!
//! Whoever asks for the value looks at the files' stamps first: time of change, length, inode. Where they
//! are others than at the last reading, the files are read again. Where they cannot be read, or say what
//! cannot be, the old value stays and the log says so once for each change. *Example:* a certificate is
//! renewed in place. The tool writes the key first: the next handshake finds a key that does not fit,
//! says so, and goes on with the old pair. Then the tool writes the certificate, and the handshake
//! after that has the new pair.
//!
//! Absent: watching. Nothing happens between two questions.

use parking_lot::Mutex;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

type Stamp = Option<(i64, i64, u64, u64)>;

pub struct Files<T> {
    paths: Vec<PathBuf>,
    read: Box<dyn Fn() -> Result<T, String> + Send + Sync>,
    state: Mutex<State<T>>,
}

struct State<T> {
    value: Arc<T>,
    /// Of the last reading, also if it failed.
    stamps: Vec<Stamp>,
}

impl<T> Files<T> {
    /// Reads them for the first time, when they must be right.
    pub fn open(
        paths: Vec<PathBuf>,
        read: impl Fn() -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Files<T>, String> {
        // Before they are read: a change in between is found by the next question.
        let stamps = stamps(&paths);
        let value = Arc::new(read()?);
        let state = Mutex::new(State { value, stamps });
        Ok(Files { paths, read: Box::new(read), state })
    }

    /// The value as the files have it now, or as they had it when they were last right.
    pub fn get(&self) -> Arc<T> {
        let mut state = self.state.lock();
        let now = stamps(&self.paths);
        if now != state.stamps {
            state.stamps = now;
            match (self.read)() {
                Ok(value) => {
                    tracing::info!(files = ?self.paths, "changed files were taken up");
                    state.value = Arc::new(value);
                }
                Err(reason) => {
                    tracing::warn!(
                        reason,
                        "changed files are not taken up; the old ones stay in force"
                    );
                }
            }
        }
        state.value.clone()
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.mtime(), found.mtime_nsec(), found.len(), found.ino()))
    };
    paths.iter().map(stamp).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_taken_up_and_a_broken_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n");
        let put = |text: &str| {
            let draft = dir.path().join("draft");
            std::fs::write(&draft, text).unwrap();
            std::fs::rename(&draft, &path).unwrap();
        };
        put("1");
        let from = path.clone();
        let read = move || -> Result<u32, String> {
            let text = std::fs::read_to_string(&from).map_err(|error| error.to_string())?;
            text.parse().map_err(|_| format!("{text:?} is no number"))
        };
        let files = Files::open(vec![path.clone()], read).unwrap();
        assert_eq!(*files.get(), 1);
        put("22");
        assert_eq!(*files.get(), 22);
        put("broken");
        assert_eq!((*files.get(), *files.get()), (22, 22));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(*files.get(), 22);
        put("333");
        assert_eq!(*files.get(), 333);
    }
}
