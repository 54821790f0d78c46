//! What the gateway's file may say, what it is told when it says something else, and that
//! CONFIG.md, the reader and the fullest file know the same settings.

use gateway::balance::settings::HealthCheck;
use gateway::balance::{Closeness, ServerSpec};
use gateway::config::{Certificate, Config, Error, Listener, LogFile, PathMatch, Protocol};
use gateway::isolate::bulkhead::Priority;
use gateway::service::Hedge;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

const PATH: &str = "conf/gateway.toml";

/// Every setting there is, none of them at its default.
const FULLEST: &str = r#"# the fullest file
zone = "a"
closeness = ["a", ["b", "c"]]
threads = 2
drain = "5s"
access_log = { to = "access.log", fields = ["at_us", "status"], headers = ["user-agent"] }
trusted_proxies = ["10.0.0.0/8", "::1"]
listen = "127.0.0.1:8000"

[[listeners]]
address = "0.0.0.0:8443"
certificates = [{ certificate = "site.pem", key = "/keys/site.key" }]
client_authority = "clients.pem"
client_optional = true
proxy_protocol = true

[[listeners]]
address = "[::]:8444"
[[listeners.certificates]]
certificate = "other.pem"
key = "other.key"

[admin]
address = "127.0.0.1:8082"
token = "open-sesame"

[traces]
collector = "http://collector.internal:4320/otlp"
share = 0
name = "front"

[limits]
connections = 1_000
requests = 500
header_bytes = "64KiB"
headers = 50
body_bytes = "10MiB"
header_timeout = "2s"
body_idle_timeout = "20s"
idle_timeout = "3m"
streams = 0x40

[[routes]]
name = "beta"
hosts = ["Shop.Example", "*.shop.example", "[::1]"]
path = "/api/"
methods = ["GET", "PURGE"]
headers = { X-Beta = "1", x-any = true }
services = { api = 95, canary = 5 }
priority = "critical"
timeout = "1s"
body_bytes_max = 2048
replace_prefix = "/v2/"
request_headers = { remove = ["x-a"], set = { x-b = "1", host = "api" }, add = { x-c = "2" } }
[routes.response_headers]
remove = ["server"]
set = { x-d = "3" }
add = { vary = "accept" }

[[routes]]
exact_path = "/robots.txt"
service = "canary"
rewrite = { from = "^/r(.*)$", to = "/$1" }
rate_limit = { per_second = 10, burst = 20, by = "header:x-api-key" }
idle_timeout = "1h"
compress = true
[routes.cors]
origins = ["https://shop.example"]
methods = ["PUT"]
headers = ["x-a"]
expose = ["x-b"]
credentials = true
max_age = "1h"

[[routes]]
hosts = ["old.example"]
redirect = { to = "https://new.example{path}{query}", from = "^/", status = 301 }

[services.api]
servers = ["a=10.0.0.1:80", "10.0.0.2:80", { address = "[fd00::3]:80", zone = "b", weight = 2 }]
dns = [{ name = "Api.Internal", port = 80, zone = "c", interval = "1m" }]
protocol = "http2"
idle_timeout = "2s"
ping_interval = "5m"
tls = { authority = "ca.pem", server_name = "api.internal", certificate = "me.pem", key = "me.key" }
timeout = "2s"
attempt_timeout = "1s"
connect_timeout = "250ms"
attempts = 2
subset = 20

[services.api.retries]
share = 0.1
floor_per_second = 1

[services.api.hedge]
quantile = 0.99
delay_min = "2ms"

[services.api.bulkhead]
limit_min = 8
limit_max = 256
tolerance = 1.5

[services.api.breaker]
window = "20s"
requests_min = 10
failed_max = 0.4
slow_after = "500ms"
slow_max = 0.7
open_for = "2s"
open_max = "20s"
trials = 3
trial_timeout = "3s"

[services.api.balance]
load_max = 50
latency_max = 2.5
latency_slack = "5ms"
failed_max = 0.2
requests_min = 30
overprovision = 1.2
fall_per_second = 0.4
rise_per_second = 0.2
panic_below = 0.25
hot_quantile = 0.8
warm_up = "0s"

[services.api.health]
path = "/healthy?deep=1"
host = "api.internal"
method = "HEAD"
statuses = [204, "2xx", "300-302"]
interval = "2s"
timeout = "500ms"
well_after = 1
unwell_after = 2
unreachable_max = 4
trip_for = "5s"
trip_max = "15s"
failed_max = 6
eject_for = "20s"
eject_max = "2h"
outlier_margin = 0.2
ejected_max = 0.4
idle_probe_after = "30s"

[services.api.fallback]
stale_for = "1m"
service = "canary"
answer = { status = 200, content_type = "application/json", body = "[]" }

[services.canary]
servers = ["10.0.1.1:80"]
protocol = "http2"
health = { grpc = "shop.Orders" }
hedge = true
"#;

fn parse(text: &str) -> Result<Config, Error> {
    Config::parse(Path::new(PATH), text)
}

