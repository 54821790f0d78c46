//! Servers that say nothing, and requests that take long for reasons of their own. Time is virtual.

mod support;

use gateway::balance::health::Reason;
use gateway::upkeep;
use http::Request;
use http_body_util::{BodyExt, StreamBody};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use support::{Handler, World, handler, says};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const ZONES: &str = r#"
    zone = "a"
    listen = "127.0.0.1:1"
    [services.web]
    servers = ["a=10.0.0.1:1", "a=10.0.0.1:2", "b=10.0.0.1:3", "b=10.0.0.1:4"]
    timeout = "700ms"
"#;

/// A server that stands still while `is_paused`: whoever connects is let in and hears nothing.
fn pausing(zone: &'static str, is_paused: &Arc<AtomicBool>) -> Handler {
    let is_paused = is_paused.clone();
    handler(move |_| {
        let is_paused = is_paused.clone();
        async move {
            while is_paused.load(SeqCst) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            says(zone)
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_zone_that_says_nothing_is_left_as_a_whole_and_no_request_is_its_trial() {
    let world = World::new(ZONES);
    upkeep::start(&world.gateway);
    let is_paused = Arc::default();
    for port in 1..=4 {
        let zone = if port <= 2 { "a" } else { "b" };
        let never = Arc::default();
        world.server(port, pausing(zone, if port <= 2 { &is_paused } else { &never })).await;
    }
    let (n_late, n_to_a) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let begun = world.env.now();
    for n in 0..2000 {
        // From the second second to the seventh.
        is_paused.store((200..1400).contains(&n), SeqCst);
        let mut client = world.client().await;
        let (env, n_late, n_to_a) = (world.env.clone(), n_late.clone(), n_to_a.clone());
        world.env.spawn("request", async move {
            let sent_at = env.now();
            let (status, zone) = client.get("/").await;
            assert_eq!(status, 200, "{zone}, {:?} after the begin", begun.elapsed());
            n_late.fetch_add(usize::from(sent_at.elapsed() > Duration::from_millis(650)), SeqCst);
            n_to_a.fetch_add(usize::from((320..1400).contains(&n) && zone == "a"), SeqCst);
        });
        tokio::time::sleep(Duration::from_millis(5)).await;
        if n == 320 {
            assert_eq!([1, 2].map(|port| world.out(port)), [Some(Reason::Silent); 2]);
        }
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(n_late.load(SeqCst), 0);
    assert_eq!(n_to_a.load(SeqCst), 0, "whoever is asked there waits");
    assert_eq!([1, 2].map(|port| world.out(port)), [None; 2], "it says something again");
}

#[tokio::test(start_paused = true)]
async fn what_waits_on_purpose_is_no_silence_and_no_queue() {
    let world = World::new(&ZONES.replace("700ms", "1m"));
    upkeep::start(&world.gateway);
    for port in 1..=4 {
        let zone = if port <= 2 { "a" } else { "b" };
        let answer = handler(move |request| async move {
            if request.uri().path() == "/poll" {
                tokio::time::sleep(Duration::from_secs(15)).await;
            }
            says(zone)
        });
        world.server(port, answer).await;
    }
    let mut client = world.client().await;
    let mut elsewhere = 0;
    for n in 0..4000 {
        if n > 300 && n % 20 == 0 {
            let mut poller = world.client().await;
            world.env.spawn("poll", async move {
                assert_eq!(poller.get("/poll").await.0, 200);
            });
        }
        let (status, zone) = client.get("/quick").await;
        assert_eq!(status, 200);
        elsewhere += usize::from(zone != "a");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert_eq!(elsewhere, 0, "the own zone is as quick as ever");
    let service = world.gateway.state().backends["web"].handle.clone();
    let service = service.lock();
    assert!(service.bulkhead.limit() >= 2048, "limit {}", service.bulkhead.limit());
    assert!(service.fleet.servers().all(|server| server.health.out().is_none()));
}

#[tokio::test(start_paused = true)]
async fn a_server_with_nothing_but_long_polls_is_there_when_it_says_so() {
    let world = World::new(&ZONES.replace("700ms", "1m"));
    upkeep::start(&world.gateway);
    let (asked, signs) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    for port in 1..=4 {
        let (asked, signs) = (asked.clone(), signs.clone());
        let answer = handler(move |request| {
            let is_sign = request.method() == http::Method::OPTIONS;
            if is_sign { &signs } else { &asked }.fetch_add(1, SeqCst);
            async move {
                if !is_sign {
                    tokio::time::sleep(Duration::from_secs(20)).await;
                }
                says("")
            }
        });
        world.server(port, answer).await;
    }
    for _ in 0..30 {
        let mut client = world.client().await;
        world.env.spawn("poll", async move {
            assert_eq!(client.get("/poll").await.0, 200);
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    let state = world.gateway.state();
    let service = state.backends["web"].handle.lock();
    assert_eq!(asked.load(SeqCst), 30, "none was sent twice");
    assert!((1..=60).contains(&signs.load(SeqCst)), "{} questions", signs.load(SeqCst));
    assert_eq!((service.totals.n_failed, service.totals.n_hedges), (0, 0));
    assert!(service.fleet.servers().all(|server| server.n_failed == 0));
}

#[tokio::test(start_paused = true)]
async fn the_time_of_an_upload_is_its_clients() {
    let world = World::new(
        r#"
        listen = "127.0.0.1:1"
        [services.web]
        servers = ["10.0.0.1:1"]
        timeout = "1s"
        [services.web.breaker]
        slow_after = "500ms"
        requests_min = 1
        "#,
    );
    let counts = handler(|request| async move {
        let n = request.into_body().collect().await.unwrap().to_bytes().len();
        tokio::time::sleep(Duration::from_millis(100)).await;
        says(n.to_string())
    });
    world.server(1, counts).await;
    let send = async |n_pieces: usize| {
        let mut stream = world.connect();
        let head = "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..n_pieces {
            stream.write_all(b"a\r\n0123456789\r\n").await.unwrap();
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        stream.write_all(b"0\r\n\r\n").await.unwrap();
        let mut answer = vec![0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    };
    assert_eq!(send(20).await, "HTTP/1.1 200");
    let state = world.gateway.state();
    let mut service = state.backends["web"].handle.lock();
    let now = world.env.now();
    let felt = service.latencies.quantile(now, 1.0).unwrap();
    assert!(felt < Duration::from_millis(150), "{felt:?}");
    assert_eq!(service.breaker.n_opened(), 0, "it was not slow");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_takes_nothing_of_an_upload_has_no_more_time_than_any() {
    let world = World::new(
        r#"
        listen = "127.0.0.1:1"
        [services.web]
        servers = ["10.0.0.1:1"]
        timeout = "1s"
        "#,
    );
    let mut listener = world.env.net().listen(([10, 0, 0, 1], 1).into()).await.unwrap();
    world.env.spawn("server", async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    let mut stream = world.connect();
    let head = "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 10000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(stream);
    world.env.spawn("client", async move {
        // It has more than the server takes.
        while writer.write_all(&[0; 1000]).await.is_ok() {}
    });
    let begun = world.env.now();
    let mut answer = vec![0; 12];
    reader.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 504");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_a_client_runs_to_its_end() {
    let world = World::new(
        r#"
        listen = "127.0.0.1:1"
        [services.web]
        servers = ["10.0.0.1:1"]
        protocol = "http2"
        timeout = "1s"
        "#,
    );
    let counts = handler(|request| async move {
        let n = request.into_body().collect().await.unwrap().to_bytes().len();
        says(n.to_string())
    });
    world.server2(1, counts).await;
    let io = hyper_util::rt::TokioIo::new(world.connect());
    let spawn = gateway::http::pool::Spawn(world.env.clone());
    let (mut client, connection) = hyper::client::conn::http2::handshake(spawn, io).await.unwrap();
    world.env.spawn("client", async move {
        connection.await.ok();
    });
    let pieces = futures::stream::unfold(0, |n| async move {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let frame = http_body::Frame::data(bytes::Bytes::from_static(b"piece"));
        (n < 10).then_some((Ok::<_, std::convert::Infallible>(frame), n + 1))
    });
    let body = StreamBody::new(Box::pin(pieces));
    let answer = client.send_request(Request::post("http://h/").body(body).unwrap()).await;
    let answer = answer.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "50");
}
