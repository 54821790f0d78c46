//! `atoll cert`: the cluster's authority and the certificates of its nodes.

use super::Result;
use crate::certificates::{self, AUTHORITY_DAYS, NODE_DAYS, Pair};
use base::Env;
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
pub struct Cert {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make the authority of a new cluster: authority.pem and authority.key. Once, on a machine of your own.
    Authority {
        /// Where the authority is kept.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// How long it is good.
        #[arg(long, default_value_t = AUTHORITY_DAYS, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
    /// Make the certificate of a node, NAME.pem and NAME.key; the same command renews it.
    Node {
        /// The node's name, which it keeps: letters, digits, `-`, `_` and `.`.
        name: String,
        /// A name or address at which SQL clients reach it. When it is renewed, those that it had.
        #[arg(long = "host", value_name = "HOST", value_delimiter = ',')]
        hosts: Vec<String>,
        /// Where the authority is kept.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// How long it is good.
        #[arg(long, default_value_t = NODE_DAYS, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
    /// Tell what a certificate says.
    Show { file: PathBuf },
}

impl Cert {
    pub fn run(self) -> Result<ExitCode> {
        let env = Env::real();
        match self.action {
            Action::Authority { dir, days } => {
                let Pair { certificate, key } = certificates::make_authority(&env, &dir, days)?;
                println!("{} goes to every node", certificate.display());
                println!("{} stays here: whoever has it can add nodes", key.display());
            }
            Action::Node { name, hosts, dir, days } => {
                let Pair { certificate, key } =
                    certificates::make_node(&env, &dir, &name, &hosts, days)?;
                let facts = certificates::facts(&certificate)?;
                println!("{} and", certificate.display());
                println!("{} go to the node {name:?}, with authority.pem", key.display());
                println!("for {}; good until {}", facts.hosts.join(", "), facts.expires);
            }
            Action::Show { file } => {
                let facts = certificates::facts(&file)?;
                println!("name       {}", facts.name);
                println!("authority  {}", facts.authority);
                println!("hosts      {}", facts.hosts.join(", "));
                println!("good from  {}", facts.begins);
                let state =
                    if certificates::is_good_for(&env, &file, 0) { "" } else { " (expired)" };
                println!("good until {}{state}", facts.expires);
                println!(
                    "signs      {}",
                    if facts.is_authority { "certificates" } else { "nothing" }
                );
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
