//! Reads the file. A setting that is not known, a value that makes no sense and a name that
//! stands for nothing are refused, each with its line; nothing is guessed, nothing is ignored.
//!
//! ```text
//!   text ──► toml, with spans ──► [`table`]: key by key ──► [`value`]: what each may be ──► Config
//! ```
//!
//! The reader decides nothing about files that are named in the file: it does not open them.

pub mod known;
mod route;
mod service;
mod table;
mod value;

use self::table::{Problem, Result, Table, Value, What, nearest};
use super::{AccessLog, Certificate, Config, Limits, Listener, Service, Traces, overlap};
use crate::balance::Closeness;
use crate::config::{Clients, FIELDS, LogFile};
use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::de::DeTable;

/// Why a file is refused, in one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}:{line}: this is not TOML: {message}", path.display())]
    Syntax { path: PathBuf, line: usize, message: String },
    /// `table` is empty at the top level; `known` are all settings of that table.
    #[error("{}:{line}: there is no setting {key:?}{}", path.display(), Unknown(key, table, known))]
    Unknown { path: PathBuf, line: usize, key: String, table: String, known: Vec<&'static str> },
    #[error("{}:{line}: {message}", path.display())]
    Refused { path: PathBuf, line: usize, message: String },
}

/// The rest of a sentence about a key that is not known.
struct Unknown<'a>(&'a str, &'a str, &'a [&'static str]);

impl Display for Unknown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unknown(key, table, known) = self;
        if !table.is_empty() {
            write!(f, " in {table}")?;
        }
        match (nearest(key, known.iter().copied()), known::elsewhere(key)) {
            (Some(near), _) => write!(f, ", did you mean {near:?}?"),
            (None, Some(place)) => write!(f, ": {key:?} is one of {place}"),
            (None, None) if known.is_empty() => Ok(()),
            (None, None) => write!(f, "; it has {}", known.join(", ")),
        }
    }
}

impl Config {
    pub fn load(path: &Path) -> Result<Config, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Config::parse(path, &text)
    }

    /// Reads `text` as what `path` holds. Relative paths in it start from the folder of `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Config, Error> {
        let document = DeTable::parse(text).map_err(|error| syntax(path, text, &error))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        config(folder, Table::root(&document)).map_err(|Problem { at, what }| {
            let (path, line) = (path.to_owned(), line(text, at));
            match what {
                What::Unknown { key, table, known } => {
                    Error::Unknown { path, line, key, table, known }
                }
                What::Refused(message) => Error::Refused { path, line, message },
            }
        })
    }
}

fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let span = error.span().unwrap_or_default();
    // What stands behind a key may be a secret, and logs are read by more people than the file.
    let line_begin = text.get(..span.start).and_then(|before| before.rfind('\n'));
    let head = text.get(line_begin.map_or(0, |at| at + 1)..span.start).unwrap_or_default();
    let found = text.get(span.clone());
    let found = found.filter(|found| !found.is_empty() && !head.contains('='));
    let mut message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some(found) = found {
        message += &format!(", found {:?}", table::cut(found));
    }
    Error::Syntax { path: path.to_owned(), line: line(text, span.start), message }
}

/// The line that byte `at` is in; what is missing at the end is missing in the last line.
fn line(text: &str, at: usize) -> usize {
    let before = &text.as_bytes()[..at.min(text.trim_end().len())];
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// What a value may be relative to.
struct Here<'a> {
    /// The file's.
    folder: &'a Path,
    /// The gateway's own.
    zone: &'a str,
    /// Whether servers may come later, through the API.
    has_admin: bool,
}

impl Here<'_> {
    fn file(&self, value: &Value) -> Result<PathBuf> {
        let text = value.text()?;
        if text.is_empty() || text.contains('\0') {
            return Err(value.must("be the path of a file"));
        }
        Ok(self.folder.join(text))
    }

    fn certificate(&self, value: &Value) -> Result<Certificate> {
        let mut table = value.table()?;
        let certificate = table.read("certificate", |value| self.file(value))?;
        let key = table.read("key", |value| self.file(value))?;
        table.finish()?;
        Ok(Certificate {
            certificate: table.need("certificate", certificate)?,
            key: table.need("key", key)?,
        })
    }
}

