//! What servers do to connections, and what this process wants itself: neither is charged to a
//! server that would answer. Time is virtual.

mod support;

use base::env::{Listener, MemoryNet, Net, Pending, Stream};
use bytes::Bytes;
use gateway::upkeep;
use h2::Reason;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;
use rustix::io::Errno;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use support::{ONE, World, handler, says};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const HTTP2: &str = r#"
    listen = "127.0.0.1:1"
    [services.web]
    servers = ["10.0.0.1:1"]
    protocol = "http2"
    timeout = "3s"
"#;

/// A network with no descriptors left, from time to time.
#[derive(Default)]
struct ShortNet {
    net: MemoryNet,
    is_short: AtomicBool,
}

impl Net for ShortNet {
    fn connect(&self, to: SocketAddr) -> Pending<'_, Stream> {
        if self.is_short.load(SeqCst) {
            let error = io::Error::from_raw_os_error(Errno::MFILE.raw_os_error());
            return Box::pin(std::future::ready(Err(error)));
        }
        self.net.connect(to)
    }

    fn listen(&self, at: SocketAddr) -> Pending<'_, Box<dyn Listener>> {
        self.net.listen(at)
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_here_is_not_charged_to_servers() {
    let net = Arc::<ShortNet>::default();
    let config = ONE.replace("\"a=10.0.0.1:1\"", "\"a=10.0.0.1:1\", \"a=10.0.0.1:2\"");
    let config = config + "health = { path = \"/\", interval = \"1s\" }\n";
    let world = World::on(net.clone(), &config);
    upkeep::start(&world.gateway);
    for port in [1, 2] {
        world.server(port, handler(|_| async { says("served") })).await;
    }
    assert_eq!(world.client().await.get("/").await.0, 200);
    tokio::time::sleep(Duration::from_secs(10)).await;
    net.is_short.store(true, SeqCst);
    for _ in 0..50 {
        let (status, text) = world.client().await.get("/").await;
        assert_eq!(status, 503);
        assert!(text.contains("no connection can be made here"), "{text}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    net.is_short.store(false, SeqCst);
    assert_eq!([1, 2].map(|port| world.out(port)), [None; 2]);
    let service = world.gateway.state().backends["web"].handle.clone();
    let n_failed = service.lock().totals.n_failed;
    let n_opened = service.lock().breaker.n_opened();
    assert_eq!((n_failed, n_opened), (0, 0));
    assert!(service.lock().fleet.servers().all(|server| server.n_failed == 0));
    assert_eq!(world.client().await.get("/").await.0, 200);
}

/// A server of HTTP/1.1 that answers one request on each of its first connections, and closes when
/// another comes on them; and how many connections it had.
async fn forgetful(world: &World, n_forgetful: usize) -> Arc<AtomicUsize> {
    let mut listener = world.env.net().listen(([10, 0, 0, 1], 1).into()).await.unwrap();
    let n = Arc::<AtomicUsize>::default();
    let (count, env) = (n.clone(), world.env.clone());
    world.env.spawn("server", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let is_forgetful = count.fetch_add(1, SeqCst) < n_forgetful;
            let world = env.clone();
            env.spawn("connection", async move {
                let mut bytes = [0; 4096];
                let mut n = 0;
                while stream.read(&mut bytes).await.is_ok_and(|n| n > 0) {
                    n += 1;
                    if is_forgetful && n > 1 {
                        return;
                    }
                    world.sleep(Duration::from_millis(10)).await;
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    stream.write_all(answer).await.unwrap();
                }
            });
        }
    });
    n
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_that_closes_costs_neither_a_request_nor_the_server() {
    let config = ONE.to_owned() + "attempts = 1\n";
    let world = World::new(&config);
    let n_connections = forgetful(&world, 12).await;
    let mut warm = Vec::new();
    for _ in 0..12 {
        let mut client = world.client().await;
        warm.push(world.env.spawn("client", async move {
            assert_eq!(client.get("/").await.0, 200);
        }));
    }
    for task in warm {
        task.await.unwrap();
    }
    assert_eq!(n_connections.load(SeqCst), 12);
    let mut client = world.client().await;
    for _ in 0..12 {
        assert_eq!(client.get("/").await.0, 200);
    }
    let service = world.gateway.state().backends["web"].handle.clone();
    let totals = service.lock().totals;
    assert_eq!((totals.n_failed, totals.n_retries, totals.n_over_budget), (0, 0, 0));

    // What may have happened is not sent again, and the server is not blamed for it either.
    let world = World::new(&config);
    forgetful(&world, 12).await;
    assert_eq!(world.client().await.post("/", "x").await.0, 200);
    assert_eq!(world.client().await.post("/", "x").await.0, 502);
    let service = world.gateway.state().backends["web"].handle.clone();
    assert!(service.lock().fleet.servers().all(|server| server.n_failed == 0));
    assert_eq!(service.lock().totals.n_failed, 0);
}

/// What a scripted server of HTTP/2 does with its nth request.
enum Act {
    Answer,
    Refuse,
    Hold,
}

type Script = Arc<dyn Fn(usize) -> Act + Send + Sync>;

#[derive(Default)]
struct Seen {
    n_connections: AtomicUsize,
    n_requests: AtomicUsize,
    /// Requests under way on one connection, at most.
    n_at_once: AtomicUsize,
    bodies: Mutex<Vec<usize>>,
}

/// A server at `10.0.0.1:PORT` that goes by a script and allows so many requests at once.
async fn scripted(world: &World, port: u16, n_allowed: u32, script: Script) -> Arc<Seen> {
    let mut listener = world.env.net().listen(([10, 0, 0, 1], port).into()).await.unwrap();
    let seen = Arc::<Seen>::default();
    let (told, env) = (seen.clone(), world.env.clone());
    world.env.spawn("server", async move {
        while let Ok((stream, _)) = listener.accept().await {
            told.n_connections.fetch_add(1, SeqCst);
            let (told, script, world) = (told.clone(), script.clone(), env.clone());
            env.spawn("connection", async move {
                let mut builder = h2::server::Builder::new();
                builder.max_concurrent_streams(n_allowed);
                let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
                let n_open = Arc::<AtomicUsize>::default();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let n = told.n_requests.fetch_add(1, SeqCst);
                    let now = n_open.fetch_add(1, SeqCst) + 1;
                    told.n_at_once.fetch_max(now, SeqCst);
                    match script(n) {
                        Act::Refuse => {
                            n_open.fetch_sub(1, SeqCst);
                            respond.send_reset(Reason::REFUSED_STREAM);
                        }
                        Act::Hold => std::mem::forget(respond),
                        Act::Answer => {
                            let (told, n_open, world) =
                                (told.clone(), n_open.clone(), world.clone());
                            world.clone().spawn("answer", async move {
                                let mut body = request.into_body();
                                let mut n_bytes = 0;
                                while let Some(Ok(data)) = body.data().await {
                                    n_bytes += data.len();
                                    body.flow_control().release_capacity(data.len()).ok();
                                }
                                told.bodies.lock().push(n_bytes);
                                world.sleep(Duration::from_millis(500)).await;
                                n_open.fetch_sub(1, SeqCst);
                                let answer = http::Response::new(());
                                if let Ok(mut stream) = respond.send_response(answer, false) {
                                    stream.send_data(Bytes::from_static(b"served"), true).ok();
                                }
                            });
                        }
                    }
                }
            });
        }
    });
    seen
}

