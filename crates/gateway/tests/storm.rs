//! Bad luck by the seed: a gateway before three zones whose servers die, hang, are cut off, answer
//! late, wrongly or not to the end, while clients ask, wait and break off, and its file changes.
//! Time is virtual; `ATOLL_STORM_SEEDS=500` plays more seeds.
//!
//! What must hold, whatever happens:
//!
//! * An answer is the answer to its own question, whole or broken off.
//! * What must not be done twice is not.
//! * A client is told by a status of the gateway's or of its server; nobody hangs up on it.
//! * When it is over, everything works again, and nothing is held.

#[path = "storm/net.rs"]
mod net;
mod support;

use base::env::Instant;
use bytes::Bytes;
use gateway::gateway::Gateway;
use http::{Method, Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use net::{Mode, StormNet};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{World, handler, says, status};

const N_ZONES: u16 = 3;
const N_SERVERS: u16 = 9;
const N_CLIENTS: u64 = 12;
const STORM: Duration = Duration::from_secs(15);
const PATIENT: Duration = Duration::from_secs(100);
/// How soon everything is well again after the last fault.
const HEALING: Duration = Duration::from_secs(5);

/// How a server behaves.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
enum Manner {
    #[default]
    Well,
    /// After so many milliseconds.
    Slow(u64),
    /// 500.
    Fails,
    /// Takes requests and never answers.
    Hangs,
    /// Begins an answer and breaks off.
    Breaks,
}

/// What clients, servers and faults share.
struct Sky {
    world: World,
    net: StormNet,
    manners: Mutex<Vec<Manner>>,
    /// What must not be done twice.
    done: Mutex<HashSet<u64>>,
    n_attempts: AtomicU64,
    n_asked: AtomicU64,
    n_good: AtomicU64,
    next_id: AtomicU64,
    is_over: AtomicBool,
    wrong: Mutex<Vec<String>>,
}

fn address(server: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], server))
}

fn zone(server: u16) -> u16 {
    server % N_ZONES
}

/// The file, without the server that is left out.
fn file(rng_seed: u64, left_out: Option<u16>) -> String {
    let servers = (1..=N_SERVERS).filter(|server| Some(*server) != left_out);
    let servers: Vec<String> = servers
        .map(|server| {
            format!("\"{}={}\"", ["a", "b", "c"][usize::from(zone(server))], address(server))
        })
        .collect();
    let is = |bit: u32| rng_seed >> bit & 1 == 1;
    let protocol = if is(0) { "protocol = \"http2\"" } else { "" };
    let fallback = match is(3) {
        true => format!(
            "[services.web.fallback]\nservice = \"other\"\n\
             [services.other]\n{protocol}\nservers = [{}]",
            servers.join(", ")
        ),
        false => String::new(),
    };
    let hedge = if is(1) { "hedge = true" } else { "" };
    let check =
        if is(2) { "[services.web.health]\npath = \"/health\"\ninterval = \"1s\"" } else { "" };
    format!(
        r#"
        zone = "a"
        listen = "127.0.0.1:1"
        routes = [{{ service = "web" }}]
        [services.web]
        servers = [{}]
        timeout = "2s"
        attempt_timeout = "500ms"
        {protocol}
        {hedge}
        {check}
        {fallback}
        "#,
        servers.join(", ")
    )
}

/// What the answer to request `id` says, and what its body says: it is told from all others.
fn text(id: u64, kind: u64) -> Bytes {
    let n = (id * 7919 + kind * 13) % 90_000;
    let n = if id.is_multiple_of(3) { n } else { n % 300 };
    let word = format!("{id}.{kind} ");
    Bytes::from(word.bytes().cycle().take(n as usize).collect::<Vec<u8>>())
}

impl Sky {
    fn wrong(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }

