//! What the live page shows, as JSON. Times in milliseconds, shares from 0 to 1.

use crate::backend::Backend;
use crate::gateway::Gateway;
use crate::isolate::breaker;
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[derive(Serialize)]
pub struct State {
    /// When this was so, since 1970: rates are differences of counts over differences of this.
    wall_ms: i64,
    zone: String,
    is_draining: bool,
    /// Why the file as it is now is refused.
    complaint: Option<String>,
    n_connections: usize,
    n_requests: u32,
    counters: Vec<(&'static str, u64)>,
    certificates: Vec<Certificate>,
    services: Vec<Service>,
}

#[derive(Serialize)]
struct Certificate {
    address: String,
    names: Vec<String>,
    expires_in_s: i64,
}

#[derive(Serialize)]
struct Service {
    name: String,
    breaker: &'static str,
    n_breaker_opened: u64,
    failed: f64,
    n_in_flight: u32,
    limit: u32,
    is_panicking: bool,
    p50_ms: Option<f64>,
    p95_ms: Option<f64>,
    p99_ms: Option<f64>,
    n_requests: u64,
    n_failed: u64,
    n_refused_open: u64,
    n_refused_full: u64,
    n_retries: u64,
    n_hedges: u64,
    n_over_budget: u64,
    n_fallbacks: u64,
    zones: Vec<Zone>,
    servers: Vec<Server>,
}

#[derive(Serialize)]
struct Zone {
    name: String,
    tier: usize,
    share: f64,
    n_open: usize,
    n_servers: usize,
    n_in_flight: u32,
    load: Option<f64>,
    latency_ms: Option<f64>,
}

#[derive(Serialize)]
pub struct Server {
    address: String,
    zone: String,
    weight: f64,
    /// Why it gets no requests, if it gets none.
    out: Option<&'static str>,
    n_in_flight: u32,
    latency_ms: Option<f64>,
    n_requests: u64,
    n_failed: u64,
}

pub fn of(gateway: &Gateway, complaint: Option<&str>) -> State {
    let state = gateway.state();
    let counters = &gateway.counters;
    let count = |counter: &AtomicU64| counter.load(Relaxed);
    let wall_ms = gateway.env().wall_us() / 1000;
    let certificates = state.acceptors.iter().flat_map(|(address, acceptor)| {
        acceptor.shown.iter().map(|shown| Certificate {
            address: address.to_string(),
            names: shown.names.clone(),
            expires_in_s: shown.expires_s - wall_ms / 1000,
        })
    });
    State {
        wall_ms,
        zone: state.config.zone.clone(),
        is_draining: gateway.is_stopping(),
        complaint: complaint.map(str::to_owned),
        n_connections: gateway.n_connections(),
        n_requests: gateway.n_requests(),
        counters: vec![
            ("connections accepted", count(&counters.n_accepted)),
            ("connections refused", count(&counters.n_refused_connections)),
            ("requests refused", count(&counters.n_refused_requests)),
            ("requests without a route", count(&counters.n_no_route)),
            ("malformed requests", count(&counters.n_bad_requests)),
            ("requests over a rate", count(&counters.n_over_rate)),
            ("requests left by clients", count(&counters.n_left_requests)),
            ("failed TLS greetings", count(&counters.n_bad_greetings)),
            ("stood still", count(&counters.n_stood_still)),
            ("broken connections", count(&counters.n_broken_connections)),
            ("reloads", count(&counters.n_reloads)),
            ("refused reloads", count(&counters.n_bad_reloads)),
        ],
        certificates: certificates.collect(),
        services: state.backends.iter().map(|(name, backend)| service(name, backend)).collect(),
    }
}

fn service(name: &str, backend: &Backend) -> Service {
    let servers = servers(backend);
    let handle = &backend.handle;
    let now = handle.env().now();
    let mut service = handle.lock();
    let mut quantile =
        |share| service.latencies.quantile(now, share).map(|found| found.as_secs_f64() * 1e3);
    let (p50_ms, p95_ms, p99_ms) = (quantile(0.5), quantile(0.95), quantile(0.99));
    let of_zone = |name: &str| {
        let name = name.to_owned();
        servers.iter().filter(move |server| server.zone == name)
    };
    let zones = service.fleet.zones().map(|zone| Zone {
        name: zone.name.clone(),
        tier: zone.tier,
        share: if zone.open.is_empty() { 0.0 } else { zone.share },
        n_open: of_zone(&zone.name).filter(|server| server.out.is_none()).count(),
        n_servers: of_zone(&zone.name).count(),
        n_in_flight: zone.n_in_flight,
        load: zone.load(),
        latency_ms: zone.latency_s(now).map(|latency| latency * 1e3),
    });
    let zones = zones.collect();
    let totals = service.totals;
    Service {
        name: name.to_owned(),
        breaker: breaker_name(service.breaker.state()),
        n_breaker_opened: service.breaker.n_opened(),
        failed: service.breaker.counts(now).failed(),
        n_in_flight: service.bulkhead.n_in_flight(),
        limit: service.bulkhead.limit(),
        is_panicking: service.fleet.is_panicking(),
        p50_ms,
        p95_ms,
        p99_ms,
        n_requests: totals.n_requests,
        n_failed: totals.n_failed,
        n_refused_open: totals.n_refused_open,
        n_refused_full: totals.n_refused_full,
        n_retries: totals.n_retries,
        n_hedges: totals.n_hedges,
        n_over_budget: totals.n_over_budget,
        n_fallbacks: backend.sums().n_fallbacks,
        zones,
        servers,
    }
}

pub fn servers(backend: &Backend) -> Vec<Server> {
    let handle = &backend.handle;
    let now = handle.env().now();
    let service = handle.lock();
    let all = service.fleet.servers().map(|server| Server {
        address: server.spec.address.to_string(),
        zone: server.spec.zone.clone(),
        weight: server.spec.weight,
        out: server.health.out().map(|reason| reason.name()),
        n_in_flight: server.n_in_flight,
        latency_ms: server.latency_s(now).map(|latency| latency * 1e3),
        n_requests: server.n_requests,
        n_failed: server.n_failed,
    });
    all.collect()
}

pub fn breaker_name(state: breaker::State) -> &'static str {
    match state {
        breaker::State::Closed => "closed",
        breaker::State::Open => "open",
        breaker::State::HalfOpen => "half open",
    }
}
