//! The systems that are measured, each as its own documentation would have it set up, and alike
//! where that is a matter of choice:
//!
//! * two workers; no access log; connections to backends and clients are kept (no limit of requests
//!   on one), 1 s to connect, 30 s for an answer;
//! * each tells servers who asked (`X-Forwarded-For`, `-Proto` and, but for Envoy, `-Host`) and names the
//!   request: `X-Request-Id`, Atoll `traceparent`;
//! * a request that failed without an answer (no connection, or it broke) is tried once more, on
//!   another backend; where `retry_503` says so, one that was answered 503 as well;
//! * how each finds out that a backend is bad is its own: nginx looks away for 10 s after one failed
//!   try (its defaults). HAProxy takes a backend out after 5 failed connections in a row, or two
//!   missed checks, one a second, and takes it back after two good ones (its defaults: only checks,
//!   every 2 s, 3 missed). Envoy ejects after 5 failures in a row (its default) for 10 s (30), at
//!   most half of them (10 %), which its workers are told at once (by default a second ejection
//!   within a second waits for the end of it). It spends at most 20 % of what is under way (or 3)
//!   on retries, which is what `retry_budget` defaults to, 1 ms after the failure (25 ms).
//!
//! Only Atoll is told of zones; the others are given a flat list. Beyond that, the two threads and
//! the one retry its configuration is what it is without one.

use super::processes::{Process, child};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum System {
    /// The first backend without a proxy: the floor.
    Direct,
    Haproxy,
    Nginx,
    Envoy,
    Atoll,
}

impl System {
    pub fn name(self) -> &'static str {
        match self {
            System::Direct => "direct",
            System::Haproxy => "HAProxy",
            System::Nginx => "nginx",
            System::Envoy => "Envoy",
            System::Atoll => "Atoll",
        }
    }

    fn port(self) -> u16 {
        match self {
            System::Direct => BACKEND_PORT,
            System::Atoll => 31_000,
            System::Haproxy => 31_010,
            System::Nginx => 31_020,
            System::Envoy => 31_030,
        }
    }
}

/// The first backend's; the others' follow.
pub const BACKEND_PORT: u16 = 30_001;
pub const BACKENDS_MAX: u16 = 16;
const ADMIN_PORT: u16 = 31_001;

pub fn ports() -> impl Iterator<Item = u16> {
    let proxies = [System::Atoll, System::Haproxy, System::Nginx, System::Envoy];
    let proxies = proxies.map(System::port).into_iter();
    (BACKEND_PORT..BACKEND_PORT + BACKENDS_MAX).chain(proxies).chain([ADMIN_PORT])
}

/// Where the systems' programs are.
#[derive(Default)]
pub struct Programs {
    pub atoll: PathBuf,
    pub envoy: PathBuf,
}

/// Which backend is next; Atoll has its own way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    RoundRobin,
    /// The one with the fewest requests under way; Envoy: the better one of two drawn.
    LeastLoaded,
}

pub struct Setup {
    pub backends: Vec<Backend>,
    pub balance: Balance,
    pub retry_503: bool,
}

pub struct Backend {
    pub zone: char,
    pub port: u16,
}

/// A system that answers.
pub struct Started {
    pub port: u16,
    /// None where there is no proxy.
    pub process: Option<Process>,
}

impl Started {
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }
}