    async fn serve(self: &Arc<Self>, server: u16) {
        let sky = self.clone();
        let answer = handler(move |request| {
            let sky = sky.clone();
            async move { sky.answer(server, request).await }
        });
        match self.world.gateway.state().backends["web"].config.protocol {
            gateway::config::Protocol::Http1 => drop(self.world.server(server, answer).await),
            gateway::config::Protocol::Http2 => drop(self.world.server2(server, answer).await),
        }
    }

    async fn answer(&self, server: u16, request: Request<Incoming>) -> support::Answer {
        let manner = self.manners.lock().unwrap()[usize::from(server - 1)];
        if request.uri().path() == "/health" {
            return if manner == Manner::Fails { status(500) } else { says("") };
        }
        let header = |name: &str| request.headers()[name].to_str().unwrap().parse::<u64>().unwrap();
        let id = header("x-id");
        let is_post = request.method() == Method::POST;
        self.n_attempts.fetch_add(1, Relaxed);
        let Ok(body) = request.into_body().collect().await else { return status(400) };
        if body.to_bytes() != if is_post { text(id, 1) } else { Bytes::new() } {
            self.wrong(format!("request {id} came with another body"));
        }
        if is_post && !self.done.lock().unwrap().insert(id) {
            self.wrong(format!("request {id} was done twice"));
        }
        match manner {
            Manner::Well => {}
            Manner::Slow(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            Manner::Fails => return status(500),
            Manner::Hangs => std::future::pending().await,
            Manner::Breaks => {}
        }
        let whole = text(id, 2);
        let half = whole.slice(..whole.len() / 2);
        let (told, frames) = match manner {
            Manner::Breaks => (true, vec![Ok(Frame::data(half))]),
            _ => (
                id % 2 == 0,
                vec![Ok(Frame::data(half.clone())), Ok(Frame::data(whole.slice(half.len()..)))],
            ),
        };
        let frames = futures::stream::unfold(frames.into_iter(), |mut frames| async {
            let frame = frames.next()?;
            tokio::time::sleep(Duration::from_millis(1)).await;
            Some((frame, frames))
        });
        let mut answer = http::Response::new(StreamBody::new(frames).boxed());
        if told {
            let n = if manner == Manner::Breaks { whole.len() + 1 } else { whole.len() };
            answer.headers_mut().insert("content-length", n.into());
        }
        answer.headers_mut().insert("x-id", id.into());
        answer
    }

    /// One client's life: connections, and some requests on each.
    async fn client(self: Arc<Self>, mut rng: SmallRng) {
        while !self.is_over.load(Relaxed) {
            let n_requests = rng.random_range(1..20);
            if rng.random_bool(0.3) {
                let sender = self.world.client2().await;
                for _ in 0..n_requests {
                    let (is_post, patience) = mood(&mut rng).await;
                    let mut own = sender.clone();
                    let send = move |request| async move { own.send_request(request).await };
                    self.ask(is_post, patience, send).await;
                }
            } else {
                let mut sender = self.http1().await;
                for _ in 0..n_requests {
                    let (is_post, patience) = mood(&mut rng).await;
                    if sender.ready().await.is_err() {
                        // It broke off itself, or the answer did.
                        break;
                    }
                    let sender = &mut sender;
                    let send = move |request| async move { sender.send_request(request).await };
                    if !self.ask(is_post, patience, send).await {
                        break;
                    }
                }
            }
        }
    }

    async fn http1(&self) -> http1::SendRequest<Full<Bytes>> {
        let io = hyper_util::rt::TokioIo::new(self.world.connect());
        let (sender, connection) = http1::handshake(io).await.unwrap();
        self.world.env.spawn("client", async move {
            connection.await.ok();
        });
        sender
    }

    /// Asks once; whether the connection is as good as before.
    async fn ask<F>(
        &self,
        is_post: bool,
        patience: Duration,
        send: impl FnOnce(Request<Full<Bytes>>) -> F,
    ) -> bool
    where
        F: Future<Output = hyper::Result<http::Response<Incoming>>>,
    {
        let id = self.next_id.fetch_add(1, Relaxed);
        let method = if is_post { Method::POST } else { Method::GET };
        let body = if is_post { text(id, 1) } else { Bytes::new() };
        let request = Request::builder()
            .method(method)
            .uri("http://test.example/")
            .header("host", "test.example")
            .header("x-id", id)
            .body(Full::new(body))
            .unwrap();
        self.n_asked.fetch_add(1, Relaxed);
        let Ok(answer) = tokio::time::timeout(patience, send(request)).await else { return false };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.wrong(format!("request {id}: {error}"));
                return false;
            }
        };
        let status = answer.status();
        let is_servers = answer.headers().get("x-id").is_some();
        if is_servers && answer.headers()["x-id"] != id.to_string() {
            self.wrong(format!("request {id} was told {:?}", answer.headers()["x-id"]));
        }
        let Ok(body) = tokio::time::timeout(patience, answer.into_body().collect()).await else {
            return false;
        };
        match (status, body) {
            (StatusCode::OK, Ok(body)) => {
                self.n_good.fetch_add(1, Relaxed);
                if body.to_bytes() != text(id, 2) {
                    self.wrong(format!("request {id} has another's answer"));
                }
            }
            (StatusCode::OK, Err(_)) => return false,
            (status, _) if matches!(status.as_u16(), 500 | 502 | 503 | 504) => {}
            (status, _) => self.wrong(format!("request {id}: {status}")),
        }
        true
    }

    /// One fault after the other, each for a while; some at the same time.
    async fn faults(&self, seed: u64, mut rng: SmallRng) {
        let env = &self.world.env;
        let end = env.now() + STORM;
        let mut ends: Vec<(Instant, Vec<u16>)> = Vec::new();
        while env.now() < end {
            tokio::time::sleep(Duration::from_millis(rng.random_range(20..800))).await;
            let now = env.now();
            for (_, servers) in ends.extract_if(.., |(at, _)| *at <= now) {
                servers.into_iter().for_each(|server| self.mend(server));
            }
            let one = rng.random_range(1..=N_SERVERS);
            let servers: Vec<u16> = match rng.random_range(0..8) {
                // A zone, or all.
                0 => (1..=N_SERVERS).filter(|server| zone(*server) == zone(one)).collect(),
                1 if rng.random_bool(0.3) => (1..=N_SERVERS).collect(),
                _ => vec![one],
            };
            let manner = *[
                Manner::Slow(20),
                Manner::Slow(300),
                Manner::Slow(700),
                Manner::Fails,
                Manner::Hangs,
                Manner::Breaks,
            ]
            .choose(&mut rng)
            .unwrap();
            let mode = *[Mode::Down, Mode::Cut, Mode::Frozen].choose(&mut rng).unwrap();
            let what = rng.random_range(0..5);
            for server in &servers {
                match what {
                    0 | 1 => self.net.set(address(*server), mode),
                    _ => self.manners.lock().unwrap()[usize::from(server - 1)] = manner,
                }
            }
            if rng.random_bool(0.1) {
                let left_out = rng.random_bool(0.7).then(|| rng.random_range(1..=N_SERVERS));
                self.world.reload(&file(seed, left_out));
            }
            let ms = rng.random_range(50..3000);
            ends.push((now + Duration::from_millis(ms), servers));
        }
        self.world.reload(&file(seed, None));
        (1..=N_SERVERS).for_each(|server| self.mend(server));
    }

    fn mend(&self, server: u16) {
        self.net.set(address(server), Mode::Up);
        self.manners.lock().unwrap()[usize::from(server - 1)] = Manner::Well;
    }

    /// Whether all works, soon after the last fault.
    async fn judge(&self) {
        tokio::time::sleep(HEALING).await;
        let mut sender = self.http1().await;
        for n in 0..200 {
            sender.ready().await.unwrap();
            let sender = &mut sender;
            let send = move |request| async move { sender.send_request(request).await };
            let before = self.n_good.load(Relaxed);
            self.ask(n % 3 == 0, PATIENT, send).await;
            if self.n_good.load(Relaxed) == before {
                self.wrong(format!("{n} requests after all had been well, one failed"));
            }
        }
    }

    /// Whether everything was given back, and every server is in.
    fn is_at_rest(&self, gateway: &Gateway) {
        if (gateway.n_requests(), gateway.n_connections()) != (0, 0) {
            self.wrong(format!(
                "{} requests and {} connections are held",
                gateway.n_requests(),
                gateway.n_connections()
            ));
        }
        for backend in gateway.state().backends.values() {
            let service = backend.handle.lock();
            for server in service.fleet.servers() {
                if let Some(reason) = server.health.out() {
                    self.wrong(format!("{} is still out: {reason:?}", server.spec.address));
                }
            }
            let held: Vec<u32> = service.fleet.servers().map(|server| server.n_in_flight).collect();
            let zones: Vec<u32> = service.fleet.zones().map(|zone| zone.n_in_flight).collect();
            if service.bulkhead.n_in_flight() + held.iter().chain(&zones).sum::<u32>() > 0 {
                let inside = service.bulkhead.n_in_flight();
                self.wrong(format!(
                    "held: {inside} in the bulkhead, {held:?} at servers, {zones:?}"
                ));
            }
        }
    }
}

