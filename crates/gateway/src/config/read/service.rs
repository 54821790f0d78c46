//! A service: where its servers are, and what it may cost.

use super::table::{Result, Table, Value};
use super::{Here, value};
use crate::balance::settings::HealthCheck;
use crate::balance::{self, ServerSpec};
use crate::config::{
    Certificate, DnsSource, Fallback, Protocol, Service, StaticAnswer, UpstreamTls,
};
use crate::isolate::{breaker, budget, bulkhead};
use crate::service::{Hedge, Settings};
use http::{HeaderValue, StatusCode};
use std::collections::HashSet;
use std::time::Duration;

/// Shorter than the five seconds after which common servers close an idle connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// gRPC's health checking protocol.
const GRPC_CHECK: &str = "/grpc.health.v1.Health/Check";

pub fn service(value: &Value, here: &Here) -> Result<Service> {
    let mut table = value.table()?;
    let servers = servers(&mut table, here)?;
    let dns = dns(&mut table, here)?;
    let mut protocol = Protocol::default();
    let protocols = [("http1", Protocol::Http1), ("http2", Protocol::Http2)];
    table.set("protocol", &mut protocol, |value| value::one_of(&protocols, value))?;
    let mut idle_timeout = IDLE_TIMEOUT;
    table.set("idle_timeout", &mut idle_timeout, value::time)?;
    let ping_interval = table.read("ping_interval", value::time)?;
    let tls = table.read("tls", |value| tls(value, here))?;
    let settings = settings(&mut table)?;
    let is_grpc = settings.balance.check.as_ref().is_some_and(|check| check.grpc.is_some());
    if is_grpc && protocol != Protocol::Http2 {
        return Err(table.refuse_at(
            "health",
            format_args!("{} is checked by gRPC, which needs protocol = \"http2\"", table.name()),
        ));
    }
    let fallback = table.read("fallback", fallback)?.unwrap_or_default();
    table.finish()?;
    if servers.is_empty() && dns.is_empty() && !here.has_admin {
        return Err(table.refuse(format_args!(
            "{} has no servers: add servers or dns, or [admin] to bring them through the API",
            table.name()
        )));
    }
    if ping_interval.is_some() && protocol != Protocol::Http2 {
        return Err(table.refuse_at(
            "ping_interval",
            format_args!(
                "{} speaks HTTP/1.1, which has no pings: leave it out, or add protocol = \"http2\"",
                table.name()
            ),
        ));
    }
    Ok(Service { settings, servers, dns, protocol, idle_timeout, ping_interval, tls, fallback })
}

fn servers(table: &mut Table, here: &Here) -> Result<Vec<ServerSpec>> {
    let mut seen = HashSet::new();
    table.list("servers", |value| {
        let server = server(value, here)?;
        match seen.insert(server.address) {
            true => Ok(server),
            false => Err(value.refuse(format_args!(
                "{} names {} twice",
                value.subject(),
                server.address
            ))),
        }
    })
}

/// `"IP:PORT"`, `"ZONE=IP:PORT"`, or a table with a weight.
fn server(value: &Value, here: &Here) -> Result<ServerSpec> {
    if let Some(text) = value.get().as_str() {
        let (zone, address) = text.split_once('=').unwrap_or((here.zone, text));
        let address = address.parse().ok().filter(|_| value::is_name(zone));
        return match address {
            Some(address) => Ok(ServerSpec { address, zone: zone.to_owned(), weight: 1.0 }),
            None => {
                Err(value
                    .must("be \"IP:PORT\" or \"ZONE=IP:PORT\" (names of hosts stand under dns)"))
            }
        };
    }
    let mut table = value.table()?;
    let address = table.read("address", value::address)?;
    let mut zone = here.zone.to_owned();
    table.set("zone", &mut zone, value::name)?;
    let mut weight = 1.0;
    table.set("weight", &mut weight, value::above_zero(1e6))?;
    table.finish()?;
    Ok(ServerSpec { address: table.need("address", address)?, zone, weight })
}

fn dns(table: &mut Table, here: &Here) -> Result<Vec<DnsSource>> {
    let mut seen = HashSet::new();
    table.list("dns", |value| {
        let mut table = value.table()?;
        let name = table.read("name", value::host)?;
        let port = table.read("port", value::integer(1..=u16::MAX))?;
        let mut zone = here.zone.to_owned();
        table.set("zone", &mut zone, value::name)?;
        let mut interval = Duration::from_secs(10);
        table.set("interval", &mut interval, value::time)?;
        table.finish()?;
        let (name, port) = (table.need("name", name)?, table.need("port", port)?);
        if !seen.insert((name.clone(), port)) {
            return Err(value.refuse(format_args!("{} names {name}:{port} twice", value.subject())));
        }
        Ok(DnsSource { name, port, zone, interval })
    })
}

