//! What a node is told: flags win over `ATOLL_*` variables, those over one TOML file, that over
//! the defaults.

use base::Limits;
use clap::Args;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The keys of the file are the names of the flags, with `_` for `-`.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
pub struct Settings {
    /// The failure domain this machine is in.
    #[arg(long, env = "ATOLL_ZONE")]
    pub zone: Option<String>,
    /// Where the node keeps its data.
    #[arg(long, env = "ATOLL_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Peers through which a new node asks to be let in.
    #[arg(long, env = "ATOLL_JOIN", value_name = "HOST:PORT", value_delimiter = ',')]
    pub join: Option<Vec<SocketAddr>>,
    /// Where the node listens for its peers.
    #[arg(long, env = "ATOLL_LISTEN", value_name = "HOST:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where the node listens for SQL.
    #[arg(long, env = "ATOLL_SQL_LISTEN", value_name = "HOST:PORT")]
    pub sql_listen: Option<SocketAddr>,
    /// How SQL clients prove who they are: `trust` or `scram`.
    #[arg(long, env = "ATOLL_AUTH")]
    pub auth: Option<AuthMethod>,
    /// How long old versions of rows are kept, in seconds.
    #[arg(long, env = "ATOLL_RETENTION_S", value_name = "SECONDS")]
    pub retention_s: Option<u64>,
    /// Memory for blocks read from disk, in MiB.
    #[arg(long, env = "ATOLL_CACHE_MIB", value_name = "MIB")]
    pub cache_mib: Option<u64>,
    /// Memory that SQL clients may make the node keep, in MiB.
    #[arg(long, env = "ATOLL_MEMORY_MIB", value_name = "MIB")]
    pub memory_mib: Option<u64>,
    /// What to log, such as `info` or `warn,txn=debug`.
    #[arg(long, env = "ATOLL_LOG")]
    pub log: Option<String>,
    /// Certificates of the cluster's own authority (PEM).
    #[arg(long, env = "ATOLL_TLS_AUTHORITY", value_name = "FILE")]
    pub tls_authority: Option<PathBuf>,
    /// This node's certificate chain (PEM).
    #[arg(long, env = "ATOLL_TLS_CERTIFICATE", value_name = "FILE")]
    pub tls_certificate: Option<PathBuf>,
    /// This node's private key (PEM).
    #[arg(long, env = "ATOLL_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, clap::ValueEnum, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum AuthMethod {
    Trust,
    Scram,
}

fn memory_mib() -> u64 {
    (Limits::default().memory_bytes >> 20) as u64
}

/// With less, hardly a query runs.
const MEMORY_MIB_MIN: u64 = 32;

const KEYS: [&str; 13] = [
    "zone",
    "data",
    "join",
    "listen",
    "sql_listen",
    "auth",
    "retention_s",
    "cache_mib",
    "memory_mib",
    "log",
    "tls_authority",
    "tls_certificate",
    "tls_key",
];

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {message}", path.display())]
    Syntax { path: PathBuf, message: String },
    #[error("{}: there is no setting {key:?}{}", path.display(), nearest(key))]
    UnknownKey { path: PathBuf, key: String },
    #[error("a node needs {0}: give the flag --{1}, ATOLL_{2} or the setting in the file")]
    Missing(&'static str, &'static str, &'static str),
    #[error("--{0} needs the two others of --tls-authority, --tls-certificate and --tls-key")]
    HalfTls(&'static str),
    #[error(
        "{0} is reachable from other hosts, and peers would speak without TLS: give \
         --tls-authority, --tls-certificate and --tls-key, or listen on a loopback address"
    )]
    OpenWithoutTls(SocketAddr),
}

fn nearest(key: &str) -> String {
    let close = KEYS.iter().min_by_key(|known| strsim::levenshtein(known, key));
    close.map(|known| format!(", did you mean {known:?}?")).unwrap_or_default()
}

