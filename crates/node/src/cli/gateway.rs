//! `atoll gateway`: the front door as a process of its own; it needs no cluster.

use super::Result;
use crate::worker::log_to_stderr;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
pub struct Gateway {
    /// The TOML file that says where to listen, and which services there are.
    #[arg(long, env = "ATOLL_GATEWAY_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// Only say whether the file is right.
    #[arg(long)]
    check: bool,
    /// What to log, such as `info` or `warn,gateway=debug`.
    #[arg(long, env = "ATOLL_LOG", default_value = "info")]
    log: String,
}

impl Gateway {
    pub fn run(self) -> Result<ExitCode> {
        log_to_stderr(&self.log)?;
        if self.check {
            let config = gateway::process::check(&self.config)?;
            let (n_services, n_routes) = (config.services.len(), config.routes.len());
            println!("{}: {n_services} services, {n_routes} routes", self.config.display());
            return Ok(ExitCode::SUCCESS);
        }
        Ok(gateway::process::run(&self.config)?)
    }
}