fn tls(value: &Value, here: &Here) -> Result<UpstreamTls> {
    let mut table = value.table()?;
    let authority = table.read("authority", |value| here.file(value))?;
    let server_name = table.read("server_name", value::host)?;
    let certificate = table.read("certificate", |value| here.file(value))?;
    let key = table.read("key", |value| here.file(value))?;
    table.finish()?;
    let certificate = match (certificate, key) {
        (None, None) => None,
        (certificate, key) => Some(Certificate {
            certificate: table.need("certificate", certificate)?,
            key: table.need("key", key)?,
        }),
    };
    Ok(UpstreamTls {
        authority: table.need("authority", authority)?,
        server_name: table.need("server_name", server_name)?,
        certificate,
    })
}

fn settings(table: &mut Table) -> Result<Settings> {
    let mut settings = Settings::default();
    table.set("timeout", &mut settings.timeout, value::time)?;
    settings.attempt_timeout = table.read("attempt_timeout", value::time)?;
    table.set("connect_timeout", &mut settings.connect_timeout, value::time)?;
    table.set("attempts", &mut settings.n_attempts_max, value::integer(1..=20))?;
    table.set("retries", &mut settings.budget, retries)?;
    table.set("hedge", &mut settings.hedge, hedge)?;
    table.set("bulkhead", &mut settings.bulkhead, bulkhead)?;
    table.set("breaker", &mut settings.breaker, breaker)?;
    table.read("balance", |value| balance(value, &mut settings.balance))?;
    table.read("health", |value| health(value, &mut settings.balance))?;
    settings.balance.subset = table.read("subset", value::integer(1..=1_000_000))?;
    let timeout = settings.timeout;
    table.bound("connect_timeout", &mut settings.connect_timeout, "timeout", timeout)?;
    if let Some(attempt_timeout) = &mut settings.attempt_timeout {
        table.bound("attempt_timeout", attempt_timeout, "timeout", timeout)?;
    }
    Ok(settings)
}

fn retries(value: &Value) -> Result<budget::Settings> {
    let mut table = value.table()?;
    let mut budget = budget::Settings::default();
    table.set("share", &mut budget.share, value::number(0.0..=10.0))?;
    table.set("floor_per_second", &mut budget.floor_per_s, value::number(0.0..=1e6))?;
    table.finish()?;
    Ok(budget)
}

fn hedge(value: &Value) -> Result<Option<Hedge>> {
    if let Some(is_on) = value.get().as_bool() {
        return Ok(is_on.then(Hedge::default));
    }
    let mut table = value.table().map_err(|_| value.must("be true, false or a table"))?;
    let mut hedge = Hedge::default();
    table.set("quantile", &mut hedge.quantile, value::share)?;
    table.set("delay_min", &mut hedge.delay_min, value::time_or_zero)?;
    table.finish()?;
    Ok(Some(hedge))
}

fn bulkhead(value: &Value) -> Result<bulkhead::Settings> {
    let mut table = value.table()?;
    let mut bulkhead = bulkhead::Settings::default();
    table.set("limit_min", &mut bulkhead.limit_min, value::integer(1..=1_000_000))?;
    table.set("limit_max", &mut bulkhead.limit_max, value::integer(1..=1_000_000))?;
    table.set("tolerance", &mut bulkhead.tolerance, value::number(1.0..=100.0))?;
    table.finish()?;
    table.bound("limit_min", &mut bulkhead.limit_min, "limit_max", bulkhead.limit_max)?;
    Ok(bulkhead)
}

fn breaker(value: &Value) -> Result<breaker::Settings> {
    let mut table = value.table()?;
    let mut breaker = breaker::Settings::default();
    table.set("window", &mut breaker.window, value::time)?;
    table.set("requests_min", &mut breaker.n_requests_min, value::integer(1..=1_000_000))?;
    table.set("failed_max", &mut breaker.failed_max, value::share)?;
    breaker.slow_after = table.read("slow_after", value::time)?;
    table.set("slow_max", &mut breaker.slow_max, value::share)?;
    table.set("open_for", &mut breaker.open_for, value::time)?;
    table.set("open_max", &mut breaker.open_max, value::time)?;
    table.set("trials", &mut breaker.n_trials, value::integer(1..=1000))?;
    table.set("trial_timeout", &mut breaker.trial_timeout, value::time)?;
    table.finish()?;
    table.bound("open_for", &mut breaker.open_for, "open_max", breaker.open_max)?;
    Ok(breaker)
}

fn balance(value: &Value, balance: &mut balance::Settings) -> Result<()> {
    let mut table = value.table()?;
    table.set("load_max", &mut balance.load_max, value::above_zero(1e6))?;
    table.set("latency_max", &mut balance.latency_max, value::number(1.0..=1000.0))?;
    table.set("latency_slack", &mut balance.latency_slack, value::time_or_zero)?;
    table.set("failed_max", &mut balance.failed_max, value::share)?;
    table.set("requests_min", &mut balance.n_requests_min, value::integer(1..=1_000_000))?;
    table.set("overprovision", &mut balance.overprovision, value::number(1.0..=100.0))?;
    table.set("fall_per_second", &mut balance.fall_per_s, value::above_zero(1000.0))?;
    table.set("rise_per_second", &mut balance.rise_per_s, value::above_zero(1000.0))?;
    table.set("panic_below", &mut balance.panic_below, value::number(0.0..=1.0))?;
    table.set("hot_quantile", &mut balance.hot_quantile, value::share)?;
    table.set("warm_up", &mut balance.warm_up, value::time_or_zero)?;
    table.finish()
}

