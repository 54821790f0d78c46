//! The project's own commands: `cargo xtask test` reads and judges, `cargo xtask fix` writes,
//! `cargo xtask bench` measures. It builds in seconds and links nothing of the product.

// What runs here is a tool, not the product: its time is the wall's.
#![allow(clippy::disallowed_methods)]

mod bench;
mod tools;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Parser)]
#[command(name = "xtask", about = "Checks, mends and measures Atoll.")]
struct Xtask {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Judge the format, and run all tests: every room by itself, SQL against PostgreSQL, real
    /// clusters under real clients, simulated ones under every fault. Installs what that takes.
    Test {
        /// Only the rooms below SQL: builds in two minutes and installs nothing.
        #[arg(long)]
        quick: bool,
    },
    /// Simulate clusters under every fault; `cargo xtask sim --help` tells what it takes.
    #[command(disable_help_flag = true)]
    Sim {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Judge the lints.
    Lint,
    /// Format, and apply the lints' suggestions.
    Fix,
    /// Measure against others of its kind in the same run.
    Bench {
        #[command(subcommand)]
        bench: Bench,
    },
    /// The gateway bench's load generator: one run, a report in JSON.
    #[command(hide = true)]
    Load(bench::gateway::load::Options),
    /// The gateway bench's servers; they end when standard input does.
    #[command(hide = true)]
    Backend(bench::gateway::backend::Options),
}

#[derive(Subcommand)]
enum Bench {
    /// TPC-B, select-only and COPY: PostgreSQL 15, Atoll in one zone, Atoll in three zones.
    Sql(bench::sql::Options),
    /// Speed, memory, tail and faults of the HTTP gateway: HAProxy, nginx, Envoy, Atoll.
    Gateway(bench::gateway::Options),
    /// How long writes stop when workers are killed: one, two in a row, storms.
    Kills(bench::kills::Options),
}

fn main() -> Result<()> {
    match Xtask::parse().command {
        Task::Test { quick } => test(quick),
        Task::Sim { words } => sim(words.iter().map(String::as_str)),
        Task::Lint => lint(),
        Task::Fix => {
            run(cargo().args(["fmt", "--all"]))?;
            run(cargo().args([
                "clippy",
                "--release",
                "--workspace",
                "--all-targets",
                "--fix",
                "--allow-dirty",
                "--allow-staged",
            ]))
        }
        Task::Bench { bench: Bench::Sql(options) } => bench::sql::run(&options),
        Task::Bench { bench: Bench::Gateway(options) } => bench::gateway::run(&options),
        Task::Bench { bench: Bench::Kills(options) } => bench::kills::run(&options),
        Task::Load(options) => bench::gateway::load::run(&options),
        Task::Backend(options) => bench::gateway::backend::run(&options),
    }
}

fn test(quick: bool) -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args(["test", "--release", "--no-fail-fast"]).args(packages(&LOWER)))?;
    if quick {
        return Ok(());
    }
    tools::install(&tools::TESTS)?;
    // One after the other: each test has the machine, and its clusters' ports, to itself.
    let upper = ["test", "--release", "--no-fail-fast"];
    run(cargo().args(upper).args(packages(&UPPER)).args([
        "--",
        "--test-threads=1",
        "--nocapture",
    ]))?;
    sim(std::iter::empty())
}

fn sim<'a>(words: impl Iterator<Item = &'a str>) -> Result<()> {
    let run = ["run", "--release", "--quiet", "--package", "sim", "--"];
    let status = cargo().args(run).args(words).status()?;
    if !status.success() {
        // It has said why.
        std::process::exit(status.code().unwrap_or(1));
    }
    Ok(())
}

fn lint() -> Result<()> {
    for group in [&LOWER[..], &UPPER] {
        let clippy = ["clippy", "--release", "--all-targets"];
        run(cargo().args(clippy).args(packages(group)).args(["--", "-D", "warnings"]))?;
    }
    Ok(())
}

/// Their tests want tokio's virtual clock. Tested in one command with the others they would
/// change a feature of tokio under DataFusion, and with it build DataFusion once more.
const LOWER: [&str; 8] =
    ["base", "transport", "storage", "cluster", "consensus", "txn", "gateway", "xtask"];
const UPPER: [&str; 4] = ["sql", "query", "node", "sim"];

fn packages(names: &[&'static str]) -> impl Iterator<Item = &'static str> {
    names.iter().flat_map(|name| ["--package", *name])
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What cargo tells this program about itself is not meant for the builds it starts: some
    // dependencies' build scripts look at it, and would be built again with all that rests on them.
    for (name, _) in std::env::vars_os() {
        let told = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        });
        if told {
            command.env_remove(name);
        }
    }
    command.current_dir(root());
    command
}

/// The workspace that this was run from; cargo may have built it in another clone.
fn root() -> PathBuf {
    let own = std::env::var_os("CARGO_MANIFEST_DIR");
    let own = own.map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    own.ancestors().nth(2).unwrap_or(&own).to_path_buf()
}

/// Where cargo puts the binaries of the release profile.
fn release_dir() -> Result<PathBuf> {
    let output = cargo().args(["metadata", "--format-version=1", "--no-deps"]).output()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    match metadata["target_directory"].as_str() {
        Some(dir) => Ok(Path::new(dir).join("release")),
        None => bail!("cargo metadata names no target directory"),
    }
}

fn run(command: &mut Command) -> Result<()> {
    let words: Vec<_> =
        command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    let name = format!("{} {}", command.get_program().to_string_lossy(), words.join(" "));
    eprintln!("== {name}");
    let status = command.status()?;
    if !status.success() {
        bail!("{name}: {status}");
    }
    Ok(())
}
