//! `atoll status`: the nodes and the tablets, as the schema `atoll` shows them.

use super::{Result, client};
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
pub struct Status {
    /// Where the cluster keeps its data.
    #[arg(long, env = "ATOLL_DATA", default_value = "atoll-data", value_name = "DIR")]
    data: PathBuf,
    /// Answer in JSON.
    #[arg(long)]
    json: bool,
}

const NODES: &str =
    "SELECT id, zone, state, address, sql_address, boot, since FROM atoll.nodes ORDER BY id";
const TABLETS: &str = "SELECT id, start_key, leader, replicas, zones, size_bytes, applied_index \
                       FROM atoll.tablets ORDER BY start_key";

impl Status {
    pub async fn run(self) -> Result<ExitCode> {
        let connection = client::connect(&std::path::absolute(&self.data)?).await?;
        let (node_columns, nodes) = client::rows(&connection, NODES).await?;
        let (tablet_columns, tablets) = client::rows(&connection, TABLETS).await?;
        if self.json {
            let all = |columns: &[String], rows: &[Vec<Option<String>>]| {
                rows.iter().map(|row| client::json(columns, row)).collect::<Vec<_>>()
            };
            let status = serde_json::json!({
                "nodes": all(&node_columns, &nodes),
                "tablets": all(&tablet_columns, &tablets),
            });
            println!("{status}");
        } else {
            println!(
                "{}\n\n{}",
                client::table(&node_columns, &nodes),
                client::table(&tablet_columns, &tablets)
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}
