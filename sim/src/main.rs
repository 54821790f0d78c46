//! The simulator: whole clusters of the real node, under every fault, in virtual time, repeatable.
//!
//! * [`machine`]: threads, clocks and disks as the C library's callers see them
//! * [`net`]: the network between hosts
//! * [`cluster`]: hosts with nodes on them
//! * [`world`], [`workload`], [`nemesis`]: who works, and who breaks things
//! * [`check`], [`replicas`]: what must hold
//! * [`scenario`], [`run`], [`suite`]: one run, and many; [`year`]: a long one; [`script`]: one that
//!   is written down

mod check;
mod cluster;
mod machine;
mod nemesis;
mod net;
mod replicas;
mod run;
mod scenario;
mod script;
mod suite;
mod task;
mod timeline;
mod workload;
mod world;
mod year;

use anyhow::{Result, bail};
use clap::Parser;
use nemesis::Fault;
use scenario::Scenario;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use suite::Budget;

#[global_allocator]
static HEAP: machine::heap::Heap = machine::heap::Heap::new();

/// Simulates clusters and judges them.
#[derive(Parser)]
#[command(name = "sim")]
struct Sim {
    /// Replay this seed, with a timeline.
    #[arg(long)]
    seed: Option<u64>,
    /// Only this scenario.
    #[arg(long)]
    scenario: Option<String>,
    /// Only these workloads, such as `bank,ddl`, instead of those that the seed draws.
    #[arg(long, value_delimiter = ',')]
    workloads: Vec<String>,
    /// Only these faults, such as `panic,frozen host`, instead of the scenario's.
    #[arg(long, value_delimiter = ',')]
    faults: Vec<String>,
    /// Seeds for each scenario: by default some four minutes on two cores.
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// Soak: so many simulated hours, with seeds that no run had before.
    #[arg(long, conflicts_with = "seeds")]
    hours: Option<f64>,
    /// So many real minutes.
    #[arg(long, conflicts_with_all = ["seeds", "hours"])]
    minutes: Option<f64>,
    /// The first seed.
    #[arg(long)]
    from: Option<u64>,
    /// Run each seed twice: the traces must be the same.
    #[arg(long)]
    twice: bool,
    /// End at the first failure.
    #[arg(long)]
    stop_at_failure: bool,
    /// Runs at the same time.
    #[arg(long)]
    jobs: Option<usize>,
    /// Say more in the timeline: a filter such as `debug` or `info,consensus=debug`.
    #[arg(long, default_value = timeline::FILTER)]
    log: String,
    /// Write every event of the trace to this file, 32 bytes each.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    #[arg(long, hide = true)]
    as_child: bool,
    #[arg(long, hide = true)]
    core: Option<usize>,
}

fn main() -> ExitCode {
    match Sim::parse().run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Sim {
    fn run(self) -> Result<bool> {
        let scenario = match &self.scenario {
            Some(name) => Some(Scenario::find(name).map_err(anyhow::Error::msg)?),
            None => None,
        };
        for name in &self.workloads {
            if !workload::all().contains(&name.as_str()) {
                bail!("there is no workload {name:?}; there are {}", workload::all().join(", "));
            }
        }
        for name in &self.faults {
            if !Fault::ALL.iter().any(|fault| fault.name() == *name) {
                let all: Vec<String> = Fault::ALL.iter().map(|fault| fault.name()).collect();
                bail!("there is no fault {name:?}; there are {}", all.join(", "));
            }
        }
        if let Some(seed) = self.seed {
            let Some(scenario) = scenario else {
                bail!("a seed is replayed in a scenario: give --scenario too");
            };
            return self.replay(seed, scenario);
        }
        if let Some(scenario) = scenario.filter(|scenario| !scenario.is_in_suite()) {
            return self.replay(self.from.unwrap_or(1), scenario);
        }
        let budget = match (self.hours, self.minutes) {
            (Some(hours), _) => Budget::Simulated(Duration::from_secs_f64(hours * 3600.0)),
            (None, Some(minutes)) => Budget::Real(Duration::from_secs_f64(minutes * 60.0)),
            (None, None) => Budget::Seeds(self.seeds),
        };
        let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
        suite::run(&suite::Options {
            budget,
            first_seed: self.from.unwrap_or(if self.hours.is_some() { fresh_seed() } else { 1 }),
            scenario,
            workloads: self.workloads.clone(),
            faults: self.faults.clone(),
            n_jobs: self.jobs.unwrap_or(n_cores),
            twice: self.twice,
            stop_at_failure: self.stop_at_failure,
        })
    }

    fn replay(&self, seed: u64, scenario: &'static Scenario) -> Result<bool> {
        machine::fix_addresses(self.core.unwrap_or(0))?;
        remove_leftovers();
        let root = root_of(std::process::id());
        std::fs::create_dir_all(&root)?;
        let trace_file = match &self.trace {
            Some(path) => Some(machine::leak_fd(std::fs::File::create(path)?)),
            None => None,
        };
        let mut plan = scenario.plan(seed);
        if !self.workloads.is_empty() {
            let all = workload::all().into_iter();
            plan.workloads = all.filter(|name| self.workloads.iter().any(|w| w == name)).collect();
        }
        if !self.faults.is_empty() {
            let all = Fault::ALL.into_iter();
            let chosen = all.filter(|fault| self.faults.contains(&fault.name()));
            plan.faults = chosen.map(|fault| (fault, 1)).collect();
        }
        std::env::set_current_dir(&root)?;
        HEAP.begin_run();
        timeline::listen(&self.log, !self.as_child)?;
        let verdict = run::run(seed, scenario, plan, !self.as_child, trace_file);
        let is_good = verdict.violations.is_empty();
        if self.as_child {
            println!("{}", serde_json::to_string(&verdict)?);
        } else {
            println!(
                "seed {seed}, {}: {:.1} simulated seconds, {} events, trace {:x}",
                scenario.name, verdict.simulated_s, verdict.n_events, verdict.trace
            );
            for (what, n) in &verdict.counts {
                println!("  {n:>9}  {what}");
            }
            verdict.lines.iter().for_each(|line| println!("{line}"));
            for violation in &verdict.violations {
                println!("WRONG: {violation}");
            }
        }
        std::fs::remove_dir_all(&root)?;
        // Threads of dead nodes are still there, and will never end.
        machine::exit(if is_good { 0 } else { 1 });
    }
}

const ROOT_PREFIX: &str = "atoll-sim-";

/// Where runs have their disks: in memory where the system offers it.
fn roots() -> PathBuf {
    let shared = PathBuf::from("/dev/shm");
    if shared.is_dir() { shared } else { std::env::temp_dir() }
}

fn root_of(pid: u32) -> PathBuf {
    roots().join(format!("{ROOT_PREFIX}{pid:010}"))
}

/// What runs that were killed could not remove themselves. Somebody else's, or what another
/// process is removing just now, stays.
fn remove_leftovers() {
    for entry in std::fs::read_dir(roots()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(ROOT_PREFIX)?.parse().ok());
        let is_alive = |pid: u32| PathBuf::from(format!("/proc/{pid}")).exists();
        if pid.is_some_and(|pid| !is_alive(pid)) {
            std::fs::remove_dir_all(entry.path()).ok();
        }
    }
}

/// Far away from the seeds that every suite runs.
#[allow(clippy::disallowed_methods)]
fn fresh_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    1_000_000 + since.map_or(0, |since| since.as_secs()) * 1000
}
