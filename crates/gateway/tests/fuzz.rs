//! Garbage from both sides: what clients send and what servers answer, mutated from things that
//! are right. Nothing may panic, nothing may stay held, and the next good request is answered.
//!
//! A few seconds each by default; `ATOLL_FUZZ_SECONDS=600 cargo test --release -p gateway --test
//! fuzz` goes on for longer, from a seed that it prints.

mod support;

use base::env::{Env, MemoryNet};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use support::{World, handler, says};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const ONE: &str = r#"
    listen = "127.0.0.1:1"
    [[routes]]
    path = "/a"
    service = "web"
    replace_prefix = "/b"
    [[routes]]
    service = "web"
    [services.web]
    servers = ["10.0.0.1:1"]
    timeout = "5s"
    [services.web.fallback]
    stale_for = "1m"
    [services.web.health]
    trip_for = "1s"
    trip_max = "1s"
    eject_for = "1s"
"#;

const REQUESTS: [&[u8]; 9] = [
    b"GET / HTTP/1.1\r\nhost: test.example\r\n\r\n",
    b"GET /a/b?c=d HTTP/1.1\r\nHost: h:80\r\nX-Request-Timeout-Ms: 50\r\nX-Request-Priority: low\r\nX-Forwarded-For: 1.2.3.4\r\nConnection: close, te\r\nTE: trailers\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello",
    b"PUT /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\ntrailer: x\r\n\r\n5;ext=1\r\nhello\r\n0\r\nx: y\r\n\r\n",
    b"GET http://absolute.example/path HTTP/1.1\r\nhost: other\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n",
    b"GET /chat HTTP/1.1\r\nhost: h\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: x\r\n\r\n",
    b"HEAD / HTTP/1.0\r\n\r\nGET / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\nx",
    b"OPTIONS * HTTP/1.1\r\nhost: h\r\ngrpc-timeout: 10m\r\ncontent-type: application/grpc\r\n\r\n",
    // The preface, settings, headers of a GET by indices, data, a reset, a ping, a goodbye.
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x06\x01\x05\x00\x00\x00\x01\x82\x86\x84\x41\x01h\x00\x00\x01\x00\x01\x00\x00\x00\x03x\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x08\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
];

const ANSWERS: [&[u8]; 6] = [
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncache-control: max-age=1\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nvary: accept-encoding\r\n\r\n2\r\nhi\r\n0\r\nx: y\r\n\r\n",
    b"HTTP/1.1 503 Busy\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nbytes",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nset-cookie: a=b\r\ngrpc-status: 14\r\n\r\nuntil the end",
];

fn mutate(rng: &mut SmallRng, corpus: &[&[u8]]) -> Vec<u8> {
    let mut bytes = corpus.choose(rng).unwrap().to_vec();
    for _ in 0..rng.random_range(0..6) {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, rng.random()),
            2 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            3 => {
                let other = corpus.choose(rng).unwrap();
                let from = rng.random_range(0..=other.len());
                bytes.splice(at..at, other[from..].iter().copied());
            }
            4 => {
                let tokens: [&[u8]; 10] = [
                    b"\r\n",
                    b"\0",
                    b": ",
                    b"content-length: 18446744073709551616\r\n",
                    b"transfer-encoding: chunked\r\n",
                    b"\xff\xfe",
                    b"%",
                    b"..",
                    b"host: \r\n",
                    b"\n",
                ];
                bytes.splice(at..at, tokens.choose(rng).unwrap().iter().copied());
            }
            _ => {
                let n = rng.random_range(0..40);
                let end = (at + n).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
        }
    }
    bytes
}

fn seed_and_end() -> (u64, i64) {
    let env = Env::seeded(1, Arc::new(MemoryNet::default()));
    let seconds = std::env::var("ATOLL_FUZZ_SECONDS").map_or(3, |text| text.parse().unwrap());
    let seed = if seconds > 3 { env.wall_us() as u64 } else { 1 };
    println!("seed {seed}, {seconds} s");
    (seed, env.wall_us() + seconds * 1_000_000)
}

