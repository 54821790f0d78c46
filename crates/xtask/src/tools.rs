//! What the tests need beyond Rust: PostgreSQL 15 to compare with, psql and pgbench, Python and
//! Node.js for their drivers. Installed from Debian where they are missing.

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;
use xtask::postgres;

/// A file that shows that the package is there, and the package.
const PACKAGES: [(&str, &str); 5] = [
    (postgres::SERVER, "postgresql-15"),
    ("/usr/bin/psql", "postgresql-client-15"),
    ("/usr/bin/pgbench", "postgresql-15"),
    ("/usr/bin/python3", "python3"),
    ("/usr/share/doc/python3-venv", "python3-venv"),
];

pub fn install() -> Result<()> {
    let mut missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(shows, _)| !Path::new(shows).exists())
        .map(|(_, package)| *package)
        .collect();
    if Command::new("npm").arg("--version").output().is_err() {
        missing.extend(["nodejs", "npm"]);
    }
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("== installing {}", missing.join(" "));
    let apt = |words: &[&str]| -> Result<()> {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(words);
        let status = command.status().context("apt-get")?;
        if !status.success() {
            bail!(
                "apt-get {}: {status}; install these by hand: {}",
                words.join(" "),
                missing.join(" ")
            );
        }
        Ok(())
    };
    // Debian's package starts a server of its own when it is installed; ours are the tests'.
    apt(&["update", "-qq"])?;
    let mut words = vec!["install", "-y", "-qq", "--no-install-recommends"];
    words.extend(&missing);
    apt(&words)
}
