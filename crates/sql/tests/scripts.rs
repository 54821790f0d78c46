//! Stories in SQL: statements in, rows and tags out.
//!
//! Each file in `tests/scripts` runs against a fresh one-node cluster. A line `a> SELECT 1` runs a
//! statement in session `a`; the lines that follow, up to an empty one, are what it must answer.
//! `a& UPDATE …` starts a statement that is expected to wait, and `a.` awaits its answer. Sessions
//! of two letters, `ba> SELECT 1`, are at another node: they share an engine of their own, whose
//! caches hear nothing of what the others do. Lines that begin with `#` tell the story. To record
//! the answers anew, on purpose: `RECORD=1 cargo test -p sql --test scripts`.

use base::Env;
use sql::session::{Notice, Outcome, Session};
use sql::types::{Datum, Type, text};
use sql::views::{AtollView, Source};
use sql::{Auth, Engine, Error};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

struct NoNode;

#[async_trait::async_trait]
impl Source for NoNode {
    async fn rows(&self, _view: AtollView) -> Vec<Vec<Datum>> {
        Vec::new()
    }

    async fn definitions_changed(&self, _: &sql::catalog::Changed) {}
}

fn shown_error(error: &Error) -> String {
    let mut out = format!("ERROR {}: {}\n", error.state, error.message);
    // A deadlock's detail names transactions by numbers that are never the same.
    if let Some(detail) = error.detail.as_ref().filter(|_| error.state != "40P01") {
        writeln!(out, "DETAIL: {detail}").unwrap();
    }
    out
}

async fn run(session: &mut Session, sql: &str) -> String {
    let mut out = String::new();
    match run_all(session, sql, &mut out).await {
        Ok(()) => {
            if let Err(error) = session.finish(false).await {
                out.push_str(&shown_error(&error));
            }
        }
        Err(error) => {
            out.push_str(&shown_error(&error));
            session.finish(true).await.unwrap();
        }
    }
    out
}

async fn run_all(session: &mut Session, sql: &str, out: &mut String) -> Result<(), Error> {
    use futures::StreamExt;
    // COPY FROM's data follows the statement behind a `<<`, `\n` standing for line ends.
    let (sql, data) = sql.split_once(" << ").unwrap_or((sql, ""));
    for statement in Session::split(sql)? {
        let prepared = session.prepare_parsed(&statement).await?;
        let outcome = session.execute(&prepared, Vec::new()).await;
        for notice in session.notices() {
            if let Notice::Message { severity, message, .. } = notice {
                writeln!(out, "{severity}: {message}").unwrap();
            }
        }
        match outcome? {
            Outcome::Rows { columns, mut rows, tag } => {
                let types: Vec<Type> = columns.iter().map(|column| column.ty.clone()).collect();
                let mut n_rows = 0;
                while let Some(batch) = rows.next().await {
                    let batch = match batch {
                        Ok(batch) => batch,
                        Err(error) => {
                            session.failed();
                            return Err(error);
                        }
                    };
                    for row in batch {
                        n_rows += 1;
                        let cells: Vec<String> = row
                            .iter()
                            .zip(&types)
                            .map(|(datum, ty)| match datum {
                                Datum::Null => "NULL".to_owned(),
                                datum => text::to_string(datum, ty, &session.zone()),
                            })
                            .collect();
                        writeln!(out, "{}", cells.join("|")).unwrap();
                    }
                }
                writeln!(out, "{}", tag.tag(n_rows)).unwrap();
            }
            Outcome::Done { tag } => writeln!(out, "{tag}").unwrap(),
            Outcome::Empty => writeln!(out, "(empty)").unwrap(),
            Outcome::CopyIn(mut copy) => {
                let bytes = data.replace("\\n", "\n").replace("\\t", "\t");
                let tag = match copy.data(bytes.as_bytes()).await {
                    Ok(()) => session.copy_end(copy).await?,
                    Err(error) => {
                        session.copy_fail(copy, &error.message).await;
                        return Err(error);
                    }
                };
                writeln!(out, "{tag}").unwrap();
            }
            Outcome::CopyOut(mut copy) => {
                while let Some(lines) = copy.lines.next().await {
                    out.push_str(std::str::from_utf8(&lines?).unwrap());
                }
                let n_rows = copy.n_rows.load(std::sync::atomic::Ordering::Relaxed);
                writeln!(out, "COPY {n_rows}").unwrap();
            }
        }
    }
    Ok(())
}

/// How long a statement that must wait is watched not to answer.
const WATCHED: Duration = Duration::from_millis(150);

/// How long any answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

