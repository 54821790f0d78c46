//! What is told of each request: the access log, and spans for a collector. Time is virtual.

mod support;

use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{ONE, World, handler, says, status};
use tokio::task::AbortHandle;

const TRACED: &str = r#"
    zone = "a"
    listen = "127.0.0.1:1"
    traces = { collector = "http://10.0.0.1", share = 1.0, name = "front" }
    [services.web]
    servers = ["a=10.0.0.1:1"]
"#;

#[tokio::test(start_paused = true)]
async fn each_request_has_its_line_in_the_access_log() {
    let world = World::new(ONE);
    world.server(1, handler(|_| async { says("twelve bytes") })).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let to = gateway::config::AccessLog::whole(gateway::config::LogFile::File(path.clone()));
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
    let counts = || (traces.queue.n_sent.load(SeqCst), traces.queue.n_dropped.load(SeqCst));
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
async fn spans_that_wait_go_to_the_next_collector() {
    let world = World::new(TRACED);
    world.server(1, handler(|_| async { says("") })).await;
    assert_eq!(world.client().await.get("/").await.0, 200);
    let (received, _) = collector(&world, 200).await;
    world.reload(&TRACED.replace("share = 1.0", "share = 0.5"));
    let traces = world.gateway.state().traces.clone().unwrap();
    traces.send_all(&world.env).await;
    assert_eq!(received.lock().unwrap().len(), 1);
    assert_eq!(traces.queue.n_sent.load(SeqCst), 1);
}
