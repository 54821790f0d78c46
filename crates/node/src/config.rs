//! What a node is told: flags win over `ATOLL_*` variables, those over one TOML file, that over
//! the defaults.

use base::{Env, Limits};
use clap::Args;
use serde::{Deserialize, Serialize};
use sql::wire::access;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// Where peers listen when nobody says otherwise.
pub const PEER_PORT: u16 = 7401;

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
    #[arg(long, env = "ATOLL_JOIN", value_name = "HOST[:PORT]", value_delimiter = ',')]
    pub join: Option<Vec<Seed>>,
    /// Where the node listens for its peers, and where they reach it.
    #[arg(long, env = "ATOLL_LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where the node listens for SQL.
    #[arg(long, env = "ATOLL_SQL_LISTEN", value_name = "ADDRESS:PORT")]
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
    /// The certificate chain that SQL clients see, if it is not this node's (PEM).
    #[arg(long, env = "ATOLL_SQL_TLS_CERTIFICATE", value_name = "FILE")]
    pub sql_tls_certificate: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, env = "ATOLL_SQL_TLS_KEY", value_name = "FILE")]
    pub sql_tls_key: Option<PathBuf>,
    /// Who may connect for SQL from where, and how they prove who they are; in the file alone.
    #[arg(skip)]
    pub access: Option<Vec<AccessRule>>,
}

/// A peer through which a newcomer asks: a host and a port. Names are looked up at each try.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Seed {
    host: String,
    port: u16,
}

impl std::str::FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Seed, String> {
        let wrong = || format!("{text:?} is not HOST or HOST:PORT");
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(address.into());
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(SocketAddr::new(ip, PEER_PORT).into());
        }
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| wrong())?),
            None => (text, PEER_PORT),
        };
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
        match !host.is_empty() && host.chars().all(is_plain) {
            true => Ok(Seed { host: host.into(), port }),
            false => Err(wrong()),
        }
    }
}

impl From<SocketAddr> for Seed {
    fn from(address: SocketAddr) -> Seed {
        Seed { host: address.ip().to_string(), port: address.port() }
    }
}

impl TryFrom<String> for Seed {
    type Error = String;

    fn try_from(text: String) -> Result<Seed, String> {
        text.parse()
    }
}

impl From<Seed> for String {
    fn from(seed: Seed) -> String {
        seed.to_string()
    }
}

impl std::fmt::Display for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl Seed {
    pub async fn addresses(&self, env: &Env) -> Result<Vec<SocketAddr>, String> {
        if let Ok(ip) = self.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, self.port)]);
        }
        let found = env.net().lookup(&self.host, self.port).await;
        found.map_err(|error| format!("the host {:?} is not found: {error}", self.host))
    }
}

/// One rule of who may connect for SQL, as the file has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRule {
    #[serde(default = "all")]
    pub address: String,
    #[serde(default = "all")]
    pub database: String,
    #[serde(default = "all")]
    pub role: String,
    /// `required` or `any`.
    #[serde(default)]
    pub tls: TlsNeed,
    pub method: Method,
}