async fn play(script: &str, engines: &[Engine; 2], env: &Env) -> String {
    let mut sessions: BTreeMap<String, Session> = BTreeMap::new();
    let mut waiting: BTreeMap<String, JoinHandle<(Session, String)>> = BTreeMap::new();
    let mut out = String::new();
    for block in script.split("\n\n") {
        let mut statement = String::new();
        for line in block.lines() {
            if line.starts_with('#') && statement.is_empty() {
                writeln!(out, "{line}").unwrap();
                continue;
            }
            let is_statement = line.split_once(['>', '&']).is_some_and(|(name, _)| {
                !name.is_empty() && name.len() <= 2 && name.bytes().all(|b| b.is_ascii_lowercase())
            });
            let is_await = line.len() <= 3 && line.ends_with('.');
            if !(is_statement || is_await) {
                // An earlier answer, or the statement's next line.
                if statement.is_empty() || !line.starts_with("    ") {
                    continue;
                }
            }
            statement = line.to_owned();
            let continued: Vec<&str> = block
                .lines()
                .skip_while(|other| *other != line)
                .skip(1)
                .take_while(|next| next.starts_with("    "))
                .collect();
            if line.starts_with("    ") {
                continue;
            }
            for next in &continued {
                statement.push('\n');
                statement.push_str(next);
            }
            writeln!(out, "{statement}").unwrap();
            if is_await {
                let name = line.trim_end_matches('.');
                let task = waiting.remove(name).unwrap();
                let answered = env.timeout(PATIENCE, task).await;
                let (session, answer) =
                    answered.unwrap_or_else(|| panic!("{name} waits on")).unwrap();
                sessions.insert(name.to_owned(), session);
                out.push_str(&answer);
                continue;
            }
            let at = statement.find(['>', '&']).unwrap();
            let name = statement[..at].to_owned();
            let sql = statement[at + 1..].trim().to_owned();
            let mut session = match sessions.remove(&name) {
                Some(session) => session,
                None => engines[name.len() - 1].session("atoll", "atoll").await.unwrap(),
            };
            if statement.as_bytes()[at] == b'&' {
                #[allow(clippy::disallowed_methods)]
                let mut task = tokio::spawn(async move {
                    let answer = run(&mut session, &sql).await;
                    (session, answer)
                });
                match env.timeout(WATCHED, &mut task).await {
                    None => writeln!(out, "(waits)").unwrap(),
                    Some(_) => panic!("{statement}: was to wait, but answered"),
                }
                waiting.insert(name, task);
            } else {
                let answer = env.timeout(PATIENCE, run(&mut session, &sql)).await;
                out.push_str(&answer.unwrap_or_else(|| panic!("{statement}: no answer")));
                sessions.insert(name, session);
            }
        }
        out.push('\n');
    }
    format!("{}\n", out.trim_end())
}

fn engine(node: &txn::testing::TestNode) -> Engine {
    let wide = query::DataFusion::new(&node.env, node.store.temporary_dir()).unwrap();
    let wide = Arc::new(wide);
    Engine::new(node.env.clone(), node.client.clone(), wide, Arc::new(NoNode), Auth::Trust)
}

/// A story whose numbers are never the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_by_its_number_goes_by_what_was() {
    let dir = tempfile::tempdir().unwrap();
    let solo = txn::testing::solo(dir.path()).await.unwrap();
    let engine = engine(&solo);
    engine.bootstrap().await.unwrap();
    let mut session = engine.session("atoll", "atoll").await.unwrap();
    run(&mut session, "CREATE TABLE t (id int, w int); INSERT INTO t VALUES (1, 1)").await;
    let then = run(&mut session, "SELECT pg_export_snapshot()").await;
    let then = then.lines().next().unwrap();
    run(&mut session, "CREATE INDEX t_w ON t (w)").await;
    run(&mut session, "ALTER TABLE t ADD PRIMARY KEY (id)").await;
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{then}'; \
         SELECT * FROM t WHERE w = 1"
    );
    assert_eq!(run(&mut session, &begin).await, "BEGIN\nSET\n1|1\nSELECT 1\n");
    let write = run(&mut session, "DELETE FROM t WHERE id = 1").await;
    assert!(write.starts_with("ERROR 40001"), "{write}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stories_end_as_recorded() {
    let folder = Path::new("tests/scripts");
    let only = std::env::var("ONLY").unwrap_or_default();
    let mut failures = Vec::new();
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.contains(&only) {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let solo = txn::testing::solo(dir.path()).await.unwrap();
        let engines = [(); 2].map(|()| engine(&solo));
        engines[0].bootstrap().await.unwrap();
        let script = std::fs::read_to_string(&path).unwrap();
        let played = play(&script, &engines, &solo.env).await;
        if std::env::var("RECORD").is_ok() {
            std::fs::write(&path, &played).unwrap();
        } else if played != script {
            let diff = script
                .lines()
                .zip(played.lines())
                .find(|(want, got)| want != got)
                .map(|(want, got)| format!("recorded {want:?}\n     got {got:?}"))
                .unwrap_or_else(|| "one ends before the other".to_owned());
            failures.push(format!("{name}:\n{diff}\n---\n{played}"));
        }
        drop(engines);
        solo.stop().await;
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
