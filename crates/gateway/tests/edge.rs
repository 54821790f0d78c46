//! What the gateway does beside passing on: redirects, rewrites, rates, other origins, compression,
//! checks and what is logged. Time is virtual.

mod support;

use gateway::upkeep;
use http_body_util::BodyExt;
use serde_json::Value;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use support::{ONE, World, echo, handler, says};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What comes back for a request for this path with these fields.
async fn ask(world: &World, method: &str, path: &str, fields: &str) -> String {
    let head = format!("{method} {path} HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n");
    world.raw(format!("{head}{fields}\r\n").as_bytes()).await
}

fn line<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next().unwrap_or_default();
    head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")))
}

#[tokio::test(start_paused = true)]
async fn a_redirect_and_a_rewrite_go_by_patterns() {
    let world = World::new(
        r#"
        listen = "127.0.0.1:1"
        [[routes]]
        path = "/secure"
        redirect = { to = "https://{host}{path}{query}" }
        [[routes]]
        path = "/old"
        redirect = { from = "^/old/(?<rest>.*)$", to = "/new/${rest}{query}", status = 302 }
        [[routes]]
        path = "/users"
        rewrite = { from = "^/users/(\\d+)/(.*)$", to = "/u/$1/$2" }
        service = "web"
        [[routes]]
        service = "web"
        [services.web]
        servers = ["10.0.0.1:1"]
        "#,
    );
    world.server(1, echo()).await;
    for (path, status, location) in [
        ("/secure/a?b=c", "308", Some("https://shop.example/secure/a?b=c")),
        ("/secure/{host}", "308", Some("https://shop.example/secure/{host}")),
        ("/old/a/b?c", "302", Some("/new/a/b?c")),
        ("/old//evil.example", "302", Some("/new//evil.example")),
        ("/old", "404", None),
    ] {
        let answer = ask(&world, "GET", path, "").await;
        assert_eq!((&answer[9..12], line(&answer, "location")), (status, location), "{path}");
    }
    for (path, seen) in [
        ("/users/17/posts?x=1", "GET /u/17/posts?x=1"),
        ("/users/me", "GET /users/me"),
        ("/users/1/a%20b", "GET /u/1/a%20b"),
    ] {
        let answer = ask(&world, "GET", path, "").await;
        assert!(answer.contains(&format!("\r\n\r\n{seen}\n")), "{path}: {answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_beyond_a_rate_is_told_when_to_come_again() {
    let config = |by: &str| {
        format!(
            "trusted_proxies = [\"192.0.2.1\"]\n{ONE}\n[[routes]]\nservice = \"web\"\nrate_limit = \
             {{ per_second = 0.5, burst = 3, by = \"{by}\" }}\n"
        )
    };
    for (by, one, other) in [
        ("client", "x-forwarded-for: 203.0.113.1\r\n", "x-forwarded-for: 203.0.113.2\r\n"),
        ("header:x-api-key", "x-api-key: one\r\n", "x-api-key: other\r\n"),
    ] {
        let world = World::new(&config(by));
        let (asked, _) = world.server(1, handler(|_| async { says("") })).await;
        for n in 0..6 {
            let answer = ask(&world, "GET", "/", one).await;
            let expected = if n < 3 { "200" } else { "429" };
            assert_eq!(&answer[9..12], expected, "{by} {n}");
            assert_eq!(line(&answer, "retry-after").is_some(), n >= 3);
        }
        assert!(ask(&world, "GET", "/", other).await.starts_with("HTTP/1.1 200"), "{by}");
        // The same file again takes nothing back.
        world.reload(&config(by));
        assert!(ask(&world, "GET", "/", one).await.starts_with("HTTP/1.1 429"), "{by}");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(ask(&world, "GET", "/", one).await.starts_with("HTTP/1.1 200"), "{by}");
        assert_eq!(asked.n(), 5);
        assert_eq!(world.gateway.counters.n_over_rate.load(SeqCst), 4);
    }
}

#[tokio::test(start_paused = true)]
async fn pages_of_other_origins_may_read_what_the_file_says() {
    let world = World::new(&format!(
        "{ONE}\n[[routes]]\nservice = \"web\"\ncors = {{ origins = [\"https://shop.example\"], \
         methods = [\"PUT\"], expose = [\"x-count\"], credentials = true }}\n"
    ));
    let server = handler(|_| async {
        let mut answer = says("");
        answer.headers_mut().insert("access-control-allow-origin", "*".parse().unwrap());
        answer
    });
    let (asked, _) = world.server(1, server).await;
    let question = "origin: https://shop.example\r\naccess-control-request-method: \
                    PUT\r\naccess-control-request-headers: x-a, x-b\r\n";
    let answer = ask(&world, "OPTIONS", "/", question).await;
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    for (name, value) in [
        ("access-control-allow-origin", "https://shop.example"),
        ("access-control-allow-methods", "PUT"),
        ("access-control-allow-headers", "x-a, x-b"),
        ("access-control-allow-credentials", "true"),
        ("access-control-max-age", "600"),
        ("vary", "Origin"),
    ] {
        assert_eq!(line(&answer, name), Some(value));
    }
    assert_eq!(asked.n(), 0, "the browser asked the gateway");
    let answer = ask(&world, "GET", "/", "origin: https://shop.example\r\n").await;
    assert_eq!(answer.matches("access-control-allow-origin").count(), 1, "{answer}");
    assert_eq!(line(&answer, "access-control-allow-origin"), Some("https://shop.example"));
    assert_eq!(line(&answer, "access-control-expose-headers"), Some("x-count"));
    for fields in ["origin: https://evil.example\r\n", ""] {
        let answer = ask(&world, "GET", "/", fields).await;
        assert_eq!(line(&answer, "access-control-allow-origin"), None, "{answer}");
        assert_eq!(line(&answer, "vary"), Some("Origin"));
    }
}

#[tokio::test(start_paused = true)]
async fn text_is_compressed_for_whoever_takes_it() {
    let config = format!("{ONE}\n[[routes]]\nservice = \"web\"\ncompress = true\n");
    let world = World::new(&config);
    let text = "all work and no play makes a dull text. ".repeat(200);
    let answer = text.clone();
    let server = handler(move |request| {
        let text = answer.clone();
        async move {
            let mut answer = says(if request.uri().path() == "/small" { "x".into() } else { text });
            let kind = if request.uri().path() == "/image" { "image/png" } else { "text/html" };
            answer.headers_mut().insert("content-type", kind.parse().unwrap());
            answer.headers_mut().insert("etag", "\"1\"".parse().unwrap());
            answer
        }
    });
    world.server(1, server).await;
    let mut client = world.client().await;
    let mut get = async |path: &str, accepts: &str| {
        let request = http::Request::get(path).header("host", "h");
        let request = request.header("accept-encoding", accepts);
        let answer = client.answer(request.body(Default::default()).unwrap()).await;
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.headers, body)
    };
    let (fields, body) = get("/", "br, gzip;q=0.5").await;
    assert_eq!(fields["content-encoding"], "gzip");
    assert_eq!(fields["etag"], "W/\"1\"");
    assert!(body.len() < text.len() / 10 && !fields.contains_key("content-length"));
    let mut unpacked = String::new();
    flate2::read::GzDecoder::new(&body[..]).read_to_string(&mut unpacked).unwrap();
    assert_eq!(unpacked, text);
    for (path, accepts) in
        [("/", "br"), ("/", "gzip;q=0"), ("/small", "gzip"), ("/image", "gzip"), ("/", "")]
    {
        let (fields, body) = get(path, accepts).await;
        assert!(!fields.contains_key("content-encoding"), "{path} {accepts}");
        assert!(body.len() == 1 || body.len() == text.len());
    }
    assert_eq!(get("/", "br").await.0["vary"], "Accept-Encoding", "caches have to know");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_compressed_does_not_wait_for_more() {
    let config = format!("{ONE}\n[[routes]]\nservice = \"web\"\ncompress = true\n");
    let world = World::new(&config);
    let mut listener = world.env.net().listen(([10, 0, 0, 1], 1).into()).await.unwrap();
    world.env.spawn("server", async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_exact(&mut [0; 10]).await.unwrap();
        let head =
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..3 {
            stream.write_all(b"6\r\npiece\n\r\n").await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        stream.write_all(b"0\r\n\r\n").await.unwrap();
        std::future::pending::<()>().await;
    });
    let mut client = world.client().await;
    let request = http::Request::get("/").header("host", "h").header("accept-encoding", "gzip");
    let mut body = client.answer(request.body(Default::default()).unwrap()).await.into_body();
    let (mut packed, mut n_early) = (Vec::new(), 0);
    let begun = world.env.now();
    while let Some(frame) = body.frame().await {
        packed.extend(frame.unwrap().into_data().unwrap());
        n_early += usize::from(begun.elapsed() < Duration::from_millis(500));
    }
    assert!(n_early > 0, "the first piece is here before the second is made");
    let mut unpacked = String::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_string(&mut unpacked).unwrap();
    assert_eq!(unpacked, "piece\n".repeat(3));
}

#[tokio::test(start_paused = true)]
async fn a_route_has_its_own_time_for_what_stands_still() {
    let world = World::new(&format!(
        "{ONE}\n[limits]\nbody_idle_timeout = \"5s\"\n[[routes]]\npath = \"/watch\"\nservice = \
         \"web\"\nidle_timeout = \"1h\"\n[[routes]]\nservice = \"web\"\n"
    ));
    let mut listener = world.env.net().listen(([10, 0, 0, 1], 1).into()).await.unwrap();
    let env = world.env.clone();
    world.env.spawn("server", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            env.spawn("connection", async move {
                stream.read_exact(&mut [0; 10]).await.unwrap();
                let first = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfirst";
                stream.write_all(first).await.unwrap();
                tokio::time::sleep(Duration::from_secs(100)).await;
                stream.write_all(b"again").await.ok();
            });
        }
    });
    assert!(ask(&world, "GET", "/watch", "").await.ends_with("firstagain"));
    assert!(ask(&world, "GET", "/", "").await.ends_with("first"));
}

