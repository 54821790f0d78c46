//! Metrics as OpenMetrics text, under the names and units that Prometheus's users expect. Taken
//! from what the services know at the moment of the question: nothing is counted twice.

use super::{Answer, of as answer, text};
use crate::backend::Backend;
use crate::counts::LATENCY_BOUNDS_S;
use crate::gateway::Gateway;
use crate::isolate::breaker;
use http::StatusCode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub fn of(gateway: &Gateway) -> Answer {
    let mut registry = Registry::with_prefix("atoll_gateway");
    let snapshot = Snapshot::of(gateway);
    registry.register_collector(Box::new(snapshot));
    let mut out = String::new();
    match prometheus_client::encoding::text::encode(&mut out, &registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            answer(StatusCode::OK, kind, out)
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// The numbers of one moment.
#[derive(Debug)]
struct Snapshot {
    whole: Vec<Plain>,
    services: Vec<PerService>,
}

/// A number that needs no label.
#[derive(Debug)]
struct Plain {
    name: &'static str,
    help: &'static str,
    is_counter: bool,
    value: f64,
}

#[derive(Debug)]
struct PerService {
    name: Arc<str>,
    by_class: [u64; 6],
    by_latency: [u64; LATENCY_BOUNDS_S.len() + 1],
    latency_sum_s: f64,
    /// Counters under their reason.
    refused: [(&'static str, u64); 2],
    added: [(&'static str, u64); 3],
    n_fallbacks: u64,
    n_failed: u64,
    n_in_flight: u32,
    limit: u32,
    breaker: u8,
    n_opened: u64,
    is_panicking: bool,
    zones: Vec<(String, f64, f64)>,
    servers: Vec<PerServer>,
}

#[derive(Debug)]
struct PerServer {
    address: String,
    zone: String,
    is_open: bool,
    n_in_flight: u32,
    n_requests: u64,
    n_failed: u64,
    latency_s: f64,
}

impl Snapshot {
    fn of(gateway: &Gateway) -> Snapshot {
        let counters = &gateway.counters;
        let counter = |name, help, counter: &AtomicU64| Plain {
            name,
            help,
            is_counter: true,
            value: counter.load(Relaxed) as f64,
        };
        let gauge = |name, help, value| Plain { name, help, is_counter: false, value };
        let state = gateway.state();
        let now_s = gateway.env().wall_us() / 1_000_000;
        let shown = state.acceptors.values().flat_map(|acceptor| acceptor.shown.iter());
        let expires = shown.map(|shown| shown.expires_s - now_s).min();
        let mut whole = vec![
            counter("connections_accepted", "Connections accepted", &counters.n_accepted),
            counter(
                "connections_refused",
                "Connections over the limit",
                &counters.n_refused_connections,
            ),
            counter(
                "requests_refused",
                "Requests refused because too many are under way",
                &counters.n_refused_requests,
            ),
            counter(
                "requests_without_route",
                "Requests that no route matches",
                &counters.n_no_route,
            ),
            counter("requests_malformed", "Requests that are malformed", &counters.n_bad_requests),
            counter(
                "requests_over_rate",
                "Requests over their route's rate",
                &counters.n_over_rate,
            ),
            counter(
                "requests_left",
                "Requests whose client left before the answer",
                &counters.n_left_requests,
            ),
            counter("tls_greetings_failed", "TLS greetings that failed", &counters.n_bad_greetings),
            counter(
                "connections_stood_still",
                "Connections closed because nothing came in time",
                &counters.n_stood_still,
            ),
            counter(
                "connections_moved",
                "Connections that moved to a thread with less to do",
                &gateway.lanes.n_moved,
            ),
            counter("connections_broken", "Connections that broke", &counters.n_broken_connections),
            counter("reloads", "Files taken over", &counters.n_reloads),
            counter("reloads_refused", "Files refused", &counters.n_bad_reloads),
            gauge("connections", "Connections open", gateway.n_connections() as f64),
            gauge("requests_in_flight", "Requests under way", f64::from(gateway.n_requests())),
            gauge(
                "draining",
                "1 while the gateway drains",
                f64::from(u8::from(gateway.is_stopping())),
            ),
        ];
        if let Some(expires) = expires {
            let help = "Time until the first of the shown certificates expires";
            whole.push(gauge("certificate_expires_seconds", help, expires as f64));
        }
        if let Some(log) = gateway.log() {
            let help = "Access log lines that the writer was too slow for";
            let value = log.n_dropped() as f64;
            whole.push(Plain { name: "access_log_dropped", help, is_counter: true, value });
        }
        if let Some(traces) = &state.traces {
            whole.push(counter(
                "spans_sent",
                "Spans that the collector took",
                &traces.queue.n_sent,
            ));
            whole.push(counter(
                "spans_dropped",
                "Spans that the collector did not take",
                &traces.queue.n_dropped,
            ));
        }
        let services = state.backends.values().map(|backend| PerService::of(backend)).collect();
        Snapshot { whole, services }
    }
}

impl PerService {
    fn of(backend: &Backend) -> PerService {
        let sums = backend.sums();
        let handle = &backend.handle;
        let now = handle.env().now();
        let service = handle.lock();
        let totals = service.totals;
        let servers = service.fleet.servers().map(|server| PerServer {
            address: server.spec.address.to_string(),
            zone: server.spec.zone.clone(),
            is_open: server.health.out().is_none(),
            n_in_flight: server.n_in_flight,
            n_requests: server.n_requests,
            n_failed: server.n_failed,
            latency_s: server.latency_s(now).unwrap_or(0.0),
        });
        let zones = service.fleet.zones();
        let zones = zones.map(|zone| (zone.name.clone(), zone.share, zone.load().unwrap_or(0.0)));
        PerService {
            name: handle.name.clone(),
            by_class: sums.by_class,
            by_latency: sums.by_latency,
            latency_sum_s: sums.latency_sum_us as f64 / 1e6,
            refused: [("breaker", totals.n_refused_open), ("bulkhead", totals.n_refused_full)],
            added: [
                ("retry", totals.n_retries),
                ("hedge", totals.n_hedges),
                ("over_budget", totals.n_over_budget),
            ],
            n_fallbacks: sums.n_fallbacks,
            n_failed: totals.n_failed,
            n_in_flight: service.bulkhead.n_in_flight(),
            limit: service.bulkhead.limit(),
            breaker: match service.breaker.state() {
                breaker::State::Closed => 0,
                breaker::State::HalfOpen => 1,
                breaker::State::Open => 2,
            },
            n_opened: service.breaker.n_opened(),
            is_panicking: service.fleet.is_panicking(),
            zones: zones.collect(),
            servers: servers.collect(),
        }
    }
}

/// One metric with a value for each set of labels.
struct Family<'a> {
    encoder: MetricEncoder<'a>,
}

impl Family<'_> {
    fn counter(&mut self, labels: &[(&str, &str)], value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.encoder.encode_family(&labels)?)
    }

    fn gauge(&mut self, labels: &[(&str, &str)], value: f64) -> fmt::Result {
        ConstGauge::new(value).encode(self.encoder.encode_family(&labels)?)
    }
}

fn family<'a>(
    encoder: &'a mut DescriptorEncoder<'_>,
    name: &'a str,
    help: &'a str,
    kind: MetricType,
) -> Result<Family<'a>, fmt::Error> {
    Ok(Family { encoder: encoder.encode_descriptor(name, help, None, kind)? })
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let encoder = &mut encoder;
        for plain in &self.whole {
            if plain.is_counter {
                let value = ConstCounter::new(plain.value as u64);
                value.encode(encoder.encode_descriptor(
                    plain.name,
                    plain.help,
                    None,
                    MetricType::Counter,
                )?)?;
            } else {
                let value = ConstGauge::new(plain.value);
                value.encode(encoder.encode_descriptor(
                    plain.name,
                    plain.help,
                    None,
                    MetricType::Gauge,
                )?)?;
            }
        }
        let counters = MetricType::Counter;
        let gauges = MetricType::Gauge;
        let mut requests =
            family(encoder, "requests", "Answers by the hundred of their status", counters)?;
        for service in &self.services {
            for (class, count) in service.by_class.iter().enumerate().skip(1) {
                let class = format!("{class}xx");
                requests.counter(&[("service", &service.name), ("code", &class)], *count)?;
            }
        }
        let help = "From a request's head to its answer's last byte";
        let unit = prometheus_client::registry::Unit::Seconds;
        let mut durations = encoder.encode_descriptor(
            "request_duration",
            help,
            Some(&unit),
            MetricType::Histogram,
        )?;
        for service in &self.services {
            let bounds = LATENCY_BOUNDS_S.iter().copied().chain([f64::MAX]);
            let buckets: Vec<(f64, u64)> = bounds.zip(service.by_latency.iter().copied()).collect();
            let count = service.by_latency.iter().sum();
            let labels = [("service", &*service.name)];
            durations.encode_family(&labels)?.encode_histogram::<[(&str, &str); 0]>(
                service.latency_sum_s,
                count,
                &buckets,
                None,
            )?;
        }
        let mut refused =
            family(encoder, "service_refused", "Requests refused to keep others well", counters)?;
        for service in &self.services {
            for (reason, count) in service.refused {
                refused.counter(&[("service", &service.name), ("reason", reason)], count)?;
            }
        }
        let mut added = family(
            encoder,
            "service_attempts_added",
            "Retries and hedges, and those without budget",
            counters,
        )?;
        for service in &self.services {
            for (kind, count) in service.added {
                added.counter(&[("service", &service.name), ("kind", kind)], count)?;
            }
        }
        type Number = (&'static str, &'static str, bool, fn(&PerService) -> f64);
        let numbers: [Number; 7] = [
            ("service_failed", "Requests that failed after all attempts", true, |s| {
                s.n_failed as f64
            }),
            ("service_fallbacks", "Answers by a fallback", true, |s| s.n_fallbacks as f64),
            ("service_breaker_opened", "How often the breaker opened", true, |s| s.n_opened as f64),
            ("service_breaker_state", "0 closed, 1 half open, 2 open", false, |s| {
                f64::from(s.breaker)
            }),
            ("service_in_flight", "Requests under way", false, |s| f64::from(s.n_in_flight)),
            ("service_limit", "The bulkhead's limit of requests under way", false, |s| {
                f64::from(s.limit)
            }),
            (
                "service_panicking",
                "1 while health is ignored because most servers look bad",
                false,
                |s| f64::from(u8::from(s.is_panicking)),
            ),
        ];
        for (name, help, is_counter, value) in numbers {
            let kind = if is_counter { MetricType::Counter } else { MetricType::Gauge };
            let mut family = family(encoder, name, help, kind)?;
            for service in &self.services {
                let labels = [("service", &*service.name)];
                match is_counter {
                    true => family.counter(&labels, value(service) as u64)?,
                    false => family.gauge(&labels, value(service))?,
                }
            }
        }
        let mut shares =
            family(encoder, "zone_share", "How much of what it is offered a zone takes", gauges)?;
        for service in &self.services {
            for (zone, share, _) in &service.zones {
                shares.gauge(&[("service", &service.name), ("zone", zone)], *share)?;
            }
        }
        let mut loads =
            family(encoder, "zone_load", "Requests under way over open servers", gauges)?;
        for service in &self.services {
            for (zone, _, load) in &service.zones {
                loads.gauge(&[("service", &service.name), ("zone", zone)], *load)?;
            }
        }
        type OfServer = (&'static str, &'static str, bool, fn(&PerServer) -> f64);
        let of_server: [OfServer; 5] = [
            ("server_up", "1 when the server gets requests", false, |s| {
                f64::from(u8::from(s.is_open))
            }),
            ("server_in_flight", "Requests under way", false, |s| f64::from(s.n_in_flight)),
            ("server_latency_seconds", "Recent mean latency", false, |s| s.latency_s),
            ("server_requests", "Attempts sent", true, |s| s.n_requests as f64),
            ("server_failed", "Attempts that failed", true, |s| s.n_failed as f64),
        ];
        for (name, help, is_counter, value) in of_server {
            let kind = if is_counter { MetricType::Counter } else { MetricType::Gauge };
            let mut family = family(encoder, name, help, kind)?;
            for service in &self.services {
                for server in &service.servers {
                    let labels = [
                        ("service", &*service.name),
                        ("server", &*server.address),
                        ("zone", &*server.zone),
                    ];
                    match is_counter {
                        true => family.counter(&labels, value(server) as u64)?,
                        false => family.gauge(&labels, value(server))?,
                    }
                }
            }
        }
        Ok(())
    }
}
