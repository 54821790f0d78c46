//! The gateway as a process, its clients, and servers that end with the test.
#![allow(dead_code)]

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

/// A child that is killed with the test.
pub struct Process(pub Child);

impl Process {
    pub fn signal(&self, name: &str) {
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
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits for what must come; a test that waits in vain says for what.
pub fn until(what: &str, is_there: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_there() {
        assert!(begun.elapsed() < Duration::from_secs(20), "no sign of it: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Starts a server that prints its port when it listens.
pub fn served(mut command: Command) -> (u16, Process) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (line.trim().parse().unwrap_or_else(|_| panic!("no port: {line:?}")), Process(child))
}

pub struct Gateway {
    pub process: Process,
    pub port: u16,
    pub admin: u16,
    file: PathBuf,
    pub log: PathBuf,
}

impl Gateway {
    pub fn start(dir: &Path, services: &str) -> Gateway {
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

    pub fn rewrite(&self, services: &str) {
        fs::write(&self.file, text(self.port, self.admin, services)).unwrap();
    }

    pub fn get(&self, path: &str) -> Result<(u16, String), String> {
        get(self.port, path)
    }

    pub fn state(&self) -> serde_json::Value {
        let (_, text) = get(self.admin, "/state").unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// The log says what a person on call would look for.
    pub fn says(&self, words: &str) -> bool {
        fs::read_to_string(&self.log).unwrap().contains(words)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Its successors are nobody's children by now.
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        for rest in log.split("a successor was started pid=").skip(1) {
            let pid = rest.split_whitespace().next().unwrap_or_default();
            Command::new("kill").args(["-s", "KILL", pid]).stderr(Stdio::null()).status().ok();
        }
    }
}

fn text(port: u16, admin: u16, services: &str) -> String {
    format!(
        "zone = \"a\"\ncloseness = [\"a\", \"b\", \"c\"]\nlisten = \"127.0.0.1:{port}\"\n\
         admin = {{ address = \"127.0.0.1:{admin}\" }}\nthreads = 2\n{services}\n"
    )
}

/// One request on a connection of its own: status and body.
pub fn get(port: u16, path: &str) -> Result<(u16, String), String> {
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
pub struct Traffic {
    stop: Arc<AtomicBool>,
    n: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<BTreeMap<String, usize>>>,
}

impl Traffic {
    pub fn start(port: u16, n_clients: usize) -> Traffic {
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
    pub fn pass(&self, n: usize) {
        let wanted = self.n.load(SeqCst) + n;
        until("requests that pass", || self.n.load(SeqCst) >= wanted);
    }

    pub fn end(self) -> BTreeMap<String, usize> {
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
pub fn assert_good(answers: &BTreeMap<String, usize>) {
    assert!(answers.keys().all(|answer| answer.len() == 1), "{answers:?}");
}
