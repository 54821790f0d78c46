//! A client that balances over three zones by itself, with no gateway in between.
//!
//!     cargo run --release -p gateway --example three_zones
//!
//! starts six small servers, two in each zone, asks them from zone a, and kills zone a's in the
//! middle: the next closest zone takes over, and no request fails.

use base::env::{Env, Stream};
use gateway::balance::{Closeness, ServerSpec};
use gateway::layer::{Dependency, Http, Placed};
use gateway::service::Settings;
use http::{Request, Response, StatusCode};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::{Layer, Service, service_fn};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let env = Env::real();
    let mut specs = Vec::new();
    let mut servers = Vec::new();
    for zone in ["a", "a", "b", "b", "c", "c"] {
        let mut listener = env.net().listen(([127, 0, 0, 1], 0).into()).await?;
        specs.push(ServerSpec { address: listener.local(), zone: zone.into(), weight: 1.0 });
        servers.push(env.spawn("server", async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Who leaves before the answer misses it.
                answer(stream, zone).await.unwrap_or_default();
            }
        }));
    }

    let closeness = Closeness(vec![vec!["a".into()], vec!["b".into()], vec!["c".into()]]);
    let orders = Dependency::new(&env, "orders", Settings::default(), closeness);
    orders.set_servers(specs);
    orders.keep();
    let world = env.clone();
    let mut client = orders.layer(Http).layer(service_fn(move |placed: Placed<Request<()>>| {
        let env = world.clone();
        async move { get(&env, placed.server, placed.request.uri().path()).await }
    }));

    for round in 0..4 {
        if round == 2 {
            println!("zone a's servers are killed");
            servers[..2].iter().for_each(|server| server.abort());
        }
        let mut answers: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..500 {
            let name = match client.call(Request::get("/orders").body(())?).await {
                Ok(answer) => format!("zone {}", answer.into_body()),
                Err(error) => error.to_string(),
            };
            *answers.entry(name).or_default() += 1;
        }
        println!("{answers:?}");
        env.sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

async fn answer(mut stream: Stream, zone: &str) -> io::Result<()> {
    let mut head = [0; 1024];
    let n = stream.read(&mut head).await?;
    if n > 0 {
        let text = format!("HTTP/1.0 200 OK\r\ncontent-length: {}\r\n\r\n{zone}", zone.len());
        stream.write_all(text.as_bytes()).await?;
    }
    stream.shutdown().await
}

/// The smallest HTTP client there is; any other will do.
async fn get(env: &Env, server: SocketAddr, path: &str) -> io::Result<Response<String>> {
    let mut stream = env.net().connect(server).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut response = Response::new(body.to_owned());
    if !head.starts_with("HTTP/1.0 200 ") {
        *response.status_mut() = StatusCode::BAD_GATEWAY;
    }
    Ok(response)
}
