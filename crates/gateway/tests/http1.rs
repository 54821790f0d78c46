//! HTTP/1.1 byte by byte: what clients and servers say to each other through the gateway, and that
//! neither is taken for the other's next word.

mod support;

use http_body_util::BodyExt;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use support::{ONE, World, handler, says};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// What a server was sent, connection by connection.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<String>>>);

impl Heard {
    fn on(&self, nth: usize) -> String {
        self.0.lock().get(nth).cloned().unwrap_or_default()
    }

    fn n_connections(&self) -> usize {
        self.0.lock().len()
    }
}

/// A server at `10.0.0.1:1` that says these bytes after each read of its connections, one after the
/// other, and keeps them open; an empty answer closes.
async fn server(world: &World, answers: &[&str]) -> Heard {
    let answers: Vec<String> = answers.iter().map(|answer| (*answer).to_owned()).collect();
    let mut listener = world.env.net().listen(SocketAddr::from(([10, 0, 0, 1], 1))).await.unwrap();
    let heard = Heard::default();
    let (told, env) = (heard.clone(), world.env.clone());
    world.env.spawn("server", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let nth = told.0.lock().len();
            told.0.lock().push(String::new());
            let (told, answers) = (told.clone(), answers.clone());
            env.spawn("server", async move {
                let mut bytes = [0; 4096];
                let mut answers = answers.iter();
                while let Ok(n @ 1..) = stream.read(&mut bytes).await {
                    told.0.lock()[nth] += &String::from_utf8_lossy(&bytes[..n]);
                    match answers.next() {
                        Some(answer) if answer.is_empty() => return,
                        Some(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
                        None => {}
                    }
                }
            });
        }
    });
    heard
}

/// Everything that comes within a second.
async fn hear(world: &World, stream: &mut DuplexStream) -> String {
    let mut heard = Vec::new();
    world.env.timeout(Duration::from_secs(1), stream.read_to_end(&mut heard)).await;
    String::from_utf8_lossy(&heard).into_owned()
}

async fn ask(world: &World, text: &str) -> String {
    let mut stream = world.connect();
    stream.write_all(text.as_bytes()).await.unwrap();
    hear(world, &mut stream).await
}

