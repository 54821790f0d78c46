//! HTTP/2 and gRPC through the gateway. Time is virtual.

mod support;

use bytes::Bytes;
use gateway::balance::health::Reason;
use http::Request;
use http_body_util::{BodyExt, Full};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use support::{FarNet, ONE, TWO, World, handler, says};
use tokio::io::AsyncWriteExt;

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

#[tokio::test(start_paused = true)]
async fn what_http1_cannot_have_is_mended_or_refused() {
    let world = World::new(&format!("{ONE}\n[limits]\nheaders = 10\n"));
    let cookies = handler(|request| async move {
        let cookies = request.headers().get_all("cookie").iter();
        let cookies: Vec<&str> = cookies.map(|cookie| cookie.to_str().unwrap()).collect();
        says(cookies.join("|"))
    });
    world.server(1, cookies).await;
    let mut client = world.client2().await;
    let mut ask = async |fields: &[(&str, &str)]| {
        let mut request = Request::get("http://h/");
        for (name, value) in fields {
            let name = http::HeaderName::from_lowercase(name.as_bytes()).unwrap();
            request = request.header(name, *value);
        }
        let request = request.body(Full::<Bytes>::default()).unwrap();
        let answer = client.send_request(request).await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.into_body().collect().await.unwrap().to_bytes())
    };
    // A client may cut its cookies into pieces, a server of HTTP/1.1 takes the first for all.
    let crumbs = [("cookie", "a=1"), ("x-a", "1"), ("cookie", "b=2")];
    assert_eq!(ask(&crumbs).await, (200, "a=1; b=2".into()));
    assert_eq!(ask(&[("cookie", "a"); 50]).await.0, 200, "they are one");
    let (status, reason) = ask(&[("a\"b", "1")]).await;
    assert_eq!(status, 400);
    assert!(reason.starts_with(b"the request cannot be read: a field's name"), "{reason:?}");
    for _ in 0..5 {
        let (status, reason) = ask(&[("x-a", "1"); 11]).await;
        assert_eq!(status, 431);
        assert!(
            reason.starts_with(b"the request cannot be read: there are too many"),
            "{reason:?}"
        );
        tokio::time::sleep(Duration::from_secs(20)).await;
    }
    let counters = &world.gateway.counters;
    assert_eq!(counters.n_bad_requests.load(SeqCst), 6);
    assert_eq!(counters.n_stood_still.load(SeqCst), 0, "it is not silent");
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
    assert_eq!(world.out(1), Some(Reason::Failing));
    assert_eq!(world.out(2), None);
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
    world.gateway.state().backends["web"].upstreams[0].sweep(world.env.now());
    assert_eq!(world.client().await.get("/").await.0, 200);
    assert_eq!(connections.n(), 2);
}