fn config(folder: &Path, mut table: Table) -> Result<Config> {
    let mut zone = "local".to_owned();
    table.set("zone", &mut zone, value::name)?;
    let closeness = table.read("closeness", |value| closeness(value, &zone))?;
    let here = Here { folder, zone: &zone, has_admin: table.has("admin") };

    let listen = table.read("listen", value::address)?;
    let mut taken = Taken(listen.into_iter().collect());
    let without_tls = |address| Listener {
        address,
        certificates: Vec::new(),
        clients: None,
        proxy_protocol: false,
    };
    let mut listeners: Vec<Listener> = listen.into_iter().map(without_tls).collect();
    listeners.extend(table.list("listeners", |value| listener(value, &here, &mut taken))?);
    let (admin, admin_token) = table.read("admin", |value| admin(value, &mut taken))?.unzip();

    let trusted_proxies = table.list("trusted_proxies", value::network)?;
    let threads = table.read("threads", value::integer(1..=1024))?;
    let access_log = table.read("access_log", |value| access_log(value, &here))?;
    let traces = table.read("traces", |value| traces(value, &here))?;
    let limits = table.read("limits", limits)?.unwrap_or_default();
    let mut drain = Duration::from_secs(30);
    table.set("drain", &mut drain, value::time_or_zero)?;

    let services = table.read("services", |value| services(value, &here))?.unwrap_or_default();
    let mut routes = route::routes(&mut table, &services)?;
    table.finish()?;

    if listeners.is_empty() {
        return Err(table.refuse(
            "nothing is listened on: add listen = \"IP:PORT\", or [[listeners]] for more than one \
             address or for TLS",
        ));
    }
    let Some(first) = services.keys().next() else {
        return Err(
            table.refuse("there is no service: add [services.NAME] with servers = [\"IP:PORT\"]")
        );
    };
    if routes.is_empty() && services.len() > 1 {
        let n = services.len();
        return Err(table.refuse_at(
            "services",
            format_args!(
                "there are {n} services and no routes: add [[routes]] that say which requests go \
                 to which service"
            ),
        ));
    }
    if routes.is_empty() {
        routes.push(route::all(first));
    }
    let closeness = closeness.unwrap_or_else(|| Closeness(vec![vec![zone.clone()]]));
    Ok(Config {
        zone,
        closeness,
        listeners,
        trusted_proxies,
        admin,
        admin_token: admin_token.flatten(),
        threads,
        access_log,
        traces,
        limits,
        drain,
        routes,
        services,
    })
}

/// Tiers, the closest first: a zone, or a list of zones that are equally close.
fn closeness(value: &Value, own: &str) -> Result<Closeness> {
    let mut named = HashSet::new();
    let mut zone = |value: &Value| {
        let name = value::name(value)?;
        if !named.insert(name.clone()) {
            return Err(value.refuse(format_args!("closeness names the zone {name:?} twice")));
        }
        Ok(name)
    };
    let tiers = value.items()?.into_iter().map(|tier| match tier.is_list() {
        true => tier.items()?.iter().map(&mut zone).collect(),
        false => Ok(vec![zone(&tier)?]),
    });
    let tiers = Closeness(tiers.collect::<Result<_>>()?);
    if !named.contains(own) {
        return Err(value.refuse(format_args!(
            "closeness leaves out {own:?}, the gateway's own zone: put it where it belongs, which \
             is first as a rule"
        )));
    }
    Ok(tiers)
}

/// The addresses that this gateway listens on.
struct Taken(HashSet<SocketAddr>);

impl Taken {
    /// `address` is that of `table`.
    fn take(&mut self, address: SocketAddr, table: &Table) -> Result<SocketAddr> {
        let Some(other) = self.0.iter().find(|other| overlap(**other, address)) else {
            self.0.insert(address);
            return Ok(address);
        };
        let table_name = table.name();
        let of = if *other == address { String::new() } else { format!(", with {other}") };
        Err(table.refuse_at(
            "address",
            format_args!("{address} is listened on already{of}: give {table_name} another address"),
        ))
    }
}

fn listener(value: &Value, here: &Here, taken: &mut Taken) -> Result<Listener> {
    let mut table = value.table()?;
    let address = table.read("address", value::address)?;
    let certificates = table.list("certificates", |value| here.certificate(value))?;
    let authority = table.read("client_authority", |value| here.file(value))?;
    let mut is_optional = false;
    table.set("client_optional", &mut is_optional, value::flag)?;
    let mut proxy_protocol = false;
    table.set("proxy_protocol", &mut proxy_protocol, value::flag)?;
    table.finish()?;
    let address = taken.take(table.need("address", address)?, &table)?;
    for (key, is_said, needs, has) in [
        ("client_authority", authority.is_some(), "certificates", !certificates.is_empty()),
        ("client_optional", is_optional, "client_authority", authority.is_some()),
    ] {
        if is_said && !has {
            let name = table.name();
            return Err(table.refuse_at(key, format_args!("{key} in {name} needs {needs}, too")));
        }
    }
    let clients = authority.map(|authority| Clients { authority, is_needed: !is_optional });
    Ok(Listener { address, certificates, clients, proxy_protocol })
}

/// The address, and the token if there is one.
fn admin(value: &Value, taken: &mut Taken) -> Result<(SocketAddr, Option<String>)> {
    let mut table = value.table()?;
    let mut address = SocketAddr::from(([127, 0, 0, 1], 8081));
    table.set("address", &mut address, value::address)?;
    let token = table.read("token", value::secret)?;
    table.finish()?;
    Ok((taken.take(address, &table)?, token))
}

