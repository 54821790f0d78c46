//! A real cluster of real processes on loopback, stopped when it is dropped.
#![allow(dead_code)]

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_postgres::{Client, Error, NoTls};

/// Longer than a node needs to answer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

static NEXT: AtomicU16 = AtomicU16::new(0);

pub struct Cluster {
    up: Child,
    data: TempDir,
    offset: u16,
    pub n_nodes: u16,
}

/// An offset whose ports nobody listens on. Test binaries may run at the same time.
fn free_offset() -> u16 {
    for _ in 0..200 {
        let salt = (std::process::id() % 97) as u16 * 40;
        let offset = 10_000 + salt + NEXT.fetch_add(1, Ordering::Relaxed) * 20 % 40_000;
        let taken = |port: u16| TcpStream::connect(("127.0.0.1", port)).is_ok();
        if (1..=5).all(|n| !taken(5432 + offset + n) && !taken(7400 + offset + n)) {
            return offset;
        }
    }
    panic!("no free ports");
}

impl Cluster {
    pub async fn start(zones: u16) -> Cluster {
        Cluster::start_with(zones, 1).await
    }

    pub async fn start_with(zones: u16, per_zone: u16) -> Cluster {
        let data = tempfile::tempdir().unwrap();
        let offset = free_offset();
        let up = spawn_up(data.path(), offset, &[("--zones", zones), ("--nodes", per_zone)]);
        let cluster = Cluster { up, data, offset, n_nodes: zones * per_zone };
        for node in 1..=cluster.n_nodes {
            cluster.connect(node).await;
        }
        cluster
    }

    pub fn data(&self) -> &Path {
        self.data.path()
    }

    pub fn sql_port(&self, node: u16) -> u16 {
        5432 + self.offset + node
    }

    pub fn config(&self, node: u16) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.sql_port(node)).user("atoll").dbname("atoll");
        config.connect_timeout(Duration::from_secs(2));
        config
    }

    /// One try.
    pub async fn try_connect(&self, node: u16) -> Result<Client, Error> {
        connect(&self.config(node)).await
    }

    /// Waits until the node answers a query.
    pub async fn connect(&self, node: u16) -> Client {
        let begun = Instant::now();
        loop {
            let error = match self.try_connect(node).await {
                Ok(client) => match client.simple_query("SELECT 1").await {
                    Ok(_) => return client,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            assert!(
                begun.elapsed() < PATIENCE,
                "node {node} does not answer: {error:?}\n{}",
                self.logs()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub fn chaos(&self, words: &[&str]) -> Result<String, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_atoll"));
        command.arg("chaos").args(words).arg("--data").arg(self.data.path());
        let output = command.output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Starts a killed node, once its end has been noticed.
    pub async fn restart(&self, node: u16) {
        let begun = Instant::now();
        while let Err(error) = self.chaos(&["start", &node.to_string()]) {
            assert!(begun.elapsed() < PATIENCE, "{error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Kills `atoll up` and none of its nodes.
    pub fn kill_up(&mut self) {
        self.up.kill().unwrap();
        self.up.wait().unwrap();
    }

    pub fn node_dir(&self, node: u16) -> std::path::PathBuf {
        self.data.path().join(format!("node-{node}"))
    }

    /// The last lines that the nodes logged, for a failing test's message.
    pub fn logs(&self) -> String {
        let mut all = String::new();
        for node in 1..=self.n_nodes {
            let log =
                std::fs::read_to_string(self.node_dir(node).join("log.txt")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(40)..];
            all.push_str(&format!("--- node {node}\n{}\n", last.join("\n")));
        }
        all
    }

    /// Stops the cluster as Ctrl-C does and starts it again on the same data.
    pub async fn restart_all(&mut self) {
        self.stop();
        self.up = spawn_up(self.data.path(), self.offset, &[]);
        for node in 1..=self.n_nodes {
            self.connect(node).await;
        }
    }

    fn stop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.up.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).ok();
        self.up.wait().unwrap();
    }
}

fn spawn_up(data: &Path, offset: u16, sizes: &[(&str, u16)]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atoll"));
    command.arg("up").arg("--data").arg(data).arg("--port-offset").arg(offset.to_string());
    for (flag, size) in sizes {
        command.arg(flag).arg(size.to_string());
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in 1..=self.n_nodes {
            // Those that are paused must hear that they are to stop.
            self.chaos(&["resume", &node.to_string()]).ok();
        }
        self.stop();
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

pub async fn connect(config: &tokio_postgres::Config) -> Result<Client, Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(async move {
        connection.await.ok();
    });
    Ok(client)
}

/// SQLSTATE, with a closed connection counted as 08006.
pub fn state(error: &Error) -> String {
    error.code().map_or_else(|| "08006".into(), |code| code.code().to_owned())
}

/// What a client must be ready for. All but the last are definite; 08006 in the middle of COMMIT leaves
/// open whether it happened.
pub const RETRYABLE: [&str; 4] = ["40001", "40P01", "57P01", "08006"];
