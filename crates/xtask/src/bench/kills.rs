//! `cargo xtask bench kills`: how long writes stop when workers are killed (`kill -9`), in a cluster of
//! three zones on this machine.
//!
//! | part | what is killed |
//! |---|---|
//! | peace | the worker that leads most tablets; the next one when all is calm again |
//! | pairs | the same, and 300 ms later the survivor that has most likely taken over |
//! | storm | one worker after the other, every three, two and one seconds, calm or not |
//!
//! Three probes write, each by way of another node if it can, in small transactions over four tablets
//! and rows that no other probe touches. Two figures come of it. *Next write*: from a kill to the first
//! answer to a statement that began after it. *Silence*: the longest time without any answer, whenever it
//! began. A probe whose statement failed goes on with other rows: a kill in the middle of a commit
//! leaves its rows locked until somebody finds out what became of it, which is another matter than
//! whether writes are served. The cluster is stopped and started once after the table was laid out, because
//! a tablet that a split has just made is started only after its parent has replayed the split. What a client sees beside that (errors, connections that end) is not counted.

use super::median;
use crate::{cargo, release_dir};
use anyhow::{Context, Result, bail};
use clap::Args;
use client::Client;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

mod client;

#[derive(Args)]
pub struct Options {
    /// Kills in peace.
    #[arg(long, default_value_t = 20)]
    kills: u32,
    /// Pairs of kills.
    #[arg(long, default_value_t = 10)]
    pairs: u32,
    /// Seconds of each storm.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

const OFFSET: u16 = 23_000;
const N_NODES: u16 = 3;
const BETWEEN_PAIR: Duration = Duration::from_millis(300);
const STORMS_S: [u64; 3] = [3, 2, 1];
/// Rows of the table in each tablet, and in all; a probe moves to other rows with each failure.
const N_ROWS: u32 = 600;
const N_TABLETS: u32 = 4;
/// A probe that waits longer goes to another node.
const PATIENCE: Duration = Duration::from_secs(2);
/// A probe's pause between two writes.
const PAUSE: Duration = Duration::from_millis(2);
/// All nodes have answered for this long before the next kill in peace.
const CALM: Duration = Duration::from_millis(1500);
/// Whoever is not back by then does not come back.
const LOST: Duration = Duration::from_secs(60);

/// One write: when it began, and when it was answered.
type Write = (Instant, Instant);

struct Cluster {
    up: Child,
    data: PathBuf,
    writes: Arc<Mutex<Vec<Write>>>,
    over: Arc<AtomicBool>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.stop();
    }
}

fn up(data: &Path) -> Result<Child> {
    let mut up = Command::new(release_dir()?.join("atoll"));
    up.args(["up", "--zones", &N_NODES.to_string(), "--port-offset", &OFFSET.to_string()]);
    // Clients that lose their connection are reported there, by the dozen.
    up.arg("--data").arg(data).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    up.spawn().context("atoll up")
}

