//! One node's SQL server on a directory, without peers: for trying clients on.
//!
//! `cargo run --release -p sql --example serve -- DIR [PORT]`, then `psql -h localhost -p PORT -U atoll`.

use base::env::{Net, TcpNet};
use sql::views::{AtollView, Source};
use sql::wire::{self, Limits};
use sql::{Auth, Datum, Engine};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

/// A node that knows of nothing but itself.
struct Alone;

#[async_trait::async_trait]
impl Source for Alone {
    async fn rows(&self, _: AtollView) -> Vec<Vec<Datum>> {
        Vec::new()
    }
}

/// Statements nest deeply; two megabytes, which threads have by default, are too few for some.
const STACK_BYTES: usize = 8 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all().thread_stack_size(STACK_BYTES).build()?.block_on(serve())
}

async fn serve() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or("usage: serve DIR [PORT]")?);
    let port = args.next().map_or(Ok(5433), |port| port.parse())?;
    std::fs::create_dir_all(&dir)?;
    let solo = txn::testing::solo(&dir).await?;
    let engine = Engine::new(solo.env.clone(), solo.client.clone(), Arc::new(Alone), Auth::Trust);
    engine.bootstrap().await?;
    let listener = TcpNet.listen(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
    println!("listening on {}", listener.local());
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let serving = wire::serve(engine, listener, None, Limits::default(), stopped);
    tokio::select! {
        () = serving => {}
        _ = tokio::signal::ctrl_c() => drop(stop.send(true)),
    }
    Ok(())
}
