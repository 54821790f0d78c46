//! Many runs: each in a process of its own, on one core each, judged together.
//!
//! The first seed of each scenario runs twice, and must tell the same both times. Seeds that once
//! found a bug come first; each change of the program deals them other cards, so what they found
//! is also told by a test of its own.
//!
//! A run is killed when it takes far longer than any should, and counts as failed. What fails
//! prints the line that replays it.

use crate::run::Verdict;
use crate::scenario::{REGRESSIONS, SCENARIOS, SCRIPTS, Scenario};
use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A run in real time, at most.
const RUN_MAX: Duration = Duration::from_secs(600);
/// A progress line this often.
const TELL_EVERY: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug)]
pub enum Budget {
    /// Every scenario with so many seeds.
    Seeds(u64),
    /// Until so much time was simulated.
    Simulated(Duration),
    /// Until so much real time has passed.
    Real(Duration),
}

pub struct Options {
    pub budget: Budget,
    pub first_seed: u64,
    /// Only this one, or all.
    pub scenario: Option<&'static Scenario>,
    /// Instead of those that the seeds draw.
    pub workloads: Vec<String>,
    /// Instead of the scenarios'.
    pub faults: Vec<String>,
    pub n_jobs: usize,
    /// Each seed twice: both must tell the same.
    pub twice: bool,
    /// End at the first failure.
    pub stop_at_failure: bool,
}

#[derive(Default)]
struct Sum {
    n_runs: u64,
    simulated_s: f64,
    failures: Vec<Verdict>,
    counts: BTreeMap<String, u64>,
}

/// Runs them; false if one failed.
#[allow(clippy::disallowed_methods)]
pub fn run(options: &Options) -> Result<bool> {
    let begun = Instant::now();
    let sum = Mutex::new(Sum::default());
    let next = AtomicU64::new(0);
    let scenarios: Vec<&Scenario> = match options.scenario {
        Some(scenario) => vec![scenario],
        None => SCENARIOS.iter().filter(|scenario| scenario.is_in_suite()).collect(),
    };
    let n_scenarios = scenarios.len() as u64;
    // A scenario by name, or a soak, is after something else.
    let known: Vec<(u64, &str)> = match (options.scenario, options.budget) {
        (None, Budget::Seeds(_)) => SCRIPTS.iter().chain(&REGRESSIONS).copied().collect(),
        _ => Vec::new(),
    };
    let n_known = known.len() as u64;
    let goes_on = |n: u64| {
        let sum = sum.lock();
        let failed = options.stop_at_failure && !sum.failures.is_empty();
        let more = match options.budget {
            Budget::Seeds(n_seeds) => n < n_known + n_seeds * n_scenarios,
            Budget::Simulated(time) => sum.simulated_s < time.as_secs_f64(),
            Budget::Real(time) => begun.elapsed() < time,
        };
        more && !failed
    };
    std::thread::scope(|scope| {
        for job in 0..options.n_jobs {
            let (sum, next, scenarios, goes_on) = (&sum, &next, &scenarios, &goes_on);
            let known = &known;
            scope.spawn(move || {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if !goes_on(n) {
                        return;
                    }
                    let (seed, scenario) = match known.get(n as usize) {
                        Some((seed, name)) => (*seed, Scenario::find(name).unwrap_or(scenarios[0])),
                        None => {
                            let n = n - n_known;
                            let scenario = scenarios[(n % n_scenarios) as usize];
                            (options.first_seed + n / n_scenarios, scenario)
                        }
                    };
                    let is_first = n >= n_known && n - n_known < n_scenarios;
                    let verdict = judged(seed, scenario, job, options, options.twice || is_first);
                    add(&mut sum.lock(), verdict);
                }
            });
        }
        scope.spawn(|| {
            let mut told = Instant::now();
            while goes_on(next.load(Ordering::Relaxed)) {
                std::thread::sleep(Duration::from_millis(200));
                if told.elapsed() >= TELL_EVERY {
                    told = Instant::now();
                    let sum = sum.lock();
                    eprintln!(
                        "{:>6.0} s: {} runs, {:.2} simulated hours, {} failed",
                        begun.elapsed().as_secs_f64(),
                        sum.n_runs,
                        sum.simulated_s / 3600.0,
                        sum.failures.len()
                    );
                }
            }
        });
    });
    let sum = sum.into_inner();
    report(&sum, begun.elapsed());
    Ok(sum.failures.is_empty())
}