impl Settings {
    /// Fills what is not set from the file.
    pub fn with_file(self, path: &Path) -> Result<Settings, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.into(), source })?;
        let syntax = |message: String| Error::Syntax { path: path.into(), message };
        let table: toml::Table =
            text.parse().map_err(|error: toml::de::Error| syntax(error.to_string()))?;
        if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(Error::UnknownKey { path: path.into(), key: key.clone() });
        }
        let file: Settings = table.try_into().map_err(|error| syntax(error.to_string()))?;
        Ok(Settings {
            zone: self.zone.or(file.zone),
            data: self.data.or(file.data),
            join: self.join.or(file.join),
            listen: self.listen.or(file.listen),
            sql_listen: self.sql_listen.or(file.sql_listen),
            auth: self.auth.or(file.auth),
            retention_s: self.retention_s.or(file.retention_s),
            cache_mib: self.cache_mib.or(file.cache_mib),
            memory_mib: self.memory_mib.or(file.memory_mib),
            log: self.log.or(file.log),
            tls_authority: self.tls_authority.or(file.tls_authority),
            tls_certificate: self.tls_certificate.or(file.tls_certificate),
            tls_key: self.tls_key.or(file.tls_key),
        })
    }

    /// Checks that it is whole, and puts defaults where nothing is said.
    pub fn complete(self) -> Result<Config, Error> {
        let tls = match (self.tls_authority, self.tls_certificate, self.tls_key) {
            (Some(authority), Some(certificate), Some(key)) => {
                Some(Tls { authority, certificate, key })
            }
            (None, None, None) => None,
            (Some(_), ..) => return Err(Error::HalfTls("tls-authority")),
            (_, Some(_), _) => return Err(Error::HalfTls("tls-certificate")),
            (.., Some(_)) => return Err(Error::HalfTls("tls-key")),
        };
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let listen = self.listen.unwrap_or_else(|| loopback(7401));
        let sql_listen = self.sql_listen.unwrap_or_else(|| loopback(5433));
        if tls.is_none() && !listen.ip().is_loopback() {
            return Err(Error::OpenWithoutTls(listen));
        }
        let by_place = match sql_listen.ip().is_loopback() {
            true => AuthMethod::Trust,
            false => AuthMethod::Scram,
        };
        Ok(Config {
            zone: self.zone.ok_or(Error::Missing("a zone", "zone", "ZONE"))?,
            data: self.data.ok_or(Error::Missing("a data directory", "data", "DATA"))?,
            join: self.join.unwrap_or_default(),
            listen,
            sql_listen,
            auth: self.auth.unwrap_or(by_place),
            retention_s: self.retention_s.unwrap_or(600),
            cache_mib: self.cache_mib.unwrap_or(32),
            memory_mib: self.memory_mib.unwrap_or_else(memory_mib).max(MEMORY_MIB_MIN),
            log: self.log.unwrap_or_else(|| "info,openraft=error".into()),
            tls,
        })
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Tls {
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Everything said.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Config {
    pub zone: String,
    pub data: PathBuf,
    pub join: Vec<SocketAddr>,
    pub listen: SocketAddr,
    pub sql_listen: SocketAddr,
    pub auth: AuthMethod,
    pub retention_s: u64,
    pub cache_mib: u64,
    /// A supervisor that was started by an older program does not name it.
    #[serde(default = "memory_mib")]
    pub memory_mib: u64,
    pub log: String,
    pub tls: Option<Tls>,
}

impl Config {
    pub fn load_tls(&self) -> Result<Option<transport::tls::Tls>, transport::Error> {
        let load =
            |tls: &Tls| transport::tls::Tls::load(&tls.authority, &tls.certificate, &tls.key);
        self.tls.as_ref().map(load).transpose()
    }

    /// For `atoll.settings`: name, value, unit, meaning.
    pub fn rows(&self) -> Vec<[String; 4]> {
        let row = |name: &str, value: String, unit: &str, meaning: &str| {
            [name.into(), value, unit.into(), meaning.into()]
        };
        vec![
            row("zone", self.zone.clone(), "", "the failure domain of this node"),
            row("data", self.data.display().to_string(), "", "where this node keeps its data"),
            row("listen", self.listen.to_string(), "", "where this node listens for its peers"),
            row("sql_listen", self.sql_listen.to_string(), "", "where this node listens for SQL"),
            row(
                "auth",
                format!("{:?}", self.auth).to_lowercase(),
                "",
                "how clients prove who they are",
            ),
            row(
                "retention_s",
                self.retention_s.to_string(),
                "s",
                "how long old versions of rows are kept",
            ),
            row("cache_mib", self.cache_mib.to_string(), "MiB", "memory for blocks read from disk"),
            row(
                "memory_mib",
                self.memory_mib.to_string(),
                "MiB",
                "memory that SQL clients may make this node keep",
            ),
            row("log", self.log.clone(), "", "what is logged"),
            row(
                "tls",
                if self.tls.is_some() { "on" } else { "off" }.into(),
                "",
                "encryption between nodes",
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("atoll.toml");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn flags_win_over_the_file() {
        let (_dir, path) = file("zone = \"east\"\ndata = \"/d\"\nretention_s = 30\n");
        let flags = Settings { zone: Some("west".into()), ..Settings::default() };
        let config = flags.with_file(&path).unwrap().complete().unwrap();
        assert_eq!((config.zone.as_str(), config.retention_s), ("west", 30));
        assert_eq!(config.auth, AuthMethod::Trust, "on a loopback address");
    }

    #[test]
    fn an_unknown_key_names_the_nearest_known_one() {
        let (_dir, path) = file("retension_s = 30\n");
        let error = Settings::default().with_file(&path).unwrap_err().to_string();
        assert!(error.contains("\"retension_s\", did you mean \"retention_s\"?"), "{error}");
    }

    #[test]
    fn what_other_hosts_reach_is_encrypted_and_guarded() {
        let open = Settings {
            zone: Some("a".into()),
            data: Some("/d".into()),
            listen: "0.0.0.0:7401".parse().ok(),
            sql_listen: "0.0.0.0:5433".parse().ok(),
            ..Settings::default()
        };
        let error = open.clone().complete().unwrap_err().to_string();
        assert!(error.contains("without TLS"), "{error}");
        let half = Settings { tls_key: Some("k".into()), ..open.clone() };
        assert!(
            half.complete().unwrap_err().to_string().contains("--tls-key needs the two others")
        );
        let path = Some(PathBuf::from("f"));
        let guarded = Settings {
            tls_authority: path.clone(),
            tls_certificate: path.clone(),
            tls_key: path,
            ..open
        };
        assert_eq!(guarded.complete().unwrap().auth, AuthMethod::Scram);
    }
}
