//! `atoll init`: founds a cluster of one node, to which others are joined. Whom the settings name to join is
//! not asked; once the others are there, the founder finds them by those names too.

use super::{Result, node_config, small_runtime};
use crate::config::{Config, Settings};
use crate::identity::Home;
use crate::supervisor;
use base::{Env, NodeId, Zone};
use clap::Args;
use cluster::{NodeRow, Topology};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
pub struct Init {
    /// A TOML file with settings.
    #[arg(long, env = "ATOLL_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// Only lay out the data directory; `atoll node` runs it.
    #[arg(long)]
    no_start: bool,
}

impl Init {
    pub fn run(self) -> Result<ExitCode> {
        let config = node_config(self.settings, self.config.as_deref())?;
        found(&Env::real(), &config)?;
        let data = config.data.display();
        println!(
            "A cluster is founded: its first node is in zone {:?}, data in {data}.",
            config.zone
        );
        println!("It is joined from other machines with:");
        println!("  atoll node --join {} --zone ZONE …", config.listen);
        println!(
            "A table is replicated once nodes of three zones are there; `atoll status` tells."
        );
        println!("The first role gets its password with:");
        println!("  atoll password {} --data {data}", sql::engine::FIRST_USER);
        if self.no_start {
            println!("Start it with: atoll node, with the same settings.");
            return Ok(ExitCode::SUCCESS);
        }
        println!("It runs now; from the next start on, use `atoll node` with the same settings.");
        small_runtime()?.block_on(supervisor::run(config, false))
    }
}

fn found(env: &Env, config: &Config) -> Result<()> {
    // Before anything is written: what is wrong with certificates is told now.
    let tls = config.load_tls()?.ok_or("a founder needs certificates")?;
    let home = Home::open(&config.data)?;
    let _lock = home.lock()?;
    if let Some(identity) = home.identity()? {
        return Err(format!(
            "{} is the data of node {} of a cluster already: `atoll node` runs it",
            config.data.display(),
            identity.node
        )
        .into());
    }
    let own = NodeRow {
        id: NodeId(1),
        zone: Zone(config.zone.clone()),
        peer_address: config.listen,
        sql_address: config.sql_listen,
        boot: 0,
        since_us: env.wall_us(),
        ticket: 0,
        replaced_by: None,
        name: Some(tls.name()),
    };
    let founders = Topology::of([own.clone()]);
    home.found(env.random().max(1), &own, &founders)?;
    Ok(())
}
