//! The gateway's live page in a real browser: what an engineer on call sees while a zone dies, a
//! service breaks, the file is wrong and the gateway goes away.
//!
//! The story is `gateway_page/page.mjs`. It asks for the world's turns, a line each (`? kill zone
//! a`), and goes on when it has the answer, a line of JSON.
// The test stands outside of what is simulated.
#![allow(clippy::disallowed_methods)]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const PLAYWRIGHT: &str = "1.65.1";
const SERVICES: [&str; 2] = ["catalog", "orders"];
const ZONES: [&str; 3] = ["a", "b", "c"];
const N_IN_ZONE: usize = 2;
const N_MORE: usize = 8;
/// Between two requests to a service.
const PACE: Duration = Duration::from_millis(15);
const STORY_MAX: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_says_what_is_wrong() {
    let mut world = World::start().await;
    let addresses = |service: &'static str| -> Value {
        let of = |zone| world.servers[&(service, zone)].iter().map(|server| server.text());
        ZONES.into_iter().map(|zone| (zone.to_owned(), of(zone).collect::<Value>())).collect()
    };
    let told = json!({
        "url": format!("http://{}/", world.admin),
        "servers": { "catalog": addresses("catalog"), "orders": addresses("orders") },
        "profile": world.dir.path().join("profile"),
    });
    let mut story = tokio::process::Command::new("node");
    story.arg("page.mjs").arg(told.to_string()).current_dir(workshop());
    story.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let ended = tokio::time::timeout(STORY_MAX, tell(story.spawn().unwrap(), &mut world)).await;
    assert!(ended.expect("the story takes too long").success());
}

/// Turns the world as the story asks for it.
async fn tell(mut story: tokio::process::Child, world: &mut World) -> ExitStatus {
    let mut answers = story.stdin.take().unwrap();
    let mut lines = BufReader::new(story.stdout.take().unwrap()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        println!("{line}");
        if let Some(words) = line.strip_prefix("? ") {
            let answer = format!("{}\n", world.turn(words).await);
            answers.write_all(answer.as_bytes()).await.unwrap();
        }
    }
    story.wait().await.unwrap()
}

/// Where the story finds its browser's driver; kept between runs.
fn workshop() -> PathBuf {
    let name = format!("playwright-core-{PLAYWRIGHT}");
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&home).unwrap();
    if !home.join("node_modules/playwright-core").exists() {
        std::fs::write(home.join("package.json"), "{\"private\": true}").unwrap();
        let mut npm = Command::new("npm");
        npm.args(["install", "--silent", "--no-audit", "--no-fund"]);
        npm.arg(format!("playwright-core@{PLAYWRIGHT}")).current_dir(&home);
        assert!(npm.status().unwrap().success(), "{npm:?}");
    }
    std::fs::copy("tests/gateway_page/page.mjs", home.join("page.mjs")).unwrap();
    home
}

/// At a port below those that connections are given: whoever is killed gets the same one back.
async fn listen() -> TcpListener {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let salt = (std::process::id() % 150) as u16 * 100;
    for _ in 0..2000 {
        let port = 12_000 + salt + NEXT.fetch_add(1, Relaxed);
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)).await {
            return listener;
        }
    }
    panic!("no free port");
}

/// How a service's servers answer.
struct Mood {
    is_failing: AtomicBool,
    /// Requests to `/held` that have come, and those that may go.
    n_held: Semaphore,
    n_let_go: Semaphore,
}

/// A small HTTP server; its task's end is its death, with all its connections.
struct Server {
    address: SocketAddr,
    mood: Arc<Mood>,
    life: JoinSet<()>,
}

impl Server {
    async fn start(mood: &Arc<Mood>) -> Server {
        let listener = listen().await;
        let address = listener.local_addr().unwrap();
        let mut server = Server { address, mood: mood.clone(), life: JoinSet::new() };
        server.live(listener);
        server
    }

    fn text(&self) -> String {
        self.address.to_string()
    }

    fn live(&mut self, listener: TcpListener) {
        let mood = self.mood.clone();
        self.life.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, mood.clone()));
            }
        });
    }

    async fn kill(&mut self) {
        self.life.shutdown().await;
    }

    async fn restart(&mut self) {
        self.live(TcpListener::bind(self.address).await.unwrap());
    }
}

async fn serve(stream: TcpStream, mood: Arc<Mood>) {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    // The other side may close the connection at any time.
    while stream.read_line(&mut head).await.is_ok_and(|n| n > 0) {
        if !head.ends_with("\r\n\r\n") {
            continue;
        }
        if head.contains("/held ") {
            mood.n_held.add_permits(1);
            mood.n_let_go.acquire().await.unwrap().forget();
        }
        let status = if mood.is_failing.load(Relaxed) { "500 Broken" } else { "200 OK" };
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
        head.clear();
    }
}

/// One request on a connection of its own; its answer.
async fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: test.example\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

struct Gateway(Child);

