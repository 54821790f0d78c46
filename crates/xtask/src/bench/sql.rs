//! `cargo xtask bench sql`: PostgreSQL 15, Atoll in one zone and Atoll in three, on this machine,
//! in the same run, in turn; medians and ratios. Every system writes durably.

use super::median;
use crate::{cargo, release_dir, tools};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use xtask::postgres::Postgres;

#[derive(Args)]
pub struct Options {
    /// Times each system is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// pgbench's scale: 100,000 accounts each.
    #[arg(long, default_value_t = 10)]
    scale: u32,
    #[arg(long, default_value_t = 16)]
    clients: u32,
}

const OFFSETS: [(u16, u16); 2] = [(1, 21_000), (3, 22_000)];
const POSTGRES_PORT: u16 = 25_432;

struct System {
    name: &'static str,
    port: u16,
    tpcb: Vec<f64>,
    select: Vec<f64>,
    copy: Vec<f64>,
}

struct Atoll {
    up: Child,
}

impl Drop for Atoll {
    fn drop(&mut self) {
        Command::new("kill").arg(self.up.id().to_string()).status().ok();
        self.up.wait().ok();
    }
}

fn names() -> [&'static str; 3] {
    ["PostgreSQL 15", "Atoll, one zone", "Atoll, three zones"]
}

pub fn run(options: &Options) -> Result<()> {
    tools::install(&tools::TESTS)?;
    crate::run(cargo().args(["build", "--release", "--package", "node"]))?;
    let dir = std::env::temp_dir().join(format!("atoll-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let outcome = measure(options, &dir);
    std::fs::remove_dir_all(&dir)?;
    outcome
}

fn measure(options: &Options, dir: &Path) -> Result<()> {
    let _postgres = Postgres::start(&dir.join("postgres"), POSTGRES_PORT)?;
    let binary = release_dir()?.join("atoll");
    let mut clusters = Vec::new();
    for (zones, offset) in OFFSETS {
        let data = dir.join(format!("atoll-{zones}"));
        let mut up = Command::new(&binary);
        up.args([
            "up",
            "--zones",
            &zones.to_string(),
            "--port-offset",
            &offset.to_string(),
            "--data",
        ])
        .arg(&data);
        let up = up.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("atoll up")?;
        clusters.push((Atoll { up }, data));
    }
    let [postgres, one, three] = names();
    let system = |name, port| System { name, port, tpcb: vec![], select: vec![], copy: vec![] };
    let mut systems = [
        system(postgres, POSTGRES_PORT),
        system(one, 5433 + OFFSETS[0].1),
        system(three, 5433 + OFFSETS[1].1),
    ];
    for system in &systems {
        wait_for(system.port)?;
    }
    for (_, data) in &clusters {
        report_memory(data, "with an empty database")?;
    }
    idle_cost(&clusters[1].1)?;
    let file = accounts(dir, options.scale)?;
    for system in &systems {
        pgbench(system.port, &["-i", "-q", "-s", &options.scale.to_string()])?;
    }
    for round in 1..=options.rounds {
        for system in &mut systems {
            let clients = options.clients.to_string();
            let seconds = options.seconds.to_string();
            let common = ["-n", "-M", "prepared", "-c", &clients, "-j", "2", "-T", &seconds];
            let scale = options.scale.to_string();
            let tpcb = pgbench(system.port, &[&common[..], &["-s", &scale]].concat())?;
            let select = pgbench(system.port, &[&common[..], &["-S", "-s", &scale]].concat())?;
            system.tpcb.push(tpcb);
            system.select.push(select);
            eprintln!("round {round}: {}: {tpcb:.0} TPC-B, {select:.0} select-only", system.name);
        }
    }
    // By itself and last: what is left to do after a COPY and a DROP of a million rows would
    // slow down whoever is measured next.
    for _ in 0..options.rounds {
        for system in &mut systems {
            system.copy.push(copy(system.port, &file, options.scale)?);
        }
    }
    println!();
    println!(
        "{:<20} {:>12} {:>7} {:>12} {:>7} {:>14} {:>7}",
        "median", "TPC-B tps", "ratio", "select tps", "ratio", "COPY rows/s", "ratio"
    );
    let base = [median(&systems[0].tpcb), median(&systems[0].select), median(&systems[0].copy)];
    for system in &systems {
        let [tpcb, select, copy] =
            [median(&system.tpcb), median(&system.select), median(&system.copy)];
        println!(
            "{:<20} {tpcb:>12.0} {:>7.2} {select:>12.0} {:>7.2} {copy:>14.0} {:>7.2}",
            system.name,
            tpcb / base[0],
            select / base[1],
            copy / base[2],
        );
    }
    for (_, data) in &clusters {
        report_memory(data, "after the load")?;
    }
    Ok(())
}

fn client(program: &str, port: u16) -> Command {
    let mut command = Command::new(program);
    // PostgreSQL as initdb leaves it has no TLS, and Atoll would be asked for it by default.
    command.env("PGSSLMODE", "disable");
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "atoll"]);
    command
}