/// What a client asks for next, some time later, and how long it waits.
async fn mood(rng: &mut SmallRng) -> (bool, Duration) {
    tokio::time::sleep(Duration::from_millis(rng.random_range(0..60))).await;
    let patience = match rng.random_bool(0.1) {
        true => Duration::from_millis(rng.random_range(0..400)),
        false => PATIENT,
    };
    (rng.random_bool(0.3), patience)
}

async fn play(seed: u64) -> (Vec<String>, String) {
    let net = StormNet::default();
    let world = World::on(Arc::new(net.clone()), &file(seed, None));
    gateway::upkeep::start(&world.gateway);
    let sky = Arc::new(Sky {
        world,
        net,
        manners: Mutex::new(vec![Manner::Well; usize::from(N_SERVERS)]),
        done: Mutex::default(),
        n_attempts: AtomicU64::new(0),
        n_asked: AtomicU64::new(0),
        n_good: AtomicU64::new(0),
        next_id: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
        wrong: Mutex::default(),
    });
    for server in 1..=N_SERVERS {
        sky.serve(server).await;
    }
    let rng = |n: u64| SmallRng::seed_from_u64(seed * 1000 + n);
    let clients: Vec<_> =
        (0..N_CLIENTS).map(|n| sky.world.env.spawn("client", sky.clone().client(rng(n)))).collect();
    sky.faults(seed, rng(999)).await;
    sky.is_over.store(true, Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    sky.judge().await;
    // What clients left behind ends by itself, and nobody is out for ever.
    tokio::time::sleep(Duration::from_secs(600)).await;
    sky.is_at_rest(&sky.world.gateway);
    let told = format!(
        "{} asked, {} good, {} attempts",
        sky.n_asked.load(Relaxed),
        sky.n_good.load(Relaxed),
        sky.n_attempts.load(Relaxed)
    );
    let wrong = std::mem::take(&mut *sky.wrong.lock().unwrap());
    (wrong, told)
}

#[test]
fn a_storm_passes_and_nothing_is_lost_mixed_up_or_held() {
    let n = std::env::var("ATOLL_STORM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let mut reds = Vec::new();
    for seed in 0..n {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let (wrong, told) = runtime.block_on(play(seed));
        println!("seed {seed}: {told}, {} wrong", wrong.len());
        if !wrong.is_empty() {
            reds.push(format!("seed {seed}: {}", wrong[..wrong.len().min(5)].join("; ")));
        }
    }
    assert!(reds.is_empty(), "{}", reds.join("\n"));
}
