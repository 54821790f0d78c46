//! What clients say of themselves and of what they ask for, and what servers get to see of it. Time
//! is virtual.

mod support;

use http::StatusCode;
use serde_json::Value;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use support::{ONE, World, echo, handler, says};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What the server was told under this name, when it was asked with these fields.
async fn told(world: &World, fields: &str, name: &str) -> Vec<String> {
    let answer = world.raw(format!("GET / HTTP/1.1\r\n{fields}\r\n").as_bytes()).await;
    let lines = answer.split("\r\n\r\n").nth(1).unwrap_or_default().lines();
    let of_name = lines.filter_map(|line| line.strip_prefix(&format!("{name}: ")));
    of_name.map(str::to_owned).collect()
}

#[tokio::test(start_paused = true)]
async fn a_stranger_is_not_believed_and_a_trusted_proxy_is() {
    let claims = "host: shop.example\r\nX-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: \
                  https\r\nX-Forwarded-Host: evil.example\r\nX_Forwarded_Port: \
                  443\r\nForwarded: for=203.0.113.7\r\nX-Real-IP: 203.0.113.7\r\n";
    let stranger = World::new(ONE);
    stranger.server(1, echo()).await;
    for (name, value) in [
        ("x-forwarded-for", "192.0.2.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "shop.example"),
    ] {
        assert_eq!(told(&stranger, claims, name).await, [value]);
    }
    for name in ["x_forwarded_port", "forwarded", "x-real-ip"] {
        assert_eq!(told(&stranger, claims, name).await, [""; 0], "{name}");
    }
    let proxy = World::new(&format!("trusted_proxies = [\"192.0.2.0/24\"]\n{ONE}"));
    proxy.server(1, echo()).await;
    for (name, value) in [
        ("x-forwarded-for", "203.0.113.7, 192.0.2.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "evil.example"),
        ("x-real-ip", "203.0.113.7"),
    ] {
        assert_eq!(told(&proxy, claims, name).await, [value]);
    }
    let made_up = claims.replace("203.0.113.7", "6.6.6.6, 203.0.113.7");
    let chain = told(&proxy, &made_up, "x-forwarded-for").await;
    assert_eq!(chain, ["203.0.113.7, 192.0.2.1"], "what nobody vouches for goes no further");
}

#[tokio::test(start_paused = true)]
async fn what_a_route_removes_is_the_clients_and_what_it_sets_stands() {
    let world = World::new(&format!(
        "{ONE}\n[[routes]]\nservice = \"web\"\nrequest_headers = {{ remove = \
         [\"x-forwarded-for\"], set = {{ x-forwarded-proto = \"https\" }} }}\n"
    ));
    world.server(1, echo()).await;
    let fields = "host: h\r\nx-forwarded-for: 203.0.113.7\r\n";
    assert_eq!(told(&world, fields, "x-forwarded-for").await, ["192.0.2.1"]);
    assert_eq!(told(&world, fields, "x-forwarded-proto").await, ["https"]);
}

#[tokio::test(start_paused = true)]
async fn a_request_keeps_its_host_on_the_way() {
    let world = World::new(ONE);
    world.server(1, echo()).await;
    for fields in [
        "host: shop.example\r\nconnection: host\r\n",
        "host: shop.example\r\nconnection: close, Host\r\n",
        "host: shop.example.\r\n",
        "Host: shop.example\r\nConnection: x-forwarded-host, x-a\r\nx-a: 1\r\n",
    ] {
        assert_eq!(told(&world, fields, "host").await, ["shop.example"], "{fields}");
        assert_eq!(told(&world, fields, "x-forwarded-host").await, ["shop.example"], "{fields}");
        assert_eq!(told(&world, fields, "x-a").await, [""; 0], "{fields}");
    }
    assert_eq!(told(&world, "host: shop.example.:80\r\n", "host").await, ["shop.example:80"]);
    for request in ["GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\nhost:\r\n\r\n"] {
        let answer = world.raw(request.as_bytes()).await;
        assert_eq!(answer.matches("host: 10.0.0.1:1").count(), 1, "{answer}");
    }
    for host in ["a b", "a/b", "user@h", "h:x", "h:1:2", "a\\b", "a?b"] {
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
        let answer = world.raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("host"), "{host}: {answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_route_that_keeps_away_is_not_gone_round() {
    let world = World::new(
        r#"
        listen = "127.0.0.1:1"
        routes = [
            { path = "/admin", service = "denied" },
            { path = "/files", replace_prefix = "/public", service = "web" },
            { service = "web" },
        ]
        [services.web]
        servers = ["10.0.0.1:1"]
        [services.denied]
        servers = ["10.0.0.1:2"]
        "#,
    );
    world.server(1, echo()).await;
    world.server(2, handler(|_| async { support::status(403) })).await;
    let ask = async |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n");
        let answer = world.raw(request.as_bytes()).await;
        let seen = answer.lines().find_map(|line| line.strip_prefix("GET ")).map(str::to_owned);
        (answer[9..12].to_owned(), seen.unwrap_or_default())
    };
    for path in [
        "/admin",
        "/admin/x",
        "//admin/x",
        "/%61dmin",
        "/admin%2Fx",
        "/%2fadmin",
        "/\\admin",
        "/admin;v=1/x",
        "/;a/admin",
        "http://h/admin",
        "http://h//admin",
    ] {
        assert_eq!(ask(path).await, ("403".into(), "".into()), "{path}");
    }
    for path in [
        "/x/../admin",
        "/x/%2e%2e/admin",
        "/x/..%2fadmin",
        "/x/..;/admin",
        "/x/..\\admin",
        "/files/../admin",
        "/files/../secret",
        "/files/%2e%2e/secret",
        "/files/a/../../secret",
        "/files/..%2fsecret",
        "/admin%00",
        "/./admin",
        "/.//admin",
        "/%2e/admin",
    ] {
        assert_eq!(ask(path).await, ("400".into(), "".into()), "{path}");
    }
    for (path, seen) in [
        ("/files/a/../b", "/public/b"),
        ("/files//a", "/public/a"),
        ("/f%69les/a%20b?c=/../d", "/public/a%20b?c=/../d"),
        ("/wiki/http://x", "/wiki/http://x"),
        ("/a/./b", "/a/b"),
    ] {
        assert_eq!(ask(path).await, ("200".into(), seen.into()), "{path}");
    }
}

/// The gateway's log as it stands after a second.
async fn logged(dir: &tempfile::TempDir) -> Vec<Value> {
    tokio::time::sleep(Duration::from_secs(1)).await;
    let text = std::fs::read_to_string(dir.path().join("access.log")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_request_that_nobody_answered_has_its_line_and_its_count() {
    let world = World::new(ONE);
    let slow = handler(|request| async move {
        if request.uri().path() == "/slow" {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        says("x".repeat(1 << 20))
    });
    world.server(1, slow).await;
    let dir = tempfile::tempdir().unwrap();
    let to = gateway::config::AccessLog::whole(gateway::config::LogFile::File(
        dir.path().join("access.log"),
    ));
    let log = gateway::access_log::AccessLog::start(&world.env, &to).unwrap();
    world.gateway.set_access_log(Some(log));

    let ask = async |request: &str| {
        let mut stream = world.connect();
        stream.write_all(request.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        stream
    };
    drop(ask("GET /slow HTTP/1.1\r\nhost: h\r\n\r\n").await);
    drop(ask("GET /half HTTP/1.1\r\nhost: ").await);
    let mut part = ask("GET /part HTTP/1.1\r\nhost: h\r\n\r\n").await;
    part.read_exact(&mut [0; 100]).await.unwrap();
    drop(part);
    // Nobody reads the content of an answer to HEAD, and it is whole all the same.
    drop(ask("HEAD /whole HTTP/1.1\r\nhost: h\r\n\r\n").await);
    drop(ask("HEAD /none HTTP/1.1\r\n\r\n").await);
    for request in [
        "GET /a b HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(),
        format!("GET /large HTTP/1.1\r\nhost: h\r\nx: {}\r\n\r\n", "y".repeat(40_000)),
        "POST /two HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\ntransfer-encoding: \
         chunked\r\n\r\n"
            .to_owned(),
        "GET /late HTTP/1.1\r\nhost: h\r\n".to_owned(),
    ] {
        let answer = world.raw(request.as_bytes()).await;
        assert!(answer.contains("the request cannot be read: "), "{answer}");
    }
    let lines = logged(&dir).await;
    let of = |path: &str| {
        let line = lines.iter().find(|line| line["path"] == path);
        let line = line.unwrap_or_else(|| panic!("{path} is not in {lines:?}"));
        (line["status"].as_u64().unwrap(), line["is_broken"].as_bool().unwrap())
    };
    for (path, status, is_broken) in [
        ("/slow", 499, false),
        ("/half", 499, false),
        ("/part", 200, true),
        ("/whole", 200, false),
        ("/none", 400, false),
        ("/a", 400, false),
        ("/large", 431, false),
        ("/two", 400, false),
        ("/late", 408, false),
    ] {
        assert_eq!(of(path), (status, is_broken), "{path}");
    }
    assert_eq!(lines.len(), 9, "{lines:?}");
    assert_eq!(world.gateway.counters.n_left_requests.load(SeqCst), 2);

    // In HTTP/2 too, where a client resets its request.
    let mut client = world.client2().await;
    let request = http::Request::get("http://h/slow").body(Default::default()).unwrap();
    let asking = client.send_request(request);
    assert!(world.env.timeout(Duration::from_millis(100), asking).await.is_none());
    let lines = logged(&dir).await;
    assert_eq!((lines.len(), &lines[9]["status"]), (10, &499.into()), "{lines:?}");
    let request = http::Request::get("http://h/").body(Default::default()).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), StatusCode::OK);
}