fn all() -> String {
    access::ALL.into()
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsNeed {
    #[default]
    Any,
    Required,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    Trust,
    Scram,
    Reject,
}

impl AccessRule {
    fn read(&self) -> Result<access::Rule, String> {
        Ok(access::Rule {
            address: self.address.parse()?,
            database: access::Names::of(&self.database),
            role: access::Names::of(&self.role),
            needs_tls: self.tls == TlsNeed::Required,
            method: match self.method {
                Method::Trust => access::Method::Trust,
                Method::Scram => access::Method::Scram,
                Method::Reject => access::Method::Reject,
            },
        })
    }
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

const KEYS: [&str; 16] = [
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
    "sql_tls_certificate",
    "sql_tls_key",
    "access",
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
    #[error("--sql-tls-certificate and --sql-tls-key need each other")]
    HalfSqlTls,
    #[error(
        "a node shows its peers a certificate of the cluster's authority: give --tls-authority, \
         --tls-certificate and --tls-key (`atoll cert` makes them)"
    )]
    NoCertificate,
    #[error(
        "peers cannot be told to reach this node at {0}: give --listen an address of this machine"
    )]
    NoAddress(SocketAddr),
    #[error("the rule {n} of [[access]]: {reason}")]
    Access { n: usize, reason: String },
    #[error("auth and [[access]] say the same in two ways: keep one of them")]
    AuthTwice,
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
            sql_tls_certificate: self.sql_tls_certificate.or(file.sql_tls_certificate),
            sql_tls_key: self.sql_tls_key.or(file.sql_tls_key),
            access: self.access.or(file.access),
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
        let tls = tls.ok_or(Error::NoCertificate)?;
        let sql_tls = match (self.sql_tls_certificate, self.sql_tls_key) {
            (Some(certificate), Some(key)) => SqlTls { certificate, key },
            (None, None) => SqlTls { certificate: tls.certificate.clone(), key: tls.key.clone() },
            _ => return Err(Error::HalfSqlTls),
        };
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let listen = self.listen.unwrap_or_else(|| loopback(PEER_PORT));
        let sql_listen = self.sql_listen.unwrap_or_else(|| loopback(5433));
        if listen.ip().is_unspecified() {
            return Err(Error::NoAddress(listen));
        }
        let by_place = match sql_listen.ip().is_loopback() {
            true => AuthMethod::Trust,
            false => AuthMethod::Scram,
        };
        let access = self.access.unwrap_or_default();
        for (n, rule) in access.iter().enumerate() {
            rule.read().map_err(|reason| Error::Access { n: n + 1, reason })?;
        }
        if self.auth.is_some() && !access.is_empty() {
            return Err(Error::AuthTwice);
        }
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
            tls: Some(tls),
            sql_tls: Some(sql_tls),
            access,
        })
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Tls {
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct SqlTls {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Everything said.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Config {
    pub zone: String,
    pub data: PathBuf,
    pub join: Vec<Seed>,
    pub listen: SocketAddr,
    pub sql_listen: SocketAddr,
    pub auth: AuthMethod,
    pub retention_s: u64,
    pub cache_mib: u64,
    /// A supervisor that was started by an older program does not name it.
    #[serde(default = "memory_mib")]
    pub memory_mib: u64,
    pub log: String,
    /// None in a simulated network alone, where everybody is believed.
    pub tls: Option<Tls>,
    /// A supervisor that was started by an older program names neither this nor `access`.
    #[serde(default)]
    pub sql_tls: Option<SqlTls>,
    #[serde(default)]
    pub access: Vec<AccessRule>,
}

impl Config {
    pub fn load_tls(&self) -> Result<Option<transport::tls::Tls>, transport::Error> {
        let load =
            |tls: &Tls| transport::tls::Tls::load(&tls.authority, &tls.certificate, &tls.key);
        self.tls.as_ref().map(load).transpose()
    }

    /// What SQL clients are shown.
    pub fn load_sql_tls(&self) -> Result<Option<transport::tls::Front>, transport::Error> {
        let load =
            |tls: &SqlTls| transport::tls::Front::load(&tls.certificate, &tls.key, sql::wire::ALPN);
        self.sql_tls.as_ref().map(load).transpose()
    }

    /// The rules that are in force: those of the file, or the one that `auth` is short for.
    pub fn rules(&self) -> Vec<AccessRule> {
        if !self.access.is_empty() {
            return self.access.clone();
        }
        let method = match self.auth {
            AuthMethod::Trust => Method::Trust,
            AuthMethod::Scram => Method::Scram,
        };
        let (address, database, role) = (all(), all(), all());
        vec![AccessRule { address, database, role, tls: TlsNeed::Any, method }]
    }

    pub fn access(&self) -> Result<access::Access, Error> {
        let read = |(n, rule): (usize, &AccessRule)| {
            rule.read().map_err(|reason| Error::Access { n: n + 1, reason })
        };
        let rules: Result<Vec<_>, Error> = self.rules().iter().enumerate().map(read).collect();
        Ok(access::Access::new(rules?))
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
                match self.access.is_empty() {
                    true => format!("{:?}", self.auth).to_lowercase(),
                    false => "see atoll.access".into(),
                },
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
            row(
                "sql_tls",
                if self.sql_tls.is_some() { "on" } else { "off" }.into(),
                "",
                "encryption for SQL clients that ask for it",
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

    const FILES: &str = "tls_authority = \"a\"\ntls_certificate = \"c\"\ntls_key = \"k\"\nzone = \"east\"\ndata = \"/d\"\n";

    fn read(text: &str) -> Result<Config, Error> {
        let (_dir, path) = file(&format!("{FILES}{text}"));
        Settings::default().with_file(&path)?.complete()
    }

    #[test]
    fn flags_win_over_the_file() {
        let (_dir, path) = file(&format!("{FILES}retention_s = 30\n"));
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
    fn peers_are_shown_a_certificate_and_what_other_hosts_reach_is_guarded() {
        let open = Settings {
            zone: Some("a".into()),
            data: Some("/d".into()),
            listen: "10.0.0.1:7401".parse().ok(),
            sql_listen: "0.0.0.0:5433".parse().ok(),
            ..Settings::default()
        };
        let error = open.clone().complete().unwrap_err().to_string();
        assert!(error.contains("`atoll cert` makes them"), "{error}");
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
        let nowhere = Settings { listen: "0.0.0.0:7401".parse().ok(), ..guarded.clone() };
        assert!(nowhere.complete().unwrap_err().to_string().contains("at 0.0.0.0:7401"));
        assert_eq!(guarded.complete().unwrap().auth, AuthMethod::Scram);
    }

    #[test]
    fn seeds_are_hosts_with_or_without_a_port() {
        let seed = |text: &str| text.parse::<Seed>().map(String::from).map_err(drop);
        assert_eq!(seed("db1"), Ok("db1:7401".into()));
        assert_eq!(seed("db1.example.net:99"), Ok("db1.example.net:99".into()));
        assert_eq!(seed("10.0.0.1"), Ok("10.0.0.1:7401".into()));
        assert_eq!(seed("[::1]:7"), Ok("[::1]:7".into()));
        for wrong in ["", ":7", "a:b", "http://x", "a b"] {
            assert_eq!(seed(wrong), Err(()), "{wrong:?}");
        }
    }

    #[test]
    fn rules_of_access_are_read_and_wrong_ones_are_named() {
        let config = read(
            "[[access]]\naddress = \"10.0.0.0/8\"\nrole = \"app\"\ntls = \"required\"\nmethod = \"scram\"\n\
             [[access]]\nmethod = \"reject\"\n",
        )
        .unwrap();
        assert_eq!(config.rules().len(), 2);
        let why = |text: &str| read(text).unwrap_err().to_string();
        let error = why("[[access]]\naddress = \"10.0.0.0/40\"\nmethod = \"trust\"\n");
        assert!(error.contains("the rule 1 of [[access]]"), "{error}");
        let error = why("[[access]]\nmethod = \"md5\"\n");
        assert!(error.contains("unknown variant `md5`"), "{error}");
        let error = why("auth = \"scram\"\n[[access]]\nmethod = \"trust\"\n");
        assert!(error.contains("keep one of them"), "{error}");
        assert_eq!(read("auth = \"scram\"\n").unwrap().rules()[0].method, Method::Scram);
    }
}