/// Starts `system` before backends that are there already; returns once it has answered.
pub fn start(system: System, setup: &Setup, programs: &Programs, dir: &Path) -> Result<Started> {
    let port = system.port();
    let (extension, text) = match system {
        System::Direct => return Ok(Started { port, process: None }),
        System::Haproxy => ("cfg", haproxy(setup, port)),
        System::Nginx => ("conf", nginx(setup, port, dir)),
        System::Envoy => ("json", serde_json::to_string_pretty(&envoy(setup, port))?),
        System::Atoll => ("toml", atoll(setup, port)),
    };
    let file = |extension: &str| dir.join(format!("{system:?}.{extension}").to_lowercase());
    let config = file(extension);
    std::fs::write(&config, text).with_context(|| config.display().to_string())?;
    let log = file("log");
    let program = match system {
        System::Envoy => programs.envoy.as_path(),
        System::Atoll => &programs.atoll,
        System::Nginx => Path::new("/usr/sbin/nginx"),
        System::Haproxy | System::Direct => Path::new("/usr/sbin/haproxy"),
    };
    let mut command = child(program);
    match system {
        System::Direct => {}
        System::Haproxy => {
            command.args(["-db", "-f"]).arg(&config);
        }
        System::Nginx => {
            command.arg("-p").arg(dir).arg("-e").arg(&log).arg("-c").arg(&config);
        }
        System::Envoy => {
            command.args(["--concurrency", "2", "--disable-hot-restart", "--log-level", "warn"]);
            command.arg("--config-path").arg(&config);
        }
        System::Atoll => {
            command.args(["gateway", "--log", "warn", "--config"]).arg(&config);
        }
    }
    let output = std::fs::File::options().create(true).append(true).open(&log)?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let mut process = Process::new(system.name(), command.spawn().context("setpriv")?);
    wait_for(system, port, &mut process, &log)?;
    Ok(Started { port, process: Some(process) })
}

