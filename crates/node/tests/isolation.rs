//! What concurrent transactions see of each other, at all three levels, over rows in different
//! tablets of a real three-zone cluster.
//!
//! A script is a list of steps, `session: statement`. Each statement is sent and given a moment;
//! one that does not answer in it waits for a lock, and its answer is shown where it comes. The
//! recorded outcomes stand beside the scripts; `ATOLL_RECORD=1` writes them anew, to be read
//! before they are kept.

mod support;

use std::collections::BTreeMap;
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

/// Runs the script at one level and writes down what happens.
async fn play(cluster: &Cluster, script: &str, level: &str) -> String {
    let control = cluster.connect(1).await;
    control
        .batch_execute(
            "DROP TABLE IF EXISTS test; CREATE TABLE test (id int PRIMARY KEY, value int NOT NULL);
             INSERT INTO test VALUES (1, 10), (2, 20);
             ALTER TABLE test SPLIT AT VALUES (2), (3);",
        )
        .await
        .unwrap();
    let mut sessions: BTreeMap<u16, Arc<Client>> = BTreeMap::new();
    let mut waiting: BTreeMap<u16, JoinHandle<String>> = BTreeMap::new();
    let mut out = format!("## {level}\n");
    for line in script.lines().filter(|line| !line.starts_with("--") && !line.is_empty()) {
        let (session, statement) = line.split_once(": ").unwrap();
        let session: u16 = session.parse().unwrap();
        if !sessions.contains_key(&session) {
            // Sessions on different nodes: every node answers every statement.
            sessions.insert(session, Arc::new(cluster.connect(1 + session % 3).await));
        }
        // A session that still waits cannot be asked again: its script goes on when it does.
        if let Some(pending) = waiting.remove(&session) {
            let answer = pending.await.unwrap();
            writeln!(out, "{session} goes on -> {answer}").unwrap();
        }
        let text = match statement {
            "begin" => format!("BEGIN ISOLATION LEVEL {level}"),
            other => other.to_owned(),
        };
        let mut asked = tokio::spawn(send(sessions[&session].clone(), text));
        match tokio::time::timeout(MOMENT, &mut asked).await {
            Ok(answer) => writeln!(out, "{line} -> {}", answer.unwrap()).unwrap(),
            Err(_) => {
                writeln!(out, "{line} -> waits").unwrap();
                waiting.insert(session, asked);
            }
        }
        // Who was freed by this step shows it now.
        for other in waiting.keys().copied().collect::<Vec<_>>() {
            let Some(mut pending) = waiting.remove(&other) else { continue };
            match tokio::time::timeout(MOMENT, &mut pending).await {
                Ok(answer) => writeln!(out, "{other} goes on -> {}", answer.unwrap()).unwrap(),
                Err(_) => drop(waiting.insert(other, pending)),
            }
        }
    }
    for (session, pending) in waiting {
        writeln!(out, "{session} goes on -> {}", pending.await.unwrap()).unwrap();
    }
    for client in sessions.values() {
        client.simple_query("ROLLBACK").await.ok();
    }
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_end_as_recorded() {
    let cluster = Cluster::start(3).await;
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/isolation");
    let mut names: Vec<_> =
        std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
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
