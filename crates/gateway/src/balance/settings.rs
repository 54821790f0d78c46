//! What the balancer is told.

use http::Method;
use std::net::SocketAddr;
use std::time::Duration;

/// One server, as the file, the DNS or the API names it.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerSpec {
    pub address: SocketAddr,
    pub zone: String,
    /// Share of its zone's requests, relative to the others; above 0.
    pub weight: f64,
}

/// The order of zones, seen from where we stand: tiers, the closest first; zones of one tier are
/// equally close. Zones that are not named stand in one last tier.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Closeness(pub Vec<Vec<String>>);

impl Closeness {
    pub fn tier(&self, zone: &str) -> usize {
        let named = self.0.iter().position(|tier| tier.iter().any(|name| name == zone));
        named.unwrap_or(self.0.len())
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Requests under way at each open server from which on a zone is left, by degrees; at twice
    /// as many it is left altogether.
    pub load_max: f64,
    /// How many times its reference a zone's latency may be; at three times that it is left
    /// altogether. The reference is the latency of any zone's better days, or that of the best other
    /// zone now if that is longer.
    pub latency_max: f64,
    /// Latency above the reference that is never held against a zone.
    pub latency_slack: Duration,
    /// Share of failures from which on a zone is left; at five times that, or all, altogether.
    pub failed_max: f64,
    /// Fewer answers in ten seconds say nothing about a zone or a server.
    pub n_requests_min: u32,
    /// A tier takes all that it is offered while this many times its open share is at least 1.
    pub overprovision: f64,
    /// How fast a zone's share falls and rises, per second.
    pub fall_per_s: f64,
    pub rise_per_s: f64,
    /// When less than this share of the reachable servers looks well, what they look like is
    /// ignored: all get requests.
    pub panic_below: f64,
    /// A server is hot when this share of its zone's servers has fewer requests under way.
    pub hot_quantile: f64,
    /// In this time a new or recovered server's share grows to its full one.
    pub warm_up: Duration,
    /// Failed connections in a row after which a server is out, for `trip_for`, doubled each time
    /// up to `trip_max`, or until a probe's connection succeeds.
    pub n_unreachable_max: u32,
    pub trip_for: Duration,
    pub trip_max: Duration,
    /// Failures in a row after which a server is ejected, for `eject_for`, longer each time up to
    /// `eject_max`.
    pub n_failed_max: u32,
    pub eject_for: Duration,
    pub eject_max: Duration,
    /// How much larger than its zone's median a server's share of failures may be.
    pub outlier_margin: f64,
    /// Share of a zone's servers that may be ejected for how they look.
    pub ejected_max: f64,
    pub check: Option<HealthCheck>,
    /// A server that has answered nothing for this long is probed with a connection.
    pub idle_probe_after: Duration,
    /// At most so many servers of each zone get requests from this gateway.
    pub subset: Option<usize>,
}

/// An active check: `GET path` on every server. How long it takes tells who is slow while there
/// are no requests.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthCheck {
    /// A path, and a query if it needs one; of a service of gRPC that is checked, its method.
    pub path: String,
    pub method: Method,
    /// None: the server's address.
    pub host: Option<String>,
    /// Statuses of a server that is well, each range with both ends.
    pub statuses: Vec<(u16, u16)>,
    /// The service that the server is asked for, by gRPC's health checking protocol; empty: the
    /// server as a whole.
    pub grpc: Option<String>,
    pub interval: Duration,
    pub timeout: Duration,
    /// Checks in a row that change what is thought of the server.
    pub n_well: u32,
    pub n_unwell: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            load_max: 100.0,
            latency_max: 3.0,
            latency_slack: Duration::from_millis(10),
            failed_max: 0.1,
            n_requests_min: 20,
            overprovision: 1.4,
            fall_per_s: 1.0,
            rise_per_s: 0.1,
            panic_below: 0.3,
            hot_quantile: 0.84,
            warm_up: Duration::from_secs(10),
            n_unreachable_max: 3,
            trip_for: Duration::from_secs(10),
            trip_max: Duration::from_secs(30),
            n_failed_max: 5,
            eject_for: Duration::from_secs(10),
            eject_max: Duration::from_secs(300),
            outlier_margin: 0.3,
            ejected_max: 0.5,
            check: None,
            idle_probe_after: Duration::from_secs(10),
            subset: None,
        }
    }
}

impl HealthCheck {
    pub fn of(path: String) -> HealthCheck {
        HealthCheck {
            path,
            method: Method::GET,
            host: None,
            statuses: vec![(200, 399)],
            grpc: None,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            n_well: 2,
            n_unwell: 3,
        }
    }
}