#[tokio::test(start_paused = true)]
async fn who_comes_while_a_connection_is_opened_shares_it() {
    let config = ONE.replace("servers", "protocol = \"http2\"\nservers");
    let world = World::on(Arc::<FarNet>::default(), &config);
    let connections = world.server2(1, handler(|_| async { says("") })).await;
    let mut answers = Vec::new();
    for _ in 0..60 {
        let mut client = world.client().await;
        answers.push(world.env.spawn("client", async move {
            assert_eq!(client.get("/").await.0, 200);
        }));
    }
    for answer in answers {
        answer.await.unwrap();
    }
    assert_eq!(connections.n(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_in_a_hurry_does_not_make_servers_look_slow() {
    let config = ONE.replace("servers", "protocol = \"http2\"\nservers");
    for (name, in_trailers) in [("heads", false), ("trailers", true)] {
        let world = World::new(&config);
        let late = handler(move |_| async move {
            let status = [("grpc-status", "4")].map(|(name, code)| {
                (http::HeaderName::from_static(name), http::HeaderValue::from_static(code))
            });
            let status: http::HeaderMap = status.into_iter().collect();
            if !in_trailers {
                let mut answer = says("");
                *answer.headers_mut() = status;
                return answer;
            }
            let frames = [
                Ok(http_body::Frame::data(Bytes::from("x"))),
                Ok(http_body::Frame::trailers(status)),
            ];
            http::Response::new(
                http_body_util::StreamBody::new(futures::stream::iter(frames)).boxed(),
            )
        });
        world.server2(1, late).await;
        let mut client = world.client2().await;
        let mut call = async |timeout: &str| {
            let request = Request::post("http://h/a.B/C")
                .header("content-type", "application/grpc")
                .header("grpc-timeout", timeout);
            let answer = client.send_request(request.body(Full::default()).unwrap()).await.unwrap();
            answer.into_body().collect().await.unwrap();
        };
        for _ in 0..50 {
            call("1m").await;
        }
        let service = world.gateway.state().backends["web"].handle.clone();
        assert_eq!(service.lock().totals.n_failed, 0, "{name}");
        // Long before the time is over, or with all the time of the service, it is the server's.
        for timeout in ["10S", "1H"] {
            let before = service.lock().totals.n_failed;
            for _ in 0..9 {
                call(timeout).await;
            }
            assert_eq!(service.lock().totals.n_failed, before + 9, "{name}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_opened_for_all_who_wait_for_it() {
    let config = ONE.replace("servers", "protocol = \"http2\"\nservers");
    let all_ask = async |world: &World| {
        // The first goes away before the connection stands.
        let mut first = world.connect();
        first.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        let clients = futures::future::join_all((0..20).map(|_| world.client())).await;
        let ask = |mut client: support::Client| async move { client.get("/").await.0 };
        let answers = futures::future::join_all(clients.into_iter().map(ask));
        let leaves = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            drop(first);
        };
        futures::future::join(answers, leaves).await.0
    };
    let world = World::on(Arc::<FarNet>::default(), &config);
    let connections = world.server2(1, handler(|_| async { says("") })).await;
    assert!(all_ask(&world).await.iter().all(|status| *status == 200));
    assert_eq!(connections.n(), 1);

    // Nobody listens: that is one failure each time, and not one of each who waits.
    let world = World::on(Arc::<FarNet>::default(), &config);
    assert!(all_ask(&world).await.iter().all(|status| *status == 502));
    let service = world.gateway.state().backends["web"].handle.clone();
    let n_failed: u64 = service.lock().fleet.servers().map(|server| server.n_failed).sum();
    assert!(n_failed <= 4, "{n_failed}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_grants_no_room_is_not_waited_for() {
    let limits = "[limits]\nbody_idle_timeout = \"2s\"\n";
    let world = World::new(&format!("{ONE}\n{limits}"));
    world.server(1, handler(|_| async { says("x".repeat(300_000)) })).await;
    let io = hyper_util::rt::TokioIo::new(world.connect());
    let spawn = gateway::http::pool::Spawn(world.env.clone());
    let mut builder = hyper::client::conn::http2::Builder::new(spawn);
    builder.initial_stream_window_size(70_000);
    let (mut sender, connection) = builder.handshake(io).await.unwrap();
    world.env.spawn("client", async move {
        connection.await.ok();
    });
    let request = || Request::get("http://h/").body(Full::<Bytes>::default()).unwrap();
    let mut unread = Vec::new();
    for _ in 0..20 {
        unread.push(sender.send_request(request()).await.unwrap());
    }
    // Who reads on is served meanwhile, and for longer than that.
    let mut slow = sender.send_request(request()).await.unwrap().into_body();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.gateway.n_requests(), 21);
    let mut n = 0;
    while let Some(frame) = slow.frame().await {
        n += frame.unwrap().into_data().unwrap().len();
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(n, 300_000);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.gateway.n_requests(), 0);
    assert_eq!(world.gateway.counters.n_stood_still.load(SeqCst), 20);
    let answer = sender.send_request(request()).await.unwrap();
    assert_eq!(answer.status(), 200, "the connection is as good as before");
    for answer in unread {
        assert!(answer.into_body().collect().await.is_err(), "a part is not the whole");
    }
}
