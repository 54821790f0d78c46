//! The gateway as a process, before servers that are killed, stopped, hang, reset and are cut off.
//! Everything listens on loopback addresses, and is gone when the test is.

#![allow(clippy::disallowed_methods)]

#[path = "gateway/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use support::{Gateway, Process, Traffic, assert_good, get, served, until};
use tempfile::TempDir;

/// A server as they are on any machine: says its name, after a while.
const SERVER: &str = r#"
import http.server, socketserver, sys, time
name, port, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536  # one packet an answer, so that none is cut in two
    def do_GET(self):
        time.sleep(pause if self.path != "/slow" else 2)
        self.send_response(200)
        self.send_header("content-length", str(len(name)))
        self.end_headers()
        self.wfile.write(name.encode())
        self.wfile.flush()
    def log_message(self, *words):
        pass
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 128
server = Server(("127.0.0.1", port), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"#;

struct Fleet {
    dir: TempDir,
    servers: BTreeMap<u16, (char, Process)>,
}

impl Fleet {
    /// `n` servers in each zone, a millisecond for each answer.
    fn start(zones: &str, n: usize) -> Fleet {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("server.py"), SERVER).unwrap();
        let mut fleet = Fleet { dir, servers: BTreeMap::new() };
        for zone in zones.chars().flat_map(|zone| std::iter::repeat_n(zone, n)) {
            let (port, process) = fleet.serve(zone, 0);
            fleet.servers.insert(port, (zone, process));
        }
        fleet
    }

    /// Port 0: whichever is free.
    fn serve(&self, zone: char, port: u16) -> (u16, Process) {
        self.serve_after(zone, port, "0.001")
    }

    /// A server that thinks for so many seconds.
    fn serve_after(&self, zone: char, port: u16, seconds: &str) -> (u16, Process) {
        let script = self.dir.path().join("server.py");
        let mut command = Command::new("python3");
        command.arg(script).args([&zone.to_string(), &port.to_string(), seconds]);
        served(command)
    }

    fn specs(&self) -> String {
        let specs: Vec<String> = self
            .servers
            .iter()
            .map(|(port, (zone, _))| format!("\"{zone}=127.0.0.1:{port}\""))
            .collect();
        specs.join(", ")
    }

    fn zone(&self, wanted: char) -> impl Iterator<Item = &Process> {
        let of_zone = self.servers.values().filter(move |(zone, _)| *zone == wanted);
        of_zone.map(|(_, process)| process)
    }
}

#[test]
fn a_zone_that_is_killed_costs_no_request_and_is_returned_to() {
    let mut fleet = Fleet::start("abc", 2);
    let web = format!("[services.web]\nservers = [{}]", fleet.specs());
    let gateway = Gateway::start(fleet.dir.path(), &web);
    let traffic = Traffic::start(gateway.port, 4);
    traffic.pass(300);
    fleet.zone('a').for_each(|server| server.signal("KILL"));
    traffic.pass(600);
    let answers = traffic.end();
    assert_good(&answers);
    assert!(
        answers["a"] >= 100 && answers["b"] >= 500 && !answers.contains_key("c"),
        "{answers:?}"
    );
    until("word of it in the log", || gateway.says("reason=\"unreachable\""));

    let dead: Vec<u16> =
        fleet.servers.iter().filter(|(_, (zone, _))| *zone == 'a').map(|(port, _)| *port).collect();
    for port in dead {
        let (_, process) = fleet.serve('a', port);
        fleet.servers.insert(port, ('a', process));
    }
    until("zone a again", || gateway.get("/").is_ok_and(|(_, zone)| zone == "a"));
}

