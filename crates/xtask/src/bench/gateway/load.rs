//! The load generator: `xtask load --port 31000 ...`, one process and one thread, keep-alive
//! connections, one GET at a time on each. Three kinds of load:
//!
//! * **Closed loop**: N connections, each sends the next request when its answer has come. It finds
//!   the most that a system can do, and says little about latency: who is slow is asked less.
//! * **Open loop** (`--rate`): requests are due at times drawn in advance (Poisson, seeded: the same
//!   for every system), whatever has become of the earlier ones, and latency counts from the time
//!   that a request was due. So a system that stalls pays for all whom it kept waiting ("no
//!   coordinated omission", Gil Tene). A request takes an idle connection, else a new one up to
//!   `--connections`; beyond that it has failed ("overflow").
//! * **Hold** (`--hold`): opens N connections, sends one request on each, and keeps them until
//!   standard input ends.
//!
//! After `--warm-ms` it prints `begin NS` (CLOCK_MONOTONIC) and begins to count; in the end it
//! prints a [`Report`] in JSON. A request of an open loop belongs to the time that it was due, one
//! of a closed loop to the time that it was answered. With `--watch PID` the report says what CPU
//! time that process and its descendants used while it counted.
//!
//! How late the generator itself sent is in the report (`late_us`): where that is not small beside
//! the latencies, they are not the system's.

use super::processes::{self, Process};
use super::sockets::MILLISECOND;
use anyhow::{Context, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{ChildStdin, ChildStdout, Stdio};

mod generator;
pub use generator::run;

#[derive(Args, Clone)]
pub struct Options {
    #[arg(long)]
    pub port: u16,
    /// Of the answer; see `xtask backend`.
    #[arg(long, default_value_t = 128)]
    pub bytes: usize,
    /// Mean of the exponentially distributed work of a request; 0: none.
    #[arg(long, default_value_t = 0.0)]
    pub work_us: f64,
    /// Requests a second; without it the loop is closed.
    #[arg(long)]
    pub rate: Option<f64>,
    /// Open these, ask once on each, hold them.
    #[arg(long, conflicts_with = "rate")]
    pub hold: bool,
    /// How many; with a rate, how many at most.
    #[arg(long, default_value_t = 64)]
    pub connections: usize,
    #[arg(long, default_value_t = 1000)]
    pub warm_ms: u64,
    #[arg(long, default_value_t = 10_000)]
    pub count_ms: u64,
    /// Since the request was due; then it has failed, and its connection is closed.
    #[arg(long, default_value_t = 10_000)]
    pub timeout_ms: u64,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// A process whose CPU time is to be reported.
    #[arg(long)]
    pub watch: Option<u32>,
}

#[derive(Serialize, Deserialize)]
pub struct Report {
    /// When it began to count, on CLOCK_MONOTONIC.
    pub begin_ns: u64,
    /// How long it counted.
    pub seconds: f64,
    /// By what became of them: a status, or how they failed.
    pub outcomes: BTreeMap<String, u64>,
    /// Of answers with status 200; a time-out stands in it as that long.
    pub latency_us: Percentiles,
    /// From when a request was due to when it was first given to the kernel.
    pub late_us: Percentiles,
    /// CPU time of the watched process.
    pub cpu_us: Option<u64>,
    /// Connections that are open in the end.
    pub n_connections: usize,
    pub slices: Vec<Slice>,
}

#[derive(Serialize, Deserialize, Default, Clone, Copy)]
pub struct Percentiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// The requests of one [`SLICE_NS`] of counted time.
#[derive(Serialize, Deserialize, Default, Clone, Copy)]
pub struct Slice {
    pub n: u64,
    /// Those with status 200.
    pub n_good: u64,
    /// The slowest of these.
    pub worst_us: f64,
}

pub const SLICE_NS: u64 = 10 * MILLISECOND;

impl Report {
    pub fn n_good(&self) -> u64 {
        self.outcomes.get("200").copied().unwrap_or(0)
    }

    pub fn n_all(&self) -> u64 {
        self.outcomes.values().sum()
    }

    pub fn n_failed(&self) -> u64 {
        self.n_all() - self.n_good()
    }

    /// What went wrong, in words; empty when nothing did.
    pub fn failures(&self) -> String {
        let failed = self.outcomes.iter().filter(|(what, _)| *what != "200");
        failed.map(|(what, n)| format!("{n} × {what}")).collect::<Vec<_>>().join(", ")
    }

    /// The requests between two times since it began to count.
    pub fn between(&self, from_ns: u64, to_ns: u64) -> Slice {
        let within = |idx: usize| (from_ns..to_ns).contains(&(idx as u64 * SLICE_NS));
        let slices = self.slices.iter().enumerate().filter(|(idx, _)| within(*idx));
        slices.fold(Slice::default(), |sum, (_, slice)| Slice {
            n: sum.n + slice.n,
            n_good: sum.n_good + slice.n_good,
            worst_us: sum.worst_us.max(slice.worst_us),
        })
    }
}

/// A load generator that the bench has started.
pub struct Running {
    process: Process,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// When it began to count.
    pub begin_ns: u64,
}

impl Running {
    /// Returns when it begins to count: after warming up, or once all connections are held.
    pub fn start(options: &Options) -> Result<Running> {
        let mut command = processes::child(std::env::current_exe()?);
        command.arg("load").args(options.words());
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("setpriv")?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("a load generator without pipes");
        };
        let process = Process::new("load generator", child);
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        match line.strip_prefix("begin ").and_then(|begin| begin.trim().parse().ok()) {
            Some(begin_ns) => Ok(Running { process, stdin, stdout, begin_ns }),
            None => bail!("the load generator has died; what it said stands above"),
        }
    }

    pub fn finish(mut self) -> Result<Report> {
        drop(self.stdin);
        let mut text = String::new();
        self.stdout.read_to_string(&mut text)?;
        let status = self.process.wait()?;
        if !status.success() {
            bail!("the load generator: {status}; what it said stands above");
        }
        serde_json::from_str(&text).context("the load generator's report")
    }
}

impl Options {
    /// For a port: the closed loop that the command line's defaults describe.
    pub fn new(port: u16) -> Options {
        Options {
            port,
            bytes: 128,
            work_us: 0.0,
            rate: None,
            hold: false,
            connections: 64,
            warm_ms: 1000,
            count_ms: 10_000,
            timeout_ms: 10_000,
            seed: 1,
            watch: None,
        }
    }

    /// As the command line takes them.
    fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        let mut say = |name: &str, value: String| words.extend([format!("--{name}"), value]);
        say("port", self.port.to_string());
        say("bytes", self.bytes.to_string());
        say("work-us", self.work_us.to_string());
        say("connections", self.connections.to_string());
        say("warm-ms", self.warm_ms.to_string());
        say("count-ms", self.count_ms.to_string());
        say("timeout-ms", self.timeout_ms.to_string());
        say("seed", self.seed.to_string());
        if let Some(rate) = self.rate {
            say("rate", rate.to_string());
        }
        if let Some(pid) = self.watch {
            say("watch", pid.to_string());
        }
        if self.hold {
            words.push("--hold".into());
        }
        words
    }

    pub fn run(&self) -> Result<Report> {
        Running::start(self)?.finish()
    }
}
