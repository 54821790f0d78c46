//! Routes: which requests go to which service, and how they are changed.

use super::table::{Result, Table, Value};
use super::{known_service, value};
use crate::config::{
    By, Cors, HeaderRules, PathMatch, RateLimit, Redirect, Rewrite, Route, Service,
};
use crate::isolate::bulkhead::Priority;
use http::{HeaderName, Method, StatusCode};
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

/// Headers that describe one connection or the body's length: the gateway writes its own.
const OWN: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
];

/// The route of a file that has none and one service.
pub fn all(service: &str) -> Route {
    Route {
        name: "all".to_owned(),
        hosts: Vec::new(),
        path: PathMatch::Below("/".to_owned()),
        methods: Vec::new(),
        headers: Vec::new(),
        targets: vec![(service.to_owned(), 1)],
        priority: Priority::default(),
        timeout: None,
        body_bytes_max: None,
        replace_prefix: None,
        rewrite: None,
        redirect: None,
        rate_limit: None,
        cors: None,
        idle_timeout: None,
        compress: false,
        request_headers: HeaderRules::default(),
        response_headers: HeaderRules::default(),
    }
}

pub fn routes(table: &mut Table, services: &BTreeMap<String, Service>) -> Result<Vec<Route>> {
    let mut names = HashSet::new();
    table.list("routes", |value| {
        let route = route(value, names.len() + 1, services)?;
        if !names.insert(route.name.clone()) {
            let name = &route.name;
            return Err(value.refuse(format_args!(
                "two routes are named {name:?}: name one of them otherwise (without a name, a \
                 route is named after its place)"
            )));
        }
        Ok(route)
    })
}

/// `place` is the route's in the file, from 1.
fn route(value: &Value, place: usize, services: &BTreeMap<String, Service>) -> Result<Route> {
    let mut table = value.table()?;
    let mut name = place.to_string();
    table.set("name", &mut name, value::name)?;
    let hosts = table.list("hosts", value::host_pattern)?;
    let below = table.read("path", value::matched_path)?;
    let exactly = table.read("exact_path", value::matched_path)?;
    let methods = table.list("methods", method)?;
    let headers = table.read("headers", headers)?.unwrap_or_default();
    let one = table.read("service", |value| known_service(value.text()?, value, services))?;
    let several = table.read("services", |value| weights(value, services))?;
    let priorities = Priority::ALL.map(|priority| (priority.name(), priority));
    let priority = table.read("priority", |value| value::one_of(&priorities, value))?;
    let timeout = table.read("timeout", value::time)?;
    let body_bytes_max = table.read("body_bytes_max", value::size(0..=1 << 40))?;
    let replace_prefix = table.read("replace_prefix", value::path)?;
    let rewrite = table.read("rewrite", rewrite)?;
    let redirect = table.read("redirect", redirect)?;
    let rate_limit = table.read("rate_limit", rate_limit)?;
    let cors = table.read("cors", cors)?;
    let idle_timeout = table.read("idle_timeout", value::time)?;
    let mut compress = false;
    table.set("compress", &mut compress, value::flag)?;
    let request_headers = table.read("request_headers", header_rules)?.unwrap_or_default();
    let response_headers = table.read("response_headers", header_rules)?.unwrap_or_default();
    table.finish()?;

    let path = match (below, exactly) {
        (None, None) => PathMatch::Below("/".to_owned()),
        (Some(path), None) => PathMatch::Below(path),
        (None, Some(path)) => PathMatch::Exactly(path),
        (Some(_), Some(_)) => {
            return Err(table.refuse_at(
                "exact_path",
                format_args!("{} has both path and exact_path: keep one of them", table.name()),
            ));
        }
    };
    if replace_prefix.is_some() && rewrite.is_some() {
        return Err(table.refuse_at(
            "rewrite",
            format_args!("{} has both replace_prefix and rewrite: keep one of them", table.name()),
        ));
    }
    let targets = match (one, several) {
        (None, None) if redirect.is_some() => Vec::new(),
        (Some(_), _) | (_, Some(_)) if redirect.is_some() => {
            return Err(table.refuse_at(
                "redirect",
                format_args!("{} has both redirect and a service: keep one of them", table.name()),
            ));
        }
        (Some(service), None) => vec![(service, 1)],
        (None, Some(targets)) => targets,
        (Some(_), Some(_)) => {
            return Err(table.refuse_at(
                "services",
                format_args!("{} has both service and services: keep one of them", table.name()),
            ));
        }
        (None, None) => table.need("service", None)?,
    };
    Ok(Route {
        name,
        hosts,
        path,
        methods,
        headers,
        targets,
        priority: priority.unwrap_or_default(),
        timeout,
        body_bytes_max,
        replace_prefix,
        rewrite,
        redirect,
        rate_limit,
        cors,
        idle_timeout,
        compress,
        request_headers,
        response_headers,
    })
}

