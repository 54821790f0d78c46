//! `atoll sql`, and what the other commands use to ask a local cluster.

use super::Result;
use super::local::{Plan, PlannedNode, node_dir};
use crate::identity;
use clap::Args;
use std::io::{BufRead, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio_postgres::{NoTls, SimpleQueryMessage};

const CONNECT: Duration = Duration::from_secs(2);

#[derive(Args)]
pub struct Sql {
    /// Run this and end.
    #[arg(short, long, value_name = "SQL")]
    command: Option<String>,
    /// Where the cluster keeps its data.
    #[arg(long, env = "ATOLL_DATA", default_value = "atoll-data", value_name = "DIR")]
    data: PathBuf,
    /// Print rows as JSON, one object a line.
    #[arg(long)]
    json: bool,
}

/// Does the node answer?
pub async fn answers(data: &Path, node: &PlannedNode) -> bool {
    let Ok(client) = connect_node(data, node).await else { return false };
    matches!(tokio::time::timeout(CONNECT, client.simple_query("SELECT 1")).await, Ok(Ok(_)))
}

/// Through the node's door on this machine if it has one, which asks for no password.
pub async fn connect_node(data: &Path, node: &PlannedNode) -> Result<tokio_postgres::Client> {
    let door = identity::door(&node_dir(data, node.number));
    if door.exists()
        && let Ok(Ok(client)) = tokio::time::timeout(CONNECT, connect_local(&door)).await
    {
        return Ok(client);
    }
    match tokio::time::timeout(CONNECT, connect_to(node.sql_address)).await {
        Ok(connected) => connected,
        Err(_) => Err(format!("node {} does not answer", node.number).into()),
    }
}

/// `door`: the path of the socket, as psql wants it: a directory and a port.
async fn connect_local(door: &Path) -> Result<tokio_postgres::Client> {
    let mut config = tokio_postgres::Config::new();
    let user = sql::engine::FIRST_USER;
    let dir = door.parent().ok_or("a door is in a directory")?;
    config.host_path(dir).port(identity::DOOR_PORT).user(user).dbname(user);
    connect_by(&config).await
}

async fn connect_to(at: SocketAddr) -> Result<tokio_postgres::Client> {
    let mut config = tokio_postgres::Config::new();
    let user = sql::engine::FIRST_USER;
    config.host(at.ip().to_string()).port(at.port()).user(user).dbname(user);
    if let Ok(password) = std::env::var("ATOLL_PASSWORD") {
        config.password(password);
    }
    connect_by(&config).await
}

async fn connect_by(config: &tokio_postgres::Config) -> Result<tokio_postgres::Client> {
    let (client, connection) = config.connect(NoTls).await?;
    base::Env::real().spawn("sql client", async move {
        // The client sees the error of the statement it interrupts.
        connection.await.ok();
    });
    Ok(client)
}

/// Connects to the first node of the cluster in `data` that answers; or to the node whose data that is.
pub async fn connect(data: &Path) -> Result<tokio_postgres::Client> {
    let door = identity::door(data);
    if door.exists() {
        return connect_local(&door).await.map_err(|error| {
            format!("the node in {} does not answer: {error}; does it run?", data.display()).into()
        });
    }
    let plan = Plan::require(data)?;
    for node in &plan.nodes {
        if let Ok(client) = connect_node(data, node).await {
            return Ok(client);
        }
    }
    Err(format!("no node of the cluster in {} answers: is `atoll up` running?", data.display())
        .into())
}

/// The message of a server's error with its details, on one line each.
pub fn explain(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        None => error.to_string(),
        Some(error) => {
            let mut text =
                format!("{}: {} ({})", error.severity(), error.message(), error.code().code());
            for (name, more) in [("DETAIL", error.detail()), ("HINT", error.hint())] {
                if let Some(more) = more {
                    text.push_str(&format!("\n{name}: {more}"));
                }
            }
            text
        }
    }
}

