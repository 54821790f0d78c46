//! The gateway as a process, before servers that are killed, stopped, hang, reset and are cut off.
//! Everything listens on loopback addresses, and is gone when the test is.

#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
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

/// A child that is killed with the test.
struct Process(Child);

impl Process {
    fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits for what must come; a test that waits in vain says for what.
fn until(what: &str, is_there: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_there() {
        assert!(begun.elapsed() < Duration::from_secs(20), "no sign of it: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

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
        let script = self.dir.path().join("server.py");
        let mut command = Command::new("python3");
        command.arg(script).args([&zone.to_string(), &port.to_string(), "0.001"]);
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

/// Starts a server that prints its port when it listens.
fn served(mut command: Command) -> (u16, Process) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (line.trim().parse().unwrap_or_else(|_| panic!("no port: {line:?}")), Process(child))
}

struct Gateway {
    process: Process,
    port: u16,
    admin: u16,
    file: PathBuf,
    log: PathBuf,
}

impl Gateway {
    fn start(dir: &Path, services: &str) -> Gateway {
        let (port, admin) = (free_port(), free_port());
        let file = dir.join("gateway.toml");
        let log = dir.join("gateway.log");
        fs::write(&file, text(port, admin, services)).unwrap();
        let output = fs::File::create(&log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_atoll"))
            .args(["gateway", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .unwrap();
        let gateway = Gateway { process: Process(child), port, admin, file, log };
        until("the gateway", || TcpStream::connect(("127.0.0.1", admin)).is_ok());
        gateway
    }

    fn rewrite(&self, services: &str) {
        fs::write(&self.file, text(self.port, self.admin, services)).unwrap();
    }

    fn get(&self, path: &str) -> Result<(u16, String), String> {
        get(self.port, path)
    }

    fn state(&self) -> serde_json::Value {
        let (_, text) = get(self.admin, "/state").unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// The log says what a person on call would look for.
    fn says(&self, words: &str) -> bool {
        fs::read_to_string(&self.log).unwrap().contains(words)
    }
}

fn text(port: u16, admin: u16, services: &str) -> String {
    format!(
        "zone = \"a\"\ncloseness = [\"a\", \"b\", \"c\"]\nlisten = \"127.0.0.1:{port}\"\n\
         admin = {{ address = \"127.0.0.1:{admin}\" }}\nthreads = 2\n{services}\n"
    )
}

/// One request on a connection of its own: status and body.
fn get(port: u16, path: &str) -> Result<(u16, String), String> {
    let told = |error: std::io::Error| error.to_string();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).map_err(told)?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(told)?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(told)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(told)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("cut: {answer:?}"))?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or("no status")?;
    Ok((status, body.to_owned()))
}

/// Clients that ask all the time; what they got, by answer.
struct Traffic {
    stop: Arc<AtomicBool>,
    n: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<BTreeMap<String, usize>>>,
}

impl Traffic {
    fn start(port: u16, n_clients: usize) -> Traffic {
        let (stop, n) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = |_| {
            let (stop, n) = (stop.clone(), n.clone());
            std::thread::spawn(move || {
                let mut answers = BTreeMap::new();
                while !stop.load(SeqCst) {
                    let answer = match get(port, "/") {
                        Ok((200, zone)) => zone,
                        Ok((status, text)) => format!("{status} {}", text.trim()),
                        Err(error) => error,
                    };
                    *answers.entry(answer).or_default() += 1;
                    n.fetch_add(1, SeqCst);
                }
                answers
            })
        };
        let clients = (0..n_clients).map(client).collect();
        Traffic { stop, n, clients }
    }

    /// Lets so many more requests pass.
    fn pass(&self, n: usize) {
        let wanted = self.n.load(SeqCst) + n;
        until("requests that pass", || self.n.load(SeqCst) >= wanted);
    }

    fn end(self) -> BTreeMap<String, usize> {
        self.stop.store(true, SeqCst);
        let mut all = BTreeMap::new();
        for client in self.clients {
            for (answer, n) in client.join().unwrap() {
                *all.entry(answer).or_default() += n;
            }
        }
        all
    }
}

/// Only zones answered.
fn assert_good(answers: &BTreeMap<String, usize>) {
    assert!(answers.keys().all(|answer| answer.len() == 1), "{answers:?}");
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
    let pid = log.split("a successor was started pid=").nth(1).unwrap();
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