fn rewrite(value: &Value) -> Result<Rewrite> {
    let mut table = value.table()?;
    let from = table.read("from", value::pattern)?;
    let to = table.read("to", |value| value.text().map(str::to_owned))?;
    table.finish()?;
    let (from, to) = (table.need("from", from)?, table.need("to", to)?);
    if !to.starts_with('/') && !to.starts_with('$') {
        return Err(table.refuse_at(
            "to",
            format_args!("to in {} must begin with \"/\" or with a group", table.name()),
        ));
    }
    Ok(Rewrite { from, to })
}

fn redirect(value: &Value) -> Result<Redirect> {
    const STATUSES: &str = "301, 302, 303, 307 or 308";
    let mut table = value.table()?;
    let to = table.read("to", |value| {
        value::header_value(value)?;
        value.text().map(str::to_owned)
    })?;
    let from = table.read("from", value::pattern)?;
    let mut status = StatusCode::PERMANENT_REDIRECT;
    table.set("status", &mut status, |value| {
        let known = value.get().as_integer().map(|number| number.as_str());
        let known = known.filter(|known| STATUSES.contains(known) && known.len() == 3);
        known
            .and_then(|known| StatusCode::from_bytes(known.as_bytes()).ok())
            .ok_or_else(|| value.must(format_args!("be {STATUSES}")))
    })?;
    table.finish()?;
    Ok(Redirect { status, to: table.need("to", to)?, from })
}

fn rate_limit(value: &Value) -> Result<RateLimit> {
    let mut table = value.table()?;
    let per_s = table.read("per_second", value::above_zero(1e6))?;
    let burst = table.read("burst", value::integer(1..=1_000_000_u32))?;
    let mut by = By::Client;
    table.set("by", &mut by, |value| match value.text()? {
        "client" => Ok(By::Client),
        "all" => Ok(By::Everybody),
        text => match text.strip_prefix("header:").map(|name| value::header_key(name, value)) {
            Some(name) => name.map(By::Header),
            None => Err(value.must("be \"client\", \"all\" or \"header:NAME\"")),
        },
    })?;
    table.finish()?;
    let per_s = table.need("per_second", per_s)?;
    // As much as a second brings, and a whole request at least.
    let burst = burst.map_or(per_s.max(1.0), f64::from);
    Ok(RateLimit { per_s, burst, by })
}

fn cors(value: &Value) -> Result<Cors> {
    let mut table = value.table()?;
    let origins = table.list("origins", |value| {
        let text = value.text()?;
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let is_origin =
            host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '*', ' ']));
        match text == "*" || text == "null" || is_origin {
            true => Ok(text.to_ascii_lowercase()),
            false => Err(value.must("be an origin, such as \"https://shop.example\", or \"*\"")),
        }
    })?;
    let mut methods = table.list("methods", method)?;
    let headers = table.list("headers", value::header_name)?;
    let exposed = table.list("expose", value::header_name)?;
    let mut has_credentials = false;
    table.set("credentials", &mut has_credentials, value::flag)?;
    let mut max_age = Duration::from_secs(600);
    table.set("max_age", &mut max_age, value::time_or_zero)?;
    table.finish()?;
    if origins.is_empty() {
        return Err(table.refuse(format_args!("{} needs the setting \"origins\"", table.name())));
    }
    let is_any = origins.iter().any(|origin| origin == "*");
    if is_any && has_credentials {
        return Err(table.refuse_at(
            "credentials",
            "with credentials every origin is named: \"*\" would let any page act for its visitor",
        ));
    }
    if methods.is_empty() {
        methods = vec![Method::GET, Method::HEAD, Method::POST];
    }
    let origins = if is_any { Vec::new() } else { origins };
    Ok(Cors { origins, methods, headers, exposed, has_credentials, max_age })
}

