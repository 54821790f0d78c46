//! What people type. Everything but `up`, `init`, `node`, `cert` and `gateway` asks a running cluster by SQL
//! or by signals.

mod cert;
mod chaos;
mod client;
mod gateway;
mod init;
mod local;
mod password;
mod status;
mod up;

use crate::config::{Config, Settings};
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
    /// Found a cluster over many machines: its first node.
    Init(Box<init::Init>),
    /// Run one node of a cluster over many machines.
    Node(Box<NodeArgs>),
    /// Make certificates: those of the cluster's authority and of its nodes.
    Cert(cert::Cert),
    /// Set a role's password, on the machine of a node.
    Password(password::Password),
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
            Command::Init(init) => init.run(),
            Command::Node(args) => {
                let config = node_config(args.settings, args.config.as_deref())?;
                small_runtime()?.block_on(supervisor::run(config, args.tethered))
            }
            Command::Cert(cert) => cert.run(),
            Command::Password(password) => small_runtime()?.block_on(password.run()),
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

/// Everything said, in flags, variables and the file.
fn node_config(settings: Settings, file: Option<&std::path::Path>) -> Result<Config> {
    let settings = match file {
        Some(path) => settings.with_file(path)?,
        None => settings,
    };
    Ok(settings.complete()?)
}
