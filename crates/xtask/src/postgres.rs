//! A PostgreSQL 15 of our own, in a temporary directory, on a port of its own.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub const BIN: &str = "/usr/lib/postgresql/15/bin";
pub const SERVER: &str = "/usr/lib/postgresql/15/bin/postgres";

pub struct Postgres {
    dir: PathBuf,
    pub port: u16,
}

/// PostgreSQL refuses to run as root; Debian's package brings a user for it.
fn as_postgres(program: &str) -> Command {
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    let program = format!("{BIN}/{program}");
    if !is_root {
        return Command::new(program);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--", &program]);
    command
}

impl Postgres {
    /// Everything durable: `fsync` and `synchronous_commit` stay on, as they are by default.
    pub fn start(dir: &Path, port: u16) -> Result<Postgres> {
        std::fs::create_dir_all(dir)?;
        // Whoever owns the server must own its directory.
        Command::new("chown").arg("postgres").arg(dir).status().ok();
        let data = dir.join("pg");
        let quiet = |command: &mut Command| -> Result<()> {
            let output =
                command.stdin(Stdio::null()).current_dir("/").output().context("PostgreSQL")?;
            if !output.status.success() {
                bail!("{}", String::from_utf8_lossy(&output.stderr));
            }
            Ok(())
        };
        quiet(
            as_postgres("initdb")
                .args(["-A", "trust", "-U", "atoll", "--no-locale", "-E", "UTF8", "-D"])
                .arg(&data),
        )?;
        let options = format!(
            "-p {port} -k {} -c listen_addresses=127.0.0.1 -c max_connections=100",
            dir.display()
        );
        let mut start = as_postgres("pg_ctl");
        start
            .args(["start", "-w", "-o", &options, "-l"])
            .arg(dir.join("pg.log"))
            .arg("-D")
            .arg(&data);
        let status = start
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .status()?;
        if !status.success() {
            bail!("PostgreSQL does not start: see {}", dir.join("pg.log").display());
        }
        let server = Postgres { dir: dir.into(), port };
        quiet(Command::new("psql").args([
            "-h",
            "127.0.0.1",
            "-p",
            &port.to_string(),
            "-U",
            "atoll",
            "postgres",
            "-c",
            "CREATE DATABASE atoll",
        ]))?;
        Ok(server)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let mut stop = as_postgres("pg_ctl");
        stop.args(["stop", "-m", "immediate", "-D"]).arg(self.dir.join("pg"));
        if let Err(error) = stop.stdout(Stdio::null()).current_dir("/").status() {
            eprintln!("PostgreSQL may still run on port {}: {error}", self.port);
        }
    }
}