/// Sends the bytes in pieces, and reads whatever comes until the gateway has had enough.
async fn throw(rng: &mut SmallRng, world: &World, bytes: &[u8]) {
    let mut stream = world.connect();
    let mut rest = bytes;
    while !rest.is_empty() {
        let n = rng.random_range(1..=rest.len());
        if stream.write_all(&rest[..n]).await.is_err() {
            break;
        }
        rest = &rest[n..];
        if rng.random_range(0..8) == 0 {
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..1500))).await;
        }
    }
    if rng.random_range(0..3) > 0 {
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        world.env.timeout(Duration::from_secs(200), read).await;
    }
}

/// Everything is given back, nobody has panicked, and good requests are answered.
async fn check(world: &World, what: &[u8]) {
    tokio::time::sleep(Duration::from_secs(200)).await;
    let shown = String::from_utf8_lossy(what);
    assert_eq!(world.env.halt_reason(), None, "{shown:?}");
    assert_eq!((world.gateway.n_connections(), world.gateway.n_requests()), (0, 0), "{shown:?}");
    let state = world.gateway.state();
    let service = state.backends["web"].handle.lock();
    assert_eq!(service.bulkhead.n_in_flight(), 0, "{shown:?}");
    assert!(service.fleet.servers().all(|server| server.n_in_flight == 0), "{shown:?}");
}

#[tokio::test(start_paused = true)]
async fn clients_may_send_anything() {
    let (seed, end_us) = seed_and_end();
    let mut rng = SmallRng::seed_from_u64(seed);
    let world = World::new(ONE);
    gateway::upkeep::start(&world.gateway);
    let echo = handler(|request| async move {
        use http_body_util::BodyExt;
        // What cannot be read is the gateway's to say.
        let body = request.into_body().collect().await;
        says(body.map_or(0, |body| body.to_bytes().len()).to_string())
    });
    world.server(1, echo).await;
    let mut n = 0;
    while world.env.wall_us() < end_us {
        let bytes = mutate(&mut rng, &REQUESTS);
        throw(&mut rng, &world, &bytes).await;
        n += 1;
        if n % 50 == 0 {
            check(&world, &bytes).await;
            assert_eq!(world.client().await.get("/").await.0, 200, "after {n}");
        }
    }
    println!("{n} connections");
    assert!(n >= 100, "only {n} were tried");
}

#[tokio::test(start_paused = true)]
async fn servers_may_answer_anything() {
    let (seed, end_us) = seed_and_end();
    let mut rng = SmallRng::seed_from_u64(seed);
    let world = World::new(ONE);
    gateway::upkeep::start(&world.gateway);
    let address = SocketAddr::from(([10, 0, 0, 1], 1));
    let mut listener = world.env.net().listen(address).await.unwrap();
    let env = world.env.clone();
    world.env.spawn("garbage", async move {
        let mut rng = SmallRng::seed_from_u64(seed + 1);
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = mutate(&mut rng, &ANSWERS);
            let closes = rng.random_range(0..4) > 0;
            env.spawn("garbage", async move {
                let mut bytes = [0; 4096];
                // It answers what it has, whoever asks, and is gone or silent.
                if stream.read(&mut bytes).await.is_ok()
                    && stream.write_all(&answer).await.is_ok()
                    && !closes
                {
                    // Longer than anybody waits for it.
                    tokio::time::sleep(Duration::from_secs(150)).await;
                }
            });
        }
    });
    let mut n = 0;
    while world.env.wall_us() < end_us {
        let bytes = REQUESTS[..8].choose(&mut rng).unwrap();
        throw(&mut rng, &world, bytes).await;
        n += 1;
        if n % 50 == 0 {
            check(&world, bytes).await;
        }
    }
    println!("{n} connections");
    assert!(n >= 100, "only {n} were tried");
}