/// Where the lines go, or a table that says what is in them, too.
fn access_log(value: &Value, here: &Here) -> Result<AccessLog> {
    let place = |value: &Value| match value.text()? {
        "stdout" => Ok(LogFile::Stdout),
        _ => here.file(value).map(LogFile::File),
    };
    if value.get().as_str().is_some() {
        return place(value).map(AccessLog::whole);
    }
    let mut table = value.table().map_err(|_| value.must("be \"stdout\", a file or a table"))?;
    let to = table.read("to", place)?;
    let fields = table.list("fields", |value| {
        let text = value.text()?;
        if FIELDS.contains(&text) {
            return Ok(text.to_owned());
        }
        let near = nearest(text, FIELDS.iter().copied());
        let near = near.map(|near| format!(", did you mean {near:?}?")).unwrap_or_default();
        Err(value.refuse(format_args!("the access log has no field {text:?}{near}")))
    })?;
    let headers = table.list("headers", value::header_name)?;
    table.finish()?;
    Ok(AccessLog { to: table.need("to", to)?, fields, headers })
}

fn traces(value: &Value, here: &Here) -> Result<Traces> {
    let mut table = value.table()?;
    let collector = table.read("collector", value::collector)?;
    let (mut share, mut name) = (0.01, "atoll-gateway".to_owned());
    table.set("share", &mut share, value::number(0.0..=1.0))?;
    table.set("name", &mut name, value::name)?;
    table.finish()?;
    let (host, port, path) = table.need("collector", collector)?;
    Ok(Traces { host, port, path, share, name, zone: here.zone.to_owned() })
}

fn limits(value: &Value) -> Result<Limits> {
    let mut table = value.table()?;
    let mut limits = Limits::default();
    table.set("connections", &mut limits.n_connections_max, value::integer(1..=10_000_000))?;
    table.set("requests", &mut limits.n_requests_max, value::integer(1..=10_000_000))?;
    // Below 8 KiB an HTTP/1 parser does not work, and cookies do not fit.
    table.set("header_bytes", &mut limits.header_bytes_max, value::size(8 << 10..=16 << 20))?;
    table.set("headers", &mut limits.n_headers_max, value::integer(1..=10_000))?;
    limits.body_bytes_max = table.read("body_bytes", value::size(0..=1 << 40))?;
    table.set("header_timeout", &mut limits.header_timeout, value::time)?;
    table.set("body_idle_timeout", &mut limits.body_idle_timeout, value::time)?;
    table.set("idle_timeout", &mut limits.idle_timeout, value::time)?;
    table.set("streams", &mut limits.n_streams_max, value::integer(1..=100_000))?;
    table.finish()?;
    Ok(limits)
}

fn services(value: &Value, here: &Here) -> Result<BTreeMap<String, Service>> {
    let entries = value.table()?.entries();
    let mut services = BTreeMap::new();
    for (name, value) in &entries {
        if !value::is_name(name) {
            return Err(value.refuse(format_args!(
                "{name:?} cannot be the name of a service, which is made of {}",
                value::NAME
            )));
        }
        services.insert((*name).to_owned(), service::service(value, here)?);
    }
    for (name, value) in &entries {
        if let Some(value) = value.find(&["fallback", "service"]) {
            check_fallback(name, &value, &services)?;
        }
    }
    Ok(services)
}

/// `value` names the service that `name` falls back to.
fn check_fallback(name: &str, value: &Value, services: &BTreeMap<String, Service>) -> Result<()> {
    let mut next = known_service(value.text()?, value, services)?;
    let mut chain = vec![name.to_owned()];
    while !chain.contains(&next) {
        let fallback = services.get(&next).and_then(|service| service.fallback.service.clone());
        chain.push(next);
        match fallback {
            Some(fallback) => next = fallback,
            None => return Ok(()),
        }
    }
    match chain.len() {
        // Whoever stands in the circle is told of it.
        _ if next != name => Ok(()),
        1 => Err(value.refuse(format_args!(
            "{name:?} cannot fall back to itself: name another service, or leave it out"
        ))),
        _ => Err(value.refuse(format_args!(
            "services fall back to each other in a circle, {} → {name}: leave one of them out",
            chain.join(" → ")
        ))),
    }
}

/// The service of that `name`, which stands at `value`.
fn known_service(
    name: &str,
    value: &Value,
    services: &BTreeMap<String, Service>,
) -> Result<String> {
    if services.contains_key(name) {
        return Ok(name.to_owned());
    }
    let near = nearest(name, services.keys().map(String::as_str));
    let near = near.map(|near| format!(", did you mean {near:?}?")).unwrap_or_default();
    Err(value.refuse(format_args!("there is no service {name:?}{near}")))
}
