//! Bodies on their way, whole, broken, too large and standing still. Time is virtual.

mod support;

use bytes::Bytes;
use gateway::balance::health::Reason;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use std::time::Duration;
use support::{ONE, TWO, World, handler, says, status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

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
    // RFC 9112, 6.1: it may be refused, and the connection ends, so that what follows is nothing.
    assert!(answer.starts_with("HTTP/1.1 400 ") && !answer.contains("smuggled"), "{answer}");
    assert_eq!(asked.n(), 0);
    let bad_chunk = "POST /two HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n\
                     zz\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: h\r\n\r\n";
    let answer = world.raw(bad_chunk.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && !answer.contains("smuggled"), "{answer}");
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
    assert_eq!(world.out(1), Some(Reason::Failing));
    assert!(broken.n() < 20 && n_whole > 180, "{} of {n_whole}", broken.n());
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
    let head = "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 200000\r\n\r\n";
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
    assert_eq!(world.out(1), None);
    assert_eq!(world.client().await.post("/", "still").await, (StatusCode::OK, "still".into()));
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
async fn who_is_refused_asks_again_on_the_same_connection() {
    let world = World::new(ONE);
    let mut stream = world.connect();
    // Nobody listens at the server; and there is no such route.
    for (host, status) in [("h", "502"), ("h\r\nhost: h", "400")] {
        for _ in 0..2 {
            let head = format!("POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: 5\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            stream.write_all(b"hello").await.unwrap();
            let mut bytes = [0; 4096];
            let n = stream.read(&mut bytes).await.unwrap();
            let answer = String::from_utf8_lossy(&bytes[..n]);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            assert!(!answer.contains("close"), "{answer}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_in_the_middle_of_a_large_body_hears_why() {
    let world = World::new(&format!("limits = {{ body_bytes = 100000 }}\n{ONE}"));
    let mut stream = world.connect();
    let head = "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 3000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..30 {
        stream.write_all(&[b'x'; 100_000]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    // Whoever goes on and on is not read for ever.
    let mut stream = world.connect();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut n = 0;
    while stream.write_all(b"x").await.is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        n += 1;
    }
    assert!((400..600).contains(&n), "{n}");
}

/// Sends a POST of ten bytes, one after each pause.
async fn post_slowly(world: &World, pause: Duration) -> String {
    let mut stream = world.connect();
    let head = b"POST / HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: 10\r\n\r\n";
    stream.write_all(head).await.unwrap();
    for _ in 0..10 {
        tokio::time::sleep(pause).await;
        stream.write_all(b"x").await.unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_takes_no_time_from_its_server() {
    let world = World::new(&format!("limits = {{ body_idle_timeout = \"1s\" }}\n{TWO}"));
    for port in [1, 2] {
        let slow = handler(|request| async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            tokio::time::sleep(Duration::from_millis(400)).await;
            says(body.len().to_string())
        });
        world.server(port, slow).await;
    }
    // Longer in all than a body may stand still, and most of the request's two seconds.
    let answer = post_slowly(&world, Duration::from_millis(190)).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("10"), "{answer}");
    for _ in 0..10 {
        let answer = post_slowly(&world, Duration::from_millis(210)).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    }
    let service = world.gateway.state().backends["web"].handle.clone();
    assert_eq!(service.lock().totals.n_failed, 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_once_is_not_sent_to_who_stands_in() {
    let world = World::new(
        r#"
        listen = "127.0.0.1:1"
        [[routes]]
        service = "web"
        [services.web]
        servers = ["10.0.0.1:1"]
        fallback = { service = "other" }
        [services.other]
        servers = ["10.0.0.1:2"]
        "#,
    );
    let (asked, _) = world.server(1, handler(|_| async { status(500) })).await;
    let (other, _) = world.server(2, handler(|_| async { says("other") })).await;
    let mut client = world.client().await;
    assert_eq!(client.get("/").await.1, "other");
    for body in ["x", ""] {
        assert_eq!(client.post("/", body).await.0, 500);
    }
    // The GET three times, each POST once.
    assert_eq!((asked.n(), other.n()), (5, 1));
}
