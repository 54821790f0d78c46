//! The admin port: what a person on call, Prometheus and scripts ask.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | one live page of zones, servers, load, latency and breakers |
//! | `GET /state` | the same as JSON |
//! | `GET /metrics` | OpenMetrics, as Prometheus reads it |
//! | `GET /healthz` | 200; 503 while the gateway drains |
//! | `GET /services` | the services' names |
//! | `GET /services/NAME/servers` | the service's servers, wherever they come from |
//! | `PUT /services/NAME/servers/HOST:PORT` | adds a server, or changes its zone or weight: body empty or `{"zone": "a", "weight": 1.0}` |
//! | `DELETE /services/NAME/servers/HOST:PORT` | takes a server back that was put here |
//!
//! What changes something needs the file's `token` (`Authorization: Bearer …`) when the port is
//! reachable from other hosts, or when the file has one. Servers that were put here live as long as
//! the process: whoever starts it tells it again.

mod metrics;
mod state;

use crate::balance::ServerSpec;
use crate::gateway::Gateway;
use base::env::Stream;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

const PAGE: &str = include_str!("admin/page.html");
const BODY_BYTES_MAX: usize = 16 << 10;
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// What is wrong with the file as it is now.
pub type Complaint = watch::Receiver<Option<String>>;

/// Serves one connection, which came to the address `at`.
pub async fn connection(
    gateway: Arc<Gateway>,
    stream: Stream,
    at: SocketAddr,
    from: SocketAddr,
    complaint: Complaint,
) {
    let service = service_fn(|request: Request<Incoming>| {
        let (gateway, complaint) = (gateway.clone(), complaint.clone());
        async move {
            // The file may have changed while the connection was open.
            if gateway.state().config.admin != Some(at) {
                let line = "this address is no longer the admin port: connect anew";
                let mut refusal = text(StatusCode::MISDIRECTED_REQUEST, line);
                let close = HeaderValue::from_static("close");
                refusal.headers_mut().insert(header::CONNECTION, close);
                return Ok::<_, Infallible>(refusal);
            }
            Ok(answer(&gateway, &complaint, request).await)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%from, %error, "an admin connection ended");
    }
}

type Answer = Response<Full<Bytes>>;

async fn answer(gateway: &Gateway, complaint: &Complaint, request: Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    let path: Vec<&str> = parts.uri.path().split('/').skip(1).collect();
    let is_read = matches!(parts.method, Method::GET | Method::HEAD);
    match (&path[..], is_read) {
        ([""], true) => {
            let mut page = of(StatusCode::OK, "text/html; charset=utf-8", PAGE);
            // The page brings all it needs; nothing else may run in it.
            let policy = "default-src 'none'; style-src 'unsafe-inline'; \
                script-src 'unsafe-inline'; connect-src 'self'";
            let policy = HeaderValue::from_static(policy);
            page.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
            page
        }
        (["state"], true) => json(&state::of(gateway, complaint.borrow().as_deref())),
        (["metrics"], true) => metrics::of(gateway),
        (["healthz"], true) => match gateway.is_stopping() {
            false => text(StatusCode::OK, "ok"),
            true => text(StatusCode::SERVICE_UNAVAILABLE, "draining"),
        },
        (["services"], true) => json(&gateway.state().backends.keys().cloned().collect::<Vec<_>>()),
        (["services", name, "servers"], true) => servers(gateway, name),
        (["services", name, "servers", address], false) => {
            change(gateway, &parts.method, &parts.headers, name, address, body).await
        }
        ([""] | ["state" | "metrics" | "healthz" | "services"] | ["services", ..], _) => {
            let allowed = match path[..] {
                ["services", _, "servers", _] => "PUT, DELETE",
                _ => "GET, HEAD",
            };
            let mut refusal = text(
                StatusCode::METHOD_NOT_ALLOWED,
                &format!("{} is not for {}; use {allowed}", parts.method, parts.uri.path()),
            );
            refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
            refusal
        }
        _ => text(StatusCode::NOT_FOUND, &format!("there is nothing at {}", parts.uri.path())),
    }
}

fn of(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn text(status: StatusCode, line: &str) -> Answer {
    of(status, "text/plain; charset=utf-8", format!("{line}\n"))
}

fn json(value: &impl serde::Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(bytes) => of(StatusCode::OK, "application/json", bytes),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn no_service(gateway: &Gateway, name: &str) -> Answer {
    let state = gateway.state();
    let names = state.backends.keys().map(String::as_str);
    let near = names.min_by_key(|known| strsim::levenshtein(known, name));
    let hint = near.map(|near| format!(", did you mean {near:?}?")).unwrap_or_default();
    text(StatusCode::NOT_FOUND, &format!("there is no service {name:?}{hint}"))
}

fn servers(gateway: &Gateway, name: &str) -> Answer {
    match gateway.state().backends.get(name) {
        Some(backend) => json(&state::servers(backend)),
        None => no_service(gateway, name),
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    zone: Option<String>,
    weight: Option<f64>,
}

async fn change(
    gateway: &Gateway,
    method: &Method,
    headers: &HeaderMap,
    name: &str,
    address: &str,
    body: Incoming,
) -> Answer {
    let state = gateway.state();
    if let Some(refusal) = refused(&state.config, headers) {
        return refusal;
    }
    let Some(backend) = state.backends.get(name) else { return no_service(gateway, name) };
    let Ok(address) = address.parse::<SocketAddr>() else {
        let line = format!("{address:?} is no address; it is written HOST:PORT, as 10.0.0.1:80");
        return text(StatusCode::BAD_REQUEST, &line);
    };
    match *method {
        Method::PUT => {
            let read = Limited::new(body, BODY_BYTES_MAX).collect().await;
            let bytes = match read {
                Ok(read) => read.to_bytes(),
                Err(error) => return text(StatusCode::BAD_REQUEST, &format!("the body: {error}")),
            };
            let wanted = match serde_json::from_slice::<Wanted>(&bytes) {
                _ if bytes.is_empty() => Wanted::default(),
                Ok(wanted) => wanted,
                Err(error) => {
                    let line = format!(
                        "the body is {{\"zone\": \"a\", \"weight\": 1.0}} or a part of it: {error}"
                    );
                    return text(StatusCode::BAD_REQUEST, &line);
                }
            };
            let weight = wanted.weight.unwrap_or(1.0);
            if !(weight.is_finite() && weight > 0.0) {
                return text(StatusCode::BAD_REQUEST, "a weight is a number above 0");
            }
            let zone = wanted.zone.unwrap_or_else(|| state.config.zone.clone());
            let is_new = backend.put_server(ServerSpec { address, zone, weight });
            let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
            text(status, &format!("{address} serves {name:?}"))
        }
        Method::DELETE => match backend.delete_server(address) {
            true => text(StatusCode::OK, &format!("{address} no longer serves {name:?}")),
            false => {
                let line = format!(
                    "{address} was not put here; servers of the file and of names are removed there"
                );
                text(StatusCode::NOT_FOUND, &line)
            }
        },
        _ => text(StatusCode::METHOD_NOT_ALLOWED, "use PUT or DELETE"),
    }
}

/// Least privilege: who can reach the port can look; to change something from another host takes
/// the token.
fn refused(config: &crate::config::Config, headers: &HeaderMap) -> Option<Answer> {
    let Some(token) = &config.admin_token else {
        let is_local = config.admin.is_some_and(|admin| admin.ip().is_loopback());
        let line =
            "the admin port is reachable from other hosts and has no token: set one in [admin]";
        if !is_local {
            return Some(text(StatusCode::FORBIDDEN, line));
        }
        // A page of the web may resolve its own name to this address; its browser then sends that
        // name.
        let line = "without a token, what is asked for must be named by its address";
        return (!is_by_address(headers)).then(|| text(StatusCode::FORBIDDEN, line));
    };
    let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let wanted = format!("Bearer {token}");
    // The time it takes tells nothing of where they differ.
    let differs =
        given.iter().zip(wanted.bytes()).fold(0, |differs, (one, other)| differs | (one ^ other));
    let is_same = given.len() == wanted.len() && differs == 0;
    let line = "this needs the header `Authorization: Bearer TOKEN` with the token of [admin]";
    (!is_same).then(|| text(StatusCode::UNAUTHORIZED, line))
}

fn is_by_address(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost" || name.parse::<IpAddr>().is_ok() || host.parse::<SocketAddr>().is_ok()
}