#[tokio::test(start_paused = true)]
async fn a_check_asks_as_the_file_says() {
    let world = World::new(
        r#"
        listen = "127.0.0.1:1"
        [services.web]
        servers = ["10.0.0.1:1", "10.0.0.1:2"]
        [services.web.health]
        path = "/up"
        host = "shop.example"
        method = "HEAD"
        statuses = [401, "2xx"]
        interval = "1s"
        unwell_after = 1
        "#,
    );
    upkeep::start(&world.gateway);
    let n_checks = Arc::<AtomicUsize>::default();
    for (port, status) in [(1, 401), (2, 302)] {
        let n_checks = n_checks.clone();
        let server = handler(move |request| {
            let is_meant = request.uri().path() == "/up"
                && request.method() == "HEAD"
                && request.headers()["host"] == "shop.example";
            n_checks.fetch_add(usize::from(is_meant), SeqCst);
            async move { support::status(if is_meant { status } else { 500 }) }
        });
        world.server(port, server).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(n_checks.load(SeqCst) >= 4);
    assert_eq!(world.out(1), None);
    assert_eq!(world.out(2), Some(gateway::balance::health::Reason::Check));
}

#[tokio::test(start_paused = true)]
async fn a_server_of_grpc_is_asked_by_its_own_protocol() {
    let world = World::new(
        r#"
        listen = "127.0.0.1:1"
        [services.web]
        servers = ["10.0.0.1:1"]
        protocol = "http2"
        health = { grpc = "shop.Orders", interval = "1s", unwell_after = 1, well_after = 1 }
        "#,
    );
    upkeep::start(&world.gateway);
    let is_serving = Arc::new(AtomicBool::new(true));
    let serving = is_serving.clone();
    let server = handler(move |request| {
        let serving = serving.load(SeqCst);
        async move {
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            assert_eq!(request.headers()["content-type"], "application/grpc");
            let body = request.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, &b"\0\0\0\0\x0d\x0a\x0bshop.Orders"[..]);
            let said: &[u8] =
                if serving { b"\0\0\0\0\x02\x08\x01" } else { b"\0\0\0\0\x02\x08\x02" };
            says(String::from_utf8(said.to_vec()).unwrap())
        }
    });
    world.server2(1, server).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.out(1), None);
    is_serving.store(false, SeqCst);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.out(1), Some(gateway::balance::health::Reason::Check));
    is_serving.store(true, SeqCst);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.out(1), None);
}