/// A query's rows as text, with their columns' names.
pub async fn rows(
    client: &tokio_postgres::Client,
    query: &str,
) -> Result<(Vec<String>, Vec<Vec<Option<String>>>)> {
    let mut columns = Vec::new();
    let mut rows = Vec::new();
    for message in client.simple_query(query).await.map_err(|error| explain(&error))? {
        match message {
            SimpleQueryMessage::RowDescription(described) => {
                columns = described.iter().map(|column| column.name().to_owned()).collect();
            }
            SimpleQueryMessage::Row(row) => {
                rows.push((0..row.len()).map(|n| row.get(n).map(str::to_owned)).collect());
            }
            _ => {}
        }
    }
    Ok((columns, rows))
}

/// Rows under their columns' names, each column as wide as its widest value.
pub fn table(columns: &[String], rows: &[Vec<Option<String>>]) -> String {
    let shown = |value: &Option<String>| value.clone().unwrap_or_default();
    let widths: Vec<usize> = (0..columns.len())
        .map(|n| {
            let cells =
                rows.iter().filter_map(|row| row.get(n)).map(|cell| shown(cell).chars().count());
            cells.chain([columns[n].chars().count()]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: Vec<String>| {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut out = line(columns.to_vec());
    for row in rows {
        out.push('\n');
        out.push_str(&line(row.iter().map(shown).collect()));
    }
    out
}

pub fn json(columns: &[String], row: &[Option<String>]) -> serde_json::Value {
    columns
        .iter()
        .cloned()
        .zip(row.iter().map(|cell| serde_json::json!(cell)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

impl Sql {
    pub async fn run(self) -> Result<ExitCode> {
        let client = connect(&std::path::absolute(&self.data)?).await?;
        if let Some(command) = &self.command {
            self.send(&client, command).await?;
            return Ok(ExitCode::SUCCESS);
        }
        let stdin = std::io::stdin();
        let asks = stdin.is_terminal();
        let mut code = ExitCode::SUCCESS;
        let mut statement = String::new();
        loop {
            if asks {
                print!("{}", if statement.is_empty() { "atoll> " } else { "    -> " });
                std::io::stdout().flush()?;
            }
            let mut line = String::new();
            let ended = stdin.lock().read_line(&mut line)? == 0;
            statement.push_str(&line);
            let whole =
                statement.trim_end().ends_with(';') || (ended && !statement.trim().is_empty());
            if whole {
                if let Err(error) = self.send(&client, &statement).await {
                    eprintln!("{error}");
                    code = ExitCode::FAILURE;
                }
                statement.clear();
            }
            if ended {
                return Ok(code);
            }
        }
    }

    async fn send(&self, client: &tokio_postgres::Client, text: &str) -> Result<()> {
        let mut columns: Vec<String> = Vec::new();
        let mut found: Vec<Vec<Option<String>>> = Vec::new();
        let messages = client.simple_query(text).await.map_err(|error| explain(&error))?;
        for message in messages {
            match message {
                SimpleQueryMessage::RowDescription(described) => {
                    columns = described.iter().map(|column| column.name().to_owned()).collect();
                }
                SimpleQueryMessage::Row(row) => {
                    found.push((0..row.len()).map(|n| row.get(n).map(str::to_owned)).collect());
                }
                SimpleQueryMessage::CommandComplete(n_rows) => {
                    if columns.is_empty() {
                        if !self.json {
                            println!("done, {n_rows} rows");
                        }
                    } else if self.json {
                        found.iter().for_each(|row| println!("{}", json(&columns, row)));
                    } else {
                        println!("{}\n({} rows)", table(&columns, &found), found.len());
                    }
                    columns.clear();
                    found.clear();
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_value() {
        let columns = ["id".to_owned(), "zone".into()];
        let rows =
            vec![vec![Some("1".into()), Some("north".into())], vec![Some("12".into()), None]];
        assert_eq!(table(&columns, &rows), "id  zone\n1   north\n12");
    }
}