impl Drop for Gateway {
    fn drop(&mut self) {
        // It has ended by itself, or ends now.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

struct World {
    dir: TempDir,
    listen: SocketAddr,
    admin: SocketAddr,
    gateway: Option<Gateway>,
    moods: BTreeMap<&'static str, Arc<Mood>>,
    /// By service and zone.
    servers: BTreeMap<(&'static str, &'static str), Vec<Server>>,
    more: Vec<Server>,
    clients: JoinSet<()>,
}

impl World {
    async fn start() -> World {
        let calm = || Mood {
            is_failing: AtomicBool::new(false),
            n_held: Semaphore::new(0),
            n_let_go: Semaphore::new(0),
        };
        let mut world = World {
            dir: tempfile::tempdir().unwrap(),
            // Free again at once: the gateway listens there itself.
            listen: listen().await.local_addr().unwrap(),
            admin: listen().await.local_addr().unwrap(),
            gateway: None,
            moods: SERVICES.map(|service| (service, Arc::new(calm()))).into(),
            servers: BTreeMap::new(),
            more: Vec::new(),
            clients: JoinSet::new(),
        };
        for service in SERVICES {
            for zone in ZONES {
                for _ in 0..N_IN_ZONE {
                    let server = Server::start(&world.moods[service]).await;
                    world.servers.entry((service, zone)).or_default().push(server);
                }
            }
        }
        std::fs::write(world.file(), world.config()).unwrap();
        world.start_gateway().await;
        world
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("gateway.toml")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log.txt")
    }

    fn config(&self) -> String {
        let mut text = format!(
            "zone = \"a\"\ncloseness = [\"a\", [\"b\", \"c\"]]\nlisten = \"{}\"\n\n\
             [admin]\naddress = \"{}\"\n",
            self.listen, self.admin
        );
        for service in SERVICES {
            text += &format!("\n[[routes]]\npath = \"/{service}\"\nservice = \"{service}\"\n");
        }
        for service in SERVICES {
            let of = |zone| {
                let servers = self.servers[&(service, zone)].iter();
                servers.map(move |server| format!("{zone}={}", server.address))
            };
            let servers: Vec<String> = ZONES.into_iter().flat_map(of).collect();
            text += &format!("\n[services.{service}]\nservers = {servers:?}\n");
        }
        text
    }

    async fn start_gateway(&mut self) {
        let log = File::options().append(true).create(true).open(self.log()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_atoll"));
        command.args(["gateway", "--config"]).arg(self.file());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let gateway = self.gateway.insert(Gateway(command.spawn().unwrap()));
        let begun = Instant::now();
        while !get(self.admin, "/healthz").await.is_ok_and(|answer| answer.contains("200 OK")) {
            assert_eq!(gateway.0.try_wait().unwrap(), None, "the gateway ended");
            assert!(begun.elapsed() < Duration::from_secs(30), "the gateway does not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn servers_of(&mut self, zone: &'static str) -> impl Iterator<Item = &mut Server> {
        let all = self.servers.iter_mut();
        all.filter(move |((_, of), _)| *of == zone).flat_map(|(_, servers)| servers)
    }

    async fn turn(&mut self, words: &str) -> Value {
        match words {
            "traffic" => {
                for service in SERVICES {
                    let (listen, path) = (self.listen, format!("/{service}"));
                    self.clients.spawn(async move {
                        loop {
                            // Refusals are part of the story.
                            get(listen, &path).await.ok();
                            tokio::time::sleep(PACE).await;
                        }
                    });
                }
            }
            "more servers" => {
                for _ in 0..N_MORE {
                    self.more.push(Server::start(&self.moods["catalog"]).await);
                }
                return self.more.iter().map(Server::text).collect();
            }
            "kill zone a" => {
                for server in self.servers_of("a") {
                    server.kill().await;
                }
            }
            "start zone a" => {
                for server in self.servers_of("a") {
                    server.restart().await;
                }
            }
            "orders fail" => self.moods["orders"].is_failing.store(true, Relaxed),
            "orders work" => self.moods["orders"].is_failing.store(false, Relaxed),
            "break the file" => {
                let good = self.config();
                std::fs::write(self.file(), format!("{good}time_out = \"2s\"\n")).unwrap();
                return json!({ "file": self.file(), "line": good.lines().count() + 1 });
            }
            "mend the file" => std::fs::write(self.file(), self.config()).unwrap(),
            "stop" => {
                let listen = self.listen;
                self.clients.spawn(async move {
                    get(listen, "/catalog/held").await.unwrap();
                });
                self.moods["catalog"].n_held.acquire().await.unwrap().forget();
                let id = self.gateway.as_ref().unwrap().0.id();
                kill(Pid::from_raw(id as i32), Signal::SIGTERM).unwrap();
            }
            "let go" => self.moods["catalog"].n_let_go.add_permits(1),
            "start" => {
                // The old one ends by itself.
                let mut old = self.gateway.take().unwrap();
                tokio::task::spawn_blocking(move || old.0.wait().unwrap()).await.unwrap();
                self.start_gateway().await;
            }
            _ => panic!("the world has no such turn: {words}"),
        }
        Value::Null
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(log) = std::fs::read_to_string(self.log())
        {
            eprintln!("{log}");
        }
    }
}
