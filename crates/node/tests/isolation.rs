//! What concurrent transactions see of each other, at all three levels, over rows in different
//! tablets of a real three-zone cluster.
//!
//! A script is a list of steps, `session: statement`. Each statement is sent and given a moment;
//! one that does not answer in it waits for a lock, and its answer is shown where it comes. The
//! recorded outcomes stand beside the scripts; `ATOLL_RECORD=1` writes them anew, to be read
//! before they are kept.
// The test stands outside of what is simulated.
#![allow(clippy::disallowed_methods)]

mod support;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use support::{Cluster, state};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, SimpleQueryMessage};

const LEVELS: [&str; 3] = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"];
/// A statement that has not answered by then waits for somebody.
const MOMENT: Duration = Duration::from_millis(500);

async fn send(client: Arc<Client>, statement: String) -> String {
    match client.simple_query(&statement).await {
        Ok(messages) => {
            let mut rows = Vec::new();
            let mut n_changed = 0;
            for message in messages {
                match message {
                    SimpleQueryMessage::Row(row) => {
                        let cells: Vec<&str> =
                            (0..row.len()).map(|n| row.get(n).unwrap_or("NULL")).collect();
                        rows.push(cells.join("|"));
                    }
                    SimpleQueryMessage::CommandComplete(n) => n_changed = n,
                    _ => {}
                }
            }
            match (rows.is_empty(), n_changed) {
                (true, n) => format!("ok {n}"),
                (false, _) => rows.join(", "),
            }
        }
        Err(error) => format!("ERROR {}", state(&error)),
    }
}

/// One run of a script at one level.
struct Play<'a> {
    cluster: &'a Cluster,
    level: &'a str,
    sessions: BTreeMap<u16, Arc<Client>>,
    waiting: BTreeMap<u16, JoinHandle<String>>,
    /// What sessions that wait are to do next.
    backlog: BTreeMap<u16, VecDeque<String>>,
    out: String,
}

impl Play<'_> {
    async fn send(&mut self, session: u16, line: &str) {
        if !self.sessions.contains_key(&session) {
            // Sessions on different nodes: every node answers every statement.
            let client = self.cluster.connect(1 + session % 3).await;
            self.sessions.insert(session, Arc::new(client));
        }
        let text = match line.split_once(": ").unwrap().1 {
            "begin" => format!("BEGIN ISOLATION LEVEL {}", self.level),
            other => other.to_owned(),
        };
        let mut asked = tokio::spawn(send(self.sessions[&session].clone(), text));
        match tokio::time::timeout(MOMENT, &mut asked).await {
            Ok(answer) => writeln!(self.out, "{line} -> {}", answer.unwrap()).unwrap(),
            Err(_) => {
                writeln!(self.out, "{line} -> waits").unwrap();
                self.waiting.insert(session, asked);
            }
        }
    }

    /// Who was freed by the last step shows it, and goes on with what it had to put off.
    async fn settle(&mut self) {
        let mut looking: VecDeque<u16> = self.waiting.keys().copied().collect();
        while let Some(session) = looking.pop_front() {
            let Some(mut pending) = self.waiting.remove(&session) else { continue };
            let Ok(answer) = tokio::time::timeout(MOMENT, &mut pending).await else {
                self.waiting.insert(session, pending);
                continue;
            };
            writeln!(self.out, "{session} goes on -> {}", answer.unwrap()).unwrap();
            while !self.waiting.contains_key(&session)
                && let Some(line) = self.backlog.entry(session).or_default().pop_front()
            {
                self.send(session, &line).await;
                // Its steps may have freed others.
                looking.extend(self.waiting.keys().copied());
            }
        }
    }
}

/// Runs the script at one level and writes down what happens.
async fn play(cluster: &Cluster, script: &str, level: &str) -> String {
    let control = cluster.connect(1).await;
    control
        .batch_execute(
            "DROP TABLE IF EXISTS test; CREATE TABLE test (id int PRIMARY KEY, value int NOT NULL);
             INSERT INTO test VALUES (1, 10), (2, 20);",
        )
        .await
        .unwrap();
    control.batch_execute("ALTER TABLE test SPLIT AT VALUES (2), (3)").await.unwrap();
    let mut play = Play {
        cluster,
        level,
        sessions: BTreeMap::new(),
        waiting: BTreeMap::new(),
        backlog: BTreeMap::new(),
        out: format!("## {level}\n"),
    };
    for line in script.lines().filter(|line| !line.starts_with("--") && !line.is_empty()) {
        let session: u16 = line.split_once(": ").unwrap().0.parse().unwrap();
        match play.waiting.contains_key(&session) {
            true => play.backlog.entry(session).or_default().push_back(line.to_owned()),
            false => play.send(session, line).await,
        }
        play.settle().await;
    }
    for _ in 0..10 {
        play.settle().await;
    }
    assert!(play.waiting.is_empty(), "somebody waits for ever:\n{}", play.out);
    for client in play.sessions.values() {
        client.simple_query("ROLLBACK").await.ok();
    }
    play.out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_end_as_recorded() {
    let cluster = Cluster::start(3).await;
    let dir = Path::new("tests/isolation");
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.extension().is_some_and(|extension| extension == "sql"));
    names.sort();
    let only = std::env::var("ATOLL_SCRIPT").ok();
    let mut wrong = Vec::new();
    for path in names {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        let script = std::fs::read_to_string(&path).unwrap();
        let mut outcome = String::new();
        for level in LEVELS {
            outcome.push_str(&play(&cluster, &script, level).await);
        }
        let recorded = path.with_extension("out");
        if std::env::var_os("ATOLL_RECORD").is_some() {
            std::fs::write(&recorded, outcome).unwrap();
        } else if std::fs::read_to_string(&recorded).unwrap_or_default() != outcome {
            wrong.push(format!("--- {name}, now:\n{outcome}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