fn wait_for(system: System, port: u16, process: &mut Process, log: &Path) -> Result<()> {
    let begun = Instant::now();
    loop {
        if let Some(status) = process.ended()? {
            bail!("{} did not come up ({status}); see {}", system.name(), log.display());
        }
        // Silence and refusals are what there is to wait for.
        if answers(port).unwrap_or(false) {
            return Ok(());
        }
        if begun.elapsed() > Duration::from_secs(20) {
            let (name, log) = (system.name(), log.display());
            bail!("{name} does not answer 200 on port {port}; see {log}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn answers(port: u16) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"GET /128 HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(&status == b"HTTP/1.1 200")
}

fn atoll(setup: &Setup, port: u16) -> String {
    let servers: Vec<String> = setup
        .backends
        .iter()
        .map(|backend| format!("\"{}=127.0.0.1:{}\"", backend.zone, backend.port))
        .collect();
    format!(
        "zone = \"a\"\n\
         threads = 2\n\
         [[listeners]]\n\
         address = \"127.0.0.1:{port}\"\n\
         [admin]\n\
         address = \"127.0.0.1:{ADMIN_PORT}\"\n\
         [services.web]\n\
         servers = [{}]\n\
         attempts = 2\n",
        servers.join(", ")
    )
}

fn haproxy(setup: &Setup, port: u16) -> String {
    let balance = match setup.balance {
        Balance::RoundRobin => "roundrobin",
        Balance::LeastLoaded => "leastconn",
    };
    let retry_503 = if setup.retry_503 { " 503" } else { "" };
    // It would have two descriptors for each of maxconn, or not start; what the test opens fits.
    let servers: String = setup
        .backends
        .iter()
        .map(|backend| format!("    server s{0} 127.0.0.1:{0}\n", backend.port))
        .collect();
    format!(
        "global
    nbthread 2
    maxconn 12000
    no strict-limits
defaults
    mode http
    timeout connect 1s
    timeout client 75s
    timeout http-keep-alive 75s
    timeout server 30s
    http-reuse always
    retries 1
    option redispatch 1
    retry-on conn-failure empty-response{retry_503}
frontend clients
    bind 127.0.0.1:{port} backlog 4096
    default_backend web
    unique-id-format %[uuid()]
    unique-id-header X-Request-Id
    option forwardfor
    http-request set-header X-Forwarded-Proto http
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
backend web
    balance {balance}
    default-server check inter 1s fall 2 rise 2 observe layer4 error-limit 5 on-error mark-down
{servers}"
    )
}

fn nginx(setup: &Setup, port: u16, dir: &Path) -> String {
    let balance = match setup.balance {
        Balance::RoundRobin => "",
        Balance::LeastLoaded => "least_conn;",
    };
    let servers: String = setup
        .backends
        .iter()
        .map(|backend| format!("        server 127.0.0.1:{};\n", backend.port))
        .collect();
    let retry_503 = if setup.retry_503 { " http_503" } else { "" };
    let dir = dir.display();
    format!(
        "daemon off;
worker_processes 2;
user www-data;
pid {dir}/nginx.pid;
error_log {dir}/nginx.log crit;
events {{
    worker_connections 16384;
}}
http {{
    access_log off;
    client_body_temp_path {dir}/nginx-body;
    proxy_temp_path {dir}/nginx-proxy;
    fastcgi_temp_path {dir}/nginx-fastcgi;
    uwsgi_temp_path {dir}/nginx-uwsgi;
    scgi_temp_path {dir}/nginx-scgi;
    keepalive_timeout 75s;
    keepalive_requests 1000000000;
    upstream web {{
        zone web 256k;
        {balance}
{servers}
        keepalive 1024;
        keepalive_requests 1000000000;
        keepalive_timeout 75s;
    }}
    server {{
        listen 127.0.0.1:{port} reuseport backlog=4096;
        location / {{
            proxy_pass http://web;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Host $host;
            proxy_set_header X-Request-Id $request_id;
            proxy_connect_timeout 1s;
            proxy_read_timeout 30s;
            proxy_send_timeout 30s;
            proxy_next_upstream error timeout{retry_503};
            proxy_next_upstream_tries 2;
        }}
    }}
}}
"
    )
}

fn envoy(setup: &Setup, port: u16) -> Value {
    let address =
        |port: u16| json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    let typed = |name: &str| format!("type.googleapis.com/envoy.extensions.{name}");
    let endpoints: Vec<Value> = setup
        .backends
        .iter()
        .map(|backend| json!({ "endpoint": { "address": address(backend.port) } }))
        .collect();
    let balance = match setup.balance {
        Balance::RoundRobin => "ROUND_ROBIN",
        Balance::LeastLoaded => "LEAST_REQUEST",
    };
    let retry_503 = if setup.retry_503 { ",retriable-status-codes" } else { "" };
    let route = json!({
        "match": { "prefix": "/" },
        "route": {
            "cluster": "web",
            "timeout": "30s",
            "retry_policy": {
                "retry_on": format!("connect-failure,refused-stream,reset{retry_503}"),
                "retriable_status_codes": [503],
                "num_retries": 1,
                "retry_back_off": { "base_interval": "0.001s" },
                "retry_host_predicate": [{
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {
                        "@type": typed("retry.host.previous_hosts.v3.PreviousHostsPredicate"),
                    },
                }],
                "host_selection_retry_max_attempts": 3,
            },
        },
    });
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": {
            "@type": typed("filters.http.router.v3.Router"),
        },
    });
    let manager = json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": typed(
                "filters.network.http_connection_manager.v3.HttpConnectionManager"
            ),
            "stat_prefix": "bench",
            "use_remote_address": true,
            "route_config": { "virtual_hosts": [
                { "name": "bench", "domains": ["*"], "routes": [route] },
            ] },
            "http_filters": [router],
        },
    });
    // Its own bounds of 1,024 would answer 503 in the tail test, where a slow backend has more.
    let many = 20_000;
    json!({ "static_resources": {
        "listeners": [{
            "name": "clients",
            "address": address(port),
            "filter_chains": [{ "filters": [manager] }],
        }],
        "clusters": [{
            "name": "web",
            "type": "STATIC",
            "connect_timeout": "1s",
            "lb_policy": balance,
            "common_lb_config": { "update_merge_window": "0s" },
            "load_assignment": {
                "cluster_name": "web",
                "endpoints": [{ "lb_endpoints": endpoints }],
            },
            "circuit_breakers": { "thresholds": [{
                "max_connections": many,
                "max_pending_requests": many,
                "max_requests": many,
                "retry_budget": {},
            }] },
            "outlier_detection": {
                "consecutive_5xx": 5,
                "interval": "1s",
                "base_ejection_time": "10s",
                "max_ejection_percent": 50,
            },
        }],
    } })
}