#[test]
fn servers_that_stop_or_hang_or_reset_or_fail_are_left() {
    let fleet = Fleet::start("a", 4);
    // What accepts and never answers, what resets, and what answers 500.
    let strange = |answer: fn(TcpStream)| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || answer(stream));
            }
        });
        port
    };
    let hangs = strange(|stream| {
        std::thread::sleep(Duration::from_secs(60));
        drop(stream);
    });
    // Closed with bytes unread: the kernel sends a reset.
    let resets = strange(|mut stream| {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok();
    });
    let fails = strange(|mut stream| {
        let mut bytes = [0; 4096];
        while stream.read(&mut bytes).is_ok_and(|n| n > 0) {
            let answer = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(answer.as_bytes()).ok();
        }
    });
    let web = format!(
        "[services.web]\nservers = [{}, \"127.0.0.1:{hangs}\", \"127.0.0.1:{resets}\", \
         \"127.0.0.1:{fails}\"]\ntimeout = \"5s\"\nattempt_timeout = \"300ms\"\nattempts = 4",
        fleet.specs()
    );
    let gateway = Gateway::start(fleet.dir.path(), &web);
    let traffic = Traffic::start(gateway.port, 4);
    traffic.pass(800);
    // One of those that work stops, as a process does whose machine swaps.
    let stopped = fleet.servers.values().next().unwrap();
    stopped.1.signal("STOP");
    traffic.pass(800);
    stopped.1.signal("CONT");
    let answers = traffic.end();
    assert_good(&answers);
    let state = gateway.state();
    let servers = state["services"][0]["servers"].as_array().unwrap();
    for server in servers {
        let (n, failed) =
            (server["n_requests"].as_u64().unwrap(), server["n_failed"].as_u64().unwrap());
        let address = server["address"].as_str().unwrap();
        let is_strange =
            [hangs, resets, fails].iter().any(|port| address.ends_with(&port.to_string()));
        assert!(!is_strange || n < 100, "{address} was asked {n} times, and failed {failed}");
    }
}

#[test]
fn a_server_that_is_slow_gets_little() {
    let mut fleet = Fleet::start("a", 3);
    let (slow, process) = fleet.serve_after('a', 0, "0.1");
    fleet.servers.insert(slow, ('a', process));
    let web = format!("[services.web]\nservers = [{}]", fleet.specs());
    let gateway = Gateway::start(fleet.dir.path(), &web);
    let traffic = Traffic::start(gateway.port, 4);
    traffic.pass(1000);
    assert_good(&traffic.end());
    let state = gateway.state();
    let servers = state["services"][0]["servers"].as_array().unwrap();
    let slow = servers.iter().find(|server| server["address"] == format!("127.0.0.1:{slow}"));
    let n = slow.unwrap()["n_requests"].as_u64().unwrap();
    // It takes a hundred times as long as the others: evenly it would be 250.
    assert!((1..20).contains(&n), "the slow one was asked {n} times");
}

#[test]
fn a_zone_that_is_cut_off_is_left() {
    // A network namespace is zone a's network: its cable can be pulled.
    let name = format!("atoll{}", std::process::id() % 100_000);
    let ip = |words: &str| {
        let status = Command::new("ip").args(words.split(' ')).status().unwrap();
        assert!(status.success(), "ip {words}");
    };
    let cable = format!("v{}", std::process::id() % 100_000);
    struct Namespace(String, String);
    impl Drop for Namespace {
        fn drop(&mut self) {
            // The cable by itself: sockets may keep the namespace for a while.
            Command::new("ip").args(["link", "delete", &self.1]).status().ok();
            Command::new("ip").args(["netns", "delete", &self.0]).status().ok();
        }
    }
    ip(&format!("netns add {name}"));
    let _namespace = Namespace(name.clone(), cable.clone());
    ip(&format!("link add {cable} type veth peer name far netns {name}"));
    ip(&format!("addr add 10.231.77.1/24 dev {cable}"));
    ip(&format!("link set {cable} up"));
    ip(&format!("-n {name} addr add 10.231.77.2/24 dev far"));
    ip(&format!("-n {name} link set far up"));
    let fleet = Fleet::start("b", 1);
    let script = SERVER.replace("127.0.0.1", "10.231.77.2");
    fs::write(fleet.dir.path().join("far.py"), script).unwrap();
    let mut far = Command::new("ip");
    far.args(["netns", "exec", &name, "python3"]).arg(fleet.dir.path().join("far.py"));
    let _far = served({
        far.args(["a", "80", "0.001"]);
        far
    });
    until("the far server", || TcpStream::connect("10.231.77.2:80").is_ok());
    let web = format!(
        "[services.web]\nservers = [{}, \"a=10.231.77.2:80\"]\nattempt_timeout = \"500ms\"\n\
         connect_timeout = \"300ms\"",
        fleet.specs()
    );
    let gateway = Gateway::start(fleet.dir.path(), &web);
    let traffic = Traffic::start(gateway.port, 4);
    traffic.pass(200);
    ip(&format!("-n {name} link set far down"));
    traffic.pass(400);
    let answers = traffic.end();
    assert_good(&answers);
    assert!(answers["a"] >= 200 && answers["b"] >= 300, "{answers:?}");
    ip(&format!("-n {name} link set far up"));
    until("zone a again", || gateway.get("/").is_ok_and(|(_, zone)| zone == "a"));
}