#[tokio::test(start_paused = true)]
async fn a_line_of_the_log_has_the_fields_that_are_wanted() {
    let world = World::new(&format!("trusted_proxies = [\"192.0.2.1\"]\n{ONE}"));
    world.server(1, handler(|_| async { says("") })).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("access.log");
    let to = gateway::config::AccessLog {
        to: gateway::config::LogFile::File(file.clone()),
        fields: ["client", "peer", "headers", "version"].map(str::to_owned).into(),
        headers: vec![http::header::USER_AGENT],
    };
    let log = gateway::access_log::AccessLog::start(&world.env, &to).unwrap();
    world.gateway.set_access_log(Some(log.clone()));
    let fields = "user-agent: test/1\r\nx-forwarded-for: 203.0.113.7\r\n";
    ask(&world, "GET", "/", fields).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let line = std::fs::read_to_string(&file).unwrap();
    let expected = serde_json::json!({
        "client": "203.0.113.7",
        "peer": "192.0.2.1:4000",
        "version": "1.1",
        "headers": { "user-agent": "test/1" },
    });
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), expected);

    // Behind the lines that wait, the file is opened anew.
    ask(&world, "GET", "/", fields).await;
    std::fs::rename(&file, dir.path().join("old")).unwrap();
    log.open_anew();
    tokio::time::sleep(Duration::from_secs(1)).await;
    ask(&world, "GET", "/", fields).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let n_lines =
        |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap().lines().count();
    assert_eq!((n_lines("old"), n_lines("access.log")), (2, 1));
}