/// Methods are compared as they are: "get" would match nothing.
pub fn method(value: &Value) -> Result<Method> {
    let is_upper = |text: &&str| !text.bytes().any(|byte| byte.is_ascii_lowercase());
    let text = value.get().as_str().filter(is_upper);
    text.and_then(|text| Method::from_bytes(text.as_bytes()).ok())
        .ok_or_else(|| value.must("be a method in capitals, such as \"GET\""))
}

/// Headers and the value that each must have; `true`: any.
fn headers(value: &Value) -> Result<Vec<(HeaderName, Option<String>)>> {
    let wanted = |_: &HeaderName, value: &Value| match value.get().as_bool() {
        Some(true) => Ok(None),
        Some(false) => Err(value.must("be true, for any value, or a value in quotes")),
        None => {
            value::header_value(value)?;
            Ok(Some(value.text()?.to_owned()))
        }
    };
    named_once(value, wanted)
}

fn weights(value: &Value, services: &BTreeMap<String, Service>) -> Result<Vec<(String, u32)>> {
    let mut targets = Vec::new();
    for (name, weight) in value.table()?.entries() {
        let weight_of = value::integer(0..=1_000_000);
        targets.push((known_service(name, &weight, services)?, weight_of(&weight)?));
    }
    if targets.iter().all(|(_, weight)| *weight == 0) {
        let subject = value.subject();
        return Err(
            value.refuse(format_args!("{subject} sends requests nowhere: give a weight above 0"))
        );
    }
    Ok(targets)
}

fn header_rules(value: &Value) -> Result<HeaderRules> {
    let mut table = value.table()?;
    let remove = table.list("remove", |value| {
        let name = value::header_name(value)?;
        check_free(&name, value)?;
        check_not_host(&name, value)?;
        Ok(name)
    })?;
    let set = table.read("set", |value| {
        named_once(value, |name, value| {
            check_free(name, value)?;
            value::header_value(value)
        })
    })?;
    let add = table.read("add", |value| {
        named_once(value, |name, value| {
            check_free(name, value)?;
            check_not_host(name, value)?;
            value::header_value(value)
        })
    })?;
    table.finish()?;
    Ok(HeaderRules { remove, set: set.unwrap_or_default(), add: add.unwrap_or_default() })
}

fn check_free(name: &HeaderName, value: &Value) -> Result<()> {
    if OWN.contains(&name.as_str()) {
        let name = name.as_str();
        return Err(value.refuse(format_args!(
            "the header {name:?} belongs to the gateway and cannot be changed: leave it out"
        )));
    }
    Ok(())
}

/// A request has exactly one.
fn check_not_host(name: &HeaderName, value: &Value) -> Result<()> {
    if *name == http::header::HOST {
        return Err(
            value.refuse("the header \"host\" cannot be removed or added: write it under set")
        );
    }
    Ok(())
}

/// A table whose keys are names of headers, in the order of the file.
fn named_once<T>(
    value: &Value,
    read: impl Fn(&HeaderName, &Value) -> Result<T>,
) -> Result<Vec<(HeaderName, T)>> {
    let mut seen = HashSet::new();
    let entries = value.table()?.entries();
    let named = entries.iter().map(|(key, value)| {
        let name = value::header_key(key, value)?;
        if !seen.insert(name.clone()) {
            let name = name.as_str();
            return Err(value.refuse(format_args!("the header {name:?} is named twice")));
        }
        let read = read(&name, value)?;
        Ok((name, read))
    });
    named.collect()
}