pub fn run(options: &Options) -> Result<()> {
    crate::run(cargo().args(["build", "--release", "--package", "node"]))?;
    let dir = std::env::temp_dir().join(format!("atoll-kills-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let outcome = measure(options, &dir);
    std::fs::remove_dir_all(&dir)?;
    outcome
}

fn measure(options: &Options, dir: &Path) -> Result<()> {
    let cluster = Cluster::start(dir)?;
    println!(
        "{:<24} {:>6} {:>12} {:>8} {:>8} {:>12} {:>8}",
        "milliseconds", "kills", "next: p50", "p99", "most", "silence: p50", "most"
    );
    let mut seen = Seen::default();
    for _ in 0..options.kills {
        cluster.calm()?;
        seen.event(&cluster, &[cluster.kill(cluster.leading()?)?])?;
    }
    seen.print("one, in peace");
    let mut seen = Seen::default();
    for _ in 0..options.pairs {
        cluster.calm()?;
        let first = cluster.leading()?;
        let begun = cluster.kill(first)?;
        std::thread::sleep(BETWEEN_PAIR);
        let heir = if first == 1 { 2 } else { 1 };
        seen.event(&cluster, &[begun, cluster.kill(heir)?])?;
    }
    seen.print("two, 300 ms apart");
    for every_s in STORMS_S {
        cluster.calm()?;
        let mut seen = Seen::default();
        let mut kills = Vec::new();
        for n in 0..options.seconds / every_s {
            kills.push(cluster.kill(1 + (n % u64::from(N_NODES)) as u16)?);
            std::thread::sleep(Duration::from_secs(every_s));
        }
        seen.event(&cluster, &kills)?;
        seen.print(&format!("a storm, one every {every_s} s"));
    }
    Ok(())
}

/// What came of the kills of one part.
#[derive(Default)]
struct Seen {
    next_ms: Vec<f64>,
    silence_ms: Vec<f64>,
}

impl Seen {
    /// `kills`: when they were. Waits until a write that began after the last one is answered.
    fn event(&mut self, cluster: &Cluster, kills: &[Instant]) -> Result<()> {
        let ms = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64() * 1000.0;
        let (Some(first), Some(last)) = (kills.first(), kills.last()) else { return Ok(()) };
        let begun = Instant::now();
        while cluster.next_after(*last).is_none() {
            if begun.elapsed() > LOST {
                bail!("nothing is written after a kill: see {}", cluster.data.display());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // The survivors' own next write is not all: somebody may be cut off until the dead is back.
        std::thread::sleep(CALM);
        let next = kills.iter().filter_map(|kill| Some(ms(*kill, cluster.next_after(*kill)?)));
        self.next_ms.extend(next);
        let mut ends = cluster.ends_since(*first - CALM);
        ends.sort_unstable();
        let silences = ends.windows(2).map(|pair| ms(pair[0], pair[1]));
        self.silence_ms.push(silences.fold(0.0, f64::max));
        cluster.forget();
        Ok(())
    }

    fn print(&self, name: &str) {
        let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
        println!(
            "{name:<24} {:>6} {:>12.0} {:>8.0} {:>8.0} {:>12.0} {:>8.0}",
            self.next_ms.len(),
            median(&self.next_ms),
            quantile(&self.next_ms, 0.99),
            most(&self.next_ms),
            median(&self.silence_ms),
            most(&self.silence_ms),
        );
    }
}

fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

impl Cluster {
    fn start(dir: &Path) -> Result<Cluster> {
        let data = dir.join("data");
        let (writes, over) = (Arc::default(), Arc::default());
        let mut cluster = Cluster { up: up(&data)?, data, writes, over };
        cluster.answers()?;
        let mut sql = Client::connect(port(1), PATIENCE)?;
        sql.run("CREATE TABLE probe (id bigint PRIMARY KEY, n bigint NOT NULL)")?;
        let rows: Vec<String> = (0..N_ROWS * N_TABLETS).map(|id| format!("({id}, 0)")).collect();
        sql.run(&format!("INSERT INTO probe VALUES {}", rows.join(",")))?;
        let borders: Vec<String> = (1..N_TABLETS).map(|n| format!("({})", n * N_ROWS)).collect();
        sql.run(&format!("ALTER TABLE probe SPLIT AT VALUES {}", borders.join(", ")))?;
        cluster.stop();
        cluster.up = up(&cluster.data)?;
        cluster.answers()?;
        for node in 1..=N_NODES {
            let (writes, over) = (cluster.writes.clone(), cluster.over.clone());
            std::thread::spawn(move || probe(node, &writes, &over));
        }
        Ok(cluster)
    }

    /// In good order, so that nothing is left to be replayed.
    fn stop(&mut self) {
        Command::new("kill").arg(self.up.id().to_string()).status().ok();
        self.up.wait().ok();
    }

    /// Waits until all nodes answer.
    fn answers(&self) -> Result<()> {
        let begun = Instant::now();
        for node in 1..=N_NODES {
            while Client::connect(port(node), PATIENCE)
                .and_then(|mut sql| sql.run("SELECT count(*) FROM atoll.tablets"))
                .is_err()
            {
                if begun.elapsed() > LOST {
                    bail!("node {node} does not answer: see {}", self.data.display());
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    fn calm(&self) -> Result<()> {
        self.answers()?;
        std::thread::sleep(CALM);
        Ok(())
    }

    /// The node that leads most tablets.
    fn leading(&self) -> Result<u16> {
        let query = "SELECT leader FROM atoll.tablets WHERE leader IS NOT NULL \
                     GROUP BY leader ORDER BY count(*) DESC, leader LIMIT 1";
        let answer = Client::connect(port(1), PATIENCE)?.run(query)?;
        Ok(answer.and_then(|text| text.parse().ok()).unwrap_or(1))
    }

    /// Kills a node's worker, if it has one at this moment; when that was.
    fn kill(&self, node: u16) -> Result<Instant> {
        let path = self.data.join(format!("node-{node}")).join("worker.pid");
        let pid = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let at = Instant::now();
        let pid = rustix::process::Pid::from_raw(pid.trim().parse()?).context("a pid")?;
        match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(at),
            Err(error) => Err(error.into()),
        }
    }

    /// When the first write was answered that began after `kill`.
    fn next_after(&self, kill: Instant) -> Option<Instant> {
        let writes = self.writes.lock().unwrap_or_else(|broken| broken.into_inner());
        writes.iter().filter(|(begun, _)| *begun >= kill).map(|(_, end)| *end).min()
    }

    fn ends_since(&self, from: Instant) -> Vec<Instant> {
        let writes = self.writes.lock().unwrap_or_else(|broken| broken.into_inner());
        writes.iter().map(|(_, end)| *end).filter(|end| *end >= from).collect()
    }

    fn forget(&self) {
        self.writes.lock().unwrap_or_else(|broken| broken.into_inner()).clear();
    }
}

fn port(node: u16) -> u16 {
    5432 + OFFSET + node
}

/// Writes until it is over, by way of `home` or whoever else answers.
fn probe(home: u16, writes: &Mutex<Vec<Write>>, over: &AtomicBool) {
    let statement = |row: u32| {
        let ids: Vec<String> = (0..N_TABLETS).map(|n| (n * N_ROWS + row).to_string()).collect();
        format!("UPDATE probe SET n = n + 1 WHERE id IN ({})", ids.join(", "))
    };
    let mut row = u32::from(home) % N_ROWS;
    let mut node = home;
    let mut sql: Option<Client> = None;
    while !over.load(Ordering::Relaxed) {
        let Some(client) = &mut sql else {
            sql = Client::connect(port(node), PATIENCE).ok();
            if sql.is_none() {
                node = node % N_NODES + 1;
                std::thread::sleep(PAUSE);
            }
            continue;
        };
        let begun = Instant::now();
        match client.run(&statement(row)) {
            Ok(_) => {
                let write = (begun, Instant::now());
                writes.lock().unwrap_or_else(|broken| broken.into_inner()).push(write);
                std::thread::sleep(PAUSE);
            }
            Err(_) => {
                sql = None;
                node = node % N_NODES + 1;
                row = (row + u32::from(N_NODES)) % N_ROWS;
            }
        }
    }
}