fn add(sum: &mut Sum, verdict: Verdict) {
    sum.n_runs += 1;
    sum.simulated_s += verdict.simulated_s;
    for (what, n) in &verdict.counts {
        *sum.counts.entry(what.clone()).or_default() += n;
    }
    if !verdict.violations.is_empty() {
        println!("FAILED  cargo xtask sim --seed {} --scenario {}", verdict.seed, verdict.scenario);
        for violation in &verdict.violations {
            println!("        {violation}");
        }
        sum.failures.push(verdict);
    }
}

fn report(sum: &Sum, took: Duration) {
    let minutes = took.as_secs_f64() / 60.0;
    println!(
        "{} runs, {:.2} simulated hours in {minutes:.1} minutes ({:.1} simulated hours a minute), \
         {} failed",
        sum.n_runs,
        sum.simulated_s / 3600.0,
        sum.simulated_s / 3600.0 / minutes.max(1e-6),
        sum.failures.len()
    );
    for (what, n) in &sum.counts {
        println!("  {n:>9}  {what}");
    }
    for failure in &sum.failures {
        println!(
            "replay:  cargo xtask sim --seed {} --scenario {}",
            failure.seed, failure.scenario
        );
    }
}

/// One run, or two that must tell the same.
fn judged(seed: u64, scenario: &Scenario, job: usize, options: &Options, twice: bool) -> Verdict {
    let failed = |error: anyhow::Error| Verdict {
        seed,
        scenario: scenario.name.into(),
        violations: vec![format!("{error:#}")],
        lines: Vec::new(),
        simulated_s: 0.0,
        n_events: 0,
        trace: 0,
        counts: BTreeMap::new(),
    };
    let mut verdict = child(seed, scenario, job, options).unwrap_or_else(failed);
    if twice {
        let again = child(seed, scenario, job, options).unwrap_or_else(failed);
        let told = |v: &Verdict| (v.n_events, v.trace, v.violations.clone());
        if told(&again) != told(&verdict) {
            verdict.violations.push(format!(
                "not repeatable: {} events with trace {:x}, then {} with {:x}",
                verdict.n_events, verdict.trace, again.n_events, again.trace
            ));
        }
    }
    verdict
}

fn child(seed: u64, scenario: &Scenario, job: usize, options: &Options) -> Result<Verdict> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--seed", &seed.to_string(), "--scenario", scenario.name, "--as-child"]);
    command.args(["--core", &job.to_string()]);
    for (option, names) in [("--workloads", &options.workloads), ("--faults", &options.faults)] {
        if !names.is_empty() {
            command.args([option, &names.join(",")]);
        }
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (out, err, status) = std::thread::scope(|scope| -> Result<_> {
        let reading = scope.spawn(move || read(out));
        let listening = scope.spawn(move || read(err));
        let status = wait(&mut child)?;
        let text =
            |reading: std::thread::ScopedJoinHandle<'_, String>| reading.join().unwrap_or_default();
        Ok((text(reading), text(listening), status))
    })?;
    let verdict = out.lines().last().and_then(|line| serde_json::from_str(line).ok());
    match verdict {
        Some(verdict) => Ok(verdict),
        None => {
            let last: Vec<&str> = err.lines().rev().take(12).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            bail!("the run ended with {status} and without a verdict:\n{}", last.join("\n"))
        }
    }
}

fn read(from: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        from.read_to_end(&mut bytes).ok();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[allow(clippy::disallowed_methods)]
fn wait(child: &mut Child) -> Result<String> {
    let deadline = Instant::now() + RUN_MAX;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.to_string());
        }
        if Instant::now() > deadline {
            child.kill().context("a run that does not end")?;
            child.wait()?;
            return Ok(format!("a kill after {RUN_MAX:?}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
