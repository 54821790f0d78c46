//! What people type. Everything but `up`, `node` and `gateway` asks a running cluster by SQL or by
//! signals.

mod chaos;
mod client;
mod gateway;
mod local;
mod status;
mod up;

use crate::config::Settings;
use crate::{supervisor, worker};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// One fault-tolerant computer out of many machines.
#[derive(Parser)]
#[command(name = "atoll", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a whole cluster of real processes on this machine.
    Up(up::Up),
    /// Run one node of a cluster over many machines.
    Node(Box<NodeArgs>),
    /// Run an HTTP gateway over zones of servers; needs no cluster.
    Gateway(gateway::Gateway),
    /// Show the nodes and tablets.
    Status(status::Status),
    /// Send SQL to a local cluster: from -c, or statement by statement from standard input.
    Sql(client::Sql),
    /// Break a local cluster on purpose.
    Chaos(chaos::Chaos),
    #[command(hide = true)]
    Worker {
        #[arg(long)]
        data: PathBuf,
    },
}

#[derive(Args)]
struct NodeArgs {
    /// A TOML file with settings.
    #[arg(long, env = "ATOLL_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// Stop when standard input ends.
    #[arg(long, hide = true)]
    tethered: bool,
}

impl Cli {
    pub fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Up(up) => small_runtime()?.block_on(up.run()),
            Command::Node(args) => {
                let settings = match &args.config {
                    Some(path) => args.settings.with_file(path)?,
                    None => args.settings,
                };
                let config = settings.complete()?;
                small_runtime()?.block_on(supervisor::run(config, args.tethered))
            }
            Command::Gateway(gateway) => gateway.run(),
            Command::Status(status) => small_runtime()?.block_on(status.run()),
            Command::Sql(sql) => small_runtime()?.block_on(sql.run()),
            Command::Chaos(chaos) => chaos.run(),
            Command::Worker { data: _ } => Ok(worker::main()?),
        }
    }
}

/// For processes that mostly wait.
fn small_runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
