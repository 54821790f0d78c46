//! What a gateway is told: one TOML file, read whole or refused whole.
//!
//! ```toml
//! zone = "a"                          # where this gateway stands
//! closeness = ["a", ["b", "c"]]       # the closest first; b and c are equally close
//!
//! [[listeners]]
//! address = "0.0.0.0:8443"
//! certificates = [{ certificate = "site.pem", key = "site.key" }]
//!
//! [[routes]]
//! hosts = ["shop.example", "*.shop.example"]
//! path = "/api/"                      # everything below it
//! service = "api"                     # or: services = { api = 95, canary = 5 }
//!
//! [services.api]
//! servers = ["a=10.0.0.1:80", "b=10.0.1.1:80", "c=10.0.2.1:80"]
//! timeout = "2s"
//! ```

mod read;

use crate::balance::{Closeness, ServerSpec};
use crate::isolate::bulkhead::Priority;
use crate::service;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use regex::Regex;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use read::Error;
pub use read::known::PLACES;

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The zone this gateway stands in.
    pub zone: String,
    pub closeness: Closeness,
    pub listeners: Vec<Listener>,
    /// Who may say for whom a request is: what others say of that is taken out.
    pub trusted_proxies: Vec<Network>,
    /// Metrics, the live page and the API. On a loopback address unless the file says otherwise.
    pub admin: Option<SocketAddr>,
    /// What the API's callers must know to change something.
    pub admin_token: Option<String>,
    /// Threads that serve; none: one for each core.
    pub threads: Option<usize>,
    pub access_log: Option<AccessLog>,
    pub traces: Option<Traces>,
    pub limits: Limits,
    /// How long requests under way have to end when the gateway stops.
    pub drain: Duration,
    /// The first that matches is taken. Without any, everything goes to the only service.
    pub routes: Vec<Route>,
    pub services: BTreeMap<String, Service>,
}

impl Config {
    /// Where this gateway listens.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.listeners.iter().map(|listener| listener.address).chain(self.admin)
    }
}

/// Whether two listeners cannot have these addresses: `0.0.0.0` is all of IPv4, `[::]` everything.
pub fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let holds = |all: SocketAddr, part: SocketAddr| {
        all.ip() == part.ip() || all.ip().is_unspecified() && (all.is_ipv6() || part.is_ipv4())
    };
    // With port 0 the system chooses one that is free.
    one.port() != 0 && one.port() == other.port() && (holds(one, other) || holds(other, one))
}

#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    pub address: SocketAddr,
    /// With certificates it speaks TLS; which is shown is decided by the name that the client
    /// asks for, the first one where none fits.
    pub certificates: Vec<Certificate>,
    /// Who signs clients' certificates, and whether every client must show one.
    pub clients: Option<Clients>,
    /// Whether each connection begins with a header of the PROXY protocol.
    pub proxy_protocol: bool,
}

/// What clients show of themselves in TLS.
#[derive(Clone, Debug, PartialEq)]
pub struct Clients {
    pub authority: PathBuf,
    pub is_needed: bool,
}

/// An address, or all that begin with the same bits (RFC 4632).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    n_bits: u32,
}

