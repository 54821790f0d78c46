//! Requests through the gateway, with servers that work, break, hang and lie. Time is virtual.

mod support;

use bytes::Bytes;
use gateway::front::serve;
use gateway::lanes::Moved;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use support::{ONE, TWO, World, handler, says, status};

#[tokio::test(start_paused = true)]
async fn a_request_goes_through_and_tells_who_asked() {
    let world = World::new(ONE);
    let echo = handler(|request| async move {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let field =
            |name: &str| parts.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        says(format!(
            "{} {} host={:?} for={:?} proto={:?} left={:?} trace={} hop={:?} body={}",
            parts.method,
            parts.uri,
            field("host"),
            field("x-forwarded-for"),
            field("x-forwarded-proto"),
            field("x-request-timeout-ms"),
            field("traceparent").unwrap().len(),
            field("x-hop"),
            String::from_utf8_lossy(&body),
        ))
    });
    world.server(1, echo).await;
    let request = Request::post("/a/b?c=d")
        .header("host", "Test.Example:80")
        .header("connection", "x-hop")
        .header("x-hop", "1")
        .body(Full::new(Bytes::from("hello")))
        .unwrap();
    let (status, body) = world.client().await.send(request).await;
    assert_eq!(status, 200);
    assert_eq!(
        body,
        "POST /a/b?c=d host=Some(\"Test.Example:80\") for=Some(\"192.0.2.1\") \
         proto=Some(\"http\") left=Some(\"30000\") trace=55 hop=None body=hello"
    );
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_used_again_on_both_sides() {
    let world = World::new(ONE);
    let (asked, _) = world.server(1, handler(|_| async { says("hi") })).await;
    let mut client = world.client().await;
    for _ in 0..100 {
        assert_eq!(client.get("/").await, (StatusCode::OK, "hi".into()));
    }
    assert_eq!(asked.n(), 100);
    let state = world.gateway.state();
    let service = state.backends["web"].handle.lock();
    assert_eq!((service.totals.n_requests, service.totals.n_retries), (100, 0));
    assert_eq!(service.bulkhead.n_in_flight(), 0);
    assert!(service.fleet.servers().all(|server| server.n_in_flight == 0));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_not_there_costs_no_request() {
    let world = World::new(TWO);
    world.server(2, handler(|_| async { says("two") })).await;
    let mut client = world.client().await;
    for _ in 0..50 {
        // Nothing was sent to the one that is not there, so even a POST goes to the other.
        assert_eq!(client.post("/", "x").await, (StatusCode::OK, "two".into()));
    }
    let state = world.gateway.state();
    let service = state.backends["web"].handle.lock();
    let out = service.fleet.servers().filter(|server| server.health.out().is_some()).count();
    assert_eq!(out, 1, "three failed connections are enough");
    assert!(service.totals.n_retries <= 5, "{:?}", service.totals);
}

#[tokio::test(start_paused = true)]
async fn what_hangs_is_left_in_time_and_asked_no_more() {
    let world = World::new(TWO);
    let hang = handler(|_| async { std::future::pending().await });
    let (hung, _) = world.server(1, hang).await;
    world.server(2, handler(|_| async { says("two") })).await;
    let mut client = world.client().await;
    for _ in 0..200 {
        let (status, body) = client.get("/").await;
        assert_eq!((status, body.as_str()), (StatusCode::OK, "two"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(hung.n() <= 8, "it was asked {} times", hung.n());
}

#[tokio::test(start_paused = true)]
async fn only_what_does_no_harm_is_sent_twice() {
    let world = World::new(TWO);
    let (one, _) = world.server(1, handler(|_| async { status(503) })).await;
    let (two, _) = world.server(2, handler(|_| async { status(503) })).await;
    let mut client = world.client().await;
    assert_eq!(client.post("/", "x").await.0, 503);
    assert_eq!(one.n() + two.n(), 1, "a POST may have happened");
    assert_eq!(client.get("/").await.0, 503);
    assert_eq!(one.n() + two.n(), 4, "a GET is tried three times");
    let keyed = Request::post("/").header("host", "h").header("idempotency-key", "1");
    assert_eq!(client.send(keyed.body(Full::new(Bytes::from("x"))).unwrap()).await.0, 503);
    assert_eq!(one.n() + two.n(), 7, "its sender says that it may be repeated");
}

#[tokio::test(start_paused = true)]
async fn the_clients_deadline_is_kept_and_told_on() {
    let world = World::new(ONE);
    let slow = handler(|request| async move {
        let left = request.headers()["x-request-timeout-ms"].to_str().unwrap().to_owned();
        tokio::time::sleep(Duration::from_millis(80)).await;
        says(left)
    });
    world.server(1, slow).await;
    let mut client = world.client().await;
    let with = |ms: &str| {
        let request = Request::get("/").header("host", "h").header("x-request-timeout-ms", ms);
        request.body(Full::default()).unwrap()
    };
    assert_eq!(client.send(with("250")).await, (StatusCode::OK, "250".into()));
    let begun = world.env.now();
    assert_eq!(client.send(with("50")).await.0, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(begun.elapsed().as_millis(), 50);
    let state = world.gateway.state();
    let service = state.backends["web"].handle.lock();
    let failed: u64 = service.fleet.servers().map(|server| server.n_failed).sum();
    assert_eq!(failed, 0, "a client's impatience is not held against a server");
}

#[tokio::test(start_paused = true)]
async fn a_broken_service_is_refused_fast_and_let_back_by_trials() {
    let world = World::new(
        r#"
        listen = "127.0.0.1:1"
        [services.web]
        servers = ["10.0.0.1:1"]
        [services.web.breaker]
        open_for = "2s"
        "#,
    );
    let works = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let switch = works.clone();
    let flaky = handler(move |_| {
        let works = switch.load(SeqCst);
        async move { if works { says("well") } else { status(500) } }
    });
    let (asked, _) = world.server(1, flaky).await;
    let mut client = world.client().await;
    for _ in 0..40 {
        client.post("/", "").await;
    }
    let n_before = asked.n();
    let request = Request::get("/").header("host", "h").body(Full::default()).unwrap();
    let answer = client.answer(request).await;
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.headers()["retry-after"], "2");
    drop(answer);
    assert_eq!(asked.n(), n_before, "nobody was asked");
    works.store(true, SeqCst);
    tokio::time::sleep(Duration::from_secs(15)).await;
    let mut client = world.client().await;
    for _ in 0..10 {
        assert_eq!(client.get("/").await, (StatusCode::OK, "well".into()));
    }
}

#[tokio::test(start_paused = true)]
async fn fallbacks_stand_in_the_stale_copy_first() {
    let world = World::new(
        r#"
        listen = "127.0.0.1:1"
        [[routes]]
        path = "/shop"
        service = "shop"
        [services.shop]
        servers = ["10.0.0.1:1"]
        [services.shop.fallback]
        stale_for = "1m"
        service = "second"
        [services.second]
        servers = ["10.0.0.1:2"]
        [services.second.fallback]
        answer = { status = 200, content_type = "application/json", body = "[]" }
        "#,
    );
    let (_, first) = world.server(1, handler(|_| async { says("fresh") })).await;
    let (_, second) = world.server(2, handler(|_| async { says("second") })).await;
    let mut client = world.client().await;
    assert_eq!(client.get("/shop/a").await.1, "fresh");
    first.abort();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(client.get("/shop/a").await, (StatusCode::OK, "fresh".into()), "stale");
    assert_eq!(client.get("/shop/b").await, (StatusCode::OK, "second".into()));
    second.abort();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(client.get("/shop/b").await, (StatusCode::OK, "[]".into()));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let mut client = world.client().await;
    assert_eq!(client.get("/shop/a").await, (StatusCode::OK, "[]".into()), "too old");
}

#[tokio::test(start_paused = true)]
async fn who_stands_in_is_not_blamed_for_the_time_before() {
    let world = World::new(
        r#"
        listen = "127.0.0.1:1"
        [services.first]
        servers = ["10.0.0.1:1"]
        attempts = 1
        fallback = { service = "second" }
        [services.second]
        servers = ["10.0.0.1:2"]
        [[routes]]
        service = "first"
        "#,
    );
    let fails = handler(|_| async {
        tokio::time::sleep(Duration::from_secs(4)).await;
        status(500)
    });
    world.server(1, fails).await;
    world.server(2, handler(|_| async { says("second") })).await;
    let mut client = world.client().await;
    assert_eq!(client.get("/").await, (StatusCode::OK, "second".into()));
    let state = world.gateway.state();
    let service = state.backends["second"].handle.lock();
    let server = service.fleet.servers().next().unwrap();
    assert!(server.latency_s(world.env.now()).is_some_and(|mean| mean < 1.0));
}

#[tokio::test(start_paused = true)]
async fn under_overload_the_least_important_go_first() {
    let world = World::new(
        r#"
        listen = "127.0.0.1:1"
        [[routes]]
        path = "/important"
        service = "web"
        priority = "critical"
        [[routes]]
        service = "web"
        [services.web]
        servers = ["10.0.0.1:1"]
        [services.web.bulkhead]
        limit_min = 10
        limit_max = 10
        "#,
    );
    let slow = handler(|_| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        says("done")
    });
    world.server(1, slow).await;
    let ask = |priority: &'static str| {
        let world = &world;
        async move {
            // Only where the route allows it is a request of special importance.
            let path = if priority == "critical" { "/important" } else { "/" };
            let asked = if priority == "normal" { "critical" } else { priority };
            let request =
                Request::get(path).header("host", "h").header("x-request-priority", asked);
            world.client().await.send(request.body(Full::default()).unwrap()).await.0.as_u16()
        }
    };
    let all = |after_ms, priority| async move {
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        futures::future::join_all((0..8).map(|_| ask(priority))).await
    };
    let (low, normal, critical) =
        tokio::join!(all(0, "low"), all(10, "normal"), all(20, "critical"));
    let served = |statuses: &[u16]| statuses.iter().filter(|status| **status == 200).count();
    assert_eq!((served(&low), served(&normal), served(&critical)), (6, 3, 1));
    assert_eq!(low[7], 503);
}

#[tokio::test(start_paused = true)]
async fn a_total_outage_is_not_made_worse_by_retries() {
    let world = World::new(
        r#"
        listen = "127.0.0.1:1"
        [services.web]
        servers = ["10.0.0.1:1", "10.0.0.1:2", "10.0.0.1:3"]
        attempts = 5
        [services.web.breaker]
        requests_min = 1000000
        "#,
    );
    let mut asked = Vec::new();
    for port in 1..=3 {
        asked.push(world.server(port, handler(|_| async { status(503) })).await.0);
    }
    let mut client = world.client().await;
    for _ in 0..2000 {
        assert_eq!(client.get("/").await.0, 503);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let n: usize = asked.iter().map(support::Asked::n).sum();
    assert!((2000..=2400).contains(&n), "{n} attempts for 2000 requests");
}

#[tokio::test(start_paused = true)]
async fn a_hedge_saves_the_slow_tenth() {
    let config = |hedge: &str| {
        format!(
            r#"
            listen = "127.0.0.1:1"
            [services.web]
            servers = ["10.0.0.1:1", "10.0.0.1:2", "10.0.0.1:3"]
            {hedge}
            "#
        )
    };
    let mut slowest = Vec::new();
    for hedge in ["", "hedge = { quantile = 0.9 }"] {
        let world = World::new(&config(hedge));
        for port in 1..=3 {
            let n = std::sync::atomic::AtomicUsize::new(usize::from(port));
            let sometimes = handler(move |_| {
                let n = n.fetch_add(1, SeqCst);
                let ms = if n.is_multiple_of(20) { 1000 } else { 10 };
                async move {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    says("")
                }
            });
            world.server(port, sometimes).await;
        }
        let mut client = world.client().await;
        let mut took = Vec::new();
        for _ in 0..1000 {
            let begun = world.env.now();
            assert_eq!(client.get("/").await.0, 200);
            took.push(begun.elapsed().as_millis());
        }
        took.sort_unstable();
        slowest.push(took[970]);
    }
    assert!(slowest[0] >= 1000 && slowest[1] < 100, "{slowest:?}");
}

#[tokio::test(start_paused = true)]
async fn malformed_requests_are_refused_and_reach_nobody() {
    let world = World::new(ONE);
    let (asked, _) = world.server(1, handler(|_| async { says("seen") })).await;
    let many = "x: y\r\n".repeat(200);
    let large = format!("x: {}\r\n", "y".repeat(100_000));
    let refused = [
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\nhost: h\r\nx: a\r\n b\r\n\r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\nhost: h\r\nx : a\r\n\r\n".to_owned(), "400"),
        (
            "GET / HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx"
                .to_owned(),
            "400",
        ),
        ("GET / HTTP/1.1\r\nhost: h\r\ncontent-length: +1\r\n\r\nx".to_owned(), "400"),
        ("POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: gzip\r\n\r\n".to_owned(), "400"),
        ("POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked, x\r\n\r\n".to_owned(), "400"),
        (
            "POST / HTTP/1.0\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
            "400",
        ),
        (format!("GET / HTTP/1.1\r\nhost: h\r\n{many}\r\n"), "431"),
        (format!("GET / HTTP/1.1\r\nhost: h\r\n{large}\r\n"), "431"),
        ("CONNECT other:443 HTTP/1.1\r\nhost: other:443\r\n\r\n".to_owned(), "405"),
        ("\u{16}\u{3}\u{1} TLS to a plain port".to_owned(), "400"),
    ];
    for (bytes, code) in &refused {
        let answer = world.raw(bytes.as_bytes()).await;
        let head = bytes.chars().take(90).collect::<String>();
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{head:?}: {answer:?}");
    }
    assert_eq!(asked.n(), 0);
    let n = world.gateway.counters.n_bad_requests.load(SeqCst);
    assert!(n >= 11, "{n} were counted");
}

#[tokio::test(start_paused = true)]
async fn who_stands_still_is_sent_away() {
    let world = World::new(ONE);
    world.server(1, handler(|_| async { says("") })).await;
    let begun = world.env.now();
    // Slow-loris: a head that never ends.
    let answer = world.raw(b"GET / HTTP/1.1\r\nhost: h\r\nx-never: ").await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(begun.elapsed().as_secs(), 10);
    // Idle between requests, and patient.
    let begun = world.env.now();
    let answer = world.raw(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(begun.elapsed().as_secs(), 60);
    let n = world.gateway.counters.n_stood_still.load(SeqCst);
    assert_eq!(n, 2);
    assert_eq!(world.gateway.n_connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_comes_from_another_lane_may_be_idle_as_long_as_any() {
    let world = World::new(ONE);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (stream, from) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    let open = world.gateway.open_connection().unwrap();
    let moved = Moved { stream, from, rest: Bytes::new(), open: Box::new(open) };
    world.env.spawn("connection", serve::moved(world.gateway.clone(), 0, moved));
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(world.gateway.n_connections(), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.gateway.n_connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_requests_end_and_takes_no_more() {
    let world = World::new(ONE);
    let slow = handler(|_| async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        says("done")
    });
    world.server(1, slow).await;
    let mut idle = world.client().await;
    let mut busy = world.client().await;
    idle.get("/").await;
    let (answer, ()) = tokio::join!(busy.get("/"), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.gateway.stop();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(world.gateway.n_connections(), 1, "the idle one is closed");
    });
    assert_eq!(answer, (StatusCode::OK, "done".into()));
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!((world.gateway.n_connections(), world.gateway.n_requests()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_new_file_holds_from_the_next_request_on() {
    let world = World::new(ONE);
    world.server(1, handler(|_| async { says("one") })).await;
    world.server(2, handler(|_| async { says("two") })).await;
    let mut client = world.client().await;
    assert_eq!(client.get("/").await.1, "one");
    world.reload(&ONE.replace("10.0.0.1:1", "10.0.0.1:2"));
    assert_eq!(client.get("/").await.1, "two");
    {
        let state = world.gateway.state();
        let service = state.backends["web"].handle.lock();
        assert_eq!(service.totals.n_requests, 2, "what was counted stays");
        assert_eq!(service.fleet.servers().count(), 1);
    }
    // Not only a service's servers.
    world.reload(&ONE.replace("services.web", "services.other"));
    assert_eq!(client.get("/").await.1, "one");
}

#[tokio::test(start_paused = true)]
async fn the_closest_zone_that_is_well_gets_the_requests() {
    let world = World::new(
        r#"
        zone = "a"
        closeness = ["a", "b", "c"]
        listen = "127.0.0.1:1"
        [services.web]
        servers = ["c=10.0.0.1:5", "b=10.0.0.1:3", "a=10.0.0.1:1", "a=10.0.0.1:2", "b=10.0.0.1:4"]
        "#,
    );
    let mut tasks = Vec::new();
    for (port, zone) in [(1, "a"), (2, "a"), (3, "b"), (4, "b"), (5, "c")] {
        tasks.push(world.server(port, handler(move |_| async move { says(zone) })).await.1);
    }
    let mut client = world.client().await;
    for (n_dead, zone) in [(0, "a"), (2, "b"), (4, "c")] {
        tasks[..n_dead].iter().for_each(tokio::task::AbortHandle::abort);
        let mut answers = Vec::new();
        for _ in 0..60 {
            let (status, body) = client.get("/").await;
            assert_eq!(status, 200, "no request fails for a dead zone");
            answers.push(body);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(answers[20..].iter().all(|answer| answer == zone), "{zone}: {answers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_websocket_is_a_tunnel() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = World::new(ONE);
    let env = world.env.clone();
    let upgrade = handler(move |mut request| {
        assert_eq!(request.headers()["upgrade"], "websocket");
        let on_upgrade = hyper::upgrade::on(&mut request);
        env.spawn("socket", async move {
            let mut io = hyper_util::rt::TokioIo::new(on_upgrade.await.unwrap());
            let mut bytes = [0; 4];
            io.read_exact(&mut bytes).await.unwrap();
            bytes.reverse();
            io.write_all(&bytes).await.unwrap();
        });
        let mut answer = status(101);
        let headers = answer.headers_mut();
        headers.insert("connection", "upgrade".parse().unwrap());
        headers.insert("upgrade", "websocket".parse().unwrap());
        std::future::ready(answer)
    });
    world.server(1, upgrade).await;
    let request = Request::builder()
        .method(Method::GET)
        .uri("/chat")
        .header("host", "h")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .body(Full::default())
        .unwrap();
    let answer = world.client().await.answer(request).await;
    assert_eq!(answer.status(), 101);
    let mut io = hyper_util::rt::TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    io.write_all(b"ping").await.unwrap();
    let mut bytes = Vec::new();
    io.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, b"gnip");
    drop(io);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(world.gateway.n_requests(), 0, "what it held is given back");
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_gives_its_buffers_back_and_goes_on() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = World::new(ONE);
    world.server(1, handler(|request| async move { says(request.uri().path()) })).await;
    let mut stream = world.connect();
    let mut asked = 0;
    // Requests in one piece and in several, their pieces before and after the second in which the
    // connection is parked, two at once, and one that begins as HTTP/2 does.
    for pieces in [
        &["GET /1 HTTP/1.1\r\nhost: h\r\n\r\n"][..],
        &["G", "ET /2 HTTP/1.1\r\nhost", ": h\r\n\r\n"],
        &["GET /3 HTTP/1.1\r\nhost: h\r\n\r\nGET /4 HTTP/1.1\r\n", "host: h\r\n\r\n"],
        &["P", "RI", " /5 HTTP/1.1\r\nhost: h\r\n\r\n"],
        &["PRI * HTTP/2.0", "x /6\r\n"],
    ] {
        let is_last = pieces.concat().contains("/6");
        for piece in pieces {
            stream.write_all(piece.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2500)).await;
        }
        for _ in 0..pieces.concat().matches("host").count() {
            asked += 1;
            let mut answer = String::new();
            while !answer.ends_with(&format!("\r\n\r\n/{asked}")) {
                let mut byte = [0];
                stream.read_exact(&mut byte).await.unwrap();
                answer.push(char::from(byte[0]));
            }
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
        if is_last {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        }
    }
    assert_eq!(asked, 5);
}

#[tokio::test(start_paused = true)]
async fn there_is_room_for_so_many_and_no_more() {
    let world = World::new(
        r#"
        listen = "127.0.0.1:1"
        [limits]
        requests = 10
        connections = 20
        [services.web]
        servers = ["10.0.0.1:1"]
        "#,
    );
    let slow = handler(|_| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        says("")
    });
    world.server(1, slow).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(world.client().await);
    }
    let answers = futures::future::join_all(clients.iter_mut().map(|client| client.get("/"))).await;
    let served = answers.iter().filter(|(status, _)| *status == 200).count();
    // Nine tenths of the room are for what is of no special importance.
    assert_eq!(served, 9);
    let refused = answers.iter().find(|(status, _)| *status == 503).unwrap();
    assert_eq!(refused.1, "the gateway has too many requests under way\n");
    let answer = world.raw(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    assert_eq!(answer, "", "the twenty-first connection is closed");
    let n = world.gateway.counters.n_refused_connections.load(SeqCst);
    assert_eq!(n, 1);
    assert_eq!(world.gateway.n_requests(), 0, "nobody is counted for ever");
}

#[tokio::test(start_paused = true)]
async fn who_came_before_the_stop_is_served() {
    let world = World::new(ONE);
    world.server(1, handler(|_| async { says("served") })).await;
    let mut known = world.client().await;
    known.get("/").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (mut newcomer, silent) = (world.client().await, world.connect());
    tokio::task::yield_now().await;
    world.gateway.stop();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.gateway.n_connections(), 2, "who has had an answer and asks no more is gone");
    let request = Request::get("/").header("host", "h").body(Full::default()).unwrap();
    let answer = newcomer.answer(request).await;
    assert_eq!(answer.headers()["connection"], "close");
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "served");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.gateway.n_connections(), 0);
    drop(silent);
}

#[tokio::test(start_paused = true)]
async fn who_the_client_says_it_is_goes_to_nobody() {
    let world = World::new(ONE);
    let echo = handler(|request| async move { says(request.headers()["host"].to_str().unwrap()) });
    world.server(1, echo).await;
    let request = b"GET http://me:secret@h/ HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    let answer = world.raw(request).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nh"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn what_failed_in_one_zone_is_tried_in_another() {
    let world = World::new(
        r#"
        zone = "a"
        closeness = ["a", ["b", "c"]]
        listen = "127.0.0.1:1"
        [services.web]
        servers = ["a=10.0.0.1:1", "a=10.0.0.1:2", "b=10.0.0.1:3", "c=10.0.0.1:4"]
        attempts = 2
        "#,
    );
    for port in [1, 2] {
        world.server(port, handler(|_| async { status(503) })).await;
    }
    let (b, _) = world.server(3, handler(|_| async { says("b") })).await;
    let (c, _) = world.server(4, handler(|_| async { says("c") })).await;
    let mut client = world.client().await;
    for _ in 0..30 {
        assert_eq!(client.get("/").await.0, 200, "the other server of the zone fails as well");
    }
    assert!(b.n() >= 5 && c.n() >= 5, "equally close: {} and {}", b.n(), c.n());
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_nobody_is_held_to_have_been_bad() {
    let world = World::new(
        r#"
        listen = "127.0.0.1:1"
        [services.web]
        servers = ["10.0.0.1:1", "10.0.0.1:2", "10.0.0.1:3", "10.0.0.1:4"]
        "#,
    );
    let works = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    for port in 1..=4 {
        let works = works.clone();
        let flaky = handler(move |_| {
            let works = works.load(SeqCst);
            async move { if works { says("well") } else { status(503) } }
        });
        world.server(port, flaky).await;
    }
    let mut client = world.client().await;
    let n_out = || {
        let state = world.gateway.state();
        let service = state.backends["web"].handle.lock();
        service.fleet.servers().filter(|server| server.health.out().is_some()).count()
    };
    for _ in 0..60 {
        client.get("/").await;
    }
    assert_eq!(n_out(), 2, "half of the zone is ejected");
    works.store(true, SeqCst);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut client = world.client().await;
    for _ in 0..5 {
        assert_eq!(client.get("/").await.0, 200);
    }
    assert_eq!(n_out(), 0, "the service as a whole was broken, and is well");
}

#[tokio::test(start_paused = true)]
async fn a_hedge_does_not_hide_who_is_slow() {
    let world = World::new(
        r#"
        listen = "127.0.0.1:1"
        [services.web]
        servers = ["10.0.0.1:1", "10.0.0.1:2", "10.0.0.1:3"]
        hedge = { quantile = 0.5 }
        retries = { share = 1.0 }
        "#,
    );
    // Like the others at first, and slow from its thirtieth request on.
    let n = std::sync::atomic::AtomicUsize::new(0);
    let slows_down = handler(move |_| {
        let n = n.fetch_add(1, SeqCst);
        async move {
            tokio::time::sleep(Duration::from_millis(if n < 30 { 10 } else { 5000 })).await;
            says("")
        }
    });
    let (slow, _) = world.server(1, slows_down).await;
    for port in [2, 3] {
        let quick = handler(|_| async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            says("")
        });
        world.server(port, quick).await;
    }
    let mut client = world.client().await;
    for _ in 0..400 {
        client.get("/").await;
    }
    assert!((30..=60).contains(&slow.n()), "it was asked {} times", slow.n());
}

#[tokio::test(start_paused = true)]
async fn who_fails_beside_a_hedge_has_failed() {
    let world = World::new(
        r#"
        listen = "127.0.0.1:1"
        [services.web]
        servers = ["10.0.0.1:1", "10.0.0.1:2"]
        hedge = { quantile = 0.5 }
        retries = { share = 1.0 }
        "#,
    );
    let breaks = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    for port in [1, 2] {
        let breaks = breaks.clone();
        let answer = move |_| {
            let breaks = breaks.load(SeqCst);
            async move {
                let ms = if breaks { 50 * u64::from(port) } else { 10 };
                tokio::time::sleep(Duration::from_millis(ms)).await;
                if breaks && port == 1 { status(500) } else { says("well") }
            }
        };
        world.server(port, handler(answer)).await;
    }
    let mut client = world.client().await;
    for _ in 0..200 {
        client.get("/").await;
    }
    breaks.store(true, SeqCst);
    for _ in 0..5 {
        assert_eq!(client.get("/").await, (StatusCode::OK, "well".into()));
    }
    let state = world.gateway.state();
    let service = state.backends["web"].handle.lock();
    let failed: Vec<u64> = service.fleet.servers().map(|server| server.n_failed).collect();
    assert_eq!((service.totals.n_hedges > 0, failed), (true, vec![5, 0]));
}

#[tokio::test(start_paused = true)]
async fn what_was_counted_outlives_the_connections() {
    let world = World::new(ONE);
    world.server(1, handler(|_| async { says("one") })).await;
    world.client().await.get("/").await;
    let sums = || world.gateway.state().backends["web"].sums();
    assert_eq!((sums().by_class[2], sums().by_latency.iter().sum::<u64>()), (1, 1));
    world.reload(&format!("{ONE}\nprotocol = \"http2\""));
    assert_eq!(sums().by_class[2], 1);
    world.client().await.get("/").await;
    assert_eq!((sums().by_class[2], sums().by_class[5]), (1, 1));
}