#[test]
fn a_bad_file_is_refused_and_a_good_one_taken_over() {
    let fleet = Fleet::start("ab", 1);
    let web = format!("[services.web]\nservers = [{}]", fleet.specs());
    let gateway = Gateway::start(fleet.dir.path(), &web);
    let traffic = Traffic::start(gateway.port, 2);
    gateway.rewrite(&format!("{web}\ntiemout = \"1s\""));
    let complaint = "gateway.toml:8: there is no setting \"tiemout\" in [services.web], did you mean \"timeout\"?";
    until("the complaint", || {
        gateway.says(&complaint.replace('"', "\\\"")) || gateway.says(complaint)
    });
    let shown = gateway.state()["complaint"].as_str().unwrap().to_owned();
    assert!(shown.ends_with(complaint), "{shown}");
    traffic.pass(50);
    let only_b = fleet.specs().split(", ").find(|spec| spec.contains("b=")).unwrap().to_owned();
    gateway.rewrite(&format!("[services.web]\nservers = [{only_b}]"));
    until("the new file", || gateway.get("/").is_ok_and(|(_, zone)| zone == "b"));
    assert!(gateway.state()["complaint"].is_null());
    traffic.pass(50);
    assert_good(&traffic.end());
}

#[test]
fn a_restart_and_a_stop_lose_no_request() {
    let fleet = Fleet::start("a", 2);
    let web = format!("[services.web]\nservers = [{}]", fleet.specs());
    let mut gateway = Gateway::start(fleet.dir.path(), &web);
    let traffic = Traffic::start(gateway.port, 4);
    traffic.pass(200);
    // A second word to one who has heard the first changes nothing.
    gateway.process.signal("USR2");
    until("a successor", || gateway.says("a successor was started"));
    gateway.process.signal("USR2");
    let begun = Instant::now();
    while gateway.process.0.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the old process does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    traffic.pass(200);
    let answers = traffic.end();
    assert_good(&answers);
    let log = fs::read_to_string(&gateway.log).unwrap();
    let started: Vec<&str> = log.split("a successor was started pid=").collect();
    let [_, pid] = started[..] else { panic!("one successor: {log}") };
    let pid = pid.split_whitespace().next().unwrap();

    // A stop lets what is under way end, and refuses what is new.
    let port = gateway.port;
    let slow = std::thread::spawn(move || get(port, "/slow"));
    until("a request under way", || gateway.state()["n_requests"] == 1);
    assert!(Command::new("kill").arg(pid).status().unwrap().success());
    until("no new connections", || TcpStream::connect(("127.0.0.1", port)).is_err());
    assert_eq!(slow.join().unwrap(), Ok((200, "a".into())));
    until("its end", || !Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn the_api_brings_servers_and_takes_them_back() {
    let fleet = Fleet::start("a", 1);
    let gateway = Gateway::start(fleet.dir.path(), "[services.web]");
    assert_eq!(gateway.get("/").unwrap().0, 503, "it has no servers yet");
    let (port, _) = fleet.servers.iter().next().unwrap();
    let ask = |method: &str, path: &str, host: &str, body: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", gateway.admin)).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + body).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
    };
    let change = |method: &str, path: &str, body: &str| ask(method, path, "127.0.0.1", body);
    let server = format!("/services/web/servers/127.0.0.1:{port}");
    assert_eq!(ask("PUT", &server, "page.example", ""), 403, "a page that is called like that");
    assert_eq!(change("PUT", &server, r#"{"zone": "a"}"#), 201);
    assert_eq!(change("PUT", &server, r#"{"zone": "a"}"#), 200);
    assert_eq!(gateway.get("/").unwrap(), (200, "a".into()));
    assert_eq!(change("PUT", &server, r#"{"zoom": "a"}"#), 400);
    assert_eq!(change("PUT", &server, r#"{"weight": 0}"#), 400);
    assert_eq!(change("PUT", "/services/wob/servers/127.0.0.1:1", ""), 404);
    assert_eq!(change("PUT", "/services/web/servers/here", ""), 400);
    assert_eq!(change("POST", &server, ""), 405);
    assert_eq!(change("DELETE", &server, ""), 200);
    assert_eq!(change("DELETE", &server, ""), 404);
    assert_eq!(gateway.get("/").unwrap().0, 503);
    let (_, metrics) = get(gateway.admin, "/metrics").unwrap();
    assert!(
        metrics.contains("atoll_gateway_requests_total{service=\"web\",code=\"2xx\"} 1"),
        "{metrics}"
    );
    assert!(metrics.ends_with("# EOF\n"));
}

#[test]
fn busy_connections_move_to_an_idle_thread() {
    let mut fleet = Fleet::start("", 0);
    let (port, process) = fleet.serve_after('a', 0, "0.05");
    fleet.servers.insert(port, ('a', process));
    let web = format!("[services.web]\nservers = [{}]", fleet.specs());
    let gateway = Gateway::start(fleet.dir.path(), &web);
    let ask = |stream: &mut TcpStream| {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\na") {
            let mut bytes = [0; 1024];
            let n = stream.read(&mut bytes).unwrap();
            assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&bytes[..n]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 "));
    };
    let connect = |_| {
        let mut stream = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        ask(&mut stream);
        stream
    };
    // They go to the two threads in turn; then only those of one thread are used.
    let all: Vec<TcpStream> = (0..40).map(connect).collect();
    let (busy, idle): (Vec<_>, Vec<_>) =
        all.into_iter().enumerate().partition(|(idx, _)| idx % 2 == 0);
    std::thread::scope(|scope| {
        for (_, mut stream) in busy {
            let ask = &ask;
            scope.spawn(move || (0..30).for_each(|_| ask(&mut stream)));
        }
    });
    drop(idle);
    let (_, metrics) = get(gateway.admin, "/metrics").unwrap();
    let moved = metrics.lines().find(|line| line.contains("connections_moved_total")).unwrap();
    let n: u64 = moved.split(' ').nth(1).unwrap().parse().unwrap();
    assert!((4..=20).contains(&n), "{moved}");
}

#[test]
fn the_rest_of_a_body_does_not_move() {
    let mut fleet = Fleet::start("", 0);
    let (port, process) = fleet.serve_after('a', 0, "1");
    fleet.servers.insert(port, ('a', process));
    let web = format!(
        "routes = [{{ path = \"/known\", service = \"web\" }}]\n[services.web]\nservers = [{}]",
        fleet.specs()
    );
    let gateway = Gateway::start(fleet.dir.path(), &web);
    let connect = |_| TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
    // They go to the two threads in turn; one of those has all the work.
    let mut all: Vec<TcpStream> = (0..41).map(connect).collect();
    until("them all", || gateway.state()["n_connections"] == 41);
    for stream in all.iter_mut().take(40).step_by(2) {
        stream.write_all(b"GET /known HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    }
    until("all of them under way", || gateway.state()["n_requests"] == 20);
    let stream = &mut all[40];
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let head = "POST /unknown HTTP/1.1\r\nhost: test\r\ncontent-length: 20000\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = vec![0; 4096];
    let n = stream.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..n]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    stream.write_all(b"GET /known HTTP/1.1\r\nhost: test\r\n\r\n").ok();
    let mut rest = String::new();
    // Closed in peace, or reset, as what was sent is not wanted.
    stream.read_to_string(&mut rest).ok();
    assert_eq!(rest, "", "a body's rest was taken for a request");
}

#[test]
fn the_last_spans_are_sent_before_the_end() {
    let fleet = Fleet::start("a", 1);
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = format!(
        "traces = {{ collector = \"http://localhost:{}\", share = 1.0 }}\n\
         [services.web]\nservers = [{}]",
        collector.local_addr().unwrap().port(),
        fleet.specs()
    );
    let (sender, received) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in collector.incoming().flatten() {
            let mut message = Vec::new();
            let mut bytes = [0; 4096];
            while !message.ends_with(b"]}]}]}") {
                match stream.read(&mut bytes) {
                    Ok(n) if n > 0 => message.extend_from_slice(&bytes[..n]),
                    _ => break,
                }
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok();
            sender.send(String::from_utf8(message).unwrap()).ok();
        }
    });
    let gateway = Gateway::start(fleet.dir.path(), &text);
    assert_eq!(gateway.get("/one").unwrap().0, 200);
    let one = received.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(one.starts_with("POST /v1/traces HTTP/1.1\r\n") && one.contains("/one"), "{one}");
    assert_eq!(gateway.get("/two").unwrap().0, 200);
    gateway.process.signal("TERM");
    let two = received.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(two.contains("/two") && !two.contains("/one"), "{two}");
}

#[test]
fn the_addresses_of_a_name_are_servers() {
    let fleet = Fleet::start("a", 1);
    let port = fleet.servers.keys().next().unwrap();
    let web = format!(
        "[services.web]\ndns = [{{ name = \"localhost\", port = {port}, zone = \"a\", interval = \"1s\" }}]"
    );
    let gateway = Gateway::start(fleet.dir.path(), &web);
    until("an answer", || gateway.get("/") == Ok((200, "a".into())));
    gateway.rewrite(&web.replace("localhost", "no-such-name.invalid"));
    until("a complaint", || gateway.says("no-such-name.invalid"));
    assert_eq!(gateway.get("/").unwrap().0, 503, "another name has other addresses, or none");
}
