//! The clients that people have: psql, pgbench, psycopg 3, node-postgres, sqlx.
// The test stands outside of what is simulated.
#![allow(clippy::disallowed_methods)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use support::Cluster;

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{text}\n{errors}");
    text
}

fn story(name: &str) -> PathBuf {
    std::path::absolute(Path::new("tests/clients").join(name)).unwrap()
}

/// Kept between runs: installing drivers takes longer than the tests.
fn workshop(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn psql(cluster: &Cluster, node: u16, words: &[&str]) -> String {
    let port = cluster.sql_port(node).to_string();
    run(Command::new("psql")
        .args(["-X", "-h", "127.0.0.1", "-p", &port, "-U", "atoll", "-v", "ON_ERROR_STOP=1"])
        .args(words)
        .arg("atoll"))
}

fn pgbench(cluster: &Cluster, words: &[&str]) -> String {
    let port = cluster.sql_port(1).to_string();
    run(Command::new("pgbench")
        .args(["-h", "127.0.0.1", "-p", &port, "-U", "atoll"])
        .args(words)
        .arg("atoll"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pgbench_runs_its_scripts_and_the_books_balance() {
    let cluster = Cluster::start(3).await;
    pgbench(&cluster, &["-i", "-q", "-s", "10"]);
    assert_eq!(
        psql(&cluster, 2, &["-Atc", "SELECT count(*) FROM pgbench_accounts"]).trim(),
        "1000000"
    );
    for script in ["tpcb-like", "simple-update", "select-only"] {
        for protocol in ["simple", "extended", "prepared"] {
            let out = pgbench(
                &cluster,
                &["-n", "-b", script, "-M", protocol, "-c", "8", "-j", "2", "-t", "50"],
            );
            assert!(
                out.contains("number of failed transactions: 0 "),
                "{script} {protocol}\n{out}"
            );
        }
    }
    let books = "SELECT (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(tbalance) FROM pgbench_tellers),
                        (SELECT count(*) FROM pgbench_history)";
    // simple-update leaves branches and tellers alone, but writes history.
    assert_eq!(psql(&cluster, 3, &["-Atc", books]).trim(), "t|2400");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_describes_what_is_there() {
    let cluster = Cluster::start(1).await;
    psql(
        &cluster,
        1,
        &["-c", "CREATE TABLE shown (id int PRIMARY KEY, name varchar(20) NOT NULL DEFAULT 'x')"],
    );
    psql(&cluster, 1, &["-c", "CREATE INDEX shown_name ON shown (name)"]);
    assert!(psql(&cluster, 1, &["-c", "\\dt"]).contains("shown"));
    let described = psql(&cluster, 1, &["-c", "\\d shown"]);
    for part in
        ["character varying(20)", "not null", "shown_pkey", "PRIMARY KEY, btree (id)", "shown_name"]
    {
        assert!(described.contains(part), "{part} is missing in\n{described}");
    }
    for command in ["\\di", "\\ds", "\\dn", "\\du", "\\l", "\\df", "\\dv", "\\d"] {
        psql(&cluster, 1, &["-c", command]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psycopg_tells_its_story() {
    let cluster = Cluster::start(3).await;
    let home = workshop("psycopg");
    let python = home.join("venv/bin/python");
    if !python.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(home.join("venv")));
    }
    if !Command::new(&python).args(["-c", "import psycopg"]).output().unwrap().status.success() {
        run(Command::new(&python).args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "psycopg[binary]==3.2.*",
        ]));
    }
    run(Command::new(&python).arg(story("psycopg_story.py")).arg(cluster.sql_port(2).to_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_postgres_tells_its_story() {
    let cluster = Cluster::start(3).await;
    let home = workshop("node-postgres");
    if !home.join("node_modules/pg").exists() {
        std::fs::write(home.join("package.json"), "{\"private\": true}").unwrap();
        run(Command::new("npm")
            .args(["install", "--silent", "--no-audit", "--no-fund", "pg@8"])
            .current_dir(&home));
    }
    std::fs::copy(story("pg_story.mjs"), home.join("pg_story.mjs")).unwrap();
    run(Command::new("node")
        .arg("pg_story.mjs")
        .arg(cluster.sql_port(3).to_string())
        .current_dir(&home));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlx_tells_its_story() {
    let cluster = Cluster::start(3).await;
    // A workspace of its own: its features must not reach into ours.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut story = Command::new(cargo);
    story.args(["run", "--quiet", "--manifest-path"]).arg(self::story("sqlx_story/Cargo.toml"));
    story.arg("--target-dir").arg(workshop("sqlx")).arg("--").arg(cluster.sql_port(1).to_string());
    run(&mut story);
}
