//! `atoll chaos`: what breaks in production, on purpose and at once.

use super::Result;
use super::local::{Plan, node_dir, process, requests_dir};
use clap::{Args, Subcommand};
use nix::sys::signal::{Signal, kill};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
pub struct Chaos {
    #[command(subcommand)]
    action: Action,
    /// Where the cluster keeps its data.
    #[arg(
        long,
        env = "ATOLL_DATA",
        default_value = "atoll-data",
        value_name = "DIR",
        global = true
    )]
    data: PathBuf,
    /// Answer in JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Action {
    /// SIGKILL to a node's supervisor and worker.
    Kill {
        /// The node's number, from 1.
        node: u16,
        /// Only the worker: its supervisor starts it again.
        #[arg(long)]
        worker: bool,
    },
    /// SIGSTOP to a node's processes: it hangs, with its connections open.
    Pause { node: u16 },
    /// SIGCONT: it goes on where it stood.
    Resume { node: u16 },
    /// Starts a node that was killed.
    Start { node: u16 },
}

impl Chaos {
    pub fn run(self) -> Result<ExitCode> {
        let data = std::path::absolute(&self.data)?;
        let plan = Plan::require(&data)?;
        let (node, done) = match self.action {
            Action::Kill { node, worker: true } => {
                (node, self::signal(&plan, &data, node, &["worker.pid"], Signal::SIGKILL)?)
            }
            Action::Kill { node, .. } => {
                (node, self::signal(&plan, &data, node, &BOTH, Signal::SIGKILL)?)
            }
            Action::Pause { node } => {
                (node, self::signal(&plan, &data, node, &BOTH, Signal::SIGSTOP)?)
            }
            Action::Resume { node } => {
                (node, self::signal(&plan, &data, node, &BOTH, Signal::SIGCONT)?)
            }
            Action::Start { node } => (node, start(&plan, &data, node)?),
        };
        match self.json {
            true => println!("{}", serde_json::json!({ "node": node, "done": done })),
            false => println!("node {node}: {done}"),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The supervisor first, so that it does not act on what happens to its worker.
const BOTH: [&str; 2] = ["supervisor.pid", "worker.pid"];

fn signal(
    plan: &Plan,
    data: &std::path::Path,
    node: u16,
    names: &[&str],
    signal: Signal,
) -> Result<String> {
    plan.node(node)?;
    let dir = node_dir(data, node);
    let mut hit = Vec::new();
    for name in names {
        if let Some(pid) = process(&dir, name) {
            kill(pid, signal)?;
            hit.push(format!("{} {pid}", name.trim_end_matches(".pid")));
        }
    }
    match hit.is_empty() {
        true => Err(format!("node {node} does not run").into()),
        false => Ok(format!("{signal} to {}", hit.join(" and "))),
    }
}

fn start(plan: &Plan, data: &std::path::Path, node: u16) -> Result<String> {
    plan.node(node)?;
    if process(&node_dir(data, node), "supervisor.pid").is_some() {
        return Err(format!("node {node} already runs").into());
    }
    let home = crate::identity::Home::open(data)?;
    if home.lock().is_ok() {
        return Err(
            format!("no `atoll up` runs in {}: it is what starts nodes", data.display()).into()
        );
    }
    std::fs::write(requests_dir(data).join(format!("start-{node}")), "")?;
    Ok("will be started".into())
}