fn wait_for(port: u16) -> Result<()> {
    let begun = Instant::now();
    while !client("psql", port).args(["-c", "SELECT 1", "atoll"]).output()?.status.success() {
        if begun.elapsed() > Duration::from_secs(60) {
            bail!("nothing answers on port {port}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Runs pgbench and returns its transactions a second (0 for `-i`).
fn pgbench(port: u16, words: &[&str]) -> Result<f64> {
    let output = client("pgbench", port).args(words).arg("atoll").output().context("pgbench")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("pgbench {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    let tps = text.lines().find_map(|line| line.strip_prefix("tps = "));
    Ok(tps
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|tps| tps.parse().ok())
        .unwrap_or(0.0))
}

/// The rows of pgbench_accounts, as `pgbench -i` writes them.
fn accounts(dir: &Path, scale: u32) -> Result<PathBuf> {
    let path = dir.join("accounts.tsv");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path)?);
    for aid in 1..=u64::from(scale) * 100_000 {
        writeln!(file, "{aid}\t{}\t0\t{:84}", (aid - 1) / 100_000 + 1, "")?;
    }
    file.flush()?;
    Ok(path)
}

/// Rows a second of one COPY into an empty table with a primary key.
fn copy(port: u16, file: &Path, scale: u32) -> Result<f64> {
    let psql = |sql: &str| -> Result<()> {
        let output = client("psql", port)
            .args(["-v", "ON_ERROR_STOP=1", "-q", "-c", sql, "atoll"])
            .output()?;
        if !output.status.success() {
            bail!("psql -c {sql:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    };
    psql("DROP TABLE IF EXISTS copied")?;
    psql("CREATE TABLE copied (aid int PRIMARY KEY, bid int, abalance int, filler char(84))")?;
    let begun = Instant::now();
    psql(&format!("\\copy copied FROM '{}'", file.display()))?;
    let rate = f64::from(scale) * 100_000.0 / begun.elapsed().as_secs_f64();
    psql("DROP TABLE copied")?;
    Ok(rate)
}

fn workers(data: &Path) -> Result<Vec<u32>> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir(data)? {
        let path = entry?.path().join("worker.pid");
        if let Ok(text) = std::fs::read_to_string(path) {
            pids.push(text.trim().parse()?);
        }
    }
    Ok(pids)
}

fn report_memory(data: &Path, when: &str) -> Result<()> {
    for pid in workers(data)? {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: u64 =
            kib.and_then(|rest| rest.split_whitespace().next()).unwrap_or("0").parse()?;
        println!(
            "{}: a worker {when} holds {} MiB",
            data.file_name().unwrap_or_default().to_string_lossy(),
            kib / 1024
        );
    }
    Ok(())
}

/// CPU of a three-zone cluster that nobody uses, supervisors included.
fn idle_cost(data: &Path) -> Result<()> {
    let mut pids = workers(data)?;
    for entry in std::fs::read_dir(data)? {
        if let Ok(text) = std::fs::read_to_string(entry?.path().join("supervisor.pid")) {
            pids.push(text.trim().parse()?);
        }
    }
    let ticks = || -> Result<u64> {
        let mut sum = 0;
        for pid in &pids {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
            // After the name, which may hold blanks: state is the first field, utime the 12th.
            let fields: Vec<&str> =
                stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
            sum += fields.get(11).unwrap_or(&"0").parse::<u64>()?
                + fields.get(12).unwrap_or(&"0").parse::<u64>()?;
        }
        Ok(sum)
    };
    std::thread::sleep(Duration::from_secs(5));
    let before = ticks()?;
    std::thread::sleep(Duration::from_secs(20));
    // The kernel counts a hundred ticks a second.
    let percent = (ticks()? - before) as f64 / 20.0;
    println!("an idle three-zone cluster uses {percent:.1} % of one core");
    Ok(())
}