#[tokio::test(start_paused = true)]
async fn requests_in_one_piece_are_answered_in_their_order() {
    let world = World::new(ONE);
    let path = handler(|request| async move {
        let path = request.uri().path().to_owned();
        if path == "/slow" {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        says(format!("[{path}]"))
    });
    world.server(1, path).await;
    let request = |path| format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n");
    let mut stream = world.connect();
    let text = request("/slow") + "\r\n" + &request("/two") + "GET /thr";
    stream.write_all(text.as_bytes()).await.unwrap();
    let heard = hear(&world, &mut stream).await;
    assert!(heard.find("[/slow]").unwrap() < heard.find("[/two]").unwrap(), "{heard}");
    assert!(!heard.contains("[/thr"), "{heard}");
    stream.write_all(b"ee HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.unwrap();
    let heard = hear(&world, &mut stream).await;
    assert!(heard.contains("connection: close\r\n") && heard.contains("[/three]"), "{heard}");
}

#[tokio::test(start_paused = true)]
async fn who_waits_to_be_told_is_told_once() {
    let world = World::new(ONE);
    let echo = handler(|request| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        says(String::from_utf8_lossy(&body).into_owned())
    });
    world.server(1, echo).await;
    for framing in ["content-length: 5", "content-length: 70000", "transfer-encoding: chunked"] {
        let mut stream = world.connect();
        let head =
            format!("POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\n{framing}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        assert_eq!(hear(&world, &mut stream).await, "HTTP/1.1 100 Continue\r\n\r\n", "{framing}");
        let body = match framing {
            "content-length: 5" => "hello".to_owned(),
            "content-length: 70000" => "x".repeat(70_000),
            _ => "5\r\nhello\r\n0\r\n\r\n".to_owned(),
        };
        stream.write_all(body.as_bytes()).await.unwrap();
        let heard = hear(&world, &mut stream).await;
        assert!(heard.starts_with("HTTP/1.1 200 OK\r\n") && !heard.contains("100 C"), "{heard}");
    }
    // Who is refused is not told to go on.
    let refused = "POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    let heard = ask(&world, refused).await;
    assert!(heard.starts_with("HTTP/1.1 400 ") && heard.contains("connection: close"), "{heard}");
}

#[tokio::test(start_paused = true)]
async fn fields_pass_as_they_came() {
    let world = World::new(ONE);
    let fields = "X-B: 1\r\nx-a: \r\nHost: h\r\nX-b: b \u{e9}\r\nX-Request-Priority: low\r\n";
    let given = "Set-Cookie: a=1\r\nDate: then\r\nset-cookie: b=2\r\nContent-Length: 0\r\n";
    let heard = server(&world, &[&format!("HTTP/1.1 200 OK\r\n{given}\r\n")]).await;
    let connection = "Connection: X-Gone, close\r\nx-gone: 1\r\nKeep-Alive: 5\r\n";
    let told = ask(&world, &format!("GET / HTTP/1.1\r\n{connection}{fields}\r\n")).await;
    let head = format!("GET / HTTP/1.1\r\n{fields}x-forwarded-for: ");
    assert!(heard.on(0).starts_with(&head), "{}", heard.on(0));
    let cookies = "Set-Cookie: a=1\r\nDate: then\r\nset-cookie: b=2\r\n";
    let own = "content-length: 0\r\nconnection: close\r\n\r\n";
    assert_eq!(told, format!("HTTP/1.1 200 OK\r\n{cookies}{own}"));
}

#[tokio::test(start_paused = true)]
async fn a_host_is_ascii() {
    let world = World::new(ONE);
    let heard = server(&world, &[]).await;
    let told = ask(&world, "GET / HTTP/1.1\r\nhost: \u{e9}.example\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 400 "), "{told}");
    assert_eq!(heard.n_connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_does_not_hold_the_file_that_it_began_under() {
    let world = World::new(ONE);
    let address = SocketAddr::from(([10, 0, 0, 1], 1));
    let mut listener = world.env.net().listen(address).await.unwrap();
    let mut asked = async |body: &str| {
        let mut client = world.connect();
        client.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        server.read_buf(&mut Vec::new()).await.unwrap();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{body}");
        server.write_all(answer.as_bytes()).await.unwrap();
        assert!(hear(&world, &mut client).await.ends_with(body));
        (client, server)
    };
    let (mut streaming, mut busy) = asked("h").await;
    let _another = asked("h").await;
    let (_client, mut idle) = asked("hi").await;
    let old = Arc::downgrade(&world.gateway.state());
    let mut end = Vec::new();
    let half = Duration::from_millis(500);
    assert!(world.env.timeout(half, idle.read_to_end(&mut end)).await.is_none());
    world.reload(&ONE.replace("services.web", "services.other"));
    assert_eq!(old.strong_count(), 0);
    assert!(world.env.timeout(half, idle.read_to_end(&mut end)).await.is_some(), "it is closed");
    busy.write_all(b"i").await.unwrap();
    assert_eq!(hear(&world, &mut streaming).await, "i");
    assert!(world.env.timeout(half, busy.read_to_end(&mut end)).await.is_some(), "nor kept");
}

#[tokio::test(start_paused = true)]
async fn an_old_client_is_answered_as_it_can_understand() {
    let world = World::new(ONE);
    let chunks = handler(|_| async {
        let body = "no length".to_owned();
        let frames = futures::stream::iter([Ok(http_body::Frame::data(body.into()))]);
        http::Response::new(BodyExt::boxed(http_body_util::StreamBody::new(frames)))
    });
    world.server(1, chunks).await;
    let mut stream = world.connect();
    stream.write_all(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await.unwrap();
    let mut heard = String::new();
    stream.read_to_string(&mut heard).await.unwrap();
    assert!(heard.ends_with("connection: close\r\n\r\nno length"), "{heard}");
    assert!(!heard.contains("chunked"), "{heard}");

    world.reload(&ONE.replace(":1\"]", ":2\"]"));
    world.server(2, handler(|_| async { says("short") })).await;
    let kept = ask(&world, &"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n".repeat(2)).await;
    assert_eq!(kept.matches("connection: keep-alive\r\n\r\nshort").count(), 2, "{kept}");
    let once = ask(&world, &"GET / HTTP/1.0\r\n\r\n".repeat(2)).await;
    assert_eq!(once.matches("connection: close\r\n\r\nshort").count(), 1, "{once}");
}

#[tokio::test(start_paused = true)]
async fn answers_without_a_body_have_none() {
    let world = World::new(ONE);
    let heard = server(
        &world,
        &[
            "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n",
            "HTTP/1.1 204 No Content\r\ncontent-length: 7\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
        ],
    )
    .await;
    let mut stream = world.connect();
    let mut told = Vec::new();
    for method in ["HEAD", "GET", "GET", "HEAD", "GET"] {
        let request = format!("{method} / HTTP/1.1\r\nhost: h\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = hear(&world, &mut stream).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        told.push(format!("{} {length:?} {body:?}", &head[9..12]));
    }
    let expected = [
        r#"200 Some("7") """#,
        r#"204 None """#,
        r#"304 Some("7") """#,
        r#"200 None """#,
        r#"200 Some("2") "hi""#,
    ];
    assert_eq!(told, expected);
    assert_eq!(heard.n_connections(), 1);
    let own = ask(&world, "HEAD / HTTP/1.1\r\n\r\n").await;
    assert!(own.starts_with("HTTP/1.1 400 ") && own.ends_with("\r\n\r\n"), "{own}");
    assert!(own.contains("content-length: 26\r\n"), "{own}");
}

#[tokio::test(start_paused = true)]
async fn a_request_reaches_its_server_with_its_own_framing() {
    let world = World::new(ONE);
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let heard = server(&world, &[ok; 8]).await;
    ask(&world, "GET http://h?x=1 HTTP/1.1\r\nhost: other\r\n\r\n").await;
    assert!(heard.on(0).starts_with("GET /?x=1 HTTP/1.1\r\n"), "{}", heard.on(0));
    assert!(!heard.on(0).contains("content-length"), "{}", heard.on(0));
    ask(&world, "POST /empty HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let text = heard.on(0);
    let second = &text[text.find("POST").unwrap()..];
    assert_eq!(second.matches("content-length: 0\r\n").count(), 1, "{second}");
    let chunked = "PUT /chunks HTTP/1.1\r\nhost: h\r\nte: trailers\r\ntransfer-encoding: chunked\r\n\r\n\
                   3;x=y\r\nabc\r\n0\r\nx-sum: 1\r\nhost: evil\r\n\r\n";
    ask(&world, chunked).await;
    let text = heard.on(0);
    let third = &text[text.find("PUT").unwrap()..];
    assert!(third.contains("transfer-encoding: chunked\r\n"), "{third}");
    assert!(third.ends_with("\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n"), "{third}");
}

#[tokio::test(start_paused = true)]
async fn trailers_reach_who_reads_them() {
    let world = World::new(ONE);
    let chunks =
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 1\r\n\r\n";
    server(&world, &[chunks; 2]).await;
    let reads = ask(&world, "GET / HTTP/1.1\r\nhost: h\r\nte: gzip, trailers\r\n\r\n").await;
    assert!(reads.ends_with("\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 1\r\n\r\n"), "{reads}");
    let does_not = ask(&world, "GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    assert!(does_not.ends_with("\r\n\r\n2\r\nhi\r\n0\r\n\r\n"), "{does_not}");
}

#[tokio::test(start_paused = true)]
async fn what_a_server_says_unasked_is_nobodys_answer() {
    for unasked in [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
        "HTTP/1.1 204 No Content\r\n\r\nevil",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nevil",
    ] {
        let world = World::new(ONE);
        let heard = server(&world, &[unasked]).await;
        let get = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";
        for n in 1..=3 {
            let answer = ask(&world, get).await;
            assert!(answer.starts_with("HTTP/1.1 20") && !answer.contains("evil"), "{answer}");
            assert_eq!(heard.n_connections(), n);
        }
    }
    let world = World::new(ONE);
    let switch =
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nevil";
    server(&world, &[switch]).await;
    let answer = ask(&world, "POST / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && !answer.contains("evil"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_head_without_end_is_not_waited_for() {
    let world = World::new(ONE);
    let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(100_000));
    server(&world, &[&endless]).await;
    let answer = ask(&world, "POST / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert!(answer.contains("the head is too large"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn answers_on_the_way_are_skipped() {
    let world = World::new(ONE);
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n\
                 HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
    server(&world, &[hints]).await;
    let answer = ask(&world, "GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nhi"),
        "{answer}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_closed_while_idle_is_not_asked() {
    let world = World::new(&format!("{ONE}[[routes]]\nhosts = [\"h\"]\nservice = \"web\"\n"));
    let mut listener = world.env.net().listen(SocketAddr::from(([10, 0, 0, 1], 1))).await.unwrap();
    world.env.spawn("server", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // It says that it stays, and leaves.
            let mut head = [0; 4096];
            assert!(stream.read(&mut head).await.unwrap() > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let post = "POST / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    // However much the connection's task has done in its turn before.
    let own = "GET / HTTP/1.1\r\nhost: nobody\r\n\r\n";
    for n_before in 0..140 {
        let answers = ask(&world, &(own.repeat(n_before) + post)).await;
        assert_eq!(answers.matches("HTTP/1.1 404 ").count(), n_before);
        assert!(answers.contains("HTTP/1.1 200 "), "behind {n_before}: {answers}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Answers of a server that takes the request, before it has read all of it.
const EARLY: [&str; 5] = [
    "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    "HTTP/1.1 204 No Content\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx-sum: 1\r\n\r\n",
];

#[tokio::test(start_paused = true)]
async fn what_is_uploaded_reaches_a_server_that_has_answered() {
    for answer in EARLY {
        let world = World::new(ONE);
        let heard = server(&world, &[answer]).await;
        let mut stream = world.connect();
        let head =
            "PUT / HTTP/1.1\r\nhost: h\r\nte: trailers\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(format!("{head}5\r\nfirst\r\n").as_bytes()).await.unwrap();
        let early = hear(&world, &mut stream).await;
        // It was told so before its body was read.
        assert!(early.starts_with("HTTP/1.1 20") && early.contains("connection: close\r\n"));
        // Slowly, and longer than anything may stand still.
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_secs(40)).await;
            stream.write_all(b"4\r\nmore\r\n").await.unwrap();
        }
        stream.write_all(b"0\r\n\r\n").await.unwrap();
        let end = hear(&world, &mut stream).await;
        assert_eq!((early + &end).contains("x-sum: 1"), answer.contains("x-sum"));
        assert!(heard.on(0).ends_with("4\r\nmore\r\n0\r\n\r\n"), "{answer}: {}", heard.on(0));
        assert_eq!(heard.on(0).matches("more").count(), 4);
        assert_eq!(world.gateway.n_connections(), 0);
        let mute = ask(&world, "GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
        assert_eq!((mute.as_str(), heard.n_connections()), ("", 1), "it is kept, and mute");
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_uploaded_all_may_go() {
    const N: usize = 600_000;
    for answer in EARLY {
        let world = World::new(ONE);
        let mut listener =
            world.env.net().listen(SocketAddr::from(([10, 0, 0, 1], 1))).await.unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (told, env) = (heard.clone(), world.env.clone());
        world.env.spawn("server", async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let told = told.clone();
                env.spawn("server", async move {
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    // All pipes are full when it begins, and it is slower than its client.
                    let mut bytes = vec![0; 10_000];
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    while let Ok(n @ 1..) = stream.read(&mut bytes).await {
                        told.lock().extend_from_slice(&bytes[..n]);
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                });
            }
        });
        let mut client = world.connect();
        let head = format!("PUT / HTTP/1.1\r\nhost: h\r\ncontent-length: {N}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(&vec![b'y'; N]).await.unwrap();
        drop(client);
        tokio::time::sleep(Duration::from_secs(30)).await;
        let heard = std::mem::take(&mut *heard.lock());
        let n_head = heard.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        assert_eq!(heard.len() - n_head, N, "{answer}");
        assert_eq!((world.gateway.n_connections(), world.gateway.n_requests()), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_goes_on_while_its_client_does_not_read() {
    const N: usize = 1_000_000;
    let world = World::new(ONE);
    let mut listener = world.env.net().listen(SocketAddr::from(([10, 0, 0, 1], 1))).await.unwrap();
    let env = world.env.clone();
    world.env.spawn("server", async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (mut reads, mut writes) = tokio::io::split(stream);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {N}\r\n\r\n");
        env.spawn("server", async move {
            writes.write_all(head.as_bytes()).await.unwrap();
            writes.write_all(&vec![b'x'; N]).await.unwrap();
        });
        tokio::io::copy(&mut reads, &mut tokio::io::sink()).await.unwrap();
    });
    let mut client = world.connect();
    let head = format!("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {N}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let upload = vec![b'y'; N];
    let written = world.env.timeout(Duration::from_secs(5), client.write_all(&upload)).await;
    assert!(written.is_some(), "it stands still");
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert!(answer.len() > N && answer.ends_with(b"xxx"));
}

/// What a server gets that refuses an upload when all buffers on the way to it are full, and reads
/// on when its refusal has been read. The upload's chunks have so many bytes.
async fn refused_upload(chunks: &[usize]) -> Vec<u8> {
    let world = World::new(ONE);
    let mut listener = world.env.net().listen(SocketAddr::from(([10, 0, 0, 1], 1))).await.unwrap();
    let (read, heard) = tokio::sync::oneshot::channel();
    world.env.spawn("server", async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        let body = "x".repeat(10_000);
        let answer = format!("HTTP/1.1 413 No\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        read.send(rest).unwrap();
    });
    let mut client = world.connect();
    let head = "PUT / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let smuggled = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: h\r\n\r\n";
    for n in chunks {
        let content: Vec<u8> = smuggled.iter().copied().cycle().take(*n).collect();
        let chunk = [format!("{n:x}\r\n").as_bytes(), &content, b"\r\n"].concat();
        client.write_all(&chunk).await.unwrap();
        // Each is passed on by itself.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 413 ") && answer.ends_with(b"xxx"));
    heard.await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_is_uploaded_is_not_sent_behind_a_refusal() {
    const PIPE_BYTES: usize = 256 << 10;
    let chunk = |n: usize| format!("{n:x}\r\n").len() + n + 2;
    // The pipe to the server is full where a chunk ends, so that nothing of the next one is sent.
    let room = PIPE_BYTES - refused_upload(&[20_000]).await.len();
    let n_second = 6000 + room % chunk(6000);
    let sent = refused_upload(&[&[20_000, n_second][..], &[6000; 50]].concat()).await;
    assert_eq!(sent.len(), PIPE_BYTES);
    let mut at = sent.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    while at < sent.len() {
        let line = sent[at..].split(|byte| *byte == b'\r').next().unwrap();
        let n = usize::from_str_radix(std::str::from_utf8(line).unwrap(), 16).unwrap();
        at += chunk(n);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_has_no_end() {
    let world = World::new(ONE);
    let cut = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\nno chunk\r\n";
    server(&world, &[cut]).await;
    let answer = ask(&world, "GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    assert!(answer.ends_with("2\r\nhi\r\n"), "{answer}");
    assert_eq!(world.gateway.counters.n_broken_connections.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_let_go() {
    let world = World::new(&format!("limits = {{ body_idle_timeout = \"5s\" }}\n{ONE}"));
    world.server(1, handler(|_| async { says("x".repeat(2 << 20)) })).await;
    let mut stream = world.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    // One that is slow gets it all.
    let mut slow = world.connect();
    slow.write_all(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut n_read = 0;
    let mut bytes = vec![0; 100_000];
    while let Ok(n @ 1..) = slow.read(&mut bytes).await {
        n_read += n;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(n_read > 2 << 20, "{n_read}");
    assert_eq!((world.gateway.n_connections(), world.gateway.n_requests()), (0, 0));
    assert_eq!(world.gateway.counters.n_stood_still.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn what_stands_behind_a_refusal_is_not_a_request() {
    let world = World::new(&format!("{ONE}[[routes]]\nhosts = [\"h\"]\nservice = \"web\"\n"));
    let (asked, _) = world.server(1, handler(|_| async { says("") })).await;
    let mut stream = world.connect();
    // Answers that nobody reads fill all buffers, so that the refusal cannot be written.
    let own = "GET /nobody HTTP/1.1\r\nhost: other\r\n\r\n";
    let refused = "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n\
                   0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: h\r\n\r\n";
    stream.write_all((own.repeat(2000) + refused).as_bytes()).await.unwrap();
    let mut heard = Vec::new();
    let mut some = [0; 100];
    // So slowly that at some time only the refusal waits, for longer than makes one idle.
    while let Ok(n @ 1..) = stream.read(&mut some).await {
        heard.extend_from_slice(&some[..n]);
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    let heard = String::from_utf8(heard).unwrap();
    let last = &heard[heard.rfind("HTTP/1.1 ").unwrap()..];
    assert!(last.starts_with("HTTP/1.1 400 "), "{last}");
    assert_eq!(heard.matches("HTTP/1.1 ").count(), 2001);
    assert_eq!(asked.n(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_websockets_first_words_are_not_lost() {
    let world = World::new(ONE);
    let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                  content-length: 9\r\n\r\nfrom the server";
    let heard = server(&world, &[switch, "and again"]).await;
    let mut stream = world.connect();
    let ask = "GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nfrom the client";
    stream.write_all(ask.as_bytes()).await.unwrap();
    let told = hear(&world, &mut stream).await;
    assert!(
        told.starts_with("HTTP/1.1 101 ") && told.ends_with("\r\n\r\nfrom the serverand again")
    );
    assert!(!told.contains("content-length") && !told.contains("close"), "{told}");
    assert!(heard.on(0).ends_with("\r\n\r\nfrom the client"), "{}", heard.on(0));
    // One with a body is an ordinary request.
    let posted = world.raw(b"POST / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\ncontent-length: 1\r\n\r\nx").await;
    assert!(posted.starts_with("HTTP/1.1 502 "), "{posted}");
}