fn read(text: &str) -> Config {
    parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn server(address: &str, zone: &str, weight: f64) -> ServerSpec {
    ServerSpec { address: address.parse().unwrap(), zone: zone.into(), weight }
}

#[test]
fn two_settings_are_enough() {
    let config = read(
        r#"
listen = "127.0.0.1:8000"
[services.api]
servers = ["10.0.0.1:80", "b=10.0.0.2:80"]
"#,
    );
    assert_eq!(config.zone, "local");
    assert_eq!(config.closeness, Closeness(vec![vec!["local".into()]]), "all others come after");
    let address = "127.0.0.1:8000".parse().unwrap();
    let listener =
        Listener { address, certificates: Vec::new(), clients: None, proxy_protocol: false };
    assert_eq!(config.listeners, [listener]);
    assert_eq!((config.admin, config.threads, config.access_log), (None, None, None));
    assert_eq!(config.limits, Default::default());
    assert_eq!(config.drain, Duration::from_secs(30));

    let [route] = &config.routes[..] else { panic!("{:?}", config.routes) };
    assert_eq!((&*route.name, &route.path), ("all", &PathMatch::Below("/".into())));
    assert_eq!(route.targets, [("api".into(), 1)]);
    assert!(route.hosts.is_empty() && route.methods.is_empty() && route.headers.is_empty());

    let api = &config.services["api"];
    assert_eq!(api.settings, Default::default());
    let servers = [server("10.0.0.1:80", "local", 1.0), server("10.0.0.2:80", "b", 1.0)];
    assert_eq!(api.servers, servers);
    assert_eq!((api.protocol, &api.tls), (Protocol::Http1, &None));
    assert_eq!(api.fallback, Default::default());
}

#[test]
fn everything_that_is_said_arrives() {
    let config = read(FULLEST);
    let tiers = [vec!["a"], vec!["b", "c"]];
    assert_eq!(
        config.closeness,
        Closeness(tiers.map(|t| t.into_iter().map(Into::into).collect()).into())
    );
    let log = config.access_log.as_ref().unwrap();
    assert_eq!(log.to, LogFile::File("conf/access.log".into()));
    assert_eq!((log.fields.len(), log.headers.len()), (2, 1));
    let traces = config.traces.unwrap();
    assert_eq!((&*traces.host, traces.port, &*traces.path), ("collector.internal", 4320, "/otlp"));
    assert_eq!((traces.share, &*traces.name, &*traces.zone), (0.0, "front", "a"));
    let certificates: Vec<&Certificate> =
        config.listeners.iter().flat_map(|listener| &listener.certificates).collect();
    let files = |certificate: &str, key: &str| Certificate {
        certificate: PathBuf::from(certificate),
        key: PathBuf::from(key),
    };
    let beside_the_file = files("conf/site.pem", "/keys/site.key");
    assert_eq!(certificates, [&beside_the_file, &files("conf/other.pem", "conf/other.key")]);
    assert_eq!(config.listeners.len(), 3);
    assert_eq!(config.admin, "127.0.0.1:8082".parse().ok());
    assert_eq!(config.admin_token.as_deref(), Some("open-sesame"));
    assert_eq!(config.limits.header_bytes_max, 65_536);
    assert_eq!(config.limits.body_bytes_max, Some(10 << 20));
    assert_eq!(config.limits.n_streams_max, 64);
    assert_eq!(config.limits.idle_timeout, Duration::from_secs(180));

    let [beta, robots, old] = &config.routes[..] else { panic!("{:?}", config.routes) };
    assert_eq!((old.targets.len(), old.redirect.as_ref().unwrap().status.as_u16()), (0, 301));
    assert_eq!(beta.hosts, ["shop.example", "*.shop.example", "[::1]"]);
    assert_eq!(beta.targets, [("api".into(), 95), ("canary".into(), 5)]);
    assert_eq!(beta.priority, Priority::Critical);
    let wanted: Vec<(&str, Option<&str>)> =
        beta.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
    assert_eq!(wanted, [("x-beta", Some("1")), ("x-any", None)]);
    let set = &beta.request_headers.set;
    assert_eq!(set.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["x-b", "host"]);
    assert_eq!(beta.response_headers.remove, ["server"]);
    assert_eq!((&*robots.name, robots.priority), ("2", Priority::Normal), "named after its place");
    assert_eq!(robots.path, PathMatch::Exactly("/robots.txt".into()));

    let api = &config.services["api"];
    assert_eq!(
        api.servers[1..],
        [server("10.0.0.2:80", "a", 1.0), server("[fd00::3]:80", "b", 2.0)]
    );
    assert_eq!((&*api.dns[0].name, &*api.dns[0].zone), ("api.internal", "c"));
    let own = api.tls.as_ref().and_then(|tls| tls.certificate.as_ref());
    assert_eq!(own, Some(&files("conf/me.pem", "conf/me.key")));
    assert_eq!(api.settings.connect_timeout, Duration::from_millis(250));
    assert_eq!(api.settings.balance.n_failed_max, 6);
    assert_eq!(api.settings.balance.failed_max, 0.2);
    assert_eq!(api.settings.balance.eject_max, Duration::from_secs(7200));
    assert_eq!(api.settings.balance.subset, Some(20));
    let check = HealthCheck {
        interval: Duration::from_secs(2),
        timeout: Duration::from_millis(500),
        n_well: 1,
        n_unwell: 2,
        host: Some("api.internal".into()),
        method: http::Method::HEAD,
        statuses: vec![(204, 204), (200, 299), (300, 302)],
        ..HealthCheck::of("/healthy?deep=1".into())
    };
    assert_eq!(api.settings.balance.check, Some(check));
    assert_eq!(api.fallback.service.as_deref(), Some("canary"));
    assert_eq!(api.fallback.answer.as_ref().unwrap().body, "[]");
    assert_eq!(config.services["canary"].settings.hedge, Some(Hedge::default()));
}

/// Who says only the larger of two settings is not told to say the smaller as well.
#[test]
fn a_default_gives_way_to_what_is_said() {
    let config = read(
        r#"
listen = "127.0.0.1:0"
[services.api]
servers = ["10.0.0.1:80"]
timeout = "500ms"
bulkhead = { limit_max = 10 }
breaker = { open_max = "500ms" }
health = { trip_max = "1s", eject_max = "2s" }
"#,
    );
    let settings = &config.services["api"].settings;
    assert_eq!(settings.connect_timeout, Duration::from_millis(500));
    assert_eq!(settings.bulkhead.limit_min, 10);
    assert_eq!(settings.breaker.open_for, Duration::from_millis(500));
    assert_eq!(settings.balance.trip_for, Duration::from_secs(1));
    assert_eq!(settings.balance.eject_for, Duration::from_secs(2));
}

/// Each file, and what its reader is told, without the path that all of them begin with.
const REFUSED: &[(&str, &str)] = &[
    // Not TOML.
    ("listen = \"x", r#"1: this is not TOML: invalid basic string, expected `"`"#),
    ("\n\nthreads = [1,\n", "3: this is not TOML: unclosed array, expected `]`"),
    ("zone = \"a\"\nzone = \"b\"", r#"2: this is not TOML: duplicate key, found "zone""#),
    (
        "[admin]\naddress = x1",
        "2: this is not TOML: string values must be quoted, expected literal string",
    ),
    // What may be a secret is not shown.
    (
        "[admin]\ntoken = x1",
        "2: this is not TOML: string values must be quoted, expected literal string",
    ),
    // Settings that are not known.
    ("zoen = \"a\"", r#"1: there is no setting "zoen", did you mean "zone"?"#),
    (
        "[services.api]\ntimeout = \"1s\"\n\ntiemout = \"1s\"",
        r#"4: there is no setting "tiemout" in [services.api], did you mean "timeout"?"#,
    ),
    (
        "[services.\"api.v2\"]\nweight = 2",
        r#"2: there is no setting "weight" in [services."api.v2"]: "weight" is one of [[services.NAME.servers]]"#,
    ),
    (
        "[[listeners]]\nadress = \"127.0.0.1:80\"",
        r#"2: there is no setting "adress" in [[listeners]], did you mean "address"?"#,
    ),
    (
        "[services.api.breaker]\ntrails = 1\nwindows = \"1s\"",
        r#"2: there is no setting "trails" in [services.api.breaker], did you mean "trials"?"#,
    ),
    (
        "\"a\\nb\" = 1",
        r#"1: there is no setting "a\nb"; it has zone, closeness, listen, listeners, admin, trusted_proxies, threads, access_log, traces, limits, drain, services, routes"#,
    ),
    (
        "[services.api]\nhosts = [\"shop.example\"]",
        r#"2: there is no setting "hosts" in [services.api]: "hosts" is one of [[routes]]"#,
    ),
    (
        "admin = \"127.0.0.1:8081\"",
        r#"1: admin must be a table, such as admin = { address = "127.0.0.1:8081" }, not "127.0.0.1:8081""#,
    ),
    (
        "[services.api]\nhealth = \"/up\"",
        r#"2: health in [services.api] must be a table, such as health = { path = "/up" }, not "/up""#,
    ),
    ("[[route]]\nservice = \"a\"", r#"1: there is no setting "route", did you mean "routes"?"#),
    // Settings that are missing.
    ("[[listeners]]", r#"1: [[listeners]] needs the setting "address""#),
    (
        "[[listeners]]\naddress = \"1.1.1.1:1\"\ncertificates = [\n{ key = \"k\" }]",
        r#"4: [[listeners.certificates]] needs the setting "certificate""#,
    ),
    (
        "[services.api]\n[services.api.tls]\nauthority = \"ca.pem\"\nserver_name = \"a\"\nkey = \"k\"",
        r#"2: [services.api.tls] needs the setting "certificate""#,
    ),
    (
        "[[services.api.servers]]\nzone = \"a\"",
        r#"1: [[services.api.servers]] needs the setting "address""#,
    ),
    ("[[services.api.dns]]\nname = \"a\"", r#"1: [[services.api.dns]] needs the setting "port""#),
    (
        "[services.api.fallback.answer]\nbody = \"a\"",
        r#"1: [services.api.fallback.answer] needs the setting "status""#,
    ),
    // Values of the wrong kind, or out of bounds.
    ("zone = 1", r#"1: zone must be a name, made of letters, digits, ".", "-" and "_", not 1"#),
    (
        "zone = \"a b\"",
        r#"1: zone must be a name, made of letters, digits, ".", "-" and "_", not "a b""#,
    ),
    ("threads = 0", "1: threads must be a whole number from 1 to 1024, not 0"),
    ("threads = 2.0", "1: threads must be a whole number from 1 to 1024, not 2.0"),
    (
        "threads = 99999999999999999999",
        "1: threads must be a whole number from 1 to 1024, not 99999999999999999999",
    ),
    ("threads = 1_0\u{1}", r#"1: threads must be a whole number from 1 to 1024, not 10\u{1}"#),
    ("drain = 30", r#"1: drain must be a duration such as "250ms", "2s", "1m" or "1h", not 30"#),
    (
        "drain = \"1.5s\"",
        r#"1: drain must be a duration such as "250ms", "2s", "1m" or "1h", not "1.5s""#,
    ),
    ("drain = \"721h\"", r#"1: drain must be 720h at most, not "721h""#),
    (
        // In milliseconds more than 64 bits, and little more.
        "drain = \"5124095576031h\"",
        r#"1: drain must be 720h at most, not "5124095576031h""#,
    ),
    (
        "[limits]\nidle_timeout = \"0s\"",
        r#"2: idle_timeout in [limits] must be longer than 0, not "0s""#,
    ),
    (
        "[limits]\nheader_bytes = \"4KiB\"",
        r#"2: header_bytes in [limits] must be a size such as 65536 or "64KiB", from 8KiB to 16MiB, not "4KiB""#,
    ),
    (
        "[limits]\nbody_bytes = -1",
        r#"2: body_bytes in [limits] must be a size such as 65536 or "64KiB", from 0 to 1TiB, not -1"#,
    ),
    (
        "listen = 80",
        r#"1: listen must be an address and a port, such as "10.0.0.1:80" or "[::1]:80", not 80"#,
    ),
    (
        "listen = \"localhost:80\"",
        r#"1: listen must be an address and a port, such as "10.0.0.1:80" or "[::1]:80", not "localhost:80""#,
    ),
    ("listeners = 1", "1: listeners must be a list in [ ], not 1"),
    ("listeners = []", "1: listeners is empty: fill it, or leave it out"),
    ("listeners = [80]", "1: listeners must be a table, not 80"),
    ("limits = 1979-05-27", "1: limits must be a table, not 1979-05-27"),
    ("[traces]\nshare = 0.5", r#"1: [traces] needs the setting "collector""#),
    (
        "traces = { collector = \"https://h\" }",
        r#"1: collector in [traces] must be where a collector takes OTLP over HTTP, without TLS, such as "http://127.0.0.1:4318", not "https://h""#,
    ),
    (
        "traces = { collector = \"http://h\", share = 1.5 }",
        "1: share in [traces] must be a number from 0 to 1, not 1.5",
    ),
    ("access_log = true", r#"1: access_log must be "stdout", a file or a table, not true"#),
    ("access_log = \"\"", r#"1: access_log must be the path of a file, not """#),
    (
        "[services.api.retries]\nshare = nan",
        "2: share in [services.api.retries] must be a number from 0 to 10, not nan",
    ),
    (
        "[services.api.breaker]\nfailed_max = 0",
        "2: failed_max in [services.api.breaker] must be a number above 0, 1 at most, not 0",
    ),
    (
        "[services.api.balance]\nload_max = 1e400",
        "2: load_max in [services.api.balance] must be a number above 0, 1000000 at most, not 1e400",
    ),
    (
        "[services.api]\nprotocol = \"http3\"",
        r#"2: protocol in [services.api] must be "http1" or "http2", not "http3""#,
    ),
    (
        "[services.api]\nhedge = 1",
        "2: hedge in [services.api] must be true, false or a table, not 1",
    ),
    (
        "[services.api]\nservers = [\n\"10.0.0.1:80\",\n\"api.internal:80\"]",
        r#"4: servers in [services.api] must be "IP:PORT" or "ZONE=IP:PORT" (names of hosts stand under dns), not "api.internal:80""#,
    ),
    (
        "[services.api]\nservers = [\"a b=10.0.0.1:80\"]",
        r#"2: servers in [services.api] must be "IP:PORT" or "ZONE=IP:PORT" (names of hosts stand under dns), not "a b=10.0.0.1:80""#,
    ),
    (
        "[services.api]\nservers = [{ address = \"10.0.0.1:80\", weight = inf }]",
        "2: weight in [[services.api.servers]] must be a number above 0, 1000000 at most, not inf",
    ),
    (
        "[[services.api.dns]]\nname = \"http://a\"",
        r#"2: name in [[services.api.dns]] must be a host's name, such as "api.internal", not "http://a""#,
    ),
    (
        "[services.api.health]\npath = \"healthy\"",
        r#"2: path in [services.api.health] must be a path that begins with "/", not "healthy""#,
    ),
    (
        "[services.api.fallback.answer]\nstatus = 100",
        "2: status in [services.api.fallback.answer] must be a whole number from 200 to 599, not 100",
    ),
    (
        "[services.api.fallback.answer]\ncontent_type = \"a\\u0000\"",
        r#"2: content_type in [services.api.fallback.answer] must be a header's value: visible ASCII and spaces, in quotes"#,
    ),
    (
        "access_log = [\"0123456789012345678901234567890123456789012345678901234567890123456789\"]",
        r#"1: access_log must be "stdout", a file or a table, not a list"#,
    ),
    (
        "drain = \"0123456789012345678901234567890123456789012345678901234567890123456789\"",
        r#"1: drain must be a duration such as "250ms", "2s", "1m" or "1h", not "012345678901234567890123456789012345678901234567890123456789…""#,
    ),
    (
        "[admin]\ntoken = \"open sesame\"",
        "2: token in [admin] must be visible ASCII without spaces, in quotes",
    ),
    // Zones.
    (
        "zone = \"a\"\ncloseness = [\"b\"]",
        r#"2: closeness leaves out "a", the gateway's own zone: put it where it belongs, which is first as a rule"#,
    ),
    (
        "zone = \"a\"\ncloseness = [\"a\", [\"b\",\n\"a\"]]",
        r#"3: closeness names the zone "a" twice"#,
    ),
    ("closeness = [[]]", "1: closeness is empty: fill it, or leave it out"),
    // What bounds something else.
    (
        "[services.api]\ntimeout = \"500ms\"\nconnect_timeout = \"1s\"",
        r#"3: connect_timeout in [services.api] must be no more than timeout, which is 500ms, not "1s""#,
    ),
    (
        "[services.api]\nattempt_timeout = \"31s\"",
        r#"2: attempt_timeout in [services.api] must be no more than timeout, which is 30s, not "31s""#,
    ),
    (
        "[services.api.bulkhead]\nlimit_min = 5000",
        "2: limit_min in [services.api.bulkhead] must be no more than limit_max, which is 4096, not 5000",
    ),
    (
        "[services.api.breaker]\nopen_for = \"11s\"",
        r#"2: open_for in [services.api.breaker] must be no more than open_max, which is 4s, not "11s""#,
    ),
    (
        "[services.api.health]\ntrip_for = \"31s\"",
        r#"2: trip_for in [services.api.health] must be no more than trip_max, which is 30s, not "31s""#,
    ),
    (
        "[services.api.health]\neject_max = \"1s\"\neject_for = \"2s\"",
        r#"3: eject_for in [services.api.health] must be no more than eject_max, which is 1s, not "2s""#,
    ),
    (
        "[services.api.health]\nunwell_after = 2",
        r#"2: unwell_after in [services.api.health] is about an active check: add path = "/…" (or grpc) to turn it on"#,
    ),
    // Listeners.
    (
        "listen = \"127.0.0.1:80\"\n[[listeners]]\naddress = \"127.0.0.1:80\"",
        "3: 127.0.0.1:80 is listened on already: give [[listeners]] another address",
    ),
    (
        "listen = \"0.0.0.0:80\"\n[[listeners]]\naddress = \"127.0.0.1:80\"",
        "3: 127.0.0.1:80 is listened on already, with 0.0.0.0:80: give [[listeners]] another address",
    ),
    (
        "listen = \"0.0.0.0:80\"\n[[listeners]]\naddress = \"[::]:80\"",
        "3: [::]:80 is listened on already, with 0.0.0.0:80: give [[listeners]] another address",
    ),
    (
        "listen = \"127.0.0.1:8081\"\n[admin]",
        "2: 127.0.0.1:8081 is listened on already: give [admin] another address",
    ),
    (
        "[services.api]\nservers = [\"10.0.0.1:80\"]",
        "1: nothing is listened on: add listen = \"IP:PORT\", or [[listeners]] for more than one address or for TLS",
    ),
    // Services.
    (
        "listen = \"127.0.0.1:80\"",
        r#"1: there is no service: add [services.NAME] with servers = ["IP:PORT"]"#,
    ),
    (
        "[services.\"a/b\"]",
        r#"1: "a/b" cannot be the name of a service, which is made of letters, digits, ".", "-" and "_""#,
    ),
    (
        "\n[services.api]\ntimeout = \"1s\"",
        "2: [services.api] has no servers: add servers or dns, or [admin] to bring them through the API",
    ),
    (
        "[services.api]\nservers = [\"a=10.0.0.1:80\",\n\"b=10.0.0.1:80\"]",
        "3: servers in [services.api] names 10.0.0.1:80 twice",
    ),
    (
        "[services.api]\ndns = [{ name = \"a\", port = 1 }, { name = \"A\", port = 1 }]",
        "2: dns in [services.api] names a:1 twice",
    ),
    // Fallbacks.
    (
        "[admin]\n[services.api]\nfallback.service = \"aip\"",
        r#"3: there is no service "aip", did you mean "api"?"#,
    ),
    (
        "[admin]\n[services.api]\nfallback.service = \"api\"",
        r#"3: "api" cannot fall back to itself: name another service, or leave it out"#,
    ),
    (
        "[admin]\n[services]\na.fallback.service = \"c\"\nb.fallback.service = \"d\"\nc.fallback.service = \"b\"\nd.fallback.service = \"c\"",
        "4: services fall back to each other in a circle, b → d → c → b: leave one of them out",
    ),
    // Routes.
    (
        "listen = \"127.0.0.1:80\"\n[admin]\n[services.a]\n[services.b]",
        "3: there are 2 services and no routes: add [[routes]] that say which requests go to which service",
    ),
    ("[[routes]]\nname = \"a\"", r#"1: [[routes]] needs the setting "service""#),
    (
        "[admin]\n[[routes]]\nservice = \"aip\"\n[services.api]",
        r#"3: there is no service "aip", did you mean "api"?"#,
    ),
    (
        "[admin]\n[[routes]]\nservices = { api = 1, other = 1 }\n[services.api]",
        r#"3: there is no service "other""#,
    ),
    (
        "[admin]\n[[routes]]\nservices = { api = 0 }\n[services.api]",
        "3: services in [[routes]] sends requests nowhere: give a weight above 0",
    ),
    (
        "[admin]\n[[routes]]\nservices = { api = 0.5 }\n[services.api]",
        "3: api in [routes.services] must be a whole number from 0 to 1000000, not 0.5",
    ),
    (
        "[admin]\n[[routes]]\nservice = \"api\"\nservices = { api = 1 }\n[services.api]",
        "4: [[routes]] has both service and services: keep one of them",
    ),
    (
        "[admin]\n[[routes]]\npath = \"/a\"\nexact_path = \"/a\"\n[services.api]",
        "4: [[routes]] has both path and exact_path: keep one of them",
    ),
    (
        "[admin]\n[[routes]]\nname = \"2\"\nservice = \"api\"\n[[routes]]\nservice = \"api\"\n[services.api]",
        r#"5: two routes are named "2": name one of them otherwise (without a name, a route is named after its place)"#,
    ),
    (
        "[[routes]]\nhosts = [\"shop.example:80\"]",
        r#"2: hosts in [[routes]] must be a host such as "shop.example" or "*.shop.example", without a port and a path, not "shop.example:80""#,
    ),
    (
        "[[routes]]\nhosts = [\"*\"]",
        r#"2: hosts in [[routes]] must be a host such as "shop.example" or "*.shop.example", without a port and a path, not "*""#,
    ),
    (
        "[[routes]]\npath = \"api\"",
        r#"2: path in [[routes]] must be a path that begins with "/", without a query, not "api""#,
    ),
    (
        "[[routes]]\npath = \"*\"",
        r#"2: path in [[routes]] must be a path that begins with "/", without a query, not "*""#,
    ),
    (
        "[[routes]]\nexact_path = \"/x?y\"",
        r#"2: exact_path in [[routes]] must be a path that begins with "/", without a query, not "/x?y""#,
    ),
    (
        "[[routes]]\nreplace_prefix = \"/x#y\"",
        r#"2: replace_prefix in [[routes]] must be a path that begins with "/", without a query, not "/x#y""#,
    ),
    (
        "[[routes]]\nmethods = [\"get\"]",
        r#"2: methods in [[routes]] must be a method in capitals, such as "GET", not "get""#,
    ),
    (
        "[[routes]]\npriority = \"urgent\"",
        r#"2: priority in [[routes]] must be "low" or "normal" or "high" or "critical", not "urgent""#,
    ),
    (
        "[[routes]]\nheaders = { x-a = false }",
        "2: x-a in [routes.headers] must be true, for any value, or a value in quotes, not false",
    ),
    ("[[routes]]\nheaders = { x-a = true, X-A = \"1\" }", r#"2: the header "x-a" is named twice"#),
    ("[[routes]]\nheaders = { \"x a\" = true }", r#"2: "x a" cannot be the name of a header"#),
    (
        "[[routes]]\nrequest_headers.remove = [\"\"]",
        r#"2: remove in [routes.request_headers] must be a header's name, such as "x-request-id", not """#,
    ),
    (
        "[[routes]]\nrequest_headers.remove = [\"Connection\"]",
        r#"2: the header "connection" belongs to the gateway and cannot be changed: leave it out"#,
    ),
    (
        "[[routes]]\nrequest_headers.set = { keep-alive = \"1\" }",
        r#"2: the header "keep-alive" belongs to the gateway and cannot be changed: leave it out"#,
    ),
    (
        "[[routes]]\n[routes.response_headers.add]\ncontent-length = \"1\"",
        r#"3: the header "content-length" belongs to the gateway and cannot be changed: leave it out"#,
    ),
    (
        "[[routes]]\nrequest_headers.remove = [\"host\"]",
        r#"2: the header "host" cannot be removed or added: write it under set"#,
    ),
    (
        "[[routes]]\nrequest_headers.add = { Host = \"a\" }",
        r#"2: the header "host" cannot be removed or added: write it under set"#,
    ),
    (
        "[[routes]]\nrequest_headers.set = { x-a = \"1\\n2\" }",
        r#"2: x-a in [routes.request_headers.set] must be a header's value: visible ASCII and spaces, in quotes"#,
    ),
];

#[test]
fn what_is_refused_is_named_with_its_line_and_what_to_do() {
    let mut wrong = String::new();
    for (text, expected) in REFUSED {
        let expected = format!("{PATH}:{expected}");
        let told = match parse(text) {
            Ok(_) => "nothing".to_owned(),
            Err(error) => error.to_string(),
        };
        if told != expected {
            wrong += &format!("{text}\n  expected: {expected}\n  told:     {told}\n\n");
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

/// All of one connection's headers, and in each of the three lists.
#[test]
fn the_gateway_s_own_headers_cannot_be_changed() {
    let own = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
    ];
    for name in own {
        for rule in [
            format!("remove = [\"{name}\"]"),
            format!("set = {{ {name} = \"1\" }}"),
            format!("add = {{ {name} = \"1\" }}"),
        ] {
            for of in ["request_headers", "response_headers"] {
                let error = parse(&format!("[[routes]]\n[routes.{of}]\n{rule}")).unwrap_err();
                assert!(error.to_string().contains("belongs to the gateway"), "{rule}: {error}");
            }
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let error = Config::load(Path::new("no/such/gateway.toml")).unwrap_err().to_string();
    assert_eq!(
        error,
        "no/such/gateway.toml: cannot be read: No such file or directory (os error 2)"
    );
}

#[test]
fn with_the_api_a_service_may_begin_without_servers() {
    let config =
        read("listen = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n[services.api]");
    assert!(config.services["api"].servers.is_empty());
}

/// The lines of the fullest file that say something: their number, their key, their value.
fn said() -> impl Iterator<Item = (usize, &'static str, &'static str)> {
    let lines = FULLEST.lines().enumerate();
    lines.filter_map(|(idx, line)| {
        let (key, value) = line.split_once(" = ")?;
        Some((idx, key, value))
    })
}

/// The fullest file with another line in place of line `idx`.
fn with_line(idx: usize, line: &str) -> String {
    let lines = FULLEST.lines().enumerate();
    lines.map(|(at, old)| if at == idx { line } else { old }.to_owned() + "\n").collect()
}

#[test]
fn every_setting_refuses_what_it_cannot_be_at_its_line() {
    for (idx, key, _) in said() {
        let error = parse(&with_line(idx, &format!("{key} = 1979-05-27"))).unwrap_err().to_string();
        let start = format!("{PATH}:{}: {key}", idx + 1);
        assert!(error.starts_with(&start), "{error}\n{start}");
        // Secrets are not repeated.
        assert_eq!(error.ends_with("not 1979-05-27"), key != "token", "{error}");
    }
}

#[test]
fn every_setting_changes_something() {
    let fullest = read(FULLEST);
    for (idx, key, value) in said() {
        if let Ok(config) = parse(&with_line(idx, "")) {
            assert_ne!(config, fullest, "{key} = {value}");
        }
    }
}

/// Settings by the heading of their table, such as `[services.NAME.tls]`.
type Settings = BTreeMap<String, BTreeSet<String>>;

/// What CONFIG.md says: for each heading its settings, with their defaults.
fn documented() -> Vec<(String, Vec<(String, String)>)> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("CONFIG.md");
    let mut headings: Vec<(String, Vec<(String, String)>)> = Vec::new();
    for line in std::fs::read_to_string(file).unwrap().lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            let heading = heading.strip_prefix('`').map_or("", |rest| rest.trim_end_matches('`'));
            headings.push((heading.to_owned(), Vec::new()));
        } else if let Some(row) = line.strip_prefix("| `") {
            let (setting, rest) = row.split_once("` | ").unwrap_or_else(|| panic!("{line}"));
            let (default, meaning) = rest.split_once('|').unwrap_or_else(|| panic!("{line}"));
            assert!(meaning.len() > 3, "{line}");
            let (_, settings) = headings.last_mut().unwrap();
            settings.push((setting.to_owned(), default.trim().to_owned()));
        }
    }
    headings
}

/// A file that says `lines` under this heading, and elsewhere as little as it can.
fn with_lines(heading: &str, lines: &str) -> String {
    let mut text = "listen = \"127.0.0.1:8000\"\n".to_owned();
    if heading.is_empty() {
        text += lines;
    }
    // With the API no service needs servers.
    if heading != "[admin]" {
        text += "[admin]\n";
    }
    text += "[services.other]\n";
    // Where clients are sent elsewhere there is no service.
    match heading {
        "[[routes]]" => {}
        "[routes.redirect]" => text += "[[routes]]\n",
        _ => text += "[[routes]]\nservice = \"other\"\n",
    }
    if heading == "[[listeners.certificates]]" {
        text += "[[listeners]]\naddress = \"127.0.0.1:8001\"\n";
    }
    if !heading.is_empty() {
        text += &format!("{}\n{lines}", heading.replace("NAME", "api"));
    }
    text
}

/// The settings of the fullest file.
fn collect(path: &str, is_item: bool, table: &toml::Table, into: &mut Settings) {
    let parts: Vec<&str> = path.split('.').collect();
    // Keys of these are names.
    let is_named = matches!(
        &parts[..],
        ["services"] | ["routes", "services" | "headers"] | ["routes", _, "set" | "add"]
    );
    if !is_named {
        let heading = match (path, is_item) {
            ("", _) => String::new(),
            (path, false) => format!("[{path}]"),
            (path, true) => format!("[[{path}]]"),
        };
        into.entry(heading).or_default().extend(table.keys().cloned());
    }
    for (key, value) in table {
        let key = if path == "services" { "NAME" } else { key };
        let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        match value {
            toml::Value::Table(table) => collect(&path, false, table, into),
            toml::Value::Array(items) => {
                for table in items.iter().filter_map(toml::Value::as_table) {
                    collect(&path, true, table, into);
                }
            }
            _ => {}
        }
    }
}

#[test]
fn reader_document_and_fullest_file_know_the_same_settings() {
    let mut in_file = Settings::new();
    collect("", false, &FULLEST.parse().unwrap(), &mut in_file);
    let mut in_document = Settings::new();
    let mut in_reader = Settings::new();
    for (heading, settings) in documented() {
        let text = with_lines(&heading, "no-such-setting-at-all = 1\n");
        let Err(Error::Unknown { table, known, .. }) = parse(&text) else { panic!("{text}") };
        assert_eq!(table, heading.replace("NAME", "api"));
        in_reader.insert(heading.clone(), known.iter().map(|key| key.to_string()).collect());
        in_document.insert(heading, settings.into_iter().map(|(setting, _)| setting).collect());
    }
    assert_eq!(in_document, in_reader, "CONFIG.md (left) and the reader (right)");
    assert_eq!(in_file, in_reader, "the fullest file (left) and the reader (right)");
}

/// What is said of a setting that stands in another table comes from a list.
#[test]
fn the_list_of_places_is_the_readers() {
    let listed = gateway::config::PLACES.iter().map(|(table, settings)| {
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        ((*table).to_owned(), settings)
    });
    let in_document = documented().into_iter().map(|(heading, settings)| {
        (heading, settings.into_iter().map(|(setting, _)| setting).collect::<BTreeSet<String>>())
    });
    assert_eq!(listed.collect::<Settings>(), in_document.collect::<Settings>());
}

/// To write a default is to write nothing.
#[test]
fn documented_defaults_are_the_defaults() {
    let mut n_compared = 0;
    for (heading, settings) in documented() {
        let mut needed = String::new();
        for (setting, _) in settings.iter().filter(|(_, default)| default == "needed") {
            let example = match setting.as_str() {
                "address" => "\"127.0.0.1:9\"",
                "service" => "\"other\"",
                "port" | "status" | "per_second" => "200",
                "origins" => "[\"*\"]",
                "from" | "to" => "\"/\"",
                "collector" => "\"http://h\"",
                _ => "\"a\"",
            };
            needed += &format!("{setting} = {example}\n");
        }
        // What a check is like is said of checks only.
        if heading == "[services.NAME.health]" {
            needed += "path = \"/\"\n";
        }
        let without = read(&with_lines(&heading, &needed));
        for (setting, default) in &settings {
            let default = default.strip_prefix('`').and_then(|rest| rest.strip_suffix('`'));
            if let Some(default) = default {
                let with = format!("{needed}{setting} = {default}\n");
                assert_eq!(read(&with_lines(&heading, &with)), without, "{heading} {setting}");
                n_compared += 1;
            }
        }
    }
    assert!(n_compared > 50, "{n_compared} defaults");
}

/// Whatever the file holds, it is read, or refused in one line.
fn check_any(text: &str, how: impl std::fmt::Debug) {
    let told = std::panic::catch_unwind(|| parse(text).map_err(|error| error.to_string()));
    let told = told.unwrap_or_else(|_| panic!("{how:?} panics:\n{text}"));
    if let Err(error) = told {
        let is_one_line = !error.contains(char::is_control);
        assert!(error.starts_with(PATH) && is_one_line, "{how:?}: {error}\n{text}");
        let n_lines = text.lines().count().max(1);
        let line = error[PATH.len() + 1..].split(':').next().unwrap().parse::<usize>();
        assert!(line.is_ok_and(|line| (1..=n_lines).contains(&line)), "{how:?}: {error}\n{text}");
    }
}

#[test]
fn a_file_that_is_cut_anywhere_is_read_or_refused_in_one_line() {
    for at in (0..FULLEST.len()).filter(|at| FULLEST.is_char_boundary(*at)) {
        check_any(&FULLEST[..at], at);
        check_any(&FULLEST[at..], at);
    }
}

#[test]
fn a_file_with_bytes_changed_is_read_or_refused_in_one_line() {
    const WORDS: [&str; 12] = [
        "\n",
        "\"",
        "[",
        "]]",
        "{",
        "}",
        " = ",
        "-",
        "0",
        "\r",
        "\u{feff}",
        "99999999999999999999",
    ];
    for seed in 0..6000 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut bytes = FULLEST.as_bytes().to_vec();
        for _ in 0..rng.random_range(1..=4) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..5) {
                0 => bytes[at] ^= 1 << rng.random_range(0..8),
                1 => bytes.insert(at, rng.random()),
                2 => drop(bytes.remove(at)),
                3 => {
                    let word = WORDS[rng.random_range(0..WORDS.len())];
                    bytes.splice(at..at, word.bytes());
                }
                // A piece of the file in another place.
                _ => {
                    let from = rng.random_range(0..bytes.len());
                    let until = (from + rng.random_range(0..80)).min(bytes.len());
                    let piece = bytes[from..until].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
        check_any(&String::from_utf8_lossy(&bytes), format_args!("seed {seed}"));
    }
}

/// A setting's value where another's belongs, so that values arrive where nobody expects them.
#[test]
fn a_file_with_values_exchanged_is_read_or_refused_in_one_line() {
    let odd = ["", "[]", "[[]]", "{}", "[{}]", "nan", "-inf", "-0.0", "1e-320", "\"\"", "\"\\n\""];
    for (idx, key, _) in said() {
        for value in said().map(|(_, _, value)| value).chain(odd) {
            check_any(&with_line(idx, &format!("{key} = {value}")), (key, value));
        }
    }
}
