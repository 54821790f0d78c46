//! The access log: one JSON object a line, written by a task of its own. Who is served does not
//! wait for a disk: when the writer is behind, lines are dropped and counted.

use crate::config;
use crate::entry::Entry;
use base::env::Env;
use http::HeaderName;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::sync::mpsc;

/// Lines that may wait for the writer.
const N_WAITING_MAX: usize = 8192;

/// What the writer is told.
enum Word {
    Line(Box<Entry>),
    /// Somebody has moved the file away.
    OpenAnew,
}

#[derive(Clone)]
pub struct AccessLog {
    sender: mpsc::Sender<Word>,
    n_dropped: Arc<AtomicU64>,
    headers: Arc<[HeaderName]>,
}

impl AccessLog {
    /// Opens the file, and starts the writer.
    pub fn start(env: &Env, to: &config::AccessLog) -> io::Result<AccessLog> {
        let path = match &to.to {
            config::LogFile::Stdout => None,
            config::LogFile::File(path) => Some(path.clone()),
        };
        let file = open(&path)?;
        let (sender, lines) = mpsc::channel(N_WAITING_MAX);
        env.spawn("access log", write(file, path, to.fields.clone(), lines));
        let headers = to.headers.clone().into();
        Ok(AccessLog { sender, n_dropped: Arc::default(), headers })
    }

    pub fn write(&self, entry: Entry) {
        if self.sender.try_send(Word::Line(Box::new(entry))).is_err() {
            self.n_dropped.fetch_add(1, Relaxed);
        }
    }

    /// The request's headers that are told.
    pub fn headers(&self) -> &[HeaderName] {
        &self.headers
    }

    /// Opens the file anew behind the lines that wait.
    pub fn open_anew(&self) {
        if self.sender.try_send(Word::OpenAnew).is_err() {
            tracing::error!("the access log's writer is too far behind to open the file anew");
        }
    }

    pub fn n_dropped(&self) -> u64 {
        self.n_dropped.load(Relaxed)
    }
}

type Sink = Box<dyn Write + Send>;

fn open(path: &Option<PathBuf>) -> io::Result<Sink> {
    match path {
        None => Ok(Box::new(io::stdout())),
        Some(path) => {
            Ok(Box::new(std::fs::OpenOptions::new().create(true).append(true).open(path)?))
        }
    }
}

async fn write(
    mut sink: Sink,
    path: Option<PathBuf>,
    fields: Vec<String>,
    mut lines: mpsc::Receiver<Word>,
) {
    let mut batch = Vec::new();
    let mut text = Vec::new();
    let mut is_failing = false;
    while lines.recv_many(&mut batch, 1024).await > 0 {
        text.clear();
        for word in batch.drain(..) {
            let entry = match word {
                Word::Line(entry) => entry,
                Word::OpenAnew => {
                    // What came before belongs into the old one.
                    is_failing = write_all(&mut sink, &mut text, is_failing);
                    match open(&path) {
                        Ok(fresh) => sink = fresh,
                        Err(error) => tracing::error!(%error, "the access log cannot be opened"),
                    }
                    continue;
                }
            };
            // A map of plain values always serialises.
            let is_written = match fields.is_empty() {
                true => serde_json::to_writer(&mut text, &entry).is_ok(),
                false => chosen(&entry, &fields)
                    .is_some_and(|line| serde_json::to_writer(&mut text, &line).is_ok()),
            };
            if is_written {
                text.push(b'\n');
            }
        }
        // Where a tool has moved the file away, the next lines go into a new one.
        if path.as_ref().is_some_and(|path| !path.exists())
            && let Ok(fresh) = open(&path)
        {
            sink = fresh;
        }
        is_failing = write_all(&mut sink, &mut text, is_failing);
    }
}

/// Of a line the fields that are wanted.
fn chosen(entry: &Entry, fields: &[String]) -> Option<serde_json::Map<String, serde_json::Value>> {
    let serde_json::Value::Object(mut whole) = serde_json::to_value(entry).ok()? else {
        return None;
    };
    whole.retain(|name, _| fields.iter().any(|field| field == name));
    Some(whole)
}

/// Writes what there is; whether that failed, which is said once.
fn write_all(sink: &mut Sink, text: &mut Vec<u8>, is_failing: bool) -> bool {
    let written = sink.write_all(text).and_then(|()| sink.flush());
    text.clear();
    match written {
        Ok(()) => false,
        Err(error) => {
            if !is_failing {
                tracing::error!(%error, "the access log cannot be written; its lines are lost");
            }
            true
        }
    }
}