#[tokio::test(start_paused = true)]
async fn a_server_gets_as_many_requests_on_a_connection_as_it_allows() {
    let world = World::new(HTTP2);
    let seen = scripted(&world, 1, 10, Arc::new(|_| Act::Answer)).await;
    let begun = world.env.now();
    let mut tasks = Vec::new();
    for _ in 0..30 {
        let mut client = world.client().await;
        tasks.push(world.env.spawn("client", async move {
            assert_eq!(client.get("/").await, (StatusCode::OK, "served".into()));
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    assert_eq!(seen.n_connections.load(SeqCst), 3);
    assert_eq!(seen.n_at_once.load(SeqCst), 10);

    // Places that are held for ever are nobody else's loss.
    let world = World::new(HTTP2);
    let holds: Script = Arc::new(|n: usize| if n < 20 { Act::Hold } else { Act::Answer });
    scripted(&world, 1, 10, holds).await;
    for _ in 0..20 {
        let mut client = world.client().await;
        world.env.spawn("watcher", async move {
            client.get("/").await;
        });
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.client().await.get("/").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn what_a_server_has_not_processed_is_sent_again_whatever_it_is() {
    let refuses = Arc::new(|n: usize| if n == 1 { Act::Refuse } else { Act::Answer });
    let world = World::new(&(HTTP2.to_owned() + "attempts = 1\n"));
    let seen = scripted(&world, 1, 100, refuses).await;
    let mut client = world.client().await;
    for _ in 0..3 {
        assert_eq!(client.post("/", "hello").await, (StatusCode::OK, "served".into()));
    }
    assert_eq!(seen.n_requests.load(SeqCst), 4);
    assert_eq!(*seen.bodies.lock(), [5, 5, 5]);
    let service = world.gateway.state().backends["web"].handle.clone();
    assert!(service.lock().fleet.servers().all(|server| server.n_failed == 0));
    // Who refuses everything is asked no more than the others are allowed to make good.
    let config = HTTP2.replace("\"10.0.0.1:1\"", "\"10.0.0.1:1\", \"10.0.0.1:2\"");
    let world = World::new(&config);
    scripted(&world, 1, 100, Arc::new(|_| Act::Refuse)).await;
    scripted(&world, 2, 100, Arc::new(|_| Act::Answer)).await;
    let mut client = world.client().await;
    for _ in 0..10 {
        assert_eq!(client.post("/", "hello").await, (StatusCode::OK, "served".into()));
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_pinged_unless_the_file_wants_it() {
    for (ping, expected) in [("", 0), ("ping_interval = \"10s\"\n", 11)] {
        let world =
            World::new(&HTTP2.replace("3s", "1h").replace("timeout", &format!("{ping}timeout")));
        let mut listener = world.env.net().listen(([10, 0, 0, 1], 1).into()).await.unwrap();
        let n_pings = Arc::<AtomicUsize>::default();
        let count = n_pings.clone();
        world.env.spawn("server", async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (mut reader, mut writer) = tokio::io::split(stream);
            reader.read_exact(&mut [0; 24]).await.unwrap();
            writer.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
            loop {
                let mut head = [0; 9];
                if reader.read_exact(&mut head).await.is_err() {
                    return;
                }
                let n = usize::from(head[1]) << 8 | usize::from(head[2]);
                let mut content = vec![0; n];
                reader.read_exact(&mut content).await.unwrap();
                // PING without ACK.
                if head[3] == 6 && head[4] & 1 == 0 {
                    count.fetch_add(1, SeqCst);
                    let mut pong = vec![0, 0, 8, 6, 1, 0, 0, 0, 0];
                    pong.extend(content);
                    writer.write_all(&pong).await.unwrap();
                }
            }
        });
        let mut client = world.client().await;
        let request = Request::get("/").header("host", "h").body(Full::default()).unwrap();
        let asking = client.answer(request);
        assert!(world.env.timeout(Duration::from_secs(115), asking).await.is_none());
        assert_eq!(n_pings.load(SeqCst), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_of_http2_that_says_nothing_lets_nobody_in() {
    let world = World::new(&HTTP2.replace("\"10.0.0.1:1\"", "\"10.0.0.1:1\", \"10.0.0.1:2\""));
    let mut listener = world.env.net().listen(([10, 0, 0, 1], 1).into()).await.unwrap();
    world.env.spawn("server", async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    scripted(&world, 2, 100, Arc::new(|_| Act::Answer)).await;
    let mut client = world.client().await;
    for _ in 0..4 {
        // Nothing was sent to the first one, so even a POST goes to the second.
        assert_eq!(client.post("/", "hello").await, (StatusCode::OK, "served".into()));
    }
    let mut answer =
        client.answer(Request::get("/").header("host", "h").body(Full::default()).unwrap()).await;
    assert_eq!(answer.body_mut().collect().await.unwrap().to_bytes(), "served");
}

#[tokio::test(start_paused = true)]
async fn what_a_servers_goodbye_leaves_out_is_sent_again() {
    let world = World::new(&(HTTP2.to_owned() + "attempts = 1\n"));
    let mut listener = world.env.net().listen(([10, 0, 0, 1], 1).into()).await.unwrap();
    let env = world.env.clone();
    world.env.spawn("server", async move {
        let (mut leaving, _) = listener.accept().await.unwrap();
        leaving.read_exact(&mut [0; 24]).await.unwrap();
        leaving.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        loop {
            let mut head = [0; 9];
            leaving.read_exact(&mut head).await.unwrap();
            let n = usize::from(head[1]) << 8 | usize::from(head[2]);
            leaving.read_exact(&mut vec![0; n]).await.unwrap();
            // HEADERS: a GOAWAY says that no request was the last one that it took.
            if head[3] == 1 {
                let goodbye = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                leaving.write_all(&goodbye).await.unwrap();
                break;
            }
        }
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (_, mut respond) = connection.accept().await.unwrap().unwrap();
        respond.send_response(http::Response::new(()), true).unwrap();
        env.spawn("connection", async move { while connection.accept().await.is_some() {} });
    });
    assert_eq!(world.client().await.post("/", "hello").await.0, 200);
    let service = world.gateway.state().backends["web"].handle.clone();
    assert!(service.lock().fleet.servers().all(|server| server.n_failed == 0));
}