impl Network {
    /// `10.0.0.1` or `10.0.0.0/8`.
    pub fn of(text: &str) -> Option<Network> {
        let (address, n_bits) = match text.split_once('/') {
            Some((address, n_bits)) => (address, Some(n_bits.parse().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let n_all = if address.is_ipv4() { 32 } else { 128 };
        let n_bits = n_bits.unwrap_or(n_all);
        (n_bits <= n_all).then_some(Network { address, n_bits })
    }

    pub fn holds(&self, address: IpAddr) -> bool {
        // An IPv4 client of a listener on [::] comes as ::ffff:a.b.c.d.
        match (self.address.to_canonical(), address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let n_bits =
                    self.n_bits.saturating_sub(if self.address.is_ipv4() { 0 } else { 96 });
                let differ = u32::from(own) ^ u32::from(other);
                differ.checked_shr(32 - n_bits.min(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let differ = u128::from(own) ^ u128::from(other);
                differ.checked_shr(128 - self.n_bits).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// PEM files: a chain, the own certificate first, and its key.
#[derive(Clone, Debug, PartialEq)]
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// The fields of a line of the access log, in their order.
pub const FIELDS: [&str; 20] = [
    "at_us",
    "client",
    "peer",
    "is_tls",
    "version",
    "method",
    "host",
    "path",
    "route",
    "service",
    "server",
    "status",
    "n_bytes",
    "n_attempts",
    "is_broken",
    "reason",
    "trace",
    "ms",
    "headers",
    "certificate",
];

/// The access log: where its lines go, and what is in them.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessLog {
    pub to: LogFile,
    /// Empty: all that there are, without headers.
    pub fields: Vec<String>,
    /// Headers of the request that are told.
    pub headers: Vec<HeaderName>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum LogFile {
    Stdout,
    File(PathBuf),
}

impl AccessLog {
    /// All that there is to tell, to one place.
    pub fn whole(to: LogFile) -> AccessLog {
        AccessLog { to, fields: Vec::new(), headers: Vec::new() }
    }
}

/// Where spans of requests are sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Traces {
    /// The collector's.
    pub host: String,
    pub port: u16,
    pub path: String,
    /// How many of the traces that begin here are sampled; others say it themselves.
    pub share: f64,
    /// Who the gateway is in traces.
    pub name: String,
    pub zone: String,
}

/// What one client may ask of the gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    pub n_connections_max: usize,
    /// Requests under way in the whole gateway; near it the less important are refused first.
    pub n_requests_max: u32,
    pub header_bytes_max: usize,
    pub n_headers_max: usize,
    /// Larger request bodies are refused with 413; none: no limit.
    pub body_bytes_max: Option<u64>,
    /// How long a request's head, or a TLS greeting, may take to arrive.
    pub header_timeout: Duration,
    /// How long a body may stand still.
    pub body_idle_timeout: Duration,
    /// How long a connection may be open with no request.
    pub idle_timeout: Duration,
    /// Requests at once on one HTTP/2 connection.
    pub n_streams_max: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            n_connections_max: 50_000,
            n_requests_max: 10_000,
            header_bytes_max: 32 << 10,
            n_headers_max: 100,
            body_bytes_max: None,
            header_timeout: Duration::from_secs(10),
            body_idle_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(60),
            n_streams_max: 128,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// For logs and metrics: its name, or its place in the file.
    pub name: String,
    /// Lower-case, without a port; `*.example` matches one or more labels. Empty: any.
    pub hosts: Vec<String>,
    pub path: PathMatch,
    /// Empty: any.
    pub methods: Vec<Method>,
    /// All must be there, with that value where one is given.
    pub headers: Vec<(HeaderName, Option<String>)>,
    /// Services and their weights; at least one, the sum above 0.
    pub targets: Vec<(String, u32)>,
    /// The most that a request may call itself, and what it is when it says nothing.
    pub priority: Priority,
    pub timeout: Option<Duration>,
    pub body_bytes_max: Option<u64>,
    /// What the matched prefix is replaced by before the request is forwarded.
    pub replace_prefix: Option<String>,
    pub rewrite: Option<Rewrite>,
    /// Where clients are sent instead of a service.
    pub redirect: Option<Redirect>,
    pub rate_limit: Option<RateLimit>,
    pub cors: Option<Cors>,
    /// How long a body may stand still, where that differs from the limits'.
    pub idle_timeout: Option<Duration>,
    pub compress: bool,
    pub request_headers: HeaderRules,
    pub response_headers: HeaderRules,
}

/// A regular expression, as it is written.
#[derive(Clone, Debug)]
pub struct Pattern(pub Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

/// The path that is forwarded, by a pattern that the client's must match; otherwise it stays.
#[derive(Clone, Debug, PartialEq)]
pub struct Rewrite {
    pub from: Pattern,
    /// With `$1` or `${name}` for what the pattern's groups hold.
    pub to: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Redirect {
    pub status: StatusCode,
    /// With `{scheme}`, `{host}`, `{path}`, `{query}` (with its `?`), and the groups of `from`.
    pub to: String,
    pub from: Option<Pattern>,
}

/// Whose requests are counted together.
#[derive(Clone, Debug, PartialEq)]
pub enum By {
    /// Each client's address for itself.
    Client,
    /// Those with the same value of this header; those without it by their client.
    Header(HeaderName),
    Everybody,
}

/// A bucket of tokens: `burst` at first and at most, `per_s` come back each second.
#[derive(Clone, Debug, PartialEq)]
pub struct RateLimit {
    pub per_s: f64,
    pub burst: f64,
    pub by: By,
}

/// Which pages of other origins may read answers (Fetch, CORS protocol).
#[derive(Clone, Debug, PartialEq)]
pub struct Cors {
    /// Empty: all of them.
    pub origins: Vec<String>,
    pub methods: Vec<Method>,
    /// Empty: whatever is asked for.
    pub headers: Vec<HeaderName>,
    pub exposed: Vec<HeaderName>,
    pub has_credentials: bool,
    pub max_age: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub enum PathMatch {
    /// This path and everything below it: "/api" and "/api/" match "/api", "/api/x", not "/apis".
    Below(String),
    Exactly(String),
}

/// Removed first, then set, then added.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderRules {
    pub remove: Vec<HeaderName>,
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub add: Vec<(HeaderName, HeaderValue)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub settings: service::Settings,
    pub servers: Vec<ServerSpec>,
    pub dns: Vec<DnsSource>,
    pub protocol: Protocol,
    /// How long a connection to a server may be idle.
    pub idle_timeout: Duration,
    /// How often HTTP/2 connections are pinged, if at all.
    pub ping_interval: Option<Duration>,
    pub tls: Option<UpstreamTls>,
    pub fallback: Fallback,
}

/// Servers that a name stands for, asked again every `interval`.
#[derive(Clone, Debug, PartialEq)]
pub struct DnsSource {
    pub name: String,
    pub port: u16,
    pub zone: String,
    pub interval: Duration,
}

/// How the servers are spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    #[default]
    Http1,
    Http2,
}

#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamTls {
    /// Who signs the servers' certificates.
    pub authority: PathBuf,
    /// The name that the servers' certificates must hold.
    pub server_name: String,
    /// What this gateway shows of itself, if the servers ask.
    pub certificate: Option<Certificate>,
}

/// What a client gets when the service has no answer. Tried in this order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fallback {
    /// The last good answer to the same GET, as old as this at most.
    pub stale_for: Option<Duration>,
    /// Another service.
    pub service: Option<String>,
    pub answer: Option<StaticAnswer>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct StaticAnswer {
    pub status: StatusCode,
    pub content_type: HeaderValue,
    pub body: String,
}

#[cfg(test)]
mod tests {
    use super::Network;

    #[test]
    fn a_network_holds_what_begins_with_its_bits() {
        let holds =
            |network, address: &str| Network::of(network).unwrap().holds(address.parse().unwrap());
        assert!(holds("10.0.0.0/8", "10.255.0.1") && !holds("10.0.0.0/8", "11.0.0.1"));
        assert!(holds("10.0.0.1", "10.0.0.1") && !holds("10.0.0.1", "10.0.0.2"));
        assert!(holds("0.0.0.0/0", "1.2.3.4") && !holds("0.0.0.0/0", "::1"));
        assert!(holds("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(holds("::ffff:10.0.0.0/104", "10.1.2.3"));
        assert!(holds("2001:db8::/32", "2001:db8:1::1") && !holds("2001:db8::/32", "2001:db9::1"));
        assert!(holds("::/0", "::1"));
        for wrong in ["", "10.0.0.0/33", "::/129", "10.0.0.0/-1", "h", "10.0.0.0/8/8"] {
            assert_eq!(Network::of(wrong), None, "{wrong}");
        }
    }
}
