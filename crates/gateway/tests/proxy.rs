//! Requests through the gateway, with servers that work, break, hang and lie. Time is virtual.

mod support;

use bytes::Bytes;
use gateway::balance::health::Reason;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{World, handler, says, status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::AbortHandle;

const ONE: &str = r#"
    zone = "a"
    listen = "127.0.0.1:1"
    [services.web]
    servers = ["a=10.0.0.1:1"]
"#;

const TWO: &str = r#"
    zone = "a"
    listen = "127.0.0.1:1"
    [services.web]
    servers = ["a=10.0.0.1:1", "a=10.0.0.1:2"]
    timeout = "2s"
    attempt_timeout = "500ms"
"#;

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
    let service = state.backends["web"].upstream.handle.lock();
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
    let service = state.backends["web"].upstream.handle.lock();
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
    let service = state.backends["web"].upstream.handle.lock();
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
async fn bodies_have_their_limit_told_or_not() {
    let world = World::new(
        r#"
        listen = "127.0.0.1:1"
        [limits]
        body_bytes = 1000
        [services.web]
        servers = ["10.0.0.1:1"]
        "#,
    );
    let count = handler(|request| async move {
        match request.into_body().collect().await {
            Ok(body) => says(body.to_bytes().len().to_string()),
            Err(_) => status(400),
        }
    });
    let (asked, _) = world.server(1, count).await;
    let mut client = world.client().await;
    assert_eq!(client.post("/", &"x".repeat(1000)).await.1, "1000");
    assert_eq!(client.post("/", &"x".repeat(1001)).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(asked.n(), 1);
    let chunk = format!("190\r\n{}\r\n", "x".repeat(400));
    let head = "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
    let answer = world.raw(format!("{head}{chunk}{chunk}{chunk}0\r\n\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
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
async fn what_is_smuggled_behind_two_lengths_is_not_a_request() {
    let world = World::new(ONE);
    let seen = handler(|request| async move {
        let path = request.uri().to_string();
        let body = request.into_body().collect().await.map(|body| body.to_bytes().len());
        says(format!("{path} {body:?}"))
    });
    let (asked, _) = world.server(1, seen).await;
    let both = "POST /one HTTP/1.1\r\nhost: h\r\ncontent-length: 6\r\n\
                transfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: h\r\n\r\n";
    let answer = world.raw(both.as_bytes()).await;
    // RFC 9112, 6.1: the chunks count, and the connection ends, so that what follows is nothing.
    assert!(answer.contains("/one Ok(0)") && !answer.contains("smuggled"), "{answer}");
    assert_eq!(asked.n(), 1);
    let bad_chunk = "POST /two HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n\
                     zz\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: h\r\n\r\n";
    let answer = world.raw(bad_chunk.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && !answer.contains("smuggled"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn who_stands_still_is_sent_away() {
    let world = World::new(ONE);
    world.server(1, handler(|_| async { says("") })).await;
    let begun = world.env.now();
    // Slow-loris: a head that never ends.
    let answer = world.raw(b"GET / HTTP/1.1\r\nhost: h\r\nx-never: ").await;
    assert_eq!(answer, "");
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
    let state = world.gateway.state();
    let service = state.backends["web"].upstream.handle.lock();
    assert_eq!(service.totals.n_requests, 2, "what was counted stays");
    assert_eq!(service.fleet.servers().count(), 1);
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
async fn http2_goes_in_and_out_with_trailers() {
    let world = World::new(
        r#"
        listen = "127.0.0.1:1"
        [[routes]]
        path = "/grpc"
        service = "grpc"
        [[routes]]
        service = "web"
        [services.grpc]
        servers = ["10.0.0.1:2"]
        protocol = "http2"
        [services.web]
        servers = ["10.0.0.1:1"]
        "#,
    );
    world
        .server(
            1,
            handler(|request| async move { says(request.headers()["host"].to_str().unwrap()) }),
        )
        .await;
    let calls = handler(|request| async move {
        let authority = request.uri().authority().unwrap().to_string();
        assert_eq!(request.headers()["te"], "trailers");
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let frames = [
            Ok(http_body::Frame::data(Bytes::from(authority))),
            Ok(http_body::Frame::trailers(trailers)),
        ];
        let body = http_body_util::StreamBody::new(futures::stream::iter(frames));
        http::Response::new(body.boxed())
    });
    world.server2(2, calls).await;
    let mut client = world.client2().await;
    let request = |path: &str| {
        let uri = format!("http://test.example{path}");
        Request::post(uri).header("te", "trailers").body(Full::new(Bytes::from("x"))).unwrap()
    };
    let plain = client.send_request(request("/")).await.unwrap();
    let body = plain.into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "test.example", "an HTTP/1.1 server gets the authority as Host");
    let called = client.send_request(request("/grpc/x")).await.unwrap();
    assert_eq!(called.status(), 200);
    let body = called.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(body.to_bytes(), "test.example");
}

/// Why the server at `10.0.0.1:PORT` is out, if it is.
fn out(world: &World, port: u16) -> Option<Reason> {
    let service = world.gateway.state().backends["web"].upstream.handle.clone();
    let service = service.lock();
    service.fleet.servers().find(|server| server.spec.address.port() == port)?.health.out()
}

/// Promises more than it sends.
fn breaks() -> support::Answer {
    let begin = futures::stream::iter([Ok(http_body::Frame::data(Bytes::from("and no more")))]);
    let end = futures::stream::once(async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(http_body::Frame::data(Bytes::new()))
    });
    let body = http_body_util::StreamBody::new(futures::StreamExt::chain(begin, end));
    let mut answer = http::Response::new(body.boxed());
    answer.headers_mut().insert("content-length", 1000.into());
    answer
}

#[tokio::test(start_paused = true)]
async fn a_server_whose_answers_break_is_left() {
    let world = World::new(TWO);
    let (broken, _) = world.server(1, handler(|_| async { breaks() })).await;
    world.server(2, handler(|_| async { says("whole") })).await;
    let mut n_whole = 0;
    for _ in 0..200 {
        let request = Request::get("/").header("host", "h").body(Full::default()).unwrap();
        let answer = world.client().await.answer(request).await;
        assert_eq!(answer.status(), 200, "its head came");
        n_whole += usize::from(answer.into_body().collect().await.is_ok());
    }
    assert_eq!(out(&world, 1), Some(Reason::Failing));
    assert!(broken.n() < 20 && n_whole > 180, "{} of {n_whole}", broken.n());
}

#[tokio::test(start_paused = true)]
async fn what_trailers_say_counts_against_a_grpc_server() {
    let world =
        World::new(&TWO.replace("timeout = \"2s\"", "protocol = \"http2\"\ntimeout = \"2s\""));
    let says = |code: &'static str| {
        handler(move |_| async move {
            let trailers = [("grpc-status", code)].map(|(name, code)| {
                (http::HeaderName::from_static(name), http::HeaderValue::from_static(code))
            });
            let frames = [
                Ok(http_body::Frame::data(Bytes::from("x"))),
                Ok(http_body::Frame::trailers(trailers.into_iter().collect())),
            ];
            let body = http_body_util::StreamBody::new(futures::stream::iter(frames));
            http::Response::new(body.boxed())
        })
    };
    // UNAVAILABLE is the server's fault, NOT_FOUND is an answer.
    world.server2(1, says("14")).await;
    world.server2(2, says("5")).await;
    let mut client = world.client2().await;
    for _ in 0..200 {
        let request = Request::post("http://h/a.B/C").header("content-type", "application/grpc");
        let answer = client.send_request(request.body(Full::default()).unwrap()).await.unwrap();
        answer.into_body().collect().await.unwrap();
    }
    assert_eq!(out(&world, 1), Some(Reason::Failing));
    assert_eq!(out(&world, 2), None);
}

#[tokio::test(start_paused = true)]
async fn a_service_whose_answers_break_is_not_asked_for_a_while() {
    let world = World::new(ONE);
    let (asked, _) = world.server(1, handler(|_| async { breaks() })).await;
    for _ in 0..100 {
        let request = Request::get("/").header("host", "h").body(Full::default()).unwrap();
        let answer = world.client().await.answer(request).await;
        answer.into_body().collect().await.ok();
    }
    assert!(asked.n() < 30, "the breaker opens: {}", asked.n());
}

#[tokio::test(start_paused = true)]
async fn grpc_clients_are_told_in_their_own_words() {
    let world = World::new(ONE);
    let mut client = world.client2().await;
    let request = Request::post("http://h/pkg.Service/Method")
        .header("content-type", "application/grpc")
        .header("grpc-timeout", "1S")
        .body(Full::new(Bytes::from("x")))
        .unwrap();
    let answer = client.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["grpc-status"], "14");
    let message = answer.headers()["grpc-message"].to_str().unwrap();
    assert!(message.contains("no connection"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_streams_and_resets_is_sent_away() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = World::new(ONE);
    let slow = handler(|_| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        says("")
    });
    let (asked, _) = world.server(1, slow).await;
    let mut flood =
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00".to_vec();
    for n in 0..5000_u32 {
        let id = (2 * n + 1).to_be_bytes();
        // GET / to host h, and at once: never mind.
        flood.extend(b"\x00\x00\x06\x01\x05");
        flood.extend(id);
        flood.extend(b"\x82\x86\x84\x41\x01h");
        flood.extend(b"\x00\x00\x04\x03\x00");
        flood.extend(id);
        flood.extend(b"\x00\x00\x00\x08");
    }
    let (mut reader, mut writer) = tokio::io::split(world.connect());
    let (_, answer) = tokio::join!(
        // It is broken off.
        writer.write_all(&flood),
        async {
            let mut answer = Vec::new();
            reader.read_to_end(&mut answer).await.ok();
            answer
        }
    );
    // A GOAWAY (type 7) with ENHANCE_YOUR_CALM (11).
    let goodbye =
        answer.windows(9 + 8).any(|frame| frame[3] == 7 && frame[13..17] == [0, 0, 0, 11]);
    assert!(goodbye, "{} bytes came back", answer.len());
    assert!(asked.n() <= 128, "{} requests reached the server", asked.n());
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((world.gateway.n_connections(), world.gateway.n_requests()), (0, 0));
    let n = world.gateway.counters.n_broken_connections.load(SeqCst);
    assert_eq!(n, 1);
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
async fn requests_share_http2_connections_a_hundred_on_each() {
    let world = World::new(&ONE.replace("servers", "protocol = \"http2\"\nservers"));
    let (sender, gate) = tokio::sync::watch::channel(false);
    let waits = handler(move |_| {
        let mut gate = gate.clone();
        async move {
            gate.wait_for(|is_open| *is_open).await.unwrap();
            says("")
        }
    });
    let connections = world.server2(1, waits).await;
    let mut answers = Vec::new();
    for n in 0..150 {
        let mut client = world.client().await;
        answers.push(world.env.spawn("client", async move {
            assert_eq!(client.get("/").await.0, 200);
        }));
        // The first connection stands before the others ask.
        tokio::time::sleep(Duration::from_millis(if n == 0 { 10 } else { 1 })).await;
    }
    assert_eq!(connections.n(), 2);
    sender.send(true).unwrap();
    for answer in answers {
        answer.await.unwrap();
    }
    world.gateway.state().backends["web"].upstream.sweep(world.env.now());
    assert_eq!(world.client().await.get("/").await.0, 200);
    assert_eq!(connections.n(), 2);
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
async fn the_rest_of_a_body_is_never_a_request() {
    let world = World::new(ONE);
    // Answers before the body has come, and waits for it.
    let address = std::net::SocketAddr::from(([10, 0, 0, 1], 1));
    let mut listener = world.env.net().listen(address).await.unwrap();
    let env = world.env.clone();
    world.env.spawn("server", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            env.spawn("server", async move {
                let mut bytes = [0; 65536];
                while stream.read(&mut bytes).await.is_ok_and(|n| n > 0) {
                    let answer = b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n";
                    stream.write_all(answer).await.ok();
                }
            });
        }
    });
    let mut stream = world.connect();
    let head = "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 20000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    // Idle for longer than it takes to give buffers back.
    tokio::time::sleep(Duration::from_secs(5)).await;
    stream.write_all(b"GET /hidden HTTP/1.1\r\nhost: h\r\n\r\n").await.ok();
    let mut answer = Vec::new();
    world.env.timeout(Duration::from_secs(90), stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_breaks_off_its_body_is_not_its_servers_fault() {
    let world = World::new(ONE);
    // Sends a head at once, and then what it is sent.
    let echo = handler(|request| async move {
        let frames = futures::StreamExt::filter_map(
            http_body_util::BodyStream::new(request.into_body()),
            |frame| async { frame.ok().map(Ok) },
        );
        http::Response::new(http_body_util::BodyExt::boxed(http_body_util::StreamBody::new(frames)))
    });
    world.server(1, echo).await;
    for _ in 0..40 {
        let mut stream = world.connect();
        let begin = "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
        stream.write_all(begin.as_bytes()).await.unwrap();
        let mut bytes = [0; 1024];
        assert!(stream.read(&mut bytes).await.unwrap() > 0);
        tokio::time::sleep(Duration::from_millis(10)).await;
        stream.write_all(b"no chunk\r\n").await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.unwrap();
    }
    assert_eq!(out(&world, 1), None);
    assert_eq!(world.client().await.post("/", "still").await, (StatusCode::OK, "still".into()));
}

#[tokio::test(start_paused = true)]
async fn each_request_has_its_line_in_the_access_log() {
    let world = World::new(ONE);
    world.server(1, handler(|_| async { says("twelve bytes") })).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let to = gateway::config::AccessLog::File(path.clone());
    let log = gateway::access_log::AccessLog::start(&world.env, &to).unwrap();
    world.gateway.set_access_log(Some(log));
    let mut client = world.client().await;
    client.get("/found?q=1&r").await;
    let lost = Request::builder().method("CONNECT").uri("h:1").body(Full::default()).unwrap();
    client.send(lost).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{text}");
    let (found, lost) = (&lines[0], &lines[1]);
    assert_eq!(found["path"], "/found?q=1&r");
    assert_eq!((&found["status"], &found["n_bytes"]), (&200.into(), &12.into()));
    assert_eq!((&found["service"], &found["server"]), (&"web".into(), &"10.0.0.1:1".into()));
    assert_eq!(found["trace"].as_str().unwrap().len(), 32);
    assert_eq!(lost["status"], 405);
    assert!(lost["reason"].as_str().unwrap().contains("CONNECT"));

    // Moved away, as rotation does it: the next line makes a new file.
    std::fs::rename(&path, dir.path().join("access.log.1")).unwrap();
    let mut client = world.client().await;
    client.get("/again").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(std::fs::read_to_string(&path).unwrap().contains("/again"));
}

/// A collector of traces at `10.0.0.1:4318`: what it is sent, and what it answers.
async fn collector(world: &World, answer: u16) -> (Arc<Mutex<Vec<Value>>>, AbortHandle) {
    let spans: Arc<Mutex<Vec<Value>>> = Arc::default();
    let taken = spans.clone();
    let takes = handler(move |request| {
        let taken = taken.clone();
        async move {
            assert_eq!(request.uri().path(), "/v1/traces");
            assert_eq!(request.headers()["content-type"], "application/json");
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let message: Value = serde_json::from_slice(&body).unwrap();
            let of = &message["resourceSpans"][0];
            assert_eq!(of["resource"]["attributes"][0]["value"]["stringValue"], "front");
            let spans = of["scopeSpans"][0]["spans"].as_array().unwrap();
            taken.lock().unwrap().extend(spans.iter().cloned());
            status(answer)
        }
    });
    let (_, task) = world.server(4318, takes).await;
    (spans, task)
}

const TRACED: &str = r#"
    zone = "a"
    listen = "127.0.0.1:1"
    traces = { collector = "http://10.0.0.1", share = 1.0, name = "front" }
    [services.web]
    servers = ["a=10.0.0.1:1"]
"#;

#[tokio::test(start_paused = true)]
async fn spans_go_to_the_collector() {
    let world = World::new(TRACED);
    gateway::upkeep::start(&world.gateway);
    let (spans, _) = collector(&world, 200).await;
    let tells = handler(|request| async move {
        says(request.headers()["traceparent"].to_str().unwrap().to_owned())
    });
    let (_, server) = world.server(1, tells).await;
    let theirs = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
    let ask = async |flags: &str| {
        let request = Request::get("/a?secret=1")
            .header("host", "h")
            .header("traceparent", format!("{theirs}-{flags}"));
        let request = request.body(Full::default()).unwrap();
        world.client().await.send(request).await.1
    };
    let (sampled, not_sampled) = (ask("01").await, ask("00").await);
    let (_, own) = world.client().await.get("/b").await;
    server.abort();
    tokio::task::yield_now().await;
    let (failed, _) = world.client().await.get("/c").await;
    assert_eq!(failed, 502);
    tokio::time::sleep(Duration::from_secs(3)).await;

    let spans = spans.lock().unwrap();
    assert_eq!(spans.len(), 3, "{spans:#?}");
    let parent_of = |span: &Value| {
        let (trace, span) = (span["traceId"].as_str().unwrap(), span["spanId"].as_str().unwrap());
        format!("00-{trace}-{span}-01")
    };
    assert_eq!(parent_of(&spans[0]), sampled, "the server's parent is the gateway's span");
    assert_eq!(spans[0]["parentSpanId"], "b7ad6b7169203331");
    assert_eq!(spans[0]["name"], "GET all");
    assert!(not_sampled.ends_with("-00"), "{not_sampled}");
    assert_eq!(parent_of(&spans[1]), own);
    assert!(spans[1].get("parentSpanId").is_none() && spans[1].get("status").is_none());
    assert_eq!(spans[2]["status"]["code"], 2);
    let why = spans[2]["status"]["message"].as_str().unwrap();
    assert!(why.contains("service \"web\""), "{why}");
    let text = serde_json::to_string(&*spans).unwrap();
    assert!(!text.contains("secret"), "a query may hold what is nobody else's business");
    let number = |key: &str| {
        let all = spans[0]["attributes"].as_array().unwrap();
        all.iter().find(|one| one["key"] == key).unwrap()["value"]["intValue"].clone()
    };
    assert_eq!(number("http.response.status_code"), "200");
    assert_eq!(number("atoll.attempts"), "1");
    let nanos = |key: &str| spans[0][key].as_str().unwrap().parse::<u128>().unwrap();
    assert!(nanos("endTimeUnixNano") >= nanos("startTimeUnixNano"));
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_is_away_costs_nothing_but_old_spans() {
    let world = World::new(TRACED);
    gateway::upkeep::start(&world.gateway);
    world.server(1, handler(|_| async { says("") })).await;
    let mut client = world.client().await;
    for _ in 0..9000 {
        assert_eq!(client.get("/").await.0, 200);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let traces = world.gateway.state().traces.clone().unwrap();
    let counts = || (traces.n_sent.load(SeqCst), traces.n_dropped.load(SeqCst));
    assert_eq!(counts(), (0, 9000 - 8192));
    let (spans, task) = collector(&world, 200).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(counts(), (8192, 9000 - 8192));
    assert_eq!(spans.lock().unwrap().len(), 8192);

    // What is refused is not sent again, unless the collector says that it has too much.
    task.abort();
    tokio::task::yield_now().await;
    for (answer, n_dropped) in [(400, 1), (429, 0)] {
        let before = counts();
        let (spans, task) = collector(&world, answer).await;
        client.get("/").await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(counts(), (before.0, before.1 + n_dropped), "{answer}");
        assert_eq!(spans.lock().unwrap().len() > 1, answer == 429);
        task.abort();
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn answers_that_stream_leave_a_zone_its_room() {
    let world = World::new(
        r#"
        zone = "a"
        closeness = ["a", "b"]
        listen = "127.0.0.1:1"
        [services.web]
        servers = ["a=10.0.0.1:1", "b=10.0.0.1:2"]
        "#,
    );
    let near = handler(|request| async move {
        if request.uri().path() == "/events" {
            let first = futures::stream::iter([Ok(http_body::Frame::data(Bytes::from("one")))]);
            let events = futures::StreamExt::chain(first, futures::stream::pending());
            return http::Response::new(http_body_util::BodyExt::boxed(
                http_body_util::StreamBody::new(events),
            ));
        }
        says("a")
    });
    world.server(1, near).await;
    world.server(2, handler(|_| async { says("b") })).await;
    let mut listening = Vec::new();
    for _ in 0..60 {
        let request = Request::get("/events").header("host", "h").body(Full::default()).unwrap();
        let mut client = world.client().await;
        listening.push((client.answer(request).await, client));
    }
    let mut client = world.client().await;
    for _ in 0..40 {
        assert_eq!(client.get("/").await.1, "a", "sixty who listen are no load");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(listening.len(), 60);
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
        let service = state.backends["web"].upstream.handle.lock();
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
async fn a_body_that_stands_still_is_told_as_such() {
    let world = World::new(&format!("limits = {{ body_idle_timeout = \"5s\" }}\n{ONE}"));
    let read = handler(|request| async move {
        request.into_body().collect().await.ok();
        says("")
    });
    world.server(1, read).await;
    let begun = "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\nhalf";
    let answer = world.raw(begun.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}