fn health(value: &Value, balance: &mut balance::Settings) -> Result<()> {
    let mut table = value.table()?;
    let path = table.read("path", value::path_and_query)?;
    let grpc = table.read("grpc", |value| match value.text()? {
        text if text.is_empty() || value::is_name(text) => Ok(text.to_owned()),
        _ => Err(value.must("be the name of a service of gRPC, or \"\" for the server as a whole")),
    })?;
    if path.is_some() && grpc.is_some() {
        return Err(table.refuse_at(
            "grpc",
            format_args!("{} has both path and grpc: keep one of them", table.name()),
        ));
    }
    let is_on = path.is_some() || grpc.is_some();
    let is_grpc = grpc.is_some();
    let mut check = HealthCheck::of(path.unwrap_or_else(|| GRPC_CHECK.to_owned()));
    check.grpc = grpc;
    check.host = table.read("host", value::host_and_port)?;
    table.set("method", &mut check.method, super::route::method)?;
    let statuses = table.list("statuses", statuses)?;
    if !statuses.is_empty() {
        check.statuses = statuses;
    }
    for key in ["method", "statuses"] {
        if is_grpc && table.has(key) {
            let name = table.name();
            return Err(table.refuse_at(
                key,
                format_args!(
                    "{key} in {name} is about a check with path, and not of gRPC's: leave it out"
                ),
            ));
        }
    }
    table.set("interval", &mut check.interval, value::time)?;
    table.set("timeout", &mut check.timeout, value::time)?;
    table.set("well_after", &mut check.n_well, value::integer(1..=1000))?;
    table.set("unwell_after", &mut check.n_unwell, value::integer(1..=1000))?;
    table.set("unreachable_max", &mut balance.n_unreachable_max, value::integer(1..=1000))?;
    table.set("trip_for", &mut balance.trip_for, value::time)?;
    table.set("trip_max", &mut balance.trip_max, value::time)?;
    table.set("failed_max", &mut balance.n_failed_max, value::integer(1..=1000))?;
    table.set("eject_for", &mut balance.eject_for, value::time)?;
    table.set("eject_max", &mut balance.eject_max, value::time)?;
    table.set("outlier_margin", &mut balance.outlier_margin, value::number(0.0..=1.0))?;
    table.set("ejected_max", &mut balance.ejected_max, value::number(0.0..=1.0))?;
    table.set("idle_probe_after", &mut balance.idle_probe_after, value::time)?;
    table.finish()?;
    table.bound("trip_for", &mut balance.trip_for, "trip_max", balance.trip_max)?;
    table.bound("eject_for", &mut balance.eject_for, "eject_max", balance.eject_max)?;
    for key in ["interval", "timeout", "well_after", "unwell_after", "host", "method", "statuses"] {
        if !is_on && table.has(key) {
            return Err(table.refuse_at(
                key,
                format_args!(
                    "{key} in {} is about an active check: add path = \"/…\" (or grpc) to turn it on",
                    table.name()
                ),
            ));
        }
    }
    balance.check = is_on.then_some(check);
    Ok(())
}

/// `204`, `"2xx"` or `"200-299"`.
fn statuses(value: &Value) -> Result<(u16, u16)> {
    let whole = |value: &Value| value::integer(100..=599_u16)(value).map(|status| (status, status));
    let Some(text) = value.get().as_str() else { return whole(value) };
    let class = text.strip_suffix("xx").and_then(|class| class.parse::<u16>().ok());
    let class = class.filter(|class| (1..=5).contains(class)).map(|class| class * 100);
    let range =
        text.split_once('-').and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    let range = range.filter(|(from, to)| 100 <= *from && from <= to && *to <= 599);
    class
        .map(|class| (class, class + 99))
        .or(range)
        .ok_or_else(|| value.must("be a status or several, such as 204, \"2xx\" or \"200-299\""))
}

fn fallback(value: &Value) -> Result<Fallback> {
    let mut table = value.table()?;
    let stale_for = table.read("stale_for", value::time)?;
    let service = table.read("service", |value| value.text().map(str::to_owned))?;
    let answer = table.read("answer", answer)?;
    table.finish()?;
    Ok(Fallback { stale_for, service, answer })
}

fn answer(value: &Value) -> Result<StaticAnswer> {
    let mut table = value.table()?;
    let status = table.read("status", |value| {
        StatusCode::from_u16(value::integer(200..=599)(value)?)
            .map_err(|_| value.must("be a status"))
    })?;
    let mut content_type = HeaderValue::from_static("text/plain; charset=utf-8");
    table.set("content_type", &mut content_type, value::header_value)?;
    let mut body = String::new();
    table.set("body", &mut body, |value| value.text().map(str::to_owned))?;
    table.finish()?;
    Ok(StaticAnswer { status: table.need("status", status)?, content_type, body })
}
